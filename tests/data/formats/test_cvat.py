import random
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageDraw

from steelsight.data.formats.cvat import CVAT, LABELS
from steelsight.data.formats.severstal import read_csv
from steelsight.data.labels import FrameLabels, LabelClass, LabelSet, Placement, ReadOptions
from steelsight.errors import InputError, LabelError
from steelsight.masks import decode_rle, encode_rle, regions

META = (
    "<version>1.1</version><meta><task><labels>"
    "<label><name>scratch</name><type>any</type></label>"
    "<label><name>roll mark</name></label><label><name>dent</name></label>"
    "</labels></task></meta>"
)
IMAGE = '<image id="0" name="a.jpg" width="5" height="4">'
MASK = '<mask label="scratch" rle="0, 1, 1, 1, 1, 1, 1" left="1" top="2" width="3" height="2"/>'
ROWS = ["00000", "00000", "01010", "00100"]


def mask_of(rows: list[str]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.array([[c == "1" for c in row] for row in rows])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def read(
    folder: Path,
    body: str,
    errors: list[LabelError] | None = None,
    *,
    head: str = META,
    **options: Any,
) -> LabelSet:
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n{head}\n{body}\n</annotations>'
    (folder / LABELS).write_text(text, encoding="utf-8")
    return CVAT.read(folder, ReadOptions(**options), errors)


def picture(path: Path, size_wh: tuple[int, int] = (5, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size_wh).save(path)


def naive_masks(path: Path) -> dict[tuple[str, str], list[list[bool]]]:
    """Every mask element, pixel by pixel, united by image and label."""
    found: dict[tuple[str, str], list[list[bool]]] = {}
    for image in ET.parse(path).getroot().iter("image"):
        width, height = int(image.attrib["width"]), int(image.attrib["height"])
        for mask in image.iter("mask"):
            rows = found.setdefault(
                (image.attrib["name"], mask.attrib["label"]),
                [[False] * width for _ in range(height)],
            )
            pixels: list[bool] = []
            for number, run in enumerate(mask.attrib["rle"].split(", ")):
                pixels += [number % 2 == 1] * int(run)
            box_width = int(mask.attrib["width"])
            assert len(pixels) == box_width * int(mask.attrib["height"])
            for i, pixel in enumerate(pixels):
                y, x = divmod(i, box_width)
                rows[y + int(mask.attrib["top"])][x + int(mask.attrib["left"])] |= pixel
    return found


# Reading -----------------------------------------------------------------------------------------


def test_masks_lie_in_their_boxes_row_by_row(folder: Path) -> None:
    found = read(folder, f"{IMAGE}{MASK}</image>")
    assert found.classes == (
        LabelClass("scratch", "scratch"),
        LabelClass("roll_mark", "roll mark"),
        LabelClass("dent", "dent"),
    )
    frame = found.frames["a.jpg"]
    assert frame.rle_by_class == {"scratch": encode_rle(mask_of(ROWS))}
    assert frame.size_wh == (5, 4)
    assert naive_masks(folder / LABELS) == {("a.jpg", "scratch"): mask_of(ROWS).tolist()}


def test_objects_of_one_type_are_united(folder: Path) -> None:
    body = (
        MASK
        + '<mask label="scratch" rle="0,5" left="0" top="2" width="5" height="1"><attribute'
        + ' name="depth">3</attribute></mask>'
        + '<mask label="roll mark" rle="0,1" left="0" top="0" width="1" height="1"/>'
        + '<polygon label="scratch" points="0,0;2,0;2,1;0,1" z_order="0"/>'
    )
    rles = read(folder, f"{IMAGE}{body}</image>").frames["a.jpg"].rle_by_class
    united = mask_of(["11000", "00000", "11111", "00100"])
    assert rles == {"scratch": encode_rle(united), "roll_mark": "1 1"}


def test_polygons_are_in_pixels(folder: Path) -> None:
    points = "2.00,1.00;7.00,1.00;7.00,3.00;2.00,3.00"
    body = f'<image name="a.jpg" width="10" height="4"><polygon label="dent" points="{points}"/>'
    frame = read(folder, f"{body}</image>").frames["a.jpg"]
    drawn = Image.new("1", (10, 4))
    ImageDraw.Draw(drawn).rectangle((2, 1, 6, 2), fill=1)
    assert np.array_equal(decode_rle(frame.rle_by_class["dent"], (10, 4)), np.array(drawn))


def test_an_image_without_objects_is_clean_but_not_one_with_only_tags(folder: Path) -> None:
    tag = '<tag label="dent" source="manual"/>'
    other = IMAGE.replace("a.jpg", "b.jpg")
    found = read(
        folder,
        f"{IMAGE}</image>{other}{tag}</image>"
        + IMAGE.replace("a.", "c.")
        + MASK
        + tag
        + "</image>",
    )
    assert {name: frame.clean for name, frame in found.frames.items()} == {
        "a.jpg": True,
        "c.jpg": False,
    }
    assert found.notes == (
        "2 tags were ignored: they mark no place",
        "1 images have tags and no mask: they stay unlabelled",
        "1 images without objects were taken as clean",
    )


def test_a_mask_without_pixel_is_no_clean_frame(folder: Path) -> None:
    empty = '<mask label="dent" rle="1" left="0" top="0" width="1" height="1"/>'
    found = read(folder, f"{IMAGE}{empty}</image>")
    assert found.frames["a.jpg"].types_without_mask == ("dent",)
    assert not found.frames["a.jpg"].clean
    assert found.notes[0].startswith("1 masks hold no pixel")


@pytest.mark.parametrize(
    ("head", "ids"),
    [
        (META.replace("task", "job"), ("scratch", "roll_mark", "dent")),
        (META.replace("task", "project"), ("scratch", "roll_mark", "dent")),
        (
            "<meta><project><labels><label><name>dent</name></label><label><name>scratch</name>"
            "</label></labels><tasks><task><name>t</name><labels><label><name>dent</name></label>"
            "</labels></task></tasks></project></meta>",
            ("dent", "scratch"),
        ),
        (
            "<meta><task><labels><label><name>ok</name><type>tag</type></label><label><name>scr"
            "&#97;tch</name></label><label><name>1</name><type>points</type><parent>x</parent>"
            "</label></labels></task></meta>",
            ("scratch",),
        ),
        ("", ("scratch",)),
        ("<meta><task><name>t</name></task></meta>", ("scratch",)),
    ],
)
def test_types_are_the_labels_of_the_head(folder: Path, head: str, ids: tuple[str, ...]) -> None:
    found = read(folder, f"{IMAGE}{MASK}</image>", head=head)
    assert found.class_ids == ids
    assert list(found.frames["a.jpg"].rle_by_class) == ["scratch"]


def test_names_that_are_told_replace_the_labels(folder: Path) -> None:
    names = ("hole", "scratch")
    assert read(folder, f"{IMAGE}{MASK}</image>", class_names=names).class_ids == names
    with pytest.raises(LabelError, match="label is 'scratch', expected one of 'hole'"):
        read(folder, f"{IMAGE}{MASK}</image>", class_names=("hole",))


def test_subsets_are_splits_and_folders(folder: Path) -> None:
    picture(folder / "images" / "Train" / "a.jpg")
    picture(folder / "images" / "Test" / "a.jpg")
    body = "".join(
        IMAGE.replace('id="0"', f'subset="{name}"') + "</image>"
        for name in ("Train", "Test", "default")
    )
    found = read(folder, body)
    assert {name: frame.split for name, frame in found.frames.items()} == {
        "Train/a.jpg": "train",
        "Test/a.jpg": "test",
        "a.jpg": None,
    }
    head = META.replace("<task>", "<task><subset>Validation</subset>")
    assert read(folder, f"{IMAGE}</image>", head=head).frames["a.jpg"].split == "val"


def test_other_encodings_are_read(folder: Path) -> None:
    text = f"<annotations>{IMAGE.replace('a.jpg', 'ä.jpg')}</image></annotations>"
    for encoding in ("utf-16", "iso-8859-1", "utf-8-sig"):
        declared = encoding.removesuffix("-sig")
        data = f'<?xml version="1.0" encoding="{declared}"?>{text}'.encode(encoding)
        (folder / LABELS).write_bytes(data)
        assert list(CVAT.read(folder / LABELS, ReadOptions(), None).frames) == ["ä.jpg"]


def mask_with(**changed: str) -> str:
    attributes = {"label": "scratch", "rle": "1,2,1,1,1", "left": "1", "top": "2"}
    attributes |= {"width": "3", "height": "2"} | changed
    return "<mask " + " ".join(f'{k}="{v}"' for k, v in attributes.items() if v != "-") + "/>"


PITFALLS = [
    (mask_with(rle="1,2,1,1"), ["4 runs", "add up to 5 pixels, expected 6 for a box of 3 x 2"]),
    (mask_with(rle="1,2,1,1,2"), ["add up to 7"]),
    (mask_with(rle="1,2,1,1," + "9" * 4000), ["more than 10^12"]),
    (mask_with(rle="9223372036854775807,9223372036854775807,8"), ["more than 10^12"]),
    (mask_with(rle="1,2,1,1,1,"), ["rle holds ''", "whole numbers"]),
    (mask_with(rle=""), ["rle holds ''"]),
    (mask_with(rle="-"), ["rle holds ''"]),
    (mask_with(rle="1,2,-1,1,3"), ["rle holds '-1'"]),
    (mask_with(rle="1,2,1.0,1,1"), ["rle holds '1.0'"]),
    (mask_with(rle="1,2,+1,1,1"), ["rle holds '+1'"]),
    (mask_with(rle="1,2,1 1,1"), ["rle holds '1 1'"]),
    (mask_with(rle="1,2,1_1,1"), ["rle holds '1_1'"]),
    (mask_with(rle="1,2,１,1,1"), ["rle holds '\\uff11'"]),
    (mask_with(rle="1,2,\xa01,1,1"), ["rle holds '\\xa01'"]),
    (mask_with(rle="1," + "9" * 5000), ["rle holds '9999"]),
    (mask_with(left="3"), ["box from (3, 2) with 3 x 2 pixels leaves the image of 5 x 4"]),
    (mask_with(top="3"), ["leaves the image"]),
    (mask_with(left="-1"), ["left is '-1'"]),
    (mask_with(left="1.5"), ["left is '1.5'"]),
    (mask_with(width="0"), ["width is '0', expected a whole number from 1"]),
    (mask_with(height="-"), ["height is ''"]),
    (mask_with(width="9" * 5000), ["width is '9999", "..."]),
    (mask_with(label="hole"), ["<mask>: the label is 'hole', expected one of 'scratch', 'roll m"]),
    (mask_with(label="-"), ["the label is ''"]),
    ('<box label="dent" xtl="1" ytl="1" xbr="2" ybr="2"/>', ["<box>: this object is no mask"]),
    ('<points label="dent" points="1,1"/>', ["<points>: this object is no mask"]),
    ('<polyline label="dent" points="1,1;2,2"/>', ["<polyline>"]),
    ('<ellipse label="dent"/>', ["<ellipse>"]),
    ('<cuboid label="dent"/>', ["<cuboid>"]),
    ('<skeleton label="dent"><points label="1"/></skeleton>', ["<skeleton>", "delete it"]),
    ('<blob label="dent"/>', ["<blob>: this object is unknown"]),
    ('<polygon label="dent"/>', ["points are ''", "x,y;x,y"]),
    ('<polygon label="dent" points="1,1;2,2"/>', ["2 points, expected at least 3"]),
    ('<polygon label="dent" points="1,1;2,2;3"/>', ["points are '1,1;2,2;3'"]),
    ('<polygon label="dent" points="1,1;2,2;3,nan"/>', ["points are '1,1;2,2;3,nan'"]),
    ('<polygon label="dent" points="1,1;2,2;3,1e999"/>', ["points are"]),
    ('<polygon label="dent" points="1,1;2,2;3,1_0"/>', ["points are"]),
    ('<polygon label="dent" points="1,1;2,2;3,70"/>', ["point 3 of polygon 1"]),
]


@pytest.mark.parametrize(("element", "said"), PITFALLS)
def test_a_broken_object_is_one_line_and_never_a_clean_frame(
    folder: Path, element: str, said: list[str]
) -> None:
    good = IMAGE.replace("a.jpg", "good.jpg") + "</image>"
    with pytest.raises(LabelError) as caught:
        read(folder, f"{IMAGE}\n{element}</image>")
    message = str(caught.value)
    assert message.startswith(f"{folder / LABELS}")
    assert " line " in message
    assert "image 'a.jpg'" in message
    assert "\n" not in message
    assert len(message) < 450 + len(str(folder))
    for words in said:
        assert words in message

    errors: list[LabelError] = []
    found = read(folder, f"{IMAGE}\n{element}</image>{good}", errors)
    assert [str(error) for error in errors] == [message]
    assert list(found.frames) == ["good.jpg"]
    assert found.refused == {"a.jpg"}


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ('<image name="../a.jpg" width="5" height="4"/>', "'../a.jpg'"),
        ('<image name="/a.jpg" width="5" height="4"/>', "'/a.jpg'"),
        ('<image name="a&#10;.jpg" width="5" height="4"/>', "control characters"),
        ('<image width="5" height="4"/>', "image is empty"),
        ('<image name="a.jpg" height="4"/>', "width is ''"),
        ('<image name="a.jpg" width="5.0" height="4"/>', "width is '5.0'"),
        ('<image name="a.jpg" width="5" height="0"/>', "height is '0'"),
        ('<image name="a.jpg" width="99999" height="99999"/>', "at most 268435456"),
        ('<image name="small.jpg" width="5" height="4"/>', "but the image has 2 x 2"),
        ('<image name="damaged.jpg" width="5" height="4"/>', "cannot be read"),
    ],
)
def test_a_broken_image_is_refused_with_all_its_objects(
    folder: Path, image: str, said: str
) -> None:
    picture(folder / "images" / "small.jpg", (2, 2))
    (folder / "images" / "damaged.jpg").write_bytes(b"no picture")
    with pytest.raises(LabelError) as caught:
        read(folder, image)
    assert str(caught.value).startswith(f"{folder / LABELS} line 4, image ")
    assert said in str(caught.value)
    errors: list[LabelError] = []
    found = read(folder, image.replace("/>", f">{MASK}<box/></image>") + f"{MASK}", errors)
    assert [str(error) for error in errors] == [str(caught.value)]
    assert not found.frames


