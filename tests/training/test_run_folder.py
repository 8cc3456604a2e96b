"""What a run leaves, and that going on from a checkpoint leaves the same."""

import csv
import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from steelsight.errors import InputError
from steelsight.report import train_page
from steelsight.training import run_folder
from steelsight.training.checkpoint import load_checkpoint
from steelsight.training.config import TrainConfig, with_settings
from steelsight.training.run_folder import (
    FREE_SETTINGS,
    RunFolder,
    RunInputs,
    Sample,
    flat_figures,
    flat_settings,
    read_config,
)

CONFIG = TrainConfig(steps=20, seed=5)
DATA = {
    "classes": [{"id": "1", "name": "1"}, {"id": "scratch", "name": "scratch"}],
    "train": {"frames": 10, "faulty": 6, "clean": 4, "masked_by_type": {"1": 4, "scratch": 3}},
    "data_sha256": "d" * 64,
    "split_sha256": "5" * 64,
}
INPUTS = RunInputs("steelsight train set --out run", DATA, "imagenet", "a" * 64)


def one_line(caught, *parts):
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def losses(step):
    """What a deterministic run would tell; numbers that a short text would not carry."""
    return {"lr": 6e-4 / 3 * step, "loss": 1 / (step + np.pi), "gradient_norm": 0.1 + 0.2}


def learn(run, first, last, stop_after=None):
    """Steps with a checkpoint every five and a validation every ten."""
    for step in range(first, last + 1):
        run.log_step(step, losses(step), {"seconds": os.urandom(1)[0] / 7})
        if step % 10 == 0:
            run.log_validation(step, {"auroc": 1 - 1 / step, "dice.scratch": None, "dice.1": 0.5})
            run.write_pictures(step, [sample(step)])
        if step % 5 == 0:
            run.save(run.last, {"w": torch.full((3,), float(step))}, {"step": step})
        if step == stop_after:
            return


def sample(seed=0, size_wh=(320, 64), types=2):
    width, height = size_wh
    grey = np.random.default_rng(seed).integers(60, 140, (height, width)).astype(np.uint8)
    bits = np.zeros((height, width), np.uint8)
    bits[10:30, 20:60] = 2
    probabilities = np.zeros((types, height, width), np.float32)
    probabilities[1, 12:32, 24:70] = 0.9
    return Sample("a.jpg", grey, bits, probabilities, 0.93)


# Beginning --------------------------------------------------------------------------------------


def test_a_run_begins_with_what_it_was_started_with(tmp_path):
    path = tmp_path / "new" / "run"
    with RunFolder.create(path, CONFIG, INPUTS) as run:
        assert (run.last, run.best) == (path / "last.safetensors", path / "best.safetensors")
    assert json.loads((path / "config.json").read_text()) == CONFIG.model_dump(mode="json")
    assert json.loads((path / "data.json").read_text()) == DATA
    environment = json.loads((path / "environment.json").read_text())
    assert environment["command"] == INPUTS.command
    assert environment["inputs"] == {
        "data_sha256": "d" * 64,
        "split_sha256": "5" * 64,
        "start_sha256": "a" * 64,
        "start": "imagenet",
    }
    assert environment["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert {"steelsight", "python", "numpy"} <= environment["versions"].keys()
    assert environment["machine"]["threads"] == torch.get_num_threads()
    assert environment["machine"]["processor"]
    assert environment["resumed"] == []
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}[+-]\d\d:\d\d", environment["started"])


def test_folders_with_something_else_are_refused(tmp_path):
    RunFolder.create(tmp_path / "run", CONFIG, INPUTS).close()
    with pytest.raises(InputError, match=r"it holds a run; add --resume") as caught:
        RunFolder.create(tmp_path / "run", CONFIG, INPUTS)
    one_line(caught, str(tmp_path / "run"))
    with pytest.raises(InputError, match=r"it holds run; give another folder"):
        RunFolder.create(tmp_path, CONFIG, INPUTS)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="got a file; give another"):
        RunFolder.create(tmp_path / "file", CONFIG, INPUTS)
    with pytest.raises(InputError, match=r"cannot be written or read \(Not a directory\)"):
        RunFolder.create(tmp_path / "file" / "run", CONFIG, INPUTS)


