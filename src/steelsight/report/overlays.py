"""Pictures for people: the frame with every region outlined, and its encoded forms.

Shapes: ``grey_hw`` is uint8, masks are bool, both rows x columns; pictures are RGB uint8 hw3.

An outline runs just outside its region, so that it never covers what it points at; only where a
region reaches the edge of the frame it has to lie inside. Colour alone does not carry the type:
each type has its own dash pattern, and the label says its name.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from steelsight.defects import Defect, DefectClass
from steelsight.errors import InputError
from steelsight.masks import decode_rle, merge_rles, regions
from steelsight.report.svg import visible

Grey = npt.NDArray[np.uint8]
Rgb = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]

LINE_PATTERNS: tuple[tuple[int, ...], ...] = ((1, 0), (14, 5), (14, 4, 3, 4), (6, 4))
"""Pixels on, off, on, ... along the outline, by the position of the type in the bundle."""
TRUTH_PATTERN = (5, 5)
MARKER_RGB = (255, 176, 0)

FILL_OPACITY = 0.14
MAX_LABELS = 24
"""Only the largest regions are labelled, ..."""
MAX_LABELLED_SHARE = 0.12
"""... and labels never hide more of the picture than this: the steel is what counts."""
JPEG_SIDE_PX = 65_500
"""The format's limit, as its library sets it."""
MAX_ENLARGEMENT = 2.0

_BLACK = (16, 18, 22)
_WHITE = (255, 255, 255)


def draw_overlay(
    grey_hw: Grey,
    defects: Sequence[Defect],
    classes: Sequence[DefectClass],
    *,
    truth: Mapping[str, Mask | None] | None = None,
    fit_wh: tuple[int, int] | None = None,
) -> Rgb:
    """Draws the regions, with labels like "Type 3 · 0.88", and the truth where it is known.

    Args:
        grey_hw: the frame.
        defects: regions as found, their ``rle`` in the size of ``grey_hw``.
        classes: types of the bundle; give colour, name and dash pattern.
        truth: mask per type id, drawn as a white dashed line just inside the region; regions of a
            type that was not found anywhere on them are labelled "missed". ``None`` instead of a
            mask (type known, place not) draws nothing.
        fit_wh: shrink (or enlarge, at most twice) so that the picture fits, before anything is
            drawn: lines and letters stay as crisp as at full size. ``None`` keeps every pixel.

    Returns:
        The picture, RGB; its size is that of ``grey_hw`` unless ``fit_wh`` says otherwise.

    Raises:
        InputError: a region or mask of an unknown type or of another size.
    """
    height, width = grey_hw.shape
    found = class_masks(defects, (width, height))
    true = {k: v for k, v in (truth or {}).items() if v is not None and v.any()}
    _check(found, true, classes, grey_hw.shape)
    size = _fitted((width, height), fit_wh)
    rgb = np.asarray(cv2.cvtColor(_resized(grey_hw, size), cv2.COLOR_GRAY2RGB), np.uint8)
    if not found and not true:
        return rgb
    found = {k: _resized_mask(v, size) for k, v in found.items()}
    true = {k: _resized_mask(v, size) for k, v in true.items()}

    unit = _line_unit(size)
    _outline_types(rgb, found, classes, unit)
    for mask in true.values():
        _dashed_inside(rgb, mask, unit)

    by_id = {c.id: c for c in classes}
    scale = (size[0] / width, size[1] / height)
    labels = _Labels(rgb, np.logical_or.reduce([*found.values(), *true.values()]), unit)
    for class_id, box in _missed(true, found):
        labels.put(f"missed: {visible(by_id[class_id].name)}", box, _WHITE)
    for defect in sorted(defects, key=lambda d: -d.area_px)[:MAX_LABELS]:
        defect_class = by_id[defect.class_id]
        text = f"{visible(defect_class.name)} · {defect.probability:.2f}"
        labels.put(text, _scaled_box(defect.bbox_xywh, scale), defect_class.rgb)
    return rgb


