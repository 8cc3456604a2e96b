"""What all commands share: exit codes, output for people and machines, progress, Ctrl-C."""

import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from steelsight.errors import escaped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

DONE, ERROR, USAGE, SOME_UNKNOWN, GATE, INTERRUPTED = 0, 1, 2, 3, 4, 130

_MAX_LINE_CHARACTERS = 4000

BundleFolder = Annotated[
    Path | None,
    Parameter(name="--bundle", help="Folder; severstal-r50, which is shipped, if left out."),
]
Json = Annotated[bool, Parameter(negative="", help="Print one JSON object instead of text.")]


def fail(line: str, code: int) -> int:
    """Prints one line on standard error; returns the exit code.

    Control characters are escaped and a line without end is cut in its middle: names in it were
    chosen by others, and what to do stands at its end.
    """
    line = escaped(" ".join(line.split()))
    if len(line) > _MAX_LINE_CHARACTERS:
        line = f"{line[: _MAX_LINE_CHARACTERS // 2]} [...] {line[-_MAX_LINE_CHARACTERS // 4 :]}"
    print("steelsight:", line, file=sys.stderr)
    return code


def console_for(json: bool) -> "Console":
    """Standard output for people; with ``--json`` only progress is shown, on standard error."""
    from rich.console import Console

    return Console(stderr=json, highlight=False, soft_wrap=True, markup=False)


def command_line() -> str:
    """The command as it was given, for reports."""
    return shlex.join(["steelsight", *sys.argv[1:]])


def now() -> str:
    """Date and time with zone, ISO 8601."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes one JSON object, indented, with a line end; replaces the file at once.

    What a killed process left beside it is written over by the next one.
    """
    beside = path.with_name(f".{path.name}.unfinished")
    try:
        text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
        beside.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[str], None]]:
    """A progress bar on standard error; call what it yields with a short note after each frame."""
    with _bar("frames") as bar:
        task = bar.add_task(what, total=total, note="")
        yield lambda note: bar.update(task, advance=1, note=note)


@contextmanager
def counted(what: str, unit: str = "") -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error for work that tells how much is done, of how much.

    With a ``unit``, such as frames, it also shows how many of them are done a second.
    """
    with _bar(unit) as bar:
        task = bar.add_task(what, total=None, note="")
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A moving sign on standard error while something without a count goes on."""
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


@contextmanager
def ctrl_c() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks the run to end after the current frame; the second ends it at once.

    SIGTERM asks as well: so do service managers and containers.
    """
    asked: list[int] = []
    before: dict[int, Any] = {}

    def back(*_: object) -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, _frame: object) -> None:
        asked.append(number)
        back()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, ask)
    try:
        yield lambda: bool(asked)
    finally:
        back()


def table(rows: list[list[str]]) -> Any:
    """A table for the console; the first row is the header."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in rows[0]:
        table.add_column(heading, overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def as_dict(value: Any) -> dict[str, Any]:
    """The fields of a dataclass."""
    from dataclasses import asdict

    return asdict(value)


def print_json(value: dict[str, Any]) -> None:
    """One line of JSON on standard output."""
    print(json.dumps(value, ensure_ascii=False))


def _bar(unit: str) -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f} {unit}/s" if speed and unit else "")

    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        Speed(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
