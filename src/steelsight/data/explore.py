"""What a data set is made of, and what follows from it for training and for tests.

:func:`summarise` measures every mask once and counts every frame; the figures go to
``summary.json`` and to the page of :mod:`steelsight.report.explore_page`. It works on labels alone,
on types without masks, and on a whole scanned catalog.

The figures themselves are defined in :mod:`steelsight.data.summary`; what they mean is said in
sentences, which :mod:`steelsight.data.consequences` makes of them.

Shapes: ``_hw`` rows x columns, ``_wh`` columns x rows. Areas and lengths in pixels of the frame.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import numpy.typing as npt

from steelsight.data.audit_masks import SPECK_PX
from steelsight.data.catalog import Catalog, FrameRecord
from steelsight.data.consequences import consequences
from steelsight.data.duplicates import Duplicates
from steelsight.data.labels import FrameLabels, LabelClass, LabelSet, shown
from steelsight.data.summary import (
    EDGE_PX,
    SHRINK_FACTORS,
    THIN_PX,
    Distribution,
    DuplicateCounts,
    Example,
    FrameCounts,
    HeatMap,
    Light,
    Series,
    Summary,
    TypeSummary,
    quantiles,
)
from steelsight.errors import InputError
from steelsight.masks import decode_rle, regions

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

Floats = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]
"""Called with (masks done, masks in all)."""


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
    counted = np.zeros((len(order), len(order)), np.int64)
    for ids, n in together.items():
        places = [order[class_id] for class_id in ids]
        counted[np.ix_(places, places)] += n
    co_occurrence = tuple(map(tuple, counted.tolist()))
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
    return replace(summary, consequences=tuple(consequences(summary)))


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
            specks=int(np.count_nonzero(areas < SPECK_PX)),
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

    One after the other: on two cores, two threads took as long (5,610 Severstal masks, 7 to 10 s).
    """
    grid_wh = tuple(min(MAX_CELLS, math.ceil(side / CELL_PX)) for side in frame_wh)
    misfits: list[str] = []
    for number, item in enumerate(items, 1):
        try:
            tallies[item.class_id].add(item, _measured(item, grid_wh))
        except InputError as error:
            misfits.append(str(error))
        if progress is not None:
            progress(number, len(items))
    return misfits


def _measured(item: _Mask, grid_wh: tuple[int, ...]) -> _Measured:
    mask = decode_rle(
        item.rle, item.size_wh, where=f"image {shown(item.image)}, type {shown(item.class_id)}"
    )
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
        quantiles(values),
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
    """Good frames, a dark, a typical and a bright one where the light is known."""
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
