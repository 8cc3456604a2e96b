"""A comparison as one HTML file: which of two is better, how sure that is, and which frames flip.

The page is made from the JSON of :class:`steelsight.evaluation.compare.Comparison` and, where the
data set is at hand, from frames with their labels outlined. The same input gives the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steelsight.data.labels import LabelClass
from steelsight.defects import DefectClass
from steelsight.evaluation.compare import Outcome, figure_words
from steelsight.report import svg
from steelsight.report.data_page import is_wide, label_classes
from steelsight.report.overlays import Grey, Mask, draw_labels, encode_jpeg
from steelsight.report.page import PictureBudget, css_colour, legend, render_page

MAX_PICTURES = 24
"""Flipped frames that are shown."""
MAX_FLIPS = 500
"""Flipped frames that are listed; the JSON has all."""
PICTURE_BYTES = 9_000_000
"""All pictures together, before base64 (which adds a third)."""
WIDE_WH, SQUARE_WH = (1120, 420), (540, 540)

_SHARES = frozenset({"recall_at_2_percent", "recall_at_5_percent", "escape_rate", "overkill_rate"})
_BADGES = {
    Outcome.BETTER: "ok",
    Outcome.WORSE: "ng",
    Outcome.CANNOT_TELL: "note",
    Outcome.NO_DIFFERENCE: "note",
}
_TESTS = {
    "all": ("All frames", "right"),
    "faulty": ("Faulty frames", "NG"),
    "clean": ("Clean frames", "OK"),
}


@dataclass(frozen=True, slots=True)
class FlipPicture:
    """A flipped frame with its label outlined.

    Attributes:
        image: its name.
        jpeg: the picture.
        size_wh: of the picture, in pixels.
    """

    image: str
    jpeg: bytes
    size_wh: tuple[int, int]


def draw_flip(
    image: str, grey_hw: Grey, masks: Mapping[str, Mask], classes: Sequence[DefectClass]
) -> FlipPicture:
    """Draws a flipped frame with its labelled masks by type."""
    height, width = grey_hw.shape
    fit_wh = WIDE_WH if is_wide((width, height)) else SQUARE_WH
    rgb = draw_labels(grey_hw, masks, classes, fit_wh=fit_wh)
    return FlipPicture(image, encode_jpeg(rgb), (rgb.shape[1], rgb.shape[0]))


def compare_page(
    comparison: Mapping[str, Any],
    pictures: Sequence[FlipPicture] = (),
    *,
    title: str,
    classes: Sequence[DefectClass] = (),
    command: str = "",
) -> str:
    """The page, as one HTML text without scripts or links to the outside.

    Args:
        comparison: ``Comparison.to_json()``, or the same read from a file.
        pictures: of flipped frames; shown in the order of the flips, at most ``MAX_PICTURES``.
        title: heading.
        classes: names and colours of the types; by default they are named by their ids.
        command: the exact command line.
    """
    named = {c.id: c for c in classes}
    drawn = {c.id: c for c in label_classes([LabelClass(i, i) for i in comparison["types"]])}
    drawn |= {class_id: named[class_id] for class_id in drawn if class_id in named}
    figures = [("", name, figure) for name, figure in comparison["figures"].items()]
    of_types = [
        (class_id, name, figure)
        for class_id, by_name in comparison["types"].items()
        for name, figure in by_name.items()
    ]
    summary = comparison["summary"]
    flips = comparison["flips"]
    gallery, shown = _gallery(flips, pictures, drawn)
    return render_page(
        "compare.html.j2",
        title=title,
        sentences=summary,
        frames=comparison["frames"],
        warnings=[(side.upper(), note) for side in "ab" for note in comparison[side]["notes"]],
        sides=[_side(side.upper(), comparison[side]) for side in "ab"],
        tests=_tests(comparison["mcnemar"] or {}),
        figures=_rows(figures, drawn),
        type_figures=_rows(of_types, drawn),
        flips=[_flip(flip, drawn) for flip in flips[:MAX_FLIPS]],
        flips_total=len(flips),
        gallery=gallery,
        pictures_shown=shown,
        legend=legend(tuple(drawn.values())),
        not_measured=list(comparison["not_measured"].items()),
        resamples=comparison["resamples"],
        seed=comparison["seed"],
        command=command,
    )


def _side(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    about, decision = told["about"], told["decision"]
    facts = [("Predictions", told["name"])]
    facts += [
        (words, str(about[key]))
        for key, words in (
            ("model", "Model"),
            ("engine", "Engine"),
            ("data", "Data"),
            ("part", "Part"),
            ("trained_on", "Trained on"),
        )
        if about.get(key)
    ]
    if decision:
        identity = f" ({decision['id']})" if decision["id"] else ""
        facts.append(("Decision", f"{decision['name']}{identity}: {decision['rule']}"))
        facts.append(("Chosen on", decision["chosen_on"]))
        if decision["file"]:
            facts.append(("Decision file", decision["file"]))
    else:
        facts.append(("Decision", "none"))
    return {"name": name, "facts": facts}


def _tests(mcnemar: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "heading": _TESTS[name][0],
            "right": _TESTS[name][1],
            **test,
            "p": "< 0.0001" if test["p_value"] < 0.0001 else f"{test['p_value']:.2g}",
            "badge": _BADGES[Outcome(test["outcome"])],
            "grouped": (test["groups_for_a"], test["groups_for_b"])
            != (test["only_a_right"], test["only_b_right"]),
        }
        for name, test in mcnemar.items()
        if test["frames"]
    ]


def _rows(
    figures: Sequence[tuple[str, str, Mapping[str, Any]]], classes: Mapping[str, DefectClass]
) -> list[dict[str, Any]]:
    """Rows of a table, their bars on one scale."""
    reach = max(
        (max(abs(f["low"]), abs(f["high"]), abs(f["difference"])) for _, _, f in figures),
        default=0.0,
    )
    return [
        {
            "type": classes[class_id].name if class_id else "",
            "colour": css_colour(classes[class_id]) if class_id else "",
            "name": _name(name, of_type=bool(class_id)),
            "a": _told(figure["a"], name),
            "b": _told(figure["b"], name),
            "difference": _signed(figure["difference"], name),
            "interval": f"{_signed(figure['low'], name)} to {_signed(figure['high'], name)}"
            + (" points" if name in _SHARES else ""),
            "bar": _bar(figure, reach),
            "outcome": figure["outcome"],
            "badge": _BADGES[Outcome(figure["outcome"])],
            "of": f"{figure['of']:,} {figure['unit']}",
            "needed": figure["frames_needed"],
        }
        for class_id, name, figure in figures
    ]


def _name(name: str, *, of_type: bool) -> str:
    words = figure_words(name)
    if name.startswith("dice") and not of_type:
        words = f"mean {words}"
    return words[0].upper() + words[1:]


def _told(value: float, name: str) -> str:
    return f"{100 * value:.1f} %" if name in _SHARES else f"{value:.4f}"


def _signed(value: float, name: str) -> str:
    """With a sign; percentage points for shares."""
    told = f"{100 * value:+.1f}" if name in _SHARES else f"{value:+.4f}"
    return told.strip("+-") if not float(told) else told.replace("-", "\N{MINUS SIGN}")


def _bar(figure: Mapping[str, Any], reach: float) -> str:
    """The difference with its interval around 0; what is better for B lies to the right."""
    sign = 1 if figure["higher_is_better"] else -1

    def place(value: float) -> float:
        return 50 + 48 * sign * value / reach if reach else 50.0

    ends = sorted((place(figure["low"]), place(figure["high"])))
    colour = {Outcome.BETTER: "ok", Outcome.WORSE: "ng"}.get(Outcome(figure["outcome"]), "neutral")
    parts = [
        '<rect class="lane" x="0" y="4" width="100%" height="14" rx="3"/>',
        svg.rule(50, 1, 20, "middle"),
        f'<line class="whisker" x1="{svg.percent(ends[0])}" x2="{svg.percent(ends[1])}" y1="11"'
        ' y2="11"/>',
        *(svg.rule(end, 6, 10, "whisker") for end in ends),
        f'<circle class="dot {colour}" cx="{svg.percent(place(figure["difference"]))}" cy="11"'
        ' r="5"/>',
    ]
    return (
        '<svg class="whiskers" xmlns="http://www.w3.org/2000/svg" width="100%" height="22"'
        f' aria-hidden="true">{"".join(parts)}</svg>'
    )


def _flip(flip: Mapping[str, Any], classes: Mapping[str, DefectClass]) -> dict[str, Any]:
    types = ", ".join(classes[c].name for c in flip["types"])
    return {**flip, "label": types or flip["label"]}


def _gallery(
    flips: Sequence[Mapping[str, Any]],
    pictures: Sequence[FlipPicture],
    classes: Mapping[str, DefectClass],
) -> tuple[list[dict[str, Any]], int]:
    """Pictures by what happened, and how many."""
    by_image = {picture.image: picture for picture in pictures}
    budget = PictureBudget(PICTURE_BYTES)
    headings = {
        ("faulty", "A"): "Faulty frames that only A finds",
        ("faulty", "B"): "Faulty frames that only B finds",
        ("clean", "A"): "Clean frames that only B blocks",
        ("clean", "B"): "Clean frames that only A blocks",
    }
    sections: dict[str, list[dict[str, Any]]] = {}
    shown = 0
    for flip in flips:
        picture = by_image.get(flip["image"])
        if picture is None or shown >= MAX_PICTURES:
            continue
        uri = budget.embedded(picture.jpeg)
        if uri is None:
            continue
        shown += 1
        heading = headings[flip["label"], flip["right"]]
        entry = {**_flip(flip, classes), "uri": uri, "size_wh": picture.size_wh}
        sections.setdefault(heading, []).append(entry)
    return [
        {
            "heading": heading,
            "cases": sections[heading],
            "wide": any(is_wide(case["size_wh"]) for case in sections[heading]),
        }
        for heading in headings.values()
        if heading in sections
    ], shown
