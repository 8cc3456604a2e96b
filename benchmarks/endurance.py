"""Does the engine stay as fast and as small as it was? Many frames through one process.

    python benchmarks/endurance.py ../shared/data/severstal/images 2000 --engine openvino
    python benchmarks/endurance.py ../shared/data/severstal/images 20000 --bundle fast-bundle/

Frames are read into memory once and taken in turn, one of ten of them faulty by the bundle's own
verdict. Prints frames a second and resident memory by tenths of the run, and for single frames the
median and the 99th percentile: of all, and of those that stage 1 cleared.
"""

import argparse
import itertools
import os
import time
from pathlib import Path

import numpy as np

from steelsight.engine import Inspector


def resident_mb() -> float:
    """Memory of this process now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def mix(inspector: Inspector, folder: Path, most: int = 60) -> list[bytes]:
    """Encoded frames, one of ten faulty."""
    clean: list[bytes] = []
    faulty: list[bytes] = []
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        found = inspector.inspect(path)
        if found.verdict != "UNKNOWN":
            (faulty if found.verdict == "NG" else clean).append(path.read_bytes())
        if len(clean) >= most * 9 // 10 and len(faulty) >= most // 10:
            break
    else:
        raise SystemExit(f"expected {most} frames in {folder}, one of ten faulty; give more")
    faulty_few = faulty[: most // 10]
    return list(
        itertools.chain.from_iterable(
            [bad, *clean[9 * i : 9 * i + 9]] for i, bad in enumerate(faulty_few)
        )
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--decision", type=Path)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    inspector = Inspector.load(
        given.bundle, decision=given.decision, engine=given.engine, workers=given.workers
    )
    frames = mix(inspector, given.folder)
    taken_s, cleared = np.zeros(given.count), np.zeros(given.count, bool)
    verdicts = {"OK": 0, "NG": 0, "UNKNOWN": 0}
    results = inspector.inspect_many(itertools.islice(itertools.cycle(frames), given.count))
    tenth = max(given.count // 10, 1)
    started = before = time.perf_counter()
    print(f"{inspector.bundle.id} {inspector.engine}, {given.workers} workers")
    print(f"{'frames':>8} {'frames/s':>9} {'resident MB':>12}")
    for i, result in enumerate(results):
        taken_s[i] = sum(result.milliseconds.values()) / 1e3
        cleared[i] = result.milliseconds.get("segment") == 0
        verdicts[result.verdict] += 1
        if (i + 1) % tenth == 0:
            now = time.perf_counter()
            print(f"{i + 1:>8} {tenth / (now - before):>9.1f} {resident_mb():>12.0f}", flush=True)
            before = now
    total = time.perf_counter() - started
    print(
        f"{given.count} frames in {total:.0f} s; verdicts {verdicts}, sum {sum(verdicts.values())}"
    )
    for name, chosen in (("all", np.ones(given.count, bool)), ("cleared by stage 1", cleared)):
        median, p99 = np.percentile(taken_s[chosen], [50, 99]) * 1e3
        print(f"{name}: median {median:.1f} ms, p99 {p99:.1f} ms, {p99 / median:.2f} times")


if __name__ == "__main__":
    main()
