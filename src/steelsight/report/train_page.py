"""A training run as one HTML file: what it reached, its curves, and what it was made from.

The page is made from the files of a run folder alone (``training/run_folder.py`` writes them): it
can be made again at any time, also of a run that is still going on or was killed. What is missing
(no held-out frames, no clean ones, no pictures yet) leaves its part out.

Figures are those of ``evaluation.metrics.Summary.to_json()``: in ``summary.json`` with intervals
and baselines, in ``validation.csv`` flat, those of a type as ``types.<id>.<figure>``.
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from steelsight.data.labels import LabelClass
from steelsight.defects import DefectClass
from steelsight.errors import InputError
from steelsight.report import svg
from steelsight.report.charts import line_svg
from steelsight.report.data_page import label_classes
from steelsight.report.overlays import LINE_PATTERNS, TRUTH_PATTERN
from steelsight.report.page import PictureBudget, css_colour, legend, render_page, write_page
from steelsight.report.plots import PALETTE

# What the folder holds. Its writer needs torch, which no page may load; a test compares the names.
CONFIG, ENVIRONMENT, DATA, SUMMARY = "config.json", "environment.json", "data.json", "summary.json"
METRICS, VALIDATION, TIMING = "metrics.csv", "validation.csv", "timing.csv"
SAMPLES, REPORT = "samples", "report.html"

PICTURE_BYTES = 6_000_000
"""All sample sheets together, before base64 (which adds a third)."""
SHEETS = 4
"""The first one, the last one, and some between."""

_LOSS_WORDS = {"region": "overlap"}
_NOT_LOSSES = {"step", "epoch", "lr", "gradient_norm", "total", "loss"}


class _Figure(NamedTuple):
    """One row of the figures: name in the summary, words, and the trivial answer beside it."""

    name: str
    words: str
    meaning: str
    trivial: str


_FIGURES = tuple(
    _Figure(*row)
    for row in (
        ("worst_type_detection", "Detection of the worst type",
         "mean recall at 0 to 10 % false alarms; what training guards", "chance"),
        ("auroc", "AUROC, faulty or not", "a faulty frame scores above a clean one", "chance"),
        ("average_precision", "Average precision, faulty or not",
         "precision over all recalls", "chance"),
        ("recall_at_2_percent", "Faulty frames found at 2 % false alarms", "recall", "chance"),
        ("recall_at_5_percent", "Faulty frames found at 5 % false alarms", "recall", "chance"),
        ("mean_dice", "Mean Dice",
         "on frames that hold the type, mean over types, best threshold each", "everything"),
        ("mean_dice_at_half", "Mean Dice at probability 0.5",
         "the same without choosing thresholds", "everything"),
        ("kaggle_dice", "Kaggle Dice", "all frames and types, empty on both sides = 1", "nothing"),
    )
)  # fmt: skip
_CHANCE = {
    "auroc": 0.5,
    "worst_type_detection": 0.05,
    "recall_at_2_percent": 0.02,
    "recall_at_5_percent": 0.05,
}
_TRIVIAL_WORDS = {"chance": "by chance", "everything": "mark all", "nothing": "mark nothing"}


def write_train_page(folder: Path) -> Path:
    """Writes ``report.html`` of a run.

    Args:
        folder: of one run, finished or not.

    Returns:
        The path of the page.

    Raises:
        InputError: no run there, a file of it is damaged, or the page cannot be written.
    """
    run = _Run.read(folder)
    budget = PictureBudget(PICTURE_BYTES)
    text = render_page(
        "train.html.j2",
        kind="run",
        title=_title(folder),
        run=run,
        guard=run.figures.get("worst_type_detection"),
        sentences=_sentences(run),
        charts=_run_charts(run),
        figures=_figure_rows(run.figures, run.baselines),
        type_rows=_type_rows(run),
        sheets=_sheets(folder, budget),
        legend=[*legend(run.classes), ("truth", line_svg("#ffffff", TRUTH_PATTERN, truth=True))],
        data_rows=_data_rows(run),
        settings=_setting_rows(run),
        all_settings=sorted(_flat(run.config)),
        machine=_machine_rows(run.environment),
        files=_files_beside(folder),
    )
    path = folder / REPORT
    write_page(path, text)
    return path


def write_cross_validation_page(folder: Path) -> Path:
    """Writes ``report.html`` above the folds of a cross-validation.

    Args:
        folder: holds ``fold-0``, ``fold-1``, ..., each a run; perhaps ``final`` (trained on all
            frames) and ``summary.json`` with the figures over all frames, out of fold.

    Returns:
        The path of the page.

    Raises:
        InputError: no fold there, a file is damaged, or the page cannot be written.
    """
    paths = sorted(
        (p for p in folder.glob("fold-*") if p.name[5:].isdecimal() and (p / CONFIG).is_file()),
        key=lambda p: int(p.name[5:]),
    )
    if not paths:
        raise InputError(
            f"{folder}: expected folders fold-0, fold-1, ... of training runs, found none; give the"
            " folder of a cross-validation"
        )
    folds = [_Run.read(path) for path in paths]
    overall = _read_json(folder / SUMMARY) if (folder / SUMMARY).is_file() else {}
    figures, baselines = _figures_in(overall), _mapping(overall.get("baselines"))
    first = folds[0]
    text = render_page(
        "train.html.j2",
        kind="folds",
        title=_title(folder),
        run=first,
        folds=folds,
        final=(folder / "final" / REPORT).is_file(),
        guard=figures.get("worst_type_detection"),
        sentences=_fold_sentences(folds, figures),
        charts=_fold_charts(folds),
        figures=_figure_rows(figures, baselines),
        fold_table=_fold_table(folds),
        fold_type_rows=_fold_type_rows(folds, figures),
        sheets=[],
        legend=[],
        data_rows=_data_rows(first),
        settings=_setting_rows(first),
        all_settings=sorted(_flat(first.config)),
        machine=_machine_rows(first.environment),
        files=_files_beside(folder),
    )
    path = folder / REPORT
    write_page(path, text)
    return path


# Reading -----------------------------------------------------------------------------------------

Column = NDArray[np.float64]


@dataclass(frozen=True)
class _Run:
    """All that a run folder tells; columns of its curves by name, NaN where a cell is empty."""

    name: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    data: Mapping[str, Any]
    summary: Mapping[str, Any]
    metrics: Mapping[str, Column]
    validation: Mapping[str, Column]
    timing: Mapping[str, Column]
    classes: tuple[DefectClass, ...]

    @classmethod
    def read(cls, folder: Path) -> "_Run":
        if not (folder / CONFIG).is_file():
            raise InputError(
                f"{folder}: expected the folder of a training run, found no {CONFIG} in it; check"
                " the path"
            )
        config, environment, data, summary = (
            _read_json(folder / name) if (folder / name).is_file() else {}
            for name in (CONFIG, ENVIRONMENT, DATA, SUMMARY)
        )
        classes = [_mapping(entry) for entry in _sequence(data.get("classes"))]
        return cls(
            folder.name,
            config,
            environment,
            data,
            summary,
            _read_columns(folder / METRICS),
            _read_columns(folder / VALIDATION),
            _read_columns(folder / TIMING),
            label_classes(
                [LabelClass(str(c.get("id")), str(c.get("name", c.get("id")))) for c in classes]
            ),
        )

    @property
    def steps(self) -> int:
        """Updates done."""
        return int(self.metrics["step"][-1]) if len(self.metrics.get("step", ())) else 0

    @property
    def steps_wanted(self) -> int:
        wanted = self.config.get("steps")
        return wanted if isinstance(wanted, int) else self.steps

    @property
    def finished(self) -> bool:
        return bool(self.summary) or self.steps >= self.steps_wanted

    @property
    def figures(self) -> Mapping[str, Any]:
        """The final figures; of a run without them, those of its best validation."""
        found = _figures_in(self.summary)
        return found or self.figures_at(self.best_step)

    @property
    def baselines(self) -> Mapping[str, Any]:
        return _mapping(self.summary.get("baselines"))

    @property
    def best_step(self) -> int | None:
        """Of the weights that are kept."""
        told = self.summary.get("best_step")
        if isinstance(told, int) and told > 0:
            return told
        looked = self.validation.get("step", np.zeros(0))
        by_type = [
            np.nan_to_num(column, nan=-1.0)
            for name, column in self.validation.items()
            if name.startswith("types.") and name.endswith(".detection")
        ] or [np.full(len(looked), -1.0)]
        nothing = np.full(len(looked), -1.0)
        worst = np.nan_to_num(self.validation.get("worst_type_detection", nothing), nan=-1.0)
        # As the run itself chose them: the first of the best ones.
        best = max(zip(worst, np.mean(by_type, axis=0), -looked, strict=True), default=None)
        return None if best is None else -int(best[2])

    def figures_at(self, step: int | None) -> Mapping[str, Any]:
        """A row of ``validation.csv`` in the form of the summary."""
        rows = np.flatnonzero(self.validation.get("step", np.zeros(0)) == (step or 0))
        figures: dict[str, Any] = {"types": {}}
        if not len(rows):
            return {}
        for name, column in self.validation.items():
            value = float(column[rows[-1]])
            table, parts = figures, name.split(".")
            for part in parts[:-1]:
                table = table.setdefault(part, {})
            table[parts[-1]] = value if math.isfinite(value) else None
        return figures

    @property
    def started(self) -> str:
        return str(self.environment.get("started", ""))

    @property
    def resumed(self) -> list[str]:
        """When it went on after it had been stopped."""
        again = _sequence(self.environment.get("resumed"))
        return [str(_mapping(entry).get("started", "?")) for entry in again]

    @property
    def command(self) -> str:
        return str(self.environment.get("command", ""))

    @property
    def notes(self) -> list[str]:
        """What was left out of the data, and why."""
        return [str(note) for note in _sequence(self.data.get("notes"))]

    @property
    def worst_type(self) -> str | None:
        """Id of the type with the least detection."""
        known = {
            class_id: value
            for class_id, of_type in _mapping(self.figures.get("types")).items()
            if (value := _number(_mapping(of_type).get("detection"))) is not None
        }
        return min(known, key=known.__getitem__) if known else None

    @property
    def worst_name(self) -> str | None:
        return next((c.name for c in self.classes if c.id == self.worst_type), None)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check it") from error
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got something else; restore the file")
    return value


def _read_columns(path: Path) -> dict[str, Column]:
    """Columns of a curve file; a last line that is not whole is left out."""
    if not path.is_file():
        return {}
    try:
        content = path.read_bytes()
        lines = content[: content.rfind(b"\n") + 1].decode().splitlines()
        names, *rows = [row for row in csv.reader(lines) if row] or [["step"]]
        if names[0] != "step":
            raise ValueError("its first column is not step")
        numbers = np.array(
            [[float(cell) if cell else math.nan for cell in row] for row in rows], np.float64
        ).reshape(len(rows), len(names))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check it") from error
    except (ValueError, csv.Error) as error:
        raise InputError(
            f"{path}: expected a table of numbers, got another ({error}); restore the file, or"
            " resume the run, which mends its end"
        ) from error
    return {name: numbers[:, index] for index, name in enumerate(names)}


def _figures_in(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The figures, wherever in the summary they stand."""
    if isinstance(summary.get("types"), dict):
        return summary
    return next(
        (v for v in summary.values() if isinstance(v, dict) and isinstance(v.get("types"), dict)),
        {},
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    """A finite number, or nothing."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else None


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, _told(value)


def _told(value: Any) -> str:
    """A setting as one writes it."""
    if isinstance(value, list):
        return " x ".join(map(_told, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


# Words -------------------------------------------------------------------------------------------


def _title(folder: Path) -> str:
    return folder.resolve().name or "Training run"


def _sentences(run: _Run) -> tuple[str, str]:
    """What the run reached, and from what."""
    figures, worst = run.figures, run.worst_name
    guard = _number(figures.get("worst_type_detection"))
    dice, auroc = _number(figures.get("mean_dice")), _number(figures.get("auroc"))
    parts = []
    if guard is not None:
        who = f"The hardest type, {worst}," if worst else "The hardest type"
        parts.append(f"{who} is detected with {guard:.2f} (1 would be perfect, 0.05 is chance)")
    if auroc is not None:
        parts.append(f"faulty frames are told from clean ones with an AUROC of {auroc:.3f}")
    if dice is not None:
        parts.append(f"masks overlap those people drew with a mean Dice of {dice:.2f}")
    said = _joined(parts) or "No figures: nothing was held out, or nothing has been measured yet"
    said = said[0].upper() + said[1:]
    done = f"{run.steps:,} of {run.steps_wanted:,} steps"
    if run.finished and run.steps < run.steps_wanted:
        done += ", ended early because validations had stopped getting better"
    second = f"Trained for {done}"
    frames = _number(_mapping(run.data.get("train")).get("frames"))
    held = _number(_mapping(run.data.get("held_out")).get("frames"))
    if frames is not None:
        second += f" on {frames:,.0f} frames"
    if held:
        second += f"; measured on {held:,.0f} frames it never saw"
    if run.best_step is not None:
        second += f". The weights that are kept are those of step {run.best_step:,}"
    return f"{said}.", f"{second}."


def _fold_sentences(folds: Sequence[_Run], figures: Mapping[str, Any]) -> tuple[str, str]:
    words = (
        ("worst_type_detection", "detection of the hardest type", 2),
        ("auroc", "AUROC of faulty frames", 3),
        ("mean_dice", "mean Dice", 2),
    )
    parts = []
    for name, said, digits in words:
        values = _known(run.figures.get(name) for run in folds)
        if values:
            parts.append(f"{said} {_mean_spread(values, digits)}")
    first = f"Over {len(folds)} folds: {_joined(parts)}" if parts else f"{len(folds)} folds"
    second = "Mean of the folds ± their standard deviation"
    if figures:
        second += (
            "; further down, all frames together, each judged by the network that had not seen it"
        )
    unfinished = [run.name for run in folds if not run.finished]
    if unfinished:
        second += f". Not finished: {', '.join(unfinished)}"
    return f"{first}.", f"{second}."


def _joined(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])}, and {parts[-1]}" if len(parts) > 1 else "".join(parts)


def _known(values: Iterable[Any]) -> list[float]:
    return [number for value in values if (number := _number(value)) is not None]


def _mean_spread(values: Sequence[float], digits: int = 3) -> str:
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {float(np.std(values, ddof=1)):.{digits}f}"


def _figure(value: Any, digits: int = 3) -> str:
    number = _number(value)
    return "–" if number is None else f"{number:.{digits}f}"


def _count(value: Any) -> str:
    number = _number(value)
    return "–" if number is None else f"{number:,.0f}"


# Tables ------------------------------------------------------------------------------------------


def _figure_rows(
    figures: Mapping[str, Any], baselines: Mapping[str, Any]
) -> list[tuple[str, str, str, str, tuple[str, str]]]:
    """Words, meaning, value, interval and the trivial answer, of what was measured."""
    rows = []
    for name, words, meaning, trivial in _FIGURES:
        if _number(figures.get(name)) is None:
            continue
        interval = _known(_sequence(figures.get(f"{name}_interval")))
        told = f"{interval[0]:.3f} to {interval[1]:.3f}" if len(interval) == 2 else ""
        value = _trivial(name, trivial, figures, baselines)
        against = ("", "") if value is None else (f"{value:.3f}", _TRIVIAL_WORDS[trivial])
        rows.append((words, meaning, _figure(figures[name]), told, against))
    return rows


def _trivial(
    name: str, kind: str, figures: Mapping[str, Any], baselines: Mapping[str, Any]
) -> float | None:
    """What one gets without looking; chance needs no measurement."""
    told = _mapping(baselines.get(kind))
    if kind == "everything":
        dice = _known(_mapping(told.get("dice")).values())
        return float(np.mean(dice)) if dice else None
    if kind == "nothing" or name in told:
        return _number(told.get(name))
    if name == "average_precision":
        faulty, frames = _number(figures.get("faulty_frames")), _number(figures.get("frames"))
        return None if faulty is None or not frames else faulty / frames
    return _CHANCE.get(name)


def _type_rows(run: _Run) -> list[dict[str, Any]]:
    """Final figures of each type, the types in channel order."""
    types = _mapping(run.figures.get("types"))
    everything = _mapping(_mapping(run.baselines.get("everything")).get("dice"))
    rows = []
    for c in run.classes:
        of_type = _mapping(types.get(c.id))
        if not of_type:
            continue
        rows.append(
            {
                "name": c.name,
                "colour": css_colour(c),
                "frames": _count(of_type.get("frames")),
                "cells": [
                    _figure(of_type.get(name))
                    for name in (
                        "detection",
                        "recall_at_2_percent",
                        "recall_at_5_percent",
                        "auroc",
                        "best_dice",
                        "dice_at_half",
                    )
                ],
                "everything": _figure(everything.get(c.id)),
                "worst": c.id == run.worst_type,
            }
        )
    return rows


def _fold_table(folds: Sequence[_Run]) -> dict[str, Any]:
    """A column for each fold, then mean and standard deviation; a row for each figure."""
    held = [_mapping(run.data.get("held_out")).get("frames") for run in folds]
    rows = [
        ("Frames held out", [_count(frames) for frames in held], ""),
        ("Step that was kept", [_count(run.best_step) for run in folds], ""),
    ]
    for row in _FIGURES:
        values = [run.figures.get(row.name) for run in folds]
        if known := _known(values):
            rows.append((row.words, [_figure(value) for value in values], _mean_spread(known)))
    return {"folds": [(run.name, f"{run.name}/{REPORT}") for run in folds], "rows": rows}


def _fold_type_rows(folds: Sequence[_Run], figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Detection and Dice of each type over the folds."""
    overall = _mapping(figures.get("types"))
    rows = []
    for c in folds[0].classes:
        of_folds = [_mapping(_mapping(run.figures.get("types")).get(c.id)) for run in folds]
        cells = []
        for name in ("detection", "best_dice"):
            values = _known(of.get(name) for of in of_folds)
            cells.append(_mean_spread(values) if values else "–")
            cells.append(_figure(_mapping(overall.get(c.id)).get(name)))
        rows.append({"name": c.name, "colour": css_colour(c), "cells": cells})
    return rows


def _data_rows(run: _Run) -> list[dict[str, Any]]:
    """Frames per part: in all, clean, faulty, per type."""
    words = {"train": "Learned from", "held_out": "Held out"}
    rows = []
    for key, said in words.items():
        part = _mapping(run.data.get(key))
        if not part:
            continue
        masked = _mapping(part.get("masked_by_type"))
        counts = [part.get("frames"), part.get("clean"), part.get("faulty")]
        counts += [masked.get(c.id) for c in run.classes]
        rows.append({"name": said, "cells": [_count(count) for count in counts]})
    return rows


def _setting_rows(run: _Run) -> list[tuple[str, str, str]]:
    """Settings that are not the defaults: name, value, default."""
    return [
        (name, _told(_mapping(pair).get("value")), _told(_mapping(pair).get("default")))
        for name, pair in _mapping(run.environment.get("settings")).items()
    ]


def _machine_rows(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    machine, code = _mapping(environment.get("machine")), _mapping(environment.get("code"))
    inputs, versions = _mapping(environment.get("inputs")), _mapping(environment.get("versions"))
    rows = [
        ("Started", environment.get("started")),
        ("Processor", machine.get("processor")),
        ("Threads", machine.get("threads")),
        ("GPU", f"{machine['gpu']}, CUDA {machine.get('cuda')}" if machine.get("gpu") else None),
        ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())),
        (
            "Code",
            f"commit {code['commit']}{', with changes' if code.get('changed') else ''}"
            if code.get("commit")
            else None,
        ),
        ("Start weights", inputs.get("start")),
        ("Start sha256", inputs.get("start_sha256")),
        ("Data sha256", inputs.get("data_sha256")),
        ("Split sha256", inputs.get("split_sha256")),
    ]  # fmt: skip
    return [(name, str(value)) for name, value in rows if value]


