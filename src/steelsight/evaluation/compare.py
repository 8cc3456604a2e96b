"""Is B better than A, or is it noise: two sets of predictions on the same frames.

Every figure is compared on the same frames and on the same draws of the bootstrap: a frame that is
hard is hard for both, and drops out of the difference.

**McNemar** (1947, Psychometrika 12) is the headline where verdicts are known: of the frames that
one gets right and the other wrong, each side would get half if neither were better; the two-sided
binomial test says how surprising the count is. NG is right on a faulty frame, OK on a clean one.
Frames of one group are not independent, so a group counts once, for the side that it favours; where
every frame stands alone that is McNemar's exact test.

**Figures** are compared by the paired bootstrap over groups: 95 % percentile interval of the
difference. Several are compared, so about one in twenty of equal ones differs by chance.

**How many frames** it would take is the usual count for a power of 80 % at 5 %, two-sided, if the
difference is as large as it was here.

A frame on which one side has no answer is in no figure, and is counted.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelsight.defects import Verdict
from steelsight.errors import first_names
from steelsight.evaluation.intervals import binomial_cdf, bootstrap_groups, percentile_interval
from steelsight.evaluation.metrics import HIGH_SHARE, LOW_SHARE
from steelsight.evaluation.pairing import Answers, Frames, Pair, Side, pair
from steelsight.evaluation.ranking import Ranking, ratio

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

RESAMPLES = 2000
SIGNIFICANCE = 0.05
_REACH = 1.959964 + 0.841621
"""Standard errors that a difference must have for a power of 80 % at ``SIGNIFICANCE``."""


class Outcome(StrEnum):
    """What a comparison says."""

    BETTER = "B is better"
    WORSE = "B is worse"
    CANNOT_TELL = "cannot tell"
    NO_DIFFERENCE = "no difference"


# What is compared --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class McNemar:
    """Right and wrong verdicts of both on the same frames.

    Attributes:
        both_right, only_a, only_b, neither: frames that both, one or none of them gets right.
        groups_a, groups_b: groups that favour one of them; what the test is made on.
        p_value: two-sided exact binomial; 1 without any difference.
        outcome: at 5 %.
        frames_needed: to see such a difference with a power of 80 %; ``None`` unless it cannot be
            told, or without any difference.
    """

    both_right: int
    only_a: int
    only_b: int
    neither: int
    groups_a: int
    groups_b: int
    p_value: float
    outcome: Outcome
    frames_needed: int | None

    @property
    def frames(self) -> int:
        """How many were looked at."""
        return self.both_right + self.only_a + self.only_b + self.neither

    def to_json(self) -> dict[str, Any]:
        """All counts, with ``frames``."""
        return {
            "frames": self.frames,
            "both_right": self.both_right,
            "only_a_right": self.only_a,
            "only_b_right": self.only_b,
            "neither_right": self.neither,
            "groups_for_a": self.groups_a,
            "groups_for_b": self.groups_b,
            "p_value": _digits(self.p_value),
            "outcome": self.outcome.value,
            "frames_needed": self.frames_needed,
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of both.

    Attributes:
        a, b: the figure.
        low, high: 95 % interval of ``b - a``.
        of: frames that it is measured on.
        unit: what these frames are, in words, such as ``faulty frames``.
        higher_is_better: of B.
        outcome: whether the interval leaves 0 out.
        frames_needed: as in :class:`McNemar`, of this unit.
    """

    a: float
    b: float
    low: float
    high: float
    of: int
    unit: str
    higher_is_better: bool
    outcome: Outcome
    frames_needed: int | None

    @property
    def difference(self) -> float:
        """``b - a``."""
        return self.b - self.a

    def to_json(self) -> dict[str, Any]:
        """All of it, six significant digits."""
        return {
            "a": _digits(self.a),
            "b": _digits(self.b),
            "difference": _digits(self.difference),
            "low": _digits(self.low),
            "high": _digits(self.high),
            "of": self.of,
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            "outcome": self.outcome.value,
            "frames_needed": self.frames_needed,
        }


