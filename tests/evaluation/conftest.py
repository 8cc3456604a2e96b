from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steelsight.evaluation.predictions import BINS, Predictions


def predictions_of(present_nk: Any, **known: Any) -> Predictions:
    """Predictions with these labels; what is not told is 0, masks included."""
    present_nk = np.asarray(present_nk, bool)
    n, k = present_nk.shape
    values: dict[str, Any] = {
        "images": tuple(f"{i}.jpg" for i in range(n)),
        "class_ids": tuple("abcdefgh"[:k]),
        "folds": np.zeros(n, np.int64),
        "faulty": present_nk.any(axis=1),
        "present_nk": present_nk,
        "masked_nk": np.zeros((n, k), bool),
        "faulty_logits": np.zeros(n, np.float32),
        "head_logits_n2k": np.zeros((n, 2, 1 + k), np.float32),
        "peaks_nk": np.zeros((n, k), np.float32),
        "inside_nkb": np.zeros((n, k, BINS), np.int64),
        "outside_nkb": np.zeros((n, k, BINS), np.int64),
    }
    for name, value in known.items():
        if not isinstance(value, tuple):
            value = np.asarray(value, values[name].dtype)
        values[name] = value
    return Predictions(**values)


def random_predictions(seed: int, n: int = 60, k: int = 3, clean: float = 0.5) -> Predictions:
    """Scores that follow the labels, masks of some of the frames, and ties."""
    rng = np.random.default_rng(seed)
    present_nk = (rng.random((n, k)) < 0.4) & (rng.random(n) >= clean)[:, None]
    masked_nk = present_nk & (rng.random((n, k)) < 0.8)
    logits = np.round(rng.normal(size=n) + 2 * present_nk.any(axis=1), 1)
    heads = rng.normal(size=(n, 2, 1 + k))
    heads[:, :, 1:] += 2 * present_nk[:, None]
    return predictions_of(
        present_nk,
        masked_nk=masked_nk,
        folds=rng.integers(3, size=n),
        faulty_logits=logits,
        head_logits_n2k=np.round(heads, 1),
        peaks_nk=np.round(rng.random((n, k)), 1),
        inside_nkb=rng.integers(20, size=(n, k, BINS)) * masked_nk[..., None],
        outside_nkb=rng.integers(20, size=(n, k, BINS)),
    )


@pytest.fixture(scope="session")
def make() -> Callable[..., Predictions]:
    return predictions_of


@pytest.fixture(scope="session")
def random_ones() -> Callable[..., Predictions]:
    return random_predictions
