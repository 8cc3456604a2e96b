"""What Prometheus reads at ``/metrics``."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from steelsight.defects import Inspection, Verdict
from steelsight.service.room import Room
from steelsight.service.watch import drift_figures

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """Counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._verdicts = Counter(
            "steelsight_frames",
            "Frames that have an answer.",
            ["verdict", "reason"],
            registry=self._registry,
        )
        for verdict in (Verdict.OK, Verdict.NG):  # also those that never came yet
            self._verdicts.labels(verdict.value, "")
        self._defects = Counter(
            "steelsight_defects", "Defects by type.", ["type"], registry=self._registry
        )
        self._steps = Histogram(
            "steelsight_step_seconds",
            "Time of each step of an inspection.",
            ["step"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._requests = Counter(
            "steelsight_requests",
            "Requests by path and status.",
            ["path", "status"],
            registry=self._registry,
        )
        self._request_s = Histogram(
            "steelsight_request_seconds",
            "Time of a request, from its first byte to the last of its answer.",
            ["path"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._waiting = Gauge(
            "steelsight_queue_frames", "Frames that wait.", registry=self._registry
        )
        self._places = Gauge(
            "steelsight_queue_places", "Frames that may wait.", registry=self._registry
        )
        self._drift = Gauge(
            "steelsight_drift_distance",
            "Kolmogorov-Smirnov distance of the last frames from the reference.",
            ["figure"],
            registry=self._registry,
        )
        self._drift_alarm = Gauge(
            "steelsight_drift_alarm",
            "1: the last frames are unlike the reference.",
            ["figure"],
            registry=self._registry,
        )
        self._shadow = Gauge(
            "steelsight_shadow_frames",
            "Frames that the shadow model judged, by both verdicts.",
            ["active", "shadow"],
            registry=self._registry,
        )

    def count_inspection(self, inspection: Inspection) -> None:
        """Counts an answer."""
        reason = inspection.reason.value if inspection.reason else ""
        self._verdicts.labels(inspection.verdict.value, reason).inc()
        for defect in inspection.defects:
            self._defects.labels(defect.class_id).inc()
        for step, milliseconds in inspection.milliseconds.items():
            self._steps.labels(step).observe(milliseconds / 1e3)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Counts a request.

        Args:
            path: of the route, with its parameters as names: there must not be endlessly many.
            status: of the answer.
            seconds: it took.
        """
        self._requests.labels(path, str(status)).inc()
        self._request_s.labels(path).observe(seconds)

    def text(self, room: Room) -> bytes:
        """All figures, in Prometheus' text format."""
        self._waiting.set(room.waiting)
        self._places.set(room.settings.queue_frames)
        for verdicts, frames in list(room.shadow_counts.items()):
            active, _, shadow = verdicts.partition(" ")
            self._shadow.labels(active, shadow).set(frames)
        for figure, distance, alarm in drift_figures(room):
            self._drift.labels(figure).set(distance)
            self._drift_alarm.labels(figure).set(alarm)
        return generate_latest(self._registry)
