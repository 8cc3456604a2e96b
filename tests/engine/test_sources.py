"""What there is to inspect: every frame once, in a fixed order, under a name of its own."""

import io
import os
import re
import socket
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from steelsight.data.formats.severstal import CsvForm, write_csv
from steelsight.data.labels import FrameLabels, is_image_name
from steelsight.defects import Reason
from steelsight.engine import sources as sources_module
from steelsight.engine.batch import inspect_sources
from steelsight.engine.sources import Shard, Source, Sources, read_origin, shown_name
from steelsight.errors import DecodeError, InputError

linux = pytest.mark.skipif(sys.platform != "linux", reason="names with any bytes are Linux's")


def found(inputs: list[Path], leave_out: Path | None = None) -> list[Source]:
    """All sources; what else is said about them must agree."""
    sources = Sources(inputs, leave_out=leave_out)
    taken = list(sources)
    assert list(map(told, sources)) == list(map(told, taken))
    assert list(sources.names()) == names_of(taken)
    assert len(set(names_of(taken))) == len(taken) == len({s.origin for s in taken})
    assert sources.count() in (len(taken), None)
    return taken


def told(source: Source) -> tuple[object, ...]:
    error = isinstance(source.content, DecodeError)
    content = str(source.content) if error else source.content
    return source.name, source.origin, source.path, content


def names_of(sources: list[Source]) -> list[str]:
    return [source.name for source in sources]


def touch(folder: Path, *relative: str) -> None:
    for name in relative:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def pack(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name.encode())


