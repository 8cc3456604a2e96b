import csv
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelsight.data.formats.severstal import (
    CsvForm,
    read,
    read_csv,
    recognise,
    write,
    write_csv,
)
from steelsight.data.labels import FrameLabels, LabelClass, LabelSet, Placement, ReadOptions
from steelsight.data.tables import csv_safe
from steelsight.errors import InputError, LabelError
from steelsight.masks import decode_rle, encode_rle

CLASS_IDS = ("1", "2", "3", "4")
SIZE_WH = (1600, 256)

ROWS = "ImageId,ClassId,EncodedPixels\n"
JOINED = "ImageId_ClassId,EncodedPixels\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "train.csv"


def masks_of(labels: dict[str, FrameLabels]) -> dict[str, dict[str, str]]:
    assert all(image == frame.image for image, frame in labels.items())
    return {image: dict(frame.rle_by_class) for image, frame in labels.items()}


@pytest.mark.parametrize(
    "content",
    [
        ROWS + "a.jpg,1,1 2\na.jpg,3,7 1\nb.jpg,4,\n",
        JOINED + "a.jpg_1,1 2\na.jpg_3,7 1\nb.jpg_4,\n",
        "\ufeff" + ROWS + "a.jpg,1,1 2\na.jpg,3,7 1\nb.jpg,4,\n",
        (ROWS + "a.jpg,1,1 2\na.jpg,3,7 1\nb.jpg,4,\n").replace("\n", "\r\n"),
        (ROWS + "a.jpg,1,1 2\na.jpg,3,7 1\nb.jpg,4,\n").replace(",", ";"),
        (ROWS + "a.jpg,1,1 2\na.jpg,3,7 1\nb.jpg,4,\n").replace(",", "\t"),
        ROWS + "\na.jpg,1,1 2\n\n a.jpg , 3 , 7 1 \nb.jpg,4, \n\n",
        '"ImageId","ClassId","EncodedPixels"\n"a.jpg",1,"1 2"\n"a.jpg",3,"7 1"\n"b.jpg",4,""',
        "EncodedPixels,,ClassId,ImageId\n1 2,0,1,a.jpg\n7 1,1,3,a.jpg\n,2,4,b.jpg\n",
        ROWS + "a.jpg,3,7 1\nb.jpg,4,\na.jpg,1,1 2\n",
    ],
    ids=["rows", "joined", "bom", "crlf", "semicolon", "tab", "blanks", "quoted", "order", "mixed"],
)
def test_every_spelling_gives_the_same_labels(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8", newline="")
    labels = read_csv(path, size_wh=SIZE_WH, class_ids=CLASS_IDS)
    assert masks_of(labels) == {"a.jpg": {"1": "1 2", "3": "7 1"}, "b.jpg": {}}


def test_the_joined_form_splits_at_the_last_underscore(path: Path) -> None:
    path.write_text(JOINED + "coil_7/cam_2.jpg_12,1 2\n")
    assert masks_of(read_csv(path)) == {"coil_7/cam_2.jpg": {"12": "1 2"}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (ROWS + "a.jpg,1,NaN\n", ["row 2, image 'a.jpg', type '1': ", "'NaN'"]),
        (ROWS + "a.jpg,1,nan\n", ["row 2, image 'a.jpg', type '1': ", "'nan'"]),
        (ROWS + "a.jpg,1,-1\n", ["row 2, image 'a.jpg', type '1': ", "'-1'", "nothing for no"]),
        (ROWS + "a.jpg,1,1.0 2.0\n", ["row 2, ", "'1.0'"]),
        (ROWS + "a.jpg,1,\xa0\n", ["row 2, ", "'\\xa0'"]),
        (ROWS + "a.jpg,1,1 2 3\n", ["row 2, ", "3 numbers"]),
        (ROWS + "a.jpg,1,5 2 1 2\n", ["row 2, ", "sort"]),
        (ROWS + "a.jpg,1,5 2 6 2\n", ["row 2, ", "overlaps"]),
        (ROWS + "a.jpg,1,409600 2\n", ["row 2, ", "'409600'", "1600 x 256"]),
        (JOINED + "a.jpg_1,1 2\n\nb.jpg_2,0 4\n", ["row 4, image 'b.jpg', type '2': ", "'0'"]),
        (ROWS + "a.jpg,1.0,1 2\n", ["row 2, image 'a.jpg'", "'1.0'", "1, not 1.0"]),
        (JOINED + "a.jpg_1.0,1 2\n", ["row 2, image 'a.jpg'", "'1.0'"]),
        (ROWS + "a.jpg,,1 2\n", ["row 2, image 'a.jpg'", "a type in every row"]),
        (ROWS + "a.jpg,5,1 2\n", ["row 2, image 'a.jpg'", "'5'", "one of 1, 2, 3, 4"]),
        (ROWS + "a.jpg,１,1 2\n", ["row 2, image 'a.jpg'", "ASCII"]),
        (JOINED + "my_image.jpg,1 2\n", ["row 2, image 'my'", "'image.jpg'"]),
        (JOINED + "image.jpg,1 2\n", ["row 2, ", "image is empty", "_ and the type"]),
        (ROWS + ",1,1 2\n", ["row 2, ", "image is empty"]),
        (ROWS + "/etc/a.jpg,1,1 2\n", ["row 2, ", "'/etc/a.jpg'", "relative"]),
        (ROWS + "../a.jpg,1,1 2\n", ["row 2, ", "'../a.jpg'", "relative"]),
        (ROWS + "b/../a.jpg,1,1 2\n", ["row 2, ", "'b/../a.jpg'"]),
        (ROWS + "./a.jpg,1,1 2\n", ["row 2, ", "'./a.jpg'"]),
        (ROWS + "b//a.jpg,1,1 2\n", ["row 2, ", "'b//a.jpg'"]),
        (ROWS + "C:a.jpg,1,1 2\n", ["row 2, ", "'C:a.jpg'"]),
        (ROWS + "b\\a.jpg,1,1 2\n", ["row 2, ", "'b\\\\a.jpg'", "with /"]),
        (ROWS + '"a\nb.jpg",1,1 2\n', ["row 3, ", "'a\\nb.jpg'", "control"]),
        (ROWS + "a\x1b[31m.jpg,1,1 2\n", ["row 2, ", "'a\\x1b[31m.jpg'", "control"]),
        (ROWS + "a.jpg,1,1 2\nb.jpg,1,\na.jpg,1,5 2\n", ["row 4, ", "row 2 already has"]),
        (ROWS + "a.jpg,1,\na.jpg,1,\n", ["row 3, ", "row 2 already has"]),
        (ROWS + "a.jpg,1\n", ["row 2, image 'a.jpg'", "2 cells", "expected 3"]),
        (ROWS + "a.jpg,1,1 2,5 2\n", ["row 2, image 'a.jpg'", "4 cells", "expected 3"]),
        (ROWS + "1 1 " * 100 + ",1,a.jpg\n", ["row 2, image '1 1 1 1", "..."]),
    ],
)
def test_a_broken_row_is_named_with_file_row_image_and_value(
    path: Path, content: str, said: list[str]
) -> None:
    path.write_text(content, encoding="utf-8", newline="")
    with pytest.raises(LabelError) as caught:
        read_csv(path, size_wh=SIZE_WH, class_ids=CLASS_IDS)
    message = str(caught.value)
    assert message.startswith(f"{path} row ")
    assert "\n" not in message
    assert len(message) < 450 + len(str(path))
    for words in said:
        assert words in message

    errors: list[LabelError] = []
    read_csv(path, size_wh=SIZE_WH, class_ids=CLASS_IDS, errors=errors)
    assert message in [str(error) for error in errors]


