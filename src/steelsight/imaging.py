"""Bytes or arrays become a trusted grey frame, or a ``DecodeError``; frames become tiles and back.

A decoder that returns a plausible picture for a damaged file would turn damage into a verdict, so
every step here refuses when in doubt. What each format allows to notice:

* JPEG: cuts, missing scans, bytes that break the Huffman code. JPEG carries no checksum: 82 % of
  single flipped bits in Severstal frames decode to another valid picture, mostly with one wrong
  block, sometimes with a wrong half (see ``DecodePolicy.grey_only``).
* PNG: everything; each chunk and the compressed stream carry checksums.
* WebP, TIFF, BMP: cuts and broken compression; TIFF with deflate also every flipped bit.

Pixels: grey is the luma of ITU-R BT.601, and exactly the channel where red, green and blue are
equal. A 16-bit value ``v`` becomes ``round(v * 255 / 65535)``.

Orientation: the EXIF orientation tag is applied in every format that can carry it (JPEG APP1, PNG
eXIf, TIFF tag 274, WebP EXIF), as browsers, OpenCV and labelling tools do, so that masks drawn by
people fit. A value outside 1..8 is ignored, and a note says so.

Everything here is free of global state and safe to call from many threads at once.

Shapes: ``hw`` rows x columns, ``chw`` types x rows x columns; sizes ``wh`` and boxes ``xywh``.
"""

import hashlib
import math
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any, NoReturn

import cv2
import numpy as np
import numpy.typing as npt
from PIL.BmpImagePlugin import BmpImageFile
from PIL.Image import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from simplejpeg import decode_jpeg, decode_jpeg_header

from steelsight.defects import Reason
from steelsight.errors import DecodeError, InputError, one_line
from steelsight.png import Colours, parse_png, plain_png, trailing_notes

GreyHW = npt.NDArray[np.uint8]
ProbabilitiesCHW = npt.NDArray[np.float32]
BoxXYWH = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded image.

    Attributes:
        grey_hw: uint8, C-contiguous, upright, shared with nobody.
        sha256: of the encoded bytes as given; for arrays of the pixel values alone, row by row.
        format: ``jpeg``, ``png``, ``bmp``, ``tiff``, ``webp`` or ``array``.
        notes: what was done on the way in, one line each.
    """

    grey_hw: GreyHW
    sha256: str
    format: str
    notes: tuple[str, ...] = ()

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.grey_hw.shape[1], self.grey_hw.shape[0]


@dataclass(frozen=True, slots=True)
class DecodePolicy:
    """What is accepted, and how ambiguous input is to be read.

    Raises:
        InputError: a limit below 1, or a bit depth outside 8..16.
    """

    max_pixels: int = 100_000_000
    """Larger images are refused from their header, before memory is taken for pixels."""
    max_bytes: int = 256 * 2**20
    """Larger files are refused unread."""
    append_end_marker: bool = False
    """Complete a JPEG that lacks its end-of-image marker, as some cameras write it."""
    bit_depth: int | None = None
    """Bits the camera really uses in 16-bit files; ``None``: all 16, and dark files are refused."""
    grey_only: bool = False
    """Refuse any coloured pixel. For monochrome cameras that store grey as colour: there, colour
    can only be damage. Costs 1 to 2 ms per colour JPEG of 1600 x 256; halves the share of
    flipped bits that spoil more than 1 % of the pixels unnoticed (20 to 11 %)."""

    def __post_init__(self) -> None:
        if self.max_pixels < 1 or self.max_bytes < 1:
            raise InputError(
                "max_pixels and max_bytes must be at least 1, "
                f"received {self.max_pixels} and {self.max_bytes}"
            )
        if self.bit_depth is not None and not 8 <= self.bit_depth <= 16:
            raise InputError(
                f"bit_depth must be 8..16 or not given, received {self.bit_depth}; "
                "give the number of bits the camera delivers"
            )


_DEFAULT_POLICY = DecodePolicy()


# ------------------------------------------------------------------------------------- entry points


def read_file(path: str | Path, *, policy: DecodePolicy = _DEFAULT_POLICY) -> Frame:
    """Reads and decodes one file: ``read_bytes``, then ``decode``.

    Raises:
        DecodeError: not readable, not a regular file, too large, or not decodable with certainty.
    """
    return decode(read_bytes(path, policy=policy), name=Path(path).name, policy=policy)


def read_bytes(path: str | Path, *, policy: DecodePolicy = _DEFAULT_POLICY) -> bytes:
    """Reads one file whole; never blocks on pipes or devices.

    Raises:
        DecodeError: not readable, not a regular file, or too large.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
            _refuse(Reason.NOT_A_FILE, f"expected an image file, found {kind}")
        if status.st_size > policy.max_bytes:
            _refuse_bytes(status.st_size, policy)
        with path.open("rb") as file:
            # Memory for the limit would cost more than reading a small file. It may have grown
            # since; decode() refuses the one byte too many.
            data = file.read(status.st_size + 1)
            if len(data) > status.st_size:
                data += file.read(policy.max_bytes + 1 - len(data))
            return data
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or one_line(error)
        _refuse(Reason.UNREADABLE, f"the file could not be read: {cause}", error)


