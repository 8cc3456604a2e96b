"""A decision file from what a network said about frames that it had not seen, by one of five rules.

**false-alarms**, the rule of the shipped decision:

* ``clear_below``: 5 % of the clean frames reach it and are segmented, the others are cleared;
* ``ng_from``: 2 % of the clean frames reach it;
* ``label_from`` of a type: 2 % of the clean frames reach it with that type's score;
* ``pixel_from`` of a type: best mean Dice on frames that hold it, kept within logits -2 to 0.5: the
  optimum beyond is flat and moves with few frames, and masks from far below 0.12 are smears.

Clean scores are counted as in :mod:`steelsight.evaluation.metrics`.

What the frames cannot justify is decided to the safe side, and ``rule`` says so:

* Fewer than ``LEAST_CLEAN`` clean frames: 5 % of them would be less than five frames. No frame is
  cleared without segmentation. ``ng_from`` and ``label_from`` lie just above the highest clean
  score, but not above 0.5: one wrong label must not silence an alarm. Among n frames the highest
  lies at about the 1 / n point, so this raises more false alarms than 2 %, not fewer.
* No clean frame at all: nothing is known about false alarms. Both lie at the lowest score of a
  frame that holds a defect (that type), but not above 0.5: what scores as the known defects is NG.
* A type of which no mask is known: probability 0.5 for its pixels.

**recall**, **cost** and **guarantee** move along the settings of one strictness, see
:mod:`steelsight.evaluation.rules`: a setting that allows *a* alarms lets *a* clean frames reach
``ng_from``, *a* each ``label_from``, and 2.5 *a* ``clear_below``. false-alarms is the setting of
2 % of the clean frames. All thresholds fall together as *a* grows, so a frame that is NG stays NG;
``pixel_from`` is that of false-alarms and ``min_area_px`` 0 in every setting. The settings follow
from the clean frames alone: to the guarantee, which tests faulty frames, they are fixed in advance.
``pixel_from`` does follow from faulty frames, so the guarantee counts a mask only if it is there at
the highest pixel threshold that could have been chosen: what is delivered finds no fewer frames.

**kaggle** maximises Kaggle's Dice over all thresholds that it depends on.

An *escape* is a faulty frame with the verdict OK, *overkill* a clean one with NG. UNKNOWN is
neither: somebody looks. Such frames are counted beside.
"""

import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelsight.decisions import Decision, FirstLookRule, GateRule, TypeRule
from steelsight.errors import InputError, escaped, first_names
from steelsight.evaluation.intervals import binomial_interval
from steelsight.evaluation.metrics import (
    HIGH_SHARE,
    LOW_SHARE,
    false_alarm_threshold,
    nearest_edge,
    type_figures,
)
from steelsight.evaluation.predictions import (
    MASK_LOGIT_EDGES,
    MASK_PROBABILITY_EDGES,
    Predictions,
)
from steelsight.evaluation.rules import (
    CostCurve,
    Prices,
    best_masks,
    cost_curve,
    fewest_for_recall,
    fewest_guaranteed,
    fit_temperature,
    least_cost,
    one_of_each_group,
    settled_temperature,
)
from steelsight.evaluation.verdicts import Verdicts, apply_decision, settled

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

LEAST_CLEAN = 100
"""Clean frames from which on shares of 2 and 5 % mean something: two and five frames."""

PIXEL_LOGITS = (-2.0, 0.5)
"""Pixel thresholds are kept within these logits."""

MIN_CONTRAST = 2.0
"""Flatter frames are ``blank``; the least contrast among 794 real frames is 4.6 grey levels."""

CLEAR_NOTHING = 1e-30
"""The ``clear_below`` that clears nothing: no logit of a network comes near its -69."""

CLEAR_TIMES = HIGH_SHARE / LOW_SHARE
"""In every setting so many times more clean frames reach ``clear_below`` than ``ng_from``."""

KAGGLE_CLEARS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
"""Shares of the clean frames that reach a ``clear_below`` which the rule kaggle tries."""

NESTED_FOLDS = 5

_HALF = 0.5
_MOST = 1 - 1e-8
"""Highest threshold; the only float32 probability that reaches it is 1."""
_DIGITS = 8
"""Significant digits that are written: one more than float32 has."""


# Rules -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FalseAlarms:
    """The shares of clean frames that reach thresholds are given."""

    false_alarms: float = LOW_SHARE
    """That reach ``ng_from``, and each ``label_from``."""
    clear: float = HIGH_SHARE
    """That reach ``clear_below``."""

    def __post_init__(self) -> None:
        if not 0 <= self.false_alarms <= self.clear < 1:
            raise InputError(
                "expected 0 <= --false-alarms <= --clear < 1: frames that are cleared cannot be NG;"
                f" got {self.false_alarms:g} and {self.clear:g}"
            )


