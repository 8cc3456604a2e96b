"""Static int8 of a network file: QDQ, weights per channel (Jacob et al., arXiv 1712.05877)."""

from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from steelsight.training.deployed import MASKS, PROBABILITIES, ZERO_LEVEL

PREPARED, INT8 = "prepared.onnx", "int8.onnx"
QUANTISED = ("Conv", "Add", "Relu", "Concat", "MaxPool", "AveragePool", "Resize")


class _Frames(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, frames: Iterable[NDArray[np.uint8]]) -> None:
        self._frames = iter(frames)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self._frames, None)
        return None if batch is None else {"frames": batch}


def quantise(
    whole: Path,
    scratch: Path,
    calibration: Iterable[NDArray[np.uint8]],
    reduce_range: bool = True,
    in_fp32: Collection[str] = (),
) -> Path:
    """Static int8: weights per channel and symmetric, activations uint8 by their extremes.

    Both heads and the mask logits stay fp32: they cost nothing and decide. Grey levels are taken as
    they are.

    Args:
        whole: what ``export_onnx`` wrote.
        scratch: folder for the result and what comes between.
        calibration: real frames, ``(N, 1, H, W)``, of any sizes.
        reduce_range: 7-bit weights.
        in_fp32: blocks that stay fp32, such as ``encoder.layer1.0``; see ``sensitive_blocks``.

    Returns:
        The quantised file.
    """
    model = onnx.load(whole)
    # Features as outputs would each get a second, needless quantisation node.
    kept = [o for o in model.graph.output if o.name in (*PROBABILITIES, MASKS)]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    prepared, quantised = scratch / PREPARED, scratch / INT8
    onnx.save(model, prepared)
    quant_pre_process(prepared, prepared, skip_symbolic_shape=True)
    graph = onnx.load(prepared).graph
    kept_blocks = [
        name for block, names in _nodes_by_block(graph) if block in in_fp32 for name in names
    ]
    in_float = any(block.endswith(STEM) for block in in_fp32)
    levels = [] if in_float else _padded_levels(graph)
    quantize_static(
        prepared,
        quantised,
        _Frames(calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        op_types_to_quantize=list(QUANTISED),
        nodes_to_exclude=[*_kept_fp32(graph), *kept_blocks],
        extra_options={
            # Else C5 stays float: of its consumers only the upsampling is quantised.
            "ForceQuantizeNoInputCheck": True,
            "TensorQuantOverrides": {name: [_LEVELS] for name in levels},
        },
    )
    _take_levels_as_they_are(quantised, levels)
    return quantised


_LEVELS = {
    "quant_type": QuantType.QUInt8,
    "scale": np.array(1, np.float32),
    "zero_point": np.array(ZERO_LEVEL, np.uint8),
}


def _padded_levels(graph: onnx.GraphProto) -> list[str]:
    """Names of the tensors ``Stem`` convolves: levels minus ``ZERO_LEVEL``, padded."""
    reached, names = {"frames"}, []
    for node in graph.node:
        if node.input and node.input[0] in reached:
            if node.op_type in ("Reshape", "Transpose", "Cast", "Sub"):
                reached.add(node.output[0])
            elif node.op_type == "Pad":
                names.append(node.output[0])
    return names


def _take_levels_as_they_are(path: Path, levels: Sequence[str]) -> None:
    """Pads uint8 levels, instead of converting them to float and back: nothing is rounded."""
    model = onnx.load(path)
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    for name in levels:
        pad = makers[name]
        subtract = makers[pad.input[0]]
        cast = makers[subtract.input[0]]
        quantise = next(
            n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == name
        )
        value = onnx.numpy_helper.from_array(np.array(ZERO_LEVEL, np.uint8), f"{name}_mean_grey")
        graph.initializer.append(value)
        pad.input[0], pad.input[2] = cast.input[0], value.name
        pad.output[0] = quantise.output[0]
        graph.node.remove(quantise)
        for node in (subtract, cast):
            if not any(node.output[0] in other.input for other in graph.node):
                graph.node.remove(node)
    onnx.save(model, path)


def _kept_fp32(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that stay fp32: heads, sums of scores, upsampling of the mask logits."""
    heads = [
        node.name
        for node in graph.node
        if node.op_type == "Conv" and any("_head" in name for name in node.input)
    ]
    # Shortcuts add two feature maps. Other sums are of scores, which 255 steps would make coarse.
    maps = {v.name for v in graph.value_info if len(v.type.tensor_type.shape.dim) == 4}
    scores = [
        node.name
        for node in graph.node
        if node.op_type == "Add" and not maps.issuperset(node.input)
    ]
    bilinear = [
        node.name
        for node in graph.node
        if node.op_type == "Resize"
        and any(a.name == "mode" and a.s == b"linear" for a in node.attribute)
    ]
    return [*heads, *scores, *bilinear]


STEM = "stem"
"""Last part of the name of the block of a network's first convolution."""


def _nodes_by_block(graph: onnx.GraphProto) -> list[tuple[str, list[str]]]:
    """Quantised nodes by the block of the network that they belong to, in order.

    Weights carry the block's name; what has no weights belongs to the block before it.
    """
    blocks: list[tuple[str, list[str]]] = []
    block = STEM
    # Concat joins feature maps, but sizes for a Reshape as well.
    whole_numbers = {
        v.name for v in graph.value_info if v.type.tensor_type.elem_type == onnx.TensorProto.INT64
    }
    for node in graph.node:
        weights = [name for name in node.input if name.endswith(".weight")]
        if weights:
            block = block_of(weights[0])
        if node.op_type in QUANTISED and node.output[0] not in whole_numbers:
            if not blocks or blocks[-1][0] != block:
                blocks.append((block, []))
            blocks[-1][1].append(node.name)
    return blocks


def block_of(weight: str) -> str:
    """``encoder.layer1.0`` of ``network.encoder.layer1.0.conv2.weight``."""
    parts = weight.removeprefix("network.").split(".")
    for i, part in enumerate(parts):
        if part.startswith("layer") or part == "blocks":
            return ".".join(parts[: i + 2])
    # Two networks have a stem each.
    return ".".join([*parts[: parts.index("conv1")], STEM]) if "conv1" in parts else parts[0]


def sensitive_blocks(scratch: Path, frames: Iterable[NDArray[np.uint8]]) -> list[str]:
    """Blocks of the network by the noise that their quantisation adds, most first.

    Args:
        scratch: where ``quantise`` made a network all in int8.
        frames: real frames, ``(N, 1, H, W)``; the first two are looked at.

    Returns:
        Names for ``in_fp32``.
    """
    prepared, quantised = scratch / PREPARED, scratch / INT8
    graph = onnx.load(prepared).graph
    makers = {node.name: node for node in graph.node}
    # The heads are fp32 already.
    ends = {
        block: makers[names[-1]].output[0]
        for block, names in _nodes_by_block(graph)
        if "_head" not in block
    }
    looked = list(islice(frames, 2))
    exact, rounded = (_values(path, list(ends.values()), looked) for path in (prepared, quantised))
    added: dict[str, float] = {}
    before = 0.0
    for block, name in ends.items():
        if name not in exact or name not in rounded:
            continue
        difference, power = (
            sum(float(np.square(a - b).sum()) for a, b in zip(exact[name], other, strict=True))
            for other in (rounded[name], [np.zeros(1, np.float32)] * len(looked))
        )
        if block.endswith(STEM):  # a network begins
            before = 0.0
        noise = difference / max(power, 1e-12)
        added[block] = noise - before
        before = noise
    return sorted(added, key=lambda block: -added[block])


def _values(
    path: Path, names: Sequence[str], frames: Sequence[NDArray[np.uint8]]
) -> dict[str, list[NDArray[np.float32]]]:
    """Float tensors inside a network, for each of the frames; those that it does not have lack."""
    model = onnx.load(path)
    made = {output for node in model.graph.node for output in node.output}
    # In a quantised network the rounded values carry the name with an ending.
    inside = {
        name: next(n for n in (f"{name}_DequantizeLinear_Output", name) if n in made)
        for name in names
        if name in made
    }
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in inside.values()
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it laments what the cut left unused
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    runs = [session.run(list(inside.values()), {"frames": batch}) for batch in frames]
    return {name: [run[i] for run in runs] for i, name in enumerate(inside)}
