"""A decision file from what a network said about frames that it had not seen.

The rule of the shipped decision, measured on the frames given:

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
"""

import json
import tomllib
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

import numpy as np
from numpy.typing import NDArray

from steelsight.decisions import Decision
from steelsight.errors import InputError, escaped, first_names
from steelsight.evaluation.metrics import (
    HIGH_SHARE,
    LOW_SHARE,
    false_alarm_threshold,
    type_figures,
)
from steelsight.evaluation.predictions import Predictions, sigmoid

LEAST_CLEAN = 100
"""Clean frames from which on shares of 2 and 5 % mean something: two and five frames."""

PIXEL_LOGITS = (-2.0, 0.5)
"""Pixel thresholds are kept within these logits."""

MIN_CONTRAST = 2.0
"""Flatter frames are ``blank``; the least contrast among 794 real frames is 4.6 grey levels."""

CLEAR_NOTHING = 1e-30
"""The ``clear_below`` that clears nothing: no logit of a network comes near its -69."""

_HALF = 0.5
_MOST = 1 - 1e-8
"""Highest threshold; the only float32 probability that reaches it is 1."""
_DIGITS = 8
"""Significant digits that are written: one more than float32 has."""


def choose_decision(predictions: Predictions, name: str, chosen_on: str) -> str:
    """The decision file for a network, by the rule at the top of this module.

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
    if not len(predictions):
        raise InputError("expected frames to choose thresholds on, got none; hold some out")
    faulty_p, scores_nk = predictions.faulty_probability, predictions.type_scores_nk
    finite = np.isfinite(predictions.faulty_logits) & np.isfinite(scores_nk).all(axis=1)
    if not finite.all():
        images = [predictions.images[n] for n in np.flatnonzero(~finite)]
        raise InputError(
            f"expected finite scores, got NaN or infinity for {first_names(images, 3)}; the network"
            " diverged: lower its learning rate"
        )
    faulty, present_nk = predictions.faulty, predictions.present_nk
    clean_frames = int((~faulty).sum())
    clear_below = CLEAR_NOTHING
    if clean_frames >= LEAST_CLEAN:
        clear_below = _reached_by(faulty_p[~faulty], HIGH_SHARE)
    figures = type_figures(predictions)
    without_mask = [of_type.class_id for of_type in figures if not of_type.masked_frames]
    tables = [
        "version = 1",
        f"name = {_toml(name)}",
        f"rule = {_toml(_rule(clean_frames, without_mask))}",
        f"chosen_on = {_toml(chosen_on)}",
        "",
        "[gate] # faulty_probability of a frame, sigmoid of the mean of both heads' logits",
        f"clear_below = {clear_below:.{_DIGITS}g}"
        f" # {int((faulty_p[faulty] < clear_below).sum())} of {int(faulty.sum())} faulty frames lie"
        " below",
        f"ng_from = {_alarm_from(faulty_p[~faulty], faulty_p[faulty]):.{_DIGITS}g}",
        "",
        "[input]",
        f"min_contrast = {MIN_CONTRAST}",
    ]
    for k, of_type in enumerate(figures):
        label_from = _alarm_from(scores_nk[~faulty, k], scores_nk[present_nk[:, k], k])
        logit = 0.0
        if of_type.pixel_logit is not None:
            logit = min(max(of_type.pixel_logit, PIXEL_LOGITS[0]), PIXEL_LOGITS[1])
        # Nine digits give back the float32 that pixels were counted with.
        pixel_from = np.float32(sigmoid(np.array(logit)))
        tables += [
            "",
            f"[types.{of_type.class_id}]",
            f"label_from = {label_from:.{_DIGITS}g}",
            f"pixel_from = {pixel_from:.9g} # logit {logit:g}",
            "min_area_px = 0",
        ]
    text = "\n".join(tables) + "\n"
    Decision(**tomllib.loads(text))  # whatever was predicted, the file is one that can be loaded
    return text


def _alarm_from(scores_clean: NDArray[np.float64], scores_positive: NDArray[np.float64]) -> float:
    """``ng_from`` or a ``label_from``."""
    if len(scores_clean) >= LEAST_CLEAN:
        return _reached_by(scores_clean, LOW_SHARE)
    if len(scores_clean):
        return min(_reached_by(scores_clean, 0), _HALF)
    return _written(float(scores_positive.min(initial=_HALF)), ROUND_FLOOR)


def _reached_by(scores_clean: NDArray[np.float64], share: float) -> float:
    """The threshold that at most this share of the clean frames reaches."""
    return _written(false_alarm_threshold(scores_clean, share), ROUND_CEILING)


def _written(threshold: float, rounding: str) -> float:
    """As it stands in the file: rounded to the side that keeps the promise, and inside 0..1."""
    rounded = Context(prec=_DIGITS, rounding=rounding).create_decimal(Decimal(threshold))
    return min(max(float(rounded), CLEAR_NOTHING), _MOST)


def _rule(clean_frames: int, without_mask: list[str]) -> str:
    if clean_frames >= LEAST_CLEAN:
        rule = (
            f"of {clean_frames} clean frames at most 5 % reach clear_below, 2 % ng_from, and 2 %"
            " each label_from"
        )
    elif clean_frames:
        rule = (
            f"only {clean_frames} clean frames, too few for shares of 2 and 5 %: no frame is"
            " cleared without segmentation; ng_from and label_from just above the highest clean"
            " score, at most 0.5"
        )
    else:
        rule = (
            "no clean frame, so nothing is known about false alarms: no frame is cleared without"
            " segmentation; ng_from and label_from at the lowest score of a frame that holds a"
            " defect (that type), at most 0.5"
        )
    rule += (
        "; pixel_from by the best mean Dice on frames that hold the type, kept within logits"
        f" {PIXEL_LOGITS[0]:g} to {PIXEL_LOGITS[1]:g}"
    )
    if without_mask:
        rule += f", and 0.5 for types without a known mask ({first_names(without_mask)})"
    return rule


def _toml(text: str) -> str:
    """A TOML string; a JSON string is one where all characters can be seen."""
    return json.dumps(escaped(text), ensure_ascii=False)
