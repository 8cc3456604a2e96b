"""From a plan to a crop: where it lies, what is pasted into it, what is erased.

Zoom, angle, flips and place are one affine map from crop to frame, so pixels are interpolated
once; where nothing is scaled or turned, the crop is an exact copy. Grey levels are interpolated
linearly, the bit image of the types takes the nearest pixel, and both are continued beyond the
frame by the same reflection, so that labels stay true.

Everything drawn for a crop follows from the seed in its plan. Each part has a stream of its own:
switching one off leaves the others as they were.

Coordinates: xy in pixels, a pixel's centre at its whole numbers.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from steelsight.data.catalog import DARK_BELOW
from steelsight.data.frames import FramePixels, FrameSource, LabelledFrame, TypesHW
from steelsight.errors import InputError
from steelsight.imaging import GreyHW
from steelsight.masks import rle_runs
from steelsight.training.config import Augment, Sampling, TrainConfig
from steelsight.training.sampling import CropPlan, Sampler

BATCHES_AHEAD = 2

_VIEW, _PASTE, _ERASE = 1, 2, 3
"""Streams of a crop's generators."""

_PASTE_ATTEMPTS = 6
_FEATHER_PX = 9
_RING_PX = 16
"""The ring around a defect reaches this far; it begins where the feather ends."""
_LEAST_RING_PX = 64
_MOST_DARK = 0.1
"""A defect is not pasted where more of it and its feather than this would lie beside the strip."""
_ROW_SHIFT_PX = 16
_CONTRAST_RANGE = (0.4, 2.0)

# Measured on the strip margins of 225 of the 748 real frames (5th to 95th percentile).
_MARGIN_LEVEL = (1.2, 6.9)
_MARGIN_NOISE = (0.4, 1.6)
_MARGIN_SLOPE_PX = (3.0, 60.0)
_MARGIN_SLANT_DEG = 1.0


class Crop(NamedTuple):
    """Grey levels and types of one crop; belongs to the caller."""

    grey_hw: GreyHW
    types_hw: TypesHW


class Batch(NamedTuple):
    """Crops of one step, or one process's share of them."""

    frames_n1hw: NDArray[np.uint8]
    types_nhw: TypesHW
    seeds: tuple[int, ...]
    plans: tuple[CropPlan, ...]


# One crop ----------------------------------------------------------------------------------------


def cut_crop(plan: CropPlan, source: FrameSource, sampling: Sampling, augment: Augment) -> Crop:
    """Cuts one crop; the same plan, data and settings always give the same pixels.

    Raises:
        InputError: a file is not what the scan found any more.
    """
    rng = _generator(plan, _VIEW)
    view = _draw_view(rng, sampling.crop_hw, augment)
    pixels = source.pixels(plan.frame)
    inside_xy: tuple[int, int] | None = None
    if plan.type_index is not None:
        if plan.donor is None:
            inside_xy = _mask_pixel(
                rng, source.frames[plan.frame], source.class_ids[plan.type_index]
            )
        else:
            pasted = _paste(
                _generator(plan, _PASTE),
                source,
                plan.donor,
                plan.type_index,
                pixels,
                sampling.crop_hw,
            )
            if pasted is not None:
                pixels, inside_xy = pasted
    crop = view.cut(pixels, view.place(rng, pixels.grey_hw.shape, inside_xy))
    _erase(_generator(plan, _ERASE), crop, augment)
    return crop


def _generator(plan: CropPlan, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[plan.seed, stream]))


def _mask_pixel(rng: np.random.Generator, frame: LabelledFrame, class_id: str) -> tuple[int, int]:
    """Column and row of a pixel of the type's mask, all with equal chances."""
    starts, ends = rle_runs(frame.rle_by_class[class_id], frame.size_wh)
    counts = np.cumsum(ends - starts)
    drawn = rng.integers(counts[-1])
    run = np.searchsorted(counts, drawn, side="right")
    x, y = divmod(int(ends[run] - counts[run] + drawn), frame.size_wh[1])
    return x, y


