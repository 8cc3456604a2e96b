"""Figures of a network from its predictions, by type and never hidden in a mean over frames.

**Clean frames** are the negatives of every ranking figure, also of a type's: what matters on a line
is how often good steel raises that type's alarm.

**False alarms.** A share x of n clean frames allows ``floor(x n)`` of them at or above a threshold.
The threshold is the lowest number that allows no more: just above the clean score ranked
``floor(x n) + 1`` from the top. Equal scores stand and fall together: a tie at that rank costs
recall and never a false alarm more than allowed. Fewer than 1 / x clean frames allow none.

**Detection** is the mean recall while that share goes from 0 to 10 %: the area under the steps of
recall over the share, divided by its width; a perfect type has 1, constant scores have 0. Up to 1
and without ties it equals the AUROC.

**NaN.** A score that is NaN or infinite counts against the network: a faulty frame with one ranks
below all others, a clean one above. What cannot be measured is ``None``, never 0 or NaN.

**Dice** is measured frame by frame and type by type, and averaged over the frames that hold the
type. The mean over types gives each type the same weight. Only Kaggle's Dice also counts pairs of
frame and type where mask and label are both empty, as 1. A pair whose type is present and whose
mask is unknown is in neither.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steelsight.evaluation.predictions import MASK_LOGIT_EDGES, Predictions

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

DETECTION_UP_TO = 0.1
LOW_SHARE, HIGH_SHARE = 0.02, 0.05
"""Shares of false alarms at which recall is told: those of the default decision."""

_ZERO_LOGIT = int(np.flatnonzero(MASK_LOGIT_EDGES == 0)[0])
_BLOCK_BYTES = 1 << 25


# Ranking -----------------------------------------------------------------------------------------


class OperatingPoint(NamedTuple):
    """Share of the positives that are found, and the least score that raises an alarm."""

    recall: float
    threshold: float


def auroc(scores: ArrayLike, positive: ArrayLike) -> float | None:
    """Area under the ROC curve: how often a positive ranks above a negative; ties count half.

    Args:
        scores: any numbers whose order matters, ``(N,)``.
        positive: labels, ``(N,)``.

    Returns:
        0..1 (Mann and Whitney's U over the number of pairs); ``None`` unless both labels occur.
    """
    positives, negatives = _split(scores, positive)
    if not len(positives) or not len(negatives):
        return None
    negatives = np.sort(negatives)
    # Twice U in integers: exact however many pairs there are.
    twice = np.searchsorted(negatives, positives, "left") + np.searchsorted(
        negatives, positives, "right"
    )
    return int(twice.sum()) / (2 * len(positives) * len(negatives))


def average_precision(scores: ArrayLike, positive: ArrayLike) -> float | None:
    """Precision averaged over the recall gained at each threshold, without interpolation.

    As scikit-learn's ``average_precision_score``; equal scores are one threshold.

    Returns:
        0..1; ``None`` without positives.
    """
    positives, negatives = _split(scores, positive)
    if not len(positives):
        return None
    thresholds, gained = np.unique(positives, return_counts=True)
    positives, negatives = np.sort(positives), np.sort(negatives)
    true = len(positives) - np.searchsorted(positives, thresholds, "left")
    false = len(negatives) - np.searchsorted(negatives, thresholds, "left")
    return float((gained * (true / (true + false))).sum() / len(positives))


def false_alarm_threshold(scores_clean: ArrayLike, share: float) -> float:
    """The lowest threshold that at most this share of the clean frames reaches.

    Args:
        scores_clean: ``(n,)``, not empty; infinite counts as an alarm at any threshold.
        share: 0..1; allows ``floor(share x n)`` frames.

    Returns:
        The float64 just above the highest score that may not reach it; minus infinity if all may.
    """
    ranked = np.sort(np.asarray(scores_clean, np.float64))[::-1]
    # A share such as 0.29 of 100 frames is 28.999999999999996 in floating point.
    allowed = math.floor(share * len(ranked) + 1e-9)
    if allowed >= len(ranked):
        return -math.inf
    return float(np.nextafter(ranked[allowed], np.inf))


def recall_at_false_alarms(
    scores: ArrayLike, positive: ArrayLike, share: float
) -> OperatingPoint | None:
    """Recall where at most a share of the negatives raises an alarm; see the top of this module.

    Args:
        scores: ``(N,)``.
        positive: labels, ``(N,)``.
        share: of the negatives that may reach the threshold, 0..1.

    Returns:
        Recall and threshold; ``None`` unless both labels occur.
    """
    positives, negatives = _split(scores, positive)
    if not len(positives) or not len(negatives):
        return None
    threshold = false_alarm_threshold(negatives, share)
    found = (positives >= threshold) & (positives > -np.inf)
    return OperatingPoint(float(found.mean()), threshold)


def detection(
    scores_positive: ArrayLike, scores_clean: ArrayLike, up_to: float = DETECTION_UP_TO
) -> float | None:
    """Mean recall over all shares of false alarms from 0 to ``up_to``, exact on the steps.

    Args:
        scores_positive: of frames that hold the type, ``(p,)``.
        scores_clean: of clean frames, ``(n,)``.
        up_to: the largest share, above 0, at most 1.

    Returns:
        0..1; ``None`` if either is empty.
    """
    positives = np.asarray(scores_positive, np.float64)
    negatives = np.asarray(scores_clean, np.float64)
    scores = np.concatenate([positives, negatives])
    positives, negatives = _split(scores, np.arange(len(scores)) < len(positives))
    if not len(positives) or not len(negatives):
        return None
    # Between j / n and (j + 1) / n the j highest negatives are alarms, and the next one is not.
    n = len(negatives)
    starts = np.arange(n) / n
    widths = np.clip(up_to - starts, 0, 1 / n)
    limits = np.sort(negatives)[::-1]
    above = len(positives) - np.searchsorted(np.sort(positives), limits, "right")
    return float(min((widths * above).sum() / (up_to * len(positives)), 1))


def _split(scores: ArrayLike, positive: ArrayLike) -> tuple[Floats, Floats]:
    """Scores of positives and of negatives; NaN and infinity where they harm the figure."""
    values = np.asarray(scores, np.float64)
    labels = np.asarray(positive, np.bool_)
    if values.shape != labels.shape or values.ndim != 1:
        raise ValueError(f"scores {values.shape} and labels {labels.shape} do not fit")
    finite = np.isfinite(values)
    return (
        np.where(finite, values, -np.inf)[labels],
        np.where(finite, values, np.inf)[~labels],
    )


# Masks -------------------------------------------------------------------------------------------


def dice_by_threshold(inside_b: Ints, outside_b: Ints) -> Floats:
    """Dice of masks at each of ``MASK_LOGIT_EDGES``.

    Args:
        inside_b: pixels by mask logit inside of the labelled mask, ``(..., B)``.
        outside_b: outside of it, ``(..., B)``.

    Returns:
        ``2 |P and T| / (|P| + |T|)`` with P the pixels from the edge on, ``(..., B - 1)``; 1 where
        both are empty.
    """
    true = _from_edge_on(inside_b)
    both = true + _from_edge_on(outside_b) + inside_b.sum(axis=-1, keepdims=True)
    dice_e: Floats = np.divide(2 * true, both, out=np.ones(both.shape), where=both > 0)
    return dice_e


def kaggle_dice(
    predictions: Predictions,
    label_from_k: Sequence[float],
    pixel_logit_k: Sequence[float],
    *,
    min_area_px_k: Sequence[int] | None = None,
    clear_below: float = 0.0,
) -> float | None:
    """Mean Dice over all pairs of frame and type, 1 where mask and label are both empty.

    The score of Kaggle's Severstal competition. A mask counts only where the frame is not cleared,
    the type's score passes, and the mask is large enough, as in :mod:`steelsight.decisions`. Pairs
    of which the type is present and its mask unknown are left out.

    Args:
        predictions: of N frames.
        label_from_k: least score by type; a NaN score passes none.
        pixel_logit_k: least mask logit of a pixel by type; the nearest of ``MASK_LOGIT_EDGES``.
        min_area_px_k: least number of pixels of a mask by type.
        clear_below: frames with a lower faulty probability have no masks.

    Returns:
        0..1; ``None`` if no pair can be measured.
    """
    known_nk = predictions.masked_nk | ~predictions.present_nk
    if not known_nk.any():
        return None
    edge_k = nearest_edge(pixel_logit_k)
    true_nk = _at_edge(_from_edge_on(predictions.inside_nkb), edge_k)
    predicted_nk = true_nk + _at_edge(_from_edge_on(predictions.outside_nkb), edge_k)
    passed_nk = predictions.type_scores_nk >= np.asarray(label_from_k)
    passed_nk &= (predictions.faulty_probability >= clear_below)[:, None]
    if min_area_px_k is not None:
        passed_nk &= predicted_nk >= np.asarray(min_area_px_k)
    both_nk = predicted_nk * passed_nk + predictions.inside_nkb.sum(axis=2)
    dice_nk = np.divide(
        2 * true_nk * passed_nk, both_nk, out=np.ones(both_nk.shape), where=both_nk > 0
    )
    return float(dice_nk[known_nk].mean())


def nearest_edge(logits: ArrayLike) -> Ints:
    """Index of the nearest of ``MASK_LOGIT_EDGES``; of two, the lower."""
    distances: Floats = np.abs(np.asarray(logits, np.float64)[..., None] - MASK_LOGIT_EDGES)
    nearest: Ints = distances.argmin(axis=-1)
    return nearest


def _from_edge_on(counts_b: Ints) -> Ints:
    """Pixels at or above each edge, ``(..., B)`` to ``(..., B - 1)``."""
    from_bin_on: Ints = counts_b[..., ::-1].cumsum(axis=-1)[..., ::-1]
    return from_bin_on[..., 1:]


def _at_edge(values_nke: NDArray[Any], edge_k: Ints) -> NDArray[Any]:
    return np.take_along_axis(values_nke, edge_k[None, :, None], axis=2)[:, :, 0]


# All figures -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TypeFigures:
    """How well one type is found and outlined; ``None``: could not be measured.

    Attributes:
        class_id: the type.
        frames: that hold it; ``masked_frames``: whose mask of it is known.
        auroc: of the type's score, against clean frames.
        detection: mean recall over 0 to 10 % false alarms among clean frames.
        recall_at_2_percent, recall_at_5_percent: recall at so many false alarms.
        threshold_at_2_percent: the score from which 2 % of the clean frames raise an alarm.
        best_dice: best mean Dice over the frames with a mask, each segmented whatever its scores.
            The threshold is chosen on the same frames: slightly optimistic.
        pixel_logit: the mask logit that gives it, one of ``MASK_LOGIT_EDGES``; of equally good ones
            the nearest to 0.
        dice_at_half: the same mean at probability 0.5, where nothing is chosen.
    """

    class_id: str
    frames: int
    masked_frames: int
    auroc: float | None
    detection: float | None
    recall_at_2_percent: float | None
    recall_at_5_percent: float | None
    threshold_at_2_percent: float | None
    best_dice: float | None
    pixel_logit: float | None
    dice_at_half: float | None

    def to_json(self) -> dict[str, Any]:
        """The figures by name without the type's."""
        names = [field.name for field in fields(self)]
        return {name: _json(getattr(self, name)) for name in names if name != "class_id"}


@dataclass(frozen=True, slots=True)
class Summary:
    """All figures of a set of predictions; ``None``: could not be measured.

    Attributes:
        frames, faulty_frames, clean_frames: how many were looked at.
        auroc, average_precision: of the faulty logit, faulty against clean frames.
        recall_at_2_percent, recall_at_5_percent: recall of faulty frames at so many false alarms.
        mean_dice: mean of ``best_dice`` over the types that have one.
        mean_dice_at_half: the same at probability 0.5.
        kaggle_dice: at ``threshold_at_2_percent`` and ``pixel_logit`` of each type.
        worst_type_detection: the least detection of a type; what training guards.
        worst_type: the type that has it.
        types: figures by type, in channel order.
        not_measured: types without detection, each with the reason.
        auroc_interval, mean_dice_interval: 95 % bootstrap intervals, if asked for.
    """

    frames: int
    faulty_frames: int
    clean_frames: int
    auroc: float | None
    average_precision: float | None
    recall_at_2_percent: float | None
    recall_at_5_percent: float | None
    mean_dice: float | None
    mean_dice_at_half: float | None
    kaggle_dice: float | None
    worst_type_detection: float | None
    worst_type: str | None
    types: tuple[TypeFigures, ...]
    not_measured: dict[str, str]
    auroc_interval: tuple[float, float] | None = None
    mean_dice_interval: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """For ``json.dumps``: figures by name, types by class id, no NaN or infinity."""
        return {field.name: _json(getattr(self, field.name)) for field in fields(self)} | {
            "types": {figures.class_id: figures.to_json() for figures in self.types}
        }


def _json(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return [_json(item) for item in value] if isinstance(value, tuple) else value


def best_edge(dice_ne: NDArray[np.float64]) -> int:
    """Index of the threshold with the best mean Dice; of equals the one nearest to logit 0.

    Args:
        dice_ne: by frame and threshold (``MASK_LOGIT_EDGES``), at least one frame.
    """
    mean_e = dice_ne.mean(axis=0)
    highest = np.flatnonzero(mean_e == mean_e.max())
    return int(highest[np.abs(MASK_LOGIT_EDGES[highest]).argmin()])


def type_figures(predictions: Predictions) -> tuple[TypeFigures, ...]:
    """The figures of each type, in channel order."""
    clean = ~predictions.faulty
    scores_nk = predictions.type_scores_nk
    figures = []
    for k, class_id in enumerate(predictions.class_ids):
        present, masked = predictions.present_nk[:, k], predictions.masked_nk[:, k]
        looked_at = present | clean
        scores, positive = scores_nk[looked_at, k], present[looked_at]
        low = recall_at_false_alarms(scores, positive, LOW_SHARE)
        high = recall_at_false_alarms(scores, positive, HIGH_SHARE)
        best_dice = pixel_logit = dice_at_half = None
        if masked.any():
            dice_ne = dice_by_threshold(
                predictions.inside_nkb[masked, k], predictions.outside_nkb[masked, k]
            )
            dice_e, best = dice_ne.mean(axis=0), best_edge(dice_ne)
            best_dice, pixel_logit = float(dice_e[best]), float(MASK_LOGIT_EDGES[best])
            dice_at_half = float(dice_e[_ZERO_LOGIT])
        figures.append(
            TypeFigures(
                class_id=class_id,
                frames=int(present.sum()),
                masked_frames=int(masked.sum()),
                auroc=auroc(scores, positive),
                detection=detection(scores[positive], scores[~positive]),
                recall_at_2_percent=low and low.recall,
                recall_at_5_percent=high and high.recall,
                threshold_at_2_percent=_clean_threshold(scores[~positive]),
                best_dice=best_dice,
                pixel_logit=pixel_logit,
                dice_at_half=dice_at_half,
            )
        )
    return tuple(figures)


def _clean_threshold(scores_clean: Floats) -> float | None:
    if not len(scores_clean):
        return None
    worst_first = np.where(np.isfinite(scores_clean), scores_clean, np.inf)
    return false_alarm_threshold(worst_first, LOW_SHARE)


def summary(predictions: Predictions, *, resamples: int = 0, seed: int = 0) -> Summary:
    """All figures.

    Args:
        predictions: any number of frames, also none.
        resamples: of the bootstrap, for the two intervals; 0 makes none.
        seed: of the bootstrap.
    """
    types = type_figures(predictions)
    faulty, logits = predictions.faulty, predictions.faulty_logits
    low = recall_at_false_alarms(logits, faulty, LOW_SHARE)
    high = recall_at_false_alarms(logits, faulty, HIGH_SHARE)
    worst = min(
        (t for t in types if t.detection is not None), key=lambda t: t.detection or 0, default=None
    )
    clean_frames = int((~faulty).sum())
    not_measured = {
        t.class_id: "no frame holds it" if not t.frames else "no clean frame to compare with"
        for t in types
        if t.detection is None
    }
    intervals: dict[str, tuple[float, float] | None] = {}
    if resamples:
        logit_k = [0.0 if t.pixel_logit is None else t.pixel_logit for t in types]
        intervals = {
            "auroc_interval": auroc_interval(logits, faulty, resamples=resamples, seed=seed),
            "mean_dice_interval": mean_dice_interval(
                predictions, logit_k, resamples=resamples, seed=seed
            ),
        }
    return Summary(
        frames=len(predictions),
        faulty_frames=int(faulty.sum()),
        clean_frames=clean_frames,
        auroc=auroc(logits, faulty),
        average_precision=average_precision(logits, faulty) if clean_frames else None,
        recall_at_2_percent=low and low.recall,
        recall_at_5_percent=high and high.recall,
        mean_dice=_mean([t.best_dice for t in types]),
        mean_dice_at_half=_mean([t.dice_at_half for t in types]),
        kaggle_dice=kaggle_dice(
            predictions,
            [t.threshold_at_2_percent or 0.0 for t in types],
            [0.0 if t.pixel_logit is None else t.pixel_logit for t in types],
        ),
        worst_type_detection=worst.detection if worst else None,
        worst_type=worst.class_id if worst else None,
        types=types,
        not_measured=not_measured,
        **intervals,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# Bootstrap ---------------------------------------------------------------------------------------


def auroc_interval(
    scores: ArrayLike, positive: ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of the AUROC: percentile bootstrap over frames, within each label.

    Args:
        scores: ``(N,)``.
        positive: labels, ``(N,)``.
        resamples: how often frames are drawn anew.
        seed: the same seed gives the same interval.

    Returns:
        Lower and upper end; ``None`` unless both labels occur.
    """
    positives, negatives = _split(scores, positive)
    if not len(positives) or not len(negatives):
        return None
    values, group = np.unique(np.concatenate([positives, negatives]), return_inverse=True)
    of_positives, of_negatives = group[: len(positives)], group[len(positives) :]
    rng = np.random.default_rng(seed)
    figures = []
    for block in _blocks(resamples, len(positives) + len(negatives)):
        drawn_rg = _drawn_in_groups(rng, block, of_positives, len(values))
        below_rg = _drawn_in_groups(rng, block, of_negatives, len(values))
        # Negatives below a score count whole, those at it half; twice that in integers.
        twice_rg = 2 * below_rg.cumsum(axis=1) - below_rg
        figures.append(np.einsum("rg,rg->r", drawn_rg, twice_rg))
    pairs = 2 * len(positives) * len(negatives)
    return _percentiles(np.concatenate(figures) / pairs)


def mean_dice_interval(
    predictions: Predictions,
    pixel_logit_k: Sequence[float],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """95 % interval of the mean over types of the mean Dice over frames that hold the type.

    Percentile bootstrap over the frames with a mask, at fixed pixel thresholds. A type of which no
    frame was drawn is left out of that draw's mean.

    Args:
        predictions: of N frames.
        pixel_logit_k: least mask logit of a pixel by type; the nearest of ``MASK_LOGIT_EDGES``.
        resamples: how often frames are drawn anew.
        seed: the same seed gives the same interval.

    Returns:
        Lower and upper end; ``None`` without a mask.
    """
    used = predictions.masked_nk.any(axis=1)
    if not used.any():
        return None
    masked_nk = predictions.masked_nk[used].astype(np.float64)
    dice_nke = dice_by_threshold(predictions.inside_nkb[used], predictions.outside_nkb[used])
    dice_nk = _at_edge(dice_nke, nearest_edge(pixel_logit_k)) * masked_nk
    rng = np.random.default_rng(seed)
    every = np.arange(len(dice_nk))
    figures = []
    for block in _blocks(resamples, len(dice_nk)):
        drawn_rn = _drawn_in_groups(rng, block, every, len(every)).astype(np.float64)
        frames_rk = drawn_rn @ masked_nk
        type_rk = np.divide(
            drawn_rn @ dice_nk, frames_rk, out=np.zeros(frames_rk.shape), where=frames_rk > 0
        )
        figures.append(type_rk.sum(axis=1) / (frames_rk > 0).sum(axis=1))
    return _percentiles(np.concatenate(figures))


def _blocks(resamples: int, frames: int) -> list[int]:
    """Draws to make at once: bounded memory, and the same blocks for the same data."""
    most = max(_BLOCK_BYTES // (8 * frames), 1)
    return [min(most, resamples - first) for first in range(0, resamples, most)]


def _drawn_in_groups(rng: np.random.Generator, draws: int, group: Ints, groups: int) -> Ints:
    """How often each group is drawn when all members are drawn with replacement, ``(R, G)``."""
    drawn_rn = group[rng.integers(len(group), size=(draws, len(group)))]
    flat = (drawn_rn + groups * np.arange(draws)[:, None]).ravel()
    return np.bincount(flat, minlength=draws * groups).reshape(draws, groups)


def _percentiles(figures: Floats) -> tuple[float, float]:
    low, high = np.percentile(figures, (2.5, 97.5))
    return float(low), float(high)
