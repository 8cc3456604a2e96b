"""A member comes out equal to the byte, or as an error; the number of results adds up."""

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from steelsight.defects import Reason
from steelsight.engine.archives import Tar, Zip, is_hidden
from steelsight.engine.sources import Source, Sources
from steelsight.errors import DecodeError
from steelsight.imaging import DecodePolicy

CONTENTS = {f"in/{i}.jpg": os.urandom(700) * (i + 1) for i in range(4)}
LIMIT = 1 << 20


def read(path: Path, max_bytes: int = LIMIT) -> list[Source]:
    sources = Sources([path], policy=DecodePolicy(max_bytes=max_bytes))
    taken = list(sources)
    assert len({source.name for source in taken}) == len(taken)
    return taken


def reasons(path: Path, max_bytes: int = LIMIT) -> dict[str, Reason | None]:
    return {
        source.name.removeprefix(path.name).removeprefix("/"): (
            source.content.reason if isinstance(source.content, DecodeError) else None
        )
        for source in read(path, max_bytes)
    }


def zipped(path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("in")
        for name, content in CONTENTS.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, mode: str = "w", form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, mode, format=form) as archive:
        folder = tarfile.TarInfo("in")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in CONTENTS.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes = b"x", **facts: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in facts.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("a.jpg", False),
        ("in/a..jpg", False),
        ("../a.jpg", False),
        ("./a.jpg", False),
        (".a.jpg", True),
        ("in/.a/b.jpg", True),
        ("__MACOSX/in/._a.jpg", True),
    ],
)
def test_hidden_names(name, hidden):
    assert is_hidden(name) is hidden


# --------------------------------------------------------------------------------------------- zip


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_members_of_a_zip(tmp_path, method):
    sources = read(zipped(tmp_path / "a.zip", method))
    assert {s.name: s.content for s in sources} == {f"a.zip/{n}": c for n, c in CONTENTS.items()}
    assert [s.name for s in sources] == sorted(s.name for s in sources)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_members_that_shrink_a_thousandfold(tmp_path, method):
    big = bytes(LIMIT)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("a.jpg", big)
        archive.writestr("b.jpg", b"")
    assert [s.content for s in read(tmp_path / "a.zip")] == [big, b""]


@pytest.mark.parametrize("stream", [False, True], ids=["sizes before", "sizes behind"])
def test_a_zip_that_was_streamed_or_has_something_before_it(tmp_path, stream):
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return not stream

        def seek(self, *where: int) -> int:
            if stream:
                raise io.UnsupportedOperation
            return super().seek(*where)

    file = Pipe()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in CONTENTS.items():
            archive.writestr(name, content)
    (tmp_path / "a.zip").write_bytes(b"#!/bin/sh\n" + file.getvalue())
    assert [s.content for s in read(tmp_path / "a.zip")] == list(CONTENTS.values())


def test_zip64(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, archive.open("a.jpg", "w", force_zip64=True) as out:
        out.write(b"content")
    data = file.getvalue()
    # As archives beyond 4 GB are: the numbers stand in an extra field and in a second end.
    at = data.rindex(b"PK\1\2")
    entry = bytearray(data[at : data.rindex(b"PK\5\6")])
    struct.pack_into("<LL", entry, 20, 0xFFFFFFFF, 0xFFFFFFFF)
    extra = struct.pack("<HHQQ", 1, 16, 7, 7)
    struct.pack_into("<H", entry, 30, len(extra))
    entry = entry[: 46 + 5] + extra
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(entry), at)
    where = struct.pack("<4sLQL", b"PK\6\7", 0, at + len(entry), 1)
    small = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "a.zip").write_bytes(data[:at] + entry + end + where + small)
    assert zipfile.ZipFile(tmp_path / "a.zip").read("a.jpg") == b"content"
    assert [s.content for s in read(tmp_path / "a.zip")] == [b"content"]


def test_names_of_a_zip(tmp_path):
    names = ["Größe.jpg", "../up.jpg", "/etc/passwd", "C:\\a.jpg", "a\\b.jpg", "..", "x\ny.jpg"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in names:
            archive.writestr(name, name.encode())
    sources = read(tmp_path / "a.zip")
    assert {s.name for s in sources} == {
        *("a.zip/Größe.jpg", "a.zip/..%2Fup.jpg", "a.zip/%2Fetc%2Fpasswd", "a.zip/C%3A%5Ca.jpg"),
        *("a.zip/a%5Cb.jpg", "a.zip/%2E%2E", "a.zip/x%0Ay.jpg"),
    }
    assert {s.content.decode() for s in sources} == set(names)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.zip"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_the_same_name_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for content in (b"1", b"2", b"3"):
            archive.writestr("a.jpg", content)
    assert [(s.name, s.content) for s in read(tmp_path / "a.zip")] == [
        ("a.zip/a.jpg", b"1"),
        ("a.zip/a%7E2.jpg", b"2"),
        ("a.zip/a%7E3.jpg", b"3"),
    ]


def patched(path: Path, magic: bytes, offset: int, form: str, *values: int) -> Path:
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.index(magic) + offset, *values)
    path.write_bytes(data)
    return path


