"""One HTML file that says what a run found: self-contained, offline, without scripts.

``ReportBuilder.add`` takes frame after frame and keeps statistics and a bounded gallery, so a run
of 12,568 frames needs no more memory than one of 200. ``write`` renders
``templates/report.html.j2`` and replaces the file at once. The same input gives the same bytes.
"""

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from steelsight import masks
from steelsight.defects import DefectClass, Inspection, Reason, Verdict
from steelsight.errors import InputError
from steelsight.report.charts import VERDICTS, ProbabilityHistogram, StripMap, bar_svg, line_svg
from steelsight.report.overlays import TRUTH_PATTERN, class_masks, draw_overlay, encode_jpeg
from steelsight.report.page import PictureBudget, css_colour, legend, render_page, write_page

Truth = Mapping[str, npt.NDArray[np.bool_] | None]
"""Types truly on a frame, each with its mask, or ``None`` where only the type is known; an empty
mapping is a frame known to be good."""


NOTES_SHOWN = 6
"""The most frequent notes of a run, on top of its report."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What the report says about the run itself; all texts are shown as given."""

    title: str
    source: str
    """Where the frames came from, in words or as a path."""
    command: str
    """The exact command line."""
    started: str
    """ISO 8601 with time zone."""
    seconds: float
    model: str
    decision: str
    engine: str
    precision: str
    synthetic: bool = False
    """Frames were drawn, not photographed: the report says so on top."""
    interrupted: bool = False
    """The run was stopped before the last frame."""
    hidden_files: int = 0
    """Files in the source that were left out, because their names begin with a dot."""
    frames_found: int | None = None
    """Frames in the source, if known: frames that were never inspected are then counted too."""
    frames_per_second: float | None = None
    """As measured by the runner; else frames / ``seconds``."""
    model_card: str = ""
    """Plain text: what the model was trained on and where it ends."""
    thresholds: Sequence[Sequence[str]] = ()
    """The decision file as a table; the first row is the header."""
    marked_probabilities: Mapping[str, float] = field(default_factory=dict)
    """Thresholds on the faulty probability, by name, for the histogram."""
    versions: Mapping[str, str] = field(default_factory=dict)
    truth_source: str | None = None
    """Where the truth came from, e.g. the label file."""
    files: Mapping[str, str] = field(default_factory=dict)
    """What lies beside the report: text -> relative path."""


@dataclass(frozen=True, slots=True)
class GalleryLimits:
    """How much of a run is shown frame by frame; the report says how many of how many."""

    ng: int = 100
    """NG frames, the most probable; missed frames and false alarms are counted apart."""
    missed: int = 40
    """Missed frames, those with the largest true area."""
    false_alarms: int = 40
    """The most probable."""
    closest_ok: int = 6
    """OK frames with the highest faulty probability."""
    unknown_per_reason: int = 40
    """The first of each reason."""
    regions_per_frame: int = 10
    """Rows of a frame's table, the largest regions."""
    picture_wh: tuple[int, int] = (1120, 560)
    """Pictures are shrunk to fit, in pixels."""
    picture_bytes: int = 10_500_000
    """All pictures together, before base64 (which adds a third); further frames keep their table
    and link only."""


@dataclass(frozen=True, slots=True)
class GalleryItem:
    """One frame as the gallery shows it; ``number`` counts from 1 in the order of the run."""

    number: int
    inspection: Inspection
    jpeg: bytes | None
    picture_wh: tuple[int, int] | None
    overlay_href: str | None
    """Relative path of the full-size overlay beside the report."""
    true_types: tuple[str, ...] | None
    """``None`` where the truth is not known."""
    dice: Mapping[str, float]
    """Per type that is truly there or was found; empty without masks."""