@dataclass(frozen=True, slots=True)
class Flip:
    """A frame with another verdict.

    Attributes:
        image: its name.
        faulty: what its label says.
        class_ids: the types on it.
        verdict_a, verdict_b: of the two.
        probability_a, probability_b: faulty probability as the decision meets it.
    """

    image: str
    faulty: bool
    class_ids: tuple[str, ...]
    verdict_a: Verdict
    verdict_b: Verdict
    probability_a: float
    probability_b: float

    @property
    def right(self) -> Literal["A", "B"]:
        """Who says what the label says."""
        return "B" if (self.verdict_b is Verdict.NG) == self.faulty else "A"

    def to_json(self) -> dict[str, Any]:
        """All of it, with ``right``."""
        return {
            "image": self.image,
            "label": "faulty" if self.faulty else "clean",
            "types": list(self.class_ids),
            "verdict_a": self.verdict_a.value,
            "verdict_b": self.verdict_b.value,
            "faulty_probability_a": _digits(self.probability_a),
            "faulty_probability_b": _digits(self.probability_b),
            "right": self.right,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that was compared.

    Attributes:
        a, b: the two, as JSON.
        class_ids: the types.
        frames: counts: ``compared``, ``faulty``, ``clean``, ``groups``; ``only_a``, ``only_b``: not
            in the other file; ``unanswered_a``, ``unanswered_b``: in both files, and that side has
            no answer.
        mcnemar: by ``all``, ``faulty`` and ``clean``; empty without two decisions.
        figures: by name.
        types: by type and name.
        flips: frames with another verdict: faulty ones that B loses first, then those that it
            gains, then clean ones alike.
        not_measured: figure -> reason.
        resamples, seed: of the bootstrap.
    """

    a: Mapping[str, Any]
    b: Mapping[str, Any]
    class_ids: tuple[str, ...]
    frames: Mapping[str, int]
    mcnemar: Mapping[str, McNemar]
    figures: Mapping[str, Difference]
    types: Mapping[str, Mapping[str, Difference]]
    flips: tuple[Flip, ...]
    not_measured: Mapping[str, str]
    resamples: int
    seed: int

    @property
    def differences(self) -> dict[str, Difference]:
        """All figures that were compared, those of a type as ``type/name``."""
        of_types = {
            f"{class_id}/{name}": difference
            for class_id, figures in self.types.items()
            for name, difference in figures.items()
        }
        return {**self.figures, **of_types}

    def to_json(self) -> dict[str, Any]:
        """For ``json.dumps``; no NaN or infinity."""
        return {
            "a": dict(self.a),
            "b": dict(self.b),
            "frames": dict(self.frames),
            "mcnemar": {name: test.to_json() for name, test in self.mcnemar.items()} or None,
            "figures": {name: figure.to_json() for name, figure in self.figures.items()},
            "types": {
                class_id: {name: figure.to_json() for name, figure in figures.items()}
                for class_id, figures in self.types.items()
            },
            "flips": [flip.to_json() for flip in self.flips],
            "not_measured": dict(self.not_measured),
            "resamples": self.resamples,
            "seed": self.seed,
            "summary": summary_sentences(self),
        }


def compare(a: Side, b: Side, *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Compares two sets of predictions on the frames that both hold, paired by name.

    Args:
        a: such as what runs today.
        b: such as what might replace it.
        resamples: of the bootstrap.
        seed: the same seed gives the same intervals.

    Raises:
        InputError: no frame, type or answer in common, or labels that differ.
        ValueError: less than one resample.
    """
    if resamples < 1:
        raise ValueError(f"expected at least one resample, got {resamples}")
    paired = pair(a, b)
    frames, first, second = paired.frames, paired.a, paired.b
    counts = paired.counts | {
        "compared": len(frames.images),
        "faulty": int(frames.faulty_n.sum()),
        "clean": int((~frames.faulty_n).sum()),
        "groups": len(np.unique(frames.groups_n)),
    }
    not_measured: dict[str, str] = {}
    tests: dict[str, McNemar] = {}
    flips: tuple[Flip, ...] = ()
    if first.ng_n is not None and second.ng_n is not None:
        faulty_n = frames.faulty_n
        right_a, right_b = first.ng_n == faulty_n, second.ng_n == faulty_n
        for name, chosen in (
            ("all", np.ones(len(faulty_n), np.bool_)),
            ("faulty", faulty_n),
            ("clean", ~faulty_n),
        ):
            tests[name] = mcnemar(right_a[chosen], right_b[chosen], frames.groups_n[chosen])
        flips = _flips(frames, first, second)
    else:
        not_measured["verdicts"] = _without_decision(a, b)
    draws_a, draws_b = _drawn(paired, resamples, seed)
    found: dict[_Key, Difference] = {}
    reasons: dict[_Key, str] = {}
    for key, measure in _measures(frames).items():
        test = tests.get({"escape_rate": "faulty", "overkill_rate": "clean"}.get(key[1], ""))
        missing = _missing(key[1], a, b)
        if missing is None:
            difference = _difference(measure, draws_a[key], draws_b[key], test)
            if difference is not None:
                found[key] = difference
                continue
        reasons[key] = missing or measure.missing
    not_measured |= {(f"{w}/{n}" if w else n): reason for (w, n), reason in reasons.items()}
    return Comparison(
        a=a.to_json(),
        b=b.to_json(),
        class_ids=frames.class_ids,
        frames=counts,
        mcnemar=tests,
        figures={name: d for (where, name), d in found.items() if not where},
        types={
            class_id: {name: d for (where, name), d in found.items() if where == class_id}
            for class_id in frames.class_ids
        },
        flips=flips,
        not_measured=not_measured,
        resamples=resamples,
        seed=seed,
    )


def summary_sentences(comparison: Comparison) -> list[str]:
    """The answer in plain words, the most important first."""
    counts = comparison.frames
    said = []
    if comparison.mcnemar:
        said.append(_headline(comparison.mcnemar["all"]))
        for name, verb, rate in (
            ("faulty", "misses", "escape_rate"),
            ("clean", "blocks", "overkill_rate"),
        ):
            if rate in comparison.figures:
                said.append(_of_label(name, verb, comparison, comparison.figures[rate]))
    else:
        said.append(
            f"Verdicts were not compared: {comparison.not_measured['verdicts']}; give --decision-a"
            " and --decision-b."
        )
    said.append(_of_figures(comparison))
    said.append(
        f"Compared on {counts['compared']:,} frames that both answer: {counts['faulty']:,} faulty,"
        f" {counts['clean']:,} clean, {counts['groups']:,} independent groups."
    )
    for name, other in (("a", "b"), ("b", "a")):
        unanswered, alone = counts[f"unanswered_{name}"], counts[f"only_{name}"]
        if unanswered:
            said.append(
                f"{name.upper()} has no answer on {_frames(unanswered)} that both files hold:"
                f" {'it is' if unanswered == 1 else 'they are'} in no figure."
            )
        if alone:
            said.append(
                f"{_frames(alone)} of {name.upper()} {'is' if alone == 1 else 'are'} not in"
                f" {other.upper()}: left out."
            )
    return said


def _headline(test: McNemar) -> str:
    if test.outcome is Outcome.NO_DIFFERENCE:
        return f"No difference: both give the same verdict on all {_frames(test.frames)}."
    counts = (
        f"B gets {_frames(test.only_b)} right that A gets wrong, A {test.only_a:,} that B gets"
        f" wrong (of {test.frames:,}, a miss and a false alarm counted alike; McNemar p ="
        f" {_p_text(test.p_value)})"
    )
    if test.outcome is Outcome.CANNOT_TELL:
        return f"It cannot be told which one is better: {counts}.{_needed(test.frames_needed)}"
    return f"{test.outcome}, and that is hardly noise: {counts}."


def _of_label(name: str, verb: str, comparison: Comparison, rate: Difference) -> str:
    test = comparison.mcnemar[name]
    wrong_a = test.only_b + test.neither
    wrong_b = test.only_a + test.neither
    told = f"Of {_frames(test.frames, name)} A {verb} {wrong_a:,} and B {wrong_b:,}: {test.outcome}"
    if test.outcome is Outcome.NO_DIFFERENCE:
        return f"{told}."
    return (
        f"{told} (p = {_p_text(test.p_value)}); B minus A {_points(rate.difference)} points,"
        f" 95 % interval {_points(rate.low)} to {_points(rate.high)}."
    )


def _of_figures(comparison: Comparison) -> str:
    rates = ("escape_rate", "overkill_rate")
    others = {name: d for name, d in comparison.differences.items() if name not in rates}
    if not others:
        return "No other figure could be compared."
    further = "further " if comparison.mcnemar else ""
    told = [
        f"{_words(name)} ({d.outcome.value})"
        for name, d in others.items()
        if d.outcome in (Outcome.BETTER, Outcome.WORSE)
    ]
    chance = "about one in twenty of equal ones does so by chance"
    if not told:
        return f"Of {len(others)} {further}figures none differs beyond its 95 % interval."
    return (
        f"Of {len(others)} {further}figures {len(told)} differ{'s' if len(told) == 1 else ''}"
        f" beyond the 95 % interval, and {chance}: {first_names(told, 6)}."
    )


_FIGURE_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "auroc": "AUROC",
        "average_precision": "average precision",
        "recall_at_2_percent": "recall at 2 % false alarms",
        "recall_at_5_percent": "recall at 5 % false alarms",
        "dice_delivered": "Dice of delivered masks",
        "dice_segmented": "Dice of the network's masks",
        "kaggle_dice": "Kaggle Dice",
        "escape_rate": "escape rate",
        "overkill_rate": "overkill rate",
    }
)


