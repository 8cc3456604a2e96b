"""The usual mistakes of published projects on this data, each made here and then not possible.

Every test makes the mistake as it stands in those notebooks, shows that it does harm, and then does
the same with this program: the mistake is impossible, refused, or told.
"""

import csv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.predicted import predictions_of

from steelsight.data.catalog import Catalog, scan
from steelsight.data.duplicates import find_duplicates
from steelsight.data.formats.registry import load
from steelsight.data.formats.severstal import read_csv
from steelsight.data.frames import FrameSource, LabelledFrame, labelled_frame, types_image
from steelsight.data.splits import make_split
from steelsight.data.synthetic import CoilConfig, write_severstal
from steelsight.engine import Inspector
from steelsight.engine.cascade import tiles_of
from steelsight.errors import InputError, LabelError
from steelsight.evaluation.answers import (
    delivered_decision,
    predict_bundle,
    predict_tool,
    read_foreign,
)
from steelsight.evaluation.predictions import BINS, Predictions
from steelsight.evaluation.selection import Learned, select
from steelsight.evaluation.thresholds import Kaggle, choose, nested_verdicts, outcome
from steelsight.evaluation.tool_files import FoundMask, ToolAnswer, ToolFile
from steelsight.evaluation.verdicts import apply_decision
from steelsight.masks import decode_rle, encode_rle

