"""The output folder of a run: result lines, overlays, tables, the report.

``results.jsonl`` is written line by line and is the source of everything else: an interrupted run
leaves complete lines, and the tables are derived from them at the end.
"""

import csv
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TextIO

from steelsight.data.formats.severstal import CsvForm, read_csv, write_csv
from steelsight.data.labels import FrameLabels
from steelsight.data.tables import csv_safe
from steelsight.defects import DefectClass, Inspection, Verdict
from steelsight.engine.batch import Inspected, Source, inspect_sources
from steelsight.engine.cascade import Inspector
from steelsight.errors import InputError, LabelError
from steelsight.masks import decode_rle, merge_rles
from steelsight.report.html import ReportBuilder, RunInfo, Truth
from steelsight.report.overlays import JPEG_SIDE_PX, draw_overlay, encode_jpeg

RESULTS, SUBMISSION, QUARANTINE = "results.jsonl", "submission.csv", "quarantine.csv"
OVERLAYS, REPORT = "overlays", "report.html"
OVERLAY_JPEG_QUALITY = 90


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run comes to: ``seen == ok + ng + unknown``, and ``seen == found`` at its end."""

    folder: str
    found: int
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


class TruthFile:
    """Labels of the frames, from a Kaggle CSV; masks are decoded when their frame comes.

    A source is found by its name, else by its file name if that is unique among the sources.

    Args:
        path: the CSV file, either form.
        class_ids: the types of the bundle.
        sources: the frames to be inspected.
        unlisted_are_clean: frames without a row are good; otherwise nothing is known of them.

    Raises:
        InputError: the file is missing, or labels none of the sources.
        LabelError: the file is wrong.
    """

    def __init__(
        self,
        path: Path,
        class_ids: Sequence[str],
        sources: Sequence[Source],
        *,
        unlisted_are_clean: bool = False,
    ) -> None:
        self.path = path
        self._unlisted_are_clean = unlisted_are_clean
        self._listed: dict[str, FrameLabels] = {}
        by_image = read_csv(path, class_ids=class_ids)
        file_names = Counter(source.name.rpartition("/")[2] for source in sources)
        for source in sources:
            file_name = source.name.rpartition("/")[2]
            labels = by_image.get(source.name)
            if labels is None and file_names[file_name] == 1:
                labels = by_image.get(file_name)
            if labels is not None:
                self._listed[source.name] = labels
        if by_image and not self._listed:
            raise InputError(
                f"{path}: expected labels of the inspected frames such as "
                f"{sources[0].name!r}, found none of them; names are relative to the folder given"
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
    """Writes a run; use as a context manager, ``add`` every result, then ``finish``."""

    def __init__(
        self,
        folder: Path,
        classes: Sequence[DefectClass],
        *,
        overwrite: bool = False,
        overlays: bool = True,
    ) -> None:
        self.folder = folder
        self.classes = tuple(classes)
        self.report = ReportBuilder(classes)
        self._overwrite = overwrite
        self._overlays = overlays
        self._lines: TextIO | None = None

    def __enter__(self) -> Self:
        """Makes the folder.

        Raises:
            InputError: it holds an earlier run and ``overwrite`` is off, or it cannot be written.
        """
        results = self.folder / RESULTS
        for name in (RESULTS, SUBMISSION, QUARANTINE, REPORT):
            if (self.folder / name).exists() and not self._overwrite:
                raise InputError(
                    f"{self.folder / name} is there already, perhaps from an earlier run; "
                    "give another --out, or --overwrite to replace it"
                )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if results.exists():
                shutil.rmtree(self.folder / OVERLAYS, ignore_errors=True)
            for name in (SUBMISSION, QUARANTINE, REPORT):
                (self.folder / name).unlink(missing_ok=True)
            self._lines = results.open("w", encoding="utf-8", newline="\n")
        except OSError as error:
            raise InputError(
                f"expected a folder to write to at {self.folder}: {error.strerror}; give another "
                "--out"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines:
            self._lines.close()

    def add(self, inspected: Inspected, truth: Truth | None = None) -> None:
        """Writes one result: its line first, then its overlay if it is NG."""
        assert self._lines is not None  # noqa: S101 - entered
        inspection, frame = inspected
        self._lines.write(inspection.to_json_line() + "\n")
        self._lines.flush()
        grey_hw = frame.grey_hw if frame else None
        href = None
        if self._overlays and inspection.verdict is Verdict.NG and grey_hw is not None:
            href = f"{OVERLAYS}/{overlay_name(self.report.seen + 1, inspection.image)}"
            path = self.folder / href
            path.parent.mkdir(exist_ok=True)
            too_long = max(grey_hw.shape) > JPEG_SIDE_PX
            picture = draw_overlay(
                grey_hw,
                inspection.defects,
                self.classes,
                truth=truth,
                fit_wh=(JPEG_SIDE_PX, JPEG_SIDE_PX) if too_long else None,
            )
            path.write_bytes(encode_jpeg(picture, OVERLAY_JPEG_QUALITY))
        self.report.add(inspection, grey_hw, truth, overlay_href=href)

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


def overlay_name(number: int, image: str) -> str:
    """A file name that is unique by its number and harmless whatever the image is called."""
    stem = image.rpartition(".")[0] or image
    return f"{number:06d}-{re.sub(r'[^A-Za-z0-9._-]+', '_', stem)[-80:]}.jpg"


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
    sources: Sequence[Source],
    output: OutputFolder,
    run: RunInfo,
    *,
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
        truth: labels, if known.
        on_result: called after each frame, for a progress display.
        stop: asked before each frame; ``True`` ends the run early and cleanly.

    Returns:
        Counts that add up, and the rate.
    """
    labels_without_frame = truth.without_frame if truth else 0
    misfits: list[str] = []
    started = time.perf_counter()
    interrupted = False
    results = inspect_sources(inspector, sources)
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
            if stop() and output.report.seen < len(sources):
                interrupted = True
                break
    seconds = time.perf_counter() - started
    seen = output.report.seen
    rate = seen / seconds if seconds > 0 else 0.0
    counts = output.finish(
        replace(
            run,
            seconds=seconds,
            frames_per_second=rate,
            interrupted=interrupted,
            frames_found=len(sources),
            truth_source=_told(run.truth_source, len(misfits), labels_without_frame),
        )
    )
    return RunSummary(
        folder=str(output.folder),
        found=len(sources),
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
    )


def _told(truth_source: str | None, misfits: int, without_frame: int) -> str | None:
    if truth_source and misfits:
        truth_source += f"; {misfits} labels did not fit their frame and were left out"
    if truth_source and without_frame:
        truth_source += f"; {without_frame} labelled frames are not among these"
    return truth_source
