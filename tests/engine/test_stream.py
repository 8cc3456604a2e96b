"""Many frames in threads: order, bounds, ends and deadlines. Time is a number that tests set."""

import gc
import itertools
import math
import threading
import time
import weakref
from contextlib import closing
from pathlib import Path

import cv2
import pytest

from steelsight.defects import Reason, Verdict
from steelsight.engine import stream as module
from steelsight.engine.batch import inspect_sources
from steelsight.engine.sources import Source
from steelsight.engine.stream import Late, Stream, in_order
from steelsight.errors import EngineError, InputError

AHEAD = 4
PATIENCE_S = 60
"""Only a broken pipeline waits so long."""


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("steelsight-")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not threads()


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


class Given:
    """Gives items; tells when it was asked for one more than it has, so that all are taken."""

    def __init__(self, items, error: BaseException | None = None) -> None:
        self.all_taken = threading.Event()
        self._items, self._error = items, error

    def __iter__(self):
        yield from self._items
        self.all_taken.set()
        if self._error:
            raise self._error


def wait(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S)


# ---------------------------------------------------------------------------------------- in order


def run_in_order(work, items, workers):
    return in_order(work, items, workers, AHEAD)


def run_stream(work, items, workers):
    return Stream(work, items, workers, AHEAD, math.inf).results()


BOTH = pytest.mark.parametrize("run", [run_in_order, run_stream], ids=["in_order", "stream"])


@BOTH
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_item_has_its_result_in_order(run, workers):
    assert list(run(lambda n: n * n, range(100), workers)) == [n * n for n in range(100)]
    assert list(run(lambda n: n, [], workers)) == []


@BOTH
def test_a_later_item_may_be_done_first(run):
    second_done = threading.Event()

    def work(n):
        if n == 0:
            wait(second_done)
        elif n == 1:
            second_done.set()
        return n

    assert list(run(work, range(3), 2)) == [0, 1, 2]


@BOTH
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_as_many_as_workers_are_in_work_at_once_and_no_more(run, workers):
    together = threading.Barrier(workers, timeout=PATIENCE_S)
    lock, busy, most = threading.Lock(), 0, 0

    def work(n):
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        together.wait()
        with lock:
            busy -= 1
        together.wait()
        return n

    assert list(run(work, range(4 * workers), workers)) == list(range(4 * workers))
    assert most == workers


@BOTH
@pytest.mark.parametrize("workers", [1, 3])
def test_few_items_are_taken_before_their_result_is_fetched(run, workers):
    taken = fetched = 0

    def endless():
        nonlocal taken
        for n in itertools.count():
            taken += 1
            # The one that is being asked for counts as fetched.
            assert taken <= fetched + workers + AHEAD
            yield n

    results = run(lambda n: n, endless(), workers)
    assert taken == 0
    for expected in range(30):
        assert next(results) == expected
        fetched += 1
    results.close()
    assert taken < 30 + workers + AHEAD + 1


@BOTH
def test_what_the_source_raises_comes_after_the_results(run):
    results = run(lambda n: n, Given([1, 2], RuntimeError("camera unplugged")), 2)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(RuntimeError, match="camera unplugged"):
        next(results)


@BOTH
def test_closing_early_ends_the_threads_after_what_they_work_on(run):
    begun, go_on, done = threading.Event(), threading.Event(), []

    def work(n):
        if n == 1:
            begun.set()
            wait(go_on)
        done.append(n)
        return n

    results = run(work, itertools.count(), 1)
    assert next(results) == 0
    wait(begun)
    threading.Timer(0.02, go_on.set).start()
    results.close()
    assert done == [0, 1]


@BOTH
def test_not_beginning_starts_no_thread(run):
    results = run(lambda n: n, range(3), 2)
    assert not threads()
    results.close()


