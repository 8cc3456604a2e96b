"""The story of a benchmark, with pipelines whose answers are known."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from steelsight.benchmark import run as room
from steelsight.benchmark.frames import Candidate, EncodedFrame
from steelsight.benchmark.line import Line
from steelsight.benchmark.machine import ColdStart
from steelsight.benchmark.race import Spread
from steelsight.benchmark.run import (
    Answer,
    Pipeline,
    Settings,
    accuracy,
    answer_of,
    load_contestant,
    run,
)
from steelsight.decisions import FirstLookRule
from steelsight.defects import Defect, DefectClass, Inspection, Reason, Verdict
from steelsight.engine.runtime import Engine
from steelsight.errors import EngineError, InputError

SIZE_WH = (8, 4)


def defect(class_id, rle):
    return Defect(class_id, 2, (0, 0, 1, 2), 2, 1, 0, 0.9, rle)


def inspection(name, verdict, defects=(), probability=0.5):
    unknown = verdict is Verdict.UNKNOWN
    return Inspection(
        name, None, verdict, *((Reason.ENGINE_FAILED, "broken") if unknown else (None, None)),
        None if unknown else probability, {}, tuple(defects), SIZE_WH, "m", "d", "e",
        {"decode": 1.0, "gate": 2.0, "segment": 3.0 if defects else 0.0, "decide": 0.5},
    )  # fmt: skip


class FakeInspector:
    """Frames whose bytes say "bad" are NG with a region of type 1."""

    def __init__(self, engine="onnxruntime-int8", loses=0, broken=False):
        self.engine, self.loses, self.broken, self.seen = engine, loses, broken, []
        self.workers = 1
        self.bundle = SimpleNamespace(
            id="fake@12345678",
            folder="fake",
            classes=tuple(DefectClass(k, k, "#000000") for k in "12"),
            decision=SimpleNamespace(id="87654321", name="rules", first_look=None),
            manifest=SimpleNamespace(name="fake", precision="int8"),
        )

    def inspect(self, data, name=None):
        self.seen.append(name)
        if self.broken:
            return inspection(name or "bytes", Verdict.UNKNOWN)
        if data == b"bad":
            return inspection(name, Verdict.NG, [defect("1", "1 2")], 0.9)
        return inspection(name or "bytes", Verdict.OK, (), 0.1)

    def inspect_many(self, images):
        return (self.inspect(data) for data in list(images)[self.loses :])


@pytest.fixture
def fakes(monkeypatch):
    """Pipelines that are loaded, in order; nothing is started and no peak is measured."""
    loaded = []

    def load(bundle, engine, threads, decision=None):
        if engine == Engine.OPENVINO and bundle == "refused":
            raise EngineError("OpenVINO refuses it")
        loaded.append(Pipeline(FakeInspector(f"{engine}-int8"), FakeInspector()))
        return loaded[-1]

    cold = ColdStart(Spread.of([0.5, 0.6, 0.7]), 200.0)
    monkeypatch.setattr(room.Pipeline, "load", load)
    monkeypatch.setattr(room, "cold_start", lambda *given, decision: cold)
    monkeypatch.setattr(room, "_probes", lambda *given: {})
    return loaded


def candidates(bad=4, good=12):
    kinds = [(b"bad", True)] * bad + [(b"good", False)] * good
    return [
        Candidate(f"{i:02d}.jpg", lambda data=data: data, faulty, {"1": "1 4"} if faulty else {})
        for i, (data, faulty) in enumerate(kinds)
    ]


def test_a_run_and_its_figures(fakes):
    stages = []

    def stage(what):
        stages.append(what)
        return room.silent(what)

    settings = Settings(
        frames=8, faulty_share=0.25, rounds=3, threads=2, accuracy=True, line=Line(0.001, 0.5)
    )
    engines = (Engine.ONNXRUNTIME, Engine.OPENVINO)
    facts = run(candidates(), Settings(**{**as_dict(settings), "engines": engines}), stage)
    json.dumps(facts, allow_nan=False)
    assert [c["name"] for c in facts["contestants"]] == [
        "fake onnxruntime-int8",
        "fake openvino-int8",
    ]
    assert facts["reference"] == "fake onnxruntime-int8"
    frames = facts["frames"]
    assert (frames["count"], frames["faulty"], frames["segmented"], frames["different"]) == (
        8,
        2,
        2,
        8,
    )
    assert frames["sizes_wh"] == [[8, 4]]
    for fact in facts["contestants"]:
        assert fact["verdicts"] == {"NG": 2, "OK": 6}
        assert sum(fact["verdicts"].values()) == frames["different"]
        assert fact["verdicts_unlike_the_first"] == 0
        assert fact["ms"]["values"] == 3 * 8
        assert fact["ms_segmented"]["values"] == 3 * 2
        assert len(fact["frames_per_second_by_round"]) == 3
        assert fact["bundle"] == "fake@12345678"
        assert fact["decision"] == "87654321"
        assert fact["cold_start"]["peak_mb"] == 200
        # Delivered 2 of 4 labelled pixels: 2 x 2 / 6.
        assert fact["accuracy"] == {
            "auroc": 1.0,
            "dice": 0.666667,
            "frames": 8,
            "masks": 2,
            "other_types": [],
        }
        assert fact["line"]["keeps_up"] is True
    assert facts["contestants"][0]["times_as_fast"]["median"] == 1
    assert facts["line"] == {"metres_per_second": 0.001, "mm_per_px": 0.5, "cameras": 1, "rows": 4}
    assert stages == ["loading", "choosing", "answering", "starting", "warming up", "measuring"]


def as_dict(settings):
    return {name: getattr(settings, name) for name in settings.__slots__}


def test_all_take_the_same_frames(fakes):
    run(candidates(), Settings(engines=(Engine.ONNXRUNTIME, Engine.OPENVINO), frames=6, rounds=2))
    first, second = ([n for n in p.one.seen if n] for p in fakes)
    assert first[-12:] == second[-12:]
    assert sorted(first[-6:]) == sorted(first[-12:-6])


def test_an_engine_that_refuses_is_told_and_left_out(fakes):
    engines = (Engine.ONNXRUNTIME, Engine.OPENVINO)
    facts = run(candidates(), Settings(bundles=("refused",), engines=engines, frames=4, rounds=1))
    assert [c["name"] for c in facts["contestants"]] == ["fake onnxruntime-int8"]
    assert facts["notes"] == ["openvino is left out: OpenVINO refuses it"]
    with pytest.raises(EngineError, match="refuses it"):
        run(candidates(), Settings(bundles=("refused",), engines=(Engine.OPENVINO,), frames=4))


def test_equal_names_are_told_apart(fakes):
    facts = run(
        candidates(),
        Settings(bundles=("a", "b"), engines=(Engine.ONNXRUNTIME,), frames=4, rounds=1),
    )
    assert [c["name"] for c in facts["contestants"]] == [
        "fake@12345678 onnxruntime-int8 (1)", "fake@12345678 onnxruntime-int8 (2)",
    ]  # fmt: skip


def test_without_a_cold_start_the_rest_is_measured(fakes, monkeypatch):
    def refuse(*given, decision):
        raise EngineError("no process")

    monkeypatch.setattr(room, "cold_start", refuse)
    facts = run(candidates(), Settings(engines=(Engine.ONNXRUNTIME,), frames=4, rounds=1))
    assert facts["contestants"][0]["cold_start"] is None
    assert facts["notes"] == ["fake onnxruntime-int8 has no cold start: no process"]


@pytest.mark.parametrize("part", ["one", "many"])
def test_an_unknown_frame_ends_the_run(part):
    """It takes next to no time, and would make the pipeline look fast."""
    pipeline = Pipeline(FakeInspector(broken=part == "one"), FakeInspector(broken=part == "many"))
    frames = [EncodedFrame("a.jpg", b"good", None)]
    with pytest.raises(EngineError, match="got UNKNOWN, engine-failed: broken"):
        pipeline.one_by_one(frames) if part == "one" else pipeline.together(frames)


def test_a_lost_frame_ends_the_run():
    pipeline = Pipeline(FakeInspector(), FakeInspector(loses=1))
    with pytest.raises(EngineError, match="expected 8 results, got 7"):
        pipeline.together([EncodedFrame("a.jpg", b"good", None)] * 2)


def test_what_another_pipeline_is_told():
    bundle = FakeInspector().bundle
    found = inspection("a.jpg", Verdict.NG, [defect("2", "9 1"), defect("2", "1 2")])
    assert answer_of(found, bundle) == Answer(True, {"2": "1 2 9 1"}, SIZE_WH)
    assert answer_of(inspection("a.jpg", Verdict.OK), bundle) == Answer(False, {}, SIZE_WH)
    with pytest.raises(EngineError, match="expected a verdict"):
        answer_of(inspection("a.jpg", Verdict.UNKNOWN), bundle)


OTHER = """
from steelsight.benchmark.race import Timed

