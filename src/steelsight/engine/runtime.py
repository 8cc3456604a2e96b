"""The seam between us and the inference engines: one method, ``Runtime.run``."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from importlib import metadata, util
from pathlib import Path
from typing import Any, Protocol

from steelsight.bundle import Precision
from steelsight.errors import InputError

Tensors = Mapping[str, Any]
"""Arrays by name, batch first; what another network of the same engine gave may be its own."""

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GPUS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # the second one under Windows (WSL)


class Runtime(Protocol):
    """One loaded network file; several threads may run it at once.

    Attributes:
        label: ``engine-precision``, as results carry it.
    """

    label: str

    def run(self, inputs: Tensors) -> dict[str, Any]:
        """Runs the network.

        Args:
            inputs: arrays by input name, batch first; handed over without a copy.

        Returns:
            Arrays by output name. What only the segmenter takes may be the engine's own instead:
            from a GPU it does not come back.

        Raises:
            EngineError: the engine failed on these inputs.
        """
        ...


class Engine(StrEnum):
    """The engines this version can use."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    CUDA = "cuda"
    """ONNX Runtime on an NVIDIA GPU."""


def installed_engines() -> tuple[Engine, ...]:
    """Engines that this machine seems to have; none is imported.

    ``cuda`` counts where ONNX Runtime was built for it and an NVIDIA GPU is there.
    """
    found = [e for e in (Engine.ONNXRUNTIME, Engine.OPENVINO) if util.find_spec(e) is not None]
    spec = util.find_spec(Engine.ONNXRUNTIME)
    folders = spec.submodule_search_locations if spec else None
    for_cuda = any(
        (Path(folder) / "capi/libonnxruntime_providers_cuda.so").exists()
        for folder in folders or ()
    )
    if for_cuda and any(device.exists() for device in _GPUS):
        found.append(Engine.CUDA)
    return tuple(found)


def engine_version(engine: str) -> str:
    """Version of an engine's package; empty if nobody knows."""
    packages = {
        Engine.ONNXRUNTIME.value: ("onnxruntime", "onnxruntime-gpu"),
        Engine.CUDA.value: ("onnxruntime-gpu",),
    }
    for package in packages.get(engine, (engine,)):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return ""


def load_runtime(
    path: Path,
    precision: Precision,
    engine: Engine | str = Engine.AUTO,
    threads: int | None = None,
    workers: int = 1,
) -> Runtime:
    """Loads a network file.

    Args:
        path: the ONNX file.
        precision: of the file; engines are told explicitly and never lower it by themselves.
        engine: ``AUTO`` is ONNX Runtime, which every installation has; a choice by measurement
            needs a whole bundle (``choose_engine``).
        threads: inference threads of all workers; all cores this process may use if ``None``.
        workers: threads that will call ``run`` at once.

    Raises:
        EngineError: the engine is not installed or refuses the file.
        InputError: an unknown engine, or a number of threads or workers that is none.
    """
    if engine not in _LOADERS:  # its keys are str
        raise InputError(f"expected an engine of {', '.join(Engine)}, got {engine}")
    return _LOADERS[Engine(engine)](path, precision, *share_threads(threads, workers))


def share_threads(threads: int | None, workers: int) -> tuple[int, int]:
    """Threads and workers as numbers.

    Args:
        threads: ``None`` for all usable cores.
        workers: 0 for as many as threads.

    Raises:
        InputError: fewer than one thread, or than no worker.
    """
    if threads is not None and threads < 1:
        raise InputError(f"expected at least 1 thread, got {threads}; leave it out for all cores")
    if workers < 0:
        raise InputError(f"expected at least 1 worker, got {workers}; 0 is one for each thread")
    threads = threads or available_cores()
    return threads, workers or threads


def available_cores() -> int:
    """Cores this process may really use: affinity, and the CPU quota of its control groups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([cores or 1, *_quotas()]))


def _quotas() -> Iterator[int]:
    """Limits in whole cores, of the process's own control group (v1 or v2) and of those above it.

    Inside of a container its group is the root of what is mounted, whatever its path is called.
    """
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _CONTROL_GROUPS / "cpu" if controllers else _CONTROL_GROUPS
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root) and (quota := _quota(folder)):
                yield quota


def _quota(group: Path) -> int | None:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        return math.ceil(int(quota) / int(period)) if int(quota) > 0 else None
    except (OSError, ValueError):  # no such files, or "max 100000": unlimited
        return None


# Imported where used: an engine costs up to a second to import, and OpenVINO is an extra.
def _onnxruntime(path: Path, precision: Precision, threads: int, workers: int) -> Runtime:
    from steelsight.engine.onnxruntime import OnnxRuntime

    return OnnxRuntime(path, precision, threads, workers)


def _openvino(path: Path, precision: Precision, threads: int, workers: int) -> Runtime:
    from steelsight.engine.openvino import OpenVino

    return OpenVino(path, precision, threads, workers)


def _cuda(path: Path, precision: Precision, threads: int, workers: int) -> Runtime:
    from steelsight.engine.cuda import Cuda

    return Cuda(path, precision, threads, workers)


_LOADERS: dict[Engine, Callable[[Path, Precision, int, int], Runtime]] = {
    Engine.AUTO: _onnxruntime,
    Engine.ONNXRUNTIME: _onnxruntime,
    Engine.OPENVINO: _openvino,
    Engine.CUDA: _cuda,
}
