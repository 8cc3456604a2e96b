from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from steelsight.data.formats.severstal import read_csv
from steelsight.data.formats.yolo import YOLO, read, recognise
from steelsight.data.labels import (
    FrameLabels,
    LabelClass,
    LabelSet,
    Placement,
    ReadOptions,
    classes_of,
)
from steelsight.errors import InputError, LabelError
from steelsight.masks import decode_rle, encode_rle

Mask = NDArray[np.bool_]

SIZE_WH = (8, 4)
OPTIONS = ReadOptions()
SIZED = ReadOptions(size_wh=SIZE_WH)

LEFT = np.zeros((4, 8), bool)
LEFT[:2, :4] = True
RIGHT = LEFT[:, ::-1]
LEFT_RLE, RIGHT_RLE = encode_rle(LEFT), encode_rle(RIGHT)
LEFT_ROW = "0 0 0 0.5 0 0.5 0.5 0 0.5"
RIGHT_ROW = "1 0.5 0 1 0 1 0.5 0.5 0.5"

CONFIG = "train: images/train\nval: images/val\nnames: [scratch, rolled in]\n"


def put(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def drawn(path: Path, size_wh: tuple[int, int] = SIZE_WH) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.zeros(size_wh[::-1], np.uint8))
    return path


def rles_of(labels: LabelSet) -> dict[str, dict[str, str]]:
    return {name: dict(frame.rle_by_class) for name, frame in labels.frames.items()}


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """One image without rows yet, types 'scratch' and 'rolled in'."""
    drawn(tmp_path / "images/a.png")
    put(tmp_path / "labels/a.txt", "")
    put(tmp_path / "data.yaml", "train: images\nval: images\nnames: [scratch, rolled in]\n")
    return tmp_path


# Reading -----------------------------------------------------------------------------------------


def test_rows_become_masks(flat: Path) -> None:
    put(flat / "labels/a.txt", f"{RIGHT_ROW}\n{LEFT_ROW}\n0 0 .5 .5 .5 5e-1 1.0 0 1.\n")
    found = read(flat, OPTIONS)
    expected = LEFT.copy()
    expected[:, :4] = True
    assert rles_of(found) == {"a.png": {"scratch": encode_rle(expected), "rolled_in": RIGHT_RLE}}
    assert found.classes == (
        LabelClass("scratch", "scratch"),
        LabelClass("rolled_in", "rolled in"),
    )
    assert found.frames["a.png"].size_wh == SIZE_WH
    assert found.frames["a.png"].split is None
    assert found.notes == ()


@pytest.mark.parametrize(
    "text",
    [
        f"\ufeff{LEFT_ROW}\n",
        f"{LEFT_ROW}\r\n",
        f"\n\n  {LEFT_ROW}  \n \n",
        LEFT_ROW.replace(" ", "\t"),
        f"{LEFT_ROW}\n{LEFT_ROW}",
        "0 -0.0000004 0 0.5 0 0.5000005 0.5 0 0.5",
    ],
)
def test_every_spelling_gives_the_same_mask(flat: Path, text: str) -> None:
    put(flat / "labels/a.txt", text)
    assert rles_of(read(flat, OPTIONS)) == {"a.png": {"scratch": LEFT_RLE}}


def test_a_tiny_excess_is_clipped(flat: Path) -> None:
    put(flat / "labels/a.txt", "1 0.5 -0.0000005 1.0000005 0 1.1 0.5 0.5 0.5")
    assert rles_of(read(flat, OPTIONS)) == {"a.png": {"rolled_in": RIGHT_RLE}}


LAYOUTS = [
    (
        ["images/a.png", "images/sub/b.png"],
        {"a.png": None, "sub/b.png": None},
        "train: images\nval: images\n",
    ),
    (
        ["images/train/a.png", "images/val/a.png"],
        {"train/a.png": "train", "val/a.png": "val"},
        "path: .\ntrain: images/train\nval: images/val\n",
    ),
    (
        ["images/one/a.png", "images/two/a.png", "images/three/a.png"],
        {"one/a.png": "train", "two/a.png": "train", "three/a.png": "val"},
        "train: [images/one, images/two/]\nval: images/three\ntest:\n",
    ),
    (
        ["train/images/a.png", "valid/images/a.png"],
        {"train/a.png": "train", "valid/a.png": "val"},
        "train: train/images\nval: ./valid/images\n",
    ),
]


