"""How fast the store takes results, and how fast it answers, with 1,000,000 defects.

    python benchmarks/store.py [--defects 1000000] [--folder FOLDER]

Makes ten weeks of results with a seed: five defects to an inspection on average, on every second
frame, coils of 500 frames, two of a hundred reviewed, the last week's frames seen by a second run,
too. Prints the rate at which they were acknowledged in groups as batch runs make them (50 ms or 32
frames), the size of the file, and the milliseconds of each question: the first time after opening
the file, then the median and the most of 20.
"""

import argparse
import hashlib
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from steelsight.defects import Defect, Inspection, Reason, Verdict
from steelsight.store.queries import Filter, Results, Sort
from steelsight.store.store import Run, Store

WEEK_S = 7 * 86400
WEEKS, COIL_FRAMES, AHEAD = 10, 500, 512
BEGIN_S = 1_760_000_000
SIZE_WH = (1600, 256)
PAGE = 50


def run_of(key: str) -> Run:
    return Run(
        key=key,
        command="steelsight inspect frames/",
        source="frames/",
        model_id="model@aaaaaaaa",
        model_sha256="a" * 64,
        manifest="format = 2\n",
        bundle_folder="/bundle",
        decision_sha256="d" * 64,
        decision="version = 1\n",
        engine="openvino-int8",
        settings='{"version":"0"}',
        mm_per_px=0.8,
    )


