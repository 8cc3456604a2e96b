"""Control charts and drift: no more false alarms than claimed, and real changes are found."""

import numpy as np
import pytest

from steelsight.drift import (
    ALPHA,
    BASELINE_GROUPS,
    GROUP,
    TAIL,
    WINDOW,
    drift_of,
    effective_count,
    limits_of,
    quantiles_of,
    signals_of,
)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.6])
def test_a_stable_line_leaves_the_limits_as_seldom_as_claimed(share):
    """Over many lines, each with a baseline of its own."""
    rng = np.random.default_rng(int(share * 100))
    beyond = groups = 0
    for _ in range(300):
        baseline = int(rng.binomial(GROUP, share, BASELINE_GROUPS).sum())
        limits = limits_of(baseline, GROUP * BASELINE_GROUPS)
        counts = rng.binomial(GROUP, share, 50)
        beyond += int(((counts > limits.high) | (counts < limits.low)).sum())
        groups += 50
    assert beyond / groups < 2 * TAIL * 1.3


def test_limits_are_those_of_an_exact_sum():
    """A uniform prior of two outcomes, by hand: group of 2 after 1 NG of 2, a = b = 1.5."""
    limits = limits_of(1, 2, group=2)
    # P(0) = P(2) = 1.5*2.5/(3*4) = 0.3125, P(1) = 0.375.
    assert (limits.low, limits.median, limits.high) == (0, 1, 2)
    assert limits.centre == 0.5


@pytest.mark.parametrize(("share", "groups", "power"), [(0.10, 20, 0.7), (0.15, 10, 0.9)])
def test_a_higher_rate_is_found(share, groups, power):
    """5 % doubles: found within 1,000 frames in 7 of 10 lines; it triples: 500 frames, 9 of 10."""
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(200):
        baseline = int(rng.binomial(GROUP, 0.05, BASELINE_GROUPS).sum())
        limits = limits_of(baseline, GROUP * BASELINE_GROUPS)
        found += bool(signals_of(rng.binomial(GROUP, share, groups).tolist(), limits))
    assert found / 200 > power


def test_signals_say_what_they_are():
    limits = limits_of(50, 1000)  # 5 %: 2 or 3 of 50
    assert [s.rule for s in signals_of([2, 30, 2], limits)] == ["above"]
    assert "30 of 50 frames NG" in signals_of([2, 30, 2], limits)[0].words
    many = limits_of(500, 1000)
    assert [s.rule for s in signals_of([25, 0, 25], many)] == ["below"]
    rising = signals_of([many.median + 1] * 9, many)
    assert [(s.group, s.rule) for s in rising] == [(8, "run")]
    assert signals_of([many.median] * 30, many) == []
    assert signals_of([many.median + 1, many.median - 1] * 15, many) == []


def test_no_drift_gives_no_more_alarms_than_claimed():
    """1,000 windows of the reference's own distribution, and of an autocorrelated one."""
    rng = np.random.default_rng(5)
    reference = rng.normal(100, 15, 748)
    kept = quantiles_of(reference)
    alarms = sum(
        drift_of("brightness", rng.normal(100, 15, WINDOW), kept, 748, 3).alarm for _ in range(1000)
    )
    assert alarms <= 3  # of 1,000 at 1 in 3,000 each
    alarms = 0
    for _ in range(500):
        noise = rng.normal(0, 1, WINDOW + 100)
        alike = np.zeros(WINDOW + 100)
        for i in range(1, len(alike)):
            alike[i] = 0.8 * alike[i - 1] + noise[i] * 0.6
        alarms += drift_of("brightness", 100 + 15 * alike[100:], kept, 748, 3).alarm
    assert alarms <= 5
    assert 3 * ALPHA < 0.01


def test_the_p_value_is_uniform_without_drift():
    rng = np.random.default_rng(6)
    kept = quantiles_of(rng.normal(0, 1, 100_000))
    p = [drift_of("brightness", rng.normal(0, 1, WINDOW), kept, 100_000, 1).p for _ in range(1000)]
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p) < level) == pytest.approx(level, abs=0.05)


def test_a_darker_lamp_is_found_within_a_window():
    rng = np.random.default_rng(7)
    kept = quantiles_of(rng.normal(100, 15, 748))
    light = np.concatenate([rng.normal(100, 15, 300), rng.normal(70, 15, 300)])
    alarms = [drift_of("brightness", light[:n], kept, 748, 3).alarm for n in range(250, 601, 10)]
    first = 250 + 10 * alarms.index(True)
    assert 300 < first <= 380
    assert all(alarms[-10:])
    told = drift_of("brightness", light, kept, 748, 3).words
    assert "Median brightness of the last 200 frames is 7" in told
    assert "lamp" in told


def test_small_changes_are_not_worth_an_alarm():
    rng = np.random.default_rng(8)
    kept = quantiles_of(rng.normal(100, 15, 100_000))
    found = drift_of("brightness", rng.normal(101.5, 15, WINDOW), kept, 100_000, 3)
    assert not found.alarm


def test_too_few_frames_are_said_to_be_too_few():
    found = drift_of("score", [0.1] * 20 + [np.nan] * 500, [0.0, 1.0], 100, 3)
    assert (found.distance, found.alarm) == (None, False)
    assert "20 of the " in found.words


def test_a_camera_that_sends_one_picture_is_no_proof_of_sameness():
    assert effective_count(np.full(200, 7.0)) == 1
    found = drift_of("brightness", [7.0] * 200, quantiles_of(np.arange(100.0)), 748, 3)
    assert found.distance > 0.9


def test_the_distance_is_that_of_brute_force():
    rng = np.random.default_rng(9)
    reference = np.sort(rng.normal(size=201))
    window = rng.normal(0.3, 1, 120).round(1)  # with ties
    found = drift_of("brightness", window, reference.tolist(), 201, 1).distance
    grid = np.linspace(-5, 5, 200_001)
    ours = (window[None] <= grid[::50, None]).mean(axis=1)
    levels = np.interp(grid[::50], reference, np.linspace(0, 1, 201), left=0, right=1)
    assert found == pytest.approx(np.abs(ours - levels).max(), abs=5e-3)
