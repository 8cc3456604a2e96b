"""All figures of an evaluation, each with its interval, and the sentences that say them.

Conventions (clean frames, ties, NaN, unknown masks) are those of
:mod:`steelsight.evaluation.metrics`. Beyond them:

**UNKNOWN.** Frames without an answer, or with a score that is not finite, are in no figure: they
are neither found nor missed, a person looks at them. They are counted, by reason and by label.

**Intervals** are 95 %. A share of independent frames has its exact binomial interval. Everything
else is bootstrapped over groups (frames of the same steel). A share of regions, or of frames of
which some are of one group, and recall at a share of false alarms, whose threshold is drawn, too,
have the wider ends of both: the exact interval knows that 0 of 9 is not 0 %, the bootstrap that
regions of a frame and frames of a group resemble each other. Where every draw gives the same, or
all positives or all negatives are of one group, the bootstrap says nothing: then there is no
interval instead of one that is narrow for want of data.

**Delivered and segmented.** A delivered mask passed the decision: one of a type that was not called
is empty. A segmented mask is what lies above the pixel threshold, whatever gate and label
thresholds say.

**Found.** A type is found on a frame when its mask is delivered there, right place or not; a region
of a labelled mask is found when at least a tenth of its pixels lie under the delivered mask.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steelsight.decisions import Decision
from steelsight.evaluation.intervals import (
    binomial_interval,
    bootstrap_groups,
    percentile_interval,
)
from steelsight.evaluation.metrics import best_edge, dice_by_threshold, nearest_edge
from steelsight.evaluation.pixels import (
    PRO_UP_TO,
    overlap,
    per_region_overlap,
    pixel_average_precision,
)
from steelsight.evaluation.predictions import MASK_LOGIT_EDGES, Predictions, logit
from steelsight.evaluation.ranking import RECALL_AT, Ranking, ratio
from steelsight.evaluation.verdicts import Verdicts, apply_decision

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

REGION_FOUND_SHARE = 0.1
"""Of a region's pixels that the delivered mask must cover."""
SIZE_EDGES_PX = (0, 500, 2000, 10_000, 50_000)
"""Where bins of region size begin."""
THIRDS = (0.0, 1 / 3, 2 / 3, 1.0)
QUARTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
CALIBRATION_BINS = 10
CURVE_POINTS = 200
_NO_WIDTH = 1e-9
"""Two draws that differ by less differ by rounding."""
_MASK = np.arange(len(MASK_LOGIT_EDGES) + 1)

_WITHOUT_RATE = {
    "escape_rate": "no faulty frame",
    "recall": "no faulty frame",
    "overkill_rate": "no clean frame",
    "accuracy": "no frame",
    "precision": "no frame is called NG",
    "f1": "no frame is faulty or called NG",
}
"""Why a rate of verdicts is missing."""

Json = dict[str, Any]


