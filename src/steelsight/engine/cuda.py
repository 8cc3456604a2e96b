"""ONNX Runtime on an NVIDIA GPU: the package ``onnxruntime-gpu`` in place of ``onnxruntime``.

The same files as on the CPU. Of an int8 network the weights are turned into floats once, when it is
loaded; activations are rounded to their steps as everywhere and multiplied as floats, since ONNX
Runtime has no int8 convolution for CUDA. So its answers are those of the other engines but for
rounding, and an fp32 bundle saves the rounding steps.
"""

import ctypes
import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

import onnxruntime

from steelsight.bundle import Precision
from steelsight.engine.runtime import Tensors
from steelsight.errors import EngineError, one_line

STAYS = frozenset({"c2", "c3", "c4", "c5"})
"""Outputs that only the segmenter takes: 12 MB for each frame of 256 x 1600 that need not travel to
the host and back."""

_INSTALL = (
    "run: pip uninstall onnxruntime onnxruntime-gpu; pip install 'onnxruntime-gpu[cuda,cudnn]'"
)

# Libraries of Python packages are not where the system looks for them. Done when this module is
# imported, so once: what it prints would stand between results.
if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
    with redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()
    # What fails is raised, in one line.
    onnxruntime.set_default_logger_severity(4)


class Cuda:
    """A network file in ONNX Runtime on a GPU, the first one visible; see ``Runtime``.

    Workers share it: the GPU takes one frame after the other, while others are being decoded.
    """

    _PROVIDER: ClassVar[str] = "CUDAExecutionProvider"
    _DEVICE: ClassVar[str] = "cuda"

    def __init__(self, path: Path, precision: Precision, threads: int, workers: int = 1) -> None:
        if self._PROVIDER not in onnxruntime.get_available_providers():
            raise EngineError(
                "expected ONNX Runtime for NVIDIA GPUs for --engine cuda, the one installed is for "
                f"CPUs only; {_INSTALL}"
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = max(1, threads - workers + 1)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Weights become floats when the network is loaded, not with each frame.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        # The same frame, the same answer.
        options.use_deterministic_compute = True
        try:
            session = onnxruntime.InferenceSession(
                path, options, providers=[(self._PROVIDER, self._settings(precision))]
            )
        except Exception as error:
            # Its own exception classes derive from Exception only.
            raise EngineError(f"ONNX Runtime refuses {path}: {one_line(error)}") from None
        # It would go on with the CPU in silence, when loading and when running.
        session.disable_fallback()
        if self._PROVIDER not in session.get_providers():
            raise EngineError(
                f"expected an NVIDIA GPU for --engine cuda, got: {_why_not()}; see to GPU, driver "
                "and libraries, or give another engine"
            )
        self._session = session
        self._outputs = {
            output.name: self._DEVICE if output.name in STAYS else "cpu"
            for output in session.get_outputs()
        }
        self.label = f"cuda-{precision}"

    def _settings(self, precision: Precision) -> dict[str, str]:
        """Options of the provider."""
        return {
            # Trying them out would take seconds for each size, and choose by chance.
            "cudnn_conv_algo_search": "HEURISTIC",
            # 10 bits of mantissa: finer than the steps of int8, but not what fp32 says.
            "use_tf32": "1" if precision is Precision.INT8 else "0",
        }

    def run(self, inputs: Tensors) -> dict[str, Any]:
        """See ``Runtime.run``; outputs of ``STAYS`` remain on the GPU."""
        try:
            binding = self._session.io_binding()
            for name, value in inputs.items():
                if isinstance(value, onnxruntime.OrtValue):
                    binding.bind_ortvalue_input(name, value)
                else:
                    binding.bind_cpu_input(name, value)
            for name, device in self._outputs.items():
                binding.bind_output(name, device)
            self._session.run_with_iobinding(binding)
            return {
                name: value if name in STAYS else value.numpy()
                for name, value in zip(self._outputs, binding.get_outputs(), strict=True)
            }
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed: {one_line(error)}") from None


def _why_not() -> str:
    """Why ONNX Runtime left the GPU out: it does not tell."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        for name in ("shared", "cuda"):
            ctypes.CDLL(str(folder / f"libonnxruntime_providers_{name}.so"))
    except OSError as error:
        return one_line(error)
    return "no GPU that it can use"
