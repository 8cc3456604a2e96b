import csv
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import copyfile
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from steelsight import imaging
from steelsight.bundle import (
    CARD,
    DECISION,
    DEFAULT_BUNDLE,
    PARITY,
    Bundle,
    ClassEntry,
    Precision,
    load_bundle,
)
from steelsight.defects import Inspection, Verdict
from steelsight.engine.cascade import Inspector
from steelsight.errors import BundleError, GateError, InputError
from steelsight.masks import decode_rle, encode_rle
from steelsight.models.res_unet import ResUNet
from steelsight.training import export
from steelsight.training.export import (
    LOGITS,
    MASKS,
    PROBABILITIES,
    ExportConfig,
    Tolerances,
    choose_frames,
    cut,
    export_bundle,
    export_onnx,
    load_network,
    quantise,
)

# torch.onnx 2.x uses a class of torch.utils that torch.utils itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")

Grey = NDArray[np.uint8]
Mask = NDArray[np.bool_]
CROP = 256
TYPES = "1234"
FEATURES = ("c2", "c3", "c4", "c5")
"""What the shared form with masks at a quarter of the frame hands over."""
CLASSES = tuple(ClassEntry(id=i, name=f"Type {i}", colour=f"#{i}00000") for i in TYPES)


def dice(a: Mask, b: Mask) -> float:
    both = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / both if both else 1.0


def masks_of(found: Inspection) -> dict[str, Mask]:
    assert found.size_wh is not None
    masks = {i: np.zeros(found.size_wh[::-1], bool) for i in TYPES}
    for defect in found.defects:
        masks[defect.class_id] |= decode_rle(defect.rle, found.size_wh)
    return masks


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def images(shared_dir: Path) -> Path:
    return shared_dir / "data/severstal/images"


@pytest.fixture(scope="module")
def weights(shared_dir: Path) -> Path:
    return shared_dir / "weights/resunet50_severstal.safetensors"


