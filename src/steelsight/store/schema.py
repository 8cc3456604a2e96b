"""The file of a store: its tables, its versions, and opening it with an error that helps.

Rows are found by natural keys (hashes, names), never by ids of this file alone, so that files can
be merged later. Times are integer milliseconds UTC of the machine's clock: they order nothing and
identify nothing, because clocks step back.
"""

import errno
from pathlib import Path

import apsw

from steelsight.errors import StoreError

APPLICATION_ID = 0x5374_6C53
"""``StlS`` in the header of the file: another program's database is refused, not migrated."""

BUSY_MS = 5000
"""Patience with another program that has locked the file, such as a ``sqlite3`` shell."""

AGAIN = "give the same command again: it continues"

# ANY holds text as given: TEXT in most cases, a BLOB where it is no valid Unicode (`rows.stored`).
_VERSION_1 = """
CREATE TABLE models (
  id INTEGER PRIMARY KEY,
  sha256 TEXT NOT NULL UNIQUE,            -- of manifest.toml
  name TEXT NOT NULL,                     -- as results carry it
  manifest TEXT NOT NULL,
  folder ANY NOT NULL                     -- where the bundle lay when it was last used
) STRICT;
CREATE TABLE decisions (
  id INTEGER PRIMARY KEY,
  sha256 TEXT NOT NULL UNIQUE,
  text TEXT NOT NULL
) STRICT;
CREATE TABLE setups (                     -- what else decided
  id INTEGER PRIMARY KEY,
  engine TEXT NOT NULL,
  settings TEXT NOT NULL,                 -- JSON
  UNIQUE (engine, settings)
) STRICT;
CREATE TABLE runs (
  id INTEGER PRIMARY KEY,
  key TEXT NOT NULL UNIQUE,
  command ANY NOT NULL,
  source ANY NOT NULL,
  model INTEGER NOT NULL REFERENCES models,
  decision INTEGER NOT NULL REFERENCES decisions,
  setup INTEGER NOT NULL REFERENCES setups,
  mm_per_px REAL CHECK (mm_per_px > 0),
  started_ms INTEGER NOT NULL,
  finished_ms INTEGER,
  complete INTEGER NOT NULL CHECK (complete IN (0, 1))
) STRICT;
CREATE TABLE coils (id INTEGER PRIMARY KEY, name ANY NOT NULL UNIQUE) STRICT;
CREATE TABLE frames (
  id INTEGER PRIMARY KEY,
  sha256 BLOB NOT NULL UNIQUE CHECK (length(sha256) = 32)   -- of the encoded bytes
) STRICT;
CREATE TABLE inspections (
  id INTEGER PRIMARY KEY AUTOINCREMENT,   -- the id of a removed one is never given again
  key BLOB UNIQUE CHECK (length(key) = 32),                 -- NULL: to be inspected again
  frame INTEGER REFERENCES frames,        -- NULL: never read
  model INTEGER NOT NULL REFERENCES models,
  decision INTEGER NOT NULL REFERENCES decisions,
  setup INTEGER NOT NULL REFERENCES setups,
  inspected_ms INTEGER NOT NULL,
  verdict TEXT NOT NULL CHECK (verdict IN ('OK', 'NG', 'UNKNOWN')),
  reason TEXT CHECK (reason IS NOT NULL OR verdict <> 'UNKNOWN'),
  n_defects INTEGER NOT NULL CHECK (n_defects = 0 OR verdict <> 'OK'),
  defect_area_px INTEGER NOT NULL,
  faulty_probability REAL CHECK (faulty_probability IS NOT NULL OR verdict <> 'OK'),
  width INTEGER,                          -- NULL: not decoded
  height INTEGER CHECK ((width IS NULL) = (height IS NULL)),
  class_probabilities TEXT NOT NULL,      -- JSON object, in the order of the types
  notes TEXT NOT NULL,                    -- JSON array
  detail ANY,
  brightness REAL, contrast REAL,         -- mean and standard deviation of grey levels, 0 to 255
  decode_ms REAL, gate_ms REAL, segment_ms REAL, decide_ms REAL
) STRICT;
CREATE TABLE defects (
  id INTEGER PRIMARY KEY,
  inspection INTEGER NOT NULL REFERENCES inspections ON DELETE CASCADE,
  ordinal INTEGER NOT NULL,               -- 0: the first, the largest
  class_id TEXT NOT NULL,
  edge_px INTEGER NOT NULL,               -- least distance of the box to the left or right side
  area_px INTEGER NOT NULL,
  x INTEGER NOT NULL, y INTEGER NOT NULL, w INTEGER NOT NULL, h INTEGER NOT NULL,
  length_px REAL NOT NULL, width_px REAL NOT NULL, orientation_deg REAL NOT NULL,
  probability REAL NOT NULL,
  rle TEXT NOT NULL,
  UNIQUE (inspection, ordinal)
) STRICT;
CREATE TABLE sightings (                  -- a line of results.jsonl
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES runs,
  position INTEGER NOT NULL,
  name ANY NOT NULL,
  origin ANY NOT NULL,                    -- where the bytes can be read again
  inspection INTEGER NOT NULL REFERENCES inspections,
  coil INTEGER REFERENCES coils,
  kept INTEGER,                           -- 1: origin is a copy that was made for people; else NULL
  UNIQUE (run, name)
) STRICT;
CREATE TABLE reviews (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  inspection INTEGER NOT NULL REFERENCES inspections,
  who ANY NOT NULL,
  reviewed_ms INTEGER NOT NULL,
  verdict TEXT NOT NULL CHECK (verdict IN ('OK', 'NG', 'UNKNOWN')),
  note ANY NOT NULL,
  labels TEXT,                            -- JSON object, RLE by type; NULL: nothing said of regions
  undone_ms INTEGER                       -- when the same person took it back
) STRICT;
CREATE INDEX inspections_by_time
  ON inspections (inspected_ms, verdict, n_defects, defect_area_px, frame);
CREATE INDEX inspections_by_verdict ON inspections (verdict, reason);
CREATE INDEX defects_by_edge ON defects (class_id, edge_px / 64, inspection, edge_px);
CREATE INDEX sightings_by_inspection ON sightings (inspection, run, coil);
CREATE INDEX sightings_by_position ON sightings (run, position);
CREATE INDEX sightings_by_coil ON sightings (coil, inspection);
CREATE INDEX sightings_kept ON sightings (inspection) WHERE kept = 1;
CREATE INDEX reviews_by_inspection ON reviews (inspection);
"""

