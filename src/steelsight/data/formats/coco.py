"""Labels as COCO writes them: one JSON document with ``images``, ``annotations``, ``categories``.

The format is described at https://cocodataset.org/#format-data. What is read:

* A segmentation as polygons (lists of ``x1, y1, x2, y2, ...``), as RLE with a list of counts, or as
  RLE with its counts packed into text. Several annotations of one image and type are united;
  ``iscrowd`` makes no difference. A box alone is no mask.
* A type is its category's *name*; a ``category_id`` is a serial number of the file and may begin
  anywhere and have gaps. The types stand in the order of their ids.
* An image that is listed without annotations is clean. An image that is not listed is unlabelled.
* Several files form one data set: ``instances_train2017.json`` and ``instances_val2017.json`` in
  ``annotations/``, or one ``_annotations.coco.json`` in each of ``train/``, ``valid/``, ``test/``
  (Roboflow). Their names tell the split.
* Further keys of an image that hold text (``coil``, ``camera``) become attributes, and ``split``
  its split; both are written back.

Images lie in ``images/`` beside the JSON file, or else beside it. An image's name is its path in
that folder: ``file_name``, with the split's folder in front where the images lie in such folders.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from pycocotools import mask as coco_mask

from steelsight import __version__
from steelsight.data.labels import (
    SPLIT_FOLDERS,
    FrameLabels,
    LabelClass,
    LabelFormat,
    LabelSet,
    Placement,
    ReadOptions,
    check_image_name,
    class_id_of,
    classes_of,
    find_images,
    place_image,
    shown,
    split_of,
)
from steelsight.data.polygons import Points, inset_outlines_of_rle, merged, rasterise_coco
from steelsight.data.tables import unique_keys
from steelsight.errors import DecodeError, InputError, LabelError, first_names
from steelsight.imaging import read_size_wh
from steelsight.masks import (
    MAX_MASK_PX,
    coco_from_kaggle,
    kaggle_from_coco,
    union_rle,
)

MAX_BYTES = 1 << 30
"""Of one JSON file: COCO's own largest one has 470 million bytes."""

_PROBED_BYTES = 1 << 16

_IMAGE_KEYS = frozenset(
    ("id", "file_name", "width", "height", "license", "flickr_url", "coco_url", "date_captured")
)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _LabelFile:
    """One JSON file; ``prefix`` is the folder that it shares with its images, with ``/``."""

    path: Path
    split: str | None
    prefix: str = ""


@dataclass(slots=True)
class _Entry:
    """One listed image with what its annotations say."""

    image: str
    size_wh: tuple[int, int]
    split: str | None
    attributes: dict[str, str]
    rles: dict[str, list[str]] = field(default_factory=dict)
    drawn: dict[str, list[Any]] = field(default_factory=dict)
    first_without_px: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Reading:
    """What is known so far while the files of one data set are read."""

    paths: Mapping[str, Path]
    errors: list[LabelError] | None
    entries: dict[str, _Entry] = field(default_factory=dict)
    listed_in: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    orphans: int = 0
    crowds: int = 0
    without_px: int = 0

    def refuse(self, error: LabelError, image: str | None) -> None:
        """Raises, or goes on without the image."""
        if self.errors is None:
            raise error
        self.errors.append(error)
        if image is None:
            self.orphans += 1
        else:
            self.refused.add(image)


# Reading -----------------------------------------------------------------------------------------


def recognise(path: Path) -> str | None:
    """A JSON file with COCO's keys near its beginning or end, or a folder with such files."""
    try:
        files = _label_files(path)
    except OSError:
        return None
    return f"{files[0].path.name} holds COCO's images and annotations" if files else None


