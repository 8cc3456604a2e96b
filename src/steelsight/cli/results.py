"""``steelsight results``, ``review`` and ``replay``: what is stored, and whether it still holds."""

import json as json_text
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from steelsight.cli.terminal import (
    DONE,
    GATE,
    SOME_UNKNOWN,
    Json,
    console_for,
    counted,
    print_json,
    working,
)
from steelsight.errors import InputError, escaped, first_names

if TYPE_CHECKING:
    from rich.console import Console

    from steelsight.defects import Reason
    from steelsight.engine.replay import Difference, Replay
    from steelsight.exports import Exported, StoredResults
    from steelsight.store.queries import Filter, InspectionRow, ReviewRow, RunRow

STORE_NAME = "store.db"
"""In the output folder of a run (``report.folder.STORE``, which takes longer to import)."""
ROWS_SHOWN = 20
LONG_EXPORT = 5000
"""Rows from which on a progress bar is worth its lines."""

_MOST_CHARACTERS = 60
"""Of a value in a table of differences."""

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

StorePath = Annotated[
    Path, Parameter(name="STORE", help="A store, or the output folder of a run that holds one.")
]
InspectionId = Annotated[int, Parameter(name="ID", help="Number, as `steelsight results` says it.")]
JsonLines = Annotated[
    bool, Parameter(negative="", help="Print one JSON object a line instead of a table.")
]