# Geometry ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _View:
    """How a crop looks at a frame, except for the place.

    Attributes:
        crop_hw: rows and columns of the crop.
        turn_22: from distances in the crop to distances in the frame, both (x, y).
        exact: nothing is scaled or turned, flips aside: crop pixels are frame pixels.
    """

    crop_hw: tuple[int, int]
    turn_22: NDArray[np.float64]
    exact: bool

    def place(
        self, rng: np.random.Generator, frame_hw: Sequence[int], inside_xy: tuple[int, int] | None
    ) -> NDArray[np.float64]:
        """Centre of the view in the frame.

        The view stays inside the frame; along an axis where it is larger than the frame, the frame
        stays inside the view.

        Args:
            rng: stream of the view.
            frame_hw: rows and columns of the frame.
            inside_xy: a pixel that has to be in the crop, which stands above the rule before: a
                turned view may have to leave the frame a little to reach its corner.
        """
        last_xy = np.array(self.crop_hw[::-1]) - 1
        half_xy: NDArray[np.float64] = np.abs(self.turn_22) @ (last_xy / 2)
        room_xy = np.sort([half_xy, np.array(frame_hw[1::-1]) - 1 - half_xy], axis=0)
        centre_xy: NDArray[np.float64]
        if inside_xy is None:
            centre_xy = rng.uniform(room_xy[0], room_xy[1])
        else:
            drawn_xy = rng.integers(last_xy, endpoint=True)
            centre_xy = inside_xy - self.turn_22 @ (drawn_xy - last_xy / 2)
            centre_xy = np.clip(centre_xy, room_xy[0], room_xy[1])
            at_xy = np.linalg.solve(self.turn_22, inside_xy - centre_xy) + last_xy / 2
            within_xy = np.clip(at_xy, 0, last_xy)
            if (at_xy != within_xy).any():
                centre_xy = inside_xy - self.turn_22 @ (within_xy - last_xy / 2)
        return np.rint(centre_xy - last_xy / 2) + last_xy / 2 if self.exact else centre_xy

    def cut(self, pixels: FramePixels, centre_xy: NDArray[np.float64]) -> Crop:
        """The crop around a place; its arrays are new."""
        grey_hw, types_hw = pixels
        rows, columns = self.crop_hw
        last_xy = np.array([columns - 1, rows - 1])
        if self.exact:
            x, y = np.rint(centre_xy - last_xy / 2).astype(int).tolist()
            steps = np.sign(np.diag(self.turn_22)).astype(int).tolist()
            flips = slice(None, None, steps[1]), slice(None, None, steps[0])
            return Crop(
                np.array(_window(grey_hw, x, y, columns, rows)[flips], order="C"),
                np.array(_window(types_hw, x, y, columns, rows)[flips], order="C"),
            )
        to_frame_23 = np.column_stack((self.turn_22, centre_xy - self.turn_22 @ (last_xy / 2)))

        def warp(image: NDArray[Any], interpolation: int) -> NDArray[Any]:
            return cv2.warpAffine(
                image,
                to_frame_23,
                (columns, rows),
                flags=interpolation | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REFLECT_101,
            )

        return Crop(warp(grey_hw, cv2.INTER_LINEAR), warp(types_hw, cv2.INTER_NEAREST))


def _draw_view(rng: np.random.Generator, crop_hw: tuple[int, int], augment: Augment) -> _View:
    log_zoom, turn, left_right, up_down = rng.random(4)
    zoom = augment.zoom ** (2 * log_zoom - 1)
    angle = math.radians(augment.rotate_deg) * (2 * turn - 1)
    flips_xy = np.where(
        [left_right < augment.flip_left_right, up_down < augment.flip_up_down], -1, 1
    )
    cos, sin = math.cos(angle), math.sin(angle)
    return _View(
        crop_hw,
        np.array([[cos, -sin], [sin, cos]]) / zoom * flips_xy,
        exact=augment.zoom == 1 and augment.rotate_deg == 0,
    )


def _window(image: NDArray[Any], x: int, y: int, width: int, height: int) -> NDArray[Any]:
    """Part of an image, continued by reflection where it reaches beyond it."""
    rows, columns = image.shape
    top, left = max(-y, 0), max(-x, 0)
    bottom, right = max(y + height - rows, 0), max(x + width - columns, 0)
    part = image[y + top : y + height - bottom, x + left : x + width - right]
    if not (top or left or bottom or right):
        return part
    return cv2.copyMakeBorder(part, top, bottom, left, right, cv2.BORDER_REFLECT_101)


# Copy-paste --------------------------------------------------------------------------------------


