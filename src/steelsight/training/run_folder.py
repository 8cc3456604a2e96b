"""What a training run leaves: settings, environment, curves, pictures, checkpoints.

Nothing else writes into the folder while a run holds its lock. Steps are counted as updates that
are done: the first row of ``metrics.csv`` has step 1, and a checkpoint of step 50 belongs to the
rows up to 50. On resume, rows beyond the checkpoint are cut, and the same rows come again, so that
the curves of a resumed run are those of an uninterrupted one, byte for byte; what depends on the
clock stands apart, in ``timing.csv``.

Shapes: ``H`` rows, ``W`` columns, ``K`` types in channel order.
"""

import contextlib
import csv
import fcntl
import io
import json
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steelsight import __version__
from steelsight.data.labels import LabelClass, shown
from steelsight.defects import Defect, DefectClass
from steelsight.errors import InputError, first_names
from steelsight.masks import regions
from steelsight.report.data_page import is_wide, label_classes
from steelsight.report.overlays import draw_overlay, encode_jpeg
from steelsight.report.svg import visible
from steelsight.training.checkpoint import (
    PARTIAL,
    remove_partials,
    save_checkpoint,
)
from steelsight.training.config import TrainConfig, parse_config

CONFIG, ENVIRONMENT, DATA, SUMMARY = "config.json", "environment.json", "data.json", "summary.json"
METRICS, VALIDATION, TIMING = "metrics.csv", "validation.csv", "timing.csv"
LAST, BEST = "last.safetensors", "best.safetensors"
SAMPLES, TENSORBOARD, LOCK = "samples", "tensorboard", ".lock"

PACKAGES = (
    "torch", "lightning-fabric", "numpy", "opencv-python-headless", "safetensors", "simplejpeg"
)  # fmt: skip

FREE_SETTINGS = frozenset({"cache_mb", "checkpoint_every", "device", "pictures_every", "threads"})
"""A run may be resumed with others: they say how it is computed, not what."""

SHEET_WIDTH_PX = 1280
SHOWN_FROM = 0.5
"""Mask probability from which on a pixel is outlined in sample pictures."""

_GIT_SECONDS = 5.0
_TITLE_PX = 26
_BLACK, _WHITE = (16, 18, 22), (236, 238, 240)


@dataclass(frozen=True, slots=True)
class RunInputs:
    """What a run was started with, beside its settings.

    Attributes:
        command: the exact command line.
        data: as ``TrainingData.to_json()`` gives it; ``classes``, ``data_sha256`` and
            ``split_sha256`` must be there.
        start: the start weights in words, such as ``imagenet`` or a path.
        start_sha256: of the start's file; ``None`` for random weights.
    """

    command: str
    data: Mapping[str, Any]
    start: str
    start_sha256: str | None

    @property
    def hashes(self) -> dict[str, str | None]:
        """What must be equal for a run to go on."""
        return {
            "data_sha256": self.data["data_sha256"],
            "split_sha256": self.data["split_sha256"],
            "start_sha256": self.start_sha256,
        }


@dataclass(frozen=True, slots=True)
class Sample:
    """One frame for the sheet of sample pictures.

    Attributes:
        image: its name.
        grey_hw: the frame, uint8.
        types_hw: true masks, bit k set where type k is.
        probabilities_khw: mask probabilities 0..1.
        faulty_probability: of the whole frame.
    """

    image: str
    grey_hw: NDArray[np.uint8]
    types_hw: NDArray[np.unsignedinteger[Any]]
    probabilities_khw: NDArray[np.float32]
    faulty_probability: float


