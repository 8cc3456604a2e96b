"""Everything that is wrong with a data set, in one list: what, how many, why, and what to do.

:func:`audit` looks at a scanned catalog and its duplicates and returns an :class:`Audit`: findings
of three severities, each with one sentence for people, every image it concerns, the figures it was
made from, and the evidence that the page of :mod:`steelsight.report.audit_page` shows as pictures.
What could not be looked at is said too (``Audit.not_checked``): silence must not pass for approval.

The limits that decide on a finding were measured on real frames; the numbers stand beside each.

Shapes: ``_hw`` rows x columns, ``_wh`` columns x rows; boxes are ``xywh``, 0-based. Masks are
Kaggle RLE (see :mod:`steelsight.masks`).
"""

import json
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from steelsight.data.catalog import DARK_BELOW, Catalog, FrameRecord, in_order
from steelsight.data.duplicates import DuplicatePair, Duplicates, Likeness, Turn, turned
from steelsight.data.labels import FrameLabels, shown, split_of
from steelsight.errors import DecodeError, InputError, LabelError
from steelsight.imaging import DecodePolicy, read_file
from steelsight.masks import decode_rle

SPECK_PX = 32
"""Smaller regions are specks. In three sets drawn by people, regions per doubling of the area fall
off a cliff below 32 pixels: 99 from 32 to 63, but 20, 11, 13, 8 and 7 below in Severstal (of 15,840
regions); 40, but none below in 900 NEU masks (of 2,143); 9, but 9 in all below in NEU_Seg (679)."""
CONFLICT_IOU = 0.75
"""Masks of copies that overlap less contradict each other. Of 268 copies in NEU_Seg 240 carry the
same mask to the pixel, the other 28 lie between 0.15 and 0.74: drawn anew, or on another frame."""
SHIFT_SLACK_PX = 3
"""How well the shift between near copies is known, and a little more."""
WHOLE_FRAME_SHARE = 0.9
"""A mask that covers more of its frame is suspected to be inverted; 0.899 is the largest of 5,610
Severstal masks, 0.70 of 900 NEU masks."""
BLANK_CONTRAST = 2.0
"""As in the engine: the least contrast among 794 real frames is 4.6 grey levels."""
BOX_FILL = 0.99
"""A region that fills more of its bounding box, both sides ``BOX_SIDE_PX`` and more, is a box."""
BOX_SIDE_PX = 8
FAINT_DIFFERENCE = 0.24
"""Regions that differ less from the steel around them (see :func:`_difference`) look like nothing.
Half of all masks that are moved to another place of their frame stay below (291 Severstal, 509 NEU
regions), but only 1.7 % of 293 Severstal regions and none of 537 NEU regions where people put them;
AUROC of moved against real 0.956 and 0.987."""
STRIKING_SCORE = 3.5
"""Clean frames whose deepest shadow (see :func:`_deepest_shadow`) lies so many robust standard
deviations above the clean frames' median are suspects. Among 596 clean and 40 disputed Severstal
frames, all taken as clean, 41 lie above, 37 of them disputed; AUROC 0.997."""
MIN_CLEAN = 30
"""Fewer clean frames have no usable median."""
REGIONS_MEASURED = 50
"""Per mask, the largest regions whose pixels are compared with their surroundings."""

Mask = NDArray[np.bool_]
Grey = NDArray[np.uint8]
Box = tuple[int, int, int, int]
Progress = Callable[[int, int], None]
"""Called with (frames measured, frames to measure)."""


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "error"
    """Results on this data are wrong, or frames are lost, until it is mended."""
    WARNING = "warning"
    """Probably a mistake: look before training."""
    NOTE = "note"
    """Worth knowing."""


class Code(StrEnum):
    """What was found; stable names for machines, in the order of the page."""

    LEAK = "leak"
    CLEAN_AND_FAULTY = "copies-clean-and-faulty"
    OTHER_TYPES = "copies-with-other-types"
    OTHER_MASKS = "copies-with-other-masks"
    BROKEN_LABEL = "broken-label"
    MISSING_IMAGE = "missing-image"
    UNREADABLE_IMAGE = "unreadable-image"
    MASK_OF_OTHER_SIZE = "mask-of-other-size"
    MASK_OUTSIDE = "mask-outside-image"
    EXACT_COPIES = "exact-copies"
    NEAR_COPIES = "near-copies"
    LIKELY_FAULTY = "labelled-clean-looks-faulty"
    LIKELY_CLEAN = "labelled-faulty-looks-clean"
    STRIKING_CLEAN = "labelled-clean-but-striking"
    MASK_ON_MARGIN = "mask-beside-strip"
    WHOLE_FRAME_MASK = "mask-of-whole-frame"
    OVERLAPPING_TYPES = "overlapping-types"
    TYPE_MISSING_IN_PART = "type-missing-in-part"
    COLOUR_MIXED = "coloured-and-grey"
    BLANK = "blank-frame"
    OTHER_SIZE = "other-size"
    SPECKS = "specks"
    FAINT_MASKS = "faint-masks"
    BOX_MASKS = "box-masks"
    TYPE_WITHOUT_MASK = "type-without-mask"
    DISPUTED = "disputed"
    UNLABELLED = "unlabelled"


CONFLICTS = frozenset({Code.CLEAN_AND_FAULTY, Code.OTHER_TYPES, Code.OTHER_MASKS})


@dataclass(frozen=True, slots=True)
class _Rule:
    """What holds for a code whatever the data set: how bad it is, why it matters, what to do."""

    severity: Severity
    title: str
    advice: str