# Figures and their intervals ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figure:
    """One number and how sure it is.

    Attributes:
        value: ``None``: could not be measured.
        low, high: 95 % interval.
        count, of: the integers of a share; ``of`` alone: on how many it was measured.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    count: int | None = None
    of: int | None = None

    def to_json(self) -> Json:
        """By name; six significant digits, no NaN."""
        return {
            "value": _digits(self.value),
            "low": _digits(self.low),
            "high": _digits(self.high),
            "count": self.count,
            "of": self.of,
        }


def _digits(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


class _Bench:
    """Collects what is to be measured, then draws the bootstrap once for all of it.

    A figure is a function of weights ``(R, N)`` with one value a draw; NaN where a draw holds
    nothing to measure on.
    """

    def __init__(self, groups_n: Ints, resamples: int, seed: int) -> None:
        self._groups_n, self._resamples, self._seed = groups_n, resamples, seed
        self._columns: list[tuple[Floats, Floats]] = []
        self._functions: list[Callable[[Ints], Floats]] = []
        self._nodes: list[_Node] = []

    def share(self, hits_n: NDArray[Any], of_n: NDArray[Any]) -> int:
        """A share of frames, or of what is counted on them; a ticket for :meth:`figures`."""
        ticket = self.mean(hits_n, of_n)
        groups = self._groups_n[of_n > 0]
        self._nodes[ticket] = replace(
            self._nodes[ticket],
            count=int(hits_n.sum()),
            of=int(of_n.sum()),
            undrawn=int(of_n.sum()) == len(groups) == len(np.unique(groups)),
        )
        return ticket

    def mean(self, sum_n: NDArray[Any], of_n: NDArray[Any]) -> int:
        """A sum over frames divided by another."""
        self._columns.append((np.asarray(sum_n, np.float64), np.asarray(of_n, np.float64)))
        self._nodes.append(_Node("column", len(self._columns) - 1, of=round(float(of_n.sum()))))
        return len(self._nodes) - 1

    def function(
        self,
        figure: Callable[[Ints], Floats],
        of: int | None = None,
        count: int | None = None,
        *,
        drawn_from: Sequence[Bools] = (),
    ) -> int:
        """Any other figure; with its ``count`` if it is a share.

        Each set of frames in ``drawn_from`` must come from two groups at least: with a single
        positive only the negatives would vary, and the interval would look narrow.
        """
        self._functions.append(figure)
        too_few = any(len(np.unique(self._groups_n[members_n])) < 2 for members_n in drawn_from)
        self._nodes.append(_Node("function", len(self._functions) - 1, count, of, undrawn=too_few))
        return len(self._nodes) - 1

    def figures(self) -> list[Figure]:
        """By ticket."""
        n = len(self._groups_n)
        sums_nm = np.array([sums for sums, _ in self._columns]).reshape(len(self._columns), n).T
        of_nm = np.array([of for _, of in self._columns]).reshape(len(self._columns), n).T

        def measured(weights_rn: Ints) -> tuple[Floats, list[Floats]]:
            weights = weights_rn.astype(np.float64)
            # A negative denominator does not occur: all are counts.
            return ratio(weights @ sums_nm, weights @ of_nm), [
                function(weights_rn) for function in self._functions
            ]

        whole = measured(np.ones((1, n), np.int64))
        drawn = [measured(block) for block in bootstrap_groups(self._groups_n, self._resamples,
                                                               self._seed)]  # fmt: skip
        found = []
        for node in self._nodes:
            if node.kind == "column":
                value = float(whole[0][0, node.index])
                draws = [columns[:, node.index] for columns, _ in drawn]
            else:
                value = float(whole[1][node.index][0])
                draws = [functions[node.index] for _, functions in drawn]
            found.append(_figure(value, [] if node.undrawn else draws, node.count, node.of))
        return found


@dataclass(frozen=True, slots=True)
class _Node:
    """Where a figure comes from.

    ``undrawn``: no bootstrap, because the exact binomial interval of independent frames is all it
    needs, or because too few groups vary.
    """

    kind: Literal["column", "function"]
    index: int
    count: int | None = None
    of: int | None = None
    undrawn: bool = False


def _figure(value: float, draws: list[Floats], count: int | None, of: int | None) -> Figure:
    if math.isnan(value):
        return Figure(of=of, count=count)
    low, high = percentile_interval(np.concatenate([np.zeros(0), *draws]))
    if high - low < _NO_WIDTH:
        low = high = math.nan
    if count is not None and of is not None:
        exact_low, exact_high = binomial_interval(count, of)
        low, high = np.fmin(low, exact_low), np.fmax(high, exact_high)
    if math.isnan(low):
        return Figure(value, count=count, of=of)
    return Figure(value, float(min(low, value)), float(max(high, value)), count, of)


# The evaluation ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All figures of a set of predictions, as they stand in ``evaluation.json``.

    Attributes:
        about: where the predictions come from.
        frames: how many were seen, answered, faulty, clean; why some were not answered.
        ranking: figures of the faulty score over all thresholds, and its curves.
        at_decision: verdicts and what they come to.
        kaggle: Kaggle's Dice beside that of predicting nothing.
        types: figures by type.
        mean: means over the types.
        worst_type: the type that is found least often.
        calibration: how far probabilities are from frequencies.
        not_measured: figure by name -> why it is missing.
        summary: the same for people, in sentences.
    """

    about: Mapping[str, Any]
    frames: Json
    ranking: Json | None
    at_decision: Json | None
    kaggle: Json
    types: dict[str, Json]
    mean: Json
    worst_type: Json | None
    calibration: Json | None
    not_measured: dict[str, str]
    summary: list[str]

    def to_json(self) -> Json:
        """For ``json.dumps``; no NaN or infinity, no :class:`Figure`."""
        return {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}


def _plain(value: Any) -> Any:
    if isinstance(value, Figure):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _digits(value) if isinstance(value, float) else value


