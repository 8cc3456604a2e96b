"""Asks a store: read-only, any number at once, never in the way of the writer.

A row is a result as a run's lists show it: an inspection under a name. What several runs saw under
one name is one row, that of the last run; inspections that no run refers to any more are in none.
Rows are streamed; while they are, they show the store as it was when they were asked for, and its
log grows: nobody should stop in the middle of a list for long.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import apsw

from steelsight.defects import Defect, Inspection, Reason, Verdict
from steelsight.errors import InputError
from steelsight.store.rows import DEFECT_COLUMNS, Value, defect_of, read_inspection, shown, stored
from steelsight.store.schema import explained, open_reader
from steelsight.store.store import Run


class Sort(StrEnum):
    """Orders of results."""

    RUN = "run"
    """As they were given: by run, and by position in it."""
    NEWEST = "newest"
    """Last added first."""
    FAULTY = "faulty"
    """Highest ``faulty_probability`` first, those without last."""
    AREA = "area"
    """Largest sum of defect areas first."""
    DEFECTS = "defects"
    """Most defects first."""


_ORDERS = {
    Sort.RUN: "s.run, s.position, s.id",
    Sort.NEWEST: "s.inspection DESC, s.run DESC, s.id DESC",
    Sort.FAULTY: "i.faulty_probability DESC NULLS LAST, s.id",
    Sort.AREA: "i.defect_area_px DESC, s.id",
    Sort.DEFECTS: "i.n_defects DESC, s.id",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which results are asked for; all that is given must hold.

    Attributes:
        verdict: of the machine.
        reason: of an UNKNOWN or NG.
        class_id: a defect of this type.
        coil: its name.
        run: its id.
        name: of the frame; a pattern with ``*``, ``?`` and ``[...]``, upper and lower case differ.
        since_ms: inspected at or after this time, by the clock of the machine that inspected.
        within_edge_mm: a defect (of ``class_id``, if given) whose box is so near to the left or
            right side of its frame, by the scale of the run.
        mm_per_px: scale of runs that have none.
        overruled: whether a person's last verdict is another one than the machine's.
    """

    verdict: Verdict | None = None
    reason: Reason | None = None
    class_id: str | None = None
    coil: str | None = None
    run: int | None = None
    name: str | None = None
    since_ms: int | None = None
    within_edge_mm: float | None = None
    mm_per_px: float | None = None
    overruled: bool | None = None


class InspectionRow(NamedTuple):
    """A result in a list."""

    id: int
    """Of the inspection."""
    name: str
    run: int
    verdict: Verdict
    reason: Reason | None
    faulty_probability: float | None
    n_defects: int
    defect_area_px: int
    coil: str | None
    model: str
    decision: str
    engine: str
    inspected_ms: int
    overruled_verdict: Verdict | None
    """Of the person who spoke last, if it is another one; with ``overruled_by`` and its note."""
    overruled_by: str | None
    overruled_note: str | None


class DefectRow(NamedTuple):
    """A defect in a list."""

    inspection: int
    ordinal: int
    """Place among the defects of its inspection, from 0."""
    name: str
    run: int
    coil: str | None
    verdict: Verdict
    inspected_ms: int
    edge_px: int
    edge_mm: float | None
    """``None`` without a scale."""
    defect: Defect


class CoilRow(NamedTuple):
    """What lies on a coil; each frame counts once, by its last inspection."""

    coil: str
    seen: int
    ng: int
    unknown: int
    n_defects: int
    defect_area_px: int


class RunRow(NamedTuple):
    """A run and its facts; ``finished_ms`` is ``None`` while it runs, or if it was killed."""

    id: int
    run: Run
    started_ms: int
    finished_ms: int | None
    complete: bool


class CountsRow(NamedTuple):
    """Results of a run: ``seen == ok + ng + unknown``."""

    run: int
    seen: int
    ok: int
    ng: int
    unknown: int