class Other:
    name = "other"
    def __init__(self, answers, threads):
        self.answers, self.threads = answers, threads
    def one_by_one(self, frames):
        return [Timed(10.0 if self.answers[f.name].segmented else 5.0, {}) for f in frames]
    def together(self, frames):
        return None

contestant = Other
"""


def test_another_pipeline_becomes_the_reference(fakes, tmp_path):
    (tmp_path / "other.py").write_text(OTHER)
    settings = Settings(
        engines=(Engine.ONNXRUNTIME,), against=tmp_path / "other.py", frames=8, rounds=2,
        faulty_share=0.25,
    )  # fmt: skip
    facts = run(candidates(), settings)
    ours, other = facts["contestants"]
    assert facts["reference"] == other["name"] == "other"
    assert other["frames_per_second"]["median"] == pytest.approx(8 / (2 * 10 + 6 * 5), rel=1e-5)
    assert other["ms_segmented"]["median"] == 10_000
    assert other["times_as_fast"]["median"] == 1
    assert ours["times_as_fast"]["median"] > 100
    assert "bundle" not in other


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is none"),
        ("x = 1", "found none"),
        ("import nothing_like_this", "not installed"),
        ("def contestant(", "cannot be executed: SyntaxError"),
        ("1 / 0", "cannot be executed: ZeroDivisionError"),
        ("def contestant(a): pass", r"contestant\(answers, threads\) failed: TypeError"),
        ("def contestant(a, t): return 1", "name and one_by_one and together missing"),
    ],
)
def test_a_file_without_a_pipeline_is_refused(tmp_path, text, message):
    path = tmp_path / "other.py"
    if text:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_contestant(path, {}, 1)


def test_accuracy_counts_each_frame_once():
    found = {
        "found.jpg": inspection("found.jpg", Verdict.NG, [defect("1", "1 4")], 0.9),
        "missed.jpg": inspection("missed.jpg", Verdict.OK, (), 0.3),
        "good.jpg": inspection("good.jpg", Verdict.OK, (), 0.1),
        "doubted.jpg": inspection("doubted.jpg", Verdict.OK, (), 0.5),
        "unlabelled.jpg": inspection("unlabelled.jpg", Verdict.OK, (), 0.7),
    }
    labels = {
        "found.jpg": Candidate("found.jpg", bytes, True, {"1": "1 4", "2": "9 4"}),
        "missed.jpg": Candidate("missed.jpg", bytes, True, {"1": "5 4"}),
        "good.jpg": Candidate("good.jpg", bytes, False),
        "doubted.jpg": Candidate("doubted.jpg", bytes, False),
        "not-inspected.jpg": Candidate("not-inspected.jpg", bytes, True),
    }
    measured = accuracy(found, labels, ["1", "2"])
    assert measured.auroc == 0.75  # 0.9 beats both clean ones, 0.3 one of them
    # Type 1: (1 + 0) / 2; type 2: 0; the mean over types.
    assert measured.dice == pytest.approx((0.5 + 0.0) / 2)
    assert (measured.frames, measured.masks) == (4, 3)
    assert measured.other_types == ()
    part = accuracy(found, labels, ["1"])
    assert (part.dice, part.masks, part.other_types) == (0.5, 2, ("2",))
    nothing = accuracy(found, {}, ["1"])
    assert (nothing.auroc, nothing.dice, nothing.frames) == (None, None, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"frames": 0}, "--frames from 1"),
        ({"rounds": 0}, "--rounds from 1"),
        ({"threads": 0}, "--threads from 1"),
        ({"seed": -1}, "--seed from 0"),
        ({"faulty_share": 2.0}, "--faulty-share from 0 to 1"),
        ({"engines": (Engine.AUTO,)}, "--engine onnxruntime, openvino or cuda, got auto"),
    ],
)
def test_impossible_settings_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        Settings(**given)


def test_share_of_the_peak_is_paired(monkeypatch):
    pytest.importorskip("openvino")
    from steelsight.benchmark import peak

    monkeypatch.setattr(peak, "operations", lambda *given: (6e9, 2e9))
    found = SimpleNamespace(step_ms_r={"gate": (20.0, 40.0)})
    shares = room._share_of_peak(SimpleNamespace(one=FakeInspector()), SIZE_WH, found, [6e11, 3e11])
    assert shares["gate"]["median"] == shares["gate"]["p99"] == 0.5
    assert shares["segment_operations"] == 2e9
    assert "segment" not in shares


def test_the_gates_share_of_the_peak_is_not_told_behind_a_first_look(monkeypatch):
    """Not every frame has its operations: their share of the time would be above 100 %."""
    pytest.importorskip("openvino")
    from steelsight.benchmark import peak

    monkeypatch.setattr(peak, "operations", lambda *given: (6e9, 2e9))
    found = SimpleNamespace(step_ms_r={"gate": (20.0, 40.0), "segment": (5.0, 5.0)})
    behind = FakeInspector()
    behind.bundle.decision.first_look = FirstLookRule(clear_below=0.01)
    shares = room._share_of_peak(SimpleNamespace(one=behind), SIZE_WH, found, [4e11, 4e11])
    assert not {"gate", "gate_operations"} & set(shares)
    assert shares["segment"]["median"] == 1


def test_every_decision_runs_on_every_engine(monkeypatch):
    given = []

    def load(bundle, engine, threads, decision=None):
        given.append((bundle, str(engine), decision))
        return Pipeline(FakeInspector(f"{engine}-int8"), FakeInspector(), decision=decision)

    monkeypatch.setattr(room.Pipeline, "load", load)
    settings = Settings(
        engines=(Engine.ONNXRUNTIME,), decisions=(Path("decision"), Path("first-look"))
    )
    pipelines = room._load_pipelines(settings, [], lambda *_: None)
    assert given == [
        (None, "onnxruntime", Path("decision")),
        (None, "onnxruntime", Path("first-look")),
    ]
    assert [p.decision for p in pipelines] == [Path("decision"), Path("first-look")]
    assert len({p.name for p in pipelines}) == 2


def test_the_naive_pipeline():
    """The loops of the notebooks say the same as our own code."""
    pytest.importorskip("torch")
    from benchmarks import naive

    from steelsight.data.synthetic import encode_jpeg
    from steelsight.masks import decode_rle, encode_rle

    mask = np.zeros((64, 96), bool)
    mask[5:40, 10:40] = mask[50, 60] = True
    kept = naive.without_small_components(mask.astype(np.float32))
    assert kept[50, 60] == 0, "a small component goes"
    assert kept.sum() == 35 * 30
    assert naive.run_lengths(kept) == encode_rle(kept.astype(bool))
    answers = {
        "bad": Answer(True, {"3": encode_rle(mask)}, (96, 64)),
        "good": Answer(False, {}, (96, 64)),
    }
    pipeline = naive.contestant(answers, 1)
    data = encode_jpeg(np.random.default_rng(0).integers(0, 255, (64, 96), np.uint8))
    line, timed = pipeline.inspect(EncodedFrame("bad", data, True), pipeline.masks("bad"))
    result = json.loads(line)
    assert [k for k, rle in result["rle"].items() if rle] == ["3"]
    np.testing.assert_array_equal(decode_rle(result["rle"]["3"], (96, 64)), kept.astype(bool))
    assert sum(timed.steps_ms.values()) == pytest.approx(1e3 * timed.seconds)
    assert timed.steps_ms["segment"] > 1
    clean = pipeline.one_by_one([EncodedFrame("good", data, False)])[0]
    assert clean.steps_ms["segment"] < 0.1
    assert pipeline.together([]) is None
