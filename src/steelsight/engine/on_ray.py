"""A batch run on Ray Data: many machines, the same results.

The driver, which is whoever gave the command, lists the frames and writes the results; actors read,
decode and judge them with ``inspect_sources``, as a local run does. Ray's own readers of binary
files are not used: one file that cannot be read ends their run, or a whole block of files is left
out. Files are read by path, or through pyarrow's file systems (``s3://``, ``gs://``, ...), and what
cannot be read is UNKNOWN.

Ray restarts an actor that died and gives its batch to another one. A frame that came twice or not
at all would be noticed: every frame has a number, the driver ticks it off, and in the end reads all
parts again. A frame that ends its actor again and again is UNKNOWN: Ray would try for ever.

What Ray sends between its processes is pickled by Ray. A cluster for one run listens on this
machine only, and asks for a secret that only its own processes know; give a cluster of yours one,
too (``RAY_AUTH_MODE=token``).
"""

import fcntl
import json
import logging
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from steelsight.bundle import Bundle, load_bundle
from steelsight.decoders import Decoders
from steelsight.defects import Inspection, Reason, Verdict
from steelsight.engine.batch import PASSING, Keys, identity_of, inspect_sources
from steelsight.engine.cascade import Inspector
from steelsight.engine.choice import choose_engine
from steelsight.engine.runtime import Engine, available_cores, engine_version
from steelsight.engine.sources import CONTAINER_SUFFIXES, Source, Sources, path_of, shown_name
from steelsight.errors import DecodeError, EngineError, InputError, escaped
from steelsight.imaging import DecodePolicy

if TYPE_CHECKING:
    import pyarrow as pa

RUN, PARTS, LOCK = "run.json", "parts", ".lock"
FRAMES_PER_BATCH = 16
"""What an actor gets at once, and what is done again if it dies."""
FRAMES_PER_PART, SECONDS_PER_PART = 10_000, 60.0
"""What a run that is cut off may lose."""
FRAMES_PER_ROUND = 1_000_000
"""Names that the driver sends at once."""
RETRIES = 3
"""After the death of its actor a batch is tried again as often, then each of its frames alone."""
MOST_WITHOUT_ANSWER = 100
"""Frames that may end their actors; with more of them it is the cluster that fails."""
READERS = 8
"""Threads of an actor that fetch files from an address: each waits for the network."""
FIRST_ACTOR_PATIENCE_S = 900
"""A cluster may have to start a machine first."""


@dataclass(frozen=True, slots=True)
class RaySettings:
    """How frames are inspected, and by how many.

    Attributes:
        bundle: its folder; the default bundle if ``None``. Its files travel to the actors.
        decision: a decision file to use instead of the bundle's.
        engine: as of ``Inspector.load``; ``auto`` is chosen here, once for all.
        threads: cores of an actor.
        actors: at most; as many as the cluster has cores for, if ``None``, or GPUs with the engine
            ``cuda``, of which each actor takes one. Ray starts with one and adds more while there
            is work.
        policy: which images are accepted.
        allow_colour: as of ``Inspector.load``.
        address: of a running cluster; a local one is started for the run if ``None``.
    """

    bundle: Path | None = None
    decision: Path | None = None
    engine: str = Engine.AUTO
    threads: int = 1
    actors: int | None = None
    policy: DecodePolicy = field(default_factory=DecodePolicy)
    allow_colour: bool = False
    address: str | None = None


@dataclass(frozen=True, slots=True)
class RaySummary:
    """What a run comes to: ``found == seen == ok + ng + unknown``.

    Attributes:
        known: results that were there from before.
    """

    folder: str
    found: int
    seen: int
    ok: int
    ng: int
    unknown: int
    known: int


