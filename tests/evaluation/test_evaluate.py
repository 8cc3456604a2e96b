"""The whole evaluation against loops over frames, and what it says of what it cannot measure."""

import json
import math
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import confusion_matrix, f1_score, precision_score
from tests.predicted import predictions_of, random_predictions

from steelsight.decisions import Decision
from steelsight.evaluation import evaluate as module
from steelsight.evaluation import metrics
from steelsight.evaluation.evaluate import evaluate
from steelsight.evaluation.predictions import Unanswered
from steelsight.evaluation.verdicts import apply_decision

IDS = "abc"


def decision_of(label_from: float = 0.75, ng_from: float = 0.9) -> Decision:
    rules = "".join(
        f"[types.{c}]\nlabel_from={label_from}\npixel_from=0.5\nmin_area_px=0\n" for c in IDS
    )
    gate = f"[gate]\nclear_below=0.3\nng_from={ng_from}\n"
    text = f'version=1\nname="n"\nrule="r"\nchosen_on="c"\n{gate}[input]\nmin_contrast=2\n{rules}'
    return Decision(**tomllib.loads(text))


@pytest.fixture(scope="module")
def found():
    return random_predictions(3, n=200)


@pytest.fixture(scope="module")
def told(found):
    return evaluate(found, decision_of(), resamples=400).to_json()


def dices(found, verdicts, n, k):
    """Dice as delivered and as segmented, from the pixels themselves."""
    inside, outside = found.inside_nkb[n, k], found.outside_nkb[n, k]
    true, marked = inside[25:].sum(), inside[25:].sum() + outside[25:].sum()
    both = marked + inside.sum()
    segmented = 2 * true / both if both else 1.0
    if verdicts.called_nk[n, k]:
        return segmented, segmented
    return (0.0 if inside.sum() else 1.0), segmented


def test_rates_are_those_of_scikit_learn(found, told):
    ng = apply_decision(found, decision_of()).ng_n
    rates = told["at_decision"]
    tn, fp, fn, tp = confusion_matrix(found.faulty, ng).ravel().tolist()
    assert rates["verdicts"] == {
        "faulty": {"NG": tp, "OK": fn, "UNKNOWN": 0},
        "clean": {"NG": fp, "OK": tn, "UNKNOWN": 0},
    }
    assert min(tn, fp, fn, tp) > 3
    for name, value in (
        ("escape_rate", fn / (fn + tp)),
        ("overkill_rate", fp / (fp + tn)),
        ("accuracy", (tp + tn) / 200),
        ("recall", tp / (tp + fn)),
        ("precision", precision_score(found.faulty, ng)),
        ("f1", f1_score(found.faulty, ng)),
    ):
        assert rates[name]["value"] == pytest.approx(value, rel=1e-5), name
    assert (rates["escape_rate"]["count"], rates["escape_rate"]["of"]) == (fn, fn + tp)
    exact = stats.binomtest(fn, fn + tp).proportion_ci(method="exact")
    assert rates["escape_rate"]["low"] == pytest.approx(exact.low, rel=1e-5)
    assert rates["escape_rate"]["high"] == pytest.approx(exact.high, rel=1e-5)
    assert rates["working_point"]["recall"] == rates["recall"]
    missed = {found.images[n] for n in np.flatnonzero(found.faulty & ~ng)}
    assert set(rates["missed"]) == missed
    logits = dict(zip(found.images, found.faulty_logits, strict=True))
    assert [logits[i] for i in rates["missed"]] == sorted(logits[i] for i in rates["missed"])
    assert len(rates["false_alarms"]) == fp


