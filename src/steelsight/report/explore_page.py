"""The page that shows what a data set is made of: one HTML file, offline, without scripts.

It shows a :class:`steelsight.data.explore.Summary` and draws pictures of a few frames; what is not
known (no images, no masks) leaves its section out and says so in one sentence. The same input gives
the same bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steelsight.data.audit_masks import SPECK_PX
from steelsight.data.consequences import (
    CONFIDENCE,
    TEST_SHARE,
    WANTED_RATE,
    frames_in_test,
    frames_to_prove,
    share_text,
    smallest_provable_rate,
)
from steelsight.data.duplicates import DuplicatePair, Duplicates, Likeness, Turn
from steelsight.data.labels import LabelSet
from steelsight.data.summary import (
    EDGE_PX,
    SHRINK_FACTORS,
    THIN_PX,
    Distribution,
    Example,
    Series,
    Summary,
    Topic,
    TypeSummary,
)
from steelsight.defects import DefectClass
from steelsight.errors import DecodeError, InputError
from steelsight.imaging import read_file
from steelsight.masks import decode_rle
from steelsight.report.charts import bar_svg
from steelsight.report.data_page import TURN_WORDS, is_wide, label_classes
from steelsight.report.overlays import draw_labels, encode_jpeg
from steelsight.report.page import PictureBudget, legend, render_page, write_page
from steelsight.report.plots import (
    Bar,
    BinnedRow,
    bars_svg,
    heat_html,
    histogram_svg,
    matrix_html,
    ramp_html,
    sequence_svg,
)

TOPICS: Mapping[Topic, str] = {
    Topic.MEND: "Look at this before training",
    Topic.PROVE: "What a test here can prove",
    Topic.SCORE: "How to read a score",
    Topic.COPE: "What a detector has to cope with",
}

LIKENESSES: Mapping[Likeness, str] = {
    Likeness.SAME_FILE: "the same file",
    Likeness.SAME_PIXELS: "the same pixels",
    Likeness.NEAR: "nearly the same pixels",
}


@dataclass(frozen=True, slots=True)
class PageLimits:
    """How many frames are shown; the page says how many of how many."""

    families: int = 8
    """Families of copies, those with a conflict or across the given split first."""
    members: int = 4
    """Frames of one family."""
    picture_bytes: int = 8_000_000
    """All pictures together, before base64 (which adds a third)."""
    types: int = 40
    """Rows of charts and tables: beyond them only the most frequent types are shown."""


def write_explore_page(
    summary: Summary,
    path: Path,
    *,
    label_set: LabelSet,
    duplicates: Duplicates | None = None,
    title: str = "",
    source: str = "",
    command: str = "",
    created: str = "",
    files: Mapping[str, str] | None = None,
    limits: PageLimits | None = None,
) -> None:
    """Writes the page: first beside ``path``, then in its place at once.

    Args:
        summary: the figures.
        path: the HTML file; its folder is made.
        label_set: labels and images the summary was made of, for the pictures.
        duplicates: families for the pictures side by side.
        title: heading; else the name of the source.
        source: where the data set came from, as the user knows it; else that of the labels.
        command: the exact command line.
        created: when, as text.
        files: what lies beside the page: text -> relative path.
        limits: how much is shown.

    Raises:
        InputError: the file cannot be written.
    """
    text = render_explore_page(
        summary,
        label_set=label_set,
        duplicates=duplicates,
        title=title,
        source=source,
        command=command,
        created=created,
        files=files,
        limits=limits,
    )
    write_page(path, text)


def render_explore_page(
    summary: Summary,
    *,
    label_set: LabelSet,
    duplicates: Duplicates | None = None,
    title: str = "",
    source: str = "",
    command: str = "",
    created: str = "",
    files: Mapping[str, str] | None = None,
    limits: PageLimits | None = None,
) -> str:
    """The page as text; see :func:`write_explore_page`."""
    limits = limits or PageLimits()
    classes = {c.id: c for c in label_classes(label_set.classes)}
    types = sorted(summary.types, key=lambda t: -t.frames)[: limits.types]
    types = [t for t in summary.types if t in types]  # back in the order of the labels
    pictures = _Pictures(label_set, tuple(classes.values()), limits.picture_bytes)
    examples = [
        (t, classes[t.id], [_shot(e, pictures) for e in summary.examples if e.class_id == t.id])
        for t in types
    ]
    return render_page(
        "explore.html.j2",
        s=summary,
        title=title or label_set.source.name or summary.source,
        source=source or summary.source,
        command=command,
        created=created,
        files=files or {},
        topics=[
            (topic.value, heading, [c for c in summary.consequences if c.topic is topic])
            for topic, heading in TOPICS.items()
        ],
        added_up=_added_up(summary),
        types=types,
        names={c.id: c.name for c in classes.values()},
        colours={c.id: c.colour for c in classes.values()},
        rows=[_type_row(t, summary, classes[t.id]) for t in types],
        charts=_charts(summary, types, classes),
        examples=[(t, c, shots) for t, c, shots in examples if shots],
        clean_shots=[_shot(e, pictures) for e in summary.clean_examples],
        families=_families(duplicates, label_set, pictures, limits),
        legend=legend(tuple(classes.values()))[: limits.types],
        least_px=_least_px(summary),
        share_text=share_text,
        needed=frames_to_prove(WANTED_RATE),
        constants={
            "confidence": f"{100 * CONFIDENCE:g}",
            "test": f"{100 * TEST_SHARE:g}",
            "wanted": f"{100 * WANTED_RATE:g}",
            "edge": EDGE_PX,
            "speck": SPECK_PX,
            "thin": THIN_PX,
            "factors": [str(f) for f in SHRINK_FACTORS],
        },
    )


# Pictures ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture with its captions; ``uri`` is ``None`` where no picture could be made."""

    image: str
    uri: str | None
    size_wh: tuple[int, int] | None
    said: str