def inspect_on_ray(
    inputs: Sequence[str],
    out: Path,
    settings: RaySettings,
    *,
    overwrite: bool = False,
    on_count: Callable[[int, int], None] = lambda _done, _found: None,
) -> RaySummary:
    """Inspects files on a Ray cluster, and writes ``out/parts/*.parquet`` and ``out/run.json``.

    A part is written beside its place and moved there when it is complete; a run that was cut off
    goes on behind its parts with the same command.

    Args:
        inputs: files and folders that every machine of the cluster sees under the same path, or
            one ``scheme://`` address.
        out: a folder of this machine.
        settings: see there.
        overwrite: replace an earlier run.
        on_count: called with frames done and frames found.

    Returns:
        Counts that add up.

    Raises:
        InputError: an input, setting or the folder is not usable; a file changed since the run that
            is continued.
        EngineError: Ray is not installed, or its cluster failed.
    """
    _installed()
    bundle = load_bundle(settings.bundle, settings.decision)
    engine = settings.engine
    if engine == Engine.AUTO:
        engine = str(choose_engine(bundle, settings.threads).engine)
    files = _files(inputs, out)
    order = _Order(bundle, engine, settings, [text for text in inputs if "://" in text])
    with _locked(out):
        identity = order.identity(inputs)
        _check_identity(out, identity, overwrite)
        return _inspect(files, out, order, identity, settings, on_count)


def _inspect(
    files: Callable[[], Iterator["_File"]],
    out: Path,
    order: "_Order",
    identity: dict[str, Any],
    settings: RaySettings,
    on_count: Callable[[int, int], None],
) -> RaySummary:
    if next(files(), None) is None:
        raise InputError(f"expected images in {', '.join(identity['inputs'])}, found no file")
    _write_run(out, identity, None)
    parts = _Parts(out)
    kept, found = parts.keep(files())
    done = len(kept)
    on_count(done, found)
    rounds = _rounds(file for file in files() if file.name not in kept)
    first = next(rounds, None)
    if first is not None:
        with _cluster(settings) as ray:
            try:
                for batch in chain([first], rounds):
                    for table in _results(ray, order, batch, settings):
                        parts.add(table)
                        done += table.num_rows
                        on_count(done, found)
            finally:
                # What is there is not done again.
                parts.flush()
    # From the disk: what is told is what stays.
    counts = parts.counts()
    summary = RaySummary(
        folder=str(out),
        found=found,
        seen=counts.total(),
        ok=counts[Verdict.OK],
        ng=counts[Verdict.NG],
        unknown=counts[Verdict.UNKNOWN],
        known=len(kept),
    )
    if summary.seen != summary.found:
        raise EngineError(
            f"expected {summary.found} results, got {summary.seen}: files came or went during the "
            "run; give the same command again"
        )
    _write_run(out, identity, summary)
    return summary


def _installed() -> None:
    # Not imported yet: Ray reads its settings from the environment when it is.
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise EngineError(
            "expected Ray for --on ray, it is not installed: pip install 'steelsight[ray]'"
        )


