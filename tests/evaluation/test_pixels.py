from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from steelsight.evaluation.pixels import overlap, per_region_overlap, pixel_average_precision
from steelsight.evaluation.predictions import BINS, MASK_PROBABILITY_EDGES, mask_counts


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    inside, outside = rng.integers(9, size=BINS), rng.integers(90, size=BINS)
    outside[-5:] = 0
    scores = np.concatenate([np.arange(BINS), np.arange(BINS)])
    labels = np.repeat([1, 0], BINS)
    expected = average_precision_score(
        labels, scores, sample_weight=np.concatenate([inside, outside])
    )
    assert pixel_average_precision(inside, outside) == pytest.approx(expected, abs=1e-12)


def test_average_precision_of_pixels_is_that_of_their_bins():
    rng = np.random.default_rng(9)
    true = rng.random((1, 40, 50)) < 0.1
    plane = np.clip(rng.random((1, 40, 50)) + 0.3 * true, 0, 1).astype(np.float32)
    inside, outside = mask_counts(plane, true[0].astype(np.uint8))
    binned = np.searchsorted(MASK_PROBABILITY_EDGES, plane.ravel(), side="right")
    expected = average_precision_score(true.ravel(), binned)
    assert pixel_average_precision(inside[0], outside[0]) == pytest.approx(expected, abs=1e-12)
    assert pixel_average_precision(np.zeros(BINS, np.int64), outside[0]) is None


def naive_pro(regions: np.ndarray, outside: np.ndarray, up_to: float) -> float:
    """Threshold by threshold, then a fine sum under the straight lines between the points."""
    points = [(0.0, 0.0)]
    for threshold in range(BINS - 1, -1, -1):
        overlaps = [counts[threshold:].sum() / counts.sum() for counts in regions]
        points.append((outside[threshold:].sum() / outside.sum(), float(np.mean(overlaps))))
    total, steps = 0.0, 20_000
    for i in range(steps):
        x = (i + 0.5) / steps * up_to
        for (x0, y0), (x1, y1) in pairwise(points):
            if x0 <= x < x1:
                total += y0 + (y1 - y0) * (x - x0) / (x1 - x0)
                break
    return total / steps


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("up_to", [0.05, 0.3])
def test_region_overlap_is_that_of_the_naive_way(seed, up_to):
    rng = np.random.default_rng(seed)
    regions = rng.integers(5, size=(6, BINS)) * (rng.random((6, BINS)) < 0.3)
    regions[:, 30] += 1
    outside = rng.integers(200, size=BINS) * (np.arange(BINS) < 40)
    found = per_region_overlap(regions, outside, up_to)
    assert found == pytest.approx(naive_pro(regions, outside, up_to), abs=2e-3)


def test_region_overlap_at_its_ends():
    high, low = np.zeros((2, BINS), np.int64)
    high[-1] = low[0] = 10
    assert per_region_overlap(high[None], low) == 1
    assert per_region_overlap(low[None], high) == 0
    assert per_region_overlap(np.zeros((0, BINS), np.int64), low) is None
    assert per_region_overlap(high[None], np.zeros(BINS, np.int64)) is None


def test_a_small_region_counts_as_much_as_a_large_one():
    small, large, outside = np.zeros((3, BINS), np.int64)
    small[0], large[-1], outside[0] = 1, 10_000, 50_000
    # Half of the regions at once, the other half with all pixels: 1/2 + 1/2 x 0.3 / 2.
    assert per_region_overlap(np.stack([small, large]), outside) == pytest.approx(0.575)


def test_overlap_of_masks():
    dice, iou = overlap(np.array([0, 3, 0, 5]), np.array([0, 6, 4, 5]), np.array([0, 4, 0, 5]))
    assert dice.tolist() == [1, 0.6, 0, 1]
    assert iou.tolist() == [1, pytest.approx(3 / 7), 0, 1]
