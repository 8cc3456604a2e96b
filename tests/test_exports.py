"""Exports, read back by other programs: pycocotools, csv, pyarrow, and decoders written plainly."""

import csv
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apsw
import numpy as np
import pytest
from pycocotools.coco import COCO
from tests.data.formats.test_label_studio import naive_mask
from tests.store.results import key_of, run_of

from steelsight.data.formats import coco, label_studio, severstal
from steelsight.data.labels import ReadOptions
from steelsight.defects import Defect, Inspection, Reason, Verdict
from steelsight.errors import InputError, SteelsightError
from steelsight.exports import EVERYTHING, Form, StoredResults, export, form_of
from steelsight.masks import regions
from steelsight.store.queries import Filter, Sort
from steelsight.store.store import Run, Store

SIZE_WH = (60, 20)
TYPES = {"1": "Pits", "3": "3"}
MANIFEST = 'format = 2\n[[classes]]\nid = "1"\nname = "Pits"\n[[classes]]\nid = "3"\nname = "3"\n'


def mask_of(seed: int) -> np.ndarray:
    """Blobs, some of which touch the frame's edges and wrap around from column to column."""
    random_of = np.random.default_rng(seed)
    mask = random_of.random(SIZE_WH[::-1]) > 0.93
    mask[:, 7] = True
    mask[-1, 6] = mask[0, 8] = True
    return mask


MASKS = {
    "a.jpg": {"1": mask_of(1), "3": mask_of(2)},
    "=cmd().jpg": {"3": mask_of(3)},
    "dir/clean.jpg": {},
}


def defects_of(masks: dict[str, np.ndarray]) -> tuple[Defect, ...]:
    probability = np.full(SIZE_WH[::-1], 0.1, np.float32) * 7
    found = [
        Defect(
            kind,
            region.area_px,
            region.bbox_xywh,
            region.length_px,
            region.width_px,
            region.orientation_deg,
            region.mean_probability,
            region.rle,
        )
        for kind, mask in masks.items()
        for region in regions(mask, probability)
    ]
    return tuple(sorted(found, key=lambda defect: -defect.area_px))


def inspection(name: str, verdict: Verdict = Verdict.OK, **changes: object) -> Inspection:
    judged = verdict is not Verdict.UNKNOWN
    values = {
        "image": name,
        "sha256": hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest(),
        "verdict": verdict,
        "reason": None,
        "detail": None,
        "faulty_probability": 1 / 3 if judged else None,
        "class_probabilities": {"1": 1 / 7, "3": 2 / 7} if judged else {},
        "defects": (),
        "size_wh": SIZE_WH if judged else None,
        "model": "model@aaaaaaaa",
        "decision": "d" * 8,
        "engine": "fake-fp32",
        "milliseconds": {"decode": 1.5},
    }
    return Inspection(**values | changes)


def a_run(key: str = "one") -> Run:
    facts = run_of(key)
    return Run(**{k: getattr(facts, k) for k in Run.__slots__} | {"manifest": MANIFEST})


RESULTS = [
    inspection("a.jpg", Verdict.NG, defects=defects_of(MASKS["a.jpg"]), notes=("turned", "cut")),
    inspection("dir/clean.jpg"),
    inspection(
        "cut.jpg", Verdict.UNKNOWN, reason=Reason.TRUNCATED, detail='+expected, "more"\nlines'
    ),
    inspection("=cmd().jpg", Verdict.NG, defects=defects_of(MASKS["=cmd().jpg"])),
    inspection("nowhere.jpg", Verdict.NG, reason=Reason.NOT_LOCALISED, detail="no region"),
    inspection("blank.jpg", Verdict.UNKNOWN, reason=Reason.BLANK, detail="flat", size_wh=SIZE_WH),
]
COUNTS = {"OK": 1, "NG": 3, "UNKNOWN": 2}


def fill(path: Path, inspections: list[Inspection], run: Run | None = None) -> Path:
    with Store(path, group_ms=1) as store:
        number = store.begin(run or a_run())
        tickets = [
            store.add(number, n, f"/frames/{n}", one, key_of(n), coil="-17")
            for n, one in enumerate(inspections)
        ]
        for ticket in tickets:
            ticket.result()
        store.finish(number, complete=True)
    return path


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = fill(tmp_path_factory.mktemp("store") / "store.db", RESULTS)
    with Store(path, clock=lambda: 1_760_000_000.125) as store:
        store.review(1, Verdict.NG, "B. Braun", "pits")
        store.review(1, Verdict.OK, "@meier", "=shadow")
    return path


