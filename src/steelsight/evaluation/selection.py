"""Which frames of a data set are evaluated, and which of them the model has learned from.

Every image of the data set is evaluated or left out with a reason; nothing is lost. A damaged image
stays in: that the model cannot answer on it is a result.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steelsight.bundle import Bundle, shipped_bundles
from steelsight.data.catalog import Catalog, FrameRecord
from steelsight.data.frames import LabelledFrame, labelled_frame
from steelsight.data.labels import shown
from steelsight.data.splits import LeftOutReason, Split, load_split, merge_groups
from steelsight.errors import InputError, LabelError, first_names
from steelsight.evaluation.predictions import Predictions

SPLIT, PREDICTIONS, FINAL = "split.json", "predictions.npz", "final"
"""What a training run leaves beside its bundle."""

LEARNED_FROM, OTHER_PART = "learned from", "other part of the split"
EVERYTHING = "all"
"""Instead of a part: all frames, also those that were learned from."""

_TEST_PARTS = ("test", "val", "validation")


@dataclass(frozen=True, slots=True)
class Learned:
    """What a model learned from, as far as it is recorded.

    Attributes:
        told: in the words of its manifest, or that nothing is told.
        terms: of these frames.
        split: of its training run, where the bundle still lies in the folder of the run.
        images: of that split: which ones it learned from.
        chosen_on: what its thresholds were chosen on, in the words of the decision file.
        held_out: the answers are about frames that training held out.
    """

    told: str
    terms: str = ""
    split: Split | None = None
    images: frozenset[str] = frozenset()
    chosen_on: str = ""
    held_out: bool = False

    @property
    def hashes(self) -> frozenset[str]:
        """Of the files that were learned from."""
        frames = self.split.frames if self.split else ()
        return frozenset(frame.sha256 for frame in frames if frame.image in self.images)


NOT_TOLD = Learned("not told: nobody recorded what the tool learned from")


def learned_by(bundle: Bundle) -> Learned:
    """What a bundle learned from: its manifest's words, and its run's split if that is there.

    The split of the run must be the one whose hash stands in the bundle's model card.
    """
    training = bundle.manifest.training
    run = bundle.folder.resolve().parent
    split, images = _split_of_run(run)
    if split is not None and split.sha256 not in bundle.card:
        split, images = None, frozenset()
    return Learned(training.data, training.terms, split, images, bundle.decision.chosen_on)


def learned_in_run(predictions: Path) -> Learned:
    """What the network behind a ``predictions.npz`` learned from.

    Training writes that file beside ``split.json``, about frames that it held out (of
    cross-validation: each by the network that had not seen it).
    """
    if not (predictions.parent / SPLIT).is_file():
        return NOT_TOLD
    return Learned("other frames than these: its training run held them out", held_out=True)


def _split_of_run(run: Path) -> tuple[Split | None, frozenset[str]]:
    if not (run / SPLIT).is_file():
        return None, frozenset()
    split = load_split(run / SPLIT)
    parts = [part.name for part in split.parts]
    if split.folds is None:
        return split, frozenset(split.images_of("train" if "train" in parts else parts[0]))
    held_out: set[str] = set()
    # Cross-validation ends with a network that learned from all folds.
    if not (run / FINAL).is_dir() and (run / PREDICTIONS).is_file():
        kept = Predictions.load(run / PREDICTIONS)
        held_out = {*kept.images, *(frame.image for frame in kept.unanswered)}
    return split, frozenset(split.assignment.keys() - held_out)


@dataclass(frozen=True, slots=True)
class Selection:
    """The frames of an evaluation.

    Attributes:
        frames: to ask about, by name; damaged ones among them.
        groups: number of the group of each frame that does not stand alone.
        images: of the data set; ``len(frames)`` and ``left_out`` add up to it.
        left_out: how many images for each reason.
        part: of the split; ``None`` without one.
        split: its identity.
        learned_from: images among ``frames`` that the model learned from, or that show the same
            steel as one that it learned from.
        warnings: what makes the figures too good, one sentence each.
        errors: labels that could not be read; their images are left out.
    """

    frames: tuple[LabelledFrame, ...]
    groups: Mapping[str, int]
    images: int
    left_out: Mapping[str, int]
    part: str | None = None
    split: str | None = None
    learned_from: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    errors: tuple[LabelError, ...] = ()

    def only(self, images: Collection[str], reason: str) -> "Selection":
        """Those frames; the others are left out for that reason."""
        kept = tuple(frame for frame in self.frames if frame.image in images)
        left_out = Counter(self.left_out)
        left_out[reason] += len(self.frames) - len(kept)
        return replace(self, frames=kept, left_out={r: n for r, n in left_out.items() if n})

    def to_json(self) -> dict[str, Any]:
        """For the report: counts and warnings."""
        return {
            "images": self.images,
            "left_out": dict(self.left_out),
            "part": self.part,
            "split": self.split,
            "learned_from": len(self.learned_from),
            "warnings": list(self.warnings),
        }


def select(
    catalog: Catalog,
    groups: Iterable[Sequence[str]],
    learned: Learned,
    *,
    split: Split | None = None,
    part: str | None = None,
    shipped_bundle: bool = False,
) -> Selection:
    """Chooses the frames.

    Args:
        catalog: the data set, scanned.
        groups: images that are not independent, such as near-duplicates or those of one coil.
        learned: what the model learned from.
        split: of the data set; that of the model's training run if ``None`` and the data are those.
        part: of the split; ``all`` for everything. If ``None``: the test part, else the validation
            part, else another one that was not learned from; without a split all frames but those
            that were learned from.
        shipped_bundle: the model is one that is shipped.

    Raises:
        InputError: no frame is left, no such part, or the data are not those that were split.
    """
    labelled, left_out, errors = _labelled(catalog)
    known = learned.hashes
    tainted = _tainted(catalog, groups, known)
    own = learned.split
    if split is None and own is not None and part != EVERYTHING:
        files = {frame.sha256 for frame in own.frames}
        split = own if any(record.sha256 in files for record in catalog.records) else None
    chosen = labelled
    if split is not None and part != EVERYTHING:
        split.require(catalog)
        part = part or _default_part(split, tainted, known=bool(known))
        members = set(split.images_of(part.replace("fold:", "fold-")))
        chosen = {image: frame for image, frame in labelled.items() if image in members}
        left_out[OTHER_PART] += len(labelled) - len(chosen)
    elif part not in (None, EVERYTHING):
        raise InputError(f"--part {part} names a part of a split: give --split too")
    elif part is None:
        chosen = {image: frame for image, frame in labelled.items() if image not in tainted}
        left_out[LEARNED_FROM] += len(labelled) - len(chosen)
    if not chosen:
        told = ", ".join(f"{n} {reason}" for reason, n in left_out.items() if n) or "no image"
        raise InputError(
            f"{catalog.label_set.source}: expected labelled frames to evaluate, none is left"
            f" ({told}); give other data, another --part, or --part all"
        )
    numbers = _group_numbers(groups, split, chosen)
    seen_before = tuple(image for image in chosen if image in tainted)
    return Selection(
        frames=tuple(chosen.values()),
        groups=numbers,
        images=len(catalog.records),
        left_out={reason: n for reason, n in sorted(left_out.items()) if n},
        part=part if split is not None or part == EVERYTHING else None,
        split=split.id if split else None,
        learned_from=seen_before,
        warnings=tuple(
            _warnings(learned, split, seen_before, len(chosen), shipped_bundle=shipped_bundle)
        ),
        errors=tuple(errors),
    )


def _labelled(
    catalog: Catalog,
) -> tuple[dict[str, LabelledFrame], Counter[str], list[LabelError]]:
    frames: dict[str, LabelledFrame] = {}
    left_out: Counter[str] = Counter()
    errors: list[LabelError] = []
    for record in catalog.records:
        reason = _left_out(record, catalog.label_set.refused)
        if reason is None:
            try:
                frames[record.image] = _frame(record)
                continue
            except LabelError as error:
                errors.append(error)
                reason = LeftOutReason.REFUSED
        left_out[reason.value] += 1
    return frames, left_out, errors


def _left_out(record: FrameRecord, refused: frozenset[str]) -> LeftOutReason | None:
    if record.image in refused:
        return LeftOutReason.REFUSED
    if record.labels is None:
        return LeftOutReason.UNLABELLED
    if record.labels.disputed:
        return LeftOutReason.DISPUTED
    return LeftOutReason.MISSING if record.path is None else None


def _frame(record: FrameRecord) -> LabelledFrame:
    if record.size_wh is not None:
        return labelled_frame(record)
    labels, path = record.labels, record.path
    if labels is None or path is None:
        raise ValueError(f"{record.image} is not labelled or not there")
    # Damaged: no size is known, and none is needed, because there will be no answer.
    size_wh = labels.size_wh or (0, 0)
    return LabelledFrame(record.image, path, size_wh, dict(labels.rle_by_class), labels.class_ids)


def _tainted(
    catalog: Catalog, groups: Iterable[Sequence[str]], known: frozenset[str]
) -> frozenset[str]:
    """Images whose file was learned from, and those that show the same steel as one of them."""
    learned = {r.image for r in catalog.records if r.sha256 is not None and r.sha256 in known}
    if not learned:
        return frozenset()
    return frozenset(learned).union(*(group for group in groups if learned.intersection(group)))


def _default_part(split: Split, tainted: frozenset[str], *, known: bool) -> str:
    names = [part.name for part in split.parts]
    first = [name for name in _TEST_PARTS if name in names]
    order = [*first, *(name for name in names if name not in first)]
    fresh = [name for name in order if tainted.isdisjoint(split.images_of(name))]
    if not known:
        fresh = [name for name in order if name != "train"]
    if not fresh:
        raise InputError(
            f"every part of the split ({first_names(names)}) was learned from; evaluate the"
            " out-of-fold predictions of the run (--predictions RUN/predictions.npz), other data,"
            " or --part all, whose figures are too good"
        )
    return fresh[0]


def _group_numbers(
    groups: Iterable[Sequence[str]], split: Split | None, chosen: Mapping[str, object]
) -> dict[str, int]:
    of_split: dict[str, list[str]] = {}
    for frame in split.frames if split else ():
        of_split.setdefault(frame.group, []).append(frame.image)
    together = merge_groups(groups, of_split.values())
    kept = [[image for image in group if image in chosen] for group in together]
    kept = [group for group in kept if len(group) > 1]
    return {image: number for number, group in enumerate(kept) for image in group}


def _warnings(
    learned: Learned,
    split: Split | None,
    seen_before: Sequence[str],
    frames: int,
    *,
    shipped_bundle: bool,
) -> Iterable[str]:
    if seen_before:
        yield (
            f"{len(seen_before)} of the {frames} frames were learned from, or show the same steel"
            f" as one that was, such as {shown(seen_before[0])}: these figures are too good."
        )
    elif shipped_bundle:
        yield (
            "The shipped bundle learned from Severstal's frames and does not record which: on"
            " frames of that data set these figures are too good."
        )
    elif learned.split is None and not learned.held_out:
        yield (
            "Which frames the model learned from is not recorded: if these are among them, the"
            " figures are too good."
        )
    chosen_here = split is not None and split.id in learned.chosen_on
    if chosen_here and "held out" in learned.chosen_on:
        yield (
            "The thresholds may have been chosen on these very frames"
            f" ({learned.chosen_on}): figures at the decision are slightly too good."
        )


def is_shipped(bundle: Bundle) -> bool:
    """Whether it is a bundle that ships with the package, wherever it lies."""
    return bundle.manifest.name in shipped_bundles()
