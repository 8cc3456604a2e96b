"""The page of an evaluation as a browser gets it, from JSON as ``Evaluation.to_json`` writes it."""

import json
import math
import re

import cv2
import numpy as np
import pytest
from tests.pages import Page

from steelsight.data.synthetic import CoilConfig, draw_frame
from steelsight.defects import DefectClass
from steelsight.errors import LabelError
from steelsight.masks import encode_rle
from steelsight.report.evaluation_page import Picture, draw_picture, evaluation_page

HOSTILE = '<script>alert("1")</script>\u202e&'


def figure(value, low=None, high=None, count=None, of=None):
    return {"value": value, "low": low, "high": high, "count": count, "of": of}


def share(count, of):
    """A proportion with roughly its interval."""
    if not of:
        return figure(None, count=0, of=0)
    p, spread = count / of, 1.96 * math.sqrt(max(count * (of - count), of) / of**3)
    return figure(p, max(p - spread, 0), min(p + spread, 1), count, of)


def near(value, spread=0.05):
    return figure(value, max(value - spread, 0), min(value + spread * 0.8, 1))


def bins(unit, edges, counts, ends=("from", "to")):
    return [
        {ends[0]: low, ends[1]: high, unit: total, "found": share(found, total)}
        for low, high, (found, total) in zip(edges, edges[1:], counts, strict=False)
    ]


