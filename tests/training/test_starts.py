import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from steelsight.errors import InputError
from steelsight.models.config import Arch, Network
from steelsight.models.res_unet import DefectNetwork, build_network
from steelsight.models.resnet import ResNet50Classifier, fold_rgb_to_grey
from steelsight.training.checkpoint import save_checkpoint
from steelsight.training.starts import (
    CONVERT_WARNING,
    KNOWN_STARTS,
    StartKind,
    convert_pth,
    load_start,
)

WIDTH = 0.125
COUNTER = "num_batches_tracked"


def network(types: int = 4, seed: int = 0, **settings: Any) -> DefectNetwork:
    torch.manual_seed(seed)
    net = build_network(types, Network(**{"width": WIDTH, **settings}))
    with torch.no_grad():  # BatchNorm that is not 0 and 1
        for name, tensor in net.state_dict().items():
            if ".running_" in name:
                tensor.uniform_(0.5, 2)
    return net


def narrow_resnet(in_channels: int = 3) -> dict[str, Tensor]:
    """torchvision's names, but narrow: what a test has time for."""
    encoder = network(seed=5).encoders[0].state_dict()
    state = {name: tensor.clone() for name, tensor in encoder.items()}
    if in_channels == 3:
        state["conv1.weight"] = torch.randn(8, 3, 7, 7)
    state |= {"fc.weight": torch.randn(1000, 256), "fc.bias": torch.randn(1000)}
    return state


def stored(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: t.contiguous().clone() for name, t in state.items()}, path, metadata)
    return path


def plain(net: DefectNetwork) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in net.state_dict().items() if not n.endswith(COUNTER)}


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


# What loads --------------------------------------------------------------------------------------


def test_random_leaves_the_network_as_it_is() -> None:
    net = network()
    before = plain(net)
    report = load_start(net, "random")
    assert (report.kind, report.path, report.sha256) == (StartKind.RANDOM, None, None)
    assert report.missing == tuple(before)
    assert not report.loaded + report.unused + report.notes
    assert equal(plain(net), before)


@pytest.mark.parametrize("arch", Arch)
@pytest.mark.parametrize("number", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_our_own_weights_load_whole_in_fp32(
    tmp_path: Path, arch: Arch, number: torch.dtype
) -> None:
    start, net = network(seed=1, arch=arch), network(seed=2, arch=arch)
    state = {name: tensor.to(number) for name, tensor in plain(start).items()}
    path = stored(tmp_path / "own.safetensors", state)
    report = load_start(net, path, sha256_of(path))
    assert report.kind.value == arch.value
    assert (report.path, report.sha256) == (path, sha256_of(path))
    assert report.loaded == tuple(plain(net))
    assert not report.missing + report.unused
    assert all(tensor.dtype == torch.float32 for tensor in plain(net).values())
    assert equal(plain(net), {name: tensor.float() for name, tensor in state.items()})


def test_shared_weights_start_both_of_two_networks(tmp_path: Path) -> None:
    start, net = network(seed=1), network(seed=2, arch="two")
    report = load_start(net, stored(tmp_path / "shared.safetensors", start.state_dict()))
    assert report.kind is StartKind.SHARED
    assert not report.missing + report.unused
    net.eval()
    start.eval()
    x = torch.randn(1, 1, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(net(x), start(x), strict=True))


def test_two_networks_do_not_start_the_shared_form(tmp_path: Path) -> None:
    path = stored(tmp_path / "two.safetensors", plain(network(arch="two")))
    refused(network(), path, "expected a start for the shared form.*--arch two")


@pytest.mark.parametrize("arch", Arch)
@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("upto", [1, 3, 4])
def test_a_resnet50_goes_into_all_encoders(
    tmp_path: Path, arch: Arch, in_channels: int, upto: int
) -> None:
    state = {
        name: tensor
        for name, tensor in narrow_resnet(in_channels).items()
        if not name.startswith("layer") or int(name[5]) <= upto
    }
    if upto < 4:
        del state["fc.weight"], state["fc.bias"]
    net = network(seed=2, arch=arch)
    before = plain(net)
    report = load_start(net, stored(tmp_path / "resnet.safetensors", state))
    assert report.kind is StartKind.RESNET
    expected = fold_rgb_to_grey(state) if in_channels == 3 else state
    for encoder in net.encoders:
        found = encoder.state_dict()
        for name in expected:
            if not name.startswith("fc."):
                assert torch.equal(found[name], expected[name]), name
    # All else is as it was.
    assert all(torch.equal(plain(net)[name], before[name]) for name in report.missing)
    assert set(report.loaded) | set(report.missing) == set(before)
    assert all("encoder." not in n or int(n.split("layer")[1][0]) > upto for n in report.missing)
    assert report.unused == (("fc.bias", "fc.weight") if upto == 4 else ())
    notes = " ".join(report.notes)
    assert ("folded to grey" in notes) == (in_channels == 3)
    assert ("normalised by 0.449 and 0.226" in notes) == (in_channels == 1)
    assert "names do not tell" in notes
    assert ("encoder.layer4" in notes) == (upto < 4)


@pytest.mark.parametrize("arch", Arch)
@pytest.mark.parametrize("stages", [2, 3])
def test_a_network_that_ends_early_takes_what_it_has_of_a_resnet50(
    tmp_path: Path, arch: Arch, stages: int
) -> None:
    state = narrow_resnet(1)
    net = network(seed=2, arch=arch, stages=stages)
    report = load_start(net, stored(tmp_path / "resnet.safetensors", state))
    deeper = {n for n in state if n.startswith("layer") and int(n[5]) > stages}
    assert set(report.unused) == {n for n in deeper if not n.endswith(COUNTER)} | {
        "fc.bias",
        "fc.weight",
    }
    for encoder in net.encoders:
        found = {n: t for n, t in encoder.state_dict().items() if not n.endswith(COUNTER)}
        assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())
    assert not [name for name in report.missing if "encoder." in name]


