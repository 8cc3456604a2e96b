import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from steelsight.data.catalog import Catalog, scan
from steelsight.data.duplicates import Duplicates
from steelsight.data.formats.registry import load
from steelsight.data.splits import load_split, make_split, write_split
from steelsight.data.synthetic import CoilConfig, write_severstal
from steelsight.engine import Inspector
from steelsight.errors import BundleError, GateError, InputError
from steelsight.evaluation.predictions import Predictions
from steelsight.training import session
from steelsight.training.checkpoint import load_checkpoint
from steelsight.training.prepare import TrainingData
from steelsight.training.run_folder import BEST, LAST, METRICS, SUMMARY
from steelsight.training.session import (
    BUNDLE,
    FINAL,
    JSON_LINES,
    PREDICTIONS,
    SPLIT,
    Done,
    Prepared,
    Request,
    prepare_session,
    run_session,
)

SETTINGS: dict[str, object] = {
    "steps": 6,
    "validate_every": 3,
    "checkpoint_every": 2,
    "pictures_every": 1,
    "precision": "fp32",
    "device": "cpu",
    "threads": 1,
    "network.width": 0.125,
    "sampling.batch": 2,
    "sampling.crop_hw": [64, 64],
}
NONE = Duplicates((), ())


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Small frames with all types in each half."""
    folder = tmp_path_factory.mktemp("session") / "drawn"
    size_wh, weights = (128, 96), (0.25, 0.25, 0.25, 0.25)
    write_severstal(CoilConfig(28, 3, 0.7, size_wh, class_weights=weights), folder)
    return scan(load(folder))


def ask(out: Path, **changed: Any) -> Request:
    settings = SETTINGS | changed.pop("settings", {})
    request = Request(out, "random", profile="none", bundle=None, command="steelsight train ...")
    return replace(request, settings=settings, **changed)


def prepared_for(request: Request, catalog: Catalog) -> Prepared:
    return prepare_session(request, catalog, NONE)


def do(request: Request, catalog: Catalog, **options: Any) -> Done | None:
    return run_session(prepared_for(request, catalog), **options)


def stop_after(steps: int) -> Callable[[], bool]:
    asked = iter(range(1, steps + 1))
    return lambda: next(asked) == steps


def assert_refused(said: str, request: Request, catalog: Catalog) -> None:
    with pytest.raises(InputError, match=said) as refused:
        do(request, catalog)
    assert "\n" not in str(refused.value)


def same_predictions(a: Predictions, b: Predictions) -> bool:
    names = [name for name in Predictions.__slots__ if name not in ("images", "class_ids")]
    return (a.images, a.class_ids) == (b.images, b.class_ids) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in names
    )


class Asked(NamedTuple):
    """What a bundle was asked to be made from; making one takes most of a test's time."""

    folder: Path
    weights: Path
    found: Predictions
    data: TrainingData
    more: dict[str, Any]


@pytest.fixture(scope="module")
def no_bundle() -> Iterator[list[Asked]]:
    """Bundles are asked for and not made."""
    asked: list[Asked] = []

    def make_bundle(*given: Any, **more: Any) -> None:
        asked.append(Asked._make((*given, more)))
        asked[-1].folder.mkdir()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "make_bundle", make_bundle)
        yield asked


# One run -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def single(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Done]:
    """One run with a bundle."""
    out = tmp_path_factory.mktemp("single") / "run"
    prepared = prepared_for(ask(out, bundle="fp32", name="tiny", terms="drawn"), catalog)
    assert not out.exists()
    done = run_session(prepared)
    assert done is not None
    return prepared, done


def test_a_run_leaves_all_its_files(single: tuple[Prepared, Done]) -> None:
    out = single[1].folder
    assert {path.name for path in out.iterdir()} >= {
        "config.json", "environment.json", "data.json", SUMMARY, SPLIT, METRICS, "validation.csv",
        LAST, BEST, PREDICTIONS, JSON_LINES, "samples", "tensorboard", "report.html", BUNDLE,
    }  # fmt: skip
    assert not [path for path in out.rglob("*") if "partial" in path.name]
    assert single[1].report == out / "report.html"
    assert len(list((out / "samples").glob("*.jpg"))) == 2