class ReportBuilder:
    """Collects a run frame by frame, then writes its report.

    Not thread-safe: the one place that sees the results in order calls ``add``.
    """

    def __init__(
        self, classes: Sequence[DefectClass], *, limits: GalleryLimits | None = None
    ) -> None:
        self.classes = tuple(classes)
        self.limits = limits or GalleryLimits()
        self.counts = dict.fromkeys(VERDICTS, 0)
        self._strip = StripMap(self.classes)
        self._histogram = ProbabilityHistogram()
        self._types = {c.id: _TypeTally() for c in self.classes}
        self.truth = TruthTally()
        self._inspected_px = 0
        self._regions = 0
        limit = self.limits
        self._shelves = {
            "missed": _Shelf(limit.missed),
            "false_alarms": _Shelf(limit.false_alarms),
            "closest_ok": _Shelf(limit.closest_ok),
            "ng": _Shelf(limit.ng),
        }
        self._unknown: dict[Reason, _UnknownGroup] = {}
        self.notes: Counter[str] = Counter()
        """How many frames carry each note."""

    @property
    def seen(self) -> int:
        """Frames added so far; always OK + NG + UNKNOWN."""
        return sum(self.counts.values())

    def add(
        self,
        inspection: Inspection,
        grey_hw: npt.NDArray[np.uint8] | None = None,
        truth: Truth | None = None,
        *,
        overlay_href: str | None = None,
    ) -> None:
        """Takes the next frame.

        Args:
            inspection: the result.
            grey_hw: the pixels; read now if the frame enters the gallery, never kept. Without
                them the frame is listed without a picture.
            truth: what is truly there, if known; masks in the size of the frame.
            overlay_href: relative path of the overlay file beside the report, if one was written.

        Raises:
            InputError: a type that is not among the classes, or a mask of another size; the
                frame is then not counted.
        """
        self._refuse_foreign(inspection, truth or {})
        self.counts[inspection.verdict] += 1
        number = self.seen
        self.notes.update(inspection.notes)
        self._strip.add(inspection.verdict, inspection.defects, inspection.size_wh)
        self._histogram.add(inspection.verdict, inspection.faulty_probability)
        self._count_types(inspection)
        true_types: tuple[str, ...] | None = None
        dice: dict[str, float] = {}
        if truth is not None:
            true_types = tuple(
                c.id for c in self.classes if c.id in truth and _is_there(truth[c.id])
            )
            dice = self._compare(inspection, truth, true_types)

        reason = inspection.reason  # an UNKNOWN always has one: Inspection refuses it otherwise
        if inspection.verdict is Verdict.UNKNOWN and reason is not None:
            group = self._unknown.setdefault(reason, _UnknownGroup())
            group.total += 1
            if len(group.frames) < self.limits.unknown_per_reason:
                group.frames.append((number, inspection.image, inspection.detail or ""))
            return
        shelf, rank = self._place(inspection, truth, true_types)
        if not shelf.has_room_for(rank):
            return
        jpeg, picture_wh = None, None
        if grey_hw is not None:
            picture = draw_overlay(
                grey_hw,
                inspection.defects,
                self.classes,
                truth=truth,
                fit_wh=self.limits.picture_wh,
            )
            jpeg, picture_wh = encode_jpeg(picture), (picture.shape[1], picture.shape[0])
        item = GalleryItem(number, inspection, jpeg, picture_wh, overlay_href, true_types, dice)
        shelf.put(rank, item)

    def write(self, path: Path, run: RunInfo) -> None:
        """Writes the report to ``path``: first beside it, then replaced at once.

        Raises:
            InputError: the file cannot be written.
        """
        write_page(path, self.render(run))

    def render(self, run: RunInfo) -> str:
        """The page as text."""
        shelves = {name: shelf.in_order() for name, shelf in self._shelves.items()}
        shelves["closest_ok"].sort(key=lambda i: -(i.inspection.faulty_probability or 0))
        pictures = self._pictures_within_budget(shelves)
        targets = {
            item.number - 1: (f"#frame-{item.number}", _tooltip(item))
            for items in shelves.values()
            for item in items
        }
        rate = run.frames_per_second
        if rate is None and run.seconds > 0:
            rate = self.seen / run.seconds
        return render_page(
            "report.html.j2",
            run=run,
            sentence=self._sentence(run),
            counts={v.value: n for v, n in self.counts.items()},
            seen=self.seen,
            regions=self._regions,
            rate=rate,
            classes=self.classes,
            names={c.id: c.name for c in self.classes},
            notes=self.notes.most_common(NOTES_SHOWN),
            colours={c.id: css_colour(c) for c in self.classes},
            legend=self._legend(),
            strip_svg=self._strip.svg(targets),
            histogram_svg=self._histogram.svg(run.marked_probabilities),
            without_probability=self.seen - self._histogram.total,
            type_rows=self._type_rows(),
            truth=self.truth,
            shelves=shelves,
            totals={name: shelf.total for name, shelf in self._shelves.items()},
            pictures=pictures,
            unknown=sorted(self._unknown.items(), key=lambda kv: (-kv[1].total, kv[0])),
            advice=ADVICE,
            limits=self.limits,
        )

    def _refuse_foreign(self, inspection: Inspection, truth: Truth) -> None:
        """A type left out silently would make a faulty frame look good."""
        for class_id in {d.class_id for d in inspection.defects} | truth.keys():
            if class_id not in self._types:
                raise InputError(
                    f"{inspection.image}: expected a defect type out of {list(self._types)}, "
                    f"received {class_id!r}: report with the classes of the bundle and its labels"
                )
        for class_id, mask in truth.items():
            size_wh = None if mask is None else mask.shape[::-1]
            if size_wh and inspection.size_wh and size_wh != inspection.size_wh:
                raise InputError(
                    f"{inspection.image}: expected a truth mask of {inspection.size_wh} px "
                    f"(width, height) for type {class_id!r}, received {size_wh}: the labels "
                    "belong to another image"
                )

    def _sentence(self, run: RunInfo) -> tuple[str, str]:
        """What happened, and that the counts add up."""
        ok, ng, unknown = (self.counts[v] for v in VERDICTS)
        frames = "1 frame" if self.seen == 1 else f"{self.seen:,} frames"
        told = f"{frames}: {ok:,} OK, {ng:,} NG, {unknown:,} UNKNOWN."
        if not self.seen:
            told = "No frame was inspected."
        added_up = f"{ok:,} + {ng:,} + {unknown:,} = {self.seen:,}"
        left = (run.frames_found or self.seen) - self.seen
        if left > 0:
            return told, (
                f"{left:,} of {run.frames_found:,} frames found were not inspected. "
                f"Every inspected frame has a verdict: {added_up}."
            )
        if run.interrupted:
            return told, f"Every frame up to the stop has a verdict: {added_up}."
        if run.hidden_files:
            return told, (
                f"Every frame has a verdict: {added_up}. Not looked at: {run.hidden_files:,} "
                "hidden files (their names begin with a dot)."
            )
        return told, f"Nothing was skipped: {added_up}." if self.seen else ""

    def _count_types(self, inspection: Inspection) -> None:
        if inspection.size_wh is not None:
            self._inspected_px += inspection.size_wh[0] * inspection.size_wh[1]
        self._regions += len(inspection.defects)
        for defect in inspection.defects:
            tally = self._types[defect.class_id]
            tally.regions += 1
            tally.area_px += defect.area_px
        for class_id in {d.class_id for d in inspection.defects}:
            self._types[class_id].frames += 1

    def _compare(
        self, inspection: Inspection, truth: Truth, true_types: Sequence[str]
    ) -> dict[str, float]:
        """Adds one frame with known truth to the tallies; returns its Dice per type."""
        self.truth.add(inspection.verdict, faulty=bool(true_types))
        found_types = {d.class_id for d in inspection.defects}
        for class_id, tally in self._types.items():
            tally.true_frames += class_id in true_types
            tally.detected += class_id in true_types and class_id in found_types
        if any(truth[class_id] is None for class_id in true_types):
            return {}
        # UNKNOWN counts as an empty mask: a frame without an answer must not raise the score.
        found = {}
        if inspection.defects and inspection.size_wh is not None:
            found = class_masks(inspection.defects, inspection.size_wh)
        dice = {}
        for class_id, tally in self._types.items():
            if class_id not in true_types and class_id not in found:
                self.truth.add_pair(1.0, holds=False)  # Kaggle: both empty is a full hit
                continue
            there, seen = truth.get(class_id), found.get(class_id)
            value = 0.0 if there is None or seen is None else masks.dice(seen, there)
            dice[class_id] = value
            self.truth.add_pair(value, holds=class_id in true_types)
            if class_id in true_types:
                tally.dice_sum += value
                tally.dice_frames += 1
        return dice

    def _place(
        self, inspection: Inspection, truth: Truth | None, true_types: Sequence[str] | None
    ) -> tuple["_Shelf", float]:
        """The part of the gallery a frame belongs to, and how much it deserves a place there."""
        probability = inspection.faulty_probability
        rank = probability if probability is not None and math.isfinite(probability) else 1.0
        if inspection.verdict is Verdict.OK:
            if true_types:
                masks = (truth[c] for c in true_types) if truth else ()
                area = sum(int(np.count_nonzero(m)) for m in masks if m is not None)
                return self._shelves["missed"], float(area)
            return self._shelves["closest_ok"], rank
        if true_types is not None and not true_types:
            return self._shelves["false_alarms"], rank
        return self._shelves["ng"], rank

    def _pictures_within_budget(
        self, shelves: Mapping[str, Sequence[GalleryItem]]
    ) -> dict[int, str]:
        """Frame number -> data URI, until the bytes are spent; the first shelves matter most."""
        budget = PictureBudget(self.limits.picture_bytes)
        pictures = {}
        for items in shelves.values():
            for item in items:
                uri = budget.embedded(item.jpeg) if item.jpeg is not None else None
                if uri is not None:
                    pictures[item.number] = uri
        return pictures

    def _type_rows(self) -> list[dict[str, Any]]:
        most = max((t.frames for t in self._types.values()), default=0) or 1
        rows = []
        for defect_class in self.classes:
            tally = self._types[defect_class.id]
            rows.append(
                {
                    "name": defect_class.name,
                    "colour": css_colour(defect_class),
                    "tally": tally,
                    "bar": bar_svg(tally.frames / most, css_colour(defect_class)),
                    "area_share": tally.area_px / self._inspected_px if self._inspected_px else 0.0,
                    "dice": tally.dice_sum / tally.dice_frames if tally.dice_frames else None,
                }
            )
        return rows

    def _legend(self) -> list[tuple[str, str]]:
        lines = legend(self.classes)
        if self.truth.frames:
            lines.append(("truth", line_svg("#fff", TRUTH_PATTERN, truth=True)))
        return lines


