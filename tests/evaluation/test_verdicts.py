"""Counts of pixels lead to the verdicts that the masks themselves lead to."""

import tomllib
from dataclasses import replace

import numpy as np
import pytest

from steelsight.data.frames import FramePixels, LabelledFrame
from steelsight.decisions import Decision, FirstLookRule, decide, is_cleared
from steelsight.defects import Verdict
from steelsight.engine.cascade import Evidence
from steelsight.errors import InputError
from steelsight.evaluation.predictions import Answer, Collector, sigmoid
from steelsight.evaluation.verdicts import apply_decision, faulty_met_by
from steelsight.masks import encode_rle

SIZE_HW = (48, 64)
DECISION = """
version = 1
name = "n"
rule = "r"
chosen_on = "c"
[gate]
clear_below = 0.2
ng_from = 0.7
{gate}
[input]
min_contrast = 2
[types.x]
label_from = 0.45
pixel_from = 0.5
min_area_px = 0
[types.y]
label_from = 0.3
pixel_from = {pixel_from}
min_area_px = 300
"""


def decision_of(gate: str = "", pixel_from: float = float(sigmoid(np.array(-1.25)))) -> Decision:
    return Decision(**tomllib.loads(DECISION.format(gate=gate, pixel_from=pixel_from)))


def looked_at(seed: int, frames: int = 60):
    """Frames with masks of all sizes, as collected and as the networks gave them."""
    rng = np.random.default_rng(seed)
    collector, answers, masks = Collector("xy"), [], []
    for n in range(frames):
        planes = np.zeros((2, *SIZE_HW), np.float32)
        true = np.zeros((2, *SIZE_HW), bool)
        for k in range(2):
            y, x = rng.integers(30, size=2)
            true[k, y : y + rng.integers(16), x : x + rng.integers(30)] = rng.random() < 0.6
            y, x = rng.integers(30, size=2)
            planes[k, y : y + 16, x : x + rng.integers(30)] = rng.random()
        planes = np.clip(planes + rng.normal(0, 0.1, planes.shape), 0, 1).astype(np.float32)
        rles = {c: encode_rle(true[k]) for k, c in enumerate("xy") if true[k].any()}
        frame = LabelledFrame(f"{n}.png", None, SIZE_HW[::-1], rles, tuple(rles))
        types_hw = (true[0] | true[1] << 1).astype(np.uint8)
        answer = Answer(rng.normal(0, 2), rng.random(2).astype(np.float32), planes)
        collector.add(frame, FramePixels(np.zeros(SIZE_HW, np.uint8), types_hw), answer)
        answers.append(answer)
        masks.append(true)
    return collector.predictions(), answers, masks


@pytest.mark.parametrize(
    "gate",
    ["", "soft = true", "temperature = 2.5", "temperature = 0.4\nsoft = true"],
)
def test_verdicts_and_masks_are_those_of_decide(gate):
    decision = decision_of(gate)
    found, answers, masks = looked_at(1)
    verdicts = apply_decision(found, decision)
    told = set()
    for n, answer in enumerate(answers):
        faulty = decision.gate.calibrated(float(sigmoid(np.float32([answer.faulty_logit]))[0]))
        judged = decide(faulty, answer.head_probabilities_k, answer.probabilities_khw, decision)
        told.add((judged.verdict, judged.reason, is_cleared(faulty, decision)))
        assert verdicts.ng_n[n] == (judged.verdict is Verdict.NG)
        assert verdicts.ok_n[n] == (judged.verdict is Verdict.OK)
        assert verdicts.cleared_n[n] == is_cleared(faulty, decision)
        called = {defect.class_id for defect in judged.defects}
        assert verdicts.called_nk[n].tolist() == [c in called for c in "xy"]
        for k, c in enumerate("xy"):
            mask = answer.probabilities_khw[k] >= np.float32(decision.types[c].pixel_from)
            assert verdicts.area_px_nk[n, k] == mask.sum()
            assert verdicts.true_px_nk[n, k] == (mask & masks[n][k]).sum()
    assert len(told) >= 4, "cleared, clean, outlined and not localised frames all occur"
    assert not verdicts.rounded_pixel_from


