"""``steelsight compare``: is B better than A, or is it noise."""

from collections.abc import Collection, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from steelsight.cli.data import LabelOptions, loaded
from steelsight.cli.terminal import (
    DONE,
    Json,
    command_line,
    console_for,
    counted,
    print_json,
    table,
    working,
    write_json,
)
from steelsight.errors import DecodeError, InputError, LabelError

if TYPE_CHECKING:
    from steelsight.data.labels import LabelSet
    from steelsight.defects import DefectClass
    from steelsight.evaluation.compare import Comparison, Difference, Flip
    from steelsight.report.compare_page import FlipPicture

REPORT, FIGURES, FLIPS = "report.html", "comparison.json", "flips.csv"
SHOWN_TYPES = 12


def compare(
    a: Annotated[
        Path,
        Parameter(
            name="A", help="What runs today: predictions.npz, a training run or an evaluation."
        ),
    ],
    b: Annotated[Path, Parameter(name="B", help="What might replace it.")],
    /,
    *,
    decision_a: Annotated[
        Path | None, Parameter(help="Decision file of A; that in its folder or bundle if left out.")
    ] = None,
    decision_b: Annotated[Path | None, Parameter(help="Decision file of B.")] = None,
    data: Annotated[
        Path | None, Parameter(help="The data set, for pictures of the frames that flip.")
    ] = None,
    labels: LabelOptions | None = None,
    out: Annotated[
        Path, Parameter(help="Folder for report.html, comparison.json and flips.csv.")
    ] = Path("out/compare"),
    overwrite: Annotated[
        bool, Parameter(negative="", help="Replace an earlier comparison in --out.")
    ] = False,
    resamples: Annotated[int, Parameter(help="Of the bootstrap, for the intervals.")] = 2000,
    seed: Annotated[int, Parameter(help="Of the bootstrap.")] = 0,
    json: Json = False,
) -> int:
    """Say whether B is better than A on the same frames, or whether it is noise.

    Exact McNemar test of the verdicts, paired bootstrap of every figure, and the frames on which
    the verdict flips. Evaluate with --save-predictions to have something to compare.

    Example: steelsight compare evaluation-fp32/ evaluation-int8/ --out out/compare/
    """
    from steelsight.evaluation.compare import compare as compare_sides
    from steelsight.evaluation.pairing import load_side
    from steelsight.report.compare_page import compare_page
    from steelsight.report.page import write_page

    if resamples < 1:
        raise InputError(f"expected --resamples from 1, got {resamples}")
    if seed < 0:
        raise InputError(f"expected --seed from 0, got {seed}")
    earlier = [name for name in (REPORT, FIGURES, FLIPS) if (out / name).exists()]
    if earlier and not overwrite:
        raise InputError(
            f"{out / earlier[0]} is there already; give another --out, or --overwrite to replace it"
        )
    with working("comparing"):
        comparison = compare_sides(
            load_side(a, decision_a), load_side(b, decision_b), resamples=resamples, seed=seed
        )
    classes: tuple[DefectClass, ...] = ()
    pictures: list[FlipPicture] = []
    if data is not None:
        errors: list[LabelError] = []
        with loaded(data, labels, errors) as label_set:
            classes, pictures = _pictures(comparison, label_set)
    facts = comparison.to_json()
    page = compare_page(
        facts,
        pictures,
        title=f"{_short(a)} or {_short(b)}",
        classes=classes,
        command=command_line(),
    )
    _make_folder(out)
    _write_flips(comparison, out / FLIPS)
    write_json(out / FIGURES, facts)
    write_page(out / REPORT, page)
    if json:
        print_json(facts)
    else:
        _print(comparison, facts["summary"], out)
    return DONE


def _short(path: Path) -> str:
    """Enough of a path to tell two of them apart."""
    resolved = path.resolve()
    return resolved.parent.name if resolved.suffix == ".npz" else resolved.name


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"expected a folder to write to at {out}: {error.strerror}; give another --out"
        ) from None


def _pictures(
    comparison: "Comparison", label_set: "LabelSet"
) -> "tuple[tuple[DefectClass, ...], list[FlipPicture]]":
    from steelsight.imaging import read_file
    from steelsight.masks import decode_rle
    from steelsight.report.compare_page import MAX_PICTURES, draw_flip
    from steelsight.report.data_page import label_classes

    classes = label_classes(label_set.classes)
    chosen = _chosen(comparison.flips, label_set.image_paths, MAX_PICTURES)
    pictures = []
    with counted("drawing", "frames") as step:
        for done, image in enumerate(chosen, 1):
            frame = label_set.frames.get(image)
            try:
                grey_hw = read_file(label_set.image_paths[image]).grey_hw
                size_wh = grey_hw.shape[1], grey_hw.shape[0]
                masks = {
                    class_id: decode_rle(rle, size_wh)
                    for class_id, rle in (frame.rle_by_class if frame else {}).items()
                }
                pictures.append(draw_flip(image, grey_hw, masks, classes))
            except (DecodeError, LabelError):
                pass  # the page says how many are shown
            step(done, len(chosen))
    return classes, pictures


def _chosen(flips: Sequence["Flip"], known: Collection[str], most: int) -> list[str]:
    """Frames to show: in turns of what is lost and gained, faulty and clean, the gravest first."""
    kinds: dict[tuple[bool, str], list[str]] = {}
    for flip in flips:
        if flip.image in known:
            kinds.setdefault((flip.faulty, flip.right), []).append(flip.image)
    in_turns = chain.from_iterable(zip_longest(*kinds.values()))
    return [image for image in in_turns if image is not None][:most]


def _write_flips(comparison: "Comparison", path: Path) -> None:
    from steelsight.data.tables import csv_safe, write_table

    header = (
        *("image", "label", "types", "verdict_a", "verdict_b"),
        *("faulty_probability_a", "faulty_probability_b", "right"),
    )
    rows: list[Sequence[str]] = [header]
    for flip in comparison.flips:
        told = flip.to_json() | {"types": " ".join(flip.class_ids)}
        rows.append([csv_safe(str(told[name])) for name in header])
    write_table(path, rows)


def _print(comparison: "Comparison", summary: list[str], out: Path) -> None:
    from steelsight.evaluation.compare import figure_words

    console = console_for(False)
    for side in (comparison.a, comparison.b):
        name = "A" if side is comparison.a else "B"
        decision = side["decision"]
        told = f", decision {decision['file'] or decision['name']}" if decision else ""
        console.print(f"{name}: {side['name']}{told}")
        for note in side["notes"]:
            console.print(f"   {note}")
    for sentence in summary:
        console.print(sentence)
    rows = [["figure", "A", "B", "B - A, 95 % interval", "verdict"]]
    rows += [_row(figure_words(name), d) for name, d in comparison.figures.items()]
    for class_id in list(comparison.types)[:SHOWN_TYPES]:
        rows += [
            _row(f"{figure_words(name)}, type {class_id}", d)
            for name, d in comparison.types[class_id].items()
        ]
    console.print(table(rows))
    if len(comparison.types) > SHOWN_TYPES:
        console.print(f"{len(comparison.types)} types in all; {out / FIGURES} has the others.")
    if comparison.flips:
        console.print(f"Frames that flip: {len(comparison.flips)}, in {out / FLIPS}.")
    console.print(f"Open {out / REPORT} in a browser; {out / FIGURES} has all.")


def _row(name: str, difference: "Difference") -> list[str]:
    told = f"{difference.difference:+.3f}, {difference.low:+.3f} to {difference.high:+.3f}"
    return [name, f"{difference.a:.3f}", f"{difference.b:.3f}", told, difference.outcome.value]