def test_a_network_that_ends_early_starts_from_a_whole_one_but_for_its_decoder(
    tmp_path: Path,
) -> None:
    whole, net = network(seed=1), network(seed=2, stages=2)
    before = plain(net)
    report = load_start(net, stored(tmp_path / "whole.safetensors", plain(whole)))
    after = plain(net)
    for name, tensor in after.items():
        expected = plain(whole) if name.startswith("encoder.") else before
        assert torch.equal(tensor, expected[name]), name
    assert {n.split(".")[0] for n in report.missing} == {
        "decoder",
        "segmentation_head",
        "classification_head",
        "classification_head_mil",
    }
    assert {"encoder.layer3.0.conv1.weight", "decoder.blocks.0.conv1.0.weight"} <= set(
        report.unused
    )


def test_a_network_that_ends_early_is_no_start_for_a_whole_one(tmp_path: Path) -> None:
    path = stored(tmp_path / "short.safetensors", plain(network(stages=2)))
    refused(network(), path, "expected all of encoder.layer3")


def test_a_whole_torchvision_resnet50_fits_the_full_network(tmp_path: Path) -> None:
    with torch.device("meta"):
        names = ResNet50Classifier(1000, 3).state_dict()
    # torchvision's own are the same names, see test_resnet.py.
    state = {n: torch.full(t.shape, 0.5, dtype=torch.float16) for n, t in names.items()}
    net = network(width=1, stride_on="v1.5")
    report = load_start(net, stored(tmp_path / "r50.safetensors", state, {"strides": "v1.5"}))
    assert not [name for name in report.missing if "encoder." in name]
    assert not any("names do not tell" in note for note in report.notes)


@pytest.mark.parametrize("arch", Arch)
def test_the_shipped_starts_load(shared_dir: Path, arch: Arch) -> None:
    net = network(width=1, arch=arch)
    counts = {}
    for name, known in KNOWN_STARTS.items():
        report = load_start(net, shared_dir / "weights" / name, known.sha256)
        counts[name] = len(report.loaded), len(report.unused)
        assert not any("is not the file" in note for note in report.notes)
        published = load_file(shared_dir / "weights" / name)
        if report.kind is StartKind.RESNET:
            grey = fold_rgb_to_grey({n: t.float() for n, t in published.items()})
            for encoder in net.encoders:
                found = encoder.state_dict()
                assert all(torch.equal(found[n], grey[n]) for n in grey)
            assert {n.split("encoder.")[1][:6] for n in report.missing if "encoder." in n} == {
                "layer4"
            }
        else:
            assert not report.missing
    encoder = len([n for n in net.encoders[0].state_dict() if not n.endswith(COUNTER)])
    whole = 301 + (encoder if arch is Arch.TWO else 0)
    assert list(counts.values()) == [(215 * len(net.encoders), 0), (whole, 0)]


