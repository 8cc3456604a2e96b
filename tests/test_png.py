"""PNG as written, taken apart and refused; pixels through Pillow, which has its own reader.

More damage, and each kind of pixels, is in ``test_imaging.py`` and ``test_mask_png.py``.
"""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image

from steelsight.defects import Reason
from steelsight.errors import DecodeError
from steelsight.png import (
    PNG_SIGNATURE,
    Colours,
    PngHeader,
    _deflated_runs,
    encode_png,
    encode_png_part,
    parse_png,
    plain_png,
    voc_palette,
)


def by_pillow(image: NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", **options)
    return buffer.getvalue()


def chunk(kind: bytes, payload: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + payload))
    return struct.pack(">I", len(payload)) + kind + payload + checksum


def ihdr(width: int, height: int, depth: int, colours: int, interlaced: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlaced))


def random_rows(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(len(shape)).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3), (7, 5, 4)])
def test_samples_are_the_pixels(shape: tuple[int, ...]) -> None:
    pixels = random_rows(*shape)
    png = parse_png(by_pillow(pixels))
    assert (png.header.width, png.header.height, png.header.depth) == (5, 7, 8)
    np.testing.assert_array_equal(png.samples(), pixels)


def test_sixteen_bits_are_filtered_by_pixel() -> None:
    values = random_rows(9, 22).view(np.uint16)
    assert np.array_equal(parse_png(by_pillow(values)).samples(), values)


def test_what_is_not_compressed_is_the_same_picture() -> None:
    pixels = random_rows(7, 5)
    png = parse_png(by_pillow(pixels))
    plain = plain_png(png.header, png.lines())
    with Image.open(io.BytesIO(plain)) as image:
        np.testing.assert_array_equal(np.array(image), pixels)


def test_the_bytes_of_interlaced_lines() -> None:
    """As table of pass sizes of an 8 x 8 picture in the specification (section 8.1)."""
    sizes = [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)]
    header = PngHeader(8, 8, 8, Colours.RGB, interlaced=1)
    assert header.line_bytes == sum(h * (1 + 3 * w) for w, h in sizes)
    # One column: passes without a column have no lines either.
    assert PngHeader(1, 8, 1, Colours.GREY, interlaced=1).line_bytes == 2 * 8


PIXELS = chunk(b"IDAT", zlib.compress(b"\0\1\1"))
END = chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("chunks", "reason", "said"),
    [
        ((ihdr(2, 1, 8, 0), PIXELS), Reason.TRUNCATED, "before its end chunk"),
        ((PIXELS, END), Reason.DECODE_FAILED, "does not begin with its header"),
        ((ihdr(2, 1, 8, 0), ihdr(2, 1, 8, 0), PIXELS, END), Reason.DECODE_FAILED, "its header"),
        ((ihdr(2, 1, 8, 0), chunk(b"CgBI", b""), END), Reason.UNSUPPORTED_FORMAT, "foreign chunk"),
        ((ihdr(2, 1, 8, 0), b"\0" * 12, END), Reason.DECODE_FAILED, "no chunk at byte 33"),
        ((ihdr(2, 1, 8, 1), PIXELS, END), Reason.DECODE_FAILED, "colour type 1"),
        ((ihdr(2, 1, 8, 0, 1), PIXELS, END), Reason.UNSUPPORTED_PIXELS, "8 bits, interlaced"),
        ((ihdr(2, 1, 16, 2), PIXELS, END), Reason.UNSUPPORTED_PIXELS, "received 16 bits"),
        ((ihdr(2, 1, 0, 0), PIXELS, END), Reason.UNSUPPORTED_PIXELS, "received 0 bits"),
        ((ihdr(3, 1, 8, 0), PIXELS, END), Reason.TRUNCATED, "end early"),
        ((ihdr(1, 1, 8, 0), PIXELS, END), Reason.DECODE_FAILED, "more pixel data"),
        (
            (ihdr(2, 1, 8, 0), chunk(b"IDAT", zlib.compress(b"\5\1\1")), END),
            Reason.DECODE_FAILED,
            "filter 5",
        ),
        (
            (ihdr(2, 1, 8, 0), chunk(b"IDAT", b"no stream"), END),
            Reason.DECODE_FAILED,
            "damaged PNG: Error",
        ),
        (
            (ihdr(2, 1, 8, 0), PIXELS, END, PNG_SIGNATURE),
            Reason.MULTIPLE_FRAMES,
            "a second image follows",
        ),
    ],
)
def test_what_is_refused(chunks: tuple[bytes, ...], reason: Reason, said: str) -> None:
    with pytest.raises(DecodeError, match=said) as caught:
        parse_png(PNG_SIGNATURE + b"".join(chunks)).samples()
    assert caught.value.reason is reason


