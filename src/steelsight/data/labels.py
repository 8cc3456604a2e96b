"""What is known about the frames of a data set, whichever file format said it.

Every format reads into a :class:`LabelSet` and writes from one. Masks are carried as Kaggle RLE
text (see :mod:`steelsight.masks`): it holds any mask exactly, takes little memory, and two equal
masks in canonical form are equal texts.

Three kinds of frames are kept apart, because mixing them up is how defects get lost:

* labelled: in ``LabelSet.frames``; clean if it has no type at all;
* refused: a label of it was broken; never clean, never used;
* unlabelled: an image that no label mentions; nothing is known about it.
"""

import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from steelsight.data.threads import in_order
from steelsight.errors import DecodeError, InputError, LabelError, first_names
from steelsight.imaging import IMAGE_SUFFIXES, read_size_wh

CLASS_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""What a class id looks like; it stands in file names, CSV cells and ``ImageId_ClassId``."""

_MAX_CLASS_NAME_CHARACTERS = 64
"""Of a name as people wrote it; no id made from it is longer."""

_MAX_LIST_BYTES = 256 << 20

CLASS_LIST = "classes.txt"
"""File beside labels that names all types in order, one a line."""

IMAGE_FOLDER = "images"
"""Folder of the images beside a label file, as we write it."""

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Folder names that say which part of a published split an image belongs to."""


@dataclass(frozen=True, slots=True)
class LabelClass:
    """One defect type of a data set.

    Attributes:
        id: what labels are stored under; made from the name by :func:`class_id_of`.
        name: as people wrote it.
    """

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class FrameLabels:
    """What is known about one frame.

    Attributes:
        image: path relative to the image folder, with ``/``.
        rle_by_class: Kaggle RLE by type, only of the types that are present and have a mask.
        size_wh: width and height in pixels, where the label file or the image tells them.
        types_without_mask: types known to be on the frame whose place nobody marked.
        disputed: somebody noted that the label is doubtful: neither clean nor faulty.
        split: ``train``, ``val`` or ``test`` where the data set comes with a split.
        attributes: further columns by name, such as ``coil``, ``date`` or ``camera``.
    """

    image: str
    rle_by_class: Mapping[str, str]
    size_wh: tuple[int, int] | None = None
    types_without_mask: tuple[str, ...] = ()
    disputed: bool = False
    split: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def class_ids(self) -> tuple[str, ...]:
        """All types on the frame, with or without a mask."""
        return (*self.rle_by_class, *self.types_without_mask)

    @property
    def clean(self) -> bool:
        """Known to be good steel."""
        return not (self.rle_by_class or self.types_without_mask or self.disputed)


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The labels of a data set.

    Attributes:
        format: name of the format they came from.
        source: the file or folder they were read from.
        classes: all types, in the order of the format (channel order); also unused ones.
        frames: labelled frames by image name, in the order of the source.
        image_paths: every image file found, by image name, sorted: labelled or not.
        refused: images with a broken label (only when errors are collected).
        notes: what was assumed or done on the way in, one line each, for people.
        orphans: broken labels of which nobody can tell the frame. Where there are any, a frame
            without a label may be the one that lost it.
    """

    format: str
    source: Path
    classes: tuple[LabelClass, ...]
    frames: Mapping[str, FrameLabels]
    image_paths: Mapping[str, Path] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    orphans: int = 0

    @property
    def class_ids(self) -> tuple[str, ...]:
        """Ids of ``classes``, in their order."""
        return tuple(c.id for c in self.classes)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a reader may need to be told.

    Attributes:
        images: folder of the images, where they do not lie beside the labels as the format says.
        size_wh: size of frames of which neither the label file nor an image tells it.
        sizes_wh: sizes by image name that are known already; such frames need no image.
        class_names: names of the types in order, for formats that only hold numbers.
        unlisted_are_clean: images without any label are good steel.
    """

    images: Path | None = None
    size_wh: tuple[int, int] | None = None
    sizes_wh: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    unlisted_are_clean: bool = False


class Placement(StrEnum):
    """What happens to the image files when labels are written."""

    LEAVE = "leave"
    """Only labels are written."""
    COPY = "copy"
    LINK = "link"
    """Hard links: no further space, and no link that leads out of the folder."""


