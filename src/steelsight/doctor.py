"""What is installed, which engines work, and whether the bundle answers as its maker recorded."""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from steelsight import __version__
from steelsight.bundle import PARITY, Bundle, load_bundle
from steelsight.defects import Inspection
from steelsight.engine.cascade import Inspector
from steelsight.engine.runtime import Engine, available_cores
from steelsight.errors import SteelsightError
from steelsight.masks import decode_rle, dice, merge_rles

PACKAGES = ("numpy", "opencv-python-headless", "simplejpeg", "pillow", "onnxruntime", "openvino")
LOGIT_TOLERANCE = 0.5
"""Engines and processors round differently; more than this would move verdicts."""
MASK_TOLERANCE_DICE = 0.97


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
    for package in PACKAGES:
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
    ]
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
    engines = [e for e in (Engine.ONNXRUNTIME, Engine.OPENVINO) if e in installed]
    return Diagnosis([*checks, *(_self_test(bundle, engine) for engine in engines)])


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
        found = Inspector.load(bundle.folder, engine=engine).inspect(bundle.self_test_path)
    except SteelsightError as error:
        return Check(what, str(error), ok=False)
    recorded = bundle.parity.get("self_test") or {}
    if not {"verdict", "faulty_probability", "defects"} <= recorded.keys():
        return Check(what, f"no answer was recorded in {PARITY}; export it again", ok=False)
    difference = compare(found, recorded)
    if difference:
        return Check(what, difference, ok=False)
    took = sum(found.milliseconds.values())
    return Check(what, f"{found.engine} answers as recorded; first frame {took:.0f} ms", ok=True)


def compare(found: Inspection, recorded: Mapping[str, Any]) -> str:
    """How an answer differs from the recorded result object; empty if it does not.

    Verdicts must be equal, faulty logits within ``LOGIT_TOLERANCE``, and the masks of each type
    must overlap with a Dice of ``MASK_TOLERANCE_DICE``.
    """
    if found.verdict != recorded["verdict"]:
        return f"expected verdict {recorded['verdict']}, got {found.verdict} ({found.detail})"
    difference = abs(_logit(found.faulty_probability) - _logit(recorded["faulty_probability"]))
    if not difference <= LOGIT_TOLERANCE:
        expected, got = (
            "none" if value is None else f"{value:.4f}"
            for value in (recorded["faulty_probability"], found.faulty_probability)
        )
        return f"expected faulty_probability {expected}, got {got}"
    answered = found.to_json()["defects"]
    size_wh = found.size_wh or (0, 0)
    for class_id in {defect["class"] for defect in (*answered, *recorded["defects"])}:
        ours, theirs = (
            decode_rle(merge_rles([d["rle"] for d in defects if d["class"] == class_id]), size_wh)
            for defects in (answered, recorded["defects"])
        )
        overlap = dice(ours, theirs)
        if overlap < MASK_TOLERANCE_DICE:
            return (
                f"masks of type {class_id} overlap the recorded ones with a Dice of {overlap:.2f}"
            )
    return ""


def _logit(probability: float | None) -> float:
    if probability is None:
        return math.nan
    clipped = min(max(probability, 1e-6), 1 - 1e-6)
    return math.log(clipped / (1 - clipped))