ADVICE: Mapping[Reason, str] = {
    Reason.UNREADABLE: "Check that the file still exists and may be read, then run again.",
    Reason.NOT_A_FILE: "Point to image files; folders, links to folders and devices are refused.",
    Reason.EMPTY: "The file has no bytes: look at the camera or the copying, and fetch it again.",
    Reason.NOT_AN_IMAGE: "The content is no known image: remove the file or fetch it again.",
    Reason.UNSUPPORTED_FORMAT: "Save as JPEG, PNG, BMP, TIFF or WebP.",
    Reason.WRONG_EXTENSION: "Name and content disagree: rename the file after its real format.",
    Reason.TRUNCATED: "The image ends early, often a copy that broke off: fetch it again.",
    Reason.DECODE_FAILED: "The image data is damaged: fetch it again from the camera.",
    Reason.DECODER_CRASHED: "The image made the decoder crash: keep it apart, and fetch it again.",
    Reason.DECODER_HUNG: "The image kept the decoder busy for too long: look at the file; if the "
    "machine was overloaded, run again.",
    Reason.DECODER_MEMORY: "The image needs more memory than a decoder may have: cut it into "
    "frames, and run again.",
    Reason.MULTIPLE_FRAMES: "Save each page or frame as an image of its own.",
    Reason.TOO_LARGE: "Cut the image into frames, or raise the limit if the size is intended.",
    Reason.WRONG_SIZE: "The frame is smaller than the network needs: check cropping and camera.",
    Reason.UNSUPPORTED_PIXELS: "Save as 8-bit grey or RGB.",
    Reason.COLOURED: "The model's camera was grey: look at the picture. A stripe or block of "
    "colour is damage; if your camera is a colour one, run again with --allow-colour.",
    Reason.BLANK: "Practically no contrast: check light, exposure, lens cap, and that strip is in "
    "view.",
    Reason.NOT_FINITE: "The network gave no number: keep the frame and report it.",
    Reason.ENGINE_FAILED: "The inference engine failed on this frame: run it again; report it if "
    "it repeats.",
    Reason.TIMEOUT: "The verdict came too late for its deadline: look at the frame. If it repeats, "
    "allow more time or give the engine less to do.",
    Reason.NOT_LOCALISED: "Look at the frame: the classifier calls it faulty, no region was found.",
}
"""What to do about each reason, for people."""


