import importlib.util
import math
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from steelsight.errors import InputError
from steelsight.models.config import Arch, Network
from steelsight.models.res_unet import (
    DefectNetwork,
    Logits,
    ResUNet,
    TwoNetworks,
    build_network,
    soft_maximum,
    upsample_logits,
)
from steelsight.models.resnet import StrideOn

EXAMPLES = ("000a4bcdd.jpg", "005b92582.jpg")
"""A faulty and a clean frame of ``example_outputs.npz``."""


def outline(**options: object) -> ResUNet:
    """A network of shapes without numbers."""
    with torch.device("meta"):
        return ResUNet(**options)  # type: ignore[arg-type]


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Form --------------------------------------------------------------------------------------------


def test_the_default_network_has_32_5_million_parameters() -> None:
    network = outline()
    assert parameters(network) == pytest.approx(32.5e6, rel=0.002)
    conv1, fc = 64 * 7 * 7, 2048 * 5 + 5
    # Encoder: the published ResNet50 without its 1000 outputs and two of three input channels.
    assert parameters(network.encoder) == 25_557_032 - 2 * conv1 - (2048 * 1000 + 1000)
    blocks = [(2048 + 1024, 256), (256 + 512, 128), (128 + 256, 64)]
    decoder = sum(9 * i * o + 9 * o * o + 4 * o for i, o in blocks)
    assert parameters(network.decoder) == decoder
    head = 9 * 64 * 4 + 4
    assert parameters(network) == parameters(network.encoder) + decoder + head + 2 * fc


