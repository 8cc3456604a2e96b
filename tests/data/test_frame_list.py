"""Tables of frames: what is clean, what is disputed, and what contradicts the masks."""

from pathlib import Path

import pytest

from steelsight.data.formats.severstal import read_csv
from steelsight.data.frame_list import (
    apply_frame_list,
    is_frame_list,
    read_frame_list,
    write_frame_list,
)
from steelsight.data.labels import FrameLabels, LabelClass, LabelSet
from steelsight.errors import LabelError


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "images.csv"
    path.write_text(text, encoding="utf-8")
    return path


def labels(*frames: FrameLabels) -> LabelSet:
    classes = (LabelClass("1", "1"), LabelClass("3", "3"))
    return LabelSet("severstal", Path("x"), classes, {frame.image: frame for frame in frames})


def test_what_a_row_says(tmp_path):
    path = table(
        tmp_path,
        "\ufeffImageId;status;classes;split;coil\r\n"
        "a.jpg;clean;;training;C7\r\n"
        "b.jpg;faulty;1 3;;\r\n"
        "c.jpg;disputed;;val;C8\r\n"
        "d.jpg;;;;\r\n",
    )
    listed = read_frame_list(path)
    assert listed.class_ids == ("1", "3")
    a, b, c, d = listed.entries.values()
    assert (a.class_ids, a.disputed, a.split, a.attributes) == ((), False, "train", {"coil": "C7"})
    assert (b.class_ids, b.split, b.attributes, b.row) == (("1", "3"), None, {}, 3)
    assert c.disputed
    assert d.class_ids == ()  # the column classes is there, and empty


def test_a_column_per_type(tmp_path):
    path = table(tmp_path, "ImageId,c1,c2,c12,camera\na.jpg,1,0,1,left\nb.jpg,0,0,0,\n")
    listed = read_frame_list(path)
    assert listed.class_ids == ("1", "2", "12")
    assert listed.entries["a.jpg"].class_ids == ("1", "12")
    assert listed.entries["b.jpg"].class_ids == ()


def test_a_listedthat_says_nothing_about_defects_adds_only_columns(tmp_path):
    path = table(tmp_path, "ImageId,coil\na.jpg,C1\nb.jpg,C2\n")
    merged = apply_frame_list(labels(FrameLabels("a.jpg", {"1": "1 2"}, (4, 4))), path)
    assert merged.frames == {"a.jpg": FrameLabels("a.jpg", {"1": "1 2"}, (4, 4),
                                                  attributes={"coil": "C1"})}  # fmt: skip