@dataclass(frozen=True, slots=True)
class Kaggle:
    """Kaggle's Dice is as high as it can be."""


@dataclass(frozen=True, slots=True)
class Recall:
    """A share of the faulty frames is NG, at the least false alarms."""

    recall: float = 0.95

    def __post_init__(self) -> None:
        _check_share(self.recall, "--recall", most=1.0)


@dataclass(frozen=True, slots=True)
class Cost:
    """The expected cost of a frame is as low as it can be."""

    escape_cost: float = 400.0
    """Of a faulty frame that is OK, in any currency."""
    overkill_cost: float = 15.0
    """Of a clean frame that is NG."""
    prevalence: float = 0.02
    """Share of faulty frames on the line."""

    def __post_init__(self) -> None:
        for name, value in (("escape", self.escape_cost), ("overkill", self.overkill_cost)):
            if not 0 < value < 1e12:
                raise InputError(f"expected --{name}-cost above 0 and below 1e12, got {value:g}")
        _check_share(self.prevalence, "--prevalence")


@dataclass(frozen=True, slots=True)
class Guarantee:
    """With a confidence, no more than a share of the faulty frames is OK, at the least alarms."""

    max_escape_rate: float = 0.02
    confidence: float = 0.95
    per_type: bool = False
    """Of the frames that hold a type, for each type at once; else of all faulty frames."""

    def __post_init__(self) -> None:
        _check_share(self.max_escape_rate, "--max-escape-rate")
        _check_share(self.confidence, "--confidence")


Rule = FalseAlarms | Kaggle | Recall | Cost | Guarantee


def _check_share(value: float, name: str, most: float = 0.999999) -> None:
    if not 1e-6 <= value <= most:
        raise InputError(
            f"expected {name} as a share above 0 and {'at most' if most == 1 else 'below'} 1, such"
            f" as 0.02 for 2 %; got {value:g}"
        )


