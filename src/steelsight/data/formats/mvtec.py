"""Folders as MVTec AD publishes them (https://www.mvtec.com/company/research/datasets/mvtec-ad).

::

    train/good/000.png
    test/good/000.png
    test/scratch/000.png
    ground_truth/scratch/000_mask.png      0 = good, 255 = scratch; also called 000.png

The folder of an image is its label: ``good``, or the one type that is on it. A faulty image without
a mask is known to have its type, but not where. An image is called by its path from the root,
``test/scratch/000.png``.

Written here, a frame with several types goes to ``test/combined``, MVTec's own name for it, with
one mask of all of them: which type is where is lost. ``classes.txt`` beside the folders keeps names
and order of the types; it is not part of MVTec's layout and not needed.
"""

from collections import Counter
from collections.abc import Mapping
from functools import partial, reduce
from itertools import chain
from itertools import count as numbers_from
from pathlib import Path

import numpy as np

from steelsight.data.formats.mask_folder import (
    MASK_SUFFIX,
    Refusals,
    attempted,
    find_masks,
    frame_masks,
    frames_with_stems,
    known_size,
    match_masks,
    stem_of,
)
from steelsight.data.formats.mask_png import DecodedMask, read_binary_mask
from steelsight.data.labels import (
    CLASS_LIST,
    SPLIT_FOLDERS,
    FrameLabels,
    LabelClass,
    LabelFormat,
    LabelSet,
    Placement,
    ReadOptions,
    class_id_of,
    classes_of,
    find_images,
    inside,
    make_folders,
    place_images,
    read_lines,
    shown,
    split_of,
    write_class_names,
    write_file,
)
from steelsight.data.threads import in_order
from steelsight.errors import InputError, LabelError
from steelsight.png import encode_png

GOOD = "good"
COMBINED = "combined"
TRUTH = "ground_truth"


def _recognise(path: Path) -> str | None:
    try:
        if (path / "train" / GOOD).is_dir():
            return f"it holds train/{GOOD}"
        if (path / TRUTH).is_dir() and (path / "test").is_dir():
            return f"it holds test/ and {TRUTH}/"
    except (OSError, ValueError):
        return None
    return None


# Reading -----------------------------------------------------------------------------------------


def _read(path: Path, options: ReadOptions, errors: list[LabelError] | None) -> LabelSet:
    root = options.images or path
    refusals = Refusals(errors)
    image_paths = _images(root, errors)
    folder_of = {image: _folder_of(image, root, refusals) for image in image_paths}
    classes, class_of = _classes(path, options, {*folder_of.values()} - {GOOD, ""})
    mask_of = _masks_by_image(path, folder_of, refusals)

    def decode(image: str) -> DecodedMask | LabelError | None:
        if image not in mask_of:
            return None
        where = f"{mask_of[image]}, image {shown(image)}"
        size_wh = known_size(options, image_paths, image)
        return attempted(
            partial(_read_truth, mask_of[image], folder_of[image], size_wh, where), where
        )

    frames: dict[str, FrameLabels] = {}
    images = [image for image in image_paths if image not in refusals.images]
    for image, mask in zip(images, in_order(decode, images), strict=True):
        if isinstance(mask, LabelError):
            refusals.add(mask, [image])
            continue
        class_id = class_of.get(folder_of[image])
        rle_by_class = {}
        if class_id and mask:
            (rle_by_class[class_id],) = mask.rle_by_value.values()
        frames[image] = FrameLabels(
            image,
            rle_by_class,
            mask.size_wh if mask else known_size(options, image_paths, image),
            (class_id,) if class_id and not mask else (),
            split=split_of(image),
        )
    return LabelSet(
        format=MVTEC.name,
        source=path,
        classes=classes,
        frames=frames,
        image_paths=image_paths,
        refused=frozenset(refusals.images),
        orphans=refusals.orphans,
        notes=_ignored(root),
    )


