"""What a data set is made of, and what follows from it for training and for tests.

:func:`summarise` measures every mask once and counts every frame; the figures go to
``summary.json`` and to the page of :mod:`steelsight.report.explore_page`. It works on labels alone,
on types without masks, and on a whole scanned catalog.

What the figures mean is said in sentences (:class:`Consequence`), each with a code that does not
change and the numbers it was made from.

Shapes: ``_hw`` rows x columns, ``_wh`` columns x rows. Areas and lengths in pixels of the frame.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from steelsight.data.catalog import Catalog, FrameRecord
from steelsight.data.duplicates import Duplicates
from steelsight.data.labels import FrameLabels, LabelClass, LabelSet, shown
from steelsight.errors import InputError
from steelsight.masks import decode_rle, regions

CONFIDENCE = 0.95
TEST_SHARE = 0.2
"""The share of frames that a test is usually given."""
WANTED_RATE = 0.02
"""A missed-defect rate worth showing; the sentences say how many frames it takes."""
EDGE_PX = 32
"""How far from the border of the frame a pixel counts as near it."""
SPECK_AREA_PX = 32
"""Regions of fewer pixels are called specks, as in the audit."""
THIN_PX = 3
"""A region narrower than this is easily lost: one pixel of it is left between two borders."""
SHRINK_FACTORS = (1, 2, 4, 8)
CELL_PX = 16
"""Side of a heat map's cell, ..."""
MAX_CELLS = 120
"""... as long as no side of the map has more cells."""
EXAMPLE_PERCENTILES = (10, 50, 90)

_POINTS = 1000
"""At how many places along the sequence the running median is taken."""
_SHOWN_COMBINATIONS = 12
_SHOWN_SIZES = 12
_SHOWN_MISFITS = 20
_BATCH = 64

Floats = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]
"""Called with (masks done, masks in all)."""


# The figures -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FrameCounts:
    """Every frame counted once: ``frames = faulty + clean + disputed + refused + unlabelled``.

    Attributes:
        frames: all that labels or images name, and those assumed to be clean.
        faulty: hold a type, undisputed.
        clean: known to be good steel, undisputed.
        disputed: the label is doubtful: counted nowhere else.
        refused: a label was broken.
        unlabelled: an image that no label mentions.
        assumed_clean: of the clean ones, those that neither labels nor images name: the rest up to
            ``total_frames``.
        without_mask: of the faulty ones, those where no type has a mask.
        partly_masked: of the faulty ones, those where some types have a mask and some have none.
        images: frames whose file is there; ``images + missing + assumed_clean = frames``.
        missing: labelled frames without a file; ``None`` if no images were given at all.
        readable, unreadable: of the images; ``None`` if they were not scanned.
    """

    frames: int
    faulty: int
    clean: int
    disputed: int
    refused: int
    unlabelled: int
    assumed_clean: int
    without_mask: int
    partly_masked: int
    images: int
    missing: int | None
    readable: int | None
    unreadable: int | None

    @property
    def known(self) -> int:
        """Frames whose types are known: faulty and clean."""
        return self.faulty + self.clean


