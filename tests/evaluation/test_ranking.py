"""Ranking figures by weights are those of the frames, each repeated as often as it was drawn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from steelsight.evaluation import metrics
from steelsight.evaluation.ranking import RECALL_AT, Ranking, ratio


def scored(seed: int, n: int = 300, decimals: int = 1):
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.3
    return np.round(rng.normal(size=n) + 1.5 * positive, decimals), positive


@pytest.mark.parametrize("decimals", [0, 1, 6])
@pytest.mark.parametrize("seed", range(3))
def test_figures_of_all_frames_are_those_of_metrics(seed, decimals):
    scores, positive = scored(seed, decimals=decimals)
    found = Ranking(scores, positive).figures(np.ones((1, len(scores)), np.int64))
    expected = {
        "auroc": roc_auc_score(positive, scores),
        "average_precision": average_precision_score(positive, scores),
        "detection": metrics.detection(scores[positive], scores[~positive]),
        **{
            name: metrics.recall_at_false_alarms(scores, positive, share).recall
            for share, name in RECALL_AT.items()
        },
    }
    assert {name: values[0] for name, values in found.items()} == pytest.approx(expected, abs=1e-12)


def test_weights_are_repetitions():
    scores, positive = scored(4, n=80)
    weights = np.random.default_rng(0).integers(4, size=(20, 80))
    found = Ranking(scores, positive).figures(weights)
    for r, row in enumerate(weights):
        s, y = np.repeat(scores, row), np.repeat(positive, row)
        assert found["auroc"][r] == pytest.approx(roc_auc_score(y, s), abs=1e-12)
        assert found["average_precision"][r] == pytest.approx(metrics.average_precision(s, y))
        assert found["detection"][r] == pytest.approx(metrics.detection(s[y], s[~y]), abs=1e-12)
        for share, name in RECALL_AT.items():
            expected = metrics.recall_at_false_alarms(s, y, share).recall
            assert found[name][r] == pytest.approx(expected, abs=1e-12)


def test_a_draw_without_both_labels_measures_nothing():
    found = Ranking(np.array([1.0, 2.0]), np.array([True, False])).figures(
        np.array([[2, 0], [0, 2], [1, 1]])
    )
    for values in found.values():
        assert np.isnan(values[:2]).all()
        assert not np.isnan(values[2])


def test_the_curve_is_that_of_scikit_learn():
    scores, positive = scored(5)
    above, alarms = Ranking(scores, positive).curve()
    false, true, _ = roc_curve(positive, scores, drop_intermediate=False)
    np.testing.assert_allclose(above / positive.sum(), true)
    np.testing.assert_allclose(alarms / (~positive).sum(), false)


def test_ratio_of_nothing_is_nan():
    assert np.isnan(ratio(np.array([1.0]), np.array([0.0]))[0])
    assert ratio(np.ones((2, 3)), np.array([[2.0], [4.0]])).tolist() == [[0.5] * 3, [0.25] * 3]
