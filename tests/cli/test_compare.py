"""``steelsight compare`` and ``steelsight data audit-labels`` on small drawn data."""

import csv
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from cyclopts import App
from tests.predicted import predictions_of, random_predictions

from steelsight.cli.compare import compare
from steelsight.cli.terminal import DONE, SOME_UNKNOWN
from steelsight.errors import InputError

DECISION = """version = 1
name = "test"
rule = "none"
chosen_on = "nothing"
[gate]
clear_below = 0.3
ng_from = 0.7
[input]
min_contrast = 2.0
""" + "".join(
    f"[types.{c}]\nlabel_from = 0.9\npixel_from = 0.5\nmin_area_px = 100\n" for c in "abc"
)


def run(*arguments):
    app = App(name="steelsight", result_action="return_value")
    app.command(compare)
    return app(["compare", *map(str, arguments)])


@pytest.fixture
def sides(tmp_path):
    """Two evaluation folders on the same 60 frames."""
    first = random_predictions(0)
    second = replace(first, faulty_logits=first.faulty_logits + 3 * first.faulty.astype("f4"))
    folders = []
    for name, predictions in (("old", first), ("new", second)):
        folder = tmp_path / name
        folder.mkdir()
        predictions.save(folder / "predictions.npz")
        (folder / "decision.toml").write_text(DECISION)
        folders.append(folder)
    return folders


def test_two_folders_are_compared(sides, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*sides, "--out", out, "--resamples", 100) == DONE
    text = capsys.readouterr().out
    facts = json.loads((out / "comparison.json").read_text())
    assert facts["summary"][0] in text
    assert "escape rate" in text
    assert "Frames that flip: " in text
    with (out / "flips.csv").open() as file:
        flips = list(csv.DictReader(file))
    assert [flip["image"] for flip in flips] == [flip["image"] for flip in facts["flips"]]
    assert flips
    page = (out / "report.html").read_text()
    assert "old or new" in page
    assert page.count("<svg") > 10


def test_json_is_one_object_and_the_same_each_time(sides, tmp_path, capsys):
    answers = []
    for name in ("x", "y"):
        assert run(*sides, "--out", tmp_path / name, "--resamples", 50, "--json") == DONE
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    facts = json.loads(answers[0])
    assert facts["frames"]["compared"] == 60
    assert facts["mcnemar"]["all"]["frames"] == 60
    one, two = ((tmp_path / name / "comparison.json").read_bytes() for name in ("x", "y"))
    assert one == two


def test_flipped_frames_are_shown_from_the_data_set(sides, tmp_path, capsys):
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    for n in range(60):
        cv2.imwrite(str(data / "images" / f"{n}.jpg"), np.full((64, 64), 100, np.uint8))
    (data / "train.csv").write_text(
        "ImageId,ClassId,EncodedPixels\n" + "".join(f"{n}.jpg,1,65 20\n" for n in range(60))
    )
    out = tmp_path / "out"
    assert run(*sides, "--out", out, "--resamples", 20, "--data", data) == DONE
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") >= 1
    assert "Faulty frames that only B finds" in page


def test_decisions_can_be_given(sides, tmp_path, capsys):
    for folder in sides:
        (folder / "decision.toml").unlink()
    assert run(*sides, "--out", tmp_path / "bare", "--resamples", 20) == DONE
    assert "give --decision-a and --decision-b" in capsys.readouterr().out
    decision = tmp_path / "decision.toml"
    decision.write_text(DECISION)
    given = ("--decision-a", decision, "--decision-b", decision)
    assert run(*sides, *given, "--out", tmp_path / "out", "--resamples", 20) == DONE
    assert json.loads((tmp_path / "out/comparison.json").read_text())["mcnemar"]


def test_an_earlier_comparison_is_not_replaced_unasked(sides, tmp_path, capsys):
    out = tmp_path / "out"
    run(*sides, "--out", out, "--resamples", 20)
    with pytest.raises(InputError, match="--overwrite"):
        run(*sides, "--out", out, "--resamples", 20)
    assert run(*sides, "--out", out, "--resamples", 20, "--overwrite") == DONE


@pytest.mark.parametrize(
    ("wrong", "said"), [(("--resamples", 0), "from 1, got 0"), (("--seed", -1), "from 0, got -1")]
)
def test_wrong_numbers_are_refused(sides, tmp_path, wrong, said):
    with pytest.raises(InputError, match=said):
        run(*sides, "--out", tmp_path / "out", *wrong)


def test_a_path_without_predictions_is_refused(sides, tmp_path):
    with pytest.raises(InputError, match=r"expected predictions\.npz"):
        run(sides[0], tmp_path, "--out", tmp_path / "out")
    with pytest.raises(InputError, match="cannot be read"):
        run(sides[0], tmp_path / "gone.npz", "--out", tmp_path / "out")


