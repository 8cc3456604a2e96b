import json
import math
import time
import tracemalloc
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pycocotools import mask as reference
from sklearn.metrics import f1_score

from steelsight.errors import InputError, LabelError
from steelsight.masks import (
    MAX_MASK_PX,
    Region,
    coco_from_kaggle,
    decode_coco_rle,
    decode_rle,
    dice,
    encode_coco_rle,
    encode_rle,
    kaggle_from_coco,
    merge_rles,
    regions,
    rle_runs,
    union_rle,
)

Mask = NDArray[np.bool_]

SHAPES_HW = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.just(1), st.integers(1, 70)),
    st.tuples(st.integers(1, 70), st.just(1)),
)


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    shape_hw = draw(SHAPES_HW)
    fill = draw(st.sampled_from([None, False, True]))
    if fill is not None:
        return np.full(shape_hw, fill)
    return draw(hnp.arrays(np.bool_, shape_hw))


def naive_decode(rle: str, size_wh: tuple[int, int]) -> Mask:
    width, height = size_wh
    mask = np.zeros((height, width), bool)
    numbers = [int(word) for word in rle.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        for pixel in range(start - 1, start - 1 + length):
            mask[pixel % height, pixel // height] = True
    return mask


def naive_components(mask: Mask) -> list[Mask]:
    """Flood fill with 8 neighbours; in the order of the first pixel, column by column."""
    left = {(int(x), int(y)) for y, x in np.argwhere(mask)}
    components = []
    for seed in sorted(left):
        if seed not in left:
            continue
        component = np.zeros_like(mask)
        stack = [seed]
        left.remove(seed)
        while stack:
            x, y = stack.pop()
            component[y, x] = True
            near = {(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)} & left
            left -= near
            stack += near
        components.append(component)
    return components


def outline_points(mask: Mask) -> NDArray[np.float32]:
    """All four corners of every pixel's square."""
    y, x = np.nonzero(mask)
    corners = [np.stack((x + dx, y + dy), axis=1) for dx in (0, 1) for dy in (0, 1)]
    return np.concatenate(corners).astype(np.float32)


def draw(*rows: str) -> Mask:
    return np.array([[character == "#" for character in row] for row in rows])


def best_ms(function: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return 1000 * min(times)


# Kaggle ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rle", "rows"),
    [
        ("", ["...", "..."]),
        (" \t", ["...", "..."]),
        ("1 1", ["#..", "..."]),
        ("2 1", ["...", "#.."]),
        ("3 1", [".#.", "..."]),
        ("2 2", [".#.", "#.."]),
        ("1 6", ["###", "###"]),
        ("1 1 6 1", ["#..", "..#"]),
        ("6 1", ["...", "..#"]),
    ],
)
def test_kaggle_rle_counts_from_1_down_the_columns(rle: str, rows: list[str]) -> None:
    mask = decode_rle(rle, (3, 2))
    assert mask.dtype == np.bool_
    assert mask.flags.c_contiguous
    np.testing.assert_array_equal(mask, draw(*rows))
    assert encode_rle(mask) == rle.strip()


@given(masks())
def test_kaggle_round_trip(mask: Mask) -> None:
    height, width = mask.shape
    rle = encode_rle(mask)
    np.testing.assert_array_equal(decode_rle(rle, (width, height)), mask)
    np.testing.assert_array_equal(naive_decode(rle, (width, height)), mask)
    starts, ends = rle_runs(rle)
    assert (starts[1:] > ends[:-1]).all(), "canonical runs do not touch"


@given(masks(), st.sampled_from(["uint8", "fortran", "flipped", "window", "read-only"]))
def test_encoding_does_not_depend_on_the_memory_layout(mask: Mask, layout: str) -> None:
    expected = encode_rle(mask)
    match layout:
        case "uint8":
            other = mask.astype(np.uint8)
        case "fortran":
            other = np.asfortranarray(mask)
        case "flipped":
            other = mask[::-1, ::-1].copy()[::-1, ::-1]
        case "window":
            other = np.pad(mask, 3, constant_values=True)[3:-3, 3:-3]
        case _:
            other = mask.copy()
            other.setflags(write=False)
    assert encode_rle(other) == expected
    assert encode_coco_rle(other) == encode_coco_rle(mask)
    assert regions(other) == regions(mask)


def test_touching_runs_are_accepted_and_written_as_one() -> None:
    assert encode_rle(decode_rle("2 3 5 1\n6 2", (5, 5))) == "2 6"


def test_runs_are_half_open_and_from_0() -> None:
    starts, ends = rle_runs("1 2 7 1")
    assert starts.tolist() == [0, 6]
    assert ends.tolist() == [2, 7]


@pytest.mark.parametrize(
    ("rle", "said"),
    [
        ("1", ["1 numbers", "'1'", "pair"]),
        ("1 2 3", ["3 numbers", "'3'", "pair"]),
        ("1.0 2", ["number 1 ", "'1.0'", "digits"]),
        ("1 2 3 a", ["number 4 ", "'a'", "digits"]),
        ("NaN", ["number 1 ", "'NaN'", "nothing for no mask"]),
        ("nan", ["number 1 ", "'nan'"]),
        ("-1", ["number 1 ", "'-1'"]),
        ("5 -2", ["number 2 ", "'-2'"]),
        ("+1 2", ["number 1 ", "'+1'"]),
        ("1_0 2", ["number 1 ", "'1_0'"]),
        ("1,2", ["number 1 ", "'1,2'"]),
        ("1e3 2", ["number 1 ", "'1e3'"]),
        ("１ 2", ["number 1 ", "'\\uff11'"]),
        ("1\xa02", ["number 1 ", "'1\\xa02'"]),
        ("\xa0", ["number 1 ", "'\\xa0'"]),
        ("\x0b1 2", ["number 1 ", "'\\x0b1'"]),
        ("\ud800 1", ["number 1 ", "'\\ud800'"]),
        ("1 2 0x5 1", ["number 3 ", "'0x5'"]),
        ("0 3", ["start '0'", "number 1 ", "below 1"]),
        ("1 1 3 0", ["length '0'", "number 4 ", "below 1"]),
        ("21 1", ["run 1 ", "'21'", "'1'", "20 pixels", "5 x 4"]),
        ("1 1 20 2", ["run 2 ", "'20'", "'2'", "number 3", "20 pixels"]),
        ("1 21", ["run 1 ", "'21'", "20 pixels"]),
        ("18446744073709551617 1", ["'18446744073709551617'", "ends past"]),
        ("1 18446744073709551617", ["'18446744073709551617'", "ends past"]),
        ("9223372036854775807 9223372036854775807", ["'9223372036854775807'", "ends past"]),
        (f"1 {'9' * 5000}", ["'9999", "...'", "ends past"]),
        ("8 1 3 1", ["start '3'", "number 3 ", "comes before", "pixels 8 to 8", "sort"]),
        ("3 4 6 1", ["start '6'", "number 3 ", "overlaps", "pixels 3 to 6", "merge"]),
        ("3 4 3 1", ["start '3'", "overlaps"]),
    ],
)
def test_broken_kaggle_rle_is_refused_in_one_line(rle: str, said: list[str]) -> None:
    with pytest.raises(LabelError) as caught:
        decode_rle(rle, (5, 4), where="train.csv row 17, image 000a.jpg, type 3")
    message = str(caught.value)
    assert message.startswith("train.csv row 17, image 000a.jpg, type 3: ")
    assert "\n" not in message
    assert len(message) < 400
    for words in said:
        assert words in message


def test_rle_of_another_type_is_refused() -> None:
    with pytest.raises(LabelError, match="got nan"):
        decode_rle(math.nan, (5, 4))  # type: ignore[arg-type]


def test_without_a_size_only_the_end_of_the_frame_is_open() -> None:
    assert rle_runs(f"{MAX_MASK_PX} 1")[1].tolist() == [MAX_MASK_PX]
    with pytest.raises(LabelError, match="ends past"):
        rle_runs(f"{MAX_MASK_PX} 2")
    with pytest.raises(LabelError, match="overlaps"):
        rle_runs("3 4 6 1")


@given(st.text(alphabet="0123456789 -.a", max_size=12))
def test_any_text_decodes_as_the_naive_decoder_does_or_is_refused(rle: str) -> None:
    try:
        mask = decode_rle(rle, (4, 3))
    except LabelError:
        return
    np.testing.assert_array_equal(mask, naive_decode(rle, (4, 3)))


@pytest.mark.parametrize("size_wh", [(0, 4), (5, -1), (1 << 20, 1 << 20)])
def test_unusable_sizes_are_refused_before_memory_is_taken(size_wh: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"got {size_wh[0]} x {size_wh[1]}"):
        decode_rle("1 1", size_wh)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros((4, 5), np.float32), "got float32"),
        (np.zeros((4, 5), np.int64), "got int64"),
        (np.full((4, 5), 255, np.uint8), "got the value 255"),
        (np.zeros((1, 4, 5), bool), r"got shape \(1, 4, 5\)"),
        (np.zeros((0, 5), bool), r"got shape \(0, 5\)"),
    ],
)
@pytest.mark.parametrize("function", [encode_rle, encode_coco_rle, regions])
def test_other_arrays_are_no_masks(
    function: Callable[[Mask], object], mask: Mask, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        function(mask)


def frame_with_500_runs() -> Mask:
    mask = np.zeros((256, 1600), bool)
    mask[20:90, 100:350] = True
    mask[120:200, 900:1150] = True
    return mask


def test_a_frame_decodes_and_encodes_in_a_millisecond() -> None:
    mask = frame_with_500_runs()
    rle = encode_rle(mask)
    assert len(rle.split()) == 1000
    assert best_ms(lambda: decode_rle(rle, (1600, 256)), 50) < 1
    assert best_ms(lambda: encode_rle(mask), 50) < 1


# COCO --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "counts"),
    [
        (["...", "..."], [6]),
        (["###", "###"], [0, 6]),
        (["#..", "..."], [0, 1, 5]),
        (["..#", "..#"], [4, 2]),
        ([".#.", "#.."], [1, 2, 3]),
    ],
)
def test_coco_counts_begin_with_zeros(rows: list[str], counts: list[int]) -> None:
    mask = draw(*rows)
    expected = {"size": [2, 3], "counts": counts}
    assert encode_coco_rle(mask, compressed=False) == expected
    np.testing.assert_array_equal(decode_coco_rle(expected, (3, 2)), mask)


