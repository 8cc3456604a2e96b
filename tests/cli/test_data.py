"""``steelsight data``: what people type, what they get, and with which exit code."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from steelsight.data.splits import load_split
from steelsight.data.synthetic import CoilConfig, write_severstal

# main() leaves it to cyclopts to read sys.argv, as the installed command does.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Twelve small drawn frames with their labels."""
    config = CoilConfig(frames=12, seed=5, faulty_share=0.7, size_wh=(320, 128))
    return write_severstal(config, tmp_path_factory.mktemp("drawn") / "coil")


@pytest.fixture
def leaky(drawn, tmp_path) -> Path:
    """A split by folders whose test part holds a flipped copy of a training frame."""
    for image in sorted((drawn / "images").iterdir())[:3]:
        pixels = cv2.imread(str(image), cv2.IMREAD_GRAYSCALE)
        for part, shown in (("train", pixels), ("test", np.fliplr(pixels))):
            folder = tmp_path / "leaky" / part
            folder.mkdir(parents=True, exist_ok=True)
            if part == "train" or image.name.endswith("0.jpg"):
                cv2.imwrite(str(folder / f"{image.stem}.png"), shown)
    return tmp_path / "leaky"


# ---------------------------------------------------------------------------------------- convert


def test_there_and_back(call, drawn, tmp_path):
    there = call("data", "convert", drawn, "--to", "coco", "--out", tmp_path / "coco")
    assert (there.code, there.err) == (0, "")
    assert "Read back and compared: every mask is the same, pixel by pixel." in there.out
    assert not (tmp_path / "coco" / "images").exists()
    back = call(
        *("data", "convert", tmp_path / "coco", "--to", "severstal", "--out", tmp_path / "back"),
        *("--images", drawn / "images", "--place", "copy"),
    )
    assert back.code == 0
    masks = [line for line in (drawn / "train.csv").read_text().splitlines() if line[-1] != ","]
    assert (tmp_path / "back" / "train.csv").read_text().splitlines() == masks
    assert len(list((tmp_path / "back" / "images").iterdir())) == 12


@pytest.fixture
def overlapping(tmp_path) -> Path:
    folder = tmp_path / "overlapping"
    folder.mkdir()
    (folder / "train.csv").write_text("ImageId,ClassId,EncodedPixels\na.jpg,1,1 8\na.jpg,2,5 4\n")
    return folder


def test_what_a_format_cannot_hold_is_told(call, overlapping, tmp_path):
    arguments = ("data", "convert", overlapping, "--size", "4x4", "--to", "mask-index", "--out")
    answer = call(*arguments, tmp_path / "a")
    assert answer.code == 0
    assert "Changed: a.jpg, type 1: IoU 0.5000 (4 px lost, 0 px added)." in answer.out
    assert call(*arguments, tmp_path / "b", "--strict").code == 4
    as_json = json.loads(call(*arguments, tmp_path / "c", "--json").out)
    assert as_json["losses"] == [
        {"image": "a.jpg", "class_id": "1", "iou": 0.5, "missing_px": 4, "added_px": 0}
    ]


def test_keep_going_lists_all_broken_labels(call, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "train.csv").write_text(
        "ImageId,ClassId,EncodedPixels\na.jpg,1,1 8\nb.jpg,1,0 1\nc.jpg,1,5\nd.jpg,1,\n"
    )
    arguments = ("data", "convert", folder, "--size", "4x4", "--to", "coco", "--out")
    first = call(*arguments, tmp_path / "a")
    assert first.code == 1
    assert first.err.count("\n") == 1
    assert "row 3, image 'b.jpg', type '1': start '0'" in first.err
    assert not (tmp_path / "a").exists()
    going = call(*arguments, tmp_path / "b", "--keep-going")
    assert going.code == 3
    assert [line.split("row ")[1][0] for line in going.err.splitlines() if "row " in line] == [
        "3",
        "4",
    ]
    assert "2 frames with 1 masks" in going.out
    assert "Left out, a broken label: 2 images (b.jpg, c.jpg)." in going.out


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is Unix's")
def test_what_a_killed_conversion_left_goes_with_the_next_one(call, drawn, tmp_path):
    out = tmp_path / "coco"
    # Killed when all is written and nothing is proven: the fullest folder there can be.
    program = (
        "import os, signal, sys\n"
        "from steelsight import cli\n"
        "from steelsight.data import convert\n"
        "convert._read_back = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "cli.main()\n"
    )
    arguments = ["data", "convert", drawn, "--to", "coco", "--out", out, "--place", "copy"]
    killed = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    left = tmp_path / ".coco.partial"
    assert len(list((left / "images").iterdir())) == 12
    assert list(tmp_path.iterdir()) == [left]
    (left / "images" / "stale.jpg").write_bytes(b"of the killed one")
    assert call(*arguments).code == 0
    assert list(tmp_path.iterdir()) == [out]
    assert len(list((out / "images").iterdir())) == 12


