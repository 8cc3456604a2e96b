"""Labels that a network contradicts which has not learned from them, the most doubtful first.

Confident learning (Northcutt, Jiang and Chuang, 2021, arXiv 1911.00068): the *self-confidence* of a
label is the probability that the network gives it, and a class's *average confidence* is the mean
self-confidence of the frames labelled so. A label is suspect where the network reaches the other
class's average confidence (:func:`steelsight.data.predictions.confident_suspects`); faulty against
clean, and for every type the frames labelled with it against those without. Networks need not be
calibrated for that: each class is its own measure.

Outlines: where the network is as sure of a type as on average and draws a mask with less than half
of the type's mean Dice, one of the two outlines is wrong. The pixel threshold is that with the best
mean Dice of the type.

**Doubt** orders them all: by which share of the class's average confidence (or of the type's mean
Dice) this label falls short, 0 to 1.

Nothing of this works with a network that learned the label: it repeats it.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelsight.data.formats.label_studio import LABELS
from steelsight.data.formats.label_studio import write as write_label_studio
from steelsight.data.labels import FrameLabels, LabelSet, Placement, make_folders, shown, write_file
from steelsight.data.predictions import confident_suspects
from steelsight.data.tables import csv_safe
from steelsight.errors import DecodeError, InputError, LabelError, first_names
from steelsight.evaluation.metrics import dice_by_threshold
from steelsight.evaluation.predictions import MASK_LOGIT_EDGES, Predictions
from steelsight.evaluation.selection import learned_in_run
from steelsight.imaging import read_size_wh
from steelsight.masks import rle_runs

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

OUTLINE_SHARE = 0.5
"""Outlines are suspect below this share of the type's mean Dice."""


class Kind(StrEnum):
    """What the network contradicts."""

    CLEAN = "labelled clean, confidently faulty"
    ABSENT = "a labelled type is confidently absent"
    UNLABELLED = "a type is confidently there and not labelled"
    OUTLINE = "outlines disagree"


@dataclass(frozen=True, slots=True)
class Suspect:
    """One label to look at.

    Attributes:
        image: the frame.
        kind: what is contradicted.
        class_id: the type; ``None`` for ``Kind.CLEAN``.
        doubt: share by which the label falls short, 0..1; what all are ordered by.
        confidence: of the network in the label, 0..1; for outlines their Dice.
        average: the same, on average over frames labelled so.
        labelled: the types on the frame, as labelled.
        iou: of outlines.
        labelled_px: of the labelled mask, for outlines.
        drawn_px: of the network's mask at the best threshold, for outlines.
    """

    image: str
    kind: Kind
    class_id: str | None
    doubt: float
    confidence: float
    average: float
    labelled: tuple[str, ...]
    iou: float | None = None
    labelled_px: int | None = None
    drawn_px: int | None = None

    def sentence(self, names: Mapping[str, str]) -> str:
        """In words for people.

        Args:
            names: of the types, such as ``Type 3``.
        """
        name = names.get(self.class_id or "", self.class_id)
        sure, usual = _percent(1 - self.confidence), _percent(1 - self.average)
        if self.kind is Kind.CLEAN:
            return f"{sure} sure that it is faulty; on frames labelled clean {usual} on average"
        if self.kind is Kind.ABSENT:
            return f"{name} labelled, {sure} sure that it is not there; {usual} on average"
        if self.kind is Kind.UNLABELLED:
            return f"{name} not labelled, {sure} sure that it is there; {usual} on average"
        return (
            f"{name}: the label covers {self.labelled_px:,} px, the network's mask"
            f" {self.drawn_px:,}; Dice {self.confidence:.2f}, on average {self.average:.2f}"
        )

    def to_json(self) -> dict[str, Any]:
        """All of it; six significant digits."""
        return {
            "image": self.image,
            "kind": self.kind.name.lower(),
            "type": self.class_id,
            "labelled": list(self.labelled),
            "doubt": _digits(self.doubt),
            "confidence": _digits(self.confidence),
            "average": _digits(self.average),
            "iou": None if self.iou is None else _digits(self.iou),
            "labelled_px": self.labelled_px,
            "drawn_px": self.drawn_px,
        }


