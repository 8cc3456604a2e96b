import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelsight.data.catalog import DARK_BELOW
from steelsight.data.frames import FramePixels, FrameSource, LabelledFrame
from steelsight.errors import InputError
from steelsight.masks import encode_rle
from steelsight.training import crops as crops_module
from steelsight.training.config import Augment, Sampling, TrainConfig
from steelsight.training.crops import BatchLoader, cut_crop, load_batch
from steelsight.training.sampling import CropKind, CropPlan, Sampler

STILL = {
    "zoom": 1,
    "rotate_deg": 0,
    "flip_left_right": 0,
    "flip_up_down": 0,
    "black_out": 0,
    "edge": 0,
}
"""Crops are exact copies."""
PLAIN = Augment(**STILL)


def still(**parts: float) -> Augment:
    return Augment(**(STILL | parts))


def make_source(*grey_and_masks, class_ids: str = "ab") -> FrameSource:
    """Frames from memory: grey levels, and masks by type."""
    frames = [
        LabelledFrame(
            f"{n}",
            Path(f"{n}"),
            grey_hw.shape[::-1],
            {c: encode_rle(mask_hw) for c, mask_hw in masks.items()},
            tuple(masks),
        )
        for n, (grey_hw, masks) in enumerate(grey_and_masks)
    ]
    source = FrameSource(frames, class_ids, 0)
    for n, (grey_hw, masks) in enumerate(grey_and_masks):
        types_hw = np.zeros(grey_hw.shape, np.uint8)
        for bit, class_id in enumerate(class_ids):
            types_hw |= masks.get(class_id, np.zeros(grey_hw.shape, bool)).astype(np.uint8) << bit
        source._cache[n] = grey_hw.astype(np.uint8), types_hw
    return source


def noise_hw(height: int, width: int, seed: int = 0, low: int = 60, high: int = 180):
    return np.random.default_rng(seed).integers(low, high, (height, width), dtype=np.uint8)


def box_mask(hw, x, y, width, height):
    mask_hw = np.zeros(hw, bool)
    mask_hw[y : y + height, x : x + width] = True
    return mask_hw


def crop_of(
    source, kind, seed, augment=PLAIN, crop_hw=(32, 32), type_index=None, frame=0, donor=None
):
    return cut_crop(
        CropPlan(kind, frame, type_index, donor, seed), source, Sampling(crop_hw=crop_hw), augment
    )


def where_in(image_hw, part_hw):
    """Corners (x, y) at which the part lies in the image."""
    rows, columns = part_hw.shape
    windows = np.lib.stride_tricks.sliding_window_view(image_hw, (rows, columns))
    return [(x, y) for y, x in np.argwhere((windows == part_hw).all((2, 3))).tolist()]


# Geometry