# pycocotools 2.0.11 hands numpy 2 an object with an older __array__.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@given(masks())
def test_coco_agrees_with_pycocotools(mask: Mask) -> None:
    check_against_pycocotools(mask)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("seed", range(20))
def test_coco_agrees_with_pycocotools_on_long_runs(seed: int) -> None:
    # Counts from one to five characters, rising and falling.
    rng = np.random.default_rng(seed)
    edges = np.unique(rng.integers(0, 2_000_000, 40) >> rng.integers(0, 20, 40))
    flat = np.zeros(2_000_000, bool)
    flat[edges] = True
    check_against_pycocotools(np.logical_xor.accumulate(flat).reshape(2000, 1000).T)


def check_against_pycocotools(mask: Mask) -> None:
    expected = reference.encode(np.asfortranarray(mask, np.uint8))
    ours = encode_coco_rle(mask)
    assert ours["size"] == expected["size"]
    assert ours["counts"] == expected["counts"].decode()
    np.testing.assert_array_equal(reference.decode(ours), mask)
    np.testing.assert_array_equal(decode_coco_rle(expected), mask)
    from_json = json.loads(json.dumps(encode_coco_rle(mask, compressed=False)))
    assert reference.frPyObjects(from_json, *mask.shape) == expected
    np.testing.assert_array_equal(decode_coco_rle(from_json), mask)


