"""The command line: parse, call, print. Heavy imports stand inside the commands.

Exit codes: 0 done; 1 error; 2 usage; 3 done, but some frames are UNKNOWN; 4 a gate refused (parity,
self-test); 130 stopped by Ctrl-C, with everything up to then written.
"""

import os
import sys
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Parameter

from steelsight import __version__
from steelsight.cli.benchmark import benchmark
from steelsight.cli.calibrate import calibrate
from steelsight.cli.compare import compare
from steelsight.cli.data import data_app
from steelsight.cli.evaluate import evaluate
from steelsight.cli.terminal import (
    DONE,
    ERROR,
    GATE,
    INTERRUPTED,
    SOME_UNKNOWN,
    USAGE,
    Json,
    as_dict,
    command_line,
    console_for,
    ctrl_c,
    fail,
    now,
    print_json,
    progress,
    table,
)
from steelsight.cli.train import train, training_installed
from steelsight.errors import GateError, InputError, SteelsightError

if TYPE_CHECKING:
    from rich.console import Console

    from steelsight.bundle import Bundle, ClassEntry
    from steelsight.defects import Inspection
    from steelsight.engine import Inspector
    from steelsight.engine.batch import Inspected
    from steelsight.imaging import DecodePolicy
    from steelsight.report.folder import RunSummary
    from steelsight.report.html import RunInfo, TruthTally

app = App(
    name="steelsight",
    version=__version__,
    help="Finds and outlines manufacturing defects on steel from camera images. Every frame gets a "
    "verdict: OK, NG, or UNKNOWN with a reason. Nothing is silently OK.",
    help_format="plaintext",
    help_epilogue="""Examples:

  steelsight demo                         drawn steel, report in demo/

  steelsight inspect frames/ --out out/   verdicts, masks, pictures, report

  steelsight inspect one.jpg              one result line on standard output

  steelsight doctor                       what works on this machine

Exit codes: 0 done, 1 error, 2 usage, 3 some frames UNKNOWN, 4 a gate refused, 130 stopped.""",
    version_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # else it ends the process without a word
)
model_app = App(name="model", help="Model bundles: what is inside.", help_format="plaintext")
app.command(data_app)
app.command(train)
app.command(evaluate)
app.command(calibrate)
app.command(compare)
app.command(benchmark)
app.command(model_app)

BundleFolder = Annotated[
    Path | None, Parameter(name="--bundle", help="Bundle folder; the shipped one if left out.")
]
EngineName = Annotated[
    str,
    Parameter(
        name="--engine", help="auto (the fastest that is right here), onnxruntime, openvino."
    ),
]
Threads = Annotated[int | None, Parameter(help="Inference threads; all usable cores if left out.")]
Workers = Annotated[
    int,
    Parameter(help="Frames in work at once, sharing the threads; 0: one per thread, the fastest."),
]


@app.command
def demo(
    *,
    frames: Annotated[int, Parameter(help="How many frames to draw.")] = 60,
    seed: Annotated[int, Parameter(help="Same seed, same coil.")] = 7,
    out: Annotated[Path, Parameter(help="Folder for frames, results and report.")] = Path("demo"),
    engine: EngineName = "auto",
    threads: Threads = None,
    workers: Workers = 0,
    json: Json = False,
) -> int:
    """Draw a coil with known truth, inspect it, write a report.

    The frames are drawn, not photographed: the figures show that everything works, not how well it
    works on your steel.

    Example: steelsight demo --frames 120 --seed 3
    """
    from steelsight.data.synthetic import CoilConfig
    from steelsight.demo import draw, inspect_drawn

    console = console_for(json)
    inspector = _load(None, None, engine, threads, workers)
    config = CoilConfig(frames=frames, seed=seed)
    with progress("drawing", frames) as advance:
        folder = draw(out, config, lambda _: advance(""))
    run = _run_info(inspector, f"{frames} drawn frames, seed {seed}", "Demo: a drawn coil")
    with ctrl_c() as stop, progress("inspecting", frames) as advance:
        summary, truth = inspect_drawn(inspector, folder, out, run, _counter(advance), stop)
    if json:
        print_json({**as_dict(summary), "truth": truth.to_json()})
    else:
        _print_summary(console, summary)
        _print_truth(console, truth, drawn=True)
        console.print(f"Open {out / 'report.html'} in a browser.")
    return _exit_code(summary)


