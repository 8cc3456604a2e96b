"""What one frame tells about its masks: do they fit the image, and is there anything to see?

The limits that decide were measured on real frames; the numbers stand beside each.

Shapes: ``_hw`` rows x columns, ``_wh`` columns x rows; boxes are ``xywh``, 0-based. Masks are bool,
rows x columns.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations, product

import cv2
import numpy as np
from numpy.typing import NDArray

from steelsight.data.catalog import DARK_BELOW, FrameRecord
from steelsight.data.labels import FrameLabels
from steelsight.errors import DecodeError, LabelError
from steelsight.imaging import DecodePolicy, read_file
from steelsight.masks import decode_rle

SPECK_PX = 32
"""Smaller regions are specks. In three sets drawn by people, regions per doubling of the area fall
off a cliff below 32 pixels: 99 from 32 to 63, but 20, 11, 13, 8 and 7 below in Severstal (of 15,840
regions); 40, but none below in 900 NEU masks (of 2,143); 9, but 9 in all below in NEU_Seg (679)."""
WHOLE_FRAME_SHARE = 0.9
"""A mask that covers more of its frame is suspected to be inverted; 0.899 is the largest of 5,610
Severstal masks, 0.70 of 900 NEU masks."""
BOX_FILL = 0.99
"""A region that fills more of its bounding box, both sides ``BOX_SIDE_PX`` and more, is a box."""
BOX_SIDE_PX = 8
FAINT_DIFFERENCE = 0.24
"""Regions that differ less from the steel around them (see :func:`_difference`) look like nothing.
Half of all masks that are moved to another place of their frame stay below (291 Severstal, 509 NEU
regions), but only 1.7 % of 293 Severstal regions and none of 537 NEU regions where people put them;
AUROC of moved against real 0.956 and 0.987."""
REGIONS_MEASURED = 50
"""Per mask, the largest regions whose pixels are compared with their surroundings."""

_RING_PX = 15
_TEXTURE_PX = 9

Mask = NDArray[np.bool_]
Grey = NDArray[np.uint8]
Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class OddRegion:
    """A connected region of a mask that is worth a look."""

    class_id: str
    area_px: int
    bbox_xywh: Box
    rank: float
    """The lower, the earlier it is listed."""
    text: str = ""


@dataclass(slots=True)
class FrameFacts:
    """What was measured on one frame; everything but the pixels."""

    image: str
    unsized: bool = False
    changed: bool = False
    other_size: str = ""
    outside: str = ""
    regions: int = 0
    compared: int = 0
    labelled_px: int = 0
    overlap_px: int = 0
    overlap_bbox: Box | None = None
    overlapping_types: list[tuple[str, str]] = field(default_factory=list)
    whole_frame: list[tuple[str, float]] = field(default_factory=list)
    specks: list[OddRegion] = field(default_factory=list)
    boxes: list[OddRegion] = field(default_factory=list)
    on_margin: list[OddRegion] = field(default_factory=list)
    faint: list[OddRegion] = field(default_factory=list)
    shadow: tuple[float, Box] | None = None


def measure_frame(record: FrameRecord, speck_px: int, policy: DecodePolicy) -> FrameFacts:
    """Decodes a frame once more and compares its masks with its pixels.

    Of a clean frame the deepest shadow is measured; of one without label nothing.

    Args:
        record: the frame as scanned.
        speck_px: regions of fewer pixels are specks.
        policy: how images are decoded; its ``max_pixels`` bounds masks of missing images, too.
    """
    facts = FrameFacts(record.image)
    labels = record.labels
    if labels is None:
        return facts
    grey_hw = None
    if record.path is not None and record.size_wh is not None:
        try:
            grey_hw = read_file(record.path, policy=policy).grey_hw
        except DecodeError:
            facts.changed = True
        if grey_hw is not None and grey_hw.shape[::-1] != record.size_wh:
            facts.changed, grey_hw = True, None
    if labels.clean:
        facts.shadow = None if grey_hw is None else _deepest_shadow(grey_hw)
        return facts
    masks = _fitting_masks(record, labels, facts, policy.max_pixels)
    if masks:
        measure_masks(masks, grey_hw, facts, speck_px)
    return facts


def _fitting_masks(
    record: FrameRecord, labels: FrameLabels, facts: FrameFacts, max_pixels: int
) -> dict[str, Mask]:
    """The masks, unless they cannot belong to the image; then the facts say why."""
    size_wh = record.size_wh or labels.size_wh
    # A label file may claim any size for an image that is not there.
    if size_wh is None or size_wh[0] * size_wh[1] > max_pixels:
        facts.unsized = True
        return {}
    if labels.size_wh is not None and labels.size_wh != size_wh:
        swapped = ", width and height swapped" if labels.size_wh == size_wh[::-1] else ""
        facts.other_size = (
            f"masks of {labels.size_wh[0]} x {labels.size_wh[1]}, image of {size_wh[0]} x"
            f" {size_wh[1]}{swapped}"
        )
        return {}
    try:
        return {
            class_id: decode_rle(rle, size_wh, where=f"type {class_id}")
            for class_id, rle in labels.rle_by_class.items()
        }
    except LabelError as error:
        facts.outside = str(error)
        return {}


def measure_masks(
    masks: Mapping[str, Mask], grey_hw: Grey | None, facts: FrameFacts, speck_px: int
) -> None:
    """Adds to the facts what the masks of one frame tell, together and region by region.

    Args:
        masks: by type, at least one, all of the frame's size.
        grey_hw: the pixels; without them only shapes are measured.
        facts: of the frame.
        speck_px: regions of fewer pixels are specks.
    """
    claims = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for mask in masks.values():
        claims += mask & (claims < 255)
    margin = None if grey_hw is None else _margin(grey_hw)
    for class_id, mask in masks.items():
        area_px = int(np.count_nonzero(mask))
        if area_px > WHOLE_FRAME_SHARE * mask.size:
            facts.whole_frame.append((class_id, area_px / mask.size))
        _, numbered, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8))
        boxes, areas = stats[1:, :4], stats[1:, cv2.CC_STAT_AREA]
        facts.regions += len(areas)
        tiny = areas < speck_px
        boxy = (
            (areas > BOX_FILL * boxes[:, 2] * boxes[:, 3])
            & (boxes[:, 2:].min(axis=1) >= BOX_SIDE_PX)
            & (areas <= WHOLE_FRAME_SHARE * mask.size)
        )
        found = [
            OddRegion(class_id, area, _box(box), -area)
            for area, box in zip(areas.tolist(), boxes.tolist(), strict=True)
        ]
        facts.specks += (replace(found[i], rank=areas[i]) for i in np.flatnonzero(tiny))
        facts.boxes += (found[i] for i in np.flatnonzero(boxy & ~tiny))
        if grey_hw is None:
            continue
        for index in np.argsort(-areas, kind="stable")[:REGIONS_MEASURED].tolist():
            if not tiny[index]:
                # Room for the ring around the region and for the blur that finds its texture.
                window = _window(found[index].bbox_xywh, _RING_PX + _TEXTURE_PX, mask.shape)
                region = numbered[window] == index + 1
                in_margin = margin is not None and bool(margin[window][region].mean() > 0.5)
                _compare(
                    found[index], grey_hw[window], region, claims[window] > 0, in_margin, facts
                )
    facts.labelled_px = int(np.count_nonzero(claims))
    shared = claims > 1
    facts.overlap_px = int(np.count_nonzero(shared))
    if facts.overlap_px:
        facts.overlap_bbox = _box(cv2.boundingRect(shared.view(np.uint8)))
        facts.overlapping_types = [
            (a, b) for a, b in combinations(masks, 2) if (masks[a] & masks[b]).any()
        ]


def _compare(
    odd: OddRegion,
    grey_hw: Grey,
    region: Mask,
    labelled: Mask,
    in_margin: bool,
    facts: FrameFacts,
) -> None:
    """One region with the pixels around it; all arrays are the window around the region."""
    mean = float(grey_hw[region].mean())
    if in_margin and mean < DARK_BELOW:
        facts.on_margin.append(replace(odd, text=f", mean grey {mean:.0f}"))
        return
    difference = _difference(grey_hw, region, labelled)
    if difference is not None:
        facts.compared += 1
        if difference < FAINT_DIFFERENCE:
            text = f", difference {difference:.2f}"
            facts.faint.append(replace(odd, text=text, rank=difference))


def _difference(grey_hw: Grey, region: Mask, labelled: Mask) -> float | None:
    """How much a region differs from the ring around it, in brightness and texture together.

    ``hypot(dm, 3 dt)``, with ``dm`` the difference of the mean grey in standard deviations of the
    ring, and ``dt`` the logarithm of the ratio of the fine structure's standard deviations. The
    ring is 15 pixels wide, keeps 3 pixels from every mask and leaves darkness out.

    Returns:
        From 0 up; ``None`` where fewer than 50 pixels of steel surround the region.
    """
    grown = cv2.dilate(region.view(np.uint8), np.ones((2 * _RING_PX + 1,) * 2, np.uint8)) > 0
    kept_off = cv2.dilate(labelled.view(np.uint8), np.ones((7, 7), np.uint8)) > 0
    ring = grown & ~kept_off & (grey_hw >= DARK_BELOW)
    if np.count_nonzero(ring) < 50:
        return None
    grey = grey_hw.astype(np.float32)
    fine = grey - cv2.GaussianBlur(grey, (0, 0), 3)
    # The small additions keep flat steel from making noise of half a grey level look important.
    brightness = abs(float(grey[region].mean() - grey[ring].mean())) / (float(grey[ring].std()) + 2)
    texture = math.log((float(fine[region].std()) + 0.5) / (float(fine[ring].std()) + 0.5))
    return math.hypot(brightness, 3 * texture)


def _margin(grey_hw: Grey) -> Mask | None:
    """Columns and rows that are dark nearly from end to end; ``None`` if none or all are.

    Dark defects on the strip do not fill a column of the frame.
    """
    dark = grey_hw < DARK_BELOW
    margin = np.logical_or(dark.mean(axis=0) > 0.95, (dark.mean(axis=1) > 0.95)[:, None])
    return margin if 0 < np.count_nonzero(margin) < 0.98 * margin.size else None


def _deepest_shadow(grey_hw: Grey) -> tuple[float, Box] | None:
    """How dark the darkest 16 x 16 block of steel is against its surroundings, and where it is.

    At half size, structures between a standard deviation of 2 and of 8 pixels are kept, of these
    the dark side, averaged in blocks of 8. Darkness that reaches the border of the frame lies
    beside the strip and is left out, with its rim. Torn, peeled and broken-out steel throws
    shadows; glints and grease, which clean frames have too, are bright.

    Returns:
        Grey levels and the block in pixels of the frame; ``None`` for a frame without steel.
    """
    half = cv2.resize(grey_hw, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA).astype(
        np.float32
    )
    band = cv2.GaussianBlur(half, (0, 0), 2) - cv2.GaussianBlur(half, (0, 0), 8)
    rows, columns = half.shape[0] // 8, half.shape[1] // 8
    if not rows or not columns:
        return None
    blocks = (slice(0, rows * 8), slice(0, columns * 8))
    shadow = np.maximum(-band[blocks], 0).reshape(rows, 8, columns, 8).mean(axis=(1, 3))
    outside = cv2.dilate(_dark_from_border(half), np.ones((15, 15), np.uint8))
    all_steel = outside[blocks].reshape(rows, 8, columns, 8).max(axis=(1, 3)) == 0
    if not all_steel.any():
        return None
    shadow[~all_steel] = -1
    row, column = divmod(int(shadow.argmax()), columns)
    return float(shadow[row, column]), (16 * column, 16 * row, 16, 16)


def _dark_from_border(half_hw: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Dark areas that reach the border of the frame, 0 and 1; a hole in the strip is none."""
    dark = (cv2.blur(half_hw, (15, 15)) <= 20).astype(np.uint8)
    _, numbered, stats, _ = cv2.connectedComponentsWithStats(dark)
    left, top, width, height = stats[:, :4].T
    reaches = (left == 0) | (top == 0)
    reaches |= (left + width == dark.shape[1]) | (top + height == dark.shape[0])
    reaches[0] = False  # what is not dark
    outside: NDArray[np.uint8] = reaches[numbered].astype(np.uint8)
    return outside