class _Defect(NamedTuple):
    """A defect with ``_RING_PX`` of steel around it.

    Shapes: h, w rows and columns of the defect's box and that margin.
    """

    x: int
    y: int
    pixel_xy: tuple[int, int]
    """The drawn pixel, counted from the box's corner without the margin."""
    grey_hw: GreyHW
    types_hw: TypesHW
    mask_hw: NDArray[np.uint8]
    ring_hw: NDArray[np.uint8]
    alpha_hw: NDArray[np.float32]


def _paste(
    rng: np.random.Generator,
    source: FrameSource,
    donor_index: int,
    type_index: int,
    target: FramePixels,
    crop_hw: tuple[int, int],
) -> tuple[FramePixels, tuple[int, int]] | None:
    """The target frame with a defect of the donor, and a pixel of that defect.

    Copy-paste (Ghiasi et al., arXiv 2012.07177) for steel: brightness and contrast around the
    defect are matched, a defect keeps its row, roughly, because the light depends on it, and
    nothing is pasted beside the strip. ``None`` if no attempt found a defect and a place.
    """
    donor = source.pixels(donor_index)
    frame, class_id = source.frames[donor_index], source.class_ids[type_index]
    for _ in range(_PASTE_ATTEMPTS):
        pixel_xy = _mask_pixel(rng, frame, class_id)
        defect = _cut_defect(donor, type_index, pixel_xy, crop_hw)
        if defect is None:
            continue
        place_xy = _paste_place(rng, defect, donor, target)
        if place_xy is None:
            continue
        pasted = _blend(defect, target, place_xy)
        if pasted is not None:
            x, y = np.add(place_xy, defect.pixel_xy).tolist()
            return pasted, (x, y)
    return None


def _cut_defect(
    donor: FramePixels, type_index: int, pixel_xy: tuple[int, int], crop_hw: tuple[int, int]
) -> _Defect | None:
    """The connected region of the type around a pixel; ``None`` if it is larger than a crop."""
    of_type_hw = ((donor.types_hw >> type_index) & 1).astype(np.uint8)
    region_hw = np.zeros(np.add(of_type_hw.shape, 2), np.uint8)
    flags = 8 | cv2.FLOODFILL_MASK_ONLY | 1 << 8
    _, _, _, (x, y, width, height) = cv2.floodFill(
        of_type_hw, region_hw, pixel_xy, 0, loDiff=0, upDiff=0, flags=flags
    )
    if height > crop_hw[0] or width > crop_hw[1]:
        return None
    around = x - _RING_PX, y - _RING_PX, width + 2 * _RING_PX, height + 2 * _RING_PX
    grey_hw, types_hw = _window(donor.grey_hw, *around), _window(donor.types_hw, *around)
    # Only the region itself: beyond the frame there is no defect, whatever a reflection shows.
    mask_hw = np.pad(region_hw[y + 1 : y + 1 + height, x + 1 : x + 1 + width], _RING_PX)
    # Not to be carried along: other defects, and the darkness beside the strip.
    foreign_hw = ((types_hw != 0) | (grey_hw < DARK_BELOW)) & (mask_hw == 0)
    near_hw = cv2.dilate(mask_hw, np.ones((_FEATHER_PX, _FEATHER_PX), np.uint8))
    far_hw = cv2.dilate(mask_hw, np.ones((2 * _RING_PX + 1,) * 2, np.uint8))
    ring_hw = ((far_hw > near_hw) & ~foreign_hw).astype(np.uint8)
    if cv2.countNonZero(ring_hw) < _LEAST_RING_PX:
        return None
    # The feather lies around the defect: thin lines would otherwise fade away under it.
    near_hw[foreign_hw] = 0
    alpha_hw = near_hw.astype(np.float32)
    cv2.GaussianBlur(alpha_hw, (_FEATHER_PX, _FEATHER_PX), 0, dst=alpha_hw)
    alpha_hw[foreign_hw] = 0
    np.maximum(alpha_hw, mask_hw, out=alpha_hw)
    pixel_in_box = pixel_xy[0] - x, pixel_xy[1] - y
    return _Defect(x, y, pixel_in_box, grey_hw, types_hw, mask_hw, ring_hw, alpha_hw)


