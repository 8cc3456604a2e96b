"""Polygons from and to masks, in COCO's continuous coordinates.

The pixel (x, y) is the square from (x, y) to (x + 1, y + 1), so the frame reaches from (0, 0) to
(width, height). A pixel belongs to a polygon if its centre is inside, by the even-odd rule: what a
polygon encloses twice is a hole. :func:`rasterise_rle` is the rasteriser of pycocotools
(``rleFrPoly`` in ``maskApi.c`` of https://github.com/cocodataset/cocoapi), which rounds coordinates
to a fifth of a pixel. :func:`outlines` gives whole numbers, and :func:`inset_outlines_of_rle` whole
fifths for files that other tools read; masks survive both exactly.

Shapes: polygons are float64 ``(n, 2)`` with x and y; ``_hw`` is rows x columns, ``_wh`` columns x
rows.
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from steelsight.errors import InputError, LabelError
from steelsight.masks import (
    MAX_MASK_PX,
    encode_rle,
    kaggle_from_coco,
    line_runs,
    rle_runs,
)

MAX_POINTS = 1_000_000
"""Of all polygons of one mask."""

MAX_OUTLINE_PX = 8_000_000
"""Of all polygons of one mask; pycocotools takes 80 bytes of memory for a pixel of a polygon."""

_TOLERANCE_PX = 1.0
"""So far tools write points beside the frame: rounding, or pixel centres taken for corners."""

_FIFTHS_INSET = 1
"""So far inside the pixels' edges outlines are written, in fifths of a pixel."""

_MERGED_AT_ONCE = 32

Points = NDArray[np.float64]
Ints = NDArray[np.int64]


def rasterise_rle(
    polygons_xy: Sequence[Points], size_wh: tuple[int, int], *, where: str = ""
) -> str:
    """The union of polygons as canonical Kaggle RLE, without building the mask.

    Args:
        polygons_xy: each ``(n, 2)`` with n >= 3, x and y in pixels; closed by itself.
        size_wh: width and height of the mask in pixels.
        where: put in front of an error message.

    Raises:
        LabelError: fewer than three points, a coordinate that is not finite or lies more than one
            pixel outside the frame (up to one it is clipped), or more than ``MAX_POINTS`` points
            or ``MAX_OUTLINE_PX`` of outline.
        InputError: ``size_wh`` is no usable size, or an array has another shape.
    """
    rle = rasterise_coco(polygons_xy, size_wh, where=where)
    return kaggle_from_coco(rle, size_wh) if rle else ""


def rasterise_coco(
    polygons_xy: Sequence[Points], size_wh: tuple[int, int], *, where: str = ""
) -> Any:
    """As :func:`rasterise_rle`, as pycocotools holds it; ``None`` without polygons."""
    width, height = size_wh
    if width < 1 or height < 1 or width * height > MAX_MASK_PX:
        raise InputError(
            f"expected a width and height from 1 up and at most {MAX_MASK_PX} pixels, got"
            f" {width} x {height}; pass the size of the image"
        )
    if not len(polygons_xy):
        return None
    point_count = sum(map(len, polygons_xy))
    if point_count > MAX_POINTS:
        raise _label_error(
            where,
            f"the polygons have {point_count} points, expected at most {MAX_POINTS}; write such a"
            " mask as RLE or as a picture",
        )
    # pycocotools takes a list whose first entry has four numbers for boxes; three points have six.
    clipped = [_clipped(p, size_wh, i, where) for i, p in enumerate(polygons_xy, 1)]
    length_px = sum(np.abs(p - p[np.arange(-1, len(p) - 1)]).sum() for p in clipped)
    if length_px > MAX_OUTLINE_PX:
        raise _label_error(
            where,
            f"the polygons are {length_px:.0f} pixels long, expected at most {MAX_OUTLINE_PX};"
            " write such a mask as RLE or as a picture",
        )
    flat: Any = [p.ravel() for p in clipped]  # the stubs know whole numbers only
    return merged(coco_mask.frPyObjects(flat, height, width))


def merged(rles: list[Any]) -> Any:
    """The union of masks, at least one, as pycocotools holds them."""
    while len(rles) > 1:  # in a tree: one by one would take quadratic time
        rles = [
            coco_mask.merge(rles[i : i + _MERGED_AT_ONCE])
            for i in range(0, len(rles), _MERGED_AT_ONCE)
        ]
    return rles[0]