class ReviewRow(NamedTuple):
    """A person's verdict beside the machine's."""

    id: int
    inspection: int
    name: str | None
    """``None`` if the name stands for a later inspection now."""
    machine: Verdict
    verdict: Verdict
    who: str
    reviewed_ms: int
    note: str
    labels: dict[str, str] | None
    """RLE by type; ``None`` if the person said nothing of regions."""

    @property
    def overruled(self) -> bool:
        """Whether the person says something else."""
        return self.verdict is not self.machine


@dataclass(frozen=True, slots=True)
class Sighting:
    """Where an inspection was seen."""

    run: int
    position: int
    name: str
    origin: str
    coil: str | None


@dataclass(frozen=True, slots=True)
class Complete:
    """All that is stored of an inspection, enough to repeat it.

    Attributes:
        id: of the inspection.
        key: ``None`` if it is to be inspected again.
        inspection: as it was added, under the name of its last sighting (``""`` without any).
        inspected_ms: when, by the clock of that machine.
        model_sha256: of the manifest.
        manifest: its text.
        bundle_folder: where the bundle lay when it was last used.
        decision_sha256: of the decision file.
        decision: its text.
        settings: JSON of what else decided.
        run: the last one that saw it, with its facts; ``None`` if none refers to it any more.
        sightings: where it was seen, last run first.
        reviews: what people said, in their order.
    """

    id: int
    key: bytes | None
    inspection: Inspection
    inspected_ms: int
    model_sha256: str
    manifest: str
    bundle_folder: str
    decision_sha256: str
    decision: str
    settings: str
    run: RunRow | None
    sightings: tuple[Sighting, ...]
    reviews: tuple[ReviewRow, ...]

    @property
    def origin(self) -> str | None:
        """Where the bytes can be read again, by the last sighting."""
        return self.sightings[0].origin if self.sightings else None


