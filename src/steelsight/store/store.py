"""Writes a store: one writer per file, results acknowledged when they are on the disk.

Frames come from any thread. One thread writes them in groups, a transaction each: a group waits for
the disk once, and is there as a whole or not at all. Read ``Store._write`` from the top downwards.
"""

import fcntl
import json
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import apsw

from steelsight.defects import Inspection, Verdict
from steelsight.errors import StoreError, escaped
from steelsight.store.rows import (
    DEFECT_COLUMNS,
    INSPECTION_COLUMNS,
    InspectionRows,
    Value,
    read_inspection,
    rows_of,
    stored,
)
from steelsight.store.schema import explained, open_reader, open_writer, rollback

WRITER_THREAD = "steelsight-store"

MOST_WAITING = 1024
"""Frames that may wait for the disk; whoever adds more waits, so that memory stays bounded."""


@dataclass(frozen=True, slots=True)
class Run:
    """What was run, for the record and for replay.

    Attributes:
        key: hex; the same command gives the same key, so that its run is continued.
        command: as it was given.
        source: what was inspected.
        model_id: ``name@sha8``, as its inspections carry it.
        model_sha256: of ``manifest.toml``, which holds the hashes of all other files.
        manifest: text of ``manifest.toml``.
        bundle_folder: where the bundle lay.
        decision_sha256: of the decision file; its inspections carry the first eight digits.
        decision: text of the decision file.
        engine: ``engine-precision``.
        settings: canonical JSON of what else decided: decode policy, version, machine.
        mm_per_px: scale of the frames, if known; more than 0.
    """

    key: str
    command: str
    source: str
    model_id: str
    model_sha256: str
    manifest: str
    bundle_folder: str
    decision_sha256: str
    decision: str
    engine: str
    settings: str
    mm_per_px: float | None = None


@dataclass(slots=True)
class _Begun:
    """A run of this process: ids of what its inspections refer to."""

    facts: Run
    model: int
    decision: int
    setups: dict[str, int] = field(default_factory=dict)
    """By engine."""


@dataclass(frozen=True, slots=True)
class _Sighting:
    run: int
    position: int
    name: str | bytes
    origin: str | bytes
    coil: str | bytes | None
    kept: int | None


_Work = Callable[[], int]


class NoSuchReviewError(StoreError):
    """This person has no such verdict that stands; nothing was written."""


