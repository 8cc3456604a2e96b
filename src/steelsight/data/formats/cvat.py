"""CVAT's XML, "CVAT for images 1.1" (https://docs.cvat.ai/docs/other/xml_format).

``annotations.xml`` lists every image of a task, job or project with its size and what was drawn:

* ``<mask rle="..." left top width height>``: lengths of alternating runs of background and mask,
  beginning with background (0 where the first pixel is mask), row by row inside a box;
* ``<polygon points="x,y;x,y">``: corners in pixels, the first pixel reaching from 0 to 1.

Several objects of one type on an image are one mask here: their union. An image without objects is
clean, because CVAT lists images whether somebody looked at them or not; export finished jobs only.
Tags (``<tag>``) and attributes say nothing about places and are ignored; an image with tags and
nothing else stays unlabelled, because the tag may name a defect. All other objects (boxes, points,
lines, ellipses, cuboids, skeletons) are errors: they are no masks, and without them the frame
would look cleaner than it is. So are videos (``<track>``).

Images lie in ``images/`` beside the XML (or right beside it), in a project under the name of their
subset. A subset such as ``Train`` or ``Validation`` is the frame's split.

The XML is read as a stream. Document types and entities are refused: CVAT writes none, and nested
ones expand to any size.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TypeVar
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

import cv2
import numpy as np
from numpy.typing import NDArray

from steelsight.data.frame_list import FRAME_LIST, write_frame_list
from steelsight.data.labels import (
    IMAGE_FOLDER,
    SPLIT_FOLDERS,
    FrameLabels,
    LabelFormat,
    LabelSet,
    Placement,
    ReadOptions,
    check_image_name,
    check_size,
    classes_of,
    clean_frames,
    frames_to_write,
    further_class,
    images_beside,
    names_to_write,
    place_images,
    shown,
    split_of,
    write_file,
)
from steelsight.data.polygons import rasterise_rle
from steelsight.data.tables import csv_safe
from steelsight.data.threads import frame_by_frame
from steelsight.errors import InputError, LabelError, first_names
from steelsight.masks import MAX_MASK_PX, decode_columns, encode_rle, union_rle

LABELS = "annotations.xml"

_BLANKS = " \t\r\n"

_MAX_DEPTH = 32
"""Of nested elements; CVAT's own files have 9."""

_MAX_NAME_CHARACTERS = 1000

MAX_TYPES = 1000
"""Where a file does not list its types; a data set with more has its names in the wrong place."""

_OTHER_OBJECTS = ("box", "ellipse", "polyline", "points", "cuboid", "skeleton")

T = TypeVar("T")
Ints = NDArray[np.int64]
MaskHW = NDArray[np.bool_]


# Entry points ------------------------------------------------------------------------------------


def recognise(path: Path) -> str | None:
    """An XML file whose root is ``annotations``, or a folder with ``annotations.xml`` or one such.

    Datumaro calls the file after the part of the split: ``train.xml``.
    """
    try:
        files = _label_files(path)
    except (OSError, ValueError):
        return None
    return f"{files[0].name} begins with <annotations>" if len(files) == 1 else None


def _label_files(path: Path) -> list[Path]:
    """The XML files that may be meant; in a folder ``annotations.xml`` comes before all others."""
    if not path.is_dir():
        files = [path]
    elif (path / LABELS).is_file():
        files = [path / LABELS]
    else:
        files = sorted(path.iterdir())
    return [file for file in files if _begins_like_cvat(file)]


def _begins_like_cvat(path: Path) -> bool:
    if path.suffix.lower() != ".xml" or not path.is_file():
        return False
    with path.open("rb") as opened:
        return bool(re.search(rb"<annotations[\s/>]", opened.read(4096)))


