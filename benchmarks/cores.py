"""How much faster is the engine with more cores? The same frames on 1, 2, ... cores in turns.

    python -m benchmarks.cores ../shared/data/severstal/images --rounds 5 --engine openvino

Each number of cores has a process of its own that may use so many (``sched_setaffinity``) and
inspects as many frames at once. Per round everybody takes all frames once; the ratios of the rounds
to one core are printed with their least and most.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.endurance import mix

from steelsight.engine import Inspector


def worker(cores: list[int], engine: str, bundle: Path | None, told: Connection) -> None:
    """Inspects the frames that came first, as often as asked; tells seconds."""
    os.sched_setaffinity(0, cores)
    inspector = Inspector.load(bundle, engine=engine, threads=len(cores), workers=len(cores))
    frames = told.recv()
    told.send(inspector.engine)
    while told.recv():
        started = time.perf_counter()
        verdicts = [result.verdict for result in inspector.inspect_many(frames)]
        told.send(time.perf_counter() - started)
        assert len(verdicts) == len(frames)
        assert "UNKNOWN" not in verdicts


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--bundle", type=Path)
    given = parser.parse_args()
    usable = sorted(os.sched_getaffinity(0))
    frames = mix(Inspector.load(given.bundle, engine=given.engine), given.folder, given.frames)
    context = multiprocessing.get_context("spawn")
    told = []
    for count in range(1, len(usable) + 1):
        here, there = context.Pipe()
        context.Process(
            target=worker, args=(usable[:count], given.engine, given.bundle, there), daemon=True
        ).start()
        here.send(frames)
        engine = here.recv()
        told.append(here)

    def turn(one: Connection) -> float:
        one.send(True)
        taken_s: float = one.recv()
        return taken_s

    for one in told:
        turn(one)  # warm
    rounds = [[turn(one) for one in told] for _ in range(given.rounds)]
    print(f"{engine}, {len(frames)} frames, {given.rounds} rounds")
    for number, taken_s in enumerate(zip(*rounds, strict=True)):
        ratios = [first[0] / own for first, own in zip(rounds, taken_s, strict=True)]
        print(
            f"{number + 1} cores: {len(frames) / statistics.median(taken_s):.1f} frames/s, "
            f"{statistics.median(ratios):.2f} times one core "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )
    for one in told:
        one.send(False)


if __name__ == "__main__":
    main()
