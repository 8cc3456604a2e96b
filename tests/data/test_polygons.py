import math
import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from steelsight.data import polygons
from steelsight.data.polygons import (
    MAX_OUTLINE_PX,
    MAX_POINTS,
    inset_outlines_of_rle,
    outlines,
    rasterise_rle,
)
from steelsight.errors import InputError, LabelError
from steelsight.masks import decode_rle, encode_rle

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]


def rasterise(polygons_xy: list[Points], size_wh: tuple[int, int], where: str = "") -> Mask:
    return decode_rle(rasterise_rle(polygons_xy, size_wh, where=where), size_wh)


def polygon(*points: tuple[float, float]) -> Points:
    return np.array(points, np.float64)


def centres(shape_hw: tuple[int, int]) -> tuple[Points, Points]:
    y, x = np.indices(shape_hw) + 0.5
    return x, y


def crossings(polygon_xy: Points, x: Points, y: Points) -> tuple[Points, Points]:
    """Sides right of each point, and how often the polygon winds around it."""
    count, winding = np.zeros_like(x), np.zeros_like(x)
    for (x1, y1), (x2, y2) in zip(polygon_xy, np.roll(polygon_xy, -1, axis=0), strict=True):
        if y1 != y2:
            crosses = ((y1 > y) != (y2 > y)) & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
            count += crosses
            winding += crosses if y2 > y1 else -crosses.astype(float)
    return count, winding


def distance_to_outline(polygon_xy: Points, x: Points, y: Points) -> Points:
    nearest = np.full_like(x, math.inf)
    for (x1, y1), (x2, y2) in zip(polygon_xy, np.roll(polygon_xy, -1, axis=0), strict=True):
        along = (x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)
        along = np.clip(along / max(math.dist((x1, y1), (x2, y2)) ** 2, 1e-12), 0, 1)
        away = np.hypot(x - x1 - along * (x2 - x1), y - y1 - along * (y2 - y1))
        nearest = np.minimum(nearest, away)
    return nearest


@st.composite
def masks(draw: st.DrawFn, largest: int = 12) -> Mask:
    """Noise of any density, also in coarse blocks: holes, islands in holes, diagonal touches."""
    shape = draw(st.tuples(st.integers(1, largest), st.integers(1, largest)))
    mask = draw(hnp.arrays(np.bool_, shape, fill=st.booleans()))
    across, down = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return np.repeat(np.repeat(mask, down, axis=0), across, axis=1)


def check_identity(mask: Mask) -> None:
    polygons_xy = outlines(mask)
    size_wh = mask.shape[1], mask.shape[0]
    back = rasterise(polygons_xy, size_wh)
    assert np.array_equal(back, mask)
    assert back.dtype == np.bool_
    assert back.flags.c_contiguous
    assert rasterise_rle(polygons_xy, size_wh) == encode_rle(mask)
    assert len(polygons_xy) == cv2.connectedComponents(mask.view(np.uint8), connectivity=8)[0] - 1
    for polygon_xy in polygons_xy:
        assert polygon_xy.dtype == np.float64
        assert polygon_xy.shape[1] == 2
        assert np.array_equal(polygon_xy, np.round(polygon_xy))
        following = np.roll(polygon_xy, -1, axis=0)
        assert ((following == polygon_xy).sum(axis=1) == 1).all()  # upright or level, not empty


@given(masks())
@settings(deadline=None)
def test_outlines_rasterise_to_the_mask(mask: Mask) -> None:
    check_identity(mask)


@pytest.mark.soak
@settings(max_examples=10_000, deadline=None)
@given(masks(25))
def test_outlines_rasterise_to_the_mask_10000_times(mask: Mask) -> None:
    check_identity(mask)


def test_outlines_of_random_masks_of_every_density() -> None:
    generator = np.random.default_rng(0)
    for density in np.linspace(0.02, 1, 50):
        height, width = generator.integers(1, 40, 2)
        check_identity(generator.random((height, width)) < density)


def test_a_checkerboard_survives() -> None:
    check_identity(np.indices((30, 41)).sum(axis=0) % 2 == 0)


