"""Names, images and lists that all label formats share."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from steelsight.data.labels import (
    CLASS_LIST,
    FrameLabels,
    LabelClass,
    LabelSet,
    Placement,
    ReadOptions,
    check_image_name,
    check_size,
    class_id_of,
    classes_of,
    clean_frames,
    find_images,
    frame_size,
    frames_to_write,
    further_class,
    images_beside,
    inside,
    make_folders,
    names_to_write,
    place_image,
    place_images,
    read_lines,
    split_of,
    write_class_names,
    write_file,
    write_lines,
)
from steelsight.errors import InputError, LabelError


@pytest.mark.parametrize(
    ("name", "class_id"),
    [
        ("3", "3"),
        (" scratch ", "scratch"),
        ("rolled-in scale", "rolled-in_scale"),
        ("Kratzer (tief)", "Kratzer_tief_"),
        ("_x", "x"),
        ("é1", "1"),
    ],
)
def test_class_ids(name, class_id):
    assert class_id_of(name) == class_id


@pytest.mark.parametrize("name", ["", " ", "é", "--", "\n"])
def test_names_without_a_letter_are_refused(name):
    with pytest.raises(LabelError, match="ASCII letter or digit"):
        class_id_of(name, "data.yaml")


def test_classes_keep_names_and_order():
    assert classes_of(["b c", "a"]) == (LabelClass("b_c", "b c"), LabelClass("a", "a"))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a b", "a_b"], "x: the types 'a b' and 'a_b' both become the id 'a_b'"),
        (["Pit", "pit"], "both become the id 'pit'"),
        (["1", " 1"], "x: two types are called '1'"),
    ],
)
def test_classes_that_would_share_a_folder_are_refused(names, said):
    with pytest.raises(LabelError, match=said):
        classes_of(names, "x")


def test_a_further_class_has_an_id_of_its_own():
    known = {c.name: c for c in classes_of(["Pit", "a b"])}
    assert further_class(known, "b a", "x") == LabelClass("b_a", "b a")
    with pytest.raises(LabelError, match="'a b' and 'A_b' both become"):
        further_class(known, "A_b", "x")


@pytest.mark.parametrize(
    "name", ["../a.jpg", "/a.jpg", "a/../b.jpg", "C:\\a.jpg", "C:/a.jpg", "a\\b.jpg", "", "a//b",
             "./a.jpg", "a\nb.jpg", "a\x00.jpg", "\u202ea.jpg"]
)  # fmt: skip
def test_names_that_are_no_path_inside_are_refused(name, tmp_path):
    with pytest.raises(LabelError, match="row 7"):
        check_image_name(name, "row 7")
    with pytest.raises(LabelError, match="row 7"):
        inside(tmp_path, name, "row 7")


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (folder / "a.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "b.jpg").write_bytes(b"y")
    (folder / "c.jpg").symlink_to(folder / "b.jpg")
    with pytest.raises(LabelError, match=r"a\.jpg: a link to"):
        find_images(folder)
    errors: list[LabelError] = []
    assert list(find_images(folder, errors)) == ["b.jpg", "c.jpg"]
    assert len(errors) == 1
    with pytest.raises(LabelError, match="leads out of"):
        inside(folder, "a.jpg", "x")
    assert inside(folder, "c.jpg", "x") == folder / "c.jpg"


def test_images_are_found_by_name_whatever_the_case_and_depth(tmp_path):
    for name in ("b/2.PNG", "a.jpeg", "b/1.tif", "notes.txt", ".hidden.png", ".git/x.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    assert list(find_images(tmp_path)) == ["a.jpeg", "b/1.tif", "b/2.PNG"]
    with pytest.raises(InputError, match="no folder"):
        find_images(tmp_path / "missing")


def test_names_that_no_label_can_carry_are_told(tmp_path):
    (tmp_path / "a\nb.png").write_bytes(b"")
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"")
    errors: list[LabelError] = []
    assert find_images(tmp_path, errors) == {}
    assert len(errors) == 2
    assert all("\n" not in str(error) for error in errors)


@pytest.mark.parametrize(
    ("image", "split"),
    [
        ("images/training/1.jpg", "train"),
        ("Valid/x/1.jpg", "val"),
        ("test/good/1.png", "test"),
        ("train.jpg", None),
        ("a/b.jpg", None),
    ],
)
def test_the_split_that_a_folder_names(image, split):
    assert split_of(image) == split


def test_where_a_size_comes_from(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((5, 7), np.uint8))
    (tmp_path / "b.png").write_bytes(b"no image")
    paths = find_images(tmp_path)
    assert frame_size("a.png", paths, ReadOptions(size_wh=(1, 1)), "x") == (7, 5)
    assert frame_size("c.png", paths, ReadOptions(size_wh=(1, 1)), "x") == (1, 1)
    assert frame_size("c.png", paths, ReadOptions(sizes_wh={"c.png": (2, 3)}), "x") == (2, 3)
    with pytest.raises(LabelError, match=r"x: the image 'c\.png' is not there.*--size"):
        frame_size("c.png", paths, ReadOptions(), "x")
    with pytest.raises(LabelError, match=r"x: the size of 'b\.png' cannot be read"):
        frame_size("b.png", paths, ReadOptions(), "x")


def picture(path, size_wh=(5, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros(size_wh[::-1], np.uint8))
    return path


def test_where_the_images_of_a_label_file_lie(tmp_path):
    def found(**more):
        return set(images_beside(tmp_path, ReadOptions(), None, folders=("p", "q"), **more))

    assert found() == set()
    picture(tmp_path / "beside.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "beside.png")
    picture(tmp_path / "deep" / "er.png")
    assert found() == {"beside.png"}
    assert found(named=lambda: ["other.png"]) == set()
    assert found(named=lambda: ["other.png", "beside.png"]) == {"beside.png"}
    picture(tmp_path / "q" / "c" / "x.png")
    assert found(named=lambda: ["other.png"]) == {"c/x.png"}
    picture(tmp_path / "p" / "y.png")
    assert found() == {"y.png"}
    options = ReadOptions(images=tmp_path / "deep")
    assert set(images_beside(tmp_path, options, None)) == {"er.png"}
    assert images_beside(tmp_path / "gone", ReadOptions(), None) == {}


def test_a_told_size_is_compared_where_the_image_is_known(tmp_path):
    paths = {"a.png": picture(tmp_path / "a.png")}
    check_size("a.png", (5, 3), paths, ReadOptions(), "x")
    check_size("b.png", (9, 9), paths, ReadOptions(size_wh=(5, 3)), "x")
    for image, options in (
        ("a.png", ReadOptions()),
        ("b.png", ReadOptions(sizes_wh={"b.png": (5, 3)})),
    ):
        with pytest.raises(LabelError, match=r"x: labelled at 3 x 5 .* the image has 5 x 3"):
            check_size(image, (3, 5), paths, options, "x")


def test_images_told_to_be_clean(tmp_path):
    paths = {name: picture(tmp_path / name) for name in ("test/b.png", "a.png")}
    frames = clean_frames(paths, paths, ReadOptions(), "x")
    assert list(frames) == ["test/b.png", "a.png"]
    assert frames["test/b.png"] == FrameLabels("test/b.png", {}, (5, 3), split="test")
    assert all(frame.clean for frame in frames.values())


def test_placing_the_images_of_frames_under_new_names(tmp_path):
    paths = {name: picture(tmp_path / "in" / name) for name in ("a.png", "b.png", "c.png")}
    frames = {name: FrameLabels(name, {}, (5, 3)) for name in ("a.png", "b.png", "gone.png")}
    labels = LabelSet("test", tmp_path, (), frames, paths)
    place_images(labels, tmp_path / "out", Placement.COPY, {"b.png": "x/b.png"})
    out = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png")}
    assert out == {"a.png", "x/b.png"}
    place_images(labels, tmp_path / "left", Placement.LEAVE)
    assert not (tmp_path / "left").exists()


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (FrameLabels("../a.png", {}, (2, 2)), "expected a path inside"),
        (FrameLabels("a.png", {}), "its size is not known"),
        (FrameLabels("a.png", {}, (2, 2), ("p",)), "place is unknown"),
        (FrameLabels("a.png", {}, (2, 2), disputed=True), "disputed label"),
        (FrameLabels("a.png", {"q": "1 1"}, (2, 2)), "the type 'q', expected one of 'p'"),
    ],
)
def test_what_is_not_written(frame, said):
    labels = LabelSet("test", Path("here"), classes_of(["p"]), {frame.image: frame})
    with pytest.raises(InputError, match=f"here, image .*{said}"):
        frames_to_write(labels)


def test_what_is_written():
    frame = FrameLabels("a.png", {"p": "1 1"}, (2, 2))
    labels = LabelSet("test", Path("here"), classes_of(["p"]), {"a.png": frame})
    assert frames_to_write(labels) == [(frame, (2, 2))]
    assert names_to_write(labels) == {"p": "p"}
    unseen = LabelSet("test", Path("here"), (LabelClass("p", "p\n"),), {})
    with pytest.raises(InputError, match="control characters"):
        names_to_write(unseen)


def test_names_that_read_back(tmp_path):
    classes = [LabelClass("a_b", "a b"), LabelClass("2", "two"), LabelClass("c", "c\nd")]
    write_class_names(tmp_path, classes)
    assert classes_of(read_lines(tmp_path / CLASS_LIST)) == (
        LabelClass("a_b", "a b"),
        LabelClass("2", "2"),
        LabelClass("c", "c"),
    )


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for action in (
        lambda: write_file(tmp_path / "gone" / "a.png", b""),
        lambda: make_folders([tmp_path / "a", tmp_path / "file" / "b"]),
    ):
        with pytest.raises(InputError, match="cannot be"):
            action()


def test_placing_images(tmp_path):
    source = tmp_path / "a.png"
    source.write_bytes(b"x")
    place_image(source, tmp_path / "left/a.png", Placement.LEAVE)
    assert not (tmp_path / "left").exists()
    place_image(source, tmp_path / "copied/a.png", Placement.COPY)
    place_image(source, tmp_path / "linked/a.png", Placement.LINK)
    assert (tmp_path / "copied/a.png").read_bytes() == b"x"
    assert (tmp_path / "linked/a.png").samefile(source)
    assert not (tmp_path / "copied/a.png").samefile(source)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written"):
        place_image(source, tmp_path / "file/a.png", Placement.COPY)


def test_lists(tmp_path: Path):
    path = tmp_path / "classes.txt"
    write_lines(path, ["a b", "c"])
    assert path.read_bytes() == b"a b\nc\n"
    path.write_bytes("\ufeffa b \r\n\r\nc".encode())
    assert read_lines(path) == ["a b", "c"]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(LabelError, match="not UTF-8"):
        read_lines(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_lines(tmp_path / "missing")
    with pytest.raises(InputError, match="cannot be written"):
        write_lines(tmp_path / "missing" / "x", ["a"])


def test_clean_means_that_nothing_is_known_to_be_wrong():
    assert FrameLabels("a", {}).clean
    assert not FrameLabels("a", {"1": "1 1"}).clean
    assert not FrameLabels("a", {}, types_without_mask=("1",)).clean
    assert not FrameLabels("a", {}, disputed=True).clean
    assert FrameLabels("a", {"1": "1 1"}, types_without_mask=("2",)).class_ids == ("1", "2")