@dataclass(frozen=True, slots=True)
class LabelAudit:
    """What was found.

    Attributes:
        suspects: one for each frame, in the order of doubt: on a frame labelled clean that it is
            not, else the one with the most doubt.
        further: further suspects of a frame, by its name.
        frames: how many labels were compared.
        not_checked: what could not be, with the reason.
    """

    suspects: tuple[Suspect, ...]
    further: Mapping[str, tuple[Suspect, ...]]
    frames: int
    not_checked: Mapping[str, str]

    def counts(self) -> dict[Kind, int]:
        """Frames by the kind of their most doubtful label."""
        kinds = Counter(suspect.kind for suspect in self.suspects)
        return {kind: kinds[kind] for kind in Kind}

    def to_json(self) -> dict[str, Any]:
        """All suspects in their order; for ``json.dumps``."""
        return {
            "frames": self.frames,
            "suspects": [
                {
                    "rank": rank,
                    **suspect.to_json(),
                    "further": [other.to_json() for other in self.further.get(suspect.image, ())],
                }
                for rank, suspect in enumerate(self.suspects, 1)
            ],
            "counts": {kind.name.lower(): count for kind, count in self.counts().items()},
            "not_checked": dict(self.not_checked),
        }


def audit_labels(predictions: Predictions) -> LabelAudit:
    """Ranks the labels of frames by how much a network doubts them.

    Args:
        predictions: of a network that has not learned from these frames (:func:`held_out_problem`).
    """
    finite_n = np.isfinite(predictions.faulty_logits) & np.isfinite(predictions.type_scores_nk).all(
        axis=1
    )
    answered = predictions.take(finite_n)
    not_checked: dict[str, str] = {}
    if not finite_n.all() or predictions.unanswered:
        without = int((~finite_n).sum()) + len(predictions.unanswered)
        not_checked["frames"] = f"{without} have no answer"
    found: list[Suspect] = []
    if not answered.scored:
        not_checked["scores"] = "masks alone are known, and no scores"
    else:
        found += _contradicted(answered, not_checked)
    # On a frame labelled clean the types are details of the one question.
    found.sort(key=lambda s: (s.kind is not Kind.CLEAN, *_order(s)))
    by_frame: dict[str, list[Suspect]] = {}
    for suspect in found:
        by_frame.setdefault(suspect.image, []).append(suspect)
    return LabelAudit(
        suspects=tuple(sorted((first for first, *_ in by_frame.values()), key=_order)),
        further={image: tuple(rest) for image, (_, *rest) in by_frame.items() if rest},
        frames=len(answered),
        not_checked=not_checked,
    )


def _order(suspect: Suspect) -> tuple[float, str, Kind, str]:
    return -suspect.doubt, suspect.image, suspect.kind, suspect.class_id or ""


def _contradicted(predictions: Predictions, not_checked: dict[str, str]) -> Iterator[Suspect]:
    faulty_n, p_n = predictions.faulty, predictions.faulty_probability
    if faulty_n.all() or not faulty_n.any():
        not_checked["clean or faulty"] = "it takes frames labelled clean and frames labelled faulty"
    else:
        suspects_n = confident_suspects(faulty_n, p_n) & ~faulty_n
        yield from _suspects(predictions, Kind.CLEAN, None, suspects_n, 1 - p_n, ~faulty_n)
    # A frame that is faulty without a type may hold any.
    told_n = ~faulty_n | predictions.present_nk.any(axis=1)
    for k, class_id in enumerate(predictions.class_ids):
        present_n = predictions.present_nk[:, k]
        absent_n = told_n & ~present_n
        if not present_n.any() or not absent_n.any():
            not_checked[f"type {class_id}"] = "it takes frames labelled with and without it"
            continue
        score_n = predictions.type_scores_nk[:, k]
        suspects_n = np.zeros(len(predictions), np.bool_)
        suspects_n[told_n] = confident_suspects(present_n[told_n], score_n[told_n])
        for kind, labelled_n, confidence_n in (
            (Kind.ABSENT, present_n, score_n),
            (Kind.UNLABELLED, absent_n, 1 - score_n),
        ):
            yield from _suspects(
                predictions, kind, class_id, suspects_n & labelled_n, confidence_n, labelled_n
            )
        yield from _outlines(predictions, k, score_n >= score_n[present_n].mean())


def _suspects(
    predictions: Predictions,
    kind: Kind,
    class_id: str | None,
    suspects_n: Bools,
    confidence_n: Floats,
    labelled_n: Bools,
) -> Iterator[Suspect]:
    average = float(confidence_n[labelled_n].mean())
    for n in np.flatnonzero(suspects_n).tolist():
        confidence = float(confidence_n[n])
        yield Suspect(
            image=predictions.images[n],
            kind=kind,
            class_id=class_id,
            doubt=_doubt(confidence, average),
            confidence=confidence,
            average=average,
            labelled=_labelled(predictions, n),
        )


