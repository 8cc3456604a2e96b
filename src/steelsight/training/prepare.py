"""From a labelled data set to the frames that train and the frames that are held out.

Whatever would spoil a run for sure stops it here, before the first step.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steelsight.data.catalog import Catalog, FrameRecord
from steelsight.data.frames import LabelledFrame, labelled_frame
from steelsight.data.labels import LabelClass, shown
from steelsight.data.splits import Split
from steelsight.errors import InputError, first_names

LEAST_SIDE_PX = 64
"""Smaller frames leave the deepest features less than two positions."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a run learns from and what it is measured on.

    Attributes:
        classes: all types, in channel order.
        train: frames to learn from.
        held_out: frames that the network never sees; measured, and thresholds are chosen on them.
        tile_wh: usual size of the frames; larger ones are cut.
        grey: no frame is coloured.
        split_sha256, data_sha256: identity of split and data, further frames included.
        notes: what was left out and why, one line each, for people.
    """

    classes: tuple[LabelClass, ...]
    train: tuple[LabelledFrame, ...]
    held_out: tuple[LabelledFrame, ...]
    tile_wh: tuple[int, int]
    grey: bool
    split_sha256: str
    data_sha256: str
    notes: tuple[str, ...] = ()

    @property
    def class_ids(self) -> tuple[str, ...]:
        """Ids of the types in channel order."""
        return tuple(c.id for c in self.classes)

    def to_json(self) -> dict[str, Any]:
        """Frames per part and type, for the run's records."""
        return {
            "classes": [{"id": c.id, "name": c.name} for c in self.classes],
            "train": count_frames(self.train, self.class_ids),
            "held_out": count_frames(self.held_out, self.class_ids),
            "tile_wh": list(self.tile_wh),
            "grey": self.grey,
            "split_sha256": self.split_sha256,
            "data_sha256": self.data_sha256,
            "notes": list(self.notes),
        }


def count_frames(frames: Sequence[LabelledFrame], class_ids: Sequence[str]) -> dict[str, Any]:
    """Frames in all, faulty, clean, faulty without mask, and with a mask per type."""
    masked = Counter(c for frame in frames for c in frame.rle_by_class)
    faulty = sum(bool(frame.class_ids) for frame in frames)
    return {
        "frames": len(frames),
        "faulty": faulty,
        "clean": len(frames) - faulty,
        "without_mask": sum(bool(set(f.class_ids) - set(f.rle_by_class)) for f in frames),
        "masked_by_type": {c: masked[c] for c in class_ids},
    }


def prepare(
    catalog: Catalog,
    split: Split,
    train: Sequence[str],
    held_out: Sequence[str],
    further: Mapping[str, Catalog] | None = None,
    *,
    measured: bool = True,
) -> TrainingData:
    """Frames of a split as training needs them.

    Args:
        catalog: the data set, scanned now.
        split: what was split; the data must be those.
        train: images to learn from, for example ``split.fold(0)[0]``.
        held_out: images to measure on.
        further: more data sets by name that are only learned from, such as synthetic frames. None
            of their frames may be one of ``catalog``.
        measured: refuse if no frame is held out.

    Raises:
        InputError: the data are not those that were split, a type has no masked frame to learn
            from, no frame is held out, a frame is too small, or a further data set has other types
            or shares a frame with the data set.
        LabelError: a mask does not fit its frame.
    """
    split.require(catalog)
    classes = catalog.label_set.classes
    records = {record.image: record for record in catalog.records}
    notes: list[str] = []
    frames = [_frame(records[image]) for image in train]
    kept_back = tuple(_frame(records[image]) for image in held_out)
    identity = [split.data_sha256]
    for name, other in (further or {}).items():
        added = _further(name, other, catalog, notes)
        identity += [f"{r.sha256} {r.image}" for r in other.records]
        frames += added
    unmasked = [f for f in frames if set(f.class_ids) - set(f.rle_by_class)]
    if unmasked:
        notes.append(
            f"{len(unmasked)} faulty frames without a mask are not learned from, the first is"
            f" {shown(unmasked[0].image)}"
        )
    data = TrainingData(
        classes=classes,
        train=tuple(f for f in frames if not set(f.class_ids) - set(f.rle_by_class)),
        held_out=kept_back,
        tile_wh=_usual_size([*frames, *kept_back]),
        grey=not any(record.coloured for record in catalog.records),
        split_sha256=split.sha256,
        data_sha256=hashlib.sha256("\n".join(identity).encode()).hexdigest(),
        notes=tuple(notes),
    )
    if measured and not data.held_out:
        raise InputError(
            "expected frames to measure on, none is held out; give another --split or --held-out"
        )
    _check_types(data)
    return data


def _frame(record: FrameRecord, prefix: str = "") -> LabelledFrame:
    frame = labelled_frame(record, prefix)
    size_wh = frame.size_wh
    if min(size_wh) < LEAST_SIDE_PX:
        raise InputError(
            f"{shown(record.image)}: expected at least {LEAST_SIDE_PX} x {LEAST_SIDE_PX} px, got"
            f" {size_wh[0]} x {size_wh[1]}; leave it out of the data set, or enlarge all frames"
        )
    return frame


def _further(name: str, other: Catalog, catalog: Catalog, notes: list[str]) -> list[LabelledFrame]:
    strange = set(other.label_set.class_ids) - set(catalog.label_set.class_ids)
    if strange:
        raise InputError(
            f"{name}: expected no other types than {first_names(catalog.label_set.class_ids)}, got"
            f" {first_names(sorted(strange))}; rename them"
        )
    known = {r.pixels_sha256: r.image for r in catalog.records if r.pixels_sha256}
    usable = []
    for record in other.records:
        if record.labels is None or record.labels.disputed or record.pixels_sha256 is None:
            continue
        if record.pixels_sha256 in known:
            raise InputError(
                f"{name}: {shown(record.image)} has the pixels of"
                f" {shown(known[record.pixels_sha256])} of the data set, expected other frames: a"
                " held-out frame would be learned from; take it out"
            )
        usable.append(_frame(record, f"{name}/"))
    left = len(other.records) - len(usable)
    notes.append(
        f"{len(usable)} further frames of {name} are learned from"
        + (f", {left} cannot be used" if left else "")
    )
    return usable


def _usual_size(frames: Sequence[LabelledFrame]) -> tuple[int, int]:
    sizes = np.array([frame.size_wh for frame in frames])
    width, height = np.median(sizes, axis=0)
    return int(width), int(height)


def _check_types(data: TrainingData) -> None:
    if not data.classes:
        raise InputError("expected at least one defect type in the labels, got none")
    counts = count_frames(data.train, data.class_ids)["masked_by_type"]
    missing = [c.name for c in data.classes if not counts[c.id]]
    if missing:
        raise InputError(
            f"expected at least one frame with a mask of each type to learn from, got none of"
            f" {first_names(missing)}; label some, take the type out of the labels, or make"
            " another split"
        )
