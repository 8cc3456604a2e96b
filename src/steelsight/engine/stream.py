"""Work on frame after frame in threads: results in order, in bounded memory, by a deadline.

Threads and not processes: decoders, engines and OpenCV let other threads run while they compute.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from threading import Condition, Thread
from time import monotonic
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

WORK_THREAD, FEEDER_THREAD = "steelsight-work", "steelsight-feeder"
_SOURCE_PATIENCE_S = 1.0
_WORK_PATIENCE_S = 5.0


def in_order(
    work: Callable[[T], R], items: Iterable[T], workers: int, ahead: int, name: str = WORK_THREAD
) -> Generator[R]:
    """Results in the order of the items, which the caller's thread takes as they are needed.

    At most ``workers + ahead`` items are taken whose result was not handed over. What the source
    raises comes after the results of all that it gave. Closing the generator ends the threads,
    each after what it is working on.

    Args:
        work: called for each item, in any of the threads.
        items: may be endless.
        workers: threads, and items in work at once.
        ahead: items taken beyond those in work.
        name: of the threads.
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers, name)
    broken: Exception | None = None
    source = iter(items)
    try:
        while True:
            try:
                waiting.append(pool.submit(work, next(source)))
            except StopIteration:
                break
            except Exception as error:
                broken = error
                break
            if len(waiting) == workers + ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if broken is not None:
            raise broken
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Late(Generic[T]):
    """In place of a result that was not there at its deadline.

    Attributes:
        item: what the source gave.
        waited_s: from its taking to the moment at which it was given up.
        begun: whether a worker had begun with it.
    """

    item: T
    waited_s: float
    begun: bool


class _State(Enum):
    WAITING = auto()
    BEGUN = auto()
    DONE = auto()


class _Taken(Generic[T, R]):
    """One item on its way."""

    __slots__ = ("failure", "finished_s", "item", "result", "state", "taken_s")

    result: R

    def __init__(self, item: T, taken_s: float) -> None:
        self.item = item
        self.taken_s = taken_s
        self.state = _State.WAITING
        self.finished_s = math.inf
        self.failure: Exception | None = None


class Stream(Generic[T, R]):
    """Results in order, each in time or given up.

    A feeder thread takes items as they come and notes when. Workers take the oldest that nobody
    works on, unless its time is over: such an item costs nothing. Whoever asks for results waits
    for the oldest until its deadline. A result that comes later is dropped: its place in the order
    was given away.

    At most ``workers + ahead`` items wait for their result to be handed over. With more, the feeder
    stops taking, and the source must wait or lose frames by itself: a deadline begins when an item
    is taken.

    Args:
        work: called for each item, in any of the workers.
        items: may be endless, may wait for a camera.
        workers: threads, and items in work at once.
        ahead: items taken beyond those in work.
        deadline_s: seconds from the taking of an item; infinity for none.
    """

    def __init__(
        self,
        work: Callable[[T], R],
        items: Iterable[T],
        workers: int,
        ahead: int,
        deadline_s: float,
    ) -> None:
        self._work = work
        self._source = iter(items)
        self._workers = workers
        self._room = workers + ahead
        self._deadline_s = deadline_s
        # All below belongs to the lock of this condition.
        self._changed = Condition()
        self._taken: deque[_Taken[T, R]] = deque()
        self._ended = False
        self._broken: BaseException | None = None
        self._closed = False

    def results(self) -> Generator[R | Late[T]]:
        """One per item, in order; then whatever the source raised.

        Closing it ends the threads, each after what it is working on; with a deadline, one that
        takes longer than five seconds is left behind. A feeder that waits for the source is given a
        second; it ends when the next item comes, whenever that is.
        """
        # Daemons: an engine or a camera that hangs must not keep the process from ending.
        feeder = Thread(target=self._feed, name=FEEDER_THREAD, daemon=True)
        workers = [
            Thread(target=self._serve, name=f"{WORK_THREAD}_{n}", daemon=True)
            for n in range(self._workers)
        ]
        for thread in (feeder, *workers):
            thread.start()
        try:
            while (oldest := self._oldest()) is not None:
                yield self._outcome(oldest)
                with self._changed:
                    self._taken.popleft()
                    self._changed.notify_all()
            if self._broken is not None:
                raise self._broken
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            # With a deadline nobody waits for an engine that hangs.
            patience_s = None if math.isinf(self._deadline_s) else _WORK_PATIENCE_S
            for worker in workers:
                worker.join(patience_s)
            feeder.join(_SOURCE_PATIENCE_S)

    def _feed(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._taken) < self._room)
                if self._closed:
                    return
            try:
                item = next(self._source)
            except BaseException as error:
                with self._changed:
                    self._ended = True
                    self._broken = None if isinstance(error, StopIteration) else error
                    self._changed.notify_all()
                return
            with self._changed:
                self._taken.append(_Taken(item, monotonic()))
                self._changed.notify_all()

    def _serve(self) -> None:
        while (taken := self._next_to_do()) is not None:
            try:
                taken.result = self._work(taken.item)
            except Exception as error:
                taken.failure = error
            with self._changed:
                taken.finished_s = monotonic()
                taken.state = _State.DONE
                self._changed.notify_all()
            # Nothing is held while waiting for the next.
            del taken

    def _next_to_do(self) -> _Taken[T, R] | None:
        """The oldest item that nobody works on and whose time is not over; waits for it."""
        with self._changed:
            while not self._closed:
                now = monotonic()
                for taken in self._taken:
                    if taken.state is _State.WAITING and now < self._due(taken):
                        taken.state = _State.BEGUN
                        return taken
                if self._ended and not any(t.state is _State.WAITING for t in self._taken):
                    return None
                self._changed.wait()
        return None

    def _oldest(self) -> _Taken[T, R] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._taken or self._ended)
            return self._taken[0] if self._taken else None

    def _outcome(self, taken: _Taken[T, R]) -> R | Late[T]:
        """Waits until an item is done or its time is over."""
        due = self._due(taken)
        with self._changed:
            while taken.state is not _State.DONE and (now := monotonic()) < due:
                self._changed.wait(None if math.isinf(due) else due - now)
            if taken.state is _State.DONE and taken.finished_s <= due:
                if taken.failure is not None:
                    raise taken.failure
                return taken.result
            begun = taken.state is not _State.WAITING
            if not begun:
                # So that no worker begins with it now.
                taken.state = _State.BEGUN
            return Late(taken.item, monotonic() - taken.taken_s, begun)

    def _due(self, taken: _Taken[T, R]) -> float:
        return taken.taken_s + self._deadline_s