# ------------------------------------------------------------------------------------------- files


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it was listed.

    Attributes:
        place: an origin, see ``sources``, or a ``scheme://`` address.
        size_bytes, modified_ns: -1 where nobody knows.
    """

    name: str
    place: str
    size_bytes: int
    modified_ns: int


def _files(inputs: Sequence[str], out: Path) -> Callable[[], Iterator[_File]]:
    remote = [text for text in inputs if "://" in text]
    if remote and len(inputs) > 1:
        raise InputError(
            f"expected files and folders, or one address such as {remote[0]}, got both"
        )
    if remote:
        return lambda: _remote_files(remote[0])
    sources = Sources([Path(text) for text in inputs], leave_out=out)

    def local() -> Iterator[_File]:
        for source in sources:
            if source.path is None:
                raise InputError(
                    f"expected image files for --on ray, {source.name} is part of a container; "
                    "unpack it first"
                )
            try:
                facts = source.path.stat()
                size_bytes, modified_ns = facts.st_size, facts.st_mtime_ns
            except OSError:
                size_bytes = modified_ns = -1
            yield _File(source.name, source.origin, size_bytes, modified_ns)

    return local


def _remote_files(address: str) -> Iterator[_File]:
    """Files below an address, sorted by name, hidden ones left out."""
    from pyarrow.fs import FileSelector, FileSystem, FileType

    scheme = address.partition("://")[0]
    try:
        system, root = FileSystem.from_uri(address)
        listed = system.get_file_info(FileSelector(root, recursive=True))
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected a folder at {address}, got: {' '.join(str(error).split())}; check address "
            "and access"
        ) from None
    for info in sorted(listed, key=lambda info: str(info.path)):
        below = str(info.path).removeprefix(root.rstrip("/") + "/")
        steps = below.split("/")
        if info.type != FileType.File or any(
            step.startswith(".") and step not in (".", "..") for step in steps
        ):
            continue
        if below.lower().endswith(CONTAINER_SUFFIXES):
            raise InputError(
                f"expected image files for --on ray, {below} is a container; unpack it first"
            )
        modified_ns = -1 if info.mtime_ns is None else info.mtime_ns
        # A path would lose steps that a key may have: each key needs a name of its own.
        odd = {"", ".", ".."} & set(steps)
        name = quote(below, safe="").replace(".", "%2E") if odd else shown_name(Path(below))
        yield _File(name, f"{scheme}://{info.path}", info.size, modified_ns)


def _read(system: Any, place: str, policy: DecodePolicy) -> bytes | DecodeError:
    """Content of a file at an address, or why there is none.

    Args:
        system: the file system of the run's address, which knows its end point and region.
        place: as it was listed; its path as the file system says it, nothing is encoded.
        policy: for the most bytes.
    """
    try:
        with system.open_input_stream(place.partition("://")[2]) as stream:
            content: bytes = stream.read(policy.max_bytes + 1)
    except (OSError, ValueError) as error:
        told = " ".join(str(error).split())
        return DecodeError(Reason.UNREADABLE, f"expected to read {escaped(place)}, got: {told}")
    if len(content) > policy.max_bytes:
        return DecodeError(
            Reason.TOO_LARGE,
            f"expected at most {policy.max_bytes} bytes, {escaped(place)} has more",
        )
    return content


# ------------------------------------------------------------------------------------------ actors


class _Order:
    """All that an actor must know, in a form that travels: bytes and plain values."""

    def __init__(
        self, bundle: Bundle, engine: str, settings: RaySettings, addresses: Sequence[str]
    ) -> None:
        self.address = addresses[0] if addresses else None
        self.model = bundle.id
        self.decision_id = bundle.decision.id
        weights = bundle.manifest.weights
        self.bundle_files = {
            str(path.relative_to(bundle.folder)): path.read_bytes()
            for path in sorted(bundle.folder.rglob("*"))
            if path.is_file() and not (weights and path.name == weights.file)
        }
        self.decision = bundle.decision.text.encode()
        self.engine = engine
        self.threads = settings.threads
        # A GPU is faster than one decoder.
        self.workers = settings.threads if engine == Engine.CUDA else 1
        self.policy = settings.policy
        self.allow_colour = settings.allow_colour
        with Decoders(1) as decoders:
            # Whoever gives the command need not have a GPU, but what its actors must have, too.
            if engine == Engine.CUDA and not engine_version(engine):
                raise EngineError(
                    "expected onnxruntime-gpu here too for --on ray --engine cuda, in the version "
                    "of the actors; run: pip uninstall onnxruntime; pip install onnxruntime-gpu"
                )
            here = Engine.ONNXRUNTIME if engine == Engine.CUDA else engine
            inspector = self.load(decoders, here)
            if here != engine:
                inspector.engine = f"{engine}-{bundle.manifest.precision}"
            self.engine_label = inspector.engine
            self.settings = Keys(inspector).settings
            self._same = identity_of(inspector, [])

    def load(self, decoders: Decoders, engine: str | None = None) -> Inspector:
        """The bundle, unpacked for as long as it is read; its checksums are checked again.

        Args:
            decoders: for the frames.
            engine: another one than was ordered.
        """
        with tempfile.TemporaryDirectory(prefix="steelsight-") as scratch:
            folder = Path(scratch)
            for name, content in self.bundle_files.items():
                path = folder / "bundle" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            (folder / "decision.toml").write_bytes(self.decision)
            return Inspector.load(
                folder / "bundle",
                decision=folder / "decision.toml",
                engine=engine or self.engine,
                threads=self.threads,
                workers=self.workers,
                policy=self.policy,
                allow_colour=self.allow_colour,
                decode=decoders.decode,
            )

    def identity(self, inputs: Sequence[str]) -> dict[str, Any]:
        """As of a local run."""
        places = [text if "://" in text else str(Path(text).absolute()) for text in inputs]
        return {**self._same, "inputs": places, "on": "ray"}

    def no_answer(self, file: _File) -> Inspection:
        """The result of a frame that ended its actor every time."""
        return Inspection(
            image=file.name,
            sha256=None,
            verdict=Verdict.UNKNOWN,
            reason=Reason.ENGINE_FAILED,
            detail="expected an answer, every worker of Ray that took this frame alone ended "
            "without one; see to memory and Ray's logs",
            faulty_probability=None,
            class_probabilities={},
            defects=(),
            size_wh=None,
            model=self.model,
            decision=self.decision_id,
            engine=self.engine_label,
        )


class _Actor:
    """Holds the loaded model; Ray calls it with batch after batch."""

    def __init__(self, order: Any) -> None:
        import ray

        self._order: _Order = ray.get(order["order"])
        self._inspector = self._order.load(Decoders(self._order.workers))
        # Another version of anything could give other results, and nobody would notice.
        here = Keys(self._inspector).settings
        if here != self._order.settings:
            raise EngineError(
                f"expected on every machine what the command has: {self._order.settings}, got "
                f"{here}; install the same versions"
            )
        self._system: Any = None
        if self._order.address:
            from pyarrow.fs import FileSystem

            self._system = FileSystem.from_uri(self._order.address)[0]

    def __call__(self, files: "pa.Table") -> "pa.Table":
        rows = files.to_pylist()
        results = inspect_sources(self._inspector, self._sources(rows))
        return _table([_row(row, one.inspection) for row, one in zip(rows, results, strict=True)])

    def _sources(self, rows: list[dict[str, Any]]) -> Iterator[Source]:
        if self._system is None:
            for row in rows:
                yield Source(row["name"], row["place"], path_of(row["place"]))
            return
        with ThreadPoolExecutor(READERS) as pool:
            places = [row["place"] for row in rows]
            policy = self._order.policy
            contents = pool.map(lambda place: _read(self._system, place, policy), places)
            for row, content in zip(rows, contents, strict=True):
                yield Source(row["name"], row["place"], content=content)


def _row(file: dict[str, Any], inspection: Inspection) -> dict[str, Any]:
    times = inspection.milliseconds
    return {
        **{key: file[key] for key in ("number", "name", "size_bytes", "modified_ns")},
        "sha256": inspection.sha256,
        "verdict": inspection.verdict.value,
        "reason": inspection.reason.value if inspection.reason else None,
        "detail": inspection.detail,
        "faulty_probability": inspection.faulty_probability,
        "n_defects": len(inspection.defects),
        "defect_area_px": sum(defect.area_px for defect in inspection.defects),
        "model": inspection.model,
        "decision": inspection.decision,
        "engine": inspection.engine,
        **{f"{step}_ms": times.get(step) for step in ("decode", "gate", "segment")},
        "result": inspection.to_json_line(timing=False),
    }


def _table(rows: list[dict[str, Any]]) -> "pa.Table":
    """Rows as a table; the same types whatever is missing."""
    import pyarrow as pa

    whole, text, real = pa.int64(), pa.string(), pa.float64()
    types = {
        "number": whole,
        "name": text,
        "size_bytes": whole,
        "modified_ns": whole,
        "sha256": text,
        "verdict": text,
        "reason": text,
        "detail": text,
        "faulty_probability": real,
        "n_defects": whole,
        "defect_area_px": whole,
        "model": text,
        "decision": text,
        "engine": text,
        "decode_ms": real,
        "gate_ms": real,
        "segment_ms": real,
        "result": text,
    }
    return pa.Table.from_pylist(rows, schema=pa.schema(list(types.items())))


# ---------------------------------------------------------------------------------------- the run


@contextmanager
def _cluster(settings: RaySettings) -> Iterator[Any]:
    """A connection to a cluster, or a local one for as long as this lasts."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if not settings.address:
        # Ray keeps to this machine where it thinks that clusters are not supported, and listens on
        # every network otherwise.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ["RAY_AUTH_MODE"] = "token"
        # Ray reads it once in a process.
        os.environ.setdefault("RAY_AUTH_TOKEN", token_hex(32))
    import ray
    import ray.data

    # It tells of each plan and each execution; what goes wrong is raised.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)

    given: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if settings.address:
        given["address"] = settings.address
    else:
        given |= {
            "address": "local",
            "include_dashboard": False,
            "num_cpus": max((settings.actors or 1) * settings.threads, available_cores()),
        }
    try:
        ray.init(**given)
    except Exception as error:  # Ray raises many kinds
        told = " ".join(str(error).split())[:300]
        raise EngineError(
            f"expected a Ray cluster at {settings.address or 'this machine'}, got "
            f"{type(error).__name__}: {told}"
        ) from None
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.verbose_progress = False
        context.wait_for_min_actors_s = FIRST_ACTOR_PATIENCE_S
        # They come back as frames that were not ticked off.
        context.max_errored_blocks = -1
        yield ray
    finally:
        ray.shutdown()


