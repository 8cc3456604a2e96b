"""Networks that read their answer from the pixels, so that all steps around them can be checked.

A plate has grey levels below 200. Levels from 240 up are marks (``Level``): what the gate and the
segmenter say of a frame follows from the marks on it, pixel by pixel and without rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steelsight.bundle import (
    Bundle,
    ClassEntry,
    FileEntry,
    FirstLookEntry,
    InputEntry,
    Manifest,
    SegmenterInput,
    TrainingEntry,
)
from steelsight.decisions import Decision
from steelsight.engine import Inspector
from steelsight.engine.cascade import Networks
from steelsight.errors import EngineError
from steelsight.imaging import DecodePolicy


class Level(IntEnum):
    """Grey levels with a meaning."""

    GATE_NAN = 240
    HEAD_NAN = 241
    SEGMENTER_NAN = 242
    GATE_FAILS = 243
    SEGMENTER_FAILS = 244
    FAULTY_ONLY = 245
    """Faulty for the gate; nothing for the segmenter."""
    DOUBTFUL = 246
    """Between the gate's two thresholds; nothing for the segmenter."""
    FIRST_LOOK_UNSURE = 247
    """Clean for the gate; the first look cannot tell."""
    FIRST_LOOK_NAN = 248
    FIRST_LOOK_FAILS = 249
    FIRST_LOOK_MISSES = 250
    """The first look sees nothing at all on a frame with it."""
    TYPE_1 = 251
    TYPE_2 = 252
    TYPE_3 = 253
    TYPE_4 = 254


TYPES = (Level.TYPE_1, Level.TYPE_2, Level.TYPE_3, Level.TYPE_4)
CLEAN, DOUBTFUL, FAULTY = 0.02, 0.30, 0.90
MASK_INSIDE, MASK_OUTSIDE = 0.97, 0.01


@dataclass
class FakeGate:
    """Frames in; scores, and the frames themselves as the feature ``c2``."""

    label: str = "fake-fp32"
    calls: int = 0
    features: bool = True

    def run(self, inputs):
        self.calls += 1
        frames = inputs["frames"]
        assert frames.dtype == np.uint8
        assert frames.shape[:2] == (1, 1)
        assert frames.shape[2] % 32 == frames.shape[3] % 32 == 0
        assert frames.flags.c_contiguous
        seen = set(np.unique(frames).tolist())
        if Level.GATE_FAILS in seen:
            raise EngineError("the fake gate\nfailed")
        faulty = DOUBTFUL if Level.DOUBTFUL in seen else CLEAN
        if seen & {Level.SEGMENTER_NAN, Level.SEGMENTER_FAILS, Level.FAULTY_ONLY, *TYPES}:
            # More marked pixels, more faulty: which tile was the worst can be told.
            faulty = FAULTY + 0.09 * np.count_nonzero(frames >= Level.TYPE_1) / frames.size
        heads = np.array([[0.95 if mark in seen else 0.01 for mark in TYPES]], np.float32)
        if Level.HEAD_NAN in seen:
            heads[0, 2] = np.nan
        features = {name: np.zeros((1, 1), np.uint8) for name in ("c3", "c4", "c5")}
        features = {"c2": frames.copy(), **features} if self.features else {}
        return {
            "faulty_probability": np.array(
                [np.nan if Level.GATE_NAN in seen else faulty], np.float32
            ),
            "class_probabilities": heads,
            **features,
        }


@dataclass
class FakeFirstLook:
    """Sees every mark but one; its heads differ from the gate's."""

    label: str = "fake-fp32"
    calls: int = 0
    multiple_of: int = 64

    def run(self, inputs):
        self.calls += 1
        frames = inputs["frames"]
        assert set(inputs) == {"frames"}
        assert frames.dtype == np.uint8
        assert frames.flags.c_contiguous
        assert frames.shape[2] % self.multiple_of == frames.shape[3] % self.multiple_of == 0
        seen = set(np.unique(frames).tolist())
        if Level.FIRST_LOOK_FAILS in seen:
            raise EngineError("the fake first look failed")
        faulty = FAULTY if max(seen) >= Level.GATE_NAN else CLEAN / 2
        if Level.FIRST_LOOK_MISSES in seen:
            faulty = CLEAN / 2
        return {
            "faulty_probability": np.array(
                [np.nan if Level.FIRST_LOOK_NAN in seen else faulty], np.float32
            ),
            "class_probabilities": np.array([[0.03, 0.02, 0.03, 0.02]], np.float32),
            "c2": frames,
        }


