"""Charts of the data pages: small inline SVG and HTML, in the manner of :mod:`.charts`.

x is in per cent and y in px, so that a chart takes any width while its text keeps its size; colours
are CSS classes of ``report.css`` and ``data.css``, or the colour of a type; the same numbers always
give the same bytes. Every text is escaped here.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from html import escape

import cv2
import numpy as np
import numpy.typing as npt

from steelsight.report import svg
from steelsight.report.charts import share_text
from steelsight.report.overlays import data_uri
from steelsight.report.svg import visible

PALETTE = (
    "#2f9bff", "#b388ff", "#00d0e0", "#ff7ac8", "#8bc34a", "#ffb74d", "#ff8a65", "#4db6ac",
    "#d4c94f", "#9fa8da", "#f06292", "#a1887f",
)  # fmt: skip
"""Colours of types by their position, over again beyond the twelfth; light enough to stand out from
steel, dark enough for white paper."""

MAX_POINTS = 1000
"""Columns of a sequence, at most."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: ``value`` is drawn and written, ``note`` follows it."""

    label: str
    value: float
    note: str = ""
    colour: str | None = None


@dataclass(frozen=True, slots=True)
class BinnedRow:
    """One row of a histogram: bins from ``edges[i]`` up to ``edges[i + 1]``, and their middle.

    ``edges`` grow by one factor; rows of one chart share the first edge and that factor.
    """

    label: str
    edges: Sequence[float]
    counts: Sequence[int]
    median: float | None = None
    colour: str | None = None


Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Dot:
    """One measured figure: a dot at ``value`` with whiskers over ``interval``.

    ``said`` is written as it is, ``note`` softly behind or below it; a figure that could not be
    measured has no value and says so there.
    """

    label: str
    value: float | None
    interval: Interval | None = None
    said: str = ""
    note: str = ""
    colour: str | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through ``(x, y)``, finite and in order; ``band`` is (lower, upper) around it."""

    x: Sequence[float]
    y: Sequence[float]
    colour: str = "var(--link)"
    dashed: bool = False
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a plane, with whiskers where intervals are known."""

    x: float
    y: float
    label: str = ""
    x_interval: Interval | None = None
    y_interval: Interval | None = None
    colour: str = "var(--ink)"
    radius_px: float = 5


def bars_svg(bars: Sequence[Bar], *, label: str) -> str:
    """Horizontal bars on a common scale from 0; each has its text above it.

    Args:
        bars: from top to bottom; values from 0 up.
        label: what the chart shows, for those who do not see it.
    """
    row_px, bar_px = 40, 12
    most = max((bar.value for bar in bars), default=0) or 1
    parts = []
    for index, bar in enumerate(bars):
        top = index * row_px
        said = f"{bar.value:,.0f}{' · ' + bar.note if bar.note else ''}"
        parts += [
            svg.text("0", top + 14, bar.label, "caption"),
            svg.text("100%", top + 14, said, "tick", "end"),
            f'<rect class="lane" x="0" y="{top + 20}" width="100%" height="{bar_px}" rx="2"/>',
        ]
        if bar.value > 0:  # also a single frame of 12,568 is seen
            width = svg.percent(max(100 * bar.value / most, 0.4))
            parts.append(
                f'<rect {_fill(bar.colour)} x="0" y="{top + 20}" width="{width}"'
                f' height="{bar_px}" rx="2"/>'
            )
    return svg.chart(row_px * len(bars), label, parts) if bars else ""


