"""Figures against scikit-learn, plain loops, and the code that decides in the field."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from steelsight.decisions import Decision, GateRule, InputRule, TypeRule, decide, mask_peaks
from steelsight.evaluation.metrics import (
    auroc,
    auroc_interval,
    average_precision,
    detection,
    dice_by_threshold,
    false_alarm_threshold,
    kaggle_dice,
    mean_dice_interval,
    nearest_edge,
    recall_at_false_alarms,
    summary,
    type_figures,
)
from steelsight.evaluation.predictions import (
    BINS,
    MASK_LOGIT_EDGES,
    MASK_PROBABILITY_EDGES,
    mask_counts,
    sigmoid,
)
from steelsight.masks import decode_rle

# Few different scores: ties everywhere. Both labels occur.
RANKINGS = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({label for _, label in rows}) == 2
)
SHARES = st.sampled_from([0, 0.02, 0.05, 0.1, 0.25, 0.29, 1 / 3, 0.5, 0.7, 1])


def arrays(rows):
    scores, labels = zip(*rows, strict=True)
    return np.array(scores, float), np.array(labels)


# Ranking -----------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(RANKINGS)
def test_auroc_and_precision_are_scikit_learns(rows):
    scores, labels = arrays(rows)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )


def test_many_frames_are_scikit_learns():
    rng = np.random.default_rng(0)
    labels = rng.random(5000) < 0.1
    scores = (rng.normal(size=5000) + labels).astype(np.float32)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )


@settings(max_examples=100, deadline=None)
@given(RANKINGS, SHARES)
def test_the_threshold_is_the_lowest_that_keeps_the_share(rows, share):
    scores, labels = arrays(rows)
    clean = scores[~labels]
    recall, threshold = recall_at_false_alarms(scores, labels, share)

    def keeps(limit):
        return np.count_nonzero(clean >= limit) <= share * len(clean) + 1e-9

    assert keeps(threshold)
    assert recall == np.mean(scores[labels] >= threshold)
    # No lower threshold does: the next lower number, or any of the scores below.
    assert threshold == -math.inf or not keeps(np.nextafter(threshold, -np.inf))
    assert recall == max(
        np.mean(scores[labels] >= limit) for limit in [*scores, np.inf, threshold] if keeps(limit)
    )


@pytest.mark.parametrize(
    ("clean", "share", "alarms"),
    [(49, 0.02, 0), (50, 0.02, 1), (100, 0.29, 29), (100, 0.07, 7), (10, 0.0, 0), (10, 1.0, 10)],
)
def test_small_numbers_and_floating_point_shares(clean, share, alarms):
    threshold = false_alarm_threshold(np.arange(clean), share)
    assert np.count_nonzero(np.arange(clean) >= threshold) == alarms


def test_a_tie_costs_recall_and_no_false_alarm():
    scores = np.array([1, 1, 1, 0, 1, 2])
    labels = np.array([False, False, False, False, True, True])
    assert recall_at_false_alarms(scores, labels, 0.25).recall == 0.5
    assert recall_at_false_alarms(scores, labels, 0.75).recall == 1


# Detection ---------------------------------------------------------------------------------------


def step_curve_mean(positives, clean, up_to, steps=20_000):
    """Mean recall over shares at the middles of many small steps."""
    shares = (np.arange(steps) + 0.5) / steps * up_to
    labels = np.arange(len(positives) + len(clean)) < len(positives)
    scores = np.concatenate([positives, clean])
    allowed = np.floor(shares * len(clean) + 1e-12).astype(int)
    by_count = {
        a: recall_at_false_alarms(scores, labels, min(a / len(clean), 1)).recall
        for a in np.unique(allowed)
    }
    return np.mean([by_count[a] for a in allowed])


@settings(max_examples=40, deadline=None)
@given(RANKINGS, st.sampled_from([0.05, 0.1, 0.3, 1.0]))
def test_detection_is_the_mean_of_the_step_curve(rows, up_to):
    scores, labels = arrays(rows)
    found = detection(scores[labels], scores[~labels], up_to)
    assert found == pytest.approx(step_curve_mean(scores[labels], scores[~labels], up_to), abs=1e-3)
    assert 0 <= found <= 1


@pytest.mark.parametrize("up_to", [0.05, 0.1, 0.37, 1.0])
def test_detection_without_ties_is_scikit_learns_partial_area(up_to):
    rng = np.random.default_rng(1)
    labels = rng.random(300) < 0.3
    scores = rng.normal(size=300) + labels
    found = detection(scores[labels], scores[~labels], up_to)
    if up_to == 1:
        assert found == pytest.approx(auroc(scores, labels), abs=1e-12)
        return
    # scikit-learn standardises (McClish): 0.5 for chance and 1 for perfect. Undone here.
    mc_clish = roc_auc_score(labels, scores, max_fpr=up_to)
    area = (2 * mc_clish - 1) * (up_to - up_to**2 / 2) + up_to**2 / 2
    assert found == pytest.approx(area / up_to, abs=1e-12)


def test_detection_at_its_ends():
    assert detection([2, 3], [0, 1]) == 1
    assert detection([1, 1], [1, 1]) == 0, "constant scores find nothing"
    assert detection([0], [1, 2]) == 0
    # Twenty clean frames: up to 5 % none may alarm, from 5 to 10 % the highest may.
    assert detection([0.5, 25], [*range(20)], 0.1) == pytest.approx(0.5)
    assert detection([18.5, 25], [*range(20)], 0.1) == pytest.approx((0.5 + 1) / 2)


# What cannot be measured -------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[], [True], [False, False]])
def test_one_label_alone_measures_nothing(labels):
    scores = np.arange(len(labels), dtype=float)
    assert auroc(scores, labels) is None
    assert recall_at_false_alarms(scores, labels, 0.1) is None
    assert auroc_interval(scores, labels) is None
    marked = np.array(labels, bool)
    assert detection(scores[marked], scores[~marked]) is None
    if not any(labels):
        assert average_precision(scores, labels) is None


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        auroc([1, 2], [True])


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_broken_score_counts_against_the_network(broken):
    """The same as the worst finite score: lowest of all for a positive, highest for a clean one."""
    rng = np.random.default_rng(2)
    labels = np.arange(60) < 20
    scores = rng.normal(size=60) + labels
    for place, worst in ((3, -99), (30, 99)):
        with_it, replaced = scores.copy(), scores.copy()
        with_it[place], replaced[place] = broken, worst
        assert auroc(with_it, labels) == auroc(replaced, labels)
        assert average_precision(with_it, labels) == average_precision(replaced, labels)
        assert detection(with_it[labels], with_it[~labels]) == detection(
            replaced[labels], replaced[~labels]
        )
        for share in (0, 0.02, 0.1, 0.5):
            one = recall_at_false_alarms(with_it, labels, share)
            assert one.recall == recall_at_false_alarms(replaced, labels, share).recall
        assert auroc_interval(with_it, labels) == auroc_interval(replaced, labels)
    nothing = np.full(60, broken)
    assert auroc(nothing, labels) == 0
    assert detection(nothing[labels], nothing[~labels]) == 0
    assert recall_at_false_alarms(nothing, labels, 0.5).recall == 0
    assert recall_at_false_alarms(nothing, labels, 1).recall == 0


# Masks -------------------------------------------------------------------------------------------


def frames(seed, n=12, k=2, size_hw=(32, 48)):
    """Mask probabilities and labelled masks; some of both are empty."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-2, 3, (n, k, *size_hw)) - 20 * (rng.random((n, k)) < 0.3)[..., None, None]
    probabilities = sigmoid(logits).astype(np.float32)
    true = (rng.random((n, k, *size_hw)) < 0.3) & (rng.random((n, k)) < 0.6)[..., None, None]
    return probabilities, true