@pytest.fixture
def store(filled: Path) -> Iterator[StoredResults]:
    with StoredResults(filled) as opened:
        yield opened


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# Tables ------------------------------------------------------------------------------------------


def test_result_lines_are_those_of_the_run(store: StoredResults, tmp_path: Path) -> None:
    done = export(store, tmp_path / "a.jsonl", Form.JSONL)
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines == [one.to_json_line(timing=False) for one in RESULTS]
    assert (done.rows, done.counts, done.left_out) == (6, COUNTS, {})


def test_a_table_for_spreadsheets(store: StoredResults, tmp_path: Path) -> None:
    done = export(store, tmp_path / "a.csv", Form.CSV)
    rows = rows_of(tmp_path / "a.csv")
    assert done.counts == COUNTS
    assert [row["image"] for row in rows] == [
        one.image if one.image[0] != "=" else f"'{one.image}" for one in RESULTS
    ]
    for row, one in zip(rows, RESULTS, strict=True):
        assert row["verdict"] == one.verdict
        assert row["reason"] == (one.reason or "")
        for kind in TYPES:
            areas = [d.area_px for d in one.defects if d.class_id == kind]
            assert int(row[f"area_px_{kind}"]) == sum(areas)
            assert int(row[f"defects_{kind}"]) == len(areas)
        assert int(row["area_px"]) == sum(d.area_px for d in one.defects)
    assert float(rows[0]["faulty_probability"]) == pytest.approx(1 / 3, abs=1e-6)
    assert rows[0]["notes"] == "turned; cut"
    # What is not known is empty, never 0.
    assert (rows[2]["faulty_probability"], rows[2]["probability_1"]) == ("", "")
    assert rows[2]["detail"] == '\'+expected, "more"\nlines'
    said = {key: rows[0][key] for key in rows[0] if key.startswith("person")}
    assert said == {
        "person_verdict": "OK",
        "person": "'@meier",
        "person_when": "2025-10-09T08:53:20.125Z",
        "person_note": "'=shadow",
    }


def test_no_cell_runs_as_a_formula(store: StoredResults, tmp_path: Path) -> None:
    """A negative number is none; everything else that begins so was chosen by somebody."""
    export(store, tmp_path / "a.csv", Form.CSV)
    export(store, tmp_path / "d.csv", Form.CSV, defects=True)
    cells = [c for f in ("a.csv", "d.csv") for row in rows_of(tmp_path / f) for c in row.values()]
    assert sum(cell.startswith("'-17") for cell in cells) > 6
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


