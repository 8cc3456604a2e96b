import pytest
import torch
from torch import Tensor, nn

from steelsight.models.config import Arch, Network
from steelsight.models.res_unet import DefectNetwork, build_network
from steelsight.training.deployed import (
    LOGITS,
    MASKS,
    PROBABILITIES,
    Deployed,
    SplitBlock,
    Stem,
    features_of,
    outputs_of,
)

FORMS = {
    "shared": Network(width=0.125),
    "half": Network(width=0.125, input_stride=2, mask_stride=2),
    "half to a quarter": Network(width=0.125, input_stride=2),
    "full size masks": Network(width=0.125, mask_stride=1),
    "residual": Network(width=0.125, mask_stride=2, residual=True),
    "two": Network(width=0.125, arch=Arch.TWO),
    "two at half": Network(width=0.125, arch=Arch.TWO, input_stride=2, stride_on="v1.5"),
}


@pytest.fixture(params=FORMS)
def network(request: pytest.FixtureRequest) -> DefectNetwork:
    """Random weights, and statistics of BatchNorm that are not those of a new network."""
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(5)
    built = build_network(4, FORMS[request.param])
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2),
                (module.weight, 0.7, 1.3),
                (module.bias, -0.2, 0.2),
            ):
                assert tensor is not None
                with torch.no_grad():
                    tensor.uniform_(low, high, generator=generator)
    return built.eval()


@torch.inference_mode()
def test_what_is_shipped_says_what_was_trained(network: DefectNetwork) -> None:
    """Borders included: padding means the mean grey, also where levels are shifted."""
    frames = torch.randint(0, 256, (2, 1, 128, 192), dtype=torch.uint8)
    want = network((frames / 255 - 0.449) / 0.226)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    deployed = Deployed(network)
    got: dict[str, Tensor] = dict(zip(outputs_of(network), deployed(frames), strict=True))
    assert got.keys() == {*PROBABILITIES, MASKS, *features_of(network), *LOGITS}
    for name, expected in zip((*LOGITS, MASKS), want, strict=True):
        largest = float(expected.abs().max())
        torch.testing.assert_close(got[name], expected, rtol=0, atol=2e-5 * largest)
    torch.testing.assert_close(got["faulty_probability"], want.faulty.sigmoid())

    # The network itself stays as it is.
    after = network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_plain_blocks_and_first_convolutions_are_rewritten(network: DefectNetwork) -> None:
    kinds = [type(module) for module in Deployed(network).modules()]
    assert kinds.count(Stem) == len(network.encoders)
    plain = sum(
        name.endswith("conv1") and f"{name.removesuffix('conv1')}shortcut" not in names
        for names in [dict(network.named_modules())]
        for name, module in names.items()
        if ".blocks." in name and not name.endswith("blocks.4.conv1")
    )
    assert kinds.count(SplitBlock) == plain