def counted(probabilities_nkhw, true_nkhw):
    bits = (true_nkhw << np.arange(true_nkhw.shape[1])[None, :, None, None]).sum(axis=1)
    pairs = zip(probabilities_nkhw, bits.astype(np.uint8), strict=True)
    return map(np.stack, zip(*(mask_counts(p, b) for p, b in pairs), strict=True))


def test_dice_is_scikit_learns_f1_of_the_pixels():
    probabilities, true = frames(0)
    inside, outside = counted(probabilities, true)
    dice = dice_by_threshold(inside, outside)
    assert dice.shape == (12, 2, BINS - 1)
    for n in range(12):
        for k in range(2):
            for edge in range(0, BINS - 1, 4):
                predicted = probabilities[n, k] >= MASK_PROBABILITY_EDGES[edge]
                expected = f1_score(true[n, k].ravel(), predicted.ravel(), zero_division=1.0)
                assert dice[n, k, edge] == pytest.approx(expected, abs=1e-12)
    assert (dice == 1).any(), "a pair where both are empty is among them"


def test_nearest_edge():
    edges = nearest_edge([-99, -2, -1.9, 0.12, 0.125, 99])
    assert MASK_LOGIT_EDGES[edges].tolist() == [-6, -2, -2, 0, 0, 6]


