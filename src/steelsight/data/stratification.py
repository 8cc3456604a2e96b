"""Stratification: units of frames into parts, each type in proportion; numbers only.

Iterative stratification (K. Sechidis, G. Tsoumakas, I. Vlahavas, "On the stratification of
multi-label data", ECML PKDD 2011) with pairs of types as further labels (P. Szymanski, T.
Kajdanowicz, "A network perspective on stratification of multi-label data", LIDTA 2017). A unit is a
group of frames that stay together, counted by its frames of each label. Groups make the greedy
choice coarse, because one assignment decides about many labels; so single units are moved and
swapped afterwards, as long as the sum over parts and labels of (count - wanted)^2 / wanted falls.

Axes: ``f`` frames, ``t`` types, ``l`` labels (types, clean, pairs of types, the frame itself),
``u`` units, ``k`` kinds of units (equal counts), ``p`` and ``q`` parts.
"""

import numpy as np
from numpy.typing import NDArray

RULE = (
    "A group is never divided. Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011)"
    " with groups as units, over types, clean frames and pairs of types (Szymanski and Kajdanowicz"
    " 2017): the rarest first, large groups before small ones. Then groups are moved and swapped"
    " while that brings the counts closer to the wanted ones (chi-square)."
)

_MAX_PAIRS = 64
"""Pairs of types that are stratified, the most frequent ones."""
_MAX_CANDIDATES = 1 << 22
"""Moves or swaps that are weighed in one step: 32 MB."""
_MAX_STEPS = 200
"""Moves and swaps in all; 20 are usual."""
_LEAST_GAIN = 1e-8
"""Of a move or swap, in chi-square; well above rounding errors."""

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]


def stratify(types_ft: _Ints, unit_f: _Ints, shares_p: _Floats, rank_u: _Ints) -> _Ints:
    """Puts every unit into a part, so that each part holds its share of each type.

    Ties are broken by ``rank_u`` alone: equal input gives equal output on every machine.

    Args:
        types_ft: 1 where a type is on a frame, else 0.
        unit_f: the unit of each frame, from 0 without gaps.
        shares_p: wanted shares of the frames, which add up to 1; no more parts than units.
        rank_u: a permutation of the units.

    Returns:
        The part of each unit; no part is empty.
    """
    counts_ul = _label_counts(types_ft, unit_f, len(shares_p))
    part_of_u = _assigned(counts_ul, shares_p, rank_u)
    return _improved(part_of_u, counts_ul, shares_p, rank_u)


def _label_counts(types_ft: _Ints, unit_f: _Ints, parts: int) -> _Ints:
    """Frames of each label in each unit.

    Labels are the types, clean, the pairs of types that are frequent enough to be in every part,
    and last the frame itself.
    """
    clean_f = ~types_ft.any(axis=1)
    together = np.triu(types_ft.T.astype(np.float64) @ types_ft, k=1)  # exact, and faster than int
    first, second = np.nonzero(together >= parts)
    most = np.argsort(-together[first, second], kind="stable")[:_MAX_PAIRS]
    pairs_fl = types_ft[:, first[most]] * types_ft[:, second[most]]
    labels_fl = np.column_stack((types_ft, clean_f, pairs_fl, np.ones(len(types_ft), np.int64)))
    counts_ul = np.zeros((int(unit_f.max()) + 1, labels_fl.shape[1]), np.int64)
    np.add.at(counts_ul, unit_f, labels_fl)
    return counts_ul


def _assigned(counts_ul: _Ints, shares_p: _Floats, rank_u: _Ints) -> _Ints:
    """Iterative stratification.

    The label with the fewest frames left is next, so that rare ones are placed while there is
    choice; its units go, those with most of its frames first, to the part that lacks most of it,
    which is also where the squared deviation grows least; ties to the part that lacks most frames.
    """
    part_of_u = np.full(len(counts_ul), -1)
    lacking_pl = np.outer(shares_p, counts_ul.sum(axis=0))
    while (part_of_u < 0).any():
        left_l = counts_ul[part_of_u < 0, :-1].sum(axis=0)
        label = int(np.where(left_l > 0, left_l, np.iinfo(np.int64).max).argmin())
        units = np.flatnonzero((part_of_u < 0) & (counts_ul[:, label] > 0))
        order = np.lexsort((rank_u[units], -counts_ul[units, -1], -counts_ul[units, label]))
        # One after the other: each choice depends on all before it.
        for unit in units[order].tolist():
            best = _largest(lacking_pl[:, label], np.arange(len(shares_p)))
            best = _largest(lacking_pl[:, -1], best)
            part = best[rank_u[unit] % len(best)]
            part_of_u[unit] = part
            lacking_pl[part] -= counts_ul[unit]
    return part_of_u