@app.command
def inspect(
    inputs: Annotated[
        list[Path],
        Parameter(name="PATH", json_list=False, help="Images and folders (walked to their ends)."),
    ],
    /,
    *,
    out: Annotated[
        Path | None,
        Parameter(help="Folder for results.jsonl, overlays, tables and report.html."),
    ] = None,
    bundle: BundleFolder = None,
    decision: Annotated[
        Path | None, Parameter(help="Decision file to use instead of the bundle's.")
    ] = None,
    engine: EngineName = "auto",
    threads: Threads = None,
    workers: Workers = 0,
    truth: Annotated[
        Path | None, Parameter(help="Labels (Kaggle CSV): the report then compares.")
    ] = None,
    unlisted_are_clean: Annotated[
        bool, Parameter(negative="", help="With --truth: frames without a row are good.")
    ] = False,
    overlays: Annotated[
        bool, Parameter(negative="--no-overlays", help="Write a picture of every NG frame.")
    ] = True,
    overwrite: Annotated[
        bool, Parameter(negative="", help="Replace an earlier run in --out.")
    ] = False,
    title: Annotated[str, Parameter(help="Of the report.")] = "Inspection report",
    bit_depth: Annotated[
        int | None, Parameter(help="Bits your camera uses in 16-bit files, such as 12.")
    ] = None,
    allow_colour: Annotated[
        bool, Parameter(negative="", help="Turn coloured images grey instead of refusing them.")
    ] = False,
    append_end_marker: Annotated[
        bool, Parameter(negative="", help="Accept JPEGs whose camera omits the end marker.")
    ] = False,
    json: Json = False,
) -> int:
    """Inspect images and write results, pictures and a report.

    Every file gets a result line: OK, NG, or UNKNOWN with a reason (damaged, no image, too small,
    blank, ...). Without --out, result lines go to standard output. Ctrl-C stops after the current
    frame and leaves complete results.

    Example: steelsight inspect frames/ --out out/ --truth train.csv
    """
    from steelsight.engine.batch import count_hidden, find_sources, inspect_sources
    from steelsight.imaging import DecodePolicy

    _check_options(inputs, out, truth, overwrite, overlays, unlisted_are_clean)
    sources = find_sources(inputs, leave_out=out)
    policy = DecodePolicy(bit_depth=bit_depth, append_end_marker=append_end_marker)
    # Nothing to share with: all threads work on the one frame.
    workers = 1 if len(sources) == 1 else workers
    inspector = _load(bundle, decision, engine, threads, workers, policy, allow_colour)
    if out is None:
        return _print_results(inspect_sources(inspector, sources))
    from steelsight.report.folder import OutputFolder, TruthFile, inspect_to_folder

    console = console_for(json)
    classes = inspector.bundle.classes
    labels = (
        TruthFile(truth, [c.id for c in classes], sources, unlisted_are_clean=unlisted_are_clean)
        if truth
        else None
    )
    run = _run_info(inspector, ", ".join(map(str, inputs)), title, truth, count_hidden(inputs))
    with (
        OutputFolder(out, classes, overwrite=overwrite, overlays=overlays) as output,
        ctrl_c() as stop,
        progress("inspecting", len(sources)) as advance,
    ):
        summary = inspect_to_folder(
            inspector,
            sources,
            output,
            run,
            truth=labels,
            on_result=_counter(advance),
            stop=stop,
        )
    for line in summary.misfits[:5]:
        fail(line, ERROR)
    if len(summary.misfits) > 5:
        fail(f"{len(summary.misfits)} labels in all do not fit their frames", ERROR)
    if json:
        truth_json = {"truth": output.report.truth.to_json()} if labels else {}
        print_json({**as_dict(summary), **truth_json})
    else:
        _print_summary(console, summary)
        if labels:
            _print_truth(console, output.report.truth, drawn=False)
            if summary.labels_without_frame:
                console.print(
                    f"{summary.labels_without_frame} labelled frames are not among these."
                )
        console.print(f"Open {out / 'report.html'} in a browser.")
    return _exit_code(summary)


