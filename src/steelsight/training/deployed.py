"""The networks as they are shipped: the same answers in fewer operations.

Two rewritings, both exact but for the rounding of floats (tested against the trained network):

- **Stem.** The first convolution has one input channel, which vector units hardly use. Blocks of
  pixels become channels instead ("space to depth"), the kernel is rearranged accordingly, and it
  takes grey levels as they are: normalisation and, in the fast profile, the averaging of 2 x 2
  pixels are inside its weights.
- **Decoder.** The convolution of upsampled features and skip, joined by channels, is the sum of two
  convolutions: nothing is copied together. (Another known rewriting, upsampling and convolution as
  one transposed convolution, was slower in int8 on both engines.)

The networks end with mask logits at their own resolution; whoever wants pixels upsamples them.
"""

import copy
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from steelsight.models.res_unet import Decoder, DecoderBlock, DefectNetwork, ResUNet, TwoNetworks
from steelsight.models.resnet import GREY_MEAN, GREY_STD, Features, ResNet50Encoder

FEATURES = ("c1", "c2", "c3", "c4", "c5")
PROBABILITIES = ("faulty_probability", "class_probabilities")
MASKS = "mask_logits"
LOGITS = ("average_logits", "soft_maximum_logits")
ZERO_LEVEL = 114
"""The grey level next to the mean: int8 engines call it zero, and levels need no rounding."""


