"""One mask file: a PNG of class numbers or of one class, read strictly, as run lengths.

A wrong number is a wrong type, so only undamaged PNG is read, of the image's size, whose numbers
leave no doubt. Refused are JPEG (compression mixes numbers), colours, 255 in masks of numbers
(VOC's "void"), 2- and 4-bit grey (programs disagree whether 1 means 1 or 85), and grey palettes
that an image optimiser has sorted anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from steelsight.data.labels import CLASS_LIST
from steelsight.errors import DecodeError, LabelError
from steelsight.imaging import DecodePolicy, exif_orientation, read_bytes
from steelsight.masks import MAX_MASK_PX
from steelsight.png import PNG_SIGNATURE, Colours, Png, Samples, parse_png

VOID = 255
"""In Pascal VOC the value of pixels that belong to no class and are not background either."""

_POLICY = DecodePolicy(max_pixels=MAX_MASK_PX)
_DEPTHS: dict[int, tuple[int, ...]] = {
    Colours.GREY: (1, 8, 16),
    Colours.PALETTE: (1, 2, 4, 8),
    Colours.RGB: (8,),
    Colours.GREY_ALPHA: (8,),
    Colours.RGBA: (8,),
}

Rgb = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class DecodedMask:
    """What one mask file says.

    Attributes:
        size_wh: width and height in pixels.
        rle_by_value: canonical Kaggle RLE of every number but 0 that occurs.
        colour_by_value: what a palette says about these numbers.
        was_rgb: the number stands in three equal channels.
    """

    size_wh: tuple[int, int]
    rle_by_value: Mapping[int, str]
    colour_by_value: Mapping[int, Rgb]
    was_rgb: bool


@dataclass(frozen=True, slots=True)
class _MaskPng:
    """Numbers of one file, and the colours they stand for (entries x 3) where it has a palette.

    ``highest_w`` is the highest number of each column: most columns of most masks hold zeros only.
    """

    values_hw: Samples
    highest_w: Samples
    palette_rgb: NDArray[np.uint8] | None
    was_rgb: bool


def read_mask_values(
    path: Path,
    expected_wh: tuple[int, int] | None = None,
    *,
    where: str = "",
    max_px: int = MAX_MASK_PX,
) -> Samples:
    """Reads one mask strictly: the stored numbers, of a palette PNG the indices.

    Args:
        path: PNG with 1, 8 or 16 bits of grey, a palette, or RGB whose channels are equal.
        expected_wh: width and height of the image in pixels, where they are known.
        where: put in front of an error message instead of the path.
        max_px: larger masks are refused from their header.

    Returns:
        Rows x columns; uint8, or uint16 for 16-bit grey.

    Raises:
        LabelError: unreadable, no PNG, damaged, coloured, too large, or of another size.
    """
    return _read(path, expected_wh, where or str(path), max_px).values_hw


def read_binary_mask(
    path: Path, expected_wh: tuple[int, int] | None = None, *, where: str = ""
) -> DecodedMask:
    """Reads a mask of one class: 0 and 255, or 0 and 1.

    Raises:
        LabelError: see :func:`read_mask_values`; also other numbers, or 1 beside 255.
    """
    where = where or str(path)
    png = _read(path, expected_wh, where)
    if png.palette_rgb is not None and png.palette_rgb[0].min() == 255:
        raise LabelError(
            f"{where}: number 0 of the palette is white, expected black: the mask may be inverted;"
            " save it as grey with 0 for good steel and 255 for the defect"
        )
    expected = "expected 0 and 255, or 0 and 1; save one mask per class"
    decoded = _decoded(png, 255, expected, where)
    if len(decoded.rle_by_value) > 1 or not decoded.rle_by_value.keys() <= {1, 255}:
        values = list(decoded.rle_by_value)
        raise LabelError(
            f"{where}: the pixel values beside 0 are {', '.join(map(str, values[:6]))}"
            f"{', ...' * (len(values) > 6)}, expected 255 alone, or 1 alone; scaling and JPEG make"
            " grey edges: export the mask again without them (class numbers are mask-index)"
        )
    return decoded


def read_number_mask(
    path: Path, expected_wh: tuple[int, int] | None, names: int | None, where: str
) -> DecodedMask:
    """Reads a mask of class numbers; ``names`` is the number of classes where it is known."""
    png = _read(path, expected_wh, where)
    highest = VOID - 1 if names is None else names
    if names is None:
        expected = f"expected 0 to {highest} while {CLASS_LIST} names no types; add that file"
    else:
        expected = (
            f"expected 0 to {highest}, because {names} types are named; add the missing names to"
            f" {CLASS_LIST}, or correct the mask"
        )
    if highest < VOID and png.highest_w.max() == VOID:
        expected = (
            f"expected 0 to {highest}; in Pascal VOC 255 is 'void', which no type can hold: write 0"
            " or a type's number there, or if 255 marks the only defect, read it as mask-binary"
        )
    decoded = _decoded(png, highest, expected, where)
    for value, colour in decoded.colour_by_value.items():
        grey = colour[0]
        if colour == (grey, grey, grey) and grey != value and 1 <= grey <= (names or 0):
            raise LabelError(
                f"{where}: pixel value {value} has the grey {grey} in the palette, which is"
                " another type's number, expected one of them; an image optimiser may have"
                " rewritten the mask: save it as 8-bit grey"
            )
    return decoded


def _read(
    path: Path, expected_wh: tuple[int, int] | None, where: str, max_px: int = MAX_MASK_PX
) -> _MaskPng:
    try:
        data = read_bytes(path, policy=_POLICY)
        if not data.startswith(PNG_SIGNATURE):
            raise _no_png_error(data, where)
        png = parse_png(data)
        _check(png, expected_wh, max_px, where)
        values = png.samples()
    except DecodeError as error:
        raise LabelError(f"{where}: {error}; replace the mask by an undamaged PNG") from error
    colours = png.header.colours
    if colours not in (Colours.GREY, Colours.PALETTE):
        values = _grey_of_colours(values, where)
    highest_w = values.max(axis=0)
    if colours != Colours.PALETTE:
        return _MaskPng(values, highest_w, None, was_rgb=colours != Colours.GREY)
    palettes = png.payloads(b"PLTE")
    entries = np.frombuffer(palettes[0] if palettes else b"", np.uint8)
    if len(palettes) != 1 or len(entries) % 3 or int(highest_w.max()) >= len(entries) // 3:
        raise LabelError(
            f"{where}: pixel value {highest_w.max()} in a palette of {len(entries) // 3} colours,"
            " expected a colour for each; replace the mask by an undamaged PNG"
        )
    return _MaskPng(values, highest_w, entries.reshape(-1, 3), was_rgb=False)


def _no_png_error(data: bytes, where: str) -> LabelError:
    if data.startswith(b"\xff\xd8\xff"):
        return LabelError(
            f"{where}: expected a PNG, received a JPEG, whose compression smears the class numbers"
            " into each other; export the masks again as PNG"
        )
    return LabelError(
        f"{where}: expected a PNG, received a file that begins with {data[:8].hex(' ')!r}; export"
        " the masks as PNG"
    )


def _check(png: Png, expected_wh: tuple[int, int] | None, max_px: int, where: str) -> None:
    """What the header tells, before memory is taken for pixels."""
    header = png.header
    if header.depth not in _DEPTHS.get(header.colours, ()):
        reason = f"PNG colour type {header.colours} with {header.depth} bits"
        if header.colours == Colours.GREY and header.depth in (2, 4):
            reason = f"{header.depth}-bit grey, which some programs scale to 0..255 and some do not"
        raise LabelError(
            f"{where}: {reason}, expected 1, 8 or 16 bits of grey or a palette; save the mask as"
            " 8-bit grey"
        )
    if header.compression or header.filtering or header.interlaced:
        raise LabelError(
            f"{where}: an interlaced PNG, expected a plain one; save the mask without interlacing"
        )
    if png.payloads(b"acTL"):
        raise LabelError(f"{where}: an animated PNG, expected one mask; save a single picture")
    if any(exif_orientation(bytes(exif)) not in (None, 1) for exif in png.payloads(b"eXIf")):
        raise LabelError(
            f"{where}: the mask is to be turned by its EXIF orientation, which most programs ignore"
            " in masks; turn the pixels themselves and remove the tag"
        )
    size_px, row_bytes = header.width * header.height, header.row_bytes
    if size_px < 1 or max(size_px, header.height * row_bytes) > max_px:
        raise LabelError(
            f"{where}: the mask is {header.width} x {header.height}, expected 1 to {max_px:,}"
            " pixels of 8 bits; cut image and mask into tiles"
        )
    if expected_wh is not None and (header.width, header.height) != expected_wh:
        raise LabelError(
            f"{where}: the mask is {header.width} x {header.height}, expected the image's"
            f" {expected_wh[0]} x {expected_wh[1]}; use the image that was labelled, unscaled and"
            " not turned"
        )


def _grey_of_colours(pixels: Samples, where: str) -> Samples:
    channels = pixels.shape[2]
    transparent = channels in (2, 4) and (pixels[:, :, -1] != 255).any()
    coloured = channels >= 3 and (pixels[:, :, :3] != pixels[:, :, :1]).any(axis=2)
    if transparent or np.any(coloured):
        y, x = np.argwhere(coloured)[0] if np.any(coloured) else (0, 0)
        found = "transparent pixels" if transparent else f"the colour {_rgb(pixels[y, x])}"
        raise LabelError(
            f"{where}: {found} at row {y}, column {x}, expected one number per pixel; save class"
            " numbers as 8-bit grey or palette PNG, because colours do not name classes"
        )
    return pixels[:, :, 0].astype(np.uint8)


def _rgb(colour: NDArray[Any]) -> Rgb:
    red, green, blue = colour[:3].tolist()
    return red, green, blue


def _value_rles(png: _MaskPng, highest: int, expected: str, where: str) -> dict[int, str]:
    """Canonical Kaggle RLE of every number but 0, in one pass over the pixels.

    Args:
        png: the mask.
        highest: numbers above it are refused.
        expected: what to say then.
        where: put in front of an error message.

    Raises:
        LabelError: a number above ``highest``; the text names it and its first pixel.
    """
    covered = np.flatnonzero(png.highest_w)
    if not len(covered):
        return {}
    height = len(png.values_hw)
    left, right = int(covered[0]), int(covered[-1]) + 1
    columns = cv2.transpose(png.values_hw[:, left:right]).ravel()
    starts = np.append(0, np.flatnonzero(columns[1:] != columns[:-1]) + 1)
    runs = np.empty((len(starts), 2), np.int64)
    runs[:, 0] = starts + (left * height + 1)
    runs[:-1, 1], runs[-1, 1] = starts[1:] - starts[:-1], len(columns) - starts[-1]
    value = columns[starts]
    if value.max() > highest:
        first = int((value > highest).argmax())
        count_px = np.count_nonzero(columns == value[first])
        raise LabelError(
            f"{where}: pixel value {value[first]} at row {starts[first] % height}, column"
            f" {left + starts[first] // height} ({count_px} px in all), {expected}"
        )
    # Runs of equal number side by side, still in ascending order; they do not touch by themselves.
    order = np.argsort(value, kind="stable")
    runs, value = runs[order], value[order]
    bounds = [*(np.flatnonzero(value[1:] != value[:-1]) + 1).tolist(), len(value)]
    return {
        int(value[a]): " ".join(map(str, runs[a:b].ravel().tolist()))
        for a, b in pairwise([0, *bounds])
        if value[a]
    }


def _decoded(png: _MaskPng, highest: int, expected: str, where: str) -> DecodedMask:
    height, width = png.values_hw.shape
    rles = _value_rles(png, highest, expected, where)
    colours: dict[int, Rgb] = {}
    if png.palette_rgb is not None:
        colours = {value: _rgb(png.palette_rgb[value]) for value in rles}
    return DecodedMask((width, height), rles, colours, png.was_rgb)