def _files_beside(folder: Path) -> dict[str, str]:
    words = {
        "settings": CONFIG,
        "environment": ENVIRONMENT,
        "data": DATA,
        "figures": SUMMARY,
        "losses": METRICS,
        "validations": VALIDATION,
        "split": "split.json",
        "predictions": "predictions.jsonl",
        "bundle": "bundle",
    }
    return {said: name for said, name in words.items() if (folder / name).exists()}


# Pictures ----------------------------------------------------------------------------------------


def _sheets(folder: Path, budget: PictureBudget) -> list[dict[str, Any]]:
    """The last sheet, the first, and some between; the last is the one that must fit."""
    paths = sorted(folder.glob(f"{SAMPLES}/step-*.jpg"))
    if len(paths) > SHEETS:
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, SHEETS).astype(int)]
    sheets = []
    for path in reversed(paths):
        try:
            jpeg = path.read_bytes()
        except OSError:
            continue  # being replaced
        pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE) if jpeg else None
        uri = None if pixels is None else budget.embedded(jpeg)
        if pixels is None or uri is None:
            continue
        number = path.stem.removeprefix("step-").lstrip("0") or "0"
        sheets.append({"step": number, "uri": uri, "size_wh": pixels.shape[::-1]})
    return sheets


# Charts ------------------------------------------------------------------------------------------

