"""``steelsight inspect`` and ``steelsight demo``: frames in, a folder of results out."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from steelsight.cli.terminal import (
    DONE,
    ERROR,
    INTERRUPTED,
    SOME_UNKNOWN,
    BundleFolder,
    Json,
    as_dict,
    command_line,
    console_for,
    counted,
    ctrl_c,
    fail,
    now,
    print_json,
    progress,
    table,
)
from steelsight.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from steelsight.bundle import Bundle
    from steelsight.defects import Inspection
    from steelsight.engine import Inspector
    from steelsight.engine.batch import Inspected
    from steelsight.engine.cascade import Decode
    from steelsight.imaging import DecodePolicy
    from steelsight.report.folder import RunSummary
    from steelsight.report.html import RunInfo, TruthTally

EngineName = Annotated[
    str,
    Parameter(
        name="--engine", help="auto (the fastest that is right here), onnxruntime, openvino, cuda."
    ),
]
Threads = Annotated[int | None, Parameter(help="Inference threads; all usable cores if left out.")]
Workers = Annotated[
    int,
    Parameter(help="Frames in work at once, sharing the threads; 0: one per thread, the fastest."),
]


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


def inspect(
    given: Annotated[
        list[str],
        Parameter(
            name="PATH",
            json_list=False,
            help="Images, folders (walked to their ends), .zip and .tar archives, .parquet files, "
            "videos, and lists of paths (.txt, or - for standard input).",
        ),
    ],
    /,
    *,
    out: Annotated[
        Path | None,
        Parameter(help="Folder for results.jsonl, overlays, tables and report.html."),
    ] = None,
    bundle: BundleFolder = None,
    decision: Annotated[
        Path | None,
        Parameter(
            help="Decision file to use instead of the bundle's; severstal-r50 has first-look, too."
        ),
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
    store: Annotated[
        Path | None,
        Parameter(help="Keep the results in this store, of many runs; OUT/store.db if left out."),
    ] = None,
    coil: Annotated[str | None, Parameter(help="The coil that the frames are of.")] = None,
    mm_per_px: Annotated[
        float | None, Parameter(help="Size of a pixel, for questions in millimetres.")
    ] = None,
    shard: Annotated[
        str | None, Parameter(help="Do one part of the frames, such as 2/4: by hash of the name.")
    ] = None,
    known: Annotated[
        list[Path] | None,
        Parameter(json_list=False, help="Stores whose results are taken over, such as of shards."),
    ] = None,
    on: Annotated[
        Literal["here", "ray"], Parameter(help="Here, or on a Ray cluster (extra: ray).")
    ] = "here",
    address: Annotated[
        str | None,
        Parameter(help="With --on ray: of a running cluster; a local one is started otherwise."),
    ] = None,
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

    Every frame gets a result line: OK, NG, or UNKNOWN with a reason (damaged, no image, too small,
    blank, ...). Without --out, result lines go to standard output.

    A run that was cut off, by Ctrl-C, kill or power, continues with the same command; nothing is
    lost, nothing is inspected twice.

    Example: steelsight inspect frames/ --out out/ --truth train.csv
    """
    from steelsight.decoders import Decoders
    from steelsight.engine.batch import identity_of, inspect_sources, recording
    from steelsight.engine.runtime import share_threads
    from steelsight.engine.sources import Shard, Sources
    from steelsight.imaging import DecodePolicy

    policy = DecodePolicy(bit_depth=bit_depth, append_end_marker=append_end_marker)
    kept = {
        "--store": store,
        "--known": known,
        "--coil": coil,
        "--mm-per-px": mm_per_px,
        "--shard": shard,
        "--truth": truth,
        "--no-overlays": not overlays,
    }
    if on == "ray":
        settings = {
            "bundle": bundle,
            "decision": decision,
            "engine": engine,
            "threads": threads or 1,
            "actors": workers or None,
            "policy": policy,
            "allow_colour": allow_colour,
            "address": address,
        }
        return _inspect_on_ray(given, out, overwrite, json, kept, settings)
    inputs = _check_options(
        given, out, {**kept, "--overwrite": overwrite}, unlisted_are_clean, mm_per_px
    )
    sources = Sources(inputs, leave_out=out, shard=Shard.parse(shard) if shard else None)
    found = sources.count()
    # Nothing to share with: all threads work on the one frame.
    workers = share_threads(threads, 1 if found == 1 else workers)[1]
    if out is not None and engine == "auto" and not overwrite:
        engine = _engine_before(out) or engine
    with ExitStack() as stack:
        # They start while the model loads.
        decoders = stack.enter_context(Decoders(workers))
        inspector = _load(
            bundle, decision, engine, threads, workers, policy, allow_colour, decoders.decode
        )
        if out is None:
            return _print_results(inspect_sources(inspector, sources))
        from steelsight.report.folder import (
            STORE,
            OutputFolder,
            TruthFile,
            file_sha256,
            inspect_to_folder,
        )

        class_ids = [c.id for c in inspector.bundle.classes]
        labels = (
            TruthFile(truth, class_ids, sources.names(), unlisted_are_clean=unlisted_are_clean)
            if truth
            else None
        )
        run = _run_info(inspector, ", ".join(map(str, inputs)), title, truth, sources.hidden)
        identity = identity_of(inspector, inputs) | {
            "truth": [str(truth.resolve()), file_sha256(truth)] if truth else None,
            "unlisted_are_clean": unlisted_are_clean,
            "overlays": overlays,
            "shard": shard,
            "store": str(store.resolve()) if store else None,
            "coil": coil,
            "mm_per_px": mm_per_px,
        }
        output = stack.enter_context(
            OutputFolder(
                out,
                inspector.bundle.classes,
                identity=identity,
                overwrite=overwrite,
                overlays=overlays,
            )
        )
        record = stack.enter_context(
            recording(
                store or out / STORE,
                inspector,
                identity,
                command=run.command,
                source=run.source,
                others=known or (),
                coil=coil,
                mm_per_px=mm_per_px,
            )
        )
        stop = stack.enter_context(ctrl_c())
        advance = stack.enter_context(progress("inspecting", found))
        summary = inspect_to_folder(
            inspector,
            sources,
            output,
            run,
            found=found,
            record=record,
            truth=labels,
            on_result=_counter(advance),
            stop=stop,
        )
    console = console_for(json)
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


