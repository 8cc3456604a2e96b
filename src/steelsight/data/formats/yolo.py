"""Labels as Ultralytics YOLO writes them for segmentation: a text file of polygons per image.

The format is described at https://docs.ultralytics.com/datasets/segment. A row is ``class x1 y1 x2
y2 ...``: the number of the type, counted from 0, and a polygon in shares of width and height. An
empty text file means a clean image. An image without a text file is unlabelled here, although
Ultralytics trains with it as background: whether it was looked at, nobody said.

Layouts, where ``labels`` mirrors ``images`` with ``.txt`` for the image's suffix:

* ``images/a.jpg`` and ``labels/a.txt``: the image is called ``a.jpg``;
* ``images/train/a.jpg`` and ``labels/train/a.txt``: it is called ``train/a.jpg``;
* ``train/images/a.jpg`` and ``train/labels/a.txt`` (Roboflow): it is called ``train/a.jpg``, too.

``data.yaml`` beside them names the types (``names``, a list or a mapping from 0 up) and may tell
with ``train``, ``val`` and ``test`` which folders, or lists of images in text files, are what part
of a split; otherwise the names of the folders tell.
"""

import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from steelsight.data.labels import (
    CLASS_LIST,
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
    frame_size,
    inside,
    place_image,
    read_lines,
    shown,
    split_of,
)
from steelsight.data.polygons import Points, inset_outlines_of_rle, rasterise_rle
from steelsight.errors import InputError, LabelError

MAX_BYTES = 64 << 20
"""Of one text file of labels."""

_MAX_YAML_BYTES = 1 << 20
_TOLERANCE_PX = 1.0
_PROBED_BYTES = 1 << 16
_PROBED_FILES = 20
_SPLITS = ("train", "val", "test")
_CONFIG_KEYS = frozenset((b"train", b"val", b"test", b"nc", b"path"))

_ROW = re.compile(rb"[0-9]+(?:[ \t]+[-+.0-9eE]+){4,}[ \t\r]*")
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_NOT_IN_NUMBERS = str.maketrans("", "", "0123456789.eE+-")


@dataclass(frozen=True, slots=True)
class _Row:
    """One polygon, in shares of width and height; ``where`` is for error messages."""

    where: str
    class_index: int
    shares_xy: Points

    def points_xy(self, size_wh: tuple[int, int]) -> Points:
        """The polygon in pixels."""
        if self.shares_xy.min() >= 0 and self.shares_xy.max() <= 1:
            return self.shares_xy * size_wh
        with np.errstate(over="ignore"):  # infinity is far outside
            points_xy: Points = self.shares_xy * size_wh
        far = (points_xy < -_TOLERANCE_PX) | (points_xy > np.array(size_wh) + _TOLERANCE_PX)
        if far.any():
            index = int(far.ravel().argmax())
            raise LabelError(
                f"{self.where}: number {index + 1} of the polygon is"
                f" {self.shares_xy.ravel()[index]:.10g}, expected a share from 0 to 1; divide x by"
                " the image's width and y by its height, both in pixels"
            )
        return points_xy


@dataclass(frozen=True, slots=True)
class _Config:
    """What ``data.yaml`` says; without the file everything is empty."""

    path: Path | None = None
    names: tuple[str, ...] = ()
    root: str = ""
    entries: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class _Reading:
    """What is known so far while a data set is read."""

    root: Path
    options: ReadOptions
    errors: list[LabelError] | None
    paths: dict[str, Path] = field(default_factory=dict)
    label_paths: dict[str, Path] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    orphans: int = 0
    notes: list[str] = field(default_factory=list)

    def refuse(self, error: LabelError, *images: str) -> None:
        """Raises, or goes on without the images."""
        if self.errors is None:
            raise error
        self.errors.append(error)
        self.orphans += not images
        self.refused.update(images)


# Reading -----------------------------------------------------------------------------------------


def recognise(path: Path) -> str | None:
    """A ``data.yaml`` with names and parts of a split, or a folder with it or with such rows."""
    try:
        if path.is_file():
            return f"{path.name} names types and images" if _is_config(path) else None
        config = _config_path(path)
        if config is not None:
            return f"{config.name} names types and images"
        for folder in _pairs(path):
            texts = sorted(p for p in (path / folder / "labels").rglob("*.txt") if p.is_file())
            texts = [p for p in texts if p.name != CLASS_LIST][:_PROBED_FILES]
            rows = [row for text in texts for row in _head(text).splitlines()[:1]]
            if any(_ROW.fullmatch(row) for row in rows):
                return f"{PurePosixPath(folder, 'labels')} holds rows of a type and coordinates"
    except OSError:
        pass
    return None