class Results:
    """Questions to a store; a context manager, for one thread at a time.

    Args:
        path: of the file. Where its folder cannot be written, it must not be open anywhere.

    Raises:
        StoreError: there is none, it is damaged, or of another version. Every question may raise
            it, too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = open_reader(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends also what is being streamed."""
        self._connection.close(force=True)

    def known(self, key: bytes) -> Inspection | None:
        """The stored inspection of a key, as ``Store.known`` gives it."""
        with self._errors():
            found = self._connection.execute("SELECT id FROM inspections WHERE key = ?", (key,)).get
            return None if found is None else read_inspection(self._connection, found, "")

    def inspections(
        self,
        where: Filter = Filter(),
        *,
        sort: Sort = Sort.RUN,
        limit: int | None = None,
        offset: int = 0,
    ) -> Iterator[InspectionRow]:
        """Results, one by one.

        Raises:
            InputError: ``within_edge_mm`` is asked of a run without scale.
        """
        conditions, values = self._conditions(where)
        order = _ORDERS[sort]
        sql = _INSPECTIONS.format(
            where=conditions, order=order, joined=_joined(f"{conditions} {order}")
        )
        values |= {"limit": -1 if limit is None else limit, "offset": offset}
        with self._errors():
            yield from map(_inspection_row, self._rows(sql, values))

    def count_inspections(self, where: Filter = Filter()) -> int:
        """How many rows ``inspections`` has without a limit; raises as it does."""
        conditions, values = self._conditions(where)
        return int(
            self._one(
                _COUNT_INSPECTIONS.format(where=conditions, joined=_joined(conditions)), values
            )[0]
        )

    def defects(
        self,
        where: Filter = Filter(),
        *,
        limit: int | None = None,
        offset: int = 0,
    ) -> Iterator[DefectRow]:
        """Defects of results, one by one, in the order in which their inspections were added.

        ``class_id`` and ``within_edge_mm`` hold for the defect itself.

        Raises:
            InputError: ``within_edge_mm`` is asked of a run without scale.
        """
        conditions, values = self._conditions(where, of_defects=True)
        sql = _DEFECTS.format(where=conditions, joined=_joined(conditions))
        values |= {"limit": -1 if limit is None else limit, "offset": offset}
        yield from map(_defect_row, self._rows(sql, values))

    def count_defects(self, where: Filter = Filter()) -> int:
        """How many rows ``defects`` has without a limit; raises as it does."""
        conditions, values = self._conditions(where, of_defects=True)
        return int(
            self._one(_COUNT_DEFECTS.format(where=conditions, joined=_joined(conditions)), values)[
                0
            ]
        )

    def worst_coils(self, since_ms: int | None = None, limit: int | None = 20) -> list[CoilRow]:
        """Coils with most NG frames first, then with most defects.

        Args:
            since_ms: only what was inspected at or after this time.
            limit: how many.
        """
        values: dict[str, Value] = {
            "since_ms": -(1 << 62) if since_ms is None else since_ms,
            "limit": -1 if limit is None else limit,
        }
        rows = self._rows(_WORST_COILS, values)
        return [CoilRow(shown(name), *rest) for name, *rest in rows]

    def counts(self) -> list[CountsRow]:
        """Results of each run, in the order of the runs."""
        return [CountsRow(*row) for row in self._rows(_COUNTS, {})]

    def runs(self) -> list[RunRow]:
        """All runs, in the order in which they were begun."""
        return self._runs()

    def _runs(self, run: int | None = None) -> list[RunRow]:
        return list(map(_run_row, self._rows(_RUNS, {"run": run})))

    def reviews(self) -> Iterator[ReviewRow]:
        """All that people said and did not take back, in its order."""
        return self._reviews("1", {})

    def inspection(self, inspection_id: int) -> Complete:
        """All that is stored of one inspection.

        Raises:
            InputError: there is none of this id.
        """
        with self._errors():
            # One state of the store for all parts: a writer may remove it in between.
            self._connection.execute("SAVEPOINT complete")
            try:
                return self._complete(inspection_id)
            except LookupError:
                raise InputError(
                    f"expected an inspection in {self.path}, there is no number {inspection_id}; "
                    "`steelsight results` lists them"
                ) from None
            finally:
                self._connection.execute("RELEASE complete")

    def _complete(self, inspection_id: int) -> Complete:
        of_it: dict[str, Value] = {"id": inspection_id}
        sightings = tuple(map(_sighting, self._rows(_SIGHTINGS, of_it)))
        name = sightings[0].name if sightings else ""
        inspection = read_inspection(self._connection, inspection_id, name)
        key, inspected_ms, model_sha256, manifest, folder, *decided = self._one(_COMPLETE, of_it)
        decision_sha256, decision, settings = decided
        return Complete(
            id=inspection_id,
            key=key,
            inspection=inspection,
            inspected_ms=inspected_ms,
            model_sha256=model_sha256,
            manifest=manifest,
            bundle_folder=shown(folder),
            decision_sha256=decision_sha256,
            decision=decision,
            settings=settings,
            run=self._runs(sightings[0].run)[0] if sightings else None,
            sightings=sightings,
            reviews=tuple(self._reviews("v.inspection = :id", of_it)),
        )

    def _reviews(self, condition: str, values: dict[str, Value]) -> Iterator[ReviewRow]:
        return map(_review_row, self._rows(_REVIEWS.format(where=condition), values))

    def _conditions(
        self, where: Filter, *, of_defects: bool = False
    ) -> tuple[str, dict[str, Value]]:
        """SQL on ``s`` (sightings), ``i`` (inspections) and ``d`` (defects), and its values."""
        given: dict[str, Any] = {
            name: value for name in _CONDITIONS if (value := getattr(where, name)) is not None
        }
        values: dict[str, Value] = {
            name: stored(value) if isinstance(value, str) else value
            for name, value in given.items()
        }
        values["mm_per_px"] = where.mm_per_px
        conditions = [_CONDITIONS[name] for name in given]
        if where.run is None:
            conditions.append(_LAST_RUN)
        if where.overruled is not None:
            conditions.append(_OVERRULED if where.overruled else f"NOT ({_OVERRULED})")
        of_defect = []
        if where.class_id is not None:
            of_defect.append("d.class_id = :class_id")
            values["class_id"] = where.class_id
        if where.within_edge_mm is not None:
            least_px, values["most_px"] = self._within_px(where.within_edge_mm, where)
            of_defect.append(_NEAR_EDGE)
        has = " AND ".join(of_defect)
        if of_defects:
            conditions += of_defect
        elif where.within_edge_mm is not None:
            conditions.append(f"s.inspection IN (SELECT d.inspection FROM defects d WHERE {has})")  # noqa: S608
        elif of_defect:
            conditions.append(
                f"EXISTS (SELECT 1 FROM defects d WHERE d.inspection = s.inspection AND {has})"  # noqa: S608
            )
        if where.within_edge_mm is not None and least_px != values["most_px"]:
            # Runs of several scales: near enough for one of them may be too far for another.
            values["edge_mm"] = where.within_edge_mm
            exact = f"d.edge_px * {_SCALE} <= :edge_mm"
            conditions.append(
                exact
                if of_defects
                else f"EXISTS (SELECT 1 FROM defects d WHERE d.inspection = s.inspection "  # noqa: S608
                f"AND {has} AND {exact})"
            )
        return " AND ".join(conditions), values

    def _within_px(self, edge_mm: float, where: Filter) -> tuple[int, int]:
        """The least and the most pixels from the edge that are within the distance, by run."""
        scales = self._rows(
            "SELECT id, ifnull(mm_per_px, :scale) FROM runs WHERE :run IS NULL OR id = :run",
            {"scale": where.mm_per_px, "run": where.run},
        )
        within_px = [-1]
        for run, mm_per_px in scales:
            if mm_per_px is None or not mm_per_px > 0:
                raise InputError(
                    f"expected the scale of run {run} to look for defects within {edge_mm:g} mm of "
                    "the edge, it has none; give the millimetres of a pixel"
                )
            within_px.append(_pixels_within(edge_mm, mm_per_px))
        return min(within_px[1:], default=-1), max(within_px)

    def _one(self, sql: str, values: dict[str, Value]) -> Any:
        return next(self._rows(sql, values), None)

    def _rows(self, sql: str, values: dict[str, Value]) -> Iterator[tuple[Any, ...]]:
        with self._errors():
            yield from self._connection.execute(sql, values)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except apsw.Error as error:
            raise explained(self.path, error) from None
        except ValueError as error:  # a verdict, reason or combination that there is not
            raise explained(self.path, apsw.CorruptError(str(error))) from None