def test_an_archive_is_a_data_set(call, drawn, tmp_path):
    shutil.make_archive(str(tmp_path / "coil"), "zip", drawn.parent, drawn.name)
    answer = call(
        *("data", "convert", tmp_path / "coil.zip", "--to", "yolo", "--out", tmp_path / "yolo"),
        *("--place", "copy"),
    )
    assert answer.code == 0
    assert len(list((tmp_path / "yolo" / "labels").iterdir())) == 12


def test_an_output_inside_the_data_set_is_refused(call, overlapping):
    answer = call("data", "convert", overlapping, "--to", "coco", "--out", overlapping / "coco")
    assert answer.code == 1
    assert "lies in the data set itself" in answer.err
    assert [p.name for p in overlapping.iterdir()] == ["train.csv"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("convert missing --to coco --out ../x", "missing does not exist"),
        ("convert ../empty --to coca --out ../x", "expected a format out of severstal, "),
        ("convert ../empty --to coco --out ../x", "no label format recognised"),
        (
            "convert ../empty --to coco --out ../x --format coca",
            "expected a format out of severstal, ",
        ),
        (
            "convert ../empty --to coco --out ../x --place move",
            "expected --place leave, copy, link",
        ),
        ("convert ../empty --to coco --out ../x --size 1600", "expected --size WIDTHxHEIGHT"),
        ("convert ../empty --from severstal --to coco --out ../x", "EncodedPixels"),
        ("check missing", "missing does not exist"),
        ("check . --split missing.json", "missing.json"),
        ("check . --results missing.jsonl", "missing.jsonl"),
        ("explore missing", "missing does not exist"),
        ("split missing --out s.json", "missing does not exist"),
        ("split . --out s.json --parts a=1 --folds 3", "--parts or --folds, got both"),
        ("split . --out s.json --parts a=0.5,b=0.4", "0.9"),
        ("split . --out s.json --parts a", "a"),
    ],
)
def test_mistakes_are_one_line(call, tmp_path, monkeypatch, arguments, told):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    answer = call("data", *arguments.split())
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert told in answer.err
    assert list(Path().iterdir()) == []


# ------------------------------------------------------------------------------------------ check


def test_a_sound_data_set(call, drawn, tmp_path):
    answer = call("data", "check", drawn, "--out", tmp_path / "check", "--strict")
    assert answer.code == 0
    findings = json.loads((tmp_path / "check" / "findings.json").read_text())
    assert not findings["leaks_or_conflicts"]
    assert findings["counts"]["frames"] == findings["counts"]["readable"] == 12
    page = (tmp_path / "check" / "report.html").read_text()
    assert findings["verdict"] in page
    assert "<script" not in page


def test_a_leak_is_exit_code_4_with_strict(call, leaky, tmp_path):
    assert call("data", "check", leaky, "--out", tmp_path / "a").code == 0
    answer = call("data", "check", leaky, "--out", tmp_path / "b", "--strict", "--json")
    assert answer.code == 4
    (leak,) = [f for f in json.loads(answer.out)["findings"] if f["code"] == "leak"]
    assert leak["images"] == ["test/synthetic-000000.png"]
    (case,) = leak["evidence"]
    assert case["images"] == ["train/synthetic-000000.png", "test/synthetic-000000.png"]
    assert case["turn"] == "flip-left-right"


