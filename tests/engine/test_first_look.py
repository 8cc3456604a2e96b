"""A smaller network in front of stage 1: what it settles, and what it must not change."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from steelsight.bundle import DEFAULT_BUNDLE, load_bundle
from steelsight.data.synthetic import CoilConfig, draw_frame, encode_jpeg
from steelsight.decisions import FirstLookRule, decide, is_settled
from steelsight.defects import Reason, Verdict
from steelsight.engine import Inspector
from steelsight.engine.cascade import SETTLED
from steelsight.engine.choice import self_test
from steelsight.engine.first_look import add_first_look
from steelsight.engine.runtime import load_runtime
from steelsight.errors import InputError

from .conftest import FakeFirstLook


@pytest.fixture
def rules(decision):
    first_look = FirstLookRule(clear_below=0.05)
    return decision.model_copy(update={"first_look": first_look})


@pytest.fixture
def marked(plate, level):
    """``marked(size_hw, *names)``: a plate with a small mark of each level at its end."""

    def draw(size_hw, *names):
        frame = plate(*size_hw)
        for i, name in enumerate(names):
            x = size_hw[1] - 30 * (i + 1)
            frame[size_hw[0] - 30 : size_hw[0] - 10, x : x + 20] = level[name]
        return frame

    return draw


def essence(inspection):
    told = inspection.to_json(timing=False)
    del told["decision"]
    return told


def test_what_it_settles_is_ok_and_nothing_else_looks(bench, rules, plate):
    made = bench(first_look=FakeFirstLook(), rules=rules)
    result = made.inspector.inspect(plate(256, 1600))
    assert (result.verdict, made.first_look.calls) == (Verdict.OK, 1)
    assert made.gate.calls == made.segmenter.calls == 0
    assert result.faulty_probability == pytest.approx(0.01)
    # Its own heads; the peak counts as 0, as where stage 1 clears.
    assert result.class_probabilities["1"] == pytest.approx(2 * 0.03 / 3)
    assert result.notes == (SETTLED,)
    assert set(result.milliseconds) == {"decode", "gate", "segment", "decide"}
    assert result.milliseconds["gate"] > 0


def test_its_score_is_told_at_its_temperature(bench, rules, plate):
    warm = FirstLookRule(clear_below=0.05, temperature=0.5)
    made = bench(first_look=FakeFirstLook(), rules=rules.model_copy(update={"first_look": warm}))
    logit = math.log(0.01 / 0.99) / 0.5
    result = made.inspector.inspect(plate(256, 1600))
    assert result.faulty_probability == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-5)


@pytest.mark.parametrize(
    "mark",
    [
        *("FIRST_LOOK_UNSURE", "DOUBTFUL", "TYPE_2", "FAULTY_ONLY"),
        *("GATE_NAN", "HEAD_NAN", "SEGMENTER_NAN", "GATE_FAILS", "SEGMENTER_FAILS"),
    ],
)
def test_what_it_does_not_settle_is_judged_as_without_it(bench, rules, marked, mark):
    frame = marked((256, 1600), mark)
    made = bench(first_look=FakeFirstLook(), rules=rules)
    result, without = made.inspector.inspect(frame), bench().inspector.inspect(frame)
    assert essence(result) == essence(without)
    assert (made.first_look.calls, made.gate.calls) == (1, 1)


@pytest.mark.parametrize("size_hw", [(512, 3200), (200, 200), (256, 1599)])
@pytest.mark.parametrize("mark", [None, "TYPE_2", "FIRST_LOOK_NAN"])
def test_frames_of_another_size_are_none_of_its_business(bench, rules, marked, mark, size_hw):
    """On other steel it settled 85 of 900 faulty photos that stage 1 calls NG."""
    frame = marked(size_hw, *([mark] if mark else []))
    made = bench(first_look=FakeFirstLook(), rules=rules)
    result, without = made.inspector.inspect(frame), bench().inspector.inspect(frame)
    assert essence(result) == essence(without)
    assert made.first_look.calls == 0
    assert made.inspector.look(frame).first_look is None


def test_what_is_left_of_a_frame_beside_its_dark_is_another_size(bench, rules, marked):
    """It would see columns of a width that it was never measured on."""
    looked_at = rules.input.model_copy(update={"dark_margin_below": 25.0})
    dark = rules.model_copy(update={"input": looked_at})
    whole, cut = (marked((256, 1600)) for _ in range(2))
    cut[:, :320] = 5
    made = bench(first_look=FakeFirstLook(), rules=dark)
    assert SETTLED in made.inspector.inspect(whole).notes
    assert made.first_look.calls == 1
    result = made.inspector.inspect(cut)
    without = dark.model_copy(update={"first_look": None})
    assert essence(result) == essence(bench(rules=without).inspector.inspect(cut))
    assert (made.first_look.calls, made.gate.calls) == (1, 1)
    assert made.inspector.look(cut).first_look is None


def test_it_hides_what_it_cannot_see(bench, rules, marked):
    """Its price, which every decision has to be measured with."""
    frame = marked((256, 1600), "TYPE_2", "FIRST_LOOK_MISSES")
    assert bench().inspector.inspect(frame).verdict is Verdict.NG
    result = bench(first_look=FakeFirstLook(), rules=rules).inspector.inspect(frame)
    assert (result.verdict, result.notes) == (Verdict.OK, (SETTLED,))


@pytest.mark.parametrize(
    ("mark", "reason"),
    [("FIRST_LOOK_NAN", Reason.NOT_FINITE), ("FIRST_LOOK_FAILS", Reason.ENGINE_FAILED)],
)
def test_a_first_look_that_fails_is_never_ok(bench, rules, marked, mark, reason):
    made = bench(first_look=FakeFirstLook(), rules=rules)
    result = made.inspector.inspect(marked((256, 1600), mark))
    assert (result.verdict, result.reason) == (Verdict.UNKNOWN, reason)


@pytest.mark.parametrize("output", ["faulty_probability", "class_probabilities"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_infinite_score_of_it_is_ok(bench, rules, plate, output, value):
    class Broken(FakeFirstLook):
        def run(self, inputs):
            outputs = super().run(inputs)
            outputs[output][..., 0] = value
            return outputs

    result = bench(first_look=Broken(), rules=rules).inspector.inspect(plate(256, 1600))
    assert (result.verdict, result.reason) == (Verdict.UNKNOWN, Reason.NOT_FINITE)


def test_without_a_rule_it_does_not_run(bench, plate):
    made = bench(first_look=FakeFirstLook())
    assert essence(made.inspector.inspect(plate(256, 1600))) == essence(
        bench().inspector.inspect(plate(256, 1600))
    )
    assert (made.first_look.calls, made.gate.calls) == (0, 1)


def test_thresholds_can_be_chosen_before_there_is_a_rule(bench, plate):
    """``look`` hides no frame: the scores of both, and masks."""
    made = bench(first_look=FakeFirstLook())
    seen = made.inspector.look(plate(256, 1600))
    assert seen.first_look is not None
    assert seen.first_look.faulty_probability == pytest.approx(0.01)
    assert seen.faulty_probability == pytest.approx(0.02)
    assert seen.probabilities_chw is not None


@pytest.mark.parametrize("mark", [None, "FIRST_LOOK_UNSURE", "TYPE_3", "FIRST_LOOK_MISSES"])
def test_looking_at_all_and_deciding_is_the_same(bench, rules, marked, mark):
    """What is explored under other thresholds, against the cascade that stops early."""
    frame = marked((256, 1600), *([mark] if mark else []))
    made = bench(first_look=FakeFirstLook(), rules=rules)
    result = made.inspector.inspect(frame)
    met = made.inspector.look(frame).met_by(rules)
    judgement = decide(*met[:3], rules)
    assert met.faulty_probability == result.faulty_probability
    assert (judgement.verdict, judgement.defects) == (result.verdict, result.defects)
    if mark != "FIRST_LOOK_UNSURE":  # cleared by the gate: only `look` has a mask, and its peak
        assert judgement.class_probabilities == result.class_probabilities


def test_nan_settles_nothing(rules, decision):
    assert not is_settled(math.nan, rules)
    assert is_settled(0.01, rules)
    assert not is_settled(0.05, rules)
    assert not is_settled(0.01, decision)


# ----------------------------------------------------------------------------- putting it together


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """The shipped bundle behind its own gate: both must say the same."""
    out = tmp_path_factory.mktemp("joined") / "both"
    shipped = load_bundle()
    return add_first_look(shipped, shipped, out)


def test_both_networks_are_in_the_bundle_and_in_its_self_test(joined):
    shipped = load_bundle()
    entry = joined.manifest.first_look
    assert entry is not None
    assert (entry.sha256, entry.model) == (shipped.manifest.gate.sha256, shipped.id)
    assert joined.sha256 != shipped.sha256
    assert joined.decision.sha256 == shipped.decision.sha256
    inspector = Inspector.load(joined.folder, engine="onnxruntime")
    assert self_test(inspector)[1] == ""
    taken = inspector.take_in(joined.self_test_path)
    seen = inspector.look(taken.frame.grey_hw)
    assert seen.first_look.faulty_probability == seen.faulty_probability
    assert joined.parity["first_look"]["self_test_faulty_probability"] == seen.faulty_probability
    assert joined.parity["first_look"]["verdict_flips"] == shipped.parity["verdict_flips"]


def test_a_first_look_that_answers_otherwise_fails_the_self_test(joined, tmp_path):
    parity = json.loads((joined.folder / "parity.json").read_text())
    parity["first_look"]["self_test_faulty_probability"] = 1e-4
    other = joined.model_copy(update={"parity": parity})
    inspector = Inspector.load(joined.folder, engine="onnxruntime")
    inspector.bundle = other
    assert self_test(inspector)[1].startswith("expected 0.0001 of the first look, got 0.")


def test_one_altered_byte_of_it_is_refused(joined, tmp_path):
    folder = tmp_path / "altered"
    shutil.copytree(joined.folder, folder)
    file = folder / joined.manifest.first_look.file
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(Exception, match=r"first_look\.int8\.onnx: expected sha256"):
        load_bundle(folder)


def test_a_rule_needs_a_bundle_with_the_network(joined, tmp_path):
    shipped = load_bundle()
    text = shipped.decision.text.split("[first_look]")[0]
    rest = text[: text.index("[input]")] + "[first_look]\nclear_below = 0.01\n\n"
    file = tmp_path / "decision.toml"
    file.write_text(rest + shipped.decision.text[shipped.decision.text.index("[input]") :])
    assert load_bundle(joined.folder, file).decision.first_look.clear_below == 0.01
    plain = tmp_path / "plain"
    shutil.copytree(DEFAULT_BUNDLE, plain)
    manifest = plain / "manifest.toml"
    manifest.write_text(manifest.read_text().split("[first_look]")[0])
    with pytest.raises(InputError, match=r"is for a bundle with a first look, .* has none"):
        load_bundle(plain, file)


def test_it_is_loaded_when_it_is_asked(joined, monkeypatch, tmp_path):
    """Most decisions never ask: their start need not wait for it."""
    loaded = []

    def load(path, *arguments):
        loaded.append(path.name)
        return load_runtime(path, *arguments)

    monkeypatch.setattr("steelsight.engine.cascade.load_runtime", load)
    inspector = Inspector.load(joined.folder, engine="onnxruntime")
    frame = draw_frame(CoilConfig(1, 3, 1.0, (1600, 256)), 0).grey_hw
    inspector.inspect(frame)
    assert sorted(loaded) == ["gate.int8.onnx", "segmenter.int8.onnx"]
    inspector.look(frame)
    inspector.look(frame)
    assert loaded[2:] == ["first_look.int8.onnx"]
    loaded.clear()
    Inspector.load(decision="first-look", engine="onnxruntime")
    assert sorted(loaded) == ["first_look.int8.onnx", "gate.int8.onnx", "segmenter.int8.onnx"]


def test_the_shipped_decision_hides_nothing_else(shared_dir):
    """Real frames: where the first look does not settle, all is as without it."""
    images = shared_dir / "data/severstal/images"
    frames = sorted(images.iterdir())[::25]
    with_it = Inspector.load(decision="first-look", engine="onnxruntime", workers=0)
    without = Inspector.load(engine="onnxruntime", workers=0)
    settled = 0
    for one, other in zip(with_it.inspect_many(frames), without.inspect_many(frames), strict=True):
        if SETTLED in one.notes:
            settled += 1
            assert one.verdict is Verdict.OK
            assert one.faulty_probability < with_it.bundle.decision.first_look.clear_below
        else:
            assert essence(one) == essence(other)
    assert 5 <= settled < len(frames)


@pytest.mark.parametrize(
    "what", ["types", "precision", "kind of camera", "size of frames", "folder"]
)
def test_what_does_not_fit_is_refused(joined, tmp_path, what):
    shipped = load_bundle()
    manifest = shipped.manifest
    change = {
        "types": {"classes": manifest.classes[::-1]},
        "precision": {"precision": "fp32"},
        "kind of camera": {"input": manifest.input.model_copy(update={"monochrome": False})},
        "size of frames": {"input": manifest.input.model_copy(update={"tile_wh": (200, 200)})},
        "folder": {},
    }[what]
    other = shipped.model_copy(update={"manifest": manifest.model_copy(update=change)})
    out = tmp_path / "out"
    if what == "folder":
        out.mkdir()
        (out / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match=what):
        add_first_look(shipped, other, out)
    assert not out.exists() or [p.name for p in out.iterdir()] == ["mine.txt"]
    assert not list(tmp_path.glob(".steelsight-*"))


def test_thresholds_of_another_first_look_are_not_taken_over(tmp_path):
    shipped = load_bundle()
    behind = load_bundle(decision=DEFAULT_BUNDLE / "first-look.toml")
    own = tmp_path / "own"
    shutil.copytree(DEFAULT_BUNDLE, own)
    (own / "decision.toml").write_text(behind.decision.text)
    bundle = load_bundle(own)
    with pytest.raises(InputError, match="whose thresholds were chosen for severstal-fastest@"):
        add_first_look(bundle, shipped, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    given = add_first_look(bundle, shipped, tmp_path / "out", DEFAULT_BUNDLE / "decision.toml")
    assert given.decision.first_look is None
    # Of a name, too: here that of thresholds which the caller says are right.
    again = add_first_look(shipped, shipped, tmp_path / "named", Path("first-look"))
    assert again.decision.sha256 == behind.decision.sha256


def test_a_self_test_that_it_cannot_look_at_is_refused(tmp_path):
    """No engine would pass it ever after."""
    small = tmp_path / "small"
    shutil.copytree(DEFAULT_BUNDLE, small)
    bundle = load_bundle(small)
    frame = encode_jpeg(draw_frame(CoilConfig(1, 3, 1.0, (800, 256)), 0).grey_hw)
    bundle.self_test_path.write_bytes(frame)
    with pytest.raises(InputError, match=r"self-test frame of 1600 x 256 pixels.* got 800 x 256"):
        add_first_look(bundle, load_bundle(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_it_gets_frames_in_its_multiples(bench, rules):
    """Padded as for the gate, whose input stays as it is."""
    seen = []

    class Watching(FakeFirstLook):
        def run(self, inputs):
            seen.append(inputs["frames"].shape)
            return super().run(inputs)

    frame = np.random.default_rng(0).integers(40, 190, (97, 161), np.uint8)
    made = bench(first_look=Watching(), rules=rules, tile_wh=(161, 97))
    assert made.inspector.inspect(frame).verdict is Verdict.OK
    assert seen == [(1, 1, 128, 192)]
