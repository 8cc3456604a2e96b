"""Every loss against plain numpy in double precision, every gradient against torch's autograd."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from steelsight.models.config import Loss, Pixels, Region
from steelsight.models.losses import LossParts, _PixelSums, training_loss
from steelsight.models.res_unet import Logits, upsample_logits

N, K, FROM_PX = 3, 2, 20


def case(
    seed: int = 0, *, stride: int = 4, spread: float = 2.0, number: torch.dtype = torch.float64
) -> tuple[Logits, Tensor]:
    """Logits and blobs as masks; the last crop is clean."""
    generator = torch.Generator().manual_seed(seed)
    heads = [torch.randn(N, 1 + K, generator=generator, dtype=torch.float64) for _ in range(2)]
    masks_low = spread * torch.randn(N, K, 8, 12, generator=generator, dtype=torch.float64)
    masks = torch.zeros(N, K, 8 * stride, 12 * stride, dtype=torch.bool)
    masks[0, 0, : 3 * stride, 2 * stride :] = True
    masks[0, 1, 1, 2:7] = True  # fewer than FROM_PX
    masks[1, 1, 1:, :-3] = True
    return Logits(*(t.to(number).requires_grad_() for t in (*heads, masks_low))), masks


def sigmoid(z: NDArray[Any]) -> NDArray[Any]:
    return 1 / (1 + np.exp(-z))


def by_numpy(
    logits: Logits,
    masks: Tensor,
    stride: int,
    config: Loss,
    weights_k: list[float] | None = None,
) -> dict[str, float]:
    """The docstrings' formulas, pixel by pixel and crop by crop."""
    weight = np.ones(K) if weights_k is None else np.array(weights_k)
    z = F.interpolate(logits.masks.detach().double(), scale_factor=stride, mode="bilinear")
    z, t = (z if stride > 1 else logits.masks.detach().double()).numpy(), masks.numpy()
    p = sigmoid(z)
    gamma = config.focal_gamma if config.pixels is Pixels.FOCAL else 0
    pixels = 0.0
    for k in range(K):
        # -log p and -log(1 - p), where p is 1 in double precision, too
        positive = np.logaddexp(0, -z[:, k]) * (1 - p[:, k]) ** gamma * weight[k]
        negative = np.logaddexp(0, z[:, k]) * p[:, k] ** gamma
        pixels += np.where(t[:, k], positive, negative).sum() / t.size
    region = []
    for k in range(K):
        tp = p[:, k][t[:, k]].sum()
        fp = p[:, k][~t[:, k]].sum()
        fn = (1 - p[:, k])[t[:, k]].sum()
        a, b = config.false_positives, config.false_negatives
        if config.region is Region.DICE:
            index = (2 * tp + 2 * config.smooth_px) / (2 * tp + fp + fn + 2 * config.smooth_px)
        else:
            index = (tp + config.smooth_px) / (tp + a * fp + b * fn + config.smooth_px)
        power = config.tversky_gamma if config.region is Region.FOCAL_TVERSKY else 1
        region.append((1 - index) ** power)
    faulty, types = 0.0, 0.0
    for head in (logits.average, logits.soft_maximum):
        q = sigmoid(head.detach().double().numpy())
        of_crops, of_types = [], []
        for n in range(N):
            areas = t[n].sum((1, 2))
            present = areas >= FROM_PX
            doubtful = (areas > 0) & ~present
            if present.any() or not doubtful.any():
                of_crops.append(-np.log(q[n, 0] if present.any() else 1 - q[n, 0]))
            of_types += [
                -np.log(q[n, 1 + k]) * weight[k] if present[k] else -np.log(1 - q[n, 1 + k])
                for k in range(K)
                if not doubtful[k]
            ]
        faulty += np.mean(of_crops) if of_crops else 0.0
        types += np.mean(of_types) if of_types else 0.0
    r = 0.0 if config.region is Region.NONE else float(np.mean(region))
    total = config.pixel_weight * pixels + r + config.head_weight * (faulty + types)
    return {"total": total, "pixels": pixels, "region": r, "faulty": faulty, "types": types}


def check(found: LossParts, expected: dict[str, float], rtol: float = 1e-6) -> None:
    for name, value in expected.items():
        assert getattr(found, name).item() == pytest.approx(value, rel=rtol, abs=1e-7), name