def test_zero_counts_inside_are_accepted() -> None:
    expected = decode_rle("3 4", (3, 2))
    np.testing.assert_array_equal(
        decode_coco_rle({"size": [2, 3], "counts": [2, 3, 0, 1]}), expected
    )


@pytest.mark.parametrize(
    ("coco", "said"),
    [
        (None, "got 'None'"),
        ([[1.0, 2.0, 3.0, 4.0]], "export the segmentation as COCO RLE"),
        ({"counts": [6]}, "export the segmentation as COCO RLE"),
        ({"size": [2, 3]}, "export the segmentation as COCO RLE"),
        ({"size": "2 3", "counts": [6]}, "size is"),
        ({"size": [2], "counts": [6]}, "size is"),
        ({"size": [2, 3.0], "counts": [6]}, "size is"),
        ({"size": [0, 3], "counts": []}, "size is"),
        ({"size": [-2, -3], "counts": [6]}, "size is"),
        ({"size": [1 << 20, 1 << 20], "counts": [1 << 40]}, "at most 268435456 pixels"),
        ({"size": [10**30, 1], "counts": [10**30]}, "at most 268435456 pixels"),
        ({"size": [3, 2], "counts": [6]}, "the mask is 2 x 3, expected the image's 3 x 2"),
        ({"size": [2, 3], "counts": [5]}, "add up to 5 pixels, expected 6"),
        ({"size": [2, 3], "counts": [5, 2]}, "add up to 7 pixels, expected 6"),
        ({"size": [2, 3], "counts": [7, -1]}, "count 1 is 7"),
        ({"size": [2, 3], "counts": [3, -1, 4]}, "count 2 is -1"),
        ({"size": [2, 3], "counts": [2**62, 2**62, 2**62, 2**62, 6]}, "count 1 is 461"),
        ({"size": [2, 3], "counts": [10**30]}, "list of whole numbers"),
        ({"size": [2, 3], "counts": [6.0]}, "list of whole numbers"),
        ({"size": [2, 3], "counts": ["6"]}, "list of whole numbers"),
        ({"size": [2, 3], "counts": [True]}, "list of whole numbers"),
        ({"size": [2, 3], "counts": [[6]]}, "list of whole numbers"),
        ({"size": [2, 3], "counts": [[1], [2, 3]]}, "list of whole numbers"),
        ({"size": [2, 3], "counts": []}, "list of whole numbers"),
        ({"size": [2, 3], "counts": 6}, "list of whole numbers"),
        ({"size": [2, 3], "counts": ""}, "cut off"),
        ({"size": [2, 3], "counts": "1Z"}, "cut off"),
        ({"size": [2, 3], "counts": "6 "}, "character 2 of the counts is b' '"),
        ({"size": [2, 3], "counts": "6p"}, "character 2 of the counts is b'p'"),
        ({"size": [2, 3], "counts": "6é"}, "character 2 of the counts is"),
        ({"size": [2, 3], "counts": "\ud800"}, "character 1 of the counts is"),
        ({"size": [2, 3], "counts": b"6\xff"}, "character 2 of the counts is"),
        ({"size": [2, 3], "counts": "6" + "P" * 1000 + "0"}, "count 2 takes 1001 characters"),
        ({"size": [2, 3], "counts": "oooooo?"}, "count 1 is "),
        ({"size": [2, 3], "counts": "7"}, "count 1 is 7"),
        ({"size": [2, 3], "counts": "N"}, "count 1 is -2"),
    ],
)
def test_broken_coco_rle_is_refused_without_taking_memory(coco: object, said: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(LabelError) as caught:
            decode_coco_rle(coco, (3, 2) if "image's" in said else None, where="a.json, id 7")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith("a.json, id 7: ")
    assert said in message
    assert "\n" not in message
    assert len(message) < 400
    assert peak_bytes < 1_000_000


@given(st.one_of(st.text(max_size=8), st.text(alphabet="01234NOPo", max_size=8)))
def test_any_coco_text_fills_the_mask_or_is_refused(text: str) -> None:
    try:
        mask = decode_coco_rle({"size": [3, 4], "counts": text})
    except LabelError:
        return
    assert mask.shape == (3, 4)


# Regions -----------------------------------------------------------------------------------------


def only(mask: Mask) -> Region:
    (region,) = regions(mask)
    return region


@pytest.mark.parametrize(
    ("rows", "length_px", "width_px", "orientation_deg"),
    [
        (["#"], 1, 1, 0),
        (["####"], 4, 1, 0),
        (["#", "#", "#"], 3, 1, 90),
        (["##", "##"], 2, 2, 0),
        (["###", "###"], 3, 2, 0),
        (["##", "##", "##"], 3, 2, 90),
        (["#..", ".#.", "..#"], 3 * math.sqrt(2), math.sqrt(2), 135),
        (["..#", ".#.", "#.."], 3 * math.sqrt(2), math.sqrt(2), 45),
        ([".#.", "###", ".#."], 2 * math.sqrt(2), 2 * math.sqrt(2), 45),
        (["#.#", "...", "#.#"], 1, 1, 0),
        (["###", "#.#", "###"], 3, 3, 0),
        (["###", "..#", "..#"], 3, 3, 0),
        # A square with one side on the outline: of its two directions the one below 90 is given.
        (["..#..", "..##.", ".#.##", "#..##", ".#..."], 7 / math.sqrt(2), 7 / math.sqrt(2), 45),
        # Both this and 4 x 2 have area 8: the longer one wins.
        (["##..", "..##"], 10 / math.sqrt(5), 4 / math.sqrt(5), 180 - 26.565051177077994),
    ],
)
def test_measures_of_small_shapes(
    rows: list[str], length_px: float, width_px: float, orientation_deg: float
) -> None:
    mask = draw(*rows)
    largest = regions(mask)[0]
    assert largest.length_px == pytest.approx(length_px, abs=1e-12)
    assert largest.width_px == pytest.approx(width_px, abs=1e-12)
    assert largest.orientation_deg == pytest.approx(orientation_deg, abs=1e-12)
    moved = only(np.pad(mask, ((7, 2), (1000, 3)))) if len(regions(mask)) == 1 else largest
    assert (moved.length_px, moved.width_px, moved.orientation_deg) == (
        largest.length_px,
        largest.width_px,
        largest.orientation_deg,
    )


@pytest.mark.parametrize("degrees", range(0, 180, 15))
def test_a_drawn_bar_is_measured_at_its_angle(degrees: int) -> None:
    canvas = np.zeros((200, 300), np.uint8)
    # OpenCV's angle runs clockwise on screen.
    corners = cv2.boxPoints(((150.0, 100.0), (120.0, 24.0), -degrees))
    cv2.fillPoly(canvas, [np.round(corners).astype(np.int32)], 1)
    region = only(canvas.astype(bool))
    # fillPoly paints the outline too: up to one pixel on every side.
    assert region.length_px == pytest.approx(121, abs=2)
    assert region.width_px == pytest.approx(25, abs=2)
    assert abs((region.orientation_deg - degrees + 90) % 180 - 90) < 1.5
    assert 0 <= region.orientation_deg < 180


@given(masks())
@settings(max_examples=300)
def test_regions_are_the_connected_components(mask: Mask) -> None:
    expected = naive_components(mask)
    expected.sort(key=lambda component: -int(component.sum()))  # stable: ties stay by position
    found = regions(mask)
    assert [region.rle for region in found] == [encode_rle(component) for component in expected]
    for region, component in zip(found, expected, strict=True):
        y, x = np.nonzero(component)
        assert region.area_px == component.sum()
        assert region.bbox_xywh == (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)
        assert region.mean_probability == 1


@given(masks())
@settings(max_examples=300)
def test_rectangles_are_tight_and_minimal(mask: Mask) -> None:
    height, width = mask.shape
    for region in regions(mask):
        points = outline_points(decode_rle(region.rle, (width, height)))
        assert region.length_px >= region.width_px
        assert 0 <= region.orientation_deg < 180
        angle = math.radians(region.orientation_deg)
        along = points @ np.array([math.cos(angle), -math.sin(angle)])
        across = points @ np.array([math.sin(angle), math.cos(angle)])
        assert np.ptp(along) == pytest.approx(region.length_px, abs=1e-4)
        assert np.ptp(across) == pytest.approx(region.width_px, abs=1e-4)
        smallest = math.prod(cv2.minAreaRect(points)[1])
        assert region.length_px * region.width_px == pytest.approx(smallest, rel=1e-4)


@given(masks(), st.integers(0, 2**32 - 1))
def test_mean_probability_is_that_of_the_region(mask: Mask, seed: int) -> None:
    probability = np.random.default_rng(seed).random(mask.shape, dtype=np.float32)
    probability[~mask] = np.nan  # never read
    height, width = mask.shape
    for region in regions(mask, probability):
        own = decode_rle(region.rle, (width, height))
        assert region.mean_probability == pytest.approx(probability[own].mean(), rel=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_probabilities_that_are_not_finite_are_refused(value: float) -> None:
    probability = np.full((2, 2), 0.5, np.float32)
    probability[1, 1] = value
    with pytest.raises(InputError, match="expected finite"):
        regions(np.ones((2, 2), bool), probability)


def test_probabilities_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"expected probabilities of shape \(2, 3\)"):
        regions(np.ones((2, 3), bool), np.ones((3, 2), np.float32))


def test_regions_come_largest_first_then_left_to_right_then_top_to_bottom() -> None:
    mask = draw(
        "..#....#",
        "........",
        "#...##.#",
    )
    assert [region.bbox_xywh for region in regions(mask)] == [
        (4, 2, 2, 1),
        (0, 2, 1, 1),
        (2, 0, 1, 1),
        (7, 0, 1, 1),
        (7, 2, 1, 1),
    ]


def test_runs_that_continue_in_the_next_column_stay_apart_between_regions() -> None:
    # Pixel 4 ends column 1, pixel 5 begins column 2: neighbours in the text, not in the image.
    mask = draw("..#", "...", "...", ".#.")
    assert encode_rle(mask) == "8 2"
    assert [region.rle for region in regions(mask)] == ["8 1", "9 1"]
    assert only(np.ones((4, 3), bool)).rle == "1 12"


def test_thousands_of_specks_stay_fast() -> None:
    mask = np.random.default_rng(0).random((256, 1600)) < 0.015
    probability = np.full(mask.shape, 0.5, np.float32)
    assert len(regions(mask, probability)) > 5000
    assert best_ms(lambda: regions(mask, probability), 5) < 100


def test_a_small_region_in_a_large_mask_takes_little_memory() -> None:
    mask = np.zeros((4000, 8000), bool)
    mask[3000:3050, 7000:7050] = True
    probability = np.broadcast_to(np.float32(0.5), mask.shape)
    regions(mask[:10, :10])
    tracemalloc.start()
    try:
        region = only(mask)
        regions(mask, probability)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert region.bbox_xywh == (7000, 3000, 50, 50)
    assert peak_bytes < 500_000


# ----------------------------------------------------------------------------- joining, comparing


@given(masks())
def test_regions_join_to_the_mask_they_came_from(mask_hw):
    rles = [region.rle for region in regions(mask_hw)]
    size_wh = mask_hw.shape[::-1]
    np.testing.assert_array_equal(decode_rle(merge_rles(rles), size_wh), mask_hw)


def test_no_region_joins_to_no_mask():
    assert merge_rles([]) == ""


@given(st.integers(1, 9).flatmap(lambda n: hnp.arrays(np.bool_, (2, n, 7))))
def test_dice_is_the_f1_score_of_the_pixels(pair):
    assert dice(*pair) == pytest.approx(f1_score(*pair.reshape(2, -1), zero_division=1.0))


# Text to text ------------------------------------------------------------------------------------


@given(masks(), st.booleans())
def test_kaggle_and_coco_text_turn_into_each_other(mask: Mask, compressed: bool) -> None:
    size_wh = mask.shape[1], mask.shape[0]
    rle = encode_rle(mask)
    coco_rle = coco_from_kaggle(rle, size_wh, compressed=compressed)
    assert coco_rle == encode_coco_rle(mask, compressed=compressed)
    assert kaggle_from_coco(coco_rle, size_wh) == rle
    packed = reference.encode(np.asfortranarray(mask.view(np.uint8)))
    assert kaggle_from_coco(packed, size_wh) == rle


def test_text_to_text_makes_runs_canonical() -> None:
    assert coco_from_kaggle("1 2 3 1 7 1", (4, 2), compressed=False)["counts"] == [0, 3, 3, 1, 1]
    counts = [0, 1, 0, 2, 3, 0, 1, 1, 0]
    assert kaggle_from_coco({"size": [2, 4], "counts": counts}) == "1 3 8 1"


@pytest.mark.parametrize("rle", ["0 1", "1", "6 4", "a"])
def test_a_broken_kaggle_rle_does_not_become_coco(rle: str) -> None:
    with pytest.raises(LabelError, match=r"^row 3: "):
        coco_from_kaggle(rle, (4, 2), where="row 3")


@pytest.mark.parametrize(
    "coco_rle", [{"size": [4, 2], "counts": [8]}, {"size": [2, 4], "counts": [7]}, {}, None]
)
def test_a_broken_coco_rle_does_not_become_kaggle(coco_rle: object) -> None:
    with pytest.raises(LabelError, match=r"^element 3: "):
        kaggle_from_coco(coco_rle, (4, 2), where="element 3")


@given(st.lists(hnp.arrays(np.bool_, (5, 4)), max_size=4))
def test_the_union_of_rles_is_that_of_masks(several: list[Mask]) -> None:
    expected = np.zeros((5, 4), bool)
    for mask in several:
        expected |= mask
    assert union_rle([encode_rle(mask) for mask in several]) == encode_rle(expected)
