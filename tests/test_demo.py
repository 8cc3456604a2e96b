"""The first thing a newcomer runs."""

import csv
import json
import sys
from pathlib import Path

import pytest

from steelsight import cli

# main() leaves it to cyclopts to read sys.argv, as the installed command does.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")


@pytest.fixture
def demo(monkeypatch, capsys):
    """``demo("--frames", 6)``: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["steelsight", "demo", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return run


def lines(folder: Path) -> list[dict]:
    text = (folder / "results.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def drawn(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "frames" / "images").iterdir())


def test_the_demo_draws_inspects_and_reports(demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = demo("--frames", 6, "--seed", 3)
    assert code == 0
    folder = tmp_path / "demo"
    assert {p.name for p in folder.iterdir()} - {"overlays"} == {
        ".lock",
        "frames",
        "quarantine.csv",
        "report.html",
        "results.jsonl",
        "run.json",
        "store.db",
        "store.db.lock",
        "submission.csv",
    }
    assert {p.name for p in (folder / "frames").iterdir()} == {
        "SYNTHETIC.txt",
        "images",
        "images.csv",
        "train.csv",
    }
    names = [f"synthetic-{i:06d}.jpg" for i in range(6)]
    assert drawn(folder) == [line["image"] for line in lines(folder)] == names
    verdicts = [line["verdict"] for line in lines(folder)]
    ok, ng = verdicts.count("OK"), verdicts.count("NG")
    assert ok + ng == 6
    told = " ".join(out.split())
    assert f"Every frame has a verdict: {ok} + {ng} + 0 = 6." in told
    assert "Against the truth: of" in told
    assert "Drawn frames: proof that it runs, not of accuracy on your steel." in told
    assert "Open demo/report.html in a browser." in told
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "SYNTHETIC" in page
    assert "Drawn frames, not photographs." in page
    assert "6 drawn frames, seed 3" in page
    assert f"{ok} + {ng} + 0 = 6" in page
    overlays = list((folder / "overlays").glob("*.jpg")) if ng else []
    assert len(overlays) == ng


def test_the_summary_for_machines_adds_up_against_the_truth(demo, tmp_path):
    out = tmp_path / "demo"
    code, printed, _ = demo("--frames", 8, "--seed", 1, "--out", out, "--json")
    assert code == 0
    (text,) = printed.splitlines()
    summary = json.loads(text)
    assert summary["found"] == summary["seen"] == 8
    assert summary["ok"] + summary["ng"] + summary["unknown"] == 8
    truth = summary["truth"]
    with (out / "frames" / "images.csv").open(encoding="utf-8", newline="") as file:
        status = {row["ImageId"]: row["status"] for row in csv.DictReader(file)}
    verdicts = {line["image"]: line["verdict"] for line in lines(out)}
    assert verdicts.keys() == status.keys()
    pairs = [(status[name], verdicts[name]) for name in status]
    assert truth["found"] == pairs.count(("faulty", "NG"))
    assert truth["missed"] == pairs.count(("faulty", "OK"))
    assert truth["cleared"] == pairs.count(("clean", "OK"))
    assert truth["false_alarms"] == pairs.count(("clean", "NG"))
    assert len({s for s, _ in pairs}) == 2, "a coil with faulty and clean frames is needed here"


def test_a_second_demo_replaces_the_first(demo, tmp_path):
    demo("--frames", 6, "--seed", 3, "--out", tmp_path)
    first = (tmp_path / "frames" / "images" / "synthetic-000000.jpg").read_bytes()
    code, _, _ = demo("--frames", 2, "--seed", 4, "--out", tmp_path)
    assert code == 0
    assert drawn(tmp_path) == ["synthetic-000000.jpg", "synthetic-000001.jpg"]
    assert [line["image"] for line in lines(tmp_path)] == drawn(tmp_path)
    assert (tmp_path / "frames" / "images" / "synthetic-000000.jpg").read_bytes() != first
    overlays = [p.name for p in (tmp_path / "overlays").glob("*")]
    assert all("000000" in name or "000001" in name for name in overlays)
    assert len(overlays) == sum(line["verdict"] == "NG" for line in lines(tmp_path))
    assert "2 drawn frames, seed 4" in (tmp_path / "report.html").read_text(encoding="utf-8")
    # The first seed again: the same frames, the same answers.
    demo("--frames", 2, "--seed", 3, "--out", tmp_path)
    assert (tmp_path / "frames" / "images" / "synthetic-000000.jpg").read_bytes() == first


@pytest.mark.parametrize(
    "name", ["frames/mine.jpg", "frames/images/synthetic-000000.jpg", "results.jsonl", "mine.jpg"]
)
def test_frames_that_the_demo_did_not_draw_are_not_touched(demo, tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"a frame of somebody")
    code, out, err = demo("--frames", 2, "--out", tmp_path)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith(
        "steelsight: expected a new folder or that of an earlier demo"
    )
    assert "Traceback" not in err
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert path.read_bytes() == b"a frame of somebody"


def test_a_demo_that_was_stopped_while_drawing_can_be_run_again(demo, tmp_path, monkeypatch):
    from steelsight.data import synthetic

    encode = synthetic.encode_jpeg
    calls = 0

    def interrupted(grey_hw):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return encode(grey_hw)

    monkeypatch.setattr(synthetic, "encode_jpeg", interrupted)
    assert demo("--frames", 3, "--out", tmp_path)[0] == 130
    assert drawn(tmp_path) == ["synthetic-000000.jpg"]
    assert demo("--frames", 3, "--out", tmp_path)[0] == 0
