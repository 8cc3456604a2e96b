"""Decoding in processes of their own: a decoder that crashes, hangs or swells costs one frame.

Image decoders are C code that reads what strangers wrote. Here they run in child processes. A child
serves one frame after the other through two pipes, and is replaced when anything about it is odd.
Whatever happens to it, the caller gets a frame that is right to the bit, or a ``DecodeError``.

A child is a fresh interpreter that runs this module, not a fork: threads and engines of the parent
are not copied, and its ``__main__`` is not imported again. Nothing is pickled, and an answer is
checked like any other input. A request is a head, JSON and the image; an answer is a head, JSON and
the pixels. A head holds the number of the request and the lengths of the other two.
"""

import fcntl
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import termios
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from io import BufferedReader, FileIO
from pathlib import Path
from struct import Struct
from struct import error as StructError  # noqa: N812
from threading import Condition, Thread
from types import TracebackType
from typing import Any, NoReturn, Self

import cv2
import numpy as np

from steelsight import __version__, imaging
from steelsight.defects import Reason
from steelsight.errors import DecodeError, EngineError, InputError, escaped
from steelsight.imaging import DecodePolicy, Frame

Decode = Callable[..., Frame]
"""``imaging.decode``, or what a test puts in its place."""

_HEAD = Struct("<QIQ")
"""Number of the request, bytes of JSON, bytes of image or pixels."""
_HELLO = f"steelsight {__version__} decodes".ljust(64).encode()
"""A version that was installed during the run does not say this."""
_LACKED_MEMORY_EXIT = 112
_START_PATIENCE_S = 10.0
_MOST_CHILDREN_PER_FRAME = 3
_START_PAUSES_S = (0.0, 0.2, 1.0)
_END_PATIENCE_S = 5.0
_DEATH_PATIENCE_S = 0.5
_PIPE_BYTES = 1 << 20
_MOST_ANSWER_JSON_BYTES = 1 << 20
_MOST_PRINTED_BYTES = 1 << 16
_FORMATS = frozenset({"jpeg", "png", "bmp", "tiff", "webp"})
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_MEMORY = re.compile(
    r"insufficient memory|out ?of ?memory|cannot allocate|bad_alloc|memoryerror", re.IGNORECASE
)
_DEFAULT_POLICY = DecodePolicy()


# ---------------------------------------------------------------------------------------- the pool


