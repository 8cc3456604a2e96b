"""Form and size of a network, and what teaches it: the settings that the networks know.

They are part of :class:`steelsight.training.config.TrainConfig`.
"""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """Frozen, and refuses unknown names."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class Arch(StrEnum):
    """How the two stages share a ResNet50."""

    SHARED = "shared"
    """One encoder under the gate's heads and the segmenter's decoder."""
    TWO = "two"
    """A classifier and a Res-UNet, each with its own encoder."""


class Pixels(StrEnum):
    """Loss of single pixels."""

    BCE = "bce"
    FOCAL = "focal"
    """Lin et al., arXiv 1708.02002."""


class Region(StrEnum):
    """Loss of overlap, per type over the batch."""

    DICE = "dice"
    TVERSKY = "tversky"
    """Salehi et al., arXiv 1706.05721."""
    FOCAL_TVERSKY = "focal-tversky"
    """Abraham and Khan, arXiv 1810.07842."""
    NONE = "none"


class Network(Settings):
    """Form and size of the network."""

    arch: Arch = Arch.SHARED
    """shared or two."""
    width: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on all numbers of channels; below 1 no ResNet50 start fits."""
    input_stride: Annotated[int, Field(ge=1, le=2)] = 1
    """2: frames are averaged to half their size inside the network (the fast profile)."""
    stages: Annotated[int, Field(ge=2, le=4)] = 4
    """Of the ResNet50; 2 or 3 end it early (the fastest profile has 2)."""
    mask_stride: Annotated[int, Field(ge=1, le=4)] = 4
    """Resolution of the mask logits against the network's input: 4, 2 or 1."""
    residual: bool = False
    """Residual decoder blocks."""
    stride_on: Annotated[str, Field(pattern=r"^v1(\.5)?$")] = "v1"
    """v1 (Keras) or v1.5 (torchvision); must be that of the start."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Before both heads."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.mask_stride == 3:
            raise ValueError("mask_stride is 4, 2 or 1")
        return self


class Loss(Settings):
    """``pixel_weight`` x pixels + region + ``head_weight`` x (faulty + types) for each head."""

    pixels: Pixels = Pixels.BCE
    """bce or focal."""
    pixel_weight: Annotated[float, Field(ge=0)] = 4.0
    """Factor on the pixel loss; 0 switches it off."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    """Of the focal pixel loss."""
    pos_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Rare types weigh (median frames / frames of the type) to this power in the pixel and head
    losses' positive part; 0 switches it off."""
    region: Region = Region.FOCAL_TVERSKY
    """dice, tversky, focal-tversky or none."""
    false_positives: Share = 0.4
    """Weight of false positive pixels in both Tversky losses."""
    false_negatives: Share = 0.6
    """Weight of false negative pixels in both Tversky losses."""
    tversky_gamma: Positive = 0.75
    """Power of the focal Tversky loss."""
    smooth_px: Positive = 50.0
    """Added to numerator and denominator of the region loss."""
    head_weight: Annotated[float, Field(ge=0)] = 0.25
    """Factor on the losses of both heads."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.pixel_weight == 0 and self.region is Region.NONE:
            raise ValueError("without pixels and region nothing teaches the segmenter")
        return self
