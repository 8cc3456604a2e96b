"""Which frames are measured: drawn, from files or from a labelled set, in a chosen mix."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from steelsight.data.labels import LabelSet
from steelsight.data.synthetic import CoilConfig, draw_frame, encode_jpeg
from steelsight.defects import Inspection, Verdict
from steelsight.engine.sources import Sources
from steelsight.errors import DecodeError, InputError
from steelsight.imaging import read_bytes

Progress = Callable[[int, int], None]
"""Called with how much is done, and of how much."""

Item = TypeVar("Item")

MOST_JUDGED = 20
"""Without labels, so many frames are looked at for each that is wanted, before giving up."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A frame that may be measured, not read yet.

    Attributes:
        name: as results would call it.
        read: gives its encoded bytes; raises ``DecodeError``.
        faulty: what is known of it; ``None`` without labels.
        rle_by_class: its labelled masks, Kaggle RLE by type.
    """

    name: str
    read: Callable[[], bytes]
    faulty: bool | None = None
    rle_by_class: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """A frame in memory; ``faulty`` by its label, else by the first bundle's verdict if asked."""

    name: str
    data: bytes
    faulty: bool | None


def candidates_in(inputs: Sequence[Path]) -> list[Candidate]:
    """Every file under the given paths, without labels.

    Raises:
        InputError: a path does not exist, there is no file, or it is an archive, table or video.
    """
    candidates = []
    for source in Sources(inputs):
        if source.path is None:
            raise InputError(
                f"expected image files, {source.name} is part of a container; unpack it first"
            )
        candidates.append(Candidate(source.name, partial(read_bytes, source.path)))
    return candidates


def candidates_of(label_set: LabelSet) -> list[Candidate]:
    """The images of a data set that are known to be clean or faulty.

    Raises:
        InputError: there is none.
    """
    paths = label_set.image_paths
    found = [
        Candidate(image, partial(read_bytes, paths[image]), not labels.clean, labels.rle_by_class)
        for image, labels in label_set.frames.items()
        if image in paths and not labels.disputed
    ]
    if not found:
        raise InputError(
            f"expected labelled images in {label_set.source}, found none that is known to be clean "
            "or faulty; check --images, or --unlisted-are-clean if good frames are not listed"
        )
    return found


def drawn_candidates(
    count: int, faulty_share: float, seed: int, progress: Progress | None = None
) -> list[Candidate]:
    """Frames of two drawn coils, one faulty and one clean, in memory: as many as are asked for."""
    found = []
    for kind, number in wanted_of_kind(count, faulty_share).items():
        # A coil has at least one frame, also where none is asked for.
        config = CoilConfig(frames=max(number, 1), seed=seed, faulty_share=float(kind or 0))
        for index in range(number):
            frame = draw_frame(config, index)
            data = encode_jpeg(frame.grey_hw)
            name = f"{'faulty' if kind else 'clean'}-{frame.name}"
            # No masks: accuracy on drawn steel says nothing.
            found.append(Candidate(name, partial(bytes, data), kind))
            if progress:
                progress(len(found), count)
    return found


class Chosen(NamedTuple):
    """The frames of a run.

    Attributes:
        frames: in the order in which all contestants take them.
        different: how many of them are different; the others come again.
        left_out: candidates that were looked at and cannot be measured, by reason.
    """

    frames: list[EncodedFrame]
    different: int
    left_out: Counter[str]


def choose(
    candidates: Sequence[Candidate],
    count: int,
    faulty_share: float | None,
    seed: int,
    judge: Callable[[EncodedFrame], Inspection],
    progress: Progress | None = None,
) -> Chosen:
    """Draws the frames of a run.

    Args:
        candidates: what there is.
        count: how many frames.
        faulty_share: share of faulty ones; the nearest number of frames is met exactly, if need
            be by taking frames more than once. ``None``: frames as they come.
        seed: of the choice and of the order.
        judge: gives a verdict; a frame that is UNKNOWN is not measured.
        progress: called with the number of frames found and of all.

    Raises:
        InputError: an impossible number or share, or none of a kind that is needed.
    """
    wanted = wanted_of_kind(count, faulty_share)
    found: dict[bool | None, list[EncodedFrame]] = {kind: [] for kind in wanted}
    left_out: Counter[str] = Counter()
    rng = np.random.default_rng(seed)
    judged = 0
    for index in rng.permutation(len(candidates)):
        done = sum(map(len, found.values()))
        if progress:
            progress(done, count)
        if done == count or judged >= MOST_JUDGED * count:
            break
        candidate = candidates[index]
        known = None if faulty_share is None else candidate.faulty
        if known is not None and len(found[known]) == wanted[known]:
            continue
        judged += 1
        try:
            frame = EncodedFrame(candidate.name, candidate.read(), candidate.faulty)
        except DecodeError as error:
            left_out[error.reason] += 1
            continue
        inspection = judge(frame)
        if inspection.verdict is Verdict.UNKNOWN:
            left_out[inspection.reason or Verdict.UNKNOWN] += 1
            continue
        kind = known
        if faulty_share is not None and kind is None:
            kind = inspection.verdict is Verdict.NG
            frame = EncodedFrame(frame.name, frame.data, kind)
        if len(found[kind]) < wanted[kind]:
            found[kind].append(frame)
    if progress:
        progress(sum(map(len, found.values())), count)
    _check_found(found, wanted, judged, left_out)
    frames = [
        frame
        for kind, number in wanted.items()
        # In turns where there are too few.
        for frame in (found[kind] * math.ceil(number / max(len(found[kind]), 1)))[:number]
    ]
    different = sum(map(len, found.values()))
    return Chosen([frames[i] for i in rng.permutation(len(frames))], different, left_out)


def wanted_of_kind(count: int, faulty_share: float | None) -> dict[bool | None, int]:
    """How many frames of each kind: faulty, clean, or any (``None``).

    Raises:
        InputError: an impossible number or share.
    """
    if count < 1:
        raise InputError(f"expected --frames from 1, got {count}")
    if faulty_share is None:
        return {None: count}
    if not 0 <= faulty_share <= 1:  # also refuses NaN
        raise InputError(
            f"expected --faulty-share from 0 to 1, got {faulty_share:g}; write 10 % as 0.1"
        )
    faulty = math.floor(faulty_share * count + 0.5)
    if (faulty == 0 and faulty_share > 0) or (faulty == count and faulty_share < 1):
        least = math.ceil(1 / min(faulty_share, 1 - faulty_share) - 1e-9)
        raise InputError(
            f"--faulty-share {faulty_share:g} of {count} frames is less than one frame of a kind; "
            f"give --frames {least} or more"
        )
    return {True: faulty, False: count - faulty}


def _check_found(
    found: Mapping[bool | None, Sequence[EncodedFrame]],
    wanted: Mapping[bool | None, int],
    judged: int,
    left_out: Mapping[str, int],
) -> None:
    missing = [kind for kind, number in wanted.items() if number and not found[kind]]
    if not missing:
        return
    told = {True: "faulty frames", False: "clean frames", None: "frames with a verdict"}
    unusable = f" ({', '.join(f'{n} {reason}' for reason, n in left_out.items())})"
    raise InputError(
        f"expected {told[missing[0]]} to measure with, found none among the {judged} looked at"
        f"{unusable if left_out else ''}; give other frames"
        + ("" if None in missing else ", --labels, or another --faulty-share")
    )


def told(items: Sequence[Item], progress: Progress) -> Iterator[Item]:
    """The items, while progress is told of each and of the end."""
    for done, item in enumerate(items):
        progress(done, len(items))
        yield item
    progress(len(items), len(items))
