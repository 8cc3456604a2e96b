"""The pages of a comparison and of a label audit: complete, offline, and safe against names."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from tests.predicted import random_predictions

from steelsight.decisions import Decision
from steelsight.defects import DefectClass
from steelsight.evaluation.compare import compare
from steelsight.evaluation.label_audit import Kind, LabelAudit, Suspect, audit_labels
from steelsight.evaluation.pairing import Side
from steelsight.report.compare_page import MAX_FLIPS, compare_page, draw_flip
from steelsight.report.label_audit_page import draw_suspect, label_audit_page

HOSTILE = '<script>alert("1")</script>\u202e&'
CLASSES = tuple(
    DefectClass(c, f"Type {c}", colour)
    for c, colour in zip("abc", ("#2f9bff", "#b388ff", "#00d0e0"), strict=True)
)
VOID = {"meta", "br", "img", "hr"}


class Checked(HTMLParser):
    """Tags that are left open, and addresses."""

    def __init__(self, page):
        super().__init__()
        self.open, self.addresses, self.ids = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        assert tag != "script"
        assert not any(name.startswith("on") for name in values)
        self.addresses += [values[name] for name in ("href", "src") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("href", "src")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(page):
    found = Checked(page)
    assert found.open == []
    for address in found.addresses:
        assert address.startswith(("#", "data:image/"))
        if address.startswith("#"):
            assert address[1:] in found.ids, address
    return found


def side(predictions, *, decided=True, name="x"):
    rule = {"label_from": 0.5, "pixel_from": 0.5, "min_area_px": 100}
    decision = Decision(
        version=1,
        name="test",
        rule="none",
        chosen_on="nothing",
        gate={"clear_below": 0.3, "ng_from": 0.7},
        input={"min_contrast": 2.0},
        types=dict.fromkeys(predictions.class_ids, rule),
    )
    return Side(name, predictions, decision if decided else None)


@pytest.fixture(scope="module")
def facts():
    first = random_predictions(0, n=120)
    second = random_predictions(1, n=120)
    scores = {
        name: getattr(second, name)
        for name in ("faulty_logits", "head_probabilities_nk", "peaks_nk", "outside_nkb")
    }
    return compare(side(first), side(replace(first, **scores)), resamples=60).to_json()


def test_the_page_holds_every_figure_and_flip(facts):
    page = compare_page(facts, title="old or new", classes=CLASSES)
    checked(page)
    for sentence in facts["summary"]:
        assert sentence.split(":")[0].replace("'", "&#39;") in page
    rows = page.count('<td class="spread">')
    assert rows == len(facts["figures"]) + sum(map(len, facts["types"].values()))
    for flip in facts["flips"]:
        assert flip["image"] in page
    assert page.count('class="apart"') == 0
    assert page.count("num apart") == 6
    assert f"p = {facts['mcnemar']['all']['p_value']:.2g}" in page
    assert page == compare_page(json.loads(json.dumps(facts)), title="old or new", classes=CLASSES)


def test_what_is_better_for_b_lies_to_the_right(facts):
    def row(name, better):
        sign = 1 if better else -1
        figure = {
            **facts["figures"][name],
            "difference": 0.1 * sign,
            "low": min(0.05 * sign, 0.2 * sign),
            "high": max(0.05 * sign, 0.2 * sign),
        }
        page = compare_page(
            {**facts, "figures": {name: figure}, "types": {}, "flips": []}, title="x"
        )
        return float(re.search(r'<circle class="dot \w+" cx="([\d.]+)%"', page)[1])

    assert row("auroc", better=True) > 50 > row("auroc", better=False)
    assert row("escape_rate", better=False) > 50 > row("escape_rate", better=True)


def test_pictures_stand_under_what_happened(facts):
    grey = np.full((64, 320), 120, np.uint8)
    mask = np.zeros((64, 320), bool)
    mask[10:20, 10:50] = True
    pictures = [draw_flip(flip["image"], grey, {"a": mask}, CLASSES) for flip in facts["flips"]]
    page = compare_page(facts, pictures, title="x", classes=CLASSES)
    checked(page)
    shown = page.count("data:image/jpeg")
    assert 0 < shown <= 24
    told = {(flip["label"], flip["right"]) for flip in facts["flips"]}
    assert ("Faulty frames that only A finds" in page) == (("faulty", "A") in told)


def test_names_of_others_do_nothing(facts):
    first = facts["flips"][0]
    hostile = {
        **facts,
        "a": {**facts["a"], "name": HOSTILE, "notes": [HOSTILE], "about": {"model": HOSTILE}},
        "flips": [{**first, "image": HOSTILE, "types": []}],
        "not_measured": {HOSTILE: HOSTILE},
    }
    classes = (DefectClass("a", HOSTILE, "#2f9bff"), *CLASSES[1:])
    page = compare_page(hostile, title=HOSTILE, classes=classes, command=HOSTILE)
    checked(page)
    assert "\u202e" not in page
    assert "alert(&#34;1&#34;)" in page


def test_many_flips_are_cut_and_counted(facts):
    many = [{**facts["flips"][0], "image": f"{n}.png", "types": []} for n in range(MAX_FLIPS + 7)]
    page = compare_page({**facts, "flips": many}, title="x", classes=CLASSES)
    assert f"The first {MAX_FLIPS:,} of {MAX_FLIPS + 7:,}" in page
    assert f"{MAX_FLIPS - 1}.png" in page
    assert f">{MAX_FLIPS}.png" not in page


def test_a_comparison_without_verdicts_has_a_page():
    first = random_predictions(0)
    bare = compare(side(first, decided=False), side(first, decided=False), resamples=10)
    page = compare_page(bare.to_json(), title="x")
    checked(page)
    assert 'id="verdicts"' not in page
    assert "no decision is known for A and B" in page
    assert "no difference" in page


# Label audit -------------------------------------------------------------------------------------


def suspect(image, kind, **values):
    facts = {"class_id": "a", "doubt": 0.9, "confidence": 0.02, "average": 0.9, "labelled": ("a",)}
    return Suspect(image, kind, **{**facts, **values})


def test_the_gallery_shows_suspects_by_kind_with_their_rank():
    suspects = (
        suspect("1.jpg", Kind.CLEAN, class_id=None, labelled=()),
        suspect("2.jpg", Kind.OUTLINE, iou=0.1, labelled_px=1200, drawn_px=40),
        suspect("3.jpg", Kind.CLEAN, class_id=None, labelled=()),
        suspect("4.jpg", Kind.ABSENT),
        suspect("5.jpg", Kind.UNLABELLED, class_id="b"),
    )
    further = {"1.jpg": (suspect("1.jpg", Kind.UNLABELLED, class_id="c", labelled=()),)}
    audit = LabelAudit(suspects, further, 200, {"type x": "it takes frames"})
    grey = np.full((64, 320), 120, np.uint8)
    pictures = {s.image: draw_suspect(grey, {}, CLASSES) for s in suspects[:4]}
    page = label_audit_page(
        audit,
        pictures,
        title="Labels",
        classes=CLASSES,
        top=4,
        warnings=["Not out of fold."],
        notes=["3 frames"],
    )
    checked(page)
    assert "contradicts 5 frames of 200" in page
    assert [name for name in ("clean", "absent", "outline") if f'id="{name}"' in page]
    assert 'id="unlabelled"' not in page, "beyond the top"
    assert page.count("data:image/jpeg") == 4
    assert "Type c not labelled, 98 % sure" in page
    assert "the label covers 1,200 px" in page
    assert page.index("1.jpg") < page.index("3.jpg") < page.index("4.jpg") < page.index("2.jpg")
    assert "Not out of fold." in page
    assert "type x: it takes frames" in page


def test_an_audit_without_suspects_or_pictures_has_a_page():
    page = label_audit_page(LabelAudit((), {}, 12, {}), {}, title="x", classes=CLASSES, top=5)
    checked(page)
    assert "no label is confidently contradicted" in page
    audit = audit_labels(random_predictions(0))
    assert audit.suspects
    page = label_audit_page(audit, {}, title=HOSTILE, classes=CLASSES, top=50, command=HOSTILE)
    checked(page)
    assert "No picture" in page
    assert "\u202e" not in page