def test_damaged_missing_and_broken_are_exit_code_3(call, drawn, tmp_path):
    folder = shutil.copytree(drawn, tmp_path / "damaged")
    image = folder / "images" / "synthetic-000001.jpg"
    image.write_bytes(image.read_bytes()[:2000])
    (folder / "images" / "synthetic-000002.jpg").unlink()
    answer = call("data", "check", folder, "--out", tmp_path / "check", "--json")
    assert answer.code == 3
    counts = json.loads(answer.out)["counts"]
    assert (counts["unreadable"], counts["missing"], counts["readable"]) == (1, 1, 10)


# ---------------------------------------------------------------------------------------- explore


def test_exploring(call, drawn, tmp_path):
    answer = call("data", "explore", drawn, "--out", tmp_path / "explore")
    assert answer.code == 0
    summary = json.loads((tmp_path / "explore" / "summary.json").read_text())
    assert summary["counts"]["faulty"] + summary["counts"]["clean"] == 12
    for consequence in summary["consequences"]:
        assert consequence["sentence"] in answer.out
    assert "summary.json" in (tmp_path / "explore" / "report.html").read_text()


def test_exploring_labels_alone(call, drawn, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_bytes((drawn / "train.csv").read_bytes())
    answer = call(
        *("data", "explore", labels, "--size", "320x128", "--out", tmp_path / "explore"),
        *("--total-frames", "100", "--json"),
    )
    assert answer.code == 0
    counts = json.loads(answer.out)["counts"]
    assert counts["faulty"] + counts["clean"] == 100


# ------------------------------------------------------------------------------------------ split


def test_a_split_is_verified(call, drawn, tmp_path):
    path = tmp_path / "split.json"
    answer = call("data", "split", drawn, "--out", path, "--folds", "3", "--seed", "1")
    assert answer.code == 0
    assert "fold-2" in answer.out
    split = load_split(path)
    assert len(split.frames) == 12
    again = call("data", "split", drawn, "--out", tmp_path / "b.json", "--folds", 3, "--seed", 1)
    assert again.code == 0
    assert (tmp_path / "b.json").read_bytes() == path.read_bytes()
    assert call("data", "split", drawn, "--out", path, "--folds", "3").code == 1
    check = ("data", "check", "--split", path, "--out", tmp_path / "check", "--strict")
    assert call(*check, drawn).code == 0
    changed = shutil.copytree(drawn, tmp_path / "changed")
    shutil.copy(changed / "images/synthetic-000003.jpg", changed / "images/synthetic-000004.jpg")
    answer = call(*check, changed)
    assert answer.code == 4
    assert "synthetic-000004.jpg' is another file than was split" in answer.out


def test_many_types_do_not_flood_the_terminal(call, drawn, tmp_path):
    names = [str(number) for number in range(1, 501)]
    path = tmp_path / "split.json"
    told = ("--folds", "2", "--classes", ",".join(names))
    answer = call("data", "split", drawn, "--out", path, *told)
    assert answer.code == 0
    assert "type 12" in answer.out
    assert "type 13" not in answer.out.splitlines()[0]
    assert f"500 types in all; {path} counts the others too." in answer.out
    assert f"notes in all; {path} holds them." in answer.out
    assert len(answer.out.splitlines()) < 40
    assert len(load_split(path).parts[0].frames_by_type) == 500


def test_coils_are_never_divided(call, drawn, tmp_path):
    frames = sorted(p.name for p in (drawn / "images").iterdir())
    table = tmp_path / "coils.csv"
    rows = [f"{name},C{number // 3}" for number, name in enumerate(frames)]
    table.write_text("\n".join(["ImageId,coil", *rows]) + "\n")
    answer = call(
        *("data", "split", drawn, "--out", tmp_path / "s.json", "--parts", "train=0.5,test=0.5"),
        *("--frame-list", table, "--group-by", "coil"),
    )
    assert answer.code == 0
    assignment = load_split(tmp_path / "s.json").assignment
    for coil in range(4):
        assert len({assignment[name] for name in frames[3 * coil : 3 * coil + 3]}) == 1
    wrong = call("data", "split", drawn, "--out", tmp_path / "t.json", "--group-by", "date")
    assert wrong.code == 1
    assert "'date'" in wrong.err