_ERROR, _WARNING, _NOTE = Severity
_RULES: Mapping[Code, _Rule] = {
    Code.LEAK: _Rule(
        _ERROR,
        "Leaks between the parts of the split",
        "What is measured there is memory, not skill. Split again so that copies stay together,"
        " and publish no figure from this split.",
    ),
    Code.CLEAN_AND_FAULTY: _Rule(
        _ERROR,
        "Copies labelled clean and faulty",
        "One of the two labels is wrong, and a network that learns both learns neither. Look at"
        " both, and correct or drop one.",
    ),
    Code.OTHER_TYPES: _Rule(
        _ERROR,
        "Copies labelled with other types",
        "A type was forgotten or confused on one of them. Look at both, and correct one.",
    ),
    Code.OTHER_MASKS: _Rule(
        _ERROR,
        "Copies with other masks",
        "At least one mask of each pair is incomplete, wrong, or belongs to another frame. Look at"
        " both, and keep the right one.",
    ),
    Code.BROKEN_LABEL: _Rule(
        _ERROR,
        "Broken labels",
        "They are left out, because a frame that lost a label would pass for good steel. Correct"
        " each line, then check again.",
    ),
    Code.MISSING_IMAGE: _Rule(
        _ERROR,
        "Missing images",
        "What was labelled there is lost. Copy the files into the image folder, or take these"
        " frames out of the labels.",
    ),
    Code.UNREADABLE_IMAGE: _Rule(
        _ERROR,
        "Unreadable images",
        "A network would learn from damage. Fetch the files again, or remove them and their"
        " labels.",
    ),
    Code.MASK_OF_OTHER_SIZE: _Rule(
        _ERROR,
        "Masks of another size than their image",
        "Every pixel of them lies in the wrong place. Use the images that were labelled, or scale"
        " masks and images together.",
    ),
    Code.MASK_OUTSIDE: _Rule(
        _ERROR,
        "Masks outside their image",
        "They were made for a larger image, so that the rest of them is misplaced too. Use the"
        " images that were labelled, or export the labels again.",
    ),
    Code.EXACT_COPIES: _Rule(
        _WARNING,
        "Exact copies",
        "They count several times in training, and figures look surer than they are. Keep one of"
        " each, or let the split keep families together.",
    ),
    Code.NEAR_COPIES: _Rule(
        _WARNING,
        "Near copies",
        "In training and test at once they make the test too easy. Let the split keep families"
        " together.",
    ),
    Code.LIKELY_FAULTY: _Rule(
        _WARNING,
        "Labelled clean, the model says faulty",
        "Look at each: the label or the model is wrong. If the model learned from these frames, it"
        " repeats wrong labels, and some are not listed here.",
    ),
    Code.LIKELY_CLEAN: _Rule(
        _WARNING,
        "Labelled faulty, the model says clean",
        "Look at each: the label or the model is wrong. If the model learned from these frames, it"
        " repeats wrong labels, and some are not listed here.",
    ),
    Code.STRIKING_CLEAN: _Rule(
        _WARNING,
        "Labelled clean, but striking",
        "It is a missed defect, or an unusual but good piece of strip (its end, a pattern). Look at"
        " each: a defect that is labelled clean is a lesson to overlook it.",
    ),
    Code.MASK_ON_MARGIN: _Rule(
        _WARNING,
        "Masks beside the strip",
        "No steel is there: the mask is shifted, mirrored or belongs to another frame. Check how"
        " images and masks were paired.",
    ),
    Code.WHOLE_FRAME_MASK: _Rule(
        _WARNING,
        "Masks over the whole frame",
        "Perhaps background and defect are exchanged, or the whole frame was marked to get it over"
        " with. Look at them.",
    ),
    Code.OVERLAPPING_TYPES: _Rule(
        _WARNING,
        "Overlapping types",
        "Formats with one type per pixel lose one of them. Decide which type wins, or keep a format"
        " with one mask per type.",
    ),
    Code.TYPE_MISSING_IN_PART: _Rule(
        _WARNING,
        "Types missing in a part of the split",
        "What is not in training is not learned, and what is not in the test is not measured. Split"
        " again, stratified by type.",
    ),
    Code.COLOUR_MIXED: _Rule(
        _WARNING,
        "Coloured and grey frames",
        "A stripe or block of colour is damage to the file; a whole frame comes from another"
        " camera. Look at them, and fetch damaged files again.",
    ),
    Code.BLANK: _Rule(
        _WARNING,
        "Blank frames",
        "Lens cap, no light, or no strip. Take them out: as clean frames they teach that darkness"
        " is good steel.",
    ),
    Code.OTHER_SIZE: _Rule(
        _WARNING,
        "Frame sizes",
        "They are cropped, scaled or from another camera, and defects on them have another scale."
        " Check that one pixel is equally large on all frames, and use the original ones.",
    ),
    Code.SPECKS: _Rule(
        _NOTE,
        "Specks",
        "Mostly slips of the brush, and below what a network can find. Drop them unless such small"
        " defects matter.",
    ),
    Code.FAINT_MASKS: _Rule(
        _NOTE,
        "Masks where nothing is to be seen",
        "A few per cent are defects that only a trained eye sees; many mean that masks are shifted."
        " Look at the first ones.",
    ),
    Code.BOX_MASKS: _Rule(
        _NOTE,
        "Boxes instead of masks",
        "A box drawn around a defect marks good steel as faulty. Fine where the defect is a bar;"
        " else draw its outline.",
    ),
    Code.TYPE_WITHOUT_MASK: _Rule(
        _NOTE,
        "Types without a mask",
        "They teach what is on a frame, not where. Draw the masks, or keep these frames out of"
        " training the segmenter.",
    ),
    Code.DISPUTED: _Rule(
        _NOTE,
        "Disputed frames",
        "They count neither as clean nor as faulty. Keep them out of training and tests until"
        " somebody has decided.",
    ),
    Code.UNLABELLED: _Rule(
        _NOTE,
        "Images without a label",
        "Nothing is known about them, so they count neither as clean nor as faulty. Label them; if"
        " no label means good steel here, say so when the labels are read.",
    ),
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """One case of a finding.

    Attributes:
        images: the frame, or the two that are compared; none for a label that names no frame.
        text: one line for people.
        bbox_xywh: where to look on the first image, in pixels.
        turn: turns the first image into the second.
        figures: the case's numbers.
    """

    images: tuple[str, ...]
    text: str
    bbox_xywh: Box | None = None
    turn: Turn | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object inside ``evidence`` of a finding."""
        return {
            "images": list(self.images),
            "text": self.text,
            "bbox_xywh": list(self.bbox_xywh) if self.bbox_xywh else None,
            "turn": self.turn.value if self.turn else None,
            "figures": dict(self.figures),
        }


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        code: stable name.
        severity: how bad.
        told: what was found and how often.
        advice: why it matters and what to do.
        images: all frames concerned, sorted.
        figures: the numbers of the sentence and more.
        evidence: the cases, the worst first.
    """

    code: Code
    severity: Severity
    told: str
    advice: str
    images: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    evidence: tuple[Evidence, ...] = ()

    @property
    def title(self) -> str:
        """A heading."""
        return _RULES[self.code].title

    @property
    def sentence(self) -> str:
        """What, how many, why it matters, what to do."""
        return f"{self.told} {self.advice}"

    def to_json(self) -> dict[str, Any]:
        """The object inside ``findings``."""
        return {
            "code": self.code.value,
            "severity": self.severity.value,
            "title": self.title,
            "sentence": self.sentence,
            "figures": dict(self.figures),
            "images": list(self.images),
            "evidence": [case.to_json() for case in self.evidence],
        }


@dataclass(frozen=True, slots=True)
class Counts:
    """Every frame counted once by its label and once by its file.

    Attributes:
        frames: ``faulty + clean + disputed + refused + unlabelled``, and ``readable + unreadable +
            missing``.
        faulty: a type is on it, undisputed.
        clean: known to be good steel.
        disputed: the label is doubtful.
        refused: the label is broken.
        unlabelled: no label mentions it.
        readable, unreadable, missing: what became of its file.
        usable: clean or faulty, and readable.
    """

    frames: int
    faulty: int
    clean: int
    disputed: int
    refused: int
    unlabelled: int
    readable: int
    unreadable: int
    missing: int
    usable: int

    def to_json(self) -> dict[str, int]:
        """By name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found, and what was not looked at.

    Attributes:
        format, source: of the labels.
        counts: frames; both sums come to ``counts.frames``.
        parts: frames by part of the split; empty where none is known.
        findings: by severity, then in the order of :class:`Code`.
        not_checked: what could not be looked at and why, one line each.
        notes: what was assumed or done on the way in, one line each.
    """

    format: str
    source: str
    counts: Counts
    parts: Mapping[str, int]
    findings: tuple[Finding, ...]
    not_checked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def leaks_or_conflicts(self) -> bool:
        """Copies across the parts of a split, or copies whose labels contradict each other."""
        return any(f.code is Code.LEAK or f.code in CONFLICTS for f in self.findings)

    def count(self, severity: Severity) -> int:
        """Findings of one severity."""
        return sum(f.severity is severity for f in self.findings)

    @property
    def verdict(self) -> str:
        """The whole in one sentence: "3 errors, 2 warnings: this data set leaks between ..."."""
        if not self.counts.frames:
            return "There is no frame in this data set."
        worst = [f"leaks {f.figures['way']}" for f in self.findings if f.code is Code.LEAK]
        codes = {f.code for f in self.findings if f.severity is Severity.ERROR}
        if codes & CONFLICTS:
            worst.append("contradicts itself about the same steel")
        if codes & {Code.BROKEN_LABEL, Code.MASK_OF_OTHER_SIZE, Code.MASK_OUTSIDE}:
            worst.append("has labels that cannot be right")
        if codes & {Code.MISSING_IMAGE, Code.UNREADABLE_IMAGE}:
            worst.append("lacks images that its labels need")
        counted = ", ".join(
            f"{n:,} {s.value}{'' if n == 1 else 's'}" for s in Severity if (n := self.count(s))
        )
        if worst:
            return f"{counted}: this data set {_listed(worst)}."
        if self.count(Severity.WARNING):
            return f"{counted}: no error was found, but look at the warnings before training."
        if counted:
            return f"{counted}: nothing wrong was found."
        return "Nothing wrong was found."

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for ``json.dumps``."""
        return {
            "source": self.source,
            "format": self.format,
            "verdict": self.verdict,
            "leaks_or_conflicts": self.leaks_or_conflicts,
            "counts": self.counts.to_json(),
            "parts": dict(self.parts),
            "by_severity": {s.value: self.count(s) for s in Severity},
            "not_checked": list(self.not_checked),
            "notes": list(self.notes),
            "findings": [f.to_json() for f in self.findings],
        }


def audit(
    catalog: Catalog,
    duplicates: Duplicates,
    *,
    label_errors: Sequence[LabelError] = (),
    assignment: Mapping[str, str] | None = None,
    predictions: Mapping[str, float] | None = None,
    speck_px: int = SPECK_PX,
    progress: Progress | None = None,
) -> Audit:
    """Finds everything that is wrong with a data set.

    Args:
        catalog: the scanned frames with their labels. Frames with a mask and clean frames are
            decoded once more, to compare masks with pixels.
        duplicates: copies among them.
        label_errors: what the reader refused, collected.
        assignment: part of the split by image; ``None`` takes ``FrameLabels.split``,
            or the folders on the way to an image without a label.
        predictions: faulty probability by image, 0..1, from a model that did not learn from these
            frames; names as in the catalog, or file names where they are unique.
        speck_px: regions of fewer pixels are specks.
        progress: called as frames are measured.

    Returns:
        Findings, counts and what was not looked at.

    Raises:
        InputError: ``assignment`` or ``predictions`` name none of the frames, a probability is not
            in 0..1, or ``speck_px`` is below 1.
    """
    if speck_px < 1:
        raise InputError(f"expected specks of at least 1 pixel, got {speck_px}; give 1 or more")
    auditor = _Auditor(catalog, duplicates, assignment, speck_px)
    auditor.labels_and_files(label_errors)
    auditor.appearance()
    auditor.copies()
    auditor.leaks()
    auditor.masks_and_pixels(progress)
    auditor.model_suspects(predictions)
    return auditor.result()


def read_predictions(path: Path) -> dict[str, float]:
    """Faulty probability by image from the ``results.jsonl`` of ``steelsight inspect``.

    Frames without a probability (the network did not run on them) are left out.

    Raises:
        InputError: the file cannot be read, or a line is no result; the text names file and line.
    """
    found: dict[str, float] = {}
    line_of: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                image, probability = _prediction(line, f"{path} line {number}")
                if image in line_of:
                    raise InputError(
                        f"{path} line {number}: the image {shown(image)} stands in line"
                        f" {line_of[image]} already, expected each frame once; give the results of"
                        " one run"
                    )
                line_of[image] = number
                if probability is not None:
                    found[image] = probability
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}), expected the results.jsonl of 'steelsight"
            " inspect'; check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.object[error.start]:#04x} is not UTF-8, expected the"
            " results.jsonl of 'steelsight inspect'; give that file"
        ) from error
    return found


def _prediction(line: str, where: str) -> tuple[str, float | None]:
    try:
        result = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(
            f"{where}: {shown(line.strip())} is no JSON, expected a result of 'steelsight"
            " inspect'; give its results.jsonl, and run it again if the file is cut off"
        ) from None
    if not isinstance(result, dict) or not isinstance(result.get("image"), str):
        raise InputError(
            f"{where}: {shown(line.strip())} names no image, expected a result of 'steelsight"
            " inspect' with image and faulty_probability; give its results.jsonl"
        )
    value = result.get("faulty_probability", "nothing")
    if value is None:
        return result["image"], None
    # bool is an int in Python; a NaN fails the comparison.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(
            f"{where}, image {shown(result['image'])}: faulty_probability is {shown(str(value))},"
            " expected a number from 0 to 1 or null; give the results.jsonl of 'steelsight inspect'"
        )
    return result["image"], float(value)


def confident_suspects(
    faulty: NDArray[np.bool_], faulty_probability: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Frames whose label a model confidently contradicts.

    Confident learning (Northcutt, Jiang and Chuang, 2021, "Confident Learning: Estimating
    Uncertainty in Dataset Labels", JAIR 70): a frame is counted to the other class if its
    probability of that class reaches the mean probability that the frames labelled so have; where
    both classes reach theirs, the more probable one counts.

    Args:
        faulty: the labels, shape (n,).
        faulty_probability: 0..1, shape (n,), from a model that did not learn from these frames.

    Returns:
        Suspects, shape (n,); none unless both labels occur.
    """
    if faulty.all() or not faulty.any():
        return np.zeros(len(faulty), np.bool_)
    of_label = np.where(faulty, faulty_probability, 1 - faulty_probability)
    of_other = 1 - of_label
    mean_faulty, mean_clean = of_label[faulty].mean(), of_label[~faulty].mean()
    own_limit = np.where(faulty, mean_faulty, mean_clean)
    other_limit = np.where(faulty, mean_clean, mean_faulty)
    suspect: NDArray[np.bool_] = (of_other >= other_limit) & (
        (of_label < own_limit) | (of_other > of_label)
    )
    return suspect


class _Auditor:
    """Collects findings; each public method looks at one side of the data set."""

    def __init__(
        self,
        catalog: Catalog,
        duplicates: Duplicates,
        assignment: Mapping[str, str] | None,
        speck_px: int,
    ) -> None:
        self._label_set = catalog.label_set
        self._policy = catalog.policy
        self._records = {record.image: record for record in catalog.records}
        self._labels = {r.image: r.labels for r in catalog.records if r.labels is not None}
        self._names = {c.id: c.name for c in catalog.label_set.classes}
        self._duplicates = duplicates
        self._speck_px = speck_px
        self._parts = self._parts_of(assignment)
        self._findings: list[Finding] = []
        self._not_checked: list[str] = []

    def result(self) -> Audit:
        order = {code: i for i, code in enumerate(Code)}
        severity = {s: i for i, s in enumerate(Severity)}
        self._findings.sort(key=lambda f: (severity[f.severity], order[f.code]))
        remarks = Counter(note for record in self._records.values() for note in record.notes)
        return Audit(
            format=self._label_set.format,
            source=str(self._label_set.source),
            counts=self._counts(),
            parts=dict(sorted(Counter(self._parts.values()).items(), key=lambda p: _rank(p[0]))),
            findings=tuple(self._findings),
            not_checked=tuple(self._not_checked),
            notes=(
                *self._label_set.notes,
                *(f"{_frames(n)}: {note}" for note, n in remarks.most_common()),
            ),
        )

    def _add(
        self,
        code: Code,
        told: str,
        evidence: Iterable[Evidence],
        figures: Mapping[str, Any],
        *,
        images: Iterable[str] | None = None,
        severity: Severity | None = None,
    ) -> None:
        """Adds a finding: what and how many is ``told``; why and what to do stands in the rules.

        ``images`` are those of the evidence unless given.
        """
        rule, cases = _RULES[code], tuple(evidence)
        concerned = (i for case in cases for i in case.images) if images is None else images
        self._findings.append(
            Finding(
                code,
                severity or rule.severity,
                f"{told}.",
                rule.advice,
                tuple(sorted(set(concerned))),
                figures,
                cases,
            )
        )

    def _counts(self) -> Counts:
        frames = self._records.keys() | self._label_set.refused
        states = Counter((self._label_state(image), self._file_state(image)) for image in frames)
        total: Counter[str] = Counter()
        for (label, file), number in states.items():
            total[label] += number
            total[file] += number
        return Counts(
            frames=len(frames),
            faulty=total["faulty"],
            clean=total["clean"],
            disputed=total["disputed"],
            refused=total["refused"],
            unlabelled=total["unlabelled"],
            readable=total["readable"],
            unreadable=total["unreadable"],
            missing=total["missing"],
            usable=states["faulty", "readable"] + states["clean", "readable"],
        )

    def _label_state(self, image: str) -> str:
        labels = self._labels.get(image)
        if image in self._label_set.refused:
            return "refused"
        if labels is None:
            return "unlabelled"
        return "disputed" if labels.disputed else "clean" if labels.clean else "faulty"

    def _file_state(self, image: str) -> str:
        record = self._records.get(image)
        if record is None or record.path is None:
            return "missing"
        return "unreadable" if record.size_wh is None else "readable"

    def _parts_of(self, assignment: Mapping[str, str] | None) -> dict[str, str]:
        if assignment is None:
            # Folders tell the part of an image without a label, too.
            told = {
                image: self._labels[image].split if image in self._labels else split_of(image)
                for image in self._records
            }
            return {image: part for image, part in told.items() if part}
        parts = {image: assignment[image] for image in self._records if image in assignment}
        if assignment and self._records and not parts:
            raise InputError(
                f"the split names frames such as {shown(next(iter(assignment)))}, expected frames"
                f" of this data set such as {shown(next(iter(self._records)))}; give the split that"
                " was made for it"
            )
        return parts

    def _title(self, class_id: str) -> str:
        return f"type {self._names.get(class_id, class_id)}"

    def _types_of(self, image: str) -> str:
        labels = self._labels.get(image)
        if labels is None:
            return "no label"
        return ", ".join(map(self._title, labels.class_ids)) or "clean"

    # What is there -------------------------------------------------------------------------------

    def labels_and_files(self, label_errors: Sequence[LabelError]) -> None:
        """Frames that are lost, and those of which nothing or not enough is known."""
        refused = self._label_set.refused
        if label_errors or refused:
            broken = max(len(label_errors), len(refused))
            self._add(
                Code.BROKEN_LABEL,
                f"{_many(broken, 'label is', 'labels are')} broken, on {_frames(len(refused))}",
                (Evidence((), str(error)) for error in label_errors),
                {"labels": len(label_errors), "frames": len(refused)},
                images=refused,
            )
        missing = [i for i in self._labels if self._file_state(i) == "missing"]
        if missing:
            all_missing = len(missing) == len(self._labels)
            self._add(
                Code.MISSING_IMAGE,
                f"None of the {len(missing):,} labelled images is here, only labels were checked"
                if all_missing
                else f"{len(missing):,} of {_frames(len(self._labels))} with labels"
                f" {_has(len(missing))} no image",
                (),
                {"missing": len(missing), "labelled": len(self._labels)},
                images=missing,
                # Whoever gives labels alone knows.
                severity=Severity.WARNING if all_missing else None,
            )
        unreadable = [r for i, r in self._records.items() if self._file_state(i) == "unreadable"]
        if unreadable:
            unreadable.sort(key=lambda r: (str(r.reason), r.image))
            reasons = Counter(str(r.reason) for r in unreadable)
            told = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
            self._add(
                Code.UNREADABLE_IMAGE,
                f"{_many(len(unreadable), 'image', 'images')} cannot be decoded with certainty"
                f" ({told})",
                (Evidence((r.image,), f"{r.reason}: {r.detail}") for r in unreadable),
                {"unreadable": len(unreadable), "by_reason": dict(reasons)},
            )
        for code, said, images in (
            (
                Code.UNLABELLED,
                "no label",
                [i for i in self._records if self._label_state(i) == "unlabelled"],
            ),
            (
                Code.DISPUTED,
                "a disputed label",
                [i for i in self._labels if self._label_state(i) == "disputed"],
            ),
            (
                Code.TYPE_WITHOUT_MASK,
                "a type whose place nobody marked",
                [i for i, labels in self._labels.items() if labels.types_without_mask],
            ),
        ):
            if images:
                self._add(
                    code,
                    f"{_frames(len(images))} {_has(len(images))} {said}",
                    (Evidence((image,), self._types_of(image)) for image in images),
                    {"frames": len(images)},
                )

    def appearance(self) -> None:
        """Sizes, colour, blank frames."""
        readable = [r for r in self._records.values() if r.size_wh is not None]
        sizes = Counter(r.size_wh for r in readable if r.size_wh is not None)
        if len(sizes) > 1:
            (usual, most), *_ = sizes.most_common()
            others = [r for r in readable if r.size_wh != usual]
            outliers = most >= 0.9 * len(readable)
            self._add(
                Code.OTHER_SIZE,
                f"{len(others):,} of {_frames(len(readable))} {_is(len(others))} not"
                f" {_size(usual)} like the other {most:,}"
                if outliers
                else f"{_frames(len(readable))} come in {len(sizes):,} sizes, {most:,} of them in"
                f" {_size(usual)}",
                (Evidence((r.image,), _size(r.size_wh)) for r in others if r.size_wh),
                {"frames_by_size": {_size(size): n for size, n in sizes.most_common()}},
                severity=None if outliers else Severity.NOTE,
            )
        odd, kind, rest = [r for r in readable if r.coloured], "coloured", "grey"
        if odd and len(odd) < len(readable):
            figures = {"coloured": len(odd), "readable": len(readable)}
            if 2 * len(odd) > len(readable):
                odd, kind, rest = [r for r in readable if not r.coloured], rest, kind
            self._add(
                Code.COLOUR_MIXED,
                f"{len(odd):,} of {_frames(len(readable))} {_is(len(odd))} {kind} among {rest}"
                " ones",
                (Evidence((r.image,), kind) for r in odd),
                figures,
            )
        blank = [r for r in readable if r.contrast is not None and r.contrast < BLANK_CONTRAST]
        if blank:
            self._add(
                Code.BLANK,
                f"{_frames(len(blank))} {_is(len(blank))} practically one flat grey (contrast below"
                f" {BLANK_CONTRAST:g} grey levels)",
                (
                    Evidence((r.image,), f"contrast {r.contrast:.1f}, mean grey {r.brightness:.0f}")
                    for r in blank
                ),
                {"frames": len(blank), "limit": BLANK_CONTRAST},
            )

    # Copies --------------------------------------------------------------------------------------

    def copies(self) -> None:
        """Duplicates, and those whose labels contradict each other."""
        exact = [p for p in self._duplicates.pairs if p.likeness is not Likeness.NEAR]
        near = [p for p in self._duplicates.pairs if p.likeness is Likeness.NEAR]
        if exact:
            families = _families(exact)
            frames = sum(map(len, families))
            self._add(
                Code.EXACT_COPIES,
                f"{_frames(frames)} in {_many(len(families), 'family', 'families')} have the same"
                f" pixels{_turned_share(exact)}, {frames - len(families):,} more than there are"
                " pictures",
                map(_pair_evidence, exact),
                {
                    "frames": frames,
                    "families": len(families),
                    "superfluous": frames - len(families),
                    "largest_family": max(map(len, families)),
                    "same_file": sum(p.likeness is Likeness.SAME_FILE for p in exact),
                    "turned": sum(p.turn is not Turn.NONE for p in exact),
                },
            )
        if near:
            frames = len({image for pair in near for image in (pair.a, pair.b)})
            self._add(
                Code.NEAR_COPIES,
                f"{_frames(frames)} are nearly equal to another frame{_turned_share(near)}",
                map(_pair_evidence, sorted(near, key=lambda p: p.similarity)),
                {
                    "frames": frames,
                    "pairs": len(near),
                    "turned": sum(p.turn is not Turn.NONE for p in near),
                    "least_similarity": round(min(p.similarity for p in near), 4),
                },
            )
        self._conflicts()

    def _conflicts(self) -> None:
        found: dict[Code, list[Evidence]] = defaultdict(list)
        for pair in self._duplicates.pairs:
            a, b = self._labels.get(pair.a), self._labels.get(pair.b)
            if a is None or b is None or a.disputed or b.disputed:
                continue
            if a.clean != b.clean or set(a.class_ids) != set(b.class_ids):
                code = Code.OTHER_TYPES if a.clean == b.clean else Code.CLEAN_AND_FAULTY
                text = f"{self._types_of(pair.a)} | {self._types_of(pair.b)}"
                found[code].append(Evidence((pair.a, pair.b), text, None, pair.turn))
                continue
            iou, class_id = self._least_iou(pair, a, b)
            if iou < CONFLICT_IOU:
                text = f"{self._title(class_id)}: IoU {iou:.2f}"
                case = Evidence((pair.a, pair.b), text, None, pair.turn, {"iou": round(iou, 4)})
                found[Code.OTHER_MASKS].append(case)
        for code, said in (
            (Code.CLEAN_AND_FAULTY, "one labelled clean and one faulty"),
            (Code.OTHER_TYPES, "different types"),
        ):
            if cases := found[code]:
                told = f"{_many(len(cases), 'pair', 'pairs')} of copies with {said}"
                self._add(code, told, cases, {"pairs": len(cases)})
        if cases := found[Code.OTHER_MASKS]:
            cases.sort(key=lambda case: case.figures["iou"])
            least = cases[0].figures["iou"]
            self._add(
                Code.OTHER_MASKS,
                f"{_many(len(cases), 'pair', 'pairs')} of copies with masks of the same type"
                f" that overlap badly (IoU below {CONFLICT_IOU:g}, the worst {least:.2f})",
                cases,
                {"pairs": len(cases), "limit_iou": CONFLICT_IOU, "least_iou": least},
            )

    def _least_iou(self, pair: DuplicatePair, a: FrameLabels, b: FrameLabels) -> tuple[float, str]:
        """Of the types that both have masks of, and which; 1 where nothing can be compared."""
        least = (1.0, "")
        size_a, size_b = self._mask_size(pair.a), self._mask_size(pair.b)
        if size_a is None or size_b is None:
            return least
        for class_id in a.rle_by_class.keys() & b.rle_by_class.keys():
            try:
                mask_a = turned(decode_rle(a.rle_by_class[class_id], size_a), pair.turn)
                mask_b = decode_rle(b.rle_by_class[class_id], size_b)
            except LabelError:
                continue  # the mask runs past its image: a finding of its own
            # Equal pixels lie exactly upon each other; otherwise the shift is only roughly known,
            # and a thin scratch must not look like a conflict for it.
            slack_px = SHIFT_SLACK_PX if pair.likeness is Likeness.NEAR else 0
            iou = _best_iou(mask_a, mask_b, pair.shift_xy, slack_px)
            least = min(least, (iou, class_id))
        return least

    def _mask_size(self, image: str) -> tuple[int, int] | None:
        """Width and height of an image's masks; ``None`` if not known, or not the image's."""
        labels = self._labels[image]
        size_wh = self._records[image].size_wh or labels.size_wh
        return size_wh if labels.size_wh in (None, size_wh) else None

    def leaks(self) -> None:
        """Copies across the parts of the split, and types that a part lacks."""
        parts = sorted(set(self._parts.values()), key=_rank)
        if len(parts) < 2:
            self._not_checked.append(
                "Leaks between training and test: no split is known. Name the parts in the folders"
                " (train, val, test) or give the file of the split."
            )
            return
        if not any(r.size_wh for r in self._records.values()):
            self._not_checked.append("Leaks between the parts: there is no image to compare.")
        neighbours = _neighbours(self._duplicates.pairs)
        for number, part in enumerate(parts[1:], 1):
            earlier = frozenset(parts[:number])
            inside = [image for image, of in self._parts.items() if of == part]
            cases = [
                case
                for image in inside
                if image in neighbours and (case := self._leak(image, earlier, neighbours))
            ]
            if not cases:
                continue
            turns = sum(case.turn is not Turn.NONE for case in cases)
            copied = Counter(self._parts[case.images[0]] for case in cases)
            sources = _listed([_part_words(p) for p in parts if p in copied])
            self._add(
                Code.LEAK,
                f"{len(cases):,} of {_frames(len(inside))} in {_part_words(part)}"
                f" ({_percent(len(cases) / len(inside))}) are copies of frames in {sources}"
                + (f", {_of_them(turns, len(cases))} flipped or rotated" if turns else ""),
                cases,
                {
                    "part": part,
                    "way": f"from {sources} into {_part_words(part)}",
                    "copies": len(cases),
                    "frames": len(inside),
                    "share": round(len(cases) / len(inside), 4),
                    "flipped_or_rotated": turns,
                    "copies_of": {p: copied[p] for p in parts if p in copied},
                },
                images=(case.images[1] for case in cases),
            )
        self._missing_types(parts)

    def _leak(
        self, image: str, earlier: frozenset[str], neighbours: Mapping[str, Sequence["_Neighbour"]]
    ) -> Evidence | None:
        """The nearest frame of the family that lies in an earlier part, and how it was turned."""
        queue = deque([(image, Turn.NONE)])
        seen = {image}
        while queue:
            here, turn = queue.popleft()
            if self._parts.get(here) in earlier:
                text = f"{_part_words(self._parts[here])} | {_part_words(self._parts[image])}"
                return Evidence((here, image), text, None, _inverse(turn))
            for other, then in neighbours[here]:
                if other not in seen:
                    seen.add(other)
                    queue.append((other, _composed(turn, then)))
        return None

    def _missing_types(self, parts: Sequence[str]) -> None:
        frames: dict[str, Counter[str]] = {part: Counter() for part in parts}
        for image, part in self._parts.items():
            labels = self._labels.get(image)
            if labels is not None and not labels.disputed:
                frames[part].update(labels.class_ids)
        present = [c for c in self._label_set.class_ids if any(c in of for of in frames.values())]
        # A part without any type, such as unlabelled test frames, lacks them all on purpose.
        lacking = [(p, c) for p in parts if frames[p] for c in present if c not in frames[p]]
        if lacking:
            said = [f"{self._title(c)} in {_part_words(p)}" for p, c in lacking]
            rest = f" and {len(said) - 6:,} more" if len(said) > 6 else ""
            self._add(
                Code.TYPE_MISSING_IN_PART,
                f"Not on a single frame: {', '.join(said[:6])}{rest}",
                (Evidence((), text) for text in said),
                {"frames_by_part_and_type": {p: dict(of) for p, of in frames.items()}},
            )

    # Masks and pixels ----------------------------------------------------------------------------

    def masks_and_pixels(self, progress: Progress | None) -> None:
        """Every mask against its image, and clean frames against one another."""
        wanted = [
            self._records[image]
            for image, labels in self._labels.items()
            if labels.rle_by_class or labels.clean
        ]
        facts: list[_FrameFacts] = []
        for found in in_order(lambda r: _measured(r, self._speck_px, self._policy), wanted, None):
            facts.append(found)
            if progress:
                progress(len(facts), len(wanted))
        self._misfits(facts)
        self._odd_masks(facts)
        self._odd_regions(facts)
        self._striking(facts)

    def _misfits(self, facts: Sequence["_FrameFacts"]) -> None:
        if unsized := sum(f.unsized for f in facts):
            self._not_checked.append(
                f"Masks of {_frames(unsized)}: neither an image nor the labels tell a usable size."
            )
        if changed := sum(f.changed for f in facts):
            self._not_checked.append(
                f"Pixels of {_frames(changed)}: the file changed while it was checked."
            )
        of_size = [Evidence((f.image,), f.other_size) for f in facts if f.other_size]
        if of_size:
            swapped = sum(case.text.endswith("swapped") for case in of_size)
            self._add(
                Code.MASK_OF_OTHER_SIZE,
                f"The masks of {_frames(len(of_size))} were drawn in another size than the image"
                " has" + (f", {swapped:,} with width and height swapped" if swapped else ""),
                of_size,
                {"frames": len(of_size), "swapped": swapped},
            )
        outside = [Evidence((f.image,), f.outside) for f in facts if f.outside]
        if outside:
            self._add(
                Code.MASK_OUTSIDE,
                f"Masks of {_frames(len(outside))} run past the end of the image",
                outside,
                {"frames": len(outside)},
            )

    def _odd_masks(self, facts: Sequence["_FrameFacts"]) -> None:
        whole = sorted(
            ((share, f.image, c) for f in facts for c, share in f.whole_frame), reverse=True
        )
        if whole:
            self._add(
                Code.WHOLE_FRAME_MASK,
                f"{_many(len(whole), 'mask covers', 'masks cover')} more than"
                f" {_percent(WHOLE_FRAME_SHARE)} of the frame",
                (
                    _case(
                        image, f"{self._title(c)} covers {_percent(share)}", share=round(share, 4)
                    )
                    for share, image, c in whole
                ),
                {"masks": len(whole), "limit": WHOLE_FRAME_SHARE},
            )
        overlapping = [f for f in facts if f.overlap_px]
        if overlapping:
            overlapping.sort(key=lambda f: -f.overlap_px)
            by_types = Counter(pair for f in overlapping for pair in f.overlapping_types)
            overlap_px = sum(f.overlap_px for f in overlapping)
            share = overlap_px / sum(f.labelled_px for f in facts)
            self._add(
                Code.OVERLAPPING_TYPES,
                f"On {_frames(len(overlapping))}, {overlap_px:,} pixels ({_percent(share)} of all"
                " labelled ones) carry more than one type",
                (
                    _case(
                        f.image,
                        f"{f.overlap_px:,} px are {self._pairs_text(f.overlapping_types)}",
                        f.overlap_bbox,
                        pixels=f.overlap_px,
                    )
                    for f in overlapping
                ),
                {
                    "frames": len(overlapping),
                    "pixels": overlap_px,
                    "share": share,
                    "frames_by_types": {" + ".join(p): n for p, n in by_types.most_common()},
                },
            )

    def _pairs_text(self, pairs: Sequence[tuple[str, str]]) -> str:
        return ", ".join(f"{self._title(a)} and {self._title(b)}" for a, b in pairs)

    def _odd_regions(self, facts: Sequence["_FrameFacts"]) -> None:
        drawn = sum(f.regions for f in facts)
        compared = sum(f.compared for f in facts)
        # What is listed first: the smallest specks, the largest others, the faintest faint ones.
        for code, what, total, said in (
            (Code.SPECKS, "specks", drawn, f"smaller than {self._speck_px} pixels"),
            (Code.MASK_ON_MARGIN, "on_margin", drawn, "in the darkness beside the strip"),
            (
                Code.FAINT_MASKS,
                "faint",
                compared,
                "as bright and as textured as the steel around",
            ),
            (Code.BOX_MASKS, "boxes", drawn, "exactly rectangular"),
        ):
            found = [(f.image, region) for f in facts for region in getattr(f, what)]
            if not found:
                continue
            found.sort(key=lambda item: (item[1].rank, item[0]))
            frames = len({image for image, _ in found})
            self._add(
                code,
                f"{len(found):,} of {_many(total, 'region', 'regions')}"
                f" ({_percent(len(found) / total)}), on {_frames(frames)}, {_is(len(found))}"
                f" {said}",
                (
                    _case(
                        image,
                        f"{self._title(r.class_id)}, {r.area_px:,} px at x {r.bbox_xywh[0]},"
                        f" y {r.bbox_xywh[1]}{r.text}",
                        r.bbox_xywh,
                        area_px=r.area_px,
                    )
                    for image, r in found
                ),
                {"regions": len(found), "of": total, "share": len(found) / total, "frames": frames},
            )

    def _striking(self, facts: Sequence["_FrameFacts"]) -> None:
        shadows = [(f.image, *f.shadow) for f in facts if f.shadow is not None]
        if len(shadows) < MIN_CLEAN:
            if shadows:
                self._not_checked.append(
                    f"Clean frames against one another: {_frames(len(shadows))} of the"
                    f" {MIN_CLEAN} that it takes."
                )
            return
        depths = np.array([depth for _, depth, _ in shadows])
        median = float(np.median(depths))
        spread = 1.4826 * float(np.median(np.abs(depths - median)))
        if spread == 0:
            return
        found = sorted(
            ((depth - median) / spread, image, box)
            for image, depth, box in shadows
            if depth > median + STRIKING_SCORE * spread
        )[::-1]
        if found:
            self._add(
                Code.STRIKING_CLEAN,
                f"{len(found):,} of {_frames(len(shadows))} labelled clean {_has(len(found))} a far"
                f" darker spot than clean frames usually have (robust z-score above"
                f" {STRIKING_SCORE:g})",
                (
                    _case(
                        image,
                        f"robust z-score {score:.1f}",
                        box,
                        score=round(score, 2),
                    )
                    for score, image, box in found
                ),
                {"frames": len(found), "clean": len(shadows), "limit": STRIKING_SCORE},
            )

    # With a model --------------------------------------------------------------------------------

    def model_suspects(self, predictions: Mapping[str, float] | None) -> None:
        """Labels that a model confidently contradicts."""
        if predictions is None:
            self._not_checked.append(
                "Labels against a model: no results were given. Inspect the frames with a model"
                " that did not learn from them, and give its results.jsonl."
            )
            return
        by_image = self._matched(predictions)
        known = [i for i in by_image if self._label_state(i) in ("faulty", "clean")]
        faulty = np.array([self._label_state(i) == "faulty" for i in known], np.bool_)
        p = np.array([by_image[i] for i in known], np.float64)
        if not len(known) or faulty.all() or not faulty.any():
            self._not_checked.append(
                "Labels against a model: it takes results on faulty and on clean frames."
            )
            return
        suspects = confident_suspects(faulty, p)
        for label, code, said, other, side in (
            (False, Code.LIKELY_FAULTY, "clean", "faulty", "more"),
            (True, Code.LIKELY_CLEAN, "faulty", "clean", "less"),
        ):
            chosen = np.flatnonzero(suspects & (faulty == label))
            if not len(chosen):
                continue
            ranked = chosen[np.argsort(p[chosen] if label else -p[chosen], kind="stable")].tolist()
            limit = float(p[~faulty if label else faulty].mean())
            count = int((faulty == label).sum())
            self._add(
                code,
                f"{len(chosen):,} of {_frames(count)} labelled {said}"
                f" {'looks' if len(chosen) == 1 else 'look'} as {other} to the model as frames"
                f" labelled {other} do on average (faulty probability {limit:.2g} or {side})",
                (
                    _case(
                        known[i],
                        f"labelled {said}, faulty probability {p[i]:.3f}",
                        faulty_probability=float(p[i]),
                    )
                    for i in ranked
                ),
                {"frames": len(chosen), "labelled": count, "limit": round(limit, 4)},
            )

    def _matched(self, predictions: Mapping[str, float]) -> dict[str, float]:
        """By the catalog's names; else by file name, where that is unique on both sides."""
        for image, p in predictions.items():
            if not 0 <= p <= 1:  # also NaN
                raise InputError(
                    f"image {shown(image)}: the faulty probability is {p}, expected 0 to 1; give"
                    " probabilities, not logits"
                )
        ours = Counter(image.rpartition("/")[2] for image in self._records)
        theirs = Counter(image.rpartition("/")[2] for image in predictions)
        by_file = {i.rpartition("/")[2]: p for i, p in predictions.items()}
        matched = {}
        for image in self._records:
            file_name = image.rpartition("/")[2]
            if image in predictions:
                matched[image] = predictions[image]
            elif ours[file_name] == 1 and theirs[file_name] == 1:
                matched[image] = by_file[file_name]
        if predictions and self._records and not matched:
            raise InputError(
                f"the results name frames such as {shown(next(iter(predictions)))}, expected frames"
                f" of this data set such as {shown(next(iter(self._records)))}; inspect the same"
                " folder"
            )
        return matched


# One frame ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _OddRegion:
    class_id: str
    area_px: int
    bbox_xywh: Box
    rank: float
    """The lower, the earlier it is listed."""
    text: str = ""


@dataclass(slots=True)
class _FrameFacts:
    """What was measured on one frame; everything but the pixels."""

    image: str
    unsized: bool = False
    changed: bool = False
    other_size: str = ""
    outside: str = ""
    regions: int = 0
    compared: int = 0
    labelled_px: int = 0
    overlap_px: int = 0
    overlap_bbox: Box | None = None
    overlapping_types: list[tuple[str, str]] = field(default_factory=list)
    whole_frame: list[tuple[str, float]] = field(default_factory=list)
    specks: list[_OddRegion] = field(default_factory=list)
    boxes: list[_OddRegion] = field(default_factory=list)
    on_margin: list[_OddRegion] = field(default_factory=list)
    faint: list[_OddRegion] = field(default_factory=list)
    shadow: tuple[float, Box] | None = None


def _measured(record: FrameRecord, speck_px: int, policy: DecodePolicy) -> _FrameFacts:
    facts = _FrameFacts(record.image)
    labels = record.labels
    if labels is None:
        return facts
    grey_hw = None
    if record.path is not None and record.size_wh is not None:
        try:
            grey_hw = read_file(record.path, policy=policy).grey_hw
        except DecodeError:
            facts.changed = True
        if grey_hw is not None and grey_hw.shape[::-1] != record.size_wh:
            facts.changed, grey_hw = True, None
    if labels.clean:
        facts.shadow = None if grey_hw is None else _deepest_shadow(grey_hw)
        return facts
    masks = _fitting_masks(record, labels, facts, policy.max_pixels)
    if masks:
        _measure_masks(masks, grey_hw, facts, speck_px)
    return facts


def _fitting_masks(
    record: FrameRecord, labels: FrameLabels, facts: _FrameFacts, max_pixels: int
) -> dict[str, Mask]:
    """The masks, unless they cannot belong to the image; then the facts say why."""
    size_wh = record.size_wh or labels.size_wh
    # A label file may claim any size for an image that is not there.
    if size_wh is None or size_wh[0] * size_wh[1] > max_pixels:
        facts.unsized = True
        return {}
    if labels.size_wh is not None and labels.size_wh != size_wh:
        swapped = ", width and height swapped" if labels.size_wh == size_wh[::-1] else ""
        facts.other_size = (
            f"masks of {labels.size_wh[0]} x {labels.size_wh[1]}, image of {size_wh[0]} x"
            f" {size_wh[1]}{swapped}"
        )
        return {}
    try:
        return {
            class_id: decode_rle(rle, size_wh, where=f"type {class_id}")
            for class_id, rle in labels.rle_by_class.items()
        }
    except LabelError as error:
        facts.outside = str(error)
        return {}


def _measure_masks(
    masks: Mapping[str, Mask], grey_hw: Grey | None, facts: _FrameFacts, speck_px: int
) -> None:
    claims = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for mask in masks.values():
        claims += mask & (claims < 255)
    margin = None if grey_hw is None else _margin(grey_hw)
    for class_id, mask in masks.items():
        area_px = int(np.count_nonzero(mask))
        if area_px > WHOLE_FRAME_SHARE * mask.size:
            facts.whole_frame.append((class_id, area_px / mask.size))
        _, numbered, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8))
        boxes, areas = stats[1:, :4], stats[1:, cv2.CC_STAT_AREA]
        facts.regions += len(areas)
        tiny = areas < speck_px
        boxy = (
            (areas > BOX_FILL * boxes[:, 2] * boxes[:, 3])
            & (boxes[:, 2:].min(axis=1) >= BOX_SIDE_PX)
            & (areas <= WHOLE_FRAME_SHARE * mask.size)
        )
        found = [
            _OddRegion(class_id, area, _box(box), -area)
            for area, box in zip(areas.tolist(), boxes.tolist(), strict=True)
        ]
        facts.specks += (replace(found[i], rank=areas[i]) for i in np.flatnonzero(tiny))
        facts.boxes += (found[i] for i in np.flatnonzero(boxy & ~tiny))
        if grey_hw is None:
            continue
        for index in np.argsort(-areas, kind="stable")[:REGIONS_MEASURED].tolist():
            if not tiny[index]:
                # Room for the ring around the region and for the blur that finds its texture.
                window = _window(found[index].bbox_xywh, _RING_PX + _TEXTURE_PX, mask.shape)
                region = numbered[window] == index + 1
                in_margin = margin is not None and bool(margin[window][region].mean() > 0.5)
                _compare(
                    found[index], grey_hw[window], region, claims[window] > 0, in_margin, facts
                )
    facts.labelled_px = int(np.count_nonzero(claims))
    shared = claims > 1
    facts.overlap_px = int(np.count_nonzero(shared))
    if facts.overlap_px:
        facts.overlap_bbox = _box(cv2.boundingRect(shared.view(np.uint8)))
        facts.overlapping_types = [
            (a, b) for a, b in combinations(masks, 2) if (masks[a] & masks[b]).any()
        ]


