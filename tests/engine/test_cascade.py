"""The way of one frame, end to end, with networks whose answer is known to the last pixel."""

import ast
import hashlib
import io
import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import steelsight
from steelsight.bundle import SegmenterInput
from steelsight.data.synthetic import CoilConfig, draw_frame, encode_jpeg
from steelsight.defects import Reason, Verdict
from steelsight.engine import Inspector
from steelsight.engine.cascade import DECODE_AHEAD, tiles_of
from steelsight.errors import BundleError
from steelsight.imaging import DecodePolicy
from steelsight.masks import decode_rle

PACKAGE = Path(steelsight.__file__).parent


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def put(frame: np.ndarray, box_xywh, mark) -> np.ndarray:
    x, y, w, h = box_xywh
    frame[y : y + h, x : x + w] = mark
    return frame


def masks_of(inspection) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for defect in inspection.defects:
        mask = decode_rle(defect.rle, inspection.size_wh)
        assert mask.sum() == defect.area_px
        empty = np.zeros(inspection.size_wh[::-1], np.bool_)
        assert not (found.get(defect.class_id, empty) & mask).any()
        found[defect.class_id] = found.get(defect.class_id, empty) | mask
    return found


def essence(inspection) -> dict:
    """What must not depend on how the pixels came in."""
    told = inspection.to_json()
    for key in ("image", "sha256", "milliseconds", "notes"):
        del told[key]
    return told


# ------------------------------------------------------------------------------ ways in, and names


def test_array_bytes_and_path_give_the_same_answer(bench, plate, level, tmp_path):
    frame = put(plate(256, 320), (100, 20, 30, 40), level.TYPE_3)
    path = tmp_path / "frame.png"
    path.write_bytes(png(frame))
    inspector = bench().inspector
    results = [inspector.inspect(image) for image in (frame, png(frame), path, str(path))]
    assert [r.image for r in results] == ["array", "bytes", str(path), str(path)]
    assert all(essence(r) == essence(results[0]) for r in results)
    assert results[0].verdict is Verdict.NG
    assert [d.bbox_xywh for d in results[0].defects] == [(100, 20, 30, 40)]
    of_bytes = hashlib.sha256(png(frame)).hexdigest()
    assert [r.sha256 for r in results] == [hashlib.sha256(frame.tobytes()).hexdigest()] + [
        of_bytes
    ] * 3


def test_a_name_given_is_the_name_in_the_result(bench, plate):
    inspector = bench().inspector
    assert inspector.inspect(plate(64, 64), "line 1/a.png").image == "line 1/a.png"
    assert inspector.inspect(png(plate(64, 64)), "b.png").image == "b.png"
    assert inspector.inspect(b"", "c.jpg").image == "c.jpg"


def test_a_name_may_contradict_the_content(bench, plate):
    result = bench().inspector.inspect(png(plate(64, 64)), "frame.jpg")
    assert (result.verdict, result.reason) == (Verdict.UNKNOWN, Reason.WRONG_EXTENSION)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.EMPTY),
        (b"no image at all", Reason.NOT_AN_IMAGE),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", Reason.TRUNCATED),
        (b"GIF89a and more", Reason.UNSUPPORTED_FORMAT),
    ],
)
def test_damaged_bytes_keep_their_hash(bench, data, reason, tmp_path):
    """Whoever fetches the file again must be able to find which one it was."""
    made = bench()
    path = tmp_path / "damaged"
    path.write_bytes(data)
    for image in (data, path):
        result = made.inspector.inspect(image)
        assert (result.verdict, result.reason) == (Verdict.UNKNOWN, reason)
        assert result.sha256 == hashlib.sha256(data).hexdigest()
        assert result.detail
        assert "\n" not in result.detail
        assert result.faulty_probability is None
        assert result.defects == ()
        assert result.size_wh is None
        assert set(result.milliseconds) == {"decode"}
    assert made.gate.calls == made.segmenter.calls == 0


def test_what_was_never_read_has_no_hash(bench, tmp_path):
    inspector = bench().inspector
    missing = inspector.inspect(tmp_path / "missing.jpg")
    assert (missing.reason, missing.sha256) == (Reason.UNREADABLE, None)
    folder = inspector.inspect(tmp_path)
    assert (folder.reason, folder.sha256) == (Reason.NOT_A_FILE, None)


