"""What a network said: counted, kept, put together and handed on."""

import io
import json
import subprocess
import sys
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelsight.data.frames import FramePixels, LabelledFrame, types_image
from steelsight.data.predictions import read_predictions
from steelsight.decisions import decide, load_decision, mask_peaks
from steelsight.errors import InputError
from steelsight.evaluation.predictions import (
    _CELLS,
    BINS,
    MASK_LOGIT_EDGES,
    MASK_PROBABILITY_EDGES,
    Answer,
    Collector,
    Predictions,
    Unanswered,
    logit,
    mask_counts,
    region_counts,
    sigmoid,
)
from steelsight.masks import encode_rle


def same(one: Predictions, other: Predictions) -> bool:
    return all(
        np.array_equal(getattr(one, f.name), getattr(other, f.name))
        if isinstance(getattr(one, f.name), np.ndarray)
        else getattr(one, f.name) == getattr(other, f.name)
        for f in fields(one)
    )


# Counting ----------------------------------------------------------------------------------------


def test_edges_are_as_agreed():
    assert BINS == 50
    assert MASK_LOGIT_EDGES.tolist() == [-6 + 0.25 * i for i in range(49)]
    cells = np.floor(MASK_PROBABILITY_EDGES * np.float32(_CELLS))
    assert len(set(cells)) == 49, "the fast way needs at most one edge in a cell"


def naive_counts(probabilities_khw, types_hw):
    counts = np.zeros((2, len(probabilities_khw), BINS), np.int64)
    for k, plane in enumerate(probabilities_khw):
        for row in range(plane.shape[0]):
            for column in range(plane.shape[1]):
                at_least = sum(plane[row, column] >= edge for edge in MASK_PROBABILITY_EDGES)
                inside = int(types_hw[row, column]) >> k & 1
                counts[1 - inside, k, at_least] += 1
    return counts


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_counts_are_those_of_a_loop_over_pixels(dtype):
    rng = np.random.default_rng(0)
    edges = MASK_PROBABILITY_EDGES
    values = np.concatenate(
        [edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(1)),
         np.float32([0, 1, 1e-30, np.nextafter(np.float32(1), np.float32(0))]),
         sigmoid(rng.normal(0, 5, 200)).astype(np.float32)]
    )  # fmt: skip
    types = 3 if dtype == np.uint8 else 12
    frame_khw = rng.choice(values, (types, 11, 37))
    frame_khw[0].ravel()[: len(values)] = values
    types_hw = rng.integers(1 << types, size=(11, 37)).astype(dtype)
    inside, outside = mask_counts(frame_khw, types_hw)
    expected = naive_counts(frame_khw, types_hw)
    assert np.array_equal(inside, expected[0])
    assert np.array_equal(outside, expected[1])
    assert inside.dtype == outside.dtype == np.int64


def test_large_frames_are_counted_whole():
    rng = np.random.default_rng(1)
    frame_khw = sigmoid(rng.normal(-4, 3, (4, 256, 1600))).astype(np.float32)
    types_hw = rng.integers(16, size=(256, 1600)).astype(np.uint8)
    inside, outside = mask_counts(frame_khw[:, ::-1], types_hw[::-1])  # not contiguous
    bins = np.searchsorted(MASK_PROBABILITY_EDGES, frame_khw, side="right")
    for k in range(4):
        mask = (types_hw & 1 << k) > 0
        assert np.array_equal(inside[k], np.bincount(bins[k][mask], minlength=BINS))
        assert np.array_equal(outside[k], np.bincount(bins[k][~mask], minlength=BINS))


@pytest.mark.parametrize("value", [np.nan, -0.001, 1.001, np.inf])
def test_a_diverged_network_is_told_in_one_line(value):
    frame_khw = np.full((2, 8, 8), 0.5, np.float32)
    frame_khw[1, 3, 4] = value
    with pytest.raises(InputError, match=r"^expected mask probabilities from 0 to 1.*lower") as e:
        mask_counts(frame_khw, np.zeros((8, 8), np.uint8))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("types", "size_hw"), [(9, (8, 8)), (2, (8, 9))])
def test_masks_and_labels_must_fit(types, size_hw):
    with pytest.raises(ValueError, match="do not fit"):
        mask_counts(np.zeros((types, 8, 8), np.float32), np.zeros(size_hw, np.uint8))