@pytest.mark.parametrize("seed", range(3))
def test_kaggle_dice_is_that_of_what_the_decision_outlines(make, seed):
    probabilities, true = frames(seed)
    n, k = true.shape[:2]
    rng = np.random.default_rng(seed)
    heads = rng.normal(0, 2, (n, 2, 1 + k)).astype(np.float32)
    present = true.any(axis=(2, 3))
    masked = present & (rng.random((n, k)) < 0.8)
    inside, outside = counted(probabilities, true & masked[..., None, None])
    found = make(
        present,
        masked_nk=masked,
        faulty_logits=heads[:, :, 0].mean(axis=1),
        head_probabilities_nk=sigmoid(heads[:, :, 1:]).mean(axis=1),
        peaks_nk=[mask_peaks(frame) for frame in probabilities],
        inside_nkb=inside,
        outside_nkb=outside,
    )
    label_from, logits, areas = [0.4, 0.55], [-1.25, 0.5], [300, 0]
    rules = {
        c: TypeRule(
            label_from=label_from[i],
            pixel_from=float(sigmoid(np.array(logits[i]))),
            min_area_px=areas[i],
        )
        for i, c in enumerate("ab")
    }
    decision = Decision(
        version=1, name="", rule="", chosen_on="", gate=GateRule(clear_below=0.4, ng_from=0.5),
        input=InputRule(min_contrast=0), types=rules,
    )  # fmt: skip
    scores = []
    for frame in range(n):
        per_type = (1 / (1 + np.exp(-heads[frame, :, 1:]))).mean(axis=0)
        judged = decide(
            float(found.faulty_probability[frame]), per_type, probabilities[frame], decision
        )
        for i, c in enumerate("ab"):
            if present[frame, i] and not masked[frame, i]:
                continue
            mask = np.zeros(true.shape[2:], bool)
            for defect in judged.defects:
                if defect.class_id == c:
                    mask |= decode_rle(defect.rle, (mask.shape[1], mask.shape[0])) > 0
            scores.append(f1_score(true[frame, i].ravel(), mask.ravel(), zero_division=1.0))
    measured = kaggle_dice(found, label_from, logits, min_area_px_k=areas, clear_below=0.4)
    assert 0 < measured < 1
    assert measured == pytest.approx(np.mean(scores), abs=1e-12)


def test_kaggle_dice_of_predicting_nothing_is_the_share_of_empty_pairs(make):
    found = make([[1, 0], [0, 0], [0, 0]])
    inside = found.present_nk[..., None] * np.eye(BINS, dtype=np.int64)[10]
    masked = make(found.present_nk, masked_nk=found.present_nk, inside_nkb=inside)
    assert kaggle_dice(masked, [2, 2], [0, 0]) == 5 / 6
    assert kaggle_dice(found, [0, 0], [0, 0]) == 1, "the pair without a known mask is left out"
    assert kaggle_dice(make([[1]]), [0], [0]) is None


# All figures -------------------------------------------------------------------------------------


def test_a_types_negatives_are_the_clean_frames(random_ones):
    found = random_ones(1, 80)
    scores = found.type_scores_nk
    for k, figures in enumerate(type_figures(found)):
        used = found.present_nk[:, k] | ~found.faulty
        labels = found.present_nk[used, k]
        assert figures.frames == labels.sum()
        assert figures.masked_frames == found.masked_nk[:, k].sum()
        assert figures.auroc == pytest.approx(roc_auc_score(labels, scores[used, k]))
        assert figures.detection == detection(scores[used, k][labels], scores[~found.faulty, k])
        at_2 = recall_at_false_alarms(scores[used, k], labels, 0.02)
        assert (figures.recall_at_2_percent, figures.threshold_at_2_percent) == at_2
        at_5 = recall_at_false_alarms(scores[used, k], labels, 0.05)
        assert figures.recall_at_5_percent == at_5.recall
        dice = dice_by_threshold(found.inside_nkb[:, k], found.outside_nkb[:, k])
        by_edge = [np.mean(dice[found.masked_nk[:, k], edge]) for edge in range(BINS - 1)]
        assert figures.best_dice == pytest.approx(max(by_edge))
        assert figures.pixel_logit == MASK_LOGIT_EDGES[int(np.argmax(by_edge))]
        assert figures.dice_at_half == pytest.approx(by_edge[24])


