"""Strict PNG (https://www.w3.org/TR/png-3): every checksum, every line, numbers as they are stored.

PNG can tell any damage, but Pillow and OpenCV do not ask: they fill missing lines with black and
skip missing checksums. They also scale grey of few bits and look colours up, where class numbers
are wanted. So a file is taken apart here, and Pillow only undoes the filters of complete lines.

Sizes are the header's; whoever decodes checks them first, because memory is taken by them.
"""

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from steelsight.defects import Reason
from steelsight.errors import DecodeError

Samples = NDArray[np.uint8] | NDArray[np.uint16]
Ints = NDArray[np.int64]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""First column and row, steps between columns and rows, of each pass of an interlaced PNG."""


class Colours(IntEnum):
    """What the samples of a pixel are; PNG's "colour type"."""

    GREY = 0
    RGB = 2
    PALETTE = 3
    GREY_ALPHA = 4
    RGBA = 6


_CHANNELS: dict[int, int] = {
    Colours.GREY: 1,
    Colours.RGB: 3,
    Colours.PALETTE: 1,
    Colours.GREY_ALPHA: 2,
    Colours.RGBA: 4,
}


@dataclass(frozen=True, slots=True)
class PngHeader:
    """The fields of IHDR in their order; ``depth`` is in bits per sample, ``colours`` unchecked."""

    width: int
    height: int
    depth: int
    colours: int
    compression: int = 0
    filtering: int = 0
    interlaced: int = 0

    @property
    def channels(self) -> int:
        """Samples per pixel.

        Raises:
            DecodeError: no such colour type.
        """
        if self.colours not in _CHANNELS:
            raise DecodeError(Reason.DECODE_FAILED, f"damaged PNG: colour type {self.colours}")
        return _CHANNELS[self.colours]

    @property
    def row_bytes(self) -> int:
        """Of one line of pixels, without the byte in front that names its filter."""
        return _bytes_of(self.width * self.depth * self.channels)

    @property
    def line_bytes(self) -> int:
        """Of all lines of all passes, each with its filter."""
        bits = self.depth * self.channels
        passes = _ADAM7 if self.interlaced else ((0, 0, 1, 1),)
        sizes = (
            (-(-(self.width - x) // dx), -(-(self.height - y) // dy)) for x, y, dx, dy in passes
        )
        return sum(h * (1 + _bytes_of(w * bits)) for w, h in sizes if w > 0 and h > 0)


@dataclass(frozen=True, slots=True)
class Png:
    """A file taken apart, its checksums verified; the pixels are still compressed.

    Attributes:
        header: the first chunk.
        chunks: kind and payload of all chunks, the header's too.
        notes: on bytes behind the image.
    """

    header: PngHeader
    chunks: tuple[tuple[bytes, memoryview], ...]
    notes: tuple[str, ...]

    def payloads(self, kind: bytes) -> list[memoryview]:
        """Of all chunks of one kind."""
        return [payload for found, payload in self.chunks if found == kind]

    def lines(self) -> bytes:
        """The inflated lines, still filtered: as many bytes as the header says.

        A stream that inflates to more takes no more memory than that.

        Raises:
            DecodeError: more or fewer bytes, damaged, or not closed by their checksum.
        """
        expected = self.header.line_bytes
        stream = zlib.decompressobj()
        parts: list[bytes] = []
        produced = 0
        try:
            for rest in self.payloads(b"IDAT"):
                # One byte more than expected is enough to know that there are more.
                while rest and not stream.eof and produced <= expected:
                    parts.append(stream.decompress(rest, expected + 1 - produced))
                    produced += len(parts[-1])
                    rest = memoryview(stream.unconsumed_tail)
        except zlib.error as error:
            raise DecodeError(Reason.DECODE_FAILED, f"damaged PNG: {error}") from error
        if produced > expected:
            raise DecodeError(
                Reason.DECODE_FAILED, "damaged PNG: more pixel data than its header says"
            )
        if produced < expected or not stream.eof:
            raise DecodeError(Reason.TRUNCATED, "the PNG's pixel data end early")
        return b"".join(parts)

    def samples(self) -> Samples:
        """The stored numbers: nothing is scaled, and no colour looked up.

        Returns:
            Rows x columns; rows x columns x channels for colours and alpha. uint8, or uint16 where
            ``depth`` is 16.

        Raises:
            DecodeError: interlaced, colours or alpha of other than 8 bits, or see :meth:`lines`.
        """
        header = self.header
        depths = (1, 2, 4, 8, 16) if header.channels == 1 else (8,)
        if header.interlaced or header.depth not in depths:
            raise DecodeError(
                Reason.UNSUPPORTED_PIXELS,
                f"expected a plain PNG with {', '.join(map(str, depths))} bits per sample, received"
                f" {header.depth} bits{', interlaced' * bool(header.interlaced)}",
            )
        stored = self._unfiltered()
        if header.channels > 1:
            return stored.reshape(header.height, header.width, header.channels)
        if header.depth == 8:
            return stored
        if header.depth == 16:
            return np.ascontiguousarray(stored).view(">u2").astype(np.uint16)
        if header.depth == 1:
            return np.unpackbits(stored, axis=1, count=header.width)
        per_byte = 8 // header.depth
        values = np.empty((header.height, header.row_bytes, per_byte), np.uint8)
        for i in range(per_byte):
            values[:, :, i] = stored >> (8 - header.depth * (i + 1)) & (1 << header.depth) - 1
        return values.reshape(header.height, -1)[:, : header.width]

    def _unfiltered(self) -> NDArray[np.uint8]:
        """Rows x bytes as they were before PNG filtered them, whatever they mean.

        The filters work on bytes, one pixel's bytes apart. So a picture of any depth is unfiltered
        as 8-bit samples, which keeps Pillow from scaling them or looking them up in a palette.
        """
        header = self.header
        lines = self.lines()
        rows = np.frombuffer(lines, np.uint8).reshape(header.height, 1 + header.row_bytes)
        if not rows[:, 0].any():  # never filtered, as written here: nothing to undo
            return rows[:, 1:]
        if rows[:, 0].max() > 4:
            raise DecodeError(Reason.DECODE_FAILED, f"damaged PNG: filter {rows[:, 0].max()}")
        pixel_bytes = max(1, header.depth * header.channels // 8)
        colours = {1: Colours.GREY, 2: Colours.GREY_ALPHA, 3: Colours.RGB, 4: Colours.RGBA}
        width = header.row_bytes // pixel_bytes
        as_bytes = PngHeader(width, header.height, 8, colours[pixel_bytes])
        image = PngImageFile(BytesIO(plain_png(as_bytes, lines)))
        return np.asarray(image).reshape(header.height, header.row_bytes)


def parse_png(data: bytes) -> Png:
    """Takes a PNG apart and verifies the checksum of each chunk.

    Raises:
        DecodeError: cut off, damaged, without a header, with an unknown chunk that changes the
            meaning of the others, or followed by a second PNG.
    """
    view = memoryview(data)
    chunks: list[tuple[bytes, memoryview]] = []
    at = len(PNG_SIGNATURE)
    while not chunks or chunks[-1][0] != b"IEND":
        if at + 12 > len(data):
            raise DecodeError(Reason.TRUNCATED, "the PNG ends before its end chunk")
        (length,) = struct.unpack_from(">I", data, at)
        kind = data[at + 4 : at + 8]
        if not kind.isalpha():
            raise DecodeError(Reason.DECODE_FAILED, f"damaged PNG: no chunk at byte {at}")
        behind = at + 8 + length
        if behind + 4 > len(data):
            raise DecodeError(Reason.TRUNCATED, f"the PNG ends inside chunk {kind.decode()}")
        if zlib.crc32(view[at + 4 : behind]) != struct.unpack_from(">I", data, behind)[0]:
            raise DecodeError(
                Reason.DECODE_FAILED, f"damaged PNG: checksum of chunk {kind.decode()}"
            )
        if kind[:1].isupper() and kind not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            raise DecodeError(
                Reason.UNSUPPORTED_FORMAT, f"a PNG with a foreign chunk {kind.decode()}"
            )
        chunks.append((kind, view[at + 8 : behind]))
        at = behind + 4
    headers = [payload for kind, payload in chunks if kind == b"IHDR"]
    if chunks[0][0] != b"IHDR" or [*map(len, headers)] != [13]:
        raise DecodeError(Reason.DECODE_FAILED, "damaged PNG: it does not begin with its header")
    fields = struct.unpack(">IIBBBBB", headers[0])
    return Png(PngHeader(*fields), tuple(chunks), trailing_notes(data, at, PNG_SIGNATURE))


def trailing_notes(data: bytes, end: int, signature: bytes) -> tuple[str, ...]:
    """Notes on what stands behind an image of any format: padding, or foreign bytes.

    Raises:
        DecodeError: a second image.
    """
    trailing = data[end:]
    if not trailing:
        return ()
    if signature in trailing:
        raise DecodeError(
            Reason.MULTIPLE_FRAMES, "a second image follows the first; expected one per file"
        )
    kind = "other bytes" if trailing.strip(b"\0\xff") else "padding bytes"
    return (f"{len(trailing)} {kind} after the end of the image ignored",)


def plain_png(
    header: PngHeader, lines: bytes, others: Iterable[tuple[bytes, bytes | memoryview]] = ()
) -> bytes:
    """A PNG of lines that are not compressed, for a decoder that shall not inflate them again.

    Args:
        header: of the picture.
        lines: as :meth:`Png.lines` returns them.
        others: kind and payload of chunks to stand in between.
    """
    return _file(header, others, zlib.compress(lines, 0))


def encode_png(values_hw: Samples, bits: int, palette_rgb: bytes = b"") -> bytes:
    """Writes numbers as PNG: grey with 1, 8 or 16 bits, or a palette with 8 bits.

    Lines are not filtered, and runs are the only repetitions that zlib looks for: masks are made of
    them, files get smaller than by a full search, and both ways are fast.

    Args:
        values_hw: uint8 or uint16, rows x columns, below ``2 ** bits``.
        bits: per pixel.
        palette_rgb: red, green, blue of number 0, then of number 1 and so on.
    """
    height, width = values_hw.shape
    stored: NDArray[np.uint8]
    if bits == 16:
        stored = values_hw.astype(">u2").view(np.uint8)
    elif bits == 1:
        stored = np.packbits(values_hw.view(np.bool_), axis=1)
    else:
        stored = values_hw.view(np.uint8)
    lines = np.zeros((height, 1 + stored.shape[1]), np.uint8)
    lines[:, 1:] = stored
    # zlib goes through its hash table after every 32 kB; runs need none, so it is a small one.
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 5, zlib.Z_RLE)
    header = PngHeader(width, height, bits, Colours.PALETTE if palette_rgb else Colours.GREY)
    palette = [(b"PLTE", palette_rgb)] if palette_rgb else []
    return _file(header, palette, deflate.compress(lines.data) + deflate.flush())


def encode_png_part(
    part_hw: NDArray[np.uint8], left: int, width: int, palette_rgb: bytes = b""
) -> bytes:
    """Writes a picture that is 0 but for some of its columns as PNG of 8 bits, run by run.

    The mask of a frame takes a third of the time of :func:`encode_png`, and up to four times the
    bytes.

    Args:
        part_hw: the columns in one piece, as high as the picture.
        left: column of the picture, from 0, in which the part begins.
        width: of the picture in pixels.
        palette_rgb: see :func:`encode_png`.
    """
    height, part_width = part_hw.shape
    # Behind each line of the part comes a 0 of the picture, or the name of the next line's filter.
    flat = np.zeros(height * (part_width + 1) + 1, np.uint8)
    flat[1:].reshape(height, -1)[:, :-1] = part_hw
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    row, column = np.divmod(edges, part_width + 1)
    starts, values = np.zeros((2, len(edges) + 1), np.int64)
    starts[1:], values[1:] = row * (width + 1) + (1 + left) + column, flat[1:][edges]
    header = PngHeader(width, height, 8, Colours.PALETTE if palette_rgb else Colours.GREY)
    palette = [(b"PLTE", palette_rgb)] if palette_rgb else []
    size = header.line_bytes
    inside = slice(-1 if starts[-1] == size else None)  # a run may end with the picture
    return _file(header, palette, _deflated_runs(starts[inside], values[inside], size))


def _deflated_runs(starts: Ints, values: Ints, size: int) -> bytes:
    """A zlib stream (RFC 1950 and 1951) of ``size`` bytes in runs.

    Each run is its first byte and matches that repeat what is before them. All is one block with
    the codes that deflate fixes.

    Args:
        starts: of the runs, ascending from 0.
        values: of the bytes in each run, below 256.
        size: in bytes, more than the last start.
    """
    lengths = np.empty_like(starts)
    lengths[:-1], lengths[-1] = starts[1:] - starts[:-1], size - starts[-1]
    full, rest = np.divmod(lengths - 1, _LONGEST_MATCH)
    matched = rest >= _SHORTEST_MATCH
    symbols = np.empty((len(lengths), 4), np.int64)
    symbols[:, 0], symbols[:, 3] = values, np.where(matched, _MATCH + rest, values)
    symbols[:, 1], symbols[:, 2] = _MATCH + _LONGEST_MATCH, _FAR_MATCH
    counts = np.empty_like(symbols)
    counts[:, 0], counts[:, 3] = 1, np.where(matched, 1, rest)
    counts[:, 1], counts[:, 2] = full > 0, np.maximum(full - 1, 0)
    written = np.repeat(symbols.ravel(), counts.ravel())

    bits = _BITS[written]
    bit_end = np.cumsum(bits)
    at = bit_end - bits + _HEAD_BITS
    # No code is longer than a word of 32 bits, so one begins in each; and as no two share a bit,
    # their sums are their unions.
    word = at >> 5
    is_first = np.ones(len(word), np.bool_)
    np.not_equal(word[1:], word[:-1], out=is_first[1:])
    words = np.zeros(int(word[-1]) + 2, np.int64)
    words[:-1] = np.add.reduceat(_CODES[written] << (at & 31), np.flatnonzero(is_first))
    words[0] += _HEAD
    words[1:] += words[:-1] >> 32
    # The end of the block is zeros, as many as its code has bits.
    bit_count = _HEAD_BITS + int(bit_end[-1]) + int(_BITS[_END])
    stream = words.astype(np.uint32).astype("<u4").tobytes()[: -(-bit_count // 8)]

    # Adler-32: the sum of all bytes, and the sum of that sum after each byte.
    seen = np.flatnonzero(values)
    starts, lengths, values = starts[seen], lengths[seen], values[seen]
    weights = (lengths * (2 * (size - starts) - lengths + 1) >> 1) % _ADLER
    low = (1 + int(values @ lengths)) % _ADLER
    high = (size + int(values @ weights)) % _ADLER
    return b"\x78\x01" + stream + struct.pack(">HH", high, low)


def _fixed_codes() -> tuple[Ints, Ints]:
    """Codes of deflate (RFC 1951, 3.2.5 and 3.2.6) with the first bit lowest, and their bits.

    Of each byte, of the block's end at ``_END``, and at ``_MATCH + n`` of n bytes that repeat the
    byte before; at ``_FAR_MATCH`` of the longest match that repeats what is ``_FAR`` bytes before.
    """

    def literal(symbol: int) -> str:
        for first, end, code, bits in (
            (0, 144, 0x30, 8),
            (144, 256, 0x190, 9),
            (256, 280, 0, 7),
            (280, 288, 0xC0, 8),
        ):
            if symbol < end:
                return f"{code + symbol - first:0{bits}b}"
        raise AssertionError(symbol)

    distance = "00000"
    texts = {number: literal(number) for number in (*range(256), _END)}
    symbol, length = 257, _SHORTEST_MATCH
    while symbol < 285:
        extra = max(0, (symbol - 261) // 4)
        for more in range(1 << extra):
            lowest_first = f"{more:0{extra}b}"[::-1] if extra else ""
            texts[_MATCH + length + more] = literal(symbol) + lowest_first + distance
        symbol, length = symbol + 1, length + (1 << extra)
    texts[_MATCH + _LONGEST_MATCH] = literal(285) + distance
    texts[_FAR_MATCH] = literal(285) + f"{14:05b}" + "0" * 6  # from 129 on, six bits more
    codes, bits = np.zeros((2, _FAR_MATCH + 1), np.int64)
    for number, text in texts.items():
        codes[number], bits[number] = int(text[::-1], 2), len(text)
    return codes, bits


_HEAD, _HEAD_BITS = 0b011, 3
"""Of a block: the last one, with fixed codes."""
_ADLER = 65521
_SHORTEST_MATCH, _LONGEST_MATCH = 3, 258
_FAR = 129
"""Bytes. Inflating waits for each byte that the next one repeats; further away, it copies many."""
_END = _MATCH = 256
_FAR_MATCH = _MATCH + _LONGEST_MATCH + 1
_CODES, _BITS = _fixed_codes()


def _file(
    header: PngHeader, others: Iterable[tuple[bytes, bytes | memoryview]], pixels: bytes
) -> bytes:
    fields = struct.pack(
        ">IIBBBBB",
        *(header.width, header.height, header.depth, header.colours),
        *(header.compression, header.filtering, header.interlaced),
    )
    parts: list[bytes | memoryview] = [PNG_SIGNATURE]
    for kind, payload in ((b"IHDR", fields), *others, (b"IDAT", pixels), (b"IEND", b"")):
        checksum = zlib.crc32(payload, zlib.crc32(kind))
        parts += (struct.pack(">I", len(payload)), kind, payload, struct.pack(">I", checksum))
    return b"".join(parts)


def voc_palette(colours: int) -> bytes:
    """The first colours of Pascal VOC's palette, three bytes each: black, dark red, dark green...

    The bits of a number, from the lowest, go in turn to red, green and blue, each from its highest
    bit down (``VOClabelcolormap.m`` of the VOC development kit).
    """
    number = np.arange(colours)
    rgb = np.zeros((colours, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            rgb[:, channel] |= ((number >> 3 * bit + channel & 1) << 7 - bit).astype(np.uint8)
    return rgb.tobytes()


def _bytes_of(bits: int) -> int:
    return (bits + 7) // 8