def draw_labels(
    grey_hw: Grey,
    masks_by_class: Mapping[str, Mask],
    classes: Sequence[DefectClass],
    *,
    fit_wh: tuple[int, int] | None = None,
    named: bool = True,
    marked_xywh: Box | None = None,
) -> Rgb:
    """Draws labels as :func:`draw_overlay` draws results: labels have no probability.

    Args:
        grey_hw: the frame, or a part of it.
        masks_by_class: what was labelled, in the size of ``grey_hw``.
        classes: give colour, name and dash pattern; types of the masks that are not among them are
            not drawn.
        fit_wh: as for :func:`draw_overlay`.
        named: the largest regions carry the name of their type.
        marked_xywh: a place to look at, framed; it may reach beyond the picture.

    Returns:
        The picture, RGB; its size is that of ``grey_hw`` unless ``fit_wh`` says otherwise.
    """
    height, width = grey_hw.shape
    size = _fitted((width, height), fit_wh)
    rgb = np.asarray(cv2.cvtColor(_resized(grey_hw, size), cv2.COLOR_GRAY2RGB), np.uint8)
    unit = _line_unit(size)
    full = {c.id: masks_by_class[c.id] for c in classes if c.id in masks_by_class}
    masks = {k: _resized_mask(v, size) for k, v in full.items() if v.any()}
    _outline_types(rgb, masks, classes, unit)
    if marked_xywh is not None:
        x, y, w, h = marked_xywh
        place = np.zeros(grey_hw.shape, np.bool_)
        place[max(y, 0) : y + h, max(x, 0) : x + w] = True
        _outline(rgb, _resized_mask(place, size), MARKER_RGB, LINE_PATTERNS[0], unit)
    if named and masks:
        scale = (size[0] / width, size[1] / height)
        plates = _Labels(rgb, np.logical_or.reduce(list(masks.values())), unit)
        found = [(r, c) for c in classes if c.id in masks for r in regions(full[c.id])]
        for region, defect_class in sorted(found, key=lambda rc: -rc[0].area_px)[:MAX_LABELS]:
            box = _scaled_box(region.bbox_xywh, scale)
            plates.put(visible(defect_class.name), box, defect_class.rgb)
    return rgb


def class_masks(defects: Sequence[Defect], size_wh: tuple[int, int]) -> dict[str, Mask]:
    """All regions of one type as one mask; types without a region are absent.

    The runs of all regions are decoded together: a thousand specks cost one frame-sized array per
    type, not a thousand.
    """
    runs: dict[str, list[str]] = {}
    for defect in defects:
        runs.setdefault(defect.class_id, []).append(defect.rle)
    return {class_id: decode_rle(merge_rles(rles), size_wh) for class_id, rles in runs.items()}


def encode_jpeg(picture: npt.NDArray[np.uint8], quality: int = 80) -> bytes:
    """JPEG of an RGB or grey picture, at most ``JPEG_SIDE_PX`` a side.

    Raises:
        InputError: the picture is larger.
    """
    ordered = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    # 4:4:4: coloured lines of two pixels would bleed where colour has half the resolution.
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    try:
        done, encoded = cv2.imencode(
            ".jpg", ordered, [cv2.IMWRITE_JPEG_QUALITY, quality, *sampling]
        )
    except cv2.error:
        done = False
    if not done:
        raise InputError(
            f"expected a picture that a JPEG file can hold, received {picture.shape} rows and "
            "columns: shrink it first"
        )
    return encoded.tobytes()


def data_uri(encoded: bytes, media_type: str) -> str:
    """The bytes as a ``data:`` URI, for pages that must not fetch anything."""
    return f"data:{media_type};base64,{base64.b64encode(encoded).decode()}"


def _check(
    found: Mapping[str, Mask],
    true: Mapping[str, Mask],
    classes: Sequence[DefectClass],
    shape_hw: tuple[int, ...],
) -> None:
    known = [c.id for c in classes]
    for class_id in (*found, *true):
        if class_id not in known:
            raise InputError(
                f"expected a defect type out of {known}, received {class_id!r}: "
                "draw with the classes of the bundle that made the result"
            )
    for class_id, mask in true.items():
        if mask.shape != shape_hw:
            raise InputError(
                f"expected a truth mask of {shape_hw} rows and columns for type {class_id!r}, "
                f"received {mask.shape}: the labels belong to another image"
            )


