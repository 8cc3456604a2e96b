"""Settings that follow from the data and the machine, each with its reason in words.

After nnU-Net's fingerprint and plan (Isensee et al., doi 10.1038/s41592-020-01008-z): what depends
on the data is computed from them, the rest is a fixed recipe. All of it can be overridden.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from steelsight.engine.runtime import available_cores
from steelsight.errors import InputError
from steelsight.training.config import TrainConfig, with_settings
from steelsight.training.prepare import TrainingData, count_frames

PASSES = 50
"""How often a run goes through as many crops as there are frames: the shipped network's recipe."""

LEAST_STEPS, MOST_STEPS, SMALL_STEPS = 600, 40_000, 1000
SMALL_LR = 1e-3
"""Few channels from random weights take a higher rate."""
FEW_FRAMES_OF_A_TYPE = 1000
BYTES_PER_PIXEL = 2500
"""Memory of a step by pixel at the network's input, full width, fp32: measured by
``benchmarks/training_memory.py`` on a CPU. bf16 needs less."""


class Profile(StrEnum):
    """What the network is for."""

    AUTO = "auto"
    """Quality on a GPU, fast on a CPU."""
    QUALITY = "quality"
    """Full resolution."""
    FAST = "fast"
    """Half resolution: a quarter of the operations; docs/severstal.md says what that costs."""
    FASTEST = "fastest"
    """Half resolution and the first two of four stages: an eighth of the operations."""
    SMALL = "small"
    """A quarter of the channels at half resolution: to see a whole run in minutes, not to ship."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a plan depends on.

    Attributes:
        frames, clean: frames to learn from, and how many of them are good steel.
        masked_by_type: frames with a mask, by type.
        frame_wh: usual size in pixels.
        device: ``cpu`` or ``cuda``.
        memory_bytes: of the device that can be used.
        cores: CPU cores of this process.
        processes: that train together.
    """

    frames: int
    clean: int
    masked_by_type: dict[str, int]
    frame_wh: tuple[int, int]
    device: str
    memory_bytes: int
    cores: int
    processes: int = 1

    def to_json(self) -> dict[str, Any]:
        """For the run's records."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings and why; ``reasons`` are one line each, for people."""

    config: TrainConfig
    reasons: tuple[str, ...]


def take_fingerprint(data: TrainingData, device: str, processes: int = 1) -> Fingerprint:
    """Measures data and machine.

    Args:
        data: what will be learned from.
        device: ``cpu`` or ``cuda``.
        processes: that train together.
    """
    counts = count_frames(data.train, data.class_ids)
    if device == "cuda":
        memory_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    else:
        memory_bytes = _free_memory_bytes()
    return Fingerprint(
        frames=counts["frames"],
        clean=counts["clean"],
        masked_by_type=counts["masked_by_type"],
        frame_wh=data.tile_wh,
        device=device,
        memory_bytes=memory_bytes,
        cores=available_cores(),
        processes=processes,
    )