def read(path: Path, options: ReadOptions, errors: list[LabelError] | None = None) -> LabelSet:
    """Reads a data set in any of the layouts above.

    Args:
        path: its folder, or the ``data.yaml`` in it.
        options: see :class:`ReadOptions`. ``images`` stands for the folder ``images``;
            ``class_names`` are used where there is no ``data.yaml`` with names.
        errors: a list to go on past broken rows and files.

    Raises:
        LabelError: a broken row (see ``errors``) or ``data.yaml``. The text names file, row, image
            and value.
        InputError: no such folder.
    """
    root = path if path.is_dir() else path.parent
    config = _read_config(path if path.is_file() else _config_path(path))
    folders = _pairs(root)
    if not folders:
        raise InputError(
            f"{path}: expected the folders images and labels, or train/images and train/labels; see"
            " https://docs.ultralytics.com/datasets/segment for the layout"
        )
    reading = _Reading(root, options, errors)
    _find_files(folders, reading)
    splits = _splits(config, reading)
    class_names = config.names or options.class_names or _class_list(root, folders)
    rows = {image: _rows(image, class_names, reading) for image in list(reading.label_paths)}
    if not class_names:
        count = 1 + max(
            (row.class_index for of_image in rows.values() for row in of_image or ()), default=-1
        )
        class_names = tuple(map(str, range(count)))
        reading.notes.append("no data.yaml names the types: they are called by their numbers")
    classes = classes_of(class_names, str(config.path or root))
    frames: dict[str, FrameLabels] = {}
    for image, of_image in rows.items():
        if of_image is not None:
            try:
                frames[image] = _frame(image, of_image, classes, reading)
            except LabelError as error:
                reading.refuse(error, image)
    _add_unlisted(frames, reading)
    return LabelSet(
        format="yolo",
        source=path,
        classes=classes,
        frames={
            image: replace(frame, split=splits.get(image) or split_of(image))
            for image, frame in frames.items()
        },
        image_paths=reading.paths,
        refused=frozenset(reading.refused),
        orphans=reading.orphans,
        notes=tuple(reading.notes),
    )


def _pairs(root: Path) -> list[str]:
    """Folders with ``images`` and ``labels`` in them, relative to the root."""
    if (root / "labels").is_dir():
        return [""]
    if not root.is_dir():
        return []
    return [p.name for p in sorted(root.iterdir()) if (p / "labels").is_dir()]


def _find_files(folders: list[str], reading: _Reading) -> None:
    """Fills in images and label files by image name."""
    for folder in folders:
        image_folder = reading.options.images or reading.root / folder / "images"
        if reading.options.images or image_folder.is_dir():
            found = find_images(image_folder, reading.errors)
            prefix = "" if reading.options.images else folder
            reading.paths |= {str(PurePosixPath(prefix, name)): p for name, p in found.items()}
    reading.paths = dict(sorted(reading.paths.items()))
    by_stem: dict[str, list[str]] = {}
    for image in reading.paths:
        by_stem.setdefault(_stem(image), []).append(image)
    known_by_stem = {_stem(image): image for image in reading.options.sizes_wh}
    guessed = 0
    for folder in folders:
        for relative, text in _text_files(reading.root / folder / "labels", reading):
            stem = str(PurePosixPath(folder, relative.removesuffix(".txt")))
            images = by_stem.get(stem, [])
            if not images and text.name == CLASS_LIST:
                continue
            if len(images) > 1:
                listed = " and ".join(map(shown, images[:3]))
                error = f"{text}: belongs to {listed}, expected one image; rename one of them"
                reading.refuse(LabelError(error), *images)
                continue
            guessed += not images and stem not in known_by_stem
            image = images[0] if images else known_by_stem.get(stem, f"{stem}.jpg")
            reading.label_paths[image] = text
    if guessed:
        reading.notes.append(f"{guessed} label files have no image here: taken as .jpg")


