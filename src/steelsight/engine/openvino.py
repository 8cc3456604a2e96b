"""OpenVINO on the CPU (extra ``openvino``): often the faster engine on Intel."""

from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from steelsight.bundle import Precision
from steelsight.engine.runtime import Tensors
from steelsight.errors import EngineError, one_line

try:
    import openvino
except ImportError:
    raise EngineError(
        "expected OpenVINO for --engine openvino, it is not installed; "
        "run: pip install 'steelsight[openvino]'"
    ) from None


class OpenVino:
    """A network file in OpenVINO; see ``Runtime``.

    A request may run once at a time; there is one for each worker.
    """

    def __init__(self, path: Path, precision: Precision, threads: int, workers: int = 1) -> None:
        settings = {
            # Left alone, OpenVINO silently computes in bf16 on recent CPUs.
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": workers,
            # Pinned, the streams of both networks and of every other process sit on the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            model = openvino.Core().compile_model(path, "CPU", settings)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO refuses {path}: {one_line(error)}") from None
        self._model = model
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(workers):
            self._idle.put(model.create_infer_request())
        self._dtypes = {i.get_any_name(): i.get_element_type().to_dtype() for i in model.inputs}
        self._outputs = [output.get_any_name() for output in model.outputs]
        self.label = f"openvino-{precision}"

    def run(self, inputs: Tensors) -> dict[str, Any]:
        """See ``Runtime.run``."""
        # Of itself it converts other types, and keeps the last frame's array for a missing input.
        given = {name: getattr(array, "dtype", None) for name, array in inputs.items()}
        if given != self._dtypes:
            raise EngineError(f"OpenVINO failed: expected inputs {self._dtypes}, got {given}")
        request = self._idle.get()
        try:
            request.infer(dict(inputs), share_inputs=True)
            # Copied: the request reuses its own buffers on the next run.
            return {name: np.array(request.get_tensor(name).data) for name in self._outputs}
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed: {one_line(error)}") from None
        finally:
            self._idle.put(request)