def read_size_wh(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels as :func:`read_file` would return them, from the header alone.

    The pixels may still turn out to be damaged.

    Raises:
        DecodeError: unreadable, no image in an accepted format, or a broken header.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            _refuse(Reason.NOT_A_FILE, "expected a file")
        with Path(path).open("rb") as file:
            name = _identify(file.read(256))
            opened = _OPENED_BY.get(name or "")
            if opened is None:
                _refuse(Reason.NOT_AN_IMAGE, f"expected {_ACCEPTED}, received {name or 'no image'}")
            with _any_failure_refused(name or ""):
                file.seek(0)
                image = opened(file)
                width, height = image.size
                # Pillow would decode a PNG to its end to look for EXIF behind the pixels.
                orientation = (
                    exif_orientation(image.info.get("exif"))
                    if name == "png"
                    else image.getexif().get(274)
                )
                # Pillow has turned the size of a TIFF already.
                lies_on_its_side = orientation in range(5, 9) and name != "tiff"
                return (height, width) if lies_on_its_side else (width, height)
    except OSError as error:
        _refuse(Reason.UNREADABLE, f"cannot read {path}: {error.strerror}", error)


def decode(
    data: bytes | memoryview, *, name: str | None = None, policy: DecodePolicy = _DEFAULT_POLICY
) -> Frame:
    """Decodes one encoded image. The content decides on the format; ``name`` may only contradict.

    Raises:
        DecodeError: the bytes are not one complete, undamaged image in an accepted format.
    """
    data = bytes(data)
    if not data:
        _refuse(Reason.EMPTY, "expected an image, received 0 bytes")
    if len(data) > policy.max_bytes:
        _refuse_bytes(len(data), policy)
    found = _identify(data)
    if found is None:
        _refuse(
            Reason.NOT_AN_IMAGE,
            f"expected {_ACCEPTED}, received no known image (first bytes {data[:8].hex(' ')})",
        )
    if found not in _DECODERS:
        _refuse(Reason.UNSUPPORTED_FORMAT, f"expected {_ACCEPTED}, received {found.upper()}")
    suffix = PurePath(name or "").suffix.lower()
    if _FORMAT_OF_SUFFIX.get(suffix, found) != found:
        _refuse(
            Reason.WRONG_EXTENSION,
            f"the content is {found.upper()}, but the name ends in {suffix}; rename the file",
        )
    with _any_failure_refused(found):
        raster = _DECODERS[found](data, policy)
        grey_hw, notes = _to_grey(raster.pixels, policy)
    if raster.orientation in _UPRIGHT:
        grey_hw = np.ascontiguousarray(_UPRIGHT[raster.orientation](grey_hw))
    return Frame(
        grey_hw,
        hashlib.sha256(data).hexdigest(),
        found,
        (*raster.notes, *_orientation_notes(raster.orientation), *notes),
    )


_ARRAY_TYPES = (("u", 1), ("u", 2), ("b", 1))


def from_array(array: npt.NDArray[Any], *, policy: DecodePolicy = _DEFAULT_POLICY) -> Frame:
    """Takes pixels from memory: ``(H,W)``, ``(H,W,1)``, RGB or RGBA; uint8, uint16 or bool.

    The pixels are copied, because cameras reuse their buffers. Nothing is guessed from values:
    floats and channels-first arrays are refused.

    Raises:
        DecodeError: any other shape or type, or more pixels than the limit.
    """
    dtype = getattr(array, "dtype", None)
    if not isinstance(dtype, np.dtype) or (dtype.kind, dtype.itemsize) not in _ARRAY_TYPES:
        _refuse(
            Reason.UNSUPPORTED_PIXELS,
            f"expected a uint8, uint16 or bool array, received {dtype or type(array).__name__}; "
            "convert it where its value range is known",
        )
    shape = array.shape
    if len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,), (4,)) or not all(shape):
        _refuse(
            Reason.UNSUPPORTED_PIXELS,
            "expected rows x columns, optionally x 1 (grey), 3 (RGB) or 4 (RGBA), "
            f"received shape {shape}",
        )
    _check_size(shape[1], shape[0], policy)
    pixels = np.array(array, dtype=dtype.newbyteorder("="), order="C", subok=False)
    sha256 = hashlib.sha256(pixels.data).hexdigest()
    if pixels.dtype == np.bool_:
        pixels = pixels * np.uint8(255)
    grey_hw, notes = _to_grey(pixels, policy)
    return Frame(grey_hw, sha256, "array", notes)


# ------------------------------------------------------------------------------------------ refusal