def _inspect_on_ray(
    given: list[str],
    out: Path | None,
    overwrite: bool,
    json: bool,
    kept: dict[str, Any],
    settings: dict[str, Any],
) -> int:
    if out is None:
        raise InputError("--on ray writes a folder of Parquet files: give --out FOLDER too")
    useless = [option for option, value in kept.items() if value]
    if useless:
        raise InputError(f"leave out {', '.join(useless)}: with --on ray they have no meaning")
    from steelsight.engine.on_ray import RaySettings, inspect_on_ray

    with counted("inspecting", "frames") as count:
        summary = inspect_on_ray(
            given, out, RaySettings(**settings), overwrite=overwrite, on_count=count
        )
    if json:
        print_json(as_dict(summary))
    else:
        console = console_for(json)
        rows = [["seen", "OK", "NG", "UNKNOWN"]]
        rows.append([str(n) for n in (summary.seen, summary.ok, summary.ng, summary.unknown)])
        console.print(table(rows))
        sums = f"{summary.ok} + {summary.ng} + {summary.unknown} = {summary.seen}"
        console.print(f"Every frame has a verdict: {sums}.")
        if summary.known:
            console.print(f"{summary.known} of them were inspected before: results were kept.")
        console.print(f"Results are in {out / 'parts'} (Parquet).")
    return SOME_UNKNOWN if summary.unknown else DONE


def _engine_before(out: Path) -> str | None:
    """The engine of the run that ``out`` holds: it goes on with the same, whatever is faster."""
    from steelsight.report.folder import read_run

    run = read_run(out)
    label = run["identity"].get("settings", {}).get("engine") if run else None
    return label.partition("-")[0] if isinstance(label, str) else None


def _check_options(
    given: list[str],
    out: Path | None,
    kept: dict[str, Any],
    unlisted_are_clean: bool,
    mm_per_px: float | None,
) -> list[Path]:
    """Refuses what would be ignored, and an output that would be inspected."""
    from steelsight.engine.sources import STDIN

    useless = [option for option, value in kept.items() if value]
    if out is None and useless:
        raise InputError(f"{', '.join(useless)} need a run that is kept: give --out FOLDER too")
    if unlisted_are_clean and not kept["--truth"]:
        raise InputError("--unlisted-are-clean is about labels: give --truth FILE too")
    if mm_per_px is not None and not 0 < mm_per_px < 1000:
        raise InputError(f"expected --mm-per-px such as 0.5, got {mm_per_px}")
    for text in given:
        if "://" in text:
            raise InputError(f"{text} can be read with --on ray only; here, give files and folders")
    inputs = [Path(text) for text in given]
    where = [path.resolve() for path in inputs if path != STDIN]
    if out is not None and any(path.is_relative_to(out.resolve()) for path in where):
        raise InputError(f"--out {out} holds what is to be inspected; give another folder")
    return inputs


def _print_results(results: "Iterator[Inspected]") -> int:
    unknown = 0
    with ctrl_c() as stop:
        for inspected in results:
            print(inspected.inspection.to_json_line(), flush=True)
            unknown += inspected.inspection.verdict == "UNKNOWN"
            if stop():
                return INTERRUPTED
    return SOME_UNKNOWN if unknown else DONE


def _load(
    bundle: Path | None,
    decision: Path | None,
    engine: str,
    threads: int | None,
    workers: int,
    policy: "DecodePolicy | None" = None,
    allow_colour: bool = False,
    decode: "Decode | None" = None,
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
        **({"decode": decode} if decode else {}),
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
        thresholds=thresholds(bundle),
        marked_probabilities={"cleared below": gate.clear_below, "NG from": gate.ng_from},
        versions=versions(),
        truth_source=str(truth) if truth else None,
        files={
            "Result lines": "results.jsonl",
            "Kaggle submission": "submission.csv",
            "Quarantine (UNKNOWN frames)": "quarantine.csv",
        },
    )


def thresholds(bundle: "Bundle") -> list[list[str]]:
    """The decision file as a table; the first row is the header."""
    rows = [["", "score from", "pixel probability from", "least area, px"]]
    for defect_class in bundle.classes:
        rule = bundle.decision.types[defect_class.id]
        figures = (f"{rule.label_from:g}", f"{rule.pixel_from:.3g}", str(rule.min_area_px))
        rows.append([defect_class.name, *figures])
    gate, first = bundle.decision.gate, bundle.decision.first_look
    if first is not None:
        rows.append(["Frame: cleared by the first look", f"below {first.clear_below:.3g}", "", ""])
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
    elif summary.found is not None:
        left = summary.found - summary.seen
        console.print(f"Stopped: {left} of {summary.found} frames not inspected; {sums}.")
    else:
        console.print(f"Stopped before the last frame; {sums}.")
    if summary.interrupted:
        console.print("The same command continues.")
    if summary.known:
        console.print(f"{summary.known} of them were inspected before: their results were kept.")
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
