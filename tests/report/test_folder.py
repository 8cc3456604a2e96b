"""The output folder of a run: complete at every moment, consistent at the end, never mixed up."""

import csv
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from steelsight.defects import Inspection, Reason, Verdict
from steelsight.engine.batch import Inspected
from steelsight.engine.cascade import TakenIn
from steelsight.engine.sources import Source
from steelsight.errors import InputError, LabelError
from steelsight.imaging import Frame
from steelsight.masks import decode_rle, regions
from steelsight.report.folder import (
    OutputFolder,
    TruthFile,
    inspect_to_folder,
    overlay_name,
    read_results,
)

SIZE_WH = (320, 128)
GREY = np.random.default_rng(1).integers(40, 160, SIZE_WH[::-1]).astype(np.uint8)
FRAME = Frame(GREY, "ab" * 32, "jpeg")


class Script:
    """An inspector that says what was written down for each source."""

    def __init__(self, inspections: list[Inspection], grey_hw: np.ndarray = GREY) -> None:
        self._by_name = {inspection.image: inspection for inspection in inspections}
        self._frame = Frame(grey_hw, "ab" * 32, "jpeg")
        self.closed = False

    @property
    def sources(self) -> list[Source]:
        return [Source(name, name, Path(name)) for name in self._by_name]

    def take_in(self, image, name):
        unknown = self._by_name[name].size_wh is None
        return TakenIn(name, frame=None if unknown else self._frame)

    def judge(self, taken):
        return self._by_name[taken.image]

    def ahead(self, items, take, judge):
        try:
            for item in items:
                yield judge(take(item))
        finally:
            self.closed = True


@pytest.fixture
def story(inspection, box_defect):
    """OK, NG with two regions of one type and one of another, UNKNOWN, NG without a region."""
    defects = (
        box_defect("3", (200, 10, 60, 90)),
        box_defect("3", (20, 30, 40, 50)),
        box_defect("1", (25, 60, 30, 30)),
    )
    return [
        inspection("a.jpg", Verdict.OK, 0.05),
        inspection("sub/b.jpg", Verdict.NG, 0.97, defects),
        inspection("c.jpg", Verdict.UNKNOWN, detail="the JPEG has no end-of-image marker"),
        inspection("d.jpg", Verdict.NG, 0.6, reason=Reason.NOT_LOCALISED, detail="no region"),
        inspection("e.jpg", Verdict.OK, 0.1),
    ]


def inspect(story, folder, classes, run, *, truth=None, grey_hw=GREY, **options):
    """Runs the story; options: those of ``OutputFolder``, then those of ``inspect_to_folder``."""
    of_folder = {k: options.pop(k) for k in ("overwrite", "overlays") if k in options}
    script = Script(story, grey_hw)
    with OutputFolder(folder, classes, **of_folder) as output:
        found = len(script.sources)
        summary = inspect_to_folder(
            script, script.sources, output, run, found=found, truth=truth, **options
        )
    return summary, output


def inspected(inspection: Inspection, frame: Frame | None) -> Inspected:
    return Inspected(Source(inspection.image, inspection.image), inspection, frame)


def names_of(sources: list[Source]) -> list[str]:
    return [source.name for source in sources]


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, strict=True))


def overlays(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "overlays").glob("*"))


# -------------------------------------------------------------------------------------- whole run