class RunFolder:
    """A training run's folder, held by this process until :meth:`close`.

    Made by :meth:`create` or :meth:`open_for_resume`; of several processes only the first one
    (rank 0) holds it.

    Attributes:
        path: the folder.
        config: the settings of the run.
        notes: what a resumed run does otherwise than before, one line each, for people.
    """

    def __init__(self, path: Path, config: TrainConfig, lock: IO[str], data: Mapping[str, Any]):
        self.path = path
        self.config = config
        self.notes: tuple[str, ...] = ()
        self._lock = lock
        self._classes = _drawn_classes(data)
        self._tables = {name: _Table(path / name) for name in (METRICS, VALIDATION, TIMING)}
        self._events = _Events(path / TENSORBOARD)

    # Opening -------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, config: TrainConfig, inputs: RunInputs) -> Self:
        """Begins a run in a new or empty folder.

        Raises:
            InputError: the folder holds a run or something else, another process has it, or it
                cannot be written.
        """
        with _writing(path):
            if path.exists() and not path.is_dir():
                raise InputError(f"{path}: expected a folder for the run, got a file; give another")
            if (path / CONFIG).exists():
                raise InputError(
                    f"{path}: expected a new or empty folder, it holds a run; add --resume to go on"
                    " with it, or give another folder"
                )
            others = _strangers(path)
            if others:
                raise InputError(
                    f"{path}: expected a new or empty folder, it holds {first_names(others, 3)};"
                    " give another folder"
                )
            path.mkdir(parents=True, exist_ok=True)
            lock = _locked(path)
            try:
                if (path / CONFIG).exists():  # by a process that was faster
                    raise InputError(f"{path}: another process began a run there; give another")
                _write_json(path / DATA, inputs.data)
                environment = _environment(inputs) | {"settings": differing_settings(config)}
                _write_json(path / ENVIRONMENT, environment | {"resumed": []})
                # The last one: what lies there without it has never begun.
                _write_json(path / CONFIG, config.model_dump(mode="json"))
                return cls(path, config, lock, inputs.data)
            except BaseException:
                lock.close()
                raise

    @classmethod
    def open_for_resume(
        cls, path: Path, inputs: RunInputs, config: TrainConfig | None = None
    ) -> Self:
        """Takes up a run that was stopped; call :meth:`rewind` with the checkpoint's step next.

        A folder whose run was killed before it had written its settings begins anew.

        Args:
            path: the folder.
            inputs: data, split and start must be those of the run.
            config: settings as given now, if any; only ``FREE_SETTINGS`` may differ.

        Raises:
            InputError: no run there, another process has it, or settings, data or start differ;
                names them.
        """
        if not (path / CONFIG).exists():
            if config is not None and (path / LOCK).exists() and not _strangers(path):
                return cls.create(path, config, inputs)
            raise InputError(
                f"{path}: expected a training run to go on with, found no {CONFIG}; check the path,"
                " or start without --resume"
            )
        with _writing(path):
            lock = _locked(path)
            try:
                before = read_config(path)
                environment = _read_json(path / ENVIRONMENT)
                now = _environment(inputs)
                _refuse_other_inputs(path, environment, inputs)
                config = _merged(path, before, config)
                folder = cls(path, config, lock, _read_json(path / DATA))
                folder.notes = _changes(environment, now, before, config)
                resumed = {
                    key: now[key] for key in ("started", "command", "machine", "versions", "code")
                }
                environment["resumed"] = [*environment.get("resumed", []), resumed]
                environment["settings"] = differing_settings(config)
                _write_json(path / ENVIRONMENT, environment)
                if config != before:
                    _write_json(path / CONFIG, config.model_dump(mode="json"))
                remove_partials(path)
                remove_partials(path / SAMPLES)
                return folder
            except BaseException:
                lock.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Flushes everything and lets go of the folder."""
        try:
            for table in self._tables.values():
                table.close()
            self._events.close()
        finally:
            self._lock.close()

    # Checkpoints ---------------------------------------------------------------------------------

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.path / LAST

    @property
    def best(self) -> Path:
        """The weights with the best guard metric."""
        return self.path / BEST

    def save(self, path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Writes a checkpoint (:attr:`last` or :attr:`best`); the curves reach the disk before it.

        Raises:
            InputError: see :func:`~steelsight.training.checkpoint.save_checkpoint`.
        """
        for table in self._tables.values():
            table.to_disk()
        save_checkpoint(path, tensors, state)

    # Curves --------------------------------------------------------------------------------------

    def rewind(self, step: int) -> None:
        """Forgets what was written after ``step`` updates; 0 forgets all.

        Raises:
            InputError: a curve file is damaged or cannot be written.
        """
        self._events.close()
        for table in self._tables.values():
            table.cut(step)
        with _writing(self.path):
            for picture in sorted((self.path / SAMPLES).glob("step-*.jpg")):
                number = picture.stem.removeprefix("step-")
                if not number.isdecimal() or int(number) > step:
                    picture.unlink()
        self._events.purge(step + 1)

    def log_step(
        self,
        step: int,
        values: Mapping[str, float | int],
        timing: Mapping[str, float | int] | None = None,
    ) -> None:
        """Adds a row to ``metrics.csv`` and one to ``timing.csv``.

        Args:
            step: updates done, from 1.
            values: such as ``epoch``, ``lr``, ``loss``, ``pixels``, ``gradient_norm``; the same
                names in every row. Numbers are written so that they read back exactly.
            timing: such as ``seconds`` and ``crops_per_s``.
        """
        self._log(METRICS, "train", step, values)
        if timing:
            self._log(TIMING, "timing", step, timing)

    def log_validation(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Adds a row to ``validation.csv``.

        Args:
            step: updates done.
            values: figures by name, those of a type as ``dice.3``, with the type's id; see
                :func:`flat_figures`.
        """
        self._log(VALIDATION, "validation", step, values)

    def _log(
        self, name: str, tag: str, step: int, values: Mapping[str, float | int | None]
    ) -> None:
        self._tables[name].append(step, values)
        self._events.append(
            step, {f"{tag}/{key.replace('.', '/')}": v for key, v in values.items()}
        )

    # At times, and at the end --------------------------------------------------------------------

    def write_pictures(self, step: int, samples: Sequence[Sample]) -> Path:
        """Draws ``samples/step-000100.jpg``: frames with true and predicted outlines.

        Raises:
            InputError: the file cannot be written.
        """
        path = self.path / SAMPLES / f"step-{step:06d}.jpg"
        jpeg = encode_jpeg(_sheet(samples, self._classes), 85)
        with _writing(path):
            path.parent.mkdir(exist_ok=True)
            _replace(path, jpeg)
        return path

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes ``summary.json``: the final figures; NaN and infinity become ``null``."""
        with _writing(self.path):
            _write_json(self.path / SUMMARY, _finite(summary))


def read_config(path: Path) -> TrainConfig:
    """The settings of a run folder.

    Raises:
        InputError: there are none, or they are not those of this version.
    """
    with _writing(path):
        return parse_config(_read_json(path / CONFIG))


def flat_figures(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float | int | None]:
    """Nested figures as one row: ``{"dice": {"3": 0.5}}`` becomes ``{"dice.3": 0.5}``.

    Texts and lists are left out.
    """
    flat: dict[str, float | int | None] = {}
    for key, value in figures.items():
        if isinstance(value, Mapping):
            flat |= flat_figures(value, f"{prefix}{key}.")
        elif value is None or isinstance(value, bool | int | float):
            flat[prefix + key] = value
    return flat


# Curve files -------------------------------------------------------------------------------------


class _Table:
    """A CSV file that grows by whole lines; the first column is the step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._columns: list[str] | None = None

    def append(self, step: int, values: Mapping[str, float | int | None]) -> None:
        with _writing(self.path):
            if self._file is None:
                self._columns = self._header()
                self._file = self.path.open("ab", buffering=0)
            if self._columns is None:
                self._columns = ["step", *values]
                self._file.write(_line(self._columns))
            if self._columns != ["step", *values]:
                raise ValueError(f"{self.path.name} has columns {self._columns}, got {[*values]}")
            # One write of one line: a killed process leaves whole lines.
            line = _line([str(step), *map(_exact, values.values())])
            if self._file.write(line) != len(line):
                raise OSError("only a part could be written")

    def cut(self, step: int) -> None:
        """Removes rows of later steps, and a last line that is not whole."""
        self.close()
        self._columns = None
        with _writing(self.path):
            if not self.path.exists():
                return
            content = self.path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
            kept = whole[:1]
            for number, line in enumerate(whole[1:], 2):
                first = line.split(b",", 1)[0].strip()
                if not first.isdigit():
                    raise InputError(
                        f"{self.path}: line {number}: expected a step number, got"
                        f" {shown(first.decode(errors='replace'))}; mend or remove the line"
                    )
                if int(first) <= step:
                    kept.append(line)
            if len(kept) < 2:
                self.path.unlink()
            elif b"".join(kept) != content:
                _replace(self.path, b"".join(kept))

    def to_disk(self) -> None:
        if self._file is not None:
            with _writing(self.path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _header(self) -> list[str] | None:
        if not self.path.exists():
            return None
        with self.path.open(encoding="utf-8", newline="") as file:
            return next(csv.reader(file), None)


class _Events:
    """An event file of TensorBoard, written as its rows come.

    TensorBoard's own writer has a thread, which prints a traceback when the disk is full, and keeps
    the last seconds in memory, which a killed process loses.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._purge_step: int | None = None
        self._file: IO[bytes] | None = None

    def purge(self, step: int) -> None:
        """TensorBoard is to hide what earlier files hold from this step on."""
        self._purge_step = step

    def append(self, step: int, values: Mapping[str, float | int | None]) -> None:
        # Only a run that has begun needs these.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        points = [
            Summary.Value(tag=tag, simple_value=float(value))
            for tag, value in values.items()
            if value is not None
        ]
        now = time.time()
        events = [Event(wall_time=now, step=step, summary=Summary(value=points))]
        with _writing(self.folder):
            if self._file is None:
                if self._purge_step is not None:
                    start, purge_step = SessionLog(status=SessionLog.START), self._purge_step
                    events.insert(0, Event(wall_time=now, step=purge_step, session_log=start))
                events.insert(0, Event(wall_time=now, file_version="brain.Event:2"))
                self._file = self._next_file(now)
            records = io.BytesIO()
            for event in events:
                RecordWriter(records).write(event.SerializeToString())
            self._file.write(records.getvalue())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _next_file(self, now: float) -> IO[bytes]:
        """TensorBoard reads files in the order of their names."""
        self.folder.mkdir(exist_ok=True)
        number = len(list(self.folder.glob("events.out.tfevents.*")))
        name = f"events.out.tfevents.{now:010.0f}.{number:04d}"
        return (self.folder / name).open("ab", buffering=0)