def _stem(image: str) -> str:
    """What an image and its label file share: everything but the suffix."""
    return posixpath.splitext(image)[0]


def _text_files(folder: Path, reading: _Reading) -> Iterator[tuple[str, Path]]:
    """Label files by their names in the folder."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith(".") or not name.endswith(".txt"):
                continue
            path = Path(here, name)
            try:
                relative = path.relative_to(folder).as_posix()
                if path.is_symlink():  # folders that are links are not followed
                    inside(folder, relative, str(path))
                else:
                    check_image_name(relative, str(path))
                yield relative, path
            except LabelError as error:
                reading.refuse(error)


def _class_list(root: Path, folders: list[str]) -> tuple[str, ...]:
    """Names from ``classes.txt``, which labelling tools write beside or among the labels."""
    for path in (root / CLASS_LIST, *(root / folder / "labels" / CLASS_LIST for folder in folders)):
        if path.is_file():
            return tuple(read_lines(path))
    return ()


def _rows(image: str, class_names: tuple[str, ...], reading: _Reading) -> list[_Row] | None:
    """The rows of an image's label file; ``None`` if one is broken."""
    path = reading.label_paths[image]
    rows: list[_Row] | None = []
    try:
        text = _text(path, MAX_BYTES, "rows of a type and a polygon")
    except LabelError as error:
        reading.refuse(error, image)
        return None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines, 1):
        cells = line.split()
        if not cells:
            continue
        try:
            row = _row(cells, class_names, f"{path} row {number}, image {shown(image)}")
        except LabelError as error:
            reading.refuse(error, image)
            rows = None
            continue
        if rows is not None:
            rows.append(row)
    return rows


def _row(cells: list[str], class_names: tuple[str, ...], where: str) -> _Row:
    if not re.fullmatch("[0-9]{1,9}", cells[0]):
        raise LabelError(
            f"{where}: the type is {shown(cells[0])}, expected its number in data.yaml, counted"
            " from 0; write whole numbers (1, not 1.0)"
        )
    class_index = int(cells[0])
    if class_names and class_index >= len(class_names):
        raise LabelError(
            f"{where}: the type is {class_index}, expected 0 to {len(class_names) - 1} for the"
            f" {len(class_names)} names; types are counted from 0: correct it or name the type"
        )
    if len(cells) == 5:
        raise LabelError(
            f"{where}: 4 numbers are a box, expected x and y of at least 3 points, because a box"
            " says nothing about the pixels in it; export the labels for segmentation"
        )
    coordinates = cells[1:]
    try:
        # numpy would also take nan, inf, 1_000 and digits of other scripts.
        if "".join(coordinates).translate(_NOT_IN_NUMBERS):
            raise ValueError
        shares = np.array(coordinates, np.float64)
    except ValueError:
        index = next(i for i, cell in enumerate(coordinates) if not _NUMBER.fullmatch(cell))
        raise LabelError(
            f"{where}: number {index + 1} of the polygon is {shown(coordinates[index])}, expected a"
            " share from 0 to 1 such as 0.25; write a decimal point, and blanks between the numbers"
        ) from None
    if len(shares) % 2 or len(shares) < 6:
        raise LabelError(
            f"{where}: the polygon has {len(shares)} numbers, expected x and y of at least 3"
            " points; complete the row, and take a confidence at its end away"
        )
    return _Row(where, class_index, shares.reshape(-1, 2))


def _frame(
    image: str,
    rows: list[_Row],
    classes: tuple[LabelClass, ...],
    reading: _Reading,
) -> FrameLabels:
    where = f"{reading.label_paths[image]}, image {shown(image)}"
    size_wh = frame_size(image, reading.paths, reading.options, where)
    by_class: dict[int, list[Points]] = {}
    for row in rows:
        by_class.setdefault(row.class_index, []).append(row.points_xy(size_wh))
    rles = {}
    for class_index, polygons_xy in sorted(by_class.items()):
        class_id = classes[class_index].id
        of_type = f"{where}, type {class_id!r}"
        rles[class_id] = rasterise_rle(polygons_xy, size_wh, where=of_type)
        if not rles[class_id]:
            raise LabelError(
                f"{of_type}: covers no pixel, so the defect would be lost; draw it larger or remove"
                " the row"
            )
    return FrameLabels(image, rles, size_wh)


