"""The page as a browser gets it: parsed, not searched as text where structure matters."""

import base64
import html
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from tests.pages import Page

from steelsight.data.audit import audit
from steelsight.data.catalog import scan
from steelsight.data.duplicates import DuplicatePair, Duplicates, Likeness, Turn, turned
from steelsight.data.findings import Code
from steelsight.data.labels import FrameLabels, LabelClass, LabelSet, find_images
from steelsight.errors import InputError, LabelError
from steelsight.masks import encode_rle
from steelsight.report.audit_page import AuditPageLimits, write_audit_page
from steelsight.report.data_page import TURN_WORDS

RUN = {
    "title": "Coil 4711",
    "source": "frames/",
    "command": "steelsight data check frames/ --out check/",
    "created": "2026-03-01T06:00:00+01:00",
}
NO_COPIES = Duplicates((), ())
CLASSES = (LabelClass("1", "pits"), LabelClass("2", "scratches"))


def steel(seed, shape_hw=(64, 160)):
    noise = np.random.default_rng(seed).normal(100, 16, shape_hw)
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 1), 0, 255).astype(np.uint8)


def disc(x, y, radius, shape_hw=(64, 160)):
    return cv2.circle(np.zeros(shape_hw, np.uint8), (x, y), radius, 1, -1) > 0


@pytest.fixture
def build(tmp_path):
    """``build({name: (pixels, masks or None, further labels)})`` -> catalog."""

    def scanned(frames, classes=CLASSES, notes=()):
        folder = tmp_path / "set"
        labels = {}
        for image, (grey, masks, more) in frames.items():
            if grey is not None:
                (folder / image).parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(folder / image), np.ascontiguousarray(grey))
            if masks is not None:
                rles = {c: encode_rle(m) for c, m in masks.items()}
                labels[image] = FrameLabels(image, rles, **more)
        paths = find_images(folder)
        return scan(LabelSet("coco", folder, classes, labels, paths, notes=notes))

    return scanned


@pytest.fixture
def written(tmp_path):
    def write(found, catalog, duplicates=NO_COPIES, **options):
        path = tmp_path / "out" / "audit.html"
        write_audit_page(found, catalog, duplicates, path, **{**RUN, **options})
        return path.read_text(encoding="utf-8")

    return write


@pytest.fixture
def leaking(build):
    """A test frame that is a turned training frame, with another mask; specks; a broken label."""
    spot = disc(50, 20, 12) | disc(120, 50, 1)
    frame = steel(1)
    frame[spot] -= 50
    other = np.ascontiguousarray(turned(disc(58, 20, 12), Turn.ROTATE_90))
    catalog = build(
        {
            "test/b.png": (turned(frame, Turn.ROTATE_90), {"1": other}, {"split": "test"}),
            "train/a.png": (frame, {"1": spot}, {"split": "train"}),
            "train/c.png": (steel(3), {}, {"split": "train"}),
            "train/d.png": (steel(4), None, {}),
        }
    )
    pair = DuplicatePair("test/b.png", "train/a.png", Likeness.SAME_PIXELS, Turn.ROTATE_270, 1.0)
    duplicates = Duplicates((pair,), (("test/b.png", "train/a.png"),))
    errors = [LabelError("train.csv row 9, image 'x.png': broken " + "1 2 " * 100)]
    return audit(catalog, duplicates, label_errors=errors), catalog, duplicates


def pictures(page):
    for image in page.all("img"):
        head, _, body = image["src"].partition(",")
        assert head == "data:image/jpeg;base64"
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(body), np.uint8), cv2.IMREAD_COLOR)
        assert pixels.shape[1::-1] == (int(image["width"]), int(image["height"]))
        yield image["alt"], pixels


def test_the_page_says_the_verdict_and_links_every_finding(leaking, written):
    found, catalog, duplicates = leaking
    text = written(found, catalog, duplicates, files={"audit.json": "audit.json"})
    page = Page(text)
    assert found.verdict in page.text
    assert "leaks from training into test" in page.text
    sections = [a["id"] for a in page.all("section")]
    codes = [f.code.value for f in found.findings]
    assert sections == ["findings", *codes, "not-checked", "run"]
    links = {a["href"] for a in page.all("a")}
    assert {f"#{code}" for code in codes} < links
    assert "./audit.json" in links
    for finding in found.findings:
        assert finding.told in page.text
        assert finding.advice in page.text
    for line in found.not_checked:
        assert line in page.text
    assert RUN["command"] in page.text
    assert "1 of 2 frames" in page.text  # sizes of families
    # A label error is shown whole.
    assert str(found.findings[[f.code for f in found.findings].index(Code.BROKEN_LABEL)]
               .evidence[0].text).split()[-1] in page.text  # fmt: skip
    assert "1 2 " * 90 in page.text


