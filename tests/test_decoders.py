"""Decoder processes: what they do right is what imaging does, what they do wrong costs one frame.

Faults are injected by two children of the tests' own. One runs the real loop, but an image that
begins with ``FAULT`` carries Python code, which it obeys before it decodes the rest. The other
imports nothing and starts at once: to it, every image is code.
"""

import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from steelsight import decoders as module
from steelsight import imaging
from steelsight.data.threads import frame_by_frame
from steelsight.decoders import Decoders
from steelsight.defects import Reason
from steelsight.errors import DecodeError, EngineError, InputError
from steelsight.imaging import DecodePolicy

MIB = 1 << 20

FAULTY_CHILD = """
import ctypes, os, resource, sys, threading, time
import cv2, numpy as np
from steelsight import decoders, imaging

at_end, after_answer = [], []
write_all = decoders._write_all

def spy_on_answers(answers, parts):
    write_all(answers, [*parts, *after_answer])
    after_answer.clear()

decoders._write_all = spy_on_answers

def decode(data, *, name, policy):
    if data.startswith(b"FAULT"):
        code, data = data[5:].split(b"\\0", 1)
        exec(code, globals())
    frame = imaging.decode(data, name=name, policy=policy)
    while at_end:
        at_end.pop()()
    return frame

decoders.serve(int(sys.argv[1]), float(sys.argv[2]), decode)
"""

QUICK_CHILD = f"""
import json, os, re, struct, time

def read(size):
    data = b""
    while len(data) < size:
        if not (more := os.read(0, size - len(data))):
            os._exit(0)
        data += more
    return data

def say(said, pixels=b"", step=0, pixel_bytes=None):
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    size = len(pixels) if pixel_bytes is None else pixel_bytes
    os.write(1, HEAD.pack(number + step, len(text), size) + text + pixels)

GOOD = {{"size_wh": [4, 2], "sha256": "0" * 64, "format": "png", "notes": []}}
PIXELS = bytes(range(8))
HEAD = struct.Struct("{module._HEAD.format}")
os.write(1, {module._HELLO!r})
while True:
    number, json_bytes, data_bytes = HEAD.unpack(read(HEAD.size))
    read(json_bytes)
    exec(read(data_bytes))
"""


# ------------------------------------------------------------------------------------ instruments


def picture(seed: int = 7, height: int = 48, width: int = 80) -> npt.NDArray[np.uint8]:
    """Texture that no flip, turn or mix-up of frames leaves unnoticed."""
    rows, columns = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).integers(0, 60, (height, width))
    return (rows * 2 + columns + noise).clip(0, 255).astype(np.uint8)


def encoded(pixels: npt.NDArray[Any], fmt: str = "PNG", mode: str = "", **options: Any) -> bytes:
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, fmt, **options)
    return buffer.getvalue()


def with_fault(code: str, data: bytes | None = None) -> bytes:
    return b"FAULT" + code.encode() + b"\0" + (encoded(picture()) if data is None else data)


Outcome = tuple[Any, ...]


def outcome(decode: Callable[..., imaging.Frame], data: bytes, **options: Any) -> Outcome:
    """Everything that a caller can see."""
    try:
        frame = decode(data, **options)
    except DecodeError as error:
        return error.reason, str(error)
    grey_hw = frame.grey_hw
    assert grey_hw.dtype == np.uint8
    assert grey_hw.flags.c_contiguous
    assert grey_hw.flags.writeable
    return frame.sha256, frame.format, frame.notes, grey_hw.shape, grey_hw.tobytes()


def refusal(decoders: Decoders, data: bytes, begins: str = "expected ") -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decoders.decode(data)
    message = str(caught.value)
    assert message.startswith(begins)
    assert message.isprintable()
    return caught.value


