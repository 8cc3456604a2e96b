"""Stored results as files: tables, result lines, and labels that other tools read.

Tables and result lines are streamed: their memory does not grow with their number. Labels go
through a ``LabelSet``, because their formats are one document, and are held in memory: about a
kilobyte a frame and its masks.

A label format knows frames with masks and clean ones, nothing else. UNKNOWN frames are therefore
left out of it, and NG frames without a region, too: there they would look clean.
"""

import csv
import json
import shutil
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from steelsight.defects import Inspection, Verdict
from steelsight.errors import InputError, escaped
from steelsight.store.queries import DefectRow, Filter, InspectionRow, Results, ReviewRow, Sort
from steelsight.store.rows import read_inspection

if TYPE_CHECKING:
    from steelsight.data.labels import FrameLabels

ROWS_AT_ONCE = 4096
DEFECTS_AT_ONCE = 8192
CHARACTERS_AT_ONCE = 1 << 24
"""Of RLE: a row group of a Parquet file ends with one of the three."""

UNKNOWN, NOT_LOCALISED = "UNKNOWN", "NG without a region"
"""Why results are left out of labels."""

EVERYTHING = Filter()

Progress = Callable[[int, int], None]


class Form(StrEnum):
    """What a file of results looks like."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"
    COCO = "coco"
    KAGGLE = "kaggle"
    KAGGLE_SUBMISSION = "kaggle-submission"
    LABEL_STUDIO = "label-studio"

    @property
    def streamed(self) -> bool:
        """Whether it is a table, which holds all results: labels hold only frames with a place."""
        return self in (Form.CSV, Form.JSONL, Form.PARQUET)


_FORM_OF_SUFFIX = {
    ".csv": Form.CSV,
    ".jsonl": Form.JSONL,
    ".ndjson": Form.JSONL,
    ".parquet": Form.PARQUET,
    ".json": Form.COCO,
}


def form_of(target: Path, named: str | None = None) -> Form:
    """The form that is named, or else that of the suffix; ``.json`` is COCO.

    Raises:
        InputError: neither says it.
    """
    if named is not None:
        if named not in set(Form):
            raise InputError(f"expected a form of {', '.join(Form)}, got {named}")
        return Form(named)
    form = _FORM_OF_SUFFIX.get(target.suffix.lower())
    if form is None:
        raise InputError(
            f"expected a file that ends in {', '.join(_FORM_OF_SUFFIX)}, got {target.name}; say "
            f"with --as what it is: {', '.join(Form)}"
        )
    return form


# Questions ---------------------------------------------------------------------------------------


class Whole(NamedTuple):
    """A result with everything that belongs to it."""

    row: InspectionRow
    inspection: Inspection
    """Under the name of the row."""
    reviews: tuple[ReviewRow, ...]


class StoredResults(Results):
    """Questions of lists and exports: sums, and whole results one by one."""

    @contextmanager
    def one_state(self) -> Iterator[None]:
        """All answers inside are of one moment, whatever is being written meanwhile."""
        with self._errors():
            self._connection.execute("BEGIN")
        try:
            yield
        finally:
            if not self._connection.get_autocommit():
                self._connection.execute("COMMIT")

    def by_verdict(self, where: Filter = EVERYTHING) -> dict[Verdict, int]:
        """How many rows of ``inspections`` have each verdict; raises as it does."""
        conditions, values = self._conditions(where)
        found = dict(self._rows(_BY_VERDICT.format(where=conditions), values))
        return {verdict: found.get(verdict, 0) for verdict in Verdict}

    def by_type(self, where: Filter = EVERYTHING) -> dict[str, int]:
        """How many rows of ``defects`` are of each type; raises as it does."""
        conditions, values = self._conditions(where, of_defects=True)
        return dict(self._rows(_BY_TYPE.format(where=conditions), values))

    def types_on(self, inspection_id: int) -> dict[str, int]:
        """How many defects of each type an inspection has."""
        return dict(self._rows(_TYPES_ON, {"id": inspection_id}))

    def said(self, inspection_id: int) -> tuple[ReviewRow, ...]:
        """What people said about an inspection, in their order."""
        return tuple(self._reviews("v.inspection = :id", {"id": inspection_id}))

    def whole(
        self, where: Filter = EVERYTHING, *, sort: Sort = Sort.RUN, limit: int | None = None
    ) -> Iterator[Whole]:
        """As ``inspections``, with defects and reviews; to be asked inside of ``one_state``."""
        reviewed = self._one("SELECT EXISTS (SELECT 1 FROM reviews WHERE undone_ms IS NULL)", {})[0]
        for row in self.inspections(where, sort=sort, limit=limit):
            with self._errors():
                inspection = read_inspection(self._connection, row.id, row.name)
            yield Whole(row, inspection, self.said(row.id) if reviewed else ())

    def class_names(self, run: int | None = None) -> dict[str, str]:
        """Names of the types by id, of the models of all runs or of one."""
        names: dict[str, str] = {}
        for row in self.runs():
            if run in (None, row.id):
                classes = tomllib.loads(row.run.manifest).get("classes", ())
                names |= {entry["id"]: entry["name"] for entry in classes}
        if not names:
            names = {c: c for (c,) in self._rows("SELECT DISTINCT class_id FROM defects", {})}
        return names


_BY_VERDICT = """
SELECT i.verdict, count(*) FROM sightings s JOIN inspections i ON i.id = s.inspection
WHERE {where} GROUP BY i.verdict
"""

_BY_TYPE = """
SELECT d.class_id, count(*)
FROM defects d JOIN sightings s ON s.inspection = d.inspection
JOIN inspections i ON i.id = s.inspection
WHERE {where} GROUP BY d.class_id ORDER BY d.class_id
"""

_TYPES_ON = """
SELECT class_id, count(*) FROM defects WHERE inspection = :id GROUP BY class_id ORDER BY class_id
"""


# Facts -------------------------------------------------------------------------------------------


def utc(milliseconds: int) -> str:
    """A time of the store, ISO 8601 in UTC."""
    at = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def review_facts(review: ReviewRow) -> dict[str, Any]:
    """A person's verdict for JSON."""
    return {
        "verdict": review.verdict.value,
        "who": review.who,
        "when": utc(review.reviewed_ms),
        "note": review.note,
        "labels": review.labels,
    }


