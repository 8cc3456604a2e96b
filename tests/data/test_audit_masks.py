"""What is measured on one frame, against naive counting pixel by pixel."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from steelsight.data.audit_masks import (
    BOX_FILL,
    WHOLE_FRAME_SHARE,
    FrameFacts,
    best_iou,
    measure_masks,
)


def naive_regions(where: np.ndarray) -> list[set[tuple[int, int]]]:
    """Flood fill with 8 neighbours, pixel by pixel."""
    left = set(zip(*np.nonzero(where), strict=True))
    found = []
    while left:
        queue, region = [left.pop()], set()
        while queue:
            y, x = queue.pop()
            region.add((y, x))
            for near in product((y - 1, y, y + 1), (x - 1, x, x + 1)):
                if near in left:
                    left.remove(near)
                    queue.append(near)
        found.append(region)
    return found


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 24))).filter(np.any),
    st.integers(1, 20),
)
def test_specks_boxes_and_overlaps_match_naive_counts(where, speck_px):
    grown = np.kron(where, np.ones((8, 8), np.bool_))  # so that regions can be boxes
    facts = FrameFacts("a")
    measure_masks({"1": grown, "2": grown[::-1].copy()}, None, facts, speck_px * 16)
    regions = naive_regions(where)
    assert facts.regions == 2 * len(regions)
    tiny = [r for r in regions if 64 * len(r) < speck_px * 16]
    assert len(facts.specks) == 2 * len(tiny)
    boxes = 0
    for region in (r for r in regions if 64 * len(r) >= speck_px * 16):
        ys, xs = zip(*region, strict=True)
        box = (max(ys) - min(ys) + 1) * (max(xs) - min(xs) + 1)
        filled = len(region) > BOX_FILL * box
        boxes += filled and len(region) <= WHOLE_FRAME_SHARE * where.size
    assert len(facts.boxes) == 2 * boxes
    assert facts.overlap_px == 64 * (where & where[::-1]).sum()
    assert facts.labelled_px == 64 * (where | where[::-1]).sum()


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.bool_, (6, 9)),
    hnp.arrays(np.bool_, (6, 9)),
    st.tuples(st.integers(-4, 4), st.integers(-3, 3)),
)
def test_iou_of_shifted_masks_matches_a_naive_count(a, b, shift_xy):
    both = either = 0
    for y, x in product(range(6), range(9)):
        from_y, from_x = y - shift_xy[1], x - shift_xy[0]
        if 0 <= from_y < 6 and 0 <= from_x < 9:
            both += bool(a[from_y, from_x] and b[y, x])
            either += bool(a[from_y, from_x] or b[y, x])
    assert best_iou(a, b, shift_xy, 0) == pytest.approx(both / either if either else 1)


def test_the_shift_is_searched_near_the_known_one_until_the_masks_agree_enough():
    a, b = np.zeros((2, 20, 30), np.bool_)
    a[5:9, 5:15] = True
    b[5:9, 9:19] = True
    assert best_iou(a, b, (4, 0), 0) == 1
    assert best_iou(a, b, (2, 1), 2) == 1
    assert best_iou(a, b, (3, 0), 0) == pytest.approx(9 / 11)
    assert best_iou(a, b, (3, 0), 2, enough=0.75) == pytest.approx(9 / 11)  # the search ends here
    assert best_iou(a, b, (3, 0), 2) == 1