def test_ranking_is_that_of_metrics(found, told):
    expected = metrics.summary(found)
    ranking = told["ranking"]
    assert ranking["auroc"]["value"] == pytest.approx(expected.auroc, rel=1e-5)
    assert ranking["average_precision"]["value"] == pytest.approx(expected.average_precision, 1e-5)
    recall = ranking["recall_at_5_percent"]
    assert recall["value"] == pytest.approx(expected.recall_at_5_percent)
    assert recall["of"] == found.faulty.sum()
    assert recall["count"] == pytest.approx(recall["value"] * recall["of"], rel=1e-5)
    for of_type in expected.types:
        figures = told["types"][of_type.class_id]
        for name in ("auroc", "detection", "recall_at_2_percent", "best_dice"):
            expected_value = getattr(of_type, name)
            assert figures[name]["value"] == pytest.approx(expected_value, rel=1e-5), name
        assert figures["best_pixel_logit"] == of_type.pixel_logit
    low, high = metrics.auroc_interval(found.faulty_logits, found.faulty)
    assert ranking["auroc"]["low"] == pytest.approx(low, abs=0.02)
    assert ranking["auroc"]["high"] == pytest.approx(high, abs=0.02)
    rates, recalls = ranking["roc"].values()
    area = np.trapezoid(recalls, rates)
    assert area == pytest.approx(expected.auroc, rel=1e-4)


def test_masks_are_measured_frame_by_frame(found, told):
    verdicts = apply_decision(found, decision_of())
    pairs, nothing = [], []
    for k, c in enumerate(IDS):
        delivered, segmented = [], []
        for n in range(len(found)):
            as_delivered, as_segmented = dices(found, verdicts, n, k)
            if found.masked_nk[n, k]:
                delivered.append(as_delivered)
                segmented.append(as_segmented)
            if found.masked_nk[n, k] or not found.present_nk[n, k]:
                pairs.append(as_delivered)
                nothing.append(float(not found.inside_nkb[n, k].any()))
        figures = told["types"][c]
        assert figures["dice_delivered"]["value"] == pytest.approx(np.mean(delivered), rel=1e-5)
        assert figures["dice_segmented"]["value"] == pytest.approx(np.mean(segmented), rel=1e-5)
        iou = np.mean([d / (2 - d) for d in segmented])
        assert figures["iou_segmented"]["value"] == pytest.approx(iou, rel=1e-5)
    kaggle = {name: figure["value"] for name, figure in told["kaggle"].items()}
    expected = np.mean(pairs), np.mean(nothing)
    assert kaggle["dice"] == pytest.approx(expected[0], rel=1e-5)
    assert kaggle["predict_nothing"] == pytest.approx(expected[1], rel=1e-5)
    head_room = (expected[0] - expected[1]) / (1 - expected[1])
    assert kaggle["head_room_captured"] == pytest.approx(head_room, rel=1e-4)
    assert kaggle["dice"] == pytest.approx(
        metrics.kaggle_dice(found, [0.75] * 3, [0.0] * 3, clear_below=0.3), rel=1e-5
    )
    means = [told["types"][c]["dice_delivered"]["value"] for c in IDS]
    assert told["mean"]["dice_delivered"]["value"] == pytest.approx(np.mean(means), rel=1e-5)


def test_what_types_are_called(told, found):
    verdicts = apply_decision(found, decision_of())
    table = {row: dict.fromkeys([*IDS, "none"], 0) for row in [*IDS, "clean"]}
    for n in range(len(found)):
        held = [c for k, c in enumerate(IDS) if found.present_nk[n, k]]
        called = [c for k, c in enumerate(IDS) if verdicts.called_nk[n, k]]
        for row in held or ["clean"]:
            counted = [c for c in called if c == row or c not in held]
            for c in counted or ["none"]:
                table[row][c] += 1
    assert told["at_decision"]["type_confusion"] == table


def test_bins_add_up(found, told):
    for k, c in enumerate(IDS):
        figures = told["types"][c]
        regions = int((found.region_types_r == k).sum())
        assert figures["regions"] == figures["regions_found"]["of"] == regions > 5
        for name in ("by_size", "by_position_x", "by_position_y"):
            assert sum(entry["regions"] for entry in figures[name]) == regions
            assert (
                sum(entry["found"]["count"] for entry in figures[name])
                == (figures["regions_found"]["count"])
            )
        assert sum(entry["frames"] for entry in figures["by_brightness"]) == figures["frames"]
    bins = told["calibration"]["faulty"]["bins"]
    assert sum(entry["frames"] for entry in bins) == 200
    gaps = [
        entry["frames"] * abs(entry["mean_probability"] - entry["share_faulty"]["value"]) / 200
        for entry in bins
        if entry["frames"]
    ]
    assert told["calibration"]["faulty"]["ece"]["value"] == pytest.approx(sum(gaps), abs=1e-5)


