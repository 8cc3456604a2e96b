"""Labels as Severstal published them: a CSV file with one run-length text per frame and type.

Two forms are read, told apart by their header; the columns may stand in any order and others are
ignored:

* ``ImageId,ClassId,EncodedPixels``: the later ``train.csv``;
* ``ImageId_ClassId,EncodedPixels``: the earlier ``train.csv`` and submissions, where the type is
  what follows the last ``_`` of the first column.

An empty ``EncodedPixels`` cell means that the frame has no defect of that type, so a frame is
known to be clean if its rows are all empty; a frame without any row is unknown. ``NaN`` and ``-1``
are errors: Severstal's files hold neither. ``NaN`` is what pandas writes when told to, and ``-1``
belongs to a competition with another run-length form (SIIM-ACR, starts relative to the run
before), whose other rows would decode to wrong masks.

The text is UTF-8 with or without byte order mark; cells are separated by ``,``, ``;`` or tab. Rows
are counted as a text editor counts lines: the header is row 1.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path, PurePosixPath

from steelsight.data.frame_list import FRAME_LIST, write_frame_list
from steelsight.data.labels import (
    CLASS_ID,
    CLASS_LIST,
    IMAGE_FOLDER,
    FrameLabels,
    LabelClass,
    LabelFormat,
    LabelSet,
    Placement,
    ReadOptions,
    check_image_name,
    classes_of,
    frame_size,
    images_beside,
    is_image_name,
    place_images,
    read_lines,
    shown,
    split_of,
    write_class_names,
)
from steelsight.data.tables import csv_safe, open_table, write_table
from steelsight.errors import InputError, LabelError, first_names
from steelsight.imaging import IMAGE_SUFFIXES
from steelsight.masks import rle_runs

SizesWh = (
    tuple[int, int] | Mapping[str, tuple[int, int]] | Callable[[str], tuple[int, int] | None] | None
)
"""Width and height in pixels of all frames, or by image; ``None`` where they are not known."""

FRAME_WH = (1600, 256)
"""Size of every frame that Severstal published."""

IMAGE_FOLDERS = (IMAGE_FOLDER, "train_images")
"""Where the images lie beside ``train.csv``: our own name, and that of the Kaggle archive."""


class CsvForm(StrEnum):
    """Which of the two published layouts is written."""

    ROWS = "rows"
    """``ImageId,ClassId,EncodedPixels``: a row per mask, and an empty row per type if clean."""
    SUBMISSION = "submission"
    """``ImageId_ClassId,EncodedPixels``: a row per frame and type, empty for none."""


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where the cells of a row stand; ``class_id`` is ``None`` in the joined form."""

    count: int
    image: int
    class_id: int | None
    rle: int


def read_csv(
    path: Path,
    *,
    size_wh: SizesWh = None,
    class_ids: Sequence[str] | None = None,
    errors: list[LabelError] | None = None,
) -> dict[str, FrameLabels]:
    """Reads a label file and checks every row.

    Args:
        path: CSV file in either form.
        size_wh: sizes to check the runs against; without a size everything but the end of the
            frame is checked.
        class_ids: the types that may occur; ``None`` accepts any.
        errors: a list to go on past broken rows: what is wrong with each is appended there. Images
            with a broken row are then left out, because the rest of their labels would make
            defects look like good steel. Without it the first broken row raises.

    Returns:
        Labels by image, in the order of the file.

    Raises:
        LabelError: a broken row (see ``errors``), or a file that is no such table: not UTF-8,
            columns missing, damaged quoting. The text names file, row, image and value.
        InputError: the file cannot be opened.
    """
    return _read_rows(path, size_wh, class_ids, errors).frames


@dataclass(slots=True)
class _Rows:
    """What a table says: frames, images with a broken row, and rows of no known image."""

    frames: dict[str, FrameLabels]
    refused: frozenset[str]
    orphans: int


