"""Contestants take the same frames in turns, A B C A B C ...; what they come to, and their ratios.

Each round gives one ratio of every contestant to the reference, so that whatever else the machine
does meanwhile meets all of them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steelsight.benchmark.frames import EncodedFrame, Progress, told
from steelsight.errors import EngineError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

STEPS = ("decode", "gate", "segment", "decide")
"""Steps of a frame as results tell them; what is left of its time is the rest."""


class Timed(NamedTuple):
    """One frame from bytes to result line, and how long its steps took."""

    seconds: float
    steps_ms: Mapping[str, float]


class Contestant(Protocol):
    """A pipeline that takes part.

    Attributes:
        name: in the tables.
    """

    name: str

    def one_by_one(self, frames: Sequence[EncodedFrame]) -> list[Timed]:
        """Each frame on its own, with all threads: for latency."""
        ...

    def together(self, frames: Sequence[EncodedFrame]) -> float | None:
        """Seconds for all frames, several in work at once; ``None`` if it cannot do that."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Times of one contestant over R rounds of N frames.

    Attributes:
        single_s_rn: seconds of each frame on its own.
        together_s_r: seconds for all frames, several at once where the contestant can do that.
        steps_ms_rn: milliseconds by step.
    """

    single_s_rn: Floats
    together_s_r: Floats
    steps_ms_rn: Mapping[str, Floats]

    @property
    def frames_per_second_r(self) -> Floats:
        """Throughput of each round."""
        frames_per_second_r: Floats = self.single_s_rn.shape[1] / self.together_s_r
        return frames_per_second_r

    def shares(self) -> dict[str, float]:
        """Share of the time by step; ``rest`` is what no step accounts for. They sum to 1."""
        total_ms = 1e3 * float(self.single_s_rn.sum())
        shares = {step: float(ms_rn.sum()) / total_ms for step, ms_rn in self.steps_ms_rn.items()}
        return shares | {"rest": 1 - sum(shares.values())}


def warm_up(
    contestants: Sequence[Contestant],
    frames: Sequence[EncodedFrame],
    segmented_n: Bools,
    progress: Progress,
) -> list[float]:
    """Lets every contestant take two frames of each kind; returns the seconds it took.

    First frames take longer: memory is allocated, kernels are chosen.
    """
    chosen = [
        frames[i]
        for kind in (True, False)
        for i in np.flatnonzero(segmented_n == kind)[:2].tolist()
    ]
    seconds = []
    for contestant in told(contestants, progress):
        started = time.perf_counter()
        contestant.one_by_one(chosen)
        contestant.together(chosen)
        seconds.append(time.perf_counter() - started)
    return seconds


def race(
    contestants: Sequence[Contestant],
    frames: Sequence[EncodedFrame],
    rounds: int,
    progress: Progress | None = None,
    before_turn: Callable[[int], None] | None = None,
    seed: int = 0,
) -> list[Measured]:
    """Measures in turns: in every round each contestant takes all frames.

    Each round has an order of its own, the same for all: no kind of frame is always the first,
    when the processor has rested.

    Args:
        contestants: in the order of their turns.
        frames: the same for all.
        rounds: how often.
        progress: called with the number of turns done and of all.
        before_turn: called before each turn with the number of the contestant.
        seed: of the orders.

    Raises:
        EngineError: a contestant did not answer every frame.
    """
    shape = (len(contestants), rounds)
    single_s_crn = np.zeros((*shape, len(frames)))
    together_s_cr = np.zeros(shape)
    steps_ms_csrn = np.zeros((len(contestants), len(STEPS), rounds, len(frames)))
    rng = np.random.default_rng(seed)
    for r in range(rounds):
        order_n = rng.permutation(len(frames))
        ordered = [frames[i] for i in order_n]
        for c, contestant in enumerate(contestants):
            if progress:
                progress(r * len(contestants) + c, rounds * len(contestants))
            if before_turn:
                before_turn(c)
            timed = contestant.one_by_one(ordered)
            if len(timed) != len(frames):
                raise EngineError(
                    f"{contestant.name}: expected {len(frames)} results, got {len(timed)}"
                )
            single_s_crn[c, r, order_n] = [t.seconds for t in timed]
            for s, step in enumerate(STEPS):
                steps_ms_csrn[c, s, r, order_n] = [t.steps_ms.get(step, 0.0) for t in timed]
            together_s = contestant.together(ordered)
            together_s_cr[c, r] = single_s_crn[c, r].sum() if together_s is None else together_s
    if progress:
        progress(rounds * len(contestants), rounds * len(contestants))
    return [
        Measured(single_s_rn, together_s_r, dict(zip(STEPS, steps_ms_srn, strict=True)))
        for single_s_rn, together_s_r, steps_ms_srn in zip(
            single_s_crn, together_s_cr, steps_ms_csrn, strict=True
        )
    ]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and percentiles, linearly interpolated, of ``values`` numbers."""

    median: float
    p10: float
    p90: float
    p99: float
    values: int

    @classmethod
    def of(cls, values: ArrayLike) -> "Spread":
        """Of at least one number."""
        flat = np.asarray(values, np.float64).ravel()
        median, p10, p90, p99 = np.percentile(flat, (50, 10, 90, 99)).tolist()
        return cls(median, p10, p90, p99, flat.size)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a contestant comes to; ``None`` where there is no frame of the kind.

    Attributes:
        frames_per_second: over rounds, several frames at once where it can do that.
        ms: latency of all frames, one at a time, and of the two kinds.
        times_as_fast: ratio of the throughput to that of the reference, round by round.
        times_as_fast_cleared, times_as_fast_segmented: the same of the median latency.
        share_of_time: by step; see ``Measured.shares``.
        step_ms_r: median of each step in each round, over the frames on which it ran; not those
            steps that never ran.
    """

    frames_per_second: Spread
    ms: Spread
    ms_cleared: Spread | None
    ms_segmented: Spread | None
    times_as_fast: Spread
    times_as_fast_cleared: Spread | None
    times_as_fast_segmented: Spread | None
    share_of_time: Mapping[str, float]
    step_ms_r: Mapping[str, tuple[float, ...]]


def figures(measured: Measured, reference: Measured, segmented_n: Bools) -> Figures:
    """Medians, spreads, and ratios that pair the rounds.

    Args:
        measured: one contestant.
        reference: what it is compared with, from the same ``race``.
        segmented_n: which frames the first bundle segments.
    """
    ms_rn = 1e3 * measured.single_s_rn

    def of_kind(kind_n: Bools) -> tuple[Spread | None, Spread | None]:
        """Latency of the frames of a kind, and its ratios."""
        if not kind_n.any():
            return None, None
        ours_r, theirs_r = (
            np.median(m.single_s_rn[:, kind_n], axis=1) for m in (measured, reference)
        )
        return Spread.of(ms_rn[:, kind_n]), Spread.of(theirs_r / ours_r)

    ms_cleared, ratio_cleared = of_kind(~segmented_n)
    ms_segmented, ratio_segmented = of_kind(segmented_n)
    return Figures(
        frames_per_second=Spread.of(measured.frames_per_second_r),
        ms=Spread.of(ms_rn),
        ms_cleared=ms_cleared,
        ms_segmented=ms_segmented,
        times_as_fast=Spread.of(measured.frames_per_second_r / reference.frames_per_second_r),
        times_as_fast_cleared=ratio_cleared,
        times_as_fast_segmented=ratio_segmented,
        share_of_time=measured.shares(),
        step_ms_r={
            step: tuple(float(np.median(ms_n[ms_n > 0])) for ms_n in ms_rn)
            for step, ms_rn in measured.steps_ms_rn.items()
            if (ms_rn > 0).any(axis=1).all()
        },
    )


def to_json(value: Any) -> Any:
    """Dataclasses and mappings as objects, floats with six significant digits."""
    if is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {name: to_json(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
