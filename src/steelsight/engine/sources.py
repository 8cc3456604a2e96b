"""What there is to inspect: files, folders, lists, archives, Parquet tables, videos; as a stream.

The order is fixed: the same inputs give the same frames in the same order, as often as they are
asked for. Memory does not grow with their number: folders are walked one directory at a time, lists
and archives are put in order on the disk, a member's bytes are read when its turn comes.

A frame has a name, unique in the run, and an origin, where it can be read again:

* ``/coils/17/a.jpg``: a file;
* ``/coils/17.zip::line1/a.jpg``: a member of an archive, ``::2`` behind it where the name is there
  twice; ``/coils/17.parquet::123``: a row, from 0; ``/coils/17.mp4::1``: a frame, from 1.

In an origin ``%`` and ``:`` of names, and what cannot be printed, are percent-encoded: the first
``::`` always ends the path.
"""

import hashlib
import os
import re
import stat
import sys
import tempfile
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote, unquote_to_bytes

from numpy.typing import NDArray

from steelsight.defects import Reason
from steelsight.engine.archives import TAR_SUFFIXES, ZIP_SUFFIXES, Tally, open_archive
from steelsight.errors import DecodeError, InputError, SteelsightError, escaped
from steelsight.imaging import IMAGE_SUFFIXES, DecodePolicy, read_bytes

Pixels = NDArray[Any]
"""``(H, W)`` grey or ``(H, W, 3)`` RGB; uint8, or uint16 from 16-bit videos."""

LIST_SUFFIXES = (".txt", ".lst")
ARCHIVE_SUFFIXES = ZIP_SUFFIXES + TAR_SUFFIXES
PARQUET_SUFFIXES = (".parquet",)
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".mpg", ".mpeg", ".webm", ".m4v")
CONTAINER_SUFFIXES = ARCHIVE_SUFFIXES + PARQUET_SUFFIXES + VIDEO_SUFFIXES
STDIN = Path("-")

_MOST_LINE_BYTES = 1 << 16
_SEPARATOR = "::"
_DEFAULT_POLICY = DecodePolicy()


@dataclass(frozen=True, slots=True)
class Source:
    """One thing that must get a result line.

    Attributes:
        name: unique in the run: the path below the inspected folder, with ``/``; see
            ``shown_name``. A member's is ``17.zip/line1/a.jpg``, a row's ``17.parquet/000123``, a
            video frame's ``17.mp4#000001``.
        origin: where it can be read again, see ``read_origin``.
        path: a file, to be read when its turn comes; ``None`` for parts of a container.
        content: of a part of a container: encoded bytes, pixels, or why there are none.
    """

    name: str
    origin: str
    path: Path | None = None
    content: bytes | Pixels | DecodeError | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a container.

    Attributes:
        tail: what its name has behind the container's.
        key: what its origin has behind ``::``.
        content: reads it, before the next part is taken.
    """

    tail: str
    key: str
    content: Callable[[], bytes | Pixels | DecodeError]


@dataclass(frozen=True, slots=True)
class Shard:
    """One of ``count`` parts of all frames, by a hash of the name: the same on every machine.

    Attributes:
        index: from 1.
        count: of all parts.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``2/4``.

        Raises:
            InputError: anything else.
        """
        found = re.fullmatch("([0-9]{1,6})/([0-9]{1,6})", text)
        index, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= index <= count:
            raise InputError(f"expected a shard such as 2/4, the second of four, got {text!r}")
        return cls(index, count)

    def holds(self, name: str) -> bool:
        """Whether the frame of this name belongs to the shard."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1