def test_checkpoints_and_folders(tmp_path: Path) -> None:
    start = network(seed=1)
    averaged = {f"averaged.{n}": t for n, t in start.state_dict().items()}
    raw = {f"network.{n}": t + 1 for n, t in start.state_dict().items()}
    moments = {"optimiser.step": torch.tensor(3)}
    about = {"step": 7, "network": {"stride_on": "v1"}, "classes": ["scratch", "dent", "a", "b"]}
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run" / "last.safetensors", averaged | raw | moments, about)
    save_checkpoint(tmp_path / "run" / "best.safetensors", start.state_dict(), about)
    for path in (tmp_path / "run" / "last.safetensors", tmp_path / "run"):
        net = network(seed=2)
        report = load_start(net, path)
        assert equal(plain(net), plain(start))
        assert not report.unused + report.missing
        assert report.notes == ("its types, in order: scratch, dent, a, b",)
    assert report.path == tmp_path / "run" / "best.safetensors"
    save_checkpoint(tmp_path / "run" / "weights.safetensors", plain(start), about)
    assert load_start(network(), tmp_path / "run").path == tmp_path / "run" / "weights.safetensors"


def test_an_altered_file_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, plain(network()), {})
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    refused(network(), path, "whole checkpoint")


# What fits in part -------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", Arch)
def test_heads_of_another_number_of_types_start_new(tmp_path: Path, arch: Arch) -> None:
    net = network(types=3, seed=2, arch=arch)
    before = plain(net)
    report = load_start(net, stored(tmp_path / "own.safetensors", plain(network(seed=1))))
    assert len(report.missing) == 6
    assert all(
        "_head" in name and torch.equal(plain(net)[name], before[name]) for name in report.missing
    )
    assert len(report.unused) == 6
    assert sum("is not taken over" in note for note in report.notes) == 3
    told = next(note for note in report.notes if "classification_head is" in note)
    assert "5 x 256" in told or "5, this" in told


def test_a_finer_decoder_takes_over_the_coarser_ones_blocks(tmp_path: Path) -> None:
    """As the fast network is made from the shipped weights."""
    net = network(mask_stride=1, input_stride=2, residual=True, seed=2)
    start = network(seed=1, width=0.25)
    net = network(mask_stride=1, input_stride=2, residual=True, seed=2, width=0.25)
    report = load_start(net, stored(tmp_path / "own.safetensors", plain(start)))
    groups = {name.rsplit(".", 1)[0] for name in report.missing}
    assert all(
        "shortcut" in g
        or g.startswith(("decoder.blocks.3", "decoder.blocks.4", "segmentation_head"))
        for g in groups
    )
    assert set(report.unused) == {"segmentation_head.0.weight", "segmentation_head.0.bias"}
    coarse = network(seed=3, width=0.25)
    back = load_start(coarse, stored(tmp_path / "fine.safetensors", plain(net)))
    assert set(back.missing) == {"segmentation_head.0.weight", "segmentation_head.0.bias"}
    assert any("blocks.4" in name for name in back.unused)


def test_counters_do_not_matter(tmp_path: Path) -> None:
    state = network(seed=1).state_dict() | {"encoder.bn1.num_batches_tracked": torch.tensor([[7]])}
    report = load_start(network(), stored(tmp_path / "own.safetensors", state))
    assert not report.missing + report.unused


def test_a_known_name_with_other_content_is_noted(tmp_path: Path) -> None:
    path = tmp_path / next(iter(KNOWN_STARTS))
    report = load_start(network(), stored(path, narrow_resnet()))
    assert f"{path.name} is not the file that is known by this name" in report.notes


# What is refused ---------------------------------------------------------------------------------


def refused(net: DefectNetwork, start: str | Path, problem: str, sha256: str | None = None) -> None:
    """One line, and the network is as it was."""
    before = plain(net)
    with pytest.raises(InputError, match=problem) as caught:
        load_start(net, start, sha256)
    assert "\n" not in str(caught.value)
    assert equal(plain(net), before)


def _without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.__delitem__(name) and None