def state_of(pid: int) -> str:
    """One letter; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children_of(pid: int, own: str = "decode") -> list[int]:
    """Decoder processes of a process that are not dead."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, *_ = (folder / "stat").read_text().rpartition(") ")[2].split()
            command = (folder / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state not in "ZX" and own in command:
            found.append(int(folder.name))
    return found


def pids(decoders: Decoders) -> list[int]:
    return [slot.child._process.pid for slot in decoders._slots if slot.child is not None]


def wait_until(condition: Callable[[], Any], limit_s: float = 30.0) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    script = tmp_path_factory.mktemp("decode") / "faulty_decoder.py"
    script.write_text(FAULTY_CHILD)
    return [sys.executable, "-P", str(script)]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    script = tmp_path_factory.mktemp("decode") / "quick_decoder.py"
    script.write_text(QUICK_CHILD)
    return [sys.executable, "-I", "-S", str(script)]


@pytest.fixture(scope="module")
def quick_pool(quick: list[str]) -> Iterator[Decoders]:
    with Decoders(1, time_limit_s=0.5, memory_limit_bytes=192 * MIB, command=quick) as decoders:
        yield decoders


@pytest.fixture(scope="module")
def pool(faulty: list[str]) -> Iterator[Decoders]:
    """One child, so that it must be whole again for the next frame."""
    with Decoders(1, time_limit_s=2.0, memory_limit_bytes=192 * MIB, command=faulty) as decoders:
        yield decoders


@pytest.fixture
def recovered(pool: Decoders) -> Iterator[None]:
    """After the test the pool decodes as if nothing had been, and holds one child."""
    yield
    data = encoded(picture(3))
    for _ in range(2):
        assert outcome(pool.decode, data) == outcome(imaging.decode, data)
    assert len(pids(pool)) == 1
    assert children_of(os.getpid(), "faulty_decoder") == pids(pool)


@pytest.fixture(scope="module")
def plain() -> Iterator[Decoders]:
    """As users have it."""
    with Decoders(2, time_limit_s=20) as decoders:
        yield decoders


# -------------------------------------------------------------------------------- the same answers


GREY, COLOUR = picture(), np.dstack([picture(1), picture(2), picture(3)])
DEEP = picture().astype(np.uint16) * 257


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return encoded(GREY, "JPEG", exif=exif)


IMAGES = {
    "grey.jpg": encoded(GREY, "JPEG"),
    "colour.jpg": encoded(COLOUR, "JPEG"),
    "progressive.jpg": encoded(COLOUR, "JPEG", progressive=True),
    "trailing.jpg": encoded(GREY, "JPEG") + b"\0" * 9,
    "no-end.jpg": encoded(GREY, "JPEG")[:-2],
    **{f"turned-{n}.jpg": turned(n) for n in (0, 1, 3, 6, 8, 9)},
    "grey.png": encoded(GREY),
    "colour.png": encoded(COLOUR),
    "palette.png": encoded(COLOUR, mode="P"),
    "alpha.png": encoded(COLOUR, mode="RGBA"),
    "two-levels.png": encoded(GREY, mode="1"),
    "deep.png": encoded(DEEP),
    "dark.png": encoded(DEEP // 16),
    "grey.bmp": encoded(GREY, "BMP"),
    "colour.bmp": encoded(COLOUR, "BMP"),
    "raw.tif": encoded(GREY, "TIFF"),
    "lzw.tif": encoded(COLOUR, "TIFF", compression="tiff_lzw"),
    "deflate.tif": encoded(GREY, "TIFF", compression="tiff_adobe_deflate"),
    "deep.tif": encoded(DEEP, "TIFF"),
    "lossy.webp": encoded(COLOUR, "WEBP"),
    "lossless.webp": encoded(COLOUR, "WEBP", lossless=True),
    "one-pixel.png": encoded(GREY[:1, :1]),
    "wrong.png": encoded(GREY, "JPEG"),
    "empty.png": b"",
    "text.txt": b"not an image",
    "other.gif": encoded(GREY, "GIF"),
    "name without end \udcff\n": encoded(GREY),
}
POLICIES = [
    DecodePolicy(),
    DecodePolicy(grey_only=True, append_end_marker=True, bit_depth=12),
    DecodePolicy(max_pixels=1000),
    DecodePolicy(max_bytes=200),
]


@pytest.mark.parametrize("policy", POLICIES, ids=["default", "camera", "few pixels", "few bytes"])
def test_same_as_imaging(plain: Decoders, policy: DecodePolicy) -> None:
    seen = set()
    for name, data in IMAGES.items():
        expected = outcome(imaging.decode, data, name=name, policy=policy)
        assert outcome(plain.decode, data, name=name, policy=policy) == expected, name
        seen.add(expected[0])
    assert len(seen) > 3


def test_same_as_imaging_for_damaged_files(plain: Decoders) -> None:
    chance = random.Random(11)
    seen = set()
    for name, data in IMAGES.items():
        for _ in range(8 if data else 0):
            damaged = bytearray(data[: chance.choice([len(data), chance.randrange(len(data))])])
            for _ in range(chance.randrange(1, 4) if damaged else 0):
                damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
            expected = outcome(imaging.decode, bytes(damaged))
            assert outcome(plain.decode, bytes(damaged)) == expected, name
            seen.add(expected[0])
    assert {Reason.TRUNCATED, Reason.DECODE_FAILED} < seen


def test_same_as_imaging_for_real_frames(plain: Decoders, shared_dir: Path) -> None:
    paths = sorted((shared_dir / "data/severstal/images").iterdir())[::25]
    assert len(paths) >= 20
    for path in paths:
        data = path.read_bytes()
        assert outcome(plain.decode, data, name=path.name) == outcome(imaging.decode, data)


def test_frames_larger_than_pipes(plain: Decoders) -> None:
    large = np.random.default_rng(5).integers(0, 256, (2500, 2000), np.uint8)
    data = encoded(large, compress_level=0)
    assert len(data) > 4 * MIB
    assert outcome(plain.decode, data) == outcome(imaging.decode, data)


def test_frames_share_nothing(plain: Decoders) -> None:
    first, second = (plain.decode(IMAGES["grey.png"]).grey_hw for _ in range(2))
    first[...] = 0
    assert np.array_equal(second, GREY)


def test_numbers_of_numpy_in_a_policy(plain: Decoders) -> None:
    policy = DecodePolicy(max_pixels=np.int64(5000), grey_only=np.bool_(True))  # type: ignore[arg-type]
    assert outcome(plain.decode, IMAGES["grey.png"], policy=policy)[1] == "png"
    assert outcome(plain.decode, IMAGES["colour.png"], policy=policy)[0] is Reason.COLOURED


def test_many_threads(plain: Decoders) -> None:
    images = [encoded(picture(n), "BMP") for n in range(160)]
    expected = [outcome(imaging.decode, data) for data in images]
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(lambda data: outcome(plain.decode, data), images)) == expected


# ------------------------------------------------------------------------------------------ faults


QUICK_FAULTS = {
    "segfault": ("os.kill(os.getpid(), 11)", Reason.DECODER_CRASHED, "died of SIGSEGV"),
    "abort": ("os.abort()", Reason.DECODER_CRASHED, "died of SIGABRT"),
    "kill": ("os.kill(os.getpid(), 9)", Reason.DECODER_CRASHED, "died of SIGKILL"),
    "exit code": ("os._exit(7)", Reason.DECODER_CRASHED, "code 7"),
    "exit without error": ("os._exit(0)", Reason.DECODER_CRASHED, "code 0"),
    "last words": ("1 / 0", Reason.DECODER_CRASHED, "(ZeroDivisionError: division by zero)"),
    "words that are no text": (
        "os.write(2, b'\\x1b[2J\\xff' * 99); os._exit(1)",
        Reason.DECODER_CRASHED,
        "\\x1b[2J\N{REPLACEMENT CHARACTER}",
    ),
    "C++ lacks memory": (
        "os.write(2, b\"terminate called after throwing an instance of 'std::bad_alloc'\\n\")\n"
        "os.abort()",
        Reason.DECODER_MEMORY,
        "within 192 MiB",
    ),
    "sleeps": ("time.sleep(60)", Reason.DECODER_HUNG, "within 0.5 s"),
    "never returns": ("while True: pass", Reason.DECODER_HUNG, "within 0.5 s"),
    "closes its pipe": ("os.close(1); time.sleep(60)", Reason.DECODER_CRASHED, "closed its pipe"),
    "ends in its answer": (
        "say(GOOD, b'1234', pixel_bytes=8); os._exit(9)",
        Reason.DECODER_CRASHED,
        "code 9",
    ),
    "sleeps in its answer": ("say(GOOD, b'1', pixel_bytes=8)", Reason.DECODER_HUNG, "within 0.5 s"),
}


@pytest.mark.parametrize(("code", "reason", "words"), QUICK_FAULTS.values(), ids=QUICK_FAULTS)
def test_fault_costs_one_frame(quick_pool: Decoders, code: str, reason: Reason, words: str) -> None:
    error = refusal(quick_pool, code.encode())
    assert error.reason is reason
    assert words in str(error)
    assert_answers(quick_pool)


def assert_answers(quick_pool: Decoders) -> None:
    for _ in range(2):
        frame = quick_pool.decode(b"say(GOOD, PIXELS)")
        assert np.array_equal(frame.grey_hw, [[0, 1, 2, 3], [4, 5, 6, 7]])


BROKEN_ANSWERS = {
    "no head": "os.write(1, b'\\xff' * 100)",
    "of another frame": "say(GOOD, PIXELS, step=-1)",
    "no JSON": "say(b'{')",
    "no text": "say(b'\\xff\\xfe\\xff')",
    "deep JSON": "say(b'[' * 100_000)",
    "no object": "say([])",
    "unknown reason": "say({'reason': 'fine', 'message': 'm'})",
    "reason of no type": "say({'reason': [], 'message': 'm'})",
    "message of no type": "say({'reason': 'empty', 'message': 1})",
    "refused with pixels": "say({'reason': 'empty', 'message': 'm'}, PIXELS)",
    "a field less": "del GOOD['notes']; say(GOOD, PIXELS)",
    "a field more": "say({**GOOD, 'more': 1}, PIXELS)",
    "size of other pixels": "say({**GOOD, 'size_wh': [4, 3]}, PIXELS)",
    "negative size": "say({**GOOD, 'size_wh': [-4, -2]}, PIXELS)",
    "no pixels": "say({**GOOD, 'size_wh': [0, 0]})",
    "size of no type": "say({**GOOD, 'size_wh': ['4', '2']}, PIXELS)",
    "too many pixels": "say({**GOOD, 'size_wh': [10**6, 10**6]}, PIXELS, pixel_bytes=10**12)",
    "long JSON": "say(b' ' * (1 << 20) + json.dumps(GOOD).encode(), PIXELS)",
    "no hash": "say({**GOOD, 'sha256': '0' * 63}, PIXELS)",
    "unknown format": "say({**GOOD, 'format': 'array'}, PIXELS)",
    "notes of no type": "say({**GOOD, 'notes': [1]}, PIXELS)",
}


@pytest.mark.parametrize("code", BROKEN_ANSWERS.values(), ids=BROKEN_ANSWERS)
def test_answers_are_not_believed(quick_pool: Decoders, code: str) -> None:
    error = refusal(quick_pool, code.encode())
    assert error.reason is Reason.DECODER_CRASHED
    assert "gave a broken answer" in str(error)
    assert_answers(quick_pool)


def test_control_characters_of_an_answer_are_escaped(quick_pool: Decoders) -> None:
    with pytest.raises(DecodeError, match=r"^a\\x1b\\n$"):
        quick_pool.decode(b"say({'reason': 'empty', 'message': 'a\\x1b\\n'})")
    assert_answers(quick_pool)


def test_answer_in_small_pieces(quick_pool: Decoders) -> None:
    code = b"""
write = os.write
os.write = lambda pipe, data: [write(pipe, data[i : i + 1]) for i in range(len(data))]
say(GOOD, PIXELS)
"""
    assert np.array_equal(quick_pool.decode(code).grey_hw.ravel(), range(8))


FAULTS = {
    "segfault": ("ctypes.string_at(0)", Reason.DECODER_CRASHED, "died of SIGSEGV"),
    "one large block": ("bytearray(1 << 33)", Reason.DECODER_MEMORY, "within 192 MiB"),
    "many blocks": (
        "blocks = []\nwhile True: blocks.append(bytearray(1 << 20))",
        Reason.DECODER_MEMORY,
        "within 192 MiB",
    ),
    "OpenCV's own": (
        "with imaging._any_failure_refused('jpeg'):\n"
        "    cv2.resize(np.zeros((9, 9), np.uint8), (40000, 40000))",
        Reason.DECODER_MEMORY,
        "within 192 MiB",
    ),
}


@pytest.mark.usefixtures("recovered")
@pytest.mark.parametrize(("code", "reason", "words"), FAULTS.values(), ids=FAULTS)
def test_fault_of_a_real_decoder(pool: Decoders, code: str, reason: Reason, words: str) -> None:
    error = refusal(pool, with_fault(code))
    assert error.reason is reason
    assert words in str(error)


@pytest.mark.usefixtures("recovered")
def test_answer_that_is_too_long_costs_no_frame(pool: Decoders) -> None:
    data = with_fault("after_answer.append(b'more')", IMAGES["grey.png"])
    before = pids(pool)
    assert np.array_equal(pool.decode(data).grey_hw, GREY)
    assert np.array_equal(pool.decode(IMAGES["grey.png"]).grey_hw, GREY)
    assert pids(pool) != before


@pytest.mark.usefixtures("recovered")
def test_printing_neither_blocks_nor_reaches_answers(pool: Decoders) -> None:
    code = """
for stream in (1, 2):
    try:
        for _ in range(64): os.write(stream, b"warning: libpng\\n" * 10_000)
    except OSError: pass
"""
    for _ in range(3):
        frame = pool.decode(with_fault(code, IMAGES["grey.png"]))
        assert np.array_equal(frame.grey_hw, GREY)


def test_a_child_that_does_not_read_blocks_nobody(quick_pool: Decoders) -> None:
    assert_answers(quick_pool)
    os.kill(pids(quick_pool)[0], signal.SIGSTOP)
    began_s = time.monotonic()
    assert refusal(quick_pool, bytes(16 * MIB)).reason is Reason.DECODER_HUNG
    assert time.monotonic() - began_s < 10
    assert_answers(quick_pool)


@pytest.mark.usefixtures("recovered")
def test_a_child_that_dies_while_idle_costs_no_frame(pool: Decoders) -> None:
    pool.decode(IMAGES["grey.png"])
    for data in (IMAGES["grey.png"], encoded(np.resize(GREY, (1500, 2000)), "BMP")):
        pid = pids(pool)[0]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: state_of(pid) == "Z")
        wait_until(lambda pid=pid: len(list(Path(f"/proc/{pid}/task").iterdir())) == 1)
        assert outcome(pool.decode, data) == outcome(imaging.decode, data)