# Values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("region", Region)
@pytest.mark.parametrize("pixels", Pixels)
@pytest.mark.parametrize("weights_k", [None, [3.0, 0.5]])
def test_every_loss_is_its_formula(
    pixels: Pixels, region: Region, stride: int, weights_k: list[float] | None
) -> None:
    config = Loss(pixels=pixels, region=region, focal_gamma=1.7, smooth_px=3)
    logits, masks = case(stride=stride)
    weights = None if weights_k is None else torch.tensor(weights_k)
    found = training_loss(logits, masks, stride, config, FROM_PX, weights)
    check(found, by_numpy(logits, masks, stride, config, weights_k))
    assert all(part.dtype == torch.float32 and part.ndim == 0 for part in found)


@given(st.integers(0, 2**31), st.sampled_from(list(Region)), st.floats(0.1, 12))
@settings(max_examples=15, deadline=None)
def test_in_single_precision_with_drawn_logits(seed: int, region: Region, spread: float) -> None:
    config = Loss(region=region, pixels=Pixels.FOCAL)
    logits, masks = case(seed, spread=spread, number=torch.float32)
    check(
        training_loss(logits, masks, 4, config, FROM_PX), by_numpy(logits, masks, 4, config), 1e-4
    )


def test_tversky_with_equal_halves_is_dice() -> None:
    logits, masks = case()
    halves = Loss(region=Region.TVERSKY, false_positives=0.5, false_negatives=0.5)
    ours, dice = (
        training_loss(logits, masks, 4, c, FROM_PX).region
        for c in (halves, Loss(region=Region.DICE))
    )
    assert ours.item() == dice.item()
    unlike = training_loss(logits, masks, 4, Loss(region=Region.TVERSKY), FROM_PX).region
    assert ours.item() != pytest.approx(unlike.item(), rel=1e-3)


def test_focal_losses_with_neutral_powers_are_the_plain_ones() -> None:
    logits, masks = case()
    bce = training_loss(logits, masks, 4, Loss(), FROM_PX).pixels
    focal = training_loss(logits, masks, 4, Loss(pixels=Pixels.FOCAL, focal_gamma=0), FROM_PX)
    assert focal.pixels.item() == bce.item()
    by_torch = F.binary_cross_entropy_with_logits(upsample_logits(logits.masks, 4), masks.float())
    assert bce.item() == pytest.approx(by_torch.item(), rel=1e-6)
    plain = training_loss(logits, masks, 4, Loss(region=Region.TVERSKY), FROM_PX).region
    power_1 = Loss(region=Region.FOCAL_TVERSKY, tversky_gamma=1)
    same = training_loss(logits, masks, 4, power_1, FROM_PX).region
    assert same.item() == pytest.approx(plain.item(), rel=1e-7)


def test_perfect_masks_cost_nothing_and_inverted_ones_cost_most() -> None:
    _, masks = case(stride=1)
    heads = torch.zeros(N, 1 + K)
    right = Logits(heads, heads, 60.0 * (2.0 * masks.float() - 1))
    wrong = right._replace(masks=-right.masks)
    config = Loss(region=Region.TVERSKY, smooth_px=1e-3)
    best, worst = (training_loss(logits, masks, 1, config, FROM_PX) for logits in (right, wrong))
    assert best.pixels.item() == pytest.approx(0, abs=1e-6)
    assert best.region.item() == pytest.approx(0, abs=1e-6)
    assert worst.pixels.item() == pytest.approx(60, rel=1e-5)
    assert worst.region.item() == pytest.approx(1, rel=1e-3)


def test_masks_as_numbers_and_as_bools_are_the_same() -> None:
    logits, masks = case()
    parts = [
        training_loss(logits, m, 4, Loss(), FROM_PX) for m in (masks, masks.float(), masks.byte())
    ]
    assert parts[0] == parts[1] == parts[2]


def test_many_planes_and_few_give_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, masks = case()
    together = training_loss(logits, masks, 4, Loss(), FROM_PX)
    monkeypatch.setattr("steelsight.models.losses._CACHED_PX", 0)
    one_by_one = training_loss(logits, masks, 4, Loss(), FROM_PX)
    torch.testing.assert_close(torch.stack(together), torch.stack(one_by_one), rtol=1e-7, atol=0)