# Inset -------------------------------------------------------------------------------------------


def inset(mask: Mask) -> list[Points]:
    return inset_outlines_of_rle(encode_rle(mask), mask.shape[::-1])


def without_repeats(polygon_xy: Points) -> Points:
    kept: Points = polygon_xy[(polygon_xy != np.roll(polygon_xy, -1, axis=0)).any(axis=1)]
    return kept


def as_ultralytics_draws(polygons_xy: list[Points], shape_hw: tuple[int, int]) -> Mask:
    """``polygon2mask`` of Ultralytics 8.4 for each row of a text file with six decimals."""
    size_wh = np.array(shape_hw[::-1], np.float32)
    mask = np.zeros(shape_hw, np.uint8)
    for polygon_xy in polygons_xy:
        shares = np.round(polygon_xy / size_wh, 6).astype(np.float32)
        one = np.zeros(shape_hw, np.uint8)
        cv2.fillPoly(one, [(shares * size_wh).astype(np.int32)], color=1)
        mask |= one
    return mask.view(np.bool_)


def iou(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / (a | b).sum())


def check_inset(mask: Mask) -> None:
    height, width = mask.shape
    found = inset(mask)
    assert np.array_equal(rasterise(found, (width, height)), mask)
    in_shares = [np.round(p / (width, height), 6) * (width, height) for p in found]
    assert np.array_equal(rasterise(in_shares, (width, height)), mask)
    edges = outlines(mask)
    assert len(found) == len(edges)
    for polygon_xy, edge_xy in zip(found, edges, strict=True):
        assert (polygon_xy >= 0).all()
        assert (polygon_xy <= (width, height)).all()
        assert (polygon_xy != np.rint(polygon_xy)).any(), "it fell back to the edges"
        assert np.array_equal(np.round(5 * polygon_xy) / 5, polygon_xy)
        assert np.array_equal(without_repeats(np.rint(polygon_xy)), edge_xy)


@given(masks())
@settings(deadline=None)
def test_inset_outlines_rasterise_to_the_mask(mask: Mask) -> None:
    check_inset(mask)


@pytest.mark.soak
@settings(max_examples=10_000, deadline=None)
@given(masks(25))
def test_inset_outlines_rasterise_to_the_mask_10000_times(mask: Mask) -> None:
    check_inset(mask)


DRAWN = {
    "a speck": ["...", ".#.", "..."],
    "a speck in each corner": ["#.#", "...", "#.#"],
    "the whole frame": ["###", "###"],
    "one pixel": ["#"],
    "a level line": ["....", "####", "...."],
    "an upright line": [".#.", ".#.", ".#."],
    "a line along the edge": ["####", "....", "...."],
    "a bent line": ["#....", "#....", "#####", "....#"],
    "diagonal lines": ["#...#", ".#.#.", "..#..", ".#.#.", "#...#"],
    "a hole": ["####", "#..#", "####"],
    "holes side by side": ["#######", "#.#.#.#", "#######"],
    "holes of several heights": ["########", "#.#..#.#", "###..###", "#.#..#.#", "########"],
    "an island in a hole": ["#####", "#...#", "#.#.#", "#...#", "#####"],
}


@pytest.mark.parametrize("name", DRAWN)
def test_inset_outlines_are_drawn_to_the_mask_by_opencv_too(name: str) -> None:
    mask = np.array([[cell == "#" for cell in row] for row in DRAWN[name]])
    check_inset(mask)
    assert np.array_equal(as_ultralytics_draws(inset(mask), mask.shape), mask)


def test_random_blobs_are_drawn_by_opencv_as_they_are() -> None:
    generator = np.random.default_rng(0)
    found, at_the_edges = [], []
    for _ in range(100):
        height, width = generator.integers(60, 200, 2)
        noise = cv2.GaussianBlur(generator.random((height, width)), (0, 0), generator.uniform(2, 8))
        mask = noise > np.quantile(noise, generator.uniform(0.3, 0.98))
        check_inset(mask)
        found.append(iou(as_ultralytics_draws(inset(mask), mask.shape), mask))
        at_the_edges.append(iou(as_ultralytics_draws(outlines(mask), mask.shape), mask))
    assert min(found) > 0.99
    assert np.mean(at_the_edges) < 0.97  # what it is for


