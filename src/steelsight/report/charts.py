"""The charts of the report: small inline SVG, filled frame by frame in bounded memory.

Written by hand rather than with matplotlib, for three reasons that matter in a report that is
forwarded: x is in per cent and y in px, so a chart takes any width from phone to print while its
text keeps its size; colours are CSS classes (``ok``, ``ng``, ``unknown``), so a chart follows the
light or dark page; and the same numbers always give the same bytes.

A chart is a class with ``add`` for one frame and ``svg`` for the picture.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

import cv2
import numpy as np
import numpy.typing as npt

from steelsight.defects import Defect, DefectClass, Verdict
from steelsight.report import svg
from steelsight.report.overlays import data_uri
from steelsight.report.svg import visible

VERDICTS = (Verdict.OK, Verdict.NG, Verdict.UNKNOWN)

FloatArray = npt.NDArray[np.float64]


class StripMap:
    """The strip from the first frame to the last: verdicts, and below where each type lies.

    All rows share one x axis, the order of the frames. The first row shows the verdicts, each
    further row one type, its height being the width of the frame (x = 0 on top), and the stronger
    the colour the more of that place is defective.

    At most ``columns`` columns are kept. When a further frame does not fit, neighbouring columns
    are added up in pairs and from then on a column holds twice as many frames: 12,568 frames or a
    million need the same memory.
    """

    ROW_PX = 32
    CAPTION_PX = 20
    GAP_PX = 10
    AXIS_PX = 22

    def __init__(self, classes: Sequence[DefectClass], *, columns: int = 360, lanes: int = 16):
        if columns < 2 or columns % 2:
            raise ValueError(f"columns must be even and at least 2, got {columns}")
        self.classes = tuple(classes)
        self.frames = 0
        self.frames_per_column = 1
        self._class_index = {c.id: i for i, c in enumerate(self.classes)}
        self._verdicts = np.zeros((columns, len(VERDICTS)), np.int64)
        self._lane_pixels = np.zeros(columns, np.float64)
        self._area = np.zeros((columns, len(self.classes), lanes), np.float64)

    def add(
        self, verdict: Verdict, defects: Sequence[Defect], size_wh: tuple[int, int] | None
    ) -> None:
        """Takes the next frame; a defect's area counts as spread evenly over its box."""
        columns, _, lanes = self._area.shape
        if self.frames >= columns * self.frames_per_column:
            self._fold()
        column = self.frames // self.frames_per_column
        self.frames += 1
        self._verdicts[column, VERDICTS.index(verdict)] += 1
        if size_wh is None:
            return
        width, height = size_wh
        self._lane_pixels[column] += width * height / lanes
        if not defects:
            return
        # Density per lane from running sums: area left of each lane border, then differences.
        borders = np.linspace(0, width, lanes + 1)
        x0, box_width, area = (
            np.array(values, np.float64)
            for values in zip(
                *((d.bbox_xywh[0], d.bbox_xywh[2], d.area_px) for d in defects), strict=True
            )
        )
        left_of = np.clip((borders[None, :] - x0[:, None]) / box_width[:, None], 0, 1)
        per_lane = np.diff(left_of, axis=1) * area[:, None]
        index = np.array([self._class_index[d.class_id] for d in defects])
        np.add.at(self._area[column], index, per_lane)

    def _fold(self) -> None:
        for array in (self._verdicts, self._lane_pixels, self._area):
            half = len(array) // 2
            array[:half] = array[0::2] + array[1::2]
            array[half:] = 0
        self.frames_per_column *= 2

    def svg(self, targets: Mapping[int, tuple[str, str]] | None = None) -> str:
        """The chart; ``targets`` maps frame numbers from 0 to (href, tooltip) for links.

        Links exist only while every column is one frame: a link to one of many would mislead.
        """
        if not self.frames:
            return ""
        count = math.ceil(self.frames / self.frames_per_column)
        one = self.frames_per_column == 1
        each = "one frame" if one else f"{self.frames_per_column} frames"
        parts = [svg.text("0", 13, f"Verdict, one column is {each}", "caption")]
        top = self.CAPTION_PX
        parts.append(f'<rect class="ok" x="0" y="{top}" width="100%" height="{self.ROW_PX}"/>')
        for column in range(count):
            cells = self._verdict_cells(column, count, top)
            href, tip = (targets or {}).get(column, ("", ""))
            if one and href and cells:
                cells = f'<a href="{escape(href)}">{cells}<title>{escape(visible(tip))}</title></a>'
            parts.append(cells)
        if count <= 120:  # hairlines between frames, where there is room for them
            parts += [svg.rule(100 * c / count, top, self.ROW_PX, "gap") for c in range(1, count)]
        top += self.ROW_PX + self.GAP_PX
        pixels = np.maximum(self._lane_pixels[:count], 1)
        share = self._area[:count] / pixels[:, None, None]  # column, type, lane
        strongest = float(share.max(initial=0))
        if strongest > 0:
            note = f"full colour: {share_text(min(strongest, 1))} of the place is defective"
            parts.append(svg.text("100%", top + 13, note, "tick minor", "end"))
        for index, defect_class in enumerate(self.classes):
            parts.append(svg.text("0", top + 13, defect_class.name, "caption"))
            relative = share[:, index].T / (strongest or 1)
            parts.append(self._band(defect_class.rgb, relative, top + self.CAPTION_PX))
            top += self.CAPTION_PX + self.ROW_PX + self.GAP_PX
        parts.append(self._axis(count, top))
        label = f"Verdicts and places of defects along {self.frames:,} frames"
        return svg.chart(top + self.AXIS_PX, label, parts)

    def _verdict_cells(self, column: int, count: int, top: int) -> str:
        """What is not OK in one column, stacked from below upon the green row.

        A single NG among hundreds must not vanish: it gets at least a quarter of the height, and
        the outline of the cell (see the style sheet) at least one pixel of width.
        """
        ok, ng, unknown = (int(n) for n in self._verdicts[column])
        total = ok + ng + unknown
        bottom = float(top + self.ROW_PX)
        cells = []
        for name, number in (("ng", ng), ("unknown", unknown)):
            if number:
                height = self.ROW_PX * max(number / total, 0.25 if total > number else 1.0)
                height = min(height, bottom - top)
                bottom -= height
                cells.append(
                    f'<rect class="{name}" x="{svg.percent(100 * column / count)}" '
                    f'y="{svg.number(bottom)}" '
                    f'width="{svg.percent(100 / count)}" height="{svg.number(height)}"/>'
                )
        return "".join(cells)

    def _band(self, rgb: tuple[int, int, int], relative: FloatArray, top: int) -> str:
        """One type: an image (lane, column) whose opacity is the share relative to the strongest.

        The square root keeps weak places visible beside strong ones; any defect is at least 40 %.
        """
        alpha = np.where(relative > 0, 0.4 + 0.6 * np.sqrt(np.clip(relative, 0, 1)), 0)
        rgba = np.empty((*alpha.shape, 4), np.uint8)
        rgba[..., :3] = rgb
        rgba[..., 3] = np.round(255 * alpha)
        encoded = cv2.imencode(".png", rgba[..., [2, 1, 0, 3]])[1].tobytes()
        uri = data_uri(encoded, "image/png")
        return (
            f'<rect class="lane" x="0" y="{top}" width="100%" height="{self.ROW_PX}"/>'
            f'<image x="0" y="{top}" width="100%" height="{self.ROW_PX}" '
            f'preserveAspectRatio="none" image-rendering="pixelated" href="{uri}"/>'
        )

    def _axis(self, count: int, top: int) -> str:
        """First, middle and last frame number, counted from 1."""
        marks = [("0%", 1, "start"), ("100%", self.frames, "end")]
        if self.frames >= 9:
            middle = math.ceil(count / 2) * self.frames_per_column  # first frame of that column
            marks.insert(1, (svg.percent(100 * math.ceil(count / 2) / count), middle + 1, "middle"))
        return "".join(
            svg.text(x, top + 8, f"frame {number:,}" if anchor == "start" else f"{number:,}",
                  "tick", anchor)
            for x, number, anchor in marks
        )  # fmt: skip


