"""Maps of both stages against formulas worked out by hand, and against real labels."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from steelsight.bundle import DEFAULT_BUNDLE, file_entry
from steelsight.errors import InputError
from steelsight.imaging import read_file
from steelsight.masks import decode_rle
from steelsight.models.config import Network
from steelsight.models.res_unet import (
    Classifier,
    DefectNetwork,
    ResUNet,
    Segmenter,
    TwoNetworks,
    build_network,
)
from steelsight.models.resnet import GREY_MEAN, GREY_STD, Features, ResNet50Encoder
from steelsight.training import gradcam as module
from steelsight.training.checkpoint import save_checkpoint
from steelsight.training.gradcam import CamMaps, draw_cam, gradcam, load_network

K = 3
FORMS = [
    {"arch": "shared"},
    {"arch": "two"},
    {"arch": "shared", "input_stride": 2, "mask_stride": 2},
    {"arch": "two", "residual": True, "mask_stride": 1},
    {"arch": "shared", "input_stride": 2, "stages": 2},
]


def network_of(**settings: object) -> DefectNetwork:
    """Small, with statistics of some frames, so that evaluation mode is not degenerate.

    Its "faulty" weights are turned so that some places speak for a frame's faults, others against.
    """
    torch.manual_seed(5)
    network = build_network(K, Network.model_validate({"width": 0.125, **settings}))
    with torch.no_grad():
        for _ in range(8):
            network(torch.randn(2, 1, 64, 128) * 2)
        gate, _, _ = parts_of(network.eval())
        grey_hw = frame_of(64, 128)
        mean_c = gate(network.shrink(input_of(grey_hw, 64))).deepest.mean((0, 2, 3))
        for head in heads_of(network):
            head.weight[0] -= (head.weight[0] @ mean_c) / (mean_c @ mean_c) * mean_c
    return network


@pytest.fixture(scope="module")
def shared() -> ResUNet:
    network = network_of()
    assert isinstance(network, ResUNet)
    return network


def frame_of(rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    rough = rng.random((rows // 8 + 2, columns // 8 + 2)).repeat(8, 0).repeat(8, 1)
    return (255 * rough[:rows, :columns] * rng.random((rows, columns)) ** 0.2).astype(np.uint8)


def input_of(grey_hw: NDArray[np.uint8], multiple: int) -> Tensor:
    rows, columns = grey_hw.shape
    padded = np.pad(grey_hw, ((0, -rows % multiple), (0, -columns % multiple)), mode="reflect")
    x = (padded.astype(np.float64) / 255 - GREY_MEAN) / GREY_STD
    return torch.tensor(x, dtype=torch.float32)[None, None]


def parts_of(
    network: DefectNetwork,
) -> tuple[ResNet50Encoder, ResNet50Encoder, ResUNet | Segmenter]:
    """The gate's encoder, the segmenter's, and the module that holds the decoder."""
    if isinstance(network, TwoNetworks):
        return network.classifier.encoder, network.segmenter.encoder, network.segmenter
    assert isinstance(network, ResUNet)
    return network.encoder, network.encoder, network


def by_hand(
    network: DefectNetwork, grey_hw: NDArray[np.uint8], types: list[int], pixel_from: float = 0.5
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Each step written out: no hooks, one graph through the whole network, loops over channels."""
    first, second, holder = parts_of(network)
    x = network.shrink(input_of(grey_hw, 32 * network.input_stride))
    deepest = first(x).deepest
    gate = from_gradient(faulty_logit(network, deepest), deepest)

    features: Features = second(x)
    there = [tensor for tensor in features if tensor is not None]
    skips = (*there[-2::-1], None)
    first_block, *deeper = holder.decoder.blocks
    block = y = first_block(there[-1], skips[0])
    for decoder_block, skip in zip(deeper, skips[1:], strict=False):
        y = decoder_block(y, skip)
    full_hw = [side * network.input_stride for side in x.shape[2:]]
    logits = F.interpolate(holder.segmentation_head(y), size=full_hw, mode="bilinear")[0]
    logits = logits[:, : grey_hw.shape[0], : grey_hw.shape[1]]
    predicted = logits.sigmoid() >= pixel_from
    chosen = torch.zeros_like(predicted)
    chosen[types] = predicted[types]
    if not chosen.any():
        chosen[types] = True
    return at_size(gate, grey_hw, full_hw), at_size(
        from_gradient(logits[chosen].sum(), block), grey_hw, full_hw
    )


def heads_of(network: DefectNetwork) -> list[nn.Linear]:
    holder = network.classifier if isinstance(network, TwoNetworks) else network
    assert isinstance(holder, ResUNet | Classifier)
    heads = [holder.classification_head[3], holder.classification_head_mil[3]]
    return [head for head in heads if isinstance(head, nn.Linear)]


