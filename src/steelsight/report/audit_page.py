"""The audit of a data set as one HTML file: self-contained, offline, without scripts.

A verdict on top, a table of findings, and for each finding the frames themselves: copies beside one
another with their labels outlined, specks enlarged, suspects whole. How many pictures are shown is
bounded, and the page says how many of how many; every frame concerned is in the JSON.

The same input gives the same bytes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from steelsight.data.catalog import Catalog, FrameRecord
from steelsight.data.duplicates import Duplicates, Turn, turned
from steelsight.data.findings import Audit, Code, Evidence, Finding, Severity
from steelsight.errors import DecodeError, LabelError
from steelsight.imaging import read_file
from steelsight.masks import decode_rle
from steelsight.report.data_page import TURN_WORDS, is_wide, label_classes
from steelsight.report.overlays import Box, Grey, Mask, Rgb, draw_labels, encode_jpeg
from steelsight.report.page import PictureBudget, legend, render_page, write_page
from steelsight.report.svg import visible


@dataclass(frozen=True, slots=True)
class AuditPageLimits:
    """How much is shown; the page says how many of how many."""

    cases: Mapping[Severity, int] = field(
        default_factory=lambda: {Severity.ERROR: 12, Severity.WARNING: 10, Severity.NOTE: 8}
    )
    """Pictured cases per finding."""
    lines: int = 200
    """Listed lines or names per finding."""
    name_characters: int = 160
    """Longer names are cut in the middle, ..."""
    line_characters: int = 800
    """... and longer lines."""
    picture_bytes: int = 7_500_000
    """All pictures together, before base64 (which adds a third)."""
    pair_wh: tuple[int, int] = (400, 400)
    """Each of two frames beside one another, in pixels."""
    wide_wh: tuple[int, int] = (1120, 420)
    """Wide frames, and frames alone."""
    detail_px: int = 320
    """Longer side of an enlarged detail."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame, or a part of it, as the page shows it."""

    name: str
    label: str
    uri: str | None
    size_wh: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Case:
    """One case of a finding with its pictures."""

    text: str
    pictures: tuple[Picture, ...]


def write_audit_page(
    audit: Audit,
    catalog: Catalog,
    duplicates: Duplicates,
    path: Path,
    *,
    title: str,
    source: str,
    command: str,
    created: str,
    files: Mapping[str, str] | None = None,
    limits: AuditPageLimits | None = None,
) -> None:
    """Writes the page to ``path``: first beside it, then replaced at once.

    Frames that are shown are decoded again.

    Args:
        audit: what was found.
        catalog: the scanned frames.
        duplicates: the families among them.
        path: the HTML file; its folder is made.
        title: heading, such as the name of the data set.
        source: where the data set lies, in words or as a path.
        command: the exact command line.
        created: ISO 8601 with time zone.
        files: what lies beside the page: text -> relative path, such as the JSON.
        limits: how much is shown.

    Raises:
        InputError: the file cannot be written.
    """
    page = _Page(catalog, limits or AuditPageLimits())
    sections = [(finding, page.section(finding)) for finding in audit.findings]
    text = render_page(
        "audit.html.j2",
        audit=audit,
        counts=audit.counts,
        severities={s: audit.count(s) for s in Severity},
        sections=sections,
        classes=catalog.label_set.classes,
        families=sorted(Counter(map(len, duplicates.groups)).items()),
        run={
            "title": title,
            "source": source,
            "command": command,
            "created": created,
            "files": files or {},
        },
    )
    write_page(path, text)


_ORDER: Mapping[Code, str] = {
    Code.OTHER_MASKS: "the worst first",
    Code.NEAR_COPIES: "the least similar first",
    Code.LIKELY_FAULTY: "the most probable first",
    Code.LIKELY_CLEAN: "the least probable first",
    Code.STRIKING_CLEAN: "the most striking first",
    Code.MASK_ON_MARGIN: "the largest first",
    Code.WHOLE_FRAME_MASK: "the largest first",
    Code.OVERLAPPING_TYPES: "the largest first",
    Code.SPECKS: "the smallest first",
    Code.FAINT_MASKS: "the faintest first",
    Code.BOX_MASKS: "the largest first",
}
"""Findings whose first cases are the most telling; of others, some from all over are shown."""
_DETAILS = frozenset({Code.SPECKS, Code.FAINT_MASKS, Code.BOX_MASKS, Code.OVERLAPPING_TYPES})
"""Shown as an enlarged part of the frame."""
_TEXT_ONLY = frozenset(
    {Code.BROKEN_LABEL, Code.MISSING_IMAGE, Code.UNREADABLE_IMAGE, Code.TYPE_MISSING_IN_PART}
)
"""There is no picture of these."""