_SCALE = "ifnull((SELECT mm_per_px FROM runs WHERE id = s.run), :mm_per_px)"

_CONDITIONS = {
    "run": "s.run = :run",
    "coil": "s.coil = (SELECT id FROM coils WHERE name = :coil)",
    "name": "s.name GLOB :name",
    "verdict": "i.verdict = :verdict",
    "reason": "i.reason = :reason",
    "since_ms": "i.inspected_ms >= :since_ms",
}
"""By the fields of ``Filter``."""

# By strips of the frame, as the index is: within a strip rows follow each other as they were added,
# so that adding touches few pages, and few strips are read.
_NEAR_EDGE = "d.edge_px / 64 <= :most_px / 64 AND d.edge_px <= :most_px"

_LAST_RUN = (
    "NOT EXISTS (SELECT 1 FROM sightings later WHERE later.inspection = s.inspection "
    "AND later.run > s.run AND later.name = s.name)"
)

_LAST_REVIEW = "(SELECT max(id) FROM reviews WHERE inspection = i.id AND undone_ms IS NULL)"

_OVERRULED = f"""
i.id IN (SELECT inspection FROM reviews WHERE undone_ms IS NULL)
AND i.verdict <> (SELECT verdict FROM reviews WHERE id = {_LAST_REVIEW})
"""  # noqa: S608

