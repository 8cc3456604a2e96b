"""Splits that can be trusted: which frames train, which ones test, written down with hashes.

Frames that show the same steel, or come from the same coil, form a group, and a group is never
divided: a network that saw one half of it has seen the answer for the other. Every frame stands in
the manifest (``split.json``) with the hash of its file and of its labels, so that training and
evaluation can prove that they use the data that were split (:meth:`Split.require`). Frames that
cannot be used are listed with the reason; nothing is lost.

The same data, options and seed give the same bytes, on every machine and in every order of the
frames: ties are broken by hashes of names, not by a random generator.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from steelsight import __version__
from steelsight.data.catalog import Catalog, FrameRecord
from steelsight.data.labels import CLASS_ID, FrameLabels, check_image_name, shown
from steelsight.data.stratification import RULE, stratify
from steelsight.data.tables import check_is_file, unique_keys
from steelsight.errors import InputError, LabelError, first_names
from steelsight.masks import union_rle

MAX_FILE_BYTES = 1 << 29
"""Largest split file that is read: about 1.5 million frames."""

_MAX_SEED = (1 << 63) - 1
_SHARE_TOLERANCE = 1e-6

# The manifest ------------------------------------------------------------------------------------


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected text without control characters")
    return text


def _image_name(image: str) -> str:
    try:
        check_image_name(image, "the name")
    except LabelError as error:  # pydantic adds the place to a ValueError only
        raise ValueError(str(error)) from error
    return image


Line = Annotated[str, AfterValidator(_one_line)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Id = Annotated[str, Field(pattern=rf"^{CLASS_ID.pattern}$")]
"""Of a type or a part."""
Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SplitClass(_Table):
    """One defect type."""

    id: Id
    name: Line


class Part(_Table):
    """One part, or one fold: what was wanted and what it holds."""

    name: Id
    wanted_share: Share
    """Of the frames."""
    achieved_share: float
    """``frames`` by all frames of the split, six digits behind the point."""
    groups: Count
    """Frames that stand alone are groups of one."""
    frames: Count
    faulty: Count
    clean: Count
    frames_by_type: Mapping[Id, Count]
    """A frame with two types counts twice."""


class FrameEntry(_Table):
    """One frame that is used."""

    image: Annotated[str, AfterValidator(_image_name)]
    part: str
    group: str
    """Name of the group's first frame."""
    types: tuple[Id, ...]
    """With or without mask, sorted; none for a clean frame."""
    sha256: Sha256
    """Of the file's bytes."""
    labels_sha256: Sha256
    """See :func:`labels_sha256`."""


class LeftOutReason(StrEnum):
    """Why an image is in no part."""

    MISSING = "missing"
    """Labels name it, but there is no such file."""
    UNREADABLE = "unreadable"
    REFUSED = "refused"
    """A label of it is broken."""
    UNLABELLED = "unlabelled"
    DISPUTED = "disputed"


class LeftOut(_Table):
    """One image that is not used."""

    image: Line
    reason: LeftOutReason
    detail: Line | None = None


