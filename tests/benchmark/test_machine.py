"""The machine, and processes that are started anew."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from steelsight.benchmark import machine as room
from steelsight.benchmark.machine import Machine, cold_start, first_line, machine
from steelsight.engine.runtime import Engine
from steelsight.errors import EngineError


def test_this_machine():
    here = machine()
    assert here.cpu
    assert here.cores_usable >= 1
    assert here.load_before >= 0


@pytest.mark.parametrize(("load", "busy"), [(0.0, False), (2.0, False), (2.1, True)])
def test_busy_from_half_of_the_cores_on(load, busy):
    assert Machine("x", 4, load).busy is busy


def test_memory_is_that_of_the_process_not_of_ours():
    ours = np.ones(300 << 17)  # 300 MB, all written
    seconds, peak_mb = first_line([sys.executable, "-c", "print('answer')"])
    assert 0 < seconds < 60
    assert 1 < peak_mb < 150, "Linux hands the peak of the starting process down"
    ours[0] = 0
    _, more_mb = first_line([sys.executable, "-c", "x = b'1' * (200 << 20); print('answer')"])
    assert 190 < more_mb - peak_mb < 260


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; print('x'); sys.exit('first\\nno engine')", "ended with: no engine"),
        ("pass", "ended with: nothing"),
    ],
)
def test_a_process_that_fails_is_told(program, message):
    with pytest.raises(EngineError, match=message):
        first_line([sys.executable, "-c", program])


def test_a_command_that_cannot_start_is_told(tmp_path):
    with pytest.raises(EngineError, match="No such file"):
        first_line([str(tmp_path / "none")])


def test_cold_starts_take_one_image_then_all(monkeypatch, tmp_path):
    commands = []

    def note(command):
        commands.append(command[4:])
        return float(len(commands)), 100.0 - len(commands)

    monkeypatch.setattr(room, "first_line", note)
    images = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    found = cold_start(tmp_path, Engine.OPENVINO, 3, images, starts=3)
    options = ["--bundle", str(tmp_path), "--engine", "openvino", "--threads", "3"]
    assert commands == [[str(images[0]), *options]] * 3 + [[*map(str, images), *options]]
    assert (found.seconds.median, found.seconds.values) == (2, 3), "the run on all is no start"
    assert found.peak_mb == 99
    cold_start(tmp_path, Engine.OPENVINO, 3, images, starts=1, decision=Path("first-look"))
    assert commands[-1][-2:] == ["--decision", "first-look"]
    json.dumps(found.seconds.median)
