"""A checkpoint is whole or refused, and training goes on from it with the same bits."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from steelsight.errors import InputError
from steelsight.training import checkpoint
from steelsight.training.checkpoint import (
    flatten_optimiser,
    load_checkpoint,
    remove_partials,
    restore_optimiser,
    save_checkpoint,
)

TENSORS = {
    "network.weight": torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2),
    "network.count": torch.tensor(7),
    "rng.cpu": torch.arange(5, dtype=torch.uint8),
    "half": torch.tensor([1.5, -0.0, float("nan")], dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
    "flag": torch.tensor([True, False]),
}
STATE = {"step": 50, "best": [0.1 + 0.2, -1.0], "name": "ä\n", "none": None}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    return path


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (found[name], tensor)]
        assert torch.equal(*bits), name


def one_line(caught, *parts):
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


# Whole ------------------------------------------------------------------------------------------


def test_everything_comes_back_and_any_safetensors_reader_opens_it(saved):
    tensors, state = load_checkpoint(saved)
    assert_equal(tensors, TENSORS)
    assert state == STATE
    assert_equal(load_file(saved), TENSORS)
    with safe_open(saved, "pt") as file:
        assert json.loads(file.metadata()["steelsight"])["format"] == 1
    assert [p.name for p in saved.parent.iterdir()] == ["last.safetensors"]


def test_layout_and_views_do_not_matter(tmp_path):
    base = torch.randn(4, 6, 5, 3)
    tensors = {"last": base.to(memory_format=torch.channels_last), "part": base[:, ::2].mT}
    save_checkpoint(tmp_path / "a.safetensors", tensors, {})
    assert_equal(load_checkpoint(tmp_path / "a.safetensors")[0], tensors)


def test_loaded_tensors_do_not_depend_on_the_file(saved):
    tensors, _ = load_checkpoint(saved)
    with saved.open("r+b") as file:
        file.truncate(0)
    tensors["network.weight"] += 1
    assert torch.equal(tensors["network.weight"], TENSORS["network.weight"] + 1)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_any_state_comes_back_exactly(tmp_path_factory, state):
    path = tmp_path_factory.getbasetemp() / "state.safetensors"
    save_checkpoint(path, {"a": torch.zeros(1)}, state)
    assert load_checkpoint(path)[1] == state


def test_stale_partials_are_removed_and_do_not_disturb(saved):
    partial = saved.with_name(".last.safetensors.partial")
    partial.write_bytes(b"half")
    assert load_checkpoint(saved)[1] == STATE
    save_checkpoint(saved, TENSORS, {"step": 51})
    assert not partial.exists()
    partial.write_bytes(b"half")
    remove_partials(saved.parent)
    assert [p.name for p in saved.parent.iterdir()] == ["last.safetensors"]


# Refused ----------------------------------------------------------------------------------------


def test_every_altered_bit_is_found(saved):
    """One bit in each byte: of the length, the header, the state, the tensors."""
    whole = saved.read_bytes()
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << place % 8
        saved.write_bytes(broken)
        try:
            found = load_checkpoint(saved)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most raise
        else:  # a blank of the header's padding, or of its JSON, became another one
            assert_equal(found[0], TENSORS)
            assert found[1] == STATE


def test_truncated_files_are_refused_at_every_length(saved):
    whole = saved.read_bytes()
    for length in range(len(whole)):
        saved.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"expected a whole checkpoint .* backup"):
            load_checkpoint(saved)
    saved.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match="whole checkpoint"):
        load_checkpoint(saved)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match=r"there is none; check the path, or start a new run"):
        load_checkpoint(path)
    with pytest.raises(InputError, match="whole checkpoint"):
        load_checkpoint(tmp_path)
    path.write_text("not at all")
    with pytest.raises(InputError, match="whole checkpoint"):
        load_checkpoint(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="weights alone") as caught:
        load_checkpoint(path)
    one_line(caught, str(path))
    for head in ("", "[]", "{}", "1", '{"format": 2, "state": "{}", "sha256": ""}', "[" * 10**5):
        save_file({"a": torch.zeros(1)}, path, {"steelsight": head})
        with pytest.raises(InputError, match="whole checkpoint"):
            load_checkpoint(path)


# A disk that is full, or lies -------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_checkpoint(saved):
    """The process's limit on file sizes stands for the disk: EFBIG instead of ENOSPC."""
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError) as caught:
            save_checkpoint(saved, {"a": torch.zeros(100_000)}, {"step": 51})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    one_line(caught, "File too large", "needs 0.4 MB", "are free", "--resume", str(saved))
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["last.safetensors"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_at_the_end_leaves_the_old_checkpoint(saved, monkeypatch, number, call):
    before = saved.read_bytes()

    def fail(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(InputError, match="could not be written") as caught:
        save_checkpoint(saved, TENSORS, {"step": 51})
    one_line(caught, os.strerror(number))
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["last.safetensors"]


def test_a_disk_that_gives_back_other_bytes_is_found_out(saved, monkeypatch):
    before = saved.read_bytes()
    to_disk = checkpoint._to_disk

    def spoil(path):
        to_disk(path)
        if path.suffix == ".partial":
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)

    monkeypatch.setattr(checkpoint, "_to_disk", spoil)
    with pytest.raises(InputError, match="does not fit"):
        save_checkpoint(saved, TENSORS, {"step": 51})
    assert saved.read_bytes() == before


def test_file_then_folder_reach_the_disk_around_the_replacement(saved, monkeypatch):
    """Without the first, a power cut leaves an empty file; without the second, the old name."""
    order = []
    to_disk, replace = checkpoint._to_disk, Path.replace
    monkeypatch.setattr(checkpoint, "_to_disk", lambda p: (order.append(p.name), to_disk(p)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (order.append("replace"), replace(a, b))[1])
    save_checkpoint(saved, TENSORS, STATE)
    assert order == [".last.safetensors.partial", "replace", saved.parent.name]


# Killed -----------------------------------------------------------------------------------------

WRITER = """
torch.set_num_threads(1)
weights = torch.zeros(1_250_000)
for step in range(first, 1_000_000):
    weights.fill_(step)
    save_checkpoint(path, {"weights": weights}, {"step": step})
    told.send(step)
"""


def kill_again_and_again(path, kills, seed=0):
    """Kills a writer ``kills`` times at random moments; each time the file must be whole.

    Returns:
        How many kills hit in the middle of writing.
    """
    chance = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "steelsight.training.checkpoint"])
    step, torn = 0, 0
    for _ in range(kills):
        ours, theirs = context.Pipe(duplex=False)
        names = {"path": path, "first": step + 1, "told": theirs}
        code = f"import torch\nfrom {checkpoint.__name__} import save_checkpoint\n{WRITER}"
        writer = context.Process(target=exec, args=(code, names))
        writer.start()
        theirs.close()
        told = ours.recv()  # it is up, and at work on the next one
        time.sleep(chance.uniform(0, 0.15))
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        with contextlib.suppress(EOFError, OSError):
            while True:
                told = ours.recv()
        ours.close()
        torn += path.with_name(f".{path.name}.partial").exists()
        tensors, state = load_checkpoint(path)
        # What was reported done is there; at most the one after it as well.
        assert told <= state["step"] <= told + 1
        assert bool((tensors["weights"] == state["step"]).all())
        step = state["step"]
    return torn