def _words(name: str) -> str:
    class_id, _, figure = name.rpartition("/")
    words = _FIGURE_WORDS[figure]
    if class_id:
        return f"{words}, type {class_id}"
    return f"mean {words}" if figure.startswith("dice") else words


def figure_words(name: str) -> str:
    """A figure's name for people, such as ``recall at 2 % false alarms``."""
    return _FIGURE_WORDS[name]


# Tests -------------------------------------------------------------------------------------------


def mcnemar(right_a: Bools, right_b: Bools, groups_n: Ints) -> McNemar:
    """Tests whether one of two is right more often on the same frames.

    Args:
        right_a: A is right, ``(N,)``.
        right_b: B is right, ``(N,)``.
        groups_n: number of the group of each frame; a group counts once, for the side that it
            favours, and not at all if it favours none.

    Returns:
        Counts and the two-sided exact binomial test; see the top of this module.
    """
    favours_n = right_b.astype(np.int64) - right_a.astype(np.int64)
    _, group_n = np.unique(groups_n, return_inverse=True)
    favours_g = np.zeros(group_n.max(initial=-1) + 1, np.int64)
    np.add.at(favours_g, group_n, favours_n)
    for_a, for_b = int((favours_g < 0).sum()), int((favours_g > 0).sum())
    p_value = min(2 * binomial_cdf(min(for_a, for_b), for_a + for_b, 0.5), 1.0)
    only_a, only_b = int((favours_n < 0).sum()), int((favours_n > 0).sum())
    needed = None
    if not (only_a or only_b):
        outcome = Outcome.NO_DIFFERENCE
    elif p_value < SIGNIFICANCE:
        outcome = Outcome.BETTER if for_b > for_a else Outcome.WORSE
    else:
        outcome = Outcome.CANNOT_TELL
        net = int(favours_g.sum())
        variance = float((favours_g**2).sum() - net**2 / max(len(favours_g), 1))
        needed = _frames_needed(len(favours_n), net, math.sqrt(variance))
    return McNemar(
        both_right=int((right_a & right_b).sum()),
        only_a=only_a,
        only_b=only_b,
        neither=int((~right_a & ~right_b).sum()),
        groups_a=for_a,
        groups_b=for_b,
        p_value=p_value,
        outcome=outcome,
        frames_needed=needed,
    )