SIZE_WH = (320, 128)
TYPES = ("1", "2", "3", "4")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Small drawn frames, three of them with two types."""
    config = CoilConfig(30, 5, 0.7, SIZE_WH, class_weights=(0.3, 0.2, 0.3, 0.2))
    return write_severstal(config, tmp_path_factory.mktemp("mistakes") / "drawn")


@pytest.fixture(scope="module")
def catalog(drawn) -> Catalog:
    return scan(load(drawn))


@pytest.fixture(scope="module")
def frames(catalog) -> list[LabelledFrame]:
    return [labelled_frame(record) for record in catalog.records]


def mask_rows(drawn: Path) -> list[dict[str, str]]:
    with (drawn / "train.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["EncodedPixels"]]


@pytest.fixture(scope="module")
def with_two(frames) -> LabelledFrame:
    """A frame with two types."""
    return next(frame for frame in frames if len(frame.class_ids) == 2)


def test_frames_of_the_test_set_in_training(drawn, catalog, frames):
    """The mistake: rows are parted, and a frame with two types has two rows."""
    rows = mask_rows(drawn)
    shared = 0
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(rows))
        train = {rows[n]["ImageId"] for n in order[len(rows) // 3 :]}
        test = {rows[n]["ImageId"] for n in order[: len(rows) // 3]}
        shared += len(train & test)
    assert shared, "the mistake: some of the test frames were learned from"

    split = make_split(
        catalog, [], parts={"train": 0.7, "test": 0.3}, seed=0, source="drawn", group_source="none"
    )
    parts = [set(split.images_of(part)) for part in ("train", "test")]
    assert not parts[0] & parts[1]
    assert len(parts[0]) + len(parts[1]) == len(frames)
    # Whoever evaluates on frames that were learned from is told, in the report and on the terminal.
    learned = Learned("that split", split=split, images=frozenset(parts[0]))
    assert {frame.image for frame in select(catalog, [], learned).frames} == parts[1]
    everything = select(catalog, [], learned, part="all")
    assert set(everything.learned_from) == parts[0]
    assert "these figures are too good" in everything.warnings[0]


def test_rows_that_stand_twice(drawn, tmp_path):
    """The mistake: a table is joined to itself, and frames weigh double, in two parts at once."""
    lines = (drawn / "train.csv").read_text().splitlines()
    path = tmp_path / "train.csv"
    path.write_text("\n".join([*lines, lines[1]]) + "\n")
    with pytest.raises(LabelError, match="already has this image and type"):
        read_csv(path)


def test_copies_of_a_frame_stay_together(drawn, tmp_path):
    """The mistake: the same steel under two names, once flipped, on both sides of a split."""
    folder = tmp_path / "copies"
    (folder / "images").mkdir(parents=True)
    images = sorted((drawn / "images").iterdir())[:8]
    for path in images:
        (folder / "images" / path.name).write_bytes(path.read_bytes())
    copy = cv2.imread(str(images[0]), cv2.IMREAD_GRAYSCALE)[:, ::-1]
    cv2.imwrite(str(folder / "images" / "again.png"), copy)
    (folder / "train.csv").write_text("ImageId,ClassId,EncodedPixels\n")
    listed = "".join(f"{path.name},clean\n" for path in (folder / "images").iterdir())
    (folder / "images.csv").write_text("ImageId,status\n" + listed)
    catalog = scan(load(folder))
    groups = find_duplicates(catalog).groups
    assert groups == (("again.png", images[0].name),)
    for seed in range(5):
        split = make_split(
            catalog, groups, parts={"train": 0.5, "test": 0.5}, seed=seed, source="copies",
            group_source="near-duplicates",
        )  # fmt: skip
        assert split.assignment["again.png"] == split.assignment[images[0].name]
    # For the intervals they count as one group: two copies are not twice the evidence.
    numbers = select(catalog, groups, Learned("nothing")).groups
    assert numbers["again.png"] == numbers[images[0].name]


def few_frames(seed: int, n: int = 60) -> Predictions:
    """A network whose scores say little and whose masks are best at another logit on each frame."""
    rng = np.random.default_rng(seed)
    present = np.arange(n)[:, None] < n // 3
    inside, outside = np.zeros((2, n, 1, BINS), np.int64)
    outside[..., 0] = 50_000
    for frame, first in enumerate(rng.integers(10, 40, n).tolist()):
        inside[frame, 0, first : first + 9] = 100 * present[frame]
        outside[frame, 0, first - 6 : first + 3] = 20
    return predictions_of(
        present,
        masked_nk=present,
        faulty_logits=rng.normal(size=n) + 2 * present[:, 0],
        head_probabilities_nk=np.clip(rng.normal(0.4, 0.15, (n, 1)) + 0.25 * present, 0, 1),
        peaks_nk=rng.random((n, 1)),
        inside_nkb=inside,
        outside_nkb=outside,
    )


def test_thresholds_picked_on_the_test_set():
    """The mistake: the best of many thresholds on the very frames that are reported."""
    optimism = []
    for seed in range(6):
        found = few_frames(seed)
        decision = choose(found, Kaggle()).decision()
        picked = outcome(found, apply_decision(found, decision))["kaggle_dice"]
        nested = nested_verdicts(found, lambda p: choose(p, Kaggle()).decision(), seed=seed)
        optimism.append(picked - outcome(found, nested)["kaggle_dice"])
    assert np.mean(optimism) > 0.01, "the mistake: it is measured too good"
    assert min(optimism) > 0


def test_thresholds_that_were_chosen_on_these_frames_are_told(catalog):
    split = make_split(
        catalog, [], parts={"train": 0.7, "val": 0.3}, seed=0, source="drawn", group_source="none"
    )
    learned = Learned(
        "x", split=split, images=frozenset(split.images_of("train")),
        chosen_on=f"9 frames: frames held out of training; split {split.id}",
    )  # fmt: skip
    assert "chosen on these very frames" in select(catalog, [], learned).warnings[0]


def test_the_second_type_of_a_frame_is_dropped(drawn, frames, with_two):
    """The mistake: one row per frame is kept, as ``drop_duplicates("ImageId")`` does."""
    kept = {}
    for row in mask_rows(drawn):
        kept.setdefault(row["ImageId"], row["ClassId"])
    assert len(kept) < len(mask_rows(drawn)), "the mistake: labels are gone"

    assert len(with_two.rle_by_class) == 2
    bits = types_image(with_two, TYPES)
    for k, class_id in enumerate(TYPES):
        rle = with_two.rle_by_class.get(class_id, "")
        assert np.array_equal(bits >> k & 1, decode_rle(rle, SIZE_WH))
    # A tool that knows the first type only has missed the other one, on this very frame.
    first, second = with_two.class_ids
    mask = FoundMask(first, with_two.rle_by_class[first])
    tool = ToolFile("x", TYPES, {with_two.image: ToolAnswer((mask,))}, scored=False, graded=False)
    found = predict_tool(tool, [with_two])
    verdicts = apply_decision(found, delivered_decision(TYPES))
    k = TYPES.index(second)
    assert found.present_nk[0, k]
    assert found.masked_nk[0, k]
    assert not verdicts.called_nk[0, k]
    assert verdicts.called_nk[0, TYPES.index(first)]


def naive_decode(rle: str, size_wh: tuple[int, int], *, start_at: int = 1, order: str = "F"):
    """As in many notebooks: right with ``start_at=1, order="F"`` only."""
    width, height = size_wh
    flat = np.zeros(width * height, bool)
    numbers = list(map(int, rle.split()))
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        flat[start - start_at : start - start_at + length] = True
    return flat.reshape((height, width), order=order)


def test_masks_shifted_by_a_pixel(frames, tmp_path):
    """The mistake: pixels counted from 0 where Kaggle counts from 1."""
    frame = next(frame for frame in frames if not frame.clean)
    class_id, rle = next(iter(frame.rle_by_class.items()))
    right = naive_decode(rle, SIZE_WH)
    shifted = naive_decode(rle, SIZE_WH, start_at=0)
    assert not np.array_equal(right, shifted), "the mistake"
    assert np.array_equal(decode_rle(rle, SIZE_WH), right)
    assert np.array_equal(types_image(frame, TYPES) >> TYPES.index(class_id) & 1, right)
    assert np.array_equal(naive_decode(encode_rle(right), SIZE_WH), right), "written alike"
    path = tmp_path / "zero.csv"
    path.write_text(f"ImageId,ClassId,EncodedPixels\n{frame.image},{class_id},0 5\n")
    with pytest.raises(LabelError, match="pixels are counted from 1, so add 1 to 0-based starts"):
        read_foreign(path, frames, TYPES)


def test_masks_that_lie_across(frames, tmp_path):
    """The mistake: row by row where Kaggle goes down the columns; nothing raises, all is wrong."""
    frame = next(frame for frame in frames if not frame.clean)
    class_id, rle = next(iter(frame.rle_by_class.items()))
    assert not np.array_equal(naive_decode(rle, SIZE_WH, order="C"), decode_rle(rle, SIZE_WH))
    # A tool that writes so scores next to nothing, where the same masks written right are perfect.
    dice = {}
    for name, mask in (
        ("across", naive_decode(rle, SIZE_WH).T.copy()),  # rows become columns
        ("right", naive_decode(rle, SIZE_WH)),
    ):
        path = tmp_path / f"{name}.csv"
        path.write_text(
            f"ImageId,ClassId,EncodedPixels\n{frame.image},{class_id},{encode_rle(mask)}\n"
        )
        found = read_foreign(path, frames, TYPES)
        k = TYPES.index(class_id)
        true = found.inside_nkb[0, k, -1]
        both = true + found.outside_nkb[0, k, -1] + found.inside_nkb[0, k].sum()
        dice[name] = 2 * true / both
    assert dice["right"] == 1
    assert dice["across"] < 0.5


def test_labels_for_another_size_are_refused(catalog):
    """The mistake: width and height swapped; the run lengths fit, because the area is the same."""
    record = next(r for r in catalog.records if r.labels.rle_by_class)
    swapped = replace(record, labels=replace(record.labels, size_wh=SIZE_WH[::-1]))
    with pytest.raises(
        LabelError, match="the labels are for 128 x 320 px, the image has 320 x 128"
    ):
        labelled_frame(swapped)


SQUARE_PX = 40


@pytest.fixture
def square() -> tuple[np.ndarray, np.ndarray]:
    """A real frame's size with one square defect."""
    grey_hw = np.random.default_rng(0).integers(60, 120, (256, 1600), dtype=np.uint8)
    mask_hw = np.zeros((256, 1600), bool)
    mask_hw[100 : 100 + SQUARE_PX, 700 : 700 + SQUARE_PX] = True
    grey_hw[mask_hw] = 230
    return grey_hw, mask_hw