@given(masks(), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_points_anywhere_near_the_corners_rasterise_to_the_mask(mask: Mask, seed: int) -> None:
    """Why an inset needs no proof: it is one of many ways to move corners by 2 fifths at most."""
    generator = np.random.default_rng(seed)
    moved = [p + generator.integers(-2, 3, p.shape) / 5 for p in outlines(mask)]
    assert np.array_equal(rasterise(moved, mask.shape[::-1]), mask)


def test_points_half_a_pixel_from_the_corners_do_not() -> None:
    """The test above can fail."""
    mask = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], np.bool_)
    for fifths in (-3, 3):
        moved = [p + fifths / 5 for p in outlines(mask)]
        assert not np.array_equal(rasterise(moved, mask.shape[::-1]), mask)


def test_an_outline_too_long_to_be_read_is_given_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(polygons, "MAX_OUTLINE_PX", 3)
    (found,) = inset(np.ones((2, 2), np.bool_))
    assert found.tolist() == [[0, 0], [0, 2], [2, 2], [2, 0]]


@given(masks(8))
@settings(deadline=None)
def test_even_odd_and_nonzero_agree_on_outlines(mask: Mask) -> None:
    found = [crossings(p, *centres(mask.shape)) for p in outlines(mask)]
    even_odd = sum((count % 2 for count, _ in found), np.zeros(mask.shape))
    nonzero = sum((winding != 0 for _, winding in found), np.zeros(mask.shape))
    assert np.array_equal(even_odd, mask)
    assert np.array_equal(nonzero, mask)


HOLED = [(0, 0), (0, 1), (1, 1), (2, 1), (2, 2), (1, 2), (1, 1), (0, 1), (0, 3), (3, 3), (3, 0)]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["#"], [[(0, 0), (0, 1), (1, 1), (1, 0)]]),
        (["....", ".##.", "...."], [[(1, 1), (1, 2), (3, 2), (3, 1)]]),
        # A hole: the slit leads along its upper side to the left.
        (["###", "#.#", "###"], [HOLED]),
        (["#..", ".#.", "..."], [[(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 1), (1, 1), (1, 0)]]),
        (["...", "..."], []),
    ],
)
def test_outlines_run_along_the_edges_of_pixels(
    rows: list[str], expected: list[list[tuple[int, int]]]
) -> None:
    mask = np.array([[cell == "#" for cell in row] for row in rows])
    assert [[(x, y) for x, y in p.tolist()] for p in outlines(mask)] == expected


@st.composite
def stars(draw: st.DrawFn) -> Points:
    """Simple polygons: one corner in each direction from a centre; also partly outside."""
    corners = draw(st.integers(3, 9))
    radius = draw(st.lists(st.floats(1, 14), min_size=corners, max_size=corners))
    angle = np.arange(corners) * 2 * np.pi / corners + draw(st.floats(0, 1))
    centre = draw(st.tuples(st.floats(10, 15), st.floats(10, 15)))
    x, y = np.cos(angle) * radius + centre[0], np.sin(angle) * radius + centre[1]
    return np.stack((x.clip(0, 26), y.clip(0, 25)), axis=1)


@given(stars())
@settings(deadline=None)
def test_a_pixel_is_set_if_its_centre_is_inside(polygon_xy: Points) -> None:
    mask = rasterise([polygon_xy], (26, 25))
    # Corners move by up to half of a fifth of a pixel each way, and so does a line's course.
    decided = distance_to_outline(polygon_xy, *centres(mask.shape)) > 0.3
    inside = crossings(polygon_xy, *centres(mask.shape))[0] % 2 == 1
    assert np.array_equal(mask[decided], inside[decided])
    assert decided.sum() > 300


