"""What happens on the line now: counts, a control chart of NG, drift of light and scores, times."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import APIRouter, Query

from steelsight.defects import Verdict
from steelsight.drift import (
    BASELINE_GROUPS,
    GROUP,
    WINDOW,
    Drift,
    drift_of,
    figures_of,
    limits_of,
    signals_of,
)
from steelsight.errors import InputError
from steelsight.exports import StoredResults
from steelsight.service.guard import HttpError
from steelsight.service.room import Model, Room
from steelsight.store.rows import Value

MOST_FRAMES = 20_000
THROUGHPUT_S = 60
OWN_REFERENCE_FRAMES, LEAST_REFERENCE_FRAMES = 1000, 200
REFERENCE = "reference.json"
STEPS = ("decode", "gate", "segment", "decide")


@dataclass(frozen=True, slots=True)
class Reference:
    """What light and scores should be like; see ``benchmarks/reference.py``.

    Attributes:
        source: for people.
        frames: how many, of light and of scores.
        figures: quantiles by figure.
        model, decision: whose scores they are, ``name@sha8`` and sha256; empty if nobody knows.
    """

    source: str
    frames: int
    clear_frames: int
    figures: dict[str, list[float]]
    model: str = ""
    decision: str = ""

    def of(self, model: Model) -> "Reference":
        """What of it can be compared with a model's frames: light, and scores if they are its own.

        Another decision may clear other frames, by another network.
        """
        bundle = model.inspector.bundle
        if (self.model, self.decision) == (bundle.id, bundle.decision.sha256):
            return self
        kept = {name: values for name, values in self.figures.items() if name != "score"}
        told = f"{self.source}; its scores are of another model or decision and not compared"
        return replace(self, source=told, figures=kept)


class Seen(NamedTuple):
    """A frame of the line."""

    inspection: int
    inspected_ms: int
    verdict: str
    reason: str | None
    score: float | None
    brightness: float | None
    contrast: float | None
    decode_ms: float | None
    gate_ms: float | None
    segment_ms: float | None
    decide_ms: float | None


def router(room: Room) -> APIRouter:
    """``/v1/watch``."""
    routes = APIRouter(tags=["watch"])

    @routes.get("/v1/watch")
    def watch(
        frames: Annotated[
            int, Query(ge=1, le=MOST_FRAMES, description="How many of the last are looked at.")
        ] = 5000,
    ) -> dict[str, Any]:
        """Counts, chart and drift of the last frames that the active model and decision judged."""
        return report(room, frames)

    @routes.post("/v1/watch/reference", status_code=201)
    def take(
        frames: Annotated[
            int, Query(ge=LEAST_REFERENCE_FRAMES, le=MOST_FRAMES, description="Of the last ones.")
        ] = OWN_REFERENCE_FRAMES,
    ) -> dict[str, Any]:
        """Takes the last frames, of a good day, as the reference of light and scores."""
        model = room.active
        with Line(room.store_path, model) as store:
            seen = store.last(frames)
        day = datetime.fromtimestamp(seen[-1].inspected_ms / 1e3, UTC) if seen else None
        source = (
            f"the {len(seen)} frames of this line up to {day:%Y-%m-%d %H:%M} UTC" if day else ""
        )
        taken = _made(seen, model, source)
        if taken is None or len(seen) < LEAST_REFERENCE_FRAMES:
            raise HttpError(
                409,
                "too-few",
                f"expected at least {LEAST_REFERENCE_FRAMES} frames of the active model and "
                f"decision, some of them clear, got {len(seen)}; inspect more",
            )
        path = room.settings.data / REFERENCE
        beside = path.with_name(f".{REFERENCE}-{id(taken):x}")
        try:
            beside.write_text(json.dumps(asdict(taken)), encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            raise HttpError(
                507, "not-kept", f"the reference could not be written: {error}"
            ) from None
        return {"source": taken.source, "frames": taken.frames}

    return routes


def report(room: Room, frames: int) -> dict[str, Any]:
    """All that the page shows."""
    model = room.active
    with Line(room.store_path, model) as store, store.one_state():
        seen = store.last(frames)
        types = store.types_of(seen)
        totals = store.totals()
    reference = reference_of(room, model)
    groups = [seen[i : i + GROUP] for i in range(0, len(seen) - GROUP + 1, GROUP)]
    counts = Counter(one.verdict for one in seen)
    return {
        "model": model.id,
        "decision": model.inspector.bundle.decision.id,
        "totals": totals,
        "frames": len(seen),
        "counts": {verdict.value: counts[verdict.value] for verdict in Verdict},
        "reasons": dict(Counter(one.reason for one in seen if one.verdict == "UNKNOWN")),
        "chart": _chart(groups),
        "groups": [_group(group, types) for group in groups],
        "drift": [one.to_json() for one in drifts_of(seen, reference, model)],
        "reference": None if reference is None else reference.source,
        "latency_ms": _latency(seen),
        "frames_per_s": _throughput(seen),
        "queue": {"waiting": room.waiting, "places": room.settings.queue_frames},
    }


def drift_figures(room: Room) -> Iterator[tuple[str, float, bool]]:
    """Figure, distance and alarm, for ``/metrics``; those that are known."""
    model = room.active
    with Line(room.store_path, model) as store:
        seen = store.last(WINDOW * 2)
    for drift in drifts_of(seen, reference_of(room, model), model):
        if drift.distance is not None:
            yield drift.figure, drift.distance, drift.alarm


def drifts_of(seen: Sequence[Seen], reference: Reference | None, model: Model) -> list[Drift]:
    """Each figure of the last frames against the reference; none without one."""
    if reference is None:
        return []
    clear_below = model.inspector.bundle.decision.gate.clear_below
    # Only clear frames: how many faulty ones there are is the matter of the chart.
    scores = [one.score for one in seen if one.score is not None and one.score < clear_below]
    values = {
        "brightness": [one.brightness for one in seen if one.brightness is not None],
        "contrast": [one.contrast for one in seen if one.contrast is not None],
        "score": scores,
    }
    return [
        drift_of(
            figure,
            np.asarray(values[figure], np.float64),
            quantiles,
            reference.clear_frames if figure == "score" else reference.frames,
            len(reference.figures),
        )
        for figure, quantiles in reference.figures.items()
    ]


def reference_of(room: Room, model: Model) -> Reference | None:
    """The file in the data folder, that of the shipped model, or the first frames of this line."""
    path = room.settings.data / REFERENCE
    if path.is_file():
        return _read(path).of(model)
    shipped = _shipped().get(model.id)
    # Behind a first look clear frames have scores of another network.
    if shipped is not None and model.inspector.bundle.decision.first_look is None:
        return shipped
    with Line(room.store_path, model) as store:
        first = store.first(OWN_REFERENCE_FRAMES)
    if len(first) < OWN_REFERENCE_FRAMES:
        return None
    return _made(first, model, f"the first {len(first)} frames of this line with this model")


def _made(seen: Sequence[Seen], model: Model, source: str) -> Reference | None:
    """``None`` if no frame was decoded, or none was clear."""
    light = [one for one in seen if one.brightness is not None]
    clear_below = model.inspector.bundle.decision.gate.clear_below
    clear = [one.score for one in seen if one.score is not None and one.score < clear_below]
    if not light or not clear:
        return None
    figures = figures_of(
        np.asarray([one.brightness for one in light], np.float64),
        np.asarray([one.contrast for one in light], np.float64),
        np.asarray(clear, np.float64),
    )
    bundle = model.inspector.bundle
    return Reference(
        source, len(light), len(clear), dict(figures), bundle.id, bundle.decision.sha256
    )


def _read(path: Path) -> Reference:
    try:
        return _parsed(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"expected a reference as benchmarks/reference.py writes it at {path.name}, got "
            f"{type(error).__name__}: {error}; make it again, or remove it"
        ) from None


def _parsed(facts: dict[str, Any]) -> Reference:
    figures = {name: [float(v) for v in facts["figures"][name]] for name in facts["figures"]}
    if set(figures) - {"brightness", "contrast", "score"}:
        raise KeyError(", ".join(figures))
    return Reference(
        str(facts["source"]),
        int(facts["frames"]),
        int(facts["clear_frames"]),
        figures,
        str(facts.get("model", "")),
        str(facts.get("decision", "")),
    )


@cache
def _shipped() -> dict[str, Reference]:
    folder = resources.files("steelsight.service") / "reference"
    found = [json.loads(file.read_text(encoding="utf-8")) for file in folder.iterdir()]
    return {facts["model"]: _parsed(facts) for facts in found}


def _chart(groups: Sequence[Sequence[Seen]]) -> dict[str, Any] | None:
    """The control chart; ``None`` until there is a baseline."""
    ng = [sum(one.verdict == "NG" for one in group) for group in groups]
    if len(groups) <= BASELINE_GROUPS:
        return None
    limits = limits_of(sum(ng[:BASELINE_GROUPS]), BASELINE_GROUPS * GROUP)
    return {
        "group": GROUP,
        "baseline_groups": BASELINE_GROUPS,
        "centre": limits.centre,
        "low": limits.low,
        "high": limits.high,
        "signals": [
            {"group": one.group + BASELINE_GROUPS, "rule": one.rule, "words": one.words}
            for one in signals_of(ng[BASELINE_GROUPS:], limits)
        ],
    }


def _group(group: Sequence[Seen], types: dict[int, list[str]]) -> dict[str, Any]:
    verdicts = Counter(one.verdict for one in group)
    light = [one.brightness for one in group if one.brightness is not None]
    return {
        "from_ms": group[0].inspected_ms,
        "to_ms": group[-1].inspected_ms,
        "ng": verdicts["NG"],
        "unknown": verdicts["UNKNOWN"],
        "by_type": dict(Counter(name for one in group for name in types.get(one.inspection, ()))),
        "brightness": float(np.mean(light)) if light else None,
    }


def _latency(seen: Sequence[Seen]) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of each step of the last frames, and of their sum."""
    found = {}
    table = np.array([one[-len(STEPS) :] for one in seen[-WINDOW:]], np.float64)
    if table.size:
        sums = np.nansum(table, axis=1)
        for name, column in (*zip(STEPS, table.T, strict=True), ("all", sums)):
            known = column[np.isfinite(column)]
            if len(known):
                median, high = np.percentile(known, (50, 95))
                found[name] = {"median": float(median), "p95": float(high)}
    return found


