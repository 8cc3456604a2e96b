"""Frames and their masks on demand, decoded once and kept while the memory budget lasts.

A frame's masks travel as one bit image: bit k is set where type k, in channel order, covers the
pixel. That is one byte per pixel for up to 8 types instead of one per type, and it is cut, turned
and flipped in one go.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelsight.data.catalog import FrameRecord
from steelsight.data.labels import shown
from steelsight.errors import DecodeError, InputError, LabelError, first_names
from steelsight.imaging import DecodePolicy, GreyHW, read_file
from steelsight.masks import decode_rle, rle_runs

MAX_TYPES = 16
"""Bits of the widest bit image."""

TypesHW = NDArray[np.uint8 | np.uint16]
_DEFAULT_POLICY = DecodePolicy()


@dataclass(frozen=True, slots=True)
class LabelledFrame:
    """One labelled frame.

    Attributes:
        image: its name in the data set.
        path: the file.
        size_wh: width and height in pixels, as found by the scan.
        rle_by_class: Kaggle RLE by type, of the types that have a mask.
        class_ids: all types on the frame, also those without a mask; none: it is clean.
    """

    image: str
    path: Path
    size_wh: tuple[int, int]
    rle_by_class: Mapping[str, str]
    class_ids: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Known to be good steel."""
        return not self.class_ids

    @property
    def masked(self) -> bool:
        """Faulty, and every type on it has a mask: the pixels outside are known to be good."""
        return bool(self.class_ids) and all(
            self.rle_by_class.get(class_id, "").strip() for class_id in self.class_ids
        )


def labelled_frame(record: FrameRecord, prefix: str = "") -> LabelledFrame:
    """A scanned frame with its labels, its masks checked.

    Args:
        record: of the scan.
        prefix: put in front of its name.

    Raises:
        InputError: it cannot be decoded or has no labels.
        LabelError: its labels are for another size, or a mask does not fit.
    """
    labels, path, size_wh = record.labels, record.path, record.size_wh
    if labels is None or path is None or size_wh is None:
        raise InputError(f"{shown(record.image)}: expected a labelled image that can be read")
    if labels.size_wh is not None and labels.size_wh != size_wh:
        raise LabelError(
            f"{shown(record.image)}: the labels are for {labels.size_wh[0]} x {labels.size_wh[1]}"
            f" px, the image has {size_wh[0]} x {size_wh[1]}; label it again or give the image"
            " that was labelled"
        )
    for class_id, rle in labels.rle_by_class.items():
        rle_runs(rle, size_wh, where=f"{shown(record.image)}, type {class_id}")
    return LabelledFrame(
        prefix + record.image, path, size_wh, dict(labels.rle_by_class), labels.class_ids
    )


def types_image(
    frame: LabelledFrame, class_ids: Sequence[str], size_wh: tuple[int, int] | None = None
) -> TypesHW:
    """The masks of a frame as one bit image.

    Args:
        frame: the frame.
        class_ids: all types in channel order, at most ``MAX_TYPES``.
        size_wh: width and height of the masks, the frame's if ``None``.

    Returns:
        uint8 for up to 8 types, else uint16; bit k is set where type k covers the pixel.

    Raises:
        LabelError: a mask does not fit.
    """
    size_wh = size_wh or frame.size_wh
    types_hw = np.zeros(size_wh[::-1], np.uint8 if len(class_ids) <= 8 else np.uint16)
    for bit, class_id in enumerate(class_ids):
        rle = frame.rle_by_class.get(class_id)
        if rle is not None:
            where = f"image {shown(frame.image)}, type {class_id}"
            mask_hw = decode_rle(rle, size_wh, where=where)
            types_hw |= mask_hw.astype(types_hw.dtype) << types_hw.dtype.type(bit)
    return types_hw


class FramePixels(NamedTuple):
    """A decoded frame; shared by all who ask for it, so nobody may write into it.

    The arrays are not locked against it: torch warns about sharing a locked array's memory.
    """

    grey_hw: GreyHW
    types_hw: TypesHW
    """uint8 for up to 8 types, else uint16; bit k set where type k covers the pixel."""


