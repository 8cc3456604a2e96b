"""A table of frames: which are clean, which types they hold, and what else is known about them.

Label files say where defects are; most of them do not say which frames somebody looked at and
found clean. A CSV file with one row per frame does, whatever the format of the masks:

* ``ImageId``: the image name;
* ``status`` (optional): ``clean``, ``faulty``, ``faulty-no-mask`` or ``disputed``;
* ``classes`` (optional): types on the frame, separated by blanks or ``;``; or one column per type,
  ``c1``, ``c2``, ... (``c<type>``) with 1 or 0;
* ``split`` (optional): ``train``, ``val`` or ``test``;
* any other column (``coil``, ``date``, ``camera``) is kept by its name, and can group a split.

The text is UTF-8 with or without byte order mark; cells are separated by ``,``, ``;`` or tab; the
header is row 1. A frame with types of which the label file has no mask keeps them as types without
mask: it is faulty, but nothing is known about where.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from steelsight.data.labels import (
    SPLIT_FOLDERS,
    FrameLabels,
    LabelClass,
    LabelSet,
    check_image_name,
    class_id_of,
    classes_of,
    is_image_name,
    shown,
)
from steelsight.data.tables import csv_safe, open_table, write_table
from steelsight.errors import LabelError, first_names

FRAME_LIST = "images.csv"
"""Name under which a list beside the labels is found."""

_STATUSES = ("clean", "faulty", "faulty-no-mask", "disputed")
_TYPE_COLUMN = re.compile("c([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class FrameEntry:
    """One row.

    Attributes:
        image: image name.
        row: where it stands, the header being row 1.
        class_ids: types on the frame; ``None`` where the table has no column for them and the
            status does not say that there are none.
        disputed: the status is ``disputed``.
        split: ``train``, ``val``, ``test`` or ``None``.
        attributes: further columns; empty cells are left out.
    """

    image: str
    row: int
    class_ids: tuple[str, ...] | None
    disputed: bool
    split: str | None
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FrameList:
    """A table of frames.

    Attributes:
        entries: by image, in the order of the file.
        class_ids: the types named in it.
        refused: images with a broken row (only when errors are collected).
        orphans: broken rows of no known image.
    """

    entries: Mapping[str, FrameEntry]
    class_ids: tuple[str, ...]
    refused: frozenset[str]
    orphans: int = 0


def read_frame_list(path: Path, errors: list[LabelError] | None = None) -> FrameList:
    """Reads a table of frames.

    Args:
        path: CSV file.
        errors: a list to go on past broken rows; their frames are refused.

    Raises:
        LabelError: a broken row or table.
        InputError: the file cannot be opened.
    """
    entries: dict[str, FrameEntry] = {}
    refused: set[str] = set()
    orphans = 0
    with open_table(path) as (header, rows):
        if header.count("ImageId") != 1:
            raise LabelError(
                f"{path} row 1: expected a column ImageId and optionally status, classes, split and"
                f" others, found {shown(', '.join(header))}; name the columns so"
            )
        twice = {name for name in header if header.count(name) > 1 or not name}
        if twice:
            raise LabelError(
                f"{path} row 1: expected different names of columns, found"
                f" {shown(twice.pop())} empty or more than once; rename the column"
            )
        at = header.index("ImageId")
        types = {name: match[1] for name in header if (match := _TYPE_COLUMN.fullmatch(name))}
        for row, cells in rows:
            where = f"{path} row {row}"
            try:
                if len(cells) != len(header):
                    raise LabelError(
                        f"{where}: {len(cells)} cells, expected {len(header)} as in the header;"
                        " add the missing cell or quote one that contains the separator"
                    )
                entry = _entry(dict(zip(header, cells, strict=True)), types, row, where)
                if entry.image in entries:
                    raise LabelError(
                        f"{where}, image {shown(entry.image)}: row {entries[entry.image].row}"
                        " already has this image, expected each once; remove one row"
                    )
                entries[entry.image] = entry
            except LabelError as error:
                if errors is None:
                    raise
                errors.append(error)
                # A row that is cut short may have no image at all.
                image = cells[at] if at < len(cells) else ""
                refused.add(image)
                orphans += not is_image_name(image)
    named = dict.fromkeys(types.values())
    for entry in entries.values():
        named.update(dict.fromkeys(entry.class_ids or ()))
    for image in refused:
        entries.pop(image, None)
    return FrameList(entries, tuple(named), frozenset(refused - {""}), orphans)


def is_frame_list(path: Path) -> bool:
    """Whether a CSV file begins like a table of frames, and not like one of masks."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = set(re.split("[,;\t]", file.readline(4096).strip()))
    except (OSError, UnicodeDecodeError):
        return False
    return "ImageId" in header and "EncodedPixels" not in header


