"""What moves the weights: parameter groups, the learning rate over the steps, averaged weights.

All of it is a function of the step, so that resuming needs no state but AdamW's own.
"""

import math
import re
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from steelsight.training.config import Optimiser

_ENCODER_STAGE = re.compile(r"(?:^|\.)encoder\.(conv1|bn1|layer[1-4])\.")
_DEPTH = {"layer4": 0, "layer3": 1, "layer2": 2, "layer1": 3, "conv1": 4, "bn1": 4}
"""Stages below the encoder's last one."""


def parameter_groups(
    network: nn.Module, new: Collection[str], config: Optimiser
) -> list[dict[str, object]]:
    """Groups for AdamW: layer-wise rates for what came with the start, no decay on 1-d parameters.

    What is new learns at ``lr``; what came with the start at ``encoder_lr``, in the encoder times
    ``layer_decay`` for each stage below the last (Howard and Ruder, arXiv 1801.06146).

    Args:
        network: its parameters, each in exactly one group.
        new: names of parameters that the start did not hold.
        config: the rates.

    Returns:
        Groups with ``params``, ``names``, ``lr``, ``peak_lr`` and ``weight_decay``, in an order
        that depends on the names and rates only.
    """
    by_key: dict[tuple[float, float], list[tuple[str, Tensor]]] = {}
    for name, parameter in network.named_parameters():
        stage = _ENCODER_STAGE.search(name)
        if name in new:
            rate = config.lr
        else:
            depth = _DEPTH[stage[1]] if stage else 0
            rate = config.encoder_lr * config.layer_decay**depth
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        by_key.setdefault((rate, decay), []).append((name, parameter))
    return [
        {
            "params": [parameter for _, parameter in members],
            "names": [name for name, _ in members],
            "lr": rate,
            "peak_lr": rate,
            "weight_decay": decay,
        }
        for (rate, decay), members in sorted(by_key.items())
    ]


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Linear from 0 over ``warmup`` of the steps, then half a cosine down to 0.

    Loshchilov and Hutter, arXiv 1608.03983, without restarts.

    Args:
        step: 0 for the first update.
        steps: of the whole run.
        warmup: share of the steps.
    """
    rising = max(round(warmup * steps), 1)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising + 1) / (steps - rising + 1)))


def set_rates(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Every group's rate becomes its peak times ``factor``."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak_lr"] * factor


class AveragedWeights:
    """Exponential moving average of all parameters and BatchNorm statistics.

    Polyak averaging as in Tarvainen and Valpola, arXiv 1703.01780. The decay starts low, so that
    the first steps are soon forgotten. Counters are copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Starts as a copy of the network's weights."""
        self.decay = decay
        self.state = {name: t.detach().clone() for name, t in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Takes in the weights after update number ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = network.state_dict()
        floating = [name for name, t in current.items() if t.is_floating_point()]
        torch._foreach_lerp_(
            [self.state[name] for name in floating],
            [current[name] for name in floating],
            1 - decay,
        )
        for name in current.keys() - set(floating):
            self.state[name].copy_(current[name])


def freeze_batchnorm(network: nn.Module, *, encoder_only: bool = True) -> None:
    """Keeps BatchNorm statistics as they are; to be called after each ``network.train()``."""
    for name, module in network.named_modules():
        inside = not encoder_only or "encoder." in f".{name}."
        if isinstance(module, _BatchNorm) and inside:
            module.eval()
