"""Rows of a Parquet table that hold encoded images, one by one, in bounded memory.

Bounded by the table's pages: a page is unpacked whole, and how many rows it holds was decided by
whoever wrote the table.

What is read is one column of bytes, and one of names. Hugging Face's data sets have both in one
column: a struct of ``bytes`` and ``path``. pyarrow is the extra ``parquet``.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelsight.defects import Reason
from steelsight.errors import DecodeError, InputError, escaped, first_names

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BYTES_COLUMNS = ("bytes", "image", "content", "data")
NAME_COLUMNS = ("name", "image", "path", "file_name")

_BATCH_BYTES = 8 << 20
_MOST_BATCH_ROWS = 64
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        number: from 0, as pyarrow and pandas count.
        name: from a column, else the number with at least six digits.
        content: reads it.
    """

    number: int
    name: str
    content: Callable[[], bytes | DecodeError]


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which columns are read: paths into the schema."""

    image: tuple[str, ...]
    name: tuple[str, ...] | None

    @property
    def read(self) -> list[str]:
        return [column for column in {self.image[0], self.name[0] if self.name else ""} if column]


class _NoColumnError(Exception):
    """The table has no column, or too many, that could be images; the text says which it has."""


def check_columns(path: Path) -> None:
    """Whether a table that was given by name can be read at all; damage is found later.

    Raises:
        InputError: no column of images, or no pyarrow.
    """
    try:
        with _opened(path) as table:
            _columns(table.schema_arrow)
    except _NoColumnError as error:
        raise InputError(f"{path}: {error}") from None
    except DecodeError as error:
        if isinstance(error.__cause__, ImportError):
            raise InputError(f"{path}: {error}") from None


def count_rows(path: Path) -> int:
    """As the table's footer says; one where it says nothing."""
    with suppress(DecodeError), _opened(path) as table:
        return int(table.metadata.num_rows)
    return 1


def rows(path: Path) -> Generator[Row]:
    """In order. In place of rows that cannot be read comes one that says how many.

    Raises:
        DecodeError: the file is no table of images, or damaged.
    """
    yield from _rows(path, 0)


def read_row(path: Path, number: int) -> bytes | DecodeError | None:
    """The content of one row; ``None`` if there are not so many.

    Raises:
        DecodeError: the file is no table of images, or damaged.
    """
    for row in _rows(path, number):
        if row.number == number:
            return row.content()
        if row.number > number:
            break
    return None


def _rows(path: Path, from_: int) -> Iterator[Row]:
    try:
        with _opened(path) as table:
            columns = _columns(table.schema_arrow)
            width = max(6, len(str(table.metadata.num_rows)))
            first = 0
            for group in range(table.metadata.num_row_groups):
                behind = first + int(table.metadata.row_group(group).num_rows)
                if behind > from_:
                    yield from _rows_of(table, group, columns, first, width)
                first = behind
    except _NoColumnError as error:
        raise DecodeError(Reason.NOT_AN_IMAGE, str(error)) from None
    except OSError as error:
        raise _broken(error) from error


def _rows_of(
    table: "pq.ParquetFile", group: int, columns: _Columns, first: int, width: int
) -> Iterator[Row]:
    about = table.metadata.row_group(group)
    count = int(about.num_rows)
    at_once = _BATCH_BYTES * count // max(1, int(about.total_byte_size))
    number = first
    try:
        for batch in table.iter_batches(
            batch_size=max(1, min(_MOST_BATCH_ROWS, at_once)),
            row_groups=[group],
            columns=columns.read,
            use_threads=False,
        ):
            images = _values(batch, columns.image)
            names = _values(batch, columns.name) if columns.name else None
            for i in range(batch.num_rows):
                name = _text(names, i) if names is not None else None
                yield Row(number, name or f"{number:0{width}d}", partial(_content, images, i))
                number += 1
        error: Exception | None = None
    except Exception as raised:  # whatever pyarrow says of damage, also of memory
        error = raised
    lost = first + count - number
    if error is not None or lost > 0:
        refusal = _broken(error, f"rows {number} to {first + count - 1} are lost ({lost})")
        yield Row(number, f"{number:0{width}d}", partial(_refused, refusal))