def test_sigmoid_at_both_ends():
    x = np.float32([-1000, -1, 0, 1, 1000, np.inf, -np.inf])
    expected = [0, 1 / (1 + np.e), 0.5, 1 / (1 + 1 / np.e), 1, 1, 0]
    assert sigmoid(x) == pytest.approx(expected, abs=1e-15)
    assert np.isnan(sigmoid(np.float32([np.nan])))[0]


# The container -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"folds": np.zeros(3, np.int32)}, "folds: expected int64"),
        ({"peaks_nk": np.zeros((3, 3), np.float32)}, "peaks_nk: expected float32"),
        ({"images": ("a", "b", "a")}, "each image and each type once"),
        ({"class_ids": ("a", "a")}, "each image and each type once"),
        ({"faulty": np.zeros(3, bool)}, "not faulty"),
        ({"masked_nk": np.ones((3, 2), bool)}, "a mask of a type that is not on it"),
        ({"inside_nkb": np.ones((3, 2, BINS), np.int64)}, "does not exist"),
        ({"outside_nkb": np.full((3, 2, BINS), -1)}, "negative"),
        ({"unanswered": (Unanswered("0.jpg", "blank", faulty=False),)}, "each image and each type"),
        ({"region_types_r": np.array([0])}, "region_types_r: expected int64"),
    ],
)
def test_contradictions_are_refused(make, change, said):
    whole = make([[1, 0], [0, 1], [0, 0]])
    values = {f.name: getattr(whole, f.name) for f in fields(whole)}
    with pytest.raises(ValueError, match=said):
        Predictions(**values | change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"region_counts_rb": np.zeros((1, BINS), np.int64)}, "are not its pixels"),
        ({"region_counts_rb": np.full((1, BINS), -1)}, "negative"),
        ({"region_types_r": np.array([1])}, "are not its pixels"),
        ({"region_types_r": np.array([2])}, "does not exist"),
        ({"region_frames_r": np.array([-1])}, "does not exist"),
    ],
)
def test_regions_are_the_labelled_pixels(make, change, said):
    found = make([[1, 0]], masked_nk=[[1, 0]], inside_nkb=[[[3] * BINS, [0] * BINS]])
    assert len(found.region_frames_r) == 1
    with pytest.raises(ValueError, match=said):
        replace(found, **change)


def test_regions_come_in_the_order_of_their_frames(make):
    masks = np.ones((2, 1, BINS), np.int64)
    found = make([[1], [1]], masked_nk=[[1], [1]], inside_nkb=masks)
    with pytest.raises(ValueError, match="does not exist"):
        replace(found, region_frames_r=np.array([1, 0]))


def test_a_faulty_frame_may_have_no_known_type(make):
    found = make([[0, 0], [0, 0]], faulty=[True, False])
    assert len(found) == 2


def test_type_scores_are_those_of_the_decision(tmp_path, make):
    """The formula, peaks and masks agree with the code that judges frames in the field."""
    path = tmp_path / "decision.toml"
    path.write_text(
        'version = 1\nname = "n"\nrule = "r"\nchosen_on = "c"\n[gate]\nclear_below = 1e-9\n'
        "ng_from = 0.5\n[input]\nmin_contrast = 0\n"
        + "".join(f"[types.{c}]\nlabel_from=0\npixel_from=0.5\nmin_area_px=0\n" for c in "ab")
    )
    decision = load_decision(path, ["a", "b"])
    rng = np.random.default_rng(3)
    heads_n2k = rng.normal(0, 3, (5, 2, 3)).astype(np.float32)
    masks = sigmoid(rng.normal(0, 2, (5, 2, 40, 50))).astype(np.float32)
    found = make(
        np.zeros((5, 2)), head_probabilities_nk=sigmoid(heads_n2k[:, :, 1:]).mean(axis=1),
        faulty_logits=heads_n2k[:, :, 0].mean(axis=1),
        peaks_nk=[mask_peaks(frame) for frame in masks],
    )  # fmt: skip
    for n in range(5):
        per_type = (1 / (1 + np.exp(-heads_n2k[n, :, 1:]))).mean(axis=0)
        judged = decide(float(found.faulty_probability[n]), per_type, masks[n], decision)
        expected = list(judged.class_probabilities.values())
        assert found.type_scores_nk[n] == pytest.approx(expected, abs=1e-6)
        counts = mask_counts(masks[n], np.zeros((40, 50), np.uint8))[1]
        area = {c: sum(d.area_px for d in judged.defects if d.class_id == c) for c in "ab"}
        assert counts[:, 25:].sum(axis=1).tolist() == list(area.values())


