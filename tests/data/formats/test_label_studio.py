import copy
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageDraw

from steelsight.data.formats.label_studio import (
    LABEL_STUDIO,
    LABEL_STUDIO_CONFIG,
    LABELS,
    decode_brush,
    encode_brush,
)
from steelsight.data.formats.severstal import read_csv
from steelsight.data.labels import (
    FrameLabels,
    LabelClass,
    LabelSet,
    Placement,
    ReadOptions,
)
from steelsight.errors import InputError, LabelError
from steelsight.masks import decode_rle, encode_rle

MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=20))

# Made with label_studio_sdk 2.1.2, converter/brush.py: mask2rle and encode_rle.
SDK_MASK = ([0, 0, 0, 60, 57, 27, 252, 96, 22, 255, 241, 56, 4, 127, 224], ["01110", "0", "00001"])
SDK_LONG_RUNS = [0, 1, 212, 192, 57, 27, 255, 234, 95, 255, 224, 74, 224, 31, 160, 31, 252]
"""A mask of 150 x 200, all ones but row 100."""
SDK_COLOURED = list(
    bytes.fromhex("00 00 00 18 39 1b fc 80 00 7f 80 00 03 24 60 11 04 c8 00 00 08 00 40 01 80 02")
)
"""3 x 2 pixels RGBA: (1, 0) is (0, 255, 0, 100), (0, 1) is (9, 9, 9, 0), (2, 1) is (1, 2, 3, 1)."""


# Run lengths -------------------------------------------------------------------------------------


def decoded(rle: list[int], size_wh: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size_wh[0] * size_wh[1], np.bool_)
    for start, end in zip(*decode_brush(rle, size_wh), strict=True):
        assert start < end
        assert not mask[start:end].any()
        mask[start:end] = True
    return mask.reshape(size_wh[::-1])


def encoded(mask_hw: np.ndarray) -> list[int]:
    padded = np.concatenate(([False], mask_hw.ravel(), [False]))
    starts, ends = np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2).T
    return encode_brush(starts, ends, mask_hw.shape[::-1])


def naive_words(rle: list[int]) -> list[int]:
    """thi.ng's rle-pack read bit by bit."""
    bits = iter("".join(f"{byte:08b}" for byte in rle))

    def number(count: int) -> int:
        return int("".join(next(bits) for _ in range(count)), 2)

    total, word_bits = number(32), number(5) + 1
    sizes = [number(4) + 1 for _ in range(4)]
    words: list[int] = []
    while len(words) < total:
        is_run = number(1)
        length = number(sizes[number(2)]) + 1
        if is_run:
            words += [number(word_bits)] * length
        else:
            words += [number(word_bits) for _ in range(length)]
    return words


def naive_mask(rle: list[int], size_wh: tuple[int, int]) -> list[list[bool]]:
    width, height = size_wh
    words = naive_words(rle)
    return [[words[4 * (y * width + x) + 3] > 0 for x in range(width)] for y in range(height)]


def packed(text: str) -> list[int]:
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def header(words: int, word_bits: int = 8, sizes: tuple[int, ...] = (3, 4, 8, 16)) -> str:
    return f"{words:032b}{word_bits - 1:05b}" + "".join(f"{size - 1:04b}" for size in sizes)


def run(length: int, value: int, size: int = 3) -> str:
    return f"1{size:02b}{length - 1:0{(3, 4, 8, 16)[size]}b}{value:08b}"


def same_rows(rows: list[str]) -> list[list[bool]]:
    width = max(map(len, rows))
    return [[c == "1" for c in row.ljust(width, "0")] for row in rows]


def test_vectors_of_the_sdk() -> None:
    rle, rows = SDK_MASK
    assert decoded(rle, (5, 3)).tolist() == same_rows(rows)
    assert encoded(np.array(same_rows(rows))) == rle
    mask_hw = np.ones((200, 150), np.bool_)
    mask_hw[100] = False
    assert encoded(mask_hw) == SDK_LONG_RUNS
    assert np.array_equal(decoded(SDK_LONG_RUNS, (150, 200)), mask_hw)
    # Any alpha counts, a colour without alpha does not.
    assert decoded(SDK_COLOURED, (3, 2)).tolist() == same_rows(["010", "001"])


