"""Masks as PNG files beside the images: one file of class numbers, or one file per class.

Three forms share one layout::

    images/     training/000201.jpg            (or JPEGImages)
    masks/      training/000201.png            (or annotations, labels, SegmentationClass)
    classes.txt                                one name per line; line 1 is pixel value 1
    images.txt                                 one image name per line

* ``mask-index``: grey, pixel value 0 = background, n = n-th class. Also 16-bit grey.
* ``mask-palette``: the same numbers in a palette PNG, as in Pascal VOC. The number counts, not the
  colour.
* ``mask-binary``: ``masks/<class>/training/000201.png`` with 0 and 255, or 0 and 1; the only one
  that holds overlapping types. Without class folders, it is one class, called ``defect``.

A mask belongs to the image of the same folder and name but for the suffix; ``_mask`` may follow
the name. A mask of zeros says that the steel is good; an image without a mask is unlabelled.
``images.txt`` is optional and written here: it lists the labelled images, so that their order and
suffixes survive where the images are not at hand; where it stands, every line needs a mask and
every mask a line. Without it and without an image, a mask names its image: with the suffix that
all images have, else ``.png``.

How a mask is read, and which are refused, says :mod:`steelsight.data.formats.mask_png`.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from steelsight.data.formats.mask_png import (
    VOID,
    DecodedMask,
    Rgb,
    read_binary_mask,
    read_mask_values,
    read_number_mask,
)
from steelsight.data.labels import (
    CLASS_LIST,
    IMAGE_FOLDER,
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
    frames_to_write,
    inside,
    make_folders,
    place_images,
    read_lines,
    shown,
    split_of,
    write_class_names,
    write_file,
    write_lines,
)
from steelsight.data.threads import frame_by_frame, in_order
from steelsight.errors import (
    DecodeError,
    InputError,
    LabelError,
    SteelsightError,
    first_names,
)
from steelsight.imaging import IMAGE_SUFFIXES, read_size_wh
from steelsight.masks import decode_columns, decode_rle
from steelsight.png import PNG_SIGNATURE, Colours, encode_png, encode_png_part, voc_palette

MASK_FOLDERS = ("masks", "annotations", "labels", "SegmentationClass")
IMAGE_FOLDERS = (IMAGE_FOLDER, "JPEGImages")
IMAGE_LIST = "images.txt"
MASK_SUFFIX = "_mask"
LONE_CLASS = "defect"
"""Type of a folder of binary masks that names none."""

_BACKGROUND_NAMES = {"background", "_background_", "__background__"}
_PROBED_MASKS = 4
_PROBED_PX = 1 << 24

Result = TypeVar("Result")


class MaskForm(StrEnum):
    """How masks are stored; also the names of the formats."""

    INDEX = "mask-index"
    PALETTE = "mask-palette"
    BINARY = "mask-binary"


# Which mask belongs to which image ---------------------------------------------------------------


class Refusals:
    """Where broken labels go: raised at once, or collected while their images are left out."""

    def __init__(self, errors: list[LabelError] | None) -> None:
        self._errors = errors
        self.images: set[str] = set()
        self.orphans = 0

    def add(self, error: LabelError, images: Iterable[str] = ()) -> None:
        """Raises the error, or notes it and the images that it spoils."""
        if self._errors is None:
            raise error
        self._errors.append(error)
        spoiled = set(images)
        self.orphans += not spoiled
        self.images |= spoiled


def stem_of(name: str) -> str:
    """An image's or mask's name without its suffix."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + (file.rpartition(".")[0] or file)


def find_masks(folder: Path, refusals: Refusals) -> tuple[dict[str, Path], bool]:
    """Every image file of a mask folder by its name in it, and whether none had to be left out.

    Where masks were left out, an image without a mask is not unlabelled: its mask may be the one.
    """
    left_out: list[LabelError] = []
    masks = find_images(folder, left_out)
    for here, folders, _ in os.walk(folder):
        left_out += [
            LabelError(
                f"{Path(here, name)}: a link to a folder, expected the folder itself, because links"
                " are not followed; copy the masks there"
            )
            for name in folders
            if Path(here, name).is_symlink()
        ]
    for error in left_out:
        refusals.add(error)
    return masks, not left_out


