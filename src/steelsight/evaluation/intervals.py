"""How sure a figure is: exact binomial bounds, and the bootstrap over groups of frames.

Binomial bounds hold for frames that are independent of each other. The bootstrap draws groups
(frames of the same steel, of one coil), so that frames which resemble each other do not pretend to
be many.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_BLOCK_BYTES = 1 << 23
_BISECTIONS = 60
"""Halvings of 0..1: past the resolution of float64 near 1."""


def binomial_cdf(successes: int, trials: int, p: float) -> float:
    """Probability of at most so many successes, summed exactly but for rounding.

    Args:
        successes: -1 or more; below 0 the probability is 0.
        trials: 0 or more.
        p: of one success, 0..1.
    """
    if successes >= trials or p <= 0:
        return float(successes >= 0)
    if successes < 0 or p >= 1:
        return 0.0
    # The smaller tail is summed: 1 - (1 - x) would lose its digits.
    if successes > p * trials:
        above = np.arange(successes + 1, trials + 1)
        return 1 - _mass(above, trials, p)
    return _mass(np.arange(successes + 1), trials, p)


def _mass(counts: Ints, trials: int, p: float) -> float:
    logs = _log_choose(trials)[counts] + counts * math.log(p) + (trials - counts) * math.log1p(-p)
    return min(math.fsum(np.exp(logs).tolist()), 1.0)


@lru_cache(maxsize=32)
def _log_choose(trials: int) -> Floats:
    log_factorial = np.array([math.lgamma(n + 1) for n in range(trials + 1)])
    chosen: Floats = log_factorial[-1] - log_factorial - log_factorial[::-1]
    return chosen


def binomial_upper(successes: int, trials: int, confidence: float) -> float:
    """Exact one-sided upper bound of a proportion (Clopper and Pearson 1934).

    Args:
        successes: 0..trials.
        trials: 0 or more; of none nothing is known, and the bound is 1.
        confidence: such as 0.95.

    Returns:
        The proportion at which so few successes have the probability ``1 - confidence``.
    """
    if successes >= trials:
        return 1.0
    if successes == 0:
        return -math.expm1(math.log1p(-confidence) / trials)
    low, high = successes / trials, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if binomial_cdf(successes, trials, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def binomial_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a proportion (Clopper and Pearson 1934).

    Args:
        successes: 0..trials.
        trials: 0 or more; of none the interval is 0..1.
        confidence: at least so often it holds the true proportion.

    Returns:
        Lower and upper end.
    """
    one_sided = (1 + confidence) / 2
    high = binomial_upper(successes, trials, one_sided)
    return 1 - binomial_upper(trials - successes, trials, one_sided), high


def bootstrap_groups(groups_n: ArrayLike, resamples: int, seed: int) -> Iterator[Ints]:
    """How often each frame is drawn when whole groups are drawn with replacement.

    Args:
        groups_n: the group of each frame, ``(N,)``; any integers.
        resamples: how many draws in all.
        seed: the same seed gives the same draws.

    Yields:
        Blocks of draws in bounded memory, ``(R, N)``.
    """
    names, group_n = np.unique(np.asarray(groups_n), return_inverse=True)
    groups = len(names)
    if not groups:
        return
    rng = np.random.default_rng(seed)
    most = max(_BLOCK_BYTES // (8 * len(group_n)), 1)
    for first in range(0, resamples, most):
        draws = min(most, resamples - first)
        drawn = rng.integers(groups, size=(draws, groups))
        drawn += groups * np.arange(draws)[:, None]
        counts_rg = np.bincount(drawn.ravel(), minlength=draws * groups).reshape(draws, groups)
        yield counts_rg[:, group_n]


def percentile_interval(figures: ArrayLike) -> tuple[float, float]:
    """The middle 95 % of bootstrapped figures, NaN left out.

    Returns:
        Lower and upper end; NaN both if no figure is known.
    """
    values = np.asarray(figures, np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
