"""What a network begins with: random weights, an ImageNet ResNet50, or a trained network of ours.

Starts are files that lie here already, given by path and told apart by the names of the tensors in
them; nothing is ever downloaded. A file is checked as a whole before the first weight changes.

Only safetensors (https://huggingface.co/docs/safetensors) are opened: plain numbers with names. A
``.pth`` is a Python pickle, which can run code when it is opened; :func:`convert_pth` turns one
into safetensors, once, without running any.
"""

import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import filterfalse
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from steelsight.data.labels import shown
from steelsight.errors import InputError, first_names
from steelsight.models.res_unet import DefectNetwork, TwoNetworks
from steelsight.models.resnet import STAGES, StrideOn, fold_rgb_to_grey
from steelsight.training.checkpoint import KEY, load_checkpoint

RANDOM = "random"
WEIGHT_FILES = ("weights.safetensors", "best.safetensors")
"""What is taken from a folder: a bundle's weights, a run's best ones."""

CONVERT_COMMAND = "steelsight model convert-weights"
CONVERT_WARNING = (
    "A .pth file is a Python pickle: opened in the usual way, it runs whatever code its author put"
    " into it. It is read here by torch's restricted reader, which builds tensors only; that reader"
    " has had security holes. Convert only files from a source you trust, compare the sha256 with"
    " the publisher's, and use the .safetensors from then on."
)


class KnownStart(NamedTuple):
    """A file that many will want to start from: its sha256, and where it comes from, in words."""

    sha256: str
    origin: str


KNOWN_STARTS = {
    "resnet50_imagenet_conv1_layer3.safetensors": KnownStart(
        "b8a1c65f92240e6161b2359141d15ac534c03ec994cfac23281b22bb0b8323fb",
        "conv1 to layer3 of the ImageNet ResNet50 v1 of Keras Applications (MIT); it comes with the"
        " project's shared weights, not with the package",
    ),
    "resunet50_severstal.safetensors": KnownStart(
        "140cde647d0320b46c7085b7fb81e0c03f00c426e4e5da3946e8e879d7c64b3f",
        "the shared form trained on Severstal frames (research use); it comes with the project's"
        " shared weights, not with the package",
    ),
}


class StartKind(StrEnum):
    """What a start is."""

    RANDOM = "random"
    RESNET = "resnet50"
    """A ResNet50 by torchvision's names, whole or from conv1 up to some stage."""
    SHARED = "shared"
    """A network of ours in the shared form."""
    TWO = "two"
    """A network of ours in the two-network form."""


@dataclass(frozen=True, slots=True)
class StartReport:
    """What came of a start.

    Attributes:
        kind: what the file is.
        path: the file that was read; ``None`` for random weights.
        sha256: of that file.
        loaded: names of the network's parameters and statistics that came from it.
        missing: names of those that stay random.
        unused: names in the file that found no place, such as ``fc.weight``.
        notes: what was done or could not be known, one line each, for people.
    """

    kind: StartKind
    path: Path | None
    sha256: str | None
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...]


def load_start(network: DefectNetwork, start: str | Path, sha256: str | None = None) -> StartReport:
    """Loads start weights into a network, in fp32, whatever number type they are stored in.

    Args:
        network: as built, with random weights; unchanged if an error is raised.
        start: ``random``; a ``.safetensors`` file with a ResNet50 by torchvision's names or with a
            network of ours; or a folder that holds one: a bundle with weights, or a run.
        sha256: what the file must have, checked before anything else is.

    Returns:
        What was loaded and what was not. Heads that are made for another number of types or
        another mask resolution are left out and stay random.

    Raises:
        InputError: no file, another sha256, no start, or one that does not fit; one line.
    """
    if str(start) == RANDOM:
        if sha256:
            raise InputError("expected no sha256 for a random start; leave it out, or give a file")
        return StartReport(StartKind.RANDOM, None, None, (), tuple(_shapes(network)), (), ())
    file = _read(Path(start), sha256)
    kind, tensors = _recognised(file.tensors, file.path)
    if kind is StartKind.TWO and not isinstance(network, TwoNetworks):
        raise InputError(
            f"{file.path}: expected a start for the shared form, this one is of two networks with"
            " an encoder each; use --arch two, or start from a ResNet50"
        )
    _check_numbers(tensors, file.path)
    notes = [*_file_notes(file), *_stride_notes(file, network)]
    if kind is StartKind.RESNET:
        tensors = _as_grey(tensors, network, notes)
    sources = _sources(kind, tensors, network, file.path)
    shapes = _shapes(network)
    misfits = _misfits(kind, tensors, sources, shapes, file.path)
    notes += [f"{group} is not taken over: {reason}" for group, reason in misfits.items()]
    sources = {name: source for name, source in sources.items() if _group(name) not in misfits}
    missing = tuple(name for name in shapes if name not in sources)
    if missing:
        notes.append(f"new, with random weights: {', '.join(dict.fromkeys(map(_group, missing)))}")
    network.load_state_dict(
        {name: tensors[source].float() for name, source in sources.items()}, strict=False
    )
    loaded = tuple(name for name in shapes if name in sources)
    unused = sorted(set(filterfalse(_is_counter, tensors)) - set(sources.values()))
    return StartReport(kind, file.path, file.sha256, loaded, missing, tuple(unused), tuple(notes))


