"""Rows of a Parquet table: each once, whatever is wrong with the table."""

import builtins
import os
import sys
from pathlib import Path

import pytest

from steelsight.defects import Reason
from steelsight.engine import parquet as parquet_module
from steelsight.engine.sources import Source, Sources, read_origin
from steelsight.errors import DecodeError, InputError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGES = [bytes([i]) * (1000 + i) for i in range(10)]


def table(path: Path, columns: dict[str, object], **options: object) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def read(path: Path) -> list[Source]:
    sources = Sources([path])
    taken = list(sources)
    assert len({s.name for s in taken}) == len({s.origin for s in taken}) == len(taken)
    return taken


STRUCTS = [{"bytes": b, "path": f"{i}.jpg"} for i, b in enumerate(IMAGES)]
NAMES = [f"in/{i}.jpg" for i in range(10)]


@pytest.mark.parametrize(
    ("columns", "name_of"),
    [
        ({"bytes": IMAGES}, "{:06d}"),
        ({"id": list(range(10)), "anything": IMAGES}, "{:06d}"),
        ({"thumb": [b"t"] * 10, "image": IMAGES}, "{:06d}"),
        ({"bytes": IMAGES, "name": NAMES}, "in/{}.jpg"),
        ({"content": IMAGES, "image": NAMES}, "in/{}.jpg"),
        ({"data": IMAGES, "file_name": NAMES}, "in/{}.jpg"),
        ({"data": IMAGES, "name": list(range(10)), "path": NAMES}, "in/{}.jpg"),
        ({"image": STRUCTS, "label": [0] * 10}, "{}.jpg"),
        ({"image": STRUCTS, "file_name": NAMES}, "in/{}.jpg"),
        ({"bytes": pa.array(IMAGES, pa.large_binary())}, "{:06d}"),
    ],
)
@pytest.mark.parametrize("rows_at_once", [3, 100])
def test_columns(tmp_path, columns, name_of, rows_at_once):
    path = table(tmp_path / "a.parquet", columns, row_group_size=rows_at_once)
    sources = read(path)
    assert [s.name for s in sources] == [f"a.parquet/{name_of.format(i)}" for i in range(10)]
    assert [s.content for s in sources] == IMAGES
    assert [s.origin for s in sources] == [f"{path}::{i}" for i in range(10)]
    assert [read_origin(s.origin) for s in sources] == IMAGES
    assert Sources([tmp_path]).count() == 10


@pytest.mark.parametrize(
    "columns", [{"label": [1, 2]}, {"a": [b"x"], "b": [b"y"]}, {"image": ["a.jpg"]}]
)
def test_a_table_without_images(tmp_path, columns):
    path = table(tmp_path / "a.parquet", columns)
    with pytest.raises(InputError, match="expected a column of encoded images") as caught:
        Sources([path])
    assert all(name in str(caught.value) for name in columns)
    (tmp_path / "b.jpg").write_bytes(b"x")
    source, other = Sources([tmp_path])
    assert (source.name, other.name) == ("a.parquet", "b.jpg")
    assert source.content.reason is Reason.NOT_AN_IMAGE


def test_rows_without_bytes_or_name(tmp_path):
    path = table(
        tmp_path / "a.parquet",
        {
            "image": [None, {"bytes": None, "path": "b.jpg"}, {"bytes": b"", "path": None}],
            "label": [1, 2, 3],
        },
    )
    sources = read(path)
    assert [s.name for s in sources] == [
        *("a.parquet/000000", "a.parquet/b.jpg", "a.parquet/000002"),
    ]
    assert [getattr(s.content, "reason", s.content) for s in sources] == [
        *(Reason.EMPTY, Reason.EMPTY, b""),
    ]


def test_names_that_are_there_twice_or_strange(tmp_path):
    names = ["a.jpg", "a.jpg", "../b.jpg", "", "\n", "000003"]
    path = table(tmp_path / "a.parquet", {"bytes": IMAGES[:6], "name": names})
    assert [s.name.removeprefix("a.parquet/") for s in read(path)] == [
        *("a.jpg", "a%7E2.jpg", "..%2Fb.jpg", "000003", "%0A", "000003%7E2"),
    ]


def test_a_damaged_table_loses_no_row_unseen(tmp_path):
    path = table(
        tmp_path / "a.parquet",
        {"bytes": [os.urandom(1500) for _ in range(12)]},
        row_group_size=4,
        write_page_checksum=True,
        use_dictionary=False,
    )
    whole = {s.name: s.content for s in read(path)}
    data = path.read_bytes()
    for at in range(0, len(data), 331):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        try:
            sources = read(path)
        except InputError:  # the footer says that there is no column of bytes
            assert at > len(data) - 1000
            continue
        refused = [s for s in sources if isinstance(s.content, DecodeError)]
        assert all(s.content == whole[s.name] for s in sources if s not in refused), at
        assert len(sources) == 12 or refused, at


def test_a_broken_row_group_says_which_rows_are_lost(tmp_path):
    path = table(
        tmp_path / "a.parquet",
        {"bytes": [os.urandom(1500) for _ in range(12)]},
        row_group_size=4,
        write_page_checksum=True,
        use_dictionary=False,
    )
    data = bytearray(path.read_bytes())
    second = pq.read_metadata(path).row_group(1).column(0)
    data[second.data_page_offset + second.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(data)
    sources = read(path)
    assert [s.name for s in sources if isinstance(s.content, bytes)] == [
        f"a.parquet/{i:06d}" for i in (0, 1, 2, 3, 8, 9, 10, 11)
    ]
    assert sources[4].name == "a.parquet/000004"
    assert "rows 4 to 7 are lost (4)" in str(sources[4].content)
    with pytest.raises(DecodeError, match="rows 4 to 7"):
        read_origin(sources[4].origin)
    with pytest.raises(InputError, match="holds no 12"):
        read_origin(f"{path}::12")


def test_a_cut_table(tmp_path):
    path = table(tmp_path / "a.parquet", {"bytes": IMAGES})
    data = path.read_bytes()
    for end in range(1, len(data), 499):
        path.write_bytes(data[:end])
        (source,) = read(path)
        assert source.name == "a.parquet"
        assert source.content.reason is Reason.DECODE_FAILED


def test_rows_are_read_a_few_at_once(tmp_path, monkeypatch):
    path = table(
        tmp_path / "a.parquet",
        {"bytes": [os.urandom(1 << 20) for _ in range(48)]},
        use_dictionary=False,
        write_batch_size=1,  # else all are one page
    )
    before = pa.total_allocated_bytes()
    most = max(pa.total_allocated_bytes() - before for _ in Sources([path]))
    assert most < 24 << 20


def test_without_pyarrow(tmp_path, monkeypatch):
    path = table(tmp_path / "a.parquet", {"bytes": IMAGES})
    real_import = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError(name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'steelsight\[parquet\]'"):
        Sources([path])
    (tmp_path / "b.jpg").write_bytes(b"x")
    source, _ = Sources([tmp_path])
    assert source.content.reason is Reason.UNSUPPORTED_FORMAT
    assert "pip install" in str(source.content)


def test_pyarrow_is_imported_for_parquet_only():
    assert not hasattr(parquet_module, "pa")
    assert "steelsight.engine.parquet" in sys.modules
