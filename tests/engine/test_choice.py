"""Which engine ``auto`` is; and when two answers are the same."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from steelsight.defects import Defect, Inspection, Reason, Verdict
from steelsight.engine import Inspector, choice
from steelsight.engine.choice import Choice, choose_engine, compare
from steelsight.engine.runtime import Engine
from steelsight.errors import EngineError, InputError
from steelsight.masks import encode_rle

ORT, VINO = Engine.ONNXRUNTIME, Engine.OPENVINO


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    """Nothing here reads or writes the user's own; the file is returned."""
    monkeypatch.delenv("STEELSIGHT_ENGINE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/steelsight/engines.json"


class Machine:
    """Engines with an answer and a time per frame, and what was asked of them."""

    def __init__(self, monkeypatch, bundle, milliseconds: dict[Engine, float]) -> None:
        self.bundle = bundle
        self.milliseconds = milliseconds
        self.answers = dict.fromkeys(milliseconds, RECORDED)
        self.broken: dict[Engine, Exception] = {}
        self.versions = {"onnxruntime": "1", "openvino": "2", "cuda": "3"}
        self.processor = "x86_64 Fast"
        self.loaded: list[tuple[Engine, int, int]] = []
        self.order: list[Engine] = []
        self._now_s = 0.0
        monkeypatch.setattr(choice, "installed_engines", lambda: tuple(self.milliseconds))
        monkeypatch.setattr(choice, "engine_version", lambda engine: self.versions[engine])
        monkeypatch.setattr(choice, "_processor", lambda: self.processor)
        monkeypatch.setattr(choice, "time", SimpleNamespace(perf_counter=lambda: self._now_s))
        monkeypatch.setattr(Inspector, "load", self._load)

    def choose(self, threads: int = 2, workers: int = 1) -> Choice:
        self.loaded.clear()
        return choose_engine(self.bundle, threads, workers)

    def _load(self, folder, *, engine, threads, workers):
        # Without the caller's decision: the recorded answer was made with the bundle's own.
        assert folder == self.bundle.folder
        self.loaded.append((engine, threads, workers))
        if engine in self.broken:
            raise self.broken[engine]

        def inspect(image) -> Inspection:
            self.order.append(engine)
            self._now_s += self.milliseconds[engine] / 1e3
            return self.answers[engine]

        def inspect_many(images):
            self._now_s += self.milliseconds[engine] / 1e3 * len(images)
            return (self.answers[engine] for _ in images)

        return SimpleNamespace(
            bundle=self.bundle, workers=workers, inspect=inspect, inspect_many=inspect_many
        )


@pytest.fixture
def machine(monkeypatch, bench, tmp_path):
    bundle = bench().inspector.bundle
    (tmp_path / bundle.manifest.self_test.file).write_bytes(b"a frame")
    bundle = bundle.model_copy(update={"parity": {"self_test": RECORDED.to_json()}})

    def build(**milliseconds: float) -> Machine:
        times = {Engine(name): ms for name, ms in milliseconds.items()}
        return Machine(monkeypatch, bundle, times)

    return build


# ------------------------------------------------------------------------------------- which engine


@pytest.mark.parametrize("engine", [ORT, VINO])
def test_the_only_one_installed_is_taken_unmeasured(machine, cache, engine):
    made = machine(**{engine: 5})
    found = made.choose()
    assert found == Choice(engine, why="the only engine installed")
    assert not made.loaded
    assert not cache.exists()


def test_without_any_engine_it_says_what_to_install(machine):
    with pytest.raises(EngineError, match="none is installed; run: pip install onnxruntime"):
        machine().choose()


@pytest.mark.parametrize(("ort_ms", "vino_ms", "fastest"), [(9, 7, VINO), (7, 9, ORT)])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_fastest_is_taken_and_recorded(machine, ort_ms, vino_ms, fastest, workers):
    made = machine(onnxruntime=ort_ms, openvino=vino_ms)
    first = made.choose(6, workers)
    assert first.engine is fastest
    assert first.milliseconds == {ORT: ort_ms, VINO: vino_ms}
    assert (first.refused, first.recorded) == ({}, False)
    assert made.loaded == [(ORT, 6, workers), (VINO, 6, workers)]
    again = made.choose(6, workers)
    assert again == replace(first, recorded=True)
    assert not made.loaded


def test_engines_take_turns_and_the_median_counts(machine):
    made = machine(onnxruntime=8, openvino=6)
    made.choose()
    timed = made.order[2:]  # after the self-test of each
    assert timed == [ORT, VINO] * (len(timed) // 2)
    assert len(timed) == 2 * (choice._ROUNDS + 1)


@pytest.mark.parametrize("wrong", [ORT, VINO])
def test_one_that_answers_otherwise_is_refused_however_fast(machine, wrong):
    made = machine(onnxruntime=8, openvino=8)
    made.milliseconds[wrong] = 1
    made.answers[wrong] = replace(RECORDED, faulty_probability=0.99)
    found = made.choose()
    assert found.engine is ({ORT, VINO} - {wrong}).pop()
    assert found.refused == {wrong: "expected faulty_probability 0.5000, got 0.9900"}
    assert made.choose() == replace(found, recorded=True)
    assert f"{wrong} refused (expected faulty_probability" in found.sentence


@pytest.mark.parametrize(
    "error", [EngineError("OpenVINO refuses\nit"), ImportError("libtbb.so: no such file")]
)
def test_one_that_does_not_load_is_refused(machine, error):
    made = machine(onnxruntime=8, openvino=1)
    made.broken[VINO] = error
    found = made.choose()
    assert found.engine is ORT
    assert found.refused == {VINO: " ".join(str(error).split())}


def test_if_none_answers_as_recorded_none_is_taken(machine, cache):
    made = machine(onnxruntime=8, openvino=1)
    made.broken[VINO] = EngineError("broken")
    made.answers[ORT] = replace(RECORDED, faulty_probability=0.99)
    with pytest.raises(EngineError, match=r"openvino: broken.*steelsight doctor") as failure:
        made.choose()
    assert "\n" not in str(failure.value)
    assert not cache.exists()


@pytest.mark.parametrize("recorded", [None, {}, {"verdict": "NG"}, "NG"])
def test_without_a_recorded_answer_nothing_is_compared(machine, cache, recorded):
    """The engine that the bundle was made with, and the reason; not the fastest unchecked."""
    made = machine(onnxruntime=8, openvino=1)
    made.bundle = made.bundle.model_copy(update={"parity": {"self_test": recorded}})
    found = made.choose()
    assert found.engine is ORT
    assert "no answer was recorded in parity.json" in found.why
    assert not made.loaded
    assert not cache.exists()


def test_a_gpu_is_one_of_them(machine):
    made = machine(onnxruntime=8, openvino=6, cuda=2)
    assert made.choose().engine is Engine.CUDA
    assert made.choose().recorded


def test_another_gpu_or_driver_is_measured_again(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(choice, "_DRIVER", tmp_path)
    gpu = tmp_path / "gpus/0000:01:00.0/information"
    gpu.parent.mkdir(parents=True)
    gpu.write_text("Model: \t\t NVIDIA L4\nIRQ: 1\n")
    made = machine(onnxruntime=8, cuda=2)
    made.choose()
    gpu.write_text("Model: \t\t NVIDIA L4\nIRQ: 7\n")
    assert made.choose().recorded
    gpu.write_text("Model: \t\t NVIDIA H100\nIRQ: 7\n")
    assert not made.choose().recorded
    assert made.choose().recorded
    (tmp_path / "version").write_text("NVRM version: 610.1\nGCC version: 14\n")
    assert not made.choose().recorded


def test_a_gpu_that_fails_is_tried_again_the_next_time(machine):
    """What was wrong, such as a library, may be mended, and nothing that is recorded shows it."""
    made = machine(onnxruntime=8, cuda=2)
    made.broken[Engine.CUDA] = EngineError("libcublasLt.so.13: cannot open shared object file")
    first = made.choose()
    assert first.engine is ORT
    assert "cuda refused (libcublasLt" in first.sentence
    made.broken.clear()
    assert made.choose().engine is Engine.CUDA


# --------------------------------------------------------------------------------- overriding it


@pytest.mark.parametrize("engine", [ORT, VINO])
def test_the_environment_overrides_everything(machine, monkeypatch, engine):
    made = machine(onnxruntime=8, openvino=1)
    monkeypatch.setenv("STEELSIGHT_ENGINE", engine)
    assert made.choose() == Choice(engine, why="STEELSIGHT_ENGINE says so")
    assert not made.loaded


@pytest.mark.parametrize("value", ["", "auto"])
def test_the_environment_may_leave_it_open(machine, monkeypatch, value):
    made = machine(onnxruntime=8, openvino=1)
    monkeypatch.setenv("STEELSIGHT_ENGINE", value)
    assert made.choose().engine is VINO


def test_an_unknown_engine_in_the_environment_is_refused(machine, monkeypatch):
    monkeypatch.setenv("STEELSIGHT_ENGINE", "tensorrt")
    with pytest.raises(InputError, match="in STEELSIGHT_ENGINE, got tensorrt; correct or unset"):
        machine(onnxruntime=8).choose()


# --------------------------------------------------------------------------------- what is recorded


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "processor", "x86_64 Slow"),
        lambda m: m.versions.update(openvino="3"),
        lambda m: m.versions.update(onnxruntime="3"),
        lambda m: setattr(m, "bundle", m.bundle.model_copy(update={"sha256": "c" * 64})),
    ],
    ids=["processor", "openvino", "onnxruntime", "bundle"],
)
def test_what_changes_is_measured_again(machine, change):
    made = machine(onnxruntime=8, openvino=6)
    assert not made.choose().recorded
    change(made)
    assert not made.choose().recorded
    assert made.choose().recorded