def make_plan(found: Fingerprint, profile: Profile, base: TrainConfig | None = None) -> Plan:
    """Chooses resolution, crop, batch, number of steps and sampling.

    Args:
        found: the fingerprint.
        profile: what the network is for.
        base: the settings to start from; the defaults if ``None``.

    Raises:
        InputError: the memory does not hold a batch of two crops.
    """
    chosen: dict[str, Any] = {}
    reasons: list[str] = []

    def choose(because: str, **settings: Any) -> None:
        chosen.update({name.replace("__", "."): value for name, value in settings.items()})
        reasons.append(because)

    _plan_network(found, profile, choose)
    stride = chosen.get("network.input_stride", 1)
    width = chosen.get("network.width", 1.0)
    crop_hw = _crop_hw(found.frame_wh, 32 * stride)
    choose(
        f"crops of {crop_hw[0]} x {crop_hw[1]} px: frames are usually {found.frame_wh[1]} rows x"
        f" {found.frame_wh[0]} columns, and nothing is squashed",
        sampling__crop_hw=list(crop_hw),
    )
    batch = _batch(found, crop_hw, stride, width)
    choose(
        f"batch of {batch}: {found.device} with {found.memory_bytes / 1e9:.0f} GB and"
        f" {found.cores} cores",
        sampling__batch=batch,
        # Square root scaling for Adam: Malladi et al., arXiv 2205.10287.
        optimiser__lr=round(6e-4 * (batch / 32) ** 0.5, 6),
        optimiser__encoder_lr=round(2e-4 * (batch / 32) ** 0.5, 6),
    )
    most = SMALL_STEPS if profile is Profile.SMALL else MOST_STEPS
    steps = min(max(round(PASSES * found.frames / batch), LEAST_STEPS), most)
    choose(
        f"{steps} steps: {steps * batch / max(found.frames, 1):.0f} times as many crops as the"
        f" {found.frames} frames",
        steps=steps,
        validate_every=max(steps // (4 if profile is Profile.SMALL else 12), 25),
        # Half a gigabyte each: about as long as forty steps on a GPU, as one or two on a CPU.
        checkpoint_every=250 if found.device == "cuda" else 50,
    )
    _plan_sampling(found, choose)
    if profile is Profile.SMALL:
        choose(
            f"learning rate {SMALL_LR:g}: few channels, mostly from random weights",
            optimiser__lr=SMALL_LR,
        )
    return Plan(with_settings(base or TrainConfig(), chosen), tuple(reasons))


def _plan_network(found: Fingerprint, profile: Profile, choose: Callable[..., None]) -> None:
    small_frames = min(found.frame_wh) < 224
    if profile is Profile.SMALL:
        choose(
            "a quarter of the channels at half resolution: profile small",
            network__width=0.25,
            network__input_stride=2,
            optimiser__ema=0.99,
        )
    elif profile is Profile.FASTEST:
        choose(
            "half resolution and two of the ResNet50's four stages, an eighth of the operations:"
            " profile fastest",
            network__input_stride=2,
            network__stages=2,
        )
    elif profile is Profile.QUALITY or (profile is Profile.AUTO and found.device == "cuda"):
        why = "profile quality" if profile is Profile.QUALITY else "there is a GPU"
        choose(f"full resolution: {why}", network__input_stride=1)
    elif profile is Profile.AUTO and small_frames:
        choose("full resolution: the frames are small", network__input_stride=1)
    else:
        why = "profile fast" if profile is Profile.FAST else "there is no GPU"
        choose(f"half resolution, a quarter of the operations: {why}", network__input_stride=2)


def _crop_hw(frame_wh: tuple[int, int], multiple: int) -> tuple[int, int]:
    width, height = frame_wh

    def side(length_px: int, most_px: int) -> int:
        return min(-(-length_px // multiple) * multiple, most_px)

    rows = side(height, 512)
    # Twice as wide as high along a strip; square frames give square crops.
    return rows, side(min(width, 2 * rows), 1024)


def _batch(found: Fingerprint, crop_hw: tuple[int, int], stride: int, width: float) -> int:
    step_bytes = BYTES_PER_PIXEL * width * crop_hw[0] * crop_hw[1] / stride**2
    room = 0.6 * found.memory_bytes / (1 if found.device == "cuda" else found.processes)
    fits = int(room // step_bytes) * found.processes
    if fits < 2:
        raise InputError(
            f"expected memory for 2 crops of {crop_hw[0]} x {crop_hw[1]} px, {found.device} has"
            f" {found.memory_bytes / 1e9:.1f} GB; use --plan fast or small, or a smaller"
            " --set sampling.crop_hw=..."
        )
    # On few cores smaller batches see more updates in the same time.
    wanted = 32 if found.device == "cuda" or found.cores > 8 else 12
    batch = min(wanted, fits)
    return max(batch - batch % found.processes, found.processes)


def _plan_sampling(found: Fingerprint, choose: Callable[..., None]) -> None:
    counts = found.masked_by_type
    rarest = min(counts, key=counts.__getitem__)
    if not found.clean:
        choose(
            "all crops around defects: there is no clean frame, so the gate learns from clean"
            " places of faulty frames only",
            sampling__defects=0.75,
            sampling__copy_paste=0.0,
        )
    elif counts[rarest] >= FEW_FRAMES_OF_A_TYPE:
        choose(
            f"no copy-paste: even the rarest type, {rarest}, has {counts[rarest]} frames",
            sampling__defects=0.6,
            sampling__copy_paste=0.0,
        )
    else:
        choose(
            f"copy-paste onto clean frames: type {rarest} has only {counts[rarest]} frames",
            sampling__copy_paste=0.1875,
        )
    most = max(counts, key=counts.__getitem__)
    share = counts[most] / max(sum(counts.values()), 1)
    choose(
        f"types drawn almost equally: type {most} is {share:.0%} of all masks",
        sampling__type_exponent=0.1,
    )


def _free_memory_bytes() -> int:
    """What this machine or container can give, whichever is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total
