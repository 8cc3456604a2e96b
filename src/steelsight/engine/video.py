"""Frames of a video, decoded in a process of its own.

Video decoders are large, read what strangers wrote, and make pictures of damage: they fill holes
from the frames before. All they do about it is to write a line. So the decoder runs in a child with
limits; the parent takes raw pixels through a pipe by a deadline, and every frame after a line of
complaint is refused. Only where each frame stands for itself (Motion JPEG) the next one counts.

The child is this file, run as a script: it needs OpenCV and nothing of ours.
"""

import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from struct import Struct
from typing import IO, TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from steelsight.errors import DecodeError

Pixels = NDArray[Any]

OPENING_LIMIT_S = 10.0
FRAME_LIMIT_S = 2.0
MEMORY_LIMIT_BYTES = 2 << 30
"""Address space of the child, beyond what it has after its start."""

_HEAD = Struct("<4sIIII")
"""``FRAM``, rows, columns, channels, bytes per number; ``SAYS``, bytes of JSON, 0, 0, 0."""
_FRAME, _SAYS = b"FRAM", b"SAYS"
_MOST_SAID_BYTES = 1 << 16
_MOST_FRAME_BYTES = 1 << 30
_LACKED_MEMORY_EXIT = 112
_MOST_CPU_S = 30.0
"""For a frame; ends a child whose parent has died and cannot end it."""


# -------------------------------------------------------------------------------------- the parent


def frames(
    path: Path,
    *,
    opening_limit_s: float = OPENING_LIMIT_S,
    frame_limit_s: float = FRAME_LIMIT_S,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    command: Sequence[str] | None = None,
) -> "Generator[Pixels | DecodeError]":
    """Frame after frame, each as pixels or as the reason why not.

    The last may be an error that stands for all that lack: the video breaks off, or its decoder
    crashed or hung.

    Args:
        path: the video.
        opening_limit_s: until the first word from the decoder, its start included.
        frame_limit_s: for each frame.
        memory_limit_bytes: see ``MEMORY_LIMIT_BYTES``.
        command: starts a child; path and limit are appended. For tests.

    Yields:
        ``(H, W)`` grey or ``(H, W, 3)`` RGB; uint8, or uint16 where the video has 16 bits.

    Raises:
        DecodeError: it is no video that can be read, or has no frame.
    """
    # -u: OpenCV prints the decoder's complaints to C's standard output, which else is buffered.
    command = command or (sys.executable or "python3", "-uP", str(Path(__file__).resolve()))
    with (
        tempfile.TemporaryFile() as printed,
        closing(_Child([*command, os.fspath(path), str(memory_limit_bytes)], printed)) as child,
    ):
        yield from _frames_of(child, path, opening_limit_s, frame_limit_s)


def read_frame(path: Path, number: int) -> "Pixels | DecodeError | None":
    """One frame, from 1; all before it are decoded, too. ``None`` if there are not so many."""
    with closing(frames(path)) as decoded:
        for i, content in enumerate(decoded, 1):
            if i == number:
                return content
    return None


def _frames_of(
    child: "_Child", path: Path, opening_limit_s: float, frame_limit_s: float
) -> "Generator[Pixels | DecodeError]":
    told = 0
    damage = ""
    about, end = _first_word(child, opening_limit_s), None
    while end is None:
        try:
            answer = child.answer(frame_limit_s)
        except (OSError, ValueError, EOFError) as error:
            yield child.lost(error, told, about["frames"])
            return
        if isinstance(answer, dict):
            # Damage is told before the frame that shows it.
            damage = _escaped(str(answer.get("damage", "")))
            end = answer if "last_ms" in answer else None
            continue
        told += 1
        if damage:
            yield _refusal("DECODE_FAILED", f"damaged video, at or before this frame: {damage}")
        else:
            yield answer
    missing, said = _missing(path, about, end, told), _escaped(str(end["said"]))
    if missing or said:
        expected = f"about {told + missing}" if missing else "more"
        yield _refusal(
            "TRUNCATED",
            f"the video breaks off: expected {expected} frames, received {told}; "
            f"{missing or 'some'} are missing" + (f": {said}" if said else ""),
        )
    elif not told:
        raise _refusal("EMPTY", "expected a video, received one without a frame")


def _first_word(child: "_Child", limit_s: float) -> dict[str, Any]:
    """How many frames there should be, and how many per second."""
    try:
        answer = child.answer(limit_s)
    except (OSError, ValueError, EOFError) as error:
        raise child.lost(error, 0, None) from error
    if isinstance(answer, dict) and "frames" in answer:
        return answer
    said = _escaped(str(answer["said"])) if isinstance(answer, dict) else "pixels"
    raise _refusal("NOT_AN_IMAGE", f"expected a video, received none that can be read: {said}")