def _compare(
    odd: _OddRegion,
    grey_hw: Grey,
    region: Mask,
    labelled: Mask,
    in_margin: bool,
    facts: _FrameFacts,
) -> None:
    """One region with the pixels around it; all arrays are the window around the region."""
    mean = float(grey_hw[region].mean())
    if in_margin and mean < DARK_BELOW:
        facts.on_margin.append(replace(odd, text=f", mean grey {mean:.0f}"))
        return
    difference = _difference(grey_hw, region, labelled)
    if difference is not None:
        facts.compared += 1
        if difference < FAINT_DIFFERENCE:
            text = f", difference {difference:.2f}"
            facts.faint.append(replace(odd, text=text, rank=difference))


_RING_PX = 15
_TEXTURE_PX = 9


def _difference(grey_hw: Grey, region: Mask, labelled: Mask) -> float | None:
    """How much a region differs from the ring around it, in brightness and texture together.

    ``hypot(dm, 3 dt)``, with ``dm`` the difference of the mean grey in standard deviations of the
    ring, and ``dt`` the logarithm of the ratio of the fine structure's standard deviations. The
    ring is 15 pixels wide, keeps 3 pixels from every mask and leaves darkness out.

    Returns:
        From 0 up; ``None`` where fewer than 50 pixels of steel surround the region.
    """
    grown = cv2.dilate(region.view(np.uint8), np.ones((2 * _RING_PX + 1,) * 2, np.uint8)) > 0
    kept_off = cv2.dilate(labelled.view(np.uint8), np.ones((7, 7), np.uint8)) > 0
    ring = grown & ~kept_off & (grey_hw >= DARK_BELOW)
    if np.count_nonzero(ring) < 50:
        return None
    grey = grey_hw.astype(np.float32)
    fine = grey - cv2.GaussianBlur(grey, (0, 0), 3)
    # The small additions keep flat steel from making noise of half a grey level look important.
    brightness = abs(float(grey[region].mean() - grey[ring].mean())) / (float(grey[ring].std()) + 2)
    texture = math.log((float(fine[region].std()) + 0.5) / (float(fine[ring].std()) + 0.5))
    return math.hypot(brightness, 3 * texture)


