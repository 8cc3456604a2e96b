"""``steelsight benchmark``: how fast the whole pipeline is here, and whether a line can rely on it.

Parse, call, print; the work is in ``steelsight.benchmark``.
"""

import math
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from steelsight.cli.data import LabelOptions, loaded
from steelsight.cli.terminal import (
    DONE,
    Json,
    command_line,
    console_for,
    counted,
    now,
    print_json,
    table,
    write_json,
)
from steelsight.errors import InputError, LabelError, escaped, first_names

if TYPE_CHECKING:
    from steelsight.benchmark.frames import Candidate
    from steelsight.benchmark.line import Line
    from steelsight.benchmark.machine import Machine

REPORT = "benchmark.json"
LETTERS = string.ascii_uppercase
DRAWN_FAULTY_SHARE = 0.1


def benchmark(
    frames: Annotated[
        list[Path] | None,
        Parameter(
            name="FRAMES",
            json_list=False,
            negative="",
            help="Images and folders; drawn frames if left out.",
        ),
    ] = None,
    /,
    *,
    bundle: Annotated[
        list[Path] | None,
        Parameter(
            json_list=False,
            negative="",
            help="Bundle folder or shipped name, repeatable; severstal-r50 if none.",
        ),
    ] = None,
    decision: Annotated[
        list[Path] | None,
        Parameter(
            json_list=False,
            negative="",
            help="Decision file or name in the bundle, repeatable; the bundle's own is `decision`.",
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        Parameter(
            json_list=False, negative="", help="Repeatable; all installed engines if left out."
        ),
    ] = None,
    against: Annotated[
        Path | None,
        Parameter(
            help="Python file with another pipeline for the same run, such as benchmarks/naive.py;"
            " it is executed."
        ),
    ] = None,
    labels: Annotated[
        Path | None, Parameter(help="Labels of the frames: accuracy stands beside speed.")
    ] = None,
    options: LabelOptions | None = None,
    faulty_share: Annotated[
        float | None,
        Parameter(
            help="Share of faulty frames, by labels, else by the first bundle's verdict; frames as"
            " they come if left out (drawn ones: 0.1)."
        ),
    ] = None,
    count: Annotated[int, Parameter(name="--frames", help="How many frames.")] = 30,
    rounds: Annotated[int, Parameter(help="How often everybody takes all frames.")] = 3,
    threads: Annotated[
        int | None, Parameter(help="Inference threads; all usable cores if left out.")
    ] = None,
    seed: Annotated[int, Parameter(help="Of the choice and order of the frames.")] = 0,
    line_speed: Annotated[
        str | None, Parameter(help="Speed of a strip, such as 10m/s: does it keep up?")
    ] = None,
    mm_per_px: Annotated[
        float | None, Parameter(help="Millimetres of strip in a row of pixels.")
    ] = None,
    cameras: Annotated[
        int | None, Parameter(help="Cameras that this machine serves; 1 if left out.")
    ] = None,
    out: Annotated[Path | None, Parameter(help="Folder for benchmark.json.")] = None,
    overwrite: Annotated[
        bool, Parameter(negative="", help="Replace an earlier benchmark in --out.")
    ] = False,
    json: Json = False,
) -> int:
    """Measure the whole pipeline, from encoded bytes to the result line, on every engine.

    All take the same frames in turns, in one run: compare the ratios, not milliseconds of
    different days. With --line-speed it says whether this machine keeps up with a line.

    Example: steelsight benchmark frames/ --faulty-share 0.1 --line-speed 10m/s --mm-per-px 0.5
    """
    from steelsight.benchmark.machine import machine
    from steelsight.benchmark.run import Settings, run
    from steelsight.engine.runtime import available_cores

    _check_out(out, overwrite)
    if not frames and labels is None and faulty_share is None:
        faulty_share = max(DRAWN_FAULTY_SHARE, 1 / max(count, 1))
    settings = Settings(
        bundles=tuple(bundle or ()) or (None,),
        decisions=tuple(decision or ()) or (None,),
        engines=_engines(engine),
        against=against,
        frames=count,
        faulty_share=faulty_share,
        rounds=rounds,
        threads=available_cores() if threads is None else threads,
        seed=seed,
        accuracy=labels is not None,
        line=_line(line_speed, mm_per_px, cameras),
    )
    here = machine()
    if not json:
        _print_machine(here)
    with _candidates(frames, labels, options, settings.frames, faulty_share, seed) as taken:
        candidates, source = taken
        facts = run(candidates, settings, counted)
    facts = {
        "command": command_line(),
        "measured": now(),
        "machine": {
            "cpu": here.cpu,
            "cores_usable": here.cores_usable,
            "load_before": here.load_before,
            "busy": here.busy,
        },
        **facts,
    }
    facts["frames"] = source | facts["frames"]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / REPORT, facts)
    if json:
        print_json(facts)
    else:
        _print(facts)
        if out is not None:
            console_for(False).print(f"{out / REPORT} has all.")
    return DONE