class ProbabilityHistogram:
    """How sure stage 1 was: one row of bars per verdict over a logit axis.

    On a linear axis nearly every frame sits in the first or last bin; logit bins show the tails,
    which is where escapes and false alarms come from. Every row has its own scale (its highest bar
    is written beside it), and a bin that holds anything is at least 2 px high.
    """

    LIMIT = math.log(0.9999 / 0.0001)
    BINS = 64
    ROW_PX = 64
    HEAD_PX = 24
    GAP_PX = 26
    AXIS_PX = 24
    TICKS: tuple[tuple[float, str], ...] = (
        (0.0001, "major"), (0.001, "minor"), (0.01, "major"), (0.1, "minor"), (0.5, "major"),
        (0.9, "minor"), (0.99, "major"), (0.999, "minor"), (0.9999, "major"),
    )  # fmt: skip

    def __init__(self) -> None:
        self._counts = {verdict: np.zeros(self.BINS, np.int64) for verdict in VERDICTS}

    def add(self, verdict: Verdict, probability: float | None) -> None:
        """Takes one frame; one without a finite probability has no place here."""
        if probability is not None and math.isfinite(probability):
            position = self._position(probability) / 100
            self._counts[verdict][min(int(position * self.BINS), self.BINS - 1)] += 1

    @property
    def total(self) -> int:
        """Frames that have a finite probability."""
        return sum(int(counts.sum()) for counts in self._counts.values())

    @classmethod
    def _position(cls, probability: float) -> float:
        """Per cent of the width at which a probability lies; the ends take what is beyond."""
        p = min(max(probability, 1e-12), 1 - 1e-12)
        return 50 + 50 * min(max(math.log(p / (1 - p)) / cls.LIMIT, -1.0), 1.0)

    def svg(self, lines: Mapping[str, float] | None = None) -> str:
        """The chart; ``lines`` names probabilities that are marked (the thresholds)."""
        rows = [(v, counts) for v, counts in self._counts.items() if counts.any()]
        if not rows:
            return ""
        parts = []
        named = sorted((lines or {}).items(), key=lambda item: item[1])
        top = self.HEAD_PX * len(named)
        for verdict, counts in rows:
            name, highest = verdict.value.lower(), int(counts.max())
            frames = f"{int(counts.sum()):,} {verdict.value}"
            parts.append(svg.text("0", top + 12, f"{frames}, highest bar {highest:,}", "caption"))
            top += self.GAP_PX + self.ROW_PX
            for index in np.flatnonzero(counts):
                height = max(self.ROW_PX * int(counts[index]) / highest, 2)
                left, width = svg.percent(100 * index / self.BINS), svg.percent(100 / self.BINS)
                parts.append(
                    f'<rect class="{name} column" x="{left}" y="{svg.number(top - height)}" '
                    f'width="{width}" height="{svg.number(height)}"/>'
                )
            parts.append(svg.baseline(top))
            top += 12
        top -= 12
        for row, (label, probability) in enumerate(named):
            x = self._position(probability)
            y = self.HEAD_PX * row
            anchor, shift = ("end", -6) if x > 50 else ("start", 6)
            parts.insert(0, svg.rule(x, y, top - y, "threshold"))  # below the text
            said = f"{label} {probability:.3g}"
            parts.append(svg.text(svg.percent(x), y + 12, said, "mark", anchor, shift))
        for value, rank in self.TICKS:
            x = self._position(value)
            anchor = "start" if x < 1 else "end" if x > 99 else "middle"
            label = {0.0001: "≤ 0.0001", 0.9999: "≥ 0.9999"}.get(value, f"{value:g}")
            parts.append(svg.rule(x, top, 5, "tickmark"))
            parts.append(svg.text(svg.percent(x), top + 19, label, f"tick {rank}", anchor))
        label = f"Faulty probability of {self.total:,} frames"
        return svg.chart(top + self.AXIS_PX, label, parts)