class _Pictures:
    """Draws frames until the bytes are spent; each frame once."""

    def __init__(self, label_set: LabelSet, classes: tuple[DefectClass, ...], byte_limit: int):
        self._label_set = label_set
        self._classes = classes
        self._budget = PictureBudget(byte_limit)
        self._made: dict[str, tuple[str, tuple[int, int]] | None] = {}

    def of(self, image: str) -> tuple[str, tuple[int, int]] | None:
        """Data URI and size of the picture; ``None`` without a readable image that fits."""
        if image not in self._made:
            self._made[image] = self._draw(image)
        return self._made[image]

    def _draw(self, image: str) -> tuple[str, tuple[int, int]] | None:
        path = self._label_set.image_paths.get(image)
        if path is None:
            return None
        try:
            grey = read_file(path).grey_hw
            height, width = grey.shape
            labels = self._label_set.frames.get(image)
            masks = {
                class_id: decode_rle(rle, (width, height))
                for class_id, rle in (labels.rle_by_class.items() if labels else ())
            }
        except (DecodeError, InputError):  # the page tells that it has no picture of this frame
            return None
        fit_wh = (1120, 560) if is_wide((width, height)) else (640, 640)
        picture = draw_labels(grey, masks, self._classes, fit_wh=fit_wh)
        uri = self._budget.embedded(encode_jpeg(picture))
        return None if uri is None else (uri, (picture.shape[1], picture.shape[0]))


def _shot(example: Example, pictures: _Pictures) -> Shot:
    rank = {10: "small", 50: "typical", 90: "large"}
    light = {10: "dark", 50: "typical", 90: "bright"}
    said = ""
    if example.area_px is not None:
        said = f"{example.area_px:,} px, {rank.get(example.percentile or 0, '')} for its type"
    elif example.percentile is not None:
        said = f"{light.get(example.percentile, '')} among the clean ones"
    return _shot_of(example.image, said, pictures)


def _shot_of(image: str, said: str, pictures: _Pictures) -> Shot:
    uri, size_wh = pictures.of(image) or (None, None)
    return Shot(image, uri, size_wh, said)


def _families(
    duplicates: Duplicates | None,
    label_set: LabelSet,
    pictures: _Pictures,
    limits: PageLimits,
) -> list[dict[str, Any]]:
    """The families to show, those that do harm first."""
    if duplicates is None:
        return []
    towards: dict[str, list[DuplicatePair]] = {}
    for pair in duplicates.pairs:
        towards.setdefault(pair.b, []).append(pair)
    ranked = []
    for group in duplicates.groups:
        members = [label_set.frames[i] for i in group if i in label_set.frames]
        types = {frozenset(m.class_ids) for m in members if not m.disputed}
        parts = sorted({m.split for m in members if m.split})
        ranked.append((len(types) < 2, len(parts) < 2, group, parts))
    shown = []
    for same_types, one_part, group, parts in sorted(ranked)[: limits.families]:
        shots = [
            _shot_of(image, _likeness(towards.get(image, ()), label_set, image), pictures)
            for image in group[: limits.members]
        ]
        shown.append(
            {
                "shots": shots,
                "members": len(group),
                "conflict": not same_types,
                "splits": [] if one_part else parts,
            }
        )
    return shown


def _likeness(pairs: Sequence[DuplicatePair], label_set: LabelSet, image: str) -> str:
    """``the same pixels as a.png, rotated by 180° · test · Type 3``."""
    parts = []
    for pair in pairs[:1]:
        turn = "" if pair.turn is Turn.NONE else f", {TURN_WORDS[pair.turn]}"
        parts.append(f"{LIKENESSES[pair.likeness]} as {pair.a}{turn}")
    labels = label_set.frames.get(image)
    if labels is None:
        parts.append("no label")
    else:
        if labels.split:
            parts.append(labels.split)
        names = {c.id: c.name for c in label_classes(label_set.classes)}
        if labels.disputed:
            parts.append("disputed")
        elif labels.clean:
            parts.append("clean")
        else:
            parts.append(", ".join(names[c] for c in labels.class_ids))
    return " · ".join(parts)