@pytest.mark.parametrize(("images", "expected", "config"), LAYOUTS)
@pytest.mark.parametrize("with_images", [True, False])
def test_layouts(
    tmp_path: Path,
    images: list[str],
    expected: dict[str, str | None],
    config: str,
    with_images: bool,
) -> None:
    paths = []
    for image in images:
        put(tmp_path / image.replace("images", "labels").replace(".png", ".txt"), LEFT_ROW)
        paths += [drawn(tmp_path / image)] if with_images else []
    path = put(tmp_path / "data.yaml", f"{config}names:\n  0: x\n")
    known = ReadOptions(sizes_wh=dict.fromkeys(expected, SIZE_WH))
    for start in (tmp_path, path):
        assert recognise(start) == "data.yaml names types and images"
        found = read(start, OPTIONS if with_images else known)
        assert {name: frame.split for name, frame in found.frames.items()} == expected
        assert sorted(found.image_paths.values()) == sorted(paths)
        assert all(frame.rle_by_class == {"x": LEFT_RLE} for frame in found.frames.values())
        assert found.notes == ()


@pytest.mark.parametrize(
    ("config", "noted"),
    [
        ("train: ../train/images\nval: ../valid/images\ntest: ../test/images\n", True),
        ("path: /content/datasets/steel\ntrain: train/images\nval: valid/images\n", True),
        ("path: ../datasets/steel\ntrain: train/images\nval: valid/images\n", True),
        ("train: ./train/images\nvalid: valid/images\n", False),
    ],
)
def test_folders_that_moved_are_found(tmp_path: Path, config: str, noted: bool) -> None:
    for name in ("train", "valid"):
        drawn(tmp_path / name / "images/a.png")
        put(tmp_path / name / "labels/a.txt", LEFT_ROW)
    put(tmp_path / "data.yaml", f"{config}nc: 1\nnames: ['x']\n")
    found = read(tmp_path, OPTIONS)
    assert {name: frame.split for name, frame in found.frames.items()} == {
        "train/a.png": "train",
        "valid/a.png": "val",
    }
    assert any("looked for beside it" in note for note in found.notes) == noted
    assert any("test is '../test/images'" in note for note in found.notes) == ("test" in config)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("train: images/nowhere\n", ["train is 'images/nowhere'", "no such folder"]),
        ("path: /data/steel\ntrain: photos\n", ["train is 'photos'", "path: '/data/steel'"]),
        ("train: /etc\n", ["train is '/etc'"]),
        ("train: ../../../../etc\n", ["train is '../../../../etc'"]),
        ("train: https://example.org/a.zip\n", ["no such folder is beside it"]),
        ("train: {a: b}\n", ["train is a mapping"]),
        ("train: [[a]]\n", ["train is a list of 1"]),
        ("path: [a]\n", ["path is a list of 1"]),
    ],
)
def test_a_folder_that_is_not_there_is_named(flat: Path, config: str, said: list[str]) -> None:
    put(flat / "data.yaml", f"{config}names: [x]\n")
    check_broken(flat, said, str(flat / "data.yaml"))


def test_parts_of_a_split_may_be_lists_of_images(tmp_path: Path) -> None:
    for name in "abc":
        drawn(tmp_path / f"images/{name}.png")
        put(tmp_path / f"labels/{name}.txt", LEFT_ROW)
    put(tmp_path / "train.txt", "./images/a.png\nimages/c.png\n")
    put(tmp_path / "val.txt", "./images/b.png\n./images/c.png\n")
    put(tmp_path / "data.yaml", "train: train.txt\nval: val.txt\nnames: [x]\n")
    found = read(tmp_path, OPTIONS)
    assert [f.split for f in found.frames.values()] == ["train", "val", None]
    assert any("1 images are in several parts" in note for note in found.notes)
    put(tmp_path / "val.txt", "../images/b.png\n")
    check_broken(tmp_path, ["val.txt line 1", "'../images/b.png'"], str(tmp_path))