def _with(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.__setitem__(name, value)


def _poisoned(name: str, value: float) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        state[name].view(-1)[3] = value

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_without("bn1.running_mean"), "all of encoder.conv1, bn1.running_mean is not there"),
        (_without("layer2.1.bn2.running_var"), "layer2.1.bn2.running_var is not there"),
        (_without("layer4.2.conv3.weight"), "all of encoder.layer4"),
        (_poisoned("layer1.0.bn1.running_var", float("nan")), "NaN or infinity"),
        (_poisoned("conv1.weight", float("inf")), "'conv1.weight' holds NaN or infinity"),
        (_poisoned("layer3.0.bn1.running_var", -1.0), "variances of at least 0"),
        (_with("layer3.6.conv1.weight", torch.zeros(3)), "which a ResNet50 does not have"),
        (_with("conv1.weight", torch.zeros(16, 3, 7, 7)), "16 x 3 x 7 x 7.*network.width"),
        (_with("conv1.weight", torch.zeros(8, 4, 7, 7)), "8 x 4 x 7 x 7"),
        (_with("conv1.weight", torch.zeros(8)), "got 8;"),
        (_with("bn1.running_mean", torch.zeros(9)), "got 8 x 3 x 7 x 7"),
        (_with("layer1.0.conv1.weight", torch.zeros(1, dtype=torch.int8)), "floating-point.*int8"),
    ],
)
def test_a_resnet50_that_is_not_whole_or_none(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None], problem: str
) -> None:
    state = narrow_resnet()
    change(state)
    refused(network(), stored(tmp_path / "bad.safetensors", state), problem)


def test_stages_without_the_one_below(tmp_path: Path) -> None:
    state = {n: t for n, t in narrow_resnet().items() if not n.startswith("layer2.")}
    refused(network(), stored(tmp_path / "bad.safetensors", state), "layer3 without the one below")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("encoder.layer4.2.bn3.running_var", "all of encoder.layer4"),
        ("decoder.blocks.1.conv2.1.running_mean", "all of decoder.blocks.1"),
        ("classification_head_mil.3.bias", "all of classification_head_mil"),
    ],
)
def test_our_own_weights_with_a_hole(tmp_path: Path, name: str, problem: str) -> None:
    state = plain(network())
    del state[name]
    refused(network(), stored(tmp_path / "bad.safetensors", state), problem)


def test_our_own_encoder_without_its_last_stage(tmp_path: Path) -> None:
    state = {n: t for n, t in plain(network()).items() if "layer4" not in n}
    refused(network(), stored(tmp_path / "bad.safetensors", state), "all of encoder.layer4")


def test_another_width(tmp_path: Path) -> None:
    path = stored(tmp_path / "own.safetensors", plain(network()))
    refused(network(width=0.25), path, "encoder.conv1.weight as 16 x 1.*got 8 x 1.*network.width")


@pytest.mark.parametrize("ours", [True, False])
def test_the_other_stride_position_if_the_file_tells(tmp_path: Path, ours: bool) -> None:
    path = tmp_path / "own.safetensors"
    if ours:
        save_checkpoint(path, plain(network()), {"network": {"stride_on": "v1.5"}})
    else:
        stored(path, plain(network()), {"strides": "v1.5: stride 2 on the 3x3"})
    refused(network(), path, "for v1 strides, these are for v1.5; use --set network.stride_on=v1.5")
    assert not load_start(network(stride_on="v1.5"), path).missing


