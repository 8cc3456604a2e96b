"""Frames of videos: grey where the camera is grey, and never a made-up one."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from steelsight.defects import Reason
from steelsight.engine import video
from steelsight.engine.sources import Source, Sources, read_origin
from steelsight.errors import DecodeError
from steelsight.imaging import DecodePolicy, from_array

FRAMES = 14
HEIGHT, WIDTH = 96, 128

KINDS = [("MJPG", "a.avi"), ("mp4v", "a.mp4"), ("FFV1", "a.mkv"), ("VP80", "a.webm")]


def pictures(count: int = FRAMES) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(1).integers(0, 20, (count, HEIGHT, WIDTH))
    moving = np.stack([(rows * 2 + columns + 7 * i) % 180 for i in range(count)])
    return (moving + noise).astype(np.uint8)


def record(path: Path, codec: str, grey: np.ndarray, *, tint: int | None = None) -> Path:
    """Writes a video; as colour, with one channel raised, if ``tint`` is given."""
    depth = cv2.CV_8U if grey.dtype == np.uint8 else cv2.CV_16U
    settings = [cv2.VIDEOWRITER_PROP_IS_COLOR, int(tint is not None)]
    settings += [cv2.VIDEOWRITER_PROP_DEPTH, depth]
    size = (grey.shape[2], grey.shape[1])
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), 25, size, settings
    )
    if not writer.isOpened():
        pytest.skip(f"this OpenCV cannot write {codec}")
    for frame in grey:
        if tint is not None:
            frame = cv2.merge([frame, frame, frame + np.uint8(tint)])
        writer.write(frame)
    writer.release()
    return path


def read(path: Path) -> list[Source]:
    taken = list(Sources([path]))
    assert len({s.name for s in taken}) == len({s.origin for s in taken}) == len(taken)
    return taken


def refusals(sources: list[Source]) -> dict[int, Reason]:
    """By number of the frame, from 1."""
    return {
        number: source.content.reason
        for number, source in enumerate(sources, 1)
        if isinstance(source.content, DecodeError)
    }


@pytest.mark.parametrize(("codec", "name"), KINDS)
@pytest.mark.parametrize("tint", [None, 0], ids=["grey", "grey as colour"])
def test_a_grey_video_stays_grey(tmp_path, codec, name, tint):
    grey = pictures()
    path = record(tmp_path / name, codec, grey, tint=tint)
    sources = read(path)
    assert [s.name for s in sources] == [f"{name}#{i:06d}" for i in range(1, FRAMES + 1)]
    assert [s.origin for s in sources] == [f"{path}::{i}" for i in range(1, FRAMES + 1)]
    for source, expected in zip(sources, grey, strict=True):
        assert source.content.shape == (HEIGHT, WIDTH)
        assert source.content.dtype == np.uint8
        # Compression costs; a luma plane taken for grey would be off by 7.
        assert np.abs(source.content.astype(int) - expected).mean() < 5
        assert from_array(source.content, policy=DecodePolicy(grey_only=True)).grey_hw is not None
    if codec == "FFV1":
        assert all((s.content == g).all() for s, g in zip(sources, grey, strict=True))
    assert (read_origin(sources[9].origin) == sources[9].content).all()
    assert Sources([path]).count() is None


@pytest.mark.parametrize(("codec", "name"), KINDS)
def test_a_coloured_video_is_refused_like_other_colours(tmp_path, codec, name):
    sources = read(record(tmp_path / name, codec, pictures(3), tint=60))
    for source in sources:
        assert source.content.shape == (HEIGHT, WIDTH, 3)
        red, _, blue = source.content.reshape(-1, 3).mean(axis=0)
        assert red > blue + 40
        with pytest.raises(DecodeError) as caught:
            from_array(source.content, policy=DecodePolicy(grey_only=True))
        assert caught.value.reason is Reason.COLOURED


def test_sixteen_bits_are_kept(tmp_path):
    grey = pictures(3).astype(np.uint16) * 257
    sources = read(record(tmp_path / "a.mkv", "FFV1", grey))
    assert all((s.content == g).all() for s, g in zip(sources, grey, strict=True))
    assert sources[0].content.dtype == np.uint16


# ----------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "a.webm"])
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_a_cut_video_says_how_much_is_missing(tmp_path, name, share):
    codec = next(codec for codec, other in KINDS if other == name)
    path = record(tmp_path / name, codec, pictures())
    whole = read(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    sources = read(path)
    *_, last = sources
    seen = len(sources) - 1
    assert seen < FRAMES
    assert last.name == f"{name}#{seen + 1:06d}"
    assert last.content.reason is Reason.TRUNCATED
    assert f"{FRAMES - seen} are missing" in str(last.content)
    for source, before in zip(sources[:-1], whole, strict=False):
        assert isinstance(source.content, DecodeError) or (source.content == before.content).all()
    assert set(refusals(sources)) <= {seen, seen + 1}
    with pytest.raises(DecodeError, match="breaks off"):
        read_origin(last.origin)


def test_a_cut_mp4_has_no_index(tmp_path):
    path = record(tmp_path / "a.mp4", "mp4v", pictures())
    path.write_bytes(path.read_bytes()[:-200])
    (source,) = read(path)
    assert source.name == "a.mp4"
    assert source.content.reason is Reason.NOT_AN_IMAGE


@pytest.mark.parametrize(("codec", "name"), KINDS[:3])
def test_what_the_decoder_mends_is_refused(tmp_path, codec, name):
    """Frames that differ from those of the whole video must not pass."""
    path = record(tmp_path / name, codec, pictures())
    whole = read(path)
    data = bytearray(path.read_bytes())
    at = len(data) // 2
    data[at : at + 6] = bytes(x ^ 0x5A for x in data[at : at + 6])
    path.write_bytes(data)
    sources = read(path)
    assert len(sources) >= FRAMES
    refused = refusals(sources)
    assert set(refused.values()) == {Reason.DECODE_FAILED}
    for number, (source, before) in enumerate(zip(sources, whole, strict=False), 1):
        assert number in refused or (source.content == before.content).all()
    # Each JPEG stands for itself; the others build upon each other.
    first = min(refused)
    assert set(refused) == ({first} if codec == "MJPG" else set(range(first, FRAMES + 1)))


def test_a_text_that_names_other_files_is_no_video(tmp_path):
    record(tmp_path / "real.avi", "MJPG", pictures(2))
    for text in (
        f"ffconcat version 1.0\nfile '{tmp_path}/real.avi'\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/real.avi\n#EXT-X-ENDLIST\n",
    ):
        (tmp_path / "a.mp4").write_text(text)
        (source,) = read(tmp_path / "a.mp4")
        assert source.content.reason is Reason.NOT_AN_IMAGE


def test_names_that_mean_something_to_ffmpeg(tmp_path):
    for name in ("%03d.avi", "concat:a|b.avi", "new\nline.avi", os.fsdecode(b"\xff.avi")):
        record(tmp_path / "a.avi", "MJPG", pictures(2)).rename(tmp_path / name)
        sources = read(tmp_path / name)
        assert [s.content.shape for s in sources] == [(HEIGHT, WIDTH)] * 2
        assert (read_origin(sources[1].origin) == sources[1].content).all()


# ------------------------------------------------------------------------------- odd children


def child(code: str) -> list[str]:
    """A decoder that says it has 9 frames, gives two, then does as told."""
    return [
        sys.executable,
        "-c",
        "import os, sys, time, signal\n"
        "from steelsight.engine.video import _say, _send, _HEAD\n"
        "import numpy as np\n"
        "_say(1, {'frames': 9, 'per_s': 25.0})\n"
        "for _ in range(2): _send(1, np.zeros((4, 5), np.uint8))\n" + code,
    ]


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", Reason.DECODER_CRASHED, "code -11"),
        (
            "print('no luck', file=sys.stderr); os._exit(3)",
            Reason.DECODER_CRASHED,
            "code 3 .*no luck",
        ),
        ("os._exit(112)", Reason.DECODER_MEMORY, "memory"),
        ("time.sleep(60)", Reason.DECODER_HUNG, "in time"),
        ("os.close(1); time.sleep(60)", Reason.DECODER_CRASHED, "broken answer"),
        ("os.write(1, b'junk' * 10); time.sleep(60)", Reason.DECODER_CRASHED, "broken answer"),
        ("os.write(1, _HEAD.pack(b'SAYS', 3, 0, 0, 0) + b'[1]')", Reason.DECODER_CRASHED, ""),
        ("os.write(1, _HEAD.pack(b'SAYS', 3, 0, 0, 0) + b'{1}')", Reason.DECODER_CRASHED, ""),
        (
            "os.write(1, _HEAD.pack(b'FRAM', 1 << 31, 1 << 31, 3, 2))",
            Reason.DECODER_CRASHED,
            "broken answer",
        ),
        ("os.write(1, _HEAD.pack(b'FRAM', 9, 9, 1, 1) + b'x')", Reason.DECODER_CRASHED, "code 0"),
    ],
)
def test_a_decoder_that_goes_wrong_costs_the_rest_of_its_video(tmp_path, code, reason, words):
    path = tmp_path / "a.avi"
    path.write_bytes(b"x")
    started = time.monotonic()
    *two, last = video.frames(path, frame_limit_s=1.0, command=child(code))
    assert time.monotonic() - started < 20
    assert [frame.shape for frame in two] == [(4, 5)] * 2
    assert last.reason is reason
    assert "after 2 of about 9 frames" in str(last)
    assert re.search(words, str(last))


def test_a_decoder_that_never_begins(tmp_path):
    path = tmp_path / "a.avi"
    path.write_bytes(b"x")
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(DecodeError, match="in time") as caught:
        list(video.frames(path, opening_limit_s=0.3, command=command))
    assert caught.value.reason is Reason.DECODER_HUNG
    with pytest.raises(DecodeError, match="could not be started"):
        list(video.frames(path, command=["/nowhere/python"]))


def test_killing_the_decoder_is_told(tmp_path, monkeypatch):
    path = record(tmp_path / "a.avi", "MJPG", pictures(200))
    started: list[int] = []
    popen = video.subprocess.Popen

    def noted(*args: object, **kwargs: object) -> object:
        process = popen(*args, **kwargs)
        started.append(process.pid)
        return process

    monkeypatch.setattr(video.subprocess, "Popen", noted)
    frames = video.frames(path)
    next(frames)
    os.kill(started[0], signal.SIGKILL)
    *_, last = frames
    assert last.reason is Reason.DECODER_CRASHED
    assert "200" in str(last)


def test_a_video_that_is_left_early_ends_its_decoder(tmp_path, monkeypatch):
    path = record(tmp_path / "a.avi", "MJPG", pictures(200))
    closed: list[int | None] = []
    end = video._Child._end

    def noted(self: video._Child) -> None:
        end(self)
        closed.append(self._process.poll())

    monkeypatch.setattr(video._Child, "_end", noted)
    frames = iter(Sources([path]))
    next(frames)
    frames.close()
    assert closed == [-signal.SIGKILL]
