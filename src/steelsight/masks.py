"""Masks as text (Kaggle and COCO run lengths) and as measured regions.

Both text forms follow the pixels column by column: top to bottom, then left to right.

* Kaggle: ``start length`` pairs separated by blanks, ``start`` counted from 1; nothing for an
  empty mask (https://www.kaggle.com/c/severstal-steel-defect-detection, "Evaluation").
* COCO: ``{"size": [height, width], "counts": ...}``, where the counts are the lengths of
  alternating runs of zeros and ones and begin with zeros. Either a list, or packed into text, five
  bits a character, as in ``maskApi.c`` of https://github.com/cocodataset/cocoapi.

Shapes: ``_hw`` is rows x columns, ``_wh`` columns x rows. Text comes from files that others wrote:
whatever breaks its form is a ``LabelError`` before memory for the mask is taken.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypedDict

import cv2
import numpy as np
from numpy.typing import NDArray

from steelsight.errors import InputError, LabelError

MAX_MASK_PX = 1 << 28
"""Largest mask that is decoded: 16,384 x 16,384, one byte per pixel."""

_BLANKS = " \t\r\n"
_COCO_MAX_CHARACTERS = 7
"""Per number: 35 bits, which hold any difference of two counts up to ``MAX_MASK_PX``."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class CocoRle(TypedDict):
    """A mask as COCO writes it into JSON."""

    size: list[int]
    counts: str | list[int]


@dataclass(frozen=True, slots=True)
class Region:
    """One connected region (8 neighbours) and its measurements; pixels are unit squares.

    Attributes:
        area_px: number of pixels.
        bbox_xywh: tightest upright box in pixels, 0-based.
        length_px, width_px: longer and shorter side of the minimum-area rectangle around the
            pixels' squares; a single pixel is 1 x 1, ten in a row are 10 x 1.
        orientation_deg: direction of the longer side, 0 = along a row, 90 = along a column,
            counter-clockwise on screen, in [0, 180); for a square the angle in [0, 90).
        mean_probability: over the region's pixels; 1 where no probabilities were given.
        rle: Kaggle form in the whole frame.
    """

    area_px: int
    bbox_xywh: tuple[int, int, int, int]
    length_px: float
    width_px: float
    orientation_deg: float
    mean_probability: float
    rle: str


# Kaggle run lengths ------------------------------------------------------------------------------


def rle_runs(
    rle: str, size_wh: tuple[int, int] | None = None, *, where: str = ""
) -> tuple[Ints, Ints]:
    """Reads and checks a Kaggle RLE without building the mask.

    Args:
        rle: ``start length`` pairs, 1-based, column-major; blank for an empty mask.
        size_wh: width and height of the frame in pixels; without it only the end of the frame
            is not checked.
        where: put in front of an error message, such as ``train.csv row 17, image 000a.jpg``.

    Returns:
        Starts and ends of the runs: 0-based column-major pixel indices, ends exclusive.

    Raises:
        LabelError: not pairs of whole numbers from 1 up, or runs that are out of order, overlap
            or end past the last pixel. Runs that touch are accepted.
        InputError: ``size_wh`` is no usable size.
    """
    limit_px = MAX_MASK_PX if size_wh is None else _pixel_count(size_wh)
    if not isinstance(rle, str):
        raise _label_error(
            where, f"expected RLE text, got {rle!r}; give an empty text where there is no mask"
        )
    # fromstring would accept signs and stop at the first letter.
    if rle.encode("ascii", "replace").translate(None, b"0123456789" + _BLANKS.encode()):
        raise _number_error(rle, where)
    if not rle.strip(_BLANKS):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    # A number beyond 64 bits saturates, and is then refused as past the end.
    numbers = np.fromstring(rle, dtype=np.int64, sep=" ")
    if len(numbers) % 2:
        raise _label_error(
            where,
            f'expected pairs "start length", got {len(numbers)} numbers, the last one'
            f" {_word(rle, -1)}; complete or remove the last pair",
        )
    starts, lengths = numbers[::2], numbers[1::2]
    outside = (starts < 1) | (lengths < 1) | (lengths > limit_px - starts + 1)
    if outside.any():
        raise _outside_error(rle, numbers, int(outside.argmax()), limit_px, size_wh, where)
    starts = starts - 1
    ends = starts + lengths
    disorder = starts[1:] < ends[:-1]
    if disorder.any():
        raise _disorder_error(starts, ends, int(disorder.argmax()), where)
    return starts, ends


