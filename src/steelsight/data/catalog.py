"""Every frame of a data set as it is on disk: decoded strictly, hashed, measured, with its labels.

``scan`` reads each image once; audit, exploration and splits work on the catalog.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from steelsight.data.labels import FrameLabels, LabelSet, shown
from steelsight.data.threads import in_order
from steelsight.defects import Reason
from steelsight.errors import DecodeError
from steelsight.imaging import DecodePolicy, Frame, GreyHW, decode, read_bytes

DARK_BELOW = 16
"""Grey levels below this are the area beside the strip, mostly."""

THUMBNAIL_CELLS = 1024
"""Longest thumbnail; 1600 x 256 px become 80 x 12 cells, a square frame 32 x 32."""

_REDUCED_PX = 1 << 18
"""Near-duplicates are confirmed on frames of at most this many pixels."""

_LEAST_TEXTURE = 0.003
"""Root mean square of a thumbnail's cells before scaling, below which rounding is all there is."""


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """One frame.

    Attributes:
        image: its name in the data set.
        path: the file; ``None`` where labels name an image that is not there.
        labels: what is known about it; ``None`` for an unlabelled or refused frame.
        sha256: of the file's bytes; ``None`` if it could not be read.
        pixels_sha256: of height, width and the decoded grey pixels; ``None`` if not decodable.
        size_wh: width and height in pixels as decoded; ``None`` if not decodable.
        brightness: mean grey level, 0..255.
        contrast: standard deviation of the grey levels.
        dark_share: share of the pixels darker than 16: the area beside the strip, mostly.
        coloured: whether the pixels are not grey.
        reason, detail: why the image cannot be used, as ``inspect`` would say it.
        notes: what was done to the pixels on the way in.
    """

    image: str
    path: Path | None
    labels: FrameLabels | None
    sha256: str | None = None
    pixels_sha256: str | None = None
    size_wh: tuple[int, int] | None = None
    brightness: float | None = None
    contrast: float | None = None
    dark_share: float | None = None
    coloured: bool = False
    reason: Reason | None = None
    detail: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Catalog:
    """A scanned data set.

    Attributes:
        label_set: the labels it was scanned with.
        records: all frames by name, sorted: images on disk and labelled ones that are missing.
        thumbnails: float32, one row per record, for finding near-duplicates (see
            :func:`thumbnail`); zeros where a frame is not decodable or has no texture.
        policy: how the images were decoded.
    """

    label_set: LabelSet
    records: tuple[FrameRecord, ...]
    thumbnails: npt.NDArray[np.float32]
    policy: DecodePolicy = field(default_factory=DecodePolicy)


def scan(
    label_set: LabelSet,
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
    policy: DecodePolicy | None = None,
) -> Catalog:
    """Reads every image of a data set once.

    An image that cannot be decoded with certainty gets a record with a reason, as does a labelled
    one that is not there; nothing is raised.

    Args:
        label_set: labels and the paths of the images.
        progress: called after each frame with the number done and the number of all.
        threads: how many decode at once; all cores by default.
        policy: how to decode. With its ``grey_only`` a coloured frame is refused, without it the
            frame is only marked ``coloured``.
    """
    policy = policy or DecodePolicy()
    images = sorted({*label_set.image_paths, *label_set.frames, *label_set.refused})
    records: list[FrameRecord] = []
    thumbnails = np.zeros((len(images), THUMBNAIL_CELLS), np.float32)

    def work(image: str) -> tuple[FrameRecord, npt.NDArray[np.float32] | None]:
        return _scan_frame(image, label_set, policy)

    for done, (record, row) in enumerate(in_order(work, images, threads)):
        records.append(record)
        if row is not None:
            thumbnails[done] = row
        if progress:
            progress(done + 1, len(images))
    return Catalog(label_set, tuple(records), thumbnails, policy)


def hash_pixels(grey_hw: GreyHW) -> str:
    """SHA-256 of height, width and pixels row by row: equal only for equal frames."""
    digest = hashlib.sha256(b"%d %d\n" % grey_hw.shape)
    digest.update(np.ascontiguousarray(grey_hw).data)
    return digest.hexdigest()


