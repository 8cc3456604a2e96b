"""The charts of the data pages: well-formed, escaped, deterministic, and no number lost."""

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pytest

from steelsight.report.plots import (
    MAX_POINTS,
    PALETTE,
    Bar,
    BinnedRow,
    Curve,
    Dot,
    Mark,
    bars_svg,
    columns_svg,
    confusion_html,
    cost_curve_html,
    dots_html,
    heat_html,
    histogram_svg,
    matrix_html,
    plane_html,
    ramp_html,
    sequence_svg,
    stacked_svg,
    whole_share,
)

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<script>alert("1")</script>\u202e&'


def texts(svg):
    return [t.text for t in ET.fromstring(svg).iter(f"{SVG}text")]


def rects(svg, name):
    return [r for r in ET.fromstring(svg).iter(f"{SVG}rect") if name in r.get("class", "").split()]


def per_cent(value):
    assert value.endswith("%")
    return float(value[:-1])


def pixels(html):
    data = re.search(r"data:image/png;base64,([^\"]+)", html).group(1)
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)


def test_bars_are_as_long_as_their_values():
    bars = [Bar("a", 12_568, "53 %"), Bar("b", 6_284, colour="#ff0000"), Bar("c", 1), Bar("d", 0)]
    svg = bars_svg(bars, label="frames")
    assert texts(svg)[:2] == ["a", "12,568 · 53 %"]
    drawn = [r for r in ET.fromstring(svg).iter(f"{SVG}rect") if r.get("class") != "lane"]
    assert [per_cent(r.get("width")) for r in drawn] == [100, 50, 0.4]  # one frame is still seen
    assert drawn[1].get("fill") == "#ff0000"
    assert bars_svg([], label="") == ""


def test_histogram_shows_every_bin_and_marks_the_median():
    row = BinnedRow("Type 1", (1, 2, 4, 8, 16), (0, 5, 0, 1_000), 9.0, "#2f9bff")
    other = BinnedRow("Type 2", (1, 2, 4, 8), (0, 0, 7), None)
    svg = histogram_svg([row, other, BinnedRow("empty", (), ())], label="areas", unit="px")
    bins = rects(svg, "bin")
    assert len(bins) == 3
    # The axis begins with the first filled bin, at 2, and ends at 16: three bins.
    assert [per_cent(b.get("x")) for b in bins] == pytest.approx([0, 66.667, 33.333], abs=0.01)
    assert float(bins[0].get("height")) == 2  # 5 beside 1,000
    assert bins[1].find(f"{SVG}title").text == "8 to 16 px: 1,000"
    assert "neutral" in bins[2].get("class")
    (line,) = [m for m in ET.fromstring(svg).iter(f"{SVG}line") if m.get("class") == "middle"]
    assert per_cent(line.get("x1")) == pytest.approx(100 * np.log2(9 / 2) / 3, abs=0.01)
    assert "Type 1 · 1,005 · median 9 px" in texts(svg)
    assert histogram_svg([BinnedRow("empty", (), ())], label="") == ""


@pytest.mark.parametrize("bins", [1, 2, 3, 8, 19, 28])
def test_ticks_lie_inside_and_where_they_say(bins):
    edges = tuple(2.0**k for k in range(bins + 1))
    svg = histogram_svg([BinnedRow("a", edges, (1,) * bins)], label="")
    ticks = [
        (per_cent(t.get("x")), float(t.text.replace(",", "")))
        for t in ET.fromstring(svg).iter(f"{SVG}text")
        if t.get("class").startswith("tick") and "highest" not in t.text
    ]
    assert ticks
    for x, value in ticks:
        assert x == pytest.approx(100 * np.log2(value) / bins, abs=0.02)
        assert 0 <= x <= 100


