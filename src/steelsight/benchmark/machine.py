"""The machine it is measured on, and processes that are started anew."""

import json
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steelsight.benchmark.race import Spread
from steelsight.engine.runtime import Engine, available_cores
from steelsight.errors import EngineError

COLD_STARTS = 3
BUSY_SHARE = 0.5
"""Load before the start, as a share of the cores, from which times are good as ratios only."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured."""

    cpu: str
    cores_usable: int
    load_before: float
    """Processes that wanted to run in the minute before the start, on average."""

    @property
    def busy(self) -> bool:
        """Something else takes more than half of the cores."""
        return self.load_before > BUSY_SHARE * self.cores_usable


def machine() -> Machine:
    """This machine, now."""
    return Machine(_cpu_model(), available_cores(), round(os.getloadavg()[0], 2))


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Of a process of its own.

    Attributes:
        seconds: from its start to its first result line, over some starts; files are in the
            operating system's cache.
        peak_mb: most memory it ever held resident (MiB), over some frames.
    """

    seconds: Spread
    peak_mb: float


# A process that is started inherits the greatest memory of the one that starts it (Linux keeps the
# peak across exec), so a small one stands between.
_LAUNCHER = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
first = process.stdout.readline()
seconds = time.perf_counter() - started
_, said = process.communicate()
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([seconds, peak, process.returncode, bool(first), said.decode(errors="replace")]))
"""


def cold_start(
    bundle: Path,
    engine: Engine,
    threads: int,
    images: Sequence[Path],
    starts: int = COLD_STARTS,
    decision: Path | None = None,
) -> ColdStart:
    """Starts ``steelsight inspect`` anew: some times on the first image, then once on all.

    Raises:
        EngineError: it does not give a verdict.
    """
    options = ["--bundle", bundle, "--engine", engine, "--threads", threads]
    if decision is not None:
        options += ["--decision", decision]
    command = [sys.executable, "-m", "steelsight", "inspect"]
    seconds, peaks_mb = zip(
        *(
            first_line([*command, *map(str, [*given, *options])])
            for given in [*[images[:1]] * starts, images]
        ),
        strict=True,
    )
    return ColdStart(Spread.of(seconds[:starts]), max(peaks_mb))


def first_line(command: Sequence[str]) -> tuple[float, float]:
    """Runs a command to its end.

    Returns:
        Seconds from its start to its first line, and its greatest resident memory in MiB.

    Raises:
        EngineError: it fails or says nothing.
    """
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", _LAUNCHER, *command], capture_output=True, text=True, check=False
    )
    try:
        seconds, peak_kb, code, answered, said = json.loads(done.stdout)
    except ValueError:
        seconds, peak_kb, code, answered, said = 0.0, 0, done.returncode, False, done.stderr
    if code != 0 or not answered:
        last = (said.strip().splitlines() or ["nothing"])[-1]
        raise EngineError(f"expected a verdict of steelsight inspect, it ended with: {last}")
    return seconds, peak_kb / 1024


def peak_memory_mb() -> float:
    """Most memory that this process ever held resident, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
