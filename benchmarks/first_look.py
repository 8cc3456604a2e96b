"""What a first look saves and what it costs, on frames that neither network had seen.

    python -m benchmarks.first_look ../shared
    python -m benchmarks.first_look ../shared out/fastest severstal-fastest

The first one takes the scores in ``benchmarks/first_look.csv``; the second one writes that file
anew (1 minute, extra ``train``), from a run of ``steelsight train --plan fastest --folds 3``
and the bundle exported of its last network (both commands stand in docs/severstal.md). All scores
are those of int8 networks with the same blocks in fp32, as shipped.

A threshold cannot be carried from one network to another: each fold's network settles what lies
below a quantile of the clean frames **that it learned from**, and is measured on those that it has
not seen. So the procedure is measured with which the shipped threshold is set, in the same way,
from the network of all frames. What it hides is counted against the out-of-fold scores of the
default bundle's recipe (``weights/out_of_fold.csv``): faulty frames that stage 1 would have passed.
Time of a frame: in a mix with 10 % faulty ones, in times of stage 1, if a first look takes
FIRST_LOOK_TIME of it.
"""

import csv
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from benchmarks.out_of_fold import TYPES, read
from numpy.typing import NDArray

from steelsight import imaging
from steelsight.bundle import Precision, load_bundle
from steelsight.engine.runtime import Engine, load_runtime
from steelsight.evaluation.intervals import binomial_interval
from steelsight.evaluation.metrics import auroc
from steelsight.evaluation.predictions import Predictions, logit, sigmoid
from steelsight.evaluation.rules import settled_temperature

SCORES = Path(__file__).parent / "first_look.csv"
"""No frame and no mask: names, folds and scores."""
SHARES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9)
SHIPPED = 0.7
FAULTY_SHARE = 0.1
FIRST_LOOK_TIME = 0.19
"""Of a frame that it settles, in the run in docs/speed.md: 18.6 and 16.8 of 87.7 and 81.9 ms (ONNX
Runtime, OpenVINO), less 1.9 ms for decoding on both sides."""


class Scores(NamedTuple):
    """Of frames that the default recipe has scores of, too, ``(N,)`` each.

    ``quantile``: share of the clean frames of the fold's training that score lower than this one,
    which is held out. ``shipped``: logit by the network of all frames.
    """

    found: Predictions
    fold: NDArray[np.int64]
    held_out: NDArray[np.float64]
    quantile: NDArray[np.float64]
    shipped: NDArray[np.float64]