def test_empty_is_clean_and_missing_is_unlabelled(flat: Path) -> None:
    drawn(flat / "images/b.png")
    found = read(flat, OPTIONS)
    assert list(found.frames) == ["a.png"]
    assert found.frames["a.png"].clean
    assert list(found.image_paths) == ["a.png", "b.png"]
    assert any("1 images have no label file: Ultralytics" in note for note in found.notes)
    found = read(flat, ReadOptions(unlisted_are_clean=True))
    assert found.frames["b.png"].clean
    assert found.frames["b.png"].size_wh == SIZE_WH


def test_labels_without_images_need_a_size(flat: Path) -> None:
    put(flat / "labels/b.txt", LEFT_ROW)
    check_broken(flat, ["image 'b.jpg'", "--size"], str(flat / "labels/b.txt"))
    found = read(flat, SIZED)
    assert rles_of(found) == {"a.png": {}, "b.jpg": {"scratch": LEFT_RLE}}
    assert "1 label files have no image here: taken as .jpg" in found.notes
    found = read(flat, ReadOptions(sizes_wh={"b.bmp": SIZE_WH}))
    assert rles_of(found)["b.bmp"] == {"scratch": LEFT_RLE}


def test_two_images_of_one_label_file_are_an_error(flat: Path) -> None:
    drawn(flat / "images/a.bmp")
    check_broken(flat, ["belongs to 'a.bmp' and 'a.png'"], str(flat / "labels/a.txt"))
    errors: list[LabelError] = []
    found = read(flat, OPTIONS, errors)
    assert len(errors) == 1
    assert found.refused == {"a.bmp", "a.png"}
    assert found.frames == {}


@pytest.mark.parametrize("place", ["classes.txt", "labels/classes.txt"])
def test_names_without_a_yaml_file(flat: Path, place: str) -> None:
    (flat / "data.yaml").unlink()
    put(flat / "labels/a.txt", RIGHT_ROW)
    assert recognise(flat) == "labels holds rows of a type and coordinates"
    found = read(flat, OPTIONS)
    assert rles_of(found) == {"a.png": {"1": RIGHT_RLE}}
    assert found.class_ids == ("0", "1")
    assert any("no data.yaml names the types" in note for note in found.notes)
    put(flat / place, "scratch\nrolled in\n")
    found = read(flat, OPTIONS)
    assert found.class_ids == ("scratch", "rolled_in")
    assert list(found.frames) == ["a.png"]
    found = read(flat, ReadOptions(class_names=("p", "q", "r")))
    assert found.class_ids == ("p", "q", "r")


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ("names: [a, b]", ("a", "b")),
        ("names: {1: b, 0: a}", ("a", "b")),
        ("names:\n- a\n- b\n", ("a", "b")),
        ("names: {'0': a, '1': b}\nnc: 2", ("a", "b")),
        ("names: [1, 2]", ("1", "2")),
        ("names: [no, 010]", ("no", "010")),
        ('names: ["a", "b"]', ("a", "b")),
        ("%YAML 1.2\n---\nnames: [a, b]", ("a", "b")),
    ],
)
def test_names_in_every_spelling(flat: Path, config: str, names: tuple[str, ...]) -> None:
    put(flat / "data.yaml", config)
    assert tuple(c.name for c in read(flat / "data.yaml", OPTIONS).classes) == names


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nnames: *c\n"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (BOMB, [" row 2", "an alias (*)", "write the names out"]),
        ("names: !!python/object/apply:os.system [ls]", [" row 1", "a tag (!)"]),
        ("names: !x [a]", ["a tag (!)"]),
        ("names: [a, b", [" row 1", "expected plain YAML"]),
        ("names: {0: a, 0: b}", [" row 1", "a key twice"]),
        ("names: {[1]: a}", ["expected plain YAML"]),
        ("names: [a, b]\nnc: 3", ["nc is '3', but there are 2 names"]),
        ("names: {0: a, 2: b}", ["numbers of the names are 0, 2", "0 to 1 without gaps"]),
        ("names: {1: a, 2: b}", ["without gaps"]),
        ("names: scratch", ["names are 'scratch', expected a list"]),
        ("names: [[a]]", ["names are a list of 1"]),
        ("names: [a, '']", ["names are a list of 2"]),
        ("names: [a b, A_b]", ["both become the id"]),
        ("names: ['+']", ["the type is called '+'"]),
        ("- a", ["expected a mapping"]),
        ("", ["expected a mapping"]),
        (b"names: [\xff]", ["byte 0xff is not UTF-8"]),
        ("names: [\x00]", ["expected plain YAML"]),
        ("names: " + "[" * 20_000, ["nested too deep"]),
        ("#" * (1 << 20) + "\n", ["expected names of types and folders in at most"]),
    ],
)
def test_a_broken_yaml_file_is_named(flat: Path, config: str | bytes, said: list[str]) -> None:
    check_broken(put(flat / "data.yaml", config), said, str(flat / "data.yaml"))


