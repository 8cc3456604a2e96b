"""Puts the gate of a faster bundle in front of another one: most clean frames need no more.

Files are taken as they are, so that what was proved about each still holds. What the two give
together depends on the decision's ``[first_look]``, and is measured like every decision: on
labelled frames (``steelsight evaluate --save-predictions``, then ``steelsight calibrate``).
"""

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from steelsight.bundle import (
    CARD,
    DECISION,
    PARITY,
    Bundle,
    FirstLookEntry,
    file_entry,
    find_decision,
    load_bundle,
    write_manifest,
)
from steelsight.decisions import load_decision
from steelsight.engine.cascade import Inspector, Networks
from steelsight.engine.runtime import Engine
from steelsight.errors import InputError


def add_first_look(
    bundle: Bundle, fast: Bundle, folder: Path, decision: Path | None = None
) -> Bundle:
    """A new bundle: all of ``bundle``, and the gate of ``fast`` before it.

    Args:
        bundle: may have a first look already; it is replaced.
        fast: of the same types, kind of camera, size of frames and precision. Only its gate is
            taken.
        folder: where to; new or empty.
        decision: instead of the bundle's own; a file, or the name of one in the bundle.

    Returns:
        The new bundle, with a self-test that looks at both networks.

    Raises:
        InputError: the bundles do not fit together, the decision has thresholds of another first
            look, the self-test cannot look at both networks, or the folder is not empty.
    """
    _check(bundle, fast)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"expected a new or empty folder, got {folder}; give another --out")
    rules = load_decision(find_decision(bundle.folder, decision), [c.id for c in bundle.classes])
    before = bundle.manifest.first_look
    if decision is None and rules.first_look and before and before.sha256 != _gate_sha256(fast):
        raise InputError(
            f"expected a decision without [first_look], got that of {bundle.id}, whose thresholds "
            f"were chosen for {before.model}; give --decision FILE without it, then evaluate and "
            "calibrate anew"
        )
    manifest = bundle.manifest
    file = f"first_look.{manifest.precision}.onnx"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".steelsight-", dir=folder.parent) as scratch_name:
        new = Path(scratch_name) / "bundle"
        new.mkdir()
        kept = [manifest.gate, manifest.segmenter, manifest.self_test, manifest.weights]
        for name in (CARD, *(entry.file for entry in kept if entry)):
            shutil.copyfile(bundle.folder / name, new / name)
        shutil.copyfile(fast.gate_path, new / file)
        (new / DECISION).write_text(rules.text, encoding="utf-8")
        entry = FirstLookEntry(
            **file_entry(new / file).model_dump(),
            multiple_of=fast.manifest.input.multiple_of,
            model=fast.id,
            weights_sha256=fast.manifest.training.weights_sha256,
        )
        manifest = manifest.model_copy(update={"first_look": entry})
        unnamed = bundle.model_copy(
            update={"folder": new, "manifest": manifest, "decision": rules, "sha256": "0" * 64}
        )
        parity = {**bundle.parity, **_answers(unnamed)}
        # Of the fast bundle: how far its files are from its trained network.
        parity["first_look"] |= {k: v for k, v in fast.parity.items() if k != "self_test"}
        (new / PARITY).write_text(json.dumps(parity, indent=1) + "\n", encoding="utf-8")
        write_manifest(new, manifest.model_copy(update={"parity": file_entry(new / PARITY)}))
        load_bundle(new)
        if folder.exists():
            folder.rmdir()
        new.replace(folder)
    return load_bundle(folder)


def _check(bundle: Bundle, fast: Bundle) -> None:
    for what, ours, theirs in (
        ("types", [c.id for c in bundle.classes], [c.id for c in fast.classes]),
        ("precision", bundle.manifest.precision, fast.manifest.precision),
        ("kind of camera", *(_camera(b) for b in (bundle, fast))),
        ("size of frames", *(_size(b) for b in (bundle, fast))),
    ):
        if ours != theirs:
            raise InputError(
                f"expected two bundles of the same {what}, got {_told(ours)} ({bundle.id}) and "
                f"{_told(theirs)} ({fast.id}); train or export one of them to fit"
            )


def _camera(bundle: Bundle) -> str:
    return "grey" if bundle.manifest.input.monochrome else "any"


def _size(bundle: Bundle) -> str:
    """That it was measured on: on others a first look settles nothing."""
    return "{} x {}".format(*bundle.manifest.input.tile_wh)


def _gate_sha256(bundle: Bundle) -> str:
    return bundle.manifest.gate.sha256


def _told(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _answers(bundle: Bundle) -> dict[str, Any]:
    """What the self-test compares with, under keys of ``parity.json``."""
    inspector = Inspector(bundle, Networks.load(bundle, Engine.ONNXRUNTIME))
    taken = inspector.take_in(bundle.self_test_path, "self_test")
    told = inspector.judge(taken).to_json()
    if taken.frame is None:
        raise InputError(f"{bundle.self_test_path}: {taken.refusal}")
    first = inspector.look(taken.frame.grey_hw).first_look
    faulty = math.nan if first is None else first.faulty_probability
    if not math.isfinite(faulty):
        raise InputError(
            f"expected a self-test frame of {_size(bundle)} pixels, the only size that a first look"
            f" judges, got {taken.frame.size_wh[0]} x {taken.frame.size_wh[1]} in {bundle.id}; "
            "export it again with another --self-test"
        )
    return {"self_test": told, "first_look": {"self_test_faulty_probability": faulty}}