@given(MASKS)
@settings(max_examples=100, deadline=None)
def test_a_mask_survives_and_reads_the_same_bit_by_bit(mask_hw: np.ndarray) -> None:
    rle = encoded(mask_hw)
    size_wh = (mask_hw.shape[1], mask_hw.shape[0])
    assert naive_mask(rle, size_wh) == mask_hw.tolist()
    assert np.array_equal(decoded(rle, size_wh), mask_hw)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[int], tuple[int, int]]:
    """Any blocks: runs and literals that begin and end inside pixels, any four length sizes."""
    width, height = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    sizes = tuple(draw(st.lists(st.integers(1, 16), min_size=4, max_size=4)))
    left = 4 * width * height
    text = header(left, sizes=sizes)
    while left:
        size = draw(st.integers(0, 3))
        length = draw(st.integers(1, min(left, 1 << sizes[size])))
        is_run = draw(st.booleans())
        values = draw(st.lists(st.integers(0, 255), min_size=length, max_size=length))
        text += f"{is_run:b}{size:02b}{length - 1:0{sizes[size]}b}"
        text += "".join(f"{v:08b}" for v in (values[:1] if is_run else values))
        left -= length
    return packed(text), (width, height)


@given(streams())
@settings(max_examples=40, deadline=None)
def test_any_stream_reads_the_same_bit_by_bit(stream: tuple[list[int], tuple[int, int]]) -> None:
    rle, size_wh = stream
    assert decoded(rle, size_wh).tolist() == naive_mask(rle, size_wh)


def test_a_stream_longer_than_one_chunk() -> None:
    rng = np.random.default_rng(3)
    values = rng.integers(0, 2, (130, 170, 4)) * 77
    words = values.ravel().tolist()
    runs = "".join(run(1, v, 0) if i % 3 else f"000000{v:08b}" for i, v in enumerate(words))
    rle = packed(header(len(words)) + runs)
    assert len(rle) > 2 * (1 << 16)
    assert np.array_equal(decoded(rle, (170, 130)), values[..., 3] > 0)
    long_literals = "".join(
        f"011{len(part) - 1:016b}" + "".join(f"{v:08b}" for v in part)
        for part in (words[i : i + 65536] for i in range(0, len(words), 65536))
    )
    rle = packed(header(len(words)) + long_literals)
    assert np.array_equal(decoded(rle, (170, 130)), values[..., 3] > 0)


@pytest.mark.parametrize(
    ("rle", "said"),
    [
        (packed(header(36) + run(36, 0)), "36 words of 8 bits, expected 24 words"),
        (packed(header(24, word_bits=16) + run(24, 0) + "0" * 8), "24 words of 16 bits"),
        (packed(header(24))[:6], "6 bytes"),
        ([0], "1 bytes"),
        (packed(header(24)), "cut off"),
        (packed(header(24) + run(20, 255)), "cut off"),
        (packed(header(24) + run(20, 255))[:-1], "cut off"),
        (packed(header(24) + f"011{23:016b}" + "1" * 8 * 20), "cut off"),
        (packed(header(24) + run(25, 255)), "ends at word 25, expected 24"),
        (packed(header(24) + run(24, 0) + "1"), "something follows"),
        ([*packed(header(24) + run(24, 0)), 0, 7], "something follows"),
        ([0, 0, 0, 256], "'256'"),
        ([0, -1], "'-1'"),
        ([0, 1.0], "'1.0'"),
        ([0, True], "'True'"),
        ([0, "1"], "holds '1'"),
        ([0, 10**30], "'1000"),
        ([0, [[]]], "a list of 1"),
        ([], "is a list of 0"),
        ("AAAA", "is 'AAAA'"),
        (None, "is 'None'"),
        ({}, "is an object"),
    ],
)
def test_a_broken_stream_is_one_line(rle: object, said: str) -> None:
    with pytest.raises(LabelError) as caught:
        decode_brush(rle, (3, 2), where="task 7")
    message = str(caught.value)
    assert message.startswith("task 7: ")
    assert said in message
    assert "\n" not in message


def test_padding_with_zeros_is_no_error() -> None:
    rle = packed(header(24) + run(24, 9))
    for more in range(4):
        assert decoded(rle + [0] * more, (3, 2)).all()