class Split(_Table):
    """A split, as ``split.json`` holds it; whatever does not add up is refused.

    Frames are sorted by name. ``data_sha256`` is over name, ``sha256`` and ``labels_sha256`` of the
    frames: two splits of the same data share it. ``manifest_sha256`` is over everything else in the
    file, so that no part, group, seed or note can be changed by hand without being found out.
    """

    version: Literal[1] = 1
    made_by: Line
    created: Line | None = None
    source: Line
    """Name of the data set: of its file or folder, without the way to it."""
    seed: Annotated[int, Field(ge=0, le=_MAX_SEED)]
    rule: Line
    group_source: Line
    """Where the groups come from, such as ``near-duplicates`` or ``column coil``."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Number of folds, which are parts called ``fold-0``, ``fold-1``...; ``None`` for others."""
    classes: tuple[SplitClass, ...]
    parts: Annotated[tuple[Part, ...], Field(min_length=2)]
    images: Count
    """All images of the data set: frames and left out ones."""
    data_sha256: Sha256
    manifest_sha256: Sha256
    """Of the JSON text of all other fields: keys sorted, no blanks, ASCII."""
    notes: tuple[Line, ...] = ()
    frames: Annotated[tuple[FrameEntry, ...], Field(min_length=2)]
    left_out: tuple[LeftOut, ...] = ()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        names = [part.name for part in self.parts]
        _expect_unique("parts", names)
        _expect_unique("classes", [c.id for c in self.classes])
        if self.folds is not None and (
            len(names) != self.folds or names != _fold_names(self.folds)
        ):
            raise ValueError(f"expected the parts fold-0 to fold-{self.folds - 1}, in this order")
        total_share = math.fsum(part.wanted_share for part in self.parts)
        if abs(total_share - 1) > _SHARE_TOLERANCE:
            raise ValueError(f"the wanted shares add up to {total_share:g}, expected 1")
        return self

    @model_validator(mode="after")
    def _frames_fit(self) -> Self:
        images = [frame.image for frame in self.frames]
        left_out = [entry.image for entry in self.left_out]
        if images != sorted(images) or left_out != sorted(left_out):
            raise ValueError("expected frames and left_out in the order of their names")
        _expect_unique("frames and left_out", images + left_out)
        parts = {part.name for part in self.parts}
        class_ids = {c.id for c in self.classes}
        for frame in self.frames:
            where = f"image {shown(frame.image)}"
            if frame.part not in parts:
                raise ValueError(f"{where}: the part {shown(frame.part)} is not among the parts")
            if list(frame.types) != sorted(class_ids.intersection(frame.types)):
                raise ValueError(
                    f"{where}: the types are {shown(', '.join(frame.types))}, expected some of the"
                    " classes, sorted, each once"
                )
        _expect_undivided("the group", ((frame.group, frame) for frame in self.frames))
        _expect_undivided("the file", ((frame.sha256, frame) for frame in self.frames))
        return self

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        if self.images != len(self.frames) + len(self.left_out):
            raise ValueError(
                f"images is {self.images}, there are {len(self.frames)} frames and"
                f" {len(self.left_out)} left out"
            )
        class_ids = [c.id for c in self.classes]
        wanted_shares = {part.name: part.wanted_share for part in self.parts}
        counted_parts = _counted(self.frames, wanted_shares, class_ids)
        for part, counted in zip(self.parts, counted_parts, strict=True):
            for field in Part.model_fields:
                told, found = getattr(part, field), getattr(counted, field)
                if told != found:
                    raise ValueError(
                        f"part {part.name}: {field} is {told}, its frames make {found}"
                    )
        if self.data_sha256 != _data_sha256(self.frames):
            raise ValueError("data_sha256 does not fit the frames")
        return self

    @model_validator(mode="after")
    def _is_as_made(self) -> Self:
        if self.manifest_sha256 != _manifest_sha256(self):
            raise ValueError(
                "manifest_sha256 does not fit: something in the file was changed after it was made"
            )
        return self

    @property
    def sha256(self) -> str:
        """Identity of the split: sha256 of the bytes that :func:`write_split` writes."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @property
    def id(self) -> str:
        """First eight digits of ``sha256``, for people."""
        return self.sha256[:8]

    @property
    def assignment(self) -> dict[str, str]:
        """Part by image."""
        return {frame.image: frame.part for frame in self.frames}

    def images_of(self, part: str) -> tuple[str, ...]:
        """Names of the frames of one part, sorted.

        Raises:
            InputError: no such part.
        """
        names = [p.name for p in self.parts]
        if part not in names:
            raise InputError(
                f"the split has no part {shown(part)}, expected one of {first_names(names)};"
                " give one of these"
            )
        return tuple(frame.image for frame in self.frames if frame.part == part)

    def fold(self, index: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Frames to train on and frames held out, for one fold of a k-fold split.

        Raises:
            InputError: this split has no folds, or not this one.
        """
        if self.folds is None or not 0 <= index < self.folds:
            kind = "named parts, no folds" if self.folds is None else f"folds 0 to {self.folds - 1}"
            raise InputError(
                f"fold {index} was asked for, the split has {kind}; give one of these, or make"
                " another split with 'steelsight data split'"
            )
        held_out = f"fold-{index}"
        return (
            tuple(frame.image for frame in self.frames if frame.part != held_out),
            self.images_of(held_out),
        )

    def require(self, catalog: Catalog) -> None:
        """Makes sure that every frame is there, with the content and labels that were split.

        New images do not matter: they are in no part.

        Raises:
            InputError: names the first differences.
        """
        found = [d for d in verify_split(self, catalog) if d.kind is not DifferenceKind.NEW]
        if found:
            first = "; ".join(map(str, found[:3]))
            more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
            raise InputError(
                f"split {self.id} of {self.source}: the data differ in"
                f" {_number(len(found), 'place')} from those that were split: {first}{more};"
                " restore them, or make a new split with 'steelsight data split'"
            )

    def to_json(self) -> bytes:
        """The file: UTF-8, LF, one line for each part, frame and left out image."""
        lines = []
        for key, value in self.model_dump(mode="json").items():
            if isinstance(value, list) and value:
                rows = ",\n".join(f"  {_json(row)}" for row in value)
                lines.append(f" {_json(key)}: [\n{rows}\n ]")
            else:
                lines.append(f" {_json(key)}: {_json(value)}")
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _expect_unique(what: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise ValueError(f"{what}: {shown(twice)} occurs twice, expected it once")


def _expect_undivided(what: str, frames: Iterable[tuple[str, FrameEntry]]) -> None:
    first_by_key: dict[str, FrameEntry] = {}
    for key, frame in frames:
        first = first_by_key.setdefault(key, frame)
        if first.part != frame.part:
            raise ValueError(
                f"{what} {shown(key)} crosses parts: {shown(first.image)} is in {first.part},"
                f" {shown(frame.image)} in {frame.part}"
            )


def _counted(
    frames: Sequence[FrameEntry], wanted_shares: Mapping[str, float], class_ids: Sequence[str]
) -> tuple[Part, ...]:
    """The parts that these frames make."""
    by_part: dict[str, list[FrameEntry]] = {name: [] for name in wanted_shares}
    for frame in frames:
        by_part[frame.part].append(frame)
    counted = []
    for name, members in by_part.items():
        types = Counter(class_id for frame in members for class_id in frame.types)
        faulty = sum(bool(frame.types) for frame in members)
        counted.append(
            Part(
                name=name,
                wanted_share=wanted_shares[name],
                achieved_share=round(len(members) / len(frames), 6),
                groups=len({frame.group for frame in members}),
                frames=len(members),
                faulty=faulty,
                clean=len(members) - faulty,
                frames_by_type={class_id: types[class_id] for class_id in class_ids},
            )
        )
    return tuple(counted)


def _data_sha256(frames: Sequence[FrameEntry]) -> str:
    rows = [[frame.image, frame.sha256, frame.labels_sha256] for frame in frames]
    return hashlib.sha256(_json(rows).encode()).hexdigest()


def _manifest_sha256(split: Split) -> str:
    content = split.model_dump(mode="json", exclude={"manifest_sha256"})
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _fold_names(folds: int) -> list[str]:
    return [f"fold-{index}" for index in range(folds)]


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def labels_sha256(labels: FrameLabels) -> str:
    """The identity of a frame's labels, the same whichever format they were read from.

    sha256 of the JSON text ``{"masks":{type:RLE,...},"types_without_mask":[...]}``: keys and types
    sorted, no blanks, ASCII; runs of the RLE that touch are joined. The size of the frame is no
    part of it: the hash of the image stands for that.

    Raises:
        LabelError: a mask is no Kaggle RLE.
    """
    masks = {class_id: union_rle((rle,)) for class_id, rle in labels.rle_by_class.items()}
    canonical = {"masks": masks, "types_without_mask": sorted(set(labels.types_without_mask))}
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# Files -------------------------------------------------------------------------------------------


def write_split(split: Split, path: Path) -> None:
    """Writes ``split.json``; an existing file is replaced as a whole or left as it is.

    Raises:
        InputError: the file cannot be written.
    """
    unfinished = path.parent / f".{path.name}.unfinished"
    try:
        try:
            unfinished.write_bytes(split.to_json())
            unfinished.replace(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}), expected a file in an existing folder;"
            " check the path, its permissions and the free space"
        ) from error


