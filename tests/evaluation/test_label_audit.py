"""Planted label errors must be among the first suspects; real ones on the shared frames, too."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.predicted import one_region_each, predictions_of, random_predictions

from steelsight.data.formats import label_studio
from steelsight.data.labels import FrameLabels, LabelClass, LabelSet, ReadOptions
from steelsight.data.predictions import confident_suspects
from steelsight.errors import InputError
from steelsight.evaluation.label_audit import (
    MODEL_VERSION,
    Kind,
    audit_labels,
    export_label_studio,
    held_out_problem,
    match_labels,
    suspect_rows,
)
from steelsight.evaluation.predictions import BINS, MASK_LOGIT_EDGES, Unanswered
from steelsight.masks import encode_rle

TYPES = ("a", "b", "c")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def honest(seed, n=600):
    """A network that sees what is there, with noise, and labels that are right."""
    rng = np.random.default_rng(seed)
    present = np.zeros((n, 3), bool)
    faulty = rng.random(n) < 0.3
    present[np.arange(n), rng.integers(3, size=n)] = faulty
    present[:, 0] |= faulty & (rng.random(n) < 0.1)
    inside = np.zeros((n, 3, BINS), np.int64)
    outside = inside.copy()
    hit = (1000 * np.clip(rng.normal(0.85, 0.08, (n, 3)), 0, 1)).astype(int)
    inside[..., 35] = hit * present
    inside[..., 5] = (1000 - hit) * present
    outside[..., 35] = rng.integers(50, 250, (n, 3)) * present
    outside[..., 5] = 50_000  # the steel around it
    return predictions_of(
        present,
        class_ids=TYPES,
        masked_nk=present,
        faulty_logits=rng.normal(0, 1.2, n) + np.where(faulty, 3, -3),
        head_probabilities_nk=sigmoid(rng.normal(0, 1, (n, 3)) + np.where(present, 2.5, -3)),
        peaks_nk=sigmoid(rng.normal(0, 1, (n, 3)) + np.where(present, 2.5, -3)),
        inside_nkb=inside,
        outside_nkb=outside,
    )


def plant(predictions, seed, each=8):
    """Label errors of each kind; who has which."""
    rng = np.random.default_rng(seed)
    present, inside = predictions.present_nk.copy(), predictions.inside_nkb.copy()
    faulty = rng.permutation(np.flatnonzero(predictions.faulty & (present.sum(1) == 1)))
    clean = rng.permutation(np.flatnonzero(~predictions.faulty))
    forgotten, relabelled, shifted = np.split(faulty[: 3 * each], 3)
    invented = clean[:each]
    present[forgotten] = False
    inside[forgotten] = 0
    for n in relabelled:
        k = int(present[n].argmax())
        present[n] = np.roll(present[n], 1)
        inside[n] = np.roll(inside[n], 1, axis=0)
        inside[n, (k + 1) % 3, 5] += inside[n, (k + 1) % 3, 35]
        inside[n, (k + 1) % 3, 35] = 0
    for n in shifted:
        inside[n, :, 5] += inside[n, :, 35] * 9 // 10
        inside[n, :, 35] -= inside[n, :, 35] * 9 // 10
    for n in invented:
        present[n, rng.integers(3)] = True
    masked = present & inside.any(axis=2)
    planted = replace(
        predictions,
        present_nk=present,
        faulty=present.any(axis=1),
        masked_nk=masked,
        inside_nkb=inside,
        **one_region_each(inside),
    )
    named = {
        "forgotten": forgotten, "relabelled": relabelled, "shifted": shifted, "invented": invented
    }  # fmt: skip
    return planted, {name: {f"{n}.jpg" for n in frames} for name, frames in named.items()}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_errors_are_among_the_first(seed):
    predictions, planted = plant(honest(seed), seed)
    audit = audit_labels(predictions)
    wrong = set().union(*planted.values())
    assert len(wrong) == 32
    assert audit.frames == 600
    first = {suspect.image for suspect in audit.suspects[:40]}
    assert len(first & wrong) >= 28, "of 32 planted errors in 600 frames, among the first 40"
    kinds = {suspect.image: suspect.kind for suspect in audit.suspects}
    for name, kind in (
        ("forgotten", Kind.CLEAN),
        ("invented", Kind.ABSENT),
        ("shifted", Kind.OUTLINE),
    ):
        found = [kinds.get(image) for image in planted[name]]
        assert found.count(kind) >= 5, name
    doubts = [suspect.doubt for suspect in audit.suspects]
    assert doubts == sorted(doubts, reverse=True)
    assert all(0 <= doubt <= 1 for doubt in doubts)
    assert len(kinds) == len(audit.suspects), "each frame once"


def test_right_labels_of_a_sure_network_are_left_alone():
    predictions = honest(5)
    sure = replace(
        predictions,
        faulty_logits=np.where(predictions.faulty, 6, -6).astype(np.float32),
        head_probabilities_nk=np.where(predictions.present_nk, 0.98, 0.02).astype(np.float32),
        peaks_nk=np.where(predictions.present_nk, 0.98, 0.02).astype(np.float32),
    )
    assert audit_labels(sure).suspects == ()


@pytest.mark.parametrize("seed", range(3))
def test_suspects_are_those_of_confident_learning(seed):
    predictions = random_predictions(seed, n=200)
    audit = audit_labels(predictions)
    every = [s for first in audit.suspects for s in (first, *audit.further.get(first.image, ()))]
    assert len(every) == len({(s.image, s.kind, s.class_id) for s in every})

    def of(*kinds, class_id=None):
        return {s.image for s in every if s.kind in kinds and s.class_id == class_id}

    def named(chosen):
        return {predictions.images[n] for n in np.flatnonzero(chosen)}

    faulty, p = predictions.faulty, predictions.faulty_probability
    assert of(Kind.CLEAN) == named(confident_suspects(faulty, p) & ~faulty)
    for k, class_id in enumerate(predictions.class_ids):
        present, score = predictions.present_nk[:, k], predictions.type_scores_nk[:, k]
        expected = named(confident_suspects(present, score))
        assert of(Kind.ABSENT, Kind.UNLABELLED, class_id=class_id) == expected
    for suspect in every:
        if suspect.kind is Kind.CLEAN:
            n = predictions.images.index(suspect.image)
            assert suspect.confidence == pytest.approx(1 - p[n])
            assert suspect.average == pytest.approx((1 - p[~faulty]).mean())
            assert suspect.doubt == pytest.approx(1 - suspect.confidence / suspect.average)


def test_outlines_by_a_plain_loop():
    predictions, _ = plant(honest(7), 7)
    audit = audit_labels(predictions)
    every = [s for first in audit.suspects for s in (first, *audit.further.get(first.image, ()))]
    told = {(s.image, s.class_id): s for s in every if s.kind is Kind.OUTLINE}
    expected = {}
    for k, class_id in enumerate(TYPES):
        masked = np.flatnonzero(predictions.masked_nk[:, k])
        means = []
        for edge in range(len(MASK_LOGIT_EDGES)):
            dice = []
            for n in masked:
                true = predictions.inside_nkb[n, k, edge + 1 :].sum()
                drawn = true + predictions.outside_nkb[n, k, edge + 1 :].sum()
                dice.append(2 * true / (drawn + predictions.inside_nkb[n, k].sum()))
            means.append((np.mean(dice), dice))
        average, dice = max(means, key=lambda entry: entry[0])
        present, score = predictions.present_nk[:, k], predictions.type_scores_nk[:, k]
        for n, value in zip(masked, dice, strict=True):
            if score[n] >= score[present].mean() and value < average / 2:
                expected[predictions.images[n], class_id] = value
    assert told.keys() == expected.keys()
    assert expected
    for key, suspect in told.items():
        assert suspect.confidence == pytest.approx(expected[key])
        assert suspect.iou == pytest.approx(expected[key] / (2 - expected[key]))
        assert "network's mask" in suspect.sentence({})


def test_what_cannot_be_checked_is_said():
    clean = predictions_of(np.zeros((5, 1), bool), faulty_logits=[-1, -2, np.nan, -1, -3])
    clean = replace(clean, unanswered=(Unanswered("x.jpg", "blank", faulty=False),))
    audit = audit_labels(clean)
    assert audit.suspects == ()
    assert audit.frames == 4
    assert audit.not_checked["frames"] == "2 have no answer"
    assert "clean or faulty" in audit.not_checked
    assert "type a" in audit.not_checked
    masks = audit_labels(replace(random_predictions(0), scored=False))
    assert masks.not_checked["scores"] == "masks alone are known, and no scores"
    # Faulty without a type: nobody knows which, so it is no example of "without type a".
    odd = predictions_of(
        [[True], [False], [False]],
        faulty=[True, True, False],
        faulty_logits=[2, 2, -2],
        head_probabilities_nk=[[0.9], [0.95], [0.1]],
    )
    assert all(s.class_id is None for s in audit_labels(odd).suspects)


def test_the_table_is_complete_and_cannot_run_as_a_formula():
    predictions, _ = plant(honest(1), 1)
    images = ("=HYPERLINK(1).jpg", *predictions.images[1:])
    logits = predictions.faulty_logits.copy()
    present = predictions.present_nk[0]
    logits[0] = -9 if present.any() else 9
    predictions = replace(predictions, images=images, faulty_logits=logits)
    audit = audit_labels(predictions)
    rows = list(suspect_rows(audit))
    assert {len(row) for row in rows} == {11}
    assert len(rows) == 1 + len(audit.suspects) + sum(map(len, audit.further.values()))
    assert not any(cell.startswith("=") for row in rows for cell in row)
    json.dumps(audit.to_json(), allow_nan=False)
    assert sum(audit.counts().values()) == len(audit.suspects)


# Out of fold -------------------------------------------------------------------------------------


def test_predictions_that_learned_the_label_are_refused_or_doubted(tmp_path):
    file = tmp_path / "predictions.npz"
    bare = random_predictions(0)
    assert "not recorded" in held_out_problem(file, bare)
    learned = replace(bare, about={"learned_from": 3})
    with pytest.raises(InputError, match="learned from 3 of the 60 frames"):
        held_out_problem(file, learned)
    fresh = replace(bare, about={"learned_from": 0, "warnings": []})
    assert held_out_problem(file, fresh) is None
    unsure = replace(bare, about={"learned_from": 0, "warnings": ["Not recorded."]})
    assert held_out_problem(file, unsure) is not None
    (tmp_path / "split.json").write_text("{}")  # a training run holds out what it predicts
    assert held_out_problem(file, bare) is None


# With a data set ---------------------------------------------------------------------------------


def drawn_set(folder: Path, predictions, *, mask=True):
    """Images and labels that are those of the predictions."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    frames, paths = {}, {}
    for n, image in enumerate(predictions.images):
        path = folder / "images" / image
        cv2.imwrite(str(path), np.full((64, 64), 40 + n, np.uint8))
        rles = {}
        for k, class_id in enumerate(predictions.class_ids):
            pixels = int(predictions.inside_nkb[n, k].sum())
            if pixels:
                mask_hw = np.zeros(64 * 64, bool)
                mask_hw[:pixels] = True
                rles[class_id] = encode_rle(mask_hw.reshape(64, 64))
        blind = [
            c
            for c, on in zip(predictions.class_ids, predictions.present_nk[n], strict=True)
            if on and c not in rles
        ]
        frames[image] = FrameLabels(image, rles, types_without_mask=tuple(blind))
        paths[image] = path
    classes = tuple(LabelClass(c, f"kind {c}") for c in predictions.class_ids)
    return LabelSet("severstal", folder, classes, frames, paths)