def test_a_bomb_takes_no_memory() -> None:
    words = 4 * 8192 * 8192
    bomb = packed(header(words) + run(65536, 0) * (words // 65536))
    assert len(bomb) == 13831
    tracemalloc.start()
    try:
        for size_wh in ((1600, 256), (8192, 8191)):
            with pytest.raises(LabelError, match=r"begins with 268435456 words"):
                decode_brush(bomb, size_wh)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(InputError, match="at most 268435456 pixels"):
        decode_brush(bomb, (8192 * 8192, 5))


# Files -------------------------------------------------------------------------------------------


def brush(rows: list[str], label: str = "scratch", **more: Any) -> dict[str, Any]:
    mask_hw = np.array(same_rows(rows))
    return {
        "type": "brushlabels",
        "from_name": "tag",
        "to_name": "image",
        "original_width": mask_hw.shape[1],
        "original_height": mask_hw.shape[0],
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encoded(mask_hw), "brushlabels": [label]},
    } | more


def polygon(points: Any, label: str = "scratch", **more: Any) -> dict[str, Any]:
    value = {"points": points, "closed": True, "polygonlabels": [label]} | more
    size = {"original_width": 10, "original_height": 4, "image_rotation": 0}
    return {"type": "polygonlabels", "value": value} | size


def task(*results: Any, image: Any = "a.jpg", **more: Any) -> dict[str, Any]:
    data = {"image": image}
    return {"id": 1, "data": data, "annotations": [{"id": 5, "result": list(results)}]} | more


ROWS = ["0110", "0100", "0001"]
ROWS_RLE = encode_rle(np.array(same_rows(ROWS)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def read(
    folder: Path, tasks: Any, errors: list[LabelError] | None = None, **options: Any
) -> LabelSet:
    (folder / "export.json").write_text(json.dumps(tasks))
    return LABEL_STUDIO.read(folder / "export.json", ReadOptions(**options), errors)


def picture(path: Path, size_wh: tuple[int, int] = (4, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size_wh).save(path)


def test_brushes_of_one_type_are_united_and_types_kept_apart(folder: Path) -> None:
    found = read(
        folder,
        [
            task(
                brush(["0110", "0000", "0000"]),
                brush(["0000", "0100", "0001"]),
                brush(["1111", "0", "0"], "roll mark"),
            ),
            task(image="b.jpg"),
        ],
    )
    assert found.classes == (LabelClass("scratch", "scratch"), LabelClass("roll_mark", "roll mark"))
    frame = found.frames["a.jpg"]
    assert frame.rle_by_class == {"scratch": ROWS_RLE, "roll_mark": "1 1 4 1 7 1 10 1"}
    assert frame.size_wh == (4, 3)
    assert found.frames["b.jpg"].clean
    assert found.source == folder / "export.json"


def test_polygons_are_in_per_cent(folder: Path) -> None:
    # A rectangle from (2, 1) to (7, 3) in pixels, drawn by Pillow as pixels 2..6 and 1..2.
    points = [[20, 25], [70, 25], [70, 75], [20.0, 75]]
    image = Image.new("1", (10, 4))
    ImageDraw.Draw(image).rectangle((2, 1, 6, 2), fill=1)
    frame = read(folder, [task(polygon(points))]).frames["a.jpg"]
    assert np.array_equal(decode_rle(frame.rle_by_class["scratch"], (10, 4)), np.array(image))


def test_which_annotation_counts(folder: Path) -> None:
    one: dict[str, Any] = {"result": [brush(ROWS)]}
    other: dict[str, Any] = {"result": []}
    tasks = {
        "truth": [other, one | {"ground_truth": True}],
        "cancelled": [one, other | {"was_cancelled": True}],
        "clean": [other],
        "skipped": [one | {"was_cancelled": True}],
        "none": [],
    }
    found = read(
        folder,
        [
            {"data": {"image": f"{name}.jpg"}, "annotations": annotations}
            for name, annotations in tasks.items()
        ]
        + [{"data": {"image": "guess.jpg"}, "annotations": [], "predictions": [one]}],
    )
    assert {name: frame.clean for name, frame in found.frames.items()} == {
        "truth.jpg": False,
        "cancelled.jpg": False,
        "clean.jpg": True,
    }
    assert any(note.startswith("1 tasks have only cancelled") for note in found.notes)
    assert any(note.startswith("1 tasks have only predictions") for note in found.notes)


def test_what_marks_no_place_is_ignored_but_makes_no_frame_clean(folder: Path) -> None:
    choice = {"type": "choices", "value": {"choices": ["faulty"]}}
    found = read(folder, [task(brush(ROWS), choice), task(choice, image="b.jpg")])
    assert list(found.frames) == ["a.jpg"]
    assert "2 results that mark no place" in found.notes[0]
    assert "1 tasks have such results and no mask" in found.notes[1]


def test_a_mask_without_pixel_is_no_clean_frame(folder: Path) -> None:
    found = read(folder, [task(brush(["0000"]))])
    assert found.frames["a.jpg"].types_without_mask == ("scratch",)
    assert not found.frames["a.jpg"].clean
    assert found.notes[0].startswith("1 masks hold no pixel")


@pytest.mark.parametrize(
    ("address", "there", "name"),
    [
        ("a.jpg", [], "a.jpg"),
        ("/data/upload/3/1a2b3c4d-a.jpg", [], "a.jpg"),
        ("/data/upload/3/1a2b3c4d-a.jpg", ["a.jpg"], "a.jpg"),
        ("/data/upload/1a2b3c4d-a.jpg", ["line1/a.jpg"], "line1/a.jpg"),
        ("/data/upload/3/1a2b3c4d-a.jpg", ["1a2b3c4d-a.jpg", "a.jpg"], "1a2b3c4d-a.jpg"),
        ("/data/upload/3/1a2b3c4d-a.jpg", ["b.jpg"], "1a2b3c4d-a.jpg"),
        ("http://localhost:8080/data/upload/3/1a2b3c4d-my%20a.jpg", [], "my a.jpg"),
        ("s3://bucket/1a2b3c4d-a.jpg", [], "1a2b3c4d-a.jpg"),
        ("s3://bucket/line1/a.jpg", [], "a.jpg"),
        ("s3://bucket/line1/a.jpg", ["line1/a.jpg", "line2/a.jpg", "a.jpg"], "line1/a.jpg"),
        ("s3://bucket/line1/a.jpg", ["line2/a.jpg"], "line2/a.jpg"),
        ("/data/local-files/?d=line1%2Fa%23b.jpg", [], "a#b.jpg"),
        ("/data/local-files/?d=x/line1%2Fa.jpg", ["line1/a.jpg"], "line1/a.jpg"),
        ("/data/local-files/?d=images/line1/a.jpg", [], "line1/a.jpg"),
        ("/data/local-files/?d=images/a.jpg", ["images/a.jpg", "a.jpg"], "a.jpg"),
        ("images/images/a.jpg", ["images/a.jpg", "a.jpg"], "images/a.jpg"),
        ("https://example.org/line1/a.jpg?sig=x/y.png", [], "a.jpg"),
        ("/home/me/a.jpg", [], "a.jpg"),
    ],
)
def test_image_names(folder: Path, address: str, there: list[str], name: str) -> None:
    for image in there:
        picture(folder / "images" / image)
    assert list(read(folder, [task(brush(ROWS), image=address)]).frames) == [name]


@pytest.mark.parametrize(
    "address",
    [
        "../a.jpg",
        "/data/upload/../../etc/a.jpg",
        "/data/local-files/?d=../a.jpg",
        "/data/local-files/?d=%2e%2e%2fa.jpg",
        "/data/local-files/",
        "/data/local-files/?d=" + "&d=a.jpg" * 20,
        "https://example.org/%2e%2e/a.jpg",
        "https://example.org/a%00.jpg",
        "http://[a.jpg",
        "s3://bucket",
        "data:image/png;base64,AAAA",
        "C:\\images\\a.jpg",
        "a\ud800.jpg",
        "/",
        "",
    ],
)
def test_no_address_leads_out_of_the_images(folder: Path, address: str) -> None:
    with pytest.raises(LabelError, match=r"task 1, data 'image': .*expected"):
        read(folder, [task(brush(ROWS), image=address)])


def test_an_end_that_several_images_have_is_refused(folder: Path) -> None:
    for image in ("line1/a.jpg", "line2/a.jpg"):
        picture(folder / "images" / image)
    with pytest.raises(LabelError, match=r"may be 'line1/a.jpg' or 'line2/a.jpg'"):
        read(folder, [task(brush(ROWS), image="s3://bucket/a.jpg")])


@pytest.mark.parametrize("key", ["image", "img", "ocr", "Steel picture"])
def test_any_key_may_hold_the_image(folder: Path, key: str) -> None:
    data = {"text": "b", key: "a.jpg", "coil": "C7", "split": "Validation", "nothing": None}
    found = read(folder, [task(brush(ROWS)) | {"data": data}])
    frame = found.frames["a.jpg"]
    assert frame.attributes == {"text": "b", "coil": "C7"}
    assert frame.split == "val"


def test_the_labelling_interface_says_which_key_and_which_types(folder: Path) -> None:
    (folder / LABEL_STUDIO_CONFIG).write_text(
        '<View><Image name="image" value="$right"/><BrushLabels name="b" toName="image">'
        '<Label value="dent"/><Label value="scratch" background="#fff"/></BrushLabels></View>'
    )
    data = {"image": "a.jpg", "right": "b.jpg"}
    found = read(folder, [task(brush(ROWS)) | {"data": data}])
    assert list(found.frames) == ["b.jpg"]
    assert found.class_ids == ("dent", "scratch")
    with pytest.raises(LabelError, match="label is 'hole', expected one of 'dent', 'scratch'"):
        read(folder, [task(brush(ROWS, "hole"))])
    assert read(folder, [], class_names=("hole",)).class_ids == ("hole",)


LONG_LINE = "n" * 1000

PITFALLS: list[tuple[Any, list[str]]] = [
    (7, ["task no. 1: '7' is no task", "JSON-MIN"]),
    ({"image": "a.jpg", "tag": []}, ["task no. 1", "an object is no task", "JSON-MIN"]),
    (task(brush(ROWS)) | {"data": {"text": "b"}}, ["0 entries", "'text'", "call it 'image'"]),
    (task(brush(ROWS)) | {"data": {"left": "a.jpg", "right": "b.jpg"}}, ["2 entries"]),
    ({"data": {"image": "a.jpg"}}, ["annotations is 'None'", "1.0 or later"]),
    (task(annotations={}), ["annotations is an object"]),
    (task(annotations=[7]), ["annotations is a list of 1"]),
    (task(annotations=[{}]), ["result is 'None'", "empty for a clean frame"]),
    (task(7), ["result is a list of 1"]),
    (
        task(annotations=[{"result": []}, {"result": []}]),
        ["task 1, image 'a.jpg': 2 annotations, expected one: mark one as ground truth or delete"],
    ),
    (task(annotations=[{"result": [], "ground_truth": True}] * 3), ["3 annotations"]),
    (task(brush(ROWS, type="rectanglelabels")), ["result 1", "'rectanglelabels'", "delete it"]),
    (task(brush(ROWS, type="keypointlabels")), ["expected brushlabels or polygonlabels"]),
    (task(brush(ROWS, type=None)), ["None"]),
    (task(brush(ROWS, type=[])), ["a list of 0"]),
    (task(brush(ROWS, value=[])), ["result 1"]),
    (task(brush(ROWS, value={"brushlabels": []})), ["brushlabels is a list of 0", "exactly one"]),
    (task(brush(ROWS, value={"brushlabels": ["a", "b"]})), ["a list of 2"]),
    (task(brush(ROWS, value={"brushlabels": [7]})), ["list of one name"]),
    (task(brush(ROWS, value={"brushlabels": [""]})), ["list of one name"]),
    (task(brush(ROWS, "\ud800")), ["list of one name"]),
    (task(brush(ROWS, "---")), ["'---'", "rename it"]),
    (task(brush(ROWS, "roll mark"), brush(ROWS, "Roll_mark")), ["result 2", "both become the id"]),
    (task(brush(ROWS, value={"brushlabels": ["a"]})), ["format is 'None', expected 'rle'"]),
    (task(brush(ROWS, image_rotation=90)), ["result 1: image_rotation is '90', expected 0"]),
    (task(brush(ROWS, original_width=5)), ["begins with 48 words", "expected 60"]),
    (task(brush(ROWS, original_width=0)), ["'0 x 3'", "from 1 up"]),
    (task(brush(ROWS, original_width="4")), ["original_width x original_height"]),
    (task(brush(ROWS, original_width=True)), ["'True x 3'"]),
    (task(brush(ROWS, original_width=4.0)), ["'4.0 x 3'"]),
    (task(brush(ROWS, original_width=1 << 28)), ["at most 268435456 pixels"]),
    (task(brush(ROWS, original_width=10**400)), ["'1000", "..."]),
    (task(brush(ROWS, original_width=None)), ["'None x 3'"]),
    (task(brush(ROWS), brush(["01"])), ["result 2: drawn at 2 x 1 pixels", "at 4 x 3"]),
    (task(polygon([])), ["points are a list of 0", "per cent"]),
    (task(polygon([[1, 2], [3, 4]])), ["2 points", "at least 3"]),
    (task(polygon([[1, 2], [3, 4], [5]])), ["a list of 3"]),
    (task(polygon([[1, 2], [3, 4], [5, "6"]])), ["a list of 3"]),
    (task(polygon([[1, 2], [3, 4], [5, 10**400]])), ["a list of 3"]),
    (task(polygon([[1, 2], [3, 4], [5, float("nan")]])), ["a list of 3"]),
    (task(polygon([[1, 2], [3, 4], [5, float("inf")]])), ["a list of 3"]),
    (
        task(polygon([[1, 2], [3, 4], [5, 180]])),
        ["point 3 of polygon 1", "expected x from 0 to 10"],
    ),
    (task(polygon([[1, 2], [3, 4], [5, 6]], closed=False)), ["not closed"]),
    (task() | {"data": {"image": "a.jpg", "width_px": "4", "height_px": 3}}, ["data: width_px x"]),
    (task() | {"data": {"image": "a.jpg", "split": "both"}}, ["split is", "train, val or test"]),
    (task() | {"data": {"image": "a.jpg", "split": []}}, ["split is a list of 0"]),
    (task(brush(ROWS, LONG_LINE, type="box")), ["'box'"]),
]


@pytest.mark.parametrize(("broken", "said"), PITFALLS)
def test_a_broken_task_is_one_line_and_never_a_clean_frame(
    folder: Path, broken: Any, said: list[str]
) -> None:
    with pytest.raises(LabelError) as caught:
        read(folder, [broken])
    message = str(caught.value)
    assert message.startswith(f"{folder / 'export.json'} task ")
    assert "\n" not in message
    assert len(message) < 450 + len(str(folder))
    for words in said:
        assert words in message

    picture(folder / "images" / "good.jpg")
    errors: list[LabelError] = []
    found = read(folder, [broken, task(image="good.jpg")], errors)
    assert [str(error) for error in errors] == [message]
    assert list(found.frames) == ["good.jpg"]
    if "image 'a.jpg'" in message:
        assert found.refused == {"a.jpg"}


def test_two_tasks_of_one_image_are_both_refused(folder: Path) -> None:
    errors: list[LabelError] = []
    found = read(folder, [task(brush(ROWS)), task(id=77), task(image="b.jpg")], errors)
    assert "task 77, image 'a.jpg': task 1 has this image too" in str(errors[0])
    assert list(found.frames) == ["b.jpg"]
    assert found.refused == {"a.jpg"}


def test_sizes_are_those_of_the_images(folder: Path) -> None:
    picture(folder / "images" / "a.jpg", (5, 3))
    picture(folder / "images" / "b.jpg", (7, 3))
    with pytest.raises(LabelError, match="labelled at 4 x 3 pixels, but the image has 5 x 3"):
        read(folder, [task(brush(ROWS))])
    found = read(folder, [task(image="b.jpg"), task(image="c.jpg")], size_wh=(9, 9))
    assert [frame.size_wh for frame in found.frames.values()] == [(7, 3), (9, 9)]
    (folder / "images" / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(LabelError, match=r"size of 'a.jpg' cannot be read"):
        read(folder, [task(brush(ROWS))])


def test_unlisted_images_are_clean_only_on_request(folder: Path) -> None:
    for name in ("a.jpg", "new.jpg", "skipped.jpg", "broken.jpg"):
        picture(folder / "images" / name)
    tasks = [
        task(brush(ROWS)),
        task(image="skipped.jpg", annotations=[{"result": [], "was_cancelled": True}]),
        task(7, image="broken.jpg"),
    ]
    assert list(read(folder, tasks, []).frames) == ["a.jpg"]
    found = read(folder, tasks, [], unlisted_are_clean=True)
    assert list(found.frames) == ["a.jpg", "new.jpg"]
    assert found.frames["new.jpg"].clean
    assert found.frames["new.jpg"].size_wh == (4, 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged JSON"),
        (b"[", "damaged JSON"),
        (b"\xff\xfe\x00", "damaged JSON"),
        (b"[" * 100_000, "damaged JSON"),
        (b"[" + b"9" * 5000 + b"]", "damaged JSON"),
        (b'[{"annotations": [], "annotations": []}]', "key twice"),
        (b'{"images": []}', "expected a list of tasks, found an object"),
        (b"7", "expected a list of tasks, found '7'"),
    ],
)
def test_a_file_that_is_no_export_is_refused_even_when_going_on(
    folder: Path, content: bytes, said: str
) -> None:
    (folder / LABELS).write_bytes(content)
    with pytest.raises(LabelError) as caught:
        LABEL_STUDIO.read(folder, ReadOptions(), [])
    assert str(caught.value).startswith(str(folder / LABELS))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from nodes(child, (*path, key))


HOSTILE = [
    task(brush(["0110"]), polygon([[0, 0], [50, 0], [50, 50]]), {"type": "choices", "value": {}})
    | {"predictions": []}
]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_no_value_anywhere_causes_anything_but_a_label_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    tasks: Any = copy.deepcopy(HOSTILE)
    path = data.draw(st.sampled_from([p for p in nodes(tasks) if p]))
    parent = tasks
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = data.draw(JSON_VALUES)
    folder = tmp_path_factory.mktemp("hostile")
    errors: list[LabelError] = []
    try:
        read(folder, tasks, errors)
    except LabelError as error:
        errors.append(error)
    assert all("\n" not in str(error) for error in errors)


# Both ways ---------------------------------------------------------------------------------------

NAMES = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=8).filter(
    lambda name: not {"/", "\\", ":"} & set(name) and name.strip(".")
)


@st.composite
def label_sets(draw: st.DrawFn) -> LabelSet:
    classes = (LabelClass("a", "a"), LabelClass("roll_mark", "roll mark"), LabelClass("Z", '<&">Z'))
    frames = {}
    for image in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
        shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=12))
        masks = draw(st.dictionaries(st.sampled_from(classes), arrays(np.bool_, shape)))
        rles = {c.id: encode_rle(mask) for c, mask in masks.items() if mask.any()}
        attributes = {"coil": "7"} if draw(st.booleans()) else {}
        split = draw(st.sampled_from([None, "train", "test"]))
        frames[image] = FrameLabels(
            image, rles, (shape[1], shape[0]), split=split, attributes=attributes
        )
    return LabelSet("test", Path("x"), classes, frames)


def assert_identity(label_set: LabelSet, folder: Path) -> None:
    assert LABEL_STUDIO.write is not None
    assert LABEL_STUDIO.write(label_set, folder, Placement.LEAVE) == {}
    back = LABEL_STUDIO.read(folder, ReadOptions(), None)
    assert back.classes == label_set.classes
    assert list(back.frames.values()) == list(label_set.frames.values())


@given(label_sets())
@settings(max_examples=40, deadline=None)
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, label_set: LabelSet
) -> None:
    assert_identity(label_set, tmp_path_factory.mktemp("ls"))


