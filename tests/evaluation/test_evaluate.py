"""The whole evaluation against loops over frames, and what it says of what it cannot measure."""

import json
import math
import tomllib
from dataclasses import fields, replace
from functools import reduce
from operator import getitem

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, precision_score
from tests.predicted import predictions_of, random_predictions

from steelsight.decisions import Decision
from steelsight.evaluation import evaluate as module
from steelsight.evaluation import metrics
from steelsight.evaluation.evaluate import evaluate
from steelsight.evaluation.intervals import bootstrap_groups
from steelsight.evaluation.predictions import BINS, MASK_LOGIT_EDGES, Unanswered
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
    highest = np.maximum(found.faulty_probability, found.type_scores_nk.max(axis=1))
    scores = dict(zip(found.images, highest, strict=True))
    alarms = [scores[i] for i in rates["false_alarms"]]
    assert alarms == sorted(alarms, reverse=True)
    for k, c in enumerate(IDS):
        scores = dict(zip(found.images, found.type_scores_nk[:, k], strict=True))
        least_first = [scores[i] for i in told["types"][c]["missed_frames"]]
        assert least_first == sorted(least_first)
        assert len(least_first) > 3


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
        region_boxes_r4=np.array([[0, 0, 10, 10], [90, 25, 30, 20], [290, 80, 10, 10]]),
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


# Intervals ---------------------------------------------------------------------------------------


def drawn(found, weights):
    """The frames of one draw, each as often as it was drawn."""
    rows = np.repeat(np.arange(len(found)), weights)
    regions = [np.flatnonzero(found.region_frames_r == n) for n in rows]
    of_regions = np.concatenate([np.zeros(0, np.int64), *regions]).astype(np.int64)
    arrays = {
        f.name: getattr(found, f.name)[of_regions if f.name.startswith("region_") else rows]
        for f in fields(found)
        if isinstance(getattr(found, f.name), np.ndarray)
    }
    arrays["region_frames_r"] = np.repeat(np.arange(len(rows)), [len(r) for r in regions])
    arrays["groups"] = np.arange(len(rows))
    return replace(found, images=tuple(f"{i}.jpg" for i in range(len(rows))), **arrays)


