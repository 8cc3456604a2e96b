from collections import Counter
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from steelsight.data.frames import FrameSource, LabelledFrame
from steelsight.errors import InputError
from steelsight.training.config import Sampling
from steelsight.training.sampling import CropKind, Sampler

DEFECT, PASTE, CLEAN, ANY = CropKind.DEFECT, CropKind.PASTE, CropKind.CLEAN, CropKind.ANY


def make_source(*frames: str, class_ids: str = "abc") -> FrameSource:
    """Frames by their types; a capital letter is a type without a mask."""
    return FrameSource(
        [
            LabelledFrame(
                f"{n}.png",
                Path(f"{n}.png"),
                (64, 32),
                {c: "1 9" for c in types if c.islower()},
                tuple(types.lower()),
            )
            for n, types in enumerate(frames)
        ],
        class_ids,
        0,
    )


SOURCE = make_source(*["a"] * 16, "b", "b", "b", "ab", "bC", "A", "B", *[""] * 9)
"""Types a and b on 17 and 4 usable frames, c on none; frames 20 to 22 have types without masks."""


def plans_of(sampler, steps):
    return [plan for step in range(steps) for plan in sampler.plan(step)]


def test_a_plan_depends_on_seed_and_step_only():
    config = Sampling(batch=16)
    forwards, backwards = Sampler(SOURCE, config, 5), Sampler(SOURCE, config, 5)
    expected = [forwards.plan(step) for step in range(20)]
    assert [backwards.plan(step) for step in reversed(range(20))] == expected[::-1]
    assert Sampler(SOURCE, config, 6).plan(0) != expected[0]
    seeds = [plan.seed for batch in expected for plan in batch]
    assert len(set(seeds)) == len(seeds)
    assert 0 <= min(seeds) <= max(seeds) < 1 << 63
    assert max(seeds) > 1 << 60


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"batch": 32}, {DEFECT: 14, PASTE: 6, CLEAN: 12}),
        ({"batch": 12}, {DEFECT: 5, PASTE: 2, CLEAN: 5}),
        ({"batch": 4}, {DEFECT: 2, PASTE: 1, CLEAN: 1}),
        ({"batch": 3, "defects": 0.5, "copy_paste": 0.5}, {DEFECT: 2, PASTE: 1}),
        ({"batch": 8, "copy_paste": 0}, {DEFECT: 4, CLEAN: 4}),
        ({"batch": 32, "balance": False}, {PASTE: 6, ANY: 26}),
        ({"batch": 8, "balance": False, "copy_paste": 0}, {ANY: 8}),
    ],
)
def test_what_a_batch_is_made_of(settings, expected):
    sampler = Sampler(SOURCE, Sampling(**settings), 0)
    for step in range(5):
        assert Counter(plan.kind for plan in sampler.plan(step)) == expected
    assert Counter(sampler.kinds) == expected


@pytest.mark.parametrize("balance", [True, False])
def test_every_plan_names_frames_that_fit_it(balance):
    sampler = Sampler(SOURCE, Sampling(balance=balance), 1)
    for plan in plans_of(sampler, 40):
        frame = SOURCE.frames[plan.frame]
        assert plan.frame not in (20, 21, 22)
        assert (plan.type_index is None) == (plan.kind in (CLEAN, ANY))
        assert (plan.donor is None) == (plan.kind is not PASTE)
        if plan.kind is DEFECT:
            assert SOURCE.class_ids[plan.type_index] in frame.rle_by_class
        elif plan.kind is not ANY:
            assert frame.clean
        if plan.donor is not None:
            assert plan.donor not in (20, 21, 22)
            assert SOURCE.class_ids[plan.type_index] in SOURCE.frames[plan.donor].rle_by_class


@pytest.mark.parametrize("exponent", [0, 0.5, 1])
def test_types_are_drawn_by_their_weight_in_every_batch(exponent):
    sampler = Sampler(SOURCE, Sampling(batch=32, type_exponent=exponent), 2)
    share_of_a = 17**exponent / (17**exponent + 4**exponent)
    np.testing.assert_allclose(sampler.type_weights, [share_of_a, 1 - share_of_a, 0])
    counts = []
    for step in range(400):
        drawn = [p.type_index for p in sampler.plan(step) if p.kind is DEFECT]
        counts.append(drawn.count(0))
        assert abs(drawn.count(0) - 14 * share_of_a) < 1
        assert set(drawn) <= {0, 1}
    # A count lies between two whole numbers: its deviation is at most 0.5.
    assert abs(np.mean(counts) - 14 * share_of_a) < 4 * 0.5 / 20


@pytest.mark.parametrize(("balance", "members"), [(True, 9), (False, 29)])
def test_frames_are_drawn_with_equal_chances(balance, members):
    sampler = Sampler(SOURCE, Sampling(balance=balance, defects=0, copy_paste=0), 3)
    counts = Counter(plan.frame for plan in plans_of(sampler, 200))
    assert len(counts) == members
    # Pearson's chi-squared: mean members - 1, deviation sqrt(2 (members - 1)).
    expected = 200 * 32 / members
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    assert abs(statistic - (members - 1)) < 4 * (2 * (members - 1)) ** 0.5


def test_without_clean_frames_nothing_is_pasted_and_any_place_is_background():
    sampler = Sampler(make_source("a", "b", "A"), Sampling(batch=32), 0)
    assert Counter(sampler.kinds) == {DEFECT: 20, ANY: 12}
    for plan in plans_of(sampler, 10):
        assert plan.donor is None
        assert plan.frame in (0, 1)


def test_without_masks_there_is_nothing_to_learn():
    with pytest.raises(InputError, match="frames with masks to train on, got none among 3 frames"):
        Sampler(make_source("A", "aB", ""), Sampling(), 0)


def test_plans_are_pinned():
    """Drawing plans in another way would change what a resumed run sees: on purpose only."""
    plans = Sampler(SOURCE, Sampling(batch=10), 0).plan(7)
    assert [astuple(plan)[1:4] for plan in plans] == [
        (5, 0, None),
        (9, 0, None),
        (17, 1, None),
        (17, 1, None),
        (30, 0, 19),
        (25, 1, 19),
        (30, None, None),
        (24, None, None),
        (29, None, None),
        (31, None, None),
    ]
    assert plans[0].seed == 3094840092112802462
