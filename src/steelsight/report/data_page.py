"""What the pages about data sets share: wide frames, words for turns, names and colours."""

from collections.abc import Mapping, Sequence

from steelsight.data.duplicates import Turn
from steelsight.data.labels import LabelClass
from steelsight.defects import DefectClass
from steelsight.report.plots import PALETTE

TURN_WORDS: Mapping[Turn, str] = {
    Turn.NONE: "not turned",
    Turn.FLIP_LEFT_RIGHT: "flipped left to right",
    Turn.FLIP_UP_DOWN: "flipped upside down",
    Turn.ROTATE_180: "rotated by 180°",
    Turn.ROTATE_90: "rotated by 90° counter-clockwise",
    Turn.ROTATE_270: "rotated by 90° clockwise",
    Turn.TRANSPOSE: "flipped over the falling diagonal",
    Turn.ANTI_TRANSPOSE: "flipped over the rising diagonal",
}
"""What was done to the first frame of a pair; completes "the left one is ..."."""


def is_wide(size_wh: tuple[int, int]) -> bool:
    """Wide frames, as a line camera makes them, are shown one above the other."""
    return size_wh[0] > 2.5 * size_wh[1]


def label_classes(classes: Sequence[LabelClass]) -> tuple[DefectClass, ...]:
    """The types as they are drawn: ``Type 3`` instead of a bare number, and a colour each."""
    return tuple(
        DefectClass(c.id, f"Type {c.name}" if c.name.isdecimal() else c.name,
                    PALETTE[i % len(PALETTE)])
        for i, c in enumerate(classes)
    )  # fmt: skip
