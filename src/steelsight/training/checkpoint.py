"""Checkpoints: one safetensors file that is complete and proven, or not there at all.

A checkpoint is written beside its place, flushed to the disk, read back the way a resumed run reads
it, and only then put in place of the one before. Whatever kills the process, the file under the
name is a whole checkpoint: the old one or the new one.

The file is plain safetensors (https://huggingface.co/docs/safetensors), so any tool opens it. Its
metadata holds one key, ``steelsight``: JSON with the format's version, the state of the run (step,
best figure, ...) and the sha256 of everything in the file.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from steelsight.errors import InputError

FORMAT = 1
KEY = "steelsight"
"""Of the metadata."""
OPTIMISER = "optimiser."
"""What the names of these tensors begin with."""
PARTIAL = ".partial"
"""What the names of files end with that are not whole yet."""


# Writing and reading -----------------------------------------------------------------------------


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes a checkpoint to ``path`` in one piece; the one before stays until it is proven.

    Args:
        path: ``last.safetensors`` or ``best.safetensors`` in a folder that exists. One process at
            a time writes there.
        tensors: weights and optimiser by name; any device, layout and number type.
        state: values that JSON can hold; numbers come back exactly, tuples as lists.

    Raises:
        InputError: the disk is full or failing; the old checkpoint is as it was.
    """
    partial = path.with_name(f".{path.name}{PARTIAL}")
    packed = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    state_json = json.dumps(state)
    sha256 = _sha256(packed, state_json)
    head = json.dumps({"format": FORMAT, "state": state_json, "sha256": sha256})
    problem = ""
    try:
        partial.unlink(missing_ok=True)
        save_file(packed, partial, {KEY: head})
        _to_disk(partial)
        if _read(partial)[2] == sha256:
            partial.replace(path)
            _to_disk(path.parent)
        else:
            problem = "what was read back differs from what was written"
    except (OSError, SafetensorError, _BrokenError) as error:
        problem = " ".join(str(error).split())
    finally:
        partial.unlink(missing_ok=True)
    if problem:
        size = sum(t.nbytes for t in packed.values()) + len(head)
        raise InputError(
            f"{path}: the checkpoint could not be written ({problem}); it needs"
            f" {_megabytes(size)} on this disk, {_free(path.parent)} are free: make room or check"
            " the disk, then go on with --resume; a checkpoint written before is as it was"
        )


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint and proves that it is whole.

    Args:
        path: as written by :func:`save_checkpoint`.

    Returns:
        Tensors by name, on the CPU and free of the file, and the state.

    Raises:
        InputError: no file, truncated, altered, or none of ours.
    """
    try:
        tensors, state, _ = _read(path)
    except FileNotFoundError:
        raise InputError(
            f"expected a checkpoint at {path}, there is none; check the path, or start a new run"
        ) from None
    except (OSError, SafetensorError, _BrokenError) as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"{path}: expected a whole checkpoint of this program, got: {said}; take the file from"
            " a backup, or start a new run in another folder"
        ) from None
    return {name: t.clone() for name, t in tensors.items()}, state


def remove_partials(folder: Path) -> None:
    """Removes what killed processes left half-written; only for the owner of the folder."""
    for left in folder.glob(f".*{PARTIAL}"):
        left.unlink(missing_ok=True)


class _BrokenError(Exception):
    """The file is safetensors, but no checkpoint, or not as it was written."""


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors that still lie in the file, the state, and the proven sha256."""
    with safe_open(path, framework="pt") as file:
        head_json = (file.metadata() or {}).get(KEY)
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    if head_json is None:
        raise _BrokenError(f"a safetensors file without {KEY!r} in its metadata (weights alone?)")
    try:
        head = json.loads(head_json)
        version, state_json, sha256 = head["format"], head["state"], head["sha256"]
        if version != FORMAT:
            raise _BrokenError(f"format {version!r}, this version reads {FORMAT}")
        if _sha256(tensors, state_json) != sha256:
            raise _BrokenError("other content than was written (its sha256 does not fit)")
        state = json.loads(state_json)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _BrokenError("unreadable metadata (altered)") from error
    if not isinstance(state, dict):
        raise _BrokenError("a state that is no object")
    return tensors, state, sha256


def _sha256(tensors: Mapping[str, Tensor], state_json: str) -> str:
    """Over the state and, in the order of their names, name, type, shape and bytes of tensors."""
    digest = hashlib.sha256(f"{len(state_json)}:{state_json}".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _to_disk(path: Path) -> None:
    """Flushes a file or folder; a file then leaves the memory, so that reading it is a test."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise") and path.is_file():
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 100e6 else f"{size / 1e6:,.0f} MB"


def _free(folder: Path) -> str:
    try:
        return _megabytes(shutil.disk_usage(folder).free)
    except OSError:
        return "unknown"


# The optimiser -----------------------------------------------------------------------------------


def flatten_optimiser(
    optimiser: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: ``optimiser.<parameter>.exp_avg`` and so on.

    Rates and the like are not in it: they are functions of the step. Parameters that have not been
    stepped yet have no state.

    Args:
        optimiser: ``AdamW``, or any other whose state per parameter is tensors.
        named_parameters: of the network, as ``network.named_parameters()`` gives them.
    """
    flat = {}
    for name, parameter in named_parameters:
        for what, value in optimiser.state.get(parameter, {}).items():
            flat[f"{OPTIMISER}{name}.{what}"] = value
    return flat


def restore_optimiser(
    optimiser: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    tensors: Mapping[str, Tensor],
) -> None:
    """Puts back what :func:`flatten_optimiser` gave; further steps have the same bits.

    Args:
        optimiser: with the same parameters; its rates are left as they are.
        named_parameters: of the network.
        tensors: of a checkpoint; those of other names are ignored.

    Raises:
        InputError: the state belongs to another network.
    """
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(OPTIMISER):
            name, what = key.removeprefix(OPTIMISER).rsplit(".", 1)
            by_name.setdefault(name, {})[what] = tensor
    optimised = [p for group in optimiser.param_groups for p in group["params"]]
    index_of = {id(parameter): index for index, parameter in enumerate(optimised)}
    state: dict[int, dict[str, Tensor]] = {}
    for name, parameter in named_parameters:
        found = by_name.pop(name, None)
        if found is None or id(parameter) not in index_of:
            continue
        values = {}
        for what, tensor in found.items():
            if tensor.ndim == 0:  # the count of steps
                values[what] = tensor.clone()
                continue
            if tensor.shape != parameter.shape:
                raise InputError(
                    f"expected the optimiser's {what} of {name} in shape {list(parameter.shape)},"
                    f" the checkpoint holds {list(tensor.shape)}: it belongs to another network;"
                    " resume with the settings of the run"
                )
            # In the parameter's own layout (channels_last), so that the same kernels run.
            values[what] = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor).detach()
        state[index_of[id(parameter)]] = values
    if by_name:
        raise InputError(
            f"expected optimiser state of this network's parameters, the checkpoint holds it for"
            f" {len(by_name)} others, such as {min(by_name)}: resume with the settings of the run"
        )
    optimiser.load_state_dict(
        {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
    )