def decode_rle(rle: str, size_wh: tuple[int, int], *, where: str = "") -> NDArray[np.bool_]:
    """Turns a Kaggle RLE into a mask.

    Args:
        rle: ``start length`` pairs, 1-based, column-major; blank for an empty mask.
        size_wh: width and height of the mask in pixels.
        where: put in front of an error message.

    Returns:
        Mask of ``height`` rows and ``width`` columns, C-contiguous.

    Raises:
        LabelError: see :func:`rle_runs`.
        InputError: ``size_wh`` is no usable size.
    """
    left, covered_hw = decode_columns(rle, size_wh, where=where)
    mask_hw = np.zeros(size_wh[::-1], np.bool_)
    mask_hw[:, left : left + covered_hw.shape[1]] = covered_hw
    return mask_hw


def decode_columns(
    rle: str, size_wh: tuple[int, int], *, where: str = ""
) -> tuple[int, NDArray[np.bool_]]:
    """Turns a Kaggle RLE into the part of the mask from its first to its last column with a pixel.

    That part is a small one of most defects' frames. Arguments and errors are those of
    :func:`decode_rle`.

    Returns:
        The first column, from 0, and a mask of ``height`` rows; of no column if the mask is empty.
    """
    starts, ends = rle_runs(rle, size_wh, where=where)
    height = size_wh[1]
    if not len(starts):
        return 0, np.zeros((height, 0), np.bool_)
    left, right = int(starts[0]) // height, (int(ends[-1]) - 1) // height + 1
    counts = _counts(starts, ends, left * height, right * height)
    return left, _mask_from_counts(counts, (right - left, height))


def merge_rles(rles: Sequence[str]) -> str:
    """Kaggle RLEs of regions that do not overlap as one RLE, its runs in ascending order.

    Raises:
        LabelError: one of them is no Kaggle RLE.
    """
    if len(rles) == 1:
        return rles[0]
    if not rles:
        return ""
    starts, ends = (np.concatenate(parts) for parts in zip(*map(rle_runs, rles), strict=True))
    order = np.argsort(starts, kind="stable")
    runs = np.stack([starts[order] + 1, ends[order] - starts[order]], axis=1)
    return " ".join(map(str, runs.ravel().tolist()))


def dice(a_hw: NDArray[np.bool_], b_hw: NDArray[np.bool_]) -> float:
    """Dice coefficient of two masks, ``2 |A and B| / (|A| + |B|)``; 1 when both are empty."""
    both = np.count_nonzero(a_hw) + np.count_nonzero(b_hw)
    return 2 * np.count_nonzero(a_hw & b_hw) / both if both else 1.0


def encode_rle(mask_hw: NDArray[np.bool_] | NDArray[np.uint8], *, left: int = 0) -> str:
    """Writes a mask in the canonical Kaggle form: sorted runs that do not touch.

    Args:
        mask_hw: bool, or uint8 holding only 0 and 1; rows x columns.
        left: column of the frame, from 0, in which the mask begins; it is as high as the frame.

    Returns:
        ``start length`` pairs, 1-based, column-major; ``""`` for an empty mask.

    Raises:
        InputError: another type, shape or value.
    """
    edges = _edges(_column_major(_checked(mask_hw)))
    edges[1::2] -= edges[::2]
    edges[::2] += 1 + left * len(mask_hw)
    return " ".join(map(str, edges.tolist()))


def _word(rle: str, index: int) -> str:
    """One number of the RLE as it is written, for an error message."""
    return _shown(re.findall(f"[^{_BLANKS}]+", rle)[index])


def _shown(text: str) -> str:
    """Quoted on one line, and not longer than a line can take."""
    return ascii(text if len(text) <= 40 else text[:37] + "...")