def pack_tar(path: Path, *names: str) -> None:
    with tarfile.open(path, "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name.encode())
            archive.addfile(info, io.BytesIO(name.encode()))


# ---------------------------------------------------------------------------------- which files


def test_every_file_sorted_by_name(tmp_path):
    touch(tmp_path, "b.jpg", "a.jpg", "B.jpg", "10.png", "9.png", "notes.txt", "deep/er/c.jpg")
    touch(tmp_path, "deep/a.jpg", "noextension", "deeq.jpg")
    sources = found([tmp_path])
    assert names_of(sources) == [
        "10.png",
        "9.png",
        "B.jpg",
        "a.jpg",
        "b.jpg",
        "deep/a.jpg",
        "deep/er/c.jpg",
        "deeq.jpg",
        "noextension",
        "notes.txt",
    ]
    assert all(source.path == tmp_path / source.name for source in sources)
    assert sources == found([tmp_path])


def test_names_that_begin_with_a_dot_are_left_out(tmp_path):
    touch(tmp_path, "a.jpg", ".hidden.jpg", ".git/config.jpg", "sub/.DS_Store", "sub/b..jpg")
    assert names_of(found([tmp_path])) == ["a.jpg", "sub/b..jpg"]


def test_a_hidden_file_given_by_name_is_meant(tmp_path):
    touch(tmp_path, ".hidden.jpg")
    assert names_of(found([tmp_path / ".hidden.jpg"])) == [".hidden.jpg"]


def test_the_run_s_own_output_is_left_out(tmp_path):
    touch(tmp_path, "a.jpg", "out/overlays/000001-a.jpg", "out/report.html", "other/out/b.jpg")
    assert names_of(found([tmp_path], leave_out=tmp_path / "out")) == [
        "a.jpg",
        "other/out/b.jpg",
    ]
    relative = Path(os.path.relpath(tmp_path / "out"))
    assert names_of(found([tmp_path], leave_out=relative)) == ["a.jpg", "other/out/b.jpg"]


def test_a_folder_named_like_an_image_is_listed_and_walked(tmp_path):
    touch(tmp_path, "x.jpg/inside.jpg", "plain/y.jpg")
    assert names_of(found([tmp_path])) == ["plain/y.jpg", "x.jpg", "x.jpg/inside.jpg"]


def test_links(tmp_path):
    """A link to a folder is not followed, but not lost either; a dangling link, too."""
    touch(tmp_path, "in/a.jpg", "elsewhere/b.jpg", "elsewhere/sub/c.jpg")
    (tmp_path / "in/to_folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/to_itself").symlink_to(tmp_path / "in")
    (tmp_path / "in/to_file.jpg").symlink_to(tmp_path / "elsewhere/b.jpg")
    (tmp_path / "in/dangling.jpg").symlink_to(tmp_path / "nowhere")
    assert names_of(found([tmp_path / "in"])) == [
        *("a.jpg", "dangling.jpg", "to_file.jpg", "to_folder", "to_itself"),
    ]
    assert names_of(found([tmp_path / "in/to_folder"])) == ["b.jpg", "sub/c.jpg"]


@linux
def test_pipes_and_sockets_are_listed_and_never_opened(tmp_path, bench, monkeypatch):
    touch(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "pipe.jpg")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        sources = found([tmp_path])
        assert names_of(sources) == ["a.txt", "pipe.jpg", "socket.jpg"]
        reasons = [r.inspection.reason for r in inspect_sources(bench().inspector, sources)]
    assert reasons == [Reason.NOT_AN_IMAGE, Reason.NOT_A_FILE, Reason.NOT_A_FILE]


@linux
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_a_folder_that_cannot_be_read_is_listed(tmp_path):
    touch(tmp_path, "a.jpg", "secret/b.jpg")
    (tmp_path / "secret").chmod(0)
    try:
        assert names_of(found([tmp_path])) == ["a.jpg", "secret"]
    finally:
        (tmp_path / "secret").chmod(0o700)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["one/a.jpg"], ["a.jpg"]),
        (["one"], ["a.jpg", "b.jpg"]),
        (["one", "two"], ["one/a.jpg", "one/b.jpg", "two/a.jpg"]),
        (["two/a.jpg", "one/a.jpg"], ["one/a.jpg", "two/a.jpg"]),
        (["one", "one/a.jpg"], ["a.jpg", "b.jpg"]),
        (["one", "one"], ["a.jpg", "b.jpg"]),
        ([".", "one"], ["one/a.jpg", "one/b.jpg", "two/a.jpg"]),
        (["one/a.jpg", "one/b.jpg"], ["a.jpg", "b.jpg"]),
        (["one/", "two/."], ["one/a.jpg", "one/b.jpg", "two/a.jpg"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("absolute", [False, True])
def test_several_inputs_have_names_below_their_common_folder(
    tmp_path, monkeypatch, inputs, expected, absolute
):
    touch(tmp_path, "one/a.jpg", "one/b.jpg", "two/a.jpg")
    monkeypatch.chdir(tmp_path)
    given_paths = [tmp_path / text if absolute else Path(text) for text in inputs]
    assert names_of(found(given_paths)) == expected


@pytest.mark.parametrize("inputs", [["../two", "."], ["a.jpg", "../two"]], ids=str)
def test_paths_that_go_up_have_the_same_names(tmp_path, monkeypatch, inputs):
    touch(tmp_path, "one/a.jpg", "two/a.jpg")
    monkeypatch.chdir(tmp_path / "one")
    assert names_of(found([Path(text) for text in inputs])) == ["one/a.jpg", "two/a.jpg"]


@pytest.mark.parametrize("missing", ["nothing", "folder/nothing.jpg", "file.jpg/x", "dangling"])
def test_a_path_that_does_not_exist(tmp_path, missing):
    touch(tmp_path, "file.jpg", "folder/a.jpg")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=re.escape(str(tmp_path / missing))):
        found([tmp_path / "file.jpg", tmp_path / missing])


def test_a_path_that_cannot_exist(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        found([tmp_path / ("x" * 300)])


@pytest.mark.parametrize("hidden", [[], [".only.jpg"]], ids=["empty", "only hidden"])
def test_a_folder_without_files(tmp_path, hidden):
    touch(tmp_path, *hidden)
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputError, match="found no file"):
        found([tmp_path])


# ---------------------------------------------------------------------------------------- names


@linux
@pytest.mark.parametrize(
    ("on_disk", "shown"),
    [
        (b"plain.jpg", "plain.jpg"),
        (b"two words.jpg", "two words.jpg"),
        (b'it\'s "quoted".jpg', 'it\'s "quoted".jpg'),
        (b"<script>alert(1)<.jpg", "<script>alert(1)<.jpg"),
        ("Größe-鋼-🙂.jpg".encode(), "Größe-鋼-🙂.jpg"),
        (b"=cmd().jpg", "=cmd().jpg"),
        (b"100%.jpg", "100%.jpg"),
        (b"C: old.jpg", "C%3A%20old.jpg"),
        (b"new\nline.jpg", "new%0Aline.jpg"),
        (b"tab\t.jpg", "tab%09.jpg"),
        (b"back\\slash.jpg", "back%5Cslash.jpg"),
        (b"latin\xe9.jpg", "latin%E9.jpg"),
        ("gpj.\u202eexe".encode(), "gpj.%E2%80%AEexe"),
        ("zero\u200bwidth.jpg".encode(), "zero%E2%80%8Bwidth.jpg"),
        (b"\x1b[31mred.jpg", "%1B%5B31mred.jpg"),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_names_as_results_carry_them(tmp_path, on_disk, shown):
    (tmp_path / os.fsdecode(on_disk)).write_bytes(b"x")
    (source,) = found([tmp_path])
    assert source.name == shown
    assert source.path.read_bytes() == b"x"


PARTS = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=())
    | st.sampled_from("%0A\n\\=+-@'\t :Cé\udcff\u202e"),
    min_size=1,
    max_size=6,
).filter(lambda part: part not in (".", "..") and _is_a_file_name(part))


def _is_a_file_name(part: str) -> bool:
    try:
        return os.fsdecode(os.fsencode(part)) == part
    except UnicodeEncodeError:
        return False


PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


@linux
@given(PATHS)
@example("a\nb")
@example("\udcff.jpg")
@example("C:\\x")
def test_a_shown_name_is_printable_relative_and_stays(path):
    name = shown_name(PurePosixPath(path))
    assert name
    assert name.isprintable()
    assert name.encode()
    assert "\\" not in name
    assert not name.startswith("/")
    assert not re.match("[A-Za-z]:", name)
    assert shown_name(PurePosixPath(path)) == name
    assert name == path or "%" in name


@linux
@settings(deadline=None)
@given(st.sets(PATHS, min_size=1, max_size=12))
@example({"new\nline", "back\\slash", "latin\udce9", "100%", "=cmd()", "-1", "@x", "+y", "a b"})
def test_shown_names_go_into_a_submission(tmp_path_factory, paths):
    """Whatever the files are called, the run must be able to write its tables at the end."""
    shown = {shown_name(PurePosixPath(path)) for path in paths}
    labels = [FrameLabels(name, {"1": "1 2"}) for name in sorted(shown)]
    file = tmp_path_factory.getbasetemp() / "submission.csv"
    write_csv(file, labels, form=CsvForm.SUBMISSION, class_ids=("1", "2"))
    assert file.read_text(encoding="utf-8").startswith("ImageId_ClassId,EncodedPixels\n")


@pytest.mark.parametrize(
    "pair", [("new\nline.jpg", "new%0Aline.jpg"), ("a\\b.jpg", "a%5Cb.jpg"), ("\udcff", "%FF")]
)
@linux
def test_two_files_never_share_a_name(tmp_path, pair):
    touch(tmp_path, *pair)
    assert len(set(names_of(found([tmp_path])))) == 2


def test_names_that_differ_by_the_csv_guard_go_into_a_submission(tmp_path):
    labels = [FrameLabels(name, {}) for name in ("'=a.jpg", "=a.jpg")]
    write_csv(tmp_path / "s.csv", labels, form=CsvForm.SUBMISSION, class_ids=("1",))


PART_NAMES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=("Cs",))
    | st.sampled_from("%7E2/\n\\.:C"),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(st.lists(PART_NAMES, min_size=1, max_size=12))