def _window(box: Box, reach: int, shape_hw: tuple[int, ...]) -> tuple[slice, slice]:
    x, y, w, h = box
    return (
        slice(max(y - reach, 0), min(y + h + reach, shape_hw[0])),
        slice(max(x - reach, 0), min(x + w + reach, shape_hw[1])),
    )


def _box(values: Iterable[int]) -> Box:
    x, y, w, h = (int(v) for v in values)
    return x, y, w, h


def best_iou(
    a: Mask, b: Mask, shift_xy: tuple[int, int], slack_px: int, *, enough: float = 1.0
) -> float:
    """IoU where both frames show the same steel, ``a`` moved by the shift give or take the slack.

    Args:
        a: mask of one frame.
        b: mask of the other.
        shift_xy: how far ``a`` must be moved right and down to lie on ``b``.
        slack_px: every shift so near is tried, the nearest first.
        enough: the search ends at an IoU so large.

    Returns:
        The largest; 1 where no mask reaches into the common part.
    """
    steps = sorted(range(-slack_px, slack_px + 1), key=abs)
    best = 0.0
    for dy, dx in product(steps, steps):
        x, y = shift_xy[0] + dx, shift_xy[1] + dy
        part_a = a[max(-y, 0) : b.shape[0] - y, max(-x, 0) : b.shape[1] - x]
        part_b = b[max(y, 0) : a.shape[0] + y, max(x, 0) : a.shape[1] + x]
        either = np.count_nonzero(part_a | part_b)
        best = max(best, np.count_nonzero(part_a & part_b) / either if either else 1.0)
        if best >= enough:
            break
    return best