# Regions -----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.6))
def test_regions_are_those_of_a_flood_fill(seed, density):
    rng = np.random.default_rng(seed)
    mask_hw = rng.random((9, 12)) < density
    plane = rng.random((9, 12)).astype(np.float32)
    expected = []
    left = {(int(y), int(x)) for y, x in np.argwhere(mask_hw)}
    while left:
        region, front = set(), [left.pop()]
        while front:
            y, x = front.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            front += near
        rows, columns = zip(*region, strict=True)
        box = (min(columns), min(rows), np.ptp(columns) + 1, np.ptp(rows) + 1)
        counts = [0] * BINS
        for pixel in region:
            counts[sum(plane[pixel] >= edge for edge in MASK_PROBABILITY_EDGES)] += 1
        expected.append((*map(int, box), *counts))
    found = region_counts(plane, mask_hw)
    rows = np.concatenate([found.boxes_r4, found.counts_rb], axis=1)
    assert sorted(map(tuple, rows.tolist())) == sorted(expected)


# Collecting --------------------------------------------------------------------------------------


def labelled(name, masks, others=()):
    rles = {class_id: encode_rle(mask) for class_id, mask in masks.items()}
    return LabelledFrame(name, Path(name), (20, 10), rles, (*rles, *others))


def test_what_is_collected():
    """Two types in one frame, one without a mask, a clean frame, one without an answer."""
    rng = np.random.default_rng(0)
    one, two = np.zeros((2, 10, 20), bool)
    one[2:4, 3:7] = one[8:, 15:] = True
    two[3:6, 5:9] = True
    frames = [labelled("a.png", {"x": one, "y": two}, ["z"]), labelled("b.png", {})]
    collector = Collector("xyz")
    answers = []
    for frame, group in zip(frames, (7, None), strict=True):
        types_hw = types_image(frame, "xyz")
        grey_hw = rng.integers(256, size=(10, 20)).astype(np.uint8)
        masks = rng.random((3, 10, 20)).astype(np.float32)
        answers.append(Answer(rng.normal(), rng.random(3).astype(np.float32), masks))
        collector.add(frame, FramePixels(grey_hw, types_hw), answers[-1], fold=2, group=group)
        brightness = grey_hw.mean()
    collector.add_unanswered(labelled("c.png", {"y": two}), "truncated")
    found = collector.predictions(about={"model": "m"})
    assert found.images == ("a.png", "b.png")
    assert found.unanswered == (Unanswered("c.png", "truncated", faulty=True),)
    assert found.folds.tolist() == [2, 2]
    assert found.groups.tolist() == [7, 8], "a frame without a group stands alone"
    assert found.faulty.tolist() == [True, False]
    assert found.present_nk.tolist() == [[True] * 3, [False] * 3]
    assert found.masked_nk.tolist() == [[True, True, False], [False] * 3]
    assert found.sizes_n2.tolist() == [[20, 10]] * 2
    assert found.brightness_n[1] == pytest.approx(brightness)
    assert found.region_frames_r.tolist() == [0, 0, 0]
    assert found.region_types_r.tolist() == [0, 0, 1]
    assert found.region_boxes_r4.tolist() == [[3, 2, 4, 2], [15, 8, 5, 2], [5, 3, 4, 3]]
    for n, (frame, answer) in enumerate(zip(frames, answers, strict=True)):
        counts = mask_counts(answer.probabilities_khw, types_image(frame, "xyz"))
        np.testing.assert_array_equal(np.stack((found.inside_nkb[n], found.outside_nkb[n])), counts)
        np.testing.assert_array_equal(found.peaks_nk[n], mask_peaks(answer.probabilities_khw))
        np.testing.assert_array_equal(found.head_probabilities_nk[n], answer.head_probabilities_k)
        assert found.faulty_logits[n] == np.float32(answer.faulty_logit)


