"""From trained weights to a bundle that any engine runs, with proof that it says the same.

The network is exported once as a whole and cut in two: the gate (frames in, probabilities out) and
the segmenter (mask logits out). In the shared form the cut goes through the encoder's features,
which the gate hands over; in the two-network form both parts take the frames. Grey normalisation,
the averaging of the fast profile and the gate's sigmoids are inside, so that every engine gets them
right (``deployed``). For int8 the whole graph is quantised
first (static, QDQ, per channel; Jacob et al., arXiv 1712.05877) and cut at its quantisation nodes:
the gate hands its features over as uint8, without a copy or a conversion.

For the proof the trained network is put behind the seam of the engines: both answers take the same
way through the cascade, whatever the size of the frames, and differ by the networks alone.
"""

import copy
import hashlib
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import onnx
import onnxruntime
import safetensors.torch
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import safe_open
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
    SegmenterInput,
    TrainingEntry,
    file_entry,
    load_bundle,
    write_manifest,
)
from steelsight.decisions import Decision, load_decision
from steelsight.defects import Defect, Inspection, Reason, Verdict
from steelsight.engine.cascade import Inspector, Networks, tiles_of
from steelsight.engine.runtime import Engine, Tensors
from steelsight.errors import GateError, InputError
from steelsight.masks import decode_rle, merge_rles
from steelsight.models.config import Network
from steelsight.models.res_unet import DefectNetwork, ResUNet, build_network
from steelsight.models.resnet import GREY_MEAN, GREY_STD, Features
from steelsight.training.checkpoint import KEY, load_checkpoint, save_checkpoint
from steelsight.training.deployed import (
    FEATURES,
    LOGITS,
    MASKS,
    PROBABILITIES,
    Deployed,
    features_of,
    outputs_of,
)
from steelsight.training.quantise import quantise, sensitive_blocks

SELF_TEST = "self_test"
IN_FP32 = (0.1, 0.25, 0.5)
"""Which share of a network's blocks stays fp32, the most sensitive ones, where int8 changes too
much. More are tried only if fewer do not do; with more than half it would be int8 by name only."""
WEIGHTS = "weights.safetensors"
OPSET = 20
STATISTICS = ("running_mean", "running_var")
"""Of BatchNorm. Variances of trained networks reach 6.6e4; fp16 ends at 65,504."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are."""


def no_progress(_step: str, _done: int, _total: int) -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class ExportConfig:
    """What a bundle is made from."""

    weights: Path | DefectNetwork
    """The trained network: safetensors, or in memory (of which a copy is exported)."""
    calibration: Sequence[Path]
    """Real frames, clean and faulty, that set the int8 ranges; not needed for fp32."""
    parity: Sequence[Path]
    """Real frames on which bundle and trained network are compared; none of ``calibration``."""
    decision: Path | str
    """Decision file to ship, or its text."""
    card: Path | str
    """Model card to ship, or its text, Markdown."""
    self_test: Path
    """A frame that may be shipped: drawn, or the user's own."""
    classes: Sequence[ClassEntry]
    """Defect types in channel order."""
    name: str
    """The bundle's name in results."""
    training: tuple[str, str]
    """What the network learned from, and under which terms."""
    network: Network | None = None
    """Form and size of the network; if ``None``, what training noted in the file of the weights,
    else the defaults."""
    tile_wh: tuple[int, int] | None = None
    """Usual size of the frames; larger ones are cut. That of the first parity frame if ``None``."""
    monochrome: bool = True
    """Training frames came from a grey camera: coloured pixels are refused."""
    precision: Precision = Precision.INT8
    truth: Mapping[Path, Mapping[str, str]] = field(default_factory=dict)
    """Labels of parity frames: RLE by frame and type; adds Dice against people's masks."""
    reduce_range: bool = True
    """7-bit weights: without them, sums overflow on CPUs without VNNI, and the same bundle answers
    differently there."""
    keep_weights: bool = False
    """Put the trained weights into the bundle too, so that it can be the start of a training."""
    half_weights: bool = True
    """Keep them in fp16, but for what fp16 cannot hold."""


@dataclass(frozen=True)
class Tolerances:
    """A bundle outside these is refused."""

    fp32_relative_logits: float = 1e-4
    """Largest difference of any logit, relative to the largest logit of its kind on the frame."""
    int8_verdict_flips: float = 0.03
    """Share of parity frames whose verdict differs."""
    int8_dice_drop: float = 0.02
    """Loss of mean Dice against people's masks, or 1 - mean Dice against the fp32 masks."""


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