def read(path: Path, options: ReadOptions, errors: list[LabelError] | None = None) -> LabelSet:
    """Reads an XML export, or the folder that holds ``annotations.xml`` or one other export.

    Args:
        path: XML file or folder.
        options: see :class:`ReadOptions`; ``class_names`` replace the labels of the file.
        errors: a list to go on past broken images.

    Raises:
        LabelError: an image or object that breaks the format (see ``errors``), or a file that is
            no such XML, which cannot be gone past.
        InputError: the file cannot be read, or the folder holds several.
    """
    xml_path = _xml_path(path)
    paths = images_beside(xml_path.parent, options, errors)
    reader = _Reader(xml_path, options, errors, paths)
    parse_xml(xml_path, reader.start, reader.end, reader.text)
    frames = {image: frame for image, frame in reader.frames.items() if image not in reader.refused}
    if options.unlisted_are_clean:
        unlisted = [image for image in paths if image not in reader.seen]
        frames |= clean_frames(unlisted, paths, options, str(xml_path))
    return LabelSet(
        format=CVAT.name,
        source=path,
        classes=tuple(reader.classes.values()),
        frames=frames,
        image_paths=paths,
        refused=frozenset(reader.refused),
        orphans=reader.orphans,
        notes=tuple(reader.notes()),
    )


def _xml_path(path: Path) -> Path:
    """The file that is meant.

    Raises:
        InputError: a folder with none or several, or that cannot be read.
    """
    if not path.is_dir():
        return path
    if (path / LABELS).exists():
        return path / LABELS
    try:
        files = _label_files(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}), expected {LABELS} in it; check its"
            " permissions"
        ) from error
    if len(files) != 1:
        raise InputError(
            f"{path}: expected {LABELS} or one other XML file that begins with <annotations>, found"
            f" {first_names(file.name for file in files) or 'none'}; give the file that is meant"
        )
    return files[0]


def write(label_set: LabelSet, folder: Path, placement: Placement) -> dict[str, str]:
    """Writes ``annotations.xml`` with one mask for each connected region (8 neighbours) of a type.

    CVAT's format has no place for the columns of a table of frames; where there are any, they are
    written into one (:mod:`steelsight.data.frame_list`).

    Raises:
        InputError: see :func:`frames_to_write`; a name that XML cannot carry, or a file that
            cannot be written.
    """
    names = names_to_write(label_set)
    frames = frames_to_write(label_set)
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        "<annotations>",
        "  <version>1.1</version>",
        "  <meta>",
        "    <task>",
        f"      <size>{len(frames)}</size>",
        "      <mode>annotation</mode>",
        "      <labels>",
        *(
            f"        <label><name>{escape(name)}</name><type>any</type></label>"
            for name in names.values()
        ),
        "      </labels>",
        "    </task>",
        "  </meta>",
    ]
    with frame_by_frame():
        for number, (frame, size_wh) in enumerate(frames):
            lines += _image_lines(number, frame, size_wh, names)
    lines.append("</annotations>\n")
    write_file(folder / LABELS, "\n".join(lines).encode())
    listed = [f for f, _ in frames if f.attributes and csv_safe(f.image) == f.image]
    if listed:
        write_frame_list(folder / FRAME_LIST, listed, {})
    place_images(label_set, folder / IMAGE_FOLDER, placement)
    return {}


CVAT = LabelFormat("cvat", "CVAT for images 1.1 (XML): masks and polygons", recognise, read, write)


# XML ---------------------------------------------------------------------------------------------


