"""``steelsight evaluate``: what a bundle, or another tool, misses and blocks on labelled frames."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from steelsight.cli.data import LabelOptions, loaded, scanned
from steelsight.cli.terminal import (
    DONE,
    INTERRUPTED,
    SOME_UNKNOWN,
    Json,
    command_line,
    console_for,
    counted,
    ctrl_c,
    fail,
    print_json,
    table,
    working,
    write_json,
)
from steelsight.cli.train import training_installed
from steelsight.errors import InputError, LabelError

if TYPE_CHECKING:
    from steelsight.data.catalog import Catalog
    from steelsight.data.duplicates import Duplicates
    from steelsight.data.frames import LabelledFrame
    from steelsight.data.labels import LabelSet
    from steelsight.decisions import Decision
    from steelsight.defects import DefectClass
    from steelsight.engine import Inspector
    from steelsight.evaluation.predictions import Predictions
    from steelsight.evaluation.selection import Learned, Selection
    from steelsight.evaluation.tool_files import ToolFile
    from steelsight.imaging import GreyHW
    from steelsight.report.evaluation_page import Picture

SHOWN_ERRORS = 20
KEPT_SUFFIX = ".npz"
KEPT_FACTS = ("model", "engine", "types", "trained_on", "terms", "warnings")
"""What an earlier evaluation noted beside its predictions."""

Explain = Callable[["GreyHW", str | None], tuple[tuple[str, bytes], ...]]
MasksOf = Callable[[Sequence["LabelledFrame"]], Mapping[str, Mapping[str, str | None]]]


def evaluate(
    path: Annotated[Path, Parameter(name="PATH", help="Folder, label file, or .zip of labels.")],
    /,
    *,
    bundle: Annotated[
        Path | None, Parameter(help="Folder; severstal-r50, which is shipped, if left out.")
    ] = None,
    decision: Annotated[
        Path | None,
        Parameter(
            help="Decision file to use instead of the bundle's; severstal-r50 has first-look, too."
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        Parameter(
            help="Instead of a bundle: predictions of another tool (Kaggle CSV, COCO results, mask"
            " folder), results.jsonl of `inspect`, or predictions.npz."
        ),
    ] = None,
    coco_ids: Annotated[
        Path | None,
        Parameter(help="COCO file that tells what image and category ids of COCO results mean."),
    ] = None,
    unmentioned_are_none: Annotated[
        bool,
        Parameter(negative="", help="Frames that --predictions does not mention were found clean."),
    ] = False,
    split: Annotated[
        Path | None, Parameter(help="split.json; that of the bundle's training run if left out.")
    ] = None,
    part: Annotated[
        str | None,
        Parameter(help="Part of the split, such as test or fold:0; 'all': learned from or not."),
    ] = None,
    group_by: Annotated[
        str | None, Parameter(help="Column of the frame list, such as coil, for the intervals.")
    ] = None,
    engine: Annotated[str, Parameter(help="auto, onnxruntime, openvino or cuda.")] = "auto",
    threads: Annotated[int | None, Parameter(help="Inference threads; all cores if left out.")] = (
        None
    ),
    allow_colour: Annotated[
        bool, Parameter(negative="", help="Turn coloured images grey instead of refusing them.")
    ] = False,
    out: Annotated[
        Path, Parameter(help="Folder for report.html, evaluation.json and frames.csv.")
    ] = Path("evaluation"),
    overwrite: Annotated[
        bool, Parameter(negative="", help="Replace an earlier evaluation in --out.")
    ] = False,
    save_predictions: Annotated[
        bool, Parameter(negative="", help="Keep predictions.npz, for `calibrate` and `compare`.")
    ] = False,
    cam: Annotated[
        int, Parameter(help="Grad-CAM of both stages for so many of the pictures (extra: train).")
    ] = 0,
    weights: Annotated[
        Path | None, Parameter(help="For --cam: the trained weights, if the bundle holds none.")
    ] = None,
    resamples: Annotated[int, Parameter(help="Of the bootstrap, for the intervals.")] = 2000,
    seed: Annotated[int, Parameter(help="Of the bootstrap.")] = 0,
    labels: LabelOptions | None = None,
    json: Json = False,
) -> int:
    """Say how many bad frames are missed, how many good ones blocked, and how sure that is.

    One page with figures, intervals, curves, and pictures of the worst frames. Every image of the
    data set is evaluated, unanswered (UNKNOWN), or left out with a reason.

    Exit codes: 3 if frames are unanswered or labels could not be read, 130 if stopped.

    Example: steelsight evaluate drawn/ --out evaluation/
    """
    from steelsight.bundle import DECISION
    from steelsight.evaluation.evaluate import evaluate as measure
    from steelsight.report.evaluation_page import evaluation_page

    _check_options(path, bundle, predictions, out, overwrite, resamples)
    if cam < 0 or (weights is not None and not cam):
        raise InputError("expected --cam from 0, and --weights with --cam only")
    if cam and predictions is not None:
        raise InputError("--cam looks into a bundle's networks: leave --predictions out")
    decision = _found(bundle, decision)
    asked = _Asked(bundle, decision, predictions, coco_ids, unmentioned_are_none)
    inspector = None
    if predictions is None:
        from steelsight.engine import Inspector

        inspector = Inspector.load(
            bundle, decision=decision, engine=engine, threads=threads, allow_colour=allow_colour
        )
    errors: list[LabelError] = []
    with loaded(path, labels, errors) as label_set:
        catalog, duplicates = scanned(label_set)
        explain = _explainer(inspector, weights) if inspector and cam else None
        selection, learned = _selected(
            predictions, inspector, catalog, duplicates, split, part, group_by
        )
        about = _about(path, label_set, selection, learned)
        if inspector is not None:
            with ctrl_c() as stop:
                answered = _ask_bundle(inspector, selection, about, stop)
            if answered is None:
                return INTERRUPTED
        else:
            answered = _read_answers(asked, label_set, selection, about)
        with working("measuring"):
            evaluation = measure(
                answered.predictions, answered.decision, resamples=resamples, seed=seed
            )
        pictures = _pictures(answered, label_set, inspector, explain, cam)
    facts = evaluation.to_json()
    page = evaluation_page(
        facts,
        pictures,
        title=f"{about['model']} on {path.resolve().name}",
        classes=_classes(inspector, label_set, answered.predictions.class_ids),
    )
    kept_decision = None
    if save_predictions and inspector is not None:
        kept_decision = decision or inspector.bundle.folder / DECISION
    _write(out, facts, page, answered, save_predictions, kept_decision)
    errors += selection.errors
    for error in errors[:SHOWN_ERRORS]:
        fail(str(error), SOME_UNKNOWN)
    if len(errors) > SHOWN_ERRORS:
        fail(f"{len(errors)} broken labels in all", SOME_UNKNOWN)
    if json:
        print_json(facts)
    else:
        _print(facts, answered, out)
    return SOME_UNKNOWN if errors or answered.predictions.unanswered else DONE


@dataclass(frozen=True, slots=True)
class _Asked:
    """Who is asked, and by which thresholds."""

    bundle: Path | None
    decision: Path | None
    predictions: Path | None
    coco_ids: Path | None
    unmentioned_are_none: bool


def _check_options(
    path: Path,
    bundle: Path | None,
    predictions: Path | None,
    out: Path,
    overwrite: bool,
    resamples: int,
) -> None:
    from steelsight.report.evaluation_folder import taken

    if bundle is not None and predictions is not None:
        raise InputError("expected --bundle or --predictions, got both; `compare` takes two")
    if resamples < 1:
        raise InputError(f"expected --resamples from 1, got {resamples}")
    if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
        raise InputError(f"--out {out} lies in the data set itself; give another folder")
    earlier = taken(out)
    if earlier and not overwrite:
        raise InputError(
            f"{earlier[0]} is there already, perhaps from an earlier evaluation; give another"
            " --out, or --overwrite to replace it"
        )


def _selected(
    predictions: Path | None,
    inspector: "Inspector | None",
    catalog: "Catalog",
    duplicates: "Duplicates",
    split: Path | None,
    part: str | None,
    group_by: str | None,
) -> "tuple[Selection, Learned]":
    from steelsight.data.splits import groups_by_column, load_split
    from steelsight.evaluation.selection import (
        EVERYTHING,
        NOT_TOLD,
        is_shipped,
        learned_by,
        learned_in_run,
        select,
    )

    groups = list(duplicates.groups)
    if group_by:
        groups += groups_by_column(catalog, group_by).groups
    kept = predictions is not None and predictions.suffix == KEPT_SUFFIX
    if inspector is not None:
        learned = learned_by(inspector.bundle)
    else:
        learned = learned_in_run(predictions) if predictions and kept else NOT_TOLD
    selection = select(
        catalog,
        groups,
        learned,
        split=load_split(split) if split else None,
        # The file itself says which frames were asked about.
        part=part or (EVERYTHING if kept and not split else None),
        shipped_bundle=inspector is not None and is_shipped(inspector.bundle),
    )
    return selection, learned


def _about(
    path: Path, label_set: "LabelSet", selection: "Selection", learned: "Learned"
) -> dict[str, Any]:
    from steelsight import __version__
    from steelsight.report.data_page import label_classes

    return {
        "data": str(path),
        "labels": label_set.format,
        "types": {c.id: c.name for c in label_classes(label_set.classes)},
        "notes": list(label_set.notes),
        **selection.to_json(),
        "trained_on": learned.told,
        "terms": learned.terms,
        "command": command_line(),
        "made_by": f"steelsight {__version__}",
    }


@dataclass(frozen=True, slots=True)
class _Answered:
    """Predictions, the decision they are judged by, and where pictures take masks from."""

    selection: "Selection"
    predictions: "Predictions"
    decision: "Decision | None"
    masks_of: MasksOf
    notes: tuple[str, ...] = ()


def _ask_bundle(
    inspector: "Inspector",
    selection: "Selection",
    about: dict[str, Any],
    stop: Callable[[], bool],
) -> _Answered | None:
    from steelsight.evaluation.answers import masks_of, predict_bundle

    about |= {
        "model": inspector.bundle.id,
        "engine": inspector.engine,
        "types": {c.id: c.name for c in inspector.bundle.classes},
    }
    with counted("asking", "frames") as step:
        predicted = predict_bundle(
            inspector,
            selection.frames,
            groups=selection.groups,
            progress=step,
            stop=stop,
            about=about,
        )
    if predicted is None:
        return None
    return _Answered(selection, predicted, inspector.bundle.decision, partial(masks_of, inspector))


def _read_answers(
    asked: _Asked, label_set: "LabelSet", selection: "Selection", about: dict[str, Any]
) -> _Answered:
    from steelsight.evaluation.answers import masks_of_tool, predict_tool, read_kept
    from steelsight.evaluation.tool_files import read_tool

    path = asked.predictions
    assert path is not None  # noqa: S101 - no bundle was loaded
    about |= {"model": f"predictions in {path.name}", "predictions": str(path)}
    frames, groups = selection.frames, selection.groups
    if path.suffix == KEPT_SUFFIX:
        kept = read_kept(path, frames, groups=groups)
        looked_at = {*kept.images, *(frame.image for frame in kept.unanswered)}
        selection = selection.only(looked_at, "not among the predictions")
        if selection.split is None:  # "all" was not asked for: the file tells which frames
            selection = replace(selection, part=None)
        # What an earlier evaluation noted about the model is more than is known now.
        about |= selection.to_json() | {
            name: kept.about[name] for name in KEPT_FACTS if name in kept.about
        }
        decision, notes = _decision_of_kept(asked, kept, path)
        return _Answered(selection, replace(kept, about=about), decision, lambda _: {}, notes)
    tool = read_tool(
        path,
        frames,
        label_set.class_ids,
        coco_ids=asked.coco_ids or (label_set.source if label_set.format == "coco" else None),
        unmentioned_is_none=asked.unmentioned_are_none,
    )
    about["model"] = f"{tool.kind}, {path.name}"
    with counted("comparing", "frames") as step:
        compared = predict_tool(tool, frames, groups=groups, progress=step, about=about)
    decision, notes = _decision_of_tool(asked, tool)
    notes += tool.notes
    if decision is None:
        return _Answered(selection, compared, None, lambda _: {}, notes)
    return _Answered(
        selection, compared, decision, partial(masks_of_tool, tool, decision=decision), notes
    )


def _found(bundle: Path | None, decision: Path | None) -> Path | None:
    """The file of a decision, which may be given as the name of one of the bundle's."""
    from steelsight.bundle import find_bundle, find_decision

    return None if decision is None else find_decision(find_bundle(bundle), decision)


