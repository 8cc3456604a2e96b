"""One mask file: what is read, as stored, and what is refused."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from steelsight.data.formats.mask_png import read_mask_values
from steelsight.errors import LabelError
from steelsight.png import encode_png


def save(path: Path, rows: NDArray[Any], mode: str = "L", **options: Any) -> Path:
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