class Store:
    """The one writer of a file; a context manager.

    A second writer of the same file is refused at once, in this process or another, by a lock on
    ``FILE.lock`` that ends with its process however that ends. Readers (``queries.Results``)
    neither wait nor are waited for. After a failed commit nothing is written any more: every
    future that waits or comes later has the error.

    Args:
        path: of the file; made if it is not there. Not on a network drive: SQLite's log needs
            memory that its readers and its writer share.
        group_ms: a group is committed this long after its first frame,
        group_frames: or when it has so many, whichever comes first.
        clock: seconds since 1970, for the record alone; it may step back.

    Raises:
        StoreError: there is another writer, the file cannot be written, is no store, is damaged,
            or was made by a newer version.
    """

    def __init__(
        self,
        path: Path,
        *,
        group_ms: float = 50,
        group_frames: int = 32,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._group_s, self._group_frames, self._clock = group_ms / 1e3, group_frames, clock
        self._lock_file = _lock(path)
        try:
            self._writer = open_writer(path)
            self._reader = open_reader(path)
        except StoreError:
            os.close(self._lock_file.release())
            raise
        self._reading = threading.Lock()
        self._begun: dict[int, _Begun] = {}
        self._last_coil: tuple[str | bytes | None, int] = (None, 0)
        self._changed = threading.Condition()
        # Guarded by ``_changed``: what waits, since when, and whether to go on.
        self._waiting: deque[tuple[_Work, Future[int]]] = deque()
        self._first_waits_since = 0.0
        self._at_once = False
        self._closing = False
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._write, name=WRITER_THREAD, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except StoreError:
            if kind is None:
                raise

    def begin(self, run: Run) -> int:
        """Id of the run; an earlier one of the same key is continued.

        What the earlier one said about command, model, place and scale is replaced by ``run``,
        only its start stays.

        Raises:
            StoreError: it could not be written.
        """
        begun: list[_Begun] = []

        def work() -> int:
            begun.append(_Begun(run, self._model(run), self._decision(run)))
            return self._begin(begun[0])

        run_id = self._now(work)
        self._begun[run_id] = begun[0]
        return run_id

    def known(self, key: bytes) -> tuple[int, Inspection] | None:
        """The stored inspection of this key and its id, from any thread; ``image`` is ``""``.

        Its ``to_json`` is that of the one that was added, but for the image and the times. What
        was added and is not on the disk yet is not known.

        Raises:
            StoreError: the file cannot be read, or is damaged.
        """
        with self._reading:
            if self._closing:
                raise self._closed()
            try:
                found = self._reader.execute("SELECT id FROM inspections WHERE key = ?", (key,))
                inspection_id = found.get
                if inspection_id is None:
                    return None
                return inspection_id, read_inspection(self._reader, inspection_id, "")
            except apsw.Error as error:
                raise explained(self.path, error) from None
            except (ValueError, LookupError) as error:
                raise explained(self.path, apsw.CorruptError(str(error))) from None

    def add(
        self,
        run: int,
        position: int,
        origin: str,
        inspection: Inspection,
        key: bytes | None,
        coil: str | None = None,
        light: tuple[float, float] | None = None,
        kept: bool = False,
    ) -> "Future[int]":
        """Adds a result; from any thread.

        A key that is there already keeps its first inspection. A name that the run has already
        stands for the last one added; an earlier inspection of it without key, which now nothing
        refers to, is removed unless somebody reviewed it.

        Args:
            run: from ``begin``.
            position: of the frame in the run, from 0.
            origin: where its bytes can be read again.
            inspection: its ``image`` is the name in the run.
            key: 32 bytes that say what was inspected by what; ``None`` if it must be inspected
                again next time.
            coil: what the frame is a part of.
            light: mean and standard deviation of its grey levels, 0 to 255, where they are wanted.
            kept: ``origin`` is a copy that was made for people to look at.

        Returns:
            The id of the inspection, when it is on the disk; or a ``StoreError``. Its callbacks
            run in the writing thread and must not wait for this store.

        Raises:
            ValueError: the run was not begun here, or the inspection cannot be written: it is of
                another model or decision, or holds numbers that are none.
        """
        begun = self._begun_run(run)
        facts = begun.facts
        if inspection.model != facts.model_id or inspection.decision != facts.decision_sha256[:8]:
            raise ValueError(
                f"{inspection.image}: expected a result of {facts.model_id} and decision "
                f"{facts.decision_sha256[:8]}, got {inspection.model} and {inspection.decision}"
            )
        rows = rows_of(inspection)
        sighting = _sighting(run, position, inspection.image, origin, coil, kept)

        def work() -> int:
            inspection_id = self._add_inspection(begun, rows, key, light)
            self._add_sighting(sighting, inspection_id)
            return inspection_id

        return self._later(work)

    def add_known(
        self,
        run: int,
        position: int,
        origin: str,
        name: str,
        inspection_id: int,
        coil: str | None = None,
        kept: bool = False,
    ) -> "Future[int]":
        """Adds a frame whose inspection is there already; arguments as in ``add``.

        Raises:
            ValueError: the run was not begun here.
        """
        self._begun_run(run)
        sighting = _sighting(run, position, name, origin, coil, kept)

        def work() -> int:
            self._must_be_there(inspection_id)
            self._add_sighting(sighting, inspection_id)
            return inspection_id

        return self._later(work)

    def finish(self, run: int, *, complete: bool) -> None:
        """Writes that a run ended, after all that was added; waits until it is on the disk.

        Raises:
            StoreError: it could not be written.
            ValueError: the run was not begun here.
        """
        self._begun_run(run)
        finished_ms = self._clock_ms()

        def work() -> int:
            self._writer.execute(
                "UPDATE runs SET finished_ms = ?, complete = ? WHERE id = ?",
                (finished_ms, int(complete), run),
            )
            return run

        self._now(work)

    def review(
        self,
        inspection_id: int,
        verdict: Verdict,
        who: str,
        note: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> int:
        """Writes a person's verdict beside the stored one; returns its id when it is on the disk.

        Args:
            inspection_id: from ``add``.
            verdict: of the person.
            who: their name.
            note: what else they say.
            labels: all defects of the frame as the person sees them, RLE by type; ``None`` if they
                said nothing of regions.

        Raises:
            StoreError: there is no such inspection, or it could not be written.
        """
        regions = None if labels is None else json.dumps(dict(labels))
        values = (stored(who), self._clock_ms(), Verdict(verdict).value, stored(note), regions)

        def work() -> int:
            self._must_be_there(inspection_id)
            self._writer.execute(
                "INSERT INTO reviews (inspection, who, reviewed_ms, verdict, note, labels) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (inspection_id, *values),
            )
            return self._writer.last_insert_rowid()

        return self._now(work)

    def undo_review(self, review_id: int, who: str) -> int:
        """Takes a verdict back; its row stays, with the time. Returns the inspection it was of.

        Raises:
            NoSuchReviewError: this person has no such verdict that stands.
            StoreError: it could not be written.
        """
        values = (self._clock_ms(), review_id, stored(who))

        def work() -> int:
            found = self._writer.execute(
                "UPDATE reviews SET undone_ms = ? WHERE id = ? AND who = ? AND undone_ms IS NULL "
                "RETURNING inspection",
                values,
            ).get
            if found is None:
                raise NoSuchReviewError(
                    f"expected a verdict of {escaped(who)} that stands, number {review_id} is none"
                )
            return int(found)

        return self._now(work)

    def close(self) -> None:
        """Commits what waits and lets go of the file; may be called again.

        Raises:
            StoreError: something that was added could not be written.
        """
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        with self._reading:
            self._reader.close(force=True)
        try:
            self._writer.close(force=True)
        except apsw.Error:
            pass  # what was acknowledged is in the log, the next one takes it over
        finally:
            os.close(self._lock_file.release())
        if self._failure is not None:
            raise StoreError(self._failure)

    # -- in any thread -----------------------------------------------------------------------

    def _begun_run(self, run: int) -> _Begun:
        begun = self._begun.get(run)
        if begun is None:
            raise ValueError(f"expected a run that was begun with this store, got {run}")
        return begun

    def _clock_ms(self) -> int:
        return int(self._clock() * 1000)

    def _closed(self) -> StoreError:
        return StoreError(f"expected an open store, {self.path} was closed; open it again")

    def _now(self, work: _Work) -> int:
        return self._later(work, at_once=True).result()

    def _later(self, work: _Work, *, at_once: bool = False) -> "Future[int]":
        future: Future[int] = Future()
        # Cancelling would lose a frame: it is written in any case.
        future.set_running_or_notify_cancel()
        with self._changed:
            most = max(MOST_WAITING, self._group_frames)
            while len(self._waiting) >= most and not (self._failure or self._closing):
                self._changed.wait()
            if self._failure is not None:
                future.set_exception(StoreError(self._failure))
                return future
            if self._closing:
                future.set_exception(self._closed())
                return future
            if not self._waiting:
                self._first_waits_since = time.monotonic()
            self._waiting.append((work, future))
            self._at_once |= at_once
            # The writing thread sleeps while a group grows; each wake-up costs frames their time.
            if self._at_once or len(self._waiting) in (1, self._group_frames):
                self._changed.notify_all()
        return future

    # -- in the writing thread ---------------------------------------------------------------

    def _write(self) -> None:
        while group := self._next_group():
            answers = self._commit([work for work, _ in group])
            for (_, future), answer in zip(group, answers, strict=True):
                if isinstance(answer, int):
                    future.set_result(answer)
                else:
                    future.set_exception(answer)

    def _next_group(self) -> list[tuple[_Work, "Future[int]"]]:
        """All that waits, as soon as it is a group; empty when the store is closed."""
        with self._changed:
            while not self._is_group():
                left_s = None
                if self._waiting:
                    left_s = self._first_waits_since + self._group_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    break
                self._changed.wait(left_s)
            group = list(self._waiting)
            self._waiting.clear()
            self._at_once = False
            self._changed.notify_all()
            return group

    def _is_group(self) -> bool:
        return self._closing or self._at_once or len(self._waiting) >= self._group_frames

    def _commit(self, group: list[_Work]) -> "list[int | StoreError]":
        """Does the work of a group in one transaction; an answer each."""
        answers: list[int | StoreError] = []
        if self._failure is None:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                for work in group:
                    try:
                        answers.append(work())
                    except StoreError as error:  # before it wrote anything
                        answers.append(error)
                self._writer.execute("COMMIT")
                return answers
            except Exception as error:
                self._fail(error)
        return [StoreError(self._failure or "") for _ in group]

    def _fail(self, error: Exception) -> None:
        """From here on nothing is written: what follows a hole must not look complete."""
        with self._changed:
            self._failure = str(explained(self.path, error))
            self._changed.notify_all()
        try:
            rollback(self._writer)
        except apsw.Error:
            self._writer.close(force=True)

    def _id_of(self, table: str, column: str, value: Value) -> int:
        """Id of the row with this natural key; made if it is not there."""
        made = self._writer.execute(
            f"INSERT INTO {table} ({column}) VALUES (?) ON CONFLICT DO NOTHING RETURNING id",  # noqa: S608
            (value,),
        ).get
        if made is None:
            made = self._writer.execute(
                f"SELECT id FROM {table} WHERE {column} = ?",  # noqa: S608
                (value,),
            ).get
        return int(made)

    def _model(self, run: Run) -> int:
        found = self._writer.execute(
            "INSERT INTO models (sha256, name, manifest, folder) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (sha256) DO UPDATE SET folder = excluded.folder RETURNING id",
            (run.model_sha256, run.model_id, run.manifest, stored(run.bundle_folder)),
        )
        return int(found.get)

    def _decision(self, run: Run) -> int:
        found = self._writer.execute(
            "INSERT INTO decisions (sha256, text) VALUES (?, ?) "
            "ON CONFLICT (sha256) DO UPDATE SET text = text RETURNING id",
            (run.decision_sha256, run.decision),
        )
        return int(found.get)

    def _setup(self, begun: _Begun, engine: str) -> int:
        setup = begun.setups.get(engine)
        if setup is None:
            found = self._writer.execute(
                "INSERT INTO setups (engine, settings) VALUES (?, ?) "
                "ON CONFLICT (engine, settings) DO UPDATE SET engine = engine RETURNING id",
                (engine, begun.facts.settings),
            )
            setup = begun.setups[engine] = int(found.get)
        return setup

    def _begin(self, begun: _Begun) -> int:
        run = begun.facts
        values = (
            run.key,
            stored(run.command),
            stored(run.source),
            begun.model,
            begun.decision,
            self._setup(begun, run.engine),
            run.mm_per_px,
            self._clock_ms(),
        )
        found = self._writer.execute(
            "INSERT INTO runs "
            "(key, command, source, model, decision, setup, mm_per_px, started_ms, complete) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0) "
            "ON CONFLICT (key) DO UPDATE SET command = excluded.command, "
            "source = excluded.source, model = excluded.model, decision = excluded.decision, "
            "setup = excluded.setup, mm_per_px = excluded.mm_per_px, finished_ms = NULL, "
            "complete = 0 RETURNING id",
            values,
        )
        return int(found.get)

    def _add_inspection(
        self,
        begun: _Begun,
        rows: InspectionRows,
        key: bytes | None,
        light: tuple[float, float] | None,
    ) -> int:
        connection = self._writer
        sha256 = rows.frame_sha256
        frame = None if sha256 is None else self._id_of("frames", "sha256", sha256)
        made = connection.execute(
            _INSERT_INSPECTION,
            (
                key,
                frame,
                begun.model,
                begun.decision,
                self._setup(begun, rows.engine),
                self._clock_ms(),
                *(light or (None, None)),
                *rows.values,
            ),
        ).get
        if made is None:
            first = connection.execute("SELECT id FROM inspections WHERE key = ?", (key,))
            return int(first.get)
        inspection_id = int(made)
        if rows.defects:
            connection.executemany(
                _INSERT_DEFECT, ((inspection_id, *values) for values in rows.defects)
            )
        return inspection_id

    def _add_sighting(self, sighting: _Sighting, inspection_id: int) -> None:
        connection = self._writer
        coil = None if sighting.coil is None else self._coil(sighting.coil)
        by_name = (sighting.run, sighting.name)
        values = (sighting.position, sighting.origin, inspection_id, coil, sighting.kept)
        made = connection.execute(
            "INSERT INTO sightings (run, name, position, origin, inspection, coil, kept) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run, name) DO NOTHING RETURNING id",
            (*by_name, *values),
        )
        if made.get is not None:
            return
        before = connection.execute(
            "SELECT inspection FROM sightings WHERE run = ? AND name = ?", by_name
        ).get
        connection.execute(
            "UPDATE sightings SET position = ?, origin = ?, inspection = ?, coil = ?, kept = ? "
            "WHERE run = ? AND name = ?",
            (*values, *by_name),
        )
        if before != inspection_id:
            connection.execute(_REMOVE_UNUSED, (before,))

    def _coil(self, name: str | bytes) -> int:
        # Frames of a coil follow each other.
        if self._last_coil[0] != name:
            self._last_coil = (name, self._id_of("coils", "name", name))
        return self._last_coil[1]

    def _must_be_there(self, inspection_id: int) -> None:
        found = self._writer.execute("SELECT 1 FROM inspections WHERE id = ?", (inspection_id,))
        if found.get is None:
            raise StoreError(
                f"expected an inspection in {self.path}, there is no number {inspection_id}; "
                "`steelsight results` lists them"
            )


_INSERT_INSPECTION = (
    f"INSERT INTO inspections (key, frame, model, decision, setup, inspected_ms, "  # noqa: S608
    f"brightness, contrast, {INSPECTION_COLUMNS}) "
    f"VALUES (?{', ?' * (8 + INSPECTION_COLUMNS.count(','))}) "
    "ON CONFLICT (key) DO NOTHING RETURNING id"
)
_INSERT_DEFECT = (
    f"INSERT INTO defects (inspection, {DEFECT_COLUMNS}) "  # noqa: S608
    f"VALUES (?{', ?' * (1 + DEFECT_COLUMNS.count(','))})"
)
_REMOVE_UNUSED = """
DELETE FROM inspections WHERE id = ?1 AND key IS NULL
  AND NOT EXISTS (SELECT 1 FROM sightings WHERE inspection = ?1)
  AND NOT EXISTS (SELECT 1 FROM reviews WHERE inspection = ?1)
"""


def _sighting(
    run: int, position: int, name: str, origin: str, coil: str | None, kept: bool
) -> _Sighting:
    return _Sighting(
        run,
        position,
        stored(name),
        stored(origin),
        None if coil is None else stored(coil),
        1 if kept else None,
    )


class _Lock:
    """An open, locked file."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        _locks.add(self)

    def release(self) -> int:
        """Its descriptor, to be closed by the caller."""
        _locks.discard(self)
        return self.descriptor


_locks: weakref.WeakSet[_Lock] = weakref.WeakSet()


def _forget_locks() -> None:
    # A forked process (a decoder) would hold the lock beyond the death of the writer.
    for lock in list(_locks):
        os.close(lock.release())


os.register_at_fork(after_in_child=_forget_locks)


def _lock(path: Path) -> _Lock:
    """Takes the place of the writer.

    Raises:
        StoreError: it is taken, or the folder cannot be written.
    """
    if path.is_dir():
        raise StoreError(f"expected a file for the store, {path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise StoreError(
            f"expected a folder for the store, {path.parent} is none; make it, or give another file"
        )
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise explained(path, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise StoreError(
                f"expected to be the only writer of {path}, another steelsight writes it; wait "
                "for it, or give another file"
            ) from None
        raise explained(path, error) from None
    return _Lock(descriptor)