MIGRATIONS: tuple[str, ...] = (_VERSION_1,)
"""Script ``n`` leads from version ``n`` to ``n + 1``; those that were released never change."""


def open_writer(path: Path) -> apsw.Connection:
    """Opens a store for its one writer; makes it, or brings it to this version.

    Raises:
        StoreError: the file cannot be written, is no store, is damaged, or is of a newer version.
    """
    connection = _connect(path, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
    try:
        version = _checked_version(connection, path)
        # FULL: an acknowledged group is on the disk, not in a cache that a power cut empties.
        connection.execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL")
        if version < len(MIGRATIONS):
            _migrate(connection, path)
        connection.execute("PRAGMA foreign_keys=ON; PRAGMA cache_size=-32768")
        # 16 MB of log: hashes touch pages all over the file, each is written back less often.
        connection.wal_autocheckpoint(4000)
        # Opening and reading need no permission to write: say it now, not at the first frame.
        if connection.readonly("main"):
            raise explained(path, apsw.ReadOnlyError("the file may not be written"))
        connection.execute("BEGIN IMMEDIATE; ROLLBACK")
    except apsw.Error as error:
        connection.close(force=True)
        raise explained(path, error) from None
    except StoreError:
        connection.close(force=True)
        raise
    return connection


def open_reader(path: Path) -> apsw.Connection:
    """Opens a store for reading; works beside a writer, and in folders that cannot be written.

    Raises:
        StoreError: there is no such file, it is no store, damaged, or of another version.
    """
    if not path.is_file():
        raise StoreError(f"expected a store at {path}, there is no such file; check the path")
    connection = _connect(path, apsw.SQLITE_OPEN_READONLY)
    try:
        try:
            version = _checked_version(connection, path)
        except (apsw.CantOpenError, apsw.ReadOnlyError):
            # SQLite shares a small file with writers, and may not make it here. Without a log
            # there is no writer, and nothing else to be read than the file itself.
            if path.with_name(f"{path.name}-wal").exists():
                raise
            connection.close()
            connection = _connect(path, apsw.SQLITE_OPEN_READONLY, "?immutable=1")
            version = _checked_version(connection, path)
        if version == 0:
            raise StoreError(f"expected a store at {path}, the file is empty; check the path")
        if version < len(MIGRATIONS):
            raise StoreError(
                f"expected a store of version {len(MIGRATIONS)} at {path}, got version {version}; "
                "inspect into it once with this version of steelsight, which brings it up to date"
            )
        connection.execute("PRAGMA query_only=ON; PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA cache_size=-65536")
    except apsw.Error as error:
        connection.close(force=True)
        raise explained(path, error) from None
    except StoreError:
        connection.close(force=True)
        raise
    return connection


def _connect(path: Path, flags: int, options: str = "") -> apsw.Connection:
    # A URI carries names that are no valid Unicode, too.
    uri = path.absolute().as_uri() + options
    try:
        connection = apsw.Connection(uri, flags=flags | apsw.SQLITE_OPEN_URI)
    except apsw.Error as error:
        raise explained(path, error) from None
    connection.set_busy_timeout(BUSY_MS)
    return connection


def _checked_version(connection: apsw.Connection, path: Path) -> int:
    """Version of the file, 0 for a new one."""
    version = int(connection.pragma("user_version"))
    application = connection.pragma("application_id")
    if application != APPLICATION_ID:
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").get
        if application or version or tables:
            raise StoreError(
                f"expected a steelsight store at {path}, got a SQLite database of another program; "
                "give another file"
            )
    if version > len(MIGRATIONS):
        raise StoreError(
            f"expected a store of version {len(MIGRATIONS)} or older at {path}, got version "
            f"{version}; install a newer steelsight"
        )
    return version


def _migrate(connection: apsw.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Asked again: now nobody else can change it.
        for script in MIGRATIONS[_checked_version(connection, path) :]:
            connection.execute(script)
        connection.pragma("application_id", APPLICATION_ID)
        connection.pragma("user_version", len(MIGRATIONS))
        connection.execute("COMMIT")
    except apsw.Error:
        rollback(connection)
        raise


def rollback(connection: apsw.Connection) -> None:
    """Ends a transaction that failed, if SQLite has not ended it by itself."""
    if not connection.get_autocommit():
        connection.execute("ROLLBACK")


def explained(path: Path, error: Exception) -> StoreError:
    """One line for what SQLite or the system said about a store."""
    said = " ".join(str(error).split()) or type(error).__name__
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    barred = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, apsw.FullError) or number in full:
        line = f"expected space to write {path}, the disk is full; free space and {AGAIN}"
    elif isinstance(error, apsw.NotADBError):
        line = (
            f"expected a steelsight store at {path}, got a file that is no SQLite database; give "
            "another file, or move this one away"
        )
    elif isinstance(error, apsw.CorruptError):
        line = (
            f"expected a sound store at {path}, it is damaged ({said}); restore it from a copy, or "
            f"move it away and {AGAIN.split(':')[0]}: it makes a new one"
        )
    elif isinstance(error, apsw.ReadOnlyError | apsw.CantOpenError | apsw.PermissionsError) or (
        number in barred
    ):
        line = (
            f"expected a file that can be opened and a folder to write to at {path}: {said}; "
            "check the path and its permissions, or give another file"
        )
    elif isinstance(error, apsw.BusyError | apsw.LockedError):
        line = f"expected to write {path}, another program has locked it; close it and {AGAIN}"
    elif isinstance(error, apsw.IOError | OSError):
        line = (
            f"expected to read and write {path}, the disk refused ({said}); check the disk and "
            f"its free space and {AGAIN}"
        )
    else:
        line = (
            f"expected to read and write {path}, got {type(error).__name__}: {said}; check the "
            f"file and {AGAIN}"
        )
    return StoreError(line)