def _frames_needed(frames: int, difference: float, standard_error: float) -> int | None:
    """Frames for a power of 80 %, two significant digits; ``None`` without a difference."""
    if not difference:
        return None
    wanted = max(frames * (_REACH * standard_error / difference) ** 2, frames + 1)
    digits = int(10 ** max(math.floor(math.log10(wanted)) - 1, 0))
    return math.ceil(wanted / digits) * digits


def _flips(frames: Frames, a: Answers, b: Answers) -> tuple[Flip, ...]:
    if a.ng_n is None or b.ng_n is None:
        return ()
    flipped = np.flatnonzero(a.ng_n != b.ng_n)
    # Label, then who is right, then how far the two are apart.
    lost = a.ng_n[flipped] == frames.faulty_n[flipped]
    apart = np.abs(a.probability_n - b.probability_n)[flipped]
    flipped = flipped[np.lexsort((-apart, ~lost, ~frames.faulty_n[flipped]))]
    return tuple(
        Flip(
            image=frames.images[n],
            faulty=bool(frames.faulty_n[n]),
            class_ids=tuple(
                c for c, on in zip(frames.class_ids, frames.present_nk[n], strict=True) if on
            ),
            verdict_a=Verdict.NG if a.ng_n[n] else Verdict.OK,
            verdict_b=Verdict.NG if b.ng_n[n] else Verdict.OK,
            probability_a=float(a.probability_n[n]),
            probability_b=float(b.probability_n[n]),
        )
        for n in flipped.tolist()
    )