def _images(root: Path, errors: list[LabelError] | None) -> dict[str, Path]:
    """Image files by their path from the root, sorted."""
    if not root.is_dir():
        raise InputError(f"{root} is no folder, expected one with train/ or test/; check the path")
    found = {
        f"{part}/{image}": path
        for part in ("test", "train")
        if (root / part).is_dir()
        for image, path in find_images(inside(root, part, str(root)), errors).items()
    }
    if not found:
        raise InputError(
            f"{root}: no image in train/ or test/, expected MVTec's folders such as train/{GOOD};"
            " check the path"
        )
    return found


def _folder_of(image: str, root: Path, refusals: Refusals) -> str:
    """``good`` or the folder of the type; an image that has none is refused."""
    part, _, rest = image.partition("/")
    folder, slash, _ = rest.partition("/")
    if not slash or (part == "train" and folder != GOOD):
        expected = f"train/{GOOD}" if part == "train" else f"test/{GOOD} or a folder per type"
        error = LabelError(
            f"{root / image}: expected images of {part}/ in {expected} only; move the image there"
        )
        refusals.add(error, [image])
        return ""
    return folder


def _classes(
    path: Path, options: ReadOptions, folders: set[str]
) -> tuple[tuple[LabelClass, ...], dict[str, str]]:
    """All types, named ones first and in their order, and the class id by folder."""
    names = list(options.class_names)
    if not names and (path / CLASS_LIST).exists():
        names = read_lines(path / CLASS_LIST)
    where = str(path)
    found = sorted(folders - {GOOD})
    class_of = {folder: class_id_of(folder, where) for folder in found}
    classes_of(found, where)  # two folders for one type
    named = {class_id_of(name, where) for name in names}
    names += [folder for folder in found if class_of[folder] not in named]
    return classes_of(names, where), class_of


def _masks_by_image(
    path: Path, folder_of: Mapping[str, str], refusals: Refusals
) -> dict[str, Path]:
    """Ground truth by image; only images in test/ have one."""
    if not (path / TRUTH).is_dir():
        return {}
    masks, complete = find_masks(inside(path, TRUTH, str(path)), refusals)
    images = [i for i in folder_of if i.startswith("test/") and i not in refusals.images]
    in_test = {f"test/{mask}": path for mask, path in masks.items()}
    mask_of, without_image = match_masks(images, in_test, refusals, suffix_first=True)
    for path in without_image.values():
        error = LabelError(
            f"{path}: no image in test/ has this name, expected one for each mask; add the image or"
            " remove the mask"
        )
        refusals.add(error)
    if not complete:
        refusals.images.update(i for i in images if folder_of[i] != GOOD and i not in mask_of)
    return mask_of


def _read_truth(
    path: Path, folder: str, size_wh: tuple[int, int] | None, where: str
) -> DecodedMask:
    decoded = read_binary_mask(path, size_wh, where=where)
    if folder == GOOD and decoded.rle_by_value:
        raise LabelError(
            f"{where}: the mask marks a defect, expected none on an image in test/{GOOD}; move the"
            " image into the folder of its type, or remove the mask"
        )
    if folder != GOOD and not decoded.rle_by_value:
        raise LabelError(
            f"{where}: the mask is empty, expected a defect of the type {shown(folder)}; move the"
            f" image to test/{GOOD}, or remove the mask if nobody marked the defect"
        )
    return decoded


def _ignored(root: Path) -> tuple[str, ...]:
    """Folders that look like a part of the data and are not read."""
    return tuple(
        f"{root / name}/ is no part of MVTec's layout and was not read"
        for name in sorted(p.name for p in root.iterdir() if p.is_dir())
        if name.casefold() in SPLIT_FOLDERS and name not in ("train", "test")
    )


# Writing -----------------------------------------------------------------------------------------