def test_the_pixels_handed_over_stay_as_they_were(bench, plate, level):
    frame = put(plate(257, 333), (300, 200, 33, 57), level.TYPE_1)
    before = frame.copy()
    bench().inspector.inspect(frame)
    assert np.array_equal(frame, before)


# ---------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("mark", "verdict", "reason", "segmenter_calls"),
    [
        (None, Verdict.OK, None, 0),
        ("DOUBTFUL", Verdict.OK, None, 1),
        ("TYPE_2", Verdict.NG, None, 1),
        ("FAULTY_ONLY", Verdict.NG, Reason.NOT_LOCALISED, 1),
        ("GATE_NAN", Verdict.UNKNOWN, Reason.NOT_FINITE, 1),
        ("HEAD_NAN", Verdict.UNKNOWN, Reason.NOT_FINITE, 0),
        ("SEGMENTER_NAN", Verdict.UNKNOWN, Reason.NOT_FINITE, 1),
        ("GATE_FAILS", Verdict.UNKNOWN, Reason.ENGINE_FAILED, 0),
        ("SEGMENTER_FAILS", Verdict.UNKNOWN, Reason.ENGINE_FAILED, 1),
    ],
)
@pytest.mark.parametrize("size_hw", [(256, 1600), (512, 3200)])
def test_every_way_to_a_verdict(
    bench, plate, level, mark, verdict, reason, segmenter_calls, size_hw
):
    """One marked pixel decides, be it in the only tile or in the last of six."""
    frame = plate(*size_hw)
    if mark:
        put(frame, (size_hw[1] - 30, size_hw[0] - 30, 20, 20), level[mark])
    made = bench()
    result = made.inspector.inspect(frame)
    assert (result.verdict, result.reason) == (verdict, reason)
    assert made.segmenter.calls == segmenter_calls
    assert bool(result.defects) == (mark == "TYPE_2")
    assert (result.verdict is Verdict.UNKNOWN) == (result.class_probabilities == {})
    line = json.loads(result.to_json_line(), parse_constant=pytest.fail)
    assert line["size_wh"] == [size_hw[1], size_hw[0]]
    assert line["detail"] is None or "\n" not in line["detail"]
    assert (line["detail"] is None) == (reason is None)


def test_a_cleared_frame_reports_its_scores_and_what_decided(bench, plate):
    result = bench().inspector.inspect(plate(256, 1600))
    assert result.verdict is Verdict.OK
    assert result.faulty_probability == pytest.approx(0.02)
    # The peak counts as 0 where stage 1 cleared the frame.
    assert dict(result.class_probabilities) == pytest.approx(dict.fromkeys("1234", 0.02 / 3))
    assert (result.model, result.decision, result.engine) == (
        "fake@bbbbbbbb",
        "dddddddd",
        "fake-fp32",
    )
    assert set(result.milliseconds) == {"decode", "gate", "segment", "decide"}


def test_a_frame_is_marked_in_the_type_that_is_on_it(bench, plate, level):
    frame = put(plate(256, 640), (10, 16, 64, 32), level.TYPE_4)
    put(frame, (320, 64, 16, 16), level.TYPE_1)
    result = bench().inspector.inspect(frame)
    assert [(d.class_id, d.bbox_xywh, d.area_px) for d in result.defects] == [
        ("4", (10, 16, 64, 32), 2048),
        ("1", (320, 64, 16, 16), 256),
    ]
    assert result.defects[0].probability == pytest.approx(0.97)
    assert result.class_probabilities["1"] == pytest.approx((2 * 0.95 + 0.97) / 3, abs=1e-6)
    assert result.class_probabilities["2"] == pytest.approx((2 * 0.01 + 0.01) / 3, abs=1e-6)


def test_a_failure_spoils_one_frame_only(bench, plate, level):
    frames = [
        plate(96, 96),
        put(plate(96, 96), (5, 5, 3, 3), level.GATE_FAILS),
        put(plate(96, 96), (5, 5, 3, 3), level.TYPE_1),
        put(plate(96, 96), (5, 5, 3, 3), level.SEGMENTER_FAILS),
        put(plate(96, 96), (5, 5, 3, 3), level.SEGMENTER_NAN),
        plate(96, 96),
    ]
    results = list(bench().inspector.inspect_many(frames))
    assert [r.verdict.value for r in results] == ["OK", "UNKNOWN", "NG", "UNKNOWN", "UNKNOWN", "OK"]
    assert results[1].detail == "the fake gate failed"