@dataclass(frozen=True, slots=True)
class Distribution:
    """How numbers from 1 up are distributed.

    Attributes:
        count: how many there are; with none, everything else is empty.
        mean: their mean.
        quantiles: ``min``, ``p5``, ``p10``, ``p25``, ``median``, ``p75``, ``p90``, ``p95``,
            ``max``.
        edges: of the bins: powers of 2, or of the square root of 2, from 1 on; one more than bins.
        counts: numbers per bin; the lower edge belongs to a bin.
    """

    count: int
    mean: float | None
    quantiles: Mapping[str, float]
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def median(self) -> float | None:
        """The middle one."""
        return self.quantiles.get("median")


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Where on the frame a type sits.

    Attributes:
        coverage: rows of cells: the share of a cell's pixels that is covered on average over the
            masks of the type, 0..1.
        frame_wh: the most frequent frame size in pixels, on which the cells lie; frames of
            another size are stretched to it.
    """

    coverage: tuple[tuple[float, ...], ...]
    frame_wh: tuple[int, int]


@dataclass(frozen=True, slots=True)
class TypeSummary:
    """One defect type. Everything below ``masks`` is over the measured masks.

    Attributes:
        id, name: as in the labels.
        frames: undisputed frames that hold it, with or without a mask.
        share: of all pairs of a frame and a type on it, 0..1.
        alone: frames that hold no other type.
        masks: measured masks; one per frame and type.
        area_px: pixels of all masks.
        mask_area_px: per mask.
        region_area_px: per connected region.
        regions_per_mask: connected regions (8 neighbours).
        elongation: length / width of the minimum-area rectangle around each region.
        width_px: the shorter side of that rectangle.
        narrow_share: by shrink factor, the share of regions then narrower than ``THIN_PX``.
        specks: regions of fewer than ``SPECK_AREA_PX`` pixels.
        near_edge_share: of its pixels, those within ``EDGE_PX`` of the frame's border.
        edge_band_share: of the frames' pixels, those there: what chance alone would give.
        touching_edge: masks that touch the border of the frame.
        rle_runs, rle_characters: per mask, in canonical Kaggle RLE.
        heat: where on the frame it sits; ``None`` without masks.
    """

    id: str
    name: str
    frames: int
    share: float
    alone: int
    masks: int
    area_px: int
    mask_area_px: Distribution
    region_area_px: Distribution
    regions_per_mask: Distribution
    elongation: Distribution
    width_px: Distribution
    narrow_share: Mapping[str, float]
    specks: int
    near_edge_share: float | None
    edge_band_share: float | None
    touching_edge: int
    rle_runs: Distribution
    rle_characters: Distribution
    heat: HeatMap | None

    @property
    def title(self) -> str:
        """The name in a sentence: ``type 3``, ``type scratches``."""
        return type_title(self.name)

    @property
    def regions(self) -> int:
        """Connected regions of all measured masks."""
        return self.region_area_px.count


@dataclass(frozen=True, slots=True)
class Series:
    """One number per frame, in the order of the names.

    Attributes:
        values: one per readable frame.
        median_at: positions in ``values`` where the running median was taken.
        running_median: there, over ``window`` neighbours: robust against single bright frames.
        window: how many frames that is; always odd.
        neighbour_correlation: rank correlation of each frame with the next: near 0 where the order
            of the names says nothing; ``None`` for fewer than 30 frames or equal values.
    """

    values: tuple[float, ...]
    median_at: tuple[int, ...]
    running_median: tuple[float, ...]
    window: int
    neighbour_correlation: float | None

    def to_json(self) -> dict[str, Any]:
        """The single values are left out: they stand in the catalog."""
        return {
            "quantiles": _plain(_quantiles(np.array(self.values))),
            "window": self.window,
            "median_at": list(self.median_at),
            "running_median": _plain(self.running_median),
            "neighbour_correlation": _plain(self.neighbour_correlation),
        }


@dataclass(frozen=True, slots=True)
class Light:
    """How bright the readable frames are, in the order of their names.

    Attributes:
        frames: how many.
        brightness: mean grey level, 0..255.
        contrast: standard deviation of the grey levels.
        dark_share: share of pixels darker than 16: the area beside the strip, mostly.
    """

    frames: int
    brightness: Series
    contrast: Series
    dark_share: Series


@dataclass(frozen=True, slots=True)
class DuplicateCounts:
    """Families of frames that show the same piece of steel.

    Attributes:
        groups: families.
        frames: members of all families.
        copies: members beyond the first of each: what a set without copies would lose.
        largest: members of the largest family.
        different_types: families whose labelled members do not carry the same types.
        across_splits: families with members in more than one part of the given split.
        by_likeness, by_turn: pairs.
    """

    groups: int
    frames: int
    copies: int
    largest: int
    different_types: int
    across_splits: int
    by_likeness: Mapping[str, int]
    by_turn: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Example:
    """A frame worth showing.

    Attributes:
        image: its name.
        class_id: the type it stands for; ``None`` for good steel.
        percentile: where it lies among the masks of its type by area, or among good frames by
            brightness; ``None`` where neither is known.
        area_px: of that mask.
    """

    image: str
    class_id: str | None
    percentile: int | None = None
    area_px: int | None = None


class Topic(StrEnum):
    """What a consequence is about; in the order of the page."""

    MEND = "mend"
    """Look at it before anything is trained."""
    PROVE = "prove"
    """What a test on this data can show."""
    SCORE = "score"
    """How a score on this data is to be read."""
    COPE = "cope"
    """What a detector has to cope with."""


@dataclass(frozen=True, slots=True)
class Consequence:
    """What a figure means, in one or two plain sentences.

    Attributes:
        code: stable name for machines.
        topic: what it is about.
        title: a few words.
        sentence: for people, with the figures in it.
        figures: the same numbers for machines.
    """

    code: str
    topic: Topic
    title: str
    sentence: str
    figures: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that the page shows; :meth:`to_json` is ``summary.json``.

    Attributes:
        source, format: where the labels came from.
        counts: frames by what is known of them.
        types: in the order of the classes.
        types_per_frame: number of types -> known frames; 0 are the clean ones.
        combinations: which types occur together on a frame, the most frequent first.
        combination_count: how many different combinations there are.
        co_occurrence: frames that hold type i and type j; on the diagonal those that hold i.
        pairs: pairs of a frame and a type on it, masked or not.
        masks, regions: measured ones.
        mask_area_px: of all measured masks.
        unmeasured_masks: masks of frames whose size nobody tells.
        misfits: masks that do not fit their frame, one line each; at most 20 are listed.
        misfit_masks: how many there are.
        defect_share: share of all pixels of the known frames that is defective; where masks are
            missing, with the mean area of their type.
        predict_nothing_score: Kaggle Dice of predicting no defect anywhere.
        sizes: frame sizes (width, height) and frames of each, the most frequent first.
        size_count: how many different sizes there are.
        splits: frames by part of a published split.
        light: brightness along the names; ``None`` without a scan.
        duplicates: ``None`` if they were not searched.
        examples, clean_examples: frames whose images are there.
        consequences: what follows, by topic.
        notes: what was assumed on the way in.
    """

    source: str
    format: str
    counts: FrameCounts
    types: tuple[TypeSummary, ...]
    types_per_frame: Mapping[int, int]
    combinations: tuple[tuple[tuple[str, ...], int], ...]
    combination_count: int
    co_occurrence: tuple[tuple[int, ...], ...]
    pairs: int
    masks: int
    regions: int
    mask_area_px: Distribution
    unmeasured_masks: int
    misfits: tuple[str, ...]
    misfit_masks: int
    defect_share: float | None
    predict_nothing_score: float | None
    sizes: tuple[tuple[tuple[int, int], int], ...]
    size_count: int
    splits: Mapping[str, int]
    light: Light | None
    duplicates: DuplicateCounts | None
    examples: tuple[Example, ...]
    clean_examples: tuple[Example, ...]
    consequences: tuple[Consequence, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Ready for ``json.dumps(..., allow_nan=False)``; numbers carry six significant digits."""
        plain = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        plain["combinations"] = [
            {"types": list(ids), "frames": frames} for ids, frames in self.combinations
        ]
        plain["sizes"] = [{"size_wh": list(size), "frames": n} for size, n in self.sizes]
        return plain


def summarise(
    label_set: LabelSet,
    catalog: Catalog | None = None,
    duplicates: Duplicates | None = None,
    *,
    total_frames: int | None = None,
    size_wh: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Counts the frames, measures the masks, and says what follows.

    Args:
        label_set: the labels.
        catalog: the scanned images; without it, sizes, light and unreadable files are not known.
        duplicates: what :mod:`steelsight.data.duplicates` found.
        total_frames: frames of the whole data set, where the labels list the faulty ones only (as
            Severstal's later ``train.csv``): the rest counts as clean.
        size_wh: width and height of frames of which neither labels nor images tell it. A mask of a
            frame without any size is not measured.
        progress: called now and then.

    Raises:
        InputError: ``total_frames`` is less than the frames that are there.
    """
    records = {record.image: record for record in catalog.records} if catalog else {}
    counts = _frame_counts(label_set, records, total_frames)
    # A doubtful label says nothing about a type: disputed frames are counted, not measured.
    sure = [frame for frame in label_set.frames.values() if not frame.disputed]
    items, unmeasured = _masks_of(sure, records, size_wh)
    frame_wh = Counter(item.size_wh for item in items).most_common(1)[0][0] if items else (1, 1)
    tallies = {c.id: _Tally() for c in label_set.classes}
    misfits = _measure(items, tallies, frame_wh, progress)

    order = {class_id: index for index, class_id in enumerate(label_set.class_ids)}
    together = Counter(tuple(sorted(set(f.class_ids), key=order.__getitem__)) for f in sure)
    clean_frames = together.pop((), 0) + counts.assumed_clean
    co_occurrence = tuple(
        tuple(sum(n for ids, n in together.items() if {a, b} <= set(ids)) for b in order)
        for a in order
    )
    pairs = sum(len(ids) * n for ids, n in together.items())
    types = tuple(
        tallies[c.id].summary(c, co_occurrence[i][i], pairs, together[(c.id,)], frame_wh)
        for i, c in enumerate(label_set.classes)
    )
    types_per_frame = Counter({0: clean_frames})
    for ids, n in together.items():
        types_per_frame[len(ids)] += n
    sizes = _frame_sizes(label_set, records, size_wh)
    possible = counts.known * len(types)
    summary = Summary(
        source=str(label_set.source),
        format=label_set.format,
        counts=counts,
        types=types,
        types_per_frame=dict(sorted(types_per_frame.items())),
        combinations=tuple(
            sorted(together.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN_COMBINATIONS]
        ),
        combination_count=len(together),
        co_occurrence=co_occurrence,
        pairs=pairs,
        masks=sum(t.masks for t in types),
        regions=sum(t.regions for t in types),
        mask_area_px=_distribution([a for t in tallies.values() for a in t.mask_areas_px]),
        unmeasured_masks=unmeasured,
        misfits=tuple(misfits[:_SHOWN_MISFITS]),
        misfit_masks=len(misfits),
        defect_share=_defect_share(types, counts.known, sizes),
        predict_nothing_score=1 - pairs / possible if possible else None,
        sizes=tuple(sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN_SIZES]),
        size_count=len(sizes),
        splits=dict(sorted(Counter(f.split for f in sure if f.split).items())),
        light=_light(records.values()),
        duplicates=None if duplicates is None else _duplicate_counts(duplicates, label_set),
        examples=_examples(sure, tallies, _usable_sizes(label_set, records)),
        clean_examples=_clean_examples(sure, records, _usable_sizes(label_set, records)),
        consequences=(),
        notes=label_set.notes,
    )
    return replace(summary, consequences=tuple(_consequences(summary)))