def test_a_whole_checkpoint_survives_20_kills(tmp_path):
    torn = kill_again_and_again(tmp_path / "last.safetensors", 20)
    assert torn > 0  # some kills did hit in the middle of writing


@pytest.mark.soak
def test_a_whole_checkpoint_survives_100_kills(tmp_path):
    assert kill_again_and_again(tmp_path / "last.safetensors", 100, seed=1) > 0


# Optimiser and generators -----------------------------------------------------------------------


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 2, 1)
    ).to(memory_format=torch.channels_last)


def adamw(net):
    matrices = [p for p in net.parameters() if p.ndim > 1]
    rest = [p for p in net.parameters() if p.ndim <= 1]
    return torch.optim.AdamW([{"params": rest, "weight_decay": 0.0}, {"params": matrices}], lr=0.01)


def learn(net, optimiser, steps):
    for step in steps:
        x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(step))
        torch.manual_seed(step)  # of dropout, as the loop does it
        optimiser.zero_grad()
        net(x).square().mean().backward()
        optimiser.step()


def test_training_goes_on_with_the_same_bits(tmp_path):
    path = tmp_path / "last.safetensors"
    straight = network()
    optimiser = adamw(straight)
    straight[4].bias.requires_grad_(False)  # never stepped: no state
    learn(straight, optimiser, range(4))
    packed = {
        **straight.state_dict(),
        **flatten_optimiser(optimiser, straight.named_parameters()),
    }
    assert packed["optimiser.0.weight.exp_avg"].shape == straight[0].weight.shape
    assert not any("4.bias" in name for name in packed if name.startswith("optimiser"))
    save_checkpoint(path, packed, {"step": 4})
    learn(straight, optimiser, range(4, 8))

    torch.manual_seed(99)
    tensors, state = load_checkpoint(path)
    resumed = network()
    other = adamw(resumed)
    resumed[4].bias.requires_grad_(False)
    names = resumed.state_dict().keys()
    resumed.load_state_dict({name: tensors[name] for name in names})
    restore_optimiser(other, resumed.named_parameters(), tensors)
    assert other.state[resumed[0].weight]["exp_avg"].is_contiguous(
        memory_format=torch.channels_last
    )
    learn(resumed, other, range(state["step"], 8))

    assert_equal(resumed.state_dict(), straight.state_dict())
    assert_equal(
        flatten_optimiser(other, resumed.named_parameters()),
        flatten_optimiser(optimiser, straight.named_parameters()),
    )
    # And it can fail: without the optimiser's state the weights differ.
    forgetful = network()
    forgetful.load_state_dict({name: tensors[name] for name in names})
    learn(forgetful, adamw(forgetful), range(4, 8))
    assert not torch.equal(forgetful[0].weight, straight[0].weight)


def test_rates_are_left_to_the_schedule():
    net = network()
    optimiser = adamw(net)
    learn(net, optimiser, range(2))
    tensors = flatten_optimiser(optimiser, net.named_parameters())
    other = adamw(net)
    other.param_groups[0]["lr"] = 0.5
    other.param_groups[0]["peak_lr"] = 0.7
    restore_optimiser(other, net.named_parameters(), tensors)
    assert [(g["lr"], g.get("peak_lr")) for g in other.param_groups] == [(0.5, 0.7), (0.01, None)]
    assert other.param_groups[1]["params"][0] is net[0].weight


def test_state_of_another_network_is_refused():
    net, larger = network(), nn.Sequential(nn.Conv2d(3, 9, 3))
    optimiser = adamw(net)
    learn(net, optimiser, range(1))
    tensors = flatten_optimiser(optimiser, net.named_parameters())
    with pytest.raises(InputError, match=r"another network; resume with") as caught:
        restore_optimiser(adamw(larger), larger.named_parameters(), tensors)
    one_line(caught, "0.weight", "[9, 3, 3, 3]", "[8, 3, 3, 3]")
    fitting = {k: v for k, v in tensors.items() if not k.startswith("optimiser.0.")}
    with pytest.raises(InputError, match=r"such as 1\.bias"):
        restore_optimiser(adamw(larger), larger.named_parameters(), fitting)