# The file ----------------------------------------------------------------------------------------


class _File(NamedTuple):
    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def _read(path: Path, sha256: str | None) -> _File:
    if path.is_dir():
        held = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        if not held:
            raise InputError(
                f"expected {' or '.join(WEIGHT_FILES)} in {path}, there is none (bundles hold"
                " weights only if they were exported with them); give a .safetensors file"
            )
        path = held[0]
    if path.suffix != ".safetensors" and (path.suffix or path.exists()):
        raise InputError(
            f"expected random, a .safetensors file or a folder that holds one, got {path}; convert"
            f" other weights once: {CONVERT_COMMAND} {path.name} {path.stem}.safetensors"
        )
    known = KNOWN_STARTS.get(path.name)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        wanted = sha256 or (known.sha256 if known else "")
        raise InputError(
            f"expected start weights at {path}, there is no such file; "
            + (f"put it there: {known.origin}" if known else "give another path, or random")
            + (f"; its sha256 is {wanted}" if wanted else "")
        ) from None
    except OSError as error:
        raise InputError(
            f"expected start weights at {path}, could not read them ({error.strerror}); check the"
            " path and its permissions"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if sha256 and found != sha256.lower():
        raise InputError(
            f"{path}: expected a file with sha256 {sha256}, got {found}; take the right file, or"
            " give its sha256"
        )
    try:
        tensors = safetensors.torch.load(content)
    except Exception as error:  # safetensors raises its own, undocumented types
        pickled = content[:2] in (b"PK", b"\x80\x02")
        said = "a pickle under another name" if pickled else " ".join(str(error).split())
        raise InputError(
            f"{path}: expected a safetensors file, got: {said}; take the file again, or convert a"
            f" .pth with {CONVERT_COMMAND}"
        ) from None
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    if KEY in metadata:  # of ours: holds a hash of all that is in it
        tensors, _ = load_checkpoint(path)
    return _File(path, found, tensors, metadata)


def _recognised(tensors: Mapping[str, Tensor], path: Path) -> tuple[StartKind, dict[str, Tensor]]:
    """What a file is, and its weights by the names of that kind."""
    for prefix in ("averaged.", "network."):  # a checkpoint: the weights that are validated
        inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        if inside:
            tensors = inside
            break
    for kind, sign in (
        (StartKind.TWO, "classifier.encoder.conv1.weight"),
        (StartKind.SHARED, "encoder.conv1.weight"),
        (StartKind.RESNET, "conv1.weight"),
    ):
        if sign in tensors:
            return kind, dict(tensors)
    raise InputError(
        f"{path}: expected a ResNet50 by torchvision's names or a network of ours, got tensors such"
        f" as {first_names(sorted(tensors), 3) or 'none'}; take another file"
    )


def _check_numbers(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if _is_counter(name):
            continue
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise InputError(
                f"{path}: expected floating-point numbers in {shown(name)}, got"
                f" {str(tensor.dtype).removeprefix('torch.')}; take weights before quantisation"
            )
        if not tensor.isfinite().all():
            raise InputError(
                f"{path}: expected finite numbers, {shown(name)} holds NaN or infinity; take"
                " another file, this training had failed"
            )
        if name.endswith("running_var") and (tensor < 0).any():
            raise InputError(
                f"{path}: expected variances of at least 0, {shown(name)} holds a negative one;"
                " take another file, this one is damaged"
            )


def _file_notes(file: _File) -> list[str]:
    notes = []
    known = KNOWN_STARTS.get(file.path.name)
    if known and known.sha256 != file.sha256:
        notes.append(f"{file.path.name} is not the file that is known by this name")
    classes = _about(file).get("classes")
    if isinstance(classes, list):
        notes.append(f"its types, in order: {first_names(map(str, classes))}")
    return notes


def _stride_notes(file: _File, network: DefectNetwork) -> list[str]:
    """Weights for one position of the strides load into the other and are of little use there.

    Raises:
        InputError: the file says that it is for the other.
    """
    ours = network.encoders[0].stride_on
    settings = _about(file).get("network")
    said = settings.get("stride_on") if isinstance(settings, dict) else None
    theirs = said or file.metadata.get("strides", "").partition(":")[0]
    if theirs == ours:
        return []
    if theirs in tuple(StrideOn):
        raise InputError(
            f"{file.path}: expected weights for {ours} strides, these are for {theirs}; use"
            f" --set network.stride_on={theirs}"
        )
    return [
        f"taken as weights for {ours} strides: names do not tell. Keras has v1, torchvision v1.5"
        " (--set network.stride_on=...); the wrong one loads, but starts far worse"
    ]


def _about(file: _File) -> dict[str, object]:
    """What training noted in a file of ours."""
    try:
        head = json.loads(file.metadata.get(KEY, "{}"))
        about = json.loads(head["state"])
    except (ValueError, TypeError, KeyError):
        return {}
    return about if isinstance(about, dict) else {}


# Finding places ----------------------------------------------------------------------------------


_GROUPS = re.compile(
    r".*encoder\.(?=conv1|bn1)|.*encoder\.layer\d"
    r"|.*decoder\.blocks\.\d(?:\.shortcut)?|.*_head(?:_mil)?"
)


def _group(name: str) -> str:
    """The part of a network that is taken over as a whole: a stage, a block, a head."""
    found = _GROUPS.match(name)
    return name if found is None else f"{found[0]}conv1" if found[0][-1] == "." else found[0]


def _shapes(network: DefectNetwork) -> dict[str, tuple[int, ...]]:
    """All that a start may hold; BatchNorm's counters play no part and are often not stored."""
    return {n: tuple(t.shape) for n, t in network.state_dict().items() if not _is_counter(n)}


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _as_grey(
    tensors: dict[str, Tensor], network: DefectNetwork, notes: list[str]
) -> dict[str, Tensor]:
    """An RGB ResNet50 for a grey network."""
    channels = tensors["conv1.weight"].shape[1:2]
    wanted = network.encoders[0].conv1.in_channels
    mean = tensors.get("bn1.running_mean")
    whole = mean is not None and mean.shape == tensors["conv1.weight"].shape[:1]
    if channels == (3,) and wanted == 1 and whole:  # else refused further on
        notes.append("RGB weights (ImageNet mean and deviation) folded to grey")
        return fold_rgb_to_grey(tensors)
    if channels == (1,):
        notes.append("grey weights, taken as made for grey normalised by 0.449 and 0.226")
    return tensors


def _sources(
    kind: StartKind, tensors: Mapping[str, Tensor], network: DefectNetwork, path: Path
) -> dict[str, str]:
    """The name in the file for each of the network's names that has one.

    Raises:
        InputError: the file's encoder has more than a ResNet50.
    """
    names = _shapes(network)
    sources: dict[str, str] = {}
    # A decoder that begins at other features has other shapes, and nothing in common.
    deeper = any(_deeper(source, network) for source in tensors)
    for source in filterfalse(_is_counter, sorted(tensors)):
        of_masks = "decoder." in source or "segmentation_head." in source
        if _deeper(source, network) or (deeper and of_masks):
            continue
        wanted = _targets(kind, source, network)
        found = [name for name in wanted if name in names]
        if not found and any("encoder." in name for name in wanted):
            raise InputError(
                f"{path}: expected a ResNet50, got a network with {shown(source)}, which a ResNet50"
                " does not have; take another start"
            )
        sources |= dict.fromkeys(found, source)
    return sources


def _deeper(source: str, network: DefectNetwork) -> bool:
    """A stage of a ResNet50 before which the network's encoder ends."""
    stage = re.search(r"\blayer(\d+)\.", source)
    return stage is not None and len(network.encoders[0].channels) <= int(stage[1]) <= STAGES[-1]


def _targets(kind: StartKind, source: str, network: DefectNetwork) -> list[str]:
    """Where a tensor of the file belongs; both encoders of two networks start alike."""
    two = isinstance(network, TwoNetworks)
    encoders = ["classifier.", "segmenter."] if two else [""]
    if kind is StartKind.RESNET:
        inside = re.match(r"conv1\.|bn1\.|layer\d+\.", source)
        return [f"{place}encoder.{source}" for place in encoders] if inside else []
    if kind is StartKind.TWO or not two:
        return [source]
    if source.startswith("encoder."):
        return [place + source for place in encoders]
    return [f"{'classifier' if source.startswith('classification_head') else 'segmenter'}.{source}"]


def _misfits(
    kind: StartKind,
    tensors: Mapping[str, Tensor],
    sources: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    path: Path,
) -> dict[str, str]:
    """Heads of the file that do not fit, each with the reason.

    Raises:
        InputError: a part of the network that the file holds half, or an encoder or decoder that
            does not fit.
    """
    groups: dict[str, list[str]] = {}
    for name in shapes:
        groups.setdefault(_group(name), []).append(name)
    misfits = {}
    below = True
    for group, names in groups.items():
        held = [name for name in names if name in sources]
        needed = "encoder." in group and (kind is not StartKind.RESNET or group.endswith("conv1"))
        if len(held) < len(names) and (held or needed):
            absent = next(name for name in names if name not in sources)
            raise InputError(
                f"{path}: expected all of {group}, {absent.rpartition('encoder.')[2]} is not there;"
                " take a complete file (BatchNorm statistics belong to the weights)"
            )
        if "encoder." in group:
            if group.endswith("conv1"):
                below = True
            if held and not below:
                raise InputError(
                    f"{path}: expected the stages of a ResNet50 from conv1 up, got {group} without"
                    " the one below it; take a complete file"
                )
            below = bool(held)
        for name in held:
            got = tuple(tensors[sources[name]].shape)
            if got == shapes[name]:
                continue
            if "_head" in group:
                misfits[group] = f"it is {_form(got)}, this network's is {_form(shapes[name])}"
                break
            raise InputError(
                f"{path}: expected {name} as {_form(shapes[name])}, got {_form(got)}; a start must"
                " have the width of the network: set network.width (a ResNet50 is 1), or take"
                " another start"
            )
    return misfits


def _form(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


# Conversion --------------------------------------------------------------------------------------


def convert_pth(source: Path, target: Path) -> str:
    """Turns a ``.pth`` with a state dict into safetensors, without running code from it.

    torch's restricted reader (``weights_only``) refuses whatever is no tensor or plain container.
    Show :data:`CONVERT_WARNING` first: the reader itself has had holes.

    Args:
        source: a state dict, or a dict that holds one as ``state_dict`` or ``model``.
        target: ends in ``.safetensors`` and does not exist; there it is complete or not at all.

    Returns:
        The sha256 of ``target``.

    Raises:
        InputError: not readable without running code, no state dict of a ResNet50 or a network of
            ours, or numbers that are not finite.
    """
    if target.suffix != ".safetensors" or target.exists():
        raise InputError(
            f"expected a new file that ends in .safetensors, got {target}"
            f"{', which exists' if target.exists() else ''}; give another name"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats: nothing the user could do
            held = torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"expected weights at {source}, there is no such file") from None
    except Exception as error:  # any kind, from any layer of the reader
        said = " ".join(str(error).split())
        raise InputError(
            f"{source}: expected a state dict of tensors, nothing else is opened because it could"
            f" run code; got: {said[:200]}; ask the publisher for safetensors"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
    tensors = _state_dict(held, source)
    kind, tensors = _recognised(tensors, source)
    _check_numbers(tensors, source)
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    # One key only: the order of several is not the same each time, and with it the sha256.
    content = safetensors.torch.save(tensors, {"converted": f"{kind} from sha256 {sha256}"})
    _write_whole(content, target)
    return hashlib.sha256(content).hexdigest()


def _state_dict(held: object, source: Path) -> dict[str, Tensor]:
    if not isinstance(held, dict) or not held:
        raise InputError(
            f"{source}: expected a state dict, got {shown(type(held).__name__)}; save the network's"
            " state_dict() instead"
        )
    for name, value in held.items():
        plain = isinstance(value, Tensor) and value.layout is torch.strided
        if not isinstance(name, str) or not plain:
            raise InputError(
                f"{source}: expected tensors by name only, got {shown(type(value).__name__)} at"
                f" {shown(str(name))}; save the network's state_dict() alone"
            )
    # Left over from training on several GPUs.
    wrapped = all(name.startswith("module.") for name in held)
    return {
        name.removeprefix("module.") if wrapped else name: tensor.detach().contiguous().clone()
        for name, tensor in held.items()
    }


def _write_whole(content: bytes, target: Path) -> None:
    try:
        handle, partial = tempfile.mkstemp(dir=target.parent, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(partial).chmod(0o644)
            Path(partial).replace(target)
        finally:
            Path(partial).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{target}: could not be written ({error.strerror}); {len(content) / 1e6:.0f} MB are"
            " needed: make room, or choose another folder"
        ) from None