def test_regions_are_covered_by_what_is_delivered():
    found, answers, masks = looked_at(2)
    decision = decision_of()
    verdicts = apply_decision(found, decision)
    assert (verdicts.covered_px_r > 0).sum() > 5
    assert (verdicts.covered_px_r == 0).sum() > 5
    for r, (n, k) in enumerate(zip(found.region_frames_r, found.region_types_r, strict=True)):
        x, y, w, h = found.region_boxes_r4[r]
        mask = answers[n].probabilities_khw[k] >= np.float32(decision.types["xy"[k]].pixel_from)
        both = mask & masks[n][k]
        expected = both[y : y + h, x : x + w].sum() if verdicts.called_nk[n, k] else 0
        assert verdicts.covered_px_r[r] == expected


def test_scores_that_are_not_finite_are_neither_ok_nor_ng():
    found, _, _ = looked_at(3, frames=20)
    logits, heads = found.faulty_logits.copy(), found.head_probabilities_nk.copy()
    logits[3], logits[4], heads[5, 1] = np.nan, np.inf, np.nan
    spoiled = replace(found, faulty_logits=logits, head_probabilities_nk=heads)
    verdicts = apply_decision(spoiled, decision_of("soft = true\ntemperature = 2"))
    assert np.flatnonzero(~verdicts.answered_n).tolist() == [3, 4, 5]
    for flags in (verdicts.ok_n, verdicts.ng_n, verdicts.cleared_n, verdicts.called_nk.any(axis=1)):
        assert not flags[3:6].any()
    assert (verdicts.ok_n ^ verdicts.ng_n)[verdicts.answered_n].all()


def test_a_pixel_threshold_between_two_edges_is_told():
    found, _, _ = looked_at(4, frames=2)
    assert apply_decision(found, decision_of(pixel_from=0.53)).rounded_pixel_from
    assert not apply_decision(found, decision_of(pixel_from=0.222700139)).rounded_pixel_from


def test_the_rules_of_another_model_are_refused():
    found, _, _ = looked_at(5, frames=1)
    decision = decision_of()
    other = decision.model_copy(update={"types": {"x": decision.types["x"]}})
    with pytest.raises(InputError, match="expected a decision with rules for the types x, y, got"):
        apply_decision(found, other)


@pytest.mark.parametrize("gate", ["", "soft = true", "temperature = 2.5"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_first_look_settles_frames_as_in_the_cascade(gate, temperature):
    rule = FirstLookRule(clear_below=0.15, temperature=temperature)
    decision = decision_of(gate).model_copy(update={"first_look": rule})
    found, answers, _ = looked_at(6)
    first = np.random.default_rng(6).normal(-2, 1.5, len(found)).astype(np.float32)
    found = replace(found, first_look_logits=first)
    verdicts = apply_decision(found, decision)
    settled = set()
    for n, answer in enumerate(answers):
        faulty, first_n = (
            float(sigmoid(np.float32([z]))[0]) for z in (answer.faulty_logit, first[n])
        )
        seen = Evidence(
            faulty,
            answer.head_probabilities_k,
            answer.probabilities_khw,
            Evidence(first_n, answer.head_probabilities_k, None),
        ).met_by(decision)
        settled.add(seen.probabilities_chw is None)
        judged = decide(*seen[:3], decision)
        assert verdicts.ng_n[n] == (judged.verdict is Verdict.NG)
        assert verdicts.ok_n[n] == (judged.verdict is Verdict.OK)
        assert faulty_met_by(decision, found)[n] == pytest.approx(seen.faulty_probability)
    assert settled == {True, False}


def test_a_first_look_that_is_not_finite_settles_nothing():
    decision = decision_of().model_copy(update={"first_look": FirstLookRule(clear_below=0.15)})
    found, _, _ = looked_at(7, frames=10)
    first = np.full(10, -6, np.float32)
    first[3] = np.nan
    verdicts = apply_decision(replace(found, first_look_logits=first), decision)
    assert np.flatnonzero(~verdicts.answered_n).tolist() == [3]
    assert verdicts.ok_n.sum() == 9


def test_predictions_without_a_first_look_cannot_be_judged_by_its_rule():
    decision = decision_of().model_copy(update={"first_look": FirstLookRule(clear_below=0.15)})
    with pytest.raises(InputError, match="the scores of a first look"):
        apply_decision(looked_at(8, frames=2)[0], decision)
