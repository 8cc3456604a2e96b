import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.predicted import one_region_each, predictions_of

from steelsight import imaging
from steelsight.bundle import Precision
from steelsight.data.frames import LabelledFrame
from steelsight.data.synthetic import CoilConfig, draw_frame
from steelsight.decisions import check_contrast, load_decision
from steelsight.evaluation.metrics import summary
from steelsight.evaluation.predictions import BINS, Predictions, sigmoid
from steelsight.evaluation.thresholds import choose_decision
from steelsight.training import finish
from steelsight.training.export import ExportConfig, Tolerances
from steelsight.training.finish import (
    CALIBRATION_FRAMES,
    PARITY_FRAMES,
    baselines,
    drawn_frame,
    make_bundle,
    measure,
    on_threshold,
    spread,
)
from steelsight.training.prepare import TrainingData

IDS = ("1", "2", "3")
SIDE = 12


def drawn_predictions(seed: int, n: int = 40, clean: float = 0.5) -> tuple[Predictions, Any]:
    """Predictions on frames of 12 x 12 px, and their true masks as pixels."""
    rng = np.random.default_rng(seed)
    present_nk = (rng.random((n, 3)) < 0.5) & (rng.random((n, 1)) >= clean)
    present_nk[0] = True
    masked_nk = present_nk & (rng.random((n, 3)) < 0.8)
    true_nkhw = (rng.random((n, 3, SIDE, SIDE)) < 0.2) & masked_nk[..., None, None]
    true_nkhw[..., 0, 0] |= masked_nk
    bins_nkhw = rng.integers(BINS, size=true_nkhw.shape)
    inside, outside = np.zeros((2, n, 3, BINS), np.int64)
    for i, k, y, x in np.ndindex(true_nkhw.shape):
        counted = inside if true_nkhw[i, k, y, x] else outside
        counted[i, k, bins_nkhw[i, k, y, x]] += 1
    heads = rng.normal(size=(n, 2, 4)) + np.insert(present_nk, 0, present_nk.any(1), 1)[:, None]
    found = predictions_of(
        present_nk,
        class_ids=IDS,
        masked_nk=masked_nk,
        faulty_logits=heads[:, :, 0].mean(axis=1).astype(np.float32),
        head_probabilities_nk=(1 / (1 + np.exp(-heads[:, :, 1:]))).mean(axis=1),
        peaks_nk=rng.random((n, 3)).astype(np.float32),
        inside_nkb=inside,
        outside_nkb=outside,
    )
    return found, true_nkhw


