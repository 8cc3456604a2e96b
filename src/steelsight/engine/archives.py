"""Members of ``.zip`` and ``.tar`` archives, one by one, in bounded memory.

An archive is input like any other: a member comes out equal to the byte, or as a ``DecodeError``.
Names are only shown, nothing is written. ``zipfile`` and ``tarfile`` keep an object per member, and
``tarfile`` takes a cut between members for the end: here the few headers are read by ourselves.

Formats: PKWARE's APPNOTE 6.3.10 (with zip64, without several volumes), POSIX.1-2017 pax and ustar,
GNU tar's long names.
"""

import bz2
import gzip
import lzma
import os
import stat
import tempfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from struct import Struct
from typing import IO, Protocol

import apsw

from steelsight.defects import Reason
from steelsight.errors import DecodeError, InputError, escaped

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")

_PIECE_BYTES = 1 << 18
_MOST_SKIPPED_BYTES = 64 << 30
"""Of one member of a compressed ``.tar`` that is too large: more is an attack on our time."""
_MOST_NAME_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a container.

    Attributes:
        inner: its name as stored; anything that the archive's maker wanted.
        nth: 1, or more where a name is there again.
        content: reads it, at most once, before the next member is taken.
    """

    inner: str
    nth: int
    content: Callable[[], bytes | DecodeError]


def is_hidden(inner: str) -> bool:
    """Whether a name on the way begins with a dot, or is macOS's folder of resource forks."""
    parts = inner.split("/")
    return any(
        part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in parts
    )


# -------------------------------------------------------------------------------- names on the disk


class Tally:
    """How often each name was seen: exact, on the disk, in memory that does not grow.

    SQLite in a temporary file that has no name and ends with this object.

    Raises:
        InputError: no room for the file.
    """

    def __init__(self) -> None:
        self._file = _temporary_table("seen(name BLOB PRIMARY KEY, times INTEGER) WITHOUT ROWID")

    def add(self, name: str) -> int:
        """Counts a name; 1 if it is new."""
        sql = "INSERT INTO seen VALUES(?, 1) ON CONFLICT DO UPDATE SET times = times + 1"
        with _room_needed():
            (times,) = next(iter(self._file.execute(f"{sql} RETURNING times", (_blob(name),))))
        return int(times)

    def close(self) -> None:
        """Gives the room back."""
        self._file.close()


def _temporary_table(table: str) -> apsw.Connection:
    with _room_needed():
        file = apsw.Connection("")  # on the disk where it outgrows SQLite's cache
        for setting in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -4000"):
            file.execute(f"PRAGMA {setting}").fetchall()
        file.execute(f"CREATE TABLE {table}")
        file.execute("BEGIN")
    return file


class _room_needed:  # noqa: N801 - used like a function
    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> None:
        if isinstance(error, apsw.Error):
            raise InputError(
                f"expected room for a temporary file in {tempfile.gettempdir()}: "
                f"{escaped(str(error))}; free space, or set TMPDIR to another folder"
            ) from error