def test_the_split_that_was_made_is_kept(single: tuple[Prepared, Done], catalog: Catalog) -> None:
    prepared, done = single
    split = load_split(done.folder / SPLIT)
    assert split == prepared.split
    assert split == make_split(
        catalog, (), parts=session.PARTS, seed=0, group_source="near-duplicates"
    )
    (part,) = prepared.parts
    assert {f.image for f in part.data.held_out} == set(split.images_of("val"))
    assert {f.image for f in part.data.train} == set(split.images_of("train"))


def test_summary_adds_up(single: tuple[Prepared, Done]) -> None:
    prepared, done = single
    told = json.loads((done.folder / SUMMARY).read_text())
    held_out = prepared.parts[0].data.held_out
    assert told["faulty_frames"] == sum(bool(f.class_ids) for f in held_out)
    assert told["faulty_frames"] + told["clean_frames"] == len(held_out)
    for class_id, figures in told["types"].items():
        assert figures["frames"] == sum(class_id in f.class_ids for f in held_out)
    assert told["best_step"] == load_checkpoint(done.folder / BEST)[1]["step"]
    assert told["auroc"] == done.figures.auroc
    assert set(told["baselines"]) == {"nothing", "everything", "chance"}
    answer = done.to_json()
    assert answer["bundle"] == str(done.folder / BUNDLE)
    assert answer["refused"] is None
    json.dumps(answer, allow_nan=False)
    said = done.lines()
    assert said[0].startswith(f"On {told['faulty_frames']} faulty and {told['clean_frames']} clean")
    assert said[-1].endswith(f"--bundle {done.folder / BUNDLE}")


def test_bundle_inspects_as_the_network_predicted(single: tuple[Prepared, Done]) -> None:
    prepared, done = single
    found = Predictions.load(done.folder / PREDICTIONS)
    held_out = prepared.parts[0].data.held_out
    assert found.images == tuple(f.image for f in held_out)
    assert done.bundle is not None
    inspector = Inspector.load(done.bundle, threads=1)
    assert inspector.bundle.manifest.name == "tiny"
    assert inspector.bundle.manifest.training.terms == "drawn"
    masked = 0
    for i, frame in enumerate(held_out):
        result = inspector.inspect(frame.path)
        assert result.faulty_probability == pytest.approx(found.faulty_probability[i], abs=1e-3)
        cleared = found.faulty_probability[i] < inspector.bundle.decision.gate.clear_below
        expected = found.type_scores_nk[i] - (found.peaks_nk[i] / 3 if cleared else 0)
        scores = list(result.class_probabilities.values())
        assert scores == pytest.approx(expected.tolist(), abs=1e-3)
        masked += not cleared
    assert masked