def _clipped(polygon_xy: Points, size_wh: tuple[int, int], number: int, where: str) -> Points:
    """The polygon, checked, with its points moved into the frame."""
    if polygon_xy.ndim != 2 or polygon_xy.shape[1] != 2:
        raise InputError(f"expected polygons of shape (n, 2), got {polygon_xy.shape}; pass x and y")
    if len(polygon_xy) < 3:
        raise _label_error(
            where,
            f"polygon {number} has {len(polygon_xy)} points, expected at least 3; remove it or draw"
            " it again",
        )
    # Comparisons with NaN are false.
    if polygon_xy.min() >= 0 and (polygon_xy.max(axis=0) <= size_wh).all():
        return polygon_xy
    near = (polygon_xy >= -_TOLERANCE_PX) & (polygon_xy <= np.array(size_wh) + _TOLERANCE_PX)
    if not near.all():
        point = int(np.flatnonzero(~near.all(axis=1))[0])
        x, y = polygon_xy[point]
        raise _label_error(
            where,
            f"point {point + 1} of polygon {number} is ({x:.10g}, {y:.10g}), expected x from 0 to"
            f" {size_wh[0]} and y from 0 to {size_wh[1]}; give the size of the image that was"
            " labelled, or draw the polygon again",
        )
    clipped: Points = np.clip(polygon_xy, 0, size_wh)
    return clipped


def _label_error(where: str, problem: str) -> LabelError:
    return LabelError(f"{where}: {problem}" if where else problem)


# From masks --------------------------------------------------------------------------------------


def outlines(mask_hw: NDArray[np.bool_]) -> list[Points]:
    """As :func:`outlines_of_rle`, of a mask of rows x columns."""
    return outlines_of_rle(encode_rle(mask_hw), mask_hw.shape[::-1])


def outlines_of_rle(rle: str, size_wh: tuple[int, int]) -> list[Points]:
    """Polygons along the pixels' edges, such that rasterising them gives exactly the mask.

    One polygon per connected region (8 neighbours, as regions are counted everywhere in this
    package), from left to right. Holes are cut in by a keyhole: from the upper left corner of
    the hole a slit of no width goes along the row to what lies left of it, the outer outline or
    another hole. It runs inside the region; under the even-odd rule it adds nothing because it is
    passed twice, and as holes run the other way round, the nonzero rule gives the same.

    Args:
        rle: Kaggle RLE of the mask.
        size_wh: width and height of the mask in pixels.

    Returns:
        Polygons ``(n, 2)`` of whole numbers, x and y in pixels, not closed by their first point.

    Raises:
        LabelError: see :func:`steelsight.masks.rle_runs`.
    """
    corners_xy, contour = _corners(rle, size_wh)
    return _divided(corners_xy.astype(np.float64), contour)


def inset_outlines_of_rle(rle: str, size_wh: tuple[int, int]) -> list[Points]:
    """The outlines of :func:`outlines_of_rle`, each side a fifth of a pixel inside the mask.

    For files. A pixel's centre is half a pixel from its edges, so rasterising still gives exactly
    the mask. Tools that cut coordinates down to whole numbers and colour what OpenCV's ``fillPoly``
    then touches (Ultralytics' ``polygon2mask``) would otherwise draw each mask a pixel wider to the
    right and below. ``np.rint`` gives the outline itself, some of its corners twice.

    Args:
        rle: canonical Kaggle RLE of the mask.
        size_wh: width and height of the mask in pixels.

    Returns:
        Polygons ``(n, 2)`` of whole fifths inside the frame, x and y in pixels. Where they would
        not rasterise to the mask, those of :func:`outlines_of_rle`.

    Raises:
        LabelError: see :func:`steelsight.masks.rle_runs`.
    """
    corners_xy, contour = _corners(rle, size_wh)
    if not len(corners_xy):
        return []
    fifths_xy, fifths_contour = _inset_fifths(corners_xy, contour)
    inset = _divided(fifths_xy / 5, fifths_contour)
    # Whoever reads an outline that is too long is told so; here it is written as it is.
    with suppress(LabelError):
        if rasterise_rle(inset, size_wh) == rle:
            return inset
    return _divided(corners_xy.astype(np.float64), contour)


