"""Where both stages look: Grad-CAM of the gate and of the segmenter.

Selvaraju et al., "Grad-CAM", arXiv 1610.02391; for masks Vinogradova, Dibrov, Myers, "Towards
Interpretable Semantic Segmentation via Gradient-weighted Class Activation Mapping" (Seg-Grad-CAM),
arXiv 2002.11434. Both weigh the channels of a layer by the mean gradient of a score over all
positions; the map is the positive part of the weighted sum.

The gate's layer is C5. Its heads are linear in C5 but for the soft maximum, whose weights over
positions sum to 1: its Grad-CAM is the class activation map (Zhou et al., arXiv 1512.04150) of the
mean of both heads' weights.

The segmenter's layer is the output of its first decoder block: the deepest features that are its
own. C5 itself says too little there, the last block nothing new. On five frames of each Severstal
type (shared weights) the map of C5 was 0 everywhere on two frames of type 2 and had its peak inside
the label on none; that of the last block is the mask once more (correlation 0.93 to 0.98 by type).
That of the first block has its peak inside the label on 17 of 20, at a correlation of 0.38 to 0.77.

A map says which places spoke for an answer, on a grid of 32 px (gate) or 16 px (segmenter), twice
as much in the fast profile, half as much in the fastest. It is no mask, and maps of different
frames cannot be compared: each is scaled to its own maximum.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from steelsight.bundle import file_entry, load_bundle
from steelsight.errors import InputError
from steelsight.imaging import pad_to_multiple
from steelsight.models.res_unet import Decoder, DefectNetwork, upsample_logits
from steelsight.models.resnet import Features
from steelsight.report.overlays import encode_jpeg
from steelsight.training import export
from steelsight.training.predict import normalise

OPACITY = 0.7
"""Of the colour where a map is 0.5 or more."""
_FAULTY_HEAD = "classification_head.3.bias"


class CamMaps(NamedTuple):
    """Maps of one frame, each float32 0..1 at the frame's size; 1 is the map's own maximum.

    A map that is 0 everywhere says that no place spoke for the answer.
    """

    gate_hw: NDArray[np.float32]
    """What made the frame look faulty."""
    segmenter_hw: NDArray[np.float32]
    """What made the masks."""


def load_network(source: Path, expected_sha256: str | None = None) -> DefectNetwork:
    """Loads the trained network behind a bundle; on the CPU, fp32, in evaluation mode.

    Args:
        source: a bundle that holds its weights; or a file with weights (``best.safetensors`` of a
            run, ``weights.safetensors`` of a bundle, or plain parameters of the default form).
        expected_sha256: what the file must have: ``manifest.training.weights_sha256`` of the
            bundle that is explained, because another network's maps explain nothing.

    Raises:
        InputError: no weights there, weights of another network, or a file that is none.
        BundleError: the bundle is incomplete or altered.
    """
    if source.is_dir():
        bundle = load_bundle(source)
        if bundle.manifest.weights is None:
            raise InputError(
                f"{source}: expected trained weights in the bundle, it was made without, and"
                " Grad-CAM needs gradients; give --weights FILE: best.safetensors of its run (for"
                " the bundle of the package: ../shared/weights/resunet50_severstal.safetensors)"
            )
        return export.load_network(bundle.weights(), len(bundle.classes))
    types = _types_of(source)
    if expected_sha256 is not None and file_entry(source).sha256 != expected_sha256:
        raise InputError(
            f"{source}: expected the weights that the bundle was made from (sha256"
            f" {expected_sha256[:12]}...), these are others: their maps would explain another"
            " network; give the file of the bundle's own run"
        )
    return export.load_network(source, types)


def _types_of(weights: Path) -> int:
    _, class_ids = export.describe_weights(weights)
    if class_ids:
        return len(class_ids)
    with safe_open(weights, framework="pt") as file:
        heads = [name for name in file.keys() if name.endswith(_FAULTY_HEAD)]  # noqa: SIM118 - no mapping
        if not heads:
            raise InputError(
                f"{weights}: expected a trained network of this program, got tensors without"
                f" {_FAULTY_HEAD}; give best.safetensors of a run"
            )
        return int(file.get_slice(heads[0]).get_shape()[0]) - 1


def gradcam(
    network: DefectNetwork,
    grey_hw: NDArray[np.uint8],
    *,
    type_index: int | None,
    pixel_from: float = 0.5,
) -> CamMaps:
    """Maps of both stages for one frame, from one pass forward.

    The gate's score is the faulty logit: the mean of both heads. The segmenter's is the sum of the
    type's mask logits over the pixels that it predicts as that type, over all pixels if none.

    Args:
        network: of any form; is left as it was, gradients and training mode included.
        grey_hw: the frame, any size. It is not cut into tiles.
        type_index: channel of the defect type; ``None`` takes the predicted pixels of all types.
        pixel_from: least mask probability of a predicted pixel, as in the decision file.

    Raises:
        InputError: no such type, or an answer that is not finite.
    """
    if type_index is not None and not 0 <= type_index < network.types:
        raise InputError(
            f"expected the index of a type, 0 to {network.types - 1}, got {type_index}; "
            "give that of a channel of the network"
        )
    types = slice(None) if type_index is None else slice(type_index, type_index + 1)
    padded_hw, (height, width) = pad_to_multiple(grey_hw, 32 * network.input_stride)
    device = next(network.parameters()).device
    layers = [*network.encoders, _first_decoder_block(network)]
    with torch.inference_mode(False), torch.enable_grad(), _evaluating(network):
        frame_11hw = torch.from_numpy(padded_hw.copy()).to(device)[None, None]
        with _ends_of_gradients(layers) as features:
            logits = network(normalise(frame_11hw))
        masks_khw = upsample_logits(logits.masks, network.mask_stride)[0, types, :height, :width]
        predicted_khw = masks_khw.detach() >= np.log(pixel_from) - np.log1p(-pixel_from)
        score = masks_khw[predicted_khw].sum() if predicted_khw.any() else masks_khw.sum()
        maps = [
            _cam(of, features[layer], padded_hw.shape)
            for of, layer in ((logits.faulty[0], layers[0]), (score, layers[-1]))
        ]
    if not all(bool(cam.isfinite().all()) for cam in maps):
        raise InputError(
            "expected finite features and gradients, the network gives NaN or infinity on this"
            " frame; take other weights"
        )
    return CamMaps(*(_scaled(cam[:height, :width]) for cam in maps))


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, then for each module what it was."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _first_decoder_block(network: nn.Module) -> nn.Module:
    decoder = next(module for module in network.modules() if isinstance(module, Decoder))
    return decoder.blocks[0]


@contextmanager
def _ends_of_gradients(layers: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Lets gradients end at the outputs of layers, of an encoder at its deepest features.

    Nothing is kept for the way back through these layers, which are most of the network: that
    saves gigabytes.

    Yields:
        A dictionary to which a pass adds the output of each layer.
    """
    seen: dict[nn.Module, Tensor] = {}

    def before(*_: object) -> None:
        torch.set_grad_enabled(False)

    def after(layer: nn.Module, _inputs: object, output: Features | Tensor) -> Features | Tensor:
        torch.set_grad_enabled(True)
        if isinstance(output, Tensor):
            seen[layer] = output.detach().requires_grad_()
            return seen[layer]
        seen[layer] = output.deepest.detach().requires_grad_()
        return output.with_deepest(seen[layer])

    with ExitStack() as stack:
        for layer in layers:
            for hook in (
                layer.register_forward_pre_hook(before),
                layer.register_forward_hook(after),
            ):
                stack.callback(hook.remove)
        yield seen