def test_summary_puts_them_together(random_ones):
    found = random_ones(2, 80)
    whole = summary(found)
    assert (whole.frames, whole.faulty_frames) == (80, found.faulty.sum())
    assert whole.clean_frames == 80 - whole.faulty_frames
    assert whole.auroc == pytest.approx(roc_auc_score(found.faulty, found.faulty_logits))
    assert whole.average_precision == pytest.approx(
        average_precision_score(found.faulty, found.faulty_logits)
    )
    by_detection = {t.class_id: t.detection for t in whole.types}
    assert whole.worst_type_detection == min(by_detection.values())
    assert by_detection[whole.worst_type] == whole.worst_type_detection
    assert whole.mean_dice == pytest.approx(np.mean([t.best_dice for t in whole.types]))
    assert whole.mean_dice_at_half == pytest.approx(np.mean([t.dice_at_half for t in whole.types]))
    assert whole.kaggle_dice == kaggle_dice(
        found,
        [t.threshold_at_2_percent for t in whole.types],
        [t.pixel_logit for t in whole.types],
    )
    assert whole.not_measured == {}
    assert whole.auroc_interval is None


def test_a_type_that_nobody_holds_does_not_guard(make):
    found = make([[1, 0], [0, 0]], faulty_logits=[1, 0], peaks_nk=[[1, 0], [0, 0]])
    whole = summary(found)
    assert (whole.worst_type, whole.worst_type_detection) == ("a", 1)
    assert whole.not_measured == {"b": "no frame holds it"}
    empty = whole.types[1]
    assert (empty.frames, empty.auroc, empty.best_dice, empty.pixel_logit) == (0, None, None, None)
    assert whole.mean_dice is None, "there is no mask"


def test_without_clean_frames_nothing_is_detected(random_ones):
    found = random_ones(3, 40, clean=0)
    whole = summary(replace(found, faulty=np.ones(40, bool)))
    assert whole.worst_type_detection is None
    assert whole.auroc is None
    assert whole.average_precision is None
    assert set(whole.not_measured.values()) == {"no clean frame to compare with"}
    assert whole.mean_dice > 0


def test_of_equally_good_pixel_thresholds_the_nearest_to_half_is_taken(make):
    """Where no mask is ever hit, every threshold has Dice 0."""
    nowhere, high = np.eye(BINS, dtype=np.int64)[[0, 49]]
    missed, found = (
        make([[1]], masked_nk=[[1]], inside_nkb=[[nowhere]]),
        make([[1]], masked_nk=[[1]], inside_nkb=[[high]], outside_nkb=[[nowhere]]),
    )
    assert [(t.best_dice, t.pixel_logit) for t in type_figures(missed)] == [(0, 0)]
    assert [(t.best_dice, t.pixel_logit) for t in type_figures(found)] == [(1, 0)]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_summary_never_holds_nan(random_ones, broken):
    found = random_ones(4, 30)
    scores = {
        "faulty_logits": np.full(30, broken, np.float32),
        "head_probabilities_nk": np.full((30, 3), broken, np.float32),
        "peaks_nk": np.full((30, 3), broken, np.float32),
    }
    whole = summary(replace(found, **scores), resamples=50)
    assert whole.auroc == 0
    assert whole.worst_type_detection == 0
    text = json.dumps(whole.to_json(), allow_nan=False)
    assert json.loads(text)["types"]["a"]["threshold_at_2_percent"] is None


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 6), st.integers(1, 3), st.sampled_from([0, 0.5, 1]))
def test_any_few_frames_can_be_summed_up(random_ones, seed, n, k, clean):
    whole = summary(random_ones(seed, n, k, clean), resamples=5)
    json.dumps(whole.to_json(), allow_nan=False)
    measured = {t.class_id for t in whole.types if t.detection is not None}
    assert measured | set(whole.not_measured) == set("abc"[:k])
    assert not measured & set(whole.not_measured)
    assert (whole.worst_type_detection is None) == (not measured)