# Options -----------------------------------------------------------------------------------------


def _check_out(out: Path | None, overwrite: bool) -> None:
    if out is None and overwrite:
        raise InputError("--overwrite is about an earlier benchmark: give --out FOLDER too")
    if out is not None and (out / REPORT).exists() and not overwrite:
        raise InputError(
            f"{out / REPORT} is there already; give another --out, or --overwrite to replace it"
        )
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"expected a folder at {out}, found a file; give another --out")


def _engines(names: list[str] | None) -> Any:
    from steelsight.engine.runtime import Engine

    known = [engine.value for engine in Engine if engine is not Engine.AUTO]
    choices = f"{', '.join(known[:-1])} or {known[-1]}"
    for name in names or ():
        if name not in known:
            raise InputError(f"expected --engine {choices}, got {name!r}")
    return tuple(Engine(name) for name in dict.fromkeys(names or ()))


def _line(speed: str | None, mm_per_px: float | None, cameras: int | None) -> "Line | None":
    from steelsight.benchmark.line import Line, parse_speed

    if speed is None:
        if mm_per_px is not None or cameras is not None:
            raise InputError("--mm-per-px and --cameras are about a line: give --line-speed too")
        return None
    metres_per_second = parse_speed(speed)
    if mm_per_px is None:
        raise InputError("--line-speed needs --mm-per-px: millimetres of strip in a row of pixels")
    return Line(metres_per_second, mm_per_px, 1 if cameras is None else cameras)


@contextmanager
def _candidates(
    frames: list[Path] | None,
    labels: Path | None,
    options: LabelOptions | None,
    count: int,
    faulty_share: float | None,
    seed: int,
) -> "Iterator[tuple[list[Candidate], dict[str, Any]]]":
    """The frames that may be measured, and where they come from."""
    from steelsight.benchmark.frames import candidates_in, candidates_of, drawn_candidates

    if labels is not None:
        options = _with_images(options or LabelOptions(), frames)
        errors: list[LabelError] = []
        with loaded(labels, options, errors) as label_set:
            found = candidates_of(label_set)
            yield (
                found,
                {
                    "source": str(options.images or labels),
                    "drawn": False,
                    "files": len(label_set.image_paths),
                    "labels": str(labels),
                    "label_format": label_set.format,
                    "usable_labels": len(found),
                    "label_errors": len(errors),
                },
            )
        return
    if options not in (None, LabelOptions()):
        raise InputError("expected --labels PATH with options about labels, got them alone")
    if frames:
        found = candidates_in(frames)
        source = ", ".join(map(str, frames))
    else:
        with counted("drawing") as step:
            found = drawn_candidates(count, faulty_share or 0.0, seed, step)
        source = f"{count} drawn frames, seed {seed}"
    yield found, {"source": source, "drawn": not frames, "files": len(found), "labels": None}


def _with_images(options: LabelOptions, frames: list[Path] | None) -> LabelOptions:
    from dataclasses import replace

    if not frames:
        return options
    if len(frames) != 1 or not frames[0].is_dir() or options.images is not None:
        raise InputError("with --labels, expected one folder of images as FRAMES, or none")
    return replace(options, images=frames[0])


# For people --------------------------------------------------------------------------------------


def _print_machine(here: "Machine") -> None:
    console = console_for(False)
    console.print(f"{here.cpu}, {here.cores_usable} usable cores")
    if here.busy:
        console.print(
            f"This machine is busy (load {here.load_before:.1f} before the start): times are good "
            "as ratios only."
        )


