"""An evaluation as one HTML file: what is missed, what is blocked, how sure that is, and pictures.

The page is made from the JSON of :class:`steelsight.evaluation.evaluate.Evaluation` alone and from
pictures that :func:`draw_picture` makes. What was not measured leaves its part out and is listed at
the end with its reason; nothing is computed here but sums of counts. The same input gives the same
bytes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from steelsight.data.labels import LabelClass
from steelsight.defects import DefectClass
from steelsight.masks import decode_rle
from steelsight.report.charts import share_text
from steelsight.report.data_page import is_wide, label_classes
from steelsight.report.overlays import Grey, Rgb, draw_labels, encode_jpeg
from steelsight.report.page import PictureBudget, css_colour, legend, render_page
from steelsight.report.plots import (
    Curve,
    Dot,
    Interval,
    Mark,
    columns_svg,
    confusion_html,
    dots_html,
    plane_html,
    stacked_svg,
    whole_share,
)

Why = Literal["missed", "false alarm", "worst outline", "found"]

MAX_PICTURES = 24
"""Frames in the gallery."""
PICTURE_BYTES = 9_000_000
"""All pictures together, before base64 (which adds a third)."""
WIDE_WH = (1120, 420)
"""Wide frames are shown one above the other, ..."""
SIDE_WH = (540, 540)
"""... others side by side."""
MAX_NAMES = 200
"""Names of missed or blocked frames that are listed."""


# Pictures ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame of the gallery: its label, and beside it the answer.

    Attributes:
        image: name of the frame.
        why: what it is shown for.
        caption: its scores, in words.
        truth: what the label says, in words.
        answer: what was delivered, in words.
        truth_jpeg: the frame with the labelled masks.
        answer_jpeg: the frame with the delivered masks.
        size_wh: of both pictures in pixels.
        maps: further pictures of the same frame with their words, such as Grad-CAM; JPEG.
    """

    image: str
    why: Why
    caption: str
    truth: str
    answer: str
    truth_jpeg: bytes
    answer_jpeg: bytes
    size_wh: tuple[int, int]
    maps: tuple[tuple[str, bytes], ...] = ()


def draw_picture(
    grey_hw: Grey,
    truth_rle_by_class: Mapping[str, str | None],
    predicted_rle_by_class: Mapping[str, str | None],
    classes: Sequence[DefectClass],
    *,
    image: str,
    why: Why,
    caption: str = "",
    maps: Mapping[str, Rgb] | None = None,
) -> Picture:
    """Draws one frame of the gallery.

    Args:
        grey_hw: the frame.
        truth_rle_by_class: labelled masks as Kaggle RLE by type id; ``None``: the type is there,
            its place is not known; an empty text or no entry: it is not there.
        predicted_rle_by_class: delivered masks in the same form; ``None``: the type was called,
            its mask was not kept.
        classes: types of the bundle: ids, names and colours.
        image: name of the frame.
        why: what it is shown for.
        caption: its scores, in words, such as ``faulty 0.03``.
        maps: further pictures of the frame, RGB, by their words.

    Raises:
        LabelError: a mask is no Kaggle RLE of the size of ``grey_hw``.
    """
    height, width = grey_hw.shape
    fit_wh = WIDE_WH if is_wide((width, height)) else SIDE_WH

    def drawn(rles: Mapping[str, str | None], words: str) -> Rgb:
        masks = {
            class_id: decode_rle(rle, (width, height), where=f"{image}, {words}, type {class_id}")
            for class_id, rle in rles.items()
            if rle
        }
        return draw_labels(grey_hw, masks, classes, fit_wh=fit_wh)

    unlabelled = "clean" if why == "false alarm" else "faulty, type not told"
    truth = drawn(truth_rle_by_class, "label")
    answer = drawn(predicted_rle_by_class, "answer")
    size_wh = (truth.shape[1], truth.shape[0])
    drawn_maps = [
        (words, np.asarray(cv2.resize(rgb, size_wh, interpolation=cv2.INTER_AREA), np.uint8))
        for words, rgb in (maps or {}).items()
    ]
    return Picture(
        image,
        why,
        caption,
        _types_in_words(truth_rle_by_class, classes, unlabelled, "place not known"),
        _types_in_words(predicted_rle_by_class, classes, "no region", "mask not at hand"),
        encode_jpeg(truth),
        encode_jpeg(answer),
        size_wh,
        tuple((words, encode_jpeg(rgb)) for words, rgb in drawn_maps),
    )


