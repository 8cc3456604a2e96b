"""From trained weights to a bundle that any engine runs, with proof that it says the same.

The network is exported once as a whole and cut in two at the encoder's features: the gate (frames
in, probabilities and features out) and the segmenter (features in, mask probabilities out). Grey
normalisation, the bilinear upsampling of the mask logits and the sigmoids are inside, so that every
engine gets them right. For int8 the whole graph is quantised first (static, QDQ, per channel; Jacob
et al., arXiv 1712.05877) and cut at its quantisation nodes: the gate hands its features over as
uint8, without a copy or a conversion.
"""

import json
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from safetensors.torch import load_file
from torch import Tensor, nn

from steelsight import __version__, imaging, masks
from steelsight.bundle import (
    CARD,
    DECISION,
    NAME_PATTERN,
    PARITY,
    Bundle,
    ClassEntry,
    InputEntry,
    Manifest,
    Precision,
    TrainingEntry,
    file_entry,
    load_bundle,
    write_manifest,
)
from steelsight.decisions import Judgement, decide, is_cleared, load_decision
from steelsight.defects import Defect, Verdict
from steelsight.engine.cascade import Inspector
from steelsight.engine.runtime import load_runtime
from steelsight.errors import GateError, InputError
from steelsight.masks import decode_rle, merge_rles
from steelsight.models.res_unet import ResUNet, upsample_logits
from steelsight.models.resnet import GREY_MEAN, GREY_STD

FEATURES = ("c2", "c3", "c4", "c5")
PROBABILITIES = ("faulty_probability", "class_probabilities")
MASKS = "mask_probabilities"
LOGITS = ("average_logits", "soft_maximum_logits", "mask_logits")
SELF_TEST = "self_test"
OPSET = 20
QUANTISED = ("Conv", "Add", "Relu", "Concat", "MaxPool", "Resize")

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are."""


def no_progress(_step: str, _done: int, _total: int) -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class ExportConfig:
    """What a bundle is made from."""

    weights: Path
    """Trained ``ResUNet``, safetensors."""
    calibration: Sequence[Path]
    """Real frames, clean and faulty, that set the int8 ranges; not needed for fp32."""
    parity: Sequence[Path]
    """Real frames on which bundle and trained network are compared; none of ``calibration``."""
    decision: Path
    """Decision file to ship."""
    card: Path
    """Model card to ship."""
    self_test: Path
    """A frame that may be shipped: drawn, or the user's own."""
    classes: Sequence[ClassEntry]
    """Defect types in channel order."""
    name: str
    """The bundle's name in results."""
    training: tuple[str, str]
    """What the network learned from, and under which terms."""
    monochrome: bool = True
    """Training frames came from a grey camera: coloured pixels are refused."""
    precision: Precision = Precision.INT8
    truth: Mapping[str, Mapping[str, str]] | None = None
    """Labels of the parity frames: RLE by file name and type; adds Dice against people's masks."""
    reduce_range: bool = True
    """7-bit weights: without them, sums overflow on CPUs without VNNI, and the same bundle answers
    differently there."""


@dataclass(frozen=True)
class Tolerances:
    """A bundle outside these is refused."""

    fp32_relative_logits: float = 1e-4
    """Largest difference of any logit, relative to the largest logit of its kind on the frame."""
    int8_verdict_flips: float = 0.03
    """Share of parity frames whose verdict differs."""
    int8_dice_drop: float = 0.02
    """Loss of mean Dice against people's masks, or 1 - mean Dice against the fp32 masks."""