def test_intervals_are_those_of_a_loop_over_draws_of_groups():
    """Every figure of every draw measured anew on repeated frames."""
    found = replace(random_predictions(8, n=60), groups=np.arange(60) // 3)
    told = evaluate(found, decision_of(), resamples=40, seed=5).to_json()
    weights = np.concatenate(list(bootstrap_groups(found.groups, 40, seed=5)))
    draws = [evaluate(drawn(found, row), decision_of(), resamples=0).to_json() for row in weights]
    places = [
        ("ranking", "auroc"), ("ranking", "average_precision"), ("at_decision", "f1"),
        ("kaggle", "dice"), ("kaggle", "head_room_captured"), ("mean", "dice_segmented"),
        ("calibration", "faulty", "ece"), ("types", "a", "detection"),
        ("types", "b", "dice_delivered"), ("types", "b", "iou_segmented"), ("types", "b", "pro"),
        ("types", "c", "pixel_average_precision"),
    ]  # fmt: skip
    for place in places:
        figure = reduce(getitem, place, told)
        values = [reduce(getitem, place, draw)["value"] for draw in draws]
        low, high = np.percentile([v for v in values if v is not None], (2.5, 97.5))
        expected = min(low, figure["value"]), max(high, figure["value"])
        assert (figure["low"], figure["high"]) == pytest.approx(expected, abs=2e-5), place
        assert figure["low"] < figure["high"]
    for place in [("at_decision", "recall"), ("types", "a", "regions_found"),
                  ("ranking", "recall_at_5_percent")]:  # fmt: skip
        figure = reduce(getitem, place, told)
        values = [reduce(getitem, place, draw)["value"] for draw in draws]
        low, high = np.percentile(values, (2.5, 97.5))
        exact = stats.binomtest(figure["count"], figure["of"]).proportion_ci(method="exact")
        expected = min(low, exact.low), max(high, exact.high)
        assert (figure["low"], figure["high"]) == pytest.approx(expected, abs=2e-5), place


def test_what_cannot_vary_has_no_interval(found):
    """An interval of no width would say that one coil, or one frame, tells everything."""
    one_group = evaluate(replace(found, groups=np.zeros(200, np.int64)), decision_of(), resamples=9)
    told = one_group.to_json()
    for figure in (told["ranking"]["auroc"], told["kaggle"]["dice"], told["types"]["a"]["pro"]):
        assert figure["value"] is not None
        assert (figure["low"], figure["high"]) == (None, None)
    assert "one group" in told["not_measured"]["intervals"]
    assert told["at_decision"]["recall"]["low"] is not None
    assert any(said.startswith("Kaggle's Dice is 0.") for said in told["summary"])


def test_a_single_positive_has_no_interval_from_the_negatives_alone(found):
    others = np.flatnonzero(found.present_nk[:, 0] & found.masked_nk[:, 0])[1:]
    chosen = ~found.present_nk[:, 0]
    chosen[np.flatnonzero(found.masked_nk[:, 0])[0]] = True
    figures = evaluate(found.take(chosen), decision_of(), resamples=50).to_json()["types"]["a"]
    assert len(others) > 5
    assert (figures["frames"], figures["masked_frames"]) == (1, 1)
    for name in ("auroc", "average_precision", "detection", "pro", "pixel_average_precision"):
        assert figures[name]["value"] is not None, name
        assert figures[name]["low"] is None, name
    count = figures["recall_at_5_percent"]["count"]
    exact = stats.binomtest(count, 1).proportion_ci(method="exact")
    assert figures["recall_at_5_percent"]["low"] == pytest.approx(exact.low)


# Masks and regions, against loops ----------------------------------------------------------------


def test_pixel_figures_leave_out_frames_whose_mask_is_missing():
    """Against scikit-learn and a loop over thresholds on pixels that are written out."""
    rng = np.random.default_rng(4)
    n, size = 14, 400
    present, masked = np.arange(n) < 9, np.arange(n) < 6
    bins = np.minimum(rng.poisson(12, (n, size)), BINS - 1)
    labels = np.zeros((n, size), np.int64)  # number of the region, from 1 on
    for frame in range(6):
        labels[frame, 10:60], labels[frame, 200 : 200 + 5 * frame] = 1, 2
    bins += np.where(labels > 0, 9, 0)

    def counts(chosen):
        return np.bincount(bins.ravel()[chosen.ravel()], minlength=BINS)

    rows = np.arange(n)[:, None] == np.arange(n)
    spots = [(f, r) for f in range(6) for r in (1, 2) if (labels[f] == r).any()]
    found = predictions_of(
        present[:, None], class_ids=("a",), masked_nk=masked[:, None],
        inside_nkb=[[counts((labels > 0) & row[:, None])] for row in rows],
        outside_nkb=[[counts((labels == 0) & row[:, None])] for row in rows],
        region_frames_r=np.array([f for f, _ in spots]),
        region_types_r=np.zeros(len(spots), np.int64),
        region_boxes_r4=np.ones((len(spots), 4), np.int64),
        region_counts_rb=np.array([counts((labels == r) & rows[f][:, None]) for f, r in spots]),
    )  # fmt: skip
    figures = evaluate(found, resamples=0).to_json()["types"]["a"]
    known = masked | ~present
    expected = average_precision_score((labels[known] > 0).ravel(), bins[known].ravel())
    assert figures["pixel_average_precision"]["value"] == pytest.approx(expected, rel=1e-5)
    curve = [(0.0, 0.0)]
    for threshold in range(BINS - 1, -1, -1):
        overlaps = [(bins[f][labels[f] == r] >= threshold).mean() for f, r in spots]
        alarms = (bins[known][labels[known] == 0] >= threshold).mean()
        curve.append((alarms, np.mean(overlaps)))
    x = np.linspace(0, 0.3, 200_001)
    y = np.interp(x, *zip(*curve, strict=True))
    assert figures["pro"]["value"] == pytest.approx(np.trapezoid(y, x) / 0.3, abs=1e-4)
    assert figures["regions"] == len(spots) == 11


def test_sizes_and_brightness_are_those_of_a_loop():
    """Regions at the edges of the bins; every second one is covered."""
    areas = [1, 499, 500, 1999, 2000, 9999, 10_000, 49_999, 50_000, 400_000]
    n = len(areas)
    inside = np.zeros((n, 1, BINS), np.int64)
    for frame, area in enumerate(areas):
        inside[frame, 0, -1 if frame % 2 else 0] = area
    levels = np.array([10, 20, 30, 30, 30, 50, 60, 60, 60, 90])  # two are ends of quartiles
    found = predictions_of(
        np.ones((n, 1)), class_ids=("a",), masked_nk=np.ones((n, 1)), inside_nkb=inside,
        faulty_logits=np.full(n, 3), brightness_n=levels,
        head_probabilities_nk=np.where(np.arange(n) < 6, 0.9, 0.1)[:, None],
    )  # fmt: skip
    rules = decision_of(0.5)
    decision = rules.model_copy(update={"types": {"a": rules.types["a"]}})
    figures = evaluate(found, decision, resamples=0).to_json()["types"]["a"]
    delivered = [frame < 6 and frame % 2 == 1 for frame in range(n)]
    bins = [
        (e["from_px"], e["to_px"], e["regions"], e["found"]["count"]) for e in figures["by_size"]
    ]
    assert bins == [
        (low, high, 2, sum(d for a, d in zip(areas, delivered, strict=True) if a in inner))
        for low, high, inner in (
            (0, 500, (1, 499)), (500, 2000, (500, 1999)), (2000, 10_000, (2000, 9999)),
            (10_000, 50_000, (10_000, 49_999)), (50_000, None, (50_000, 400_000)),
        )
    ]  # fmt: skip
    ends = np.quantile(levels, [0, 0.25, 0.5, 0.75, 1])
    for i, entry in enumerate(figures["by_brightness"]):
        members = [
            frame for frame, level in enumerate(levels)
            if ends[i] <= level and (level < ends[i + 1] or i == 3)
        ]  # fmt: skip
        assert (entry["from"], entry["to"]) == (ends[i], ends[i + 1])
        assert entry["frames"] == len(members)
        assert entry["found"]["count"] == sum(delivered[frame] for frame in members)


def test_masks_are_cut_at_the_pixel_thresholds_of_the_decision(found):
    rules = decision_of()
    strict = {c: rule.model_copy(update={"pixel_from": 0.8}) for c, rule in rules.types.items()}
    decision = rules.model_copy(update={"types": strict})
    figures = evaluate(found, decision, resamples=0).to_json()["types"]["b"]
    verdicts = apply_decision(found, decision)
    edge = int(np.abs(MASK_LOGIT_EDGES - np.log(4)).argmin())
    segmented, delivered = [], []
    for n in np.flatnonzero(found.masked_nk[:, 1]):
        inside, outside = found.inside_nkb[n, 1], found.outside_nkb[n, 1]
        true, false = inside[edge + 1 :].sum(), outside[edge + 1 :].sum()
        segmented.append(true / (inside.sum() + false))
        delivered.append(segmented[-1] * verdicts.called_nk[n, 1])
    assert figures["iou_segmented"]["value"] == pytest.approx(np.mean(segmented), rel=1e-5)
    assert figures["iou_delivered"]["value"] == pytest.approx(np.mean(delivered), rel=1e-5)
    assert figures["dice_segmented"]["value"] != pytest.approx(
        evaluate(found, rules, resamples=0).types["b"]["dice_segmented"].value, rel=1e-3
    )


# Verdicts from elsewhere -------------------------------------------------------------------------


def test_frames_that_verdicts_do_not_answer_are_unknown_and_not_ok(found):
    given = apply_decision(found, decision_of())
    judged = np.arange(200) >= 80
    some = replace(
        given,
        answered_n=given.answered_n & judged,
        ng_n=given.ng_n & judged,
        called_nk=given.called_nk & judged[:, None],
    )
    told = evaluate(found, decision_of(), verdicts=some, resamples=0).to_json()
    assert told["frames"]["unanswered_reasons"] == {"no-verdict": 80}
    assert told["at_decision"]["verdicts"]["faulty"] == {
        "NG": int((given.ng_n & judged & found.faulty).sum()),
        "OK": int((~given.ng_n & judged & found.faulty).sum()),
        "UNKNOWN": int((~judged & found.faulty).sum()),
    }
    expected = evaluate(found.take(judged), decision_of(), resamples=0).to_json()
    for name in ("escape_rate", "overkill_rate", "missed", "false_alarms"):
        assert told["at_decision"][name] == expected["at_decision"][name]


def test_delivered_masks_are_those_of_the_verdicts(found):
    """Nested thresholds differ from fold to fold: no single decision has these masks."""
    rules = decision_of()
    strict = {c: rule.model_copy(update={"pixel_from": 0.9}) for c, rule in rules.types.items()}
    given = apply_decision(found, rules.model_copy(update={"types": strict}))
    told = evaluate(found, None, verdicts=given, resamples=0)
    assert told.at_decision["decision"] is None
    for k, c in enumerate(IDS):
        masked = found.masked_nk[:, k]
        true, area = (
            px[:, k] * given.called_nk[:, k] for px in (given.true_px_nk, given.area_px_nk)
        )
        dice = 2 * true / np.maximum(area + found.inside_nkb[:, k].sum(axis=1), 1)
        expected = dice[masked].mean()
        assert told.types[c]["dice_delivered"].value == pytest.approx(expected)


# What is missing ---------------------------------------------------------------------------------


def missing(told):
    """Names under which the reason may stand, of each headline figure that has no value."""
    rates = told["at_decision"] or {}
    names = ("escape_rate", "overkill_rate", "accuracy", "precision", "recall", "f1")
    absent = {"value": None}
    figures = {(name, "verdicts"): rates.get(name, absent) for name in names}
    figures |= {(f"Kaggle's {name}",): figure for name, figure in told["kaggle"].items()}
    figures |= {(f"mean of {name}",): figure for name, figure in told["mean"].items()}
    for c, of_type in told["types"].items():
        for name, figure in of_type.items():
            if isinstance(figure, dict):
                figures[f"type {c}", f"{name} of type {c}", *shared_reasons(name, c)] = figure
    return [names for names, figure in figures.items() if figure["value"] is None]


def shared_reasons(name, c):
    """Of figures of a type that are missing together."""
    if name in ("auroc", "average_precision", "detection") or name.startswith("recall"):
        return [f"ranking of type {c}"]
    undecided = "found, regions_found and delivered masks of types"
    return [undecided] if name == "found" else [undecided, f"masks of type {c}"]


@pytest.mark.parametrize("decided", [True, False])
@pytest.mark.parametrize("kind", ["whole", "bare", "clean", "faulty", "no masks", "one type"])
def test_whatever_is_missing_has_its_reason(found, kind, decided):
    given = {
        "whole": found,
        "bare": replace(found, scored=False, graded=False),
        "clean": found.take(~found.faulty),
        "faulty": found.take(found.faulty),
        "no masks": predictions_of(found.present_nk),
        "one type": found.take(found.present_nk[:, 0] & ~found.present_nk[:, 1:].any(axis=1)),
    }[kind]
    evaluation = evaluate(given, decision_of() if decided else None, resamples=5)
    told = evaluation.to_json()
    why = told["not_measured"]
    reasons = {names: [why[name] for name in names if name in why] for names in missing(told)}
    assert all(reasons.values()), reasons
    assert 1 <= len(evaluation.summary) <= 6
    said_missing = {n for n in why if n.startswith(("Kaggle's ", "mean of "))}
    assert said_missing <= {names[0] for names in reasons}, "one that has a value is called missing"
    if kind == "whole":
        assert bool(reasons) != decided
        assert all(said == ["no decision file"] for said in reasons.values())
    assert set(told["types"]["a"]) >= {"by_size", "by_position_x", "by_position_y", "by_brightness"}


def test_reasons_are_the_true_ones(found):
    bare = evaluate(replace(found, graded=False), decision_of(), resamples=0).not_measured
    assert bare["mean of best_dice"] == "masks are not probabilities"
    clean = evaluate(found.take(~found.faulty), decision_of(), resamples=0).not_measured
    assert clean["escape_rate"] == clean["recall"] == "no faulty frame"
    assert clean["Kaggle's head_room_captured"].endswith("predicting nothing is perfect")
    assert clean["type a"] == "no frame holds it"
    never = evaluate(found, decision_of(1.0, 0.9999), resamples=0).not_measured
    assert never["precision"] == "no frame is called NG"
