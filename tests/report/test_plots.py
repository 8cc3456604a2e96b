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
    bars_svg,
    heat_html,
    histogram_svg,
    matrix_html,
    ramp_html,
    sequence_svg,
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