def _read_rows(
    path: Path,
    size_wh: SizesWh,
    class_ids: Sequence[str] | None,
    errors: list[LabelError] | None,
) -> _Rows:
    masks: dict[str, dict[str, str]] = {}
    row_of: dict[tuple[str, str], int] = {}
    refused: set[str] = set()
    orphans = 0
    before = ""
    with open_table(path) as (header, rows):
        columns = _columns(header, str(path))
        for number, cells in rows:
            image, class_id = _image_and_class(cells, columns)
            where = f"{path} row {number}, image {shown(image)}, type {shown(class_id)}"
            try:
                _check_cells(cells, columns, where)
                check_image_name(image, where)
                _check_class(class_id, class_ids, where)
                earlier = row_of.setdefault((image, class_id), number)
                if earlier != number:
                    raise LabelError(
                        f"{where}: row {earlier} already has this image and type, expected one"
                        " row for each; merge the two masks or remove one row"
                    )
                rle = cells[columns.rle]
                rle_runs(rle, _size_of(image, size_wh), where=where)
            except LabelError as error:
                if errors is None:
                    raise
                errors.append(error)
                named = _names_an_image(image, whole=len(cells) == columns.count)
                # What names none may be the rest of the row before.
                refused.add(image if named else before)
                orphans += not named
                continue
            before = image
            of_image = masks.setdefault(image, {})
            if rle:
                of_image[class_id] = rle
    frames = {
        image: FrameLabels(image, rle_by_class)
        for image, rle_by_class in masks.items()
        if image not in refused
    }
    return _Rows(frames, frozenset(refused - {""}), orphans)


def _names_an_image(image: str, *, whole: bool) -> bool:
    """Whether a broken row tells its image; in one that is cut, that takes an image's suffix."""
    return is_image_name(image) and (whole or PurePosixPath(image).suffix.lower() in IMAGE_SUFFIXES)


def write_csv(
    path: Path,
    labels: Iterable[FrameLabels],
    *,
    form: CsvForm,
    class_ids: Sequence[str],
) -> None:
    """Writes labels or predictions in one of the published layouts, with LF line ends.

    Image names go through :func:`csv_safe`, so a name such as ``-1.jpg`` reads back changed.

    Args:
        path: file to write; an existing one is replaced.
        labels: frames in the order of the rows.
        form: the layout.
        class_ids: all types, in the order of the rows of one frame.

    Raises:
        InputError: a frame occurs twice or holds a type that is not in ``class_ids``, or the file
            cannot be written.
        LabelError: an image, type or RLE that :func:`read_csv` would refuse.
    """
    write_table(path, _table(labels, form, class_ids))


def recognise(path: Path) -> str | None:
    """A CSV file of masks, or a folder with one (``train.csv`` where there are several)."""
    csv_path = _label_csv(path)
    return f"{csv_path.name} holds a column EncodedPixels" if csv_path else None