def reduce_frame(grey_hw: GreyHW) -> GreyHW:
    """The frame at the size at which near-duplicates are confirmed, uint8.

    Half its size (1600 x 256 px: 800 x 128), less where it is larger than a megapixel, and the
    full size below 128 px. JPEG compression spoils what is finer first, and a coarser picture
    shows no more than where the strip ends.
    """
    height, width = grey_hw.shape
    factor = reduction(width, height)
    if factor == 1:
        return grey_hw
    size_wh = max(1, width // factor), max(1, height // factor)
    return cv2.resize(grey_hw, size_wh, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def reduction(width: int, height: int) -> int:
    """How many pixels of a frame become one in :func:`reduce_frame`, along each side."""
    return max(
        2 if min(width, height) >= 128 else 1, math.ceil(math.sqrt(width * height / _REDUCED_PX))
    )


def thumbnail_grid(size_wh: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a thumbnail: of the frame's aspect, ``THUMBNAIL_CELLS`` at most."""
    width, height = size_wh

    def cells(side: int, other: int) -> int:
        return min(max(math.isqrt(THUMBNAIL_CELLS * side // other), 1), THUMBNAIL_CELLS)

    return cells(height, width), cells(width, height)


def thumbnail(grey_hw: GreyHW) -> npt.NDArray[np.float32]:
    """The frame's coarse texture, so that the scalar product of two is their correlation.

    ``(THUMBNAIL_CELLS,)``: :func:`thumbnail_grid` row by row, then zeros; of length 1, or all 0
    where there is no texture. Local brightness and contrast are taken out, then the mean of each
    row and column of cells: else vignetting, the dark margin beside the strip and streaks along
    the strip, which many frames share, would weigh more than the surface.
    """
    height, width = grey_hw.shape
    rows, columns = thumbnail_grid((width, height))
    small = reduce_frame(grey_hw).astype(np.float32)
    fine = cv2.resize(small, (2 * columns, 2 * rows), interpolation=cv2.INTER_AREA)
    even = normalise_locally(fine, window=7, floor=4)
    cells = cv2.resize(even, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float32)
    cells = cells.reshape(rows, columns)
    if min(rows, columns) >= 4:
        cells -= cells.mean(axis=0, keepdims=True)
        cells -= cells.mean(axis=1, keepdims=True)
    cells -= cells.mean()
    row = np.zeros(THUMBNAIL_CELLS, np.float32)
    length = np.linalg.norm(cells)
    if length > _LEAST_TEXTURE * math.sqrt(cells.size):
        row[: cells.size] = cells.ravel() / length
    return row


def normalise_locally(
    grey_hw: npt.NDArray[Any], *, window: int, floor: float
) -> npt.NDArray[np.float32]:
    """Takes out the local mean, and the local contrast where it is well above ``floor``.

    Args:
        grey_hw: grey levels, float32.
        window: side of the square neighbourhood, in pixels.
        floor: grey levels added to the contrast, so that noise on blank areas stays small.
    """
    side, border = (window, window), cv2.BORDER_REFLECT
    detail = grey_hw - cv2.blur(grey_hw, side, borderType=border)
    # The running sums of cv2.blur can end slightly below 0.
    variance = np.maximum(cv2.blur(detail * detail, side, borderType=border), 0)
    return np.divide(detail, np.sqrt(variance) + np.float32(floor), dtype=np.float32)


def _scan_frame(
    image: str, label_set: LabelSet, policy: DecodePolicy
) -> tuple[FrameRecord, npt.NDArray[np.float32] | None]:
    labels = None if image in label_set.refused else label_set.frames.get(image)
    path = label_set.image_paths.get(image)
    record = FrameRecord(image, path, labels)
    if path is None:
        missing = f"expected the image {shown(image)}, it is not there"
        return replace(record, reason=Reason.UNREADABLE, detail=missing), None
    data = None
    try:
        data = read_bytes(path, policy=policy)
        frame, coloured = _decode(data, path.name, policy)
    except DecodeError as error:
        sha256 = hashlib.sha256(data).hexdigest() if data is not None else None
        return replace(record, sha256=sha256, reason=error.reason, detail=str(error)), None
    # OpenCV adds 8-bit pixels up as whole numbers: the measures of a frame and of its flips and
    # rotations are equal to the last bit, which find_duplicates uses.
    mean, deviation = cv2.meanStdDev(frame.grey_hw)
    _, bright = cv2.threshold(frame.grey_hw, DARK_BELOW - 1, 255, cv2.THRESH_BINARY)
    return (
        replace(
            record,
            sha256=frame.sha256,
            pixels_sha256=hash_pixels(frame.grey_hw),
            size_wh=frame.size_wh,
            brightness=float(mean[0, 0]),
            contrast=float(deviation[0, 0]),
            dark_share=1 - cv2.countNonZero(bright) / frame.grey_hw.size,
            coloured=coloured,
            notes=frame.notes,
        ),
        thumbnail(frame.grey_hw),
    )


def _decode(data: bytes, name: str, policy: DecodePolicy) -> tuple[Frame, bool]:
    """The frame, and whether it is coloured, which only shows by being refused for it."""
    try:
        return decode(data, name=name, policy=replace(policy, grey_only=True)), False
    except DecodeError as error:
        if error.reason is not Reason.COLOURED or policy.grey_only:
            raise
    return decode(data, name=name, policy=policy), True
