"""What every page relies on: links beside it, a file written at once, bounded pictures."""

import os
import re
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

import pytest

from steelsight.defects import DefectClass
from steelsight.errors import InputError
from steelsight.report.page import PictureBudget, legend, relative_href, write_page

NAMES = (
    "<script>alert(1)</script>.jpg",
    "a\"b'c&amp;<b>.jpg",
    "👩\u200d🔧 划痕.jpg",
    "evil\u202egpj.exe",
    "javascript:alert(1)",
    "//evil.example/x.png",
    "\\\\evil.example\\x.png",
    "sp\udcffam.jpg",
    "line\nbreak.jpg",
)


@pytest.mark.parametrize("name", NAMES)
def test_links_stay_beside_the_report_and_lead_to_the_file(name):
    href = relative_href(name)
    assert href.startswith("./")
    assert not href.startswith(".//")
    assert not re.search(r"[\s\"'<>:\\]", href)
    if not name.startswith(("/", "\\")):
        assert unquote_to_bytes(href[2:]) == os.fsencode(name)
    else:
        assert unquote(href) == "./evil.example/x.png"


def test_a_page_replaces_the_old_one_whole(tmp_path):
    path = tmp_path / "new" / "page.html"
    write_page(path, "first")
    write_page(path, "lone \udcff")
    assert path.read_bytes() == b"lone ?"
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old")

    def fail(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(
        InputError, match=r"page\.html: cannot be written \(No space left"
    ) as caught:
        write_page(path, "new")
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_pictures_are_embedded_until_their_bytes_are_spent():
    budget = PictureBudget(10)
    assert budget.embedded(b"1234567") == "data:image/jpeg;base64,MTIzNDU2Nw=="
    assert not budget.exceeded
    assert budget.embedded(b"1234") is None
    assert budget.exceeded
    assert budget.embedded(b"123") is not None  # a smaller one still fits
    assert budget.embedded(b"1") is None


def test_the_legend_draws_each_type_as_the_overlays_do():
    (one, line), (two, dashes) = legend(
        (DefectClass("1", "a", "#2f9bff"), DefectClass("2", "b", "#FFF"))
    )
    assert (one, two) == ("a", "b")
    assert "#2f9bff" in line
    assert "dasharray" not in line
    assert "dasharray" in dashes
