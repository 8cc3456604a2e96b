"""The rules against plain loops, scipy, and simulations whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, norm

from steelsight.errors import GateError, InputError
from steelsight.evaluation.intervals import bootstrap_groups
from steelsight.evaluation.metrics import dice_by_threshold
from steelsight.evaluation.predictions import BINS, MASK_LOGIT_EDGES, sigmoid
from steelsight.evaluation.rules import (
    MIN_AREAS_PX,
    Prices,
    best_masks,
    best_provable,
    cost_curve,
    fewest_for_recall,
    fewest_guaranteed,
    fit_temperature,
    frames_needed,
    least_cost,
    most_escapes,
    one_of_each_group,
    settled_temperature,
)


def ng_at(scores, clean):
    """Fewest allowed alarms at which a score is NG: the clean scores that reach it."""
    return len(clean) - np.searchsorted(np.sort(clean), scores, "left")


# Recall ------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=40),
    st.sampled_from([0.01, 0.29, 0.5, 0.9, 0.95, 1.0]),
)
def test_recall_is_reached_and_not_with_one_alarm_less(ng_at_f, recall):
    ng_at_f = np.array(ng_at_f)
    naive = [a for a in range(12) if (ng_at_f <= a).sum() >= recall * len(ng_at_f) - 1e-9]
    if not naive:
        with pytest.raises(InputError, match=r"but only \d+ of \d+ faulty frames are NG at any"):
            fewest_for_recall(ng_at_f, recall, 11)
    else:
        assert fewest_for_recall(ng_at_f, recall, 11) == naive[0]


def test_29_of_100_are_29_percent():
    assert fewest_for_recall(np.arange(100), 0.29, 200) == 28


def test_without_faulty_frames_there_is_no_recall():
    with pytest.raises(InputError, match="only 0 of 0 faulty frames"):
        fewest_for_recall(np.zeros(0, np.int64), 0.9, 5)


# Cost --------------------------------------------------------------------------------------------

SPREAD = Prices.of(400, 15, 0.02)


def test_prices_are_expected_costs():
    escape, overkill = SPREAD
    assert escape == pytest.approx(0.02 * 400)
    assert overkill == pytest.approx(0.98 * 15)


@given(st.integers(0, 1000), st.floats(0.1, 1000), st.floats(0.001, 0.999))
def test_the_least_cost_is_that_of_a_plain_search(seed, escape_cost, prevalence):
    rng = np.random.default_rng(seed)
    most = 15
    at, faulty = rng.integers(most + 2, size=40), np.arange(40) < rng.integers(1, 40)
    prices = Prices.of(escape_cost, 15, prevalence)
    costs = [
        prevalence * escape_cost * np.mean([a > allowed for a in at[faulty]])
        + (1 - prevalence) * 15 * np.mean([a <= allowed for a in at[~faulty]])
        for allowed in range(most + 1)
    ]
    best, cost = least_cost(at, faulty, prices, most)
    assert cost == pytest.approx(min(costs), abs=1e-9)
    assert costs[best] == pytest.approx(min(costs), abs=1e-9)
    assert all(later > min(costs) for later in costs[best + 1 :]), "of equal ones the safest"
    curve = cost_curve(at, faulty, np.arange(40), prices, most, resamples=20)
    assert curve.cost_p == pytest.approx(np.array(costs)[curve.allowed_p], abs=1e-9)
    assert (curve.best, curve.least_cost) == (best, cost)
    assert curve.best_from <= curve.best <= curve.best_to
    assert curve.to_json()["allowed"] == list(range(most + 1))


def test_costs_need_both_kinds_of_frames():
    for faulty in (np.ones(3, bool), np.zeros(3, bool)):
        with pytest.raises(InputError, match="expected faulty and clean frames to weigh"):
            least_cost(np.arange(3), faulty, SPREAD, 5)


def test_intervals_are_those_of_a_plain_bootstrap():
    rng = np.random.default_rng(4)
    at, faulty = rng.integers(12, size=50), np.arange(50) < 20
    groups = rng.integers(25, size=50)
    curve = cost_curve(at, faulty, groups, SPREAD, 10, resamples=200, seed=7)
    costs, dearer = [], []
    for weights_rn in bootstrap_groups(groups, 200, 7):
        for weights in weights_rn:
            drawn = np.repeat(np.arange(50), weights)
            bad, good = at[drawn][faulty[drawn]], at[drawn][~faulty[drawn]]
            costs.append(
                [8 * (bad > a).mean() + 14.7 * (good <= a).mean() for a in curve.allowed_p]
            )
            dearer.append(costs[-1] - costs[-1][curve.allowed_p.tolist().index(curve.best)])
    low, high = np.percentile(costs, (2.5, 97.5), axis=0)
    np.testing.assert_allclose(curve.low_p, low, atol=1e-5)
    np.testing.assert_allclose(curve.high_p, high, atol=1e-5)
    alike = curve.allowed_p[np.percentile(dearer, 2.5, axis=0) <= 1e-6]
    assert (curve.best_from, curve.best_to) == (alike.min(), alike.max())


def test_copies_of_a_frame_make_no_figure_surer():
    rng = np.random.default_rng(3)
    at, faulty, frames = rng.integers(30, size=60), np.arange(60) < 20, np.arange(60)

    def width(*arrays):
        curve = cost_curve(*arrays, SPREAD, 30, resamples=300)
        return (curve.high_p - curve.low_p).mean()

    copied = [np.repeat(a, 9) for a in (at, faulty)]
    alone = width(at, faulty, frames)
    assert width(*copied, np.repeat(frames, 9)) == pytest.approx(alone, rel=0.1)
    assert width(*copied, np.arange(540)) == pytest.approx(alone / 3, rel=0.15)


def analytic_optimum(separation, prices):
    """Scores N(0, 1) clean and N(separation, 1) faulty: where the prices of both sides are equal.

    ``phi(t - d) / phi(t) = exp(d t - d^2 / 2)`` is the ratio of prices.
    """
    return separation / 2 + math.log(prices.overkill / prices.escape) / separation


def optima_in_interval(draws):
    truth, inside, chosen = analytic_optimum(2, SPREAD), 0, []
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        clean = rng.normal(0, 1, 600)
        scores = np.concatenate([rng.normal(2, 1, 200), clean])
        faulty = np.arange(800) < 200
        curve = cost_curve(
            ng_at(scores, clean), faulty, np.arange(800), SPREAD, 600, resamples=200, seed=seed
        )
        limits = np.append(np.sort(clean)[::-1], -np.inf)
        inside += limits[curve.best_to] <= truth <= limits[curve.best_from]
        chosen.append(limits[curve.best])
    return inside / draws, np.mean(chosen) - truth


def test_the_analytic_optimum_of_two_gaussians_lies_within_the_interval():
    inside, bias = optima_in_interval(25)
    assert inside >= 0.82, "0.95 - 3 sigma of 25 draws"
    assert abs(bias) < 0.1


@pytest.mark.soak
def test_the_analytic_optimum_lies_within_the_interval_soak():
    inside, bias = optima_in_interval(1000)
    assert inside >= 0.93
    assert abs(bias) < 0.03


# Guarantee ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [0, 1, 25, 58, 59, 112, 148, 149, 300, 5000])
@pytest.mark.parametrize(("rate", "confidence"), [(0.02, 0.95), (0.05, 0.95), (0.1, 0.99)])
def test_escapes_that_still_prove_a_rate(frames, rate, confidence):
    passing = np.flatnonzero(binom.cdf(np.arange(frames + 1), frames, rate) <= 1 - confidence)
    expected = int(passing.max()) if len(passing) else None
    assert most_escapes(frames, rate, confidence) == expected


def test_the_figures_of_the_refusal():
    assert best_provable(25, 0.95) == pytest.approx(0.112928, abs=1e-6)
    assert best_provable(25, 0.95) == pytest.approx(1 - 0.05 ** (1 / 25))
    assert best_provable(0, 0.95) == 1
    assert frames_needed(0.02, 0.95) == 149
    assert (frames_needed(0.05, 0.95), frames_needed(0.5, 0.5)) == (59, 1)
    with pytest.raises(GateError) as refused:
        fewest_guaranteed({"frames of type 2": np.zeros(25, np.int64)}, 0.02, 0.95, 10)
    assert str(refused.value) == (
        "25 frames of type 2 cannot support 2 % at 95 %; the best provable is 11.3 %; you need 149"
        " frames"
    )


@given(st.floats(0.001, 0.6), st.floats(0.5, 0.999))
def test_the_frames_needed_are_the_fewest_that_prove(rate, confidence):
    needed = frames_needed(rate, confidence)
    assert most_escapes(needed, rate * (1 + 1e-9), confidence * (1 - 1e-9)) is not None
    assert most_escapes(needed - 1, rate * (1 - 1e-9), confidence) is None
    assert best_provable(needed, confidence) <= rate * (1 + 1e-6)


def test_every_type_with_too_few_frames_is_told():
    frames = {f"frames of type {c}": np.zeros(n, np.int64) for c, n in (("a", 99), ("b", 3))}
    with pytest.raises(GateError, match=r"^3 frames of type b .*; also too few: 99 frames of type"):
        fewest_guaranteed(frames, 0.02, 0.95, 10)


def test_frames_that_are_never_ng_may_make_a_promise_impossible():
    at = np.array([11] * 3 + [0] * 146)
    with pytest.raises(
        GateError, match=r"expected at most 0 escapes among 149 faulty frames.*3 are"
    ):
        fewest_guaranteed({"faulty frames": at}, 0.02, 0.95, 10)
    assert fewest_guaranteed({"faulty frames": at}, 0.2, 0.95, 10) == 0


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.1, 0.3]), st.sampled_from([0.8, 0.95]))
def test_the_setting_is_that_of_fixed_sequence_testing(seed, rate, confidence):
    rng = np.random.default_rng(seed)
    most = 40
    claims = {c: rng.integers(most, size=rng.integers(70, 200)) for c in "ab"[: seed % 2 + 1]}
    chosen = None
    for allowed in range(most, -1, -1):  # from the most cautious on
        p_values = [binom.cdf((at > allowed).sum(), len(at), rate) for at in claims.values()]
        if max(p_values) > 1 - confidence:
            break
        chosen = allowed
    assert fewest_guaranteed(claims, rate, confidence, most) == chosen


RATE, CONFIDENCE = 0.02, 0.95


def broken_promises(draws, frames, means=(2.0,), choose=None, clean_frames=400, seed=0):
    """Share of the draws in which the true escape rate of some type is above the promise."""
    choose = choose or (
        lambda ats: fewest_guaranteed(
            {str(k): at for k, at in enumerate(ats)}, RATE, CONFIDENCE, clean_frames
        )
    )
    rng = np.random.default_rng(seed)
    broken = 0
    for _ in range(draws):
        clean = rng.normal(0, 1, clean_frames)
        ats = [ng_at(rng.normal(mean, 1, frames), clean) for mean in means]
        # The threshold lies just above this clean score; the last setting calls everything NG.
        limit = np.append(np.sort(clean)[::-1], -np.inf)[choose(ats)]
        broken += any(norm.cdf(limit - mean) > RATE for mean in means)
    return broken / draws


def naive(ats):
    """The empirical quantile: as many escapes as the rate allows on these very frames."""
    return max(int(np.sort(at)[len(at) - 1 - int(RATE * len(at))]) for at in ats)


def most_by_chance(draws):
    return 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


@pytest.mark.parametrize("frames", [149, 236, 500])
def test_a_promise_is_broken_in_5_percent_of_draws_at_most(frames):
    """149 and 236 frames allow 0 and 1 escapes by the skin of their teeth: just below 5 %."""
    assert broken_promises(1000, frames) <= most_by_chance(1000)


def test_a_promise_for_three_types_at_once_needs_no_correction():
    for means in ((2.0, 2.0, 2.0), (1.5, 2.0, 3.0)):
        assert broken_promises(1000, 149, means) <= most_by_chance(1000)


@pytest.mark.parametrize("frames", [149, 500])
def test_the_empirical_quantile_breaks_it_far_more_often(frames):
    assert broken_promises(1000, frames, choose=naive) > 0.3


@pytest.mark.soak
@pytest.mark.parametrize("frames", [149, 236, 500, 1000])
@pytest.mark.parametrize("means", [(2.0,), (1.0,), (2.0, 2.0, 2.0, 2.0)])
@pytest.mark.parametrize("clean_frames", [100, 2000])
def test_promises_hold_soak(frames, means, clean_frames):
    share = broken_promises(20_000, frames, means, clean_frames=clean_frames, seed=1)
    assert share <= most_by_chance(20_000)


def test_one_frame_of_each_group_is_drawn_by_the_order_given():
    groups = np.array([5, 5, 5, 2, 2, 9])
    frames = np.array([True, False, True, True, True, False])
    order = np.array([3, 0, 1, 5, 4, 2])
    assert one_of_each_group(frames, groups, order).tolist() == [0, 0, 1, 0, 1, 0]
    assert not one_of_each_group(np.zeros(6, bool), groups, order).any()


# Kaggle's Dice -----------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_best_masks_are_those_of_a_plain_search(seed):
    rng = np.random.default_rng(seed)
    n = 9
    scores = rng.integers(4, size=n) / 4
    present = rng.random(n) < 0.6
    # Few bins hold pixels, so that thresholds between them are ties.
    inside, outside = np.zeros((2, n, BINS), np.int64)
    inside[:, 10:40:10] = rng.integers(0, 90, (n, 3)) * present[:, None]
    outside[:, 10:40:10] = rng.integers(0, 60, (n, 3)) * (rng.random(n) < 0.7)[:, None]
    looked_at = rng.random(n) < 0.8
    best = best_masks(scores, inside, outside, looked_at)

    def total(passes, edge, area):
        told = 0.0
        for i in range(n):
            pixels = (inside[i] + outside[i])[edge + 1 :].sum()
            marked = looked_at[i] and passes(scores[i]) and pixels >= area
            dice = dice_by_threshold(inside[i], outside[i])[edge]
            told += dice if marked else float(not inside[i].any())
        return told

    nothing = total(lambda _: False, 0, 0)
    found = max(
        total(lambda s, t=t: s >= t, edge, area)
        for t in np.unique(scores)
        for edge in range(9, 41, 10)  # one between any two bins with pixels
        for area in MIN_AREAS_PX[:4]
    )
    assert best.gain == pytest.approx(max(found - nothing, 0), abs=1e-9)
    if best.passes_from is None:
        assert best.gain == 0
    else:
        halfway = (best.passes_from + best.next_below) / 2
        for threshold in (best.passes_from, halfway):
            gained = total(lambda s, t=threshold: s >= t, best.edge, best.min_area_px) - nothing
            if threshold > best.next_below:
                assert gained == pytest.approx(best.gain, abs=1e-9)


def test_a_type_that_loses_by_being_outlined_is_not():
    inside, outside = np.zeros((2, 3, BINS), np.int64)
    inside[0, 5] = 10  # below all thresholds but the lowest
    outside[:, 45] = 500
    best = best_masks(np.array([0.9, 0.8, 0.7]), inside, outside, np.ones(3, bool))
    assert (best.gain, best.passes_from) == (0.038461538461538464 - 0, 0.9)
    best = best_masks(np.array([0.7, 0.8, 0.9]), inside, outside, np.ones(3, bool))
    assert (best.gain, best.passes_from) == (0, None)
    assert best_masks(np.zeros(3), inside, outside, np.zeros(3, bool)).passes_from is None


def test_of_equal_pixel_thresholds_the_one_next_to_half_is_taken():
    inside, outside = np.zeros((2, 1, BINS), np.int64)
    inside[0, 40], outside[0, 2] = 10, 7
    best = best_masks(np.array([0.9]), inside, outside, np.ones(1, bool))
    assert MASK_LOGIT_EDGES[best.edge] == 0
    assert (best.gain, best.min_area_px) == (1, 0)


# Temperature -------------------------------------------------------------------------------------


def negative_log_likelihood(temperature, z, faulty):
    return np.logaddexp(0, np.where(faulty, -1, 1) * z / temperature).mean()


@pytest.mark.parametrize("true", [0.3, 1.0, 2.5, 8.0])
def test_the_temperature_has_the_least_negative_log_likelihood(true):
    rng = np.random.default_rng(5)
    z = rng.normal(0, 6, 20_000).astype(np.float32)
    faulty = rng.random(len(z)) < sigmoid(z / true)
    fitted = fit_temperature(z, faulty)
    assert fitted == pytest.approx(true, rel=0.06)
    reference = minimize_scalar(
        negative_log_likelihood,
        bounds=(0.05, 20),
        args=(z.astype(np.float64), faulty),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fitted == pytest.approx(reference.x, rel=6e-5), "five digits"


@pytest.mark.parametrize(("faulty", "shift"), [(0, -4), (3, -3), (40, -1), (150, 2)])
def test_what_is_settled_is_as_faulty_as_it_says(faulty, shift):
    z = np.random.default_rng(faulty).normal(shift, 0.5, 200)
    fitted = settled_temperature(z, faulty)
    assert sigmoid(z / fitted).mean() == pytest.approx((faulty + 0.5) / 201, rel=1e-3)


def test_scores_that_cannot_say_it_have_the_nearest_temperature():
    assert settled_temperature(np.full(20, -1e-3), 0) == pytest.approx(0.05)
    assert settled_temperature(np.full(20, -1e3), 9) == pytest.approx(20)


@pytest.mark.parametrize(
    ("z", "faulty"),
    [
        ([-1, 1], [False, True]),  # any more certainty is better
        ([1, 2], [False, False]),
        ([-3, 3], [True, False]),  # the wrong way round: none is best
        ([0, 0], [True, False]),
        ([], []),
    ],
)
def test_labels_without_overlap_have_no_temperature(z, faulty):
    with pytest.raises(InputError, match="whose scores overlap to fit a temperature to"):
        fit_temperature(np.array(z, np.float32), np.array(faulty, bool))
