"""Drawn frames and results for the report's tests: no file and no photograph needed."""

from collections.abc import Callable

import numpy as np
import pytest

from steelsight.defects import Defect, DefectClass, Inspection, Reason, Verdict
from steelsight.masks import encode_rle
from steelsight.report.html import RunInfo


@pytest.fixture
def classes() -> tuple[DefectClass, ...]:
    colours = ("#2f9bff", "#b388ff", "#00d0e0", "#ff7ac8")
    return tuple(DefectClass(str(i), f"Type {i}", c) for i, c in enumerate(colours, 1))


@pytest.fixture
def box_defect() -> Callable[..., Defect]:
    """A rectangular region: ``box_defect("3", (x, y, w, h), size_wh)``."""

    def build(class_id, bbox_xywh, size_wh=(320, 128), probability=0.88):
        x, y, w, h = bbox_xywh
        mask = np.zeros(size_wh[::-1], np.bool_)
        mask[y : y + h, x : x + w] = True
        long, short = float(max(w, h)), float(min(w, h))
        angle = 0.0 if w >= h else 90.0
        return Defect(class_id, w * h, bbox_xywh, long, short, angle, probability, encode_rle(mask))

    return build


@pytest.fixture
def inspection() -> Callable[..., Inspection]:
    """A result with the rest filled in: ``inspection("a.jpg", Verdict.NG, 0.9, defects)``."""

    def build(
        image, verdict, probability=None, defects=(), reason=None, detail=None, size_wh=(320, 128)
    ):
        if verdict is Verdict.UNKNOWN:
            reason, size_wh = reason or Reason.TRUNCATED, None
        return Inspection(
            image=image,
            sha256="ab" * 32,
            verdict=verdict,
            reason=reason,
            detail=detail,
            faulty_probability=probability,
            class_probabilities={},
            defects=tuple(defects),
            size_wh=size_wh,
            model="severstal-r50@1f2e3d4c",
            decision="9a8b7c6d",
            engine="openvino-int8",
        )

    return build


@pytest.fixture
def run() -> RunInfo:
    return RunInfo(
        title="Coil 4711, upper side",
        source="frames/",
        command="steelsight inspect frames --out report",
        started="2026-03-01T06:00:00+01:00",
        seconds=6.0,
        model="severstal-r50@1f2e3d4c",
        decision="9a8b7c6d",
        engine="OpenVINO",
        precision="int8",
        model_card="Trained on grey frames of one line.\n\n- not for coated steel",
        thresholds=(("Type", "Probability from"), ("Type 1", "0.52")),
        marked_probabilities={"NG from": 0.42},
        versions={"steelsight": "0.1.0"},
        files={"results.jsonl": "results.jsonl"},
    )