def test_going_on_reports_every_broken_row_and_leaves_their_images_out(path: Path) -> None:
    path.write_text(
        ROWS
        + "half.jpg,1,1 2\n"
        + "good.jpg,2,1 2\n"
        + "half.jpg,3,-1\n"
        + "twice.jpg,1,1 2\n"
        + "twice.jpg,1,1 2\n"
        + "short.jpg,1\n"
        + "short.jpg,2,1 2\n"
    )
    errors: list[LabelError] = []
    labels = read_csv(path, errors=errors)
    assert masks_of(labels) == {"good.jpg": {"2": "1 2"}}
    assert [str(error).split(",")[0] for error in errors] == [
        f"{path} row {row}" for row in (4, 6, 7)
    ]


def test_sizes_may_differ_by_image(path: Path) -> None:
    path.write_text(ROWS + "small.jpg,1,10 3\nlarge.jpg,1,10 3\nunknown.jpg,1,500000 3\n")
    errors: list[LabelError] = []
    labels = read_csv(path, size_wh={"small.jpg": (5, 2), "large.jpg": (6, 2)}, errors=errors)
    assert list(labels) == ["large.jpg", "unknown.jpg"]
    assert "10 pixels of a frame of 5 x 2" in str(errors[0])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "found ''"),
        (b"a.jpg,1,1 2\n", "found 'a.jpg, 1, 1 2'"),
        (b"ImageId,EncodedPixels\na.jpg,1 2\n", "found 'ImageId, EncodedPixels'"),
        (b"ImageId_ClassId\na.jpg_1\n", "found 'ImageId_ClassId'"),
        (b"ImageId,ClassId,EncodedPixels,EncodedPixels\na.jpg,1,1 2,\n", "each once, found"),
        (b'ImageId,ClassId,EncodedPixels\n"a.jpg,1,1 2\n', "damaged CSV"),
        (b'ImageId,ClassId,EncodedPixels\n"a"b.jpg,1,1 2\n', "damaged CSV"),
        ("ImageId,ClassId,EncodedPixels\n".encode("utf-16"), "byte 0xff is not UTF-8"),
        (b"ImageId,ClassId,EncodedPixels\n\xe9.jpg,1,1 2\n", "byte 0xe9 is not UTF-8"),
    ],
)
def test_a_file_that_is_no_label_table_is_refused_even_when_going_on(
    path: Path, content: bytes, said: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(LabelError) as caught:
        read_csv(path, errors=[])
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["", "missing.csv"])
def test_a_path_that_cannot_be_opened_is_an_input_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"cannot be read \((Is a directory|No such file)"):
        read_csv(tmp_path / name)