@dataclass(frozen=True, slots=True)
class LabelFormat:
    """One file format: how it is recognised, read and written.

    Attributes:
        name: as on the command line.
        title: one line for people.
        recognise: says in words why a file or folder looks like this format, else ``None``. Cheap:
            names and the beginnings of files only. Never raises.
        read: ``(path, options, errors) -> LabelSet``. With ``errors=None`` the first broken label
            raises ``LabelError``; with a list, errors are appended and the image is refused.
        write: ``(label_set, folder, placement) -> names``: writes into an existing empty folder
            and returns the new name of every frame whose name changed. Frames have masks or are
            clean; all have a size. ``None``: the format can only be read.
    """

    name: str
    title: str
    recognise: Callable[[Path], str | None]
    read: Callable[[Path, ReadOptions, list[LabelError] | None], LabelSet]
    write: Callable[[LabelSet, Path, Placement], Mapping[str, str]] | None


# Names -------------------------------------------------------------------------------------------


def class_id_of(name: str, where: str = "") -> str:
    """The class id for a name: what is not a letter, digit, ``-`` or ``_`` becomes ``_``.

    Raises:
        LabelError: nothing usable is left, or the name is no short line of text.
    """
    if len(name) > _MAX_CLASS_NAME_CHARACTERS or not name.strip().isprintable():
        raise LabelError(
            f"{where + ': ' if where else ''}the type is called {shown(name)}, expected at most"
            f" {_MAX_CLASS_NAME_CHARACTERS} characters and no control characters; rename it"
        )
    class_id = re.sub(r"[^A-Za-z0-9_-]+", "_", name.strip()).lstrip("_-")
    if not class_id:
        raise LabelError(
            f"{where + ': ' if where else ''}the type is called {shown(name)}, expected a name with"
            " an ASCII letter or digit; rename it"
        )
    return class_id


def classes_of(names: Iterable[str], where: str = "") -> tuple[LabelClass, ...]:
    """Classes for names in order.

    Raises:
        LabelError: two names give the same id (also in another case: folders would collide), or
            one gives none.
    """
    by_id: dict[str, LabelClass] = {}
    for name in names:
        found = LabelClass(class_id_of(name, where), name.strip())
        other = by_id.setdefault(found.id.casefold(), found)
        if other is not found:
            problem = (
                f"the types {shown(other.name)} and {shown(name)} both become the id {found.id!r}"
            )
            if other == found:
                problem = f"two types are called {shown(found.name)}"
            raise LabelError(
                f"{where + ': ' if where else ''}{problem}, expected different ones; rename one"
            )
    return tuple(by_id.values())


def further_class(classes: Mapping[str, LabelClass], name: str, where: str) -> LabelClass:
    """The class for a name that is not among those known by name.

    Raises:
        LabelError: the name gives no id, or that of another class.
    """
    class_id = class_id_of(name, where).casefold()
    same = [other for other, known in classes.items() if known.id.casefold() == class_id]
    return classes_of([*same, name], where)[-1]


def check_image_name(image: str, where: str) -> None:
    """Refuses a name that is no path inside the image folder.

    Raises:
        LabelError: empty, absolute, with ``.``, ``..``, a backslash, a drive or control characters.
    """
    if not image:
        raise LabelError(
            f"{where}: the image is empty, expected a file name, followed by _ and the type where"
            " the column is ImageId_ClassId; fill the cell"
        )
    parts = image.split("/")
    if {"", ".", ".."} & set(parts) or re.match("[A-Za-z]:", image) or "\\" in image:
        raise LabelError(
            f"{where}: expected a path inside the image folder such as 'line1/000a.jpg', got"
            f" {shown(image)}; write it relative to that folder, with / and without . or .."
        )
    if not image.isprintable():
        raise LabelError(
            f"{where}: the image {shown(image)} holds control characters, expected a file name;"
            " export the table again"
        )


def is_image_name(image: str) -> bool:
    """Whether :func:`check_image_name` accepts it."""
    try:
        check_image_name(image, "")
    except LabelError:
        return False
    return True


def shown(text: str) -> str:
    """Quoted on one line, and not longer than a line can take."""
    return ascii(text if len(text) <= 40 else text[:37] + "...")


def split_of(image: str) -> str | None:
    """The part of a split that the folders on the way to an image name, such as ``train``."""
    for part in image.split("/")[:-1]:
        if part.casefold() in SPLIT_FOLDERS:
            return SPLIT_FOLDERS[part.casefold()]
    return None


# Images ------------------------------------------------------------------------------------------


