"""The engine room of the service: a bounded queue, the threads that work on it, and the models.

Every accepted frame gets an answer, and it is on the disk before it is given. A frame that finds
the queue full is not accepted. Frames are not put together into batches: one per thread keeps the
cores busier on a CPU (``docs/speed.md``).
"""

import hashlib
import json
import math
import os
import queue
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from threading import Condition, Lock, Thread
from typing import Any

import cv2

from steelsight.data.threads import frame_by_frame
from steelsight.decisions import Decision, decide, parse_decision
from steelsight.decoders import Decoders
from steelsight.defects import Inspection, Reason, Verdict
from steelsight.engine.batch import PASSING, Keys, run_of
from steelsight.engine.cascade import Evidence, Inspector, TakenIn
from steelsight.engine.choice import self_test
from steelsight.engine.runtime import share_threads
from steelsight.errors import BundleError, EngineError, InputError, SteelsightError
from steelsight.store.store import Store

RECENT_TIMES = 64
"""Frames whose time says how long a full queue will last."""
EXPLORED_FRAMES = 8
"""Frames whose masks are kept for other thresholds; one takes 1.6 MB a type."""
RECENT_FRAMES = 32
"""Frames whose bytes are kept for that, at most ``RECENT_BYTES``."""
RECENT_BYTES = 64 << 20
SHADOW_QUEUE, SHADOW_THREAD = 8, "steelsight-shadow"
ONE_OK_IN = 100
"""Of the OK frames so many are kept for people to look at, chosen by their hash."""


class QueueFullError(SteelsightError):
    """The frame was not accepted.

    Attributes:
        retry_after_s: when there may be room.
    """

    def __init__(self, retry_after_s: int, message: str) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Answer:
    """A result that is on the disk.

    Attributes:
        id: of the inspection in the store.
        inspection: its ``image`` is the name that the sender gave.
    """

    id: int
    inspection: Inspection


@dataclass(frozen=True, slots=True)
class RoomSettings:
    """How the service inspects, and where it keeps what.

    Attributes:
        data: folder of ``store.db`` and ``frames/``.
        bundle: its folder; the default bundle if ``None``.
        decision: a decision file to use instead of the bundle's.
        engine: as of ``Inspector.load``.
        threads: inference threads, and frames in work at once; all usable cores if ``None``.
        queue_frames: frames that may wait.
        keep: which frames are kept for people and for replay: ``review`` (NG, UNKNOWN and one OK
            in a hundred), ``all`` or ``none``.
        models: the folder whose bundles may be activated.
        shadow: a bundle that judges along, and whose verdicts are only compared.
        allow_colour: as of ``Inspector.load``.
        mm_per_px: size of a pixel.
    """

    data: Path
    bundle: Path | None = None
    decision: Path | None = None
    engine: str = "auto"
    threads: int | None = None
    queue_frames: int = 32
    keep: str = "review"
    models: Path | None = None
    shadow: Path | None = None
    allow_colour: bool = False
    mm_per_px: float | None = None


@dataclass(slots=True)
class Model:
    """A loaded bundle, and the run that its results belong to."""

    inspector: Inspector
    keys: Keys
    run: int
    since: float
    frames: int = 0

    @property
    def id(self) -> str:
        """``name@sha8``, as results carry it."""
        return self.inspector.bundle.id

    def to_json(self) -> dict[str, Any]:
        """What the model is, what it looks for, and its thresholds."""
        bundle = self.inspector.bundle
        decision = bundle.decision
        return {
            "model": bundle.id,
            "decision": decision.id,
            "engine": self.inspector.engine,
            "classes": [{"id": c.id, "name": c.name, "colour": c.colour} for c in bundle.classes],
            "gate": {"clear_below": decision.gate.clear_below, "ng_from": decision.gate.ng_from},
            "first_look": decision.first_look and {"clear_below": decision.first_look.clear_below},
            "types": {
                name: {
                    "label_from": rule.label_from,
                    "pixel_from": rule.pixel_from,
                    "min_area_px": rule.min_area_px,
                }
                for name, rule in decision.types.items()
            },
            "run": self.run,
            "frames": self.frames,
        }


@dataclass(slots=True)
class Job:
    """A frame that was taken.

    Attributes:
        future: has the answer, or why it could not be kept.
    """

    image: bytes
    name: str
    coil: str | None
    position: int | None
    due_s: float
    deadline_ms: float
    taken_s: float = field(default_factory=time.monotonic)
    future: "Future[Answer]" = field(default_factory=Future)
    _claimed: bool = False
    _claiming: Lock = field(default_factory=Lock)

    def claim(self) -> bool:
        """True for the first who asks: only one result may become the answer."""
        with self._claiming:
            first, self._claimed = not self._claimed, True
            return first