def _margin(grey_hw: Grey) -> Mask | None:
    """Columns and rows that are dark nearly from end to end; ``None`` if none or all are.

    Dark defects on the strip do not fill a column of the frame.
    """
    dark = grey_hw < DARK_BELOW
    margin = np.logical_or(dark.mean(axis=0) > 0.95, (dark.mean(axis=1) > 0.95)[:, None])
    return margin if 0 < np.count_nonzero(margin) < 0.98 * margin.size else None


def _deepest_shadow(grey_hw: Grey) -> tuple[float, Box] | None:
    """How dark the darkest 16 x 16 block of steel is against its surroundings, and where it is.

    At half size, structures between a standard deviation of 2 and of 8 pixels are kept, of these
    the dark side, averaged in blocks of 8. Darkness that reaches the border of the frame lies
    beside the strip and is left out, with its rim. Torn, peeled and broken-out steel throws
    shadows; glints and grease, which clean frames have too, are bright.

    Returns:
        Grey levels and the block in pixels of the frame; ``None`` for a frame without steel.
    """
    half = cv2.resize(grey_hw, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA).astype(
        np.float32
    )
    band = cv2.GaussianBlur(half, (0, 0), 2) - cv2.GaussianBlur(half, (0, 0), 8)
    rows, columns = half.shape[0] // 8, half.shape[1] // 8
    if not rows or not columns:
        return None
    blocks = (slice(0, rows * 8), slice(0, columns * 8))
    shadow = np.maximum(-band[blocks], 0).reshape(rows, 8, columns, 8).mean(axis=(1, 3))
    outside = cv2.dilate(_dark_from_border(half), np.ones((15, 15), np.uint8))
    all_steel = outside[blocks].reshape(rows, 8, columns, 8).max(axis=(1, 3)) == 0
    if not all_steel.any():
        return None
    shadow[~all_steel] = -1
    row, column = divmod(int(shadow.argmax()), columns)
    return float(shadow[row, column]), (16 * column, 16 * row, 16, 16)