def _label_error(where: str, problem: str) -> LabelError:
    return LabelError(f"{where}: {problem}" if where else problem)


def _number_error(rle: str, where: str) -> LabelError:
    words = re.findall(f"[^{_BLANKS}]+", rle)
    index = next(i for i, word in enumerate(words) if not re.fullmatch("[0-9]+", word))
    return _label_error(
        where,
        f"number {index + 1} of the RLE is {_shown(words[index])}, expected digits 0-9 only; write"
        ' whole numbers "start length" separated by blanks, and nothing for no mask',
    )


def _outside_error(
    rle: str,
    numbers: Ints,
    run: int,
    limit_px: int,
    size_wh: tuple[int, int] | None,
    where: str,
) -> LabelError:
    start_word, length_word = _word(rle, 2 * run), _word(rle, 2 * run + 1)
    if numbers[2 * run] < 1:
        return _label_error(
            where,
            f"start {start_word} at number {2 * run + 1} of the RLE is below 1; pixels are counted"
            " from 1, so add 1 to 0-based starts",
        )
    if numbers[2 * run + 1] < 1:
        return _label_error(
            where,
            f"length {length_word} at number {2 * run + 2} of the RLE is below 1; remove the run,"
            " or write its length in pixels",
        )
    frame = f"a frame of {size_wh[0]} x {size_wh[1]}" if size_wh else "the largest frame accepted"
    return _label_error(
        where,
        f"run {run + 1} of the RLE (start {start_word}, length {length_word}, number"
        f" {2 * run + 1}) ends past the {limit_px} pixels of {frame}; give the size of the image"
        " that was labelled, or correct the run",
    )


def _disorder_error(starts: Ints, ends: Ints, run: int, where: str) -> LabelError:
    overlapping = starts[run + 1] >= starts[run]
    return _label_error(
        where,
        f"start '{starts[run + 1] + 1}' at number {2 * run + 3} of the RLE"
        f" {'overlaps' if overlapping else 'comes before'} the run in front of it, pixels"
        f" {starts[run] + 1} to {ends[run]}; expected runs in ascending order without overlap:"
        f" {'merge' if overlapping else 'sort'} them",
    )


# COCO run lengths --------------------------------------------------------------------------------


def encode_coco_rle(
    mask_hw: NDArray[np.bool_] | NDArray[np.uint8], *, compressed: bool = True
) -> CocoRle:
    """Writes a mask in the COCO form, ready for ``json.dumps``.

    Args:
        mask_hw: bool, or uint8 holding only 0 and 1; rows x columns.
        compressed: counts as text (as ``pycocotools.mask.encode``), or else as a list.

    Returns:
        ``size`` as ``[height, width]`` and ``counts``.

    Raises:
        InputError: another type, shape or value.
    """
    mask = _checked(mask_hw)
    # COCO ends with the last run: zeros of length 0 are left out there, but not at the start.
    edges = _edges(_column_major(mask))
    end = [] if len(edges) and edges[-1] == mask.size else [mask.size]
    counts: Ints = np.diff(edges, prepend=[0], append=end).astype(np.int64)
    height, width = mask.shape
    return {"size": [height, width], "counts": _pack(counts) if compressed else counts.tolist()}


def decode_coco_rle(
    coco_rle: object, size_wh: tuple[int, int] | None = None, *, where: str = ""
) -> NDArray[np.bool_]:
    """Turns a COCO RLE, compressed or not, into a mask.

    Args:
        coco_rle: parsed JSON, ``{"size": [height, width], "counts": ...}`` with the counts as text,
            bytes or a list of whole numbers.
        size_wh: width and height of the image in pixels where they are known: a mask of another
            size is refused.
        where: put in front of an error message.

    Returns:
        Mask of ``height`` rows and ``width`` columns, C-contiguous.

    Raises:
        LabelError: missing or malformed entries, more than ``MAX_MASK_PX`` pixels, or counts that
            do not fill the mask exactly.
    """
    mask_wh, counts = _checked_counts(coco_rle, size_wh, where)
    return _mask_from_counts(counts, mask_wh)


