"""Labels as Severstal published them: a CSV file with one run-length text per frame and type.

Two forms are read, told apart by their header; the columns may stand in any order and others are
ignored:

* ``ImageId,ClassId,EncodedPixels``: the later ``train.csv``;
* ``ImageId_ClassId,EncodedPixels``: the earlier ``train.csv`` and submissions, where the type is
  what follows the last ``_`` of the first column.

An empty ``EncodedPixels`` cell means that the frame has no defect of that type, so a frame is
known to be clean if its rows are all empty; a frame without any row is unknown. ``NaN`` and ``-1``
are errors: Severstal's files hold neither. ``NaN`` is what pandas writes when told to, and ``-1``
belongs to a competition with another run-length form (SIIM-ACR, starts relative to the run
before), whose other rows would decode to wrong masks.

The text is UTF-8 with or without byte order mark; cells are separated by ``,``, ``;`` or tab. Rows
are counted as a text editor counts lines: the header is row 1.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TextIO

from steelsight.data.labels import CLASS_ID, FrameLabels, check_image_name, shown
from steelsight.errors import InputError, LabelError
from steelsight.masks import rle_runs

_MAX_CELL_CHARACTERS = 1 << 30
"""A frame of 409,600 px can need 1.8 million; Python's csv stops at 131,072 by default."""

_BLANKS = " \t\r\n"

SizesWh = tuple[int, int] | Mapping[str, tuple[int, int]] | None
"""Width and height in pixels of all frames, or by image; ``None`` where they are not known."""


class CsvForm(StrEnum):
    """Which of the two published layouts is written."""

    ROWS = "rows"
    """``ImageId,ClassId,EncodedPixels``: a row per mask, and an empty row per type if clean."""
    SUBMISSION = "submission"
    """``ImageId_ClassId,EncodedPixels``: a row per frame and type, empty for none."""


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where the cells of a row stand; ``class_id`` is ``None`` in the joined form."""

    count: int
    image: int
    class_id: int | None
    rle: int


def read_csv(
    path: Path,
    *,
    size_wh: SizesWh = None,
    class_ids: Sequence[str] | None = None,
    errors: list[LabelError] | None = None,
) -> dict[str, FrameLabels]:
    """Reads a label file and checks every row.

    Args:
        path: CSV file in either form.
        size_wh: sizes to check the runs against; without a size everything but the end of the
            frame is checked.
        class_ids: the types that may occur; ``None`` accepts any.
        errors: a list to go on past broken rows: what is wrong with each is appended there. Images
            with a broken row are then left out, because the rest of their labels would make
            defects look like good steel. Without it the first broken row raises.

    Returns:
        Labels by image, in the order of the file.

    Raises:
        LabelError: a broken row (see ``errors``), or a file that is no such table: not UTF-8,
            columns missing, damaged quoting. The text names file, row, image and value.
        InputError: the file cannot be opened.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL_CHARACTERS))
    masks: dict[str, dict[str, str]] = {}
    row_of: dict[tuple[str, str], int] = {}
    refused: set[str] = set()
    try:
        # newline="" leaves line ends to csv; utf-8-sig drops a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, cells, columns in _table_rows(file, str(path)):
                image, class_id = _image_and_class(cells, columns)
                where = f"{path} row {number}, image {shown(image)}, type {shown(class_id)}"
                try:
                    _check_cells(cells, columns, where)
                    check_image_name(image, where)
                    _check_class(class_id, class_ids, where)
                    earlier = row_of.setdefault((image, class_id), number)
                    if earlier != number:
                        raise LabelError(
                            f"{where}: row {earlier} already has this image and type, expected one"
                            " row for each; merge the two masks or remove one row"
                        )
                    rle = cells[columns.rle]
                    rle_runs(rle, _size_of(image, size_wh), where=where)
                except LabelError as error:
                    if errors is None:
                        raise
                    errors.append(error)
                    refused.add(image)
                    continue
                of_image = masks.setdefault(image, {})
                if rle:
                    of_image[class_id] = rle
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}), expected a CSV file of labels; check the"
            " path and its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise LabelError(
            f"{path}: byte {error.object[error.start]:#04x} is not UTF-8, expected UTF-8 text; save"
            " the table as 'CSV UTF-8'"
        ) from error
    return {
        image: FrameLabels(image, rle_by_class)
        for image, rle_by_class in masks.items()
        if image not in refused
    }


def write_csv(
    path: Path,
    labels: Iterable[FrameLabels],
    *,
    form: CsvForm,
    class_ids: Sequence[str],
) -> None:
    """Writes labels or predictions in one of the published layouts, with LF line ends.

    Image names go through :func:`csv_safe`, so a name such as ``-1.jpg`` reads back changed.

    Args:
        path: file to write; an existing one is replaced.
        labels: frames in the order of the rows.
        form: the layout.
        class_ids: all types, in the order of the rows of one frame.

    Raises:
        InputError: a frame occurs twice or holds a type that is not in ``class_ids``, or the file
            cannot be written.
        LabelError: an image, type or RLE that :func:`read_csv` would refuse.
    """
    table = _table(labels, form, class_ids)
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(table)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}), expected a file in an existing folder;"
            " check the path, its permissions and the free space"
        ) from error