def frames_in_test(frames: int) -> int:
    """How many of them a test on ``TEST_SHARE`` gets."""
    return math.floor(TEST_SHARE * frames)


def smallest_provable_rate(frames: int, confidence: float = CONFIDENCE) -> float:
    """The smallest miss rate that a test can show: the bound when none of its frames is missed.

    The one-sided limit of Clopper and Pearson (1934), which for no miss is ``1 - (1 - c)**(1/n)``;
    1 for a test without frames.
    """
    return 1 - (1 - confidence) ** (1 / frames) if frames else 1.0


def frames_to_prove(rate: float, confidence: float = CONFIDENCE) -> int:
    """How many frames, none of them missed, show a rate below ``rate``: 149 for 2 % at 95 %."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-rate))


def type_title(name: str) -> str:
    """A type in the middle of a sentence: ``3`` and ``Type 3`` become ``type 3``."""
    return f"type {name[5:] if name[:5].casefold() == 'type ' else name}"


def share_text(share: float) -> str:
    """A share 0..1 as per cent: 72.6 %, 5.9 %, 0.31 %; only all is 100 %, only nothing is 0 %."""
    percent = 100 * share
    if 0 < percent < 0.01:
        return "under 0.01 %"
    if percent < 1:
        return f"{percent:.2g} %"
    if share >= 1:
        return f"{percent:.0f} %"
    return "over 99.9 %" if percent >= 99.95 else f"{percent:.1f} %"


# Frames ------------------------------------------------------------------------------------------


def _frame_counts(
    label_set: LabelSet, records: Mapping[str, FrameRecord], total_frames: int | None
) -> FrameCounts:
    frames = label_set.frames.values()
    names = {*label_set.frames, *label_set.refused, *label_set.image_paths, *records}
    if total_frames is not None and total_frames < len(names):
        raise InputError(
            f"expected a total of at least {len(names)} frames, which labels and images name, got"
            f" {total_frames}; give the size of the whole data set, or leave it out"
        )
    assumed_clean = 0 if total_frames is None else total_frames - len(names)
    images = {name for name, record in records.items() if record.path is not None}
    images |= label_set.image_paths.keys() - records.keys()
    readable = sum(record.size_wh is not None for record in records.values())
    faulty = [f for f in frames if f.class_ids and not f.disputed]
    return FrameCounts(
        frames=len(names) + assumed_clean,
        faulty=len(faulty),
        clean=sum(f.clean for f in frames) + assumed_clean,
        disputed=sum(f.disputed for f in frames),
        refused=len(label_set.refused),
        unlabelled=len(names - label_set.frames.keys() - label_set.refused),
        assumed_clean=assumed_clean,
        without_mask=sum(not f.rle_by_class for f in faulty),
        partly_masked=sum(bool(f.rle_by_class and f.types_without_mask) for f in faulty),
        images=len(images),
        missing=len(names) - len(images) if images else None,
        readable=readable if images and records else None,
        unreadable=len(images) - readable if images and records else None,
    )


def _size_of(
    frame: FrameLabels, records: Mapping[str, FrameRecord], size_wh: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Its labels know best: the masks are written for that size."""
    record = records.get(frame.image)
    return frame.size_wh or (record.size_wh if record else None) or size_wh