def test_a_region_is_found_from_a_tenth_of_it_on():
    """Three regions: 100 px with 9 covered, 100 px with 10, and one on a frame not called."""
    counts = np.zeros((3, 50), np.int64)
    counts[:, 0], counts[0, -1], counts[1, -1], counts[2, -1] = (91, 90, 0), 9, 10, 100
    inside = np.zeros((2, 1, 50), np.int64)
    inside[0, 0], inside[1, 0] = counts[0] + counts[1], counts[2]
    found = predictions_of(
        [[1], [1]], class_ids=("a",), masked_nk=[[1], [1]], inside_nkb=inside,
        faulty_logits=[2, 2], head_probabilities_nk=[[0.9], [0.1]], sizes_n2=[[300, 90]] * 2,
        region_frames_r=np.array([0, 0, 1]), region_types_r=np.zeros(3, np.int64),
        region_boxes_r4=np.array([[0, 0, 10, 10], [140, 40, 20, 10], [290, 80, 10, 10]]),
        region_counts_rb=counts,
    )  # fmt: skip
    rules = decision_of(0.5)
    decision = rules.model_copy(update={"types": {"a": rules.types["a"]}})
    figures = evaluate(found, decision, resamples=0).to_json()["types"]["a"]
    assert (figures["regions_found"]["count"], figures["regions_found"]["of"]) == (1, 3)
    for name in ("by_position_x", "by_position_y"):
        assert [entry["found"]["count"] for entry in figures[name]] == [0, 1, 0]
        assert [entry["regions"] for entry in figures[name]] == [1, 1, 1]
    assert figures["missed_frames"] == ["1.jpg"]


def test_unknown_is_neither_missed_nor_found(found):
    logits = found.faulty_logits.copy()
    spoiled = [*np.flatnonzero(found.faulty)[:3], *np.flatnonzero(~found.faulty)[:2]]
    logits[spoiled] = np.nan
    lost = (Unanswered("x.jpg", "truncated", faulty=True), Unanswered("y.jpg", "blank", False))
    told = evaluate(
        replace(found, faulty_logits=logits, unanswered=lost), decision_of(), resamples=20
    ).to_json()
    frames = told["frames"]
    assert (frames["seen"], frames["answered"], frames["unanswered"]) == (202, 195, 7)
    assert frames["unanswered_reasons"] == {"blank": 1, "not-finite": 5, "truncated": 1}
    assert frames["unanswered_faulty"] == 4
    assert frames["faulty"] == found.faulty.sum() + 1
    assert frames["faulty"] + frames["clean"] == 202
    verdicts = told["at_decision"]["verdicts"]
    assert (verdicts["faulty"]["UNKNOWN"], verdicts["clean"]["UNKNOWN"]) == (4, 3)
    assert sum(verdicts["faulty"].values()) == frames["faulty"]
    assert sum(verdicts["clean"].values()) == frames["clean"]
    without = found.take(np.isfinite(logits))
    assert told["ranking"] == evaluate(without, decision_of(), resamples=20).to_json()["ranking"]
    assert any("7 of 202 frames have no answer (4 of them faulty)" in s for s in told["summary"])


def test_groups_widen_the_interval(found):
    """Each frame ten times: ten times as many frames know no more."""
    rows = np.repeat(np.arange(60), 10)
    many = predictions_of(
        found.present_nk[rows],
        groups=rows,
        faulty_logits=found.faulty_logits[rows],
        head_probabilities_nk=found.head_probabilities_nk[rows],
    )
    alone = replace(many, groups=np.arange(600))
    grouped, single = (evaluate(p, decision_of(), resamples=300).to_json() for p in (many, alone))
    for read in (lambda e: e["ranking"]["auroc"], lambda e: e["at_decision"]["recall"]):
        wide, narrow = read(grouped), read(single)
        assert wide["value"] == narrow["value"]
        assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])


