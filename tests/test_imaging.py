"""What is accepted as a frame, and the long list of what is not."""

import hashlib
import io
import os
import random
import resource
import socket
import struct
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from steelsight.defects import Reason
from steelsight.errors import DecodeError, InputError
from steelsight.imaging import (
    IMAGE_SUFFIXES,
    DecodePolicy,
    Frame,
    Stitcher,
    blend_weights,
    decode,
    from_array,
    mask_probabilities,
    pad_to_multiple,
    read_bytes,
    read_file,
    read_size_wh,
    steel_columns,
    tile_plan,
)

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def steel(height: int = 48, width: int = 80) -> npt.NDArray[np.uint8]:
    """A textured plate, different in every corner, so that no rotation or shift goes unnoticed."""
    rows, columns = np.mgrid[:height, :width]
    noise = np.random.default_rng(7).integers(0, 40, (height, width))
    return (rows * 2 + columns + noise).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image | npt.NDArray[Any], fmt: str, **options: Any) -> bytes:
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def chunk(kind: bytes, payload: bytes) -> bytes:
    body = kind + payload
    return struct.pack(">I", len(payload)) + body + struct.pack(">I", zlib.crc32(body))


def png(
    width: int, height: int, depth: int, colour: int, stream: bytes, extra: bytes = b""
) -> bytes:
    """A PNG with exactly these parts: what no ordinary writer would produce, with right CRCs."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", stream) + chunk(b"IEND", b"")
    return PNG_SIGNATURE + body


def png_rows(pixels: npt.NDArray[Any]) -> bytes:
    """Compressed scan lines without filter; 16-bit values big-endian."""
    rows = pixels.astype(">u2" if pixels.dtype == np.uint16 else np.uint8)
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))


def tiff(tags: dict[int, int | tuple[int, ...]], data: bytes) -> bytes:
    """A little-endian TIFF with these LONG tags; ``data`` begins at byte 8."""
    at = 8 + len(data) + len(data) % 2
    far = b""
    entries = b""
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            offset = at + 2 + 12 * len(tags) + 4 + len(far)
            far += packed
            packed = struct.pack("<I", offset)
        entries += struct.pack("<HHI", tag, 4, len(values)) + packed
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + far
    return b"II*\0" + struct.pack("<I", at) + data.ljust(at - 8, b"\0") + directory


def grey_tiff_tags(height: int = 4, width: int = 6, **changed: int) -> dict[int, Any]:
    tags: dict[int, Any] = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1}
    tags |= {278: height, 279: height * width}
    return tags | {int(tag[1:]): value for tag, value in changed.items()}


def bmp(bits: int, palette: bytes, rows: bytes, width: int, height: int, method: int = 0) -> bytes:
    colours = len(palette) // 4
    info = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, method, len(rows), 0, 0, colours, 0
    )
    offset = 14 + len(info) + len(palette)
    head = struct.pack("<2sIHHI", b"BM", offset + len(rows), 0, 0, offset)
    return head + info + palette + rows


def refusal(call: Callable[[], object]) -> Reason:
    """The reason, after checking that the text is one line that an operator can read."""
    with pytest.raises(DecodeError) as caught:
        call()
    text = str(caught.value)
    assert 10 < len(text) < 300
    assert text.isprintable()
    return caught.value.reason


def jpeg_segment_end(data: bytes, marker: int) -> int:
    start = data.index(bytes((0xFF, marker)))
    return start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")


JPEG = encoded(steel(), "jpeg", quality=90)
PROGRESSIVE = encoded(np.dstack([steel()] * 3), "jpeg", quality=90, progressive=True)
GREY_PNG = encoded(steel(), "png")
VALID: dict[str, bytes] = {
    "jpeg": JPEG,
    "progressive": PROGRESSIVE,
    "png": GREY_PNG,
    "bmp": encoded(steel(), "bmp"),
    "tiff": encoded(steel(), "tiff"),
    "tiff-lzw": encoded(steel(), "tiff", compression="tiff_lzw"),
    "tiff-deflate": encoded(steel(), "tiff", compression="tiff_adobe_deflate"),
    "tiff-packbits": encoded(steel(), "tiff", compression="packbits"),
    "webp": encoded(steel(), "webp", lossless=True),
    "webp-lossy": encoded(np.dstack([steel()] * 3), "webp"),
}


# ------------------------------------------------------------------------------- accepted, exactly


@pytest.mark.parametrize("fmt", ["png", "bmp", "tiff", "tiff-lzw", "tiff-deflate", "tiff-packbits"])
def test_lossless_formats_return_the_exact_pixels(fmt: str) -> None:
    frame = decode(VALID[fmt])
    np.testing.assert_array_equal(frame.grey_hw, steel())
    assert frame.format == fmt.split("-")[0]
    assert frame.notes == ()
    assert frame.size_wh == (80, 48)


@pytest.mark.parametrize("fmt", sorted(VALID))
def test_frames_are_plain_writable_uint8(fmt: str) -> None:
    grey_hw = decode(memoryview(VALID[fmt])).grey_hw
    assert (grey_hw.shape, grey_hw.dtype) == ((48, 80), np.uint8)
    assert grey_hw.flags.c_contiguous
    assert grey_hw.flags.writeable


def test_sha256_is_that_of_the_bytes() -> None:
    assert decode(JPEG).sha256 == hashlib.sha256(JPEG).hexdigest()
    assert from_array(steel()).sha256 == hashlib.sha256(steel().tobytes()).hexdigest()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_grey_is_what_pillow_calls_grey(options: dict[str, Any], channels: int) -> None:
    pixels = steel() if channels == 1 else np.dstack([steel()] * 3)
    data = encoded(pixels, "jpeg", quality=80, **options)
    reference = Image.open(io.BytesIO(data))
    expected = np.asarray(reference.convert("L"))
    np.testing.assert_array_equal(decode(data).grey_hw, expected)
    np.testing.assert_array_equal(
        decode(data, policy=DecodePolicy(grey_only=True)).grey_hw, expected
    )


def test_real_frames_decode_like_pillow(shared_dir: Path) -> None:
    files = sorted((shared_dir / "data/severstal/images").glob("*.jpg"))[::25]
    assert files
    for file in files:
        grey_hw = read_file(file).grey_hw
        reference = Image.open(file)
        np.testing.assert_array_equal(grey_hw, np.asarray(reference)[..., 0])
        np.testing.assert_array_equal(grey_hw, np.asarray(reference.convert("L")))
        np.testing.assert_array_equal(
            grey_hw, read_file(file, policy=DecodePolicy(grey_only=True)).grey_hw
        )


def test_rgb_jpeg_without_luma_plane_is_converted_not_misread() -> None:
    colours = np.dstack([steel(), steel()[::-1], steel()[:, ::-1]])
    data = encoded(colours, "jpeg", quality=95, keep_rgb=True)
    assert simplejpeg.decode_jpeg_header(data)[2] == "RGB"
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
    assert np.abs(decode(data).grey_hw.astype(int) - expected).max() <= 1


def test_equal_channels_give_exactly_that_channel() -> None:
    every_level = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgb = np.dstack([every_level] * 3)
    np.testing.assert_array_equal(decode(encoded(rgb, "png")).grey_hw, every_level)
    np.testing.assert_array_equal(from_array(rgb).grey_hw, every_level)
    every_value = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(
        from_array(np.dstack([every_value] * 3)).grey_hw, from_array(every_value).grey_hw
    )


def test_colour_becomes_bt601_luma() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    for frame in (decode(encoded(rgb, "png")), from_array(rgb), decode(encoded(rgb, "bmp"))):
        assert np.abs(frame.grey_hw - luma).max() <= 0.51


def test_palette_bilevel_and_low_bit_depths() -> None:
    indices = np.arange(16, dtype=np.uint8).reshape(4, 4)
    palette = Image.fromarray(indices, "L").copy()
    palette.putpalette([v for level in range(16) for v in (level * 17, level * 17, level * 17)])
    for fmt in ("png", "tiff", "bmp"):
        np.testing.assert_array_equal(decode(encoded(palette, fmt)).grey_hw, indices * 17)
    bilevel = steel() > 100
    for fmt in ("png", "tiff", "bmp"):
        np.testing.assert_array_equal(decode(encoded(bilevel, fmt)).grey_hw, bilevel * 255)
    two_bits = png(4, 1, 2, 0, zlib.compress(b"\0" + bytes([0b00011011])))
    np.testing.assert_array_equal(decode(two_bits).grey_hw, [[0, 85, 170, 255]])


def test_interlaced_png() -> None:
    # One pass per pixel group of Adam7; 3 x 3 pixels use all passes but the second.
    pixels = np.arange(10, 19, dtype=np.uint8).reshape(3, 3)
    passes = [
        pixels[0:1, 0:1],
        pixels[0:1, 2:3],
        pixels[2:3, 0:3:2],
        pixels[0:3:2, 1:2],
        pixels[1:2],
    ]
    raw = b"".join(b"\0" + row.tobytes() for part in passes for row in part)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 3, 8, 0, 0, 0, 1))

    def build(stream: bytes) -> bytes:
        return PNG_SIGNATURE + header + chunk(b"IDAT", zlib.compress(stream)) + chunk(b"IEND", b"")

    np.testing.assert_array_equal(decode(build(raw)).grey_hw, pixels)
    assert refusal(lambda: decode(build(raw[:-4]))) is Reason.TRUNCATED


@pytest.mark.parametrize("fmt", ["png", "tiff", "webp"])
def test_opaque_alpha_is_dropped_and_transparency_refused(fmt: str) -> None:
    rgba = np.dstack([steel()] * 3 + [np.full_like(steel(), 255)])
    options = {"webp": {"lossless": True}}.get(fmt, {})
    frame = decode(encoded(rgba, fmt, **options))
    np.testing.assert_array_equal(frame.grey_hw, steel())
    if fmt != "webp":  # libwebp itself drops an opaque alpha channel when it writes
        assert frame.notes == ("opaque alpha channel dropped",)
    rgba[3, 4, 3] = 254
    data = encoded(rgba, fmt, **options)
    assert refusal(lambda: decode(data)) is Reason.UNSUPPORTED_PIXELS


def test_transparent_colours_are_refused_only_where_used() -> None:
    grey = steel()
    used, unused = int(grey[5, 5]), next(v for v in range(256) if v not in grey)
    data = encoded(grey, "png", transparency=unused)
    np.testing.assert_array_equal(decode(data).grey_hw, grey)
    data = encoded(grey, "png", transparency=used)
    assert refusal(lambda: decode(data)) is Reason.UNSUPPORTED_PIXELS


@pytest.mark.parametrize("depth", [1, 16])
def test_transparent_colours_in_other_png_are_refused(depth: int) -> None:
    row = zlib.compress(b"\0" + b"\xf0" * 16)
    data = png(8 * 16 // depth, 1, depth, 0, row, chunk(b"tRNS", b"\0\1"))
    assert refusal(lambda: decode(data)) is Reason.UNSUPPORTED_PIXELS


def test_grey_and_alpha_png() -> None:
    data = encoded(
        Image.merge("LA", [Image.fromarray(steel()), Image.new("L", (80, 48), 255)]), "png"
    )
    assert decode(data).notes == ("opaque alpha channel dropped",)
    np.testing.assert_array_equal(decode(data).grey_hw, steel())


# -------------------------------------------------------------------------------------- 16-bit


@pytest.mark.parametrize("fmt", ["png", "tiff"])
@pytest.mark.parametrize("bit_depth", [None, 16])
def test_16_bit_is_rounded_to_8(fmt: str, bit_depth: int | None) -> None:
    every_value = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(every_value.astype(np.float64) * 255 / 65535)
    policy = DecodePolicy(bit_depth=bit_depth)
    for frame in (
        decode(encoded(every_value, fmt), policy=policy),
        from_array(every_value, policy=policy),
    ):
        np.testing.assert_array_equal(frame.grey_hw, expected)
        assert frame.notes == ("16-bit pixels scaled to 8 bits",)


def test_big_endian_16_bit() -> None:
    values = steel().astype(np.uint16) * 257
    pixels = values.astype(">u2").tobytes()
    big_endian = Image.frombytes("I;16B", (80, 48), pixels)
    np.testing.assert_array_equal(decode(encoded(big_endian, "tiff")).grey_hw, steel())
    frame = from_array(values.astype(">u2"))
    np.testing.assert_array_equal(frame.grey_hw, steel())
    assert frame.sha256 == from_array(values).sha256


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_bits_in_a_16_bit_file_must_be_declared(bits: int) -> None:
    values = np.linspace(0, 2**bits - 1, 64).astype(np.uint16).reshape(8, 8)
    data = encoded(values, "png")
    assert refusal(lambda: decode(data)) is Reason.UNSUPPORTED_PIXELS
    assert refusal(lambda: from_array(values)) is Reason.UNSUPPORTED_PIXELS
    frame = decode(data, policy=DecodePolicy(bit_depth=bits))
    np.testing.assert_array_equal(
        frame.grey_hw, np.rint(values.astype(np.float64) * 255 / (2**bits - 1))
    )
    too_few = DecodePolicy(bit_depth=bits - 1)
    assert refusal(lambda: decode(data, policy=too_few)) is Reason.UNSUPPORTED_PIXELS


def test_a_dark_16_bit_frame_needs_the_declaration_too() -> None:
    values = np.full((4, 4), 2**14, np.uint16)
    assert from_array(values).grey_hw[0, 0] == 64
    values -= 1
    assert refusal(lambda: from_array(values)) is Reason.UNSUPPORTED_PIXELS
    assert from_array(values, policy=DecodePolicy(bit_depth=16)).grey_hw[0, 0] == 64


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png(2, 2, 16, 2, png_rows(np.full((2, 6), 60000, np.uint16))), id="png-rgb"),
        pytest.param(png(2, 2, 16, 4, png_rows(np.full((2, 4), 65535, np.uint16))), id="png-la"),
        pytest.param(
            tiff(
                grey_tiff_tags(2, 2) | {258: (16,) * 3, 262: 2, 277: 3, 279: 24},
                b"\xff" * 24,
            ),
            id="tiff-rgb",
        ),
    ],
)
def test_16_bit_colour_files_are_refused(data: bytes) -> None:
    assert np.asarray(Image.open(io.BytesIO(data))).dtype == np.uint8  # Pillow hides the depth
    assert refusal(lambda: decode(data)) is Reason.UNSUPPORTED_PIXELS


# ------------------------------------------------------------------------------------ orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["jpeg", "png", "webp", "tiff", "tiff-deflate"])
def test_orientation_is_applied_like_pillow_does(fmt: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options: dict[str, Any] = {"webp": {"lossless": True}}.get(fmt, {})
    if fmt == "tiff-deflate":
        options = {"compression": "tiff_adobe_deflate"}
    data = encoded(np.dstack([steel()] * 3), fmt.split("-")[0], exif=exif, **options)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    frame = decode(data)
    np.testing.assert_array_equal(frame.grey_hw, np.asarray(reference.convert("L")))
    assert frame.grey_hw.flags.c_contiguous
    expected = () if orientation == 1 else (f"turned as EXIF orientation {orientation} says",)
    assert frame.notes == expected


@pytest.mark.parametrize("orientation", [0, 9, 65535])
@pytest.mark.parametrize("fmt", ["jpeg", "png", "webp", "tiff"])
def test_impossible_orientations_are_noted_and_ignored(fmt: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    frame = decode(encoded(steel(), fmt, exif=exif))
    assert frame.grey_hw.shape == (48, 80)
    assert frame.notes == (f"EXIF orientation {orientation} does not exist and was ignored",)


def exif_orientation_segment(kind: int, value: int) -> bytes:
    entry = struct.pack("<HHHII", 1, 274, kind, 1, value)
    body = b"Exif\0\0II*\0\x08\0\0\0" + entry + bytes(4)
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_the_first_exif_block_counts_whatever_its_integer_type(kind: int) -> None:
    data = JPEG[:2] + exif_orientation_segment(kind, 3) + exif_orientation_segment(3, 6) + JPEG[2:]
    np.testing.assert_array_equal(decode(data).grey_hw, decode(JPEG).grey_hw[::-1, ::-1])


def test_an_orientation_that_is_no_integer_is_noted() -> None:
    frame = decode(JPEG[:2] + exif_orientation_segment(2, 6) + JPEG[2:])
    np.testing.assert_array_equal(frame.grey_hw, decode(JPEG).grey_hw)
    assert frame.notes == ("EXIF orientation 0 does not exist and was ignored",)


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0XX*\0\x08\0\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff"],
)
def test_unreadable_exif_turns_nothing(exif: bytes) -> None:
    frame = decode(encoded(steel(), "jpeg", quality=90, exif=exif))
    np.testing.assert_array_equal(frame.grey_hw, decode(JPEG).grey_hw)


# ---------------------------------------------------------------------------------- which format


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.EMPTY),
        (b"not an image, but a letter\n", Reason.NOT_AN_IMAGE),
        (b"BMW drives on steel, says this text file", Reason.NOT_AN_IMAGE),
        (bytes(1000), Reason.NOT_AN_IMAGE),
        (b"\xff\xd8", Reason.NOT_AN_IMAGE),
        (b"%PDF-1.7\n", Reason.NOT_AN_IMAGE),
        (encoded(steel(), "gif"), Reason.UNSUPPORTED_FORMAT),
        (encoded(steel(), "jpeg2000"), Reason.UNSUPPORTED_FORMAT),
        (encoded(np.dstack([steel()] * 3), "avif"), Reason.UNSUPPORTED_FORMAT),
        (encoded(steel(), "ico"), Reason.UNSUPPORTED_FORMAT),
        (encoded(steel(), "ppm"), Reason.UNSUPPORTED_FORMAT),
        (b"8BPS\0\1" + bytes(20), Reason.UNSUPPORTED_FORMAT),
        (b"v/1\x01" + bytes(20), Reason.UNSUPPORTED_FORMAT),
        (b"\0\0\0\x18ftypheic" + bytes(20), Reason.UNSUPPORTED_FORMAT),
        (b"II+\0\x08\0\0\0" + bytes(20), Reason.UNSUPPORTED_FORMAT),
    ],
)
def test_what_is_no_accepted_image(data: bytes, reason: Reason) -> None:
    assert refusal(lambda: decode(data)) is reason


@pytest.mark.parametrize(
    ("name", "fmt", "accepted"),
    [
        ("a.jpg", "jpeg", True),
        ("a.JPEG", "jpeg", True),
        ("a.jfif", "jpeg", True),
        ("a.jpe", "jpeg", True),
        ("a.tif", "tiff", True),
        ("a.TIFF", "tiff", True),
        ("a.dib", "bmp", True),
        ("a", "png", True),
        ("a.0001", "png", True),
        ("a.dat", "jpeg", True),
        (".jpg", "png", True),  # a hidden file named "jpg", which has no suffix
        ("a.jpg", "png", False),
        ("a.png", "jpeg", False),
        ("a.gif", "jpeg", False),
        ("coil 7.bmp", "tiff", False),
    ],
)
def test_the_name_may_only_contradict(name: str, fmt: str, accepted: bool) -> None:
    if accepted:
        assert decode(VALID[fmt], name=name).format == fmt
    else:
        assert refusal(lambda: decode(VALID[fmt], name=name)) is Reason.WRONG_EXTENSION


@pytest.mark.parametrize(
    "data",
    [
        encoded(steel(), "png", save_all=True, append_images=[Image.fromarray(steel()[::-1])]),
        encoded(steel(), "webp", save_all=True, append_images=[Image.fromarray(steel()[::-1])]),
        encoded(steel(), "tiff", save_all=True, append_images=[Image.fromarray(steel()[::-1])]),
        JPEG + JPEG,
        GREY_PNG + GREY_PNG,
        encoded(steel(), "mpo", save_all=True, append_images=[Image.fromarray(steel()[::-1])]),
    ],
    ids=["apng", "webp", "tiff", "jpeg+jpeg", "png+png", "mpo"],
)
def test_more_than_one_image_is_refused(data: bytes) -> None:
    assert refusal(lambda: decode(data)) is Reason.MULTIPLE_FRAMES


@pytest.mark.parametrize("data", [JPEG, GREY_PNG])
def test_bytes_after_the_image_are_noted(data: bytes) -> None:
    assert decode(data + bytes(7)).notes == ("7 padding bytes after the end of the image ignored",)
    assert decode(data + b"hello").notes == ("5 other bytes after the end of the image ignored",)


# --------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("fmt", sorted(VALID))
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.99])
def test_cut_files_are_refused(fmt: str, share: float) -> None:
    cut = VALID[fmt][: int(len(VALID[fmt]) * share)]
    reason = refusal(lambda: decode(cut))
    assert reason in (Reason.TRUNCATED, Reason.DECODE_FAILED, Reason.NOT_AN_IMAGE)
    if share in (0.5, 0.9, 0.99):
        assert reason is Reason.TRUNCATED


@pytest.mark.parametrize("fmt", sorted(set(VALID) - {"tiff", "bmp"}))
def test_every_cut_is_refused_or_harmless(fmt: str) -> None:
    expected = decode(VALID[fmt]).grey_hw
    for length in range(len(VALID[fmt]) - 40, len(VALID[fmt])):
        try:
            frame = decode(VALID[fmt][:length])
        except DecodeError:
            continue
        np.testing.assert_array_equal(frame.grey_hw, expected)


def test_damaged_real_frames_are_refused(shared_dir: Path) -> None:
    for file in sorted((shared_dir / "data/severstal/images").glob("*.jpg"))[::75]:
        data = file.read_bytes()
        middle = len(data) // 2
        zeros = data[:middle] + bytes(4096) + data[middle + 4096 :]
        filled = data[:middle] + bytes(len(data) - middle)
        swapped = bytearray(data)
        swapped[middle : middle + 4096] = data[middle + 8192 : middle + 12288]
        swapped[middle + 8192 : middle + 12288] = data[middle : middle + 4096]
        closed = data[:middle] + b"\xff\xd9"
        assert refusal(lambda d=data[:middle]: decode(d)) is Reason.TRUNCATED
        assert refusal(lambda d=filled: decode(d)) is Reason.TRUNCATED
        assert refusal(lambda d=zeros: decode(d)) is Reason.DECODE_FAILED
        assert refusal(lambda d=bytes(swapped): decode(d)) is Reason.DECODE_FAILED
        assert refusal(lambda d=closed: decode(d)) is Reason.DECODE_FAILED


def test_missing_end_marker_may_be_appended() -> None:
    policy = DecodePolicy(append_end_marker=True)
    expected = decode(JPEG)
    assert decode(JPEG, policy=policy).notes == ()
    assert refusal(lambda: decode(JPEG[:-2])) is Reason.TRUNCATED
    for cut in (1, 2):
        frame = decode(JPEG[:-cut], policy=policy)
        np.testing.assert_array_equal(frame.grey_hw, expected.grey_hw)
        assert frame.notes == ("missing end-of-image marker appended",)
        assert frame.sha256 != expected.sha256


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE], ids=["baseline", "progressive"])
def test_appending_the_end_marker_hides_no_cut(data: bytes) -> None:
    expected = decode(data).grey_hw
    policy = DecodePolicy(append_end_marker=True)
    reasons = []
    for length in range(jpeg_segment_end(data, 0xDA), len(data)):
        try:
            frame = decode(data[:length], policy=policy)
        except DecodeError as error:
            reasons.append(error.reason)
        else:
            np.testing.assert_array_equal(frame.grey_hw, expected)
    assert len(reasons) > 1000
    assert set(reasons) == {Reason.TRUNCATED}


def test_progressive_without_its_last_scan_is_refused() -> None:
    shortened = PROGRESSIVE[: PROGRESSIVE.rindex(b"\xff\xda")] + b"\xff\xd9"
    simplejpeg.decode_jpeg(shortened, colorspace="GRAY", strict=True)  # accepts the blurred picture
    assert refusal(lambda: decode(shortened)) is Reason.TRUNCATED


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE], ids=["baseline", "progressive"])
def test_repeated_scans_are_refused(data: bytes) -> None:
    start = data.rindex(b"\xff\xda")
    scan = data[start:-2]
    twice = data[:start] + scan * 2 + b"\xff\xd9"
    assert refusal(lambda: decode(twice)) is Reason.DECODE_FAILED
    with pytest.raises(DecodeError, match="more than 100 scans"):
        decode(data[:start] + scan * 101 + b"\xff\xd9")


@pytest.mark.parametrize(
    ("marker", "reason"),
    [(0xC3, "lossless"), (0xC9, "arithmetic"), (0xF7, "JPEG-LS")],
)
def test_other_jpeg_processes_are_refused(marker: int, reason: str) -> None:
    data = JPEG.replace(b"\xff\xc0", bytes((0xFF, marker)), 1)
    assert refusal(lambda: decode(data)) is Reason.UNSUPPORTED_FORMAT, reason


def test_12_bit_and_cmyk_jpeg_are_refused() -> None:
    start = JPEG.index(b"\xff\xc0")
    twelve = JPEG[: start + 4] + b"\x0c" + JPEG[start + 5 :]
    assert refusal(lambda: decode(twelve)) is Reason.UNSUPPORTED_PIXELS
    cmyk = encoded(Image.fromarray(steel()).convert("CMYK"), "jpeg")
    assert refusal(lambda: decode(cmyk)) is Reason.UNSUPPORTED_PIXELS


def test_coloured_pixels_of_a_grey_camera_are_refused() -> None:
    policy = DecodePolicy(grey_only=True)
    rgb = np.dstack([steel()] * 3)
    np.testing.assert_array_equal(from_array(rgb, policy=policy).grey_hw, steel())
    rgb[20, 30, 2] ^= 1
    from_array(rgb)
    assert refusal(lambda: from_array(rgb, policy=policy)) is Reason.COLOURED
    rgb[16:32, 16:32, 2] = 0
    data = encoded(rgb, "jpeg")
    decode(data)
    assert refusal(lambda: decode(data, policy=policy)) is Reason.COLOURED


def test_every_flipped_bit_of_a_png_is_refused() -> None:
    data = encoded(steel(6, 7), "png")
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        refusal(lambda d=bytes(flipped): decode(d))


def test_png_with_right_checksums_but_wrong_pixels() -> None:
    pixels = steel(8, 8)
    raw = zlib.decompress(png_rows(pixels))
    np.testing.assert_array_equal(decode(png(8, 8, 8, 0, png_rows(pixels))).grey_hw, pixels)
    for stream, reason in (
        (zlib.compress(raw[: 4 * 9]), Reason.TRUNCATED),
        (zlib.compress(raw)[:-4], Reason.TRUNCATED),
        (zlib.compress(raw + raw), Reason.DECODE_FAILED),
        (zlib.compress(raw)[:-1] + b"\0", Reason.DECODE_FAILED),
        (zlib.compress(b"\x09" + raw[1:]), Reason.DECODE_FAILED),
    ):
        assert refusal(lambda s=stream: decode(png(8, 8, 8, 0, s))) is reason
    beyond_palette = png(8, 8, 8, 3, png_rows(pixels), chunk(b"PLTE", b"\1\2\3" * 4))
    assert refusal(lambda: decode(beyond_palette)) is Reason.DECODE_FAILED
    no_palette = png(8, 8, 8, 3, png_rows(pixels))
    assert refusal(lambda: decode(no_palette)) is Reason.DECODE_FAILED
    foreign = png(8, 8, 8, 0, png_rows(pixels), chunk(b"CgBI", b""))
    assert refusal(lambda: decode(foreign)) is Reason.UNSUPPORTED_FORMAT


def test_png_texts_and_profiles_do_not_matter() -> None:
    pixels = steel(8, 8)
    odd = chunk(b"zTXt", b"a\0\0broken") + chunk(b"iCCP", b"x\0\0") + chunk(b"acTL", bytes(8))
    np.testing.assert_array_equal(decode(png(8, 8, 8, 0, png_rows(pixels), odd)).grey_hw, pixels)


def test_tiff_written_by_hand_is_read() -> None:
    pixels = bytes(range(24))
    expected = np.arange(24).reshape(4, 6)
    np.testing.assert_array_equal(decode(tiff(grey_tiff_tags(), pixels)).grey_hw, expected)
    white_is_zero = tiff(grey_tiff_tags(t262=0), pixels)
    np.testing.assert_array_equal(decode(white_is_zero).grey_hw, 255 - expected)
    strips = grey_tiff_tags(t278=2) | {273: (8, 20), 279: (12, 12)}
    np.testing.assert_array_equal(decode(tiff(strips, pixels)).grey_hw, expected)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({278: 2}, Reason.TRUNCATED),  # a strip is missing: Pillow leaves it black
        ({278: 2, 273: (8, 20), 279: (12, 4000)}, Reason.TRUNCATED),
        ({279: 20}, Reason.TRUNCATED),
        ({254: 1}, Reason.UNSUPPORTED_FORMAT),  # thumbnail of a camera raw file
        ({50706: 1}, Reason.UNSUPPORTED_FORMAT),  # DNG
        ({259: 7}, Reason.UNSUPPORTED_FORMAT),  # JPEG inside: its damage cannot be seen
        ({339: 2}, Reason.UNSUPPORTED_PIXELS),  # signed: Pillow reads -1 as 255
        ({258: 16, 257: 2, 278: 2, 262: 0}, Reason.UNSUPPORTED_PIXELS),  # Pillow does not invert
        ({266: 2}, Reason.UNSUPPORTED_PIXELS),  # bits in reverse
        ({258: (8,) * 3, 262: 2, 277: 3, 284: 2, 256: 2}, Reason.UNSUPPORTED_PIXELS),  # planes
        ({258: 32, 257: 1, 278: 1}, Reason.UNSUPPORTED_PIXELS),
        ({258: 32, 257: 1, 278: 1, 339: 3}, Reason.UNSUPPORTED_PIXELS),
        ({256: 50_000, 257: 50_000}, Reason.TOO_LARGE),
    ],
)
def test_tiff_that_pillow_would_misread(changed: dict[int, Any], reason: Reason) -> None:
    data = tiff(grey_tiff_tags() | changed, bytes(range(24)))
    assert refusal(lambda: decode(data)) is reason


def test_bmp_that_pillow_would_misread() -> None:
    black_white = bytes([0, 0, 0, 0, 255, 255, 255, 0])
    indices = bytes([0, 1, 0, 1])
    assert refusal(lambda: decode(bmp(8, black_white, indices, 4, 1))) is Reason.UNSUPPORTED_PIXELS
    colours = bytes([0, 0, 0, 0, 9, 8, 7, 0])
    np.testing.assert_array_equal(decode(bmp(8, colours, indices, 4, 1)).grey_hw, [[0, 8, 0, 8]])
    skipped = bytes([0, 2, 2, 0, 2, 1, 0, 1])  # run-length coding that leaves pixels out
    assert refusal(lambda: decode(bmp(8, colours, skipped, 4, 1, method=1))) is (
        Reason.UNSUPPORTED_PIXELS
    )


@pytest.mark.parametrize("mode", ["F", "I", "CMYK", "LAB"])
def test_other_pixel_types_are_refused(mode: str) -> None:
    data = encoded(Image.new(mode, (4, 4)), "tiff")
    assert refusal(lambda: decode(data)) is Reason.UNSUPPORTED_PIXELS


# --------------------------------------------------------------------------------------- limits


def zeros_png(side: int) -> bytes:
    stream = zlib.compressobj(1)
    rows = bytes((side + 1) * 100)
    parts = [stream.compress(rows) for _ in range(side // 100)]
    return png(side, side, 8, 0, b"".join(parts) + stream.flush())


def huge_jpeg() -> bytes:
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", 65000, 65000) + JPEG[at + 4 :]


def huge_webp(kind: bytes) -> bytes:
    size = {
        b"VP8X": bytes(4) + b"\xff\x3f\0\xff\x3f\0",
        b"VP8L": b"\x2f" + struct.pack("<I", 0x3FFF | 0x3FFF << 14) + bytes(5),
        b"VP8 ": b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 0x3FFF, 0x3FFF),
    }[kind]
    body = b"WEBP" + kind + struct.pack("<I", len(size)) + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: zeros_png(20_000), id="png"),
        pytest.param(huge_jpeg, id="jpeg"),
        pytest.param(lambda: huge_webp(b"VP8X"), id="webp-x"),
        pytest.param(lambda: huge_webp(b"VP8L"), id="webp-lossless"),
        pytest.param(lambda: huge_webp(b"VP8 "), id="webp-lossy"),
        pytest.param(lambda: bmp(24, b"", bytes(100), 20_000, 20_000), id="bmp"),
        pytest.param(
            lambda: tiff(
                grey_tiff_tags(20_000, 20_000) | {259: 8, 279: 1000}, zlib.compress(bytes(10**6))
            ),
            id="tiff",
        ),
    ],
)
def test_bombs_are_refused_before_memory_is_taken(build: Callable[[], bytes]) -> None:
    data = build()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    started = time.process_time()
    reason = refusal(lambda: decode(data))
    seconds = time.process_time() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reason is Reason.TOO_LARGE
    assert seconds < 1
    assert peak < 3 * len(data) + 2**20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 50_000


def test_running_out_of_memory_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("steelsight.imaging.decode_jpeg", exhausted)
    assert refusal(lambda: decode(JPEG)) is Reason.TOO_LARGE


def test_pixel_and_byte_limits_are_exact() -> None:
    for fmt, data in VALID.items():
        decode(data, policy=DecodePolicy(max_pixels=48 * 80, max_bytes=len(data)))
        for policy in (DecodePolicy(max_pixels=48 * 80 - 1), DecodePolicy(max_bytes=len(data) - 1)):
            assert refusal(lambda d=data, p=policy: decode(d, policy=p)) is Reason.TOO_LARGE, fmt
    tight = DecodePolicy(max_pixels=48 * 80 - 1)
    assert refusal(lambda: from_array(steel(), policy=tight)) is Reason.TOO_LARGE


@pytest.mark.parametrize(
    "values", [{"max_pixels": 0}, {"max_bytes": 0}, {"bit_depth": 7}, {"bit_depth": 17}]
)
def test_impossible_policies_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(InputError, match="received"):
        DecodePolicy(**values)


# ---------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "name", ["a.png", 'st\'eel "7".png', "größe 🔥.png", "two\nlines.png", "-rf.png", "no suffix"]
)
def test_files_with_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GREY_PNG)
    np.testing.assert_array_equal(read_file(tmp_path / name).grey_hw, steel())
    np.testing.assert_array_equal(read_file(str(tmp_path / name)).grey_hw, steel())


def test_read_bytes_reads_and_checks_nothing_inside(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    assert read_bytes(tmp_path / "a.jpg") == b"no image"
    assert {".jpg", ".png", ".tif", ".gif"} <= IMAGE_SUFFIXES
    assert {".txt", ".csv", ""}.isdisjoint(IMAGE_SUFFIXES)


def test_name_of_the_file_is_checked(tmp_path: Path) -> None:
    (tmp_path / "a\n'🔥.jpg").write_bytes(GREY_PNG)
    assert refusal(lambda: read_file(tmp_path / "a\n'🔥.jpg")) is Reason.WRONG_EXTENSION


def test_what_is_no_file(tmp_path: Path) -> None:
    pipe, link, address = tmp_path / "pipe.jpg", tmp_path / "link.jpg", tmp_path / "s.jpg"
    os.mkfifo(pipe)
    link.symlink_to(tmp_path, target_is_directory=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(address))
        for path in (tmp_path, pipe, link, address, Path("/dev/zero")):
            assert refusal(lambda p=path: read_file(p)) is Reason.NOT_A_FILE


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    for name in ("gone.png", "dangling.png", "nul\0.png", "x" * 300):
        assert refusal(lambda n=name: read_file(tmp_path / n)) is Reason.UNREADABLE
    (tmp_path / "a.png").write_bytes(GREY_PNG)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # root may read everything
    assert refusal(lambda: read_file(tmp_path / "a.png")) is Reason.UNREADABLE


def test_large_files_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(GREY_PNG)
    os.truncate(path, 2**40)  # sparse: takes no disk
    tracemalloc.start()
    assert refusal(lambda: read_file(path)) is Reason.TOO_LARGE
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    os.truncate(path, 0)
    assert refusal(lambda: read_file(path)) is Reason.EMPTY


# --------------------------------------------------------------------------------------- arrays


def test_arrays_of_every_accepted_kind() -> None:
    grey = steel()
    opaque = np.full_like(grey, 255)
    for array in (
        grey,
        grey[..., None],
        np.dstack([grey] * 3),
        np.dstack([grey] * 3 + [opaque]),
        np.asfortranarray(grey),
        np.repeat(grey, 2, axis=1)[:, ::2],
        grey.astype(np.uint16) * 257,
    ):
        frame = from_array(array)
        np.testing.assert_array_equal(frame.grey_hw, grey)
        assert frame.grey_hw.flags.c_contiguous
        assert frame.format == "array"
    np.testing.assert_array_equal(from_array(grey > 100).grey_hw, (grey > 100) * 255)
    for thin in (grey[:1], grey[:, :1], grey[:1, :1], np.dstack([grey] * 3)[:, :1]):
        assert from_array(thin).grey_hw.shape == thin.shape[:2]


def test_arrays_are_copied() -> None:
    buffer = steel()
    frame = from_array(buffer)
    buffer[:] = 0
    np.testing.assert_array_equal(frame.grey_hw, steel())


@pytest.mark.parametrize(
    "array",
    [
        steel() / 255,
        np.full((4, 4), np.nan),
        steel().astype(np.float32),
        steel().astype(np.int32),
        steel().astype(np.int8),
        steel()[None, None],
        np.zeros((3, 48, 80), np.uint8),
        np.zeros((48, 80, 2), np.uint8),
        np.zeros((0, 5), np.uint8),
        np.zeros((5, 0, 3), np.uint8),
        np.zeros(5, np.uint8),
        np.uint8(7),
        np.array([["a"]]),
        [[1, 2], [3, 4]],
        None,
    ],
)
def test_other_arrays_are_refused(array: Any) -> None:
    assert refusal(lambda: from_array(array)) is Reason.UNSUPPORTED_PIXELS


def test_transparent_arrays_are_refused() -> None:
    assert refusal(lambda: from_array(np.zeros((4, 4, 4), np.uint8))) is Reason.UNSUPPORTED_PIXELS


# ------------------------------------------------------------------------- for a pool of threads


def test_decoding_changes_no_global_state_and_works_in_threads() -> None:
    def state() -> tuple[object, ...]:
        return Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)

    before = state()
    damaged = {f"cut {fmt}": data[: len(data) // 2] for fmt, data in VALID.items()}
    jobs = list((VALID | damaged).values()) * 20

    def outcome(data: bytes) -> bytes | Reason:
        try:
            return decode(data).grey_hw.tobytes()
        except DecodeError as error:
            return error.reason

    expected = [outcome(data) for data in jobs]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, jobs)) == expected
    assert state() == before


@settings(max_examples=300, deadline=None)
@given(
    data=st.binary(max_size=400),
    signature=st.sampled_from([b"", *(d[:30] for d in VALID.values())]),
)
def test_random_bytes_never_raise_anything_else(data: bytes, signature: bytes) -> None:
    try:
        frame = decode(signature + data)
    except DecodeError:
        return
    assert isinstance(frame, Frame)


@settings(max_examples=600, deadline=None)
@given(fmt=st.sampled_from(sorted(VALID)), seed=st.integers(0, 2**32), changes=st.integers(1, 6))
def test_mutated_files_never_raise_anything_else(fmt: str, seed: int, changes: int) -> None:
    dice = random.Random(seed)
    data = bytearray(VALID[fmt])
    for _ in range(changes):
        at = dice.randrange(min(len(data), dice.choice((60, 700, len(data)))))
        data[at : at + dice.choice((0, 1, 1, 4))] = dice.randbytes(dice.choice((0, 1, 1, 4)))
    policy = DecodePolicy(max_pixels=10**6, append_end_marker=bool(seed % 2))
    try:
        frame = decode(bytes(data), policy=policy)
    except DecodeError:
        return
    assert frame.grey_hw.dtype == np.uint8
    assert frame.grey_hw.size <= 10**6


# --------------------------------------------------------------------------------------- tiling


@pytest.mark.parametrize(
    ("shape", "multiple"), [((48, 80), 32), ((33, 31), 32), ((17, 40), 32), ((256, 1600), 64)]
)
def test_padding_mirrors_like_numpy(shape: tuple[int, int], multiple: int) -> None:
    grey = steel(*shape)
    padded, size = pad_to_multiple(grey, multiple)
    bottom, right = -shape[0] % multiple, -shape[1] % multiple
    np.testing.assert_array_equal(padded, np.pad(grey, ((0, bottom), (0, right)), mode="reflect"))
    assert padded.shape[0] % multiple == padded.shape[1] % multiple == 0
    assert size == shape


def test_padding_of_frames_too_small_to_mirror() -> None:
    grey = steel(3, 20)
    padded, size = pad_to_multiple(grey, 32)
    np.testing.assert_array_equal(padded, np.pad(grey, ((0, 29), (0, 12)), mode="edge"))
    assert size == (3, 20)


def test_padding_of_what_fits_copies_nothing() -> None:
    grey = steel(64, 96)
    assert pad_to_multiple(grey, 32)[0] is grey


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "expected"),
    [
        ((1600, 256), (1600, 256), 32, [(0, 0, 1600, 256)]),
        ((100, 50), (200, 200), 32, [(0, 0, 100, 50)]),
        ((10, 4), (6, 4), 2, [(0, 0, 6, 4), (4, 0, 6, 4)]),
        ((11, 4), (6, 4), 2, [(0, 0, 6, 4), (2, 0, 6, 4), (5, 0, 6, 4)]),
        ((5, 9), (5, 5), 1, [(0, 0, 5, 5), (0, 4, 5, 5)]),
    ],
)
def test_tile_plans(
    size: tuple[int, int], tile: tuple[int, int], overlap: int, expected: list[Any]
) -> None:
    assert tile_plan(size, tile, overlap) == expected


@pytest.mark.parametrize(
    ("size", "tile", "overlap"),
    [((0, 5), (4, 4), 1), ((5, 5), (4, 4), 4), ((5, 5), (4, 2), 2), ((5, 5), (4, 4), -1)],
)
def test_impossible_tile_plans(size: tuple[int, int], tile: tuple[int, int], overlap: int) -> None:
    with pytest.raises(InputError, match="received size"):
        tile_plan(size, tile, overlap)


@settings(deadline=None)
@given(data=st.data())
def test_tile_plans_cover_everything_evenly(data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(1, 300), st.integers(1, 300)))
    tile = data.draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    overlap = data.draw(st.integers(0, min(tile) - 1))
    plan = tile_plan(size, tile, overlap)
    seen = np.zeros(size[::-1], bool)
    for x, y, w, h in plan:
        assert (w, h) == (min(size[0], tile[0]), min(size[1], tile[1]))
        assert x >= 0
        assert y >= 0
        assert x + w <= size[0]
        assert y + h <= size[1]
        seen[y : y + h, x : x + w] = True
    assert seen.all()
    for axis in (0, 1):
        starts = sorted({box[axis] for box in plan})
        steps = np.diff(starts)
        assert all(plan[0][2 + axis] - step >= overlap for step in steps)
        assert len(steps) == 0 or steps.max() - steps.min() <= 1
    assert len(plan) == len(set(plan))


def test_blend_weights() -> None:
    weights = blend_weights(6, 4, 2)
    row = np.array([1, 2, 3, 3, 2, 1]) / 3
    np.testing.assert_allclose(weights, np.outer(np.array([1, 2, 2, 1]) / 3, row), rtol=1e-6)
    assert weights.dtype == np.float32
    assert (blend_weights(5, 3, 0) == 1).all()


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    tile=st.tuples(st.integers(5, 60), st.integers(5, 60)),
    overlap=st.integers(0, 4),
)
def test_stitching_tiles_of_one_map_returns_that_map(
    size: tuple[int, int], tile: tuple[int, int], overlap: int
) -> None:
    full = np.random.default_rng(3).random((4, size[1], size[0]), np.float32)
    stitcher = Stitcher(4, size, overlap)
    for x, y, w, h in tile_plan(size, tile, overlap):
        stitcher.add(full[:, y : y + h, x : x + w], (x, y, w, h))
    np.testing.assert_array_equal(stitcher.probabilities_chw, full)


def test_stitching_blends_by_weight_in_any_order() -> None:
    boxes = [(0, 0, 6, 4), (4, 0, 6, 4), (2, 0, 6, 4)]
    tiles = [np.full((2, 4, 6), value, np.float32) for value in (0.0, 1.0, 0.5)]
    weights = blend_weights(6, 4, 2).astype(np.float64)
    top, bottom = np.zeros((4, 12)), np.zeros((4, 12))
    stitcher, backwards = Stitcher(2, (12, 4), 2), Stitcher(2, (12, 4), 2)
    for (x, y, w, h), tile in zip(boxes, tiles, strict=True):
        stitcher.add(tile, (x, y, w, h))
        top[:, x : x + w] += tile[0] * weights
        bottom[:, x : x + w] += weights
    for box, tile in reversed(list(zip(boxes, tiles, strict=True))):
        backwards.add(tile, box)
    expected = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
    np.testing.assert_allclose(stitcher.probabilities_chw[1], expected, atol=1e-6)
    np.testing.assert_allclose(backwards.probabilities_chw[1], expected, atol=1e-6)
    assert (stitcher.probabilities_chw[:, :, 10:] == 0).all()  # seen by no tile


@pytest.mark.parametrize("box", [(0, 0, 5, 4), (-1, 0, 6, 4), (-8, 0, 6, 4), (8, 0, 6, 4)])
def test_tiles_that_do_not_fit_are_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(InputError, match="expected a tile of shape"):
        Stitcher(2, (12, 4), 2).add(np.zeros((2, 4, 6), np.float32), box)


def test_opencv_agrees_on_the_orientation() -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = encoded(steel(), "jpeg", quality=90, exif=exif)
    upright = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(decode(data).grey_hw, upright)


# ------------------------------------------------------------------------------- size from a header


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_the_size_in_a_header_is_the_decoded_size(suffix, orientation, tmp_path):
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    options = {} if suffix == ".bmp" else {"exif": exif}
    Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12) * 2).save(path, **options)
    height, width = read_file(path).grey_hw.shape
    assert read_size_wh(path) == (width, height)


def test_a_header_that_cannot_be_read(tmp_path):
    for data in (b"", b"no image", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n\0\0", b"GIF89a......"):
        path = tmp_path / "a.png"
        path.write_bytes(data)
        with pytest.raises(DecodeError):
            read_size_wh(path)
    with pytest.raises(DecodeError) as caught:
        read_size_wh(tmp_path / "missing.png")
    assert caught.value.reason is Reason.UNREADABLE


# From logits to pixels ---------------------------------------------------------------------------


def bilinear_loop(plane: np.ndarray, stride: int) -> np.ndarray:
    """Every pixel from the four cells around its centre; beyond the border the border's value."""
    rows, columns = plane.shape
    full = np.zeros((rows * stride, columns * stride))
    for y in range(full.shape[0]):
        for x in range(full.shape[1]):
            v, u = (y + 0.5) / stride - 0.5, (x + 0.5) / stride - 0.5
            top, left = int(np.floor(v)), int(np.floor(u))
            for cell_y, share_y in ((top, 1 - (v - top)), (top + 1, v - top)):
                for cell_x, share_x in ((left, 1 - (u - left)), (left + 1, u - left)):
                    cell = plane[min(max(cell_y, 0), rows - 1), min(max(cell_x, 0), columns - 1)]
                    full[y, x] += share_y * share_x * cell
    return full


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_mask_probabilities_are_sigmoids_of_interpolated_logits(stride: int) -> None:
    rng = np.random.default_rng(stride)
    logits_chw = (rng.normal(size=(3, 5, 7)) * 6).astype(np.float32)
    found = mask_probabilities(logits_chw, (7 * stride, 5 * stride))
    assert (found.shape, found.dtype) == ((3, 5 * stride, 7 * stride), np.float32)
    want = [1 / (1 + np.exp(-bilinear_loop(plane, stride))) for plane in logits_chw]
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_mask_probabilities_of_extreme_and_broken_logits() -> None:
    logits_chw = np.array([[[-1e4, 1e4], [np.nan, 0]]], np.float32)
    found = mask_probabilities(logits_chw, (2, 2))[0]
    assert found[0].tolist() == [0, 1]
    assert np.isnan(found[1, 0])
    assert found[1, 1] == 0.5
    assert not np.isfinite(mask_probabilities(logits_chw, (8, 8))).all()


