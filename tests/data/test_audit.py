"""Each finding on frames drawn for it; figures against naive counts; real frames at the end."""

import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest

from steelsight.data import audit as module
from steelsight.data.audit import CONFLICT_IOU, audit
from steelsight.data.catalog import Catalog, scan
from steelsight.data.duplicates import (
    DuplicatePair,
    Duplicates,
    Likeness,
    Turn,
    find_duplicates,
    turned,
)
from steelsight.data.findings import RULES, Audit, Code, Finding, Severity
from steelsight.data.labels import FrameLabels, LabelClass, LabelSet, find_images, split_of
from steelsight.errors import InputError, LabelError
from steelsight.masks import encode_rle

HEIGHT, WIDTH = 64, 160
NO_COPIES = Duplicates((), ())
CLASSES = (LabelClass("1", "pits"), LabelClass("2", "scratches"))


def steel(seed: int, shape_hw=(HEIGHT, WIDTH)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(100, 16, shape_hw)
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 1), 0, 255).astype(np.uint8)


def mask(x: int, y: int, w: int, h: int, shape_hw=(HEIGHT, WIDTH)) -> np.ndarray:
    found = np.zeros(shape_hw, np.bool_)
    found[y : y + h, x : x + w] = True
    return found


def disc(x: int, y: int, radius: int, shape_hw=(HEIGHT, WIDTH)) -> np.ndarray:
    return cv2.circle(np.zeros(shape_hw, np.uint8), (x, y), radius, 1, -1) > 0


def scratched(seed: int, where: np.ndarray, depth: int = 50) -> np.ndarray:
    frame = steel(seed, where.shape)
    frame[where] -= depth
    return frame