def parse_xml(
    path: Path,
    start: Callable[[list[str], dict[str, str], int], None],
    end: Callable[[list[str]], None] = lambda _: None,
    text: Callable[[list[str], str], None] = lambda *_: None,
) -> None:
    """Goes through an XML file element by element, in memory for one element.

    Args:
        path: file in any encoding that expat knows.
        start: called with the names of the open elements, the attributes of the last one and its
            line, counted from 1.
        end: called with the names of the open elements when the last one closes.
        text: called with the names of the open elements and a piece of text.

    Raises:
        LabelError: not well-formed, nested too deep, or with a document type, as which entities
            are defined that expand to any size or name other files.
        InputError: the file cannot be read.
    """
    parser = expat.ParserCreate()
    tags: list[str] = []

    def started(tag: str, attributes: dict[str, str]) -> None:
        tags.append(tag)
        if len(tags) > _MAX_DEPTH:
            raise LabelError(
                f"{path} line {parser.CurrentLineNumber}: elements are nested more than"
                f" {_MAX_DEPTH} deep, expected an export of a labelling tool; export it again"
            )
        start(tags, attributes, parser.CurrentLineNumber)

    def ended(_: str) -> None:
        end(tags)
        tags.pop()

    def refuse_doctype(*_: object) -> None:
        raise LabelError(
            f"{path} line {parser.CurrentLineNumber}: a DOCTYPE, expected none; remove it, and"
            " mistrust the file: labelling tools write none"
        )

    parser.StartElementHandler = started
    parser.EndElementHandler = ended
    parser.CharacterDataHandler = lambda data: text(tags, data)
    parser.StartDoctypeDeclHandler = refuse_doctype
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}), expected an XML file; check the path"
        ) from error
    except expat.ExpatError as error:
        raise LabelError(
            f"{path} line {error.lineno}: damaged XML ({expat.ErrorString(error.code)}), expected a"
            " complete XML file; export it again"
        ) from error
    except (LookupError, ValueError) as error:  # Python looks up encodings for expat
        raise LabelError(
            f"{path} line 1: the encoding that the XML declares is not supported ({error}),"
            " expected UTF-8; save it as UTF-8"
        ) from error


# Reading -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Box:
    """One mask element, checked: run lengths inside a box."""

    runs: Ints
    left: int
    top: int
    width: int
    height: int


@dataclass(slots=True)
class _Image:
    """What was read of the image element that is open."""

    name: str
    size_wh: tuple[int, int]
    split: str | None
    where: str
    boxes: dict[str, list[_Box]] = field(default_factory=dict)
    polygons_xy: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)
    tags: int = 0