def test_json_names_every_figure(random_ones):
    whole = summary(random_ones(5, 80), resamples=100)
    values = whole.to_json()
    assert values["worst_type_detection"] == pytest.approx(whole.worst_type_detection, rel=1e-5)
    assert list(values["types"]) == ["a", "b", "c"]
    assert values["types"]["b"]["best_dice"] == pytest.approx(whole.types[1].best_dice, rel=1e-5)
    assert "class_id" not in values["types"]["b"]
    low, high = values["auroc_interval"]
    assert low <= values["auroc"] <= high


# Bootstrap ---------------------------------------------------------------------------------------


def test_auroc_interval_is_that_of_a_loop():
    """The same draws, each measured by scikit-learn."""
    rng = np.random.default_rng(3)
    labels = rng.random(50) < 0.4
    scores = np.round(rng.normal(size=50) + labels, 1)
    positives, negatives = scores[labels], scores[~labels]
    draws = np.random.default_rng(7)
    drawn_p = positives[draws.integers(len(positives), size=(300, len(positives)))]
    drawn_n = negatives[draws.integers(len(negatives), size=(300, len(negatives)))]
    true = np.arange(50) < len(positives)
    figures = [
        roc_auc_score(true, np.concatenate([p, n])) for p, n in zip(drawn_p, drawn_n, strict=True)
    ]
    expected = np.percentile(figures, [2.5, 97.5])
    measured = auroc_interval(scores, labels, resamples=300, seed=7)
    assert measured == pytest.approx(tuple(expected), abs=1e-12)
    assert measured == auroc_interval(scores, labels, resamples=300, seed=7)
    assert measured != auroc_interval(scores, labels, resamples=300, seed=8)


def test_dice_interval_is_that_of_a_loop(random_ones):
    found = random_ones(6, 40)
    logits = [-1, 0, 0.5]
    used = np.flatnonzero(found.masked_nk.any(axis=1))
    dice = dice_by_threshold(found.inside_nkb, found.outside_nkb)
    draws = np.random.default_rng(7).integers(len(used), size=(200, len(used)))
    figures = []
    for draw in draws:
        means = []
        for k in range(3):
            edge = MASK_LOGIT_EDGES.tolist().index(logits[k])
            of_type = [dice[n, k, edge] for n in used[draw] if found.masked_nk[n, k]]
            means += [np.mean(of_type)] if of_type else []
        figures.append(np.mean(means))
    measured = mean_dice_interval(found, logits, resamples=200, seed=7)
    assert measured == pytest.approx(tuple(np.percentile(figures, [2.5, 97.5])), abs=1e-12)
    assert measured == mean_dice_interval(found, logits, resamples=200, seed=7)


def test_a_type_may_be_missing_from_a_draw(make):
    masked = np.eye(3, dtype=bool)[:, :2]
    counts = masked[..., None] * np.eye(BINS, dtype=np.int64)[40]
    found = make(masked, masked_nk=masked, inside_nkb=counts)
    assert mean_dice_interval(found, [0, 0], resamples=500) == (1, 1)
    assert mean_dice_interval(make([[1]]), [0]) is None


def test_intervals_hold_memory_down(monkeypatch):
    rng = np.random.default_rng(4)
    scores, labels = rng.normal(size=400), rng.random(400) < 0.5
    in_one = auroc_interval(scores, labels, resamples=300, seed=1)
    monkeypatch.setattr("steelsight.evaluation.metrics._BLOCK_BYTES", 8 * 400 * 7)
    in_many = auroc_interval(scores, labels, resamples=300, seed=1)
    assert in_many == pytest.approx(in_one, abs=0.02)


def test_intervals_cover(make):
    """The true AUROC of two shifted normal distributions lies in about 95 % of the intervals."""
    rng = np.random.default_rng(5)
    true = 0.5 * (1 + math.erf(1 / 2))  # P(x + 1 > y): the difference has a variance of 2
    covered = 0
    for _ in range(200):
        labels = np.arange(120) < 60
        low, high = auroc_interval(rng.normal(size=120) + labels, labels, resamples=400)
        covered += low <= true <= high
    assert 178 <= covered <= 200