@example(["..", "../..", "/etc/a.jpg", "a//b", "a/./b", "a.jpg", "a.jpg", "a%7E2.jpg", "C:\\a"])
def test_names_of_members_are_harmless_and_distinct(names):
    shown = [
        sources_module._shown_part(name, names[:i].count(name) + 1) for i, name in enumerate(names)
    ]
    assert len(set(shown)) == len(shown)
    assert all(is_image_name(f"a.zip/{name}") for name in shown)


# ----------------------------------------------------------------------------------------- lists


def listed(folder: Path, text: str | bytes, name: str = "list.txt") -> Path:
    data = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(data)
    return folder / name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("b.jpg\na.jpg\n", ["b.jpg", "a.jpg"]),
        ("b.jpg\r\n\r\n  \r\na.jpg", ["b.jpg", "a.jpg"]),
        ("\ufeffa.jpg\n# a comment\n  # another\nb.jpg\n", ["a.jpg", "b.jpg"]),
        ("a.jpg\n./a.jpg\nsub/../a.jpg\n", ["a.jpg"]),
        ("sub/c.jpg\nmissing.jpg\n", ["sub/c.jpg", "missing.jpg"]),
        ("sub\na.jpg\n", ["sub/c.jpg", "a.jpg"]),
        ("sub\nsub/c.jpg\nsub/.hidden.jpg\n", ["sub/c.jpg", "sub/.hidden.jpg"]),
        ("list.txt\n", ["list.txt"]),
    ],
    ids=ascii,
)
def test_lists(tmp_path, text, expected):
    touch(tmp_path, "a.jpg", "b.jpg", "sub/c.jpg", "sub/.hidden.jpg")
    sources = found([listed(tmp_path, text)])
    prefix = os.path.commonpath([s.path.parent for s in sources])
    assert [os.path.relpath(s.path, tmp_path) for s in sources] == expected
    assert names_of(sources) == [os.path.relpath(tmp_path / e, prefix) for e in expected] or (
        "sub" in text.splitlines()
    )


