"""Turns, spreads and ratios, with contestants whose times are known."""

import json

import numpy as np
import pytest

from steelsight.benchmark.frames import EncodedFrame
from steelsight.benchmark.race import (
    STEPS,
    Measured,
    Spread,
    Timed,
    figures,
    race,
    to_json,
    warm_up,
)
from steelsight.errors import EngineError

FRAMES = [EncodedFrame(f"{i}.jpg", b"", None) for i in range(6)]


class Fake:
    """Takes ``seconds[round]`` for each frame; notes its turns."""

    def __init__(self, name, seconds, log, at_once=1.0):
        self.name, self.seconds, self.log, self.at_once = name, list(seconds), log, at_once

    def one_by_one(self, frames):
        self.log.append((self.name, [frame.name for frame in frames]))
        took = self.seconds.pop(0)
        steps = {"decode": 100 * took, "gate": 500 * took, "nonsense": 9}
        return [Timed(took, steps) for _ in frames]

    def together(self, frames):
        self.log.append((f"{self.name} together", [frame.name for frame in frames]))
        return self.at_once


def test_turns_are_interleaved_and_on_the_same_frames():
    log, told, rounds = [], [], []
    contestants = [Fake(name, [1, 2, 3], log) for name in "ABC"]
    race(
        contestants,
        FRAMES,
        3,
        lambda done, total: told.append((done, total)),
        lambda c: rounds.append((c, len(log))),
    )
    turn = [entry for name in "ABC" for entry in (name, f"{name} together")]
    assert [name for name, _ in log] == turn * 3
    rounds_of_frames = [[frames for _, frames in log[at : at + 6]] for at in (0, 6, 12)]
    for taken in rounds_of_frames:
        assert all(frames == taken[0] for frames in taken), "one order for all"
        assert sorted(taken[0]) == [f.name for f in FRAMES]
    assert rounds_of_frames[0][0] != rounds_of_frames[1][0], "and another one in each round"
    assert told == [(done, 9) for done in range(10)]
    assert rounds == [(c, 6 * r + 2 * c) for r in range(3) for c in range(3)], "before every turn"


def test_what_is_measured():
    fast = race([Fake("A", [0.01, 0.02], [], at_once=0.03)], FRAMES, 2)[0]
    np.testing.assert_allclose(fast.single_s_rn, [[0.01] * 6, [0.02] * 6])
    np.testing.assert_allclose(fast.frames_per_second_r, [200, 200])
    np.testing.assert_allclose(fast.steps_ms_rn["gate"], [[5] * 6, [10] * 6])
    assert set(fast.steps_ms_rn) == set(STEPS)


def test_times_belong_to_their_frames():
    class Counts(Fake):
        def one_by_one(self, frames):
            self.log.append((self.name, []))
            return [Timed(1 + float(f.name[0]), {"gate": float(f.name[0])}) for f in frames]

    found = race([Counts("A", [], [])], FRAMES, 3)[0]
    np.testing.assert_array_equal(found.single_s_rn, [[1, 2, 3, 4, 5, 6]] * 3)
    np.testing.assert_array_equal(found.steps_ms_rn["gate"], [[0, 1, 2, 3, 4, 5]] * 3)


def test_without_several_at_once_single_frames_count():
    alone = race([Fake("A", [0.01, 0.02], [], at_once=None)], FRAMES, 2)[0]
    np.testing.assert_allclose(alone.frames_per_second_r, [100, 50])


def test_a_lost_frame_ends_the_run():
    class Loses(Fake):
        def one_by_one(self, frames):
            return super().one_by_one(frames)[1:]

    with pytest.raises(EngineError, match="A: expected 6 results, got 5"):
        race([Loses("A", [1], [])], FRAMES, 1)


def measured(single_s_rn, together_s_r=None):
    single = np.asarray(single_s_rn, float)
    together = single.sum(axis=1) if together_s_r is None else np.asarray(together_s_r, float)
    steps = {step: np.zeros_like(single) for step in STEPS}
    steps["gate"] = 1e3 * single * 0.6
    return Measured(single, together, steps)


def test_ratios_are_paired_round_by_round():
    # The machine becomes ten times slower from round to round; B always takes three times as long.
    drift = np.array([[1.0], [10.0], [100.0]])
    a, b = measured(drift * np.ones(4)), measured(3 * drift * np.ones(4))
    found = figures(a, b, np.array([True, False, False, False]))
    for ratio in (found.times_as_fast, found.times_as_fast_cleared, found.times_as_fast_segmented):
        assert ratio.median == ratio.p10 == ratio.p90 == pytest.approx(3)
        assert ratio.values == 3
    assert figures(b, b, np.zeros(4, bool)).times_as_fast.median == 1


def test_latency_is_told_by_kind():
    found = figures(
        *[measured([[0.001, 0.002, 0.1], [0.001, 0.004, 0.3]])] * 2, np.array([0, 0, 1]) > 0
    )
    assert found.ms_cleared.median == pytest.approx(1.5)
    assert found.ms_segmented.median == pytest.approx(200)
    assert (found.ms.values, found.ms_cleared.values, found.ms_segmented.values) == (6, 4, 2)


@pytest.mark.parametrize("value", [True, False])
def test_a_kind_without_frames_has_no_figure(value):
    found = figures(*[measured(np.ones((2, 3)))] * 2, np.full(3, value))
    empty = ("cleared" if value else "segmented",)
    for kind in ("cleared", "segmented"):
        given = getattr(found, f"ms_{kind}"), getattr(found, f"times_as_fast_{kind}")
        assert (given == (None, None)) is (kind in empty)


def test_shares_of_time_sum_to_one():
    shares = measured(np.ones((2, 3))).shares()
    assert shares["gate"] == pytest.approx(0.6)
    assert shares["rest"] == pytest.approx(0.4)
    assert sum(shares.values()) == pytest.approx(1)


def test_a_steps_median_is_over_the_frames_on_which_it_ran():
    taken = measured([[1, 1, 1], [2, 2, 2]])
    taken.steps_ms_rn["segment"][:] = [[0, 30, 50], [0, 0, 70]]
    found = figures(taken, taken, np.array([False, True, True]))
    assert found.step_ms_r["segment"] == (40, 70)
    assert found.step_ms_r["gate"] == (600, 1200)
    assert "decide" not in found.step_ms_r


def test_percentiles_are_those_of_numpy():
    values = np.random.default_rng(0).gamma(2, size=(5, 40))
    found = Spread.of(values)
    for name, percent in (("median", 50), ("p10", 10), ("p90", 90), ("p99", 99)):
        assert getattr(found, name) == np.percentile(values, percent)
    assert found.values == 200
    assert found.median == np.median(values)


def test_warm_up_takes_both_kinds():
    log, told = [], []
    segmented_n = np.array([False, False, False, True, True, True])
    seconds = warm_up(
        [Fake("A", [1], log), Fake("B", [1], log)], FRAMES, segmented_n, lambda *a: told.append(a)
    )
    assert len(seconds) == 2
    assert [name for name, _ in log] == ["A", "A together", "B", "B together"]
    assert log[0][1] == ["3.jpg", "4.jpg", "0.jpg", "1.jpg"]
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_json_is_strict_and_short():
    found = to_json(figures(*[measured(np.full((2, 3), 1 / 3))] * 2, np.zeros(3, bool)))
    assert found["ms"]["median"] == 333.333
    assert found["ms_segmented"] is None
    json.dumps(found, allow_nan=False)