class Decoders:
    """A pool of decoder processes. Threads may share it; a call waits until a process is free.

    The processes start at once and in the background. One that dies or is ended is replaced at
    once, too; other calls go on meanwhile. A frame is lost only if its process has begun to read
    it; one that dies before that is replaced, and the frame goes to the next.

    A Severstal JPEG of 1600 x 256 takes 0.6 ms longer than in the own process (2.6 instead of 2.0
    ms) and 0.5 ms more processor time; a process holds 56 MB
    (``pytest -m soak -s tests/test_decoders.py -k overhead``, 2 cores, loaded).

    Args:
        workers: processes, and frames decoded at once.
        time_limit_s: for one frame, from the moment its process has received it. Time in which
            this process itself was stopped does not count.
        memory_limit_bytes: address space for one frame, beyond what a process has after its start.
            Per pixel, grey images take up to 6 bytes, coloured ones 16, WebP 20.
        command: starts a child; both limits are appended. For tests.

    Raises:
        InputError: a limit or number that is not positive.
        EngineError: no process can be started.

    Example:
        >>> with Decoders(workers=2) as decoders:
        ...     frame = decoders.decode(data, name="frame.jpg")
    """

    def __init__(
        self,
        workers: int = 1,
        *,
        time_limit_s: float = 2.0,
        memory_limit_bytes: int = 1 << 30,
        command: Sequence[str] | None = None,
    ) -> None:
        if workers < 1 or not time_limit_s > 0 or memory_limit_bytes < 1:
            raise InputError(
                "expected at least 1 decoder, and limits above 0, received "
                f"workers {workers}, {time_limit_s} s, {memory_limit_bytes} bytes"
            )
        self._time_limit_s = time_limit_s
        self._memory_limit_bytes = memory_limit_bytes
        # -P: a file in the current folder must not stand in for a library.
        command = command or (sys.executable or "python3", "-P", "-m", "steelsight.decoders")
        self._command = (*command, str(memory_limit_bytes), str(time_limit_s))
        self._environment = _child_environment()
        self._owner_pid = os.getpid()
        # The three below belong to the lock of this condition.
        self._changed = Condition()
        self._closed = False
        self._slots = [_Slot() for _ in range(workers)]
        self._free = deque(self._slots)
        for slot in self._slots:
            self._restart(slot)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def decode(
        self, data: bytes, *, name: str | None = None, policy: DecodePolicy = _DEFAULT_POLICY
    ) -> Frame:
        """As ``imaging.decode``: the same frame to the bit, and the same refusals.

        Args:
            data: an encoded image.
            name: may contradict the content by its suffix.
            policy: what is accepted.

        Raises:
            DecodeError: as from ``imaging.decode``; ``DECODER_CRASHED``, ``DECODER_HUNG`` or
                ``DECODER_MEMORY`` where no answer came.
            EngineError: the pool is closed, or no process can be started.
        """
        if not 0 < len(data) <= policy.max_bytes:
            # Refused by its length alone: no decoder sees it.
            return imaging.decode(data, name=name, policy=policy)
        # Numbers of numpy are as good as Python's in a policy.
        question = json.dumps({"name": name, "policy": asdict(policy)}, default=int).encode()
        slot = self._take()
        try:
            answer = self._ask(slot, question, data, policy.max_pixels)
        except _LostError as lost:
            self._check_open(lost)
            raise self._told(lost) from lost
        finally:
            # Whatever ended the conversation before its end, Ctrl-C included: it cannot go on.
            if slot.child is not None and not slot.child.fit:
                self._restart(slot)
            self._give_back(slot)
        if isinstance(answer, DecodeError):
            raise answer
        return answer

    def close(self) -> None:
        """Ends all processes at once. Calls that wait for one raise ``EngineError``."""
        if os.getpid() != self._owner_pid:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for slot in self._slots:
                if (child := slot.child) is not None:
                    child.kill()
            # Whoever uses a child closes its pipes: numbers of files must not be used again while
            # another thread still reads from them.
            self._changed.wait_for(lambda: len(self._free) == len(self._slots), _END_PATIENCE_S)
            for slot in self._free:
                slot.end()

    # ------------------------------------------------------------------------------------- inside

    def _check_open(self, cause: Exception | None = None) -> None:
        if self._closed:
            raise EngineError(
                "expected open decoders, received a frame after they were closed"
            ) from cause
        if os.getpid() != self._owner_pid:
            raise EngineError(
                "expected the process that made these decoders, received a frame in a fork of it; "
                "make Decoders in each process"
            )

    def _take(self) -> "_Slot":
        with self._changed:
            self._check_open()
            self._changed.wait_for(lambda: self._closed or self._free)
            self._check_open()
            # In turns, so that one that died while it had nothing to do is noticed soon.
            return self._free.popleft()

    def _give_back(self, slot: "_Slot") -> None:
        with self._changed:
            if self._closed:
                slot.end()
            self._free.append(slot)
            self._changed.notify_all()

    def _restart(self, slot: "_Slot") -> None:
        """Ends the child of a slot and starts another, without waiting for it."""
        slot.end()
        if self._closed:
            return
        try:
            slot.child = _Child(self._command, self._environment)
        except (OSError, ValueError) as error:
            # Tried again when a frame needs it.
            slot.failure = f"{type(error).__name__}: {error}"

    def _ask(
        self, slot: "_Slot", question: bytes, data: bytes, max_pixels: int
    ) -> Frame | DecodeError:
        """Asks a child; if it dies before it has read anything of the question, the next one."""
        for _ in range(_MOST_CHILDREN_PER_FRAME - 1):
            try:
                return self._ready_child(slot).ask(question, data, max_pixels, self._time_limit_s)
            except _LostError as lost:
                if lost.begun:
                    raise
        return self._ready_child(slot).ask(question, data, max_pixels, self._time_limit_s)

    def _ready_child(self, slot: "_Slot") -> "_Child":
        """A child that waits for a frame.

        A child may end before it has seen a frame, because memory is short for a moment or somebody
        ended it: that is no fault of the frame.
        """
        for pause_s in _START_PAUSES_S:
            if slot.child is None:
                time.sleep(pause_s)
                self._restart(slot)
            elif not slot.child.is_waiting():
                self._restart(slot)
            self._check_open()
            if slot.child is None:
                continue
            try:
                slot.child.greet(_START_PATIENCE_S)
                return slot.child
            except _LostError as lost:
                slot.failure = f"{lost.how}{lost.printed and f' ({lost.printed})'}"
                slot.end()
        self._check_open()
        raise EngineError(
            f"expected a decoder process, but none can be started: {slot.failure}; free memory or "
            "processes, or repair the installation, then run the same command again"
        )

    def _told(self, lost: "_LostError") -> DecodeError:
        if lost.reason is Reason.DECODER_MEMORY:
            return DecodeError(
                lost.reason,
                f"expected an image that decodes within {self._memory_limit_bytes / 2**20:,.0f} "
                "MiB, but its decoder wanted more; save it smaller, or raise memory_limit_bytes",
            )
        if lost.reason is Reason.DECODER_HUNG:
            return DecodeError(
                lost.reason,
                f"expected an answer of the decoder within {self._time_limit_s:g} s, received none "
                "and ended it; save the image anew, or raise time_limit_s for large images",
            )
        return DecodeError(
            lost.reason,
            f"expected a decoded image, but its decoder {lost.how}"
            f"{lost.printed and f' ({lost.printed})'}; look whether the file is damaged, and save "
            "it anew",
        )