def _decision_of_kept(
    asked: _Asked, kept: "Predictions", path: Path
) -> "tuple[Decision | None, tuple[str, ...]]":
    from steelsight.bundle import load_bundle
    from steelsight.decisions import load_decision
    from steelsight.evaluation.answers import delivered_decision
    from steelsight.report.evaluation_folder import KEPT_DECISION

    if asked.decision is not None:
        return load_decision(asked.decision, kept.class_ids), ()
    if not kept.scored:
        return delivered_decision(kept.class_ids), ()
    beside = path.parent / KEPT_DECISION
    if beside.is_file():
        return load_decision(beside, kept.class_ids), (f"judged by {beside}",)
    beside = path.parent / "bundle"
    if beside.is_dir():
        decision = load_bundle(beside).decision
        note = (
            f"judged by the decision of {beside}, chosen on: {decision.chosen_on}; figures at a"
            " decision that was chosen on the same frames are slightly too good"
        )
        return decision, (note,)
    return None, ("no decision was given, so there are no verdicts: give --decision FILE",)


def _decision_of_tool(asked: _Asked, tool: "ToolFile") -> "tuple[Decision | None, tuple[str, ...]]":
    from steelsight.bundle import load_bundle
    from steelsight.decisions import load_decision
    from steelsight.evaluation.answers import applied_decision, delivered_decision

    applied = tool.decision_id is not None
    if asked.decision is not None:
        decision = load_decision(asked.decision, tool.class_ids)
        if applied and decision.id != tool.decision_id:
            raise InputError(
                f"{asked.decision}: expected the decision {tool.decision_id} that made these"
                f" results, got {decision.id}; give that file, or inspect again with this one"
            )
        return (applied_decision(decision) if applied else decision), ()
    if not applied:
        return delivered_decision(tool.class_ids), ()
    decision = load_bundle().decision
    if decision.id == tool.decision_id and set(decision.types) == set(tool.class_ids):
        return applied_decision(decision), ()
    note = (
        f"the decision {tool.decision_id} that made these results is not known here, so there are"
        " no verdicts: give --decision FILE"
    )
    return None, (note,)


