"""Predictions for tests: what is not told is zero."""

from typing import Any

import numpy as np

from steelsight.evaluation.predictions import BINS, Predictions

REGIONS = ("region_frames_r", "region_types_r", "region_boxes_r4", "region_counts_rb")


def predictions_of(present_nk: Any, **known: Any) -> Predictions:
    """Predictions with these labels; what is not told is 0, masks included.

    Each mask is one region, unless told otherwise.
    """
    present_nk = np.asarray(present_nk, bool)
    n, k = present_nk.shape
    values: dict[str, Any] = {
        "images": tuple(f"{i}.jpg" for i in range(n)),
        "class_ids": tuple("abcdefgh"[:k]),
        "folds": np.zeros(n, np.int64),
        "groups": np.arange(n),
        "faulty": present_nk.any(axis=1),
        "present_nk": present_nk,
        "masked_nk": np.zeros((n, k), bool),
        "faulty_logits": np.zeros(n, np.float32),
        "head_probabilities_nk": np.full((n, k), 0.5, np.float32),
        "peaks_nk": np.zeros((n, k), np.float32),
        "inside_nkb": np.zeros((n, k, BINS), np.int64),
        "outside_nkb": np.zeros((n, k, BINS), np.int64),
        "sizes_n2": np.full((n, 2), 64),
        "brightness_n": np.full(n, 100, np.float32),
    }
    for name, value in known.items():
        if name in values and not isinstance(value, tuple):
            value = np.asarray(value, values[name].dtype)
        values[name] = value
    if not known.keys() & set(REGIONS):
        values |= one_region_each(values["inside_nkb"])
    return Predictions(**values)


def one_region_each(inside_nkb: Any) -> dict[str, Any]:
    """The arrays on regions where every mask is one."""
    frames, types = np.nonzero(inside_nkb.any(axis=2))
    return {
        "region_frames_r": frames,
        "region_types_r": types,
        "region_boxes_r4": np.tile([4, 8, 16, 8], (len(frames), 1)),
        "region_counts_rb": inside_nkb[frames, types],
    }


def random_predictions(seed: int, n: int = 60, k: int = 3, clean: float = 0.5) -> Predictions:
    """Scores that follow the labels, masks of some of the frames, and ties."""
    rng = np.random.default_rng(seed)
    present_nk = (rng.random((n, k)) < 0.4) & (rng.random(n) >= clean)[:, None]
    masked_nk = present_nk & (rng.random((n, k)) < 0.8)
    logits = np.round(rng.normal(size=n) + 2 * present_nk.any(axis=1), 1)
    heads = 1 / (1 + np.exp(-rng.normal(size=(n, k)) - 2 * present_nk))
    return predictions_of(
        present_nk,
        masked_nk=masked_nk,
        folds=rng.integers(3, size=n),
        faulty_logits=logits,
        head_probabilities_nk=np.round(heads, 2),
        peaks_nk=np.round(rng.random((n, k)), 1),
        inside_nkb=rng.integers(20, size=(n, k, BINS)) * masked_nk[..., None],
        outside_nkb=rng.integers(20, size=(n, k, BINS)),
    )
