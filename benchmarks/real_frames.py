"""How good the verdicts and masks of a run are on the labelled Severstal frames.

Usage: python benchmarks/real_frames.py results.jsonl ../shared

Reads nothing but the result lines and the labels, and nothing of steelsight: run lengths, Dice and
AUROC are computed here again, so that an error over there cannot hide itself. Beside each figure
stands the one that the trained network reaches in fp32 on the same frames.

Its authors trained the shipped network on these very frames: the figures prove that the engine is
right, not how well it will do on other steel.
"""

import csv
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

TYPES = ("1", "2", "3", "4")
FAULTY, CLEAN = ("faulty", "faulty-no-mask"), ("clean",)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a run comes to; ``fp32`` fields are the trained network's on the same frames."""

    frames: int
    auroc: float
    """Faulty against clean frames; disputed ones are left out, and those without a probability."""
    auroc_fp32: float
    dice: Mapping[str, float]
    """Mean over the frames that hold the type; UNKNOWN and cleared frames count as empty masks."""
    dice_fp32: Mapping[str, float]
    pairs: Mapping[str, int]
    """How many frames hold the type and have a mask."""
    verdicts: Mapping[str, Counter[str]]
    """By what the labels say of the frame: faulty, faulty-no-mask, clean, disputed."""

    @property
    def mean_dice(self) -> float:
        """Mean over types."""
        return float(np.mean(list(self.dice.values())))

    @property
    def mean_dice_fp32(self) -> float:
        """Mean over types."""
        return float(np.mean(list(self.dice_fp32.values())))


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file by column name."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def mask_of(rles: Iterable[str], size_wh: tuple[int, int]) -> NDArray[np.bool_]:
    """Union of Kaggle run lengths (1-based, down the columns) as rows x columns."""
    width, height = size_wh
    flat = np.zeros(width * height, np.bool_)
    for rle in rles:
        numbers = [int(word) for word in rle.split()]
        for start, length in zip(numbers[0::2], numbers[1::2], strict=True):
            if start < 1 or start - 1 + length > flat.size:
                raise ValueError(f"run {start} {length} leaves a frame of {width} x {height}")
            flat[start - 1 : start - 1 + length] = True
    return flat.reshape(width, height).T


def dice_of(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Dice coefficient; the second mask is never empty here."""
    return float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))


def measure(results: Path, shared: Path) -> Figures:
    """Compares the result lines with the labels; frames without a label are left out."""
    labels = shared / "data" / "severstal"
    status = {row["ImageId"]: row["status"] for row in read_table(labels / "images.csv")}
    expected = {
        row["ImageId"]: row for row in read_table(shared / "weights" / "expected_outputs.csv")
    }
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    answers: dict[str, dict[str, Any]] = {
        line["image"]: line for line in lines if line["image"] in status
    }
    scored = [
        name
        for name, answer in answers.items()
        if status[name] in FAULTY + CLEAN and answer["faulty_probability"] is not None
    ]
    is_faulty = [status[name] in FAULTY for name in scored]
    ours: dict[str, list[float]] = {k: [] for k in TYPES}
    theirs: dict[str, list[float]] = {k: [] for k in TYPES}
    for row in read_table(labels / "train.csv"):
        name, class_id = row["ImageId"], row["ClassId"]
        if name not in answers or not row["EncodedPixels"]:
            continue
        width, height = answers[name]["size_wh"] or (1600, 256)
        rles = [d["rle"] for d in answers[name]["defects"] if d["class"] == class_id]
        truth = mask_of([row["EncodedPixels"]], (width, height))
        ours[class_id].append(dice_of(mask_of(rles, (width, height)), truth))
        theirs[class_id].append(float(expected[name][f"dice_{class_id}"]))
    verdicts: dict[str, Counter[str]] = {}
    for name, answer in answers.items():
        verdicts.setdefault(status[name], Counter())[answer["verdict"]] += 1
    return Figures(
        frames=len(answers),
        auroc=auroc(is_faulty, [answers[name]["faulty_probability"] for name in scored]),
        auroc_fp32=auroc(is_faulty, [float(expected[name]["faulty_logit"]) for name in scored]),
        dice={k: float(np.mean(values)) for k, values in ours.items() if values},
        dice_fp32={k: float(np.mean(values)) for k, values in theirs.items() if values},
        pairs={k: len(values) for k, values in ours.items() if values},
        verdicts=verdicts,
    )


def auroc(is_faulty: list[bool], scores: list[float]) -> float:
    """Area under the ROC curve; NaN where only one kind of frame is there."""
    return float(roc_auc_score(is_faulty, scores)) if len(set(is_faulty)) == 2 else math.nan


def table(figures: Figures) -> str:
    """The figures for people."""
    lines = [
        f"{figures.frames} labelled frames            run    fp32",
        f"frame AUROC                 {figures.auroc:.4f}  {figures.auroc_fp32:.4f}",
    ]
    lines += [
        f"Dice type {k} ({figures.pairs[k]:3d} frames)     {figures.dice[k]:.4f}  "
        f"{figures.dice_fp32[k]:.4f}"
        for k in figures.dice
    ]
    lines.append(
        f"Dice, mean of types         {figures.mean_dice:.4f}  {figures.mean_dice_fp32:.4f}"
    )
    lines.append("\nverdicts              OK    NG  UNKNOWN")
    lines += [
        f"{status:18}{counts['OK']:6}{counts['NG']:6}{counts['UNKNOWN']:9}"
        for status, counts in sorted(figures.verdicts.items())
    ]
    return "\n".join(lines)


def main() -> None:
    """Prints the figures of a run."""
    if len(sys.argv) != 3:
        sys.exit("usage: python benchmarks/real_frames.py results.jsonl ../shared")
    sys.stdout.write(table(measure(Path(sys.argv[1]), Path(sys.argv[2]))) + "\n")


if __name__ == "__main__":
    main()
