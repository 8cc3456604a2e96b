"""Inspects a stored frame once more, as it was inspected then, and compares to the last bit.

The store holds what a verdict follows from: the hash of the frame and where it lay, the manifest's
hash, the text of the decision file, engine and decode policy. A frame or a model that is another
one now is refused; engines and processors that are others are told.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from steelsight import __version__, imaging
from steelsight.bundle import (
    MANIFEST,
    SHIPPED_BUNDLES,
    Bundle,
    find_bundle,
    load_bundle,
    shipped_bundles,
)
from steelsight.decisions import parse_decision
from steelsight.decoders import Decoders
from steelsight.defects import Defect, Inspection
from steelsight.engine.cascade import Image, Inspector, Networks, TakenIn
from steelsight.engine.choice import choose_engine
from steelsight.engine.runtime import Engine, engine_version, share_threads
from steelsight.engine.sources import read_origin
from steelsight.errors import DecodeError, EngineError, InputError, escaped
from steelsight.store.queries import Complete, Results

RESULT_FIELDS = (
    "verdict",
    "reason",
    "detail",
    "faulty_probability",
    "class_probabilities",
    "size_wh",
    "notes",
)
"""Of an inspection, beside its defects. Frame, model and decision are the same, or nothing runs."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that was another then; values as JSON has them."""

    what: str
    stored: Any
    now: Any


@dataclass(frozen=True, slots=True)
class Replay:
    """A stored result beside the one of now.

    Attributes:
        inspection_id: in the store.
        stored: as it was.
        now: as it is.
        frame: where the frame was read.
        bundle: the folder of the model.
        differences: of the result; none if it is the same, bit for bit.
        circumstances: what computes otherwise than then: engine, its version, this program's.
    """

    inspection_id: int
    stored: Inspection
    now: Inspection
    frame: str
    bundle: str
    differences: tuple[Difference, ...]
    circumstances: tuple[Difference, ...]

    @property
    def same(self) -> bool:
        """Whether the result is the same, bit for bit."""
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        """All of it, with both results as result lines have them."""
        return {
            "id": self.inspection_id,
            "same": self.same,
            "frame": self.frame,
            "bundle": self.bundle,
            "differences": [asdict(one) for one in self.differences],
            "circumstances": [asdict(one) for one in self.circumstances],
            "stored": self.stored.to_json(),
            "now": self.now.to_json(),
        }


class _Settings(NamedTuple):
    """What a run said about itself (``engine.batch.Keys``)."""

    policy: imaging.DecodePolicy
    engine_version: str
    steelsight: str

    @classmethod
    def parse(cls, text: str, where: str) -> "_Settings":
        try:
            facts = json.loads(text)
            policy = imaging.DecodePolicy(**facts["policy"])
            return cls(policy, str(facts["engine_version"]), str(facts["steelsight"]))
        except (ValueError, TypeError, LookupError):
            raise InputError(
                f"{where}: expected its settings with policy, engine_version and steelsight, got "
                f"{escaped(text[:80])}; it was written by another version: inspect the frame again"
            ) from None


def replay(
    store: str | Path,
    inspection_id: int,
    *,
    frame: str | Path | None = None,
    bundle: str | Path | None = None,
    engine: Engine | str | None = None,
    threads: int | None = None,
) -> Replay:
    """Derives a stored verdict again.

    Args:
        store: the file.
        inspection_id: as ``Results`` gives it.
        frame: the file of the frame, if it is no longer where it was.
        bundle: the folder of the model, if it is no longer where it was and not the shipped one.
        engine: another one than then; ``auto`` is the fastest one.
        threads: inference threads; all usable cores if ``None``.

    Raises:
        InputError: no such inspection, the frame is gone or another one now, or no folder holds
            the model.
        BundleError: the model's folder is damaged.
        EngineError: the engine is not installed.
        StoreError: the store cannot be read.
    """
    with Results(Path(store)) as results:
        complete = results.inspection(inspection_id)
    where = f"inspection {inspection_id} of {store}"
    stored = complete.inspection
    settings = _Settings.parse(complete.settings, where)
    image, origin = _frame(complete, None if frame is None else Path(frame), settings.policy, where)
    model = _model(complete, None if bundle is None else Path(bundle), where)
    with ExitStack() as stack:
        decoders = stack.enter_context(Decoders(1))
        inspector = _inspector(model, settings.policy, stored.engine, engine, threads, decoders)
        if isinstance(image, DecodeError):
            now = inspector.judge(TakenIn(stored.image, refusal=image))
        else:
            now = inspector.inspect(image, stored.image)
    return Replay(
        inspection_id,
        stored,
        now,
        origin,
        str(model.folder),
        tuple(_differences(stored, now)),
        tuple(_circumstances(stored.engine, settings, now.engine)),
    )


# The frame ---------------------------------------------------------------------------------------


