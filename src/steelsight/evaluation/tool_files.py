"""What another tool wrote about the frames of a data set, whatever its form.

* Any label format that :mod:`steelsight.data.formats.registry` reads: Kaggle's CSV in both forms,
  mask folders, a COCO document, ...: masks without scores. Frames of which the file only tells
  types, without masks, are not read: there is nothing to compare.
* COCO results: a list of ``image_id``, ``category_id``, ``segmentation`` and ``score``.
* ``results.jsonl`` of ``steelsight inspect``, or the folder that holds it: scores, and masks at the
  decision's thresholds.

Images are found by their name in the data set, else by their file name where that is unique on both
sides. What a file does not mention is not among the answers.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelsight.data.formats.coco import MAX_BYTES
from steelsight.data.formats.registry import load
from steelsight.data.frames import LabelledFrame
from steelsight.data.labels import ReadOptions, class_id_of, shown
from steelsight.data.polygons import rasterise_rle
from steelsight.data.predictions import result_lines
from steelsight.data.tables import check_is_file, unique_keys
from steelsight.defects import Reason, Verdict
from steelsight.errors import InputError, LabelError, first_names
from steelsight.masks import kaggle_from_coco


class FoundMask(NamedTuple):
    """One mask of another tool: Kaggle RLE, and its score from 0 to 1."""

    class_id: str
    rle: str
    score: float = 1.0


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What another tool says about one frame.

    Attributes:
        masks: any number per type; they may overlap.
        faulty_probability: of the frame, where it is told apart from the masks.
        class_probabilities: of types, likewise.
        unknown: why the tool has no answer.
    """

    masks: tuple[FoundMask, ...] = ()
    faulty_probability: float | None = None
    class_probabilities: Mapping[str, float] = field(default_factory=dict)
    unknown: str | None = None

    @property
    def types(self) -> frozenset[str]:
        """All that it has a mask or a score of."""
        return frozenset((*self.class_probabilities, *(mask.class_id for mask in self.masks)))

    def scores(self, class_ids: Sequence[str]) -> tuple[float, NDArray[np.float32]]:
        """Of the frame and of each type, 0..1."""
        best = dict.fromkeys(class_ids, 0.0)
        for mask in self.masks:
            best[mask.class_id] = max(best[mask.class_id], mask.score)
        best |= self.class_probabilities
        faulty = self.faulty_probability
        scores_k = np.array([best[class_id] for class_id in class_ids], np.float32)
        return max(best.values(), default=0.0) if faulty is None else faulty, scores_k


@dataclass(frozen=True, slots=True)
class ToolFile:
    """What another tool says about the frames of a data set.

    Attributes:
        kind: of the file, for people.
        class_ids: the types in channel order: those of the labels, then others that it found.
        by_image: answers by name of the frame in the data set.
        scored, graded: as :class:`steelsight.evaluation.predictions.Predictions` means them.
        decision_id: of the decision that made the masks, where the file tells it.
        notes: what was left out or looks strange, for people.
    """

    kind: str
    class_ids: tuple[str, ...]
    by_image: Mapping[str, ToolAnswer]
    scored: bool
    graded: bool
    decision_id: str | None = None
    notes: tuple[str, ...] = ()