def test_only_labels_that_are_still_the_same_are_audited(tmp_path):
    predictions = random_predictions(0, n=12, clean=0.3)
    labels = drawn_set(tmp_path, predictions)
    assert match_labels(predictions, labels) == (pytest.approx(np.ones(12, bool)), 0, 0)
    frames = dict(labels.frames)
    masked = next(i for i, f in frames.items() if f.rle_by_class)
    clean = next(i for i, f in frames.items() if f.clean)
    typed = next(i for i, f in frames.items() if not f.clean and i != masked)
    class_id = next(iter(frames[masked].rle_by_class))
    frames[masked] = replace(
        frames[masked], rle_by_class={**frames[masked].rle_by_class, class_id: "1 7"}
    )
    frames[clean] = replace(frames[clean], disputed=True)
    del frames[typed]
    matched = match_labels(predictions, replace(labels, frames=frames))
    assert (matched.missing, matched.changed) == (1, 2)
    gone = {predictions.images[n] for n in np.flatnonzero(~matched.same_n)}
    assert gone == {masked, clean, typed}


def test_labels_of_another_data_set_are_refused(tmp_path):
    predictions = random_predictions(0, n=12, clean=0.3)
    labels = drawn_set(tmp_path, predictions)
    other = replace(predictions, images=tuple(f"x{i}" for i in predictions.images))
    with pytest.raises(InputError, match="no frame of the predictions"):
        match_labels(other, labels)
    with pytest.raises(InputError, match="use the types c, the predictions know"):
        match_labels(replace(predictions, class_ids=("a", "b", "x")), labels)