class _Extreme:
    """A gate that answers with the given number, on the first tile only or everywhere."""

    label = "fake-fp32"

    def __init__(self, gate, *, faulty=None, head=None, only_first=False):
        self.gate, self.faulty, self.head, self.only_first = gate, faulty, head, only_first
        self.calls = 0

    def run(self, inputs):
        outputs = self.gate.run(inputs)
        self.calls += 1
        if self.only_first and self.calls > 1:
            return outputs
        if self.faulty is not None:
            outputs["faulty_probability"][:] = self.faulty
        if self.head is not None:
            outputs["class_probabilities"][:, 0] = self.head
        return outputs


@pytest.mark.parametrize(
    ("value", "only_first"),
    [
        (math.nan, False),
        (math.nan, True),
        (math.inf, False),
        (math.inf, True),
        (-math.inf, False),
        (-math.inf, True),
    ],
)
@pytest.mark.parametrize("output", ["faulty", "head"])
def test_no_infinite_score_is_ever_ok(bench, plate, output, value, only_first):
    made = bench()
    gate = _Extreme(made.gate, only_first=only_first, **{output: value})
    result = bench(gate=gate).inspector.inspect(plate(256, 3000))
    assert gate.calls > 1
    assert (result.verdict, result.reason) == (Verdict.UNKNOWN, Reason.NOT_FINITE)


# ---------------------------------------------------------------------------- what is not inspected


@pytest.mark.parametrize(
    ("size_hw", "reason"),
    [((63, 64), Reason.WRONG_SIZE), ((64, 63), Reason.WRONG_SIZE), ((64, 64), None)],
)
def test_frames_smaller_than_the_network_needs(bench, plate, size_hw, reason):
    made = bench()
    result = made.inspector.inspect(plate(*size_hw))
    assert result.reason is reason
    assert made.gate.calls == (reason is None)
    if reason:
        assert "64 x 64" in result.detail
        assert f"{size_hw[1]} x {size_hw[0]}" in result.detail


@pytest.mark.parametrize(
    ("low", "high", "blank"),
    [(0, 0, True), (255, 255, True), (127, 130, True), (120, 125, False)],
    ids=["black", "white", "flat", "little"],
)
def test_frames_that_show_nothing(bench, low, high, blank):
    """Half the pixels dark, half bright: the standard deviation is half the difference."""
    frame = np.full((256, 256), low, np.uint8)
    frame[:, ::2] = high
    made = bench()
    result = made.inspector.inspect(frame)
    assert result.reason is (Reason.BLANK if blank else None)
    assert result.verdict is (Verdict.UNKNOWN if blank else Verdict.OK)
    assert made.gate.calls == (not blank)


def test_grey_rgb_and_rgba_are_the_same_picture(bench, plate, level):
    grey = put(plate(128, 200), (150, 100, 50, 28), level.TYPE_2)
    rgb = np.repeat(grey[:, :, None], 3, axis=2)
    rgba = np.dstack([rgb, np.full(grey.shape, 255, np.uint8)])
    for grey_only in (False, True):
        inspector = bench(policy=DecodePolicy(grey_only=grey_only)).inspector
        results = [inspector.inspect(image) for image in (grey, grey[:, :, None], rgb, rgba)]
        assert [r.verdict for r in results] == [Verdict.NG] * 4
        assert all(essence(r) == essence(results[0]) for r in results)


def test_one_coloured_pixel_is_refused_in_a_grey_camera_s_frame(bench, plate):
    rgb = np.repeat(plate(128, 200)[:, :, None], 3, axis=2)
    rgb[70, 90] = (90, 60, 60)
    strict = bench(policy=DecodePolicy(grey_only=True)).inspector
    for image in (rgb, png(rgb)):
        result = strict.inspect(image)
        assert (result.verdict, result.reason) == (Verdict.UNKNOWN, Reason.COLOURED)
        assert "--allow-colour" in result.detail
    assert bench().inspector.inspect(rgb).verdict is Verdict.OK


