"""``steelsight data``: convert, check, explore, split and draw data sets."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from steelsight.cli.terminal import (
    DONE,
    GATE,
    SOME_UNKNOWN,
    Json,
    command_line,
    console_for,
    counted,
    fail,
    now,
    print_json,
    progress,
    table,
    working,
    write_json,
)
from steelsight.errors import DecodeError, InputError, LabelError

if TYPE_CHECKING:
    from steelsight.data.catalog import Catalog
    from steelsight.data.convert import Conversion
    from steelsight.data.duplicates import Duplicates
    from steelsight.data.labels import LabelSet
    from steelsight.data.splits import Split
    from steelsight.evaluation.label_audit import LabelAudit
    from steelsight.report.label_audit_page import SuspectPicture

SHOWN_ERRORS = 50
SHOWN_LOSSES = 20
SHOWN_NOTES = 20
SHOWN_SUSPECTS = 10
SHOWN_TYPES = 12

data_app = App(
    name="data",
    help="Data sets: convert labels, check, explore, split; draw a synthetic one.",
    help_format="plaintext",
)

DataPath = Annotated[
    Path, Parameter(name="PATH", help="Folder, label file, or .zip of a data set.")
]


@Parameter(name="*")
@dataclass(frozen=True)
class LabelOptions:
    """How to read the labels, for all commands that do."""

    label_format: Annotated[
        str | None,
        Parameter(name=("--format", "--from"), help="Label format; recognised if left out."),
    ] = None
    images: Annotated[
        Path | None, Parameter(help="Folder of the images, if not beside the labels.")
    ] = None
    size: Annotated[
        str | None, Parameter(help="Size of frames without image, such as 1600x256.")
    ] = None
    classes: Annotated[
        str | None, Parameter(help="Names of the types in order, separated by commas.")
    ] = None
    frame_list: Annotated[
        Path | None,
        Parameter(help="CSV that tells clean, disputed, split, coil, ... of each frame."),
    ] = None
    unlisted_are_clean: Annotated[
        bool, Parameter(negative="", help="Images without any label are good steel.")
    ] = False


@data_app.command
def convert(
    path: DataPath,
    /,
    *,
    to: Annotated[
        str,
        Parameter(
            help="severstal, severstal-submission, coco, coco-polygons, yolo, mask-index,"
            " mask-palette, mask-binary, mvtec, label-studio or cvat."
        ),
    ],
    out: Annotated[Path, Parameter(help="New or empty folder.")],
    labels: LabelOptions | None = None,
    place: Annotated[
        str, Parameter(help="Images: leave (labels only), copy, or link (hard links).")
    ] = "leave",
    keep_going: Annotated[
        bool, Parameter(negative="", help="List all broken labels; convert the other frames.")
    ] = False,
    strict: Annotated[
        bool, Parameter(negative="", help="Exit code 4 if any mask was changed.")
    ] = False,
    json: Json = False,
) -> int:
    """Convert labels between formats, read back what was written, and say what was lost.

    Frames that are disputed or whose types have no mask are left out and counted: they would read
    as clean.

    Exit codes: 3 if broken labels were left out (--keep-going), 4 if masks changed (--strict).

    Example: steelsight data convert drawn/ --to coco --out coco/ --place copy
    """
    from steelsight.data.convert import convert as convert_labels
    from steelsight.data.formats.registry import format_named
    from steelsight.data.labels import Placement

    target = format_named(to)
    if place not in set(Placement):
        raise InputError(f"expected --place {', '.join(Placement)}, got {place!r}")
    if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
        raise InputError(f"--out {out} lies in the data set itself; give another folder")
    errors: list[LabelError] | None = [] if keep_going else None
    with working("reading, writing, reading back"), loaded(path, labels, errors) as label_set:
        done = convert_labels(label_set, target, out, Placement(place))
    _print_errors(errors or [])
    if json:
        print_json({**done.to_json(), "errors": [str(error) for error in errors or []]})
    else:
        _print_conversion(done, json)
    if strict and done.losses:
        return GATE
    return SOME_UNKNOWN if errors else DONE


@data_app.command
def check(
    path: DataPath,
    /,
    *,
    labels: LabelOptions | None = None,
    split: Annotated[
        Path | None, Parameter(help="Split file to verify; else the split that folders tell.")
    ] = None,
    results: Annotated[
        Path | None, Parameter(help="results.jsonl of `steelsight inspect`: labels it doubts.")
    ] = None,
    out: Annotated[Path, Parameter(help="Folder for report.html and findings.json.")] = Path(
        "check"
    ),
    strict: Annotated[
        bool, Parameter(negative="", help="Exit code 4 if there is a leak or a conflict.")
    ] = False,
    json: Json = False,
) -> int:
    """Find what is wrong with a data set: one page, one JSON file.

    Missing and damaged images, sizes, duplicates (also flipped or rotated), labels that contradict
    each other, masks outside the image, specks, overlapping types, doubtful labels, and frames that
    are in more than one part of a split.

    Exit codes: 3 if images or labels could not be read, 4 with --strict on a leak or a conflict, or
    if the data are not those that were split.

    Example: steelsight data check drawn/ --out check/
    """
    from steelsight.data.audit import audit
    from steelsight.data.findings import Severity
    from steelsight.data.predictions import read_predictions
    from steelsight.data.splits import load_split, verify_split
    from steelsight.report.audit_page import write_audit_page

    started = now()
    planned = load_split(split) if split else None
    predictions = read_predictions(results) if results else None
    errors: list[LabelError] = []
    with loaded(path, labels, errors) as label_set:
        catalog, duplicates = scanned(label_set)
        with counted("checking", "frames") as step:
            found = audit(
                catalog,
                duplicates,
                label_errors=errors,
                assignment=planned.assignment if planned else None,
                predictions=predictions,
                progress=step,
            )
        _make_folder(out)
        write_audit_page(
            found,
            catalog,
            duplicates,
            out / "report.html",
            title=f"Check of {path.resolve().name}",
            source=str(path),
            command=command_line(),
            created=started,
        )
    differences = (
        [str(d) for d in verify_split(planned, catalog, duplicates.groups)] if planned else []
    )
    facts = {**found.to_json(), "differs_from_split": differences}
    write_json(out / "findings.json", facts)
    if json:
        print_json(facts)
    else:
        console = console_for(json)
        for finding in found.findings:
            console.print(f"{finding.severity.upper():7}  {finding.sentence}")
        for line in differences[:SHOWN_ERRORS]:
            console.print(f"{Severity.ERROR.upper():7}  Not as it was split: {line}.")
        if len(differences) > SHOWN_ERRORS:
            console.print(f"{len(differences)} differences from the split in all.")
        console.print(f"{found.verdict}")
        console.print(f"Open {out / 'report.html'} in a browser; {out / 'findings.json'} has all.")
    if strict and (found.leaks_or_conflicts or differences):
        return GATE
    counts = found.counts
    return SOME_UNKNOWN if errors or counts.unreadable or counts.missing else DONE


@data_app.command
def explore(
    path: DataPath,
    /,
    *,
    labels: LabelOptions | None = None,
    total_frames: Annotated[
        int | None,
        Parameter(help="Frames in all, if the labels list faulty ones only; the rest is clean."),
    ] = None,
    out: Annotated[Path, Parameter(help="Folder for report.html and summary.json.")] = Path(
        "explore"
    ),
    json: Json = False,
) -> int:
    """Look at a data set: one page with pictures, and summary.json.

    How many frames of each type, how large, long and where on the strip they are, brightness over
    the sequence, examples, duplicates, and what follows from it all for training and testing. Works
    on a label file alone; pictures need the images.

    Example: steelsight data explore drawn/ --out explore/
    """
    from steelsight.data.explore import summarise
    from steelsight.report.explore_page import write_explore_page

    started = now()
    errors: list[LabelError] = []
    with loaded(path, labels, errors) as label_set:
        catalog, duplicates = scanned(label_set) if label_set.image_paths else (None, None)
        with counted("measuring", "masks") as step:
            summary = summarise(
                label_set, catalog, duplicates, total_frames=total_frames, progress=step
            )
        _make_folder(out)
        write_explore_page(
            summary,
            out / "report.html",
            label_set=label_set,
            duplicates=duplicates,
            title=f"Exploration of {path.resolve().name}",
            source=str(path),
            command=command_line(),
            created=started,
            files={"All figures as JSON": "summary.json"},
        )
    _print_errors(errors)
    facts = {**summary.to_json(), "errors": [str(error) for error in errors]}
    write_json(out / "summary.json", facts)
    if json:
        print_json(facts)
    else:
        console = console_for(json)
        for consequence in summary.consequences:
            console.print(f"- {consequence.sentence}")
        console.print(f"Open {out / 'report.html'} in a browser; {out / 'summary.json'} has all.")
    return SOME_UNKNOWN if errors else DONE


@data_app.command
def split(
    path: DataPath,
    /,
    *,
    out: Annotated[Path, Parameter(help="Split file to write.")],
    parts: Annotated[
        str | None, Parameter(help="Names and shares; train=0.7,val=0.15,test=0.15 if left out.")
    ] = None,
    folds: Annotated[int | None, Parameter(help="Number of equal folds instead of parts.")] = None,
    group_by: Annotated[
        str | None, Parameter(help="Column of the frame list, such as coil: never divided.")
    ] = None,
    seed: Annotated[int, Parameter(help="Same seed, same split, byte for byte.")] = 0,
    labels: LabelOptions | None = None,
    overwrite: Annotated[bool, Parameter(negative="", help="Replace an earlier split.")] = False,
    json: Json = False,
) -> int:
    """Divide a data set into parts or folds that can be trusted.

    Near-duplicates, and frames of the same coil, date or camera (--group-by), never cross a part.
    Every type is spread in proportion. The file holds the hash of every image and its labels;
    training and evaluation refuse data that differ.

    Example: steelsight data split drawn/ --out split.json --folds 5
    """
    from steelsight.data.splits import groups_by_column, make_split, parse_parts, write_split

    if out.exists() and not overwrite:
        raise InputError(f"{out} is there already; give another --out, or --overwrite")
    if parts and folds:
        raise InputError("expected --parts or --folds, got both")
    shares = None if folds else parse_parts(parts or "train=0.7,val=0.15,test=0.15")
    errors: list[LabelError] = []
    with loaded(path, labels, errors) as label_set:
        catalog, duplicates = scanned(label_set)
        groups, told = list(duplicates.groups), "near-duplicates"
        notes: tuple[str, ...] = ()
        if group_by:
            by_column = groups_by_column(catalog, group_by)
            groups += by_column.groups
            notes, told = by_column.notes, f"near-duplicates and column {group_by}"
        made = make_split(
            catalog,
            groups,
            parts=shares,
            folds=folds,
            seed=seed,
            group_source=told,
            source=path.name,
            notes=notes,
        )
        write_split(made, out)
    _print_errors(errors)
    if json:
        print_json({"file": str(out), "sha256": made.sha256, **made.model_dump(mode="json")})
    else:
        _print_split(made, out)
    return SOME_UNKNOWN if errors else DONE


@data_app.command
def synth(
    *,
    out: Annotated[Path, Parameter(help="New or empty folder.")],
    frames: Annotated[int, Parameter(help="How many frames to draw.")] = 200,
    seed: Annotated[int, Parameter(help="Same seed, same frames, byte for byte.")] = 0,
    faulty_share: Annotated[float, Parameter(help="Chance of a frame to be faulty.")] = 0.25,
    json: Json = False,
) -> int:
    """Draw steel strip frames with exact masks, in the Severstal layout.

    Writes images/, train.csv (Kaggle form), images.csv and SYNTHETIC.txt. The frames are drawn,
    not photographed; accuracy on them says nothing about real steel.

    Example: steelsight data synth --frames 200 --out drawn/
    """
    from steelsight.data.synthetic import CoilConfig, write_severstal

    console = console_for(json)
    config = CoilConfig(frames=frames, seed=seed, faulty_share=faulty_share)
    with progress("drawing", frames) as advance:
        write_severstal(config, out, progress=lambda _: advance(""))
    if json:
        print_json({"folder": str(out), "frames": frames, "seed": seed, "synthetic": True})
    else:
        console.print(f"{frames} drawn frames with exact masks in {out}.")
    return DONE


@data_app.command
def audit_labels(
    path: DataPath,
    /,
    *,
    predictions: Annotated[
        Path, Parameter(help="Out-of-fold predictions.npz, or the folder of the run that made it.")
    ],
    labels: LabelOptions | None = None,
    out: Annotated[
        Path, Parameter(help="Folder for report.html, suspects.json and suspects.csv.")
    ] = Path("out/label-audit"),
    top: Annotated[int, Parameter(help="How many suspects to show and to export.")] = 50,
    export: Annotated[
        str | None, Parameter(help="label-studio: tasks to correct, in OUT/label-studio/.")
    ] = None,
    overwrite: Annotated[
        bool, Parameter(negative="", help="Replace an earlier audit in --out.")
    ] = False,
    json: Json = False,
) -> int:
    """Rank the labels that a network contradicts which never learned from them.

    Frames labelled clean that look faulty, types that are labelled and not there or there and not
    labelled, and outlines that disagree. The most doubtful first, as pictures, a table, and tasks
    for Label Studio with the present labels to correct.

    Exit code: 3 if labels could not be read.

    Example: steelsight data audit-labels drawn/ --predictions runs/five-folds/predictions.npz
    """
    from steelsight.data.tables import write_table
    from steelsight.evaluation.label_audit import (
        audit_labels,
        export_label_studio,
        held_out_problem,
        match_labels,
        suspect_rows,
    )
    from steelsight.evaluation.predictions import Predictions
    from steelsight.report.data_page import label_classes
    from steelsight.report.label_audit_page import label_audit_page
    from steelsight.report.page import write_page

    _check_audit_options(path, out, top, export, overwrite)
    file = predictions / "predictions.npz" if predictions.is_dir() else predictions
    predicted = Predictions.load(file)
    problem = held_out_problem(file, predicted)
    errors: list[LabelError] = []
    with loaded(path, labels, errors) as label_set:
        matched = match_labels(predicted, label_set)
        audit = audit_labels(predicted.take(matched.same_n))
        classes = label_classes(label_set.classes)
        names = {c.id: c.name for c in classes}
        shown_first = audit.suspects[:top]
        pictures = _suspect_pictures(label_set, [s.image for s in shown_first])
        _make_folder(out)
        if export:
            export_label_studio(shown_first, label_set, out / "label-studio", names)
    notes = [
        f"{count:,} frames {why}"
        for count, why in (
            (matched.missing, "of the predictions have no label or image in the data set"),
            (matched.changed, "are labelled otherwise since they were predicted"),
            (len(predicted.unanswered), "have no answer"),
        )
        if count
    ]
    warnings = [problem] if problem else []
    page = label_audit_page(
        audit,
        pictures,
        title=f"Labels of {path.resolve().name} to look at",
        classes=classes,
        top=top,
        notes=notes,
        warnings=warnings,
        facts=[("Predictions", str(file)), ("Labels", str(path))],
        command=command_line(),
    )
    facts = {
        "predictions": str(file),
        "data": str(path),
        "out_of_fold": problem is None,
        "warnings": warnings,
        "missing": matched.missing,
        "changed": matched.changed,
        "unanswered": len(predicted.unanswered),
        **audit.to_json(),
        "errors": [str(error) for error in errors],
    }
    write_table(out / "suspects.csv", suspect_rows(audit))
    write_page(out / "report.html", page)
    write_json(out / "suspects.json", facts)
    _print_errors(errors)
    if problem:
        fail(f"warning: {problem}", DONE)
    if json:
        print_json(facts)
    else:
        _print_audit(audit, names, notes, out, len(shown_first) if export else 0)
    return SOME_UNKNOWN if errors else DONE


@contextmanager
def loaded(
    path: Path, options: LabelOptions | None, errors: list[LabelError] | None
) -> Iterator["LabelSet"]:
    """The labels of a data set; an archive stays unpacked for as long as they are used."""
    from steelsight.data.archive import opened
    from steelsight.data.formats.registry import load
    from steelsight.data.labels import ReadOptions

    options = options or LabelOptions()
    read_options = ReadOptions(
        images=options.images,
        size_wh=_size_wh(options.size),
        class_names=tuple(n.strip() for n in (options.classes or "").split(",") if n.strip()),
        unlisted_are_clean=options.unlisted_are_clean,
    )
    with opened(path) as folder:
        yield load(
            folder,
            label_format=options.label_format,
            options=read_options,
            frame_list=options.frame_list,
            errors=errors,
        )


def scanned(label_set: "LabelSet") -> "tuple[Catalog, Duplicates]":
    """Every image decoded once, and those that show the same steel, under progress bars."""
    from steelsight.data.catalog import scan
    from steelsight.data.duplicates import find_duplicates

    with counted("reading", "frames") as step:
        catalog = scan(label_set, progress=step)
    with counted("comparing") as step:
        return catalog, find_duplicates(catalog, progress=step)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"expected a folder to write to at {out}: {error.strerror}; give another --out"
        ) from None


def _size_wh(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch("([1-9][0-9]{0,5})[xX×]([1-9][0-9]{0,5})", text.strip())
    if not match:
        raise InputError(f"expected --size WIDTHxHEIGHT such as 1600x256, got {text!r}")
    return int(match[1]), int(match[2])


def _print_errors(errors: list[LabelError]) -> None:
    for error in errors[:SHOWN_ERRORS]:
        fail(str(error), SOME_UNKNOWN)
    if len(errors) > SHOWN_ERRORS:
        fail(f"{len(errors)} broken labels in all", SOME_UNKNOWN)


def _check_audit_options(
    path: Path, out: Path, top: int, export: str | None, overwrite: bool
) -> None:
    if top < 1:
        raise InputError(f"expected --top from 1, got {top}")
    if export not in (None, "label-studio"):
        raise InputError(f"expected --export label-studio, got {export!r}")
    if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
        raise InputError(f"--out {out} lies in the data set itself; give another folder")
    if (out / "suspects.json").exists() and not overwrite:
        raise InputError(
            f"{out} holds an audit already; give another --out, or --overwrite to replace it"
        )


def _print_audit(
    audit: "LabelAudit", names: dict[str, str], notes: list[str], out: Path, tasks: int
) -> None:
    console = console_for(False)
    console.print(
        f"{len(audit.suspects)} of {audit.frames} frames have a label that the network contradicts:"
    )
    for kind, count in audit.counts().items():
        console.print(f"{count:6}  {kind}")
    for rank, suspect in enumerate(audit.suspects[:SHOWN_SUSPECTS], 1):
        console.print(f"{rank:3}. {suspect.image}: {suspect.sentence(names)}")
    for note in notes:
        console.print(f"Left out: {note}.")
    for name, reason in audit.not_checked.items():
        console.print(f"Not checked, {name}: {reason}.")
    if tasks:
        console.print(f"{tasks} tasks for Label Studio in {out / 'label-studio'}.")
    console.print(f"Open {out / 'report.html'} in a browser; {out / 'suspects.csv'} has all.")


def _suspect_pictures(label_set: "LabelSet", images: list[str]) -> "dict[str, SuspectPicture]":
    from steelsight.imaging import read_file
    from steelsight.masks import decode_rle
    from steelsight.report.data_page import label_classes
    from steelsight.report.label_audit_page import draw_suspect

    classes = label_classes(label_set.classes)
    pictures = {}
    with counted("drawing", "frames") as step:
        for done, image in enumerate(images, 1):
            rles = label_set.frames[image].rle_by_class
            try:
                grey_hw = read_file(label_set.image_paths[image]).grey_hw
                size_wh = grey_hw.shape[1], grey_hw.shape[0]
                masks = {class_id: decode_rle(rle, size_wh) for class_id, rle in rles.items()}
                pictures[image] = draw_suspect(grey_hw, masks, classes)
            except (DecodeError, LabelError):
                pass  # the page says "No picture"
            step(done, len(images))
    return pictures


def _print_conversion(done: "Conversion", json: bool) -> None:
    console = console_for(json)
    for note in done.notes:
        console.print(f"Note: {note}.")
    console.print(
        f"{done.frames} frames with {done.masks} masks from {done.source_format} to"
        f" {done.target_format} in {done.folder}."
    )
    for reason, images in done.left_out.items():
        first = ", ".join(images[:3]) + (", ..." if len(images) > 3 else "")
        console.print(f"Left out, {reason}: {len(images)} images ({first}).")
    for loss in done.losses[:SHOWN_LOSSES]:
        console.print(f"Changed: {loss.sentence}.")
    if len(done.losses) > SHOWN_LOSSES:
        console.print(f"{len(done.losses)} masks changed in all; --json lists them.")
    if not done.losses:
        console.print("Read back and compared: every mask is the same, pixel by pixel.")


def _print_split(made: "Split", out: Path) -> None:
    console = console_for(False)
    types = [c.id for c in made.classes][:SHOWN_TYPES]
    rows = [["", "frames", "groups", "clean", "faulty", *(f"type {t}" for t in types)]]
    for part in made.parts:
        per_type = [str(part.frames_by_type.get(t, 0)) for t in types]
        figures = [part.frames, part.groups, part.clean, part.faulty]
        rows.append([part.name, *map(str, figures), *per_type])
    console.print(table(rows))
    if len(made.classes) > len(types):
        console.print(f"{len(made.classes)} types in all; {out} counts the others too.")
    for note in made.notes[:SHOWN_NOTES]:
        console.print(f"Note: {note}.")
    if len(made.notes) > SHOWN_NOTES:
        console.print(f"{len(made.notes)} notes in all; {out} holds them.")
    if made.left_out:
        reasons = Counter(entry.reason for entry in made.left_out)
        told = ", ".join(f"{n} {reason}" for reason, n in reasons.items())
        console.print(f"Left out: {len(made.left_out)} images ({told}).")
    console.print(f"{out} (sha256 {made.id}) holds every frame with its hashes.")