@pytest.mark.soak
@given(label_sets())
@settings(max_examples=10_000, deadline=None)
def test_what_is_written_reads_back_10000_times(
    tmp_path_factory: pytest.TempPathFactory, label_set: LabelSet
) -> None:
    assert_identity(label_set, tmp_path_factory.mktemp("ls"))


def test_what_is_written(folder: Path) -> None:
    picture(folder / "from" / "line 1" / "a.jpg", (5, 3))
    mask_hw = np.array(same_rows(SDK_MASK[1]))
    label_set = LabelSet(
        "test",
        folder,
        (LabelClass("1", "1"),),
        {"line 1/a.jpg": FrameLabels("line 1/a.jpg", {"1": encode_rle(mask_hw)}, (5, 3))},
        {"line 1/a.jpg": folder / "from" / "line 1" / "a.jpg"},
    )
    target = folder / "to"
    target.mkdir()
    assert LABEL_STUDIO.write is not None
    LABEL_STUDIO.write(label_set, target, Placement.COPY)
    (written,) = json.loads((target / LABELS).read_text())
    assert written["data"] == {
        "image": "/data/local-files/?d=images/line%201/a.jpg",
        "width_px": 5,
        "height_px": 3,
    }
    (result,) = written["annotations"][0]["result"]
    value = {"format": "rle", "rle": SDK_MASK[0], "brushlabels": ["1"]}
    assert result["value"] == value
    assert (result["original_width"], result["original_height"]) == (5, 3)
    config = (target / LABEL_STUDIO_CONFIG).read_text()
    assert f'<BrushLabels name="{result["from_name"]}" toName="{result["to_name"]}">' in config
    back = LABEL_STUDIO.read(target, ReadOptions(), None)
    assert list(back.image_paths) == list(back.frames) == ["line 1/a.jpg"]