class Sources:
    """Everything under the given paths, frame by frame, in a fixed order; iterate again at will.

    Folders are walked to their ends, sorted by full name, without names that begin with a dot.
    Archives, Parquet tables and videos are opened wherever they are. A ``.txt`` or ``.lst`` that is
    given by name, or ``-`` for standard input, is a list of paths, as good as those paths given one
    by one. Whatever is reached twice comes once. Also listed, and later UNKNOWN: folders named like
    an image, links to folders, folders that cannot be read, what a list names and nobody finds.

    Args:
        inputs: files, folders, lists.
        leave_out: a folder not to walk into (the run's own output).
        shard: only this part of the frames.
        policy: its ``max_bytes`` holds for members of archives, too.

    Raises:
        InputError: a path does not exist, a list is none, or there is no frame at all.
    """

    def __init__(
        self,
        inputs: Sequence[Path],
        leave_out: Path | None = None,
        shard: Shard | None = None,
        policy: DecodePolicy = _DEFAULT_POLICY,
    ) -> None:
        self._shard = shard
        self._policy = policy
        self._left_out = str(leave_out.resolve()) if leave_out else None
        self._census: tuple[int | None, int] | None = None
        self._hidden_in_tar: dict[str, int] = {}
        folders, files, lists = _sorted_out(inputs)
        self._listed = _Listed(lists, folders)
        folders |= self._listed.folders
        self._folders = folders
        self._files = files
        self._roots = sorted(
            (_root_key(root, root in folders), root)
            for root in folders | files
            if not self._is_walked(root)
        )
        places = [*folders, *map(os.path.dirname, files), *self._listed.places]
        base = os.path.commonpath(places) if places else "/"
        self._base = base.rstrip("/") + "/"
        self._check(inputs)

    def _check(self, inputs: Sequence[Path]) -> None:
        """Finds out what is wrong before the first frame."""
        for file in sorted(self._files):
            if file.lower().endswith(PARQUET_SUFFIXES) and _is_file(file):
                from steelsight.engine.parquet import check_columns

                check_columns(Path(file))
        for path in self._paths():
            if path.lower().endswith(VIDEO_SUFFIXES):  # a process only to look is too much
                return
            with closing(self._below(path, lambda _: False, every=True)) as below:
                if next(below, None) is not None:
                    return
        raise InputError(
            f"expected images in {', '.join(map(str, inputs))}, found no file; check the path"
        )

    @property
    def hidden(self) -> int:
        """Files left out because a name on their way begins with a dot.

        Those in ``.tar`` archives are counted as the archives are read.
        """
        return self._counted()[1] + sum(self._hidden_in_tar.values())

    def count(self) -> int | None:
        """How many there will be, from names and the directories of containers.

        ``None`` where only reading can tell: ``.tar`` archives, videos, parts of containers in a
        shard. Damage that shows later can change it.
        """
        return self._counted()[0]

    def names(self) -> Generator[str]:
        """The names alone; members of archives stay packed, videos are decoded all the same."""
        for path in self._paths():
            with closing(self._below(path, lambda _: False, every=True)) as below:
                for source in below:
                    if self._shard is None or self._shard.holds(source.name):
                        yield source.name

    def __iter__(self) -> Generator[Source]:
        wanted = self._shard.holds if self._shard else lambda _: True
        for path in self._paths():
            with closing(self._below(path, wanted)) as below:
                yield from below

    # ------------------------------------------------------------------------------ which files

    def _paths(self, on_hidden: Callable[[str], None] | None = None) -> Iterator[str]:
        for _, root in self._roots:
            if root in self._folders:
                yield from _walk(root, self._left_out, on_hidden)
            else:
                yield root
        for path in self._listed:
            if path not in self._files and not self._is_walked(path):
                yield path

    def _is_walked(self, path: str) -> bool:
        """Whether the walk through a given folder comes across this path."""
        if self._left_out and _is_below(path, self._left_out):
            return False
        here = path
        while here != "/":
            here, name = os.path.split(here)
            if name.startswith("."):
                return False
            if here in self._folders:
                return True
        return False

    def _counted(self) -> tuple[int | None, int]:
        if self._census is None:
            self._census = self._count()
        return self._census

    def _count(self) -> tuple[int | None, int]:
        found = hidden = 0
        unknown = False

        def on_hidden(path: str) -> None:
            nonlocal hidden
            hidden += _files_below(path)

        for path in self._paths(on_hidden):
            if not path.lower().endswith(CONTAINER_SUFFIXES) or not _is_file(path):
                found += self._shard is None or self._shard.holds(self._name(path))
                continue
            parts, hidden_parts = self._count_parts(Path(path))
            hidden += hidden_parts
            unknown |= parts is None or self._shard is not None
            found += parts or 0
        return None if unknown else found, hidden

    def _count_parts(self, path: Path) -> tuple[int | None, int]:
        name = path.name.lower()
        if name.endswith(ARCHIVE_SUFFIXES):
            archive = open_archive(path, self._policy.max_bytes)
            return archive.count(), archive.hidden
        if name.endswith(PARQUET_SUFFIXES):
            from steelsight.engine.parquet import count_rows

            return count_rows(path), 0
        return None, 0

    # --------------------------------------------------------------------------- what is in them

    def _name(self, path: str) -> str:
        below = path.removeprefix(self._base)
        # A folder that cannot be read, and is all that was given.
        return _shown(below if below != path else path.rpartition("/")[2])

    def _below(
        self, path: str, wanted: Callable[[str], bool], every: bool = False
    ) -> Generator[Source]:
        """A file itself, or what is in a container.

        Args:
            path: the file.
            wanted: by name; others are left out, and not read.
            every: others come, too, without content.
        """
        name = self._name(path)
        origin = _plain(path)
        if not path.lower().endswith(CONTAINER_SUFFIXES) or not _is_file(path):
            if every or wanted(name):
                yield Source(name, origin, Path(path))
            return
        with closing(self._parts_or_error(Path(path))) as parts:
            for part in parts:
                part_name = name + part.tail
                part_origin = origin + (_SEPARATOR + part.key if part.key else "")
                if wanted(part_name):
                    yield Source(part_name, part_origin, content=part.content())
                elif every:
                    yield Source(part_name, part_origin)

    def _parts_or_error(self, path: Path) -> Generator[Part]:
        """The parts, and in the end what kept the rest from coming, under the container's name."""
        try:
            yield from self._parts(path)
            return
        except DecodeError as error:
            broken = error
        except SteelsightError:
            raise
        except Exception as error:  # a library on damaged input: nothing may get lost
            cause = escaped(" ".join(str(error).split()))
            broken = DecodeError(
                Reason.DECODE_FAILED,
                f"expected to read {escaped(path.name)}, got {type(error).__name__}: {cause}",
            )
        yield Part("", "", partial(_same, broken))

    def _parts(self, path: Path) -> Generator[Part]:
        if path.name.lower().endswith(ARCHIVE_SUFFIXES):
            archive = open_archive(path, self._policy.max_bytes)
            with closing(archive.members()) as members:
                try:
                    for member in members:
                        again = f"{_SEPARATOR}{member.nth}" if member.nth > 1 else ""
                        tail = "/" + _shown_part(member.inner, member.nth)
                        yield Part(tail, _plain(member.inner) + again, member.content)
                finally:
                    if path.name.lower().endswith(TAR_SUFFIXES):
                        self._hidden_in_tar[str(path)] = archive.hidden
        else:
            yield from _rows_or_frames(path)