def test_a_list_names_paths_anywhere(tmp_path, monkeypatch):
    touch(tmp_path, "one/a.jpg", "two/b.jpg")
    (tmp_path / "lists").mkdir()
    path = listed(tmp_path / "lists", f"../one/a.jpg\n{tmp_path}/two/b.jpg\n", "night.lst")
    monkeypatch.chdir("/")
    assert names_of(found([path])) == ["one/a.jpg", "two/b.jpg"]


def test_what_a_list_names_and_nobody_finds_is_unreadable(tmp_path, bench):
    sources = found([listed(tmp_path, "gone.jpg\n")])
    (result,) = inspect_sources(bench().inspector, sources)
    assert result.inspection.reason is Reason.UNREADABLE


def test_a_list_in_a_folder_is_a_file_like_others(tmp_path):
    touch(tmp_path, "a.jpg")
    listed(tmp_path, "a.jpg")
    assert names_of(found([tmp_path])) == ["a.jpg", "list.txt"]


def test_a_frame_that_is_given_and_listed_comes_once(tmp_path):
    touch(tmp_path, "in/a.jpg", "in/b.jpg", "out/c.jpg")
    path = listed(tmp_path, "in/b.jpg\nout/c.jpg\nin/a.jpg\n")
    assert names_of(found([tmp_path / "in", path])) == ["in/a.jpg", "in/b.jpg", "out/c.jpg"]
    assert names_of(found([tmp_path / "in/b.jpg", path, path])) == [
        *("in/b.jpg", "out/c.jpg", "in/a.jpg"),
    ]


def test_standard_input_is_read_once_and_kept(tmp_path, monkeypatch):
    touch(tmp_path, "a.jpg", "b.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"b.jpg\na.jpg\n")))
    assert names_of(found([Path("-"), Path("-")])) == ["b.jpg", "a.jpg"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "found no file"),
        (b"# only this\n\n", "found no file"),
        ("a.jpg\n".encode("utf-16"), "UTF-16"),
        (b"\x7fELF\0\0\1", "line 1: expected one path a line"),
        (b"a.jpg\n" + b"x" * 70000, "line 2: expected one path a line"),
    ],
    ids=["empty", "comments", "utf-16", "binary", "endless line"],
)
def test_a_list_that_is_none(tmp_path, data, message):
    with pytest.raises(InputError, match=message) as caught:
        Sources([listed(tmp_path, data)])
    assert "\n" not in str(caught.value)


