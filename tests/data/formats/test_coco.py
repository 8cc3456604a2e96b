import contextlib
import json
import time
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO as ReferenceReader

from steelsight.data.formats.coco import COCO, COCO_POLYGONS, read, recognise
from steelsight.data.formats.severstal import CsvForm, read_csv, write_csv
from steelsight.data.labels import (
    FrameLabels,
    LabelClass,
    LabelFormat,
    LabelSet,
    Placement,
    ReadOptions,
    classes_of,
)
from steelsight.errors import InputError, LabelError
from steelsight.masks import encode_coco_rle, encode_rle

Mask = NDArray[np.bool_]
Json = dict[str, Any]

OPTIONS = ReadOptions()
BOTH = pytest.mark.parametrize("label_format", [COCO, COCO_POLYGONS], ids=lambda f: f.name)

LEFT = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
RIGHT = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], bool)
LEFT_POLYGON = [0, 0, 2, 0, 2, 2, 0, 2]
LEFT_RLE, RIGHT_RLE = encode_rle(LEFT), encode_rle(RIGHT)


def document(**changed: Any) -> Json:
    return {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 4, "height": 3}],
        "categories": [{"id": 4, "name": "scratch"}, {"id": 90, "name": "rolled in"}],
        "annotations": [
            {"id": 33, "image_id": 7, "category_id": 4, "segmentation": [LEFT_POLYGON]}
        ],
    } | changed


def annotation(**changed: Any) -> Json:
    return document()["annotations"][0] | changed  # type: ignore[no-any-return]


def image(**changed: Any) -> Json:
    return document()["images"][0] | changed  # type: ignore[no-any-return]