class _Deployed(nn.Module):
    """The network as it is shipped: uint8 frames ``(N, 1, H, W)`` to probabilities."""

    def __init__(self, network: ResUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        x = frames.float() * (1 / (255 * GREY_STD)) - GREY_MEAN / GREY_STD
        features = self.network.encoder(x)
        average, soft_maximum = self.network.classify(features.c5)
        mask_logits = self.network.segment(features)
        faulty = ((average[:, 0] + soft_maximum[:, 0]) / 2).sigmoid()
        classes = (average[:, 1:].sigmoid() + soft_maximum[:, 1:].sigmoid()) / 2
        probabilities = upsample_logits(mask_logits, self.network.mask_stride).sigmoid()
        logits = (average, soft_maximum, mask_logits)
        return faulty, classes, probabilities, *features[1:], *logits


def choose_frames(
    folder: Path, faulty: Collection[str], calibration: int, parity: int, seed: int = 0
) -> tuple[list[Path], list[Path]]:
    """Draws frames for calibration and parity at random, half of them faulty if there are enough.

    Args:
        folder: the frames, not walked.
        faulty: file names of faulty frames.
        calibration: how many set the ranges.
        parity: how many prove the result.
        seed: same seed, same choice.

    Returns:
        Two lists without a frame in common.

    Raises:
        InputError: there are not that many frames.
    """
    if not folder.is_dir():
        raise InputError(f"expected a folder of frames, {folder} is none")
    rng = np.random.default_rng(seed)
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in imaging.IMAGE_SUFFIXES)
    if len(names) < calibration + parity:
        raise InputError(
            f"expected {calibration} + {parity} frames in {folder}, found {len(names)}; "
            "lower --calibration-frames or --parity-frames"
        )
    shuffled = [names[i] for i in rng.permutation(len(names))]
    bad = [name for name in shuffled if name in faulty]
    good = [name for name in shuffled if name not in faulty]
    chosen: list[list[Path]] = []
    for wanted in (calibration, parity):
        of_bad = max(min(wanted // 2, len(bad)), wanted - len(good))
        picked = bad[:of_bad] + good[: wanted - of_bad]
        bad, good = bad[of_bad:], good[wanted - of_bad :]
        chosen.append([folder / name for name in picked])
    return chosen[0], chosen[1]


def load_network(weights: Path, types: int) -> ResUNet:
    """Loads trained weights into fp32, whatever type they are stored in.

    Raises:
        InputError: the file is missing, not safetensors, or does not fit the network.
    """
    try:
        state = load_file(weights)
    except Exception as error:  # safetensors raises its own, undocumented types
        raise InputError(f"expected safetensors at {weights}, got: {error}") from None
    network = ResUNet(types)
    try:
        missing, unexpected = network.load_state_dict(
            {name: tensor.float() for name, tensor in state.items()}, strict=False
        )
    except RuntimeError as error:  # raised for other shapes, even if not strict
        raise InputError(
            f"{weights}: expected the parameters of a Res-UNet with {types} types, got: "
            + " ".join(str(error).split())[:300]
        ) from None
    # BatchNorm's counters play no part in inference and are often not stored.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise InputError(
            f"{weights}: expected the parameters of a Res-UNet with {types} types; "
            f"{len(missing)} missing {missing[:2]}, {len(unexpected)} unexpected {unexpected[:2]}"
        )
    return network.eval()


def export_bundle(
    config: ExportConfig,
    folder: Path,
    tolerances: Tolerances | None = None,
    progress: Progress = no_progress,
) -> Bundle:
    """Makes a bundle and proves it.

    Args:
        config: what from.
        folder: where to; made if missing, must be empty.
        tolerances: how far the bundle may be from the trained network.
        progress: told about each step.

    Raises:
        InputError: the input does not fit together.
        GateError: the bundle is too far from the trained network; what was measured stays in
            ``parity.json``, and the bundle does not load.
    """
    _check(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    network = load_network(config.weights, len(config.classes))
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole.onnx"
        progress("export", 0, 1)
        export_onnx(network, whole)
        fp32_error = _largest_logit_error(network, whole, config.parity[:8])
        if config.precision is Precision.INT8:
            progress("quantise", 0, 1)
            whole = quantise(whole, Path(scratch), config.calibration, config.reduce_range)
        names = [f"{part}.{config.precision}.onnx" for part in ("gate", "segmenter")]
        gate, segmenter = (folder / name for name in names)
        cut(whole, gate, segmenter)
    for source, target in (
        (config.card, CARD),
        (config.decision, DECISION),
        (config.self_test, SELF_TEST + config.self_test.suffix),
    ):
        copyfile(source, folder / target)

    limits = tolerances or Tolerances()
    parity = _measure(config, network, folder, gate, segmenter, progress)
    parity["fp32_onnx_largest_relative_logit_error"] = fp32_error
    failures = _failures(parity, config.precision, limits)
    parity = {"passed": not failures, "tolerances": vars(limits), **parity}
    (folder / PARITY).write_text(json.dumps(parity, indent=1) + "\n", encoding="utf-8")
    write_manifest(folder, _manifest(config, folder, gate, segmenter))
    if failures:
        raise GateError(f"{folder}: bundle refused: {'; '.join(failures)}; see {PARITY}")
    return load_bundle(folder)


def _check(config: ExportConfig, folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"expected an empty folder for the bundle, {folder} holds files")
    if not config.parity:
        raise InputError("expected parity frames, got none; give a folder of real frames")
    if config.precision is Precision.INT8 and not config.calibration:
        raise InputError("expected calibration frames for int8, got none; give real frames")
    both = {path.name for path in config.calibration} & {path.name for path in config.parity}
    if both:
        raise InputError(f"{min(both)} is in calibration and parity; proof needs other frames")
    if not re.fullmatch(NAME_PATTERN, config.name):
        raise InputError(f"expected a name of letters, digits and . _ -, got {config.name!r}")
    for path in (config.card, config.decision, config.self_test):
        if not path.is_file():
            raise InputError(f"expected a file to put into the bundle, {path} is not there")


def export_onnx(network: ResUNet, path: Path) -> None:
    """Writes the whole network as one ONNX file with any N, H and W (multiples of 32)."""
    n, h, w = (torch.export.Dim(axis, min=1, max=512) for axis in "nhw")
    outputs = (*PROBABILITIES, MASKS, *FEATURES, *LOGITS)
    with warnings.catch_warnings(), _quiet("torch.onnx"):
        # torch's own, inside the exporter: nothing a caller could change.
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            _Deployed(network).eval(),
            (torch.zeros(2, 1, 64, 96, dtype=torch.uint8),),
            dynamo=True,
            input_names=["frames"],
            output_names=outputs,
            dynamic_shapes={"frames": {0: n, 2: 32 * h, 3: 32 * w}},
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - for the type checker: dynamo=True returns it
    program.save(str(path))


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Only errors of one logger: the exporter laments at length that torchvision is missing."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class _Frames(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = iter(paths)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        path = next(self._paths, None)
        return None if path is None else {"frames": _batch(path)}


def quantise(
    whole: Path, scratch: Path, calibration: Sequence[Path], reduce_range: bool = True
) -> Path:
    """Static int8: weights per channel and symmetric, activations uint8 by their extremes.

    Both heads and the mask logits stay fp32: they cost nothing and decide.

    Args:
        whole: what ``export_onnx`` wrote.
        scratch: folder for the result and what comes between.
        calibration: real frames.
        reduce_range: 7-bit weights.

    Returns:
        The quantised file.
    """
    model = onnx.load(whole)
    # Features as outputs would each get a second, needless quantisation node.
    kept = [o for o in model.graph.output if o.name in (*PROBABILITIES, MASKS)]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    prepared, quantised = scratch / "prepared.onnx", scratch / "int8.onnx"
    onnx.save(model, prepared)
    quant_pre_process(prepared, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        quantised,
        _Frames(calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        op_types_to_quantize=list(QUANTISED),
        nodes_to_exclude=_kept_fp32(onnx.load(prepared).graph),
        # Else C5 stays float: of its consumers only the upsampling is quantised.
        extra_options={"ForceQuantizeNoInputCheck": True},
    )
    return quantised


def _kept_fp32(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that stay fp32: heads, their mean, the upsampling of the mask logits."""
    heads = [
        node.name
        for node in graph.node
        if node.op_type == "Conv" and any("_head" in name for name in node.input)
    ]
    # Shortcuts end in a ReLU. Any other sum is of scores, which 255 steps would make coarse.
    before_relu = {node.input[0] for node in graph.node if node.op_type == "Relu"}
    scores = [
        node.name
        for node in graph.node
        if node.op_type == "Add" and node.output[0] not in before_relu
    ]
    resizes = [node.name for node in graph.node if node.op_type == "Resize"]
    return [*heads, *scores, resizes[-1]]


def cut(whole: Path, gate: Path, segmenter: Path) -> None:
    """Cuts the whole network at the encoder's features into the two files of a bundle.

    An int8 graph is cut behind its QuantizeLinear nodes: features then are uint8.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(whole))
    quantised = {
        node.input[0]: node.output[0]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in FEATURES
    }
    features = [quantised.get(name, name) for name in FEATURES]
    extractor = onnx.utils.Extractor(model)
    for path, inputs, outputs in (
        (gate, ["frames"], [*PROBABILITIES, *features]),
        (segmenter, features, [MASKS]),
    ):
        part = extractor.extract_model(inputs, outputs)
        _rename(part.graph, {old: new for new, old in quantised.items()})
        part.producer_name, part.producer_version = "steelsight", __version__
        onnx.checker.check_model(part)
        onnx.save(part, path)


def _rename(graph: onnx.GraphProto, new_names: Mapping[str, str]) -> None:
    # A tensor may already carry the plain name: the float features before quantisation.
    swap = dict(new_names) | {new: f"{new}_float" for new in new_names.values()}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [swap.get(name, name) for name in names]
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = swap.get(value.name, value.name)


class _Trained(NamedTuple):
    """The trained network's answer on one frame."""

    judgement: Judgement
    faulty_probability: float


def _batch(path: Path) -> NDArray[np.uint8]:
    grey_hw = imaging.read_file(path).grey_hw
    if grey_hw.shape[0] % 32 or grey_hw.shape[1] % 32:
        raise InputError(
            f"{path}: expected rows and columns in multiples of 32, got {grey_hw.shape}"
        )
    return grey_hw[None, None]


def _largest_logit_error(network: ResUNet, whole: Path, frames: Sequence[Path]) -> float:
    session = onnxruntime.InferenceSession(whole, providers=["CPUExecutionProvider"])
    deployed = _Deployed(network).eval()
    largest = 0.0
    for path in frames:
        batch = _batch(path)
        with torch.inference_mode():
            expected = deployed(torch.from_numpy(batch))[-len(LOGITS) :]
        for want, got in zip(expected, session.run(LOGITS, {"frames": batch}), strict=True):
            error = np.abs(want.numpy() - got).max() / np.abs(want.numpy()).max()
            largest = max(largest, float(error))
    return largest


def _judge_by_torch(
    network: ResUNet, frames: Sequence[Path], config: ExportConfig
) -> Iterator[_Trained]:
    decision = load_decision(config.decision, [c.id for c in config.classes])
    deployed = _Deployed(network).eval()
    for path in frames:
        with torch.inference_mode():
            outputs = deployed(torch.from_numpy(_batch(path)))
        faulty, heads, masks_chw = (output[0].numpy() for output in outputs[:3])
        seen = None if is_cleared(float(faulty), decision) else masks_chw
        yield _Trained(decide(float(faulty), heads, seen, decision), float(faulty))


def _measure(
    config: ExportConfig,
    network: ResUNet,
    folder: Path,
    gate: Path,
    segmenter: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Verdicts, masks and Dice of the bundle's files against the trained network's."""
    bundle = Bundle(
        folder=folder,
        manifest=_manifest(config, folder, gate, segmenter),
        decision=load_decision(config.decision, [c.id for c in config.classes]),
        sha256="0" * 64,
        parity={},
    )
    inspector = Inspector(
        bundle,
        load_runtime(gate, config.precision),
        load_runtime(segmenter, config.precision),
    )
    flips: list[str] = []
    agreement: list[float] = []
    dice: dict[str, list[tuple[float, float]]] = {c.id: [] for c in config.classes}
    probability_errors: list[float] = []
    answers = _judge_by_torch(network, config.parity, config)
    for done, (path, trained) in enumerate(zip(config.parity, answers, strict=True)):
        progress("parity", done, len(config.parity))
        ours = inspector.inspect(path)
        if ours.verdict != trained.judgement.verdict:
            flips.append(path.name)
        probability_errors.append(
            abs((ours.faulty_probability or 0.0) - trained.faulty_probability)
        )
        size_wh = ours.size_wh or (0, 0)
        labels = (config.truth or {}).get(path.name, {})
        for class_id in dice:
            mine = _mask(ours.defects, class_id, size_wh)
            theirs = _mask(trained.judgement.defects, class_id, size_wh)
            if mine.any() or theirs.any():
                agreement.append(masks.dice(mine, theirs))
            if class_id in labels:
                truth = decode_rle(labels[class_id], size_wh, where=path.name)
                dice[class_id].append((masks.dice(mine, truth), masks.dice(theirs, truth)))
    means = {
        class_id: {
            "frames": len(pairs),
            "bundle": round(float(np.mean(pairs, axis=0)[0]), 4),
            "trained": round(float(np.mean(pairs, axis=0)[1]), 4),
        }
        for class_id, pairs in dice.items()
        if pairs
    }
    return {
        "precision": str(config.precision),
        "reduce_range": config.reduce_range,
        "engine": f"onnxruntime {onnxruntime.__version__}",
        "frames": len(config.parity),
        "verdict_flips": flips,
        "mask_agreement_dice": round(float(np.mean(agreement)), 4) if agreement else None,
        "faulty_probability_error_mean": round(float(np.mean(probability_errors)), 5),
        "faulty_probability_error_max": round(max(probability_errors), 5),
        "dice_against_labels": means,
        "self_test": inspector.inspect(bundle.self_test_path, SELF_TEST).to_json(),
        "calibration_frames": [path.name for path in config.calibration],
        "parity_frames": [path.name for path in config.parity],
    }


def _mask(defects: Sequence[Defect], class_id: str, size_wh: tuple[int, int]) -> NDArray[np.bool_]:
    return decode_rle(merge_rles([d.rle for d in defects if d.class_id == class_id]), size_wh)


def _failures(parity: Mapping[str, Any], precision: Precision, limits: Tolerances) -> list[str]:
    found = []
    error = parity["fp32_onnx_largest_relative_logit_error"]
    if not error <= limits.fp32_relative_logits:
        found.append(
            f"fp32 logits differ by {error:.1e}, at most {limits.fp32_relative_logits:.0e}"
        )
    flips = parity["verdict_flips"]
    allowed = 0.0 if precision is Precision.FP32 else limits.int8_verdict_flips
    if len(flips) > allowed * parity["frames"]:
        found.append(
            f"{len(flips)} of {parity['frames']} verdicts flip, at most {allowed:.0%} may: "
            + ", ".join(flips[:5])
        )
    if parity["self_test"]["verdict"] == Verdict.UNKNOWN:
        found.append(f"the self-test frame is UNKNOWN: {parity['self_test']['detail']}")
    losses = [t["trained"] - t["bundle"] for t in parity["dice_against_labels"].values()]
    if parity["mask_agreement_dice"] is not None and not losses:
        losses = [1 - parity["mask_agreement_dice"]]
    if losses and not np.mean(losses) <= limits.int8_dice_drop:
        found.append(f"Dice drops by {np.mean(losses):.3f}, at most {limits.int8_dice_drop}")
    return found


def _manifest(config: ExportConfig, folder: Path, gate: Path, segmenter: Path) -> Manifest:
    parity = folder / PARITY
    parity.touch()
    data, terms = config.training
    # Results of frames of another size carry a note: nobody has measured those.
    measured_wh = imaging.read_file(config.parity[0]).size_wh
    return Manifest(
        format=1,
        name=config.name,
        precision=config.precision,
        code_version=__version__,
        input=InputEntry(
            channels=1,
            monochrome=config.monochrome,
            multiple_of=32,
            tile_wh=measured_wh,
            tile_overlap_px=min(64, min(measured_wh) // 4),
            min_wh=(64, 64),
        ),
        classes=tuple(config.classes),
        gate=file_entry(gate),
        segmenter=file_entry(segmenter),
        parity=file_entry(parity),
        self_test=file_entry(folder / (SELF_TEST + config.self_test.suffix)),
        training=TrainingEntry(
            data=data, terms=terms, weights_sha256=file_entry(config.weights).sha256
        ),
    )
