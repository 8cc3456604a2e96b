"""Images without labels, and what beside them looks like labels all the same.

That a folder holds no labels is the most dangerous thing to be wrong about: with
``--unlisted-are-clean`` every defect in it becomes good steel. So this format is only recognised
where nothing beside the images could be labels in a format that we do not know; whoever names it
is told what was not read.
"""

import os
import re
from pathlib import Path

from steelsight.data.formats.mask_folder import stem_of
from steelsight.data.frame_list import FRAME_LIST, is_frame_list
from steelsight.data.labels import (
    CLASS_LIST,
    FrameLabels,
    LabelFormat,
    LabelSet,
    ReadOptions,
    find_images,
    frame_size,
    split_of,
)
from steelsight.errors import LabelError
from steelsight.imaging import IMAGE_SUFFIXES

_LABEL_SUFFIXES = frozenset(
    {
        *(".csv", ".json", ".jsonl", ".mat", ".ndjson", ".npy", ".npz", ".parquet", ".pkl"),
        *(".tsv", ".txt", ".xlsx", ".xml", ".yaml", ".yml"),
    }
)
"""Of files that may hold labels: those of all formats, and in what people publish labels else."""

_MASK_FOLDERS = frozenset(
    {
        *("annotation", "annotations", "groundtruth", "gt", "instance", "label", "labels", "mask"),
        *("masks", "segmentation", "segmentationclass", "segmentationobject", "semantic", "truth"),
    }
)
"""Words in names of folders whose pictures are masks, such as ``train_masks``."""

_MASK_NAME = re.compile(r"(.+)[_-](?:gt|labels?|masks?|seg)", re.IGNORECASE)
"""A mask right beside its image: ``10301_GT.png`` (KolektorSDD2), ``000_mask.png``."""

_DOCUMENT = re.compile(
    r"(?:readme|licen[cs]e|copying|copyright|notice|authors|citation|changelog)(?![a-z]).*\.txt"
)

_HARMLESS = frozenset(
    {
        *(CLASS_LIST, "synthetic.txt", "split.json"),
        *("findings.json", "summary.json", "results.jsonl", "quarantine.csv"),
    }
)
"""The names of types alone, and what we write ourselves: no labels."""


def label_like(folder: Path, frame_list: Path | None = None) -> list[str]:
    """What beside images looks like labels in a format that we do not know.

    Files by their suffix, pictures in folders called like masks, and pictures called like the mask
    of another one.

    Args:
        folder: walked to its end but for hidden files.
        frame_list: a table of frames that is read, and no label file.

    Returns:
        Names relative to the folder, sorted; folders end with ``/``.
    """
    read = {folder / FRAME_LIST} if is_frame_list(folder / FRAME_LIST) else set()
    if frame_list is not None:
        read.add(frame_list)
    known = {os.path.realpath(path) for path in read}
    found: set[str] = set()
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        inner = Path(here).relative_to(folder)
        pictures: set[str] = set()
        for name in files:
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in IMAGE_SUFFIXES:
                pictures.add(name)
            elif suffix in _LABEL_SUFFIXES and not (
                name.casefold() in _HARMLESS
                or _DOCUMENT.fullmatch(name.casefold())
                or os.path.realpath(Path(here, name)) in known
            ):
                found.add((inner / name).as_posix())
        if pictures:
            found.update(_mask_like(inner, pictures))
    return sorted(found)


def _mask_like(folder: Path, pictures: set[str]) -> list[str]:
    """The folder if it is called like one of masks, else pictures called like masks of others."""
    for depth, part in enumerate(folder.parts, 1):
        if _MASK_FOLDERS.intersection(re.split("[-_ ]", part.casefold())):
            return ["/".join(folder.parts[:depth]) + "/"]
    stems = {stem_of(name) for name in pictures}
    called = ((name, _MASK_NAME.fullmatch(stem_of(name))) for name in pictures)
    return [(folder / name).as_posix() for name, match in called if match and match[1] in stems]


def _recognise(path: Path) -> str | None:
    """Only asked for where no other format fits."""
    return "images, and no labels that we know" if path.is_dir() and find_images(path, []) else None


def _read(path: Path, options: ReadOptions, errors: list[LabelError] | None = None) -> LabelSet:
    paths = find_images(options.images or path, errors)
    frames = {}
    if options.unlisted_are_clean:
        frames = {
            image: FrameLabels(
                image, {}, frame_size(image, paths, options, str(path)), split=split_of(image)
            )
            for image in paths
        }
    return LabelSet(IMAGES.name, path, (), frames, paths)


IMAGES = LabelFormat("images", "A folder of images without labels", _recognise, _read, None)