def read(path: Path, options: ReadOptions, errors: list[LabelError] | None = None) -> LabelSet:
    """Reads one JSON file, or all that a folder holds.

    Args:
        path: the file; or a folder with such files in it, in its ``annotations/``, or in a folder
            for each split.
        options: see :class:`ReadOptions`; sizes and types are always the file's own.
        errors: a list to go on past broken images and annotations.

    Raises:
        LabelError: a broken image or annotation (see ``errors``), a size that is not the image
            file's, or a file that is no such document. The text names file, element and image.
        InputError: no such file, or it cannot be read.
    """
    files = _label_files(path)
    if not files:
        raise InputError(
            f"{path}: expected a COCO file (JSON with images, annotations and categories), or a"
            " folder with such files in it, in annotations/ or in train/, valid/, test/; check the"
            " path"
        )
    folder = _image_folder(path, files, options)
    reading = _Reading(find_images(folder, errors), errors)
    classes: dict[str, LabelClass] = {}
    for file in files:
        for found in _read_file(file, folder, reading):
            classes.setdefault(found.name, found)
    classes_of(classes, str(path))  # names of several files may collide
    frames = _frames(reading, classes)
    if options.unlisted_are_clean:
        for image, image_path in reading.paths.items():
            if image not in frames and image not in reading.refused:
                size_wh = _real_size(image_path, reading, f"{path}, image {shown(image)}", image)
                if size_wh:
                    frames[image] = FrameLabels(image, {}, size_wh, split=split_of(image))
    return LabelSet(
        format="coco",
        source=path,
        classes=tuple(classes.values()),
        frames=frames,
        image_paths=reading.paths,
        refused=frozenset(reading.refused),
        orphans=reading.orphans,
        notes=tuple(_notes(reading)),
    )


def _label_files(path: Path) -> list[_LabelFile]:
    """The files of a data set; looks no further where some are found."""
    if path.is_file():
        return [_LabelFile(path, _split_in(path))] if _looks_like_coco(path) else []
    if found := _coco_files(path):
        return [_LabelFile(p, _split_in(p)) for p in found]
    if found := _coco_files(path / "annotations"):
        # COCO's own folder also holds captions and keypoints of the same images.
        instances = [p for p in found if p.name.startswith("instances")]
        return [_LabelFile(p, _split_in(p)) for p in instances or found]
    if not path.is_dir():
        return []
    folders = sorted(p for p in path.iterdir() if p.name.casefold() in SPLIT_FOLDERS)
    return [
        _LabelFile(p, SPLIT_FOLDERS[folder.name.casefold()], f"{folder.name}/")
        for folder in folders
        for p in _coco_files(folder)
    ]


def _coco_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [p for p in sorted(folder.glob("*.json")) if p.is_file() and _looks_like_coco(p)]


