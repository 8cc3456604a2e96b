"""Every form of the network as a bundle: the same answers as in PyTorch, on frames of any size.

The networks are tiny and have one block a stage, because tracing takes time by the block. Their
answer is worked out with numpy's own padding and the network's ``forward``, without the cascade.
"""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from steelsight.bundle import PARITY, Bundle, Precision, class_entries, load_bundle
from steelsight.defects import Inspection
from steelsight.engine.cascade import Inspector
from steelsight.errors import BundleError, GateError, InputError
from steelsight.imaging import tile_plan
from steelsight.masks import decode_rle
from steelsight.models.config import Network
from steelsight.models.res_unet import DefectNetwork, build_network
from steelsight.training import export, quantise
from steelsight.training.checkpoint import KEY, load_checkpoint
from steelsight.training.export import (
    ExportConfig,
    Tolerances,
    describe_weights,
    export_bundle,
    load_network,
    storable,
)

# torch.onnx 2.x uses a class of torch.utils that torch.utils itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")

Grey = NDArray[np.uint8]
IDS = ("pits", "edge_crack")
TILE_WH = (1000, 200)
SIZES_HW = ((200, 200), (96, 1000), (65, 64))
"""The last is smaller than its padding at half resolution would be without care."""
LARGE_HW = (120, 1700)
FORMS = {
    "half": Network(width=0.125, input_stride=2, mask_stride=2),
    "two": Network(width=0.125, arch="two", residual=True, stride_on="v1.5"),
    "residual": Network(width=0.125, mask_stride=1, residual=True),
    "two at half": Network(width=0.125, arch="two", input_stride=2, mask_stride=1),
    "ends early": Network(width=0.125, input_stride=2, stages=2),
}
DECISION = """\
version = 1
name = "all"
rule = "whatever has a probability"
chosen_on = "nothing"
gate = {clear_below = 0.000001, ng_from = 0.999999}
input = {min_contrast = 2.0}
types.pits = {label_from = 0.0, pixel_from = 0.5, min_area_px = 0}
types.edge_crack = {label_from = 0.0, pixel_from = 0.5, min_area_px = 0}
"""