@model_app.command
def info(bundle: BundleFolder = None, *, json: Json = False) -> int:
    """Show what a bundle is, what it was trained on, and how it decides.

    Example: steelsight model info --bundle my-bundle/
    """
    from steelsight.bundle import load_bundle

    loaded = load_bundle(bundle)
    facts = {
        "model": loaded.id,
        "folder": str(loaded.folder),
        "manifest": loaded.manifest.model_dump(mode="json"),
        "decision": loaded.decision.model_dump(mode="json"),
        "parity": loaded.parity,
    }
    if json:
        print_json(facts)
        return DONE
    console = console_for(json)
    manifest, decision = loaded.manifest, loaded.decision
    console.print(f"{loaded.id}  {manifest.precision}, made by {manifest.code_version}")
    console.print(f"Trained on: {manifest.training.data}")
    console.print(f"Terms: {manifest.training.terms}")
    console.print(f"Decision {decision.id} ({decision.name}): {decision.rule}")
    console.print(f"Chosen on: {decision.chosen_on}\n")
    console.print(table(_thresholds(loaded)))
    parity = loaded.parity
    console.print(
        f"\nAgainst the trained network, on {parity['frames']} real frames: "
        f"{len(parity['verdict_flips'])} verdicts differ, masks overlap with a Dice of "
        f"{parity['mask_agreement_dice']}"
    )
    console.print(f"\n{loaded.card}", markup=False, highlight=False)
    return DONE


@model_app.command
def convert_weights(
    source: Annotated[Path, Parameter(help="A .pth file from somebody you trust.")],
    target: Annotated[Path, Parameter(help="New .safetensors file.")],
    /,
    *,
    json: Json = False,
) -> int:
    """Turn a .pth file (a Python pickle) into safetensors, once (extra: train).

    Example: steelsight model convert-weights resnet50.pth resnet50.safetensors
    """
    with training_installed("convert-weights"):
        from steelsight.training.starts import CONVERT_WARNING, convert_pth

    print(f"steelsight: {CONVERT_WARNING}", file=sys.stderr)
    sha256 = convert_pth(source, target)
    if json:
        print_json({"file": str(target), "sha256": sha256})
    else:
        console_for(json).print(f"{target}, sha256 {sha256}")
    return DONE


@app.command
def export(
    weights: Annotated[Path, Parameter(help="Trained Res-UNet, safetensors.")],
    /,
    *,
    frames: Annotated[Path, Parameter(help="Folder of real frames for calibration and parity.")],
    truth: Annotated[Path, Parameter(help="Their labels (Kaggle CSV).")],
    decision: Annotated[Path, Parameter(help="Decision file to ship.")],
    card: Annotated[Path, Parameter(help="Model card to ship, Markdown.")],
    self_test: Annotated[Path, Parameter(help="A frame you may ship, for `steelsight doctor`.")],
    out: Annotated[Path, Parameter(help="New or empty folder for the bundle.")],
    name: Annotated[str, Parameter(help="The bundle's name in results.")],
    trained_on: Annotated[str, Parameter(help="What the network learned from.")],
    terms: Annotated[str, Parameter(help="Terms of that data.")],
    classes: Annotated[
        str | None,
        Parameter(
            help="Defect types in channel order: id=name, separated by commas; those that training "
            "noted in WEIGHTS if left out, else 1=Type 1 to 4=Type 4."
        ),
    ] = None,
    precision: Annotated[str, Parameter(help="int8 or fp32.")] = "int8",
    full_range: Annotated[
        bool, Parameter(negative="", help="8-bit weights: only for CPUs with VNNI.")
    ] = False,
    keep_weights: Annotated[
        bool, Parameter(negative="", help="Put the weights in, as the start of other trainings.")
    ] = False,
    calibration_frames: int = 32,
    parity_frames: int = 128,
    seed: Annotated[int, Parameter(help="Of the choice of frames.")] = 0,
    json: Json = False,
) -> int:
    """Make a bundle from trained weights and prove that it answers the same (extra: train).

    Form and size of the network are those that training noted in WEIGHTS, else the defaults.
    Exit code 4 if the bundle is too far from the trained network.

    Example: steelsight export best.safetensors --frames images/ --truth train.csv ...
    """
    with training_installed("export"):
        from steelsight.training.export import (
            ExportConfig,
            choose_frames,
            describe_weights,
            export_bundle,
        )

    from steelsight.bundle import Precision
    from steelsight.data.formats.severstal import read_csv

    if precision not in set(Precision):
        raise InputError(f"expected --precision {' or '.join(Precision)}, got {precision}")
    if classes is None:
        noted = describe_weights(weights)[1] or ("1", "2", "3", "4")
        classes = ",".join(f"{i}={f'Type {i}' if i.isdecimal() else i}" for i in noted)
    labels = {image: dict(frame.rle_by_class) for image, frame in read_csv(truth).items()}
    faulty = {image for image, rles in labels.items() if rles}
    calibration, parity = choose_frames(frames, faulty, calibration_frames, parity_frames, seed)
    config = ExportConfig(
        weights=weights,
        calibration=calibration,
        parity=parity,
        decision=decision,
        card=card,
        self_test=self_test,
        classes=_classes(classes),
        name=name,
        training=(trained_on, terms),
        precision=Precision(precision),
        truth={path: labels.get(path.name, {}) for path in parity},
        reduce_range=not full_range,
        keep_weights=keep_weights,
    )
    with progress("exporting", len(parity) + 2) as advance:
        bundle = export_bundle(config, out, progress=lambda step, _done, _total: advance(step))
    if json:
        print_json({"model": bundle.id, "folder": str(out), "parity": bundle.parity})
    else:
        console = console_for(json)
        flips = bundle.parity["verdict_flips"]
        console.print(f"{bundle.id} in {out}")
        console.print(f"{len(flips)} of {len(parity)} verdicts differ from the trained network.")
    return DONE


