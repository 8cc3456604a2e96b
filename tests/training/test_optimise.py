import math

import pytest
import torch
from torch import nn

from steelsight.models.res_unet import ResUNet
from steelsight.training.config import Optimiser
from steelsight.training.optimise import (
    AveragedWeights,
    freeze_batchnorm,
    parameter_groups,
    rate_factor,
    set_rates,
)


@pytest.fixture(scope="module")
def network() -> ResUNet:
    return ResUNet(types=2, width=1 / 8)


def by_name(groups: list[dict[str, object]]) -> dict[str, dict[str, object]]:
    return {name: group for group in groups for name in group["names"]}  # type: ignore[attr-defined]


def test_each_parameter_is_in_one_group_with_its_own_tensor(network: ResUNet) -> None:
    groups = parameter_groups(network, set(), Optimiser())
    names = [name for group in groups for name in group["names"]]  # type: ignore[attr-defined]
    assert sorted(names) == sorted(dict(network.named_parameters()))
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):  # type: ignore[call-overload]
            assert network.get_parameter(name) is parameter


def test_rates_fall_towards_the_first_layers_and_new_ones_learn_fastest(network: ResUNet) -> None:
    new = {"segmentation_head.0.weight", "encoder.layer4.0.conv1.weight"}
    config = Optimiser(lr=1.0, encoder_lr=0.5, layer_decay=0.5, weight_decay=0.1)
    rate = {
        name: group["lr"] for name, group in by_name(parameter_groups(network, new, config)).items()
    }
    assert rate["segmentation_head.0.weight"] == rate["encoder.layer4.0.conv1.weight"] == 1.0
    assert rate["encoder.layer4.1.conv1.weight"] == 0.5
    assert rate["encoder.layer3.0.conv1.weight"] == 0.25
    assert rate["encoder.layer1.0.bn1.bias"] == 0.0625
    assert rate["encoder.conv1.weight"] == rate["encoder.bn1.weight"] == 0.03125
    # Came with the start, but is no encoder: as its last stage.
    assert rate["decoder.blocks.0.conv1.0.weight"] == 0.5


def test_biases_and_batchnorm_do_not_decay(network: ResUNet) -> None:
    groups = by_name(parameter_groups(network, set(), Optimiser(weight_decay=0.1)))
    for name, parameter in network.named_parameters():
        assert groups[name]["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)


def test_rate_rises_in_a_line_and_falls_as_a_cosine_to_nothing() -> None:
    factors = [rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    for i in range(10, 100):
        assert factors[i] == pytest.approx((1 + math.cos(math.pi * (i - 9) / 91)) / 2)
    assert factors[-1] < 0.001
    assert rate_factor(0, 1, 0.0) == 1


def test_rates_are_set_from_the_peak_and_do_not_pile_up() -> None:
    parameter = nn.Parameter(torch.zeros(2, 2))
    group = {"params": [parameter], "lr": 0.2, "peak_lr": 0.2}
    optimiser = torch.optim.AdamW([group])
    set_rates(optimiser, 0.5)
    set_rates(optimiser, 0.5)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.1)


def test_average_follows_its_formula_and_counters_are_copied() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    averaged = AveragedWeights(network, 0.9)
    expected = {n: t.clone().double() for n, t in network.state_dict().items()}
    for step in range(200):
        network(torch.randn(2, 1, 8, 8))  # moves the BatchNorm statistics
        with torch.no_grad():
            network[0].weight.normal_()
        averaged.update(network, step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, t in network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * t.double()
    for name, t in averaged.state.items():
        if t.is_floating_point():
            torch.testing.assert_close(t.double(), expected[name], rtol=1e-4, atol=1e-6)
    assert averaged.state["1.num_batches_tracked"] == 200
    assert averaged.state["0.weight"] is not network[0].weight


def test_frozen_batchnorm_keeps_its_statistics_in_the_encoder_only(network: ResUNet) -> None:
    network.train()
    freeze_batchnorm(network)
    before = {n: t.clone() for n, t in network.named_buffers()}
    network(torch.randn(2, 1, 64, 64))
    for name, t in network.named_buffers():
        same = torch.equal(t, before[name])
        assert same == name.startswith("encoder."), name