@pytest.mark.parametrize(
    ("frame", "name", "said"),
    [
        (FrameLabels("a.jpg", {}), "1", "size is not known"),
        (FrameLabels("a.jpg", {"2": "1 1"}, (2, 2)), "1", "the type '2', expected one of '1'"),
        (FrameLabels("../a.jpg", {}, (2, 2)), "1", "relative"),
        (FrameLabels("a.jpg", {"1": "9 9"}, (2, 2)), "1", "ends past"),
        (FrameLabels("a.jpg", {}, (2, 2)), "1\n", "control characters"),
    ],
)
def test_nothing_is_written_that_would_not_read_back(
    folder: Path, frame: FrameLabels, name: str, said: str
) -> None:
    label_set = LabelSet("test", folder, (LabelClass("1", name),), {frame.image: frame})
    assert LABEL_STUDIO.write is not None
    with pytest.raises(InputError, match=said):
        LABEL_STUDIO.write(label_set, folder, Placement.LEAVE)
    assert not list(folder.iterdir())


def test_files_that_cannot_be_opened(folder: Path) -> None:
    with pytest.raises(InputError, match="expected a JSON export"):
        LABEL_STUDIO.read(folder, ReadOptions(), None)
    with pytest.raises(InputError, match="expected a JSON export"):
        LABEL_STUDIO.read(folder / "missing.json", ReadOptions(), None)
    assert LABEL_STUDIO.write is not None
    with pytest.raises(InputError, match="cannot be written"):
        LABEL_STUDIO.write(LabelSet("t", folder, (), {}), folder / "no", Placement.LEAVE)


