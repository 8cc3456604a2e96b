from dataclasses import replace

import pytest

from steelsight.errors import InputError
from steelsight.training.config import TrainConfig
from steelsight.training.plan import Fingerprint, Profile, make_plan

SEVERSTAL = Fingerprint(
    frames=8379,
    clean=3935,
    masked_by_type={"1": 598, "2": 165, "3": 3433, "4": 534},
    frame_wh=(1600, 256),
    device="cuda",
    memory_bytes=80_000_000_000,
    cores=16,
)
SMALL_BOX = replace(SEVERSTAL, device="cpu", memory_bytes=24_000_000_000, cores=2)


def plan(found: Fingerprint, profile: Profile = Profile.AUTO) -> TrainConfig:
    return make_plan(found, profile).config


def test_a_gpu_trains_at_full_resolution_as_the_recipe_says() -> None:
    config = plan(SEVERSTAL)
    assert config.network.input_stride == 1
    assert config.sampling.crop_hw == (256, 512)
    assert config.sampling.batch == 32
    assert config.optimiser.lr == pytest.approx(6e-4)
    assert config.sampling.copy_paste > 0


def test_a_small_box_trains_at_half_resolution_with_smaller_batches_and_rates() -> None:
    config = plan(SMALL_BOX)
    assert config.network.input_stride == 2
    assert config.sampling.batch == 12
    assert config.optimiser.lr == pytest.approx(6e-4 * (12 / 32) ** 0.5, rel=1e-2)


def test_the_fastest_network_ends_after_two_stages_whatever_the_machine() -> None:
    for found in (SEVERSTAL, SMALL_BOX, replace(SMALL_BOX, frame_wh=(200, 200))):
        config = plan(found, Profile.FASTEST)
        assert (config.network.stages, config.network.input_stride) == (2, 2)
        assert all(side % 64 == 0 for side in config.sampling.crop_hw)
    assert plan(SMALL_BOX, Profile.FAST).network.stages == 4


def test_a_run_sees_each_frame_about_fifty_times_within_limits() -> None:
    for frames in (40, 600, 8379, 10**6):
        found = replace(SEVERSTAL, frames=frames)
        config = plan(found)
        passes = config.steps * config.sampling.batch / frames
        assert 600 <= config.steps <= 40_000
        if 600 < config.steps < 40_000:
            assert passes == pytest.approx(50, rel=0.02)


def test_little_memory_means_fewer_crops_and_none_is_refused_with_advice() -> None:
    sizes = [
        plan(replace(SEVERSTAL, memory_bytes=gb * 10**9), Profile.QUALITY).sampling.batch
        for gb in (2, 4, 8, 24)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == 32
    with pytest.raises(InputError, match=r"memory for 2 crops .* --plan fast"):
        plan(replace(SEVERSTAL, memory_bytes=10**8), Profile.QUALITY)


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes_share_the_batch_evenly(processes: int) -> None:
    found = replace(SMALL_BOX, processes=processes)
    assert plan(found).sampling.batch % processes == 0


@pytest.mark.parametrize(
    ("frame_wh", "crop_hw"),
    [
        ((1600, 256), (256, 512)),
        ((200, 200), (224, 224)),
        ((4096, 1000), (512, 1024)),
        ((640, 480), (480, 640)),
        ((100, 3000), (512, 128)),
    ],
)
def test_crops_fit_the_frames_and_the_network(
    frame_wh: tuple[int, int], crop_hw: tuple[int, int]
) -> None:
    found = replace(SEVERSTAL, frame_wh=frame_wh)
    assert plan(found, Profile.QUALITY).sampling.crop_hw == crop_hw
    half = plan(found, Profile.FAST)
    assert all(side % 64 == 0 for side in half.sampling.crop_hw)


def test_small_frames_stay_at_full_resolution_without_a_gpu() -> None:
    found = replace(SMALL_BOX, frame_wh=(200, 200))
    assert plan(found).network.input_stride == 1


def test_without_clean_frames_nothing_is_pasted_and_the_reason_says_so() -> None:
    made = make_plan(replace(SEVERSTAL, clean=0), Profile.AUTO)
    assert made.config.sampling.copy_paste == 0
    assert any("no clean frame" in reason for reason in made.reasons)


def test_plenty_of_every_type_needs_no_copy_paste() -> None:
    counts = dict.fromkeys("1234", 2000)
    assert plan(replace(SEVERSTAL, masked_by_type=counts)).sampling.copy_paste == 0


def test_every_choice_has_a_reason() -> None:
    changed = plan(SMALL_BOX).model_dump() != TrainConfig().model_dump()
    assert changed
    assert len(make_plan(SMALL_BOX, Profile.AUTO).reasons) >= 5
