"""Frames that show the same piece of steel: the same file, the same pixels, or nearly so.

Also under flips and rotations by 90 degrees, which are how published data sets were "augmented"
before somebody split them.

The search goes from cheap to sure:

1. equal files and equal pixels, by hash; flips and rotations of frames whose brightness, contrast
   and dark share are equal to the last bit, as those of a turned frame are;
2. of one frame of each group found so far, all pairs of thumbnails under every turn; the most
   similar ones are candidates. Thumbnails alone do not prove anything: frames of chequered plate,
   or with the same dark margin, correlate up to 0.92;
3. candidates are decoded again and compared patch by patch at half size, moved against each other
   by a few pixels where that fits better. The same steel agrees in nearly every patch with
   texture, whatever JPEG did to it; another piece with the same pattern disagrees in many.

Not found: the same steel at another scale, turned by other angles, or shifted by more than a few
pixels; frames without texture that are not equal to the last bit.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from threading import Lock
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from steelsight.data.catalog import (
    Catalog,
    FrameRecord,
    hash_pixels,
    normalise_locally,
    reduce_frame,
    reduction,
    thumbnail_grid,
)
from steelsight.data.threads import in_order
from steelsight.errors import DecodeError, InputError
from steelsight.imaging import GreyHW, read_file

# How alike is alike. The figures come from `pytest -m soak -s tests/data/test_duplicates.py`, which
# prints them: 748 Severstal and 900 NEU frames, of which 2 and 6 pairs show the same steel, and
# copies of every fourth one (JPEG quality 50; quality 75 and 10 grey levels darker). The best
# non-pairs are frames of chequered plate.

_SURE_CANDIDATE = 0.8
"""Thumbnails that correlate better are compared in any case. Copies: at least 0.906 (Severstal),
0.847 (NEU); 3 of 279,376 non-pairs of Severstal frames are above, the best has 0.918."""
_LEAST_CANDIDATE = 0.3
_MORE_CANDIDATES = 300
"""Of the pairs in between, as many as this, the best first. They can be moved against each other:
five pairs of NEU frames are second photographs of the same steel, with thumbnails from 0.34 on.
Of these 748 and 900 frames that is every pair above (215 and 27 are not the same steel)."""
_CANDIDATES_PER_FRAME = 8
"""Of each frame with those before it: in a family of thousands each is still tied to the rest."""
_BATCH = 64
"""How many candidates are compared before the families are looked at again."""

_LEAST_AGREEMENT = 0.2
"""Similarity of pairs that are reported. Copies of quality 50: at least 0.286 (Severstal), 0.259
(NEU), of quality 75: 0.54 and 0.49; second photographs: 0.47 to 0.57; best non-pair: 0.125."""
_REACH = 6
"""How far frames are moved against each other to fit, in pixels at confirmation size."""
_PATCH = 8
"""Side of a patch, in pixels at confirmation size."""
_LEAST_CONTRAST = 0.7
"""A patch with less contrast, in grey levels, has no texture that survives a compression."""
_LEAST_PATCHES = 16
"""With texture: fewer do not show that two frames are the same."""


class Likeness(StrEnum):
    """How much two frames are the same; in falling order."""

    SAME_FILE = "same-file"
    """Equal bytes."""
    SAME_PIXELS = "same-pixels"
    """Different files, equal pixels, possibly after a flip or rotation."""
    NEAR = "near"
    """Nearly equal pixels, such as after another JPEG compression."""


class Turn(StrEnum):
    """What turns one frame into the other."""

    NONE = "none"
    FLIP_LEFT_RIGHT = "flip-left-right"
    FLIP_UP_DOWN = "flip-up-down"
    ROTATE_180 = "rotate-180"
    ROTATE_90 = "rotate-90"
    """Counter-clockwise, as ``numpy.rot90``."""
    ROTATE_270 = "rotate-270"
    TRANSPOSE = "transpose"
    ANTI_TRANSPOSE = "anti-transpose"


@dataclass(frozen=True, slots=True)
class DuplicatePair:
    """Two frames that show the same steel.

    Attributes:
        a, b: image names, ``a < b``.
        likeness: how much they are the same.
        turn: applied to ``a`` gives ``b``.
        similarity: three quarters of the patches with texture correlate at least so well; 1 for
            equal pixels.
        shift_xy: how far the turned ``a`` must be moved right and down to lie on ``b``, in pixels
            of ``b``, to about 2 px.
    """

    a: str
    b: str
    likeness: Likeness
    turn: Turn
    similarity: float
    shift_xy: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Duplicates:
    """What was found in one catalog.

    Attributes:
        pairs: enough of them to connect every group; sorted.
        groups: families of two and more frames that pairs connect, each sorted, sorted by first
            name. A frame is in at most one.
    """

    pairs: tuple[DuplicatePair, ...]
    groups: tuple[tuple[str, ...], ...]


def turned(array: npt.NDArray[Any], turn: Turn) -> npt.NDArray[Any]:
    """The last two axes, rows and columns, flipped or rotated; a view."""
    return _TURNS[turn](array)


_TURNS: dict[Turn, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    Turn.NONE: lambda a: a,
    Turn.FLIP_LEFT_RIGHT: lambda a: a[..., ::-1],
    Turn.FLIP_UP_DOWN: lambda a: a[..., ::-1, :],
    Turn.ROTATE_180: lambda a: a[..., ::-1, ::-1],
    Turn.ROTATE_90: lambda a: a.swapaxes(-1, -2)[..., ::-1, :],
    Turn.ROTATE_270: lambda a: a.swapaxes(-1, -2)[..., ::-1],
    Turn.TRANSPOSE: lambda a: a.swapaxes(-1, -2),
    Turn.ANTI_TRANSPOSE: lambda a: a.swapaxes(-1, -2)[..., ::-1, ::-1],
}
_UPRIGHT = tuple(Turn)[:4]
_SIDEWAYS = tuple(Turn)[4:]
_INVERSE = {Turn.ROTATE_90: Turn.ROTATE_270, Turn.ROTATE_270: Turn.ROTATE_90}
"""The others are their own inverse."""


def find_duplicates(
    catalog: Catalog, *, progress: Callable[[int, int], None] | None = None
) -> Duplicates:
    """Families of frames that show the same steel. Frames that were not decodable are left out.

    Args:
        catalog: what ``scan`` returned; the images must still be there.
        progress: called with the work done and all the work; the search is the first half.

    Raises:
        InputError: an image has changed or gone since the scan.
    """
    records = catalog.records
    frames = [i for i, record in enumerate(records) if record.pixels_sha256 is not None]
    families = _Families(range(len(records)))
    pairs = list(_equal_pairs(catalog, frames, families))
    left = [i for i in frames if families.first(i) == i]
    search = _ThumbnailSearch(catalog, left)
    candidates = []
    for done, found in search:
        candidates += found
        if progress:
            progress(done, 2 * len(left))
    candidates.sort(key=lambda c: -c.similarity)
    sure = sum(c.similarity >= _SURE_CANDIDATE for c in candidates)
    candidates = candidates[: sure + _MORE_CANDIDATES]
    pairs += _confirmed(catalog, candidates, families, len(left), progress)
    if progress:
        progress(2 * len(left), 2 * len(left))
    return Duplicates(
        tuple(sorted(pairs, key=lambda pair: (pair.a, pair.b))),
        tuple(
            tuple(records[i].image for i in members)
            for members in families.members(frames)
            if len(members) > 1
        ),
    )


class _Families:
    """Union-find over record numbers; the first member stands for the family."""

    def __init__(self, parent: Iterable[int]) -> None:
        self._parent = list(parent)

    def copy(self) -> "_Families":
        return _Families(self._parent)

    def first(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = i = self._parent[self._parent[i]]
        return i

    def joined(self, i: int, j: int) -> bool:
        return self.first(i) == self.first(j)

    def join(self, i: int, j: int) -> bool:
        """Whether they were in two families until now."""
        low, high = sorted((self.first(i), self.first(j)))
        self._parent[high] = low
        return low != high

    def members(self, of: Iterable[int]) -> list[list[int]]:
        by_first: dict[int, list[int]] = {}
        for i in of:
            by_first.setdefault(self.first(i), []).append(i)
        return list(by_first.values())


# Equal frames ------------------------------------------------------------------------------------


def _equal_pairs(
    catalog: Catalog, frames: Sequence[int], families: _Families
) -> Iterator[DuplicatePair]:
    """Every frame with the first one that it equals."""
    records = catalog.records

    def pair(i: int, j: int, likeness: Likeness, turn: Turn) -> DuplicatePair:
        families.join(i, j)
        return DuplicatePair(records[i].image, records[j].image, likeness, turn, 1.0)

    first_file: dict[str | None, int] = {}
    first_pixels: dict[str | None, int] = {}
    by_measures: dict[object, list[int]] = {}
    for j in frames:
        record = records[j]
        i = first_file.setdefault(record.sha256, j)
        if i != j:
            yield pair(i, j, Likeness.SAME_FILE, Turn.NONE)
            continue
        i = first_pixels.setdefault(record.pixels_sha256, j)
        if i != j:
            yield pair(i, j, Likeness.SAME_PIXELS, Turn.NONE)
            continue
        measures = record.brightness, record.contrast, record.dark_share
        by_measures.setdefault((*sorted(record.size_wh or ()), *measures), []).append(j)
    for alike in by_measures.values():
        turned_pixels: dict[str, tuple[int, Turn]] = {}
        for j in alike if len(alike) > 1 else ():
            known = turned_pixels.get(records[j].pixels_sha256 or "")
            if known is not None:
                yield pair(known[0], j, Likeness.SAME_PIXELS, known[1])
                continue
            grey_hw = _read(catalog, j)
            for turn in Turn:
                turned_pixels.setdefault(hash_pixels(turned(grey_hw, turn)), (j, turn))


def _read(catalog: Catalog, i: int) -> GreyHW:
    record = catalog.records[i]
    try:
        frame = read_file(record.path or "", policy=catalog.policy)
    except DecodeError as error:
        raise _changed(record, str(error)) from error
    if frame.sha256 != record.sha256:
        raise _changed(record, "other bytes")
    return frame.grey_hw


def _changed(record: FrameRecord, how: str) -> InputError:
    return InputError(
        f"{record.path} has changed since it was scanned ({how}), expected the same image;"
        " leave the files alone and start again"
    )


# Candidates --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Record numbers ``i < j``; ``turn`` applied to ``i`` resembles ``j``."""

    i: int
    j: int
    turn: Turn
    similarity: float