class _Page:
    """Chooses and draws what is shown, until the budget for pictures is spent."""

    def __init__(self, catalog: Catalog, limits: AuditPageLimits) -> None:
        self.limits = limits
        self._records = {record.image: record for record in catalog.records}
        self._classes = catalog.label_set.classes
        self._drawn_as = label_classes(catalog.label_set.classes)
        self._policy = catalog.policy
        self._budget = PictureBudget(limits.picture_bytes)
        self._drawn: set[str] = set()
        """Types outlined in the present section."""

    def section(self, finding: Finding) -> dict[str, Any]:
        """What the template needs beside the finding itself."""
        cases: list[Case] = []
        self._drawn.clear()
        order = _ORDER.get(finding.code, "taken from the whole list")
        if finding.code not in _TEXT_ONLY:
            limit = self.limits.cases[finding.severity]
            if any(len(e.images) == 2 and self._is_wide(e.images[1]) for e in finding.evidence[:1]):
                limit = -(-limit // 2)  # one above the other they take a screen each
            chosen = finding.evidence[:limit]
            if finding.code not in _ORDER and len(finding.evidence) > limit:
                places = np.linspace(0, len(finding.evidence) - 1, limit).astype(int)
                chosen = tuple(finding.evidence[i] for i in places)
            for evidence in chosen:
                case = self._case(finding.code, evidence)
                if case.pictures and all(p.uri is None for p in case.pictures):
                    continue  # the budget is spent, or the file is gone
                cases.append(case)
        wide = any(is_wide(p.size_wh) for c in cases for p in c.pictures)
        listed = [
            (tuple(map(self._short, e.images)), self._line(e.text)) for e in finding.evidence
        ] or [((self._short(image),), "") for image in finding.images]
        return {
            "cases": cases,
            "legend": self._legend(),
            "layout": "detail" if finding.code in _DETAILS else "wide" if wide else "square",
            "paired": any(len(c.pictures) == 2 for c in cases),
            "turned": any(e.turn not in (None, Turn.NONE) for e in finding.evidence),
            "order": order,
            "total": len(finding.evidence),
            "lines": listed[: self.limits.lines],
            "lines_total": len(listed),
            "parts": _parts_table(finding, {c.id: c.name for c in self._classes}),
            "sizes": list(finding.figures.get("frames_by_size", {}).items())[:12],
        }

    def _legend(self) -> list[tuple[str, str]]:
        """Of the types outlined in this section."""
        samples = [sample for _, sample in legend(self._drawn_as)]
        return [
            (f"type {c.name}", sample)
            for c, sample in zip(self._classes, samples, strict=True)
            if c.id in self._drawn
        ]

    def _case(self, code: Code, evidence: Evidence) -> Case:
        text = evidence.text
        if code is Code.COLOUR_MIXED:
            text += ", shown in grey"
        turn = evidence.turn or Turn.NONE
        if len(evidence.images) == 2 and turn is not Turn.NONE:
            side = "left" if not self._is_wide(evidence.images[1]) else "upper"
            text = f"{text + '; ' if text else ''}the {side} one is shown {TURN_WORDS[turn]}"
        pictures = []
        for number, image in enumerate(evidence.images):
            record = self._records.get(image)
            if record is None:
                continue
            if code in _DETAILS and evidence.bbox_xywh:
                pictures.append(self._detail(record, evidence.bbox_xywh))
            else:
                paired = len(evidence.images) == 2
                fit_wh = self.limits.wide_wh
                if paired and not self._is_wide(image):
                    fit_wh = self.limits.pair_wh
                turn_here = turn if paired and number == 0 else Turn.NONE
                marker = evidence.bbox_xywh if code is Code.STRIKING_CLEAN else None
                pictures.append(self._whole(record, fit_wh, turn_here, marker))
        return Case(self._line(text), tuple(pictures))

    def _is_wide(self, image: str) -> bool:
        record = self._records.get(image)
        size_wh = record.size_wh if record else None
        return size_wh is not None and is_wide(size_wh)

    def _whole(
        self, record: FrameRecord, fit_wh: tuple[int, int], turn: Turn, marker: Box | None
    ) -> Picture:
        pixels = self._read(record)
        if pixels is None:
            return self._encoded(record, None)
        grey = turned(pixels[0], turn)
        masks = {c: turned(m, turn) for c, m in pixels[1].items()}
        if marker is not None:
            x, y, w, h = marker
            marker = (x - w, y - h, 3 * w, 3 * h)
        return self._encoded(record, self._draw(grey, masks, fit_wh, marker))

    def _detail(self, record: FrameRecord, bbox_xywh: Box) -> Picture:
        """The box with some surroundings; small ones enlarged so that single pixels show."""
        pixels = self._read(record)
        if pixels is None:
            return self._encoded(record, None)
        grey, masks = pixels
        x, y, w, h = bbox_xywh
        side = max(64, round(1.5 * max(w, h)))
        window = (
            _span(y + h // 2, max(side, h), grey.shape[0]),
            _span(x + w // 2, max(side, w), grey.shape[1]),
        )
        shown = grey[window]
        inside = {c: m[window] for c, m in masks.items()}
        limit_px = self.limits.detail_px
        scale = limit_px // max(shown.shape)
        if scale < 2:
            return self._encoded(record, self._draw(shown, inside, (limit_px, limit_px)))
        shown = shown.repeat(scale, axis=0).repeat(scale, axis=1)
        inside = {c: m.repeat(scale, axis=0).repeat(scale, axis=1) for c, m in inside.items()}
        return self._encoded(record, self._draw(shown, inside, None))

    def _read(self, record: FrameRecord) -> tuple[Grey, dict[str, Mask]] | None:
        """Pixels and masks; ``None`` without a picture or without room for it."""
        if record.path is None or record.size_wh is None or self._budget.exceeded:
            return None
        try:
            grey = read_file(record.path, policy=self._policy).grey_hw
        except DecodeError:
            return None  # changed since the scan
        labels, masks = record.labels, {}
        size_wh = grey.shape[1], grey.shape[0]
        if labels is not None and labels.size_wh in (None, size_wh):
            for class_id, rle in labels.rle_by_class.items():
                try:
                    masks[class_id] = decode_rle(rle, size_wh)
                except LabelError:
                    continue  # a finding of its own
        return grey, masks

    def _draw(
        self,
        grey: Grey,
        masks: Mapping[str, Mask],
        fit_wh: tuple[int, int] | None,
        marked_xywh: Box | None = None,
    ) -> Rgb:
        self._drawn.update(class_id for class_id, mask in masks.items() if mask.any())
        return draw_labels(
            np.ascontiguousarray(grey),
            {c: np.ascontiguousarray(m) for c, m in masks.items()},
            self._drawn_as,
            fit_wh=fit_wh,
            named=False,  # the caption and the legend name the types
            marked_xywh=marked_xywh,
        )

    def _encoded(self, record: FrameRecord, rgb: Rgb | None) -> Picture:
        uri = None if rgb is None else self._budget.embedded(encode_jpeg(rgb))
        size_wh = (0, 0) if rgb is None or uri is None else (rgb.shape[1], rgb.shape[0])
        return Picture(self._short(record.image), self._label(record), uri, size_wh)

    def _label(self, record: FrameRecord) -> str:
        labels = record.labels
        if labels is None:
            return "no label"
        names = {c.id: c.name for c in self._classes}
        types = [f"type {names.get(c, c)}" for c in labels.rle_by_class]
        types += [f"type {names.get(c, c)} (no mask)" for c in labels.types_without_mask]
        said = ", ".join(types) or "clean"
        return f"{said}, disputed" if labels.disputed else said

    def _short(self, name: str) -> str:
        return _bounded(name, self.limits.name_characters)

    def _line(self, text: str) -> str:
        return _bounded(text, self.limits.line_characters)


def _bounded(text: str, characters: int) -> str:
    """Readable, and of bounded length."""
    text, half = visible(text), characters // 2
    return text if len(text) <= characters else f"{text[:half]} … {text[-half:]}"


def _span(centre: int, length: int, end: int) -> slice:
    start = min(max(centre - length // 2, 0), max(end - length, 0))
    return slice(start, min(start + length, end))


def _parts_table(finding: Finding, names: Mapping[str, str]) -> Sequence[Sequence[str]]:
    """Rows of the table types x parts, the header first; empty for other findings."""
    by_part = finding.figures.get("frames_by_part_and_type")
    if not by_part:
        return []
    types = [c for c in names if any(c in of for of in by_part.values())]
    rows = [["Type", *by_part]]
    rows += [[names[c], *(f"{of.get(c, 0):,}" for of in by_part.values())] for c in types]
    return rows