@BOTH
def test_what_the_work_raises_comes_through(run):
    with pytest.raises(ZeroDivisionError):
        list(run(lambda n: 1 // n, [1, 0, 2], 1))


# ---------------------------------------------------------------------------------------- deadlines


def test_a_result_comes_before_the_next_item_is_there():
    """A camera that waits for its next frame holds back no verdict."""
    fetched = threading.Event()

    def camera():
        yield 1
        wait(fetched)
        yield 2

    with closing(Stream(lambda n: n, camera(), 1, AHEAD, math.inf).results()) as results:
        assert next(results) == 1
        fetched.set()
        assert list(results) == [2]


@pytest.fixture
def late(clock):
    """A stream whose first item is done, whose second hangs, and whose others wait; the clock
    stands at 6 s after all were taken, the deadline is 5 s."""

    class Scene:
        def __init__(self, others) -> None:
            self.worked_on, self.go_on = [], threading.Event()
            begun, source = threading.Event(), Given(["first", "hangs", *others])

            def work(item):
                self.worked_on.append(item)
                if item == "hangs":
                    begun.set()
                    wait(self.go_on)
                return item

            self.results = Stream(work, source, 1, AHEAD, 5.0).results()
            assert next(self.results) == "first"
            wait(begun)
            wait(source.all_taken)
            clock.now_s += 6

    return Scene


def test_an_item_in_work_at_its_deadline_is_late_and_its_result_is_dropped(late):
    scene = late(["a"])
    assert next(scene.results) == Late("hangs", 6.0, begun=True)
    scene.go_on.set()
    assert [type(r) for r in scene.results] == [Late]
    assert not threads()


def test_an_item_whose_turn_comes_after_its_deadline_is_not_worked_on(late):
    scene = late(["a", "b"])
    scene.go_on.set()
    assert list(scene.results) == [
        Late("hangs", 6.0, begun=True),
        Late("a", 6.0, begun=False),
        Late("b", 6.0, begun=False),
    ]
    assert scene.worked_on == ["first", "hangs"]


def test_a_line_goes_on_after_a_frame_that_hung(clock):
    """What was taken after the hang has time of its own, and no result stands for two items."""
    begun, go_on, more = threading.Event(), threading.Event(), threading.Event()

    def camera():
        yield "first"
        yield "hangs"
        wait(more)
        yield from ("a", "b")

    def work(item):
        if item == "hangs":
            begun.set()
            wait(go_on)
        return item

    results = Stream(work, camera(), 1, AHEAD, 5.0).results()
    assert next(results) == "first"
    wait(begun)
    clock.now_s += 6
    assert next(results) == Late("hangs", 6.0, begun=True)
    more.set()
    go_on.set()
    assert list(results) == ["a", "b"]


def test_another_worker_goes_on_while_one_hangs(clock):
    go_on, others_done = threading.Event(), threading.Event()

    def work(item):
        if item == "hangs":
            wait(go_on)
        if item == 3:
            others_done.set()
        return item

    results = Stream(work, ["first", "hangs", 1, 2, 3], 2, AHEAD, 5.0).results()
    assert next(results) == "first"
    wait(others_done)
    # From the end of the work to the note of its end there is a moment.
    until(lambda: taken_by(results)[-1].state is module._State.DONE)
    clock.now_s += 6
    assert next(results) == Late("hangs", 6.0, begun=True)
    go_on.set()
    # They were done in time, and nobody had asked.
    assert list(results) == [1, 2, 3]


def test_an_engine_that_hangs_does_not_hold_up_the_end(clock, monkeypatch):
    monkeypatch.setattr(module, "_WORK_PATIENCE_S", 0.01)
    go_on, begun = threading.Event(), threading.Event()

    def items():
        yield 1
        wait(begun)
        clock.now_s += 6

    def work(item):
        begun.set()
        wait(go_on)
        return item

    assert list(Stream(work, items(), 1, AHEAD, 5.0).results()) == [Late(1, 6.0, begun=True)]
    (left_behind,) = threads()
    go_on.set()
    left_behind.join(PATIENCE_S)


def until(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def taken_by(results) -> list:
    stream = results.gi_frame.f_locals["self"]
    with stream._changed:
        return list(stream._taken)


def test_a_result_that_was_there_too_late_is_late_even_if_nobody_waited(clock):
    def work(item):
        clock.now_s += 6 * (item == "slow")
        return item

    assert list(Stream(work, ["slow"], 1, AHEAD, 5.0).results()) == [Late("slow", 6.0, begun=True)]


def test_a_result_at_its_deadline_is_in_time(clock):
    def work(item):
        clock.now_s += 5
        return item

    assert list(Stream(work, ["just"], 1, AHEAD, 5.0).results()) == ["just"]


def test_what_the_work_raises_after_the_deadline_is_late_too(clock):
    def work(item):
        clock.now_s += 6
        raise ZeroDivisionError

    assert list(Stream(work, ["slow"], 1, AHEAD, 5.0).results()) == [Late("slow", 6.0, begun=True)]


def test_whoever_waits_is_told_at_the_deadline_by_the_real_clock():
    go_on = threading.Event()
    results = Stream(lambda _: wait(go_on), ["hangs"], 1, AHEAD, 0.02).results()
    with closing(results):
        told = next(results)
        assert isinstance(told, Late)
        assert told.waited_s >= 0.02
        assert not go_on.is_set()
        go_on.set()


def test_a_feeder_that_waits_for_the_camera_does_not_hold_up_closing(monkeypatch):
    monkeypatch.setattr(module, "_SOURCE_PATIENCE_S", 0.01)
    next_frame = threading.Event()

    def camera():
        yield 1
        wait(next_frame)
        yield 2

    results = Stream(lambda n: n, camera(), 2, AHEAD, math.inf).results()
    assert next(results) == 1
    results.close()
    (feeder,) = threads()
    assert feeder.name == module.FEEDER_THREAD
    next_frame.set()
    feeder.join(PATIENCE_S)


def test_a_hanging_worker_does_not_keep_the_items_given_up(clock):
    class Item:
        pass

    begun, go_on = threading.Event(), threading.Event()
    alive: list[weakref.ref] = []

    def camera():
        yield None
        for n in range(40):
            item = Item() if n else "hangs"
            if n:
                alive.append(weakref.ref(item))
            yield item
            del item

    def work(item):
        if item == "hangs":
            begun.set()
            wait(go_on)

    results = Stream(work, camera(), 1, AHEAD, 5.0).results()
    assert next(results) is None
    wait(begun)
    for _ in range(30):
        until(lambda: len(taken_by(results)) == 1 + AHEAD)
        clock.now_s += 6
        assert isinstance(next(results), Late)
    gc.collect()
    assert len(alive) >= 29
    assert sum(ref() is not None for ref in alive) <= 1 + AHEAD + 1
    go_on.set()
    results.close()


# ------------------------------------------------------------------------------------- an inspector


def essence(inspection) -> dict:
    told = inspection.to_json()
    del told["milliseconds"]
    return told


def many(inspector, frames):
    return inspector.inspect_many(frames)


def stream(inspector, frames):
    return inspector.stream(frames)


RUNS = pytest.mark.parametrize("run", [many, stream])


@pytest.fixture
def frames(plate, level) -> list:
    """OK, NG, damaged, lost, an engine's failure, NG without a region; then OK again."""
    marked = [plate(64, 96) for _ in range(4)]
    marked[1][10:20, 30:50] = level.TYPE_2
    marked[2][5, 5] = level.GATE_FAILS
    marked[3][5, 5] = level.FAULTY_ONLY
    return [marked[0], marked[1], b"damaged", None, marked[2], marked[3], marked[0]]


@RUNS
@pytest.mark.parametrize("workers", [1, 3])
def test_every_frame_has_the_verdict_it_has_alone(bench, frames, run, workers):
    inspector = bench().inspector
    inspector.workers = workers
    found = list(run(inspector, frames * 5))
    assert [r.verdict for r in found] == ["OK", "NG", *["UNKNOWN"] * 3, "NG", "OK"] * 5
    alone = [inspector.inspect(f) for f in frames if f is not None] * 5
    assert [essence(r) for n, r in enumerate(found) if n % 7 != 3] == [essence(r) for r in alone]
    lost = found[3]
    assert lost.reason is Reason.NOT_AN_IMAGE
    assert "got NoneType" in lost.detail
    for inspection in found:
        if inspection.verdict is not Verdict.UNKNOWN:
            assert list(inspection.milliseconds) == ["decode", "gate", "segment", "decide"]


@RUNS
def test_a_camera_may_use_its_buffer_again(bench, plate, level, run):
    def camera():
        buffer = plate(64, 96)
        for n in range(12):
            buffer[10:20, 30:50] = level.TYPE_2 if n % 2 else 60
            yield buffer

    found = [r.verdict for r in run(bench().inspector, camera())]
    assert found == [Verdict.OK, Verdict.NG] * 6


@pytest.mark.parametrize("way", ["many", "stream", "sources"])
def test_workers_are_frames_in_work_at_once_and_opencv_starts_no_threads_beside(
    bench, plate, tmp_path, way
):
    made = bench()
    together = threading.Barrier(3, timeout=PATIENCE_S)
    opencv: set[int] = set()

    class Together:
        label = "together"

        def run(self, inputs):
            together.wait()
            opencv.add(cv2.getNumThreads())
            return made.gate.run(inputs)

    inspector = bench(gate=Together()).inspector
    inspector.workers = 3
    before = cv2.getNumThreads()
    if way == "sources":
        path = tmp_path / "frame.png"
        cv2.imwrite(str(path), plate(64, 64))
        sources = [Source(f"{n}.png", path, Path(path)) for n in range(6)]
        results = [r.inspection for r in inspect_sources(inspector, sources)]
        assert [r.image for r in results] == [source.name for source in sources]
    else:
        run = inspector.inspect_many if way == "many" else inspector.stream
        results = list(run([plate(64, 64)] * 6))
    assert [r.verdict for r in results] == [Verdict.OK] * 6
    assert opencv == {1}
    assert cv2.getNumThreads() == before


def test_a_late_frame_is_unknown_and_says_what_to_do(bench, plate, clock):
    made, frames = bench(), Given([plate(64, 64), plate(64, 64), "c.jpg"])

    class Slow:
        label = "slow"

        def run(self, inputs):
            if made.gate.calls == 1:
                wait(frames.all_taken)
                clock.now_s += 0.080
            return made.gate.run(inputs)

    inspector = bench(gate=Slow()).inspector
    results = list(inspector.stream(frames, deadline_ms=50))
    assert [r.reason for r in results] == [None, Reason.TIMEOUT, Reason.TIMEOUT]
    assert [r.image for r in results] == ["array", "array", "c.jpg"]
    assert made.gate.calls == 2
    late, skipped = results[1:]
    assert late.detail == (
        "expected a verdict within 50 ms after the frame was taken, after 80 ms the work was not "
        "done; allow more time, or give it less to do (fewer frames a second, a faster engine, "
        "more threads)"
    )
    assert "after 80 ms the work had not begun and was skipped;" in skipped.detail
    for inspection in (late, skipped):
        assert inspection.verdict is Verdict.UNKNOWN
        assert inspection.model == inspector.bundle.id
        assert inspection.engine == "slow"
        assert inspection.faulty_probability is None


@pytest.mark.parametrize("deadline_ms", [0, -5, math.nan, math.inf])
def test_a_deadline_that_is_none_is_refused_at_once(bench, deadline_ms):
    with pytest.raises(InputError, match=r"expected a deadline of more than 0 ms, got"):
        bench().inspector.stream([], deadline_ms=deadline_ms)


@pytest.mark.parametrize("images", ["frame.jpg", b"bytes", Path("frame.jpg")])
def test_one_image_for_a_stream_is_refused(bench, images):
    with pytest.raises(TypeError, match="several images"):
        bench().inspector.stream(images)


@pytest.mark.parametrize("way", ["many", "stream", "sources"])
def test_stopping_early_ends_all_threads(bench, plate, tmp_path, way):
    inspector = bench().inspector
    inspector.workers = 2
    if way == "sources":
        results = inspect_sources(
            inspector, [Source(f"{n}", str(tmp_path), tmp_path) for n in range(50)]
        )
    else:
        frames = (plate(64, 64) for _ in itertools.count())
        results = inspector.inspect_many(frames) if way == "many" else inspector.stream(frames)
    next(results)
    before = cv2.getNumThreads()
    results.close()
    assert not threads()
    assert cv2.getNumThreads() >= before


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError("no room"), Reason.ENGINE_FAILED),
        (EngineError("EngineError: no decoder"), Reason.ENGINE_FAILED),
        (OSError("gone"), Reason.DECODE_FAILED),
    ],
    ids=["memory", "engine", "other"],
)
def test_whatever_goes_wrong_on_the_way_in_costs_one_frame(
    bench, plate, monkeypatch, error, reason
):
    inspector = bench().inspector
    original = inspector._check

    def check(frame):
        if frame.size_wh[0] == 72:
            raise error
        original(frame)

    monkeypatch.setattr(inspector, "_check", check)
    found = list(inspector.inspect_many([plate(64, 64), plate(64, 72), plate(64, 64)]))
    assert [r.reason for r in found] == [None, reason, None]
    assert type(error).__name__ in found[1].detail


def test_real_frames_through_workers_have_the_verdicts_they_have_alone(shared_dir):
    from steelsight.engine import Inspector

    files = sorted((shared_dir / "data/severstal/images").glob("*.jpg"))[:3]
    inspector = Inspector.load(threads=2, workers=2)
    together = [essence(r) for r in inspector.inspect_many(files)]
    assert together == [essence(inspector.inspect(f)) for f in files]
    assert {r["verdict"] for r in together} <= {"OK", "NG"}