def apply_frame_list(
    label_set: LabelSet, path: Path, errors: list[LabelError] | None = None
) -> LabelSet:
    """Adds what a table of frames says to labels.

    Args:
        label_set: masks as a format gave them.
        path: the table.
        errors: a list to go on past broken rows and contradictions; their frames are refused.

    Returns:
        Labels of all frames in either source: those of ``label_set`` first, in their order.

    Raises:
        LabelError: a broken table, or one that contradicts the masks.
        InputError: the file cannot be opened.
    """
    known = len(errors) if errors is not None else 0
    table = read_frame_list(path, errors)
    refused = set(label_set.refused | table.refused)
    frames = {image: f for image, f in label_set.frames.items() if image not in refused}
    for image, entry in table.entries.items():
        if image in refused:
            continue
        try:
            merged = _merged(frames.get(image), entry, path)
        except LabelError as error:
            if errors is None:
                raise
            errors.append(error)
            refused.add(image)
            frames.pop(image, None)
            continue
        if merged is not None:
            frames[image] = merged
    notes = label_set.notes
    if errors is not None and len(errors) > known:
        notes += (f"{path.name}: {len(errors) - known} rows are broken and were left out",)
    return replace(
        label_set,
        classes=_with_classes(label_set.classes, table.class_ids),
        frames=frames,
        refused=frozenset(refused),
        orphans=label_set.orphans + table.orphans,
        notes=notes,
    )


def write_frame_list(path: Path, frames: Sequence[FrameLabels], names: Mapping[str, str]) -> None:
    """Writes the table of frames for labels, with LF line ends.

    Args:
        path: file to write.
        frames: in the order of the rows.
        names: new names of frames whose name changes.

    Raises:
        InputError: the file cannot be written.
    """
    columns = sorted({name for frame in frames for name in frame.attributes})
    with_split = any(frame.split for frame in frames)
    header = ["ImageId", "status", "classes", *(["split"] if with_split else []), *columns]
    rows = [[csv_safe(name) for name in header]]
    for frame in frames:
        status = "disputed" if frame.disputed else "clean" if frame.clean else "faulty"
        if frame.types_without_mask and not frame.disputed:
            status = "faulty-no-mask"
        row = [csv_safe(names.get(frame.image, frame.image)), status, " ".join(frame.class_ids)]
        if with_split:
            row.append(frame.split or "")
        rows.append([*row, *(csv_safe(frame.attributes.get(name, "")) for name in columns)])
    write_table(path, rows)


def _entry(cells: dict[str, str], types: Mapping[str, str], row: int, where: str) -> FrameEntry:
    image = cells.pop("ImageId")
    check_image_name(image, where)
    where = f"{where}, image {shown(image)}"
    told = bool(types) or "classes" in cells
    present = _types(cells, types, where)
    status = cells.pop("status", "").casefold()
    split = cells.pop("split", "").casefold()
    _check_status(status, present, told, where)
    if split and split not in SPLIT_FOLDERS:
        raise LabelError(
            f"{where}: the split is {shown(split)}, expected train, val or test; correct the row"
        )
    return FrameEntry(
        image,
        row,
        present if told or status == "clean" else None,
        status == "disputed",
        SPLIT_FOLDERS.get(split),
        {name: value for name, value in cells.items() if value},
    )


def _types(cells: dict[str, str], types: Mapping[str, str], where: str) -> tuple[str, ...]:
    """The types that a row names; their cells are taken out."""
    present: dict[str, None] = {}
    for column, class_id in types.items():
        value = cells.pop(column)
        if value not in ("0", "1"):
            raise LabelError(
                f"{where}: the cell of {column} is {shown(value)}, expected 1 for a frame with this"
                " type or 0; fill the cell"
            )
        if value == "1":
            present[class_id] = None
    for name in re.split("[ ;]+", cells.pop("classes", "")):
        if name:
            present[class_id_of(name, where)] = None
    return tuple(present)


def _check_status(status: str, present: tuple[str, ...], told: bool, where: str) -> None:
    if status and status not in _STATUSES:
        raise LabelError(
            f"{where}: the status is {shown(status)}, expected {', '.join(_STATUSES)} or nothing;"
            " correct the row"
        )
    if status == "clean" and present:
        raise LabelError(
            f"{where}: the status is clean, but the types {first_names(present)} are named;"
            " expected one or the other: correct the row"
        )
    if status.startswith("faulty") and told and not present:
        raise LabelError(
            f"{where}: the status is {status}, but no type is named; expected at least one: fill"
            " the column classes"
        )


def _merged(frame: FrameLabels | None, entry: FrameEntry, path: Path) -> FrameLabels | None:
    """Masks and table as one; ``None`` where the table does not say whether there are defects."""
    if frame is None:
        if entry.class_ids is None and not entry.disputed:
            return None
        frame = FrameLabels(entry.image, {})
    if entry.class_ids is not None and not entry.disputed:
        contradicted = [c for c in frame.class_ids if c not in entry.class_ids]
        if contradicted:
            raise LabelError(
                f"{path} row {entry.row}, image {shown(entry.image)}: the labels hold type"
                f" {first_names(contradicted)}, the table names"
                f" {'type ' + first_names(entry.class_ids) if entry.class_ids else 'no type'};"
                " expected the same: correct one of them"
            )
    without_mask = tuple(c for c in entry.class_ids or () if c not in frame.rle_by_class)
    return replace(
        frame,
        types_without_mask=without_mask or frame.types_without_mask,
        disputed=frame.disputed or entry.disputed,
        split=entry.split or frame.split,
        attributes={**frame.attributes, **entry.attributes},
    )


def _with_classes(
    classes: tuple[LabelClass, ...], named: tuple[str, ...]
) -> tuple[LabelClass, ...]:
    """Classes of the labels, then those that only the table names; numbers in their order."""
    have = {c.id for c in classes}
    extra = classes_of([name for name in named if name not in have])
    if not extra:
        return classes
    together = (*classes, *extra)
    if all(c.id.isdecimal() for c in together):
        return tuple(sorted(together, key=lambda c: int(c.id)))
    return together
