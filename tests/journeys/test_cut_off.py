"""A batch run that is cut off, by whatever: the same command ends it, with the same bytes."""

import csv
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import cv2
import numpy as np
import pytest

from steelsight.data.synthetic import CoilConfig, draw_frame
from steelsight.report.folder import OVERLAYS, QUARANTINE, RESULTS, RUN, STORE, SUBMISSION

STEELSIGHT = [sys.executable, "-m", "steelsight"]
TABLES = (RESULTS, SUBMISSION, QUARANTINE)


def draw(folder: Path, frames: int, seed: int) -> Path:
    """Small frames, so that a run takes milliseconds a frame: noise, and one in ten drawn steel.

    One in fifty is cut short, one in fifty is a copy of an earlier one, one in hundred is empty.
    """
    random_of = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    config = CoilConfig(frames=20, seed=5, faulty_share=1.0, size_wh=(160, 96))
    steel = [draw_frame(config, n).grey_hw for n in range(20)]
    encoded = []
    for n in range(frames):
        grey_hw = random_of.normal(110, 12, (64, 96))
        if n % 10 == 0:
            grey_hw = steel[n // 10 % 20] + random_of.normal(0, 1, (96, 160))
        data = cv2.imencode(".jpg", np.clip(grey_hw, 0, 255).astype(np.uint8))[1].tobytes()
        if n % 50 == 11:
            data = data[: len(data) // 2]
        elif n % 50 == 21:
            data = encoded[n - 1]
        elif n % 100 == 31:
            data = b""
        encoded.append(data)
        (folder / f"{n:05d}.jpg").write_bytes(data)
    return folder


def command(frames: Path | str, out: Path, *options: str) -> list[str]:
    return [*STEELSIGHT, "inspect", str(frames), "--out", str(out), *options]


def run(given: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(given, capture_output=True, text=True, timeout=240, **options)


def tables(out: Path) -> dict[str, bytes]:
    """All that must be equal to the byte."""
    overlays = {f"{OVERLAYS}/{p.name}": p.read_bytes() for p in (out / OVERLAYS).glob("*")}
    return {name: (out / name).read_bytes() for name in TABLES} | overlays


def check_counts(out: Path, frames: int) -> None:
    """Nothing lost, nothing twice, in the folder and in the store."""
    results = [json.loads(line) for line in (out / RESULTS).read_text().splitlines()]
    names = Counter(result["image"] for result in results)
    assert len(names) == len(results) == frames
    counts = Counter(result["verdict"] for result in results)
    noted = json.loads((out / RUN).read_text())
    assert noted["complete"]
    assert noted["counts"] == {
        "found": frames,
        "seen": frames,
        "ok": counts["OK"],
        "ng": counts["NG"],
        "unknown": counts["UNKNOWN"],
    }
    with closing(apsw.Connection(str(out / STORE), flags=apsw.SQLITE_OPEN_READONLY)) as store:
        assert store.pragma("integrity_check") == "ok"
        stored = dict(
            store.execute(
                "SELECT name, verdict FROM sightings JOIN inspections"
                " ON inspections.id = sightings.inspection"
            )
        )
        runs = store.execute("SELECT count(*) FROM runs").fetchall()
    assert stored == {result["image"]: result["verdict"] for result in results}
    assert runs == [(1,)]


def decoders_alive() -> set[int]:
    """Processes of decoders that nobody owns any more."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if b"steelsight.decoders" in words and parent == 1:
            found.add(int(entry.name))
    return found


def cut_off(frames: Path, out: Path, kills: int, seed: int) -> int:
    """Kills a run again and again at random moments; returns how many times it was still alive."""
    moment = random.Random(seed)
    hit = 0
    for n in range(kills):
        with subprocess.Popen(
            command(frames, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            # Half of the kills while something is being written, the other half at any time.
            if n % 2:
                while process.poll() is None and not (out / f"{STORE}-wal").exists():
                    time.sleep(0.002)
                time.sleep(moment.uniform(0, 0.6))
            else:
                time.sleep(moment.uniform(0.1, 2.5))
            hit += process.poll() is None
            process.kill()
    return hit


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("cut") / "frames", 2000, seed=1)


@pytest.fixture(scope="module")
def undisturbed(frames: Path) -> Iterator[Path]:
    out = frames.parent / "undisturbed"
    done = run(command(frames, out))
    assert done.returncode == 3, done.stderr
    check_counts(out, 2000)
    assert len(list((out / OVERLAYS).iterdir())) > 100
    yield out
    shutil.rmtree(out)


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("some") / "frames", 400, seed=7)


@pytest.fixture(scope="module")
def some_undisturbed(some: Path) -> Path:
    out = some.parent / "undisturbed"
    assert run(command(some, out)).returncode == 3
    check_counts(out, 400)
    return out


def test_ten_kills_lose_nothing_and_change_nothing(
    frames: Path, undisturbed: Path, tmp_path: Path
) -> None:
    _kills(frames, undisturbed, tmp_path / "out", 10, seed=2)


@pytest.mark.soak
def test_a_hundred_kills(frames: Path, undisturbed: Path, tmp_path: Path) -> None:
    for round_ in range(10):
        _kills(frames, undisturbed, tmp_path / f"{round_}", 10, seed=100 + round_)


def _kills(frames: Path, undisturbed: Path, out: Path, kills: int, seed: int) -> None:
    alone = decoders_alive()
    assert cut_off(frames, out, kills, seed) >= kills // 2
    done = run(command(frames, out))
    assert done.returncode == 3, done.stderr
    check_counts(out, 2000)
    assert tables(out) == tables(undisturbed)
    assert "were inspected before" in done.stdout
    ends_at = time.monotonic() + 10
    while decoders_alive() - alone and time.monotonic() < ends_at:
        time.sleep(0.05)
    assert decoders_alive() <= alone


def test_a_run_that_is_done_is_done_again_from_the_store(
    frames: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    shutil.rmtree(out / OVERLAYS)
    before = json.loads((out / RUN).read_text())
    done = run([*command(frames, out), "--json"])
    summary = json.loads(done.stdout)
    # What could not be decoded is looked at again only if it may have been the reader's fault.
    assert (summary["seen"], summary["known"]) == (2000, 2000)
    assert tables(out) == tables(undisturbed)
    after = json.loads((out / RUN).read_text())
    assert after["results_sha256"] == before["results_sha256"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_a_polite_stop_leaves_a_whole_folder(some: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        command(some, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not _lines(out):
            time.sleep(0.002)
        process.send_signal(number)
        printed, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    noted = json.loads((out / RUN).read_text())
    assert not noted["complete"]
    assert 0 < noted["counts"]["seen"] == len(_lines(out)) < 400
    assert "The same command continues." in printed
    assert (out / "report.html").exists()


def _lines(out: Path) -> list[bytes]:
    try:
        return (out / RESULTS).read_bytes().splitlines()
    except FileNotFoundError:
        return []


def test_another_run_is_not_mixed_in(some: Path, some_undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(some_undisturbed, out)
    other = run([*command(some, out), "--no-overlays"])
    assert other.returncode == 1
    assert other.stderr.count("\n") == 1
    assert "another overlays" in other.stderr
    elsewhere = draw(tmp_path / "others", 12, seed=3)
    assert "another inputs" in run(command(elsewhere, out)).stderr
    assert tables(out) == tables(some_undisturbed)
    replaced = run([*command(elsewhere, out), "--overwrite"])
    assert replaced.returncode == 3, replaced.stderr
    check_counts(out, 12)


def test_two_runs_at_once_in_one_folder(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        command(frames, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as first:
        while first.poll() is None and not _lines(out):
            time.sleep(0.002)
        second = run(command(frames, out))
        assert second.returncode == 1
        assert "another run writes to" in second.stderr
        first.kill()


def test_a_frame_that_changed_is_inspected_again(tmp_path: Path) -> None:
    frames, out = draw(tmp_path / "frames", 30, seed=4), tmp_path / "out"
    run(command(frames, out))
    (frames / "00003.jpg").write_bytes((frames / "00004.jpg").read_bytes())
    (frames / "00100.jpg").write_bytes((frames / "00001.jpg").read_bytes())
    (frames / "00005.jpg").unlink()
    run(command(frames, out))
    fresh = tmp_path / "fresh"
    run(command(frames, fresh))
    assert tables(out)[RESULTS] == tables(fresh)[RESULTS]


def test_shards_together_are_the_whole(some: Path, some_undisturbed: Path, tmp_path: Path) -> None:
    """Any number of workers gives the same set."""
    parts = [tmp_path / f"part{n}" for n in (1, 2, 3)]
    for n, part in enumerate(parts, start=1):
        assert run(command(some, part, "--shard", f"{n}/3")).returncode == 3
    sizes = [len(_lines(part)) for part in parts]
    assert sum(sizes) == 400
    assert min(sizes) > 100
    lines = [line for part in parts for line in _lines(part)]
    assert sorted(lines) == sorted(_lines(some_undisturbed))
    whole = tmp_path / "whole"
    known = [word for part in parts for word in ("--known", str(part / STORE))]
    done = run(command(some, whole, *known))
    assert done.returncode == 3, done.stderr
    assert tables(whole) == tables(some_undisturbed)
    check_counts(whole, 400)


# -------------------------------------------------------------------------------- no place to write


def limited() -> None:
    """No file above 100 kB: what a quota does. Python ignores the signal, the write fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_files_that_may_not_grow(some: Path, some_undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stopped = run(command(some, out), preexec_fn=limited)
    _stopped_with_a_line(stopped)
    done = run(command(some, out))
    assert done.returncode == 3, done.stderr
    check_counts(out, 400)
    assert tables(out) == tables(some_undisturbed)


def test_a_full_disk(some: Path, some_undisturbed: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or run(mount).returncode != 0:
        pytest.skip("needs to be root and to mount a small disk; quotas are tested anyway")
    try:
        _stopped_with_a_line(run(command(some, disk / "out")))
        run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        done = run(command(some, disk / "out"))
        assert done.returncode == 3, done.stderr
        check_counts(disk / "out", 400)
        assert tables(disk / "out") == tables(some_undisturbed)
    finally:
        run(["umount", str(disk)], check=True)


def _stopped_with_a_line(stopped: subprocess.CompletedProcess[str]) -> None:
    assert stopped.returncode == 1
    (line,) = [text for text in stopped.stderr.splitlines() if text.startswith("steelsight:")]
    assert "free space" in line
    assert "continues" in line
    assert "Traceback" not in stopped.stderr


def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    frames = draw(tmp_path / "frames", 3, seed=5)
    refused = run(command(frames, Path("/proc/self/out")))
    assert refused.returncode == 1
    assert refused.stderr.startswith("steelsight: expected a folder to write to at /proc/self/out")
    assert refused.stderr.count("\n") == 1


# ------------------------------------------------------------------------------------------ memory


def peak_mb(given: Sequence[str]) -> float:
    """Highest resident memory of the process itself, without its decoders.

    Of one engine: what ``auto`` takes, or has to measure first, may differ from run to run.
    """
    script = (
        "import resource, sys; sys.argv[0] = 'steelsight'\n"
        "from steelsight.cli import main\n"
        "try:\n    main()\n"
        "finally:\n"
        "    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    print('peak', peak, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *given[3:], "--engine", "onnxruntime"],
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 3, done.stderr
    return int(done.stderr.split("peak ")[1].split()[0]) / 1024


def test_memory_does_not_grow_with_frames(some: Path, tmp_path: Path) -> None:
    few = draw(tmp_path / "few", 50, seed=6)
    small = peak_mb(command(few, tmp_path / "a"))
    large = peak_mb(command(some, tmp_path / "b"))
    # Pictures for the report are kept up to a limit that the small run does not reach.
    assert large < small + 40


@pytest.mark.soak
def test_memory_does_not_grow_with_a_hundred_thousand_frames(frames: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for n in range(100_000):
        (many / f"{n:06d}.jpg").symlink_to(frames / f"{n % 2000:05d}.jpg")
    small = peak_mb(command(frames, tmp_path / "a"))
    large = peak_mb(command(many, tmp_path / "b"))

    assert large < small + 40


def test_the_quarantine_lists_every_unknown_frame(undisturbed: Path) -> None:
    with (undisturbed / QUARANTINE).open(encoding="utf-8", newline="") as file:
        listed = [row["image"] for row in csv.DictReader(file)]
    unknown = [
        result["image"]
        for result in map(json.loads, (undisturbed / RESULTS).read_text().splitlines())
        if result["verdict"] == "UNKNOWN"
    ]
    assert listed == unknown
    assert len(unknown) >= 60