# ---------------------------------------------------------------------------------- odd and large


@pytest.mark.parametrize(
    "size_wh",
    [(1601, 257), (333, 100), (64, 64), (65, 97), (1600, 256), (95, 640)],
    ids=str,
)
@pytest.mark.parametrize("corner", ["top left", "bottom right", "right border", "bottom border"])
def test_defects_lie_where_they_are_whatever_the_size(bench, plate, level, size_wh, corner):
    """Frames are padded by mirroring: the defect's mirror image must not come back."""
    width, height = size_wh
    box_xywh = {
        "top left": (0, 0, 17, 9),
        "bottom right": (width - 17, height - 9, 17, 9),
        "right border": (width - 5, 10, 5, 33),
        "bottom border": (10, height - 3, 41, 3),
    }[corner]
    frame = put(plate(height, width), box_xywh, level.TYPE_3)
    result = bench().inspector.inspect(frame)
    assert [d.bbox_xywh for d in result.defects] == [box_xywh]
    masks = masks_of(result)
    assert masks.keys() == {"3"}
    assert np.array_equal(masks["3"], frame == level.TYPE_3)


def starts(size: int, tile: int = 1600, overlap: int = 64) -> list[int]:
    """Where tiles begin along one side: spread evenly, as few as overlap enough."""
    if size <= tile:
        return [0]
    steps = math.ceil((size - tile) / (tile - overlap))
    return [i * (size - tile) // steps for i in range(steps + 1)]


@pytest.mark.parametrize("size_wh", [(3200, 512), (5000, 700), (1664, 256), (1600, 300)], ids=str)
def test_a_defect_across_tile_borders_is_found_whole(bench, plate, level, size_wh):
    width, height = size_wh
    columns, rows = starts(width), starts(height, 256)
    frame = plate(height, width)
    # A slanted stroke through every border between tiles, then a block around a crossing.
    for x in range(20, width - 20):
        y = 5 + (height - 20) * x // width
        frame[y : y + 9, x] = level.TYPE_1
    x, y = columns[-1], rows[-1]
    put(frame, (max(x - 40, 0), max(y - 30, 0), 150, 90), level.TYPE_4)
    result = bench().inspector.inspect(frame)
    masks = masks_of(result)
    assert masks.keys() == {"1", "4"}
    assert np.array_equal(masks["4"], frame == level.TYPE_4)
    assert np.array_equal(masks["1"], frame == level.TYPE_1)
    block = next(d for d in result.defects if d.class_id == "4")
    assert block.bbox_xywh == (max(x - 40, 0), max(y - 30, 0), 150, 90)
    assert block.probability == pytest.approx(0.97, abs=1e-5)
    assert sum(d.class_id == "4" for d in result.defects) == 1


def test_cleared_tiles_are_not_segmented_and_the_worst_tile_counts(bench, plate, level):
    frame = plate(512, 3200)
    tiles = [(x, y) for y in starts(512, 256) for x in starts(3200)]
    assert len(tiles) == 9
    large, small = (30, 10, 200, 100), (3000, 490, 10, 10)
    put(frame, large, level.TYPE_1)
    put(frame, small, level.TYPE_3)

    def share(box_xywh):
        return box_xywh[2] * box_xywh[3] / (1600 * 256)

    made = bench()
    result = made.inspector.inspect(frame)
    assert made.gate.calls == 9
    assert made.segmenter.calls == 2
    assert result.faulty_probability == pytest.approx(0.90 + 0.09 * share(large), abs=1e-6)
    assert [d.bbox_xywh for d in result.defects] == [large, small]
    assert result.class_probabilities["3"] > 0.63  # from the other tile
    clean = bench()
    assert clean.inspector.inspect(plate(512, 3200)).verdict is Verdict.OK
    assert (clean.gate.calls, clean.segmenter.calls) == (9, 0)


@pytest.mark.parametrize("overlap", [0, 7, 64])
def test_tiles_of_any_overlap_and_multiple(bench, plate, level, overlap):
    """Tiles that are no multiple of the network's step are padded and cropped, too."""
    frame = plate(150, 330)
    rng = np.random.default_rng(5)
    frame[rng.random(frame.shape) < 0.02] = level.TYPE_2
    made = bench(tile_wh=(100, 70), tile_overlap_px=overlap)
    result = made.inspector.inspect(frame)
    assert made.gate.calls > 8
    assert np.array_equal(masks_of(result)["2"], frame == level.TYPE_2)


def test_the_dark_beside_the_strip_is_not_looked_at(bench, decision, plate, level):
    dark = decision.model_copy(
        update={"input": decision.input.model_copy(update={"dark_margin_below": 25})}
    )
    frame = plate(256, 1600)
    frame[:, :500] = 3
    frame[:, 1400:] = 3
    put(frame, (700, 100, 60, 40), level.TYPE_2)
    frame[10:12, 200] = level.TYPE_3  # fewer than one in 64 pixels: noise
    made, widths = bench(), []
    run = made.gate.run

    def measured(inputs):
        widths.append(inputs["frames"].shape[3])
        return run(inputs)

    made.gate.run = measured
    made.inspector.bundle = made.inspector.bundle.model_copy(update={"decision": dark})
    result = made.inspector.inspect(frame)
    assert widths == [1408 - 480]
    assert [d.bbox_xywh for d in result.defects] == [(700, 100, 60, 40)]
    assert result.size_wh == (1600, 256)
    assert result.notes == ("dark beside columns 480 to 1407: not looked at",)
    looked = made.inspector.look(frame).probabilities_chw
    assert looked.shape == (4, 256, 1600)
    assert not looked[:, :, :480].any()
    assert not looked[:, :, 1408:].any()
    assert looked[:, :, 480:1408].all()


def test_a_frame_that_shows_hardly_any_steel_is_unknown(bench, decision, plate):
    """Half of the light may have failed: a verdict on the rest would be silently OK."""
    dark = decision.model_copy(
        update={"input": decision.input.model_copy(update={"dark_margin_below": 25})}
    )
    frame = plate(256, 1600)
    frame[:, 32:] = 3
    made = bench()
    assert made.inspector.inspect(frame).verdict is Verdict.OK
    made.inspector.bundle = made.inspector.bundle.model_copy(update={"decision": dark})
    result = made.inspector.inspect(frame)
    assert (result.verdict, result.reason) == (Verdict.UNKNOWN, Reason.WRONG_SIZE)
    assert "all but columns 0 to 31 are dark (dark_margin_below)" in result.detail


def test_one_array_is_not_several_frames(bench, plate):
    with pytest.raises(TypeError, match="expected several images, got one ndarray"):
        bench().inspector.inspect_many(plate(64, 64))


# ------------------------------------------------------------------------------------- many frames


def decoders() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("steelsight-decode")]