class _ThumbnailSearch:
    """Goes through all pairs of frames of one size, or of sizes that a turn by 90 degrees swaps.

    Each frame is paired with the most similar ones before it, by name, and only with a few: in a
    family of thousands each is then still tied to the rest.
    """

    _BLOCK = 512

    def __init__(self, catalog: Catalog, frames: Sequence[int]) -> None:
        self._frames_of: dict[tuple[int, int], npt.NDArray[np.intp]] = {}
        by_size: dict[tuple[int, int], list[int]] = {}
        for i in frames:
            if catalog.thumbnails[i].any():
                by_size.setdefault(catalog.records[i].size_wh or (0, 0), []).append(i)
        self._frames_of = {size_wh: np.array(of) for size_wh, of in by_size.items()}
        self._thumbnails = catalog.thumbnails

    def __iter__(self) -> Iterator[tuple[int, list[_Candidate]]]:
        """The number of frames compared so far, and the candidates of the last block."""
        done = 0
        for size_wh, frames in self._frames_of.items():
            for start in range(0, len(frames), self._BLOCK):
                block = frames[start : start + self._BLOCK]
                done += len(block)
                yield done, list(self._block(block, size_wh))

    def _block(self, later: npt.NDArray[np.intp], size_wh: tuple[int, int]) -> Iterator[_Candidate]:
        """The best candidates of each frame ``j`` in ``later`` among all ``i < j``."""
        for other_wh, turns in self._comparable(size_wh):
            earlier = self._frames_of[other_wh]
            earlier = earlier[earlier < later[-1]]
            if not len(earlier):
                continue
            columns = self._thumbnails[earlier]
            turned_later = [self._turned_back(later, size_wh, turn) for turn in turns]
            best = turned_later[0] @ columns.T
            for thumbnails in turned_later[1:]:
                np.maximum(best, thumbnails @ columns.T, out=best)
            best[earlier[None, :] >= later[:, None]] = -1
            keep = min(_CANDIDATES_PER_FRAME, len(earlier))
            top = np.argpartition(best, len(earlier) - keep, axis=1)[:, -keep:]
            rows, ranks = np.nonzero(np.take_along_axis(best, top, 1) > _LEAST_CANDIDATE)
            found = top[rows, ranks]
            # Which turn it was is only worked out for the few that are kept.
            by_turn = np.stack([(t[rows] * columns[found]).sum(axis=1) for t in turned_later])
            # Rounding must not decide on the turn of a frame that is its own mirror image.
            number = (by_turn > by_turn.max(axis=0, initial=-1) - 1e-5).argmax(axis=0)
            for row, column, turn in zip(rows, found, number, strict=True):
                similarity = float(best[row, column])
                yield _Candidate(int(earlier[column]), int(later[row]), turns[turn], similarity)

    def _comparable(
        self, size_wh: tuple[int, int]
    ) -> Iterator[tuple[tuple[int, int], tuple[Turn, ...]]]:
        width, height = size_wh
        if width == height:
            yield size_wh, _UPRIGHT + _SIDEWAYS
            return
        yield size_wh, _UPRIGHT
        if (height, width) in self._frames_of:
            yield (height, width), _SIDEWAYS

    def _turned_back(
        self, frames: npt.NDArray[np.intp], size_wh: tuple[int, int], turn: Turn
    ) -> npt.NDArray[np.float32]:
        """Thumbnails turned such that they resemble the frames that ``turn`` turns into them."""
        rows, columns = thumbnail_grid(size_wh)
        cells = self._thumbnails[frames, : rows * columns].reshape(-1, rows, columns)
        back = np.zeros((len(frames), self._thumbnails.shape[1]), np.float32)
        back[:, : rows * columns] = turned(cells, _INVERSE.get(turn, turn)).reshape(len(frames), -1)
        return back


