"""What thresholds are chosen by is what runs: the engine's verdicts and those on predictions."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from steelsight.data.frames import FramePixels, LabelledFrame
from steelsight.decisions import Decision
from steelsight.defects import Reason, Verdict
from steelsight.engine import Inspector
from steelsight.evaluation.predictions import Answer, Collector, logit
from steelsight.evaluation.verdicts import apply_decision

SIZE_WH = (320, 128)


@dataclass
class GradedGate:
    """Frames in; scores that follow from their mean grey levels, all shades of them."""

    label: str = "fake-fp32"

    def run(self, inputs):
        frames = inputs["frames"].astype(np.float32)
        faulty = np.float32(1 / (1 + np.exp(-(frames[..., :64, :].mean() - 100) / 8)))
        columns = np.split(frames[0, 0], 4, axis=1)
        heads = np.array([[c.mean() / 255 for c in columns]], np.float32)
        return {
            "faulty_probability": np.array([faulty], np.float32),
            "class_probabilities": heads,
            "c2": inputs["frames"].copy(),
            **{name: np.zeros((1, 1), np.uint8) for name in ("c3", "c4", "c5")},
        }


@dataclass
class GradedSegmenter:
    """A type's mask probability is the square of the grey level in its quarter of the frame."""

    label: str = "fake-fp32"

    def run(self, inputs):
        grey = (inputs["c2"][:, 0].astype(np.float32) / 255) ** 2
        quarter = np.arange(grey.shape[2]) * 4 // grey.shape[2]
        planes = [np.where(quarter == k, grey, np.float32(0.01)) for k in range(4)]
        probabilities = np.clip(np.stack(planes, axis=1), 1e-6, 1 - 1e-6)
        return {"mask_logits": np.log(probabilities / (1 - probabilities))}


def decision_of(temperature: float, soft: bool) -> Decision:
    """Thresholds at which all kinds of verdicts occur, weighed or not."""
    weight = 0.5 if soft else 1.0
    return Decision(
        version=1,
        name="graded",
        rule="none",
        chosen_on="nothing",
        gate={"clear_below": 0.3, "ng_from": 0.7, "temperature": temperature, "soft": soft},
        input={"min_contrast": 2.0},
        types={
            c: {"label_from": x * weight, "pixel_from": 0.2227001388, "min_area_px": 300}
            for c, x in zip("1234", (0.40, 0.42, 0.45, 0.48), strict=True)
        },
    )


def drawn(n: int) -> list[np.ndarray]:
    """Frames of soft clouds, from dark to bright."""
    rng = np.random.default_rng(2)
    clouds = (cv2.resize(rng.normal(0, 25, (4, 8)), SIZE_WH) for _ in range(n))
    return [np.clip(level + c, 0, 255).astype(np.uint8)
            for level, c in zip(np.linspace(75, 125, n), clouds, strict=True)]  # fmt: skip


def collected(inspector: Inspector, frames: list[np.ndarray]):
    collector = Collector("1234")
    for n, grey_hw in enumerate(frames):
        seen = inspector.look(grey_hw)
        answer = Answer(
            float(logit(np.array(seen.faulty_probability))),
            seen.head_probabilities,
            seen.probabilities_chw,
        )
        frame = LabelledFrame(f"{n}", Path(), SIZE_WH, {}, ())
        collector.add(frame, FramePixels(grey_hw, np.zeros(SIZE_WH[::-1], np.uint8)), answer)
    return collector.predictions()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
def test_the_engine_gives_the_verdicts_that_predictions_promise(bench, temperature, soft):
    inspector = bench(gate=GradedGate(), segmenter=GradedSegmenter()).inspector
    decision = decision_of(temperature, soft)
    inspector.bundle = inspector.bundle.model_copy(update={"decision": decision})
    frames = drawn(60)
    verdicts = apply_decision(collected(inspector, frames), decision)
    assert not verdicts.rounded_pixel_from
    kinds = set()
    for n, grey_hw in enumerate(frames):
        result = inspector.inspect(grey_hw)
        assert (result.verdict is Verdict.NG) == verdicts.ng_n[n]
        assert (result.verdict is Verdict.OK) == verdicts.ok_n[n]
        area_px = dict.fromkeys("1234", 0)
        for defect in result.defects:
            area_px[defect.class_id] += defect.area_px
        assert list(area_px.values()) == (verdicts.area_px_nk * verdicts.called_nk)[n].tolist()
        cleared = result.milliseconds["segment"] == 0
        assert cleared == verdicts.cleared_n[n]
        kinds.add((result.verdict, result.reason is Reason.NOT_LOCALISED, cleared))
        faulty = inspector.look(grey_hw).faulty_probability
        assert result.faulty_probability == decision.gate.calibrated(faulty)
    assert {(Verdict.NG, False, False), (Verdict.OK, False, True)} < kinds
    assert len(kinds) >= 3, "cleared, clean or not localised, and outlined frames all occur"


def test_temperature_and_soft_gate_do_change_verdicts(bench):
    """Otherwise the test above would prove nothing."""
    inspector = bench(gate=GradedGate(), segmenter=GradedSegmenter()).inspector
    found = collected(inspector, drawn(60))
    base = decision_of(1, soft=False)
    plain = apply_decision(found, base).ng_n
    for changed in ({"temperature": 3.0}, {"soft": True}):
        gate = base.gate.model_copy(update=changed)
        assert (apply_decision(found, base.model_copy(update={"gate": gate})).ng_n != plain).any()