@pytest.mark.parametrize("flips", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_without_zoom_and_angle_a_crop_is_an_exact_copy(flips):
    grey_hw = noise_hw(48, 96)
    types = {"a": noise_hw(48, 96, 1) > 120, "b": noise_hw(48, 96, 2) > 150}
    source = make_source((grey_hw, types))
    augment = still(flip_left_right=flips[0], flip_up_down=flips[1])
    corners = set()
    for seed in range(150):
        crop = crop_of(source, CropKind.ANY, seed, augment)
        steps = tuple(-1 if flip else 1 for flip in flips)
        turned_hw = crop.grey_hw[:: steps[1], :: steps[0]]
        ((x, y),) = where_in(grey_hw, turned_hw)
        corners.add((x, y))
        for bit, class_id in enumerate("ab"):
            np.testing.assert_array_equal(
                crop.types_hw[:: steps[1], :: steps[0]] >> bit & 1,
                types[class_id][y : y + 32, x : x + 32],
            )
    x, y = map(set, zip(*corners, strict=True))
    assert len(x) > 50
    assert len(y) > 12
    assert min(x) < 5
    assert max(x) > 59


def test_flips_come_with_their_chances():
    grey_hw = noise_hw(32, 32)
    source = make_source((grey_hw, {}))
    augment = still(flip_left_right=0.25, flip_up_down=0.5)
    crops = [crop_of(source, CropKind.ANY, seed, augment).grey_hw for seed in range(400)]
    turned = [(x, y) for x in (1, -1) for y in (1, -1)]
    counts = [sum(np.array_equal(c, grey_hw[::y, ::x]) for c in crops) for x, y in turned]
    assert sum(counts) == 400
    for count, chance in zip(counts, (0.375, 0.375, 0.125, 0.125), strict=True):
        assert abs(count - 400 * chance) < 4 * (400 * chance * (1 - chance)) ** 0.5


@pytest.mark.parametrize("hw", [(20, 50), (50, 20), (9, 17), (64, 40)])
def test_smaller_frames_are_continued_by_reflection(hw):
    grey_hw, mask_hw = noise_hw(*hw), noise_hw(*hw, 1) > 120
    source = make_source((grey_hw, {"a": mask_hw}))
    padded_hw = np.pad(grey_hw, 32, mode="reflect")
    padded_mask_hw = np.pad(mask_hw, 32, mode="reflect")
    for seed in range(10):
        crop = crop_of(source, CropKind.ANY, seed)
        corners = where_in(padded_hw, crop.grey_hw)
        assert corners
        for x, y in corners:
            np.testing.assert_array_equal(crop.types_hw, padded_mask_hw[y : y + 32, x : x + 32])
        # The crop lies in the frame, or the frame in the crop; small ones repeat themselves.
        assert any(
            all(
                min(32, side) <= corner <= max(32, side)
                for corner, side in zip(place, hw[::-1], strict=True)
            )
            for place in corners
        )


class Ramps:
    """Two frames whose grey levels are the column and the row: crops tell where they come from."""

    hw = (160, 240)
    crop_hw = (96, 128)

    def __init__(self):
        y, x = np.indices(self.hw)
        self.mask_hw = (x // 7 + y // 5) % 3 == 0
        self.source = make_source((x, {"a": self.mask_hw}), (y, {"a": self.mask_hw}))

    def crops(self, seed, augment, kind=CropKind.ANY, type_index=None):
        return [
            crop_of(self.source, kind, seed, augment, self.crop_hw, type_index, frame)
            for frame in (0, 1)
        ]

    def affine(self, along_x, along_y):
        """The map from crop to frame (2, 3), fitted to where nothing is reflected."""
        y, x = np.indices(self.crop_hw)
        design = np.column_stack([x.ravel(), y.ravel(), np.ones(x.size)])
        rows = []
        for crop in (along_x, along_y):
            level = crop.grey_hw.ravel().astype(float)
            row = np.linalg.lstsq(design, level, rcond=None)[0]
            for limit in (20, 10, 5, 2, 1, 1):
                inner = np.abs(design @ row - level) < limit
                row = np.linalg.lstsq(design[inner], level[inner], rcond=None)[0]
            assert inner.mean() > 0.5
            rows.append(row)
        return np.array(rows)


@pytest.fixture(scope="module")
def ramps():
    return Ramps()


def test_zoom_and_angle_are_what_the_settings_allow(ramps):
    augment = still(zoom=1.25, rotate_deg=5, flip_left_right=0.5, flip_up_down=0.5)
    zooms, angles, flips = [], [], set()
    for seed in range(60):
        affine = ramps.affine(*ramps.crops(seed, augment))
        turn = affine[:, :2]
        np.testing.assert_allclose(turn.T @ turn, np.eye(2) * (turn**2).sum() / 2, atol=5e-3)
        flips.add(tuple(np.sign(np.diag(turn)).astype(int)))
        turn = turn * np.sign(np.diag(turn))
        zooms.append(1 / np.hypot(*turn[:, 0]))
        angles.append(np.degrees(np.arctan2(turn[1, 0], turn[0, 0])))
    assert 1 / 1.255 < min(zooms) < 0.85
    assert 1.18 < max(zooms) < 1.255
    assert abs(np.mean(np.log(zooms))) < 0.06
    assert -5.05 < min(angles) < -3.5
    assert 3.5 < max(angles) < 5.05
    assert len(flips) == 4


def reflected(index, side):
    index = np.abs(index) % (2 * side - 2)
    return np.minimum(index, 2 * side - 2 - index)


def test_types_stay_on_their_pixels_under_zoom_and_angle(ramps):
    augment = still(zoom=1.4, rotate_deg=20, flip_left_right=0.5, flip_up_down=0.5)
    for seed in range(30):
        along_x, along_y = ramps.crops(seed, augment)
        np.testing.assert_array_equal(along_x.types_hw, along_y.types_hw)
        affine = ramps.affine(along_x, along_y)
        y, x = np.indices(ramps.crop_hw)
        exact_x, exact_y = np.tensordot(affine[:, :2], [x, y], 1) + affine[:, 2, None, None]
        column, row = (np.rint(v).astype(int) for v in (exact_x, exact_y))
        column, row = reflected(column, 240), reflected(row, 160)
        # Not where rounding could go either way.
        clear = (np.abs(exact_x % 1 - 0.5) > 0.08) & (np.abs(exact_y % 1 - 0.5) > 0.08)
        assert clear.mean() > 0.6
        expected = ramps.mask_hw[row, column]
        np.testing.assert_array_equal(along_x.types_hw.astype(bool)[clear], expected[clear])
        # Grey levels are the exact, not the nearest place; reflected beyond the frame.
        inner = (exact_x > 1) & (exact_x < 238)
        assert np.abs(along_x.grey_hw.astype(float) - exact_x)[inner].max() < 0.6


def test_crops_of_clean_places_lie_inside_the_frame(ramps):
    augment = still(zoom=1.2, rotate_deg=2)
    for seed in range(40):
        affine = ramps.affine(*ramps.crops(seed, augment))
        corners = affine @ [[0, 127, 0, 127], [0, 0, 95, 95], [1, 1, 1, 1]]
        assert (corners > -0.2).all()
        assert (corners[0] < 239.2).all()
        assert (corners[1] < 159.2).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    x=st.integers(0, 76),
    y=st.integers(0, 37),
    turned=st.booleans(),
    corner=st.sampled_from([None, (0, 0), (77, 0), (0, 37), (77, 37)]),
)
def test_a_defect_crop_shows_its_defect(seed, x, y, turned, corner):
    x, y = corner or (x, y)
    source = make_source((noise_hw(40, 80), {"a": box_mask((40, 80), x, y, 3, 3)}))
    augment = still(zoom=1.25, rotate_deg=45, flip_up_down=0.5) if turned else PLAIN
    crop = crop_of(source, CropKind.DEFECT, seed, augment, type_index=0)
    assert (crop.types_hw == 1).any()


def test_a_defect_lies_anywhere_in_its_crop():
    source = make_source((noise_hw(200, 200), {"a": box_mask((200, 200), 100, 90, 1, 1)}))
    places = [
        np.argwhere(crop_of(source, CropKind.DEFECT, seed, type_index=0).types_hw)[0]
        for seed in range(600)
    ]
    for along in np.transpose(places):
        counts = np.bincount(along // 4, minlength=8)
        assert ((counts - 75) ** 2 / 75).sum() < 7 + 5 * 14**0.5


def test_every_pixel_of_the_mask_and_type_is_drawn_alike():
    mask_hw = box_mask((40, 60), 3, 5, 2, 9) | box_mask((40, 60), 30, 0, 1, 40)
    mask_hw[39, 59] = mask_hw[0, 0] = mask_hw[20, 31] = True
    other_hw = box_mask((40, 60), 50, 0, 5, 5)
    frame = make_source((noise_hw(40, 60), {"a": mask_hw, "b": other_hw})).frames[0]
    rng = np.random.default_rng(0)
    counts_hw = np.zeros((40, 60), int)
    for _ in range(6100):
        x, y = crops_module._mask_pixel(rng, frame, "a")
        counts_hw[y, x] += 1
    assert (counts_hw[~mask_hw] == 0).all()
    assert mask_hw.sum() == 61
    assert ((counts_hw[mask_hw] - 100) ** 2 / 100).sum() < 60 + 4 * 120**0.5


# Copy-paste


def chebyshev_hw(mask_hw):
    """Distance of each pixel to the mask in king's moves, by looking at every pair."""
    y, x = np.indices(mask_hw.shape)
    rows, columns = np.nonzero(mask_hw)
    steps = [
        np.maximum(abs(y - r), abs(x - c)) for r, c in zip(rows, columns, strict=True)
    ]  # fmt: skip
    return np.min(steps, axis=0)


def blob_source(target_hw=None, shape=(64, 96)):
    """A donor (1) with an L of type a, a part of it also b, a second region of a, and a target."""
    region_hw = box_mask(shape, 30, 20, 4, 14) | box_mask(shape, 34, 30, 8, 4)
    # Touches the corner only: one region with 8 neighbours.
    region_hw |= box_mask(shape, 42, 34, 3, 3)
    second_hw = box_mask(shape, 48, 28, 4, 4)
    both_hw = box_mask(shape, 31, 22, 2, 3)
    grey_hw = noise_hw(*shape, 5, 90, 130)
    grey_hw[region_hw] = 200
    grey_hw[second_hw] = 20
    target_hw = noise_hw(*shape, 6, 60, 80) if target_hw is None else target_hw
    donor = grey_hw, {"a": region_hw | second_hw, "b": both_hw}
    return make_source((target_hw, {}), donor), grey_hw, region_hw, second_hw, both_hw


def pasted(source, seed, crop_hw=(64, 96), augment=PLAIN, type_index=0):
    return crop_of(source, CropKind.PASTE, seed, augment, crop_hw, type_index, 0, 1)


def test_a_pasted_defect_is_one_region_with_all_its_types_and_matched_light():
    source, donor_hw, region_hw, second_hw, both_hw = blob_source()
    target_hw = source.pixels(0).grey_hw
    seen = set()
    rows, columns = np.nonzero(region_hw)
    inside = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    shape_hw = region_hw[inside] + 2 * (both_hw & region_hw)[inside].astype(np.uint8)
    near = chebyshev_hw(region_hw)
    ring_hw = (near > 4) & (near <= 16) & ~second_hw
    for seed in range(40):
        # The crop is as large as the frame: what is cut is the whole pasted frame.
        source_crop = pasted(source, seed, (64, 96))
        types_hw = source_crop.types_hw
        places = [
            (x - inside[1].start, y - inside[0].start)
            for x, y in where_in(types_hw, shape_hw)
            if types_hw.any()
        ]
        if not places:
            continue  # the second region was drawn
        ((dx, dy),) = places
        seen.add((dx, dy))
        assert np.count_nonzero(types_hw) == region_hw.sum()
        assert abs(dy) <= 16
        moved_ring_hw = np.zeros_like(ring_hw)
        moved = [(y + dy, x + dx) for y, x in np.argwhere(ring_hw)]
        moved = [(y, x) for y, x in moved if 0 <= y < 64 and 0 <= x < 96]
        moved_ring_hw[tuple(np.transpose(moved))] = True
        whole = len(moved) == ring_hw.sum()
        distance_hw = chebyshev_hw(types_hw != 0)
        unchanged_hw = distance_hw > 8
        np.testing.assert_array_equal(source_crop.grey_hw[unchanged_hw], target_hw[unchanged_hw])
        if whole:
            there, here = donor_hw[ring_hw].astype(float), target_hw[moved_ring_hw].astype(float)
            contrast = np.clip(here.std() / there.std(), 0.4, 2)
            level = round((200 - there.mean()) * contrast + here.mean())
            assert abs(source_crop.grey_hw[types_hw != 0].astype(int) - level).max() <= 1
            # Between the two, the feather only ever mixes them.
            feather_hw = (distance_hw > 0) & ~unchanged_hw
            assert (source_crop.grey_hw[feather_hw] != target_hw[feather_hw]).mean() > 0.3
    assert len({dx for dx, _ in seen}) > 10
    assert len({dy for _, dy in seen}) > 8


def test_the_other_region_near_by_is_not_carried_along():
    source, *_ = blob_source()
    for seed in range(30):
        crop = pasted(source, seed)
        # One region is far brighter, the other far darker than any steel around them.
        marked = crop.grey_hw[crop.types_hw != 0].astype(int)
        assert np.ptp(marked) <= 2
        far_off = (crop.grey_hw < 57) | (crop.grey_hw > 83)
        np.testing.assert_array_equal(far_off, crop.types_hw != 0)


def test_the_darkness_beside_the_donors_strip_is_not_carried_along():
    donor_hw = noise_hw(64, 96, 1, 90, 110)
    donor_hw[:, 44:] = 3
    donor = donor_hw, {"a": box_mask((64, 96), 30, 20, 12, 14)}
    source = make_source((noise_hw(64, 96, 2, 90, 110), {}), donor)
    for seed in range(10):
        crop = pasted(source, seed)
        assert crop.grey_hw[crop.types_hw != 0].mean() == pytest.approx(100, abs=3)
        assert crop.grey_hw.min() > 84


def test_nothing_is_pasted_beside_the_strip():
    target_hw = np.full((64, 96), 5, np.uint8)
    target_hw[:, 60:] = noise_hw(64, 36, 6, 60, 80)
    source, *_ = blob_source(target_hw)
    shown = 0
    for seed in range(60):
        crop = pasted(source, seed)
        dark = (target_hw < DARK_BELOW)[crop.types_hw != 0]
        shown += len(dark) > 0
        assert len(dark) == 0 or dark.mean() <= 0.2
    assert shown > 15
    all_dark = blob_source(np.full((64, 96), 5, np.uint8))[0]
    for seed in range(5):
        crop = pasted(all_dark, seed)
        assert not crop.types_hw.any()
        assert (crop.grey_hw == 5).all()


def test_a_defect_larger_than_a_crop_is_not_pasted():
    mask_hw = box_mask((64, 160), 20, 20, 100, 10)
    donor = noise_hw(64, 160, 1), {"a": mask_hw}
    source = make_source((noise_hw(64, 160), {}), donor)
    for seed in range(10):
        assert not pasted(source, seed, (64, 96)).types_hw.any()
        assert pasted(source, seed, (64, 128)).types_hw.any()


@pytest.mark.parametrize(
    ("y", "height", "rows"),
    [(0, 12, [0, 12]), (52, 12, [68, 80]), (20, 10, None), (0, 64, [])],
)
def test_a_defect_cut_by_the_border_stays_at_the_border(y, height, rows):
    donor = noise_hw(64, 96, 1), {"a": box_mask((64, 96), 40, y, 6, height)}
    source = make_source((noise_hw(80, 96), {}), donor)
    for seed in range(20):
        crop = pasted(source, seed, (64, 96))
        if rows == []:
            assert not crop.types_hw.any()
        elif rows:
            # The crop shows rows 0 to 63 or 16 to 79 at most.
            shown = np.flatnonzero(crop.types_hw.any(1))
            assert shown[0] == 0 if rows[0] == 0 else shown[-1] == 63
        else:
            assert np.count_nonzero(crop.types_hw.any(1)) > 0


def test_a_frame_that_gives_or_takes_a_defect_stays_as_it_was():
    source, *_ = blob_source()
    before = [tuple(a.copy() for a in source.pixels(n)) for n in (0, 1)]
    for seed in range(10):
        pasted(source, seed, augment=still(black_out=1, edge=1))
        crop_of(source, CropKind.DEFECT, seed, still(black_out=1, edge=1), type_index=0, frame=1)
    for n in (0, 1):
        for a, b in zip(source.pixels(n), before[n], strict=True):
            np.testing.assert_array_equal(a, b)


# Erasing


def boxes_of(mask_hw):
    """Boxes of connected regions, flooded pixel by pixel."""
    left = {tuple(p) for p in np.argwhere(mask_hw).tolist()}
    while left:
        region, border = set(), deque([left.pop()])
        while border:
            y, x = border.popleft()
            region.add((y, x))
            around = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= around
            border.extend(around)
        ys, xs = zip(*region, strict=True)
        yield slice(min(ys), max(ys) + 1), slice(min(xs), max(xs) + 1)


def test_black_out_paints_the_box_of_each_defect_and_clears_its_label():
    masks = {"a": noise_hw(64, 96, 3) > 172, "b": box_mask((64, 96), 40, 20, 9, 4)}
    source = make_source((noise_hw(64, 96), masks))
    for seed in range(20):
        crop = crop_of(source, CropKind.DEFECT, seed, type_index=1)
        black = crop_of(source, CropKind.DEFECT, seed, still(black_out=1), type_index=1)
        expected_hw = crop.grey_hw.copy()
        for box in boxes_of(crop.types_hw != 0):
            expected_hw[box] = 0
        np.testing.assert_array_equal(black.grey_hw, expected_hw)
        assert not black.types_hw.any()


def test_an_edge_darkens_one_side_and_clears_its_labels():
    light_hw = noise_hw(64, 128, 1, 100, 140)
    source = make_source((light_hw, {"a": np.ones((64, 128), bool)}))
    left = right = 0
    widths = []
    for seed in range(150):
        crop = crop_of(source, CropKind.ANY, seed, still(edge=1), (64, 128))
        kept = crop.types_hw == 1
        if not kept.any() or kept.all():
            continue
        assert all((np.diff(row.astype(int)) != 0).sum() <= 1 for row in kept)
        on_left = (~kept[:, 0]).sum() > (~kept[:, -1]).sum()
        left, right = left + on_left, right + (not on_left)
        edge_h = np.where(kept[:, 0], kept.sum(1), (~kept).sum(1))
        distance = np.arange(128) - edge_h[:, None]
        distance = np.where(kept[:, :1], distance, -distance)
        far_dark, far_light = distance > 32, distance < -32
        np.testing.assert_array_equal(crop.grey_hw[far_light], light_hw[far_light])
        dark = crop.grey_hw[far_dark]
        if len(dark):
            assert dark.mean() < 8
            assert dark.max() < DARK_BELOW
            assert dark.std() > 0.2
        # Within one degree of upright.
        assert np.ptp((~kept).sum(1)) <= 3
        widths.append((~kept).sum() / 64)
    assert min(left, right) > 40
    assert min(widths) < 20
    assert max(widths) > 108


def test_chances_of_erasing_and_parts_that_leave_the_others_alone():
    mask_hw = box_mask((48, 96), 40, 20, 5, 5)
    source = make_source((noise_hw(48, 96), {"a": mask_hw}))
    turn = {"zoom": 1.25, "rotate_deg": 3, "flip_left_right": 0.5}
    black = edge = 0
    for seed in range(400):
        plain, blacked, edged = (
            crop_of(source, CropKind.DEFECT, seed, still(**turn, **part), type_index=0)
            for part in ({}, {"black_out": 0.2}, {"edge": 0.2})
        )
        black += not np.array_equal(plain.grey_hw, blacked.grey_hw)
        edge += not np.array_equal(plain.grey_hw, edged.grey_hw)
        outside = chebyshev_hw(plain.types_hw != 0) > 1
        np.testing.assert_array_equal(plain.grey_hw[outside], blacked.grey_hw[outside])
    for count in (black, edge):
        assert abs(count - 80) < 4 * (400 * 0.2 * 0.8) ** 0.5


# Batches


def batch_source():
    frames = [(noise_hw(48, 96, n), {}) for n in range(4)]
    for n, class_id in enumerate("aabb"):
        mask_hw = box_mask((48, 96), 5 + 20 * n, 10, 8, 12)
        frames.append((noise_hw(48, 96, 10 + n), {class_id: mask_hw}))
    return make_source(*frames)


CONFIG = TrainConfig(steps=7, seed=3, sampling=Sampling(batch=8, crop_hw=(32, 64)))


def same(a, b):
    return a.seeds == b.seeds and a.plans == b.plans and all(map(np.array_equal, a[:2], b[:2]))


def test_batches_are_their_crops_with_and_without_threads():
    source = batch_source()
    plans = Sampler(source, CONFIG.sampling, CONFIG.seed).plan(2)
    batch = load_batch(plans, source, CONFIG)
    assert batch.frames_n1hw.shape == (8, 1, 32, 64)
    assert batch.types_nhw.shape == (8, 32, 64)
    assert batch.frames_n1hw.dtype == batch.types_nhw.dtype == np.uint8
    assert batch.seeds == tuple(plan.seed for plan in plans)
    for place, plan in enumerate(plans):
        crop = cut_crop(plan, source, CONFIG.sampling, CONFIG.augment)
        np.testing.assert_array_equal(batch.frames_n1hw[place, 0], crop.grey_hw)
        np.testing.assert_array_equal(batch.types_nhw[place], crop.types_hw)
    with ThreadPoolExecutor(4) as pool:
        assert same(load_batch(plans, source, CONFIG, pool), batch)


def test_the_loader_goes_through_all_steps_from_any_step_on():
    source = batch_source()
    sampler = Sampler(source, CONFIG.sampling, CONFIG.seed)
    expected = [(s, load_batch(sampler.plan(s), source, CONFIG)) for s in range(7)]
    for first_step, threads in ((0, 1), (0, 3), (4, 2), (7, 2)):
        with BatchLoader(sampler, source, CONFIG, first_step, threads=threads) as loader:
            loaded = list(loader)
        assert [step for step, _ in loaded] == list(range(first_step, 7))
        assert all(same(b, e) for (_, b), (_, e) in zip(loaded, expected[first_step:], strict=True))


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_global_batch(world):
    source = batch_source()
    sampler = Sampler(source, CONFIG.sampling, CONFIG.seed)
    whole = load_batch(sampler.plan(1), source, CONFIG)
    for rank in range(world):
        with BatchLoader(sampler, source, CONFIG, 1, rank, world, 2) as loader:
            step, share = next(loader)
        assert step == 1
        assert share.plans == whole.plans[rank::world]
        np.testing.assert_array_equal(share.frames_n1hw, whole.frames_n1hw[rank::world])
        np.testing.assert_array_equal(share.types_nhw, whole.types_nhw[rank::world])


def test_a_batch_that_cannot_be_shared_is_refused():
    source = batch_source()
    with pytest.raises(InputError, match="multiple of 3"):
        BatchLoader(Sampler(source, CONFIG.sampling, 0), source, CONFIG, 0, 0, 3)


def test_only_two_batches_are_cut_ahead(monkeypatch):
    source = batch_source()
    sampler = Sampler(source, CONFIG.sampling, CONFIG.seed)
    cut = []
    original = crops_module.cut_crop
    monkeypatch.setattr(
        crops_module, "cut_crop", lambda plan, *a: cut.append(plan) or original(plan, *a)
    )
    with BatchLoader(sampler, source, CONFIG, threads=3) as loader:
        for taken in range(1, 5):
            next(loader)
            for future in [f for *_, futures in loader._ahead for f in futures]:
                future.result()
            assert len(cut) == 8 * (taken + 2)


def test_an_error_in_a_thread_is_raised_here_and_the_threads_end():
    source = batch_source()
    broken = InputError("4: the file has changed since the scan")
    before = threading.active_count(), cv2.getNumThreads()

    class Broken:
        frames, class_ids = source.frames, source.class_ids

        def pixels(self, index) -> FramePixels:
            if index == 4:
                raise broken
            return source.pixels(index)

    sampler = Sampler(source, CONFIG.sampling, CONFIG.seed)
    with BatchLoader(sampler, Broken(), CONFIG, threads=2) as loader:
        assert cv2.getNumThreads() == 1
        with pytest.raises(InputError, match="changed since the scan"):
            list(loader)
    assert (threading.active_count(), cv2.getNumThreads()) == before


def test_real_crops_show_the_labels_where_they_are(shared_dir):
    folder = shared_dir / "data/severstal"
    rows = [line.split(",") for line in (folder / "train.csv").read_text().splitlines()[1:30]]
    frames = [
        LabelledFrame(i, folder / "images" / i, (1600, 256), {c: rle}, (c,)) for i, c, rle in rows
    ]
    source = FrameSource(frames, "1234", 64 << 20)
    for index, (frame, (_, class_id, _)) in enumerate(zip(frames, rows, strict=True)):
        plan = CropPlan(CropKind.DEFECT, index, int(class_id) - 1, None, 1000 + index)
        grey_hw, types_hw = source.pixels(index)
        crop = cut_crop(plan, source, Sampling(), PLAIN)
        assert crop.types_hw.any(), frame.image
        (x,) = (
            x for x in range(1600 - 511) if np.array_equal(grey_hw[:, x : x + 512], crop.grey_hw)
        )
        np.testing.assert_array_equal(crop.types_hw, types_hw[:, x : x + 512])
