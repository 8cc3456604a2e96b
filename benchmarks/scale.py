"""What a frame costs: processor time, bytes on the disk, and what Ray adds.

    python benchmarks/scale.py ../shared/data/severstal/images --frames 200 --ray

Runs ``steelsight inspect`` as a process of its own, so that everything is counted, also decoders.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def inspected(folder: Path, out: Path, *options: str) -> tuple[float, float, dict[str, int]]:
    """Wall and processor seconds of a run, and its counts."""
    before = os.times()
    started = time.perf_counter()
    command = [sys.executable, "-m", "steelsight", "inspect", str(folder), "--out", str(out)]
    done = subprocess.run([*command, "--json", *options], capture_output=True, text=True)
    wall_s = time.perf_counter() - started
    if done.returncode not in (0, 3):
        raise SystemExit(done.stderr)
    after = os.times()
    cpu_s = sum(after[2:4]) - sum(before[2:4])
    return wall_s, cpu_s, json.loads(done.stdout)


def size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--ray", action="store_true", help="a run on a local Ray cluster, too")
    parser.add_argument("--engine", default="onnxruntime")
    options = parser.parse_args()
    engine = ("--engine", options.engine)
    with tempfile.TemporaryDirectory() as scratch:
        paths = sorted(options.folder.iterdir())[: options.frames]
        few, many = Path(scratch) / "few", Path(scratch) / "many"
        for folder, chosen in ((few, paths[:10]), (many, paths)):
            folder.mkdir()
            for path in chosen:
                (folder / path.name).symlink_to(path.resolve())
        # The difference of two runs is without their start.
        small = inspected(few, Path(scratch) / "a", *engine)
        large = inspected(many, Path(scratch) / "b", *engine)
        frames = len(paths) - 10
        wall_s, cpu_s = ((large[i] - small[i]) / frames for i in (0, 1))
        out = Path(scratch) / "b"
        print(f"{len(paths)} frames, {large[2]['ng']} NG, {os.cpu_count()} cores, {engine[1]}")
        print(f"start: {small[0] - 10 * wall_s:.1f} s")
        print(f"here: {cpu_s:.3f} s of a core a frame, {1 / wall_s:.1f} frames/s")
        print(f"a frame: {size(many) / len(paths) / 1e3:.0f} kB")
        for name in ("results.jsonl", "store.db", "submission.csv"):
            print(f"{name}: {size(out / name) / len(paths):.0f} bytes a frame")
        print(
            f"overlays: {size(out / 'overlays') / max(large[2]['ng'], 1) / 1e3:.0f} kB a NG frame"
        )
        if options.ray:
            on_ray = (*engine, "--on", "ray")
            small_ray = inspected(few, Path(scratch) / "c", *on_ray)
            large_ray = inspected(many, Path(scratch) / "d", *on_ray)
            ray_wall_s = (large_ray[0] - small_ray[0]) / frames
            print(
                f"on Ray: {1 / ray_wall_s:.1f} frames/s, {ray_wall_s / wall_s:.2f} times the time "
                f"here; start {small_ray[0] - 10 * ray_wall_s:.0f} s"
            )
            parts = size(Path(scratch) / "d" / "parts")
            print(f"Parquet: {parts / len(paths):.0f} bytes a frame")


if __name__ == "__main__":
    main()
