"""The domain: what was found on one frame, and what it means.

Frozen dataclasses over plain values; no framework, no I/O. Conventions used everywhere:
``x`` is the column and ``y`` the row, both 0-based, origin at the top left; sizes are
``(width, height)``; RLE is the Kaggle form (1-based, column-major).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """What is said about a frame. ``OK`` is only ever produced by ``decisions.decide``."""

    OK = "OK"
    NG = "NG"
    UNKNOWN = "UNKNOWN"


class Reason(StrEnum):
    """Why a verdict is UNKNOWN, or what is special about an NG one (``NOT_LOCALISED``)."""

    UNREADABLE = "unreadable"
    """The file could not be read (permission, I/O error, vanished)."""
    NOT_A_FILE = "not-a-file"
    """A directory, link to a directory, socket or device where an image was expected."""
    EMPTY = "empty"
    """Zero bytes."""
    NOT_AN_IMAGE = "not-an-image"
    """The content is no image in any format we know."""
    UNSUPPORTED_FORMAT = "unsupported-format"
    """An image, but in a format outside the allow-list."""
    WRONG_EXTENSION = "wrong-extension"
    """The content is one format, the file name claims another."""
    TRUNCATED = "truncated"
    """The image data ends early."""
    DECODE_FAILED = "decode-failed"
    """The image data is damaged."""
    DECODER_CRASHED = "decoder-crashed"
    """The decoder process ended by itself while it worked on the image."""
    DECODER_HUNG = "decoder-hung"
    """The decoder had no answer in time, and was ended."""
    DECODER_MEMORY = "decoder-memory"
    """The decoder wanted more memory than it may have."""
    MULTIPLE_FRAMES = "multiple-frames"
    """An animation or a multi-page file."""
    TOO_LARGE = "too-large"
    """More pixels or bytes than the limit."""
    WRONG_SIZE = "wrong-size"
    """Fewer rows or columns than the network needs."""
    UNSUPPORTED_PIXELS = "unsupported-pixels"
    """A pixel type, channel layout or bit depth that cannot be converted without guessing."""
    COLOURED = "coloured"
    """Coloured pixels, although the model's camera was grey: damage, or another kind of picture."""
    BLANK = "blank"
    """Practically no contrast: lens cap, no light, over-exposure, or no strip."""
    NOT_FINITE = "not-finite"
    """The network produced NaN or infinity."""
    ENGINE_FAILED = "engine-failed"
    """The inference engine raised an error on this frame."""
    TIMEOUT = "timeout"
    """No verdict was there at the deadline that the caller had set (``Inspector.stream``)."""
    NOT_LOCALISED = "not-localised"
    """NG by the classifier alone: no region of any type passed its thresholds."""


@dataclass(frozen=True, slots=True)
class DefectClass:
    """One defect type as the bundle declares it: ``id`` as in labels, and ``#rrggbb`` colour."""

    id: str
    name: str
    colour: str

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour as 0..255 red, green, blue."""
        value = int(self.colour.removeprefix("#"), 16)
        return value >> 16, value >> 8 & 255, value & 255


@dataclass(frozen=True, slots=True)
class Defect:
    """One connected region of one type.

    ``bbox_xywh``: tightest box, 0-based. ``length_px``/``width_px``: sides of the minimum-area
    rectangle around the pixels' outlines (a single pixel is 1 x 1). ``orientation_deg``: direction
    of the longer side, 0 = along a row, 90 = along a column, counter-clockwise on screen, in
    [0, 180). ``probability``: mean mask probability over the region. ``rle``: Kaggle form.
    """

    class_id: str
    area_px: int
    bbox_xywh: tuple[int, int, int, int]
    length_px: float
    width_px: float
    orientation_deg: float
    probability: float
    rle: str

    def to_json(self) -> dict[str, Any]:
        """The object inside ``defects`` of a result line."""
        return {
            "class": self.class_id,
            "area_px": self.area_px,
            "bbox_xywh": list(self.bbox_xywh),
            "length_px": round(self.length_px, 1),
            "width_px": round(self.width_px, 1),
            "orientation_deg": round(self.orientation_deg, 1) % 180,
            "probability": round(self.probability, 4),
            "rle": self.rle,
        }


def _significant(value: float | None, digits: int = 6) -> float | None:
    """Rounds to significant digits: probabilities near 0 and 1 must keep their order."""
    return None if value is None else float(f"{value:.{digits}g}")


@dataclass(frozen=True, slots=True)
class Inspection:
    """The result for one frame; ``to_json_line`` is one line of ``results.jsonl``.

    Attributes:
        image: name as given: path relative to the inspected folder, with ``/``.
        sha256: of the encoded bytes (of the pixel buffer for arrays); ``None`` if never read.
        verdict: OK, NG or UNKNOWN.
        reason: always set for UNKNOWN; ``NOT_LOCALISED`` or ``None`` for NG; ``None`` for OK.
        detail: one line for people that belongs to ``reason``.
        faulty_probability: stage 1, 0..1; ``None`` where the network did not run.
        class_probabilities: per type, 0..1: the mean of the two heads and the mask peak; the
            peak counts as 0 where stage 1 cleared the frame, because no mask exists then.
        defects: connected regions, largest first.
        size_wh: width and height in pixels; ``None`` if not decoded.
        model, decision, engine: ``name@sha8``, ``sha8``, ``engine-precision``: what decided.
        milliseconds: per step.
        notes: what was done to the pixels on the way in (EXIF rotation, 16-bit scaling, ...), and
            that a frame has another size than those the model was measured on.
    """

    image: str
    sha256: str | None
    verdict: Verdict
    reason: Reason | None
    detail: str | None
    faulty_probability: float | None
    class_probabilities: Mapping[str, float]
    defects: tuple[Defect, ...]
    size_wh: tuple[int, int] | None
    model: str
    decision: str
    engine: str
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses combinations that would hide a doubt.

        Raises:
            ValueError: an UNKNOWN without reason, or an OK with a reason, a defect or no number.
        """
        if self.verdict is Verdict.UNKNOWN and self.reason is None:
            raise ValueError(f"{self.image}: UNKNOWN needs a reason")
        if self.verdict is Verdict.OK:
            probability = self.faulty_probability
            if self.reason is not None or self.defects:
                raise ValueError(f"{self.image}: OK cannot carry a reason or defects")
            if probability is None or not math.isfinite(probability):
                raise ValueError(f"{self.image}: OK needs a finite faulty_probability")

    def to_json(self, *, timing: bool = True) -> dict[str, Any]:
        """The result object of the contract in ``docs/design.md``.

        Args:
            timing: with ``milliseconds``, which are never the same twice.
        """
        return {
            "image": self.image,
            "sha256": self.sha256,
            "verdict": self.verdict.value,
            "reason": self.reason.value if self.reason else None,
            "detail": self.detail,
            "faulty_probability": _significant(self.faulty_probability),
            "class_probabilities": {
                k: _significant(v) for k, v in self.class_probabilities.items()
            },
            "defects": [d.to_json() for d in self.defects],
            "size_wh": list(self.size_wh) if self.size_wh else None,
            "model": self.model,
            "decision": self.decision,
            "engine": self.engine,
            **(
                {"milliseconds": {k: round(v, 2) for k, v in self.milliseconds.items()}}
                if timing
                else {}
            ),
            "notes": list(self.notes),
        }

    def to_json_line(self, *, timing: bool = True) -> str:
        """One line of JSON without the line end; strict JSON (no NaN); see ``to_json``."""
        return json.dumps(self.to_json(timing=timing), ensure_ascii=False, allow_nan=False)