def results(
    path: StorePath,
    /,
    *,
    verdict: Annotated[
        Literal["OK", "NG", "UNKNOWN"] | None, Parameter(help="Only this verdict of the model.")
    ] = None,
    reason: Annotated[str | None, Parameter(help="Only this reason, such as truncated.")] = None,
    type_: Annotated[
        str | None, Parameter(name="--type", help="Only frames with a defect of this type.")
    ] = None,
    coil: Annotated[str | None, Parameter(help="Only this coil.")] = None,
    run: Annotated[int | None, Parameter(help="Only this run; --runs lists them.")] = None,
    name: Annotated[
        str | None, Parameter(help="Only these frames: a pattern such as '*a.jpg'.")
    ] = None,
    since: Annotated[
        str | None, Parameter(help="Inspected since: 30m, 12h, 7d, 2w, or 2026-11-20 [14:30].")
    ] = None,
    within_mm: Annotated[
        float | None,
        Parameter(help="With a defect (of --type) so near to the left or right edge."),
    ] = None,
    mm_per_px: Annotated[
        float | None, Parameter(help="Size of a pixel, for runs that do not say it.")
    ] = None,
    overruled: Annotated[
        bool, Parameter(negative="", help="Only where a person said something else.")
    ] = False,
    defects: Annotated[bool, Parameter(negative="", help="A row for each defect.")] = False,
    coils: Annotated[bool, Parameter(negative="", help="The worst coils.")] = False,
    runs: Annotated[bool, Parameter(negative="", help="The runs.")] = False,
    sort: Annotated[
        Literal["run", "newest", "faulty", "area", "defects"] | None,
        Parameter(
            help="run: as given (files, --json); newest (tables); faulty: highest probability; "
            "area: largest; defects: most.",
            show_choices=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, Parameter(help=f"Rows; {ROWS_SHOWN} in tables, else all, if left out.")
    ] = None,
    to: Annotated[
        Path | None, Parameter(help="Write what matches to this .csv, .jsonl, .parquet or .json.")
    ] = None,
    as_: Annotated[
        str | None,
        Parameter(
            name="--as",
            help="csv, jsonl, parquet, coco, kaggle, kaggle-submission or label-studio; by the "
            "file's name if left out.",
        ),
    ] = None,
    overwrite: Annotated[bool, Parameter(negative="", help="Replace --to if it is there.")] = False,
    json: JsonLines = False,
) -> int:
    """Ask a store about results, coils, runs and defects, and export them.

    All conditions given must hold. What several runs saw under one name with the same result is one
    row. Exit code 3 if frames that are UNKNOWN, or NG without a region, were left out of labels.

    Example: steelsight results out/ --verdict NG --sort area
    """
    from steelsight.exports import StoredResults, form_of
    from steelsight.store.queries import Filter

    if sum((defects, coils, runs)) > 1:
        raise InputError("expected one of --defects, --coils and --runs, got several; choose one")
    if defects and sort is not None:
        raise InputError("--sort is about results: leave it out, or --defects")
    if to is None and (as_ is not None or overwrite):
        raise InputError("--as and --overwrite are about a file: give --to FILE too")
    _check_number("--limit", limit, 1, "20")
    _check_number("--within-mm", within_mm, 0, "50")
    _check_number("--mm-per-px", mm_per_px, 1e-6, "0.5")
    where = Filter(
        verdict=_verdict(verdict),
        reason=_reason(reason),
        class_id=type_,
        coil=coil,
        run=run,
        name=name,
        since_ms=_since_ms(since, datetime.now().astimezone()),
        within_edge_mm=within_mm,
        mm_per_px=mm_per_px,
        overruled=True if overruled else None,
    )
    if coils or runs:
        _only("--coils" if coils else "--runs", where, since if coils else None, sort, to)
    form = None if to is None else form_of(to, as_)
    with StoredResults(store_at(path)) as store:
        _check_runs(store, where)
        if to is not None and form is not None:
            return _export(store, to, form, where, sort, limit, defects, overwrite, json)
        with store.one_state():
            if coils:
                return _print_coils(store, where, limit, json)
            if runs:
                return _print_runs(store, limit, json)
            if defects:
                return _print_defects(store, where, limit, json)
            return _print_results(store, where, sort, limit, json)


def review(
    path: StorePath,
    inspection_id: InspectionId,
    /,
    *,
    verdict: Annotated[Literal["OK", "NG"], Parameter(help="What the person says.")],
    who: Annotated[str, Parameter(help="The person.")],
    note: Annotated[str, Parameter(help="Why.")] = "",
    json: Json = False,
) -> int:
    """Write a person's verdict beside the model's.

    The model's verdict stays as it is. Several persons may say something, and one several times;
    the last word is what --overruled goes by.

    Example: steelsight review plant.db 17 --verdict OK --who "A. Meier" --note "shadow of a roll"
    """
    from steelsight.defects import Verdict
    from steelsight.store.queries import Results
    from steelsight.store.store import Store

    who = who.strip()
    if not who:
        raise InputError("expected who says it, got an empty --who; give a name")
    place = store_at(path)
    with Results(place) as found:
        complete = found.inspection(inspection_id)
    with Store(place) as store:
        number = store.review(inspection_id, Verdict(verdict), who, note.strip())
    model = complete.inspection.verdict
    if json:
        facts = {"review": number, "id": inspection_id, "image": complete.inspection.image}
        print_json(facts | {"model": model.value, "verdict": verdict, "who": who, "note": note})
    else:
        same = "too" if model == verdict else f"the model said {model}"
        console_for(json).print(
            f"Inspection {inspection_id}, {escaped(complete.inspection.image)}: {escaped(who)} "
            f"says {verdict}, {same}."
        )
    return DONE


def replay(
    path: StorePath,
    inspection_id: InspectionId,
    /,
    *,
    frame: Annotated[
        Path | None, Parameter(help="The frame's file, if it is no longer where it was.")
    ] = None,
    bundle: Annotated[
        Path | None, Parameter(help="The model's folder, if it is no longer where it was.")
    ] = None,
    engine: Annotated[
        str | None, Parameter(help="Another engine than then: auto, onnxruntime, openvino, cuda.")
    ] = None,
    threads: Annotated[
        int | None, Parameter(help="Inference threads; all usable cores if left out.")
    ] = None,
    json: Json = False,
) -> int:
    """Derive a stored verdict again, and compare it bit for bit.

    The frame is read from where it was, and must have the same sha256; model, decision file, engine
    and decode policy are those of then. Exit code 4 if the result differs.

    Example: steelsight replay out/ 17
    """
    from steelsight.engine.replay import replay as run_replay

    place = store_at(path)
    with working("inspecting again") if sys.stderr.isatty() else nullcontext():
        done = run_replay(
            place, inspection_id, frame=frame, bundle=bundle, engine=engine, threads=threads
        )
    if json:
        print_json(done.to_json())
    else:
        _print_replay(console_for(json), done)
    return DONE if done.same else GATE


def store_at(path: Path) -> Path:
    """The store that is meant by a file, or by the output folder of a run.

    Raises:
        InputError: there is none.
    """
    if not path.is_dir():
        if not path.exists():
            raise InputError(
                f"expected a store or the output folder of a run, {path} does not exist; "
                "`steelsight inspect FRAMES --out FOLDER` makes one"
            )
        return path
    if (path / STORE_NAME).is_file():
        return path / STORE_NAME
    from steelsight.report.folder import read_run

    run = read_run(path)
    elsewhere = run["identity"].get("store") if run else None
    if isinstance(elsewhere, str):
        raise InputError(f"{path} holds no {STORE_NAME}, its results are in {elsewhere}: give that")
    raise InputError(
        f"expected a store or the output folder of a run, {path} holds no {STORE_NAME}; "
        "`steelsight inspect FRAMES --out FOLDER` makes one"
    )


# Conditions --------------------------------------------------------------------------------------


def _verdict(given: str | None) -> Any:
    from steelsight.defects import Verdict

    return None if given is None else Verdict(given)


def _reason(given: str | None) -> "Reason | None":
    from steelsight.defects import Reason

    if given is None:
        return None
    if given not in set(Reason):
        raise InputError(f"expected a reason of {', '.join(Reason)}, got {given}")
    return Reason(given)


def _since_ms(given: str | None, now: datetime) -> int | None:
    """Milliseconds since 1970 of a date, or of so long ago."""
    if given is None:
        return None
    try:
        if ago := re.fullmatch(r"(\d{1,6})([mhdw])", given):
            then = now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            then = datetime.fromisoformat(given)
            # A time without zone is that of this machine.
            then = then if then.tzinfo else then.astimezone()
        return int(then.timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise InputError(
            f"expected --since such as 30m, 12h, 7d, 2w or 2026-11-20, got {given}"
        ) from None


def _check_number(option: str, value: float | None, least: float, example: str) -> None:
    if value is not None and not least <= value < 1e9:
        raise InputError(f"expected {option} such as {example}, got {value}")


def _check_runs(store: "StoredResults", where: "Filter") -> None:
    """The run is there, and millimetres need the size of a pixel in every run that is asked."""
    asked = [row for row in store.runs() if where.run in (None, row.id)]
    if where.run is not None and not asked:
        raise InputError(f"expected a run of {store.path}, there is no run {where.run}; see --runs")
    if where.within_edge_mm is None or where.mm_per_px is not None:
        return
    without = [str(row.id) for row in asked if row.run.mm_per_px is None]
    if without:
        raise InputError(
            f"expected the size of a pixel for --within-mm, run {first_names(without)} was "
            "inspected without; give --mm-per-px, or --run of one that has it"
        )


def _only(what: str, where: "Filter", since: str | None, sort: str | None, to: Path | None) -> None:
    """Refuses conditions that would be ignored."""
    from dataclasses import replace

    from steelsight.store.queries import Filter

    rest = replace(where, since_ms=None) if since is not None else where
    if rest != Filter() or sort is not None or to is not None:
        takes = "--since, --limit and --json" if what == "--coils" else "--limit and --json"
        raise InputError(f"{what} takes {takes} only; leave the others out")


# Tables ------------------------------------------------------------------------------------------


def _print_results(
    store: "StoredResults", where: "Filter", sort: str | None, limit: int | None, json: bool
) -> int:
    from steelsight.exports import result_facts
    from steelsight.store.queries import Sort

    order = Sort(sort) if sort else Sort.RUN if json else Sort.NEWEST
    if json:
        shown = 0
        for row in store.inspections(where, sort=order, limit=limit):
            _print_line(result_facts(row, store.types_on(row.id), store.said(row.id)))
            shown += 1
        _tell_rest(_sums(shown, "results", _by_verdict(store, where)))
        return DONE
    rows = list(store.inspections(where, sort=order, limit=limit or ROWS_SHOWN))
    cells = [_cells(row, store.types_on(row.id), store.said(row.id)) for row in rows]
    console = _console()
    if rows:
        _print_table(console, cells)
        setups = list(dict.fromkeys(_setup(row) for row in rows))
        if len(setups) == 1:
            console.print(f"All by {setups[0]}.", style="dim")
    console.print(_sums(len(rows), "results", _by_verdict(store, where)))
    return DONE


def _by_verdict(store: "StoredResults", where: "Filter") -> dict[str, int]:
    return {verdict.value: count for verdict, count in store.by_verdict(where).items()}


def _setup(row: "InspectionRow") -> str:
    return f"{row.model}, decision {row.decision}, {row.engine}"


def _cells(
    row: "InspectionRow", types: Mapping[str, int], said: Iterable["ReviewRow"]
) -> dict[str, str]:
    """What people read of a result, by heading; columns that are empty everywhere are left out."""
    return {
        "id": str(row.id),
        "frame": row.name,
        "verdict": row.verdict,
        "reason": row.reason or "",
        "faulty": "" if row.faulty_probability is None else f"{row.faulty_probability:.4f}",
        "defects": ", ".join(f"{count} of type {kind}" for kind, count in types.items()),
        "area, px": f"{row.defect_area_px:,}" if row.n_defects else "",
        "coil": row.coil or "",
        "model": row.model,
        "inspected": _local(row.inspected_ms),
        "people say": "; ".join(_told(one) for one in said),
    }


def _told(review: "ReviewRow") -> str:
    note = f": {review.note}" if review.note else ""
    return f"{review.verdict} ({review.who}, {_local(review.reviewed_ms)}{note})"


def _local(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000).astimezone().strftime("%Y-%m-%d %H:%M")


def _print_defects(store: "StoredResults", where: "Filter", limit: int | None, json: bool) -> int:
    from steelsight.exports import defect_facts

    shown = 0
    cells = []
    for row in store.defects(where, limit=limit if json else limit or ROWS_SHOWN):
        shown += 1
        if json:
            _print_line(defect_facts(row))
            continue
        defect = row.defect
        x, y, w, h = defect.bbox_xywh
        edge_mm = "" if row.edge_mm is None else f"{row.edge_mm:.1f}"
        cells.append(
            {
                "id": str(row.inspection),
                "frame": row.name,
                "type": defect.class_id,
                "area, px": f"{defect.area_px:,}",
                "x, y, w, h": f"{x}, {y}, {w}, {h}",
                "length x width, px": f"{defect.length_px:.1f} x {defect.width_px:.1f}",
                "probability": f"{defect.probability:.4f}",
                "to the edge, px": str(row.edge_px),
                "mm": edge_mm,
                "coil": row.coil or "",
                "inspected": _local(row.inspected_ms),
            }
        )
    sums = _sums(shown, "defects", {f"type {k}": n for k, n in store.by_type(where).items()})
    if json:
        _tell_rest(sums)
        return DONE
    console = _console()
    if cells:
        _print_table(console, cells)
    console.print(sums)
    return DONE


def _print_coils(store: "StoredResults", where: "Filter", limit: int | None, json: bool) -> int:
    found = store.worst_coils(where.since_ms, None)
    shown = found[: limit or (None if json else ROWS_SHOWN)]
    totals = {
        "OK": sum(row.seen - row.ng - row.unknown for row in found),
        "NG": sum(row.ng for row in found),
        "UNKNOWN": sum(row.unknown for row in found),
    }
    sums = f"{len(shown)} of {len(found)} coils; their frames: {_added(totals)}."
    if json:
        for row in shown:
            _print_line(row._asdict())
        _tell_rest(sums)
        return DONE
    console = _console()
    if shown:
        _print_table(
            console,
            [
                {
                    "coil": row.coil,
                    "frames": f"{row.seen:,}",
                    "OK": f"{row.seen - row.ng - row.unknown:,}",
                    "NG": f"{row.ng:,}",
                    "UNKNOWN": f"{row.unknown:,}",
                    "defects": f"{row.n_defects:,}",
                    "area, px": f"{row.defect_area_px:,}",
                }
                for row in shown
            ],
        )
    console.print(sums)
    if not found and where.since_ms is None:
        console.print("No run says of which coil it is: inspect with --coil.")
    return DONE


def _print_runs(store: "StoredResults", limit: int | None, json: bool) -> int:
    from steelsight.exports import utc

    counts = {row.run: row for row in store.counts()}
    found = list(reversed(store.runs()))
    shown = found[: limit or (None if json else ROWS_SHOWN)]
    totals = {
        "OK": sum(row.ok for row in counts.values()),
        "NG": sum(row.ng for row in counts.values()),
        "UNKNOWN": sum(row.unknown for row in counts.values()),
    }
    sums = f"{len(shown)} of {len(found)} runs; their frames: {_added(totals)}."
    if json:
        for row in shown:
            facts = row.run
            _print_line(
                {
                    **counts[row.id]._asdict(),
                    "complete": row.complete,
                    "started": utc(row.started_ms),
                    "finished": None if row.finished_ms is None else utc(row.finished_ms),
                    "source": facts.source,
                    "command": facts.command,
                    "model": facts.model_id,
                    "decision": facts.decision_sha256[:8],
                    "engine": facts.engine,
                    "mm_per_px": facts.mm_per_px,
                }
            )
        _tell_rest(sums)
        return DONE
    console = _console()
    if shown:
        _print_table(
            console,
            [
                {
                    "run": str(row.id),
                    "begun": _local(row.started_ms),
                    "state": _state(row),
                    "frames": f"{counts[row.id].seen:,}",
                    "OK": f"{counts[row.id].ok:,}",
                    "NG": f"{counts[row.id].ng:,}",
                    "UNKNOWN": f"{counts[row.id].unknown:,}",
                    "model": row.run.model_id,
                    "engine": row.run.engine,
                    "mm per px": "" if row.run.mm_per_px is None else f"{row.run.mm_per_px:g}",
                    "source": row.run.source,
                }
                for row in shown
            ],
        )
    console.print(sums)
    return DONE


def _state(row: "RunRow") -> str:
    if row.complete:
        return "complete"
    return "running or killed" if row.finished_ms is None else "stopped"


def _added(counts: Mapping[str, int]) -> str:
    """Summands and sum, so that everybody can add them up."""
    terms = " + ".join(f"{count:,} {escaped(key)}" for key, count in counts.items())
    total = f"{sum(counts.values()):,}"
    return f"{terms} = {total}" if counts else total


def _sums(shown: int, what: str, counts: Mapping[str, int]) -> str:
    return f"{shown:,} of {sum(counts.values()):,} {what} that match: {_added(counts)}."


def _print_line(facts: dict[str, Any]) -> None:
    """One line of JSON; text that is no valid Unicode as its escapes."""
    print(json_text.dumps(facts, ensure_ascii=False).encode(errors="backslashreplace").decode())


def _tell_rest(line: str) -> None:
    """The bottom line of an answer for machines goes to people."""
    sys.stdout.flush()
    print(line, file=sys.stderr)


def _console() -> "Console":
    console = console_for(False)
    if not console.is_terminal:
        console.width = 1 << 14  # a file or a pipe has no edge at which to fold
    return console


_RIGHT = frozenset(
    ("id", "run", "faulty", "area, px", "frames", "OK", "NG", "UNKNOWN", "mm", "mm per px")
) | {"to the edge, px", "probability"}


def _print_table(console: "Console", rows: list[dict[str, str]]) -> None:
    """Rows by heading; names were chosen by others, so nothing in them is obeyed."""
    from rich.table import Table
    from rich.text import Text

    def made(headings: list[str]) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in headings:
            side: Literal["left", "right"] = "right" if heading in _RIGHT else "left"
            table.add_column(heading, overflow="fold", justify=side)
        for row in rows:
            table.add_row(*(Text(escaped(row[heading])) for heading in headings))
        return table

    headings = [heading for heading in rows[0] if any(row[heading] for row in rows)]
    table = made(headings)
    if console.measure(table).maximum > console.width and len({r.get("model") for r in rows}) == 1:
        # It is the same everywhere, and said below.
        table = made([heading for heading in headings if heading != "model"])
    console.print(table)


# Files -------------------------------------------------------------------------------------------


def _export(
    store: "StoredResults",
    to: Path,
    form: Any,
    where: "Filter",
    sort: str | None,
    limit: int | None,
    defects: bool,
    overwrite: bool,
    json: bool,
) -> int:
    from steelsight.exports import export
    from steelsight.store.queries import Sort

    total = store.count_defects(where) if defects else store.count_inspections(where)
    long = min(total, limit or total) >= LONG_EXPORT
    what = "defects" if defects else "results"
    with counted("exporting", what) if long else _quiet() as progress:
        done = export(
            store,
            to,
            form,
            where,
            sort=Sort(sort) if sort else Sort.RUN,
            limit=limit,
            defects=defects,
            overwrite=overwrite,
            progress=progress,
        )
    if json:
        print_json(done.to_json() | {"matching": total})
    else:
        _print_export(done, total, what)
    return SOME_UNKNOWN if done.left_out else DONE


@contextmanager
def _quiet() -> Iterator[Callable[[int, int], None]]:
    yield lambda _done, _total: None


def _print_export(done: "Exported", total: int, what: str) -> None:
    console = console_for(False)
    counts = {(f"type {k}" if what == "defects" else k): n for k, n in done.counts.items()}
    console.print(
        f"{escaped(done.file)}: {done.rows:,} of {total:,} {what} that match, as {done.form}: "
        f"{_added(counts)}."
    )
    for path in done.beside:
        console.print(f"{escaped(path)}: the labelling interface to paste into the project.")
    for reason, count in done.left_out.items():
        print(
            f"steelsight: {count:,} left out ({reason}): as labels they would look clean",
            file=sys.stderr,
        )


# Replay ------------------------------------------------------------------------------------------


def _print_replay(console: "Console", done: "Replay") -> None:
    stored, now = done.stored, done.now
    what = f"{stored.verdict}" + (f", {stored.reason}" if stored.reason else "")
    if stored.defects:
        what += f", {len(stored.defects)} defect" + "s" * (len(stored.defects) > 1)
    head = f"Inspection {done.inspection_id}, {escaped(stored.image)}: {what}"
    console.print(f"Frame {escaped(done.frame)}, sha256 {stored.sha256 or 'of nothing'}")
    console.print(f"Model {stored.model}, decision {stored.decision}, engine {now.engine}")
    for one in done.circumstances:
        console.print(f"Another {one.what} than then: {one.now}, it was {one.stored}.")
    if done.same:
        console.print(f"{head}: the same, bit for bit.")
        return
    console.print(f"{head}: now {now.verdict}, {len(done.differences)} values differ.")
    rows = []
    for difference in done.differences:
        before, after = _side_by_side(difference)
        rows.append({"value": difference.what, "stored": before, "now": after})
    _print_table(_console(), rows)
    if not done.circumstances:
        console.print(
            "Engine, its version and steelsight are those of then: the processor may be another "
            "one, on which numbers round differently, or the stored values were altered."
        )


def _side_by_side(difference: "Difference") -> tuple[str, str]:
    """Both values, long ones from a little before their first difference."""
    before, after = (
        value if isinstance(value, str) else "none" if value is None else repr(value)
        for value in (difference.stored, difference.now)
    )
    if max(len(before), len(after)) <= _MOST_CHARACTERS:
        return before, after
    same = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
    begin = max(0, same - 10)
    return _part(before, begin), _part(after, begin)


def _part(text: str, begin: int) -> str:
    cut = text[begin : begin + _MOST_CHARACTERS]
    left = "..." if begin else ""
    return left + cut + ("..." if len(text) > begin + _MOST_CHARACTERS else "")