def _classes(
    inspector: "Inspector | None", label_set: "LabelSet", class_ids: Sequence[str]
) -> "tuple[DefectClass, ...]":
    """Names and colours of the types; those of a tool may be more than the labels have."""
    from steelsight.data.labels import LabelClass
    from steelsight.report.data_page import label_classes

    if inspector is not None:
        return inspector.bundle.classes
    known = {c.id: c for c in label_set.classes}
    return label_classes([known.get(c, LabelClass(c, c)) for c in class_ids])


def _explainer(inspector: "Inspector", weights: Path | None) -> Explain:
    """Grad-CAM of both stages by their words; for a frame and a type, if there is one."""
    with training_installed("--cam"):
        from steelsight.training.gradcam import draw_cam, gradcam, load_network

    bundle = inspector.bundle
    network = load_network(weights or bundle.folder, bundle.manifest.training.weights_sha256)
    class_ids = [c.id for c in bundle.classes]

    def explain(grey_hw: "GreyHW", class_id: str | None) -> tuple[tuple[str, bytes], ...]:
        rule = bundle.decision.types[class_id] if class_id is not None else None
        maps = gradcam(
            network,
            grey_hw,
            type_index=class_ids.index(class_id) if class_id is not None else None,
            pixel_from=rule.pixel_from if rule else 0.5,
        )
        what = "masks" if class_id is None else f"masks of type {class_id}"
        return (
            ("What made it look faulty", draw_cam(grey_hw, maps.gate_hw)),
            (f"What made the {what}", draw_cam(grey_hw, maps.segmenter_hw)),
        )

    return explain