# What counts as faulty ---------------------------------------------------------------------------


def heads_only(areas_nk: list[list[int]], faulty_from_px: int) -> Tensor:
    """Slopes of a head at zero logits; where a label counts, one of 1/2 over their number."""
    masks = torch.zeros(len(areas_nk), len(areas_nk[0]), 8, 8, dtype=torch.bool)
    for n, areas in enumerate(areas_nk):
        for k, area in enumerate(areas):
            masks[n, k].view(-1)[:area] = True
    zeros = torch.zeros(len(areas_nk), 1 + len(areas_nk[0]))
    slopes = [zeros.clone().requires_grad_() for _ in range(2)]
    low = torch.zeros(*masks.shape[:2], 2, 2)
    parts = training_loss(Logits(*slopes, low), masks, 4, Loss(), faulty_from_px)
    (parts.faulty + parts.types).backward()
    assert torch.equal(slopes[0].grad, slopes[1].grad)  # type: ignore[arg-type]
    return slopes[0].grad  # type: ignore[return-value]


def test_labels_with_too_few_pixels_are_not_learned() -> None:
    slopes = heads_only([[10, 0], [9, 0], [9, 30], [0, 0]], 10)
    # Towards 1 the slope is negative, of a label that does not count it is 0.
    assert torch.sign(slopes).tolist() == [[-1, -1, 1], [0, 0, 1], [-1, 0, -1], [1, 1, 1]]
    torch.testing.assert_close(slopes.abs()[0], torch.tensor([1 / 6, 1 / 12, 1 / 12]))


def test_from_zero_pixels_on_an_empty_crop_is_still_clean() -> None:
    assert torch.sign(heads_only([[0], [1]], 0)).tolist() == [[1, 1], [-1, -1]]


def test_a_batch_in_which_no_label_counts_teaches_the_heads_nothing() -> None:
    assert heads_only([[3], [5]], 10).abs().max() == 0


# Gradients ---------------------------------------------------------------------------------------


def by_autograd(logits: Logits, masks: Tensor, scale: int, config: Loss) -> Tensor:
    """The mask losses as one would write them, for autograd."""
    z = F.interpolate(logits.masks, scale_factor=float(scale), mode="bilinear")
    t = masks.to(z)
    bce = F.binary_cross_entropy_with_logits(z, t, reduction="none")
    if config.pixels is Pixels.FOCAL:
        bce = bce * (1 - torch.exp(-bce)) ** config.focal_gamma
    p = z.sigmoid()
    tp, fp, fn = ((x).sum((0, 2, 3)) for x in (p * t, p * (1 - t), (1 - p) * t))
    a, b, s = config.false_positives, config.false_negatives, config.smooth_px
    region = (1 - (tp + s) / (tp + a * fp + b * fn + s)) ** config.tversky_gamma
    return config.pixel_weight * bce.mean() + region.mean()