def test_copies_are_turned_so_that_they_look_alike(leaking, written):
    page = Page(written(*leaking))
    leak = list(pictures(page))[:2]
    assert [alt.split(":")[0] for alt, _ in leak] == ["train/a.png", "test/b.png"]
    (_, first), (_, second) = leak
    assert first.shape == second.shape
    assert first.shape[0] > first.shape[1]  # lying frame, shown upright
    # Away from the outlines they are the same pixels.
    grey = [cv2.cvtColor(p, cv2.COLOR_BGR2GRAY).astype(int) for p in (first, second)]
    bottom = slice(grey[0].shape[0] // 2 + 40, None)
    assert np.median(np.abs(grey[0][bottom] - grey[1][bottom])) <= 1
    assert f"the left one is shown {TURN_WORDS[Turn.ROTATE_90]}" in page.text
    assert "a turned copy is turned back to compare" in page.text


def test_outlines_are_drawn_in_the_colour_of_the_type(leaking, written):
    page = Page(written(*leaking))
    blue = [((p[..., 0].astype(int) - p[..., 2]) > 100).sum() for _, p in list(pictures(page))[:2]]
    assert min(blue) > 100


def test_the_page_is_offline_and_has_no_scripts(leaking, written):
    text = written(*leaking)
    page = Page(text)
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'")
    assert not page.all("script")
    assert not page.all("link")
    assert "http" not in re.sub(r"http-equiv|http://www\.w3\.org/2000/svg", "", text)
    assert all(a["src"].startswith("data:") for a in page.all("img"))
    assert page.all("img")[0]["alt"] == "train/a.png: type pits"


HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}\u202egpj"


def test_hostile_names_are_shown_and_do_nothing(build, written):
    spot = disc(50, 20, 12)
    frame = steel(1)
    frame[spot] -= 50
    image = "a<img src=x onerror=alert(1)>&quot;{{7*7}}.png"
    catalog = build(
        {image: (frame, {"1": spot}, {"disputed": True})},
        classes=(LabelClass("1", HOSTILE),),
        notes=(HOSTILE,),
    )
    found = audit(catalog, Duplicates((), ()), label_errors=[LabelError(HOSTILE)])
    text = written(
        replace(found, source=HOSTILE, format=HOSTILE, not_checked=(HOSTILE,)),
        catalog,
        title=HOSTILE,
        source=HOSTILE,
        command=HOSTILE,
        created=HOSTILE,
        files={HOSTILE: "javascript:alert(1)"},
    )
    page = Page(text)
    assert not page.all("script")
    assert all("onerror" not in a for _, a in page.elements)
    assert len(page.all("img")) == 1
    assert "\u202e" not in text
    assert "‹U+202E›" in page.text
    assert "<script>alert(1)</script>" in html.unescape(text)
    assert "{{7*7}}" in page.text
    assert all(a["href"].startswith(("#", "./")) for a in page.all("a"))


def test_names_with_bytes_that_are_no_text(build, written):
    catalog = build({"a.png": (steel(1), {}, {"disputed": True})})
    found = audit(catalog, Duplicates((), ()))
    finding = replace(found.findings[0], told="odd \udcff name.")
    assert "odd" in Page(written(replace(found, findings=(finding,)), catalog)).text


def test_what_is_shown_is_bounded_and_counted(build, written):
    frames = {f"{i:03d}.png": (steel(i), {}, {"disputed": True}) for i in range(60)}
    frames |= {f"u{i:03d}.png": (steel(100 + i), None, {}) for i in range(40)}
    catalog = build(frames)
    found = audit(catalog, Duplicates((), ()))
    page = Page(written(found, catalog, limits=AuditPageLimits(lines=25)))
    assert "8 of 60 are shown, taken from the whole list." in page.text
    assert "8 of 40 are shown" in page.text
    assert len(page.all("img")) == 16
    assert "The first 25 of 60 as a list" in page.text
    shown = [a["alt"].split(":")[0] for a in page.all("img")][:8]
    assert shown[0] == "000.png"
    assert shown[-1] == "059.png"

    page = Page(written(found, catalog, limits=AuditPageLimits(picture_bytes=50_000)))
    size = sum(len(a["src"]) for a in page.all("img"))
    assert 0 < size <= 50_000 * 4 / 3 + 16 * 50
    assert len(page.all("img")) < 16


def test_a_page_of_everything_at_its_limits_stays_small(build, written, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (700, 1600), np.uint8)  # hard to compress
    frames = {f"{'n' * 150}{i}.png": (noise[:, i:], None, {}) for i in range(3)}
    catalog = build(frames)
    found = audit(catalog, Duplicates((), ()))
    finding = next(f for f in found.findings if f.code is Code.UNLABELLED)
    many = replace(finding, evidence=finding.evidence * 400)
    page = written(replace(found, findings=(many,) * 27), catalog)
    assert len(page) <= 12_000_000
    assert "No picture" not in page


def test_a_sound_data_set_is_told_so(build, written):
    spot = disc(50, 20, 12)
    frame = steel(1)
    frame[spot] -= 50
    catalog = build({"a.png": (frame, {"1": spot}, {})})
    found = audit(catalog, Duplicates((), ()))
    assert not found.findings
    page = Page(written(found, catalog))
    assert "Nothing wrong was found." in page.text
    assert "Silence about these is no approval." in page.text
    assert not page.all("img")


def test_an_image_that_is_gone_leaves_a_page(leaking, written):
    found, catalog, duplicates = leaking
    for record in catalog.records:
        record.path.unlink()
    page = Page(written(found, catalog, duplicates))
    assert not page.all("img")
    assert "All 1 as a list" in page.text or "test/b.png" in page.text


def test_the_same_input_gives_the_same_bytes(leaking, written):
    assert written(*leaking) == written(*leaking)


def test_a_folder_that_cannot_be_written(leaking, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_audit_page(*leaking, tmp_path / "file" / "audit.html", **RUN)
    with pytest.raises(InputError, match="cannot be written"):
        write_audit_page(*leaking, tmp_path, **RUN)