class _Reader:
    """Takes the elements as they come; one image at a time is kept open."""

    def __init__(
        self,
        path: Path,
        options: ReadOptions,
        errors: list[LabelError] | None,
        paths: Mapping[str, Path],
    ) -> None:
        self.classes = {c.name: c for c in classes_of(options.class_names, str(path))}
        self.frames: dict[str, FrameLabels] = {}
        self.refused: set[str] = set()
        self.orphans = 0
        self.seen: set[str] = set()
        self._path, self._options, self._errors, self._paths = path, options, errors, paths
        self._classes_are_known = bool(self.classes)
        self._label: dict[str, str] = {}
        self._listed: list[str] = []
        self._split: str | None = None
        self._image: _Image | None = None
        self._tags = self._only_tags = self._without_pixel = 0

    def notes(self) -> list[str]:
        """What was assumed, one line each."""
        told = (
            (self._tags, "tags were ignored: they mark no place"),
            (self._only_tags, "images have tags and no mask: they stay unlabelled"),
            (
                self._without_pixel,
                "masks hold no pixel: their types are on the frame, but nobody knows where",
            ),
        )
        clean = sum(frame.clean for frame in self.frames.values())
        notes = [f"{count} {what}" for count, what in told if count]
        if clean:
            notes.append(f"{clean} images without objects were taken as clean")
        return notes

    def start(self, tags: list[str], attributes: dict[str, str], line: int) -> None:
        """An element opens."""
        match tags:
            case [root] if root != "annotations":
                raise LabelError(
                    f"{self._path} line {line}: the root is <{root[:40]}>, expected <annotations>"
                    " as in an export 'CVAT for images 1.1'; export the task so"
                )
            case [_, "track"]:
                raise LabelError(
                    f"{self._path} line {line}: a <track>, expected images; this is an export for"
                    " videos: export the task as 'CVAT for images 1.1'"
                )
            case [_, "image"]:
                where = f"{self._path} line {line}, image {shown(attributes.get('name', ''))}"
                name = self._tried(lambda: self._image_name(attributes, where))
                if name is not None:
                    self._image = self._tried(lambda: self._opened(name, attributes, where), name)
            case [_, "image", shape] if self._image is not None:
                image = self._image
                where = f"{self._path} line {line}, image {shown(image.name)}, <{shape[:40]}>"
                self._tried(lambda: self._add(image, shape, attributes, where), image.name)

    def end(self, tags: list[str]) -> None:
        """An element closes."""
        match tags:
            case [_, "meta"]:
                self._set_classes()
            case [_, "image"] if self._image is not None:
                image, self._image = self._image, None
                if image.name not in self.refused:
                    self._tried(lambda: self._close(image), image.name)
            case [_, "meta", *_, "labels", "label"]:
                # Points of skeletons are listed as labels with a parent; a tag has no mask.
                if "parent" not in self._label and self._label.get("type", "").strip() != "tag":
                    self._listed.append(self._label.get("name", ""))
                self._label = {}
            case [_, "meta", "task" | "job", "subset"]:
                self._split = SPLIT_FOLDERS.get(self._label.pop("subset", "").strip().casefold())

    def text(self, tags: list[str], data: str) -> None:
        """Text inside an element; only few elements of the head matter."""
        match tags:
            case [_, "meta", *_, "labels", "label", ("name" | "type" | "parent") as key] | [
                _,
                "meta",
                "task" | "job",
                "subset" as key,
            ]:
                self._label[key] = self._label.get(key, "") + data
                if len(self._label[key]) > _MAX_NAME_CHARACTERS:
                    raise LabelError(
                        f"{self._path}: the <{key}> {shown(self._label[key])} is longer than"
                        f" {_MAX_NAME_CHARACTERS} characters, expected a name; export it again"
                    )

    def _tried(self, step: Callable[[], T], image: str | None = None) -> T | None:
        """Runs a step; if a label is broken, its image is refused and, with a list, we go on."""
        try:
            return step()
        except LabelError as error:
            if self._errors is None:
                raise
            self._errors.append(error)
            if image is None:
                self.orphans += 1
            else:
                self.refused.add(image)
            return None

    def _set_classes(self) -> None:
        if self._classes_are_known:
            return
        # A project lists the labels of its tasks again.
        names = dict.fromkeys(name.strip() for name in self._listed)
        self.classes = {c.name: c for c in classes_of(names, f"{self._path} <labels>")}
        self._classes_are_known = bool(self.classes)

    def _image_name(self, attributes: Mapping[str, str], where: str) -> str:
        name = attributes.get("name", "")
        check_image_name(name, where)
        in_subset = f"{attributes.get('subset', '')}/{name}"
        return in_subset if name not in self._paths and in_subset in self._paths else name

    def _opened(self, name: str, attributes: Mapping[str, str], where: str) -> _Image:
        if name in self.seen:
            # The first one is refused too: nobody knows which of the two is right.
            raise LabelError(
                f"{where}: the image is listed twice, expected once; export tasks that share image"
                " names one by one, or remove one of the two"
            )
        self.seen.add(name)
        width = _whole(attributes, "width", where, least=1)
        height = _whole(attributes, "height", where, least=1)
        if width * height > MAX_MASK_PX:
            raise LabelError(
                f"{where}: {width} x {height} pixels, expected at most {MAX_MASK_PX}; correct the"
                " width and height"
            )
        check_size(name, (width, height), self._paths, self._options, where)
        subset = attributes.get("subset", "").strip().casefold()
        split = SPLIT_FOLDERS.get(subset) or self._split or split_of(name)
        return _Image(name, (width, height), split, where)

    def _add(self, image: _Image, shape: str, attributes: Mapping[str, str], where: str) -> None:
        if shape == "tag":
            image.tags += 1
            return
        if shape not in ("mask", "polygon"):
            what = "no mask" if shape in _OTHER_OBJECTS else "unknown"
            raise LabelError(
                f"{where}: this object is {what}, expected <mask> or <polygon>; draw it as one, or"
                " delete it"
            )
        class_id = self._class_id(attributes, where)
        if shape == "mask":
            image.boxes.setdefault(class_id, []).append(_box(attributes, image.size_wh, where))
        else:
            points_xy = _points(attributes.get("points", ""), where)
            image.polygons_xy.setdefault(class_id, []).append(points_xy)

    def _class_id(self, attributes: Mapping[str, str], where: str) -> str:
        name = attributes.get("label", "").strip()
        if name in self.classes:
            return self.classes[name].id
        if self._classes_are_known:
            raise LabelError(
                f"{where}: the label is {shown(name)}, expected one of"
                f" {first_names(map(shown, self.classes))}; correct it, or add it to the <labels>"
            )
        # A file without <labels>: types in the order in which they come.
        if len(self.classes) >= MAX_TYPES:
            raise LabelError(
                f"{where}: the label {shown(name)} is type number {MAX_TYPES + 1}, expected at most"
                f" {MAX_TYPES}; correct the labels"
            )
        self.classes[name] = further_class(self.classes, name, where)
        return self.classes[name].id

    def _close(self, image: _Image) -> None:
        self._tags += image.tags
        class_ids = list(dict.fromkeys((*image.boxes, *image.polygons_xy)))
        if image.tags and not class_ids:
            self._only_tags += 1
            return
        # One mask at a time: an image may be large and have many types.
        rles = {class_id: _union_rle(image, class_id) for class_id in class_ids}
        empty = tuple(class_id for class_id, rle in rles.items() if not rle)
        self._without_pixel += len(empty)
        self.frames[image.name] = FrameLabels(
            image.name,
            {class_id: rle for class_id, rle in rles.items() if rle},
            image.size_wh,
            types_without_mask=empty,
            split=image.split,
        )