def result_facts(
    row: InspectionRow, types: Mapping[str, int], said: Iterable[ReviewRow]
) -> dict[str, Any]:
    """A result for JSON: its row, its types, and what people said about it."""
    return {
        "id": row.id,
        "image": row.name,
        "run": row.run,
        "coil": row.coil,
        "verdict": row.verdict.value,
        "reason": row.reason.value if row.reason else None,
        "faulty_probability": row.faulty_probability,
        "defects": row.n_defects,
        "defects_by_type": types,
        "area_px": row.defect_area_px,
        "model": row.model,
        "decision": row.decision,
        "engine": row.engine,
        "inspected": utc(row.inspected_ms),
        "reviews": [review_facts(one) for one in said],
    }


def defect_facts(row: DefectRow) -> dict[str, Any]:
    """A defect for JSON: its place among the results, and the object of result lines."""
    return {
        "id": row.inspection,
        "ordinal": row.ordinal,
        "image": row.name,
        "run": row.run,
        "coil": row.coil,
        "verdict": row.verdict.value,
        "inspected": utc(row.inspected_ms),
        "edge_px": row.edge_px,
        "edge_mm": row.edge_mm,
        **row.defect.to_json(),
    }


def _cells(whole: Whole, class_ids: Iterable[str]) -> dict[str, Any]:
    """A result as one row of a table; figures are those of result lines."""
    row, reviews = whole.row, whole.reviews
    facts = whole.inspection.to_json(timing=False)
    defects = facts["defects"]
    counts = Counter(d["class"] for d in defects)
    areas: Counter[str] = Counter()
    for defect in defects:
        areas[defect["class"]] += defect["area_px"]
    width, height = facts["size_wh"] or (None, None)
    last = reviews[-1] if reviews else None
    return {
        "id": row.id,
        "image": row.name,
        "run": row.run,
        "coil": row.coil,
        "verdict": facts["verdict"],
        "reason": facts["reason"],
        "detail": facts["detail"],
        "faulty_probability": facts["faulty_probability"],
        "defects": len(defects),
        "area_px": row.defect_area_px,
        **{f"probability_{c}": facts["class_probabilities"].get(c) for c in class_ids},
        **{f"defects_{c}": counts[c] for c in class_ids},
        **{f"area_px_{c}": areas[c] for c in class_ids},
        "frame_width_px": width,
        "frame_height_px": height,
        "notes": "; ".join(facts["notes"]),
        "sha256": facts["sha256"],
        "model": facts["model"],
        "decision": facts["decision"],
        "engine": facts["engine"],
        "inspected": utc(row.inspected_ms),
        "person_verdict": last.verdict.value if last else None,
        "person": last.who if last else None,
        "person_when": utc(last.reviewed_ms) if last else None,
        "person_note": last.note if last else None,
    }


