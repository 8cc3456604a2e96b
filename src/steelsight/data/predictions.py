"""What a model said about frames, and which labels it confidently contradicts."""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelsight.data.labels import shown
from steelsight.data.tables import check_is_file
from steelsight.errors import InputError


def read_predictions(path: Path) -> dict[str, float]:
    """Faulty probability by image from the ``results.jsonl`` of ``steelsight inspect``.

    Frames without a probability (the network did not run on them) are left out.

    Raises:
        InputError: the file cannot be read, or a line is no result; the text names file and line.
    """
    found: dict[str, float] = {}
    line_of: dict[str, int] = {}
    for number, line in result_lines(path):
        image, probability = _prediction(line, f"{path} line {number}")
        if image in line_of:
            raise InputError(
                f"{path} line {number}: the image {shown(image)} stands in line"
                f" {line_of[image]} already, expected each frame once; give the results of"
                " one run"
            )
        line_of[image] = number
        if probability is not None:
            found[image] = probability
    return found


def result_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a ``results.jsonl`` that are not blank, and their numbers, from 1.

    Raises:
        InputError: it is no file, cannot be read, or is no text.
    """
    try:
        check_is_file(path)
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}), expected the results.jsonl of 'steelsight"
            " inspect'; check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.object[error.start]:#04x} is not UTF-8, expected the"
            " results.jsonl of 'steelsight inspect'; give that file"
        ) from error


def _prediction(line: str, where: str) -> tuple[str, float | None]:
    try:
        result = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(
            f"{where}: {shown(line.strip())} is no JSON, expected a result of 'steelsight"
            " inspect'; give its results.jsonl, and run it again if the file is cut off"
        ) from None
    if not isinstance(result, dict) or not isinstance(result.get("image"), str):
        raise InputError(
            f"{where}: {shown(line.strip())} names no image, expected a result of 'steelsight"
            " inspect' with image and faulty_probability; give its results.jsonl"
        )
    value = result.get("faulty_probability", "nothing")
    if value is None:
        return result["image"], None
    # bool is an int in Python; a NaN fails the comparison.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(
            f"{where}, image {shown(result['image'])}: faulty_probability is {shown(str(value))},"
            " expected a number from 0 to 1 or null; give the results.jsonl of 'steelsight inspect'"
        )
    return result["image"], float(value)


def match_images(predictions: Mapping[str, float], images: Collection[str]) -> dict[str, float]:
    """Predictions by image: by name, else by file name where that is unique on both sides.

    Raises:
        InputError: a probability is not in 0..1, or not one name is among the images.
    """
    for image, p in predictions.items():
        if not 0 <= p <= 1:  # also NaN
            raise InputError(
                f"image {shown(image)}: the faulty probability is {p}, expected 0 to 1; give"
                " probabilities, not logits"
            )
    ours = Counter(image.rpartition("/")[2] for image in images)
    theirs = Counter(image.rpartition("/")[2] for image in predictions)
    by_file = {i.rpartition("/")[2]: p for i, p in predictions.items()}
    matched = {}
    for image in images:
        file_name = image.rpartition("/")[2]
        if image in predictions:
            matched[image] = predictions[image]
        elif ours[file_name] == 1 and theirs[file_name] == 1:
            matched[image] = by_file[file_name]
    if predictions and images and not matched:
        raise InputError(
            f"the results name frames such as {shown(next(iter(predictions)))}, expected frames"
            f" of this data set such as {shown(next(iter(images)))}; inspect the same"
            " folder"
        )
    return matched


def confident_suspects(
    faulty: NDArray[np.bool_], faulty_probability: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Frames whose label a model confidently contradicts.

    Confident learning (Northcutt, Jiang and Chuang, 2021, "Confident Learning: Estimating
    Uncertainty in Dataset Labels", JAIR 70): a frame is counted to the other class if its
    probability of that class reaches the mean probability that the frames labelled so have; where
    both classes reach theirs, the more probable one counts.

    Args:
        faulty: the labels, shape (n,).
        faulty_probability: 0..1, shape (n,), from a model that did not learn from these frames.

    Returns:
        Suspects, shape (n,); none unless both labels occur.
    """
    if faulty.all() or not faulty.any():
        return np.zeros(len(faulty), np.bool_)
    of_label = np.where(faulty, faulty_probability, 1 - faulty_probability)
    of_other = 1 - of_label
    mean_faulty, mean_clean = of_label[faulty].mean(), of_label[~faulty].mean()
    own_limit = np.where(faulty, mean_faulty, mean_clean)
    other_limit = np.where(faulty, mean_clean, mean_faulty)
    suspect: NDArray[np.bool_] = (of_other >= other_limit) & (
        (of_label < own_limit) | (of_other > of_label)
    )
    return suspect