def _add_unlisted(frames: dict[str, FrameLabels], reading: _Reading) -> None:
    unlisted = [
        image for image in reading.paths if image not in frames and image not in reading.refused
    ]
    if not unlisted:
        return
    if not reading.options.unlisted_are_clean:
        reading.notes.append(
            f"{len(unlisted)} images have no label file: Ultralytics trains with them as"
            " background, here they are unlabelled (--unlisted-are-clean says that they are clean)"
        )
        return
    for image in unlisted:
        try:
            size_wh = frame_size(image, reading.paths, reading.options, str(reading.root))
        except LabelError as error:
            reading.refuse(error, image)
        else:
            frames[image] = FrameLabels(image, {}, size_wh)


def _text(path: Path, limit_bytes: int, expected: str) -> str:
    try:
        size = path.stat().st_size
        if size > limit_bytes:
            raise LabelError(f"{path}: {size} bytes, expected {expected} in at most {limit_bytes}")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabelError(
            f"{path}: byte {error.object[error.start]:#04x} is not UTF-8, expected {expected};"
            " save it as UTF-8"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error


# data.yaml ---------------------------------------------------------------------------------------


class _PlainLoader(yaml.BaseLoader):
    """Text, lists and mappings only; so a type called ``no`` is not turned into ``False``.

    Aliases are refused because a few lines of them unfold to billions of entries.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="an alias (*)", problem_mark=mark)
        if getattr(event, "tag", None) not in (None, "!"):
            raise yaml.MarkedYAMLError(problem="a tag (!)", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            mark: Any = node.start_mark
            raise yaml.MarkedYAMLError(problem="a key twice", problem_mark=mark)
        return mapping


def _config_path(folder: Path) -> Path | None:
    """``data.yaml``, or the only YAML file that looks like one."""
    if not folder.is_dir():
        return None
    found = [p for p in sorted(folder.iterdir()) if _is_config(p)]
    named = [p for p in found if p.stem == "data"]
    return named[0] if named else found[0] if len(found) == 1 else None


def _is_config(path: Path) -> bool:
    if path.suffix.lower() not in (".yaml", ".yml") or not path.is_file():
        return False
    keys = set(re.findall(rb"^[\"']?(\w+)[\"']?[ \t]*:", _head(path), re.MULTILINE))
    return b"names" in keys and (path.stem == "data" or len(keys & _CONFIG_KEYS) > 0)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_PROBED_BYTES).removeprefix(b"\xef\xbb\xbf")
    except OSError:
        return b""


def _read_config(path: Path | None) -> _Config:
    if path is None:
        return _Config()
    text = _text(path, _MAX_YAML_BYTES, "names of types and folders")
    try:
        document = yaml.load(text, _PlainLoader)  # noqa: S506 - makes nothing but text and lists
    except (yaml.YAMLError, ValueError, TypeError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f" row {mark.line + 1}" if mark else ""
        raise LabelError(
            f"{path}{line}: {shown(str(problem or error))[1:-1]}, expected plain YAML without"
            " aliases and tags; write the names out"
        ) from error
    except RecursionError:
        raise LabelError(f"{path}: nested too deep, expected names of types and folders") from None
    if not isinstance(document, dict):
        raise LabelError(f"{path}: expected a mapping with names, train and val; see the format")
    names = _names(document.get("names"), path)
    count = document.get("nc")
    if names and count is not None and count != str(len(names)):
        raise LabelError(
            f"{path}: nc is {_said(count)}, but there are {len(names)} names; correct one of them"
        )
    root = document.get("path", "")
    if not isinstance(root, str):
        raise LabelError(f"{path}: path is {_said(root)}, expected a folder; write it as text")
    entries = {
        split: tuple(_entries(document[key], key, path))
        for split, keys in (("train", ("train",)), ("val", ("val", "valid")), ("test", ("test",)))
        for key in keys
        if key in document
    }
    return _Config(path, names, root, entries)


def _names(names: object, path: Path) -> tuple[str, ...]:
    if names in (None, ""):
        return ()
    if isinstance(names, dict):
        if set(names) != {str(index) for index in range(len(names))}:
            raise LabelError(
                f"{path}: the numbers of the names are {shown(', '.join(map(str, names)))[1:-1]},"
                f" expected 0 to {len(names) - 1} without gaps; number them as the rows do"
            )
        names = [names[str(index)] for index in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise LabelError(
            f"{path}: names are {_said(names)}, expected a list of names, or a mapping from 0 up to"
            " names; write one name for each type"
        )
    return tuple(names)


def _entries(value: object, key: str, path: Path) -> Iterator[str]:
    values = value if isinstance(value, list) else [value]
    for entry in values:
        if not isinstance(entry, str):
            raise LabelError(
                f"{path}: {key} is {_said(value)}, expected a folder or a list of them"
            )
        if entry not in ("", "~", "null", "None"):
            yield entry


def _said(value: object) -> str:
    """A value from YAML in an error message; never long."""
    if isinstance(value, str):
        return shown(value)
    return f"a list of {len(value)}" if isinstance(value, list) else "a mapping"


def _splits(config: _Config, reading: _Reading) -> dict[str, str]:
    """The part of the split by image, as ``data.yaml`` tells it.

    Only its own folder is looked at: a ``path`` that says where the data set once lay, and
    Roboflow's ``../train/images``, which means ``train/images``, are put right with a note.
    """
    by_image: dict[str, set[str]] = {}
    images = (*reading.paths, *(i for i in reading.label_paths if i not in reading.paths))
    moved = False
    # The same for all: what needs train and val gets them, but there is no split.
    none = len(config.entries) > 1 and len(set(config.entries.values())) == 1
    for split, entries in config.entries.items():
        for entry in entries if not none else ():
            place, as_written = _place(entry, config, reading)
            moved |= not as_written
            if place is None:
                _note_missing(split, entry, config, reading)
                continue
            if place.suffix == ".txt":
                found = set(_listed_images(reading.root / place, reading))
            else:
                folder = _image_folder(place)
                found = {i for i in images if PurePosixPath(i).is_relative_to(folder)}
            for image in found:
                by_image.setdefault(image, set()).add(split)
    if moved:
        reading.notes.append(f"{config.path}: the folders it names were looked for beside it")
    several = sum(len(splits) > 1 for splits in by_image.values())
    if several:
        reading.notes.append(
            f"{config.path}: {several} images are in several parts of the split: taken as in none"
        )
    return {image: next(iter(s)) for image, s in by_image.items() if len(s) == 1}


def _place(entry: str, config: _Config, reading: _Reading) -> tuple[PurePosixPath | None, bool]:
    """Where an entry leads, relative to the data set's folder, and whether as it was written."""
    root = reading.root.absolute()
    written = Path(os.path.normpath(root / config.root / entry))
    if written.is_relative_to(root) and _exists(written):
        return PurePosixPath(written.relative_to(root).as_posix()), True
    below = Path(os.path.normpath(root / re.sub(r"^(?:\.\.?/)+", "", entry)))
    if below.is_relative_to(root) and _exists(below):
        return PurePosixPath(below.relative_to(root).as_posix()), False
    return None, True


def _exists(path: Path) -> bool:
    """A list, a folder of images, or that of their labels."""
    parts = [*path.parts]
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
    return path.is_dir() or Path(*parts).is_dir() or (path.suffix == ".txt" and path.is_file())


def _image_folder(place: PurePosixPath) -> PurePosixPath:
    """``images/train`` and ``train/images`` both hold the images called ``train/...``."""
    parts = list(place.parts)
    if "images" in parts:
        del parts[len(parts) - 1 - parts[::-1].index("images")]
    return PurePosixPath(*parts)


def _note_missing(split: str, entry: str, config: _Config, reading: _Reading) -> None:
    problem = f"{config.path}: {split} is {shown(entry)}, but no such folder is beside it"
    if split == "test":  # written into every file by Roboflow, there or not
        reading.notes.append(f"{problem}: left out")
        return
    lost = f" (path: {shown(config.root)})" if config.root else ""
    reading.refuse(
        LabelError(
            f"{problem}{lost}; put the data set's folders there, and write them relative to it"
        )
    )


def _listed_images(path: Path, reading: _Reading) -> Iterator[str]:
    """Images of a text file with one path a line, as Ultralytics' ``autosplit`` writes it."""
    for number, line in enumerate(read_lines(path), 1):
        where = f"{path} line {number}"
        try:
            check_image_name(line.removeprefix("./"), where)
            yield str(_image_folder(PurePosixPath(line)))
        except LabelError as error:
            reading.refuse(error)


# Writing -----------------------------------------------------------------------------------------


def write(label_set: LabelSet, folder: Path, placement: Placement) -> dict[str, str]:
    """Writes ``data.yaml``, ``labels/`` and ``images/``, in folders by split where there is one.

    A row for each connected region (8 neighbours), a fifth of a pixel inside the pixels' edges and
    with so many decimals that reading it gives exactly the mask again (see
    :func:`steelsight.data.polygons.inset_outlines_of_rle`).
    """
    number_of = {class_id: index for index, class_id in enumerate(label_set.class_ids)}
    names = _new_names(label_set)
    texts = {image: folder / "labels" / f"{_stem(name)}.txt" for image, name in names.items()}
    for labels in {folder / "labels", *(text.parent for text in texts.values())}:
        _make_folder(labels)
    for image, frame in label_set.frames.items():
        if frame.size_wh is None:
            raise InputError(
                f"image {shown(image)}: the size is not known, but YOLO needs it; give the folder"
                " of the images with --images, or the size of all frames with --size"
            )
        rows = [
            f"{number_of[class_id]} {coordinates}\n"
            for class_id in label_set.class_ids
            if class_id in frame.rle_by_class
            for coordinates in _coordinates(frame.rle_by_class[class_id], frame.size_wh)
        ]
        _write_text(texts[image], "".join(rows))
        if image in label_set.image_paths:
            target = folder / "images" / names[image]
            place_image(label_set.image_paths[image], target, placement)
    used = {PurePosixPath(name).parts[0] for name in names.values() if "/" in name}
    by_split = {
        split: [f"images/{name}" for name in sorted(used) if SPLIT_FOLDERS.get(name) == split]
        for split in _SPLITS
    }
    # Ultralytics asks for both; the same folder twice means no split.
    config: dict[str, Any] = {"train": "images", "val": "images"}
    if any(frame.split for frame in label_set.frames.values()):
        config = {
            split: folders[0] if len(folders) == 1 else folders
            for split, folders in by_split.items()
            if folders
        }
    config["names"] = {
        number: c.name if class_id_of(c.name) == c.id else c.id
        for number, c in enumerate(label_set.classes)
    }
    _write_text(
        folder / "data.yaml",
        yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1 << 20),
    )
    return {old: new for old, new in names.items() if new != old}