def _looks_like_coco(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(_PROBED_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
            file.seek(max(0, path.stat().st_size - _PROBED_BYTES))
            ends = head + file.read(_PROBED_BYTES)
    except OSError:
        return False
    keys = sum(key in ends for key in (b'"images"', b'"annotations"', b'"categories"'))
    return head.startswith(b"{") and (keys > 1 or (keys == 1 and b'"category_id"' in ends))


def _split_in(path: Path) -> str | None:
    """The split that a file's name tells, or its folder's: ``instances_val2017.json``."""
    words = [*re.findall("[a-z]+", path.stem.lower()), path.absolute().parent.name.lower()]
    return next((SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS), None)


def _image_folder(path: Path, files: list[_LabelFile], options: ReadOptions) -> Path:
    if options.images is not None:
        return options.images
    root = path if path.is_dir() else path.parent
    if path.is_file() and root.name == "annotations" and not (root / "images").is_dir():
        root = root.parent
    # Where each split has its folder with labels and images, images/ would be something else.
    shared = not any(file.prefix for file in files)
    return root / "images" if shared and (root / "images").is_dir() else root


def _read_file(file: _LabelFile, folder: Path, reading: _Reading) -> tuple[LabelClass, ...]:
    """Adds the images and annotations of one file; returns its types in the order of their ids."""
    document = _document(file.path)
    classes = _categories(document, file.path)
    by_id = _images(document, file, folder, reading)
    for index, annotation in enumerate(_elements(document, "annotations", file.path)):
        where = _where(file.path, "annotations", index, annotation)
        try:
            _add_annotation(annotation, by_id, classes, where, reading)
        except RecursionError:
            _nested_too_deep(where)
    return tuple(classes.values())


def _document(path: Path) -> Json:
    def not_json(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    try:
        if path.stat().st_size > MAX_BYTES:
            raise LabelError(
                f"{path}: {path.stat().st_size} bytes, expected at most {MAX_BYTES}; split it into"
                " several files"
            )
        text = path.read_bytes().decode("utf-8-sig")
        document = json.loads(text, parse_constant=not_json, object_pairs_hook=unique_keys)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}), expected a COCO file; check the path and"
            " its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise LabelError(
            f"{path}: byte {error.object[error.start]:#04x} is not UTF-8, expected JSON in UTF-8;"
            " export it again"
        ) from error
    except RecursionError:
        _nested_too_deep(str(path))
    except MemoryError as error:
        raise LabelError(
            f"{path}: needs more memory than there is; split it into several files"
        ) from error
    except ValueError as error:
        raise LabelError(
            f"{path}: damaged JSON ({shown(str(error))[1:-1]}), expected a COCO file; export it"
            " again"
        ) from error
    if not isinstance(document, dict):
        raise LabelError(
            f"{path}: holds {_said(document)}, expected an object with images, annotations and"
            " categories; export it as COCO"
        )
    return document


def _nested_too_deep(where: str) -> NoReturn:
    raise LabelError(f"{where}: lists nested too deep, expected a COCO file; export it again")


def _elements(document: Json, key: str, path: Path) -> list[Any]:
    elements = document.get(key)
    if not isinstance(elements, list):
        raise LabelError(
            f"{path}: {key} is {_said(elements)}, expected a list; export the labels as COCO"
            " instances"
        )
    return elements


def _where(path: Path, key: str, index: int, element: object) -> str:
    """``file annotations[17] (id 33)``."""
    number = element.get("id") if isinstance(element, dict) else None
    return f"{path} {key}[{index}]" + ("" if number is None else f" (id {_said(number)})")


def _categories(document: Json, path: Path) -> dict[int, LabelClass]:
    """Types by category id, in the order of the ids."""
    names: dict[int, str] = {}
    for index, category in enumerate(_elements(document, "categories", path)):
        where = _where(path, "categories", index, category)
        _check_object(category, where)
        number, name = _whole_number(category, "id", where), category.get("name")
        if not isinstance(name, str) or not name.isprintable():
            raise LabelError(f"{where}: name is {_said(name)}, expected the type's name as text")
        if number in names:
            raise LabelError(
                f"{where}, name {shown(name)}: {shown(names[number])} already has this id,"
                " expected one for each; number the categories again"
            )
        names[number] = name
    numbers = sorted(names)
    classes = classes_of((names[number] for number in numbers), f"{path} categories")
    return dict(zip(numbers, classes, strict=True))