def histogram_svg(rows: Sequence[BinnedRow], *, label: str, unit: str = "") -> str:
    """Rows of columns over one logarithmic axis; a line marks the median of each row.

    Every row has its own height (its highest column is written beside it), and a bin that holds
    anything is at least 2 px high.

    Args:
        rows: from top to bottom; rows without numbers are left out.
        label: what the chart shows.
        unit: written behind the medians.
    """
    rows = [row for row in rows if any(row.counts)]
    if not rows:
        return ""
    first, factor = rows[0].edges[0], rows[0].edges[1] / rows[0].edges[0]
    filled = [np.flatnonzero(row.counts) for row in rows]
    low = min(int(f[0]) for f in filled)
    high = max(int(f[-1]) for f in filled) + 1
    bins = high - low

    def place(value: float) -> float:
        """Per cent of the width."""
        return 100 * (math.log(value / first) / math.log(factor) - low) / bins

    row_px, caption_px, gap_px, axis_px = 52, 24, 12, 24
    parts, top = [], 0
    for row in rows:
        highest = max(row.counts)
        total = f"{sum(row.counts):,}"
        middle = "" if row.median is None else f" · median {_round(row.median)}{_unit(unit)}"
        parts.append(svg.text("0", top + 14, f"{row.label} · {total}{middle}", "caption"))
        parts.append(svg.text("100%", top + 14, f"highest {highest:,}", "tick minor", "end"))
        top += caption_px + row_px
        for index in np.flatnonzero(row.counts).tolist():
            height = max(row_px * row.counts[index] / highest, 2)
            low_edge, high_edge = row.edges[index], row.edges[index + 1]
            tip = f"{_round(low_edge)} to {_round(high_edge)}{_unit(unit)}: {row.counts[index]:,}"
            parts.append(
                f'<rect {_fill(row.colour, "bin")} x="{svg.percent(100 * (index - low) / bins)}"'
                f' y="{svg.number(top - height)}" width="{svg.percent(100 / bins)}"'
                f' height="{svg.number(height)}"><title>{escape(tip)}</title></rect>'
            )
        parts.append(svg.baseline(top))
        if row.median is not None:
            parts.append(svg.rule(place(row.median), top - row_px, row_px, "middle"))
        top += gap_px
    top -= gap_px
    ticks = _log_ticks(first * factor**low, first * factor**high)
    for index, value in enumerate(ticks):
        x = place(value)
        anchor = "start" if x < 3 else "end" if x > 92 else "middle"
        rank = "major" if index % 2 == 0 or len(ticks) <= 5 else "minor"
        parts.append(svg.rule(x, top, 5, "tickmark"))
        # Moved in from the right end, it would lie upon a close neighbour.
        if anchor != "end" or index == 0 or x - place(ticks[index - 1]) > 22:
            parts.append(svg.text(svg.percent(x), top + 19, _round(value), f"tick {rank}", anchor))
    return svg.chart(top + axis_px, label, parts)


def sequence_svg(
    values: Sequence[float],
    medians: Sequence[tuple[int, float]] = (),
    *,
    label: str,
    unit: str = "",
    height_px: int = 120,
) -> str:
    """Values in their order: a band from the least to the greatest, and a running median on it.

    Beyond ``MAX_POINTS`` values a column of the band covers several: no outlier is lost.

    Args:
        values: finite, in order.
        medians: (position in ``values``, running median).
        label: what the chart shows.
        unit: written behind the least and the greatest value.
        height_px: of the plot without its axis.
    """
    if not len(values):
        return ""
    numbers = np.asarray(values, np.float64)
    caption_px = 24
    count = len(numbers)
    columns = min(count, MAX_POINTS)
    first = np.arange(columns) * count // columns
    lows, highs = np.minimum.reduceat(numbers, first), np.maximum.reduceat(numbers, first)
    least, most = float(numbers.min()), float(numbers.max())
    margin = 0.06 * (most - least) or 1.0
    scale = height_px / (most - least + 2 * margin)

    def y(value: float) -> float:
        return (most + margin - value) * scale

    # A column is as wide as the values it covers; where it holds one value, it is 4 px high.
    left = 1000 * first / count
    right = np.append(left[1:], 1000.0)
    band = "".join(
        f"M{a:.1f} {y(h) - 2:.1f}H{b:.1f}V{y(lo) + 2:.1f}H{a:.1f}z"
        for a, b, lo, h in zip(left, right, lows.tolist(), highs.tolist(), strict=True)
    )
    line = ""
    if medians:
        points = " ".join(f"{1000 * (i + 0.5) / count:.1f},{y(v):.1f}" for i, v in medians)
        line = f'<polyline class="running" points="{points}"/>'
    dots = " dots" if columns == count else ""
    said = f"{_round(least)} to {_round(most)}{_unit(unit)}"
    parts = [
        svg.text("0", 14, said, "caption"),
        f'<rect class="lane" x="0" y="{caption_px}" width="100%" height="{height_px}" rx="3"/>',
        f'<svg x="0" y="{caption_px}" width="100%" height="{height_px}"'
        f' viewBox="0 0 1000 {height_px}" preserveAspectRatio="none">'
        f'<path class="envelope{dots}" d="{band}"/>{line}</svg>',
    ]
    bottom = caption_px + height_px
    parts.append(svg.text("0", bottom + 16, "frame 1", "tick"))
    parts.append(svg.text("100%", bottom + 16, f"{count:,}", "tick", "end"))
    return svg.chart(bottom + 22, label, parts)