def test_nothing_collected_is_no_frames():
    found = Collector(("a", "b")).predictions(scored=False, graded=False)
    assert len(found) == 0
    assert found.type_scores_nk.shape == (0, 2)
    assert not found.scored
    assert not found.graded


@pytest.mark.parametrize("p", [1e-30, 1e-7, 0.25, 0.5, 0.999])
def test_logit_is_the_inverse(p):
    assert sigmoid(logit(np.array([p])))[0] == pytest.approx(p, rel=1e-12)


def test_logit_of_certainty_is_finite():
    low, high, missing = logit(np.array([0, 1, np.nan]))
    assert low < logit(np.array([np.finfo(np.float32).tiny]))[0] < 0
    assert high >= logit(np.array([np.nextafter(np.float32(1), np.float32(0))]))[0] > 16
    assert np.isnan(missing)


# Files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 30])
def test_what_is_saved_is_loaded(tmp_path, random_ones, n):
    found = random_ones(4, n)
    found = replace(
        found,
        images=tuple(f"ünter\udc80/{i}.jpg" for i in range(n)),
        unanswered=(Unanswered("x\udc80.jpg", "truncated", faulty=True),),
        scored=n == 1,
        graded=n != 1,
        about={"model": "m@1", "numbers": [1, 2.5, None]},
    )
    path = tmp_path / "found.npz"
    found.save(path)
    assert same(Predictions.load(path), found)
    first = path.read_bytes()
    found.save(path)
    assert path.read_bytes() == first, "equal predictions, equal bytes"
    assert [p.name for p in tmp_path.iterdir()] == ["found.npz"]


def test_nan_survives_a_file(tmp_path, make):
    make([[1]], faulty_logits=[np.nan]).save(tmp_path / "found.npz")
    assert np.isnan(Predictions.load(tmp_path / "found.npz").faulty_logits[0])


def npz(**arrays) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def about(**entries) -> np.ndarray:
    return np.frombuffer(json.dumps(entries).encode(), np.uint8)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a zip file"),
        (b"image,fold\n", "not a zip file"),
        (npz(a=np.zeros(3)), "about"),
        (npz(about=np.array([{}], object)), "pickle|allow_pickle|Object arrays"),
        (npz(about=about(format="another", version=1)), "another format"),
        (npz(about=np.frombuffer(b"[1", np.uint8)), "Expecting"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, said):
    path = tmp_path / "found.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        Predictions.load(path)
    assert str(path) in str(error.value)
    assert "steelsight train" in str(error.value)
    assert "\n" not in str(error.value)


def rewritten(path, **changed):
    with np.load(path) as arrays:
        values = dict(arrays) | changed
    path.write_bytes(npz(**values))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"folds": np.zeros(4, np.int64)}, "folds"),
        ({"faulty_logits": np.zeros(9)}, "faulty_logits: expected float32"),
        ({"outside_nkb": np.full((9, 3, BINS), -1)}, "negative"),
        ({"about": about(format="steelsight predictions", version=1)}, "another format or version"),
        (
            {
                "about": about(
                    format="steelsight predictions",
                    version=2,
                    images=[1] * 9,
                    class_ids=["a"] * 3,
                    unanswered=[],
                )
            },
            "no text",
        ),
        ({"about": about(format="steelsight predictions", version=2, images=None)}, "None"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, random_ones, changed, said):
    path = tmp_path / "found.npz"
    random_ones(5, 9).save(path)
    rewritten(path, **changed)
    with pytest.raises(InputError, match=said):
        Predictions.load(path)


def test_every_cut_and_most_damage_is_told(tmp_path, random_ones):
    path = tmp_path / "found.npz"
    found = random_ones(6, 5)
    found.save(path)
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            Predictions.load(path)
    rng = np.random.default_rng(0)
    for place in rng.integers(len(content), size=100):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            read = Predictions.load(path)
        except InputError:
            continue
        assert same(read, found)  # a bit that carries no meaning, such as a time stamp


def test_a_file_that_claims_to_be_huge_is_not_read(tmp_path, random_ones, monkeypatch):
    path = tmp_path / "found.npz"
    random_ones(6, 5).save(path)
    monkeypatch.setattr("steelsight.evaluation.predictions._MAX_FILE_BYTES", 2000)
    with pytest.raises(InputError, match=r"claim [0-9]+ bytes"):
        Predictions.load(path)


