"""ONNX Runtime on the CPU: the engine of every installation."""

from pathlib import Path
from typing import Any

import onnxruntime

from steelsight.bundle import Precision
from steelsight.engine.runtime import Tensors
from steelsight.errors import EngineError, one_line


class OnnxRuntime:
    """A network file in ONNX Runtime; see ``Runtime``.

    One session serves all workers: runs at once share its weights, its memory and its pool.
    """

    def __init__(self, path: Path, precision: Precision, threads: int, workers: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        # It counts one thread that calls; every other worker brings one more.
        options.intra_op_num_threads = max(1, threads - workers + 1)
        options.log_severity_level = 3
        # Threads that spin while waiting gain nothing here and slow down all else that runs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # Its own exception classes derive from Exception only.
            raise EngineError(f"ONNX Runtime refuses {path}: {one_line(error)}") from None
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.label = f"onnxruntime-{precision}"

    def run(self, inputs: Tensors) -> dict[str, Any]:
        """See ``Runtime.run``."""
        try:
            values = self._session.run(self._outputs, dict(inputs))
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed: {one_line(error)}") from None
        return dict(zip(self._outputs, values, strict=True))
