"""Agreement against hand-computed figures, brute force and simulation."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from steelsight.agreement import Judged, agreement_of, kappa_of, report
from steelsight.defects import Verdict
from steelsight.masks import encode_rle

OK, NG, UNKNOWN = Verdict.OK, Verdict.NG, Verdict.UNKNOWN


def test_kappa_and_its_error_are_those_of_the_literature():
    """Fleiss, Cohen and Everitt 1969, table 1: kappa 0.429, standard error 0.054 (n = 200)."""
    table = np.array([[106, 10, 4], [22, 28, 10], [2, 12, 6]], float)
    kappa, (low, high) = kappa_of(table)
    assert kappa == pytest.approx(0.429, abs=5e-4)
    assert (high - low) / 2 / 1.96 == pytest.approx(0.054, abs=2e-3)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_that_of_another_library(seed):
    rng = np.random.default_rng(seed)
    first = rng.choice([OK, NG, UNKNOWN], 60, p=[0.6, 0.3, 0.1])
    second = np.where(rng.random(60) < 0.7, first, rng.choice([OK, NG, UNKNOWN], 60))
    pairs = [(Verdict(a), Verdict(b)) for a, b in zip(first, second, strict=True)]
    found = agreement_of(pairs)
    expected = cohen_kappa_score([a.value for a, _ in pairs], [b.value for _, b in pairs])
    assert found["kappa"] == pytest.approx(expected)
    assert found["agree"] == sum(a == b for a, b in pairs)
    assert sum(n for *_, n in found["table"]) == 60
    assert found["interval"][0] < found["share"] < found["interval"][1]


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    p = np.array([[0.5, 0.1], [0.1, 0.3]])
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    truth = (np.trace(p) - rows @ columns) / (1 - rows @ columns)
    tables = rng.multinomial(150, p.ravel(), 1500).reshape(-1, 2, 2).astype(float)
    held = sum(low <= truth <= high for _, (low, high) in map(kappa_of, tables))
    assert 0.93 < held / 1500 < 0.97


def test_nothing_to_compare_is_said():
    assert agreement_of([])["share"] is None
    assert agreement_of([])["kappa"] is None
    same = agreement_of([(OK, OK)] * 5)
    assert (same["share"], same["kappa"]) == (1, None)
    assert agreement_of([])["interval"] is None


def test_a_few_frames_without_difference_prove_little():
    found = agreement_of([(OK, OK), (NG, NG)] * 2)
    assert found["kappa"] == 1
    low, high = found["kappa_interval"]
    assert (low < 0.1, high) == (True, 1)


def rle(*columns):
    mask_hw = np.zeros((4, 6), bool)
    mask_hw[:, list(columns)] = True
    return encode_rle(mask_hw)


def test_people_are_compared_frame_by_frame():
    size = (6, 4)
    judged = [
        Judged("a", "Ann", NG, NG, {"1": rle(0, 1)}, size),
        Judged("b", "Ann", OK, NG, None, size),
        Judged("c", "Ann", OK, OK, {}, size),
        Judged("a", "Bob", NG, NG, {"1": rle(1, 2), "2": rle(5)}, size),
        Judged("b", "Bob", NG, NG, {"1": rle(3)}, size),
        Judged("c", "Bob", OK, OK, {}, size),
        Judged("d", "Cem", UNKNOWN, NG, None, None),
    ]
    found = report(judged)
    assert (found["model"]["n"], found["model"]["agree"]) == (4, 3)
    assert [(one["who"], one["n"], one["agree"]) for one in found["by_reviewer"]] == [
        ("Ann", 3, 2),
        ("Bob", 3, 3),
        ("Cem", 1, 0),
    ]
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"], pair["n"], pair["agree"]) == ("Ann", "Bob", 3, 2)
    # Frame a: 4 pixels in common of 8 and 8 + 4; frame c: nobody drew anything.
    assert pair["dice"]["n"] == 2
    assert pair["dice"]["mean"] == pytest.approx((2 * 4 / 20 + 1) / 2)
    assert pair["dice"]["interval"][0] <= pair["dice"]["mean"] <= pair["dice"]["interval"][1]