def test_masks_and_listedtogether(tmp_path):
    path = table(
        tmp_path,
        "ImageId,status,classes\na.jpg,faulty,1 2\nb.jpg,clean,\nc.jpg,faulty-no-mask,10\n"
        "d.jpg,disputed,\n",
    )
    merged = apply_frame_list(labels(FrameLabels("a.jpg", {"1": "1 2"})), path)
    assert [c.id for c in merged.classes] == ["1", "2", "3", "10"]
    a, b, c, d = merged.frames.values()
    assert (dict(a.rle_by_class), a.types_without_mask) == ({"1": "1 2"}, ("2",))
    assert b.clean
    assert c.types_without_mask == ("10",)
    assert d.disputed
    assert [frame.clean for frame in (a, b, c, d)] == [False, True, False, False]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Image,status\na.jpg,clean\n", "row 1: expected a column ImageId"),
        ("ImageId,coil,coil\na.jpg,1,2\n", "'coil' empty or more than once"),
        ("ImageId,\na.jpg,1\n", "'' empty or more than once"),
        ("ImageId,status\na.jpg\n", "row 2: 1 cells, expected 2"),
        ("ImageId,status\na.jpg,clean\na.jpg,clean\n", "row 3, image 'a.jpg': row 2 already"),
        ("ImageId,status\na.jpg,fine\n", "the status is 'fine', expected clean, faulty"),
        ("ImageId,status,classes\na.jpg,clean,3\n", "status is clean, but the types 3"),
        ("ImageId,status,classes\na.jpg,faulty,\n", "no type is named"),
        ("ImageId,c1\na.jpg,yes\n", "cell of c1 is 'yes', expected 1"),
        ("ImageId,c1\na.jpg,1.0\n", "cell of c1 is '1.0'"),
        ("ImageId,split\na.jpg,holdout\n", "split is 'holdout', expected train"),
        ("ImageId,status\n../a.jpg,clean\n", "inside the image folder"),
        ("ImageId,status\n/etc/a.jpg,clean\n", "inside the image folder"),
        ("ImageId,classes\na.jpg,%%\n", "expected a name with an ASCII letter"),
        ('ImageId,status\n"a.jpg,clean\n', "damaged CSV"),
    ],
)
def test_a_broken_listedis_one_line(tmp_path, text, said):
    path = table(tmp_path, text)
    with pytest.raises(LabelError, match=r"images\.csv") as caught:
        read_frame_list(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_listedthat_contradicts_the_masks(tmp_path):
    path = table(tmp_path, "ImageId,status\na.jpg,clean\nb.jpg,clean\n")
    label_set = labels(FrameLabels("a.jpg", {"1": "1 2"}))
    with pytest.raises(LabelError, match=r"row 2, image 'a.jpg': the labels hold type 1"):
        apply_frame_list(label_set, path)
    errors: list[LabelError] = []
    merged = apply_frame_list(label_set, path, errors)
    assert len(errors) == 1
    assert merged.refused == {"a.jpg"}
    assert list(merged.frames) == ["b.jpg"]


def test_keep_going_lists_every_broken_row(tmp_path):
    path = table(tmp_path, "ImageId,status\na.jpg,x\nb.jpg,clean\nc.jpg,y\n")
    errors: list[LabelError] = []
    read = read_frame_list(path, errors)
    assert list(read.entries) == ["b.jpg"]
    assert read.refused == {"a.jpg", "c.jpg"}
    assert [str(e).split(":")[0].rpartition(" row ")[2][0] for e in errors] == ["2", "4"]


def test_a_row_that_cannot_be_read_never_leaves_a_clean_frame(tmp_path):
    """The frame was clean by an empty mask row, and the table's row of it is broken."""
    path = table(tmp_path, "ImageId,status\na.jpg,dirty\n")
    errors: list[LabelError] = []
    merged = apply_frame_list(labels(FrameLabels("a.jpg", {})), path, errors)
    assert merged.refused == {"a.jpg"}
    assert not merged.frames


def test_written_and_read_back(tmp_path):
    frames = [
        FrameLabels("=a.jpg", {"1": "1 2"}, attributes={"coil": "=1+1"}, split="train"),
        FrameLabels("b.jpg", {}),
        FrameLabels("c.jpg", {}, types_without_mask=("3", "1")),
        FrameLabels("d.jpg", {}, disputed=True),
    ]
    path = tmp_path / "images.csv"
    write_frame_list(path, frames, {"b.jpg": "clean/b.jpg"})
    assert path.read_text() == (
        "ImageId,status,classes,split,coil\n'=a.jpg,faulty,1,train,'=1+1\nclean/b.jpg,clean,,,\n"
        "c.jpg,faulty-no-mask,3 1,,\nd.jpg,disputed,,,\n"
    )
    assert is_frame_list(path)
    entries = read_frame_list(path).entries
    assert [e.class_ids for e in entries.values()] == [("1",), (), ("3", "1"), ()]


def test_a_listedof_masks_is_no_listedof_frames(tmp_path):
    path = table(tmp_path, "ImageId,ClassId,EncodedPixels\n")
    assert not is_frame_list(path)
    assert not is_frame_list(tmp_path / "missing.csv")


def test_the_real_tables(shared_dir):
    folder = shared_dir / "data" / "severstal"
    masks = read_csv(folder / "train.csv")
    merged = apply_frame_list(LabelSet("severstal", folder, (), masks), folder / "images.csv")
    frames = merged.frames.values()
    assert sum(f.clean for f in frames) == 596
    assert sum(f.disputed for f in frames) == 40
    assert sum(bool(f.types_without_mask) for f in frames) == 12
    read = read_frame_list(folder / "labels_all.csv")
    entries, types = read.entries, read.class_ids
    assert types == ("1", "2", "3", "4")
    counts = [sum(t in (e.class_ids or ()) for e in entries.values()) for t in types]
    assert counts == [897, 247, 5150, 801]
    assert sum(e.class_ids == () for e in entries.values()) == 5902
