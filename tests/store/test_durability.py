"""What was acknowledged survives: killed processes, power cuts, full disks."""

import random
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import apsw
import pytest
from tests.store.results import key_of, result, run_of

from steelsight.errors import StoreError
from steelsight.store.queries import Results
from steelsight.store.store import Store

ROOT = Path(__file__).resolve().parents[2]
LONG_MS = 3_600_000
PAGE, FRAME_HEAD, LOG_HEAD = 4096, 24, 32
FRAME = PAGE + FRAME_HEAD


def check(path):
    """The file is sound, and holds each result whole and once: names by number."""
    with apsw.Connection(str(path)) as connection:
        assert connection.pragma("integrity_check") == "ok"
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        names = [row[0] for row in connection.execute("SELECT name FROM sightings")]
        once = "SELECT count(*), count(DISTINCT key), count(key) FROM inspections"
        total, keys, keyed = connection.execute(once).fetchone()
        assert total == keys == keyed == len(names)
    return {int(name.removeprefix("frame ").removesuffix(".jpg")) for name in names}


def is_made(path):
    """Whether the process lived long enough to make the tables."""
    if not path.exists():
        return False
    with apsw.Connection(str(path)) as connection:
        return bool(connection.execute("SELECT count(*) FROM sqlite_schema").get)


def check_content(path, numbers):
    with Store(path) as store:
        for number in numbers:
            one = replace(result(number), image="", milliseconds={})
            assert replace(store.known(key_of(number))[1], milliseconds={}) == one


