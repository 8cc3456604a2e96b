"""CSV tables as people and spreadsheets write them, and what JSON files need beside ``json``.

UTF-8 with or without byte order mark; cells separated by ``,``, ``;`` or tab, whichever the header
holds most. Rows are counted as a text editor counts lines: the header is row 1.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steelsight.data.labels import shown
from steelsight.errors import InputError, LabelError

BLANKS = " \t\r\n"

_MAX_CELL_CHARACTERS = 1 << 30
"""A frame of 409,600 px can need 1.8 million; Python's csv stops at 131,072 by default."""


def check_is_file(path: Path) -> None:
    """Refuses a pipe, socket or device: opening it could wait for ever, or never end.

    Raises:
        InputError: such a thing. What is missing or a folder shows when it is opened.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{path} is a pipe, socket or device, expected a file; check the path")


@contextmanager
def open_table(path: Path) -> Iterator[tuple[list[str], Iterator[tuple[int, list[str]]]]]:
    """Header and rows of a table; rows without any cell are left out.

    Args:
        path: CSV file.

    Yields:
        The header's cells, and row number and cells of each row, without blanks around them.

    Raises:
        LabelError: not UTF-8, or damaged quoting.
        InputError: the file cannot be opened.
    """
    check_is_file(path)
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL_CHARACTERS))
    try:
        # newline="" leaves line ends to csv; utf-8-sig drops a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            first_line = file.readline()
            delimiter = max(",;\t", key=first_line.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)

            header = [cell.strip(BLANKS) for cell in next(reader, [])]
            yield (
                header,
                (
                    (reader.line_num, [cell.strip(BLANKS) for cell in cells])
                    for cells in reader
                    if cells
                ),
            )
    except csv.Error as error:
        raise LabelError(
            f"{path} row {reader.line_num}: damaged CSV ({error}), expected cells separated by"
            f" {delimiter!r} and quotes in pairs; export the table again"
        ) from error
    except UnicodeDecodeError as error:
        raise LabelError(
            f"{path}: byte {error.object[error.start]:#04x} is not UTF-8, expected UTF-8 text; save"
            " the table as 'CSV UTF-8'"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}), expected a CSV file of labels; check the"
            " path and its permissions"
        ) from error


def write_table(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Writes rows with commas and LF line ends; an existing file is replaced.

    It is written beside its place and moved there when it is complete: where a row is refused,
    nothing has changed. A link stays one.

    Raises:
        InputError: the file cannot be written, or ``rows`` has an ``OSError``.
        Exception: whatever else ``rows`` raises.
    """
    place = path.resolve()
    beside = place.with_name(f".{place.name}.unfinished")
    try:
        try:
            with beside.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)
            beside.replace(place)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}), expected a file in an existing folder;"
            " check the path, its permissions and the free space"
        ) from error


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """``object_pairs_hook`` for ``json.loads`` that refuses an object with the same key twice.

    ``json`` keeps the last of them: a second ``annotations`` would hide the first without a word.

    Raises:
        ValueError: such an object.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key twice in an object: {shown(twice)}")
    return found


def csv_safe(text: str) -> str:
    """Keeps a spreadsheet from running a cell as a formula: puts ``'`` before ``= + - @`` and tab.

    For text that others chose, such as file names. Reading does not take the ``'`` away again.
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "'")) else text