@app.command
def doctor(*, bundle: BundleFolder = None, json: Json = False) -> int:
    """Check this installation: versions, engines, and the bundle's self-test on each engine.

    The self-test inspects the frame that the bundle carries and compares with the answer that its
    maker recorded. Exit code 4 if an engine answers differently on this machine.

    Example: steelsight doctor
    """
    from steelsight.doctor import diagnose

    report = diagnose(bundle)
    if json:
        print_json(report.to_json())
    else:
        console = console_for(json)
        console.print(table(report.rows()), highlight=False)
        console.print(report.sentence)
    return DONE if report.healthy else GATE


def main() -> None:
    """Entry point: one line for every error of a user, never a traceback."""
    # Names of files may hold bytes that are no text.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # Errors of parsing are ours to print: one line, exit code 2.
        code = app(sys.argv[1:], exit_on_error=False, print_error=False, help_on_error=False)
    except CycloptsError as error:
        text = " ".join(str(error).split())
        code = fail(f"{text} Try: steelsight --help", USAGE)
    except GateError as error:
        code = fail(str(error), GATE)
    except SteelsightError as error:
        code = fail(str(error), ERROR)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        code = ERROR
    except OSError as error:  # a full disk, mostly
        code = fail(f"{error.strerror}: {error.filename or 'standard output'}", ERROR)
        # What is still buffered would fail again at the end of the interpreter.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if code == INTERRUPTED:
        fail("stopped; what was finished until then is complete", INTERRUPTED)
    sys.exit(code if isinstance(code, int) else DONE)


def _check_options(
    inputs: list[Path],
    out: Path | None,
    truth: Path | None,
    overwrite: bool,
    overlays: bool,
    unlisted_are_clean: bool,
) -> None:
    """Refuses what would be ignored, and an output that would be inspected."""
    if out is None and (truth or overwrite or not overlays):
        raise InputError(
            "--truth, --overwrite and --no-overlays are about a report: give --out FOLDER too"
        )
    if unlisted_are_clean and not truth:
        raise InputError("--unlisted-are-clean is about labels: give --truth FILE too")
    if out is not None and any(path.resolve().is_relative_to(out.resolve()) for path in inputs):
        raise InputError(f"--out {out} holds what is to be inspected; give another folder")


def _print_results(results: "Iterator[Inspected]") -> int:
    unknown = 0
    with ctrl_c() as stop:
        for inspection, _ in results:
            print(inspection.to_json_line(), flush=True)
            unknown += inspection.verdict == "UNKNOWN"
            if stop():
                return INTERRUPTED
    return SOME_UNKNOWN if unknown else DONE


def _classes(text: str) -> "tuple[ClassEntry, ...]":
    from pydantic import ValidationError

    from steelsight.bundle import class_entries

    pairs = [pair.partition("=") for pair in text.split(",")]
    try:
        return class_entries((k.strip(), n.strip() or k.strip()) for k, _, n in pairs)
    except ValidationError:
        raise InputError(
            f"expected --classes such as '1=Pits,2=Scratches' with ids of letters, digits, - and "
            f"_, got {text!r}"
        ) from None