def _throughput(seen: Sequence[Seen]) -> float:
    since_ms = time.time() * 1e3 - THROUGHPUT_S * 1e3
    return sum(one.inspected_ms >= since_ms for one in seen) / THROUGHPUT_S


class Line(StoredResults):
    """The frames that a model and its decision judged, in their order.

    Args:
        path: of the store.
        model: the one that is watched; restarts of the service do not begin anew.
    """

    def __init__(self, path: Path, model: Model) -> None:
        super().__init__(path)
        decision = model.inspector.bundle.decision
        values: dict[str, Value] = {"model": model.id, "decision": decision.sha256}
        self._runs_of_it = json.dumps([run for (run,) in self._rows(_RUNS, values)])

    def last(self, frames: int) -> list[Seen]:
        """The last frames, the oldest of them first."""
        values: dict[str, Value] = {"runs": self._runs_of_it, "limit": frames}
        found = [Seen(*row) for row in self._rows(_SEEN.format(order="DESC"), values)]
        return found[::-1]

    def first(self, frames: int) -> list[Seen]:
        """The first frames."""
        values: dict[str, Value] = {"runs": self._runs_of_it, "limit": frames}
        return [Seen(*row) for row in self._rows(_SEEN.format(order="ASC"), values)]

    def types_of(self, seen: Sequence[Seen]) -> dict[int, list[str]]:
        """Types by inspection, each once."""
        ids = json.dumps(sorted({one.inspection for one in seen if one.verdict == "NG"}))
        found: dict[int, list[str]] = {}
        for inspection, class_id in self._rows(_TYPES, {"ids": ids}):
            found.setdefault(inspection, []).append(class_id)
        return found

    def totals(self) -> dict[str, int]:
        """All frames of all runs: ``seen == ok + ng + unknown``."""
        rows = self.counts()
        return {
            "seen": sum(row.seen for row in rows),
            "ok": sum(row.ok for row in rows),
            "ng": sum(row.ng for row in rows),
            "unknown": sum(row.unknown for row in rows),
        }


_RUNS = """
SELECT r.id FROM runs r JOIN models m ON m.id = r.model JOIN decisions d ON d.id = r.decision
WHERE m.name = :model AND d.sha256 = :decision
"""

# By the rowid of the sightings: they are added in the order of the frames.
_SEEN = """
SELECT i.id, i.inspected_ms, i.verdict, i.reason, i.faulty_probability, i.brightness, i.contrast,
  i.decode_ms, i.gate_ms, i.segment_ms, i.decide_ms
FROM (
  SELECT id, inspection FROM sightings
  WHERE run IN (SELECT value FROM json_each(:runs)) ORDER BY id {order} LIMIT :limit
) s
CROSS JOIN inspections i ON i.id = s.inspection ORDER BY s.id {order}
"""

_TYPES = """
SELECT DISTINCT d.inspection, d.class_id FROM json_each(:ids) k
CROSS JOIN defects d ON d.inspection = k.value
"""
