"""Derives ``synthetic_statistics.json`` from a folder of real Severstal labels and frames.

    python benchmarks/learn_synthetic_statistics.py ../shared/data/severstal

The folder holds ``labels_all.csv`` (types per frame), ``train_partial.csv`` (real mask rows, Kaggle
RLE), ``train.csv``, ``images.csv`` and ``images/``. Only statistics leave this script: quantiles,
frequencies and correlations; no pixel, mask or file name. One to two minutes on one core.
"""

import csv
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

HEIGHT, WIDTH = 256, 1600
LEVELS = np.linspace(0, 1, 21)
"""Every list of quantiles in the file is taken at these levels."""
STATISTICS = Path(__file__).parents[1] / "src/steelsight/data/synthetic_statistics.json"
SMALLEST_PX = 30
"""Smaller components are slips of the labelling tool, not defects."""
FULL_HEIGHT = 250
"""Components at least this high count as spanning the frame."""
MOST_COMPONENTS = 15
"""Frames with more components count as this many."""
DARK_GREY = 14
"""A column whose median is below this shows no steel."""


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def decode_rle(text: str) -> np.ndarray:
    """Kaggle RLE (1-based, column-major) to uint8 (256, 1600)."""
    numbers = np.array(text.split(), dtype=int)
    flat = np.zeros(HEIGHT * WIDTH, np.uint8)
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        flat[start - 1 : start - 1 + length] = 1
    return flat.reshape(WIDTH, HEIGHT).T


def components(mask_hw: np.ndarray) -> np.ndarray:
    """Rows of x, y, width, height, area of the connected components worth counting."""
    stats = cv2.connectedComponentsWithStats(np.ascontiguousarray(mask_hw, np.uint8))[2][1:]
    return stats[stats[:, 4] >= SMALLEST_PX]


def quantiles(values: Any, weights: Any = None, digits: int = 4) -> list[float]:
    """Quantiles at ``LEVELS``; weighted ones treat each value as a step of its weight."""
    values = np.asarray(values, float)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, float)
    order = np.argsort(values)
    position = np.cumsum(weights[order]) - weights[order] / 2
    found = np.interp(LEVELS, position / weights.sum(), values[order])
    return [float(f"{v:.{digits}g}") for v in found]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation, ties averaged."""

    def ranks(values: np.ndarray) -> np.ndarray:
        ordered = np.sort(values)
        low, high = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
        return low + high

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def type_geometry(masks: list[np.ndarray]) -> dict[str, Any]:
    """Sizes, shapes and places of one type; ``masks`` holds the components of each mask row."""
    count = np.array([len(parts) for parts in masks])
    x, y, w, h, area = np.concatenate(masks).T.astype(float)
    weight = np.repeat(1 / count, count)  # every frame counts once
    frame = np.repeat(np.arange(len(masks)), count)
    total = np.bincount(frame, area)
    centre = (x + w / 2) / WIDTH
    frame_centre = np.bincount(frame, centre * weight)
    several = count > 1
    seen = np.bincount(np.minimum(count, MOST_COMPONENTS), minlength=MOST_COMPONENTS + 1)[1:]
    free = h < FULL_HEIGHT
    return {
        "components": [round(float(v), 4) for v in seen / seen.sum()],
        "area_px": quantiles(total),
        "count_area_correlation": round(rank_correlation(count, total), 3),
        "log_share_std": round(float(np.median(within(np.log(area), frame)[several])), 3),
        "shape_by_area": shapes(area, h, h / w),
        "frame_shape_correlation": round(frame_share(np.log(h / w), frame, weight), 3),
        "fill": quantiles(area / (w * h), weight),
        "centre_x": quantiles(frame_centre),
        "spread_x": quantiles(within(centre, frame)[several]),
        "slack_y": quantiles((y / np.maximum(HEIGHT - h, 1))[free], weight[free]),
    }


def within(values: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Standard deviation of the values of each frame."""
    count = np.bincount(frame)
    mean = np.bincount(frame, values) / count
    return np.sqrt(np.bincount(frame, (values - mean[frame]) ** 2) / count)


def frame_share(values: np.ndarray, frame: np.ndarray, weight: np.ndarray) -> float:
    """Which share of the variance lies between frames."""
    mean = np.bincount(frame, values * weight)
    middle = mean.mean()
    inner = np.average((values - mean[frame]) ** 2, weights=weight)
    return float(1 - inner / np.average((values - middle) ** 2, weights=weight))


def shapes(area: np.ndarray, height: np.ndarray, aspect: np.ndarray) -> list[dict[str, Any]]:
    """Per eighth of the component areas: how many span the frame, and the aspect of the others."""
    limits = np.quantile(area, np.linspace(0, 1, 9))[1:]
    found = []
    for i, high in enumerate(limits):
        here = (area <= high) & (area > (limits[i - 1] if i else 0))
        full = height[here] >= FULL_HEIGHT
        found.append(
            {
                "area_up_to_px": float(high),
                "full_height": round(float(full.mean()), 3),
                "aspect": quantiles(aspect[here][~full], digits=3)[::2],
            }
        )
    return found


def strip_columns(grey_hw: np.ndarray) -> tuple[int, int]:
    """First and one-past-last column that shows steel."""
    lit = np.flatnonzero(np.median(grey_hw, axis=0) >= DARK_GREY)
    return (int(lit[0]), int(lit[-1]) + 1) if len(lit) else (0, 0)