# Figures -----------------------------------------------------------------------------------------

_Key = tuple[str, str]
"""Type, or nothing; and name of a figure."""

_RANKING = ("auroc", "average_precision", "recall_at_2_percent", "recall_at_5_percent")
_AT_DECISION = ("dice_delivered", "kaggle_dice", "escape_rate", "overkill_rate")


class _Measure(NamedTuple):
    """What a figure is measured on, and what is said where there is nothing to measure it on."""

    of: int
    unit: str
    missing: str
    higher_is_better: bool = True


def _measures(frames: Frames) -> dict[_Key, _Measure]:
    faulty, clean = int(frames.faulty_n.sum()), int((~frames.faulty_n).sum())
    count = len(frames.images)
    known = int((frames.masked_nk | ~frames.present_nk).any(axis=1).sum())
    masked = int(frames.masked_nk.any(axis=1).sum())
    both = _Measure(count, "frames", "it takes faulty and clean frames")
    measures: dict[_Key, _Measure] = {("", name): both for name in _RANKING}
    measures["", "escape_rate"] = _Measure(faulty, "faulty frames", "no frame is faulty", False)
    measures["", "overkill_rate"] = _Measure(clean, "clean frames", "no frame is clean", False)
    measures["", "kaggle_dice"] = _Measure(known, "frames", "no mask is known")
    for name in ("dice_delivered", "dice_segmented"):
        measures["", name] = _Measure(masked, "frames with a mask", "no mask is known")
        for k, class_id in enumerate(frames.class_ids):
            of = int(frames.masked_nk[:, k].sum())
            unit = f"frames with type {class_id}"
            measures[class_id, name] = _Measure(of, unit, "no frame holds it with a known mask")
    return measures


def _missing(name: str, a: Side, b: Side) -> str | None:
    """Why one side, or neither, has a figure."""
    if name in _AT_DECISION:
        return _without_decision(a, b) or None
    if name not in _RANKING or (a.predictions.scored and b.predictions.scored):
        return None
    without = [n for n, side in (("A", a), ("B", b)) if not side.predictions.scored]
    return f"masks alone are known of {' and '.join(without)}"


def _without_decision(a: Side, b: Side) -> str:
    without = [n for n, side in (("A", a), ("B", b)) if side.decision is None]
    return f"no decision is known for {' and '.join(without)}" if without else ""


def _drawn(
    paired: Pair, resamples: int, seed: int
) -> tuple[dict[_Key, Floats], dict[_Key, Floats]]:
    """All figures of both sides: first on the frames as they are, then on each draw."""
    frames = paired.frames
    meters = (_Meter(frames, paired.a), _Meter(frames, paired.b))
    whole = np.ones((1, len(frames.images)), np.int64)
    blocks = [[meter.figures(whole)] for meter in meters]
    for weights_rn in bootstrap_groups(frames.groups_n, resamples, seed):
        for meter, of_side in zip(meters, blocks, strict=True):
            of_side.append(meter.figures(weights_rn))
    first, second = (
        {key: np.concatenate([block[key] for block in of_side]) for key in of_side[0]}
        for of_side in blocks
    )
    return first, second