# Choosing ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """Thresholds that a rule chose.

    Attributes:
        gate: on the frame.
        types: by type, in channel order.
        rule: how they were chosen, in words.
        below_clear: faulty frames that stage 1 clears, and all faulty frames.
        pixel_logits: of ``pixel_from`` by type.
        allowed: the setting of strictness; ``None`` for rules without.
        clean_frames: the most cautious setting.
        curve: expected cost by setting, if asked for.
        ng_from_p: ``ng_from`` at the points of the curve.
        first_look: on the frame, if the predictions have its scores and it is wanted.
        first_settles: faulty frames that it settles.
    """

    gate: GateRule
    types: Mapping[str, TypeRule]
    rule: str
    below_clear: tuple[int, int]
    pixel_logits: Mapping[str, float]
    allowed: int | None = None
    clean_frames: int = 0
    curve: CostCurve | None = None
    ng_from_p: Sequence[float] = ()
    first_look: FirstLookRule | None = None
    first_settles: int = 0

    def to_toml(self, name: str, chosen_on: str) -> str:
        """The decision file.

        Args:
            name: of the decision.
            chosen_on: in words, on which frames.
        """
        below, faulty = self.below_clear
        tables = [
            "version = 1",
            f"name = {_toml(name)}",
            f"rule = {_toml(self.rule)}",
            f"chosen_on = {_toml(chosen_on)}",
            "",
            "[gate] # faulty_probability of a frame, sigmoid of the mean of both heads' logits",
            f"clear_below = {self.gate.clear_below:.{_DIGITS}g}"
            f" # {below} of {faulty} faulty frames lie below",
            f"ng_from = {self.gate.ng_from:.{_DIGITS}g}",
        ]
        if self.gate.temperature != 1:
            tables.append(f"temperature = {self.gate.temperature:.{_DIGITS}g}")
        if self.gate.soft:
            tables.append("soft = true")
        if self.first_look:
            tables += [
                "",
                "[first_look] # faulty_probability by the network in front of stage 1",
                f"clear_below = {self.first_look.clear_below:.{_DIGITS}g}"
                f" # {self.first_settles} of {faulty} faulty frames lie below",
                f"temperature = {self.first_look.temperature:.{_DIGITS}g}",
            ]
        tables += ["", "[input]", f"min_contrast = {MIN_CONTRAST}"]
        for class_id, of_type in self.types.items():
            tables += [
                "",
                f"[types.{class_id}]",
                f"label_from = {of_type.label_from:.{_DIGITS}g}",
                # Nine digits give back the float32 that pixels were counted with.
                f"pixel_from = {np.float32(of_type.pixel_from):.9g}"
                f" # logit {self.pixel_logits[class_id]:g}",
                f"min_area_px = {of_type.min_area_px}",
            ]
        text = "\n".join(tables) + "\n"
        Decision(**tomllib.loads(text))  # whatever was predicted, the file can be loaded
        return text

    def decision(self, name: str = "", chosen_on: str = "") -> Decision:
        """As it is read from the file, with its hash."""
        content = self.to_toml(name, chosen_on).encode()
        sha256 = hashlib.sha256(content).hexdigest()
        return Decision(**tomllib.loads(content.decode()) | {"sha256": sha256})


def choose_decision(predictions: Predictions, name: str, chosen_on: str) -> str:
    """The decision file for a network, by the rule false-alarms.

    Args:
        predictions: on frames that the network had not seen, such as out-of-fold ones; disputed
            frames are left out beforehand.
        name: of the decision.
        chosen_on: in plain words, which frames these are.

    Returns:
        TOML text for :func:`steelsight.decisions.load_decision`.

    Raises:
        InputError: no frames, or a score that is NaN or infinite.
    """
    return choose(predictions, FalseAlarms()).to_toml(name, chosen_on)


def choose(
    predictions: Predictions,
    rule: Rule,
    *,
    temperature: bool = False,
    soft: bool = False,
    curve: bool = False,
    first_look: float = 0.0,
) -> Choice:
    """Thresholds for a network by a rule.

    Args:
        predictions: as for :func:`choose_decision`.
        rule: what is wanted.
        temperature: fit the temperature of stage 1 first.
        soft: stage 1's probability weighs the scores of types.
        curve: measure the cost of other settings, too, if the rule weighs costs.
        first_look: share of the clean frames that the first look settles; 0 leaves it out.

    Raises:
        InputError: no frames, no scores, NaN or infinity, or too few frames for the rule.
        GateError: the frames cannot prove the guarantee.
    """
    _check(predictions)
    if isinstance(rule, Guarantee) and temperature and soft:
        raise InputError(
            "expected weights that are fixed before the faulty frames are looked at, got"
            " --soft-gate with a fitted --temperature: a guarantee would not hold; leave one out"
        )
    if isinstance(rule, Guarantee) and soft and first_look:
        # Its temperature is fitted, too: to the frames that it settles.
        raise InputError(
            "expected weights that are fixed before the faulty frames are looked at, got"
            " --soft-gate behind a --first-look: a guarantee would not hold; leave one out"
        )
    seen = _Seen.of(predictions, temperature=temperature, soft=soft, first_look=first_look)
    if isinstance(rule, FalseAlarms):
        return _by_false_alarms(seen, rule)
    if isinstance(rule, Kaggle):
        return _by_kaggle_dice(seen)
    return _by_strictness(seen, rule, with_curve=curve)


def _check(predictions: Predictions) -> None:
    if not len(predictions):
        raise InputError("expected frames to choose thresholds on, got none; hold some out")
    if not predictions.scored:
        raise InputError(
            "expected predictions with scores, got masks of another tool: there is no threshold to"
            " choose; predict with a bundle of steelsight"
        )
    scores_nk = predictions.type_scores_nk
    finite = np.isfinite(predictions.faulty_logits) & np.isfinite(scores_nk).all(axis=1)
    if not finite.all():
        images = [predictions.images[n] for n in np.flatnonzero(~finite)]
        raise InputError(
            f"expected finite scores, got NaN or infinity for {first_names(images, 3)}; the network"
            " diverged: lower its learning rate"
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Frames as the thresholds of a decision meet them.

    Attributes:
        predictions: of N frames.
        faulty_n: stage 1's probability at the temperature; that of the first look where it settles
            the frame.
        scores_nk: of types, weighed if the gate is soft.
        temperature, soft: of the gate.
        pixel_logit_k: of ``pixel_from``.
        pixel_words: how these were chosen.
        first_look: the rule of the first look.
    """

    predictions: Predictions
    faulty_n: Floats
    scores_nk: Floats
    temperature: float
    soft: bool
    pixel_logit_k: Floats
    pixel_words: str
    first_look: FirstLookRule | None

    @staticmethod
    def of(
        predictions: Predictions, *, temperature: bool, soft: bool, first_look: float
    ) -> "_Seen":
        fitted = 1.0
        if temperature:
            fitted = fit_temperature(predictions.faulty_logits, predictions.faulty)
        gate = GateRule(clear_below=_HALF, ng_from=_HALF, temperature=fitted, soft=soft)
        faulty_n = gate.calibrated(predictions.faulty_probability)
        first = _first_look(predictions, first_look) if first_look else None
        if first is not None:
            first_n, settled_n = settled(first, predictions)
            faulty_n = np.where(settled_n, first_n, faulty_n)
        figures = type_figures(predictions)
        best = [0.0 if f.pixel_logit is None else f.pixel_logit for f in figures]
        words = (
            "; pixel_from by the best mean Dice on frames that hold the type, kept within logits"
            f" {PIXEL_LOGITS[0]:g} to {PIXEL_LOGITS[1]:g}"
        )
        without_mask = [f.class_id for f in figures if not f.masked_frames]
        if without_mask:
            words += f", and 0.5 for types without a known mask ({first_names(without_mask)})"
        return _Seen(
            predictions,
            faulty_n,
            gate.weighed(predictions.type_scores_nk, faulty_n[:, None]),
            fitted,
            soft,
            np.clip(np.array(best), *PIXEL_LOGITS),
            words,
            first,
        )

    def outlined_nk(self, pixel_logit_k: Floats) -> Bools:
        """Whether a type has any pixel at its threshold."""
        of_mask_kb = np.arange(len(MASK_LOGIT_EDGES) + 1) > nearest_edge(pixel_logit_k)[:, None]
        found = self.predictions
        pixels_nkb = found.inside_nkb + found.outside_nkb
        outlined: Bools = (pixels_nkb * of_mask_kb).sum(axis=2) > 0
        return outlined

    def choice(
        self,
        clear_below: float,
        ng_from: float,
        label_from_k: Sequence[float],
        rule: str,
        pixel_logit_k: Floats | None = None,
        min_area_px_k: Sequence[int] | None = None,
        **more: Any,
    ) -> Choice:
        """Thresholds put together; pixel thresholds and areas unless others are given."""
        faulty = self.predictions.faulty
        class_ids = self.predictions.class_ids
        logits = self.pixel_logit_k if pixel_logit_k is None else pixel_logit_k
        gate = GateRule(
            clear_below=clear_below,
            ng_from=ng_from,
            temperature=self.temperature,
            soft=self.soft,
        )
        types = {
            class_id: TypeRule(
                label_from=label_from_k[k],
                pixel_from=float(MASK_PROBABILITY_EDGES[nearest_edge(logits[k])]),
                min_area_px=0 if min_area_px_k is None else min_area_px_k[k],
            )
            for k, class_id in enumerate(class_ids)
        }
        first, first_settles = self.first_look, 0
        if first is not None:
            if first.clear_below > clear_below:
                raise InputError(
                    "expected thresholds that leave room for a first look, but this rule wants"
                    f" frames from {clear_below:.3g} on to be segmented, and the first look settles"
                    f" those below {first.clear_below:.3g}; give a smaller --first-look, 0 for none"
                )
            settled_n = settled(first, self.predictions)[1]
            first_settles = int((settled_n & faulty).sum())
            share = 100 * float(settled_n[~faulty].mean())
            rule += (
                f"; the first look settles {share:.3g} % of the clean frames, its temperature by"
                " the share of faulty ones among those that it settles"
            )
        if self.temperature != 1:
            rule += (
                "; temperature by the least negative log likelihood of the frames' labels, at the"
                " share of faulty frames among them"
            )
        if self.soft:
            rule += "; scores of types are weighed by faulty_probability"
        below = int((self.faulty_n[faulty] < clear_below).sum())
        return Choice(
            gate=gate,
            types=types,
            rule=rule,
            below_clear=(below, int(faulty.sum())),
            pixel_logits=dict(zip(class_ids, logits.tolist(), strict=True)),
            first_look=first,
            first_settles=first_settles,
            **more,
        )


