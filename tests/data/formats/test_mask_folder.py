import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from steelsight.data.formats.mask_folder import (
    MASK_BINARY,
    MASK_INDEX,
    MASK_PALETTE,
    encode_png,
    read_mask_values,
    voc_palette,
)
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


# One file ----------------------------------------------------------------------------------------

NUMBERS = np.arange(35, dtype=np.uint8).reshape(5, 7)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA"])
@pytest.mark.parametrize("compress_level", [1, 9])
def test_stored_numbers_are_read_whatever_the_mode(
    tmp_path: Path, mode: str, compress_level: int
) -> None:
    path = save(tmp_path / "m.png", NUMBERS, mode, compress_level=compress_level)
    assert np.array_equal(read_mask_values(path, (7, 5)), NUMBERS)


@pytest.mark.parametrize(("colours", "bits"), [(2, 1), (4, 2), (16, 4), (256, 8)])
@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 9, 33])
def test_packed_palette_numbers_are_read(
    tmp_path: Path, colours: int, bits: int, width: int
) -> None:
    rng = np.random.default_rng(width)
    values = rng.integers(0, colours, (5, width)).astype(np.uint8)
    palette = rng.integers(0, 256, 3 * colours).tolist()
    path = save(tmp_path / "m.png", values, "P", palette=palette, bits=bits)
    assert path.read_bytes()[24] == bits
    assert np.array_equal(read_mask_values(path), values)


def test_sixteen_and_one_bits_are_read(tmp_path: Path) -> None:
    values = np.array([[0, 1, 255], [256, 257, 65535]], np.uint16)
    read = read_mask_values(save(tmp_path / "m.png", values, "I;16"))
    assert read.dtype == np.uint16
    assert np.array_equal(read, values)
    bits = np.random.default_rng(0).integers(0, 2, (4, 13)).astype(np.uint8)
    Image.fromarray(bits * np.uint8(255)).convert("1").save(tmp_path / "b.png")
    assert np.array_equal(read_mask_values(tmp_path / "b.png"), bits)


