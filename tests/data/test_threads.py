"""Work in threads: in order, bounded, and OpenCV's own threads come back."""

import threading
import time

import cv2
import pytest

from steelsight.data.threads import frame_by_frame, in_order


def test_results_are_in_order_and_only_a_few_are_ahead():
    started: list[int] = []

    def work(item: int) -> int:
        started.append(item)
        time.sleep(0.002 * (item % 3))
        return item * item

    results = in_order(work, iter(range(100)), threads=2)
    assert next(results) == 0
    time.sleep(0.1)
    assert len(started) <= 10
    assert list(results) == [i * i for i in range(1, 100)]


def test_it_really_is_more_than_one_thread():
    both = threading.Barrier(2, timeout=10)
    assert len(list(in_order(lambda _: both.wait(), range(2), threads=2))) == 2


def test_an_error_comes_out_and_opencv_gets_its_threads_back():
    before = cv2.getNumThreads()

    def fail(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return cv2.getNumThreads()

    results = in_order(fail, range(50), threads=2)
    assert next(results) == 1
    with pytest.raises(ValueError, match="three"):
        list(results)
    assert cv2.getNumThreads() == before


def test_overlapping_users_restore_what_the_first_found() -> None:
    before = cv2.getNumThreads()
    first, second = frame_by_frame(), frame_by_frame()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert cv2.getNumThreads() == 1
    second.__exit__(None, None, None)
    assert cv2.getNumThreads() == before
