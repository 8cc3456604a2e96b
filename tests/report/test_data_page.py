"""What both pages about data sets say the same way."""

import pytest

from steelsight.data.duplicates import Turn
from steelsight.data.labels import LabelClass
from steelsight.report.data_page import TURN_WORDS, is_wide, label_classes
from steelsight.report.plots import PALETTE


def test_turn_words_name_every_turn():
    assert TURN_WORDS.keys() == set(Turn)
    assert len(set(TURN_WORDS.values())) == len(Turn)


def test_numbers_are_not_shown_bare_and_colours_come_again():
    found = label_classes(
        (LabelClass("1", "1"), *(LabelClass(f"d{i}", f"dent {i}") for i in range(len(PALETTE))))
    )
    assert [c.name for c in found[:2]] == ["Type 1", "dent 0"]
    assert found[0].colour == found[-1].colour == PALETTE[0]


@pytest.mark.parametrize(("size_wh", "wide"), [((1600, 256), True), ((200, 200), False)])
def test_strip_frames_are_wide(size_wh, wide):
    assert is_wide(size_wh) is wide