def check_broken(path: Path, said: list[str], start: str) -> None:
    with pytest.raises(LabelError) as caught:
        read(path, OPTIONS)
    message = str(caught.value)
    assert message.startswith(start)
    assert "\n" not in message
    assert len(message) < 500 + len(start)
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("0 0.5 0.5 0.2 0.2", ["4 numbers are a box", "for segmentation"]),
        ("0 0.1 0.1 0.2 0.2 0.3", ["5 numbers", "confidence"]),
        ("0 0 0 0.5 0 0.5 0.5 0.9", ["7 numbers", "confidence"]),
        ("0 0.1 0.1", ["2 numbers"]),
        ("0", ["0 numbers"]),
        ("2 0 0 0.5 0 0.5 0.5", ["the type is 2, expected 0 to 1"]),
        ("99999999999 0 0 0.5 0 0.5 0.5", ["the type is '99999999999'"]),
        ("1.0 0 0 0.5 0 0.5 0.5", ["the type is '1.0'", "1, not 1.0"]),
        ("-1 0 0 0.5 0 0.5 0.5", ["the type is '-1'"]),
        ("scratch 0 0 0.5 0 0.5 0.5", ["the type is 'scratch'"]),
        ("١ 0 0 0.5 0 0.5 0.5", ["the type is '\\u0661'"]),
        ("0 0 0 0,5 0 0,5 0,5", ["number 3 of the polygon is '0,5'", "decimal point"]),
        ("0,0,0,0.5,0,0.5,0.5", ["the type is '0,0,0,"]),
        ("0 0 0 nan 0 0.5 0.5", ["number 3 of the polygon is 'nan'"]),
        ("0 0 0 inf 0 0.5 0.5", ["'inf'"]),
        ("0 0 0 1_0 0 0.5 0.5", ["'1_0'"]),
        ("0 0 0 ٠ 0 0.5 0.5", ["'\\u0660'"]),
        ("0 0 0 e 0 0.5 0.5", ["'e'"]),
        ("0 0 0 1-1 0 0.5 0.5", ["'1-1'"]),
        ("0 0 0 . 0 0.5 0.5", ["'.'"]),
        ("0 0 0 0.5 0 0.5 1e999", ["number 6 of the polygon is inf", "from 0 to 1"]),
        ("0 0 0 4 0 4 2", ["number 3 of the polygon is 4,", "divide x by"]),
        ("0 0 0 0.5 -0.3 0.5 0.5", ["number 4 of the polygon is -0.3"]),
        ("0 " + "x" * 5000, ["..."]),
    ],
)
def test_a_broken_row_is_named(flat: Path, row: str, said: list[str]) -> None:
    drawn(flat / "images/good.png")
    put(flat / "labels/good.txt", RIGHT_ROW)
    path = put(flat / "labels/a.txt", f"{LEFT_ROW}\n\n{row}\n")
    check_broken(flat, said, f"{path} row 3, image 'a.png': ")
    errors: list[LabelError] = []
    found = read(flat, OPTIONS, errors)
    assert len(errors) == 1
    assert found.refused == {"a.png"}
    assert rles_of(found) == {"good.png": {"rolled_in": RIGHT_RLE}}


