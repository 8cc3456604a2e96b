import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from steelsight import __version__, doctor
from steelsight.bundle import (
    CARD,
    DECISION,
    PARITY,
    ClassEntry,
    InputEntry,
    Manifest,
    Precision,
    TrainingEntry,
    file_entry,
    write_manifest,
)
from steelsight.doctor import GPU_PACKAGE, Check, Diagnosis, diagnose, versions
from steelsight.engine.runtime import Engine

DECISION_FILE = """\
version = 1
name = "test"
rule = "picked by hand"
chosen_on = "nothing"
gate = {clear_below = 0.25, ng_from = 0.75}
input = {min_contrast = 2.0}
types.bright = {label_from = 0.5, pixel_from = 0.5, min_area_px = 0}
"""
RECORDED: dict[str, Any] = {
    "verdict": "NG",
    "faulty_probability": 0.5,
    "defects": [{"class": "bright", "rle": "2049 2048"}],
}
"""What the bundle below must say about its own frame, worked out by hand: the left half of 64 x 64
pixels is black and the right half white; brightness is every probability. The mean is 0.5, and the
right half are the pixels 32 * 64 + 1 onwards, column by column."""


def brightness_networks(gate: Path, segmenter: Path) -> None:
    """Networks whose every probability is the grey value / 255, or its mean over the frame."""
    image = [None, 1, None, None]
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, image)
    c2 = helper.make_tensor_value_info("c2", TensorProto.FLOAT, image)
    masks = helper.make_tensor_value_info("mask_logits", TensorProto.FLOAT, image)
    faulty = helper.make_tensor_value_info("faulty_probability", TensorProto.FLOAT, [None])
    classes = helper.make_tensor_value_info("class_probabilities", TensorProto.FLOAT, [None, 1])
    constants = [
        helper.make_tensor("white", TensorProto.FLOAT, [], [255.0]),
        helper.make_tensor("axes_chw", TensorProto.INT64, [3], [1, 2, 3]),
        helper.make_tensor("axes_hw", TensorProto.INT64, [2], [2, 3]),
    ]
    save(
        gate,
        [
            helper.make_node("Cast", ["frames"], ["grey"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["grey", "white"], ["c2"]),
            helper.make_node("ReduceMean", ["c2", "axes_chw"], ["faulty_probability"], keepdims=0),
            helper.make_node("ReduceMean", ["c2", "axes_hw"], ["class_probabilities"], keepdims=0),
        ],
        [frames],
        [faulty, classes, c2],
        constants,
    )
    save(
        segmenter,
        [
            helper.make_node("Clip", ["c2", "least", "most"], ["p"]),
            helper.make_node("Sub", ["one", "p"], ["rest"]),
            helper.make_node("Div", ["p", "rest"], ["odds"]),
            helper.make_node("Log", ["odds"], [masks.name]),
        ],
        [c2],
        [masks],
        [
            helper.make_tensor("least", TensorProto.FLOAT, [], [1e-6]),
            helper.make_tensor("most", TensorProto.FLOAT, [], [1 - 1e-6]),
            helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
        ],
    )


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[onnx.TensorProto],
) -> None:
    graph = helper.make_graph(nodes, "test", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    def make(recorded: object = RECORDED, **files: bytes) -> Path:
        folder = tmp_path / "bright"
        folder.mkdir()
        gate, segmenter = folder / "gate.onnx", folder / "segmenter.onnx"
        brightness_networks(gate, segmenter)
        grey_hw = np.zeros((64, 64), np.uint8)
        grey_hw[:, 32:] = 255
        (folder / "self_test.png").write_bytes(cv2.imencode(".png", grey_hw)[1].tobytes())
        (folder / PARITY).write_text(json.dumps({"passed": True, "self_test": recorded}))
        (folder / CARD).write_text("# bright\n")
        (folder / DECISION).write_text(DECISION_FILE)
        for stem, content in files.items():
            next(folder.glob(f"{stem}.*")).write_bytes(content)
        manifest = Manifest(
            format=2,
            name="bright",
            precision=Precision.FP32,
            code_version=__version__,
            input=InputEntry(
                channels=1,
                monochrome=True,
                multiple_of=32,
                tile_wh=(1600, 256),
                tile_overlap_px=64,
                min_wh=(64, 64),
            ),
            classes=(ClassEntry(id="bright", name="Bright", colour="#ffffff"),),
            gate=file_entry(gate),
            segmenter=file_entry(segmenter),
            parity=file_entry(folder / PARITY),
            self_test=file_entry(folder / "self_test.png"),
            training=TrainingEntry(data="nothing", terms="none", weights_sha256="0" * 64),
        )
        write_manifest(folder, manifest)
        return folder

    return make


def failures(diagnosis: Diagnosis) -> dict[str, str]:
    return {check.what: check.found for check in diagnosis.checks if check.ok is False}


# The whole report --------------------------------------------------------------------------------


def test_the_shipped_bundle_answers_as_recorded_on_every_engine() -> None:
    diagnosis = diagnose()
    assert failures(diagnosis) == {}
    assert diagnosis.healthy
    assert diagnosis.sentence == "All is well."
    passed = {check.what: check.found for check in diagnosis.checks if check.ok}
    assert passed.keys() == {
        "bundle",
        "self-test on onnxruntime",
        *(["self-test on openvino"] if "openvino" in versions() else []),
    }
    assert "severstal-r50@" in passed["bundle"]
    assert "onnxruntime-int8 answers as recorded" in passed["self-test on onnxruntime"]


def test_a_bundle_that_answers_as_worked_out_by_hand(make_bundle: Callable[..., Path]) -> None:
    diagnosis = diagnose(make_bundle())
    assert failures(diagnosis) == {}
    assert sum(check.ok is True for check in diagnosis.checks) == 2 + ("openvino" in versions())


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"verdict": "OK", "defects": []}, "expected verdict OK, got NG"),
        ({"verdict": "UNKNOWN"}, "expected verdict UNKNOWN, got NG"),
        ({"faulty_probability": 0.7}, "expected faulty_probability 0.7000, got 0.5000"),
        (
            {"defects": [{"class": "bright", "rle": "1 2048"}]},
            "masks of type bright overlap the recorded ones with a Dice of 0.00",
        ),
        ({"defects": []}, "masks of type bright overlap the recorded ones with a Dice of 0.00"),
    ],
)
def test_another_answer_than_recorded_fails_on_every_engine(
    make_bundle: Callable[..., Path], change: dict[str, Any], found: str
) -> None:
    diagnosis = diagnose(make_bundle(RECORDED | change))
    assert not diagnosis.healthy
    failed = failures(diagnosis)
    assert failed.keys() == {
        f"self-test on {engine}" for engine in ("onnxruntime", "openvino") if engine in versions()
    }
    assert all(text.startswith(found) for text in failed.values())
    assert diagnosis.sentence.startswith("Do not trust results from this machine")
    assert "self-test on onnxruntime" in diagnosis.sentence


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"gate": b"no network"}, "self-test on onnxruntime"),
        ({"segmenter": b""}, "self-test on onnxruntime"),
        ({"self_test": b"no picture"}, "self-test on onnxruntime"),
        ({"parity": b'{"passed": false}'}, "bundle"),
        ({"decision": b"version = 1"}, "bundle"),
    ],
)
def test_a_broken_bundle_is_a_failed_check_and_no_exception(
    make_bundle: Callable[..., Path], files: dict[str, bytes], what: str
) -> None:
    diagnosis = diagnose(make_bundle(**files))
    assert what in failures(diagnosis)
    assert not diagnosis.healthy
    assert all("\n" not in check.found for check in diagnosis.checks)


