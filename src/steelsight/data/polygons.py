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
from itertools import accumulate, chain, pairwise
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
    if _are_too_long(clipped, size_wh):
        raise _label_error(
            where,
            f"the polygons are {_length_px(clipped):.0f} pixels long, expected at most"
            f" {MAX_OUTLINE_PX}; write such a mask as RLE or as a picture",
        )
    flat: Any = [p.ravel() for p in clipped]  # the stubs know whole numbers only
    return merged(coco_mask.frPyObjects(flat, height, width))


def _are_too_long(polygons_xy: Sequence[Points], size_wh: tuple[int, int]) -> bool:
    """Whether polygons inside the frame are longer than ``MAX_OUTLINE_PX``."""
    # No side is longer than a way along the edges of the frame, which mostly is enough to know.
    longest_px = sum(map(len, polygons_xy)) * sum(size_wh)
    return longest_px > MAX_OUTLINE_PX and _length_px(polygons_xy) > MAX_OUTLINE_PX


def _length_px(polygons_xy: Sequence[Points]) -> float:
    return sum(float(np.abs(np.diff(p, axis=0, append=p[:1])).sum()) for p in polygons_xy)


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
    corners_xy, bounds = _corners(rle, size_wh)
    return _divided(corners_xy.astype(np.float64), bounds)


def inset_outlines_of_rle(rle: str, size_wh: tuple[int, int]) -> list[Points]:
    """The outlines of :func:`outlines_of_rle`, each side a fifth of a pixel inside the mask.

    For files. Rasterising gives exactly the mask, whatever its form: pycocotools sets pixels by
    where sides cross the lines through their centres, half a pixel from any corner, and takes the
    nearest edge between two pixels. Points that are less than half a pixel from a corner leave both
    as they are. Tools that cut coordinates down to whole numbers and colour what OpenCV's
    ``fillPoly`` then touches (Ultralytics' ``polygon2mask``) would otherwise draw each mask a pixel
    wider to the right and below. ``np.rint`` gives the outline itself, some of its corners twice.

    Args:
        rle: Kaggle RLE of the mask.
        size_wh: width and height of the mask in pixels.

    Returns:
        Polygons ``(n, 2)`` of whole fifths inside the frame, x and y in pixels. Where they would
        be too many or too long to be read, those of :func:`outlines_of_rle`.

    Raises:
        LabelError: see :func:`steelsight.masks.rle_runs`.
    """
    corners_xy, bounds = _corners(rle, size_wh)
    fifths_xy, fifths_bounds = _inset_fifths(corners_xy, bounds)
    inset = _divided(fifths_xy / 5, fifths_bounds)
    # Whoever reads an outline that is too long is told so; here it is written as it is.
    if len(fifths_xy) > MAX_POINTS or _are_too_long(inset, size_wh):
        return _divided(corners_xy.astype(np.float64), bounds)
    return inset


def _inset_fifths(corners_xy: Ints, bounds: Ints) -> tuple[Ints, Ints]:
    """Corners in fifths of a pixel, each on the inner side of the two sides that meet there.

    Where two pixels touch by their corners only, that would widen the neck to one of two pixels; a
    corner there becomes two, one in each pixel, and the outlines meet in the neck.

    Returns:
        Points ``(n, 2)``, and the bounds of the outlines in them.
    """
    if not len(corners_xy):
        return corners_xy, bounds
    x, y = corners_xy.T
    following = _following(bounds)
    before = np.empty_like(following)
    before[following] = np.arange(len(following))
    step_x, step_y = np.sign(x[following] - x), np.sign(y[following] - y)
    from_x, from_y = step_x[before], step_y[before]
    # The mask lies left of who walks along. Where a slit goes on along a side, both sides say the
    # same, which counts once.
    shift = np.stack((np.sign(from_y + step_y), -np.sign(from_x + step_x)), axis=1)

    turns_right = np.flatnonzero(from_x * step_y > from_y * step_x)
    place = x[turns_right] * (int(y.max()) + 1) + y[turns_right]
    in_order = np.sort(place)
    if (in_order[1:] == in_order[:-1]).any():
        _, index, count = np.unique(place, return_inverse=True, return_counts=True)
        necks = turns_right[count[index] == 2]
        shift[necks, 0], shift[necks, 1] = (step_y + step_x)[necks], (step_y - step_x)[necks]
        first = np.stack((from_y - from_x, -from_x - from_y), axis=1)[necks]
        shift = np.insert(shift, necks, first, axis=0)
        corners_xy = np.insert(corners_xy, necks, corners_xy[necks], axis=0)
        bounds = bounds + np.searchsorted(necks, bounds)
    return 5 * corners_xy + _FIFTHS_INSET * shift, bounds


def _divided(points_xy: Points, bounds: Ints) -> list[Points]:
    """One array for each outline."""
    return [points_xy[begin:end] for begin, end in pairwise(bounds.tolist())]