def test_a_run_leaves_lines_tables_overlays_and_a_report(story, classes, run, tmp_path):
    out = tmp_path / "new" / "out"
    summary, _ = inspect(story, out, classes, run)
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock",
        "overlays",
        "quarantine.csv",
        "report.html",
        "results.jsonl",
        "submission.csv",
    ]
    lines = (out / "results.jsonl").read_text(encoding="utf-8").splitlines()
    expected = [i.to_json(timing=False) for i in story]
    assert [json.loads(line) for line in lines] == expected
    assert list(read_results(out / "results.jsonl")) == expected
    assert not any("milliseconds" in line for line in lines)
    assert [re.sub("-[0-9a-f]{10}", "", name) for name in overlays(out)] == ["d.jpg", "sub_b.jpg"]
    for name in overlays(out):
        picture = cv2.imread(str(out / "overlays" / name))
        assert picture.shape == (*GREY.shape, 3)
    assert (summary.found, summary.seen) == (5, 5)
    assert (summary.ok, summary.ng, summary.unknown) == (2, 2, 1)
    assert summary.folder == str(out)
    assert not summary.interrupted
    assert summary.seconds >= 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "5 frames: 2 OK, 2 NG, 1 UNKNOWN." in page
    assert "Nothing was skipped: 2 + 2 + 1 = 5." in page
    for name in overlays(out):
        assert f'href="./overlays/{name}"' in page


def test_overlays_can_be_left_out(story, classes, run, tmp_path):
    inspect(story, tmp_path, classes, run, overlays=False)
    assert not (tmp_path / "overlays").exists()
    assert "overlays/" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_each_line_is_on_disk_when_its_frame_is_done(story, classes, tmp_path):
    """Power may fail at any time: what was seen must be there, whole."""
    results = tmp_path / "results.jsonl"
    with OutputFolder(tmp_path, classes) as output:
        assert results.read_bytes() == b""
        for number, inspection in enumerate(story, start=1):
            frame = None if inspection.size_wh is None else FRAME
            output.add(inspected(inspection, frame))
            text = results.read_text(encoding="utf-8")
            assert text.endswith("}\n")
            lines = [json.loads(line) for line in text.splitlines()]
            assert [line["image"] for line in lines] == [i.image for i in story[:number]]
            ng = sum(i.verdict is Verdict.NG for i in story[:number])
            assert len(list((tmp_path / "overlays").glob("*"))) == ng
    # Not finished: no table and no report may pretend that it was.
    assert not (tmp_path / "report.html").exists()
    assert not (tmp_path / "submission.csv").exists()


def test_progress_hears_of_every_frame(story, classes, run, tmp_path):
    heard: list[str] = []
    inspect(story, tmp_path, classes, run, on_result=lambda i: heard.append(i.image))
    assert heard == [i.image for i in story]


# -------------------------------------------------------------------------------------- submission


def test_the_submission_has_kaggle_s_form(story, classes, run, tmp_path):
    inspect(story, tmp_path, classes, run)
    table = rows(tmp_path / "submission.csv")
    assert table[0] == ["ImageId_ClassId", "EncodedPixels"]
    judged = [i.image for i in story if i.verdict is not Verdict.UNKNOWN]
    assert [row[0] for row in table[1:]] == [f"{image}_{k}" for image in judged for k in "1234"]
    assert b"\r" not in (tmp_path / "submission.csv").read_bytes()
    filled = {name: rle for name, rle in table[1:] if rle}
    assert filled.keys() == {"sub/b.jpg_1", "sub/b.jpg_3"}
    expected = np.zeros(SIZE_WH[::-1], np.bool_)
    expected[10:100, 200:260] = expected[30:80, 20:60] = True
    assert np.array_equal(decode_rle(filled["sub/b.jpg_3"], SIZE_WH), expected)


def test_types_with_an_underscore_get_columns_of_their_own(story, classes, run, tmp_path):
    """``a.jpg_pitted_surface`` could be type ``surface`` of ``a.jpg_pitted``."""
    names = {c.id: f"type_{c.id}" for c in classes}
    renamed = [
        replace(
            i,
            defects=tuple(replace(d, class_id=names[d.class_id]) for d in i.defects),
            class_probabilities={names[k]: p for k, p in i.class_probabilities.items()},
        )
        for i in story
    ]
    inspect(renamed, tmp_path, tuple(replace(c, id=names[c.id]) for c in classes), run)
    table = rows(tmp_path / "submission.csv")
    assert table[0] == ["ImageId", "ClassId", "EncodedPixels"]
    filled = {(image, class_id) for image, class_id, rle in table[1:] if rle}
    assert filled == {("sub/b.jpg", "type_1"), ("sub/b.jpg", "type_3")}
    judged = {i.image for i in story if i.verdict is not Verdict.UNKNOWN}
    assert {image for image, _, _ in table[1:]} == judged