def load_split(path: Path) -> Split:
    """Reads a split and checks that it is complete and adds up.

    Raises:
        InputError: no such file, no JSON, or something in it is missing, unknown or contradictory.
    """
    try:
        check_is_file(path)
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}), expected the split.json that 'steelsight"
            " data split' wrote; check the path and its permissions"
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise InputError(
            f"{path}: more than {MAX_FILE_BYTES} bytes, expected the split.json that 'steelsight"
            " data split' wrote; check the path"
        )
    try:
        split = Split.model_validate_json(content)
        json.loads(content, object_pairs_hook=unique_keys)  # pydantic takes the last of two keys
    except ValidationError as error:
        said = _said(error.errors(include_url=False, include_context=False)[0])
    except ValueError as error:
        said = str(error)
    else:
        return split
    raise InputError(f"{path}: {said}; make the split again with 'steelsight data split'")


def _said(problem: ErrorDetails) -> str:
    place = ".".join(map(str, problem["loc"]))
    place = place if place.isprintable() and len(place) <= 80 else shown(place)
    value = problem["input"]
    said = problem["msg"].removeprefix("Value error, ")
    if not place:
        return said
    return f"{place}: {said}{f', got {shown(value)}' if isinstance(value, str) else ''}"


# Groups ------------------------------------------------------------------------------------------