@pytest.mark.parametrize("filtering", range(5))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_png_filter_is_undone(tmp_path: Path, filtering: int, channels: int) -> None:
    """Against the filters as the PNG specification (section 9) defines them, in a naive loop."""
    values = np.random.default_rng(filtering).integers(0, 256, (6, 5)).astype(np.uint8)
    rows = np.repeat(values, channels, axis=1).astype(int)
    lines = b""
    for y, row in enumerate(rows):
        line = [filtering]
        for x, value in enumerate(row):
            a = int(row[x - channels]) if x >= channels else 0
            b = int(rows[y - 1][x]) if y else 0
            c = int(rows[y - 1][x - channels]) if y and x >= channels else 0
            paeth = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            line.append((int(value) - (0, a, b, (a + b) // 2, paeth)[filtering]) % 256)
        lines += bytes(line)
    path = tmp_path / "m.png"
    path.write_bytes(png(5, 6, 8, 0 if channels == 1 else 2, lines))
    assert np.array_equal(read_mask_values(path), values)


def chunk(kind: bytes, payload: bytes) -> bytes:
    return (
        struct.pack(">I", len(payload))
        + kind
        + payload
        + struct.pack(">I", zlib.crc32(kind + payload))
    )


def png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    lines: bytes,
    *extra: bytes,
    interlaced: int = 0,
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    parts = (chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(lines)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def encoded(format_name: str, mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (4, 3), 1).save(buffer, format_name)
    return buffer.getvalue()


GOOD = encode_png(np.ones((3, 4), np.uint8), 8)
ORIENTED = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "received a file that begins with ''"),
        (encoded("JPEG"), "received a JPEG, whose compression smears"),
        (encoded("BMP"), "received a file that begins with '42 4d"),
        (encoded("TIFF"), "export the masks as PNG"),
        (GOOD[:-1], "ends"),
        (GOOD[:40], "ends"),
        (GOOD[:9], "ends"),
        (GOOD[:50] + bytes([GOOD[50] ^ 1]) + GOOD[51:], "checksum of chunk IDAT"),
        (GOOD + GOOD, "a second image follows"),
        (png(4, 3, 8, 0, b"\0\1\1\1\1" * 2), "pixel data end early"),
        (png(4, 3, 8, 0, b"\0\1\1\1\1" * 4), "more pixel data"),
        (png(4, 3, 8, 0, b"\7\1\1\1\1" * 3), "damaged"),
        (png(60000, 60000, 8, 0, b""), "the mask is 60000 x 60000, expected 1 to 268,435,456"),
        (png(16384, 16384, 8, 6, b""), "the mask is 16384 x 16384"),
        (png(0, 3, 8, 0, b""), "the mask is 0 x 3"),
        (png(2**31, 2**31, 1, 0, b""), "the mask is 2147483648 x"),
        (png(3, 4, 8, 0, b"\0\1\1\1" * 4), "the mask is 3 x 4, expected the image's 4 x 3"),
        (png(4, 3, 2, 0, b"\0\1" * 3), "2-bit grey, which some programs scale"),
        (png(4, 3, 4, 0, b"\0\1\1" * 3), "4-bit grey"),
        (png(4, 3, 16, 2, b""), "PNG colour type 2 with 16 bits"),
        (png(4, 3, 8, 5, b""), "PNG colour type 5"),
        (png(4, 3, 3, 0, b""), "PNG colour type 0 with 3 bits"),
        (png(4, 3, 8, 0, b"\0\1\1\1\1" * 3, interlaced=1), "interlaced"),
        (png(4, 3, 8, 0, b"\0\1\1\1\1" * 3, chunk(b"acTL", b"\0" * 8)), "animated"),
        (png(4, 3, 8, 0, b"\0\1\1\1\1" * 3, chunk(b"eXIf", ORIENTED)), "EXIF orientation"),
        (png(4, 3, 8, 3, b"\0\1\1\1\1" * 3), "in a palette of 0 colours"),
        (png(4, 3, 8, 3, b"\0\1\1\1\1" * 3, chunk(b"PLTE", b"\0" * 3)), "in a palette of 1 c"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b"") + chunk(b"IEND", b""), "not begin with its h"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"123") + chunk(b"IEND", b""), "damaged PNG"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""), "not begin with its header"),
        (b"\x89PNG\r\n\x1a\n", "ends"),
        (png(4, 3, 8, 2, b"\0\1\1\1\1\1\1\1\1\1\1\1\2" * 3), "the colour (1, 1, 2) at row 0, col"),
        (png(4, 3, 8, 4, b"\0\1\1\1\1\1\1\1\1" * 3), "transparent"),
    ],
)
def test_a_file_that_is_no_certain_mask_is_refused(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "m.png"
    path.write_bytes(content)
    with pytest.raises(LabelError) as caught:
        read_mask_values(path, (4, 3))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert said in message
    assert "\n" not in message
    assert len(message) < 300 + len(str(path))


def test_no_cut_and_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    values = (np.arange(100).reshape(10, 10) // 10).astype(np.uint8)
    path = save(tmp_path / "m.png", values)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(LabelError):
            read_mask_values(path)
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(LabelError):
            read_mask_values(path)


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    path.write_bytes(png(4, 3, 8, 0, b"\0" * 50_000_000))
    with pytest.raises(LabelError, match="more pixel data"):
        read_mask_values(path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "missing"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(LabelError, match=r"m\.png: "):
        read_mask_values(path)


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_pillow_reads_what_is_written(tmp_path: Path, bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 1 << bits, (9, 13))
    mask = values.astype(np.uint16) if bits == 16 else values.astype(np.uint8)
    with Image.open(io.BytesIO(encode_png(mask, bits))) as image:
        assert image.mode == {1: "1", 8: "L", 16: "I;16"}[bits]
        assert np.array_equal(np.array(image), mask)
    numbers = (values % 256).astype(np.uint8)
    with Image.open(io.BytesIO(encode_png(numbers, 8, voc_palette(256)))) as image:
        assert image.mode == "P"
        assert np.array_equal(np.array(image), numbers)


def test_the_palette_is_that_of_pascal_voc() -> None:
    """The published colours of VOC2012's 20 classes, and its void colour at 255."""
    colours = np.frombuffer(voc_palette(256), np.uint8).reshape(-1, 3).tolist()
    assert colours[:5] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert colours[15] == [192, 128, 128]
    assert colours[20] == [0, 64, 128]
    assert colours[255] == [224, 224, 192]
    assert len(set(map(tuple, colours))) == 256


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