@pytest.mark.parametrize("density", [0.02, 0.3, 0.6])
@pytest.mark.parametrize("size_hw", [(16, 40), (64, 64), (3, 200)], ids=str)
def test_the_submission_is_the_union_of_the_regions(
    inspection, classes, run, tmp_path, box_defect, size_hw, density
):
    """Random masks: many regions whose runs mix, touch the borders and span whole columns."""
    rng = np.random.default_rng(int(100 * density))
    size_wh = size_hw[::-1]
    mask = rng.random(size_hw) < density
    mask[:, 5:7] = True
    template = box_defect("2", (0, 0, 1, 1))
    defects = [
        template.__class__("2", r.area_px, r.bbox_xywh, r.length_px, r.width_px, 0.0, 0.9, r.rle)
        for r in regions(mask)
    ]
    assert len(defects) > 1 or density > 0.5
    result = inspection("x.jpg", Verdict.NG, 0.9, defects, size_wh=size_wh)
    grey_hw = np.full(size_hw, 90, np.uint8)
    inspect([result], tmp_path, classes, run, grey_hw=grey_hw, overlays=False)
    filled = {name: rle for name, rle in rows(tmp_path / "submission.csv")[1:] if rle}
    assert filled.keys() == {"x.jpg_2"}
    assert np.array_equal(decode_rle(filled["x.jpg_2"], size_wh), mask)
    numbers = np.array(filled["x.jpg_2"].split(), int).reshape(-1, 2)
    assert (numbers[1:, 0] > numbers[:-1].sum(axis=1) - 1).all()


# -------------------------------------------------------------------------------------- quarantine


def test_every_unknown_frame_is_in_quarantine_with_its_reason(inspection, classes, run, tmp_path):
    story = [
        inspection(f"{reason}.jpg", Verdict.UNKNOWN, reason=reason, detail=f"because {reason}")
        for reason in Reason
        if reason is not Reason.NOT_LOCALISED
    ]
    story.insert(3, inspection("good.jpg", Verdict.OK, 0.01))
    summary, _ = inspect(story, tmp_path, classes, run)
    table = rows(tmp_path / "quarantine.csv")
    assert table[0] == ["image", "reason", "detail", "sha256"]
    assert table[1:] == [
        [i.image, i.reason.value, i.detail, i.sha256] for i in story if i.image != "good.jpg"
    ]
    assert summary.unknown == len(table) - 1
    assert len(rows(tmp_path / "submission.csv")) == 1 + 4


@pytest.mark.parametrize("name", ["=cmd()|'/C calc'!A0.jpg", "+1.jpg", "-1.jpg", "@SUM(A1).jpg"])
def test_no_table_runs_a_formula(inspection, classes, run, tmp_path, name):
    story = [
        inspection(f"{name}a", Verdict.UNKNOWN, detail='=HYPERLINK("http://x")'),
        inspection(f"{name}b", Verdict.OK, 0.1),
    ]
    inspect(story, tmp_path, classes, run)
    for table in ("quarantine.csv", "submission.csv"):
        cells = [cell for row in rows(tmp_path / table)[1:] for cell in row]
        assert any(name in cell for cell in cells)
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)


@pytest.mark.parametrize(
    "name", ['quo"te.jpg', "com,ma;semi.jpg", "it's.jpg", "100 % 鋼 🙂.jpg", "<b>&amp;.jpg"]
)
def test_tables_keep_strange_names(inspection, classes, run, tmp_path, name):
    story = [
        inspection(name, Verdict.UNKNOWN),
        inspection(f"x{name}", Verdict.OK, 0.1),
    ]
    inspect(story, tmp_path, classes, run)
    assert rows(tmp_path / "quarantine.csv")[1][0] == name
    assert rows(tmp_path / "submission.csv")[1][0] == f"x{name}_1"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in page.partition("<main>")[2].partition('id="unknown"')[2].partition(
        "</section>"
    )[0].replace("<bdi>", "")


