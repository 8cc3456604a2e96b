"""The report file: offline, inert, complete, small, and the same every time."""

import dataclasses
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from steelsight.defects import DefectClass, Reason, Verdict
from steelsight.errors import InputError
from steelsight.report.html import ADVICE, GalleryLimits, ReportBuilder
from steelsight.report.overlays import draw_overlay, encode_jpeg

HOSTILE = (
    "<script>alert(1)</script>.jpg",
    "a\"b'c&amp;<b>.jpg",
    "👩\u200d🔧 划痕.jpg",
    "evil\u202egpj.exe",
    "x" * 251 + ".jpg",
    "javascript:alert(1)",
    "//evil.example/x.png",
    "\\\\evil.example\\x.png",
    "sp\udcffam.jpg",
    "line\nbreak.jpg",
    "{{ 7*7 }}{% raw %}.jpg",
)
VOID = {"meta", "img", "br", "rect", "line", "path", "image"}


class Page(HTMLParser):
    """Reads a page: attributes, text, anchors; refuses tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.ids, self.words = [], [], set(), []
        self._open = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name == "id":
                assert value not in self.ids
                self.ids.add(value)
            if name in {"href", "src", "srcset", "action", "data", "poster", "xlink:href"}:
                self.references.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def steel(size_wh=(320, 128)):
    return np.random.default_rng(3).integers(90, 120, size_wh[::-1]).astype(np.uint8)


@pytest.fixture
def full(classes, box_defect, inspection):
    """One of each: found, missed, false alarm, OK, UNKNOWN, not localised."""
    builder = ReportBuilder(classes)
    mask = np.zeros((128, 320), np.bool_)
    mask[40:70, 100:160] = True
    found = box_defect("1", (100, 40, 60, 30))
    href = "overlays/a b.png"
    builder.add(
        inspection("a b.jpg", Verdict.NG, 0.97, [found]), steel(), {"1": mask}, overlay_href=href
    )
    builder.add(inspection("missed.jpg", Verdict.OK, 0.3), steel(), {"2": mask})
    builder.add(inspection("alarm.jpg", Verdict.NG, 0.8, [found]), steel(), {})
    builder.add(inspection("fine.jpg", Verdict.OK, 0.01), steel(), {})
    builder.add(inspection("cut.jpg", Verdict.UNKNOWN, detail="ends after 10 bytes"), None, {})
    builder.add(
        inspection("where.jpg", Verdict.NG, 0.9, reason=Reason.NOT_LOCALISED), steel(), {"3": None}
    )
    return builder


def assert_offline(page):
    for reference in page.references:
        assert reference.startswith(("data:image/", "#", "./")), reference
        if reference.startswith("#"):
            assert reference[1:] in page.ids
    tags = {tag for tag, _ in page.tags}
    assert not tags & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "foreignobject",
    }
    assert "url(" not in "".join(page.words)  # style sheet included
    assert "@import" not in "".join(page.words)
    policies = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert policies == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    ]


def test_the_page_needs_nothing_from_outside(full, run):
    assert_offline(Page(full.render(run)))


def test_counts_are_shown_and_add_up(full, run):
    text = Page(full.render(run)).text
    assert "6 frames: 2 OK, 3 NG, 1 UNKNOWN." in text
    assert "Nothing was skipped: 2 + 3 + 1 = 6." in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"frames_found": 6}, "Nothing was skipped: 2 + 3 + 1 = 6."),
        ({"frames_found": 9}, "3 of 9 frames found were not inspected."),
        ({"interrupted": True}, "Every frame up to the stop has a verdict: 2 + 3 + 1 = 6."),
        ({"interrupted": True}, "STOPPED EARLY"),
        ({"synthetic": True}, "Drawn frames, not photographs"),
    ],
)
def test_what_the_run_was_is_said_on_top(changes, expected, full, run):
    text = Page(full.render(dataclasses.replace(run, **changes))).text
    assert expected in text[: text.index("Along the strip")]
    if "interrupted" in changes or changes.get("frames_found") == 9:
        assert "Nothing was skipped" not in text


def test_truth_is_told_in_plain_figures(full, run):
    text = Page(full.render(run)).text
    assert "The truth is known for 6 of 6 frames: 3 hold a defect, 3 are good." in text
    assert "Found 2 of 3 faulty frames called NG" in text
    assert "Missed 1 faulty frames called OK" in text
    assert "False alarms 1 of 3 good frames called NG" in text
    assert "Not judged 1 UNKNOWN, 0 of them faulty" in text
    # Frames with masks: 5 x 4 pairs; Dice is 1 but for the missed type 2 and the false type 1.
    assert f"Kaggle Dice {18 / 20:.3f}" in text
    assert "Dice 0.500 where the type is present" in text
    assert "Truth: Type 1 ; Dice 1.00 (Type 1)" in text.replace("Type 1;", "Type 1 ;")
    assert "Truth: good, no defect" in text


def test_each_frame_stands_where_it_belongs(full, run):
    page = full.render(run)
    starts = [page.index(f'<section id="{name}"') for name in ("missed", "false-alarms", "ng")]
    ends = [*starts[1:], page.index('<section id="unknown"')]
    parts = [page[a:b] for a, b in zip(starts, ends, strict=True)]
    for part, inside in zip(parts, (["missed"], ["alarm"], ["a b", "where"]), strict=True):
        for name in ("a b", "missed", "alarm", "fine", "where"):
            assert (f"<bdi>{name}.jpg</bdi>" in part) == (name in inside)
    assert "MISSED" in parts[0]
    assert "FALSE ALARM" in parts[1]
    assert 'href="./overlays/a%20b.png"' in parts[2]
    assert "ends after 10 bytes" in page[ends[-1] :]
    assert ADVICE[Reason.TRUNCATED] in page


def test_names_from_outside_are_inert(classes, box_defect, inspection, run):
    hostile_class = DefectClass("1", "</style><b>'\"", "#112233")
    builder = ReportBuilder([hostile_class, *classes[1:]])
    for name in HOSTILE:
        ng = inspection(name, Verdict.NG, 0.9, [box_defect("1", (10, 10, 30, 30))], detail=name)
        builder.add(dataclasses.replace(ng, notes=(name,)), steel(), overlay_href=name)
        builder.add(inspection(name, Verdict.UNKNOWN, detail=name))
        builder.add(inspection(name, Verdict.OK, 0.2), steel(), {"1": None})
    texts = {f.name: HOSTILE[0] for f in dataclasses.fields(run) if isinstance(f.default, str)}
    hostile_run = dataclasses.replace(
        run,
        **texts,
        title=HOSTILE[0] + "\u202e",
        command=HOSTILE[1],
        versions={HOSTILE[0]: HOSTILE[1]},
        files={HOSTILE[0]: "javascript:alert(1)"},
        thresholds=((HOSTILE[0],), (HOSTILE[1],)),
        marked_probabilities={HOSTILE[0]: 0.5},
    )
    page = Page(builder.render(hostile_run))
    assert_offline(page)
    assert "\u202e" not in page.text
    assert "<script>alert(1)</script>.jpg" in page.text  # shown as text
    assert "{{ 7*7 }}{% raw %}.jpg" in page.text


def test_the_file_is_replaced_at_once_and_byte_identical(full, run, tmp_path):
    path = tmp_path / "new" / "report.html"
    full.write(path, run)
    first = path.read_bytes()
    full.write(path, run)
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert Page(first.decode()).text.count("Coil 4711") >= 1


def test_a_failed_write_leaves_the_old_report(full, run, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InputError, match=r"cannot be written \(disk full\)"):
        full.write(path, run)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_foreign_types_and_sizes_are_refused_before_they_count(classes, box_defect, inspection):
    builder = ReportBuilder(classes)
    ng = inspection("a.jpg", Verdict.NG, 0.9, [box_defect("9", (1, 1, 5, 5))])
    ok = inspection("a.jpg", Verdict.OK, 0.1)
    with pytest.raises(InputError, match=r"a.jpg.*received '9'"):
        builder.add(ng)
    with pytest.raises(InputError, match="received '5'"):
        builder.add(ok, steel(), {"5": None})  # else a faulty frame would count as good
    with pytest.raises(InputError, match="another image"):
        builder.add(ok, steel(), {"1": np.zeros((5, 5), np.bool_)})
    assert builder.seen == 0


def test_an_empty_run_says_so(classes, run):
    page = Page(ReportBuilder(classes).render(run))
    assert "No frame was inspected." in page.text
    assert_offline(page)


def test_all_unknown_shows_reasons_and_how_many(classes, inspection, run):
    builder = ReportBuilder(classes, limits=GalleryLimits(unknown_per_reason=3))
    for index in range(5):
        builder.add(inspection(f"{index}.jpg", Verdict.UNKNOWN, reason=Reason.BLANK))
    page = Page(builder.render(run))
    assert "0 + 0 + 5 = 5" in page.text
    assert "The first 3 of 5 are listed." in page.text
    assert "2.jpg" in page.text
    assert "3.jpg" not in page.text
    assert_offline(page)


def test_every_reason_has_advice():
    assert set(ADVICE) == set(Reason)


def test_the_gallery_is_capped_and_says_so(classes, box_defect, inspection, run):
    builder = ReportBuilder(classes, limits=GalleryLimits(ng=3, closest_ok=2))
    for index, probability in enumerate([0.6, 0.9, 0.7, 0.99, 0.8, 0.65]):
        defects = [box_defect("1", (10, 10, 30, 30))]
        builder.add(inspection(f"ng{index}.jpg", Verdict.NG, probability, defects), steel())
    for index, probability in enumerate([0.1, 0.3, 0.2]):
        builder.add(inspection(f"ok{index}.jpg", Verdict.OK, probability), steel())
    text = builder.render(run)
    names = re.findall(r"<h3><bdi>(\w+)\.jpg", text)
    assert names == ["ng1", "ng3", "ng4", "ok1", "ok2"]
    assert "3 of 6 are shown: the most probable, in the order of the run." in text
    assert "2 of 3 are shown: those nearest to it, highest first." in text


def test_pictures_stay_within_their_budget(classes, inspection, run):
    fit_wh = GalleryLimits().picture_wh
    one = len(encode_jpeg(draw_overlay(steel(), [], classes, fit_wh=fit_wh)))
    limits = GalleryLimits(picture_bytes=4 * one + 1)
    builder = ReportBuilder(classes, limits=limits)
    for index in range(10):
        ng = inspection(f"{index}.jpg", Verdict.NG, 0.9, reason=Reason.NOT_LOCALISED)
        builder.add(ng, steel(), overlay_href=f"overlays/{index}.png")
    text = builder.render(run)
    assert text.count("data:image/jpeg") == 4
    assert text.count("Picture left out to keep this file small.") == 6
    assert text.count('href="./overlays/') == 10 + 4  # by name each, on the picture where shown


def test_only_the_largest_regions_are_listed(classes, box_defect, inspection, run):
    boxes = [(4 * i, 10, 2, 60 - i) for i in range(14)]
    ng = inspection("many.jpg", Verdict.NG, 0.9, [box_defect("1", b) for b in boxes])
    builder = ReportBuilder(classes)
    builder.add(ng)
    text = Page(builder.render(run)).text
    rest = sum(2 * b[3] for b in boxes[10:])
    assert f"and 4 smaller regions, together {rest} px" in text
    assert "No picture was kept of this frame." in text


def test_12568_frames_are_fast_and_small(classes, box_defect, inspection, run, tmp_path):
    """The whole Severstal training set, results only."""
    defects = [box_defect(str(1 + i % 4), (20 * i, 10, 15, 60)) for i in range(8)]
    start = time.perf_counter()
    builder = ReportBuilder(classes)
    for index in range(12_568):
        if index % 400 == 399:
            frame = inspection(f"{index}.jpg", Verdict.UNKNOWN)
        elif index % 2:
            frame = inspection(f"{index}.jpg", Verdict.NG, 1 - 0.4 / (1 + index), defects)
        else:
            frame = inspection(f"{index}.jpg", Verdict.OK, 0.3 / (1 + index))
        builder.add(frame)
    builder.write(tmp_path / "report.html", run)
    assert time.perf_counter() - start < 10  # about 1.5 s
    size = (tmp_path / "report.html").stat().st_size
    assert size < 2_000_000
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "12,568 frames: 6,284 OK, 6,253 NG, 31 UNKNOWN." in text
    assert "100 of 6,253 are shown" in text


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_sideways(width, classes, box_defect, inspection, run, tmp_path):
    """Lays the page out in a frame as wide as a phone or a desktop, and asks how wide it became.

    The page forbids scripts, so a copy without its policy measures itself.
    """
    long_class = DefectClass(
        "1", "A type name much longer than anyone would expect " * 3, "#112233"
    )
    builder = ReportBuilder([long_class, *classes[1:]])
    defects = [box_defect("1", (10, 10, 30, 30), (1600, 256))]
    for name in HOSTILE:
        ng = inspection(name, Verdict.NG, 0.9, defects, size_wh=(1600, 256))
        builder.add(ng, steel((1600, 256)), {"1": None})
        builder.add(inspection(name, Verdict.UNKNOWN, detail="y" * 300))
    text = builder.render(dataclasses.replace(run, title="t" * 120, command="c" * 400))
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    measure = (
        "<script>addEventListener('load', () => parent.postMessage("
        "[innerWidth, document.documentElement.clientWidth,"
        " document.documentElement.scrollWidth], '*'))</script></body>"
    )
    (tmp_path / "page.html").write_text(text.replace("</body>", measure), "utf-8", "replace")
    outer = tmp_path / "outer.html"
    outer.write_text(
        "<script>addEventListener('message', e => "
        "{ document.title = 'measured ' + e.data.join(' ') })</script>"
        f'<iframe src="page.html" width="{width}" height="800" style="border:0"></iframe>'
    )
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000",
        "--dump-dom", outer.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    inner, visible_px, content_px = re.search(r"measured (\d+) (\d+) (\d+)", done.stdout).groups()
    assert int(inner) == width
    assert content_px == visible_px  # narrower than inner by the vertical scroll bar