class _Slot:
    """A place for one child: nobody's, or one thread's."""

    def __init__(self) -> None:
        self.child: _Child | None = None
        self.failure = ""

    def end(self) -> None:
        if self.child is not None:
            self.child.end()
            self.child = None


def _child_environment() -> dict[str, str]:
    # The child finds the packages that this process has found, in the same order.
    paths = dict.fromkeys([*filter(None, sys.path), str(Path(__file__).parents[1])])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        # Each thread would cost start time and address space, and decoders use none.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
    }


# ----------------------------------------------------------------------- one child, from outside


class _LostError(Exception):
    """A child gave no answer, or none that can be believed; it has ended.

    Attributes:
        reason: one of the three of decoders.
        how: it ended, for people.
        printed: its last words.
        begun: it may have seen the image.
    """

    def __init__(self, reason: Reason, how: str, printed: str = "", begun: bool = True) -> None:
        super().__init__(how)
        self.reason = reason
        self.how = how
        self.printed = printed
        self.begun = begun


class _Patience:
    """Time to wait. That in which this process was stopped does not count (Ctrl-Z, containers)."""

    _STEP_S = 0.25

    def __init__(self, left_s: float) -> None:
        self._left_s = left_s

    def wait(self, poller: select.poll) -> None:
        """Returns when something has happened.

        Raises:
            TimeoutError: nothing has.
        """
        while self._left_s > 0:
            step_s = min(self._left_s, self._STEP_S)
            began_s = time.monotonic()
            events = poller.poll(step_s * 1000)
            self._left_s -= min(time.monotonic() - began_s, step_s)
            if events:
                return
        raise TimeoutError


