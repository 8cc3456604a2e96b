import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from steelsight import imaging
from steelsight.bundle import Bundle, Precision, load_bundle
from steelsight.engine import runtime
from steelsight.engine.cascade import Inspector
from steelsight.engine.choice import LOGIT_TOLERANCE, MASK_TOLERANCE_DICE, compare
from steelsight.engine.cuda import STAYS, Cuda
from steelsight.engine.runtime import (
    Engine,
    Runtime,
    available_cores,
    engine_version,
    installed_engines,
    load_runtime,
    share_threads,
)
from steelsight.errors import EngineError, InputError

pytest.importorskip("openvino", reason="needs the extra openvino")

ON_CPU = (Engine.ONNXRUNTIME, Engine.OPENVINO)
ENGINES = (*ON_CPU, Engine.CUDA)
Load = Callable[[Engine], Runtime]


@pytest.fixture(autouse=True)
def cuda_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of ``cuda.py`` but the GPU itself: CI has none."""
    monkeypatch.setattr(Cuda, "_PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(Cuda, "_DEVICE", "cpu")


def network(path: Path) -> Path:
    """``frames`` (N, 1, H, W) uint8 and ``weights`` (1,) to their product and its mean."""
    image = [None, 1, None, None]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["frames"], ["grey"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["grey", "weights"], ["product"]),
            helper.make_node("ReduceMean", ["product", "axes"], ["mean"], keepdims=0),
        ],
        "test",
        [
            helper.make_tensor_value_info("frames", TensorProto.UINT8, image),
            helper.make_tensor_value_info("weights", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("mean", TensorProto.FLOAT, [None]),
            helper.make_tensor_value_info("product", TensorProto.FLOAT, image),
        ],
        [helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.fixture
def load(tmp_path: Path) -> Load:
    return lambda engine: load_runtime(network(tmp_path / "net.onnx"), Precision.FP32, engine, 1)


def inputs(seed: int, size_hw: tuple[int, int] = (5, 7)) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {
        "frames": rng.integers(0, 256, (1, 1, *size_hw), np.uint8),
        "weights": np.array([0.5 + seed], np.float32),
    }


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle()


# A network of our own ----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", Engine)
def test_outputs_come_by_name_whatever_the_size(load: Load, engine: Engine) -> None:
    loaded = load(engine)
    for seed, size_hw in enumerate([(5, 7), (64, 32), (1, 1), (5, 7)]):
        given = inputs(seed, size_hw)
        product = given["frames"].astype(np.float32) * given["weights"]
        outputs = loaded.run(given)
        assert outputs.keys() == {"mean", "product"}
        np.testing.assert_allclose(outputs["product"], product, rtol=1e-6)
        np.testing.assert_allclose(outputs["mean"], product.mean((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize(
    ("engine", "label"),
    [
        (Engine.AUTO, "onnxruntime-fp32"),
        (Engine.ONNXRUNTIME, "onnxruntime-fp32"),
        (Engine.OPENVINO, "openvino-fp32"),
        (Engine.CUDA, "cuda-fp32"),
    ],
)
def test_the_label_names_engine_and_precision(load: Load, engine: Engine, label: str) -> None:
    assert load(engine).label == label


@pytest.mark.parametrize("engine", ENGINES)
def test_results_stay_valid_after_the_next_run(load: Load, engine: Engine) -> None:
    loaded = load(engine)
    first = loaded.run(inputs(0))
    kept = {name: value.copy() for name, value in first.items()}
    second = loaded.run(inputs(1))
    for name, value in first.items():
        np.testing.assert_array_equal(value, kept[name])
        assert not np.shares_memory(value, second[name])
        assert not np.array_equal(value, second[name])


@pytest.mark.parametrize("engine", ENGINES)
def test_results_can_be_written_to_and_do_not_change_the_inputs(load: Load, engine: Engine) -> None:
    given = inputs(0)
    before = given["frames"].copy()
    outputs = load(engine).run(given)
    outputs["product"][:] = 0
    np.testing.assert_array_equal(given["frames"], before)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"frames": np.zeros((1, 3, 5, 7), np.uint8)}, id="three channels"),
        pytest.param({"frames": np.zeros((5, 7), np.uint8)}, id="no batch"),
        pytest.param({"frames": np.zeros((1, 1, 5, 7), np.float32)}, id="float instead of uint8"),
        pytest.param({"weights": np.zeros(2, np.float32)}, id="two weights"),
        pytest.param({"frames": None}, id="nothing"),
        pytest.param({"frame": np.zeros((1, 1, 5, 7), np.uint8)}, id="unknown name"),
    ],
)
def test_inputs_that_do_not_fit_are_an_engine_error(
    load: Load, engine: Engine, change: dict[str, Any]
) -> None:
    loaded = load(engine)
    with pytest.raises(EngineError, match="failed") as failure:
        loaded.run(inputs(0) | change)
    assert "\n" not in str(failure.value)
    # And the engine can go on with the next frame.
    assert loaded.run(inputs(1))["mean"].shape == (1,)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("missing", ["frames", "weights"])
def test_a_missing_input_is_not_taken_from_the_last_frame(
    load: Load, engine: Engine, missing: str
) -> None:
    loaded = load(engine)
    given = inputs(0)
    loaded.run(given)
    del given[missing]
    with pytest.raises(EngineError, match="failed"):
        loaded.run(given)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("content", [None, b"", b"no network", b"\x08\x08\x12\x04test" * 20])
def test_a_broken_file_is_refused_in_one_line(
    tmp_path: Path, engine: Engine, content: bytes | None
) -> None:
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=f"refuses {path}") as refusal:
        load_runtime(path, Precision.FP32, engine)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cut_file_is_refused(tmp_path: Path, engine: Engine) -> None:
    path = network(tmp_path / "net.onnx")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(EngineError, match="refuses"):
        load_runtime(path, Precision.FP32, engine)


@pytest.mark.parametrize("engine", Engine)
@pytest.mark.parametrize("threads", [0, -1])
def test_threads_below_one_are_refused(tmp_path: Path, engine: Engine, threads: int) -> None:
    with pytest.raises(InputError, match=f"expected at least 1 thread, got {threads}"):
        load_runtime(network(tmp_path / "net.onnx"), Precision.FP32, engine, threads)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_several_threads_may_run_it_at_once(tmp_path: Path, engine: Engine, workers: int) -> None:
    """Each thread has the answer to its own frame, also when threads are more than workers."""
    loaded = load_runtime(network(tmp_path / "net.onnx"), Precision.FP32, engine, 2, workers)
    together = threading.Barrier(4, timeout=60)

    def answers(thread: int) -> list[tuple[float, float]]:
        together.wait()
        pairs = []
        for n in range(50):
            given = inputs(100 * thread + n, (40 + thread, 60))
            product = given["frames"].astype(np.float32) * given["weights"]
            outputs = loaded.run(given)
            np.testing.assert_allclose(outputs["product"], product, rtol=1e-6)
            pairs.append((float(outputs["mean"][0]), float(product.mean(dtype=np.float64))))
        return pairs

    with ThreadPoolExecutor(4) as pool:
        for pairs in pool.map(answers, range(4)):
            found, expected = np.array(pairs).T
            np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_failed_leaves_the_others_their_turn(load: Load, engine: Engine) -> None:
    loaded = load(engine)
    for _ in range(3):
        with pytest.raises(EngineError):
            loaded.run(inputs(0) | {"weights": np.zeros(2, np.float32)})
    assert loaded.run(inputs(1))["mean"].shape == (1,)


def test_each_worker_of_openvino_has_a_stream_and_threads_are_shared(tmp_path: Path) -> None:
    loaded = load_runtime(network(tmp_path / "n.onnx"), Precision.FP32, Engine.OPENVINO, 2, 2)
    compiled = loaded._model  # type: ignore[attr-defined]
    assert compiled.get_property("NUM_STREAMS") == min(2, os.cpu_count() or 1)
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert not compiled.get_property("ENABLE_CPU_PINNING")


@pytest.mark.parametrize(
    ("threads", "workers", "intra_op"), [(2, 1, 2), (2, 2, 1), (8, 2, 7), (2, 5, 1), (1, 1, 1)]
)
def test_workers_and_the_pool_of_onnxruntime_are_together_as_many_as_threads(
    tmp_path: Path, threads: int, workers: int, intra_op: int
) -> None:
    loaded = load_runtime(
        network(tmp_path / "n.onnx"), Precision.FP32, Engine.ONNXRUNTIME, threads, workers
    )
    options = loaded._session.get_session_options()  # type: ignore[attr-defined]
    assert options.intra_op_num_threads == intra_op


@pytest.mark.parametrize(
    ("given", "shared"),
    [
        ((4, 1), (4, 1)),
        ((4, 0), (4, 4)),
        ((2, 3), (2, 3)),
        ((None, 1), (6, 1)),
        ((None, 0), (6, 6)),
    ],
)
def test_threads_and_workers_as_numbers(
    monkeypatch: pytest.MonkeyPatch, given: tuple[int | None, int], shared: tuple[int, int]
) -> None:
    monkeypatch.setattr(runtime, "available_cores", lambda: 6)
    assert share_threads(*given) == shared


def test_fewer_than_no_worker_is_refused() -> None:
    with pytest.raises(InputError, match="expected at least 1 worker, got -1"):
        Inspector.load(workers=-1)


def test_openvino_that_is_not_installed_says_what_to_do(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "steelsight.engine.openvino", raising=False)
    with pytest.raises(EngineError) as refusal:
        load(Engine.OPENVINO)
    assert str(refusal.value).endswith("run: pip install 'steelsight[openvino]'")
    assert "\n" not in str(refusal.value)
    assert load(Engine.AUTO).label == "onnxruntime-fp32"


def test_an_unknown_engine_is_refused_with_the_choices() -> None:
    with pytest.raises(InputError, match="auto, onnxruntime, openvino, cuda"):
        Inspector.load(engine="tensorrt")


# The shipped bundle ------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_labels_of_the_shipped_bundle(shipped: Bundle, engine: Engine) -> None:
    loaded = load_runtime(shipped.gate_path, shipped.manifest.precision, engine, 1)
    assert loaded.label == f"{engine}-int8"


@pytest.mark.parametrize("engine", [Engine.OPENVINO, Engine.CUDA])
def test_engines_answer_alike_on_the_self_test_frame(shipped: Bundle, engine: Engine) -> None:
    here, there = (Inspector.load(engine=one) for one in (Engine.ONNXRUNTIME, engine))
    ours, theirs = (each.inspect(shipped.self_test_path) for each in (here, there))
    assert compare(ours, theirs.to_json()) == ""
    assert compare(ours, shipped.parity["self_test"]) == ""
    assert ours.class_probabilities == pytest.approx(theirs.class_probabilities, abs=0.02)
    assert (ours.engine, theirs.engine) == ("onnxruntime-int8", f"{engine}-int8")


def test_engines_say_the_same_network_by_network(shipped: Bundle) -> None:
    """The gate's numbers, and the segmenter's on the very same features."""
    grey_hw = imaging.read_file(shipped.self_test_path).grey_hw[:, 384:896]
    precision = shipped.manifest.precision
    gates = [load_runtime(shipped.gate_path, precision, engine) for engine in ON_CPU]
    gated = [gate.run({"frames": grey_hw[None, None]}) for gate in gates]
    faulty = [float(outputs["faulty_probability"][0]) for outputs in gated]
    logits = [math.log(p / (1 - p)) for p in faulty]
    assert abs(logits[0] - logits[1]) <= LOGIT_TOLERANCE

    features = {name: value for name, value in gated[0].items() if name in ("c2", "c3", "c4", "c5")}
    assert all(value.dtype == np.uint8 for value in features.values())
    segmenters = [load_runtime(shipped.segmenter_path, precision, engine) for engine in ON_CPU]
    logits = [s.run(features)["mask_logits"][0] for s in segmenters]
    assert {logits_chw.shape for logits_chw in logits} == {(4, 256 // 4, 512 // 4)}
    ours, theirs = (imaging.mask_probabilities(chw, (512, 256)) for chw in logits)
    for rule, mine, other in zip(shipped.decision.types.values(), ours, theirs, strict=True):
        both = (mine >= rule.pixel_from).sum() + (other >= rule.pixel_from).sum()
        common = ((mine >= rule.pixel_from) & (other >= rule.pixel_from)).sum()
        assert both == 0 or 2 * common / both >= MASK_TOLERANCE_DICE
    assert (ours > 0.5).any()


def test_openvino_computes_in_the_precision_it_was_given(shipped: Bundle) -> None:
    """Left alone it takes bf16 on CPUs that have it."""
    import openvino

    loaded = load_runtime(shipped.gate_path, Precision.INT8, Engine.OPENVINO, 1)
    compiled = loaded._model  # type: ignore[attr-defined]
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_shipped_networks_refuse_frames_that_do_not_fit(shipped: Bundle, engine: Engine) -> None:
    gate = load_runtime(shipped.gate_path, shipped.manifest.precision, engine)
    for shape in ((1, 3, 64, 64), (64, 64)):
        with pytest.raises(EngineError, match="failed") as failure:
            gate.run({"frames": np.zeros(shape, np.uint8)})
        assert "\n" not in str(failure.value)
    segmenter = load_runtime(shipped.segmenter_path, shipped.manifest.precision, engine)
    features = gate.run({"frames": np.zeros((1, 1, 64, 96), np.uint8)})
    del features["faulty_probability"], features["class_probabilities"]
    assert segmenter.run(features)["mask_logits"].shape == (1, 4, 16, 24)
    other = gate.run({"frames": np.zeros((1, 1, 64, 128), np.uint8)})
    with pytest.raises(EngineError, match="failed"):
        segmenter.run(features | {"c5": other["c5"]})
    with pytest.raises(EngineError, match="failed"):
        segmenter.run({name: value for name, value in features.items() if name != "c2"})


# A GPU -------------------------------------------------------------------------------------------


def test_features_stay_on_the_gpu_and_arrays_are_taken_too(shipped: Bundle) -> None:
    precision = shipped.manifest.precision
    gate, segmenter = (
        load_runtime(path, precision, Engine.CUDA)
        for path in (shipped.gate_path, shipped.segmenter_path)
    )
    grey_hw = imaging.read_file(shipped.self_test_path).grey_hw[:, 384:896]
    outputs = gate.run({"frames": grey_hw[None, None]})
    assert {name for name, value in outputs.items() if isinstance(value, np.ndarray)} == {
        "faulty_probability",
        "class_probabilities",
    }
    features = {name: outputs[name] for name in STAYS}
    assert all(isinstance(value, onnxruntime.OrtValue) for value in features.values())
    stayed = segmenter.run(features)["mask_logits"]
    came = segmenter.run({name: value.numpy() for name, value in features.items()})["mask_logits"]
    np.testing.assert_array_equal(stayed, came)
    assert stayed.max() > 0


@pytest.mark.parametrize(("precision", "tf32"), [(Precision.INT8, "1"), (Precision.FP32, "0")])
def test_what_the_gpu_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision, tf32: str
) -> None:
    """Never less than the precision of the file, and nothing that is tried out by time."""
    real, given = onnxruntime.InferenceSession, {}

    def session(path: Path, options: Any, providers: Any) -> Any:
        given["providers"], given["options"] = providers, options
        return real(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    load_runtime(network(tmp_path / "net.onnx"), precision, Engine.CUDA)
    ((_, settings),) = given["providers"]
    assert settings == {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": tf32}
    assert given["options"].use_deterministic_compute
    assert given["options"].get_session_config_entry("session.disable_quant_qdq") == "1"


def test_onnxruntime_for_cpus_says_what_to_install(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cuda, "_PROVIDER", "CUDAExecutionProvider")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match=r"pip install 'onnxruntime-gpu\[cuda,cudnn\]'$") as told:
        load(Engine.CUDA)
    assert "\n" not in str(told.value)


def test_it_never_goes_on_with_the_cpu_in_silence(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ONNX Runtime does where a library or the driver is missing."""
    monkeypatch.setattr(Cuda, "_PROVIDER", "CUDAExecutionProvider")
    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, providers: real(path, options, providers=there[1:]),
    )
    with pytest.raises(
        EngineError, match="expected an NVIDIA GPU for --engine cuda, got: "
    ) as told:
        load(Engine.CUDA)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("decision", [None, "first-look"])