def test_many_frames_keep_their_order(bench, plate, level):
    frames = [put(plate(64, 64 + 8 * i), (i, 0, 5, 5), level.TYPE_1) for i in range(25)]
    frames[7] = b"damaged"
    results = list(bench().inspector.inspect_many(frames))
    assert [r.size_wh and r.size_wh[0] for r in results] == [
        None if i == 7 else 64 + 8 * i for i in range(25)
    ]
    assert not decoders()


def test_many_frames_are_taken_as_they_are_needed(bench, plate):
    """An endless camera must work, and memory must not grow."""
    taken = 0

    def camera():
        nonlocal taken
        while True:
            taken += 1
            yield plate(64, 64)

    results = bench().inspector.inspect_many(camera())
    assert taken == 0
    for seen in range(1, 12):
        next(results)
        assert seen <= taken <= seen + DECODE_AHEAD
    assert decoders()
    results.close()
    assert not decoders()


def test_no_frames_no_results(bench):
    assert list(bench().inspector.inspect_many([])) == []


def test_what_the_source_of_frames_raises_comes_through(bench, plate):
    def camera():
        yield plate(64, 64)
        raise RuntimeError("camera unplugged")

    with pytest.raises(RuntimeError, match="camera unplugged"):
        list(bench().inspector.inspect_many(camera()))
    assert not decoders()


# ---------------------------------------------------------------------------------- shipped bundle


@pytest.fixture(scope="module")
def shipped() -> Inspector:
    return Inspector.load()