# ---------------------------------------------------------------------------- earlier runs, errors


def test_an_earlier_run_is_refused_untouched(story, classes, run, tmp_path):
    inspect(story, tmp_path, classes, run)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=r"earlier run.*--overwrite"):
        inspect(story[:1], tmp_path, classes, run)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_overwriting_leaves_nothing_of_the_earlier_run(story, classes, run, tmp_path):
    inspect(story, tmp_path, classes, run)
    (tmp_path / "mine.txt").write_text("notes of somebody")
    inspect(story[2:4], tmp_path, classes, run, overwrite=True)
    assert [r["image"] for r in read_results(tmp_path / "results.jsonl")] == ["c.jpg", "d.jpg"]
    assert [name.rpartition("-")[0] for name in overlays(tmp_path)] == ["d"]
    assert len(rows(tmp_path / "submission.csv")) == 1 + 4
    assert len(rows(tmp_path / "quarantine.csv")) == 1 + 1
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "sub/b.jpg" not in page
    assert (tmp_path / "mine.txt").exists()


def test_a_run_that_stops_in_between_leaves_no_older_report(story, classes, run, tmp_path):
    """Old tables beside new lines would not belong together."""
    inspect(story, tmp_path, classes, run)
    with OutputFolder(tmp_path, classes, overwrite=True) as output:
        output.add(inspected(story[0], FRAME))
    assert [r["image"] for r in read_results(tmp_path / "results.jsonl")] == ["a.jpg"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "results.jsonl"]


@pytest.mark.parametrize("name", ["report.html", "submission.csv", "quarantine.csv"])
def test_files_that_no_run_wrote_are_not_deleted_unasked(classes, tmp_path, name):
    (tmp_path / name).write_text("the work of somebody")
    with pytest.raises(InputError, match=name), OutputFolder(tmp_path, classes):
        pass
    assert (tmp_path / name).read_text() == "the work of somebody"


def test_a_file_where_the_folder_should_be(classes, tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "sub"):
        with (
            pytest.raises(InputError, match=re.escape(str(folder))) as caught,
            OutputFolder(folder, classes),
        ):
            pass
        assert "\n" not in str(caught.value)
        assert "--out" in str(caught.value)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_folder_that_may_not_be_written_to(classes, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"), OutputFolder(tmp_path, classes):
        pass
    tmp_path.chmod(0o700)


# ------------------------------------------------------------------------------------ interruption


@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_stop_ends_the_run_after_the_current_frame(story, classes, run, tmp_path, after):
    heard: list[Inspection] = []
    script = Script(story)
    with OutputFolder(tmp_path, classes) as output:
        summary = inspect_to_folder(
            script,
            script.sources,
            output,
            run,
            found=5,
            on_result=heard.append,
            stop=lambda: len(heard) == after,
        )
    assert summary.interrupted
    assert (summary.found, summary.seen) == (5, after)
    assert summary.ok + summary.ng + summary.unknown == after
    assert [r["image"] for r in read_results(tmp_path / "results.jsonl")] == [
        i.image for i in story[:after]
    ]
    judged = sum(i.verdict is not Verdict.UNKNOWN for i in story[:after])
    assert len(rows(tmp_path / "submission.csv")) == 1 + 4 * judged
    assert len(rows(tmp_path / "quarantine.csv")) == 1 + after - judged
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "STOPPED EARLY" in page
    assert f"{5 - after} of 5 frames found were not inspected" in page
    assert script.closed


def test_a_stop_after_the_last_frame_stops_nothing(story, classes, run, tmp_path):
    summary, output = inspect(story, tmp_path, classes, run, stop=lambda: False)
    heard: list[Inspection] = []
    late, _ = inspect(
        story,
        tmp_path,
        classes,
        run,
        overwrite=True,
        on_result=heard.append,
        stop=lambda: len(heard) == len(story),
    )
    assert not summary.interrupted
    assert not late.interrupted
    assert "STOPPED EARLY" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert output.report.seen == 5


# ---------------------------------------------------------------------------------- overlay names


@pytest.mark.parametrize(
    "image",
    [
        "a.jpg",
        "../../etc/passwd",
        "/absolute.jpg",
        "<script>alert(1)</script>.jpg",
        "-rf.jpg",
        ".hidden",
        "x" * 300 + ".jpg",
        "鋼" * 90,
        "a\nb.jpg",
        "con:.jpg",
        "",
    ],
    ids=lambda image: ascii(image)[:20],
)
def test_overlay_names_are_harmless(image, tmp_path):
    name = overlay_name(image, "ab" * 32)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}-[0-9a-f]{10}\.jpg", name)
    (tmp_path / name).touch()
    assert len(list(tmp_path.iterdir())) == 1