def test_a_run_killed_while_it_began_can_begin_again_or_go_on(tmp_path):
    for resume in (False, True):
        path = tmp_path / f"run-{resume}"
        RunFolder.create(path, CONFIG, INPUTS).close()
        (path / "config.json").rename(path / ".config.json.partial")
        if resume:
            RunFolder.open_for_resume(path, INPUTS, CONFIG).close()
        else:
            RunFolder.create(path, CONFIG, INPUTS).close()
        assert (path / "config.json").exists()


def test_two_processes_never_train_in_one_folder(tmp_path):
    """``flock`` is refused within one process as well: another open file is another holder."""
    with RunFolder.create(tmp_path / "run", CONFIG, INPUTS):
        with pytest.raises(InputError, match=rf"process {os.getpid()} is training") as caught:
            RunFolder.open_for_resume(tmp_path / "run", INPUTS)
        one_line(caught, "wait for it to end, or give another folder")
    RunFolder.open_for_resume(tmp_path / "run", INPUTS).close()


HOLDER = """
from steelsight.training.run_folder import RunFolder
run = RunFolder.open_for_resume(path, inputs)
told.send("held")
told.recv()
"""


def test_the_lock_ends_with_the_process_that_was_killed(tmp_path):
    RunFolder.create(tmp_path / "run", CONFIG, INPUTS).close()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "steelsight.training.run_folder"])
    ours, theirs = context.Pipe()
    names = {"path": tmp_path / "run", "inputs": INPUTS, "told": theirs}
    holder = context.Process(target=exec, args=(HOLDER, names))
    holder.start()
    assert ours.recv() == "held"
    with pytest.raises(InputError, match=f"process {holder.pid} is training"):
        RunFolder.open_for_resume(tmp_path / "run", INPUTS)
    holder.kill()
    holder.join()
    RunFolder.open_for_resume(tmp_path / "run", INPUTS).close()


def test_settings_that_are_not_the_defaults_are_told(tmp_path):
    RunFolder.create(tmp_path / "run", CONFIG, INPUTS).close()
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["settings"] == {
        "seed": {"value": 5, "default": 0},
        "steps": {"value": 20, "default": TrainConfig().steps},
    }
    assert read_config(tmp_path / "run") == CONFIG
    with pytest.raises(InputError, match="No such file"):
        read_config(tmp_path)


# Going on ---------------------------------------------------------------------------------------


def curves(path):
    names = ("metrics.csv", "validation.csv", "samples/step-000010.jpg", "samples/step-000020.jpg")
    return {name: (path / name).read_bytes() for name in names}


def test_curves_of_a_resumed_run_are_those_of_an_uninterrupted_one(tmp_path):
    with RunFolder.create(tmp_path / "straight", CONFIG, INPUTS) as run:
        learn(run, 1, 20)
    expected = curves(tmp_path / "straight")
    for stop_after in (1, 4, 5, 7, 10, 13, 19, 20):
        path = tmp_path / f"killed-{stop_after}"
        with RunFolder.create(path, CONFIG, INPUTS) as run:
            learn(run, 1, 20, stop_after)
        with (path / "metrics.csv").open("ab") as torn:
            torn.write(b"14,0.00")  # a line that was being written
        with RunFolder.open_for_resume(path, INPUTS, CONFIG) as run:
            step = load_checkpoint(run.last)[1]["step"] if run.last.exists() else 0
            assert step == stop_after // 5 * 5
            run.rewind(step)
            learn(run, step + 1, 20)
        assert curves(path) == expected
        with (path / "timing.csv").open() as file:
            assert [row["step"] for row in csv.DictReader(file)] == [str(i) for i in range(1, 21)]


