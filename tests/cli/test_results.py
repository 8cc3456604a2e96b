"""``steelsight results``, ``review`` and ``replay`` as people and scripts meet them."""

import csv
import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import apsw
import pytest
from tests.store.results import key_of, result, run_of

from steelsight.cli import main
from steelsight.cli.results import STORE_NAME, _since_ms
from steelsight.data.synthetic import CoilConfig, write_severstal
from steelsight.defects import Reason, Verdict
from steelsight.errors import InputError
from steelsight.report.folder import STORE
from steelsight.store.store import Store

# main() leaves it to cyclopts to read sys.argv, as the installed command does.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

NOW_S = 1_760_000_000
STRANGE = "[red]:x: \x1b[31m\u202e.jpg"


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """Run 1: frames 0 to 7 of coil 17; run 2, a week later, without scale: 8 to 11 of coil 18."""
    path = tmp_path_factory.mktemp("results") / "plant.db"
    now = NOW_S
    with Store(path, group_ms=1, clock=lambda: now) as store:
        for key, numbers, coil in (("one", range(8), "17"), ("two", range(8, 12), "18")):
            run = store.begin(run_of(key, 0.5 if key == "one" else None))
            for n in numbers:
                one = result(n, name=STRANGE if n == 11 else f"{n}a.jpg")
                store.add(run, n, f"/frames/{n}", one, key_of(n), coil).result()
            store.finish(run, complete=key == "one")
            now += 7 * 86400
        store.review(2, Verdict.OK, "A. Meier", "=shadow")
        store.review(3, Verdict.OK, "B. Braun")
        store.review(3, Verdict.NG, "C. \x1b[1mClaus")
    return path


def lines_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def ids(call, path: Path, *options: object) -> list[int]:
    answer = call("results", path, "--json", *options)
    assert answer.code == 0, answer.err
    return [row["id"] for row in lines_of(answer.out)]


# Questions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], list(range(1, 13))),
        (["--verdict", "NG"], [2, 3, 6, 7, 10, 11]),
        (["--verdict", "NG", "--run", "2"], [10, 11]),
        (["--reason", "blank"], [4, 8, 12]),
        (["--reason", "truncated"], []),
        (["--coil", "18"], [9, 10, 11, 12]),
        (["--name", "1*a.jpg"], [2, 11]),
        (["--name", "[[]red*"], [12]),
        (["--since", "2025-10-12"], [9, 10, 11, 12]),
        (["--overruled"], [2]),
        (["--sort", "newest", "--limit", "2"], [12, 11]),
    ],
)
def test_conditions(call, path, options, expected):
    assert ids(call, path, *options) == expected


def test_types_and_distances_are_those_of_the_defects(call, path):
    defects = {n + 1: result(n).defects for n in range(8)}
    of_type = [n for n, found in defects.items() if any(d.class_id == "3" for d in found)]
    assert of_type
    assert ids(call, path, "--type", "3", "--run", 1) == of_type

    def edge_mm(d):
        return 0.5 * min(d.bbox_xywh[0], 1600 - d.bbox_xywh[0] - d.bbox_xywh[2])

    for most in (20, 100, 250):
        near = [n for n, found in defects.items() if any(edge_mm(d) <= most for d in found)]
        assert ids(call, path, "--within-mm", most, "--run", 1) == near
    refused = call("results", path, "--within-mm", 20)
    assert refused.code == 1
    assert "run 2 was inspected without; give --mm-per-px" in refused.err
    assert ids(call, path, "--within-mm", 2000, "--mm-per-px", 0.5) == ids(
        call, path, "--verdict", "NG"
    )


def test_a_table_for_people(call, path):
    answer = call("results", path)
    rows = answer.out.splitlines()
    headings = "id frame verdict reason faulty defects area, px coil model inspected people say"
    assert " ".join(rows[0].split()) == headings
    assert [row.split()[0] for row in rows[1:13]] == [str(n) for n in range(12, 0, -1)]
    second = rows[11]
    assert "1a.jpg" in second
    assert "OK (A. Meier, 2025-10-2" in second
    assert second.rstrip().endswith(": =shadow)")
    both = rows[10]
    assert both.index("OK (B. Braun") < both.index(r"NG (C. \x1b[1mClaus")
    assert rows[-2] == "All by model@aaaaaaaa, decision dddddddd, fake-fp32."
    assert rows[-1] == "12 of 12 results that match: 3 OK + 6 NG + 3 UNKNOWN = 12."
    assert answer.err == ""


def test_names_are_shown_and_not_obeyed(call, path):
    answer = call("results", path, "--run", 2)
    assert r"[red]:x: \x1b[31m\u202e.jpg" in answer.out
    assert "\x1b" not in answer.out
    assert STRANGE in [row["image"] for row in lines_of(call("results", path, "--json").out)]