# Confirmation ------------------------------------------------------------------------------------


def _confirmed(
    catalog: Catalog,
    candidates: Sequence[_Candidate],
    families: _Families,
    scale: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[DuplicatePair]:
    """The candidates that show the same steel, best first; none within a family found before."""
    reduced = _Reduced(catalog)
    waiting = deque(candidates)
    while waiting:
        batch = _next_batch(waiting, families)
        compared = in_order(lambda candidate: _compare(reduced, candidate), batch, None)
        for candidate, (similarity, shift_xy) in zip(batch, compared, strict=True):
            if similarity >= _LEAST_AGREEMENT:
                families.join(candidate.i, candidate.j)
                a, b = (catalog.records[k].image for k in (candidate.i, candidate.j))
                yield DuplicatePair(a, b, Likeness.NEAR, candidate.turn, similarity, shift_xy)
        if progress:
            progress(scale + scale * (len(candidates) - len(waiting)) // len(candidates), 2 * scale)


def _next_batch(waiting: deque[_Candidate], families: _Families) -> list[_Candidate]:
    """Takes the best candidates that do not make each other superfluous if all are confirmed.

    Those that would be stay waiting; those within a family found before are dropped.
    """
    hoped_for = families.copy()
    batch: list[_Candidate] = []
    left: list[_Candidate] = []
    while waiting and len(batch) < _BATCH:
        candidate = waiting.popleft()
        if hoped_for.join(candidate.i, candidate.j):
            batch.append(candidate)
        elif not families.joined(candidate.i, candidate.j):
            left.append(candidate)
    waiting.extendleft(reversed(left))
    return batch


class _Reduced:
    """Frames at confirmation size; the last used are kept. Safe for threads."""

    _MOST_BYTES = 128 << 20

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._kept: OrderedDict[int, GreyHW] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def __getitem__(self, i: int) -> GreyHW:
        with self._lock:
            if i in self._kept:
                self._kept.move_to_end(i)
                return self._kept[i]
        small = reduce_frame(_read(self._catalog, i))
        with self._lock:
            if i not in self._kept:
                self._kept[i] = small
                self._bytes += small.nbytes
            while self._bytes > self._MOST_BYTES and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= dropped.nbytes
        return small

    def factor(self, i: int) -> int:
        width, height = self._catalog.records[i].size_wh or (1, 1)
        return reduction(width, height)


def _compare(reduced: _Reduced, candidate: _Candidate) -> tuple[float, tuple[int, int]]:
    """Similarity and shift in pixels of the frame; see :class:`DuplicatePair`."""
    factor = reduced.factor(candidate.j)
    a_hw = turned(reduced[candidate.i], candidate.turn)
    similarity, (dx, dy) = _agreement_of(a_hw, reduced[candidate.j])
    return similarity, (dx * factor, dy * factor)


def _agreement_of(a_hw: GreyHW, b_hw: GreyHW) -> tuple[float, tuple[int, int]]:
    """Similarity, and shift in pixels at confirmation size."""
    a, b = (np.ascontiguousarray(x, np.float32) for x in (a_hw, b_hw))
    dx, dy = _best_shift(a, b)
    height, width = b.shape
    common_a = np.s_[max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)]
    common_b = np.s_[max(dy, 0) : height - max(-dy, 0), max(dx, 0) : width - max(-dx, 0)]
    return _agreement(_detail(a)[common_a], _detail(b)[common_b]), (dx, dy)


def _best_shift(a_hw: npt.NDArray[np.float32], b_hw: npt.NDArray[np.float32]) -> tuple[int, int]:
    """How far right and down ``a`` must be moved to resemble ``b`` best."""
    reach_y, reach_x = (min(_REACH, side // 8) for side in a_hw.shape)
    a_hw, b_hw = (normalise_locally(x, window=9, floor=2) for x in (a_hw, b_hw))
    height, width = a_hw.shape
    middle = a_hw[reach_y : height - reach_y, reach_x : width - reach_x]
    fit = cv2.matchTemplate(b_hw, np.ascontiguousarray(middle), cv2.TM_CCOEFF_NORMED)
    _, _, _, (x, y) = cv2.minMaxLoc(fit)
    return x - reach_x, y - reach_y


def _detail(grey_hw: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return grey_hw - cv2.blur(grey_hw, (5, 5), borderType=cv2.BORDER_REFLECT)


def _agreement(a_hw: npt.NDArray[np.float32], b_hw: npt.NDArray[np.float32]) -> float:
    """The lower quartile of the correlations of patches with texture; 0 where there are too few."""
    a, b = _patches(a_hw), _patches(b_hw)
    contrast = np.sqrt((a * a).mean((1, 3)) * (b * b).mean((1, 3)))
    textured = contrast > _LEAST_CONTRAST**2
    if np.count_nonzero(textured) < _LEAST_PATCHES:
        return 0.0
    correlations = (a * b).mean((1, 3))[textured] / contrast[textured]
    return float(np.quantile(correlations, 0.25))


def _patches(detail_hw: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Cut into patches (rows, height, columns, width) without their row and column means.

    So a straight edge of the strip, which is the same on all steel, is no texture.
    """
    rows, columns = (side // _PATCH for side in detail_hw.shape)
    whole = detail_hw[: rows * _PATCH, : columns * _PATCH]
    patches: npt.NDArray[np.float32] = whole.reshape(rows, _PATCH, columns, _PATCH)
    patches = patches - patches.mean(1, keepdims=True)
    patches -= patches.mean(3, keepdims=True)
    return patches
