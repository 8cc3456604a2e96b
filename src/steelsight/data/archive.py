"""Data sets that come as one ``.zip`` file, unpacked with care.

A zip file is text that others wrote: names that lead out of the folder, links, and members that
expand a thousandfold are refused before or while anything is written.
"""

import lzma
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steelsight.data.labels import check_image_name, shown
from steelsight.errors import InputError, LabelError

MAX_BYTES = 64 << 30
"""Unpacked, all members together."""
MAX_MEMBERS = 2_000_000
MAX_RATIO = 200
"""Unpacked to packed, per member: masks of one colour reach about 1,000, but those are small."""
SMALL_BYTES = 64 << 20
"""Members up to this size may have any ratio."""

_PIECE_BYTES = 1 << 20
_DAMAGED = (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error, lzma.LZMAError)


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The folder of a data set: the path itself, or for a ``.zip`` file its unpacked content.

    Args:
        path: a folder or file; anything that is no zip archive is passed through.

    Yields:
        The path, or a temporary folder that goes away at the end. Where the archive holds one
        folder and nothing else, that folder.

    Raises:
        LabelError: an archive that is broken, encrypted, leads out of its folder or grows too big.
        InputError: it cannot be read, or there is no room to unpack it.
    """
    if path.suffix.lower() != ".zip" or not path.is_file():
        if path.is_file() and path.name.lower().endswith((".tar", ".gz", ".tgz", ".7z", ".rar")):
            raise InputError(
                f"{path}: expected a folder, a label file or a .zip archive; unpack it first"
            )
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="steelsight-") as folder:
        root = Path(folder)
        _unpack(path, root)
        entries = list(root.iterdir())
        yield entries[0] if len(entries) == 1 and entries[0].is_dir() else root


def _unpack(path: Path, root: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check(path, members)
            for member in members:
                target = root / member.filename
                if member.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _extract(archive, member, target, path)
    except _DAMAGED as error:
        raise LabelError(
            f"{path}: damaged archive ({shown(str(error))}), expected a .zip; pack it again"
        ) from (error)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be unpacked ({error.strerror}); check the file and the free space in"
            f" {tempfile.gettempdir()}"
        ) from error


def _check(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuses by the archive's own directory, before anything is written."""
    if len(members) > MAX_MEMBERS:
        raise LabelError(f"{path}: {len(members)} members, expected at most {MAX_MEMBERS}")
    names: set[str] = set()
    for member in members:
        name = member.filename
        if name in names:
            raise LabelError(f"{path}, member {shown(name)}: is there twice; pack it again")
        names.add(name)
        check_image_name(name.removesuffix("/"), f"{path}, member {shown(name)}")
        mode = member.external_attr >> 16
        if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and stat.S_IFMT(mode):
            raise LabelError(
                f"{path}, member {shown(name)}: a link or device, expected files and folders only;"
                " pack the file itself"
            )
        if member.flag_bits & 1:
            raise LabelError(f"{path}, member {shown(name)}: encrypted; pack it without a password")
    total = sum(member.file_size for member in members)
    if total > MAX_BYTES:
        raise LabelError(
            f"{path}: {total} bytes unpacked, expected at most {MAX_BYTES}; unpack it yourself and"
            " give the folder"
        )


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, path: Path) -> None:
    """Counts what really comes out: the sizes in the directory may be wrong."""
    limit = max(SMALL_BYTES, MAX_RATIO * member.compress_size)
    written = 0
    with archive.open(member) as source, target.open("xb") as file:
        while piece := source.read(_PIECE_BYTES):
            written += len(piece)
            if written > limit:
                raise LabelError(
                    f"{path}, member {shown(member.filename)}: expands to more than {limit} bytes"
                    f" from {member.compress_size}, expected at most {MAX_RATIO} times; this looks"
                    " like an archive bomb"
                )
            file.write(piece)