def test_a_child_that_dies_before_it_has_taken_the_frame_costs_none(quick_pool: Decoders) -> None:
    """It is stopped, so that the frame lies in the pipe when it dies."""
    for data in (b"say(GOOD, PIXELS)", b"say(GOOD, PIXELS)#" + bytes(4 * MIB)):
        assert_answers(quick_pool)
        pid = pids(quick_pool)[0]
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda pid=pid: state_of(pid) == "T")
        timer = threading.Timer(0.1, os.kill, (pid, signal.SIGKILL))
        timer.start()
        if len(data) < MIB:
            assert quick_pool.decode(data).size_wh == (4, 2)
        else:
            assert "null" in str(refusal(quick_pool, data))  # what this child says to zeros
        timer.join()


def test_frames_that_no_child_lives_to_take(quick: list[str]) -> None:
    code = QUICK_CHILD.replace("while True:", "time.sleep(0.2)\nwhile os._exit(3):")
    with Decoders(1, command=[*quick[:3], "-c", code]) as decoders:
        assert "code 3" in str(refusal(decoders, b"say(GOOD, PIXELS)"))


@pytest.mark.usefixtures("recovered")
def test_ctrl_c_does_not_reach_children(pool: Decoders, tmp_path: Path) -> None:
    pool.decode(IMAGES["grey.png"])
    (pid,) = pids(pool)
    assert os.getpgid(pid) != os.getpgid(0)
    begun = tmp_path / "begun"
    code = f"open({str(begun)!r}, 'w'); time.sleep(0.2)"
    with ThreadPoolExecutor(1) as thread:
        ticket = thread.submit(pool.decode, with_fault(code, IMAGES["grey.png"]))
        wait_until(begun.exists)
        os.kill(pid, signal.SIGINT)
        assert np.array_equal(ticket.result().grey_hw, GREY)
    assert pids(pool) == [pid]


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """Also where the tests were started in the background, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("recovered", "ctrl_c_is_heard")
def test_ctrl_c_in_the_middle_of_a_frame(pool: Decoders) -> None:
    """What the interrupted frame would have got must not go to the next."""
    pool.decode(IMAGES["grey.png"])
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        pool.decode(with_fault("time.sleep(0.8)"))
    timer.join()


@pytest.mark.usefixtures("recovered")
def test_children_are_lean_and_limited(pool: Decoders) -> None:
    code = """