def _line(cells: Sequence[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue().encode()


def _exact(value: float | int | None) -> str:
    """The shortest text that reads back as the same number."""
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    return repr(value.item() if isinstance(value, np.generic) else value)


# Whose folder it is ------------------------------------------------------------------------------


def _locked(path: Path) -> IO[str]:
    """The open lock file; the lock ends with the process, however it ends."""
    file = (path / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(20).strip()
        file.close()
        who = f"process {holder}" if holder.isdecimal() else "another process"
        raise InputError(
            f"{path}: {who} is training in this folder; wait for it to end, or give another folder"
        ) from None
    except OSError:
        file.close()
        raise
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _strangers(path: Path) -> list[str]:
    """Names in the folder that no run left there before it began."""
    if not path.is_dir():
        return []
    names = (CONFIG, ENVIRONMENT, DATA)
    own = {LOCK, *names, *(f".{name}{PARTIAL}" for name in names)}
    return sorted(entry.name for entry in path.iterdir() if entry.name not in own)


def _refuse_other_inputs(path: Path, before: Mapping[str, Any], inputs: RunInputs) -> None:
    words = {
        "data_sha256": "frames or labels",
        "split_sha256": "the split",
        "start_sha256": "the start weights",
    }
    hashes = before.get("inputs") or {}
    other = [words[k] for k, now in inputs.hashes.items() if hashes.get(k) != now]
    if other:
        raise InputError(
            f"{path}: expected the data that this run began with, but {' and '.join(other)} are"
            " others now (see inputs in environment.json); give what it began with, or start a new"
            " run in another folder"
        )


def _merged(path: Path, before: TrainConfig, now: TrainConfig | None) -> TrainConfig:
    if now is None or now == before:
        return before
    old, new = (flat_settings(config) for config in (before, now))
    differing = [name for name in old if old[name] != new[name] and name not in FREE_SETTINGS]
    if differing:
        told = [f"{name} {old[name]} (now {new[name]})" for name in differing]
        raise InputError(
            f"{path}: expected the settings that this run began with: {first_names(told, 6)}; leave"
            " the settings out, or start a new run in another folder"
        )
    return now


def flat_settings(config: TrainConfig) -> dict[str, Any]:
    """Settings by dotted name, such as ``loss.focal_gamma``."""
    return dict(_flat(config.model_dump(mode="json")))


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def differing_settings(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Settings that are not the defaults: ``{name: {"value": ..., "default": ...}}``."""
    defaults = flat_settings(TrainConfig())
    return {
        name: {"value": value, "default": defaults[name]}
        for name, value in flat_settings(config).items()
        if value != defaults[name]
    }


def _changes(
    before: Mapping[str, Any], now: Mapping[str, Any], old: TrainConfig, new: TrainConfig
) -> tuple[str, ...]:
    """What differs from the first start, one line each."""
    pairs = [
        (name, (before.get("versions") or {}).get(name), version)
        for name, version in now["versions"].items()
    ]
    pairs += [
        (name, (before.get("machine") or {}).get(name), value)
        for name, value in now["machine"].items()
    ]
    pairs.append(("commit", (before.get("code") or {}).get("commit"), now["code"].get("commit")))
    flat_old, flat_new = flat_settings(old), flat_settings(new)
    pairs += [(name, flat_old[name], flat_new[name]) for name in flat_old]
    return tuple(
        f"{name} was {was}, now is {value}: the run is no longer bit for bit the same"
        if name not in {"cache_mb", "checkpoint_every", "pictures_every"}
        else f"{name} was {was}, now is {value}"
        for name, was, value in pairs
        if was != value
    )


# Environment -------------------------------------------------------------------------------------


def _environment(inputs: RunInputs) -> dict[str, Any]:
    versions = {"steelsight": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": inputs.command,
        "machine": {
            "processor": _processor(),
            "gpu": gpu,
            "cuda": torch.version.cuda if gpu else None,
            "threads": torch.get_num_threads(),
        },
        "versions": versions,
        "code": _commit(),
        "inputs": inputs.hashes | {"start": inputs.start},
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> dict[str, Any]:
    """Commit of this code and whether files differ from it; empty outside a checkout."""
    git, here = shutil.which("git"), Path(__file__)

    def ask(*arguments: str) -> str:
        done = subprocess.run(  # noqa: S603 - fixed words and our own path
            [str(git), "-C", str(here.parent), *arguments],
            capture_output=True, check=True, text=True, errors="replace", timeout=_GIT_SECONDS,
        )  # fmt: skip
        return done.stdout.strip()

    if git is None:
        return {}
    try:
        # Installed into somebody's repository we are not its commit.
        ask("ls-files", "--error-unmatch", here.name)
        commit = ask("rev-parse", "HEAD")
        changed = ask("status", "--porcelain", "--untracked-files=no", "--", "../../..")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "changed": bool(changed)}


# Files -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A full disk or a missing permission becomes one line."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: cannot be written or read"
            f" ({error.strerror or error}); check the folder, its permissions and the free space,"
            " then go on with --resume"
        ) from error


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
    _replace(path, (text + "\n").encode(errors="backslashreplace"))


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}{PARTIAL}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: expected the JSON object that the run wrote, got something else; take it from"
            " a backup, or start a new run in another folder"
        )
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Pictures ----------------------------------------------------------------------------------------


def _drawn_classes(data: Mapping[str, Any]) -> tuple[DefectClass, ...]:
    return label_classes([LabelClass(str(c["id"]), str(c["name"])) for c in data["classes"]])


def _sheet(samples: Sequence[Sample], classes: Sequence[DefectClass]) -> NDArray[np.uint8]:
    """All samples under each other, or in rows of three where frames are not wide."""
    if not samples:
        raise ValueError("expected at least one sample")
    wide = any(is_wide((s.grey_hw.shape[1], s.grey_hw.shape[0])) for s in samples)
    columns = 1 if wide else min(3, len(samples))
    width = SHEET_WIDTH_PX // columns
    tiles = [_picture(sample, classes, (width, width)) for sample in samples]
    width = max(tile.shape[1] for tile in tiles)
    rows = []
    for first in range(0, len(tiles), columns):
        row = tiles[first : first + columns]
        height = max(len(tile) for tile in row)
        canvas = np.full((height, width * columns, 3), _BLACK, np.uint8)
        for column, tile in enumerate(row):
            canvas[: len(tile), column * width : column * width + tile.shape[1]] = tile
        rows.append(canvas)
    return np.concatenate(rows)


def _picture(
    sample: Sample, classes: Sequence[DefectClass], fit_wh: tuple[int, int]
) -> NDArray[np.uint8]:
    """A line of text above the frame: found regions outlined, true ones dashed in white."""
    bits = np.arange(len(classes), dtype=sample.types_hw.dtype)[:, None, None]
    true_khw = (sample.types_hw >> bits & 1).astype(bool)
    truth = {c.id: mask for c, mask in zip(classes, true_khw, strict=True) if mask.any()}
    found = [
        Defect(
            c.id, r.area_px, r.bbox_xywh, r.length_px, r.width_px, r.orientation_deg,
            r.mean_probability, r.rle,
        )
        for c, plane in zip(classes, sample.probabilities_khw, strict=True)
        if (plane >= SHOWN_FROM).any()
        for r in regions(plane >= SHOWN_FROM, plane)
    ]  # fmt: skip
    rgb = draw_overlay(sample.grey_hw, found, classes, truth=truth, fit_wh=fit_wh)
    names = ", ".join(c.name for c in classes if c.id in truth) or "clean"
    title = f"{sample.image} · {names} · faulty {sample.faulty_probability:.3f}"
    plate = np.full((_TITLE_PX, rgb.shape[1], 3), _BLACK, np.uint8)
    cv2.putText(plate, visible(title), (6, 18), _WHITE, cv2.FontFace("sans"), 14, 400)
    gap = np.full((10, rgb.shape[1], 3), _BLACK, np.uint8)
    return np.concatenate([plate, rgb, gap])
