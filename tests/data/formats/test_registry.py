"""What holds for every format: links and pipes are refused, a lost label leaves no clean frame."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from steelsight.data.convert import convert
from steelsight.data.formats.registry import FORMATS, load
from steelsight.data.labels import (
    FrameLabels,
    LabelClass,
    LabelSet,
    Placement,
    ReadOptions,
)
from steelsight.errors import InputError, LabelError

SIZE_WH = (8, 6)
READABLE = [name for name, f in FORMATS.items() if f.write]


def written(folder: Path, name: str) -> Path:
    """A faulty frame, one with two types, and a clean one."""
    source = folder / "source"
    source.mkdir()
    frames = [
        FrameLabels("faulty.png", {"pit": "1 4"}, SIZE_WH),
        FrameLabels("other.png", {"scratch": "9 2"}, SIZE_WH),
        FrameLabels("clean.png", {}, SIZE_WH),
    ]
    paths = {}
    for frame in frames:
        paths[frame.image] = source / frame.image
        cv2.imwrite(str(paths[frame.image]), np.zeros(SIZE_WH[::-1], np.uint8))
    classes = (LabelClass("pit", "pit"), LabelClass("scratch", "scratch"))
    label_set = LabelSet("test", source, classes, {f.image: f for f in frames}, paths)
    convert(label_set, FORMATS[name], folder / "out", Placement.COPY)
    return folder / "out"


@pytest.fixture(params=READABLE)
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return written(tmp_path, request.param)


def label_files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and "images" not in p.parts]


def test_links_out_of_the_folder_are_refused(data: Path, tmp_path: Path) -> None:
    for path in label_files(data):
        moved = tmp_path / "elsewhere"
        path.rename(moved)
        path.symlink_to(moved)
        for errors in (None, []):
            with pytest.raises(LabelError, match=re.escape(f"{path}: a link to")):
                load(data, errors=errors)
        path.unlink()
        moved.rename(path)
    assert load(data).frames


def test_a_linked_folder_of_images_is_refused_but_can_be_named(tmp_path: Path) -> None:
    data = written(tmp_path, "coco")
    (data / "images").rename(tmp_path / "images")
    (data / "images").symlink_to(tmp_path / "images")
    with pytest.raises(LabelError, match="give the folder of the images with --images"):
        load(data)
    (data / "images").unlink()
    assert len(load(data, options=ReadOptions(images=tmp_path / "images")).image_paths) == 3


def test_links_that_lead_to_each_other(data: Path) -> None:
    loop = next(p for p in data.rglob("*.png"))
    loop.unlink()
    loop.symlink_to(loop.name)
    told = ""
    try:  # where masks tell the size, the image is the audit's business
        load(data)
    except InputError as error:
        told = str(error)
    assert "\n" not in told


@pytest.mark.timeout(20)
def test_pipes_are_refused(data: Path) -> None:
    for path in [*label_files(data), next(data.rglob("*.png"))]:
        content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(LabelError, match="a pipe, socket or device"):
            load(data)
        path.unlink()
        path.write_bytes(content)


@pytest.mark.timeout(20)
def test_a_pipe_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.csv")
    with pytest.raises(InputError, match="is a pipe"):
        load(tmp_path / "train.csv")


# ------------------------------------------------------- labels of which nobody knows the frame


def in_json(name: str, change: Callable[[dict], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return damage


def in_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "images.csv").unlink(missing_ok=True)
        path = folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


def set_image_id(value: object) -> Callable[[dict], None]:
    return lambda document: document["annotations"][0].update(image_id=value)


def set_file_name(value: object) -> Callable[[dict], None]:
    return lambda document: document["images"][0].update(file_name=value)


ORPHANS = [
    ("coco", in_json("annotations.json", set_image_id(99))),
    ("coco", in_json("annotations.json", set_image_id("1"))),
    ("coco", in_json("annotations.json", set_image_id([1]))),
    ("coco", in_json("annotations.json", lambda d: d["annotations"][0].pop("image_id"))),
    ("coco", in_json("annotations.json", lambda d: d["images"][0].update(id=99))),
    ("coco", in_json("annotations.json", set_file_name("./faulty.png"))),
    ("coco", in_json("annotations.json", set_file_name(None))),
    ("severstal", in_text("train.csv", "faulty.png", "./faulty.png")),
    ("severstal", in_text("train.csv", "faulty.png", "images\\faulty.png")),
    ("severstal", in_text("train.csv", "faulty.png,", "faulty.png\n")),
    ("severstal-submission", in_text("submission.csv", "faulty.png_pit", "../faulty.png_pit")),
    ("cvat", in_text("annotations.xml", 'name="faulty.png"', 'name="./faulty.png"')),
    ("label-studio", in_text("label_studio.json", "images/faulty.png", "images/../faulty.png")),
]


@pytest.mark.parametrize(("name", "damage"), ORPHANS)
@pytest.mark.parametrize("unlisted_are_clean", [False, True])
def test_a_lost_label_leaves_no_clean_frame(
    name: str, damage: Callable[[Path], None], unlisted_are_clean: bool, tmp_path: Path
) -> None:
    data = written(tmp_path, name)
    damage(data)
    options = ReadOptions(unlisted_are_clean=unlisted_are_clean)
    with pytest.raises(LabelError):
        load(data, options=options)
    errors: list[LabelError] = []
    label_set = load(data, options=options, errors=errors)
    assert errors
    assert [image for image, frame in label_set.frames.items() if frame.clean] == []
    assert any("tell no frame" in note for note in label_set.notes)


def test_a_broken_label_of_a_known_frame_costs_only_that_frame(tmp_path: Path) -> None:
    data = written(tmp_path, "severstal")
    in_text("train.csv", "faulty.png,pit,1 4", "faulty.png,pit,0 4")(data)
    errors: list[LabelError] = []
    label_set = load(data, options=ReadOptions(unlisted_are_clean=True), errors=errors)
    assert list(label_set.frames) == ["other.png", "clean.png"]
    assert label_set.refused == {"faulty.png"}
    assert label_set.frames["clean.png"].clean


def test_a_row_that_is_cut_also_costs_the_row_before(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("ImageId,ClassId,EncodedPixels\na.png,1,1 2 5 2\nb.png,1,1 2\n 5 2\n")
    errors: list[LabelError] = []
    label_set = load(path, errors=errors)
    assert list(label_set.frames) == ["a.png"]
    assert label_set.refused == {"b.png"}


def test_a_mask_of_one_type_that_is_gone_costs_the_frame(tmp_path: Path) -> None:
    data = written(tmp_path, "mask-binary")
    mask = data / "masks" / "pit" / "faulty.png"
    mask.write_bytes(mask.read_bytes()[:20])
    errors: list[LabelError] = []
    label_set = load(data, errors=errors)
    assert "faulty.png" in label_set.refused
    assert "faulty.png" not in label_set.frames


@pytest.mark.parametrize("name", ["mask-index", "mask-palette", "mask-binary"])
@pytest.mark.parametrize("size", [0, 8, 20, 25, 26])
def test_the_first_mask_is_cut_short(name: str, size: int, tmp_path: Path) -> None:
    data = written(tmp_path, name)
    for mask in (data / "masks").rglob("*.png"):
        mask.write_bytes(mask.read_bytes()[:size])
    with pytest.raises(InputError) as caught:
        load(data)
    assert "\n" not in str(caught.value)


def test_class_names_of_any_length_are_one_short_line(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(f"ImageId,ClassId,EncodedPixels\na.png,{'9' * 5000},1 2\n")
    with pytest.raises(LabelError) as caught:
        load(path)
    assert len(str(caught.value)) < 1000


def test_yolo_rows_end_with_any_line_end(tmp_path: Path) -> None:
    data = written(tmp_path, "yolo")
    masks = load(data).frames
    text = data / "labels" / "faulty.txt"
    rows = text.read_text() + (data / "labels" / "other.txt").read_text()
    text.write_bytes(rows.replace("\n", "\r").encode())
    found = load(data).frames["faulty.png"].rle_by_class
    both = masks["faulty.png"].rle_by_class, masks["other.png"].rle_by_class
    assert found == {**both[0], **both[1]}
