"""An ``Inspection`` as rows of the store, and back without any loss."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import apsw

from steelsight.defects import Defect, Inspection, Reason, Verdict

STEPS = ("decode", "gate", "segment", "decide")
"""Keys of ``Inspection.milliseconds`` that have a column."""

Value = str | bytes | int | float | None


class InspectionRows(NamedTuple):
    """What is written of one inspection; ids of other tables are added by the writer."""

    frame_sha256: bytes | None
    engine: str
    values: tuple[Value, ...]
    """In the order of ``INSPECTION_COLUMNS``."""
    defects: list[tuple[Value, ...]]
    """In the order of ``DEFECT_COLUMNS``."""


INSPECTION_COLUMNS = (
    "verdict, reason, n_defects, defect_area_px, faulty_probability, width, height, "
    "class_probabilities, notes, detail, decode_ms, gate_ms, segment_ms, decide_ms"
)
DEFECT_COLUMNS = (
    "ordinal, class_id, edge_px, area_px, x, y, w, h, length_px, width_px, orientation_deg, "
    "probability, rle"
)


def stored(text: str) -> str | bytes:
    """Text for a column of type ANY: names of files need not be valid Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")
    return text


def shown(value: str | bytes) -> str:
    """The text that ``stored`` was given."""
    return value if isinstance(value, str) else value.decode(errors="surrogatepass")


def rows_of(inspection: Inspection) -> InspectionRows:
    """Takes an inspection apart; numpy scalars become plain numbers.

    All but ``image``, ``model``, ``decision`` and keys of ``milliseconds`` beyond ``STEPS``. A
    minus before a zero is lost: SQLite has none.

    Raises:
        ValueError: a number is NaN or infinite, a hash is none, or defects lie on no frame.
    """
    size_wh = inspection.size_wh
    if inspection.defects and size_wh is None:
        raise ValueError(f"{inspection.image}: defects need the size of their frame")
    frame_sha256 = bytes.fromhex(inspection.sha256) if inspection.sha256 is not None else None
    if frame_sha256 is not None and (
        len(frame_sha256) != 32 or frame_sha256.hex() != inspection.sha256
    ):
        raise ValueError(f"{inspection.image}: expected a sha256, got {inspection.sha256!r}")
    width = int(size_wh[0]) if size_wh else 0
    defects = [_defect_row(i, defect, width) for i, defect in enumerate(inspection.defects)]
    milliseconds = inspection.milliseconds
    scores = {k: _finite(v) for k, v in inspection.class_probabilities.items()}
    values: tuple[Value, ...] = (
        inspection.verdict.value,
        inspection.reason.value if inspection.reason else None,
        len(defects),
        sum(int(defect.area_px) for defect in inspection.defects),
        None if inspection.faulty_probability is None else _finite(inspection.faulty_probability),
        *((int(size_wh[0]), int(size_wh[1])) if size_wh else (None, None)),
        json.dumps(scores, separators=(",", ":")),
        json.dumps(list(inspection.notes), separators=(",", ":")),
        None if inspection.detail is None else stored(inspection.detail),
        *(float(milliseconds[k]) if k in milliseconds else None for k in STEPS),
    )
    return InspectionRows(frame_sha256, inspection.engine, values, defects)


def _defect_row(ordinal: int, defect: Defect, frame_width: int) -> tuple[Value, ...]:
    x, y, w, h = map(int, defect.bbox_xywh)
    return (
        ordinal,
        defect.class_id,
        min(x, frame_width - (x + w)),
        int(defect.area_px),
        x,
        y,
        w,
        h,
        _finite(defect.length_px),
        _finite(defect.width_px),
        _finite(defect.orientation_deg),
        _finite(defect.probability),
        defect.rle,
    )


def _finite(value: float) -> float:
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value}: no result line can hold it")
    return value


_READ = f"""
SELECT f.sha256, m.name, substr(d.sha256, 1, 8), u.engine, {INSPECTION_COLUMNS}
FROM inspections i JOIN models m ON m.id = i.model JOIN decisions d ON d.id = i.decision
  JOIN setups u ON u.id = i.setup LEFT JOIN frames f ON f.id = i.frame
WHERE i.id = ?
"""  # noqa: S608 - constants
_READ_DEFECTS = f"""
SELECT {DEFECT_COLUMNS} FROM defects WHERE inspection = ? ORDER BY ordinal
"""  # noqa: S608 - constants


def read_inspection(connection: apsw.Connection, inspection_id: int, image: str) -> Inspection:
    """Puts an inspection together again.

    Raises:
        LookupError: there is none of this id.
        ValueError: the rows contradict each other: somebody changed them, or a newer version
            wrote them.
    """
    row = connection.execute(_READ, (inspection_id,)).fetchone()
    if row is None:
        raise LookupError(inspection_id)
    sha256, model, decision, engine, verdict, reason, n_defects, _, faulty, *rest = row
    width, height, scores, notes, detail, *milliseconds = rest
    defects = tuple(map(defect_of, connection.execute(_READ_DEFECTS, (inspection_id,))))
    if len(defects) != n_defects:
        raise ValueError(f"{n_defects} defects were written, {len(defects)} are there")
    class_probabilities: Mapping[str, float] = json.loads(scores)
    return Inspection(
        image=image,
        sha256=None if sha256 is None else sha256.hex(),
        verdict=Verdict(verdict),
        reason=None if reason is None else Reason(reason),
        detail=None if detail is None else shown(detail),
        faulty_probability=faulty,
        class_probabilities=class_probabilities,
        defects=defects,
        size_wh=None if width is None else (width, height),
        model=model,
        decision=decision,
        engine=engine,
        milliseconds={k: v for k, v in zip(STEPS, milliseconds, strict=True) if v is not None},
        notes=tuple(json.loads(notes)),
    )


def defect_of(row: tuple[Any, ...]) -> Defect:
    """A defect from its columns, in the order of ``DEFECT_COLUMNS``."""
    _, class_id, _, area_px, x, y, w, h, length_px, width_px, angle_deg, probability, rle = row
    box = (x, y, w, h)
    return Defect(class_id, area_px, box, length_px, width_px, angle_deg, probability, rle)
