"""A batch run on Ray Data: many machines, the same results.

The driver, which is whoever gave the command, lists the frames and writes the results; actors read,
decode and judge them with ``inspect_sources``, as a local run does. Ray's own readers of binary
files are not used: one file that cannot be read ends their run, or a whole block of files is left
out. Files are read by path, or through pyarrow's file systems (``s3://``, ``gs://``, ...), and what
cannot be read is UNKNOWN.

Ray restarts an actor that died and gives its batch to another one. A frame that came twice or not
at all would be noticed: every frame has a number, and the driver ticks it off.

What Ray sends between its processes is pickled by Ray. Use it on a network of your own.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from steelsight.bundle import Bundle, load_bundle
from steelsight.decoders import Decoders
from steelsight.defects import Reason, Verdict
from steelsight.engine.batch import Inspected, identity_of, inspect_sources
from steelsight.engine.cascade import Inspector
from steelsight.engine.choice import choose_engine
from steelsight.engine.runtime import Engine
from steelsight.engine.sources import CONTAINER_SUFFIXES, Source, Sources, path_of, shown_name
from steelsight.errors import DecodeError, EngineError, InputError, SteelsightError
from steelsight.imaging import DecodePolicy

if TYPE_CHECKING:
    import pyarrow as pa

RUN, PARTS = "run.json", "parts"
FRAMES_PER_BATCH = 16
"""What an actor gets at once, and what is done again if it dies."""
FRAMES_PER_PART, SECONDS_PER_PART = 10_000, 60.0
"""What a run that is cut off may lose."""
FRAMES_PER_ROUND = 1_000_000
"""Names that the driver holds at once."""


@dataclass(frozen=True, slots=True)
class RaySettings:
    """How frames are inspected, and by how many.

    Attributes:
        bundle: its folder; the default bundle if ``None``. Its files travel to the actors.
        decision: a decision file to use instead of the bundle's.
        engine: as of ``Inspector.load``; ``auto`` is chosen here, once for all.
        threads: cores of an actor.
        actors: at most; as many as the cluster has cores for, if ``None``. Ray starts with one and
            adds more while there is work.
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
    order = _Order(bundle, engine, settings)
    identity = order.identity(inputs)
    done = _continued(out, identity, overwrite)
    found = sum(1 for _ in files())
    if not found:
        raise InputError(f"expected images in {', '.join(inputs)}, found no file; check the path")
    parts = _Parts(out, done.parts)
    counts = dict(done.counts)
    _write_run(out, identity, None)
    on_count(sum(counts.values()), found)
    rounds = _rounds(file for file in files() if not done.holds(file))
    first = next(rounds, None)
    if first is not None:
        with _cluster(settings) as ray:
            for batch in chain([first], rounds):
                for table in _results(ray, order, batch, settings):
                    for verdict in table.column("verdict").to_pylist():
                        counts[verdict] += 1
                    parts.add(table)
                    on_count(sum(counts.values()), found)
            parts.flush()
    summary = RaySummary(
        folder=str(out),
        found=found,
        seen=sum(counts.values()),
        ok=counts[Verdict.OK],
        ng=counts[Verdict.NG],
        unknown=counts[Verdict.UNKNOWN],
        known=sum(done.counts.values()),
    )
    if summary.seen != summary.found:
        raise EngineError(
            f"expected {summary.found} results, got {summary.seen}: files came or went during the "
            "run; give the same command again"
        )
    _write_run(out, identity, summary)
    return summary


def _installed() -> None:
    try:
        import ray.data  # noqa: F401
    except ImportError:
        raise EngineError(
            "expected Ray for --on ray, it is not installed: pip install 'steelsight[ray]'"
        ) from None


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
                facts = source.path.lstat()
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
        if info.type != FileType.File or any(p.startswith(".") for p in below.split("/")):
            continue
        if below.lower().endswith(CONTAINER_SUFFIXES):
            raise InputError(
                f"expected image files for --on ray, {below} is a container; unpack it first"
            )
        modified_ns = -1 if info.mtime_ns is None else info.mtime_ns
        place = f"{scheme}://{info.path}"
        yield _File(shown_name(Path(below)), place, info.size, modified_ns)