def test_bytes_behind_the_image_are_noted() -> None:
    whole = PNG_SIGNATURE + ihdr(2, 1, 8, 0) + PIXELS + END
    assert parse_png(whole).notes == ()
    assert parse_png(whole + bytes(3)).notes == (
        "3 padding bytes after the end of the image ignored",
    )
    assert "other bytes" in parse_png(whole + b"abc").notes[0]


def test_runs_become_small_files() -> None:
    mask = np.zeros((256, 1600), np.uint8)
    mask[50:200, 300:420] = 3
    assert len(encode_png(mask, 8)) < 1500


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_pillow_reads_what_is_written(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 1 << bits, (9, 13))
    mask = values.astype(np.uint16) if bits == 16 else values.astype(np.uint8)
    with Image.open(io.BytesIO(encode_png(mask, bits))) as image:
        assert image.mode == {1: "1", 8: "L", 16: "I;16"}[bits]
        assert np.array_equal(np.array(image), mask)
    numbers = (values % 256).astype(np.uint8)
    with Image.open(io.BytesIO(encode_png(numbers, 8, voc_palette(256)))) as image:
        assert image.mode == "P"
        assert np.array_equal(np.array(image), numbers)


@given(
    arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40)),
    st.integers(1, 255),
    st.booleans(),
    st.integers(0, 700),
    st.integers(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_runs_are_written_as_the_picture_that_they_are(
    mask: NDArray[np.bool_], value: int, wide: bool, left: int, right: int
) -> None:
    if wide:  # runs over several of the longest matches, and every length of the last one
        mask = np.repeat(mask, 1 + 37 * value, axis=1)[:, :4000]
    part = mask.astype(np.uint8) * np.uint8(value)
    written = encode_png_part(part, left, left + part.shape[1] + right)
    expected = np.pad(part, ((0, 0), (left, right)))
    with Image.open(io.BytesIO(written)) as image:
        assert np.array_equal(np.array(image), expected)
    assert np.array_equal(parse_png(written).samples(), expected)  # and zlib, with its checksum


@pytest.mark.parametrize("length", range(1, 1050))
def test_a_run_of_any_length(length: int) -> None:
    written = encode_png_part(np.full((1, length), 200, np.uint8), 5, 1100)
    expected = [[0] * 5 + [200] * length + [0] * (1095 - length)]
    assert parse_png(written).samples().tolist() == expected


def test_the_largest_checksum() -> None:
    """Sums of a picture of 16,384 x 16,384 do not fit into 64 bits unless they are kept small."""
    size = 1 << 28
    lines = _deflated_runs(np.array([0]), np.array([255]), size)
    expected = 1
    for _ in range(16):
        expected = zlib.adler32(b"\xff" * (size // 16), expected)
    assert int.from_bytes(lines[-4:]) == expected


def test_a_picture_of_any_numbers() -> None:
    values = random_rows(40, 300)
    assert np.array_equal(parse_png(encode_png_part(values, 0, 300)).samples(), values)
    few = (values < 40).astype(np.uint8) * (1 + values % 3)
    assert np.array_equal(parse_png(encode_png_part(few, 0, 300)).samples(), few)


def test_a_picture_of_zeros() -> None:
    for part in (np.zeros((256, 0), np.uint8), np.zeros((256, 1600), np.uint8)):
        assert not parse_png(encode_png_part(part, 0, 1600)).samples().any()


def test_runs_with_a_palette() -> None:
    part = np.array([[0, 0, 3, 3], [3, 3, 3, 0]], np.uint8)
    written = encode_png_part(part, 0, 4, voc_palette(256))
    with Image.open(io.BytesIO(written)) as image:
        assert image.mode == "P"
        assert np.array(image).tolist() == [[0, 0, 3, 3], [3, 3, 3, 0]]


def test_the_palette_is_that_of_pascal_voc() -> None:
    """The published colours of VOC2012's 20 classes, and its void colour at 255."""
    colours = np.frombuffer(voc_palette(256), np.uint8).reshape(-1, 3).tolist()
    assert colours[:5] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert colours[15] == [192, 128, 128]
    assert colours[20] == [0, 64, 128]
    assert colours[255] == [224, 224, 192]
    assert len(set(map(tuple, colours))) == 256
