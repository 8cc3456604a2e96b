"""Which frames of an evaluation are shown, and what its table says."""

import csv
import io

import numpy as np
import pytest
from tests.predicted import predictions_of, random_predictions

from steelsight.decisions import Decision
from steelsight.evaluation.predictions import BINS, MASK_LOGIT_EDGES, Predictions, Unanswered
from steelsight.evaluation.verdicts import apply_decision
from steelsight.report.evaluation_folder import choose_frames, delivered_dice, frame_rows, taken

HALF = int(np.flatnonzero(MASK_LOGIT_EDGES == 0)[0])


def decision_for(class_ids, label_from=0.5) -> Decision:
    rule = {"label_from": label_from, "pixel_from": 0.5, "min_area_px": 0}
    return Decision(
        version=1, name="n", rule="r", chosen_on="c",
        gate={"clear_below": 0.1, "ng_from": 0.9}, input={"min_contrast": 0},
        types=dict.fromkeys(class_ids, rule),
    )  # fmt: skip


def test_dice_is_that_of_a_loop():
    found = random_predictions(3)
    verdicts = apply_decision(found, decision_for(found.class_ids))
    dice_nk = delivered_dice(found, verdicts)
    for n in range(len(found)):
        for k in range(len(found.class_ids)):
            if not found.masked_nk[n, k]:
                assert np.isnan(dice_nk[n, k])
                continue
            true = found.inside_nkb[n, k, HALF + 1 :].sum()
            area = true + found.outside_nkb[n, k, HALF + 1 :].sum()
            label = found.inside_nkb[n, k].sum()
            called = verdicts.called_nk[n, k]
            expected = 2 * true / (area + label) if called else 0.0
            assert dice_nk[n, k] == pytest.approx(expected)
    assert (dice_nk == 0).any()
    assert (dice_nk > 0).any()


def graded(true_px: list[int], logits: list[float], present: list[bool]) -> Predictions:
    """Frames of one type whose label has 100 px, of which so many are found; no others are."""
    n = len(true_px)
    inside = np.zeros((n, 1, BINS), np.int64)
    inside[:, 0, 0] = 100 - np.array(true_px)
    inside[:, 0, -1] = true_px
    on_nk = np.array(present)[:, None]
    return predictions_of(
        on_nk,
        masked_nk=on_nk,
        inside_nkb=inside * on_nk[..., None],
        faulty_logits=logits,
        head_probabilities_nk=np.full((n, 1), 0.9),
    )


def test_the_worst_come_first():
    present = [True] * 8 + [False] * 4
    true = [0, 0, 10, 90, 50, 70, 60, 30, 0, 0, 0, 0]
    logits = [-5, -9, 0, 1, 2, 3, 4, 5, 3, -9, 7, 5]
    found = graded(true, logits, present)
    chosen = choose_frames(found, decision_for(found.class_ids), most=2)
    assert [(c.image, c.why) for c in chosen] == [
        ("1.jpg", "missed"), ("0.jpg", "missed"),  # least probability first
        ("10.jpg", "false alarm"), ("11.jpg", "false alarm"),  # highest first
        ("2.jpg", "worst outline"), ("7.jpg", "worst outline"),
        ("4.jpg", "found"), ("3.jpg", "found"),  # from the next worst to the best
    ]  # fmt: skip
    assert chosen[4].caption == "faulty 0.500, Dice 0.18"
    assert chosen[0].caption == "faulty 0.000"


def test_few_frames_are_shown_once():
    found = graded([50], [5.0], [True])
    chosen = choose_frames(found, decision_for(found.class_ids))
    assert [(c.image, c.why) for c in chosen] == [("0.jpg", "worst outline")]
    assert choose_frames(found.take(np.array([False])), decision_for(found.class_ids)) == []


def table(found: Predictions, decision: Decision | None) -> list[dict[str, str]]:
    text = io.StringIO()
    csv.writer(text).writerows(frame_rows(found, decision))
    return list(csv.DictReader(io.StringIO(text.getvalue())))


def test_the_table_of_all_frames():
    found = predictions_of(
        [[1, 1], [0, 0], [0, 0]],
        images=("=cmd()", "b.jpg", "c.jpg"),
        faulty=[True, True, False],
        faulty_logits=[5, -5, np.nan],
        groups=[4, 4, 9],
        unanswered=(Unanswered("+d.jpg", "blank", faulty=True),),
    )
    rows = table(found, decision_for(found.class_ids))
    assert [row["image"] for row in rows] == ["'=cmd()", "b.jpg", "c.jpg", "'+d.jpg"]
    assert [row["label"] for row in rows] == ["a b", "faulty", "clean", "faulty"]
    assert [row["verdict"] for row in rows] == ["NG", "OK", "UNKNOWN", "UNKNOWN"]
    assert [row["reason"] for row in rows] == ["", "", "", "blank"]
    assert [row["group"] for row in rows] == ["4", "4", "9", ""]
    assert rows[0]["faulty_probability"] == "0.993307"
    assert rows[2]["faulty_probability"] == ""
    assert all(row["dice_a"] == "" for row in rows), "no mask is known"
    undecided = table(found, None)
    assert {row["verdict"] for row in undecided[:3]} == {""}


def test_what_an_earlier_run_left(tmp_path):
    assert taken(tmp_path / "none") == []
    (tmp_path / "frames.csv").touch()
    (tmp_path / "mine.txt").touch()
    assert taken(tmp_path) == [tmp_path / "frames.csv"]