# Charts ------------------------------------------------------------------------------------------


def _added_up(summary: Summary) -> str:
    """The kinds of frames and that they add up to all of them."""
    counts = summary.counts
    kinds = [
        (counts.faulty, "faulty"), (counts.clean, "clean"), (counts.disputed, "disputed"),
        (counts.refused, "with a broken label"), (counts.unlabelled, "without a label"),
    ]  # fmt: skip
    told = ", ".join(f"{n:,} {kind}" for n, kind in kinds if n or kind in ("faulty", "clean"))
    return f"{counts.frames:,} {'frame' if counts.frames == 1 else 'frames'}: {told}."


def _type_row(t: TypeSummary, summary: Summary, defect_class: DefectClass) -> dict[str, Any]:
    most = max((other.frames for other in summary.types), default=0) or 1
    tested = frames_in_test(t.frames)
    return {
        "type": t,
        "bar": bar_svg(t.frames / most, defect_class.colour),
        "tested": tested,
        "bound": smallest_provable_rate(tested) if tested else None,
    }


def _charts(
    summary: Summary, types: Sequence[TypeSummary], classes: Mapping[str, DefectClass]
) -> dict[str, str]:
    """Every chart by name; empty where there is nothing to show."""

    def rows(of: Callable[[TypeSummary], Distribution]) -> list[BinnedRow]:
        return [
            BinnedRow(classes[t.id].name, d.edges, d.counts, d.median, classes[t.id].colour)
            for t in types
            if (d := of(t)).count
        ]

    known = max(summary.counts.known, 1)
    charts = {
        "per_number": bars_svg(
            [
                Bar("clean" if n == 0 else f"{n} type{'s' if n > 1 else ''}", frames,
                    share_text(frames / known))
                for n, frames in summary.types_per_frame.items()
            ],
            label="Frames by number of types on them",
        ),
        "combinations": bars_svg(
            [
                Bar(" + ".join(classes[c].name for c in ids), frames,
                    share_text(frames / known), classes[ids[0]].colour if len(ids) == 1 else None)
                for ids, frames in summary.combinations
            ],
            label="Frames by the types that occur together",
        ),
        "together": "",
        "mask_area": histogram_svg(
            rows(lambda t: t.mask_area_px), label="Masks by area", unit="px"
        ),
        "region_area": histogram_svg(
            rows(lambda t: t.region_area_px), label="Connected regions by area", unit="px"
        ),
        "elongation": histogram_svg(
            rows(lambda t: t.elongation), label="Connected regions by length / width"
        ),
        "pieces": histogram_svg(
            rows(lambda t: t.regions_per_mask), label="Masks by number of connected regions"
        ),
        "heats": "",
        "ramp": "",
    }  # fmt: skip
    if len(types) > 1:
        index = [summary.types.index(t) for t in types]
        counts = [[summary.co_occurrence[i][j] for j in index] for i in index]
        charts["together"] = matrix_html([classes[t.id].name for t in types], counts)
    maps = [(t, t.heat) for t in types if t.heat is not None]
    if maps:
        strongest = max(max(map(max, heat.coverage)) for _, heat in maps)
        charts["ramp"] = ramp_html(strongest)
        charts["heats"] = "".join(
            heat_html(
                heat.coverage, heat.frame_wh, title=classes[t.id].name, strongest=strongest,
                note=f"{t.masks:,} masks · {share_text(t.near_edge_share or 0)} of its pixels near"
                " the edge",
            )
            for t, heat in maps
        )  # fmt: skip
    if summary.light is not None:
        for name, series, unit in (
            ("brightness", summary.light.brightness, ""),
            ("contrast", summary.light.contrast, ""),
            ("dark", _per_cent(summary.light.dark_share), "%"),
        ):
            medians = list(zip(series.median_at, series.running_median, strict=True))
            charts[name] = sequence_svg(
                series.values, medians, label=f"{name} of every frame", unit=unit
            )
    return charts


def _per_cent(series: Series) -> Series:
    return Series(
        tuple(100 * v for v in series.values),
        series.median_at,
        tuple(100 * v for v in series.running_median),
        series.window,
        series.neighbour_correlation,
    )


def _least_px(summary: Summary) -> dict[str, int]:
    """Least width of a column of pictures and of heat maps, by the shape of most frames."""
    wide = bool(summary.sizes) and is_wide(summary.sizes[0][0])
    return {"shots": 640 if wide else 320, "heats": 440 if wide else 240}