def read(path: Path, options: ReadOptions, errors: list[LabelError] | None = None) -> LabelSet:
    """Reads a label file, or the folder that holds it, with the images beside it.

    Images are looked for in ``images/`` or ``train_images/`` beside the CSV file, and right beside
    it. A frame whose image is not there has the size that ``options`` tell, else that of
    Severstal's frames, and a note says so. An image without a row is unlabelled, because the
    published file lists only faulty frames; a table of frames beside it (see
    :mod:`steelsight.data.frame_list`) or ``options.unlisted_are_clean`` says that it is clean.

    Args:
        path: CSV file in either form, or a folder that holds one.
        options: see :class:`ReadOptions`; ``class_names`` are the types that may occur, in order.
        errors: a list to go on past broken rows.

    Raises:
        LabelError: see :func:`read_csv`.
        InputError: no such file, or several of which none is called ``train.csv``.
    """
    csv_path = _label_csv(path)
    if csv_path is None:
        raise InputError(
            f"{path}: expected a CSV file with the columns ImageId, ClassId and EncodedPixels, or"
            " one folder with one such file or train.csv; check the path"
        )
    paths = images_beside(
        csv_path.parent, options, errors, folders=IMAGE_FOLDERS, named=partial(_named, csv_path)
    )
    classes = classes_of(options.class_names, str(path)) or _listed_classes(csv_path.parent)
    sizes: dict[str, tuple[int, int]] = {}
    assumed = 0

    def size_of(image: str) -> tuple[int, int]:
        nonlocal assumed
        if image not in sizes:
            known = options.size_wh or options.sizes_wh.get(image) or image in paths
            assumed += not known
            sizes[image] = frame_size(image, paths, options, str(csv_path)) if known else FRAME_WH
        return sizes[image]

    rows = _read_rows(csv_path, size_of, [c.id for c in classes] or None, errors)
    frames = {
        image: replace(frame, size_wh=size_of(image), split=split_of(image))
        for image, frame in rows.frames.items()
    }
    if options.unlisted_are_clean:
        for image in paths:
            if image not in frames and image not in rows.refused:
                frames[image] = FrameLabels(image, {}, size_of(image), split=split_of(image))
    notes: tuple[str, ...] = ()
    if assumed:
        notes = (
            f"{assumed} frames have no image here: their size was taken as Severstal's"
            f" {FRAME_WH[0]} x {FRAME_WH[1]} (--size tells another)",
        )
    return LabelSet(
        format="severstal",
        source=path,
        classes=classes or _classes_in(rows.frames.values()),
        frames=frames,
        image_paths=paths,
        refused=rows.refused,
        orphans=rows.orphans,
        notes=notes,
    )


def write(label_set: LabelSet, folder: Path, placement: Placement) -> dict[str, str]:
    """Writes ``train.csv`` as published (only rows of masks) and the table of all frames.

    Also ``classes.txt``, all types in their order, because the rows name only those that occur.
    """
    faulty = (frame for frame in label_set.frames.values() if frame.rle_by_class)
    return _write(label_set, folder, placement, "train.csv", faulty, CsvForm.ROWS)


def write_submission(label_set: LabelSet, folder: Path, placement: Placement) -> dict[str, str]:
    """Writes ``submission.csv``, a row per frame and type, and the table of all frames."""
    frames = label_set.frames.values()
    return _write(label_set, folder, placement, "submission.csv", frames, CsvForm.SUBMISSION)


SEVERSTAL = LabelFormat(
    "severstal", "Kaggle CSV: ImageId,ClassId,EncodedPixels", recognise, read, write
)
SUBMISSION = LabelFormat(
    "severstal-submission",
    "Kaggle CSV: ImageId_ClassId,EncodedPixels",
    lambda _: None,  # read as "severstal": the header tells the form
    read,
    write_submission,
)


def _label_csv(path: Path) -> Path | None:
    """The label file that is meant; ``None`` if there is none, or no telling which."""
    try:
        if path.is_file():
            return path if path.suffix.lower() == ".csv" and _holds_masks(path) else None
        found = [p for p in sorted(path.glob("*.csv")) if _holds_masks(p)]
    except OSError:
        return None
    named = [p for p in found if p.name == "train.csv"]
    return named[0] if named else found[0] if len(found) == 1 else None