def _refuse(reason: Reason, message: str, cause: Exception | None = None) -> NoReturn:
    raise DecodeError(reason, message) from cause


def _refuse_bytes(size: int, policy: DecodePolicy) -> NoReturn:
    _refuse(
        Reason.TOO_LARGE,
        f"expected at most {policy.max_bytes:,} bytes, received {size:,}; raise max_bytes if meant",
    )


def _check_size(width: int, height: int, policy: DecodePolicy) -> None:
    if width < 1 or height < 1:
        _refuse(Reason.DECODE_FAILED, f"the header says {width} x {height} pixels")
    if width * height > policy.max_pixels:
        _refuse(
            Reason.TOO_LARGE,
            f"expected at most {policy.max_pixels:,} pixels, received {width} x {height} = "
            f"{width * height:,}; raise max_pixels if meant",
        )


@contextmanager
def _any_failure_refused(format_name: str) -> Iterator[None]:
    """Decoders raise whatever they like on damaged input; all of it is one refusal."""
    try:
        yield
    except DecodeError:
        raise
    except MemoryError as error:
        _refuse(Reason.TOO_LARGE, "not enough memory to decode; lower max_pixels", error)
    except Exception as error:
        cause = one_line(error)
        reason = Reason.TRUNCATED if "truncated" in cause.lower() else Reason.DECODE_FAILED
        _refuse(reason, f"damaged {format_name.upper()}: {cause}", error)


# ----------------------------------------------------------------------------------- which format

_SIGNATURES: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), name)
    for pattern, name in (
        (rb"\xff\xd8\xff", "jpeg"),
        (rb"\x89PNG\r\n\x1a\n", "png"),
        # "BM" alone begins many texts: the size of the second header must be a known one.
        (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "bmp"),
        (rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]", "tiff"),
        (rb"RIFF.{4}WEBP", "webp"),
        (rb"GIF8[79]a", "gif"),
        (rb"\0\0[\1\2]\0[^\0]\0", "ico"),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "jpeg 2000"),
        (rb"\0\0\0\x0cJXL |\xff\x0a", "jpeg xl"),
        (rb".{4}ftyp(hei|hev|mif1|msf1|avi)", "heic"),
        (rb"8BPS", "psd"),
        (rb"v/1\x01", "openexr"),
        (rb"#\?RADIANCE|#\?RGBE", "hdr"),
        (rb"P[1-7fF][ \t\r\n]", "pnm"),
        (rb"DDS ", "dds"),
        (rb"qoif", "qoi"),
        (rb"SIMPLE  =", "fits"),
        (rb".{128}DICM", "dicom"),
    )
)

_FORMAT_OF_SUFFIX: dict[str, str] = {
    suffix: name
    for name, suffixes in {
        "jpeg": ".jpg .jpeg .jpe .jfif .jif",
        "png": ".png .apng",
        "bmp": ".bmp .dib",
        "tiff": ".tif .tiff .btf",
        "webp": ".webp",
        "gif": ".gif",
        "ico": ".ico .cur",
        "jpeg 2000": ".jp2 .j2k .jpf .jpx",
        "jpeg xl": ".jxl",
        "heic": ".heic .heif .avif",
        "psd": ".psd",
        "openexr": ".exr",
        "hdr": ".hdr",
        "pnm": ".pnm .pbm .pgm .ppm .pfm",
        "dds": ".dds",
        "qoi": ".qoi",
        "fits": ".fits",
        "dicom": ".dcm",
    }.items()
    for suffix in suffixes.split()
}
IMAGE_SUFFIXES = frozenset(_FORMAT_OF_SUFFIX)
"""Suffixes by which a file name claims to be an image, lower case, with the dot."""


def _identify(data: bytes) -> str | None:
    return next((name for pattern, name in _SIGNATURES if pattern.match(data)), None)


# ------------------------------------------------------------------------------ orientation, notes

_UPRIGHT: dict[int | None, Callable[[GreyHW], GreyHW]] = {
    2: np.fliplr,
    3: lambda hw: hw[::-1, ::-1],
    4: np.flipud,
    5: np.transpose,
    6: lambda hw: np.rot90(hw, -1),
    7: lambda hw: hw[::-1, ::-1].T,
    8: np.rot90,
}


def _orientation_notes(orientation: int | None) -> tuple[str, ...]:
    if orientation in (None, 1):
        return ()
    if orientation in _UPRIGHT:
        return (f"turned as EXIF orientation {orientation} says",)
    return (f"EXIF orientation {orientation} does not exist and was ignored",)