def test_suspects_become_tasks_whose_present_label_is_to_be_corrected(tmp_path):
    predictions = random_predictions(0, n=40, clean=0.3)
    labels = drawn_set(tmp_path / "data", predictions)
    audit = audit_labels(predictions)
    suspects = audit.suspects[::-1][:6]
    assert any(labels.frames[s.image].rle_by_class for s in suspects)
    assert any(labels.frames[s.image].types_without_mask for s in suspects)
    out = tmp_path / "tasks"
    export_label_studio(suspects, labels, out, {"a": "Type a"})
    tasks = json.loads((out / "label_studio.json").read_text())
    assert [task["data"]["rank"] for task in tasks] == [str(n) for n in range(1, 7)]
    for task, suspect in zip(tasks, suspects, strict=True):
        assert task["annotations"] == [], "nobody has looked at it yet"
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == MODEL_VERSION
        assert prediction["score"] == pytest.approx(1 - suspect.doubt, abs=1e-6)
        assert task["data"]["kind"] == suspect.kind.value
        assert task["data"]["image"].endswith(suspect.image)
        assert (out / "images" / suspect.image).is_file()
    again = tmp_path / "again"
    export_label_studio(suspects, labels, again, {"a": "Type a"})
    name = "label_studio.json"
    assert (again / name).read_bytes() == (out / name).read_bytes()
    # As they are they are no labels; submitted as they are they are the old ones.
    assert label_studio.read(out, ReadOptions()).frames == {}
    for task in tasks:
        task["annotations"] = [
            {"id": 1, "was_cancelled": False, "result": task.pop("predictions")[0]["result"]}
        ]
    (out / name).write_text(json.dumps(tasks))
    back = label_studio.read(out, ReadOptions())
    names = {c.id: c.name for c in back.classes}
    for suspect in suspects:
        told = {names[c]: rle for c, rle in back.frames[suspect.image].rle_by_class.items()}
        present = labels.frames[suspect.image].rle_by_class
        assert told == {f"kind {c}": rle for c, rle in present.items()}