def test_recognised_by_its_beginning(folder: Path) -> None:
    assert LABEL_STUDIO.recognise(folder) is None
    (folder / "coco.json").write_text('{"images": [], "annotations": []}')
    (folder / "list.json").write_text('[{"name": "x"}]')
    assert LABEL_STUDIO.recognise(folder) is None
    (folder / "project-1.json").write_text(json.dumps([task(brush(ROWS))]))
    assert "project-1.json" in str(LABEL_STUDIO.recognise(folder))
    assert "project-1.json" in str(LABEL_STUDIO.recognise(folder / "project-1.json"))
    assert LABEL_STUDIO.recognise(folder / "coco.json") is None
    assert LABEL_STUDIO.recognise(folder / "missing.json") is None
    assert LABEL_STUDIO.recognise(Path("\0")) is None


def severstal(shared_dir: Path, count: int | None) -> LabelSet:
    published = shared_dir / "data" / "severstal" / "train_partial.csv"
    labels = read_csv(published, size_wh=(1600, 256))
    frames = {
        image: FrameLabels(image, frame.rle_by_class, (1600, 256))
        for image, frame in list(labels.items())[:count]
    }
    return LabelSet("severstal", published, tuple(LabelClass(c, c) for c in "1234"), frames)


def test_published_masks_survive(shared_dir: Path, folder: Path) -> None:
    assert_identity(severstal(shared_dir, 80), folder)


@pytest.mark.soak
def test_all_published_masks_survive(shared_dir: Path, folder: Path) -> None:
    label_set = severstal(shared_dir, None)
    assert sum(len(frame.rle_by_class) for frame in label_set.frames.values()) == 5610
    assert_identity(label_set, folder)