def _defect_cells(row: DefectRow) -> dict[str, Any]:
    facts = defect_facts(row)
    x, y, w, h = facts.pop("bbox_xywh")
    rle = facts.pop("rle")
    return facts | {"x": x, "y": y, "w": w, "h": h, "rle": rle}


# Export ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exported:
    """What became of an export.

    Attributes:
        file: what was written.
        form: of the file.
        rows: results (or defects) in it.
        counts: rows by verdict (or by type); they add up to ``rows``.
        left_out: results by why they are not in it.
        beside: further files.
    """

    file: str
    form: Form
    rows: int
    counts: Mapping[str, int]
    left_out: Mapping[str, int]
    beside: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def export(
    store: StoredResults,
    target: Path,
    form: Form,
    where: Filter = EVERYTHING,
    *,
    sort: Sort = Sort.RUN,
    limit: int | None = None,
    defects: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda _done, _total: None,
) -> Exported:
    """Writes results to a file, which is complete or not there, whenever this is stopped.

    Args:
        store: what is asked; all rows are of one moment.
        target: the file.
        form: what it looks like.
        where: which results.
        sort: their order.
        limit: how many; all if ``None``.
        defects: a row for each defect instead of each result; only in tables, and in the order in
            which they were added.
        overwrite: replace an earlier file.
        progress: called with rows done, and how many there are.

    Raises:
        InputError: the file is there already or cannot be written, or the form cannot hold what
            matches: an image name twice, mostly.
        StoreError: the store cannot be read.
    """
    if defects and not form.streamed:
        raise InputError(
            f"expected csv, jsonl or parquet for a row per defect, got {form}; leave --defects out"
        )
    _check_target(store, target, form, overwrite)
    folder = target.with_name(f".{target.name}.unfinished")
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        folder.mkdir()
        left_out: dict[str, int] = {}
        with store.one_state():
            if defects:
                counts = _write_defects(store, folder, form, where, limit, progress)
            elif form.streamed:
                counts = _write_results(store, folder, form, where, sort, limit, progress)
            else:
                counts, left_out = _write_labels(store, folder, form, where, sort, limit, progress)
        (folder / _MADE[form]).replace(target)
        beside = []
        for made in sorted(folder.iterdir()):
            if made.name in _BESIDE.get(form, ()):
                made.replace(target.parent / made.name)
                beside.append(str(target.parent / made.name))
    except OSError as error:
        raise InputError(
            f"{target} cannot be written ({error.strerror}); check the folder, its permissions and "
            "the free space"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Exported(str(target), form, counts.total(), dict(counts), left_out, tuple(beside))


_MADE = {
    Form.CSV: "results.csv",
    Form.JSONL: "results.jsonl",
    Form.PARQUET: "results.parquet",
    Form.COCO: "annotations.json",
    Form.KAGGLE: "labels.csv",
    Form.KAGGLE_SUBMISSION: "labels.csv",
    Form.LABEL_STUDIO: "label_studio.json",
}
"""What is written, under another name."""
_BESIDE = {Form.LABEL_STUDIO: ("label_config.xml",)}


def _check_target(store: Results, target: Path, form: Form, overwrite: bool) -> None:
    if target.is_dir() or not target.name:
        raise InputError(f"expected a file to write, {target} is a folder; name a file in it")
    if not target.parent.is_dir():
        raise InputError(
            f"expected a folder to write to, {target.parent} is none; make it, or give another file"
        )
    if target.resolve() == store.path.resolve():
        raise InputError(f"{target} is the store itself; give another file")
    for path in (target, *(target.parent / name for name in _BESIDE.get(form, ()))):
        if path.exists() and not overwrite:
            raise InputError(f"{path} is there already; give another file, or --overwrite")


def _write_results(
    store: StoredResults,
    folder: Path,
    form: Form,
    where: Filter,
    sort: Sort,
    limit: int | None,
    progress: Progress,
) -> Counter[str]:
    counts: Counter[str] = Counter()
    total = _total(store.count_inspections(where), limit)

    def counted() -> Iterator[Whole]:
        for done, whole in enumerate(store.whole(where, sort=sort, limit=limit), 1):
            yield whole
            counts[whole.row.verdict] += 1
            _tell(progress, done, total)

    path = folder / _MADE[form]
    if form is Form.CSV:
        class_ids = tuple(store.class_names(where.run))
        _write_csv(path, (_cells(whole, class_ids) for whole in counted()), _columns(class_ids))
    elif form is Form.JSONL:
        _write_lines(path, (w.inspection.to_json_line(timing=False) for w in counted()))
    else:
        _write_parquet(path, "results", map(_parquet_row, counted()))
    return Counter({verdict.value: counts[verdict] for verdict in Verdict})


def _write_defects(
    store: StoredResults,
    folder: Path,
    form: Form,
    where: Filter,
    limit: int | None,
    progress: Progress,
) -> Counter[str]:
    counts: Counter[str] = Counter()
    total = _total(store.count_defects(where), limit)

    def counted() -> Iterator[DefectRow]:
        for done, row in enumerate(store.defects(where, limit=limit), 1):
            yield row
            counts[row.defect.class_id] += 1
            _tell(progress, done, total)

    path = folder / _MADE[form]
    if form is Form.CSV:
        _write_csv(path, map(_defect_cells, counted()), _DEFECT_COLUMNS)
    elif form is Form.JSONL:
        lines = (json.dumps(defect_facts(row), ensure_ascii=False) for row in counted())
        _write_lines(path, lines)
    else:
        _write_parquet(path, "defects", map(_parquet_defect_row, counted()))
    return counts


def _total(matching: int, limit: int | None) -> int:
    return matching if limit is None else min(matching, limit)


def _tell(progress: Progress, done: int, total: int) -> None:
    # Drawing a bar costs more than a row.
    if done % 256 == 0 or done == total:
        progress(done, total)


# Tables ------------------------------------------------------------------------------------------


def _columns(class_ids: tuple[str, ...]) -> list[str]:
    return [
        *("id", "image", "run", "coil", "verdict", "reason", "detail", "faulty_probability"),
        *("defects", "area_px"),
        *(f"{what}_{c}" for what in ("probability", "defects", "area_px") for c in class_ids),
        *("frame_width_px", "frame_height_px", "notes", "sha256"),
        *("model", "decision", "engine", "inspected"),
        *("person_verdict", "person", "person_when", "person_note"),
    ]


_DEFECT_COLUMNS = [
    *("id", "ordinal", "image", "run", "coil", "verdict", "inspected", "edge_px", "edge_mm"),
    *("class", "area_px", "length_px", "width_px", "orientation_deg", "probability"),
    *("x", "y", "w", "h", "rle"),
]


def _write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: list[str]) -> None:
    from steelsight.data.tables import csv_safe

    # A name that is no valid Unicode is written as the escape that says so.
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({k: csv_safe(v) if isinstance(v, str) else v for k, v in row.items()})


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    # In JSON the escape of a lone surrogate is the right way to write it.
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        for line in lines:
            file.write(line + "\n")