def test_names_are_those_of_segmentation_models_pytorch() -> None:
    """As ``smp.Unet("resnet50", decoder_channels=..., aux_params=...)`` writes them."""
    shapes = {
        name: tuple(value.shape) for name, value in outline(mask_stride=1).state_dict().items()
    }
    expected = {
        "encoder.conv1.weight": (64, 1, 7, 7),
        "encoder.bn1.running_var": (64,),
        "encoder.layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "encoder.layer4.2.bn3.bias": (2048,),
        "decoder.blocks.0.conv1.0.weight": (256, 3072, 3, 3),
        "decoder.blocks.0.conv1.1.weight": (256,),
        "decoder.blocks.0.conv2.0.weight": (256, 256, 3, 3),
        "decoder.blocks.1.conv1.0.weight": (128, 768, 3, 3),
        "decoder.blocks.2.conv1.0.weight": (64, 384, 3, 3),
        "decoder.blocks.3.conv1.0.weight": (32, 128, 3, 3),
        "decoder.blocks.4.conv1.0.weight": (16, 32, 3, 3),
        "decoder.blocks.4.conv2.1.running_mean": (16,),
        "segmentation_head.0.weight": (4, 16, 3, 3),
        "segmentation_head.0.bias": (4,),
        "classification_head.3.weight": (5, 2048),
        "classification_head_mil.3.bias": (5,),
    }
    assert {name: shapes.get(name) for name in expected} == expected


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("stride", "channels"), [(4, 64), (2, 32), (1, 16)])
@pytest.mark.parametrize("types", [1, 4])
@pytest.mark.parametrize(("rows", "columns"), [(32, 96), (256, 1600)])
def test_masks_come_at_the_decoders_stride(
    residual: bool, stride: int, channels: int, types: int, rows: int, columns: int
) -> None:
    network = outline(types=types, mask_stride=stride, residual=residual)
    with torch.device("meta"):
        logits = network(torch.empty(3, 1, rows, columns))
    assert isinstance(logits, Logits)
    assert logits.average.shape == logits.soft_maximum.shape == (3, 1 + types)
    assert logits.masks.shape == (3, types, rows // stride, columns // stride)
    assert logits.faulty.shape == (3,)
    assert network.segmentation_head[0].in_channels == channels
    with torch.device("meta"):
        full = upsample_logits(logits.masks, network.mask_stride)
    assert full.shape == (3, types, rows, columns)


@pytest.mark.parametrize("arch", Arch)
@pytest.mark.parametrize("stride", [4, 2, 1])
@pytest.mark.parametrize("stages", [2, 3])
def test_a_network_that_ends_early_has_masks_at_the_same_strides(
    arch: Arch, stride: int, stages: int
) -> None:
    with torch.device("meta"):
        network = build_network(
            4, Network(arch=arch, stages=stages, mask_stride=stride, input_stride=2)
        )
        logits = network(torch.empty(2, 1, 256, 192))
    assert logits.average.shape == logits.soft_maximum.shape == (2, 5)
    assert logits.masks.shape == (2, 4, 128 // stride, 96 // stride)
    blocks = {name.split("blocks.")[1][0] for name in network.state_dict() if "blocks." in name}
    assert len(blocks) == {4: 3, 2: 4, 1: 5}[stride] - (4 - stages)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    part = "segmenter." if arch is Arch.TWO else ""
    joined, out = {2: (512 + 256, 64), 3: (1024 + 512, 128)}[stages]
    assert shapes[f"{part}decoder.blocks.0.conv1.0.weight"] == (out, joined, 3, 3)
    head = "classifier." if arch is Arch.TWO else ""
    assert shapes[f"{head}classification_head_mil.3.weight"] == (5, {2: 512, 3: 1024}[stages])


@pytest.mark.parametrize("stride", [4, 2, 1])
def test_residual_blocks_add_nothing_but_1x1_shortcuts(stride: int) -> None:
    plain, residual = (outline(mask_stride=stride, residual=r) for r in (False, True))
    added = set(residual.state_dict()) - set(plain.state_dict())
    blocks = {4: 3, 2: 4, 1: 5}[stride]
    assert added == {
        f"decoder.blocks.{i}.shortcut.{kind}" for i in range(blocks) for kind in ("weight", "bias")
    }
    joined, out = (3072, 768, 384, 128, 32), (256, 128, 64, 32, 16)
    extra = sum((i + 1) * o for i, o in zip(joined[:blocks], out[:blocks], strict=True))
    assert parameters(residual) - parameters(plain) == extra


@torch.inference_mode()
def test_a_residual_block_adds_its_input_through_the_shortcut() -> None:
    torch.manual_seed(0)
    block = ResUNet(mask_stride=1, residual=True).eval().decoder.blocks[3]
    x, skip = torch.randn(1, 64, 3, 5), torch.randn(1, 64, 6, 10)
    joined = torch.cat([x.repeat_interleave(2, 2).repeat_interleave(2, 3), skip], 1)
    straight = block.conv2(block.conv1(joined))
    torch.testing.assert_close(block(x, skip), straight + block.shortcut(joined))
    assert block.shortcut(joined).abs().max() > 0.1


def test_rgb_and_the_other_stride_position_reach_the_encoder() -> None:
    network = outline(in_channels=3, stride_on=StrideOn.CONV_3X3)
    assert network.encoder.conv1.in_channels == 3
    assert network.encoder.layer2[0].conv2.stride == (2, 2)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"mask_stride": 3}, r"mask stride of \[1, 2, 4\], got 3"),
        ({"mask_stride": 8}, r"mask stride of \[1, 2, 4\], got 8"),
        ({"mask_stride": 0}, r"mask stride of \[1, 2, 4\], got 0"),
        ({"in_channels": 2}, "got 2"),
        ({"input_stride": 3}, r"input stride of \(1, 2\), got 3"),
        ({"width": 0}, "width above 0, got 0"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, int], problem: str) -> None:
    for form in (ResUNet, TwoNetworks):
        with pytest.raises(InputError, match=problem):
            form(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "columns"), [(64, 80), (48, 64), (33, 64), (64, 100)])
def test_sizes_that_are_no_multiple_of_32_do_not_run(rows: int, columns: int) -> None:
    """Torch itself refuses to join feature maps of different sizes: nothing is cropped silently.

    Whoever calls the network pads first; the engine does (``multiple_of`` in the manifest).
    """
    with torch.device("meta"), pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        outline()(torch.empty(1, 1, rows, columns))


