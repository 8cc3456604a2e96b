"""The model card: what a trained bundle is, learned from, scores, and is not good for.

After Mitchell et al., "Model Cards for Model Reporting", arXiv 1810.03993. Whoever runs a bundle
reads its first section in every report, so that one says what is known and what is not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from steelsight import __version__

FEW_FRAMES = 20
"""Figures of a type that rest on fewer frames are named as doubtful."""

_WORDS = {
    "auroc": "AUROC, faulty or not",
    "average_precision": "average precision, faulty or not",
    "recall_at_2_percent": "faulty frames found at 2 % false alarms",
    "recall_at_5_percent": "faulty frames found at 5 % false alarms",
    "mean_dice": "mean over the types of the Dice on frames that hold the type",
    "mean_dice_at_half": "the same at probability 0.5",
    "kaggle_dice": "Dice over all frames, empty ones count 1 (Kaggle)",
    "worst_type_detection": "detection of the worst type (recall over 0 to 10 % false alarms)",
}
_TYPE_WORDS = {
    "frames": "frames",
    "auroc": "AUROC",
    "detection": "detection",
    "recall_at_2_percent": "recall at 2 %",
    "recall_at_5_percent": "recall at 5 %",
    "best_dice": "Dice",
    "dice_at_half": "Dice at 0.5",
}
_LIMITS = """\
It knows the steel, light, scale and camera of the frames above; elsewhere its scores mean nothing
until measured. Frames larger than those are inspected in tiles; the frame's score is that of its
worst tile, so larger frames raise more false alarms. Labels that miss defects bound every
false-alarm figure. Scores are not calibrated probabilities."""


def model_card(
    name: str,
    *,
    learned: str,
    terms: str,
    figures: Mapping[str, Any],
    about: Mapping[str, object] | None = None,
    decided: str = "",
    settings: Mapping[str, object] | None = None,
    self_test: str = "drawn, not photographed",
    network: str = "a ResNet50 classifier (faulty or not, which types) and a Res-UNet (masks)",
) -> str:
    """Writes the card, Markdown.

    Args:
        name: of the bundle.
        learned: frames and masks it was trained on, in words.
        terms: of these frames.
        figures: by name, as ``evaluation.metrics.Summary.to_json`` gives them: numbers; of the
            types in ``types``; a 95 % interval of ``x`` as ``x_interval``; what trivial answers
            score in ``baselines``; ``None`` is "not measured". Other numbers stand under their
            name.
        about: start, hashes, command and the like, by name.
        decided: how the thresholds were chosen; the decision file says it too.
        settings: of the training, by dotted name.
        self_test: what the self-test frame is, in words.
        network: what the network is, in words.
    """
    parts = [
        f"# {_line(name)}",
        f"## In short\n\n{_in_short(_line(network), figures)}",
        "## What it was trained on, and under which terms\n\n"
        f"{_line(learned)}. Terms: {_line(terms)}. None of these frames is part of this bundle. "
        f"The self-test frame is {_line(self_test)}.",
        f"## Honest figures\n\n{_figures(figures)}",
        "## How it decides\n\n"
        + (f"{_line(decided)}. " if decided else "")
        + "The thresholds, how and on which frames they were chosen stand in `decision.toml`.",
        "## How it was made\n\n"
        f"steelsight {__version__}. `parity.json` holds what the conversion from the trained "
        "network costs; it is no measure of accuracy.",
    ]
    for heading, values in (("", about), ("Settings:\n\n", settings)):
        if values:
            rows = [f"- {_line(key)}: `{_line(value, code=True)}`" for key, value in values.items()]
            parts.append(heading + "\n".join(rows))
    parts.append(f"## Limits\n\n{_LIMITS}" + _doubtful(figures))
    return "\n\n".join(parts) + "\n"


def _in_short(network: str, figures: Mapping[str, Any]) -> str:
    known = [
        f"{_WORDS[key]}: {_number(figures[key], figures.get(f'{key}_interval'))}"
        for key in ("auroc", "mean_dice")
        if figures.get(key) is not None
    ]
    frames = figures.get("frames")
    measured = f"On {_number(frames)} frames that it had not seen: " if frames else "Measured: "
    return (
        f"{network[:1].upper()}{network[1:]}. It was not validated for any line: before it decides "
        "about steel, measure it on your own labelled frames. "
        + (f"{measured}{'; '.join(known)}." if known else "Nothing was measured.")
    )


def _figures(figures: Mapping[str, Any]) -> str:
    """Tables of the plain numbers, of the types, and of trivial answers."""
    rows = [
        (
            _WORDS.get(key, key.replace("_", " ")),
            _number(value, figures.get(f"{key}_interval")),
        )
        for key, value in figures.items()
        if not isinstance(value, Mapping | list | tuple) and (value is not None or key in _WORDS)
    ]
    parts = ["95 % bootstrap intervals in brackets.", _table(("figure", "value"), rows)]
    types = figures.get("types") or {}
    if types:
        columns = [key for key in _TYPE_WORDS if any(key in values for values in types.values())]
        parts.append(
            _table(
                ("type", *(_TYPE_WORDS[key] for key in columns)),
                [
                    (class_id, *(_number(values.get(key)) for key in columns))
                    for class_id, values in types.items()
                ],
            )
        )
        parts.append(
            "Dice: mean over the frames that hold the type, at the best threshold on these frames "
            "(slightly optimistic)."
        )
    parts += [
        f"Not measured for type {_line(class_id)}: {_line(reason)}."
        for class_id, reason in (figures.get("not_measured") or {}).items()
    ]
    baselines = [
        (f"{answer}: {_path(keys)}", _number(value))
        for answer, values in (figures.get("baselines") or {}).items()
        for keys, value in _leaves(values)
    ]
    if baselines:
        parts += ["What trivial answers score:", _table(("answer", "value"), baselines)]
    return "\n\n".join(parts)


def _leaves(values: Mapping[str, Any]) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += [((key, *keys), leaf) for keys, leaf in _leaves(value)]
        else:
            found.append(((key,), value))
    return found


def _path(keys: tuple[str, ...]) -> str:
    return " ".join((keys[0].replace("_", " "), *keys[1:]))


def _doubtful(figures: Mapping[str, Any]) -> str:
    few = [
        f"{_line(class_id)} ({values['frames']})"
        for class_id, values in (figures.get("types") or {}).items()
        if isinstance(values.get("frames"), int) and values["frames"] < FEW_FRAMES
    ]
    if not few:
        return ""
    return f"\n\nFigures of these types rest on fewer than {FEW_FRAMES} frames: {', '.join(few)}."


def _number(value: object, interval: object = None) -> str:
    if value is None:
        return "not measured"
    if not isinstance(value, float):
        return _line(value)
    text = f"{value:.3f}"
    if isinstance(interval, list | tuple) and len(interval) == 2:
        text += f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    return text


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(_line(cell).replace("|", r"\|") for cell in cells) + " |"
        for cells in lines
    )


def _line(value: object, *, code: bool = False) -> str:
    """Text of others as one line that cannot begin a heading or end a code span."""
    text = " ".join(str(value).split())
    return text.replace("`", "'") if code else text