def test_a_gpu_that_answers_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch, decision: str | None
) -> None:
    """Whatever the decision is: the recorded answer is that of the bundle's own."""
    inspector = Inspector.load(engine="cuda", decision=decision)
    assert inspector.engine == "cuda-int8"
    real = Cuda.run

    def wrong(self: Cuda, inputs: Any) -> dict[str, Any]:
        outputs = real(self, inputs)
        if "mask_logits" in outputs:
            outputs["mask_logits"][:, :, ::2] = -9
        return outputs

    monkeypatch.setattr(Cuda, "run", wrong)
    with pytest.raises(EngineError, match=r"expected of the GPU .* overlap the recorded") as told:
        Inspector.load(engine="cuda", decision=decision)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("for_cuda", [True, False])
@pytest.mark.parametrize("device", [True, False])
@pytest.mark.parametrize("openvino", [True, False])
def test_installed_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, for_cuda: bool, device: bool, openvino: bool
) -> None:
    """``cuda`` needs the package and a GPU: one package may serve machines with and without."""
    library = tmp_path / "capi/libonnxruntime_providers_cuda.so"
    library.parent.mkdir()
    if for_cuda:
        library.touch()
    if device:
        (tmp_path / "nvidiactl").touch()
    found = {"onnxruntime": SimpleNamespace(submodule_search_locations=[str(tmp_path)])}
    if openvino:
        found["openvino"] = SimpleNamespace()
    monkeypatch.setattr(runtime.util, "find_spec", found.get)
    monkeypatch.setattr(runtime, "_GPUS", (tmp_path / "nvidiactl",))
    assert installed_engines() == (
        Engine.ONNXRUNTIME,
        *([Engine.OPENVINO] if openvino else []),
        *([Engine.CUDA] if for_cuda and device else []),
    )


