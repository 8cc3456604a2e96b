import os
import subprocess
import sys
import tempfile
from pathlib import Path

import apsw
import pytest
from tests.store.results import key_of, result

from steelsight.errors import StoreError
from steelsight.store import schema
from steelsight.store.queries import Results
from steelsight.store.store import Store

NOBODY = 65534


def open_both(path):
    """The errors of a writer and a reader, each one line with what to do."""
    errors = []
    for opening in (Store, Results):
        with pytest.raises(StoreError) as caught:
            opening(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value) or str(path.parent) in str(caught.value)
        assert ";" in str(caught.value)
        errors.append(str(caught.value))
    return errors


def read_all(path):
    with Results(path) as results:
        list(results.inspections())
        list(results.defects())
        results.counts()


def add_again(path, run):
    with Store(path) as store:
        run_id = store.begin(run)
        for number in range(200):
            store.known(key_of(number))
            store.add(run_id, number, "/o", result(number), key_of(number)).result()


@pytest.fixture
def filled(path, run):
    with Store(path) as store:
        run_id = store.begin(run)
        for number in range(200):
            store.add(run_id, number, "/o", result(number), key_of(number))
    return path


class TestTables:
    def test_all_are_strict_and_keep_their_references(self, store):
        found = apsw.Connection(str(store.path)).execute(
            "SELECT name, strict FROM pragma_table_list WHERE name NOT LIKE 'sqlite_%'"
        )
        assert {strict for _, strict in found} == {1}
        writer = store._writer
        assert writer.pragma("foreign_keys") == 1
        assert writer.pragma("synchronous") == 2  # FULL
        assert writer.pragma("journal_mode") == "wal"

    def test_readers_cannot_write(self, filled):
        with Results(filled) as results, pytest.raises(apsw.ReadOnlyError):
            results._connection.execute("DELETE FROM sightings")


class TestOpening:
    def test_an_empty_file_becomes_a_store(self, path, run):
        path.touch()
        with pytest.raises(StoreError, match="empty"):
            Results(path)
        with Store(path) as store:
            store.begin(run)

    def test_no_file(self, path):
        with pytest.raises(StoreError, match="no such file"):
            Results(path)

    def test_no_folder(self, tmp_path):
        with pytest.raises(StoreError, match="is none; make it"):
            Store(tmp_path / "missing" / "store.sqlite")

    def test_a_folder(self, tmp_path):
        open_both(tmp_path)

    def test_no_database(self, path):
        path.write_bytes(b"these are no results\n" * 500)
        assert all("no SQLite database" in error for error in open_both(path))
        assert path.read_bytes().startswith(b"these are no results")

    def test_a_database_of_another_program(self, path):
        with apsw.Connection(str(path)) as connection:
            connection.execute("CREATE TABLE songs (title)")
        assert all("another program" in error for error in open_both(path))

    def test_a_newer_version(self, filled):
        with apsw.Connection(str(filled)) as connection:
            connection.pragma("user_version", len(schema.MIGRATIONS) + 1)
        assert all("install a newer steelsight" in error for error in open_both(filled))

    def test_a_damaged_header(self, filled):
        content = bytearray(filled.read_bytes())
        content[100:4096] = b"\xff" * 3996
        filled.write_bytes(content)
        assert all("damaged" in error for error in open_both(filled))

    def test_a_cut_off_file_is_never_an_empty_store(self, filled, run):
        content = filled.read_bytes()
        for share in (0.1, 0.5, 0.9):
            filled.write_bytes(content[: int(len(content) * share)])
            with pytest.raises(StoreError, match="damaged"):
                read_all(filled)
            with pytest.raises(StoreError, match="damaged"):
                add_again(filled, run)

    def test_names_of_files(self, tmp_path, run):
        for name in ("a b?c#d%20.sqlite", "caf\udce9.sqlite", "ü.db"):
            path = tmp_path / name
            with Store(path) as store:
                store.add(store.begin(run), 0, "/o", result(0), key_of(0)).result()
                with Results(path) as results:
                    assert results.count_inspections() == 1
            assert path.exists()

    def test_a_foreign_lock(self, filled, monkeypatch):
        monkeypatch.setattr(schema, "BUSY_MS", 10)
        connection = apsw.Connection(str(filled))
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another program has locked it"):
            Store(filled)
        connection.close(force=True)

    def test_no_handle_is_left(self, filled):
        def handles():
            folder = Path("/proc/self/fd")
            if not folder.is_dir():
                pytest.skip("needs /proc")
            return len(list(folder.iterdir()))

        before = handles()
        for _ in range(3):
            Store(filled).close()
            Results(filled).close()
            with pytest.raises(StoreError):
                Store(filled.parent)
        assert handles() == before


