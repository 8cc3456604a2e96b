"""Labels that nobody recognises must never make faulty steel clean."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from steelsight.data.formats.images import label_like
from steelsight.data.formats.registry import load, recognise
from steelsight.data.labels import ReadOptions
from steelsight.errors import InputError

CLEAN = ReadOptions(unlisted_are_clean=True)
JSON_MIN = [{"image": "/data/upload/a.png", "id": 1, "tag": [{"format": "rle", "rle": [0, 1]}]}]


def picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((4, 5), value, np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "images" / "b.png")
    return tmp_path


def text(name: str, content: str = "something\n") -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)

    return put


def pictures(*names: str) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        for name in names:
            picture(folder / name, 255)

    return put


UNKNOWN = [
    (text("export.json", json.dumps(JSON_MIN)), "export.json is"),
    (text("train.xml", "<annotation><object/></annotation>"), "train.xml is"),
    (text("Annotations/a.xml", "<annotation/>"), "Annotations/a.xml is"),
    (text("boxes.csv", "image,x,y,w,h\na.png,1,1,2,2\n"), "boxes.csv is"),
    (text("images.csv", "image,x,y,w,h\na.png,1,1,2,2\n"), "images.csv is"),
    (text("labels.tsv"), "labels.tsv is"),
    (text("labels.YAML"), "labels.YAML is"),
    (text("labels.yml"), "labels.yml is"),
    (text("images/a.json", '{"shapes": []}'), "images/a.json is"),
    (text("images/a.txt", "0 0.5 0.5 0.1 0.1\n"), "images/a.txt is"),
    (text("readmelabels.txt"), "readmelabels.txt is"),
    (text("synthetic_labels.txt"), "synthetic_labels.txt is"),
    (text("labels.npz"), "labels.npz is"),
    (text("labels.mat"), "labels.mat is"),
    (pictures("train/masks/a.png"), "train/masks/ is"),
    (pictures("train/Ground-Truth/scratch/a.png"), "train/Ground-Truth/ is"),
    (pictures("data/annotations/a.png"), "data/annotations/ is"),
    (pictures("train/labels/a.png"), "train/labels/ is"),
    (pictures("train_masks/a.png"), "train_masks/ is"),
    (pictures("training/semantic/a.png"), "training/semantic/ is"),  # KITTI
    (pictures("ground_truth/a.png"), "ground_truth/ is"),
    (pictures("SegmentationObject/a.png"), "SegmentationObject/ is"),
    (pictures("gt/a.bmp", "label/a.bmp"), "gt/, label/ are"),
    (pictures("images/a_GT.png"), "images/a_GT.png is"),  # KolektorSDD2
    (pictures("images/b_mask.bmp"), "images/b_mask.bmp is"),
    (pictures(*(f"images/{i}{end}.png" for i in range(4) for end in ("", "-label"))), "and 1 more"),
]


@pytest.mark.parametrize(("put", "said"), UNKNOWN)
def test_labels_in_no_known_format_are_refused(
    put: Callable[[Path], None], said: str, folder: Path
) -> None:
    put(folder)
    with pytest.raises(InputError) as caught:
        load(folder, options=CLEAN)
    message = str(caught.value)
    assert message.startswith(f"{folder}: ")
    assert f"{said} in no known format" in message or f"{said} are in no known" in message
    assert "name the format with --format, or --format images to ignore" in message
    assert "\n" not in message
    named = load(folder, label_format="images", options=CLEAN)
    assert named.frames["images/a.png"].clean
    (note,) = named.notes
    assert note.startswith("not read, because the format is images: ")
    assert said.partition(" ")[0] in note


@pytest.mark.parametrize(
    "name",
    [
        *("README.txt", "readme_en.txt", "README.roboflow.txt", "LICENSE.txt", "licence.txt"),
        *("SYNTHETIC.txt", "classes.txt", "split.json", "check/findings.json", "README.md"),
        *("explore/summary.json", "results/results.jsonl", "results/quarantine.csv"),
        *("report.html", ".hidden.json", ".git/config.txt", "__MACOSX/train.xml", "Thumbs.db"),
    ],
)
def test_what_is_no_label_file_is_no_obstacle(name: str, folder: Path) -> None:
    text(name)(folder)
    assert recognise(folder).name == "images"
    assert load(folder).notes == ()
    assert load(folder, options=CLEAN).frames["images/a.png"].clean


@pytest.mark.parametrize(
    "name", ["unlabelled/a.png", "defect_mask.png", "gtx/c.png", "images/a_gtx.png"]
)
def test_pictures_that_only_sound_like_masks_are_images(name: str, folder: Path) -> None:
    picture(folder / name)
    assert name in load(folder, options=CLEAN).frames


def test_a_folder_that_is_called_like_one_of_masks_may_itself_be_given(tmp_path: Path) -> None:
    picture(tmp_path / "labels" / "a.png")
    assert recognise(tmp_path / "labels").name == "images"


def test_tables_of_frames_are_read_or_asked_for(folder: Path) -> None:
    rows = "ImageId,status,classes\nimages/a.png,faulty,scratch\n"
    text("images.csv", rows)(folder)
    assert load(folder, options=CLEAN).frames["images/a.png"].class_ids == ("scratch",)
    (folder / "images.csv").rename(folder / "frames.csv")
    with pytest.raises(InputError, match=r"frames\.csv is in no .* table with --frame-list"):
        load(folder, options=CLEAN)
    told = load(folder, options=CLEAN, frame_list=folder / "frames.csv")
    assert told.frames["images/a.png"].class_ids == ("scratch",)
    assert told.frames["images/b.png"].clean
    named = load(folder, label_format="images", frame_list=folder / "frames.csv")
    assert named.notes == ()


def test_many_files_are_one_short_line(folder: Path) -> None:
    for number in range(2000):
        (folder / f"{number:04d}{'x' * 200}.xml").write_text("<annotation/>")
    assert len(label_like(folder)) == 2000
    with pytest.raises(InputError) as caught:
        load(folder)
    assert "and 1997 more are in no known format" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_datumaros_coco_folder_is_coco_alone(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "train" / "a.png")
    picture(tmp_path / "annotations" / "panoptic_train" / "a.png", 255)
    document = {
        "images": [{"id": 1, "file_name": "train/a.png", "width": 5, "height": 4}],
        "categories": [{"id": 1, "name": "scratch"}],
        "annotations": [],
    }
    (tmp_path / "annotations" / "instances_default.json").write_text(json.dumps(document))
    assert recognise(tmp_path).name == "coco"
    (tmp_path / "annotations" / "instances_default.json").unlink()
    assert recognise(tmp_path).name == "mask-binary"