class ColumnGroups(NamedTuple):
    """Groups by a column of the labels, and what there is to say about them."""

    groups: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def groups_by_column(catalog: Catalog, column: str) -> ColumnGroups:
    """Frames with the same cell in a column, such as ``coil``, ``date`` or ``camera``.

    Frames with an empty cell stand alone.

    Raises:
        InputError: no frame has a value there; names the columns that there are.
    """
    by_cell: dict[str, list[str]] = {}
    without: list[str] = []
    columns: set[str] = set()
    for record in catalog.records:
        if record.labels is None:
            continue
        columns |= record.labels.attributes.keys()
        cell = record.labels.attributes.get(column, "").strip()
        if cell:
            by_cell.setdefault(cell, []).append(record.image)
        else:
            without.append(record.image)
    if not by_cell and not columns:
        raise InputError(
            f"the column {shown(column)} is not there, and the labels have no other column either,"
            " expected a table of frames with one; give it with --frame-list"
        )
    if not by_cell:
        there = first_names(map(shown, sorted(columns)))
        raise InputError(
            f"the column {shown(column)} {'is empty' if column in columns else 'is not there'},"
            f" expected one of the labels' columns with a value: {there}; give one of these"
        )
    notes: tuple[str, ...] = ()
    if without:
        notes = (
            f"{len(without)} of {len(without) + sum(map(len, by_cell.values()))} frames have no"
            f" {shown(column)} and stand alone, the first is {shown(min(without))}",
        )
    return ColumnGroups(merge_groups(by_cell.values(), ([image] for image in without)), notes)