def _difference(
    measure: _Measure, values_a: Floats, values_b: Floats, test: McNemar | None
) -> Difference | None:
    """From the figure on all frames (the first) and on the draws; ``None``: nothing to measure.

    Args:
        measure: what it is measured on.
        values_a: NaN where a draw holds no frame of the kind.
        values_b: the same draws.
        test: an exact test of the same difference; both must agree that there is one.
    """
    a, b = float(values_a[0]), float(values_b[0])
    differences = (values_b - values_a)[1:]
    differences = differences[np.isfinite(differences)]
    if not (math.isfinite(a) and math.isfinite(b)) or not len(differences):
        return None
    low, high = percentile_interval(differences)
    if a == b and low == high == 0:
        outcome = Outcome.NO_DIFFERENCE
    elif low > 0 or high < 0:
        better = (low > 0) == measure.higher_is_better
        outcome = Outcome.BETTER if better else Outcome.WORSE
    else:
        outcome = Outcome.CANNOT_TELL
    if test is not None and test.outcome is not outcome:
        # A percentile interval of few events is too narrow.
        outcome = Outcome.CANNOT_TELL
    needed = None
    if outcome is Outcome.CANNOT_TELL:
        needed = _frames_needed(measure.of, b - a, float(differences.std()))
    return Difference(
        a, b, low, high, measure.of, measure.unit, measure.higher_is_better, outcome, needed
    )


class _Meter:
    """All figures of one side for any number of draws at once."""

    def __init__(self, frames: Frames, answers: Answers) -> None:
        self._frames = frames
        self._ranking = None
        if answers.logits_n is not None:
            self._ranking = Ranking(answers.logits_n, frames.faulty_n)
        self._dice_nk = {"dice_segmented": answers.segmented_nk}
        self._wrong_n: Bools | None = None
        if answers.delivered_nk is not None:
            self._dice_nk["dice_delivered"] = answers.delivered_nk
        if answers.ng_n is not None:
            self._wrong_n = answers.ng_n != frames.faulty_n

    def figures(self, weights_rn: Ints) -> dict[_Key, Floats]:
        """By key, ``(R,)``; NaN where a draw holds nothing to measure on.

        Args:
            weights_rn: how often each frame is drawn.
        """
        frames, weights = self._frames, weights_rn.astype(np.float64)
        found: dict[_Key, Floats] = {}
        if self._ranking is not None:
            ranked = self._ranking.figures(weights_rn, (LOW_SHARE, HIGH_SHARE))
            found |= {("", name): ranked[name] for name in _RANKING}
        masked_nk = frames.masked_nk.astype(np.float64)
        frames_rk = weights @ masked_nk
        for name, dice_nk in self._dice_nk.items():
            dice_rk = ratio(weights @ (dice_nk * masked_nk), frames_rk)
            found |= {(c, name): dice_rk[:, k] for k, c in enumerate(frames.class_ids)}
            drawn_rk = frames_rk > 0
            total_r = np.where(drawn_rk, dice_rk, 0).sum(axis=1)
            found["", name] = ratio(total_r, drawn_rk.sum(axis=1).astype(np.float64))
        if self._wrong_n is not None:
            known_nk = (frames.masked_nk | ~frames.present_nk).astype(np.float64)
            dice_n = (self._dice_nk["dice_delivered"] * known_nk).sum(axis=1)
            found["", "kaggle_dice"] = ratio(weights @ dice_n, weights @ known_nk.sum(axis=1))
            for name, chosen in (
                ("escape_rate", frames.faulty_n),
                ("overkill_rate", ~frames.faulty_n),
            ):
                of = chosen.astype(np.float64)
                found["", name] = ratio(weights @ (of * self._wrong_n), weights @ of)
        return found


# Words -------------------------------------------------------------------------------------------


def _digits(value: float) -> float:
    return float(f"{value:.6g}")


def _frames(count: int, kind: str = "") -> str:
    return f"{count:,} {kind + ' ' if kind else ''}frame{'' if count == 1 else 's'}"


def _points(share: float) -> str:
    """Percentage points with a sign; zero without."""
    told = f"{100 * share:+.1f}"
    return "0" if told in ("+0.0", "-0.0") else told.replace("-", "\N{MINUS SIGN}")


def _p_text(p_value: float) -> str:
    if p_value < 0.0001:
        return "less than 0.0001"
    return f"{p_value:.2g}"


def _needed(frames: int | None) -> str:
    if frames is None:
        return ""
    return f" If the difference is as large as here, about {frames:,} frames would show it."