def test_a_few_rows_short_of_32_give_masks_of_the_next_multiple() -> None:
    """Where every halving rounds up to a fit, nothing refuses: the caller has to pad and crop."""
    with torch.device("meta"):
        logits = outline()(torch.empty(1, 1, 63, 64))
        assert upsample_logits(logits.masks, 4).shape == (1, 4, 64, 64)


# Both forms --------------------------------------------------------------------------------------


def small(arch: Arch, **settings: object) -> DefectNetwork:
    torch.manual_seed(0)
    return build_network(3, Network(arch=arch, width=0.125, **settings)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", Arch)
@pytest.mark.parametrize("input_stride", [1, 2])
@pytest.mark.parametrize("mask_stride", [4, 2, 1])
def test_settings_become_a_network(arch: Arch, input_stride: int, mask_stride: int) -> None:
    config = Network(
        arch=arch,
        width=0.25,
        input_stride=input_stride,
        mask_stride=mask_stride,
        stride_on="v1.5",
        residual=True,
        dropout=0.3,
    )
    with torch.device("meta"):
        network = build_network(2, config)
        logits = network(torch.empty(2, 1, 128, 192))
        full = upsample_logits(logits.masks, network.mask_stride)
    stride = input_stride * mask_stride
    assert (network.types, network.input_stride, network.mask_stride) == (2, input_stride, stride)
    assert logits.average.shape == logits.soft_maximum.shape == (2, 3)
    assert logits.masks.shape == (2, 2, 128 // stride, 192 // stride)
    assert full.shape == (2, 2, 128, 192)
    assert len(network.encoders) == (2 if arch is Arch.TWO else 1)
    assert all(e.stride_on is StrideOn.CONV_3X3 for e in network.encoders)
    dropouts = [m.p for m in network.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts == [0.3, 0.3]
    assert any(".shortcut." in name for name in network.state_dict())


def test_full_width_and_narrow_networks_have_the_same_names() -> None:
    with torch.device("meta"):
        wide, narrow = (build_network(4, Network(width=w)).state_dict() for w in (1, 0.125))
    assert wide.keys() == narrow.keys()


def test_two_networks_have_the_shared_forms_names_in_two_places() -> None:
    with torch.device("meta"):
        shared, two = (build_network(4, Network(arch=arch)) for arch in Arch)
    gate = {n for n in shared.state_dict() if n.startswith(("encoder.", "classification_head"))}
    masks = {n for n in shared.state_dict() if not n.startswith("classification_head")}
    assert set(two.state_dict()) == {
        *(f"classifier.{n}" for n in gate),
        *(f"segmenter.{n}" for n in masks),
    }
    assert parameters(two) == parameters(shared) + parameters(shared.encoders[0])


@torch.inference_mode()
def test_two_networks_with_the_same_encoder_twice_are_the_shared_form() -> None:
    shared, two = small(Arch.SHARED), small(Arch.TWO)
    state = shared.state_dict()
    two.load_state_dict(
        {
            name: state[name.removeprefix("classifier.").removeprefix("segmenter.")]
            for name in two.state_dict()
        }
    )
    x = torch.randn(2, 1, 64, 96)
    for ours, theirs in zip(shared(x), two(x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("arch", Arch)
@pytest.mark.parametrize("input_stride", [1, 2])
@torch.inference_mode()
def test_the_stages_one_by_one_say_what_the_network_says(arch: Arch, input_stride: int) -> None:
    network = small(arch, input_stride=input_stride)
    x = torch.randn(2, 1, 64, 128)
    logits = network(x)
    average, maximum = network.classify_frames(x)
    assert torch.equal(average, logits.average)
    assert torch.equal(maximum, logits.soft_maximum)
    assert torch.equal(network.segment_frames(x), logits.masks)


@pytest.mark.parametrize("arch", Arch)
@torch.inference_mode()
def test_half_resolution_is_the_same_network_on_averaged_frames(arch: Arch) -> None:
    half, whole = small(arch, input_stride=2), small(arch)
    whole.load_state_dict(half.state_dict())
    x = torch.randn(2, 1, 64, 128)
    averaged = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    for ours, theirs in zip(half(x), whole(averaged), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", Arch)
@torch.inference_mode()
def test_heads_compute_in_single_precision_under_autocast(arch: Arch) -> None:
    """From the same bf16 features, they say the same as without autocast."""
    network = small(arch)
    x = torch.randn(1, 1, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        c5 = network.encoders[0](x).c5
        average, maximum = network.classify_frames(x)
    assert c5.dtype == torch.bfloat16
    assert average.dtype == maximum.dtype == torch.float32
    c5_hook = small(Arch.SHARED)
    assert isinstance(c5_hook, ResUNet)
    gate = network.classifier if isinstance(network, TwoNetworks) else network
    c5_hook.classification_head = gate.classification_head
    c5_hook.classification_head_mil = gate.classification_head_mil
    expected = c5_hook.classify(c5.float())
    assert torch.equal(average, expected[0])
    assert torch.equal(maximum, expected[1])


@pytest.mark.parametrize("arch", Arch)
def test_every_parameter_learns(arch: Arch) -> None:
    network = small(arch, dropout=0).train()
    logits = network(torch.randn(2, 1, 64, 64))
    (logits.average.sum() + logits.soft_maximum.sum() + logits.masks.square().sum()).backward()
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


# Parts -------------------------------------------------------------------------------------------


@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.floats(0.1, 50),
    st.integers(0, 2**31),
)
def test_the_soft_maximum_is_log_mean_exp(
    n: int, k: int, size_hw: tuple[int, int], spread: float, seed: int
) -> None:
    z = spread * torch.randn(n, k, *size_hw, generator=torch.Generator().manual_seed(seed))
    count = size_hw[0] * size_hw[1]
    expected = (torch.logsumexp(4.0 * z.double().flatten(2), 2) - math.log(count)) / 4.0
    torch.testing.assert_close(soft_maximum(z).double(), expected, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_the_soft_maximum_does_not_depend_on_the_number_of_positions(
    down: int, across: int, seed: int
) -> None:
    z = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    tiled = z.repeat(1, 1, down, across)
    torch.testing.assert_close(soft_maximum(tiled), soft_maximum(z))


@given(st.floats(-1e4, 1e4, width=32), st.integers(1, 40))
def test_the_soft_maximum_of_one_value_everywhere_is_that_value(value: float, count: int) -> None:
    z = torch.full((1, 1, 1, count), value)
    torch.testing.assert_close(soft_maximum(z), torch.tensor([[value]]))


def test_the_soft_maximum_lies_between_mean_and_maximum() -> None:
    z = 3 * torch.randn(4, 5, 8, 50, generator=torch.Generator().manual_seed(0))
    found = soft_maximum(z)
    assert (found > z.mean((2, 3))).all()
    assert (found < z.amax((2, 3))).all()


def test_the_soft_maximum_of_huge_logits_stays_finite() -> None:
    z = torch.tensor([[[[1e4, -1e4, 0.0]]]])
    expected = 1e4 - math.log(3) / 4
    torch.testing.assert_close(soft_maximum(z), torch.tensor([[expected]]))


@pytest.mark.parametrize("scale", [4, 2, 1])
def test_upsampling_is_bilinear_from_pixel_centres(scale: int) -> None:
    logits = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(
        logits, size=(5 * scale, 7 * scale), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(upsample_logits(logits, scale), expected)
    # OpenCV agrees, which is what the engines are compared with by eye.
    by_opencv = cv2.resize(logits[1, 2].numpy(), (7 * scale, 5 * scale))
    np.testing.assert_allclose(upsample_logits(logits, scale)[1, 2], by_opencv, atol=1e-5)


def test_half_precision_logits_are_upsampled_in_full_precision() -> None:
    assert upsample_logits(torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16), 4).dtype == torch.float32
    assert upsample_logits(torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16), 1).dtype == torch.float32


def test_the_faulty_logit_is_the_mean_of_both_heads() -> None:
    average, peak = torch.tensor([[1.0, 9.0], [2.0, 9.0]]), torch.tensor([[3.0, 8.0], [-2.0, 8.0]])
    assert Logits(average, peak, torch.empty(0)).faulty.tolist() == [2.0, 0.0]


@torch.inference_mode()
def test_the_heads_against_a_computation_position_by_position() -> None:
    torch.manual_seed(0)
    network = ResUNet(types=2).eval()
    c5 = torch.randn(2, 2048, 3, 4)
    average, peak = network.classify(c5)
    linear, linear_mil = network.classification_head[3], network.classification_head_mil[3]
    torch.testing.assert_close(average, linear(c5.mean((2, 3))), rtol=1e-4, atol=1e-5)
    by_position = torch.stack([linear_mil(c5[..., y, x]) for y in range(3) for x in range(4)], 2)
    expected = (torch.logsumexp(4 * by_position, 2) - math.log(12)) / 4
    torch.testing.assert_close(peak, expected, rtol=1e-4, atol=1e-5)


# The trained weights -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state(shared_dir: Path) -> dict[str, Tensor]:
    stored = load_file(shared_dir / "weights/resunet50_severstal.safetensors")
    return {name: value.float() for name, value in stored.items()}


@pytest.fixture(scope="module")
def network(state: dict[str, Tensor]) -> ResUNet:
    network = ResUNet(4)
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return network.eval()


def frame(shared_dir: Path, name: str) -> Tensor:
    """Read by OpenCV, not by our own decoder, and normalised as ``networks.md`` says."""
    grey = cv2.imread(str(shared_dir / "data/severstal/images" / name), cv2.IMREAD_GRAYSCALE)
    assert grey is not None
    return (torch.from_numpy(grey)[None, None] / 255 - 0.449) / 0.226


@pytest.mark.parametrize("name", EXAMPLES)
def test_trained_weights_give_the_outputs_they_gave_their_trainer(
    shared_dir: Path, network: ResUNet, name: str
) -> None:
    outputs = np.load(shared_dir / "weights/example_outputs.npz")
    index = outputs["ids"].tolist().index(name)
    with torch.inference_mode():
        logits = network(frame(shared_dir, name))
    expected = outputs["head_avg_logits"][index], outputs["head_mil_logits"][index]
    np.testing.assert_allclose(logits.average[0], expected[0], atol=1e-4)
    np.testing.assert_allclose(logits.soft_maximum[0], expected[1], atol=1e-4)
    # Stored as 16-bit floats: 11 bits of mantissa.
    masks = outputs["mask_prob_stride4"][index].astype(np.float32)
    np.testing.assert_allclose(logits.masks[0].sigmoid(), masks, rtol=2**-10, atol=1e-5)


def test_trained_weights_in_our_network_and_in_the_reference_agree(
    shared_dir: Path, state: dict[str, Tensor], network: ResUNet
) -> None:
    reference_module = load_by_path(shared_dir / "weights/reference_model.py")
    with torch.device("meta"):  # saves drawing weights that are replaced at once
        reference = reference_module.ResUNet().eval()
    _, unexpected = reference.load_state_dict(state, strict=False, assign=True)
    assert not unexpected
    x = frame(shared_dir, EXAMPLES[0])[..., 512:1024]
    with torch.inference_mode():
        ours, theirs = network(x), reference(x)
        full = reference_module.upsample(theirs["seg"], x.shape[-2:])
        torch.testing.assert_close(upsample_logits(ours.masks, 4), full, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.average, theirs["avg"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.soft_maximum, theirs["mil"], rtol=1e-5, atol=1e-5)


def load_by_path(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
