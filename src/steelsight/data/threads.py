"""Work on many frames at once, in order and in bounded memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import cv2

T = TypeVar("T")
R = TypeVar("R")

_FREED_BYTES = 31 << 20
"""Just below what glibc keeps: its limit follows the largest block that was freed."""

_opencv_lock = Lock()
_opencv_before: list[int] = []


def in_order(work: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> Iterator[R]:
    """Results in the order of the items; only a few of them are in memory at any time.

    Threads pay where files and decoders let each other run for milliseconds. Label files are not
    read and written so: with many short steps per frame, threads that wait for each other take
    longer than one.

    Args:
        work: called for each item, in any thread.
        items: taken one by one.
        threads: how many; all cores by default.
    """
    threads = threads or os.cpu_count() or 1
    waiting: deque[Future[R]] = deque()
    with frame_by_frame(), ThreadPoolExecutor(threads, "steelsight-data") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def frame_by_frame() -> Iterator[None]:
    """Settings for work on frame after frame.

    OpenCV starts no threads of its own: waiting for each other and for those of :func:`in_order`,
    they cost a quarter of the processor time of a scan.
    """
    # glibc gives arrays of a frame's size back to the system as soon as they are freed, and the
    # next frame pays for fresh pages (a tenth of a scan), until something larger was freed once.
    bytearray(_FREED_BYTES)
    # The number belongs to the process: of several at once the first sets, the last restores it.
    with _opencv_lock:
        if not _opencv_before:
            _opencv_before.append(cv2.getNumThreads())
            cv2.setNumThreads(1)
        else:
            _opencv_before.append(_opencv_before[0])
    try:
        yield
    finally:
        with _opencv_lock:
            before = _opencv_before.pop()
            if not _opencv_before:
                cv2.setNumThreads(before)
