"""The bundle: everything needed to run a model, in one folder.

``manifest.toml`` names classes, input, network files with their sha256 and what the model was
trained on; ``decision.toml`` holds the thresholds; ``MODEL_CARD.md`` tells people what to expect;
``parity.json`` tells how far the network files are from the trained network, on which frames. A
bundle whose checksums or parity are wrong is refused. The trained weights may lie beside them, as
the start of another training; no inspection needs them.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from steelsight.decisions import Decision, load_decision
from steelsight.defects import DefectClass
from steelsight.errors import BundleError, InputError

SHIPPED_BUNDLES = Path(__file__).parent / "bundled"
DEFAULT_BUNDLE = SHIPPED_BUNDLES / "severstal-r50"
NAME_PATTERN = r"^[A-Za-z0-9._-]+$"
MANIFEST, DECISION, CARD, PARITY = "manifest.toml", "decision.toml", "MODEL_CARD.md", "parity.json"

TYPE_COLOURS = (
    "#2f9bff", "#b388ff", "#00d0e0", "#ff7ac8", "#5f6bff", "#8fb4c8", "#d45be0", "#9a8f86",
)  # fmt: skip
"""In the order of the types; away from the green, red and amber of the verdicts."""


class Precision(StrEnum):
    """Number type of the network files."""

    FP32 = "fp32"
    INT8 = "int8"


class SegmenterInput(StrEnum):
    """What the cascade hands to the segmenter."""

    FEATURES = "features"
    """All that the gate gives beside its probabilities: one encoder under both."""
    FRAMES = "frames"
    """The frames themselves: the segmenter has an encoder of its own."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Table):
    """A file of the bundle: plain name, never a path, and its sha256."""

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class FirstLookEntry(FileEntry):
    """A smaller gate, of another bundle, that may settle a frame before stage 1 looks at it."""

    multiple_of: int = Field(ge=1)
    """H and W must be multiples of this; frames are padded further where needed."""
    model: str
    """``name@sha8`` of the bundle that it was taken from."""
    weights_sha256: str
    """Of its trained weights."""


class ClassEntry(_Table):
    """One defect type, in the order of the network's channels."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    name: str
    colour: str = Field(pattern=r"^#[0-9a-fA-F]{6}$")


class InputEntry(_Table):
    """What the gate network takes: uint8 grey ``(N, 1, H, W)``; it normalises by itself."""

    channels: Literal[1]
    monochrome: bool
    """The frames came from a grey camera: a coloured pixel is damage or another kind of picture."""
    multiple_of: int = Field(ge=1)
    """H and W must be multiples of this; frames are padded and results cropped."""
    tile_wh: tuple[int, int]
    """Size of the frames it learned from; larger ones are cut into tiles of at most this size."""
    tile_overlap_px: int = Field(ge=0)
    min_wh: tuple[int, int]
    """Smaller frames are UNKNOWN, ``wrong-size``."""

    @model_validator(mode="after")
    def _possible(self) -> "InputEntry":
        if min(*self.min_wh, *self.tile_wh) < 1:
            raise ValueError("min_wh and tile_wh must be at least 1")
        if self.tile_overlap_px >= min(self.tile_wh):
            raise ValueError("tile_overlap_px must be less than both sides of tile_wh")
        return self


class TrainingEntry(_Table):
    """What the networks learned from, in plain words, and the sha256 of the trained weights."""

    data: str
    terms: str
    weights_sha256: str


class Manifest(_Table):
    """``manifest.toml``."""

    format: Literal[2]
    name: str = Field(pattern=NAME_PATTERN)
    precision: Precision
    code_version: str
    input: InputEntry
    classes: tuple[ClassEntry, ...] = Field(min_length=1)
    gate: FileEntry
    segmenter: FileEntry
    parity: FileEntry
    self_test: FileEntry
    """A frame whose result stands in ``parity.json``, to be compared on the user's machine."""
    training: TrainingEntry
    segmenter_takes: SegmenterInput = SegmenterInput.FEATURES
    weights: FileEntry | None = None
    """The trained weights, safetensors; see ``Bundle.weights``."""
    first_look: FirstLookEntry | None = None
    """Used where the decision has a rule for it."""

    @model_validator(mode="after")
    def _distinct(self) -> "Manifest":
        ids = [entry.id for entry in self.classes]
        if len(set(ids)) != len(ids):
            raise ValueError(f"two classes have the same id: {', '.join(ids)}")
        return self