# The page is chosen first, from few columns; CROSS JOIN keeps its order.
_INSPECTIONS = f"""
SELECT i.id, s.name, s.run, i.verdict, i.reason, i.faulty_probability, i.n_defects,
  i.defect_area_px, c.name, m.name, substr(dec.sha256, 1, 8), u.engine, i.inspected_ms,
  v.verdict, v.who, v.note
FROM (
  SELECT s.id FROM sightings s {{joined}} WHERE {{where}}
  ORDER BY {{order}} LIMIT :limit OFFSET :offset
) page
CROSS JOIN sightings s ON s.id = page.id
CROSS JOIN inspections i ON i.id = s.inspection
CROSS JOIN models m ON m.id = i.model
CROSS JOIN decisions dec ON dec.id = i.decision
CROSS JOIN setups u ON u.id = i.setup
LEFT JOIN coils c ON c.id = s.coil
LEFT JOIN reviews v ON v.id = {_LAST_REVIEW} AND v.verdict <> i.verdict
"""  # noqa: S608

_COUNT_INSPECTIONS = """
SELECT count(*) FROM sightings s {joined} WHERE {where}
"""

_DEFECTS = f"""
SELECT d.inspection, s.name, s.run, c.name, i.verdict, i.inspected_ms, d.edge_px * {_SCALE},
  {", ".join(f"d.{column}" for column in DEFECT_COLUMNS.split(", "))}
FROM (
  SELECT d.id AS defect, s.id AS sighting
  FROM defects d JOIN sightings s ON s.inspection = d.inspection {{joined}} WHERE {{where}}
  ORDER BY d.id, s.id LIMIT :limit OFFSET :offset
) page
CROSS JOIN defects d ON d.id = page.defect
CROSS JOIN sightings s ON s.id = page.sighting
CROSS JOIN inspections i ON i.id = d.inspection
LEFT JOIN coils c ON c.id = s.coil
"""  # noqa: S608

_COUNT_DEFECTS = """
SELECT count(*) FROM defects d JOIN sightings s ON s.inspection = d.inspection {joined}
WHERE {where}
"""

# Of the rows of a group SQLite takes the other columns from the one with the maximum.
_WORST_COILS = """
SELECT c.name, seen, ng, unknown, n_defects, defect_area_px FROM (
  SELECT coil, count(*) AS seen, sum(verdict = 'NG') AS ng, sum(verdict = 'UNKNOWN') AS unknown,
    sum(n_defects) AS n_defects, sum(defect_area_px) AS defect_area_px
  FROM (
    SELECT s.coil, max(i.id), i.verdict, i.n_defects, i.defect_area_px
    FROM inspections i CROSS JOIN sightings s ON s.inspection = i.id
    WHERE i.inspected_ms >= :since_ms AND s.coil IS NOT NULL
    GROUP BY s.coil, ifnull(i.frame, -i.id)
  )
  GROUP BY coil
)
JOIN coils c ON c.id = coil
ORDER BY ng DESC, n_defects DESC, defect_area_px DESC, c.name LIMIT :limit
"""

_COUNTS = """
SELECT r.id, count(i.id), count(*) FILTER (WHERE i.verdict = 'OK'),
  count(*) FILTER (WHERE i.verdict = 'NG'), count(*) FILTER (WHERE i.verdict = 'UNKNOWN')
FROM runs r LEFT JOIN sightings s ON s.run = r.id LEFT JOIN inspections i ON i.id = s.inspection
GROUP BY r.id ORDER BY r.id
"""

_RUNS = """
SELECT r.id, r.key, r.command, r.source, r.mm_per_px, r.started_ms, r.finished_ms, r.complete,
  m.name, m.sha256, m.manifest, m.folder, d.sha256, d.text, u.engine, u.settings
FROM runs r JOIN models m ON m.id = r.model JOIN decisions d ON d.id = r.decision
  JOIN setups u ON u.id = r.setup
WHERE :run IS NULL OR r.id = :run ORDER BY r.id
"""

_REVIEWS = """
SELECT v.id, i.id,
  (SELECT name FROM sightings s WHERE s.inspection = i.id ORDER BY s.run DESC, s.id DESC LIMIT 1),
  i.verdict, v.verdict, v.who, v.reviewed_ms, v.note, v.labels
FROM reviews v JOIN inspections i ON i.id = v.inspection
WHERE v.undone_ms IS NULL AND {where} ORDER BY v.id
"""