def _print(facts: dict[str, Any]) -> None:
    console = console_for(False)
    console.print(_frames_sentence(facts["frames"]))
    for note in facts["notes"]:
        console.print(escaped(note))
    contestants = facts["contestants"]
    console.print(
        f"{facts['rounds']} rounds in turns, {facts['threads']} threads; medians (10th to 90th "
        f"percentile)."
    )
    console.print(table(_rows(facts)))
    names = [c["name"] for c in contestants]
    for letter, name in zip(LETTERS, names, strict=False):
        console.print(f"{letter}  {name}")
    for contestant in contestants:
        if contestant.get("verdicts_unlike_the_first"):
            console.print(
                f"{contestant['name']}: {contestant['verdicts_unlike_the_first']} verdicts are not "
                f"those of {names[0]}."
            )
    told = [c["accuracy"] for c in contestants if c.get("accuracy")]
    if told:
        console.print(
            "Accuracy: on the labelled frames of this run only, flattered by frames that a model "
            "learned from. For figures with intervals: steelsight evaluate."
        )
    other_types = sorted({class_id for accuracy in told for class_id in accuracy["other_types"]})
    if other_types:
        console.print(f"Labelled types that the bundle does not know: {first_names(other_types)}.")
    if facts["line"] and facts["machine"]["busy"]:
        console.print("The machine was busy: ask again when it is idle before you believe this:")
    for contestant in contestants:
        if "line" in contestant:
            console.print(contestant["line"]["sentence"])


def _frames_sentence(frames: dict[str, Any]) -> str:
    what = "drawn frames (not photographs)" if frames["drawn"] else f"frames of {frames['source']}"
    parts = [f"{frames['count']} {what}"]
    if frames["faulty"] is not None:
        parts.append(f"{frames['faulty']} faulty")
    parts.append(f"{frames['segmented']} segmented by the first")
    if frames["different"] < frames["count"]:
        parts.append(f"{frames['different']} different ones")
    if frames["left_out"]:
        told = ", ".join(f"{n} {reason}" for reason, n in frames["left_out"].items())
        parts.append(f"left out: {told}")
    return escaped(", ".join(parts)) + "."


def _rows(facts: dict[str, Any]) -> list[list[str]]:
    """One column for each contestant."""
    contestants = facts["contestants"]
    columns = LETTERS[: len(contestants)]
    of = columns[[c["name"] for c in contestants].index(facts["reference"])]
    rows = [["", *columns]]

    def row(name: str, tell: Callable[[dict[str, Any]], str]) -> None:
        rows.append([name, *map(tell, contestants)])

    row("frames/s, some at once", lambda c: _spread(c["frames_per_second"]))
    row(f"  times as fast as {of}", lambda c: _spread(c["times_as_fast"]))
    row("ms, one frame alone", lambda c: _spread(c["ms"]))
    row("  99th percentile", lambda c: _number(c["ms"]["p99"]))
    for kind in ("cleared", "segmented"):
        row(f"  {kind} frames", lambda c, kind=kind: _spread(c[f"ms_{kind}"]))  # type: ignore[misc]
        row(
            f"    times as fast as {of}",
            lambda c, kind=kind: _spread(c[f"times_as_fast_{kind}"]),  # type: ignore[misc]
        )
    for step in contestants[0]["share_of_time"]:
        row(
            f"% of time: {step}",
            lambda c, step=step: f"{100 * c['share_of_time'][step]:.1f}",  # type: ignore[misc]
        )
    for step in ("gate", "segment"):
        row(
            f"% of peak: {step}",
            lambda c, step=step: _spread(_of(c, "share_of_peak", step), 100),  # type: ignore[misc]
        )
    row("s to first verdict", lambda c: _spread(_of(c, "cold_start", "seconds")))
    row("MB at most", lambda c: _number(_of(c, "cold_start", "peak_mb")))
    if any(c.get("accuracy") for c in contestants):
        row("AUROC", lambda c: _number(_of(c, "accuracy", "auroc"), 4))
        row("Dice", lambda c: _number(_of(c, "accuracy", "dice"), 3))
    return rows


def _of(contestant: dict[str, Any], group: str, name: str) -> Any:
    """A figure that not every contestant has."""
    return (contestant.get(group) or {}).get(name)


def _spread(value: dict[str, float] | None, factor: float = 1) -> str:
    if value is None:
        return "-"
    median, low, high = (_number(factor * value[k]) for k in ("median", "p10", "p90"))
    return f"{median} ({low}-{high})"


def _number(value: float | None, digits: int | None = None) -> str:
    """With as many digits behind the point, or three that count."""
    if value is None:
        return "-"
    if digits is None:
        digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{digits}f}"