def _rows_or_frames(path: Path) -> Generator[Part]:
    if path.name.lower().endswith(PARQUET_SUFFIXES):
        from steelsight.engine.parquet import rows

        with closing(rows(path)) as found, closing(Tally()) as names:
            for row in found:
                tail = _shown_part(row.name, names.add(row.name))
                yield Part(f"/{tail}", str(row.number), row.content)
    else:
        from steelsight.engine.video import frames

        with closing(frames(path)) as decoded:
            for number, content in enumerate(decoded, 1):
                yield Part(f"#{number:06d}", str(number), partial(_same, content))


def _same(content: Pixels | DecodeError) -> Pixels | DecodeError:
    return content


def read_origin(origin: str, policy: DecodePolicy = _DEFAULT_POLICY) -> bytes | Pixels:
    """Reads one frame again.

    Args:
        origin: of a ``Source``.
        policy: limits.

    Returns:
        Encoded bytes, or pixels of a video's frame.

    Raises:
        DecodeError: what is there now cannot be read.
        InputError: this is no origin, or the container holds no such frame.
    """
    _, separator, key = origin.partition(_SEPARATOR)
    path = path_of(origin)
    if not path.is_absolute():
        raise InputError(f"expected an absolute path, optionally ::member, got {origin!r}")
    if not separator:
        return read_bytes(path, policy=policy)
    name = path.name.lower()
    if not name.endswith(CONTAINER_SUFFIXES):
        raise InputError(f"expected a path, or the path of a container ::member, got {origin!r}")
    if not _is_file(str(path)):
        raise DecodeError(Reason.UNREADABLE, f"{_plain(str(path))} is not there any more")
    content: bytes | Pixels | DecodeError | None
    if name.endswith(ARCHIVE_SUFFIXES):
        content = _read_member(path, key, policy)
    elif not key.isdigit():
        content = None
    elif name.endswith(PARQUET_SUFFIXES):
        from steelsight.engine.parquet import read_row

        content = read_row(path, int(key))
    else:
        from steelsight.engine.video import read_frame

        content = read_frame(path, int(key))
    if content is None:
        raise InputError(f"{_plain(str(path))} holds no {escaped(key)} any more: it was changed")
    if isinstance(content, DecodeError):
        raise content
    return content