def surface_measures(grey_hw: np.ndarray) -> dict[str, float] | None:
    """What the eye calls texture, as numbers; ``None`` where less than 200 columns show steel.

    ``mean_grey``; ``p01``/``p99``: grey quantiles over the mean; ``bands``: spread of the column
    means over the mean; ``local_contrast``: median over 16 x 16 blocks of standard deviation over
    mean; ``grain``: the same of what a 3 x 3 blur removes; ``along_k``/``across_k``: correlation of
    pixels k rows / k columns apart, after removing what varies over more than about 50 pixels.
    """
    left, right = strip_columns(grey_hw)
    if right - left < 200:
        return None
    steel = grey_hw[:, left + 8 : right - 8].astype(np.float32)
    mean = float(steel.mean())
    fine = steel - cv2.GaussianBlur(steel, (0, 0), 25)
    fine = np.clip(fine, *np.quantile(fine, [0.001, 0.999]))  # one glint must not decide
    grain = steel - cv2.blur(steel, (3, 3))
    h, w = (steel.shape[0] // 16) * 16, (steel.shape[1] // 16) * 16
    blocks = steel[:h, :w].reshape(h // 16, 16, w // 16, 16)
    found = {
        "mean_grey": mean,
        "p01": float(np.quantile(steel, 0.01)) / mean,
        "p99": float(np.quantile(steel, 0.99)) / mean,
        "bands": float(steel.mean(axis=0).std()) / mean,
        "local_contrast": float(
            np.median(blocks.std(axis=(1, 3)) / np.maximum(blocks.mean(axis=(1, 3)), 1))
        ),
        "grain": float(grain.std()) / mean,
    }
    for lag in (1, 4, 16, 64):
        found[f"along_{lag}"] = float(np.corrcoef(fine[lag:].ravel(), fine[:-lag].ravel())[0, 1])
    for lag in (1, 4, 16):
        left_px, right_px = fine[:, lag:].ravel(), fine[:, :-lag].ravel()
        found[f"across_{lag}"] = float(np.corrcoef(left_px, right_px)[0, 1])
    return found


def learn_types(folder: Path) -> dict[str, Any]:
    """Frequencies of the sets of types, and the geometry of each type."""
    sets: Counter[str] = Counter()
    for row in rows(folder / "labels_all.csv"):
        if present := " ".join(str(k) for k in range(1, 5) if row[f"c{k}"] == "1"):
            sets[present] += 1
    masks: dict[str, list[np.ndarray]] = {str(k): [] for k in range(1, 5)}
    for row in rows(folder / "train_partial.csv"):
        found = components(decode_rle(row["EncodedPixels"]))
        if len(found):
            masks[row["ClassId"]].append(found)
    return {
        "type_sets": dict(sorted(sets.items())),
        "types": {k: type_geometry(v) for k, v in masks.items()},
    }


def learn_frames(folder: Path) -> dict[str, Any]:
    """Where the strip ends, how far defects lie from there, and how clean steel looks."""
    sides: dict[str, Counter[str]] = {k: Counter() for k in ("clean", "1", "2", "3", "4")}
    dark: list[float] = []
    measures: dict[str, list[float]] = {}
    limits: dict[str, tuple[int, int]] = {}
    for row in rows(folder / "images.csv"):
        if row["status"] == "disputed":
            continue
        grey = cv2.imread(str(folder / "images" / row["ImageId"]), cv2.IMREAD_GRAYSCALE)
        left, right = limits[row["ImageId"]] = strip_columns(grey)
        side = "left" if left > 4 else "right" if right < WIDTH - 4 else "none"
        for name in row["classes"].split() or ["clean"]:
            sides[name][side] += 1
        if side != "none":
            dark.append((left if side == "left" else WIDTH - right) / WIDTH)
        if row["status"] == "clean" and (found := surface_measures(grey)):
            for key, value in found.items():
                measures.setdefault(key, []).append(value)
    distance = []
    for row in rows(folder / "train.csv"):
        left, right = limits[row["ImageId"]]
        if row["ClassId"] == "2" and (left > 4 or right < WIDTH - 4):
            for x, _, w, _, _ in components(decode_rle(row["EncodedPixels"])):
                distance.append(x + w / 2 - left if left > 4 else right - x - w / 2)
    return {
        "edge_sides": {
            k: {s: round(n / c.total(), 3) for s, n in sorted(c.items())} for k, c in sides.items()
        },
        "dark_fraction": quantiles(dark),
        "line_to_edge_px": quantiles(distance),
        "clean_surface": {k: quantiles(v) for k, v in measures.items()},
    }


def learn(folder: Path) -> dict[str, Any]:
    """The whole statistics file as an object."""
    note = (
        "Statistics of the Severstal steel data (Kaggle, 2019), written by "
        "benchmarks/learn_synthetic_statistics.py; lists without other note are quantiles at "
        "0, 5, ..., 100 %. No pixel and no mask of that data is stored here."
    )
    return {"about": note, **learn_types(folder), **learn_frames(folder)}


def main() -> None:
    """Writes the file."""
    text = json.dumps(learn(Path(sys.argv[1])), indent=1)
    text = re.sub(
        r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text
    )  # a list a line
    STATISTICS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
