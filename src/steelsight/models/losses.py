"""What a network is taught by: losses of pixels, of overlap, and of both heads.

Masks are compared at full size, where a loss written with autograd goes over a batch many
times. Here one pass over the pixels gives a few sums per type, all losses are formulas of these
sums, and one pass back gives the gradient.

Everything follows from how wrong a pixel is: with ``q`` the probability that the network gives to
the truth (``p`` inside a mask, ``1 - p`` outside), its cross-entropy is ``-log q``, a false
negative counts ``1 - q`` inside, a false positive ``1 - q`` outside.

Shapes: N crops, K defect types, H rows, W columns of a crop.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows
from torch import Tensor
from torch.autograd.function import once_differentiable

from steelsight.models.config import Loss, Pixels, Region
from steelsight.models.distributed import global_sum
from steelsight.models.res_unet import Logits

_LARGEST_LOGIT = 80.0
"""Beyond, a probability in fp32 is 0 and its logarithm infinite."""
_LEAST_MISS = 1e-7
"""Of 1 - overlap; the power of the focal Tversky loss has no slope at 0."""


_CACHED_PX = 1 << 18
"""Pixels of planes that stay in the cache of a CPU's core while all is computed from them."""


class LossParts(NamedTuple):
    """The loss of a batch over all processes; scalars, float32.

    ``pixels`` and ``region`` of the masks, ``faulty`` and ``types`` of the heads (sums of both
    heads) are not weighted; ``total`` is what is minimised.
    """

    total: Tensor
    pixels: Tensor
    region: Tensor
    faulty: Tensor
    types: Tensor


def training_loss(
    logits: Logits,
    masks_nkhw: Tensor,
    mask_stride: int,
    config: Loss,
    faulty_from_px: int,
    positive_weights_k: Tensor | None = None,
) -> LossParts:
    """``pixel_weight`` x pixels + region + ``head_weight`` x (faulty + types) for each head.

    Args:
        logits: of this process's crops.
        masks_nkhw: their masks at full size, bool (fastest) or 0 and 1.
        mask_stride: of the network.
        config: which losses, and their weights.
        faulty_from_px: a type is present in a crop from so many pixels on; with fewer, but some,
            nothing is asked of the heads about this type, nor about "faulty" unless another type
            is present.
        positive_weights_k: weight of each type in the positive part of pixel and head losses.

    Returns:
        The losses of the whole batch, over all processes; these must have equal shares. Their
        mean gradient over processes is the gradient of one process with the whole batch.
    """
    gamma = config.focal_gamma if config.pixels is Pixels.FOCAL else 0.0
    losses_2k, wrong_2k, areas_nk = _PixelSums.apply(  # type: ignore[no-untyped-call]
        logits.masks, masks_nkhw, mask_stride, gamma
    )
    heads_sums = _head_sums(logits, areas_nk, faulty_from_px, positive_weights_k)
    types = areas_nk.shape[1]
    crops = areas_nk.new_full((1,), len(areas_nk))
    # One exchange between processes for everything.
    of_types = torch.cat([losses_2k, wrong_2k, areas_nk.sum(0, keepdim=True)])
    sums = global_sum(torch.cat([of_types.flatten(), heads_sums, crops]))
    outside, inside, false_positives, false_negatives, areas = sums[: 5 * types].view(5, types)
    heads_sums, all_crops = sums[5 * types : -1], sums[-1]
    if positive_weights_k is not None:
        inside = inside * positive_weights_k
    pixels = (outside + inside).sum() / (all_crops * masks_nkhw[0].numel())
    region = _region(false_positives, false_negatives, areas, config)
    # Heads without a label that counts have a sum of 0.
    faulty, of_heads_types = heads_sums[:2] / heads_sums[2:].clamp_min(1)
    total = config.pixel_weight * pixels + region + config.head_weight * (faulty + of_heads_types)
    return LossParts(*(part.float() for part in (total, pixels, region, faulty, of_heads_types)))