def test_an_altered_bundle_is_a_failed_check_and_no_exception(
    make_bundle: Callable[..., Path],
) -> None:
    folder = make_bundle()
    (folder / "gate.onnx").write_bytes((folder / "gate.onnx").read_bytes() + b" ")
    assert "the file was altered or cut" in failures(diagnose(folder))["bundle"]


def test_no_bundle_is_a_failed_check_and_no_exception(tmp_path: Path) -> None:
    assert str(tmp_path / "none") in failures(diagnose(tmp_path / "none"))["bundle"]


@pytest.mark.parametrize(
    "recorded",
    [None, {}, {"verdict": "NG"}, {"verdict": "NG", "faulty_probability": None, "defects": []}],
)
def test_an_answer_that_was_not_recorded_is_a_failed_check_and_no_exception(
    make_bundle: Callable[..., Path], recorded: object
) -> None:
    assert not diagnose(make_bundle(recorded)).healthy


def test_the_report_as_a_table_and_for_machines() -> None:
    diagnosis = Diagnosis([Check("a", "1"), Check("b", "2", ok=True), Check("c", "3", ok=False)])
    assert diagnosis.rows() == [
        ["check", "", "found"],
        ["a", "", "1"],
        ["b", "ok", "2"],
        ["c", "FAILED", "3"],
    ]
    assert json.loads(json.dumps(diagnosis.to_json())) == {
        "healthy": False,
        "checks": [
            {"what": "a", "found": "1", "ok": None},
            {"what": "b", "found": "2", "ok": True},
            {"what": "c", "found": "3", "ok": False},
        ],
    }
    assert diagnosis.sentence.endswith(": c.")


