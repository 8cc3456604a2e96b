"""The page of a run as a browser gets it, from files written as the run folder writes them."""

import base64
import csv
import itertools
import json
import re
import shutil
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pytest
from tests.pages import Page

from steelsight.errors import InputError
from steelsight.report import train_page
from steelsight.report.train_page import (
    Line,
    lines_html,
    write_cross_validation_page,
    write_train_page,
)

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<script>alert("1")</script>\u202e&'
TYPES = {
    "1": {"frames": 9, "detection": 0.7, "best_dice": 0.4, "dice_at_half": 0.35, "auroc": 0.9},
    "2": {"frames": 3, "detection": 0.31, "best_dice": 0.2, "dice_at_half": 0.1, "auroc": None},
}
FIGURES = {
    "frames": 40,
    "faulty_frames": 12,
    "clean_frames": 28,
    "auroc": 0.951,
    "auroc_interval": [0.91, 0.97],
    "average_precision": 0.83,
    "recall_at_2_percent": 0.69,
    "mean_dice": 0.3,
    "mean_dice_interval": None,
    "kaggle_dice": 0.9,
    "worst_type_detection": 0.31,
    "worst_type": "2",
    "types": TYPES,
    "not_measured": {},
}
SUMMARY = FIGURES | {
    "best_step": 20,
    "baselines": {
        "nothing": {"kaggle_dice": 0.866},
        "everything": {"dice": {"1": 0.02, "2": 0.06}},
        "chance": {"auroc": 0.5, "recall_at_2_percent": 0.02},
    },
}
CONFIG = {"steps": 30, "seed": 0, "loss": {"region": "tversky", "focal_gamma": 2.0}}
ENVIRONMENT = {
    "started": "2026-03-01T06:00:00+01:00",
    "command": f"steelsight train {HOSTILE}",
    "machine": {"processor": "A CPU", "gpu": None, "cuda": None, "threads": 2},
    "versions": {"torch": "2.13.0"},
    "code": {"commit": "f" * 40, "changed": True},
    "inputs": {"start": "imagenet", "data_sha256": "d" * 64},
    "settings": {"loss.region": {"value": "tversky", "default": "focal-tversky"}},
    "resumed": [{"started": "2026-03-02T06:00:00+01:00"}],
}
DATA = {
    "classes": [{"id": "1", "name": "1"}, {"id": "2", "name": HOSTILE}],
    "train": {"frames": 1234, "faulty": 34, "clean": 1200, "masked_by_type": {"1": 30, "2": 4}},
    "held_out": {"frames": 40, "faulty": 12, "clean": 28, "masked_by_type": {"1": 9, "2": 3}},
    "notes": [f"a note {HOSTILE}"],
}


def page_at(path):
    return Page(path.read_text(encoding="utf-8"))


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def flat(figures, prefix=""):
    row = {}
    for key, value in figures.items():
        if isinstance(value, dict):
            row |= flat(value, f"{prefix}{key}.")
        elif not isinstance(value, str | list):
            row[prefix + key] = "" if value is None else value
    return row


def write_run(folder, steps=30, summary=SUMMARY, data=DATA, sheets=(10, 20, 30)):
    folder.mkdir(parents=True)
    for name, value in (("config", CONFIG), ("environment", ENVIRONMENT), ("data", data)):
        (folder / f"{name}.json").write_text(json.dumps(value))
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))
    if steps:
        train = [
            {"step": s, "epoch": s / 9, "lr": 4e-4 / s, "total": 3 / s, "pixels": 0.2 / s,
             "region": 1 / s, "gradient_norm": 0.5 + 1 / s}
            for s in range(1, steps + 1)
        ]  # fmt: skip
        write_csv(folder / "metrics.csv", train)
        write_csv(
            folder / "timing.csv", [{"step": s, "crops_per_s": 30 + s % 3} for s in range(1, steps)]
        )
    looked = [s for s in (10, 20, 30) if s <= steps]
    if looked:
        guards = {10: 0.1, 20: 0.31, 30: 0.25}
        rows = [{"step": s, **flat(FIGURES | {"worst_type_detection": guards[s]})} for s in looked]
        write_csv(folder / "validation.csv", rows)
    (folder / "samples").mkdir()
    for step in sheets:
        picture = np.random.default_rng(step).integers(0, 255, (40, 300)).astype(np.uint8)
        assert cv2.imwrite(str(folder / "samples" / f"step-{step:06d}.jpg"), picture)
    return folder