def saved(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def drawn(path: Path, size_wh: tuple[int, int] = (4, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.zeros(size_wh[::-1], np.uint8))
    return path


def label_set(masks: dict[str, dict[str, Mask]], class_names: tuple[str, ...]) -> LabelSet:
    classes = classes_of(class_names)
    frames = {}
    for name, by_class in masks.items():
        shape = next(iter(by_class.values())).shape if by_class else (3, 4)
        rles = {class_id: encode_rle(mask) for class_id, mask in by_class.items() if mask.any()}
        frames[name] = FrameLabels(name, rles, (shape[1], shape[0]))
    return LabelSet("test", Path("test"), classes, frames)


def rles_of(labels: LabelSet) -> dict[str, dict[str, str]]:
    return {name: dict(frame.rle_by_class) for name, frame in labels.frames.items()}


# Reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "segmentation",
    [
        [LEFT_POLYGON],
        [[0.0, 0, 2, 0, 2, 1, 0, 1], [0, 1, 2, 1, 2, 2, 0, 2.04]],
        {"size": [3, 4], "counts": [0, 2, 1, 2, 7]},
        encode_coco_rle(LEFT),
    ],
    ids=["polygon", "polygons", "counts", "text"],
)
def test_every_kind_of_segmentation_is_read(tmp_path: Path, segmentation: object) -> None:
    path = saved(tmp_path / "a.json", document(annotations=[annotation(segmentation=segmentation)]))
    found = read(path, OPTIONS)
    assert rles_of(found) == {"a.jpg": {"scratch": LEFT_RLE}}
    assert found.classes == (
        LabelClass("scratch", "scratch"),
        LabelClass("rolled_in", "rolled in"),
    )
    assert found.frames["a.jpg"].size_wh == (4, 3)
    assert found.notes == ()


def test_types_stand_in_the_order_of_their_ids(tmp_path: Path) -> None:
    categories = [{"id": 9, "name": "z"}, {"id": 0, "name": "m"}, {"id": 5, "name": "a"}]
    content = document(categories=categories, annotations=[annotation(category_id=0)])
    found = read(saved(tmp_path / "a.json", content), OPTIONS)
    assert found.class_ids == ("m", "a", "z")
    assert rles_of(found) == {"a.jpg": {"m": LEFT_RLE}}


def test_annotations_of_one_type_are_united(tmp_path: Path) -> None:
    annotations = [
        annotation(segmentation=encode_coco_rle(LEFT)),
        annotation(segmentation=encode_coco_rle(RIGHT), iscrowd=1),
        annotation(segmentation=[LEFT_POLYGON]),
        annotation(segmentation=[[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]]),
        annotation(category_id=90),
    ]
    found = read(saved(tmp_path / "a.json", document(annotations=annotations)), OPTIONS)
    expected = {"scratch": encode_rle(LEFT | RIGHT), "rolled_in": LEFT_RLE}
    assert rles_of(found) == {"a.jpg": expected}
    assert found.notes == (
        "1 annotations are marked iscrowd: taken as masks like the others",
        "1 annotations cover no pixel: left out beside others of the type",
    )


def test_listed_images_are_clean_and_others_unlabelled(tmp_path: Path) -> None:
    content = document(images=[image(id=2, file_name="z.png"), image(id=1, file_name="c.png")])
    path = saved(tmp_path / "a.json", content | {"annotations": []})
    for name in ("c", "z", "sub/new"):
        drawn(tmp_path / "images" / f"{name}.png")
    found = read(path, OPTIONS)
    assert list(found.frames) == ["z.png", "c.png"]
    assert all(frame.clean for frame in found.frames.values())
    assert list(found.image_paths) == ["c.png", "sub/new.png", "z.png"]
    found = read(path, ReadOptions(unlisted_are_clean=True))
    assert found.frames["sub/new.png"].clean
    assert found.frames["sub/new.png"].size_wh == (4, 3)


def test_further_text_of_an_image_becomes_attributes(tmp_path: Path) -> None:
    extra = {"coil": "C7", "date_captured": "2024", "line": 3, "split": "valid", "odd": "\x1b"}
    found = read(saved(tmp_path / "a.json", document(images=[image(**extra)])), OPTIONS)
    assert found.frames["a.jpg"].attributes == {"coil": "C7"}
    assert found.frames["a.jpg"].split == "val"


@pytest.mark.parametrize(
    ("label_files", "image_files", "expected"),
    [
        (["annotations.json"], ["images/a.png"], {"a.png": None}),
        (["annotations.json"], ["a.png"], {"a.png": None}),
        (["instances_val2017.json"], ["val2017/a.png"], {"val2017/a.png": "val"}),
        (["annotations/instances_train.json"], ["images/train/a.png"], {"train/a.png": "train"}),
        (["annotations/test.json"], ["images/a.png"], {"a.png": "test"}),
        (["annotations/any.json"], [], {"a.png": None}),
        (
            ["train/_annotations.coco.json", "valid/_annotations.coco.json"],
            ["train/a.png", "valid/a.png"],
            {"train/a.png": "train", "valid/a.png": "val"},
        ),
        (["test/_annotations.coco.json"], [], {"test/a.png": "test"}),
    ],
)
def test_layouts(
    tmp_path: Path,
    label_files: list[str],
    image_files: list[str],
    expected: dict[str, str | None],
) -> None:
    for name in label_files:
        saved(tmp_path / name, document(images=[image(file_name="a.png")]))
    paths = [drawn(tmp_path / name) for name in image_files]
    assert recognise(tmp_path)
    found = read(tmp_path, OPTIONS)
    assert {name: frame.split for name, frame in found.frames.items()} == expected
    assert sorted(found.image_paths.values()) == sorted(paths)
    assert set(found.image_paths) == (set(expected) if image_files else set())
    assert all(frame.rle_by_class == {"scratch": LEFT_RLE} for frame in found.frames.values())


def test_the_folder_of_the_images_may_stand_in_their_names(tmp_path: Path) -> None:
    content = document(images=[image(file_name="images/sub/a.png")])
    drawn(tmp_path / "images/sub/a.png")
    found = read(saved(tmp_path / "result.json", content), OPTIONS)
    assert list(found.frames) == ["sub/a.png"]


def test_images_may_lie_elsewhere(tmp_path: Path) -> None:
    path = drawn(tmp_path / "elsewhere/a.png")
    content = document(images=[image(file_name="a.png")])
    labels = saved(tmp_path / "labels/a.json", content)
    found = read(labels, ReadOptions(images=tmp_path / "elsewhere"))
    assert found.image_paths == {"a.png": path}


def test_captions_beside_instances_are_not_read(tmp_path: Path) -> None:
    saved(tmp_path / "annotations/instances_val2017.json", document())
    saved(tmp_path / "annotations/captions_val2017.json", document(annotations=[{"caption": "x"}]))
    assert list(read(tmp_path, OPTIONS).frames) == ["a.jpg"]


def test_files_may_number_their_categories_differently(tmp_path: Path) -> None:
    saved(tmp_path / "train.json", document())
    other = document(
        images=[image(file_name="b.jpg")],
        categories=[{"id": 4, "name": "rolled in"}, {"id": 5, "name": "new"}],
    )
    saved(tmp_path / "val.json", other)
    found = read(tmp_path, OPTIONS)
    assert found.class_ids == ("scratch", "rolled_in", "new")
    assert rles_of(found) == {"a.jpg": {"scratch": LEFT_RLE}, "b.jpg": {"rolled_in": LEFT_RLE}}
    assert [frame.split for frame in found.frames.values()] == ["train", "val"]


def test_an_image_in_two_files_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path / "train.json", document())
    saved(tmp_path / "val.json", document())
    with pytest.raises(LabelError) as caught:
        read(tmp_path, OPTIONS)
    said = str(caught.value)
    assert f"{tmp_path}/val.json images[0] (id 7), image 'a.jpg'" in said
    assert f"{tmp_path}/train.json images[0] already lists this image" in said
    errors: list[LabelError] = []
    found = read(tmp_path, OPTIONS, errors)
    assert [str(error) for error in errors] == [said]
    assert found.frames == {}
    assert found.refused == {"a.jpg"}


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