_COMPLETE = """
SELECT i.key, i.inspected_ms, m.sha256, m.manifest, m.folder, d.sha256, d.text, u.settings
FROM inspections i JOIN models m ON m.id = i.model JOIN decisions d ON d.id = i.decision
  JOIN setups u ON u.id = i.setup
WHERE i.id = :id
"""

_SIGHTINGS = """
SELECT s.run, s.position, s.name, s.origin, c.name
FROM sightings s LEFT JOIN coils c ON c.id = s.coil
WHERE s.inspection = :id ORDER BY s.run DESC, s.id DESC
"""


def _joined(sql: str) -> str:
    """The join with inspections, if it is needed: it costs as much as all else."""
    return "JOIN inspections i ON i.id = s.inspection" if re.search(r"\bi\.", sql) else ""


def _pixels_within(edge_mm: float, mm_per_px: float) -> int:
    """Most pixels with ``pixels * mm_per_px <= edge_mm``, as SQLite computes it."""
    pixels = int(min(edge_mm / mm_per_px, 1e9)) + 1
    while pixels >= 0 and pixels * mm_per_px > edge_mm:
        pixels -= 1
    return pixels


def _inspection_row(row: tuple[Any, ...]) -> InspectionRow:
    id_, name, run, verdict, reason, faulty_probability, n_defects, defect_area_px, coil = row[:9]
    model, decision, engine, inspected_ms, said, who, note = row[9:]
    return InspectionRow(
        id=id_,
        name=shown(name),
        run=run,
        verdict=Verdict(verdict),
        reason=None if reason is None else Reason(reason),
        faulty_probability=faulty_probability,
        n_defects=n_defects,
        defect_area_px=defect_area_px,
        coil=None if coil is None else shown(coil),
        model=model,
        decision=decision,
        engine=engine,
        inspected_ms=inspected_ms,
        overruled_verdict=None if said is None else Verdict(said),
        overruled_by=None if who is None else shown(who),
        overruled_note=None if note is None else shown(note),
    )


def _defect_row(row: tuple[Any, ...]) -> DefectRow:
    inspection, name, run, coil, verdict, inspected_ms, edge_mm, *of_defect = row
    ordinal, _, edge_px, *_ = of_defect
    return DefectRow(
        inspection=inspection,
        ordinal=ordinal,
        name=shown(name),
        run=run,
        coil=None if coil is None else shown(coil),
        verdict=Verdict(verdict),
        inspected_ms=inspected_ms,
        edge_px=edge_px,
        edge_mm=edge_mm,
        defect=defect_of(tuple(of_defect)),
    )


def _run_row(row: tuple[Any, ...]) -> RunRow:
    id_, key, command, source, mm_per_px, started_ms, finished_ms, complete, *decided = row
    model_id, model_sha256, manifest, folder, decision_sha256, decision, engine, settings = decided
    run = Run(
        key=key,
        command=shown(command),
        source=shown(source),
        model_id=model_id,
        model_sha256=model_sha256,
        manifest=manifest,
        bundle_folder=shown(folder),
        decision_sha256=decision_sha256,
        decision=decision,
        engine=engine,
        settings=settings,
        mm_per_px=mm_per_px,
    )
    return RunRow(id_, run, started_ms, finished_ms, bool(complete))


def _review_row(row: tuple[Any, ...]) -> ReviewRow:
    id_, inspection, name, machine, verdict, who, reviewed_ms, note, labels = row
    return ReviewRow(
        id=id_,
        inspection=inspection,
        name=None if name is None else shown(name),
        machine=Verdict(machine),
        verdict=Verdict(verdict),
        who=shown(who),
        reviewed_ms=reviewed_ms,
        note=shown(note),
        labels=None if labels is None else json.loads(labels),
    )


def _sighting(row: tuple[Any, ...]) -> Sighting:
    run, position, name, origin, coil = row
    return Sighting(
        run, position, shown(name), shown(origin), None if coil is None else shown(coil)
    )