def read_tool(
    path: Path,
    frames: Sequence[LabelledFrame],
    class_ids: Sequence[str],
    *,
    coco_ids: Path | None = None,
    unmentioned_is_none: bool = False,
) -> ToolFile:
    """Reads what another tool says; see the top of this module for what can be read.

    Args:
        path: file or folder.
        frames: of the data set; they tell names and sizes.
        class_ids: the types of the labels, in channel order.
        coco_ids: a COCO file, or a folder of them, that tells which image and category the ids of
            COCO results mean.
        unmentioned_is_none: the tool looked at all frames: those that are not mentioned have no
            defect.

    Raises:
        LabelError: a broken entry; the text names file and entry.
        InputError: the file cannot be read or is none of these; it shares no type with the labels,
            or mentions not one of the frames.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist, expected predictions; check the path")
    check_is_file(path)
    lines = path / "results.jsonl" if path.is_dir() else path
    if lines.suffix == ".jsonl" and lines.is_file():
        found = _read_results(lines)
    elif (listed := _coco_list(path)) is not None:
        found = _read_coco(path, listed, frames, coco_ids)
    else:
        found = _read_labels(path, frames)
    notes = []
    types = frozenset[str]().union(*(answer.types for answer in found.by_image.values()))
    further = sorted(types - set(class_ids))
    if further and class_ids and types == {*further}:
        raise InputError(
            f"{path}: expected types out of {first_names(class_ids)}, got {first_names(further)};"
            " call them as the labels do"
        )
    if further:
        notes.append(f"no label holds the types {first_names(further)} of the predictions")
    names = _same_names([frame.image for frame in frames], found.by_image)
    if found.by_image and frames and not names:
        raise InputError(
            f"{path} names frames such as {shown(next(iter(found.by_image)))}, expected frames of"
            f" this data set such as {shown(frames[0].image)}; predict the same folder"
        )
    if strangers := len(found.by_image) - len(names):
        notes.append(f"{strangers} predicted images are not among the evaluated frames")
    by_image = {image: found.by_image[name] for image, name in names.items()}
    if unmentioned_is_none:
        by_image = {f.image: by_image.get(f.image, ToolAnswer()) for f in frames}
    return replace(
        found,
        class_ids=_in_order(class_ids, further),
        by_image=by_image,
        notes=tuple(notes),
    )


def _in_order(class_ids: Sequence[str], further: Sequence[str]) -> tuple[str, ...]:
    """Numbers by their value, else those of the labels first."""
    both = (*class_ids, *further)
    return tuple(sorted(both, key=int)) if all(c.isdecimal() for c in both) else both


def _same_names(ours: Sequence[str], theirs: Collection[str]) -> dict[str, str]:
    """Their name by ours: equal, or of the same file name where that is unique on both sides."""
    known = set(theirs)
    by_file = {name.rpartition("/")[2]: name for name in theirs}
    our_files = Counter(name.rpartition("/")[2] for name in ours)
    their_files = Counter(name.rpartition("/")[2] for name in theirs)
    same = {}
    for name in ours:
        file_name = name.rpartition("/")[2]
        if name in known:
            same[name] = name
        elif our_files[file_name] == 1 and their_files[file_name] == 1:
            same[name] = by_file[file_name]
    return same


# Label formats


def _read_labels(path: Path, frames: Sequence[LabelledFrame]) -> ToolFile:
    file_names = Counter(frame.image.rpartition("/")[2] for frame in frames)
    sizes = {
        name: frame.size_wh
        for frame in frames
        for name in (frame.image, frame.image.rpartition("/")[2])
        if name == frame.image or file_names[name] == 1
    }
    # Its types are its own: the numbers of a mask must not become names in the labels' order.
    options = ReadOptions(images=_image_folder(frames), sizes_wh=sizes)
    csv = path.is_file() and path.suffix.lower() == ".csv"
    found = load(path, label_format="severstal" if csv else None, options=options)
    return ToolFile(
        kind=f"masks ({found.format})",
        class_ids=(),
        by_image={
            image: ToolAnswer(tuple(FoundMask(c, rle) for c, rle in labels.rle_by_class.items()))
            for image, labels in found.frames.items()
            if not labels.types_without_mask and not labels.disputed
        },
        scored=False,
        graded=False,
    )


def _image_folder(frames: Sequence[LabelledFrame]) -> Path | None:
    """The folder that the names of all frames are relative to; formats find their images there."""
    folders = set()
    for frame in frames:
        parts = len(Path(frame.image).parts)
        if frame.path.parts[-parts:] != Path(frame.image).parts:
            return None
        folders.add(frame.path.parents[parts - 1])
    return folders.pop() if len(folders) == 1 else None


# Result lines


def _read_results(path: Path) -> ToolFile:
    by_image: dict[str, ToolAnswer] = {}
    decisions = set()
    for number, line in result_lines(path):
        where = f"{path} line {number}"
        image, answer, decision = _result(line, where)
        if image in by_image:
            raise InputError(
                f"{where}: the image {shown(image)} stands there twice, expected each frame"
                " once; give the results of one run"
            )
        by_image[image] = answer
        decisions.add(decision)
    if len(decisions) > 1:
        raise InputError(
            f"{path}: results of several decisions ({first_names(sorted(map(str, decisions)))}),"
            " expected those of one run; give one"
        )
    return ToolFile(
        kind="results.jsonl",
        class_ids=(),
        by_image=by_image,
        scored=True,
        graded=False,
        decision_id=next(iter(decisions), None),
    )


def _result(line: str, where: str) -> tuple[str, ToolAnswer, str | None]:
    try:
        result = json.loads(line)
        image, verdict, reason = result["image"], Verdict(result["verdict"]), result["reason"]
        decision = result.get("decision")
        if not isinstance(image, str):
            raise TypeError("image is no text")
        if verdict is Verdict.UNKNOWN:
            return image, ToolAnswer(unknown=str(Reason(reason))), decision
        masks = tuple(FoundMask(str(d["class"]), str(d["rle"])) for d in result["defects"])
        faulty = _unit(result["faulty_probability"])
        by_class = {str(c): _unit(p) for c, p in result["class_probabilities"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"{where}: {shown(' '.join(what.split()))[1:-1]}, expected a result of 'steelsight"
            " inspect' with scores and defects; give its results.jsonl, and run it again if the"
            " file is cut off"
        ) from None
    return image, ToolAnswer(masks, faulty, by_class), decision


def _unit(value: object) -> float:
    """A number from 0 to 1; bool is an int in Python."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"a score is {shown(str(value))}, not a number from 0 to 1")
    return float(value)