def _inset_fifths(corners_xy: Ints, contour: Ints) -> tuple[Ints, Ints]:
    """Corners in fifths of a pixel, each on the inner side of the two sides that meet there.

    Where two pixels touch by their corners only, that would widen the neck to one of two pixels; a
    corner there becomes two, one in each pixel, and the outlines meet in the neck.

    Returns:
        Points ``(n, 2)``, and the contour of each.
    """
    following = _following(contour)
    before = np.empty_like(following)
    before[following] = np.arange(len(following))
    step = np.sign(corners_xy[following] - corners_xy)
    inward = np.stack((step[:, 1], -step[:, 0]), axis=1)  # the mask lies left of who walks along
    # Where a slit goes on along a side, both say the same, which counts once.
    shift = np.clip(inward[before] + inward, -1, 1)

    turns_right = np.flatnonzero((step == -inward[before]).all(axis=1))
    place = corners_xy[turns_right] @ [1, int(corners_xy.max()) + 1]
    _, index, count = np.unique(place, return_inverse=True, return_counts=True)
    necks = turns_right[count[index] == 2]
    shift[necks] = (inward + step)[necks]
    shift = np.insert(shift, necks, (inward - step)[before[necks]], axis=0)
    parts = np.ones(len(contour), np.int64)
    parts[necks] = 2
    points = 5 * np.repeat(corners_xy, parts, axis=0) + _FIFTHS_INSET * shift
    return points, np.repeat(contour, parts)


def _divided(points_xy: Points, contour: Ints) -> list[Points]:
    """One array for each contour; points are sorted by contour."""
    first = np.flatnonzero(np.diff(contour, prepend=-1)).tolist()
    return [points_xy[begin:end] for begin, end in pairwise((*first, len(contour)))]


def _corners(rle: str, size_wh: tuple[int, int]) -> tuple[Ints, Ints]:
    """Corners ``(n, 2)`` of all outlines of a mask, holes cut in, and the outline of each."""
    starts, ends = rle_runs(rle, size_wh)
    if not len(starts):
        return np.empty((0, 2), np.int64), np.empty(0, np.int64)
    sides = _sides(*line_runs(starts, ends, size_wh[1]))
    walks = _cycles(sides.following.tolist())
    side = np.array(list(chain.from_iterable(walks)))
    contour = np.repeat(np.arange(len(walks)), [2 * len(walk) for walk in walks])
    corners_xy = np.stack((sides.begin_xy[side], sides.end_xy[side]), axis=1).reshape(-1, 2)
    first = np.searchsorted(contour, np.arange(len(walks)))
    # Outer outlines go down on their left; the area then is negative, and that of a hole positive.
    x, y = corners_xy.T
    is_hole = np.add.reduceat(x * (y[_following(contour)] - y), first) > 0
    if is_hole.any():
        corners_xy, following = _cut_in(corners_xy, contour, first[is_hole])
        next_node = following.tolist()
        walks = [_cycle(next_node, begin) for begin in first[~is_hole].tolist()]
        contour = np.repeat(np.arange(len(walks)), [len(walk) for walk in walks])
        corners_xy = corners_xy[list(chain.from_iterable(walks))]
        # A slit may begin at a corner, which then is there twice.
        kept = (corners_xy[_following(contour)] != corners_xy).any(axis=1)
        corners_xy, contour = corners_xy[kept], contour[kept]
    return corners_xy, contour


class _Sides(NamedTuple):
    """Upright sides of all outlines, each down where the mask lies right of it, else up.

    ``begin_xy`` and ``end_xy`` are ``(n, 2)``; ``following`` is the next side, which a level side
    connects with this one's end.
    """

    begin_xy: Ints
    end_xy: Ints
    following: Ints