@dataclass(slots=True)
class _TypeTally:
    frames: int = 0
    regions: int = 0
    area_px: int = 0
    true_frames: int = 0
    detected: int = 0
    dice_sum: float = 0.0
    dice_frames: int = 0


@dataclass(slots=True)
class TruthTally:
    """Frames with known truth. Found and missed are truly faulty ones, the rest is truly good."""

    found: int = 0
    missed: int = 0
    faulty_unknown: int = 0
    cleared: int = 0
    false_alarms: int = 0
    good_unknown: int = 0
    pairs: int = 0
    pair_dice: float = 0.0
    holding_pairs: int = 0
    holding_dice: float = 0.0

    def to_json(self) -> dict[str, int | float | None]:
        """Counts of frames, and both Dice; for machines."""
        return {
            "faulty": self.faulty,
            "found": self.found,
            "missed": self.missed,
            "faulty_unknown": self.faulty_unknown,
            "good": self.good,
            "cleared": self.cleared,
            "false_alarms": self.false_alarms,
            "good_unknown": self.good_unknown,
            "dice_where_present": self.dice_where_present,
            "kaggle_dice": self.kaggle_dice,
        }

    def add(self, verdict: Verdict, *, faulty: bool) -> None:
        """Counts one frame."""
        names = {
            (True, Verdict.NG): "found",
            (True, Verdict.OK): "missed",
            (True, Verdict.UNKNOWN): "faulty_unknown",
            (False, Verdict.OK): "cleared",
            (False, Verdict.NG): "false_alarms",
            (False, Verdict.UNKNOWN): "good_unknown",
        }
        name = names[faulty, verdict]
        setattr(self, name, getattr(self, name) + 1)

    def add_pair(self, dice: float, *, holds: bool) -> None:
        """Counts the Dice of one frame and type; ``holds``: the type is truly there."""
        self.pairs += 1
        self.pair_dice += dice
        if holds:
            self.holding_pairs += 1
            self.holding_dice += dice

    @property
    def faulty(self) -> int:
        """Truly faulty frames."""
        return self.found + self.missed + self.faulty_unknown

    @property
    def good(self) -> int:
        """Truly good frames."""
        return self.cleared + self.false_alarms + self.good_unknown

    @property
    def frames(self) -> int:
        """Frames with known truth."""
        return self.faulty + self.good

    @property
    def kaggle_dice(self) -> float | None:
        """Mean over all frames and types; 1 where both masks are empty."""
        return self.pair_dice / self.pairs if self.pairs else None

    @property
    def dice_where_present(self) -> float | None:
        """Mean over frames and types that are truly there."""
        return self.holding_dice / self.holding_pairs if self.holding_pairs else None


@dataclass(slots=True)
class _UnknownGroup:
    total: int = 0
    frames: list[tuple[int, str, str]] = field(default_factory=list)


class _Shelf:
    """The ``capacity`` frames of highest rank; among equals the earlier stays."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.total = 0
        self._heap: list[tuple[float, int, GalleryItem]] = []

    def has_room_for(self, rank: float) -> bool:
        """Counts the frame, and tells whether it is worth drawing."""
        self.total += 1
        return len(self._heap) < self.capacity or (self.capacity > 0 and rank > self._heap[0][0])

    def put(self, rank: float, item: GalleryItem) -> None:
        entry = (rank, -item.number, item)  # numbers differ, so items are never compared
        if len(self._heap) < self.capacity:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heapreplace(self._heap, entry)

    def in_order(self) -> list[GalleryItem]:
        """As they came along the strip."""
        return sorted((item for _, _, item in self._heap), key=lambda item: item.number)


def _is_there(mask: npt.NDArray[np.bool_] | None) -> bool:
    return mask is None or bool(mask.any())


def _tooltip(item: GalleryItem) -> str:
    return f"frame {item.number:,}: {item.inspection.verdict.value}, {item.inspection.image}"
