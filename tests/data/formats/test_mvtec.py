from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from steelsight.data.formats.mask_folder import MASK_BINARY, MASK_INDEX, MASK_PALETTE
from steelsight.data.formats.mvtec import MVTEC
from steelsight.data.labels import (
    FrameLabels,
    LabelSet,
    Placement,
    ReadOptions,
    classes_of,
)
from steelsight.errors import InputError, LabelError
from steelsight.masks import decode_rle, encode_rle

OPTIONS = ReadOptions()


def save(path: Path, rows: list[list[int]] | NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(rows, np.uint8)).save(path)


def photos(root: Path, *names: str, size_wh: tuple[int, int] = (3, 2)) -> dict[str, Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        file_format = "JPEG" if name.endswith("jpg") else "PNG"
        Image.new("L", size_wh, 90).save(root / name, file_format)
    return {name: root / name for name in names}


def labels_of(label_set: LabelSet) -> dict[str, dict[str, str]]:
    return {image: dict(frame.rle_by_class) for image, frame in label_set.frames.items()}


def write(labels: LabelSet, root: Path, placement: Placement = Placement.COPY) -> dict[str, str]:
    assert MVTEC.write is not None
    root.mkdir(parents=True, exist_ok=True)
    return dict(MVTEC.write(labels, root, placement))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "screw"
    photos(root, "train/good/000.png", "train/good/001.png", "test/good/000.png")
    photos(root, "test/thread side/000.png", "test/thread side/001.png", "test/pit/000.png")
    save(root / "ground_truth" / "thread side" / "000_mask.png", [[0, 255, 0], [0, 255, 255]])
    save(root / "ground_truth" / "pit" / "000.png", [[1, 0, 0], [0, 0, 0]])
    return root


def test_the_published_layout_is_read(root: Path) -> None:
    read = MVTEC.read(root, OPTIONS, None)
    assert labels_of(read) == {
        "test/good/000.png": {},
        "test/pit/000.png": {"pit": "1 1"},
        "test/thread side/000.png": {"thread_side": "3 2 6 1"},
        "test/thread side/001.png": {},
        "train/good/000.png": {},
        "train/good/001.png": {},
    }
    assert [(c.id, c.name) for c in read.classes] == [
        ("pit", "pit"),
        ("thread_side", "thread side"),
    ]
    assert list(read.image_paths) == list(read.frames) == sorted(read.frames)
    unmarked = read.frames["test/thread side/001.png"]
    assert unmarked.types_without_mask == ("thread_side",)
    assert [image for image, f in read.frames.items() if f.clean] == [
        "test/good/000.png",
        "train/good/000.png",
        "train/good/001.png",
    ]
    assert {f.split for i, f in read.frames.items() if i.startswith("train")} == {"train"}
    assert {f.split for i, f in read.frames.items() if i.startswith("test")} == {"test"}
    assert {f.size_wh for f in read.frames.values()} == {(3, 2)}


def test_only_this_format_claims_it(root: Path, tmp_path: Path) -> None:
    assert MVTEC.recognise(root)
    assert not any(f.recognise(root) for f in (MASK_INDEX, MASK_PALETTE, MASK_BINARY))
    save(tmp_path / "other" / "masks" / "a.png", [[0, 1]])
    (tmp_path / "other" / "test").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("other", "missing", "file"):
        assert MVTEC.recognise(tmp_path / name) is None


def test_names_and_order_of_types_may_be_told(root: Path) -> None:
    (root / "classes.txt").write_text("thread side\nrust\n")
    assert MVTEC.read(root, OPTIONS, None).class_ids == ("thread_side", "rust", "pit")
    named = MVTEC.read(root, ReadOptions(class_names=("pit", "thread side")), None)
    assert named.class_ids == ("pit", "thread_side")


def test_other_parts_are_named_and_not_read(root: Path) -> None:
    photos(root, "validation/good/000.png")
    read = MVTEC.read(root, OPTIONS, None)
    assert len(read.frames) == 6
    assert "validation/ is no part" in read.notes[0]


def test_masks_of_good_images_are_allowed_if_empty(root: Path) -> None:
    save(root / "ground_truth" / "good" / "000_mask.png", [[0, 0, 0], [0, 0, 0]])
    assert MVTEC.read(root, OPTIONS, None).frames["test/good/000.png"].clean


EMPTY = [[0, 0, 0], [0, 0, 0]]
MARKED = [[0, 255, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("name", "rows", "said", "refused"),
    [
        ("ground_truth/pit/000.png", EMPTY, "the mask is empty, expected a defect of the type 'pi",
         {"test/pit/000.png"}),
        ("ground_truth/good/000_mask.png", MARKED, "expected none on an image in test/good",
         {"test/good/000.png"}),
        ("ground_truth/pit/000.png", [[0, 128, 0]] * 2, "beside 0 are 128, expected 255 alone",
         {"test/pit/000.png"}),
        ("ground_truth/pit/000.png", [[0, 1, 255]] * 2, "beside 0 are 1, 255, expected",
         {"test/pit/000.png"}),
        ("ground_truth/pit/000.png", [[0, 255]], "the mask is 2 x 1, expected the image's 3 x 2",
         {"test/pit/000.png"}),
        ("ground_truth/pit/000_mask.png", MARKED, "is a mask of the image 'test/pit/000.png' too",
         {"test/pit/000.png"}),
        ("ground_truth/pit/007_mask.png", MARKED, "no image in test/ has this name", set()),
        ("ground_truth/dent/000_mask.png", MARKED, "no image in test/ has this name", set()),
        ("train/pit/000.png", MARKED, "expected images of train/ in train/good only",
         {"train/pit/000.png"}),
        ("train/000.png", MARKED, "expected images of train/ in train/good only",
         {"train/000.png"}),
        ("test/000.png", MARKED, "in test/good or a folder per type only", {"test/000.png"}),
        ("test/pit/000.bmp", MARKED, "differ in their suffix only",
         {"test/pit/000.bmp", "test/pit/000.png"}),
    ],
)  # fmt: skip
def test_what_breaks_the_layout_is_refused(
    root: Path, name: str, rows: list[list[int]], said: str, refused: set[str]
) -> None:
    save(root / name, rows)
    with pytest.raises(LabelError) as caught:
        MVTEC.read(root, OPTIONS, None)
    assert said in str(caught.value)
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)
    errors: list[LabelError] = []
    read = MVTEC.read(root, OPTIONS, errors)
    assert [str(error) for error in errors] == [str(caught.value)]
    assert read.refused == refused
    assert not refused & read.frames.keys()


def test_a_jpeg_or_damaged_mask_is_refused(root: Path) -> None:
    mask = root / "ground_truth" / "pit" / "000.png"
    mask.write_bytes(mask.read_bytes()[:-5])
    with pytest.raises(LabelError, match=r"ends inside chunk IEND|ends before"):
        MVTEC.read(root, OPTIONS, None)
    mask.unlink()
    Image.new("L", (3, 2)).save(mask.with_suffix(".jpg"))
    with pytest.raises(LabelError, match="received a JPEG"):
        MVTEC.read(root, OPTIONS, None)


def test_links_out_are_refused(root: Path, tmp_path: Path) -> None:
    mask = root / "ground_truth" / "pit" / "000.png"
    mask.rename(tmp_path / "outside.png")
    mask.symlink_to(tmp_path / "outside.png")
    errors: list[LabelError] = []
    read = MVTEC.read(root, OPTIONS, errors)
    assert "a link to" in str(errors[0])
    assert read.refused == {"test/pit/000.png", "test/thread side/001.png"}


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_images(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected"):
        MVTEC.read(tmp_path / name, OPTIONS, None)


def test_two_folders_of_one_type(root: Path) -> None:
    photos(root, "test/Pit/000.png")
    with pytest.raises(LabelError, match="both become the id"):
        MVTEC.read(root, OPTIONS, None)


# Writing -----------------------------------------------------------------------------------------


def label_set_of(
    folder: Path, masks: dict[str, dict[str, NDArray[np.bool_]]], **splits: str
) -> LabelSet:
    """``splits`` by the image's name without folders and suffix."""
    paths = photos(folder, *masks)
    frames = {
        image: FrameLabels(
            image,
            {c: encode_rle(m) for c, m in of.items()},
            (3, 2),
            split=splits.get(Path(image).stem),
        )
        for image, of in masks.items()
    }
    return LabelSet("t", folder, classes_of(["pit", "long scratch", "z"]), frames, paths)


LEFT = np.array([[1, 0, 0], [1, 0, 0]], np.bool_)
TOP = np.array([[1, 1, 1], [0, 0, 0]], np.bool_)


def test_frames_go_into_the_folder_of_what_is_on_them(tmp_path: Path) -> None:
    masks: dict[str, dict[str, NDArray[np.bool_]]] = {
        "b/g.jpg": {}, "t.jpg": {}, "v.png": {}, "s.jpg": {"long_scratch": TOP},
        "both.jpg": {"pit": LEFT, "z": TOP}, "a/x.jpg": {"pit": LEFT}, "b/x.jpg": {"pit": TOP},
        "b_x.png": {"pit": TOP},
    }  # fmt: skip
    labels = label_set_of(tmp_path / "in", masks, t="test", v="val", g="train", s="train")
    names = write(labels, tmp_path / "out")
    assert names == {
        "b/g.jpg": "train/good/g.jpg",
        "t.jpg": "test/good/t.jpg",
        "v.png": "test/good/v.png",
        "s.jpg": "test/long_scratch/s.jpg",
        "both.jpg": "test/combined/both.jpg",
        "a/x.jpg": "test/pit/a_x.jpg",
        "b/x.jpg": "test/pit/b_x.jpg",
        "b_x.png": "test/pit/b_x_2.png",
    }
    read = MVTEC.read(tmp_path / "out", OPTIONS, None)
    assert [c.name for c in read.classes] == ["pit", "long scratch", "z", "combined"]
    union = {"combined": encode_rle(LEFT | TOP)}
    expected = {
        name: union if image == "both.jpg" else dict(labels.frames[image].rle_by_class)
        for image, name in names.items()
    }
    assert labels_of(read) == expected
    for image, name in names.items():
        assert read.image_paths[name].read_bytes() == labels.image_paths[image].read_bytes()
    with Image.open(tmp_path / "out" / "ground_truth" / "combined" / "both_mask.png") as mask:
        assert mask.mode == "L"
        assert np.array_equal(np.array(mask), 255 * (LEFT | TOP))
    backwards = LabelSet(
        "t",
        labels.source,
        labels.classes,
        dict(reversed(list(labels.frames.items()))),
        labels.image_paths,
    )
    assert write(backwards, tmp_path / "again") == names


def test_what_was_read_keeps_its_names(root: Path, tmp_path: Path) -> None:
    photos(root, "test/pit/deep/000.png", "test/pit/000_mask.png")
    save(root / "ground_truth" / "pit" / "deep" / "000_mask.png", MARKED)
    (root / "ground_truth" / "pit" / "000.png").rename(root / "ground_truth/pit/000_mask.png")
    save(root / "ground_truth" / "pit" / "000_mask_mask.png", MARKED)
    (root / "test" / "thread side" / "001.png").unlink()
    (root / "test" / "thread side").rename(root / "test" / "thread")
    (root / "ground_truth" / "thread side").rename(root / "ground_truth" / "thread")
    labels = MVTEC.read(root, OPTIONS, None)
    assert labels.frames["test/pit/000_mask.png"].rle_by_class == {"pit": "3 1"}
    assert write(labels, tmp_path / "out", Placement.LINK) == {}
    again = MVTEC.read(tmp_path / "out", OPTIONS, None)
    assert again.frames == labels.frames
    assert again.classes == labels.classes


def test_writing_needs_the_images(tmp_path: Path) -> None:
    labels = label_set_of(tmp_path / "in", {"a.png": {}})
    with pytest.raises(InputError, match="--place copy or --place link"):
        write(labels, tmp_path / "out", Placement.LEAVE)
    gone = LabelSet("t", labels.source, labels.classes, labels.frames, {})
    with pytest.raises(InputError, match=r"1 images are not there, such as 'a\.png'"):
        write(gone, tmp_path / "out")


@pytest.mark.parametrize(
    ("frame", "names", "said"),
    [
        (FrameLabels("a.png", {}, (3, 2), ("pit",)), ["pit"], "whose place is unknown"),
        (FrameLabels("a.png", {}, (3, 2), disputed=True), ["pit"], "disputed"),
        (FrameLabels("a.png", {}, None), ["pit"], "its size is not known"),
        (FrameLabels("a.png", {"pit": "9 1"}, (3, 2)), ["pit"], "ends past the 6 pixels"),
        (FrameLabels("a.png", {}, (3, 2)), ["Good"], "means good steel"),
    ],
)
def test_what_would_look_clean_is_not_written(
    tmp_path: Path, frame: FrameLabels, names: list[str], said: str
) -> None:
    paths = photos(tmp_path / "in", "a.png")
    labels = LabelSet("t", tmp_path / "in", classes_of(names), {"a.png": frame}, paths)
    with pytest.raises(InputError) as caught:
        write(labels, tmp_path / "out")
    assert said in str(caught.value)


IMAGES = (
    "a/x.png",
    "b/x.png",
    "x.jpg",
    "a_x.png",
    "x_mask.png",
    "test/pit/x.png",
    "train/good/x.png",
)


def check_identity(folder: Path, masks: dict[str, dict[str, NDArray[np.bool_]]]) -> None:
    labels = label_set_of(folder / "in", masks)
    new_names = write(labels, folder / "out")
    read = MVTEC.read(folder / "out", OPTIONS, None)
    names = {image: new_names.get(image, image) for image in masks}
    assert sorted(names.values()) == list(read.frames) == list(read.image_paths)
    for image, of in masks.items():
        frame = read.frames[names[image]]
        found = {c: decode_rle(rle, (3, 2)) for c, rle in frame.rle_by_class.items()}
        if len(of) > 1:
            assert found.keys() == {"combined"}
            assert np.array_equal(found["combined"], np.any(list(of.values()), axis=0))
        else:
            assert found.keys() == of.keys()
            assert all(np.array_equal(found[c], of[c]) for c in of)
        assert not frame.types_without_mask
        assert frame.clean == (not of)


MASKS = (
    st.lists(st.booleans(), min_size=6, max_size=6)
    .filter(any)
    .map(lambda bits: np.array(bits, np.bool_).reshape(2, 3))
)
LABELS = st.dictionaries(
    st.sampled_from(IMAGES),
    st.dictionaries(st.sampled_from(["pit", "long_scratch", "z"]), MASKS, max_size=2),
    min_size=1,
)


@given(masks=LABELS)
@settings(max_examples=15, deadline=None)
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, masks: dict[str, dict[str, NDArray[np.bool_]]]
) -> None:
    check_identity(tmp_path_factory.mktemp("mvtec"), masks)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@given(masks=LABELS)
@settings(max_examples=10_000, deadline=None)
def test_what_is_written_reads_back_10_000_times(
    tmp_path_factory: pytest.TempPathFactory, masks: dict[str, dict[str, NDArray[np.bool_]]]
) -> None:
    check_identity(tmp_path_factory.mktemp("mvtec"), masks)