known = {'torch', 'onnxruntime', 'openvino', 'pytest', 'pydantic', 'rich', 'apsw', 'jinja2'}
assert not known & sys.modules.keys(), known & sys.modules.keys()
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
assert cv2.getNumThreads() == 1
assert threading.active_count() == 2
assert len(os.listdir('/proc/self/task')) == 2
"""
    assert np.array_equal(pool.decode(with_fault(code, IMAGES["grey.png"])).grey_hw, GREY)


@pytest.mark.parametrize("limit_mib", [1, 4, 8, 16, 32])
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.soak
def test_no_library_calls_little_memory_damage(fmt: str, limit_mib: int) -> None:
    data = encoded(np.kron(COLOUR, np.ones((40, 40, 1), np.uint8)), fmt)
    too_large = encoded(np.zeros((9000, 9000), np.uint8), "BMP")
    with Decoders(1, time_limit_s=30, memory_limit_bytes=limit_mib * MIB) as decoders:
        assert outcome(decoders.decode, data) in (
            outcome(imaging.decode, data),
            (Reason.DECODER_MEMORY, str(refusal(decoders, too_large))),
        )


def test_webp_calls_little_memory_damage_but_we_do_not() -> None:
    data = encoded(np.kron(COLOUR, np.ones((20, 20, 1), np.uint8)), "WEBP")
    with Decoders(1, time_limit_s=30, memory_limit_bytes=4 * MIB) as decoders:
        assert refusal(decoders, data).reason is Reason.DECODER_MEMORY
        damaged = bytearray(IMAGES["lossless.webp"])
        damaged[60:200] = b"\xff" * 140
        assert refusal(decoders, bytes(damaged), begins="damaged").reason is Reason.DECODE_FAILED


# --------------------------------------------------------------------------------------- the pool


def test_20_killed_decoders_cost_exactly_the_frames_in_work(
    faulty: list[str], tmp_path: Path
) -> None:
    workers, kills = 3, 20
    images = [encoded(picture(n)) for n in range(50)]
    expected = [outcome(imaging.decode, data) for data in images]
    results: dict[int, Outcome] = {}
    numbers = iter(range(1_000_000))
    lock = threading.Lock()
    enough = threading.Event()

    def work(decoders: Decoders) -> None:
        while True:
            with lock:
                n = next(numbers)
            if n >= 300 and enough.is_set():
                return
            # Each child keeps a file that says which frame it is working on.
            note = f"open('{tmp_path}/%d' % os.getpid(), 'w').write"
            code = f"{note}('{n}'); at_end.append(lambda: {note}('')); time.sleep(0.01)"
            results[n] = outcome(decoders.decode, with_fault(code, images[n % 50]))

    with (
        Decoders(workers, time_limit_s=30, command=faulty) as decoders,
        ThreadPoolExecutor(workers + 2) as threads,
    ):
        tickets = [threads.submit(work, decoders) for _ in range(workers + 2)]
        try:
            lost = kill_at_work(tmp_path, kills, until=lambda: any(t.done() for t in tickets))
        finally:
            enough.set()
        for ticket in tickets:
            ticket.result()
        wait_until(lambda: len(children_of(os.getpid(), "faulty_decoder")) >= workers)
    assert len(lost) == kills
    assert sorted(results) == list(range(len(results)))
    assert len(results) >= 300
    for n, result in results.items():
        if n in lost:
            assert result[0] is Reason.DECODER_CRASHED
            assert "SIGKILL" in result[1]
        else:
            assert result[1:] == expected[n % 50][1:]


def kill_at_work(notes: Path, kills: int, until: Callable[[], bool]) -> set[int]:
    """Kills decoders from outside; the numbers of the frames that they were working on.

    A child is stopped before it is killed: then it is certain what it was doing.
    """
    lost: set[int] = set()
    chance = random.Random(5)
    while len(lost) < kills and not until():
        time.sleep(0.01)
        at_work = [path for path in notes.iterdir() if state_of(int(path.name)) not in ("", "Z")]
        if not at_work:
            continue
        note = chance.choice(at_work)
        pid = int(note.name)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda pid=pid: state_of(pid) == "T")
        if number := note.read_text():
            lost.add(int(number))
            os.kill(pid, signal.SIGKILL)
            note.unlink()
        else:
            os.kill(pid, signal.SIGCONT)
    return lost


def test_pool_is_back_within_a_second(pool: Decoders) -> None:
    """On a loaded machine within three times what the start of a bare interpreter takes."""
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "import steelsight.imaging"], check=True)
    bare_s = time.monotonic() - began_s
    pool.decode(IMAGES["grey.png"])
    took_s = []
    for _ in range(3):
        refusal(pool, with_fault("os.kill(os.getpid(), 9)"))
        began_s = time.monotonic()
        pool.decode(IMAGES["grey.png"])
        took_s.append(time.monotonic() - began_s)
    assert min(took_s) < max(1.0, 3 * bare_s)


def test_others_go_on_while_one_hangs(quick: list[str]) -> None:
    with Decoders(2, command=quick, time_limit_s=1) as decoders:
        with ThreadPoolExecutor(1) as other:
            hung = other.submit(refusal, decoders, b"time.sleep(60)")
            done = 0
            while not hung.done():
                decoders.decode(b"say(GOOD, PIXELS)")
                done += 1
        assert hung.result().reason is Reason.DECODER_HUNG
        assert done > 20


def test_close_in_the_middle(quick: list[str], tmp_path: Path) -> None:
    decoders = Decoders(2, time_limit_s=60, command=quick)
    frame = f"open('{tmp_path}/%d' % os.getpid(), 'w'); time.sleep(60)".encode()
    with ThreadPoolExecutor(4) as threads:
        tickets = [threads.submit(decoders.decode, frame) for _ in range(4)]
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        began_s = time.monotonic()
        decoders.close()
        assert time.monotonic() - began_s < 3
        for ticket in tickets:
            with pytest.raises(EngineError, match="closed"):
                ticket.result()
    assert [state_of(int(path.name)) for path in tmp_path.iterdir()] == ["", ""]
    with pytest.raises(EngineError, match="closed"):
        decoders.decode(b"say(GOOD, PIXELS)")
    decoders.close()


def test_close_while_children_start() -> None:
    decoders = Decoders(2)
    ours = pids(decoders)
    decoders.close()
    assert [state_of(pid) for pid in ours] == ["", ""]


def test_closing_leaves_no_process_and_no_open_file(quick: list[str]) -> None:
    def open_files() -> set[str]:
        return {path.name for path in Path("/proc/self/fd").iterdir()}

    before = open_files()
    with Decoders(3, command=quick) as decoders:
        for code in (b"say(GOOD, PIXELS)", b"os._exit(1)", b"os.close(1); time.sleep(60)"):
            outcome(decoders.decode, code)
        ours = pids(decoders)
        assert len(ours) == 3
    assert [state_of(pid) for pid in ours] == ["", "", ""]
    assert open_files() <= before


PARENT = """
import sys, threading, time
from steelsight.decoders import Decoders
pool = Decoders({workers}, time_limit_s=0.3, command={command!r})
pool._time_limit_s = 60  # that of the parent alone: it does not end them
for fault in {faults!r}:
    threading.Thread(target=pool.decode, args=(fault,), daemon=True).start()