def _write_parquet(path: Path, kind: str, rows: Iterable[dict[str, Any]]) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            "expected pyarrow to write Parquet, it is not installed; run: "
            "pip install 'steelsight[parquet]'"
        ) from None

    schema = _schemas()[kind]
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in _batches(rows):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    defects = characters = 0
    for row in rows:
        batch.append(row)
        of_row = row.get("defects", (row,))
        defects += len(of_row)
        characters += sum(len(defect["rle"]) for defect in of_row)
        full = len(batch) >= ROWS_AT_ONCE or defects >= DEFECTS_AT_ONCE
        if full or characters >= CHARACTERS_AT_ONCE:
            yield batch
            batch, defects, characters = [], 0, 0
    if batch:
        yield batch


def _schemas() -> dict[str, Any]:
    import pyarrow as pa

    text, whole, real, when = pa.string(), pa.int64(), pa.float64(), pa.timestamp("ms", tz="UTC")
    of_defect = {
        "class": text,
        "area_px": whole,
        **dict.fromkeys("xywh", whole),
        "length_px": real,
        "width_px": real,
        "orientation_deg": real,
        "probability": real,
        "rle": text,
    }
    of_review = {"verdict": text, "who": text, "reviewed": when, "note": text}
    results = {
        "id": whole,
        "image": text,
        "run": whole,
        "coil": text,
        "verdict": text,
        "reason": text,
        "detail": text,
        "faulty_probability": real,
        "class_probabilities": pa.map_(text, real),
        "defects": pa.list_(pa.struct(of_defect)),
        "area_px": whole,
        "frame_width_px": whole,
        "frame_height_px": whole,
        "notes": pa.list_(text),
        "sha256": text,
        "model": text,
        "decision": text,
        "engine": text,
        "inspected": when,
        "milliseconds": pa.map_(text, real),
        "reviews": pa.list_(pa.struct(of_review)),
    }
    defects = {
        "id": whole,
        "ordinal": whole,
        "image": text,
        "run": whole,
        "coil": text,
        "verdict": text,
        "inspected": when,
        "edge_px": whole,
        "edge_mm": real,
        **of_defect,
    }
    return {"results": pa.schema(results), "defects": pa.schema(defects)}