def test_a_cell_may_be_longer_than_csv_allows_by_default(path: Path) -> None:
    csv.field_size_limit(131_072)
    rle = " ".join(f"{start} 1" for start in range(1, 409_601, 2))
    assert len(rle) > 1_500_000
    path.write_text(f"{ROWS}a.jpg,1,{rle}\n")
    assert read_csv(path, size_wh=SIZE_WH)["a.jpg"].rle_by_class["1"] == rle


LABELS = [
    FrameLabels("b.jpg", {"3": "7 1", "1": "1 2"}),
    FrameLabels("a.jpg", {}),
    FrameLabels("c.jpg", {"2": ""}),
]


def test_rows_list_masks_and_clean_frames(path: Path) -> None:
    write_csv(path, LABELS, form=CsvForm.ROWS, class_ids=("1", "2", "3"))
    assert path.read_bytes().decode() == (
        ROWS
        + "b.jpg,1,1 2\nb.jpg,3,7 1\na.jpg,1,\na.jpg,2,\na.jpg,3,\nc.jpg,1,\nc.jpg,2,\nc.jpg,3,\n"
    )


def test_a_submission_lists_every_frame_and_type(path: Path) -> None:
    write_csv(path, LABELS[:2], form=CsvForm.SUBMISSION, class_ids=("1", "2", "3"))
    assert path.read_bytes().decode() == (
        JOINED + "b.jpg_1,1 2\nb.jpg_2,\nb.jpg_3,7 1\na.jpg_1,\na.jpg_2,\na.jpg_3,\n"
    )


IMAGES = st.text(st.characters(categories=["L", "N", "Pd", "Pc", "Po"]), min_size=1).filter(
    lambda name: name == csv_safe(name) and not {"/", "\\", ":"} & set(name) and name.strip(".")
)


@given(
    st.dictionaries(
        IMAGES,
        st.dictionaries(st.sampled_from(CLASS_IDS), st.sampled_from(["1 2", "3 4 9 1"])),
    ),
    st.sampled_from(CsvForm),
)
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, labels: dict[str, dict[str, str]], form: CsvForm
) -> None:
    path = tmp_path_factory.mktemp("csv") / "labels.csv"
    frames = [FrameLabels(image, rles) for image, rles in labels.items()]
    write_csv(path, frames, form=form, class_ids=CLASS_IDS)
    assert masks_of(read_csv(path, class_ids=CLASS_IDS)) == labels