time.sleep(60)
"""


def test_killed_parent_leaves_no_process(faulty: list[str], tmp_path: Path) -> None:
    """Idle children, those that wait, and those that compute and let no other thread run."""
    works = ["time.sleep(60)", "import re; re.match('(a+)+$', 'a' * 60 + 'b')"]
    faults = [
        with_fault(f"open({str(tmp_path / str(i))!r}, 'w'); {w}") for i, w in enumerate(works)
    ]
    script = PARENT.format(workers=3, command=faulty, faults=faults)
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        try:
            wait_until(lambda: len(list(tmp_path.iterdir())) == len(works))
            ours = children_of(parent.pid, "faulty_decoder")
            assert len(ours) == 3
        finally:
            parent.kill()
    wait_until(lambda: all(state_of(pid) in ("", "Z") for pid in ours), 15)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["/nowhere/python"], "FileNotFoundError"),
        ([sys.executable, "-c", "raise SystemExit('out of order')"], "out of order"),
        ([sys.executable, "-c", "print('steelsight 0.0.1 decodes'.ljust(64))"], "not of version"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], "did not answer in time"),
    ],
    ids=["none", "ends", "other version", "says nothing"],
)
def test_none_can_be_started(
    monkeypatch: pytest.MonkeyPatch, command: list[str], words: str
) -> None:
    monkeypatch.setattr(module, "_START_PATIENCE_S", 0.2)
    monkeypatch.setattr(module, "_START_PAUSES_S", (0.0, 0.01, 0.02))
    if words != "did not answer in time":
        monkeypatch.setattr(module, "_START_PATIENCE_S", 20.0)
    with Decoders(1, command=command) as decoders:
        for _ in range(2):
            with pytest.raises(EngineError, match=words) as caught:
                decoders.decode(IMAGES["grey.png"])
            assert str(caught.value).isprintable()


def test_a_start_that_fails_once_costs_no_frame(quick: list[str], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = (
        f"import os, sys; mark = {str(mark)!r}\n"
        "if not os.path.exists(mark): open(mark, 'w'); sys.exit(1)\n"
        f"os.execv({quick[0]!r}, {quick!r} + sys.argv[1:])"
    )
    with Decoders(1, command=[sys.executable, "-c", code]) as decoders:
        assert_answers(decoders)
    assert mark.exists()


def test_files_in_the_current_folder_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cv2", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from here')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", ".")])
    with Decoders(1, time_limit_s=20) as decoders:
        assert np.array_equal(decoders.decode(IMAGES["grey.png"]).grey_hw, GREY)


def test_a_fork_cannot_use_the_pool(plain: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that read one pipe would get parts of each other's frames."""
    monkeypatch.setattr(plain, "_owner_pid", os.getpid() + 1)
    with pytest.raises(EngineError, match="fork"):
        plain.decode(IMAGES["grey.png"])
    plain.close()
    monkeypatch.undo()
    assert np.array_equal(plain.decode(IMAGES["grey.png"]).grey_hw, GREY)