CENTRAL, LOCAL, END = b"PK\1\2", b"PK\3\4", b"PK\5\6"


@pytest.mark.parametrize(
    ("magic", "offset", "form", "values", "reason"),
    [
        (CENTRAL, 8, "<H", (1,), Reason.UNSUPPORTED_FORMAT),
        (LOCAL, 6, "<H", (1,), Reason.UNSUPPORTED_FORMAT),
        (CENTRAL, 10, "<H", (99,), Reason.UNSUPPORTED_FORMAT),
        (CENTRAL, 16, "<L", (7,), Reason.DECODE_FAILED),
        (CENTRAL, 20, "<L", (5,), Reason.TRUNCATED),
        (CENTRAL, 24, "<L", (5,), Reason.DECODE_FAILED),
        (CENTRAL, 24, "<L", (LIMIT,), Reason.DECODE_FAILED),
        (CENTRAL, 24, "<L", (LIMIT + 1,), Reason.TOO_LARGE),
        (CENTRAL, 38, "<L", (stat.S_IFLNK << 16,), Reason.NOT_A_FILE),
        (CENTRAL, 42, "<L", (3,), Reason.DECODE_FAILED),
        (LOCAL, 30, "<B", (3,), Reason.DECODE_FAILED),
    ],
)
def test_one_broken_member_of_a_zip(tmp_path, magic, offset, form, values, reason):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", b"content" * 9)
        archive.writestr("b.jpg", b"content")
    found = reasons(patched(tmp_path / "a.zip", magic, offset, form, *values))
    assert found == {"a.jpg": reason, "b.jpg": None}


@pytest.mark.parametrize(
    ("offset", "form", "values", "reason"),
    [
        (4, "<H", (1,), Reason.UNSUPPORTED_FORMAT),
        (10, "<H", (3,), Reason.UNSUPPORTED_FORMAT),
        (8, "<HH", (3, 3), Reason.DECODE_FAILED),
        (16, "<L", (1 << 30,), Reason.DECODE_FAILED),
    ],
)
def test_a_broken_list_of_members(tmp_path, offset, form, values, reason):
    path = patched(zipped(tmp_path / "a.zip"), END, offset, form, *values)
    assert reasons(path)[""] is reason


def test_a_zip_bomb_stops_at_what_it_says(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(50 << 20))
    assert reasons(tmp_path / "a.zip") == {"a.jpg": Reason.TOO_LARGE}
    patched(tmp_path / "a.zip", CENTRAL, 24, "<L", 1000)
    assert reasons(tmp_path / "a.zip") == {"a.jpg": Reason.DECODE_FAILED}