def test_a_list_with_names_of_any_bytes(tmp_path):
    name = os.fsdecode(b"latin\xe9 \xff.jpg")
    touch(tmp_path, name)
    (source,) = found([listed(tmp_path, os.fsencode(name) + b"\n")])
    assert source.path.read_bytes() == b"x"
    assert read_origin(source.origin) == b"x"


# ------------------------------------------------------------------------------------ containers


def test_containers_stand_where_their_name_does(tmp_path):
    touch(tmp_path, "a.jpg", "b-.jpg", "c.jpg", "sub/d.jpg")
    pack(tmp_path / "b.zip", "2.jpg", "1.jpg", "in/3.jpg")
    pack_tar(tmp_path / "sub/e.tar", "2.jpg", "1.jpg")
    sources = found([tmp_path])
    assert names_of(sources) == [
        *("a.jpg", "b-.jpg", "b.zip/1.jpg", "b.zip/2.jpg", "b.zip/in/3.jpg", "c.jpg"),
        *("sub/d.jpg", "sub/e.tar/2.jpg", "sub/e.tar/1.jpg"),
    ]
    assert sources[2].content == b"1.jpg"
    assert sources[2].path is None
    assert sources[0].content is None
    assert [read_origin(s.origin) for s in sources if s.path is None] == [
        s.content for s in sources if s.path is None
    ]


def test_an_archive_in_an_archive_is_no_image(tmp_path, bench):
    pack(tmp_path / "in.zip", "a.jpg")
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
        archive.write(tmp_path / "in.zip", "in.zip")
    (result,) = inspect_sources(bench().inspector, found([tmp_path / "out.zip"]))
    assert result.inspection.image == "out.zip/in.zip"
    assert result.inspection.reason is Reason.NOT_AN_IMAGE


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz", ".TAR.XZ", ".parquet", ".avi"])
@pytest.mark.parametrize("content", [b"", b"no container at all", bytes(range(256)) * 9])
def test_what_is_no_container_is_told_once(tmp_path, suffix, content):
    (tmp_path / f"x{suffix}").write_bytes(content)
    (source,) = Sources([tmp_path])
    assert source.name == f"x{suffix}"
    assert isinstance(source.content, DecodeError)
    assert "\n" not in str(source.content)


@linux
def test_a_pipe_named_like_an_archive_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "x.zip")
    (tmp_path / "y.tar").mkdir()
    touch(tmp_path, "y.tar/a.jpg")
    assert names_of(found([tmp_path])) == ["x.zip", "y.tar/a.jpg"]


def test_hidden_files_are_counted(tmp_path):
    touch(tmp_path, "a.jpg", ".b.jpg", ".git/c.jpg", ".git/deep/d.jpg", "sub/.e.jpg")
    pack(tmp_path / "z.zip", "a.jpg", ".b.jpg", "__MACOSX/a.jpg", ".sub/c.jpg")
    pack_tar(tmp_path / "z.tar", "a.jpg", "._a.jpg")
    sources = Sources([tmp_path])
    assert names_of(list(sources)) == ["a.jpg", "z.tar/a.jpg", "z.zip/a.jpg"]
    assert sources.hidden == 4 + 3 + 1
    assert sources.count() is None
    (tmp_path / "z.tar").unlink()
    assert Sources([tmp_path]).hidden == 7
    assert Sources([tmp_path]).count() == 2


@pytest.mark.parametrize("name", ["z.zip", "z.tar"])
def test_an_archive_without_frames(tmp_path, name):
    (pack if name == "z.zip" else pack_tar)(tmp_path / name, ".hidden.jpg")
    with pytest.raises(InputError, match="found no file"):
        Sources([tmp_path / name])


# ---------------------------------------------------------------------------------------- origins


@linux
@pytest.mark.parametrize(
    "name",
    ["a.jpg", "a::b.jpg", "a:b%3A.jpg", "::.jpg", "a:", "new\nline.jpg", "\udcff.jpg", "a%.jpg"],
    ids=ascii,
)
def test_origins_lead_back(tmp_path, name):
    folder = tmp_path / f"{name}+"
    folder.mkdir()
    (folder / name).write_bytes(b"plain")
    pack(folder / f"{name}.zip", "::2", "b.jpg", "b.jpg::2", "a" + name.replace("\udcff", "ÿ"))
    sources = found([tmp_path])
    for source in sources:
        assert source.origin.isprintable()
        expected = source.content if source.path is None else source.path.read_bytes()
        assert read_origin(source.origin) == expected