MOST_POINTS = 140
"""Of a line; beyond, each point stands for several steps."""
_PLOT_PX, _HEAD_PX, _AXIS_PX, _ROW_PX = 190, 12, 24, 17


@dataclass(frozen=True, slots=True)
class Line:
    """One curve of a chart: ``values`` over ``steps``, in the order of the steps.

    Attributes:
        band: also show the range of the values that a point stands for.
    """

    label: str
    steps: Column
    values: Column
    colour: str
    pattern: Sequence[int] = (1, 0)
    band: bool = False


class _Thinned(NamedTuple):
    """A line of few points: each one's last step, and least, median and greatest value."""

    line: Line
    at: Column
    low: Column
    middle: Column
    high: Column


def lines_html(
    lines: Sequence[Line],
    *,
    label: str,
    top: float | None = None,
    marked: tuple[int, str] | None = None,
    steps: int | None = None,
) -> str:
    """Curves over the steps, each with its name and last value beside its end.

    Long curves are thinned: a point is the median of the steps it stands for, so that single
    batches do not hide the way. The scale is linear, from 0 to a round number above the highest
    point of a line; a band that reaches higher is cut there.

    Args:
        lines: from the most to the least important; those without a finite value are left out.
        label: what the chart shows, for those who do not see it.
        top: end of the scale, if it is known, such as 1.
        marked: a step to mark, and what to write there.
        steps: end of the axis; the last step of the lines by default.

    Returns:
        HTML: the scale, the plot, and the names.
    """
    thinned = [entry for line in lines if len((entry := _thinned(line)).at)]
    if not thinned:
        return ""
    last_step = max([steps or 1, *(int(entry.at[-1]) for entry in thinned)])
    end = top or _nice_top(max(float(entry.middle.max()) for entry in thinned))
    bottom = _HEAD_PX + _PLOT_PX

    def y(values: Any) -> Any:
        return bottom - np.clip(values, 0, end) * (_PLOT_PX / end)

    grid = [
        f'<line class="grid" x1="0" x2="100%" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        for v in _ticks(end)
    ]
    curves = [_curve(entry, 1000 / last_step, y) for entry in reversed(thinned)]
    plot = [
        *grid,
        f'<svg x="0" y="0" width="100%" height="{bottom}" viewBox="0 0 1000 {bottom}"'
        f' preserveAspectRatio="none">{"".join(curves)}</svg>',
        svg.baseline(bottom),
        svg.text("0", bottom + 17, "step 0", "tick"),
        svg.text("50%", bottom + 17, f"{last_step // 2:,}", "tick", "middle"),
        svg.text("100%", bottom + 17, f"{last_step:,}", "tick", "end"),
    ]
    if marked is not None:
        place = 100 * marked[0] / last_step
        anchor, shift = ("end", -6) if place > 50 else ("start", 6)
        plot.append(svg.rule(place, _HEAD_PX, _PLOT_PX, "threshold"))
        plot.append(svg.text(svg.percent(place), bottom - 8, marked[1], "mark", anchor, shift))
    scale = [
        svg.text("100%", round(float(y(v))) + 4, _short(v), "tick", "end", -6)
        for v in (0.0, *_ticks(end))
    ]
    names = _names_beside(
        [(entry.line, float(y(entry.middle[-1])), float(entry.middle[-1])) for entry in thinned]
    )
    height = max(bottom + _AXIS_PX, _ROW_PX * (len(thinned) + 1))
    charts = (svg.chart(height, "", scale), svg.chart(height, label, plot),
              svg.chart(height, "", names))  # fmt: skip
    return f'<div class="lines">{"".join(charts)}</div>'


