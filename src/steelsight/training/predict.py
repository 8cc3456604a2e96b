"""What a network says about whole frames: the scores and masks that decisions are made from.

The same numbers as the shipped cascade's, with masks for every frame: thresholds are chosen from
them, so the gate may not hide any.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steelsight.data.frames import FrameSource
from steelsight.data.threads import in_order
from steelsight.evaluation.predictions import Answer, Collector, Predictions
from steelsight.imaging import Stitcher, pad_to_multiple, tile_plan
from steelsight.models.res_unet import DefectNetwork, upsample_logits
from steelsight.models.resnet import GREY_MEAN, GREY_STD

OVERLAP_PX = 64
FLIPS: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3))
"""Axes of an NCHW tensor that the four test-time flips turn."""


def normalise(grey_n1hw: Tensor) -> Tensor:
    """Grey levels 0..255, any number type, to the network's input, float32."""
    return grey_n1hw.float() * (1 / (255 * GREY_STD)) - GREY_MEAN / GREY_STD


class Predictor:
    """A network in evaluation mode on whole frames.

    Args:
        network: any form; put into evaluation mode.
        tile_wh: frames larger than this are cut into overlapping tiles, as the cascade does.
        flips: average logits of heads and mask probabilities over four flips.
        autocast: makes the context in which the network runs, for bf16.
    """

    def __init__(
        self,
        network: DefectNetwork,
        tile_wh: tuple[int, int],
        *,
        flips: bool = False,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.network = network.eval()
        self.tile_wh = tile_wh
        self.flips = FLIPS if flips else FLIPS[:1]
        self._autocast = autocast
        self._device = next(network.parameters()).device

    def look(self, grey_hw: NDArray[np.uint8]) -> Answer:
        """The network's answer on one frame; of several tiles, each score is the highest."""
        height, width = grey_hw.shape
        overlap_px = min(OVERLAP_PX, min(self.tile_wh) // 4)
        tiles = tile_plan((width, height), self.tile_wh, overlap_px)
        if len(tiles) == 1:
            return self._tile(grey_hw)
        answers = []
        stitcher: Stitcher | None = None
        for x, y, w, h in tiles:
            answer = self._tile(grey_hw[y : y + h, x : x + w])
            answers.append(answer)
            types = len(answer.probabilities_khw)
            stitcher = stitcher or Stitcher(types, (width, height), overlap_px)
            stitcher.add(answer.probabilities_khw, (x, y, w, h))
        assert stitcher is not None  # noqa: S101 - there are tiles
        return Answer(
            max(answer.faulty_logit for answer in answers),
            np.maximum.reduce([answer.head_probabilities_k for answer in answers]),
            stitcher.probabilities_chw,
        )

    @torch.inference_mode()
    def _tile(self, grey_hw: NDArray[np.uint8]) -> Answer:
        padded_hw, (height, width) = pad_to_multiple(grey_hw, 32 * self.network.input_stride)
        frame = torch.from_numpy(np.ascontiguousarray(padded_hw)).to(self._device)[None, None]
        x = normalise(frame).contiguous(memory_format=torch.channels_last)
        seen = [self._flipped(x, axes) for axes in self.flips]
        heads_2k, masks_1khw = (sum(turned) / len(seen) for turned in zip(*seen, strict=True))
        return Answer(
            float(heads_2k[:, 0].mean()),
            heads_2k[:, 1:].sigmoid().mean(dim=0).cpu().numpy(),
            masks_1khw[0, :, :height, :width].cpu().numpy(),
        )

    def _flipped(self, x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Head logits and mask probabilities of a turned frame, turned back."""
        with self._autocast():
            logits = self.network(x.flip(axes) if axes else x)
        masks = upsample_logits(logits.masks, self.network.mask_stride).sigmoid()
        heads_2k = torch.stack([logits.average[0].float(), logits.soft_maximum[0].float()])
        return heads_2k, masks.flip(axes) if axes else masks


def predict(
    predictor: Predictor,
    source: FrameSource,
    indices: Sequence[int],
    *,
    fold: int = 0,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Runs a network on frames and compares its masks with the labels.

    The next frames are decoded in threads beside the network.

    Args:
        predictor: the network.
        source: the frames.
        indices: which of them.
        fold: noted beside each frame.
        threads: for decoding; all cores by default.
        progress: called with the number done and the number of all.
    """
    collector = Collector(source.class_ids)
    for done, pixels in enumerate(in_order(source.pixels, indices, threads)):
        answer = predictor.look(pixels.grey_hw)
        collector.add(source.frames[indices[done]], pixels, answer, fold=fold)
        if progress:
            progress(done + 1, len(indices))
    return collector.predictions()
