import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelsight.data.tables import unique_keys, write_table
from steelsight.errors import InputError

DOCUMENTS: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
)


@given(DOCUMENTS)
@settings(max_examples=100, deadline=None)
def test_an_object_with_different_keys_is_read_as_ever(document: Any) -> None:
    assert json.loads(json.dumps(document), object_pairs_hook=unique_keys) == document


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"a": 1, "a": 1}', "'a'"),
        ('[{"b": {"c": 1, "a": [], "\\u0061": {}}}]', "'a'"),
        ('{"": 1, "": 2, "": 3}', "''"),
        ('{"\\u001b[2J": 1, "\\u001b[2J": 2}', r"'\x1b[2J'"),
    ],
)
def test_a_key_twice_is_refused_and_named(text: str, key: str) -> None:
    with pytest.raises(ValueError, match="key twice in an object") as caught:
        json.loads(text, object_pairs_hook=unique_keys)
    assert str(caught.value) == f"key twice in an object: {key}"


def test_a_long_key_is_cut() -> None:
    key = "x" * 10**6
    with pytest.raises(ValueError, match="key twice") as caught:
        unique_keys([(key, 1), (key, 2)])
    assert len(str(caught.value)) < 80


def test_a_table_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"

    def rows() -> Iterator[tuple[str, ...]]:
        yield "image", "mask"
        yield "a,1.jpg", ""
        # Nothing of it is at its place before the end.
        assert path.exists() is was_there
        if refused:
            raise InputError("the second row is refused")

    was_there, refused = False, True
    with pytest.raises(InputError, match="second row"):
        write_table(path, rows())
    assert not list(tmp_path.iterdir())

    refused = False
    write_table(path, rows())
    written = b'image,mask\n"a,1.jpg",\n'
    assert path.read_bytes() == written

    was_there, refused = True, True
    with pytest.raises(InputError, match="second row"):
        write_table(path, rows())
    assert path.read_bytes() == written
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "no" / "table.csv", tmp_path / "file" / "table.csv"):
        with pytest.raises(InputError, match="cannot be written") as told:
            write_table(path, [("a",)])
        assert "\n" not in str(told.value)
