from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from steelsight.errors import InputError
from steelsight.models.resnet import (
    GREY_MEAN,
    GREY_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    STAGE_CHANNELS,
    Features,
    ResNet50Classifier,
    ResNet50Encoder,
    StrideOn,
    fold_rgb_to_grey,
    scaled_channels,
)

IMAGENET_FILE = "weights/resnet50_imagenet_conv1_layer3.safetensors"


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def randomised(network: ResNet50Encoder, seed: int = 0) -> ResNet50Encoder:
    """BatchNorm statistics other than 0 and 1, so that folding them matters."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return network.eval()


@pytest.mark.parametrize("stride_on", StrideOn)
@pytest.mark.parametrize(
    ("outputs", "in_channels", "count"),
    [
        (1000, 3, 25_557_032),  # torchvision.models.resnet50, both stride positions
        (1000, 1, 25_557_032 - 2 * 64 * 7 * 7),
        (5, 1, 25_557_032 - 2 * 64 * 7 * 7 - 995 * (2048 + 1)),
    ],
)
def test_a_classifier_has_the_published_number_of_parameters(
    outputs: int, in_channels: int, count: int, stride_on: StrideOn
) -> None:
    with torch.device("meta"):
        assert parameters(ResNet50Classifier(outputs, in_channels, stride_on)) == count


@pytest.mark.parametrize("stride_on", StrideOn)
def test_names_and_shapes_are_those_of_published_weights(
    shared_dir: Path, stride_on: StrideOn
) -> None:
    """The file holds conv1 to layer3 by torchvision's names."""
    published = {
        name: tuple(value.shape) for name, value in load_file(shared_dir / IMAGENET_FILE).items()
    }
    with torch.device("meta"):
        ours = ResNet50Encoder(3, stride_on).state_dict()
    found = {
        name: tuple(value.shape)
        for name, value in ours.items()
        if not name.startswith("layer4.") and not name.endswith("num_batches_tracked")
    }
    assert found == {name: shape for name, shape in published.items() if "num_batches" not in name}


def test_v1_and_v1_5_differ_in_nothing_but_where_they_stride() -> None:
    with torch.device("meta"):
        v1, v15 = (ResNet50Encoder(1, stride_on) for stride_on in StrideOn)
    shapes = [{n: tuple(v.shape) for n, v in net.state_dict().items()} for net in (v1, v15)]
    assert shapes[0] == shapes[1]
    for network, expected in ((v1, ((2, 2), (1, 1))), (v15, ((1, 1), (2, 2)))):
        for stage in (network.layer2, network.layer3, network.layer4):
            assert (stage[0].conv1.stride, stage[0].conv2.stride) == expected
            assert stage[0].downsample[0].stride == (2, 2)
            assert all(b.conv1.stride == b.conv2.stride == (1, 1) for b in stage[1:])
        assert all(b.conv1.stride == b.conv2.stride == (1, 1) for b in network.layer1)
    assert [len(stage) for stage in (v1.layer1, v1.layer2, v1.layer3, v1.layer4)] == [3, 4, 6, 3]


def test_weights_of_one_form_mean_something_else_in_the_other() -> None:
    v1, v15 = (randomised(ResNet50Encoder(1, stride_on)) for stride_on in StrideOn)
    v15.load_state_dict(v1.state_dict())
    x = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours, theirs = v1(x), v15(x)
    assert torch.equal(ours.c2, theirs.c2)  # no stride up to there
    assert not torch.allclose(ours.c3, theirs.c3, rtol=0.1)


@pytest.mark.parametrize("stride_on", StrideOn)
@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (64, 96), (256, 1600)])
def test_features_have_the_channels_and_strides_of_a_resnet50(
    rows: int, columns: int, in_channels: int, stride_on: StrideOn
) -> None:
    with torch.device("meta"):
        features = ResNet50Encoder(in_channels, stride_on)(
            torch.empty(2, in_channels, rows, columns)
        )
    assert isinstance(features, Features)
    assert STAGE_CHANNELS == (64, 256, 512, 1024, 2048)
    for feature, channels, stride in zip(features, STAGE_CHANNELS, (2, 4, 8, 16, 32), strict=True):
        assert feature.shape == (2, channels, rows // stride, columns // stride)


@pytest.mark.parametrize("stages", [2, 3])
@torch.inference_mode()
def test_an_encoder_that_ends_early_is_the_first_stages_of_a_whole_one(stages: int) -> None:
    whole = randomised(ResNet50Encoder(width=0.125)).eval()
    part = ResNet50Encoder(width=0.125, stages=stages).eval()
    held = part.state_dict()
    part.load_state_dict({n: t for n, t in whole.state_dict().items() if n in held})
    assert not [n for n in held if f"layer{stages + 1}" in n or "layer4" in n]
    assert part.channels == whole.channels[: stages + 1]
    x = torch.randn(1, 1, 64, 96)
    found, expected = part(x), whole(x)
    names = ["c1", "c2", "c3", "c4"][: stages + 1]
    assert list(found.maps) == names
    assert list(expected.maps) == ["c1", "c2", "c3", "c4", "c5"]
    assert found.deepest is found.maps[names[-1]]
    assert expected.deepest is expected.c5
    for name in names:
        assert torch.equal(found.maps[name], expected.maps[name])
    other = torch.zeros(1)
    changed = found.with_deepest(other)
    assert changed.deepest is other
    assert all(changed.maps[name] is found.maps[name] for name in names[:-1])


@pytest.mark.parametrize("stages", [0, 1, 5])
def test_other_numbers_of_stages_are_refused(stages: int) -> None:
    with pytest.raises(InputError, match=f"expected 2 or 3 or 4 stages, got {stages}"):
        ResNet50Encoder(stages=stages)


def test_a_classifier_answers_per_frame() -> None:
    with torch.device("meta"):
        assert ResNet50Classifier(5)(torch.empty(3, 1, 64, 96)).shape == (3, 5)


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [(64, 1, 64), (2048, 0.5, 1024), (64, 0.25, 16), (64, 0.3, 16), (64, 0.01, 8), (16, 0.7, 8)],
)
def test_narrower_networks_have_multiples_of_8_channels(
    channels: int, width: float, expected: int
) -> None:
    assert scaled_channels(channels, width) == expected