def _types_in_words(
    rle_by_class: Mapping[str, str | None],
    classes: Sequence[DefectClass],
    nothing: str,
    without_mask: str,
) -> str:
    said = [
        c.name if rle_by_class[c.id] else f"{c.name} ({without_mask})"
        for c in classes
        if rle_by_class.get(c.id, "") != ""
    ]
    return ", ".join(said) or nothing


# The page ----------------------------------------------------------------------------------------


def evaluation_page(
    evaluation: Mapping[str, Any],
    pictures: Sequence[Picture] = (),
    *,
    title: str,
    classes: Sequence[DefectClass] = (),
    warnings: Sequence[str] = (),
    max_pictures: int = MAX_PICTURES,
) -> str:
    """The page of an evaluation, as one HTML text without scripts or links to the outside.

    Args:
        evaluation: ``Evaluation.to_json()``, or the same read from a file.
        pictures: for the gallery, in the order of their importance; of more than ``max_pictures``
            each reason to show one gets its share.
        title: heading, such as the name of the bundle or of the data.
        classes: names and colours of the types; by default names are those of
            ``evaluation["about"]["types"]``, or the ids.
        warnings: sentences that stand prominently on top, before those that the figures give rise
            to; ``evaluation["about"]["warnings"]`` is shown in the same place.
        max_pictures: frames in the gallery, at most.
    """
    page = _Page(evaluation, classes)
    gallery, shown = _gallery(pictures, max_pictures)
    return render_page(
        "evaluation.html.j2",
        title=title,
        sentences=[
            s.replace(" %", "\N{NO-BREAK SPACE}%") for s in _texts(evaluation.get("summary"))
        ],
        warnings=[*warnings, *_texts(page.about.get("warnings")), *page.warnings()],
        sources=page.sources(),
        provenance=page.provenance(),
        key_figures=page.key_figures(),
        verdicts=page.verdicts(),
        ranking=page.ranking(),
        types=page.types(),
        calibration=page.calibration(),
        gallery=gallery,
        pictures_shown=shown,
        pictures_given=len(pictures),
        legend=legend(page.classes),
        frames=page.frames,
        not_measured=page.not_measured(),
        max_names=MAX_NAMES,
    )


class _Figure(NamedTuple):
    """One figure of the JSON."""

    value: float | None
    interval: Interval | None
    hits: int | None
    of: int | None

    @classmethod
    def read(cls, node: Any) -> "_Figure":
        """From its table; a bare number is a figure without an interval."""
        if not isinstance(node, Mapping):
            return cls(_number(node), None, None, None)
        low, high = _number(node.get("low")), _number(node.get("high"))
        count, of = _number(node.get("count")), _number(node.get("of"))
        return cls(
            _number(node.get("value")),
            # The same in every resample says that the frames are few, not that it is certain.
            None if low is None or high is None or low == high else (low, high),
            None if count is None else int(count),
            None if of is None else int(of),
        )

    def dot(self, label: str, colour: str | None = None, *, share: bool = False) -> Dot:
        """As a row or column of a chart."""
        words = _percent if share else _decimal
        said = "–" if self.value is None else words(self.value)
        return Dot(label, self.value, self.interval, said, self.interval_words(share), colour)

    def interval_words(self, share: bool) -> str:
        if self.interval is None:
            return ""
        low, high = self.interval
        if share:
            return f"{_percent(low).removesuffix(' %')} to {_percent(high)}"
        return f"{_decimal(low)} to {_decimal(high)}"

    def cell(self, *, share: bool = False) -> dict[str, str]:
        """As a cell of a table."""
        said = "–" if self.value is None else (_percent if share else _decimal)(self.value)
        counted = "" if self.hits is None or not self.of else f"{self.hits:,} of {self.of:,}"
        interval = self.interval_words(share).replace(" to ", "–")  # columns are narrow
        return {"value": said, "interval": interval, "counted": counted}


class _Panel(NamedTuple):
    """A chart with its heading and how it is read."""

    heading: str
    read: str
    chart: str


