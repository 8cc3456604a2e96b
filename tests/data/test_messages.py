"""Messages stay short and printable, however many types a label file names."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from steelsight.data.formats.registry import load
from steelsight.data.labels import ReadOptions
from steelsight.errors import LabelError

NAMES = tuple(f"type number {i:04d} {'x' * 40}" for i in range(3000))


def coco(folder: Path, names: tuple[str, ...]) -> None:
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 4, "height": 3}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": -1, "bbox": [0, 0, 1, 1]}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }
    (folder / "coco.json").write_text(json.dumps(document))


def cvat(folder: Path, names: tuple[str, ...]) -> None:
    labels = "".join(f"<label><name>{name}</name></label>" for name in names)
    (folder / "annotations.xml").write_text(
        f"<annotations><meta><job><labels>{labels}</labels></job></meta>"
        '<image id="0" name="a.jpg" width="4" height="3">'
        '<polygon label="q" points="0,0;1,0;1,1"/></image></annotations>'
    )


def label_studio(folder: Path, names: tuple[str, ...]) -> None:
    result = {
        "type": "brushlabels",
        "from_name": "a",
        "to_name": "b",
        "original_width": 4,
        "original_height": 3,
        "value": {"format": "rle", "rle": [], "brushlabels": ["q"]},
    }
    task = {"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"id": 1, "result": [result]}]}
    (folder / "tasks.json").write_text(json.dumps([task]))


def severstal(folder: Path, names: tuple[str, ...]) -> None:
    (folder / "classes.txt").write_text("\n".join(names))
    (folder / "train.csv").write_text("ImageId,ClassId,EncodedPixels\na.jpg,q,1 1\n")


def mask_binary(folder: Path, names: tuple[str, ...]) -> None:
    (folder / "classes.txt").write_text("\n".join(names))
    (folder / "masks" / "q").mkdir(parents=True)
    cv2.imwrite(str(folder / "masks" / "q" / "a.png"), np.full((3, 4), 255, np.uint8))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("coco", coco),
        ("cvat", cvat),
        ("label-studio", label_studio),
        ("severstal", severstal),
        ("mask-binary", mask_binary),
    ],
)
def test_a_type_outside_many_others(
    tmp_path: Path, name: str, write: Callable[[Path, tuple[str, ...]], None]
) -> None:
    write(tmp_path, NAMES)
    # Label Studio's export does not name the types: they are told.
    options = ReadOptions(size_wh=(4, 3), class_names=NAMES if name == "label-studio" else ())
    with pytest.raises(LabelError) as caught:
        load(tmp_path, label_format=name, options=options)
    said = str(caught.value)
    assert "and 2990 more; " in said
    assert len(said) < 1200 + len(str(tmp_path))
    assert said.isprintable()


def test_a_key_twice_in_coco_is_one_line(tmp_path: Path) -> None:
    coco(tmp_path, ("dent",))
    text = (tmp_path / "coco.json").read_text()
    (tmp_path / "coco.json").write_text(text.replace("{", '{"annotations": [], ', 1))
    with pytest.raises(LabelError) as caught:
        load(tmp_path, label_format="coco", options=ReadOptions())
    assert str(caught.value) == (
        f"{tmp_path / 'coco.json'}: damaged JSON (key twice in an object: 'annotations'), expected"
        " a COCO file; export it again"
    )


@pytest.mark.parametrize("name", ["x" * 65, "é" * 10**6 + "a", "a\x1b[2Jb", "a\nb", "a\u202eb"])
def test_a_type_whose_name_is_no_short_line_is_refused(tmp_path: Path, name: str) -> None:
    options = ReadOptions(class_names=(name,))
    (tmp_path / "train.csv").write_text("ImageId,ClassId,EncodedPixels\na.jpg,q,1 1\n")
    with pytest.raises(LabelError, match="expected at most 64 characters") as caught:
        load(tmp_path, label_format="severstal", options=options)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
    assert str(caught.value).isprintable()
