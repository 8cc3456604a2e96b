from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from steelsight.data.frames import FrameSource
from steelsight.decisions import decide, load_decision
from steelsight.evaluation.predictions import MASK_PROBABILITY_EDGES
from steelsight.evaluation.thresholds import choose_decision
from steelsight.imaging import blend_weights, read_file, tile_plan
from steelsight.models.config import Network
from steelsight.models.res_unet import DefectNetwork, build_network
from steelsight.models.resnet import GREY_MEAN, GREY_STD
from steelsight.training.predict import OVERLAP_PX, Answer, Predictor, normalise, predict
from steelsight.training.prepare import TrainingData

K = 4
LARGE = (10_000, 10_000)
"""A tile that no frame fills."""

Looked = tuple[NDArray[np.float32], NDArray[np.float32]]


def network_of(**settings: object) -> DefectNetwork:
    """Small, with answers that differ from place to place."""
    torch.manual_seed(3)
    network = build_network(K, Network.model_validate({"width": 0.125, **settings}))
    network.train()
    with torch.no_grad():  # statistics of some frames, so that evaluation mode is not degenerate
        for _ in range(8):
            network(torch.randn(2, 1, 64, 128) * 2)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> DefectNetwork:
    return network_of()


@pytest.fixture(scope="module")
def source(drawn_data: TrainingData) -> FrameSource:
    return FrameSource(drawn_data.held_out, drawn_data.class_ids, 0)