def _pictures(
    answered: _Answered,
    label_set: "LabelSet",
    inspector: "Inspector | None",
    explain: Explain | None,
    cam: int,
) -> "list[Picture]":
    """The chosen frames with label and answer side by side."""
    from steelsight.evaluation.verdicts import apply_decision
    from steelsight.imaging import DecodePolicy, read_file
    from steelsight.report.evaluation_folder import choose_frames
    from steelsight.report.evaluation_page import draw_picture

    decision, found = answered.decision, answered.predictions
    if decision is None:
        return []
    chosen = choose_frames(found, decision)
    by_image = {frame.image: frame for frame in answered.selection.frames}
    frames = [by_image[c.image] for c in chosen]
    delivered = answered.masks_of(frames)
    called_nk = apply_decision(found, decision).called_nk
    called = {
        image: [c for c, is_called in zip(found.class_ids, row, strict=True) if is_called]
        for image, row in zip(found.images, called_nk, strict=True)
    }
    classes = _classes(inspector, label_set, found.class_ids)
    policy = inspector.policy if inspector else DecodePolicy()
    pictures = []
    with counted("drawing", "frames") as step:
        for number, (entry, frame) in enumerate(zip(chosen, frames, strict=True), 1):
            grey_hw = read_file(frame.path, policy=policy).grey_hw
            masks = delivered.get(frame.image, {})
            here = called[frame.image]
            picture = draw_picture(
                grey_hw,
                {c: frame.rle_by_class.get(c) for c in frame.class_ids},
                {c: masks.get(c) for c in here},
                classes,
                image=frame.image,
                why=entry.why,
                caption=entry.caption,
            )
            if explain and number <= cam:
                class_id = next(iter((*here, *frame.class_ids)), None)
                picture = replace(picture, maps=explain(grey_hw, class_id))
            pictures.append(picture)
            step(number, len(chosen))
    return pictures