def heat_html(
    coverage: Sequence[Sequence[float]],
    frame_wh: tuple[int, int],
    *,
    title: str,
    note: str,
    strongest: float,
) -> str:
    """A map of the frame: the brighter a cell, the more often it is covered.

    Args:
        coverage: rows of cells, 0..1.
        frame_wh: the frame in pixels, which gives the aspect and the axis.
        title: caption.
        note: beside the caption.
        strongest: coverage of the brightest colour; maps to be compared share it.
    """
    cells = np.asarray(coverage, np.float64) / (strongest or 1)
    width, height = frame_wh
    middle = f"<span>{width // 2:,}</span>" if width >= 4 else ""
    said = f"{title}: {note}; map of {width} x {height} px"
    return (
        f'<figure class="heat"><figcaption><b>{escape(visible(title))}</b>'
        f"<span>{escape(visible(note))}</span></figcaption>"
        f'<img src="{_ramp_uri(cells)}" alt="{escape(visible(said))}"'
        f' style="aspect-ratio:{width}/{height}">'
        f'<div class="axis"><span>0, 0</span>{middle}'
        f"<span>{width:,} x {height:,} px</span></div></figure>"
    )


def ramp_html(strongest: float) -> str:
    """The colours of :func:`heat_html` from nothing to ``strongest``."""
    uri = _ramp_uri(np.linspace(0, 1, 64)[None])
    return (
        f'<div class="ramp"><span>never</span><img src="{uri}" alt="colour scale">'
        f"<span>{escape(share_text(strongest))} of the masks of a type cover the place</span>"
        "</div>"
    )