def _rounds(files: Iterable[_File]) -> Iterator[list[_File]]:
    files = iter(files)
    while batch := list(islice(files, FRAMES_PER_ROUND)):
        yield batch


def _results(
    ray: Any, order: _Order, files: list[_File], settings: RaySettings
) -> Generator["pa.Table"]:
    """Results in any order, each frame once.

    Raises:
        EngineError: Ray failed, or gave a frame twice.
    """
    ticked = bytearray(len(files))
    shared = ray.put(order)
    everything = range(len(files))
    # One frame at a time in the end: the others of a batch need not suffer.
    for frames_at_once in (FRAMES_PER_BATCH, 1):
        numbers = [number for number in everything if not ticked[number]]
        if not numbers:
            return
        blocks = _blocks(files, numbers, frames_at_once)
        for table in _mapped(ray, shared, order.engine, blocks, settings):
            for number in table.column("number").to_pylist():
                if ticked[number]:
                    raise EngineError("Ray gave a frame twice; report it, with its version")
                ticked[number] = 1
            yield table.drop_columns(["number"])
    left = [number for number in everything if not ticked[number]]
    if len(left) > MOST_WITHOUT_ANSWER:
        raise EngineError(
            f"expected results from Ray, {len(left)} of {len(files)} frames have none: their "
            "workers ended; see to the cluster and give the same command again: it continues"
        )
    if left:
        rows = [
            _row({**asdict(files[number]), "number": number}, order.no_answer(files[number]))
            for number in left
        ]
        yield _table(rows).drop_columns(["number"])


