"""What an audit can find: kinds, severities, why each matters and what to do, and the result.

:mod:`steelsight.data.audit` searches; the page of :mod:`steelsight.report.audit_page` and
``findings.json`` show what it returns.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from steelsight.data.duplicates import Turn


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
class Rule:
    """What holds for a code whatever the data set: how bad it is, why it matters, what to do."""

    severity: Severity
    title: str
    advice: str


_ERROR, _WARNING, _NOTE = Severity
RULES: Mapping[Code, Rule] = {
    Code.LEAK: Rule(
        _ERROR,
        "Leaks between the parts of the split",
        "What is measured there is memory, not skill. Split again so that copies stay together,"
        " and publish no figure from this split.",
    ),
    Code.CLEAN_AND_FAULTY: Rule(
        _ERROR,
        "Copies labelled clean and faulty",
        "One of the two labels is wrong, and a network that learns both learns neither. Look at"
        " both, and correct or drop one.",
    ),
    Code.OTHER_TYPES: Rule(
        _ERROR,
        "Copies labelled with other types",
        "A type was forgotten or confused on one of them. Look at both, and correct one.",
    ),
    Code.OTHER_MASKS: Rule(
        _ERROR,
        "Copies with other masks",
        "At least one mask of each pair is incomplete, wrong, or belongs to another frame. Look at"
        " both, and keep the right one.",
    ),
    Code.BROKEN_LABEL: Rule(
        _ERROR,
        "Broken labels",
        "They are left out, because a frame that lost a label would pass for good steel. Correct"
        " each line, then check again.",
    ),
    Code.MISSING_IMAGE: Rule(
        _ERROR,
        "Missing images",
        "What was labelled there is lost. Copy the files into the image folder, or take these"
        " frames out of the labels.",
    ),
    Code.UNREADABLE_IMAGE: Rule(
        _ERROR,
        "Unreadable images",
        "A network would learn from damage. Fetch the files again, or remove them and their"
        " labels.",
    ),
    Code.MASK_OF_OTHER_SIZE: Rule(
        _ERROR,
        "Masks of another size than their image",
        "Every pixel of them lies in the wrong place. Use the images that were labelled, or scale"
        " masks and images together.",
    ),
    Code.MASK_OUTSIDE: Rule(
        _ERROR,
        "Masks outside their image",
        "They were made for a larger image, so that the rest of them is misplaced too. Use the"
        " images that were labelled, or export the labels again.",
    ),
    Code.EXACT_COPIES: Rule(
        _WARNING,
        "Exact copies",
        "They count several times in training, and figures look surer than they are. Keep one of"
        " each, or let the split keep families together.",
    ),
    Code.NEAR_COPIES: Rule(
        _WARNING,
        "Near copies",
        "In training and test at once they make the test too easy. Let the split keep families"
        " together.",
    ),
    Code.LIKELY_FAULTY: Rule(
        _WARNING,
        "Labelled clean, the model says faulty",
        "Look at each: the label or the model is wrong. If the model learned from these frames, it"
        " repeats wrong labels, and some are not listed here.",
    ),
    Code.LIKELY_CLEAN: Rule(
        _WARNING,
        "Labelled faulty, the model says clean",
        "Look at each: the label or the model is wrong. If the model learned from these frames, it"
        " repeats wrong labels, and some are not listed here.",
    ),
    Code.STRIKING_CLEAN: Rule(
        _WARNING,
        "Labelled clean, but striking",
        "It is a missed defect, or an unusual but good piece of strip (its end, a pattern). Look at"
        " each: a defect that is labelled clean is a lesson to overlook it.",
    ),
    Code.MASK_ON_MARGIN: Rule(
        _WARNING,
        "Masks beside the strip",
        "No steel is there: the mask is shifted, mirrored or belongs to another frame. Check how"
        " images and masks were paired.",
    ),
    Code.WHOLE_FRAME_MASK: Rule(
        _WARNING,
        "Masks over the whole frame",
        "Perhaps background and defect are exchanged, or the whole frame was marked to get it over"
        " with. Look at them.",
    ),
    Code.OVERLAPPING_TYPES: Rule(
        _WARNING,
        "Overlapping types",
        "Formats with one type per pixel lose one of them. Decide which type wins, or keep a format"
        " with one mask per type.",
    ),
    Code.TYPE_MISSING_IN_PART: Rule(
        _WARNING,
        "Types missing in a part of the split",
        "What is not in training is not learned, and what is not in the test is not measured. Split"
        " again, stratified by type.",
    ),
    Code.COLOUR_MIXED: Rule(
        _WARNING,
        "Coloured and grey frames",
        "A stripe or block of colour is damage to the file; a whole frame comes from another"
        " camera. Look at them, and fetch damaged files again.",
    ),
    Code.BLANK: Rule(
        _WARNING,
        "Blank frames",
        "Lens cap, no light, or no strip. Take them out: as clean frames they teach that darkness"
        " is good steel.",
    ),
    Code.OTHER_SIZE: Rule(
        _WARNING,
        "Frame sizes",
        "They are cropped, scaled or from another camera, and defects on them have another scale."
        " Check that one pixel is equally large on all frames, and use the original ones.",
    ),
    Code.SPECKS: Rule(
        _NOTE,
        "Specks",
        "Mostly slips of the brush, and below what a network can find. Drop them unless such small"
        " defects matter.",
    ),
    Code.FAINT_MASKS: Rule(
        _NOTE,
        "Masks where nothing is to be seen",
        "A few per cent are defects that only a trained eye sees; many mean that masks are shifted."
        " Look at the first ones.",
    ),
    Code.BOX_MASKS: Rule(
        _NOTE,
        "Boxes instead of masks",
        "A box drawn around a defect marks good steel as faulty. Fine where the defect is a bar;"
        " else draw its outline.",
    ),
    Code.TYPE_WITHOUT_MASK: Rule(
        _NOTE,
        "Types without a mask",
        "They teach what is on a frame, not where. Draw the masks, or keep these frames out of"
        " training the segmenter.",
    ),
    Code.DISPUTED: Rule(
        _NOTE,
        "Disputed frames",
        "They count neither as clean nor as faulty. Keep them out of training and tests until"
        " somebody has decided.",
    ),
    Code.UNLABELLED: Rule(
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
    bbox_xywh: tuple[int, int, int, int] | None = None
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
        return RULES[self.code].title

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


def finding(
    code: Code,
    told: str,
    evidence: Iterable[Evidence],
    figures: Mapping[str, Any],
    *,
    images: Iterable[str] | None = None,
    severity: Severity | None = None,
) -> Finding:
    """A finding by the rule of its code.

    Args:
        code: its kind.
        told: what and how many, without the full stop.
        evidence: the cases, the worst first.
        figures: the numbers of the sentence and more.
        images: all frames concerned; those of the evidence unless given.
        severity: that of the rule unless given.
    """
    rule, cases = RULES[code], tuple(evidence)
    concerned = (i for case in cases for i in case.images) if images is None else images
    return Finding(
        code,
        severity or rule.severity,
        f"{told}.",
        rule.advice,
        tuple(sorted(set(concerned))),
        figures,
        cases,
    )


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
            return f"{counted}: this data set {listed(worst)}."
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


def listed(words: Sequence[str]) -> str:
    """In a sentence: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
