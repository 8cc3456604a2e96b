"""Which engine ``engine="auto"`` is: the fastest one installed that answers as it should.

A choice is measured once and recorded in the user's cache folder, for this processor, these threads
and workers, these versions and this bundle. The environment variable ``STEELSIGHT_ENGINE``
(``onnxruntime``, ``openvino`` or ``cuda``) overrides it. No engine is imported that is not needed:
importing and measuring them takes seconds, a recorded choice milliseconds.
"""

import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelsight import __version__
from steelsight.bundle import PARITY, Bundle
from steelsight.defects import Inspection
from steelsight.engine.runtime import Engine, engine_version, installed_engines
from steelsight.errors import EngineError, InputError
from steelsight.masks import decode_rle, dice, merge_rles

if TYPE_CHECKING:
    from steelsight.engine.cascade import Inspector

VARIABLE = "STEELSIGHT_ENGINE"
LOGIT_TOLERANCE = 0.5
"""Engines and processors round differently; more than this would move verdicts."""
MASK_TOLERANCE_DICE = 0.97

_DRIVER = Path("/proc/driver/nvidia")
_ROUNDS = 5
"""Of measuring, after one to warm up. The engines take turns: a busy moment slows down both."""
_MOST_RECORDED = 32


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine that was chosen, and why.

    Attributes:
        engine: never ``AUTO``.
        milliseconds: median per frame of the self-test, by engine; empty if nothing was measured.
        refused: engines that are installed and may not be used, and why.
        recorded: taken from an earlier measurement.
        why: half a sentence for people.
    """

    engine: Engine
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    recorded: bool = False
    why: str = ""

    @property
    def sentence(self) -> str:
        """One line: the engine, the reason, and what was measured."""
        times = [f"{name} {ms:.1f} ms a frame" for name, ms in self.milliseconds.items()]
        refused = [f"{name} refused ({why})" for name, why in self.refused.items()]
        when = ["measured earlier"] if self.recorded else []
        return f"{self.engine}: {self.why}" + "".join(f"; {t}" for t in times + refused + when)


def choose_engine(bundle: Bundle, threads: int, workers: int = 1) -> Choice:
    """The engine for a bundle on this machine.

    With one engine installed it is that one. With several, each answers the bundle's self-test; of
    those that agree with the recorded answer, the one with the shortest time per frame is taken and
    recorded. A cache that cannot be read or written costs another measurement and nothing else.

    Args:
        bundle: measured with the decision that it carries.
        threads: inference threads of all workers.
        workers: frames in work at once.

    Raises:
        EngineError: no engine is installed, or none answers as recorded.
        InputError: ``STEELSIGHT_ENGINE`` names no engine.
    """
    wanted = os.environ.get(VARIABLE) or Engine.AUTO
    if wanted not in set(Engine):
        raise InputError(
            f"expected an engine of {', '.join(Engine)} in {VARIABLE}, got {wanted}; correct or "
            "unset it"
        )
    if wanted != Engine.AUTO:
        return Choice(Engine(wanted), why=f"{VARIABLE} says so")
    installed = installed_engines()
    if not installed:
        raise EngineError("expected an engine, none is installed; run: pip install onnxruntime")
    if len(installed) == 1:
        return Choice(installed[0], why="the only engine installed")
    if not _has_answer(bundle):
        # Nothing can be compared: the engine that made the bundle.
        why = f"no answer was recorded in {PARITY} to compare others with; export the bundle again"
        return Choice(Engine.ONNXRUNTIME, why=why)
    versions = {"steelsight": __version__, **{str(e): engine_version(e) for e in installed}}
    key: dict[str, Any] = {
        "processor": _processor(),
        "threads": threads,
        "workers": workers,
        "bundle": bundle.sha256,
        "versions": versions,
    }
    if Engine.CUDA in installed:
        key["gpus"] = _gpus()
    if (choice := _recorded(key)) is None:
        choice = _measured(bundle, installed, threads, workers)
        # A GPU that fails has a cause that can be mended, and that is no part of the key.
        if Engine.CUDA not in choice.refused:
            _record(key, choice)
    return choice


def self_test(inspector: "Inspector") -> tuple[Inspection, str]:
    """Inspects the bundle's self-test frame; how the answer differs from the recorded one.

    Returns:
        The answer, and its difference in one line; empty if there is none.
    """
    bundle = inspector.bundle
    found = inspector.inspect(bundle.self_test_path)
    if not _has_answer(bundle):
        return found, f"no answer was recorded in {PARITY}; export it again"
    difference = compare(found, bundle.parity["self_test"])
    if bundle.first_look_path is None or difference:
        return found, difference
    taken = inspector.take_in(bundle.self_test_path)
    # The frame holds defects: nothing would show that the first look is another one here.
    first = None if taken.frame is None else inspector.look(taken.frame.grey_hw).first_look
    ours = None if first is None else first.faulty_probability
    theirs = bundle.parity.get("first_look", {}).get("self_test_faulty_probability")
    if not abs(_logit(ours) - _logit(theirs)) <= LOGIT_TOLERANCE:
        return found, f"expected {theirs} of the first look, got {ours}"
    return found, ""


def _has_answer(bundle: Bundle) -> bool:
    recorded = bundle.parity.get("self_test")
    return (
        isinstance(recorded, dict)
        and {
            "verdict",
            "faulty_probability",
            "defects",
        }
        <= recorded.keys()
    )


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


# ---------------------------------------------------------------------------------------- measuring


def _measured(bundle: Bundle, engines: Sequence[Engine], threads: int, workers: int) -> Choice:
    from steelsight.engine.cascade import Inspector  # it imports this module

    inspectors: dict[str, Inspector] = {}
    refused: dict[str, str] = {}
    for engine in engines:
        try:
            # Not with the caller's decision: the recorded answer is that of the bundle's own.
            inspector = Inspector.load(
                bundle.folder, engine=engine, threads=threads, workers=workers
            )
            difference = self_test(inspector)[1]
        except Exception as error:  # an installation can be broken in any way
            difference = " ".join(str(error).split()) or type(error).__name__
        if difference:
            refused[engine] = difference
        else:
            inspectors[engine] = inspector
    if not inspectors:
        reasons = "; ".join(f"{engine}: {why}" for engine, why in refused.items())
        raise EngineError(
            f"expected an engine that answers the bundle's self-test as recorded, got none "
            f"({reasons}); run: steelsight doctor"
        )
    milliseconds: dict[str, float] = {}
    if len(inspectors) > 1:
        frame = bundle.self_test_path.read_bytes()
        times: dict[str, list[float]] = {engine: [] for engine in inspectors}
        for _ in range(_ROUNDS + 1):
            for name, inspector in inspectors.items():
                times[name].append(_milliseconds_per_frame(inspector, frame))
        milliseconds = {name: round(statistics.median(t[1:]), 2) for name, t in times.items()}
    fastest = min(inspectors, key=lambda name: milliseconds.get(name, 0.0))
    why = (
        "the fastest that answers the self-test as recorded"
        if milliseconds
        else "the only one that answers the self-test as recorded"
    )
    return Choice(Engine(fastest), milliseconds, refused, why=why)


def _milliseconds_per_frame(inspector: "Inspector", frame: bytes) -> float:
    """As the inspector will work: one after the other, or as many at once as it has workers."""
    frames = [frame] * inspector.workers
    started = time.perf_counter()
    if len(frames) == 1:
        inspector.inspect(frame)
    else:
        list(inspector.inspect_many(frames))
    return (time.perf_counter() - started) * 1e3 / len(frames)


def _gpus() -> list[str]:
    """Names of the GPUs and version of their driver, as the driver tells them."""
    told = [*sorted(_DRIVER.glob("gpus/*/information")), _DRIVER / "version"]
    lines = []
    for path in told:
        with suppress(OSError):
            lines.append(path.read_text(errors="replace").partition("\n")[0].strip())
    return lines


def _processor() -> str:
    """Its name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return f"{platform.machine()} {value.strip()}"
    except OSError:
        pass
    return f"{platform.machine()} {platform.processor()}"