def _whole(attributes: Mapping[str, str], key: str, where: str, *, least: int = 0) -> int:
    text = attributes.get(key, "")
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise LabelError(
            f"{where}: {key} is {shown(text)}, expected a whole number from {least} up; export the"
            " task again"
        )
    return int(text)


def _box(attributes: Mapping[str, str], size_wh: tuple[int, int], where: str) -> _Box:
    left, top = _whole(attributes, "left", where), _whole(attributes, "top", where)
    width = _whole(attributes, "width", where, least=1)
    height = _whole(attributes, "height", where, least=1)
    if left + width > size_wh[0] or top + height > size_wh[1]:
        raise LabelError(
            f"{where}: the box from ({left}, {top}) with {width} x {height} pixels leaves the image"
            f" of {size_wh[0]} x {size_wh[1]}, expected it inside; export the task again"
        )
    runs = _runs(attributes.get("rle", ""), where)
    total_px = sum(runs)
    if total_px != width * height:
        told = total_px if total_px < 10**12 else "more than 10^12"
        raise LabelError(
            f"{where}: the {len(runs)} runs of the rle add up to {told} pixels, expected"
            f" {width * height} for a box of {width} x {height}; export the task again"
        )
    return _Box(np.array(runs, np.int64), left, top, width, height)


def _runs(text: str, where: str) -> list[int]:
    """Whole numbers separated by commas, of any size."""
    # int() would accept signs, underscores and foreign digits.
    if not text.encode("ascii", "replace").translate(None, b"0123456789, \t\r\n"):
        try:
            return list(map(int, text.split(",")))
        except ValueError:  # nothing, a blank inside, or thousands of digits
            pass
    words = [word.strip(_BLANKS) for word in text.split(",")]
    wrong = next(word for word in words if not re.fullmatch("[0-9]{1,4000}", word))
    raise LabelError(
        f"{where}: the rle holds {shown(wrong)}, expected lengths in whole numbers from 0 up,"
        " separated by commas; export the task again"
    )


def _points(text: str, where: str) -> NDArray[np.float64]:
    pairs = [pair.split(",") for pair in text.split(";")]
    try:
        points_xy = [(float(x), float(y)) for x, y in pairs]
    except ValueError:
        points_xy = []
    numbers = [number for point in points_xy for number in point]
    if (
        not numbers
        or not re.fullmatch(r"[-+0-9.eE,;\s]*", text)
        or not all(map(math.isfinite, numbers))
    ):
        raise LabelError(
            f"{where}: the points are {shown(text)}, expected 'x,y;x,y;...' in pixels; export the"
            " task again"
        )
    return np.array(points_xy, np.float64)