def _load(
    bundle: Path | None,
    decision: Path | None,
    engine: str,
    threads: int | None,
    workers: int,
    policy: "DecodePolicy | None" = None,
    allow_colour: bool = False,
) -> "Inspector":
    from steelsight.engine import Inspector

    return Inspector.load(
        bundle,
        decision=decision,
        engine=engine,
        threads=threads,
        workers=workers,
        policy=policy,
        allow_colour=allow_colour,
    )


def _counter(advance: Callable[[str], None]) -> Callable[["Inspection"], None]:
    counts = {"OK": 0, "NG": 0, "UNKNOWN": 0}

    def count(inspection: "Inspection") -> None:
        counts[inspection.verdict] += 1
        advance("  ".join(f"{verdict} {n}" for verdict, n in counts.items()))

    return count


def _run_info(
    inspector: "Inspector", source: str, title: str, truth: Path | None = None, hidden: int = 0
) -> "RunInfo":
    from steelsight.doctor import versions
    from steelsight.report.html import RunInfo

    bundle = inspector.bundle
    gate = bundle.decision.gate
    return RunInfo(
        title=title,
        source=source,
        command=command_line(),
        started=now(),
        seconds=0.0,
        hidden_files=hidden,
        model=bundle.id,
        decision=f"{bundle.decision.name} ({bundle.decision.id})",
        engine=inspector.engine,
        precision=str(bundle.manifest.precision),
        model_card=bundle.card_summary,
        thresholds=_thresholds(bundle),
        marked_probabilities={"cleared below": gate.clear_below, "NG from": gate.ng_from},
        versions=versions(),
        truth_source=str(truth) if truth else None,
        files={
            "Result lines": "results.jsonl",
            "Kaggle submission": "submission.csv",
            "Quarantine (UNKNOWN frames)": "quarantine.csv",
        },
    )


def _thresholds(bundle: "Bundle") -> list[list[str]]:
    rows = [["", "score from", "pixel probability from", "least area, px"]]
    for defect_class in bundle.classes:
        rule = bundle.decision.types[defect_class.id]
        figures = (f"{rule.label_from:g}", f"{rule.pixel_from:.3g}", str(rule.min_area_px))
        rows.append([defect_class.name, *figures])
    gate = bundle.decision.gate
    rows.append(["Frame: cleared", f"below {gate.clear_below:.3g}", "", ""])
    rows.append(["Frame: NG", f"from {gate.ng_from:.3g}", "", ""])
    return rows


def _print_summary(console: "Console", summary: "RunSummary") -> None:
    console.print(
        table(
            [
                ["seen", "OK", "NG", "UNKNOWN", "frames/s"],
                [
                    str(summary.seen),
                    str(summary.ok),
                    str(summary.ng),
                    str(summary.unknown),
                    f"{summary.frames_per_second:.1f}",
                ],
            ]
        )
    )
    sums = f"{summary.ok} + {summary.ng} + {summary.unknown} = {summary.seen}"
    if summary.seen == summary.found:
        console.print(f"Every frame has a verdict: {sums}.")
    else:
        left = summary.found - summary.seen
        console.print(f"Stopped: {left} of {summary.found} frames not inspected; {sums}.")
    if summary.hidden_files:
        console.print(
            f"Not looked at: {summary.hidden_files} hidden files (names with a dot first)."
        )
    for note, frames in summary.notes.items():
        console.print(f"{frames} frames: {note}.")
    if summary.unknown:
        console.print(f"{summary.unknown} UNKNOWN: see {summary.folder}/quarantine.csv.")


def _print_truth(console: "Console", truth: "TruthTally", *, drawn: bool) -> None:
    dice = truth.dice_where_present
    console.print(
        f"Against the truth: of {truth.faulty} faulty frames {truth.found} found, {truth.missed} "
        f"missed; of {truth.good} good frames {truth.false_alarms} false alarms"
        + (f"; Dice where a type is present {dice:.2f}." if dice is not None else ".")
    )
    if drawn:
        limits = "Drawn frames: proof that it runs, not of accuracy on your steel."
    else:
        limits = "This is accuracy only on frames that the model did not learn from."
    console.print(limits, style="dim")


def _exit_code(summary: "RunSummary") -> int:
    if summary.interrupted:
        return INTERRUPTED
    if summary.misfits:
        return ERROR
    return SOME_UNKNOWN if summary.unknown else DONE