def _frame_sizes(
    label_set: LabelSet,
    records: Mapping[str, FrameRecord],
    size_wh: tuple[int, int] | None,
) -> Counter[tuple[int, int]]:
    """As decoded; of frames without an image as the labels tell."""
    sizes: Counter[tuple[int, int]] = Counter()
    for image in label_set.frames.keys() | records.keys():
        record, frame = records.get(image), label_set.frames.get(image)
        size = record.size_wh if record else None
        if size is None and frame is not None:
            size = frame.size_wh or size_wh
        if size is not None:
            sizes[size] += 1
    return sizes


def _defect_share(
    types: Sequence[TypeSummary], known: int, sizes: Mapping[tuple[int, int], int]
) -> float | None:
    """Share of all pixels of the known frames; types without a mask count with their mean area."""
    if not known or not sizes or any(t.frames and not t.masks for t in types):
        return None
    frame_px = sum(w * h * n for (w, h), n in sizes.items()) / sum(sizes.values())
    area_px = sum(t.frames * t.area_px / t.masks for t in types if t.masks)
    return area_px / (frame_px * known)


def _duplicate_counts(duplicates: Duplicates, label_set: LabelSet) -> DuplicateCounts:
    different = spanning = 0
    for group in duplicates.groups:
        members = [label_set.frames[image] for image in group if image in label_set.frames]
        different += len({frozenset(f.class_ids) for f in members if not f.disputed}) > 1
        spanning += len({f.split for f in members if f.split}) > 1
    in_groups = sum(map(len, duplicates.groups))
    return DuplicateCounts(
        groups=len(duplicates.groups),
        frames=in_groups,
        copies=in_groups - len(duplicates.groups),
        largest=max(map(len, duplicates.groups), default=0),
        different_types=different,
        across_splits=spanning,
        by_likeness=dict(Counter(pair.likeness.value for pair in duplicates.pairs).most_common()),
        by_turn=dict(Counter(pair.turn.value for pair in duplicates.pairs).most_common()),
    )


def _light(records: Iterable[FrameRecord]) -> Light | None:
    measured = [
        (r.brightness, r.contrast, r.dark_share)
        for r in records
        if r.brightness is not None and r.contrast is not None and r.dark_share is not None
    ]
    if not measured:
        return None
    return Light(len(measured), *map(_series, np.array(measured, np.float64).T))