def test_resumed_after_its_end_it_makes_bundle_and_report_again(
    single: tuple[Prepared, Done], catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    monkeypatch.setattr(session, "make_bundle", lambda folder, *_, **__: made.append(folder))
    out = shutil.copytree(single[1].folder, tmp_path / "run")
    (out / "report.html").unlink()
    weights = (out / BEST).read_bytes()

    def never(*_: Any) -> None:
        raise AssertionError("trained again")

    done = do(ask(out, bundle="fp32", resume=True), catalog, show=never)
    assert done is not None
    assert done.report.exists()
    assert made == [out / BUNDLE] == [done.bundle]
    # The old one went, so that there is room for the new one.
    assert not (out / BUNDLE).exists()
    assert (out / BEST).read_bytes() == weights


def test_what_is_prepared_is_told(single: tuple[Prepared, Done]) -> None:
    prepared = single[0]
    lines = prepared.lines()
    train, held_out = (len(getattr(prepared.parts[0].data, n)) for n in ("train", "held_out"))
    assert f"Learns from {train} frames" in lines[0]
    assert f"measured on {held_out} held out" in lines[0]
    assert "Plan: no plan: the defaults." in lines
    told = prepared.to_json()
    json.dumps(told, allow_nan=False)
    assert told["config"]["steps"] == 6
    assert told["config"]["sampling"]["crop_hw"] == [64, 64]
    assert told["split_sha256"] == prepared.split.sha256


def test_without_a_plan_all_else_is_default(catalog: Catalog, tmp_path: Path) -> None:
    request = Request(tmp_path / "run", "random", profile="none", settings={"steps": 7})
    config = prepared_for(request, catalog).plan.config
    assert config == type(config)(steps=7)


def test_settings_win_over_the_plan(catalog: Catalog, tmp_path: Path) -> None:
    request = Request(tmp_path / "run", "random", profile="small", settings={"device": "cpu"})
    planned = prepared_for(request, catalog).plan.config
    assert planned.network.input_stride == 2
    request = replace(request, settings={"device": "cpu", "network.input_stride": 1})
    assert prepared_for(request, catalog).plan.config.network.input_stride == 1


def test_a_stopped_run_ends_as_one_that_was_not(
    single: tuple[Prepared, Done], catalog: Catalog, tmp_path: Path
) -> None:
    request = ask(tmp_path / "run")
    assert do(request, catalog, stop=stop_after(3)) is None
    assert not (tmp_path / "run" / PREDICTIONS).exists()
    assert do(replace(request, resume=True), catalog) is not None
    for name in (METRICS, PREDICTIONS, JSON_LINES):
        assert (tmp_path / "run" / name).read_bytes() == (single[1].folder / name).read_bytes(), (
            name
        )


# A split that is given, and more data ------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "held_out"), [(None, "fold-0"), ("fold-0", "fold-0"), ("fold-1", "fold-1")]
)
def test_held_out_fold(wanted: str | None, held_out: str, catalog: Catalog, tmp_path: Path) -> None:
    split = make_split(catalog, None, folds=2, group_source="none")
    write_split(split, tmp_path / "split.json")
    request = ask(tmp_path / "run", split=tmp_path / "split.json", held_out=wanted)
    (part,) = prepared_for(request, catalog).parts
    assert {f.image for f in part.data.held_out} == set(split.images_of(held_out))
    assert not {f.image for f in part.data.train} & set(split.images_of(held_out))


@pytest.mark.parametrize(
    ("parts", "wanted", "train", "held_out"),
    [
        (("train", "val", "test"), None, "train", "val"),
        (("train", "val", "test"), "test", "train", "test"),
        (("train", "test"), None, "train", "test"),
        (("train", "validation"), None, "train", "validation"),
        (("old", "new"), None, "old", "new"),
    ],
)
def test_held_out_part(
    parts: tuple[str, ...],
    wanted: str | None,
    train: str,
    held_out: str,
    catalog: Catalog,
    tmp_path: Path,
) -> None:
    rest = 0.4 / (len(parts) - 1)
    shares = {name: rest if i else 0.6 for i, name in enumerate(parts)}
    split = make_split(catalog, None, parts=shares, group_source="none")
    write_split(split, tmp_path / "split.json")
    request = ask(tmp_path / "run", split=tmp_path / "split.json", held_out=wanted)
    (part,) = prepared_for(request, catalog).parts
    assert {f.image for f in part.data.train} == set(split.images_of(train))
    assert {f.image for f in part.data.held_out} == set(split.images_of(held_out))


def test_impossible_splits_are_refused(catalog: Catalog, tmp_path: Path) -> None:
    parts = tmp_path / "parts.json"
    shares = {"train": 0.7, "val": 0.3}
    write_split(make_split(catalog, None, parts=shares, group_source="none"), parts)
    folds = tmp_path / "folds.json"
    write_split(make_split(catalog, None, folds=2, group_source="none"), folds)
    request = ask(tmp_path / "run")
    for said, changed in (
        ("--held-out or --folds, got both", {"held_out": "val", "folds": 2}),
        (r"parts.json: expected 2 folds, it has parts", {"split": parts, "folds": 2}),
        (r"folds.json: expected 3 folds, it has 2 folds", {"split": folds, "folds": 3}),
        ("--held-out names a part of a split: give --split", {"held_out": "val"}),
        ("--held-out out of fold-0, fold-1, got val", {"split": folds, "held_out": "val"}),
        ("another --held-out than train", {"split": parts, "held_out": "train"}),
        ("no part 'tset', expected one of", {"split": parts, "held_out": "tset"}),
        ("expected --plan out of auto, .*none; got 'best'", {"profile": "best"}),
        ("setting steps", {"settings": {"steps": 0}}),
        ("nothing.json", {"split": tmp_path / "nothing.json"}),
        ("folds", {"folds": 1}),
    ):
        assert_refused(said, replace(request, **changed), catalog)
    assert not (tmp_path / "run").exists()