def _parquet_row(whole: Whole) -> dict[str, Any]:
    """All that is stored, figures as they were computed."""
    row, inspection = whole.row, whole.inspection
    width, height = inspection.size_wh or (None, None)
    return {
        "id": row.id,
        "image": _unicode(row.name),
        "run": row.run,
        "coil": None if row.coil is None else _unicode(row.coil),
        "verdict": row.verdict.value,
        "reason": row.reason and row.reason.value,
        "detail": None if inspection.detail is None else _unicode(inspection.detail),
        "faulty_probability": inspection.faulty_probability,
        "class_probabilities": list(inspection.class_probabilities.items()),
        "defects": [_parquet_defect(defect) for defect in inspection.defects],
        "area_px": row.defect_area_px,
        "frame_width_px": width,
        "frame_height_px": height,
        "notes": list(inspection.notes),
        "sha256": inspection.sha256,
        "model": row.model,
        "decision": row.decision,
        "engine": row.engine,
        "inspected": row.inspected_ms,
        "milliseconds": list(inspection.milliseconds.items()),
        "reviews": [
            {
                "verdict": review.verdict.value,
                "who": _unicode(review.who),
                "reviewed": review.reviewed_ms,
                "note": _unicode(review.note),
            }
            for review in whole.reviews
        ],
    }


def _parquet_defect_row(row: DefectRow) -> dict[str, Any]:
    return {
        "id": row.inspection,
        "ordinal": row.ordinal,
        "image": _unicode(row.name),
        "run": row.run,
        "coil": None if row.coil is None else _unicode(row.coil),
        "verdict": row.verdict.value,
        "inspected": row.inspected_ms,
        "edge_px": row.edge_px,
        "edge_mm": row.edge_mm,
        **_parquet_defect(row.defect),
    }


def _parquet_defect(defect: Any) -> dict[str, Any]:
    x, y, w, h = defect.bbox_xywh
    return {
        "class": defect.class_id,
        "area_px": defect.area_px,
        "x": x,
        "y": y,
        "w": w,
        "h": h,
        "length_px": defect.length_px,
        "width_px": defect.width_px,
        "orientation_deg": defect.orientation_deg,
        "probability": defect.probability,
        "rle": defect.rle,
    }


