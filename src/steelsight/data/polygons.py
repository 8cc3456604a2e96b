"""Polygons from and to masks, in COCO's continuous coordinates.

The pixel (x, y) is the square from (x, y) to (x + 1, y + 1), so the frame reaches from (0, 0) to
(width, height). A pixel belongs to a polygon if its centre is inside, by the even-odd rule: what a
polygon encloses twice is a hole. :func:`rasterise` is the rasteriser of pycocotools (``rleFrPoly``
in ``maskApi.c`` of https://github.com/cocodataset/cocoapi), which rounds coordinates to a fifth of
a pixel; :func:`outlines` writes whole numbers, so masks survive it exactly.

Shapes: polygons are float64 ``(n, 2)`` with x and y; ``_hw`` is rows x columns, ``_wh`` columns x
rows.
"""

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from steelsight.errors import InputError, LabelError
from steelsight.masks import MAX_MASK_PX, decode_rle, kaggle_from_coco

MAX_POINTS = 1_000_000
"""Of all polygons of one mask."""

MAX_OUTLINE_PX = 8_000_000
"""Of all polygons of one mask; pycocotools takes 80 bytes of memory for a pixel of a polygon."""

_TOLERANCE_PX = 1.0
"""So far tools write points beside the frame: rounding, or pixel centres taken for corners."""

_MERGED_AT_ONCE = 32

Points = NDArray[np.float64]
Ints = NDArray[np.int64]


def rasterise(
    polygons_xy: Sequence[Points], size_wh: tuple[int, int], *, where: str = ""
) -> NDArray[np.bool_]:
    """The union of polygons as a mask.

    Args:
        polygons_xy: each ``(n, 2)`` with n >= 3, x and y in pixels; closed by itself.
        size_wh: width and height of the mask in pixels.
        where: put in front of an error message.

    Returns:
        Mask of ``height`` rows and ``width`` columns, C-contiguous.

    Raises:
        LabelError: fewer than three points, a coordinate that is not finite or lies more than one
            pixel outside the frame (up to one it is clipped), or more than ``MAX_POINTS`` points
            or ``MAX_OUTLINE_PX`` of outline.
        InputError: ``size_wh`` is no usable size, or an array has another shape.
    """
    return decode_rle(rasterise_rle(polygons_xy, size_wh, where=where), size_wh)


def rasterise_rle(
    polygons_xy: Sequence[Points], size_wh: tuple[int, int], *, where: str = ""
) -> str:
    """As :func:`rasterise`, as canonical Kaggle RLE and without building the mask."""
    width, height = size_wh
    if width < 1 or height < 1 or width * height > MAX_MASK_PX:
        raise InputError(
            f"expected a width and height from 1 up and at most {MAX_MASK_PX} pixels, got"
            f" {width} x {height}; pass the size of the image"
        )
    if not len(polygons_xy):
        return ""
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
    rles = coco_mask.frPyObjects(flat, height, width)
    while len(rles) > 1:  # in a tree: one by one would take quadratic time
        rles = [
            coco_mask.merge(rles[i : i + _MERGED_AT_ONCE])
            for i in range(0, len(rles), _MERGED_AT_ONCE)
        ]
    return kaggle_from_coco(rles[0], size_wh)


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
    """Polygons along the pixels' edges, such that rasterising them gives exactly the mask.

    One polygon per connected region (8 neighbours, as regions are counted everywhere in this
    package), in the order of OpenCV. Holes are cut in by a keyhole: from the upper left corner of
    the hole a slit of no width goes along the row to what lies left of it, the outer outline or
    another hole. It runs inside the region; under the even-odd rule it adds nothing because it is
    passed twice, and as holes run the other way round, the nonzero rule gives the same.

    Args:
        mask_hw: bool, rows x columns.

    Returns:
        Polygons ``(n, 2)`` of whole numbers, x and y in pixels, not closed by their first point.
    """
    left, top, width, height = cv2.boundingRect(mask_hw.view(np.uint8))
    if not width:
        return []
    corners_xy, contour, is_hole = _edge_contours(mask_hw[top : top + height, left : left + width])
    first = np.searchsorted(contour, np.arange(len(is_hole)))
    nodes_xy, following = _cut_in(corners_xy, contour, first[is_hole])
    nodes_xy += (left, top)
    # Each step depends on the one before, so this walk cannot be one array operation.
    next_node = following.tolist()
    walks = []
    for begin in first[~is_hole].tolist():
        walk = [begin]
        while (node := next_node[walk[-1]]) != begin:
            walk.append(node)
        walks.append(walk)
    polygon = np.repeat(np.arange(len(walks)), [len(walk) for walk in walks])
    points_xy = nodes_xy[list(chain.from_iterable(walks))]
    # A slit may begin at a corner, which then is there twice.
    kept = (points_xy[_following(polygon)] != points_xy).any(axis=1)
    points_xy, polygon = points_xy[kept].astype(np.float64), polygon[kept]
    bounds = np.searchsorted(polygon, np.arange(len(walks) + 1)).tolist()
    return [points_xy[begin:end] for begin, end in pairwise(bounds)]


def _edge_contours(mask_hw: NDArray[np.bool_]) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Corners ``(n, 2)`` of all outlines, the outline of each, and which outlines are holes.

    OpenCV's contours run through pixel centres. With every pixel doubled, those of one side of an
    edge are told from those of the other: rounded up to a whole pixel they all lie on the edge,
    and the diagonal steps at corners shrink to nothing.
    """
    height, width = mask_hw.shape
    doubled_hw = cv2.resize(
        mask_hw.view(np.uint8), (2 * width, 2 * height), interpolation=cv2.INTER_NEAREST
    )
    contours, hierarchy = cv2.findContours(doubled_hw, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    corners_xy = (np.concatenate(contours)[:, 0].astype(np.int64) + 1) // 2
    contour = np.repeat(np.arange(len(contours)), [len(c) for c in contours])
    kept = (corners_xy[_following(contour)] != corners_xy).any(axis=1)
    corners_xy, contour = corners_xy[kept], contour[kept]
    # Sides are upright or level; a corner between two of the same kind is none.
    following = _following(contour)
    upright = corners_xy[following, 0] == corners_xy[:, 0]
    kept = np.empty_like(upright)
    kept[following] = upright[following] != upright
    return corners_xy[kept], contour[kept], hierarchy[0, :, 3] >= 0


def _following(contour: Ints) -> Ints:
    """The index of the next point of the same contour; points are sorted by contour."""
    following = np.arange(1, len(contour) + 1)
    last = np.flatnonzero(np.diff(contour, append=-1))
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
