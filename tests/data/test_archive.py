"""Archives: passed through, unpacked, or refused before they do harm."""

import stat
import zipfile
from pathlib import Path

import pytest

from steelsight.data import archive
from steelsight.data.archive import opened
from steelsight.errors import InputError, LabelError


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def test_a_folder_and_a_file_are_passed_through(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text("x")
    for path in (tmp_path, file, tmp_path / "missing"):
        with opened(path) as same:
            assert same is path


def test_an_archive_is_unpacked_for_a_while(tmp_path):
    path = packed(tmp_path / "a.zip", {"train.csv": b"x", "images/a.jpg": b"y" * 1000})
    with opened(path) as folder:
        assert (folder / "train.csv").read_bytes() == b"x"
        assert (folder / "images/a.jpg").read_bytes() == b"y" * 1000
    assert not folder.exists()


def test_a_single_folder_inside_is_what_is_meant(tmp_path):
    path = packed(tmp_path / "a.zip", {"set/": b"", "set/train.csv": b"x"})
    with opened(path) as folder:
        assert folder.name == "set"
        assert (folder / "train.csv").is_file()


@pytest.mark.parametrize(
    "name", ["../evil.txt", "/etc/evil.txt", "a/../../evil.txt", "C:/evil.txt", "a\\..\\evil.txt"]
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    path = packed(tmp_path / "a.zip", {"fine.txt": b"x", name: b"x"})
    with pytest.raises(LabelError, match="inside the image folder"), opened(path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_links_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
    with pytest.raises(LabelError, match="'link': a link or device"), opened(path):
        pass


def test_a_bomb_stops_while_it_expands(tmp_path):
    path = packed(tmp_path / "a.zip", {"zeros.png": bytes(80 << 20)})
    assert path.stat().st_size < 100_000
    with pytest.raises(LabelError, match="bomb"), opened(path):
        pass


def test_small_members_may_pack_well(tmp_path):
    path = packed(tmp_path / "a.zip", {"mask.bmp": bytes(1 << 20)})
    with opened(path) as folder:
        assert (folder / "mask.bmp").stat().st_size == 1 << 20


def test_too_many_bytes_and_members_by_the_directory(tmp_path, monkeypatch):
    path = packed(tmp_path / "a.zip", {"a": b"x" * 100, "b": b"x" * 100})
    monkeypatch.setattr(archive, "MAX_BYTES", 150)
    with pytest.raises(LabelError, match="200 bytes unpacked"), opened(path):
        pass
    monkeypatch.setattr(archive, "MAX_MEMBERS", 1)
    with pytest.raises(LabelError, match="2 members"), opened(path):
        pass


def test_encrypted_and_damaged_archives(tmp_path):
    path = packed(tmp_path / "a.zip", {"a": b"x" * 1000})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory
    path.write_bytes(data)
    with pytest.raises(LabelError, match="encrypted"), opened(path):
        pass
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(LabelError, match="damaged archive"), opened(path):
        pass


def test_a_damaged_member_is_refused(tmp_path):
    path = packed(tmp_path / "a.zip", {"a": bytes(range(256)) * 40})
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(LabelError, match="damaged archive"), opened(path):
        pass


def test_the_same_name_twice(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("a", "2")
    with pytest.raises(LabelError, match="twice"), opened(path):
        pass


def test_other_archives_are_named(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(b"x")
    with pytest.raises(InputError, match="unpack it first"), opened(path):
        pass


def test_a_damaged_lzma_member_is_one_line(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("a", bytes(range(256)) * 40)
    whole = path.read_bytes()
    for at in range(40, 60):
        data = bytearray(whole)
        data[at] ^= 0xFF
        path.write_bytes(data)
        with pytest.raises(LabelError, match=r"^[^\n]*$"), opened(path):
            pass