AN = "annotations[0] (id 33), image 'a.jpg'"
IM = "images[0] (id 7), image 'a.jpg'"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        # Segmentations.
        ({"segmentation": None, "bbox": [0, 0, 2, 2]}, [AN, "no segmentation", "a box says"]),
        ({"segmentation": []}, [AN, "type 'scratch'", "no segmentation"]),
        ({"segmentation": "x"}, [AN, "segmentation is 'x'"]),
        ({"segmentation": 5}, [AN, "segmentation is 5"]),
        ({"segmentation": LEFT_POLYGON}, [AN, "polygon 1 is 0, expected a list", "brackets"]),
        ({"segmentation": [[]]}, [AN, "polygon 1 has 0 numbers"]),
        ({"segmentation": [LEFT_POLYGON, [0, 0, 2, 2]]}, [AN, "polygon 2 has 4 numbers"]),
        ({"segmentation": [[0, 0, 2, 0, 2, 2, 0]]}, [AN, "polygon 1 has 7 numbers"]),
        (
            {"segmentation": [[[0, 0], [2, 0], [2, 2]]]},
            [AN, "number 1 of polygon 1 is a list of 2"],
        ),
        ({"segmentation": [[0, 0, 2, True, 2, 2]]}, [AN, "number 4 of polygon 1 is true"]),
        ({"segmentation": [[0, 0, 2, None, 2, 2]]}, [AN, "number 4", "missing"]),
        ({"segmentation": [[0, 0, 2, "0", 2, 2]]}, [AN, "number 4 of polygon 1 is '0'"]),
        ({"segmentation": [[0, 0, 10**400, 0, 2, 2]]}, [AN, "more than 300 digits"]),
        ({"segmentation": [[0, 0, 9, 0, 2, 2]]}, [AN, "point 2 of polygon 1 is (9, 0)", "0 to 4"]),
        ({"segmentation": [[0, 0, 1e300, 0, 2, 2]]}, [AN, "(1e+300, 0)"]),
        ({"segmentation": [[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]]}, [AN, "covers no pixel"]),
        ({"segmentation": {"size": [3, 4], "counts": [12]}}, [AN, "covers no pixel"]),
        (
            {"segmentation": {"size": [4, 3], "counts": [0, 12]}},
            [AN, "3 x 4", "expected the image"],
        ),
        ({"segmentation": {"size": [3, 4]}}, [AN, "counts"]),
        ({"segmentation": {"size": [3, 4], "counts": [1, 2]}}, [AN, "add up to 3 pixels"]),
        ({"segmentation": {"size": [3, 4], "counts": "~"}}, [AN, "character 1"]),
        ({"segmentation": {"size": [3.0, 4], "counts": [0, 12]}}, [AN, "size is"]),
        ({"segmentation": {"size": [1 << 20, 1 << 20], "counts": [1 << 40]}}, [AN, "size is"]),
        # Numbers.
        ({"image_id": 8}, ["annotations[0] (id 33)", "no image has the image_id 8"]),
        ({"image_id": True}, ["annotations[0] (id 33)", "image_id is true", "whole number"]),
        ({"image_id": 7.0}, ["annotations[0] (id 33)", "image_id is 7.0"]),
        ({"image_id": "7"}, ["annotations[0] (id 33)", "image_id is '7'"]),
        ({"image_id": None}, ["annotations[0] (id 33)", "image_id is missing"]),
        ({"image_id": 10**300}, ["annotations[0] (id 33)", "no image has the image_id 1000"]),
        ({"category_id": 1}, [AN, "category_id is 1, expected one of 4, 90"]),
        ({"category_id": False}, [AN, "category_id is false"]),
        ({"category_id": "4"}, [AN, "category_id is '4'"]),
    ],
)
def test_a_broken_annotation_is_named(tmp_path: Path, changed: Json, said: list[str]) -> None:
    good = {"id": 34, "image_id": 5, "category_id": 90, "segmentation": [LEFT_POLYGON]}
    content = document(
        images=[image(), image(id=5, file_name="good.jpg")],
        annotations=[annotation(**changed), good],
    )
    check_broken(saved(tmp_path / "a.json", content), said)
    errors: list[LabelError] = []
    found = read(tmp_path / "a.json", OPTIONS, errors)
    assert len(errors) == 1
    assert rles_of(found)["good.jpg"] == {"rolled_in": LEFT_RLE}
    if "image_id" not in changed:
        assert found.refused == {"a.jpg"}
        assert "a.jpg" not in found.frames