def csv_safe(text: str) -> str:
    """Keeps a spreadsheet from running a cell as a formula: puts ``'`` before ``= + - @`` and tab.

    For text that others chose, such as file names. Reading does not take the ``'`` away again.
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "'")) else text


def _table_rows(file: TextIO, name: str) -> Iterator[tuple[int, list[str], _Columns]]:
    """Row number, cells without blanks around them, and the columns, for each row with content."""
    first_line = file.readline()
    delimiter = max(",;\t", key=first_line.count)
    file.seek(0)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        columns = _columns([cell.strip(_BLANKS) for cell in next(reader, [])], name)
        for cells in reader:
            if cells:
                yield reader.line_num, [cell.strip(_BLANKS) for cell in cells], columns
    except csv.Error as error:
        raise LabelError(
            f"{name} row {reader.line_num}: damaged CSV ({error}), expected cells separated by"
            f" {delimiter!r} and quotes in pairs; export the table again"
        ) from error


def _columns(header: list[str], name: str) -> _Columns:
    def found(*names: str) -> bool:
        return all(header.count(column) == 1 for column in names)

    if found("ImageId", "ClassId", "EncodedPixels"):
        image, class_id = header.index("ImageId"), header.index("ClassId")
        return _Columns(len(header), image, class_id, header.index("EncodedPixels"))
    if found("ImageId_ClassId", "EncodedPixels"):
        image = header.index("ImageId_ClassId")
        return _Columns(len(header), image, None, header.index("EncodedPixels"))
    raise LabelError(
        f"{name} row 1: expected the columns ImageId, ClassId and EncodedPixels, or ImageId_ClassId"
        f" and EncodedPixels, each once, found {shown(', '.join(header))}; name the columns so"
    )


def _image_and_class(cells: list[str], columns: _Columns) -> tuple[str, str]:
    """Also for a row with too few cells, so that its error can name the image."""
    image = cells[columns.image] if columns.image < len(cells) else ""
    if columns.class_id is None:
        image, _, class_id = image.rpartition("_")
        return image, class_id
    return image, cells[columns.class_id] if columns.class_id < len(cells) else ""


def _check_cells(cells: list[str], columns: _Columns, where: str) -> None:
    if len(cells) != columns.count:
        raise LabelError(
            f"{where}: {len(cells)} cells beginning with {shown(cells[0])}, expected"
            f" {columns.count} as in the header; add the missing cell or quote one that contains"
            " the separator"
        )


def _check_class(class_id: str, class_ids: Sequence[str] | None, where: str) -> None:
    if not CLASS_ID.fullmatch(class_id):
        raise LabelError(
            f"{where}: the type is {shown(class_id)}, expected ASCII letters, digits, - or _ such"
            " as '1'; write whole numbers (1, not 1.0) and a type in every row"
        )
    if class_ids is not None and class_id not in class_ids:
        raise LabelError(
            f"{where}: the type is {shown(class_id)}, expected one of {', '.join(class_ids)};"
            " correct the row or add the type to the classes"
        )


def _size_of(image: str, size_wh: SizesWh) -> tuple[int, int] | None:
    return size_wh.get(image) if isinstance(size_wh, Mapping) else size_wh


def _table(
    labels: Iterable[FrameLabels], form: CsvForm, class_ids: Sequence[str]
) -> list[tuple[str, ...]]:
    """Header and rows, all checked before anything is written."""
    rows_form = form is CsvForm.ROWS
    for class_id in class_ids:
        _check_class(class_id, None, "class_ids")
        if not rows_form and "_" in class_id:
            raise InputError(
                f"the type {class_id!r} holds _, expected none in the column ImageId_ClassId;"
                f" write the form {CsvForm.ROWS.value!r}"
            )
    joined = ("ImageId_ClassId", "EncodedPixels")
    table: list[tuple[str, ...]] = [
        ("ImageId", "ClassId", "EncodedPixels") if rows_form else joined
    ]
    written: set[str] = set()
    for frame in labels:
        image = csv_safe(frame.image)
        where = f"image {shown(frame.image)}"
        check_image_name(image, where)
        if image in written:
            raise InputError(f"{where} occurs twice, expected each frame once; merge its labels")
        written.add(image)
        for class_id, rle in frame.rle_by_class.items():
            _check_class(class_id, class_ids, where)
            rle_runs(rle, where=f"{where}, type {class_id!r}")
        for class_id in class_ids:
            rle = frame.rle_by_class.get(class_id, "")
            if not rows_form:
                table.append((f"{image}_{class_id}", rle))
            elif rle or not any(frame.rle_by_class.values()):
                table.append((image, class_id, rle))
    return table