def test_threads_and_workers_have_choices_of_their_own(machine, cache):
    made = machine(onnxruntime=8, openvino=6)
    shares = [(1, 1), (2, 1), (2, 2)]
    assert not any(made.choose(*share).recorded for share in shares)
    assert all(made.choose(*share).recorded for share in shares)
    assert len(json.loads(cache.read_bytes())["choices"]) == 3


def test_the_file_does_not_grow_without_end(machine, cache):
    made = machine(onnxruntime=8, openvino=6)
    for threads in range(1, 50):
        made.choose(threads)
    assert len(json.loads(cache.read_bytes())["choices"]) == choice._MOST_RECORDED
    assert made.choose(49).recorded
    assert not made.choose(1).recorded


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b'{"choices": 5}',
        b'{"choices": [5, null, {}, {"key": {}}]}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_measured_anew_and_replaced(machine, cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    made = machine(onnxruntime=8, openvino=6)
    assert not made.choose().recorded
    assert made.choose().recorded


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "tensorrt"},
        {"engine": None},
        {"engine": "auto"},
        {"milliseconds": None},
        {"milliseconds": {"openvino": "fast"}},
        {"refused": [1]},
        {"refused": {"openvino": "wrong"}},
    ],
    ids=str,
)
def test_a_damaged_entry_is_measured_anew(machine, cache, change):
    made = machine(onnxruntime=8, openvino=6)
    made.choose()
    content = json.loads(cache.read_bytes())
    content["choices"][0] |= change
    cache.write_text(json.dumps(content))
    found = made.choose()
    assert (found.engine, found.recorded) == (VINO, False)