def _sides(column: Ints, top: Ints, bottom: Ints) -> _Sides:
    """Finds the outlines' corners, and which follow each other, from runs in columns.

    Along the line between two columns, the change of (mask right - mask left) from pixel to pixel
    is 0 but at corners, where it is 1 or -1; it is 2 or -2 where two pixels touch by their corners
    only, and there are two. Sorted along a line, each two corners make an upright side, and sorted
    along a row, each two make a level one.
    """
    x = np.concatenate((column, column, column + 1, column + 1))
    y = np.concatenate((top, bottom, top, bottom))
    change = np.repeat(np.array([1, -1, -1, 1]), len(column))
    stride = int(y.max()) + 1
    place = x * stride + y
    order = np.argsort(place, kind="stable")
    place, change = place[order], change[order]
    first = np.flatnonzero(np.append(True, place[1:] != place[:-1]))
    place, change = place[first], np.add.reduceat(change, first)
    twice = np.abs(change)  # 0 where a run goes on in the next column, or in its own
    place, change, twice = (np.repeat(values, twice) for values in (place, change, twice))
    x, y = place // stride, place % stride

    # Where pixels touch by corners, the upper corner of the two goes with the level side that
    # keeps them in one outline: to the right if the pixels are upper left and lower right.
    is_lower = np.zeros(len(place), np.int64)
    double = np.flatnonzero(twice == 2)
    is_lower[double[1::2]] = 1
    turn = np.where(change == 2, 1 - is_lower, is_lower) * (twice == 2)
    level = np.argsort((y * (int(x[-1]) + 1) + x) * 2 + turn, kind="stable")
    partner = np.empty_like(level)
    partner[level[::2]], partner[level[1::2]] = level[1::2], level[::2]

    down = np.cumsum(np.sign(change))[::2] > 0
    upper = np.arange(0, len(place), 2)
    begin, end = np.where(down, upper, upper + 1), np.where(down, upper + 1, upper)
    corners_xy = np.stack((x, y), axis=1)
    return _Sides(corners_xy[begin], corners_xy[end], partner[end] // 2)


def _cycles(following: list[int]) -> list[list[int]]:
    """All closed walks, each from its first element on."""
    seen = bytearray(len(following))
    walks = []
    for begin in range(len(following)):
        if not seen[begin]:
            walk = _cycle(following, begin)
            for element in walk:
                seen[element] = 1
            walks.append(walk)
    return walks


def _cycle(following: list[int], begin: int) -> list[int]:
    """A closed walk. Each step depends on the one before, so it cannot be an array operation."""
    walk = [begin]
    while (element := following[walk[-1]]) != begin:
        walk.append(element)
    return walk


def _following(contour: Ints) -> Ints:
    """The index of the next point of the same contour; points are sorted by contour."""
    following = np.arange(1, len(contour) + 1)
    last = np.flatnonzero(np.append(contour[1:] != contour[:-1], True))
    following[last] = np.concatenate(([0], last[:-1] + 1))
    return following


def _cut_in(corners_xy: Ints, contour: Ints, hole_first: Ints) -> tuple[Ints, Ints]:
    """Splices the holes' outlines into what lies left of them.

    The outlines become linked lists. A hole is entered at ``corner``, the upper one of its
    leftmost, along a slit from ``start`` on an upright side left of it; all the way round comes
    ``again``, at the same place as ``corner``, and then ``back``, at the same place as ``start``.
    As every slit leads to something further left, all lists end up in outer outlines.

    Args:
        corners_xy: all corners, sorted by contour.
        contour: the contour of each corner.
        hole_first: index of the first corner of each hole.

    Returns:
        Nodes ``(n, 2)``, which begin with ``corners_xy``, and the index of each node's next one.
    """
    x, y = corners_xy.T
    side_end = _following(contour)
    if not len(hole_first):
        return corners_xy, side_end
    corner = np.lexsort((y, x, contour))[hole_first]
    side = _side_left_of(corner, corners_xy, side_end)
    start_xy = np.stack((x[side], y[corner]), axis=1)
    nodes_xy = np.concatenate((corners_xy, start_xy, corners_xy[corner], start_xy))
    start, again, back = np.arange(len(corners_xy), len(nodes_xy)).reshape(3, -1)

    # Slits of one side follow each other in the direction of the side.
    order = np.lexsort((np.abs(y[corner] - y[side]), side))
    side, corner, start = side[order], corner[order], start[order]
    again, back = again[order], back[order]
    renamed = np.arange(len(corners_xy))
    renamed[corner] = again
    side_end = renamed[side_end]
    following = np.empty(len(nodes_xy), np.int64)
    following[: len(side_end)] = side_end
    following[start], following[again] = corner, back
    is_first = np.diff(side, prepend=-1) != 0
    is_last = np.diff(side, append=-1) != 0
    following[side[is_first]] = start[is_first]
    following[back[is_last]] = side_end[side[is_last]]
    following[back[~is_last]] = start[~is_first]
    return nodes_xy, following


def _side_left_of(corner: Ints, corners_xy: Ints, side_end: Ints) -> Ints:
    """The next upright side to the left in the pixel row below each corner, by its first corner."""
    x, y = corners_xy.T
    length = np.where(x[side_end] == x, np.abs(y[side_end] - y), 0)
    side = np.repeat(np.arange(len(x)), length)
    down = np.arange(len(side)) - np.repeat(np.cumsum(length) - length, length)
    row = np.minimum(y, y[side_end])[side] + down
    place = row * (x.max() + 1) + x[side]
    order = np.argsort(place)
    own = np.searchsorted(place[order], y[corner] * (x.max() + 1) + x[corner])
    left: Ints = side[order[own - 1]]
    return left
