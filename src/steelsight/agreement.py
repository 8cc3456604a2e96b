"""How far people and model, and two people, say the same, and how sure that is.

Agreement is counted over frames that both judged; UNKNOWN is a judgement like the others. Cohen's
kappa (Cohen 1960) tells what is left of it beyond chance; its interval follows from the
large-sample variance of Fleiss, Cohen and Everitt (1969).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from steelsight.defects import Verdict
from steelsight.evaluation.intervals import binomial_interval

NORMAL_95 = 1.959963984540054
BOOTSTRAP, SEED = 2000, 0


class Judged(NamedTuple):
    """What a person said about a frame; the last that stands.

    Attributes:
        frame: which one: its sha256.
        who: the person.
        verdict: theirs.
        machine: the model's.
        labels: regions as RLE by type, if they drew any.
        size_wh: of the frame; ``None`` if it could not be decoded.
    """

    frame: str
    who: str
    verdict: Verdict
    machine: Verdict
    labels: Mapping[str, str] | None
    size_wh: tuple[int, int] | None


def agreement_of(pairs: Sequence[tuple[Verdict, Verdict]]) -> dict[str, Any]:
    """Figures of two judges.

    Args:
        pairs: what the first and the second said of each frame.

    Returns:
        ``n``, ``agree``, ``share`` with its exact 95 % ``interval``, ``kappa`` with
        ``kappa_interval`` (``None`` where chance alone explains all), and the ``table`` of rows
        ``[first, second, frames]``.
    """
    n = len(pairs)
    agree = sum(a is b for a, b in pairs)
    counts = Counter(pairs)
    kappa, interval = kappa_of([[counts[a, b] for b in Verdict] for a in Verdict])
    return {
        "n": n,
        "agree": agree,
        "share": agree / n if n else None,
        "interval": binomial_interval(agree, n) if n else None,
        "kappa": kappa,
        "kappa_interval": interval,
        "table": [[a.value, b.value, count] for (a, b), count in sorted(counts.items())],
    }


def kappa_of(table_kk: ArrayLike) -> tuple[float | None, tuple[float, float] | None]:
    """Cohen's kappa and its 95 % interval from a table of counts, first judge by second judge.

    ``None`` both where it is not defined: no frames, or both always said the same one thing. Where
    they never differ the variance is 0, though a few frames prove little: there the interval is
    that of the share (exact), brought to kappa's scale.
    """
    counts = np.asarray(table_kk, np.float64)
    n = float(counts.sum())
    if not n:
        return None, None
    p = counts / n
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    observed, expected = float(np.trace(p)), float(rows @ columns)
    if expected >= 1:
        return None, None
    kappa = (observed - expected) / (1 - expected)
    if observed >= 1:
        low, _ = binomial_interval(round(n), round(n))
        return kappa, (max(-1.0, (low - expected) / (1 - expected)), 1.0)
    # Fleiss, Cohen and Everitt 1969, equation 14, unweighted.
    on = np.diag(p) * (1 - (rows + columns) * (1 - kappa)) ** 2
    off = p * (1 - kappa) ** 2 * (columns[:, None] + rows[None, :]) ** 2
    np.fill_diagonal(off, 0)
    spread = on.sum() + off.sum() - (kappa - expected * (1 - kappa)) ** 2
    error = math.sqrt(max(0.0, float(spread)) / n) / (1 - expected)
    low, high = kappa - NORMAL_95 * error, kappa + NORMAL_95 * error
    return kappa, (max(-1.0, low), min(1.0, high))


def report(judged: Sequence[Judged]) -> dict[str, Any]:
    """Agreement of people with the model, of each person with it, and of each pair of people.

    Args:
        judged: in the order in which it was said. Beside the model a frame counts once, by the last
            word.
    """
    by_person: dict[str, dict[str, Judged]] = {}
    last: dict[str, Judged] = {}
    for one in judged:
        by_person.setdefault(one.who, {})[one.frame] = one
        last[one.frame] = one
    return {
        "model": agreement_of([(one.machine, one.verdict) for one in last.values()]),
        "by_reviewer": [
            {"who": who, **agreement_of([(one.machine, one.verdict) for one in said.values()])}
            for who, said in sorted(by_person.items())
        ],
        "pairs": [
            {"a": a, "b": b, **_pair(by_person[a], by_person[b])}
            for a, b in combinations(sorted(by_person), 2)
            if by_person[a].keys() & by_person[b].keys()
        ],
    }


def _pair(first: Mapping[str, Judged], second: Mapping[str, Judged]) -> dict[str, Any]:
    both = [(first[frame], second[frame]) for frame in sorted(first.keys() & second.keys())]
    dices = [_dice(a, b) for a, b in both if a.labels is not None and b.labels is not None]
    return {
        **agreement_of([(a.verdict, b.verdict) for a, b in both]),
        "dice": {
            "n": len(dices),
            "mean": float(np.mean(dices)) if dices else None,
            "interval": _mean_interval(dices),
        },
    }


def _dice(a: Judged, b: Judged) -> float:
    """Dice over all types of a frame; two people who drew nothing agree."""
    from steelsight.masks import decode_rle

    assert a.labels is not None  # noqa: S101 - asked by the caller
    assert b.labels is not None  # noqa: S101
    if a.size_wh is None:
        return math.nan
    common = total = 0
    for class_id in {*a.labels, *b.labels}:
        one, other = (
            decode_rle(said.get(class_id, ""), a.size_wh) for said in (a.labels, b.labels)
        )
        common += int((one & other).sum())
        total += int(one.sum()) + int(other.sum())
    return 2 * common / total if total else 1.0


def _mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Percentile bootstrap of a mean; ``None`` with fewer than two values."""
    if len(values) < 2:
        return None
    rng = np.random.default_rng(SEED)
    means = rng.choice(np.asarray(values), (BOOTSTRAP, len(values))).mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)