@pytest.fixture(scope="module")
def faulty_frame() -> np.ndarray:
    config = CoilConfig(frames=30, seed=5, faulty_share=1.0, class_weights=(0, 0, 1, 0))
    return draw_frame(config, 3).grey_hw


def test_the_shipped_bundle_answers_alike_for_array_bytes_and_path(shipped, faulty_frame, tmp_path):
    path = tmp_path / "frame.png"
    path.write_bytes(png(faulty_frame))
    results = [shipped.inspect(image) for image in (faulty_frame, path.read_bytes(), path)]
    assert results[0].verdict is not Verdict.UNKNOWN
    assert all(essence(r) == essence(results[0]) for r in results)
    jpeg = shipped.inspect(encode_jpeg(faulty_frame))
    assert jpeg.verdict is results[0].verdict


def test_the_shipped_bundle_refuses_colour_unless_allowed(shipped, faulty_frame):
    rgb = np.repeat(faulty_frame[:, :, None], 3, axis=2)
    coloured = rgb.copy()
    coloured[..., 0] = np.minimum(coloured[..., 0].astype(int) + 20, 255)
    assert shipped.inspect(coloured).reason is Reason.COLOURED
    tolerant = Inspector.load(allow_colour=True)
    assert tolerant.inspect(coloured).verdict is not Verdict.UNKNOWN
    assert essence(tolerant.inspect(rgb)) == essence(shipped.inspect(rgb))


def test_the_shipped_networks_take_odd_sizes_and_tiles(shipped, faulty_frame):
    """A frame cut oddly is judged as the frame that its padding completes."""
    odd = shipped.inspect(faulty_frame[:250, :1590])
    assert odd.verdict is not Verdict.UNKNOWN
    assert odd.size_wh == (1590, 250)
    for defect in odd.defects:
        x, y, w, h = defect.bbox_xywh
        assert x + w <= 1590
        assert y + h <= 250
    double = shipped.inspect(np.tile(faulty_frame, (1, 2))[:, :2900])
    assert double.faulty_probability >= 0.42
    assert double.verdict is Verdict.NG


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="expected a bundle"):
        Inspector.load(tmp_path)


# -------------------------------------------------------------------------------- two networks


@pytest.mark.parametrize("size_hw", [(256, 1600), (200, 200), (96, 1000), (300, 2100)])
@pytest.mark.parametrize("multiple_of", [32, 64])
def test_a_segmenter_may_take_the_frames_themselves(bench, plate, level, size_hw, multiple_of):
    """The answer is that of the form that hands features over, which here are the frames."""
    height, width = size_hw
    frame = put(plate(*size_hw), (width - 60, 40, 60, height - 40), level.TYPE_2)
    shared = bench(multiple_of=multiple_of).inspector.inspect(frame)
    two = bench(multiple_of=multiple_of, segmenter_takes=SegmenterInput.FRAMES)
    found = two.inspector.inspect(frame)
    assert found.verdict is Verdict.NG
    assert essence(found) == essence(shared)
    assert masks_of(found)["2"].sum() == 60 * (height - 40)
    assert two.segmenter.calls >= 1


def test_a_segmenter_of_frames_is_not_asked_about_cleared_ones(bench, plate):
    two = bench(segmenter_takes=SegmenterInput.FRAMES)
    assert two.inspector.inspect(plate(256, 1600)).verdict is Verdict.OK
    assert (two.gate.calls, two.segmenter.calls) == (1, 0)


@pytest.mark.parametrize(("height", "width"), [(200, 200), (65, 64), (96, 1000), (64, 127)])
@pytest.mark.parametrize("multiple_of", [32, 64])
def test_tiles_are_padded_by_reflection(bench, plate, height, width, multiple_of):
    spec = bench(multiple_of=multiple_of).inspector.bundle.manifest.input
    frame = plate(height, width)
    (tile,) = tiles_of(frame, spec)
    below, beside = -height % multiple_of, -width % multiple_of
    assert tile.box_xywh == (0, 0, width, height)
    expected = np.pad(frame, ((0, below), (0, beside)), mode="reflect")
    assert np.array_equal(tile.frames, expected[None, None])
    assert tile.frames.flags.c_contiguous