def test_the_union_of_polygons_and_even_odd_within_one() -> None:
    square = polygon((0, 0), (4, 0), (4, 4), (0, 4))
    inner = polygon((1, 1), (3, 1), (3, 3), (1, 3))
    assert rasterise([square, inner], (4, 4)).all()
    one = np.concatenate((square, square[:1], inner, inner[:1]))
    expected = np.ones((4, 4), bool)
    expected[1:3, 1:3] = False
    assert np.array_equal(rasterise([one], (4, 4)), expected)


def test_many_polygons_are_united() -> None:
    corners = [(x, y) for x in range(0, 60, 3) for y in range(0, 60, 3)]
    squares = [polygon((x, y), (x + 2, y), (x + 2, y + 2), (x, y + 2)) for x, y in corners]
    mask = rasterise(squares, (60, 60))
    expected = np.zeros((60, 60), bool)
    for x, y in corners:
        expected[y : y + 2, x : x + 2] = True
    assert np.array_equal(mask, expected)


def test_no_polygon_is_no_pixel() -> None:
    assert not rasterise([], (3, 2)).any()
    assert rasterise([], (3, 2)).shape == (2, 3)
    assert rasterise_rle([polygon((0.1, 0.1), (0.2, 0.1), (0.2, 0.2))], (3, 2)) == ""


def test_points_up_to_a_pixel_outside_are_clipped() -> None:
    assert rasterise([polygon((-1, -0.5), (5, -1), (5, 4), (-1, 4))], (4, 3)).all()


TRIANGLE = ((0.0, 0.0), (4.0, 0.0), (0.0, 4.0))


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (TRIANGLE[:2], "polygon 2 has 2 points, expected at least 3"),
        ((), "polygon 2 has 0 points"),
        ((*TRIANGLE, (math.nan, 1)), "point 4 of polygon 2 is (nan, 1), expected x from 0 to 9"),
        ((*TRIANGLE, (1, math.inf)), "point 4 of polygon 2 is (1, inf)"),
        ((*TRIANGLE, (1, -math.inf)), "(1, -inf)"),
        ((*TRIANGLE, (1e300, 1)), "(1e+300, 1)"),
        ((*TRIANGLE, (10.01, 1)), "point 4 of polygon 2 is (10.01, 1), expected x from 0 to 9"),
        ((*TRIANGLE, (1, 8.5)), "y from 0 to 7"),
        ((*TRIANGLE, (-1.5, 1)), "(-1.5, 1)"),
        (((0, 0),) * (MAX_POINTS + 1), f"{MAX_POINTS + 4} points, expected at most"),
    ],
)
def test_a_broken_polygon_is_named(points: tuple[tuple[float, float], ...], said: str) -> None:
    broken = np.array(points, np.float64).reshape(-1, 2)
    with pytest.raises(LabelError) as caught:
        rasterise([polygon(*TRIANGLE), broken], (9, 7), where="a.json annotations[3]")
    message = str(caught.value)
    assert message.startswith("a.json annotations[3]: ")
    assert said in message
    assert "\n" not in message


def test_an_endless_outline_is_refused_before_memory_is_taken() -> None:
    zigzag = np.zeros((4_000, 2))
    zigzag[::2, 0] = 16_000
    begin = time.process_time()
    with pytest.raises(LabelError, match=f"pixels long, expected at most {MAX_OUTLINE_PX}"):
        rasterise([zigzag], (16_384, 16_384))
    assert time.process_time() - begin < 1


@pytest.mark.parametrize("size_wh", [(0, 5), (5, -1), (1 << 15, 1 << 14)])
def test_an_unusable_size_is_refused(size_wh: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="expected a width and height"):
        rasterise([polygon(*TRIANGLE)], size_wh)


def test_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected polygons of shape \(n, 2\)"):
        rasterise([np.zeros(6)], (5, 5))


def test_noise_of_a_whole_frame_takes_a_moment_only() -> None:
    mask = np.random.default_rng(0).random((256, 1600)) < 0.5
    begin = time.process_time()
    assert np.array_equal(rasterise(outlines(mask), (1600, 256)), mask)
    assert time.process_time() - begin < 15
