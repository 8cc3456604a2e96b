"""What is made of a finished run: honest figures, a decision file, a model card, a bundle."""

import hashlib
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelsight.bundle import Bundle, Precision, class_entries
from steelsight.data.frames import LabelledFrame
from steelsight.data.synthetic import LARGEST_WH, SMALLEST_WH, CoilConfig, draw_frame
from steelsight.evaluation.metrics import kaggle_dice, summary
from steelsight.evaluation.predictions import Predictions
from steelsight.evaluation.thresholds import choose_decision
from steelsight.png import encode_png
from steelsight.report.data_page import label_classes
from steelsight.training.card import model_card
from steelsight.training.export import (
    ExportConfig,
    Progress,
    Tolerances,
    export_bundle,
    no_progress,
)
from steelsight.training.prepare import TrainingData, count_frames

RESAMPLES = 2000
CALIBRATION_FRAMES, PARITY_FRAMES = 32, 64
NEVER = 2.0
"""A score that none reaches."""


def measure(found: Predictions) -> dict[str, Any]:
    """All figures with their intervals, and what trivial answers would score."""
    return {**summary(found, resamples=RESAMPLES).to_json(), "baselines": baselines(found)}


def baselines(found: Predictions) -> dict[str, Any]:
    """What one gets without looking.

    ``nothing``: Kaggle's Dice for never marking a pixel. ``everything``: mean Dice on frames that
    hold the type for marking every pixel, by type. ``chance``: AUROC and recalls of a coin.
    """
    inside_nk, outside_nk = found.inside_nkb.sum(2), found.outside_nkb.sum(2)
    dice_nk = 2 * inside_nk / np.maximum(2 * inside_nk + outside_nk, 1)
    never = [NEVER] * len(found.class_ids)
    return {
        "nothing": {"kaggle_dice": kaggle_dice(found, never, [0.0] * len(found.class_ids))},
        "everything": {
            "dice": {
                c: float(dice_nk[found.masked_nk[:, k], k].mean())
                for k, c in enumerate(found.class_ids)
                if found.masked_nk[:, k].any()
            }
        },
        "chance": {"auroc": 0.5, "recall_at_2_percent": 0.02, "recall_at_5_percent": 0.05},
    }


def make_bundle(
    folder: Path,
    weights: Path,
    found: Predictions,
    data: TrainingData,
    *,
    held_out: Sequence[LabelledFrame],
    precision: Precision,
    name: str,
    terms: str,
    chosen_on: str,
    about: Mapping[str, str],
    progress: Progress = no_progress,
) -> Bundle:
    """Thresholds, model card and network files from trained weights, with proof.

    Args:
        folder: new.
        weights: ``best.safetensors`` of a run.
        found: predictions on frames that the network (or that of a fold) had not seen.
        data: what it learned from.
        held_out: frames on which bundle and trained network are compared.
        precision: of the network files.
        name: the bundle's name in results.
        terms: of the training data.
        chosen_on: in words, what ``found`` is.
        about: more for the model card, such as hashes, by name.
        progress: see ``export_bundle``.

    Raises:
        GateError: the bundle differs too much from the trained network; it lies there, refused.
        InputError: scores are not finite, or files cannot be written.
    """
    counts = count_frames(data.train, data.class_ids)
    decision = choose_decision(found, name, chosen_on)
    # At most half: after cross-validation the frames that prove it are frames it learned from.
    calibration = spread(data.train, min(CALIBRATION_FRAMES, max(len(data.train) // 2, 1)))
    taken = {frame.path for frame in calibration}
    free = [frame for frame in held_out if frame.path not in taken]
    on_edge = on_threshold(found, decision)
    parity = spread([f for f in free if f.image not in on_edge] or free, PARITY_FRAMES)
    learned = (
        f"{counts['frames']} frames, {counts['clean']} of them clean; masks by type: "
        + ", ".join(f"{c} {n}" for c, n in counts["masked_by_type"].items())
    )
    with tempfile.TemporaryDirectory() as scratch:
        self_test = Path(scratch) / "self_test.png"
        self_test.write_bytes(drawn_frame(data.tile_wh))
        return export_bundle(
            ExportConfig(
                weights=weights,
                calibration=[frame.path for frame in calibration],
                parity=[frame.path for frame in parity],
                decision=decision,
                card=model_card(
                    name,
                    learned=learned,
                    terms=terms,
                    figures=measure(found),
                    about=about,
                    decided=chosen_on,
                ),
                self_test=self_test,
                classes=class_entries((c.id, c.name) for c in label_classes(data.classes)),
                name=name,
                training=(learned, terms),
                tile_wh=data.tile_wh,
                monochrome=data.grey,
                precision=precision,
                truth={f.path: dict(f.rle_by_class) for f in parity},
                keep_weights=True,
            ),
            folder,
            # Of few frames one may flip.
            Tolerances(int8_verdict_flips=max(0.03, 1 / len(parity))) if parity else None,
            progress,
        )


def on_threshold(found: Predictions, decision: str) -> frozenset[str]:
    """Images of which a score is that of a threshold, but for rounding.

    A threshold lies just above a clean frame's score. On that frame rounding decides the verdict:
    that two forms of a network differ there proves nothing.

    Args:
        found: what the thresholds were chosen from.
        decision: the TOML text of the decision.
    """
    rules = tomllib.loads(decision)
    gate = rules["gate"]
    near_n = np.zeros(len(found), bool)
    for threshold in (gate["clear_below"], gate["ng_from"]):
        near_n |= _same_logit(found.faulty_probability, threshold)
    for k, class_id in enumerate(found.class_ids):
        near_n |= _same_logit(found.type_scores_nk[:, k], rules["types"][class_id]["label_from"])
    return frozenset(found.images[n] for n in np.flatnonzero(near_n))


def _same_logit(scores: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
    inside = np.clip(np.append(scores, threshold), 1e-30, 1 - 1e-12)
    logits = np.log(inside) - np.log1p(-inside)
    same: NDArray[np.bool_] = np.isclose(logits[:-1], logits[-1], rtol=1e-5, atol=1e-5)
    return same


def spread(frames: Sequence[LabelledFrame], most: int) -> list[LabelledFrame]:
    """Some of the frames, half of them faulty if there are enough, the same ones each time."""

    def by_hash(frame: LabelledFrame) -> bytes:
        return hashlib.sha256(frame.image.encode(errors="surrogateescape")).digest()

    faulty = sorted((f for f in frames if f.class_ids), key=by_hash)
    clean = sorted((f for f in frames if not f.class_ids), key=by_hash)
    of_faulty = min(len(faulty), max(most // 2, most - len(clean)))
    return faulty[:of_faulty] + clean[: most - of_faulty]


def drawn_frame(size_wh: tuple[int, int]) -> bytes:
    """A drawn frame with defects as PNG, which may be shipped: no plant's picture."""
    fitting = np.clip(size_wh, SMALLEST_WH, LARGEST_WH)
    config = CoilConfig(seed=1, faulty_share=1.0, size_wh=(int(fitting[0]), int(fitting[1])))
    return encode_png(draw_frame(config, 0).grey_hw, 8)