@pytest.mark.parametrize("pixels", Pixels)
@pytest.mark.parametrize("scale", [1, 4])
def test_the_gradient_is_autograds(pixels: Pixels, scale: int) -> None:
    config = Loss(pixels=pixels, head_weight=0, focal_gamma=1.5)
    logits, masks = case(stride=scale)
    (found,) = torch.autograd.grad(
        training_loss(logits, masks, scale, config, FROM_PX).total, logits.masks
    )
    (expected,) = torch.autograd.grad(by_autograd(logits, masks, scale, config), logits.masks)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_sums_have_the_slope_they_claim(gamma: float) -> None:
    """Finite differences in double precision."""
    generator = torch.Generator().manual_seed(1)
    low = torch.randn(2, 2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    masks = torch.rand(2, 2, 6, 8, generator=generator) > 0.6

    def sums(z: Tensor) -> tuple[Tensor, Tensor]:
        losses_2k, wrong_2k, _ = _PixelSums.apply(z, masks, 2, gamma)
        return losses_2k, wrong_2k

    assert torch.autograd.gradcheck(sums, (low,))


def test_weights_of_types_scale_only_what_is_inside() -> None:
    logits, masks = case()
    config = Loss(pixel_weight=1, region=Region.NONE, head_weight=0)
    slopes = [
        torch.autograd.grad(
            training_loss(logits, masks, 4, config, FROM_PX, w).total, logits.masks
        )[0]
        for w in (None, torch.tensor([2.0, 1.0]))
    ]
    assert torch.equal(slopes[0][:, 1], slopes[1][:, 1])
    assert torch.equal(slopes[0][2], slopes[1][2])
    torch.testing.assert_close(slopes[1][0, 0, 0, -1], 2 * slopes[0][0, 0, 0, -1])


@pytest.mark.parametrize("fill", ["empty", "full", "ignored"])
@pytest.mark.parametrize("level", [-200.0, -30.0, 0.0, 30.0, 200.0])
@pytest.mark.parametrize("pixels", Pixels)
@pytest.mark.parametrize("region", Region)
def test_gradients_are_finite_at_all_extremes(
    fill: str, level: float, pixels: Pixels, region: Region
) -> None:
    masks = torch.full((2, 2, 8, 8), fill == "full")
    if fill == "ignored":
        masks[:, :, 0, 0] = True
    leaves = [torch.full((2, 3), level).requires_grad_() for _ in range(2)]
    leaves.append(torch.full((2, 2, 2, 2), level).requires_grad_())
    config = Loss(pixels=pixels, region=region)
    parts = training_loss(Logits(*leaves), masks, 4, config, FROM_PX)
    parts.total.backward()
    assert all(part.isfinite() for part in parts)
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)
    wrong = (fill == "full") == (level < 0) and abs(level) >= 30 and fill != "ignored"
    if wrong:  # no vanishing slope where the network is surely wrong
        assert leaves[2].grad is not None
        assert (torch.sign(leaves[2].grad) == (-1 if fill == "full" else 1)).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_no_numbers_give_a_loss_that_is_none(bad: float) -> None:
    logits, masks = case(number=torch.float32)
    low = logits.masks.detach().clone()
    low[0, 0, 0, 0] = bad
    assert training_loss(logits._replace(masks=low), masks, 4, Loss(), FROM_PX).total.isnan()


# Precision ---------------------------------------------------------------------------------------


def test_half_precision_logits_are_computed_with_in_single_precision() -> None:
    half, masks = case(number=torch.bfloat16)
    single = Logits(*(t.detach().float().requires_grad_() for t in half))
    parts, same = (training_loss(logits, masks, 4, Loss(), FROM_PX) for logits in (half, single))
    assert parts == same
    parts.total.backward()
    same.total.backward()
    for ours, exact in zip(half, single, strict=True):
        assert ours.grad is not None
        assert ours.grad.dtype == torch.bfloat16
        assert torch.equal(ours.grad, exact.grad.bfloat16())  # type: ignore[union-attr]


def test_autocast_does_not_reach_into_the_loss() -> None:
    logits, masks = case(number=torch.float32)
    plain = training_loss(logits, masks, 4, Loss(), FROM_PX)
    (slope,) = torch.autograd.grad(plain.total, logits.masks)
    with torch.autocast("cpu", torch.bfloat16):
        cast = training_loss(logits, masks, 4, Loss(), FROM_PX)
        (cast_slope,) = torch.autograd.grad(cast.total, logits.masks)
    assert cast == plain
    assert torch.equal(cast_slope, slope)


def test_any_memory_layout_gives_the_same() -> None:
    logits, masks = case(number=torch.float32)
    last = logits.masks.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    one = training_loss(logits, masks, 4, Loss(), FROM_PX)
    other = training_loss(logits._replace(masks=last), masks, 4, Loss(), FROM_PX)
    assert one == other
    slopes = [
        torch.autograd.grad(part.total, leaf)[0]
        for part, leaf in ((one, logits.masks), (other, last))
    ]
    assert torch.equal(*slopes)


def test_the_loss_is_that_of_the_masks_that_are_shown() -> None:
    """What is learned is upsampled as what is shipped."""
    logits, masks = case(number=torch.float32)
    low = training_loss(logits, masks, 4, Loss(), FROM_PX)
    full = logits._replace(masks=upsample_logits(logits.masks, 4))
    check(
        training_loss(full, masks, 1, Loss(), FROM_PX),
        {k: v.item() for k, v in low._asdict().items()},
    )