def test_paths_that_cannot_be_used(tmp_path, random_ones):
    with pytest.raises(InputError, match=r"cannot be read .No such file"):
        Predictions.load(tmp_path / "none.npz")
    with pytest.raises(InputError, match=r"cannot be read .Is a directory"):
        Predictions.load(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        random_ones(1, 2).save(tmp_path / "no" / "folder.npz")
    with pytest.raises(InputError, match="cannot be written"):
        random_ones(1, 2).write_jsonl(tmp_path / "no" / "folder.jsonl")


def test_an_encrypted_member_is_refused(tmp_path, random_ones):
    path = tmp_path / "found.npz"
    random_ones(1, 2).save(path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as members:
        for member in members.infolist():
            content[member.header_offset + 6] |= 1
    central = content.index(b"PK\x01\x02")
    while central >= 0:
        content[central + 8] |= 1
        central = content.find(b"PK\x01\x02", central + 4)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"encrypted|password"):
        Predictions.load(path)


# Together ----------------------------------------------------------------------------------------


def part_of(found: Predictions, keep) -> Predictions:
    chosen = np.zeros(len(found), bool)
    chosen[keep] = True
    return found.take(chosen)


def test_scores_of_a_first_look_are_kept_with_their_frames(tmp_path, random_ones):
    scores = np.linspace(-5, 5, 30).astype(np.float32)
    found = replace(random_ones(4, 30), first_look_logits=scores)
    found.save(tmp_path / "found.npz")
    assert np.array_equal(Predictions.load(tmp_path / "found.npz").first_look_logits, scores)
    odd = np.arange(30) % 2 == 1
    parts = [found.take(odd), found.take(~odd)]
    assert np.array_equal(parts[0].first_look_logits, scores[odd])
    both = Predictions.concatenate(parts).first_look_logits
    assert np.array_equal(both, np.concatenate([scores[odd], scores[~odd]]))
    parts[1] = replace(parts[1], first_look_logits=None)
    assert Predictions.concatenate(parts).first_look_logits is None, "not of every frame"
    with pytest.raises(ValueError, match="first_look_logits: expected float32"):
        replace(found, first_look_logits=scores[1:])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 5), st.integers(1, 3))
def test_parts_put_together_are_the_whole(random_ones, n, count):
    whole = random_ones(7, n)
    parts = np.array_split(np.arange(n), count)
    assert same(Predictions.concatenate([part_of(whole, keep) for keep in parts]), whole)


def test_parts_of_different_runs_are_refused(make):
    one, other = make([[1]]), make([[0]], images=("b.jpg",))
    assert Predictions.concatenate([one, other]).images == ("0.jpg", "b.jpg")
    with pytest.raises(InputError, match=r"'0\.jpg' is in two"):
        Predictions.concatenate([one, other, one])
    with pytest.raises(InputError, match="the types a in this order, got b"):
        Predictions.concatenate([one, make([[0]], images=("b.jpg",), class_ids=("b",))])
    with pytest.raises(ValueError, match="got none"):
        Predictions.concatenate([])


def test_results_are_read_by_the_audit(tmp_path, random_ones):
    found = random_ones(8, 20)
    path = tmp_path / "out_of_fold.jsonl"
    found.write_jsonl(path)
    read = read_predictions(path)
    assert list(read) == list(found.images)
    assert list(read.values()) == pytest.approx(found.faulty_probability.tolist(), rel=1e-5)
    line = json.loads(path.read_text().splitlines()[3])
    assert line["class_probabilities"] == pytest.approx(
        dict(zip("abc", found.type_scores_nk[3], strict=True)), rel=1e-5
    )


def test_a_frame_without_a_score_is_left_out_of_results(tmp_path, make):
    path = tmp_path / "out_of_fold.jsonl"
    make([[1], [0]], faulty_logits=[np.nan, 1]).write_jsonl(path)
    assert list(read_predictions(path)) == ["1.jpg"]


def test_evaluation_needs_no_torch():
    code = (
        "import sys, steelsight.evaluation.metrics, steelsight.evaluation.thresholds;"
        "assert not {'torch', 'sklearn', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
