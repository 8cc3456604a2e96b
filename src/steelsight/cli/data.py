"""``steelsight data``: convert, check, explore, split and draw data sets."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from steelsight.cli.terminal import (
    DONE,
    GATE,
    SOME_UNKNOWN,
    Json,
    console_for,
    fail,
    print_json,
    progress,
    working,
)
from steelsight.errors import InputError, LabelError

if TYPE_CHECKING:
    from steelsight.data.convert import Conversion
    from steelsight.data.labels import LabelSet

SHOWN_ERRORS = 50
SHOWN_LOSSES = 20

data_app = App(
    name="data",
    help="Data sets: convert labels, check, explore, split; draw a synthetic one.",
    help_format="plaintext",
)

DataPath = Annotated[
    Path, Parameter(name="PATH", help="Folder, label file, or .zip of a data set.")
]


@Parameter(name="*")
@dataclass(frozen=True)
class LabelOptions:
    """How to read the labels, for all commands that do."""

    label_format: Annotated[
        str | None,
        Parameter(name=("--format", "--from"), help="Label format; recognised if left out."),
    ] = None
    images: Annotated[
        Path | None, Parameter(help="Folder of the images, if not beside the labels.")
    ] = None
    size: Annotated[
        str | None, Parameter(help="Size of frames without image, such as 1600x256.")
    ] = None
    classes: Annotated[
        str | None, Parameter(help="Names of the types in order, separated by commas.")
    ] = None
    frame_list: Annotated[
        Path | None,
        Parameter(help="CSV that tells clean, disputed, split, coil, ... of each frame."),
    ] = None
    unlisted_are_clean: Annotated[
        bool, Parameter(negative="", help="Images without any label are good steel.")
    ] = False


@data_app.command
def convert(
    path: DataPath,
    /,
    *,
    to: Annotated[
        str,
        Parameter(
            help="severstal, severstal-submission, coco, coco-polygons, yolo, mask-index,"
            " mask-palette, mask-binary, mvtec, label-studio or cvat."
        ),
    ],
    out: Annotated[Path, Parameter(help="New or empty folder.")],
    labels: LabelOptions | None = None,
    place: Annotated[
        str, Parameter(help="Images: leave (labels only), copy, or link (hard links).")
    ] = "leave",
    keep_going: Annotated[
        bool, Parameter(negative="", help="List all broken labels; convert the other frames.")
    ] = False,
    strict: Annotated[
        bool, Parameter(negative="", help="Exit code 4 if any mask was changed.")
    ] = False,
    json: Json = False,
) -> int:
    """Convert labels between formats, read back what was written, and say what was lost.

    Frames that are disputed or whose types have no mask are left out and counted: they would read
    as clean.

    Exit codes: 3 if broken labels were left out (--keep-going), 4 if masks changed (--strict).

    Example: steelsight data convert drawn/ --to coco --out coco/ --place copy
    """
    from steelsight.data.convert import convert as convert_labels
    from steelsight.data.formats.registry import format_named
    from steelsight.data.labels import Placement

    target = format_named(to)
    if place not in set(Placement):
        raise InputError(f"expected --place {', '.join(Placement)}, got {place!r}")
    errors: list[LabelError] | None = [] if keep_going else None
    with working("reading, writing, reading back"), _loaded(path, labels, errors) as label_set:
        done = convert_labels(label_set, target, out, Placement(place))
    _print_errors(errors or [])
    if json:
        print_json({**done.to_json(), "errors": [str(error) for error in errors or []]})
    else:
        _print_conversion(done, json)
    if strict and done.losses:
        return GATE
    return SOME_UNKNOWN if errors else DONE


@data_app.command
def synth(
    *,
    out: Annotated[Path, Parameter(help="New or empty folder.")],
    frames: Annotated[int, Parameter(help="How many frames to draw.")] = 200,
    seed: Annotated[int, Parameter(help="Same seed, same frames, byte for byte.")] = 0,
    faulty_share: Annotated[float, Parameter(help="Chance of a frame to be faulty.")] = 0.25,
    json: Json = False,
) -> int:
    """Draw steel strip frames with exact masks, in the Severstal layout.

    Writes images/, train.csv (Kaggle form), images.csv and SYNTHETIC.txt. The frames are drawn,
    not photographed; accuracy on them says nothing about real steel.

    Example: steelsight data synth --frames 200 --out drawn/
    """
    from steelsight.data.synthetic import CoilConfig, write_severstal

    console = console_for(json)
    config = CoilConfig(frames=frames, seed=seed, faulty_share=faulty_share)
    with progress("drawing", frames) as advance:
        write_severstal(config, out, progress=lambda _: advance(""))
    if json:
        print_json({"folder": str(out), "frames": frames, "seed": seed, "synthetic": True})
    else:
        console.print(f"{frames} drawn frames with exact masks in {out}.")
    return DONE


@contextmanager
def _loaded(
    path: Path, options: LabelOptions | None, errors: list[LabelError] | None
) -> Iterator["LabelSet"]:
    """The labels of a data set; an archive stays unpacked for as long as they are used."""
    from steelsight.data.archive import opened
    from steelsight.data.formats.registry import load
    from steelsight.data.labels import ReadOptions

    options = options or LabelOptions()
    read_options = ReadOptions(
        images=options.images,
        size_wh=_size_wh(options.size),
        class_names=tuple(n.strip() for n in (options.classes or "").split(",") if n.strip()),
        unlisted_are_clean=options.unlisted_are_clean,
    )
    with opened(path) as folder:
        yield load(
            folder,
            label_format=options.label_format,
            options=read_options,
            frame_list=options.frame_list,
            errors=errors,
        )


def _size_wh(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch("([1-9][0-9]{0,5})[xX×]([1-9][0-9]{0,5})", text.strip())
    if not match:
        raise InputError(f"expected --size WIDTHxHEIGHT such as 1600x256, got {text!r}")
    return int(match[1]), int(match[2])


def _print_errors(errors: list[LabelError]) -> None:
    for error in errors[:SHOWN_ERRORS]:
        fail(str(error), SOME_UNKNOWN)
    if len(errors) > SHOWN_ERRORS:
        fail(f"{len(errors)} broken labels in all", SOME_UNKNOWN)


def _print_conversion(done: "Conversion", json: bool) -> None:
    console = console_for(json)
    for note in done.notes:
        console.print(f"Note: {note}.")
    console.print(
        f"{done.frames} frames with {done.masks} masks from {done.source_format} to"
        f" {done.target_format} in {done.folder}."
    )
    for reason, images in done.left_out.items():
        console.print(f"Left out, {reason}: {len(images)} images ({', '.join(images[:3])}, ...).")
    for loss in done.losses[:SHOWN_LOSSES]:
        console.print(f"Changed: {loss.sentence}.")
    if len(done.losses) > SHOWN_LOSSES:
        console.print(f"{len(done.losses)} masks changed in all; --json lists them.")
    if not done.losses:
        console.print("Read back and compared: every mask is the same, pixel by pixel.")
