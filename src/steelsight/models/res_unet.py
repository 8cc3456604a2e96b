"""Res-UNet: a ResNet50 encoder under a U-Net decoder, with the gate's heads on the same encoder.

Ronneberger, Fischer, Brox, "U-Net", arXiv 1505.04597; residual decoder blocks as in Zhang, Liu,
Wang, "Road Extraction by Deep Residual U-Net", arXiv 1711.10684; the soft maximum over positions as
in Pinheiro, Collobert, "From Image-level to Pixel-level Labeling", arXiv 1411.6228.

Parameter names are those of segmentation_models_pytorch's ``Unet`` where the shapes allow
(``encoder.*``, ``decoder.blocks.0.conv1.0.weight``, ``segmentation_head.0.weight``).

Shapes: N batch, K defect types, H rows, W columns (multiples of 32), S the decoder's stride.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows
from torch import Tensor, nn

from steelsight.errors import InputError
from steelsight.models.resnet import STAGE_CHANNELS, Features, ResNet50Encoder, StrideOn

DECODER_CHANNELS = (256, 128, 64, 32, 16)
BLOCKS_BY_STRIDE = {4: 3, 2: 4, 1: 5}
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
    """C5 up to the wanted stride, taking in C4, C3, C2 and C1 on the way."""

    def __init__(self, stride: int, *, residual: bool) -> None:
        super().__init__()
        skips = (*STAGE_CHANNELS[3::-1], 0)
        inputs = (STAGE_CHANNELS[-1], *DECODER_CHANNELS)
        self.blocks = nn.ModuleList(
            DecoderBlock(inputs[i], skips[i], DECODER_CHANNELS[i], residual=residual)
            for i in range(BLOCKS_BY_STRIDE[stride])
        )

    def forward(self, features: Features) -> Tensor:
        skips = (features.c4, features.c3, features.c2, features.c1, None)
        x = features.c5
        for block, skip in zip(self.blocks, skips, strict=False):
            x = block(x, skip)
        return x


def _head(types: int) -> nn.Sequential:
    # Index 3, as in segmentation_models_pytorch (pool, flatten, dropout, linear).
    return nn.Sequential(
        nn.Identity(), nn.Identity(), nn.Dropout(0.2), nn.Linear(STAGE_CHANNELS[-1], 1 + types)
    )


def soft_maximum(logits: Tensor) -> Tensor:
    """Log-mean-exp over positions, ``(N, K, h, w)`` to ``(N, K)``: between mean and maximum.

    Independent of the number of positions, so that frames of any width are comparable.
    """
    flat = logits.float().flatten(2)
    peak = flat.amax(2, keepdim=True)
    spread = torch.exp(SOFT_MAXIMUM_SHARPNESS * (flat - peak)).mean(2).log()
    return peak[:, :, 0] + spread / SOFT_MAXIMUM_SHARPNESS


class ResUNet(nn.Module):
    """The shared form: one encoder, the gate's two heads, the segmenter's decoder.

    Args:
        types: number of defect types K.
        in_channels: 1 for grey, 3 for RGB.
        mask_stride: resolution of the mask logits: 4, 2 or 1.
        stride_on: v1 or v1.5 strides of the encoder.
        residual: residual decoder blocks.

    Raises:
        InputError: an impossible stride or number of channels.
    """

    def __init__(
        self,
        types: int = 4,
        in_channels: int = 1,
        mask_stride: int = 4,
        stride_on: StrideOn = StrideOn.CONV_1X1,
        *,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if mask_stride not in BLOCKS_BY_STRIDE:
            raise InputError(
                f"expected a mask stride of {sorted(BLOCKS_BY_STRIDE)}, got {mask_stride}"
            )
        self.mask_stride = mask_stride
        self.encoder = ResNet50Encoder(in_channels, stride_on)
        self.decoder = Decoder(mask_stride, residual=residual)
        channels = DECODER_CHANNELS[BLOCKS_BY_STRIDE[mask_stride] - 1]
        self.segmentation_head = nn.Sequential(nn.Conv2d(channels, types, 3, padding=1))
        self.classification_head = _head(types)
        self.classification_head_mil = _head(types)

    def classify(self, c5: Tensor) -> tuple[Tensor, Tensor]:
        """C5 ``(N, 2048, h, w)`` to the two heads' logits, each ``(N, 1 + K)``."""
        average = self.classification_head(c5.mean((2, 3))).float()
        dropout, linear = self.classification_head_mil[2], self.classification_head_mil[3]
        assert isinstance(linear, nn.Linear)  # noqa: S101 - for the type checker
        by_position = F.conv2d(dropout(c5), linear.weight[:, :, None, None], linear.bias)
        return average, soft_maximum(by_position)

    def segment(self, features: Features) -> Tensor:
        """Encoder features to mask logits ``(N, K, H / S, W / S)``."""
        logits: Tensor = self.segmentation_head(self.decoder(features))
        return logits

    def forward(self, x: Tensor) -> Logits:
        """Normalised frames ``(N, in_channels, H, W)`` to ``Logits``."""
        features = self.encoder(x)
        return Logits(*self.classify(features.c5), self.segment(features))


def upsample_logits(logits: Tensor, scale: int) -> Tensor:
    """Mask logits to full size, bilinear (``align_corners=False``); the sigmoid comes after."""
    if scale == 1:
        return logits.float()
    return F.interpolate(logits.float(), scale_factor=float(scale), mode="bilinear")