def of_type(frames, found, dice, missed=()):
    size = [(round(found * 0.7), frames), (found, frames), (found, found), (0, 0)]
    thirds = [(found // 3, frames // 3)] * 3
    return {
        "frames": frames,
        "masked_frames": frames - 2,
        "regions": 3 * frames,
        "auroc": near(0.97, 0.02),
        "average_precision": near(0.8),
        "detection": near(0.82),
        "recall_at_2_percent": share(found - 1, frames),
        "recall_at_5_percent": share(found, frames),
        "found": share(found, frames),
        "missed_frames": list(missed),
        "dice_delivered": near(dice),
        "iou_delivered": near(dice - 0.1),
        "dice_segmented": near(dice + 0.03),
        "iou_segmented": near(dice - 0.08),
        "best_dice": near(dice + 0.05),
        "pixel_average_precision": near(dice + 0.02, 0.08),
        "pro": near(0.85, 0.04),
        "regions_found": share(2 * found, 3 * frames),
        "by_size": bins("regions", [0, 500, 2_000, 10_000, None], size, ends=("from_px", "to_px")),
        "by_position_x": bins("regions", [0, 1 / 3, 2 / 3, 1], thirds),
        "by_position_y": bins("regions", [0, 1 / 3, 2 / 3, 1], thirds),
        "by_brightness": bins("frames", [12, 61, 84, 107, 180], [(found // 4, frames // 4)] * 4),
    }


def reliability(frames):
    told = np.linspace(0.03, 0.97, 10)
    return {
        "ece": near(0.031, 0.01),
        "bins": [
            {"from": i / 10, "to": (i + 1) / 10, "frames": int(frames / (1 + 3 * min(i, 9 - i))),
             "mean_probability": float(p), "share_faulty": float(p**1.3)}
            for i, p in enumerate(told)
        ],
    }  # fmt: skip


def sample():
    """112 faulty and 636 clean frames, four types; 5 frames without an answer."""
    rates = np.linspace(0, 1, 120) ** 2
    recalls = 0.71 + 0.29 * rates**0.05
    recall = np.linspace(0, 1, 80)
    names = {"1": (20, 16, 0.62), "2": (9, 6, 0.41), "3": (70, 69, 0.81), "4": (16, 15, 0.83)}
    faulty, clean = {"NG": 106, "OK": 4, "UNKNOWN": 2}, {"NG": 14, "OK": 619, "UNKNOWN": 3}
    return {
        "about": {
            "data": "/data/severstal, labels train.csv",
            "model": "severstal-r50@1f2e3d4c", "types": {"4": "scale"}, "part": None,
            "left_out": {"disputed": 40},
            "engine": "onnxruntime-int8",
            "trained_on": "11,820 Severstal frames; none of these",
            "command": "steelsight evaluate /data/severstal --bundle bundled",
            "manifest_sha256": "ab" * 32,
            "warnings": ["3 of the frames were learned from: they flatter every figure below."],
        },
        "frames": {
            "seen": 748, "answered": 743, "unanswered": 5, "faulty": 112, "clean": 636,
            "groups": 701, "unanswered_reasons": {"truncated": 3, "blank": 2},
            "unanswered_faulty": 2,
        },
        "ranking": {
            "auroc": near(0.9881, 0.008), "average_precision": near(0.972, 0.015),
            "recall_at_1_percent": share(98, 110), "recall_at_2_percent": share(102, 110),
            "recall_at_5_percent": share(106, 110),
            "roc": {"false_alarm_rate": rates.tolist(), "recall": recalls.tolist()},
            "precision_recall": {
                "recall": recall.tolist(), "precision": (1 - 0.7 * recall**12).tolist()
            },
        },
        "at_decision": {
            "decision": {
                "name": "severstal-default", "id": "9a8b7c6d",
                "rule": "gate at 2 and 5 % false alarms on clean frames",
                "chosen_on": "out-of-fold predictions of 11,820 frames",
            },
            "verdicts": {"faulty": faulty, "clean": clean},
            "escape_rate": share(4, 110), "overkill_rate": share(14, 633),
            "accuracy": share(725, 743), "precision": share(106, 120), "recall": share(106, 110),
            "f1": near(0.922, 0.03),
            "working_point": {"false_alarm_rate": share(14, 633), "recall": share(106, 110)},
            "type_confusion": {
                "1": {"1": 16, "2": 1, "3": 3, "4": 0, "none": 2},
                "2": {"1": 1, "2": 6, "3": 2, "4": 0, "none": 1},
                "3": {"1": 0, "2": 0, "3": 69, "4": 2, "none": 1},
                "4": {"1": 0, "2": 0, "3": 1, "4": 15, "none": 0},
                "clean": {"1": 2, "2": 1, "3": 10, "4": 0, "none": 620},
            },
            "rounded_pixel_from": True,
            "missed": [f"missed-{i}.jpg" for i in range(4)],
            "false_alarms": [f"blocked-{i}.jpg" for i in range(14)],
        },
        "kaggle": {
            "dice": near(0.952, 0.007), "predict_nothing": near(0.962, 0.003),
            "head_room_captured": figure(0.34, 0.21, 0.45),
        },
        "types": {
            k: of_type(*v, missed=("missed-0.jpg",) * (k == "2")) for k, v in names.items()
        },
        "mean": {
            "dice_delivered": near(0.66), "dice_segmented": near(0.7), "best_dice": near(0.72)
        },
        "worst_type": {"id": "2", "found": share(6, 9)},
        "calibration": {
            "faulty": reliability(400), "types": {k: reliability(80) for k in names}
        },
        "not_measured": {"types.2.pro": "2 frames with a mask are too few for an interval"},
        "summary": [
            "Of 100 faulty frames it misses 4 (95 % interval 1 to 9).",
            "Of 100 clean frames it blocks 2 (95 % interval 1 to 4).",
            "The type it finds worst is Type 2: 6 of 9 frames (30 to 93 %).",
            "Its masks share a Dice of 0.66 (0.61 to 0.70) with those people drew.",
        ],
    }  # fmt: skip


def page(evaluation, pictures=(), **options):
    json.dumps(evaluation, allow_nan=False)  # what a file can hold
    return Page(evaluation_page(evaluation, pictures, title="r50 on Severstal", **options))


@pytest.fixture(scope="module")
def frames():
    """Two drawn frames of real size: faulty, and its clean twin."""
    config = CoilConfig(frames=3, seed=3, faulty_share=1)
    return draw_frame(config, 0), draw_frame(config, 0, with_defects=False)


def small_picture(why, number=0, jpeg=b"\xff\xd8"):
    return Picture(f"{why}-{number}.jpg", why, "", "Type 1", "no region", jpeg, jpeg, (8, 2))


def test_summary_stands_first_and_every_link_stays_inside():
    shown = page(sample())
    assert shown.sections == ["verdicts", "ranking", "types", "where", "calibration", "measured"]
    first = shown.text.index("Of 100 faulty frames it misses 4 (95 % interval")
    assert (
        first < shown.text.index("of the frames were learned from") < shown.text.index("Verdicts")
    )
    assert {a["href"][1:] for a in shown.all("a")} <= set(shown.sections)
    assert not shown.all("script") + shown.all("link") + shown.all("iframe")
    (policy,) = [m for m in shown.all("meta") if m.get("http-equiv")]
    assert policy["content"].startswith("default-src 'none'")
    outside = re.findall(r"(?:src|href|url\()\W*(?:https?:|//)", shown.html)
    assert outside == []
    assert evaluation_page(sample(), title="a") == evaluation_page(sample(), title="a")


def test_where_the_figures_come_from_is_told():
    text = page(sample(), warnings=["given by the caller"]).text
    for said in (
        "748 frames: 112 faulty, 636 clean; 5 without an answer; 701 groups of the same steel",
        "severstal-r50@1f2e3d4c",
        "severstal-default 9a8b7c6d",
        "out-of-fold predictions of 11,820 frames",
        "11,820 Severstal frames; none of these",
        "onnxruntime-int8",
        "given by the caller",
        "5 frames of 748 have no answer (truncated 3, blank 2)",
        "Pixel thresholds of the decision lie between",
        "Left out disputed: 40",
        "types.2.pro 2 frames with a mask are too few",
    ):
        assert said in text


def test_verdicts_add_up():
    rows = page(sample()).rows
    at = rows.index(["Label", "NG", "OK", "UNKNOWN", "Together"])
    assert rows[at + 1 : at + 4] == [
        ["Faulty", "106", "4", "2", "112"],
        ["Clean", "14", "619", "3", "636"],
        ["Together", "120", "623", "5", "748"],
    ]
    assert "112 faulty: 106 NG · 4 OK (missed) · 2 UNKNOWN" in page(sample()).text


def test_confusion_keeps_order_and_frames_what_agrees():
    shown = page(sample())
    at = shown.rows.index(["", "Type 1", "Type 2", "Type 3", "scale", "no type"])
    assert [row[0] for row in shown.rows[at + 1 : at + 6]] == [
        "Type 1", "Type 2", "Type 3", "scale", "clean",
    ]  # fmt: skip
    framed = re.findall(r'<td class="agree"[^>]*>(\d+)', shown.html)
    assert framed == ["16", "6", "69", "15", "620"]


def test_the_working_point_is_marked_on_the_curves():
    shown = page(sample())
    parts = re.findall(r'aria-label="(ROC[^"]*|Precision[^"]*)">(.*?)decision</text>', shown.html)
    assert [name for name, _ in parts] == [
        "ROC curve up to 10 % false alarms", "ROC curve", "Precision over recall",
    ]  # fmt: skip
    at = [re.findall(r'<circle[^>]*cx="([\d.]+)%"[^>]*r="5"', part)[-1] for _, part in parts]
    alarms, recall = 14 / 633, 106 / 110
    assert [float(x) for x in at] == pytest.approx(
        [1000 * alarms, 100 * alarms, 100 * recall], abs=0.01
    )


def test_types_have_figures_with_intervals_and_counts():
    shown = page(sample())
    by_name = {row[0]: row for row in shown.rows if len(row) == 8}
    found, total = 6, 9
    low, high = share(found, total)["low"], share(found, total)["high"]
    assert by_name["Type 2"][2] == f"66.7 % {100 * low:.1f}–{100 * high:.1f} % 6 of 9"
    for figure_name in ("Dice, delivered", "Dice, segmented", "PRO", "Pixel average precision"):
        assert f'aria-label="{figure_name} by type"' in shown.html
    assert "Type 2, frames on which it was missed: 1" in shown.text
    assert 'aria-label="Type 3, found by across the width"' in shown.html
    assert "< 500" in shown.text
    assert "≥ 10k" in shown.text


def test_an_interval_without_width_is_no_certainty():
    evaluation = sample()
    evaluation["types"]["4"]["detection"] = figure(1.0, 1.0, 1.0)
    rows = [row for row in page(evaluation).rows if row[0] == "scale" and len(row) == 8]
    assert rows[0][5] == "1"


def test_kaggle_dice_stands_beside_that_of_nothing():
    evaluation = sample()
    kaggle = evaluation["kaggle"]
    said = "Kaggle's Dice, over all frames and types, is 0.952 (0.945 to 0.958); marking nothing"
    captured = "Of the room between that and 1, 0.340 (0.210 to 0.450) is captured."
    assert f"{said} anywhere gives 0.962. {captured}" in page(evaluation).text
    kaggle["head_room_captured"] = figure(-1.67, -2.2, -1.3)
    assert "worse than marking nothing" in page(evaluation).text
    kaggle["head_room_captured"] = kaggle["dice"] = figure(None)
    assert "Kaggle's Dice, over" not in page(evaluation).text


def test_no_share_is_rounded_to_certainty():
    evaluation = sample()
    evaluation["at_decision"]["escape_rate"] = figure(0.0001, 0.0, 0.0004, 1, 12_000)
    evaluation["types"]["3"]["found"] = figure(0.9999, 0.9997, 1.0, 11_999, 12_000)
    rows = page(evaluation).rows
    text = page(evaluation).text
    assert "Missed < 0.1 % 0 to < 0.1 % 1 of 12,000" in text
    assert any(cell.startswith("> 99.9 %") for row in rows for cell in row)


def test_names_from_outside_are_escaped_and_made_visible():
    evaluation = sample()
    evaluation["types"][HOSTILE] = evaluation["types"].pop("1")
    evaluation["calibration"]["types"][HOSTILE] = reliability(10)
    decided = evaluation["at_decision"]
    decided["type_confusion"][HOSTILE] = {HOSTILE: 3}
    decided["missed"] = decided["false_alarms"] = [HOSTILE]
    decided["decision"] = dict.fromkeys(("name", "id", "rule", "chosen_on"), HOSTILE)
    evaluation["worst_type"]["id"] = HOSTILE
    evaluation["about"] |= {HOSTILE: HOSTILE, "data": HOSTILE, "warnings": [HOSTILE]}
    evaluation["frames"]["unanswered_reasons"] = {HOSTILE: 5}
    evaluation["summary"].append(HOSTILE)
    evaluation["not_measured"] = {HOSTILE: HOSTILE}
    picture = Picture(
        HOSTILE, "missed", HOSTILE, HOSTILE, HOSTILE, b"", b"", (8, 2), ((HOSTILE, b""),)
    )
    shown = Page(evaluation_page(evaluation, [picture], title=HOSTILE, warnings=[HOSTILE]))
    assert not shown.all("script")
    assert "\u202e" not in shown.html
    assert shown.text.count("‹U+202E›") > 20


def without_scores(evaluation):
    evaluation["ranking"] = None
    evaluation["calibration"] = None
    for of in evaluation["types"].values():
        for key in ("auroc", "average_precision", "detection", "recall_at_2_percent",
                    "recall_at_5_percent"):  # fmt: skip
            of[key] = figure(None)
    evaluation["not_measured"]["ranking"] = "the tool gives masks without scores"


def without_decision(evaluation):
    evaluation["at_decision"] = evaluation["worst_type"] = None
    evaluation["mean"]["dice_delivered"] = figure(None)
    for of in evaluation["types"].values():
        for key in ("found", "regions_found", "dice_delivered", "iou_delivered"):
            of[key] = figure(None)
        for key in ("by_size", "by_position_x", "by_position_y", "by_brightness"):
            of[key] = [entry | {"found": figure(None)} for entry in of[key]]


def without_answers(evaluation):
    evaluation |= dict.fromkeys(("ranking", "kaggle", "mean", "worst_type", "calibration"))
    evaluation["frames"] |= {"answered": 0, "unanswered": 748, "unanswered_faulty": 112,
                             "unanswered_reasons": {"truncated": 748}}  # fmt: skip
    evaluation["at_decision"] |= {
        "verdicts": {"faulty": {"UNKNOWN": 112}, "clean": {"UNKNOWN": 636}},
        "working_point": {"false_alarm_rate": figure(None), "recall": figure(None)},
        "type_confusion": {},
        "missed": [],
        "false_alarms": [],
    } | dict.fromkeys(("escape_rate", "overkill_rate", "accuracy", "precision", "recall", "f1"))
    evaluation["types"] = {
        k: {"frames": 0, "found": figure(None, count=0, of=0), "by_size": []} for k in "1234"
    }


@pytest.mark.parametrize(
    ("change", "sections"),
    [
        (without_scores, ["verdicts", "types", "where", "measured"]),
        (without_decision, ["ranking", "types", "calibration", "measured"]),
        (without_answers, ["verdicts", "measured"]),
        (dict.clear, ["measured"]),
    ],
)
def test_what_was_not_measured_leaves_its_part_out(change, sections):
    evaluation = sample()
    change(evaluation)
    shown = page(evaluation)
    assert shown.sections == sections
    assert {a["href"][1:] for a in shown.all("a")} <= set(sections)
    for word in ("None", "nan", "inf ", "{"):
        assert word not in shown.text


def test_everything_unanswered_says_so():
    evaluation = sample()
    without_answers(evaluation)
    shown = page(evaluation)
    assert "No frame was answered (truncated 748). Labelled faulty: 112 of them." in shown.text
    assert ["Together", "0", "0", "748", "748"] in shown.rows
    assert "0.0 %" not in shown.text  # nothing is claimed


def test_data_without_clean_frames_claims_nothing_about_false_alarms():
    evaluation = sample()
    evaluation["frames"]["clean"] = 0
    assert "nothing is known about false alarms" in page(evaluation).text


def test_many_types_keep_their_names_and_colours():
    evaluation = sample()
    ids = [f"type number {i}" for i in range(12)]
    evaluation["types"] = {k: of_type(20, 15, 0.5) for k in ids}
    evaluation["calibration"]["types"] = {k: reliability(9) for k in ids}
    shown = page(evaluation)
    rows = [row for row in shown.rows if row and row[0] in ids]
    assert [row[0] for row in rows] == ids * 2
    swatches = re.findall(r'swatch" style="background:(#[0-9a-f]{6})', shown.html)
    assert len(set(swatches)) == 12


def test_pictures_show_label_and_answer_apart(frames):
    frame, clean = frames
    classes = tuple(DefectClass(str(i), f"Type {i}", c) for i, c in enumerate(
        ("#2f9bff", "#b388ff", "#00d0e0", "#ff7ac8"), 1))  # fmt: skip
    truth = {k: encode_rle(m) for k, m in zip("1234", frame.masks_chw, strict=True) if m.any()}
    heat = np.full((256, 1600, 3), 128, np.uint8)
    missed = draw_picture(frame.grey_hw, truth, {}, classes, image="a.jpg", why="missed",
                          caption="faulty 0.03", maps={"Grad-CAM, stage 1": heat})  # fmt: skip
    blocked = draw_picture(clean.grey_hw, {}, truth, classes, image="b.jpg", why="false alarm")
    assert missed.answer == "no region"
    assert blocked.truth == "clean"
    assert missed.truth == blocked.answer == ", ".join(f"Type {k}" for k in truth)
    assert missed.size_wh == (1120, 179)

    def changed(picture):
        """Where label and answer differ, in pixels of the picture."""
        a, b = (
            cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).astype(int)
            for jpeg in (picture.truth_jpeg, picture.answer_jpeg)
        )
        return np.abs(a - b).max(axis=2) > 40

    mask = np.logical_or.reduce(frame.masks_chw).astype(np.uint8)
    near_mask = cv2.dilate(cv2.resize(mask, (1120, 179), interpolation=cv2.INTER_AREA),
                           np.ones((9, 9), np.uint8))  # fmt: skip
    assert changed(missed)[near_mask > 0].any()
    shown = page(sample(), [missed, blocked], classes=classes)
    assert "gallery" in shown.sections
    assert len(shown.all("img")) == 5
    assert shown.text.index("Worst misses") < shown.text.index("Worst false alarms")
    assert "Grad-CAM, stage 1" in shown.text
    assert all(img["src"].startswith("data:image/jpeg;base64,") for img in shown.all("img"))
    assert draw_picture(frame.grey_hw, truth, {}, classes, image="a.jpg", why="found") == (
        draw_picture(frame.grey_hw, truth, {}, classes, image="a.jpg", why="found")
    )


def test_types_without_a_place_are_named(classes):
    grey = np.full((200, 200), 90, np.uint8)
    picture = draw_picture(grey, {"1": None, "2": ""}, {"3": None}, classes, image="a", why="found")
    assert picture.truth == "Type 1 (place not known)"
    assert picture.answer == "Type 3 (mask not at hand)"
    shown = page(sample(), [picture])
    assert "sides square" in shown.html  # beside one another
    faulty = draw_picture(grey, {}, {}, classes, image="a", why="missed")
    assert faulty.truth == "faulty, type not told"
    with pytest.raises(LabelError, match=r"a, label, type 1") as caught:
        draw_picture(grey, {"1": "1 40001"}, {}, classes, image="a", why="found")
    assert "\n" not in str(caught.value)


def test_the_gallery_is_bounded_and_shares_its_room():
    whys = ("missed", "false alarm", "worst outline", "found")
    pictures = [small_picture(why, i) for why in whys for i in range(20)]
    shown = page(sample(), pictures)
    names = re.findall(r"<figcaption><bdi>([^<]*)</bdi>", shown.html)
    assert names == [f"{why}-{i}.jpg" for why in whys for i in range(6)]
    assert "24 of 80 frames are shown" in shown.text
    assert len(page(sample(), pictures, max_pictures=3).all("figure")) == 3
    large = [small_picture("missed", i, bytes(1_000_000)) for i in range(20)]
    shown = page(sample(), large)
    assert len(shown.html) < 13_000_000
    assert len(shown.all("figure")) == 4  # two megabytes each, and no half of one
    assert all(img["src"].startswith("data:") for img in shown.all("img"))
    assert "4 of 20 frames are shown" in shown.text