def _region(
    false_positives_k: Tensor, false_negatives_k: Tensor, areas_k: Tensor, config: Loss
) -> Tensor:
    """1 - Tversky index per type over the batch, to a power; the mean over types.

    Dice is the Tversky index with equal weights of one half.
    """
    if config.region is Region.NONE:
        return 0.0 * areas_k.sum()
    even = config.region is Region.DICE
    alpha, beta = (0.5, 0.5) if even else (config.false_positives, config.false_negatives)
    missed_k = alpha * false_positives_k + beta * false_negatives_k
    hits_k = areas_k - false_negatives_k
    one_minus_index_k = missed_k / (hits_k + missed_k + config.smooth_px)
    if config.region is Region.FOCAL_TVERSKY:
        one_minus_index_k = one_minus_index_k.clamp_min(_LEAST_MISS).pow(config.tversky_gamma)
    return one_minus_index_k.mean()


def _head_sums(
    logits: Logits, areas_nk: Tensor, faulty_from_px: int, positive_weights_k: Tensor | None
) -> Tensor:
    """Cross-entropy of "faulty" and of the types, both heads summed, and how many labels counted.

    Returns:
        ``(4,)``: both sums, then both counts.
    """
    present_nk = areas_nk >= max(faulty_from_px, 1)
    doubtful_nk = (areas_nk > 0) & ~present_nk
    faulty_n = present_nk.any(1)
    counts_n = faulty_n | ~doubtful_nk.any(1)
    faulty, types = (areas_nk.new_zeros(()) for _ in range(2))
    for head in (logits.average, logits.soft_maximum):
        head = head.to(areas_nk.dtype)
        faulty = faulty + F.binary_cross_entropy_with_logits(
            head[:, 0], faulty_n.to(head), counts_n.to(head), reduction="sum"
        )
        types = types + F.binary_cross_entropy_with_logits(
            head[:, 1:],
            present_nk.to(head),
            (~doubtful_nk).to(head),
            pos_weight=positive_weights_k,
            reduction="sum",
        )
    return torch.stack([faulty, types, counts_n.sum().to(faulty), (~doubtful_nk).sum().to(faulty)])


