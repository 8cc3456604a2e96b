"""The output folder of a run: result lines, overlays, tables, the report.

``results.jsonl`` is written line by line, and the tables are derived from it at the end. What lasts
is the store: a run that was cut off is given again by the same command, which writes the folder
anew, from the store as far as it goes. ``run.json`` says whose folder it is.
"""

import csv
import fcntl
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Self, TextIO

from steelsight.data.formats.severstal import CsvForm, read_csv, write_csv
from steelsight.data.labels import FrameLabels
from steelsight.data.tables import csv_safe
from steelsight.defects import DefectClass, Inspection, Verdict
from steelsight.engine.batch import Inspected, Record, inspect_sources
from steelsight.engine.cascade import Inspector
from steelsight.engine.sources import Source
from steelsight.errors import InputError, LabelError, StoreError
from steelsight.imaging import GreyHW
from steelsight.masks import decode_rle, merge_rles
from steelsight.report.html import ReportBuilder, RunInfo, Truth
from steelsight.report.overlays import JPEG_SIDE_PX, draw_overlay, encode_jpeg

RESULTS, SUBMISSION, QUARANTINE = "results.jsonl", "submission.csv", "quarantine.csv"
OVERLAYS, REPORT = "overlays", "report.html"
RUN, STORE, LOCK = "run.json", "store.db", ".lock"
OVERLAY_JPEG_QUALITY = 90


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run comes to: ``seen == ok + ng + unknown``, and ``seen == found`` at its end."""

    folder: str
    found: int | None
    """``None`` where the run ended before it was known."""
    seen: int
    ok: int
    ng: int
    unknown: int
    seconds: float
    frames_per_second: float
    interrupted: bool
    misfits: tuple[str, ...] = ()
    """Labels that did not fit their frame, a line each; those frames count as without truth."""
    labels_without_frame: int = 0
    """Labelled frames that were not among the sources."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """How many frames carry each note."""
    hidden_files: int = 0
    """Files that were left out, because their names begin with a dot."""
    known: int = 0
    """Results that were there from before."""


class TruthFile:
    """Labels of the frames, from a Kaggle CSV; masks are decoded when their frame comes.

    A source is found by its name, else by its file name if that is unique among the sources.

    Args:
        path: the CSV file, either form.
        class_ids: the types of the bundle.
        names: of the frames to be inspected.
        unlisted_are_clean: frames without a row are good; otherwise nothing is known of them.

    Raises:
        InputError: the file is missing, or labels none of the sources.
        LabelError: the file is wrong.
    """

    def __init__(
        self,
        path: Path,
        class_ids: Sequence[str],
        names: Iterable[str],
        *,
        unlisted_are_clean: bool = False,
    ) -> None:
        self.path = path
        self._unlisted_are_clean = unlisted_are_clean
        self._listed: dict[str, FrameLabels] = {}
        by_image = read_csv(path, class_ids=class_ids)
        # Only names with labels are kept: there may be millions of others.
        by_file_name: dict[str, list[str]] = {}
        first = ""
        for name in names:
            first = first or name
            file_name = name.rpartition("/")[2]
            if name in by_image:
                self._listed[name] = by_image[name]
            if file_name in by_image:
                by_file_name.setdefault(file_name, []).append(name)
        for file_name, found in by_file_name.items():
            if len(found) == 1:
                self._listed.setdefault(found[0], by_image[file_name])
        if by_image and not self._listed:
            raise InputError(
                f"{path}: expected labels of the inspected frames such as "
                f"{first!r}, found none of them; names are relative to the folder given"
            )
        self.without_frame = len(by_image) - len(self._listed)
        """How many labelled frames are not among the sources."""

    def of(self, inspection: Inspection) -> Truth | None:
        """The masks of one matched frame by type; ``None`` where nothing is known.

        Raises:
            LabelError: a mask does not fit the frame.
        """
        labels = self._listed.get(inspection.image)
        size_wh = inspection.size_wh
        if labels is None:
            # What could not be decoded is no good frame: often it is no frame at all.
            return {} if self._unlisted_are_clean and size_wh is not None else None
        if size_wh is None:
            return dict.fromkeys(labels.rle_by_class)
        where = f"{self.path}, image {inspection.image}"
        return {
            class_id: decode_rle(rle, size_wh, where=f"{where}, type {class_id}")
            for class_id, rle in labels.rle_by_class.items()
        }


class OutputFolder:
    """Writes a run; use as a context manager, ``add`` every result, then ``finish``.

    Args:
        folder: made if it is not there.
        classes: the types of the bundle.
        identity: what the results follow from: inputs, model, decision, settings, in plain words.
            A folder with an earlier run of the same identity is continued.
        overwrite: replace an earlier run, also one of the same identity.
        overlays: write a picture of every NG frame.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[DefectClass],
        *,
        identity: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        overlays: bool = True,
    ) -> None:
        self.folder = folder
        self.classes = tuple(classes)
        self.report = ReportBuilder(classes)
        self.known = 0
        """Results that were there from before."""
        self._identity = identity
        self._overwrite = overwrite
        self._overlays = overlays
        self._lines: TextIO | None = None
        self._lock: BinaryIO | None = None

    def __enter__(self) -> Self:
        """Makes the folder.

        Raises:
            InputError: it holds another run and ``overwrite`` is off, or it cannot be written.
        """
        names = (RESULTS, SUBMISSION, QUARANTINE, REPORT)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.folder)
            continues = not self._overwrite and self._holds_this_run()
            if not continues:
                if any((self.folder / name).exists() for name in (*names, STORE)):
                    shutil.rmtree(self.folder / OVERLAYS, ignore_errors=True)
                for name in (RUN, STORE, f"{STORE}-wal", f"{STORE}-shm"):
                    (self.folder / name).unlink(missing_ok=True)
            for name in names:
                (self.folder / name).unlink(missing_ok=True)
            if self._identity is not None:
                write_run(self.folder, {"complete": False, "identity": self._identity})
            self._lines = (self.folder / RESULTS).open("w", encoding="utf-8", newline="\n")
        except BaseException as error:
            self.__exit__()
            if not isinstance(error, OSError):
                raise
            raise InputError(
                f"expected a folder to write to at {self.folder}: {error.strerror}; give another "
                "--out"
            ) from None
        return self

    def _holds_this_run(self) -> bool:
        """Whether the folder holds an earlier run of the same identity.

        Raises:
            InputError: it holds another one.
        """
        earlier = read_run(self.folder)
        if earlier is not None and self._identity is not None:
            # As JSON gives it back.
            identity = json.loads(json.dumps(self._identity))
            before = earlier["identity"]
            if before == identity:
                return True
            other = sorted(k for k in before.keys() | identity if before.get(k) != identity.get(k))
            raise InputError(
                f"{self.folder} holds a run with another {', '.join(other)}; give another --out, "
                "or --overwrite to replace it"
            )
        for name in (RESULTS, SUBMISSION, QUARANTINE, REPORT, STORE):
            if (self.folder / name).exists():
                raise InputError(
                    f"{self.folder / name} is there already, perhaps from an earlier run; "
                    "give another --out, or --overwrite to replace it"
                )
        return False

    def __exit__(self, *_: object) -> None:
        if self._lines:
            self._lines.close()
        if self._lock:
            self._lock.close()

    def add(self, inspected: Inspected, truth: Truth | None = None) -> None:
        """Writes one result: its line first, then its overlay if it is NG."""
        assert self._lines is not None  # noqa: S101 - entered
        inspection, frame = inspected.inspection, inspected.frame
        self.known += inspected.known_as is not None
        self._lines.write(inspection.to_json_line(timing=False) + "\n")
        self._lines.flush()
        grey_hw = frame.grey_hw if frame else None
        href = None
        if self._overlays and inspection.verdict is Verdict.NG and grey_hw is not None:
            href = f"{OVERLAYS}/{overlay_name(inspection.image, inspection.sha256)}"
            # One that is there is of the same frame, by the same run.
            if not (self.folder / href).exists():
                self._write_overlay(self.folder / href, inspection, grey_hw, truth)
        self.report.add(inspection, grey_hw, truth, overlay_href=href)

    def _write_overlay(
        self, path: Path, inspection: Inspection, grey_hw: GreyHW, truth: Truth | None
    ) -> None:
        path.parent.mkdir(exist_ok=True)
        too_long = max(grey_hw.shape) > JPEG_SIDE_PX
        picture = draw_overlay(
            grey_hw,
            inspection.defects,
            self.classes,
            truth=truth,
            fit_wh=(JPEG_SIDE_PX, JPEG_SIDE_PX) if too_long else None,
        )
        # At once: half a picture would never be written again.
        beside = path.with_name(f".{path.name}.unfinished")
        beside.write_bytes(encode_jpeg(picture, OVERLAY_JPEG_QUALITY))
        beside.replace(path)

    def finish(self, run: RunInfo) -> dict[str, int]:
        """Writes the tables and the report of what was added; returns the counts."""
        assert self._lines is not None  # noqa: S101 - entered
        self._lines.close()
        results = self.folder / RESULTS
        _write_quarantine(self.folder / QUARANTINE, results)
        self.report.write(self.folder / REPORT, run)
        write_csv(
            self.folder / SUBMISSION,
            _submission(results),
            # ImageId_ClassId cannot be taken apart again where ids hold a _ themselves.
            form=CsvForm.ROWS if any("_" in c.id for c in self.classes) else CsvForm.SUBMISSION,
            class_ids=[c.id for c in self.classes],
        )
        return {verdict.value: count for verdict, count in self.report.counts.items()}

    def conclude(self, run: RunInfo, summary: RunSummary) -> None:
        """Says in ``run.json`` how the run ended; the last thing that is written."""
        if self._identity is None:
            return
        facts = {
            "complete": not summary.interrupted,
            "identity": self._identity,
            "command": run.command,
            "started": run.started,
            "versions": dict(run.versions),
            "counts": {
                "found": summary.found,
                "seen": summary.seen,
                "ok": summary.ok,
                "ng": summary.ng,
                "unknown": summary.unknown,
            },
            "seconds": summary.seconds,
            "results_sha256": file_sha256(self.folder / RESULTS),
        }
        write_run(self.folder, facts)


