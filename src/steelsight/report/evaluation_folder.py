"""The output folder of an evaluation: which frames are shown, a table of all, and the files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelsight.data.tables import csv_safe
from steelsight.decisions import Decision
from steelsight.defects import Verdict
from steelsight.evaluation.predictions import Predictions
from steelsight.evaluation.verdicts import Verdicts, apply_decision
from steelsight.report.evaluation_page import Why

REPORT, FIGURES, FRAMES = "report.html", "evaluation.json", "frames.csv"
KEPT, KEPT_DECISION = "predictions.npz", "decision.toml"
FILES = (REPORT, FIGURES, FRAMES, KEPT, KEPT_DECISION)

SHOWN_PER_KIND = 6
"""Pictures of each kind: misses, false alarms, worst outlines, found."""


class Chosen(NamedTuple):
    """A frame to show, and why."""

    image: str
    why: Why
    caption: str


def delivered_dice(predictions: Predictions, verdicts: Verdicts) -> NDArray[np.float64]:
    """Dice of the delivered mask on frames that hold the type, NaN elsewhere, ``(N, K)``.

    A frame that holds the type and on which it is not called has 0.
    """
    label_px_nk = predictions.inside_nkb.sum(axis=2)
    both_nk = verdicts.area_px_nk * verdicts.called_nk + label_px_nk
    dice_nk = np.full(label_px_nk.shape, np.nan)
    np.divide(
        2 * verdicts.true_px_nk * verdicts.called_nk,
        both_nk,
        out=dice_nk,
        where=predictions.masked_nk & verdicts.answered_n[:, None],
    )
    return dice_nk


def choose_frames(
    predictions: Predictions, decision: Decision, most: int = SHOWN_PER_KIND
) -> list[Chosen]:
    """The worst misses, false alarms and outlines, and some frames that were found.

    Misses: least probability first. False alarms: highest first. Outlines: least Dice of a type
    that was called. Found: spread evenly over their Dice, so that they are not the best ones.
    """
    verdicts = apply_decision(predictions, decision)
    faulty_n, faulty_p = predictions.faulty, predictions.faulty_probability
    dice_nk = delivered_dice(predictions, verdicts)
    dice_nk[~verdicts.called_nk] = np.nan
    worst_n = np.where(np.isnan(dice_nk), np.inf, dice_nk).min(axis=1, initial=np.inf)
    outlined = np.flatnonzero(faulty_n & verdicts.ng_n & np.isfinite(worst_n))
    outlined = outlined[np.argsort(worst_n[outlined], kind="stable")]
    rest = outlined[most:] if len(outlined) > most else outlined[:0]
    spread = rest[np.unique(np.linspace(0, len(rest) - 1, most).astype(int))] if len(rest) else rest
    missed, alarms = (
        np.flatnonzero(faulty_n & verdicts.ok_n),
        np.flatnonzero(~faulty_n & verdicts.ng_n),
    )
    kinds: tuple[tuple[Why, NDArray[np.int64]], ...] = (
        ("missed", missed[np.argsort(faulty_p[missed], kind="stable")][:most]),
        ("false alarm", alarms[np.argsort(-faulty_p[alarms], kind="stable")][:most]),
        ("worst outline", outlined[:most]),
        ("found", spread),
    )
    return [
        Chosen(predictions.images[n], why, _caption(predictions, worst_n, n))
        for why, of_kind in kinds
        for n in of_kind.tolist()
    ]


def _caption(predictions: Predictions, worst_n: NDArray[np.float64], n: int) -> str:
    said = f"faulty {predictions.faulty_probability[n]:.3f}" if predictions.scored else ""
    if np.isfinite(worst_n[n]):
        said += f"{', ' if said else ''}Dice {worst_n[n]:.2f}"
    return said


def frame_rows(predictions: Predictions, decision: Decision | None) -> Iterator[Sequence[str]]:
    """The table of all frames, header first; text of others cannot run as a formula.

    Dice stands where the frame holds the type and its mask is known: of the delivered mask.
    """
    class_ids = predictions.class_ids
    yield (
        *("image", "group", "label", "verdict", "reason", "faulty_probability"),
        *(f"score_{c}" for c in class_ids),
        *(f"dice_{c}" for c in class_ids),
    )
    verdicts = apply_decision(predictions, decision) if decision else None
    dice_nk = delivered_dice(predictions, verdicts) if verdicts else None
    scores_nk, faulty_p = predictions.type_scores_nk, predictions.faulty_probability
    for n, image in enumerate(predictions.images):
        on_frame = [c for c, on in zip(class_ids, predictions.present_nk[n], strict=True) if on]
        label = " ".join(on_frame) or ("faulty" if predictions.faulty[n] else "clean")
        verdict = _verdict(verdicts, n) if verdicts else ""
        yield (
            csv_safe(image),
            str(predictions.groups[n]),
            label,
            verdict,
            "",
            _number(faulty_p[n]),
            *map(_number, scores_nk[n]),
            *(map(_number, dice_nk[n]) if dice_nk is not None else [""] * len(class_ids)),
        )
    for frame in predictions.unanswered:
        label = "faulty" if frame.faulty else "clean"
        empty = [""] * (1 + 2 * len(class_ids))
        yield (csv_safe(frame.image), "", label, Verdict.UNKNOWN, csv_safe(frame.reason), *empty)


def _verdict(verdicts: Verdicts, n: int) -> str:
    if not verdicts.answered_n[n]:
        return Verdict.UNKNOWN
    return Verdict.NG if verdicts.ng_n[n] else Verdict.OK


def _number(value: float) -> str:
    """Six significant digits, as in result lines; nothing for NaN."""
    return f"{value:.6g}" if np.isfinite(value) else ""


def taken(folder: Path) -> list[Path]:
    """Files of an earlier evaluation in a folder."""
    return [folder / name for name in FILES if (folder / name).exists()]