def _paste_place(
    rng: np.random.Generator, defect: _Defect, donor: FramePixels, target: FramePixels
) -> tuple[int, int] | None:
    """Column and row for the corner of the defect's box, or ``None`` if it does not fit.

    A defect that the donor's upper or lower border cuts off stays at that border.
    """
    height, width = np.subtract(defect.mask_hw.shape, 2 * _RING_PX).tolist()
    rows, columns = target.grey_hw.shape
    at_top, at_bottom = defect.y == 0, defect.y + height == len(donor.grey_hw)
    if width > columns or height > rows or (at_top and at_bottom and height < rows):
        return None
    x = int(rng.integers(columns - width, endpoint=True))
    if at_top:
        return x, 0
    if at_bottom:
        return x, rows - height
    y = defect.y + int(rng.integers(-_ROW_SHIFT_PX, _ROW_SHIFT_PX, endpoint=True))
    return x, min(max(y, 0), rows - height)


def _blend(defect: _Defect, target: FramePixels, place_xy: tuple[int, int]) -> FramePixels | None:
    """The target with the defect; ``None`` where it would lie beside the strip."""
    rows, columns = defect.mask_hw.shape
    x, y = place_xy[0] - _RING_PX, place_xy[1] - _RING_PX
    under_hw = _window(target.grey_hw, x, y, columns, rows)
    dark_hw = under_hw < DARK_BELOW
    covered_hw = defect.alpha_hw > 0
    if np.count_nonzero(dark_hw & covered_hw) > _MOST_DARK * np.count_nonzero(covered_hw):
        return None
    ring_hw = defect.ring_hw * ~dark_hw
    if cv2.countNonZero(ring_hw) < _LEAST_RING_PX:
        return None
    there, here = (
        [float(value[0, 0]) for value in cv2.meanStdDev(grey_hw, mask=mask_hw)]
        for grey_hw, mask_hw in ((defect.grey_hw, defect.ring_hw), (under_hw, ring_hw))
    )
    contrast = np.clip(here[1] / max(there[1], 1e-3), *_CONTRAST_RANGE)
    matched_hw = (defect.grey_hw.astype(np.float32) - there[0]) * contrast + here[0]
    blended_hw = under_hw + defect.alpha_hw * (np.clip(matched_hw, 0, 255) - under_hw)

    # Back into the frame without what lies beyond it.
    grey_hw, types_hw = target.grey_hw.copy(), target.types_hw.copy()
    top, left = max(-y, 0), max(-x, 0)
    here_yx = slice(y + top, y + rows), slice(x + left, x + columns)
    shape = grey_hw[here_yx].shape
    part_yx = slice(top, top + shape[0]), slice(left, left + shape[1])
    grey_hw[here_yx] = np.rint(blended_hw[part_yx]).astype(np.uint8)
    mask_hw = defect.mask_hw[part_yx] != 0
    types_hw[here_yx][mask_hw] = defect.types_hw[part_yx][mask_hw]
    return FramePixels(grey_hw, types_hw)


# Erasing -----------------------------------------------------------------------------------------


def _erase(rng: np.random.Generator, crop: Crop, augment: Augment) -> None:
    """Black-out and the end of the strip, in place."""
    black_out, edge = rng.random(2)
    if black_out < augment.black_out:
        _black_out(crop)
    if edge < augment.edge:
        _end_strip(rng, crop)


def _black_out(crop: Crop) -> None:
    """Paints the box of each connected defect black; nothing of it is left to find."""
    defective_hw = (crop.types_hw != 0).astype(np.uint8)
    _, _, boxes, _ = cv2.connectedComponentsWithStats(defective_hw, connectivity=8)
    for x, y, width, height in boxes[1:, :4].tolist():
        crop.grey_hw[y : y + height, x : x + width] = 0
    crop.types_hw[:] = 0