def test_every_broken_row_is_told(flat: Path) -> None:
    put(flat / "labels/a.txt", f"5 0 0\n{LEFT_ROW}\n0 1 1\n")
    errors: list[LabelError] = []
    read(flat, OPTIONS, errors)
    assert [str(e).split(",")[0].rpartition(" ")[2] for e in errors] == ["1", "3"]


def test_a_polygon_of_no_pixel_is_an_error(flat: Path) -> None:
    put(flat / "labels/a.txt", "0 0.01 0.01 0.02 0.01 0.02 0.02")
    check_broken(flat, ["image 'a.png', type 'scratch': covers no pixel"], str(flat))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff", "byte 0xff is not UTF-8"),
        (b"0 0 0 1 0 1 \xe9", "byte 0xe9 is not UTF-8"),
        (b"\x00\x01", "row 1, image 'a.png': the type is '\\x00\\x01'"),
    ],
)
def test_what_is_no_text_is_named(flat: Path, content: bytes, said: str) -> None:
    check_broken(flat, [said], str(put(flat / "labels/a.txt", content)))


def test_a_huge_file_is_refused_unread(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelsight.data.formats.yolo.MAX_BYTES", 10)
    put(flat / "labels/a.txt", LEFT_ROW)
    check_broken(flat, ["expected rows of a type"], str(flat))


def test_a_damaged_image_is_named(flat: Path) -> None:
    put(flat / "images/a.png", b"\x89PNG\r\n\x1a\n")
    check_broken(flat, ["the size of 'a.png' cannot be read"], str(flat))


def test_a_link_that_leads_out_is_refused(
    flat: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = put(tmp_path_factory.mktemp("outside") / "secret.txt", LEFT_ROW)
    (flat / "labels/b.txt").symlink_to(secret)
    check_broken(flat, ["leads out of"], str(flat / "labels/b.txt"))


@pytest.mark.parametrize("name", ["missing", "empty", "masks"])
def test_what_is_no_yolo_is_an_input_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    drawn(tmp_path / "masks/images/a.png")
    drawn(tmp_path / "masks/masks/a.png")
    assert recognise(tmp_path / name) is None
    with pytest.raises(InputError, match="expected the folders images and labels"):
        read(tmp_path / name, OPTIONS)


def test_other_text_files_are_not_claimed(tmp_path: Path) -> None:
    put(tmp_path / "labels/notes.txt", "the camera was dirty\n")
    put(tmp_path / "labels/a.txt", "")
    assert recognise(tmp_path) is None
    put(tmp_path / "settings.yaml", "names: x\n")
    assert recognise(tmp_path) is None
    assert recognise(tmp_path / "settings.yaml") is None


# Writing -----------------------------------------------------------------------------------------


def label_set(frames: list[FrameLabels], names: tuple[str, ...], **more: Any) -> LabelSet:
    return LabelSet("test", Path("test"), classes_of(names), {f.image: f for f in frames}, **more)


def written(
    labels: LabelSet, folder: Path, placement: Placement = Placement.LEAVE
) -> dict[str, str]:
    folder.mkdir(exist_ok=True, parents=True)
    assert YOLO.write is not None
    return dict(YOLO.write(labels, folder, placement))


def test_the_files_as_written(tmp_path: Path) -> None:
    frames = [
        FrameLabels("b.png", {"no": LEFT_RLE, "x": RIGHT_RLE}, SIZE_WH),
        FrameLabels("sub/a.png", {}, SIZE_WH),
    ]
    labels = label_set(frames, ("x", "no"))
    assert written(labels, tmp_path) == {}
    assert (tmp_path / "data.yaml").read_text() == (
        "train: images\nval: images\nnames:\n  0: x\n  1: 'no'\n"
    )
    assert (tmp_path / "labels/b.txt").read_text() == (
        "0 0.525000 0.050000 0.525000 0.450000 0.975000 0.450000 0.975000 0.050000\n"
        "1 0.025000 0.050000 0.025000 0.450000 0.475000 0.450000 0.475000 0.050000\n"
    )
    assert (tmp_path / "labels/sub/a.txt").read_text() == ""
    assert yaml.safe_load((tmp_path / "data.yaml").read_text())["names"] == {0: "x", 1: "no"}


def test_splits_become_folders(tmp_path: Path) -> None:
    images = {
        "a.png": "train",
        "valid/a.png": "val",
        "val/a.png": "val",
        "val/b.png": "train",
        "c.png": None,
    }
    frames = [FrameLabels(i, {"x": LEFT_RLE}, SIZE_WH, split=s) for i, s in images.items()]
    names = written(label_set(frames, ("x",)), tmp_path)
    assert names == {"a.png": "train/a.png", "val/b.png": "train/val/b.png"}
    config = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert config["train"] == "images/train"
    assert config["val"] == ["images/val", "images/valid"]
    back = read(tmp_path, ReadOptions(sizes_wh={names.get(i, i): SIZE_WH for i in images}))
    assert {i: back.frames[names.get(i, i)].split for i in images} == images
    assert back.notes == ()


def test_images_of_one_stem_get_different_names(tmp_path: Path) -> None:
    images = ["a.png", "a.bmp", "A.jpg", "a_2.png"]
    frames = [FrameLabels(i, {"x": LEFT_RLE}, SIZE_WH) for i in images]
    paths = {image: drawn(tmp_path / "source" / image) for image in images}
    labels = label_set(frames, ("x",), image_paths=paths)
    names = written(labels, tmp_path / "target", Placement.COPY)
    assert names == {"a.bmp": "a_2.bmp", "A.jpg": "A_3.jpg", "a_2.png": "a_2_2.png"}
    back = read(tmp_path / "target", OPTIONS)
    assert sorted(back.frames) == sorted(names.get(i, i) for i in images)


@pytest.mark.parametrize("placement", Placement)
def test_images_are_placed(tmp_path: Path, placement: Placement) -> None:
    source = drawn(tmp_path / "source/a.png")
    frame = FrameLabels("a.png", {"x": LEFT_RLE}, SIZE_WH, split="val")
    labels = label_set([frame], ("x",), image_paths={"a.png": source})
    assert written(labels, tmp_path / "target", placement) == {"a.png": "val/a.png"}
    copy = tmp_path / "target/images/val/a.png"
    assert copy.exists() == (placement is not Placement.LEAVE)


def test_a_frame_without_a_size_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the size is not known"):
        written(label_set([FrameLabels("a.jpg", {})], ()), tmp_path)


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    put(tmp_path / "labels", "a file")
    with pytest.raises(InputError, match="cannot be written"):
        written(label_set([FrameLabels("a.jpg", {}, SIZE_WH)], ()), tmp_path)


def test_names_of_types_survive(tmp_path: Path) -> None:
    names = ("1", "no", "null", "Riß 'tief': #3", "a, [b]", "ü-x \U0001f600 y", "- z")
    written(label_set([FrameLabels("a.jpg", {}, SIZE_WH)], names), tmp_path)
    back = read(tmp_path, ReadOptions(sizes_wh={"a.jpg": SIZE_WH}))
    assert tuple(c.name for c in back.classes) == names


@st.composite
def any_frames(draw: st.DrawFn) -> list[FrameLabels]:
    frames = []
    names = ["a.jpg", "b/c.png", "train/ä.bmp", "b/c.jpg", "val/val/x.png"]
    for name in draw(st.lists(st.sampled_from(names), unique=True)):
        shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
        types = draw(st.lists(st.sampled_from(["1", "2", "x-y"]), unique=True))
        masks = {t: draw(hnp.arrays(np.bool_, shape, fill=st.booleans())) for t in sorted(types)}
        rles = {t: encode_rle(mask) for t, mask in masks.items() if mask.any()}
        split = draw(st.sampled_from([None, "train", "val", "test"]))
        frames.append(FrameLabels(name, rles, (shape[1], shape[0]), split=split))
    return frames


def ultralytics_like(text: str, size_wh: tuple[int, int]) -> dict[int, Mask]:
    """As Ultralytics draws the rows: corners cut down to pixels, filled with their outline."""
    masks: dict[int, NDArray[np.uint8]] = {}
    for line in text.splitlines():
        number, *shares = line.split()
        points = np.array(shares, np.float32).reshape(-1, 2) * size_wh
        mask = masks.setdefault(int(number), np.zeros(size_wh[::-1], np.uint8))
        cv2.fillPoly(mask, [points.astype(np.int32)], 1)
    return {number: mask.astype(bool) for number, mask in masks.items()}


def check_identity(frames: list[FrameLabels], folder: Path) -> None:
    labels = label_set(frames, ("1", "2", "x-y"))
    names = written(labels, folder)
    sizes = {names.get(f.image, f.image): f.size_wh for f in frames if f.size_wh}
    back = read(folder, ReadOptions(sizes_wh=sizes))
    assert rles_of(back) == {names.get(f.image, f.image): f.rle_by_class for f in frames}
    assert back.classes == labels.classes
    for frame in frames:
        name = names.get(frame.image, frame.image)
        if frame.split:
            assert back.frames[name].split == frame.split
        # No pixel is missing where another reader draws the rows, outline included.
        assert frame.size_wh is not None
        text = (folder / "labels" / name).with_suffix(".txt").read_text()
        drawn_by_number = ultralytics_like(text, frame.size_wh)
        for class_id, rle in frame.rle_by_class.items():
            mask = decode_rle(rle, frame.size_wh)
            assert drawn_by_number[labels.class_ids.index(class_id)][mask].all()


@given(any_frames())
@settings(deadline=None, max_examples=60)
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, frames: list[FrameLabels]
) -> None:
    check_identity(frames, tmp_path_factory.mktemp("yolo"))


@pytest.mark.soak
@given(any_frames())
@settings(deadline=None, max_examples=10_000)
def test_what_is_written_reads_back_10000_times(
    tmp_path_factory: pytest.TempPathFactory, frames: list[FrameLabels]
) -> None:
    check_identity(frames, tmp_path_factory.mktemp("yolo"))


@pytest.mark.parametrize("size_wh", [(1, 2_000_000), (16_384, 3), (5_000, 4_000)])
def test_large_frames_survive(tmp_path: Path, size_wh: tuple[int, int]) -> None:
    mask = np.zeros(size_wh[::-1], bool)
    generator = np.random.default_rng(0)
    for _ in range(50):
        x, y = generator.integers(0, size_wh)
        mask[y : y + 3, x : x + 3] = True
    frame = FrameLabels("a.jpg", {"x": encode_rle(mask)}, size_wh)
    written(label_set([frame], ("x",)), tmp_path)
    back = read(tmp_path, ReadOptions(size_wh=size_wh))
    assert back.frames["a.jpg"].rle_by_class == frame.rle_by_class


def test_published_masks_survive(shared_dir: Path, tmp_path: Path) -> None:
    published = shared_dir / "data" / "severstal" / "train_partial.csv"
    found = list(read_csv(published, size_wh=(1600, 256)).values())[::40]
    frames = [FrameLabels(f.image, f.rle_by_class, (1600, 256)) for f in found]
    labels = label_set(frames, ("1", "2", "3", "4"))
    written(labels, tmp_path)
    back = read(tmp_path, ReadOptions(size_wh=(1600, 256)))
    assert rles_of(back) == {f.image: dict(f.rle_by_class) for f in frames}
    both = either = 0
    for frame in frames:
        text = (tmp_path / "labels" / frame.image).with_suffix(".txt").read_text()
        for number, drawn_mask in ultralytics_like(text, (1600, 256)).items():
            mask = decode_rle(frame.rle_by_class[str(number + 1)], (1600, 256))
            both += int(np.count_nonzero(mask & drawn_mask))
            either += int(np.count_nonzero(mask | drawn_mask))
    assert both / either > 0.95