def test_all_errors_of_a_file_are_collected(folder: Path) -> None:
    errors: list[LabelError] = []
    read(folder, f"{IMAGE}\n<box/>\n<points/></image>\n{IMAGE}</image>", errors)
    assert [str(e).removeprefix(f"{folder / LABELS} line ")[0] for e in errors] == ["5", "6", "7"]


def test_an_image_listed_twice_is_refused_both_times(folder: Path) -> None:
    errors: list[LabelError] = []
    found = read(folder, f"{IMAGE}{MASK}</image>{IMAGE}</image>", errors)
    assert "listed twice" in str(errors[0])
    assert not found.frames
    assert found.refused == {"a.jpg"}


def test_unlisted_images_are_clean_only_on_request(folder: Path) -> None:
    for name in ("a.jpg", "new.jpg", "tagged.jpg"):
        picture(folder / "images" / name)
    body = f"{IMAGE}<box/></image>{IMAGE.replace('a.', 'tagged.')}<tag/></image>"
    assert not read(folder, body, []).frames
    found = read(folder, body, [], unlisted_are_clean=True)
    assert {name: frame.size_wh for name, frame in found.frames.items()} == {"new.jpg": (5, 4)}


LAUGHS = (
    '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
    '<annotations><image name="&b;"/></annotations>'
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged XML (no element found)"),
        (b"{}", "damaged XML"),
        (b"<annotations><image>", "damaged XML"),
        (b"<annotations></annotation>", "line 1: damaged XML (mismatched tag)"),
        (b"<annotations>\xff</annotations>", "damaged XML"),
        (b"<annotations>&b;</annotations>", "damaged XML (undefined entity)"),
        (b"<annotation><folder/></annotation>", "the root is <annotation>, expected <annotations>"),
        (b"<annotations>\n<track id='0'/></annotations>", "line 2: a <track>, expected images"),
        (LAUGHS.encode(), "a DOCTYPE, expected none"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotations/>', "a DOCTYPE, expected none"),
        (b"<annotations>" * 40, "more than 32 deep"),
        (b'<?xml version="1.0" encoding="klingon"?><annotations/>', "encoding"),
        (b'<?xml version="1.0" encoding="shift_jis"?><annotations/>', "encoding"),
        (
            b"<annotations><meta><task><labels><label><name>" + b"n\n" * 9999,
            "longer than 1000 characters",
        ),
        (
            b"<annotations><meta><task><labels><label><name>A b</name></label><label><name>a_b"
            b"</name></label></labels></task></meta></annotations>",
            "both become the id",
        ),
        (
            b"<annotations><meta><task><labels><label></label></labels></task></meta>"
            b"</annotations>",
            "type is called ''",
        ),
    ],
)
def test_a_file_that_is_no_export_is_refused_even_when_going_on(
    folder: Path, content: bytes, said: str
) -> None:
    (folder / LABELS).write_bytes(content)
    with pytest.raises(LabelError) as caught:
        CVAT.read(folder, ReadOptions(), [])
    assert str(caught.value).startswith(str(folder / LABELS))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_types_than_any_data_set_has(folder: Path) -> None:
    body = "".join(mask_with(label=f"t{i}") for i in range(1001))
    with pytest.raises(LabelError, match="type number 1001"):
        read(folder, f"{IMAGE}{body}</image>", head="")


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_no_change_of_a_byte_causes_anything_but_a_label_error(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    rng = random.Random(seed)
    polygon = '<polygon label="dent" points="1,1;2,2;3,1"/>'
    data = bytearray(f"<annotations>{META}{IMAGE}{MASK}{polygon}</image></annotations>".encode())
    for _ in range(rng.choice([1, 2, 5])):
        data[rng.randrange(len(data))] = rng.choice(b"<>&\"'=0123456789-.,;/ eax\x00\xff")
    path = tmp_path_factory.mktemp("hostile") / LABELS
    path.write_bytes(data)
    errors: list[LabelError] = []
    try:
        CVAT.read(path, ReadOptions(), errors)
    except LabelError as error:
        errors.append(error)
    assert all("\n" not in str(error) for error in errors)


def test_files_that_cannot_be_opened(folder: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(No such file"):
        CVAT.read(folder / "missing.xml", ReadOptions(), None)
    with pytest.raises(InputError, match=r"expected annotations\.xml or one other .* found none"):
        CVAT.read(folder, ReadOptions(), None)
    assert CVAT.write is not None
    with pytest.raises(InputError, match="cannot be written"):
        CVAT.write(LabelSet("t", folder, (), {}), folder / "no", Placement.LEAVE)


def test_recognised_by_its_root(folder: Path) -> None:
    assert CVAT.recognise(folder) is None
    (folder / LABELS).write_text("<annotation><folder/></annotation>")
    assert CVAT.recognise(folder) is None
    read(folder, "")
    assert "annotations.xml" in str(CVAT.recognise(folder))
    assert CVAT.recognise(folder / LABELS)
    assert CVAT.recognise(folder / "missing.xml") is None
    assert CVAT.recognise(Path("\0.xml")) is None


def test_a_file_of_another_name_is_found_in_its_folder(folder: Path) -> None:
    expected = read(folder, IMAGE + MASK + "</image>").frames
    (folder / LABELS).rename(folder / "train.xml")  # as Datumaro calls it
    (folder / "label_config.xml").write_text("<View></View>")
    assert CVAT.recognise(folder) == "train.xml begins with <annotations>"
    assert CVAT.read(folder, ReadOptions(), None).frames == expected
    (folder / "test.xml").write_text("<annotations/>")
    assert CVAT.recognise(folder) is None
    with pytest.raises(InputError, match=r"found test\.xml, train\.xml; give the file"):
        CVAT.read(folder, ReadOptions(), None)
    read(folder, "")  # annotations.xml comes before both
    assert CVAT.recognise(folder) == "annotations.xml begins with <annotations>"
    assert CVAT.read(folder, ReadOptions(), None).frames == {}


# Both ways ---------------------------------------------------------------------------------------

NAMES = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=8).filter(
    lambda name: not {"/", "\\", ":"} & set(name) and name.strip(".")
)
CLASSES = (LabelClass("a", "a"), LabelClass("roll_mark", "roll mark"), LabelClass("Z", "<'&\">Z"))


@st.composite
def label_sets(draw: st.DrawFn) -> LabelSet:
    frames = {}
    for image in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
        shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=14))
        masks = draw(st.dictionaries(st.sampled_from(CLASSES), arrays(np.bool_, shape)))
        rles = {c.id: encode_rle(mask) for c, mask in masks.items() if mask.any()}
        split = draw(st.sampled_from([None, "train", "test"]))
        frames[image] = FrameLabels(image, rles, (shape[1], shape[0]), split=split)
    return LabelSet("test", Path("x"), CLASSES, frames)