def naive_dice(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    both = int(predicted.sum()) + int(true.sum())
    return 2 * int((predicted & true).sum()) / both if both else 1.0


@pytest.mark.parametrize("seed", range(4))
def test_baselines_are_those_of_naive_loops(seed: int) -> None:
    found, true_nkhw = drawn_predictions(seed)
    nothing = []
    everything: dict[str, list[float]] = {c: [] for c in IDS}
    for i in range(len(found)):
        for k, c in enumerate(IDS):
            true = true_nkhw[i, k]
            if found.masked_nk[i, k]:
                everything[c].append(naive_dice(np.ones_like(true), true))
            if found.masked_nk[i, k] or not found.present_nk[i, k]:
                nothing.append(naive_dice(np.zeros_like(true), true))
    told = baselines(found)
    assert told["nothing"]["kaggle_dice"] == pytest.approx(np.mean(nothing), abs=1e-12)
    assert told["everything"]["dice"].keys() == {c for c in IDS if everything[c]}
    for c, dice in told["everything"]["dice"].items():
        assert dice == pytest.approx(np.mean(everything[c]), abs=1e-12)
    assert told["chance"] == {
        "auroc": 0.5,
        "recall_at_2_percent": 0.02,
        "recall_at_5_percent": 0.05,
    }


def test_baselines_leave_out_what_has_no_mask() -> None:
    found, _ = drawn_predictions(0)
    nothing = np.zeros_like(found.inside_nkb)
    bare = replace(
        found,
        masked_nk=np.zeros_like(found.masked_nk),
        inside_nkb=nothing,
        **one_region_each(nothing),
    )
    told = baselines(bare)
    assert told["everything"]["dice"] == {}
    assert told["nothing"]["kaggle_dice"] == 1


def test_measure_is_the_summary_with_intervals_and_baselines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(finish, "RESAMPLES", 50)
    found, _ = drawn_predictions(1)
    told = measure(found)
    assert told.pop("baselines") == baselines(found)
    assert told == summary(found, resamples=50).to_json()
    json.dumps(told, allow_nan=False)
    assert told["auroc"] == summary(found).to_json()["auroc"]


# Frames for calibration and proof ----------------------------------------------------------------


def frames_of(faulty: int, clean: int) -> list[LabelledFrame]:
    return [
        LabelledFrame(f"{i}.jpg", Path(f"{i}.jpg"), (64, 64), {}, ("1",) if i < faulty else ())
        for i in range(faulty + clean)
    ]


@pytest.mark.parametrize(
    ("faulty", "clean", "most", "of_faulty", "of_clean"),
    [
        (50, 50, 20, 10, 10),
        (50, 50, 21, 10, 11),
        (3, 50, 20, 3, 17),
        (50, 3, 20, 17, 3),
        (3, 4, 20, 3, 4),
        (0, 50, 20, 0, 20),
        (50, 0, 20, 20, 0),
        (0, 0, 20, 0, 0),
        (1, 1, 1, 0, 1),
        (1, 0, 1, 1, 0),
    ],
)
def test_spread_takes_half_of_each_if_it_can(
    faulty: int, clean: int, most: int, of_faulty: int, of_clean: int
) -> None:
    frames = frames_of(faulty, clean)
    chosen = spread(frames, most)
    assert len({f.image for f in chosen}) == len(chosen)
    assert sum(bool(f.class_ids) for f in chosen) == of_faulty
    assert sum(not f.class_ids for f in chosen) == of_clean


def test_spread_takes_the_same_frames_whatever_their_order() -> None:
    frames = frames_of(30, 30)
    assert spread(frames[::-1], 10) == spread(frames, 10)
    # Not simply the first ones: neighbours on a coil look alike.
    assert {f.image for f in spread(frames, 10)} != {f.image for f in (*frames[:5], *frames[30:35])}


def test_frames_that_a_threshold_was_made_of_are_known(tmp_path: Path) -> None:
    found, _ = drawn_predictions(2)
    text = choose_decision(found, "test", "drawn")
    rules = tomllib.loads(text)
    path = tmp_path / "decision.toml"
    path.write_text(text)
    load_decision(path, IDS)
    clean = np.flatnonzero(~found.faulty)
    probability = sigmoid(found.faulty_logits)
    expected = set()
    if rules["gate"]["ng_from"] < 0.5:
        expected.add(clean[probability[clean].argmax()])
    for k, c in enumerate(IDS):
        if rules["types"][c]["label_from"] < 0.5:
            expected.add(clean[found.type_scores_nk[clean, k].argmax()])
    assert on_threshold(found, text) == {found.images[i] for i in expected}

    # With thresholds that lie at three frames' scores.
    scores = found.type_scores_nk
    text = f"""
[gate]
clear_below = {probability[3]:.8g}
ng_from = {probability[5] + 1e-7:.8g}
[types.1]
label_from = {scores[7, 0]:.8g}
[types.2]
label_from = 0.999
[types.3]
label_from = 1e-30
"""
    assert on_threshold(found, text) == {"3.jpg", "5.jpg", "7.jpg"}


# The bundle's parts ------------------------------------------------------------------------------


class Exported(Exception):
    """Carries what would be exported."""


@pytest.mark.parametrize("learned_from_all", [False, True])
def test_frames_that_prove_a_bundle_are_not_those_that_calibrate_it(
    learned_from_all: bool, drawn_data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After cross-validation the last network learned from all frames; a few prove it still."""

    def export(config: ExportConfig, folder: Path, tolerances: Any, _: Any) -> None:
        raise Exported(config, folder, tolerances)

    monkeypatch.setattr(finish, "export_bundle", export)
    monkeypatch.setattr(finish, "RESAMPLES", 10)
    frames = (*drawn_data.train, *drawn_data.held_out)
    held_out = frames if learned_from_all else drawn_data.held_out
    data = drawn_data
    if learned_from_all:
        data = TrainingData(
            data.classes, frames, (), data.tile_wh, data.grey, data.split_sha256, data.data_sha256
        )
    rng = np.random.default_rng(0)
    k = len(data.class_ids)
    n = len(held_out)
    found = predictions_of(
        [[c in f.class_ids for c in data.class_ids] for f in held_out],
        images=tuple(f.image for f in held_out),
        class_ids=data.class_ids,
        faulty=[bool(f.class_ids) for f in held_out],
        faulty_logits=rng.normal(size=n) - 3,
        head_probabilities_nk=1 / (1 + np.exp(3 - rng.normal(size=(n, k)))),
        outside_nkb=np.ones((n, k, BINS)),
    )
    with pytest.raises(Exported) as exported:
        make_bundle(
            Path("bundle"),
            Path("best.safetensors"),
            found,
            data,
            held_out=held_out,
            precision=Precision.INT8,
            name="tiny",
            terms="drawn",
            chosen_on="all of them",
            about={"split": "abc"},
        )
    config, folder, tolerances = exported.value.args
    assert folder == Path("bundle")
    calibration, parity = set(config.calibration), set(config.parity)
    assert 0 < len(calibration) <= min(CALIBRATION_FRAMES, len(data.train) // 2)
    assert calibration <= {f.path for f in data.train}
    assert 0 < len(parity) <= PARITY_FRAMES
    assert parity <= {f.path for f in held_out}
    assert not calibration & parity
    if not learned_from_all:
        assert not parity & {f.path for f in data.train}
    on_edge = on_threshold(found, config.decision)
    assert on_edge
    assert not on_edge & {path.name for path in parity}
    assert config.truth.keys() == parity
    assert tolerances == Tolerances(int8_verdict_flips=max(0.03, 1 / len(parity)))
    assert [c.id for c in config.classes] == list(data.class_ids)
    assert config.tile_wh == data.tile_wh
    assert config.monochrome == data.grey
    assert tomllib.loads(config.decision)["chosen_on"] == "all of them"
    counts = f"{len(data.train)} frames, "
    assert config.training[0].startswith(counts)
    assert config.training[1] == "drawn"
    assert "abc" in config.card


@pytest.mark.parametrize("size_wh", [(1600, 256), (200, 200), (4096, 2048), (64, 64)])
def test_self_test_frame_is_a_picture_that_is_accepted(
    size_wh: tuple[int, int], tmp_path: Path
) -> None:
    png = drawn_frame(size_wh)
    frame = imaging.decode(png, name="self_test.png")
    assert frame.format == "png"
    fitting = (max(size_wh[0], 128), max(size_wh[1], 64))
    assert frame.size_wh == fitting
    path = tmp_path / "decision.toml"
    path.write_text(choose_decision(drawn_predictions(0)[0], "test", "drawn"))
    check_contrast(frame.grey_hw, load_decision(path, IDS))
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(pixels, frame.grey_hw)


def test_self_test_frame_is_the_same_each_time_and_shows_defects() -> None:
    config = CoilConfig(seed=1, faulty_share=1.0, size_wh=(200, 200))
    drawn = draw_frame(config, 0)
    assert drawn.masks_chw.any()
    frame = imaging.decode(drawn_frame((200, 200)))
    np.testing.assert_array_equal(frame.grey_hw, drawn.grey_hw)