def _missing(path: Path, about: dict[str, Any], end: dict[str, Any], told: int) -> int:
    """How many frames the file's header promises beyond those that came."""
    promised, per_s = about["frames"], about["per_s"]
    if not 0 < promised < 1 << 40:  # it says nothing
        return 0
    if path.suffix.lower() in (".avi", ".mp4", ".mov", ".m4v"):
        return max(0, int(promised) - told)  # they hold an index of all frames
    if path.suffix.lower() not in (".mkv", ".webm"):
        return 0  # MPEG streams have no header that could tell
    # These hold their length in time; OpenCV multiplies it by a rate, which may be none.
    lacking_s = promised / per_s - (end["last_ms"] / 1e3 + 1 / per_s) if per_s > 0 else 0
    return round(lacking_s * per_s) if lacking_s * per_s > 1.5 else 0


class _Child:
    """The decoder's process."""

    def __init__(self, command: Sequence[str], printed: IO[bytes]) -> None:
        self._printed = printed
        environment = os.environ | {
            # Files of other kinds could name further files, or addresses in the network.
            "OPENCV_FFMPEG_CAPTURE_OPTIONS": "protocol_whitelist;file|format_whitelist;"
            "avi,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpeg,mpegvideo",
            # Complaints of the decoder, and nothing else, on its standard error.
            "OPENCV_FFMPEG_DEBUG": "1",
            "OPENCV_FFMPEG_LOGLEVEL": "16",
            "OPENCV_LOG_LEVEL": "OFF",
        }
        try:
            self._process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=printed,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours
            )
        except OSError as error:
            raise _refusal(
                "UNREADABLE", f"the video decoder could not be started: {error.strerror}"
            ) from error
        assert self._process.stdout is not None  # noqa: S101 - a pipe
        self._answers = self._process.stdout.fileno()
        os.set_blocking(self._answers, False)

    def answer(self, limit_s: float) -> Pixels | dict[str, Any]:
        """The next frame, or what the child says.

        Raises:
            TimeoutError: nothing whole came in time.
            EOFError: the child closed its end.
            ValueError: it cannot be understood.
        """
        deadline = time.monotonic() + limit_s
        kind, a, b, channels, size = _HEAD.unpack(self._read(_HEAD.size, deadline))
        if kind == _SAYS and a <= _MOST_SAID_BYTES:
            said = json.loads(self._read(a, deadline))
            if isinstance(said, dict):
                return said
        length = a * b * channels * size
        if kind != _FRAME or channels not in (1, 3) or size not in (1, 2):
            raise ValueError
        if not 0 < length <= _MOST_FRAME_BYTES:
            raise ValueError
        pixels = np.frombuffer(self._read(length, deadline), np.uint8 if size == 1 else np.uint16)
        return pixels.reshape((a, b, 3) if channels == 3 else (a, b))

    def _read(self, size: int, deadline: float) -> bytearray:
        data = bytearray(size)
        view, at = memoryview(data), 0
        while at < size:
            ready, _, _ = select.select([self._answers], [], [], deadline - time.monotonic())
            if not ready:
                raise TimeoutError
            count = os.readv(self._answers, [view[at:]])
            if not count:
                raise EOFError
            at += count
        return data

    def lost(self, error: Exception, told: int, promised: float | None) -> "DecodeError":
        """What became of it, in words; ends it if need be."""
        if isinstance(error, EOFError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
        code = self._process.poll()
        self._end()
        size = os.fstat(self._printed.fileno()).st_size
        tail = os.pread(self._printed.fileno(), 300, max(0, size - 300)).decode(errors="replace")
        last = f": {_escaped(tail.strip().splitlines()[-1][:200])}" if tail.strip() else ""
        if isinstance(error, TimeoutError):
            reason, how = "DECODER_HUNG", "did not answer in time"
        elif code == _LACKED_MEMORY_EXIT:
            reason, how = "DECODER_MEMORY", "lacked memory"
        else:
            reason = "DECODER_CRASHED"
            how = f"ended with code {code}" if code is not None else "gave a broken answer"
        left = f" of about {int(promised)}" if promised and 0 < promised < 1 << 40 else ""
        return _refusal(
            reason,
            f"the video decoder {how} after {told}{left} frames; the rest is not inspected{last}",
        )

    def close(self) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None  # noqa: S101 - a pipe
        self._process.stdout.close()


def _refusal(reason: str, message: str) -> "DecodeError":
    from steelsight.defects import Reason
    from steelsight.errors import DecodeError

    return DecodeError(Reason[reason], message)


def _escaped(text: str) -> str:
    from steelsight.errors import escaped

    return escaped(" ".join(text.split()))


# ------------------------------------------------------------------------ the child, from inside

_GREY_WITHIN = 8
"""Levels between the colours of a pixel that is grey. Grey is stored as colour with both chroma
values 128; rounding and compression move them by one, seldom two: by 2 is 8 levels at most."""
_EACH_FOR_ITSELF = {"mjpg", "jpeg", "mjpa", "mjpb", "png ", "mpng"}
_GREY_16 = int.from_bytes(b"Y1\0\x10", "little")


def _serve(path: bytes, memory_limit_bytes: int) -> NoReturn:
    answers = os.dup(1)
    os.dup2(2, 1)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    import cv2

    cv2.setNumThreads(1)
    _limit_resources(memory_limit_bytes)
    try:
        _decode_all(cv2, path, answers)
    except (MemoryError, cv2.error) as error:
        no_memory = isinstance(error, MemoryError) or error.code == cv2.Error.StsNoMem
        sys.stderr.write(f"{error}\n")
        os._exit(_LACKED_MEMORY_EXIT if no_memory else 1)
    except BrokenPipeError:
        pass
    os._exit(0)


def _decode_all(cv2: Any, path: bytes, answers: int) -> None:
    # By number: a name could be one that FFmpeg reads as a pattern or an address.
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        _say(answers, {"said": f"it cannot be read: {error.strerror}"})
        return
    # One thread: complaints come with their frame, and always the same.
    video = cv2.VideoCapture(f"/proc/self/fd/{file}", cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    if not video.isOpened():
        _say(answers, {"said": _complaints()})
        return
    if int(video.get(cv2.CAP_PROP_CODEC_PIXEL_FORMAT)) == _GREY_16:
        video.set(cv2.CAP_PROP_CONVERT_RGB, 0)  # else the lower 8 bits are cut off
    promised, per_s = (video.get(p) for p in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
    codec = int(video.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=True)
    each_for_itself = codec.decode("latin-1").lower() in _EACH_FOR_ITSELF
    _complaints()
    _say(answers, {"frames": promised, "per_s": per_s})
    damage, last_ms = "", 0.0
    while True:
        signal.setitimer(signal.ITIMER_PROF, _MOST_CPU_S)
        found, pixels = video.read()
        complaints = _complaints()
        if not found:
            break
        last_ms = video.get(cv2.CAP_PROP_POS_MSEC)
        now = complaints if each_for_itself else damage or complaints
        if now != damage:
            _say(answers, {"damage": now})
            damage = now
        _send(answers, _grey_if_grey(cv2, pixels))
    _say(answers, {"last_ms": last_ms, "said": complaints})


def _grey_if_grey(cv2: Any, pixels: Pixels) -> Pixels:
    """Grey where no pixel has a colour, else RGB.

    From the converted picture, not from the luma plane: most videos use 16 to 235 of it, some 0 to
    255, and only the conversion knows which.
    """
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return pixels.reshape(pixels.shape[:2])
    blue, green, red = cv2.split(pixels)
    pairs = ((blue, green), (green, red), (red, blue))
    if all(cv2.absdiff(a, b).max() <= _GREY_WITHIN for a, b in pairs):
        grey: Pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
        return grey
    rgb: Pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return rgb


def _complaints() -> str:
    """What was written to standard error since the last time."""
    size = os.fstat(2).st_size
    if not size:
        return ""
    text = os.pread(2, 500, 0).decode(errors="replace")
    os.ftruncate(2, 0)
    os.lseek(2, 0, os.SEEK_SET)
    return " ".join(text.split())


def _say(answers: int, said: dict[str, Any]) -> None:
    text = json.dumps(said).encode()
    _write(answers, _HEAD.pack(_SAYS, len(text), 0, 0, 0) + text)


def _send(answers: int, pixels: Pixels) -> None:
    pixels = np.ascontiguousarray(pixels)
    rows, columns, *channels = pixels.shape
    _write(answers, _HEAD.pack(_FRAME, rows, columns, *(channels or [1]), pixels.itemsize))
    _write(answers, pixels.data.cast("B"))


def _write(answers: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(answers, view) :]


def _limit_resources(memory_limit_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    for what, most in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + memory_limit_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        highest = resource.getrlimit(what)[1]
        if highest != resource.RLIM_INFINITY:
            most = min(most, highest)
        resource.setrlimit(what, (most, most))


if __name__ == "__main__":
    _serve(os.fsencode(sys.argv[1]), int(sys.argv[2]))
