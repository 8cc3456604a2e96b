"""What is installed, which engines work, and whether the bundle answers as its maker recorded."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from steelsight import __version__
from steelsight.bundle import Bundle, load_bundle
from steelsight.engine.cascade import Inspector
from steelsight.engine.choice import choose_engine, self_test
from steelsight.engine.runtime import Engine, available_cores, installed_engines
from steelsight.errors import SteelsightError

PACKAGES = ("numpy", "opencv-python-headless", "simplejpeg", "pillow", "onnxruntime", "openvino")
GPU_PACKAGE = "onnxruntime-gpu"
"""In place of ``onnxruntime``: both are the same module."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's report; ``ok`` is ``None`` for what is only told."""

    what: str
    found: str
    ok: bool | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks; ``healthy`` unless one failed."""

    checks: Sequence[Check]

    @property
    def healthy(self) -> bool:
        """Whether no check failed."""
        return all(check.ok is not False for check in self.checks)

    @property
    def sentence(self) -> str:
        """The conclusion."""
        if self.healthy:
            return "All is well."
        failed = "; ".join(check.what for check in self.checks if check.ok is False)
        return f"Do not trust results from this machine before this is settled: {failed}."

    def rows(self) -> list[list[str]]:
        """A table for people, header first."""
        marks = {None: "", True: "ok", False: "FAILED"}
        return [["check", "", "found"], *([c.what, marks[c.ok], c.found] for c in self.checks)]

    def to_json(self) -> dict[str, Any]:
        """The same for machines."""
        return {"healthy": self.healthy, "checks": [asdict(check) for check in self.checks]}


def versions() -> dict[str, str]:
    """Versions of what takes part in a result; packages that are not installed are left out."""
    found = {"steelsight": __version__, "python": platform.python_version()}
    for package in (*PACKAGES, GPU_PACKAGE):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def diagnose(folder: Path | None = None) -> Diagnosis:
    """Runs all checks; never raises for what it is there to find."""
    installed = versions()
    checks = [
        Check(name, installed.get(name, "not installed (extra)"))
        for name in ("steelsight", "python", *PACKAGES)
        if name in installed or not (name == "onnxruntime" and GPU_PACKAGE in installed)
    ]
    if GPU_PACKAGE in installed:
        checks.append(_gpu_package(installed))
    checks.append(
        Check(
            "machine",
            f"{platform.machine()}, {available_cores()} of {os.cpu_count()} "
            f"cores usable{_vector_instructions()}",
        )
    )
    try:
        bundle = load_bundle(folder)
    except SteelsightError as error:
        return Diagnosis([*checks, Check("bundle", str(error), ok=False)])
    checks.append(Check("bundle", f"{bundle.id}, checksums and parity right", ok=True))
    tests = [_self_test(bundle, engine) for engine in installed_engines()]
    return Diagnosis([*checks, *tests, _choice(bundle)])


def _gpu_package(installed: Mapping[str, str]) -> Check:
    if "onnxruntime" not in installed:
        return Check(GPU_PACKAGE, installed[GPU_PACKAGE])
    told = (
        f"expected {GPU_PACKAGE} or onnxruntime, got both: each has overwritten files of the other;"
        f" run: pip uninstall onnxruntime {GPU_PACKAGE}, then install one of them"
    )
    return Check(GPU_PACKAGE, told, ok=False)


def _vector_instructions() -> str:
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return ""
    names = [
        name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if name in flags
    ]
    return f", {' '.join(names) or 'no AVX2: slow'}"


def _self_test(bundle: Bundle, engine: Engine) -> Check:
    what = f"self-test on {engine}"
    try:
        inspector = Inspector.load(bundle.folder, engine=engine)
    except SteelsightError as error:
        return Check(what, str(error), ok=False)
    found, difference = self_test(inspector)
    if difference:
        return Check(what, difference, ok=False)
    took = sum(found.milliseconds.values())
    return Check(what, f"{found.engine} answers as recorded; first frame {took:.0f} ms", ok=True)


def _choice(bundle: Bundle) -> Check:
    """Only told: what is wrong with an engine fails its own self-test."""
    try:
        return Check("engine of auto", choose_engine(bundle, available_cores(), 1).sentence)
    except SteelsightError as error:
        return Check("engine of auto", str(error))