class Killed:
    """Processes that add results and are killed; see ``tests/store/results.py``."""

    def __init__(self):
        self.program = subprocess.Popen(
            [sys.executable, "-m", "tests.store.results"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def order(self, line, answer):
        """Sends an order; what is said until its answer."""
        self.program.stdin.write(f"{line}\n")
        self.program.stdin.flush()
        said = []
        for line in self.program.stdout:
            if line == f"{answer}\n":
                return said
            assert line.startswith("ack "), line
            said.append(int(line.split()[1]))
        raise AssertionError("the program ended by itself")


@pytest.fixture
def killed():
    killed = Killed()
    yield killed
    killed.program.stdin.close()
    killed.program.wait()
    killed.program.stdout.close()


def kill_often(killed, folder, times, seed):
    rng = random.Random(seed)
    acknowledged, path = set(), folder / "0.sqlite"
    for time_ in range(times):
        if len(acknowledged) > 3000:
            check_content(path, rng.sample(sorted(acknowledged), 300))
            path, acknowledged = folder / f"{time_}.sqlite", set()
        # Some again: a continued run adds what may be there already.
        first = max(0, max(acknowledged, default=-1) - 10)
        said = killed.order(f"add {path} {first}", "started")
        time.sleep(rng.choice([0.01, 0.03, 0.1]) * rng.random())
        said += killed.order("kill", "dead")
        acknowledged.update(said)
        if rng.random() < 0.5:
            continue  # the next process finds the file and its log as they were left
        there = check(path) if is_made(path) else set()
        assert acknowledged <= there
        # Nothing but a part of what was added in order.
        assert there == set(range(len(there)))
    # One that is left alone until it has acknowledged something, however slow the machine is.
    patience_s, said = 0.1, []
    while not said:
        killed.order(f"add {path} 0", "started")
        time.sleep(patience_s)
        said = killed.order("kill", "dead")
        patience_s *= 2
    acknowledged.update(said)
    assert acknowledged <= check(path)
    check_content(path, sorted(acknowledged)[:300])


def test_killed_at_any_moment(killed, tmp_path):
    kill_often(killed, tmp_path, 25, seed=1)


@pytest.mark.soak
def test_killed_at_any_moment_often(killed, tmp_path):
    kill_often(killed, tmp_path, 200, seed=2)


class TestPowerLoss:
    """A power cut leaves the file and a part of the log, of which the last bytes may be wrong.

    The log is on the disk up to the last acknowledgement before the cut; so every cut behind an
    acknowledgement must leave it. Between two checkpoints the file itself does not change: a copy
    of it stands for all moments in between.
    """

    GROUP = 4

    @staticmethod
    def log_of(path):
        return path.with_name(f"{path.name}-wal")

    def valid_end(self, path):
        """Bytes of the log that belong to it; frames behind them are of before a checkpoint."""
        log = self.log_of(path).read_bytes()
        salts, end = log[16:24], LOG_HEAD
        while log[end + 8 : end + 16] == salts and end + FRAME <= len(log):
            end += FRAME
        return end

    def generation(self, path):
        return self.log_of(path).read_bytes()[12:24]

    def add_group(self, store, run_id, first):
        futures = [
            store.add(run_id, i, "/frames", result(i), key_of(i), f"coil {i // 20}")
            for i in range(first, first + self.GROUP)
        ]
        assert [future.result(60) for future in futures]
        return first + self.GROUP

    def snapshot(self, path, groups):
        """File and log after ``groups`` groups since a checkpoint, and what was acknowledged when.

        Returns:
            Bytes of the file, bytes of the log, and ``(end of the log, results)`` at each
            acknowledgement, of which the first stands for the checkpoint.
        """
        with Store(path, group_ms=LONG_MS, group_frames=self.GROUP) as store:
            store._writer.wal_autocheckpoint(1000)
            run_id = store.begin(run_of("power"))
            first = 0
            before = self.generation(path)
            # The first checkpoint comes by itself, with its traces of an older log.
            while self.generation(path) == before:
                before_last = first
                first = self.add_group(store, run_id, first)
            content = path.read_bytes()
            acknowledged = [(0, before_last), (self.valid_end(path), first)]
            for _ in range(groups):
                first = self.add_group(store, run_id, first)
                acknowledged.append((self.valid_end(path), first))
            # No checkpoint in between: the copy of the file is that of every moment.
            assert path.read_bytes() == content
            assert [end for end, _ in acknowledged] == sorted({end for end, _ in acknowledged})
            return content, self.log_of(path).read_bytes(), acknowledged

    def cut(self, log, rng):
        """A part of the log with a damaged end, and how much of it is as it was."""
        length = rng.randrange(len(log) + 1)
        if rng.random() < 0.3:  # between pages, too
            length = min(LOG_HEAD + (length // FRAME) * FRAME, len(log))
        left, kind = bytearray(log[:length]), rng.random()
        intact = length
        if kind < 0.3:
            intact = max(0, length - rng.randrange(1, 4) * PAGE)
            left[intact:] = bytes(length - intact)
        elif kind < 0.5:
            intact = max(0, length - rng.randrange(1, 2 * PAGE))
            left[intact:] = rng.randbytes(length - intact)
        return bytes(left), intact

    def cut_often(self, folder, times, seed):
        path = folder / "store.sqlite"
        content, log, acknowledged = self.snapshot(path, 25)
        groups = {count for _, count in acknowledged}
        rng = random.Random(seed)
        kept = set()
        copy = folder / "copy.sqlite"
        for time_ in range(times):
            left, intact = self.cut(log, rng)
            copy.write_bytes(content)
            self.log_of(copy).write_bytes(left)
            if time_ % 20 == 0:
                with Store(copy, group_ms=1) as store:
                    store.begin(run_of("power"))
            there = check(copy)
            assert there == set(range(len(there)))
            assert len(there) in groups
            assert len(there) >= max(count for end, count in acknowledged if end <= intact)
            kept.add(len(there))
            if time_ % 50 == 0:
                check_content(copy, rng.sample(sorted(there), 50))
        # The cuts reached the beginning, the end, and most of what lies between.
        assert min(kept) == acknowledged[0][1]
        assert max(kept) == acknowledged[-1][1]
        assert len(kept) > len(groups) / 2

    def test_power_lost(self, tmp_path):
        self.cut_often(tmp_path, 200, seed=3)

    @pytest.mark.soak
    def test_power_lost_often(self, tmp_path):
        self.cut_often(tmp_path, 5000, seed=4)


def add_until_it_fails(store, run_id, first=0):
    """Numbers that were acknowledged, and the error; groups of 8."""
    acknowledged, number = set(), first
    while True:
        futures = {
            i: store.add(run_id, i, "/frames", result(i), key_of(i))
            for i in range(number, number + 8)
        }
        errors = [future.exception(60) for future in futures.values()]
        if any(errors):
            # A group is acknowledged as a whole or not at all.
            assert all(isinstance(error, StoreError) for error in errors)
            assert len({str(error) for error in errors}) == 1
            return acknowledged, str(errors[0])
        acknowledged |= set(futures)
        number += 8


def check_failed(store, run_id, line):
    """All that comes later fails with the first error."""
    assert "\n" not in line
    assert "it continues" in line
    for call in (
        lambda: store.add(run_id, 0, "/o", result(0), key_of(0)).result(60),
        lambda: store.add_known(run_id, 0, "/o", "x", 1).result(60),
        lambda: store.begin(run_of("other")),
        lambda: store.finish(run_id, complete=True),
        store.close,
    ):
        with pytest.raises(StoreError) as caught:
            call()
        assert str(caught.value) == line


def check_continues(path, acknowledged):
    """With space again the same command goes on; nothing half-written is there."""
    there = check(path)
    assert acknowledged <= there
    assert there == set(range(len(there)))
    with Store(path, group_ms=1) as store:
        run_id = store.begin(run_of("full"))
        first = len(there)
        futures = [
            store.add(run_id, i, "/frames", result(i), key_of(i))
            for i in range(first - 8, first + 40)
        ]
        assert all(future.result(60) for future in futures)
        store.finish(run_id, complete=True)
    assert check(path) == set(range(first + 40))


class TestFullDisk:
    def test_no_more_pages(self, opened, path):
        store = opened(group_ms=LONG_MS, group_frames=8)
        run_id = store.begin(run_of("full"))
        store._writer.pragma("max_page_count", 100)
        acknowledged, line = add_until_it_fails(store, run_id)
        assert acknowledged
        assert "the disk is full; free space" in line
        check_failed(store, run_id, line)
        check_continues(path, acknowledged)

    def test_a_file_may_grow_no_more(self, opened, path):
        store = opened(group_ms=LONG_MS, group_frames=8)
        run_id = store.begin(run_of("full"))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Python ignores the signal that comes with it; SQLite has an error from the system.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, limits[1]))
        try:
            acknowledged, line = add_until_it_fails(store, run_id)
            check_failed(store, run_id, line)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert acknowledged
        assert "disk refused" in line
        check_continues(path, acknowledged)

    def test_a_real_full_disk(self, opened, tmp_path):
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
        try:
            subprocess.run(mount, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs the permission to mount a file system")
        try:
            path = disk / "store.sqlite"
            store = opened(path, group_ms=LONG_MS, group_frames=8)
            run_id = store.begin(run_of("full"))
            acknowledged, line = add_until_it_fails(store, run_id)
            assert acknowledged
            assert "the disk is full; free space" in line
            check_failed(store, run_id, line)
            # Still full: again one line, and reading goes on.
            filler = disk / "filler"
            fill(filler)
            with pytest.raises(StoreError, match="free space"):
                continue_on_full_disk(path, len(acknowledged))
            filler.unlink()
            more = ["mount", "-o", "remount,size=20m", str(disk)]
            subprocess.run(more, check=True, capture_output=True)
            check_continues(path, acknowledged)
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def test_a_full_disk_at_the_start(self, path):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            with pytest.raises(StoreError) as caught:
                Store(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "it continues" in str(caught.value)
        Store(path).close()


def fill(path):
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


def continue_on_full_disk(path, first):
    with Store(path, group_ms=1) as store:
        run_id = store.begin(run_of("full"))
        for i in range(first, first + 10_000):
            store.add(run_id, i, "/frames", result(i), key_of(i)).result(60)


class TestUncaughtErrors:
    def test_whatever_the_writing_thread_raises_reaches_everybody(self, opened, path, monkeypatch):
        store = opened(group_ms=LONG_MS, group_frames=4)
        run_id = store.begin(run_of("full"))
        good = [store.add(run_id, i, "/o", result(i), key_of(i)) for i in range(4)]
        assert all(future.result(60) for future in good)
        real, calls = store._add_sighting, []

        def fails_once(*given):
            calls.append(given)
            if len(calls) == 3:
                raise MemoryError("no memory")
            real(*given)

        monkeypatch.setattr(store, "_add_sighting", fails_once)
        bad = [store.add(run_id, i, "/o", result(i), key_of(i)) for i in range(4, 8)]
        for future in bad:
            with pytest.raises(StoreError, match="no memory"):
                future.result(60)
        assert store._writer.get_autocommit()  # nothing is locked, nothing can come after all
        with pytest.raises(StoreError, match="no memory"):
            store.close()
        assert check(path) == {0, 1, 2, 3}

    def test_an_error_of_the_user_is_not_hidden(self, path, monkeypatch):
        def fails(*_):
            raise apsw.FullError("full")

        def use():
            with Store(path, group_ms=LONG_MS) as store:
                run_id = store.begin(run_of("full"))
                monkeypatch.setattr(store, "_add_sighting", fails)
                store.add(run_id, 0, "/o", result(0), None)
                raise KeyError("of the user")

        with pytest.raises(KeyError, match="of the user"):
            use()

    def test_one_who_asks_no_future_learns_it_at_the_end(self, path, monkeypatch):
        def fails(*_):
            raise apsw.FullError("full")

        def use():
            with Store(path, group_ms=LONG_MS) as store:
                run_id = store.begin(run_of("full"))
                monkeypatch.setattr(store, "_add_sighting", fails)
                store.add(run_id, 0, "/o", result(0), None)

        with pytest.raises(StoreError, match="free space"):
            use()
        with Results(path) as results:
            assert results.count_inspections() == 0