def match_masks(
    images: Iterable[str],
    masks: Mapping[str, Path],
    refusals: Refusals,
    *,
    suffix_first: bool = False,
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Finds the image of every mask: the same folder and name but for the suffix and ``_mask``.

    Args:
        images: names of images.
        masks: files by name, where the folder agrees with the image's.
        refusals: where two masks for one image, or two images for one mask are noted.
        suffix_first: which image comes first for a mask ``x_mask.png``, if there is one called
            ``x`` and one called ``x_mask``.

    Returns:
        Mask files by image, and those without an image by name.
    """
    images_by_stem: dict[str, list[str]] = {}
    for image in images:
        images_by_stem.setdefault(stem_of(image), []).append(image)
    mask_by_image: dict[str, Path] = {}
    without_image: dict[str, Path] = {}
    for mask, path in masks.items():
        stems = [stem_of(mask), stem_of(mask).removesuffix(MASK_SUFFIX)]
        if suffix_first:
            stems.reverse()
        found = next((images_by_stem[stem] for stem in stems if stem in images_by_stem), None)
        if found is None:
            without_image[mask] = path
            continue
        if len(found) > 1:
            error = LabelError(
                f"{path}: the images {shown(found[0])} and {shown(found[1])} differ in their"
                " suffix only, expected one image per mask; rename or remove one"
            )
            refusals.add(error, found)
            continue
        (image,) = found
        other = mask_by_image.setdefault(image, path)
        if other != path:
            error = LabelError(
                f"{path}: {shown(other.name)} is a mask of the image {shown(image)} too, expected"
                " one; remove the wrong one"
            )
            refusals.add(error, [image])
    return mask_by_image, without_image


def attempted(read: Callable[[], Result], where: str) -> Result | LabelError:
    """A result, or the error, to be raised later in the order of the images."""
    try:
        return read()
    except LabelError as error:
        return error
    except MemoryError:
        return LabelError(
            f"{where}: not enough memory to read the mask, expected a smaller one; cut image and"
            " mask into tiles"
        )


def known_size(
    options: ReadOptions, image_paths: Mapping[str, Path], image: str
) -> tuple[int, int] | None:
    """An image's size, if it is told or the image is there.

    A damaged image does not spoil its labels: the audit reports it.
    """
    if image in options.sizes_wh:
        return options.sizes_wh[image]
    try:
        return read_size_wh(image_paths[image]) if image in image_paths else None
    except DecodeError:
        return None


# Lists beside the masks --------------------------------------------------------------------------


def _listed_images(root: Path) -> tuple[str, ...] | None:
    path = root / IMAGE_LIST
    if not path.exists():
        return None
    image_by_stem: dict[str, str] = {}
    listed = read_lines(path)
    for image in listed:
        where = f"{path}, image {shown(image)}"
        check_image_name(image, where)
        other = image_by_stem.get(stem_of(image))
        if other is not None:
            raise LabelError(
                f"{where}: {'the same line' if other == image else shown(other)} stands above, with"
                " the same mask, expected names that differ in more than their suffix; rename or"
                " remove one"
            )
        image_by_stem[stem_of(image)] = image
    return tuple(listed)


# Layout of the folder ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things lie.

    Attributes:
        root: the folder that was given.
        masks, images: folders; there may be no images.
        listed: lines of ``images.txt``, where there is one.
        names: of the classes, in order, where they are told.
        names_from: where they are told, for messages.
    """

    root: Path
    masks: Path
    images: Path | None
    listed: tuple[str, ...] | None
    names: tuple[str, ...] | None
    names_from: str


def _layout(root: Path, options: ReadOptions) -> _Layout:
    if not root.is_dir():
        raise InputError(
            f"{root} is no folder, expected one that holds masks as {', '.join(MASK_FOLDERS)};"
            " check the path"
        )
    masks = [folder for folder in _folders_called(root, MASK_FOLDERS) if _first_masks(folder)]
    if len(masks) != 1:
        found = " and ".join(folder.name for folder in masks) or "none"
        raise LabelError(
            f"{root}: expected one folder with masks, called {', '.join(MASK_FOLDERS)}, found"
            f" {found}; rename or move folders until there is one"
        )
    images = [options.images] if options.images else _folders_called(root, IMAGE_FOLDERS)
    if len(images) > 1:
        raise LabelError(
            f"{root}: both {images[0].name} and {images[1].name} are there, expected one folder of"
            " images; name it with --images"
        )
    names: tuple[str, ...] | None = options.class_names or None
    class_list = root / CLASS_LIST
    if names is None and class_list.exists():
        names = tuple(read_lines(class_list))
    return _Layout(
        root=root,
        masks=masks[0],
        images=next(iter(images), None),
        listed=_listed_images(root),
        names=names,
        names_from="the class names" if options.class_names else str(class_list),
    )


def _folders_called(root: Path, names: Sequence[str]) -> list[Path]:
    known = {name.casefold() for name in names}
    found = sorted(p.name for p in root.iterdir() if p.name.casefold() in known and p.is_dir())
    return [inside(root, name, str(root)) for name in found]


def _first_masks(folder: Path, count: int = 1) -> list[Path]:
    """The first mask files, in order of the names; cheap even in a large folder."""
    found: list[Path] = []
    for here, folders, files in os.walk(folder):
        folders.sort()
        names = (n for n in sorted(files) if Path(n).suffix.lower() in IMAGE_SUFFIXES)
        found += [Path(here, n) for n in names if not n.startswith(".")][: count - len(found)]
        if len(found) >= count:
            break
    return found


def _class_folders(layout: _Layout) -> list[str] | None:
    """The class folders of binary masks in natural order; ``None`` where there are none.

    Subfolders may also mirror the image folder, or be the parts of a split.
    """
    entries = [p for p in layout.masks.iterdir() if not p.name.startswith(".")]
    folders = [p.name for p in entries if p.is_dir()]
    folders.sort(key=lambda name: (int(name) if name.isdecimal() else 1 << 62, name))
    if not folders or any(p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir() for p in entries):
        return None
    if layout.listed is not None:
        # All of them: with class folders, one image c/x.jpg may look mirrored by type c on x.jpg.
        mirrored = all(
            any((layout.masks / f"{stem_of(image)}{end}.png").is_file() for end in ("", "_mask"))
            for image in layout.listed
        )
    elif layout.names and {*map(_folder_id, folders)} <= {*map(_folder_id, layout.names)}:
        mirrored = False
    else:
        mirrored = all(
            name.casefold() in SPLIT_FOLDERS or (layout.images and (layout.images / name).is_dir())
            for name in folders
        )
    return None if mirrored else folders


def _folder_id(name: str) -> str:
    try:
        return class_id_of(name)
    except LabelError:
        return name


def _classes(
    form: MaskForm, layout: _Layout, folders: list[str] | None
) -> tuple[LabelClass, ...] | None:
    """All types in order; ``None`` where only the numbers in the masks will tell."""
    names = layout.names
    if form is MaskForm.BINARY:
        if names is None:
            return classes_of(folders or [LONE_CLASS], str(layout.masks))
        if folders is None and len(names) > 1:
            raise LabelError(
                f"{layout.masks}: {layout.names_from} names {len(names)} types for masks without"
                " class folders, expected one; move the masks into one folder per type"
            )
    elif names and names[0].strip().casefold() in _BACKGROUND_NAMES:
        raise LabelError(
            f"{layout.names_from} begins with {shown(names[0])}, expected the type of pixel value"
            " 1, because 0 is always the background; remove the line"
        )
    return None if names is None else classes_of(names, layout.names_from)


def _class_of_folder(
    layout: _Layout, folders: list[str] | None, classes: tuple[LabelClass, ...]
) -> dict[str, str]:
    """Class id by mask folder; ``""`` is the one of masks without class folders."""
    if folders is None:
        return {"": classes[0].id} if classes else {}
    ids = {label_class.id for label_class in classes}
    class_of = {folder: _folder_id(folder) for folder in folders}
    for folder, class_id in class_of.items():
        if class_id not in ids:
            raise LabelError(
                f"{layout.masks / folder}: a type that {layout.names_from} does not name, expected"
                f" one of {first_names(map(shown, sorted(ids)))}; add the name or remove the folder"
            )
    classes_of(folders, str(layout.masks))  # two folders for one type
    return class_of


# Reading -----------------------------------------------------------------------------------------


def _read(
    form: MaskForm, root: Path, options: ReadOptions, errors: list[LabelError] | None
) -> LabelSet:
    layout = _layout(root, options)
    folders = _class_folders(layout) if form is MaskForm.BINARY else None
    classes = _classes(form, layout, folders)
    refusals = Refusals(errors)
    notes: list[str] = []
    image_paths = find_images(layout.images, errors) if layout.images else {}
    masks, complete = find_masks(layout.masks, refusals)
    masks_of = _masks_by_image(layout, folders, image_paths, masks, refusals, notes)
    if not complete:
        refusals.images.update(image for image in image_paths if image not in masks_of)

    decoded = _decode_all(form, classes, options, image_paths, masks_of, refusals)
    if classes is None:
        highest = max((max(m[""].rle_by_value, default=0) for m in decoded.values()), default=0)
        classes = classes_of(map(str, range(1, highest + 1)))
        notes.append(f"types are numbered, because there is no {root / CLASS_LIST}")
    rgb_count = sum(mask.was_rgb for found in decoded.values() for mask in found.values())
    if rgb_count:
        notes.append(f"{rgb_count} masks hold their numbers three times, as grey RGB")
    class_of = _class_of_folder(layout, folders, classes) if form is MaskForm.BINARY else {}
    frames = {
        image: _frame_labels(image, found, classes, class_of) for image, found in decoded.items()
    }
    if options.unlisted_are_clean:
        unlisted = [i for i in image_paths if i not in frames and i not in refusals.images]
        sizes = in_order(partial(known_size, options, image_paths), unlisted)
        for image, size_wh in zip(unlisted, sizes, strict=True):
            frames[image] = FrameLabels(image, {}, size_wh, split=split_of(image))
    return LabelSet(
        format=form.value,
        source=root,
        classes=classes,
        frames=frames if layout.listed is not None else dict(sorted(frames.items())),
        image_paths=image_paths,
        refused=frozenset(refusals.images),
        orphans=refusals.orphans,
        notes=tuple(notes),
    )


def _masks_by_image(
    layout: _Layout,
    folders: list[str] | None,
    image_paths: Mapping[str, Path],
    masks: Mapping[str, Path],
    refusals: Refusals,
    notes: list[str],
) -> dict[str, dict[str, Path]]:
    """Mask files by image and class folder, in the order of ``images.txt`` where it stands."""
    listed = layout.listed or ()
    masks_of: dict[str, dict[str, Path]] = {image: {} for image in listed}
    by_folder: dict[str, dict[str, Path]] = {folder: {} for folder in folders or [""]}
    for name, path in masks.items():
        folder, _, rest = name.partition("/") if folders else ("", "", name)
        by_folder[folder][rest] = path

    def match(images: Iterable[str]) -> None:
        """Moves masks from ``by_folder`` to ``masks_of``."""
        for folder, own in by_folder.items():
            found, by_folder[folder] = match_masks(images, own, refusals)
            for image, path in found.items():
                masks_of.setdefault(image, {})[folder] = path

    match(dict.fromkeys((*listed, *image_paths)))
    if layout.listed is not None:
        _check_list(layout, masks_of, refusals)
        for own in by_folder.values():
            for path in own.values():
                refusals.add(_not_listed(layout, path))
    elif any(by_folder.values()):
        orphans = sorted({name for own in by_folder.values() for name in own})
        if image_paths and not masks_of:
            raise LabelError(
                f"{layout.masks}: no mask such as {shown(orphans[0])} has the name of an image such"
                f" as {shown(next(iter(image_paths)))} in {layout.images}, expected the same folder"
                " and name but for the suffix; move or rename the masks"
            )
        images = _names_without_image(orphans, image_paths)
        match(images)
        notes.append(
            f"{len(images)} masks without an image; their images are assumed to be called like"
            f" {images[0]}"
        )
    return masks_of


def _names_without_image(masks: Sequence[str], image_paths: Iterable[str]) -> list[str]:
    """What the images of masks are called: with the suffix that all others have, else .png."""
    stems = sorted({stem_of(name) for name in masks})
    if all(stem.endswith(MASK_SUFFIX) for stem in stems):
        stems = [stem.removesuffix(MASK_SUFFIX) for stem in stems]
    suffixes = {Path(image).suffix for image in image_paths}
    suffix = suffixes.pop() if len(suffixes) == 1 else ".png"
    return [stem + suffix for stem in stems]


def _check_list(
    layout: _Layout, masks_of: Mapping[str, Mapping[str, Path]], refusals: Refusals
) -> None:
    listed = set(layout.listed or ())
    for image, found in masks_of.items():
        if image not in listed:
            refusals.add(_not_listed(layout, next(iter(found.values()))), [image])
        elif not found and image not in refusals.images:
            error = LabelError(
                f"{layout.root / IMAGE_LIST}: the image {shown(image)} has no mask in"
                f" {layout.masks}, expected one for each line; write a mask (of zeros if the steel"
                " is good) or remove the line"
            )
            refusals.add(error, [image])


def _not_listed(layout: _Layout, path: Path) -> LabelError:
    return LabelError(
        f"{path}: {layout.root / IMAGE_LIST} names no image for this mask, expected a line for each"
        " mask; add the image's name, or remove the mask"
    )


def _decode_all(
    form: MaskForm,
    classes: tuple[LabelClass, ...] | None,
    options: ReadOptions,
    image_paths: Mapping[str, Path],
    masks_of: Mapping[str, Mapping[str, Path]],
    refusals: Refusals,
) -> dict[str, dict[str, DecodedMask]]:
    """Masks by image and class folder, without refused images."""
    class_count = None if classes is None else len(classes)

    def decode(image: str) -> dict[str, DecodedMask]:
        size_wh = known_size(options, image_paths, image)
        decoded = {}
        for folder, path in masks_of[image].items():
            where = f"{path}, image {shown(image)}"
            mask = attempted(partial(_read_mask, form, path, size_wh, class_count, where), where)
            if isinstance(mask, LabelError):
                raise mask
            decoded[folder] = mask
            size_wh = mask.size_wh
        return decoded

    jobs = [image for image in masks_of if image not in refusals.images]
    result: dict[str, dict[str, DecodedMask]] = {}
    palette = _Palette()
    with frame_by_frame():
        for image in jobs:
            try:
                decoded = decode(image)
                if form is not MaskForm.BINARY:
                    palette.check(masks_of[image][""], image, decoded[""])
                result[image] = decoded
            except LabelError as error:
                refusals.add(error, [image])
    return result


def _read_mask(
    form: MaskForm,
    path: Path,
    size_wh: tuple[int, int] | None,
    class_count: int | None,
    where: str,
) -> DecodedMask:
    if form is not MaskForm.BINARY:
        return read_number_mask(path, size_wh, class_count, where)
    decoded = read_binary_mask(path, size_wh, where=where)
    if class_count == 0 and decoded.rle_by_value:
        raise LabelError(
            f"{where}: a defect, but {CLASS_LIST} names no type, expected zeros; add the type's"
            " name"
        )
    return decoded


class _Palette:
    """Sees to it that a number has the same colour in all masks.

    Image optimisers sort palettes anew: the picture stays the same, the numbers do not.
    """

    def __init__(self) -> None:
        self._first: dict[int, tuple[Rgb, Path]] = {}

    def check(self, path: Path, image: str, mask: DecodedMask) -> None:
        for value, colour in mask.colour_by_value.items():
            first_colour, first_path = self._first.setdefault(value, (colour, path))
            if colour != first_colour:
                raise LabelError(
                    f"{path}, image {shown(image)}: pixel value {value} has the colour {colour} in"
                    f" the palette, expected {first_colour} as in {first_path}; an image optimiser"
                    " may have sorted the palette anew: export the masks again"
                )


def _frame_labels(
    image: str,
    masks: Mapping[str, DecodedMask],
    classes: tuple[LabelClass, ...],
    class_of_folder: Mapping[str, str],
) -> FrameLabels:
    rles: dict[str, str] = {}
    for folder, mask in masks.items():
        for value, rle in mask.rle_by_value.items():
            rles[class_of_folder.get(folder) or classes[value - 1].id] = rle
    ordered = {c.id: rles[c.id] for c in classes if c.id in rles}
    (size_wh, *_) = (mask.size_wh for mask in masks.values())
    return FrameLabels(image, ordered, size_wh, split=split_of(image))


# Writing -----------------------------------------------------------------------------------------


def frames_with_stems(label_set: LabelSet) -> list[tuple[FrameLabels, tuple[int, int]]]:
    """The frames to write and their sizes, all with names that are found again.

    Raises:
        InputError: see :func:`frames_to_write`.
        LabelError: a name that cannot be a file's here.
    """
    frames = frames_to_write(label_set)
    for frame, _ in frames:
        if any(part.startswith(".") for part in frame.image.split("/")) or (
            frame.image != frame.image.strip()
        ):
            raise LabelError(
                f"{label_set.source}, image {shown(frame.image)}: a dot or blank in front or a"
                " blank at the end, which would not be found again, expected a plain file name;"
                " rename the image"
            )
    return frames


def frame_masks(
    frame: FrameLabels, size_wh: tuple[int, int], where: str
) -> dict[str, NDArray[np.bool_]]:
    """Masks by class id, rows x columns; empty ones are left out."""
    return {
        class_id: decode_rle(rle, size_wh, where=f"{where}, type {class_id!r}")
        for class_id, rle in frame.rle_by_class.items()
        if rle
    }


def _write(
    form: MaskForm, label_set: LabelSet, root: Path, placement: Placement
) -> Mapping[str, str]:
    frames = frames_with_stems(label_set)
    class_ids = label_set.class_ids
    if form is not MaskForm.BINARY:
        _check_numbers(form, label_set)
    image_of_stem: dict[str, str] = {}
    for frame, _ in frames:
        other = image_of_stem.setdefault(stem_of(frame.image), frame.image)
        if other != frame.image:
            raise LabelError(
                f"{label_set.source}: the images {shown(other)} and {shown(frame.image)} would"
                " share a mask, expected names that differ in more than their suffix; rename one"
            )

    def write_frame(frame: FrameLabels, size_wh: tuple[int, int]) -> None:
        where = f"{label_set.source}, image {shown(frame.image)}"
        if form is MaskForm.BINARY:
            files = _binary_pngs(frame, size_wh, class_ids, where)
        else:
            files = [("", _number_png(form, frame, size_wh, class_ids, where))]
        for folder, content in files:
            path = root / MASK_FOLDERS[0] / folder / f"{stem_of(frame.image)}.png"
            write_file(path, content)

    folders = {stem_of(frame.image).rpartition("/")[0] for frame, _ in frames}
    parts = class_ids if form is MaskForm.BINARY and class_ids else ("",)
    make_folders(root / MASK_FOLDERS[0] / part / folder for part in parts for folder in folders)
    with frame_by_frame():
        for frame_and_size in frames:
            write_frame(*frame_and_size)
    place_images(label_set, root / IMAGE_FOLDER, placement)
    write_class_names(root, label_set.classes)
    write_lines(root / IMAGE_LIST, list(label_set.frames))
    return {}


def _check_numbers(form: MaskForm, label_set: LabelSet) -> None:
    highest = 255 if form is MaskForm.PALETTE else 65535
    if len(label_set.classes) > highest:
        raise InputError(
            f"{label_set.source}: {len(label_set.classes)} types, expected at most {highest} for"
            f" {form.value}; write {MaskForm.BINARY.value}, or leave types out"
        )
    if label_set.classes and label_set.classes[0].name.strip().casefold() in _BACKGROUND_NAMES:
        raise InputError(
            f"{label_set.source}: the first type is called {shown(label_set.classes[0].name)},"
            f" which {form.value} keeps for the pixel value 0; rename or remove it"
        )


def _number_png(
    form: MaskForm,
    frame: FrameLabels,
    size_wh: tuple[int, int],
    class_ids: Sequence[str],
    where: str,
) -> bytes:
    """One number per pixel; where types overlap, the later one in class order stays."""
    width, height = size_wh
    parts = {
        number: decode_columns(
            frame.rle_by_class[class_id], size_wh, where=f"{where}, type {class_id!r}"
        )
        for number, class_id in enumerate(class_ids, start=1)
        if frame.rle_by_class.get(class_id)
    }
    dtype = np.uint8 if len(class_ids) < 256 else np.uint16
    left = min((begin for begin, _ in parts.values()), default=0)
    right = max((begin + part_hw.shape[1] for begin, part_hw in parts.values()), default=0)
    values_hw: NDArray[Any] = np.zeros((height, right - left), dtype)
    for number, (begin, part_hw) in parts.items():
        covered_hw = values_hw[:, begin - left : begin - left + part_hw.shape[1]]
        np.maximum(covered_hw, part_hw.view(np.uint8) * dtype(number), out=covered_hw)
    palette = _VOC_PALETTE if form is MaskForm.PALETTE else b""
    if dtype is np.uint8:
        return encode_png_part(values_hw, left, width, palette)
    return encode_png(np.pad(values_hw, ((0, 0), (left, width - right))), 16)


def _binary_pngs(
    frame: FrameLabels, size_wh: tuple[int, int], class_ids: Sequence[str], where: str
) -> list[tuple[str, bytes]]:
    """Class folder and file of every type that is present; for good steel one mask of zeros."""
    masks = frame_masks(frame, size_wh, where)
    if not masks:
        masks = {next(iter(class_ids), ""): np.zeros(size_wh[::-1], np.bool_)}
    return [
        (class_id, encode_png(mask_hw.view(np.uint8), 1)) for class_id, mask_hw in masks.items()
    ]


_VOC_PALETTE = voc_palette(256)


# Recognising -------------------------------------------------------------------------------------


def _recognise(form: MaskForm, path: Path) -> str | None:
    try:
        found, reason = _probe(path)
    except (SteelsightError, OSError, ValueError):
        return None
    return reason if found is form else None


def _probe(root: Path) -> tuple[MaskForm | None, str]:
    """The form that the first masks have, and why."""
    if (root / "ground_truth").is_dir() or (root / "train" / "good").is_dir():
        return None, "MVTec's layout"
    layout = _layout(root, ReadOptions())
    folder = layout.masks.name
    if folder.casefold() == "annotations" and any(layout.masks.glob("*.json")):
        return None, "COCO's annotations/, whose pictures belong to its panoptic JSON files"
    class_folders = _class_folders(layout)
    if class_folders:
        return MaskForm.BINARY, f"{folder}/ has class folders such as {shown(class_folders[0])}"
    values: set[int] = set()
    for mask in _first_masks(layout.masks, _PROBED_MASKS):
        with mask.open("rb") as file:
            start = file.read(26)
        depth, colour = (
            (start[24], start[25]) if start.startswith(PNG_SIGNATURE) and start[25:] else (0, 0)
        )
        if colour == Colours.PALETTE:
            return MaskForm.PALETTE, f"{folder}/ holds PNG files with a palette"
        if (colour, depth) == (Colours.GREY, 1):
            return MaskForm.BINARY, f"{folder}/ holds 1-bit PNG files"
        with suppress(LabelError):  # to be said when it is read
            values.update(np.unique(read_mask_values(mask, max_px=_PROBED_PX)).tolist())
    if VOID in values and values <= {0, VOID}:
        return MaskForm.BINARY, f"{folder}/ holds grey PNG files with 0 and 255 only"
    return MaskForm.INDEX, f"{folder}/ holds one grey PNG file per image"


def _label_format(form: MaskForm, title: str) -> LabelFormat:
    return LabelFormat(
        form.value, title, partial(_recognise, form), partial(_read, form), partial(_write, form)
    )


MASK_INDEX = _label_format(
    MaskForm.INDEX, "one grey PNG per image, pixel value n = n-th type, 0 = good steel"
)
MASK_PALETTE = _label_format(
    MaskForm.PALETTE, "one palette PNG per image with the same numbers, as Pascal VOC"
)
MASK_BINARY = _label_format(
    MaskForm.BINARY, "masks/<type>/<image>.png with 0 and 255: also overlapping types"
)
