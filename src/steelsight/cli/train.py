"""``steelsight train``: from a labelled folder to a bundle."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from steelsight.cli.data import LabelOptions, loaded, scanned
from steelsight.cli.terminal import (
    DONE,
    GATE,
    INTERRUPTED,
    Json,
    command_line,
    console_for,
    ctrl_c,
    fail,
    print_json,
    table,
)
from steelsight.errors import InputError

if TYPE_CHECKING:
    from rich.console import Group

    from steelsight.training.loop import Moment
    from steelsight.training.session import Done


def train(
    path: Annotated[
        Path | None, Parameter(name="PATH", help="Folder, label file, or .zip of a data set.")
    ] = None,
    /,
    *,
    out: Annotated[Path, Parameter(help="New folder for the run.")] = Path("run"),
    start: Annotated[
        str | None,
        Parameter(
            help="Weights to start from: a ResNet50 or earlier network (.safetensors), a bundle or"
            " run with weights, or 'random'."
        ),
    ] = None,
    start_sha256: Annotated[str | None, Parameter(help="What that file must be.")] = None,
    plan: Annotated[
        str, Parameter(help="auto, quality, fast, fastest or small; none for the bare defaults.")
    ] = "auto",
    arch: Annotated[
        str | None, Parameter(help="shared: one ResNet50 under both stages; two: one each.")
    ] = None,
    steps: Annotated[int | None, Parameter(help="Batches in all.")] = None,
    batch: Annotated[int | None, Parameter(help="Crops in a batch.")] = None,
    seed: Annotated[int | None, Parameter(help="Same seed, same machine: same weights.")] = None,
    settings: Annotated[
        list[str] | None,
        Parameter(name="--set", help="Any setting, such as loss.region=dice; repeatable."),
    ] = None,
    show_settings: Annotated[
        bool, Parameter(name="--settings", negative="", help="List all settings and stop.")
    ] = False,
    split: Annotated[Path | None, Parameter(help="split.json; made and kept if left out.")] = None,
    held_out: Annotated[
        str | None, Parameter(help="Part of the split to measure on; val, test or fold-0.")
    ] = None,
    folds: Annotated[
        int | None,
        Parameter(help="Cross-validate with so many folds, then train on all frames."),
    ] = None,
    final: Annotated[
        bool, Parameter(help="After --folds, train on all frames and make a bundle.")
    ] = True,
    further: Annotated[
        list[Path] | None,
        Parameter(help="Another data set to learn from only, such as drawn frames; repeatable."),
    ] = None,
    bundle: Annotated[
        str,
        Parameter(help="int8, fp32, none; auto: int8, and fp32 where int8 changes too much."),
    ] = "auto",
    name: Annotated[str | None, Parameter(help="The bundle's name in results.")] = None,
    terms: Annotated[
        str, Parameter(help="Terms of the training data, for the model card.")
    ] = "not stated by whoever trained it",
    resume: Annotated[
        bool, Parameter(negative="", help="Go on with the run in --out after a stop or crash.")
    ] = False,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Show plan and data, train nothing.")
    ] = False,
    labels: LabelOptions | None = None,
    json: Json = False,
) -> int:
    """Train classifier and segmenter on a labelled data set; ends with a bundle and a report.

    The folder of the run holds settings, environment, hashes, curves (metrics.csv, TensorBoard),
    sample pictures, checkpoints, report.html and bundle/. Ctrl-C writes a checkpoint; --resume goes
    on. Several processes: torchrun --nproc-per-node 2 -m -- steelsight train ...

    Exit codes: 4 if the bundle differs too much from the trained network, 130 if stopped.

    Example: steelsight train drawn/ --start random --plan small --out run/
    """
    # Before torch is imported: its threads share the cores with those that make the crops, and
    # spinning while they wait they made a loaded machine thirty times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with training_installed("training"):
        from steelsight.training import session

    if show_settings:
        return _list_settings(json)
    if path is None:
        raise InputError("expected the PATH of a data set; try: steelsight train --help")
    if start is None:
        raise InputError(
            "expected --start with a file of pretrained weights, or --start random; see"
            " docs/training.md for the files that fit and where they come from"
        )
    short = {"steps": steps, "sampling.batch": batch, "seed": seed, "network.arch": arch}
    request = session.Request(
        out=out,
        start=start,
        start_sha256=start_sha256,
        profile=plan,
        settings=_chosen(settings or [], short),
        split=split,
        held_out=held_out,
        folds=folds,
        final=final,
        bundle=_bundle_precision(bundle),
        name=name or out.resolve().name,
        terms=terms,
        resume=resume,
        command=command_line(),
    )
    first = int(os.environ.get("RANK", "0")) == 0
    with loaded(path, labels, None) as label_set, ExitStack() as others:
        catalog, duplicates = scanned(label_set)
        more = {
            other.name: scanned(others.enter_context(loaded(other, labels, None)))[0]
            for other in further or []
        }
        prepared = session.prepare_session(request, catalog, duplicates, more)
        if first and dry_run and json:
            print_json(prepared.to_json())
        elif first and not json:
            for line in prepared.lines():
                console_for(json).print(line)
        if dry_run:
            return DONE
        with ctrl_c() as stop, _shown(first) as (show, tell):
            done = session.run_session(prepared, show=show, tell=tell, stop=stop)
    if not first:
        return DONE
    if done is None:
        print(f"Go on with: --resume --out {out}", file=sys.stderr)
        return INTERRUPTED
    return _told(done, json)


@contextmanager
def training_installed(what: str) -> Iterator[None]:
    """One line where the extra is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{what} needs {error.name}, which is not installed;"
            " run: pip install 'steelsight[train]'"
        ) from None