def _first_look(predictions: Predictions, share: float) -> FirstLookRule:
    """The rule by which a first look settles a share of the clean frames."""
    _check_share(share, "--first-look")
    raw_n, faulty = predictions.first_look_probability, predictions.faulty
    if raw_n is None:
        raise InputError(
            "expected predictions with the scores of a first look, got none; predict with a bundle"
            " that has one (steelsight model first-look), or leave --first-look out"
        )
    if int((~faulty).sum()) < LEAST_CLEAN:
        raise InputError(
            f"expected at least {LEAST_CLEAN} clean frames to see what a first look would settle,"
            f" got {int((~faulty).sum())}; add clean frames, or give --first-look 0"
        )
    if not np.isfinite(raw_n).all():
        image = predictions.images[int(np.flatnonzero(~np.isfinite(raw_n))[0])]
        raise InputError(
            f"expected scores of the first look to choose its threshold from, got NaN for {image};"
            " leave the frame out"
        )
    settled_n = raw_n < _reached_by(raw_n[~faulty], 1 - share)
    logits = predictions.first_look_logits
    temperature = 1.0
    if logits is not None and settled_n.any():
        temperature = settled_temperature(logits[settled_n], int((settled_n & faulty).sum()))
    rule = FirstLookRule(clear_below=_HALF, temperature=temperature)
    clear_below = _reached_by(rule.calibrated(raw_n)[~faulty], 1 - share)
    return rule.model_copy(update={"clear_below": clear_below})