@pytest.fixture
def page(tmp_path):
    """``page(**options of write_run)`` -> the parsed page."""

    def written(**options):
        return page_at(write_train_page(write_run(tmp_path / "coil 4711", **options)))

    return written


# The whole page ---------------------------------------------------------------------------------


def test_the_page_stands_alone_and_shows_hostile_text_as_text(page):
    found = page()
    assert not found.all("script")
    assert not found.all("link")
    assert "<script>alert" not in found.html
    assert "\u202e" not in found.html
    assert '<script>alert("1")</script>‹U+202E›&' in found.text
    assert all(img["src"].startswith("data:image/jpeg;base64,") for img in found.all("img"))
    assert all(a["href"].startswith(("#", "./")) for a in found.all("a"))
    anchors = {attrs["id"] for _, attrs in found.elements if "id" in attrs}
    assert {a["href"][1:] for a in found.all("a") if a["href"].startswith("#")} <= anchors


def test_the_same_files_give_the_same_bytes(tmp_path):
    folder = write_run(tmp_path / "run")
    first = write_train_page(folder).read_bytes()
    assert write_train_page(folder).read_bytes() == first
    assert len(first) < 200_000


def test_the_headline_says_what_was_reached(page):
    text = page().text
    assert "is detected with 0.31" in text
    assert "AUROC of 0.951" in text
    assert "mean Dice of 0.30" in text
    assert "Trained for 30 of 30 steps on 1,234 frames; measured on 40 frames" in text
    assert "kept are those of step 20" in text
    assert "NOT FINISHED" not in text


def test_figures_stand_beside_intervals_and_trivial_answers(page):
    rows = {row[0]: row[1:] for row in page().rows if row}
    assert rows["AUROC, faulty or not a faulty frame scores above a clean one"] == [
        "0.951 95 %: 0.910 to 0.970",
        "0.500 by chance",
    ]
    by_start = {name.split(" ")[0]: cells for name, cells in rows.items()}
    assert by_start["Kaggle"] == ["0.900", "0.866 mark nothing"]
    dice = next(cells for name, cells in rows.items() if name.startswith("Mean Dice on"))
    assert dice == ["0.300", "0.040 mark all"]
    precision = next(cells for name, cells in rows.items() if name.startswith("Average"))
    assert precision == ["0.830", "0.300 by chance"]  # 12 of 40
    assert not any(name.startswith("Faulty frames found at 5 %") for name in rows)
    assert rows["Type 1"] == ["9", "0.700", "–", "–", "0.900", "0.400", "0.350", "0.020"]
    worst = next(cells for name, cells in rows.items() if name.endswith("WORST"))
    assert worst == ["3", "0.310", "–", "–", "–", "0.200", "0.100", "0.060"]


def test_data_settings_and_environment_are_told(page):
    found = page()
    rows = {row[0]: row[1:] for row in found.rows if row}
    assert rows["Learned from"] == ["1,234", "1,200", "34", "30", "4"]
    assert rows["Held out"] == ["40", "28", "12", "9", "3"]
    assert rows["loss.region"] == ["tversky", "focal-tversky"]
    for told in ("commit " + "f" * 40 + ", with changes", "torch 2.13.0", "A CPU", "imagenet"):
        assert told in found.text
    assert "2026-03-02T06:00:00+01:00" in found.text
    assert "All 4 settings" in found.text