def check_broken(path: Path, said: list[str]) -> None:
    with pytest.raises(LabelError) as caught:
        read(path, OPTIONS)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 450 + 2 * len(str(path))
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([5], ["images[0]: is 5, expected an object"]),
        ([image(id=None)], ["images[0], image 'a.jpg': id is missing"]),
        ([image(id="7")], ["images[0] (id '7'), image 'a.jpg': id is '7'"]),
        ([image(id=True)], ["id is true"]),
        ([image(id=7.5)], ["id is 7.5"]),
        ([image(file_name=None)], ["images[0] (id 7): file_name is missing"]),
        ([image(file_name=3)], ["file_name is 3"]),
        ([image(file_name="../a.jpg")], ["'../a.jpg'", "path inside the image folder"]),
        ([image(file_name="/etc/passwd")], ["'/etc/passwd'"]),
        ([image(file_name="b\\a.jpg")], ["with /"]),
        ([image(file_name="\ud800.jpg")], ["control characters"]),
        ([image(file_name="x" * 5000 + "\n")], ["..."]),
        ([image(width=None)], [IM, "width and height are missing and 3, expected the image's"]),
        ([image(width=0)], [IM, "width and height are 0 and 3"]),
        ([image(height="3")], [IM, "width and height are 4 and '3'"]),
        ([image(height=3.0)], [IM, "are 4 and 3.0"]),
        ([image(width=10**300, height=10**300)], [IM, "expected at most 268435456 pixels"]),
        ([image(), image(file_name="b.jpg")], ["images[1] (id 7), image 'b.jpg'", "already has"]),
        ([image(), image(id=8)], ["images[1] (id 8), image 'a.jpg'", "images[0] already lists"]),
        ([image(file_name="real.png")], ["'real.png'", "listed as 4 x 3, but the file is 9 x 5"]),
        ([image(file_name="real.png", width=0)], ["expected 9 and 5 as in the file"]),
        ([image(file_name="torn.png")], ["'torn.png'", "size of its file cannot be read"]),
    ],
)
def test_a_broken_image_is_named(tmp_path: Path, images: list[Any], said: list[str]) -> None:
    drawn(tmp_path / "images/real.png", (9, 5))
    (tmp_path / "images/torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    path = saved(tmp_path / "a.json", document(images=images))
    check_broken(path, said)
    errors: list[LabelError] = []
    found = read(path, OPTIONS, errors)
    assert found.frames == {}
    assert not any(frame.clean for frame in found.frames.values())
    names = {e["file_name"] for e in images if isinstance(e, dict)}
    assert found.refused <= names


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": None}, ["images is missing, expected a list"]),
        ({"images": {}}, ["images is an object"]),
        ({"annotations": None}, ["annotations is missing"]),
        ({"categories": None}, ["categories is missing"]),
        ({"categories": [1]}, ["categories[0]: is 1"]),
        ({"categories": [{"id": 1}]}, ["categories[0] (id 1): name is missing"]),
        ({"categories": [{"id": 1, "name": 2}]}, ["name is 2"]),
        ({"categories": [{"id": 1, "name": "\x1b[31m"}]}, ["name is '\\x1b[31m'"]),
        ({"categories": [{"id": 1, "name": "+"}]}, ["categories: the type is called '+'"]),
        ({"categories": [{"id": 1, "name": ""}]}, ["categories: the type is called ''"]),
        ({"categories": [{"id": 1.0, "name": "a"}]}, ["categories[0] (id 1.0): id is 1.0"]),
        ({"categories": [{"id": True, "name": "a"}]}, ["id is true"]),
        (
            {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]},
            ["categories[1] (id 1), name 'b': 'a' already has this id"],
        ),
        (
            {"categories": [{"id": 1, "name": "a b"}, {"id": 2, "name": "A_b"}]},
            ["the types 'a b' and 'A_b' both become the id"],
        ),
        ({"annotations": ["x"]}, ["annotations[0]: is 'x'"]),
    ],
)
def test_a_broken_document_is_named(tmp_path: Path, changed: Json, said: list[str]) -> None:
    content = {k: v for k, v in document(**changed).items() if v is not None}
    if len(content) < 3:
        content["info"] = '"images" "annotations"'
    check_broken(saved(tmp_path / "a.json", content), said)


