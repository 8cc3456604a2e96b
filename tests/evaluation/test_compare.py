"""Comparisons against scipy, against a bootstrap in a plain loop, and on draws with known truth."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest
from tests.predicted import predictions_of, random_predictions

from steelsight.decisions import Decision
from steelsight.defects import Verdict
from steelsight.errors import InputError
from steelsight.evaluation.compare import (
    Outcome,
    compare,
    mcnemar,
    summary_sentences,
)
from steelsight.evaluation.intervals import bootstrap_groups
from steelsight.evaluation.metrics import (
    auroc,
    average_precision,
    kaggle_dice,
    recall_at_false_alarms,
)
from steelsight.evaluation.pairing import Side, load_side
from steelsight.evaluation.predictions import Predictions, Unanswered
from steelsight.evaluation.verdicts import apply_decision

TOML = """version = 1
name = "test"
rule = "none"
chosen_on = "nothing"
[gate]
clear_below = {clear}
ng_from = 0.7
[input]
min_contrast = 2.0
"""


def toml_of(class_ids, clear=0.3):
    rules = "".join(
        f"[types.{c}]\nlabel_from = 0.5\npixel_from = 0.5\nmin_area_px = 100\n" for c in class_ids
    )
    return TOML.format(clear=clear) + rules


def decision_of(class_ids, *, clear=0.3, label_from=0.5, min_area_px=100):
    rule = {"label_from": label_from, "pixel_from": 0.5, "min_area_px": min_area_px}
    return Decision(
        version=1,
        name="test",
        rule="none",
        chosen_on="nothing",
        gate={"clear_below": clear, "ng_from": 0.7},
        input={"min_contrast": 2.0},
        types=dict.fromkeys(class_ids, rule),
    )


def side(predictions, name="x", **settings):
    return Side(name, predictions, decision_of(predictions.class_ids, **settings))


def changed(predictions, seed, spread=0.6, lift=0.0, masks=True):
    """The same frames and labels, other scores and masks."""
    rng = np.random.default_rng(seed)
    n, k = predictions.present_nk.shape
    logits = predictions.faulty_logits + rng.normal(size=n) * spread + lift * predictions.faulty
    scores = predictions.head_probabilities_nk + rng.normal(size=(n, k)) * spread / 4
    values = {
        "faulty_logits": logits.astype(np.float32),
        "head_probabilities_nk": np.clip(scores, 0.01, 0.99).astype(np.float32),
    }
    if masks:
        values["outside_nkb"] = rng.integers(20, size=predictions.outside_nkb.shape)
    return replace(predictions, **values)


def grouped(seed, n=60, groups=25):
    rng = np.random.default_rng(seed + 1000)
    return replace(random_predictions(seed, n=n), groups=rng.integers(groups, size=n))


def reordered(predictions, frames, types):
    """The same predictions in another order of frames and types."""
    arrays = {}
    for name in Predictions.__dataclass_fields__:
        value = getattr(predictions, name)
        if name.endswith(("_nk", "_nkb")):
            arrays[name] = value[frames][:, types]
        elif isinstance(value, np.ndarray) and not name.startswith("region_"):
            arrays[name] = value[frames]
    place = np.argsort(frames)[predictions.region_frames_r]
    order = np.argsort(place, kind="stable")
    return replace(
        predictions,
        images=tuple(predictions.images[n] for n in frames),
        class_ids=tuple(predictions.class_ids[k] for k in types),
        region_frames_r=place[order],
        region_types_r=np.argsort(types)[predictions.region_types_r][order],
        region_boxes_r4=predictions.region_boxes_r4[order],
        region_counts_rb=predictions.region_counts_rb[order],
        **arrays,
    )


# McNemar -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only_a", "only_b"), [(0, 0), (0, 5), (0, 6), (3, 9), (9, 3), (7, 7), (40, 61), (1, 0)]
)
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    right_a = np.repeat([True, False, True, False], [only_a, only_b, 30, 4])
    right_b = np.repeat([False, True, True, False], [only_a, only_b, 30, 4])
    test = mcnemar(right_a, right_b, np.arange(len(right_a)))
    expected = binomtest(only_b, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert test.p_value == pytest.approx(expected, rel=1e-9)
    assert (test.both_right, test.only_a, test.only_b, test.neither) == (30, only_a, only_b, 4)
    assert test.frames == len(right_a)
    if not (only_a or only_b):
        assert test.outcome is Outcome.NO_DIFFERENCE
    elif expected < 0.05:
        assert test.outcome is (Outcome.BETTER if only_b > only_a else Outcome.WORSE)
    else:
        assert test.outcome is Outcome.CANNOT_TELL


def test_a_group_counts_once_for_the_side_that_it_favours():
    rng = np.random.default_rng(0)
    right_a, right_b = rng.random(300) < 0.8, rng.random(300) < 0.7
    groups = rng.integers(40, size=300) * 7
    for_a = for_b = 0
    for group in set(groups.tolist()):
        inside = groups == group
        net = int(right_b[inside].sum()) - int(right_a[inside].sum())
        for_a, for_b = for_a + (net < 0), for_b + (net > 0)
    test = mcnemar(right_a, right_b, groups)
    assert (test.groups_a, test.groups_b) == (for_a, for_b)
    assert test.p_value == pytest.approx(binomtest(for_b, for_a + for_b).pvalue)
    # Ten copies of one frame are one witness, not ten.
    lone = mcnemar(np.zeros(10, bool), np.ones(10, bool), np.zeros(10, int))
    assert lone.p_value == 1
    assert lone.outcome is Outcome.CANNOT_TELL


def test_as_many_frames_as_are_said_to_be_needed_show_the_difference():
    right_a = np.repeat([True, False, True], [4, 9, 187])
    right_b = np.repeat([False, True, True], [4, 9, 187])
    few = mcnemar(right_a, right_b, np.arange(200))
    assert few.outcome is Outcome.CANNOT_TELL
    rng = np.random.default_rng(3)
    shown = 0
    for _ in range(400):
        drawn = rng.integers(200, size=few.frames_needed)
        test = mcnemar(right_a[drawn], right_b[drawn], np.arange(len(drawn)))
        shown += test.outcome is Outcome.BETTER
    assert 0.7 < shown / 400 < 0.9  # 80 % but for rounding and the exact test's caution


# Figures -----------------------------------------------------------------------------------------


def expected_figures(predictions, decision, rows):
    """Each figure on these rows (which may repeat) by the functions of metrics and by loops."""
    verdicts = apply_decision(predictions, decision)
    logits, faulty = predictions.faulty_logits[rows], predictions.faulty[rows]
    low = recall_at_false_alarms(logits, faulty, 0.02)
    high = recall_at_false_alarms(logits, faulty, 0.05)
    found = {
        "auroc": auroc(logits, faulty),
        "average_precision": average_precision(logits, faulty),
        "recall_at_2_percent": low.recall,
        "recall_at_5_percent": high.recall,
        "escape_rate": verdicts.ok_n[rows][faulty].mean(),
        "overkill_rate": verdicts.ng_n[rows][~faulty].mean(),
    }
    everything = []
    for name, delivers in (("dice_segmented", False), ("dice_delivered", True)):
        means = []
        for k, class_id in enumerate(predictions.class_ids):
            dice = []
            for n in rows:
                called = verdicts.called_nk[n, k] or not delivers
                label = predictions.inside_nkb[n, k].sum()
                drawn = verdicts.area_px_nk[n, k] * called
                value = 1.0
                if label + drawn:
                    value = 2 * verdicts.true_px_nk[n, k] * called / (label + drawn)
                if predictions.masked_nk[n, k]:
                    dice.append(value)
                if delivers and (predictions.masked_nk[n, k] or not predictions.present_nk[n, k]):
                    everything.append(value)
            if dice:
                found[f"{class_id}/{name}"] = np.mean(dice)
                means.append(np.mean(dice))
        found[name] = np.mean(means)
    found["kaggle_dice"] = np.mean(everything)
    return found


@pytest.mark.parametrize(("seed", "rare"), [(0, False), (1, True)])
def test_figures_and_intervals_are_those_of_a_bootstrap_in_a_plain_loop(seed, rare):
    first = grouped(seed)
    if rare:  # a type on one frame alone is missing from a third of the draws
        masked = first.masked_nk[:, 2]
        first = first.take(~first.present_nk[:, 2] | (masked & (masked.cumsum() == 1)))
    second = changed(first, seed)
    a, b = side(first), side(second, label_from=0.55, clear=0.2)
    comparison = compare(a, b, resamples=40, seed=5)
    rows = np.arange(len(first))
    told = {
        which: expected_figures(s.predictions, s.decision, rows)
        for which, s in (("a", a), ("b", b))
    }
    assert comparison.differences.keys() == told["a"].keys()
    differences = {name: [] for name in told["a"]}
    for weights in np.concatenate(list(bootstrap_groups(first.groups, 40, 5))):
        drawn = np.repeat(rows, weights)
        on_a = expected_figures(first, a.decision, drawn)
        on_b = expected_figures(second, b.decision, drawn)
        for name in on_a:
            differences[name].append(on_b[name] - on_a[name])
    for name, figure in comparison.differences.items():
        assert figure.a == pytest.approx(told["a"][name]), name
        assert figure.b == pytest.approx(told["b"][name]), name
        low, high = np.percentile(differences[name], (2.5, 97.5))
        assert (figure.low, figure.high) == pytest.approx((low, high), abs=1e-12), name


def test_kaggle_dice_is_that_of_metrics():
    predictions = random_predictions(4, n=80)
    decision = decision_of(predictions.class_ids, min_area_px=3000)
    # Clear nothing that metrics would not clear: the same gate.
    expected = kaggle_dice(
        predictions, [0.5] * 3, [0.0] * 3, min_area_px_k=[3000] * 3, clear_below=0.3
    )
    same = Side("x", predictions, decision)
    assert compare(same, same, resamples=1).figures["kaggle_dice"].a == pytest.approx(expected)


def test_a_thing_compared_with_itself_has_no_difference():
    predictions = grouped(2)
    comparison = compare(side(predictions), side(predictions), resamples=50)
    assert len(comparison.differences) == 9 + 2 * 3
    for figure in comparison.differences.values():
        assert (figure.difference, figure.low, figure.high) == (0, 0, 0)
        assert figure.outcome is Outcome.NO_DIFFERENCE
        assert figure.frames_needed is None
    assert {t.outcome for t in comparison.mcnemar.values()} == {Outcome.NO_DIFFERENCE}
    assert comparison.flips == ()
    assert "No difference" in summary_sentences(comparison)[0]


def test_a_truly_better_side_is_found_and_turned_around_it_is_worse():
    first = random_predictions(3, n=500)
    first = replace(first, head_probabilities_nk=first.head_probabilities_nk / 4)
    logits = first.faulty_logits - 1
    first = replace(first, faulty_logits=logits)
    second = replace(first, faulty_logits=(logits + 2.5 * first.faulty - 0.5).astype(np.float32))
    there = compare(side(first), side(second), resamples=300)
    back = compare(side(second), side(first), resamples=300)
    for name in ("auroc", "average_precision", "recall_at_2_percent", "escape_rate"):
        assert there.figures[name].outcome is Outcome.BETTER, name
        assert back.figures[name].outcome is Outcome.WORSE, name
        assert there.figures[name].difference == -back.figures[name].difference
        assert there.figures[name].low == pytest.approx(-back.figures[name].high)
    assert there.mcnemar["all"].outcome is Outcome.BETTER
    assert back.mcnemar["all"].outcome is Outcome.WORSE
    assert summary_sentences(there)[0].startswith("B is better")
    assert summary_sentences(back)[0].startswith("B is worse")
    assert {flip.right for flip in there.flips if flip.faulty} == {"B"}


def test_of_equal_ones_few_are_told_apart():
    """Both see the same thing with noise of their own: 5 % may differ, and no more."""
    told_apart = {"auroc": 0, "average_precision": 0, "verdicts": 0, "escape_rate": 0}
    repeats = 100
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        faulty = rng.random(160) < 0.4
        base = rng.normal(size=160) + 2 * faulty - 1
        sides = [
            side(
                predictions_of(
                    faulty[:, None],
                    faulty_logits=base + rng.normal(size=160),
                    head_probabilities_nk=np.full((160, 1), 0.1),
                )
            )
            for _ in range(2)
        ]
        comparison = compare(*sides, resamples=150, seed=repeat)
        decided = (Outcome.BETTER, Outcome.WORSE)
        for name in ("auroc", "average_precision", "escape_rate"):
            told_apart[name] += comparison.figures[name].outcome in decided
        told_apart["verdicts"] += comparison.mcnemar["all"].outcome in decided
    limit = 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5  # Monte Carlo error
    assert told_apart["verdicts"] / repeats < 0.05 + 0.02  # exact tests are cautious
    assert told_apart["escape_rate"] / repeats < 0.05 + 0.02
    assert told_apart["auroc"] / repeats < limit
    assert told_apart["average_precision"] / repeats < limit
    assert told_apart["auroc"] > 0


def test_a_rate_differs_only_where_the_exact_test_agrees():
    """Four frames that flip one way: the bootstrap is sure, the exact test (p = 0.125) is not."""
    faulty = np.arange(100) < 40
    logits = np.where(faulty, 3.0, -3.0)
    worse = np.where(np.arange(100) < 4, -3.0, logits)
    values = {"head_probabilities_nk": np.full((100, 1), 0.1)}
    first = predictions_of(faulty[:, None], faulty_logits=worse, **values)
    second = predictions_of(faulty[:, None], faulty_logits=logits, **values)
    figure = compare(side(first), side(second), resamples=2000).figures["escape_rate"]
    assert figure.high < 0
    assert figure.outcome is Outcome.CANNOT_TELL
    assert figure.frames_needed > 40


# Pairing -----------------------------------------------------------------------------------------


def test_frames_are_paired_by_name_and_types_by_id():
    first = grouped(6)
    second = changed(first, 6)
    rng = np.random.default_rng(0)
    shuffled = reordered(second, rng.permutation(60), np.array([2, 0, 1]))
    straight = compare(side(first), side(second), resamples=30).to_json()
    mixed = compare(side(first), side(shuffled), resamples=30).to_json()
    assert straight == mixed


def test_frames_of_one_side_and_without_an_answer_are_counted_and_left_out():
    first = random_predictions(7, n=80)
    second = changed(first, 7)
    keep = np.ones(80, bool)
    keep[:5] = False  # not in B
    lost = Unanswered("5.jpg", "truncated", bool(first.faulty[5]))
    alone = Unanswered("new.jpg", "truncated", faulty=True)
    keep[5] = False
    logits = second.faulty_logits.copy()
    logits[6] = np.nan
    second = replace(second, faulty_logits=logits)
    second = replace(second.take(keep), unanswered=(lost, alone))
    comparison = compare(side(first), side(second), resamples=10)
    assert comparison.frames["compared"] == 80 - 5 - 1 - 1
    assert comparison.frames["only_a"] == 5
    assert comparison.frames["only_b"] == 1
    assert comparison.frames["unanswered_b"] == 2
    assert comparison.frames["unanswered_a"] == 0
    text = " ".join(summary_sentences(comparison))
    assert "B has no answer on 2 frames" in text
    assert "5 frames of A are not in B" in text
    rest = np.arange(80) > 6
    assert comparison.figures["auroc"].a == pytest.approx(
        auroc(first.faulty_logits[rest], first.faulty[rest])
    )


def test_groups_of_both_sides_are_merged():
    first = random_predictions(8, n=60)
    a = replace(first, groups=np.arange(60) // 2)
    b = replace(first, groups=(np.arange(60) + 1) // 2)  # together one chain
    assert compare(side(a), side(b), resamples=5).frames["groups"] == 1
    assert compare(side(a), side(first), resamples=5).frames["groups"] == 30


def moved_region(predictions):
    boxes = predictions.region_boxes_r4.copy()
    boxes[0, 0] += 1
    return replace(predictions, region_boxes_r4=boxes)


def fewer_pixels(predictions):
    n, k = predictions.region_frames_r[0], predictions.region_types_r[0]
    inside, counts = predictions.inside_nkb.copy(), predictions.region_counts_rb.copy()
    bin_ = int(np.flatnonzero(inside[n, k])[0])
    inside[n, k, bin_] -= 1
    counts[0, bin_] -= 1
    return replace(predictions, inside_nkb=inside, region_counts_rb=counts)


def other_verdict(predictions):
    faulty = predictions.faulty.copy()
    faulty[np.flatnonzero(~faulty)[0]] = True
    return replace(predictions, faulty=faulty)


@pytest.mark.parametrize("change", [moved_region, fewer_pixels, other_verdict])
def test_labels_that_differ_are_refused(change):
    predictions = random_predictions(9)
    with pytest.raises(InputError, match=r"image '?\d+\.jpg'?: the labels differ"):
        compare(side(predictions), side(change(predictions)), resamples=5)


def test_the_label_of_an_unanswered_frame_must_be_the_same_too():
    predictions = random_predictions(9)
    other = replace(
        predictions.take(np.arange(60) > 0),
        unanswered=(Unanswered("0.jpg", "blank", not predictions.faulty[0]),),
    )
    with pytest.raises(InputError, match="the labels differ"):
        compare(side(predictions), side(other), resamples=5)


def test_what_cannot_be_paired_is_refused():
    predictions = random_predictions(9)
    renamed = replace(predictions, images=tuple(f"x{i}.jpg" for i in predictions.images))
    with pytest.raises(InputError, match="no frame is in both"):
        compare(side(predictions), side(renamed), resamples=5)
    with pytest.raises(InputError, match="knows the types"):
        compare(
            side(predictions), side(replace(predictions, class_ids=("a", "b", "x"))), resamples=5
        )
    nothing = replace(predictions, faulty_logits=np.full(60, np.nan, np.float32))
    with pytest.raises(InputError, match="both answer"):
        compare(side(predictions), side(nothing), resamples=5)
    with pytest.raises(ValueError, match="at least one resample"):
        compare(side(predictions), side(predictions), resamples=0)


def test_without_decisions_there_are_no_verdicts_and_masks_are_drawn_at_half():
    first = random_predictions(10)
    comparison = compare(Side("a", first), side(changed(first, 1)), resamples=10)
    assert comparison.mcnemar == {}
    assert comparison.flips == ()
    assert set(comparison.figures) == {
        *("auroc", "average_precision", "recall_at_2_percent", "recall_at_5_percent"),
        "dice_segmented",
    }
    assert comparison.not_measured["escape_rate"] == "no decision is known for A"
    assert "give --decision-a" in summary_sentences(comparison)[0]
    half = decision_of(first.class_ids)
    expected = expected_figures(first, half, np.arange(len(first)))
    assert comparison.figures["dice_segmented"].a == pytest.approx(expected["dice_segmented"])


def test_masks_alone_have_no_ranking():
    first = random_predictions(11)
    masks = replace(first, scored=False)
    comparison = compare(side(first), side(masks), resamples=10)
    assert "auroc" not in comparison.figures
    assert comparison.not_measured["auroc"] == "masks alone are known of B"
    assert "kaggle_dice" in comparison.figures


def test_a_figure_without_frames_is_not_measured():
    clean = predictions_of(np.zeros((20, 2), bool), faulty_logits=np.arange(20) - 10)
    comparison = compare(side(clean), side(clean), resamples=10)
    assert comparison.not_measured["auroc"] == "it takes faulty and clean frames"
    assert comparison.not_measured["escape_rate"] == "no frame is faulty"
    assert comparison.not_measured["a/dice_delivered"] == "no frame holds it with a known mask"
    json.dumps(comparison.to_json(), allow_nan=False)


def test_flips_come_with_the_gravest_first():
    faulty = np.array([True, True, True, False, False, False])
    a = predictions_of(
        faulty[:, None],
        faulty_logits=[3, 3, -3, -3, -3, 3],
        head_probabilities_nk=np.full((6, 1), 0.1),
    )
    b = replace(a, faulty_logits=np.array([-3, -9, 3, 3, -3, -3], np.float32))
    flips = compare(side(a), side(b), resamples=5).flips
    assert [flip.image for flip in flips] == ["1.jpg", "0.jpg", "2.jpg", "3.jpg", "5.jpg"]
    assert [flip.right for flip in flips] == ["A", "A", "B", "A", "B"]
    assert flips[0].verdict_a is Verdict.NG
    assert flips[0].verdict_b is Verdict.OK
    assert flips[0].class_ids == ("a",)


def test_the_same_seed_gives_the_same_comparison():
    first = grouped(12)
    sides = side(first), side(changed(first, 2))
    once, twice = (json.dumps(compare(*sides, resamples=50).to_json()) for _ in range(2))
    other = json.dumps(compare(*sides, resamples=50, seed=1).to_json())
    assert once == twice
    assert once != other


# Files -------------------------------------------------------------------------------------------


def test_a_side_is_read_with_the_decision_beside_it(tmp_path):
    predictions = replace(random_predictions(1), about={"warnings": ["Too good."]})
    predictions.save(tmp_path / "predictions.npz")
    for place in (tmp_path, tmp_path / "predictions.npz"):
        bare = load_side(place)
        assert bare.decision is None
        assert bare.notes == ("Too good.", "No decision was found.")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "decision.toml").write_text(toml_of("abc", clear=0.2))
    assert load_side(tmp_path).decision.gate.clear_below == 0.2
    (tmp_path / "decision.toml").write_text(toml_of("abc", clear=0.25))
    beside = load_side(tmp_path)
    assert beside.decision.gate.clear_below == 0.25
    assert beside.decision_file == str(tmp_path / "decision.toml")
    used = {"at_decision": {"decision": {"id": "12345678"}}}
    (tmp_path / "evaluation.json").write_text(json.dumps(used))
    assert "its evaluation used 12345678" in load_side(tmp_path).notes[1]
    other = tmp_path / "other.toml"
    other.write_text(toml_of("abc", clear=0.3))
    assert load_side(tmp_path, other).decision.gate.clear_below == 0.3


def test_masks_of_another_tool_are_taken_as_they_are(tmp_path):
    replace(random_predictions(1), scored=False).save(tmp_path / "predictions.npz")
    told = load_side(tmp_path)
    assert told.decision.name == "as delivered"
    assert told.notes == ()


def test_a_folder_without_predictions_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected predictions\.npz in this folder"):
        load_side(tmp_path)
    random_predictions(1).save(tmp_path / "predictions.npz")
    (tmp_path / "decision.toml").write_text(toml_of("ab"))
    with pytest.raises(InputError, match="expected rules for types"):
        load_side(tmp_path)
    (tmp_path / "decision.toml").unlink()
    (tmp_path / "evaluation.json").write_text("[1]")
    assert load_side(tmp_path).notes == ("No decision was found.",)