def _unicode(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


# Labels ------------------------------------------------------------------------------------------


def _write_labels(
    store: StoredResults,
    folder: Path,
    form: Form,
    where: Filter,
    sort: Sort,
    limit: int | None,
    progress: Progress,
) -> tuple[Counter[str], dict[str, int]]:
    from steelsight.data.formats import coco, label_studio, severstal
    from steelsight.data.labels import LabelClass, LabelSet, Placement

    frames: dict[str, FrameLabels] = {}
    predictions: list[_Prediction | None] = []
    run_of: dict[str, int] = {}
    counts: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    total = _total(store.count_inspections(where), limit)
    for done, whole in enumerate(store.whole(where, sort=sort, limit=limit), 1):
        _tell(progress, done, total)
        row = whole.row
        if row.verdict is Verdict.UNKNOWN:
            left_out[UNKNOWN] += 1
            continue
        placed = row.verdict is Verdict.OK or bool(whole.inspection.defects)
        if not placed and form is not Form.LABEL_STUDIO:
            left_out[NOT_LOCALISED] += 1
            continue
        if row.name in frames:
            raise InputError(
                f"expected each image once, {escaped(row.name)} is in run {run_of[row.name]} and "
                f"in run {row.run}; choose one with --run or --coil"
            )
        run_of[row.name] = row.run
        frames[row.name] = _frame_labels(whole)
        if form is Form.LABEL_STUDIO:
            predictions.append(_Prediction.of(whole) if placed else None)
        counts[row.verdict.value] += 1
    if not frames:
        raise InputError(
            f"expected results with a place or clean ones to write as {form}, none matches; ask "
            "with fewer conditions"
        )
    classes = tuple(LabelClass(c, name) for c, name in store.class_names(where.run).items())
    label_set = LabelSet("store", store.path, classes, frames)
    match form:
        case Form.COCO:
            coco.write(label_set, folder, Placement.LEAVE)
        case Form.LABEL_STUDIO:
            label_studio.write(label_set, folder, Placement.LEAVE)
            _as_predictions(folder / _MADE[form], predictions)
        case _:
            rows = form is Form.KAGGLE
            severstal.write_csv(
                folder / _MADE[form],
                frames.values(),
                form=severstal.CsvForm.ROWS if rows else severstal.CsvForm.SUBMISSION,
                class_ids=label_set.class_ids,
            )
    return counts, dict(left_out)


def _frame_labels(whole: Whole) -> "FrameLabels":
    """The model's masks; what a person said stands beside them."""
    from steelsight.data.labels import FrameLabels
    from steelsight.masks import union_rle

    row, inspection = whole.row, whole.inspection
    rles: dict[str, list[str]] = {}
    for defect in inspection.defects:
        rles.setdefault(defect.class_id, []).append(defect.rle)
    attributes = {
        "inspection": str(row.id),
        "verdict": row.verdict.value,
        "reason": row.reason.value if row.reason else "",
        "coil": escaped(row.coil or ""),
        "model": row.model,
    }
    if whole.reviews:
        last = whole.reviews[-1]
        attributes |= {"person_verdict": last.verdict.value, "person": escaped(last.who)}
    return FrameLabels(
        row.name,
        {class_id: union_rle(of_type) for class_id, of_type in rles.items()},
        inspection.size_wh,
        attributes={key: value for key, value in attributes.items() if value},
    )


class _Prediction(NamedTuple):
    """What Label Studio shows beside the masks of a task."""

    model: str
    score: float | None
    scores: Mapping[str, float]
    """By type."""

    @classmethod
    def of(cls, whole: Whole) -> "_Prediction":
        inspection = whole.inspection
        return cls(inspection.model, inspection.faulty_probability, inspection.class_probabilities)


def _as_predictions(path: Path, predictions: Iterable[_Prediction | None]) -> None:
    """Turns the annotations of tasks, one a line, into predictions: people have not seen them.

    A task without prediction shows the image and its verdict, and no mask.
    """
    beside = path.with_name("predictions.json")
    following = iter(predictions)
    with path.open(encoding="utf-8") as tasks, beside.open("w", encoding="utf-8") as file:
        for line in tasks:
            if not line.startswith("{"):
                file.write(line)
                continue
            task = json.loads(line.rstrip().removesuffix(","))
            results = task["annotations"][0]["result"]
            prediction = next(following)
            task |= {"annotations": [], "predictions": []}
            if prediction is not None:
                for result in results:
                    del result["origin"]
                    result["score"] = prediction.scores.get(result["id"].partition("-")[2])
                of_task = {"model_version": prediction.model, "score": prediction.score}
                task["predictions"] = [of_task | {"result": results}]
            end = ",\n" if line.endswith(",\n") else "\n"
            file.write(json.dumps(task, separators=(",", ":")) + end)
    beside.replace(path)