def test_the_sha256_is_checked_before_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    path.write_bytes(b"no safetensors at all")
    refused(network(), path, f"sha256 {'0' * 64}, got {sha256_of(path)}", "0" * 64)
    good = stored(tmp_path / "good.safetensors", plain(network()))
    assert not load_start(network(), good, sha256_of(good).upper()).missing
    with pytest.raises(InputError, match="no sha256 for a random start"):
        load_start(network(), "random", "0" * 64)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "expected a safetensors file, got"),
        (b"{}" * 50, "expected a safetensors file, got"),
        (b"PK\x03\x04" + b"\0" * 50, "a pickle under another name.*convert-weights"),
        (pickle.dumps({"conv1.weight": 1}, 2), "a pickle under another name"),
    ],
)
def test_files_that_are_no_safetensors(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "start.safetensors"
    path.write_bytes(content)
    refused(network(), path, problem)


def test_foreign_tensors_are_refused_by_name(tmp_path: Path) -> None:
    path = stored(tmp_path / "vit.safetensors", {"blocks.0.attn.qkv.weight": torch.zeros(3)})
    refused(network(), path, "ResNet50 by torchvision's names or .* such as blocks.0.attn.qkv")
    refused(network(), stored(tmp_path / "none.safetensors", {}), "such as none")


def test_missing_files_say_what_to_put_where(tmp_path: Path) -> None:
    for name, known in KNOWN_STARTS.items():
        refused(network(), tmp_path / name, f"at {tmp_path}/{name}, .*put it there.*{known.sha256}")
        assert "://" not in known.origin
    path = tmp_path / "other.safetensors"
    refused(network(), path, "no such file; give another path, or random$")
    refused(network(), path, f"its sha256 is {'a' * 64}$", "a" * 64)
    refused(network(), tmp_path / "nothing", "no such file")
    refused(network(), tmp_path, "weights.safetensors or best.safetensors in .*there is none")


@pytest.mark.parametrize("name", ["r50.pth", "r50.pt", "r50.ckpt", "r50.bin"])
def test_pickles_are_never_opened(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save(narrow_resnet(), path)
    refused(network(), path, f"steelsight model convert-weights {name} r50.safetensors")


# Conversion --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapping", ["", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_converted_pth_loads_as_its_state_dict(
    tmp_path: Path, wrapping: str, prefix: str, zipped: bool
) -> None:
    state = narrow_resnet()
    state["layer1.0.conv2.weight"] = state["layer1.0.conv2.weight"].transpose(2, 3)
    held: Any = {prefix + name: tensor for name, tensor in state.items()}
    source, target = tmp_path / "r50.pth", tmp_path / "r50.safetensors"
    torch.save(
        {wrapping: held, "epoch": 3} if wrapping else held,
        source,
        _use_new_zipfile_serialization=zipped,
    )
    sha256 = convert_pth(source, target)
    assert sha256 == sha256_of(target)
    assert equal(load_file(target), state)
    assert load_start(network(), target, sha256).kind is StartKind.RESNET
    again = tmp_path / "again.safetensors"
    assert convert_pth(source, again) == sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [source.name, target.name, again.name]
    )


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_of_a_pickle_runs(tmp_path: Path, zipped: bool) -> None:
    sprung = tmp_path / "sprung"
    source = tmp_path / "evil.pth"
    torch.save(narrow_resnet() | {"x": Trap(sprung)}, source, _use_new_zipfile_serialization=zipped)
    not_converted(source, "nothing else is opened because it could run code")
    assert not sprung.exists()
    torch.load(source, weights_only=False)  # the trap works
    assert sprung.exists()


def not_converted(source: Path, problem: str) -> None:
    target = source.with_suffix(".safetensors")
    before = sorted(source.parent.iterdir())
    with pytest.raises(InputError, match=problem) as caught:
        convert_pth(source, target)
    assert "\n" not in str(caught.value)
    assert sorted(source.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("held", "problem"),
    [
        ([1, 2], "expected a state dict, got 'list'"),
        ({}, "expected a state dict"),
        ({"conv1.weight": torch.zeros(3), "epoch": 3}, "got 'int' at 'epoch'"),
        ({1: torch.zeros(3)}, "at '1'"),
        ({"conv1.weight": torch.eye(3).to_sparse()}, "tensors by name only"),
        ({"conv1.weight": torch.full((3,), float("nan"))}, "NaN or infinity"),
        ({"features.0.weight": torch.zeros(3)}, "expected a ResNet50"),
    ],
)
def test_what_is_no_state_dict_of_ours_is_not_converted(
    tmp_path: Path, held: object, problem: str
) -> None:
    torch.save(held, tmp_path / "held.pth")
    not_converted(tmp_path / "held.pth", problem)


def test_conversion_needs_a_readable_source_and_a_new_target(tmp_path: Path) -> None:
    source = tmp_path / "r50.pth"
    not_converted(source, "there is no such file")
    source.write_bytes(b"garbage")
    not_converted(source, "expected a state dict of tensors")
    torch.save(narrow_resnet(), source)
    for target in (source, tmp_path / "r50.bin"):
        with pytest.raises(InputError, match=r"new file that ends in \.safetensors"):
            convert_pth(source, target)
    taken = stored(tmp_path / "taken.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(InputError, match="which exists"):
        convert_pth(source, taken)
    with pytest.raises(InputError, match="could not be written"):
        convert_pth(source, tmp_path / "no" / "r50.safetensors")


def test_the_warning_says_what_the_danger_is() -> None:
    assert "pickle" in CONVERT_WARNING
    assert "trust" in CONVERT_WARNING
    assert json.dumps(CONVERT_WARNING).count("\\n") == 0
