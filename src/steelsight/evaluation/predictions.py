"""What a network said about labelled frames: all that figures and thresholds are computed from.

Masks are kept as counts of pixels by mask logit, inside and outside of the labelled mask: 800 bytes
a type instead of a megabyte. They give the Dice of a frame at any of the 49 thresholds exactly.

Shapes: N frames, K types in channel order, B bins of mask logits.
"""

import io
import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelsight.data.labels import shown
from steelsight.data.tables import check_is_file
from steelsight.errors import InputError, first_names

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Float32s = NDArray[np.float32]
Bools = NDArray[np.bool_]


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

_FILE_FORMAT = "steelsight predictions"
_FILE_VERSION = 1
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
        for k, plane in enumerate(planes_kp[:, block]):
            if not (plane.min() >= 0 and plane.max() <= 1):  # also NaN
                raise InputError(
                    f"expected mask probabilities from 0 to 1, the network gave {plane.min()} to"
                    f" {plane.max()}; it diverged: lower its learning rate"
                )
            bins = _BIN_OF_CELL[(plane * np.float32(_CELLS)).astype(np.int16)]
            bins += plane >= _NEXT_EDGE[bins]
            bins += (bits_p[block] >> k & 1).astype(np.uint8) * np.uint8(BINS)
            counts_kb[k] += np.bincount(bins, minlength=2 * BINS)
    return counts_kb[:, BINS:], counts_kb[:, :BINS]


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What a network said about frames, and what their labels say.

    Attributes:
        images: names of the frames, each once.
        class_ids: the types, in channel order.
        folds: which part of a cross-validation held the frame out, ``(N,)``.
        faulty: label: a defect of any type is on the frame, ``(N,)``.
        present_nk: label: the type is on the frame.
        masked_nk: the type is on the frame and its mask is known. Dice is measured on these.
        faulty_logits: mean of both heads' faulty logits, ``(N,)``.
        head_logits_n2k: logits of both heads (average, soft maximum), ``(N, 2, 1 + K)``: faulty,
            then the types.
        peaks_nk: :func:`steelsight.decisions.mask_peaks` of the mask probabilities at full size.
        inside_nkb: pixels by mask logit inside of the labelled mask, see :func:`mask_counts`.
        outside_nkb: the same outside of it: all pixels where the type has no mask.

    Raises:
        ValueError: lengths, shapes or number types differ, or the labels contradict each other.
    """

    images: tuple[str, ...]
    class_ids: tuple[str, ...]
    folds: Ints
    faulty: Bools
    present_nk: Bools
    masked_nk: Bools
    faulty_logits: Float32s
    head_logits_n2k: Float32s
    peaks_nk: Float32s
    inside_nkb: Ints
    outside_nkb: Ints

    def __post_init__(self) -> None:
        n, k = len(self.images), len(self.class_ids)
        for name, kind, shape in (
            ("folds", np.int64, (n,)),
            ("faulty", np.bool_, (n,)),
            ("present_nk", np.bool_, (n, k)),
            ("masked_nk", np.bool_, (n, k)),
            ("faulty_logits", np.float32, (n,)),
            ("head_logits_n2k", np.float32, (n, 2, 1 + k)),
            ("peaks_nk", np.float32, (n, k)),
            ("inside_nkb", np.int64, (n, k, BINS)),
            ("outside_nkb", np.int64, (n, k, BINS)),
        ):
            array = getattr(self, name)
            if array.dtype != kind or array.shape != shape:
                raise ValueError(
                    f"{name}: expected {np.dtype(kind)} {shape}, got {array.dtype} {array.shape}"
                )
        for names in (self.images, self.class_ids):
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

    def __len__(self) -> int:
        return len(self.images)

    @property
    def faulty_probability(self) -> Floats:
        """Stage 1's answer, 0..1, ``(N,)``."""
        return sigmoid(self.faulty_logits)

    @property
    def type_scores_nk(self) -> Floats:
        """Score of each type as in :mod:`steelsight.decisions`, 0..1, every frame segmented."""
        scores_nk: Floats = sigmoid(self.head_logits_n2k[:, :, 1:]).sum(axis=1) + self.peaks_nk
        return scores_nk / 3

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
        }
        content = io.BytesIO()
        np.savez_compressed(
            content,
            about=np.frombuffer(json.dumps(about).encode(), np.uint8),
            **{name: getattr(self, name) for name in _ARRAYS},
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
                    images, class_ids = _names(json.loads(arrays["about"].tobytes()))
                    return cls(images, class_ids, *(arrays[name] for name in _ARRAYS))
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
        return Predictions(
            tuple(images),
            class_ids,
            *(np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS),
        )


_ARRAYS = tuple(field.name for field in fields(Predictions))[2:]


def _names(about: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Images and types of a file."""
    if about["format"] != _FILE_FORMAT or about["version"] != _FILE_VERSION:
        raise ValueError("another format or version")
    images, class_ids = tuple(about["images"]), tuple(about["class_ids"])
    if not all(isinstance(name, str) for name in images + class_ids):
        raise ValueError("a name is no text")
    return images, class_ids


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