class FrameSource:
    """Frames by index; the most recently used ones stay decoded. Safe to use from many threads.

    Args:
        frames: in the order of their indices.
        class_ids: all types in channel order.
        cache_bytes: what decoded frames may take together; those on loan come on top.
        policy: how to decode.

    Raises:
        InputError: more than 16 types, or a frame with a type that is not among them.
    """

    def __init__(
        self,
        frames: Sequence[LabelledFrame],
        class_ids: Sequence[str],
        cache_bytes: int,
        policy: DecodePolicy = _DEFAULT_POLICY,
    ) -> None:
        self.frames = tuple(frames)
        self.class_ids = tuple(class_ids)
        if len(self.class_ids) > MAX_TYPES:
            raise InputError(
                f"expected at most {MAX_TYPES} defect types, got {len(self.class_ids)}; merge or"
                " leave out types"
            )
        self._dtype = np.dtype(np.uint8 if len(self.class_ids) <= 8 else np.uint16)
        self._policy = policy
        self._cache_bytes = cache_bytes
        # A clean frame has no bit image in the cache: one full of zeros costs next to nothing.
        self._cache: OrderedDict[int, tuple[GreyHW, TypesHW | None]] = OrderedDict()
        self._held_bytes = 0
        self._lock = Lock()
        for frame in self.frames:
            self._check_types(frame)

    @property
    def held_bytes(self) -> int:
        """What the decoded frames in the cache take now."""
        return self._held_bytes

    def type_counts(self) -> NDArray[np.int64]:
        """Frames of each type, with or without a mask, ``(K,)``."""
        return np.array(
            [sum(c in frame.class_ids for frame in self.frames) for c in self.class_ids], np.int64
        )

    def pixels(self, index: int) -> FramePixels:
        """Grey levels and masks of one frame.

        Raises:
            InputError: the file is not what the scan found any more.
            LabelError: a mask does not fit the frame.
        """
        with self._lock:
            found = self._cache.get(index)
            if found is not None:
                self._cache.move_to_end(index)
        if found is None:
            # Outside the lock: two threads may decode the same frame, which harms nobody.
            found = self._read(self.frames[index])
            self._keep(index, found)
        grey_hw, types_hw = found
        if types_hw is None:
            types_hw = np.zeros(grey_hw.shape, self._dtype)
        return FramePixels(grey_hw, types_hw)

    def _check_types(self, frame: LabelledFrame) -> None:
        unknown = {*frame.class_ids, *frame.rle_by_class} - set(self.class_ids)
        if unknown:
            raise InputError(
                f"image {shown(frame.image)}: expected types out of {first_names(self.class_ids)},"
                f" got {first_names(sorted(unknown))}; add them to the types"
            )

    def _read(self, frame: LabelledFrame) -> tuple[GreyHW, TypesHW | None]:
        try:
            decoded = read_file(frame.path, policy=self._policy)
        except DecodeError as error:
            raise InputError(
                f"{frame.path}: expected the frame as it was scanned, got: {error}; the file has"
                " changed since the scan, restore it or start again"
            ) from error
        if decoded.size_wh != frame.size_wh:
            raise InputError(
                f"{frame.path}: expected {frame.size_wh[0]} x {frame.size_wh[1]} pixels, got"
                f" {decoded.size_wh[0]} x {decoded.size_wh[1]}; the file has changed since the"
                " scan, restore it or start again"
            )
        grey_hw = decoded.grey_hw
        if not frame.rle_by_class:
            return grey_hw, None
        return grey_hw, types_image(frame, self.class_ids)

    def _keep(self, index: int, read: tuple[GreyHW, TypesHW | None]) -> None:
        size = _bytes_of(read)
        if size > self._cache_bytes:
            return
        with self._lock:
            if index in self._cache:
                return
            while self._held_bytes + size > self._cache_bytes:
                _, oldest = self._cache.popitem(last=False)
                self._held_bytes -= _bytes_of(oldest)
            self._cache[index] = read
            self._held_bytes += size


def _bytes_of(read: tuple[GreyHW, TypesHW | None]) -> int:
    grey_hw, types_hw = read
    return grey_hw.nbytes + (0 if types_hw is None else types_hw.nbytes)