@pytest.fixture(scope="module")
def truth(shared_dir: Path) -> dict[str, dict[str, str]]:
    """Labels by file name and type."""
    labels: dict[str, dict[str, str]] = {}
    with (shared_dir / "data/severstal/train.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            labels.setdefault(row["ImageId"], {})[row["ClassId"]] = row["EncodedPixels"]
    return labels


@pytest.fixture(scope="module")
def expected(shared_dir: Path) -> dict[str, dict[str, str]]:
    """What the trained network says in fp32, as its trainer recorded it for each frame."""
    with (shared_dir / "weights/expected_outputs.csv").open(newline="") as file:
        return {row["ImageId"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def network(weights: Path) -> ResUNet:
    loaded = load_network(weights, 4)
    assert isinstance(loaded, ResUNet)
    return loaded


@pytest.fixture(scope="module")
def whole(network: ResUNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained network as one ONNX file; takes half a minute."""
    path = tmp_path_factory.mktemp("whole") / "whole.onnx"
    export_onnx(network, path)
    return path


@pytest.fixture(scope="module")
def crops(
    images: Path, truth: Mapping[str, Mapping[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Path]]:
    """Squares of real frames as PNG: around labelled defects, two of each type, and clean ones."""
    folder = tmp_path_factory.mktemp("crops")
    chosen: dict[str, list[Path]] = {"calibration": [], "parity": []}
    for class_id in TYPES:
        names = sorted(name for name, labels in truth.items() if list(labels) == [class_id])
        for use, name in zip(("calibration", "parity", "parity"), names[::2], strict=False):
            mask = decode_rle(truth[name][class_id], (1600, 256))
            columns = np.convolve(mask.sum(0), np.ones(CROP), "valid")
            chosen[use].append(crop(images / name, folder, int(columns.argmax())))
    clean = sorted(path.name for path in images.iterdir() if path.name not in truth)
    chosen["calibration"].append(crop(images / clean[0], folder, 0))
    chosen["parity"] += [crop(images / name, folder, 640) for name in clean[1:3]]
    return chosen


def crop(frame: Path, folder: Path, x: int) -> Path:
    path = folder / f"{frame.stem}_{x}.png"
    assert cv2.imwrite(str(path), read(frame)[:, x : x + CROP])
    return path


def crop_truth(path: Path, truth: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    stem, x = path.stem.split("_")
    masks = {i: decode_rle(rle, (1600, 256)) for i, rle in truth.get(f"{stem}.jpg", {}).items()}
    return {i: encode_rle(mask[:, int(x) : int(x) + CROP]) for i, mask in masks.items()}


def read(path: Path) -> Grey:
    """By OpenCV, not by our own decoder."""
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert grey is not None
    return np.asarray(grey, np.uint8)


@torch.inference_mode()
def by_torch(network: ResUNet, grey_hw: Grey) -> dict[str, NDArray[np.float32]]:
    """All outputs by the formulas of the model's description, without the code under test."""
    x = (torch.from_numpy(grey_hw)[None, None] / 255 - 0.449) / 0.226
    c = network.encoder(x)
    logits = network(x)
    average, peak = logits.average, logits.soft_maximum
    outputs = {
        "faulty_probability": ((average[:, 0] + peak[:, 0]) / 2).sigmoid(),
        "class_probabilities": (average[:, 1:].sigmoid() + peak[:, 1:].sigmoid()) / 2,
        **dict(zip(FEATURES, c[1:], strict=True)),
        **dict(zip((*LOGITS, MASKS), logits, strict=True)),
    }
    return {name: value.numpy() for name, value in outputs.items()}


def by_onnx(path: Path, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


# Export to ONNX ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "columns"), [("000a4bcdd.jpg", slice(None)), ("00af2671f.jpg", slice(600, 1400))]
)
def test_the_exported_network_is_the_trained_one_at_any_width(
    network: ResUNet, whole: Path, images: Path, name: str, columns: slice
) -> None:
    grey_hw = np.ascontiguousarray(read(images / name)[:, columns])
    want, got = by_torch(network, grey_hw), by_onnx(whole, {"frames": grey_hw[None, None]})
    assert got.keys() == {*PROBABILITIES, MASKS, *FEATURES, *LOGITS}
    for output in (*LOGITS, MASKS):
        largest = np.abs(want[output]).max()
        np.testing.assert_allclose(got[output], want[output], rtol=0, atol=1e-4 * largest)
    for output in PROBABILITIES:
        np.testing.assert_allclose(got[output], want[output], atol=1e-4)
    assert want[MASKS].max() > 0


def test_the_exported_network_takes_batches(whole: Path, crops: dict[str, list[Path]]) -> None:
    frames = np.stack([read(path)[None, :64, :96] for path in crops["parity"][:3]])
    together = by_onnx(whole, {"frames": frames})
    for i, frame in enumerate(frames):
        alone = by_onnx(whole, {"frames": frame[None]})
        for output in (*LOGITS, *PROBABILITIES):
            np.testing.assert_allclose(together[output][i], alone[output][0], rtol=1e-4, atol=1e-4)


def test_the_exported_file_is_valid_onnx(whole: Path) -> None:
    onnx.checker.check_model(str(whole))


def test_gate_and_segmenter_say_what_the_whole_network_says(
    whole: Path, crops: dict[str, list[Path]], tmp_path: Path
) -> None:
    gate, segmenter = tmp_path / "gate.onnx", tmp_path / "segmenter.onnx"
    cut(whole, gate, segmenter)
    frames = read(crops["parity"][0])[None, None]
    want = by_onnx(whole, {"frames": frames})
    gated = by_onnx(gate, {"frames": frames})
    assert gated.keys() == {*PROBABILITIES, *FEATURES}
    masks = by_onnx(segmenter, {name: gated[name] for name in FEATURES})
    assert masks.keys() == {MASKS}
    for name in PROBABILITIES:
        np.testing.assert_allclose(gated[name], want[name], rtol=1e-6)
    np.testing.assert_allclose(masks[MASKS], want[MASKS], rtol=1e-5, atol=1e-5)
    # Together they hold the parameters once.
    sizes = [path.stat().st_size for path in (whole, gate, segmenter)]
    assert sum(sizes[1:]) == pytest.approx(sizes[0], rel=0.01)


# int8 --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def int8_whole(
    whole: Path, crops: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    frames = (read(path)[None, None] for path in crops["calibration"])
    return quantise(whole, tmp_path_factory.mktemp("int8"), frames)


@pytest.fixture
def exported_before(monkeypatch: pytest.MonkeyPatch, whole: Path, int8_whole: Path) -> None:
    """``export_bundle`` takes the files of this module instead of making them again."""
    monkeypatch.setattr(export, "export_onnx", lambda _network, path: copyfile(whole, path))
    monkeypatch.setattr(export, "quantise", lambda *_: int8_whole)
    monkeypatch.setattr(export, "sensitive_blocks", lambda *_: ["encoder.layer4.0"])


def config_of(weights: Path, crops: Mapping[str, list[Path]], **changes: Any) -> ExportConfig:
    return ExportConfig(
        **{
            "weights": weights,
            "calibration": crops["calibration"],
            "parity": crops["parity"],
            "decision": DEFAULT_BUNDLE / DECISION,
            "card": DEFAULT_BUNDLE / CARD,
            "self_test": crops["parity"][0],
            "classes": CLASSES,
            "name": "small",
            "training": ("a test", "none"),
        }
        | changes
    )


@pytest.fixture
def config(weights: Path, crops: dict[str, list[Path]]) -> ExportConfig:
    return config_of(weights, crops)


@pytest.fixture(scope="module")
def int8_bundle(
    weights: Path,
    crops: dict[str, list[Path]],
    truth: dict[str, dict[str, str]],
    whole: Path,
    int8_whole: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    """A bundle calibrated on five crops only, so its bounds are wider than the shipped one's."""
    labels = {path: crop_truth(path, truth) for path in crops["parity"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export_onnx", lambda _network, path: copyfile(whole, path))
        patch.setattr(export, "quantise", lambda *_: int8_whole)
        return export_bundle(
            config_of(weights, crops, truth=labels),
            tmp_path_factory.mktemp("bundle"),
            Tolerances(int8_verdict_flips=0.1, int8_dice_drop=0.05),
        )


def test_features_are_handed_over_as_uint8(
    int8_bundle: Bundle, crops: dict[str, list[Path]]
) -> None:
    gated = by_onnx(int8_bundle.gate_path, {"frames": read(crops["parity"][0])[None, None]})
    assert {gated[name].dtype for name in FEATURES} == {np.dtype(np.uint8)}
    assert {gated[name].dtype for name in PROBABILITIES} == {np.dtype(np.float32)}
    segmenter = onnx.load(int8_bundle.segmenter_path).graph
    assert {i.name: i.type.tensor_type.elem_type for i in segmenter.input} == dict.fromkeys(
        FEATURES, onnx.TensorProto.UINT8
    )


def test_an_int8_bundle_is_small(int8_bundle: Bundle, whole: Path) -> None:
    size = sum(path.stat().st_size for path in int8_bundle.folder.iterdir())
    assert size < 45e6
    assert size < whole.stat().st_size / 3


def test_weights_have_7_bits_and_the_heads_stay_fp32(int8_bundle: Bundle) -> None:
    """8-bit weights overflow 16-bit sums on CPUs without VNNI."""
    weights: dict[str, NDArray[Any]] = {}
    for path in (int8_bundle.gate_path, int8_bundle.segmenter_path):
        for tensor in onnx.load(path).graph.initializer:
            weights[tensor.name] = onnx.numpy_helper.to_array(tensor)
    quantised = [w for w in weights.values() if w.dtype == np.int8 and w.ndim == 4]
    assert len(quantised) == 53 + 9  # convolutions of a ResNet50 and of the decoder's split blocks
    assert max(int(np.abs(w.astype(int)).max()) for w in quantised) <= 64
    heads = [w for w in weights.values() if w.dtype == np.float32 and w.size >= 4 * 64 * 9]
    assert sorted(w.size for w in heads) == [4 * 64 * 9, 5 * 2048, 5 * 2048]


def test_int8_masks_agree_with_the_trained_network(
    int8_bundle: Bundle, network: ResUNet, crops: dict[str, list[Path]]
) -> None:
    """Masks above the pixel thresholds, on crops that did not set the ranges."""
    rules = int8_bundle.decision.types.values()
    agreement = []
    for path in crops["parity"]:
        frames = read(path)[None, None]
        gated = by_onnx(int8_bundle.gate_path, {"frames": frames})
        features = {name: gated[name] for name in FEATURES}
        got, want = (
            imaging.mask_probabilities(logits_chw, (CROP, CROP))
            for logits_chw in (
                by_onnx(int8_bundle.segmenter_path, features)[MASKS][0],
                by_torch(network, frames[0, 0])[MASKS][0],
            )
        )
        for rule, mine, theirs in zip(rules, got, want, strict=True):
            if (theirs >= rule.pixel_from).sum() > 500:
                agreement.append(dice(mine >= rule.pixel_from, theirs >= rule.pixel_from))
    assert len(agreement) >= 6
    assert np.mean(agreement) > 0.95


def test_a_bundle_records_how_it_was_proved(
    int8_bundle: Bundle, config: ExportConfig, truth: dict[str, dict[str, str]]
) -> None:
    parity = int8_bundle.parity
    assert parity == json.loads((int8_bundle.folder / PARITY).read_text())
    assert parity["passed"] is True
    assert parity["frames"] == len(config.parity) == 10
    assert parity["calibration_frames"] == [path.name for path in config.calibration]
    assert parity["parity_frames"] == [path.name for path in config.parity]
    assert parity["fp32_onnx_largest_relative_logit_error"] < 1e-4
    assert parity["tolerances"]["int8_dice_drop"] == 0.05
    manifest = int8_bundle.manifest
    assert manifest.training.weights_sha256 == sha256(config.weights)
    assert manifest.self_test.sha256 == sha256(config.self_test)
    assert (manifest.precision, manifest.classes) == (Precision.INT8, CLASSES)

    # The Dice against labels, once more: per type, over the crops that hold it.
    inspector = Inspector.load(int8_bundle.folder)
    scores: dict[str, list[float]] = {}
    for path in config.parity:
        found = masks_of(inspector.inspect(path))
        for class_id, rle in crop_truth(path, truth).items():
            scores.setdefault(class_id, []).append(
                dice(found[class_id], decode_rle(rle, (CROP, CROP)))
            )
    recorded = parity["dice_against_labels"]
    assert {i: r["frames"] for i, r in recorded.items()} == {i: len(s) for i, s in scores.items()}
    assert {i: r["bundle"] for i, r in recorded.items()} == pytest.approx(
        {i: float(np.mean(s)) for i, s in scores.items()}, abs=1e-3
    )


def test_progress_is_told_step_by_step(
    exported_before: None, config: ExportConfig, tmp_path: Path, crops: dict[str, list[Path]]
) -> None:
    told: list[tuple[str, int, int]] = []
    small = config_of(config.weights, {**crops, "parity": crops["parity"][:2]})
    export_bundle(small, tmp_path / "new", Tolerances(1, 1, 1), lambda *step: told.append(step))
    assert told == [("export", 0, 1), ("quantise", 0, 1), ("parity", 0, 2), ("parity", 1, 2)]


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "tolerances", "message"),
    [
        (Precision.FP32, Tolerances(fp32_relative_logits=0), "fp32 logits differ by"),
        (Precision.FP32, Tolerances(fp32_relative_logits=math.nan), "fp32 logits differ by"),
        (Precision.INT8, Tolerances(int8_verdict_flips=-0.5), "0 of 1 verdicts flip, at most -50%"),
        (Precision.INT8, Tolerances(int8_dice_drop=-1), "Dice drops by .*, at most -1"),
    ],
)
def test_a_bundle_outside_the_tolerances_is_refused_and_does_not_load(
    exported_before: None,
    weights: Path,
    crops: dict[str, list[Path]],
    tmp_path: Path,
    precision: Precision,
    tolerances: Tolerances,
    message: str,
) -> None:
    config = config_of(weights, {**crops, "parity": crops["parity"][:1]}, precision=precision)
    with pytest.raises(GateError, match=message) as refusal:
        export_bundle(config, tmp_path / "refused", tolerances)
    assert "\n" not in str(refusal.value)
    parity = json.loads((tmp_path / "refused" / PARITY).read_text())
    assert parity["passed"] is False
    assert parity["parity_frames"] == [config.parity[0].name]
    with pytest.raises(BundleError, match="parity check against the trained network failed"):
        load_bundle(tmp_path / "refused")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parity": []}, "expected parity frames, got none"),
        ({"calibration": []}, "expected calibration frames for int8, got none"),
        ({"parity": [Path("a/1.jpg"), Path("b/2.jpg")]}, "2.jpg is in calibration and parity"),
        ({"card": Path("no-card.md")}, "no-card.md is not there"),
    ],
)
def test_what_cannot_make_a_bundle_is_refused_at_once(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    frames = {"calibration": [Path("b/2.jpg"), Path("b/3.jpg")], "parity": [Path("a/1.jpg")]}
    config = config_of(tmp_path / "weights", frames, **changes)
    with pytest.raises(InputError, match=message):
        export_bundle(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_holds_files_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    frames = {"calibration": [Path("1.jpg")], "parity": [Path("2.jpg")]}
    with pytest.raises(InputError, match="expected an empty folder"):
        export_bundle(config_of(tmp_path / "weights", frames), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_frame_that_both_networks_refuse_proves_nothing(
    exported_before: None, weights: Path, crops: dict[str, list[Path]], tmp_path: Path
) -> None:
    blank = tmp_path / "blank.png"
    cv2.imwrite(str(blank), np.full((CROP, CROP), 90, np.uint8))
    wide = Tolerances(1, 0.2, 1)
    one = crops["parity"][0]
    with pytest.raises(GateError, match=r"no answer on 1 frames: blank\.png: blank"):
        export_bundle(config_of(weights, {**crops, "parity": [blank]}), tmp_path / "a", wide)
    made = export_bundle(
        config_of(weights, {**crops, "parity": [one, blank]}), tmp_path / "b", wide
    )
    assert made.parity["unanswered"] == {"blank.png": "blank"}


# Trained weights ---------------------------------------------------------------------------------


def test_weights_are_loaded_as_they_are_into_fp32(network: ResUNet, weights: Path) -> None:
    stored = load_file(weights)
    loaded = network.state_dict()
    assert torch.float16 in {value.dtype for value in stored.values()}
    assert {v.dtype for v in loaded.values() if v.is_floating_point()} == {torch.float32}
    assert all(torch.equal(loaded[name], value.float()) for name, value in stored.items())
    assert not network.training


@pytest.mark.parametrize("what", ["missing", "a folder", "empty", "text", "cut"])
def test_what_is_no_safetensors_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "net.safetensors"
    if what == "a folder":
        path.mkdir()
    elif what != "missing":
        save_file({"a": torch.zeros(64)}, path)
        content = {"empty": b"", "text": b"hello, world", "cut": path.read_bytes()[:-8]}[what]
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"expected safetensors at {path}, got: ") as refusal:
        load_network(path, 4)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("types", [1, 3, 5])
def test_another_number_of_types_than_trained_is_refused(weights: Path, types: int) -> None:
    with pytest.raises(InputError, match=f"Res-UNet with {types} types") as refusal:
        load_network(weights, types)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": torch.zeros(1)}, "1 unexpected"),
        ({}, "0 unexpected"),
        ({"encoder.conv1.weight": torch.zeros(64, 1, 7, 7)}, "missing"),
        ({"encoder.conv1.weight": torch.zeros(64, 3, 7, 7)}, "Res-UNet with 4 types"),
    ],
)
def test_weights_of_another_network_are_refused(
    tmp_path: Path, state: dict[str, torch.Tensor], message: str
) -> None:
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match=message) as refusal:
        load_network(tmp_path / "net.safetensors", 4)
    assert "\n" not in str(refusal.value)


# Choosing frames ---------------------------------------------------------------------------------

MakeFrames = Callable[[int, int], tuple[Path, set[str]]]


@pytest.fixture
def make_frames(tmp_path: Path) -> MakeFrames:
    def make(faulty: int, clean: int) -> tuple[Path, set[str]]:
        bad = {f"bad{i:02}.jpg" for i in range(faulty)}
        for name in (*bad, *(f"ok{i:02}.PNG" for i in range(clean)), "notes.txt"):
            (tmp_path / name).touch()
        return tmp_path, bad

    return make


@pytest.mark.parametrize(
    ("faulty", "clean", "calibration", "parity", "bad_in_each"),
    [
        (20, 20, 8, 10, (4, 5)),
        (20, 20, 7, 9, (3, 4)),
        (20, 20, 20, 20, (10, 10)),
        (3, 20, 8, 10, (3, 0)),  # too few faulty ones: clean ones instead
        (0, 20, 8, 10, (0, 0)),
        (20, 2, 8, 10, (6, 10)),  # too few clean ones
        (18, 0, 8, 10, (8, 10)),
        (20, 20, 0, 10, (0, 5)),
    ],
)
def test_frames_are_drawn_half_faulty_and_never_twice(
    make_frames: MakeFrames,
    faulty: int,
    clean: int,
    calibration: int,
    parity: int,
    bad_in_each: tuple[int, int],
) -> None:
    folder, bad = make_frames(faulty, clean)
    chosen = choose_frames(folder, bad, calibration, parity)
    assert [len(paths) for paths in chosen] == [calibration, parity]
    assert len({*chosen[0], *chosen[1]}) == calibration + parity
    assert tuple(sum(path.name in bad for path in paths) for paths in chosen) == bad_in_each
    assert all(
        path.parent == folder and path.suffix != ".txt" for paths in chosen for path in paths
    )


def test_the_seed_decides_the_choice(make_frames: MakeFrames) -> None:
    folder, bad = make_frames(20, 20)
    first = choose_frames(folder, bad, 6, 6, seed=1)
    assert choose_frames(folder, bad, 6, 6, seed=1) == first
    assert choose_frames(folder, bad, 6, 6, seed=2) != first
    assert choose_frames(folder, bad, 6, 6) != first


def test_every_frame_can_be_drawn(make_frames: MakeFrames) -> None:
    folder, bad = make_frames(4, 4)
    drawn = {path for seed in range(40) for path in choose_frames(folder, bad, 2, 2, seed)[0]}
    assert len(drawn) == 8


def test_too_few_frames_are_refused(make_frames: MakeFrames) -> None:
    folder, bad = make_frames(5, 6)
    with pytest.raises(InputError, match=r"expected 6 \+ 6 frames in .*, found 11"):
        choose_frames(folder, bad, 6, 6)


# The bundle that ships ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle()


def expected_verdict(row: Mapping[str, str]) -> Verdict:
    """From recorded logits and masks, by the documented operating point (2 % and 5 %)."""
    faulty = float(row["faulty_logit"])
    if faulty < -1.723:
        return Verdict.OK
    found = any(int(row[f"pixels_{i}"]) for i in TYPES)
    return Verdict.NG if found or faulty >= -0.327 else Verdict.OK


@pytest.fixture(scope="module")
def sample(
    shipped: Bundle, truth: dict[str, dict[str, str]], expected: dict[str, dict[str, str]]
) -> list[str]:
    """Ten real frames that did not set the ranges: two of each type, two clean."""
    calibrated = set(shipped.parity["calibration_frames"])
    names: list[str] = []
    for i in TYPES:
        names += [n for n in sorted(truth) if i in truth[n] and n not in {*calibrated, *names}][-2:]
    clean = [n for n, row in expected.items() if row["status"] == "clean" and n not in calibrated]
    return [*names, *clean[:2]]


def test_the_shipped_bundle_says_what_the_trained_network_says(
    shipped: Bundle,
    images: Path,
    sample: list[str],
    truth: dict[str, dict[str, str]],
    expected: dict[str, dict[str, str]],
) -> None:
    inspector = Inspector.load(shipped.folder)
    flips, scores, logit_errors = [], [], []
    for name in sample:
        found, row = inspector.inspect(images / name), expected[name]
        if found.verdict is not expected_verdict(row):
            flips.append(name)
        assert found.faulty_probability is not None
        if 0.001 < found.faulty_probability < 0.999:
            logit = math.log(found.faulty_probability / (1 - found.faulty_probability))
            logit_errors.append(abs(logit - float(row["faulty_logit"])))
        masks = masks_of(found)
        scores += [
            (dice(masks[i], decode_rle(rle, (1600, 256))), float(row[f"dice_{i}"]))
            for i, rle in truth.get(name, {}).items()
        ]
    assert len(flips) <= 1, flips
    assert len(scores) >= 8
    ours, trained = np.mean(scores, axis=0)
    assert abs(ours - trained) <= 0.02
    assert trained > 0.75  # the frames are frames of its training
    assert all(error < 1 for error in logit_errors)


def test_the_shipped_parity_report_is_consistent(shipped: Bundle, weights: Path) -> None:
    parity, limits = shipped.parity, Tolerances()
    assert parity["passed"] is True
    assert parity["tolerances"] == vars(limits)
    assert parity["precision"] == shipped.manifest.precision == "int8"
    assert parity["reduce_range"] is True
    assert parity["fp32_onnx_largest_relative_logit_error"] <= limits.fp32_relative_logits
    assert parity["frames"] == len(parity["parity_frames"]) >= 100
    assert len(parity["verdict_flips"]) <= limits.int8_verdict_flips * parity["frames"]
    assert set(parity["verdict_flips"]) <= set(parity["parity_frames"])
    drops = [t["trained"] - t["bundle"] for t in parity["dice_against_labels"].values()]
    assert len(drops) == 4
    assert np.mean(drops) <= limits.int8_dice_drop
    assert parity["mask_agreement_dice"] > 0.9
    assert 0 <= parity["faulty_probability_error_mean"] <= parity["faulty_probability_error_max"]
    assert shipped.manifest.training.weights_sha256 == sha256(weights)


def test_calibration_and_parity_of_the_shipped_bundle_share_no_frame(shipped: Bundle) -> None:
    calibration, parity = (shipped.parity[f"{use}_frames"] for use in ("calibration", "parity"))
    assert len(set(calibration)) == len(calibration) == 32
    assert len(set(parity)) == len(parity)
    assert not set(calibration) & set(parity)


def test_the_shipped_parity_report_agrees_with_the_trainers_own_figures(
    shipped: Bundle, truth: dict[str, dict[str, str]], expected: dict[str, dict[str, str]]
) -> None:
    """The trained network's Dice on the parity frames, from what its trainer recorded."""
    for class_id, recorded in shipped.parity["dice_against_labels"].items():
        names = [n for n in shipped.parity["parity_frames"] if class_id in truth.get(n, {})]
        assert recorded["frames"] == len(names)
        mean = np.mean([float(expected[name][f"dice_{class_id}"]) for name in names])
        # Cleared frames have no masks in the cascade, the trainer's figures do.
        assert recorded["trained"] == pytest.approx(mean, abs=0.01)


# The real thing, end to end ----------------------------------------------------------------------


@pytest.mark.soak
def test_a_bundle_made_from_real_frames_loads_and_answers(
    weights: Path, images: Path, truth: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    calibration, parity = choose_frames(images, set(truth), 8, 16, seed=5)
    labels = {path: truth.get(path.name, {}) for path in parity}
    config = config_of(weights, {"calibration": calibration, "parity": parity}, truth=labels)
    bundle = export_bundle(config, tmp_path / "new")
    assert bundle.parity["passed"] is True
    found = Inspector.load(bundle.folder).inspect(bundle.self_test_path)
    assert found.to_json()["defects"] == bundle.parity["self_test"]["defects"]
