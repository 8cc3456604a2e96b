"""``steelsight benchmark`` in this process."""

import json
from importlib import import_module

import pytest

from steelsight.benchmark import run as room
from steelsight.benchmark.machine import ColdStart
from steelsight.benchmark.race import Spread
from steelsight.data.synthetic import CoilConfig, write_severstal

SMALL = ("--engine", "onnxruntime", "--frames", 2, "--faulty-share", 0.5, "--rounds", 1)


@pytest.fixture
def quick(monkeypatch):
    """No processes are started, no peak is measured."""
    monkeypatch.setattr(
        room, "cold_start", lambda *given, decision: ColdStart(Spread.of([0.5]), 200.0)
    )
    monkeypatch.setattr(room, "_probes", lambda *given: {})


def test_drawn_frames_from_bytes_to_figures(call, tmp_path, quick):
    done = call(
        "benchmark", *SMALL, "--line-speed", "1m/s", "--mm-per-px", 0.5, "--out", tmp_path / "out"
    )
    assert done.code == 0, done.err
    for told in ("2 drawn frames (not photographs), 1 faulty", "frames/s, some at once",
                 "% of time: gate", "severstal-r50 onnxruntime-int8", "1 camera",
                 "frame intervals", "benchmark.json"):  # fmt: skip
        assert told in done.out
    facts = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert facts["frames"]["drawn"] is True
    assert facts["frames"]["count"] == 2
    assert facts["machine"]["cpu"]
    assert facts["versions"]["onnxruntime"]
    assert facts["command"].startswith("steelsight benchmark")
    (found,) = facts["contestants"]
    assert found["frames_per_second"]["median"] > 0
    assert sum(found["verdicts"].values()) == 2
    assert sum(found["share_of_time"].values()) == pytest.approx(1, abs=1e-3)
    again = call("benchmark", *SMALL, "--out", tmp_path / "out")
    assert again.code == 1
    assert "--overwrite" in again.err


def test_labelled_frames_have_accuracy_beside_speed(call, tmp_path, quick):
    data = write_severstal(
        CoilConfig(frames=4, seed=5, faulty_share=0.5, size_wh=(320, 128)), tmp_path / "d"
    )
    stated = (data / "images.csv").read_text()
    done = call("benchmark", "--labels", data, *SMALL, "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["frames"]["drawn"] is False
    assert facts["frames"]["files"] == 4
    assert facts["frames"]["faulty"] == 1
    assert facts["frames"]["usable_labels"] == 4
    assert stated.count(",faulty,") > 1, "the test needs both kinds"
    assert facts["contestants"][0]["accuracy"]["frames"] == 2


def test_files_without_labels_are_taken_as_they_come(call, tmp_path, quick):
    data = write_severstal(CoilConfig(frames=2, seed=5, size_wh=(320, 128)), tmp_path / "d")
    (data / "images" / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    done = call("benchmark", data / "images", *SMALL[:4], "--rounds", 1, "--json")
    assert done.code == 0, done.err
    frames = json.loads(done.out)["frames"]
    assert (frames["files"], frames["count"], frames["faulty"]) == (3, 2, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--line-speed", "10km/h", "--mm-per-px", "1"], "expected --line-speed such as 10m/s"),
        (["--line-speed", "10m/s"], "needs --mm-per-px"),
        (["--line-speed", "10m/s", "--mm-per-px", "0"], "--mm-per-px from 1e-05 to 10000"),
        (["--line-speed", "1m/s", "--mm-per-px", "1", "--cameras", "0"], "--cameras from 1"),
        (["--cameras", "2"], "give --line-speed too"),
        (["--engine", "tensorrt"], "--engine onnxruntime, openvino or cuda, got 'tensorrt'"),
        (["--engine", "auto"], "--engine onnxruntime, openvino or cuda, got 'auto'"),
        (["--rounds", "0"], "--rounds from 1"),
        (["--frames", "0"], "--frames from 1"),
        (["--threads", "0"], "--threads from 1"),
        (["--seed", "-1"], "--seed from 0"),
        (["--faulty-share", "1.2"], "--faulty-share from 0 to 1"),
        (["--overwrite"], "give --out"),
        (["--format", "coco"], "expected --labels PATH"),
        (["none-such"], "none-such does not exist"),
        (["--bundle", "none-such"], "expected a bundle"),
    ],
)
def test_wrong_options_are_one_line(call, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The module, not the command of that name in the package.
    monkeypatch.setattr(import_module("steelsight.cli.benchmark"), "DRAWN_FAULTY_SHARE", 0.0)
    done = call("benchmark", *arguments, *([] if "--frames" in arguments else ["--frames", 1]))
    assert done.code == 1
    assert message in done.err
    assert done.err.strip().splitlines()[-1].startswith("steelsight: ")
    assert "Traceback" not in done.err


def test_a_value_that_is_no_number_is_a_usage_error(call):
    done = call("benchmark", "--rounds", "many")
    assert done.code == 2
    assert "Traceback" not in done.err


def test_ctrl_c_leaves_one_line(call, quick, monkeypatch):
    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "race", stop)
    done = call("benchmark", *SMALL)
    assert done.code == 130
    assert "stopped" in done.err.strip().splitlines()[-1]
    assert "Traceback" not in done.err
