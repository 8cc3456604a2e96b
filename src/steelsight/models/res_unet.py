"""Res-UNet: a ResNet50 encoder under a U-Net decoder, with the gate's heads on the same encoder.

Ronneberger, Fischer, Brox, "U-Net", arXiv 1505.04597; residual decoder blocks as in Zhang, Liu,
Wang, "Road Extraction by Deep Residual U-Net", arXiv 1711.10684; the soft maximum over positions as
in Pinheiro, Collobert, "From Image-level to Pixel-level Labeling", arXiv 1411.6228.

Parameter names are those of segmentation_models_pytorch's ``Unet`` where the shapes allow
(``encoder.*``, ``decoder.blocks.0.conv1.0.weight``, ``segmentation_head.0.weight``).

Shapes: N batch, K defect types, H rows, W columns of a frame (multiples of 32 times the network's
``input_stride``), S its ``mask_stride``.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows
from torch import Tensor, nn

from steelsight.errors import InputError
from steelsight.models.config import Arch, Network
from steelsight.models.resnet import (
    STAGE_CHANNELS,
    Features,
    ResNet50Encoder,
    StrideOn,
    scaled_channels,
)

DECODER_CHANNELS = (256, 128, 64, 32, 16)
BLOCKS_BY_STRIDE = {4: 3, 2: 4, 1: 5}
INPUT_STRIDES = (1, 2)
SOFT_MAXIMUM_SHARPNESS = 4.0


class Logits(NamedTuple):
    """What the network says, before any sigmoid.

    ``average`` and ``soft_maximum``: ``(N, 1 + K)``, first "faulty", then one per type;
    ``masks``: ``(N, K, H / S, W / S)``.
    """

    average: Tensor
    soft_maximum: Tensor
    masks: Tensor

    @property
    def faulty(self) -> Tensor:
        """The recommended frame score: mean of both heads' first logit, ``(N,)``."""
        return (self.average[:, 0] + self.soft_maximum[:, 0]) / 2


class ConvBnRelu(nn.Sequential):
    """3x3 convolution without bias, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class DecoderBlock(nn.Module):
    """Nearest upsampling by two, the encoder's skip appended, two 3x3 convolutions.

    ``x (N, in, h, w)`` and ``skip (N, skip, 2h, 2w)`` give ``(N, out, 2h, 2w)``. With ``residual``
    the block's input is added back through a 1x1 convolution (Res-U-Net).
    """

    def __init__(
        self, in_channels: int, skip_channels: int, out_channels: int, *, residual: bool
    ) -> None:
        super().__init__()
        joined = in_channels + skip_channels
        self.conv1 = ConvBnRelu(joined, out_channels)
        self.conv2 = ConvBnRelu(out_channels, out_channels)
        self.shortcut = nn.Conv2d(joined, out_channels, 1) if residual else None

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if skip is not None:
            x = torch.cat([x, skip], 1)
        y: Tensor = self.conv2(self.conv1(x))
        return y if self.shortcut is None else y + self.shortcut(x)


class Decoder(nn.Module):
    """The deepest features up to the wanted stride, taking in those above them on the way.

    Args:
        stride: of the result: 4, 2 or 1.
        features: channels of C1 to the deepest, C5 in a whole ResNet50.
        residual: residual blocks.
        width: factor on the numbers of channels.

    Attributes:
        channels: of the result.
    """

    def __init__(
        self, stride: int, features: Sequence[int], *, residual: bool, width: float
    ) -> None:
        super().__init__()
        # An encoder that ends earlier starts as far up: a block belongs to a resolution.
        above = len(STAGE_CHANNELS) - len(features)
        outputs = [scaled_channels(channels, width) for channels in DECODER_CHANNELS[above:]]
        inputs = (features[-1], *outputs)
        skips = (*features[-2::-1], 0)
        depth = BLOCKS_BY_STRIDE[stride] - above
        self.channels = outputs[depth - 1]
        self.blocks = nn.ModuleList(
            DecoderBlock(inputs[i], skips[i], outputs[i], residual=residual) for i in range(depth)
        )

    def forward(self, features: Features) -> Tensor:
        *above, x = features.maps.values()
        skips = (*reversed(above), None)
        for block, skip in zip(self.blocks, skips, strict=False):
            x = block(x, skip)
        return x


def _head(channels: int, types: int, dropout: float) -> nn.Sequential:
    # Index 3, as in segmentation_models_pytorch (pool, flatten, dropout, linear).
    return nn.Sequential(
        nn.Identity(), nn.Identity(), nn.Dropout(dropout), nn.Linear(channels, 1 + types)
    )


def _mask_head(channels: int, types: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, types, 3, padding=1))


def soft_maximum(logits: Tensor) -> Tensor:
    """Log-mean-exp over positions, ``(N, K, h, w)`` to ``(N, K)``: between mean and maximum.

    Independent of the number of positions, so that frames of any width are comparable.
    """
    flat = logits.float().flatten(2)
    peak = flat.amax(2, keepdim=True)
    spread = torch.exp(SOFT_MAXIMUM_SHARPNESS * (flat - peak)).mean(2).log()
    return peak[:, :, 0] + spread / SOFT_MAXIMUM_SHARPNESS


def _classify(
    average: nn.Sequential, maximum: nn.Sequential, deepest: Tensor
) -> tuple[Tensor, Tensor]:
    """The deepest features to both heads' logits, in fp32 also where all else runs in bf16."""
    device = deepest.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return _classify(average, maximum, deepest.float())
    dropout, linear = maximum[2], maximum[3]
    assert isinstance(linear, nn.Linear)  # noqa: S101 - for the type checker
    by_position = F.conv2d(dropout(deepest), linear.weight[:, :, None, None], linear.bias)
    return average(deepest.mean((2, 3))).float(), soft_maximum(by_position)