# By false alarms ---------------------------------------------------------------------------------


def _by_false_alarms(seen: _Seen, rule: FalseAlarms) -> Choice:
    faulty, present_nk = seen.predictions.faulty, seen.predictions.present_nk
    clean_frames = int((~faulty).sum())
    clear_below = CLEAR_NOTHING
    if clean_frames >= LEAST_CLEAN:
        clear_below = _reached_by(seen.faulty_n[~faulty], rule.clear)
    share, clear = (f"{100 * value:g}" for value in (rule.false_alarms, rule.clear))
    if clean_frames >= LEAST_CLEAN:
        words = (
            f"of {clean_frames} clean frames at most {clear} % reach clear_below, {share} %"
            f" ng_from, and {share} % each label_from"
        )
    elif clean_frames:
        words = (
            f"only {clean_frames} clean frames, too few for shares of {share} and {clear} %: no"
            " frame is cleared without segmentation; ng_from and label_from just above the highest"
            " clean score, at most 0.5"
        )
    else:
        words = (
            "no clean frame, so nothing is known about false alarms: no frame is cleared without"
            " segmentation; ng_from and label_from at the lowest score of a frame that holds a"
            " defect (that type), at most 0.5"
        )
    return seen.choice(
        clear_below,
        _alarm_from(seen.faulty_n[~faulty], seen.faulty_n[faulty], rule.false_alarms),
        [
            _alarm_from(scores_n[~faulty], scores_n[present_n], rule.false_alarms)
            for scores_n, present_n in zip(seen.scores_nk.T, present_nk.T, strict=True)
        ],
        words + seen.pixel_words,
        clean_frames=clean_frames,
    )


def _alarm_from(scores_clean: Floats, scores_positive: Floats, share: float) -> float:
    """``ng_from`` or a ``label_from``."""
    if len(scores_clean) >= LEAST_CLEAN:
        return _reached_by(scores_clean, share)
    if len(scores_clean):
        return min(_reached_by(scores_clean, 0), _HALF)
    return _written(float(scores_positive.min(initial=_HALF)), ROUND_FLOOR)


def _reached_by(scores_clean: Floats, share: float) -> float:
    """The threshold that at most this share of the clean frames reaches."""
    return _written(false_alarm_threshold(scores_clean, share), ROUND_CEILING)


def _written(threshold: float, rounding: str) -> float:
    """As it stands in the file: rounded to the side that keeps the promise, and inside 0..1."""
    rounded = Context(prec=_DIGITS, rounding=rounding).create_decimal(Decimal(threshold))
    return min(max(float(rounded), CLEAR_NOTHING), _MOST)


# Along the settings of one strictness ------------------------------------------------------------


class _Ladder:
    """All thresholds on one score: step a is the one that at most a of n clean frames reach."""

    def __init__(self, scores_clean: Floats) -> None:
        ranked = np.sort(scores_clean)[::-1]
        self.steps = np.array(
            [_written(x, ROUND_CEILING) for x in np.nextafter(ranked, np.inf)] + [CLEAR_NOTHING]
        )

    def reached(self, scores: Floats) -> Ints:
        """The first step that each score reaches; one more than there are if none."""
        steps: Ints = len(self.steps) - np.searchsorted(self.steps[::-1], scores, "right")
        return steps