class Bundle(BaseModel):
    """A bundle that passed its checks; made by ``load_bundle``."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    manifest: Manifest
    decision: Decision
    sha256: str
    """Of the manifest, which holds the sha256 of every network file."""
    parity: dict[str, Any]

    @property
    def id(self) -> str:
        """``name@sha8``, as results carry it."""
        return f"{self.manifest.name}@{self.sha256[:8]}"

    @property
    def classes(self) -> tuple[DefectClass, ...]:
        """The defect types in channel order."""
        return tuple(DefectClass(c.id, c.name, c.colour) for c in self.manifest.classes)

    @property
    def gate_path(self) -> Path:
        """The gate network: frames in, probabilities and features out."""
        return self.folder / self.manifest.gate.file

    @property
    def segmenter_path(self) -> Path:
        """The segmenter network: features or frames in, mask probabilities out."""
        return self.folder / self.manifest.segmenter.file

    @property
    def first_look_path(self) -> Path | None:
        """The network of the first look: frames in, probabilities out; ``None`` without one."""
        entry = self.manifest.first_look
        return None if entry is None else self.folder / entry.file

    @property
    def self_test_path(self) -> Path:
        """The frame for the self-test."""
        return self.folder / self.manifest.self_test.file

    def weights(self) -> Path:
        """The trained weights, checked now: they are large, and no inspection needs them.

        Raises:
            BundleError: the bundle holds none, or the file is missing or altered.
        """
        if self.manifest.weights is None:
            raise BundleError(
                f"{self.folder}: expected trained weights in the bundle, it was made without; give "
                "the file that training left (best.safetensors)"
            )
        _check(self.folder, self.manifest.weights)
        return self.folder / self.manifest.weights.file

    @property
    def card_summary(self) -> str:
        """The model card's first section, without its heading."""
        sections = self.card.split("\n## ")
        return sections[min(1, len(sections) - 1)].partition("\n")[2].strip()

    @property
    def card(self) -> str:
        """The model card, Markdown."""
        return (self.folder / CARD).read_text(encoding="utf-8")


def shipped_bundles() -> tuple[str, ...]:
    """Names of the bundles that come with the package, the default one first."""
    names = {path.name for path in SHIPPED_BUNDLES.iterdir() if (path / MANIFEST).is_file()}
    return (DEFAULT_BUNDLE.name, *sorted(names - {DEFAULT_BUNDLE.name}))


def find_bundle(given: Path | None) -> Path:
    """The folder of a bundle: the one given, or the one that is shipped under that name.

    A folder that is there comes first, so that nothing that is shipped takes its place.
    """
    if given is None:
        return DEFAULT_BUNDLE
    is_shipped = not given.exists() and str(given) in shipped_bundles()
    return SHIPPED_BUNDLES / given if is_shipped else given


def find_decision(bundle: Path, given: Path | None) -> Path:
    """A decision file: the bundle's own, the one given, or the one that it has under that name.

    A file that is there comes first, as with bundles.
    """
    if given is None:
        return bundle / DECISION
    beside = bundle / f"{given}.toml"
    is_named = not given.is_file() and given.name == str(given) and beside.is_file()
    return beside if is_named else given


