"""Real frames from file to figures, compared with what the trained network reached in fp32.

The figures are computed by ``benchmarks/real_frames.py`` from the result lines alone.
"""

import importlib.util
import json
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "real_frames.py"
STEELSIGHT = str(Path(sysconfig.get_path("scripts")) / "steelsight")
MASKED, CLEAN = 100, 60


@pytest.fixture(scope="module")
def real_frames() -> ModuleType:
    spec = importlib.util.spec_from_file_location("real_frames", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_frames"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def names(real_frames, shared_dir) -> list[str]:
    status = real_frames.read_table(shared_dir / "data" / "severstal" / "images.csv")
    masked = [row["ImageId"] for row in status if row["status"] == "faulty"]
    clean = [row["ImageId"] for row in status if row["status"] == "clean"]
    assert len(masked) == MASKED
    step = len(clean) // CLEAN
    return masked + clean[::step][:CLEAN]


@pytest.fixture(scope="module")
def results(names, shared_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("severstal")
    (folder / "frames").mkdir()
    for name in names:
        (folder / "frames" / name).symlink_to(shared_dir / "data" / "severstal" / "images" / name)
    done = subprocess.run(
        [STEELSIGHT, "inspect", "frames", "--out", "out", "--no-overlays", "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["seen"] == summary["ok"] + summary["ng"] == MASKED + CLEAN
    return folder / "out" / "results.jsonl"


def test_every_frame_has_one_line(results, names):
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert [line["image"] for line in lines] == sorted(names)
    assert all(line["size_wh"] == [1600, 256] for line in lines)


def test_figures_are_those_of_the_trained_network(results, shared_dir, real_frames):
    figures = real_frames.measure(results, shared_dir)
    assert figures.frames == MASKED + CLEAN
    assert figures.auroc == pytest.approx(figures.auroc_fp32, abs=0.02)
    assert figures.dice.keys() == set("1234")
    for class_id, dice in figures.dice.items():
        assert dice == pytest.approx(figures.dice_fp32[class_id], abs=0.02), f"type {class_id}"
    assert figures.mean_dice == pytest.approx(figures.mean_dice_fp32, abs=0.02)
    # The README of the weights: 0.999, and 0.855 in the mean over types.
    assert figures.auroc > 0.98
    assert figures.mean_dice > 0.83


def test_counts_add_up_by_group(results, shared_dir, real_frames):
    verdicts = real_frames.measure(results, shared_dir).verdicts
    assert {status: counts.total() for status, counts in verdicts.items()} == {
        "faulty": MASKED,
        "clean": CLEAN,
    }
    # A 2 % false-alarm threshold on frames that the network was trained on.
    assert verdicts["faulty"]["NG"] >= 97
    assert verdicts["clean"]["OK"] >= 54


def test_the_script_prints_the_figures(results, shared_dir):
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), str(results), str(shared_dir)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{MASKED + CLEAN} labelled frames" in done.stdout
    assert "frame AUROC" in done.stdout
    assert done.stdout.count("Dice type") == 4
    assert "clean" in done.stdout.splitlines()[-2]


# ------------------------------------------------------------- the computation itself, by hand


def test_run_lengths_go_down_the_columns(real_frames):
    mask = real_frames.mask_of(["1 2", "8 1"], (3, 4))  # columns, rows
    assert np.argwhere(mask).tolist() == [[0, 0], [1, 0], [3, 1]]
    with pytest.raises(ValueError, match="leaves a frame"):
        real_frames.mask_of(["12 2"], (3, 4))
    with pytest.raises(ValueError, match="leaves a frame"):
        real_frames.mask_of(["0 2"], (3, 4))


def test_figures_of_a_run_that_can_be_checked_by_hand(real_frames, tmp_path):
    (tmp_path / "data" / "severstal").mkdir(parents=True)
    (tmp_path / "weights").mkdir()
    (tmp_path / "data" / "severstal" / "images.csv").write_text(
        "ImageId,status,classes\na,faulty,1\nb,faulty,1 2\nc,clean,\nd,clean,\ne,disputed,\n"
    )
    (tmp_path / "data" / "severstal" / "train.csv").write_text(
        "ImageId,ClassId,EncodedPixels\na,1,1 4\nb,1,1 2\nb,2,5 2\n"
    )
    (tmp_path / "weights" / "expected_outputs.csv").write_text(
        "ImageId,faulty_logit,dice_1,dice_2\n"
        "a,3,0.9,\nb,2,0.7,0.5\nc,-2,,\nd,-3,,\ne,0,,\nnot inspected,1,,\n"
    )

    def line(image, verdict, probability, *found):
        defects = [{"class": class_id, "rle": rle} for class_id, rle in found]
        told = {"image": image, "verdict": verdict, "faulty_probability": probability}
        return json.dumps(told | {"defects": defects, "size_wh": [4, 4]})

    results = tmp_path / "results.jsonl"
    results.write_text(
        "\n".join(
            [
                line("a", "NG", 0.9, ("1", "3 2"), ("1", "5 2"), ("2", "9 1")),
                line("b", "OK", 0.2),
                line("c", "NG", 0.5),
                line("d", "OK", 0.1),
                line("e", "NG", 0.99),
                line("unlabelled", "OK", 0.5),
            ]
        )
    )
    figures = real_frames.measure(results, tmp_path)
    assert figures.frames == 5
    # Of the four pairs faulty-clean only b-c stands in the wrong order.
    assert (figures.auroc, figures.auroc_fp32) == (0.75, 1.0)
    # a: 4 pixels found, 4 true, 2 common; b: nothing found.
    assert figures.dice == {"1": 0.25, "2": 0.0}
    assert figures.dice_fp32 == pytest.approx({"1": 0.8, "2": 0.5})
    assert figures.pairs == {"1": 2, "2": 1}
    assert figures.mean_dice == 0.125
    assert figures.verdicts == {
        "faulty": Counter(NG=1, OK=1),
        "clean": Counter(NG=1, OK=1),
        "disputed": Counter(NG=1),
    }