class DataSet:
    """Frames and labels, written and scanned."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.frames: dict[str, FrameLabels] = {}
        self.refused: set[str] = set()
        self.notes: tuple[str, ...] = ()

    def add(self, image: str, grey: np.ndarray | None, masks=None, **labels) -> None:
        """``masks=None``: no label; ``{}``: clean."""
        if grey is not None:
            path = self.folder / image
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), grey)
        if masks is not None:
            rles = {c: m if isinstance(m, str) else encode_rle(m) for c, m in masks.items()}
            size_wh = labels.pop("size_wh", None)
            self.frames[image] = FrameLabels(image, rles, size_wh, **labels)

    def catalog(self) -> Catalog:
        self.folder.mkdir(exist_ok=True)
        return scan(
            LabelSet(
                "mask-index",
                self.folder,
                CLASSES,
                self.frames,
                find_images(self.folder),
                frozenset(self.refused),
                self.notes,
            )
        )


@pytest.fixture
def data(tmp_path) -> DataSet:
    return DataSet(tmp_path / "set")


def by_code(found: Audit) -> dict[Code, Finding]:
    assert len({f.code for f in found.findings} - {Code.LEAK}) == sum(
        f.code is not Code.LEAK for f in found.findings
    )
    return {f.code: f for f in found.findings}


def pair(a, b, turn=Turn.NONE, likeness=Likeness.SAME_PIXELS, similarity=1.0) -> DuplicatePair:
    return DuplicatePair(a, b, likeness, turn, similarity)


def copies(*pairs: DuplicatePair) -> Duplicates:
    names = sorted({i for p in pairs for i in (p.a, p.b)})
    return Duplicates(pairs, (tuple(names),))


# Nothing wrong ---------------------------------------------------------------------------------


def test_a_sound_data_set_has_no_finding(data):
    spot = disc(40, 30, 9)
    for i in range(4):
        data.add(f"a{i}.png", scratched(i, spot), {"1": spot})
        data.add(f"b{i}.png", steel(100 + i), {})
    found = audit(data.catalog(), NO_COPIES)
    assert found.findings == ()
    assert found.verdict == "Nothing wrong was found."
    assert not found.leaks_or_conflicts
    counts = found.counts
    assert (counts.frames, counts.faulty, counts.clean, counts.usable) == (8, 4, 4, 8)
    # Silence is no approval: what was not looked at is said.
    said = " ".join(found.not_checked)
    assert "no split is known" in said
    assert "no results were given" in said
    assert "4 frames of the 30" in said


def test_an_empty_data_set(data):
    found = audit(data.catalog(), NO_COPIES)
    assert found.verdict == "There is no frame in this data set."
    assert found.counts.frames == 0
    json.dumps(found.to_json(), allow_nan=False)


# Counts ----------------------------------------------------------------------------------------


def test_every_frame_is_counted_once_by_label_and_once_by_file(data):
    spot = disc(40, 30, 9)
    data.add("faulty.png", scratched(1, spot), {"1": spot})
    data.add("clean.png", steel(2), {})
    data.add("disputed.png", steel(3), {}, disputed=True)
    data.add("no-mask.png", steel(4), {}, types_without_mask=("2",))
    data.add("unlabelled.png", steel(5))
    data.add("refused.png", steel(6))
    data.refused |= {"refused.png", "refused-and-missing.png"}
    data.add("missing.png", None, {"1": spot}, size_wh=(WIDTH, HEIGHT))
    data.add("broken.png", steel(7), {})
    (data.folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    (data.folder / "empty.png").write_bytes(b"")
    errors = [LabelError("train.csv row 9: broken"), LabelError("train.csv row 12: broken too")]
    found = audit(data.catalog(), NO_COPIES, label_errors=errors)
    c = found.counts
    assert c.frames == 10
    assert (c.faulty, c.clean, c.disputed, c.refused, c.unlabelled) == (3, 2, 1, 2, 2)
    assert (c.readable, c.unreadable, c.missing) == (6, 2, 2)
    assert c.usable == 3
    assert c.faulty + c.clean + c.disputed + c.refused + c.unlabelled == c.frames
    assert c.readable + c.unreadable + c.missing == c.frames

    of = by_code(found)
    assert of[Code.BROKEN_LABEL].images == ("refused-and-missing.png", "refused.png")
    assert [e.text for e in of[Code.BROKEN_LABEL].evidence] == [str(e) for e in errors]
    assert of[Code.MISSING_IMAGE].images == ("missing.png",)
    assert of[Code.MISSING_IMAGE].severity is Severity.ERROR
    assert of[Code.UNREADABLE_IMAGE].images == ("broken.png", "empty.png")
    assert of[Code.UNREADABLE_IMAGE].figures["by_reason"].keys() >= {"empty"}
    assert "empty" in of[Code.UNREADABLE_IMAGE].told
    assert of[Code.UNLABELLED].images == ("empty.png", "unlabelled.png")
    assert of[Code.DISPUTED].images == ("disputed.png",)
    assert of[Code.TYPE_WITHOUT_MASK].images == ("no-mask.png",)
    assert of[Code.TYPE_WITHOUT_MASK].evidence[0].text == "type scratches"
    assert found.verdict.startswith("3 errors, 3 notes: this data set has labels that cannot be")
    assert not found.leaks_or_conflicts


def test_labels_alone_are_no_error_but_said(data):
    data.add("a.png", None, {"1": disc(40, 30, 9)}, size_wh=(WIDTH, HEIGHT))
    data.add("b.png", None, {"1": disc(40, 30, 9)})
    data.add("c.png", None, {"1": "1 9"}, size_wh=(16_000, 16_000))  # more than is taken
    found = audit(data.catalog(), NO_COPIES)
    of = by_code(found)
    assert of.keys() == {Code.MISSING_IMAGE}
    assert of[Code.MISSING_IMAGE].severity is Severity.WARNING
    assert "None of the 3 labelled images" in of[Code.MISSING_IMAGE].sentence
    assert any("Masks of 2 frames: neither" in line for line in found.not_checked)


def test_findings_come_by_severity_and_say_what_to_do(data):
    spot = disc(40, 30, 9)
    data.add("a.png", np.full((HEIGHT, WIDTH), 90, np.uint8), {})
    data.add("b.png", None, {"1": spot})
    data.add("c.png", steel(1))
    found = audit(data.catalog(), NO_COPIES)
    assert [f.severity for f in found.findings] == [
        Severity.ERROR,
        Severity.WARNING,
        Severity.NOTE,
    ]
    for finding in found.findings:
        assert finding.told.endswith(".")
        assert finding.sentence == f"{finding.told} {finding.advice}"
        assert finding.advice.endswith(".")
        assert "\n" not in finding.sentence
    assert RULES.keys() == set(Code)


def test_json_holds_everything_and_is_strict(data):
    spot = disc(40, 30, 9)
    data.add("train/a.png", scratched(1, spot), {"1": spot, "2": spot}, split="train")
    data.add("test/b.png", steel(2), {}, split="test")
    data.notes = ("sizes were read from the images",)
    found = audit(data.catalog(), copies(pair("test/b.png", "train/a.png", similarity=0.9)))
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["leaks_or_conflicts"] is True
    assert told["verdict"] == found.verdict
    assert told["counts"]["frames"] == 2
    assert told["parts"] == {"train": 1, "test": 1}
    assert told["notes"] == ["sizes were read from the images"]
    assert told["by_severity"]["error"] == 2
    codes = [f["code"] for f in told["findings"]]
    assert codes[:2] == ["leak", "copies-clean-and-faulty"]
    assert told["findings"][0]["images"] == ["test/b.png"]
    assert told["findings"][0]["evidence"][0]["images"] == ["train/a.png", "test/b.png"]
    assert told["findings"][0]["title"]


# Appearance ------------------------------------------------------------------------------------


def test_few_frames_of_another_size_are_a_warning_and_many_a_note(data):
    for i in range(10):
        data.add(f"{i}.png", steel(i), {})
    data.add("odd.png", steel(20, (32, 80)), {})
    found = by_code(audit(data.catalog(), NO_COPIES))[Code.OTHER_SIZE]
    assert found.severity is Severity.WARNING
    assert found.images == ("odd.png",)
    assert found.figures["frames_by_size"] == {"160 x 64": 10, "80 x 32": 1}
    for i in range(10):
        data.add(f"more{i}.png", steel(30 + i, (48 + i, 80)), {})
    found = by_code(audit(data.catalog(), NO_COPIES))[Code.OTHER_SIZE]
    assert found.severity is Severity.NOTE
    assert "in 12 sizes, 10 of them in 160 x 64" in found.told


@pytest.mark.parametrize(("coloured", "odd"), [(1, "coloured"), (4, "grey"), (5, None)])
def test_the_minority_of_coloured_and_grey_frames(data, coloured, odd):
    for i in range(5):
        frame = cv2.cvtColor(steel(i), cv2.COLOR_GRAY2BGR)
        if i < coloured:
            frame[10:20, 10:20] = (0, 0, 255)
        data.add(f"{i}.png", frame, {})
    found = by_code(audit(data.catalog(), NO_COPIES)).get(Code.COLOUR_MIXED)
    assert (found is None) == (odd is None)
    if found:
        assert f"1 of 5 frames is {odd}" in found.told
        assert found.images == (("0.png",) if odd == "coloured" else ("4.png",))


def test_blank_frames(data):
    data.add("blank.png", np.full((HEIGHT, WIDTH), 90, np.uint8), {})
    data.add("steel.png", steel(1), {})
    found = by_code(audit(data.catalog(), NO_COPIES))
    assert found[Code.BLANK].images == ("blank.png",)
    assert found[Code.BLANK].evidence[0].text == "contrast 0.0, mean grey 90"


# Copies ----------------------------------------------------------------------------------------


def test_exact_and_near_copies_are_counted_by_families(data):
    for name in "abcdef":
        data.add(f"{name}.png", steel(ord(name)), {})
    pairs = (
        pair("a.png", "b.png", likeness=Likeness.SAME_FILE),
        pair("b.png", "c.png", Turn.ROTATE_180),
        pair("d.png", "e.png", likeness=Likeness.NEAR, similarity=0.7),
        pair("e.png", "f.png", likeness=Likeness.NEAR, similarity=0.6),
    )
    groups = (("a.png", "b.png", "c.png"), ("d.png", "e.png", "f.png"))
    of = by_code(audit(data.catalog(), Duplicates(pairs, groups)))
    assert of.keys() == {Code.EXACT_COPIES, Code.NEAR_COPIES}
    exact = of[Code.EXACT_COPIES]
    assert exact.images == ("a.png", "b.png", "c.png")
    assert exact.figures == {
        "frames": 3,
        "families": 1,
        "superfluous": 2,
        "largest_family": 3,
        "same_file": 1,
        "turned": 1,
    }
    assert "some flipped or rotated" in exact.told
    near = of[Code.NEAR_COPIES]
    assert near.figures["least_similarity"] == 0.6
    assert near.evidence[0].images == ("e.png", "f.png")  # the least similar first


def test_a_copy_labelled_clean_and_faulty(data):
    spot = disc(40, 30, 9)
    frame = scratched(1, spot)
    data.add("a.png", frame, {"1": spot})
    data.add("b.png", frame, {})
    found = audit(data.catalog(), copies(pair("a.png", "b.png")))
    of = by_code(found)
    assert found.leaks_or_conflicts
    assert of[Code.CLEAN_AND_FAULTY].images == ("a.png", "b.png")
    assert of[Code.CLEAN_AND_FAULTY].evidence[0].text == "type pits | clean"
    assert "contradicts itself" in found.verdict


@pytest.mark.parametrize("other", [{"disputed": True}, None])
def test_disputed_and_unlabelled_copies_contradict_nothing(data, other):
    spot = disc(40, 30, 9)
    frame = scratched(1, spot)
    data.add("a.png", frame, {"1": spot})
    data.add("b.png", frame, None if other is None else {}, **(other or {}))
    assert not audit(data.catalog(), copies(pair("a.png", "b.png"))).leaks_or_conflicts


def test_copies_with_other_types_also_without_masks(data):
    spot = disc(40, 30, 9)
    frame = scratched(1, spot)
    data.add("a.png", frame, {"1": spot})
    data.add("b.png", frame, {"1": spot}, types_without_mask=("2",))
    found = audit(data.catalog(), copies(pair("a.png", "b.png")))
    of = by_code(found)
    assert found.leaks_or_conflicts
    assert of[Code.OTHER_TYPES].evidence[0].text == "type pits | type pits, type scratches"
    assert Code.OTHER_MASKS not in of


@pytest.mark.parametrize("turn", Turn)
def test_masks_of_copies_are_compared_after_turning_the_first(data, turn):
    spot, moved = disc(50, 20, 12), disc(56, 20, 12)
    frame = scratched(1, spot)
    data.add("a.png", frame, {"1": spot})
    data.add("same.png", np.ascontiguousarray(turned(frame, turn)), {"1": turned(spot, turn)})
    data.add("other.png", np.ascontiguousarray(turned(frame, turn)), {"1": turned(moved, turn)})
    found = audit(
        data.catalog(), copies(pair("a.png", "other.png", turn), pair("a.png", "same.png", turn))
    )
    finding = by_code(found)[Code.OTHER_MASKS]
    assert finding.images == ("a.png", "other.png")
    iou = (spot & moved).sum() / (spot | moved).sum()
    assert finding.evidence[0].figures["iou"] == pytest.approx(iou, abs=1e-4)
    assert finding.evidence[0].turn is turn
    assert iou < CONFLICT_IOU
    assert f"{iou:.2f}" in finding.told


def test_masks_that_nearly_agree_do_not_contradict(data):
    spot, moved = disc(50, 30, 20), disc(51, 30, 20)
    frame = scratched(1, spot)
    data.add("a.png", frame, {"1": spot})
    data.add("b.png", frame, {"1": moved})
    assert not audit(data.catalog(), copies(pair("a.png", "b.png"))).leaks_or_conflicts


def test_conflicts_of_labels_alone_need_a_size(data):
    spot = disc(50, 30, 20)
    data.add("a.png", None, {"1": spot}, size_wh=(WIDTH, HEIGHT))
    data.add("b.png", None, {"1": mask(1, 1, 5, 5)}, size_wh=(WIDTH, HEIGHT))
    data.add("c.png", None, {"1": mask(1, 1, 5, 5)})
    duplicates = copies(pair("a.png", "b.png"), pair("a.png", "c.png"))
    found = by_code(audit(data.catalog(), duplicates))
    assert found[Code.OTHER_MASKS].images == ("a.png", "b.png")


def test_near_copies_are_laid_upon_each_other_before_masks_are_compared(data):
    """A thin scratch, moved by what the finder says, give or take two pixels."""
    line = mask(40, 10, 3, 40)
    data.add("a.png", scratched(1, line), {"1": line})
    data.add("b.png", scratched(1, line), {"1": mask(51, 15, 3, 40)})
    near = DuplicatePair("a.png", "b.png", Likeness.NEAR, Turn.NONE, 0.8, (9, 6))
    catalog = data.catalog()
    assert not audit(catalog, copies(near)).leaks_or_conflicts
    far = DuplicatePair("a.png", "b.png", Likeness.NEAR, Turn.NONE, 0.8, (2, 6))
    found = by_code(audit(catalog, copies(far)))
    assert found[Code.OTHER_MASKS].figures["least_iou"] == 0
    assert found[Code.NEAR_COPIES].evidence[0].text == "similarity 0.800, shifted by 2, 6 px"


# Leaks -----------------------------------------------------------------------------------------


def test_composed_turns_do_what_both_do():
    picture = np.arange(12).reshape(3, 4)
    for first, then in product(Turn, Turn):
        both = turned(turned(picture, first), then)
        assert np.array_equal(turned(picture, module._composed(first, then)), both)
        assert module._composed(first, module._inverse(first)) is Turn.NONE


def test_copies_across_parts_are_leaks_into_the_later_part(data):
    frame = steel(1, (64, 64))
    quarter = np.ascontiguousarray(turned(frame, Turn.ROTATE_90))
    half = np.ascontiguousarray(turned(frame, Turn.ROTATE_180))
    data.add("train/a.png", frame, {}, split="train")
    data.add("test/b.png", quarter, {}, split="test")
    data.add("test/c.png", half, {}, split="test")
    data.add("test/d.png", steel(2, (64, 64)), {}, split="test")
    # test/c is tied to training only through test/b: a spanning tree holds no other pair.
    duplicates = copies(
        pair("test/b.png", "test/c.png", Turn.ROTATE_90),
        pair("test/b.png", "train/a.png", Turn.ROTATE_270),
    )
    found = audit(data.catalog(), duplicates)
    leak = by_code(found)[Code.LEAK]
    assert found.leaks_or_conflicts
    assert leak.severity is Severity.ERROR
    assert leak.images == ("test/b.png", "test/c.png")
    assert leak.told == (
        "2 of 3 frames in test (67 %) are copies of frames in training, all of them flipped or"
        " rotated."
    )
    assert found.verdict.startswith("1 error, 1 warning: this data set leaks from training into te")
    by_image = {case.images[1]: case for case in leak.evidence}
    assert by_image["test/c.png"].images[0] == "train/a.png"
    for case in leak.evidence:
        read = {i: cv2.imread(str(data.folder / i), cv2.IMREAD_GRAYSCALE) for i in case.images}
        assert np.array_equal(turned(read[case.images[0]], case.turn), read[case.images[1]])


def test_a_given_assignment_replaces_the_split_of_the_labels(data):
    data.add("a.png", steel(1), {}, split="train")
    data.add("b.png", steel(1), {}, split="train")
    data.add("c.png", steel(2), {}, split="test")
    catalog, duplicates = data.catalog(), copies(pair("a.png", "b.png"))
    assert Code.LEAK not in by_code(audit(catalog, duplicates))
    assignment = {"a.png": "fold 1", "b.png": "fold 2", "elsewhere.png": "fold 2"}
    found = audit(catalog, duplicates, assignment=assignment)
    assert by_code(found)[Code.LEAK].figures["copies_of"] == {"fold 1": 1}
    assert found.parts == {"fold 1": 1, "fold 2": 1}
    with pytest.raises(InputError, match=r"the split names frames such as 'x\.png'.*'a\.png'"):
        audit(catalog, duplicates, assignment={"x.png": "train"})


def test_each_later_part_has_its_own_leak(data):
    for part in ("train", "val", "test"):
        data.add(f"{part}/a.png", steel(1), {}, split=part)
    duplicates = copies(
        pair("test/a.png", "train/a.png"),
        pair("test/a.png", "val/a.png"),
    )
    found = [f for f in audit(data.catalog(), duplicates).findings if f.code is Code.LEAK]
    assert [f.figures["way"] for f in found] == [
        "from training into validation",
        "from training into test",
    ]


def test_types_that_a_part_lacks(data):
    spot = disc(40, 30, 9)
    data.add("train/a.png", scratched(1, spot), {"1": spot}, split="train")
    data.add("train/b.png", scratched(2, spot), {"2": spot}, split="train")
    data.add("val/a.png", scratched(3, spot), {"1": spot}, split="val")
    data.add("test/a.png", steel(4), {}, split="test")  # clean frames only: on purpose
    found = by_code(audit(data.catalog(), NO_COPIES))
    assert found.keys() == {Code.TYPE_MISSING_IN_PART}
    finding = found[Code.TYPE_MISSING_IN_PART]
    assert finding.told == "Not on a single frame: type scratches in validation."
    assert finding.figures["frames_by_part_and_type"]["train"] == {"1": 1, "2": 1}


# Masks -----------------------------------------------------------------------------------------


def test_masks_of_another_size_and_beyond_the_image(data):
    spot = disc(40, 30, 9)
    data.add("swapped.png", steel(1), {"1": spot.T}, size_wh=(HEIGHT, WIDTH))
    data.add("half.png", steel(2), {"1": mask(1, 1, 5, 5, (32, 80))}, size_wh=(80, 32))
    data.add("beyond.png", steel(3), {"1": f"{HEIGHT * WIDTH - 2} 9"})
    data.add("good.png", scratched(4, spot), {"1": spot}, size_wh=(WIDTH, HEIGHT))
    found = by_code(audit(data.catalog(), NO_COPIES))
    assert found.keys() == {Code.MASK_OF_OTHER_SIZE, Code.MASK_OUTSIDE}
    assert found[Code.MASK_OF_OTHER_SIZE].images == ("half.png", "swapped.png")
    texts = [e.text for e in found[Code.MASK_OF_OTHER_SIZE].evidence]
    assert "masks of 64 x 160, image of 160 x 64, width and height swapped" in texts
    assert found[Code.MASK_OF_OTHER_SIZE].figures == {"frames": 2, "swapped": 1}
    assert found[Code.MASK_OUTSIDE].images == ("beyond.png",)
    assert "ends past the 10240 pixels" in found[Code.MASK_OUTSIDE].evidence[0].text


def test_specks_boxes_overlaps_and_whole_frames_are_told(data):
    spot = disc(40, 30, 9)
    with_speck = spot | mask(100, 10, 3, 3)
    data.add("speck.png", scratched(1, spot), {"1": with_speck})
    box = mask(20, 10, 30, 40)
    data.add("box.png", scratched(2, box), {"1": box})
    other = disc(44, 30, 9)
    data.add("both.png", scratched(3, spot | other), {"1": spot, "2": other})
    inverted = ~disc(40, 30, 5)
    data.add("whole.png", scratched(4, ~inverted), {"2": inverted})
    of = by_code(audit(data.catalog(), NO_COPIES))
    assert of.keys() == {
        Code.SPECKS, Code.BOX_MASKS, Code.OVERLAPPING_TYPES, Code.WHOLE_FRAME_MASK,
    }  # fmt: skip
    specks = of[Code.SPECKS]
    assert specks.told == "1 of 6 regions (17 %), on 1 frame, is smaller than 32 pixels."
    assert specks.evidence[0].bbox_xywh == (100, 10, 3, 3)
    assert specks.evidence[0].text == "type pits, 9 px at x 100, y 10"
    assert of[Code.BOX_MASKS].evidence[0].bbox_xywh == (20, 10, 30, 40)
    overlap = of[Code.OVERLAPPING_TYPES]
    assert overlap.figures["pixels"] == (spot & other).sum()
    assert overlap.figures["frames_by_types"] == {"1 + 2": 1}
    assert "type pits and type scratches" in overlap.evidence[0].text
    whole = of[Code.WHOLE_FRAME_MASK]
    assert whole.images == ("whole.png",)
    assert whole.evidence[0].figures["share"] == pytest.approx(inverted.mean(), abs=1e-4)
    assert Code.SPECKS not in by_code(audit(data.catalog(), NO_COPIES, speck_px=9))
    with pytest.raises(InputError, match="at least 1 pixel, got 0"):
        audit(data.catalog(), NO_COPIES, speck_px=0)


def test_masks_in_the_darkness_beside_the_strip(data):
    frame = steel(1)
    frame[:, 100:] = 3
    frame[10:30, 20:60] = 5  # a dark defect on the strip is no margin
    data.add("margin.png", frame, {"1": disc(130, 30, 12), "2": mask(20, 10, 40, 20)})
    data.add(
        "dark.png", np.full((HEIGHT, WIDTH), 4, np.uint8) + (frame > 50), {"1": disc(40, 30, 9)}
    )
    found = by_code(audit(data.catalog(), NO_COPIES))
    finding = found[Code.MASK_ON_MARGIN]
    assert finding.images == ("margin.png",)
    assert [e.text.split(",")[0] for e in finding.evidence] == ["type pits"]
    assert finding.evidence[0].text.endswith("mean grey 3")


def test_masks_where_nothing_is_to_be_seen(data):
    here, nowhere = disc(40, 30, 12), disc(110, 30, 12)
    data.add("right.png", scratched(1, here), {"1": here})
    data.add("shifted.png", scratched(2, here), {"1": nowhere})
    found = by_code(audit(data.catalog(), NO_COPIES))
    assert found.keys() == {Code.FAINT_MASKS}
    assert found[Code.FAINT_MASKS].images == ("shifted.png",)
    assert found[Code.FAINT_MASKS].figures["of"] == 2


# Suspects --------------------------------------------------------------------------------------


def test_a_clean_frame_with_a_deep_shadow_stands_out(data):
    for i in range(40):
        data.add(f"{i:02d}.png", steel(i), {})
    torn = steel(99)
    torn[28:40, 70:90] = 20
    data.add("torn.png", torn, {})
    hole = steel(98, (256, 320))
    hole[100:160, 100:180] = 0  # large and black, but no darkness beside the strip
    data.add("hole.png", hole, {})
    margin = steel(97)
    margin[:, 110:] = 2
    data.add("margin.png", margin, {})
    finding = by_code(audit(data.catalog(), NO_COPIES))[Code.STRIKING_CLEAN]
    assert {case.images[0] for case in finding.evidence[:2]} == {"hole.png", "torn.png"}
    assert "margin.png" not in finding.images
    boxes = {case.images[0]: case.bbox_xywh for case in finding.evidence}
    for image, (left, top, right, bottom) in (
        ("torn.png", (70, 28, 90, 40)),
        ("hole.png", (100, 100, 180, 160)),
    ):
        x, y, w, h = boxes[image]
        assert (w, h) == (16, 16)
        assert left - 16 < x < right
        assert top - 16 < y < bottom


def test_frames_all_alike_have_no_spread_to_stand_out_from(data):
    for i in range(31):
        data.add(f"{i:02d}.png", steel(1), {})
    assert Code.STRIKING_CLEAN not in by_code(audit(data.catalog(), NO_COPIES))


def test_predictions_that_contradict_labels_are_ranked(data):
    spot = disc(40, 30, 9)
    predictions = {}
    for i in range(6):
        data.add(f"line/f{i}.png", scratched(i, spot), {"1": spot})
        data.add(f"line/c{i}.png", steel(50 + i), {})
        predictions |= {f"f{i}.png": 0.9, f"c{i}.png": 0.1}  # by file name, as they are unique
    data.add("line/d.png", steel(90), {}, disputed=True)
    predictions |= {"c3.png": 0.97, "c5.png": 0.99, "f2.png": 0.02, "d.png": 0.99, "zz.png": 0.5}
    found = audit(data.catalog(), NO_COPIES, predictions=predictions)
    of = by_code(found)
    assert [e.images[0] for e in of[Code.LIKELY_FAULTY].evidence] == ["line/c5.png", "line/c3.png"]
    assert of[Code.LIKELY_CLEAN].images == ("line/f2.png",)
    assert "2 of 6 frames labelled clean look as faulty" in of[Code.LIKELY_FAULTY].told
    assert "If the model learned from these frames" in of[Code.LIKELY_FAULTY].sentence
    assert not found.leaks_or_conflicts


def test_predictions_that_fit_nothing_are_refused(data):
    data.add("a.png", steel(1), {})
    catalog = data.catalog()
    with pytest.raises(InputError, match=r"results name frames such as 'b\.png'"):
        audit(catalog, NO_COPIES, predictions={"b.png": 0.5})
    for wrong in (1.5, -3.0, math.nan):
        with pytest.raises(InputError, match="expected 0 to 1"):
            audit(catalog, NO_COPIES, predictions={"a.png": wrong})
    found = audit(catalog, NO_COPIES, predictions={"a.png": 0.5})
    assert any("on faulty and on clean frames" in line for line in found.not_checked)


def test_progress_and_a_file_that_vanishes(data):
    spot = disc(40, 30, 9)
    data.add("a.png", scratched(1, spot), {"1": spot})
    data.add("b.png", steel(2), {})
    catalog = data.catalog()
    (data.folder / "a.png").unlink()
    calls: list[tuple[int, int]] = []
    found = audit(catalog, NO_COPIES, progress=lambda *done: calls.append(done))
    assert calls == [(1, 2), (2, 2)]
    assert any("the file changed" in line for line in found.not_checked)


# Real frames -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def read_masks() -> Callable[[Path, Path], LabelSet]:
    def read(images: Path, masks: Path) -> LabelSet:
        frames = {}
        paths = find_images(images)
        for image in paths:
            values = cv2.imread(str((masks / image).with_suffix(".png")), cv2.IMREAD_UNCHANGED)
            found = {str(v): encode_rle(values == v) for v in np.unique(values[values > 0])}
            size_wh = values.shape[1], values.shape[0]
            frames[image] = FrameLabels(image, found, size_wh, split=split_of(image))
        classes = tuple(LabelClass(str(v), f"Type {v}") for v in range(1, 4))
        return LabelSet("mask-index", masks, classes, frames, paths)

    return read


def test_the_leak_of_the_published_split_is_found(shared_dir, read_masks):
    folder = shared_dir / "data" / "neu_seg_leak"
    catalog = scan(read_masks(folder / "images", folder / "annotations"))
    found = audit(catalog, find_duplicates(catalog))
    leak = by_code(found)[Code.LEAK]
    assert leak.figures["frames"] == 62
    assert leak.figures["copies"] >= 59
    assert leak.figures["flipped_or_rotated"] >= 50
    # Every leak is one of the published families.
    groups = json.loads((folder / "duplicate_groups.json").read_text())
    family = {name.removeprefix("images/"): i for i, g in enumerate(groups) for name in g}
    assert all(family[a] == family[b] for a, b in (case.images for case in leak.evidence))
    conflicts = by_code(found)[Code.OTHER_MASKS]
    assert 20 <= conflicts.figures["pairs"] <= 45
    assert found.leaks_or_conflicts
