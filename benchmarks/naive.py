"""The pipeline that most scripts use, to compare with.

    steelsight benchmark --against benchmarks/naive.py
    python -m benchmarks.naive [frames]

Two separate networks, a ResNet50 classifier and a Res-UNet that decodes to full resolution (random
weights: the time does not depend on their values), in eager PyTorch with fp32 and
``torch.inference_mode``; decoding with Pillow to RGB, then grey; thresholds, connected components
and run lengths as in the well-known public notebooks for Severstal: whole frames, a Python loop
over components, a Python loop over runs; one JSON line a frame. One frame at a time, all threads.

It does the work that the compared pipeline does: the same frames reach the segmenter. Random
weights would give random masks, so after the segmenter has run, its masks are replaced by those
that the compared pipeline found; decoding these is not timed.

Alone, it measures itself on drawn frames, every second one faulty, masks as drawn.
"""

import io
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from steelsight.benchmark.frames import EncodedFrame
from steelsight.benchmark.race import Timed
from steelsight.benchmark.run import Answer
from steelsight.masks import decode_rle
from steelsight.models.res_unet import TwoNetworks

TYPES = ("1", "2", "3", "4")
GREY_MEAN, GREY_STD = 0.449, 0.226
PIXEL_FROM, MIN_AREA_PX = 0.5, 600
MULTIPLE = 32

Floats = NDArray[np.float32]


class Naive:
    """See the module.

    Args:
        answers: what the compared pipeline says of every frame, by name.
        threads: of PyTorch.
        seed: of the weights.
    """

    name = "naive (torch eager fp32)"

    def __init__(self, answers: Mapping[str, Answer], threads: int, seed: int = 0) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        types = sorted({*TYPES, *(k for a in answers.values() for k in a.rle_by_class)})
        self.types = tuple(types)
        self.answers = answers
        self.network = TwoNetworks(len(types), mask_stride=1).eval()

    def one_by_one(self, frames: Sequence[EncodedFrame]) -> list[Timed]:
        """Each frame, with the time of its steps."""
        return [self.inspect(frame, self.masks(frame.name))[1] for frame in frames]

    def together(self, frames: Sequence[EncodedFrame]) -> None:
        """Such scripts take one frame at a time: what ``one_by_one`` took counts."""

    def masks(self, name: str) -> Floats:
        """What the segmenter would say with trained weights, ``(K, H, W)``, 0 and 1."""
        answer = self.answers[name]
        rles = (answer.rle_by_class.get(k, "") for k in self.types)
        return np.stack([decode_rle(rle, answer.size_wh) for rle in rles]).astype(np.float32)

    def inspect(self, frame: EncodedFrame, masks_chw: Floats) -> tuple[str, Timed]:
        """One frame: its result line, and how long it took."""
        times = [time.perf_counter()]
        image = Image.open(io.BytesIO(frame.data)).convert("RGB")
        grey = np.asarray(image).astype(np.float32).mean(axis=2) / 255
        rows, columns = grey.shape
        x = torch.from_numpy((grey - GREY_MEAN) / GREY_STD)[None, None]
        x = torch.nn.functional.pad(x, (0, -columns % MULTIPLE, 0, -rows % MULTIPLE))
        times.append(time.perf_counter())
        with torch.inference_mode():
            average, maximum = self.network.classify_frames(x)
            scores = ((average.sigmoid() + maximum.sigmoid()) / 2)[0].numpy()
        times.append(time.perf_counter())
        result = {"image": frame.name, "scores": scores.tolist(), "rle": {}}
        if self.answers[frame.name].segmented:
            with torch.inference_mode():
                self.network.segment_frames(x).sigmoid()[0, :, :rows, :columns].numpy()
            times.append(time.perf_counter())
            for class_id, probability in zip(self.types, masks_chw, strict=True):
                mask = without_small_components(probability)
                result["rle"][class_id] = run_lengths(mask)
        else:
            times.append(time.perf_counter())
        line = json.dumps(result)
        times.append(time.perf_counter())
        steps = ("decode", "gate", "segment", "decide")
        took_ms = (1e3 * np.diff(times)).tolist()
        return line, Timed(times[-1] - times[0], dict(zip(steps, took_ms, strict=True)))


def without_small_components(probability: Floats) -> Floats:
    """Thresholds a map and drops small components, on the whole frame, one after the other."""
    mask = cv2.threshold(probability, PIXEL_FROM, 1, cv2.THRESH_BINARY)[1]
    count, labels = cv2.connectedComponents(mask.astype(np.uint8))
    kept = np.zeros(probability.shape, np.float32)
    for label in range(1, count):
        component = labels == label
        if component.sum() > MIN_AREA_PX:
            kept[component] = 1
    return kept


def run_lengths(mask: Floats) -> str:
    """Kaggle's run lengths, a Python loop over the runs."""
    pixels = np.concatenate([[0], mask.T.flatten(), [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(x) for x in runs)


def contestant(answers: Mapping[str, Answer], threads: int) -> Naive:
    """For ``steelsight benchmark --against``."""
    return Naive(answers, threads)


def main(count: int) -> None:
    from steelsight.data.synthetic import CLASS_IDS, CoilConfig, draw_frame, encode_jpeg
    from steelsight.masks import encode_rle

    frames, answers = [], {}
    for i in range(count):
        drawn = draw_frame(CoilConfig(frames=count, seed=7, faulty_share=float(i % 2)), i)
        masks = {k: encode_rle(drawn.masks_chw[CLASS_IDS.index(k)]) for k in drawn.class_ids}
        frames.append(EncodedFrame(drawn.name, encode_jpeg(drawn.grey_hw), bool(masks)))
        answers[drawn.name] = Answer(bool(masks), masks, drawn.grey_hw.shape[::-1])
    naive = contestant(answers, os.cpu_count() or 1)
    naive.one_by_one(frames[:2])
    timed = naive.one_by_one(frames)
    for kind in (False, True):
        chosen = [t for t, f in zip(timed, frames, strict=True) if f.faulty is kind]
        if chosen:
            steps = {k: np.median([t.steps_ms[k] for t in chosen]) for k in chosen[0].steps_ms}
            print(
                f"{'faulty' if kind else 'clean ':6} drawn frames, {len(chosen)}: median "
                f"{1e3 * np.median([t.seconds for t in chosen]):.0f} ms ("
                + ", ".join(f"{k} {ms:.1f}" for k, ms in steps.items())
                + ")"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