def test_a_damaged_image_of_a_suspect_is_one_line(tmp_path):
    predictions = random_predictions(0, n=40, clean=0.3)
    labels = drawn_set(tmp_path / "data", predictions)
    suspect = audit_labels(predictions).suspects[0]
    labels.image_paths[suspect.image].write_bytes(b"no image")
    with pytest.raises(InputError, match="expected the image of a suspect label"):
        export_label_studio([suspect], labels, tmp_path / "out", {})


# Real frames -------------------------------------------------------------------------------------


def test_real_label_errors_are_found_from_real_out_of_fold_scores(shared_dir):
    """40 of 748 Severstal frames are officially clean and visibly defective."""
    with (shared_dir / "weights/out_of_fold.csv").open() as file:
        rows = list(csv.DictReader(file))
    wrong = {row["ImageId"] for row in rows if row["kind"] == "gross"}
    present = [[row["kind"] != "gross" and c in row["classes"] for c in "1234"] for row in rows]
    columns = {
        name: np.array([[float(row[f"{name}_{c}"]) for c in "1234"] for row in rows])
        for name in ("avg", "mil", "gate")
    }
    heads = (sigmoid(columns["avg"]) + sigmoid(columns["mil"])) / 2
    predictions = predictions_of(
        present,
        class_ids=tuple("1234"),
        images=tuple(row["ImageId"] for row in rows),
        faulty_logits=[float(row["faulty_logit"]) for row in rows],
        head_probabilities_nk=heads,
        peaks_nk=np.clip(3 * columns["gate"] - 2 * heads, 0, 1),
    )
    assert (len(predictions), len(wrong)) == (748, 40)
    ranked = [suspect.image in wrong for suspect in audit_labels(predictions).suspects]
    assert sum(ranked[:10]) == 10
    assert sum(ranked[:50]) >= 28
    assert sum(ranked) >= 36
    assert len(ranked) <= 80