def _series(values: Floats) -> Series:
    count = len(values)
    window = min(max(15, count // 25), 501, count)
    window -= window % 2 == 0
    at = np.linspace(0, count - 1, min(count, _POINTS)).round().astype(np.int64)
    first = np.clip(at - window // 2, 0, count - window)
    medians = np.median(values[first[:, None] + np.arange(window)], axis=1)
    ranks = _ranks(values)
    correlation = None
    if count >= 30 and np.ptp(ranks[:-1]) and np.ptp(ranks[1:]):
        correlation = float(np.corrcoef(ranks[:-1], ranks[1:])[0, 1])
    return Series(
        tuple(values.tolist()), tuple(at.tolist()), tuple(medians.tolist()), window, correlation
    )


def _ranks(values: Floats) -> Floats:
    """Ranks from 0; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[inverse], np.float64)


# Masks -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mask:
    """One mask to be measured."""

    image: str
    class_id: str
    rle: str
    size_wh: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Measured:
    """One mask, measured; the arrays have one element per region."""

    areas_px: npt.NDArray[np.int64]
    lengths_px: Floats
    widths_px: Floats
    near_edge_px: int
    touches_edge: bool
    coverage: npt.NDArray[np.float32]


@dataclass(slots=True)
class _Tally:
    """The masks of one type, added up."""

    images: list[tuple[str, tuple[int, int]]] = field(default_factory=list)
    mask_areas_px: list[int] = field(default_factory=list)
    region_counts: list[int] = field(default_factory=list)
    run_counts: list[int] = field(default_factory=list)
    character_counts: list[int] = field(default_factory=list)
    areas_px: list[npt.NDArray[np.int64]] = field(default_factory=list)
    lengths_px: list[Floats] = field(default_factory=list)
    widths_px: list[Floats] = field(default_factory=list)
    near_edge_px: int = 0
    band_px: int = 0
    frame_px: int = 0
    touching_edge: int = 0
    coverage: npt.NDArray[np.float64] | None = None

    def add(self, mask: _Mask, measured: _Measured) -> None:
        width, height = mask.size_wh
        self.images.append((mask.image, mask.size_wh))
        self.mask_areas_px.append(int(measured.areas_px.sum()))
        self.region_counts.append(len(measured.areas_px))
        self.run_counts.append((mask.rle.count(" ") + 1) // 2)
        self.character_counts.append(len(mask.rle))
        self.areas_px.append(measured.areas_px)
        self.lengths_px.append(measured.lengths_px)
        self.widths_px.append(measured.widths_px)
        self.near_edge_px += measured.near_edge_px
        inner_px = max(width - 2 * EDGE_PX, 0) * max(height - 2 * EDGE_PX, 0)
        self.band_px += width * height - inner_px
        self.frame_px += width * height
        self.touching_edge += measured.touches_edge
        if self.coverage is None:
            self.coverage = np.zeros(measured.coverage.shape)
        self.coverage += measured.coverage

    def summary(
        self,
        defect_class: LabelClass,
        frames: int,
        pairs: int,
        alone: int,
        frame_wh: tuple[int, int],
    ) -> TypeSummary:
        masks, area_px = len(self.images), sum(self.mask_areas_px)
        areas, lengths, widths = (
            np.concatenate([np.empty(0), *parts])
            for parts in (self.areas_px, self.lengths_px, self.widths_px)
        )
        heat = None
        if self.coverage is not None:
            rows = np.round(self.coverage / masks, 5).tolist()
            heat = HeatMap(tuple(map(tuple, rows)), frame_wh)
        return TypeSummary(
            id=defect_class.id,
            name=defect_class.name,
            frames=frames,
            share=frames / pairs if pairs else 0.0,
            alone=alone,
            masks=masks,
            area_px=area_px,
            mask_area_px=_distribution(self.mask_areas_px),
            region_area_px=_distribution(areas),
            regions_per_mask=_distribution(self.region_counts),
            elongation=_distribution(lengths / widths, per_octave=2),
            width_px=_distribution(widths),
            narrow_share={
                str(factor): float(np.mean(widths / factor < THIN_PX))
                for factor in SHRINK_FACTORS
                if masks
            },
            specks=int(np.count_nonzero(areas < SPECK_AREA_PX)),
            near_edge_share=self.near_edge_px / area_px if masks else None,
            edge_band_share=self.band_px / self.frame_px if masks else None,
            touching_edge=self.touching_edge,
            rle_runs=_distribution(self.run_counts),
            rle_characters=_distribution(self.character_counts),
            heat=heat,
        )


def _masks_of(
    frames: Iterable[FrameLabels],
    records: Mapping[str, FrameRecord],
    size_wh: tuple[int, int] | None,
) -> tuple[list[_Mask], int]:
    """All masks whose frame size is known, and the number of the others."""
    items: list[_Mask] = []
    unmeasured = 0
    for frame in frames:
        size = _size_of(frame, records, size_wh)
        if size is None:
            unmeasured += len(frame.rle_by_class)
        else:
            items += (_Mask(frame.image, c, rle, size) for c, rle in frame.rle_by_class.items())
    return items, unmeasured


def _measure(
    items: Sequence[_Mask],
    tallies: Mapping[str, _Tally],
    frame_wh: tuple[int, int],
    progress: Progress | None,
) -> list[str]:
    """Measures every mask into the tally of its type; returns those that do not fit their frame.

    Threads help a little: the array work runs beside other threads, building the regions does not.
    """
    grid_wh = tuple(min(MAX_CELLS, math.ceil(side / CELL_PX)) for side in frame_wh)
    misfits: list[str] = []
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(items), _BATCH):  # few results wait at a time
            batch = items[start : start + _BATCH]
            for item, result in zip(
                batch, pool.map(_measured, batch, [grid_wh] * len(batch)), strict=True
            ):
                if isinstance(result, str):
                    misfits.append(result)
                else:
                    tallies[item.class_id].add(item, result)
            if progress is not None:
                progress(start + len(batch), len(items))
    return misfits


def _measured(item: _Mask, grid_wh: tuple[int, int]) -> _Measured | str:
    try:
        mask = decode_rle(
            item.rle, item.size_wh, where=f"image {shown(item.image)}, type {shown(item.class_id)}"
        )
    except InputError as error:
        return str(error)
    found = regions(mask)
    height, width = mask.shape
    inner = mask[EDGE_PX : max(height - EDGE_PX, 0), EDGE_PX : max(width - EDGE_PX, 0)]
    areas = np.array([r.area_px for r in found], np.int64)
    return _Measured(
        areas_px=areas,
        lengths_px=np.array([r.length_px for r in found]),
        widths_px=np.array([r.width_px for r in found]),
        near_edge_px=int(areas.sum()) - int(np.count_nonzero(inner)),
        touches_edge=bool(mask[[0, -1]].any() or mask[:, [0, -1]].any()),
        coverage=np.asarray(
            cv2.resize(mask.astype(np.float32), grid_wh, interpolation=cv2.INTER_AREA), np.float32
        ),
    )


def _quantiles(values: npt.NDArray[Any]) -> dict[str, float]:
    if not len(values):
        return {}
    found = np.quantile(values, [0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1]).tolist()
    names = ("min", "p5", "p10", "p25", "median", "p75", "p90", "p95", "max")
    return dict(zip(names, found, strict=True))


def _distribution(numbers: npt.ArrayLike, per_octave: int = 1) -> Distribution:
    values = np.asarray(numbers, np.float64)
    if not len(values):
        return Distribution(0, None, {}, (), ())
    bins = math.floor(per_octave * math.log2(max(values.max(), 1.0))) + 1
    edges = 2.0 ** (np.arange(bins + 1) / per_octave)
    place = np.searchsorted(edges, values, side="right") - 1
    counts = np.bincount(np.clip(place, 0, bins - 1), minlength=bins)
    return Distribution(
        len(values),
        float(values.mean()),
        _quantiles(values),
        tuple(edges.tolist()),
        tuple(counts.tolist()),
    )


# Examples ----------------------------------------------------------------------------------------


def _usable_sizes(
    label_set: LabelSet, records: Mapping[str, FrameRecord]
) -> dict[str, tuple[int, int] | None]:
    """Images that can be shown, with their size where it is known."""
    if records:
        return {name: r.size_wh for name, r in records.items() if r.path and r.size_wh}
    return dict.fromkeys(label_set.image_paths)


def _examples(
    frames: Iterable[FrameLabels],
    tallies: Mapping[str, _Tally],
    usable: Mapping[str, tuple[int, int] | None],
) -> tuple[Example, ...]:
    """Per type the masks nearest to three percentiles of area; each frame once.

    Of a type whose masks nobody drew, three frames evenly along the names.
    """
    chosen: list[Example] = []
    taken: set[str] = set()
    for class_id, tally in tallies.items():
        if not tally.images:
            unplaced = sorted(
                f.image for f in frames if class_id in f.types_without_mask and f.image in usable
            )
            chosen += (Example(image, class_id) for image in _evenly(unplaced))
            continue
        for percentile in EXAMPLE_PERCENTILES:
            target = float(np.percentile(tally.mask_areas_px, percentile))
            candidates = [
                (abs(math.log(area / target)), image, area)
                for (image, size), area in zip(tally.images, tally.mask_areas_px, strict=True)
                if image in usable and image not in taken and usable[image] in (None, size)
            ]
            if candidates:
                _, image, area = min(candidates)
                taken.add(image)
                chosen.append(Example(image, class_id, percentile, area))
    return tuple(chosen)


def _clean_examples(
    frames: Iterable[FrameLabels],
    records: Mapping[str, FrameRecord],
    usable: Mapping[str, tuple[int, int] | None],
) -> tuple[Example, ...]:
    """Good frames, a dark, a middling and a bright one where the light is known."""
    names = sorted(f.image for f in frames if f.clean and f.image in usable)
    brightness = {n: records[n].brightness for n in names if n in records}
    by_light = sorted((value, name) for name, value in brightness.items() if value is not None)
    if len(by_light) < len(EXAMPLE_PERCENTILES):
        return tuple(Example(image, None) for image in _evenly(names))
    return tuple(
        Example(by_light[round((len(by_light) - 1) * p / 100)][1], None, p)
        for p in EXAMPLE_PERCENTILES
    )


def _evenly(names: Sequence[str]) -> list[str]:
    """Three of them, or all if they are fewer."""
    if len(names) <= 3:
        return list(names)
    return [names[round((len(names) - 1) * p / 100)] for p in EXAMPLE_PERCENTILES]


# Consequences ------------------------------------------------------------------------------------


def _consequences(summary: Summary) -> Iterator[Consequence]:
    """In the order of the page."""
    if not summary.counts.frames:
        return
    yield from _to_mend(summary)
    yield from _to_prove(summary)
    yield from _to_score(summary)
    yield from _to_cope(summary)


def _to_mend(summary: Summary) -> Iterator[Consequence]:
    counts, copies = summary.counts, summary.duplicates
    # number, code, title, one, many, what is wrong; those that do not occur are left out
    table: list[tuple[int | None, str, str, str, str, str]] = [
        (counts.unreadable, "unreadable-images", "Images that cannot be read", "image", "images",
         "cannot be read with certainty: nothing can be learned from them, and a tool that decodes"
         " them anyway trains on damage."),
        (counts.missing, "missing-images", "Labels without an image",
         "labelled frame has", "labelled frames have",
         "no image here: the labels are counted, but nothing can be trained or tested on them."),
        (counts.refused, "refused-labels", "Broken labels", "frame has", "frames have",
         "a broken label and count neither as faulty nor as clean: correct the labels and read them"
         " again."),
        (summary.misfit_masks, "misfit-masks", "Masks that do not fit", "mask does", "masks do",
         "not fit the size of the frame: the labels belong to other images, or to another size."
         " Left out of every figure on areas and places."),
        (summary.unmeasured_masks, "unmeasured-masks", "Masks on frames of unknown size",
         "mask belongs to a frame", "masks belong to frames",
         "whose size neither labels nor images tell, so area and place are not known: give the"
         " images, or the size."),
        (copies.across_splits if copies else 0, "split-leak", "The given split leaks",
         "family of copies lies", "families of copies lie",
         "in more than one part of the split that comes with the data: a score on its test part is"
         " partly remembered, not earned."),
        (copies.copies if copies else 0, "duplicates", "Copies",
         "frame is a copy of another", "frames are copies of others",
         "(the same steel, also flipped or turned): a random split leaks, with the same steel in"
         " training and test. Keep every family on one side."),
        (copies.different_types if copies else 0, "conflicting-copies",
         "Copies labelled differently", "family of copies carries", "families of copies carry",
         "different types on the same steel: at least one label is wrong, and no model can satisfy"
         " both."),
        (counts.disputed, "disputed-frames", "Disputed frames", "frame is", "frames are",
         "disputed and left out of every figure here: train and test without them, or settle"
         " them."),
        (counts.unlabelled, "unlabelled-frames", "Images without a label", "image is", "images are",
         "mentioned by no label. Nothing is known about them; they do not count as clean."),
        (counts.without_mask + counts.partly_masked, "types-without-mask", "Types without a mask",
         "faulty frame has", "faulty frames have",
         "types whose place nobody marked: good for training and testing a classifier, not for"
         f" outlines. Areas and places are over {summary.masks:,} of"
         f" {_count(summary.pairs, 'pair', 'pairs')} of frame and type."),
    ]  # fmt: skip
    for number, code, title, one, many, wrong in table:
        if number:
            sentence = f"{_count(number, one, many)} {wrong}"
            yield Consequence(code, Topic.MEND, title, sentence, {"number": number})
    unused = [t for t in summary.types if not t.frames]
    if unused:
        yield Consequence(
            "unused-types", Topic.MEND, "Types without a frame",
            f"No frame holds {_titles(unused)}, although the labels declare"
            f" {'it' if len(unused) == 1 else 'them'}: nothing can be learned or tested there.",
            {"types": [t.id for t in unused]},
        )  # fmt: skip


def _to_prove(summary: Summary) -> Iterator[Consequence]:
    counts = summary.counts
    needed = frames_to_prove(WANTED_RATE)
    used = sorted((t for t in summary.types if t.frames), key=lambda t: t.frames)
    if used:
        rarest = used[0]
        tested = frames_in_test(rarest.frames)
        bound = smallest_provable_rate(tested)
        short = [t for t in summary.types if t.frames and frames_in_test(t.frames) < needed]
        told = (
            f"no test on {100 * TEST_SHARE:g} % of them ({tested:,}) can show a missed-defect rate"
            f" below {share_text(bound)} with {100 * CONFIDENCE:g} % confidence."
            if tested
            else f"a test on {100 * TEST_SHARE:g} % of them has not one."
        )
        yield Consequence(
            "type-test-limit", Topic.PROVE, "Missed defects",
            f"{_upper(rarest.title)} has {_count(rarest.frames, 'frame', 'frames')}: {told} Showing"
            f" {100 * WANTED_RATE:g} % takes {needed} test frames of a type without a single"
            f" miss; {_titles(short) if short else 'no type'}"
            f" {'falls' if len(short) < 2 else 'fall'} short of that.",
            {
                "confidence": CONFIDENCE,
                "test_share": TEST_SHARE,
                "wanted_rate": WANTED_RATE,
                "frames_needed": needed,
                "types": [
                    {
                        "id": t.id,
                        "frames": t.frames,
                        "test_frames": frames_in_test(t.frames),
                        "smallest_rate": smallest_provable_rate(frames_in_test(t.frames)),
                    }
                    for t in summary.types
                ],
            },
        )  # fmt: skip
    if not counts.clean:
        yield Consequence(
            "no-clean-frames", Topic.PROVE, "False alarms",
            "No clean frame is known: false alarms cannot be measured, and a detector trained here"
            " has never been shown good steel.",
            {"clean": 0},
        )  # fmt: skip
    else:
        tested = frames_in_test(counts.clean)
        bound = smallest_provable_rate(tested)
        yield Consequence(
            "false-alarm-limit", Topic.PROVE, "False alarms",
            f"{_count(counts.clean, 'frame is', 'frames are')} known to be clean: a test on"
            f" {100 * TEST_SHARE:g} % of them ({tested:,}) can show a false-alarm rate below"
            f" {share_text(bound)} at best, with {100 * CONFIDENCE:g} % confidence."
            if tested
            else f"{_count(counts.clean, 'frame is', 'frames are')} known to be clean: too few to"
            " measure false alarms.",
            {"clean": counts.clean, "test_frames": tested, "smallest_rate": bound},
        )  # fmt: skip
    if summary.light is not None:
        series = summary.light.brightness
        correlation = series.neighbour_correlation
        # Three standard errors of a correlation of independent frames.
        if correlation is not None and correlation > 3 / math.sqrt(summary.light.frames):
            yield Consequence(
                "ordered-names", Topic.PROVE, "Neighbours are alike",
                "In the order of the names, neighbouring frames are alike in brightness (rank"
                f" correlation {correlation:.2f}): the names follow time, place or type. Frames"
                " side by side are not independent, so split by coil or in blocks, not at random.",
                {"rank_correlation": correlation, "frames": summary.light.frames},
            )  # fmt: skip


def _to_score(summary: Summary) -> Iterator[Consequence]:
    counts = summary.counts
    if summary.predict_nothing_score is not None:
        score = summary.predict_nothing_score
        yield Consequence(
            "predict-nothing", Topic.SCORE, "Doing nothing scores",
            f"Predicting nothing scores {score:.3f} Kaggle Dice here: of {counts.known:,} frames x"
            f" {_count(len(summary.types), 'type', 'types')}, only {summary.pairs:,} hold a defect,"
            " and empty on both sides counts as 1. Compare Dice where a type is present.",
            {"score": score, "frames": counts.known, "types": len(summary.types),
             "pairs": summary.pairs},
        )  # fmt: skip
    if summary.defect_share is not None and 0 < summary.defect_share < 1:
        yield Consequence(
            "pixel-accuracy", Topic.SCORE, "Pixel accuracy says nothing",
            f"{_upper(share_text(summary.defect_share))} of all pixels are defective"
            f"{' (estimated from the masks there are)' if summary.masks < summary.pairs else ''}:"
            f" an empty answer is right on {share_text(1 - summary.defect_share)} of them.",
            {"defect_share": summary.defect_share, "estimated": summary.masks < summary.pairs},
        )  # fmt: skip
    used = [t for t in summary.types if t.frames]
    largest = max(used, key=lambda t: t.frames, default=None)
    least = min(used, key=lambda t: t.frames, default=None)
    if largest and least and largest.frames > 1.5 * least.frames:
        yield Consequence(
            "majority-type", Topic.SCORE, "One type outweighs the others",
            f"{_upper(largest.title)} is {share_text(largest.share)} of all"
            f" {'masks' if summary.masks else 'labels'}, {largest.frames / least.frames:.1f} times"
            f" as frequent as {least.title}: a mean over all of them follows"
            f" {largest.title}. Report every type by itself.",
            {"type": largest.id, "share": largest.share, "least_type": least.id,
             "ratio": largest.frames / least.frames},
        )  # fmt: skip
    if counts.clean and counts.faulty:
        share = counts.faulty / counts.known
        yield Consequence(
            "faulty-share", Topic.SCORE, "Not the share of the line",
            f"{share_text(share)} of the known frames are faulty. Where a line makes fewer faults,"
            " the same detector is right less often when it says NG: precision measured here does"
            " not carry over.",
            {"faulty_share": share},
        )  # fmt: skip


def _to_cope(summary: Summary) -> Iterator[Consequence]:
    several = sum(n for number, n in summary.types_per_frame.items() if number > 1)
    if several:
        yield Consequence(
            "several-types", Topic.COPE, "Several types on one frame",
            f"{_count(several, 'frame holds', 'frames hold')} more than one type"
            f" ({share_text(several / summary.counts.faulty)} of the faulty ones): one label per"
            " frame is not enough, and a split has to balance the types together.",
            {"frames": several, "share_of_faulty": several / summary.counts.faulty},
        )  # fmt: skip
    measured = [t for t in summary.types if t.masks]
    if not measured:
        return
    narrow = {
        str(f): sum(t.narrow_share[str(f)] * t.regions for t in measured) / summary.regions
        for f in SHRINK_FACTORS
    }
    worst = max(measured, key=lambda t: t.narrow_share["4"])
    yield Consequence(
        "shrinking", Topic.COPE, "What shrinking loses",
        f"At half size {share_text(narrow['2'])} of the {summary.regions:,} regions are narrower"
        f" than {THIN_PX} px, at a quarter {share_text(narrow['4'])}, at an eighth"
        f" {share_text(narrow['8'])}"
        + (
            f"; {worst.title} suffers most ({share_text(worst.narrow_share['4'])} at a quarter)."
            if len(measured) > 1 and worst.narrow_share["4"] > 0
            else "."
        )
        + " A network that works at that size can miss them.",
        {"thin_px": THIN_PX, "narrow_share": narrow,
         "types": {t.id: dict(t.narrow_share) for t in measured}},
    )  # fmt: skip
    low, high = summary.mask_area_px.quantiles["p5"], summary.mask_area_px.quantiles["p95"]
    yield Consequence(
        "size-range", Topic.COPE, "From small to large",
        f"The middle 90 % of the masks reach from {low:,.0f} to {high:,.0f} px, a factor of"
        f" {high / low:,.0f}. Dice on the small ones swings with single pixels at their border.",
        {"p5_px": low, "p95_px": high},
    )  # fmt: skip
    specks = sum(t.specks for t in measured)
    if specks:
        yield Consequence(
            "specks", Topic.COPE, "Specks",
            f"{_count(specks, 'region has', 'regions have')} fewer than {SPECK_AREA_PX} px"
            f" ({share_text(specks / summary.regions)} of all): slips of the pen, or defects that"
            " matter? Decide with a minimum area, and use it in training, test and production.",
            {"regions": specks, "share": specks / summary.regions, "speck_area_px": SPECK_AREA_PX},
        )  # fmt: skip
    yield from _at_the_edge(measured)
    if summary.size_count > 1:
        (width, height), frames = summary.sizes[0]
        yield Consequence(
            "several-sizes", Topic.COPE, "Several frame sizes",
            f"Frames come in {summary.size_count:,} sizes; {frames:,} are {width} x {height} px."
            " Batches need cropping, padding or one size at a time; scaling would change what a"
            " defect looks like.",
            {"sizes": summary.size_count},
        )  # fmt: skip


def _at_the_edge(measured: Sequence[TypeSummary]) -> Iterator[Consequence]:
    """How many masks the border cuts off, and the type that keeps closest to it."""
    masks, touching = sum(t.masks for t in measured), sum(t.touching_edge for t in measured)
    near, band, closest = max(
        ((t.near_edge_share or 0, t.edge_band_share or 1, t) for t in measured),
        key=lambda item: item[0] / item[1],
    )
    if not touching and near < band:
        return
    cut_off = (
        f"{_count(touching, 'mask touches', 'masks touch')} the border of the frame"
        f" ({share_text(touching / masks)}): such a defect goes on outside, measured lengths are"
        " too short. "
    )
    yield Consequence(
        "edge", Topic.COPE, "At the edge of the frame",
        f"{cut_off if touching else ''}{share_text(near)} of {closest.title} lies within"
        f" {EDGE_PX} px of the border, where {share_text(band)} of the pixels are; padding and"
        " tiling must not spoil it.",
        {"touching": touching, "touching_share": touching / masks, "edge_px": EDGE_PX,
         "types": {t.id: {"near_edge_share": t.near_edge_share,
                          "edge_band_share": t.edge_band_share} for t in measured}},
    )  # fmt: skip


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _titles(types: Sequence[TypeSummary]) -> str:
    """``Types 2, 4 and 5``."""
    names = [t.title.removeprefix("type ") for t in types]
    if len(names) == 1:
        return f"type {names[0]}"
    return f"types {', '.join(names[:-1])} and {names[-1]}"


# JSON --------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples as JSON holds them; numbers with six significant digits."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value
