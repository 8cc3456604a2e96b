"""One command from data to bundle: split, plan, one run or several, and what is made of them.

A single run holds out one part of the split. Cross-validation trains once for each fold, keeps what
every network said about frames it had not seen (out of fold), and then trains on all frames; the
thresholds of the bundle come from the out-of-fold predictions.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from steelsight.bundle import Precision
from steelsight.data.catalog import Catalog
from steelsight.data.duplicates import Duplicates
from steelsight.data.splits import Split, load_split, make_split, write_split
from steelsight.errors import GateError, InputError, first_names
from steelsight.evaluation.metrics import Summary, summary
from steelsight.evaluation.predictions import Predictions
from steelsight.models.res_unet import build_network
from steelsight.report.train_page import write_cross_validation_page, write_train_page
from steelsight.training.config import TrainConfig, with_settings
from steelsight.training.finish import make_bundle, measure
from steelsight.training.loop import Moment, Outcome, device_of, start_fabric, train
from steelsight.training.plan import Fingerprint, Plan, Profile, make_plan, take_fingerprint
from steelsight.training.prepare import TrainingData, prepare
from steelsight.training.run_folder import BEST, CONFIG, SUMMARY, RunFolder, RunInputs, read_config
from steelsight.training.starts import load_start

SPLIT, PREDICTIONS, JSON_LINES = "split.json", "predictions.npz", "predictions.jsonl"
BUNDLE, FINAL = "bundle", "final"
BUNDLE_CHOICES = {
    "auto": (Precision.INT8, Precision.FP32),
    "int8": (Precision.INT8,),
    "fp32": (Precision.FP32,),
}
"""Precisions that are tried in turn until one is near enough to the trained network."""
PARTS = {"train": 0.8, "val": 0.2}


@dataclass(frozen=True, slots=True)
class Request:
    """What is wanted; see ``steelsight train --help``."""

    out: Path
    start: str
    start_sha256: str | None = None
    profile: str = "auto"
    settings: Mapping[str, object] | None = None
    split: Path | None = None
    held_out: str | None = None
    folds: int | None = None
    final: bool = True
    bundle: str | None = "auto"
    name: str = "run"
    terms: str = ""
    resume: bool = False
    command: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """One network to train: into which folder, from which frames, measured on which fold."""

    path: Path
    data: TrainingData
    fold: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is decided before the first step.

    ``start_sha256``: of the file with the start's weights; ``None`` for random ones.
    """

    request: Request
    split: Split
    fingerprint: Fingerprint
    plan: Plan
    parts: tuple[Part, ...]
    start_sha256: str | None

    def lines(self) -> list[str]:
        """For people: data, plan, reasons."""
        first = self.parts[0].data
        counts = first.to_json()
        train, held = counts["train"], counts["held_out"]
        per_type = ", ".join(f"{c} {n}" for c, n in train["masked_by_type"].items())
        told = [
            f"Learns from {train['frames']} frames ({train['clean']} clean; masks by type:"
            f" {per_type}), measured on {held['frames']} held out ({held['clean']} clean)."
        ]
        told += [f"Note: {note}." for note in first.notes]
        told += [f"Plan: {reason}." for reason in self.plan.reasons]
        config = self.plan.config
        if len(self.parts) > 1:
            told.append(f"{len(self.parts)} networks, {config.steps} steps each.")
        return told

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "data": [part.data.to_json() for part in self.parts],
            "split_sha256": self.split.sha256,
            "fingerprint": self.fingerprint.to_json(),
            "config": self.plan.config.model_dump(mode="json"),
            "reasons": list(self.plan.reasons),
        }


@dataclass(frozen=True, slots=True)
class Done:
    """What a session left.

    ``refused``: why the bundle may not be used; it lies there for whoever looks for the cause.
    ``note``: why it has another precision than was tried first.
    """

    folder: Path
    report: Path
    figures: Summary
    bundle: Path | None
    refused: str | None = None
    note: str | None = None

    def lines(self) -> list[str]:
        """For people."""
        told = [*_figure_lines(self.figures), f"Open {self.report} in a browser."]
        if self.note:
            told.append(f"Note: {self.note}.")
        if self.bundle and not self.refused:
            told.append(f"Inspect with: steelsight inspect IMAGES --bundle {self.bundle}")
        return told

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "folder": str(self.folder),
            "report": str(self.report),
            "bundle": str(self.bundle) if self.bundle and not self.refused else None,
            "refused": self.refused,
            "note": self.note,
            "figures": self.figures.to_json(),
        }


def _figure_lines(figures: Summary) -> list[str]:
    def text(value: float | None) -> str:
        return "not measurable" if value is None else f"{value:.3f}"

    told = [
        f"On {figures.faulty_frames} faulty and {figures.clean_frames} clean frames that it had not"
        f" seen: AUROC {text(figures.auroc)}, recall {text(figures.recall_at_2_percent)} at 2 %"
        f" false alarms, mean Dice {text(figures.mean_dice)}."
    ]
    told += [
        f"Type {t.class_id}: {t.frames} frames, detection {text(t.detection)}, Dice"
        f" {text(t.best_dice)}."
        for t in figures.types
    ]
    return told


