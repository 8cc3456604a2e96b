"""Two sets of predictions on the same frames, paired by name.

What cannot be compared is refused: other types, other labels. A frame that one side does not hold
or has no answer on is counted and left out.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelsight.data.labels import shown
from steelsight.data.splits import merge_groups
from steelsight.decisions import Decision, load_decision
from steelsight.errors import InputError, first_names
from steelsight.evaluation.pixels import overlap
from steelsight.evaluation.predictions import MASK_LOGIT_EDGES, Predictions
from steelsight.evaluation.verdicts import apply_decision, faulty_met_by

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

PREDICTIONS, DECISION, EVALUATION = "predictions.npz", "decision.toml", "evaluation.json"


# Sides -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One of the two.

    Attributes:
        name: as people call it, such as its path.
        predictions: what it said.
        decision: what makes verdicts of that; ``None``: nobody told.
        decision_file: where that was found; empty if it is no file.
        notes: what makes its figures doubtful, one sentence each.
    """

    name: str
    predictions: Predictions
    decision: Decision | None = None
    decision_file: str = ""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Name, origin and decision."""
        decision = self.decision
        return {
            "name": self.name,
            "about": dict(self.predictions.about),
            "decision": decision
            and {
                "name": decision.name,
                "id": decision.id,
                "rule": decision.rule,
                "chosen_on": decision.chosen_on,
                "file": self.decision_file,
            },
            "notes": list(self.notes),
        }


def load_side(path: Path, decision: Path | None = None) -> Side:
    """Reads one side.

    Args:
        path: ``predictions.npz``, or the folder of a training run or an evaluation that holds it.
        decision: the decision file; if ``None`` the ``decision.toml`` beside the predictions, else
            that of the run's bundle, else, where masks alone are known, masks as they are.

    Raises:
        InputError: no predictions, or the decision cannot be read or is for other types.
    """
    file = path / PREDICTIONS if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise InputError(
            f"{path}: expected {PREDICTIONS} in this folder, it holds none; give a training run, or"
            " an evaluation made with --save-predictions"
        )
    predictions = Predictions.load(file)
    used = _decision_used(file.parent / EVALUATION)
    # What an evaluation noted about its figures, such as frames that were learned from.
    warnings = predictions.about.get("warnings")
    notes = list(map(str, warnings)) if isinstance(warnings, list) else []
    chosen, chosen_file = None, ""
    beside = [file.parent / DECISION, file.parent / "bundle" / DECISION]
    found = decision or next((place for place in beside if place.is_file()), None)
    if found is not None:
        chosen, chosen_file = load_decision(found, predictions.class_ids), str(found)
        if used and chosen.id != used:
            notes.append(f"Judged by the decision {chosen.id}; its evaluation used {used}.")
    elif not predictions.scored:
        from steelsight.evaluation.answers import delivered_decision

        chosen = delivered_decision(predictions.class_ids)
    else:
        notes.append(f"No decision was found{f'; its evaluation used {used}' if used else ''}.")
    return Side(str(path), predictions, chosen, chosen_file, tuple(notes))


def _decision_used(path: Path) -> str:
    """Identity of the decision that an evaluation was made with; empty if nobody tells."""
    try:
        used = json.loads(path.read_bytes())["at_decision"]["decision"]["id"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return used if isinstance(used, str) else ""


# Pairing -----------------------------------------------------------------------------------------


class Frames(NamedTuple):
    """What both are asked about, N frames and K types."""

    images: tuple[str, ...]
    class_ids: tuple[str, ...]
    groups_n: Ints
    faulty_n: Bools
    present_nk: Bools
    masked_nk: Bools


class Answers(NamedTuple):
    """What one side says about them; ``None``: without scores, or without a decision.

    Dice is that of the label and the mask, 1 where both are empty.
    """

    logits_n: Floats | None
    probability_n: Floats
    ng_n: Bools | None
    segmented_nk: Floats
    delivered_nk: Floats | None


class Pair(NamedTuple):
    """Both on the same frames, and how many frames are not among them.

    Attributes:
        frames: N frames that both answer.
        a, b: the two.
        counts: ``only_a``, ``only_b``: not in the other file; ``unanswered_a``, ``unanswered_b``:
            in both files, and that side has no answer.
    """

    frames: Frames
    a: Answers
    b: Answers
    counts: dict[str, int]


def pair(a: Side, b: Side) -> Pair:
    """Pairs two sets of predictions by the names of frames and types.

    Raises:
        InputError: no frame, type or answer in common, or labels that differ.
    """
    first, second = a.predictions, b.predictions
    if set(first.class_ids) != set(second.class_ids):
        raise InputError(
            f"A knows the types {first_names(first.class_ids)}, B the types"
            f" {first_names(second.class_ids)}, expected the same; compare answers about the same"
            " labels"
        )
    seen_a, seen_b = _looked_at(first), _looked_at(second)
    both = seen_a.keys() & seen_b.keys()
    row_b = {image: n for n, image in enumerate(second.images)}
    rows = [(n, row_b[image]) for n, image in enumerate(first.images) if image in row_b]
    if not rows:
        raise InputError(
            f"no frame is in both: A has frames such as {_example(seen_a)}, B such as"
            f" {_example(seen_b)}; give answers about the same data set"
        )
    rows_a, rows_b = np.array(rows, np.int64).T
    types_b = np.array([second.class_ids.index(c) for c in first.class_ids], np.int64)
    _check_labels(first, second, rows_a, rows_b, types_b)
    for image in both:
        if seen_a[image] != seen_b[image]:
            raise InputError(_differ(image, seen_a[image], seen_b[image]))
    told_a, told_b = _finite(first)[rows_a], _finite(second)[rows_b]
    answered = told_a & told_b
    if not answered.any():
        raise InputError(
            f"expected frames that both answer, none of {len(both)} common ones has finite scores"
            " on both sides; predict again"
        )
    groups_n = _merged_groups(first.groups[rows_a], second.groups[rows_b])
    rows_a, rows_b = rows_a[answered], rows_b[answered]
    frames = Frames(
        images=tuple(first.images[n] for n in rows_a),
        class_ids=first.class_ids,
        groups_n=groups_n[answered],
        faulty_n=first.faulty[rows_a],
        present_nk=first.present_nk[rows_a],
        masked_nk=first.masked_nk[rows_a],
    )
    counts = {
        "only_a": len(seen_a.keys() - both),
        "only_b": len(seen_b.keys() - both),
        "unanswered_a": sum(f.image in both for f in first.unanswered) + int((~told_a).sum()),
        "unanswered_b": sum(f.image in both for f in second.unanswered) + int((~told_b).sum()),
    }
    types_a = np.arange(len(first.class_ids))
    # With one decision alone, masks would be drawn at different thresholds.
    decided = a.decision is not None and b.decision is not None
    return Pair(
        frames,
        _answers(a, rows_a, types_a, decided=decided),
        _answers(b, rows_b, types_b, decided=decided),
        counts,
    )


def _looked_at(predictions: Predictions) -> dict[str, bool]:
    """Whether the label says faulty, by image, also of frames without an answer."""
    seen = dict(zip(predictions.images, predictions.faulty.tolist(), strict=True))
    return seen | {frame.image: frame.faulty for frame in predictions.unanswered}


def _example(seen: Mapping[str, bool]) -> str:
    return shown(next(iter(seen))) if seen else "none at all"


def _differ(image: str, said_a: object, said_b: object) -> str:
    if isinstance(said_a, bool):
        said_a, said_b = ("faulty" if said else "clean" for said in (said_a, said_b))
    return (
        f"image {shown(image)}: the labels differ, A was compared with {said_a}, B with {said_b};"
        " evaluate both on the same labels"
    )


def _check_labels(
    first: Predictions, second: Predictions, rows_a: Ints, rows_b: Ints, types_b: Ints
) -> None:
    """Refuses frames that are not labelled alike on both sides."""
    pixels_a = first.inside_nkb.sum(axis=2)[rows_a]
    pixels_b = second.inside_nkb.sum(axis=2)[rows_b][:, types_b]
    apart = (first.faulty[rows_a] != second.faulty[rows_b]) | (pixels_a != pixels_b).any(axis=1)
    for name in ("present_nk", "masked_nk"):
        labels_b = getattr(second, name)[rows_b][:, types_b]
        apart |= (getattr(first, name)[rows_a] != labels_b).any(axis=1)
    if apart.any():
        n = int(apart.argmax())
        at_a, at_b = int(rows_a[n]), int(rows_b[n])
        said = [_label_words(side, row) for side, row in ((first, at_a), (second, at_b))]
        raise InputError(_differ(first.images[at_a], *said))
    regions_a = _regions(first, rows_a, np.arange(len(types_b)))
    regions_b = _regions(second, rows_b, np.argsort(types_b))
    if not np.array_equal(regions_a, regions_b):
        listed_a, listed_b = ({tuple(r) for r in side.tolist()} for side in (regions_a, regions_b))
        n = min(listed_a ^ listed_b)[0]
        said_a, said_b = "regions in one place", "regions in another"
        raise InputError(_differ(first.images[rows_a[n]], said_a, said_b))


def _label_words(predictions: Predictions, row: int) -> str:
    pixels_k = predictions.inside_nkb[row].sum(axis=1)
    said = [
        f"type {c} ({px:,} px)" if masked else f"type {c}"
        for c, on, masked, px in zip(
            predictions.class_ids,
            predictions.present_nk[row],
            predictions.masked_nk[row],
            pixels_k,
            strict=True,
        )
        if on
    ]
    return ", ".join(said) or ("faulty" if predictions.faulty[row] else "clean")


def _regions(predictions: Predictions, rows: Ints, type_at: Ints) -> Ints:
    """Place among the common frames, type, box and pixels of each labelled region, sorted."""
    place = np.full(len(predictions), -1)
    place[rows] = np.arange(len(rows))
    place_r = place[predictions.region_frames_r]
    facts = np.column_stack(
        [
            place_r,
            type_at[predictions.region_types_r],
            predictions.region_boxes_r4,
            predictions.region_counts_rb.sum(axis=1),
        ]
    )[place_r >= 0]
    ordered: Ints = facts[np.lexsort(facts.T[::-1])]
    return ordered


def _finite(predictions: Predictions) -> Bools:
    finite: Bools = np.isfinite(predictions.faulty_logits) & np.isfinite(
        predictions.type_scores_nk
    ).all(axis=1)
    return finite


def _merged_groups(groups_a: Ints, groups_b: Ints) -> Ints:
    """Frames that either side puts into one group are in one; it has the least number of A's."""
    members: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    for side, groups_n in enumerate((groups_a, groups_b)):
        for n, group in enumerate(groups_n.tolist()):
            members[side, group].append(str(n))
    numbers = groups_a.copy()
    for group in merge_groups(members.values()):
        frames = [int(n) for n in group]
        numbers[frames] = groups_a[frames].min()
    return numbers