def describe_weights(path: Path) -> tuple[Network | None, tuple[str, ...]]:
    """What training noted in a file of weights.

    Args:
        path: safetensors.

    Returns:
        The network's settings, and the ids of the types in channel order; ``None`` and none where
        the file says nothing.

    Raises:
        InputError: the file is missing, not safetensors, or names settings that do not exist.
    """
    try:
        with safe_open(path, framework="pt") as file:
            noted = (file.metadata() or {}).get(KEY)
    except Exception as error:  # safetensors raises its own, undocumented types
        raise InputError(f"expected safetensors at {path}, got: {error}") from None
    try:
        head = json.loads(noted or "{}")
        about = json.loads(head["state"]) if "state" in head else head
        network = Network.model_validate(about["network"]) if "network" in about else None
        return network, tuple(str(class_id) for class_id in about.get("classes", ()))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise InputError(
            f"{path}: network.{where}: {problem['msg']}; use the version that trained it"
        ) from None
    except (ValueError, TypeError, AttributeError):
        raise InputError(
            f"{path}: expected JSON of ours under {KEY!r} in its metadata, got something else; "
            "take the file from the run again"
        ) from None


def load_network(weights: Path, types: int, network: Network | None = None) -> DefectNetwork:
    """Loads trained weights into fp32, whatever type they are stored in.

    Args:
        weights: safetensors; of ours (checked by the hash in them), or parameters alone.
        types: number of defect types.
        network: form and size; what the file says, else the defaults, if ``None``.

    Raises:
        InputError: the file is missing, altered, not safetensors, or does not fit the network.
    """
    noted, class_ids = describe_weights(weights)
    if noted is not None:
        state, _ = load_checkpoint(weights)
    else:
        try:
            state = safetensors.torch.load_file(weights)
        except Exception as error:
            raise InputError(f"expected safetensors at {weights}, got: {error}") from None
    if class_ids and len(class_ids) != types:
        raise InputError(
            f"{weights}: expected weights of a Res-UNet with {types} types, these were trained for "
            f"{', '.join(class_ids)}"
        )
    built = build_network(types, network or noted or Network())
    try:
        missing, unexpected = built.load_state_dict(
            {n: t.float() if t.is_floating_point() else t for n, t in state.items()}, strict=False
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
    return built.eval()


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
    network = _trained(config)
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        decision_path = _as_file(config.decision, scratch / DECISION)
        decision = load_decision(decision_path, [c.id for c in config.classes])
        spec = _input_entry(config, network)
        folder.mkdir(parents=True, exist_ok=True)
        copyfile(decision_path, folder / DECISION)
        copyfile(_as_file(config.card, scratch / CARD), folder / CARD)
        copyfile(config.self_test, folder / (SELF_TEST + config.self_test.suffix))

        whole = scratch / "whole.onnx"
        progress("export", 0, 1)
        export_onnx(network, whole)
        fp32_error = _largest_logit_error(network, whole, _tiles(config.parity, spec))
        if config.keep_weights:
            _keep_weights(config, network, folder / WEIGHTS)
        answers: dict[Path, Inspection] = {}
        ranked: list[str] = []
        in_fp32: list[str] = []
        is_int8 = config.precision is Precision.INT8
        tiles = list(_tiles(config.calibration, spec)) if is_int8 else []
        for share in (0, *IN_FP32) if is_int8 else (0,):
            source = whole
            if is_int8:
                if share:
                    ranked = ranked or sensitive_blocks(
                        whole, scratch, tiles, config.reduce_range, partial(progress, "rank blocks")
                    )
                    in_fp32 = ranked[: max(1, round(share * len(ranked)))]
                progress("quantise", 0, 1)
                source = quantise(whole, scratch, tiles, config.reduce_range, in_fp32)
            limits = tolerances or Tolerances()
            bundle = _write_files(config, spec, network, source, folder, decision)
            parity = {
                "tolerances": vars(limits),
                **_measure(config, bundle, network, answers, progress),
                "fp32_onnx_largest_relative_logit_error": fp32_error,
                "blocks_in_fp32": in_fp32,
            }
            failures = _failures(parity, config.precision, limits)
            parity = {"passed": not failures, **parity}
            (folder / PARITY).write_text(json.dumps(parity, indent=1) + "\n", encoding="utf-8")
            parity_entry = file_entry(folder / PARITY)
            write_manifest(folder, bundle.manifest.model_copy(update={"parity": parity_entry}))
            if not failures or not fp32_error <= limits.fp32_relative_logits:
                break
    if failures:
        raise GateError(f"{folder}: bundle refused: {'; '.join(failures)}; see {PARITY}")
    return load_bundle(folder)


def _write_files(
    config: ExportConfig,
    spec: InputEntry,
    network: DefectNetwork,
    source: Path,
    folder: Path,
    decision: Decision,
) -> Bundle:
    """Both network files; the bundle is not proved yet."""
    gate, segmenter = (folder / f"{part}.{config.precision}.onnx" for part in ("gate", "segmenter"))
    cut(source, gate, segmenter, features_of(network))
    (folder / PARITY).touch()
    manifest = _manifest(config, spec, network, gate, segmenter)
    return Bundle(folder=folder, manifest=manifest, decision=decision, sha256="0" * 64, parity={})


def _check(config: ExportConfig, folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"expected an empty folder for the bundle, {folder} holds files")
    if not config.parity:
        raise InputError("expected parity frames, got none; give a folder of real frames")
    if config.precision is Precision.INT8 and not config.calibration:
        raise InputError("expected calibration frames for int8, got none; give real frames")
    calibration, parity = (
        {path.resolve() for path in paths} for paths in (config.calibration, config.parity)
    )
    if calibration & parity:
        name = min(calibration & parity).name
        raise InputError(f"{name} is in calibration and parity; proof needs other frames")
    if not re.fullmatch(NAME_PATTERN, config.name):
        raise InputError(f"expected a name of letters, digits and . _ -, got {config.name!r}")
    for source in (config.card, config.decision, config.self_test):
        if isinstance(source, Path) and not source.is_file():
            raise InputError(f"expected a file to put into the bundle, {source} is not there")
    if config.keep_weights and config.network is None and not isinstance(config.weights, Path):
        raise InputError(
            "expected the settings of the network to keep with its weights, got none; give network"
        )


def _trained(config: ExportConfig) -> DefectNetwork:
    """The network in fp32 on the CPU, ready to run; the caller's own stays as it is."""
    if isinstance(config.weights, Path):
        return load_network(config.weights, len(config.classes), config.network)
    network = copy.deepcopy(config.weights).to("cpu", torch.float32)
    for tensor in chain(network.parameters(), network.buffers()):
        tensor.data = tensor.data.contiguous()  # while training they lie channels last
    return network.eval()


def _as_file(source: Path | str, target: Path) -> Path:
    """The file, or the text written to ``target``."""
    if isinstance(source, Path):
        return source
    target.write_text(source, encoding="utf-8")
    return target


def _tiles(paths: Iterable[Path], spec: InputEntry) -> Iterator[NDArray[np.uint8]]:
    """Frames as the cascade hands them to the gate: in tiles, padded, one by one."""
    for path in paths:
        for tile in tiles_of(imaging.read_file(path).grey_hw, spec):
            yield tile.frames


def storable(network: nn.Module, *, half: bool = True) -> dict[str, Tensor]:
    """Weights by name as they are kept: fp16 where that holds them.

    BatchNorm's statistics stay fp32, and so does any tensor with a number that fp16 cannot hold.

    Args:
        network: trained.
        half: without, everything is fp32.
    """
    kept = {}
    for name, tensor in network.state_dict().items():
        kept[name] = tensor.float() if tensor.is_floating_point() else tensor
        if half and tensor.is_floating_point() and not name.endswith(STATISTICS):
            short = tensor.half()
            kept[name] = short if bool(torch.isfinite(short).all()) else kept[name]
    return kept


def _keep_weights(config: ExportConfig, network: DefectNetwork, path: Path) -> None:
    settings = config.network
    if settings is None and isinstance(config.weights, Path):
        settings = describe_weights(config.weights)[0]
    data, terms = config.training
    about = {
        "network": (settings or Network()).model_dump(mode="json"),
        "classes": [entry.id for entry in config.classes],
        "name": config.name,
        "data": data,
        "terms": terms,
    }
    save_checkpoint(path, storable(network, half=config.half_weights), about)


def export_onnx(network: DefectNetwork, path: Path) -> None:
    """Writes the whole network as one ONNX file with any N, H and W that it can take."""
    n, h, w = (torch.export.Dim(axis, min=1, max=512) for axis in "nhw")
    step = _multiple_of(network)
    with warnings.catch_warnings(), _quiet("torch.onnx"):
        # torch's own, inside the exporter: nothing a caller could change.
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            Deployed(network),
            (torch.zeros(2, 1, 2 * step, 3 * step, dtype=torch.uint8),),
            dynamo=True,
            input_names=["frames"],
            output_names=outputs_of(network),
            dynamic_shapes={"frames": {0: n, 2: step * h, 3: step * w}},
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - for the type checker: dynamo=True returns it
    program.save(str(path))


def _multiple_of(network: DefectNetwork) -> int:
    """What both sides of a frame must be multiples of: C5 lies at a 32nd of the encoder's input."""
    return 32 * network.input_stride


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


def cut(whole: Path, gate: Path, segmenter: Path, features: Sequence[str] = FEATURES[1:]) -> None:
    """Cuts the whole network into the two files of a bundle.

    An int8 graph is cut behind its QuantizeLinear nodes: features then are uint8.

    Args:
        whole: what ``export_onnx`` or ``quantise`` wrote.
        gate: file to write: frames to probabilities and ``features``.
        segmenter: file to write: ``features``, or frames if there are none, to mask probabilities.
        features: what the gate hands over.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(whole))
    quantised = {
        node.input[0]: node.output[0]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in features
    }
    handed = [quantised.get(name, name) for name in features]
    extractor = onnx.utils.Extractor(model)
    for path, inputs, outputs in (
        (gate, ["frames"], [*PROBABILITIES, *handed]),
        (segmenter, handed or ["frames"], [MASKS]),
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


class _Torch:
    """A part of the trained network behind the seam of the engines; see ``Runtime``."""

    label = "torch-fp32"

    def __init__(self, part: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]) -> None:
        self._part = part

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """See ``Runtime.run``."""
        with torch.inference_mode():
            outputs = self._part({name: torch.from_numpy(a) for name, a in inputs.items()})
        return {name: tensor.numpy() for name, tensor in outputs.items()}


def _in_torch(bundle: Bundle, network: DefectNetwork) -> Inspector:
    """The bundle's cascade with the trained network, as it was trained, in place of its files."""

    def gate(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = _normalised(given["frames"])
        features: dict[str, Tensor] = {}
        if isinstance(network, ResUNet):
            found = network.encode(x)
            average, soft_maximum = network.classify(found.deepest)
            features = found.maps
        else:
            average, soft_maximum = network.classify_frames(x)
        faulty = ((average[:, 0] + soft_maximum[:, 0]) / 2).sigmoid()
        classes = (average[:, 1:].sigmoid() + soft_maximum[:, 1:].sigmoid()) / 2
        return {**dict(zip(PROBABILITIES, (faulty, classes), strict=True)), **features}

    def segment(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if isinstance(network, ResUNet):
            return {MASKS: network.segment(Features(**given))}
        return {MASKS: network.segment_frames(_normalised(given["frames"]))}

    return Inspector(bundle, Networks(_Torch(gate), _Torch(segment)))


def _normalised(frames: Tensor) -> Tensor:
    return (frames.float() / 255 - GREY_MEAN) / GREY_STD


def _largest_logit_error(
    network: DefectNetwork, whole: Path, frames: Iterable[NDArray[np.uint8]]
) -> float:
    """Over the first tiles; each logit relative to the largest of its kind on the tile."""
    session = onnxruntime.InferenceSession(whole, providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch in islice(frames, 8):
        with torch.inference_mode():
            expected = network(_normalised(torch.from_numpy(batch)))
        for want, got in zip(
            expected, session.run((*LOGITS, MASKS), {"frames": batch}), strict=True
        ):
            error = float(np.abs(want.numpy() - got).max() / np.abs(want.numpy()).max())
            # NaN must not get lost: max(0.0, nan) is 0.
            largest = error if not error <= largest else largest
    return largest


def _measure(
    config: ExportConfig,
    bundle: Bundle,
    network: DefectNetwork,
    answers: dict[Path, Inspection],
    progress: Progress,
) -> dict[str, Any]:
    """Verdicts, masks and Dice of the bundle's files against the trained network's ``answers``.

    Those are filled in where they are missing: they are the same for every attempt.
    """
    by_torch = _in_torch(bundle, network)
    inspector = Inspector(bundle, Networks.load(bundle, Engine.ONNXRUNTIME))
    flips: list[str] = []
    unanswered: dict[str, str] = {}
    agreement: list[float] = []
    dice: dict[str, list[tuple[float, float]]] = {c.id: [] for c in config.classes}
    probability_errors: list[float] = []
    for done, path in enumerate(config.parity):
        progress("parity", done, len(config.parity))
        if path not in answers:
            answers[path] = by_torch.inspect(path)
        ours, trained = inspector.inspect(path), answers[path]
        if ours.verdict != trained.verdict:
            flips.append(path.name)
        elif ours.verdict is Verdict.UNKNOWN:
            unanswered[path.name] = str(ours.reason)
            continue
        probability_errors.append(
            abs((ours.faulty_probability or 0.0) - (trained.faulty_probability or 0.0))
        )
        size_wh = ours.size_wh or (0, 0)
        labels = config.truth.get(path, {})
        for class_id in dice:
            mine = _mask(ours.defects, class_id, size_wh)
            theirs = _mask(trained.defects, class_id, size_wh)
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
    errors = probability_errors
    return {
        "precision": str(config.precision),
        "reduce_range": config.reduce_range,
        "engine": f"onnxruntime {onnxruntime.__version__}",
        "frames": len(config.parity),
        "verdict_flips": flips,
        "unanswered": unanswered,
        "mask_agreement_dice": round(float(np.mean(agreement)), 4) if agreement else None,
        "faulty_probability_error_mean": round(float(np.mean(errors)), 5) if errors else None,
        "faulty_probability_error_max": round(max(errors), 5) if errors else None,
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
    flips, unanswered = parity["verdict_flips"], parity["unanswered"]
    answered = parity["frames"] - len(unanswered)
    allowed = 0.0 if precision is Precision.FP32 else limits.int8_verdict_flips
    if len(flips) > allowed * answered:
        found.append(
            f"{len(flips)} of {answered} verdicts flip, at most {allowed:.0%} may: "
            + ", ".join(flips[:5])
        )
    # Frames without a usable picture prove nothing; frames on which both networks fail refute it.
    failed = [n for n, r in unanswered.items() if r in (Reason.ENGINE_FAILED, Reason.NOT_FINITE)]
    if failed or not answered:
        name = min(failed or unanswered)
        found.append(f"no answer on {len(failed or unanswered)} frames: {name}: {unanswered[name]}")
    if parity["self_test"]["verdict"] == Verdict.UNKNOWN:
        found.append(f"the self-test frame is UNKNOWN: {parity['self_test']['detail']}")
    losses = [t["trained"] - t["bundle"] for t in parity["dice_against_labels"].values()]
    if parity["mask_agreement_dice"] is not None and not losses:
        losses = [1 - parity["mask_agreement_dice"]]
    if losses and not np.mean(losses) <= limits.int8_dice_drop:
        found.append(f"Dice drops by {np.mean(losses):.3f}, at most {limits.int8_dice_drop}")
    return found


def _input_entry(config: ExportConfig, network: DefectNetwork) -> InputEntry:
    # Results of frames of another size carry a note: nobody has measured those.
    tile_wh = config.tile_wh or imaging.read_file(config.parity[0]).size_wh
    return InputEntry(
        channels=1,
        monochrome=config.monochrome,
        multiple_of=_multiple_of(network),
        tile_wh=tile_wh,
        tile_overlap_px=min(64, min(tile_wh) // 4),
        min_wh=(64, 64),
    )


def _manifest(
    config: ExportConfig,
    spec: InputEntry,
    network: DefectNetwork,
    gate: Path,
    segmenter: Path,
) -> Manifest:
    folder = gate.parent
    data, terms = config.training
    if isinstance(config.weights, Path):
        weights_sha256 = file_entry(config.weights).sha256
    else:
        weights_sha256 = hashlib.sha256(safetensors.torch.save(network.state_dict())).hexdigest()
    return Manifest(
        format=2,
        name=config.name,
        precision=config.precision,
        code_version=__version__,
        input=spec,
        classes=tuple(config.classes),
        gate=file_entry(gate),
        segmenter=file_entry(segmenter),
        parity=file_entry(folder / PARITY),
        self_test=file_entry(folder / (SELF_TEST + config.self_test.suffix)),
        training=TrainingEntry(data=data, terms=terms, weights_sha256=weights_sha256),
        segmenter_takes=SegmenterInput.FEATURES if features_of(network) else SegmenterInput.FRAMES,
        weights=file_entry(folder / WEIGHTS) if config.keep_weights else None,
    )
