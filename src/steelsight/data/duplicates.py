"""Frames that show the same piece of steel: the same file, the same pixels, or nearly so.

Also under flips and rotations by 90 degrees, which are how published data sets were "augmented"
before somebody split them.
"""

from dataclasses import dataclass
from enum import StrEnum


class Likeness(StrEnum):
    """How much two frames are the same; in falling order."""

    SAME_FILE = "same-file"
    """Equal bytes."""
    SAME_PIXELS = "same-pixels"
    """Different files, equal pixels, possibly after a flip or rotation."""
    NEAR = "near"
    """Nearly equal pixels, such as after another JPEG compression."""


class Turn(StrEnum):
    """What turns one frame into the other."""

    NONE = "none"
    FLIP_LEFT_RIGHT = "flip-left-right"
    FLIP_UP_DOWN = "flip-up-down"
    ROTATE_180 = "rotate-180"
    ROTATE_90 = "rotate-90"
    """Counter-clockwise, as ``numpy.rot90``."""
    ROTATE_270 = "rotate-270"
    TRANSPOSE = "transpose"
    ANTI_TRANSPOSE = "anti-transpose"


@dataclass(frozen=True, slots=True)
class DuplicatePair:
    """Two frames that show the same steel.

    Attributes:
        a, b: image names, ``a < b``.
        likeness: how much they are the same.
        turn: applied to ``a`` gives ``b``.
        similarity: correlation of the pixels with local brightness and contrast taken out, at
            confirmation size; 1 for equal pixels.
    """

    a: str
    b: str
    likeness: Likeness
    turn: Turn
    similarity: float


@dataclass(frozen=True, slots=True)
class Duplicates:
    """What was found in one catalog.

    Attributes:
        pairs: enough of them to connect every group; sorted.
        groups: families of two and more frames that pairs connect, each sorted, sorted by first
            name. A frame is in at most one.
    """

    pairs: tuple[DuplicatePair, ...]
    groups: tuple[tuple[str, ...], ...]