# Versions ----------------------------------------------------------------------------------------


def test_versions_are_those_of_the_imported_packages() -> None:
    import PIL

    found = versions()
    assert found["steelsight"] == __version__
    assert found["numpy"] == np.__version__
    assert found["opencv-python-headless"].startswith(cv2.__version__)
    assert found["pillow"] == PIL.__version__


def test_packages_that_are_not_installed_are_left_out(
    monkeypatch: pytest.MonkeyPatch, make_bundle: Callable[..., Path]
) -> None:
    def version(package: str) -> str:
        if package in ("openvino", GPU_PACKAGE):
            raise doctor.metadata.PackageNotFoundError(package)
        return "1.2.3"

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor, "installed_engines", lambda: (Engine.ONNXRUNTIME,))
    assert "openvino" not in versions()
    assert versions()["numpy"] == "1.2.3"
    diagnosis = diagnose(make_bundle())
    found = {check.what: check for check in diagnosis.checks}
    assert found["openvino"] == Check("openvino", "not installed (extra)")
    assert "self-test on openvino" not in found
    assert GPU_PACKAGE not in found
    assert diagnosis.healthy


def test_onnxruntime_for_gpus_stands_in_its_place(
    monkeypatch: pytest.MonkeyPatch, make_bundle: Callable[..., Path]
) -> None:
    installed = {GPU_PACKAGE: "1.31.1"}
    real = doctor.metadata.version

    def version(package: str) -> str:
        if package == "onnxruntime" and package not in installed:
            raise doctor.metadata.PackageNotFoundError(package)
        return installed.get(package) or real(package)

    monkeypatch.setattr(doctor.metadata, "version", version)
    folder = make_bundle()
    diagnosis = diagnose(folder)
    found = {check.what: check for check in diagnosis.checks}
    assert found[GPU_PACKAGE] == Check(GPU_PACKAGE, "1.31.1")
    assert "onnxruntime" not in found
    assert diagnosis.healthy

    # Both are the same module, and whichever came last has overwritten the other.
    installed["onnxruntime"] = "1.32.0"
    broken = diagnose(folder)
    assert not broken.healthy
    told = next(check.found for check in broken.checks if check.what == GPU_PACKAGE)
    assert f"run: pip uninstall onnxruntime {GPU_PACKAGE}" in told


def test_a_gpu_that_is_there_and_fails_is_told(
    monkeypatch: pytest.MonkeyPatch, make_bundle: Callable[..., Path]
) -> None:
    monkeypatch.setattr(doctor, "installed_engines", lambda: (Engine.ONNXRUNTIME, Engine.CUDA))
    diagnosis = diagnose(make_bundle())
    found = {check.what: check for check in diagnosis.checks}
    assert found["self-test on onnxruntime"].ok
    assert found["self-test on cuda"].ok is False
    assert "onnxruntime-gpu" in found["self-test on cuda"].found


# The engine of auto ------------------------------------------------------------------------------


def told(diagnosis: Diagnosis) -> str:
    return next(check.found for check in diagnosis.checks if check.what == "engine of auto")


def test_the_choice_of_auto_is_told_with_its_reason(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = make_bundle()
    assert told(diagnose(folder)) == "onnxruntime: STEELSIGHT_ENGINE says so"
    pytest.importorskip("openvino")
    monkeypatch.delenv("STEELSIGHT_ENGINE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measured = told(diagnose(folder))
    assert re.fullmatch(
        r"(onnxruntime|openvino): the fastest that answers the self-test as recorded; "
        r"onnxruntime [\d.]+ ms a frame; openvino [\d.]+ ms a frame",
        measured,
    )
    assert told(diagnose(folder)) == f"{measured}; measured earlier"


def test_what_keeps_auto_from_a_choice_is_told_and_no_exception(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEELSIGHT_ENGINE", "tensorrt")
    diagnosis = diagnose(make_bundle())
    assert "expected an engine of auto, onnxruntime, openvino" in told(diagnosis)
    assert diagnosis.healthy
