"""The main job on a drawn coil with known truth: what ``steelsight demo`` runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from steelsight.data.synthetic import CoilConfig, write_severstal
from steelsight.defects import Inspection
from steelsight.engine.batch import identity_of, recording
from steelsight.engine.cascade import Inspector
from steelsight.engine.sources import Sources
from steelsight.errors import InputError
from steelsight.report.folder import (
    STORE,
    OutputFolder,
    RunSummary,
    TruthFile,
    inspect_to_folder,
)
from steelsight.report.html import RunInfo, TruthTally

FRAMES, NOTE = "frames", "SYNTHETIC.txt"


def draw(folder: Path, config: CoilConfig, on_frame: Callable[[int], None]) -> Path:
    """Draws the coil into ``folder/frames``; an earlier demo there is replaced.

    Raises:
        InputError: ``folder`` holds anything that is not of an earlier demo.
    """
    frames = folder / FRAMES
    drawn_before = (frames / NOTE).is_file()
    if not drawn_before and folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"expected a new folder or that of an earlier demo, {folder} holds other files; "
            "give another --out"
        )
    if drawn_before:
        for old in (frames / "images").glob("synthetic-*.jpg"):
            old.unlink()
    return write_severstal(config, frames, progress=on_frame, overwrite=drawn_before)


def inspect_drawn(
    inspector: Inspector,
    frames: Path,
    folder: Path,
    run: RunInfo,
    on_result: Callable[[Inspection], None],
    stop: Callable[[], bool],
) -> tuple[RunSummary, TruthTally]:
    """Inspects the drawn frames against their truth and writes the output folder."""
    classes = inspector.bundle.classes
    images = frames / "images"
    sources = Sources([images])
    truth = TruthFile(
        frames / "train.csv", [c.id for c in classes], sources.names(), unlisted_are_clean=True
    )
    run = replace(run, synthetic=True, truth_source="drawn with the frames, exact")
    identity = identity_of(inspector, [images])
    with (
        OutputFolder(folder, classes, identity=identity, overwrite=True) as output,
        recording(
            folder / STORE, inspector, identity, command=run.command, source=run.source
        ) as record,
    ):
        summary = inspect_to_folder(
            inspector,
            sources,
            output,
            run,
            found=sources.count(),
            record=record,
            truth=truth,
            on_result=on_result,
            stop=stop,
        )
    return summary, output.report.truth
