import math

import cv2
import numpy as np
import pytest
import torch

from steelsight.training.augment import photometric, unpack_types
from steelsight.training.config import Augment

OFF = dict.fromkeys(("contrast", "brightness", "gamma", "illumination", "blur", "noise"), 0.0)
SEEDS = [0, 1, 2**62 + 5, 2**63 - 1, 99, 1234567]


def only(**parts: float) -> Augment:
    return Augment(**(OFF | parts))


def random_frames(count: int = 6, hw: tuple[int, int] = (32, 64), low=0, high=256) -> torch.Tensor:
    rng = np.random.default_rng(count)
    return torch.from_numpy(rng.integers(low, high, (count, 1, *hw), dtype=np.uint8))


def test_with_everything_off_only_the_number_type_changes():
    frames = random_frames()
    out = photometric(frames, SEEDS, only())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, frames.float(), rtol=0, atol=1e-4)


def fitted_line(x, y):
    slope, intercept = np.polyfit(x.ravel(), y.ravel(), 1)
    np.testing.assert_allclose(slope * x + intercept, y, atol=1e-2)
    return slope, intercept


def test_contrast_turns_around_the_mean_of_the_crop():
    frames = random_frames(low=100, high=156)
    out = photometric(frames, SEEDS, only(contrast=0.3)).double().numpy()
    slopes = []
    for before, after in zip(frames.double().numpy(), out, strict=True):
        slope, _ = fitted_line(before, after)
        assert after.mean() == pytest.approx(before.mean(), abs=1e-3)
        assert abs(math.log(slope)) <= 0.3
        slopes.append(slope)
    assert len({round(slope, 6) for slope in slopes}) == len(SEEDS)


def test_brightness_is_one_factor():
    frames = random_frames(low=50, high=180)
    out = photometric(frames, SEEDS, only(brightness=0.3)).double().numpy()
    for before, after in zip(frames.double().numpy(), out, strict=True):
        slope, intercept = fitted_line(before, after)
        assert intercept == pytest.approx(0, abs=1e-2)
        assert 0 < abs(math.log(slope)) <= 0.3


def test_gamma_keeps_black_and_white():
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 4, 64).repeat(6, 1, 1, 1)
    out = photometric(frames, SEEDS, only(gamma=0.2)).double().numpy().reshape(6, 256)
    assert (out[:, 0] == 0).all()
    np.testing.assert_allclose(out[:, 255], 255, rtol=1e-6)
    levels = np.arange(1, 255) / 255
    for row in out:
        gammas = np.log(row[1:255] / 255) / np.log(levels)
        assert np.ptp(gammas) < 1e-3
        assert 0 < abs(math.log(gammas.mean())) <= 0.2


def test_light_falls_off_along_a_plane():
    frames = torch.full((40, 1, 32, 64), 128, dtype=torch.uint8)
    out = photometric(frames, range(40), only(illumination=0.2)).double().numpy() / 128
    x, y = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 32))
    design = np.column_stack([x.ravel(), y.ravel(), np.ones(x.size)])
    reached = []
    for plane in out:
        (along_x, along_y, mean), *_ = np.linalg.lstsq(design, plane.ravel(), rcond=None)
        np.testing.assert_allclose(design @ [along_x, along_y, mean], plane.ravel(), atol=1e-5)
        assert mean == pytest.approx(1, abs=1e-5)
        reached.append(np.abs(plane - 1).max())
    assert 0.15 < max(reached) <= 0.2 + 1e-6


def test_blur_is_a_gaussian_of_at_most_1_2_px():
    frames = torch.zeros((6, 1, 33, 33), dtype=torch.uint8)
    frames[:, :, 16, 16] = 200
    out = photometric(frames, SEEDS, only(blur=1)).double().numpy()[:, 0]
    distance = np.arange(33) - 16
    for blurred in out:
        assert blurred.sum() == pytest.approx(200, rel=1e-5)
        profile = blurred[16, 12:21] / blurred[16, 16]
        # From the neighbour of the centre: exp(-1 / (2 sigma^2)).
        sigma = math.sqrt(-0.5 / math.log(profile[5]))
        assert 0.3 <= sigma <= 1.2 + 1e-6
        kernel = cv2.getGaussianKernel(9, sigma)[:, 0]
        np.testing.assert_allclose(blurred[12:21, 12:21], 200 * np.outer(kernel, kernel), atol=1e-3)
        assert (blurred[np.abs(distance) > 4] == 0).all()