class _Child:
    """A decoder process, used by one thread at a time.

    Attributes:
        fit: it can be asked. False from a question to its complete answer.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        # What it prints needs no reader and no disk. The child limits the size.
        self._printed = os.memfd_create("steelsight-decoder")
        try:
            # A process group of its own: Ctrl-C in a terminal does not reach it.
            self._process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                bufsize=0,
                env=environment,
                process_group=0,
            )
        except BaseException:
            os.close(self._printed)
            raise
        if self._process.stdin is None or self._process.stdout is None:
            raise TypeError("a child has pipes")
        self._questions = self._process.stdin.fileno()
        self._answers = self._process.stdout.fileno()
        for pipe in (self._questions, self._answers):
            os.set_blocking(pipe, False)
            # A whole frame fits: one write, one read. The system may refuse.
            with suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._writable = select.poll()
        self._writable.register(self._questions, select.POLLOUT)
        self._readable = select.poll()
        self._readable.register(self._answers, select.POLLIN)
        self._asked = 0
        self._sent_bytes = 0
        self._greeted = False
        self.fit = True

    def is_waiting(self) -> bool:
        """False if it has died, or says what nobody asked."""
        return self.fit and not (self._greeted and self._readable.poll(0))

    def greet(self, patience_s: float) -> None:
        """Waits until it has started.

        Raises:
            _LostError: it has not.
        """
        if self._greeted:
            return
        try:
            hello = bytearray(len(_HELLO))
            self._receive(memoryview(hello), _Patience(patience_s))
            if hello != _HELLO:
                raise _LostError(
                    Reason.DECODER_CRASHED,
                    f"is not of version {__version__}: it began with {bytes(hello).strip()!r}",
                )
        except (OSError, EOFError, ValueError) as error:
            raise self._lost(error) from error
        self._greeted = True

    def ask(
        self, question: bytes, data: bytes, max_pixels: int, time_limit_s: float
    ) -> Frame | DecodeError:
        """Sends an image and waits for what it shows.

        Args:
            question: JSON.
            data: an encoded image.
            max_pixels: no answer may have more.
            time_limit_s: for receiving the image, and again for the answer.

        Raises:
            _LostError: no answer, or none that can be believed.
        """
        self.fit = False
        self._asked += 1
        self._sent_bytes = 0
        head = _HEAD.pack(self._asked, len(question), len(data))
        try:
            self._send([head + question, data], _Patience(time_limit_s))
            answer = self._answer(max_pixels, _Patience(time_limit_s))
        except MemoryError as error:  # for the pixels, in this process
            raise self._lost(error) from error
        except (OSError, EOFError, ValueError, RecursionError) as error:
            raise self._lost(error) from error
        self.fit = True
        return answer

    def kill(self) -> None:
        """Ends it from any thread; whoever uses it notices."""
        self._process.kill()

    def end(self) -> None:
        """Ends it and closes its pipes; may be called again."""
        with suppress(subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait(_END_PATIENCE_S)
        if self._printed >= 0:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            os.close(self._printed)
            self._printed = -1

    def _send(self, parts: list[bytes], patience: _Patience) -> None:
        views = [memoryview(part) for part in parts]
        while views:
            try:
                sent = os.writev(self._questions, views)
            except BlockingIOError:
                patience.wait(self._writable)
                continue
            self._sent_bytes += sent
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if views:
                views[0] = views[0][sent:]

    def _receive(self, room: memoryview, patience: _Patience) -> None:
        while room:
            try:
                received = os.readv(self._answers, [room])
            except BlockingIOError:
                patience.wait(self._readable)
                continue
            if not received:
                raise EOFError
            room = room[received:]

    def _answer(self, max_pixels: int, patience: _Patience) -> Frame | DecodeError:
        """Raises ``ValueError`` for anything that no decoder of ours says."""
        head = bytearray(_HEAD.size)
        self._receive(memoryview(head), patience)
        number, json_bytes, pixel_bytes = _HEAD.unpack(head)
        if (
            number != self._asked
            or json_bytes > _MOST_ANSWER_JSON_BYTES
            or pixel_bytes > max_pixels
        ):
            raise ValueError
        text = bytearray(json_bytes)
        self._receive(memoryview(text), patience)
        said = json.loads(text)
        if not isinstance(said, dict):
            raise ValueError
        if said.keys() == {"reason", "message"}:
            if pixel_bytes or not isinstance(said["message"], str):
                raise ValueError
            return DecodeError(Reason(said["reason"]), escaped(said["message"]))
        size_wh = _checked_size_wh(said, pixel_bytes)
        grey_hw = np.empty(size_wh[::-1], np.uint8)
        self._receive(grey_hw.data.cast("B"), patience)
        return Frame(grey_hw, said["sha256"], said["format"], tuple(said["notes"]))

    def _lost(self, error: BaseException) -> _LostError:
        """How it ended; ends it first, if it has not."""
        if isinstance(error, TimeoutError):
            lost = _LostError(Reason.DECODER_HUNG, "did not answer in time", self._last_words())
            self.end()
            return lost
        # It closed its end, or cannot be understood. If it is about to die, then of its own cause.
        if isinstance(error, (EOFError, BrokenPipeError)):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_DEATH_PATIENCE_S)
        code = self._process.poll()
        printed = self._last_words()
        begun = code is None or self._unread_bytes() < self._sent_bytes
        self.end()
        lacked_memory = isinstance(error, MemoryError) or code == _LACKED_MEMORY_EXIT
        if lacked_memory or (code not in (None, 0) and _NO_MEMORY.search(printed)):
            return _LostError(Reason.DECODER_MEMORY, "lacked memory", printed)
        if code is None:
            how = "closed its pipe" if isinstance(error, EOFError) else "gave a broken answer"
        elif code < 0:
            how = f"died of {_signal_name(-code)}"
        else:
            how = f"ended by itself with code {code}"
        return _LostError(Reason.DECODER_CRASHED, how, printed, begun)

    def _unread_bytes(self) -> int:
        """What lies in the pipe to the child; it outlives the child."""
        count = bytearray(4)
        fcntl.ioctl(self._questions, termios.FIONREAD, count)
        return int.from_bytes(count, sys.byteorder)

    def _last_words(self) -> str:
        size = os.fstat(self._printed).st_size
        lines = os.pread(self._printed, 2000, max(0, size - 2000)).split(b"\n")
        last = next((line for line in reversed(lines) if line.strip()), b"")
        return escaped(last.decode(errors="replace").strip()[:200])


def _checked_size_wh(said: dict[str, Any], pixel_bytes: int) -> tuple[int, int]:
    """Width and height of an answer whose every field is as it must be."""
    match said:
        case {
            "size_wh": [int(width), int(height)],
            "sha256": str(sha256),
            "format": str(format_name),
            "notes": list(notes),
            **others,
        } if not others:
            if (
                min(width, height) >= 1
                and width * height == pixel_bytes
                and _SHA256.fullmatch(sha256)
                and format_name in _FORMATS
                and all(isinstance(note, str) for note in notes)
            ):
                return int(width), int(height)
    raise ValueError


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# ------------------------------------------------------------------------ one child, from inside


def serve(
    memory_limit_bytes: int, time_limit_s: float, decode: Decode = imaging.decode
) -> NoReturn:
    """The child: answers one question after the other until its standard input closes.

    Args:
        memory_limit_bytes: for one image, beyond what the process has now.
        time_limit_s: for one image; guarded by the parent, and here for when that has died.
        decode: does the work.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    questions, answers = _own_pipes()
    cv2.setNumThreads(1)
    # Up to such a size glibc then keeps what is freed: the next frame needs no fresh pages.
    bytearray(31 << 20)
    Thread(target=_end_with_parent, args=(questions.fileno(),), daemon=True).start()
    _limit_resources(memory_limit_bytes)
    _write_all(answers, [_HELLO])
    try:
        while len(head := questions.read(_HEAD.size)) == _HEAD.size:
            number, json_bytes, data_bytes = _HEAD.unpack(head)
            question = json.loads(questions.read(json_bytes))
            data = questions.read(data_bytes)
            if len(data) < data_bytes:
                break
            # Only the last image's words matter, and old ones must not fill the room for new ones.
            os.ftruncate(2, 0)
            os.lseek(2, 0, os.SEEK_SET)
            # Counts time on the processor, also in C code that never returns. It can only run out
            # when the parent does not look after its own limit any more.
            signal.setitimer(signal.ITIMER_PROF, 2 * time_limit_s + 1)
            _write_all(answers, _answer_to(number, question, data, decode))
    except MemoryError:
        # Nothing is left for an answer, and what the libraries hold now nobody knows.
        os._exit(_LACKED_MEMORY_EXIT)
    except BrokenPipeError:
        pass
    os._exit(0)