HEAD = '{"images": [], "annotations": [], "categories": '


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"{HEAD}[", "damaged JSON"),
        (f"{HEAD}[]", "damaged JSON"),
        (f"{HEAD}[NaN]}}", "NaN is no JSON"),
        (f"{HEAD}[-Infinity]}}", "-Infinity is no JSON"),
        (f"{HEAD}{'1' * 5000}}}", "damaged JSON"),
        (f"{HEAD}{nested(100_000)}}}", "nested too deep"),
        (HEAD.encode() + b'["\xff"]}', "byte 0xff is not UTF-8"),
    ],
    ids=["cut", "open", "nan", "infinity", "digits", "deep", "latin"],
)
def test_what_is_no_json_is_named(tmp_path: Path, content: str | bytes, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    check_broken(path, [said])


def test_depth_inside_an_annotation_is_named(tmp_path: Path) -> None:
    text = json.dumps(document(annotations=[annotation(segmentation=[["deep"]])]))
    path = tmp_path / "a.json"
    for depth in (10, 100, 500, 800, 900, 950):
        path.write_text(text.replace('"deep"', nested(depth)))
        check_broken(path, [])
        path.write_text(
            text.replace('[["deep"]]', f'{{"size": [3, 4], "counts": {nested(depth)}}}')
        )
        check_broken(path, [])


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(document()), encoding="utf-8-sig")
    assert recognise(tmp_path)
    assert list(read(tmp_path, OPTIONS).frames) == ["a.jpg"]


def test_a_huge_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelsight.data.formats.coco.MAX_BYTES", 100)
    check_broken(saved(tmp_path / "a.json", document()), ["expected at most 100"])


@pytest.mark.parametrize("name", ["nothing.json", "empty", "other.json", "list.json"])
def test_what_is_no_coco_is_an_input_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    saved(tmp_path / "other.json", {"images": []})
    saved(tmp_path / "list.json", [document()])
    assert recognise(tmp_path / name) is None
    with pytest.raises(InputError, match="expected a COCO file"):
        read(tmp_path / name, OPTIONS)


def test_polygons_are_not_claimed_twice(tmp_path: Path) -> None:
    saved(tmp_path / "annotations.json", document())
    assert COCO.recognise(tmp_path) == "annotations.json holds COCO's images and annotations"
    assert COCO_POLYGONS.recognise(tmp_path) is None
    assert COCO_POLYGONS.read is COCO.read


def test_a_long_file_is_recognised_by_its_ends(tmp_path: Path) -> None:
    order = ("annotations", "categories", "images")
    content = document(annotations=[annotation() for _ in range(2000)])
    content["images"] = [image(id=i, file_name=f"{i}.jpg") for i in range(2000)]
    for keys in (order, order[::-1]):
        assert recognise(saved(tmp_path / "a.json", {key: content[key] for key in keys}))


