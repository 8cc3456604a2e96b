"""Sums and BatchNorm over all processes that train together, differentiable.

Each process holds an equal share of the batch. Whatever is summed here is the same on all of them,
so each computes the loss of the whole batch. Going back, every process receives the gradients of
all the others' copies of that loss; as DistributedDataParallel then takes the mean over processes,
the weights get exactly the gradient of one process with the whole batch.

With one process every function here does nothing.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - the name everyone knows
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def global_sum(tensor: Tensor) -> Tensor:
    """Sum over all processes, which must all call this with the same shape and number type."""
    if world_size() == 1:
        return tensor
    summed: Tensor = _GlobalSum.apply(tensor)  # type: ignore[no-untyped-call]
    return summed


def global_mean(tensor: Tensor) -> Tensor:
    """Mean over all processes; otherwise as ``global_sum``."""
    return global_sum(tensor) / world_size()


class _GlobalSum(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    @once_differentiable
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(copy)
    return copy


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """``BatchNorm2d`` whose statistics are those of all processes' crops together.

    Ioffe and Szegedy, arXiv 1502.03167, over processes. Unlike torch's ``SyncBatchNorm`` it also
    works on CPUs. Variances are joined as in Chan, Golub, LeVeque, "Updating formulae and a
    pairwise algorithm for computing sample variances" (1979), in double precision.

    With one process, or in evaluation mode, it is ``BatchNorm2d``.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        y, mean, var, count = _GlobalBatchNorm.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        self._remember(mean, var, count)
        normalised: Tensor = y
        return normalised

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None  # noqa: S101 - comes with the other two
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = var * (count / (count - 1).clamp_min(1))
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(unbiased.to(self.running_var), share)


class _GlobalBatchNorm(torch.autograd.Function):
    """Normalises with statistics over all processes; gives these too, without gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        # With buffers of a wider type than x, torch also answers in the wider type.
        buffer = x.new_zeros(channels, dtype=wide)
        local_mean, local_var = torch.batch_norm_update_stats(x, buffer, buffer.clone(), 0.0)
        local_mean, local_var = local_mean.double(), local_var.double()
        local_count = x.numel() // channels
        sums = torch.stack([local_mean, local_var + local_mean.square()]) * local_count
        counted = torch.cat([sums, sums.new_full((1, channels), local_count)])
        first, second, count = _summed(counted)
        mean = first / count
        var = (second / count - mean.square()).clamp_min(0)
        y = F.batch_norm(x, mean.to(wide), var.to(wide), weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor, *_: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, var, count = ctx.saved_tensors
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        scale = torch.ones_like(mean, dtype=wide) if weight is None else weight
        # As if the statistics were constants; what flows through them is taken off below.
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, scale, mean.to(wide), var.to(wide), None, None, False, ctx.eps,
            [True, True, True],
        )  # fmt: skip
        mean_dweight, mean_dbias = _summed(torch.stack([dweight, dbias]).double()) / count
        inverse = torch.rsqrt(var + ctx.eps)
        slope = -scale * inverse.square() * mean_dweight
        offset = -scale * inverse * mean_dbias - slope * mean
        offset, slope = (v.to(wide)[None, :, None, None] for v in (offset, slope))
        through = torch.addcmul(offset, x.to(wide), slope)
        return (
            (dx + through).to(x.dtype),
            None if weight is None else dweight,
            None if weight is None else dbias,
            None,
        )


def use_global_batchnorm(network: nn.Module) -> None:
    """Turns every ``BatchNorm2d`` into a ``GlobalBatchNorm2d`` in place; names stay as they are."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlobalBatchNorm2d
