"""What a network said about labelled frames: all that figures and thresholds are computed from.

Masks are kept as counts of pixels by mask logit, inside and outside of the labelled mask: 800 bytes
a type instead of a megabyte. They give the Dice of a frame at any of the 49 thresholds exactly.

Shapes: N frames, K types in channel order, B bins of mask logits, R regions of labelled masks.
"""

import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from steelsight.data.frames import FramePixels, LabelledFrame
from steelsight.data.labels import shown
from steelsight.data.tables import check_is_file
from steelsight.decisions import mask_peaks
from steelsight.errors import InputError, first_names

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Float32s = NDArray[np.float32]
Bools = NDArray[np.bool_]


_LOGIT_LIMITS = (-104.0, 17.0)
"""Of a float32 probability that is neither 0 nor 1."""


def logit(probabilities: NDArray[np.floating[Any]]) -> Floats:
    """``log(p / (1 - p))`` in float64; 0 and 1 give the ends of what float32 can tell."""
    p = np.asarray(probabilities, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        logits: Floats = np.clip(np.log(p) - np.log1p(-p), *_LOGIT_LIMITS)
    return logits


def sigmoid(logits: NDArray[np.floating[Any]]) -> Floats:
    """``1 / (1 + exp(-x))`` in float64, without overflow; NaN stays NaN."""
    with np.errstate(invalid="ignore"):
        small = np.exp(-np.abs(logits.astype(np.float64)))
        probabilities: Floats = np.where(logits < 0, small, 1) / (1 + small)
    return probabilities


MASK_LOGIT_EDGES: Floats = np.arange(-24, 25) / 4
"""Thresholds between the bins, -6 to 6 by 0.25. Bin 0 is below all of them, bin i holds logits from
edge i - 1 on and below edge i, the last bin has no upper end."""

BINS = len(MASK_LOGIT_EDGES) + 1

# A mask is `probability >= pixel_from`, compared in float32 (decisions.decide): so are the bins.
MASK_PROBABILITY_EDGES: Float32s = sigmoid(MASK_LOGIT_EDGES).astype(np.float32)
"""``MASK_LOGIT_EDGES`` as probabilities."""

# Cells of equal width, so narrow that each holds at most one edge: a pixel's cell tells its bin but
# for one comparison, several times faster than a binary search.
_CELLS = 4096
_BIN_OF_CELL = np.searchsorted(
    MASK_PROBABILITY_EDGES, np.arange(_CELLS + 1, dtype=np.float32) / _CELLS, side="right"
).astype(np.uint8)
_NEXT_EDGE = np.append(MASK_PROBABILITY_EDGES, np.float32(2))
_BLOCK_PX = 1 << 16
"""Pixels worked on at once: they stay in the processor's cache."""

FIRST_LOOK = "first_look_logits"
"""The one array that need not be there."""
_FILE_FORMAT = "steelsight predictions"
_FILE_VERSION = 2
_MAX_FILE_BYTES = 4 << 30


def mask_counts(
    probabilities_khw: Float32s, types_hw: NDArray[np.uint8 | np.uint16]
) -> tuple[Ints, Ints]:
    """Pixels of one frame by mask logit.

    Args:
        probabilities_khw: mask probabilities at full size, 0..1, ``(K, H, W)``.
        types_hw: labelled masks; bit k is set where type k covers the pixel, ``(H, W)``.

    Returns:
        Numbers of pixels inside and outside of the labelled mask, ``(K, B)`` each.

    Raises:
        InputError: a probability is NaN or not in 0..1: the network diverged.
        ValueError: the shapes differ, or there are more types than bits.
    """
    types, height, width = probabilities_khw.shape
    if types_hw.shape != (height, width) or types > 8 * types_hw.dtype.itemsize:
        raise ValueError(f"masks {probabilities_khw.shape} and bits {types_hw.shape} do not fit")
    counts_kb = np.zeros((types, 2 * BINS), np.int64)
    planes_kp = probabilities_khw.reshape(types, -1)
    bits_p = types_hw.reshape(-1)
    for first in range(0, height * width, _BLOCK_PX):
        block = slice(first, first + _BLOCK_PX)
        labelled = bits_p[block].any()
        for k, plane in enumerate(planes_kp[:, block]):
            if not (plane.min() >= 0 and plane.max() <= 1):  # also NaN
                raise InputError(
                    f"expected mask probabilities from 0 to 1, the network gave {plane.min()} to"
                    f" {plane.max()}; it diverged: lower its learning rate"
                )
            # Most pixels lie below all edges: they are only counted.
            above = plane >= MASK_PROBABILITY_EDGES[0]
            bins = _bins(plane[above])
            inside_px = 0
            if labelled:
                inside = (bits_p[block] >> k & 1).astype(np.uint8)
                inside_px = int(np.count_nonzero(inside))
                bins += inside[above] * np.uint8(BINS)
            counted = np.bincount(bins, minlength=2 * BINS)
            counted[BINS] += inside_px - counted[BINS:].sum()
            counted[0] += len(plane) - counted.sum()
            counts_kb[k] += counted
    return counts_kb[:, BINS:], counts_kb[:, :BINS]


def _bins(probabilities: Float32s) -> NDArray[np.uint8]:
    bins = _BIN_OF_CELL[(probabilities * np.float32(_CELLS)).astype(np.int16)]
    bins += probabilities >= _NEXT_EDGE[bins]
    return bins


class RegionCounts(NamedTuple):
    """The connected regions (8 neighbours) of one labelled mask.

    Attributes:
        boxes_r4: upright boxes, x, y, width and height in pixels.
        counts_rb: pixels of each region by mask logit, ``(R, B)``.
    """

    boxes_r4: Ints
    counts_rb: Ints


def region_counts(probabilities_hw: Float32s, mask_hw: Bools) -> RegionCounts:
    """Pixels of every region of a labelled mask by mask logit.

    Args:
        probabilities_hw: of that type, 0..1.
        mask_hw: the labelled mask, same shape.
    """
    x, y, width, height = cv2.boundingRect(mask_hw.view(np.uint8))
    inside = np.s_[y : y + height, x : x + width]
    if not width:
        return RegionCounts(np.zeros((0, 4), np.int64), np.zeros((0, BINS), np.int64))
    cropped_hw = np.ascontiguousarray(mask_hw[inside])
    _, regions_hw, boxes, _ = cv2.connectedComponentsWithStats(
        cropped_hw.view(np.uint8), connectivity=8
    )
    region = regions_hw[cropped_hw].astype(np.int64) - 1
    flat = region * BINS + _bins(probabilities_hw[inside][cropped_hw])
    found = len(boxes) - 1
    counts_rb = np.bincount(flat, minlength=found * BINS).reshape(found, BINS)
    boxes_r4 = boxes[1:, :4].astype(np.int64) + np.array([x, y, 0, 0])
    return RegionCounts(boxes_r4, counts_rb)


class Unanswered(NamedTuple):
    """A frame about which nothing can be said, so that it is neither found nor missed.

    Attributes:
        image: its name.
        reason: code of :class:`steelsight.defects.Reason`, or why another tool has no answer.
        faulty: what its label says.
    """

    image: str
    reason: str
    faulty: bool


_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What a network said about frames, and what their labels say.

    Attributes:
        images: names of the frames, each once.
        class_ids: the types, in channel order.
        folds: which part of a cross-validation held the frame out, ``(N,)``.
        groups: frames that show the same steel, or come from one coil, have the same number. The
            bootstrap draws groups, ``(N,)``.
        faulty: label: a defect of any type is on the frame, ``(N,)``.
        present_nk: label: the type is on the frame.
        masked_nk: the type is on the frame and its mask is known. Dice is measured on these.
        faulty_logits: mean of both heads' faulty logits, ``(N,)``.
        head_probabilities_nk: mean of both heads' sigmoids by type.
        peaks_nk: :func:`steelsight.decisions.mask_peaks` of the mask probabilities at full size.
        inside_nkb: pixels by mask logit inside of the labelled mask, see :func:`mask_counts`.
        outside_nkb: the same outside of it: all pixels where the type has no mask.
        sizes_n2: width and height of the frames in pixels.
        brightness_n: mean grey level of the frames, 0..255.
        region_frames_r: which frame a region of a labelled mask is on, ascending, ``(R,)``.
        region_types_r: which type it is.
        region_boxes_r4: its upright box: x, y, width, height in pixels.
        region_counts_rb: its pixels by mask logit; the regions of a mask add up to ``inside_nkb``.
        unanswered: further frames that were looked at without an answer.
        scored: frames and types have scores. If not, only masks are known (of another tool), and
            scores are 1 where there is a mask and 0 elsewhere.
        graded: masks are probabilities. If not, their pixels are 0 or 1.
        about: where the predictions come from, values that JSON can hold.
        first_look_logits: of the first look, ``(N,)``; ``None`` if the network has none.

    Raises:
        ValueError: lengths, shapes or number types differ, or the labels contradict each other.
    """

    images: tuple[str, ...]
    class_ids: tuple[str, ...]
    folds: Ints
    groups: Ints
    faulty: Bools
    present_nk: Bools
    masked_nk: Bools
    faulty_logits: Float32s
    head_probabilities_nk: Float32s
    peaks_nk: Float32s
    inside_nkb: Ints
    outside_nkb: Ints
    sizes_n2: Ints
    brightness_n: Float32s
    region_frames_r: Ints
    region_types_r: Ints
    region_boxes_r4: Ints
    region_counts_rb: Ints
    unanswered: tuple[Unanswered, ...] = ()
    scored: bool = True
    graded: bool = True
    about: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    first_look_logits: Float32s | None = None

    def __post_init__(self) -> None:
        n, k, r = len(self.images), len(self.class_ids), len(self.region_frames_r)
        for name, kind, shape in (
            ("folds", np.int64, (n,)),
            ("groups", np.int64, (n,)),
            ("faulty", np.bool_, (n,)),
            ("present_nk", np.bool_, (n, k)),
            ("masked_nk", np.bool_, (n, k)),
            ("faulty_logits", np.float32, (n,)),
            ("head_probabilities_nk", np.float32, (n, k)),
            ("peaks_nk", np.float32, (n, k)),
            ("inside_nkb", np.int64, (n, k, BINS)),
            ("outside_nkb", np.int64, (n, k, BINS)),
            ("sizes_n2", np.int64, (n, 2)),
            ("brightness_n", np.float32, (n,)),
            ("region_frames_r", np.int64, (r,)),
            ("region_types_r", np.int64, (r,)),
            ("region_boxes_r4", np.int64, (r, 4)),
            ("region_counts_rb", np.int64, (r, BINS)),
            *([(FIRST_LOOK, np.float32, (n,))] if self.first_look_logits is not None else []),
        ):
            array = getattr(self, name)
            if array.dtype != kind or array.shape != shape:
                raise ValueError(
                    f"{name}: expected {np.dtype(kind)} {shape}, got {array.dtype} {array.shape}"
                )
        looked_at = (*self.images, *(frame.image for frame in self.unanswered))
        for names in (looked_at, self.class_ids):
            if len(set(names)) < len(names):
                raise ValueError("expected each image and each type once")
        if (self.present_nk.any(axis=1) & ~self.faulty).any():
            raise ValueError("a frame holds a type and is not faulty")
        if (self.masked_nk & ~self.present_nk).any():
            raise ValueError("a frame has a mask of a type that is not on it")
        if (self.inside_nkb.any(axis=2) & ~self.masked_nk).any():
            raise ValueError("pixels lie inside of a mask that does not exist")
        if min(self.inside_nkb.min(initial=0), self.outside_nkb.min(initial=0)) < 0:
            raise ValueError("a number of pixels is negative")
        self._check_regions(n, k)

    def _check_regions(self, frames: int, types: int) -> None:
        frame_r, type_r = self.region_frames_r, self.region_types_r
        outside = (frame_r < 0) | (frame_r >= frames) | (type_r < 0) | (type_r >= types)
        if outside.any() or (np.diff(frame_r) < 0).any():
            raise ValueError("a region is on a frame or of a type that does not exist")
        if self.region_counts_rb.min(initial=0) < 0:
            raise ValueError("a number of pixels is negative")
        summed_nkb = np.zeros_like(self.inside_nkb)
        np.add.at(summed_nkb, (frame_r, type_r), self.region_counts_rb)
        if not np.array_equal(summed_nkb, self.inside_nkb):
            raise ValueError("the regions of a mask are not its pixels")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def _arrays(self) -> dict[str, Any]:
        """All arrays by name, without what there is none of."""
        names = _ARRAYS if self.first_look_logits is None else (*_ARRAYS, FIRST_LOOK)
        return {name: getattr(self, name) for name in names}

    @property
    def faulty_probability(self) -> Floats:
        """Stage 1's answer, 0..1, ``(N,)``."""
        return sigmoid(self.faulty_logits)

    @property
    def first_look_probability(self) -> Floats | None:
        """The first look's answer, 0..1, ``(N,)``; ``None`` if there is none."""
        return None if self.first_look_logits is None else sigmoid(self.first_look_logits)

    @property
    def type_scores_nk(self) -> Floats:
        """Score of each type as in :mod:`steelsight.decisions`, 0..1, every frame segmented."""
        # In float32 like there: a score at a threshold falls on the same side.
        scores_nk = (2 * self.head_probabilities_nk + self.peaks_nk) / np.float32(3)
        return scores_nk.astype(np.float64)

    def take(self, chosen: NDArray[np.bool_]) -> "Predictions":
        """Those of some frames, in the same order; the unanswered ones are left out.

        Args:
            chosen: which, ``(N,)``.
        """
        of_region = chosen[self.region_frames_r]
        arrays: dict[str, Any] = {
            name: array[of_region if name.startswith("region_") else chosen]
            for name, array in self._arrays.items()
        }
        arrays["region_frames_r"] = (np.cumsum(chosen) - 1)[arrays["region_frames_r"]]
        images = tuple(self.images[n] for n in np.flatnonzero(chosen))
        return replace(self, images=images, unanswered=(), **arrays)

    # Files ---------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Writes all to an ``.npz`` file, whole or not at all; equal predictions, equal bytes.

        Raises:
            InputError: the file cannot be written.
        """
        about = {
            "format": _FILE_FORMAT,
            "version": _FILE_VERSION,
            "images": self.images,
            "class_ids": self.class_ids,
            "unanswered": self.unanswered,
            "scored": self.scored,
            "graded": self.graded,
            "about": dict(self.about),
        }
        content = io.BytesIO()
        np.savez_compressed(
            content,
            about=np.frombuffer(json.dumps(about).encode(), np.uint8),
            **self._arrays,
        )
        _replace(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Reads what :meth:`save` wrote.

        Raises:
            InputError: no such file, not from :meth:`save`, cut off, or its parts do not fit.
        """
        expected = "expected predictions that 'steelsight train' wrote"
        try:
            check_is_file(path)
            with path.open("rb") as file, zipfile.ZipFile(file) as members:
                size = sum(member.file_size for member in members.infolist())
                if size > _MAX_FILE_BYTES:
                    raise ValueError(f"its parts claim {size} bytes")
                file.seek(0)
                with np.load(file, allow_pickle=False) as arrays:
                    told = _told(json.loads(arrays["about"].tobytes()))
                    names = (*_ARRAYS, *({FIRST_LOOK} & set(arrays.files)))
                    return cls(**told, **{name: arrays[name] for name in names})
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror or error}), {expected}; check the path"
            ) from error
        except (
            ValueError,  # also UnicodeDecodeError, JSONDecodeError, and our own checks
            KeyError,
            TypeError,
            EOFError,
            RecursionError,
            MemoryError,
            NotImplementedError,
            RuntimeError,  # an encrypted member
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            why = " ".join(str(error).split())
            raise InputError(
                f"{path}: {why[:200] or type(error).__name__}, {expected}; give that file, and"
                " predict again if it is damaged"
            ) from error

    def write_jsonl(self, path: Path) -> None:
        """Writes the scores as results that ``steelsight data check --results`` reads.

        Frames whose faulty logit is NaN have ``null``: nothing was said about them.

        Raises:
            InputError: the file cannot be written.
        """
        lines = []
        scores_nk = self.type_scores_nk
        for image, faulty, scores_k in zip(
            self.images, self.faulty_probability, scores_nk, strict=True
        ):
            result = {
                "image": image,
                "faulty_probability": _number(faulty),
                "class_probabilities": {
                    c: _number(score) for c, score in zip(self.class_ids, scores_k, strict=True)
                },
            }
            lines.append(json.dumps(result, allow_nan=False) + "\n")
        _replace(path, "".join(lines).encode())

    @staticmethod
    def concatenate(parts: Sequence["Predictions"]) -> "Predictions":
        """The frames of all parts in their order: one set from the folds of a cross-validation.

        Raises:
            InputError: the types differ, or a frame is in two parts.
            ValueError: no parts.
        """
        if not parts:
            raise ValueError("expected predictions, got none")
        class_ids = parts[0].class_ids
        images: dict[str, None] = {}
        frames_before = 0
        # Scores of a first look say nothing if only some frames have them.
        of_all = set.intersection(*(set(part._arrays) for part in parts))
        arrays: dict[str, list[NDArray[Any]]] = {name: [] for name in of_all}
        for part in parts:
            if part.class_ids != class_ids:
                raise InputError(
                    f"expected predictions of the types {first_names(class_ids)} in this order, got"
                    f" {first_names(part.class_ids)}; give those of one cross-validation"
                )
            twice = next((image for image in part.images if image in images), None)
            if twice is not None:
                raise InputError(
                    f"the image {shown(twice)} is in two of the predictions, expected each frame"
                    " once; give those of one cross-validation"
                )
            images.update(dict.fromkeys(part.images))
            for name in of_all:
                arrays[name].append(getattr(part, name))
            arrays["region_frames_r"][-1] = part.region_frames_r + frames_before
            frames_before += len(part)
        return Predictions(
            images=tuple(images),
            class_ids=class_ids,
            unanswered=tuple(frame for part in parts for frame in part.unanswered),
            scored=all(part.scored for part in parts),
            graded=all(part.graded for part in parts),
            about=parts[0].about,
            **{name: np.concatenate(those) for name, those in arrays.items()},
        )


_ARRAYS = tuple(
    f.name
    for f in fields(Predictions)
    if f.name not in ("images", "class_ids", "unanswered", "scored", "graded", "about", FIRST_LOOK)
)


def _told(about: Any) -> dict[str, Any]:
    """What a file holds beside the arrays."""
    if about["format"] != _FILE_FORMAT or about["version"] != _FILE_VERSION:
        raise ValueError("another format or version")
    images, class_ids = tuple(about["images"]), tuple(about["class_ids"])
    unanswered = tuple(Unanswered(*frame) for frame in about["unanswered"])
    names = (*images, *class_ids, *(text for frame in unanswered for text in frame[:2]))
    if not all(isinstance(name, str) for name in names):
        raise ValueError("a name is no text")
    switches = [about["scored"], about["graded"], *(frame.faulty for frame in unanswered)]
    if not all(isinstance(switch, bool) for switch in switches):
        raise ValueError("true or false is something else")
    if not isinstance(about["about"], dict):
        raise ValueError("its origin is no table")
    return {
        "images": images,
        "class_ids": class_ids,
        "unanswered": unanswered,
        "scored": about["scored"],
        "graded": about["graded"],
        "about": about["about"],
    }


# Collecting --------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a network says about one frame, segmented whatever stage 1 says.

    Attributes:
        faulty_logit: stage 1.
        head_probabilities_k: mean of both heads' sigmoids by type.
        probabilities_khw: of the masks at full size.
        first_look_logit: of the first look; ``None`` if there is none.
    """

    faulty_logit: float
    head_probabilities_k: Float32s
    probabilities_khw: Float32s
    first_look_logit: float | None = None


class Collector:
    """Puts predictions together frame by frame; what it keeps of a frame is a few kilobytes.

    Args:
        class_ids: the types, in channel order.
    """

    def __init__(self, class_ids: Sequence[str]) -> None:
        self.class_ids = tuple(class_ids)
        self._frames: list[tuple[LabelledFrame, int, int]] = []
        self._rows: list[tuple[Any, ...]] = []
        self._first_look: list[float | None] = []
        self._regions: list[tuple[int, int, RegionCounts]] = []
        self._unanswered: list[Unanswered] = []

    def add(
        self,
        frame: LabelledFrame,
        pixels: FramePixels,
        answer: Answer,
        *,
        fold: int = 0,
        group: int | None = None,
    ) -> None:
        """Compares an answer with the frame's labels.

        Args:
            frame: its labels.
            pixels: its grey levels and labelled masks.
            answer: of the network.
            fold: which part of a cross-validation held it out.
            group: frames of the same group are not independent; ``None``: it stands alone.

        Raises:
            InputError: a mask probability is NaN or not in 0..1.
        """
        masks_khw, n = answer.probabilities_khw, len(self._frames)
        inside_kb, outside_kb = mask_counts(masks_khw, pixels.types_hw)
        for k, class_id in enumerate(self.class_ids):
            if frame.rle_by_class.get(class_id):
                mask_hw = (pixels.types_hw >> k & 1).astype(np.bool_)
                self._regions.append((n, k, region_counts(masks_khw[k], mask_hw)))
        self._frames.append((frame, fold, -1 if group is None else group))
        self._first_look.append(answer.first_look_logit)
        self._rows.append(
            (
                answer.faulty_logit,
                answer.head_probabilities_k,
                mask_peaks(masks_khw),
                inside_kb,
                outside_kb,
                pixels.grey_hw.shape[::-1],
                cv2.mean(pixels.grey_hw)[0],
            )
        )

    def add_unanswered(self, frame: LabelledFrame, reason: str) -> None:
        """Counts a frame about which nothing can be said."""
        self._unanswered.append(Unanswered(frame.image, reason, bool(frame.class_ids)))

    def predictions(
        self,
        *,
        scored: bool = True,
        graded: bool = True,
        about: Mapping[str, Any] = _NOTHING,
    ) -> Predictions:
        """All that was added, in its order."""
        frames = [frame for frame, _, _ in self._frames]
        n, k = len(frames), len(self.class_ids)
        first_look = [one for one in self._first_look if one is not None]
        columns = [
            np.array([row[column] for row in self._rows], dtype).reshape(n, *shape)
            for column, (dtype, shape) in enumerate(
                (
                    (np.float32, ()),
                    (np.float32, (k,)),
                    (np.float32, (k,)),
                    (np.int64, (k, BINS)),
                    (np.int64, (k, BINS)),
                    (np.int64, (2,)),
                    (np.float32, ()),
                )
            )
        ]
        logits, heads_nk, peaks_nk, inside_nkb, outside_nkb, sizes_n2, brightness_n = columns
        of_mask = [np.full(len(found.boxes_r4), at) for at, _, found in self._regions]
        of_type = [np.full(len(found.boxes_r4), at) for _, at, found in self._regions]
        no_boxes, no_counts = np.zeros((0, 4), np.int64), np.zeros((0, BINS), np.int64)
        return Predictions(
            images=tuple(frame.image for frame in frames),
            class_ids=self.class_ids,
            folds=np.array([fold for _, fold, _ in self._frames], np.int64),
            groups=_numbered([group for _, _, group in self._frames]),
            faulty=np.array([bool(frame.class_ids) for frame in frames], np.bool_),
            present_nk=np.array(
                [[c in f.class_ids for c in self.class_ids] for f in frames], np.bool_
            ).reshape(n, k),
            masked_nk=np.array(
                [[bool(f.rle_by_class.get(c)) for c in self.class_ids] for f in frames], np.bool_
            ).reshape(n, k),
            faulty_logits=logits,
            head_probabilities_nk=heads_nk,
            peaks_nk=peaks_nk,
            inside_nkb=inside_nkb,
            outside_nkb=outside_nkb,
            sizes_n2=sizes_n2,
            brightness_n=brightness_n,
            region_frames_r=np.concatenate([np.zeros(0, np.int64), *of_mask]),
            region_types_r=np.concatenate([np.zeros(0, np.int64), *of_type]),
            region_boxes_r4=np.concatenate([no_boxes, *(r.boxes_r4 for _, _, r in self._regions)]),
            region_counts_rb=np.concatenate(
                [no_counts, *(r.counts_rb for _, _, r in self._regions)]
            ),
            unanswered=tuple(self._unanswered),
            scored=scored,
            graded=graded,
            about=about,
            first_look_logits=np.array(first_look, np.float32) if len(first_look) == n else None,
        )


def _numbered(groups: Sequence[int]) -> Ints:
    """Each frame without a group (-1) gets a number of its own."""
    numbers = np.array(groups, np.int64)
    alone = numbers < 0
    first = numbers.max(initial=-1) + 1
    numbers[alone] = first + np.arange(np.count_nonzero(alone))
    return numbers


def _number(value: float) -> float | None:
    """Six significant digits, as in result lines."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            beside.write_bytes(content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); check the folder, its permissions and"
            " the free space"
        ) from error