# Writing -----------------------------------------------------------------------------------------


def written(labels: LabelSet, folder: Path, label_format: LabelFormat) -> Json:
    folder.mkdir(parents=True, exist_ok=True)
    assert label_format.write is not None
    assert label_format.write(labels, folder, Placement.LEAVE) == {}
    content: Json = json.loads((folder / "annotations.json").read_text())
    return content


def test_the_document_as_written(tmp_path: Path) -> None:
    labels = label_set({"b.jpg": {"3": LEFT | RIGHT}, "a.jpg": {}}, ("1", "3"))
    content = written(labels, tmp_path / "rle", COCO)
    assert list(content) == ["info", "licenses", "categories", "images", "annotations"]
    assert content["info"]["contributor"].startswith("steelsight ")
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(1, "1"), (3, "3")]
    assert content["images"] == [
        {"id": 1, "file_name": "b.jpg", "width": 4, "height": 3},
        {"id": 2, "file_name": "a.jpg", "width": 4, "height": 3},
    ]
    assert content["annotations"] == [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 3,
            "segmentation": encode_coco_rle(LEFT | RIGHT),
            "area": 8,
            "bbox": [0, 0, 4, 3],
            "iscrowd": 0,
        }
    ]
    outlined = written(labels, tmp_path / "polygons", COCO_POLYGONS)["annotations"]
    # They touch at a corner, so they are one region.
    assert [(a["area"], a["bbox"], a["iscrowd"]) for a in outlined] == [(8, [0, 0, 4, 3], 0)]


def test_writing_is_deterministic_and_ascii(tmp_path: Path) -> None:
    labels = label_set({"ä/b.jpg": {"riss": LEFT}}, ("riss",))
    for label_format in (COCO, COCO_POLYGONS):
        written(labels, tmp_path / "a", label_format)
        written(labels, tmp_path / "b", label_format)
        first, second = ((tmp_path / n / "annotations.json").read_bytes() for n in "ab")
        assert first == second
        assert first.isascii()


@pytest.mark.parametrize(
    ("names", "ids"),
    [(("1", "3"), [1, 3]), (("3", "1"), [1, 2]), (("0", "1"), [1, 2]), (("a", "2"), [1, 2])],
)
def test_numbers_of_types_become_category_ids_where_that_keeps_their_order(
    tmp_path: Path, names: tuple[str, ...], ids: list[int]
) -> None:
    content = written(label_set({"a.jpg": {}}, names), tmp_path, COCO)
    assert [category["id"] for category in content["categories"]] == ids
    assert read(tmp_path, OPTIONS).class_ids == names


@BOTH
def test_split_and_attributes_are_written_back(tmp_path: Path, label_format: LabelFormat) -> None:
    frame = FrameLabels("a.jpg", {}, (4, 3), split="val", attributes={"coil": "7", "id": "x"})
    labels = LabelSet("test", tmp_path, (), {"a.jpg": frame})
    written(labels, tmp_path, label_format)
    back = read(tmp_path, OPTIONS).frames["a.jpg"]
    assert back.split == "val"
    assert back.attributes == {"coil": "7", "attribute_id": "x"}


@BOTH
@pytest.mark.parametrize("placement", Placement)
def test_images_are_placed(tmp_path: Path, label_format: LabelFormat, placement: Placement) -> None:
    source = drawn(tmp_path / "source/sub/a.png")
    frame = FrameLabels("sub/a.png", {"x": LEFT_RLE}, (4, 3))
    labels = LabelSet("t", tmp_path, classes_of("x"), {frame.image: frame}, {frame.image: source})
    target = tmp_path / "target"
    target.mkdir()
    assert label_format.write is not None
    label_format.write(labels, target, placement)
    copy = target / "images/sub/a.png"
    assert copy.exists() == (placement is not Placement.LEAVE)
    back = read(target, OPTIONS)
    assert rles_of(back) == {"sub/a.png": {"x": LEFT_RLE}}
    assert list(back.image_paths.values()) == ([copy] if copy.exists() else [])


