"""The charts: well-formed, deterministic, and no frame lost in the binning."""

import base64
import re
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pytest

from steelsight.defects import DefectClass, Verdict
from steelsight.report.charts import ProbabilityHistogram, StripMap, bar_svg, line_svg

SVG = "{http://www.w3.org/2000/svg}"


def bands(svg):
    """Alpha channel of each type's band."""
    uris = re.findall(r"data:image/png;base64,([^\"]+)", svg)
    read = (np.frombuffer(base64.b64decode(uri), np.uint8) for uri in uris)
    return [cv2.imdecode(data, cv2.IMREAD_UNCHANGED)[..., 3] for data in read]


@pytest.mark.parametrize("frames", [1, 5, 60, 360, 361, 12_568])
def test_strip_keeps_every_verdict_at_any_length(frames, classes):
    strip = StripMap(classes)
    for index in range(frames):
        verdict = Verdict.NG if index == frames // 2 else Verdict.OK
        strip.add(verdict, (), (320, 128))
    assert strip.frames == frames
    assert strip._verdicts.sum(axis=0).tolist() == [frames - 1, 1, 0]
    svg = ET.fromstring(strip.svg())
    ng = [r for r in svg.iter(f"{SVG}rect") if r.get("class") == "ng"]
    assert len(ng) == 1
    middle = float(ng[0].get("x").rstrip("%")) + float(ng[0].get("width").rstrip("%")) / 2
    assert abs(middle - 50) <= 51 / min(frames, 180)
    assert float(ng[0].get("height")) >= 8  # one NG among 64 frames is still seen


def test_band_shows_where_across_the_frame_a_type_lies(classes, box_defect):
    strip = StripMap(classes, lanes=16)
    strip.add(Verdict.OK, (), (320, 128))
    strip.add(Verdict.NG, [box_defect("3", (300, 0, 20, 128))], (320, 128))
    alpha = bands(strip.svg())
    assert [a.max() for a in alpha] == [0, 0, 255, 0]
    assert alpha[2].shape == (16, 2)
    assert np.argwhere(alpha[2]).tolist() == [[15, 1]]  # last lane, second frame
    assert "full colour: 100 % of the place is defective" in strip.svg()


def test_folding_adds_areas_up(classes, box_defect):
    strip = StripMap(classes, columns=4, lanes=2)
    defect = box_defect("1", (0, 0, 320, 2))
    for _ in range(33):
        strip.add(Verdict.NG, [defect], (320, 128))
    assert strip.frames_per_column == 16
    assert strip._area.sum() == pytest.approx(33 * 640)
    assert strip._verdicts[:, 1].tolist() == [16, 16, 1, 0]


def test_links_lead_to_frames_only_while_a_column_is_one_frame(classes):
    target = {0: ("#frame-1", 'frame 1: NG, "a<b>.jpg')}
    strip = StripMap(classes, columns=4)
    for _ in range(4):
        strip.add(Verdict.NG, (), (320, 128))
    linked = ET.fromstring(strip.svg(target))
    assert [a.get("href") for a in linked.iter(f"{SVG}a")] == ["#frame-1"]
    strip.add(Verdict.NG, (), (320, 128))
    assert "<a " not in strip.svg(target)


def test_histogram_counts_every_finite_probability():
    histogram = ProbabilityHistogram()
    values = [0.0, 1.0, 0.5, 1e-9, 0.2, 0.999999, None, float("nan"), float("inf")]
    for value in values:
        histogram.add(Verdict.OK, value)
    assert histogram.total == 6
    svg = ET.fromstring(histogram.svg({"NG from": 0.5, 'a "<line>': 0.9999999}))
    bars = [r for r in svg.iter(f"{SVG}rect") if "column" in r.get("class", "")]
    assert len(bars) == 4  # two at each end, 0.2, 0.5
    assert all(float(bar.get("height")) >= 2 for bar in bars)
    lines = [line for line in svg.iter(f"{SVG}line") if line.get("class") == "threshold"]
    assert sorted(line.get("x1") for line in lines) == ["100%", "50%"]


def test_nothing_to_show_is_an_empty_text(classes):
    assert StripMap(classes).svg() == ""
    assert ProbabilityHistogram().svg({"NG from": 0.5}) == ""


def test_small_pieces_are_well_formed():
    for svg in (bar_svg(2.0, "#00ff00"), bar_svg(0, "#00ff00"), line_svg("#fff", (5, 5))):
        ET.fromstring(svg)


def test_names_from_outside_cannot_break_a_chart():
    hostile = [DefectClass("1", "a<b>&\"'\u202e\x00", "#112233")]
    strip = StripMap(hostile)
    strip.add(Verdict.OK, (), (10, 10))
    ET.fromstring(strip.svg())