_TYPE_PANELS = (
    ("found", "Found", "Frames that hold it on which its mask was delivered, right place or not.",
     True),
    ("detection", "Detection", "Mean recall while 0 to 10 % of the clean frames raise an alarm.",
     False),
    ("regions_found", "Regions found", "At least a tenth of a region lies under the mask.", True),
    ("pro", "PRO", "Mean overlap of the regions, up to 30 % false positive pixels.", False),
    ("dice_delivered", "Dice, delivered", "As it leaves the machine: not delivered counts as 0.",
     False),
    ("dice_segmented", "Dice, segmented", "The network's mask, whatever the scores say.", False),
    ("best_dice", "Dice, best threshold", "Chosen on these frames: an upper bound.", False),
    ("pixel_average_precision", "Pixel average precision", "Over all thresholds of a pixel.",
     False),
)  # fmt: skip
_DETECTION_COLUMNS = (
    ("found", "Found", True),
    ("recall_at_2_percent", "Recall at 2 % false alarms", True),
    ("recall_at_5_percent", "Recall at 5 % false alarms", True),
    ("detection", "Detection", False),
    ("auroc", "AUROC", False),
    ("average_precision", "Average precision", False),
)
_OUTLINE_COLUMNS = (
    ("regions_found", "Regions found", True),
    ("dice_delivered", "Dice delivered", False),
    ("dice_segmented", "Dice segmented", False),
    ("best_dice", "Dice best", False),
    ("iou_delivered", "IoU delivered", False),
    ("iou_segmented", "IoU segmented", False),
    ("pixel_average_precision", "Pixel AP", False),
    ("pro", "PRO", False),
)
_BIN_PANELS = (
    ("by_size", "Size of the region", "regions"),
    ("by_position_x", "Across the width", "regions"),
    ("by_position_y", "From top to bottom", "regions"),
    ("by_brightness", "Mean grey level of the frame", "frames"),
)
_SOURCES = {
    "data": "Data",
    "labels": "Labels",
    "part": "Part of the split",
    "bundle": "Bundle",
    "model": "Model",
    "engine": "Engine",
    "trained_on": "Trained on",
}
"""What ``about`` tells that stands on top, ..."""
_FURTHER = {
    "images": "Images of the data set",
    "left_out": "Left out",
    "learned_from": "Frames that were learned from",
    "notes": "On the way in",
}
"""... and words for what stands at the end; other keys are their own words."""
_NOT_LISTED = {*_SOURCES, "warnings", "types"}


