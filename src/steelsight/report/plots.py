"""Charts of the data pages: small inline SVG and HTML, in the manner of :mod:`.charts`.

x is in per cent and y in px, so that a chart takes any width while its text keeps its size; colours
are CSS classes of ``report.css`` and ``data.css``, or the colour of a type; the same numbers always
give the same bytes. Every text is escaped here.
"""

import math
from collections.abc import Sequence
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