def test_blur_continues_by_reflection_and_agrees_with_opencv():
    frames = random_frames()
    impulse = torch.zeros((6, 1, 33, 33), dtype=torch.uint8)
    impulse[:, :, 16, 16] = 255
    kernels = photometric(impulse, SEEDS, only(blur=1))[:, 0, 12:21, 12:21].numpy() / 255
    out = photometric(frames, SEEDS, only(blur=1)).numpy()
    for frame, kernel, blurred in zip(frames.numpy(), kernels, out, strict=True):
        expected = cv2.filter2D(
            frame[0].astype(np.float32), -1, kernel, borderType=cv2.BORDER_REFLECT_101
        )
        np.testing.assert_allclose(blurred[0], expected, atol=1e-2)


def test_noise_is_normal_around_the_grey_level():
    frames = torch.full((30, 1, 64, 128), 128, dtype=torch.uint8)
    noise = photometric(frames, range(30), only(noise=1)).double().numpy() - 128
    sigmas = noise.std((1, 2, 3))
    assert (sigmas > 0.9).all()
    assert (sigmas < 6.2).all()
    assert np.ptp(sigmas) > 3
    z = noise / sigmas[:, None, None, None]
    assert abs(z.mean((1, 2, 3))).max() < 5 / math.sqrt(64 * 128)
    assert (z**4).mean() == pytest.approx(3, abs=0.1)
    neighbours = (z[:, 0, :, 1:] * z[:, 0, :, :-1]).mean((1, 2))
    assert abs(neighbours).max() < 5 / math.sqrt(64 * 128)
    between = np.corrcoef(z.reshape(30, -1))[~np.eye(30, dtype=bool)]
    assert abs(between).max() < 6 / math.sqrt(64 * 128)


@pytest.mark.parametrize("part", ["blur", "noise"])
def test_probabilities_are_per_crop(part):
    frames = random_frames(600, (16, 16), 100, 150)
    out = photometric(frames, range(600), only(**{part: 0.25}))
    changed = ((out - frames).abs() > 0.01).any(3).any(2).sum().item()
    assert abs(changed - 150) < 4 * math.sqrt(600 * 0.25 * 0.75)


def test_a_crop_does_not_depend_on_its_batch_or_on_the_global_generator():
    frames = random_frames()
    settings = Augment(blur=0.5, noise=0.5)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    out = photometric(frames, SEEDS, settings)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    for place, seed in enumerate(SEEDS):
        alone = photometric(frames[place : place + 1], [seed], settings)
        assert torch.equal(alone[0], out[place])
    assert torch.equal(photometric(frames.flip(0), SEEDS[::-1], settings).flip(0), out)


@pytest.mark.parametrize("part", sorted(OFF))
def test_a_part_does_not_change_what_the_others_draw(part):
    """All off but one gives the same as all on, seen through that one part."""
    frames = random_frames(low=127, high=130)
    value = 1.0 if part in ("blur", "noise") else 0.2
    alone = photometric(frames, SEEDS, only(**{part: value}))
    again = photometric(frames, SEEDS, only(**(dict.fromkeys(OFF, 1e-09) | {part: value})))
    torch.testing.assert_close(alone, again, rtol=0, atol=1e-3)


def test_grey_levels_stay_in_range_and_the_input_as_it_was():
    frames = random_frames()
    before = frames.clone()
    strong = Augment(
        contrast=1, brightness=1, gamma=1, illumination=1, blur=1, noise=1
    )  # fmt: skip
    out = photometric(frames, SEEDS, strong)
    assert 0 <= out.min() < out.max() <= 255
    assert torch.equal(frames, before)
    assert not out.requires_grad


@pytest.mark.parametrize(("dtype", "types"), [(np.uint8, 1), (np.uint8, 8), (np.uint16, 16)])
def test_unpacked_types_are_the_bits(dtype, types):
    high = 1 << types
    bits = np.random.default_rng(types).integers(0, high, (3, 5, 7), dtype=dtype)
    masks = unpack_types(torch.from_numpy(bits), types)
    assert masks.shape == (3, types, 5, 7)
    assert masks.dtype == torch.bool
    for (n, y, x), value in np.ndenumerate(bits):
        assert masks[n, :, y, x].tolist() == [c == "1" for c in f"{value:0{types}b}"[::-1]]