def _end_strip(rng: np.random.Generator, crop: Crop) -> None:
    """Darkens everything on one side of a nearly upright line, as beside a real strip.

    Grey levels fade to those of the margin on a slope; labels end where half the light is gone.
    """
    rows, columns = crop.grey_hw.shape
    level, noise = rng.uniform(*_MARGIN_LEVEL), rng.uniform(*_MARGIN_NOISE)
    slope_px = math.exp(rng.uniform(*np.log(_MARGIN_SLOPE_PX)))
    slant = math.tan(math.radians(rng.uniform(-_MARGIN_SLANT_DEG, _MARGIN_SLANT_DEG)))
    side = 1 if rng.random() < 0.5 else -1
    edge_h = rng.uniform(0, columns) + slant * (np.arange(rows, dtype=np.float32) - rows / 2)
    distance_hw = side * (np.arange(columns, dtype=np.float32) - edge_h[:, None])
    light_hw = np.clip(0.5 - distance_hw / np.float32(slope_px), 0, 1)
    light_hw *= light_hw * (3 - 2 * light_hw)
    margin_hw = rng.standard_normal((rows, columns), np.float32) * noise + level
    mixed_hw = margin_hw + light_hw * (crop.grey_hw - margin_hw)
    np.clip(np.rint(mixed_hw), 0, 255, out=crop.grey_hw, casting="unsafe")
    crop.types_hw[light_hw < 0.5] = 0


# Batches -----------------------------------------------------------------------------------------


def load_batch(
    plans: Sequence[CropPlan],
    source: FrameSource,
    config: TrainConfig,
    pool: ThreadPoolExecutor | None = None,
) -> Batch:
    """Cuts the crops of some plans.

    Args:
        plans: at least one.
        source: the frames.
        config: the settings.
        pool: threads to cut in; without, the caller's.

    Raises:
        InputError: a file is not what the scan found any more.
    """

    def cut(plan: CropPlan) -> Crop:
        return cut_crop(plan, source, config.sampling, config.augment)

    return _stack(plans, list(pool.map(cut, plans) if pool else map(cut, plans)))


def _stack(plans: Sequence[CropPlan], crops: Sequence[Crop]) -> Batch:
    return Batch(
        np.stack([crop.grey_hw for crop in crops])[:, None],
        np.stack([crop.types_hw for crop in crops]),
        tuple(plan.seed for plan in plans),
        tuple(plans),
    )


class BatchLoader:
    """Cuts the batches of the coming steps in threads while the network works on one.

    Iterating gives ``(step, batch)`` from ``first_step`` to the last of ``config.steps``, the batch
    being this process's share of the global one. At most ``BATCHES_AHEAD`` batches are cut ahead.
    What goes wrong in a thread is raised where the batch is asked for. A context manager: leaving
    it ends the threads.

    OpenCV starts no threads of its own meanwhile: waiting for each other, they cost more than they
    give.

    Args:
        sampler: draws the global batches.
        source: the frames.
        config: the settings.
        first_step: 0-based; where a resumed run goes on.
        rank: number of this process.
        world: number of all processes.
        threads: how many cut crops.

    Raises:
        InputError: the batch cannot be shared equally.
    """

    def __init__(
        self,
        sampler: Sampler,
        source: FrameSource,
        config: TrainConfig,
        first_step: int = 0,
        rank: int = 0,
        world: int = 1,
        threads: int = 1,
    ) -> None:
        if config.sampling.batch % world:
            raise InputError(
                f"expected a batch that {world} processes can share equally, got"
                f" {config.sampling.batch} crops; set sampling.batch to a multiple of {world}"
            )
        self._sampler, self._source, self._config = sampler, source, config
        self._next_step, self._share = first_step, slice(rank, None, world)
        self._ahead: deque[tuple[int, tuple[CropPlan, ...], list[Future[Crop]]]] = deque()
        self._opencv_threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        self._pool = ThreadPoolExecutor(max(threads, 1), "steelsight-crops")

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        return self

    def __next__(self) -> tuple[int, Batch]:
        self._submit(BATCHES_AHEAD)
        if not self._ahead:
            raise StopIteration
        step, plans, futures = self._ahead.popleft()
        batch = _stack(plans, [future.result() for future in futures])
        self._submit(BATCHES_AHEAD)
        return step, batch

    def _submit(self, batches: int) -> None:
        config = self._config
        while len(self._ahead) < batches and self._next_step < config.steps:
            plans = self._sampler.plan(self._next_step)[self._share]
            futures = [
                self._pool.submit(cut_crop, plan, self._source, config.sampling, config.augment)
                for plan in plans
            ]
            self._ahead.append((self._next_step, plans, futures))
            self._next_step += 1

    def close(self) -> None:
        """Ends the threads; batches that were cut ahead are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()
        self._next_step = self._config.steps
        cv2.setNumThreads(self._opencv_threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
