"""Rules that choose thresholds, as functions on arrays; :mod:`.thresholds` makes files of them.

**One scale.** A setting of strictness is a number *a* of allowed alarms: every threshold lies just
above the clean score of rank a + 1. More allowed alarms lower all thresholds together, so that the
NG frames at *a* are among those at *a + 1*. All that a rule must know of a frame is its ``ng_at``:
the fewest allowed alarms at which it is NG.

Shapes: N frames, F faulty frames, E pixel thresholds (``MASK_LOGIT_EDGES``), P points of a curve.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelsight.errors import GateError, InputError
from steelsight.evaluation.intervals import binomial_cdf, bootstrap_groups, percentile_interval
from steelsight.evaluation.metrics import dice_by_threshold
from steelsight.evaluation.predictions import MASK_LOGIT_EDGES, sigmoid

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MIN_AREAS_PX = (0, 50, 100, 200, 400, 800, 1600, 3200, 6400)
"""Least areas of a mask that :func:`best_masks` tries."""

_CURVE_POINTS = 200
_TEMPERATURES = (0.05, 20.0)
_CLOSEST_TO_ZERO = np.argsort(np.abs(MASK_LOGIT_EDGES), kind="stable")


# Recall ------------------------------------------------------------------------------------------


def fewest_for_recall(ng_at_f: Ints, recall: float, most: int) -> int:
    """The fewest allowed alarms at which a share of the faulty frames is NG.

    Args:
        ng_at_f: of the faulty frames; above ``most``: never NG.
        recall: least share, above 0, at most 1.
        most: the largest number of allowed alarms.

    Raises:
        InputError: no setting reaches it.
    """
    # A share such as 0.29 of 100 frames is 28.999999999999996 in floating point.
    wanted = max(math.ceil(recall * len(ng_at_f) - 1e-9), 1)
    fewest = np.sort(ng_at_f)[wanted - 1] if len(ng_at_f) else most + 1
    if fewest > most:
        found = int((ng_at_f <= most).sum())
        raise InputError(
            f"expected a recall of {recall:.6g}, but only {found} of {len(ng_at_f)} faulty frames"
            " are NG at any threshold; ask for less, or look at the others"
        )
    return int(fewest)


# Cost --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Expected cost of a frame by strictness, ``(P,)``, with 95 % intervals.

    Attributes:
        allowed_p: allowed alarms, ascending.
        escape_rate_p: share of the faulty frames that are OK.
        overkill_rate_p: share of the clean frames that are NG.
        cost_p: expected cost of a frame, and its interval ``low_p`` to ``high_p``.
        best: the allowed alarms with the least cost; of equal ones the most.
        best_from, best_to: the settings whose cost cannot be told from that of ``best``: the 95 %
            interval of the difference, on the same drawn frames, holds 0.
        least_cost: at ``best``.
    """

    allowed_p: Ints
    escape_rate_p: Floats
    overkill_rate_p: Floats
    cost_p: Floats
    low_p: Floats
    high_p: Floats
    best: int
    best_from: int
    best_to: int
    least_cost: float

    def to_json(self) -> dict[str, Any]:
        """Lists of numbers with six significant digits."""
        curve = {
            name.removesuffix("_p"): [float(f"{x:.6g}") for x in getattr(self, name)]
            for name in ("escape_rate_p", "overkill_rate_p", "cost_p", "low_p", "high_p")
        }
        return {
            "allowed": self.allowed_p.tolist(),
            **curve,
            "best": self.best,
            "best_from": self.best_from,
            "best_to": self.best_to,
            "least_cost": float(f"{self.least_cost:.6g}"),
        }


class Prices(NamedTuple):
    """What mistakes cost: ``escape x escape rate + overkill x overkill rate`` a frame."""

    escape: float
    overkill: float

    @staticmethod
    def of(escape_cost: float, overkill_cost: float, prevalence: float) -> "Prices":
        """``prevalence x escape_cost`` and ``(1 - prevalence) x overkill_cost``.

        Both rates are of their own kind of frames, so the share of faulty frames among those that
        thresholds are chosen on does not matter (Provost and Fawcett, Robust classification for
        imprecise environments, Machine Learning 2001).

        Args:
            escape_cost: of a faulty frame that is OK.
            overkill_cost: of a clean frame that is NG.
            prevalence: share of faulty frames on the line, 0..1.
        """
        return Prices(prevalence * escape_cost, (1 - prevalence) * overkill_cost)