def _list_settings(json: bool) -> int:
    from steelsight.training.config import TrainConfig, setting_table

    rows = setting_table(TrainConfig())
    if json:
        print_json({name: {"default": value, "about": about} for name, value, about in rows})
    else:
        console_for(json).print(table([["setting", "default", ""], *map(list, rows)]))
    return DONE


def _chosen(given: list[str], short: Mapping[str, object]) -> dict[str, object]:
    """Settings by name, from ``--set NAME=VALUE`` and from options of their own."""
    chosen: dict[str, object] = {}
    for setting in given:
        name, sign, value = setting.partition("=")
        if not sign:
            raise InputError(f"expected --set NAME=VALUE, got {setting!r}")
        chosen[name.strip()] = value.strip()
    return chosen | {name: value for name, value in short.items() if value is not None}


def _bundle_precision(text: str) -> str | None:
    if text not in ("auto", "int8", "fp32", "none"):
        raise InputError(f"expected --bundle auto, int8, fp32 or none, got {text!r}")
    return None if text == "none" else text


def _told(done: "Done", json: bool) -> int:
    if json:
        print_json(done.to_json())
    else:
        for line in done.lines():
            console_for(json).print(line)
    return fail(done.refused, GATE) if done.refused else DONE


@contextmanager
def _shown(
    first: bool,
) -> "Iterator[tuple[Callable[[str, Moment], None], Callable[[str], None]]]":
    """Progress on standard error: a live panel on a terminal, a line per validation elsewhere.

    Yields what shows a moment of a part, and what prints a note.
    """
    if not first:
        yield lambda _name, _moment: None, lambda _line: None
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False)
    panel = _Panel()

    def tell(line: str) -> None:
        console.print(f"Note: {line}.", soft_wrap=True, markup=False)

    if not console.is_terminal:

        def print_figures(name: str, moment: "Moment") -> None:
            if panel.update(name, moment):
                console.print(panel.line(), soft_wrap=True, markup=False)

        yield print_figures, tell
        return

    def show(name: str, moment: "Moment") -> None:
        panel.update(name, moment)

    with Live(panel, console=console, refresh_per_second=4):
        yield show, tell


class _Panel:
    """What a run shows while it learns: losses, speed, time left, figures by type."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description:>10}", markup=False),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
        )
        self._task = self._bar.add_task("", total=None, note="")
        self._name = ""
        self._moment: Moment | None = None

    def update(self, name: str, moment: "Moment") -> bool:
        """Takes in where the run is; whether there are new figures."""
        before = self._moment.validation if self._moment else None
        if name != self._name:
            self._bar.reset(self._task, description=name, total=moment.steps)
            self._name = name
        self._moment = moment
        note = moment.doing or (
            f"loss {moment.losses['total']:.3f}  {moment.crops_per_second:.1f} crops/s"
        )
        self._bar.update(self._task, completed=moment.step, note=note)
        return moment.validation is not None and moment.validation is not before

    def line(self) -> str:
        """The latest figures on one line."""
        moment = self._moment
        assert moment is not None  # noqa: S101 - asked only after an update
        assert moment.validation is not None  # noqa: S101
        types = "  ".join(
            f"type {t.class_id}: {_figure(t.detection)}/{_figure(t.best_dice)}"
            for t in moment.validation.types
        )
        return (
            f"{self._name} step {moment.step}/{moment.steps}  loss {moment.losses['total']:.3f}"
            f"  AUROC {_figure(moment.validation.auroc)}  detection/Dice {types}"
        )

    def __rich__(self) -> "Group":
        from rich.console import Group

        moment = self._moment
        if moment is None or moment.validation is None:
            return Group(self._bar)
        parts = "  ".join(f"{name} {value:.3f}" for name, value in moment.losses.items())
        rows = [["type", "frames", "detection", "Dice"]]
        rows += [
            [t.class_id, str(t.frames), _figure(t.detection), _figure(t.best_dice)]
            for t in moment.validation.types
        ]
        figures = moment.validation
        said = (
            f"AUROC {_figure(figures.auroc)}  worst type's detection"
            f" {_figure(figures.worst_type_detection)}  mean Dice {_figure(figures.mean_dice)}"
        )
        return Group(self._bar, parts, said, table(rows))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
