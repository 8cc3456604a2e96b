"""Names, images and lists that all label formats share."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from steelsight.data.labels import (
    FrameLabels,
    LabelClass,
    Placement,
    ReadOptions,
    check_image_name,
    class_id_of,
    classes_of,
    find_images,
    frame_size,
    inside,
    place_image,
    read_lines,
    split_of,
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


@pytest.mark.parametrize("names", [["a b", "a_b"], ["Pit", "pit"], ["1", "1"]])
def test_classes_that_would_share_a_folder_are_refused(names):
    with pytest.raises(LabelError, match="both become the id"):
        classes_of(names, "x")


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