def _locked(folder: Path) -> BinaryIO:
    """Keeps a second run out until the file is closed, also by the end of the process.

    Raises:
        InputError: another run writes there.
    """
    file = (folder / LOCK).open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(
            f"another run writes to {folder}; wait for its end, or give another --out"
        ) from None
    return file


def file_sha256(path: Path) -> str:
    """Of a file's content, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def overlay_name(image: str, sha256: str | None) -> str:
    """A file name that is one frame's alone, and harmless whatever the image is called.

    Args:
        image: its name in the results.
        sha256: of its content.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", image.rpartition(".")[0] or image)[-80:]
    digest = hashlib.sha256(f"{sha256} {image}".encode()).hexdigest()
    return f"{stem.lstrip('.-') or 'frame'}-{digest[:10]}.jpg"


def read_run(folder: Path) -> dict[str, Any] | None:
    """What ``run.json`` says of the run in a folder; ``None`` where there is none to read."""
    try:
        run = json.loads((folder / RUN).read_bytes())
    except (OSError, ValueError):
        return None
    return run if isinstance(run, dict) and isinstance(run.get("identity"), dict) else None


def write_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Writes ``run.json`` at once."""
    beside = folder / f".{RUN}.unfinished"
    # ASCII: paths may hold bytes that are no UTF-8.
    beside.write_text(json.dumps(run, indent=1) + "\n", encoding="ascii")
    beside.replace(folder / RUN)


def read_results(path: Path) -> Iterator[dict[str, Any]]:
    """The result objects of a ``results.jsonl``, one by one."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _submission(results: Path) -> Iterator[FrameLabels]:
    """UNKNOWN frames are left out: an empty cell would claim that they are clean."""
    for result in read_results(results):
        if result["verdict"] != Verdict.UNKNOWN:
            yield FrameLabels(result["image"], _rle_by_class(result))