@pytest.mark.parametrize(
    ("labels", "form", "class_ids", "said"),
    [
        ([FrameLabels("a.jpg", {"5": "1 2"})], CsvForm.ROWS, CLASS_IDS, "one of 1, 2, 3, 4"),
        ([FrameLabels("a.jpg", {"1": "2 1 1 1"})], CsvForm.ROWS, CLASS_IDS, "sort"),
        ([FrameLabels("../a.jpg", {})], CsvForm.SUBMISSION, CLASS_IDS, "relative"),
        ([FrameLabels("", {})], CsvForm.SUBMISSION, CLASS_IDS, "image is empty"),
        ([FrameLabels("a.jpg", {})] * 2, CsvForm.ROWS, CLASS_IDS, "'a.jpg' occurs twice"),
        ([FrameLabels("a.jpg", {})], CsvForm.SUBMISSION, ["rolled_in"], "'rolled_in' holds _"),
        ([FrameLabels("a.jpg", {})], CsvForm.ROWS, ["=1"], "'=1'"),
    ],
)
def test_nothing_is_written_that_would_not_read_back(
    path: Path, labels: list[FrameLabels], form: CsvForm, class_ids: list[str], said: str
) -> None:
    path.write_text("as before")
    with pytest.raises(InputError) as caught:
        write_csv(path, labels, form=form, class_ids=class_ids)
    assert said in str(caught.value)
    assert path.read_text() == "as before"


def test_a_file_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_csv(tmp_path, [], form=CsvForm.ROWS, class_ids=CLASS_IDS)


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("=1+2.jpg", "'=1+2.jpg"),
        ("+a", "'+a"),
        ("-a", "'-a"),
        ("@a", "'@a"),
        ("\ta", "'\ta"),
        ("\ra", "'\ra"),
        ("a=1", "a=1"),
        ("'a", "''a"),
        ("", ""),
    ],
)
def test_formulas_are_disarmed(text: str, safe: str) -> None:
    assert csv_safe(text) == safe


def test_formulas_are_disarmed_in_files(path: Path) -> None:
    labels = [FrameLabels("=cmd.jpg", {"1": "1 2"})]
    for form in CsvForm:
        write_csv(path, labels, form=form, class_ids=("1",))
        assert path.read_text().splitlines()[1].startswith("'=cmd.jpg")
        assert list(read_csv(path)) == ["'=cmd.jpg"]


def test_the_published_rows_survive_byte_for_byte(shared_dir: Path, path: Path) -> None:
    published = shared_dir / "data" / "severstal" / "train_partial.csv"
    begin = time.process_time()
    labels = read_csv(published, size_wh=SIZE_WH, class_ids=CLASS_IDS)
    assert sum(len(frame.rle_by_class) for frame in labels.values()) == 5610
    again = [
        FrameLabels(
            image,
            {
                class_id: encode_rle(decode_rle(rle, SIZE_WH))
                for class_id, rle in frame.rle_by_class.items()
            },
        )
        for image, frame in labels.items()
    ]
    write_csv(path, again, form=CsvForm.ROWS, class_ids=CLASS_IDS)
    seconds = time.process_time() - begin
    assert path.read_bytes() == published.read_bytes()
    assert seconds < 10


# ----------------------------------------------------------------------- as a data set in a folder


def folder_of(tmp_path: Path, rows: str, images: dict[str, tuple[int, int]]) -> Path:
    (tmp_path / "train.csv").write_text("ImageId,ClassId,EncodedPixels\n" + rows)
    (tmp_path / "images").mkdir()
    for image, (width, height) in images.items():
        cv2.imwrite(str(tmp_path / "images" / image), np.zeros((height, width), np.uint8))
    return tmp_path


def test_a_folder_with_images(tmp_path):
    folder = folder_of(tmp_path, "a.png,3,1 2\nb.png,1,5 1\n", {"a.png": (7, 5), "c.png": (4, 4)})
    (folder / "other.csv").write_text("x,y\n")
    label_set = read(folder, ReadOptions())
    assert [c.id for c in label_set.classes] == ["1", "3"]
    assert {i: f.size_wh for i, f in label_set.frames.items()} == {
        "a.png": (7, 5),
        "b.png": (1600, 256),
    }
    assert list(label_set.image_paths) == ["a.png", "c.png"]
    assert label_set.notes == (
        "1 frames have no image here: their size was taken as Severstal's 1600 x 256 (--size tells"
        " another)",
    )
    told = read(folder, ReadOptions(size_wh=(10, 10), unlisted_are_clean=True))
    assert told.notes == ()
    assert told.frames["c.png"].clean
    assert told.frames["b.png"].size_wh == (10, 10)
    assert told.frames["c.png"].size_wh == (4, 4)