def _corners(rle: str, size_wh: tuple[int, int]) -> tuple[Ints, Ints]:
    """Corners ``(n, 2)`` of all outlines of a mask, holes cut in, and the outlines' bounds.

    The bounds are where each outline begins, and the end of the last one.
    """
    starts, ends = rle_runs(rle, size_wh)
    if not len(starts):
        return np.empty((0, 2), np.int64), np.zeros(1, np.int64)
    sides = _sides(*line_runs(starts, ends, size_wh[1]))
    walks = _cycles(sides.following.tolist())
    side = np.array(list(chain.from_iterable(walks)))
    corners_xy = sides.corners_xy[sides.begin_end[side].ravel()]
    bounds = _bounds(walks)
    # Outer outlines go down on their left; the area then is negative, and that of a hole positive.
    x, y = corners_xy.T
    is_hole = np.add.reduceat(x[::2] * (y[1::2] - y[::2]), bounds[:-1]) > 0
    bounds *= 2
    if is_hole.any():
        corners_xy, following = _cut_in(corners_xy, bounds, bounds[:-1][is_hole])
        next_node = following.tolist()
        walks = [_cycle(next_node, begin) for begin in bounds[:-1][~is_hole].tolist()]
        corners_xy, bounds = corners_xy[list(chain.from_iterable(walks))], _bounds(walks)
        # A slit may begin at a corner, which then is there twice.
        again = (corners_xy[_following(bounds)] == corners_xy).all(axis=1)
        corners_xy = corners_xy[~again]
        bounds -= np.searchsorted(np.flatnonzero(again), bounds)
    return corners_xy, bounds


def _bounds(walks: list[list[int]]) -> Ints:
    return np.array([0, *accumulate(map(len, walks))])


class _Sides(NamedTuple):
    """Upright sides of all outlines, each down where the mask lies right of it, else up.

    ``corners_xy`` is ``(2 n, 2)``; ``begin_end`` ``(n, 2)`` says which corners a side goes from and
    to; ``following`` is the next side, which a level side connects with this one's end.
    """

    corners_xy: Ints
    begin_end: Ints
    following: Ints


def _sides(column: Ints, top: Ints, bottom: Ints) -> _Sides:
    """Finds the outlines' corners, and which follow each other, from runs in columns.

    Along the line between two columns, the change of (mask right - mask left) from pixel to pixel
    is 0 but at corners, where it is 1 or -1; it is 2 or -2 where two pixels touch by their corners
    only, and there are two. Sorted along a line, each two corners make an upright side, and sorted
    along a row, each two make a level one.
    """
    stride = int(bottom.max()) + 1
    begins, ends = column * stride + top, column * stride + bottom
    # Place and sign in one number: sorting numbers is several times as fast as sorting places.
    place = np.sort(
        np.concatenate((2 * begins + 1, 2 * ends, 2 * (begins + stride), 2 * (ends + stride) + 1))
    )
    place, change = place >> 1, 2 * (place & 1) - 1
    is_first = np.ones(len(place), np.bool_)
    np.not_equal(place[1:], place[:-1], out=is_first[1:])
    first = np.flatnonzero(is_first)
    place, change = place[first], np.add.reduceat(change, first)
    corners = np.abs(change)  # 0 where a run goes on in the next column, or in its own
    place, change = np.repeat(place, corners), np.repeat(change, corners)
    x, y = np.divmod(place, stride)

    # Where pixels touch by corners, the upper corner of the two goes with the level side that
    # keeps them in one outline: to the right if the pixels are upper left and lower right.
    turn = np.zeros(len(place), np.int64)
    double = np.flatnonzero(np.abs(change) == 2)
    turn[double[::2]], turn[double[1::2]] = change[double[::2]] > 0, change[double[1::2]] < 0
    along_rows = (y * (int(x[-1]) + 1) + x) * 2 + turn
    bits = len(place).bit_length()
    level = np.sort(along_rows << bits | np.arange(len(place))) & ((1 << bits) - 1)
    partner = np.empty_like(level)
    partner[level[::2]], partner[level[1::2]] = level[1::2], level[::2]

    down = np.cumsum(np.sign(change))[::2] > 0
    upper = np.arange(0, len(place), 2)
    begin_end = np.stack((upper + ~down, upper + down), axis=1)
    return _Sides(np.stack((x, y), axis=1), begin_end, partner[begin_end[:, 1]] >> 1)


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


def _following(bounds: Ints) -> Ints:
    """The index of the next point of the same outline."""
    following = np.arange(1, bounds[-1] + 1)
    following[bounds[1:] - 1] = bounds[:-1]
    return following


def _cut_in(corners_xy: Ints, bounds: Ints, hole_first: Ints) -> tuple[Ints, Ints]:
    """Splices the holes' outlines into what lies left of them.

    The outlines become linked lists. A hole is entered at ``corner``, the upper one of its
    leftmost, along a slit from ``start`` on an upright side left of it; all the way round comes
    ``again``, at the same place as ``corner``, and then ``back``, at the same place as ``start``.
    As every slit leads to something further left, all lists end up in outer outlines.

    Args:
        corners_xy: all corners, outline by outline.
        bounds: of the outlines.
        hole_first: index of the first corner of each hole.

    Returns:
        Nodes ``(n, 2)``, which begin with ``corners_xy``, and the index of each node's next one.
    """
    x, y = corners_xy.T
    side_end = _following(bounds)
    contour = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
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