def test_a_cut_zip_is_told_once(tmp_path):
    data = zipped(tmp_path / "a.zip").read_bytes()
    for end in range(1, len(data), 97):
        (tmp_path / "a.zip").write_bytes(data[:end])
        (source,) = read(tmp_path / "a.zip")
        assert source.name == "a.zip"
        assert isinstance(source.content, DecodeError)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_no_changed_byte_of_a_zip_goes_unnoticed(tmp_path, method):
    """Each member is right to the byte or refused; if one is missing, the archive says so."""
    small = {name: content[:60] for name, content in CONTENTS.items()}
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        for name, content in small.items():
            archive.writestr(name, content)
    data = (tmp_path / "a.zip").read_bytes()
    for at in range(len(data)):
        for flip in (0x81, data[at] ^ ord("."), data[at] ^ ord("/")):
            if not flip:
                continue
            (tmp_path / "a.zip").write_bytes(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
            whole, refused = 0, 0
            archive = Zip(tmp_path / "a.zip", LIMIT)
            try:
                for member in archive.members():
                    content = member.content()
                    if isinstance(content, DecodeError):
                        refused += 1
                    else:
                        assert content == small[member.inner], at
                        whole += 1
            except DecodeError:
                refused += 100
            assert whole + refused + archive.hidden >= len(small), at
            assert archive.hidden == 0, at
            assert whole == len(small) or refused, at


# --------------------------------------------------------------------------------------------- tar

PACKED = [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar.xz", "w:xz")]
PACKED += [("a.tar.bz2", "w:bz2"), ("A.TAR", "w:gz")]
FORMS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


@pytest.mark.parametrize(("name", "mode"), PACKED)
@pytest.mark.parametrize("form", FORMS)
def test_members_of_a_tar(tmp_path, name, mode, form):
    sources = read(tarred(tmp_path / name, mode, form))
    assert [(s.name, s.content) for s in sources] == [
        (f"{name}/{n}", c) for n, c in CONTENTS.items()
    ]


@pytest.mark.parametrize("form", FORMS)
def test_long_and_strange_names_in_a_tar(tmp_path, form):
    names = ["x" * 90 + "/" + "y" * 95 + ".jpg", "é" * 30 + ".jpg", "../up.jpg", "/abs.jpg"]
    names += [] if form == tarfile.USTAR_FORMAT else ["z" * 300 + ".jpg", "\udcff.jpg"]
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
        for name in names:
            add(archive, name, name.encode("utf-8", "surrogateescape"))
    archive = Tar(tmp_path / "a.tar", LIMIT)
    assert [(m.inner, m.content()) for m in archive.members()] == [
        (name, name.encode("utf-8", "surrogateescape")) for name in names
    ]
    assert len(read(tmp_path / "a.tar")) == len(names)


def test_what_is_no_file_in_a_tar(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "a.jpg")
        add(archive, "link.jpg", b"", type=tarfile.SYMTYPE, linkname="a.jpg")
        add(archive, "hard.jpg", b"", type=tarfile.LNKTYPE, linkname="a.jpg")
        add(archive, "pipe.jpg", b"", type=tarfile.FIFOTYPE)
        add(archive, "device.jpg", b"", type=tarfile.CHRTYPE)
        add(archive, "sparse.jpg", b"x" * 600, pax_headers={"GNU.sparse.major": "1"})
        add(archive, ".hidden.jpg")
        add(archive, "b.jpg")
    refused = Reason.NOT_A_FILE
    assert reasons(tmp_path / "a.tar") == {
        "a.jpg": None,
        **dict.fromkeys(("link.jpg", "hard.jpg", "pipe.jpg", "device.jpg"), refused),
        "sparse.jpg": Reason.UNSUPPORTED_FORMAT,
        "b.jpg": None,
    }


def test_members_of_the_same_name_in_a_tar(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for content in (b"1", b"2"):
            add(archive, "a.jpg", content)
    assert [(s.name, s.content) for s in read(tmp_path / "a.tar")] == [
        ("a.tar/a.jpg", b"1"),
        ("a.tar/a%7E2.jpg", b"2"),
    ]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_member_of_a_tar_that_is_too_large_is_passed_over(tmp_path, mode):
    with tarfile.open(tmp_path / "a.tar", mode) as archive:
        add(archive, "a.jpg", bytes(LIMIT + 1))
        add(archive, "b.jpg")
        add(archive, "c.jpg", bytes(LIMIT))
    assert reasons(tmp_path / "a.tar") == {
        "a.jpg": Reason.TOO_LARGE,
        "b.jpg": None,
        "c.jpg": None,
    }


@pytest.mark.parametrize(("name", "mode"), PACKED)
def test_a_cut_tar_loses_nothing_unseen(tmp_path, name, mode):
    data = tarred(tmp_path / name, mode).read_bytes()
    whole = len(data) if mode != "w" else len(data.rstrip(b"\0")) + 512
    for end in range(1, min(whole, len(data) - 1), 211):
        (tmp_path / name).write_bytes(data[:end])
        *before, last = read(tmp_path / name)
        assert last.name == name
        assert isinstance(last.content, DecodeError)
        for source in before:
            expected = CONTENTS[source.name.removeprefix(f"{name}/")]
            assert isinstance(source.content, DecodeError) or source.content == expected


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress])
def test_damage_of_a_compressed_tar_is_told(tmp_path, pack):
    """Before the frame or behind the last: gzip has one checksum, at its end."""
    data = pack(tarred(tmp_path / "a.tar").read_bytes())
    for at in range(12, len(data), 173):
        changed = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        (tmp_path / "a.tar").write_bytes(changed)
        assert any(reasons(tmp_path / "a.tar").values()), at


def test_broken_headers_of_a_tar(tmp_path):
    data = tarred(tmp_path / "a.tar").read_bytes()
    second = 512 + 512 + 1024
    for at in (second, second + 124, second + 148):
        (tmp_path / "a.tar").write_bytes(data[:at] + b"\x07" + data[at + 1 :])
        assert reasons(tmp_path / "a.tar") == {"in/0.jpg": None, "": Reason.DECODE_FAILED}


@pytest.mark.parametrize(
    "size", [b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777\0", b"junkjunkjun\0"]
)
def test_sizes_that_are_none(tmp_path, size):
    info = tarfile.TarInfo("a.jpg").tobuf()
    header = info[:124] + size + info[136:]
    total = sum(header[:148]) + 8 * 32 + sum(header[156:])
    header = header[:148] + f"{total:06o}\0 ".encode() + header[156:]
    (tmp_path / "a.tar").write_bytes(header + bytes(10240))
    assert "" in reasons(tmp_path / "a.tar")


def test_something_behind_the_end_of_a_tar(tmp_path):
    data = tarred(tmp_path / "a.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(data + data)
    assert reasons(tmp_path / "b.tar") == {**dict.fromkeys(CONTENTS), "": Reason.DECODE_FAILED}


def test_a_name_of_a_gigabyte_is_not_read(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    (tmp_path / "a.tar").write_bytes(info.tobuf() + bytes(1 << 20))
    assert reasons(tmp_path / "a.tar") == {"": Reason.DECODE_FAILED}


def test_a_file_that_vanishes_or_cannot_be_read(tmp_path):
    for archive in (Zip(tmp_path / "no.zip", LIMIT), Tar(tmp_path / "no.tar", LIMIT)):
        with pytest.raises(DecodeError, match="No such file") as caught:
            list(archive.members())
        assert caught.value.reason is Reason.UNREADABLE
