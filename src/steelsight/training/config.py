"""Every setting of a training run, with its reason and its default.

The defaults are the recipe that gave the shipped network (``docs/training.md``). Settings are
values: a run folder holds them all in ``config.json``, and the same settings, data and start give
the same weights on the same machine. ``plan.py`` fills in those that depend on the data and the
device; ``--set loss.focal_gamma=1`` overrides any of them.
"""

from difflib import get_close_matches
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from steelsight.data.labels import shown
from steelsight.errors import InputError
from steelsight.models.config import Loss, Network, Positive, Settings, Share

Count = Annotated[int, Field(ge=1)]


class Precision(StrEnum):
    """Number type of the network's sums while it trains."""

    AUTO = "auto"
    """bf16 where the device computes with it, else fp32."""
    FP32 = "fp32"
    BF16 = "bf16"


class Sampling(Settings):
    """What a batch is made of."""

    batch: Count = 32
    """Crops in a step, over all processes."""
    crop_hw: tuple[Count, Count] = (256, 512)
    """Rows and columns of a crop in frame pixels, multiples of 32 (64 with input_stride 2)."""
    balance: bool = True
    """False: frames are drawn as often as they are in the data, crops anywhere in them."""
    defects: Share = 0.4375
    """Share of the batch that is cut around a real defect."""
    copy_paste: Share = 0.1875
    """Share of clean crops onto which a real defect is pasted; 0 switches it off."""
    type_exponent: Share = 0.1
    """Types are drawn by their number of frames to this power: 0 equally, 1 as in the data."""
    faulty_from_px: Count = 48
    """A type counts as present in a crop from here on; with fewer pixels its label is ignored."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.defects + self.copy_paste > 1:
            raise ValueError("defects and copy_paste together exceed the batch")
        if any(side % 32 for side in self.crop_hw):
            raise ValueError("both sides of crop_hw are multiples of 32")
        return self


class Augment(Settings):
    """What is done to crops; probabilities are per crop, 0 switches a part off."""

    zoom: Annotated[float, Field(ge=1, le=2)] = 1.25
    """Scaled by a factor between 1 / zoom and zoom."""
    rotate_deg: Annotated[float, Field(ge=0, le=45)] = 2.3
    """Rotated by at most this angle."""
    flip_left_right: Share = 0.5
    """Mirrored along the strip."""
    flip_up_down: Share = 0.5
    """Mirrored across the strip."""
    black_out: Share = 0.05
    """Of crops with a defect: all its defects are painted black and the label flips to clean."""
    edge: Share = 0.1
    """Darkened from one side on, as where the strip ends; defects under it are no longer there."""
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Contrast times e to the power of -x..x."""
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Brightness times e to the power of -x..x."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Gamma e to the power of -x..x."""
    illumination: Annotated[float, Field(ge=0, le=1)] = 0.2
    """A ramp of brightness over the crop, at most this factor at its ends."""
    blur: Share = 0.1
    """Gaussian, sigma up to 1.2 px."""
    noise: Share = 0.2
    """Gaussian, sigma up to 6 grey levels."""


class Optimiser(Settings):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) on a cosine with warm-up."""

    lr: Positive = 6e-4
    """Of whatever is new: heads, decoder, layers that the start does not hold."""
    encoder_lr: Positive = 2e-4
    """Of the encoder's last stage that came with the start."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Factor on the rate from each stage to the one below it."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    """Not on biases and BatchNorm."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps in which the rate rises from 0."""
    clip: Positive = 2.0
    """Largest norm of the gradient."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """Decay of the averaged weights, which are validated and exported; 0 switches it off."""
    freeze_batchnorm: bool = False
    """Keep the start's BatchNorm statistics in the encoder; for small batches."""


class TrainConfig(Settings):
    """A training run."""

    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    """Of the order of crops, what is done to them, dropout, and random starts."""
    steps: Count = 1400
    """Batches in all."""
    validate_every: Count = 100
    """Steps between validations."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Stop after so many validations without a better guard metric; 0 never stops early."""
    average: Annotated[int, Field(ge=0, le=10)] = 0
    """Also average the weights of so many best validations, and keep the average if it is better
    (Izmailov et al., arXiv 1803.05407); 0 switches it off."""
    flips: bool = False
    """Average predictions over four flips wherever the run measures."""
    checkpoint_every: Count = 50
    """Steps between checkpoints: what a crash costs at most."""
    pictures_every: Annotated[int, Field(ge=0)] = 5
    """Validations between sample pictures; 0 makes none."""
    precision: Precision = Precision.AUTO
    """auto (bf16 where the device computes with it, else fp32), fp32 or bf16."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda)$")] = "auto"
    """auto (a GPU if there is one), cpu or cuda."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of each process; 0: all cores, divided by the processes on this machine."""
    validate_frames: Count = 1000
    """Held-out frames that a validation looks at, at most; the last one looks at all."""
    cache_mb: Annotated[int, Field(ge=0)] = 1024
    """Decoded frames kept in memory; beyond, they are decoded again."""
    network: Network = Field(default_factory=Network)
    sampling: Sampling = Field(default_factory=Sampling)
    augment: Augment = Field(default_factory=Augment)
    loss: Loss = Field(default_factory=Loss)
    optimiser: Optimiser = Field(default_factory=Optimiser)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        side = 32 * self.network.input_stride
        if any(length % side for length in self.sampling.crop_hw):
            raise ValueError(f"both sides of sampling.crop_hw are multiples of {side}")
        return self


def with_settings(config: TrainConfig, settings: dict[str, Any]) -> TrainConfig:
    """The settings with some of them replaced.

    Args:
        config: what to start from.
        settings: values by dotted name, such as ``loss.focal_gamma``; text is converted.

    Raises:
        InputError: no such setting, or an impossible value; names the choices.
    """
    names = setting_names()
    values = config.model_dump(mode="json")
    for name, value in settings.items():
        if name not in names:
            last = name.rpartition(".")[2]
            same = [known for known in names if known.rpartition(".")[2] == last]
            near = list(dict.fromkeys(same + get_close_matches(name, names, 3, 0.4)))[:3]
            near = near or names[:3]
            raise InputError(
                f"expected a setting such as {', '.join(near)}, got {shown(name)};"
                " see 'steelsight train --settings' for all of them"
            )
        *groups, last = name.split(".")
        table: dict[str, Any] = values
        for group in groups:
            table = table[group]
        if isinstance(value, str) and isinstance(table[last], list):
            value = value.lower().replace("x", ",").split(",")
        table[last] = value
    return parse_config(values)


def parse_config(values: dict[str, Any]) -> TrainConfig:
    """The settings as ``config.json`` holds them.

    Raises:
        InputError: an unknown or impossible setting.
    """
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        said = problem["msg"].removeprefix("Value error, ")
        got = problem["input"]
        got_text = "" if isinstance(got, dict) else f", got {shown(str(got))}"
        raise InputError(
            f"setting {where or 'of the run'}: {said}{got_text};"
            " see 'steelsight train --settings' for all of them"
        ) from None


def setting_names(model: type[BaseModel] = TrainConfig, prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    names = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names += setting_names(inner, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def setting_table(config: TrainConfig) -> list[tuple[str, str, str]]:
    """Name, value and meaning of each setting, in order."""
    return _rows(config, "")


def _rows(settings: BaseModel, prefix: str) -> list[tuple[str, str, str]]:
    rows = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            rows += _rows(value, f"{prefix}{name}.")
        else:
            shape = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
            rows.append((prefix + name, shape, " ".join((field.description or "").split())))
    return rows