def test_a_limit_says_how_many_there_are(call, path):
    answer = call("results", path, "--verdict", "NG", "--limit", 2, "--sort", "area")
    assert answer.out.splitlines()[-1] == "2 of 6 results that match: 0 OK + 6 NG + 0 UNKNOWN = 6."
    nothing = call("results", path, "--coil", "19")
    assert nothing.out == "0 of 0 results that match: 0 OK + 0 NG + 0 UNKNOWN = 0.\n"
    assert nothing.code == 0


def test_rows_for_machines(call, path):
    answer = call("results", path, "--json", "--name", "2a.jpg")
    (row,) = lines_of(answer.out)
    one = result(2)
    assert row["faulty_probability"] == one.faulty_probability
    assert sum(row["defects_by_type"].values()) == row["defects"] == len(one.defects)
    assert (row["coil"], row["run"], row["reason"]) == ("17", 1, None)
    assert row["inspected"] == "2025-10-09T08:53:20.000Z"
    assert [(r["verdict"], r["who"]) for r in row["reviews"]] == [
        ("OK", "B. Braun"),
        ("NG", "C. \x1b[1mClaus"),
    ]
    assert answer.err == "1 of 1 results that match: 0 OK + 1 NG + 0 UNKNOWN = 1.\n"


def test_defects(call, path):
    expected = [d for n in range(12) for d in result(n).defects]
    rows = lines_of(call("results", path, "--defects", "--json").out)
    assert [row["rle"] for row in rows] == [d.rle for d in expected]
    assert rows[0]["edge_mm"] == rows[0]["edge_px"] * 0.5
    assert rows[-1]["edge_mm"] is None
    answer = call("results", path, "--defects", "--type", 3, "--limit", 1)
    of_type = sum(d.class_id == "3" for d in expected)
    assert answer.out.splitlines()[-1] == (
        f"1 of {of_type} defects that match: {of_type} type 3 = {of_type}."
    )


def test_coils_and_runs(call, path):
    coils = call("results", path, "--coils")
    assert [line.split()[:5] for line in coils.out.splitlines()[1:3]] == [
        ["17", "8", "2", "4", "2"],
        ["18", "4", "1", "2", "1"],
    ]
    assert coils.out.endswith("2 of 2 coils; their frames: 3 OK + 6 NG + 3 UNKNOWN = 12.\n")
    (latest,) = lines_of(call("results", path, "--coils", "--since", "2025-10-12", "--json").out)
    assert (latest["coil"], latest["seen"]) == ("18", 4)
    runs = call("results", path, "--runs").out.splitlines()
    assert "stopped" in runs[1]
    assert "complete" in runs[2]
    one = lines_of(call("results", path, "--runs", "--json").out)[1]
    assert (one["run"], one["seen"], one["mm_per_px"], one["complete"]) == (1, 8, 0.5, True)


def test_no_coil_is_recorded(call, tmp_path):
    with Store(tmp_path / "a.db") as store:
        store.begin(run_of("one"))
    assert "inspect with --coil" in call("results", tmp_path / "a.db", "--coils").out


@pytest.mark.parametrize(
    ("given", "ago"),
    [
        ("30m", timedelta(minutes=30)),
        ("12h", timedelta(hours=12)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(days=14)),
        ("2026-11-20T10:00:00+00:00", timedelta(days=3, hours=2)),
        ("2026-11-20 11:00+01:00", timedelta(days=3, hours=2)),
    ],
)
def test_since(given, ago):
    now = datetime.fromisoformat("2026-11-23T12:00:00+00:00")
    assert _since_ms(given, now) == round((now - ago).timestamp() * 1000)


def test_since_a_day_is_that_of_this_machine():
    midnight = datetime(2026, 11, 20).astimezone()
    assert _since_ms("2026-11-20", midnight) == round(midnight.timestamp() * 1000)