class _Strictness:
    """Settings by allowed alarms, as at the top of this module."""

    def __init__(self, seen: _Seen) -> None:
        clean = ~seen.predictions.faulty
        self.most = int(clean.sum())
        if self.most < LEAST_CLEAN:
            raise InputError(
                f"expected at least {LEAST_CLEAN} clean frames to compare scores with, got"
                f" {self.most}; add clean frames, or take --rule false-alarms"
            )
        self._seen = seen
        self._gate = _Ladder(seen.faulty_n[clean])
        self._types = [_Ladder(scores_n[clean]) for scores_n in seen.scores_nk.T]
        allowed = np.arange(self.most + 1)
        self._clears = np.minimum((CLEAR_TIMES * allowed + 1e-9).astype(np.int64), self.most)

    def ng_at(self, pixel_logit_k: Floats) -> Ints:
        """The fewest allowed alarms at which each frame is NG; more than ``most``: never.

        Args:
            pixel_logit_k: a type counts only with a pixel at this mask logit.
        """
        never = self.most + 1
        by_gate = self._gate.reached(self._seen.faulty_n)
        not_cleared = np.searchsorted(self._clears, by_gate, "left")
        by_type = np.full_like(by_gate, never)
        outlined_nk = self._seen.outlined_nk(pixel_logit_k)
        for k, ladder in enumerate(self._types):
            reached = ladder.reached(self._seen.scores_nk[:, k])
            by_type = np.minimum(by_type, np.where(outlined_nk[:, k], reached, never))
        ng_at: Ints = np.minimum(by_gate, np.maximum(by_type, not_cleared))
        return ng_at

    def choice(self, allowed: int, words: str, curve: CostCurve | None = None) -> Choice:
        """The thresholds of a setting."""
        clears = int(self._clears[allowed])
        return self._seen.choice(
            float(self._gate.steps[clears]),
            float(self._gate.steps[allowed]),
            [float(ladder.steps[allowed]) for ladder in self._types],
            f"{words}: of {self.most} clean frames at most {clears} reach clear_below, {allowed}"
            f" ng_from, and {allowed} each label_from{self._seen.pixel_words}",
            allowed=allowed,
            clean_frames=self.most,
            curve=curve,
            ng_from_p=self._gate.steps[curve.allowed_p].tolist() if curve else (),
        )


def _by_strictness(seen: _Seen, rule: Recall | Cost | Guarantee, *, with_curve: bool) -> Choice:
    settings, faulty = _Strictness(seen), seen.predictions.faulty
    if isinstance(rule, Guarantee):
        return _by_guarantee(seen, settings, rule)
    ng_at_n = settings.ng_at(seen.pixel_logit_k)
    if isinstance(rule, Recall):
        allowed = fewest_for_recall(ng_at_n[faulty], rule.recall, settings.most)
        words = (
            f"the least false alarms at which {100 * rule.recall:.6g} % of {faulty.sum()} faulty"
            " frames are NG"
        )
        return settings.choice(allowed, words)
    prices = Prices.of(rule.escape_cost, rule.overkill_cost, rule.prevalence)
    allowed, cost = least_cost(ng_at_n, faulty, prices, settings.most)
    words = (
        f"the least expected cost, {cost:.4g} a frame, with {rule.escape_cost:g} for an escape,"
        f" {rule.overkill_cost:g} for an overkill and {100 * rule.prevalence:g} % faulty frames"
    )
    groups_n = seen.predictions.groups
    curve = cost_curve(ng_at_n, faulty, groups_n, prices, settings.most) if with_curve else None
    return settings.choice(allowed, words, curve)


def _by_guarantee(seen: _Seen, settings: _Strictness, rule: Guarantee) -> Choice:
    found = seen.predictions
    highest_k = np.full(len(found.class_ids), PIXEL_LOGITS[1])
    ng_at_n = settings.ng_at(highest_k)
    frames_by_claim = {"faulty frames": found.faulty}
    if rule.per_type:
        frames_by_claim = {
            f"frames of type {c}": found.present_nk[:, k] for k, c in enumerate(found.class_ids)
        }
    # In the order of a hash of their names, so that the choice knows nothing of scores.
    hashes = [hashlib.sha256(i.encode(errors="surrogateescape")).digest() for i in found.images]
    order_n = np.argsort(np.argsort(np.array(hashes, "S32"), kind="stable"), kind="stable")
    claims, told = {}, []
    for claim, frames_n in frames_by_claim.items():
        independent_n = one_of_each_group(frames_n, found.groups, order_n)
        count = int(independent_n.sum())
        one_each = count < frames_n.sum()
        claims[f"{claim} (one of each group)" if one_each else claim] = ng_at_n[independent_n]
        told.append(f"{count} {claim}{', one of each group' if one_each else ''}")
    allowed = fewest_guaranteed(claims, rule.max_escape_rate, rule.confidence, settings.most)
    words = (
        f"with {100 * rule.confidence:.6g} % confidence at most"
        f" {100 * rule.max_escape_rate:.6g} % of the faulty frames"
        f"{' of each type' if rule.per_type else ''} are OK (learn then test, exact binomial bound;"
        f" {'; '.join(told)})"
    )
    return settings.choice(allowed, words)


