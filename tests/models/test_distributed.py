"""Two processes with half a batch each against one with all of it.

Run as a script, this file is one of the two processes.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from steelsight.models.config import Arch, Loss, Network, Pixels, Region
from steelsight.models.distributed import (
    GlobalBatchNorm2d,
    global_mean,
    global_sum,
    rank,
    use_global_batchnorm,
    world_size,
)
from steelsight.models.losses import LossParts, training_loss
from steelsight.models.res_unet import DefectNetwork, build_network

PROCESSES = 2
LOSSES = {
    "default": Loss(),
    "focal": Loss(pixels=Pixels.FOCAL, region=Region.DICE),
    "bce": Loss(region=Region.NONE, pixel_weight=1, head_weight=1),
}


# What both sides compute -------------------------------------------------------------------------


def features() -> tuple[Tensor, Tensor]:
    """Far from 0, and unlike in the two halves: what a mean of means would get wrong."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 7, 9, generator=generator) * torch.arange(1.0, 6)[:, None, None]
    x[3:] = 40 + 3 * x[3:]
    return x, torch.randn(x.shape, generator=generator)


def batchnorm(x: Tensor, slope: Tensor, module: nn.BatchNorm2d) -> dict[str, Tensor]:
    """Two passes, so that running statistics are made of more than the first."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    module(x * 0.5)
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(slope)
    assert x.grad is not None
    grads = {f"d{n}": p.grad for n, p in module.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "dx": x.grad, **grads, **dict(module.named_buffers())}


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    frames = torch.randn(4, 1, 64, 64, generator=generator)
    masks = torch.zeros(4, 3, 64, 64, dtype=torch.bool)
    masks[0, 0, 8:40, 8:60] = True
    masks[1, 1, 3, 3:9] = True  # too small to be asked about
    masks[3, 2, 20:30] = True  # only in the second half
    return frames, masks


def network(arch: str) -> DefectNetwork:
    torch.manual_seed(3)
    # Without dropout: each process would draw its own.
    net = build_network(3, Network(arch=Arch(arch), width=0.125, dropout=0))
    # In double precision: a tiny network trained on noise blows rounding up.
    return net.double().train()


def step(net: nn.Module, frames: Tensor, masks: Tensor, stride: int, loss: Loss) -> LossParts:
    weights_k = torch.tensor([1.0, 2.0, 0.5])
    parts = training_loss(net(frames.double()), masks, stride, loss, 20, weights_k)
    parts.total.backward()
    return parts


def learned(net: DefectNetwork, parts: LossParts) -> dict[str, Tensor]:
    gradients = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    return {
        **{f"loss.{k}": v.detach() for k, v in parts._asdict().items()},
        **{f"gradient.{n}": g for n, g in gradients.items()},
        **{f"buffer.{n}": b for n, b in net.named_buffers()},
    }


# One of two processes ----------------------------------------------------------------------------


def work(number: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=number, world_size=PROCESSES
    )
    found: dict[str, dict[str, Tensor]] = {}
    value = torch.tensor([1.0, 10.0]) * (1 + number)
    value.requires_grad_()
    summed, mean = global_sum(value), global_mean(value)
    (summed * torch.tensor([1.0, 2.0]) * (number + 1)).sum().backward()
    assert value.grad is not None
    found["sums"] = {
        "sum": summed.detach(),
        "mean": mean.detach(),
        "slope": value.grad,
        "who": torch.tensor([rank(), world_size()]),
    }
    share = slice(3 * number, 3 * number + 3)
    x, slope = (t[share] for t in features())
    found["batchnorm"] = batchnorm(x, slope, GlobalBatchNorm2d(5))
    last = torch.channels_last
    found["channels_last"] = batchnorm(
        x.contiguous(memory_format=last), slope.contiguous(memory_format=last), GlobalBatchNorm2d(5)
    )
    found["half"] = batchnorm(x.bfloat16(), slope.bfloat16(), GlobalBatchNorm2d(5))
    plain = GlobalBatchNorm2d(5, momentum=None, affine=False)
    found["plain"] = batchnorm(x, slope, plain)
    # Unequal shares: BatchNorm counts what there is.
    share = slice(0, 2) if number == 0 else slice(2, 6)
    found["unequal"] = batchnorm(*(t[share] for t in features()), GlobalBatchNorm2d(5))
    found["frozen"] = batchnorm(x, slope, GlobalBatchNorm2d(5).eval())

    frames, masks = (t[2 * number : 2 * number + 2] for t in batch())
    for arch in Arch:
        for name, loss in LOSSES.items():
            if arch is Arch.TWO and name != "default":
                continue
            net = network(arch)
            use_global_batchnorm(net)
            parts = step(DistributedDataParallel(net), frames, masks, net.mask_stride, loss)
            found[f"{arch} {name}"] = learned(net, parts)
    torch.save(found, folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What both processes found."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "error"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(number), str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    try:
        for process in processes:
            _, said = process.communicate(timeout=200)
            assert process.returncode == 0, said[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(folder / f"{number}.pt") for number in range(PROCESSES)]


# Both against one --------------------------------------------------------------------------------


def test_sums_and_means_over_processes(halves: list[dict[str, dict[str, Tensor]]]) -> None:
    for number, half in enumerate(halves):
        found = half["sums"]
        assert found["sum"].tolist() == [3.0, 30.0]
        assert found["mean"].tolist() == [1.5, 15.0]
        # Of the sum of both processes' results: 1 x and 2 x (1, 2).
        assert found["slope"].tolist() == [3.0, 6.0]
        assert found["who"].tolist() == [number, PROCESSES]


@pytest.mark.parametrize("kind", ["batchnorm", "channels_last", "half", "plain", "unequal"])
def test_batchnorm_is_that_of_the_whole_batch(
    halves: list[dict[str, dict[str, Tensor]]], kind: str
) -> None:
    x, slope = features()
    if kind == "half":
        x, slope = x.bfloat16(), slope.bfloat16()
    own = nn.BatchNorm2d(5, momentum=None, affine=False) if kind == "plain" else nn.BatchNorm2d(5)
    expected = batchnorm(x, slope, own)
    found = [half[kind] for half in halves]
    exact = {"rtol": 1e-5, "atol": 1e-5}
    # bf16 numbers have 8 bits.
    close = {"rtol": 2**-7, "atol": 2e-2} if kind == "half" else exact
    assert all(f["y"].dtype == f["dx"].dtype == x.dtype for f in found)
    for name in ("y", "dx"):
        torch.testing.assert_close(torch.cat([f[name] for f in found]), expected[name], **close)
    for name in set(expected) & {"dweight", "dbias"}:
        torch.testing.assert_close(
            found[0][name] + found[1][name], expected[name], rtol=1e-5, atol=1e-3
        )
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(found[0][name], found[1][name])
        torch.testing.assert_close(found[0][name], expected[name], **exact)
    assert expected["running_mean"].abs().max() > 1


def test_frozen_batchnorm_asks_nobody(halves: list[dict[str, dict[str, Tensor]]]) -> None:
    for number, half in enumerate(halves):
        share = slice(3 * number, 3 * number + 3)
        expected = batchnorm(*(t[share] for t in features()), nn.BatchNorm2d(5).eval())
        assert half["frozen"].keys() == expected.keys()
        assert all(torch.equal(half["frozen"][name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("arch", "name"), [*((Arch.SHARED, name) for name in LOSSES), (Arch.TWO, "default")]
)
def test_gradients_of_two_processes_are_those_of_one_with_the_whole_batch(
    halves: list[dict[str, dict[str, Tensor]]], arch: Arch, name: str
) -> None:
    net = network(arch)
    expected = learned(net, step(net, *batch(), net.mask_stride, LOSSES[name]))
    for half in halves:
        found = half[f"{arch} {name}"]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(
                found[key], value, rtol=1e-6, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}"
            )
    largest = max(v.abs().max() for k, v in expected.items() if k.startswith("gradient"))
    assert largest > 1e-3


# Alone -------------------------------------------------------------------------------------------


def test_alone_nothing_is_summed() -> None:
    value = torch.ones(3)
    assert global_sum(value) is value
    assert torch.equal(global_mean(value), value)
    assert (rank(), world_size()) == (0, 1)


def test_alone_it_is_batchnorm() -> None:
    ours, theirs = (batchnorm(*features(), kind(5)) for kind in (GlobalBatchNorm2d, nn.BatchNorm2d))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_swapping_keeps_names_and_weights() -> None:
    net = network("two")
    before = copy.deepcopy(net.state_dict())
    use_global_batchnorm(net)
    kinds = {type(m) for m in net.modules() if isinstance(m, nn.BatchNorm2d)}
    assert kinds == {GlobalBatchNorm2d}
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