@pytest.mark.parametrize("given", ["yesterday", "7", "-7d", "999999w", "2026-13-01"])
def test_since_something_else(given):
    with pytest.raises(InputError, match="expected --since such as"):
        _since_ms(given, datetime.now().astimezone())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--reason", "old"], "expected a reason of unreadable"),
        (["--run", 7], "there is no run 7"),
        (["--limit", 0], "expected --limit such as 20"),
        (["--within-mm", -1], "expected --within-mm such as 50"),
        (["--mm-per-px", 0], "expected --mm-per-px such as 0.5"),
        (["--coils", "--runs"], "choose one"),
        (["--coils", "--type", 3], "--coils takes --since"),
        (["--runs", "--since", "7d"], "--runs takes --limit"),
        (["--runs", "--to", "a.csv"], "--runs takes --limit"),
        (["--defects", "--sort", "area"], "--sort is about results"),
        (["--as", "csv"], "give --to FILE"),
        (["--overwrite"], "give --to FILE"),
        (["--to", "a.xlsx"], "say with --as what it is"),
        (["--to", "a.csv", "--as", "excel"], "expected a form of csv"),
        (["--to", "none/a.csv"], "make it, or give another file"),
        (["--to", "a.json", "--defects"], "leave --defects out"),
    ],
)
def test_mistakes_are_one_line(call, path, options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = call("results", path, *options)
    assert answer.code == 1
    assert said in answer.err
    assert answer.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_where_a_store_is_looked_for(call, path, tmp_path):
    assert STORE_NAME == STORE
    out = tmp_path / "out"
    out.mkdir()
    assert "holds no store.db" in call("results", out).err
    (out / "run.json").write_text(json.dumps({"identity": {"store": "/data/plant.db"}}))
    assert "its results are in /data/plant.db: give that" in call("results", out).err
    (out / STORE).write_bytes(path.read_bytes())
    assert call("results", out).out.splitlines()[-1].startswith("12 of 12 results")
    assert "does not exist" in call("results", tmp_path / "none").err
    (out / "text").write_text("text " * 2000)
    refused = call("results", out / "text")
    assert refused.code == 1
    assert refused.err.count("\n") == 1


def test_while_somebody_writes(call, path, tmp_path):
    place = tmp_path / "a.db"
    place.write_bytes(path.read_bytes())
    with Store(place):
        assert call("results", place).code == 0
        refused = call("review", place, 2, "--verdict", "OK", "--who", "me")
    assert refused.code == 1
    assert "another steelsight writes it" in refused.err
    assert refused.err.count("\n") == 1


# Files -------------------------------------------------------------------------------------------


def test_an_export_says_what_is_in_it(call, path, tmp_path):
    answer = call("results", path, "--verdict", "NG", "--limit", 4, "--to", tmp_path / "a.csv")
    assert answer.code == 0
    assert answer.out == (
        f"{tmp_path}/a.csv: 4 of 6 results that match, as csv: 0 OK + 4 NG + 0 UNKNOWN = 4.\n"
    )
    with (tmp_path / "a.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["2", "3", "6", "7"]
    again = call("results", path, "--to", tmp_path / "a.csv")
    assert again.code == 1
    assert "--overwrite" in again.err
    assert call("results", path, "--to", tmp_path / "a.csv", "--overwrite").code == 0


def test_what_is_left_out_is_told(call, path, tmp_path):
    answer = call("results", path, "--to", tmp_path / "a.json", "--run", 1)
    assert answer.code == 3
    assert "2 left out (UNKNOWN): as labels they would look clean" in answer.err
    listed = json.loads((tmp_path / "a.json").read_text())["images"]
    assert len(listed) == 6
    answer = call("results", path, "--to", tmp_path / "b.json", "--run", 1, "--json")
    assert answer.code == 3
    told = json.loads(answer.out)
    assert (told["rows"], told["left_out"], told["matching"]) == (6, {"UNKNOWN": 2}, 8)
    assert told["counts"] == {"OK": 2, "NG": 4}


def test_tasks_come_with_their_labelling_interface(call, path, tmp_path):
    tasks = tmp_path / "tasks.json"
    options = ("--run", 1, "--as", "label-studio")
    answer = call("results", path, "--to", tasks, "--verdict", "NG", *options)
    assert answer.code == 0
    assert "label_config.xml: the labelling interface" in answer.out
    tasks.unlink()
    assert "label_config.xml is there already" in call("results", path, "--to", tasks, *options).err


def test_ctrl_c_leaves_no_file(call, path, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("steelsight.exports._write_lines", stop)
    answer = call("results", path, "--to", tmp_path / "a.jsonl")
    assert answer.code == 130
    assert list(tmp_path.iterdir()) == []


def test_a_long_export_shows_how_far_it_is(call, path, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["steelsight.cli.results"], "LONG_EXPORT", 10)
    answer = call("results", path, "--to", tmp_path / "a.csv")
    assert "12/12" in answer.err
    assert answer.out.count("\n") == 1


@pytest.mark.parametrize("options", [["--json"], ["--limit", "12"]])
def test_a_reader_that_has_seen_enough(path, options):
    """As ``| head -1``: nobody reads on."""
    there, here = os.pipe()
    os.close(there)
    command = [sys.executable, "-m", "steelsight", "results", str(path), *options]
    done = subprocess.run(command, stdout=here, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(here)
    assert done.stderr == ""


# Reviews -----------------------------------------------------------------------------------------


@pytest.fixture
def own(path, tmp_path) -> Path:
    place = tmp_path / "own.db"
    place.write_bytes(path.read_bytes())
    return place


def test_a_review_stands_beside_the_verdict(call, own):
    said = call("review", own, 6, "--verdict", "OK", "--who", " D. Dorn ", "--note", "a scale")
    assert said.code == 0
    assert said.out == "Inspection 6, 5a.jpg: D. Dorn says OK, the model said NG.\n"
    too = call("review", own, 6, "--verdict", "NG", "--who", "E. Ernst", "--json")
    assert json.loads(too.out)["model"] == "NG"
    (row,) = lines_of(call("results", own, "--json", "--name", "5a.jpg").out)
    assert row["verdict"] == "NG"
    assert [(r["verdict"], r["who"], r["note"]) for r in row["reviews"]] == [
        ("OK", "D. Dorn", "a scale"),
        ("NG", "E. Ernst", ""),
    ]
    # The last word counts.
    assert ids(call, own, "--overruled") == [2]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([99, "--verdict", "OK", "--who", "me"], 1, "there is no number 99"),
        ([2, "--verdict", "OK", "--who", " "], 1, "got an empty --who"),
        ([2, "--verdict", "UNKNOWN", "--who", "me"], 2, "UNKNOWN"),
        ([2, "--who", "me"], 2, "--verdict"),
        ([2, "--verdict", "OK"], 2, "--who"),
    ],
)
def test_reviews_that_are_none(call, own, arguments, code, said):
    before = own.read_bytes()
    answer = call("review", own, *arguments)
    assert answer.code == code
    assert said in answer.err
    assert answer.err.count("\n") == 1
    assert own.read_bytes() == before


def test_a_review_makes_no_store(call, tmp_path):
    answer = call("review", tmp_path / "none.db", 1, "--verdict", "OK", "--who", "me")
    assert answer.code == 1
    assert list(tmp_path.iterdir()) == []


def test_all_reasons_may_be_asked_for(call, path):
    assert [reason for reason in Reason if call("results", path, "--reason", reason).code] == []


# Replay ------------------------------------------------------------------------------------------


def test_what_cannot_be_replayed_is_one_line(call, own):
    """The store of these tests was made without any model."""
    answer = call("replay", own, 2)
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert "expected its settings" in answer.err
    assert call("replay", own, 99).code == 1


@pytest.fixture(scope="module")
def inspected(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inspected")
    config = CoilConfig(frames=3, seed=5, faulty_share=1.0, size_wh=(320, 128))
    frames = write_severstal(config, folder / "drawn") / "images"
    with pytest.MonkeyPatch.context() as patch:
        words = ["inspect", frames, "--out", folder / "out", "--engine", "onnxruntime"]
        patch.setattr(sys, "argv", ["steelsight", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    return folder / "out"


def test_a_replay_says_that_it_is_the_same(call, inspected):
    answer = call("replay", inspected, 1)
    assert answer.code == 0, answer.err
    last = answer.out.splitlines()[-1]
    assert last.startswith("Inspection 1, synthetic-000000.jpg: ")
    assert last.endswith(": the same, bit for bit.")
    told = json.loads(call("replay", inspected, 1, "--json").out)
    assert (told["same"], told["differences"]) == (True, [])
    assert told["stored"]["sha256"] == told["now"]["sha256"]


def test_a_replay_shows_what_differs(call, inspected, tmp_path):
    place = tmp_path / "store.db"
    place.write_bytes((inspected / STORE).read_bytes())
    connection = apsw.Connection(str(place))
    connection.execute("UPDATE inspections SET detail = 'one [red]', faulty_probability = 0.125")
    ng = connection.execute("SELECT min(inspection) FROM defects").get
    long = " ".join(f"{n * 200 + 1} 3" for n in range(100))
    connection.execute(
        "UPDATE defects SET rle = ? WHERE inspection = ? AND ordinal = 0", (long, ng)
    )
    connection.close()
    answer = call("replay", place, ng)
    assert answer.code == 4
    lines = answer.out.splitlines()
    table = lines[
        next(n for n, line in enumerate(lines) if line.split()[:2] == ["value", "stored"]) :
    ]
    assert [line.split()[0] for line in table[1:4]] == [
        "detail",
        "faulty_probability",
        "defects[0].rle",
    ]
    assert "one [red]" in table[1]
    assert table[1].split()[-1] == "none"
    assert table[2].split()[1] == "0.125"
    assert max(map(len, table[:4])) < 200
    assert "processor may be another one" in lines[-1]
    told = json.loads(call("replay", place, ng, "--json").out)
    assert told["same"] is False
    rle = next(d for d in told["differences"] if d["what"] == "defects[0].rle")
    assert rle["stored"] == long


def test_a_frame_that_is_another_is_one_line(call, inspected, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"another")
    answer = call("replay", inspected, 1, "--frame", tmp_path / "a.jpg")
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert "expected its frame with sha256" in answer.err