def _refused(error: DecodeError) -> DecodeError:
    return error


def _values(batch: "pa.RecordBatch", path: tuple[str, ...]) -> "pa.Array[Any]":
    """A column, or a field of it, with the nulls of both."""
    import pyarrow.compute as pc

    values = batch.column(path[0])
    return pc.struct_field(values, list(path[1:])) if len(path) > 1 else values


def _content(images: "pa.Array[Any]", i: int) -> bytes | DecodeError:
    value = images[i].as_py()
    if value is None:
        return DecodeError(Reason.EMPTY, "expected an image, the row holds no bytes")
    return bytes(value)


def _text(names: "pa.Array[Any]", i: int) -> str | None:
    try:
        value = names[i].as_py()
    except ValueError:  # no UTF-8
        return None
    return value if isinstance(value, str) else None


def _opened(path: Path) -> "pq.ParquetFile":
    """The file, its footer read.

    Raises:
        DecodeError: it cannot be read, or pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DecodeError(
            Reason.UNSUPPORTED_FORMAT,
            "expected pyarrow, which reads Parquet: pip install 'steelsight[parquet]'",
        ) from error
    try:
        if not path.stat().st_size:
            raise DecodeError(Reason.EMPTY, "expected a Parquet table, received 0 bytes")
        return pq.ParquetFile(
            path,
            # Else a row group is read whole.
            buffer_size=_BUFFER_BYTES,
            pre_buffer=False,
            page_checksum_verification=True,
        )
    except DecodeError:
        raise
    except Exception as error:  # whatever pyarrow says of damage
        raise _broken(error) from error


def _broken(error: Exception | None, lost: str = "") -> DecodeError:
    cause = escaped(" ".join(str(error).split())[:200]) if error else "it ends early"
    errno = getattr(error, "errno", None)
    reason = Reason.UNREADABLE if errno else Reason.DECODE_FAILED
    return DecodeError(reason, f"damaged Parquet table: {lost + ': ' if lost else ''}{cause}")


def _columns(schema: "pa.Schema") -> _Columns:
    """Which columns are images and names.

    Raises:
        _NoColumnError: none, or several that could be.
    """
    images = {field.name: path for field in schema if (path := _image_path(field))}
    chosen = next((name for name in BYTES_COLUMNS if name in images), None)
    if chosen is None and len(images) == 1:
        (chosen,) = images
    if chosen is None:
        has = first_names(f"{field.name} ({field.type})" for field in schema)
        raise _NoColumnError(
            f"expected a column of encoded images named {', '.join(BYTES_COLUMNS)}, or one column "
            f"of bytes, received {has or 'no columns'}; rename the column"
        )
    return _Columns(images[chosen], _name_path(schema, images[chosen]))


def _image_path(field: "pa.Field[Any]") -> tuple[str, ...] | None:
    if _is_bytes(field.type):
        return (field.name,)
    if _is_struct(field.type):
        for inner in field.type:
            if inner.name == "bytes" and _is_bytes(inner.type):
                return (field.name, "bytes")
    return None


def _name_path(schema: "pa.Schema", image: tuple[str, ...]) -> tuple[str, ...] | None:
    for name in NAME_COLUMNS:
        index = schema.get_field_index(name)  # -1 also where it is there twice
        if index >= 0 and _is_text(schema.field(index).type):
            return (name,)
    if len(image) > 1:
        for inner in schema.field(image[0]).type:
            if inner.name == "path" and _is_text(inner.type):
                return (image[0], "path")
    return None


def _is_bytes(kind: "pa.DataType") -> bool:
    from pyarrow import types

    return any(
        is_kind(kind)
        for is_kind in (
            types.is_binary,
            types.is_large_binary,
            types.is_fixed_size_binary,
            types.is_binary_view,
        )
    )


def _is_text(kind: "pa.DataType") -> bool:
    from pyarrow import types

    is_text = (types.is_string, types.is_large_string, types.is_string_view)
    return any(is_kind(kind) for is_kind in is_text)


def _is_struct(kind: "pa.DataType") -> bool:
    from pyarrow import types

    return bool(types.is_struct(kind))
