"""``steelsight calibrate``: what people type, what they get, and with which exit code."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.predicted import predictions_of, random_predictions

from steelsight.decisions import load_decision
from steelsight.evaluation.predictions import Predictions, Unanswered
from steelsight.evaluation.thresholds import choose_decision, outcome
from steelsight.evaluation.verdicts import apply_decision

# main() leaves it to cyclopts to read sys.argv, as the installed command does.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")


@pytest.fixture(scope="module")
def found() -> Predictions:
    return replace(
        random_predictions(1, 600, 2),
        unanswered=(Unanswered("x", "blank", True), Unanswered("y", "blank", False)),
    )


@pytest.fixture
def run(tmp_path, found) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    found.save(folder / "predictions.npz")
    return folder


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "decision.toml"


RULES = [
    ("--rule", "false-alarms"),
    ("--rule", "kaggle"),
    ("--rule", "recall"),
    ("--rule", "cost"),
    ("--max-escape-rate", "0.1"),
]


@pytest.mark.parametrize("options", RULES, ids=lambda o: o[-1])
def test_every_rule_writes_a_file_that_the_engine_reads(call, run, out, found, options):
    answer = call("calibrate", run, *options, "--out", out, "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    decision = load_decision(out, found.class_ids)
    assert told["id"] == decision.id
    assert told["rule"] == decision.rule
    assert told["gate"] == decision.gate.model_dump()
    assert told["on_these_frames"] == outcome(found, apply_decision(found, decision))
    assert told["nested"]["escape_rate"]["of"] == told["on_these_frames"]["escape_rate"]["of"]
    assert told["nested_not_measured"] is None
    assert (told["cost_curve"] is not None) == ("cost" in options)


def test_the_file_says_on_which_frames_when_and_by_which_rule(call, run, out, found):
    assert call("calibrate", run, "--recall", "0.9", "--out", out).code == 0
    decision = load_decision(out, found.class_ids)
    sha256 = hashlib.sha256((run / "predictions.npz").read_bytes()).hexdigest()
    faulty = int(found.faulty.sum())
    assert decision.name == "run-recall"
    assert decision.chosen_on.startswith(
        f"{faulty} faulty and {600 - faulty} clean frames in 3 folds, each predicted by the network"
        f" of the other folds, 2 UNKNOWN ones left out; run/predictions.npz, sha256 {sha256};"
        " rule recall, 20"
    )
    named = run.parent / "named.toml"
    file = run / "predictions.npz"
    assert call("calibrate", file, "--name", "line 4", "--out", named).code == 0
    decision = load_decision(named, found.class_ids)
    assert decision.name == "line 4"
    assert f"; predictions.npz, sha256 {sha256}; rule false-alarms, " in decision.chosen_on
    # But for these words it is the decision that training writes.
    expected = choose_decision(found, "line 4", decision.chosen_on)
    assert named.read_text() == expected


def test_the_same_command_chooses_the_same(call, run, out):
    texts = []
    for _ in range(2):
        answer = call("calibrate", run, "--rule", "cost", "--out", out, "--force", "--json")
        told = json.loads(answer.out)
        del told["chosen_on"], told["id"], told["sha256"]
        texts.append(told)
    assert texts[0] == texts[1]


def test_people_see_thresholds_and_what_they_give(call, run, out, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    answer = call("calibrate", run, "--rule", "cost", "--out", out, "--temperature", "--soft-gate")
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    for start in (
        "Rule: the least expected cost",
        "On: ",
        "clear_below ",
        "ng_from ",
        "temperature ",
        "label_from ",
        "escapes: faulty OK ",
        "overkill: clean NG ",
        "type a: escapes ",
        "Kaggle Dice ",
        "Nested: each frame judged by thresholds chosen without it and its fold.",
        "UNKNOWN: 1 faulty and 1 clean frames.",
        "Cost of a frame: ",
    ):
        assert any(line.startswith(start) for line in lines), start
    assert "soft = true" in out.read_text()


def test_a_first_look_is_used_where_it_is_asked_for(call, run, out, found):
    rng = np.random.default_rng(3)
    scores = (rng.normal(-4, 1, len(found)) + 5 * found.faulty).astype(np.float32)
    replace(found, first_look_logits=scores).save(run / "predictions.npz")
    for options, share in (((), 0), (("--first-look", 0.4), 40), (("--first-look", 0.7), 70)):
        told = json.loads(call("calibrate", run, *options, "--out", out, "--force", "--json").out)
        assert (told["first_look"] is not None) == bool(share)
        if share:
            settles = float(re.search(r"the first look settles ([0-9.]+) %", told["rule"])[1])
            assert settles == pytest.approx(share, abs=0.5)
        assert told["nested"]["escape_rate"]["of"] == told["on_these_frames"]["escape_rate"]["of"]
    answer = call("calibrate", run, "--first-look", 0.7, "--out", out, "--force")
    assert re.search(r"^ *first look +0\.\d+", answer.out, re.MULTILINE), answer.out


def test_an_option_implies_its_rule(call, run, out):
    told = json.loads(call("calibrate", run, "--escape-cost", 10, "--out", out, "--json").out)
    assert told["rule"].startswith("the least expected cost")
    assert "10 for an escape, 15 for an overkill and 2 % faulty" in told["rule"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--first-look", 0.5), "expected predictions with the scores of a first look, got none"),
        (("--rule", "best"), "expected --rule false-alarms, kaggle, recall, cost, guarantee, got"),
        (("--rule", "kaggle", "--recall", 1), "--recall belongs to the rule recall, but the"),
        (("--recall", 1, "--per-type"), "--per-type belongs to the rule guarantee"),
        (("--recall", 95), "expected --recall as a share above 0 and at most 1"),
        (("--prevalence", 0), "expected --prevalence as a share above 0 and below 1"),
        (("--escape-cost", -4), "expected --escape-cost above 0"),
        (("--false-alarms", 0.3), "expected 0 <= --false-alarms <= --clear < 1"),
        (
            ("--max-escape-rate", 0.1, "--soft-gate", "--temperature"),
            "expected weights that are fixed before the faulty frames are looked at",
        ),
    ],
)
def test_wrong_options_are_refused_in_one_line(call, run, out, options, line):
    answer = call("calibrate", run, *options, "--out", out)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith(f"steelsight: {line}")
    assert answer.err.count("\n") == 1
    assert not out.exists()


def test_what_cannot_be_proven_is_refused_with_exit_code_4(call, tmp_path, out):
    present = np.arange(240)[:, None] < [25, 0]
    rng = np.random.default_rng(1)
    few = predictions_of(present, faulty_logits=rng.normal(size=240) + 3 * present[:, 0])
    few.save(tmp_path / "predictions.npz")
    answer = call("calibrate", tmp_path, "--rule", "guarantee", "--out", out)
    assert (answer.code, answer.out) == (4, "")
    assert answer.err == (
        "steelsight: 25 faulty frames cannot support 2 % at 95 %; the best provable is 11.3 %; you"
        " need 149 frames\n"
    )
    assert not out.exists()
    # What the frames prove together they need not prove without a fold.
    answer = call("calibrate", tmp_path, "--max-escape-rate", 0.12, "--out", out)
    assert answer.code == 0
    assert "Nested figures could not be measured, without the frames of a fold: 20 faulty" in (
        answer.out
    )
    assert "not measured" in answer.out
    assert "The promise is about the networks that made these predictions" in answer.out


def test_a_file_is_not_replaced_without_being_asked(call, run, out):
    out.write_text("mine")
    answer = call("calibrate", run, "--out", out)
    assert answer.code == 1
    assert "is there already; give another --out, or --force to replace it" in answer.err
    assert out.read_text() == "mine"
    assert call("calibrate", run, "--out", out, "--force").code == 0
    assert out.read_text() != "mine"
    assert [p.name for p in out.parent.iterdir() if p.name.startswith(".")] == []


def test_what_holds_no_predictions_is_refused(call, tmp_path, run, out):
    answer = call("calibrate", tmp_path, "--out", out)
    assert answer.code == 1
    assert "holds no predictions.npz; give the folder of a run that is finished" in answer.err
    (run / "predictions.npz").write_bytes(b"PK")
    answer = call("calibrate", run, "--out", out)
    assert answer.code == 1
    assert "expected predictions that 'steelsight train' wrote" in answer.err
    answer = call("calibrate", tmp_path / "missing.npz", "--out", out)
    assert answer.code == 1
    assert answer.err.count("\n") == 1


def test_a_folder_that_is_missing_is_named(call, run, tmp_path):
    answer = call("calibrate", run, "--out", tmp_path / "no" / "decision.toml")
    assert answer.code == 1
    assert "decision.toml: cannot be written" in answer.err
    assert answer.err.count("\n") == 1
