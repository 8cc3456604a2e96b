"""Whether a line can be served: cases worked out by hand."""

import re

import pytest

from steelsight.benchmark.line import Line, line_answer, parse_speed, rows_of
from steelsight.benchmark.race import Figures, Spread
from steelsight.errors import InputError


@pytest.mark.parametrize(
    ("text", "metres_per_second"),
    [("10m/s", 10), ("600m/min", 10), ("600 m/min", 10), ("800mm/s", 0.8), (" 1.5 m/s ", 1.5)],
)
def test_speeds(text, metres_per_second):
    assert parse_speed(text) == pytest.approx(metres_per_second)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10",
        "10 km/h",
        "m/s",
        "-1m/s",
        "0m/s",
        "1e3m/s",
        "nanm/s",
        "1,5m/s",
        "9" * 400 + "m/s",
        "١m/s",
    ],
)
def test_wrong_speeds_are_one_clear_line(text):
    with pytest.raises(InputError, match="expected --line-speed such as 10m/s") as refused:
        parse_speed(text)
    assert "\n" not in str(refused.value)


def test_the_demand_of_a_line():
    # 10 m/s at 0.5 mm are 20,000 rows a second: 78.125 frames of 256 rows, 12.8 ms each.
    line = Line(10, 0.5, 2)
    assert line.interval_ms(256) == pytest.approx(12.8)
    assert line.frames_per_second(256) == pytest.approx(156.25)
    # 120 m/min at 0.25 mm: 8,000 rows a second, eight frames of 1,000 rows.
    assert Line(2, 0.25).frames_per_second(1000) == pytest.approx(8)


@pytest.mark.parametrize(
    ("mm_per_px", "cameras", "message"),
    [(0, 1, "from 1e-05 to 10000"), (1e-310, 1, "--mm-per-px"), (-1, 1, "--mm-per-px"),
     (float("inf"), 1, "--mm-per-px"),
     (float("nan"), 1, "--mm-per-px"), (0.5, 0, "--cameras from 1")],
)  # fmt: skip
def test_impossible_lines_are_refused(mm_per_px, cameras, message):
    with pytest.raises(InputError, match=message):
        Line(1, mm_per_px, cameras)


def figures(frames_per_second, p10=None, p99_ms=25.6):
    def spread(median, p10, p99):
        return Spread(median, p10, median, p99, 5)

    speed = spread(frames_per_second, p10 or frames_per_second, frames_per_second)
    return Figures(speed, spread(1, 1, p99_ms), None, None, speed, None, None, {}, {})


def test_too_slow_says_what_would_be_needed():
    answer = line_answer(Line(10, 0.5, 2), 256, "A", figures(25), cores=2)
    assert not answer.keeps_up
    assert answer.reserve == pytest.approx(25 / 156.25 - 1)
    assert answer.cores_needed == 13  # 2 x 156.25 / 25 = 12.5
    assert answer.intervals == pytest.approx(2)
    for told in (
        *("156.2 frames/s needed", "2 cameras", "12.8 ms", "25.0 measured", "6.2 times too slow"),
        *("13 cores", "25.6 ms at p99, 2.0 frame intervals"),
    ):
        assert told in answer.sentence
    assert "\n" not in answer.sentence


def test_keeping_up_says_the_reserve():
    answer = line_answer(Line(1, 0.5), 250, "A", figures(12, p99_ms=100), cores=4)
    assert answer.keeps_up  # 8 needed
    assert answer.reserve == pytest.approx(0.5)
    assert answer.cores_needed == 3
    assert "keeps up" in answer.sentence
    assert "50 % in reserve" in answer.sentence
    assert "slowest" not in answer.sentence
    assert "0.8 frame intervals" in answer.sentence


def test_a_narrow_win_is_no_promise():
    answer = line_answer(Line(1, 0.5), 250, "A", figures(8, p10=6), cores=4)
    assert answer.keeps_up
    assert answer.cores_needed == 4
    assert "in its slowest rounds it made only 6.0" in answer.sentence


def test_frames_of_one_height():
    assert rows_of([(1600, 256), (800, 256)]) == 256
    with pytest.raises(InputError, match=re.escape("got 128, 256 rows")):
        rows_of([(1600, 256), (800, 128)])