@pytest.mark.parametrize("count", [1, 2, 999, 1_000, 1_001, 12_568])
def test_sequence_loses_no_outlier(count):
    values = np.full(count, 50.0)
    values[count // 3] = 250.0
    svg = sequence_svg(values, [(0, 50.0), (count - 1, 50.0)], label="brightness", height_px=100)
    tree = ET.fromstring(svg)
    (path,) = tree.iter(f"{SVG}path")
    columns = re.findall(r"M([\d.]+) ([-\d.]+)H([\d.]+)V([-\d.]+)H", path.get("d"))
    assert len(columns) == min(count, MAX_POINTS)
    left = [float(c[0]) for c in columns]
    assert left[0] == 0
    assert float(columns[-1][2]) == 1000
    if count > 1:
        tops = [float(c[1]) for c in columns]
        highest = columns[int(np.argmin(tops))]
        assert float(highest[0]) <= 1000 * (count // 3 + 0.5) / count <= float(highest[2]) + 0.06
        assert min(tops) < 10
        assert "50 to 250" in texts(svg)
    assert f"{count:,}" in texts(svg)
    assert len(svg) < 60_000


def test_sequence_of_equal_values_and_of_none():
    assert "NaN" not in sequence_svg([7.0, 7.0], label="")
    assert sequence_svg([], label="") == ""


def test_heat_map_is_brightest_where_it_is_covered_most():
    coverage = [[0.0, 0.1], [0.2, 0.4]]
    html = heat_html(coverage, (1600, 256), title="Type 1", note="12 masks", strongest=0.4)
    assert "aspect-ratio:1600/256" in html
    assert "1,600 x 256 px" in html
    grey = pixels(html).sum(axis=2, dtype=int)
    assert grey.shape == (2, 2)
    assert grey[0, 0] < grey[0, 1] < grey[1, 0] < grey[1, 1]
    assert (pixels(heat_html([[0.0]], (1, 1), title="", note="", strongest=0.0)) >= 0).all()
    scale = pixels(ramp_html(0.4)).sum(axis=2, dtype=int)[0]
    assert scale[0] == grey[0, 0]
    assert scale[-1] == grey[1, 1]
    assert "40 % of the masks" in ramp_html(0.4)


def test_matrix_reads_along_the_row():
    html = matrix_html(["A", "B"], [[10, 5], [5, 1_000]])
    assert '<td class="self">10</td><td style="--share:0.500">5<small>50 %</small></td>' in html
    assert '<td style="--share:0.005">5<small>0.5 %</small></td>' in html
    assert "--share:0.000" in matrix_html(["A", "B"], [[0, 0], [0, 1]])


class Reader(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.said = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.said.append(data)


@pytest.mark.parametrize(
    "html",
    [
        bars_svg([Bar(HOSTILE, 1, HOSTILE, HOSTILE)], label=HOSTILE),
        histogram_svg([BinnedRow(HOSTILE, (1, 2), (1,), 1, HOSTILE)], label=HOSTILE, unit=HOSTILE),
        sequence_svg([1, 2], label=HOSTILE, unit=HOSTILE),
        heat_html([[1.0]], (2, 2), title=HOSTILE, note=HOSTILE, strongest=1.0),
        matrix_html([HOSTILE], [[1]]),
    ],
)
def test_text_is_only_text(html):
    assert "script" not in Reader(html).tags
    assert "<script" not in html
    if html.startswith("<svg"):
        ET.fromstring(html)


def test_colours_are_plain_and_different():
    assert len(set(PALETTE)) == len(PALETTE) == 12
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in PALETTE)


def every(html, tag, name=""):
    """Elements of all charts in the HTML, by class."""
    found = ET.fromstring(f"<all>{html}</all>").iter(f"{SVG}{tag}")
    return [e for e in found if not name or name in e.get("class", "").split()]


def test_dots_stand_at_their_values_and_whiskers_at_their_intervals():
    dots = [
        Dot("a", 0.25, (0.125, 0.5), "25 %", "12 to 50 %", "#ff0000"),
        Dot(HOSTILE, None, None, "–"),
        Dot("beyond", 3.0, (-1.0, 9.0), "3"),
    ]
    html = dots_html(dots, label=HOSTILE, ends=(0, 0.5), end_words=("0 %", "50 %"))
    assert "<script" not in html
    first, beyond = every(html, "circle", "dot")
    assert (first.get("cx"), first.get("fill")) == ("50%", "#ff0000")
    assert beyond.get("cx") == "100%"  # cut at the end of the scale, its number is written
    whiskers = [line for line in every(html, "line", "whisker") if line.get("y1") == "11"]
    assert [(w.get("x1"), w.get("x2")) for w in whiskers] == [("25%", "100%"), ("0%", "100%")]
    assert "12 to 50 %" in html
    assert dots_html([], label="") == ""


def test_columns_show_bins_upward():
    dots = [
        Dot("< 500", 1.0, (0.5, 1.0), "100 %", "12"),
        Dot("≥ 500", 0.0, None, "0 %", "3"),
        Dot("empty", None, None, "–", "0"),
    ]
    svg = columns_svg(dots, label="found", level=0.5, height_px=100)
    high, low = every(svg, "circle", "dot")
    assert float(low.get("cy")) - float(high.get("cy")) == 100
    assert [per_cent(c.get("cx")) for c in (high, low)] == pytest.approx([100 / 6, 50], abs=0.01)
    (whisker,) = every(svg, "line", "whisker")
    assert float(whisker.get("y2")) - float(whisker.get("y1")) == 50
    (level,) = every(svg, "line", "level")
    assert level.get("y1") == whisker.get("y2")
    assert texts(svg) == ["100 %", "< 500", "12", "0 %", "≥ 500", "3", "–", "empty", "0"]
    assert columns_svg([], label="") == ""


def test_stacked_counts_are_written_and_none_is_too_small_to_be_seen():
    rows = [
        ("12,568 faulty",
         [("NG", "ng", 12_567), ("OK (missed)", "ok", 1), ("UNKNOWN", "unknown", 0)]),
        ("none", [("NG", "ng", 0)]),
        ("5 clean", [("OK", "ok", 4), ("NG", "ng", 1)]),
    ]  # fmt: skip
    svg = stacked_svg(rows, label="verdicts")
    assert texts(svg) == [
        "12,568 faulty: 12,567 NG · 1 OK (missed)",
        "5 clean: 4 OK · 1 NG",
    ]
    missed, share = rects(svg, "ok")[:2]
    assert (missed.get("width"), missed.get("x"), missed.get("transform")) == (
        "4", "100%", "translate(-4)",
    )  # fmt: skip
    assert per_cent(share.get("width")) == pytest.approx(100 / 12_568, abs=0.001)
    ok, ng = rects(svg, "ok")[-1], rects(svg, "ng")[-1]
    assert [per_cent(r.get("width")) for r in (ok, ng)] == [80, 20]
    assert per_cent(ng.get("x")) == 80
    assert stacked_svg([("none", [("NG", "ng", 0)])], label="") == ""


def test_confusion_is_shaded_by_row_and_framed_where_right():
    html = confusion_html(
        ["a", HOSTILE], ["a", "b", "none"], [[3, 1, 0], [0, 0, 0]], right={(0, 0)}
    )
    assert "<script" not in html
    ET.fromstring(html)
    assert re.findall(r"--share:([\d.]+)", html) == ["0.750", "0.250"]
    assert html.count('class="agree"') == 1
    assert '<td class="agree" style="--share:0.750">3<small>75 %</small></td>' in html


def test_no_share_is_rounded_to_nothing_or_everything():
    shares = [whole_share(v) for v in (0, 0.004, 0.006, 0.5, 0.994, 0.9999, 1)]
    assert shares == ["0 %", "< 1 %", "1 %", "50 %", "99 %", "> 99 %", "100 %"]


def test_plane_places_curves_and_marks_on_its_axes():
    html = plane_html(
        [Curve((0, 0.05, 0.1, 1), (0.5, 0.75, 1, 1), band=((0.5,) * 4, (1,) * 4))],
        [
            Mark(0.05, 0.75, HOSTILE, (0.0, 0.2), (0.25, 1.0)),
            Mark(0.5, 0.75, "beyond the axis"),
        ],
        label="ROC",
        x_words="false alarms",
        y_words="recall",
        x_ends=(0, 0.1),
        y_ends=(0.5, 1),
        height_px=200,
    )
    assert "<script" not in html
    assert "beyond the axis" not in html
    (line,) = every(html, "polyline", "curve")
    points = [tuple(map(float, p.split(","))) for p in line.get("points").split()]
    assert points == [(0, 208), (500, 108), (1000, 8), (10_000, 8)]  # the plot cuts what is beyond
    (band,) = every(html, "polygon", "range")
    assert len(band.get("points").split()) == 8
    (mark,) = every(html, "circle", "dot")
    assert (mark.get("cx"), mark.get("cy")) == ("50%", "108")
    across, upright = every(html, "line", "whisker")
    assert (across.get("x1"), across.get("x2")) == ("0%", "100%")
    assert (upright.get("y1"), upright.get("y2")) == ("8", "208")  # 1.0, and 0.25 cut at 0.5
    assert {"0 %", "2 %", "10 %", "50 %", "100 %"} <= {e.text for e in every(html, "text")}


@pytest.mark.parametrize(
    ("ends", "steps", "ticks"),
    [
        ((0, 1), 5, ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]),
        ((0, 1), 2, ["0 %", "50 %", "100 %"]),
        ((0.95, 1), 5, ["95 %", "96 %", "97 %", "98 %", "99 %", "100 %"]),
    ],
)
def test_plane_axes_have_round_numbers(ends, steps, ticks):
    html = plane_html([Curve((0, 1), (0, 1))], label="", x_words="x", y_words="y", x_ends=ends,
                      steps=steps)  # fmt: skip
    *_, last = html.split('class="chart"')
    assert re.findall(r">([^<]* %)</text>", last) == ticks


def test_cost_curve_marks_the_choice_within_its_interval():
    thresholds, costs = [0.0, 0.25, 0.5, 1.0], [8.0, 2.0, 4.0, 100.0]
    band = ([6.0, 1.0, 3.0, 50.0], [10.0, 3.0, 6.0, 200.0])
    html = cost_curve_html(thresholds, costs, chosen=0.25, band=band)
    (mark,) = every(html, "circle", "dot")
    assert mark.get("cx") == "25%"
    (whisker,) = every(html, "line", "whisker")
    middle = (float(whisker.get("y1")) + float(whisker.get("y2"))) / 2
    assert middle == pytest.approx(float(mark.get("cy")), abs=0.01)
    assert "chosen 0.25: 2" in html
    assert cost_curve_html([0.5], [1.0], chosen=0.5) == ""
    assert "chosen" in cost_curve_html([0.0, 1.0], [0.0, 0.0], chosen=0.0)
