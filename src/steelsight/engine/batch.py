"""Many frames: results in order, each on the disk before it is told, none computed twice."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

from steelsight import __version__
from steelsight.bundle import MANIFEST
from steelsight.defects import Inspection, Reason
from steelsight.engine.cascade import Inspector, TakenIn
from steelsight.engine.runtime import engine_version
from steelsight.engine.sources import STDIN, Source
from steelsight.errors import DecodeError
from steelsight.imaging import Frame
from steelsight.store.queries import Results
from steelsight.store.store import Run, Store


class Keys:
    """By what an inspection is found again: everything that its result follows from.

    That is the content, the model, the decision file, and the settings: engine and its version,
    which images are accepted, the version of this program. The end of the name belongs to the
    content: it may contradict it (``wrong-extension``).

    Attributes:
        settings: canonical JSON.
    """

    def __init__(self, inspector: Inspector) -> None:
        facts = {
            "engine": inspector.engine,
            "engine_version": engine_version(inspector.engine.partition("-")[0]),
            "policy": asdict(inspector.policy),
            "steelsight": __version__,
        }
        self.settings = json.dumps(facts, sort_keys=True)
        bundle = inspector.bundle
        same = json.dumps([bundle.sha256, bundle.decision.sha256, self.settings])
        self._same = hashlib.sha256(same.encode())

    def of(self, sha256: str, name: str) -> bytes:
        """32 bytes for one content under one name.

        Args:
            sha256: of the content, as results carry it.
            name: as results carry it; what counts is its suffix.
        """
        key = self._same.copy()
        key.update(bytes.fromhex(sha256))
        key.update(PurePosixPath(name).suffix.lower().encode())
        return key.digest()


@dataclass(frozen=True, slots=True)
class Known:
    """An inspection that was found again.

    Attributes:
        inspection: of the same content; its ``image`` may be another name.
        inspection_id: where it stands in the store of this run; ``None`` if only in another.
    """

    inspection: Inspection
    inspection_id: int | None


@dataclass(frozen=True, slots=True)
class Inspected:
    """A result, and what it came from.

    Attributes:
        source: the thing that got the result.
        inspection: the result.
        frame: the decoded frame; ``None`` where decoding was refused.
        key: finds the result again; ``None`` where the next run should look again.
        known_as: of the inspection in the store, if it was there before.
    """

    source: Source
    inspection: Inspection
    frame: Frame | None
    key: bytes | None = None
    known_as: int | None = None


PASSING = frozenset(
    {
        Reason.UNREADABLE,
        Reason.NOT_A_FILE,
        Reason.ENGINE_FAILED,
        Reason.TIMEOUT,
        Reason.DECODER_CRASHED,
        Reason.DECODER_HUNG,
        Reason.DECODER_MEMORY,
    }
)
"""Reasons that may be gone the next time: such frames are inspected again."""


MOST_UNACKNOWLEDGED = 64
"""Results on their way to the disk: two groups of the store."""


class Record:
    """A run in a store: what it knows already, and what is added to it.

    Args:
        store: open for writing.
        run: an earlier run of the same key is continued.
        others: stores that are asked too, such as those of other shards.
        coil: of all frames of the run.
    """

    def __init__(
        self, store: Store, run: Run, others: Sequence[Results] = (), coil: str | None = None
    ) -> None:
        self._store = store
        self._others = tuple(others)
        self._asking = Lock()
        self._coil = coil
        self._run = store.begin(run)

    def known(self, key: bytes) -> Known | None:
        """What was said before about a content; any thread may ask."""
        here = self._store.known(key)
        if here is not None:
            return Known(here[1], here[0])
        with self._asking:
            for other in self._others:
                if (there := other.known(key)) is not None:
                    return Known(there, None)
        return None

    def acknowledged(self, results: Iterable["Inspected"]) -> Generator["Inspected"]:
        """Each result, when it is on the disk.

        Raises:
            StoreError: it cannot be written.
        """
        waiting: deque[tuple[Inspected, Future[int]]] = deque()
        for position, inspected in enumerate(results):
            waiting.append((inspected, self._add(position, inspected)))
            while waiting[0][1].done() or len(waiting) > MOST_UNACKNOWLEDGED:
                yield _on_disk(*waiting.popleft())
                if not waiting:
                    break
        while waiting:
            yield _on_disk(*waiting.popleft())

    def finish(self, *, complete: bool) -> None:
        """Notes that the run has ended.

        Args:
            complete: every source has its result.
        """
        self._store.finish(self._run, complete=complete)

    def _add(self, position: int, inspected: "Inspected") -> Future[int]:
        source, inspection = inspected.source, inspected.inspection
        if inspected.known_as is not None:
            return self._store.add_known(
                self._run, position, source.origin, source.name, inspected.known_as, self._coil
            )
        return self._store.add(
            self._run, position, source.origin, inspection, inspected.key, self._coil
        )


def run_of(
    inspector: Inspector,
    identity: Mapping[str, Any],
    *,
    command: str,
    source: str,
    mm_per_px: float | None = None,
) -> Run:
    """What a store notes of a run; arguments as in ``recording``."""
    bundle = inspector.bundle
    return Run(
        key=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        command=command,
        source=source,
        model_id=bundle.id,
        model_sha256=bundle.sha256,
        manifest=(bundle.folder / MANIFEST).read_text(encoding="utf-8"),
        bundle_folder=str(bundle.folder.resolve()),
        decision_sha256=bundle.decision.sha256,
        decision=bundle.decision.text,
        engine=inspector.engine,
        settings=Keys(inspector).settings,
        mm_per_px=mm_per_px,
    )


@contextmanager
def recording(
    path: Path,
    inspector: Inspector,
    identity: Mapping[str, Any],
    *,
    command: str,
    source: str,
    others: Sequence[Path] = (),
    coil: str | None = None,
    mm_per_px: float | None = None,
) -> Iterator[Record]:
    """Opens a store for a run, and closes it with everything on the disk.

    Args:
        path: the store; made if it is not there.
        inspector: what inspects.
        identity: the same for the same command; see ``identity_of``.
        command: as it was given.
        source: where the frames come from, in words.
        others: stores whose results are taken over.
        coil: of all frames.
        mm_per_px: size of a pixel.

    Raises:
        StoreError: a store cannot be opened.
    """
    run = run_of(inspector, identity, command=command, source=source, mm_per_px=mm_per_px)
    with ExitStack() as stack:
        known = [stack.enter_context(Results(other)) for other in others]
        store = stack.enter_context(Store(path))
        yield Record(store, run, known, coil)


def identity_of(inspector: Inspector, inputs: Iterable[Path]) -> dict[str, Any]:
    """What the results of a run follow from, in words for people and as JSON.

    Args:
        inspector: the loaded bundle, on its engine.
        inputs: as given.
    """
    bundle = inspector.bundle
    return {
        # Links stay. What a list names is not part of it: a folder's files are not either.
        "inputs": [str(p) if p == STDIN else os.path.abspath(p) for p in inputs],  # noqa: PTH100
        "model": f"{bundle.id} {bundle.sha256}",
        "decision": bundle.decision.sha256,
        "settings": json.loads(Keys(inspector).settings),
    }


def _on_disk(inspected: "Inspected", ticket: Future[int]) -> "Inspected":
    ticket.result()
    return inspected


def inspect_sources(
    inspector: Inspector,
    sources: Iterable[Source],
    record: Record | None = None,
) -> Generator[Inspected]:
    """One result per source, in order.

    Args:
        inspector: the loaded bundle.
        sources: what to inspect; taken as needed.
        record: where results are kept. What it knows by its key is not computed again, and a
            result is handed over when it is on the disk.

    Raises:
        StoreError: a result cannot be kept.
    """
    keys = Keys(inspector) if record else None

    def take(source: Source) -> tuple[Source, TakenIn]:
        if isinstance(source.content, DecodeError):
            return source, TakenIn(source.name, refusal=source.content)
        image = source.path if source.content is None else source.content
        taken = inspector.take_in(b"" if image is None else image, source.name)
        # The bytes are not needed any more.
        return replace(source, content=None), taken

    def judge(pair: tuple[Source, TakenIn]) -> Inspected:
        source, taken = pair
        key = keys.of(taken.sha256, source.name) if keys and taken.sha256 else None
        found = record.known(key) if record and key else None
        if found is not None:
            inspection = replace(found.inspection, image=source.name)
            return Inspected(source, inspection, taken.frame, key, found.inspection_id)
        inspection = inspector.judge(taken)
        if inspection.reason in PASSING:
            key = None
        return Inspected(source, inspection, taken.frame, key)

    # Closed with this generator, whatever happens: its threads end.
    with closing(inspector.ahead(sources, take, judge)) as results:
        yield from record.acknowledged(results) if record else results
