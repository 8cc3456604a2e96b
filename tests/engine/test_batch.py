"""Which files get a result line, under which name: nothing is lost, nothing breaks an output."""

import os
import re
import socket
import sys
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from steelsight.data.formats.severstal import CsvForm, write_csv
from steelsight.data.labels import FrameLabels
from steelsight.defects import Reason, Verdict
from steelsight.engine.batch import Source, find_sources, inspect_sources, shown_name
from steelsight.errors import InputError

linux = pytest.mark.skipif(sys.platform != "linux", reason="names with any bytes are Linux's")


def names(sources: list[Source]) -> list[str]:
    return [source.name for source in sources]


def touch(folder: Path, *relative: str) -> None:
    for name in relative:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


# ---------------------------------------------------------------------------------- which files


def test_every_file_sorted_by_name(tmp_path):
    touch(tmp_path, "b.jpg", "a.jpg", "B.jpg", "10.png", "9.png", "notes.txt", "deep/er/c.jpg")
    touch(tmp_path, "deep/a.jpg", "noextension", "deeq.jpg")
    found = find_sources([tmp_path])
    assert names(found) == [
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
    assert all(source.path == tmp_path / source.name for source in found)
    assert found == find_sources([tmp_path])


def test_names_that_begin_with_a_dot_are_left_out(tmp_path):
    touch(tmp_path, "a.jpg", ".hidden.jpg", ".git/config.jpg", "sub/.DS_Store", "sub/b..jpg")
    assert names(find_sources([tmp_path])) == ["a.jpg", "sub/b..jpg"]


def test_a_hidden_file_given_by_name_is_meant(tmp_path):
    touch(tmp_path, ".hidden.jpg")
    assert names(find_sources([tmp_path / ".hidden.jpg"])) == [".hidden.jpg"]


def test_the_run_s_own_output_is_left_out(tmp_path):
    touch(tmp_path, "a.jpg", "out/overlays/000001-a.jpg", "out/report.html", "other/out/b.jpg")
    assert names(find_sources([tmp_path], leave_out=tmp_path / "out")) == [
        "a.jpg",
        "other/out/b.jpg",
    ]
    relative = Path(os.path.relpath(tmp_path / "out"))
    assert names(find_sources([tmp_path], leave_out=relative)) == ["a.jpg", "other/out/b.jpg"]


def test_a_folder_named_like_an_image_is_listed_and_walked(tmp_path):
    touch(tmp_path, "x.jpg/inside.jpg", "plain/y.jpg")
    assert names(find_sources([tmp_path])) == ["plain/y.jpg", "x.jpg", "x.jpg/inside.jpg"]


def test_links(tmp_path):
    """A link to a folder is not followed, but not lost either; a dangling link, too."""
    touch(tmp_path, "in/a.jpg", "elsewhere/b.jpg", "elsewhere/sub/c.jpg")
    (tmp_path / "in/to_folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/to_itself").symlink_to(tmp_path / "in")
    (tmp_path / "in/to_file.jpg").symlink_to(tmp_path / "elsewhere/b.jpg")
    (tmp_path / "in/dangling.jpg").symlink_to(tmp_path / "nowhere")
    found = names(find_sources([tmp_path / "in"]))
    assert found == ["a.jpg", "dangling.jpg", "to_file.jpg", "to_folder", "to_itself"]
    assert names(find_sources([tmp_path / "in/to_folder"])) == ["b.jpg", "sub/c.jpg"]


@linux
def test_pipes_and_sockets_are_listed_and_never_opened(tmp_path, bench, monkeypatch):
    touch(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "pipe.jpg")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        found = find_sources([tmp_path])
        assert names(found) == ["a.txt", "pipe.jpg", "socket.jpg"]
        reasons = [r.inspection.reason for r in inspect_sources(bench().inspector, found)]
    assert reasons == [Reason.NOT_AN_IMAGE, Reason.NOT_A_FILE, Reason.NOT_A_FILE]


@linux
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_a_folder_that_cannot_be_read_is_listed(tmp_path):
    touch(tmp_path, "a.jpg", "secret/b.jpg")
    (tmp_path / "secret").chmod(0)
    try:
        assert names(find_sources([tmp_path])) == ["a.jpg", "secret"]
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
    assert names(find_sources(given_paths)) == expected


@pytest.mark.parametrize("inputs", [["../two", "."], ["a.jpg", "../two"]], ids=str)
def test_paths_that_go_up_have_the_same_names(tmp_path, monkeypatch, inputs):
    touch(tmp_path, "one/a.jpg", "two/a.jpg")
    monkeypatch.chdir(tmp_path / "one")
    assert names(find_sources([Path(text) for text in inputs])) == ["one/a.jpg", "two/a.jpg"]


@pytest.mark.parametrize("missing", ["nothing", "folder/nothing.jpg", "file.jpg/x", "dangling"])
def test_a_path_that_does_not_exist(tmp_path, missing):
    touch(tmp_path, "file.jpg", "folder/a.jpg")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=re.escape(str(tmp_path / missing))):
        find_sources([tmp_path / "file.jpg", tmp_path / missing])


def test_a_path_that_cannot_exist(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        find_sources([tmp_path / ("x" * 300)])


@pytest.mark.parametrize("hidden", [[], [".only.jpg"]], ids=["empty", "only hidden"])
def test_a_folder_without_files(tmp_path, hidden):
    touch(tmp_path, *hidden)
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputError, match="found no file"):
        find_sources([tmp_path])


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
    (source,) = find_sources([tmp_path])
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
    assert len(set(names(find_sources([tmp_path])))) == 2


def test_names_that_differ_by_the_csv_guard_go_into_a_submission(tmp_path):
    labels = [FrameLabels(name, {}) for name in ("'=a.jpg", "=a.jpg")]
    write_csv(tmp_path / "s.csv", labels, form=CsvForm.SUBMISSION, class_ids=("1",))


# -------------------------------------------------------------------------------------- results


def test_one_result_per_source_in_order(bench, plate, tmp_path):
    for i in range(9):
        Image.fromarray(plate(64, 64 + i)).save(tmp_path / f"{i}.png")
    touch(tmp_path, "4.png", "7x.txt")
    sources = find_sources([tmp_path])
    results = list(inspect_sources(bench().inspector, sources))
    assert [r.inspection.image for r in results] == names(sources)
    for inspection, frame in results:
        if inspection.image in ("4.png", "7x.txt"):
            assert inspection.verdict is Verdict.UNKNOWN
            assert frame is None
        else:
            assert frame.grey_hw.shape == (64, 64 + int(inspection.image[0]))
            assert inspection.sha256 == frame.sha256


def test_a_file_that_vanishes_before_its_turn_is_unknown(bench, tmp_path):
    touch(tmp_path, "a.jpg")
    sources = find_sources([tmp_path])
    (tmp_path / "a.jpg").unlink()
    ((inspection, _),) = inspect_sources(bench().inspector, sources)
    assert inspection.reason is Reason.UNREADABLE