def find_images(folder: Path, errors: list[LabelError] | None = None) -> dict[str, Path]:
    """Every image file under a folder by its name relative to it, sorted.

    Hidden files are left out. The names are not opened.

    Args:
        folder: walked to its end; links to folders are not followed.
        errors: where to note what is refused instead of raising.

    Raises:
        LabelError: a link that leads out of the folder, or a name that no label could carry.
        InputError: no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder, expected a folder of images; check the path")
    root = os.path.realpath(folder)
    found: dict[str, Path] = {}
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(here, name)
            if name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            image = path.relative_to(folder).as_posix()
            try:
                check_image_name(image, str(folder))
                if path.is_symlink() and not _is_inside(path, root):
                    raise LabelError(
                        f"{path}: a link to {shown(os.path.realpath(path))}, expected files inside"
                        f" {folder}; copy the file there"
                    )
            except LabelError as error:
                if errors is None:
                    raise
                errors.append(error)
                continue
            found[image] = path
    return dict(sorted(found.items()))


def images_beside(
    folder: Path,
    options: ReadOptions,
    errors: list[LabelError] | None,
    *,
    folders: Iterable[str] = (IMAGE_FOLDER,),
    named: Callable[[], Collection[str]] | None = None,
) -> dict[str, Path]:
    """The images of a label file, from the first of these places that is there.

    The folder that the options tell; one of ``folders`` beside the file; right beside the file,
    where folders and links are left out.

    Args:
        folder: where the label file lies.
        options: see :class:`ReadOptions`.
        errors: see :func:`find_images`.
        folders: names of image folders that the format knows.
        named: the images that the labels name, where they are known by now. Pictures right beside
            the file are its images only if it names one of them: the folder may hold many things.
    """
    if options.images is not None:
        return find_images(options.images, errors)
    for name in folders:
        if (folder / name).is_dir():
            return find_images(folder / name, errors)
    try:
        beside = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES]
    except OSError:  # reading the label file will say what is wrong
        return {}
    paths = {p.name: p for p in beside if p.is_file() and not p.is_symlink()}
    return {} if paths and named and paths.keys().isdisjoint(named()) else paths


def inside(folder: Path, relative: str, where: str) -> Path:
    """A path that a label file names, made safe: it must stay in its folder, links included.

    Raises:
        LabelError: absolute, with ``..``, or a link that leads out.
    """
    check_image_name(relative, where)
    path = folder / relative
    if not _is_inside(path, os.path.realpath(folder)):
        raise LabelError(
            f"{where}: {shown(relative)} leads out of {folder} by a link, expected a file inside;"
            " copy it there"
        )
    return path


def _is_inside(path: Path, root: str) -> bool:
    # Path.resolve raises RuntimeError on links that lead to each other; this does not.
    return os.path.commonpath((root, os.path.realpath(path))) == root


def frame_size(
    image: str, paths: Mapping[str, Path], options: ReadOptions, where: str
) -> tuple[int, int]:
    """Width and height of a frame whose label file does not tell them: the image's, or as told.

    Raises:
        LabelError: no such image, and no size was given; or its header cannot be read.
    """
    if image in options.sizes_wh:
        return options.sizes_wh[image]
    if image in paths:
        try:
            return read_size_wh(paths[image])
        except DecodeError as error:
            raise LabelError(
                f"{where}: the size of {shown(image)} cannot be read ({error}); replace the file"
            ) from error
    if options.size_wh is not None:
        return options.size_wh
    raise LabelError(
        f"{where}: the image {shown(image)} is not there, and the labels do not tell its size;"
        " give the folder of the images with --images, or the size of all frames with --size"
    )


def check_size(
    image: str,
    size_wh: tuple[int, int],
    paths: Mapping[str, Path],
    options: ReadOptions,
    where: str,
) -> None:
    """Compares a size that a label file tells with that of the image, where it is known.

    Raises:
        LabelError: they differ, or the image's header cannot be read.
    """
    if image not in paths and image not in options.sizes_wh:
        return
    found_wh = frame_size(image, paths, options, where)
    if found_wh != size_wh:
        raise LabelError(
            f"{where}: labelled at {size_wh[0]} x {size_wh[1]} pixels, but the image has"
            f" {found_wh[0]} x {found_wh[1]}; expected equal sizes: put the image there that was"
            " labelled"
        )


def clean_frames(
    images: Iterable[str], paths: Mapping[str, Path], options: ReadOptions, where: str
) -> dict[str, FrameLabels]:
    """Frames of images without any label that are told to be good steel.

    Raises:
        LabelError: see :func:`frame_size`.
    """
    return {
        image: FrameLabels(
            image, {}, frame_size(image, paths, options, where), split=split_of(image)
        )
        for image in images
    }


def place_images(
    label_set: LabelSet, folder: Path, placement: Placement, names: Mapping[str, str] | None = None
) -> None:
    """Copies or links the images of all labelled frames, where they are at hand.

    Args:
        label_set: frames and image files.
        folder: of the images; it is made.
        placement: what happens.
        names: new names of the images whose name changed.

    Raises:
        InputError: a file cannot be written.
    """
    if placement is Placement.LEAVE:
        return

    def place(image: str) -> None:
        target = folder / (names or {}).get(image, image)
        place_image(label_set.image_paths[image], target, placement)

    for _ in in_order(place, (i for i in label_set.frames if i in label_set.image_paths)):
        pass


def place_image(source: Path, target: Path, placement: Placement) -> None:
    """Copies or links one image file; its folder is made.

    Raises:
        InputError: the file cannot be written.
    """
    if placement is Placement.LEAVE:
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if placement is Placement.LINK:
            try:
                os.link(source.resolve(), target)
            except OSError:  # another file system
                shutil.copyfile(source, target)
        else:
            shutil.copyfile(source, target)
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written ({error.strerror}), expected a folder with room for the"
            " images; check permissions and free space"
        ) from error


# Writing -----------------------------------------------------------------------------------------


def frames_to_write(label_set: LabelSet) -> list[tuple[FrameLabels, tuple[int, int]]]:
    """The frames and their sizes; all have masks or are clean.

    Raises:
        InputError: a frame whose place of defects is not known, without a size, or with a type
            that is not among the classes.
        LabelError: a name that leads out of a folder.
    """
    class_ids = set(label_set.class_ids)
    frames = []
    for frame in label_set.frames.values():
        where = f"{label_set.source}, image {shown(frame.image)}"
        check_image_name(frame.image, where)
        if frame.types_without_mask or frame.disputed:
            raise InputError(
                f"{where}: a defect whose place is unknown, or a disputed label, expected masks or"
                " good steel; leave the frame out"
            )
        if frame.size_wh is None:
            raise InputError(
                f"{where}: its size is not known, expected width and height; give the images with"
                " --images or the size with --size"
            )
        unknown = frame.rle_by_class.keys() - class_ids
        if unknown:
            raise InputError(
                f"{where}: the type {shown(min(unknown))}, expected one of"
                f" {first_names(map(shown, sorted(class_ids)))}; add it to the types"
            )
        frames.append((frame, frame.size_wh))
    return frames


def names_to_write(label_set: LabelSet) -> dict[str, str]:
    """Names of the types by id, for files that hold names.

    Raises:
        InputError: a name with characters that cannot be seen.
    """
    for label_class in label_set.classes:
        if not label_class.name.isprintable():
            raise InputError(
                f"the type {shown(label_class.name)} holds control characters, expected a name;"
                " rename it"
            )
    return {label_class.id: label_class.name for label_class in label_set.classes}


def write_class_names(folder: Path, classes: Iterable[LabelClass]) -> None:
    """Writes ``classes.txt``; a name that would read back as another id is replaced by the id."""
    lines = []
    for label_class in classes:
        name = label_class.name
        try:
            same = name.isprintable() and class_id_of(name) == label_class.id
        except LabelError:
            same = False
        lines.append(name if same else label_class.id)
    write_lines(folder / CLASS_LIST, lines)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes a list file.

    Raises:
        InputError: the file cannot be written.
    """
    write_file(path, "".join(f"{line}\n" for line in lines).encode())


def write_file(path: Path, content: bytes) -> None:
    """Writes one file.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); check the folder, its permissions and"
            " the free space"
        ) from error


def make_folders(folders: Iterable[Path]) -> None:
    """Makes folders and what they lie in.

    Raises:
        InputError: one cannot be made.
    """
    for folder in sorted(set(folders)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be made ({error.strerror}), expected a folder that can be"
                " written; check permissions and free space"
            ) from error


# Lists -------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[str]:
    """Lines of a small list file without the blanks around them; empty ones are left out.

    Raises:
        LabelError: not UTF-8, or larger than a list of names can be.
        InputError: the file cannot be read.
    """
    try:
        if path.stat().st_size > _MAX_LIST_BYTES:
            raise LabelError(
                f"{path}: larger than {_MAX_LIST_BYTES} bytes, expected a list of names, one a line"
            )
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabelError(f"{path}: is not UTF-8, expected a list of names, one a line") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