YOLO = LabelFormat("yolo", "Ultralytics YOLO segmentation: text files", recognise, read, write)


def _new_names(label_set: LabelSet) -> dict[str, str]:
    """Names with the split's folder in front, and different without their suffix, too."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for image, frame in label_set.frames.items():
        name = image
        first = image.partition("/")[0]
        if frame.split and ("/" not in image or SPLIT_FOLDERS.get(first) != frame.split):
            name = f"{frame.split}/{image}"
        path = PurePosixPath(name)
        again = 1
        while (stem := _stem(name).casefold()) in taken:
            again += 1
            name = str(path.with_name(f"{path.stem}_{again}{path.suffix}"))
        taken.add(stem)
        names[image] = name
    return names


def _coordinates(rle: str, size_wh: tuple[int, int]) -> Iterator[str]:
    # A hundredth of a pixel: the rasteriser rounds to fifths.
    decimals = max(6, len(str(max(size_wh))) + 2)
    x_text, y_text = (_share_texts(side_px, decimals) for side_px in size_wh)
    for polygon_xy in inset_outlines_of_rle(rle, size_wh):
        x, y = np.rint(5 * polygon_xy).astype(np.int64).T.tolist()
        points = zip(map(x_text.__getitem__, x), map(y_text.__getitem__, y), strict=True)
        yield " ".join(chain.from_iterable(points))


class _ShareTexts(dict[int, str]):
    """Shares of a side by whole fifths of a pixel, each written out once: there are millions."""

    def __init__(self, side_px: int, decimals: int) -> None:
        self._side_px, self._decimals = side_px, decimals

    def __missing__(self, fifths: int) -> str:
        self[fifths] = text = f"{fifths / 5 / self._side_px:.{self._decimals}f}"
        return text


_share_texts = lru_cache(maxsize=8)(_ShareTexts)


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise _not_written(path, error) from error


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path}: cannot be written ({error.strerror}), expected a folder with room for the labels;"
        " check permissions and free space"
    )
