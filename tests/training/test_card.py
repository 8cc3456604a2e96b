import re
from typing import Any

import pytest

from steelsight.bundle import Bundle
from steelsight.training.card import model_card

FIGURES: dict[str, Any] = {
    "frames": 40,
    "faulty_frames": 10,
    "auroc": 0.9764,
    "auroc_interval": [0.954, 0.9921],
    "mean_dice": 0.44,
    "mean_dice_interval": None,
    "kaggle_dice": None,
    "worst_type": None,
    "types": {
        "pits": {"frames": 25, "auroc": 0.5, "best_dice": 0.61234, "pixel_logit": -1.0},
        "edge_crack": {"frames": 3, "auroc": None, "best_dice": 0.1, "pixel_logit": 0.0},
    },
    "not_measured": {"edge_crack": "no clean\nframes"},
    "baselines": {"nothing": {"kaggle_dice": 0.75}, "everything": {"dice": {"pits": 0.125}}},
}


def card(**changes: Any) -> str:
    return model_card(
        **{
            "name": "mine",
            "learned": "100 frames, 60 of them clean",
            "terms": "ours alone",
            "figures": FIGURES,
        }
        | changes
    )


def section(text: str, heading: str) -> str:
    return next(part for part in text.split("\n## ") if part.startswith(heading))


def test_all_that_a_card_must_say_is_said() -> None:
    text = card(
        about={"data": "ab12"}, decided="98 % quantile", settings={"loss.region": "tversky"}
    )
    assert text.startswith("# mine\n\n## In short\n")
    headings = re.findall("(?m)^## (.+)$", text)
    for topic in ("short", "terms", "figures", "decides", "made", "Limits"):
        assert any(topic in heading for heading in headings), topic
    for said in ("100 frames, 60 of them clean", "Terms: ours alone", "- data: `ab12`",
                 "98 % quantile.", "- loss.region: `tversky`", "decision.toml"):  # fmt: skip
        assert said in text


def test_figures_stand_with_their_intervals() -> None:
    figures = section(card(), "Honest")
    assert "| AUROC, faulty or not | 0.976 [0.954, 0.992] |" in figures
    assert re.search(r"Dice on frames that hold the type \| 0\.440 \|", figures)
    assert "(Kaggle) | not measured |" in figures
    assert "| pits | 25 | 0.500 | 0.612 |" in figures
    assert "| edge_crack | 3 | not measured | 0.100 |" in figures
    assert "Not measured for type edge_crack: no clean frames." in figures
    assert "| nothing: kaggle dice | 0.750 |" in figures
    assert "| everything: dice pits | 0.125 |" in figures


def test_the_summary_says_what_was_measured_and_what_it_is_not() -> None:
    summary = section(card(), "In short")
    assert "On 40 frames that it had not seen" in summary
    assert "0.976 [0.954, 0.992]" in summary
    assert "not validated for any line" in summary
    assert "Nothing was measured" in section(card(figures={}), "In short")


def test_types_measured_on_few_frames_are_named() -> None:
    assert "fewer than 20 frames: edge_crack (3)." in section(card(), "Limits")
    few = {**FIGURES, "types": {"pits": FIGURES["types"]["pits"]}}
    assert "fewer than" not in section(card(figures=few), "Limits")


@pytest.mark.parametrize("text", ["a | b", "a\n## b", "a `b` c", "a\n\n# b"])
def test_texts_of_others_cannot_break_the_card(text: str) -> None:
    figures = {"auroc": 0.5, "types": {text: {"frames": 30, "auroc": 0.5}}}
    made = card(name=text, learned=text, terms=text, figures=figures, about={"command": text})
    assert re.findall("(?m)^#+ .+$", made)[1:] == re.findall("(?m)^#+ .+$", card())[1:]
    (row,) = [line for line in made.splitlines() if "| 30 |" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 4
    (command,) = [line for line in made.splitlines() if line.startswith("- command")]
    assert command.count("`") == 2


def test_its_first_section_is_the_summary_that_reports_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Bundle, "card", card())
    assert Bundle.model_construct().card_summary.startswith("A ResNet50 classifier")