# COCO results


def _coco_list(path: Path) -> list[Any] | None:
    """The entries of a file of COCO results; ``None`` if it is something else."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            if not file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
                return None
    except OSError:  # reading it will say so
        return None
    entries = _read_json(path)
    # Label Studio's export is a list, too.
    is_coco = isinstance(entries, list) and all(
        isinstance(e, dict) and "image_id" in e for e in entries[:10]
    )
    return entries if is_coco else None


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(
                f"{path}: {path.stat().st_size} bytes, expected at most {MAX_BYTES}; leave out what"
                " scores lowest"
            )
        text = path.read_bytes().decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=unique_keys)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError, MemoryError) as error:
        said = shown(" ".join(str(error).split()))[1:-1] or type(error).__name__
        raise InputError(f"{path}: damaged JSON ({said}); export it again") from error


class _CocoIds(NamedTuple):
    images: Mapping[int | str, str]
    categories: Mapping[int | str, str]


def _read_coco(
    path: Path,
    entries: Sequence[Any],
    frames: Sequence[LabelledFrame],
    coco_ids: Path | None,
) -> ToolFile:
    ids = _coco_ids(coco_ids) if coco_ids else _CocoIds({}, {})
    sizes = {frame.image: frame.size_wh for frame in frames}
    known = {*ids.images.values(), *(e["image_id"] for e in entries if _is_text(e, "image_id"))}
    ours = {theirs: image for image, theirs in _same_names(list(sizes), known).items()}
    masks: dict[str, list[FoundMask]] = {}
    for index, entry in enumerate(entries):
        where = f"{path} [{index}]"
        if not isinstance(entry, dict):
            raise LabelError(f"{where}: no object, expected one result; export it again")
        name = _named(entry, "image_id", ids.images, coco_ids, where)
        class_id = _named(entry, "category_id", ids.categories, coco_ids, where)
        where = f"{where}, image {shown(name)}, type {shown(class_id)}"
        try:
            score = _unit(entry.get("score"))
        except ValueError as error:
            raise LabelError(f"{where}: {error}; write a score for each mask") from None
        of_image = masks.setdefault(name, [])
        if name in ours:
            rle = _coco_rle(entry.get("segmentation"), sizes[ours[name]], where)
            of_image.append(FoundMask(class_id, rle, score))
    return ToolFile(
        kind="COCO results",
        class_ids=(),
        by_image={name: ToolAnswer(tuple(found)) for name, found in masks.items()},
        scored=True,
        graded=True,
    )


def _is_text(entry: Any, key: str) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get(key), str)


def _named(
    entry: Mapping[str, Any],
    key: str,
    names: Mapping[int | str, str],
    coco_ids: Path | None,
    where: str,
) -> str:
    value = entry.get(key)
    if isinstance(value, int | str) and value in names:
        return names[value]
    if isinstance(value, str):
        return value  # some tools write names where COCO wants numbers
    if coco_ids is None:
        raise InputError(
            f"{where}: {key} is {shown(str(value))}, expected a COCO file that tells what it means,"
            " because ids are serial numbers of a file; give the labels with --coco-ids FILE"
        )
    raise LabelError(
        f"{where}: {key} is {shown(str(value))}, expected one that {coco_ids} lists; give the file"
        " that the tool was given"
    )


def _coco_ids(path: Path) -> _CocoIds:
    """What ids mean in a COCO document, or in all those of a folder."""
    files = [path]
    if path.is_dir():
        files = sorted([*path.glob("*.json"), *path.glob("annotations/*.json")])
    images: dict[int | str, str] = {}
    categories: dict[int | str, str] = {}
    for file in files:
        document = _read_json(file)
        listed = document.get("images") if isinstance(document, dict) else None
        if not isinstance(listed, list):
            continue
        _take_ids(images, listed, "file_name", file)
        _take_ids(categories, document.get("categories") or [], "name", file)
    if not images or not categories:
        raise InputError(
            f"{path}: expected a COCO file with images and categories, found none; give the one"
            " that the tool was given"
        )
    return _CocoIds(images, {n: class_id_of(name, str(path)) for n, name in categories.items()})


def _take_ids(names: dict[int | str, str], elements: Sequence[Any], key: str, file: Path) -> None:
    for element in elements:
        number = element.get("id") if isinstance(element, dict) else None
        name = element.get(key) if isinstance(element, dict) else None
        if not isinstance(number, int | str) or not isinstance(name, str):
            raise LabelError(f"{file}: expected id and {key} of each entry; export it again")
        if names.setdefault(number, name) != name:
            raise InputError(
                f"{file}: the id {shown(str(number))} means {shown(names[number])} and"
                f" {shown(name)}, expected one meaning; give one COCO file with --coco-ids"
            )


def _coco_rle(segmentation: Any, size_wh: tuple[int, int], where: str) -> str:
    if isinstance(segmentation, dict):
        return kaggle_from_coco(segmentation, size_wh, where=where)
    if not isinstance(segmentation, list) or not segmentation:
        raise LabelError(
            f"{where}: it has no segmentation, expected polygons or RLE, because a box says nothing"
            " about the pixels in it; let the tool write masks"
        )
    try:
        polygons = [np.array(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
        if not all(math.isfinite(p.sum()) for p in polygons):
            raise ValueError("a corner that is no number")
    except (ValueError, TypeError, OverflowError) as error:
        said = shown(" ".join(str(error).split()))[1:-1]
        raise LabelError(
            f"{where}: a polygon that cannot be read ({said}), expected lists of x1, y1, x2, y2,"
            " ...; export it again"
        ) from None
    return rasterise_rle(polygons, size_wh, where=where)