def _curve(entry: _Thinned, per_step: float, y: Callable[[Any], Any]) -> str:
    """The line, and under it the range of its values."""
    line, at, low, middle, high = entry
    x = at * per_step
    drawn = ""
    if line.band and len(at) > 1:
        around = [*zip(x, y(high), strict=True), *zip(x[::-1], y(low[::-1]), strict=True)]
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in around)
        drawn = f'<polygon class="range" fill="{escape(line.colour)}" points="{points}"/>'
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y(middle), strict=True))
    if len(at) == 1:  # a point alone would not be drawn
        points += f" {x[0] + 6:.1f},{y(middle[0]):.1f}"
    dashes = ""
    if any(line.pattern[1::2]):
        dashes = f' stroke-dasharray="{" ".join(map(str, line.pattern))}"'
    return (
        f'{drawn}<polyline class="curve" stroke="{escape(line.colour)}"{dashes} points="{points}"/>'
    )


def _names_beside(ends: Sequence[tuple[Line, float, float]]) -> list[str]:
    """Name and last value of each line, as near to its end as its neighbours allow."""
    ordered = sorted(ends, key=lambda end: end[1])
    places: list[float] = []
    for _, wanted, _ in ordered:
        places.append(max(wanted, places[-1] + _ROW_PX if places else _ROW_PX / 2))
    lowest = max(_HEAD_PX + _PLOT_PX + _AXIS_PX - 8, _ROW_PX * (len(places) + 0.5))
    for index in reversed(range(len(places))):  # pushed beyond the bottom: back up
        places[index] = min(places[index], lowest)
        lowest = places[index] - _ROW_PX
    parts = []
    for (line, wanted, value), place in zip(ordered, places, strict=True):
        lead = f'd="M0 {wanted:.1f}L10 {place:.1f}"'
        parts.append(f'<path class="curve" stroke="{escape(line.colour)}" {lead}/>')
        name = line.label if len(line.label) <= 13 else f"{line.label[:12]}…"
        parts.append(svg.text("14", round(place + 4), f"{name} {_short(value)}", "caption"))
    return parts


