"""Has the line changed: control charts of the NG rate, and drift of light and scores.

The p-chart is Shewhart's (Montgomery, Introduction to Statistical Quality Control, chapter 7; NIST
e-Handbook 6.3.3.2): groups of equally many frames, a centre line from a baseline, limits that a
stable line leaves three times in a thousand. NG is rare, so limits are quantiles and not three
sigma; and the baseline is a sample, so they are those of the next group given it (beta-binomial,
Jeffreys' prior).

Drift is the two-sample Kolmogorov-Smirnov distance between the last frames and a reference. It
needs no bins, unlike the population stability index, and its distribution is known. Frames that
follow each other are alike: they count as fewer (Bartlett's formula for an AR(1) series).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

GROUP = 50
"""Frames in a group of the chart."""
BASELINE_GROUPS = 20
TAIL = 0.00135
"""Beyond each limit, as beyond three sigma of a normal distribution."""
RUN = 9
"""Groups in a row on one side of the median (Nelson 1984, rule 2)."""
WINDOW = 200
"""Frames that are compared with the reference."""
LEAST_WINDOW = 50
QUANTILES = 201
ALPHA = 0.001
"""Chance of a false alarm of all figures together, each time a new window is looked at."""
LEAST_DISTANCE = 0.15
"""Smaller distances are of no practical interest, however sure they are."""


# ------------------------------------------------------------------------------- control chart


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the count of NG frames in a group.

    Attributes:
        centre: mean share in the baseline.
        median: of the count, for runs.
        low, high: counts inside are those of a stable line.
        frames: of the baseline.
    """

    centre: float
    median: int
    low: int
    high: int
    frames: int


@dataclass(frozen=True, slots=True)
class Signal:
    """A group that a stable line would hardly have.

    Attributes:
        group: its index.
        rule: ``above``, ``below`` or ``run``.
        words: for people.
    """

    group: int
    rule: str
    words: str


def limits_of(ng: int, frames: int, group: int = GROUP) -> Limits:
    """Limits of the next group, given the baseline.

    Args:
        ng: NG frames of the baseline.
        frames: its frames; at least one.
        group: frames of a group.
    """
    counts = np.arange(group + 1)
    a, b = ng + 0.5, frames - ng + 0.5
    log_p = [
        math.lgamma(group + 1) - math.lgamma(k + 1) - math.lgamma(group - k + 1)
        + math.lgamma(k + a) + math.lgamma(group - k + b) - math.lgamma(group + a + b)
        + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        for k in counts.tolist()
    ]  # fmt: skip
    below = np.cumsum(np.exp(log_p))
    return Limits(
        centre=ng / frames,
        median=int(np.searchsorted(below, 0.5)),
        low=int(np.searchsorted(below, TAIL, side="right")),
        high=int(np.searchsorted(below, 1 - TAIL)),
        frames=frames,
    )


def signals_of(ng_counts: Sequence[int], limits: Limits, group: int = GROUP) -> list[Signal]:
    """Groups out of control, in their order.

    Args:
        ng_counts: NG frames of each group, after the baseline.
        limits: from ``limits_of``.
        group: frames of a group.
    """
    found = []
    side, length = 0, 0
    for index, ng in enumerate(ng_counts):
        now = (ng > limits.median) - (ng < limits.median)
        side, length = now, (length + 1 if now == side else 1) if now else 0
        told = f"{ng} of {group} frames NG, expected {limits.low} to {limits.high}"
        if ng > limits.high:
            found.append(Signal(index, "above", f"{told}: more defects than before"))
        elif ng < limits.low:
            found.append(Signal(index, "below", f"{told}: fewer than before; is the camera well?"))
        elif length >= RUN:
            where = "above" if side > 0 else "below"
            words = f"{length} groups in a row {where} the middle of the baseline: it has shifted"
            found.append(Signal(index, "run", words))
    return found


# --------------------------------------------------------------------------------------- drift


@dataclass(frozen=True, slots=True)
class Drift:
    """One figure of the last frames against the reference.

    Attributes:
        figure: ``brightness``, ``contrast`` or ``score``.
        frames: in the window.
        distance: Kolmogorov-Smirnov, 0 to 1; ``None`` with too few frames.
        p: how often the reference itself would give such a distance.
        alarm: whether it is both sure and large.
        words: for people.
    """

    figure: str
    frames: int
    distance: float | None
    p: float | None
    alarm: bool
    words: str

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        return {
            "figure": self.figure,
            "frames": self.frames,
            "distance": self.distance,
            "p": self.p,
            "alarm": self.alarm,
            "words": self.words,
        }