def test_numbers_read_back_exactly(tmp_path):
    with RunFolder.create(tmp_path / "run", CONFIG, INPUTS) as run:
        row = {
            "loss": 1 / 3,
            "tiny": 5e-324,
            "single": np.float32(0.1),
            "whole": np.int64(7),
            "nan": float("nan"),
            "none": None,
            "flag": True,
        }
        run.log_step(1, row)
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        found = next(csv.DictReader(file))
    assert float(found["loss"]) == 1 / 3
    assert float(found["tiny"]) == 5e-324
    assert np.float32(float(found["single"])) == np.float32(0.1)
    assert (found["step"], found["whole"], found["nan"]) == ("1", "7", "nan")
    assert (found["none"], found["flag"]) == ("", "1")


def test_rows_are_there_at_once_and_have_the_same_columns(tmp_path):
    with RunFolder.create(tmp_path / "run", CONFIG, INPUTS) as run:
        run.log_step(1, {"loss": 0.5})
        assert (tmp_path / "run" / "metrics.csv").read_text() == "step,loss\n1,0.5\n"
        with pytest.raises(ValueError, match=r"columns \['step', 'loss'\]"):
            run.log_step(2, {"other": 0.5})
    with RunFolder.open_for_resume(tmp_path / "run", INPUTS) as run:
        run.rewind(1)
        with pytest.raises(ValueError, match="columns"):
            run.log_step(2, {"other": 0.5})


def test_a_damaged_curve_is_told_with_its_line(tmp_path):
    with RunFolder.create(tmp_path / "run", CONFIG, INPUTS) as run:
        learn(run, 1, 5)
    with (tmp_path / "run" / "metrics.csv").open("a") as file:
        file.write("oops,1,2,3\n")
    with RunFolder.open_for_resume(tmp_path / "run", INPUTS) as run:
        with pytest.raises(InputError, match=r"metrics\.csv: line 7: expected a step") as caught:
            run.rewind(5)
        one_line(caught, "'oops'")


def test_other_settings_are_refused_by_name(tmp_path):
    RunFolder.create(tmp_path / "run", CONFIG, INPUTS).close()
    other = with_settings(CONFIG, {"loss.focal_gamma": 1, "steps": 30, "threads": 7})
    with pytest.raises(InputError, match="expected the settings") as caught:
        RunFolder.open_for_resume(tmp_path / "run", INPUTS, other)
    one_line(caught, "steps 20 (now 30)", "loss.focal_gamma 2.0 (now 1.0)")
    assert "threads" not in str(caught.value)


def test_settings_of_the_machine_may_differ_and_are_told(tmp_path):
    assert flat_settings(CONFIG).keys() >= FREE_SETTINGS
    RunFolder.create(tmp_path / "run", CONFIG, INPUTS).close()
    other = with_settings(CONFIG, {"cache_mb": 7, "threads": 3})
    with RunFolder.open_for_resume(tmp_path / "run", replace(INPUTS, command="again"), other) as r:
        assert r.config == other
        assert r.notes == (
            "threads was 0, now is 3: the run is no longer bit for bit the same",
            "cache_mb was 1024, now is 7",
        )
    assert json.loads((tmp_path / "run" / "config.json").read_text())["cache_mb"] == 7
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["command"] == INPUTS.command
    assert [resumed["command"] for resumed in environment["resumed"]] == ["again"]
    with RunFolder.open_for_resume(tmp_path / "run", INPUTS) as run:
        assert run.config == other
        assert run.notes == ()