class Room:
    """Takes frames, and answers all that it has taken; a context manager.

    Args:
        settings: see there.
        on_inspection: is told of every answer, in any thread.

    Raises:
        SteelsightError: bundle, engine, store or folder cannot be used.
    """

    def __init__(
        self,
        settings: RoomSettings,
        on_inspection: Callable[[Inspection], None] = lambda _inspection: None,
    ) -> None:
        self.settings = settings
        self.workers = share_threads(settings.threads, 0)[1]
        self._on_inspection = on_inspection
        self._changed = Condition()
        self._waiting: deque[Job] = deque()
        self._in_work = 0
        self._closing = False
        self._recent_s: deque[float] = deque(maxlen=RECENT_TIMES)
        self._switching = Lock()
        self._remembered = _Remembered()
        self.shadow: Model | None = None
        self.shadow_counts: Counter[str] = Counter()
        self._shadow_queue: queue.Queue[tuple[bytes, Inspection] | None] = queue.Queue(SHADOW_QUEUE)
        self._threads: list[Thread] = []
        with ExitStack() as stack:
            self._frames = _made(settings.data / "frames")
            # They start while the model loads.
            self._decoders = stack.enter_context(Decoders(self.workers))
            self.store_path = settings.data / "store.db"
            self._store = stack.enter_context(Store(self.store_path))
            self.active = self._load(settings.bundle, settings.decision)
            if settings.shadow is not None:
                self.shadow = self._load(settings.shadow, None, shadow=True)
            if self.workers > 1:
                stack.enter_context(frame_by_frame())
            self._start()
            self._stack = stack.pop_all()

    def __enter__(self) -> "Room":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------------------------- frames

    @property
    def is_ready(self) -> bool:
        """Whether frames are taken at all."""
        return not self._closing

    @property
    def waiting(self) -> int:
        """Frames that nobody works on yet."""
        return len(self._waiting)

    def check_place(self) -> None:
        """To be asked before a body is read: it would be read for nothing.

        Raises:
            QueueFullError: there is no place in the queue now.
        """
        with self._changed:
            self._check_place()

    def submit(
        self,
        image: bytes,
        name: str,
        *,
        coil: str | None = None,
        position: int | None = None,
        deadline_ms: float | None = None,
    ) -> Job:
        """Takes a frame.

        Args:
            image: as encoded.
            name: as the sender calls it.
            coil: what it is a part of.
            position: of the frame on it; in the order of frames if ``None``.
            deadline_ms: for the answer, from now. Without a verdict by then the answer is UNKNOWN,
                ``timeout``, when somebody asks ``expire`` or its turn comes.

        Raises:
            QueueFullError: it is not taken.
        """
        due_s = math.inf if deadline_ms is None else time.monotonic() + deadline_ms / 1e3
        job = Job(image, name, coil, position, due_s, deadline_ms or math.inf)
        # Whoever took it answers it: an impatient sender does not make it vanish.
        job.future.set_running_or_notify_cancel()
        with self._changed:
            self._check_place()
            self._waiting.append(job)
            self._changed.notify()
        return job

    def _check_place(self) -> None:
        if self._closing:
            raise QueueFullError(5, "expected a running service, it is shutting down; try another")
        if len(self._waiting) >= self.settings.queue_frames:
            frame_s = median(self._recent_s) if self._recent_s else 1.0
            ahead_s = frame_s * len(self._waiting) / self.workers
            raise QueueFullError(
                max(1, math.ceil(ahead_s)),
                f"expected room in the queue, {len(self._waiting)} frames wait; send it again",
            )

    def expire(self, job: Job) -> None:
        """Answers a frame whose deadline has come, if nobody has; may wait for the disk."""
        if job.claim():
            try:
                self._keep(job, self.active, self._late(job, self.active), None)
            except SteelsightError as error:
                job.future.set_exception(error)

    def _start(self) -> None:
        self._threads = [
            Thread(target=self._work, name=f"steelsight-work-{n}") for n in range(self.workers)
        ]
        if self.shadow is not None:
            self._threads.append(
                Thread(target=self._work_in_shadow, args=(self.shadow,), name=SHADOW_THREAD)
            )
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            started_s = time.monotonic()
            model = self.active
            try:
                self._inspect(job, model)
            except Exception as error:  # the thread must go on
                if not job.future.done():
                    job.future.set_exception(error)
            with self._changed:
                self._in_work -= 1
                self._recent_s.append(time.monotonic() - started_s)

    def _next(self) -> Job | None:
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return None
                self._changed.wait()
            self._in_work += 1
            return self._waiting.popleft()

    def _inspect(self, job: Job, model: Model) -> None:
        if time.monotonic() >= job.due_s:
            if job.claim():
                self._keep(job, model, self._late(job, model), None)
            return
        taken = model.inspector.take_in(job.image, job.name)
        key = model.keys.of(taken.sha256, job.name) if taken.sha256 else None
        known = self._store.known(key) if key else None
        if known is not None:
            if job.claim():
                inspection = replace(known[1], image=job.name)
                self._keep(job, model, inspection, key, known[0])
            return
        inspection = model.inspector.judge(taken)
        if not job.claim():
            return
        if time.monotonic() >= job.due_s:
            inspection, key = self._late(job, model), None
        key = None if inspection.reason in PASSING else key
        self._keep(job, model, inspection, key, light=light_of(taken))

    def _late(self, job: Job, model: Model) -> Inspection:
        waited_ms = (time.monotonic() - job.taken_s) * 1e3
        sha256 = hashlib.sha256(job.image).hexdigest()
        return model.inspector.unknown(
            TakenIn(job.name, sha256),
            Reason.TIMEOUT,
            f"expected a verdict within {job.deadline_ms:g} ms after the frame came, there was none"
            f" after {waited_ms:.0f} ms; allow more time, or send fewer frames a second",
        )

    def _keep(
        self,
        job: Job,
        model: Model,
        inspection: Inspection,
        key: bytes | None,
        known_as: int | None = None,
        light: tuple[float, float] | None = None,
    ) -> None:
        """Gives a result to the store, and answers when it is on the disk."""
        origin, kept = self._keep_frame(job, inspection)
        with self._changed:
            number, model.frames = model.frames, model.frames + 1
        # Senders may use a name twice; nothing may take the place of another frame.
        unique = f"{number:08d}/{job.name}"
        position = number if job.position is None else job.position
        if known_as is None:
            stored = replace(inspection, image=unique)
            ticket = self._store.add(
                model.run, position, origin, stored, key, job.coil, light, kept
            )
        else:
            ticket = self._store.add_known(
                model.run, position, origin, unique, known_as, job.coil, kept
            )

        def on_disk(ticket: "Future[int]") -> None:
            error = ticket.exception()
            if error is not None:
                job.future.set_exception(error)
                return
            answer = Answer(ticket.result(), inspection)
            self._remembered.add(answer.id, job.image, job.name)
            try:
                self._on_inspection(inspection)
            finally:  # whatever goes wrong there, the sender waits for this
                job.future.set_result(answer)
            if self.shadow is not None and inspection.reason is not Reason.TIMEOUT:
                try:
                    self._shadow_queue.put_nowait((job.image, inspection))
                except queue.Full:
                    self.shadow_counts["skipped"] += 1

        ticket.add_done_callback(on_disk)

    def _keep_frame(self, job: Job, inspection: Inspection) -> tuple[str, bool]:
        """Where the frame is, or would be if it were kept; whether it is."""
        sha256 = inspection.sha256 or hashlib.sha256(job.image).hexdigest()
        suffix = Path(job.name).suffix.lower()
        suffix = suffix if suffix[1:].isalnum() and len(suffix) <= 5 else ""
        path = self._frames / sha256[:2] / f"{sha256}{suffix}"
        kept = self.settings.keep == "all" or (
            self.settings.keep == "review"
            and (inspection.verdict is not Verdict.OK or int(sha256[:8], 16) % ONE_OK_IN == 0)
        )
        if kept and not path.exists():
            path.parent.mkdir(exist_ok=True)
            beside = path.with_name(f".{path.name}-{id(job):x}")
            try:
                beside.write_bytes(job.image)
                beside.replace(path)
            except OSError as error:
                with suppress(OSError):
                    beside.unlink(missing_ok=True)
                raise EngineError(
                    f"expected to keep the frame in {path.parent}, got: {error}; make room, or "
                    "start with --keep none"
                ) from None
        return str(path), kept

    def kept(self, origin: str | None) -> bytes | None:
        """The bytes of a frame that was kept; ``None`` if it was not, or was removed."""
        path = self.kept_at(origin)
        try:
            return None if path is None else path.read_bytes()
        except OSError:
            return None

    def kept_at(self, origin: str | None) -> Path | None:
        """Its file."""
        path = Path(origin or "")
        # A store can hold runs of other programs: only what the service kept is told.
        inside = self._frames.resolve() in path.resolve().parents
        return path if inside and path.is_file() else None

    # ---------------------------------------------------------------------------------- models

    def activate(self, bundle: Path | None, decision: Path | None = None) -> Model:
        """Loads a bundle, tests it, and switches to it; frames in work end on the old one.

        Raises:
            SteelsightError: it cannot be used, or another one is being activated; nothing changed.
        """
        if not self._switching.acquire(blocking=False):
            raise InputError("another model is being activated; try again when it is done")
        try:
            model = self._load(bundle, decision)
            with self._changed:
                before, self.active = self.active, model
            self._remembered.forget_masks()
            self._store.finish(before.run, complete=False)
            return model
        finally:
            self._switching.release()

    def _load(self, bundle: Path | None, decision: Path | None, *, shadow: bool = False) -> Model:
        settings = self.settings
        inspector = Inspector.load(
            bundle,
            decision=decision,
            engine=settings.engine,
            threads=self.workers,
            workers=self.workers,
            allow_colour=settings.allow_colour,
            decode=self._decoders.decode,
        )
        # It warms the engine up, too.
        _, difference = self_test(inspector)
        if difference:
            raise BundleError(
                f"{inspector.bundle.id}: expected the recorded answer to its self-test frame, "
                f"{difference}; export the bundle again"
            )
        since = time.time()
        if shadow:
            return Model(inspector, Keys(inspector), 0, since)
        identity = {"service": os.getpid(), "since": time.time_ns()}
        run = run_of(
            inspector,
            identity,
            command="steelsight serve",
            source="HTTP",
            mm_per_px=settings.mm_per_px,
        )
        return Model(inspector, Keys(inspector), self._store.begin(run), since)

    def _work_in_shadow(self, shadow: Model) -> None:
        while (given := self._shadow_queue.get()) is not None:
            image, told = given
            with suppress(Exception):  # it must not disturb
                said = shadow.inspector.inspect(image, told.image)
                shadow.frames += 1
                self.shadow_counts[f"{told.verdict.value} {said.verdict.value}"] += 1

    # --------------------------------------------------------------------------------- explore

    def explore(self, inspection_id: int, changes: Mapping[str, Any]) -> Inspection:
        """A recent frame under other thresholds; nothing is stored.

        Args:
            inspection_id: from an answer.
            changes: tables ``gate`` and ``types`` of the decision file, as far as they change.

        Raises:
            LookupError: the frame is not at hand any more.
            InputError: a threshold is impossible.
        """
        model = self.active
        decision = _changed(model.inspector.bundle.decision, changes)
        image, name = self._remembered.image(inspection_id)
        taken, evidence = self._remembered.masks(inspection_id, lambda: _look(model, image, name))
        if taken.frame is None or evidence is None:
            return model.inspector.judge(taken)
        started = time.perf_counter()
        met = evidence.met_by(decision)
        faulty_probability = met.faulty_probability
        judgement = decide(*met[:3], decision)
        return Inspection(
            image=name,
            sha256=taken.sha256,
            verdict=judgement.verdict,
            reason=judgement.reason,
            detail=judgement.detail,
            faulty_probability=faulty_probability if math.isfinite(faulty_probability) else None,
            class_probabilities=judgement.class_probabilities,
            defects=judgement.defects,
            size_wh=taken.frame.size_wh,
            model=model.id,
            decision=decision.id,
            engine=model.inspector.engine,
            milliseconds={"decide": (time.perf_counter() - started) * 1e3},
            notes=taken.frame.notes + model.inspector.notes(taken.frame, evidence, decision),
        )

    # ------------------------------------------------------------------------------------- end

    def review(
        self,
        inspection_id: int,
        verdict: Verdict,
        who: str,
        note: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> int:
        """As ``Store.review``."""
        return self._store.review(inspection_id, verdict, who, note, labels)

    def undo_review(self, review_id: int, who: str) -> int:
        """As ``Store.undo_review``."""
        return self._store.undo_review(review_id, who)

    def close(self) -> None:
        """Takes no more frames, answers those that it has, and closes the store."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.name == SHADOW_THREAD:
                with suppress(queue.Empty):
                    while True:  # what it has not done yet it need not do
                        self._shadow_queue.get_nowait()
                self._shadow_queue.put(None)
            thread.join()
        with suppress(SteelsightError):
            self._store.finish(self.active.run, complete=True)
        self._stack.close()


class _Remembered:
    """Bytes of the last frames, and masks of those that were explored."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._looking = Lock()
        self._images: OrderedDict[int, tuple[bytes, str]] = OrderedDict()
        self._bytes = 0
        self._masks: OrderedDict[int, tuple[TakenIn, Evidence | None]] = OrderedDict()

    def add(self, inspection_id: int, image: bytes, name: str) -> None:
        with self._lock:
            self._bytes += len(image) - len(self._images.pop(inspection_id, (b"", ""))[0])
            self._images[inspection_id] = (image, name)
            while len(self._images) > RECENT_FRAMES or self._bytes > RECENT_BYTES:
                self._bytes -= len(self._images.popitem(last=False)[1][0])

    def image(self, inspection_id: int) -> tuple[bytes, str]:
        with self._lock:
            return self._images[inspection_id]

    def masks(
        self, inspection_id: int, look: Callable[[], tuple[TakenIn, Evidence | None]]
    ) -> tuple[TakenIn, Evidence | None]:
        # One at a time: a slider asks faster than the network answers.
        with self._looking:
            if inspection_id not in self._masks:
                self._masks[inspection_id] = look()
                while len(self._masks) > EXPLORED_FRAMES:
                    self._masks.popitem(last=False)
            self._masks.move_to_end(inspection_id)
            return self._masks[inspection_id]

    def forget_masks(self) -> None:
        with self._looking:
            self._masks.clear()


def sent_name(stored_name: str) -> str:
    """The name that the sender gave, of the unique one in the store."""
    number, slash, name = stored_name.partition("/")
    return name if slash and len(number) == 8 and number.isdigit() else stored_name


def light_of(taken: TakenIn) -> tuple[float, float] | None:
    """Mean and standard deviation of the grey levels, 0 to 255; ``None`` if not decoded."""
    if taken.frame is None:
        return None
    mean, deviation = cv2.meanStdDev(taken.frame.grey_hw)
    return float(mean[0, 0]), float(deviation[0, 0])


def _look(model: Model, image: bytes, name: str) -> tuple[TakenIn, Evidence | None]:
    taken = model.inspector.take_in(image, name)
    if taken.frame is None:
        return taken, None
    return taken, model.inspector.look(taken.frame.grey_hw)


def _changed(decision: Decision, changes: Mapping[str, Any]) -> Decision:
    """The decision with other thresholds, under the hash of what they are.

    Raises:
        InputError: an unknown table, type or key, or an impossible value.
    """
    tables = decision.model_dump(mode="json", exclude={"sha256", "text"}, exclude_none=True)
    for name, table in changes.items():
        if name not in ("gate", "types"):
            raise InputError(f"expected tables gate and types, got {name!r}; see docs/decisions.md")
        _change(tables[name], table, name)
    return parse_decision(_toml(tables).encode(), list(tables["types"]), where="thresholds")


def _change(table: dict[str, Any], changes: object, where: str) -> None:
    """Puts other numbers into a table; there is nothing else to change."""
    if not isinstance(changes, Mapping):
        raise InputError(f"{where}: expected a table, got {changes!r:.80}")
    for key, value in changes.items():
        if key not in table:
            raise InputError(f"{where}: expected {', '.join(table)}, got {key!r:.80}; leave it out")
        if isinstance(table[key], dict):
            _change(table[key], value, f"{where}.{key}")
        elif type(value) not in (int, float) or not math.isfinite(value):
            raise InputError(f"{where}.{key}: expected a number, got {value!r:.80}")
        else:
            table[key] = value


def _toml(tables: Mapping[str, Any]) -> str:
    """The tables of a decision file as TOML; strings and numbers only."""

    def lines(table: Mapping[str, Any]) -> str:
        # A JSON string or number is a TOML one, too.
        return "".join(
            f"{key} = {json.dumps(value, ensure_ascii=False)}\n"
            for key, value in table.items()
            if not isinstance(value, dict)
        )

    single = [name for name in ("gate", "input", "first_look") if name in tables]
    parts = [lines(tables), *(f"[{name}]\n{lines(tables[name])}" for name in single)]
    parts += [f"[types.{name}]\n{lines(table)}" for name, table in tables["types"].items()]
    return "\n".join(parts)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"expected a folder to write to at {folder}, got: {error}; give another --data"
        ) from None
    return folder