ADVICE = {
    "brightness": ("Median brightness", " grey levels", "look at lamp, exposure and lens"),
    "contrast": (
        "Median contrast",
        " grey levels",
        "look at focus, dirt on the lens, and the lamp",
    ),
    "score": (
        "Median score of clear frames",
        "",
        "the steel or the camera is unlike what the model has learned; review some frames",
    ),
}
"""Name, unit and what to do, by figure."""


def quantiles_of(values: ArrayLike) -> list[float]:
    """What a reference keeps of its values, NaN left out; six significant digits."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    found = np.quantile(known, np.linspace(0, 1, QUANTILES))
    return [float(f"{value:.6g}") for value in found]


def drift_of(
    figure: str, values: ArrayLike, reference: Sequence[float], reference_frames: int, figures: int
) -> Drift:
    """Compares the last frames with the reference.

    Args:
        figure: a key of ``ADVICE``.
        values: of the last frames, in their order; NaN left out.
        reference: from ``quantiles_of``.
        reference_frames: how many it was made of.
        figures: how many are looked at together; each may have its part of false alarms.
    """
    name, unit, advice = ADVICE[figure]
    window = np.asarray(values, np.float64)
    window = window[np.isfinite(window)][-WINDOW:]
    n = len(window)
    if n < LEAST_WINDOW:
        words = f"{name}: {n} of the {LEAST_WINDOW} frames that it takes to say something."
        return Drift(figure, n, None, None, alarm=False, words=words)
    distance = _distance(window, np.asarray(reference))
    effective = effective_count(window)
    p = _p_value(distance, effective * reference_frames / (effective + reference_frames))
    alarm = p < ALPHA / figures and distance >= LEAST_DISTANCE
    levels = np.linspace(0, 1, len(reference))
    low, usual, high = np.interp((0.025, 0.5, 0.975), levels, reference)
    told = (
        f"{name} of the last {n} frames is {np.median(window):.3g}{unit}, in the reference "
        f"{usual:.3g} (95 % of frames lie between {low:.3g} and {high:.3g})"
    )
    return Drift(figure, n, distance, p, alarm, f"{told}: {advice}." if alarm else f"{told}.")


def effective_count(values: Floats) -> float:
    """How many independent values say as much as these, which follow each other."""
    centred = values - values.mean()
    spread = float(centred @ centred)
    if spread <= 0:
        return 1.0
    alike = min(max(float(centred[1:] @ centred[:-1]) / spread, 0.0), 0.99)
    return max(1.0, len(values) * (1 - alike) / (1 + alike))


def _distance(window: Floats, reference: Floats) -> float:
    """Largest difference of the two distribution functions."""
    levels = np.linspace(0, 1, len(reference))
    ordered = np.sort(window)
    # Equal quantiles are a step: from below, and from above.
    from_left = levels[np.clip(np.searchsorted(reference, ordered, "left"), 0, len(levels) - 1)]
    from_right = levels[
        np.clip(np.searchsorted(reference, ordered, "right") - 1, 0, len(levels) - 1)
    ]
    inside = np.interp(ordered, reference, levels, left=0.0, right=1.0)
    above = np.maximum(inside, from_right)
    below = np.minimum(inside, from_left)
    n = len(ordered)
    # At ties the window's function jumps over all of them at once.
    upper = np.searchsorted(ordered, ordered, "right") / n
    lower = np.searchsorted(ordered, ordered, "left") / n
    return float(max((upper - above).max(), (below - lower).max(), 0.0))


def _p_value(distance: float, n: float) -> float:
    """Kolmogorov's distribution with Stephens' correction for few values (1970)."""
    root = math.sqrt(n)
    x = (root + 0.12 + 0.11 / root) * distance
    if x < 0.2:
        return 1.0
    terms = (math.exp(-2 * (k * x) ** 2) for k in range(1, 101))
    return min(1.0, 2 * math.fsum(t if k % 2 == 0 else -t for k, t in enumerate(terms)))


def figures_of(
    brightness: ArrayLike, contrast: ArrayLike, clear_scores: ArrayLike
) -> Mapping[str, list[float]]:
    """What a reference keeps, by figure."""
    return {
        "brightness": quantiles_of(brightness),
        "contrast": quantiles_of(contrast),
        "score": quantiles_of(clear_scores),
    }