def test_masks_without_scores(found):
    told = evaluate(replace(found, scored=False, graded=False), decision_of()).to_json()
    assert told["ranking"] is None
    assert told["calibration"] is None
    for c in IDS:
        for name in ("auroc", "best_dice", "pro", "pixel_average_precision"):
            assert told["types"][c][name]["value"] is None
        assert told["types"][c]["found"]["value"] is not None
    assert told["not_measured"]["ranking"] == "the predictions are masks without scores"
    assert told["not_measured"]["pro of type a"] == "masks are not probabilities"


def test_without_a_decision_nothing_is_called(found):
    told = evaluate(found, resamples=0).to_json()
    assert told["at_decision"] is None
    assert told["not_measured"]["verdicts"] == "no decision file"
    assert told["types"]["a"]["found"]["value"] is None
    assert told["types"]["a"]["dice_segmented"]["value"] is not None
    assert told["kaggle"]["dice"]["value"] is None
    assert told["summary"][0].startswith("No decision file: where 2 % of the clean")


@pytest.mark.parametrize("n", [0, 1, 2])
def test_hardly_any_frames(n):
    for present in (np.zeros((n, 3)), np.ones((n, 3))):
        for decision in (None, decision_of()):
            told = evaluate(predictions_of(present), decision, resamples=30).to_json()
            json.dumps(told, allow_nan=False)
            assert told["frames"]["seen"] == n
            assert told["ranking"] is None
            assert told["not_measured"]["ranking"].startswith("no ")


def test_nothing_answered_at_all():
    lost = (Unanswered("x.jpg", "engine-failed", faulty=True),)
    told = evaluate(replace(predictions_of(np.zeros((0, 3))), unanswered=lost), decision_of())
    assert told.to_json()["frames"]["seen"] == 1
    assert told.summary[:2] == [
        "There is no faulty frame to measure on.",
        "There is no clean frame to measure on.",
    ]


def test_the_same_seed_gives_the_same_bytes(found):
    once, again, other = (
        json.dumps(evaluate(found, decision_of(), resamples=50, seed=seed).to_json())
        for seed in (0, 0, 1)
    )
    assert once == again != other


def test_all_intervals_hold_their_value(told):
    def figures(node):
        if isinstance(node, dict):
            if {"value", "low", "high"} <= node.keys():
                yield node
            for item in node.values():
                yield from figures(item)
        elif isinstance(node, list):
            for item in node:
                yield from figures(item)

    every = list(figures(told))
    assert len(every) > 100
    for figure in every:
        if figure["value"] is not None:
            assert figure["low"] <= figure["value"] <= figure["high"]


def test_sentences_say_the_figures(found):
    told = evaluate(found, decision_of(), resamples=0)
    rate = told.to_json()["at_decision"]["escape_rate"]
    low, high = (module._percent(rate[end]) for end in ("low", "high"))
    assert f"it misses {rate['count']} (" in told.summary[0]
    assert f"{low} to {high} %" in told.summary[0]
    assert math.isclose(rate["value"], rate["count"] / rate["of"], rel_tol=1e-5)
    assert (
        f"predicting nothing at all scores {told.kaggle['predict_nothing'].value:.3f}"
        in (told.summary[-1])
    )


def test_the_worst_type_is_called_by_its_name(found):
    named = replace(found, about={"types": {"a": "Crazing", "b": "Rust", "c": "Scale"}})
    told = evaluate(named, decision_of(), resamples=0)
    assert {told.worst_type["id"]} < {*IDS}
    name = {"a": "Crazing", "b": "Rust", "c": "Scale"}[told.worst_type["id"]]
    assert any(said.startswith(f"{name} is found least often: on ") for said in told.summary)
    lowest = min(of_type["found"].value for of_type in told.types.values())
    assert told.worst_type["found"].value == lowest


def test_names_in_the_curves_stay_few(found):
    many = random_predictions(5, n=2000)
    scores = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    told = evaluate(replace(many, faulty_logits=scores), resamples=0).to_json()["ranking"]
    assert len(told["roc"]["recall"]) <= module.CURVE_POINTS
    assert told["roc"]["recall"][0] == 0
    assert told["roc"]["recall"][-1] == 1
    assert len(told["precision_recall"]["recall"]) <= module.CURVE_POINTS
