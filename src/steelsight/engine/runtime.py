"""The seam between us and the inference engines: one method, ``Runtime.run``."""

import math
import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from steelsight.bundle import Precision
from steelsight.errors import InputError

Tensors = Mapping[str, NDArray[Any]]


class Runtime(Protocol):
    """One loaded network file.

    Attributes:
        label: ``engine-precision``, as results carry it.
    """

    label: str

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Runs the network.

        Args:
            inputs: arrays by input name, batch first; handed over without a copy.

        Returns:
            Arrays by output name.

        Raises:
            EngineError: the engine failed on these inputs.
        """
        ...


class Engine(StrEnum):
    """The engines this version can use."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


def load_runtime(
    path: Path,
    precision: Precision,
    engine: Engine | str = Engine.AUTO,
    threads: int | None = None,
) -> Runtime:
    """Loads a network file.

    Args:
        path: the ONNX file.
        precision: of the file; engines are told explicitly and never lower it by themselves.
        engine: ``AUTO`` is ONNX Runtime, which every installation has.
        threads: inference threads; all cores this process may use if ``None``.

    Raises:
        EngineError: the engine is not installed or refuses the file.
        InputError: a number of threads below one.
    """
    if engine not in _LOADERS:  # its keys are str
        raise InputError(f"expected an engine of {', '.join(Engine)}, got {engine}")
    if threads is not None and threads < 1:
        raise InputError(f"expected at least 1 thread, got {threads}; leave it out for all cores")
    return _LOADERS[Engine(engine)](path, precision, threads or available_cores())


def available_cores() -> int:
    """Cores this process may really use: affinity, and the container's CPU quota (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        limit = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or "max 100000": unlimited
        return cores or 1
    return max(1, min(cores or 1, limit))


# Imported where used: an engine costs up to a second to import, and OpenVINO is an extra.
def _onnxruntime(path: Path, precision: Precision, threads: int) -> Runtime:
    from steelsight.engine.onnxruntime import OnnxRuntime

    return OnnxRuntime(path, precision, threads)


def _openvino(path: Path, precision: Precision, threads: int) -> Runtime:
    from steelsight.engine.openvino import OpenVino

    return OpenVino(path, precision, threads)


_LOADERS: dict[Engine, Callable[[Path, Precision, int], Runtime]] = {
    Engine.AUTO: _onnxruntime,
    Engine.ONNXRUNTIME: _onnxruntime,
    Engine.OPENVINO: _openvino,
}