def test_each_frame_has_an_overlay_name_of_its_own():
    """By name and content: a picture that is there is the right one."""
    images = ["a b.jpg", "a_b.jpg", "a/b.jpg", "a?b.jpg", "a b.png", "x" * 200, "y" + "x" * 199]
    found = {overlay_name(image, sha256) for image in images for sha256 in ("ab" * 32, "cd" * 32)}
    assert len(found) == 2 * len(images)
    assert overlay_name("a.jpg", "ab" * 32) == overlay_name("a.jpg", "ab" * 32)


# ------------------------------------------------------------------------------------------- truth


@pytest.fixture
def truth_csv(tmp_path):
    path = tmp_path / "truth" / "train.csv"
    path.parent.mkdir()

    def write(*lines: str) -> Path:
        path.write_text("\n".join(["ImageId,ClassId,EncodedPixels", *lines, ""]))
        return path

    return write


def sources_of(*names):
    return [Source(name, name, Path(name)) for name in names]


def seen(image, size_wh=SIZE_WH):
    return SimpleNamespace(image=image, size_wh=size_wh)


def test_truth_of_listed_and_unlisted_frames(truth_csv):
    path = truth_csv("a.jpg,3,1 128", "a.jpg,1,129 2", "sub/b.jpg,1,")
    sources = sources_of("a.jpg", "sub/b.jpg", "b.jpg", "other.jpg")
    unknown, clean = (
        TruthFile(path, list("1234"), names_of(sources), unlisted_are_clean=flag)
        for flag in (False, True)
    )
    for truth in (unknown, clean):
        assert truth.without_frame == 0
        masks = truth.of(seen("a.jpg"))
        assert masks.keys() == {"1", "3"}
        assert masks["3"].shape == SIZE_WH[::-1]
        assert np.argwhere(masks["1"]).tolist() == [[0, 1], [1, 1]]
        assert masks["3"][:, 0].all()
        assert not masks["3"][:, 1:].any()
        assert truth.of(seen("sub/b.jpg")) == {}
        # A frame that was not decoded: the types are known, their place is not.
        assert truth.of(seen("a.jpg", None)) == {"1": None, "3": None}
    assert unknown.of(seen("other.jpg")) is None
    assert unknown.of(seen("b.jpg")) is None
    assert clean.of(seen("other.jpg")) == {}
    # What could not be decoded is no good frame: often it is no frame at all.
    assert clean.of(seen("notes.txt", None)) is None


@pytest.mark.parametrize(
    ("names", "matched"),
    [
        (["x/a.jpg", "y/b.jpg"], ["x/a.jpg"]),  # the file name, where it is unique
        (["x/a.jpg", "y/a.jpg", "sub/c.jpg"], ["sub/c.jpg"]),  # not where it is not
        (["a.jpg", "x/a.jpg"], ["a.jpg"]),
    ],
)
def test_labels_find_their_frames_in_other_folders(truth_csv, names, matched):
    path = truth_csv("a.jpg,3,1 128", "sub/c.jpg,1,129 2")
    truth = TruthFile(path, list("1234"), names_of(sources_of(*names)))
    assert truth.without_frame == 1
    assert [name for name in names if truth.of(seen(name))] == matched


