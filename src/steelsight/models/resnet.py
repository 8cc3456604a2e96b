"""ResNet50 with torchvision's parameter names, for grey or RGB frames.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", arXiv 1512.03385.

Shapes: N batch, C channels, H rows, W columns; C1 to C5 are the outputs of the stem and of the four
stages, at 1/2, 1/4, 1/8, 1/16 and 1/32 of the frame.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor, nn

from steelsight.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GREY_MEAN = 0.449
GREY_STD = 0.226
STAGES = (2, 3, 4)
"""How many stages an encoder may have; a ResNet50 has 4."""
STAGE_CHANNELS = (64, 256, 512, 1024, 2048)
"""Channels of C1 to C5 of a ResNet50."""


def scaled_channels(channels: int, width: float) -> int:
    """Number of channels of a narrower network: the nearest multiple of 8, at least 8."""
    return max(8 * round(channels * width / 8), 8)


class StrideOn(StrEnum):
    """Which convolution of a stage's first block halves the resolution."""

    CONV_1X1 = "v1"
    """The paper and Keras: on the first 1x1."""
    CONV_3X3 = "v1.5"
    """torchvision and NVIDIA: on the 3x3; a little more accurate and slower."""


class Features(NamedTuple):
    """C1 to C5, each ``(N, channels, H / stride, W / stride)``; of as many stages as there are."""

    c1: Tensor
    c2: Tensor
    c3: Tensor
    c4: Tensor | None = None
    c5: Tensor | None = None

    @property
    def maps(self) -> dict[str, Tensor]:
        """Those that are there, by name, from C1 down."""
        return {name: tensor for name, tensor in self._asdict().items() if tensor is not None}

    @property
    def deepest(self) -> Tensor:
        """The last of them: C5 of a whole ResNet50."""
        return [*self.maps.values()][-1]

    def with_deepest(self, deepest: Tensor) -> "Features":
        """With another tensor in place of the last one."""
        return self._replace(**{[*self.maps][-1]: deepest})


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3, 1x1 expand by four, added to the shortcut.

    ``(N, in, H, W)`` to ``(N, 4 * width, H / stride, W / stride)``.
    """

    def __init__(self, in_channels: int, width: int, stride: int, stride_on: StrideOn) -> None:
        super().__init__()
        out_channels = 4 * width
        first, second = (stride, 1) if stride_on is StrideOn.CONV_1X1 else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        summed: Tensor = self.relu(self.bn3(self.conv3(x)) + shortcut)
        return summed


def _stage(
    in_channels: int, width: int, blocks: int, stride: int, stride_on: StrideOn
) -> nn.Sequential:
    first = Bottleneck(in_channels, width, stride, stride_on)
    rest = (Bottleneck(4 * width, width, 1, stride_on) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


class ResNet50Encoder(nn.Module):
    """Normalised frames ``(N, in_channels, H, W)`` to ``Features``; H and W multiples of 32.

    Args:
        in_channels: 1 for grey, 3 for RGB.
        stride_on: v1 or v1.5; weights trained for one do not fit the other, though they load.
        width: factor on all numbers of channels, above 0.
        stages: 4 for a whole ResNet50, fewer (2 or 3) end after that many.

    Attributes:
        channels: of C1 to the last stage's output.

    Raises:
        InputError: a number of channels other than 1 or 3, or an impossible width or depth.
    """

    def __init__(
        self,
        in_channels: int = 1,
        stride_on: StrideOn = StrideOn.CONV_1X1,
        width: float = 1.0,
        stages: int = 4,
    ) -> None:
        super().__init__()
        if stages not in STAGES:
            raise InputError(f"expected {' or '.join(map(str, STAGES))} stages, got {stages}")
        if in_channels not in (1, 3):
            raise InputError(
                f"expected 1 (grey) or 3 (RGB) input channels, got {in_channels}; "
                "convert the frames first"
            )
        if not 0 < width < float("inf"):
            raise InputError(f"expected a width above 0, got {width}; 1 is a ResNet50")
        stem, *inner = (scaled_channels(channels, width) for channels in (64, 64, 128, 256, 512))
        self.stride_on = stride_on
        self.channels = (stem, *(4 * channels for channels in inner[:stages]))
        self.conv1 = nn.Conv2d(in_channels, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        c1, c2, c3, *deeper = self.channels
        self.layer1 = _stage(c1, inner[0], 3, 1, stride_on)
        self.layer2 = _stage(c2, inner[1], 4, 2, stride_on)
        self.layer3 = _stage(c3, inner[2], 6, 2, stride_on) if stages > 2 else None
        self.layer4 = _stage(deeper[0], inner[3], 3, 2, stride_on) if stages > 3 else None

    def forward(self, x: Tensor) -> Features:
        c1 = self.relu(self.bn1(self.conv1(x)))
        c2 = self.layer1(self.maxpool(c1))
        c3 = self.layer2(c2)
        c4 = None if self.layer3 is None else self.layer3(c3)
        return Features(c1, c2, c3, c4, None if self.layer4 is None else self.layer4(c4))


class ResNet50Classifier(ResNet50Encoder):
    """ResNet50 with its classification head: ``(N, in_channels, H, W)`` to logits ``(N, outputs)``.

    The whole state dict has torchvision's names (``conv1.weight`` ... ``fc.bias``).
    """

    def __init__(
        self,
        outputs: int,
        in_channels: int = 1,
        stride_on: StrideOn = StrideOn.CONV_1X1,
    ) -> None:
        super().__init__(in_channels, stride_on)
        self.fc = nn.Linear(STAGE_CHANNELS[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        logits: Tensor = self.fc(super().forward(x).deepest.mean((2, 3)))
        return logits


def fold_rgb_to_grey(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An RGB ImageNet ResNet rewritten for one grey channel normalised by 0.449 and 0.226.

    For a frame whose three channels are equal, the result is the RGB network's, exactly but for a
    border of three pixels: there the RGB form pads with the mean colour, this form with mean grey.

    Args:
        state: torchvision names; ``conv1.weight`` has shape ``(64, 3, 7, 7)``.

    Returns:
        A copy with ``conv1.weight`` ``(64, 1, 7, 7)`` and a shifted ``bn1.running_mean``.

    Raises:
        InputError: ``conv1.weight`` has no three input channels.
    """
    weight = state["conv1.weight"].float()
    if weight.shape[1] != 3:
        raise InputError(
            f"expected conv1.weight with 3 input channels, got {tuple(weight.shape)}; "
            "these weights are grey already: load them as they are"
        )
    mean = torch.tensor(IMAGENET_MEAN)[None, :, None, None]
    std = torch.tensor(IMAGENET_STD)[None, :, None, None]
    folded = dict(state)
    folded["conv1.weight"] = (weight * (GREY_STD / std)).sum(1, keepdim=True)
    shift = (weight * ((GREY_MEAN - mean) / std)).sum((1, 2, 3))
    folded["bn1.running_mean"] = state["bn1.running_mean"].float() - shift
    return folded