def _largest(values_p: _Floats, among: _Ints) -> _Ints:
    """The parts with the largest value; rounded, since equal sums may differ in the last bit."""
    values = np.round(values_p[among], 6)
    largest: _Ints = among[values == values.max()]
    return largest


def _improved(part_of_u: _Ints, counts_ul: _Ints, shares_p: _Floats, rank_u: _Ints) -> _Ints:
    """Steepest descent: moves or swaps units while sum (count - wanted)^2 / wanted falls.

    Units with equal counts are interchangeable, so kinds of units are moved: a data set without
    large groups has a few dozen of them, whatever its number of frames. No part stays empty.
    """
    kinds_kl, kind_of_u = np.unique(counts_ul, axis=0, return_inverse=True)
    kind_of_u = kind_of_u.reshape(-1)
    parts, kinds = len(shares_p), len(kinds_kl)
    part_of_u = part_of_u.copy()
    units_pk = np.zeros((parts, kinds), np.int64)
    np.add.at(units_pk, (part_of_u, kind_of_u), 1)

    def move(kind: int, source: int, target: int) -> None:
        alike = np.flatnonzero((part_of_u == source) & (kind_of_u == kind))
        part_of_u[alike[rank_u[alike].argmin()]] = target
        units_pk[source, kind] -= 1
        units_pk[target, kind] += 1

    for empty in np.flatnonzero(units_pk.sum(axis=1) == 0).tolist():
        source = int(units_pk.sum(axis=1).argmax())
        there = np.flatnonzero(units_pk[source])
        move(int(there[kinds_kl[there, -1].argmin()]), source, empty)

    if parts * parts * kinds > _MAX_CANDIDATES:
        return part_of_u
    total_l = counts_ul.sum(axis=0)
    weight_l = 1 / np.maximum(total_l, 1)
    alike_kk = (kinds_kl * weight_l) @ kinds_kl.T
    both_pp = 1 / shares_p[:, None] + 1 / shares_p
    for _ in range(_MAX_STEPS):
        excess_pl = units_pk @ kinds_kl - np.outer(shares_p, total_l)
        push_pk = 2 * (excess_pl * weight_l) @ kinds_kl.T / shares_p[:, None]
        own_pk = np.diagonal(alike_kk) / shares_p[:, None]
        # What is added to the sum when a unit of a kind (k) goes from one part (p) to another (q).
        move_pqk = (own_pk - push_pk)[:, None] + (own_pk + push_pk)[None]
        move_pqk[np.arange(parts), np.arange(parts)] = np.inf
        move_pqk[np.broadcast_to((units_pk == 0)[:, None], move_pqk.shape)] = np.inf
        candidates = [move_pqk]
        if parts * parts * kinds * kinds <= _MAX_CANDIDATES:
            # Kind k goes from p to q, kind j from q to p.
            swap_pqkj = (
                move_pqk[..., :, None]
                + move_pqk.swapaxes(0, 1)[..., None, :]
                - 2 * both_pp[..., None, None] * alike_kk
            )
            candidates.append(swap_pqkj)
        move_pqk[units_pk.sum(axis=1) == 1] = np.inf
        change, (source, target, kind, *other) = min(map(_smallest, candidates))
        if change > -_LEAST_GAIN:
            break
        move(kind, source, target)
        if other:
            move(other[0], target, source)
    return part_of_u


def _smallest(values: _Floats) -> tuple[float, tuple[int, ...]]:
    """The smallest value and the first place of it; rounded as in :func:`_largest`."""
    rounded = np.round(values, 9)
    place = int(rounded.argmin())
    return float(rounded.flat[place]), tuple(map(int, np.unravel_index(place, values.shape)))