# Before ------------------------------------------------------------------------------------------


def prepare_session(
    request: Request,
    catalog: Catalog,
    duplicates: Duplicates,
    further: Mapping[str, Catalog] | None = None,
) -> Prepared:
    """Decides everything; writes nothing.

    Args:
        request: what is wanted.
        catalog: the data set, scanned.
        duplicates: its near-duplicates, which a split that is made now keeps together.
        further: more data sets by name, only learned from.

    Raises:
        InputError: see ``prepare``, ``make_plan``, ``with_settings`` and ``load_start``; or split,
            fold and folds do not fit each other.
    """
    split = _split(request, catalog, duplicates)
    parts = []
    if request.folds is None:
        train_images, held_out = _held_out(split, request.held_out)
        data = prepare(catalog, split, train_images, held_out, further)
        parts.append(Part(request.out, data, 0))
    else:
        for fold in range(request.folds):
            data = prepare(catalog, split, *split.fold(fold), further)
            parts.append(Part(request.out / f"fold-{fold}", data, fold))
        if request.final:
            everything = [frame.image for frame in split.frames]
            data = prepare(catalog, split, everything, (), further, measured=False)
            parts.append(Part(request.out / FINAL, data, -1))
    config, plan, fingerprint = _planned(request, parts[0])
    # A start that does not fit is to be told before there is a folder of the run.
    network = build_network(len(parts[0].data.classes), config.network)
    start = load_start(network, request.start, request.start_sha256)
    plan = replace(plan, config=config)
    return Prepared(request, split, fingerprint, plan, tuple(parts), start.sha256)


def _split(request: Request, catalog: Catalog, duplicates: Duplicates) -> Split:
    if request.held_out and request.folds:
        raise InputError("expected --held-out or --folds, got both")
    kept = request.out / SPLIT
    path = request.split or (kept if request.resume and kept.exists() else None)
    if path:
        split = load_split(path)
        if request.folds and split.folds != request.folds:
            has = f"{split.folds} folds" if split.folds else "parts, no folds"
            raise InputError(
                f"{path}: expected {request.folds} folds, it has {has}; make it with 'steelsight"
                f" data split --folds {request.folds}', or leave --split out"
            )
        return split
    if request.held_out:
        raise InputError("--held-out names a part of a split: give --split too")
    return make_split(
        catalog,
        duplicates.groups,
        folds=request.folds,
        parts=None if request.folds else PARTS,
        seed=0,
        group_source="near-duplicates",
    )


def _held_out(split: Split, wanted: str | None) -> tuple[Sequence[str], Sequence[str]]:
    names = [part.name for part in split.parts]
    if split.folds is not None:
        held_out = wanted or names[0]
        if held_out not in names:
            raise InputError(
                f"expected --held-out out of {first_names(names)}, got {first_names([held_out])}"
            )
        return split.fold(names.index(held_out))
    held_out = wanted or next((n for n in ("val", "validation", "test") if n in names), names[-1])
    train_part = "train" if "train" in names else names[0]
    if held_out == train_part:
        raise InputError(f"expected another --held-out than {held_out}, which is learned from")
    return split.images_of(train_part), split.images_of(held_out)


def _planned(request: Request, part: Part) -> tuple[TrainConfig, Plan, Fingerprint]:
    settings = dict(request.settings or {})
    device = device_of(with_settings(TrainConfig(), {
        k: v for k, v in settings.items() if k == "device"
    }))  # fmt: skip
    fingerprint = take_fingerprint(part.data, device)
    if request.resume and (part.path / CONFIG).exists():
        plan = Plan(read_config(part.path), ("settings of the run that is resumed",))
    elif request.profile == "none":
        plan = Plan(TrainConfig(), ("no plan: the defaults",))
    elif request.profile in set(Profile):
        plan = make_plan(fingerprint, Profile(request.profile))
    else:
        raise InputError(
            f"expected --plan out of {', '.join(Profile)}, none; got {request.profile!r}"
        )
    return with_settings(plan.config, settings), plan, fingerprint


# The runs ----------------------------------------------------------------------------------------


def run_session(
    prepared: Prepared,
    *,
    show: Callable[[str, Moment], None] = lambda _name, _moment: None,
    tell: Callable[[str], None] = lambda _line: None,
    stop: Callable[[], bool] = lambda: False,
) -> Done | None:
    """Trains, measures and makes the bundle.

    Args:
        prepared: what was decided.
        show: called with the name of the part and where it is.
        tell: called with one line for people, such as a note on the start.
        stop: asked after each step; if true, the session can be resumed.

    Returns:
        What was made; ``None`` if stopped, and in all processes but the first.

    Raises:
        InputError: see ``train``.
    """
    request, config = prepared.request, prepared.plan.config
    fabric = start_fabric(config)
    several = request.folds is not None
    if several and fabric.is_global_zero:
        _make_root(request, prepared.split)
    outcomes: list[Outcome] = []
    for part in prepared.parts:
        outcome = _run_part(prepared, part, fabric, show, tell, stop)
        if not outcome.finished:
            return None
        outcomes.append(outcome)
    if not fabric.is_global_zero:
        return None
    found = Predictions.concatenate([o.predictions for o in outcomes if o.predictions is not None])
    return _finish(prepared, found)


