"""The figures of a data set: what :mod:`steelsight.data.explore` returns, and ``summary.json``.

Areas and lengths in pixels of the frame; ``_wh`` is columns x rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

EDGE_PX = 32
"""How far from the border of the frame a pixel counts as near it."""
THIN_PX = 3
"""A region narrower than this is easily lost: one pixel of it is left between two borders."""
SHRINK_FACTORS = (1, 2, 4, 8)


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
        specks: regions of fewer than ``SPECK_PX`` pixels.
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
            "quantiles": _plain(quantiles(self.values)),
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


def type_title(name: str) -> str:
    """A type in the middle of a sentence: ``3`` and ``Type 3`` become ``type 3``."""
    return f"type {name[5:] if name[:5].casefold() == 'type ' else name}"


def quantiles(values: npt.ArrayLike) -> dict[str, float]:
    """``min``, ``p5``, ``p10``, ``p25``, ``median``, ``p75``, ``p90``, ``p95`` and ``max``.

    Empty without values.
    """
    values = np.asarray(values)
    if not len(values):
        return {}
    found = np.quantile(values, [0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1]).tolist()
    names = ("min", "p5", "p10", "p25", "median", "p75", "p90", "p95", "max")
    return dict(zip(names, found, strict=True))


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