@pytest.mark.parametrize(
    ("origin", "error"),
    [
        ("relative.jpg", InputError),
        ("/nowhere/a.jpg", DecodeError),
        ("/nowhere/a.zip::a.jpg", DecodeError),
        ("{}/z.zip::b.jpg", InputError),
        ("{}/z.zip::a.jpg::2", InputError),
        ("{}/a.jpg::1", InputError),
        ("{}/bad.tar::a.jpg", DecodeError),
        ("{}/bad.mp4::one", InputError),
        ("", InputError),
    ],
)
def test_origins_that_lead_nowhere(tmp_path, origin, error):
    touch(tmp_path, "a.jpg", "bad.tar", "bad.mp4")
    pack(tmp_path / "z.zip", "a.jpg")
    with pytest.raises(error) as caught:
        read_origin(origin.format(tmp_path))
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize("count", [1, 2, 5])
def test_shards_are_all_frames_once(tmp_path, count):
    touch(tmp_path, *(f"{i}.jpg" for i in range(40)))
    pack(tmp_path / "z.zip", *(f"{i}.jpg" for i in range(20)))
    parts = [list(Sources([tmp_path], shard=Shard(i + 1, count))) for i in range(count)]
    everything = list(Sources([tmp_path]))
    assert sorted((s for part in parts for s in part), key=lambda s: s.name) == sorted(
        everything, key=lambda s: s.name
    )
    assert all(parts)
    (tmp_path / "z.zip").unlink()
    shards = [Sources([tmp_path], shard=Shard(i + 1, count)) for i in range(count)]
    assert sum(shard.count() for shard in shards) == 40


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "a/b", "-1/2", "1/2/3", "1 / 2"])
def test_a_shard_that_is_none(text):
    with pytest.raises(InputError, match="2/4"):
        Shard.parse(text)
    assert Shard.parse("2/4") == Shard(2, 4)


# ----------------------------------------------------------------------------------------- memory


MOST_BYTES = 4_500_000
"""Python's own table of strings may take 4 of them; a list of the sources takes far more."""


def peak_of(inputs: list[Path], count: int) -> int:
    tracemalloc.start()
    try:
        assert sum(1 for _ in Sources(inputs)) == count
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class FakeEntry:
    def __init__(self, folder: str, name: str, is_folder: bool) -> None:
        self.name, self.path, self._is_folder = name, f"{folder}/{name}", is_folder

    def is_dir(self, *, follow_symlinks: bool) -> bool:
        return self._is_folder


class FakeFolder:
    """300 folders of 100 frames, none of them on the disk."""

    frames = 100

    def __init__(self, folder: str) -> None:
        deep = folder.count("/") > 1
        count = self.frames if deep else 300
        self._entries = (
            FakeEntry(folder, f"{i:06d}" + (".jpg" if deep else ""), not deep) for i in range(count)
        )

    def __enter__(self):
        return self._entries

    def __exit__(self, *_):
        pass


def test_memory_does_not_grow_with_folders(monkeypatch):
    monkeypatch.setattr(os, "scandir", FakeFolder)
    monkeypatch.setattr(Path, "is_dir", lambda _: True)
    monkeypatch.setattr(os.path, "exists", lambda _: True)
    sources = list(Sources([Path("/fake")]))
    assert sources == sorted(sources, key=lambda source: source.name)
    assert peak_of([Path("/fake")], 30_000) < MOST_BYTES


def test_memory_does_not_grow_with_lists_and_archives(tmp_path):
    count = 10_000
    path = listed(tmp_path, "".join(f"{i:060d}.jpg\n" for i in range(count)))
    pack(tmp_path / "z.zip", *(f"{i:060d}.jpg" for i in range(count)))
    for one in (path, tmp_path / "z.zip"):
        assert peak_of([one], count) < MOST_BYTES