# By Kaggle's Dice --------------------------------------------------------------------------------


def _by_kaggle_dice(seen: _Seen) -> Choice:
    found = seen.predictions
    if not found.masked_nk.any():
        raise InputError(
            "expected frames with known masks to measure Kaggle's Dice on, got none; add masks, or"
            " take --rule false-alarms"
        )
    clean = ~found.faulty
    known_nk = found.masked_nk | ~found.present_nk
    least = seen.first_look.clear_below if seen.first_look else CLEAR_NOTHING
    clear_belows = [least]
    if clean.sum() >= LEAST_CLEAN:
        shares = (_reached_by(seen.faulty_n[clean], share) for share in KAGGLE_CLEARS)
        clear_belows = [max(least, clear_below) for clear_below in shares]
    candidates = []
    for clear_below in clear_belows:
        looked_at_n = seen.faulty_n >= clear_below
        candidates.append(
            [
                best_masks(
                    seen.scores_nk[known, k],
                    found.inside_nkb[known, k],
                    found.outside_nkb[known, k],
                    looked_at_n[known],
                )
                for k, known in enumerate(known_nk.T)
            ]
        )
    best = int(np.argmax([round(sum(mask.gain for mask in masks), 9) for masks in candidates]))
    masks, clear_below = candidates[best], clear_belows[best]
    never, unknown, label_from_k = [], [], []
    for k, (class_id, mask) in enumerate(zip(found.class_ids, masks, strict=True)):
        scores_n, known = seen.scores_nk[:, k], known_nk[:, k]
        if not found.masked_nk[:, k].any():
            # Never to outline it would always score best: nothing shows what that misses.
            unknown.append(class_id)
            present = found.present_nk[:, k]
            label_from_k.append(_alarm_from(scores_n[clean], scores_n[present], LOW_SHARE))
        elif mask.passes_from is None:
            never.append(class_id)
            label_from_k.append(_reached_by(scores_n[known], 0))
        else:
            # Half way to the next frame: as far from the one as from the other.
            halfway = (mask.passes_from + mask.next_below) / 2
            label_from_k.append(_written(halfway, ROUND_FLOOR))
    ng_from = _alarm_from(seen.faulty_n[clean], seen.faulty_n[~clean], LOW_SHARE)
    words = (
        "the highest Kaggle Dice over clear_below, label_from, pixel_from and min_area_px; ng_from,"
        " which it does not depend on, by the rule false-alarms"
    )
    if never:
        words += f"; never outlined, because that scores higher: {first_names(never)}"
    if unknown:
        words += (
            "; without a known mask, so label_from by the rule false-alarms and pixel_from 0.5:"
            f" {first_names(unknown)}"
        )
    return seen.choice(
        clear_below,
        max(ng_from, clear_below),
        label_from_k,
        words,
        pixel_logit_k=np.array([MASK_LOGIT_EDGES[mask.edge] for mask in masks]),
        min_area_px_k=[mask.min_area_px for mask in masks],
        clean_frames=int(clean.sum()),
    )


# Not on the frames that are reported -------------------------------------------------------------


def nested_verdicts(
    predictions: Predictions, choose: Callable[[Predictions], Decision], *, seed: int = 0
) -> Verdicts:
    """Verdicts by thresholds that were chosen without the frame they judge.

    The frames of each fold are judged by what is chosen on the other folds. Predictions of one fold
    are parted into ``NESTED_FOLDS`` by group.

    Args:
        predictions: of N frames.
        choose: thresholds from predictions, such as ``lambda p: choose(p, rule).decision()``.
        seed: of the parting.

    Raises:
        InputError: the frames are one group, or ``choose`` refuses those of some folds.
        GateError: so it does.
    """
    folds = predictions.folds
    if len(np.unique(folds)) < 2:
        folds = grouped_folds(predictions, seed=seed)
    judged = []
    for fold in np.unique(folds):
        held_out = folds == fold
        decision = choose(predictions.take(~held_out))
        judged.append((held_out, apply_decision(predictions.take(held_out), decision)))
    arrays = {}
    for field in fields(Verdicts):
        if field.name == "rounded_pixel_from":
            continue
        parts = [(held_out, getattr(verdicts, field.name)) for held_out, verdicts in judged]
        of_region = field.name.endswith("_r")
        rows = len(predictions.region_frames_r) if of_region else len(predictions)
        whole = np.zeros((rows, *parts[0][1].shape[1:]), parts[0][1].dtype)
        for held_out, part in parts:
            whole[held_out[predictions.region_frames_r] if of_region else held_out] = part
        arrays[field.name] = whole
    return Verdicts(
        **arrays, rounded_pixel_from=any(verdicts.rounded_pixel_from for _, verdicts in judged)
    )


