import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from steelsight.evaluation.intervals import (
    binomial_cdf,
    binomial_interval,
    binomial_upper,
    bootstrap_groups,
    percentile_interval,
)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 3000), st.integers(-1, 3000), st.floats(0, 1))
def test_cdf_is_scipys(trials, successes, p):
    expected = stats.binom.cdf(successes, trials, p) if trials else float(successes >= 0)
    assert binomial_cdf(successes, trials, p) == pytest.approx(expected, abs=1e-10)


def test_small_tails_keep_their_digits():
    for successes, trials, p in ((3, 2000, 0.02), (0, 500, 0.1), (40, 12568, 0.01)):
        expected = stats.binom.cdf(successes, trials, p)
        assert expected < 1e-8
        assert binomial_cdf(successes, trials, p) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 25), (1, 43), (9, 112), (43, 43), (60, 5902)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_bounds_are_those_of_clopper_and_pearson(successes, trials, confidence):
    exact = stats.binomtest(successes, trials).proportion_ci(confidence, method="exact")
    assert binomial_interval(successes, trials, confidence) == pytest.approx(
        (exact.low, exact.high), abs=1e-12
    )
    one_sided = stats.binomtest(successes, trials, alternative="less").proportion_ci(confidence)
    assert binomial_upper(successes, trials, confidence) == pytest.approx(one_sided.high, abs=1e-12)


def test_nothing_is_known_of_no_trial():
    assert binomial_interval(0, 0) == (0, 1)
    assert binomial_upper(0, 0, 0.95) == 1


def test_the_interval_holds_the_truth_as_often_as_it_says():
    for p in (0.01, 0.1, 0.5):
        probabilities = stats.binom.pmf(np.arange(41), 40, p)
        intervals = [binomial_interval(k, 40) for k in range(41)]
        holds = [low <= p <= high for low, high in intervals]
        assert probabilities @ holds >= 0.95


def test_groups_are_drawn_as_a_whole():
    groups = np.array([7, 7, 3, 5, 5, 5])
    drawn = np.concatenate(list(bootstrap_groups(groups, 4000, seed=1)))
    assert drawn.shape == (4000, 6)
    for members in ([0, 1], [3, 4, 5]):
        assert (drawn[:, members] == drawn[:, members[:1]]).all()
    assert (drawn[:, [0, 2, 3]].sum(axis=1) == 3).all(), "as many draws as there are groups"
    counts = np.bincount(drawn[:, 2], minlength=4)[:4] / 4000
    assert counts == pytest.approx(stats.binom.pmf(range(4), 3, 1 / 3), abs=0.03)


def test_blocks_do_not_depend_on_their_size(monkeypatch):
    groups = np.arange(50)
    again = np.concatenate(list(bootstrap_groups(groups, 30, seed=2)))
    assert np.array_equal(np.concatenate(list(bootstrap_groups(groups, 30, seed=2))), again)
    monkeypatch.setattr("steelsight.evaluation.intervals._BLOCK_BYTES", 8 * 50 * 7)
    blocks = list(bootstrap_groups(groups, 30, seed=2))
    assert [len(block) for block in blocks] == [7, 7, 7, 7, 2]
    assert np.array_equal(np.concatenate(blocks), again)
    assert not list(bootstrap_groups([], 30, seed=2))


def test_percentiles_leave_nan_out():
    figures = [*range(1001), np.nan]
    assert percentile_interval(figures) == (25, 975)
    assert np.isnan(percentile_interval([np.nan])).all()
    assert np.isnan(percentile_interval([])).all()