def _images(
    document: Json, file: _LabelFile, folder: Path, reading: _Reading
) -> dict[int, _Entry | None]:
    """Entries by image id; ``None`` for those that were refused."""
    elements = _elements(document, "images", file.path)
    name_of = _naming(elements, file, folder, reading.paths)
    by_id: dict[int, _Entry | None] = {}
    for index, element in enumerate(elements):
        where = _where(file.path, "images", index, element)
        image: str | None = None
        try:
            _check_object(element, where)
            file_name = element.get("file_name")
            if not isinstance(file_name, str):
                raise LabelError(f"{where}: file_name is {_said(file_name)}, expected a path")
            where = f"{where}, image {shown(file_name)}"
            check_image_name(file_name, where)
            image = name_of(file_name)
            number = _whole_number(element, "id", where)
            if number in by_id:
                if (other := by_id[number]) is not None:
                    reading.refused.add(other.image)
                    by_id[number] = None
                raise LabelError(
                    f"{where}: another image already has this id, expected one for each; number the"
                    " images again"
                )
            by_id[number] = None
            earlier = reading.listed_in.setdefault(image, _where(file.path, "images", index, None))
            if image in reading.entries or image in reading.refused:
                raise LabelError(
                    f"{where}: {earlier} already lists this image, expected it once; merge the two"
                )
            size_wh = _size_wh(element, image, where, reading.paths)
        except LabelError as error:
            reading.refuse(error, image)
            continue
        attributes = _attributes(element)
        split = SPLIT_FOLDERS.get(attributes.get("split", "").casefold())
        if split:
            del attributes["split"]
        split = split or file.split or split_of(image)
        by_id[number] = reading.entries[image] = _Entry(image, size_wh, split, attributes)
    return by_id


def _naming(
    elements: list[Any], file: _LabelFile, folder: Path, paths: Mapping[str, Path]
) -> Callable[[str], str]:
    """How the image for a ``file_name`` is called in the folder: the way that finds most of them.

    The images of ``instances_train2017.json`` may lie in ``train2017/``; some tools write the
    folder ``images/`` into ``file_name``.
    """
    names = [e["file_name"] for e in elements if isinstance(e, dict) and "file_name" in e]
    names = [name for name in names if isinstance(name, str)]
    folders = (file.prefix, "", f"{file.path.stem.partition('_')[2]}/", f"{file.split}/")
    ways = [("", prefix) for prefix in folders] + [(f"{folder.name}/", "")]
    found = [sum(add + name.removeprefix(drop) in paths for name in names) for drop, add in ways]
    drop, add = ways[found.index(max(found))]
    return lambda file_name: add + file_name.removeprefix(drop)


def _size_wh(element: Json, image: str, where: str, paths: Mapping[str, Path]) -> tuple[int, int]:
    """Width and height as listed, which must be those of the image file if it is there."""
    width, height = element.get("width"), element.get("height")
    real_wh = None
    if image in paths:
        try:
            real_wh = read_size_wh(paths[image])
        except DecodeError as error:
            raise LabelError(
                f"{where}: the size of its file cannot be read ({error}); replace the file"
            ) from error
    if type(width) is not int or type(height) is not int or width < 1 or height < 1:
        expected = f"{real_wh[0]} and {real_wh[1]} as in the file" if real_wh else "the image's"
        raise LabelError(
            f"{where}: width and height are {_said(width)} and {_said(height)}, expected"
            f" {expected}; write the size in pixels as whole numbers"
        )
    if width * height > MAX_MASK_PX:
        raise LabelError(
            f"{where}: {_said(width)} x {_said(height)}, expected at most {MAX_MASK_PX} pixels;"
            " cut the image into tiles"
        )
    if real_wh is not None and (width, height) != real_wh:
        raise LabelError(
            f"{where}: listed as {_said(width)} x {_said(height)}, but the file is"
            f" {real_wh[0]} x {real_wh[1]}; use the image that was labelled, unscaled, or export"
            " the labels again"
        )
    return width, height


def _attributes(element: Json) -> dict[str, str]:
    return {
        key: value
        for key, value in element.items()
        if key not in _IMAGE_KEYS and isinstance(value, str) and (key + value).isprintable()
    }