def test_frames_squashed_to_a_square(square, tmp_path):
    """The mistake: 256 x 1600 resized to 256 x 256; defects become slivers, thin ones are gone."""
    grey_hw, mask_hw = square
    squashed = cv2.resize(mask_hw.astype(np.uint8), (256, 256), interpolation=cv2.INTER_NEAREST)
    rows, columns = np.nonzero(squashed)
    assert np.ptp(rows) + 1 == SQUARE_PX
    assert np.ptp(columns) + 1 < SQUARE_PX / 5, "the mistake"

    # What runs sees every pixel, unscaled: tiles are cut and padded.
    spec = Inspector.load(threads=1).bundle.manifest.input
    (tile,) = tiles_of(grey_hw, spec)
    assert np.array_equal(tile.frames[0, 0], grey_hw)
    odd = grey_hw[:250, :1590]
    (padded,) = tiles_of(odd, spec)
    assert np.array_equal(padded.frames[0, 0, :250, :1590], odd)


def test_crops_for_training_keep_the_aspect(square, tmp_path):
    pytest.importorskip("torch")
    from steelsight.training.config import Augment, Sampling
    from steelsight.training.crops import cut_crop
    from steelsight.training.sampling import CropKind, CropPlan

    grey_hw, mask_hw = square
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), grey_hw)
    frame = LabelledFrame("a.png", path, (1600, 256), {"x": encode_rle(mask_hw)}, ("x",))
    source = FrameSource([frame], ["x"], 1 << 24)
    sampling, augment = Sampling(crop_hw=(256, 512)), Augment(rotate_deg=0, black_out=0, edge=0)
    sides = []
    for seed in range(20):
        plan = CropPlan(CropKind.DEFECT, 0, 0, None, seed)
        types_hw = cut_crop(plan, source, sampling, augment).types_hw
        rows, columns = np.nonzero(types_hw)
        if rows.min() and columns.min() and rows.max() < 255 and columns.max() < 511:  # whole
            sides.append((np.ptp(rows) + 1, np.ptp(columns) + 1))
    zooms = np.array(sides) / SQUARE_PX
    assert len(zooms) > 10
    assert zooms[:, 0] == pytest.approx(zooms[:, 1], abs=0.08), "wider and higher alike"
    assert np.ptp(zooms[:, 0]) > 0.1, "the zoom is on"


def test_frames_cut_off_by_the_batch_size(frames):
    """The mistake: ``steps = n // batch`` on the test set; the last frames are never looked at."""
    batch, some = 8, frames[:11]
    looked_at = [frame for step in range(len(some) // batch)
                 for frame in some[step * batch : (step + 1) * batch]]  # fmt: skip
    assert len(looked_at) < len(some), "the mistake"
    inspector = Inspector.load(threads=1)
    found = predict_bundle(inspector, some)
    assert found is not None
    assert found.images == tuple(frame.image for frame in some)
    # A tool that lost frames so is not taken to have found them clean.
    lost = {frame.image for frame in some} - {frame.image for frame in looked_at}
    answers = {frame.image: ToolAnswer() for frame in looked_at}
    tool = ToolFile("x", TYPES, answers, scored=False, graded=False)
    told = predict_tool(tool, some)
    assert {frame.image for frame in told.unanswered} == lost
    assert len(told) + len(told.unanswered) == len(some)


def test_a_tool_without_any_of_our_frames_is_refused(frames, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("ImageId,ClassId,EncodedPixels\nother.jpg,1,1 5\n")
    with pytest.raises(InputError, match="expected frames of this data set such as"):
        read_foreign(path, frames, TYPES)