def test_parquet_holds_every_bit(store: StoredResults, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export(store, tmp_path / "a.parquet", Form.PARQUET)
    rows = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert [row["image"] for row in rows] == [one.image for one in RESULTS]
    for row, one in zip(rows, RESULTS, strict=True):
        assert row["faulty_probability"] == one.faulty_probability
        assert dict(row["class_probabilities"]) == one.class_probabilities
        assert dict(row["milliseconds"]) == one.milliseconds
        assert row["notes"] == list(one.notes)
        assert (row["verdict"], row["reason"], row["detail"]) == (
            one.verdict,
            one.reason,
            one.detail,
        )
        assert len(row["defects"]) == len(one.defects)
        for found, defect in zip(row["defects"], one.defects, strict=True):
            assert tuple(found[k] for k in "xywh") == defect.bbox_xywh
            assert (found["class"], found["rle"]) == (defect.class_id, defect.rle)
            assert found["probability"] == defect.probability
            assert found["orientation_deg"] == defect.orientation_deg
    assert [(r["verdict"], r["who"]) for r in rows[0]["reviews"]] == [
        ("NG", "B. Braun"),
        ("OK", "@meier"),
    ]
    assert rows[0]["reviews"][1]["reviewed"].isoformat() == "2025-10-09T08:53:20.125000+00:00"


def test_a_row_for_each_defect(store: StoredResults, tmp_path: Path) -> None:
    expected = [(one.image, d) for one in RESULTS for d in one.defects]
    for form in (Form.CSV, Form.JSONL):
        done = export(store, tmp_path / f"d.{form}", form, defects=True)
        assert done.rows == len(expected) == sum(done.counts.values())
    rows = rows_of(tmp_path / "d.csv")
    assert [(row["image"].lstrip("'"), row["rle"]) for row in rows] == [
        (image, d.rle) for image, d in expected
    ]
    lines = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert [line["bbox_xywh"] for line in lines] == [list(d.bbox_xywh) for _, d in expected]
    assert {line["coil"] for line in lines} == {"-17"}
    with pytest.raises(InputError, match="leave --defects out"):
        export(store, tmp_path / "d.json", Form.COCO, defects=True)


def test_defects_as_parquet(store: StoredResults, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export(store, tmp_path / "d.parquet", Form.PARQUET, Filter(class_id="3"), defects=True, limit=7)
    rows = parquet.read_table(tmp_path / "d.parquet").to_pylist()
    assert len(rows) == 7
    assert {row["class"] for row in rows} == {"3"}
    assert all(row["edge_mm"] == row["edge_px"] * 0.5 for row in rows)


def test_parquet_without_its_extra(
    store: StoredResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'steelsight\[parquet\]'"):
        export(store, tmp_path / "a.parquet", Form.PARQUET)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    path = fill(tmp_path / "store.db", [inspection("a\udcff.jpg")])
    with StoredResults(path) as store:
        for form in (Form.CSV, Form.JSONL):
            export(store, tmp_path / f"a.{form}", form)
        if "pyarrow" in sys.modules:
            export(store, tmp_path / "a.parquet", Form.PARQUET)
    assert rows_of(tmp_path / "a.csv")[0]["image"] == "a\\udcff.jpg"
    assert json.loads((tmp_path / "a.jsonl").read_text())["image"] == "a\udcff.jpg"


# Labels ------------------------------------------------------------------------------------------

LEFT_OUT = {"UNKNOWN": 2, "NG without a region": 1}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_for_pycocotools(
    store: StoredResults, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = export(store, tmp_path / "a.json", Form.COCO)
    assert (done.rows, done.counts, done.left_out) == (3, {"NG": 2, "OK": 1}, LEFT_OUT)
    found = COCO(str(tmp_path / "a.json"))
    assert {c["id"]: c["name"] for c in found.cats.values()} == {1: "1", 3: "3"}
    images = {entry["file_name"]: entry for entry in found.imgs.values()}
    assert set(images) == set(MASKS)
    for name, masks in MASKS.items():
        listed = found.loadAnns(found.getAnnIds(imgIds=images[name]["id"]))
        assert {str(a["category_id"]) for a in listed} == set(masks)
        for annotation in listed:
            expected = masks[str(annotation["category_id"])]
            assert np.array_equal(found.annToMask(annotation), expected)
            assert annotation["area"] == expected.sum()
    assert images["a.jpg"]["person_verdict"] == "OK"
    assert images["a.jpg"]["inspection"] == "1"


def test_coco_for_our_own_reader(store: StoredResults, tmp_path: Path) -> None:
    export(store, tmp_path / "a.json", Form.COCO)
    labels = coco.read(tmp_path / "a.json", ReadOptions())
    assert set(labels.frames) == set(MASKS)
    assert [name for name, frame in labels.frames.items() if frame.clean] == ["dir/clean.jpg"]
    assert labels.frames["a.jpg"].attributes["person"] == "@meier"


def kaggle_mask(rle: str) -> np.ndarray:
    """As Kaggle's page says it: 1-based pairs of start and length, top to bottom first."""
    flat = np.zeros(SIZE_WH[0] * SIZE_WH[1], np.bool_)
    numbers = list(map(int, rle.split()))
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        flat[start - 1 : start - 1 + length] = True
    return flat.reshape(SIZE_WH).T


@pytest.mark.parametrize("form", [Form.KAGGLE, Form.KAGGLE_SUBMISSION])
def test_kaggle(store: StoredResults, tmp_path: Path, form: Form) -> None:
    done = export(store, tmp_path / "k.csv", form)
    assert (done.rows, done.left_out) == (3, LEFT_OUT)
    found: dict[str, dict[str, np.ndarray]] = {}
    for row in rows_of(tmp_path / "k.csv"):
        if form is Form.KAGGLE:
            image, kind = row["ImageId"], row["ClassId"]
        else:
            image, _, kind = row["ImageId_ClassId"].rpartition("_")
        of_image = found.setdefault(image.lstrip("'"), {})
        if row["EncodedPixels"]:
            of_image[kind] = kaggle_mask(row["EncodedPixels"])
    assert set(found) == set(MASKS)
    for name, masks in MASKS.items():
        assert set(found[name]) == set(masks)
        assert all(np.array_equal(found[name][kind], mask) for kind, mask in masks.items())
    read = severstal.read_csv(tmp_path / "k.csv", size_wh=SIZE_WH, class_ids=list(TYPES))
    assert read["dir/clean.jpg"].clean


def test_label_studio_gets_predictions(store: StoredResults, tmp_path: Path) -> None:
    done = export(store, tmp_path / "tasks.json", Form.LABEL_STUDIO)
    # A frame without a place is a task without a mask: somebody should look for it.
    assert (done.rows, done.left_out) == (4, {"UNKNOWN": 2})
    assert done.beside == (str(tmp_path / "label_config.xml"),)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [task["data"]["verdict"] for task in tasks] == ["NG", "OK", "NG", "NG"]
    assert not any(task["annotations"] for task in tasks)
    by_name = {task["data"]["image"].partition("images/")[2]: task for task in tasks}
    assert by_name["nowhere.jpg"]["predictions"] == []
    assert by_name["nowhere.jpg"]["data"]["reason"] == "not-localised"
    (clean,) = by_name["dir/clean.jpg"]["predictions"]
    assert clean["result"] == []
    (prediction,) = by_name["a.jpg"]["predictions"]
    assert prediction["model_version"] == "model@aaaaaaaa"
    assert prediction["score"] == 1 / 3
    config = (tmp_path / "label_config.xml").read_text()
    kinds = {name: kind for kind, name in TYPES.items()}
    for result in prediction["result"]:
        (label,) = result["value"]["brushlabels"]
        assert f'value="{label}"' in config
        assert result["score"] == {"1": 1 / 7, "3": 2 / 7}[kinds[label]]
        drawn = naive_mask(result["value"]["rle"], SIZE_WH)
        assert np.array_equal(drawn, MASKS["a.jpg"][kinds[label]])
    # A model's guess is no label.
    assert not label_studio.read(tmp_path / "tasks.json", ReadOptions()).frames


def test_a_frame_is_labelled_once(tmp_path: Path) -> None:
    path = fill(tmp_path / "store.db", [RESULTS[0]])
    with Store(path) as store:
        run = store.begin(a_run("two"))
        again = inspection("a.jpg")
        store.add(run, 0, "/other", again, b"2" * 32).result()
    with StoredResults(path) as store:
        with pytest.raises(InputError, match=r"a\.jpg is in run 1 and in run 2; choose"):
            export(store, tmp_path / "a.json", Form.COCO)
        assert export(store, tmp_path / "a.json", Form.COCO, Filter(run=2)).counts == {"OK": 1}
        assert export(store, tmp_path / "a.csv", Form.CSV).rows == 2


def test_nothing_to_label_writes_nothing(store: StoredResults, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none matches"):
        export(store, tmp_path / "a.json", Form.COCO, Filter(verdict=Verdict.UNKNOWN))
    assert list(tmp_path.iterdir()) == []


# Files -------------------------------------------------------------------------------------------


def test_which_and_in_which_order(store: StoredResults, tmp_path: Path) -> None:
    done = export(
        store,
        tmp_path / "a.csv",
        Form.CSV,
        Filter(verdict=Verdict.NG),
        sort=Sort.AREA,
        limit=2,
    )
    areas = [int(row["area_px"]) for row in rows_of(tmp_path / "a.csv")]
    assert areas == sorted((sum(d.area_px for d in r.defects) for r in RESULTS), reverse=True)[:2]
    assert done.counts == {"OK": 0, "NG": 2, "UNKNOWN": 0}


def test_an_earlier_file_stays_until_the_new_one_is_complete(
    store: StoredResults, tmp_path: Path
) -> None:
    target = tmp_path / "a.csv"
    target.write_text("earlier")
    with pytest.raises(InputError, match="--overwrite"):
        export(store, target, Form.CSV)

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(store, target, Form.CSV, overwrite=True, progress=stop)
    assert target.read_text() == "earlier"
    (tmp_path / ".a.csv.unfinished").mkdir()  # of a process that was killed
    export(store, target, Form.CSV, overwrite=True)
    assert len(rows_of(target)) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("", "is a folder"),
        ("none/a.csv", "is none; make it"),
        ("store.db", "is the store itself"),
    ],
)
def test_no_place_to_write(tmp_path: Path, target: str, said: str) -> None:
    path = fill(tmp_path / "store.db", RESULTS[:1])
    with StoredResults(path) as store, pytest.raises(InputError, match=said):
        export(store, tmp_path / target, Form.CSV, overwrite=True)


def test_a_disk_that_is_full(
    store: StoredResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("steelsight.exports._write_lines", full)
    with pytest.raises(InputError, match="No space left on device"):
        export(store, tmp_path / "a.jsonl", Form.JSONL)
    assert list(tmp_path.iterdir()) == []


def test_all_rows_are_of_one_moment(tmp_path: Path) -> None:
    path = fill(tmp_path / "store.db", RESULTS)
    added = []
    with Store(path) as writer, StoredResults(path) as store:
        run = writer.begin(a_run())

        def add(_done: int, total: int) -> None:
            late = inspection("late.jpg")
            added.append(writer.add(run, 99, "/late", late, key_of(99)).result())
            assert total == 6

        assert export(store, tmp_path / "a.csv", Form.CSV, progress=add).rows == 6
        assert added
        assert export(store, tmp_path / "b.csv", Form.CSV).rows == 7


def test_forms_by_name() -> None:
    assert form_of(Path("a.CSV")) is Form.CSV
    assert form_of(Path("a.json")) is Form.COCO
    assert form_of(Path("a.json"), "label-studio") is Form.LABEL_STUDIO
    for path, named in ((Path("a.xlsx"), None), (Path("a.csv"), "excel")):
        with pytest.raises(InputError, match="label-studio"):
            form_of(path, named)


def test_a_damaged_row_is_one_line(tmp_path: Path) -> None:
    path = fill(tmp_path / "store.db", RESULTS)
    connection = apsw.Connection(str(path))
    connection.execute("DELETE FROM defects WHERE ordinal = 1")
    connection.close()
    with StoredResults(path) as store:
        with pytest.raises(SteelsightError, match="is damaged"):
            export(store, tmp_path / "a.csv", Form.CSV)
        # The store answers other questions still.
        assert store.count_inspections(EVERYTHING) == 6
    assert not (tmp_path / "a.csv").exists()


# Memory ------------------------------------------------------------------------------------------


def multiply(path: Path, copies: int) -> Path:
    """The results of a store under other names, so often."""
    fill(path, RESULTS)
    connection = apsw.Connection(str(path))
    names = {
        table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        for table in ("inspections", "defects", "sightings")
    }

    def columns(table: str, **changes: str) -> str:
        return ", ".join(changes.get(name, name) for name in names[table])

    shift = "id + 6 * n.n"
    several = f"(WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {copies})"
    several += " SELECT n FROM n) n"
    inspections = columns("inspections", id=shift, key="NULL")
    defects = columns("defects", id="NULL", inspection="inspection + 6 * n.n")
    sightings = columns(
        "sightings",
        id=shift,
        name="n.n || name",
        position="position + 6 * n.n",
        inspection="inspection + 6 * n.n",
    )
    connection.execute("PRAGMA synchronous=OFF; BEGIN")
    for table, chosen in (
        ("inspections", inspections),
        ("defects", defects),
        ("sightings", sightings),
    ):
        connection.execute(f"INSERT INTO {table} SELECT {chosen} FROM {several}, {table}")
    connection.execute("COMMIT")
    connection.close()
    return path


MEASURE = """
import resource, sys
from pathlib import Path
from steelsight.exports import Form, StoredResults, export
form = Form(sys.argv[2])
with StoredResults(Path(sys.argv[1])) as store:
    done = export(store, Path(sys.argv[1] + "." + form), form, overwrite=True)
print(done.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def rows_and_peak_mb(path: Path, form: Form) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), form], capture_output=True, text=True, check=True
    )
    rows, peak_mb = map(int, done.stdout.split())
    return rows, peak_mb


def _check_memory(tmp_path: Path, form: Form, few: int, many: int, most_mb: int) -> None:
    small = rows_and_peak_mb(multiply(tmp_path / "few.db", few), form)
    large = rows_and_peak_mb(multiply(tmp_path / "many.db", many), form)
    assert (small[0], large[0]) == (6 * few + 6, 6 * many + 6)
    assert large[1] < small[1] + most_mb


def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    _check_memory(tmp_path, Form.JSONL, 50, 1500, 25)


@pytest.mark.soak
@pytest.mark.parametrize("form", [Form.CSV, Form.JSONL, Form.PARQUET])
def test_memory_does_not_grow_with_100_000_rows(tmp_path: Path, form: Form) -> None:
    # SQLite fills its page cache of 64 MB first.
    _check_memory(tmp_path, form, 1500, 17_000, 64 + 40)