def _answers(side: Side, rows: Ints, types: Ints, *, decided: bool) -> Answers:
    predictions, decision = side.predictions, side.decision if decided else None
    label_px_nk = predictions.inside_nkb.sum(axis=2)
    verdicts = apply_decision(predictions, decision) if decision else None
    if decision and verdicts:
        area_nk, true_nk = verdicts.area_px_nk, verdicts.true_px_nk
        probability_n = faulty_met_by(decision, predictions)
    else:
        from_half = np.append(np.zeros(1, np.bool_), MASK_LOGIT_EDGES >= 0)
        true_nk = predictions.inside_nkb[..., from_half].sum(axis=2)
        area_nk = true_nk + predictions.outside_nkb[..., from_half].sum(axis=2)
        probability_n = predictions.faulty_probability
    segmented_nk, _ = overlap(true_nk, area_nk, label_px_nk)
    delivered_nk = None
    if verdicts:
        called_nk = verdicts.called_nk
        delivered_nk, _ = overlap(true_nk * called_nk, area_nk * called_nk, label_px_nk)
        delivered_nk = delivered_nk[rows][:, types]
    return Answers(
        logits_n=predictions.faulty_logits[rows].astype(np.float64) if predictions.scored else None,
        probability_n=probability_n[rows],
        ng_n=verdicts.ng_n[rows] if verdicts else None,
        segmented_nk=segmented_nk[rows][:, types],
        delivered_nk=delivered_nk,
    )