def path_of(origin: str) -> Path:
    """The file of an origin, or its container."""
    return Path(os.fsdecode(unquote_to_bytes(_bytes_of(origin.partition(_SEPARATOR)[0]))))


def _read_member(path: Path, key: str, policy: DecodePolicy) -> bytes | DecodeError | None:
    inner, _, nth = key.partition(_SEPARATOR)
    with closing(open_archive(path, policy.max_bytes).members()) as members:
        for member in members:
            if _plain(member.inner) == inner and str(member.nth) == (nth or "1"):
                return member.content()
    return None


# ------------------------------------------------------------------------------------------ inputs


def _sorted_out(inputs: Sequence[Path]) -> tuple[set[str], set[str], list[str]]:
    """Folders, files and lists, as absolute paths without links on the way."""
    folders: set[str] = set()
    files: set[str] = set()
    lists: list[str] = []
    for given in inputs:
        if given == STDIN:
            if str(given) not in lists:
                lists.append(str(given))
            continue
        # Path.exists raises where the name is too long.
        if not os.path.exists(given):  # noqa: PTH110
            raise InputError(f"expected an image or a folder, {given} does not exist")
        if given.is_dir():
            folders.add(str(given.resolve()))
            continue
        path = str(given.parent.resolve() / given.name)
        if given.suffix.lower() in LIST_SUFFIXES and _is_file(path):
            if path not in lists:
                lists.append(path)
        else:
            files.add(path)
    return folders, files, lists


def _root_key(root: str, is_folder: bool) -> str:
    return root + "/" if is_folder or root.lower().endswith(CONTAINER_SUFFIXES) else root


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116
    except (OSError, ValueError):
        return False


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


class _Listed:
    """The paths that lists name, each once, in order; kept on the disk.

    Standard input can be read only once, and a list may change during a run.

    Attributes:
        folders: what they name that are folders.
        places: a folder that has all others below it, if there is one.
    """

    def __init__(self, lists: Sequence[str], given: set[str]) -> None:
        self.folders: set[str] = set()
        self.places: list[str] = []
        self._file: IO[bytes] | None = None
        if not lists:
            return
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - ends with this object
            weakref.finalize(self, self._file.close)
            with closing(Tally()) as seen:
                for path in (path for one in lists for path in _paths_in(one)):
                    if seen.add(path) == 1:
                        self._note(path, given)
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"expected to keep a list in {tempfile.gettempdir()}: {error.strerror}; free "
                "space, or set TMPDIR to another folder"
            ) from error

    def _note(self, path: str, given: set[str]) -> None:
        assert self._file is not None  # noqa: S101 - made before
        if os.path.isdir(path):  # noqa: PTH112
            folder = os.path.realpath(path)
            if folder not in given:
                self.folders.add(folder)
            return
        self._file.write(os.fsencode(path) + b"\n")
        place = path.rpartition("/")[0] or "/"
        if not self.places:
            self.places.append(place)
        elif not _is_below(place, self.places[0]):
            self.places[0] = os.path.commonpath([place, self.places[0]])

    def __iter__(self) -> Iterator[str]:
        if self._file is None:
            return
        # Several may read at once: each has a place of its own.
        at, rest = 0, b""
        while block := os.pread(self._file.fileno(), 1 << 16, at):
            at += len(block)
            *lines, rest = (rest + block).split(b"\n")
            yield from map(os.fsdecode, lines)


def _paths_in(list_path: str) -> Iterator[str]:
    """Absolute paths that a list names: relative to its folder, those on ``-`` to the current."""
    if list_path == str(STDIN):
        yield from _paths_of(sys.stdin.buffer, os.getcwd(), "standard input")  # noqa: PTH109
        return
    try:
        with Path(list_path).open("rb") as file:
            yield from _paths_of(file, str(Path(list_path).parent), list_path)
    except OSError as error:
        raise InputError(f"expected a list of paths, {list_path}: {error.strerror}") from error


def _paths_of(file: IO[bytes], folder: str, where: str) -> Iterator[str]:
    resolved = lru_cache(maxsize=1024)(os.path.realpath)
    number = 0
    while line := file.readline(_MOST_LINE_BYTES):
        number += 1
        if number == 1:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise InputError(f"{where}: expected UTF-8, received UTF-16; save it as UTF-8")
            line = line.removeprefix(b"\xef\xbb\xbf")
        line = line.rstrip(b"\r\n")
        if not line.strip() or line.lstrip().startswith(b"#"):
            continue
        if b"\0" in line or len(line) >= _MOST_LINE_BYTES - 2:
            raise InputError(
                f"{where}, line {number}: expected one path a line, received binary data or a line "
                "without end"
            )
        path = os.path.join(folder, os.fsdecode(line))  # noqa: PTH118
        place, name = os.path.split(path.rstrip("/") or "/")
        if name in ("", ".", ".."):
            yield os.path.realpath(path)
        else:
            yield os.path.join(resolved(place), name)  # noqa: PTH118