def bar_svg(share: float, colour: str) -> str:
    """One bar for a table cell, ``share`` 0..1 of the cell's width."""
    width = svg.percent(100 * min(max(share, 0.0), 1.0))
    return (
        '<svg class="minibar" xmlns="http://www.w3.org/2000/svg" width="100%" height="10" '
        'aria-hidden="true"><rect class="lane" width="100%" height="10" rx="2"/>'
        f'<rect width="{width}" height="10" rx="2" fill="{escape(colour)}"/></svg>'
    )


def line_svg(colour: str, pattern: Sequence[int], *, truth: bool = False) -> str:
    """A short piece of outline for the legend, in the pattern that ``draw_overlay`` uses."""
    dashes = "" if pattern[1] == 0 else f' stroke-dasharray="{" ".join(map(str, pattern))}"'
    return (
        '<svg class="sample" xmlns="http://www.w3.org/2000/svg" width="46" height="14" '
        'aria-hidden="true"><rect class="steel" width="46" height="14" rx="3"/>'
        f'<path d="M4 7H42" stroke="#111" stroke-width="{4 if truth else 6}"/>'
        f'<path d="M4 7H42" stroke="{escape(colour)}" stroke-width="3"{dashes}/></svg>'
    )


def share_text(value: float) -> str:
    """Per cent with two significant digits, at most two decimals: 12 %, 1.2 %, 0.12 %."""
    percent = 100 * value
    if percent == 0:
        return "0 %"
    if percent < 0.01:
        return "< 0.01 %"
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"