def _write(
    out: Path,
    facts: dict[str, Any],
    page: str,
    answered: _Answered,
    save_predictions: bool,
    decision: Path | None,
) -> None:
    from steelsight.data.tables import write_table
    from steelsight.report.evaluation_folder import (
        FIGURES,
        FRAMES,
        KEPT,
        KEPT_DECISION,
        REPORT,
        frame_rows,
    )
    from steelsight.report.page import write_page

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"expected a folder to write to at {out}: {error.strerror}; give another --out"
        ) from None
    text = decision.read_bytes() if decision else b""
    for name in (KEPT, KEPT_DECISION):
        (out / name).unlink(missing_ok=True)
    if save_predictions:
        answered.predictions.save(out / KEPT)
    if decision:
        (out / KEPT_DECISION).write_bytes(text)
    write_table(out / FRAMES, frame_rows(answered.predictions, answered.decision))
    write_json(out / FIGURES, facts)
    write_page(out / REPORT, page)


def _print(facts: dict[str, Any], answered: _Answered, out: Path) -> None:
    from steelsight.evaluation.answers import NOT_MENTIONED

    console = console_for(False)
    for sentence in facts["summary"]:
        console.print(sentence)
    for warning in facts["about"].get("warnings", ()):
        console.print(warning)
    for note in answered.notes:
        console.print(f"Note: {note}.")
    names = facts["about"].get("types", {})
    rows = [["type", "frames", "found", "95 %", "Dice", "detection"]]
    for class_id, of_type in facts["types"].items():
        rows.append(
            [
                names.get(class_id, class_id),
                str(of_type["frames"]),
                _share(of_type["found"]),
                _interval(of_type["found"]),
                _figure(of_type["dice_delivered"]),
                _figure(of_type["detection"]),
            ]
        )
    console.print(table(rows))
    selection, unanswered = answered.selection, answered.predictions.unanswered
    left_out = ", ".join(f"{n} {reason}" for reason, n in selection.left_out.items())
    console.print(
        f"{selection.images} images: {len(answered.predictions)} evaluated, {len(unanswered)}"
        f" without an answer, {sum(selection.left_out.values())} left out"
        + (f" ({left_out})." if left_out else ".")
    )
    if unanswered:
        reasons = Counter(frame.reason for frame in unanswered)
        told = ", ".join(f"{n} {reason}" for reason, n in reasons.items())
        console.print(f"Without an answer: {told}; see {out / 'frames.csv'}.")
    if any(frame.reason == NOT_MENTIONED for frame in unanswered):
        console.print(
            "Frames that the predictions do not mention are not taken for clean; if the tool looked"
            " at all of them, add --unmentioned-are-none."
        )
    console.print(f"Open {out / 'report.html'} in a browser; {out / 'evaluation.json'} has all.")


def _share(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "-"
    return f"{100 * figure['value']:.0f} %"


def _interval(figure: Mapping[str, Any]) -> str:
    if figure["low"] is None or figure["high"] is None:
        return "-"
    return f"{100 * figure['low']:.0f} to {100 * figure['high']:.0f} %"


def _figure(figure: Mapping[str, Any]) -> str:
    return "-" if figure["value"] is None else f"{figure['value']:.2f}"