def texture(size_hw: tuple[int, int], seed: int) -> Grey:
    """Blotches of all sizes, different everywhere."""
    rng = np.random.default_rng(seed)
    height, width = size_hw
    sums = np.full(size_hw, 110.0)
    for cell in (4, 16, 64):
        coarse = rng.normal(0, 22, (height // cell + 2, width // cell + 2))
        sums += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return sums.clip(0, 255).astype(np.uint8)


def make_network(settings: Network) -> DefectNetwork:
    """Random weights whose BatchNorm knows the frames and whose masks are neither all nor none."""
    torch.manual_seed(5)
    network = build_network(len(IDS), settings)
    for encoder in network.encoders:
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            if (blocks := getattr(encoder, stage)) is not None:
                setattr(encoder, stage, blocks[:1])
    network.train()
    frames = np.stack([texture((128, 192), seed) for seed in range(4)])[:, None]
    x = (torch.from_numpy(frames) / 255 - 0.449) / 0.226
    with torch.no_grad():
        for _ in range(60):
            network(x)
        network.eval()
        masks = network(x).masks
        for name, parameter in network.named_parameters():
            if name.endswith("segmentation_head.0.weight"):
                parameter *= 3 / masks.std()
            elif name.endswith("segmentation_head.0.bias"):
                parameter -= masks.mean((0, 2, 3))
    # As training leaves it.
    return network.to(memory_format=torch.channels_last)


class Made:
    """Networks and bundles of the forms, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.networks: dict[str, DefectNetwork] = {}
        self._whole: dict[str, Path] = {}
        self._bundles: dict[tuple[str, Precision], Bundle] = {}
        self.frames = {
            use: [self._write(f"{use}{i}.png", size, 10 * n + i) for i, size in enumerate(SIZES_HW)]
            for n, use in enumerate(("calibration", "parity"))
        }

    def _write(self, name: str, size_hw: tuple[int, int], seed: int) -> Path:
        path = self.folder / name
        assert cv2.imwrite(str(path), texture(size_hw, seed))
        return path

    def config(self, form: str, **changes: Any) -> ExportConfig:
        return ExportConfig(
            **{
                "weights": self.network(form),
                "network": FORMS[form],
                "calibration": self.frames["calibration"],
                "parity": self.frames["parity"],
                "decision": DECISION,
                "card": "# tiny\n\n## In short\n\nA test.\n",
                "self_test": self.frames["parity"][0],
                "classes": class_entries((i, i) for i in IDS),
                "name": "tiny",
                "training": ("noise", "none"),
                "tile_wh": TILE_WH,
            }
            | changes
        )

    def network(self, form: str) -> DefectNetwork:
        if form not in self.networks:
            self.networks[form] = make_network(FORMS[form])
        return self.networks[form]

    def bundle(self, form: str, precision: Precision) -> Bundle:
        """fp32 and int8 of one form share one tracing, which takes most of the time."""
        key = (form, precision)
        if key not in self._bundles:
            with pytest.MonkeyPatch.context() as patch:
                if form in self._whole:
                    known = self._whole[form].read_bytes()
                    patch.setattr(export, "export_onnx", lambda _, path: path.write_bytes(known))
                else:
                    patch.setattr(export, "export_onnx", self._keep(form, export.export_onnx))
                self._bundles[key] = export_bundle(
                    self.config(form, precision=precision, keep_weights=precision == "int8"),
                    self.folder / f"{form} {precision}",
                    # What a random network's masks lose is measured below.
                    Tolerances(int8_dice_drop=0.2),
                )
        return self._bundles[key]

    def _keep(self, form: str, export_onnx: Any) -> Any:
        def exported(network: DefectNetwork, path: Path) -> None:
            export_onnx(network, path)
            self._whole[form] = self.folder / f"{form}.onnx"
            self._whole[form].write_bytes(path.read_bytes())

        return exported


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("forms"))


SLOW = [pytest.param(form, marks=pytest.mark.soak) for form in ("residual", "two at half")]
each_form = pytest.mark.parametrize("form", ["half", "two", "ends early", *SLOW])
each_precision = pytest.mark.parametrize("precision", list(Precision))


@torch.inference_mode()
def by_torch(network: DefectNetwork, grey_hw: Grey) -> tuple[float, NDArray[np.float32]]:
    """Faulty logit and mask probabilities ``(K, H, W)``, by the description of the model."""
    step = 32 * network.input_stride
    height, width = grey_hw.shape
    padded = np.pad(grey_hw, ((0, -height % step), (0, -width % step)), mode="reflect")
    logits = network((torch.from_numpy(padded)[None, None] / 255 - 0.449) / 0.226)
    masks = torch.nn.functional.interpolate(logits.masks, size=padded.shape, mode="bilinear")
    return float(logits.faulty), masks.sigmoid()[0, :, :height, :width].numpy()


def masks_of(found: Inspection) -> NDArray[np.bool_]:
    assert found.size_wh is not None
    masks = np.zeros((len(IDS), *found.size_wh[::-1]), bool)
    for defect in found.defects:
        masks[IDS.index(defect.class_id)] |= decode_rle(defect.rle, found.size_wh)
    return masks


def logit(probability: float | None) -> float:
    assert probability is not None
    return float(np.log(probability / (1 - probability)))


@each_form
@each_precision
def test_a_bundle_says_what_the_network_says_on_frames_of_any_size(
    made: Made, form: str, precision: Precision
) -> None:
    inspector = Inspector.load(made.bundle(form, precision).folder)
    exact = precision is Precision.FP32
    for seed, size_hw in enumerate(SIZES_HW):
        grey_hw = texture(size_hw, 40 + seed)
        found = inspector.inspect(grey_hw)
        faulty, masks = by_torch(made.network(form), grey_hw)
        assert logit(found.faulty_probability) == pytest.approx(faulty, abs=1e-4 if exact else 0.1)
        mine, theirs = masks_of(found), masks >= 0.5
        assert 0.1 < theirs.mean() < 0.9
        differ = mine != theirs
        if exact:
            assert np.abs(masks[differ] - 0.5).max(initial=0) < 1e-4
        else:
            assert 2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()) > 0.9
            # Random networks are seldom sure, and at full resolution masks are all edges.
            assert differ[np.abs(masks - 0.5) > 0.25].mean() < 0.01


@each_form
def test_a_frame_larger_than_usual_is_as_faulty_as_its_worst_tile(made: Made, form: str) -> None:
    bundle = made.bundle(form, Precision.FP32)
    spec = bundle.manifest.input
    grey_hw = texture(LARGE_HW, 7)
    boxes = tile_plan(LARGE_HW[::-1], spec.tile_wh, spec.tile_overlap_px)
    tiles = [by_torch(made.network(form), grey_hw[y : y + h, x : x + w]) for x, y, w, h in boxes]
    assert len(boxes) == 2
    found = Inspector.load(bundle.folder).inspect(grey_hw)
    worst = max(faulty for faulty, _ in tiles)
    assert logit(found.faulty_probability) == pytest.approx(worst, abs=1e-4)
    # Outside of the overlap a pixel is that of its tile.
    free = boxes[1][0]
    alone = tiles[0][1][:, :, :free]
    differ = masks_of(found)[:, :, :free] != (alone >= 0.5)
    assert np.abs(alone[differ] - 0.5).max(initial=0) < 1e-4


@each_form
@each_precision
def test_the_manifest_says_how_the_parts_fit_together(
    made: Made, form: str, precision: Precision
) -> None:
    bundle, settings = made.bundle(form, precision), FORMS[form]
    gate, segmenter = (onnx.load(p).graph for p in (bundle.gate_path, bundle.segmenter_path))
    inputs = {i.name: i.type.tensor_type.elem_type for i in segmenter.input}
    outputs = {o.name for o in gate.output} - {"faulty_probability", "class_probabilities"}
    assert [i.name for i in gate.input] == ["frames"]
    if settings.arch == "two":
        assert bundle.manifest.segmenter_takes == "frames"
        assert (set(inputs), outputs) == ({"frames"}, set())
    else:
        assert bundle.manifest.segmenter_takes == "features"
        # A decoder that goes beyond a quarter of its input needs C1.
        expected = {"ends early": {"c2", "c3"}}.get(form, {"c1", "c2", "c3", "c4", "c5"})
        assert set(inputs) == outputs == expected
    uint8 = precision is Precision.INT8 or settings.arch == "two"
    assert set(inputs.values()) == {
        onnx.TensorProto.UINT8 if uint8 else onnx.TensorProto.FLOAT,
    }
    assert bundle.manifest.input.multiple_of == 32 * settings.input_stride
    assert bundle.manifest.input.tile_wh == TILE_WH
    assert bundle.parity["fp32_onnx_largest_relative_logit_error"] < 1e-4
    assert bundle.parity["frames"] == len(SIZES_HW)
    assert (bundle.parity["verdict_flips"], bundle.parity["unanswered"]) == ([], {})


@each_form
def test_all_is_int8_but_the_heads(made: Made, form: str) -> None:
    """Nothing of it would show in the answers: what is forgotten is only slow."""
    bundle, settings = made.bundle(form, Precision.INT8), FORMS[form]
    int8_sums = 0
    for path in (bundle.gate_path, bundle.segmenter_path):
        graph = onnx.load(path).graph
        int8 = {o for n in graph.node if n.op_type == "DequantizeLinear" for o in n.output}
        for node in graph.node:
            if node.op_type == "Conv":
                head = any("_head" in name for name in node.input)
                assert (node.input[1] in int8) is not head, node.name
                assert node.input[0] in int8 or head, node.name
            int8_sums += node.op_type == "Add" and int8.issuperset(node.input)
    encoders = 2 if settings.arch == "two" else 1
    decoder_blocks = {4: 3, 2: 4, 1: 5}[settings.mask_stride] - (4 - settings.stages)
    # Shortcuts of the encoders' blocks, one a stage, and of residual decoder blocks; in plain ones
    # the sum of what comes from below and from the skip. The last at full size has no skip.
    plain = decoder_blocks - (settings.mask_stride == 1)
    assert int8_sums == settings.stages * encoders + (
        decoder_blocks if settings.residual else plain
    )


def test_where_int8_changes_too_much_sensitive_blocks_stay_fp32(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them with each attempt, and the first that is good enough is shipped."""
    known = made.bundle("half", Precision.INT8)
    graph = onnx.load(known.gate_path).graph
    assert known.parity["blocks_in_fp32"] == []
    measure, tried = export._measure, []

    def strict(config: Any, bundle: Bundle, *rest: Any) -> dict[str, Any]:
        found = measure(config, bundle, *rest)
        tried.append(sum(path.stat().st_size for path in bundle.folder.glob("*.onnx")))
        return found | {"mask_agreement_dice": 0.99 if len(tried) == 3 else 0.5}

    monkeypatch.setattr(export, "_measure", strict)
    monkeypatch.setattr(
        export, "export_onnx", lambda _, path: path.write_bytes(made._whole["half"].read_bytes())
    )
    config = made.config("half", precision=Precision.INT8)
    bundle = export_bundle(config, tmp_path / "mixed", Tolerances(int8_dice_drop=0.2))
    kept = bundle.parity["blocks_in_fp32"]
    assert len(tried) == 3
    assert len(kept) == len(set(kept)) == 2  # a quarter of stem, 4 blocks and decoder
    assert tried == sorted(set(tried))  # bytes

    mixed = onnx.load(bundle.gate_path).graph
    int8 = {o for n in mixed.node if n.op_type == "DequantizeLinear" for o in n.output}
    for node in mixed.node:
        if node.op_type == "Conv" and ".weight" in node.input[1]:
            block = quantise.block_of(node.input[1].removesuffix("_DequantizeLinear_Output"))
            assert (node.input[1] in int8) is (block not in kept), node.name
    assert len(mixed.initializer) != len(graph.initializer)

    monkeypatch.setattr(export, "_measure", lambda *_: measure(*_) | {"mask_agreement_dice": 0.5})
    with pytest.raises(GateError, match=r"bundle refused: Dice drops by 0\.500"):
        export_bundle(config, tmp_path / "refused", Tolerances(int8_dice_drop=0.2))
    recorded = json.loads((tmp_path / "refused" / PARITY).read_text())
    # Not more than half: it would be int8 by name only.
    assert len(recorded["blocks_in_fp32"]) == 4

    # Of few blocks even the smallest share is one: the same attempt twice would be no use.
    monkeypatch.setattr(export, "IN_FP32", (0.01,))
    with pytest.raises(GateError):
        export_bundle(config, tmp_path / "one", Tolerances(int8_dice_drop=0.2))
    assert json.loads((tmp_path / "one" / PARITY).read_text())["blocks_in_fp32"] == kept[:1]


@pytest.mark.parametrize("stage", ["layer1", "layer3"])
def test_the_block_that_int8_spoils_comes_first(made: Made, tmp_path: Path, stage: str) -> None:
    """One channel takes the whole range of the step inside one block; in fp32 all is as before."""
    made.bundle("half", Precision.INT8)
    model = onnx.load(made._whole["half"])
    stored = {i.name: i for i in model.graph.initializer}
    first, second = (
        next(n for n in model.graph.node if f"network.encoder.{stage}.0.conv{i}.weight" in n.input)
        for i in (1, 2)
    )
    for name, channel, factor in (
        (first.input[1], np.s_[0], 300),
        (first.input[2], np.s_[0], 300),
        (second.input[1], np.s_[:, 0], 1 / 300),
    ):
        values = onnx.numpy_helper.to_array(stored[name]).copy()
        values[channel] *= factor
        stored[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, tmp_path / "spoiled.onnx")
    frames = [texture((128, 192), seed)[None, None] for seed in range(4)]
    ranked = quantise.sensitive_blocks(tmp_path / "spoiled.onnx", tmp_path, frames)
    assert ranked[0] == f"encoder.{stage}.0"
    assert {"encoder.stem", "decoder.blocks.0"} < set(ranked)
    assert len(ranked) == len(set(ranked))


def test_pooling_before_relu_changes_no_answer(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.bundle("ends early", Precision.INT8)
    whole = made._whole["ends early"]
    frames = [texture((128, 192), seed)[None, None] for seed in range(4)]
    answers, behind = [], []
    for rewrite in (quantise._pool_before_relu, lambda _: None):
        monkeypatch.setattr(quantise, "_pool_before_relu", rewrite)
        file = quantise.quantise(whole, tmp_path, frames, in_fp32=["encoder.stem"])
        graph = onnx.load(file).graph
        (pool,) = (node for node in graph.node if node.op_type == "MaxPool")
        behind.append({n.op_type for n in graph.node if pool.output[0] in n.input})
        answers.append(quantise._answers(file, frames))
    assert behind == [{"Relu"}, {"QuantizeLinear"}]
    assert answers[0].keys() == answers[1].keys()
    for name, values in answers[0].items():
        np.testing.assert_array_equal(values, answers[1][name])


@pytest.mark.parametrize(
    ("weight", "block"),
    [
        ("network.encoder.conv1.conv.weight", "encoder.stem"),
        ("network.classifier.encoder.conv1.conv.weight", "classifier.encoder.stem"),
        ("network.segmenter.encoder.layer1.0.conv2.weight", "segmenter.encoder.layer1.0"),
        ("network.decoder.blocks.2.of_skip.weight", "decoder.blocks.2"),
        ("network.segmentation_head.0.weight", "segmentation_head"),
    ],
)
def test_each_network_has_blocks_of_its_own(weight: str, block: str) -> None:
    assert quantise.block_of(weight) == block


def test_the_callers_network_stays_as_it_was(made: Made) -> None:
    network = made.network("half").train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    copied = export._trained(made.config("half"))
    assert network.training
    assert not copied.training
    for name, tensor in copied.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.is_contiguous()
    network.eval()


# Weights in the bundle ---------------------------------------------------------------------------


def test_the_weights_in_a_bundle_are_those_of_the_network(made: Made) -> None:
    with pytest.raises(BundleError, match="it was made without"):
        made.bundle("half", Precision.FP32).weights()
    bundle = made.bundle("half", Precision.INT8)
    network, class_ids = describe_weights(bundle.weights())
    assert (network, class_ids) == (FORMS["half"], IDS)
    stored, about = load_checkpoint(bundle.weights())
    assert (about["name"], about["data"], about["terms"]) == ("tiny", "noise", "none")
    trained = made.network("half").state_dict()
    assert stored.keys() == trained.keys()
    for name, tensor in stored.items():
        statistic = name.endswith(("running_mean", "running_var"))
        wanted = torch.float32 if statistic else torch.float16
        assert tensor.dtype == (wanted if tensor.is_floating_point() else torch.int64), name
        assert torch.equal(tensor, trained[name].to(tensor.dtype))


def full_network(settings: Network) -> DefectNetwork:
    """With all blocks, so that ``load_network`` can build it again."""
    torch.manual_seed(1)
    return build_network(len(IDS), settings)


@pytest.mark.parametrize("half", [True, False])
def test_what_fp16_cannot_hold_stays_fp32(tmp_path: Path, half: bool) -> None:
    """Variances of the shipped network reach 6.6e4; in fp16 they would be infinite."""
    settings = Network(width=0.125, arch="two")
    network = full_network(settings)
    state = network.state_dict()
    state["segmenter.encoder.bn1.running_var"][3] = 6.6e4
    state["classifier.encoder.bn1.running_var"][2] = 1e-9
    state["classifier.classification_head.3.bias"][0] = 7e4
    kept = storable(network, half=half)
    assert all(torch.isfinite(t).all() for t in kept.values() if t.is_floating_point())
    path = tmp_path / "weights.safetensors"
    about = {"network": settings.model_dump(mode="json"), "classes": list(IDS)}
    export.save_checkpoint(path, kept, about)
    loaded = load_network(path, len(IDS)).state_dict()
    for name in ("segmenter.encoder.bn1.running_var", "classifier.encoder.bn1.running_var",
                 "classifier.classification_head.3.bias"):  # fmt: skip
        assert torch.equal(loaded[name], state[name]), name
    for name, tensor in state.items():
        tolerance = {"rtol": 1e-3, "atol": 1e-6} if half else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(loaded[name], tensor, **tolerance)
    half_sized = sum(t.dtype == torch.float16 for t in kept.values())
    assert (half_sized > 100) is half


@pytest.mark.parametrize("settings", FORMS.values(), ids=FORMS)
def test_the_form_is_read_from_the_file(tmp_path: Path, settings: Network) -> None:
    path = tmp_path / "best.safetensors"
    network = full_network(settings)
    about = {"step": 7, "network": settings.model_dump(mode="json"), "classes": list(IDS)}
    export.save_checkpoint(path, network.state_dict(), about)
    assert describe_weights(path) == (settings, IDS)
    loaded = load_network(path, len(IDS))
    assert type(loaded) is type(network)
    assert (loaded.input_stride, loaded.mask_stride) == (network.input_stride, network.mask_stride)
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in network.state_dict().items())
    with pytest.raises(InputError, match="with 3 types, these were trained for pits, edge_crack"):
        load_network(path, 3)


def test_the_form_may_stand_beside_the_settings_themselves(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    network = {"width": 0.5}
    save_file({"a": torch.zeros(1)}, path, {KEY: json.dumps({"network": network})})
    assert describe_weights(path) == (Network(width=0.5), ())
    save_file({"a": torch.zeros(1)}, path)
    assert describe_weights(path) == (None, ())


@pytest.mark.parametrize(
    ("noted", "message"),
    [
        ("{", "expected JSON of ours"),
        ("[]", "expected JSON of ours"),
        ('{"state": 5}', "expected JSON of ours"),
        ('{"network": {"arch": "three"}}', "network.arch: "),
        ('{"network": {"depth": 5}}', "network.depth: "),
    ],
)
def test_notes_that_cannot_be_followed_are_refused(
    tmp_path: Path, noted: str, message: str
) -> None:
    path = tmp_path / "net.safetensors"
    save_file({"a": torch.zeros(1)}, path, {KEY: noted})
    with pytest.raises(InputError, match=message) as refusal:
        describe_weights(path)
    assert "\n" not in str(refusal.value)


def test_altered_weights_of_ours_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    settings = Network(width=0.125)
    state = full_network(settings).state_dict()
    export.save_checkpoint(path, state, {"network": settings.model_dump(mode="json")})
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state["segmentation_head.0.bias"][0] += 1
    save_file(state, path, metadata)
    with pytest.raises(InputError, match="other content than was written"):
        load_network(path, len(IDS))


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": None, "keep_weights": True}, "expected the settings of the network"),
        ({"decision": "version = 1"}, "decision.toml: "),
        ({"decision": DECISION.replace("edge_crack", "other")}, "expected rules for types pits"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(
    made: Made, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export_bundle(made.config("half", **changes), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_bundle_from_memory_loads_again(made: Made) -> None:
    made.bundle("half", Precision.INT8)
    again = load_bundle(made.folder / "half int8")
    assert again.card_summary == "A test."
    assert again.decision.rule == "whatever has a probability"
