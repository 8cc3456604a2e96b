"""What an overlay must show, pixel by pixel, on drawn steel."""

import io
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from steelsight.defects import Defect, DefectClass
from steelsight.errors import InputError
from steelsight.masks import encode_rle
from steelsight.report import overlays
from steelsight.report.overlays import (
    MARKER_RGB,
    class_masks,
    draw_labels,
    draw_overlay,
    encode_jpeg,
)


def steel(level=100, size_wh=(320, 128)):
    return np.full(size_wh[::-1], level, np.uint8)


def distance_to(mask):
    """Distance of every pixel from the mask, 0 inside."""
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_C, 3)


def test_a_clean_frame_stays_as_it_is(classes):
    grey = np.arange(320 * 128, dtype=np.uint32).astype(np.uint8).reshape(128, 320)
    assert np.array_equal(draw_overlay(grey, [], classes), np.dstack([grey] * 3))


def test_the_outline_runs_just_outside_in_the_colour_of_the_type(classes, box_defect):
    box = (100, 40, 60, 30)
    rgb = draw_overlay(steel(), [box_defect("1", box)], classes)
    mask = np.zeros((128, 320), np.bool_)
    mask[40:70, 100:160] = True
    around = np.s_[36:74, 96:164]  # without the label, which carries the colour as well
    coloured = (rgb == classes[0].rgb).all(axis=2)[around]
    distance = distance_to(mask)[around]
    assert set(np.unique(distance[coloured])) == {1, 2}
    assert coloured[(distance == 1) | (distance == 2)].all()  # type 1 is a solid line
    casing = distance == 3
    assert (rgb[around][casing] == overlays._BLACK).all()


def test_what_lies_inside_stays_readable(classes, box_defect):
    grey = steel(60)
    cv2.putText(grey, "A7", (110, 64), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 240, 2)
    rgb = draw_overlay(grey, [box_defect("3", (100, 40, 60, 30))], classes)
    inside = np.s_[40:70, 100:160]
    before = grey[inside].astype(float)
    for channel in range(3):
        after = rgb[inside][..., channel].astype(float)
        assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.999
        assert after.max() - after.min() > 0.8 * (before.max() - before.min())


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("colour", ["#000000", "#ffffff", "#2f9bff", "#1a1a60", "#ffe600"])
def test_an_outline_stands_out_from_any_steel(level, colour, box_defect):
    classes = [DefectClass("1", "Type 1", colour)]
    rgb = draw_overlay(steel(level), [box_defect("1", (100, 40, 60, 30))], classes)
    contrast = np.abs(rgb[55, 90:100].astype(int) - level).max()
    assert contrast > 100


def test_types_differ_by_dash_pattern_not_only_by_colour(box_defect):
    same = [DefectClass(str(i), f"Type {i}", "#ffffff") for i in range(1, 5)]
    rows = [
        draw_overlay(steel(), [box_defect(c.id, (20, 40, 280, 60))], same)[38, 20:300] for c in same
    ]
    assert len({row.tobytes() for row in rows}) == 4


def test_a_region_at_the_edge_of_the_frame_is_outlined_too(classes, box_defect):
    rgb = draw_overlay(steel(), [box_defect("1", (0, 0, 320, 128))], classes)
    assert (rgb[[0, -1], 200] == classes[0].rgb).all()
    assert (rgb[100, [0, -1]] == classes[0].rgb).all()


def test_truth_is_dashed_white_inside_and_missed_regions_are_labelled(classes, monkeypatch):
    texts = []
    monkeypatch.setattr(overlays._Labels, "put", lambda self, text, box, colour: texts.append(text))
    mask = np.zeros((128, 320), np.bool_)
    mask[40:70, 100:160] = True
    rgb = draw_overlay(steel(), [], classes, truth={"2": mask, "3": None, "4": ~mask & False})
    changed = (rgb != 100).any(axis=2)
    assert not changed[~mask].any()
    rim = rgb[40, 100:160]
    assert (rim == 255).all(axis=1).any()
    assert (rim == overlays._BLACK).all(axis=1).any()
    assert texts == ["missed: Type 2"]


def test_labels_stay_in_the_picture_and_apart(classes, box_defect, monkeypatch):
    places = []

    def record(self, text, left, top, width, height, colour):
        self._taken[top : top + height, left : left + width] = True
        places.append((left, top, width, height))

    monkeypatch.setattr(overlays._Labels, "_draw", record)
    corners = [(0, 0), (310, 0), (0, 118), (310, 118), (150, 50), (155, 62), (160, 50)]
    found = [box_defect("1", (x, y, 8, 8)) for x, y in corners]
    draw_overlay(steel(), found, classes)
    assert len(places) == len(found)
    covered = np.zeros((128, 320), int)
    for left, top, width, height in places:
        assert left >= 0 <= top
        assert left + width <= 320
        assert top + height <= 128
        covered[top : top + height, left : left + width] += 1
    assert covered.max() == 1