def _dark_from_border(half_hw: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Dark areas that reach the border of the frame, 0 and 1; a hole in the strip is none."""
    dark = (cv2.blur(half_hw, (15, 15)) <= 20).astype(np.uint8)
    _, numbered, stats, _ = cv2.connectedComponentsWithStats(dark)
    left, top, width, height = stats[:, :4].T
    reaches = (left == 0) | (top == 0)
    reaches |= (left + width == dark.shape[1]) | (top + height == dark.shape[0])
    reaches[0] = False  # what is not dark
    outside: NDArray[np.uint8] = reaches[numbered].astype(np.uint8)
    return outside


def _window(box: Box, reach: int, shape_hw: tuple[int, ...]) -> tuple[slice, slice]:
    x, y, w, h = box
    return (
        slice(max(y - reach, 0), min(y + h + reach, shape_hw[0])),
        slice(max(x - reach, 0), min(x + w + reach, shape_hw[1])),
    )


def _box(values: Iterable[int]) -> Box:
    x, y, w, h = (int(v) for v in values)
    return x, y, w, h


def _best_iou(a: Mask, b: Mask, shift_xy: tuple[int, int], slack_px: int) -> float:
    """IoU where both frames show the same steel, ``a`` moved by the shift give or take the slack.

    1 where no mask reaches into the common part.
    """
    steps = sorted(range(-slack_px, slack_px + 1), key=abs)
    best = 0.0
    for dy, dx in product(steps, steps):
        x, y = shift_xy[0] + dx, shift_xy[1] + dy
        part_a = a[max(-y, 0) : b.shape[0] - y, max(-x, 0) : b.shape[1] - x]
        part_b = b[max(y, 0) : a.shape[0] + y, max(x, 0) : a.shape[1] + x]
        best = max(best, _iou(part_a, part_b))
        if best >= CONFLICT_IOU:
            break
    return best


def _iou(a: Mask, b: Mask) -> float:
    either = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / either) if either else 1.0


# Turns and families ------------------------------------------------------------------------------

_PATTERN = np.arange(6).reshape(2, 3)  # looks different under each of the eight turns


@cache
def _composed(first: Turn, then: Turn) -> Turn:
    """The one turn that does both."""
    both = turned(turned(_PATTERN, first), then)
    return next(t for t in Turn if np.array_equal(turned(_PATTERN, t), both))


@cache
def _inverse(turn: Turn) -> Turn:
    return next(t for t in Turn if _composed(turn, t) is Turn.NONE)


_Neighbour = tuple[str, Turn]
"""A copy of a frame, and the turn that leads to it."""


def _neighbours(pairs: Iterable[DuplicatePair]) -> dict[str, list[_Neighbour]]:
    found: dict[str, list[_Neighbour]] = defaultdict(list)
    for pair in pairs:
        found[pair.a].append((pair.b, pair.turn))
        found[pair.b].append((pair.a, _inverse(pair.turn)))
    return dict(found)


def _families(pairs: Sequence[DuplicatePair]) -> list[set[str]]:
    neighbours = _neighbours(pairs)
    families: list[set[str]] = []
    seen: set[str] = set()
    for start in neighbours:
        if start in seen:
            continue
        family, queue = {start}, [start]
        while queue:
            for other, _ in neighbours[queue.pop()]:
                if other not in family:
                    family.add(other)
                    queue.append(other)
        seen |= family
        families.append(family)
    return families


def _pair_evidence(pair: DuplicatePair) -> Evidence:
    text = {
        Likeness.SAME_FILE: "the same file",
        Likeness.SAME_PIXELS: "the same pixels",
        Likeness.NEAR: f"similarity {pair.similarity:.3f}",
    }[pair.likeness]
    if pair.shift_xy != (0, 0):
        text += f", shifted by {pair.shift_xy[0]}, {pair.shift_xy[1]} px"
    figures = {"similarity": round(pair.similarity, 4)}
    return Evidence((pair.a, pair.b), text, None, pair.turn, figures)


def _case(image: str, text: str, bbox_xywh: Box | None = None, **figures: float) -> Evidence:
    return Evidence((image,), text, bbox_xywh, None, figures)


# Words -------------------------------------------------------------------------------------------

_PART_WORDS = {"train": "training", "val": "validation", "test": "test"}


def _size(size_wh: tuple[int, int]) -> str:
    return f"{size_wh[0]} x {size_wh[1]}"


def _part_words(part: str) -> str:
    return _PART_WORDS.get(part, f"part {shown(part)}")


def _rank(part: str) -> tuple[int, str]:
    """Training first: what it shares with a later part, the later part has copied."""
    return (list(_PART_WORDS).index(part) if part in _PART_WORDS else len(_PART_WORDS), part)


def _many(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _frames(number: int) -> str:
    return _many(number, "frame", "frames")


def _of_them(number: int, total: int) -> str:
    return "all of them" if number == total else f"{number:,} of them"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _has(number: int) -> str:
    return "has" if number == 1 else "have"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def _turned_share(pairs: Sequence[DuplicatePair]) -> str:
    turns = sum(p.turn is not Turn.NONE for p in pairs)
    if not turns:
        return ""
    return " under a flip or rotation" if turns == len(pairs) else ", some flipped or rotated"