def test_further_data_are_learned_from_and_never_measured(catalog: Catalog, tmp_path: Path) -> None:
    write_severstal(CoilConfig(4, 99, 0.7, (128, 96)), tmp_path / "more")
    more = scan(load(tmp_path / "more"))
    alone = prepared_for(ask(tmp_path / "run"), catalog)
    prepared = prepare_session(ask(tmp_path / "run"), catalog, NONE, {"more": more})
    before, after = alone.parts[0].data, prepared.parts[0].data
    assert len(after.train) == len(before.train) + 4
    assert after.held_out == before.held_out
    assert after.data_sha256 != before.data_sha256
    assert any("4 further frames of more" in line for line in prepared.lines())
    done = run_session(prepared)
    assert done is not None
    found = Predictions.load(tmp_path / "run" / PREDICTIONS)
    assert found.images == tuple(f.image for f in before.held_out)


def test_further_data_are_learned_from_in_every_fold(catalog: Catalog, tmp_path: Path) -> None:
    write_severstal(CoilConfig(4, 99, 0.7, (128, 96)), tmp_path / "more")
    more = scan(load(tmp_path / "more"))
    prepared = prepare_session(ask(tmp_path / "run", folds=2), catalog, NONE, {"more": more})
    for part in prepared.parts:
        assert sum(f.image.startswith("more/") for f in part.data.train) == 4
        assert not any(f.image.startswith("more/") for f in part.data.held_out)


def test_further_data_that_are_held_out_frames_are_refused(
    catalog: Catalog, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="a held-out frame would be learned from"):
        prepare_session(ask(tmp_path / "run"), catalog, NONE, {"same": catalog})


# Resuming what is something else -----------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stopped") / "run"
    assert do(ask(out), catalog, stop=stop_after(2)) is None
    return out


def test_a_folder_with_a_run_is_not_begun_again(stopped: Path, catalog: Catalog) -> None:
    assert_refused("holds a run; add --resume", ask(stopped), catalog)
    assert_refused("add --resume", ask(stopped, folds=2), catalog)


def test_resumed_with_other_settings_it_is_refused(stopped: Path, catalog: Catalog) -> None:
    other: dict[str, object] = {"steps": 8, "loss.focal_gamma": 1.0}
    said = r"steps 6 \(now 8\), loss.focal_gamma 2.0 \(now 1.0\)"
    assert_refused(said, ask(stopped, resume=True, settings=other), catalog)


def test_resumed_without_settings_it_has_those_it_began_with(
    stopped: Path, catalog: Catalog
) -> None:
    request = replace(ask(stopped, resume=True), settings=None, profile="auto")
    prepared = prepared_for(request, catalog)
    assert prepared.plan.config == prepared_for(ask(stopped), catalog).plan.config


def test_resumed_with_another_start_it_is_refused(
    stopped: Path, single: tuple[Prepared, Done], catalog: Catalog
) -> None:
    request = ask(stopped, resume=True)
    for start in (single[1].folder / BEST, single[1].folder):
        assert_refused("the start weights", replace(request, start=str(start)), catalog)


def test_start_is_looked_at_before_there_is_a_folder(
    single: tuple[Prepared, Done], catalog: Catalog, tmp_path: Path
) -> None:
    """Its hash is kept, also that of a file in a folder."""
    request = ask(tmp_path / "run")
    assert prepared_for(request, catalog).start_sha256 is None
    content = (single[1].folder / BEST).read_bytes()
    prepared = prepared_for(replace(request, start=str(single[1].folder)), catalog)
    assert prepared.start_sha256 == hashlib.sha256(content).hexdigest()
    for said, changed in (
        ("nothing.safetensors", {"start": str(tmp_path / "nothing.safetensors")}),
        ("sha256", {"start": str(single[1].folder / BEST), "start_sha256": "0" * 64}),
        ("sha256", {"start_sha256": "0" * 64}),
    ):
        assert_refused(said, replace(request, **dict[str, Any](changed)), catalog)
    assert list(tmp_path.iterdir()) == []


