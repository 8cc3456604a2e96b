"""Results to store, and the program of processes that are killed while they add them.

    python -m tests.store.results

It forks itself for each line ``add PATH FIRST`` on its input, so that a process is there at once:
the child adds results from number ``FIRST`` on, without end, and says ``ack NUMBER`` for each that
was acknowledged. ``kill`` ends it by SIGKILL. Imports nothing heavy.
"""

import hashlib
import os
import random
import signal
import sys
from collections import deque
from pathlib import Path

from steelsight.defects import Defect, Inspection, Reason, Verdict
from steelsight.store.store import Run, Store

MODEL, DECISION_SHA256 = "model@aaaaaaaa", "d" * 64
SIZE_WH = (1600, 256)
TYPES = "1234"


def run_of(key: str, mm_per_px: float | None = 0.5) -> Run:
    return Run(
        key=key,
        command="steelsight inspect frames/",
        source="frames/",
        model_id=MODEL,
        model_sha256="a" * 64,
        manifest="format = 2\n",
        bundle_folder="/bundle",
        decision_sha256=DECISION_SHA256,
        decision="version = 1\n",
        engine="fake-fp32",
        settings='{"version":"0"}',
        mm_per_px=mm_per_px,
    )


def key_of(number: int) -> bytes:
    return hashlib.sha256(b"key %d" % number).digest()


def result(number: int, *, name: str | None = None, **changes) -> Inspection:
    """Number 0, 4, 8 ... are OK, 1 and 2 NG with one and two defects, 3 UNKNOWN."""
    rng = random.Random(number)
    verdict = (Verdict.OK, Verdict.NG, Verdict.NG, Verdict.UNKNOWN)[number % 4]
    unknown = verdict is Verdict.UNKNOWN
    values = {
        "image": name or f"frame {number}.jpg",
        "sha256": hashlib.sha256(b"frame %d" % number).hexdigest(),
        "verdict": verdict,
        "reason": Reason.BLANK if unknown else None,
        "detail": "expected a picture of steel, got one flat grey level" if unknown else None,
        "faulty_probability": None if unknown else rng.random(),
        "class_probabilities": {} if unknown else {kind: rng.random() for kind in "4213"},
        "defects": tuple(defect(rng) for _ in range(number % 4 if verdict is Verdict.NG else 0)),
        "size_wh": SIZE_WH,
        "model": MODEL,
        "decision": DECISION_SHA256[:8],
        "engine": "fake-fp32",
        "milliseconds": {"decode": 1.5, "gate": 20.25},
        "notes": ("rotated by its EXIF tag",) if number % 7 == 0 else (),
    }
    return Inspection(**values | changes)


def defect(rng: random.Random, **changes) -> Defect:
    w, h = rng.randint(1, 300), rng.randint(1, 100)
    box = (rng.randint(0, SIZE_WH[0] - w), rng.randint(0, SIZE_WH[1] - h), w, h)
    values = {
        "class_id": rng.choice(TYPES),
        "area_px": rng.randint(1, w * h),
        "bbox_xywh": box,
        "length_px": rng.random() * 300,
        "width_px": rng.random() * 100,
        "orientation_deg": rng.random() * 180,
        "probability": rng.random(),
        "rle": f"{box[0] * SIZE_WH[1] + box[1] + 1} {h}",
    }
    return Defect(**values | changes)


def add_without_end(path: Path, first: int) -> None:
    with Store(path, group_ms=2, group_frames=8) as store:
        run = store.begin(run_of("killed"))
        waiting = deque()
        number = first
        while True:
            one = result(number)
            known = store.known(key_of(number))
            if known is None:
                future = store.add(run, number, "/frames", one, key_of(number), "coil")
            else:
                future = store.add_known(run, number, "/frames", one.image, known[0], "coil")
            waiting.append((number, future))
            number += 1
            while len(waiting) > 24 or (waiting and waiting[0][1].done()):
                done, future = waiting.popleft()
                future.result()
                _say(f"ack {done}")


def _say(line: str) -> None:
    # In one piece: nobody may take half a number for an answer of a killed process.
    os.write(1, f"{line}\n".encode())


def main() -> None:
    child = 0
    for line in sys.stdin:
        order, *given = line.split()
        if order == "add":
            child = os.fork()
            if not child:
                try:
                    add_without_end(Path(given[0]), int(given[1]))
                except BaseException as error:
                    _say(f"error {error!r}")
                os._exit(1)
            _say("started")
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            _say("dead")


if __name__ == "__main__":
    main()