class Deployed(nn.Module):
    """A trained network on uint8 frames ``(N, 1, H, W)``; see the module.

    Args:
        network: of which a copy is rewritten.
    """

    def __init__(self, network: DefectNetwork) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        for encoder in self.network.encoders:
            encoder.conv1 = cast(nn.Conv2d, Stem(encoder, network.input_stride))
        part = self.network.segmenter if isinstance(self.network, TwoNetworks) else self.network
        _split_blocks(cast(Decoder, part.decoder), cast(ResNet50Encoder, part.encoder))
        self.eval()

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """All outputs of ``outputs_of(network)``, in that order."""
        gate, (average, soft_maximum) = self.gate(frames)
        features = {name: gate[name] for name in FEATURES if name in gate}
        seen = {**gate, MASKS: self.segment(features or {"frames": frames})}
        seen |= dict(zip(LOGITS, (average, soft_maximum), strict=True))
        return tuple(seen[name] for name in outputs_of(self.network))

    def gate(self, frames: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """The gate's outputs by name (features only in the shared form), and both heads' logits."""
        features: dict[str, Tensor] = {}
        if isinstance(self.network, ResUNet):
            found = self.network.encoder(frames)
            heads = self.network.classify(found.deepest)
            features = found.maps
        else:
            heads = cast(TwoNetworks, self.network).classifier(frames)
        average, soft_maximum = heads
        faulty = ((average[:, 0] + soft_maximum[:, 0]) / 2).sigmoid()
        classes = (average[:, 1:].sigmoid() + soft_maximum[:, 1:].sigmoid()) / 2
        return {**dict(zip(PROBABILITIES, (faulty, classes), strict=True)), **features}, heads

    def segment(self, given: Mapping[str, Tensor]) -> Tensor:
        """Mask logits ``(N, K, H / S, W / S)`` from features or ``frames``."""
        if isinstance(self.network, ResUNet):
            # A decoder that does not reach C1 never looks at it.
            features = Features(**{"c1": given["c2"], **given})
            return self.network.segment(features).float()
        logits: Tensor = cast(TwoNetworks, self.network).segmenter(given["frames"])
        return logits.float()


def features_of(network: DefectNetwork) -> tuple[str, ...]:
    """Names of what the gate hands to the segmenter; none in the two-network form."""
    if isinstance(network, TwoNetworks):
        return ()
    # A decoder that stops at a quarter of its input never reaches C1.
    above = 0 if network.mask_stride // network.input_stride < 4 else 1
    return FEATURES[above : len(network.encoders[0].channels)]


def outputs_of(network: DefectNetwork) -> tuple[str, ...]:
    """Names of the outputs of the whole network's file."""
    return (*PROBABILITIES, MASKS, *features_of(network), *LOGITS)


class Stem(nn.Module):
    """``conv1`` of a ResNet50 on uint8 frames ``(N, 1, H, W)``, normalisation and shrinking inside.

    A 7 x 7 kernel with stride 2 is an 8 x 8 one with a first row and column of zeros, and that is a
    4 x 4 kernel with stride 1 on blocks of 2 x 2 pixels (4 x 4 where frames are averaged first).

    Args:
        encoder: whose ``conv1`` it replaces.
        input_stride: 2 where the network averages frames 2 x 2.
    """

    def __init__(self, encoder: ResNet50Encoder, input_stride: int) -> None:
        super().__init__()
        kernel = F.pad(encoder.conv1.weight.detach().double(), (1, 0, 1, 0))
        share = 1 / input_stride**2
        for axis in (2, 3):
            kernel = kernel.repeat_interleave(input_stride, axis)
        self.block_px = block = 2 * input_stride
        channels = len(kernel)
        kernel = kernel.reshape(channels, 4, block, 4, block).permute(0, 2, 4, 1, 3)
        kernel = kernel.reshape(channels, block**2, 4, 4) * (share / (255 * GREY_STD))
        # Padding means the mean grey; frames come minus ZERO_LEVEL.
        self.pad_level = 255 * GREY_MEAN - ZERO_LEVEL
        self.conv = nn.Conv2d(block**2, channels, 4)
        with torch.no_grad():
            self.conv.weight.copy_(kernel)
            cast(Tensor, self.conv.bias).copy_(-self.pad_level * kernel.sum((1, 2, 3)))

    def forward(self, frames: Tensor) -> Tensor:
        n, _, rows, columns = frames.shape
        block = self.block_px
        blocks = frames.reshape(n, rows // block, block, columns // block, block)
        blocks = blocks.permute(0, 2, 4, 1, 3).reshape(n, block**2, rows // block, columns // block)
        levels = blocks.float() - ZERO_LEVEL
        convolved: Tensor = self.conv(F.pad(levels, (2, 1, 2, 1), value=self.pad_level))
        return convolved


class SplitBlock(nn.Module):
    """A plain ``DecoderBlock`` whose first convolution takes upsampled features and skip apart.

    Args:
        block: with a skip, without a shortcut.
        in_channels: of the features that are upsampled.
    """

    def __init__(self, block: DecoderBlock, in_channels: int) -> None:
        super().__init__()
        joined, norm = cast(nn.Conv2d, block.conv1[0]), cast(nn.BatchNorm2d, block.conv1[1])
        # BatchNorm belongs to the sum: its factor goes into both, its shift into one.
        factor = norm.weight * (cast(Tensor, norm.running_var) + norm.eps).rsqrt()
        shift = norm.bias - cast(Tensor, norm.running_mean) * factor
        kernel = joined.weight * factor[:, None, None, None]
        out_channels, all_channels = kernel.shape[:2]
        self.of_features = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.of_skip = nn.Conv2d(all_channels - in_channels, out_channels, 3, padding=1)
        with torch.no_grad():
            self.of_features.weight.copy_(kernel[:, :in_channels])
            self.of_skip.weight.copy_(kernel[:, in_channels:])
            cast(Tensor, self.of_skip.bias).copy_(shift)
        self.relu = nn.ReLU()
        self.conv2 = block.conv2

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        upsampled = F.interpolate(x, scale_factor=2.0, mode="nearest")
        y: Tensor = self.conv2(self.relu(self.of_features(upsampled) + self.of_skip(skip)))
        return y


def _split_blocks(decoder: Decoder, encoder: ResNet50Encoder) -> None:
    in_channels = encoder.channels[-1]
    for i, block in enumerate(list(decoder.blocks)):
        assert isinstance(block, DecoderBlock)  # noqa: S101 - for the type checker
        first, second = cast(nn.Conv2d, block.conv1[0]), cast(nn.Conv2d, block.conv2[0])
        if block.shortcut is None and first.in_channels > in_channels:
            decoder.blocks[i] = SplitBlock(block, in_channels)
        in_channels = second.out_channels