@dataclass
class FakeSegmenter:
    """``c2`` (or frames) in; a sure mask for every pixel of a type's level."""

    label: str = "fake-fp32"
    calls: int = 0
    takes: tuple[str, ...] = ("c2", "c3", "c4", "c5")

    def run(self, inputs):
        self.calls += 1
        assert set(inputs) == set(self.takes)
        frames = inputs[self.takes[0]]
        if (frames == Level.SEGMENTER_FAILS).any():
            raise EngineError("the fake segmenter failed")
        masks = [np.where(frames[:, 0] == mark, MASK_INSIDE, MASK_OUTSIDE) for mark in TYPES]
        probabilities = np.stack(masks, axis=1).astype(np.float32)
        logits = np.log(probabilities / (1 - probabilities))
        logits[:, 1][frames[:, 0] == Level.SEGMENTER_NAN] = np.nan
        return {"mask_logits": logits}


@dataclass
class Bench:
    """An inspector with its two fakes, to count their calls."""

    inspector: Inspector
    gate: Any
    segmenter: Any
    first_look: Any = None


@pytest.fixture
def level() -> type[Level]:
    return Level


@pytest.fixture
def decision() -> Decision:
    rule = {"label_from": 0.5, "pixel_from": 0.5, "min_area_px": 0}
    return Decision(
        version=1,
        name="fake",
        rule="none",
        chosen_on="nothing",
        gate={"clear_below": 0.15, "ng_from": 0.42},
        input={"min_contrast": 2.0},
        types=dict.fromkeys("1234", rule),
        sha256="d" * 64,
    )


@pytest.fixture
def bench(decision, tmp_path) -> Callable[..., Bench]:
    """Builds a ``Bench``; tiles, multiples and the rest as in the shipped bundle unless given."""

    def build(
        *,
        policy: DecodePolicy | None = None,
        gate=None,
        segmenter=None,
        allow_colour=True,
        segmenter_takes=SegmenterInput.FEATURES,
        first_look=None,
        rules=decision,
        **given,
    ) -> Bench:
        spec = {
            "channels": 1,
            "monochrome": True,
            "multiple_of": 32,
            "tile_wh": (1600, 256),
            "tile_overlap_px": 64,
            "min_wh": (64, 64),
        }
        file = FileEntry(file="none", sha256="0" * 64)
        manifest = Manifest(
            format=2,
            name="fake",
            precision="fp32",
            code_version="0",
            input=InputEntry(**spec | given),
            classes=tuple(
                ClassEntry(id=k, name=f"Type {k}", colour="#2f9bff") for k in decision.types
            ),
            gate=file,
            segmenter=file,
            parity=file,
            self_test=file,
            training=TrainingEntry(data="none", terms="none", weights_sha256="0" * 64),
            segmenter_takes=segmenter_takes,
            first_look=first_look
            and FirstLookEntry(
                **file.model_dump(),
                multiple_of=first_look.multiple_of,
                model="fast@00000000",
                weights_sha256="0" * 64,
            ),
        )
        bundle = Bundle(
            folder=Path(tmp_path), manifest=manifest, decision=rules, sha256="b" * 64, parity={}
        )
        if segmenter_takes is SegmenterInput.FRAMES:
            gate = gate or FakeGate(features=False)
            segmenter = segmenter or FakeSegmenter(takes=("frames",))
        gate, segmenter = gate or FakeGate(), segmenter or FakeSegmenter()
        networks = Networks(gate, segmenter, first_look)
        inspector = Inspector(bundle, networks, policy, allow_colour)
        return Bench(inspector, gate, segmenter, first_look)

    return build


@pytest.fixture
def plate() -> Callable[..., np.ndarray]:
    """``plate(height, width)``: textured steel, different everywhere, all levels below 200."""

    def draw(height: int, width: int) -> np.ndarray:
        rows, columns = np.mgrid[:height, :width]
        noise = np.random.default_rng(3).integers(0, 30, (height, width))
        return (40 + (rows + columns) % 120 + noise).astype(np.uint8)

    return draw