class _Page:
    """Prepares the parts of the page, one method for each."""

    def __init__(self, evaluation: Mapping[str, Any], classes: Sequence[DefectClass]) -> None:
        self.evaluation = evaluation
        self.about = _table(evaluation.get("about"))
        self.frames = {
            name: int(_number(value) or 0)
            for name, value in _table(evaluation.get("frames")).items()
            if not isinstance(value, Mapping)
        }
        self._by_type = _table(evaluation.get("types"))
        named = {c.id: c for c in classes}
        ids = [c.id for c in classes if c.id in self._by_type]
        ids += [class_id for class_id in self._by_type if class_id not in named]
        names = _table(self.about.get("types"))
        labels = [LabelClass(class_id, str(names.get(class_id, class_id))) for class_id in ids]
        drawn = {c.id: c for c in label_classes(labels)}
        self.classes = tuple(named.get(class_id, drawn[class_id]) for class_id in ids)
        self._decided = _table(evaluation.get("at_decision"))
        self._ranking = _table(evaluation.get("ranking"))

    # Top

    def warnings(self) -> list[str]:
        """What a reader must know before believing a figure."""
        frames, said = self.frames, []
        seen, missing = frames.get("seen", 0), frames.get("unanswered", 0)
        reasons = _table(_table(self.evaluation.get("frames")).get("unanswered_reasons"))
        why = ", ".join(f"{code} {int(_number(n) or 0):,}" for code, n in reasons.items())
        if missing:
            faulty = frames.get("unanswered_faulty", 0)
            lead = "No frame was answered" if missing == seen else (
                f"{_counted(missing, 'frame')} of {seen:,} {'has' if missing == 1 else 'have'}"
                " no answer"
            )  # fmt: skip
            of_them = f" Labelled faulty: {faulty:,} of them." if faulty else ""
            said.append(
                f"{lead}{f' ({why})' if why else ''}.{of_them}"
                " They count neither as found nor as missed."
            )
        if missing < seen and not frames.get("clean"):
            said.append("No clean frame was looked at: nothing is known about false alarms.")
        if missing < seen and not frames.get("faulty"):
            said.append("No faulty frame was looked at: nothing is known about what is missed.")
        if self._decided.get("rounded_pixel_from"):
            said.append(
                "Pixel thresholds of the decision lie between those that masks were counted at:"
                " figures of masks are those of the nearest one, a little off what the machine"
                " delivers."
            )
        return said

    def sources(self) -> list[tuple[str, str]]:
        """Where the figures come from, the most important first."""
        frames = self.frames
        seen = _counted(frames.get("seen", 0), "frame")
        told = f"{seen}: {frames.get('faulty', 0):,} faulty, {frames.get('clean', 0):,} clean"
        if frames.get("unanswered"):
            told += f"; {frames['unanswered']:,} without an answer"
        if frames.get("groups"):
            told += f"; {_counted(frames['groups'], 'group')} of the same steel"
        rows = [("Frames", told)]
        decision = _table(self._decided.get("decision"))
        if decision:
            name = " ".join(str(decision[key]) for key in ("name", "id") if decision.get(key))
            rows.append(("Decision", name))
            rows += [
                (words, str(decision[key]))
                for key, words in (("rule", "Its rule"), ("chosen_on", "Chosen on"))
                if decision.get(key)
            ]
        known = [(words, _told(self.about.get(key))) for key, words in _SOURCES.items()]
        before, after = known[:3], known[3:]
        return [row for row in (*before, *rows, *after) if row[1]]

    def provenance(self) -> list[tuple[str, str]]:
        """Everything else that is known about where the predictions come from."""
        return [
            (_FURTHER.get(key) or key.replace("_", " ").capitalize(), told)
            for key, value in self.about.items()
            if key not in _NOT_LISTED and (told := _told(value))
        ]

    def key_figures(self) -> list[dict[str, str]]:
        """The few figures that stand in large type."""
        rows = [
            ("Missed", self._decided.get("escape_rate"), True, "faulty, but called OK"),
            ("Blocked", self._decided.get("overkill_rate"), True, "clean, but called NG"),
        ]
        if not self._decided:
            rows += [
                (f"Found at {share} %",
                 self._ranking.get(f"recall_at_{share}_percent"), True, "false alarms")
                for share in (1, 2, 5)
            ]  # fmt: skip
        worst = _table(self.evaluation.get("worst_type"))
        name = self._name(str(worst.get("id", "")))
        mean = _table(self.evaluation.get("mean"))
        dice = "dice_delivered" if self._decided else "dice_segmented"
        rows += [
            ("AUROC", self._ranking.get("auroc"), False, "faulty or not"),
            ("Worst type found", worst.get("found"), True, name),
            ("Mean Dice", mean.get(dice), False, f"{dice[5:]}, where the type is"),
        ]
        figures = []
        for label, node, share, note in rows:
            figure = _Figure.read(node)
            if figure.value is not None:
                words = {"label": label, "note": note, "interval": figure.interval_words(share)}
                figures.append(figure.cell(share=share) | words)
        return figures

    # Verdicts

    def verdicts(self) -> dict[str, Any] | None:
        """Verdicts by truth, rates, and which type was taken for which."""
        if not self._decided:
            return None
        told = _table(self._decided.get("verdicts"))
        faulty, clean = (_counts(told.get(truth)) for truth in ("faulty", "clean"))
        words = {
            "faulty": {"NG": "NG", "OK": "OK (missed)", "UNKNOWN": "UNKNOWN"},
            "clean": {"OK": "OK", "NG": "NG (blocked)", "UNKNOWN": "UNKNOWN"},
        }
        bars = [
            (
                f"{sum(counts.values()):,} {truth}",
                [(said, verdict.lower(), counts.get(verdict, 0))
                 for verdict, said in words[truth].items()],
            )
            for truth, counts in (("faulty", faulty), ("clean", clean))
        ]  # fmt: skip
        columns = [
            [counts.get(v, 0) for v in ("NG", "OK", "UNKNOWN")] for counts in (faulty, clean)
        ]
        columns.append([a + b for a, b in zip(*columns, strict=True)])
        table = [
            (name, [*row, sum(row)])
            for name, row in zip(("Faulty", "Clean", "Together"), columns, strict=True)
        ]
        mistakes = [
            _Figure.read(self._decided.get(key)).dot(said, colour, share=True)
            for key, said, colour in (
                ("escape_rate", "Missed: faulty, called OK", "var(--ok)"),
                ("overkill_rate", "Blocked: clean, called NG", "var(--ng)"),
            )
        ]
        top = _nice_share(max(map(_reach, mistakes)))
        rates = [
            _Figure.read(self._decided.get(key)).dot(said, share=key != "f1")
            for key, said in (
                ("recall", "Recall"),
                ("precision", "Precision"),
                ("f1", "F1"),
                ("accuracy", "Accuracy"),
            )
        ]
        return {
            "bars": stacked_svg(bars, label="Verdicts on faulty and on clean frames"),
            "table": table,
            "mistakes": _dots(mistakes, "Rates of mistakes", (0, top), ("0 %", share_text(top))),
            "rates": _dots(rates, "Rates of verdicts", end_words=("0", "1")),
            "confusion": self._confusion(),
            "missed": _texts(self._decided.get("missed")),
            "false_alarms": _texts(self._decided.get("false_alarms")),
        }

    def _confusion(self) -> str:
        told = _table(self._decided.get("type_confusion"))
        table = {str(truth): _counts(row) for truth, row in told.items()}
        if not any(map(any, (row.values() for row in table.values()))):
            return ""
        ids = [c.id for c in self.classes]
        rows = [i for i in ids if i in table] + [truth for truth in table if truth not in ids]
        others = dict.fromkeys(called for row in table.values() for called in row)
        columns = ids + [called for called in others if called not in ids]
        named = {c.id: c.name for c in self.classes} | {"none": "no type", "clean": "clean"}
        agreeing = {class_id: class_id for class_id in ids} | {"clean": "none"}
        return confusion_html(
            [named.get(row, row) for row in rows],
            [named.get(column, column) for column in columns],
            [[table[row].get(column, 0) for column in columns] for row in rows],
            right={
                (i, columns.index(agreeing[row]))
                for i, row in enumerate(rows)
                if agreeing.get(row) in columns
            },
        )

    # Ranking

    def ranking(self) -> dict[str, Any] | None:
        """Curves over all thresholds of the frame's score."""
        if not self._ranking:
            return None
        roc, recalls = (
            _table(self._ranking.get("roc")),
            _table(self._ranking.get("precision_recall")),
        )
        point = _table(self._decided.get("working_point"))
        alarms = _Figure.read(point.get("false_alarm_rate"))
        found = _Figure.read(point.get("recall"))
        if alarms.interval is None:
            alarms = alarms._replace(
                interval=_Figure.read(self._decided.get("overkill_rate")).interval
            )
        if found.interval is None:
            found = found._replace(interval=_Figure.read(self._decided.get("recall")).interval)
        working, fixed = [], []
        if alarms.value is not None and found.value is not None:
            working.append(
                Mark(alarms.value, found.value, "decision", alarms.interval, found.interval)
            )
        for share in (1, 2, 5):
            recall = _Figure.read(self._ranking.get(f"recall_at_{share}_percent"))
            if recall.value is not None:
                fixed.append(Mark(share / 100, recall.value, "", None, recall.interval,
                                  "var(--link)", 3.5))  # fmt: skip
        curve = _curve(roc.get("false_alarm_rate"), roc.get("recall"))
        precision_recall = _curve(recalls.get("recall"), recalls.get("precision"))
        zoomed = whole = precision = ""
        if curve:
            lowest = [recall for x, recall in zip(curve.x, curve.y, strict=True) if x == 0]
            at = [mark.y_interval[0] if mark.y_interval else mark.y for mark in working + fixed
                  if mark.x <= 0.1]  # fmt: skip
            low = min([max(lowest, default=0.0), *at])
            y_low = next((v for v in (0.95, 0.9, 0.8, 0.6, 0.4) if v <= low), 0.0)
            chance = Curve((0.0, 1.0), (0.0, 1.0), "var(--soft)", dashed=True)
            x_words = "false alarms: clean frames called faulty"
            y_words = "recall: faulty frames found"
            zoomed = plane_html(
                [curve],
                [*working, *fixed],
                label="ROC curve up to 10 % false alarms",
                x_words=x_words,
                y_words=y_words,
                x_ends=(0, 0.1),
                y_ends=(y_low, 1),
            )
            whole = plane_html(
                [curve, chance], working, label="ROC curve", x_words=x_words, y_words=y_words
            )
        if precision_recall:
            exact = _Figure.read(self._decided.get("precision"))
            marks = [
                Mark(mark.y, exact.value, "decision", mark.y_interval, exact.interval)
                for mark in working if exact.value is not None
            ]  # fmt: skip
            precision = plane_html(
                [precision_recall], marks, label="Precision over recall",
                x_words="recall: faulty frames found",
                y_words="precision: alarms that are right",
            )  # fmt: skip
        figures = [
            _Figure.read(self._ranking.get(key)).dot(words, share=share)
            for key, words, share in (
                ("auroc", "AUROC", False),
                ("average_precision", "Average precision", False),
                ("recall_at_1_percent", "Recall at 1 % false alarms", True),
                ("recall_at_2_percent", "at 2 %", True),
                ("recall_at_5_percent", "at 5 %", True),
            )
        ]
        return {
            "zoomed": zoomed,
            "whole": whole,
            "precision": precision,
            "figures": _dots(figures, "Figures of the ranking"),
            "marked": bool(working),
        }

    # Types

    def types(self) -> dict[str, Any] | None:
        """Figures of each type: charts, tables, and by size, position and brightness."""
        panels = [p for row in _TYPE_PANELS if (p := self._type_panel(*row)).chart]
        if not panels:
            return None
        return {
            "panels": panels,
            "detection": self._type_table(_DETECTION_COLUMNS, ("frames",)),
            "outlines": self._type_table(_OUTLINE_COLUMNS, ("masked_frames", "regions")),
            "bins": [entry for c in self.classes if (entry := self._bins(c))["panels"]],
            "missed": [
                (c.name, names)
                for c in self.classes
                if (names := _texts(_table(self._by_type[c.id]).get("missed_frames")))
            ],
            "kaggle": self._kaggle(),
        }

    def _type_panel(self, key: str, heading: str, read: str, share: bool) -> _Panel:
        dots = []
        for c in self.classes:
            figure = _Figure.read(_table(self._by_type[c.id]).get(key))
            dots.append(figure.dot(c.name, css_colour(c), share=share))
        if all(dot.value is None for dot in dots):
            return _Panel(heading, read, "")
        mean = _Figure.read(_table(self.evaluation.get("mean")).get(key))
        if mean.value is not None and len(dots) > 1:
            dots.append(mean.dot("Mean", "var(--ink)", share=share))
        ends = ("0 %", "100 %") if share else ("0", "1")
        return _Panel(heading, read, _dots(dots, f"{heading} by type", end_words=ends))

    def _type_table(
        self, columns: Sequence[tuple[str, str, bool]], counts: Sequence[str]
    ) -> dict[str, Any] | None:
        """Only columns in which anything was measured."""
        used = [
            column
            for column in columns
            if any(
                _Figure.read(_table(of).get(column[0])).value is not None
                for of in self._by_type.values()
            )
        ]
        rows = []
        for c in self.classes:
            of = _table(self._by_type[c.id])
            rows.append(
                {
                    "name": c.name,
                    "colour": css_colour(c),
                    "counts": [f"{int(_number(of.get(name)) or 0):,}" for name in counts],
                    "cells": [_Figure.read(of.get(k)).cell(share=share) for k, _, share in used],
                }
            )
        words = {"frames": "Frames", "masked_frames": "Frames with a mask", "regions": "Regions"}
        heads = [words[name] for name in counts] + [head for _, head, _ in used]
        return {"heads": heads, "rows": rows} if used else None

    def _bins(self, c: DefectClass) -> dict[str, Any]:
        of_type = _table(self._by_type[c.id])
        panels = []
        for key, heading, unit in _BIN_PANELS:
            bins = [_table(entry) for entry in _list(of_type.get(key))]
            totals = [int(_number(entry.get(unit)) or 0) for entry in bins]
            if not any(totals):
                continue
            dots, found = [], 0.0
            for entry, words, total in zip(bins, _bin_words(key, bins), totals, strict=True):
                figure = _Figure.read(entry.get("found"))
                value = figure.value if total else None
                found += (value or 0.0) * total
                said = "–" if value is None else whole_share(value)
                dots.append(Dot(words, value, figure.interval, said, f"{total:,}", css_colour(c)))
            if all(dot.value is None for dot in dots):
                continue
            label = f"{c.name}, found by {heading.lower()}"
            chart = columns_svg(dots, label=label, level=found / sum(totals))
            panels.append(_Panel(heading, unit, chart))
        return {"name": c.name, "colour": css_colour(c), "panels": panels}

    def _kaggle(self) -> str:
        """Kaggle's Dice in a sentence, beside what one gets for nothing."""
        kaggle = _table(self.evaluation.get("kaggle"))
        dice, nothing, captured = (
            _Figure.read(kaggle.get(key))
            for key in ("dice", "predict_nothing", "head_room_captured")
        )
        if dice.value is None or nothing.value is None:
            return ""
        said = f"Kaggle's Dice, over all frames and types, is {_with_interval(dice)}; marking"
        said += f" nothing anywhere gives {_decimal(nothing.value)}."
        if captured.value is None:
            return said
        if captured.value < 0:
            return f"{said} So it is worse than marking nothing."
        return f"{said} Of the room between that and 1, {_with_interval(captured)} is captured."

    # Calibration

    def calibration(self) -> dict[str, Any] | None:
        """Reliability of the probabilities: of faulty frames, and of each type."""
        calibration = _table(self.evaluation.get("calibration"))
        by_type = _table(calibration.get("types"))
        nodes = [("Faulty or not", "var(--link)", _table(calibration.get("faulty")))]
        nodes += [(c.name, css_colour(c), _table(by_type.get(c.id))) for c in self.classes]
        errors = [
            figure.dot(name, colour)
            for name, colour, node in nodes
            if (figure := _Figure.read(node.get("ece"))).value is not None
        ]
        top = _nice_share(max((_reach(dot) for dot in errors), default=0))
        first, *others = [_reliability(name, colour, node) for name, colour, node in nodes]
        if not (first or any(others) or errors):
            return None
        return {
            "faulty": first,
            "types": [_Panel(name, "", chart) for (name, _, _), chart in
                      zip(nodes[1:], others, strict=True) if chart],
            "errors": _dots(errors, "Calibration error", (0, top), ("0", f"{top:g}")),
        }  # fmt: skip

    def not_measured(self) -> list[tuple[str, str]]:
        """What could not be measured, and why."""
        told = _table(self.evaluation.get("not_measured"))
        return [(str(name), str(reason)) for name, reason in told.items()]

    def _name(self, class_id: str) -> str:
        return next((c.name for c in self.classes if c.id == class_id), class_id)