# ---------------------------------------------------------------------------------------- recording


def _file() -> Path:
    # As the XDG base directory specification has it: a relative path is to be ignored.
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "steelsight/engines.json"


def _entries() -> list[dict[str, Any]]:
    """What was recorded; nothing if that is missing or damaged."""
    try:
        entries = json.loads(_file().read_bytes())["choices"]
        return [entry for entry in entries if isinstance(entry, dict)]
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _recorded(key: dict[str, Any]) -> Choice | None:
    for entry in _entries():
        if entry.get("key") != key:
            continue
        try:
            choice = Choice(
                Engine(entry["engine"]),
                {str(name): float(ms) for name, ms in entry["milliseconds"].items()},
                {str(name): str(why) for name, why in entry["refused"].items()},
                recorded=True,
                why=str(entry["why"]),
            )
        except (KeyError, ValueError, TypeError, AttributeError):
            continue
        if choice.engine in key["versions"] and choice.engine not in choice.refused:
            return choice
    return None


def _record(key: dict[str, Any], choice: Choice) -> None:
    entry = {
        "key": key,
        "engine": choice.engine,
        "milliseconds": choice.milliseconds,
        "refused": choice.refused,
        "why": choice.why,
    }
    others = [known for known in _entries() if known.get("key") != key]
    text = json.dumps({"choices": [entry, *others][:_MOST_RECORDED]}, indent=1)
    beside: Path | None = None
    try:
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: another process may be recording at the same time.
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=file.parent, prefix=".engines-", delete=False
        ) as stream:
            beside = Path(stream.name)
            stream.write(text + "\n")
        beside.replace(file)
    except (OSError, RuntimeError):  # read-only, full, no home: measured again the next time
        if beside is not None:
            with suppress(OSError):
                beside.unlink()
