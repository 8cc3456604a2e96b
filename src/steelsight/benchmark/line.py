"""Whether a pipeline keeps up with a production line, and what would be needed."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from steelsight.benchmark.race import Figures
from steelsight.errors import InputError, first_names

_SPEED = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(m/s|m/min|mm/s)", re.ASCII)
_METRES_PER_SECOND = {"m/s": 1.0, "m/min": 1 / 60, "mm/s": 1e-3}


def parse_speed(text: str) -> float:
    """Metres a second.

    Raises:
        InputError: no number above 0 with one of the units.
    """
    match = _SPEED.fullmatch(text.strip())
    speed = float(match[1]) * _METRES_PER_SECOND[match[2]] if match else 0.0
    if not 0 < speed < math.inf:
        raise InputError(
            f"expected --line-speed such as 10m/s, 600m/min or 800mm/s, got {text!r}; give a "
            "number above 0 with one of these units"
        )
    return speed


MM_PER_PX = (1e-5, 1e4)
"""No camera sees less or more."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a production line asks for. The strip runs down the frames, which do not overlap.

    Attributes:
        metres_per_second: speed of the strip.
        mm_per_px: millimetres of strip in a row of pixels.
        cameras: that this machine serves.
    """

    metres_per_second: float
    mm_per_px: float
    cameras: int = 1

    def __post_init__(self) -> None:
        if not MM_PER_PX[0] <= self.mm_per_px <= MM_PER_PX[1]:
            low, high = MM_PER_PX
            raise InputError(
                f"expected --mm-per-px from {low:g} to {high:g}, got {self.mm_per_px:g}"
            )
        if self.cameras < 1:
            raise InputError(f"expected --cameras from 1, got {self.cameras}")

    def interval_ms(self, rows: int) -> float:
        """Between two frames of one camera, for frames of so many rows."""
        return rows * self.mm_per_px / self.metres_per_second

    def frames_per_second(self, rows: int) -> float:
        """Of all cameras together."""
        return 1e3 * self.cameras / self.interval_ms(rows)


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """Whether a contestant keeps up with a line.

    Attributes:
        reserve: what is left over as a share of what is needed; negative: what is missing.
        cores_needed: of this machine's kind, if speed grows with their number; ``None`` if a GPU
            did the work.
        intervals: p99 of the latency in frame intervals of one camera.
        sentence: all of it, for people.
    """

    keeps_up: bool
    frames_per_second_needed: float
    frames_per_second: float
    reserve: float
    cores_needed: int | None
    intervals: float
    sentence: str


def line_answer(
    line: Line, rows: int, name: str, measured: Figures, cores: int | None
) -> LineAnswer:
    """Does it keep up, with how much in reserve, and what would be needed.

    Args:
        line: what is asked for.
        rows: of a frame.
        name: of the contestant.
        measured: what it can do.
        cores: with which it was measured; ``None`` for one GPU.
    """
    needed, speed = line.frames_per_second(rows), measured.frames_per_second
    keeps_up = speed.median >= needed
    units_needed = math.ceil((cores or 1) * needed / speed.median - 1e-9)
    intervals = measured.ms.p99 / line.interval_ms(rows)
    cameras = "1 camera" if line.cameras == 1 else f"{line.cameras} cameras"
    demand = (
        f"{needed:.1f} frames/s needed ({cameras}, a frame each {line.interval_ms(rows):.1f} ms)"
    )
    unit = "core" if cores else "GPU"
    here = f"the 1 {unit}" if cores in (1, None) else f"the {cores} {unit}s"
    if not keeps_up:
        sentence = (
            f"{name} does not keep up: {demand}, {speed.median:.1f} measured, "
            f"{needed / speed.median:.1f} times too slow; it would take a model that much faster, "
            f"or about {units_needed} {unit}s like {here} used here if speed grows with them"
        )
    else:
        sentence = (
            f"{name} keeps up: {demand}, {speed.median:.1f} measured, "
            f"{100 * (speed.median / needed - 1):.0f} % in reserve; about {units_needed} of "
            f"{here} would do"
        )
        if speed.p10 < needed:
            sentence += f"; in its slowest rounds it made only {speed.p10:.1f}: do not count on it"
    sentence += (
        f". Alone, one frame at a time, it takes {measured.ms.p99:.1f} ms at p99, {intervals:.1f} "
        "frame intervals; with several in work at once longer."
    )
    return LineAnswer(
        keeps_up,
        needed,
        speed.median,
        speed.median / needed - 1,
        units_needed if cores else None,
        intervals,
        sentence,
    )


def rows_of(sizes_wh: Sequence[tuple[int, int]]) -> int:
    """Rows of a frame.

    Raises:
        InputError: frames of several heights.
    """
    heights = sorted({height for _, height in sizes_wh})
    if len(heights) != 1:
        raise InputError(
            "--line-speed needs frames of one height, got "
            f"{first_names(map(str, heights))} rows; give frames of one camera"
        )
    return heights[0]