def least_cost(ng_at_n: Ints, faulty_n: Bools, prices: Prices, most: int) -> tuple[int, float]:
    """The allowed alarms with the least expected cost of a frame; of equal ones the most.

    Args:
        ng_at_n: fewest allowed alarms at which a frame is NG; above ``most``: never.
        faulty_n: labels.
        prices: of mistakes.
        most: the largest number of allowed alarms.

    Returns:
        Allowed alarms and cost.

    Raises:
        InputError: not both kinds of frames.
    """
    escape, overkill = _rates(ng_at_n, faulty_n, most)
    cost = prices.escape * escape + prices.overkill * overkill
    best = int(np.flatnonzero(cost <= cost.min() * (1 + 1e-12))[-1])
    return best, float(cost[best])


def cost_curve(
    ng_at_n: Ints,
    faulty_n: Bools,
    groups_n: Ints,
    prices: Prices,
    most: int,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> CostCurve:
    """Expected cost of a frame at each strictness, with bootstrap intervals.

    Args:
        ng_at_n: as for :func:`least_cost`.
        faulty_n: labels.
        groups_n: the bootstrap draws these.
        prices: of mistakes.
        most: the largest number of allowed alarms.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: not both kinds of frames.
    """
    best, cost = least_cost(ng_at_n, faulty_n, prices, most)
    escape, overkill = _rates(ng_at_n, faulty_n, most)
    # Dense where few alarms are allowed, which is where lines work.
    spread = np.geomspace(1, most + 1, _CURVE_POINTS).round().astype(np.int64) - 1
    allowed_p = np.unique(np.append(spread, best))
    at = int(np.searchsorted(allowed_p, best))
    ng_np = (ng_at_n[:, None] <= allowed_p).astype(np.float32)
    drawn_costs = []
    for weights_rn in bootstrap_groups(groups_n, resamples, seed):
        faulty_rn = weights_rn[:, faulty_n].astype(np.float32)
        clean_rn = weights_rn[:, ~faulty_n].astype(np.float32)
        faulty_r, clean_r = (rn.sum(axis=1, dtype=np.float64) for rn in (faulty_rn, clean_rn))
        both = (faulty_r > 0) & (clean_r > 0)
        escape_rp = 1 - (faulty_rn[both] @ ng_np[faulty_n]) / faulty_r[both, None]
        overkill_rp = (clean_rn[both] @ ng_np[~faulty_n]) / clean_r[both, None]
        drawn_costs.append(prices.escape * escape_rp + prices.overkill * overkill_rp)
    cost_rp = np.concatenate(drawn_costs)
    intervals = np.array([percentile_interval(column) for column in cost_rp.T])
    dearer_rp = cost_rp - cost_rp[:, [at]]
    lowest = np.array([percentile_interval(column)[0] for column in dearer_rp.T])
    alike = allowed_p[lowest <= 0]
    return CostCurve(
        allowed_p=allowed_p,
        escape_rate_p=escape[allowed_p],
        overkill_rate_p=overkill[allowed_p],
        cost_p=(prices.escape * escape + prices.overkill * overkill)[allowed_p],
        low_p=intervals[:, 0],
        high_p=intervals[:, 1],
        best=best,
        best_from=int(alike.min()),
        best_to=int(alike.max()),
        least_cost=cost,
    )


def _rates(ng_at_n: Ints, faulty_n: Bools, most: int) -> tuple[Floats, Floats]:
    """Escape rate and overkill rate at each number of allowed alarms, 0 to ``most``."""
    faulty, clean = int(faulty_n.sum()), int((~faulty_n).sum())
    if not faulty or not clean:
        raise InputError(
            f"expected faulty and clean frames to weigh their costs, got {faulty} faulty and"
            f" {clean} clean ones; add the others"
        )
    ng_at_n = np.minimum(ng_at_n, most + 1)
    escape = 1 - np.bincount(ng_at_n[faulty_n], minlength=most + 2).cumsum()[:-1] / faulty
    overkill = np.bincount(ng_at_n[~faulty_n], minlength=most + 2).cumsum()[:-1] / clean
    return escape, overkill


# Guarantee ---------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def most_escapes(frames: int, rate: float, confidence: float) -> int | None:
    """How many of n faulty frames may escape and still prove an escape rate.

    The largest k with ``P(Bin(n, rate) <= k) <= 1 - confidence``: the exact binomial p-value of the
    hypothesis that the rate is higher.

    Returns:
        k; ``None`` if not even no escape at all proves it.
    """
    may_fail = 1 - confidence
    if binomial_cdf(0, frames, rate) > may_fail:
        return None
    low, high = 0, frames  # the value at low passes, that at high does not: it is 1
    while high - low > 1:
        middle = (low + high) // 2
        passes = binomial_cdf(middle, frames, rate) <= may_fail
        low, high = (middle, high) if passes else (low, middle)
    return low


def best_provable(frames: int, confidence: float) -> float:
    """The least escape rate that n faulty frames without any escape prove: 1 - (1 - c)^(1/n)."""
    return -math.expm1(math.log1p(-confidence) / frames) if frames else 1.0


def frames_needed(rate: float, confidence: float) -> int:
    """The fewest faulty frames that, without any escape, prove an escape rate."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-rate) - 1e-9)


def fewest_guaranteed(
    ng_at_by_claim: Mapping[str, Ints], rate: float, confidence: float, most: int
) -> int:
    """The fewest allowed alarms that keep the escape rate, with a confidence.

    Learn then test (Angelopoulos et al., arXiv 2110.01052) with exact binomial p-values and
    fixed-sequence testing: from the most cautious setting on, the hypothesis "the escape rate is
    above ``rate``" is tested at level ``1 - confidence`` until it can no longer be rejected; the
    last setting that passed is chosen. The sequence is fixed before the faulty frames are looked at
    and escapes only become more along it, so the chosen setting breaks its promise with at most
    that probability, however many settings there are.

    With several claims, such as one for each type, a setting passes only if all pass. The
    hypothesis is then "some claim is broken", which the largest p-value tests at the same level
    (intersection-union test, Berger 1982): no correction for their number is needed.

    Args:
        ng_at_by_claim: ``ng_at`` of independent faulty frames, by what to say of them in a refusal.
        rate: the escape rate to keep, above 0, below 1.
        confidence: above 0, below 1.
        most: the largest number of allowed alarms, the most cautious setting.

    Raises:
        GateError: the frames are too few, or too many of them are never NG.
    """
    too_few = {
        claim: len(ng_at)
        for claim, ng_at in ng_at_by_claim.items()
        if most_escapes(len(ng_at), rate, confidence) is None
    }
    if too_few:
        worst = min(too_few, key=lambda claim: too_few[claim])
        others = [f"{too_few[claim]} {claim}" for claim in too_few if claim != worst]
        raise GateError(
            f"{too_few[worst]} {worst} cannot support {_percent(rate)} at {_percent(confidence)};"
            f" the best provable is {_percent(best_provable(too_few[worst], confidence))};"
            f" you need {frames_needed(rate, confidence)} frames"
            + (f"; also too few: {', '.join(others)}" if others else "")
        )
    fewest = 0
    for claim, ng_at in ng_at_by_claim.items():
        escapes = most_escapes(len(ng_at), rate, confidence) or 0
        # All but the `escapes` frames that are hardest to find must be NG.
        needed = int(np.sort(ng_at)[len(ng_at) - 1 - escapes])
        if needed > most:
            raise GateError(
                f"expected at most {escapes} escapes among {len(ng_at)} {claim} to prove"
                f" {_percent(rate)} at {_percent(confidence)}, but"
                f" {int((ng_at > most).sum())} are OK at any threshold; look at those frames"
            )
        fewest = max(fewest, needed)
    return fewest


def one_of_each_group(frames_n: Bools, groups_n: Ints, order_n: Ints) -> Bools:
    """One of the frames of each group: those are independent, frames of one coil are not.

    Args:
        frames_n: of which to choose.
        groups_n: the groups.
        order_n: the first in this order is taken; it must not depend on any score.
    """
    candidates = np.flatnonzero(frames_n)
    in_order = candidates[np.argsort(order_n[candidates], kind="stable")]
    _, first = np.unique(groups_n[in_order], return_index=True)
    chosen_n = np.zeros(len(frames_n), np.bool_)
    chosen_n[in_order[first]] = True
    return chosen_n


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


# Kaggle's Dice -----------------------------------------------------------------------------------


class MaskRule(NamedTuple):
    """The best thresholds of a type, and what they add to the sum of Dice over frames.

    Attributes:
        gain: against never marking this type.
        passes_from: least score of a frame that is marked; ``None``: none is.
        next_below: the highest score of a frame that is not; 0 if all are marked.
        edge: index of the pixel threshold in ``MASK_LOGIT_EDGES``.
        min_area_px: one of ``MIN_AREAS_PX``.
    """

    gain: float
    passes_from: float | None
    next_below: float
    edge: int
    min_area_px: int


def best_masks(scores_n: Floats, inside_nb: Ints, outside_nb: Ints, looked_at_n: Bools) -> MaskRule:
    """Label, pixel and area threshold of a type with the highest sum of Dice, all tried together.

    A frame that is marked adds its Dice; one that is not adds 1 if the type is not on it. Kaggle's
    Dice is the mean of that over frames and types, so types can be chosen one by one. Of equally
    good thresholds: the least area, then fewer marked frames, then pixel logits next to 0.

    Args:
        scores_n: of the type; of frames whose mask is known or empty.
        inside_nb: pixels by mask logit inside of the labelled mask.
        outside_nb: outside of it.
        looked_at_n: frames that stage 1 does not clear; the others are never marked.
    """
    order = np.flatnonzero(looked_at_n)
    order = order[np.argsort(-scores_n[order], kind="stable")]
    scores = scores_n[order]
    best = MaskRule(0.0, None, 0.0, int(_CLOSEST_TO_ZERO[0]), 0)
    if not len(order):
        return best
    inside, outside = inside_nb[order], outside_nb[order]
    dice_ne = dice_by_threshold(inside, outside)[:, _CLOSEST_TO_ZERO]
    gain_ne = dice_ne - (inside.sum(axis=1) == 0)[:, None]
    area_ne = (inside + outside)[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:][:, _CLOSEST_TO_ZERO]
    # Equal scores are marked together.
    last_of_tie = np.flatnonzero(np.append(np.diff(scores) != 0, True))
    for min_area_px in MIN_AREAS_PX:
        summed = np.where(area_ne >= min_area_px, gain_ne, 0).cumsum(axis=0)[last_of_tie]
        at, edge = np.unravel_index(summed.argmax(), summed.shape)
        if summed[at, edge] > best.gain + 1e-9:
            last = int(last_of_tie[at])
            below = scores[last + 1] if last + 1 < len(scores) else 0.0
            best = MaskRule(
                gain=float(summed[at, edge]),
                passes_from=float(scores[last]),
                next_below=float(below),
                edge=int(_CLOSEST_TO_ZERO[edge]),
                min_area_px=min_area_px,
            )
    return best


# Temperature -------------------------------------------------------------------------------------


def settled_temperature(logits_n: NDArray[np.floating[Any]], faulty: int) -> float:
    """The T for which the mean of ``sigmoid(logit / T)`` is the share of faulty frames.

    For the frames that a first look settles: among them its probabilities mean what they say, so
    that they can stand beside those of stage 1. The share is taken as (faulty + 0.5) / (N + 1).

    Args:
        logits_n: of the settled frames, finite.
        faulty: how many of them are.

    Returns:
        T with five significant digits; the nearest of 0.05 to 20 if none of them fits.
    """
    z = logits_n.astype(np.float64)
    share = (faulty + 0.5) / (len(z) + 1)
    low, high = map(math.log, _TEMPERATURES)
    # Logits below 0 give a mean that grows with T; were they above, it would fall.
    sign = 1 if z.sum() <= 0 else -1
    for _ in range(60):
        middle = (low + high) / 2
        if sign * (float(sigmoid(z / math.exp(middle)).mean()) - share) < 0:
            low = middle
        else:
            high = middle
    return float(f"{math.exp(low):.5g}")


def fit_temperature(logits_n: NDArray[np.floating[Any]], faulty_n: Bools) -> float:
    """The T for which ``sigmoid(logit / T)`` has the least negative log likelihood.

    Guo et al., On calibration of modern neural networks, arXiv 1706.04599. The likelihood is
    convex in 1 / T: bisection of its derivative. The order of frames does not change.

    Args:
        logits_n: finite.
        faulty_n: labels.

    Returns:
        T with five significant digits.

    Raises:
        InputError: the best T lies outside of 0.05 to 20, as when no clean frame scores above a
            faulty one: then any more certainty is better.
    """
    z = logits_n.astype(np.float64)
    low, high = (math.log(1 / t) for t in reversed(_TEMPERATURES))

    def slope(log_power: float) -> float:
        return float((z * (sigmoid(math.exp(log_power) * z) - faulty_n)).mean()) if len(z) else 0.0

    if not slope(low) < 0 < slope(high):
        raise InputError(
            "expected faulty and clean frames whose scores overlap to fit a temperature to, got"
            f" {int(faulty_n.sum())} faulty and {int((~faulty_n).sum())} clean ones whose best"
            " temperature is none of 0.05 to 20; leave --temperature out"
        )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(f"{math.exp(-(low + high) / 2):.5g}")
