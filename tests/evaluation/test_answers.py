"""Who says what about which frames: a bundle, another tool's file, and what may be evaluated."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from steelsight.bundle import load_bundle
from steelsight.data.catalog import scan
from steelsight.data.convert import convert
from steelsight.data.formats.registry import format_named, load
from steelsight.data.frames import LabelledFrame, labelled_frame
from steelsight.data.labels import Placement, ReadOptions
from steelsight.data.splits import make_split, write_split
from steelsight.data.synthetic import CoilConfig, draw_frame, write_severstal
from steelsight.decisions import FirstLookRule
from steelsight.defects import Reason
from steelsight.engine import Inspector
from steelsight.engine.cascade import Evidence
from steelsight.engine.first_look import add_first_look
from steelsight.errors import EngineError, InputError, LabelError, SteelsightError
from steelsight.evaluation.answers import (
    NOT_MENTIONED,
    applied_decision,
    delivered_decision,
    masks_of,
    masks_of_tool,
    predict_bundle,
    predict_tool,
    read_foreign,
    read_kept,
)
from steelsight.evaluation.predictions import BINS, Predictions, Unanswered
from steelsight.evaluation.selection import Learned, learned_by, learned_in_run, select
from steelsight.evaluation.tool_files import FoundMask, ToolAnswer, ToolFile, read_tool
from steelsight.evaluation.verdicts import apply_decision
from steelsight.masks import decode_rle, encode_coco_rle, encode_rle

SIZE_WH = (320, 128)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    config = CoilConfig(10, 5, 0.7, SIZE_WH, class_weights=(0.25, 0.25, 0.25, 0.25))
    return write_severstal(config, tmp_path_factory.mktemp("answers") / "drawn")


@pytest.fixture(scope="module")
def catalog(drawn):
    return scan(load(drawn, options=ReadOptions(class_names=("1", "2", "3", "4"))))


@pytest.fixture(scope="module")
def frames(catalog):
    return [labelled_frame(record) for record in catalog.records]


@pytest.fixture(scope="module")
def inspector() -> Inspector:
    return Inspector.load(threads=1)


# Of a bundle -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_bundle(inspector, frames) -> Predictions:
    predictions = predict_bundle(inspector, frames, groups={frames[0].image: 3}, about={"model": 1})
    assert predictions is not None
    return predictions


def test_a_bundle_is_judged_as_the_cascade_judges(of_bundle, inspector, frames):
    verdicts = apply_decision(of_bundle, inspector.bundle.decision)
    assert of_bundle.images == tuple(frame.image for frame in frames)
    for n, frame in enumerate(frames):
        inspection = inspector.inspect(frame.path)
        assert ("NG" if verdicts.ng_n[n] else "OK") == inspection.verdict
        area = dict.fromkeys(of_bundle.class_ids, 0)
        for defect in inspection.defects:
            area[defect.class_id] += defect.area_px
        assert (verdicts.area_px_nk[n] * verdicts.called_nk[n]).tolist() == list(area.values())
    assert verdicts.ng_n.any()
    assert not verdicts.ng_n.all()


def test_a_first_look_is_asked_about_frames_of_its_size_only(inspector, frames, tmp_path):
    """The shipped bundle behind its own gate; drawn frames are smaller than those it learned."""
    both = add_first_look(inspector.bundle, inspector.bundle, tmp_path / "both")
    first = both.decision.model_copy(update={"first_look": FirstLookRule(clear_below=0.15)})
    asked = Inspector.load(both.folder, threads=1)
    large = draw_frame(CoilConfig(1, 3, 1.0, (1600, 256)), 0)
    path = tmp_path / "large.png"
    cv2.imwrite(str(path), large.grey_hw)
    of_measured_size = LabelledFrame("large.png", path, (1600, 256), {}, ())
    found = predict_bundle(asked, [frames[0], of_measured_size])
    assert found.first_look_logits[0] == 17, "certainly faulty: never settled"
    assert found.first_look_logits[1] == found.faulty_logits[1]
    assert not apply_decision(found, first).cleared_n[0] or found.faulty_probability[0] < 0.15


def test_nan_of_a_first_look_counts_where_it_is_asked(inspector, frames, tmp_path, monkeypatch):
    both = add_first_look(inspector.bundle, inspector.bundle, tmp_path / "both")
    asked = Inspector.load(both.folder, threads=1)
    real = asked.look

    def look(grey_hw):
        nan = Evidence(float("nan"), np.zeros(4, np.float32), None)
        return real(grey_hw)._replace(first_look=nan)

    monkeypatch.setattr(asked, "look", look)
    found = predict_bundle(asked, frames[:2])
    assert np.isnan(found.first_look_logits).all()
    without = both.decision
    behind = without.model_copy(update={"first_look": FirstLookRule(clear_below=0.15)})
    assert apply_decision(found, without).answered_n.all()
    assert not apply_decision(found, behind).answered_n.any()


def test_labels_stand_beside_the_answers(of_bundle, frames):
    for n, frame in enumerate(frames):
        for k, class_id in enumerate(of_bundle.class_ids):
            mask_hw = decode_rle(frame.rle_by_class.get(class_id, ""), SIZE_WH)
            assert of_bundle.inside_nkb[n, k].sum() == mask_hw.sum()
            assert of_bundle.outside_nkb[n, k].sum() == (~mask_hw).sum()
    assert of_bundle.scored
    assert of_bundle.graded
    assert of_bundle.about == {"model": 1}
    assert of_bundle.groups.tolist() == [3, *range(4, 13)]


def test_masks_for_pictures_are_those_that_are_delivered(inspector, frames, of_bundle):
    verdicts = apply_decision(of_bundle, inspector.bundle.decision)
    n = int(np.flatnonzero(verdicts.called_nk.any(axis=1))[0])
    (found,) = masks_of(inspector, [frames[n]]).values()
    k = int(np.flatnonzero(verdicts.called_nk[n])[0])
    mask_hw = decode_rle(found[of_bundle.class_ids[k]], SIZE_WH)
    truth_hw = decode_rle(frames[n].rle_by_class.get(of_bundle.class_ids[k], ""), SIZE_WH)
    assert mask_hw.sum() == verdicts.area_px_nk[n, k]
    assert (mask_hw & truth_hw).sum() == verdicts.true_px_nk[n, k]


def test_no_frame_is_lost(inspector, frames, tmp_path):
    cut, blank, colour = tmp_path / "cut.jpg", tmp_path / "blank.png", tmp_path / "colour.png"
    cut.write_bytes(frames[0].path.read_bytes()[:2000])
    cv2.imwrite(str(blank), np.full(SIZE_WH[::-1], 90, np.uint8))
    rgb = np.random.default_rng(0).integers(255, size=(*SIZE_WH[::-1], 3))
    cv2.imwrite(str(colour), rgb.astype(np.uint8))
    broken = [replace(f, path=p, image=p.name) for f, p in zip(frames, (cut, blank, colour),
                                                               strict=False)]  # fmt: skip
    done = []
    predictions = predict_bundle(
        inspector, [*broken, frames[5]], progress=lambda *counts: done.append(counts)
    )
    assert predictions.images == (frames[5].image,)
    assert [(f.image, f.reason, f.faulty) for f in predictions.unanswered] == [
        ("cut.jpg", Reason.TRUNCATED, not frames[0].clean),
        ("blank.png", Reason.BLANK, not frames[1].clean),
        ("colour.png", Reason.COLOURED, not frames[2].clean),
    ]
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]


class FailingNow:
    """Stands for the segmenter of a bundle."""

    label = "fake"

    def __init__(self, runtime, error=None):
        self.runtime, self.error = runtime, error

    def run(self, inputs):
        if self.error:
            raise self.error
        outputs = self.runtime.run(inputs)
        outputs["mask_logits"] = outputs["mask_logits"].copy()
        outputs["mask_logits"][0, 1, 5, 7] = np.nan
        return outputs


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, Reason.NOT_FINITE),
        (EngineError("it broke"), Reason.ENGINE_FAILED),
        (MemoryError(), Reason.ENGINE_FAILED),
    ],
)
def test_an_engine_that_fails_is_no_answer(inspector, frames, error, reason):
    failing = Inspector(
        inspector.bundle,
        inspector._networks._replace(segmenter=FailingNow(inspector._networks.segmenter, error)),
    )
    predictions = predict_bundle(failing, frames[:2])
    assert not len(predictions)
    assert [frame.reason for frame in predictions.unanswered] == [reason] * 2
    assert predictions.inside_nkb.shape == (0, 4, BINS)


def test_it_can_be_stopped(inspector, frames):
    assert predict_bundle(inspector, frames[:2], stop=lambda: True) is None
    assert predict_bundle(inspector, frames[:1], stop=lambda: True) is not None, "it was the last"


def test_labels_of_another_world_are_refused(inspector, frames):
    strange = replace(frames[0], class_ids=("pits",), rle_by_class={})
    with pytest.raises(InputError, match=r"expected types out of 1, 2, 3, 4, got pits; rename"):
        predict_bundle(inspector, [strange])
    grown = replace(frames[0], size_wh=(640, 128), rle_by_class={})
    with pytest.raises(InputError, match=r"expected 640 x 128 pixels, got 320 x 128; the file has"):
        predict_bundle(inspector, [grown])


# Of another tool: masks --------------------------------------------------------------------------


def check_perfect(predictions: Predictions, frames) -> None:
    """The labels themselves were given as predictions."""
    assert predictions.unanswered == ()
    assert not predictions.scored
    assert not predictions.graded
    assert predictions.images == tuple(frame.image for frame in frames)
    assert predictions.inside_nkb[..., :-1].sum() == 0, "all labelled pixels are predicted"
    assert predictions.outside_nkb[..., 1:].sum() == 0, "and no other"
    assert np.array_equal(predictions.type_scores_nk, predictions.present_nk)
    verdicts = apply_decision(predictions, delivered_decision(predictions.class_ids))
    assert np.array_equal(verdicts.ng_n, predictions.faulty)
    assert np.array_equal(verdicts.called_nk, predictions.present_nk)


@pytest.mark.parametrize(
    "target", ["severstal-submission", "coco", "mask-binary", "yolo", "cvat", "label-studio"]
)
def test_any_label_format_can_hold_predictions(catalog, frames, tmp_path, target):
    """The labels, converted, are a perfect prediction, without the images beside them."""
    convert(catalog.label_set, format_named(target), tmp_path / "p", placement=Placement.LEAVE)
    path = tmp_path / "p"
    if target == "severstal-submission":
        path = path / "submission.csv"
    predictions = read_foreign(path, frames, ("1", "2", "3", "4"), about={"tool": "x"})
    check_perfect(predictions, frames)
    assert predictions.about == {"tool": "x"}


def test_numbers_of_a_mask_are_types(frames, tmp_path):
    """Not places in the list of those types that happen to be labelled."""
    (tmp_path / "p" / "masks").mkdir(parents=True)
    mask_hw = np.zeros(SIZE_WH[::-1], np.uint8)
    mask_hw[3:7, 9:20] = 3
    cv2.imwrite(str(tmp_path / "p" / "masks" / f"{Path(frames[0].image).stem}.png"), mask_hw)
    tool = read_tool(tmp_path / "p", frames, ("3", "4"))
    assert tool.class_ids == ("3", "4")
    masks = {frames[0].image: ToolAnswer((FoundMask("3", encode_rle(mask_hw == 3)),))}
    assert tool.by_image == masks


def test_both_forms_of_kaggles_csv(frames, tmp_path):
    """An empty cell says 'none'; a frame without a row was not answered."""
    clean = next(frame for frame in frames if frame.clean)
    faulty = [frame for frame in frames if not frame.clean]
    (first, rle), *_ = faulty[0].rle_by_class.items()
    rows = tmp_path / "rows.csv"
    rows.write_text(
        f"ImageId,ClassId,EncodedPixels\n{faulty[0].image},{first},{rle}\n{clean.image},1,\n"
    )
    joined = tmp_path / "joined.csv"
    joined.write_text(
        f"ImageId_ClassId,EncodedPixels\n{faulty[0].image}_{first},{rle}\n{clean.image}_1,\n"
    )
    for path in (rows, joined):
        predictions = read_foreign(path, frames, "1234")
        assert set(predictions.images) == {faulty[0].image, clean.image}
        assert {f.reason for f in predictions.unanswered} == {NOT_MENTIONED}
        assert len(predictions.unanswered) == len(frames) - 2
        faulty_left_out = {f.image for f in predictions.unanswered if f.faulty}
        assert faulty_left_out == {frame.image for frame in faulty[1:]}
    answered = read_foreign(rows, frames, "1234", unmentioned_is_none=True)
    assert answered.unanswered == ()
    assert int((answered.type_scores_nk.max(axis=1) > 0).sum()) == 1


def test_a_mask_that_leaves_the_frame_is_told(frames, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(f"ImageId,ClassId,EncodedPixels\n{frames[0].image},1,{320 * 128} 2\n")
    with pytest.raises(LabelError, match=r"ends past the 40960 pixels of a frame of 320 x 128"):
        read_foreign(path, frames, "1234")


def test_further_types_are_false_alarms_and_told(frames, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        f"ImageId,ClassId,EncodedPixels\n{frames[0].image},3,1 5\n{frames[1].image},10,1 5\n"
    )
    tool = read_tool(path, frames, ("1", "3"))
    assert tool.class_ids == ("1", "3", "10")
    assert tool.notes == ("no label holds the types 10 of the predictions",)
    with pytest.raises(InputError, match=r"expected types out of a, b, got 10, 3; call them as"):
        read_tool(path, frames, ("a", "b"))


def test_frames_are_found_by_file_name(frames, tmp_path):
    deep = [replace(frame, image=f"line1/{frame.image}") for frame in frames]
    path = tmp_path / "p.csv"
    path.write_text(f"ImageId,ClassId,EncodedPixels\n{frames[0].image},3,1 5\nzzz.jpg,3,1 5\n")
    tool = read_tool(path, deep, "1234")
    assert list(tool.by_image) == [f"line1/{frames[0].image}"]
    assert tool.notes == ("1 predicted images are not among the evaluated frames",)
    twice = [replace(f, image=f"line{n}/a.jpg") for n, f in enumerate(frames[:2])]
    path.write_text("ImageId,ClassId,EncodedPixels\na.jpg,3,1 5\n")
    with pytest.raises(InputError, match=r"names frames such as 'a.jpg', expected .*'line0/a.jpg'"):
        read_tool(path, twice, "1234")


def test_what_cannot_be_read(frames, tmp_path):
    for name, content, said in [
        ("no.csv", None, "does not exist"),
        ("a.csv", "image,mask\n", "expected a CSV file with the columns ImageId"),
        ("a.txt", "hello", "no label format recognised"),
        ("a.json", "[", "damaged JSON"),
        ("a.jsonl", "{}\n", "line 1: no 'image', expected a result of 'steelsight inspect'"),
    ]:
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(SteelsightError) as error:
            read_tool(tmp_path / name, frames, "1234")
        assert said in str(error.value)
        assert "\n" not in str(error.value)


# Of another tool: COCO results -------------------------------------------------------------------


@pytest.fixture
def coco_ids(frames, tmp_path) -> Path:
    """Ids that are not what one would guess."""
    path = tmp_path / "labels.json"
    path.write_text(
        json.dumps(
            {
                "images": [
                    {"id": 100 - n, "file_name": frame.image, "width": 320, "height": 128}
                    for n, frame in enumerate(frames)
                ],
                "annotations": [],
                "categories": [{"id": 7 + k, "name": name} for k, name in enumerate("4321")],
            }
        )
    )
    return path


def coco_results(tmp_path: Path, entries: list) -> Path:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(entries))
    return path


def test_coco_results(frames, coco_ids, tmp_path):
    """Scores of types and frames are those of the best mask; pixels have the best that covers."""
    low, high = np.zeros((2, *SIZE_WH[::-1]), bool)
    low[10:20, 10:30] = True
    high[15:25, 20:40] = True
    found = [
        (9, 0.9, encode_coco_rle(high)),
        (9, 0.3, encode_coco_rle(low)),
        (7, 0.2, [[10, 10, 30, 10, 30, 20, 10, 20]]),
    ]
    results = coco_results(
        tmp_path,
        [
            {"image_id": 100, "category_id": category, "score": score, "segmentation": mask}
            for category, score, mask in found
        ],
    )
    tool = read_tool(results, frames, "1234", coco_ids=coco_ids)
    predictions = predict_tool(tool, frames)
    assert predictions.images == (frames[0].image,)
    assert len(predictions.unanswered) == len(frames) - 1, "nothing found is not clean"
    assert predictions.scored
    assert predictions.graded
    assert predictions.type_scores_nk[0] == pytest.approx([0, 0.9, 0, 0.2], abs=1e-6)
    assert predictions.faulty_probability[0] == pytest.approx(0.9, abs=1e-6)
    counts_b = predictions.inside_nkb[0, 1] + predictions.outside_nkb[0, 1]
    # logit(0.9) = 2.197 lies in the bin from 2 on, logit(0.3) = -0.847 in that from -1 on.
    assert (counts_b[33], counts_b[21], counts_b[0]) == (200, 150, 320 * 128 - 350)
    drawn = predictions.inside_nkb[0, 3] + predictions.outside_nkb[0, 3]
    assert drawn[19] == 200, "logit(0.2) = -1.386"
    decision = delivered_decision(tool.class_ids)
    verdicts = apply_decision(predictions, decision)
    assert verdicts.called_nk.tolist() == [[False, True, False, False]]
    delivered = masks_of_tool(tool, frames[:2], decision)
    assert delivered == {frames[0].image: {"2": encode_rle(high)}, frames[1].image: {}}
    all_answered = read_foreign(
        results, frames, "1234", coco_ids=coco_ids, unmentioned_is_none=True
    )
    assert len(all_answered) == len(frames)


def test_coco_ids_are_never_guessed(frames, coco_ids, tmp_path):
    whole = {"image_id": 100, "category_id": 9, "score": 0.9,
             "segmentation": encode_coco_rle(np.ones(SIZE_WH[::-1], bool))}  # fmt: skip
    for change, ids, said in [
        ({}, None, r"image_id is '100', expected a COCO file that tells what it means"),
        ({"category_id": 2}, coco_ids, r"category_id is '2', expected one that .* lists"),
        ({"score": None}, coco_ids, r"a score is 'None', not a number from 0 to 1"),
        ({"score": 1.5}, coco_ids, r"a score is '1.5', not a number from 0 to 1"),
        ({"segmentation": None, "bbox": [1, 2, 3, 4]}, coco_ids, r"a box says nothing"),
        ({"segmentation": [[1, 2, "x", 4]]}, coco_ids, r"a polygon that cannot be read"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, coco_ids, r"128"),
    ]:
        path = coco_results(tmp_path, [whole | change])
        with pytest.raises(InputError, match=said):
            read_tool(path, frames, "1234", coco_ids=ids)
    named = coco_results(tmp_path, [whole | {"image_id": frames[1].image, "category_id": "2"}])
    assert list(read_tool(named, frames, "1234").by_image) == [frames[1].image]


def test_ids_with_two_meanings_are_refused(frames, coco_ids, tmp_path):
    folder = tmp_path / "several"
    folder.mkdir()
    (folder / "a.json").write_bytes(coco_ids.read_bytes())
    document = json.loads(coco_ids.read_text())
    document["images"][0]["file_name"] = "other.jpg"
    (folder / "b.json").write_text(json.dumps(document))
    path = coco_results(tmp_path, [])
    with pytest.raises(InputError, match=r"the id '100' means .* and 'other.jpg', expected one"):
        read_tool(path, frames, "1234", coco_ids=folder)
    nothing = read_tool(path, frames, "1234", coco_ids=coco_ids)
    assert not nothing.by_image


# Of another tool: result lines -------------------------------------------------------------------


def test_result_lines_are_judged_as_they_were(frames, inspector, of_bundle, tmp_path):
    lines = [inspector.inspect(frame.path, frame.image) for frame in frames[1:]]
    unknown = inspector.inspect(b"no image", frames[0].image)
    path = tmp_path / "results.jsonl"
    path.write_text("".join(line.to_json_line() + "\n" for line in [unknown, *lines]))
    tool = read_tool(tmp_path, frames, "1234")  # the folder
    assert tool.decision_id == inspector.bundle.decision.id
    predictions = predict_tool(tool, frames)
    assert predictions.unanswered == (
        Unanswered(frames[0].image, "not-an-image", not frames[0].clean),
    )
    verdicts = apply_decision(predictions, applied_decision(inspector.bundle.decision))
    assert ["NG" if ng else "OK" for ng in verdicts.ng_n] == [line.verdict for line in lines]
    expected = apply_decision(of_bundle, inspector.bundle.decision)
    assert np.array_equal(verdicts.called_nk, expected.called_nk[1:])
    called = verdicts.called_nk
    assert np.array_equal(verdicts.area_px_nk[called], expected.area_px_nk[1:][called])
    said = np.array([[line.class_probabilities[c] for c in "1234"] for line in lines])
    assert predictions.type_scores_nk == pytest.approx(said, abs=1e-5)


def test_scores_of_result_lines_are_not_changed_twice(inspector):
    gate = inspector.bundle.decision.gate.model_copy(update={"temperature": 3.0, "soft": True})
    decision = inspector.bundle.decision.model_copy(update={"gate": gate})
    applied = applied_decision(decision)
    assert (applied.gate.temperature, applied.gate.soft) == (1, False)
    assert (applied.id, applied.types) == (decision.id, decision.types)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"faulty_probability": 2}, "a score is '2'"),
        ({"faulty_probability": True}, "a score is 'True'"),
        ({"defects": [{"class": "1"}]}, "no 'rle'"),
        ({"verdict": "MAYBE"}, "MAYBE"),
        ({"verdict": "UNKNOWN", "reason": "tired"}, "tired"),
        ({"class_probabilities": [1]}, "no attribute"),
    ],
)
def test_broken_result_lines(frames, tmp_path, change, said):
    line = {"image": frames[0].image, "verdict": "OK", "reason": None, "defects": [],
            "faulty_probability": 0.1, "class_probabilities": {"1": 0.1}}  # fmt: skip
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(line) + "\n" + json.dumps(line | change) + "\n")
    with pytest.raises(InputError, match=r"line 2.*" + said) as error:
        read_tool(path, frames, "1234")
    assert "\n" not in str(error.value)


def test_each_frame_once_and_one_decision(frames, tmp_path):
    line = {"image": frames[0].image, "verdict": "OK", "reason": None, "defects": [],
            "faulty_probability": 0.1, "class_probabilities": {}, "decision": "aa"}  # fmt: skip
    path = tmp_path / "results.jsonl"
    path.write_text(2 * (json.dumps(line) + "\n"))
    with pytest.raises(InputError, match=r"line 2.* stands there twice"):
        read_tool(path, frames, "1234")
    other = line | {"image": frames[1].image, "decision": "bb"}
    path.write_text(json.dumps(line) + "\n" + json.dumps(other) + "\n")
    with pytest.raises(InputError, match=r"several decisions \(aa, bb\)"):
        read_tool(path, frames, "1234")


def test_frames_that_cannot_be_read_have_no_answer(frames, tmp_path):
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(frames[0].path.read_bytes()[:2000])
    tool = ToolFile("x", tuple("1234"), {f.image: ToolAnswer() for f in frames}, False, False)
    predictions = predict_tool(tool, [replace(frames[0], path=cut), frames[1]], groups={})
    assert [frame.reason for frame in predictions.unanswered] == [Reason.TRUNCATED]
    assert len(predictions) == 1


def test_the_best_mask_lies_on_top(frames):
    masks = (FoundMask("1", "1 10", 0.9), FoundMask("1", "1 20", 0.4))
    tool = ToolFile("x", tuple("1234"), {frames[0].image: ToolAnswer(masks)}, True, True)
    found = predict_tool(tool, frames[:1])
    counts = found.inside_nkb[0, 0] + found.outside_nkb[0, 0]
    assert (counts[33], counts[24 - 1]) == (10, 10), "logits 2.197 and -0.405"


# Our own file ------------------------------------------------------------------------------------


def test_kept_predictions(of_bundle, frames, tmp_path):
    path = tmp_path / "predictions.npz"
    lost = Unanswered("lost.jpg", "blank", faulty=True)
    replace(of_bundle, unanswered=(lost,)).save(path)
    some = read_kept(path, frames[2:5], groups={frames[3].image: 7}, about={"data": "d"})
    assert some.images == tuple(frame.image for frame in frames[2:5])
    assert some.groups.tolist() == [8, 7, 10]
    assert some.unanswered == ()
    assert some.about == {"model": 1, "data": "d"}
    named = replace(frames[0], image="lost.jpg")
    assert read_kept(path, [*frames, named]).unanswered == (lost,)


def test_kept_predictions_of_other_labels_are_refused(of_bundle, frames, tmp_path):
    path = tmp_path / "predictions.npz"
    of_bundle.save(path)
    clean = next(frame for frame in frames if frame.clean)
    relabelled = replace(clean, class_ids=("2",))
    with pytest.raises(InputError, match=r"expected the types 2 as it is labelled now, got none"):
        read_kept(path, [relabelled])
    with pytest.raises(InputError, match=r"expected frames of this data set such as 'x.jpg'"):
        read_kept(path, [replace(clean, image="x.jpg")])


# Which frames ------------------------------------------------------------------------------------

NOTHING = Learned("nothing")


def test_everything_is_counted(drawn, tmp_path):
    """A damaged image stays in; unlabelled, disputed, refused and missing ones are left out."""
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    images = sorted((drawn / "images").iterdir())[:6]
    for path in images:
        (folder / "images" / path.name).write_bytes(path.read_bytes())
    (folder / "images" / images[0].name).write_bytes(images[0].read_bytes()[:2000])
    rows = [(f"{images[0].name}", "1", "1 5"), (images[1].name, "1", "9 5 3 1"),
            (images[2].name, "1", ""), ("gone.jpg", "1", "1 5")]  # fmt: skip
    (folder / "train.csv").write_text(
        "ImageId,ClassId,EncodedPixels\n" + "".join(",".join(row) + "\n" for row in rows)
    )
    (folder / "images.csv").write_text(
        f"ImageId,status\n{images[3].name},disputed\n{images[4].name},clean\n"
    )
    errors = []
    catalog = scan(load(folder, errors=errors))
    selection = select(catalog, [], NOTHING)
    assert [frame.image for frame in selection.frames] == [images[i].name for i in (0, 2, 4)]
    assert selection.left_out == {"disputed": 1, "missing": 1, "refused": 1, "unlabelled": 1}
    assert selection.images == 7 == len(selection.frames) + sum(selection.left_out.values())
    assert selection.frames[0].class_ids == ("1",)
    less = selection.only({images[2].name}, "why not")
    assert less.left_out["why not"] == 2


def test_a_mask_that_does_not_fit_its_frame_is_told(catalog):
    labels = catalog.records[0].labels
    too_long = replace(labels, rle_by_class={"1": "1 999999"}, size_wh=SIZE_WH)
    records = (replace(catalog.records[0], labels=too_long), *catalog.records[1:])
    selection = select(replace(catalog, records=records), [], NOTHING)
    assert selection.left_out == {"refused": 1}
    assert "ends past" in str(selection.errors[0])


@pytest.fixture(scope="module")
def parts(catalog):
    return make_split(
        catalog, [], parts={"train": 0.5, "val": 0.3, "test": 0.2}, seed=0, source="drawn",
        group_source="near-duplicates",
    )  # fmt: skip


def test_parts_of_a_split(catalog, parts):
    selection = select(catalog, [], NOTHING, split=parts)
    assert selection.part == "test"
    assert tuple(f.image for f in selection.frames) == parts.images_of("test")
    assert selection.left_out == {"other part of the split": 10 - len(parts.images_of("test"))}
    assert select(catalog, [], NOTHING, split=parts, part="train").part == "train"
    assert len(select(catalog, [], NOTHING, split=parts, part="all").frames) == 10
    with pytest.raises(InputError, match=r"no part 'dev', expected one of train, val, test"):
        select(catalog, [], NOTHING, split=parts, part="dev")
    with pytest.raises(InputError, match=r"names a part of a split: give --split too"):
        select(catalog, [], NOTHING, part="test")
    folds = make_split(catalog, [], folds=2, seed=0, source="d", group_source="g", parts=None)
    some = select(catalog, [], NOTHING, split=folds, part="fold:1")
    assert {f.image for f in some.frames} == set(folds.images_of("fold-1"))


def test_other_data_than_were_split_are_refused(catalog, parts):
    other = replace(catalog.records[0], sha256="0" * 64)
    changed = replace(catalog, records=(other, *catalog.records[1:]))
    with pytest.raises(InputError, match="differ in 1 place"):
        select(changed, [], NOTHING, split=parts)


def test_what_was_learned_from_is_left_out_or_told(catalog, parts):
    learned = Learned("x", split=parts, images=frozenset(parts.images_of("train")))
    selection = select(catalog, [], learned)
    assert selection.part == "test"
    assert selection.warnings == ()
    for part in ("all", "train"):
        with_them = select(catalog, [], learned, part=part)
        assert set(with_them.learned_from) == set(parts.images_of("train"))
        assert "were learned from" in with_them.warnings[0]
        assert "too good" in with_them.warnings[0]


def test_learned_frames_are_known_in_another_data_set(catalog, parts):
    """By their bytes, whatever they are called there, and with all that shows the same steel."""
    train = set(parts.images_of("train"))
    learned = Learned("x", split=parts, images=frozenset(train))
    records = [replace(r, image=f"new-{r.image}") for r in catalog.records]
    kept = [r for r in records if r.image.removeprefix("new-") in train][:2]
    fresh = [replace(r, sha256="f" * 64) for r in records if r not in kept][:3]
    other = replace(catalog, records=tuple(sorted((*kept, *fresh), key=lambda r: r.image)))
    twin = [(kept[0].image, fresh[0].image)]
    split_elsewhere = replace(learned, split=parts)
    selection = select(other, twin, split_elsewhere, part="all")
    assert set(selection.learned_from) == {kept[0].image, kept[1].image, fresh[0].image}


def test_where_all_was_learned_from_nothing_is_measured(catalog, parts):
    learned = Learned("x", split=parts, images=frozenset(parts.assignment))
    with pytest.raises(InputError, match=r"every part .* was learned from; evaluate the out-of-f"):
        select(catalog, [], learned)


def test_thresholds_that_were_chosen_here_are_told(catalog, parts):
    learned = Learned(
        "x", split=parts, images=frozenset(parts.images_of("train")),
        chosen_on=f"3 frames: frames held out of training; split {parts.id}",
    )  # fmt: skip
    assert "chosen on these very frames" in select(catalog, [], learned, part="val").warnings[0]


def test_groups_of_the_split_and_of_the_data(catalog, parts):
    images = [record.image for record in catalog.records]
    selection = select(catalog, [images[:2], images[1:3], images[5:6]], NOTHING)
    numbers = selection.groups
    assert set(numbers) == set(images[:3])
    assert len(set(numbers.values())) == 1


def test_a_bundle_knows_its_run(catalog, parts, tmp_path):
    shipped = load_bundle()
    assert learned_by(shipped).told.startswith("100 masked, 12 faulty")
    assert learned_by(shipped).split is None
    run = tmp_path / "run"
    (run / "bundle").mkdir(parents=True)
    card = shipped.folder / "MODEL_CARD.md"
    (run / "bundle" / "MODEL_CARD.md").write_text(card.read_text() + f"- split: {parts.sha256}\n")
    bundle = shipped.model_copy(update={"folder": run / "bundle"})
    assert learned_by(bundle).split is None
    write_split(parts, run / "split.json")
    learned = learned_by(bundle)
    assert learned.split == parts
    assert learned.images == set(parts.images_of("train"))
    assert len(learned.hashes) == len(learned.images)
    (run / "bundle" / "MODEL_CARD.md").write_text(card.read_text())
    assert learned_by(bundle).split is None, "the split of another run"
    assert learned_in_run(run / "predictions.npz").held_out
    assert not learned_in_run(tmp_path / "predictions.npz").held_out


def test_folds_that_were_held_out(catalog, of_bundle, tmp_path):
    folds = make_split(catalog, [], folds=2, seed=0, source="d", group_source="g", parts=None)
    run = tmp_path / "run"
    (run / "bundle").mkdir(parents=True)
    write_split(folds, run / "split.json")
    shipped = load_bundle()
    card = (shipped.folder / "MODEL_CARD.md").read_text()
    (run / "bundle" / "MODEL_CARD.md").write_text(card + folds.sha256)
    bundle = shipped.model_copy(update={"folder": run / "bundle"})
    held_out = set(folds.images_of("fold-1"))
    of_bundle.take(np.array([i in held_out for i in of_bundle.images])).save(
        run / "predictions.npz"
    )
    assert learned_by(bundle).images == set(folds.images_of("fold-0"))
    assert select(catalog, [], learned_by(bundle)).part == "fold-1"
    (run / "final").mkdir()  # and then a network that learned from all
    assert learned_by(bundle).images == set(folds.assignment)
