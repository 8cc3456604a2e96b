"""Which frames are measured."""

from collections import Counter

import pytest

from steelsight.benchmark.frames import (
    MOST_JUDGED,
    Candidate,
    candidates_of,
    choose,
    drawn_candidates,
    wanted_of_kind,
)
from steelsight.data.labels import FrameLabels, LabelSet
from steelsight.defects import Inspection, Reason, Verdict
from steelsight.errors import DecodeError, InputError


def inspection(verdict, reason=None):
    return Inspection(
        "x", None, verdict, reason, None, None if verdict == "UNKNOWN" else 0.1, {}, (),
        (64, 64), "m", "d", "e",
    )  # fmt: skip


def judge(frame):
    """NG if the bytes say so; UNKNOWN for damaged ones."""
    if frame.data == b"damaged":
        return inspection(Verdict.UNKNOWN, Reason.TRUNCATED)
    return inspection(Verdict.NG if frame.data == b"bad" else Verdict.OK)


def candidates(bad, good, damaged=0, labelled=True):
    kinds = [(b"bad", True)] * bad + [(b"good", False)] * good + [(b"damaged", False)] * damaged
    return [
        Candidate(f"{i:03d}.jpg", lambda data=data: data, faulty if labelled else None)
        for i, (data, faulty) in enumerate(kinds)
    ]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(("count", "share", "faulty"), [(40, 0.1, 4), (30, 0.5, 15), (7, 0.4, 3)])
def test_the_mix_has_exactly_the_share(labelled, count, share, faulty):
    chosen = choose(candidates(30, 70, labelled=labelled), count, share, 3, judge)
    assert Counter(frame.faulty for frame in chosen.frames) == {True: faulty, False: count - faulty}
    assert len({frame.name for frame in chosen.frames}) == chosen.different == count
    assert all(frame.faulty is (frame.data == b"bad") for frame in chosen.frames)


def test_the_seed_chooses_and_orders():
    def names(seed):
        return [f.name for f in choose(candidates(20, 80), 20, 0.2, seed, judge).frames]

    assert names(1) == names(1)
    assert names(1) != names(2)
    kinds = [f.faulty for f in choose(candidates(20, 80), 20, 0.2, 1, judge).frames]
    assert kinds != sorted(kinds, reverse=True), "faulty ones are not all at the start"


def test_frames_as_they_come_carry_their_label():
    chosen = choose(candidates(2, 2), 4, None, 0, judge)
    assert Counter(frame.faulty for frame in chosen.frames) == {True: 2, False: 2}
    unlabelled = choose(candidates(2, 2, labelled=False), 4, None, 0, judge)
    assert {frame.faulty for frame in unlabelled.frames} == {None}


def test_too_few_frames_come_again_in_turns():
    chosen = choose(candidates(2, 40), 20, 0.25, 0, judge)
    faulty = Counter(frame.name for frame in chosen.frames if frame.faulty)
    assert sorted(faulty.values()) == [2, 3]
    assert chosen.different == 2 + 15


def test_a_frame_without_a_verdict_is_left_out_and_counted():
    def unreadable():
        raise DecodeError(Reason.UNREADABLE, "no")

    given = [*candidates(1, 3, damaged=2), Candidate("gone.jpg", unreadable, False)]
    chosen = choose(given, 5, None, 0, judge)
    assert chosen.left_out == {"truncated": 2, "unreadable": 1}
    assert len(chosen.frames) == 5
    assert chosen.different == 4


def test_labels_decide_not_verdicts():
    missed = [Candidate("missed.jpg", lambda: b"good", True)]
    chosen = choose([*missed, *candidates(0, 5)], 2, 0.5, 0, judge)
    assert {f.name for f in chosen.frames if f.faulty} == {"missed.jpg"}


def test_the_search_ends():
    looked_at = []

    def note(frame):
        looked_at.append(frame)
        return judge(frame)

    with pytest.raises(InputError, match=r"faulty frames.*found none among the 200 looked at"):
        choose(candidates(0, 900, labelled=False), 10, 0.1, 0, note)
    assert len(looked_at) == MOST_JUDGED * 10


@pytest.mark.parametrize(
    ("count", "share", "message"),
    [
        (0, None, "--frames from 1"),
        (10, 1.5, "from 0 to 1"),
        (10, float("nan"), "from 0 to 1"),
        (10, 0.01, "give --frames 100 or more"),
        (10, 0.99, "give --frames 100 or more"),
    ],
)
def test_impossible_mixes_are_refused(count, share, message):
    with pytest.raises(InputError, match=message):
        wanted_of_kind(count, share)


def test_the_advised_number_of_frames_is_accepted():
    assert wanted_of_kind(100, 0.01) == {True: 1, False: 99}
    assert wanted_of_kind(10, 0.0) == {True: 0, False: 10}
    assert wanted_of_kind(10, 1.0) == {True: 10, False: 0}


def test_nothing_usable_says_why():
    with pytest.raises(InputError, match=r"found none among the 3 looked at \(3 truncated\)"):
        choose(candidates(0, 0, damaged=3), 4, None, 0, judge)


def test_doubtful_labels_are_no_labels(tmp_path):
    frames = {
        "good.jpg": FrameLabels("good.jpg", {}),
        "bad.jpg": FrameLabels("bad.jpg", {"1": "1 2"}),
        "unmarked.jpg": FrameLabels("unmarked.jpg", {}, types_without_mask=("2",)),
        "doubtful.jpg": FrameLabels("doubtful.jpg", {}, disputed=True),
        "gone.jpg": FrameLabels("gone.jpg", {}),
    }
    paths = {name: tmp_path / name for name in frames if name != "gone.jpg"}
    found = candidates_of(LabelSet("x", tmp_path, (), frames, paths))
    assert {c.name: c.faulty for c in found} == {
        "good.jpg": False, "bad.jpg": True, "unmarked.jpg": True,
    }  # fmt: skip
    with pytest.raises(InputError, match="known to be clean or faulty"):
        candidates_of(LabelSet("x", tmp_path, (), {"doubtful.jpg": frames["doubtful.jpg"]}, paths))


def test_drawn_frames_are_as_asked_for():
    drawn = drawn_candidates(4, 0.25, 0)
    assert [c.faulty for c in drawn] == [True, False, False, False]
    assert len({c.name for c in drawn}) == 4
    assert all(c.read()[:2] == b"\xff\xd8" for c in drawn)
    assert drawn_candidates(1, 0.0, 0)[0].faulty is False