def _add_annotation(
    annotation: Any,
    by_id: Mapping[int, _Entry | None],
    classes: Mapping[int, LabelClass],
    where: str,
    reading: _Reading,
) -> None:
    image: str | None = None
    try:
        _check_object(annotation, where)
        image_id = _whole_number(annotation, "image_id", where)
        if image_id not in by_id:
            raise LabelError(
                f"{where}: no image has the image_id {_said(image_id)}, expected one of the"
                f" {len(by_id)} listed; list the image or remove the annotation"
            )
        entry = by_id[image_id]
        if entry is None:  # what is wrong with it has been said
            return
        image = entry.image
        where = f"{where}, image {shown(entry.image)}"
        category_id = _whole_number(annotation, "category_id", where)
        if category_id not in classes:
            raise LabelError(
                f"{where}: the category_id is {_said(category_id)}, expected one of"
                f" {first_names(map(str, classes))}; list the category or correct it"
            )
        class_id = classes[category_id].id
        rle, drawn = _mask(annotation, entry.size_wh, f"{where}, type {class_id!r}")
    except LabelError as error:
        reading.refuse(error, image)
        return
    reading.crowds += annotation.get("iscrowd") == 1
    if rle:
        entry.rles.setdefault(class_id, []).append(rle)
    elif drawn and coco_mask.area(drawn):
        entry.drawn.setdefault(class_id, []).append(drawn)
    else:
        reading.without_px += 1
        entry.first_without_px.setdefault(class_id, f"{where}, type {class_id!r}")


def _mask(annotation: Json, size_wh: tuple[int, int], where: str) -> tuple[str, Any]:
    """Kaggle RLE, or of polygons what pycocotools makes of them: they are united before."""
    match annotation.get("segmentation"):
        case dict() as rle:
            return kaggle_from_coco(rle, size_wh, where=where), None
        case [_, *_] as polygons:
            return "", rasterise_coco(list(_polygons(polygons, where)), size_wh, where=where)
        case None | []:
            raise LabelError(
                f"{where}: it has no segmentation, expected polygons or RLE, because a box says"
                " nothing about the pixels in it; draw the outline, or remove the annotation"
            )
        case other:
            raise LabelError(
                f"{where}: the segmentation is {_said(other)}, expected a list of polygons or RLE;"
                " export it again"
            )


def _polygons(polygons: list[Any], where: str) -> Iterator[Points]:
    for number, polygon in enumerate(polygons, 1):
        if not isinstance(polygon, list):
            raise LabelError(
                f"{where}: polygon {number} is {_said(polygon)}, expected a list of numbers x1, y1,"
                " x2, y2, ... inside the list of polygons; put it in brackets"
            )
        strange = set(map(type, polygon)) - {int, float}
        if strange:
            index = next(i for i, value in enumerate(polygon) if type(value) in strange)
            raise LabelError(
                f"{where}: number {index + 1} of polygon {number} is {_said(polygon[index])},"
                " expected numbers x1, y1, x2, y2, ... without further brackets; export it again"
            )
        if len(polygon) % 2 or len(polygon) < 6:
            raise LabelError(
                f"{where}: polygon {number} has {len(polygon)} numbers, expected x and y of at"
                " least 3 points; remove it or draw it again"
            )
        try:
            yield np.array(polygon, np.float64).reshape(-1, 2)
        except OverflowError:
            raise LabelError(
                f"{where}: polygon {number} holds a number of more than 300 digits, expected pixels"
            ) from None


def _frames(reading: _Reading, classes: Mapping[str, LabelClass]) -> dict[str, FrameLabels]:
    for entry in reading.entries.values():
        for class_id, where in entry.first_without_px.items():
            if class_id not in entry.rles and class_id not in entry.drawn:
                problem = f"{where}: covers no pixel, so the defect would be lost; draw it larger"
                reading.refuse(LabelError(f"{problem} or remove it"), entry.image)
    return {
        image: FrameLabels(
            image,
            {c.id: rle for c in classes.values() if (rle := _united(entry, c.id))},
            entry.size_wh,
            split=entry.split,
            attributes=entry.attributes,
        )
        for image, entry in reading.entries.items()
        if image not in reading.refused
    }


