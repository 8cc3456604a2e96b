"""The service against the bare engine, and what it does at ten times its capacity.

python benchmarks/service.py ../shared/data/severstal/images

Each round takes the same frames twice: the engine alone (bytes in memory, a frame per core), and
the service with clients in a process of their own. Short rounds in turns: whoever else takes the
cores for a while meets both. Then 64 clients offer ten times as many frames a second as it has
served, by the clock: what is refused is not sent again.
"""

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steelsight.data.threads import frame_by_frame
from steelsight.engine import Inspector

MAIN = [sys.executable, "-c", "from steelsight.cli import main; main()"]


@contextmanager
def service(options: list[str]) -> Iterator[tuple[str, int]]:
    """Host and port, and the process id."""
    with tempfile.TemporaryDirectory() as data:
        command = [*MAIN, "serve", "--port", "0", "--data", data, "--keep", "none", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            found = re.search(r"at http://(\S+)/", process.stdout.readline())
            assert found
            try:
                yield found[1], process.pid
            finally:
                process.terminate()
                process.wait()


def post(connection: http.client.HTTPConnection, image: bytes, name: str) -> tuple[int, float]:
    """Status and seconds."""
    started = time.perf_counter()
    connection.request(
        "POST", "/v1/inspect", image, {"Content-Type": "image/jpeg", "X-Frame-Name": name}
    )
    answer = connection.getresponse()
    answer.read()
    return answer.status, time.perf_counter() - started


def clients(address: str, images: list[bytes], count: int) -> dict[str, Any]:
    """Sends every image once, by several clients that wait for their answers."""
    places = iter(range(len(images)))
    lock = threading.Lock()

    def one() -> list[tuple[int, float]]:
        told = []
        connection = http.client.HTTPConnection(address)
        while True:
            with lock:
                at = next(places, None)
            if at is None:
                return told
            told.append(post(connection, images[at], f"{at}.jpg"))

    started = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        told = [
            answer
            for future in [pool.submit(one) for _ in range(count)]
            for answer in future.result()
        ]
    took_s = time.perf_counter() - started
    assert {status for status, _ in told} == {200}
    return {"frames_per_s": len(images) / took_s, "median_s": statistics.median(s for _, s in told)}


def overload(
    address: str, images: list[bytes], count: int, seconds: float, rate: float
) -> dict[str, Any]:
    """Clients that send by the clock, ``rate`` frames a second in all."""
    begin = time.perf_counter()
    until = begin + seconds
    told: list[tuple[int, float]] = []
    live: list[tuple[int, float]] = []

    def one(first: int) -> None:
        connection = http.client.HTTPConnection(address)
        at = first
        while (due := begin + at / rate) < until:
            time.sleep(max(0.0, due - time.perf_counter()))
            # Another name: the same frame under the same name is known and costs nothing.
            image = images[at % len(images)] + at.to_bytes(4, "big")
            try:
                told.append(post(connection, image, f"{at}.jpg"))
            except (http.client.HTTPException, OSError):
                connection.close()
            at += count

    def ask_live() -> None:
        while time.perf_counter() < until:
            connection = http.client.HTTPConnection(address)
            started = time.perf_counter()
            connection.request("GET", "/v2/health/live")
            live.append((connection.getresponse().status, time.perf_counter() - started))
            time.sleep(0.2)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(count)]
    threads.append(threading.Thread(target=ask_live))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    served = [s for status, s in told if status == 200]
    refused = sorted(s for status, s in told if status == 503)
    return {
        "served_per_s": len(served) / seconds,
        "offered_per_s": len(told) / seconds,
        "others": sorted({status for status, _ in told} - {200, 503}),
        "refused_median_ms": 1e3 * statistics.median(refused) if refused else None,
        "refused_95_ms": 1e3 * refused[int(0.95 * len(refused))] if refused else None,
        "live": sorted({status for status, _ in live}),
        "live_most_ms": 1e3 * max(s for _, s in live),
    }


def bare(inspector: Inspector, images: list[bytes], threads: int) -> float:
    """Frames per second of the engine alone."""
    started = time.perf_counter()
    with frame_by_frame(), ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda image: inspector.inspect(image, "x.jpg"), images))
    return len(images) / (time.perf_counter() - started)


def resident_mb(pid: int) -> float:
    """Of the service, without its decoders."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found
    return int(found[1]) / 1024


def elsewhere(what: str, address: str, options: argparse.Namespace, *more: str) -> dict[str, Any]:
    """Runs the clients in a process of their own."""
    command = [sys.executable, __file__, str(options.folder), "--frames", str(options.frames)]
    done = subprocess.run(
        [*command, "--client", what, "--address", address, *more],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    """Prints medians of the rounds, and what happened under load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--client", choices=("steady", "overload"))
    parser.add_argument("--address")
    parser.add_argument("--count", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--mark", type=int, default=0)
    options = parser.parse_args()
    # Another content each time: what is known is not inspected again.
    mark = options.mark.to_bytes(4, "big")
    paths = sorted(options.folder.glob("*.jpg"))[: options.frames]
    images = [path.read_bytes() + mark for path in paths]
    if options.client == "steady":
        print(json.dumps(clients(options.address, images, options.count)))
        return
    if options.client == "overload":
        print(
            json.dumps(
                overload(options.address, images, options.count, options.seconds, options.rate)
            )
        )
        return
    threads = len(os.sched_getaffinity(0))
    inspector = Inspector.load(engine=options.engine, threads=threads, workers=threads)
    bare(inspector, images[:8], threads)
    alone, served = [], []
    with service(["--engine", options.engine]) as (address, _pid):
        for n in range(options.rounds + 1):
            more = ["--count", str(options.clients), "--mark", str(n)]
            rates = (
                bare(inspector, images, threads),
                elsewhere("steady", address, options, *more)["frames_per_s"],
            )
            if n:  # the first warms up
                alone.append(rates[0])
                served.append(rates[1])
            print(f"bare {rates[0]:.1f}, service {rates[1]:.1f} frames/s", file=sys.stderr)
    ratios = [b / a for a, b in zip(alone, served, strict=True)]
    capacity = statistics.median(served)
    with service(["--engine", options.engine, "--queue", "8"]) as (address, pid):
        more = ["--count", "64", "--rate", str(10 * capacity)]
        elsewhere("overload", address, options, "--seconds", "4", *more)
        before = resident_mb(pid)
        found = elsewhere("overload", address, options, "--seconds", str(options.seconds), *more)
        after = resident_mb(pid)
    print(
        json.dumps(
            {
                "bare_frames_per_s": round(statistics.median(alone), 2),
                "service_frames_per_s": round(capacity, 2),
                "service_of_bare": round(statistics.median(ratios), 3),
                "by_round": [round(r, 3) for r in sorted(ratios)],
                "overload": {
                    k: round(v, 1) if isinstance(v, float) else v for k, v in found.items()
                },
                "served_of_capacity": round(found["served_per_s"] / capacity, 3),
                "resident_mb": [round(before), round(after)],
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