def evaluate(
    predictions: Predictions,
    decision: Decision | None = None,
    *,
    verdicts: Verdicts | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """Measures predictions.

    Args:
        predictions: of any number of frames, also none.
        decision: its verdicts are measured; without it only figures over all thresholds.
        verdicts: instead of those that the decision gives, such as nested ones. Delivered masks are
            theirs; frames that they do not answer are UNKNOWN, ``no-verdict``.
        resamples: of the bootstrap; 0 leaves only exact binomial intervals.
        seed: the same seed gives the same intervals.

    Raises:
        InputError: the decision has other types.
    """
    if decision is not None and verdicts is None:
        verdicts = apply_decision(predictions, decision)
    finite_n = np.isfinite(predictions.faulty_logits)
    finite_n &= np.isfinite(predictions.type_scores_nk).all(axis=1)
    answered_n = finite_n if verdicts is None else finite_n & verdicts.answered_n
    unanswered = Counter(frame.reason for frame in predictions.unanswered)
    unanswered["not-finite"] += int((~finite_n).sum())
    unanswered["no-verdict"] += int((finite_n & ~answered_n).sum())
    whole = _Measured(predictions, decision, verdicts, answered_n, unanswered, resamples, seed)
    return whole.evaluation()


class _Measured:
    """One evaluation while it is being made: first everything is registered, then measured."""

    def __init__(
        self,
        predictions: Predictions,
        decision: Decision | None,
        verdicts: Verdicts | None,
        answered_n: Bools,
        unanswered: Counter[str],
        resamples: int,
        seed: int,
    ) -> None:
        self.all, self.decision = predictions, decision
        self.answered_n, self.unanswered = answered_n, unanswered
        self.seen = seen = predictions.take(answered_n)
        self.verdicts = verdicts and _verdicts_of(verdicts, answered_n, predictions)
        self.bench = _Bench(seen.groups, resamples, seed)
        self.not_measured: dict[str, str] = {}
        edge_k = np.full(len(seen.class_ids), nearest_edge(0.0))
        if decision is not None:
            from_k = [decision.types[c].pixel_from for c in seen.class_ids]
            edge_k = nearest_edge(logit(np.array(from_k)))
        of_mask_kb = edge_k[:, None] < _MASK
        self.label_px_nk = seen.inside_nkb.sum(axis=2)
        true_nk = (seen.inside_nkb * of_mask_kb).sum(axis=2)
        marked_nk = true_nk + (seen.outside_nkb * of_mask_kb).sum(axis=2)
        self.segmented_nk, self.segmented_iou_nk = overlap(true_nk, marked_nk, self.label_px_nk)
        self.delivered_nk = self.delivered_iou_nk = None
        if self.verdicts is not None:
            called_nk = self.verdicts.called_nk
            self.delivered_nk, self.delivered_iou_nk = overlap(
                self.verdicts.true_px_nk * called_nk,
                self.verdicts.area_px_nk * called_nk,
                self.label_px_nk,
            )

    def evaluation(self) -> Evaluation:
        """Everything, in the order of the page."""
        tickets: Json = {
            "ranking": self._ranking(),
            "at_decision": self._rates(),
            "kaggle": self._kaggle(),
            "types": {c: self._type(k, c) for k, c in enumerate(self.seen.class_ids)},
            "mean": self._means(),
            "calibration": self._calibration(),
        }
        figures = self.bench.figures()
        told: Json = _resolved(tickets, figures)
        if told["at_decision"] is not None:
            told["at_decision"] |= self._verdict_lists()
            rates = told["at_decision"]
            rates["working_point"] = {
                "false_alarm_rate": rates["overkill_rate"],
                "recall": rates["recall"],
            }
        self._say_why(told)
        frames = self._frames()
        worst = _worst_type(told["types"])
        return Evaluation(
            about=dict(self.all.about),
            frames=frames,
            ranking=told["ranking"],
            at_decision=told["at_decision"],
            kaggle=told["kaggle"],
            types=told["types"],
            mean=told["mean"],
            worst_type=worst,
            calibration=told["calibration"],
            not_measured=self.not_measured,
            summary=_sentences(frames, told, worst, self.all.about.get("types"), self.not_measured),
        )

    def _say_why(self, told: Json) -> None:
        """Reasons for figures that turned out to be missing."""
        seen, why = self.seen, self.not_measured
        rates = told["at_decision"] or {}
        why |= {
            name: reason
            for name, reason in _WITHOUT_RATE.items()
            if name in rates and rates[name].value is None
        }
        for name, figure in told["kaggle"].items():
            if figure.value is None:
                perfect = told["kaggle"]["predict_nothing"].value == 1
                why.setdefault(
                    f"Kaggle's {name}",
                    "no mask is labelled: predicting nothing is perfect"
                    if perfect
                    else "no frame to measure it on",
                )
        for name, figure in told["mean"].items():
            if figure.value is None:
                why.setdefault(f"mean of {name}", "no frame with a mask")
        for k, class_id in enumerate(seen.class_ids):
            why |= self._why_of_type(k, class_id, told["types"][class_id])
        if len(seen) > 1 and len(np.unique(seen.groups)) == 1:
            why["intervals"] = (
                "all frames are of one group: how much figures vary from group to group is not"
                " known, and intervals of shares, which take frames for independent, are too narrow"
            )

    def _why_of_type(self, k: int, class_id: str, told: Json) -> dict[str, str]:
        if not self.seen.present_nk[:, k].any():
            return {f"type {class_id}": "no frame holds it"}
        if not self.seen.masked_nk[:, k].any():
            return {f"masks of type {class_id}": "no frame with a mask"}
        names = ["pixel_average_precision", "pro"] if self.seen.graded else []
        names += ["regions_found"] if self.verdicts else []
        reason = "no labelled pixel, or none that is not labelled"
        return {f"{name} of type {class_id}": reason for name in names if told[name].value is None}

    # Frames

    def _frames(self) -> Json:
        lost_n = ~self.answered_n
        unanswered_faulty = sum(frame.faulty for frame in self.all.unanswered)
        unanswered_faulty += int(self.all.faulty[lost_n].sum())
        unanswered = len(self.all.unanswered) + int(lost_n.sum())
        faulty = int(self.seen.faulty.sum())
        return {
            "seen": len(self.seen) + unanswered,
            "answered": len(self.seen),
            "unanswered": unanswered,
            "faulty": faulty + unanswered_faulty,
            "clean": len(self.seen) - faulty + unanswered - unanswered_faulty,
            "groups": len(np.unique(self.seen.groups)),
            "unanswered_reasons": {code: n for code, n in sorted(self.unanswered.items()) if n},
            "unanswered_faulty": unanswered_faulty,
        }

    # Scores

    def _ranking(self) -> Json | None:
        seen = self.seen
        if not self._scores_known("ranking", seen.faulty, ~seen.faulty, "faulty", "clean"):
            return None
        ranking = Ranking(seen.faulty_logits.astype(np.float64), seen.faulty)
        found = self._ranked(ranking, seen.faulty, ~seen.faulty)
        del found["detection"]
        above_s, alarms_s = ranking.curve()
        positives, negatives = int(above_s[-1]), int(alarms_s[-1])
        corner_s = _corners(above_s, alarms_s)
        precision_s = above_s[1:] / (above_s[1:] + alarms_s[1:])
        kept_s = _thinned(np.arange(len(precision_s)))
        return found | {
            "roc": {
                "false_alarm_rate": (alarms_s[corner_s] / negatives).tolist(),
                "recall": (above_s[corner_s] / positives).tolist(),
            },
            "precision_recall": {
                "recall": (above_s[1:][kept_s] / positives).tolist(),
                "precision": precision_s[kept_s].tolist(),
            },
        }

    def _scores_known(
        self, name: str, positive_n: Bools, negative_n: Bools, positives: str, negatives: str
    ) -> bool:
        """Whether a ranking can be measured; else says why not."""
        if not self.seen.scored:
            self.not_measured[name] = "the predictions are masks without scores"
        elif not positive_n.any():
            self.not_measured[name] = f"no {positives} frame"
        elif not negative_n.any():
            self.not_measured[name] = f"no {negatives} frame to compare with"
        else:
            return True
        return False

    def _ranked(self, ranking: Ranking, positive_n: Bools, negative_n: Bools) -> Json:
        """Tickets of the figures of a ranking of these frames."""
        of_n, positives = positive_n | negative_n, int(positive_n.sum())
        drawn_from = (positive_n, negative_n)
        # All figures of a block of draws come out of one pass.
        last: list[tuple[Ints, dict[str, Floats]]] = []

        def column(name: str) -> Callable[[Ints], Floats]:
            def figure(weights_rn: Ints) -> Floats:
                if not last or last[0][0] is not weights_rn:
                    last[:] = [(weights_rn, ranking.figures(weights_rn[:, of_n]))]
                return last[0][1][name]

            return figure

        found = {
            name: _Ticket(self.bench.function(column(name), int(of_n.sum()), drawn_from=drawn_from))
            for name in ("auroc", "average_precision", "detection")
        }
        whole = ranking.figures(np.ones((1, int(of_n.sum())), np.int64))
        for name in RECALL_AT.values():
            count = round(float(whole[name][0]) * positives)
            found[name] = _Ticket(
                self.bench.function(column(name), positives, count, drawn_from=drawn_from)
            )
        return found

    def _calibration(self) -> Json | None:
        seen = self.seen
        if not seen.scored:
            self.not_measured["calibration"] = "the predictions are masks without scores"
            return None
        if not len(seen):
            self.not_measured["calibration"] = "no frame"
            return None
        self.not_measured["calibration of types"] = "a type's score ranks, it is no probability"
        p_n = seen.faulty_probability
        if self.decision is not None:
            p_n = self.decision.gate.calibrated(p_n)
        bin_n = np.minimum((p_n * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        in_bin_nb = bin_n[:, None] == np.arange(CALIBRATION_BINS)
        gap_nb = (p_n - seen.faulty)[:, None] * in_bin_nb

        def error(weights_rn: Ints) -> Floats:
            weights = weights_rn.astype(np.float64)
            return ratio(np.abs(weights @ gap_nb).sum(axis=1), weights.sum(axis=1))

        bins = []
        for b in range(CALIBRATION_BINS):
            members = in_bin_nb[:, b]
            bins.append(
                {
                    "from": b / CALIBRATION_BINS,
                    "to": (b + 1) / CALIBRATION_BINS,
                    "frames": int(members.sum()),
                    "mean_probability": float(p_n[members].mean()) if members.any() else None,
                    "share_faulty": _Ticket(self.bench.share(members & seen.faulty, members)),
                }
            )
        ece = _Ticket(self.bench.function(error, len(seen)))
        return {"faulty": {"ece": ece, "bins": bins}}

    # Verdicts

    def _rates(self) -> Json | None:
        verdicts, faulty_n = self.verdicts, self.seen.faulty
        if verdicts is None:
            self.not_measured["verdicts"] = "no decision file"
            self.not_measured["found, regions_found and delivered masks of types"] = (
                "no decision file"
            )
            return None
        ng_n = verdicts.ng_n
        right_n, every_n = ng_n == faulty_n, np.ones(len(faulty_n), bool)
        share, mean = self.bench.share, self.bench.mean
        return {
            "escape_rate": _Ticket(share(~ng_n & faulty_n, faulty_n)),
            "overkill_rate": _Ticket(share(ng_n & ~faulty_n, ~faulty_n)),
            "accuracy": _Ticket(share(right_n, every_n)),
            "precision": _Ticket(share(ng_n & faulty_n, ng_n)),
            "recall": _Ticket(share(ng_n & faulty_n, faulty_n)),
            "f1": _Ticket(mean(2.0 * (ng_n & faulty_n), 1.0 * ng_n + faulty_n)),
        }

    def _verdict_lists(self) -> Json:
        verdicts, seen, decision = self.verdicts, self.seen, self.decision
        assert verdicts is not None  # noqa: S101 - there are rates
        ng_n, faulty_n = verdicts.ng_n, seen.faulty
        frames = self._frames()
        unknown = {
            "faulty": frames["unanswered_faulty"],
            "clean": frames["unanswered"] - frames["unanswered_faulty"],
        }
        table = {
            truth: {
                "NG": int((ng_n & of_n).sum()),
                "OK": int((~ng_n & of_n).sum()),
                "UNKNOWN": unknown[truth],
            }
            for truth, of_n in (("faulty", faulty_n), ("clean", ~faulty_n))
        }
        score_n = seen.faulty_logits
        missed = np.flatnonzero(faulty_n & ~ng_n)
        alarms = np.flatnonzero(~faulty_n & ng_n)
        highest_n = np.maximum(seen.faulty_probability, seen.type_scores_nk.max(1, initial=0))
        return {
            "decision": None
            if decision is None
            else {
                "name": decision.name,
                "id": decision.id,
                "rule": decision.rule,
                "chosen_on": decision.chosen_on,
            },
            "verdicts": table,
            "type_confusion": self._confusion(verdicts),
            "rounded_pixel_from": verdicts.rounded_pixel_from,
            "missed": _names(seen, missed[np.argsort(score_n[missed], kind="stable")]),
            "false_alarms": _names(seen, alarms[np.argsort(-highest_n[alarms], kind="stable")]),
        }

    def _confusion(self, verdicts: Verdicts) -> Json:
        """Which types were called on frames of which type.

        On a frame of several types a call counts in the row of its own type, or, where the frame
        does not hold the called type, in the rows of all that it holds.
        """
        present_nk, called_nk = self.seen.present_nk, verdicts.called_nk
        strange_nk = called_nk & ~present_nk
        table = {}
        for k, class_id in enumerate(self.seen.class_ids):
            calls_nk = strange_nk[present_nk[:, k]]
            calls_nk[:, k] = called_nk[present_nk[:, k], k]
            table[class_id] = self._row(calls_nk)
        table["clean"] = self._row(called_nk[~self.seen.faulty])
        return table

    def _row(self, calls_nk: Bools) -> dict[str, int]:
        row = dict(zip(self.seen.class_ids, calls_nk.sum(axis=0).tolist(), strict=True))
        return row | {"none": int((~calls_nk.any(axis=1)).sum())}

    # Masks

    def _kaggle(self) -> Json:
        names = ("dice", "predict_nothing", "head_room_captured")
        if self.delivered_nk is None:
            for name in ("dice", "head_room_captured"):
                self.not_measured[f"Kaggle's {name}"] = "no decision file"
        known_nk = self.seen.masked_nk | ~self.seen.present_nk
        pairs_n = known_nk.sum(axis=1)
        nothing_n = ((self.label_px_nk == 0) & known_nk).sum(axis=1)
        found: Json = {"predict_nothing": _Ticket(self.bench.mean(nothing_n, pairs_n))}
        if self.delivered_nk is None:
            return {name: found.get(name, Figure()) for name in names}
        dice_n = (self.delivered_nk * known_nk).sum(axis=1)
        found["dice"] = _Ticket(self.bench.mean(dice_n, pairs_n))
        # (score - nothing) / (1 - nothing), both over the same pairs.
        found["head_room_captured"] = _Ticket(
            self.bench.mean(dice_n - nothing_n, pairs_n - nothing_n)
        )
        return found

    def _means(self) -> Json:
        """Means over types, each type of the same weight."""
        masked_nk = self.seen.masked_nk
        best_nk = None
        if self.seen.graded:
            best_nk = self._best_nk[0]
        else:
            self.not_measured["mean of best_dice"] = "masks are not probabilities"
        if self.verdicts is None:
            self.not_measured["mean of dice_delivered"] = "no decision file"
        return {
            name: Figure() if dice_nk is None else _Ticket(self._mean_of_types(dice_nk, masked_nk))
            for name, dice_nk in (
                ("dice_delivered", self.delivered_nk),
                ("dice_segmented", self.segmented_nk),
                ("best_dice", best_nk),
            )
        }

    def _mean_of_types(self, values_nk: Floats, of_nk: Bools) -> int:
        sums_nk, counts_nk = values_nk * of_nk, of_nk.astype(np.float64)

        def mean(weights_rn: Ints) -> Floats:
            weights = weights_rn.astype(np.float64)
            type_rk = ratio(weights @ sums_nk, weights @ counts_nk)
            known_rk = ~np.isnan(type_rk)
            return ratio(np.where(known_rk, type_rk, 0).sum(axis=1), known_rk.sum(axis=1))

        return self.bench.function(mean, int(of_nk.any(axis=0).sum()))

    @cached_property
    def _best_nk(self) -> tuple[Floats, Floats]:
        """Dice at each type's best threshold on these frames, and its logit."""
        seen = self.seen
        best_nk = np.zeros(seen.masked_nk.shape)
        logit_k = np.zeros(len(seen.class_ids))
        for k in range(len(seen.class_ids)):
            masked_n = seen.masked_nk[:, k]
            if not masked_n.any():
                continue
            dice_ne = dice_by_threshold(seen.inside_nkb[masked_n, k], seen.outside_nkb[masked_n, k])
            edge = best_edge(dice_ne)
            best_nk[masked_n, k], logit_k[k] = dice_ne[:, edge], MASK_LOGIT_EDGES[edge]
        return best_nk, logit_k

    # Types

    def _type(self, k: int, class_id: str) -> Json:
        seen, verdicts = self.seen, self.verdicts
        present_n, masked_n = seen.present_nk[:, k], seen.masked_nk[:, k]
        of_type_r = seen.region_types_r == k
        told: Json = {
            "frames": int(present_n.sum()),
            "masked_frames": int(masked_n.sum()),
            "regions": int(of_type_r.sum()),
        }
        clean_n = ~seen.faulty
        names = ("auroc", "average_precision", "detection", *RECALL_AT.values())
        name = f"ranking of type {class_id}"
        # Of a type that no frame holds, nothing is measured: that is said once.
        if present_n.any() and self._scores_known(name, present_n, clean_n, "faulty", "clean"):
            of_n = present_n | clean_n
            scores = seen.type_scores_nk[of_n, k]
            told |= self._ranked(Ranking(scores, present_n[of_n]), present_n, clean_n)
        else:
            told |= dict.fromkeys(names, Figure())
        for figure, values_nk in (
            ("dice_delivered", self.delivered_nk),
            ("iou_delivered", self.delivered_iou_nk),
            ("dice_segmented", self.segmented_nk),
            ("iou_segmented", self.segmented_iou_nk),
        ):
            told[figure] = Figure()
            if values_nk is not None:
                told[figure] = _Ticket(self.bench.mean(values_nk[:, k] * masked_n, masked_n))
        told |= self._graded(k, class_id, masked_n, of_type_r)
        if verdicts is None:
            bins = ("by_size", "by_position_x", "by_position_y", "by_brightness")
            told |= {"found": Figure(), "missed_frames": [], "regions_found": Figure()}
            return told | {name: [] for name in bins}
        called_n = verdicts.called_nk[:, k]
        missed = np.flatnonzero(present_n & ~called_n)
        order = np.argsort(seen.type_scores_nk[missed, k], kind="stable")
        return told | {
            "found": _Ticket(self.bench.share(called_n & present_n, present_n)),
            "missed_frames": _names(seen, missed[order]),
            **self._regions(verdicts, of_type_r),
            "by_brightness": self._by_brightness(present_n, called_n),
        }

    def _graded(self, k: int, class_id: str, masked_n: Bools, of_type_r: Bools) -> Json:
        """Figures over all pixel thresholds."""
        seen = self.seen
        names = ("best_dice", "pixel_average_precision", "pro")
        if not seen.graded or not masked_n.any():
            if masked_n.any():
                missing = "masks are not probabilities"
                self.not_measured |= {f"{name} of type {class_id}": missing for name in names}
            return dict.fromkeys(names, Figure()) | {"best_pixel_logit": None}
        best_nk, logit_k = self._best_nk
        # Pixels of frames whose mask of the type is missing are neither good nor bad.
        known_n = masked_n | ~seen.present_nk[:, k]
        inside_nb = seen.inside_nkb[:, k].astype(np.float64)
        outside_nb = np.where(known_n[:, None], seen.outside_nkb[:, k], 0).astype(np.float64)
        covered_nb, regions_n = np.zeros(inside_nb.shape), np.zeros(len(seen))
        counts_rb = seen.region_counts_rb[of_type_r]
        frame_r = seen.region_frames_r[of_type_r]
        np.add.at(covered_nb, frame_r, counts_rb / counts_rb.sum(axis=1, keepdims=True))
        np.add.at(regions_n, frame_r, 1.0)

        def precision(weights_rn: Ints) -> Floats:
            weights = weights_rn.astype(np.float64)
            rows = zip(weights @ inside_nb, weights @ outside_nb, strict=True)
            return np.array([_or_nan(pixel_average_precision(*row)) for row in rows])

        def pro(weights_rn: Ints) -> Floats:
            weights = weights_rn.astype(np.float64)
            # The mean curve of all regions is that of one region with their mean shares.
            mean_rb = ratio(weights @ covered_nb, (weights @ regions_n)[:, None])
            rows = zip(mean_rb, weights @ outside_nb, strict=True)
            return np.array(
                [
                    math.nan
                    if np.isnan(curve_b[0])
                    else _or_nan(per_region_overlap(curve_b[None], outside_b, PRO_UP_TO))
                    for curve_b, outside_b in rows
                ]
            )

        known = int(known_n.sum())
        return {
            "best_dice": _Ticket(self.bench.mean(best_nk[:, k], masked_n)),
            "best_pixel_logit": float(logit_k[k]),
            "pixel_average_precision": _Ticket(
                self.bench.function(precision, known, drawn_from=(masked_n,))
            ),
            "pro": _Ticket(self.bench.function(pro, int(of_type_r.sum()), drawn_from=(masked_n,))),
        }

    def _regions(self, verdicts: Verdicts, of_type_r: Bools) -> Json:
        """Regions found: in all, by size and by place on the frame."""
        seen = self.seen
        frame_r, box_r4 = seen.region_frames_r[of_type_r], seen.region_boxes_r4[of_type_r]
        area_r = seen.region_counts_rb[of_type_r].sum(axis=1)
        found_r = verdicts.covered_px_r[of_type_r] >= REGION_FOUND_SHARE * area_r
        found_r &= verdicts.covered_px_r[of_type_r] > 0
        size_r2 = seen.sizes_n2[frame_r]
        centre_r2 = (box_r4[:, :2] + box_r4[:, 2:] / 2) / np.maximum(size_r2, 1)

        def counted(chosen_r: Bools) -> Json:
            of_n = np.bincount(frame_r[chosen_r], minlength=len(seen))
            hits_n = np.bincount(frame_r[chosen_r & found_r], minlength=len(seen))
            return {
                "regions": int(chosen_r.sum()),
                "found": _Ticket(self.bench.share(hits_n, of_n)),
            }

        def by_place(axis: int) -> list[Json]:
            third_r = np.clip((centre_r2[:, axis] * 3).astype(int), 0, 2)
            return [
                {"from": THIRDS[i], "to": THIRDS[i + 1], **counted(third_r == i)} for i in range(3)
            ]

        ends = (*SIZE_EDGES_PX[1:], None)
        by_size = [
            {
                "from_px": low,
                "to_px": high,
                **counted((area_r >= low) & (area_r < (high or math.inf))),
            }
            for low, high in zip(SIZE_EDGES_PX, ends, strict=True)
        ]
        return {
            "regions_found": counted(np.ones(len(area_r), bool))["found"],
            "by_size": by_size,
            "by_position_x": by_place(0),
            "by_position_y": by_place(1),
        }

    def _by_brightness(self, present_n: Bools, called_n: Bools) -> list[Json]:
        """Frames of the type found, by quartile of their mean grey level."""
        levels_n = self.seen.brightness_n
        if not present_n.any():
            return []
        ends = np.quantile(levels_n[present_n].astype(np.float64), QUARTILES)
        quarter_n = np.clip(np.searchsorted(ends[1:-1], levels_n, side="right"), 0, 3)
        return [
            {
                "from": float(ends[i]),
                "to": float(ends[i + 1]),
                "frames": int((present_n & (quarter_n == i)).sum()),
                "found": _Ticket(
                    self.bench.share(
                        called_n & present_n & (quarter_n == i), present_n & (quarter_n == i)
                    )
                ),
            }
            for i in range(4)
        ]


@dataclass(frozen=True, slots=True)
class _Ticket:
    """Place of a figure that is still to be measured."""

    number: int


def _resolved(value: Any, figures: Sequence[Figure]) -> Any:
    if isinstance(value, _Ticket):
        return figures[value.number]
    if isinstance(value, dict):
        return {key: _resolved(item, figures) for key, item in value.items()}
    return [_resolved(item, figures) for item in value] if isinstance(value, list) else value


def _verdicts_of(verdicts: Verdicts, chosen_n: Bools, predictions: Predictions) -> Verdicts:
    """Of some frames."""
    return Verdicts(
        answered_n=verdicts.answered_n[chosen_n],
        cleared_n=verdicts.cleared_n[chosen_n],
        ng_n=verdicts.ng_n[chosen_n],
        called_nk=verdicts.called_nk[chosen_n],
        area_px_nk=verdicts.area_px_nk[chosen_n],
        true_px_nk=verdicts.true_px_nk[chosen_n],
        covered_px_r=verdicts.covered_px_r[chosen_n[predictions.region_frames_r]],
        rounded_pixel_from=verdicts.rounded_pixel_from,
    )


def _names(predictions: Predictions, rows: NDArray[Any]) -> list[str]:
    return [predictions.images[n] for n in rows]


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _corners(above_s: Ints, alarms_s: Ints) -> Ints:
    """Points of a ROC curve without those on straight lines, thinned to what can be seen."""
    before, after = np.diff(above_s), np.diff(alarms_s)
    straight = before[:-1] * after[1:] == before[1:] * after[:-1]
    kept = np.flatnonzero(np.concatenate(([True], ~straight, [True])))
    return _thinned(kept)


def _thinned(points: NDArray[Any]) -> Ints:
    chosen = np.linspace(0, len(points) - 1, min(CURVE_POINTS, len(points)))
    kept: Ints = points[np.unique(np.rint(chosen).astype(int))]
    return kept


def _worst_type(types: Mapping[str, Json]) -> Json | None:
    known = {c: told["found"] for c, told in types.items() if told["found"].value is not None}
    if not known:
        return None
    worst = min(known, key=lambda c: known[c].value or 0.0)
    return {"id": worst, "found": known[worst]}


# Words -------------------------------------------------------------------------------------------


def _sentences(
    frames: Json, told: Json, worst: Json | None, names: Any, not_measured: Mapping[str, str]
) -> list[str]:
    """What the figures say; ``names`` of the types by id, where they are told."""
    said = []
    decided = told["at_decision"]
    if decided is not None:
        for key, noun, verb in (
            ("escape_rate", "faulty", "misses"),
            ("overkill_rate", "clean", "blocks"),
        ):
            figure = decided[key]
            if figure.value is None:
                said.append(f"There is no {noun} frame to measure on.")
            else:
                said.append(
                    f"Of {figure.of:,} {noun} frames it {verb} {figure.count:,} ({_share(figure)})."
                )
    elif told["ranking"] is not None:
        recall = told["ranking"]["recall_at_2_percent"]
        said.append(
            f"No decision file: where 2 % of the clean frames raise an alarm, it finds"
            f" {recall.count:,} of {recall.of:,} faulty ones ({_share(recall)})."
        )
    else:
        said.append(
            "No decision file, so nothing is known about misses and false alarms; nor about ranking"
            f" ({not_measured['ranking']})."
        )
    if frames["unanswered"]:
        said.append(
            f"{frames['unanswered']:,} of {frames['seen']:,} frames have no answer"
            f" ({frames['unanswered_faulty']:,} of them faulty); a person has to look at them, and"
            " no figure counts them."
        )
    if worst is not None and len(told["types"]) > 1:
        figure = worst["found"]
        few = " Too few frames to say more." if figure.high - figure.low > 0.5 else ""
        name = names.get(worst["id"]) if isinstance(names, Mapping) else None
        said.append(
            f"{name or 'Type ' + worst['id']} is found least often: on {figure.count:,} of"
            f" {figure.of:,} frames ({_share(figure)}).{few}"
        )
    dice, nothing = told["kaggle"]["dice"], told["kaggle"]["predict_nothing"]
    if dice.value is not None:
        delivered = told["mean"]["dice_delivered"]
        hidden = (
            "There is no labelled mask to compare with."
            if delivered.value is None
            else "Where a type is present, the delivered masks have a mean Dice of"
            f" {_number(delivered)}."
        )
        said.append(
            f"Kaggle's Dice is {_number(dice, 3)}; predicting nothing at all scores"
            f" {nothing.value:.3f} on these frames. {hidden}"
        )
    return said


def _share(figure: Figure) -> str:
    if figure.value is None:
        return "not known"
    if figure.low is None or figure.high is None:
        return f"{100 * figure.value:.3g} %"
    return (
        f"{_percent(figure.value)} %, 95 % interval {_percent(figure.low)} to"
        f" {_percent(figure.high)} %"
    )


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.1f}" if percent < 10 else f"{percent:.0f}"


def _number(figure: Figure, digits: int = 2) -> str:
    ends = (figure.value, figure.low, figure.high)
    value, *interval = (None if end is None else f"{end:.{digits}f}" for end in ends)
    low, high = interval
    return f"{value}" if low is None or high is None else f"{value} ({low} to {high})"