def _united(entry: _Entry, class_id: str) -> str:
    """Kaggle RLE of all masks of a type; nothing for none."""
    rles = entry.rles.get(class_id, [])
    if class_id in entry.drawn:
        rles = [*rles, kaggle_from_coco(merged(entry.drawn[class_id]), entry.size_wh)]
    return rles[0] if len(rles) == 1 else union_rle(rles)


def _real_size(path: Path, reading: _Reading, where: str, image: str) -> tuple[int, int] | None:
    try:
        return read_size_wh(path)
    except DecodeError as error:
        message = f"{where}: the size of its file cannot be read ({error}); replace the file"
        reading.refuse(LabelError(message), image)
        return None


def _notes(reading: _Reading) -> Iterator[str]:
    if reading.crowds:
        yield f"{reading.crowds} annotations are marked iscrowd: taken as masks like the others"
    if reading.without_px:
        yield f"{reading.without_px} annotations cover no pixel: left out beside others of the type"


def _check_object(element: object, where: str) -> None:
    if not isinstance(element, dict):
        raise LabelError(f"{where}: is {_said(element)}, expected an object; export it again")


def _whole_number(element: Json, key: str, where: str) -> int:
    value = element.get(key)
    if type(value) is not int:
        raise LabelError(
            f"{where}: {key} is {_said(value)}, expected a whole number; export the labels again"
        )
    return value


