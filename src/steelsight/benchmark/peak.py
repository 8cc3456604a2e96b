"""How near the networks come to what the machine can do at most.

Both sides come from OpenVINO, because it reads network files and builds networks without further
packages: the operations of a bundle's networks, counted from their layers; and the peak, measured
with a chain of matrix products that stays in the caches and has as many operations as a network.
"""

import math
import statistics
import time
from typing import Any

import numpy as np

from steelsight.bundle import Bundle, Precision, SegmenterInput
from steelsight.errors import EngineError
from steelsight.imaging import tile_plan

COUNTED = {
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "MatMul",
}
SIDE, ROWS, PRODUCTS = 1024, 512, 16
TRIES = 5

try:
    import openvino
    from openvino import opset13
except ImportError:
    raise EngineError(
        "how near the networks come to the machine's peak is told with OpenVINO only; "
        "run: pip install 'steelsight[openvino]'"
    ) from None


def operations(bundle: Bundle, size_wh: tuple[int, int]) -> tuple[float, float]:
    """Operations of gate and segmenter for one frame, tile by tile; a product and its sum are two.

    Counted are convolutions, transposed convolutions and matrix products: all else is next to
    nothing.

    Args:
        bundle: whose networks.
        size_wh: width and height of the frame.

    Raises:
        EngineError: OpenVINO cannot read the networks or their sizes.
    """
    spec = bundle.manifest.input
    gate_total = segmenter_total = 0
    for _, _, w, h in tile_plan(size_wh, spec.tile_wh, spec.tile_overlap_px):
        multiple = spec.multiple_of
        rows, columns = (math.ceil(side / multiple) * multiple for side in (h, w))
        try:
            core = openvino.Core()
            gate, segmenter = map(core.read_model, (bundle.gate_path, bundle.segmenter_path))
            frames = {"frames": [1, 1, rows, columns]}
            gate.reshape(frames)
            given = (
                frames
                if bundle.manifest.segmenter_takes is SegmenterInput.FRAMES
                else {
                    entry.get_any_name(): gate.output(entry.get_any_name()).get_partial_shape()
                    for entry in segmenter.inputs
                }
            )
            segmenter.reshape(given)
            gate_total += multiply_adds(gate)
            segmenter_total += multiply_adds(segmenter)
        except RuntimeError as error:
            line = " ".join(str(error).split())[:200]
            raise EngineError(f"the operations of {bundle.id} cannot be counted: {line}") from None
    return 2.0 * gate_total, 2.0 * segmenter_total


def multiply_adds(model: Any) -> int:
    """Multiply-adds of a network whose sizes are all known."""
    total = 0
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind not in COUNTED:
            continue
        given, weights = (list(node.input(i).get_shape()) for i in (0, 1))
        result = math.prod(node.output(0).get_shape())
        if kind == "MatMul":
            attributes = node.get_attributes()
            total += result * given[-2 if attributes["transpose_a"] else -1]
        elif kind in {"Convolution", "GroupConvolution"}:
            # Weights: (groups,) out, in, rows, columns.
            total += result * math.prod(weights[-3:])
        else:
            # Weights: (groups,) in, out, rows, columns: every input meets them all.
            total += math.prod(given) * math.prod(weights[-3:])
    return total


class Probe:
    """Measures how many operations a second the machine makes of a number type, at the moment.

    Args:
        precision: fp32 or int8.
        threads: inference threads.

    Raises:
        EngineError: OpenVINO refuses.
    """

    def __init__(self, precision: Precision, threads: int) -> None:
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            # As the engine itself: pinned threads would meet other processes.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            model = openvino.Core().compile_model(_chain(precision), "CPU", settings)
        except RuntimeError as error:
            line = " ".join(str(error).split())[:200]
            raise EngineError(f"the peak cannot be measured: {line}") from None
        self._request = model.create_infer_request()
        self._given = np.random.default_rng(0).uniform(-1, 1, (ROWS, SIDE)).astype(np.float32)
        self._request.infer([self._given])

    def operations_per_second(self) -> float:
        """Median of some tries: networks are measured by medians, too."""
        seconds = []
        for _ in range(TRIES):
            started = time.perf_counter()
            self._request.infer([self._given], share_inputs=True)
            seconds.append(time.perf_counter() - started)
        return 2.0 * PRODUCTS * ROWS * SIDE * SIDE / statistics.median(seconds)


def _chain(precision: Precision) -> Any:
    """Matrix products one after the other, in the number type of the networks."""

    def constant(values: Any) -> Any:
        return opset13.constant(np.asarray(values))

    frames = opset13.parameter([ROWS, SIDE], np.float32)
    rng = np.random.default_rng(0)
    x = frames
    for _ in range(PRODUCTS):
        weights = rng.integers(-63, 64, (SIDE, SIDE))
        if precision is Precision.INT8:
            low, high = constant(np.float32(-1)), constant(np.float32(1))
            x = opset13.fake_quantize(x, low, high, low, high, 256)
            scale = np.full((1, SIDE), 2e-4, np.float32)
            w = opset13.multiply(
                opset13.convert(constant(weights.astype(np.int8)), np.float32), constant(scale)
            )
        else:
            w = constant((2e-4 * weights).astype(np.float32))
        x = opset13.matmul(x, w, False, False)
    return openvino.Model([x], [frames], "peak")