def write(label_set: LabelSet, folder: Path, placement: Placement = Placement.LEAVE) -> None:
    assert CVAT.write is not None
    assert CVAT.write(label_set, folder, placement) == {}


def assert_identity(label_set: LabelSet, folder: Path) -> None:
    write(label_set, folder)
    back = CVAT.read(folder, ReadOptions(), None)
    assert back.classes == label_set.classes
    assert list(back.frames.values()) == list(label_set.frames.values())


@given(label_sets())
@settings(max_examples=40, deadline=None)
def test_what_is_written_reads_back_also_pixel_by_pixel(
    tmp_path_factory: pytest.TempPathFactory, label_set: LabelSet
) -> None:
    folder = tmp_path_factory.mktemp("cvat")
    assert_identity(label_set, folder)
    name_of = {c.id: c.name for c in CLASSES}
    assert naive_masks(folder / LABELS) == {
        (image, name_of[class_id]): decode_rle(rle, frame.size_wh or (0, 0)).tolist()
        for image, frame in label_set.frames.items()
        for class_id, rle in frame.rle_by_class.items()
    }


@pytest.mark.soak
@given(label_sets())
@settings(max_examples=10_000, deadline=None)
def test_what_is_written_reads_back_10000_times(
    tmp_path_factory: pytest.TempPathFactory, label_set: LabelSet
) -> None:
    assert_identity(label_set, tmp_path_factory.mktemp("cvat"))


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=25)))
@settings(max_examples=40, deadline=None)
def test_every_region_is_one_mask_in_its_tightest_box(
    tmp_path_factory: pytest.TempPathFactory, mask_hw: np.ndarray[Any, np.dtype[np.bool_]]
) -> None:
    folder = tmp_path_factory.mktemp("cvat")
    frame = FrameLabels("a.jpg", {"a": encode_rle(mask_hw)}, (mask_hw.shape[1], mask_hw.shape[0]))
    write(LabelSet("test", folder, CLASSES, {"a.jpg": frame}), folder)
    masks = [m.attrib for m in ET.parse(folder / LABELS).getroot().iter("mask")]
    boxes = [tuple(int(m[key]) for key in ("left", "top", "width", "height")) for m in masks]
    areas = [sum(map(int, m["rle"].split(",")[1::2])) for m in masks]
    expected = [(region.bbox_xywh, region.area_px) for region in regions(mask_hw)]
    assert sorted(zip(boxes, areas, strict=True)) == sorted(expected)
    # As CVAT writes runs: only the first one may be empty.
    assert all("0" not in m["rle"].split(", ")[1:] for m in masks)