def test_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.util, "find_spec", lambda _: None)
    assert installed_engines() == ()


@pytest.mark.parametrize(
    ("installed", "versions"),
    [
        ({"onnxruntime": "1"}, ("1", "")),
        ({"onnxruntime-gpu": "2"}, ("2", "2")),
        ({}, ("", "")),
    ],
)
def test_versions_whatever_the_package_is_called(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], versions: tuple[str, str]
) -> None:
    def version(package: str) -> str:
        if package not in installed:
            raise metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(runtime.metadata, "version", version)
    assert (engine_version("onnxruntime"), engine_version("cuda")) == versions
    assert engine_version("openvino") == ""


# Cores -------------------------------------------------------------------------------------------


def test_available_cores_are_within_what_the_machine_has() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        assert available_cores() <= len(os.sched_getaffinity(0))


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Builds a system: cores by affinity, the process's groups, and files of control groups."""

    def build(affinity: int, own: str | None, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        if own is not None:
            (tmp_path / "own").write_text(own)
        monkeypatch.setattr(runtime, "_CONTROL_GROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(runtime, "_OWN_GROUPS", tmp_path / "own")
        monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _: set(range(affinity)))

    return build


@pytest.mark.parametrize("own", ["0::/\n", "0::/a/path/of/the/host\n", None])
@pytest.mark.parametrize(
    ("affinity", "quota", "cores"),
    [
        (8, "max 100000\n", 8),
        (8, "200000 100000\n", 2),
        (8, "150000 100000\n", 2),
        (8, "50000 100000\n", 1),
        (8, "1000 100000\n", 1),
        (2, "1600000 100000\n", 2),
        (3, "", 3),
        (3, "garbage", 3),
    ],
)
def test_cores_follow_affinity_and_quota(
    groups: Callable[..., None], own: str | None, affinity: int, quota: str, cores: int
) -> None:
    groups(affinity, own, {"cpu.max": quota})
    assert available_cores() == cores


V1 = "12:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\n0::/docker/1\n"


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        pytest.param(None, {}, 8, id="no control groups"),
        pytest.param(
            "0::/system.slice/line.service\n",
            {"system.slice/line.service/cpu.max": "300000 100000"},
            3,
            id="v2, a service's quota",
        ),
        pytest.param(
            "0::/a/b\n",
            {"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"},
            4,
            id="v2, of a group above",
        ),
        pytest.param(
            "0::/a/b\n",
            {"a/b/cpu.max": "500000 100000", "a/cpu.max": "600000 100000"},
            5,
            id="v2, the least counts",
        ),
        pytest.param(
            V1,
            {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            2,
            id="v1, inside of a container",
        ),
        pytest.param(
            V1,
            {
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "cpu/docker/1/cpu.cfs_quota_us": "600000\n",
                "cpu/docker/1/cpu.cfs_period_us": "200000\n",
            },
            3,
            id="v1, seen from outside",
        ),
        pytest.param(
            V1,
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            8,
            id="v1, unlimited",
        ),
        pytest.param(V1, {"cpu/cpu.cfs_quota_us": "100000\n"}, 8, id="v1, no period"),
        pytest.param("strange\n", {}, 8, id="strange groups"),
    ],
)
def test_cores_follow_the_quota_of_any_control_group(
    groups: Callable[..., None], own: str | None, files: dict[str, str], cores: int
) -> None:
    groups(8, own, files)
    assert available_cores() == cores


def test_cores_where_the_system_knows_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(runtime.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(runtime.os, "cpu_count", lambda: None)
    assert available_cores() == 1


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_nothing_is_written_or_sent_by_the_engine(tmp_path, name):
    """Engines would keep an id of the machine in the home folder, and tell their makers."""
    code = f"from steelsight.engine import Inspector; Inspector.load(engine='{name}', threads=1)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = [str(path) for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in written if "icrosoft" in path or "/intel/" in path] == []