def faulty_logit(network: DefectNetwork, c5: Tensor) -> Tensor:
    average, mil = heads_of(network)
    by_position = c5[0].flatten(1).T @ mil.weight[0] + mil.bias[0]
    soft = ((4 * by_position).logsumexp(0) - np.log(len(by_position))) / 4
    mean = c5.mean((2, 3))[0] @ average.weight[0] + average.bias[0]
    logit: Tensor = (mean + soft) / 2
    return logit


def from_gradient(score: Tensor, features: Tensor) -> Tensor:
    gradient = torch.autograd.grad(score, features, retain_graph=True)[0]
    rows, columns = features.shape[2:]
    cam = torch.zeros(rows, columns)
    for channel in range(features.shape[1]):
        cam += gradient[0, channel].sum() / (rows * columns) * features[0, channel].detach()
    return torch.where(cam > 0, cam, 0)


def at_size(cam: Tensor, grey_hw: NDArray[np.uint8], full_hw: list[int]) -> NDArray[np.float32]:
    # OpenCV's bilinear resizing has the same half-pixel centres.
    full = cv2.resize(cam.numpy(), full_hw[::-1], interpolation=cv2.INTER_LINEAR)
    cropped = np.asarray(full[: grey_hw.shape[0], : grey_hw.shape[1]], np.float32)
    return cropped / np.float32(max(cropped.max(), 1e-30))


def assert_same(maps: CamMaps, expected: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    for got, want in zip(maps, expected, strict=True):
        assert got.dtype == np.float32
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, atol=2e-4)


# The maps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", FORMS, ids=str)
@pytest.mark.parametrize("size_hw", [(64, 128), (70, 101)])
def test_both_maps_are_what_autograd_gives_by_hand(
    settings: dict[str, object], size_hw: tuple[int, int]
) -> None:
    network = network_of(**settings)
    grey_hw = frame_of(*size_hw)
    peaks = []
    for k in range(K):
        expected = by_hand(network, grey_hw, [k])
        assert_same(gradcam(network, grey_hw, type_index=k), expected)
        peaks.append([float(cam_hw.max()) for cam_hw in expected])
    assert np.max(peaks, axis=0).tolist() == [1, 1]  # else the test proves little


def test_without_a_type_all_types_count(shared: ResUNet) -> None:
    grey_hw = frame_of(64, 96)
    assert_same(gradcam(shared, grey_hw, type_index=None), by_hand(shared, grey_hw, [0, 1, 2]))


@pytest.mark.parametrize("pixel_from", [0.3, 0.55, 0.999999])
def test_the_threshold_chooses_the_pixels_and_none_means_all(
    shared: ResUNet, pixel_from: float
) -> None:
    grey_hw = frame_of(64, 96)
    maps = gradcam(shared, grey_hw, type_index=0, pixel_from=pixel_from)
    assert_same(maps, by_hand(shared, grey_hw, [0], pixel_from))


@pytest.mark.parametrize("average_alone", [False, True])
def test_the_gate_map_is_the_class_activation_map_of_its_linear_heads(
    average_alone: bool,
) -> None:
    """Zhou et al. need no gradient. The soft maximum's gradients sum to its weights, too."""
    network = network_of()
    assert isinstance(network, ResUNet)
    average, mil = heads_of(network)
    if average_alone:
        nn.init.zeros_(mil.weight)
    grey_hw = frame_of(64, 128)
    with torch.no_grad():
        c5 = network.encode(input_of(grey_hw, 32)).c5[0]
        cam = torch.einsum("c,chw->hw", average.weight[0] + mil.weight[0], c5).relu()
    expected = at_size(cam, grey_hw, [64, 128])
    assert expected.max() == 1
    got = gradcam(network, grey_hw, type_index=0).gate_hw
    np.testing.assert_allclose(got, expected, atol=2e-4)


def test_what_speaks_nowhere_gives_zeros_and_no_nan() -> None:
    network = network_of()
    for head in heads_of(network):
        nn.init.constant_(head.weight, -1.0)
    gate_hw = gradcam(network, frame_of(64, 64), type_index=0).gate_hw
    assert not gate_hw.any()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("arch", ["shared", "two"])