def exif_orientation(exif: bytes | None) -> int | None:
    """Orientation as EXIF data say it (tag 274 of the first directory), whatever its value.

    ``None`` without data or tag, 0 if it is no whole number.
    """
    if exif is None:
        return None
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        if order is None:
            return None
        start = struct.unpack_from(order + "I", exif, 4)[0]
        for entry in range(struct.unpack_from(order + "H", exif, start)[0]):
            at = start + 2 + 12 * entry
            tag, kind, count = struct.unpack_from(order + "HHI", exif, at)
            if tag == 274:
                code = {1: "B", 3: "H", 4: "I"}.get(kind)
                if code is None or count != 1:
                    return 0
                return int(struct.unpack_from(order + code, exif, at + 8)[0])
    except struct.error:
        return None
    return None


# --------------------------------------------------------------------------------------------- grey


@dataclass(frozen=True, slots=True)
class _Raster:
    """Pixels as the file stores them, and the orientation that is still to be applied."""

    pixels: npt.NDArray[Any]
    """uint8 or uint16; ``(H,W)``, or ``(H,W,C)`` with C = 1, 2 (grey and alpha), 3 or 4."""
    orientation: int | None = None
    notes: tuple[str, ...] = ()


def _to_grey(pixels: npt.NDArray[Any], policy: DecodePolicy) -> tuple[GreyHW, tuple[str, ...]]:
    notes: list[str] = []
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if channels in (2, 4):
        if (pixels[..., -1] != np.iinfo(pixels.dtype).max).any():
            _refuse(
                Reason.UNSUPPORTED_PIXELS,
                "expected opaque pixels, received transparent ones; save without transparency",
            )
        notes.append("opaque alpha channel dropped")
        pixels = pixels[..., :-1]
    if channels >= 3:
        colours = np.ascontiguousarray(pixels)
        pixels = cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)
        if policy.grey_only and not np.array_equal(
            cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), colours
        ):
            _refuse(
                Reason.COLOURED,
                "expected a grey camera's frame (red = green = blue), received coloured pixels: "
                "damage, or a colour camera; then give --allow-colour (Python: allow_colour=True)",
            )
    grey_hw = np.ascontiguousarray(pixels.reshape(pixels.shape[:2]))
    if grey_hw.dtype.itemsize == 2:
        grey_hw, note = _to_8_bit(grey_hw.astype(np.uint16, copy=False), policy)
        notes.append(note)
    return grey_hw, tuple(notes)