def _source(name: str, place: str, policy: DecodePolicy) -> Source:
    """Where an actor finds a file; an address is read at once."""
    if "://" not in place:
        return Source(name, place, path_of(place))
    from pyarrow.fs import FileSystem

    content: bytes | DecodeError
    try:
        system, path = FileSystem.from_uri(place)
        with system.open_input_stream(path) as stream:
            content = stream.read(policy.max_bytes + 1)
    except (OSError, ValueError) as error:
        told = " ".join(str(error).split())
        content = DecodeError(Reason.UNREADABLE, f"expected to read {place}, got: {told}")
    if isinstance(content, bytes) and len(content) > policy.max_bytes:
        content = DecodeError(
            Reason.TOO_LARGE, f"expected at most {policy.max_bytes} bytes, {place} has more"
        )
    return Source(name, place, content=content)


# ------------------------------------------------------------------------------------------ actors


class _Order:
    """All that an actor must know, in a form that travels: bytes and plain values."""

    def __init__(self, bundle: Bundle, engine: str, settings: RaySettings) -> None:
        self.sha256 = bundle.sha256
        self.bundle_files = {
            str(path.relative_to(bundle.folder)): path.read_bytes()
            for path in sorted(bundle.folder.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        }
        self.decision = bundle.decision.text.encode()
        self.engine = engine
        self.threads = settings.threads
        self.policy = settings.policy
        self.allow_colour = settings.allow_colour

    @contextmanager
    def inspector(self) -> Iterator[Inspector]:
        """The bundle, unpacked into a folder of its own; its checksums are checked again."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for name, content in self.bundle_files.items():
                path = folder / "bundle" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            (folder / "decision.toml").write_bytes(self.decision)
            decoders = stack.enter_context(Decoders(1))
            yield Inspector.load(
                folder / "bundle",
                decision=folder / "decision.toml",
                engine=self.engine,
                threads=self.threads,
                policy=self.policy,
                allow_colour=self.allow_colour,
                decode=decoders.decode,
            )

    def identity(self, inputs: Sequence[str]) -> dict[str, Any]:
        """As of a local run."""
        with self.inspector() as inspector:
            places = [text if "://" in text else str(Path(text).absolute()) for text in inputs]
            return {**identity_of(inspector, []), "inputs": places, "on": "ray"}


class _Actor:
    """Holds the loaded model; Ray calls it with batch after batch."""

    def __init__(self, order: Any) -> None:
        import ray

        self._order: _Order = ray.get(order["order"])
        self._stack = ExitStack()
        self._inspector = self._stack.enter_context(self._order.inspector())

    def __call__(self, files: "pa.Table") -> "pa.Table":
        rows = files.to_pylist()
        sources = [_source(row["name"], row["place"], self._order.policy) for row in rows]
        results = inspect_sources(self._inspector, sources)
        return _table([_row(row, one) for row, one in zip(rows, results, strict=True)])


def _row(file: dict[str, Any], inspected: Inspected) -> dict[str, Any]:
    inspection = inspected.inspection
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
    import ray

    # It tells of each plan and each execution; what goes wrong is raised.
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    given: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if settings.address:
        given["address"] = settings.address
    else:
        given |= {
            "address": "local",
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            "num_cpus": max((settings.actors or 1) * settings.threads, os.cpu_count() or 1),
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
        EngineError: Ray failed, or gave a frame twice or not at all.
    """
    import pyarrow as pa

    table = pa.table(
        {
            "number": pa.array(range(len(files)), pa.int64()),
            "name": [file.name for file in files],
            "place": [file.place for file in files],
            "size_bytes": [file.size_bytes for file in files],
            "modified_ns": [file.modified_ns for file in files],
        }
    )
    cores = int(ray.cluster_resources().get("CPU", 1))
    most = settings.actors or max(1, cores // settings.threads)
    blocks = [
        table.slice(start, FRAMES_PER_BATCH) for start in range(0, len(files), FRAMES_PER_BATCH)
    ]
    # Inside a dict: Ray keeps the reference and does not unpack it for every restart.
    shared = {"order": ray.put(order)}
    frames = ray.data.from_arrow(blocks).map_batches(
        _Actor,
        fn_constructor_args=(shared,),
        batch_format="pyarrow",
        batch_size=FRAMES_PER_BATCH,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        num_cpus=settings.threads,
    )
    ticked = bytearray(len(files))
    try:
        for found in frames.iter_batches(batch_format="pyarrow", batch_size=None):
            numbers = found.column("number").to_pylist()
            if any(ticked[number] for number in numbers) or len(set(numbers)) < len(numbers):
                raise EngineError("Ray gave a frame twice; report it, with its version")
            for number in numbers:
                ticked[number] = 1
            yield found.drop_columns(["number"])
    except SteelsightError:
        raise
    except Exception as error:  # Ray raises many kinds, with whole tracebacks in their text
        last = [line for line in str(error).splitlines() if line.strip()] or [""]
        raise EngineError(
            f"expected results from Ray, got {type(error).__name__}: {last[-1].strip()[:300]}; "
            "give the same command again: it continues"
        ) from None
    if not all(ticked):
        raise EngineError(
            f"Ray gave no result for {ticked.count(0)} of {len(files)} frames; give the same "
            "command again: it continues"
        )


# ------------------------------------------------------------------------------------------- parts


class _Parts:
    """Writes results in files of some thousand, each complete or not there."""

    def __init__(self, out: Path, number: int) -> None:
        self._folder = out / PARTS
        self._number = number
        self._tables: list[pa.Table] = []
        self._rows = 0
        self._flushed_s = monotonic()

    def add(self, table: "pa.Table") -> None:
        self._tables.append(table)
        self._rows += table.num_rows
        if self._rows >= FRAMES_PER_PART or monotonic() - self._flushed_s > SECONDS_PER_PART:
            self.flush()

    def flush(self) -> None:
        if not self._tables:
            return
        import pyarrow as pa
        from pyarrow import parquet

        path = self._folder / f"part-{self._number:06d}.parquet"
        beside = self._folder / f".{path.name}.unfinished"
        with beside.open("wb") as file:
            parquet.write_table(pa.concat_tables(self._tables), file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        self._number += 1
        self._tables, self._rows, self._flushed_s = [], 0, monotonic()


@dataclass(frozen=True, slots=True)
class _Done:
    """What an earlier run left: results by name, and counts."""

    facts: dict[str, tuple[int, int]]
    counts: dict[str, int]
    parts: int

    def holds(self, file: _File) -> bool:
        before = self.facts.get(file.name)
        if before is not None and before != (file.size_bytes, file.modified_ns):
            raise InputError(
                f"{file.place} has changed since it was inspected; give --overwrite to inspect all "
                "again"
            )
        return before is not None


def _continued(out: Path, identity: dict[str, Any], overwrite: bool) -> _Done:
    """What is there from before, read from complete parts.

    Raises:
        InputError: the folder holds something else.
    """
    from pyarrow import parquet

    counts = dict.fromkeys(Verdict, 0)
    plain = {verdict.value: 0 for verdict in counts}
    try:
        (out / PARTS).mkdir(parents=True, exist_ok=True)
        before = json.loads((out / RUN).read_bytes()) if (out / RUN).exists() else None
        parts = sorted((out / PARTS).glob("part-*.parquet"))
        if overwrite:
            for path in (*parts, out / RUN):
                path.unlink(missing_ok=True)
            parts, before = [], None
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected a folder to write to at {out}, got: {error}; give another --out"
        ) from None
    if parts or before is not None:
        earlier = before.get("identity") if isinstance(before, dict) else None
        if earlier != json.loads(json.dumps(identity)):
            raise InputError(
                f"{out} holds another run; give another --out, or --overwrite to replace it"
            )
    facts: dict[str, tuple[int, int]] = {}
    for path in parts:
        table = parquet.read_table(path, columns=["name", "verdict", "size_bytes", "modified_ns"])
        for row in table.to_pylist():
            facts[row["name"]] = (row["size_bytes"], row["modified_ns"])
            plain[row["verdict"]] += 1
    if len(facts) != sum(plain.values()):
        raise InputError(f"{out / PARTS} holds a frame twice; give another --out")
    return _Done(facts, plain, len(parts))


def _write_run(out: Path, identity: dict[str, Any], summary: RaySummary | None) -> None:
    run: dict[str, Any] = {"complete": summary is not None, "identity": identity}
    if summary is not None:
        names = ("found", "seen", "ok", "ng", "unknown")
        run["counts"] = {name: getattr(summary, name) for name in names}
    beside = out / f".{RUN}.unfinished"
    beside.write_text(json.dumps(run, indent=1) + "\n", encoding="ascii")
    beside.replace(out / RUN)