def test_a_cache_that_cannot_be_written_fails_nothing(machine, cache):
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file where the folder should be")
    made = machine(onnxruntime=8, openvino=6)
    for _ in range(2):
        found = made.choose()
        assert (found.engine, found.recorded) == (VINO, False)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(machine, cache, monkeypatch):
    made = machine(onnxruntime=8, openvino=6)
    made.choose()
    before = cache.read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert made.choose(7).engine is VINO
    assert [path.name for path in cache.parent.iterdir()] == ["engines.json"]
    assert cache.read_bytes() == before


def test_without_a_home_nothing_is_recorded_and_nothing_fails(machine, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert machine(onnxruntime=8, openvino=6).choose().engine is VINO


@pytest.mark.parametrize("value", [None, "", "relative/cache"])
def test_the_file_is_below_the_home_unless_told_otherwise(monkeypatch, tmp_path, value):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    if value is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert choice._file() == tmp_path / ".cache/steelsight/engines.json"


def test_a_sentence_says_engine_reason_and_times(machine):
    made = machine(onnxruntime=8.04, openvino=6)
    assert made.choose().sentence == (
        "openvino: the fastest that answers the self-test as recorded; onnxruntime 8.0 ms a frame; "
        "openvino 6.0 ms a frame"
    )
    assert made.choose().sentence.endswith("; measured earlier")


# ------------------------------------------------------------------------------- the shipped bundle


def test_auto_on_this_machine_and_again_from_the_record(cache, monkeypatch):
    """A recorded choice imports the engine it names and no other."""
    pytest.importorskip("openvino")
    monkeypatch.setattr(choice, "_ROUNDS", 1)
    first = Inspector.load()
    recorded = json.loads(cache.read_bytes())["choices"][0]["engine"]
    assert first.engine.startswith(recorded)
    code = (
        "import sys; from steelsight.engine import Inspector; print(Inspector.load().engine);"
        "print(*({'onnxruntime', 'openvino'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
        timeout=60,
    )
    assert done.stdout.split() == [first.engine, recorded]


# ----------------------------------------------------------------------------------- the comparison

SIZE_HW = (40, 50)


def mask_of(x: int, width: int = 20) -> str:
    mask_hw = np.zeros(SIZE_HW, bool)
    mask_hw[10:20, x : x + width] = True
    return encode_rle(mask_hw)


def answer(*masks: tuple[str, str], faulty: float | None = 0.5, ng: bool = True) -> Inspection:
    defects = tuple(
        Defect(class_id, 1, (0, 0, 1, 1), 1.0, 1.0, 0.0, 0.9, rle) for class_id, rle in masks
    )
    return Inspection(
        image="self_test",
        sha256=None,
        verdict=Verdict.NG if ng else Verdict.OK,
        reason=None,
        detail=None,
        faulty_probability=faulty,
        class_probabilities={},
        defects=defects,
        size_wh=SIZE_HW[::-1],
        model="",
        decision="",
        engine="",
    )


RECORDED = answer()
RECORD = answer(("a", mask_of(10)), ("b", mask_of(0, 4))).to_json()


def test_the_same_answer_does_not_differ() -> None:
    assert compare(answer(("a", mask_of(10)), ("b", mask_of(0, 4))), RECORD) == ""
    assert compare(answer(faulty=0.1, ng=False), answer(faulty=0.1, ng=False).to_json()) == ""


def test_regions_may_be_split_differently() -> None:
    parts = (("a", mask_of(10, 5)), ("a", mask_of(15, 15)), ("b", mask_of(0, 4)))
    assert compare(answer(*parts), RECORD) == ""


def test_another_verdict_differs() -> None:
    assert compare(answer(ng=False), RECORD).startswith("expected verdict NG, got OK")
    assert compare(answer(), answer(ng=False).to_json()).startswith("expected verdict OK, got NG")


def test_no_verdict_differs_and_says_why() -> None:
    unknown = replace(
        answer(faulty=None), verdict=Verdict.UNKNOWN, reason=Reason.EMPTY, detail="0 bytes"
    )
    assert compare(unknown, RECORD) == "expected verdict NG, got UNKNOWN (0 bytes)"


def test_unknown_was_never_recorded_as_an_answer() -> None:
    """A self-test frame without a verdict proves nothing, even if both sides agree."""
    unknown = replace(answer(faulty=None), verdict=Verdict.UNKNOWN, reason=Reason.EMPTY)
    assert compare(unknown, unknown.to_json())


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@pytest.mark.parametrize("logit", [-6.0, -1.0, 0.0, 0.3, 4.0, 9.0])
@pytest.mark.parametrize(
    ("shift", "same"), [(-0.51, False), (-0.49, True), (0.0, True), (0.49, True), (0.51, False)]
)
def test_faulty_logits_may_shift_by_half(logit: float, shift: float, same: bool) -> None:
    found = compare(answer(faulty=sigmoid(logit + shift)), answer(faulty=sigmoid(logit)).to_json())
    assert (found == "") is same
    assert same or found.startswith(f"expected faulty_probability {sigmoid(logit):.4f}, got ")


@pytest.mark.parametrize(("one", "other"), [(1.0, 1.0), (1.0, 1 - 1e-7), (0.0, 1e-9)])
def test_probabilities_of_0_and_1_can_be_compared(one: float, other: float) -> None:
    assert compare(answer(faulty=one), answer(faulty=other).to_json()) == ""


def test_certainties_that_contradict_differ() -> None:
    assert compare(answer(faulty=1.0), answer(faulty=0.0).to_json())


@pytest.mark.parametrize(
    ("masks", "dice"),
    [
        # Both masks are 20 columns wide: a shift by n leaves a Dice of (20 - n) / 20.
        ((("a", mask_of(11)), ("b", mask_of(0, 4))), "type a overlap .* Dice of 0.95"),
        ((("a", mask_of(30)), ("b", mask_of(0, 4))), "type a overlap .* Dice of 0.00"),
        ((("a", mask_of(10)),), "type b overlap .* Dice of 0.00"),
        ((("a", mask_of(10)), ("b", mask_of(0, 4)), ("c", mask_of(40, 1))), "type c .* 0.00"),
        ((("b", mask_of(10)), ("a", mask_of(0, 4))), "type [ab] overlap"),
    ],
)
def test_masks_must_overlap_type_by_type(masks: tuple[tuple[str, str], ...], dice: str) -> None:
    found = compare(answer(*masks), RECORD)
    assert re.search(dice, found), found


def test_a_dice_just_above_the_tolerance_passes() -> None:
    # 33 of 34 columns in common: 2 * 33 / (33 + 34) = 0.985
    wide, narrow = answer(("a", mask_of(5, 34))), answer(("a", mask_of(5, 33)))
    assert compare(narrow, wide.to_json()) == ""