def _rle_by_class(result: dict[str, Any]) -> dict[str, str]:
    runs: dict[str, list[str]] = {}
    for defect in result["defects"]:
        runs.setdefault(defect["class"], []).append(defect["rle"])
    return {class_id: merge_rles(rles) for class_id, rles in runs.items()}


def _write_quarantine(path: Path, results: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["image", "reason", "detail", "sha256"])
        for result in read_results(results):
            if result["verdict"] == Verdict.UNKNOWN:
                cells = (result["image"], result["reason"], result["detail"], result["sha256"])
                table.writerow([csv_safe(cell or "") for cell in cells])


def inspect_to_folder(
    inspector: Inspector,
    sources: Iterable[Source],
    output: OutputFolder,
    run: RunInfo,
    *,
    found: int | None = None,
    record: Record | None = None,
    truth: TruthFile | None = None,
    on_result: Callable[[Inspection], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> RunSummary:
    """Inspects every source and writes the whole output folder.

    Args:
        inspector: the loaded bundle.
        sources: what to inspect, in order.
        output: an entered folder.
        run: what the report says about the run; times, counts and interruption are filled in.
        found: how many sources there are, if known.
        record: where results are kept; without it a run that is cut off begins anew.
        truth: labels, if known.
        on_result: called after each frame, for a progress display.
        stop: asked before each frame; ``True`` ends the run early and cleanly.

    Returns:
        Counts that add up, and the rate.

    Raises:
        StoreError: results cannot be kept: a full disk, mostly.
    """
    try:
        return _inspect_to_folder(
            inspector, sources, output, run, found, record, truth, on_result, stop
        )
    except OSError as error:
        raise StoreError(
            f"could not write to {error.filename or output.folder}: {error.strerror}; free space "
            "and give the same command again: it continues"
        ) from None


def _inspect_to_folder(
    inspector: Inspector,
    sources: Iterable[Source],
    output: OutputFolder,
    run: RunInfo,
    found: int | None,
    record: Record | None,
    truth: TruthFile | None,
    on_result: Callable[[Inspection], None],
    stop: Callable[[], bool],
) -> RunSummary:
    labels_without_frame = truth.without_frame if truth else 0
    misfits: list[str] = []
    started = time.perf_counter()
    interrupted = False
    results = inspect_sources(inspector, sources, record)
    # Closing the generator ends its decoding thread, whatever happens.
    with closing(results):
        for inspected in results:
            try:
                known = truth.of(inspected.inspection) if truth else None
            except LabelError as error:
                known = None
                misfits.append(str(error))
            output.add(inspected, known)
            on_result(inspected.inspection)
            if output.report.seen != found and stop():
                interrupted = True
                break
    seconds = time.perf_counter() - started
    seen = output.report.seen
    if not interrupted:
        found = seen
    rate = seen / seconds if seconds > 0 else 0.0
    run = replace(
        run,
        seconds=seconds,
        frames_per_second=rate,
        interrupted=interrupted,
        frames_found=found,
        truth_source=_told(run.truth_source, len(misfits), labels_without_frame),
    )
    counts = output.finish(run)
    if record is not None:
        record.finish(complete=not interrupted)
    summary = RunSummary(
        folder=str(output.folder),
        found=found,
        seen=seen,
        ok=counts[Verdict.OK],
        ng=counts[Verdict.NG],
        unknown=counts[Verdict.UNKNOWN],
        seconds=round(seconds, 2),
        frames_per_second=round(rate, 2),
        interrupted=interrupted,
        misfits=tuple(misfits),
        labels_without_frame=labels_without_frame,
        notes=dict(output.report.notes),
        hidden_files=run.hidden_files,
        known=output.known,
    )
    output.conclude(run, summary)
    return summary


def _told(truth_source: str | None, misfits: int, without_frame: int) -> str | None:
    if truth_source and misfits:
        truth_source += f"; {misfits} labels did not fit their frame and were left out"
    if truth_source and without_frame:
        truth_source += f"; {without_frame} labelled frames are not among these"
    return truth_source