def test_charts_show_every_curve_and_mark_the_kept_step(page):
    found = page()
    labels = {svg.get("aria-label") for svg in found.all("svg")}
    for name in (
        "Loss", "Parts of the loss", "Learning rate", "Norm of the gradient", "Crops a second",
        "Detection of the worst type", "Detection of each type", "Dice of each type",
    ):  # fmt: skip
        assert f"{name} over the steps" in labels
    assert found.texts.count("kept: step 20") == 3
    assert "overlap 0.0333" in found.texts
    assert "worst 0.25" in found.texts


def test_sheets_are_shown_from_the_last_and_within_the_budget(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", sheets=range(1, 11))
    found = page_at(write_train_page(folder))
    steps = re.findall(r"Sample frames at step (\d+)", found.html)
    assert steps == ["10", "7", "4", "1"]
    embedded = base64.b64decode(found.all("img")[0]["src"].split(",")[1])
    assert embedded == (folder / "samples" / "step-000010.jpg").read_bytes()
    assert (found.all("img")[0]["width"], found.all("img")[0]["height"]) == ("300", "40")
    monkeypatch.setattr(train_page, "PICTURE_BYTES", 2 * len(embedded) + 2000)
    assert len(page_at(write_train_page(folder)).all("img")) == 2
    (folder / "samples" / "step-000010.jpg").write_bytes(b"")
    assert page_at(write_train_page(folder)).all("img")


# Less than everything ---------------------------------------------------------------------------


def test_a_killed_run_shows_its_best_validation(page):
    text = page(steps=25, summary=None, sheets=()).text
    assert "NOT FINISHED – 25 of 30 steps are done; figures are those" in text
    assert "is detected with 0.31" in text
    assert "Samples" not in text


def test_of_equally_good_validations_the_better_mean_then_the_first_count(tmp_path):
    folder = write_run(tmp_path / "run", summary=None)
    for rows, best in (
        ([(10, 0.5, 0.2), (20, 0.5, 0.3), (30, 0.5, 0.3)], 20),
        ([(10, "", 0.2), (20, "", ""), (30, "", 0.1)], 10),
        ([(10, 0.1, 0.9), (20, 0.2, ""), (30, "", 1)], 20),
    ):
        table = [
            {"step": s, "worst_type_detection": g, "mean_dice": 0.5, "types.1.detection": d}
            for s, g, d in rows
        ]
        write_csv(folder / "validation.csv", table)
        assert f"kept are those of step {best}." in page_at(write_train_page(folder)).text


def test_a_run_that_ended_early_says_so(page):
    assert "25 of 30 steps, ended early" in page(steps=25).text


def test_a_run_that_has_just_begun_has_a_page(page):
    text = page(steps=0, summary=None, sheets=()).text
    assert "NOT FINISHED – 0 of 30 steps are done." in text
    assert "No figures: nothing was held out" in text
    assert "Learned from" in text


def test_a_run_without_held_out_frames_shows_how_it_learned(tmp_path):
    folder = write_run(tmp_path / "final", summary=None, data=DATA | {"held_out": {"frames": 0}})
    (folder / "validation.csv").unlink()
    text = page_at(write_train_page(folder)).text
    assert "NOT FINISHED" not in text
    assert "Learning rate" in text
    assert "Worst type" not in text


def test_clean_frames_or_types_may_be_missing(page):
    unknown = {name: None for name in FIGURES if name not in {"types", "mean_dice"}}
    types = {"1": dict.fromkeys(TYPES["1"]), "2": TYPES["2"] | {"detection": None}}
    text = page(summary=FIGURES | unknown | {"types": types, "worst_type": None}).text
    assert "Masks overlap those people drew with a mean Dice of 0.30." in text
    assert "WORST" not in text


def test_figures_may_stand_one_level_deeper(page):
    assert "AUROC of 0.951" in page(summary={"best_step": 20, "held_out": FIGURES}).text


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    folder = write_run(tmp_path / "run", summary=None)
    with (folder / "metrics.csv").open("a") as file:
        file.write("31,0.0")
    assert "30 of 30 steps" in page_at(write_train_page(folder)).text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "[]", "expected a JSON object"),
        ("summary.json", "{", "expected a JSON object"),
        ("data.json", "[" * 100_000, "expected a JSON object"),
        ("metrics.csv", "step,loss\n1,x\n", "expected a table of numbers"),
        ("metrics.csv", "step,loss\n1,2,3\n", "expected a table of numbers"),
        ("validation.csv", "a,b\n1,2\n", "first column is not step"),
        ("timing.csv", b"step,\xff\n", "expected a table of numbers"),
    ],
)
def test_damaged_files_are_told_in_one_line(tmp_path, name, content, said):
    folder = write_run(tmp_path / "run")
    raw = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(raw)
    with pytest.raises(InputError, match=said) as caught:
        write_train_page(folder)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_odd_values_in_json_do_not_matter(page):
    odd = {"types": {"1": 3, "2": None}, "auroc": "x", "mean_dice": True, "baselines": []}
    assert "No figures" in page(summary=odd, data={"classes": [{"id": 1}], "train": 3}).text