@pytest.mark.parametrize("size_wh", [(1, 1), (1, 300), (300, 1), (3, 3), (200, 200), (1600, 256)])
def test_any_size_at_full_and_at_reduced_scale(size_wh, classes, box_defect):
    defects = [box_defect("4", (0, 0, 1, 1), size_wh)]
    truth = {"4": np.ones(size_wh[::-1], np.bool_)}
    rgb = draw_overlay(steel(size_wh=size_wh), defects, classes, truth=truth)
    assert rgb.shape == (*size_wh[::-1], 3)
    assert rgb.dtype == np.uint8
    fitted = draw_overlay(steel(size_wh=size_wh), defects, classes, fit_wh=(100, 50))
    assert 1 <= fitted.shape[1] <= 100
    assert 1 <= fitted.shape[0] <= 50


def test_a_speck_survives_shrinking(classes):
    mask = np.zeros((2000, 4000), np.bool_)
    mask[1001, 2001] = True
    speck = Defect("1", 1, (2001, 1001, 1, 1), 1.0, 1.0, 0.0, 0.9, encode_rle(mask))
    rgb = draw_overlay(steel(size_wh=(4000, 2000)), [speck], classes, fit_wh=(400, 200))
    assert (rgb[96:106, 196:206] == classes[0].rgb).all(axis=2).any()


def test_thousands_of_specks_are_fast(classes):
    """3,000 regions in a large frame: decoding each on its own would take 96 GB of masks."""
    size_wh, specks = (8000, 4000), []
    for index in range(3000):
        x, y = 10 + 40 * (index % 190), 10 + 40 * (index // 190)
        specks.append(
            Defect("2", 1, (x, y, 1, 1), 1.0, 1.0, 0.0, 0.7, f"{x * size_wh[1] + y + 1} 1")
        )
    start = time.perf_counter()
    rgb = draw_overlay(steel(size_wh=size_wh), specks, classes)
    assert time.perf_counter() - start < 20  # 2 s on two cores
    assert rgb.shape == (4000, 8000, 3)


def test_regions_of_one_type_are_decoded_together(box_defect):
    boxes = [(200, 10, 20, 20), (10, 60, 30, 10)]  # out of order in the RLE
    masks = class_masks([box_defect("1", b) for b in boxes], (320, 128))
    assert list(masks) == ["1"]
    assert masks["1"].sum() == 700
    assert masks["1"][10, 200]
    assert masks["1"][69, 39]


def test_foreign_types_and_sizes_are_refused(classes, box_defect):
    with pytest.raises(InputError, match=r"'9'.*classes of the bundle"):
        draw_overlay(steel(), [box_defect("9", (1, 1, 5, 5))], classes)
    with pytest.raises(InputError, match="another image"):
        draw_overlay(steel(), [], classes, truth={"1": np.ones((5, 5), np.bool_)})


def test_labels_are_drawn_as_results_are(classes, box_defect, monkeypatch):
    """But for the probability: the same outline, and the name of the type."""
    texts = []
    monkeypatch.setattr(overlays._Labels, "put", lambda self, text, box, colour: texts.append(text))
    mask = np.zeros((128, 320), np.bool_)
    mask[40:70, 100:160] = True
    labelled = {"2": mask, "4": mask & False, "9": ~mask}  # 4 is empty, 9 is no type
    for fit_wh in (None, (160, 160)):
        drawn = draw_labels(steel(), labelled, classes, fit_wh=fit_wh)
        result = draw_overlay(steel(), [box_defect("2", (100, 40, 60, 30))], classes, fit_wh=fit_wh)
        assert np.array_equal(drawn, result)
    assert texts == ["Type 2", "Type 2 · 0.88"] * 2


def test_labels_without_names_and_a_marked_place(classes, monkeypatch):
    monkeypatch.setattr(overlays._Labels, "put", None)  # would fail if called
    mask = np.zeros((128, 320), np.bool_)
    mask[40:70, 100:160] = True
    rgb = draw_labels(steel(), {"1": mask}, classes, named=False, marked_xywh=(-8, 60, 48, 48))
    assert (rgb[58, 5:30] == MARKER_RGB).all()  # above the place, which begins left of the frame
    assert (rgb[80:100, 20] == 100).all()
    assert (draw_labels(steel(), {}, classes) == 100).all()


def test_a_mask_one_pixel_wide_survives_shrinking(classes):
    speck = np.zeros((5000, 1), np.bool_)
    speck[1001] = True
    rgb = draw_labels(np.zeros((5000, 1), np.uint8), {"1": speck}, classes, fit_wh=(100, 100))
    assert rgb.any()


def test_files_hold_what_was_drawn(classes, box_defect):
    rgb = draw_overlay(steel(), [box_defect("1", (100, 40, 60, 30))], classes)
    with Image.open(io.BytesIO(encode_jpeg(rgb, 95))) as jpeg:
        assert jpeg.format == "JPEG"
        assert np.abs(np.asarray(jpeg).astype(int) - rgb).mean() < 2
    with Image.open(io.BytesIO(encode_jpeg(steel()))) as grey:
        assert grey.mode == "L"
    with pytest.raises(InputError, match="shrink"):
        encode_jpeg(np.zeros((1, 70_000), np.uint8))
