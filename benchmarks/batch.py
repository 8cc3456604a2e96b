"""What a batch run costs beyond the bare engine: decoder processes, store, overlays, report.

    python benchmarks/batch.py ../shared/data/severstal/images --frames 100 --rounds 5

Takes turns with ``Inspector.inspect_many`` on the same frames, and prints the ratios of the rounds.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from steelsight.decoders import Decoders
from steelsight.engine import Inspector
from steelsight.engine.batch import identity_of, recording
from steelsight.engine.sources import Sources
from steelsight.report.folder import STORE, OutputFolder, inspect_to_folder
from steelsight.report.html import RunInfo


def bare(inspector: Inspector, paths: list[Path]) -> float:
    started = time.perf_counter()
    for _ in inspector.inspect_many(paths):
        pass
    return time.perf_counter() - started


def whole(inspector: Inspector, folder: Path) -> float:
    """A run as ``steelsight inspect --out`` makes it."""
    run = RunInfo("title", "frames", "command", "now", 0.0, "model", "decision", "engine", "int8")
    sources = Sources([folder])
    identity = identity_of(inspector, [folder])
    classes = inspector.bundle.classes
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        with (
            OutputFolder(Path(out), classes, identity=identity) as output,
            recording(
                Path(out) / STORE, inspector, identity, command="command", source="frames"
            ) as record,
        ):
            inspect_to_folder(inspector, sources, output, run, record=record)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as chosen, Decoders(2) as decoders:
        paths = sorted(options.folder.iterdir())[: options.frames]
        for path in paths:
            (Path(chosen) / path.name).symlink_to(path.resolve())
        inspector = Inspector.load(engine=options.engine, workers=0)
        apart = Inspector.load(engine=options.engine, workers=0, decode=decoders.decode)
        bare(inspector, paths[:10])
        whole(apart, Path(chosen))
        ratios = []
        for number in range(options.rounds):
            alone_s = bare(inspector, paths)
            whole_s = whole(apart, Path(chosen))
            ratios.append(whole_s / alone_s)
            print(
                f"round {number + 1}: bare {len(paths) / alone_s:.1f} frames/s, whole run "
                f"{len(paths) / whole_s:.1f}, ratio of times {ratios[-1]:.3f}"
            )
        print(f"{inspector.engine}: median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
