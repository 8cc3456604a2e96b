"""From every format to every other: the masks stay, and what does not is told."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelsight.data.convert import convert
from steelsight.data.formats.registry import FORMATS, format_named, load, recognise
from steelsight.data.formats.severstal import SEVERSTAL
from steelsight.data.labels import (
    FrameLabels,
    LabelClass,
    LabelFormat,
    LabelSet,
    Placement,
    ReadOptions,
)
from steelsight.errors import InputError, LabelError
from steelsight.masks import decode_rle, encode_rle

WRITABLE = [f for f in FORMATS.values() if f.write]
ONE_TYPE_A_PIXEL = {"mask-index", "mask-palette"}
"""Hold everything but two types on one pixel."""
ONE_TYPE_A_FRAME = {"mvtec"}
LOSSLESS = [f for f in WRITABLE if f.name not in ONE_TYPE_A_PIXEL | ONE_TYPE_A_FRAME]

CLASSES = (LabelClass("1", "1"), LabelClass("2", "2"), LabelClass("3", "3"))


def drawn(seed: int, size_wh: tuple[int, int], density: float) -> str:
    """A mask with holes, thin lines and specks; empty where the density is 0."""
    rng = np.random.default_rng(seed)
    width, height = size_wh
    noise = rng.random((height, width)) < density
    mask = cv2.dilate(noise.astype(np.uint8), np.ones((3, 2), np.uint8)).astype(bool)
    mask ^= rng.random((height, width)) < density / 4
    return encode_rle(mask)


def label_set(folder: Path, frames: list[FrameLabels], *, images: bool = False) -> LabelSet:
    paths = {}
    if images:
        for frame in frames:
            path = folder / frame.image
            path.parent.mkdir(parents=True, exist_ok=True)
            assert frame.size_wh
            cv2.imwrite(str(path), np.zeros(frame.size_wh[::-1], np.uint8))
            paths[frame.image] = path
    named = {frame.image: frame for frame in frames}
    return LabelSet("test", folder, CLASSES, named, paths)


@st.composite
def frame_lists(draw: st.DrawFn) -> list[FrameLabels]:
    frames = []
    for number in range(draw(st.integers(1, 3))):
        size_wh = draw(st.integers(1, 40)), draw(st.integers(1, 40))
        rles = {}
        for class_id in ("1", "2", "3"):
            density = draw(st.sampled_from([0, 0.02, 0.3, 1]))
            rle = drawn(draw(st.integers(0, 1 << 30)), size_wh, density)
            if rle:
                rles[class_id] = rle
        frames.append(FrameLabels(f"f{number}.png", rles, size_wh))
    return frames


def check_identity(label_format: LabelFormat, frames: list[FrameLabels], folder: Path) -> None:
    source = folder / "source"
    source.mkdir()
    before = label_set(source, frames, images=True)
    done = convert(before, label_format, folder / "out", Placement.LINK)
    assert done.losses == ()
    after = load(folder / "out")
    assert dict(after.frames).keys() == dict(before.frames).keys()
    for image, frame in before.frames.items():
        assert after.frames[image].rle_by_class == frame.rle_by_class
        assert after.frames[image].clean is frame.clean


@pytest.mark.parametrize("label_format", LOSSLESS, ids=lambda f: f.name)
@settings(max_examples=12, deadline=None)
@given(frames=frame_lists())
def test_lossless_formats_are_the_identity(label_format, frames, tmp_path_factory):
    check_identity(label_format, frames, tmp_path_factory.mktemp("identity"))


@pytest.mark.soak
@pytest.mark.parametrize("label_format", LOSSLESS, ids=lambda f: f.name)
@settings(max_examples=10_000 // len(LOSSLESS) + 1, deadline=None)
@given(frames=frame_lists())
def test_lossless_formats_are_the_identity_10_000_times(label_format, frames, tmp_path_factory):
    check_identity(label_format, frames, tmp_path_factory.mktemp("identity"))


@pytest.mark.parametrize("first", WRITABLE, ids=lambda f: f.name)
@pytest.mark.parametrize("second", WRITABLE, ids=lambda f: f.name)
def test_from_every_format_to_every_other(first, second, tmp_path):
    """One type per frame and pixel: what every format can hold."""
    size_wh = (30, 20)
    frames = [
        FrameLabels("a.png", {"1": drawn(1, size_wh, 0.1)}, size_wh),
        FrameLabels("b.png", {}, size_wh),
        FrameLabels("c.png", {"3": drawn(2, size_wh, 0.3)}, size_wh),
    ]
    (tmp_path / "source").mkdir()
    before = label_set(tmp_path / "source", frames, images=True)
    convert(before, first, tmp_path / "first", Placement.COPY)
    done = convert(load(tmp_path / "first"), second, tmp_path / "second", Placement.COPY)
    assert (done.losses, dict(done.left_out)) == ((), {})
    after = load(tmp_path / "second")
    masks = {Path(i).name: dict(f.rle_by_class) for i, f in after.frames.items()}
    assert masks == {f.image: dict(f.rle_by_class) for f in frames}
    assert len(after.image_paths) == 3


@pytest.mark.parametrize("label_format", WRITABLE, ids=lambda f: f.name)
def test_loss_is_measured(label_format, tmp_path):
    """Two types on the same pixels, one of them below the other."""
    size_wh = (20, 10)
    below = np.zeros(size_wh[::-1], bool)
    below[2:8, 2:12] = True
    above = np.zeros_like(below)
    above[4:6, 2:12] = True
    frame = FrameLabels("a.png", {"1": encode_rle(below), "3": encode_rle(above)}, size_wh)
    (tmp_path / "source").mkdir()
    before = label_set(tmp_path / "source", [frame], images=True)
    done = convert(before, label_format, tmp_path / "out", Placement.COPY)
    if label_format.name in ONE_TYPE_A_PIXEL:
        (loss,) = done.losses
        assert (loss.image, loss.class_id, loss.missing_px, loss.added_px) == ("a.png", "1", 20, 0)
        assert loss.iou == pytest.approx(40 / 60)
        assert "a.png, type 1: IoU 0.6667 (20 px lost, 0 px added)" in loss.sentence
    elif label_format.name in ONE_TYPE_A_FRAME:
        lost = {loss.class_id: loss.iou for loss in done.losses}
        assert lost == {"1": 0, "3": 0, "combined": 0}
    else:
        assert done.losses == ()


@pytest.mark.parametrize("label_format", WRITABLE, ids=lambda f: f.name)
def test_what_would_read_as_clean_is_left_out(label_format, tmp_path):
    size_wh = (8, 6)
    frames = [
        FrameLabels("a.png", {"1": "1 2"}, size_wh),
        FrameLabels("b.png", {}, size_wh, types_without_mask=("3",)),
        FrameLabels("c.png", {}, size_wh, disputed=True),
        FrameLabels("d.png", {"1": "1 2"}, size_wh, types_without_mask=("3",)),
    ]
    (tmp_path / "source").mkdir()
    before = label_set(tmp_path / "source", frames, images=True)
    before = dataclasses.replace(
        before, refused=frozenset({"e.png"}), image_paths={**before.image_paths, "f.png": tmp_path}
    )
    done = convert(before, label_format, tmp_path / "out", Placement.COPY)
    assert dict(done.left_out) == {
        "a type without a mask": ("b.png", "d.png"),
        "disputed": ("c.png",),
        "a broken label": ("e.png",),
        "no label": ("f.png",),
    }
    assert [Path(image).name for image in load(tmp_path / "out").frames] == ["a.png"]


def test_an_interrupted_conversion_leaves_nothing(tmp_path):
    def write(label_set: LabelSet, folder: Path, placement: Placement) -> dict[str, str]:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    broken = dataclasses.replace(SEVERSTAL, write=write)
    frames = [FrameLabels("a.png", {"1": "1 2"}, (4, 4))]
    with pytest.raises(KeyboardInterrupt):
        convert(label_set(tmp_path, frames), broken, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_loses_is_found_out(tmp_path):
    """The proof is the reader's, not the writer's word."""

    def write(label_set: LabelSet, folder: Path, placement: Placement) -> dict[str, str]:
        frames = {
            "a.png": dataclasses.replace(label_set.frames["a.png"], rle_by_class={"1": "1 1"}),
        }
        assert SEVERSTAL.write
        return dict(
            SEVERSTAL.write(dataclasses.replace(label_set, frames=frames), folder, placement)
        )

    frames = [
        FrameLabels("a.png", {"1": "1 2"}, (4, 4)),
        FrameLabels("b.png", {"2": "3 4"}, (4, 4)),
    ]
    done = convert(
        label_set(tmp_path, frames), dataclasses.replace(SEVERSTAL, write=write), tmp_path / "out"
    )
    lost = [(x.image, x.class_id, x.iou, x.missing_px) for x in done.losses]
    assert lost == [("b.png", "2", 0.0, 4), ("a.png", "1", 0.5, 1)]


def test_refusals(tmp_path):
    frames = [FrameLabels("a.png", {"1": "1 2"}, (4, 4))]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        convert(label_set(tmp_path, frames), SEVERSTAL, tmp_path / "full")
    with pytest.raises(InputError, match="a name of its own"):
        convert(label_set(tmp_path, frames), SEVERSTAL, Path())
    with pytest.raises(InputError, match="no frame with masks"):
        convert(label_set(tmp_path, []), SEVERSTAL, tmp_path / "out")
    with pytest.raises(InputError, match="holds no labels"):
        convert(label_set(tmp_path, frames), FORMATS["images"], tmp_path / "out")
    for name in ("coca", "images"):
        with pytest.raises(InputError, match=f"expected a format out of .*cvat, got '{name}'"):
            format_named(name)
    with pytest.raises(InputError, match="cvat, images, got 'coca'"):
        format_named("coca", to_read=True)
    assert format_named("images", to_read=True).write is None


def test_recognition(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        recognise(tmp_path / "missing")
    with pytest.raises(InputError, match="no label format recognised"):
        recognise(tmp_path)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 5), np.uint8))
    assert recognise(tmp_path).name == "images"
    assert load(tmp_path).frames == {}
    clean = load(tmp_path, options=ReadOptions(unlisted_are_clean=True))
    assert clean.frames["a.png"].clean
    assert clean.frames["a.png"].size_wh == (5, 4)
    (tmp_path / "annotations.json").write_text(
        '{"images": [], "annotations": [], "categories": []}'
    )
    (tmp_path / "train.csv").write_text("ImageId,ClassId,EncodedPixels\na.png,1,1 2\n")
    with pytest.raises(InputError, match=r"several formats fit: severstal \(.*coco .*--format"):
        recognise(tmp_path)
    assert load(tmp_path, label_format="severstal").frames["a.png"].rle_by_class == {"1": "1 2"}


@pytest.mark.parametrize("label_format", WRITABLE, ids=lambda f: f.name)
def test_each_format_recognises_its_own_only(label_format, tmp_path):
    frames = [
        FrameLabels("a.png", {"1": "1 2"}, (4, 4)),
        FrameLabels("b.png", {}, (4, 4)),
    ]
    (tmp_path / "source").mkdir()
    convert(
        label_set(tmp_path / "source", frames, images=True),
        label_format,
        tmp_path / "out",
        Placement.COPY,
    )
    found = recognise(tmp_path / "out").name
    assert found == {"severstal-submission": "severstal", "coco-polygons": "coco"}.get(
        label_format.name, label_format.name
    )


@pytest.mark.parametrize("label_format", LOSSLESS, ids=lambda f: f.name)
def test_real_labels_come_back_byte_for_byte(label_format, shared_dir, tmp_path):
    """All 5,610 rows of the real file; overlaps and holes included."""
    original = shared_dir / "data" / "severstal" / "train_partial.csv"
    alone = tmp_path / "labels.csv"  # without the few images that lie beside the real one
    alone.write_bytes(original.read_bytes())
    there, back = tmp_path / "there", tmp_path / "back"
    there.mkdir()
    back.mkdir()
    assert label_format.write
    assert SEVERSTAL.write
    labels = load(alone)
    assert label_format.write(labels, there, Placement.LEAVE) == {}
    sizes = dict.fromkeys(labels.frames, (1600, 256))
    SEVERSTAL.write(load(there, options=ReadOptions(sizes_wh=sizes)), back, Placement.LEAVE)
    assert (back / "train.csv").read_bytes() == original.read_bytes()


def test_a_label_error_is_not_lost_on_the_way(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("ImageId,ClassId,EncodedPixels\na.png,1,1 2\nb.png,1,NaN\nc.png,1,0 2\n")
    with pytest.raises(LabelError, match="row 3"):
        load(path)
    errors: list[LabelError] = []
    done = convert(load(path, errors=errors), SEVERSTAL, tmp_path / "out")
    assert [str(e).partition(" row ")[2][0] for e in errors] == ["3", "4"]
    assert dict(done.left_out) == {"a broken label": ("b.png", "c.png")}
    rle = load(tmp_path / "out").frames["a.png"].rle_by_class["1"]
    assert decode_rle(rle, (1600, 256)).sum() == 2
