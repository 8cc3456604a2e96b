"""Labels from one format into another, with proof: what was written is read back and compared.

A format that cannot hold a mask (two types on one pixel, a polygon instead of pixels, one type per
frame) loses something. How much is measured for every frame and type as intersection over union,
and nothing is called written that the target's own reader does not give back.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from steelsight.data.formats.registry import load
from steelsight.data.labels import FrameLabels, LabelFormat, LabelSet, Placement, ReadOptions
from steelsight.errors import InputError
from steelsight.masks import decode_rle


@dataclass(frozen=True, slots=True)
class Loss:
    """One mask that the target could not hold exactly.

    Attributes:
        image: the frame.
        class_id: the type.
        iou: intersection over union of the mask before and after, 0..1; 0 where it is gone.
        missing_px, added_px: pixels that only the mask before, or only the one after, has.
    """

    image: str
    class_id: str
    iou: float
    missing_px: int
    added_px: int

    @property
    def sentence(self) -> str:
        """One line for people."""
        return (
            f"{self.image}, type {self.class_id}: IoU {self.iou:.4f}"
            f" ({self.missing_px} px lost, {self.added_px} px added)"
        )


@dataclass(frozen=True, slots=True)
class Conversion:
    """What became of a data set's labels.

    Attributes:
        source_format, target_format: names of the formats.
        folder: what was written.
        frames, masks: written.
        losses: masks that changed, the worst first; empty if nothing was lost.
        left_out: reason -> frames that the target cannot say the truth about.
        notes: of reading and writing.
    """

    source_format: str
    target_format: str
    folder: str
    frames: int
    masks: int
    losses: tuple[Loss, ...]
    left_out: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def convert(
    label_set: LabelSet,
    target: LabelFormat,
    folder: Path,
    placement: Placement = Placement.LEAVE,
) -> Conversion:
    """Writes labels in another format, reads them back and measures what was lost.

    Frames that are disputed, or whose types have no mask, are left out: in any of the formats they
    would read as clean.

    Args:
        label_set: what to write.
        target: the format.
        folder: new or empty; complete or not there at all, whenever the process is stopped.
        placement: what happens to the images.

    Raises:
        InputError: the folder is in use, cannot be written, or the format needs more than is there.
    """
    if target.write is None:
        raise InputError(f"{target.name!r} holds no labels, expected another format to write")
    if not folder.name:
        raise InputError(f"expected a new folder with a name of its own, got {str(folder)!r}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and not empty, expected a new folder")
    usable, left_out = _usable(label_set)
    if not usable.frames:
        raise InputError(
            f"{label_set.source}: no frame with masks or known to be clean, expected at least one;"
            " nothing was written"
        )
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed
    try:
        beside.mkdir(parents=True)
        names = target.write(usable, beside, placement)
        back = _read_back(usable, target, beside, names)
        if folder.exists():
            folder.rmdir()
        beside.replace(folder)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); check the path, its permissions and"
            " the free space"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Conversion(
        source_format=label_set.format,
        target_format=target.name,
        folder=str(folder),
        frames=len(usable.frames),
        masks=sum(len(frame.rle_by_class) for frame in usable.frames.values()),
        losses=_losses(usable, back, names),
        left_out=left_out,
        notes=label_set.notes,
    )


def _usable(label_set: LabelSet) -> tuple[LabelSet, dict[str, tuple[str, ...]]]:
    left_out: dict[str, list[str]] = {}
    frames: dict[str, FrameLabels] = {}
    for image, frame in label_set.frames.items():
        if frame.disputed:
            left_out.setdefault("disputed", []).append(image)
        elif frame.types_without_mask:
            left_out.setdefault("a type without a mask", []).append(image)
        else:
            frames[image] = frame
    if label_set.refused:
        left_out["a broken label"] = sorted(label_set.refused)
    unlabelled = label_set.image_paths.keys() - label_set.frames.keys() - label_set.refused
    if unlabelled:
        left_out["no label"] = sorted(unlabelled)
    told = {reason: tuple(images) for reason, images in left_out.items()}
    return replace(label_set, frames=frames), told


def _read_back(
    label_set: LabelSet, target: LabelFormat, folder: Path, names: Mapping[str, str]
) -> LabelSet:
    sizes = {
        names.get(image, image): frame.size_wh
        for image, frame in label_set.frames.items()
        if frame.size_wh is not None
    }
    class_names = tuple(c.name for c in label_set.classes)
    options = ReadOptions(sizes_wh=sizes, class_names=class_names)
    return load(folder, label_format=target.name, options=options)


def _losses(before: LabelSet, after: LabelSet, names: Mapping[str, str]) -> tuple[Loss, ...]:
    losses: list[Loss] = []
    for image, frame in before.frames.items():
        found = after.frames.get(names.get(image, image))
        rles = found.rle_by_class if found else {}
        for class_id in dict.fromkeys((*frame.rle_by_class, *rles)):
            old, new = frame.rle_by_class.get(class_id, ""), rles.get(class_id, "")
            if old != new and (loss := _loss(frame, class_id, old, new)):
                losses.append(loss)
        if found is None and not frame.rle_by_class:
            losses.append(Loss(image, "(clean)", 0.0, 0, 0))
    return tuple(sorted(losses, key=lambda loss: (loss.iou, loss.image, loss.class_id)))


def _loss(frame: FrameLabels, class_id: str, old: str, new: str) -> Loss | None:
    if frame.size_wh is None:
        raise InputError(f"{frame.image}: the size is not known; give --images or --size")
    a, b = decode_rle(old, frame.size_wh), decode_rle(new, frame.size_wh)
    union = int(np.count_nonzero(a | b))
    missing, added = int(np.count_nonzero(a & ~b)), int(np.count_nonzero(b & ~a))
    if not missing and not added:
        return None
    return Loss(frame.image, class_id, (union - missing - added) / union, missing, added)