def test_time_in_which_nobody_ran_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock_s[0])

    class Poller:
        left = 3

        def poll(self, wait_ms: float) -> list[tuple[int, int]]:
            clock_s[0] += 3600  # the machine slept
            self.left -= 1
            return [] if self.left else [(0, 1)]

    patience = module._Patience(1.0)
    patience.wait(Poller())  # type: ignore[arg-type]
    with pytest.raises(TimeoutError):
        patience.wait(Poller())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "limits",
    [
        {"workers": 0},
        {"time_limit_s": 0.0},
        {"time_limit_s": float("nan")},
        {"memory_limit_bytes": 0},
    ],
)
def test_impossible_limits(limits: Any) -> None:
    with pytest.raises(InputError, match="expected at least 1 decoder"):
        Decoders(**limits)


@pytest.mark.soak
def test_overhead(shared_dir: Path) -> None:
    """Prints what a decoder process costs; see the docstring of ``Decoders``."""
    paths = sorted((shared_dir / "data/severstal/images").iterdir())[:100]
    images = [path.read_bytes() for path in paths]

    def per_frame_ms(decode: Callable[..., imaging.Frame], pid: int) -> tuple[float, float]:
        def spent_ms() -> float:
            tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
            others_ms = sum(int(task.read_text().split()[0]) for task in tasks) / 1e6
            return time.process_time() * 1e3 + others_ms

        began_ms, before_ms = time.perf_counter() * 1e3, spent_ms()
        for data in images:
            decode(data)
        passed_ms = time.perf_counter() * 1e3 - began_ms
        return passed_ms / len(images), (spent_ms() - before_ms) / len(images)

    with frame_by_frame(), Decoders(1) as decoders:
        (pid,) = pids(decoders)
        rounds = []
        for _ in range(11):
            here, there = (per_frame_ms(d, pid) for d in (imaging.decode, decoders.decode))
            rounds.append((*here, *there))
        rss = next(
            line
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if line.startswith("VmRSS")
        )
    wall, cpu, pool_wall, pool_cpu = np.median(rounds[1:], axis=0)
    print(  # noqa: T201
        f"\nper frame: in process {wall:.2f} ms ({cpu:.2f} ms of processor time), decoder process "
        f"{pool_wall:.2f} ms ({pool_cpu:.2f} ms): {pool_wall - wall:+.2f} ms, "
        f"{pool_cpu - cpu:+.2f} ms of processor time, ratio {pool_cpu / cpu:.2f}; {rss}"
    )
    assert pool_cpu - cpu < 1.25