def test_labels_of_other_frames_are_refused(truth_csv):
    path = truth_csv("a.jpg,3,1 128")
    with pytest.raises(InputError, match=r"'b\.jpg', found none"):
        TruthFile(path, list("1234"), ["b.jpg"], unlisted_are_clean=True)


def test_a_mask_that_does_not_fit_is_named_and_the_run_goes_on(
    truth_csv, inspection, classes, run, tmp_path
):
    path = truth_csv("a.jpg,2,1 4", f"m.jpg,2,{SIZE_WH[0] * SIZE_WH[1]} 2", "gone.jpg,1,1 1")
    out = tmp_path / "out"
    script = Script([inspection(f"{name}.jpg", Verdict.OK, 0.1) for name in "amz"])
    with OutputFolder(out, classes) as output:
        truth = TruthFile(path, list("1234"), names_of(script.sources))
        summary = inspect_to_folder(script, script.sources, output, run, truth=truth)
    (misfit,) = summary.misfits
    for part in (str(path), "m.jpg", "type 2"):
        assert part in misfit
    assert "\n" not in misfit
    assert (summary.seen, summary.labels_without_frame) == (3, 1)
    assert [r["image"] for r in read_results(out / "results.jsonl")] == ["a.jpg", "m.jpg", "z.jpg"]
    assert output.report.truth.frames == 1
    assert (out / "submission.csv").exists()
    assert script.closed


def test_a_type_that_the_bundle_does_not_have_is_refused(truth_csv):
    with pytest.raises(LabelError, match="5"):
        TruthFile(truth_csv("a.jpg,5,1 1"), list("1234"), names_of(sources_of("a.jpg")))


def test_the_report_counts_against_the_truth(story, classes, run, truth_csv, tmp_path):
    """b: found; d: false alarm; e: missed; a: good; c: faulty, but UNKNOWN."""
    expected = np.zeros(SIZE_WH[::-1], np.bool_)
    expected[10:100, 200:260] = expected[30:80, 20:60] = True
    whole = " ".join(
        f"{1 + x * SIZE_WH[1] + y0} {y1 - y0}"
        for x, (y0, y1) in [
            *((x, (30, 80)) for x in range(20, 60)),
            *((x, (10, 100)) for x in range(200, 260)),
        ]
    )
    assert np.array_equal(decode_rle(whole, SIZE_WH), expected)
    path = truth_csv(f"sub/b.jpg,3,{whole}", "e.jpg,2,1 20", "c.jpg,4,5 5")
    sources = Script(story).sources
    truth = TruthFile(path, list("1234"), names_of(sources), unlisted_are_clean=True)
    out = tmp_path / "out"
    _, output = inspect(story, out, classes, run, truth=truth)
    tally = output.report.truth
    assert (tally.faulty, tally.good) == (3, 2)
    assert (tally.found, tally.missed, tally.false_alarms) == (1, 1, 1)
    # Type 3 on b is exact, type 2 on e was not found; c has types but no mask to compare.
    assert tally.dice_where_present == pytest.approx((1 + 0) / 2)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'id="missed"' in page
    assert 'id="false-alarms"' in page


def test_everything_can_be_moved_elsewhere(story, classes, run, tmp_path):
    """All links in the report are relative."""
    inspect(story, tmp_path / "here", classes, run)
    shutil.move(tmp_path / "here", tmp_path / "there")
    page = (tmp_path / "there" / "report.html").read_text(encoding="utf-8")
    links = {link for link in re.findall(r'<a\b[^>]* href="([^"]+)"', page) if link[0] != "#"}
    pictures = {f"./overlays/{name}" for name in overlays(tmp_path / "there")}
    assert len(pictures) == 2
    assert links == pictures | {"./results.jsonl"}
    assert all((tmp_path / "there" / link).is_file() for link in links)