# Labels ------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(tmp_path):
    """A data set of 24 frames, two of them with a wrong label, and a run that did not learn it."""
    data, run_folder = tmp_path / "data", tmp_path / "run"
    (data / "images").mkdir(parents=True)
    run_folder.mkdir()
    rows = ["ImageId,ClassId,EncodedPixels"]
    listed = ["ImageId,status"]
    faulty = np.arange(24) < 8
    labelled_so = faulty.copy()
    labelled_so[[2, 20]] = ~labelled_so[[2, 20]]
    inside = np.zeros((24, 1, 50), np.int64)
    outside = inside.copy()
    outside[:, 0, 0] = 4000
    for n in range(24):
        cv2.imwrite(str(data / "images" / f"{n}.jpg"), np.full((64, 64), 90, np.uint8))
        listed.append(f"{n}.jpg,{'faulty' if labelled_so[n] else 'clean'}")
        if labelled_so[n]:
            rows.append(f"{n}.jpg,1,65 20")
            inside[n, 0, 40 if faulty[n] else 0] = 20
    (data / "train.csv").write_text("\n".join(rows) + "\n")
    (data / "images.csv").write_text("\n".join(listed) + "\n")
    scores = np.where(faulty, 0.9, 0.05)[:, None]
    predictions = predictions_of(
        labelled_so[:, None],
        class_ids=("1",),
        masked_nk=labelled_so[:, None],
        faulty_logits=np.where(faulty, 4, -4),
        head_probabilities_nk=scores,
        peaks_nk=scores,
        inside_nkb=inside,
        outside_nkb=outside,
    )
    predictions.save(run_folder / "predictions.npz")
    (run_folder / "split.json").write_text("{}")
    return data, run_folder


def test_wrong_labels_come_first_and_become_tasks(labelled, tmp_path, call):
    data, run_folder = labelled
    out = tmp_path / "audit"
    answer = call(
        *("data", "audit-labels", data, "--predictions", run_folder, "--out", out),
        *("--export", "label-studio"),
    )
    assert answer.code == DONE
    assert "2 of 24 frames have a label that the network contradicts" in answer.out
    facts = json.loads((out / "suspects.json").read_text())
    assert facts["out_of_fold"] is True
    assert {s["image"] for s in facts["suspects"]} == {"2.jpg", "20.jpg"}
    assert {s["kind"] for s in facts["suspects"]} == {"clean", "absent"}
    with (out / "suspects.csv").open() as file:
        assert {row["image"] for row in csv.DictReader(file)} == {"2.jpg", "20.jpg"}
    tasks = json.loads((out / "label-studio" / "label_studio.json").read_text())
    assert len(tasks) == 2
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") == 2
    assert "WARNING" not in page
    again = call("data", "audit-labels", data, "--predictions", run_folder, "--out", out)
    assert again.code == 1
    assert "--overwrite" in again.err


def test_a_corrected_label_is_not_asked_about_again(labelled, tmp_path, call):
    data, run_folder = labelled
    listed = (data / "images.csv").read_text().replace("20.jpg,faulty", "20.jpg,clean")
    (data / "images.csv").write_text(listed)
    rows = (data / "train.csv").read_text().replace("20.jpg,1,65 20\n", "")
    (data / "train.csv").write_text(rows)
    answer = call(
        *("data", "audit-labels", data, "--predictions", run_folder / "predictions.npz"),
        *("--out", tmp_path / "audit", "--json", "--top", 1),
    )
    facts = json.loads(answer.out)
    assert facts["changed"] == 1
    assert [s["image"] for s in facts["suspects"]] == ["2.jpg"]


def test_predictions_of_unknown_origin_are_warned_about(labelled, tmp_path, call):
    data, run_folder = labelled
    (run_folder / "split.json").unlink()
    answer = call(
        *("data", "audit-labels", data, "--predictions", run_folder, "--out", tmp_path / "audit")
    )
    assert answer.code == DONE
    assert "warning: It is not recorded" in answer.err
    assert "WARNING" in (tmp_path / "audit/report.html").read_text()
    assert json.loads((tmp_path / "audit/suspects.json").read_text())["out_of_fold"] is False


def test_broken_labels_are_told_and_the_rest_is_audited(labelled, tmp_path, call):
    data, run_folder = labelled
    with (data / "train.csv").open("a") as file:
        file.write("5.jpg,1,99999 9\n")
    answer = call(
        *("data", "audit-labels", data, "--predictions", run_folder, "--out", tmp_path / "audit")
    )
    assert answer.code == SOME_UNKNOWN
    assert json.loads((tmp_path / "audit/suspects.json").read_text())["missing"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--top", "0"), "expected --top from 1"),
        (("--export", "cvat"), "expected --export label-studio"),
        (("--out", "data/audit"), "lies in the data set itself"),
    ],
)
def test_wrong_options_of_the_audit_are_refused(labelled, call, monkeypatch, options, said):
    data, run_folder = labelled
    monkeypatch.chdir(data.parent)
    answer = call("data", "audit-labels", "data", "--predictions", run_folder, *options)
    assert answer.code == 1
    assert said in answer.err
    assert answer.err.count("\n") == 1