def load_bundle(folder: Path | None = None, decision: Path | None = None) -> Bundle:
    """Reads a bundle and checks it.

    Args:
        folder: the bundle, or the name of a shipped one; the default one if ``None``.
        decision: a decision file to use instead of the bundle's own, or the name of one of the
            bundle's further ones.

    Raises:
        BundleError: no bundle, an altered file, a failed parity, another format version.
        InputError: the decision file is missing or wrong.
    """
    folder = find_bundle(folder)
    manifest_path = folder / MANIFEST
    try:
        content = manifest_path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"expected a bundle (a folder with {MANIFEST}) at {folder}, could not read it "
            f"({error.strerror}); give --bundle FOLDER, or one of {', '.join(shipped_bundles())}"
        ) from None
    try:
        manifest = Manifest(**tomllib.loads(content.decode()))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BundleError(f"{manifest_path}: expected TOML, got: {error}") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise BundleError(
            f"{manifest_path}: {where}: {problem['msg']}; export the bundle again with this version"
        ) from None
    needed = (manifest.gate, manifest.segmenter, manifest.parity, manifest.self_test)
    for entry in (*needed, *([manifest.first_look] if manifest.first_look else [])):
        _check(folder, entry)
    if not (folder / CARD).is_file():
        raise BundleError(f"{folder}: expected {CARD}; a model without a card is not run")
    try:
        parity = dict(json.loads((folder / manifest.parity.file).read_bytes()))
    except (ValueError, TypeError):
        raise BundleError(
            f"{folder}: expected a JSON object in {manifest.parity.file}; export it again"
        ) from None
    if parity.get("passed") is not True:
        raise BundleError(
            f"{folder}: the parity check against the trained network failed when this bundle was "
            f"made (see {PARITY}); export it again"
        )
    decision = find_decision(folder, decision)
    rules = load_decision(decision, [c.id for c in manifest.classes])
    if rules.first_look and not manifest.first_look:
        raise InputError(
            f"{decision}: [first_look] is for a bundle with a first look, "
            f"{folder} has none; remove the table, or add one: steelsight model first-look"
        )
    return Bundle(
        folder=folder,
        manifest=manifest,
        decision=rules,
        sha256=hashlib.sha256(content).hexdigest(),
        parity=parity,
    )


def _check(folder: Path, entry: FileEntry) -> None:
    path = folder / entry.file
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(
            f"{folder}: expected {entry.file}, could not read it ({error.strerror}); "
            "copy the bundle again, complete"
        ) from None
    if found != entry.sha256:
        raise BundleError(
            f"{path}: expected sha256 {entry.sha256[:12]}..., got {found[:12]}...; the file was "
            "altered or cut: copy the bundle again"
        )


def class_entries(names: Iterable[tuple[str, str]]) -> tuple[ClassEntry, ...]:
    """Defect types for a manifest, each with a colour of its own as far as they go.

    Args:
        names: id and name of each type, in channel order.
    """
    return tuple(
        ClassEntry(id=class_id, name=name, colour=TYPE_COLOURS[i % len(TYPE_COLOURS)])
        for i, (class_id, name) in enumerate(names)
    )


def file_entry(path: Path) -> FileEntry:
    """The entry of a finished file."""
    with path.open("rb") as stream:
        return FileEntry(file=path.name, sha256=hashlib.file_digest(stream, "sha256").hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Writes ``manifest.toml``; returns its path.

    Raises:
        InputError: a text holds a line break or a control character.
    """
    lines: list[str] = []
    tables: list[str] = []
    # What is as always is left out: manifests of earlier versions stay the same to the byte.
    for key, value in manifest.model_dump(mode="json", exclude_defaults=True).items():
        if isinstance(value, dict):
            tables += [f"\n[{key}]", *(f"{k} = {_toml(v)}" for k, v in value.items())]
        elif key == "classes":
            for entry in value:
                tables += ["\n[[classes]]", *(f"{k} = {_toml(v)}" for k, v in entry.items())]
        else:
            lines.append(f"{key} = {_toml(value)}")
    path = folder / MANIFEST
    path.write_text("\n".join([*lines, *tables]) + "\n", encoding="utf-8")
    return path


def _toml(value: object) -> str:
    # Strings, integers and arrays of integers: there JSON and TOML agree.
    if isinstance(value, str) and not value.isprintable():
        raise InputError(
            f"expected plain text for the manifest, got {value!a}; remove line breaks, tabs and "
            "special blanks"
        )
    return json.dumps(value, ensure_ascii=False)