class DefectNetwork(nn.Module, ABC):
    """What both forms have in common; the rest of the code knows no more than this.

    Both take full-size frames. With ``input_stride`` 2 the network itself averages them to half
    their size first.

    Attributes:
        types: number of defect types K.
        input_stride: 1 or 2; rows and columns of a frame must be multiples of 32 times this.
        mask_stride: rows of a frame per row of mask logits, ``input_stride`` included.
    """

    def __init__(self, types: int, input_stride: int, mask_stride: int) -> None:
        super().__init__()
        if mask_stride not in BLOCKS_BY_STRIDE:
            raise InputError(
                f"expected a mask stride of {sorted(BLOCKS_BY_STRIDE)}, got {mask_stride}"
            )
        if input_stride not in INPUT_STRIDES:
            raise InputError(f"expected an input stride of {INPUT_STRIDES}, got {input_stride}")
        self.types = types
        self.input_stride = input_stride
        self.mask_stride = input_stride * mask_stride

    @property
    @abstractmethod
    def encoders(self) -> list[ResNet50Encoder]:
        """The ResNet50s inside."""

    @abstractmethod
    def classify_frames(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised frames to the logits of both heads, each ``(N, 1 + K)``."""

    @abstractmethod
    def segment_frames(self, x: Tensor) -> Tensor:
        """Normalised frames to mask logits ``(N, K, H / S, W / S)``, S the ``mask_stride``."""

    @abstractmethod
    def forward(self, x: Tensor) -> Logits:
        """Normalised frames ``(N, in_channels, H, W)`` to ``Logits``."""

    def shrink(self, x: Tensor) -> Tensor:
        """Frames at the size the encoders work at: averaged 2 x 2 with ``input_stride`` 2."""
        return x if self.input_stride == 1 else F.avg_pool2d(x, self.input_stride)


class ResUNet(DefectNetwork):
    """The shared form: one encoder, the gate's two heads, the segmenter's decoder.

    Args:
        types: number of defect types K.
        in_channels: 1 for grey, 3 for RGB.
        mask_stride: resolution of the mask logits against the encoder's input: 4, 2 or 1.
        stride_on: v1 or v1.5 strides of the encoder.
        residual: residual decoder blocks.
        width: factor on all numbers of channels.
        input_stride: 2 averages frames to half their size first.
        dropout: before both heads.
        stages: of the encoder; with fewer than 4 it ends early.

    Raises:
        InputError: an impossible stride, width, depth or number of channels.
    """

    def __init__(
        self,
        types: int = 4,
        in_channels: int = 1,
        mask_stride: int = 4,
        stride_on: StrideOn = StrideOn.CONV_1X1,
        *,
        residual: bool = False,
        width: float = 1.0,
        input_stride: int = 1,
        dropout: float = 0.2,
        stages: int = 4,
    ) -> None:
        super().__init__(types, input_stride, mask_stride)
        self.encoder = ResNet50Encoder(in_channels, stride_on, width, stages)
        channels = self.encoder.channels
        self.decoder = Decoder(mask_stride, channels, residual=residual, width=width)
        self.segmentation_head = _mask_head(self.decoder.channels, types)
        self.classification_head = _head(channels[-1], types, dropout)
        self.classification_head_mil = _head(channels[-1], types, dropout)

    @property
    def encoders(self) -> list[ResNet50Encoder]:
        return [self.encoder]

    def encode(self, x: Tensor) -> Features:
        """Normalised frames to the features that ``classify`` and ``segment`` take."""
        features: Features = self.encoder(self.shrink(x))
        return features

    def classify(self, deepest: Tensor) -> tuple[Tensor, Tensor]:
        """The deepest features ``(N, C, h, w)`` to both heads' logits, each ``(N, 1 + K)``."""
        return _classify(self.classification_head, self.classification_head_mil, deepest)

    def segment(self, features: Features) -> Tensor:
        """Encoder features to mask logits ``(N, K, H / S, W / S)``."""
        logits: Tensor = self.segmentation_head(self.decoder(features))
        return logits

    def classify_frames(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.classify(self.encode(x).deepest)

    def segment_frames(self, x: Tensor) -> Tensor:
        return self.segment(self.encode(x))

    def forward(self, x: Tensor) -> Logits:
        features = self.encode(x)
        return Logits(*self.classify(features.deepest), self.segment(features))


class Classifier(nn.Module):
    """The gate on its own: an encoder and both heads."""

    def __init__(self, encoder: ResNet50Encoder, types: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.classification_head = _head(encoder.channels[-1], types, dropout)
        self.classification_head_mil = _head(encoder.channels[-1], types, dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        deepest = self.encoder(x).deepest
        return _classify(self.classification_head, self.classification_head_mil, deepest)


class Segmenter(nn.Module):
    """The Res-UNet on its own: an encoder, its decoder and the mask logits."""

    def __init__(self, encoder: ResNet50Encoder, decoder: Decoder, types: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.segmentation_head = _mask_head(decoder.channels, types)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.segmentation_head(self.decoder(self.encoder(x)))
        return logits


class TwoNetworks(DefectNetwork):
    """The two-network form: a classifier and a Res-UNet, each with an encoder of its own.

    Arguments and errors are those of ``ResUNet``.
    """

    def __init__(
        self,
        types: int = 4,
        in_channels: int = 1,
        mask_stride: int = 4,
        stride_on: StrideOn = StrideOn.CONV_1X1,
        *,
        residual: bool = False,
        width: float = 1.0,
        input_stride: int = 1,
        dropout: float = 0.2,
        stages: int = 4,
    ) -> None:
        super().__init__(types, input_stride, mask_stride)
        first, second = (ResNet50Encoder(in_channels, stride_on, width, stages) for _ in range(2))
        decoder = Decoder(mask_stride, second.channels, residual=residual, width=width)
        self.classifier = Classifier(first, types, dropout)
        self.segmenter = Segmenter(second, decoder, types)

    @property
    def encoders(self) -> list[ResNet50Encoder]:
        return [self.classifier.encoder, self.segmenter.encoder]

    def classify_frames(self, x: Tensor) -> tuple[Tensor, Tensor]:
        average, maximum = self.classifier(self.shrink(x))
        return average, maximum

    def segment_frames(self, x: Tensor) -> Tensor:
        logits: Tensor = self.segmenter(self.shrink(x))
        return logits

    def forward(self, x: Tensor) -> Logits:
        return Logits(*self.classify_frames(x), self.segment_frames(x))


def build_network(types: int, config: Network) -> DefectNetwork:
    """The network that the settings describe, for grey frames, with random weights.

    Args:
        types: number of defect types K.
        config: form and size.
    """
    form = TwoNetworks if config.arch is Arch.TWO else ResUNet
    return form(
        types,
        mask_stride=config.mask_stride,
        stride_on=StrideOn(config.stride_on),
        residual=config.residual,
        width=config.width,
        input_stride=config.input_stride,
        dropout=config.dropout,
        stages=config.stages,
    )


def upsample_logits(logits: Tensor, scale: int) -> Tensor:
    """Mask logits to full size, bilinear (``align_corners=False``); the sigmoid comes after."""
    if scale == 1:
        return logits.float()
    return F.interpolate(logits.float(), scale_factor=float(scale), mode="bilinear")