def _blob(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


# -------------------------------------------------------------------------------------------- both


class Archive(Protocol):
    """What both kinds do."""

    hidden: int
    """Members that were left out because of their names, in the last walk as far as it went."""

    def count(self) -> int | None:
        """Members that will come out; ``None`` where only reading everything can tell."""
        ...

    def members(self) -> Generator[Member]:
        """One after the other.

        Raises:
            DecodeError: after the last member that can be told, if there should have been more.
        """
        ...


def open_archive(path: Path, max_bytes: int) -> Archive:
    """An archive by the suffix of its name; nothing is read yet.

    Args:
        path: a file.
        max_bytes: larger members are refused.
    """
    return (Zip if path.name.lower().endswith(ZIP_SUFFIXES) else Tar)(path, max_bytes)


def _damaged(what: str, reason: Reason = Reason.DECODE_FAILED) -> DecodeError:
    return DecodeError(reason, f"damaged archive: {what}; pack it again")


def _too_large(size: int, max_bytes: int) -> DecodeError:
    return DecodeError(
        Reason.TOO_LARGE,
        f"expected at most {max_bytes:,} bytes, the archive says {size:,}; raise max_bytes if "
        "meant",
    )


def _unreadable(error: BaseException) -> DecodeError:
    cause = getattr(error, "strerror", None) or " ".join(str(error).split())
    return DecodeError(Reason.UNREADABLE, f"the archive could not be read: {escaped(str(cause))}")


def _read_exactly(file: IO[bytes], size: int, what: str) -> bytes:
    """In pieces: memory grows with what is there, not with what a header claims.

    Raises:
        DecodeError: the file ends before.
    """
    pieces, left = [], size
    while left:
        piece = file.read(min(left, _PIECE_BYTES))
        if not piece:
            raise _damaged(f"{what} ends after {size - left:,} of {size:,} bytes", Reason.TRUNCATED)
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


# --------------------------------------------------------------------------------------------- zip

_END = Struct("<4s4H2LH")
_END_64_AT = Struct("<4sLQL")
_END_64 = Struct("<4sQ2H2L4Q")
_ENTRY = Struct("<4s6H3L5H2L")
_LOCAL = Struct("<4s5H3L2H")
_MOST_END_BYTES = _END.size + (1 << 16)
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED, _UTF_8 = 1 | 1 << 6 | 1 << 13, 1 << 11
_STORED, _DEFLATED, _BZIP2 = 0, 8, 12


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of the archive's directory."""

    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed_bytes: int
    bytes: int
    mode: int
    local_at: int
    at: int
    behind: int

    @property
    def inner(self) -> str:
        # Old archives do not say; their names are the DOS code page's. Both ways back are exact.
        if self.flags & _UTF_8:
            return self.raw_name.decode("utf-8", "surrogateescape")
        return self.raw_name.decode("cp437")

    @property
    def is_folder(self) -> bool:
        # With content it is a damaged name, and must not get lost.
        return self.raw_name.endswith(b"/") and not self.bytes and self.packed_bytes <= 2


class Zip:
    """A ``.zip`` archive; members come sorted by name. See ``Archive``."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self.hidden = 0

    def count(self) -> int:
        """From the directory at the archive's end; all that cannot be told counts as one."""
        members = self.hidden = 0
        try:
            with self._path.open("rb") as file:
                for entry in _Directory(file).entries():
                    if _left_out(file, entry):
                        self.hidden += 1
                    else:
                        members += not entry.is_folder
        except (DecodeError, OSError, ValueError):
            members += 1
        return members

    def members(self) -> Generator[Member]:
        """Sorted on the disk: memory does not grow with their number."""
        broken: DecodeError | None = None
        self.hidden = 0
        try:
            with (
                self._path.open("rb") as file,
                closing(_temporary_table("entry(name BLOB, at INTEGER)")) as table,
            ):
                directory = None
                try:
                    directory = _Directory(file)
                    for entry in directory.entries():
                        if _left_out(file, entry):
                            self.hidden += 1
                        elif not entry.is_folder:
                            row = (_blob(entry.inner), entry.at)
                            with _room_needed():
                                table.execute("INSERT INTO entry VALUES(?, ?)", row)
                except DecodeError as error:
                    broken = error
                if directory is not None:
                    yield from self._sorted(file, directory, table)
        except (OSError, ValueError) as error:  # ValueError: a path that no file can have
            broken = broken or _unreadable(error)
        if broken is not None:
            raise broken

    def _sorted(
        self, file: IO[bytes], directory: "_Directory", table: apsw.Connection
    ) -> Iterator[Member]:
        before, nth = None, 1
        rows = table.execute("SELECT at FROM entry ORDER BY name, at")
        while True:
            with _room_needed():
                row = next(rows, None)
            if row is None:
                return
            entry = directory.entry(int(row[0]))
            nth = nth + 1 if entry.inner == before else 1
            before = entry.inner
            yield Member(before, nth, partial(_unpacked, file, entry, self._max_bytes))


class _Directory:
    """The list of members at the end of a ``.zip`` file.

    Raises:
        DecodeError: there is none.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        size = file.seek(0, os.SEEK_END)
        if not size:
            raise DecodeError(Reason.EMPTY, "expected an archive, received 0 bytes")
        from_ = max(0, size - _MOST_END_BYTES)
        file.seek(from_)
        tail = file.read(_MOST_END_BYTES)
        found = tail.rfind(b"PK\5\6", 0, len(tail) - _END.size + 4)
        if found < 0:
            file.seek(0)
            cut = file.read(2) == b"PK"
            raise (
                _damaged("it has no end, and so no list of its members", Reason.TRUNCATED)
                if cut
                else DecodeError(Reason.NOT_AN_IMAGE, "expected a .zip archive, received none")
            )
        end_at = from_ + found
        _, disk, first_disk, here, count, length, start, _ = _END.unpack_from(tail, found)
        if _FULL_16 in (count, here) or _FULL_32 in (length, start):
            end_at, disk, first_disk, here, count, length, start = self._end_64(
                end_at, disk, first_disk, here, count, length, start
            )
        if disk or first_disk or here != count:
            raise DecodeError(
                Reason.UNSUPPORTED_FORMAT,
                "expected an archive in one file, received one of several volumes; join them",
            )
        # What stands before the archive, such as a program that unpacks it, shifts all offsets.
        self._shift = end_at - length - start
        self._start, self._end, self._count = end_at - length, end_at, count
        if self._start < 0 or self._shift < 0:
            raise _damaged("its end points before its beginning")

    def _end_64(self, end_at: int, *small: int) -> tuple[int, ...]:
        at = end_at - _END_64_AT.size
        self._file.seek(max(0, at))
        where = self._file.read(_END_64_AT.size)
        if at < 0 or len(where) < _END_64_AT.size or not where.startswith(b"PK\6\7"):
            return end_at, *small  # the numbers are what they say
        self._file.seek(max(0, at - _END_64.size))
        end = self._file.read(_END_64.size)
        if len(end) < _END_64.size or not end.startswith(b"PK\6\6"):
            raise _damaged("its end is not where it says")
        _, _, _, _, disk, first_disk, here, count, length, start = _END_64.unpack(end)
        return at - _END_64.size, disk, first_disk, here, count, length, start

    def entries(self) -> Iterator[_Entry]:
        """As listed.

        Raises:
            DecodeError: after the last that can be told, if there should have been more.
        """
        at, told = self._start, 0
        while at < self._end:
            entry = self.entry(at)
            at, told = entry.behind, told + 1
            yield entry
        if at != self._end or told != self._count:
            raise _damaged(f"its list says {self._count} members and holds {told}")

    def entry(self, at: int) -> _Entry:
        """One line.

        Raises:
            DecodeError: there is none at this place.
        """
        self._file.seek(at)
        head = self._file.read(_ENTRY.size)
        if len(head) < _ENTRY.size or not head.startswith(b"PK\1\2"):
            raise _damaged(f"its list of members breaks off at byte {at:,}")
        _, _, _, flags, method, _, _, crc, packed_bytes, size, *rest_of_head = _ENTRY.unpack(head)
        name_bytes, extra_bytes, comment_bytes, _, _, attributes, local_at = rest_of_head
        rest = self._file.read(name_bytes + extra_bytes)
        behind = at + _ENTRY.size + name_bytes + extra_bytes + comment_bytes
        if len(rest) < name_bytes + extra_bytes or behind > self._end:
            raise _damaged(f"its list of members breaks off at byte {at:,}")
        size, packed_bytes, local_at = _sizes_64(rest[name_bytes:], size, packed_bytes, local_at)
        return _Entry(
            raw_name=rest[:name_bytes],
            flags=flags,
            method=method,
            crc=crc,
            packed_bytes=packed_bytes,
            bytes=size,
            mode=attributes >> 16,
            local_at=local_at + self._shift,
            at=at,
            behind=behind,
        )


def _sizes_64(extra: bytes, *small: int) -> tuple[int, ...]:
    """Numbers that are too large for 32 bits stand in an extra field, in this order."""
    while len(extra) >= 4:
        kind, length = int.from_bytes(extra[:2], "little"), int.from_bytes(extra[2:4], "little")
        if kind == 1:
            field = extra[4 : 4 + length]
            numbers = [int.from_bytes(field[i : i + 8], "little") for i in range(0, len(field), 8)]
            large = iter(numbers)
            return tuple(next(large, n) if n == _FULL_32 else n for n in small)
        extra = extra[4 + length :]
    return small


def _left_out(file: IO[bytes], entry: _Entry) -> bool:
    # A damaged name must not hide a frame: both places must say the same.
    if entry.is_folder or not is_hidden(entry.inner):
        return False
    return _local_head(file, entry)[1] == entry.raw_name


def _local_head(file: IO[bytes], entry: _Entry) -> tuple[int, bytes]:
    """Flags and name as they stand before a member's data, where the file then is."""
    file.seek(entry.local_at)
    head = file.read(_LOCAL.size)
    if len(head) < _LOCAL.size or not head.startswith(b"PK\3\4"):
        return 0, b""
    _, _, flags, *_, name_bytes, extra_bytes = _LOCAL.unpack(head)
    name = file.read(name_bytes)
    file.seek(extra_bytes, os.SEEK_CUR)
    return flags, name


def _unpacked(file: IO[bytes], entry: _Entry, max_bytes: int) -> bytes | DecodeError:
    """A member's bytes; equal to what was packed, as far as its CRC-32 can tell."""
    try:
        return _checked(file, entry, max_bytes)
    except DecodeError as error:
        return error
    except OSError as error:
        # bz2's words for damage have no number.
        return _unreadable(error) if error.errno else _damaged("its compression is broken")
    except (ValueError, zlib.error, EOFError):
        return _damaged("its compression is broken")
    except MemoryError:
        return DecodeError(Reason.TOO_LARGE, "not enough memory to unpack; lower max_bytes")


def _checked(file: IO[bytes], entry: _Entry, max_bytes: int) -> bytes:
    if entry.mode and not stat.S_ISREG(entry.mode) and stat.S_IFMT(entry.mode):
        raise DecodeError(Reason.NOT_A_FILE, "expected a file in the archive, found a link or such")
    if entry.bytes > max_bytes:
        raise _too_large(entry.bytes, max_bytes)
    flags, name = _local_head(file, entry)
    if (entry.flags | flags) & _ENCRYPTED:
        raise DecodeError(
            Reason.UNSUPPORTED_FORMAT,
            "expected an archive without a password, received an encrypted member; pack it again",
        )
    if name != entry.raw_name:
        raise _damaged("the member is not where the archive's list says")
    if entry.method not in (_STORED, _DEFLATED, _BZIP2):
        raise DecodeError(
            Reason.UNSUPPORTED_FORMAT,
            f"expected stored, deflate or bzip2 in the archive, received method {entry.method}; "
            "pack it again",
        )
    if entry.method == _STORED:
        if entry.packed_bytes != entry.bytes:
            raise _damaged("the member's two sizes differ")
        data = _read_exactly(file, entry.bytes, "the member")
    else:
        data = _inflated(file, entry)
    if zlib.crc32(data) != entry.crc:
        raise _damaged("the member's checksum (CRC-32) is wrong")
    return data


def _inflated(file: IO[bytes], entry: _Entry) -> bytes:
    """Stops where the member must end, whatever else would come out."""
    unpack = zlib.decompressobj(-15) if entry.method == _DEFLATED else bz2.BZ2Decompressor()
    pieces: list[bytes] = []
    size, left = 0, entry.packed_bytes
    while not unpack.eof:
        if isinstance(unpack, bz2.BZ2Decompressor):
            given, hungry = b"", unpack.needs_input
        else:
            given = unpack.unconsumed_tail
            hungry = not given
        if hungry:
            given = file.read(min(left, _PIECE_BYTES))
            left -= len(given)
        # One byte more than there should be shows that there is too much.
        piece = unpack.decompress(given, min(_PIECE_BYTES, entry.bytes - size + 1))
        if not given and not piece and hungry and not unpack.eof:
            raise _damaged(
                f"the member ends after {size:,} of {entry.bytes:,} bytes", Reason.TRUNCATED
            )
        pieces.append(piece)
        size += len(piece)
        if size > entry.bytes:
            raise _damaged(f"the member expands to more than the {entry.bytes:,} bytes it says")
    if size != entry.bytes:
        raise _damaged(f"the member has {size:,} bytes and says {entry.bytes:,}")
    return b"".join(pieces)


# --------------------------------------------------------------------------------------------- tar

_BLOCK_BYTES = 512
_MOST_EXTENDED_BYTES = 1 << 20
_FILES, _FOLDERS, _SPECIAL = b"0\x007", b"5D", b"12346"
_EXTENDED, _GLOBAL, _LONG_NAME, _IGNORED = b"xX", b"g", b"L", b"KV"


@dataclass(frozen=True, slots=True)
class _Header:
    raw_name: bytes
    kind: bytes
    bytes: int


class Tar:
    """A ``.tar`` archive, also compressed; members come as stored. See ``Archive``.

    What compresses it is told by its first bytes.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self.hidden = 0

    def count(self) -> None:
        """Nothing lists the members."""

    def members(self) -> Generator[Member]:
        """Read from the beginning to the end, once."""
        self.hidden = 0
        try:
            with self._path.open("rb") as file, closing(_Stream(file)) as stream:
                yield from self._members(stream)
        except (OSError, ValueError) as error:
            raise _unreadable(error) from error

    def _members(self, stream: "_Stream") -> Iterator[Member]:
        with closing(Tally()) as names:
            while (header := _next_header(stream)) is not None:
                inner = header.raw_name.decode("utf-8", "surrogateescape")
                stream.begin(header.bytes)
                # With content it is a damaged name, and must not get lost.
                if header.kind in _FOLDERS or (inner.endswith("/") and not header.bytes):
                    pass
                elif is_hidden(inner):
                    self.hidden += 1
                else:
                    nth = names.add(inner)
                    yield Member(inner, nth, partial(_taken, stream, header, self._max_bytes))
                stream.skip()
        stream.check_rest()


def _taken(stream: "_Stream", header: _Header, max_bytes: int) -> bytes | DecodeError:
    if header.kind in _SPECIAL:
        return DecodeError(
            Reason.NOT_A_FILE, "expected a file in the archive, found a link or a device"
        )
    if header.kind not in _FILES:
        return DecodeError(
            Reason.UNSUPPORTED_FORMAT,
            f"expected a plain file in the archive, received kind {escaped(str(header.kind))}; "
            "pack it again without --sparse or --multi-volume",
        )
    if header.bytes > max_bytes:
        return _too_large(header.bytes, max_bytes)
    try:
        return stream.take()
    except DecodeError as error:
        return error
    except MemoryError:
        return DecodeError(Reason.TOO_LARGE, "not enough memory to unpack; lower max_bytes")


class _Stream:
    """The bytes of a ``.tar``, unpacked as they are needed, forwards only."""

    def __init__(self, file: IO[bytes]) -> None:
        magic = file.read(6)
        if not magic:
            raise DecodeError(Reason.EMPTY, "expected an archive, received 0 bytes")
        file.seek(0)
        self._plain = False
        self._stream: IO[bytes] | gzip.GzipFile | lzma.LZMAFile | bz2.BZ2File
        if magic.startswith(b"\x1f\x8b"):
            self._stream = gzip.GzipFile(fileobj=file)
        elif magic == b"\xfd7zXZ\0":
            self._stream = lzma.LZMAFile(file)  # noqa: SIM115 - closed by close
        elif magic.startswith(b"BZh"):
            self._stream = bz2.BZ2File(file)
        else:
            self._stream, self._plain = file, True
        self._left = self._padding = 0
        self._broken: DecodeError | None = None

    def close(self) -> None:
        self._stream.close()

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; fewer only at the end.

        Raises:
            DecodeError: the compression is damaged or ends.
        """
        try:
            if self._broken is None:
                return self._stream.read(size)
        except EOFError:
            self._broken = _damaged("it breaks off", Reason.TRUNCATED)
        except (zlib.error, lzma.LZMAError, ValueError) as error:
            self._broken = _damaged(f"its compression is broken: {escaped(str(error))}")
        except OSError as error:
            self._broken = (
                _unreadable(error)
                if error.errno
                else _damaged(f"its compression is broken: {escaped(str(error))}")
            )
        # What a decompressor gives after an error is worth nothing.
        raise self._broken

    def begin(self, size: int) -> None:
        """A member's data come now."""
        self._left, self._padding = size, -size % _BLOCK_BYTES

    def take(self) -> bytes:
        """The member's data."""
        pieces = []
        while self._left:
            pieces.append(self._piece())
        return b"".join(pieces)

    def skip(self) -> None:
        """To the next header."""
        left = self._left + self._padding
        if self._plain and left > _PIECE_BYTES:
            # The last byte is read: a cut must be noticed.
            self._stream.seek(left - 1, os.SEEK_CUR)
            self._left, self._padding = 1, 0
        elif left > _MOST_SKIPPED_BYTES:
            raise DecodeError(
                Reason.TOO_LARGE,
                f"the archive holds a member of {left:,} bytes; what follows was not looked at",
            )
        self._left, self._padding = self._left + self._padding, 0
        while self._left:
            self._piece()

    def check_rest(self) -> None:
        """After the end mark: only zeros, and a right checksum of the compression.

        Raises:
            DecodeError: otherwise.
        """
        for _ in range(_MOST_SKIPPED_BYTES // _PIECE_BYTES):
            piece = self.read(_PIECE_BYTES)
            if not piece:
                return
            if piece.count(0) != len(piece):
                raise _damaged("something follows its end, which was not looked at")
        raise _damaged("it does not end")

    def _piece(self) -> bytes:
        piece = self.read(min(self._left, _PIECE_BYTES))
        if not piece:
            raise _damaged(f"it breaks off {self._left:,} bytes early", Reason.TRUNCATED)
        self._left -= len(piece)
        return piece


def _next_header(stream: _Stream) -> _Header | None:
    """The next member's, with what extends it; ``None`` at the end mark.

    Raises:
        DecodeError: there is none, and no end mark either.
    """
    said: dict[str, bytes] = {}
    while True:
        block = _read_exactly_from(stream, _BLOCK_BYTES)
        if block.count(0) == _BLOCK_BYTES:
            if said:
                raise _damaged("it ends where a member should begin", Reason.TRUNCATED)
            return None
        header = _header(block)
        if header.kind not in _EXTENDED + _GLOBAL + _LONG_NAME + _IGNORED:
            return _extended(header, said)
        if header.bytes > _MOST_EXTENDED_BYTES:
            raise _damaged(f"a name or note of {header.bytes:,} bytes")
        stream.begin(header.bytes)
        text = stream.take()
        stream.skip()
        if header.kind in _EXTENDED:
            said |= _pax(text)
        elif header.kind in _LONG_NAME:
            said["path"] = text.rstrip(b"\0")


def _read_exactly_from(stream: _Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = stream.read(size - len(data))
        if not piece:
            raise _damaged("it breaks off without its end mark", Reason.TRUNCATED)
        data += piece
    return data


def _header(block: bytes) -> _Header:
    said = _number(block[148:156])
    if said != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise DecodeError(
            Reason.DECODE_FAILED,
            "expected a .tar archive, received something else or a damaged one; pack it again",
        )
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    kind = block[156:157]
    # Links and folders have no data, whatever their size says; POSIX on types 1 to 6.
    size = 0 if kind in b"123456" else _number(block[124:136])
    return _Header(name, kind, size)


def _number(field: bytes) -> int:
    """Octal text, or binary where the first bit is set."""
    if field[0] & 0x80:
        number = int.from_bytes(field, "big") - (1 << 8 * len(field) - 1)
    else:
        text = field.strip(b" \0")
        number = -1 if text.strip(b"01234567") else int(text or b"0", 8)
    if not 0 <= number < 1 << 62:
        raise _damaged("a number in its headers is none")
    return number


def _pax(text: bytes) -> dict[str, bytes]:
    """Records of the form ``length key=value``, and a line end."""
    records: dict[str, bytes] = {}
    while text.strip(b"\0"):
        digits, space, _ = text.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        record = text[:length]
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        if not space or not equals or not record.endswith(b"\n") or length > len(text):
            raise _damaged("a note in its headers is broken")
        records[key.decode("utf-8", "replace")] = value[:-1]
        text = text[length:]
    return records


def _extended(header: _Header, said: dict[str, bytes]) -> _Header:
    name, size, kind = header.raw_name, header.bytes, header.kind
    name = said.get("path", name)
    if "size" in said and kind not in _SPECIAL + _FOLDERS:
        if not said["size"].isdigit() or len(said["size"]) > 18:
            raise _damaged("a size in its headers is none")
        size = int(said["size"])
    if any(key.startswith("GNU.sparse.") for key in said):
        kind = b"S"
    return _Header(name, kind, size)
