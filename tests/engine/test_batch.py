"""A run that lasts: each result once, on the disk before it is told, and never computed twice."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from steelsight.defects import Inspection, Reason, Verdict
from steelsight.engine.batch import (
    MOST_UNACKNOWLEDGED,
    Keys,
    Record,
    identity_of,
    inspect_sources,
    recording,
)
from steelsight.engine.sources import Source
from steelsight.errors import DecodeError, StoreError
from steelsight.imaging import DecodePolicy
from steelsight.store.queries import Results


def source(path: Path) -> Source:
    return Source(path.name, str(path), path)


@pytest.fixture
def files(tmp_path: Path, plate, level) -> list[Source]:
    """Nine frames, the third faulty; one is empty, one is no image, one a copy of the first."""
    folder = tmp_path / "files"
    folder.mkdir()
    for n in range(9):
        pixels = plate(64, 64 + n)
        if n == 2:
            pixels[8:40, 8:40] = level.TYPE_3
        Image.fromarray(pixels).save(folder / f"{n}.png")
    (folder / "4.png").write_bytes(b"")
    (folder / "7x.png").write_bytes(b"no image")
    (folder / "9.png").write_bytes((folder / "0.png").read_bytes())
    return [source(path) for path in sorted(folder.iterdir())]


@pytest.fixture
def record_in(tmp_path: Path) -> Callable[..., Record]:
    """Opens a store for a bench."""
    (tmp_path / "manifest.toml").write_text("format = 2\n")

    @contextmanager
    def open_record(bench, name: str = "store.db", *others: Path) -> Iterator[Record]:
        identity = identity_of(bench.inspector, [tmp_path / "files"])
        with recording(
            tmp_path / name,
            bench.inspector,
            identity,
            command="steelsight inspect files/",
            source="files/",
            others=others,
        ) as record:
            yield record

    return open_record


def lines(results) -> list[str]:
    return [r.inspection.to_json_line(timing=False) for r in results]


def test_one_result_per_source_in_order(bench, files) -> None:
    results = list(inspect_sources(bench().inspector, files))
    assert [r.inspection.image for r in results] == [s.name for s in files]
    for one in results:
        if one.inspection.image in ("4.png", "7x.png"):
            assert one.inspection.verdict is Verdict.UNKNOWN
            assert one.frame is None
        else:
            width = 64 + int(one.inspection.image[0]) % 9
            assert one.frame.grey_hw.shape == (64, width)
            assert one.inspection.sha256 == one.frame.sha256


@pytest.mark.parametrize("workers", [1, 3])
def test_with_and_without_a_record_the_same_is_said(bench, files, record_in, workers) -> None:
    def made():
        one = bench()
        one.inspector.workers = workers
        return one

    plain = lines(inspect_sources(made().inspector, files))
    first = made()
    with record_in(first) as record:
        assert lines(inspect_sources(first.inspector, files, record)) == plain
        record.finish(complete=True)
    assert first.gate.calls >= 7
    again = made()
    with record_in(again) as record:
        results = list(inspect_sources(again.inspector, files, record))
    assert lines(results) == plain
    assert again.gate.calls == 0
    assert all(r.known_as is not None for r in results)


def test_what_may_pass_is_looked_at_again(bench, files, record_in, tmp_path) -> None:
    gone = files[0].path.read_bytes()
    files[0].path.unlink()
    one = bench()
    with record_in(one) as record:
        first, *_ = inspect_sources(one.inspector, files, record)
    assert first.inspection.reason is Reason.UNREADABLE
    assert first.key is None
    files[0].path.write_bytes(gone)
    with record_in(one) as record:
        first, *rest = inspect_sources(one.inspector, files, record)
    assert first.inspection.verdict is Verdict.OK
    # It was told of as 9.png before; the others as themselves.
    assert all(r.known_as is not None for r in rest)
    with closing(Results(tmp_path / "store.db")) as results:
        assert sorted(row.name for row in results.inspections()) == [s.name for s in files]


def test_a_decoder_that_failed_leaves_no_key(bench, files, record_in) -> None:
    one = bench()

    def crash(data: bytes, *, name: str | None = None, policy: DecodePolicy):
        raise DecodeError(Reason.DECODER_CRASHED, "expected a frame, the decoder died")

    one.inspector._decode = crash
    with record_in(one) as record:
        results = list(inspect_sources(one.inspector, files[:3], record))
    assert {r.inspection.reason for r in results} == {Reason.DECODER_CRASHED}
    assert [r.key for r in results] == [None] * 3
    with record_in(bench()) as record:
        results = list(inspect_sources(bench().inspector, files[:3], record))
    assert [r.inspection.verdict for r in results] == ["OK", "OK", "NG"]


def test_members_that_cannot_be_read_and_pixels(bench, plate, record_in) -> None:
    broken = DecodeError(Reason.TRUNCATED, "expected the whole member, the archive ends")
    sources = [
        Source("a.zip/1.png", "a.zip::1.png", content=broken),
        Source("b.mp4#000001", "b.mp4::1", content=plate(64, 64)),
    ]
    one = bench()
    with record_in(one) as record:
        first, second = inspect_sources(one.inspector, sources, record)
    assert (first.inspection.reason, first.inspection.detail) == (Reason.TRUNCATED, str(broken))
    assert second.inspection.verdict is Verdict.OK
    assert second.source.content is None


def test_results_of_another_store_are_taken_over(bench, files, record_in, tmp_path) -> None:
    first, second = bench(), bench()
    with record_in(first, "one.db") as record:
        expected = lines(inspect_sources(first.inspector, files, record))
    with record_in(second, "two.db", tmp_path / "one.db") as record:
        results = list(inspect_sources(second.inspector, files, record))
    assert lines(results) == expected
    assert second.gate.calls == 0
    with closing(Results(tmp_path / "two.db")) as stored:
        assert sum(1 for _ in stored.inspections()) == len(files)


# ------------------------------------------------------------------------------------------- keys


def test_a_key_follows_from_all_that_a_result_follows_from(bench) -> None:
    def keys(**changed: object) -> Keys:
        inspector = bench().inspector
        bundle = inspector.bundle
        facts = {
            "bundle": SimpleNamespace(sha256=bundle.sha256, decision=bundle.decision),
            "engine": inspector.engine,
            "policy": inspector.policy,
        }
        return Keys(SimpleNamespace(**facts | changed))

    decision = bench().inspector.bundle.decision
    all_keys = [
        keys(),
        keys(policy=DecodePolicy(bit_depth=12)),
        keys(policy=DecodePolicy(grey_only=True)),
        keys(engine="openvino-fp32"),
        keys(bundle=SimpleNamespace(sha256="c" * 64, decision=decision)),
        keys(
            bundle=SimpleNamespace(
                sha256="b" * 64, decision=decision.model_copy(update={"sha256": "e" * 64})
            )
        ),
    ]
    found = {each.of("ab" * 32, "a.png") for each in all_keys}
    found |= {keys().of("ab" * 32, "a.jpg"), keys().of("cd" * 32, "a.png")}
    assert len(found) == len(all_keys) + 2
    assert {len(key) for key in found} == {32}
    assert keys().of("ab" * 32, "deep/B.PNG") == keys().of("ab" * 32, "a.png")


def test_the_same_content_under_a_name_that_contradicts_it(bench, files, record_in) -> None:
    """A PNG called .jpg is UNKNOWN, and its twin called .png is not."""
    twin = files[0].path.with_suffix(".jpg")
    twin.write_bytes(files[0].path.read_bytes())
    one = bench()
    with record_in(one) as record:
        both = list(inspect_sources(one.inspector, [source(twin), files[0]], record))
    assert [r.inspection.reason for r in both] == [Reason.WRONG_EXTENSION, None]


# --------------------------------------------------------------------------------- acknowledgement


class SlowStore:
    """A store that writes when it is told to."""

    def __init__(self) -> None:
        self.tickets: list[Future[int]] = []

    def begin(self, run: object) -> int:
        return 1

    def known(self, key: bytes) -> None:
        return None

    def add(self, *_: object) -> Future[int]:
        ticket: Future[int] = Future()
        self.tickets.append(ticket)
        return ticket


def endless(files: list[Source], limit: int) -> Iterator[Source]:
    for n in range(limit):
        yield replace(files[n % 3], name=f"{n}.png")


def test_nothing_is_told_before_it_is_on_the_disk(bench, files) -> None:
    store = SlowStore()
    record = Record(store, None)
    told: list[Inspection] = []
    results = inspect_sources(bench().inspector, endless(files, 200), record)

    def take() -> None:
        for one in results:
            told.append(one.inspection)
            if len(told) == 200:
                return

    thread = threading.Thread(target=take)
    thread.start()
    done = 0
    while thread.is_alive():
        waiting = len(store.tickets)
        assert waiting - done <= MOST_UNACKNOWLEDGED + 1
        assert len(told) <= done
        if waiting > done:
            store.tickets[done].set_result(done)
            done += 1
        thread.join(0.001)
    assert [i.image for i in told] == [f"{n}.png" for n in range(200)]


def test_a_result_that_cannot_be_written_ends_the_run(bench, files) -> None:
    store = SlowStore()
    before = threading.active_count()
    results = inspect_sources(bench().inspector, endless(files, 100), Record(store, None))
    failed: Future[int] = Future()
    failed.set_exception(StoreError("no space left"))
    store.add = lambda *_: failed
    with pytest.raises(StoreError, match="no space left"):
        next(results)
    assert threading.active_count() == before