def _holds_masks(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return "EncodedPixels" in file.readline(4096)
    except OSError:
        return False


def _listed_classes(folder: Path) -> tuple[LabelClass, ...]:
    path = folder / CLASS_LIST
    return classes_of(read_lines(path), str(path)) if path.is_file() else ()


def _classes_in(frames: Iterable[FrameLabels]) -> tuple[LabelClass, ...]:
    found = {class_id for frame in frames for class_id in frame.rle_by_class}
    order = sorted(found, key=lambda c: (not c.isdecimal(), int(c) if c.isdecimal() else 0, c))
    return tuple(LabelClass(class_id, class_id) for class_id in order)


def _named(path: Path) -> frozenset[str]:
    """All names of images in the table, right or wrong."""
    with open_table(path) as (header, rows):
        columns = _columns(header, str(path))
        return frozenset(_image_and_class(cells, columns)[0] for _, cells in rows)


def _write(
    label_set: LabelSet,
    folder: Path,
    placement: Placement,
    name: str,
    frames: Iterable[FrameLabels],
    form: CsvForm,
) -> dict[str, str]:
    write_csv(folder / name, frames, form=form, class_ids=label_set.class_ids)
    names = {image: csv_safe(image) for image in label_set.frames}
    write_frame_list(folder / FRAME_LIST, list(label_set.frames.values()), names)
    write_class_names(folder, label_set.classes)
    place_images(label_set, folder / IMAGE_FOLDER, placement, names)
    return {old: new for old, new in names.items() if new != old}


def _columns(header: list[str], name: str) -> _Columns:
    def found(*names: str) -> bool:
        return all(header.count(column) == 1 for column in names)

    if found("ImageId", "ClassId", "EncodedPixels"):
        image, class_id = header.index("ImageId"), header.index("ClassId")
        return _Columns(len(header), image, class_id, header.index("EncodedPixels"))
    if found("ImageId_ClassId", "EncodedPixels"):
        image = header.index("ImageId_ClassId")
        return _Columns(len(header), image, None, header.index("EncodedPixels"))
    raise LabelError(
        f"{name} row 1: expected the columns ImageId, ClassId and EncodedPixels, or ImageId_ClassId"
        f" and EncodedPixels, each once, found {shown(', '.join(header))}; name the columns so"
    )


def _image_and_class(cells: list[str], columns: _Columns) -> tuple[str, str]:
    """Also for a row with too few cells, so that its error can name the image."""
    image = cells[columns.image] if columns.image < len(cells) else ""
    if columns.class_id is None:
        image, _, class_id = image.rpartition("_")
        return image, class_id
    return image, cells[columns.class_id] if columns.class_id < len(cells) else ""


def _check_cells(cells: list[str], columns: _Columns, where: str) -> None:
    if len(cells) != columns.count:
        raise LabelError(
            f"{where}: {len(cells)} cells beginning with {shown(cells[0])}, expected"
            f" {columns.count} as in the header; add the missing cell or quote one that contains"
            " the separator"
        )


def _check_class(class_id: str, class_ids: Sequence[str] | None, where: str) -> None:
    if not CLASS_ID.fullmatch(class_id):
        raise LabelError(
            f"{where}: the type is {shown(class_id)}, expected ASCII letters, digits, - or _ such"
            " as '1'; write whole numbers (1, not 1.0) and a type in every row"
        )
    if class_ids is not None and class_id not in class_ids:
        raise LabelError(
            f"{where}: the type is {shown(class_id)}, expected one of {first_names(class_ids)};"
            " correct the row or add the type to the classes"
        )


def _size_of(image: str, size_wh: SizesWh) -> tuple[int, int] | None:
    if callable(size_wh):
        return size_wh(image)
    return size_wh.get(image) if isinstance(size_wh, Mapping) else size_wh


def _table(
    labels: Iterable[FrameLabels], form: CsvForm, class_ids: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    """Header and rows, each checked."""
    rows_form = form is CsvForm.ROWS
    for class_id in class_ids:
        _check_class(class_id, None, "class_ids")
        if not rows_form and "_" in class_id:
            raise InputError(
                f"the type {class_id!r} holds _, expected none in the column ImageId_ClassId;"
                f" write the form {CsvForm.ROWS.value!r}"
            )
    yield (
        ("ImageId", "ClassId", "EncodedPixels")
        if rows_form
        else ("ImageId_ClassId", "EncodedPixels")
    )
    written: set[str] = set()
    for frame in labels:
        image = csv_safe(frame.image)
        where = f"image {shown(frame.image)}"
        check_image_name(image, where)
        if image in written:
            raise InputError(f"{where} occurs twice, expected each frame once; merge its labels")
        written.add(image)
        for class_id, rle in frame.rle_by_class.items():
            _check_class(class_id, class_ids, where)
            rle_runs(rle, where=f"{where}, type {class_id!r}")
        for class_id in class_ids:
            rle = frame.rle_by_class.get(class_id, "")
            if not rows_form:
                yield f"{image}_{class_id}", rle
            elif rle or not any(frame.rle_by_class.values()):
                yield image, class_id, rle