def _thinned(line: Line) -> _Thinned:
    """At most ``MOST_POINTS`` groups of neighbouring steps; what is not finite is left out."""
    known = np.isfinite(line.values)
    at, values = line.steps[known], line.values[known]
    groups = np.array_split(np.arange(len(at)), min(len(at), MOST_POINTS)) if len(at) else []
    low, middle, high = (
        np.array([of(values[group]) for group in groups], np.float64)
        for of in (np.min, np.median, np.max)
    )
    return _Thinned(line, np.array([at[group[-1]] for group in groups]), low, middle, high)


def _nice_top(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 4, 5, 6, 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(s * power for s in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if s * power >= value)


def _ticks(end: float) -> list[float]:
    """Two to four round numbers above 0, the end among them."""
    lead = round(end / 10.0 ** math.floor(math.log10(end)), 6)
    parts = {1: 4, 1.5: 3, 2: 4, 3: 3, 4: 4, 5: 5, 6: 3, 8: 4}.get(lead, 4)
    return [float(f"{end * i / parts:.6g}") for i in range(1, parts + 1)]


def _short(value: float) -> str:
    """Three digits; 0.0004 as 4e-4, for there is little room."""
    if value == 0 or 0.001 <= abs(value) < 10_000:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _run_charts(run: _Run) -> dict[str, str]:
    """The charts of one run, by name; empty where there is nothing to draw."""
    metrics, validation, timing = run.metrics, run.validation, run.timing
    ink, blue = "currentColor", "var(--link)"
    parts = [name for name in metrics if name not in _NOT_LOSSES]
    learning = {
        "loss": ("Loss", _lines(metrics, {"total": "loss", "loss": "loss"}, ink, band=True)),
        "parts": (
            "Parts of the loss",
            [
                Line(_LOSS_WORDS.get(name, name), metrics["step"], metrics[name],
                     PALETTE[index % len(PALETTE)])
                for index, name in enumerate(parts)
            ],
        ),
        "lr": ("Learning rate", _lines(metrics, {"lr": "rate"}, blue)),
        "gradient": (
            "Norm of the gradient",
            _lines(metrics, {"gradient_norm": "norm"}, blue, band=True),
        ),
        "speed": ("Crops a second", _lines(timing, {"crops_per_s": "crops/s"}, blue)),
    }  # fmt: skip
    measured = {
        "guard": (
            "Detection of the worst type",
            _lines(validation, {"worst_type_detection": "worst"}, ink),
        ),
        "detection": ("Detection of each type", _type_lines(run, "detection")),
        "dice": ("Dice of each type", _type_lines(run, "best_dice")),
    }
    best, wanted = run.best_step, run.steps_wanted
    marked = None if best is None else (best, f"kept: step {best:,}")
    return {
        name: lines_html(lines, label=f"{said} over the steps", steps=wanted)
        for name, (said, lines) in learning.items()
    } | {
        name: lines_html(lines, label=f"{said} over the steps", top=1, marked=marked, steps=wanted)
        for name, (said, lines) in measured.items()
    }


def _lines(
    columns: Mapping[str, Column], words: Mapping[str, str], colour: str, *, band: bool = False
) -> list[Line]:
    """Those of the columns that are there."""
    return [
        Line(said, columns["step"], columns[name], colour, band=band)
        for name, said in words.items()
        if name in columns
    ]


def _type_lines(run: _Run, figure: str) -> list[Line]:
    looked = run.validation.get("step", np.zeros(0))
    return [
        Line(c.name, looked, column, css_colour(c), LINE_PATTERNS[index % len(LINE_PATTERNS)])
        for index, c in enumerate(run.classes)
        if (column := run.validation.get(f"types.{c.id}.{figure}")) is not None
    ]


def _fold_charts(folds: Sequence[_Run]) -> dict[str, str]:
    """One line for each fold."""
    wanted = max(run.steps_wanted for run in folds)

    def of_folds(table: str, names: Sequence[str]) -> list[Line]:
        lines = []
        for index, run in enumerate(folds):
            columns: Mapping[str, Column] = getattr(run, table)
            column = next((columns[name] for name in names if name in columns), None)
            if column is not None:
                colour = PALETTE[index % len(PALETTE)]
                pattern = LINE_PATTERNS[index % len(LINE_PATTERNS)]
                lines.append(Line(run.name, columns["step"], column, colour, pattern))
        return lines

    return {
        "loss": lines_html(
            of_folds("metrics", ("total", "loss")), label="Loss of each fold", steps=wanted
        ),
        "guard": lines_html(
            of_folds("validation", ("worst_type_detection",)),
            label="Detection of the worst type in each fold",
            top=1.0,
            steps=wanted,
        ),
        "detection": _spread_svg(folds, "detection", "Detection of each type in each fold"),
        "dice": _spread_svg(folds, "best_dice", "Dice of each type in each fold"),
    }


def _spread_svg(folds: Sequence[_Run], figure: str, label: str) -> str:
    """A row for each type from 0 to 1: a dot for each fold, a line at their mean."""
    parts: list[str] = []
    top = 0
    for c in folds[0].classes:
        values = _known(
            _mapping(_mapping(run.figures.get("types")).get(c.id)).get(figure) for run in folds
        )
        if not values:
            continue
        parts.append(svg.text("0", top + 14, c.name, "caption"))
        parts.append(svg.text("100%", top + 14, _mean_spread(values), "tick", "end"))
        parts.append(f'<rect class="lane" x="0" y="{top + 20}" width="100%" height="18" rx="3"/>')
        parts.append(svg.rule(100 * float(np.mean(values)), top + 20, 18, "middle"))
        parts += [
            f'<circle class="dot" cx="{svg.percent(100 * v)}" cy="{top + 29}" r="5"'
            f' fill="{escape(css_colour(c))}"/>'
            for v in values
        ]
        top += 48
    if not parts:
        return ""
    for value, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        parts.append(svg.text(svg.percent(100 * value), top + 10, f"{value:g}", "tick", anchor))
    return svg.chart(top + 16, label, parts)