@pytest.mark.parametrize(
    ("width", "channels"),
    [
        (1, STAGE_CHANNELS),
        (0.5, (32, 128, 256, 512, 1024)),
        (0.125, (8, 32, 64, 128, 256)),
        (0.01, (8, 32, 32, 32, 32)),
    ],
)
def test_a_narrower_encoder_has_the_channels_it_names(
    width: float, channels: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        encoder = ResNet50Encoder(width=width)
        features = encoder(torch.empty(2, 1, 64, 96))
    assert encoder.channels == channels == tuple(f.shape[1] for f in features)


@pytest.mark.parametrize("width", [0, -1, float("nan"), float("inf")])
def test_impossible_widths_are_refused(width: float) -> None:
    with pytest.raises(InputError, match="width above 0"):
        ResNet50Encoder(width=width)


@pytest.mark.parametrize("in_channels", [0, 2, 4])
def test_other_numbers_of_channels_are_refused(in_channels: int) -> None:
    with pytest.raises(InputError, match=f"1 \\(grey\\) or 3 \\(RGB\\).*got {in_channels}"):
        ResNet50Encoder(in_channels)
    with pytest.raises(InputError):
        ResNet50Classifier(5, in_channels)


def test_a_frame_of_another_number_of_channels_does_not_run() -> None:
    with torch.device("meta"), pytest.raises(RuntimeError, match="channel"):
        ResNet50Encoder(1)(torch.empty(1, 3, 64, 64))


# Grey from RGB -----------------------------------------------------------------------------------


def inputs_of(grey_hw: Tensor) -> tuple[Tensor, Tensor]:
    """One picture as both forms normalise it: RGB with three equal channels, and grey."""
    grey = grey_hw[None, None]
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (grey.expand(1, 3, -1, -1) - mean) / std, (grey - GREY_MEAN) / GREY_STD


def picture(rows: int, columns: int) -> Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(3))


def test_folding_to_grey_is_exact_away_from_the_border() -> None:
    rgb_network = randomised(ResNet50Encoder(3))
    state = rgb_network.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    grey_network = ResNet50Encoder(1).eval()
    grey_network.load_state_dict(fold_rgb_to_grey(state))
    rgb, grey = inputs_of(picture(96, 160))
    with torch.inference_mode():
        # The stem alone: deeper layers carry the border inwards.
        want = rgb_network.relu(rgb_network.bn1(rgb_network.conv1(rgb)))
        got = grey_network.relu(grey_network.bn1(grey_network.conv1(grey)))
    inside = slice(2, -2)  # 7 x 7 at stride 2 and padding 3: two outputs see the padding
    torch.testing.assert_close(got[..., inside, inside], want[..., inside, inside])
    assert not torch.allclose(got[..., 0, :], want[..., 0, :], atol=1e-3)
    assert all(torch.equal(value, state[name]) for name, value in before.items())


def test_folding_to_grey_is_exact_in_the_middle_of_the_published_network(shared_dir: Path) -> None:
    """With real weights up to C2; the constant border decides nothing in the middle."""
    published = load_file(shared_dir / IMAGENET_FILE)
    networks = ResNet50Encoder(3).eval(), ResNet50Encoder(1).eval()
    outputs = []
    for network, state, x in zip(
        networks,
        (published, fold_rgb_to_grey(published)),
        inputs_of(picture(128, 160)),
        strict=True,
    ):
        network.load_state_dict({n: v.float() for n, v in state.items()}, strict=False)
        with torch.inference_mode():
            outputs.append(
                network.layer1(network.maxpool(network.relu(network.bn1(network.conv1(x)))))
            )
    middle = slice(8, -8)
    want, got = (output[..., middle, middle].numpy() for output in outputs)
    np.testing.assert_allclose(got, want, atol=2e-5 * float(np.abs(want).max()))
    assert want.std() > 0.01


def test_folding_against_a_computation_by_hand() -> None:
    weight = torch.zeros(64, 3, 7, 7)
    weight[0, :, 3, 3] = torch.tensor([1.0, 2.0, 4.0])
    folded = fold_rgb_to_grey(
        {
            "conv1.weight": weight,
            "bn1.running_mean": torch.ones(64),
            "fc.bias": torch.arange(3.0),
        }
    )
    assert folded["conv1.weight"].shape == (64, 1, 7, 7)
    scaled = 0.226 * (1 / 0.229 + 2 / 0.224 + 4 / 0.225)
    assert folded["conv1.weight"][0, 0, 3, 3].item() == pytest.approx(scaled)
    shift = (0.449 - 0.485) / 0.229 + 2 * (0.449 - 0.456) / 0.224 + 4 * (0.449 - 0.406) / 0.225
    assert folded["bn1.running_mean"][0].item() == pytest.approx(1 - shift)
    assert folded["bn1.running_mean"][1:].tolist() == [1.0] * 63
    assert torch.equal(folded["fc.bias"], torch.arange(3.0))


def test_weights_that_are_grey_already_are_refused() -> None:
    state = ResNet50Encoder(1).state_dict()
    with pytest.raises(InputError, match=r"3 input channels, got \(64, 1, 7, 7\)"):
        fold_rgb_to_grey(state)