def test_resumed_with_other_data_it_is_refused(
    stopped: Path, catalog: Catalog, tmp_path: Path
) -> None:
    write_severstal(CoilConfig(28, 4, 0.7, (128, 96)), tmp_path / "drawn")
    others = scan(load(tmp_path / "drawn"))
    assert_refused("the data differ .* from those that were split", ask(stopped, resume=True),
                   others)  # fmt: skip


def test_resumed_with_another_split_it_is_refused(
    stopped: Path, catalog: Catalog, tmp_path: Path
) -> None:
    split = make_split(catalog, None, parts=session.PARTS, seed=1, group_source="none")
    write_split(split, tmp_path / "split.json")
    request = ask(stopped, resume=True, split=tmp_path / "split.json")
    assert_refused("the split", request, catalog)


def test_resuming_a_folder_without_a_run_begins_one(catalog: Catalog, tmp_path: Path) -> None:
    request = ask(tmp_path / "run", resume=True)
    assert do(request, catalog, stop=stop_after(1)) is None
    assert (tmp_path / "run" / SPLIT).exists()


# Cross-validation --------------------------------------------------------------------------------

FOLDED: dict[str, object] = {"steps": 4, "validate_every": 2, "pictures_every": 0}


@pytest.fixture(scope="module")
def folded(
    catalog: Catalog, tmp_path_factory: pytest.TempPathFactory, no_bundle: list[Asked]
) -> tuple[Prepared, Done, Asked]:
    """Two folds and the network of all frames."""
    out = tmp_path_factory.mktemp("folded") / "run"
    prepared = prepared_for(ask(out, folds=2, bundle="fp32", settings=FOLDED), catalog)
    done = run_session(prepared)
    assert done is not None
    return prepared, done, no_bundle[-1]


def test_every_frame_is_predicted_once_by_a_network_that_had_not_seen_it(
    folded: tuple[Prepared, Done, Asked], catalog: Catalog
) -> None:
    prepared, done, _ = folded
    found = Predictions.load(done.folder / PREDICTIONS)
    split = load_split(done.folder / SPLIT)
    assert split.folds == 2
    assert sorted(found.images) == sorted(split.assignment)
    fold_of = dict(zip(found.images, found.folds.tolist(), strict=True))
    assert {f"fold-{fold}" for fold in fold_of.values()} == {"fold-0", "fold-1"}
    assert {image: f"fold-{fold}" for image, fold in fold_of.items()} == dict(split.assignment)
    for part in prepared.parts[:2]:
        learned = {f.image for f in part.data.train}
        measured = {image for image, fold in fold_of.items() if fold == part.fold}
        assert not learned & measured
        assert {f.image for f in part.data.held_out} == measured
    # The predictions of each fold are those of its own network.
    for fold in (0, 1):
        alone = Predictions.load(done.folder / f"fold-{fold}" / PREDICTIONS)
        of_fold = found.folds == fold
        np.testing.assert_array_equal(found.faulty_logits[of_fold], alone.faulty_logits)
    lines = (done.folder / JSON_LINES).read_text().splitlines()
    assert len(lines) == len(split.assignment) == len(catalog.records)


def test_cross_validation_leaves_all_its_files(folded: tuple[Prepared, Done, Asked]) -> None:
    out = folded[1].folder
    assert {path.name for path in out.iterdir()} == {
        "fold-0", "fold-1", FINAL, SPLIT, SUMMARY, PREDICTIONS, JSON_LINES, BUNDLE, "report.html",
    }  # fmt: skip
    for name in ("fold-0", "fold-1", FINAL):
        assert (out / name / BEST).exists()
        assert (out / name / "report.html").exists()
        assert not (out / name / SPLIT).exists()
    assert not (out / FINAL / PREDICTIONS).exists()
    told = json.loads((out / SUMMARY).read_text())
    total = sum(len(part.data.held_out) for part in folded[0].parts)
    assert told["faulty_frames"] + told["clean_frames"] == total