def _frame(
    complete: Complete, given: Path | None, policy: imaging.DecodePolicy, where: str
) -> tuple[Image | DecodeError, str]:
    """What was inspected, and where it lies; an error only where no bytes were there then, too."""
    origins = [str(given)] if given else list(dict.fromkeys(s.origin for s in complete.sightings))
    expected = complete.inspection.sha256
    if not origins:
        raise InputError(f"{where}: nothing says where its frame lies; give --frame FILE")
    if expected is None:
        try:
            return _read(origins[0], given, policy), origins[0]
        except DecodeError as error:
            return error, origins[0]
    looked = []
    for origin in origins:
        try:
            image = _read(origin, given, policy)
        except (DecodeError, InputError) as error:
            looked.append(f"at {escaped(origin)}: {error}")
            continue
        found = _sha256(image, policy)
        if found == expected:
            return image, origin
        looked.append(f"at {escaped(origin)} is one with sha256 {found}")
    raise InputError(
        f"{where}: expected its frame with sha256 {expected}; {'; '.join(looked)}; give --frame "
        "FILE with the frame as it was"
    )


def _read(origin: str, given: Path | None, policy: imaging.DecodePolicy) -> Image:
    """Raises ``DecodeError`` or ``InputError``: it is not there."""
    if given:
        return imaging.read_bytes(given, policy=policy)
    return read_origin(origin, policy)


def _sha256(image: Image, policy: imaging.DecodePolicy) -> str:
    if isinstance(image, np.ndarray):
        return imaging.from_array(image, policy=policy).sha256
    assert isinstance(image, bytes)  # noqa: S101 - nothing else is read
    return hashlib.sha256(image).hexdigest()


# What inspects it --------------------------------------------------------------------------------


def _model(complete: Complete, given: Path | None, where: str) -> Bundle:
    """The model of then with the decision of then."""
    shipped = [SHIPPED_BUNDLES / name for name in shipped_bundles()]
    folders = [find_bundle(given)] if given else [Path(complete.bundle_folder), *shipped]
    looked = []
    for folder in dict.fromkeys(folders):
        try:
            found = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        except OSError as error:
            looked.append(f"{escaped(str(folder))} holds none ({error.strerror})")
            continue
        if found == complete.model_sha256:
            break
        looked.append(f"that of {escaped(str(folder))} has {found}")
    else:
        raise InputError(
            f"{where}: expected the model {complete.inspection.model}, whose {MANIFEST} has sha256 "
            f"{complete.model_sha256}; {'; '.join(looked)}; give --bundle FOLDER with that model"
        )
    bundle = load_bundle(folder)
    text = complete.decision.encode()
    decision = parse_decision(
        text, [c.id for c in bundle.classes], where=f"{where}: its decision file"
    )
    if decision.sha256 != complete.decision_sha256:
        raise InputError(
            f"{where}: expected a decision file with sha256 {complete.decision_sha256}, the stored "
            f"text has {decision.sha256}; it was altered: inspect the frame again"
        )
    return bundle.model_copy(update={"decision": decision})


def _inspector(
    bundle: Bundle,
    policy: imaging.DecodePolicy,
    label: str,
    engine: Engine | str | None,
    threads: int | None,
    decoders: Decoders,
) -> Inspector:
    then = label.partition("-")[0]
    engine = then if engine is None else engine
    threads, _ = share_threads(threads, 1)
    if engine == Engine.AUTO:
        engine = choose_engine(bundle, threads).engine
    try:
        networks = Networks.load(bundle, engine, threads)
    except (EngineError, InputError) as error:
        if engine != then:
            raise
        raise type(error)(f"{error} (give --engine to replay on another one)") from None
    # The policy of then, whatever the model would choose by itself.
    allow_colour = not policy.grey_only
    return Inspector(bundle, networks, policy, allow_colour, decode=decoders.decode)


# What differs ------------------------------------------------------------------------------------


def _circumstances(then: str, settings: _Settings, now: str) -> Iterator[Difference]:
    if then != now:
        yield Difference("engine", then, now)
    else:
        version = engine_version(now.partition("-")[0])
        if version != settings.engine_version:
            yield Difference("engine version", settings.engine_version, version)
    if settings.steelsight != __version__:
        yield Difference("steelsight", settings.steelsight, __version__)


def _differences(stored: Inspection, now: Inspection) -> Iterator[Difference]:
    for name in RESULT_FIELDS:
        before, after = getattr(stored, name), getattr(now, name)
        if name == "class_probabilities":
            for class_id in dict.fromkeys((*before, *after)):
                yield from _differing(
                    f"class_probabilities.{class_id}", before.get(class_id), after.get(class_id)
                )
        else:
            yield from _differing(name, before, after)
    yield from _differing("number of defects", len(stored.defects), len(now.defects))
    for ordinal in range(max(len(stored.defects), len(now.defects))):
        one, other = (_nth(inspection.defects, ordinal) for inspection in (stored, now))
        for field in fields(Defect):
            yield from _differing(
                f"defects[{ordinal}].{field.name}",
                getattr(one, field.name, None),
                getattr(other, field.name, None),
            )


def _nth(defects: tuple[Defect, ...], ordinal: int) -> Defect | None:
    return defects[ordinal] if ordinal < len(defects) else None


def _differing(what: str, stored: Any, now: Any) -> Iterator[Difference]:
    before, after = _plain(stored), _plain(now)
    if before != after:
        yield Difference(what, before, after)


def _plain(value: Any) -> Any:
    """As JSON has it: a box is a list, a number no numpy scalar; floats keep every bit."""
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, str) else value
