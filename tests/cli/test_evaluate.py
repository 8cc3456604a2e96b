"""``steelsight evaluate``: what people type, what they get, and with which exit code."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from steelsight import cli
from steelsight.bundle import DEFAULT_BUNDLE, load_bundle
from steelsight.cli.evaluate import evaluate
from steelsight.data.synthetic import CoilConfig, write_severstal
from steelsight.evaluation.predictions import Predictions
from steelsight.masks import coco_from_kaggle

# main() leaves it to cyclopts to read sys.argv, as the installed command does.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

FAST = ("--resamples", 50, "--threads", 1)
NOT_RECORDED = "Which frames the model learned from is not recorded"


@pytest.fixture(scope="module", autouse=True)
def _registered():
    if "evaluate" not in cli.app:
        cli.app.command(evaluate)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    config = CoilConfig(12, 5, 0.6, (320, 128), class_weights=(0.25, 0.25, 0.25, 0.25))
    return write_severstal(config, tmp_path_factory.mktemp("evaluate") / "drawn")


def run_once(*arguments: object) -> None:
    """As the fixture ``call``, for fixtures that live longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["steelsight", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 0


@pytest.fixture(scope="module")
def evaluated(drawn, tmp_path_factory) -> Path:
    """The shipped bundle on drawn frames."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    run_once("evaluate", drawn, "--out", out, "--save-predictions", *FAST)
    return out


@pytest.fixture(scope="module")
def inspected(drawn, tmp_path_factory) -> Path:
    """What ``inspect`` says about the same frames."""
    out = tmp_path_factory.mktemp("inspected") / "out"
    run_once("inspect", drawn / "images", "--out", out, "--no-overlays", "--threads", 1)
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def facts_of(out: Path) -> dict:
    return json.loads((out / "evaluation.json").read_text())


def submission(path: Path, drawn: Path, leave_out: int = 0) -> Path:
    """The labels as another tool would have found them, but for the last frames."""
    masks = {}
    for row in rows(drawn / "train.csv"):
        masks.setdefault(row["ImageId"], {})[row["ClassId"]] = row["EncodedPixels"]
    images = sorted(p.name for p in (drawn / "images").iterdir())
    lines = ["ImageId_ClassId,EncodedPixels"]
    for image in images[: len(images) - leave_out]:
        lines += [f"{image}_{c},{masks.get(image, {}).get(c, '')}" for c in "1234"]
    path.write_text("\n".join(lines) + "\n")
    return path


# A bundle ----------------------------------------------------------------------------------------


def test_what_it_leaves(evaluated, drawn):
    assert sorted(p.name for p in evaluated.iterdir()) == [
        "decision.toml", "evaluation.json", "frames.csv", "predictions.npz", "report.html",
    ]  # fmt: skip
    used = load_bundle().folder / "decision.toml"
    assert (evaluated / "decision.toml").read_bytes() == used.read_bytes()
    facts = facts_of(evaluated)
    assert facts["frames"]["seen"] == 12 == facts["frames"]["answered"]
    verdicts = facts["at_decision"]["verdicts"]
    assert sum(sum(of.values()) for of in verdicts.values()) == 12
    assert facts["about"]["model"] == load_bundle().id
    assert "Severstal frames, from an ImageNet start" in facts["about"]["trained_on"]
    assert facts["about"]["warnings"][0].startswith("The shipped bundle learned from Severstal's")
    table = rows(evaluated / "frames.csv")
    assert [row["image"] for row in table] == sorted(p.name for p in (drawn / "images").iterdir())
    ng_clean = sum(row["verdict"] == "NG" and row["label"] == "clean" for row in table)
    assert ng_clean == verdicts["clean"]["NG"]
    dice = [float(r["dice_3"]) for r in table if r["dice_3"]]
    assert np.mean(dice) == pytest.approx(facts["types"]["3"]["dice_delivered"]["value"], abs=1e-5)


def test_the_page_is_one_offline_file(evaluated):
    page = (evaluated / "report.html").read_text()
    assert "<script" not in page
    assert "The shipped bundle learned from Severstal" in page
    assert page.count("data:image/jpeg") >= 4, "label and answer of some frames"
    assert facts_of(evaluated)["summary"][0][:20] in page


def test_verdicts_are_those_of_inspect(call, evaluated, inspected, drawn, tmp_path):
    lines = (inspected / "results.jsonl").read_text().splitlines()
    expected = {line["image"]: line["verdict"] for line in map(json.loads, lines)}
    assert {row["image"]: row["verdict"] for row in rows(evaluated / "frames.csv")} == expected
    # The lines themselves, judged by the decision that made them.
    again = call("evaluate", drawn, "--predictions", inspected, "--out", tmp_path / "e", *FAST)
    assert again.code == 0, again.err
    table = rows(tmp_path / "e" / "frames.csv")
    assert {row["image"]: row["verdict"] for row in table} == expected
    ours, theirs = facts_of(evaluated), facts_of(tmp_path / "e")
    for key in ("escape_rate", "overkill_rate", "f1", "missed", "false_alarms"):
        assert theirs["at_decision"][key] == ours["at_decision"][key]


def test_kept_predictions_give_the_same(call, evaluated, drawn, tmp_path):
    decision = load_bundle().folder / "decision.toml"
    kept = evaluated / "predictions.npz"
    answer = call(
        *("evaluate", drawn, "--predictions", kept, "--decision", decision),
        *("--out", tmp_path / "e", *FAST),
    )
    assert answer.code == 0, answer.err
    once, again = facts_of(evaluated), facts_of(tmp_path / "e")
    assert again["about"]["model"] == once["about"]["model"]
    for key in ("frames", "ranking", "at_decision", "types", "calibration", "summary"):
        assert again[key] == once[key]
    beside = call(*("evaluate", drawn, "--predictions", kept, "--out", tmp_path / "b", *FAST))
    assert beside.code == 0
    assert facts_of(tmp_path / "b")["at_decision"] == once["at_decision"]
    alone = Path(shutil.copy(kept, tmp_path))
    undecided = call(*("evaluate", drawn, "--predictions", alone, "--out", tmp_path / "u", *FAST))
    assert undecided.code == 0
    assert "no verdicts: give --decision FILE" in undecided.out
    assert facts_of(tmp_path / "u")["at_decision"] is None


def test_a_decision_of_the_bundle_by_its_name(call, evaluated, drawn, tmp_path):
    """With a bundle, and for predictions that were kept."""
    text = (DEFAULT_BUNDLE / "first-look.toml").read_bytes()
    out = tmp_path / "asked"
    named = ("--decision", "first-look", *FAST)
    assert call("evaluate", drawn, "--out", out, "--save-predictions", *named).code == 0
    assert (out / "decision.toml").read_bytes() == text
    kept = ("--predictions", evaluated / "predictions.npz")
    again = tmp_path / "kept"
    assert call("evaluate", drawn, *kept, "--out", again, *named).code == 0
    assert facts_of(again)["at_decision"] == facts_of(out)["at_decision"]


def test_the_same_command_gives_the_same_bytes(call, drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = []
    for _ in range(2):
        path = submission(tmp_path / "s.csv", drawn)
        answer = call("evaluate", drawn, "--predictions", path, "--out", "e", "--overwrite", *FAST)
        assert answer.code == 0, answer.err
        contents.append({p.name: p.read_bytes() for p in (tmp_path / "e").iterdir()})
    assert contents[0] == contents[1]


def test_what_is_printed(call, drawn, tmp_path):
    (tmp_path / "set").mkdir()
    shutil.copytree(drawn / "images", tmp_path / "set" / "images")
    shutil.copy(drawn / "train.csv", tmp_path / "set")
    images = sorted((tmp_path / "set" / "images").iterdir())
    images[0].write_bytes(images[0].read_bytes()[:2000])
    listed = [f"{images[1].name},disputed", *(f"{p.name},clean" for p in images[10:])]
    masks = {row["ImageId"] for row in rows(drawn / "train.csv")}
    listed = [line for line in listed if line.partition(",")[0] not in masks or "disp" in line]
    (tmp_path / "set" / "images.csv").write_text("ImageId,status\n" + "\n".join(listed) + "\n")
    answer = call("evaluate", tmp_path / "set", "--out", tmp_path / "e", *FAST)
    assert answer.code == 3
    facts = facts_of(tmp_path / "e")
    assert facts["summary"][0] == answer.out.splitlines()[0]
    assert facts["frames"]["unanswered_reasons"] == {"truncated": 1}
    left_out = facts["about"]["left_out"]
    assert left_out["disputed"] == 1
    n = 11 - sum(left_out.values())
    assert f"12 images: {n} evaluated, 1 without an answer, " in answer.out
    assert f"{sum(left_out.values())} left out (1 disputed, " in answer.out
    assert "Without an answer: 1 truncated" in answer.out
    assert rows(tmp_path / "e" / "frames.csv")[-1]["verdict"] == "UNKNOWN"
    assert rows(tmp_path / "e" / "frames.csv")[-1]["reason"] == "truncated"


# Another tool ------------------------------------------------------------------------------------


def test_a_perfect_tool(call, drawn, tmp_path):
    path = submission(tmp_path / "s.csv", drawn)
    answer = call(
        *("evaluate", drawn, "--predictions", path, "--out", tmp_path / "e", "--json", *FAST)
    )
    assert answer.code == 0, answer.err
    facts = json.loads(answer.out)
    assert facts == facts_of(tmp_path / "e")
    assert facts["ranking"] is None
    assert facts["at_decision"]["escape_rate"]["value"] == 0
    assert facts["at_decision"]["overkill_rate"]["value"] == 0
    assert facts["kaggle"]["dice"]["value"] == 1
    assert facts["about"]["warnings"][0].startswith(NOT_RECORDED)


def test_frames_that_a_tool_lost(call, drawn, tmp_path):
    path = submission(tmp_path / "s.csv", drawn, leave_out=4)
    arguments = ("evaluate", drawn, "--predictions", path, *FAST)
    answer = call(*arguments, "--out", tmp_path / "a")
    assert answer.code == 3
    assert "Without an answer: 4 not-in-predictions" in answer.out
    assert facts_of(tmp_path / "a")["frames"]["unanswered"] == 4
    trusted = call(*arguments, "--out", tmp_path / "b", "--unmentioned-are-none")
    assert trusted.code == 0
    assert facts_of(tmp_path / "b")["frames"]["unanswered"] == 0


def test_coco_results_of_a_coco_data_set(call, drawn, tmp_path):
    assert call("data", "convert", drawn, "--to", "coco", "--out", tmp_path / "coco", "--place",
                "copy").code == 0  # fmt: skip
    (labels,) = (tmp_path / "coco").glob("**/*.json")
    document = json.loads(labels.read_text())
    ids = {image["file_name"].rpartition("/")[2]: image["id"] for image in document["images"]}
    categories = {c["name"]: c["id"] for c in document["categories"]}
    results = [
        {
            "image_id": ids[row["ImageId"]],
            "category_id": categories[row["ClassId"]],
            "score": 0.6 + 0.01 * n,
            "segmentation": coco_from_kaggle(row["EncodedPixels"], (320, 128)),
        }
        for n, row in enumerate(r for r in rows(drawn / "train.csv") if r["EncodedPixels"])
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    answer = call(
        *("evaluate", tmp_path / "coco", "--predictions", path, "--unmentioned-are-none"),
        *("--out", tmp_path / "e", *FAST),
    )
    assert answer.code == 0, answer.err
    facts = facts_of(tmp_path / "e")
    assert facts["ranking"]["auroc"]["value"] == 1
    assert facts["mean"]["dice_delivered"]["value"] == 1


# Splits ------------------------------------------------------------------------------------------


def test_a_part_of_a_split(call, drawn, tmp_path):
    split = tmp_path / "split.json"
    assert call("data", "split", drawn, "--out", split).code == 0
    path = submission(tmp_path / "s.csv", drawn)
    answer = call(
        *("evaluate", drawn, "--predictions", path, "--split", split, "--part", "val"),
        *("--out", tmp_path / "e", *FAST),
    )
    assert answer.code == 0, answer.err
    facts = facts_of(tmp_path / "e")
    parts = {part["name"]: part["frames"] for part in json.loads(split.read_text())["parts"]}
    assert facts["frames"]["seen"] == parts["val"]
    assert facts["about"]["part"] == "val"
    assert facts["about"]["left_out"] == {"other part of the split": 12 - parts["val"]}


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--predictions", "p.csv", "--bundle", "b"), "expected --bundle or --predictions, got"),
        (("--predictions", "p.csv"), "p.csv does not exist"),
        (("--predictions", "p.csv", "--cam", "2"), "--cam looks into a bundle's networks"),
        (("--bundle", "nowhere"), "expected a bundle"),
        (("--part", "test"), "--part test names a part of a split: give --split too"),
        (("--resamples", "0"), "expected --resamples from 1, got 0"),
        (("--cam", "-1"), "expected --cam from 0"),
        (("--weights", "w"), "--weights with --cam only"),
        (("--group-by", "coil"), "the column 'coil' is not there"),
    ],
)
def test_one_line_for_each_mistake(call, drawn, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    answer = call("evaluate", drawn, *options)
    assert answer.code == 1
    assert said in answer.err
    lines = [line for line in answer.err.splitlines() if line.startswith("steelsight:")]
    assert len(lines) == 1
    assert "Traceback" not in answer.err
    assert not (tmp_path / "evaluation").exists()


def test_nothing_is_overwritten_unasked(call, evaluated, drawn):
    before = (evaluated / "report.html").read_bytes()
    answer = call("evaluate", drawn, "--out", evaluated, *FAST)
    assert answer.code == 1
    assert "is there already, perhaps from an earlier evaluation" in answer.err
    assert (evaluated / "report.html").read_bytes() == before
    inside = call("evaluate", drawn, "--out", drawn / "e", *FAST)
    assert "lies in the data set itself" in inside.err


def test_a_decision_of_others_is_refused(call, drawn, inspected, tmp_path):
    own = (load_bundle().folder / "decision.toml").read_text()
    (tmp_path / "d.toml").write_text(own.replace("version = 1", "version = 1 # mine"))
    answer = call(
        *("evaluate", drawn, "--predictions", inspected, "--decision", tmp_path / "d.toml"),
        *("--out", tmp_path / "e", *FAST),
    )
    assert answer.code == 1
    assert f"expected the decision {load_bundle().decision.id} that made these" in answer.err


def test_without_the_extra_there_is_one_line(call, drawn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "steelsight.training.gradcam", None)
    answer = call("evaluate", drawn, "--cam", 1, "--out", tmp_path / "e", *FAST)
    assert answer.code == 1
    assert "pip install 'steelsight[train]'" in answer.err


def test_a_shipped_bundle_without_weights_says_so(call, drawn, tmp_path):
    pytest.importorskip("torch")
    answer = call("evaluate", drawn, "--cam", 1, "--out", tmp_path / "e", *FAST)
    assert answer.code == 1
    assert "weights" in answer.err


def test_what_both_stages_looked_at(call, drawn, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from steelsight.training import gradcam

    asked = []

    def fake(network, grey_hw, *, type_index, pixel_from):
        asked.append((network, type_index))
        return gradcam.CamMaps(*np.zeros((2, *grey_hw.shape), np.float32))

    monkeypatch.setattr(gradcam, "load_network", lambda source, sha256: (source, sha256))
    monkeypatch.setattr(gradcam, "gradcam", fake)
    weights = tmp_path / "w.safetensors"
    answer = call(
        *("evaluate", drawn, "--cam", 2, "--weights", weights, "--out", tmp_path / "e", *FAST)
    )
    assert answer.code == 0, answer.err
    page = (tmp_path / "e" / "report.html").read_text()
    assert "What made it look faulty" in page
    assert len(asked) == 2
    assert asked[0][0] == (weights, load_bundle().manifest.training.weights_sha256)
    assert all(index in (None, 0, 1, 2, 3) for _, index in asked)


def test_names_cannot_run_as_formulas(call, drawn, tmp_path):
    (tmp_path / "set" / "images").mkdir(parents=True)
    image = next((drawn / "images").iterdir())
    (tmp_path / "set" / "images" / "=1+1.jpg").write_bytes(image.read_bytes())
    (tmp_path / "set" / "images.csv").write_text("ImageId,status\n=1+1.jpg,clean\n")
    (tmp_path / "set" / "train.csv").write_text("ImageId,ClassId,EncodedPixels\n")
    answer = call("evaluate", tmp_path / "set", "--out", tmp_path / "e", *FAST)
    assert answer.code == 0, answer.err
    assert rows(tmp_path / "e" / "frames.csv")[0]["image"] == "'=1+1.jpg"


def test_groups_of_a_column(call, drawn, tmp_path):
    listed = tmp_path / "coils.csv"
    images = sorted(p.name for p in (drawn / "images").iterdir())
    listed.write_text(
        "ImageId,coil\n" + "".join(f"{image},c{n // 6}\n" for n, image in enumerate(images))
    )
    path = submission(tmp_path / "s.csv", drawn)
    answer = call(
        *("evaluate", drawn, "--predictions", path, "--frame-list", listed, "--group-by", "coil"),
        *("--save-predictions", "--out", tmp_path / "e", *FAST),
    )
    assert answer.code == 0, answer.err
    kept = Predictions.load(tmp_path / "e" / "predictions.npz")
    assert len(set(kept.groups.tolist())) == 2
    assert facts_of(tmp_path / "e")["frames"]["groups"] == 2
