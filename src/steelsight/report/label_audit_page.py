"""Labels that a network doubts as one HTML file: the frames themselves, the most doubtful first.

The same input gives the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steelsight.defects import DefectClass
from steelsight.evaluation.label_audit import Kind, LabelAudit, Suspect
from steelsight.report.data_page import is_wide
from steelsight.report.overlays import Grey, Mask, draw_labels, encode_jpeg
from steelsight.report.page import PictureBudget, legend, render_page

PICTURE_BYTES = 12_000_000
"""All pictures together, before base64 (which adds a third)."""
WIDE_WH, SQUARE_WH = (1120, 420), (540, 540)

_HEADINGS: Mapping[Kind, tuple[str, str]] = {
    Kind.CLEAN: (
        "Labelled clean, confidently faulty",
        "Is there a defect that nobody marked? Good steel with a watermark or a scale mark?",
    ),
    Kind.ABSENT: (
        "A labelled type is confidently absent",
        "Is it another type, a mask on the wrong frame, or so faint that people disagree?",
    ),
    Kind.UNLABELLED: (
        "A type is confidently there and not labelled",
        "Was a second defect on the frame left out, or is it labelled as another type?",
    ),
    Kind.OUTLINE: (
        "Outlines disagree",
        "The type is there for both: does the mask lie on it, and does it cover all of it?",
    ),
}


@dataclass(frozen=True, slots=True)
class SuspectPicture:
    """A suspect with its present label outlined.

    Attributes:
        jpeg: the picture.
        size_wh: of it, in pixels.
    """

    jpeg: bytes
    size_wh: tuple[int, int]


def draw_suspect(
    grey_hw: Grey, masks: Mapping[str, Mask], classes: Sequence[DefectClass]
) -> SuspectPicture:
    """Draws a frame with its labelled masks by type."""
    height, width = grey_hw.shape
    fit_wh = WIDE_WH if is_wide((width, height)) else SQUARE_WH
    rgb = draw_labels(grey_hw, masks, classes, fit_wh=fit_wh)
    return SuspectPicture(encode_jpeg(rgb), (rgb.shape[1], rgb.shape[0]))


def label_audit_page(
    audit: LabelAudit,
    pictures: Mapping[str, SuspectPicture],
    *,
    title: str,
    classes: Sequence[DefectClass],
    top: int,
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
    facts: Sequence[tuple[str, str]] = (),
    command: str = "",
) -> str:
    """The page, as one HTML text without scripts or links to the outside.

    Args:
        audit: what was found.
        pictures: by image; a suspect without one is listed with its name.
        title: heading.
        classes: types of the data set: ids, names and colours.
        top: how many of the suspects are shown.
        notes: what was left out, one sentence each.
        warnings: what makes the result doubtful, prominently on top.
        facts: of the predictions, by name.
        command: the exact command line.
    """
    names = {c.id: c.name for c in classes}
    counts = audit.counts()
    budget = PictureBudget(PICTURE_BYTES)
    cases: dict[Kind, list[dict[str, object]]] = {}
    for rank, suspect in enumerate(audit.suspects[:top], 1):
        picture = pictures.get(suspect.image)
        case = {
            "rank": rank,
            "image": suspect.image,
            "labelled": _types(suspect, names),
            "said": suspect.sentence(names),
            "further": [s.sentence(names) for s in audit.further.get(suspect.image, ())],
            "doubt": suspect.doubt,
            "uri": budget.embedded(picture.jpeg) if picture else None,
            "size_wh": picture.size_wh if picture else (0, 0),
        }
        cases.setdefault(suspect.kind, []).append(case)
    sections = [
        {
            "id": kind.name.lower(),
            "heading": heading,
            "ask": ask,
            "cases": cases[kind],
            "total": counts[kind],
            "wide": any(is_wide(c["size_wh"]) for c in cases[kind] if c["uri"]),  # type: ignore[arg-type]
        }
        for kind, (heading, ask) in _HEADINGS.items()
        if kind in cases
    ]
    return render_page(
        "label_audit.html.j2",
        title=title,
        frames=audit.frames,
        suspects=len(audit.suspects),
        shown=min(top, len(audit.suspects)),
        counts=[(heading, counts[kind]) for kind, (heading, _) in _HEADINGS.items()],
        sections=sections,
        legend=legend(classes),
        notes=notes,
        warnings=warnings,
        not_checked=list(audit.not_checked.items()),
        facts=facts,
        command=command,
    )


def _types(suspect: Suspect, names: Mapping[str, str]) -> str:
    return ", ".join(names.get(c, c) for c in suspect.labelled) or "clean"