def _write(label_set: LabelSet, root: Path, placement: Placement) -> Mapping[str, str]:
    frames = frames_with_stems(label_set)
    _check_images(label_set, placement)
    folder_of = {frame.image: _target_folder(frame) for frame, _ in frames}
    new_names = _new_names(folder_of)
    truth_of = {
        image: root / TRUTH / f"{stem_of(name.removeprefix('test/'))}{MASK_SUFFIX}.png"
        for image, name in new_names.items()
    }

    def write_frame(frame_and_size: tuple[FrameLabels, tuple[int, int]]) -> None:
        frame, size_wh = frame_and_size
        masks = frame_masks(frame, size_wh, f"{label_set.source}, image {shown(frame.image)}")
        if masks:
            union_hw = reduce(np.logical_or, masks.values())
            content = encode_png(union_hw.view(np.uint8) * np.uint8(255), 8)
            write_file(truth_of[frame.image], content)

    make_folders(truth_of[f.image].parent for f, _ in frames if any(f.rle_by_class.values()))
    for _ in in_order(write_frame, frames):
        pass
    place_images(label_set, root, placement, new_names)
    classes = list(label_set.classes)
    ids = {class_id.casefold() for class_id in label_set.class_ids}
    if f"test/{COMBINED}" in folder_of.values() and COMBINED not in ids:
        classes.append(LabelClass(COMBINED, COMBINED))
    write_class_names(root, classes)
    return {image: name for image, name in new_names.items() if image != name}


def _check_images(label_set: LabelSet, placement: Placement) -> None:
    if placement is Placement.LEAVE:
        raise InputError(
            f"{MVTEC.name} says with the folder of an image what is on it, expected the images too;"
            " give --place copy or --place link"
        )
    missing = [image for image in label_set.frames if image not in label_set.image_paths]
    if missing:
        raise InputError(
            f"{label_set.source}: {len(missing)} images are not there, such as {shown(missing[0])},"
            f" expected all for {MVTEC.name}; add them, or leave these frames out"
        )
    for label_class in label_set.classes:
        if label_class.id.casefold() == GOOD:
            raise InputError(
                f"{label_set.source}: a type called {shown(label_class.name)}, which in"
                f" {MVTEC.name} means good steel; rename it"
            )


def _target_folder(frame: FrameLabels) -> str:
    types = [class_id for class_id, rle in frame.rle_by_class.items() if rle]
    if not types:
        return f"test/{GOOD}" if frame.split in ("test", "val") else f"train/{GOOD}"
    return f"test/{types[0] if len(types) == 1 else COMBINED}"


def _new_names(folder_of: Mapping[str, str]) -> dict[str, str]:
    """Names in the new folders, whose stems differ because masks carry only the stem.

    An image that lies in its folder already stays; another one loses its folders, unless that
    would make two equal. The order of the frames does not matter.
    """
    new_names: dict[str, str] = {}
    taken: set[str] = set()

    def take(image: str, name: str) -> bool:
        stem = stem_of(name).casefold()
        if stem in taken:
            return False
        taken.add(stem)
        new_names[image] = name
        return True

    images = sorted(folder_of)
    others = [i for i in images if not (i.startswith(f"{folder_of[i]}/") and take(i, i))]
    short = {image: f"{folder_of[image]}/{image.rpartition('/')[2]}" for image in others}
    count = Counter(stem_of(name).casefold() for name in short.values())
    for image in others:
        name = short[image]
        if count[stem_of(name).casefold()] == 1 and take(image, name):
            continue
        flat = image.replace("/", "_")
        suffix = flat.removeprefix(stem_of(flat))
        endings = chain([""], (f"_{number}" for number in numbers_from(2)))
        next(e for e in endings if take(image, f"{folder_of[image]}/{stem_of(flat)}{e}{suffix}"))
    return new_names


MVTEC = LabelFormat(
    "mvtec",
    "MVTec AD: train/good, test/<type>, ground_truth/<type>/*_mask.png",
    _recognise,
    _read,
    _write,
)