def _union_rle(image: _Image, class_id: str) -> str:
    """Kaggle RLE of all objects of one type."""
    polygons_xy = image.polygons_xy.get(class_id, [])
    boxes = image.boxes.get(class_id, [])
    drawn = ""
    if polygons_xy:
        where = f"{image.where}, type {class_id!r}"
        drawn = rasterise_rle(polygons_xy, image.size_wh, where=where)
    if not boxes:
        return drawn
    left, right = min(box.left for box in boxes), max(box.left + box.width for box in boxes)
    columns_hw = np.zeros((image.size_wh[1], right - left), np.bool_)
    for box in boxes:
        inside = np.repeat(np.arange(len(box.runs)) % 2 == 1, box.runs)
        inside_hw = inside.reshape(box.height, box.width)
        x, y = box.left - left, box.top
        columns_hw[y : y + box.height, x : x + box.width] |= inside_hw
    rle = encode_rle(columns_hw, left=left)
    return union_rle([rle, drawn]) if drawn else rle


# Writing -----------------------------------------------------------------------------------------


def _image_lines(
    number: int, frame: FrameLabels, size_wh: tuple[int, int], names: Mapping[str, str]
) -> list[str]:
    width, height = size_wh
    head = f'<image id="{number}" name={quoteattr(frame.image)} width="{width}" height="{height}"'
    if frame.split:
        head += f" subset={quoteattr(frame.split)}"
    lines = [f"  {head}>"]
    for class_id, rle in frame.rle_by_class.items():
        label = quoteattr(names[class_id])
        first, columns_hw = decode_columns(rle, size_wh, where=f"image {shown(frame.image)}")
        for runs, (left, top, width, height) in _regions(columns_hw):
            left += first
            lines.append(
                f'    <mask label={label} source="file" occluded="0" rle="{runs}" left="{left}"'
                f' top="{top}" width="{width}" height="{height}" z_order="0"></mask>'
            )
    lines.append("  </image>")
    return lines


def _regions(mask_hw: MaskHW) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Run lengths and box (left, top, width, height) of each connected region (8 neighbours)."""
    if not mask_hw.size:
        return []
    left, top, width, height = cv2.boundingRect(mask_hw.view(np.uint8))
    # A background pixel at both ends of every row keeps runs from going on in the next one.
    crop_hw = np.zeros((height, width + 2), np.uint8)
    crop_hw[:, 1:-1] = mask_hw[top : top + height, left : left + width]
    count, labels_hw = cv2.connectedComponents(crop_hw, connectivity=8)
    flat = crop_hw.ravel()
    starts, ends = (np.flatnonzero(flat[1:] != flat[:-1]) + 1).reshape(-1, 2).T
    region = labels_hw.ravel()[starts] - 1
    # From here on the runs are sorted by region, and stay in row-major order inside it.
    order = np.argsort(region, kind="stable")
    region, starts, length = region[order], starts[order], (ends - starts)[order]
    first = np.searchsorted(region, np.arange(count))  # with the end of the last region
    y, x = np.divmod(starts, width + 2)
    box_left = np.minimum.reduceat(x, first[:-1])
    box_width = np.maximum.reduceat(x + length, first[:-1]) - box_left
    box_top = y[first[:-1]]
    box_height = y[first[1:] - 1] + 1 - box_top
    begin = (y - box_top[region]) * box_width[region] + x - box_left[region]
    end = begin + length
    # Runs as wide as their box go on in the next row.
    gaps = np.ones(len(begin) + 1, np.bool_)
    gaps[1:-1] = (begin[1:] != end[:-1]) | (region[1:] != region[:-1])
    begin, end, region = begin[gaps[:-1]], end[gaps[1:]], region[gaps[:-1]]
    first = np.searchsorted(region, np.arange(count))
    gap = begin - np.append(0, end[:-1])
    gap[first[:-1]] = begin[first[:-1]]
    words = list(map(str, np.stack((gap, end - begin), axis=1).ravel().tolist()))
    rest = (box_width * box_height - end[first[1:] - 1]).tolist()
    boxes = np.stack((box_left + left - 1, box_top + top, box_width, box_height), axis=1).tolist()
    return [
        (", ".join([*words[2 * a : 2 * b], *([str(more)] if more else [])]), tuple(box))
        for (a, b), more, box in zip(pairwise(first.tolist()), rest, boxes, strict=True)
    ]