def _fitted(size_wh: tuple[int, int], fit_wh: tuple[int, int] | None) -> tuple[int, int]:
    if fit_wh is None:
        return size_wh
    scale = min(fit_wh[0] / size_wh[0], fit_wh[1] / size_wh[1], MAX_ENLARGEMENT)
    return max(1, round(size_wh[0] * scale)), max(1, round(size_wh[1] * scale))


def _resized(grey_hw: Grey, size_wh: tuple[int, int]) -> Grey:
    if grey_hw.shape == size_wh[::-1]:
        return grey_hw
    shrinks = size_wh[0] < grey_hw.shape[1] or size_wh[1] < grey_hw.shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(grey_hw, size_wh, interpolation=method), np.uint8)


def _resized_mask(mask: Mask, size_wh: tuple[int, int]) -> Mask:
    """A pixel is set if any source pixel under it is: specks must survive the shrinking."""
    if mask.shape == size_wh[::-1]:
        return mask
    shrinks = size_wh[0] < mask.shape[1] or size_wh[1] < mask.shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
    full = mask.astype(np.float32)
    return np.asarray(cv2.resize(full, size_wh, interpolation=method) > 0)


def _line_unit(size_wh: tuple[int, int]) -> int:
    """Large pictures are looked at shrunk to a screen: lines and letters grow with them."""
    return max(1, round(max(size_wh) / 2000))


def _outline_types(
    rgb: Rgb, masks: Mapping[str, Mask], classes: Sequence[DefectClass], unit: int
) -> None:
    """Tints all masks, then outlines them: no tint may cover a line."""
    present = [(i, c) for i, c in enumerate(classes) if c.id in masks]
    for _, defect_class in present:
        _tint(rgb, masks[defect_class.id], defect_class.rgb)
    for index, defect_class in present:
        pattern = LINE_PATTERNS[index % len(LINE_PATTERNS)]
        _outline(rgb, masks[defect_class.id], defect_class.rgb, pattern, unit)


def _tint(rgb: Rgb, mask: Mask, colour: tuple[int, int, int]) -> None:
    inside = rgb[mask].astype(np.float32)
    inside += FILL_OPACITY * (np.array(colour, np.float32) - inside)
    rgb[mask] = np.round(inside)


def _outline(
    rgb: Rgb, mask: Mask, colour: tuple[int, int, int], pattern: Sequence[int], unit: int
) -> None:
    """A patterned line ``2 * unit`` px wide around the mask, cased so that it shows on any steel.

    The casing is dark around light colours and white around dark ones: one of the two always
    stands out from the steel.
    """
    grown = _dilated(mask, 1)
    contours, _ = cv2.findContours(
        grown.view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
    )  # points at distance 1 from the region
    points_xy = np.concatenate(contours).reshape(-1, 2)
    along = np.concatenate([np.arange(len(c)) for c in contours])
    drawn = points_xy[_is_on(along, pattern, unit)]

    # What the line must not cover: the region, but for the outermost pixels of the frame, where
    # there is no outside to draw on.
    edge = 2 * unit
    core = np.zeros_like(mask)
    core[edge:-edge, edge:-edge] = mask[edge:-edge, edge:-edge]
    line = _dilated(_painted(drawn, mask.shape), 2 * unit - 1) & ~core
    casing = _dilated(_painted(points_xy, mask.shape), 2 * unit) & ~core & ~line
    rgb[casing] = _contrasting(colour)
    rgb[line] = colour


def _dashed_inside(rgb: Rgb, mask: Mask, unit: int) -> None:
    """Black and white dashes on the rim of the mask: beside, not upon, the outline of the found."""
    contours, _ = cv2.findContours(
        np.ascontiguousarray(mask).view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
    )
    points_xy = np.concatenate(contours).reshape(-1, 2)
    along = np.concatenate([np.arange(len(c)) for c in contours])
    white = points_xy[_is_on(along, TRUTH_PATTERN, unit)]
    reach = 2 * unit - 1
    rgb[_dilated(_painted(points_xy, mask.shape), reach) & mask] = _BLACK
    rgb[_dilated(_painted(white, mask.shape), reach) & mask] = _WHITE