def _to_8_bit(grey_hw: npt.NDArray[np.uint16], policy: DecodePolicy) -> tuple[GreyHW, str]:
    depth = policy.bit_depth or 16
    highest = (1 << depth) - 1
    brightest = int(grey_hw.max())
    # Cameras with 10, 12 or 14 bits store these in 16; read as 16 bits, such a frame is nearly
    # black. 15-bit cameras do not exist, so a frame with brighter pixels uses all 16 bits.
    if policy.bit_depth is None and brightest < 1 << 14:
        _refuse(
            Reason.UNSUPPORTED_PIXELS,
            f"16-bit pixels, but none above {brightest}: probably from a camera with fewer bits; "
            "set bit_depth to its bits (10, 12, 14), or to 16 if the frame is this dark",
        )
    if brightest > highest:
        _refuse(
            Reason.UNSUPPORTED_PIXELS,
            f"expected values up to {highest} (bit_depth {depth}), received {brightest}",
        )
    # Integer rounding is exact: v * 255 / (2^n - 1) never lies half-way between two integers.
    values = np.arange(highest + 1, dtype=np.uint32)
    lut = ((values * 255 + highest // 2) // highest).astype(np.uint8)
    return lut[grey_hw], f"{depth}-bit pixels scaled to 8 bits"


# --------------------------------------------------------------------------------------------- JPEG

_JPEG_FRAME_HEADERS = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive; all Huffman-coded
_JPEG_OTHER_FRAME_HEADERS = {
    *(0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF),
    0xF7,  # JPEG-LS
}
_JPEG_EXIF, _JPEG_SCAN, _JPEG_END = 0xE1, 0xDA, 0xD9
_JPEG_MAX_SCANS = 100  # encoders write 1 to about 12; thousands are an attack on decoding time


@dataclass(frozen=True, slots=True)
class _JpegLayout:
    exif: bytes | None
    end: int
    """Offset behind the end-of-image marker."""


class _NoEndMarkerError(Exception):
    """The data end inside a scan, where perhaps only the end-of-image marker is missing."""


def _decode_jpeg(data: bytes, policy: DecodePolicy) -> _Raster:
    notes: tuple[str, ...] = ()
    try:
        layout = _jpeg_layout(data)
    except _NoEndMarkerError:
        if not policy.append_end_marker:
            _refuse(
                Reason.TRUNCATED,
                "the JPEG has no end-of-image marker: cut off, or the camera omits the marker "
                "(then give --append-end-marker)",
            )
        data += b"\xff\xd9"
        layout = _jpeg_layout(data)
        notes = ("missing end-of-image marker appended",)
    trailing = trailing_notes(data, layout.end, b"\xff\xd8\xff")
    image = memoryview(data)[: layout.end]
    height, width, colours, _ = decode_jpeg_header(image)
    _check_size(int(width), int(height), policy)
    if colours not in ("Gray", "YCbCr", "RGB"):
        _refuse(
            Reason.UNSUPPORTED_PIXELS, f"expected grey or RGB, received a {colours.upper()} JPEG"
        )
    # The luma plane of a YCbCr file is its grey picture; decoding it alone saves the colours.
    grey_is_stored = colours == "Gray" or (colours == "YCbCr" and not policy.grey_only)
    try:
        pixels = decode_jpeg(image, colorspace="GRAY" if grey_is_stored else "RGB", strict=True)
    except ValueError as error:
        reason = Reason.TRUNCATED if notes else Reason.DECODE_FAILED
        _refuse(reason, f"damaged JPEG: {one_line(error)}", error)
    return _Raster(pixels, exif_orientation(layout.exif), (*notes, *trailing))


def _jpeg_layout(data: bytes) -> _JpegLayout:
    """Walks the markers from the start to the end of the image.

    The decoder alone is not enough: it accepts a progressive file without its last scans.
    """
    scans = end = 0
    exif = None
    bits_left: dict[int, list[int]] = {}
    for marker, payload, behind in _jpeg_segments(data):
        if marker in _JPEG_OTHER_FRAME_HEADERS:
            _refuse(
                Reason.UNSUPPORTED_FORMAT,
                "expected a baseline or progressive JPEG, received an arithmetic-coded, lossless "
                "or hierarchical one; save it as an ordinary JPEG or PNG",
            )
        if marker in _JPEG_FRAME_HEADERS:
            if payload[0] != 8:
                _refuse(Reason.UNSUPPORTED_PIXELS, f"expected 8 bits, received {payload[0]}")
            bits_left = {payload[6 + 3 * i]: [8] * 64 for i in range(payload[5])}
        elif marker == _JPEG_EXIF and payload.startswith(b"Exif\0\0"):
            exif = exif or payload
        elif marker == _JPEG_SCAN:
            scans += 1
            if scans > _JPEG_MAX_SCANS:
                _refuse(Reason.DECODE_FAILED, f"more than {_JPEG_MAX_SCANS} scans in one JPEG")
            _book_scan(payload, bits_left)
        elif marker == _JPEG_END:
            end = behind
    if not bits_left or any(map(any, bits_left.values())):
        _refuse(Reason.TRUNCATED, "the JPEG lacks some of its scans")
    return _JpegLayout(exif, end)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Each marker with its payload and the offset behind it, up to the end-of-image marker."""
    in_scans = _jpeg_markers_in_scans(data)
    at = 2
    while True:
        start = at
        while data[at : at + 1] == b"\xff":
            at += 1
        if at >= len(data):
            _refuse(Reason.TRUNCATED, "the JPEG ends inside its header")
        marker = data[at]
        if at == start or marker < 0xC0 or 0xD0 <= marker <= 0xD8:
            _refuse(Reason.DECODE_FAILED, f"damaged JPEG: no marker at byte {start}")
        at += 1
        if marker == _JPEG_END:
            yield marker, b"", at
            return
        length = int.from_bytes(data[at : at + 2], "big")
        if at + max(length, 2) > len(data):
            _refuse(Reason.TRUNCATED, "the JPEG ends inside its header")
        payload = data[at + 2 : at + length]
        at += length
        yield marker, payload, at
        if marker == _JPEG_SCAN:
            later = np.searchsorted(in_scans, at)
            if later == len(in_scans):
                raise _NoEndMarkerError
            at = int(in_scans[later])


def _jpeg_markers_in_scans(data: bytes) -> npt.NDArray[np.intp]:
    """Where scan data can end: 0xff, not followed by a stuffed 0, a restart marker or a fill."""
    octets = np.frombuffer(data, np.uint8)
    at = np.flatnonzero(octets[:-1] == 0xFF)
    after = octets[at + 1]
    ends_scan = (after != 0) & (after != 0xFF) & ((after < 0xD0) | (after > 0xD7))
    return np.compress(ends_scan, at)


def _book_scan(payload: bytes, bits_left: dict[int, list[int]]) -> None:
    """Books per component and coefficient how many low bits later scans must still bring."""
    components = payload[0]
    first, last, approximation = payload[1 + 2 * components : 4 + 2 * components]
    for i in range(components):
        bits = bits_left[payload[1 + 2 * i]]
        for k in range(first, last + 1):
            bits[k] = approximation & 15


# ---------------------------------------------------------------------------------- through Pillow


def _load(image: ImageFile, policy: DecodePolicy) -> npt.NDArray[Any]:
    """The pixels of an opened Pillow image.

    The plugin classes are used directly: ``Image.open`` would apply Pillow's own, global pixel
    limit, and ``convert`` turns 16-bit pixels white.
    """
    _check_size(*image.size, policy)
    if getattr(image, "is_animated", False):
        _refuse(Reason.MULTIPLE_FRAMES, "expected one image per file, received several pages")
    image.load()
    loaded: Image = image
    if image.mode == "P":
        palette = image.palette
        if palette is None or np.asarray(image).max() >= len(palette.palette) // len(palette.mode):
            _refuse(Reason.DECODE_FAILED, "damaged image: a pixel outside the palette")
    if "transparency" in image.info:
        if image.mode not in ("L", "P", "RGB"):
            _refuse(Reason.UNSUPPORTED_PIXELS, f"a transparent colour in a {image.mode} image")
        loaded = image.convert("RGBA")
    elif image.mode in ("P", "1"):
        loaded = image.convert({"P": "RGB", "1": "L"}[image.mode])
    if loaded.mode not in ("L", "LA", "RGB", "RGBA", "I;16", "I;16B"):
        _refuse(
            Reason.UNSUPPORTED_PIXELS,
            f"expected grey, RGB, palette or 16-bit grey pixels, received {loaded.mode}; "
            "save as 8-bit grey",
        )
    return np.array(loaded)


def _decode_png(data: bytes, policy: DecodePolicy) -> _Raster:
    png = parse_png(data)
    header = png.header
    _check_size(header.width, header.height, policy)
    if png.payloads(b"fdAT"):
        _refuse(Reason.MULTIPLE_FRAMES, "expected one image per file, received an animated PNG")
    if header.depth == 16 and header.colours != Colours.GREY:
        # Pillow would keep the upper 8 bits and hide that a 12-bit camera's picture became black.
        _refuse(
            Reason.UNSUPPORTED_PIXELS,
            "expected 8-bit colour or 16-bit grey, received a 16-bit PNG with colour or alpha; "
            "save as 16-bit grey",
        )
    # Only what makes pixels: texts and profiles could fail or warn without harm to the picture.
    used = [(kind, payload) for kind, payload in png.chunks if kind in (b"PLTE", b"tRNS")]
    plain = plain_png(header, png.lines(), used)
    pixels = _load(PngImageFile(BytesIO(plain)), policy)
    exif = next(map(bytes, png.payloads(b"eXIf")), None)
    return _Raster(pixels, exif_orientation(exif), png.notes)


_BMP_LAYOUTS = {("1", 1), ("P", 1), ("L", 8), ("P", 8), ("RGB", 24), ("RGB", 32), ("RGBA", 32)}


def _decode_bmp(data: bytes, policy: DecodePolicy) -> _Raster:
    image = BmpImageFile(BytesIO(data))
    (bits,) = struct.unpack_from("<H", data, 24 if data[14] == 12 else 28)
    # Pillow misreads grey palettes with few entries, and fills what run-length coding leaves out.
    if (image.mode, bits) not in _BMP_LAYOUTS or image.info["compression"] not in (0, 3):
        _refuse(
            Reason.UNSUPPORTED_PIXELS,
            f"expected an uncompressed BMP with 1, 8, 24 or 32 bits, received {bits} bits, "
            f"compression {image.info['compression']}; save as PNG",
        )
    return _Raster(_load(image, policy))


_TIFF_COMPRESSIONS = {"raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits"}


def _decode_tiff(data: bytes, policy: DecodePolicy) -> _Raster:
    order = "<" if data[:2] == b"II" else ">"
    if struct.unpack_from(order + "H", data, 2)[0] == 43:
        _refuse(Reason.UNSUPPORTED_FORMAT, "expected a TIFF below 4 GB, received a BigTIFF")
    # The directory usually stands behind the pixels and is the first thing a cut removes.
    (directory,) = struct.unpack_from(order + "I", data, 4)
    entries = int.from_bytes(data[directory : directory + 2], "little" if order == "<" else "big")
    if directory + 2 + 12 * entries + 4 > len(data):
        _refuse(Reason.TRUNCATED, "the TIFF ends before its directory does")
    image = TiffImageFile(BytesIO(data))
    _check_size(*image.size, policy)
    _check_tiff_tags(image, len(data))
    # Pillow applies and removes the orientation while loading; what is left for us is the note.
    orientation = image.tag_v2.get(274)
    pixels = _load(image, policy)
    return _Raster(pixels, notes=_orientation_notes(orientation))


def _check_tiff_tags(image: TiffImageFile, data_bytes: int) -> None:
    """Refuses what Pillow would read, but as other pixels than the file means."""
    tags = image.tag_v2
    compression = image.info["compression"]
    if 50706 in tags or tags.get(254, 0) & 1:
        _refuse(Reason.UNSUPPORTED_FORMAT, "a camera raw file, or a TIFF with a thumbnail first")
    if compression not in _TIFF_COMPRESSIONS:
        _refuse(
            Reason.UNSUPPORTED_FORMAT,
            f"expected TIFF compression none, LZW, deflate or PackBits, received {compression}",
        )
    samples = tags.get(277, 1)
    photometric = tags.get(262)
    depths = set(tags.get(258, (1,)))
    if (
        photometric not in (0, 1, 2, 3)
        or depths not in ({1}, {8}, {16})
        or (depths == {16} and (photometric != 1 or samples != 1))
        or set(tags.get(339, (1,))) != {1}
        or tags.get(266, 1) != 1
        or (tags.get(284, 1) != 1 and samples != 1)
    ):
        _refuse(
            Reason.UNSUPPORTED_PIXELS,
            "expected TIFF pixels of 1 or 8 bits, or 16-bit grey, received bits "
            f"{sorted(depths)}, {samples} per pixel, photometric {photometric}; save as PNG",
        )
    # Pillow leaves the rows of missing strips black.
    width, height = tags[256], tags[257]
    if 322 in tags:
        parts = math.ceil(width / tags[322]) * math.ceil(height / tags[323])
        offsets, lengths = tags.get(324, ()), tags.get(325, ())
    else:
        parts = math.ceil(height / tags.get(278, height))
        offsets, lengths = tags.get(273, ()), tags.get(279, ())
    raw_bytes = height * math.ceil(width * samples * max(depths) / 8)
    if (
        len(offsets) != parts
        or len(lengths) != parts
        or max(map(sum, zip(offsets, lengths, strict=True))) > data_bytes
        or (compression == "raw" and sum(lengths) < raw_bytes)
    ):
        _refuse(Reason.TRUNCATED, "parts of the TIFF's pixel data are missing")


def _decode_webp(data: bytes, policy: DecodePolicy) -> _Raster:
    if struct.unpack_from("<I", data, 4)[0] + 8 > len(data):
        _refuse(Reason.TRUNCATED, "the WebP is shorter than its header says")
    # Opening already takes memory for all pixels.
    _check_size(*_webp_size(data), policy)
    image = WebPImageFile(BytesIO(data))
    return _Raster(_load(image, policy), exif_orientation(image.info.get("exif")))


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return (
            int.from_bytes(data[24:27], "little") + 1,
            int.from_bytes(data[27:30], "little") + 1,
        )
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind != b"VP8 ":
        _refuse(Reason.DECODE_FAILED, "damaged WebP: no picture behind its header")
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


_DECODERS: dict[str, Callable[[bytes, DecodePolicy], _Raster]] = {
    "jpeg": _decode_jpeg,
    "png": _decode_png,
    "bmp": _decode_bmp,
    "tiff": _decode_tiff,
    "webp": _decode_webp,
}
_ACCEPTED = "JPEG, PNG, BMP, TIFF or WebP"
_OPENED_BY: dict[str, type[ImageFile]] = {
    "jpeg": JpegImageFile,
    "png": PngImageFile,
    "bmp": BmpImageFile,
    "tiff": TiffImageFile,
    "webp": WebPImageFile,
}


# ------------------------------------------------------------------------------------------- tiling


def pad_to_multiple(grey_hw: GreyHW, multiple: int) -> tuple[GreyHW, tuple[int, int]]:
    """Extends the bottom and right so that both sides are multiples; also returns ``(h, w)``.

    The border is mirrored without repeating the edge; where the frame is too small for that, the
    edge is repeated. Nothing is copied if nothing is to be added.
    """
    height, width = grey_hw.shape
    bottom, right = -height % multiple, -width % multiple
    if bottom == right == 0:
        return grey_hw, (height, width)
    mirror = bottom < height and right < width
    border = cv2.BORDER_REFLECT_101 if mirror else cv2.BORDER_REPLICATE
    padded = cv2.copyMakeBorder(grey_hw, 0, bottom, 0, right, border)
    return padded.astype(np.uint8, copy=False), (height, width)


def tile_plan(size_wh: tuple[int, int], tile_wh: tuple[int, int], overlap_px: int) -> list[BoxXYWH]:
    """The boxes, row by row, that cover an image with tiles overlapping by ``overlap_px`` or more.

    Tiles are spread evenly and stay inside the image; along a side that is shorter than the tile,
    the tile is as long as the image.

    Raises:
        InputError: an empty image or tile, or an overlap that leaves the tile nothing of its own.
    """
    if min(size_wh) < 1 or not 0 <= overlap_px < min(tile_wh):
        raise InputError(
            "expected a size of at least 1 x 1 and 0 <= overlap < tile side, "
            f"received size {size_wh}, tile {tile_wh}, overlap {overlap_px}"
        )
    width, height = (min(s, t) for s, t in zip(size_wh, tile_wh, strict=True))
    columns = _tile_starts(size_wh[0], tile_wh[0], overlap_px)
    rows = _tile_starts(size_wh[1], tile_wh[1], overlap_px)
    return [(x, y, width, height) for y in rows for x in columns]


def _tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    if size <= tile:
        return [0]
    steps = math.ceil((size - tile) / (tile - overlap))
    # Rounding down keeps every step at or below tile - overlap, because that is a whole number.
    return [i * (size - tile) // steps for i in range(steps + 1)]


def blend_weights(width: int, height: int, overlap_px: int) -> npt.NDArray[np.float32]:
    """``(height, width)`` weights: 1 inside, falling linearly over ``overlap_px`` to the edges.

    Never 0, so that pixels at the image's own edge count in full after normalising.
    """

    def ramp(length: int) -> npt.NDArray[np.float32]:
        i = np.arange(length)
        steps = np.minimum(np.minimum(i + 1, length - i), overlap_px + 1)
        return (steps / (overlap_px + 1)).astype(np.float32)

    return np.outer(ramp(height), ramp(width))


def steel_columns(grey_hw: GreyHW, dark_below: int, multiple_of: int = 1) -> tuple[int, int]:
    """First column that shows steel, and the one after the last.

    A column is dark if fewer than one in 64 of its pixels reach ``dark_below``: beside the strip
    there is nothing but noise. Only dark columns at the sides are left out.

    Args:
        grey_hw: the frame.
        dark_below: least grey level of steel; 0 takes all columns.
        multiple_of: both limits are moved outward to multiples of it, as far as there are columns.

    Returns:
        ``(0, columns)`` also for a frame that is dark all over.
    """
    rows, columns = grey_hw.shape
    if dark_below <= 0:
        return 0, columns
    bright_px = cv2.reduce(
        cv2.threshold(grey_hw, dark_below - 1, 1, cv2.THRESH_BINARY)[1],
        0,
        cv2.REDUCE_SUM,
        dtype=cv2.CV_32S,
    )[0]
    steel = np.flatnonzero(bright_px * 64 >= rows)
    if not steel.size:
        return 0, columns
    first = int(steel[0]) // multiple_of * multiple_of
    last = -(-(int(steel[-1]) + 1) // multiple_of) * multiple_of
    return first, min(last, columns)


def mask_probabilities(logits_chw: ProbabilitiesCHW, size_wh: tuple[int, int]) -> ProbabilitiesCHW:
    """Sigmoid of mask logits, enlarged bilinearly.

    The logits are interpolated, not the probabilities: outlines then lie where the trained network
    put them (``align_corners=False``, as in torch).

    Args:
        logits_chw: at the network's resolution, ``(C, h, w)``.
        size_wh: of the result; multiples of w and h.

    Returns:
        0..1, ``(C, H, W)``; NaN around logits that are NaN.
    """
    width, height = size_wh
    probabilities_chw = np.empty((len(logits_chw), height, width), np.float32)
    for logits_hw, enlarged_hw in zip(logits_chw, probabilities_chw, strict=True):
        enlarged_hw[...] = cv2.resize(logits_hw, size_wh, interpolation=cv2.INTER_LINEAR)
    np.negative(probabilities_chw, out=probabilities_chw)
    with np.errstate(over="ignore", invalid="ignore"):  # 1 / (1 + infinity) is 0, as it should be
        np.exp(probabilities_chw, out=probabilities_chw)
    probabilities_chw += 1
    return np.reciprocal(probabilities_chw, out=probabilities_chw)


class Stitcher:
    """Joins the probability maps of overlapping tiles into one map of the whole image.

    Keeps the weighted mean up to date tile by tile: a pixel seen by one tile keeps that tile's
    value to the last bit, and tiles that agree change nothing. Pixels seen by no tile are 0.
    """

    def __init__(self, types: int, size_wh: tuple[int, int], overlap_px: int) -> None:
        width, height = size_wh
        self.probabilities_chw: ProbabilitiesCHW = np.zeros((types, height, width), np.float32)
        self._weight_hw = np.zeros((height, width), np.float32)
        self._overlap_px = overlap_px

    def add(self, tile_chw: ProbabilitiesCHW, box_xywh: BoxXYWH) -> None:
        """Blends one tile in; ``tile_chw`` has the box's size.

        Raises:
            InputError: the tile's shape is not that of the box, or the box leaves the image.
        """
        x, y, width, height = box_xywh
        mean_chw = self.probabilities_chw[:, y : y + height, x : x + width]
        if (
            min(x, y) < 0
            or mean_chw.shape[1:] != (height, width)
            or tile_chw.shape != mean_chw.shape
        ):
            raise InputError(
                f"expected a tile of shape {(len(mean_chw), height, width)} inside "
                f"{self.probabilities_chw.shape}, received {tile_chw.shape} at {box_xywh}"
            )
        weights_hw = blend_weights(width, height, self._overlap_px)
        total_hw = self._weight_hw[y : y + height, x : x + width]
        total_hw += weights_hw
        mean_chw += (tile_chw - mean_chw) * (weights_hw / total_hw)
