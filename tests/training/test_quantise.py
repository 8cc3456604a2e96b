"""Bias correction against the definition, on a network small enough to compute by hand."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from steelsight.training.quantise import _correct_biases, _Frames

SIZE_HW = (64, 96)


def network(folder: Path) -> Path:
    """Two 1 x 1 convolutions, the second without a bias: no border spoils the comparison."""
    rng = np.random.default_rng(0)
    weights = {
        "a.weight": rng.normal(0, 1, (8, 1, 1, 1)),
        "a.bias": rng.normal(0, 1, 8),
        "b.weight": rng.normal(0, 1, (6, 8, 1, 1)),
    }
    nodes = [
        helper.make_node("Cast", ["frames"], ["levels"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Conv", ["levels", "a.weight", "a.bias"], ["a"], "conv_a"),
        helper.make_node("Relu", ["a"], ["relu"], "relu"),
        helper.make_node("Conv", ["relu", "b.weight"], ["b"], "conv_b"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, [1, 1, *SIZE_HW])],
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    path = folder / "prepared.onnx"
    onnx.save(model, path)
    return path


def channel_means(path: Path, frames: list[NDArray[np.uint8]]) -> dict[str, NDArray[np.float64]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    runs = [session.run(["a", "b"], {"frames": frame}) for frame in frames]
    return {
        name: np.mean([run[i].mean(axis=(0, 2, 3)) for run in runs], axis=0)
        for i, name in enumerate("ab")
    }


@pytest.fixture
def frames() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    return [rng.integers(60, 200, (1, 1, *SIZE_HW), np.uint8) for _ in range(4)]


def test_rounded_weights_do_not_move_the_mean_of_a_channel(
    tmp_path: Path, frames: list[NDArray[np.uint8]]
) -> None:
    exact, rounded = network(tmp_path), tmp_path / "int8.onnx"
    quantize_static(
        exact,
        rounded,
        _Frames(frames),
        quant_format=QuantFormat.QDQ,
        per_channel=False,  # coarser than ours: there is something to correct
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv"],
    )
    want, before = channel_means(exact, frames), channel_means(rounded, frames)
    before_file = rounded.read_bytes()
    _correct_biases(exact, rounded, frames)
    after = channel_means(rounded, frames)
    for name in "ab":
        errors = [np.abs(said[name] - want[name]).mean() for said in (before, after)]
        assert errors[1] < 0.2 * errors[0], name
    # Engines run a convolution in int8 only if its bias is in whole numbers as well.
    onnx.checker.check_model(onnx.load(rounded))
    graph = onnx.load(rounded).graph
    makers = {node.output[0]: node for node in graph.node}
    for node in graph.node:
        if node.op_type == "Conv":
            assert [makers[name].op_type for name in node.input] == ["DequantizeLinear"] * 3
    assert rounded.read_bytes() != before_file