# The dark beside the strip -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dark_left", "dark_right", "multiple_of", "expected"),
    [
        (0, 0, 32, (0, 320)),
        (100, 0, 1, (100, 320)),
        (100, 0, 32, (96, 320)),
        (0, 100, 32, (0, 224)),
        (64, 33, 32, (64, 288)),
        (31, 31, 32, (0, 320)),
        (319, 0, 32, (288, 320)),
        (320, 0, 32, (0, 320)),
    ],
)
def test_dark_columns_at_the_sides_are_left_out(
    dark_left: int, dark_right: int, multiple_of: int, expected: tuple[int, int]
) -> None:
    grey_hw = np.full((64, 320), 90, np.uint8)
    grey_hw[:, :dark_left] = 10
    grey_hw[:, 320 - dark_right :] = 10
    assert steel_columns(grey_hw, 25, multiple_of) == expected
    assert steel_columns(grey_hw, 0, multiple_of) == (0, 320)


def test_a_dark_band_on_the_steel_is_looked_at_and_single_bright_pixels_are_no_steel() -> None:
    grey_hw = np.full((128, 320), 90, np.uint8)
    grey_hw[:, 100:200] = 0
    grey_hw[:, :50] = 0
    grey_hw[7, 20] = 255
    assert steel_columns(grey_hw, 25) == (50, 320)
    grey_hw[8:10, 20] = 255
    assert steel_columns(grey_hw, 25) == (20, 320)


def test_an_odd_width_is_never_exceeded() -> None:
    grey_hw = np.full((64, 301), 90, np.uint8)
    grey_hw[:, :70] = 0
    assert steel_columns(grey_hw, 25, 64) == (64, 301)
