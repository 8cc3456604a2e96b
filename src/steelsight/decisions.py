"""From scores and mask probabilities to defects and a verdict; the only code that can say OK.

The decision file (``decision.toml``) holds every threshold, is readable on its own, and can be
changed without touching the networks; its sha256 stands in every result.

The score of a type is ``(sigmoid(average) + sigmoid(soft_maximum) + peak) / 3``: both heads of the
classifier and the highest 16 x 16 average of the mask probability. The peak is 0 where stage 1
or the first look cleared the frame, because no mask exists then. With a soft gate it is multiplied
by the frame's ``faulty_probability``.
"""

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from steelsight.defects import Defect, Reason, Verdict
from steelsight.errors import DecodeError, InputError
from steelsight.masks import regions

PEAK_CELL_PX = 16

Numbers = TypeVar("Numbers", float, NDArray[np.float64])


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _at_temperature(probability: Numbers, temperature: float) -> Numbers:
    if temperature == 1:
        return probability
    # p^a / (p^a + (1 - p)^a) is the sigmoid of a times the logit, without infinite logits.
    power = 1 / temperature
    faulty = probability**power
    calibrated: Numbers = faulty / (faulty + (1 - probability) ** power)
    return calibrated


class GateRule(_Table):
    """Thresholds on ``faulty_probability``."""

    clear_below: float = Field(gt=0, lt=1)
    """Below: OK without segmentation."""
    ng_from: float = Field(gt=0, lt=1)
    """From here on: NG, whether or not a region is found."""
    temperature: float = Field(default=1.0, ge=0.05, le=20)
    """Divides the logit of stage 1's answer, so that its probabilities are those of the calibration
    frames (Guo et al., arXiv 1706.04599); results, thresholds and ``soft`` mean the outcome."""
    soft: bool = False
    """The score of each type is multiplied by ``faulty_probability``: stage 1 weighs what stage 2
    sees, instead of only opening the way to it."""

    @model_validator(mode="after")
    def _ordered(self) -> "GateRule":
        if self.clear_below > self.ng_from:
            raise ValueError("clear_below must not exceed ng_from: a frame cannot be both")
        return self

    def calibrated(self, faulty_probability: Numbers) -> Numbers:
        """Stage 1's answer at the temperature; NaN stays NaN.

        Args:
            faulty_probability: of the network, 0..1, one or many.
        """
        return _at_temperature(faulty_probability, self.temperature)

    def weighed(self, scores: Numbers, faulty_probability: Numbers) -> Numbers:
        """Scores of types as thresholds meet them; arguments broadcast."""
        return scores * faulty_probability if self.soft else scores


class FirstLookRule(_Table):
    """What the bundle's first look, a smaller network in front of stage 1, may settle."""

    clear_below: float = Field(gt=0, lt=1)
    """A frame below is OK; nothing else looks at it. Not above that of the gate, so that everywhere
    a ``faulty_probability`` below the gate's means a cleared frame."""
    temperature: float = Field(default=1.0, ge=0.05, le=20)
    """As that of the gate."""

    def calibrated(self, faulty_probability: Numbers) -> Numbers:
        """The first look's answer at the temperature; NaN stays NaN."""
        return _at_temperature(faulty_probability, self.temperature)


class InputRule(_Table):
    """What a frame must have before anything is believed about it."""

    min_contrast: float = Field(ge=0, le=128)
    """Least standard deviation of the grey levels; below it the frame is UNKNOWN, ``blank``."""
    dark_margin_below: int = Field(default=0, ge=0, le=255)
    """Grey level of the dark beside the strip: columns at the sides that do not reach it are not
    looked at, which saves their time. 0 looks at the whole frame."""


class TypeRule(_Table):
    """Thresholds of one defect type."""

    label_from: float = Field(ge=0, le=1)
    """Least score of the type for its mask to count."""
    pixel_from: float = Field(gt=0, lt=1)
    """Least mask probability of a pixel."""
    min_area_px: int = Field(ge=0)
    """Masks of this type with fewer pixels in total are dropped."""