# ------------------------------------------------------------------------------------------ layers


@pytest.mark.parametrize(
    "code",
    [
        "import steelsight.engine",
        "from steelsight.engine import Inspector; import numpy as np;"
        "Inspector.load().inspect(np.random.default_rng(0).integers(0, 255, (64, 96), np.uint8))",
        "import steelsight.cli, steelsight.demo, steelsight.report.folder, steelsight.doctor",
    ],
    ids=["import", "inspect", "command line"],
)
def test_running_never_loads_torch(code):
    check = "import sys; loaded = {'torch', 'onnx'} & set(sys.modules); assert not loaded, loaded"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{code}; {check}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


RUNNING = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] not in ("models", "training")
)


def imported(tree: ast.AST) -> set[str]:
    """Modules imported when the file is imported: not in functions, not for types alone."""
    names: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse  # the rest is for the type checker
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)
    return names


@pytest.mark.parametrize("path", RUNNING, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_runs_on_a_line_does_not_import_what_trains(path):
    foreign = ("torch", "onnx", "safetensors", "steelsight.models", "steelsight.training")
    found = imported(ast.parse(path.read_text(encoding="utf-8")))
    wrong = {name for name in found if any(f"{name}.".startswith(f"{f}.") for f in foreign)}
    assert not wrong


def test_the_layer_check_sees_imports_where_they_hide():
    hidden = "try:\n    import torch.nn\nexcept ImportError:\n    pass\ndef f():\n    import onnx\n"
    assert imported(ast.parse(hidden)) == {"torch.nn"}
    typed = "if TYPE_CHECKING:\n    import torch\nelse:\n    import onnx\n"
    assert imported(ast.parse(typed)) == {"onnx"}
    assert len(RUNNING) > 15


# --------------------------------------------------------------------------- one frame, not the run


@pytest.mark.parametrize("error", [MemoryError("no room"), ValueError("shapes"), KeyError("c5")])
def test_whatever_an_engine_raises_costs_one_frame(bench, plate, error):
    class Broken:
        label = "broken"

        def run(self, inputs):
            raise error

    result = bench(gate=Broken()).inspector.inspect(plate(256, 1600))
    assert (result.verdict, result.reason) == (Verdict.UNKNOWN, Reason.ENGINE_FAILED)
    assert type(error).__name__ in result.detail


def test_tiles_go_through_both_networks_one_after_the_other(bench, plate, level):
    made = bench()
    order = []

    class Noting:
        def __init__(self, runtime, name):
            self.label, self._runtime, self._name = runtime.label, runtime, name

        def run(self, inputs):
            order.append(self._name)
            return self._runtime.run(inputs)

    faulty = put(plate(256, 5000), (0, 10, 5000, 200), level.TYPE_3)
    noting = bench(gate=Noting(made.gate, "gate"), segmenter=Noting(made.segmenter, "segmenter"))
    assert noting.inspector.inspect(faulty).verdict is Verdict.NG
    assert order == ["gate", "segmenter"] * (len(order) // 2)
    assert len(order) > 4


def test_the_callers_policy_is_only_made_stricter(bench):
    strict, plain = DecodePolicy(grey_only=True), DecodePolicy()
    assert bench(policy=strict, allow_colour=True).inspector.policy.grey_only
    assert bench(policy=plain, allow_colour=False).inspector.policy.grey_only
    assert not bench(policy=plain, allow_colour=True).inspector.policy.grey_only


def test_frames_of_another_size_carry_a_note(bench, plate):
    inspector = bench().inspector
    assert inspector.inspect(plate(256, 1600)).notes == ()
    (note,) = inspector.inspect(plate(200, 200)).notes
    assert "1600 x 256" in note


@pytest.mark.parametrize("images", ["frame.jpg", b"bytes", Path("frame.jpg")])
def test_one_image_for_many_is_refused(bench, images):
    with pytest.raises(TypeError, match="several images"):
        bench().inspector.inspect_many(images)


@pytest.mark.parametrize("image", [None, 5, ["frame.jpg"]])
def test_what_is_no_image_at_all_is_refused(bench, image):
    with pytest.raises(TypeError, match="expected a path, bytes or an array"):
        bench().inspector.inspect(image)