def frame_of(rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    rough = rng.random((rows // 8 + 2, columns // 8 + 2)).repeat(8, 0).repeat(8, 1)
    grey = 255 * rough[:rows, :columns] * rng.random((rows, columns)) ** 0.2
    return grey.astype(np.uint8)


@torch.no_grad()
def directly(network: DefectNetwork, grey_hw: NDArray[np.uint8], multiple: int = 32) -> Looked:
    """Logits of both heads and mask probabilities, with nothing but numpy's padding and torch."""
    rows, columns = grey_hw.shape
    edges = ((0, -rows % multiple), (0, -columns % multiple))
    padded = np.pad(grey_hw, edges, mode="reflect").astype(np.float64)
    x = torch.tensor((padded / 255 - GREY_MEAN) / GREY_STD, dtype=torch.float32)[None, None]
    logits = network(x)
    masks = F.interpolate(logits.masks, size=padded.shape, mode="bilinear", align_corners=False)
    heads = torch.stack([logits.average[0], logits.soft_maximum[0]])
    return heads.numpy(), masks.sigmoid()[0, :, :rows, :columns].numpy()


def heads_of(heads_2k: NDArray[Any]) -> NDArray[Any]:
    return (1 / (1 + np.exp(-heads_2k[:, 1:]))).mean(axis=0)


def assert_is(answer: Answer, expected: Looked, within: float = 2e-5) -> None:
    heads_2k, probabilities_khw = expected
    heads_k = heads_of(heads_2k)
    np.testing.assert_allclose(answer.head_probabilities_k, heads_k, rtol=within, atol=within)
    np.testing.assert_allclose(answer.probabilities_khw, probabilities_khw, atol=within)
    faulty = heads_2k[:, 0].mean()
    assert answer.faulty_logit == pytest.approx(faulty, rel=within, abs=within)


def test_normalise_is_that_of_the_networks() -> None:
    grey = torch.arange(256, dtype=torch.uint8)
    expected = (grey.double() / 255 - GREY_MEAN) / GREY_STD
    torch.testing.assert_close(normalise(grey), expected.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(normalise(grey.float()), normalise(grey))


@pytest.mark.parametrize("size_hw", [(64, 96), (65, 97), (100, 211), (127, 64)])
def test_one_frame_is_a_forward_pass(size_hw: tuple[int, int], network: DefectNetwork) -> None:
    grey_hw = frame_of(*size_hw)
    answer = Predictor(network, LARGE).look(grey_hw)
    assert answer.head_probabilities_k.shape == (K,)
    assert answer.head_probabilities_k.dtype == answer.probabilities_khw.dtype == np.float32
    assert answer.probabilities_khw.shape == (K, *size_hw)
    assert answer.probabilities_khw.std() > 1e-3
    assert_is(answer, directly(network, grey_hw))


@pytest.mark.parametrize(
    "settings", [{"input_stride": 2}, {"arch": "two"}, {"mask_stride": 1}, {"mask_stride": 2}]
)
def test_all_forms_of_a_network(settings: dict[str, object]) -> None:
    network = network_of(**settings)
    grey_hw = frame_of(90, 130)
    answer = Predictor(network, LARGE).look(grey_hw)
    assert_is(answer, directly(network, grey_hw, 32 * network.input_stride))


def naively_tiled(
    network: DefectNetwork, grey_hw: NDArray[np.uint8], tile_wh: tuple[int, int], overlap_px: int
) -> Looked:
    """Weighted means of tiles, pixel for pixel; of heads the highest of each."""
    height, width = grey_hw.shape
    total = np.zeros((K, height, width))
    weights = np.zeros((height, width))
    heads = []
    for x, y, w, h in tile_plan((width, height), tile_wh, overlap_px):
        heads_2k, masks_khw = directly(network, grey_hw[y : y + h, x : x + w])
        weight_hw = blend_weights(w, h, overlap_px).astype(np.float64)
        total[:, y : y + h, x : x + w] += weight_hw * masks_khw
        weights[y : y + h, x : x + w] += weight_hw
        heads.append(heads_of(heads_2k))
    assert len(heads) > 1
    return np.max(heads, axis=0), (total / weights).astype(np.float32)


@pytest.mark.parametrize(
    ("size_hw", "tile_wh"),
    [((64, 300), (128, 64)), ((150, 200), (96, 96)), ((300, 300), (280, 280))],
)
def test_several_tiles_are_joined_as_the_naive_way(
    size_hw: tuple[int, int], tile_wh: tuple[int, int], network: DefectNetwork
) -> None:
    grey_hw = frame_of(*size_hw)
    overlap_px = min(OVERLAP_PX, min(tile_wh) // 4)
    answer = Predictor(network, tile_wh).look(grey_hw)
    heads_k, masks_khw = naively_tiled(network, grey_hw, tile_wh, overlap_px)
    np.testing.assert_allclose(answer.head_probabilities_k, heads_k, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(answer.probabilities_khw, masks_khw, atol=2e-5)
    of_tiles = [
        directly(network, grey_hw[y : y + h, x : x + w])[0][:, 0].mean()
        for x, y, w, h in tile_plan(size_hw[::-1], tile_wh, overlap_px)
    ]
    assert answer.faulty_logit == pytest.approx(max(of_tiles), rel=2e-5)


def test_flips_are_the_average_of_four_turned_frames(network: DefectNetwork) -> None:
    grey_hw = frame_of(64, 96)
    turns: list[Callable[[NDArray[Any]], NDArray[Any]]] = [
        lambda a: a,
        lambda a: a[..., ::-1],
        lambda a: a[..., ::-1, :],
        lambda a: a[..., ::-1, ::-1],
    ]
    seen = [directly(network, np.ascontiguousarray(turn(grey_hw))) for turn in turns]
    heads_2k = np.mean([heads for heads, _ in seen], axis=0)
    masks = [turn(found) for turn, (_, found) in zip(turns, seen, strict=True)]
    answer = Predictor(network, LARGE, flips=True).look(grey_hw)
    assert_is(answer, (heads_2k, np.mean(masks, axis=0)))
    plain = Predictor(network, LARGE).look(grey_hw)
    assert np.abs(plain.probabilities_khw - answer.probabilities_khw).max() > 1e-3


def test_flips_of_a_padded_frame_turn_the_padding_too(network: DefectNetwork) -> None:
    """What is turned is what the network sees; the answer has the size of the frame."""
    grey_hw = frame_of(70, 90)
    padded = np.pad(grey_hw, ((0, 26), (0, 6)), mode="reflect")
    whole = Predictor(network, LARGE, flips=True).look(padded)
    answer = Predictor(network, LARGE, flips=True).look(grey_hw)
    for one, other in (
        (answer.head_probabilities_k, whole.head_probabilities_k),
        (answer.probabilities_khw, whole.probabilities_khw[:, :70, :90]),
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert answer.faulty_logit == pytest.approx(whole.faulty_logit, abs=1e-6)


def test_it_is_the_network_in_evaluation_mode(network: DefectNetwork) -> None:
    network.train()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    predictor = Predictor(network, LARGE)
    assert not network.training
    first, second = (predictor.look(frame_of(64, 64)) for _ in range(2))
    np.testing.assert_array_equal(first.head_probabilities_k, second.head_probabilities_k)
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_autocast_is_used_for_each_pass(network: DefectNetwork) -> None:
    entered = []

    @contextmanager
    def context():  # type: ignore[no-untyped-def]
        entered.append(1)
        with torch.autocast("cpu", torch.bfloat16):
            yield

    grey_hw = frame_of(64, 64)
    answer = Predictor(network, LARGE, flips=True, autocast=context).look(grey_hw)
    assert len(entered) == 4
    assert answer.head_probabilities_k.dtype == answer.probabilities_khw.dtype == np.float32
    exact = Predictor(network, LARGE, flips=True).look(grey_hw)
    assert np.abs(answer.probabilities_khw - exact.probabilities_khw).max() < 0.1


# Many frames -------------------------------------------------------------------------------------


def test_predictions_are_the_answers_in_order(network: DefectNetwork, source: FrameSource) -> None:
    predictor = Predictor(network, (256, 128))
    indices = [3, 0, 7]
    told: list[tuple[int, int]] = []
    found = predict(
        predictor, source, indices, fold=2, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert found.images == tuple(source.frames[i].image for i in indices)
    assert found.class_ids == tuple(source.class_ids)
    assert found.folds.tolist() == [2, 2, 2]
    for row, i in enumerate(indices):
        frame = source.frames[i]
        heads_2k, masks_khw = directly(network, read_file(frame.path).grey_hw)
        heads_k = heads_of(heads_2k)
        np.testing.assert_allclose(found.head_probabilities_nk[row], heads_k, atol=2e-5)
        assert found.faulty_logits[row] == pytest.approx(heads_2k[:, 0].mean(), rel=2e-5)
        assert found.faulty[row] == bool(frame.class_ids)
        assert found.present_nk[row].tolist() == [c in frame.class_ids for c in found.class_ids]
        assert found.masked_nk[row].tolist() == [c in frame.rle_by_class for c in found.class_ids]
        types_hw = source.pixels(i).types_hw
        for k in range(K):
            true_hw = types_hw >> k & 1 > 0
            cells = masks_khw[k].reshape(8, 16, 16, 16).mean(axis=(1, 3))
            assert found.peaks_nk[row, k] == pytest.approx(cells.max(), abs=2e-5)
            # Pixels from an edge on, inside and outside, but for those that lie on it.
            for counts, where in ((found.inside_nkb, true_hw), (found.outside_nkb, ~true_hw)):
                assert counts[row, k].sum() == where.sum()
                for b, edge in list(enumerate(MASK_PROBABILITY_EDGES))[::8]:
                    low = (masks_khw[k][where] >= edge + 2e-5).sum()
                    high = (masks_khw[k][where] >= edge - 2e-5).sum()
                    assert low <= counts[row, k, b + 1 :].sum() <= high


def test_no_frame_gives_no_predictions(network: DefectNetwork, source: FrameSource) -> None:
    found = predict(Predictor(network, (256, 128)), source, [])
    assert len(found) == 0
    assert found.class_ids == tuple(source.class_ids)
    assert found.type_scores_nk.shape == (0, K)


def test_scores_are_those_that_decisions_are_made_from(
    network: DefectNetwork,
    source: FrameSource,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Thresholds are chosen on the very numbers that ``decide`` compares with them."""
    predictor = Predictor(network, (256, 128))
    found = predict(predictor, source, range(6))
    path = tmp_path_factory.mktemp("decision") / "decision.toml"
    path.write_text(choose_decision(found, "test", "six frames"))
    decision = load_decision(path, source.class_ids)
    for i in range(6):
        answer = predictor.look(source.pixels(i).grey_hw)
        faulty = torch.tensor(answer.faulty_logit, dtype=torch.float64).sigmoid().item()
        judged = decide(faulty, answer.head_probabilities_k, answer.probabilities_khw, decision)
        scores = list(judged.class_probabilities.values())
        np.testing.assert_allclose(found.type_scores_nk[i], scores, atol=1e-6)
        assert found.faulty_probability[i] == pytest.approx(faulty, abs=1e-6)