def _is_on(along: npt.NDArray[np.int64], pattern: Sequence[int], unit: int) -> Mask:
    """For each step along an outline: is the pattern (on, off, ...) on there?"""
    cycle = np.concatenate([np.full(n * unit, i % 2 == 0) for i, n in enumerate(pattern)])
    return np.asarray(cycle[along % len(cycle)])


def _painted(points_xy: npt.NDArray[Any], shape: tuple[int, ...]) -> Mask:
    canvas = np.zeros(shape, np.bool_)
    canvas[points_xy[:, 1], points_xy[:, 0]] = True
    return canvas


def _dilated(mask: Mask, reach: int) -> Mask:
    """Grown by ``reach`` pixels in every direction (a square)."""
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    grown = cv2.dilate(np.ascontiguousarray(mask).view(np.uint8), kernel)
    return np.asarray(grown).view(np.bool_)


def _contrasting(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Near-black on light colours, white on dark ones (by WCAG contrast)."""
    channels = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return _BLACK if (luminance + 0.05) ** 2 > 1.05 * 0.057 else _WHITE


def _scaled_box(bbox_xywh: Box, scale: tuple[float, float]) -> Box:
    x, y, w, h = bbox_xywh
    left, top = int(x * scale[0]), int(y * scale[1])
    right, bottom = int(np.ceil((x + w) * scale[0])), int(np.ceil((y + h) * scale[1]))
    return left, top, right - left, bottom - top


def _missed(true: Mapping[str, Mask], found: Mapping[str, Mask]) -> Iterator[tuple[str, Box]]:
    """Boxes of the true regions of which not one pixel was found as their type, largest first."""
    for class_id, mask in true.items():
        _, region, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8))
        hit = set(np.unique(region[found[class_id]])) if class_id in found else set()
        order = np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable") + 1
        for index in order[:MAX_LABELS]:
            if index not in hit:
                x, y, w, h = (int(v) for v in stats[index, :4])
                yield class_id, (x, y, w, h)


class _Labels:
    """Places labels beside their regions: inside the picture, never upon each other."""

    def __init__(self, rgb: Rgb, avoid: Mask, unit: int):
        self._rgb = rgb
        self._avoid = avoid
        self._taken = np.zeros_like(avoid)
        self._px_left = MAX_LABELLED_SHARE * avoid.size
        # OpenCV's own outline font: no font file needed, letters beyond Latin included.
        self._font = cv2.FontFace("sans")
        self._size = 12 * unit
        self._gap = 4 * unit
        self._pad = 3 * unit

    def put(self, text: str, box_xywh: Box, colour: tuple[int, int, int]) -> None:
        """Draws at the free place that hides the fewest defect pixels; at none if none is free."""
        x, y, w, h = box_xywh
        text_w = cv2.getTextSize((0, 0), text, (0, 0), self._font, self._size, 400)[2]
        width, height = text_w + 2 * self._pad, self._size + 2 * self._pad
        rows, columns = self._avoid.shape
        if width > columns or height > rows or self._px_left < width * height:
            return
        gap = self._gap
        corners = (
            (x, y - gap - height), (x, y + h + gap),  # above, below
            (x + w + gap, y), (x - gap - width, y),  # right, left
            (x + w - width, y - gap - height), (x + w - width, y + h + gap),
            (x + gap, y + gap),  # inside: better than none
        )  # fmt: skip
        free = []
        for order, (corner_x, corner_y) in enumerate(corners):
            left = min(max(corner_x, 0), columns - width)  # moved into the picture
            top = min(max(corner_y, 0), rows - height)
            place = np.s_[top : top + height, left : left + width]
            if not self._taken[place].any():
                free.append((int(self._avoid[place].sum()), order, left, top))
        if free:
            _, _, left, top = min(free)
            self._draw(text, left, top, width, height, colour)

    def _draw(
        self, text: str, left: int, top: int, width: int, height: int, colour: tuple[int, int, int]
    ) -> None:
        self._taken[top : top + height, left : left + width] = True
        self._px_left -= width * height
        plate = np.full((height, width, 3), colour, np.uint8)
        baseline = self._pad + round(self._size * 0.86)
        ink = _contrasting(colour)
        cv2.putText(plate, text, (self._pad, baseline), ink, self._font, self._size, 400)
        self._rgb[top : top + height, left : left + width] = plate