def defect(rng: random.Random) -> Defect:
    w, h = rng.randint(8, 300), rng.randint(8, 120)
    x, y = rng.randint(0, SIZE_WH[0] - w), rng.randint(0, SIZE_WH[1] - h)
    columns = range(x, x + w, max(1, w // 20))
    rle = " ".join(f"{column * SIZE_WH[1] + y + 1} {h}" for column in columns)
    kind = rng.choices("1234", (13, 3, 73, 11))[0]
    return Defect(
        kind, w * h // 2, (x, y, w, h), w + 0.5, h * 0.7, rng.random() * 180, rng.random(), rle
    )


def inspection(rng: random.Random, number: int) -> Inspection:
    faulty = rng.random()
    verdict = Verdict.UNKNOWN if faulty > 0.99 else Verdict.NG if faulty > 0.5 else Verdict.OK
    n_defects = rng.randint(1, 19) if verdict is Verdict.NG else 0
    scores = {kind: rng.random() for kind in "1234"}
    unknown = verdict is Verdict.UNKNOWN
    return Inspection(
        image=f"camera/{number:07d}.jpg",
        sha256=hashlib.sha256(b"frame %d" % number).hexdigest(),
        verdict=verdict,
        reason=Reason.BLANK if unknown else None,
        detail="expected a picture of steel, got one flat grey level" if unknown else None,
        faulty_probability=None if unknown else faulty,
        class_probabilities={} if unknown else scores,
        defects=tuple(defect(rng) for _ in range(n_defects)),
        size_wh=SIZE_WH,
        model="model@aaaaaaaa",
        decision="d" * 8,
        engine="openvino-int8",
        milliseconds={"decode": 6.1, "gate": 80.2, "segment": 0.0, "decide": 0.1},
    )


def fill(path: Path, n_defects: int) -> float:
    """Writes the results; seconds spent in the store, without making them up."""
    rng = random.Random(7)
    now_s = [float(BEGIN_S)]
    total = n_defects // 5
    seconds = 0.0
    seen: list[tuple[int, Inspection]] = []
    written = 0
    with Store(path, clock=lambda: now_s[0]) as store:
        waiting: deque[Future[int]] = deque()
        for week in range(WEEKS):
            run = store.begin(run_of(f"week {week}"))
            for start in range(week * total // WEEKS, (week + 1) * total // WEEKS, 2000):
                end = min(start + 2000, (week + 1) * total // WEEKS)
                made = [inspection(rng, number) for number in range(start, end)]
                written += sum(len(one.defects) for one in made)
                started = time.perf_counter()
                for number, one in enumerate(made, start):
                    now_s[0] = BEGIN_S + number / total * WEEKS * WEEK_S
                    key = hashlib.sha256(b"key %d" % number).digest()
                    coil = f"coil {number // COIL_FRAMES}"
                    waiting.append(store.add(run, number, f"/data/{one.image}", one, key, coil))
                    if len(waiting) > AHEAD:
                        waiting.popleft().result()
                while waiting:
                    ids = waiting.popleft().result()
                seconds += time.perf_counter() - started
                if week == WEEKS - 1:
                    seen += [(ids - len(made) + i + 1, one) for i, one in enumerate(made)]
            store.finish(run, complete=True)
        again = store.begin(run_of("again"))
        for position, (id_, one) in enumerate(seen):
            waiting.append(
                store.add_known(
                    again, position, f"/data/{one.image}", one.image, id_, f"coil {position // 500}"
                )
            )
        while waiting:
            waiting.popleft().result()
        verdicts = (Verdict.OK, Verdict.NG)
        reviewed = rng.sample(range(1, total + 1), total // 50)
        for id_ in reviewed[:50]:
            store.review(id_, rng.choice(verdicts), "an inspector", "looked at it")
    # One by one each review waits for the disk; the rest is written as they would be.
    import apsw

    with apsw.Connection(str(path)) as connection:
        connection.executemany(
            "INSERT INTO reviews (inspection, who, reviewed_ms, verdict, note) "
            "VALUES (?, 'an inspector', 0, ?, 'looked at it')",
            ((id_, rng.choice(verdicts).value) for id_ in reviewed[50:]),
        )
    print(f"{written:,} defects in {total:,} inspections", flush=True)
    return written / seconds


def questions(results: Results) -> dict[str, Callable[[], object]]:
    week_ms = int((BEGIN_S + (WEEKS - 1) * WEEK_S) * 1000)
    edge = Filter(class_id="3", within_edge_mm=50)
    edge_week = Filter(class_id="3", within_edge_mm=50, since_ms=week_ms)
    overruled = Filter(overruled=True)
    return {
        "worst coils this week": lambda: results.worst_coils(week_ms),
        "worst coils of all": lambda: results.worst_coils(),
        "type 3 within 50 mm of the edge: defects": lambda: results.count_defects(edge),
        "  first page": lambda: list(results.defects(edge, limit=PAGE)),
        "  frames": lambda: results.count_inspections(edge),
        "  first page of frames": lambda: list(results.inspections(edge, limit=PAGE)),
        "  this week: defects": lambda: results.count_defects(edge_week),
        "  this week: frames": lambda: results.count_inspections(edge_week),
        "overruled": lambda: results.count_inspections(overruled),
        "  all rows": lambda: list(results.inspections(overruled)),
        "UNKNOWN": lambda: results.count_inspections(Filter(verdict=Verdict.UNKNOWN)),
        "a coil": lambda: list(results.inspections(Filter(coil="coil 7"))),
        "a name": lambda: list(results.inspections(Filter(name="*0012345.jpg"))),
        "newest page": lambda: list(results.inspections(sort=Sort.NEWEST, limit=PAGE)),
        "largest page": lambda: list(results.inspections(sort=Sort.AREA, limit=PAGE)),
        "counts by run": results.counts,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--defects", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "store.sqlite"
        rate = fill(path, given.defects)
        print(f"{rate:,.0f} defects a second, {path.stat().st_size / 1e6:,.0f} MB", flush=True)
        ask(path)


def ask(path: Path) -> None:
    with Results(path) as results:
        names = list(questions(results))
    for name in names:
        with Results(path) as results:
            question = questions(results)[name]
            milliseconds = []
            for _ in range(21):
                started = time.perf_counter()
                question()
                milliseconds.append((time.perf_counter() - started) * 1e3)
            first, *rest = milliseconds
            print(
                f"{name:45} first {first:6.1f} ms, then {statistics.median(rest):6.1f} ms, "
                f"most {max(rest):6.1f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