def _make_root(request: Request, split: Split) -> None:
    kept = request.out / SPLIT
    if not request.resume and request.out.exists() and any(request.out.iterdir()):
        raise InputError(
            f"{request.out}: expected a new or empty folder; add --resume to go on with what it"
            " holds, or give another --out"
        )
    request.out.mkdir(parents=True, exist_ok=True)
    if not kept.exists():
        write_split(split, kept)


def _run_part(
    prepared: Prepared,
    part: Part,
    fabric: Fabric,
    show: Callable[[str, Moment], None],
    tell: Callable[[str], None],
    stop: Callable[[], bool],
) -> Outcome:
    request, config = prepared.request, prepared.plan.config
    saved = part.path / PREDICTIONS
    inputs = RunInputs(request.command, part.data.to_json(), request.start, prepared.start_sha256)
    if request.resume and saved.exists():
        # This fold is done; what it was made with must still be what is asked for.
        if fabric.is_global_zero:
            RunFolder.open_for_resume(part.path, inputs, config).close()
        return Outcome(True, config.steps, 0, Predictions.load(saved))

    def told(moment: Moment) -> None:
        show(part.path.name, moment)

    def go(folder: RunFolder | None) -> Outcome:
        return train(
            config,
            part.data,
            part.path,
            folder,
            fabric,
            start=request.start,
            start_sha256=request.start_sha256,
            fold=max(part.fold, 0),
            take_last=request.folds is not None,
            show=told,
            tell=tell if fabric.is_global_zero else lambda _line: None,
            stop=stop,
        )

    if not fabric.is_global_zero:
        return go(None)
    begun = request.resume and part.path.exists() and any(part.path.iterdir())
    with (
        RunFolder.open_for_resume(part.path, inputs, config)
        if begun
        else RunFolder.create(part.path, config, inputs)
    ) as folder:
        for note in folder.notes:
            tell(note)
        if request.folds is None and not (part.path / SPLIT).exists():
            write_split(prepared.split, part.path / SPLIT)
        outcome = go(folder)
        if outcome.predictions is not None:
            figures = measure(outcome.predictions)
            folder.write_summary({"best_step": outcome.best_step, **figures})
            outcome.predictions.write_jsonl(part.path / JSON_LINES)
            outcome.predictions.save(saved)
    if outcome.finished and request.folds is not None:  # of a single run it is written at the end
        write_train_page(part.path)
    return outcome


# After -------------------------------------------------------------------------------------------


def _finish(prepared: Prepared, found: Predictions) -> Done:
    request = prepared.request
    several = request.folds is not None
    if several:
        found.save(request.out / PREDICTIONS)
        found.write_jsonl(request.out / JSON_LINES)
        figures = json.dumps(measure(found), indent=1, allow_nan=False)
        (request.out / SUMMARY).write_text(figures + "\n", encoding="utf-8")
    bundle = request.out / BUNDLE if request.bundle and (not several or request.final) else None
    refused, note = None, None
    if bundle:
        wanted = BUNDLE_CHOICES[request.bundle or "auto"]
        for precision in wanted:
            refused = _bundle(prepared, found, bundle, precision)
            if refused is None:
                break
            if precision is not wanted[-1]:
                note = f"{precision} was refused, so the bundle is {wanted[-1]}: {refused}"
    page = write_cross_validation_page if several else write_train_page
    return Done(request.out, page(request.out), summary(found), bundle, refused, note)


def _bundle(
    prepared: Prepared, found: Predictions, bundle: Path, precision: Precision
) -> str | None:
    """Makes the bundle; says why it is refused, if it is."""
    request, last = prepared.request, prepared.parts[-1]
    if bundle.exists():  # refused, or of a session that was resumed after its end
        shutil.rmtree(bundle)
    measured = [frame for part in prepared.parts for frame in part.data.held_out]
    what = f"{request.folds} folds, out of fold" if request.folds else "frames held out of training"
    try:
        make_bundle(
            bundle,
            last.path / BEST,
            found,
            last.data,
            held_out=measured,
            precision=precision,
            name=request.name,
            terms=request.terms,
            chosen_on=f"{len(found)} frames: {what}; split {prepared.split.id}",
            about={
                "start": request.start,
                "data": last.data.data_sha256,
                "split": prepared.split.sha256,
                "command": request.command,
            },
        )
    except GateError as error:
        return str(error)
    return None