# --------------------------------------------------------------------------------------- the walk


def _walk(
    root: str, left_out: str | None, on_hidden: Callable[[str], None] | None
) -> Iterator[str]:
    """Files below a folder, sorted by full name; the names of one way down are in memory.

    Args:
        root: the folder, without links.
        left_out: a folder not to walk into.
        on_hidden: told of each entry that is left out because of its name.
    """
    # The place of each line of a directory, the deepest last.
    way = [(root, iter(_entries(root, on_hidden, listed=False)))]
    while way:
        folder, entries = way[-1]
        entry = next(entries, None)
        if entry is None:
            way.pop()
            continue
        path = folder.rstrip("/") + "/" + entry.rstrip("/\0") if entry else folder
        if not entry.endswith("/"):
            yield path
        elif path != left_out:
            listed = _is_named_like_an_image(path)
            way.append((path, iter(_entries(path, on_hidden, listed))))


def _entries(folder: str, on_hidden: Callable[[str], None] | None, listed: bool) -> Iterable[str]:
    """Names in one directory, in the order of the full names that begin with them.

    A folder to walk into ends in ``/``; a container, whose parts follow ``/``, in ``/`` and NUL. An
    empty name is the folder itself, if not ``listed`` already: it cannot be read to its end.
    """
    entries: list[str] = []
    unreadable = False
    try:
        with os.scandir(folder) as found:
            for entry in found:
                name = entry.name
                if name.startswith("."):
                    if on_hidden is not None:
                        on_hidden(entry.path)
                    continue
                if not _is_real_folder(entry):
                    is_container = name.lower().endswith(CONTAINER_SUFFIXES)
                    entries.append(name + "/\0" if is_container else name)
                    continue
                if _is_named_like_an_image(name):
                    entries.append(name)
                entries.append(name + "/")
    except OSError:
        unreadable = True
    entries.sort()
    if unreadable and not listed:
        entries.append("")
    return entries


def _is_named_like_an_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def _is_real_folder(entry: "os.DirEntry[str]") -> bool:
    with suppress(OSError):
        return entry.is_dir(follow_symlinks=False)
    return False


def _files_below(path: str) -> int:
    """One for a file, all of them for a folder."""
    if os.path.islink(path) or not os.path.isdir(path):  # noqa: PTH112, PTH114
        return 1
    return sum(len(files) for _, _, files in os.walk(path))


# ------------------------------------------------------------------------------------------- names


def shown_name(path: Path) -> str:
    """A relative path as results carry it: with ``/``, on one line, valid in every output.

    Names with control characters, backslashes, a drive-like start, or bytes that are no UTF-8 are
    percent-encoded as a whole; all others stay as they are.
    """
    return _shown(path.as_posix())


# Also encoded: a plain name that could be the encoded form of another one.
_STRANGE = re.compile(r"^[A-Za-z]:|%[0-9A-Fa-f]{2}|\\")


def _shown(name: str) -> str:
    return name if name.isprintable() and not _STRANGE.search(name) else quote(_bytes_of(name))


def _shown_part(inner: str, nth: int = 1) -> str:
    """The name of a container's part, which its maker chose, as results carry it.

    What leads elsewhere is percent-encoded as a whole, with its ``/``. The second of the same name
    is ``a%7E2.jpg``: no other name is shown like this.
    """
    parts = inner.split("/")
    if {"", ".", ".."} & set(parts):
        shown = quote(_bytes_of(inner), safe="") or "%00"
        shown = shown if shown.strip(".") else shown.replace(".", "%2E")
    else:
        shown = _shown(inner)
    if nth > 1:
        stem, suffix = os.path.splitext(shown)  # noqa: PTH122
        shown = f"{stem}%7E{nth}{suffix}"
    return shown


def _plain(name: str) -> str:
    """For origins: any name as text without ``:``, exactly, and mostly as it is."""
    if name.isprintable() and "%" not in name and ":" not in name:
        return name
    return "".join(
        c if c.isprintable() and c not in "%:" else quote(_bytes_of(c), safe="") for c in name
    )


def _bytes_of(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