def _outlines(predictions: Predictions, k: int, sure_n: Bools) -> Iterator[Suspect]:
    masked_n = predictions.masked_nk[:, k]
    if not masked_n.any():
        return
    inside_nb, outside_nb = predictions.inside_nkb[:, k], predictions.outside_nkb[:, k]
    by_threshold_ne = dice_by_threshold(inside_nb[masked_n], outside_nb[masked_n])
    best = int(by_threshold_ne.mean(axis=0).argmax())
    of_mask = np.arange(len(MASK_LOGIT_EDGES) + 1) > best
    dice_n = np.full(len(predictions), np.nan)
    dice_n[masked_n] = by_threshold_ne[:, best]
    average = float(by_threshold_ne[:, best].mean())
    suspects_n = masked_n & sure_n & (np.nan_to_num(dice_n) < OUTLINE_SHARE * average)
    for n in np.flatnonzero(suspects_n).tolist():
        true = int(inside_nb[n, of_mask].sum())
        drawn = true + int(outside_nb[n, of_mask].sum())
        labelled = int(inside_nb[n].sum())
        dice = float(dice_n[n])
        yield Suspect(
            image=predictions.images[n],
            kind=Kind.OUTLINE,
            class_id=predictions.class_ids[k],
            doubt=_doubt(dice, average),
            confidence=dice,
            average=average,
            labelled=_labelled(predictions, n),
            iou=true / (drawn + labelled - true),
            labelled_px=labelled,
            drawn_px=drawn,
        )


def _doubt(confidence: float, average: float) -> float:
    # Above its average a label is never a suspect, but for rounding.
    return max(1 - confidence / average, 0.0) if average > 0 else 0.0


def _labelled(predictions: Predictions, n: int) -> tuple[str, ...]:
    types = zip(predictions.class_ids, predictions.present_nk[n], strict=True)
    return tuple(class_id for class_id, on in types if on)


# Before and after --------------------------------------------------------------------------------


def held_out_problem(path: Path, predictions: Predictions) -> str | None:
    """Why predictions may repeat the labels instead of doubting them; ``None``: they are held out.

    Args:
        path: the file, whose folder tells whether it is of a training run.
        predictions: what it holds.

    Raises:
        InputError: some of the frames were learned from.
    """
    learned = predictions.about.get("learned_from")
    if isinstance(learned, int) and learned > 0:
        raise InputError(
            f"{path}: expected out-of-fold predictions, the network learned from {learned} of the"
            f" {len(predictions)} frames and repeats their labels; give predictions.npz of"
            " `steelsight train --folds`, or evaluate the held out part alone"
        )
    if learned_in_run(path).held_out:
        return None
    warnings = predictions.about.get("warnings")
    if isinstance(learned, int) and not warnings:
        return None
    return (
        "It is not recorded that the network never learned from these frames. One that did repeats"
        " their labels and finds nothing wrong: use predictions.npz of `steelsight train --folds`."
    )


class Matched(NamedTuple):
    """Which predictions are about the labels as they are now.

    Attributes:
        same_n: frames whose label is the one that was predicted, ``(N,)``.
        missing: frames that the data set does not hold or that have no label or image there.
        changed: frames that are labelled otherwise since, such as corrected ones.
    """

    same_n: Bools
    missing: int
    changed: int


def match_labels(predictions: Predictions, label_set: LabelSet) -> Matched:
    """Compares the labels of a data set with those that stand in the predictions.

    Raises:
        InputError: no frame in common, or a type that the predictions do not know.
    """
    unknown = set(label_set.class_ids) - set(predictions.class_ids)
    used = {c for frame in label_set.frames.values() for c in frame.class_ids} & unknown
    if used:
        raise InputError(
            f"the labels use the types {first_names(sorted(used))}, the predictions know"
            f" {first_names(predictions.class_ids)}; give predictions about these labels"
        )
    known = [
        image in label_set.frames and image in label_set.image_paths for image in predictions.images
    ]
    if not any(known):
        raise InputError(
            f"{label_set.source}: no frame of the predictions"
            f" (such as {shown(next(iter(predictions.images), 'none'))}) is labelled here; give the"
            " data set that was predicted"
        )
    same_n = np.array(
        [
            here and _same_label(predictions, n, label_set.frames[image])
            for n, (here, image) in enumerate(zip(known, predictions.images, strict=True))
        ],
        np.bool_,
    )
    return Matched(same_n, known.count(False), known.count(True) - int(same_n.sum()))


