"""Ranking figures on weighted frames: those of all frames, and of thousands of bootstrap draws.

The definitions are those of :mod:`steelsight.evaluation.metrics`; frames are sorted once, and every
draw is a row of weights.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steelsight.evaluation.metrics import DETECTION_UP_TO

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SHARES = (0.01, 0.02, 0.05)
"""Of the clean frames that may raise a false alarm."""

RECALL_AT = {share: f"recall_at_{share * 100:.0f}_percent" for share in SHARES}
"""Names of the recalls at these shares."""


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """NaN where the denominator is 0; arguments broadcast."""
    numerator, denominator = np.broadcast_arrays(
        np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    )
    divided: Floats = np.divide(
        numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0
    )
    return divided


class Ranking:
    """Frames in the order of their scores, equal scores as one step.

    Args:
        scores_n: finite, ``(N,)``, at least one.
        positive_n: labels, ``(N,)``.
    """

    def __init__(self, scores_n: Floats, positive_n: Bools) -> None:
        self._order = np.argsort(-scores_n, kind="stable")
        ranked = scores_n[self._order]
        self._starts = np.flatnonzero(np.append(True, np.diff(ranked) != 0))
        self._positive_n = positive_n[self._order].astype(np.int64)

    def _steps(self, weights_rn: Ints) -> tuple[Ints, Ints]:
        """Positives and negatives at each step, ``(R, S)``, from the highest score down."""
        weights_rn = weights_rn[:, self._order]
        total_rs = np.add.reduceat(weights_rn, self._starts, axis=1)
        true_rs = np.add.reduceat(weights_rn * self._positive_n, self._starts, axis=1)
        return true_rs, total_rs - true_rs

    def figures(self, weights_rn: Ints, shares: Sequence[float] = SHARES) -> dict[str, Floats]:
        """AUROC, average precision, detection and recalls at shares of false alarms.

        Args:
            weights_rn: how often each frame counts, ``(R, N)``.
            shares: such as 0.02 for ``recall_at_2_percent``.

        Returns:
            ``(R,)`` each by name; NaN unless both labels occur.
        """
        true_rs, false_rs = self._steps(weights_rn)
        above_rs, alarms_rs = true_rs.cumsum(axis=1), false_rs.cumsum(axis=1)
        positives_r, negatives_r = above_rs[:, -1], alarms_rs[:, -1]
        pairs_r = np.where(negatives_r > 0, positives_r, 0).astype(np.float64)
        # Negatives below a score count whole, those at it half; twice that in integers.
        twice_rs = 2 * (negatives_r[:, None] - alarms_rs) + false_rs
        precision_rs = ratio(above_rs, above_rs + alarms_rs)
        gained_rs = np.where(true_rs > 0, precision_rs, 0) * true_rs
        found = {
            "auroc": ratio((twice_rs * true_rs).sum(axis=1) / 2.0, pairs_r * negatives_r),
            "average_precision": ratio(gained_rs.sum(axis=1), pairs_r),
        }
        # While the share of false alarms crosses the negatives of a step, what ranks above counts.
        ends_rs = ratio(alarms_rs, negatives_r[:, None])
        starts_rs = ratio(alarms_rs - false_rs, negatives_r[:, None])
        widths_rs = np.clip(ends_rs, 0, DETECTION_UP_TO) - np.clip(starts_rs, 0, DETECTION_UP_TO)
        area_r = (widths_rs * (above_rs - true_rs)).sum(axis=1)
        found["detection"] = np.minimum(ratio(area_r, pairs_r * DETECTION_UP_TO), 1)
        for share in shares:
            allowed_r = np.floor(share * negatives_r + 1e-9)
            passed_rs = alarms_rs <= allowed_r[:, None]
            found[f"recall_at_{share * 100:.0f}_percent"] = ratio(
                (true_rs * passed_rs).sum(axis=1), pairs_r
            )
        return found

    def curve(self) -> tuple[Ints, Ints]:
        """Positives and negatives at or above each step, from none to all, ``(S + 1,)`` each."""
        true_rs, false_rs = self._steps(np.ones((1, len(self._order)), np.int64))
        above_s, alarms_s = (
            np.insert(counts_rs[0].cumsum(), 0, 0) for counts_rs in (true_rs, false_rs)
        )
        return above_s, alarms_s
