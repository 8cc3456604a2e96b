"""What a decision file makes of predictions: the verdicts that the cascade would give.

The same rules as :func:`steelsight.decisions.decide`, on counts of pixels instead of masks: pixel
thresholds are those of the nearest of ``MASK_LOGIT_EDGES``. Frames larger than a tile are judged
as if no tile had been cleared by itself.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steelsight.decisions import Decision, FirstLookRule
from steelsight.errors import InputError, first_names
from steelsight.evaluation.metrics import nearest_edge
from steelsight.evaluation.predictions import MASK_LOGIT_EDGES, Predictions, logit

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Verdicts:
    """One decision on N frames with K types and R regions.

    Attributes:
        answered_n: all scores are finite; elsewhere the verdict is UNKNOWN, never OK or NG.
        cleared_n: stage 1 settles the frame: OK without segmentation.
        ng_n: NG.
        called_nk: the type's mask is delivered.
        area_px_nk: pixels of the mask at the pixel threshold, whether or not it is delivered.
        true_px_nk: those of them inside of the labelled mask.
        covered_px_r: pixels of a labelled region under the delivered mask of its type.
        rounded_pixel_from: a pixel threshold lies more than a thousandth of a logit from its edge:
            masks are not exactly those of the cascade.
    """

    answered_n: Bools
    cleared_n: Bools
    ng_n: Bools
    called_nk: Bools
    area_px_nk: Ints
    true_px_nk: Ints
    covered_px_r: Ints
    rounded_pixel_from: bool

    @property
    def ok_n(self) -> Bools:
        """Verdict OK."""
        return self.answered_n & ~self.ng_n


def faulty_met_by(decision: Decision, predictions: Predictions) -> NDArray[np.float64]:
    """``faulty_probability`` as results carry it: of the first look where that settles the frame.

    Raises:
        InputError: the decision has a rule for a first look, of which the predictions know nothing.
    """
    gate_n = decision.gate.calibrated(predictions.faulty_probability)
    if decision.first_look is None:
        return gate_n
    first_n, settled_n = settled(decision.first_look, predictions)
    met_n: NDArray[np.float64] = np.where(settled_n, first_n, gate_n)
    met_n[np.isnan(first_n)] = np.nan
    return met_n


def settled(rule: FirstLookRule, predictions: Predictions) -> tuple[NDArray[np.float64], Bools]:
    """The first look's calibrated scores, and which frames it settles, ``(N,)`` each.

    Raises:
        InputError: the predictions do not tell its scores.
    """
    found_n = predictions.first_look_probability
    if found_n is None:
        raise InputError(
            "expected predictions with the scores of a first look, which the decision has a rule"
            " for, got none; predict again with the bundle, or remove [first_look]"
        )
    first_n = rule.calibrated(found_n)
    return first_n, first_n < rule.clear_below


def apply_decision(predictions: Predictions, decision: Decision) -> Verdicts:
    """Judges frames by a decision file.

    Args:
        predictions: of N frames, every one of them segmented.
        decision: with a rule for each type of the predictions and no other.

    Raises:
        InputError: the types differ.
    """
    if set(decision.types) != set(predictions.class_ids):
        raise InputError(
            f"expected a decision with rules for the types {first_names(predictions.class_ids)},"
            f" got {first_names(tuple(decision.types))}; give the decision of this model"
        )
    rules = [decision.types[class_id] for class_id in predictions.class_ids]
    wanted_k = logit(np.array([rule.pixel_from for rule in rules]))
    edge_k = nearest_edge(wanted_k)
    # Bin i lies below edge i: the mask is all bins from the one behind the edge on.
    of_mask_kb = np.arange(len(MASK_LOGIT_EDGES) + 1) > edge_k[:, None]
    true_px_nk = (predictions.inside_nkb * of_mask_kb).sum(axis=2)
    area_px_nk = true_px_nk + (predictions.outside_nkb * of_mask_kb).sum(axis=2)
    covered_px_r = (predictions.region_counts_rb * of_mask_kb[predictions.region_types_r]).sum(1)

    faulty_n = faulty_met_by(decision, predictions)
    cleared_n = faulty_n < decision.gate.clear_below
    scores_nk = decision.gate.weighed(predictions.type_scores_nk, faulty_n[:, None])
    answered_n = np.isfinite(predictions.faulty_logits) & np.isfinite(faulty_n)
    answered_n &= np.isfinite(scores_nk).all(axis=1)
    least_px_k = np.array([max(rule.min_area_px, 1) for rule in rules])
    called_nk = (scores_nk >= np.array([rule.label_from for rule in rules])) & (
        area_px_nk >= least_px_k
    )
    called_nk &= (answered_n & ~cleared_n)[:, None]
    ng_n = called_nk.any(axis=1) | (answered_n & ~cleared_n & (faulty_n >= decision.gate.ng_from))
    delivered_r = called_nk[predictions.region_frames_r, predictions.region_types_r]
    return Verdicts(
        answered_n=answered_n,
        cleared_n=cleared_n & answered_n,
        ng_n=ng_n,
        called_nk=called_nk,
        area_px_nk=area_px_nk,
        true_px_nk=true_px_nk,
        covered_px_r=covered_px_r * delivered_r,
        rounded_pixel_from=bool((np.abs(MASK_LOGIT_EDGES[edge_k] - wanted_k) > 1e-3).any()),
    )