def test_what_is_written(folder: Path) -> None:
    picture(folder / "from" / "a&b.jpg")
    frame = FrameLabels("a&b.jpg", {"Z": encode_rle(mask_of(ROWS))}, (5, 4), split="val")
    paths = {"a&b.jpg": folder / "from" / "a&b.jpg"}
    target = folder / "to"
    target.mkdir()
    write(LabelSet("test", folder, CLASSES, {"a&b.jpg": frame}, paths), target, Placement.COPY)
    root = ET.parse(target / LABELS).getroot()
    assert [label.findtext("name") for label in root.iter("label")] == [c.name for c in CLASSES]
    (image,) = root.iter("image")
    assert image.attrib == {
        "id": "0",
        "name": "a&b.jpg",
        "width": "5",
        "height": "4",
        "subset": "val",
    }
    (mask,) = image
    assert mask.attrib == {
        "label": "<'&\">Z",
        "source": "file",
        "occluded": "0",
        "rle": "0, 1, 1, 1, 1, 1, 1",
        "left": "1",
        "top": "2",
        "width": "3",
        "height": "2",
        "z_order": "0",
    }
    back = CVAT.read(target, ReadOptions(), None)
    assert list(back.image_paths) == list(back.frames) == ["a&b.jpg"]
    before = (target / LABELS).read_bytes()
    write(back, target)
    assert (target / LABELS).read_bytes() == before


def test_columns_go_into_a_table_of_frames(folder: Path) -> None:
    frame = FrameLabels("a.jpg", {}, (5, 4), attributes={"coil": "C7"})
    write(LabelSet("test", folder, CLASSES, {"a.jpg": frame}), folder)
    assert "a.jpg,clean,,C7" in (folder / "images.csv").read_text()


@pytest.mark.parametrize(
    ("frame", "name", "said"),
    [
        (FrameLabels("a.jpg", {}), "1", "size is not known"),
        (FrameLabels("a.jpg", {"2": "1 1"}, (2, 2)), "1", "the type '2', expected one of '1'"),
        (FrameLabels("../a.jpg", {}, (2, 2)), "1", "relative"),
        (FrameLabels("a.jpg", {"1": "9 9"}, (2, 2)), "1", "ends past"),
        (FrameLabels("a.jpg", {}, (2, 2)), "1\x01", "control characters"),
    ],
)
def test_nothing_is_written_that_would_not_read_back(
    folder: Path, frame: FrameLabels, name: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        write(LabelSet("t", folder, (LabelClass("1", name),), {frame.image: frame}), folder)
    assert not list(folder.iterdir())


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