def _said(value: object) -> str:
    """A value from JSON in an error message; never long, however deep it is."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if value is None:
        return "missing"
    return shown(value) if isinstance(value, str) else shown(json.dumps(value))[1:-1]


# Writing -----------------------------------------------------------------------------------------


def write(label_set: LabelSet, folder: Path, placement: Placement) -> dict[str, str]:
    """Writes ``annotations.json`` with one RLE (counts as text) for each frame and type.

    ``iscrowd`` is 0 although COCO itself keeps RLE for crowds: training leaves crowds out, and
    evaluation ignores them. pycocotools reads RLE of both kinds; MMDetection does with
    ``poly2mask=True`` (its default), Detectron2 with ``INPUT.MASK_FORMAT = "bitmask"`` only.
    """
    return _write(label_set, folder, placement, _rle_parts)


def write_polygons(label_set: LabelSet, folder: Path, placement: Placement) -> dict[str, str]:
    """Writes ``annotations.json`` with one polygon for each connected region (8 neighbours).

    The polygons run a fifth of a pixel inside the pixels' edges
    (:func:`steelsight.data.polygons.inset_outlines_of_rle`), so pycocotools rasterises them to
    exactly the mask. Areas and boxes are those of the mask.
    """
    return _write(label_set, folder, placement, partial(_polygon_parts, _FifthTexts()))


COCO = LabelFormat("coco", "COCO JSON with masks as RLE", recognise, read, write)
COCO_POLYGONS = LabelFormat(
    "coco-polygons",
    "COCO JSON with masks as polygons",
    lambda _: None,  # read as "coco", which takes both kinds of masks
    read,
    write_polygons,
)


def _rle_parts(rle: str, size_wh: tuple[int, int]) -> list[Json]:
    coco_rle: Any = coco_from_kaggle(rle, size_wh)
    return [
        {
            "segmentation": coco_rle,
            "area": int(coco_mask.area(coco_rle)),
            "bbox": [int(value) for value in coco_mask.toBbox(coco_rle)],
        }
    ]


class _FifthTexts(dict[int, str]):
    """Numbers of fifths as JSON writes them in whole pixels, each written out once."""

    def __missing__(self, fifths: int) -> str:
        self[fifths] = text = json.dumps(fifths / 5)
        return text


@dataclass(frozen=True, slots=True)
class _Numbers:
    """A list of numbers that is JSON already: the json module takes several times as long."""

    text: str


def _polygon_parts(texts: _FifthTexts, rle: str, size_wh: tuple[int, int]) -> list[Json]:
    parts = []
    for polygon_xy in inset_outlines_of_rle(rle, size_wh):
        fifths = np.rint(5 * polygon_xy).astype(np.int64).ravel().tolist()
        x, y = np.rint(polygon_xy).astype(np.int64).T
        # The shoelace formula; holes run the other way round, so they count negative.
        doubled_px = x[:-1] @ y[1:] - x[1:] @ y[:-1] + x[-1] * y[0] - x[0] * y[-1]
        left, top, right, bottom = (int(v) for v in (x.min(), y.min(), x.max(), y.max()))
        parts.append(
            {
                "segmentation": _Numbers(", ".join(map(texts.__getitem__, fifths))),
                "area": abs(int(doubled_px)) // 2,
                "bbox": [left, top, right - left, bottom - top],
            }
        )
    return parts


def _write(
    label_set: LabelSet,
    folder: Path,
    placement: Placement,
    parts: Callable[[str, tuple[int, int]], list[Json]],
) -> dict[str, str]:
    category_ids = _category_ids(label_set.class_ids)
    images: list[Json] = []
    annotations: list[Json] = []
    for image_id, (image, frame) in enumerate(label_set.frames.items(), 1):
        if frame.size_wh is None:
            raise InputError(
                f"image {shown(image)}: the size is not known, but COCO needs it; give the folder"
                " of the images with --images, or the size of all frames with --size"
            )
        width, height = frame.size_wh
        listed = {"id": image_id, "file_name": image, "width": width, "height": height}
        images.append(listed | _extra_keys(frame))
        for class_id in label_set.class_ids:
            if class_id not in frame.rle_by_class:
                continue
            for part in parts(frame.rle_by_class[class_id], frame.size_wh):
                head = {"id": len(annotations) + 1, "image_id": image_id}
                head["category_id"] = category_ids[class_id]
                annotations.append(head | part | {"iscrowd": 0})
        if image in label_set.image_paths:
            place_image(label_set.image_paths[image], folder / "images" / image, placement)
    categories = [
        {
            "id": category_ids[c.id],
            "name": c.name if class_id_of(c.name) == c.id else c.id,
            "supercategory": "defect",
        }
        for c in label_set.classes
    ]
    info = {"description": "Defects on steel", "contributor": f"steelsight {__version__}"}
    lines = [f'{{"info": {json.dumps(info)}', '"licenses": []']
    for key, elements in (
        ("categories", categories),
        ("images", images),
        ("annotations", annotations),
    ):
        listed_lines = ",\n".join(map(_line, elements))
        lines.append(f'"{key}": [\n{listed_lines}\n]')
    path = folder / "annotations.json"
    try:
        path.write_text(",\n".join(lines) + "}\n", encoding="ascii", newline="")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}), expected a file in an existing folder;"
            " check the path, its permissions and the free space"
        ) from error
    return {}


def _line(element: Json) -> str:
    """An element as JSON, without line ends."""
    polygon = element.get("segmentation")
    if not isinstance(polygon, _Numbers):
        return json.dumps(element)
    # What stands in front of the segmentation are ids.
    line = json.dumps(element | {"segmentation": None})
    return line.replace("null", f"[[{polygon.text}]]", 1)


def _category_ids(class_ids: tuple[str, ...]) -> dict[str, int]:
    """1, 2, 3, ..., or the types' own numbers if all are such, so that type 3 is category 3."""
    if all(re.fullmatch("[1-9][0-9]{0,8}", class_id) for class_id in class_ids):
        numbers = [int(class_id) for class_id in class_ids]
        if numbers == sorted(numbers):  # reading sorts by them
            return dict(zip(class_ids, numbers, strict=True))
    return {class_id: number for number, class_id in enumerate(class_ids, 1)}


def _extra_keys(frame: FrameLabels) -> dict[str, str]:
    taken = _IMAGE_KEYS | {"split"}
    extra = {(f"attribute_{k}" if k in taken else k): v for k, v in frame.attributes.items()}
    return ({"split": frame.split} if frame.split else {}) | extra
