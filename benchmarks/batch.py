"""What a batch run costs beyond the bare engine: decoder processes, store, overlays, report.

    python benchmarks/batch.py ../shared/data/severstal/images --frames 100 --rounds 5

Takes turns with ``Inspector.inspect_many`` on the same frames, and prints the ratios of the rounds:
of the time, and of the processor time, decoders included, which other users of the machine disturb
less.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from steelsight.decoders import Decoders
from steelsight.engine import Inspector
from steelsight.engine.batch import identity_of, recording
from steelsight.engine.sources import Sources
from steelsight.report.folder import STORE, OutputFolder, inspect_to_folder
from steelsight.report.html import RunInfo


class Clock(NamedTuple):
    """Seconds by the clock, and of processors."""

    wall_s: float
    cpu_s: float

    @classmethod
    def now(cls) -> "Clock":
        """Since some moment in the past."""
        own = os.times()
        cpu_s = own.user + own.system + children_s()
        return cls(time.perf_counter(), cpu_s)

    def since(self, before: "Clock") -> "Clock":
        """What went by."""
        return Clock(self.wall_s - before.wall_s, self.cpu_s - before.cpu_s)


def children_s() -> float:
    """Processor time of the decoders, which are running."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if entry.name.isdigit() and int(fields[1]) == os.getpid():
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def bare(inspector: Inspector, paths: list[Path]) -> Clock:
    started = Clock.now()
    for _ in inspector.inspect_many(paths):
        pass
    return Clock.now().since(started)


def whole(inspector: Inspector, folder: Path) -> Clock:
    """A run as ``steelsight inspect --out`` makes it."""
    run = RunInfo("title", "frames", "command", "now", 0.0, "model", "decision", "engine", "int8")
    sources = Sources([folder])
    identity = identity_of(inspector, [folder])
    classes = inspector.bundle.classes
    with tempfile.TemporaryDirectory() as out:
        started = Clock.now()
        with (
            OutputFolder(Path(out), classes, identity=identity) as output,
            recording(
                Path(out) / STORE, inspector, identity, command="command", source="frames"
            ) as record,
        ):
            inspect_to_folder(inspector, sources, output, run, record=record)
        return Clock.now().since(started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as chosen, Decoders(2) as decoders:
        # A part of all, so that as many are faulty as in the folder.
        every = sorted(options.folder.iterdir())
        paths = every[:: max(1, len(every) // options.frames)]
        for path in paths:
            (Path(chosen) / path.name).symlink_to(path.resolve())
        inspector = Inspector.load(engine=options.engine, workers=0)
        apart = Inspector.load(engine=options.engine, workers=0, decode=decoders.decode)
        bare(inspector, paths[:10])
        whole(apart, Path(chosen))
        ratios: list[tuple[float, float]] = []
        for number in range(options.rounds):
            alone = bare(inspector, paths)
            run = whole(apart, Path(chosen))
            ratios.append((run.wall_s / alone.wall_s, run.cpu_s / alone.cpu_s))
            print(
                f"round {number + 1}: bare {len(paths) / alone.wall_s:.1f} frames/s, whole run "
                f"{len(paths) / run.wall_s:.1f}; ratio of time {ratios[-1][0]:.3f}, of processor "
                f"time {ratios[-1][1]:.3f}"
            )
        wall, cpu = (statistics.median(each) for each in zip(*ratios, strict=True))
        print(f"{inspector.engine}: median ratio of time {wall:.3f}, of processor time {cpu:.3f}")


if __name__ == "__main__":
    main()