def load(shared: Path) -> Scores:
    with SCORES.open(newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    found = read(shared / "weights" / "out_of_fold.csv")
    found = found.take(np.array([image in rows for image in found.images]))

    def column(name: str) -> NDArray[np.float64]:
        return np.array([float(rows[image][name]) for image in found.images])

    return Scores(
        found,
        column("fold").astype(np.int64),
        column("held_out_logit"),
        column("held_out_quantile"),
        column("shipped_logit"),
    )


def write(shared: Path, run: Path, bundle: Path) -> None:
    """Every frame by every network in int8."""
    found = read(shared / "weights" / "out_of_fold.csv")
    images = shared / "data" / "severstal" / "images"
    frames = [images / image for image in found.images if (images / image).exists()]
    faulty = found.faulty[[path in set(frames) for path in (images / i for i in found.images)]]
    folds = np.full(len(frames), -1)
    shipped = load_bundle(bundle)
    logits = {}
    for fold, part in enumerate(sorted(run.glob("fold-*/predictions.npz"))):
        held_out = {Path(image).name for image in Predictions.load(part).images}
        here = np.array([path.name in held_out for path in frames])
        folds[here] = fold
        weights = part.parent / "best.safetensors"
        logits[fold] = int8_logits(weights, frames, faulty, ~here, shipped.parity["blocks_in_fp32"])
    shipped_logits = logits_of(shipped.gate_path, frames)
    with SCORES.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        columns = ("image", "fold", "held_out_logit", "held_out_quantile", "shipped_logit")
        table.writerow(columns)
        for n, path in enumerate(frames):
            own = logits[folds[n]]
            below = np.mean(own[(folds != folds[n]) & ~faulty] < own[n])
            table.writerow(
                [path.name, folds[n], f"{own[n]:.6g}", f"{below:.6g}", f"{shipped_logits[n]:.6g}"]
            )


def int8_logits(
    weights: Path,
    frames: list[Path],
    faulty: NDArray[np.bool_],
    learned: NDArray[np.bool_],
    in_fp32: list[str],
) -> NDArray[np.float64]:
    """The gate as ``steelsight export`` makes it, on 32 frames that the network learned from."""
    from steelsight.training.deployed import features_of
    from steelsight.training.export import cut, export_onnx, load_network
    from steelsight.training.quantise import quantise

    random = np.random.default_rng(0)
    of_kind = (
        random.choice(np.flatnonzero(learned & kind), 16, False) for kind in (faulty, ~faulty)
    )
    calibration = [frames[n] for kind in of_kind for n in kind]
    network = load_network(weights, len(TYPES))
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        export_onnx(network, scratch / "whole.onnx")
        file = quantise(scratch / "whole.onnx", scratch, levels(calibration), in_fp32=in_fp32)
        gate, segmenter = scratch / "gate.onnx", scratch / "segmenter.onnx"
        cut(file, gate, segmenter, features_of(network))
        return logits_of(gate, frames)


def logits_of(gate: Path, frames: list[Path]) -> NDArray[np.float64]:
    """What a gate says of frames."""
    runtime = load_runtime(gate, Precision.INT8, Engine.ONNXRUNTIME)
    told = [runtime.run({"frames": f})["faulty_probability"][0] for f in levels(frames)]
    return logit(np.array(told))


def levels(paths: list[Path]) -> Iterator[NDArray[np.uint8]]:
    """Frames as a gate takes them."""
    for path in paths:
        yield np.ascontiguousarray(imaging.read_file(path).grey_hw)[None, None]


def main(shared: Path, run: Path | None = None, bundle: Path | None = None) -> None:
    if run is not None and bundle is not None:
        write(shared, run, bundle)
    scores = load(shared)
    found, faulty = scores.found, scores.found.faulty
    gate = load_bundle().decision.gate
    passed, ng = (found.faulty_probability >= t for t in (gate.clear_below, gate.ng_from))
    print(f"{faulty.sum()} faulty, {(~faulty).sum()} clean frames. Stage 1 alone passes", end=" ")
    print(f"{(passed & faulty).sum()} faulty and {(passed & ~faulty).sum()} clean ones,", end=" ")
    print(f"{(ng & faulty).sum()} and {(ng & ~faulty).sum()} reach ng_from;", end=" ")
    print(f"AUROC {auroc(found.faulty_probability, faulty):.4f},", end=" ")
    print(f"the first look's own {auroc(scores.held_out, faulty):.4f}")
    print(
        "quantile | clean settled (by fold) | faulty hidden | of types | reached ng_from", end=" | "
    )
    print("clean passed | AUROC | time")
    for share in SHARES:
        settled = scores.quantile < share
        hidden = settled & faulty & passed
        count, of = int(hidden.sum()), int((faulty & passed).sum())
        low, high = binomial_interval(count, of)
        types = [
            f"{c}: {n}" for c, n in zip(TYPES, found.present_nk[hidden].sum(0), strict=True) if n
        ]
        on = [np.mean(~settled[kind]) for kind in (faulty, ~faulty)]
        time = FIRST_LOOK_TIME + FAULTY_SHARE * on[0] + (1 - FAULTY_SHARE) * on[1]
        warm = settled_temperature(scores.held_out[settled], int((settled & faulty).sum()))
        told = np.where(settled, sigmoid(scores.held_out / warm), found.faulty_probability)
        by_fold = [np.mean(settled[~faulty & (scores.fold == k)]) for k in range(3)]
        print(
            f"{share:g} | {100 * np.mean(settled[~faulty]):.0f} % "
            f"({' / '.join(f'{100 * s:.0f}' for s in by_fold)}) | {count} of {of} "
            f"({100 * low:.1f} to {100 * high:.1f} %) | {', '.join(types) or 'none'} | "
            f"{(hidden & ng).sum()} | {(passed & ~settled & ~faulty).sum()} | "
            f"{auroc(told, faulty):.4f} | {time:.2f}"
        )
    print(f"\n{decision_table(scores)}")


def decision_table(scores: Scores) -> str:
    """``[first_look]`` of the default decision."""
    faulty = scores.found.faulty
    raw = np.quantile(scores.shipped[~faulty], SHIPPED)
    held_out = scores.quantile < SHIPPED
    # As many of those that it settles are faulty as of those that the folds' networks settled.
    share = (held_out & faulty).sum() / held_out.sum()
    settled = scores.shipped[scores.shipped < raw]
    temperature = settled_temperature(settled, round(share * len(settled)))
    return (
        f"[first_look]\nclear_below = {sigmoid(np.array(raw / temperature)):.8g}\n"
        f"temperature = {temperature:g}"
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
