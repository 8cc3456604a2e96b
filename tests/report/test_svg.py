"""Texts and numbers of charts: well-formed, escaped, short."""

from xml.etree import ElementTree as ET

import pytest

from steelsight.report import svg
from steelsight.report.svg import visible

HOSTILE = '<script>alert("1")</script>\u202e&'


def test_a_chart_is_well_formed_whatever_its_texts_say():
    parts = [svg.text("0", 10, HOSTILE, "caption"), svg.rule(12.5, 1, 2.25, "gap"), svg.baseline(3)]
    text, line, base = ET.fromstring(svg.chart(20, HOSTILE, parts))
    assert text.text == visible(HOSTILE)
    assert (line.get("x1"), line.get("x2"), line.get("y2")) == ("12.5%", "12.5%", "3.25")
    assert (base.get("x2"), base.get("y1")) == ("100%", "3")


@pytest.mark.parametrize(
    ("value", "said"), [(0, "0"), (100, "100"), (1 / 3, "0.333"), (1234.5678, "1234.568")]
)
def test_numbers_are_short(value, said):
    assert svg.number(value) == said
    assert svg.percent(value) == f"{said}%"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 1.jpg", "plain 1.jpg"),
        ("evil\u202egpj.exe", "evil‹U+202E›gpj.exe"),
        ("a\nb\tc", "a‹U+000A›b‹U+0009›c"),
        ("caf\udce9", "caf‹U+DCE9›"),
        ("👩\u200d🔧 划痕", "👩\u200d🔧 划痕"),
    ],
)
def test_what_acts_unseen_becomes_visible(text, shown):
    assert visible(text) == shown