def coco_from_kaggle(
    rle: str, size_wh: tuple[int, int], *, compressed: bool = True, where: str = ""
) -> CocoRle:
    """Turns Kaggle RLE into COCO RLE on the runs, without building the mask.

    Args:
        rle: ``start length`` pairs, 1-based, column-major; blank for an empty mask.
        size_wh: width and height of the mask in pixels.
        compressed: counts as text, or else as a list.
        where: put in front of an error message.

    Returns:
        The same as ``encode_coco_rle(decode_rle(rle, size_wh))``.

    Raises:
        LabelError: see :func:`rle_runs`.
        InputError: ``size_wh`` is no usable size.
    """
    width, height = size_wh
    starts, ends = _union(*rle_runs(rle, size_wh, where=where))
    counts = _counts(starts, ends, 0, width * height)
    if not counts[-1]:  # COCO ends with the last run
        counts = counts[:-1]
    return {"size": [height, width], "counts": _pack(counts) if compressed else counts.tolist()}


def kaggle_from_coco(
    coco_rle: object, size_wh: tuple[int, int] | None = None, *, where: str = ""
) -> str:
    """Turns COCO RLE into canonical Kaggle RLE on the runs, without building the mask.

    Arguments and errors are those of :func:`decode_coco_rle`.
    """
    _, counts = _checked_counts(coco_rle, size_wh, where)
    ends = np.cumsum(counts)
    starts, ends = ends[:-1:2], ends[1::2]
    return _kaggle_text(*_union(starts[starts < ends], ends[starts < ends]))


def union_rle(rles: Sequence[str]) -> str:
    """Canonical Kaggle RLE of all pixels in any of several, which may overlap.

    Raises:
        LabelError: one of them is no Kaggle RLE.
    """
    if not rles:
        return ""
    starts, ends = (np.concatenate(parts) for parts in zip(*map(rle_runs, rles), strict=True))
    return _kaggle_text(*_union(starts, ends))


def kaggle_from_rows(starts: Ints, ends: Ints, size_wh: tuple[int, int]) -> str:
    """Canonical Kaggle RLE of runs that go on row by row.

    Args:
        starts: of the runs: 0-based pixel indices left to right, then top to bottom; ascending.
        ends: of the runs, exclusive. Runs do not overlap, but may touch.
        size_wh: width and height of the frame in pixels.
    """
    return _kaggle_text(*_turned(starts, ends, *size_wh))


def row_runs(rle: str, size_wh: tuple[int, int], *, where: str = "") -> tuple[Ints, Ints]:
    """As :func:`rle_runs`, but along rows: 0-based indices left to right, then top to bottom.

    The runs do not touch.
    """
    width, height = size_wh
    return _turned(*rle_runs(rle, size_wh, where=where), height, width)


def line_runs(starts: Ints, ends: Ints, line_px: int) -> tuple[Ints, Ints, Ints]:
    """Cuts runs where a new line (row or column) of ``line_px`` pixels begins.

    Returns:
        Line, first and one past the last pixel in the line of each run.
    """
    first, last = starts // line_px, (ends - 1) // line_px
    lines = last - first + 1
    run = np.repeat(np.arange(len(starts)), lines)
    line = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(lines) - lines, lines)
    begin = np.where(line == first[run], starts[run] - line * line_px, 0)
    end = np.where(line == last[run], ends[run] - line * line_px, line_px)
    return line, begin, end


def _turned(starts: Ints, ends: Ints, line_px: int, line_count: int) -> tuple[Ints, Ints]:
    """The same pixels followed across the lines, by way of the lines that they cover."""
    if not len(starts):
        return starts, ends
    first_line = int(starts[0]) // line_px
    lines = (int(ends[-1]) - 1) // line_px + 1 - first_line
    counts = _counts(starts, ends, first_line * line_px, (first_line + lines) * line_px)
    filled = _filled(counts).reshape(lines, line_px)
    used = np.flatnonzero(filled.max(axis=0))
    low, px = int(used[0]), int(used[-1] - used[0]) + 1
    # One pixel of background between the new lines keeps runs from going on in the next one.
    flat = np.zeros(px * (lines + 1) + 1, np.uint8)
    flat[1:].reshape(px, lines + 1)[:, :-1] = cv2.transpose(filled[:, low : low + px])
    new_line, offset = np.divmod(_edges(flat), lines + 1)
    edges = (low + new_line) * line_count + first_line + offset
    return _joined(edges[::2], edges[1::2])


