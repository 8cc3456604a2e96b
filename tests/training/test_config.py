import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from steelsight.errors import InputError
from steelsight.training.config import (
    Precision,
    TrainConfig,
    parse_config,
    setting_names,
    setting_table,
    with_settings,
)
from steelsight.training.run_folder import RunFolder, RunInputs, flat_settings, read_config


def refusal(settings: dict[str, Any]) -> str:
    with pytest.raises(InputError) as refused:
        with_settings(TrainConfig(), settings)
    assert "\n" not in str(refused.value)
    assert "steelsight train --settings" in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("loss.focal_gama", "loss.focal_gamma"),
        ("lr", "optimiser.lr"),
        ("batch", "sampling.batch"),
        ("step", "steps"),
        ("optimizer.lr", "optimiser.lr"),
        ("augment.copy_paste", "sampling.copy_paste"),
        ("network", "network."),
        ("loss", "loss."),
        ("Steps", "steps"),
        ("xyzzy", "seed"),
    ],
)
def test_an_unknown_setting_names_those_that_may_be_meant(name: str, meant: str) -> None:
    said = refusal({name: "1"})
    assert "expected a setting such as" in said
    assert meant in said
    assert repr(name) in said or name in said


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("steps", "0", "setting steps: .*greater than or equal to 1, got '?0'?"),
        ("steps", "many", "setting steps: .*integer.*, got '?many'?"),
        ("steps", 1.5, "setting steps: .*integer"),
        ("seed", "-1", "setting seed"),
        ("loss.region", "iou", "setting loss.region: .*'dice'.* got '?iou'?"),
        ("network.arch", "three", "setting network.arch: .*'shared'.*'two'"),
        ("network.mask_stride", "3", "mask_stride is 4, 2 or 1"),
        ("network.width", "0", "setting network.width"),
        ("device", "tpu", "setting device"),
        ("precision", "fp16", "setting precision: .*'bf16'"),
        ("flips", "perhaps", "setting flips"),
        ("sampling.crop_hw", "256", "setting sampling.crop_hw"),
        ("sampling.crop_hw", "256x256x1", "setting sampling.crop_hw"),
        ("sampling.crop_hw", "100x256", "both sides of crop_hw are multiples of 32"),
        ("sampling.crop_hw", "axb", "setting sampling.crop_hw"),
        ("sampling.copy_paste", "0.9", "defects and copy_paste together exceed the batch"),
        ("optimiser.lr", "nan", "setting optimiser.lr"),
        ("optimiser.lr", "inf", "setting optimiser.lr"),
        ("loss.pixel_weight", "inf", "setting loss.pixel_weight"),
        ("steps", "1\n2", "setting steps"),
    ],
)
def test_an_impossible_value_is_named(name: str, value: object, said: str) -> None:
    assert re.search(said, refusal({name: value}))


def test_settings_that_exclude_each_other() -> None:
    assert "nothing teaches" in refusal({"loss.pixel_weight": 0, "loss.region": "none"})
    said = refusal({"network.input_stride": 2, "sampling.crop_hw": "96x96"})
    assert "multiples of 64" in said


def test_text_becomes_what_the_setting_is() -> None:
    config = with_settings(
        TrainConfig(),
        {
            "steps": "12",
            "flips": "true",
            "optimiser.lr": "1e-3",
            "loss.region": "dice",
            "precision": "fp32",
            "network.residual": "yes",
            "network.stride_on": "v1.5",
        },
    )
    assert config.steps == 12
    assert config.flips is True
    assert config.optimiser.lr == 1e-3
    assert config.loss.region == "dice"
    assert config.precision is Precision.FP32
    assert config.network.residual is True
    assert config.network.stride_on == "v1.5"


@pytest.mark.parametrize(
    "text", ["256x512", "256X512", "256,512", "256, 512", [256, 512], (256, 512)]
)
def test_sides_of_a_crop(text: object) -> None:
    config = with_settings(TrainConfig(), {"sampling.crop_hw": "64x64"})
    assert with_settings(config, {"sampling.crop_hw": text}).sampling.crop_hw == (256, 512)


def test_nothing_else_changes_and_the_first_stays() -> None:
    before = TrainConfig()
    after = with_settings(before, {"loss.focal_gamma": 1, "seed": 7})
    assert before == TrainConfig()
    changed = {
        name: value
        for name, value in flat_settings(after).items()
        if value != flat_settings(before)[name]
    }
    assert changed == {"loss.focal_gamma": 1, "seed": 7}
    assert with_settings(after, {}) == after


def leaves(settings: BaseModel, prefix: str = "") -> dict[str, Any]:
    """All values by dotted name, found by walking through a real object."""
    found: dict[str, Any] = {}
    for name in settings.model_dump():
        value = getattr(settings, name)
        below = isinstance(value, BaseModel)
        found |= leaves(value, f"{prefix}{name}.") if below else {prefix + name: value}
    return found


def test_names_are_complete() -> None:
    expected = leaves(TrainConfig())
    assert setting_names() == list(expected)
    assert list(flat_settings(TrainConfig())) == list(expected)
    assert len(expected) > 40
    # Each of them can be set to what it is.
    for name, value in flat_settings(TrainConfig()).items():
        assert with_settings(TrainConfig(), {name: value}) == TrainConfig(), name
        text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
        assert with_settings(TrainConfig(), {name: text}) == TrainConfig(), name


def test_every_setting_says_what_it_means() -> None:
    config = with_settings(TrainConfig(), {"steps": 12, "sampling.crop_hw": "64x96"})
    table = setting_table(config)
    assert [name for name, _, _ in table] == setting_names()
    assert [name for name, _, about in table if not about] == []
    assert [about for _, _, about in table if "\n" in about or "  " in about] == []
    values = {name: value for name, value, _ in table}
    assert values["steps"] == "12"
    assert values["sampling.crop_hw"] == "64x96"
    assert values["loss.region"] == "focal-tversky"
    # What the table shows can be given back.
    assert with_settings(TrainConfig(), values) == config


def test_config_file_is_read_back(tmp_path: Path) -> None:
    config = with_settings(
        TrainConfig(),
        {"optimiser.lr": 0.1 + 0.2, "sampling.crop_hw": "64x96", "network.arch": "two"},
    )
    assert parse_config(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    data = {"classes": [{"id": "1", "name": "pit"}], "data_sha256": "a", "split_sha256": "b"}
    RunFolder.create(tmp_path / "run", config, RunInputs("", data, "random", None)).close()
    assert read_config(tmp_path / "run") == config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stepz": 3}, "setting stepz: Extra inputs are not permitted, got '3'"),
        ({"loss": {"gamma": 3}}, "setting loss.gamma: Extra"),
        ({"loss": 3}, "setting loss"),
        ({"sampling": None}, "setting sampling"),
        ({"steps": None}, "setting steps"),
    ],
)
def test_a_config_file_of_another_version_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        parse_config(TrainConfig().model_dump(mode="json") | change)
    assert "\n" not in str(refused.value)


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TrainConfig().steps = 3