def _blocks(files: list[_File], numbers: list[int], size: int) -> list["pa.Table"]:
    """What actors get: files by number, so many at once."""
    import pyarrow as pa

    chosen = [files[number] for number in numbers]
    table = pa.table(
        {
            "number": pa.array(numbers, pa.int64()),
            "name": [file.name for file in chosen],
            "place": [file.place for file in chosen],
            "size_bytes": [file.size_bytes for file in chosen],
            "modified_ns": [file.modified_ns for file in chosen],
        }
    )
    return [table.slice(start, size) for start in range(0, len(numbers), size)]


def _mapped(
    ray: Any, order: Any, engine: str, blocks: list["pa.Table"], settings: RaySettings
) -> Generator["pa.Table"]:
    """Results of the blocks that actors survived.

    Args:
        ray: the module, connected.
        order: a reference to what every actor needs.
        engine: of the actors.
        blocks: each is inspected at once.
        settings: for the actors.

    Raises:
        EngineError: Ray failed, or no actor could be started.
    """
    there = ray.cluster_resources()
    each = {"CPU": settings.threads}
    if engine == Engine.CUDA:
        each["GPU"] = 1
        # A cluster that grows may have none yet: whoever says how many actors means it.
        if not there.get("GPU") and not (settings.address and settings.actors):
            raise EngineError(
                "expected GPUs in the Ray cluster for --engine cuda, it has none; give another "
                "engine, or --address and --workers of a cluster that starts machines with GPUs "
                "when they are needed"
            )
    fitting = min(there.get(kind, 0) // amount for kind, amount in each.items())
    most = settings.actors or max(1, int(fitting))
    with warnings.catch_warnings():
        # Ray has no other way to say how often yet; from 2.64 on, this one is to go.
        warnings.filterwarnings("ignore", "`ray_remote_args_fn` is deprecated")
        frames = ray.data.from_arrow(blocks).map_batches(
            _Actor,
            # Inside a dict: Ray keeps the reference and does not unpack it for every restart.
            fn_constructor_args=({"order": order},),
            batch_format="pyarrow",
            batch_size=max(block.num_rows for block in blocks),
            # One block at a time: a death counts for the block that was in work, for no other.
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=most, max_tasks_in_flight_per_actor=1
            ),
            num_cpus=settings.threads,
            num_gpus=each.get("GPU"),
            ray_remote_args_fn=lambda: {"max_task_retries": RETRIES},
        )
    try:
        yield from frames.iter_batches(batch_format="pyarrow", batch_size=None)
    except Exception as error:  # Ray raises many kinds, with whole tracebacks in their text
        last = [line for line in str(error).splitlines() if line.strip()] or [""]
        raise EngineError(
            f"expected results from Ray, got {type(error).__name__}: {last[-1].strip()[:600]}; "
            "give the same command again: it continues"
        ) from None