@pytest.mark.parametrize(
    ("inputs", "word"),
    [
        (replace(INPUTS, data=DATA | {"data_sha256": "e" * 64}), "frames or labels are others"),
        (replace(INPUTS, data=DATA | {"split_sha256": "e" * 64}), "the split are others"),
        (replace(INPUTS, start_sha256=None), "the start weights are others"),
    ],
)
def test_other_data_or_start_is_refused(tmp_path, inputs, word):
    RunFolder.create(tmp_path / "run", CONFIG, INPUTS).close()
    with pytest.raises(InputError, match=word) as caught:
        RunFolder.open_for_resume(tmp_path / "run", inputs)
    one_line(caught, "start a new run")
    # The lock is free again.
    RunFolder.open_for_resume(tmp_path / "run", INPUTS).close()


def test_what_is_no_run_cannot_be_resumed(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match=r"expected a training run .* without --resume"):
            RunFolder.open_for_resume(path, INPUTS, CONFIG)
    assert not (tmp_path / "nothing").exists()
    RunFolder.create(tmp_path / "run", CONFIG, INPUTS).close()
    for name in ("config.json", "environment.json", "data.json"):
        before = (tmp_path / "run" / name).read_bytes()
        for content in (b"", b"[]", b"{", b"\xff", b"[" * 10**5):
            (tmp_path / "run" / name).write_bytes(content)
            with pytest.raises(InputError, match=name) as caught:
                RunFolder.open_for_resume(tmp_path / "run", INPUTS)
            one_line(caught)
        (tmp_path / "run" / name).write_bytes(before)


def test_half_written_files_of_a_killed_run_are_removed(tmp_path):
    path = tmp_path / "run"
    with RunFolder.create(path, CONFIG, INPUTS) as run:
        learn(run, 1, 10)
    left = (path / ".last.safetensors.partial", path / "samples" / ".step-000015.jpg.partial")
    for partial in left:
        partial.write_bytes(b"half")
    with RunFolder.open_for_resume(path, INPUTS):
        assert not any(partial.exists() for partial in left)


# TensorBoard ------------------------------------------------------------------------------------