def test_a_frame_without_a_size_cannot_be_written(tmp_path: Path) -> None:
    labels = LabelSet("t", tmp_path, (), {"a.jpg": FrameLabels("a.jpg", {})})
    with pytest.raises(InputError, match="the size is not known"):
        written(labels, tmp_path, COCO)


def test_a_folder_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    assert COCO.write is not None
    with pytest.raises(InputError, match="cannot be written"):
        COCO.write(label_set({}, ()), tmp_path / "missing", Placement.LEAVE)


@st.composite
def any_labels(draw: st.DrawFn) -> dict[str, dict[str, Mask]]:
    frames = {}
    for name in draw(st.lists(st.sampled_from(["a.jpg", "b/c.png", "ä.bmp"]), unique=True)):
        shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
        types = draw(st.lists(st.sampled_from(["1", "2", "x-y"]), unique=True))
        frames[name] = {t: draw(hnp.arrays(np.bool_, shape, fill=st.booleans())) for t in types}
    return frames


def check_identity(
    masks: dict[str, dict[str, Mask]], folder: Path, label_format: LabelFormat
) -> None:
    labels = label_set(masks, ("1", "2", "x-y"))
    content = written(labels, folder, label_format)
    back = read(folder, OPTIONS)
    assert rles_of(back) == rles_of(labels)
    assert list(back.frames) == list(labels.frames)
    assert back.classes == labels.classes
    # The same by pycocotools' reader.
    reference = ReferenceReader()
    reference.dataset = cast(Any, content)
    with contextlib.redirect_stdout(None):
        reference.createIndex()
    names = {c["id"]: c["name"] for c in content["categories"]}
    for listed in content["images"]:
        found: dict[str, Mask] = {}
        for one in reference.loadAnns(reference.getAnnIds(imgIds=[listed["id"]])):
            mask = reference.annToMask(one).astype(bool)
            assert one["area"] == mask.sum()
            assert one["bbox"] == list(coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask))))
            name = names[one["category_id"]]
            found[name] = found.get(name, np.zeros_like(mask)) | mask
        expected = {t: m for t, m in masks[listed["file_name"]].items() if m.any()}
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[t], expected[t]) for t in found)


# pycocotools' own decoder, with numpy 2.
COPY_WARNING = "ignore:__array__ implementation:DeprecationWarning"


@pytest.mark.filterwarnings(COPY_WARNING)
@BOTH
@given(masks=any_labels())
@settings(deadline=None, max_examples=60)
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory,
    label_format: LabelFormat,
    masks: dict[str, dict[str, Mask]],
) -> None:
    check_identity(masks, tmp_path_factory.mktemp("coco"), label_format)


@pytest.mark.soak
@pytest.mark.filterwarnings(COPY_WARNING)
@BOTH
@given(masks=any_labels())
@settings(deadline=None, max_examples=10_000)
def test_what_is_written_reads_back_10000_times(
    tmp_path_factory: pytest.TempPathFactory,
    label_format: LabelFormat,
    masks: dict[str, dict[str, Mask]],
) -> None:
    check_identity(masks, tmp_path_factory.getbasetemp() / "coco-soak", label_format)


@BOTH
def test_the_published_rows_survive_byte_for_byte(
    shared_dir: Path, tmp_path: Path, label_format: LabelFormat
) -> None:
    published = shared_dir / "data" / "severstal" / "train_partial.csv"
    class_ids = ("1", "2", "3", "4")
    frames = read_csv(published, size_wh=(1600, 256), class_ids=class_ids)
    if label_format is COCO_POLYGONS:
        frames = dict(list(frames.items())[::40])
    sized = {
        name: FrameLabels(name, frame.rle_by_class, (1600, 256)) for name, frame in frames.items()
    }
    begin = time.process_time()
    labels = LabelSet("severstal", published, classes_of(class_ids), sized)
    assert label_format.write is not None
    label_format.write(labels, tmp_path, Placement.LEAVE)
    back = read(tmp_path, OPTIONS)
    seconds = time.process_time() - begin
    write_csv(tmp_path / "a.csv", sized.values(), form=CsvForm.ROWS, class_ids=class_ids)
    write_csv(tmp_path / "b.csv", back.frames.values(), form=CsvForm.ROWS, class_ids=class_ids)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    if label_format is COCO:
        assert (tmp_path / "b.csv").read_bytes() == published.read_bytes()
    assert seconds < 10