def _union(starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """Runs in ascending order that neither overlap nor touch."""
    order = np.argsort(starts, kind="stable")
    return _joined(starts[order], np.maximum.accumulate(ends[order]))


def _joined(starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """Runs in ascending order, those that touch as one."""
    gaps = np.ones(len(starts) + 1, np.bool_)
    gaps[1:-1] = starts[1:] > ends[:-1]
    return starts[gaps[:-1]], ends[gaps[1:]]


def _kaggle_text(starts: Ints, ends: Ints) -> str:
    runs = np.stack((starts + 1, ends - starts), axis=1)
    return " ".join(map(str, runs.ravel().tolist()))


def _checked_counts(
    coco_rle: object, size_wh: tuple[int, int] | None, where: str
) -> tuple[tuple[int, int], Ints]:
    """Size of the mask and its counts, which fill it exactly."""
    if not isinstance(coco_rle, Mapping) or not {"size", "counts"} <= set(coco_rle):
        raise _label_error(
            where,
            f'expected {{"size": [height, width], "counts": ...}}, got {_shown(repr(coco_rle))};'
            " export the segmentation as COCO RLE",
        )
    mask_wh = _coco_size_wh(coco_rle["size"], size_wh, where)
    counts = _coco_counts(coco_rle["counts"], where)
    total_px = mask_wh[0] * mask_wh[1]
    wrong = (counts < 0) | (counts > total_px)
    if wrong.any():
        index = int(wrong.argmax())
        raise _label_error(
            where,
            f"count {index + 1} is {counts[index]}, expected 0 to {total_px} for a mask of"
            f" {mask_wh[0]} x {mask_wh[1]}; export the segmentation again",
        )
    if counts.sum() != total_px:
        raise _label_error(
            where,
            f"the {len(counts)} counts add up to {counts.sum()} pixels, expected {total_px} for a"
            f" mask of {mask_wh[0]} x {mask_wh[1]}; export the segmentation again",
        )
    return mask_wh, counts


def _coco_size_wh(size: object, expected_wh: tuple[int, int] | None, where: str) -> tuple[int, int]:
    match size:
        case [int(height), int(width)] if (
            height >= 1 and width >= 1 and height * width <= MAX_MASK_PX
        ):
            pass
        case _:
            raise _label_error(
                where,
                f"size is {_shown(repr(size))}, expected [height, width] from 1 up and at most"
                f" {MAX_MASK_PX} pixels; export the segmentation again",
            )
    if expected_wh is not None and (width, height) != expected_wh:
        raise _label_error(
            where,
            f"the mask is {width} x {height}, expected the image's {expected_wh[0]} x"
            f" {expected_wh[1]}; use the image that was labelled, unscaled (COCO writes [height,"
            " width])",
        )
    return width, height


def _coco_counts(counts: object, where: str) -> Ints:
    if isinstance(counts, str):
        return _unpack(counts.encode("utf-8", "surrogatepass"), where)
    if isinstance(counts, bytes):
        return _unpack(counts, where)
    if isinstance(counts, list):
        try:
            numbers = np.array(counts)
        except ValueError:  # lists of different lengths inside the list
            numbers = np.empty((0, 0))
        if numbers.ndim == 1 and numbers.dtype == np.int64:
            return numbers
    raise _label_error(
        where,
        f"counts are {_shown(repr(counts))}, expected COCO text or a list of whole numbers; export"
        " the segmentation again",
    )


def _pack(counts: Ints) -> str:
    """COCO's text: five bits a character, lowest first; bit 6 says that more follow.

    From the fourth count on, the difference to the count before the previous one is written.
    """
    values = counts.copy()
    values[3:] -= counts[1:-2]
    magnitudes = values ^ (values >> 63)  # the number of bits needed, for both signs
    bits = 5 * np.arange(1, _COCO_MAX_CHARACTERS)
    lengths = 1 + (magnitudes[:, None] >> (bits - 1) > 0).sum(axis=1)
    place = np.arange(lengths.max())
    characters = (values[:, None] >> 5 * place) & 31
    characters |= (place < lengths[:, None] - 1) << 5
    packed = (characters + 48).astype(np.uint8)[place < lengths[:, None]]
    return str(packed.tobytes(), "ascii")


def _unpack(text: bytes, where: str) -> Ints:
    """The inverse of :func:`_pack`."""
    characters = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    outside = (characters < 0) | (characters > 63)
    if outside.any():
        index = int(outside.argmax())
        raise _label_error(
            where,
            f"character {index + 1} of the counts is {text[index : index + 1]!r}, expected '0' to"
            " 'o'; the text is no compressed COCO RLE, export the segmentation again",
        )
    is_last = characters < 32
    if not len(text) or not is_last[-1]:
        raise _label_error(
            where,
            f"the counts end inside a number after {len(text)} characters; the text is cut off,"
            " export the segmentation again",
        )
    last = np.flatnonzero(is_last)
    first = np.concatenate(([0], last[:-1] + 1))
    lengths = last - first + 1
    if lengths.max() > _COCO_MAX_CHARACTERS:
        number = int(lengths.argmax())
        raise _label_error(
            where,
            f"count {number + 1} takes {lengths[number]} characters, expected at most"
            f" {_COCO_MAX_CHARACTERS}; export the segmentation again",
        )
    shifts = 5 * (np.arange(len(text)) - np.repeat(first, lengths))
    values = np.add.reduceat((characters & 31) << shifts, first)
    values -= ((characters[last] & 16) > 0).astype(np.int64) << 5 * lengths
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


# Regions -----------------------------------------------------------------------------------------


def regions(
    mask_hw: NDArray[np.bool_] | NDArray[np.uint8],
    probability_hw: NDArray[np.float32] | None = None,
) -> list[Region]:
    """Splits a mask into connected regions (8 neighbours) and measures them.

    Args:
        mask_hw: bool, or uint8 holding only 0 and 1; rows x columns.
        probability_hw: float32, 0..1, same shape; only read under the mask.

    Returns:
        Regions by area, largest first; equal areas by their first pixel, left to right, then top
        to bottom.

    Raises:
        InputError: another type, shape or value of the mask; probabilities of another shape or
            not finite under the mask.
    """
    mask = _checked(mask_hw)
    if probability_hw is not None and probability_hw.shape != mask.shape:
        raise InputError(
            f"expected probabilities of shape {mask.shape} like the mask, got"
            f" {probability_hw.shape}; pass both at frame size"
        )
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        return []
    inside = slice(top, top + height), slice(left, left + width)
    # A background pixel at both ends of every column keeps runs from going on in the next one.
    columns_wh = np.zeros((width, height + 2), np.uint8)
    columns_wh[:, 1:-1] = cv2.transpose(mask[inside])
    starts, ends = _edges(columns_wh.ravel()).reshape(-1, 2).T
    count, labels_wh = cv2.connectedComponents(columns_wh, connectivity=8)
    label = labels_wh.ravel()[starts + 1].astype(np.int64) - 1
    probability_sums = None
    if probability_hw is not None:
        values = cv2.transpose(probability_hw[inside])[columns_wh[:, 1:-1].view(np.bool_)]
        run_first = np.cumsum(ends - starts) - (ends - starts)
        run_sums = np.add.reduceat(values, run_first, dtype=np.float64)
        probability_sums = np.bincount(label, run_sums, count - 1)
        if not np.isfinite(probability_sums).all():
            raise InputError(
                "expected finite probabilities, got NaN or infinity under the mask; refuse the"
                " frame before its regions are measured"
            )

    # From here on the runs are sorted by region, and stay in column-major order inside it.
    order = np.argsort(label, kind="stable")
    label = label[order]
    first = np.searchsorted(label, np.arange(count))  # with the end of the last region
    x = starts[order] // (height + 2) + left
    y = starts[order] % (height + 2) + top
    y_end = y + (ends - starts)[order]
    areas = np.add.reduceat(y_end - y, first[:-1])
    boxes_xywh = _boxes_xywh(x, y, y_end, first)
    rectangles = _minimum_rectangles(x, y, y_end, first, boxes_xywh, areas)
    means = np.ones(count - 1) if probability_sums is None else probability_sums / areas
    first_px = (x * mask.shape[0] + y)[first[:-1]]
    texts = _region_rles(x * mask.shape[0] + y, y_end - y, label, count - 1)
    found = [
        Region(area, (bx, by, bw, bh), length, side, degrees, mean, text)
        for area, (bx, by, bw, bh), (length, side, degrees), mean, text in zip(
            areas.tolist(),
            boxes_xywh.tolist(),
            rectangles.tolist(),
            means.tolist(),
            texts,
            strict=True,
        )
    ]
    return [found[i] for i in np.lexsort((first_px, -areas)).tolist()]


def _boxes_xywh(x: Ints, y: Ints, y_end: Ints, first: Ints) -> Ints:
    left, right = x[first[:-1]], x[first[1:] - 1] + 1
    top = np.minimum.reduceat(y, first[:-1])
    bottom = np.maximum.reduceat(y_end, first[:-1])
    return np.stack((left, top, right - left, bottom - top), axis=1)


def _region_rles(start: Ints, length: Ints, label: Ints, count: int) -> list[str]:
    """Kaggle text per region; ``start`` is the 0-based column-major index in the frame."""
    end = start + length
    # In a region as high as the frame, a run can go on at the top of the next column.
    opens = np.ones(len(start), np.bool_)
    opens[1:] = (start[1:] != end[:-1]) | (label[1:] != label[:-1])
    closes = np.concatenate((opens[1:], [True]))
    merged = np.stack((start[opens] + 1, end[closes] - start[opens]), axis=1)
    words = list(map(str, merged.ravel().tolist()))
    bounds = (2 * np.searchsorted(label[opens], np.arange(count + 1))).tolist()
    return [" ".join(words[a:b]) for a, b in pairwise(bounds)]


def _minimum_rectangles(
    x: Ints, y: Ints, y_end: Ints, first: Ints, boxes_xywh: Ints, areas: Ints
) -> Floats:
    """Per region: length, width and orientation of the minimum-area rectangle, shape (n, 3)."""
    width, height = boxes_xywh[:, 2], boxes_xywh[:, 3]
    rectangles = np.empty((len(areas), 3))
    rectangles[:, 0] = np.maximum(width, height)
    rectangles[:, 1] = np.minimum(width, height)
    rectangles[:, 2] = np.where(width >= height, 0.0, 90.0)
    slanted = np.flatnonzero(areas != width * height)
    if not len(slanted):
        return rectangles
    corners = np.stack((x, y, x, y_end, x + 1, y, x + 1, y_end), axis=1).astype(np.int32)
    bounds = np.stack((first[:-1], first[1:]), axis=1)[slanted].tolist()
    hulls = [cv2.convexHull(corners[a:b].reshape(-1, 2))[:, 0] for a, b in bounds]
    rectangles[slanted] = _hull_rectangles(hulls)
    return rectangles


def _hull_rectangles(hulls: Sequence[NDArray[Any]]) -> Floats:
    """Minimum-area rectangles of convex polygons, shape (n, 3), all polygons in one pass.

    One side of such a rectangle lies on a side of the polygon (Freeman and Shapira, 1975), so each
    polygon side is tried. Whole numbers up to the division make equal areas exactly equal: ties go
    to the longer rectangle, then to the smaller angle, wherever the region lies.
    """
    sizes = np.array([len(hull) for hull in hulls])
    hull_end = np.cumsum(sizes)
    points = np.concatenate(hulls).astype(np.int64)
    following = np.arange(1, len(points) + 1)
    following[hull_end - 1] = hull_end - sizes
    side = points[following] - points
    side //= np.gcd(side[:, 0], side[:, 1])[:, None]

    # Every side with every point of its own polygon.
    hull_of_side = np.repeat(np.arange(len(hulls)), sizes)
    pair_count = sizes[hull_of_side]
    pair_first = np.cumsum(pair_count) - pair_count
    point = np.arange(pair_count.sum()) - np.repeat(
        pair_first - (hull_end - sizes)[hull_of_side], pair_count
    )
    px, py = points[point].T
    dx, dy = np.repeat(side, pair_count, axis=0).T
    along = _range(px * dx + py * dy, pair_first)
    across = _range(py * dx - px * dy, pair_first)

    norm = (side**2).sum(axis=1)
    lengths = np.maximum(along, across) / np.sqrt(norm)
    widths = np.minimum(along, across) / np.sqrt(norm)
    turned = along < across
    long_x = np.where(turned, -side[:, 1], side[:, 0])
    long_y = np.where(turned, side[:, 0], side[:, 1])
    degrees = np.degrees(np.arctan2(-long_y, long_x)) % np.where(along == across, 90.0, 180.0)
    area = along.astype(np.float64) * across / norm
    order = np.lexsort((degrees, -lengths, area, hull_of_side))
    best = order[hull_end - sizes]
    return np.stack((lengths[best], widths[best], degrees[best]), axis=1)


def _range(values: Ints, first: Ints) -> Ints:
    spread: Ints = np.maximum.reduceat(values, first) - np.minimum.reduceat(values, first)
    return spread


# Shared ------------------------------------------------------------------------------------------


def _pixel_count(size_wh: tuple[int, int]) -> int:
    width, height = size_wh
    if width < 1 or height < 1 or width * height > MAX_MASK_PX:
        raise InputError(
            f"expected a width and height from 1 up and at most {MAX_MASK_PX} pixels, got"
            f" {width} x {height}; pass the size of the image"
        )
    return width * height


def _checked(mask_hw: NDArray[np.bool_] | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mask as uint8 0 and 1, without a copy."""
    if mask_hw.ndim != 2 or not mask_hw.size:
        raise InputError(
            f"expected a mask of rows x columns with at least one pixel, got shape {mask_hw.shape};"
            " pass one 2-D mask per defect type"
        )
    if mask_hw.dtype not in (np.bool_, np.uint8):
        raise InputError(
            f"expected a mask of bool, or uint8 with 0 and 1, got {mask_hw.dtype}; compare with a"
            " threshold first"
        )
    mask = mask_hw.view(np.uint8)
    if mask.max() > 1:
        raise InputError(
            f"expected a mask of bool, or uint8 with 0 and 1, got the value {mask.max()}; compare"
            " with a threshold first"
        )
    return mask


def _column_major(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """All pixels top to bottom, then left to right, with a 0 in front and at the end."""
    height, width = mask.shape
    flat = np.zeros(mask.size + 2, np.uint8)
    cv2.transpose(mask, dst=flat[1:-1].reshape(width, height))
    return flat


def _edges(flat: NDArray[np.uint8]) -> Ints:
    """Start, end, start, end, ... of the runs of ones in ``flat``, which begins and ends with 0.

    Counted from the second element, so 0-based pixels where the first one is padding.
    """
    return np.flatnonzero(flat[1:] != flat[:-1])


def _counts(starts: Ints, ends: Ints, first: int, end: int) -> Ints:
    """Lengths of alternating runs of zeros and ones from pixel ``first`` up to ``end``."""
    edges = np.empty(2 * len(starts) + 2, np.int64)
    edges[0], edges[-1] = first, end
    edges[1:-1:2], edges[2:-1:2] = starts, ends
    return np.diff(edges)


def _mask_from_counts(counts: Ints, size_wh: tuple[int, int]) -> NDArray[np.bool_]:
    """Fills a mask with alternating runs of zeros and ones, beginning with zeros."""
    return cv2.transpose(_filled(counts).reshape(size_wh)).view(np.bool_)


def _filled(counts: Ints) -> NDArray[np.uint8]:
    values = np.zeros(len(counts), np.uint8)
    values[1::2] = 1
    return np.repeat(values, counts)