def _answer_to(
    number: int, question: dict[str, Any], data: bytes, decode: Decode
) -> list[bytes | memoryview]:
    try:
        frame = decode(data, name=question["name"], policy=DecodePolicy(**question["policy"]))
    except DecodeError as error:
        if _lacked_memory(error, data):
            raise MemoryError from error
        said: dict[str, Any] = {"reason": error.reason, "message": str(error)}
        pixels = memoryview(b"")
    else:
        said = {
            "size_wh": frame.size_wh,
            "sha256": frame.sha256,
            "format": frame.format,
            "notes": frame.notes,
        }
        pixels = frame.grey_hw.data.cast("B")
    text = json.dumps(said).encode()
    return [_HEAD.pack(number, len(text), len(pixels)) + text, pixels]


def _lacked_memory(error: DecodeError, data: bytes) -> bool:
    """Whether a refusal is no fault of the image: libraries tell this in words of their own."""
    cause = error.__cause__
    if isinstance(cause, MemoryError) or (cause and _NO_MEMORY.search(str(cause))):
        return True
    if cause is None or not data.startswith(b"RIFF"):
        return False
    # libwebp calls everything damage. Canvas, the one before it, and the picture being decoded
    # take up to 16 bytes per pixel.
    try:
        width, height = imaging._webp_size(data)
        np.empty(16 * width * height, np.uint8)
    except MemoryError:
        return True
    except (DecodeError, StructError):
        pass
    return False


def _own_pipes() -> tuple[BufferedReader, int]:
    """The pipes under other numbers: a library that prints must not print into an answer."""
    questions, answers = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return BufferedReader(FileIO(questions)), answers


def _end_with_parent(questions: int) -> None:
    """Also in the middle of an image: nobody waits for its answer."""
    poller = select.poll()
    poller.register(questions, 0)  # only that it was closed
    poller.poll()
    os._exit(0)


def _limit_resources(memory_limit_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    for what, most in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + memory_limit_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, _MOST_PRINTED_BYTES),
    ):
        highest = resource.getrlimit(what)[1]
        if highest != resource.RLIM_INFINITY:
            most = min(most, highest)
        resource.setrlimit(what, (most, most))


def _write_all(answers: int, parts: Sequence[bytes | memoryview]) -> None:
    views = [memoryview(part) for part in parts]
    while views:
        written = os.writev(answers, views)
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views:
            views[0] = views[0][written:]


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]))
