import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelsight.defects import Defect, DefectClass, Inspection, Reason, Verdict

SCRATCH = Defect(
    class_id="scratch",
    area_px=12,
    bbox_xywh=(3, 4, 6, 2),
    length_px=6.04,
    width_px=1.96,
    orientation_deg=12.34,
    probability=0.87654,
    rle="17 3 33 9",
)
OK = Inspection(
    image="coil 7/frame-01.jpg",
    sha256="ab" * 32,
    verdict=Verdict.OK,
    reason=None,
    detail=None,
    faulty_probability=0.0123456789,
    class_probabilities={"scratch": 0.25},
    defects=(),
    size_wh=(1600, 256),
    model="net@01234567",
    decision="89abcdef",
    engine="onnxruntime-int8",
    milliseconds={"gate": 12.3456},
    notes=("turned as EXIF orientation 6 says",),
)
PROBABILITIES = st.floats(0, 1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"defects": (SCRATCH,)}, "OK cannot carry a reason or defects"),
        ({"reason": Reason.NOT_LOCALISED}, "OK cannot carry a reason or defects"),
        ({"reason": Reason.TRUNCATED}, "OK cannot carry a reason or defects"),
        ({"faulty_probability": None}, "OK needs a finite faulty_probability"),
        ({"faulty_probability": math.nan}, "OK needs a finite faulty_probability"),
        ({"faulty_probability": math.inf}, "OK needs a finite faulty_probability"),
        ({"faulty_probability": -math.inf}, "OK needs a finite faulty_probability"),
        ({"verdict": Verdict.UNKNOWN}, "UNKNOWN needs a reason"),
        (
            {"verdict": Verdict.UNKNOWN, "faulty_probability": None, "detail": "who knows"},
            "UNKNOWN needs a reason",
        ),
    ],
)
def test_a_doubt_cannot_hide_behind_a_verdict(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(OK.image)}: {expected}$"):
        replace(OK, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"faulty_probability": 0.0},
        {"verdict": Verdict.NG, "defects": (SCRATCH,)},
        {"verdict": Verdict.NG, "reason": Reason.NOT_LOCALISED, "detail": "no region"},
        {"verdict": Verdict.UNKNOWN, "reason": Reason.EMPTY, "faulty_probability": None},
    ],
)
def test_honest_results_can_be_made(change: dict[str, Any]) -> None:
    result = replace(OK, **change)
    assert result.to_json()["verdict"] == result.verdict.value


def test_a_json_line_holds_the_whole_result() -> None:
    result = replace(OK, verdict=Verdict.NG, defects=(SCRATCH,), image='Länge „1"\\\n2‟.png')
    line = result.to_json_line()
    assert "\n" not in line
    assert json.loads(line) == result.to_json()
    assert json.loads(line) == {
        "image": 'Länge „1"\\\n2‟.png',
        "sha256": "ab" * 32,
        "verdict": "NG",
        "reason": None,
        "detail": None,
        "faulty_probability": 0.0123457,
        "class_probabilities": {"scratch": 0.25},
        "defects": [
            {
                "class": "scratch",
                "area_px": 12,
                "bbox_xywh": [3, 4, 6, 2],
                "length_px": 6.0,
                "width_px": 2.0,
                "orientation_deg": 12.3,
                "probability": 0.8765,
                "rle": "17 3 33 9",
            }
        ],
        "size_wh": [1600, 256],
        "model": "net@01234567",
        "decision": "89abcdef",
        "engine": "onnxruntime-int8",
        "milliseconds": {"gate": 12.35},
        "notes": ["turned as EXIF orientation 6 says"],
    }


def test_what_never_was_is_null() -> None:
    unread = replace(
        OK,
        verdict=Verdict.UNKNOWN,
        reason=Reason.UNREADABLE,
        detail="the file could not be read",
        sha256=None,
        faulty_probability=None,
        class_probabilities={},
        size_wh=None,
    ).to_json()
    assert (unread["sha256"], unread["faulty_probability"], unread["size_wh"]) == (None,) * 3
    assert unread["reason"] == "unreadable"


@given(st.text(), st.text(), PROBABILITIES, st.dictionaries(st.text(min_size=1), PROBABILITIES))
def test_every_result_is_one_line_of_strict_json(
    image: str, note: str, probability: float, by_type: dict[str, float]
) -> None:
    result = replace(
        OK,
        image=image,
        faulty_probability=probability,
        class_probabilities=by_type,
        notes=(note,),
    )
    line = result.to_json_line()
    # JSON lines are split at \n; \r is escaped as well, so that no editor breaks the line.
    assert not {"\n", "\r"} & set(line)
    parsed = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in strict JSON"))
    assert parsed["image"] == image
    assert parsed["notes"] == [note]
    assert parsed["faulty_probability"] == pytest.approx(probability, rel=5e-6, abs=0)
    assert parsed["class_probabilities"].keys() == by_type.keys()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["faulty_probability", "class_probabilities", "milliseconds"])
def test_nan_is_never_written(where: str, bad: float) -> None:
    value = bad if where == "faulty_probability" else {"scratch": bad}
    result = replace(OK, verdict=Verdict.NG, **{where: value})
    with pytest.raises(ValueError, match="JSON"):
        result.to_json_line()


@pytest.mark.parametrize(
    ("degrees", "written"),
    [
        (0.0, 0.0),
        (0.04, 0.0),
        (89.96, 90.0),
        (179.94, 179.9),
        (179.96, 0.0),
        (179.9999999, 0.0),
    ],
)
def test_orientation_stays_below_180_when_rounded(degrees: float, written: float) -> None:
    assert replace(SCRATCH, orientation_deg=degrees).to_json()["orientation_deg"] == written


@given(st.floats(0, 180, exclude_max=True))
def test_orientation_is_written_within_its_range(degrees: float) -> None:
    written = replace(SCRATCH, orientation_deg=degrees).to_json()["orientation_deg"]
    assert 0 <= written < 180
    turn = abs(written - degrees)
    assert min(turn, 180 - turn) <= 0.05 + 1e-9


def written_probability(value: float) -> float:
    number = replace(OK, faulty_probability=value).to_json()["faulty_probability"]
    assert isinstance(number, float)
    return number


@given(PROBABILITIES, PROBABILITIES)
def test_rounding_never_turns_the_order_of_probabilities_around(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert written_probability(low) <= written_probability(high)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0.999990, 0.999992),
        (0.999997, 0.999999),
        (1e-9, 1.00001e-9),
        (3e-8, 4e-8),
        (0.41886456, 0.418867),
    ],
)
def test_probabilities_near_0_and_1_stay_apart(low: float, high: float) -> None:
    assert written_probability(low) < written_probability(high)


@pytest.mark.parametrize(
    ("colour", "rgb"),
    [("#000000", (0, 0, 0)), ("#ff8001", (255, 128, 1)), ("#0A0b0C", (10, 11, 12))],
)
def test_colours_as_rgb(colour: str, rgb: tuple[int, int, int]) -> None:
    assert DefectClass("1", "Type 1", colour).rgb == rgb
