"""Static int8 of a network file: QDQ, weights per channel (Jacob et al., arXiv 1712.05877)."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
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
    frames = list(calibration)  # levels of a few hundred kilobytes each
    model = onnx.load(whole)
    # Features as outputs would each get a second, needless quantisation node.
    kept = [o for o in model.graph.output if o.name in (*PROBABILITIES, MASKS)]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    prepared, quantised = scratch / PREPARED, scratch / INT8
    onnx.save(model, prepared)
    quant_pre_process(prepared, prepared, skip_symbolic_shape=True)
    in_float = any(block.endswith(STEM) for block in in_fp32)
    if in_float:
        _pool_before_relu(prepared)
    graph = onnx.load(prepared).graph
    kept_blocks = [
        name for block, names in _nodes_by_block(graph) if block in in_fp32 for name in names
    ]
    levels = [] if in_float else _padded_levels(graph)
    quantize_static(
        prepared,
        quantised,
        _Frames(frames),
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
    _correct_biases(prepared, quantised, frames[:_CORRECTED_ON])
    _take_levels_as_they_are(quantised, levels)
    return quantised


_CORRECTED_ON = 16
"""Frames that bias correction takes the means of; they need all feature maps of one at a time."""


def _pool_before_relu(prepared: Path) -> None:
    """The same numbers, sooner in ONNX Runtime where the stem is fp32.

    It takes the quantisation behind pooling to before it, and then pools whole numbers in a layout
    that it is slow in; a ReLU between the two hinders it.
    """
    model = onnx.load(prepared)
    makers = {output: node for node in model.graph.node for output in node.output}
    uses = Counter(name for node in model.graph.node for name in node.input)
    for pool in model.graph.node:
        relu = makers.get(pool.input[0]) if pool.op_type == "MaxPool" else None
        # A decoder that takes C1 needs the ReLU where it is.
        if relu is not None and relu.op_type == "Relu" and uses[pool.input[0]] == 1:
            relu.op_type, pool.op_type = pool.op_type, relu.op_type
            relu.attribute.extend(pool.attribute)
            del pool.attribute[:]
    onnx.save(model, prepared)


def _correct_biases(prepared: Path, quantised: Path, frames: Sequence[NDArray[np.uint8]]) -> None:
    """Takes back what rounded weights add to the mean of each channel.

    Nagel et al., arXiv 1906.04721, section 4.2: the expected error of a channel is the error of its
    weights times the mean of its inputs, which is measured here on frames in fp32. Borders count
    like the inside.
    """
    exact, model = onnx.load(prepared), onnx.load(quantised)
    weights = {i.name: i for i in exact.graph.initializer}
    stored = {i.name: i for i in model.graph.initializer}
    made_by = {node.output[0]: node for node in model.graph.node}
    originals = {node.name: node for node in exact.graph.node if node.op_type == "Conv"}
    rounded = [
        node
        for node in model.graph.node
        if node.op_type == "Conv"
        and node.name in originals
        and getattr(made_by.get(node.input[1]), "op_type", "") == "DequantizeLinear"
    ]
    if not rounded:  # all blocks are kept in fp32
        return
    added: list[onnx.NodeProto] = []
    means = _channel_means(exact, {originals[node.name].input[0] for node in rounded}, frames)

    def value(name: str) -> NDArray[np.float64]:
        return onnx.numpy_helper.to_array(stored[name]).astype(np.float64)

    for node in rounded:
        original, weight = originals[node.name], made_by[node.input[1]]
        scale, zero = (value(name).reshape(-1, 1, 1, 1) for name in weight.input[1:3])
        error = (value(weight.input[0]) - zero) * scale
        error -= onnx.numpy_helper.to_array(weights[original.input[1]])
        correction = -error.sum(axis=(2, 3)) @ means[original.input[0]]
        # Engines take whole numbers only: steps of the products of inputs and weights.
        step = scale.ravel() * value(made_by[node.input[0]].input[1])
        steps = np.rint(correction / step)
        if len(node.input) == 3:
            bias = stored[made_by[node.input[2]].input[0]]
            steps += onnx.numpy_helper.to_array(bias)
            bias.CopyFrom(onnx.numpy_helper.from_array(steps.astype(np.int32), bias.name))
            continue
        name = f"{node.output[0]}_correction"
        parts = {"steps": steps.astype(np.int32), "step": step.astype(np.float32)}
        for part, array in parts.items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}_{part}"))
        inputs = [f"{name}_{part}" for part in parts]
        node.input.append(name)
        added.append(onnx.helper.make_node("DequantizeLinear", inputs, [name], name, axis=0))
    for node in added:
        model.graph.node.insert(0, node)
    onnx.save(model, quantised)


def _channel_means(
    model: onnx.ModelProto, names: Collection[str], frames: Sequence[NDArray[np.uint8]]
) -> dict[str, NDArray[np.float64]]:
    """Mean of each channel of feature maps ``(N, C, H, W)`` over frames, ``(C,)`` by name."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    wanted = sorted(names)
    del asked.graph.output[:]
    asked.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted
    )
    session = _session(asked)
    sums: dict[str, NDArray[np.float64]] = {}
    for batch in frames:
        for name, maps in zip(wanted, session.run(wanted, {"frames": batch}), strict=True):
            means = maps.mean(axis=(0, 2, 3), dtype=np.float64)
            sums[name] = sums.get(name, np.zeros_like(means)) + means
    return {name: total / len(frames) for name, total in sums.items()}


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


def sensitive_blocks(
    whole: Path,
    scratch: Path,
    frames: Iterable[NDArray[np.uint8]],
    reduce_range: bool = True,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[str]:
    """Blocks of the network by what keeping each of them alone in fp32 does for the answers.

    The noise that a block adds does not tell: of early blocks a little goes a long way.

    Args:
        whole: what ``export_onnx`` wrote.
        scratch: folder for what comes between; what ``quantise`` left there is written over.
        frames: real frames, ``(N, 1, H, W)``; the first eight are looked at.
        reduce_range: 7-bit weights.
        progress: told the number of blocks that are done, and of all.

    Returns:
        Names for ``in_fp32``, the one that helps most first; the heads are fp32 anyway.
    """
    looked = list(islice(frames, _RANKED_ON))
    exact = _answers(whole, looked)
    powers = {
        name: float(np.square(answer - answer.mean()).sum()) for name, answer in exact.items()
    }

    def error(in_fp32: Collection[str]) -> float:
        rounded = _answers(quantise(whole, scratch, looked, reduce_range, in_fp32), looked)
        return sum(
            float(np.square(rounded[name] - answer).sum()) / max(powers[name], 1e-12)
            for name, answer in exact.items()
        )

    blocks = dict(_nodes_by_block(onnx.load(whole).graph))
    candidates = [block for block in blocks if "_head" not in block]
    errors = {}
    for done, block in enumerate(candidates):
        progress(done, len(candidates))
        errors[block] = error([block])
    return sorted(errors, key=errors.__getitem__)


_RANKED_ON = 8


def _answers(path: Path, frames: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.float64]]:
    """Probabilities and mask logits of all frames, ``(M,)`` by output."""
    session = _session(onnx.load(path))
    names = [*PROBABILITIES, MASKS]
    runs = [session.run(names, {"frames": batch}) for batch in frames]
    return {
        name: np.concatenate([run[i].ravel() for run in runs]).astype(np.float64)
        for i, name in enumerate(names)
    }


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """As it is written: inner tensors are asked for by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it laments what the cut left unused
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options)