def _same_label(predictions: Predictions, n: int, labels: FrameLabels) -> bool:
    """Types, and the number of pixels of each mask."""
    if labels.disputed or {*labels.class_ids} != {*_labelled(predictions, n)}:
        return False
    masked = {c for c, rle in labels.rle_by_class.items() if rle.strip()}
    for k, class_id in enumerate(predictions.class_ids):
        pixels = 0
        if class_id in masked:
            try:
                starts, ends = rle_runs(labels.rle_by_class[class_id])
            except LabelError:
                return False
            pixels = int((ends - starts).sum())
        if pixels != int(predictions.inside_nkb[n, k].sum()):
            return False
    return True


# Correction --------------------------------------------------------------------------------------

MODEL_VERSION = "present label"
"""Name of the pre-annotations in Label Studio."""


def export_label_studio(
    suspects: Sequence[Suspect], label_set: LabelSet, folder: Path, names: Mapping[str, str]
) -> None:
    """Writes suspects as Label Studio tasks, their present labels as pre-annotations to correct.

    Pre-annotations are no labels for :mod:`steelsight.data.formats.label_studio` (nor for Label
    Studio): only what somebody submits is. Images are copied beside the tasks.

    Args:
        suspects: in the order in which they should be looked at; each frame with its image.
        label_set: the data set.
        folder: made if it is not there.
        names: of the types, for the sentence on each task.

    Raises:
        InputError: a file cannot be read or written.
    """
    frames = {}
    for rank, suspect in enumerate(suspects, 1):
        frame = label_set.frames[suspect.image]
        told = {
            "rank": str(rank),
            "kind": suspect.kind.value,
            "doubt": f"{suspect.doubt:.3f}",
            "why": suspect.sentence(names),
        }
        if frame.types_without_mask:
            told["types_without_mask"] = " ".join(frame.types_without_mask)
        frames[suspect.image] = replace(
            frame,
            size_wh=frame.size_wh or _size_wh(label_set.image_paths[suspect.image]),
            types_without_mask=(),
            disputed=False,
            attributes={**frame.attributes, **told},
        )
    chosen = replace(
        label_set,
        frames=frames,
        image_paths={image: label_set.image_paths[image] for image in frames},
    )
    make_folders([folder])
    write_label_studio(chosen, folder, Placement.COPY)
    tasks = json.loads((folder / LABELS).read_bytes())
    for task, suspect in zip(tasks, suspects, strict=True):
        (annotation,) = task["annotations"]
        task["annotations"] = []
        task["predictions"] = [
            {
                "model_version": MODEL_VERSION,
                "score": round(1 - suspect.doubt, 6),
                "result": annotation["result"],
            }
        ]
    lines = ",\n".join(json.dumps(task, separators=(",", ":")) for task in tasks)
    write_file(folder / LABELS, f"[\n{lines}\n]\n".encode())


def _size_wh(path: Path) -> tuple[int, int]:
    try:
        return read_size_wh(path)
    except DecodeError as error:
        raise InputError(
            f"{path}: {error}; expected the image of a suspect label, restore it"
        ) from error


_COLUMNS = (
    *("image", "kind", "type", "labelled", "doubt", "confidence", "average", "iou"),
    *("labelled_px", "drawn_px"),
)


def suspect_rows(audit: LabelAudit) -> Iterator[Sequence[str]]:
    """All suspects as a table, header first; text of others cannot run as a formula."""
    yield ("rank", *_COLUMNS)
    for rank, first in enumerate(audit.suspects, 1):
        for suspect in (first, *audit.further.get(first.image, ())):
            told = suspect.to_json() | {"labelled": " ".join(suspect.labelled)}
            cells = (told[name] for name in _COLUMNS)
            yield (str(rank), *("" if c is None else csv_safe(str(c)) for c in cells))


def _percent(share: float) -> str:
    """Never a rounded 100 %."""
    told = f"{100 * share:.0f}"
    return "over 99 %" if told == "100" and share < 1 else f"{told} %"


def _digits(value: float) -> float:
    return float(f"{value:.6g}")