# ------------------------------------------------------------------------------------------- parts


class _Parts:
    """Results in files of some thousand, each complete or not there."""

    def __init__(self, out: Path) -> None:
        self._folder = out / PARTS
        self._tables: list[pa.Table] = []
        self._rows = 0
        self._flushed_s = monotonic()
        last = max((int(path.stem.rpartition("-")[2]) for path in self._paths()), default=-1)
        self._number = last + 1

    def keep(self, files: Iterable[_File]) -> tuple[set[str], int]:
        """Takes out what must be inspected again; returns names of the rest, and files in all.

        Out go results of files that changed or went, and those whose reason may have passed.
        """
        import pyarrow as pa

        known = self._known()
        kept = set()
        found = 0
        for file in files:
            found += 1
            if known.get(file.name) == (file.size_bytes, file.modified_ns):
                kept.add(file.name)
        for path in self._paths():
            table = _read_table(path)
            names, reasons = (table.column(key).to_pylist() for key in ("name", "reason"))
            stays = [
                name in kept and reason not in PASSING
                for name, reason in zip(names, reasons, strict=True)
            ]
            if not any(stays):
                path.unlink()
            elif not all(stays):
                self._write(path, table.filter(pa.array(stays)))
        return kept, found

    def _known(self) -> dict[str, tuple[int, int]]:
        """Bytes and time of every file whose result counts; damaged parts are removed."""
        known: dict[str, tuple[int, int]] = {}
        for path in self._paths():
            try:
                table = _read_table(path, ["name", "size_bytes", "modified_ns", "reason"])
            except EngineError:  # the power went; what it held is inspected again
                path.unlink()
                continue
            for row in table.to_pylist():
                if row["reason"] not in PASSING:
                    known[row["name"]] = (row["size_bytes"], row["modified_ns"])
        return known

    def counts(self) -> Counter[str]:
        """Verdicts on the disk.

        Raises:
            EngineError: a part cannot be read, or a frame is there twice.
        """
        counts: Counter[str] = Counter()
        names: set[str] = set()
        for path in self._paths():
            table = _read_table(path, ["name", "verdict"])
            names.update(table.column("name").to_pylist())
            counts.update(table.column("verdict").to_pylist())
            if len(names) != counts.total():
                raise EngineError(
                    f"{path} holds a frame for the second time; give --overwrite to inspect all "
                    "again"
                )
        return counts

    def add(self, table: "pa.Table") -> None:
        self._tables.append(table)
        self._rows += table.num_rows
        if self._rows >= FRAMES_PER_PART or monotonic() - self._flushed_s > SECONDS_PER_PART:
            self.flush()

    def flush(self) -> None:
        if not self._tables:
            return
        import pyarrow as pa

        path = self._folder / f"part-{self._number:06d}.parquet"
        self._write(path, pa.concat_tables(self._tables))
        self._number += 1
        self._tables, self._rows, self._flushed_s = [], 0, monotonic()

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("part-[0-9]*.parquet"))

    def _write(self, path: Path, table: "pa.Table") -> None:
        from pyarrow import parquet

        beside = path.with_name(f".{path.name}.unfinished")
        try:
            with beside.open("wb") as file:
                parquet.write_table(table, file, compression="zstd", write_page_checksum=True)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError as error:
            raise InputError(
                f"expected to write {path}, got: {error}; make room and give the same command "
                "again: it continues"
            ) from None


