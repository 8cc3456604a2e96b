"""All label formats in plain sight, and which of them a folder is in."""

import os
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from steelsight.data.formats.coco import COCO, COCO_POLYGONS
from steelsight.data.formats.cvat import CVAT
from steelsight.data.formats.images import IMAGES, label_like
from steelsight.data.formats.label_studio import LABEL_STUDIO
from steelsight.data.formats.mask_folder import MASK_BINARY, MASK_INDEX, MASK_PALETTE
from steelsight.data.formats.mvtec import MVTEC
from steelsight.data.formats.severstal import SEVERSTAL, SUBMISSION
from steelsight.data.formats.yolo import YOLO
from steelsight.data.frame_list import FRAME_LIST, apply_frame_list, is_frame_list
from steelsight.data.labels import (
    FrameLabels,
    LabelFormat,
    LabelSet,
    ReadOptions,
    frame_size,
    shown,
)
from steelsight.data.tables import check_is_file
from steelsight.errors import InputError, LabelError, first_names

FORMATS: dict[str, LabelFormat] = {
    label_format.name: label_format
    for label_format in (
        SEVERSTAL,
        SUBMISSION,
        COCO,
        COCO_POLYGONS,
        YOLO,
        MASK_INDEX,
        MASK_PALETTE,
        MASK_BINARY,
        MVTEC,
        LABEL_STUDIO,
        CVAT,
        IMAGES,
    )
}


def format_named(name: str, *, to_read: bool = False) -> LabelFormat:
    """The format of a name on the command line, to write it if nothing else is said.

    Raises:
        InputError: no such format; the text lists them.
    """
    usable = [n for n, label_format in FORMATS.items() if to_read or label_format.write]
    if name not in usable:
        raise InputError(f"expected a format out of {', '.join(usable)}, got {shown(name)}")
    return FORMATS[name]


def recognise(path: Path, *, frame_list: Path | None = None) -> LabelFormat:
    """The format of a file or folder.

    Args:
        path: the file or folder.
        frame_list: a table of frames, which is no label file.

    Raises:
        InputError: nothing there, no format fits, or several do; the text says which and why. Also
            where beside images lies what may be labels in another format.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist, expected a data set's folder or label file")
    claims = {
        name: reason
        for name, label_format in FORMATS.items()
        if label_format is not IMAGES and (reason := label_format.recognise(path))
    }
    if not claims and IMAGES.recognise(path):
        if unknown := label_like(path, frame_list):
            raise InputError(_not_known(path, unknown))
        return IMAGES
    if not claims:
        raise InputError(
            f"{path}: no label format recognised, expected one of {', '.join(FORMATS)}; see"
            " docs/data.md for what each looks like, or name it with --format"
        )
    if len(claims) > 1:
        found = "; ".join(f"{name} ({reason})" for name, reason in claims.items())
        raise InputError(f"{path}: several formats fit: {found}; name one with --format")
    return FORMATS[next(iter(claims))]


def _not_known(path: Path, names: list[str]) -> str:
    told = (
        f"{path}: {first_names(names, 3)} {'is' if len(names) == 1 else 'are'} in no known format"
    )
    if all(is_frame_list(path / name) for name in names):
        return (
            f"{told} of labels, expected masks or a table of frames that is named; give the table"
            " with --frame-list, or --format images to ignore it"
        )
    return (
        f"{told}, expected labels that can be recognised, or images alone; name the format with"
        f" --format, or --format images to ignore {'it' if len(names) == 1 else 'them'}"
    )


def load(
    path: Path,
    *,
    label_format: str | None = None,
    options: ReadOptions | None = None,
    frame_list: Path | None = None,
    errors: list[LabelError] | None = None,
) -> LabelSet:
    """Reads a data set's labels, whatever their format.

    Args:
        path: folder or label file.
        label_format: name of the format; recognised if left out.
        options: what the reader may need to be told.
        frame_list: a table of frames, after ``images.csv`` in the folder if there is one.
        errors: a list to go on past broken labels; their images are refused.

    Raises:
        LabelError: a broken label, or links that lead out of the folder.
        InputError: the format is not known, or files are missing.
    """
    options = options or ReadOptions()
    if path.is_dir():
        _refuse_strange_files(path)
    else:
        check_is_file(path)
    if label_format:
        known = format_named(label_format, to_read=True)
    else:
        known = recognise(path, frame_list=frame_list)
    label_set = known.read(path, options, errors)
    if known is IMAGES and path.is_dir() and (ignored := label_like(path, frame_list)):
        note = f"not read, because the format is {IMAGES.name}: {first_names(ignored, 3)}"
        label_set = replace(label_set, notes=(*label_set.notes, note))
    beside = path / FRAME_LIST
    # Beside a label file that was named, a table may belong to another one.
    tables = [beside] if path.is_dir() and is_frame_list(beside) else []
    if frame_list is not None and frame_list not in tables:
        tables.append(frame_list)
    for table in tables:
        label_set = apply_frame_list(label_set, table, errors)
    if tables:
        label_set = replace(label_set, frames=_with_sizes(label_set, options))
    return _without_doubtful(label_set) if label_set.orphans else label_set


def _without_doubtful(label_set: LabelSet) -> LabelSet:
    """Any clean frame may be the one that lost a label of which nobody can tell the frame."""
    doubtful = {image for image, frame in label_set.frames.items() if frame.clean}
    return replace(
        label_set,
        frames={i: frame for i, frame in label_set.frames.items() if i not in doubtful},
        refused=label_set.refused | doubtful,
        notes=(
            *label_set.notes,
            f"{label_set.orphans} broken labels tell no frame: {len(doubtful)} frames without a"
            " label do not count as clean, and the masks of others may be incomplete",
        ),
    )


def _refuse_strange_files(folder: Path) -> None:
    """A data set lies in its folder, in files: a link may lead anywhere, a pipe waits for ever.

    Raises:
        LabelError: links that lead out of the folder, or what is no file, folder or link.
    """
    root = os.path.realpath(folder)
    for here, folders, files in os.walk(folder):
        for path in sorted(os.path.join(here, name) for name in (*folders, *files)):  # noqa: PTH118
            mode = os.lstat(path).st_mode
            target = os.path.realpath(path) if stat.S_ISLNK(mode) else path
            if stat.S_ISLNK(mode) and os.path.commonpath((root, target)) != root:
                raise LabelError(
                    f"{path}: a link to {shown(target)}, expected files inside {folder}; copy them"
                    " there, or give the folder of the images with --images"
                )
            if not (stat.S_ISLNK(mode) or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise LabelError(
                    f"{path}: a pipe, socket or device, expected files and folders; remove it"
                )


def _with_sizes(label_set: LabelSet, options: ReadOptions) -> dict[str, FrameLabels]:
    """Frames that only the table named have a size if it is told, or if their image is there."""
    frames = dict(label_set.frames)
    for image, frame in frames.items():
        if frame.size_wh is None:
            # A damaged image is the audit's business, not that of its labels.
            with suppress(LabelError):
                size_wh = frame_size(image, label_set.image_paths, options, FRAME_LIST)
                frames[image] = replace(frame, size_wh=size_wh)
    return frames