def test_last_network_learned_from_all_frames_and_is_in_the_bundle(
    folded: tuple[Prepared, Done, Asked],
) -> None:
    prepared, done, asked = folded
    last = prepared.parts[-1]
    assert last.path.name == FINAL
    assert {f.image for f in last.data.train} == set(prepared.split.assignment)
    assert not last.data.held_out
    # The weights of the last step: nothing says when it was best.
    assert load_checkpoint(last.path / BEST)[1]["step"] == 4
    assert asked.folder == done.bundle == done.folder / BUNDLE
    assert asked.weights == last.path / BEST
    assert asked.data is last.data
    # Thresholds come from what the folds' networks said about frames they had not seen.
    assert same_predictions(asked.found, Predictions.load(done.folder / PREDICTIONS))
    assert "28 frames: 2 folds, out of fold" in asked.more["chosen_on"]
    assert {f.image for f in asked.more["held_out"]} == set(prepared.split.assignment)
    assert asked.more["about"]["split"] == prepared.split.sha256
    assert prepared.lines()[-1] == "3 networks, 4 steps each."


@pytest.mark.soak
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_bundle_of_a_cross_validation_loads(
    precision: str, catalog: Catalog, tmp_path: Path
) -> None:
    """int8 of a network that learned for four steps may be refused, but never silently."""
    request = ask(tmp_path / "run", folds=2, bundle=precision, settings=FOLDED)
    done = do(request, catalog)
    assert done is not None
    assert done.bundle is not None
    if precision == "fp32" or done.refused is None:
        assert done.refused is None
        decision = Inspector.load(done.bundle, threads=1).bundle.decision
        assert "2 folds, out of fold" in decision.chosen_on
    else:
        with pytest.raises(BundleError, match="parity"):
            Inspector.load(done.bundle)


def test_stopped_in_the_second_fold_it_ends_the_same_and_trains_no_fold_again(
    folded: tuple[Prepared, Done, Asked], catalog: Catalog, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    request = ask(out, folds=2, final=False, settings=FOLDED)
    assert do(request, catalog, stop=stop_after(4 + 3)) is None
    assert (out / "fold-0" / PREDICTIONS).exists()
    assert not (out / "fold-1" / PREDICTIONS).exists()
    before = {p.name: p.stat().st_mtime_ns for p in (out / "fold-0").glob("*.safetensors")}
    seen: list[tuple[str, int]] = []
    resumed = do(
        replace(request, resume=True),
        catalog,
        show=lambda name, moment: seen.append((name, moment.step)),
    )
    assert resumed is not None
    assert resumed.bundle is None
    assert {name for name, _ in seen} == {"fold-1"}
    assert min(step for _, step in seen) == 4
    after = {p.name: p.stat().st_mtime_ns for p in (out / "fold-0").glob("*.safetensors")}
    assert after == before
    whole = folded[1].folder
    for name in (PREDICTIONS, JSON_LINES, SUMMARY, SPLIT):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert same_predictions(
        Predictions.load(out / PREDICTIONS), Predictions.load(whole / PREDICTIONS)
    )


def test_resumed_with_other_settings_after_a_fold_is_done_it_is_refused(
    catalog: Catalog, tmp_path: Path
) -> None:
    """Else one fold would have been trained with other settings than the next."""
    request = ask(tmp_path / "run", folds=2, final=False, settings=FOLDED)
    do(request, catalog, stop=stop_after(5))
    shutil.rmtree(tmp_path / "run" / "fold-1")
    other = ask(tmp_path / "run", folds=2, final=False, settings=FOLDED | {"steps": 5})
    assert_refused(r"steps 4 \(now 5\)", replace(other, resume=True), catalog)
    elsewhere = replace(request, resume=True, start=str(tmp_path / "run" / "fold-0" / BEST))
    assert_refused("the start weights", elsewhere, catalog)


def test_a_failed_proof_is_told_and_the_bundle_is_not_given(
    single: tuple[Prepared, Done], catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, *_: Any, **__: Any) -> None:
        folder.mkdir()
        raise GateError("3 of 6 verdicts differ")

    monkeypatch.setattr(session, "make_bundle", refuse)
    out = shutil.copytree(single[1].folder, tmp_path / "run")
    done = do(ask(out, bundle="int8", resume=True), catalog)
    assert done is not None
    assert done.refused == "3 of 6 verdicts differ"
    assert done.bundle == out / BUNDLE
    assert done.to_json()["bundle"] is None
    assert done.to_json()["refused"] == "3 of 6 verdicts differ"
    assert not any("steelsight inspect" in line for line in done.lines())