def merge_groups(*groupings: Iterable[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Groups such that none of the given ones is divided: those that share a frame become one.

    Returns:
        Groups sorted by their first name, each sorted.
    """
    parent: dict[str, str] = {}

    def root(image: str) -> str:
        parent.setdefault(image, image)
        while parent[image] != image:
            parent[image] = parent[parent[image]]
            image = parent[image]
        return image

    for groups in groupings:
        for group in groups:
            for image in group:
                parent[root(image)] = root(group[0])
    merged: dict[str, list[str]] = {}
    for image in sorted(parent):
        merged.setdefault(root(image), []).append(image)
    return tuple(map(tuple, merged.values()))


# Checks ------------------------------------------------------------------------------------------


class DifferenceKind(StrEnum):
    """In which way data differ from those that were split."""

    MISSING = "missing"
    """A frame of the split is no longer there, or can no longer be read."""
    CONTENT = "content-changed"
    LABELS = "labels-changed"
    """Also: refused, disputed or without labels by now."""
    CROSSING = "group-crosses-parts"
    NEW = "new"
    """An image that is in no part, and was not left out for the reason that it has now."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference; as text one line for people."""

    kind: DifferenceKind
    image: str
    detail: str

    def __str__(self) -> str:
        return f"{shown(self.image)} {self.detail}"


def verify_split(
    split: Split, catalog: Catalog, groups: Iterable[Sequence[str]] = ()
) -> tuple[Difference, ...]:
    """Compares a split with data as they are now.

    Args:
        split: the split.
        catalog: the data set, scanned.
        groups: frames that must not be divided, such as near-duplicates found now. The groups of
            the split itself never are, a split with such a group cannot be built.

    Returns:
        Differences in the order of ``DifferenceKind``, then by image; empty if all is as it was.
    """
    records = {record.image: record for record in catalog.records}
    found: list[Difference] = []
    for frame in split.frames:
        record = records.pop(frame.image, None)
        if record is None:
            found.append(Difference(DifferenceKind.MISSING, frame.image, "is missing"))
            continue
        left_out = _left_out(record, catalog.label_set.refused)
        if left_out is not None and left_out.reason in _UNREADABLE:
            found.append(Difference(DifferenceKind.MISSING, frame.image, f"is {_why(left_out)}"))
            continue
        if record.sha256 != frame.sha256:
            found.append(
                Difference(DifferenceKind.CONTENT, frame.image, "is another file than was split")
            )
        if left_out is not None:
            found.append(Difference(DifferenceKind.LABELS, frame.image, f"is {_why(left_out)} now"))
        elif record.labels is not None and labels_sha256(record.labels) != frame.labels_sha256:
            before, now = _types_shown(frame.types), _types_shown(_types(record.labels))
            change = f"types {before}, now {now}" if before != now else "another mask"
            found.append(
                Difference(DifferenceKind.LABELS, frame.image, f"has other labels ({change})")
            )
    found += [
        Difference(DifferenceKind.CROSSING, leak.images[0], f"crosses parts: {leak}")
        for leak in split_leaks(split.assignment, groups)
    ]
    reason_then = {entry.image: entry.reason for entry in split.left_out}
    for record in records.values():
        left_out = _left_out(record, catalog.label_set.refused)
        then = reason_then.get(_printable(record.image))
        if then is None or left_out is None:
            now = "can be used" if left_out is None else f"is {_why(left_out)}"
            before = "was not there" if then is None else f"was {then}"
            found.append(
                Difference(DifferenceKind.NEW, record.image, f"{before} when split, now {now}")
            )
    order = list(DifferenceKind)
    return tuple(sorted(found, key=lambda d: (order.index(d.kind), d.image)))


@dataclass(frozen=True, slots=True)
class Leak:
    """Frames that show the same steel in different parts.

    Attributes:
        images_by_part: sorted names by part, at least two parts.
    """

    images_by_part: Mapping[str, tuple[str, ...]]

    @property
    def images(self) -> tuple[str, ...]:
        """All of its frames, sorted."""
        return tuple(sorted(image for images in self.images_by_part.values() for image in images))

    def __str__(self) -> str:
        return "; ".join(
            f"{part}: {first_names(map(shown, images), 3)}"
            for part, images in self.images_by_part.items()
        )


def split_leaks(assignment: Mapping[str, str], groups: Iterable[Sequence[str]]) -> tuple[Leak, ...]:
    """Which groups are divided by a split, be it ours or a published one.

    Args:
        assignment: part by image; images that are in no part do not count.
        groups: frames that belong together, such as ``Duplicates.groups``.

    Returns:
        One leak for each group that crosses parts, sorted by first image.
    """
    leaks = []
    for group in groups:
        by_part: dict[str, list[str]] = {}
        for image in sorted(set(group)):
            if image in assignment:
                by_part.setdefault(assignment[image], []).append(image)
        if len(by_part) > 1:
            leaks.append(Leak({part: tuple(by_part[part]) for part in sorted(by_part)}))
    return tuple(sorted(leaks, key=lambda leak: leak.images))


_UNREADABLE = (LeftOutReason.MISSING, LeftOutReason.UNREADABLE)


def _left_out(record: FrameRecord, refused: frozenset[str]) -> LeftOut | None:
    """Why a frame cannot be in a split; ``None`` if it can."""
    detail = None
    if record.path is None and record.sha256 is None:
        reason = LeftOutReason.MISSING
    elif record.reason is not None or record.sha256 is None:
        reason, detail = LeftOutReason.UNREADABLE, record.detail
    elif record.image in refused:
        reason = LeftOutReason.REFUSED
    elif record.labels is None:
        reason = LeftOutReason.UNLABELLED
    elif record.labels.disputed:
        reason = LeftOutReason.DISPUTED
    else:
        return None
    return LeftOut(
        image=_printable(record.image), reason=reason, detail=detail and _printable(detail)
    )


def _why(left_out: LeftOut) -> str:
    return f"{left_out.reason}{f' ({left_out.detail})' if left_out.detail else ''}"


def _types(labels: FrameLabels) -> tuple[str, ...]:
    return tuple(sorted(set(labels.class_ids)))


def _types_shown(types: Sequence[str]) -> str:
    return first_names(types) or "none"


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)


# Making a split ----------------------------------------------------------------------------------


def parse_parts(text: str) -> dict[str, float]:
    """Reads shares such as ``train=0.8,val=0.2``.

    Raises:
        InputError: not of this form, or see :func:`make_split`.
    """
    parts: dict[str, float] = {}
    for item in text.split(","):
        name, _, share = (piece.strip() for piece in item.partition("="))
        try:
            number = float(share)
        except ValueError:
            raise InputError(
                f"parts {shown(text)}: {shown(item)} is no share, expected name=number such as"
                " train=0.8,val=0.2; write it so"
            ) from None
        if name in parts:
            raise InputError(
                f"parts {shown(text)}: {shown(name)} occurs twice, expected each part once; rename"
                " one"
            )
        parts[name] = number
    _check_parts(parts)
    return parts


def _check_parts(parts: Mapping[str, float]) -> None:
    if len(parts) < 2:
        raise InputError(
            f"{len(parts)} part, expected two or more such as train=0.8,val=0.2; add one"
        )
    folded = [name.casefold() for name in parts]
    for name, share in parts.items():
        if not CLASS_ID.fullmatch(name) or folded.count(name.casefold()) > 1:
            raise InputError(
                f"the part {shown(name)}: expected different names of ASCII letters, digits, - and"
                " _ such as train; rename it"
            )
        if not 0 < share < 1:
            raise InputError(
                f"the part {shown(name)} has the share {share:g}, expected more than 0 and less"
                " than 1 such as 0.2 for 20 %; correct it"
            )
    if abs(math.fsum(parts.values()) - 1) > _SHARE_TOLERANCE:
        raise InputError(
            f"the shares add up to {math.fsum(parts.values()):g}, expected 1; correct them or add"
            " the part that is missing"
        )


def make_split(
    catalog: Catalog,
    groups: Sequence[Sequence[str]] | None,
    *,
    parts: Mapping[str, float] | None = None,
    folds: int | None = None,
    seed: int = 0,
    group_source: str,
    source: str | None = None,
    notes: Sequence[str] = (),
    created: str | None = None,
) -> Split:
    """Divides a data set into parts or folds that hold each type in proportion.

    How groups find their part is told in :mod:`steelsight.data.stratification`.

    Args:
        catalog: the data set, scanned.
        groups: frames that must stay together; groups that share a frame become one. ``None``:
            each frame alone. Equal files and equal pixels stay together in any case.
        parts: shares of the frames by name, such as ``{"train": 0.8, "val": 0.2}``.
        folds: number of equal parts instead.
        seed: another one gives another split of the same quality.
        group_source: in words, where the groups come from.
        source: name of the data set; by default that of the file or folder of its labels.
        notes: what else people should know about the groups.
        created: a date for the manifest. Without it the same command gives the same bytes.

    Returns:
        The split. ``notes`` say where groups or rare types kept it from what was wanted.

    Raises:
        InputError: not exactly one of ``parts`` and ``folds``; shares that do not add up to 1; more
            parts than groups; a group with an image that is not in the catalog; a negative seed.
        LabelError: a mask is no Kaggle RLE, or a type is not among the classes.
    """
    _check_arguments(parts, folds, seed, (group_source, created or "", *notes))
    usable, left_out = _usable(catalog)
    united, equal_notes = _united(catalog, groups or ())
    group_of = {
        image: kept[0]
        for group in united
        if (kept := [image for image in group if image in usable])
        for image in kept
    }
    group_ids = sorted(set(group_of.values()))
    count = folds if parts is None else len(parts)
    if count is None or len(group_ids) < count:
        raise InputError(
            f"{len(usable)} usable frames in {len(group_ids)} groups cannot fill {count}"
            f" {'folds' if parts is None else 'parts'}, expected at most one for each group;"
            f" {_left_out_counts(left_out)}give fewer, or other groups"
        )
    shares = dict.fromkeys(_fold_names(count), 1 / count) if parts is None else dict(parts)

    class_ids = catalog.label_set.class_ids
    unit_of = {group: unit for unit, group in enumerate(group_ids)}
    part_of_unit = stratify(
        _types_by_frame(usable, class_ids),
        np.array([unit_of[group_of[image]] for image in usable]),
        np.array(list(shares.values()), np.float64),
        _seeded_ranks(group_ids, seed),
    )

    names = list(shares)
    file_sha256 = {record.image: record.sha256 or "" for record in catalog.records}
    frames = tuple(
        FrameEntry(
            image=image,
            part=names[part_of_unit[unit_of[group_of[image]]]],
            group=group_of[image],
            types=_types(labels),
            sha256=file_sha256[image],
            labels_sha256=labels_sha256(labels),
        )
        for image, labels in usable.items()
    )
    achieved = _counted(frames, shares, class_ids)
    content: dict[str, Any] = {
        "made_by": f"steelsight {__version__}",
        "created": created,
        "source": _printable(source or catalog.label_set.source.resolve().name),
        "seed": seed,
        "rule": RULE,
        "group_source": group_source,
        "folds": folds,
        "classes": tuple(
            SplitClass(id=c.id, name=_printable(c.name)) for c in catalog.label_set.classes
        ),
        "parts": achieved,
        "images": len(frames) + len(left_out),
        "data_sha256": _data_sha256(frames),
        "notes": (*notes, *equal_notes, *_shortfalls(frames, achieved, class_ids)),
        "frames": frames,
        "left_out": left_out,
    }
    manifest_sha256 = _manifest_sha256(Split.model_construct(**content))
    return Split(**content, manifest_sha256=manifest_sha256)


def _check_arguments(
    parts: Mapping[str, float] | None, folds: int | None, seed: int, texts: Iterable[str]
) -> None:
    if (parts is None) == (folds is None):
        raise InputError(
            f"{'neither parts nor folds' if parts is None else 'both parts and folds'} were given,"
            " expected one of them; give parts such as train=0.8,val=0.2, or a number of folds"
        )
    if parts is not None:
        _check_parts(parts)
    if folds is not None and folds < 2:
        raise InputError(f"{folds} folds, expected 2 or more; give such a number")
    if not 0 <= seed <= _MAX_SEED:
        raise InputError(f"the seed is {seed}, expected 0 to {_MAX_SEED}; give such a number")
    for text in texts:
        if not text.isprintable():
            raise InputError(
                f"{shown(text)} holds control characters, expected one line of text; remove them"
            )


def _usable(catalog: Catalog) -> tuple[dict[str, FrameLabels], tuple[LeftOut, ...]]:
    """Labels of the frames that can be used, and everything else; both sorted by image."""
    usable: dict[str, FrameLabels] = {}
    # An image with a broken label may have no file, and then no record.
    left_out = {
        _printable(image): LeftOut(image=_printable(image), reason=LeftOutReason.REFUSED)
        for image in catalog.label_set.refused
    }
    for record in catalog.records:
        entry = _left_out(record, catalog.label_set.refused)
        if entry is not None:
            left_out[entry.image] = entry
        elif record.labels is not None:
            usable[record.image] = record.labels
    return dict(sorted(usable.items())), tuple(left_out[image] for image in sorted(left_out))


def _left_out_counts(left_out: Sequence[LeftOut]) -> str:
    counts = Counter(entry.reason for entry in left_out)
    listed = ", ".join(f"{counts[reason]} {reason}" for reason in LeftOutReason if counts[reason])
    return f"left out are {listed}; " if listed else ""


def _united(
    catalog: Catalog, groups: Sequence[Sequence[str]]
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Groups of all records, each frame in one, equal pictures together; and a note about those."""
    known = {record.image for record in catalog.records}
    for number, group in enumerate(groups, 1):
        if not known.issuperset(group):
            raise InputError(
                f"group {number}: the image {shown(min(set(group) - known))} is not in the data"
                " set, expected names of its images; make the groups from the same data set"
            )
    by_content: dict[tuple[str, str], list[str]] = {}
    for record in catalog.records:
        for kind, digest in ("file", record.sha256), ("pixels", record.pixels_sha256):
            if digest is not None:
                by_content.setdefault((kind, digest), []).append(record.image)
    given = merge_groups(groups, ([image] for image in known))
    united = merge_groups(given, by_content.values())
    if len(united) == len(given):
        return united, ()
    joined = len(given) - len(united)
    return united, (
        f"frames with equal files or equal pixels were kept together where the groups would have"
        f" let them part: {_number(joined, 'group')} fewer",
    )


def _types_by_frame(
    usable: Mapping[str, FrameLabels], class_ids: Sequence[str]
) -> NDArray[np.int64]:
    """Which types are on which frame, 0 or 1, shape (frames, types)."""
    column_of = {class_id: column for column, class_id in enumerate(class_ids)}
    types_ft = np.zeros((len(usable), len(class_ids)), np.int64)
    for row, (image, labels) in enumerate(usable.items()):
        for class_id in labels.class_ids:
            if class_id not in column_of:
                raise LabelError(
                    f"image {shown(image)}: the type is {shown(class_id)}, expected one of"
                    f" {first_names(class_ids)}; correct the label or add the type to the classes"
                )
            types_ft[row, column_of[class_id]] = 1
    return types_ft


def _seeded_ranks(group_ids: Sequence[str], seed: int) -> NDArray[np.int64]:
    """A shuffled place for each group that depends on seed and name only."""
    digests = [hashlib.sha256(f"{seed}:{group}".encode()).digest() for group in group_ids]
    ranks = np.empty(len(group_ids), np.int64)
    ranks[sorted(range(len(group_ids)), key=digests.__getitem__)] = np.arange(len(group_ids))
    return ranks


def _shortfalls(
    frames: Sequence[FrameEntry], parts: Sequence[Part], class_ids: Sequence[str]
) -> list[str]:
    """Where groups or rare types kept the split from what was wanted."""
    notes = []
    kind = "fold" if parts[0].name == "fold-0" else "part"
    smallest = min(parts, key=lambda part: part.wanted_share)
    wanted_frames = smallest.wanted_share * len(frames)
    sizes = Counter(frame.group for frame in frames)
    large = [group for group, size in sizes.items() if size > max(wanted_frames, 1)]
    if large:
        largest = max(large, key=lambda group: sizes[group])
        notes.append(
            f"{_number(len(large), 'group')} {'is' if len(large) == 1 else 'are'} larger than"
            f" {smallest.name} should be ({wanted_frames:.0f} frames), the largest is that of"
            f" {shown(largest)} with {sizes[largest]} frames"
        )
    for part in parts:
        wanted_frames = part.wanted_share * len(frames)
        if abs(part.frames - wanted_frames) > max(1, 0.01 * len(frames)):
            notes.append(
                f"{part.name} has {part.frames} frames, {wanted_frames:.0f} were wanted:"
                " groups cannot be divided"
            )
    for class_id in (*class_ids, None):
        title = "clean steel" if class_id is None else f"type {class_id}"
        groups = {
            frame.group
            for frame in frames
            if (not frame.types if class_id is None else class_id in frame.types)
        }
        counts = [p.clean if class_id is None else p.frames_by_type[class_id] for p in parts]
        without = [part.name for part, count in zip(parts, counts, strict=True) if not count]
        excess = [n - p.wanted_share * sum(counts) for p, n in zip(parts, counts, strict=True)]
        worst = max(range(len(parts)), key=lambda part: abs(excess[part]))
        if not groups:
            notes.append(f"{title} is on no frame")
        elif len(groups) < len(parts):
            notes.append(
                f"{title} is in {_number(len(groups), 'group')} only: it"
                f" cannot be in every {kind}, and is not in {first_names(without)}"
            )
        elif without:
            notes.append(f"{title} is in {len(groups)} groups, but not in {first_names(without)}")
        elif abs(excess[worst]) > max(2, 0.05 * sum(counts)):
            notes.append(
                f"{title} is on {counts[worst]} frames of {parts[worst].name},"
                f" {counts[worst] - excess[worst]:.0f} were wanted: groups cannot be divided"
            )
    return notes