def grouped_folds(predictions: Predictions, folds: int = NESTED_FOLDS, seed: int = 0) -> Ints:
    """Numbers of folds: whole groups, those with equal labels dealt out in turn.

    Args:
        predictions: of N frames.
        folds: how many; fewer if there are fewer groups.
        seed: of the order in which groups are dealt.

    Returns:
        ``(N,)``.

    Raises:
        InputError: fewer than two groups.
    """
    groups, group_n = np.unique(predictions.groups, return_inverse=True)
    if len(groups) < 2:
        raise InputError(
            f"expected frames of two groups or more to part them, got {len(groups)}; tell which"
            " frames belong together by finer groups"
        )
    labels_gk = np.zeros((len(groups), 1 + len(predictions.class_ids)), np.bool_)
    np.logical_or.at(
        labels_gk, group_n, np.column_stack([predictions.faulty, predictions.present_nk])
    )
    _, stratum_g = np.unique(labels_gk, axis=0, return_inverse=True)
    shuffled_g = np.random.default_rng(seed).permutation(len(groups))
    fold_g = np.zeros(len(groups), np.int64)
    fold_g[np.lexsort((shuffled_g, stratum_g.reshape(-1)))] = np.arange(len(groups)) % folds
    of_frames: Ints = fold_g[group_n]
    return of_frames


def outcome(predictions: Predictions, verdicts: Verdicts) -> dict[str, Any]:
    """What verdicts come to, for JSON: counts, and shares with exact 95 % binomial intervals.

    Keys: ``faulty`` and ``clean`` (numbers of NG, OK, UNKNOWN frames), ``escape_rate``,
    ``overkill_rate``, ``cleared_rate`` (clean frames that are not segmented), ``types`` (by type:
    ``escape_rate`` of frames that hold it, ``not_outlined_rate`` of those) and ``kaggle_dice``.
    """
    faulty, ng_n, ok_n = predictions.faulty, verdicts.ng_n, verdicts.ok_n
    of_label = {}
    for name, label in (("faulty", True), ("clean", False)):
        unanswered = sum(frame.faulty == label for frame in predictions.unanswered)
        of_label[name] = {
            "NG": int((ng_n & (faulty == label)).sum()),
            "OK": int((ok_n & (faulty == label)).sum()),
            "UNKNOWN": int((~verdicts.answered_n & (faulty == label)).sum()) + unanswered,
        }
    known_nk = predictions.masked_nk | ~predictions.present_nk
    both_nk = verdicts.area_px_nk * verdicts.called_nk + predictions.inside_nkb.sum(axis=2)
    twice_nk = 2 * verdicts.true_px_nk * verdicts.called_nk
    dice_nk = np.divide(twice_nk, both_nk, out=np.ones(both_nk.shape), where=both_nk > 0)
    answered = verdicts.answered_n
    return {
        **of_label,
        "escape_rate": _share(ok_n, faulty & answered),
        "overkill_rate": _share(ng_n, ~faulty & answered),
        "cleared_rate": _share(verdicts.cleared_n, ~faulty & answered),
        "types": {
            class_id: {
                "escape_rate": _share(ok_n, predictions.present_nk[:, k] & answered),
                "not_outlined_rate": _share(
                    ~verdicts.called_nk[:, k], predictions.present_nk[:, k] & answered
                ),
            }
            for k, class_id in enumerate(predictions.class_ids)
        },
        "kaggle_dice": float(f"{dice_nk[known_nk].mean():.6g}") if known_nk.any() else None,
    }


def _share(hits_n: Bools, of_n: Bools) -> dict[str, float | int | None]:
    count, of = int((hits_n & of_n).sum()), int(of_n.sum())
    if not of:
        return {"value": None, "low": None, "high": None, "of": 0, "count": 0}
    low, high = binomial_interval(count, of)
    value, low, high = (float(f"{x:.6g}") for x in (count / of, low, high))
    return {"value": value, "low": low, "high": high, "of": of, "count": count}


def _toml(text: str) -> str:
    """A TOML string; a JSON string is one where all characters can be seen."""
    return json.dumps(escaped(text), ensure_ascii=False)