def _cam(score: Tensor, features: Tensor, size_hw: tuple[int, ...]) -> Tensor:
    """Positive part of the channels' sum, weighted by mean gradients; bilinear to ``size_hw``."""
    (gradient,) = torch.autograd.grad(score, features)
    weights = gradient.mean((2, 3), keepdim=True)
    cam = (weights * features.detach()).sum(1, keepdim=True).relu()
    return F.interpolate(cam, size=size_hw, mode="bilinear", align_corners=False)[0, 0]


def _scaled(cam_hw: Tensor) -> NDArray[np.float32]:
    peak = cam_hw.max()
    scaled = cam_hw / peak if peak > 0 else cam_hw
    return np.ascontiguousarray(scaled.cpu().numpy())


def draw_cam(grey_hw: NDArray[np.uint8], cam_hw: NDArray[np.float32]) -> bytes:
    """The frame with a map over it as JPEG: from no colour at 0 to yellow at 1 (Inferno).

    Args:
        grey_hw: the frame.
        cam_hw: one of its ``CamMaps``.

    Raises:
        InputError: another size than the frame's.
    """
    if grey_hw.shape != cam_hw.shape:
        raise InputError(
            f"expected a map of the frame's size {grey_hw.shape}, got {cam_hw.shape}; draw it on"
            " the frame it was made from"
        )
    levels = np.rint(255 * cam_hw).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    # Opacity grows with the map: where it says nothing, the steel is seen as it is.
    opacity_hw1 = OPACITY * np.minimum(2 * cam_hw, 1)[:, :, None]
    blended = grey_hw[:, :, None] * (1 - opacity_hw1) + colours * opacity_hw1
    return encode_jpeg(np.rint(blended).astype(np.uint8))