def _read_table(path: Path, columns: list[str] | None = None) -> "pa.Table":
    """A part, with its checksums checked.

    Raises:
        EngineError: it is damaged.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_table(path, columns=columns, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        told = " ".join(str(error).split())
        raise EngineError(
            f"expected results in {path}, got: {told}; give the same command again"
        ) from None


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Makes the folder, and keeps other runs out until this one ends, however it ends.

    Raises:
        InputError: another run writes there, or nobody can.
    """
    try:
        (out / PARTS).mkdir(parents=True, exist_ok=True)
        file = (out / LOCK).open("wb")
    except OSError as error:
        raise InputError(
            f"expected a folder to write to at {out}, got: {error}; give another --out"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another run writes to {out}; wait for its end, or give another --out"
            ) from None
        yield


def _check_identity(out: Path, identity: dict[str, Any], overwrite: bool) -> None:
    """Lets a run go on that has the same identity, and removes one if it may be replaced.

    Raises:
        InputError: the folder holds something else.
    """
    parts = sorted((out / PARTS).glob("part-*.parquet"))
    if overwrite:
        for path in (*parts, out / RUN):
            path.unlink(missing_ok=True)
        return
    try:
        before = json.loads((out / RUN).read_bytes())
    except FileNotFoundError:
        before = None
    except (OSError, ValueError):
        before = {}
    if parts or before is not None:
        earlier = before.get("identity") if isinstance(before, dict) else None
        if earlier != json.loads(json.dumps(identity)):
            raise InputError(
                f"{out} holds another run; give another --out, or --overwrite to replace it"
            )


def _write_run(out: Path, identity: dict[str, Any], summary: RaySummary | None) -> None:
    run: dict[str, Any] = {"complete": summary is not None, "identity": identity}
    if summary is not None:
        names = ("found", "seen", "ok", "ng", "unknown")
        run["counts"] = {name: getattr(summary, name) for name in names}
    beside = out / f".{RUN}.unfinished"
    beside.write_text(json.dumps(run, indent=1) + "\n", encoding="ascii")
    beside.replace(out / RUN)