class TestMigrations:
    SECOND = "ALTER TABLE coils ADD COLUMN grade TEXT; UPDATE coils SET grade = 'A';"

    def test_an_older_file_is_brought_up_to_date(self, filled, run, monkeypatch):
        monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, self.SECOND))
        with pytest.raises(StoreError, match="brings it up to date"):
            Results(filled)
        with Store(filled) as store:
            assert store.known(key_of(5)) is not None
            assert store._writer.pragma("user_version") == 2
        with Results(filled) as results:
            assert results.count_inspections() == 200

    def test_a_new_file_takes_all_steps(self, path, run, monkeypatch):
        monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, self.SECOND))
        with Store(path) as store:
            store.begin(run)
            assert store._writer.pragma("user_version") == 2

    def test_one_that_fails_changes_nothing(self, filled, monkeypatch):
        with monkeypatch.context() as patched:
            broken = f"{self.SECOND} SELECT nothing;"
            patched.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
            with pytest.raises(StoreError):
                Store(filled)
        with Store(filled) as store:
            assert store.known(key_of(5)) is not None


READ_ONLY = """
import os, sys
from pathlib import Path
from steelsight.errors import StoreError
from steelsight.store.store import Store
from steelsight.store.queries import Results
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for path in map(Path, sys.argv[1:]):
    try:
        Store(path).close()
        print("written")
    except StoreError as error:
        print(error)
    try:
        with Results(path) as results:
            print(results.count_inspections())
    except StoreError as error:
        print(error)
"""


@pytest.fixture
def barred(run):
    """A store in a folder that may be read and not be written."""
    # Not below tmp_path, whose parents another user may not enter.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Store(folder / "store.sqlite") as store:
            store.add(store.begin(run), 0, "/o", result(0), key_of(0))
        (folder / "store.sqlite").chmod(0o444)
        (folder / "store.sqlite.lock").unlink()
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


class TestReadOnly:
    def ask(self, *paths):
        program = [sys.executable, "-c", READ_ONLY, *map(str, paths)]
        done = subprocess.run(program, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def test_a_read_only_folder_can_be_read(self, barred):
        refused, count = self.ask(barred / "store.sqlite")
        assert "permissions" in refused
        assert count == "1"

    def test_a_read_only_folder_without_store(self, barred):
        refused, missing = self.ask(barred / "new.sqlite")
        assert "permissions" in refused
        assert "no such file" in missing

    def test_what_a_killed_writer_left_is_not_left_out(self, barred, run):
        """Its log cannot be read there: an answer without it would lack results."""
        barred.chmod(0o755)
        path = barred / "store.sqlite"
        path.chmod(0o644)
        with Store(path, group_ms=1) as store:
            store.add(store.begin(run), 1, "/o", result(1), key_of(1)).result()
            log = path.with_name("store.sqlite-wal").read_bytes()
            before = path.read_bytes()
        path.write_bytes(before)
        path.with_name("store.sqlite-wal").write_bytes(log)
        (barred / "store.sqlite.lock").unlink()
        path.chmod(0o444)
        barred.chmod(0o555)
        refused, answer = self.ask(path)
        assert "permissions" in refused
        assert answer == "2" or "permissions" in answer

    def test_a_read_only_file(self, barred):
        barred.chmod(0o777)
        refused, count = self.ask(barred / "store.sqlite")
        assert "permissions" in refused
        assert count == "1"


def test_every_error_says_what_to_do():
    for name in dir(apsw):
        kind = getattr(apsw, name)
        if isinstance(kind, type) and issubclass(kind, apsw.Error):
            line = str(schema.explained(Path("store.sqlite"), kind("one\ntwo")))
            assert "store.sqlite" in line
            assert ";" in line
            assert "\n" not in line
    for number in (28, 122, 27, 13, 30, 5):
        line = str(schema.explained(Path("s"), OSError(number, os.strerror(number))))
        assert ";" in line
    assert "it continues" in str(schema.explained(Path("s"), OSError(28, "full")))
