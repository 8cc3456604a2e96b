"""The exploration page: offline, inert, bounded, complete, and the same every time."""

import hashlib
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from steelsight.data.catalog import Catalog, FrameRecord
from steelsight.data.duplicates import DuplicatePair, Duplicates, Likeness, Turn
from steelsight.data.explore import summarise
from steelsight.data.labels import FrameLabels, LabelClass, LabelSet
from steelsight.errors import InputError
from steelsight.masks import encode_rle
from steelsight.report.explore_page import PageLimits, render_explore_page, write_explore_page

VOID = {"meta", "img", "br"}
HOSTILE = (
    "<script>alert(1)</script>.png",
    "a\"b'c&amp;<b>.png",
    "evil\u202egpj.png",
    "{{ 7*7 }}{% raw %}.png",
    "x" * 200 + ".png",
    "sp\udcffam.png",
)


class Page(HTMLParser):
    """Reads a page: attributes, text, anchors; refuses tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.ids, self.words = [], [], set(), []
        self._open = []
        self.feed(text)
        self.close()
        assert self._open == []
        self.text = " ".join(" ".join(self.words).split()).replace("\u00a0", " ")

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name == "id":
                assert value not in self.ids
                self.ids.add(value)
            if name in ("href", "src"):
                self.references.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.words.append(data)

    def pictures(self):
        return [a for tag, a in self.tags if tag == "img" and "image/jpeg" in a["src"]]


def box_rle(x, y, w, h, size_wh):
    mask = np.zeros(size_wh[::-1], np.bool_)
    mask[y : y + h, x : x + w] = True
    return encode_rle(mask)


@pytest.fixture
def build(tmp_path):
    """``build(size_wh, frames, names)``: a scanned data set with drawn images on disk."""

    def built(size_wh=(320, 96), frames=30, names=("1", "2"), prefix=""):
        rng = np.random.default_rng(1)
        paths, labels, records = {}, {}, []
        for index in range(frames):
            image = f"{prefix}{index:03}.png"
            path = tmp_path / f"{index:03}.png"
            grey = rng.integers(60, 140, size_wh[::-1]).astype(np.uint8)
            cv2.imwrite(str(path), grey)
            rles = {}
            if index % 3:
                box = (10 + index, 20, 6 + index, 12)
                rles = {("1", "2")[index % 2]: box_rle(*box, size_wh)}
            labels[image] = FrameLabels(image, rles, size_wh, split=("train", "test")[index % 2])
            paths[image] = path
            records.append(
                FrameRecord(
                    image, path, labels[image], "0" * 64, hashlib.sha256(grey).hexdigest(),
                    size_wh, float(grey.mean()), float(grey.std()), 0.0,
                )
            )  # fmt: skip
        classes = tuple(LabelClass(str(i), n) for i, n in enumerate(names, 1))
        label_set = LabelSet("kaggle", Path("strip/train.csv"), classes, labels, paths)
        return label_set, Catalog(label_set, tuple(records), np.zeros((frames, 1), np.float32))

    return built


def render(label_set, catalog=None, duplicates=None, **more):
    summary = summarise(label_set, catalog, duplicates)
    return render_explore_page(summary, label_set=label_set, duplicates=duplicates, **more)


def family(*images, turn=Turn.ROTATE_180, likeness=Likeness.SAME_PIXELS):
    return Duplicates(
        tuple(DuplicatePair(images[0], b, likeness, turn, 1.0) for b in images[1:]), (images,)
    )


def test_page_tells_the_whole_story(build):
    label_set, catalog = build()
    text = render(
        label_set, catalog, family("001.png", "004.png", "005.png"), command="steelsight data"
    )
    page = Page(text)
    assert "30 frames: 20 faulty, 10 clean." in page.text
    sections = {"means", "types", "shape", "place", "examples", "clean", "light", "copies", "about"}
    assert sections <= page.ids
    for reference in page.references:
        assert reference.startswith(("#", "data:image/")), reference
        assert not reference.startswith("#") or reference[1:] in page.ids
    assert {"predict-nothing", "type-test-limit", "duplicates"} <= page.ids
    assert "Predicting nothing scores" in page.text
    assert "the same pixels as 001.png, rotated by 180° · train · Type 1" in page.text
    assert "ACROSS THE SPLIT" in page.text
    assert "DIFFERENT TYPES" in page.text
    assert len(page.pictures()) == 2 * 3 + 3 + 3
    assert "Content-Security-Policy" in text
    assert text == render(
        label_set, catalog, family("001.png", "004.png", "005.png"), command="steelsight data"
    )


def test_labels_alone_leave_pictures_out_and_say_so(build):
    label_set, _ = build()
    alone = LabelSet(label_set.format, label_set.source, label_set.classes, label_set.frames)
    page = Page(render(alone))
    assert page.pictures() == []
    assert "No images were given: brightness, copies and pictures are left out." in page.text
    assert "Left out: there is no readable image of a faulty frame." in page.text
    assert "Left out: no image was read." in page.text
    assert {"shape", "place"} <= page.ids


def test_types_alone_leave_shapes_out_and_say_so():
    frames = {
        f"{i}.png": FrameLabels(f"{i}.png", {}, types_without_mask=("a",) if i else ())
        for i in range(4)
    }
    label_set = LabelSet("types", Path("t.csv"), (LabelClass("a", "dent"),), frames)
    page = Page(render(label_set))
    assert "There are no masks" in page.text
    assert "Left out: no mask was measured." in page.text
    assert "place" not in page.ids


@pytest.mark.parametrize("classes", [(), (LabelClass("1", "1"),)])
def test_an_empty_data_set_has_a_page(classes):
    page = Page(render(LabelSet("none", Path("empty"), classes, {})))
    assert "0 frames: 0 faulty, 0 clean." in page.text
    assert "No frame is known to hold a defect." in page.text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_names_are_only_text(build, hostile):
    label_set, catalog = build(prefix=hostile, frames=12, names=(hostile, "b"))
    images = list(label_set.frames)
    text = render(
        label_set, catalog, family(images[1], images[2]),
        title=hostile, source=hostile, command=hostile, created=hostile, files={hostile: hostile},
    )  # fmt: skip
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "b:", "object", "link"})
    assert "\u202e" not in text
    for reference in page.references:
        assert reference.startswith(("#", "data:image/", "./")), reference
    text.encode("utf-8")


def test_pictures_stay_within_their_budget(build):
    label_set, catalog = build()
    page = Page(render(label_set, catalog, limits=PageLimits(picture_bytes=300_000)))
    shown = page.pictures()
    assert 0 < len(shown) < 9
    assert sum(len(a["src"]) for a in shown) < 300_000 * 4 / 3 + 100 * len(shown)
    assert "No picture of this frame" in page.text


def test_an_image_that_broke_since_the_scan_is_left_out(build):
    label_set, catalog = build(frames=6)
    summary = summarise(label_set, catalog)
    for path in label_set.image_paths.values():
        path.write_bytes(b"broken")
    page = Page(render_explore_page(summary, label_set=label_set))
    assert page.pictures() == []
    assert "it cannot be read" in page.text


def test_families_are_bounded_and_those_that_do_harm_come_first(build):
    label_set, catalog = build()
    groups = (("000.png", "003.png"), ("006.png", "012.png"), ("001.png", "004.png"))
    pairs = tuple(DuplicatePair(a, b, Likeness.NEAR, Turn.NONE, 0.9) for a, b in groups)
    page = Page(
        render(label_set, catalog, Duplicates(pairs, groups), limits=PageLimits(families=2))
    )
    assert "2 are shown, those with different types or across the given split first." in page.text
    assert "nearly the same pixels as 001.png · train" in page.text  # types differ
    assert "nearly the same pixels as 000.png · test · clean" in page.text  # across the split
    assert "the same pixels as 006.png" not in page.text


def test_many_types_show_the_most_frequent(build):
    frames = {
        f"{i}.png": FrameLabels(f"{i}.png", {f"t{i % 60}": "1 9"}, (64, 64)) for i in range(90)
    }
    classes = tuple(LabelClass(f"t{i}", f"t{i}") for i in range(60))
    page = Page(render(LabelSet("m", Path("m"), classes, frames), limits=PageLimits(types=30)))
    assert "The 30 most frequent of 60 types are shown" in page.text


# Files -------------------------------------------------------------------------------------------


def test_written_at_once_and_nothing_left_behind(build, tmp_path):
    label_set, catalog = build(frames=6)
    path = tmp_path / "out" / "report.html"
    write_explore_page(summarise(label_set, catalog), path, label_set=label_set, title="T")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert "<h1><bdi>T</bdi></h1>" in path.read_text(encoding="utf-8")


def test_a_place_that_cannot_be_written_is_one_line(build, tmp_path):
    label_set, _ = build(frames=3)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written") as caught:
        write_explore_page(
            summarise(label_set), tmp_path / "file" / "report.html", label_set=label_set
        )
    assert "\n" not in str(caught.value)
