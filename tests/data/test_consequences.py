"""The rates and shares in the sentences; the sentences themselves are in ``test_explore.py``."""

import pytest

from steelsight.data.consequences import (
    frames_in_test,
    frames_to_prove,
    share_text,
    smallest_provable_rate,
)


def test_rates_against_the_binomial_distribution():
    """None missed among n has probability (1 - rate)^n: 5 % at the bound."""
    for n in (1, 4, 49, 148, 149, 1000):
        assert (1 - smallest_provable_rate(n)) ** n == pytest.approx(0.05)
    assert smallest_provable_rate(49) == pytest.approx(0.0593, abs=5e-5)
    assert smallest_provable_rate(0) == 1.0
    assert frames_to_prove(0.02) == 149
    assert smallest_provable_rate(149) < 0.02 < smallest_provable_rate(148)
    assert [frames_in_test(n) for n in (247, 5, 4, 0)] == [49, 1, 0, 0]


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1e-6, "under 0.01 %"), (0.0031, "0.31 %"), (0.0593, "5.9 %"), (0.7259, "72.6 %"),
     (0.9999, "over 99.9 %"), (1, "100 %")],
)  # fmt: skip
def test_shares_as_text(share, text):
    assert share_text(share) == text
