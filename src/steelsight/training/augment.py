"""What light and camera may do to a crop: on tensors, in one go for a batch, on any device.

Grey levels go through a table of 256 entries per crop (contrast, brightness, gamma), then the ramp
of light, blur and noise. Each crop's parameters follow from its seed alone, so neither the batch
it is in nor the process that holds it matters. The noise itself comes from the device's generator:
equal seeds give equal noise on the same kind of device only.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from steelsight.training.config import Augment

_STREAM = 4
"""``crops.py`` uses 1 to 3."""

_BLUR_SIGMA_PX = (0.3, 1.2)
_BLUR_RADIUS_PX = 4
_NOISE_SIGMA = (1.0, 6.0)


@torch.no_grad()
def photometric(frames_n1hw: Tensor, seeds: Sequence[int], augment: Augment) -> Tensor:
    """Changes brightness, contrast, gamma, light, sharpness and noise of a batch of crops.

    Args:
        frames_n1hw: grey levels, uint8, on any device.
        seeds: of the crops, one each.
        augment: how much of each; 0 switches a part off.

    Returns:
        ``(N, 1, H, W)`` float32 on the same device: grey levels 0..255, not rounded.
    """
    device = frames_n1hw.device
    drawn_nd = np.array([_draw(seed, augment) for seed in seeds], np.float64)
    on_device = torch.from_numpy(drawn_nd.astype(np.float32)).to(device)
    contrast, brightness, gamma, ramp_x, ramp_y = on_device[:, :5, None].unbind(1)
    out = _graded(frames_n1hw, contrast, brightness, gamma)
    if augment.illumination:
        rows, columns = frames_n1hw.shape[2:]
        along_x = torch.linspace(-1, 1, columns, device=device)
        along_y = torch.linspace(-1, 1, rows, device=device)
        light = (1 + ramp_y * along_y)[:, :, None] + (ramp_x * along_x)[:, None, :]
        out *= light[:, None]
    blur_sigmas, noise_sigmas = drawn_nd[:, 5], drawn_nd[:, 6]
    blurred = np.flatnonzero(blur_sigmas)
    if len(blurred):
        chosen = torch.from_numpy(blurred).to(device)
        out[chosen] = _blur(out[chosen], blur_sigmas[blurred])
    for crop in np.flatnonzero(noise_sigmas).tolist():
        generator = torch.Generator(device).manual_seed(seeds[crop])
        noise = torch.randn(out[crop].shape, generator=generator, device=device)
        out[crop].add_(noise, alpha=float(noise_sigmas[crop]))
    return out.clamp_(0, 255)


def unpack_types(types_nhw: Tensor, types: int) -> Tensor:
    """Bit images as one mask per type.

    Args:
        types_nhw: uint8 or uint16, bit k set where type k covers the pixel.
        types: their number, K.

    Returns:
        ``(N, K, H, W)`` bool on the same device.
    """
    # torch computes with uint8 but hardly with uint16.
    bits = types_nhw if types_nhw.dtype == torch.uint8 else types_nhw.to(torch.int32)
    wanted = torch.tensor([1 << k for k in range(types)], dtype=bits.dtype, device=bits.device)
    return (bits[:, None] & wanted[:, None, None]) != 0


def _draw(seed: int, augment: Augment) -> list[float]:
    """Contrast, brightness, gamma, ramp along x and y, sigma of blur and of noise of one crop.

    All numbers are drawn whatever is switched on: parts do not change each other.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, _STREAM]))
    powers = rng.uniform(-1, 1, 3)
    steepness, direction = rng.random(), rng.uniform(-math.pi, math.pi)
    blur, blur_sigma, noise, noise_sigma = rng.random(4)
    along_x, along_y = math.cos(direction), math.sin(direction)
    # In the corners the whole ramp is reached, whatever its direction.
    ramp = augment.illumination * steepness / (abs(along_x) + abs(along_y))
    return [
        math.exp(augment.contrast * powers[0]),
        math.exp(augment.brightness * powers[1]),
        math.exp(augment.gamma * powers[2]),
        ramp * along_x,
        ramp * along_y,
        np.interp(blur_sigma, (0, 1), _BLUR_SIGMA_PX) if blur < augment.blur else 0.0,
        np.interp(noise_sigma, (0, 1), _NOISE_SIGMA) if noise < augment.noise else 0.0,
    ]


def _graded(frames_n1hw: Tensor, contrast: Tensor, brightness: Tensor, gamma: Tensor) -> Tensor:
    """Contrast around the crop's mean, brightness and gamma; factors ``(N, 1)``.

    A table per crop is exact on every device, and powers are taken of 256 numbers instead of all
    pixels. Sums of whole numbers do not depend on their order.
    """
    count, pixels = len(frames_n1hw), frames_n1hw[0].numel()
    flat = frames_n1hw.reshape(count, pixels)
    mean = flat.sum(1, dtype=torch.int64)[:, None].double() / pixels
    levels = torch.arange(256, dtype=torch.float64, device=flat.device)
    table = ((levels - mean) * contrast + mean) * brightness
    table = 255 * (table / 255).clamp(0, 1) ** gamma
    rows = torch.arange(count, dtype=torch.int32, device=flat.device)[:, None] * 256
    return table.float().flatten().index_select(0, (flat + rows).flatten()).view(frames_n1hw.shape)


def _blur(frames_m1hw: Tensor, sigmas: np.ndarray) -> Tensor:
    """Gaussian blur, one sigma per crop, continued by reflection.

    Shifted copies are added up: plain float32 on every device, where a convolution may take fewer
    bits.
    """
    offsets = np.arange(_BLUR_RADIUS_PX + 1)
    weights_mr = np.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)
    weights_mr /= 2 * weights_mr.sum(1, keepdims=True) - 1
    weights = torch.from_numpy(weights_mr.astype(np.float32)).to(frames_m1hw.device)
    for axis in (2, 3):
        length = frames_m1hw.shape[axis]
        pad = [_BLUR_RADIUS_PX if axis == a else 0 for a in (3, 3, 2, 2)]
        padded = torch.nn.functional.pad(frames_m1hw, pad, mode="reflect")
        out = frames_m1hw * weights[:, 0, None, None, None]
        for offset in range(1, _BLUR_RADIUS_PX + 1):
            both = padded.narrow(axis, _BLUR_RADIUS_PX - offset, length) + padded.narrow(
                axis, _BLUR_RADIUS_PX + offset, length
            )
            out += both * weights[:, offset, None, None, None]
        frames_m1hw = out
    return frames_m1hw