class _PixelSums(torch.autograd.Function):
    """Sums over all pixels of the crops, by type; row 0 outside, row 1 inside the masks.

    From mask logits ``(N, K, h, w)`` and masks ``(N, K, h * scale, w * scale)``:
    ``losses_2k``, the pixel losses ``(1 - q)^gamma * -log q`` (Lin et al., arXiv 1708.02002;
    cross-entropy with ``gamma`` 0); ``wrong_2k``, sums of ``1 - q``: false positives and false
    negatives; ``areas_nk``, pixels of the masks, without a gradient. All float64.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, masks: Tensor, scale: int, gamma: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        crops, types, height, width = masks.shape
        # Of bf16 logits, too, the sums are made in fp32.
        number = torch.float64 if logits.dtype == torch.float64 else torch.float32
        low = logits.to(number, memory_format=torch.contiguous_format)
        # Infinite logits have to end in a loss that is no number, not in a large one.
        low = low.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT).where(low.isfinite(), torch.nan)
        at_once = _planes_at_once(masks)
        parts, sums = [], []
        scratch = torch.empty(0, dtype=number, device=low.device)
        for low_p1hw, truth_p1hw in zip(
            torch.split(low.view(-1, 1, *low.shape[2:]), at_once),
            torch.split(masks.reshape(-1, 1, height, width), at_once),
            strict=True,
        ):
            inside = _as_number(truth_p1hw, number)
            q = _upsampled(-low_p1hw, scale)
            q = q.addcmul_(q, inside, value=-2).sigmoid_()
            scratch = scratch.resize_as_(q)
            of_q = _sums(q, inside, scratch)
            of_losses = _sums(_pixel_loss(q, gamma), inside, scratch)
            sums.append(torch.stack([*of_losses, *of_q, inside.sum((1, 2, 3))]))
            parts += [q, truth_p1hw]
        sums_nk = torch.cat(sums, 1).double().view(5, crops, types)
        losses_nk, in_losses_nk, right_nk, in_right_nk, areas_nk = sums_nk
        in_wrong_nk = areas_nk - in_right_nk
        out_wrong_nk = (height * width - areas_nk) - (right_nk - in_right_nk)
        ctx.save_for_backward(*parts)
        ctx.scale, ctx.gamma, ctx.like = scale, gamma, (logits.shape, logits.dtype)
        ctx.mark_non_differentiable(areas_nk)
        losses_2k = torch.stack([losses_nk - in_losses_nk, in_losses_nk]).sum(1)
        wrong_2k = torch.stack([out_wrong_nk, in_wrong_nk]).sum(1)
        # Differences of sums may end a little below 0.
        return losses_2k.clamp_min(0), wrong_2k.clamp_min(0), areas_nk

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, losses_2k: Tensor, wrong_2k: Tensor, _areas_nk: Tensor
    ) -> tuple[Tensor, None, None, None]:
        parts = ctx.saved_tensors
        shape, number = ctx.like
        # A plane's slopes are its type's.
        slopes = torch.stack([losses_2k, wrong_2k]).to(parts[0].dtype).repeat(1, 1, shape[0])
        slopes = slopes[..., None, None, None]
        slopes_by_part = torch.split(slopes, len(parts[0]), 2)
        rows, columns = (_interpolation(side, ctx.scale, parts[0]) for side in shape[2:])
        gradients = []
        for q, truth_p1hw, (by_loss, by_wrong) in zip(
            parts[::2], parts[1::2], slopes_by_part, strict=True
        ):
            wrong = 1 - q
            loss_slope = _pixel_slope(q, wrong, ctx.gamma)
            wrong_slope = wrong.mul_(q) if ctx.gamma else wrong * q
            # Towards "wrong" the logit goes up outside and down inside.
            up = (loss_slope * by_loss[0]).addcmul_(wrong_slope, by_wrong[0])
            down = (loss_slope * -by_loss[1]).addcmul_(wrong_slope, -by_wrong[1])
            up.lerp_(down, _as_number(truth_p1hw, q.dtype))
            gradients.append(up if ctx.scale == 1 else _downsampled(up, rows, columns))
        return torch.cat(gradients).view(shape).to(number), None, None, None


def _sums(values_p1hw: Tensor, inside_p1hw: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of planes, everywhere and inside."""
    torch.mul(values_p1hw, inside_p1hw, out=scratch)
    return values_p1hw.sum((1, 2, 3)), scratch.sum((1, 2, 3))


def _planes_at_once(masks: Tensor) -> int:
    if masks.device.type != "cpu":
        return len(masks) * masks.shape[1]
    return 1 + _CACHED_PX // masks[0, 0].numel()


def _as_number(truth: Tensor, number: torch.dtype) -> Tensor:
    # Bytes become floats several times as fast as bools do.
    return (truth.view(torch.uint8) if truth.dtype == torch.bool else truth).to(number)


def _pixel_loss(q: Tensor, gamma: float) -> Tensor:
    loss = q.log().neg_()
    return loss.mul_((1 - q).pow_(gamma)) if gamma else loss


def _pixel_slope(q: Tensor, wrong: Tensor, gamma: float) -> Tensor:
    """How fast the pixel loss grows as the logit moves to the wrong side."""
    if not gamma:
        return wrong
    return (wrong - gamma * q * q.log()) * wrong.pow(gamma)


def _upsampled(low: Tensor, scale: int) -> Tensor:
    if scale == 1:
        return low.clone()
    return F.interpolate(low, scale_factor=float(scale), mode="bilinear")


def _downsampled(full: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``_upsampled`` transposed: gradients at full size to those of the logits.

    As matrix products this is four times as fast as torch's own on a CPU; and on a GPU, unlike
    that, the same each time.
    """
    with torch.autocast(full.device.type, enabled=False):
        return rows.T @ full @ columns


def _interpolation(side: int, scale: int, like: Tensor) -> Tensor:
    """Linear interpolation along one axis as a matrix ``(side * scale, side)``."""
    eye = torch.eye(side, dtype=like.dtype, device=like.device)
    return F.interpolate(eye[None], scale_factor=float(scale), mode="linear")[0].T