class Decision(_Table):
    """A decision file, checked.

    ``rule`` and ``chosen_on`` say in plain words how and on which data the thresholds were chosen.
    """

    version: Literal[1]
    name: str
    rule: str
    chosen_on: str
    gate: GateRule
    input: InputRule
    types: Mapping[str, TypeRule]
    first_look: FirstLookRule | None = None
    """``None``: stage 1 looks at every frame, even if the bundle has a first look."""
    sha256: str = ""
    text: str = Field(default="", repr=False, exclude=True)
    """The file, as it was read."""

    @model_validator(mode="after")
    def _first_clears_less(self) -> "Decision":
        if self.first_look and self.first_look.clear_below > self.gate.clear_below:
            raise ValueError(
                f"first_look.clear_below ({self.first_look.clear_below:g}) must not exceed "
                f"gate.clear_below ({self.gate.clear_below:g}): the first look clears what stage 1 "
                "would clear, too"
            )
        return self

    @property
    def id(self) -> str:
        """First eight digits of the file's sha256, as results carry it."""
        return self.sha256[:8]


def load_decision(path: Path, class_ids: Sequence[str]) -> Decision:
    """Reads and checks a decision file.

    Args:
        path: the TOML file.
        class_ids: the types of the bundle; the file must have a rule for each and no other.

    Raises:
        InputError: the file is missing, not TOML, or breaks a rule; names the first problem.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"expected a decision file at {path}, could not read it ({error.strerror}); "
            "give --decision FILE or restore the bundle"
        ) from None
    return parse_decision(content, class_ids, where=str(path))


def parse_decision(content: bytes, class_ids: Sequence[str], *, where: str) -> Decision:
    """Checks the content of a decision file.

    Args:
        content: TOML.
        class_ids: the types of the bundle.
        where: begins every message.

    Raises:
        InputError: see ``load_decision``.
    """
    try:
        text = content.decode()
        tables = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{where}: expected TOML, got: {error}; mend that line") from None
    for key in ("sha256", "text"):
        if key in tables:
            raise InputError(
                f"{where}: {key}: expected no such key, it is computed; remove that line"
            )
    try:
        sha256 = hashlib.sha256(content).hexdigest()
        decision = Decision(**tables | {"sha256": sha256, "text": text})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        part = ".".join(str(part) for part in problem["loc"]) or "file"
        raise InputError(
            f"{where}: {part}: {problem['msg']}; see docs/decisions.md for the format"
        ) from None
    if set(decision.types) != set(class_ids):
        raise InputError(
            f"{where}: expected rules for types {', '.join(class_ids)}, got "
            f"{', '.join(decision.types) or 'none'}; add or remove [types.*] tables"
        )
    # The order of the channels, whatever the order of the tables.
    return decision.model_copy(update={"types": {k: decision.types[k] for k in class_ids}})


class Judgement(NamedTuple):
    """What ``decide`` concludes about one frame."""

    verdict: Verdict
    reason: Reason | None
    detail: str | None
    class_probabilities: dict[str, float]
    defects: tuple[Defect, ...]


def check_contrast(grey_hw: NDArray[np.uint8], decision: Decision) -> None:
    """Refuses frames that show practically nothing.

    Raises:
        DecodeError: ``blank``.
    """
    contrast = float(cv2.meanStdDev(grey_hw)[1][0, 0])
    if contrast < decision.input.min_contrast:
        raise DecodeError(
            Reason.BLANK,
            f"expected a picture of steel, got one flat grey level (contrast {contrast:.2f}, least "
            f"{decision.input.min_contrast:g}); check lens cap, light and trigger",
        )


def is_cleared(faulty_probability: float, decision: Decision) -> bool:
    """Whether stage 1 alone settles the frame; never true for NaN."""
    return faulty_probability < decision.gate.clear_below


def is_settled(first_look: float, decision: Decision) -> bool:
    """Whether the first look alone settles the frame.

    Args:
        first_look: its ``faulty_probability``, as the network says it; NaN settles nothing.
        decision: if it has no rule for the first look, nothing is settled.
    """
    rule = decision.first_look
    return rule is not None and rule.calibrated(first_look) < rule.clear_below


def mask_peaks(probabilities_chw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Highest 16 x 16 block average per type, ``(C, H, W)`` to ``(C,)``.

    Blocks start at the top left; rows and columns beyond the last full block are left out, as in
    the average pooling the thresholds were chosen with. Frames smaller than a block are one block.
    """
    _, rows, columns = probabilities_chw.shape
    cells_wh = (max(columns // PEAK_CELL_PX, 1), max(rows // PEAK_CELL_PX, 1))
    used_h = min(rows, cells_wh[1] * PEAK_CELL_PX)
    used_w = min(columns, cells_wh[0] * PEAK_CELL_PX)
    return np.array(
        [
            cv2.resize(plane[:used_h, :used_w], cells_wh, interpolation=cv2.INTER_AREA).max()
            for plane in probabilities_chw
        ],
        np.float32,
    )


def decide(
    faulty_probability: float,
    head_probabilities: NDArray[np.float32],
    probabilities_chw: NDArray[np.float32] | None,
    decision: Decision,
) -> Judgement:
    """Applies the decision file to the scores of one completely decoded frame.

    Args:
        faulty_probability: stage 1, or the first look where that settled the frame; 0..1,
            calibrated (:meth:`GateRule.calibrated`, :meth:`FirstLookRule.calibrated`).
        head_probabilities: per type, mean of both heads' sigmoids, ``(C,)``; of the same network.
        probabilities_chw: mask probabilities at full size, ``(C, H, W)``; ``None`` only where
            one of them cleared the frame.
        decision: the thresholds; its types in the order of the channels.

    Returns:
        The judgement. UNKNOWN, ``not-finite``, if any score is NaN or infinite.

    Raises:
        ValueError: masks are missing for a frame that was not cleared.
    """
    peaks = (
        np.zeros(len(decision.types), np.float32)
        if probabilities_chw is None
        else mask_peaks(probabilities_chw)
    )
    scores = {
        class_id: decision.gate.weighed(float(score), faulty_probability)
        for class_id, score in zip(
            decision.types, (2 * head_probabilities + peaks) / 3, strict=True
        )
    }
    # A NaN anywhere in the masks makes their sum NaN; cheaper than testing every pixel.
    with np.errstate(invalid="ignore"):
        mask_sum = 0.0 if probabilities_chw is None else probabilities_chw.sum()
    evidence = (faulty_probability, *scores.values(), mask_sum)
    if not np.isfinite(evidence).all():
        return Judgement(
            Verdict.UNKNOWN,
            Reason.NOT_FINITE,
            "expected finite scores, the network gave NaN or infinity; run `steelsight doctor`",
            {},
            (),
        )
    if is_cleared(faulty_probability, decision):
        return Judgement(Verdict.OK, None, None, scores, ())
    if probabilities_chw is None:
        raise ValueError("masks are needed for a frame that stage 1 did not clear")
    defects = _find_defects(scores, probabilities_chw, decision)
    if defects:
        return Judgement(Verdict.NG, None, None, scores, defects)
    if faulty_probability >= decision.gate.ng_from:
        detail = "the classifier calls the frame faulty, no region passed the thresholds"
        return Judgement(Verdict.NG, Reason.NOT_LOCALISED, detail, scores, ())
    return Judgement(Verdict.OK, None, None, scores, ())


def _find_defects(
    scores: Mapping[str, float], probabilities_chw: NDArray[np.float32], decision: Decision
) -> tuple[Defect, ...]:
    defects: list[Defect] = []
    for (class_id, rule), plane in zip(decision.types.items(), probabilities_chw, strict=True):
        if scores[class_id] < rule.label_from:
            continue
        mask_hw = plane >= rule.pixel_from
        if np.count_nonzero(mask_hw) < max(rule.min_area_px, 1):
            continue
        defects += [
            Defect(
                class_id=class_id,
                area_px=region.area_px,
                bbox_xywh=region.bbox_xywh,
                length_px=region.length_px,
                width_px=region.width_px,
                orientation_deg=region.orientation_deg,
                probability=region.mean_probability,
                rle=region.rle,
            )
            for region in regions(mask_hw, plane)
        ]
    return tuple(sorted(defects, key=lambda defect: -defect.area_px))
