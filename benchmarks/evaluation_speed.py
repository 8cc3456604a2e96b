"""How long an evaluation of 12,568 frames takes without inference, and how much memory.

    nice -n 10 python benchmarks/evaluation_speed.py [frames]

Mask probabilities come from a pool that is made beforehand (soft blobs on a background near 0, as
the networks give them), labels are run lengths as Severstal's are: half of the frames faulty, some
with two types. Measured are the parts of ``steelsight evaluate`` that grow with the data: labels to
masks, counting by mask logit, regions, all figures with 2,000 resamples, table and page.
"""

import json
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from steelsight.bundle import load_bundle
from steelsight.data.frames import FramePixels, LabelledFrame, types_image
from steelsight.data.tables import write_table
from steelsight.evaluation.evaluate import evaluate
from steelsight.evaluation.predictions import Answer, Collector
from steelsight.masks import encode_rle
from steelsight.report.evaluation_folder import choose_frames, frame_rows
from steelsight.report.evaluation_page import evaluation_page

SIZE_WH = (1600, 256)
TYPES = ("1", "2", "3", "4")
POOL = 48

seconds: Counter[str] = Counter()
most_mb: dict[str, float] = {}


@contextmanager
def timed(what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[what] += time.perf_counter() - started
    most_mb[what] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def blob(rng: np.random.Generator) -> NDArray[np.bool_]:
    mask = np.zeros(SIZE_WH[::-1], np.uint8)
    for _ in range(rng.integers(1, 5)):
        centre = (int(rng.integers(SIZE_WH[0])), int(rng.integers(SIZE_WH[1])))
        axes = (int(rng.integers(4, 120)), int(rng.integers(4, 60)))
        cv2.ellipse(mask, centre, axes, float(rng.integers(180)), 0, 360, 1, -1)
    return mask.astype(bool)


def soft(rng: np.random.Generator, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A network's answer on a mask: blurred, shifted, never quite 0 or 1."""
    moved = np.roll(mask, rng.integers(-6, 7, 2), axis=(0, 1)).astype(np.float32)
    blurred = cv2.GaussianBlur(moved, (0, 0), float(rng.uniform(3, 12)))
    strength = rng.choice([0.05, 0.5, 0.97])
    return (0.0004 + strength * blurred).astype(np.float32)


def main(count: int) -> None:
    rng = np.random.default_rng(0)
    masks = [blob(rng) for _ in range(POOL)]
    rles = [encode_rle(mask) for mask in masks]
    answers = [soft(rng, mask) for mask in masks]
    nothing = np.full(SIZE_WH[::-1], 0.0004, np.float32)
    grey_hw = np.full(SIZE_WH[::-1], 100, np.uint8)
    collector = Collector(TYPES)
    stacked = np.empty((len(TYPES), *SIZE_WH[::-1]), np.float32)
    started = time.perf_counter()
    for n in range(count):
        on_frame = {}
        if rng.random() < 0.53:
            types = rng.choice(4, size=1 + (rng.random() < 0.06), replace=False)
            on_frame = {TYPES[k]: int(rng.integers(POOL)) for k in types}
        frame = LabelledFrame(
            f"{n:05d}.jpg", Path("none"), SIZE_WH, {c: rles[i] for c, i in on_frame.items()},
            tuple(on_frame),
        )  # fmt: skip
        with timed("making (not counted)"):
            stacked[:] = nothing
            for class_id, i in on_frame.items():
                stacked[TYPES.index(class_id)] = answers[i]
            if not on_frame and rng.random() < 0.1:
                stacked[rng.integers(4)] = answers[rng.integers(POOL)]
            faulty = float(rng.normal(3 if on_frame else -3, 2))
            heads = np.clip(rng.normal(0.1, 0.1, 4), 0, 1).astype(np.float32)
            for class_id in on_frame:
                heads[TYPES.index(class_id)] = rng.beta(4, 2)
        with timed("labels to masks"):
            pixels = FramePixels(grey_hw, types_image(frame, TYPES))
        with timed("counting"):
            collector.add(frame, pixels, Answer(faulty, heads, stacked), group=n // 2)
    with timed("arrays"):
        predictions = collector.predictions()
    del collector
    decision = load_bundle().decision
    with timed("figures, 2,000 resamples"):
        facts = evaluate(predictions, decision).to_json()
    with timed("table and page"), tempfile.TemporaryDirectory() as folder:
        choose_frames(predictions, decision)
        write_table(Path(folder) / "frames.csv", frame_rows(predictions, decision))
        (Path(folder) / "evaluation.json").write_text(json.dumps(facts))
        page = evaluation_page(facts, [], title="12,568 frames")
        predictions.save(Path(folder) / "predictions.npz")
    total = time.perf_counter() - started - seconds["making (not counted)"]
    for what, took in seconds.items():
        per_frame = 1e3 * took / count
        print(
            f"{what:28} {took:7.1f} s {per_frame:8.3f} ms a frame, {most_mb[what]:5.0f} MB by then"
        )
    print(f"{'all that is counted':28} {total:7.1f} s for {count} frames")
    print(f"page: {len(page) / 1024:.0f} kB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 12_568)