def test_runs_are_checked_against_the_real_size_of_each_image(tmp_path):
    folder = folder_of(tmp_path, "a.png,1,30 7\n", {"a.png": (7, 5)})
    with pytest.raises(LabelError, match=r"row 2, image 'a\.png', type '1'.*35 pixels"):
        read(folder, ReadOptions())


def test_keep_going_refuses_the_images_of_broken_rows(tmp_path):
    rows = "a.png,1,1 2\nb.png,1,1 2\nb.png,2,x\nc.png,1,\nd.png,1\n"
    folder = folder_of(tmp_path, rows, {})
    errors: list[LabelError] = []
    label_set = read(folder, ReadOptions(unlisted_are_clean=True), errors)
    assert list(label_set.frames) == ["a.png", "c.png"]
    assert label_set.refused == {"b.png", "d.png"}
    assert len(errors) == 2


def test_a_refused_image_is_not_clean_because_it_is_unlisted(tmp_path):
    folder = folder_of(tmp_path, "a.png,1,x\n", {"a.png": (4, 4), "b.png": (4, 4)})
    errors: list[LabelError] = []
    label_set = read(folder, ReadOptions(unlisted_are_clean=True), errors)
    assert list(label_set.frames) == ["b.png"]


def test_classes_in_order_also_unused_ones(tmp_path):
    folder = folder_of(tmp_path, "a.png,10,1 2\nb.png,9,1 2\nc.png,x,1 1\n", {})
    assert [c.id for c in read(folder, ReadOptions()).classes] == ["9", "10", "x"]
    (folder / "classes.txt").write_text("x\n10\n9\nunused one\n")
    assert [c.id for c in read(folder, ReadOptions()).classes] == ["x", "10", "9", "unused_one"]
    with pytest.raises(LabelError, match="expected one of 1, 2"):
        read(folder, ReadOptions(class_names=("1", "2")))


def test_written_as_published_with_the_table_of_frames(tmp_path):
    frames = [
        FrameLabels("a.jpg", {"3": "1 2"}, (4, 4), attributes={"coil": "C1"}),
        FrameLabels("b.jpg", {}, (4, 4)),
    ]
    classes = (LabelClass("1", "1"), LabelClass("3", "3"))
    label_set = LabelSet("x", tmp_path, classes, {f.image: f for f in frames})
    write(label_set, tmp_path, Placement.LEAVE)
    assert (tmp_path / "train.csv").read_text() == ("ImageId,ClassId,EncodedPixels\na.jpg,3,1 2\n")
    assert (tmp_path / "images.csv").read_text() == (
        "ImageId,status,classes,coil\na.jpg,faulty,3,C1\nb.jpg,clean,,\n"
    )
    assert recognise(tmp_path) == "train.csv holds a column EncodedPixels"


def test_which_file_is_meant(tmp_path):
    assert recognise(tmp_path) is None
    assert recognise(tmp_path / "missing") is None
    (tmp_path / "labels.csv").write_text("ImageId_ClassId,EncodedPixels\na.jpg_1,1 1\n")
    assert recognise(tmp_path) == "labels.csv holds a column EncodedPixels"
    (tmp_path / "second.csv").write_text("ImageId,ClassId,EncodedPixels\n")
    assert recognise(tmp_path) is None
    assert recognise(tmp_path / "second.csv")
    with pytest.raises(InputError, match=r"one such file or train\.csv"):
        read(tmp_path, ReadOptions())


def test_images_right_beside_the_table_count_if_it_speaks_of_them(tmp_path):
    (tmp_path / "labels.csv").write_text("ImageId,ClassId,EncodedPixels\na.png,1,1 2\n")
    cv2.imwrite(str(tmp_path / "plot.png"), np.zeros((4, 4), np.uint8))
    assert read(tmp_path, ReadOptions()).image_paths == {}
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4), np.uint8))
    assert list(read(tmp_path, ReadOptions()).image_paths) == ["a.png", "plot.png"]


def test_the_real_folder(shared_dir):
    label_set = read(shared_dir / "data" / "severstal", ReadOptions())
    assert (len(label_set.frames), len(label_set.image_paths)) == (100, 748)
    assert {f.size_wh for f in label_set.frames.values()} == {(1600, 256)}
