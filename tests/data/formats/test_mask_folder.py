from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from steelsight.data.formats.mask_folder import MASK_BINARY, MASK_INDEX, MASK_PALETTE
from steelsight.data.formats.severstal import read_csv
from steelsight.data.labels import (
    FrameLabels,
    LabelFormat,
    LabelSet,
    Placement,
    ReadOptions,
    classes_of,
)
from steelsight.errors import InputError, LabelError
from steelsight.masks import decode_rle, encode_rle

FORMATS = (MASK_INDEX, MASK_PALETTE, MASK_BINARY)
OPTIONS = ReadOptions()
Rows = list[list[int]]


def save(path: Path, rows: Rows | NDArray[Any], mode: str = "L", **options: Any) -> Path:
    """Writes a mask by Pillow, which is not what the product writes or reads the numbers with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(rows, np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        image = Image.fromarray(np.array(rows, np.uint8))
        image = image.convert("L")
        image.putpalette(options.pop("palette", list(range(256)) * 3))
    elif mode not in ("L", "I;16"):
        image = image.convert(mode)
    image.save(path, "PNG", **options)
    return path


def photo(path: Path, size_wh: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size_wh, 90).save(path)


def labels_of(label_set: LabelSet) -> dict[str, dict[str, str]]:
    return {image: dict(frame.rle_by_class) for image, frame in label_set.frames.items()}


def label_set_of(
    masks: dict[str, dict[str, NDArray[np.bool_]]],
    sizes_wh: dict[str, tuple[int, int]],
    names: tuple[str, ...] = ("a", "b c", "2"),
) -> LabelSet:
    classes = classes_of(names)
    frames = {
        image: FrameLabels(image, {c: encode_rle(m) for c, m in of.items()}, sizes_wh[image])
        for image, of in masks.items()
    }
    return LabelSet("test", Path("memory"), classes, frames)


# Folders -----------------------------------------------------------------------------------------


def test_numbers_are_types_in_the_order_of_classes_txt(tmp_path: Path) -> None:
    save(tmp_path / "masks" / "training" / "a.png", [[0, 2], [1, 2]])
    save(tmp_path / "masks" / "b.png", [[0, 0]])
    photo(tmp_path / "images" / "training" / "a.jpg", (2, 2))
    photo(tmp_path / "images" / "b.bmp", (2, 1))
    photo(tmp_path / "images" / "unlabelled.png", (2, 1))
    (tmp_path / "classes.txt").write_text("rolled in\nscratch\npit\n")
    read = MASK_INDEX.read(tmp_path, OPTIONS, None)
    assert labels_of(read) == {
        "b.bmp": {},
        "training/a.jpg": {"rolled_in": "2 1", "scratch": "3 2"},
    }
    assert [c.name for c in read.classes] == ["rolled in", "scratch", "pit"]
    assert read.frames["training/a.jpg"].split == "train"
    assert read.frames["training/a.jpg"].size_wh == (2, 2)
    assert read.frames["b.bmp"].clean
    assert list(read.image_paths) == ["b.bmp", "training/a.jpg", "unlabelled.png"]
    assert not read.refused

    clean = MASK_INDEX.read(tmp_path, ReadOptions(unlisted_are_clean=True), None)
    assert clean.frames["unlabelled.png"] == FrameLabels("unlabelled.png", {}, (2, 1))
    named = MASK_INDEX.read(tmp_path, ReadOptions(class_names=("x", "y")), None)
    assert named.class_ids == ("x", "y")


@pytest.mark.parametrize(
    ("images", "masks"),
    [("images", "masks"), ("JPEGImages", "SegmentationClass"), ("Images", "Annotations")],
)
def test_folders_have_their_usual_names(tmp_path: Path, images: str, masks: str) -> None:
    save(tmp_path / masks / "a_mask.png", [[0, 1]])
    photo(tmp_path / images / "a.jpg", (2, 1))
    assert labels_of(MASK_INDEX.read(tmp_path, OPTIONS, None)) == {"a.jpg": {"1": "2 1"}}


def test_images_may_lie_elsewhere(tmp_path: Path) -> None:
    save(tmp_path / "labels" / "labels" / "a.png", [[0, 1]])
    photo(tmp_path / "there" / "a.jpg", (2, 1))
    read = MASK_INDEX.read(tmp_path / "labels", ReadOptions(images=tmp_path / "there"), None)
    assert read.frames.keys() == read.image_paths.keys() == {"a.jpg"}


def test_masks_without_images_name_them(tmp_path: Path) -> None:
    save(tmp_path / "masks" / "a_mask.png", [[0, 1]])
    save(tmp_path / "masks" / "b_mask.png", [[0, 0]])
    read = MASK_INDEX.read(tmp_path, OPTIONS, None)
    assert labels_of(read) == {"a.png": {"1": "2 1"}, "b.png": {}}
    assert "2 masks without an image" in read.notes[0]
    photo(tmp_path / "images" / "a.jpg", (2, 1))
    assert labels_of(MASK_INDEX.read(tmp_path, OPTIONS, None)) == {
        "a.jpg": {"1": "2 1"},
        "b.jpg": {},
    }


def test_a_damaged_image_does_not_spoil_its_mask(tmp_path: Path) -> None:
    save(tmp_path / "masks" / "a.png", [[0, 1]])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"damaged")
    assert labels_of(MASK_INDEX.read(tmp_path, OPTIONS, None)) == {"a.jpg": {"1": "2 1"}}


def test_known_sizes_are_checked_without_an_image(tmp_path: Path) -> None:
    save(tmp_path / "masks" / "a.png", [[0, 1]])
    with pytest.raises(LabelError, match="the mask is 2 x 1, expected the image's 3 x 1"):
        MASK_INDEX.read(tmp_path, ReadOptions(sizes_wh={"a.png": (3, 1)}), None)


def test_binary_masks_lie_in_class_folders_and_may_overlap(tmp_path: Path) -> None:
    save(tmp_path / "masks" / "10" / "a.png", [[255, 0], [255, 0]])
    save(tmp_path / "masks" / "2" / "a.png", [[1, 1], [0, 0]])
    save(tmp_path / "masks" / "2" / "train" / "b.png", [[0, 0]])
    read = MASK_BINARY.read(tmp_path, OPTIONS, None)
    assert labels_of(read) == {"a.png": {"2": "1 1 3 1", "10": "1 2"}, "train/b.png": {}}
    assert read.class_ids == ("2", "10")
    assert MASK_BINARY.recognise(tmp_path)


def test_binary_masks_without_class_folders_are_one_class(tmp_path: Path) -> None:
    save(tmp_path / "masks" / "test" / "a.png", [[0, 255]])
    save(tmp_path / "masks" / "test" / "b.png", [[0, 0]])
    assert MASK_BINARY.recognise(tmp_path)
    read = MASK_BINARY.read(tmp_path, OPTIONS, None)
    assert labels_of(read) == {"test/a.png": {"defect": "2 1"}, "test/b.png": {}}
    named = MASK_BINARY.read(tmp_path, ReadOptions(class_names=("pit",)), None)
    assert named.class_ids == ("pit",)
    with pytest.raises(LabelError, match="names 2 types for masks without class folders"):
        MASK_BINARY.read(tmp_path, ReadOptions(class_names=("pit", "scale")), None)


def test_a_class_may_be_called_as_a_folder_of_images(tmp_path: Path) -> None:
    yes = np.ones((1, 2), np.bool_)
    masks = {"a/x.jpg": {"a": yes}, "x.jpg": {"a": yes}, "a/a/x.jpg": {}}
    labels = label_set_of(masks, dict.fromkeys(masks, (2, 1)), ("a", "train"))
    MASK_BINARY.write(labels, tmp_path, Placement.LEAVE)  # type: ignore[misc]
    assert labels_of(MASK_BINARY.read(tmp_path, OPTIONS, None)) == labels_of(labels)


FIRST = [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("label_format", "files", "said"),
    [
        (MASK_INDEX, {"masks/a.png": [[0, 3], [0, 0]]}, "a.png, image 'a.jpg': pixel value 3 at "
         "row 0, column 1 (1 px in all), expected 0 to 2, because 2 types are named"),
        (MASK_INDEX, {"masks/a.png": [[0, 255], [0, 1]]}, "in Pascal VOC 255 is 'void'"),
        (MASK_PALETTE, {"masks/a.png": [[0, 255], [0, 1]]}, "in Pascal VOC 255 is 'void'"),
        (MASK_INDEX, {"masks/a.png": [[0, 1]]}, "the mask is 2 x 1, expected the image's 2 x 2"),
        (MASK_INDEX, {"masks/a.png": FIRST, "masks/a_mask.png": FIRST}, "is a mask of the image '"),
        (MASK_BINARY, {"masks/p/a.png": [[0, 3], [0, 0]]}, "beside 0 are 3, expected 255 alone"),
        (MASK_BINARY, {"masks/p/a.png": [[0, 1], [0, 255]]}, "beside 0 are 1, 255, expected"),
        (MASK_BINARY, {"masks/p/a.png": [[*range(9)]]}, "the mask is 9 x 1"),
        (MASK_BINARY, {"masks/p/a.png": [[0, 1]]}, "the mask is 2 x 1, expected the image's 2 x 2"),
    ],
)  # fmt: skip
def test_a_broken_mask_is_named_and_its_image_refused(
    tmp_path: Path, label_format: LabelFormat, files: dict[str, Rows], said: str
) -> None:
    for name, rows in files.items():
        save(tmp_path / name, rows)
    good = "masks/p/b.png" if label_format is MASK_BINARY else "masks/b.png"
    save(tmp_path / good, FIRST)
    photo(tmp_path / "images" / "a.jpg", (2, 2))
    photo(tmp_path / "images" / "b.jpg", (2, 2))
    photo(tmp_path / "images" / "c.jpg", (2, 2))
    (tmp_path / "classes.txt").write_text("p\nq\n")
    with pytest.raises(LabelError) as caught:
        label_format.read(tmp_path, OPTIONS, None)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    errors: list[LabelError] = []
    read = label_format.read(tmp_path, ReadOptions(unlisted_are_clean=True), errors)
    assert [str(error) for error in errors] == [str(caught.value)]
    assert read.refused == {"a.jpg"}
    assert labels_of(read) == {"b.jpg": {"p": "3 1"}, "c.jpg": {}}


def test_all_broken_masks_are_listed_in_order(tmp_path: Path) -> None:
    for name in "abcdefgh":
        save(tmp_path / "masks" / f"{name}.png", [[7]])
    errors: list[LabelError] = []
    read = MASK_INDEX.read(tmp_path, ReadOptions(class_names=("x",)), errors)
    assert [str(e).split("image ")[1][:7] for e in errors] == [f"'{n}.png'" for n in "abcdefgh"]
    assert not read.frames
    assert len(read.refused) == 8


def test_two_images_for_one_mask(tmp_path: Path) -> None:
    save(tmp_path / "masks" / "a.png", [[1]])
    photo(tmp_path / "images" / "a.jpg", (1, 1))
    photo(tmp_path / "images" / "a.png", (1, 1))
    errors: list[LabelError] = []
    read = MASK_INDEX.read(tmp_path, ReadOptions(unlisted_are_clean=True), errors)
    assert "differ in their suffix only" in str(errors[0])
    assert read.refused == {"a.jpg", "a.png"}
    assert not read.frames


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "expected one folder with masks"),
        ({"masks": {}, "images": {"a.png": 1}}, "found none"),
        ({"masks": {"a.png": 1}, "annotations": {"a.png": 1}}, "found annotations and masks"),
        ({"masks": {"a.png": 1}, "images": {}, "JPEGImages": {}}, "both JPEGImages and images"),
        ({"masks": {"a.png": 1}, "images": {"b.png": 1}}, "no mask such as 'a.png' has the name"),
        ({"masks": {"a.png": 1}, "classes.txt": b"_background_\np"}, "0 is always the background"),
        ({"masks": {"a.png": 1}, "classes.txt": b"p p\np_p"}, "both become the id 'p_p'"),
        ({"masks": {"a.png": 1}, "classes.txt": b"\xff\xfe"}, "not UTF-8"),
        ({"masks": {"a.png": 1}, "classes.txt": {}}, "cannot be read"),
        ({"masks": {"a.png": 1}, "classes.txt": b""}, "expected 0 to 0, because 0 types are named"),
        ({"masks": {"a.png": 1}, "images.txt": b"../a.png"}, "'../a.png'"),
        ({"masks": {"a.png": 1}, "images.txt": b"a.png\na.png"}, "the same line stands above"),
        ({"masks": {"a.png": 1}, "images.txt": b"a.png\na.jpg"}, "'a.png' stands above, with the"),
        ({"masks": {"a.png": 1}, "images.txt": b"a.png\nb.png"}, "'b.png' has no mask"),
        ({"masks": {"a.png": 1, "b.png": 1}, "images.txt": b"a.png"}, "names no image for this"),
        ({"masks": {"a.jpg": 1}}, "received a JPEG"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_as_expected(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    for name, content in files.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
            continue
        (tmp_path / name).mkdir()
        for file, value in content.items():
            Image.new("L", (1, 1), value).save(tmp_path / name / file)
    with pytest.raises(InputError) as caught:
        MASK_INDEX.read(tmp_path, OPTIONS, None)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["missing", "file"])
def test_a_path_that_is_no_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is no folder"):
        MASK_INDEX.read(tmp_path / path, OPTIONS, None)
    assert all(f.recognise(tmp_path / path) is None for f in FORMATS)


def test_the_list_of_images_is_the_truth(tmp_path: Path) -> None:
    save(tmp_path / "masks" / "a.png", [[1]])
    save(tmp_path / "masks" / "b.png", [[1]])
    photo(tmp_path / "images" / "b.jpg", (1, 1))
    (tmp_path / "images.txt").write_text("a.tif\nlost.tif\n")
    errors: list[LabelError] = []
    read = MASK_INDEX.read(tmp_path, ReadOptions(unlisted_are_clean=True), errors)
    assert labels_of(read) == {"a.tif": {"1": "1 1"}}
    assert read.refused == {"b.jpg", "lost.tif"}
    assert len(errors) == 2


def test_a_type_without_name_has_no_folder(tmp_path: Path) -> None:
    save(tmp_path / "masks" / "p" / "a.png", [[1]])
    save(tmp_path / "masks" / "q" / "a.png", [[1]])
    (tmp_path / "classes.txt").write_text("p\n")
    with pytest.raises(LabelError, match=r"masks/q: a type that .*classes.txt does not name"):
        MASK_BINARY.read(tmp_path, OPTIONS, None)
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "masks" / "q").rename(tmp_path / "masks" / "P")
    with pytest.raises(LabelError, match="both become the id"):
        MASK_BINARY.read(tmp_path, OPTIONS, None)


# Palettes that lie -------------------------------------------------------------------------------

RED, GREEN = [255, 0, 0], [0, 255, 0]


def test_a_palette_sorted_anew_is_noticed(tmp_path: Path) -> None:
    save(tmp_path / "masks" / "a.png", [[0, 1]], "P", palette=[0, 0, 0, *RED, *GREEN])
    save(tmp_path / "masks" / "b.png", [[0, 2]], "P", palette=[0, 0, 0, *RED, *GREEN])
    save(tmp_path / "masks" / "c.png", [[0, 1]], "P", palette=[0, 0, 0, *GREEN, *RED])
    errors: list[LabelError] = []
    read = MASK_PALETTE.read(tmp_path, OPTIONS, errors)
    assert labels_of(read) == {"a.png": {"1": "2 1"}, "b.png": {"2": "2 1"}}
    assert "value 1 has the colour (0, 255, 0)" in str(errors[0])
    assert read.refused == {"c.png"}


def test_a_grey_mask_turned_into_a_palette_is_noticed(tmp_path: Path) -> None:
    save(tmp_path / "masks" / "a.png", [[0, 1, 2]], "P", palette=[0, 0, 0, 1, 1, 1, 3, 3, 3])
    with pytest.raises(LabelError, match="pixel value 2 has the grey 3 in the palette"):
        MASK_PALETTE.read(tmp_path, ReadOptions(class_names=("p", "q", "r")), None)


def test_an_inverted_palette_is_noticed(tmp_path: Path) -> None:
    save(tmp_path / "masks" / "p" / "a.png", [[0, 1]], "P", palette=[255, 255, 255, 0, 0, 0])
    with pytest.raises(LabelError, match="number 0 of the palette is white"):
        MASK_BINARY.read(tmp_path, OPTIONS, None)
    save(tmp_path / "masks" / "p" / "a.png", [[0, 1]], "P", palette=[0, 0, 0, 255, 255, 255])
    assert labels_of(MASK_BINARY.read(tmp_path, OPTIONS, None)) == {"a.png": {"p": "2 1"}}


# Links -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["masks/b.png", "masks/sub", "masks"])
def test_links_are_not_followed_out_and_their_images_are_not_clean(
    tmp_path: Path, link: str
) -> None:
    save(tmp_path / "elsewhere" / "b.png", [[1]])
    data = tmp_path / "data"
    photo(data / "images" / "b.jpg", (1, 1))
    if link != "masks":
        save(data / "masks" / "a.png", [[1]])
        photo(data / "images" / "a.jpg", (1, 1))
    target = tmp_path / "elsewhere" / ("b.png" if link.endswith(".png") else "")
    (data / link).symlink_to(target)
    with pytest.raises(LabelError, match="link"):
        MASK_INDEX.read(data, OPTIONS, None)
    if link != "masks":
        errors: list[LabelError] = []
        read = MASK_INDEX.read(data, ReadOptions(unlisted_are_clean=True), errors)
        assert len(errors) == 1
        assert read.refused == {"b.jpg"}
        assert read.frames.keys() == {"a.jpg"}


# Writing -----------------------------------------------------------------------------------------

SIZES = st.tuples(st.integers(1, 19), st.integers(1, 11))
IMAGE_NAMES = ("x/b.jpg", "a.png", "train/00 1.jpeg", "x/b.c.jpg", "no suffix", "a_mask.png")


@st.composite
def label_sets(draw: st.DrawFn) -> LabelSet:
    names = draw(st.permutations(IMAGE_NAMES))[: draw(st.integers(1, 4))]
    masks, sizes = {}, {}
    for image in names:
        width, height = sizes[image] = draw(SIZES)
        present = draw(st.lists(st.sampled_from(["a", "b_c", "2"]), unique=True, max_size=3))
        share = draw(st.sampled_from([0.02, 0.5, 0.98]))
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        drawn = {c: rng.random((height, width)) < share for c in present}
        masks[image] = {c: m for c, m in drawn.items() if m.any()}
    return label_set_of(masks, sizes)


def without_overlap(labels: LabelSet) -> dict[str, dict[str, str]]:
    """What numbers can hold: the later class stays. A naive loop over classes from the end."""
    held: dict[str, dict[str, str]] = {}
    for image, frame in labels.frames.items():
        assert frame.size_wh is not None
        taken = np.zeros(frame.size_wh[::-1], np.bool_)
        held[image] = {}
        for class_id in reversed(labels.class_ids):
            mask = decode_rle(frame.rle_by_class.get(class_id, ""), frame.size_wh) & ~taken
            taken |= mask
            if mask.any():
                held[image][class_id] = encode_rle(mask)
    return held


def check_identity(root: Path, labels: LabelSet, label_format: LabelFormat) -> None:
    assert label_format.write is not None
    root.mkdir()
    assert label_format.write(labels, root, Placement.LEAVE) == {}
    for claimant in FORMATS:
        claims = claimant.recognise(root) is not None
        assert claims == (claimant is label_format)
    read = label_format.read(root, OPTIONS, None)
    binary = label_format is MASK_BINARY
    assert labels_of(read) == (labels_of(labels) if binary else without_overlap(labels))
    assert list(read.frames) == list(labels.frames)
    assert read.classes == labels.classes
    assert [f.size_wh for f in read.frames.values()] == [f.size_wh for f in labels.frames.values()]
    order = {c: i for i, c in enumerate(read.class_ids)}
    for frame in read.frames.values():
        assert list(frame.rle_by_class) == sorted(frame.rle_by_class, key=order.__getitem__)


@given(labels=label_sets())
@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("label_format", FORMATS, ids=lambda f: f.name)
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, label_format: LabelFormat, labels: LabelSet
) -> None:
    check_identity(tmp_path_factory.mktemp("masks") / "out", labels, label_format)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@given(labels=label_sets())
@settings(max_examples=3_334, deadline=None)
@pytest.mark.parametrize("label_format", FORMATS, ids=lambda f: f.name)
def test_what_is_written_reads_back_10_000_times(
    tmp_path_factory: pytest.TempPathFactory, label_format: LabelFormat, labels: LabelSet
) -> None:
    check_identity(tmp_path_factory.mktemp("masks") / "out", labels, label_format)


def drawn() -> LabelSet:
    """Two types that overlap on one pixel, a hole, and a clean frame."""
    ring = np.ones((3, 3), np.bool_)
    ring[1, 1] = False
    corner = np.zeros((3, 3), np.bool_)
    corner[0, :2] = True
    masks = {"z/r.jpg": {"a": ring, "b_c": corner}, "c.jpg": {}}
    return label_set_of(masks, {"z/r.jpg": (3, 3), "c.jpg": (5, 2)})


def test_the_files_as_pillow_sees_them(tmp_path: Path) -> None:
    for label_format in FORMATS:
        (tmp_path / label_format.name).mkdir()
        label_format.write(drawn(), tmp_path / label_format.name, Placement.LEAVE)  # type: ignore[misc]
    numbers = [[2, 2, 1], [1, 0, 1], [1, 1, 1]]
    with Image.open(tmp_path / "mask-index" / "masks" / "z" / "r.png") as image:
        assert (image.mode, np.array(image).tolist()) == ("L", numbers)
    with Image.open(tmp_path / "mask-palette" / "masks" / "z" / "r.png") as image:
        assert (image.mode, np.array(image).tolist()) == ("P", numbers)
        assert np.array(image.convert("RGB"))[0, :].tolist() == [[0, 128, 0]] * 2 + [[128, 0, 0]]
    binary = tmp_path / "mask-binary"
    for folder, rows in (
        ("a", [[1, 1, 1], [1, 0, 1], [1, 1, 1]]),
        ("b_c", [[1, 1, 0], [0] * 3, [0] * 3]),
    ):
        with Image.open(binary / "masks" / folder / "z" / "r.png") as image:
            assert np.array(image.convert("L")).tolist() == [[255 * v for v in row] for row in rows]
    files = sorted(p.relative_to(binary).as_posix() for p in binary.rglob("*") if p.is_file())
    assert files == [
        "classes.txt",
        "images.txt",
        "masks/a/c.png",
        "masks/a/z/r.png",
        "masks/b_c/z/r.png",
    ]
    assert (binary / "classes.txt").read_text() == "a\nb c\n2\n"
    assert (binary / "images.txt").read_text() == "z/r.jpg\nc.jpg\n"


@pytest.mark.parametrize("label_format", FORMATS, ids=lambda f: f.name)
def test_the_same_labels_give_the_same_bytes(tmp_path: Path, label_format: LabelFormat) -> None:
    content = []
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        label_format.write(drawn(), tmp_path / name, Placement.LEAVE)  # type: ignore[misc]
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        content.append([(p.relative_to(tmp_path / name), p.read_bytes()) for p in files])
    assert content[0] == content[1]


@pytest.mark.parametrize("placement", [Placement.COPY, Placement.LINK])
def test_images_are_placed_beside_the_masks(tmp_path: Path, placement: Placement) -> None:
    labels = drawn()
    photo(tmp_path / "in" / "z" / "r.jpg", (3, 3))
    paths = {"z/r.jpg": tmp_path / "in" / "z" / "r.jpg"}
    labels = LabelSet("test", labels.source, labels.classes, labels.frames, paths)
    (tmp_path / "out").mkdir()
    MASK_INDEX.write(labels, tmp_path / "out", placement)  # type: ignore[misc]
    read = MASK_INDEX.read(tmp_path / "out", OPTIONS, None)
    assert list(read.image_paths) == ["z/r.jpg"]
    assert list(read.frames) == ["z/r.jpg", "c.jpg"]


def test_many_types(tmp_path: Path) -> None:
    names = tuple(str(i) for i in range(300))
    masks = {"a.png": {"254": np.eye(2, dtype=np.bool_), "299": ~np.eye(2, dtype=np.bool_)}}
    labels = label_set_of(masks, {"a.png": (2, 2)}, names)
    for label_format in (MASK_INDEX, MASK_BINARY):
        check_identity(tmp_path / label_format.name, labels, label_format)
    with pytest.raises(InputError, match="300 types, expected at most 255"):
        MASK_PALETTE.write(labels, tmp_path, Placement.LEAVE)  # type: ignore[misc]


def test_without_types_every_frame_is_clean(tmp_path: Path) -> None:
    labels = label_set_of({"x/a.png": {}, "b.png": {}}, {"x/a.png": (3, 2), "b.png": (1, 1)}, ())
    for label_format in (MASK_INDEX, MASK_PALETTE):
        check_identity(tmp_path / label_format.name, labels, label_format)
    (tmp_path / "binary").mkdir()
    MASK_BINARY.write(labels, tmp_path / "binary", Placement.LEAVE)  # type: ignore[misc]
    read = MASK_BINARY.read(tmp_path / "binary", OPTIONS, None)
    assert labels_of(read) == {"x/a.png": {}, "b.png": {}}
    assert read.classes == ()


@pytest.mark.parametrize(
    ("frames", "names", "said"),
    [
        ([FrameLabels("a.jpg", {}, (1, 1)), FrameLabels("a.png", {}, (1, 1))], "x", "share a mask"),
        ([FrameLabels("a.jpg", {}, None)], "x", "its size is not known"),
        ([FrameLabels("a.jpg", {}, (1, 1), ("x",))], "x", "whose place is unknown"),
        ([FrameLabels("a.jpg", {}, (1, 1), disputed=True)], "x", "disputed"),
        ([FrameLabels("a.jpg", {"y": "1 1"}, (1, 1))], "x", "the type 'y', expected one of 'x'"),
        ([FrameLabels("a.jpg", {"x": "2 1"}, (1, 1))], "x", "ends past the 1 pixels"),
        ([FrameLabels("../a.jpg", {}, (1, 1))], "x", "'../a.jpg'"),
        ([FrameLabels(".a.jpg", {}, (1, 1))], "x", "a dot or blank in front"),
        ([FrameLabels("a.jpg ", {}, (1, 1))], "x", "a blank at the end"),
        ([FrameLabels("a.jpg", {}, (1, 1))], "Background", "keeps for the pixel value 0"),
        ([FrameLabels("n" * 300, {}, (1, 1))], "x", "cannot be written"),
    ],
)
def test_nothing_is_written_that_would_not_read_back(
    tmp_path: Path, frames: list[FrameLabels], names: str, said: str
) -> None:
    labels = LabelSet("t", Path("src"), classes_of([names]), {f.image: f for f in frames})
    with pytest.raises(InputError) as caught:
        MASK_INDEX.write(labels, tmp_path, Placement.LEAVE)  # type: ignore[misc]
    assert said in str(caught.value)


# Recognising -------------------------------------------------------------------------------------


def claims(path: Path) -> list[str]:
    return [label_format.name for label_format in FORMATS if label_format.recognise(path)]


def test_each_folder_is_claimed_once(tmp_path: Path) -> None:
    assert claims(tmp_path) == []
    save(tmp_path / "i" / "masks" / "a.png", [[0, 0]])
    save(tmp_path / "i" / "masks" / "b.png", [[0, 1]])
    save(tmp_path / "v" / "masks" / "a.png", [[0, 255]])
    save(tmp_path / "v" / "masks" / "b.png", [[1, 255]])
    save(tmp_path / "p" / "masks" / "a.png", [[0, 1]], "P")
    save(tmp_path / "b" / "masks" / "a.png", [[0, 255]])
    save(tmp_path / "f" / "masks" / "crack" / "a.png", [[0, 1]])
    save(tmp_path / "s" / "annotations" / "training" / "a.png", [[0, 1]])
    save(tmp_path / "c" / "masks" / "a.png", [[0, 1]], "RGB")
    save(tmp_path / "m" / "ground_truth" / "crack" / "a_mask.png", [[0, 255]])
    save(tmp_path / "m" / "masks" / "a.png", [[0, 255]])
    (tmp_path / "y" / "labels").mkdir(parents=True)
    (tmp_path / "y" / "labels" / "a.txt").write_text("0 0.5 0.5 0.1 0.1")
    (tmp_path / "d" / "masks").mkdir(parents=True)
    (tmp_path / "d" / "masks" / "a.png").write_bytes(b"damaged")
    found = {path.name: claims(path) for path in tmp_path.iterdir()}
    index, palette, binary = ([f.name] for f in FORMATS)
    assert found == {
        "i": index, "v": index, "p": palette, "b": binary, "f": binary, "s": index, "c": index,
        "m": [], "y": [], "d": index,
    }  # fmt: skip


# Real data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder", "frames", "types"),
    [("neu900", "masks", 900, 3), ("neu_seg_leak", "annotations", 348, 1)],
)
def test_real_masks_read_as_pillow_reads_them(
    shared_dir: Path, name: str, folder: str, frames: int, types: int
) -> None:
    root = shared_dir / "data" / name
    assert claims(root) == ["mask-index"]
    read = MASK_INDEX.read(root, OPTIONS, None)
    assert len(read.frames) == len(read.image_paths) == frames
    assert read.class_ids == tuple(str(n) for n in range(1, types + 1))
    for image, frame in read.frames.items():
        with Image.open((root / folder / image).with_suffix(".png")) as mask:
            values = np.array(mask)
        masks = {c: decode_rle(rle, (200, 200)) for c, rle in frame.rle_by_class.items()}
        again = sum((m * int(c) for c, m in masks.items()), np.zeros((200, 200), int))
        assert np.array_equal(again, values)
        assert frame.size_wh == (200, 200)
        assert frame.split == {"training": "train", "test": "test"}.get(image.split("/")[0])


@pytest.mark.parametrize("label_format", FORMATS, ids=lambda f: f.name)
def test_real_severstal_labels_survive(
    shared_dir: Path, tmp_path: Path, label_format: LabelFormat
) -> None:
    """Every 60th of the 5,186 frames; no two types share a pixel there."""
    published = read_csv(shared_dir / "data" / "severstal" / "train_partial.csv")
    frames = {
        image: FrameLabels(image, frame.rle_by_class, (1600, 256))
        for image, frame in list(published.items())[::60]
    }
    labels = LabelSet("severstal", Path("train.csv"), classes_of("1234"), frames)
    label_format.write(labels, tmp_path, Placement.LEAVE)  # type: ignore[misc]
    read = label_format.read(tmp_path, OPTIONS, None)
    assert labels_of(read) == labels_of(labels)
    assert list(read.frames) == list(frames)