def test_the_network_is_left_as_it_was(arch: str, training: bool) -> None:
    network = network_of(arch=arch)
    network.train(training)
    next(network.children()).eval()  # a part that someone froze
    modes = [m.training for m in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert torch.is_grad_enabled()
    first = gradcam(network, frame_of(64, 64), type_index=0)
    assert torch.is_grad_enabled()
    assert [m.training for m in network.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    with torch.inference_mode():  # as an evaluation runs
        again = gradcam(network, frame_of(64, 64), type_index=0)
    np.testing.assert_array_equal(first, again)


def test_an_error_inside_leaves_nothing_behind() -> None:
    network = network_of().train()
    network.encoders[0].layer3.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gradcam(network, frame_of(64, 64), type_index=0)
    assert torch.is_grad_enabled()
    assert all(m.training for m in network.modules())
    assert not network.encoders[0]._forward_hooks


@pytest.mark.parametrize("index", [-1, K])
def test_a_type_that_does_not_exist_is_refused(shared: ResUNet, index: int) -> None:
    with pytest.raises(InputError, match=r"0 to 2, got"):
        gradcam(shared, frame_of(64, 64), type_index=index)


def test_an_answer_that_is_not_finite_is_refused() -> None:
    network = network_of()
    with torch.no_grad():
        network.encoders[0].bn1.bias[0] = torch.nan
    with pytest.raises(InputError, match="NaN or infinity"):
        gradcam(network, frame_of(64, 64), type_index=0)


def test_maps_of_real_defects_lie_on_the_labels(shared_dir: Path) -> None:
    data = shared_dir / "data" / "severstal"
    with (data / "train.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    network = load_network(shared_dir / "weights" / "resunet50_severstal.safetensors")
    for class_id in ("2", "4"):
        row = next(row for row in rows if row["ClassId"] == class_id)
        grey_hw = read_file(data / "images" / row["ImageId"]).grey_hw
        height, width = grey_hw.shape
        labelled_hw = decode_rle(row["EncodedPixels"], (width, height))
        for cam_hw in gradcam(network, grey_hw, type_index=int(class_id) - 1):
            assert cam_hw[labelled_hw].mean() > 4 * cam_hw[~labelled_hw].mean()


# Weights -----------------------------------------------------------------------------------------


def test_the_bundle_without_weights_says_how_to_get_them() -> None:
    with pytest.raises(InputError, match=r"--weights FILE: best\.safetensors") as caught:
        load_network(DEFAULT_BUNDLE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_weights_of_a_run_load_in_the_form_they_name(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    network = network_of(**settings)
    path = tmp_path / "best.safetensors"
    form = Network.model_validate({"width": 0.125, **settings}).model_dump(mode="json")
    save_checkpoint(path, network.state_dict(), {"network": form, "classes": ["a", "b", "c"]})
    loaded = load_network(path, file_entry(path).sha256)
    assert not loaded.training
    grey_hw = frame_of(64, 64)
    np.testing.assert_array_equal(
        gradcam(loaded, grey_hw, type_index=2), gradcam(network, grey_hw, type_index=2)
    )
    with pytest.raises(InputError, match="would explain another network"):
        load_network(path, "0" * 64)


def test_weights_in_a_bundle_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = network_of()
    path = tmp_path / "weights.safetensors"
    form = Network(width=0.125).model_dump(mode="json")
    save_checkpoint(path, network.state_dict(), {"network": form, "classes": ["a", "b", "c"]})

    class Held:
        classes = ("a", "b", "c")
        manifest = type("Manifest", (), {"weights": file_entry(path)})

        def weights(self) -> Path:
            return path

    monkeypatch.setattr(module, "load_bundle", lambda folder: Held() if folder == tmp_path else 0)
    assert load_network(tmp_path).types == K


def test_files_that_are_no_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, path)
    for wrong in (path, tmp_path / "absent.safetensors"):
        with pytest.raises(InputError) as caught:
            load_network(wrong)
        assert "\n" not in str(caught.value)
        assert "expected" in str(caught.value)


# The picture -------------------------------------------------------------------------------------


def test_a_picture_shows_steel_where_the_map_is_zero_and_the_colour_where_it_is_high() -> None:
    grey_hw = np.full((64, 96), 90, np.uint8)
    cam_hw = np.zeros((64, 96), np.float32)
    cam_hw[16:48, 32:64] = 1
    jpeg = draw_cam(grey_hw, cam_hw)
    assert jpeg == draw_cam(grey_hw, cam_hw)
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    bgr = decoded.astype(int)
    assert abs(bgr[:10] - 90).max() <= 4
    # The end of Inferno is (252, 255, 164), matplotlib's table.
    wanted_bgr = 0.3 * 90 + 0.7 * np.array([164, 255, 252])
    assert abs(bgr[24:40, 40:56] - wanted_bgr).max() <= 5


def test_a_map_of_another_frame_is_refused() -> None:
    with pytest.raises(InputError, match="frame's size"):
        draw_cam(np.zeros((64, 96), np.uint8), np.zeros((96, 64), np.float32))