def _reliability(name: str, colour: str, node: Mapping[str, Any]) -> str:
    """Observed share over mean probability; the larger a dot, the more frames it stands for."""
    bins = [_table(entry) for entry in _list(node.get("bins"))]
    share = next((key for entry in bins for key in entry if key.startswith("share")), "")
    points = []
    for entry in bins:
        x, y = _number(entry.get("mean_probability")), _Figure.read(entry.get(share))
        frames = int(_number(entry.get("frames")) or 0)
        if frames and x is not None and y.value is not None:
            points.append((x, y.value, y.interval, frames))
    if not points:
        return ""
    most = max(frames for *_, frames in points)
    marks = [
        Mark(x, y, "", None, interval, colour, 3 + 6 * math.sqrt(frames / most))
        for x, y, interval, frames in sorted(points, key=lambda point: point[3])
    ]
    diagonal = Curve((0.0, 1.0), (0.0, 1.0), "var(--soft)", dashed=True)
    return plane_html(
        [diagonal],
        marks,
        label=f"Reliability: {name}",
        x_words="probability that was told",
        y_words="share that is so",
        steps=2,
        height_px=170,
    )


def _dots(
    dots: Sequence[Dot],
    label: str,
    ends: Interval = (0.0, 1.0),
    end_words: tuple[str, str] = ("0", "1"),
) -> str:
    """The chart, if anything of it was measured."""
    if all(dot.value is None for dot in dots):
        return ""
    return dots_html(dots, label=label, ends=ends, end_words=end_words)