def matrix_html(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """How often things occur together: counts, and their share of the row's own count.

    Args:
        names: of rows and columns.
        counts: square; the diagonal holds how often each occurs at all.
    """
    shown = [escape(visible(name)) for name in names]
    head = "".join(f'<th class="num" scope="col">{name}</th>' for name in shown)
    lines = []
    for i, row in enumerate(counts):
        cells = []
        for j, number in enumerate(row):
            share = number / row[i] if row[i] else 0.0
            if i == j:
                cells.append(f'<td class="self">{number:,}</td>')
            else:
                told = f"<small>{share_text(share)}</small>" if number else ""
                cells.append(f'<td style="--share:{share:.3f}">{number:,}{told}</td>')
        lines.append(f'<tr><th scope="row">{shown[i]}</th>{"".join(cells)}</tr>')
    return (
        '<div class="scroll"><table class="matrix"><thead><tr><th></th>'
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def confusion_html(
    row_names: Sequence[str],
    column_names: Sequence[str],
    counts: Sequence[Sequence[int]],
    *,
    right: Collection[tuple[int, int]] = (),
) -> str:
    """Counts by truth (rows) and answer (columns), shaded by their share of the row.

    ``right`` holds (row, column) of the cells in which truth and answer agree: they are framed.
    """
    head = "".join(
        f'<th class="num" scope="col">{escape(visible(name))}</th>' for name in column_names
    )
    lines = []
    for i, (name, row) in enumerate(zip(row_names, counts, strict=True)):
        total = sum(row)
        cells = []
        for j, number in enumerate(row):
            framed = ' class="agree"' if (i, j) in right else ""
            if number:
                share = number / total
                told = f"{number:,}<small>{escape(whole_share(share))}</small>"
                cells.append(f'<td{framed} style="--share:{share:.3f}">{told}</td>')
            else:
                cells.append(f'<td{framed}><span class="soft">0</span></td>')
        shown = escape(visible(name))
        lines.append(f'<tr><th scope="row">{shown}</th>{"".join(cells)}</tr>')
    return (
        '<div class="scroll"><table class="matrix"><thead><tr><th></th>'
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def whole_share(value: float) -> str:
    """Whole per cent, but never a rounded 0 % or 100 %."""
    if 0 < value < 0.005:
        return "< 1 %"
    return "> 99 %" if 0.995 <= value < 1 else f"{100 * value:.0f} %"


def stacked_svg(rows: Sequence[tuple[str, Sequence[tuple[str, str, int]]]], *, label: str) -> str:
    """Bars of 100 % each, of segments that stand side by side with their counts above.

    A segment that holds anything is at least 4 px wide: 1 frame of 12,568 is seen.

    Args:
        rows: from top to bottom: name, and segments as (words, CSS class, count). Rows without a
            count are left out.
        label: what the chart shows.
    """
    parts, top = [], 0
    for name, segments in rows:
        total = sum(count for _, _, count in segments)
        if not total:
            continue
        said = " · ".join(f"{count:,} {words}" for words, _, count in segments if count)
        parts.append(svg.text("0", top + 14, f"{name}: {said}", "caption"))
        inside, left = [], 0.0
        for _, css, count in segments:
            width = 100 * count / total
            if count:
                inside.append((css, left, width))
            left += width
        # The small ones last: their least width lies upon their neighbours.
        for css, left, width in sorted(inside, key=lambda entry: -entry[2]):
            at = f'y="{top + 22}" height="24"'
            if width < 3:
                # One that ends at the right border grows to the left.
                x = 'x="100%" transform="translate(-4)"'
                if left + width < 99.9:
                    x = f'x="{svg.percent(left)}"'
                parts.append(f'<rect class="{css} column" {x} width="4" {at}/>')
            parts.append(
                f'<rect class="{css} column" x="{svg.percent(left)}" width="{svg.percent(width)}"'
                f" {at}/>"
            )
        top += 62
    return svg.chart(top - 10, visible(label), parts) if parts else ""


def dots_html(
    dots: Sequence[Dot],
    *,
    label: str,
    ends: Interval = (0.0, 1.0),
    end_words: tuple[str, str] = ("0", "1"),
) -> str:
    """Rows of name, dot with whiskers on a common scale, and the figure in numbers.

    Args:
        dots: from top to bottom.
        label: what the chart shows, for those who do not see it.
        ends: of the scale.
        end_words: what is written below its ends.
    """
    if not dots:
        return ""
    rows = []
    for dot in dots:
        note = f"<small>{escape(visible(dot.note))}</small>" if dot.note else ""
        rows.append(
            f'<span class="name">{escape(visible(dot.label))}</span>{_whisker_svg(dot, ends)}'
            f'<span class="said">{escape(visible(dot.said))}{note}</span>'
        )
    low, high = (escape(words) for words in end_words)
    rows.append(f'<span></span><span class="ends"><i>{low}</i><i>{high}</i></span><span></span>')
    shown = escape(visible(label))
    return f'<div class="dots" role="group" aria-label="{shown}">{"".join(rows)}</div>'


def _whisker_svg(dot: Dot, ends: Interval) -> str:
    low, high = ends

    def place(value: float) -> float:
        return 100 * (min(max(value, low), high) - low) / (high - low)

    parts = ['<rect class="lane" x="0" y="4" width="100%" height="14" rx="3"/>']
    if dot.interval is not None:
        left, right = (svg.percent(place(v)) for v in dot.interval)
        parts.append(f'<line class="whisker" x1="{left}" x2="{right}" y1="11" y2="11"/>')
        parts += [svg.rule(place(v), 6, 10, "whisker") for v in dot.interval]
    if dot.value is not None:
        parts.append(
            f'<circle {_fill(dot.colour, "dot")} cx="{svg.percent(place(dot.value))}" cy="11"'
            ' r="5"/>'
        )
    return (
        '<svg class="whiskers" xmlns="http://www.w3.org/2000/svg" width="100%" height="22"'
        f' aria-hidden="true">{"".join(parts)}</svg>'
    )


def columns_svg(
    dots: Sequence[Dot], *, label: str, level: float | None = None, height_px: int = 72
) -> str:
    """A figure in neighbouring bins, 0 to 1 upward: a dot with whiskers in each.

    Args:
        dots: from left to right; ``said`` stands above, ``label`` and ``note`` below.
        label: what the chart shows.
        level: the figure over all bins, a line behind the dots.
        height_px: from 0 to 1.
    """
    if not dots:
        return ""
    head, foot, each = 18, 38, 100 / len(dots)

    def y(value: float) -> float:
        return head + 5 + height_px * (1 - min(max(value, 0.0), 1.0))

    parts = [f'<rect class="lane" x="0" y="{head}" width="100%" height="{height_px + 10}" rx="3"/>']
    if level is not None:
        at = svg.number(y(level))
        parts.append(f'<line class="level" x1="0" x2="100%" y1="{at}" y2="{at}"/>')
    for index, dot in enumerate(dots):
        middle = each * (index + 0.5)
        x = svg.percent(middle)
        if index:
            parts.append(svg.rule(each * index, head, height_px + 10, "gap"))
        if dot.interval is not None:
            top, bottom = y(dot.interval[1]), y(dot.interval[0])
            parts.append(svg.rule(middle, top, bottom - top, "whisker"))
            parts += [
                f'<svg x="{x}" y="{svg.number(at)}" overflow="visible">'
                '<path class="whisker" d="M-4 0H4"/></svg>'
                for at in (top, bottom)
            ]
        if dot.value is not None:
            parts.append(
                f'<circle {_fill(dot.colour, "dot")} cx="{x}" cy="{svg.number(y(dot.value))}"'
                ' r="5"/>'
            )
        parts.append(svg.text(x, head - 6, dot.said, "caption", "middle"))
        bottom_px = head + height_px + 10
        parts.append(svg.text(x, bottom_px + 15, dot.label, "tick", "middle"))
        parts.append(svg.text(x, bottom_px + 30, dot.note, "tick faint", "middle"))
    return svg.chart(head + height_px + 10 + foot, visible(label), parts)


def plane_html(
    curves: Sequence[Curve],
    marks: Sequence[Mark] = (),
    *,
    label: str,
    x_words: str,
    y_words: str,
    x_ends: Interval = (0.0, 1.0),
    y_ends: Interval = (0.0, 1.0),
    x_text: Callable[[float], str] = share_text,
    y_text: Callable[[float], str] = share_text,
    steps: int = 5,
    height_px: int = 240,
) -> str:
    """Curves and marked points over two linear axes; what lies beyond the ends is cut off.

    Args:
        curves: the first one on top.
        marks: the first one on top; a mark beyond the ends is left out, its whiskers are cut.
        label: what the chart shows, for those who do not see it.
        x_words: below the axis.
        y_words: above the axis.
        x_ends: of the axis.
        y_ends: of the axis.
        x_text: writes a number of the axis.
        y_text: writes a number of the axis.
        steps: between the numbers of an axis, about.
        height_px: of the plot without its texts.
    """
    head = 8
    bottom = head + height_px
    (x_low, x_high), (y_low, y_high) = x_ends, y_ends

    def x(value: float) -> float:
        """Per cent of the width."""
        return 100 * (value - x_low) / (x_high - x_low)

    def y(value: float) -> float:
        return bottom - height_px * (value - y_low) / (y_high - y_low)

    x_ticks, y_ticks = _axis_ticks(*x_ends, steps), _axis_ticks(*y_ends, steps)
    parts = [
        f'<line class="grid" x1="0" x2="100%" y1="{svg.number(y(v))}" y2="{svg.number(y(v))}"/>'
        for v in y_ticks
    ]
    parts += [svg.rule(x(v), head, height_px, "grid") for v in x_ticks]
    drawn = "".join(_curve_path(curve, x, y) for curve in reversed(curves))
    parts.append(
        f'<svg x="0" y="{head}" width="100%" height="{height_px}"'
        f' viewBox="0 {head} 1000 {height_px}" preserveAspectRatio="none">{drawn}</svg>'
    )
    parts.append(svg.baseline(bottom))
    for value in x_ticks:
        at = x(value)
        anchor = "start" if at < 3 else "end" if at > 97 else "middle"
        parts.append(svg.text(svg.percent(at), bottom + 17, x_text(value), "tick", anchor))
    parts.append(svg.text("50%", bottom + 36, x_words, "tick", "middle"))
    for mark in reversed(marks):
        if x_low <= mark.x <= x_high and y_low <= mark.y <= y_high:
            parts += _mark_parts(mark, x, y, x_ends, y_ends)
    scale = [
        svg.text("100%", round(y(value)) + 4, y_text(value), "tick", "end", -6) for value in y_ticks
    ]
    height = bottom + 44
    return (
        f'<div class="plane"><p class="axis-words">{escape(visible(y_words))}</p>'
        f"{svg.chart(height, '', scale)}{svg.chart(height, visible(label), parts)}</div>"
    )


def cost_curve_html(
    thresholds: Sequence[float],
    costs: Sequence[float],
    *,
    chosen: float,
    band: tuple[Sequence[float], Sequence[float]] | None = None,
    x_words: str = "threshold",
    y_words: str = "cost per frame",
) -> str:
    """Cost per frame over a threshold, from 0 up, with the interval around it and the choice.

    Args:
        thresholds: ascending.
        costs: of a frame at each of them.
        chosen: the threshold that was taken; its cost is that of the nearest one.
        band: lower and upper ends of the interval of each cost.
        x_words: below the axis.
        y_words: above the axis.
    """
    if len(thresholds) < 2 or not thresholds[0] < thresholds[-1]:
        return ""
    nearest = min(range(len(thresholds)), key=lambda i: abs(thresholds[i] - chosen))
    highest = max(max(costs), max(band[1]) if band else 0.0)
    # Beyond ten times the choice nobody works; the way there would flatten what matters.
    top = min(highest, 10 * costs[nearest]) if costs[nearest] > 0 else highest
    interval = (band[0][nearest], band[1][nearest]) if band else None
    return plane_html(
        [Curve(thresholds, costs, band=band)],
        [Mark(chosen, costs[nearest], f"chosen {_round(chosen)}: {_round(costs[nearest])}",
              y_interval=interval)],
        label=f"{y_words} over {x_words}",
        x_words=x_words,
        y_words=y_words,
        x_ends=(thresholds[0], thresholds[-1]),
        y_ends=(0, 1.05 * top or 1),
        x_text=_round,
        y_text=_round,
    )  # fmt: skip


def _curve_path(curve: Curve, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """The line and its band, x in thousandths of the width."""

    def points(values: Sequence[float]) -> list[str]:
        return [f"{10 * x(a):.1f},{y(b):.1f}" for a, b in zip(curve.x, values, strict=True)]

    colour = escape(curve.colour)
    band = ""
    if curve.band is not None:
        lower, upper = curve.band
        around = " ".join([*points(upper), *reversed(points(lower))])
        band = f'<polygon class="range" fill="{colour}" points="{around}"/>'
    dashes = ' stroke-dasharray="4 4"' if curve.dashed else ""
    line = " ".join(points(curve.y))
    return f'{band}<polyline class="curve" stroke="{colour}"{dashes} points="{line}"/>'


def _mark_parts(
    mark: Mark,
    x: Callable[[float], float],
    y: Callable[[float], float],
    x_ends: Interval,
    y_ends: Interval,
) -> list[str]:
    at_x, at_y = x(mark.x), y(mark.y)
    parts = []
    if mark.x_interval is not None:
        left, right = (svg.percent(x(float(np.clip(v, *x_ends)))) for v in mark.x_interval)
        level = svg.number(at_y)
        parts.append(f'<line class="whisker" x1="{left}" x2="{right}" y1="{level}" y2="{level}"/>')
    if mark.y_interval is not None:
        low, high = (y(float(np.clip(v, *y_ends))) for v in mark.y_interval)
        parts.append(svg.rule(at_x, high, low - high, "whisker"))
    parts.append(
        f'<circle class="dot" fill="{escape(mark.colour)}" cx="{svg.percent(at_x)}"'
        f' cy="{svg.number(at_y)}" r="{svg.number(mark.radius_px)}"/>'
    )
    if mark.label:
        anchor, shift = ("end", -10) if at_x > 50 else ("start", 10)
        # Beside the point and off its curve: below it, unless that is outside of the plot.
        below = 22 if at_y < y(y_ends[0]) - 28 else -12
        parts.append(
            svg.text(svg.percent(at_x), round(at_y) + below, mark.label, "mark", anchor, shift)
        )
    return parts


def _axis_ticks(low: float, high: float, steps: int) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``steps + 1`` and never more."""
    raw = (high - low) / steps
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{i * step:.9g}") for i in range(first, last + 1)]


def _ramp_uri(values: npt.NDArray[np.float64]) -> str:
    """A picture of one pixel per cell, 0..1 in colours.

    Viridis makes even steps to the eye, also for the colour-blind and in grey; the square root
    keeps weak places visible.
    """
    level = np.round(255 * np.sqrt(np.clip(values, 0, 1))).astype(np.uint8)
    coloured = cv2.applyColorMap(level, cv2.COLORMAP_VIRIDIS)
    return data_uri(cv2.imencode(".png", coloured)[1].tobytes(), "image/png")


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in the range; with 2 and 5 between them, or all powers of two, if few."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(ticks) >= 4:
            return ticks
    return ticks or [low, high]


def _fill(colour: str | None, name: str = "") -> str:
    """The class of a shape, and its colour where it has one of its own."""
    if colour is None:
        return f'class="{f"neutral {name}".strip()}"'
    return (f'class="{name}" ' if name else "") + f'fill="{escape(colour)}"'


def _round(value: float) -> str:
    """Three significant digits, with thousands."""
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""