def test_tensorboard_shows_the_same_and_forgets_what_was_cut(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = tmp_path / "run"
    with RunFolder.create(path, CONFIG, INPUTS) as run:
        learn(run, 1, 13)
    with RunFolder.open_for_resume(path, INPUTS) as run:
        run.rewind(10)
        learn(run, 11, 20)
    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    loss = events.Scalars("train/loss")
    assert [event.step for event in loss] == list(range(1, 21))
    assert [np.float32(event.value) for event in loss] == [
        np.float32(losses(step)["loss"]) for step in range(1, 21)
    ]
    assert [event.step for event in events.Scalars("validation/dice/1")] == [10, 20]
    assert "validation/dice/scratch" not in events.Tags()["scalars"]
    assert "timing/seconds" in events.Tags()["scalars"]


# Pictures and figures ---------------------------------------------------------------------------


def test_the_sheet_shows_frames_with_both_outlines(tmp_path):
    with RunFolder.create(tmp_path / "run", CONFIG, INPUTS) as run:
        path = run.write_pictures(100, [sample(1), sample(2)])
        assert path == tmp_path / "run" / "samples" / "step-000100.jpg"
        assert [p.name for p in path.parent.iterdir()] == [path.name]
        wide = cv2.imread(str(path))
        assert wide.shape[1] == 640
        one = cv2.imread(str(run.write_pictures(101, [sample(1)])))
        assert len(wide) == 2 * len(one)
        plain = replace(sample(1), probabilities_khw=np.zeros((2, 64, 320), np.float32))
        missed = cv2.imread(str(run.write_pictures(102, [plain])))
        clean = replace(plain, types_hw=np.zeros((64, 320), np.uint8))
        empty = cv2.imread(str(run.write_pictures(103, [clean])))
        # Without the found region its outline is gone, without the true one the dashes are too.
        difference = [
            np.abs(a.astype(int) - b).max(2)[30:] > 60 for a, b in ((one, missed), (missed, empty))
        ]
        assert all(d[:140, 30:150].mean() > 0.02 for d in difference)
        squares = [sample(i, (200, 200)) for i in range(4)]
        sheet = cv2.imread(str(run.write_pictures(104, squares)))
        assert sheet.shape[1] == 3 * 400
        with pytest.raises(ValueError, match="at least one"):
            run.write_pictures(105, [])


def test_the_summary_is_strict_json(tmp_path):
    with RunFolder.create(tmp_path / "run", CONFIG, INPUTS) as run:
        run.write_summary({"dice": {"1": np.float32(0.5), 2: float("nan")}, "ci": (1, np.inf)})
    text = (tmp_path / "run" / "summary.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "dice": {"1": 0.5, "2": None},
        "ci": [1, None],
    }


def test_nested_figures_become_a_row():
    figures = {"auroc": 0.9, "types": {"1": {"dice": 0.5, "frames": 3}}, "rule": "x", "ci": [1, 2]}
    assert flat_figures(figures) == {"auroc": 0.9, "types.1.dice": 0.5, "types.1.frames": 3}


def test_the_page_is_made_from_what_the_run_left(tmp_path):
    names = ("CONFIG", "ENVIRONMENT", "DATA", "SUMMARY", "METRICS", "VALIDATION", "TIMING")
    for name in (*names, "SAMPLES"):
        assert getattr(train_page, name) == getattr(run_folder, name)
    with RunFolder.create(tmp_path / "run", CONFIG, INPUTS) as run:
        learn(run, 1, 20)
    text = train_page.write_train_page(tmp_path / "run").read_text()
    assert "an AUROC of 0.900" in text  # of step 10: no later one is better
    assert 'alt="Sample frames at step 20"' in text
    assert INPUTS.command in text


# A full disk ------------------------------------------------------------------------------------


def test_a_full_disk_is_told_in_one_line_and_the_run_can_go_on(tmp_path):
    path = tmp_path / "run"
    with RunFolder.create(path, CONFIG, INPUTS) as run:
        run.log_step(1, losses(1))
        run.log_validation(1, {"auroc": 0.5})
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        size = (path / "metrics.csv").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
        try:
            with pytest.raises(InputError, match="check the folder") as caught:
                run.log_step(2, losses(2))
            one_line(caught, "metrics.csv", "free space", "--resume")
            with pytest.raises(InputError, match="File too large"):
                run.write_summary({"text": "x" * 1000})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with RunFolder.open_for_resume(path, INPUTS) as run:
        run.rewind(1)
        run.log_step(2, losses(2))
    with (path / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]


# Which code it was ------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_told_only_of_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "src" / "steelsight" / "training"
    package.mkdir(parents=True)
    module = package / "run_folder.py"
    module.write_text("1")
    monkeypatch.setattr(run_folder, "__file__", str(module))
    assert run_folder._commit() == {}

    def git(*arguments):
        names = ("-c", "user.name=n", "-c", "user.email=e")
        command = ["git", "-C", str(tmp_path), *names, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "other").write_text("")
    git("add", "other")
    git("commit", "--no-gpg-sign", "-m", "other")
    assert run_folder._commit() == {}  # somebody's repository, and we are not in it
    git("add", ".")
    git("commit", "--no-gpg-sign", "-m", "first")
    assert run_folder._commit() == {"commit": git("rev-parse", "HEAD"), "changed": False}
    module.write_text("2")
    assert run_folder._commit()["changed"] is True
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_folder._commit() == {}


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
def test_a_git_that_hangs_does_not_hold_up_the_run(tmp_path, monkeypatch):
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(run_folder, "_GIT_SECONDS", 0.2)
    assert run_folder._commit() == {}


def test_nothing_of_this_module_is_left_open(tmp_path):
    """A failed beginning lets go of the folder."""
    (tmp_path / "run" / "config.json.d").mkdir(parents=True)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(InputError):
        RunFolder.create(tmp_path / "run", CONFIG, INPUTS)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