def _reach(dot: Dot) -> float:
    """The highest number that is drawn."""
    return dot.interval[1] if dot.interval else dot.value or 0.0


def _bin_words(key: str, bins: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the bins of one panel."""
    if key in ("by_position_x", "by_position_y") and len(bins) == 3:
        return ["left", "middle", "right"] if key.endswith("x") else ["top", "middle", "bottom"]
    unit = "_px" if key == "by_size" else ""
    words = []
    for entry in bins:
        low, high = _number(entry.get(f"from{unit}")), _number(entry.get(f"to{unit}"))
        if key == "by_size":
            low = low or None
        if key == "by_brightness" and low is not None and high is not None:
            low, high = round(low), round(high)
        if low is None:
            words.append("all" if high is None else f"< {_short(high)}")
        else:
            words.append(f"≥ {_short(low)}" if high is None else f"{_short(low)}–{_short(high)}")
    return words


# Gallery -----------------------------------------------------------------------------------------

_WHYS: Mapping[Why, tuple[str, str]] = {
    "missed": ("Worst misses", "Faulty frames that were called OK, the least suspected first."),
    "false alarm": (
        "Worst false alarms",
        "Clean frames that were called NG, the most suspected first.",
    ),
    "worst outline": ("Worst outlines", "Found, but what was delivered fits the label least."),
    "found": ("Found", "Some that went well, to compare."),
}


def _gallery(pictures: Sequence[Picture], max_pictures: int) -> tuple[list[dict[str, Any]], int]:
    """Sections of the gallery, and how many frames they show."""
    by_why = [[p for p in pictures if p.why == why] for why in _WHYS]
    in_turn = [p for row in zip_longest(*by_why) for p in row if p is not None]
    budget = PictureBudget(PICTURE_BYTES)
    cases: dict[str, list[dict[str, Any]]] = {why: [] for why in _WHYS}
    shown = 0
    for picture in in_turn[:max_pictures]:
        uris = [budget.embedded(jpeg) for jpeg in (picture.truth_jpeg, picture.answer_jpeg)]
        if None in uris:
            continue
        shown += 1
        maps = [(words, budget.embedded(jpeg)) for words, jpeg in picture.maps]
        cases[picture.why].append(
            {
                "picture": picture,
                "truth": uris[0],
                "answer": uris[1],
                "wide": is_wide(picture.size_wh),
                "maps": [(words, uri) for words, uri in maps if uri],
            }
        )
    sections = [
        {"heading": heading, "read": read, "why": why, "cases": cases[why]}
        for why, (heading, read) in _WHYS.items()
        if cases[why]
    ]
    return sections, shown


def _with_interval(figure: _Figure) -> str:
    interval = figure.interval_words(share=False)
    return _decimal(figure.value or 0.0) + (f" ({interval})" if interval else "")


# Values and words --------------------------------------------------------------------------------


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _texts(value: Any) -> list[str]:
    return [str(entry) for entry in _list(value)]


def _number(value: Any) -> float | None:
    """A finite number, or nothing."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else None


def _counts(value: Any) -> dict[str, int]:
    return {str(key): int(_number(count) or 0) for key, count in _table(value).items()}


def _curve(x: Any, y: Any) -> Curve | None:
    """Pairs of finite numbers; nothing below two of them."""
    pairs = [
        (a, b)
        for p, q in zip(_list(x), _list(y), strict=False)
        if (a := _number(p)) is not None and (b := _number(q)) is not None
    ]
    return Curve([a for a, _ in pairs], [b for _, b in pairs]) if len(pairs) > 1 else None


def _told(value: Any) -> str:
    """Any JSON value in words; long lists are cut."""
    if isinstance(value, Mapping):
        return "; ".join(f"{k.replace('_', ' ')}: {told}" for k, told in _told_items(value))
    if isinstance(value, list | tuple):
        more = f" and {len(value) - 20:,} more" if len(value) > 20 else ""
        return ", ".join(map(_told, value[:20])) + more
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _told_items(value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, entry in value.items():
        if told := _told(entry):
            yield str(key), told


def _percent(value: float) -> str:
    """One decimal, but never a rounded 0 % or 100 %."""
    if 0 < value < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= value < 1:
        return "> 99.9 %"
    return (
        f"{100 * value:.1f} %".replace(".0 %", " %") if value in (0, 1) else f"{100 * value:.1f} %"
    )


def _decimal(value: float) -> str:
    """Three decimals, but never a rounded 0 or 1."""
    if 0 < value < 0.0005:
        return "< 0.001"
    if 0.9995 <= value < 1:
        return "> 0.999"
    return f"{value:.0f}" if value in (0, 1) else f"{value:.3f}"


def _short(value: float) -> str:
    return f"{value / 1000:.3g}k" if value >= 1000 else f"{value:.4g}"


def _counted(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _nice_share(value: float) -> float:
    """End of a scale for small shares."""
    return next((end for end in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if end >= value), 1.0)