def test_settings_alone_make_a_page(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "No figures" in page_at(write_train_page(tmp_path)).text
    data = {"classes": [{}], "train": {"frames": 1}, "notes": ["x"] * 30}
    (tmp_path / "data.json").write_text(json.dumps(data))
    (tmp_path / "environment.json").write_text('{"resumed": [1], "machine": [], "code": {}}')
    assert "and 10 more" in page_at(write_train_page(tmp_path)).text


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected the folder of a training run"):
        write_train_page(tmp_path)
    with pytest.raises(InputError, match="expected folders fold-0"):
        write_cross_validation_page(tmp_path)


# Cross-validation -------------------------------------------------------------------------------


@pytest.fixture
def folds(tmp_path):
    root = tmp_path / "cv"
    for fold, auroc in enumerate((0.90, 0.92, 0.97)):
        write_run(root / f"fold-{fold}", summary=SUMMARY | {"auroc": auroc})
    return root


def test_folds_are_told_with_mean_and_spread(folds):
    found = page_at(write_cross_validation_page(folds))
    rows = {row[0]: row[1:] for row in found.rows if row}
    assert rows["Figure"] == ["fold-0", "fold-1", "fold-2", "Mean ± SD"]
    # Standard deviation of a sample: sqrt((.03^2 + .01^2 + .04^2) / 2)
    assert rows["AUROC, faulty or not"] == ["0.900", "0.920", "0.970", "0.930 ± 0.036"]
    assert rows["Step that was kept"] == ["20", "20", "20", ""]
    assert "AUROC of faulty frames 0.930 ± 0.036" in found.text
    assert rows["Type 1"][:2] == ["0.700 ± 0.000", "–"]
    assert "./fold-1/report.html" in {a["href"] for a in found.all("a")}
    assert "All frames, each judged" not in found.text
    assert "./final/report.html" not in {a["href"] for a in found.all("a")}
    labels = {svg.get("aria-label") for svg in found.all("svg")}
    assert {"Loss of each fold", "Dice of each type in each fold"} <= labels
    assert found.html.count('class="dot"') == 2 * 2 * 3


def test_figures_over_all_frames_and_the_final_network_are_shown(folds):
    (folds / "summary.json").write_text(json.dumps(SUMMARY | {"auroc": 0.935}))
    write_train_page(write_run(folds / "final", summary=None))
    found = page_at(write_cross_validation_page(folds))
    rows = {row[0]: row[1:] for row in found.rows if row}
    name = "AUROC, faulty or not a faulty frame scores above a clean one"
    assert rows[name][0] == "0.935 95 %: 0.910 to 0.970"
    assert rows["Type 1"] == ["0.700 ± 0.000", "0.700", "0.400 ± 0.000", "0.400"]
    assert "./final/report.html" in {a["href"] for a in found.all("a")}


def test_folds_that_are_not_finished_are_named(folds):
    shutil.rmtree(folds / "fold-2")
    write_run(folds / "fold-10", steps=25, summary=None)
    text = page_at(write_cross_validation_page(folds)).text
    assert "Not finished: fold-10" in text
    assert text.index("fold-1 ") < text.index("fold-10 ")


# Charts -----------------------------------------------------------------------------------------


def plot(html):
    """The three pictures of a chart; the second is the plot."""
    return ET.fromstring(html.replace("&nbsp;", " ")).findall(f"{SVG}svg")


def points(svg):
    return [
        [tuple(map(float, p.split(","))) for p in line.get("points").split()]
        for line in svg.iter(f"{SVG}polyline")
    ]


def line(values, label="a", steps=None, **options):
    steps = np.arange(1, len(values) + 1) if steps is None else np.asarray(steps)
    return Line(label, steps.astype(float), np.asarray(values, float), "#123456", **options)


def test_points_are_where_their_values_are():
    _, svg, _ = plot(lines_html([line([0, 0.5, 1], steps=[10, 20, 40])], label="x", top=1))
    (drawn,) = points(svg)
    assert [x for x, _ in drawn] == [250, 500, 1000]
    bottom, top = drawn[0][1], drawn[2][1]
    assert drawn[1][1] == pytest.approx((bottom + top) / 2, abs=0.1)
    grid = [float(g.get("y1")) for g in svg.iter(f"{SVG}line") if g.get("class") == "grid"]
    assert min(grid) == pytest.approx(top, abs=0.1)


def test_long_curves_are_thinned_to_medians_without_losing_the_range():
    values = np.full(14_000, 2.0)
    values[7000] = 2.9
    values[3] = 0.5
    html = lines_html([line(values, band=True)], label="x", top=3)
    _, svg, names = plot(html)
    (drawn,) = points(svg)
    assert len(drawn) == train_page.MOST_POINTS
    assert len({y for _, y in drawn}) == 1  # one batch moves no median
    assert drawn[-1][0] == 1000
    band = next(svg.iter(f"{SVG}polygon")).get("points").split()
    heights = [float(p.split(",")[1]) for p in band]
    assert min(heights) < drawn[0][1] < max(heights)
    assert next(names.iter(f"{SVG}text")).text == "a 2"
    assert len(html) < 12_000


def test_what_is_not_finite_is_left_out():
    (drawn,) = points(plot(lines_html([line([1, np.nan, np.inf, 2])], label="x"))[1])
    assert len(drawn) == 2
    assert lines_html([line([np.nan])], label="x") == ""
    assert lines_html([], label="x") == ""
    (alone,) = points(plot(lines_html([line([1])], label="x"))[1])
    assert len(alone) == 2


def test_names_never_lie_upon_each_other():
    for values in ([0.5] * 12, [0.0] * 6, [1.0] * 6, [0.1, 0.11, 0.9, 0.91]):
        lines = [line([0.3, v], label=f"n{i}") for i, v in enumerate(values)]
        names = plot(lines_html(lines, label="x", top=1))[2]
        places = sorted(int(text.get("y")) for text in names.iter(f"{SVG}text"))
        assert len(places) == len(values)
        assert all(b - a >= 16 for a, b in itertools.pairwise(places))
        assert places[0] >= 8
        assert places[-1] <= int(names.get("height"))


@pytest.mark.parametrize(
    ("highest", "end"),
    [(0.97, 1), (1, 1), (1.2, 1.5), (37, 40), (4e-4, 4e-4), (0, 1), (9e-5, 1e-4)],
)
def test_scales_end_at_round_numbers(highest, end):
    scale = plot(lines_html([line([0, highest])], label="x"))[0]
    told = [text.text for text in scale.iter(f"{SVG}text")]
    assert told[0] == "0"
    assert float(told[-1]) == pytest.approx(end)
    assert 4 <= len(told) <= 6


def test_chart_texts_are_escaped():
    html = lines_html([line([1, 2], label=HOSTILE)], label=HOSTILE, marked=(1, HOSTILE))
    assert "<script" not in html
    plot(html)
