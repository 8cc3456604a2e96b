"""Everything that is wrong with a data set, in one list: what, how many, why, and what to do.

:func:`audit` looks at a scanned catalog and its duplicates and returns an :class:`Audit`: findings
of three severities, each with one sentence for people, every image it concerns, the figures it was
made from, and the evidence that the page of :mod:`steelsight.report.audit_page` shows as pictures.
What could not be looked at is said too (``Audit.not_checked``): silence must not pass for approval.

The limits that decide on a finding were measured on real frames; the numbers stand beside each.

What one frame tells about its masks is measured in :mod:`steelsight.data.audit_masks`; titles,
reasons and advice of the findings stand in :mod:`steelsight.data.findings`.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from steelsight.data.audit_masks import (
    SPECK_PX,
    WHOLE_FRAME_SHARE,
    Box,
    FrameFacts,
    best_iou,
    measure_frame,
)
from steelsight.data.catalog import Catalog, FrameRecord
from steelsight.data.duplicates import DuplicatePair, Duplicates, Likeness, Turn, turned
from steelsight.data.findings import (
    Audit,
    Code,
    Counts,
    Evidence,
    Finding,
    Severity,
    finding,
    listed,
)
from steelsight.data.labels import FrameLabels, LabelSet, shown, split_of
from steelsight.data.predictions import confident_suspects, match_images
from steelsight.data.threads import in_order
from steelsight.errors import InputError, LabelError, first_names
from steelsight.imaging import DecodePolicy
from steelsight.masks import decode_rle

CONFLICT_IOU = 0.75
"""Masks of copies that overlap less contradict each other. Of 268 copies in NEU_Seg 240 carry the
same mask to the pixel, the other 28 lie between 0.15 and 0.74: drawn anew, or on another frame."""
SHIFT_SLACK_PX = 3
"""How well the shift between near copies is known, and a little more."""
BLANK_CONTRAST = 2.0
"""As in the engine: the least contrast among 794 real frames is 4.6 grey levels."""
STRIKING_SCORE = 3.5
"""Clean frames whose deepest shadow (``FrameFacts.shadow``) lies so many robust standard deviations
above the clean frames' median are suspects. Among 596 clean and 40 disputed Severstal
frames, all taken as clean, 41 lie above, 37 of them disputed; AUROC 0.997."""
MIN_CLEAN = 30
"""Fewer clean frames have no usable median."""

Progress = Callable[[int, int], None]
"""Called with (frames measured, frames to measure)."""
_Told = Iterator[Finding | str]
"""Findings, and as text what could not be looked at."""


def audit(
    catalog: Catalog,
    duplicates: Duplicates,
    *,
    label_errors: Sequence[LabelError] = (),
    assignment: Mapping[str, str] | None = None,
    predictions: Mapping[str, float] | None = None,
    speck_px: int = SPECK_PX,
    progress: Progress | None = None,
) -> Audit:
    """Finds everything that is wrong with a data set.

    Args:
        catalog: the scanned frames with their labels. Frames with a mask and clean frames are
            decoded once more, to compare masks with pixels.
        duplicates: copies among them.
        label_errors: what the reader refused, collected.
        assignment: part of the split by image; ``None`` takes ``FrameLabels.split``,
            or the folders on the way to an image without a label.
        predictions: faulty probability by image, 0..1, from a model that did not learn from these
            frames; names as in the catalog, or file names where they are unique.
        speck_px: regions of fewer pixels are specks.
        progress: called as frames are measured.

    Returns:
        Findings, counts and what was not looked at.

    Raises:
        InputError: ``assignment`` or ``predictions`` name none of the frames, a probability is not
            in 0..1, or ``speck_px`` is below 1.
    """
    if speck_px < 1:
        raise InputError(f"expected specks of at least 1 pixel, got {speck_px}; give 1 or more")
    data = _data_set(catalog, duplicates, assignment)
    told = [
        *_labels_and_files(data, label_errors),
        *_appearance(data),
        *_copies(data),
        *_conflicts(data),
        *_leaks(data),
        *_masks_and_pixels(data, speck_px, progress),
        *_model_suspects(data, predictions),
    ]
    code_rank = {code: i for i, code in enumerate(Code)}
    severity_rank = {severity: i for i, severity in enumerate(Severity)}
    findings = [t for t in told if isinstance(t, Finding)]
    remarks = Counter(note for record in catalog.records for note in record.notes)
    return Audit(
        format=data.label_set.format,
        source=str(data.label_set.source),
        counts=_counts(data),
        parts=dict(sorted(Counter(data.parts.values()).items(), key=lambda p: _rank(p[0]))),
        findings=tuple(
            sorted(findings, key=lambda f: (severity_rank[f.severity], code_rank[f.code]))
        ),
        not_checked=tuple(t for t in told if isinstance(t, str)),
        notes=(
            *data.label_set.notes,
            *(f"{_frames(n)}: {note}" for note, n in remarks.most_common()),
        ),
    )


@dataclass(frozen=True, slots=True)
class _DataSet:
    """What is audited, by image.

    Attributes:
        label_set, policy, duplicates: as given.
        records: the scanned frames.
        labels: of those that have a label.
        parts: of the split, of those that are in one.
        names: of the types, by id.
    """

    label_set: LabelSet
    policy: DecodePolicy
    duplicates: Duplicates
    records: Mapping[str, FrameRecord]
    labels: Mapping[str, FrameLabels]
    parts: Mapping[str, str]
    names: Mapping[str, str]

    def title(self, class_id: str) -> str:
        return f"type {self.names.get(class_id, class_id)}"

    def types_of(self, image: str) -> str:
        labels = self.labels.get(image)
        if labels is None:
            return "no label"
        return first_names(map(self.title, labels.class_ids)) or "clean"

    def label_state(self, image: str) -> str:
        labels = self.labels.get(image)
        if image in self.label_set.refused:
            return "refused"
        if labels is None:
            return "unlabelled"
        return "disputed" if labels.disputed else "clean" if labels.clean else "faulty"

    def file_state(self, image: str) -> str:
        record = self.records.get(image)
        if record is None or record.path is None:
            return "missing"
        return "unreadable" if record.size_wh is None else "readable"

    def mask_size(self, image: str) -> tuple[int, int] | None:
        """Width and height of an image's masks; ``None`` if not known, or not the image's."""
        labels = self.labels[image]
        size_wh = self.records[image].size_wh or labels.size_wh
        return size_wh if labels.size_wh in (None, size_wh) else None


def _data_set(
    catalog: Catalog, duplicates: Duplicates, assignment: Mapping[str, str] | None
) -> _DataSet:
    records = {record.image: record for record in catalog.records}
    labels = {r.image: r.labels for r in catalog.records if r.labels is not None}
    if assignment is None:
        # Folders tell the part of an image without a label, too.
        told = {i: labels[i].split if i in labels else split_of(i) for i in records}
        parts = {image: part for image, part in told.items() if part}
    else:
        parts = {image: assignment[image] for image in records if image in assignment}
        if assignment and records and not parts:
            raise InputError(
                f"the split names frames such as {shown(next(iter(assignment)))}, expected frames"
                f" of this data set such as {shown(next(iter(records)))}; give the split that"
                " was made for it"
            )
    names = {c.id: c.name for c in catalog.label_set.classes}
    return _DataSet(catalog.label_set, catalog.policy, duplicates, records, labels, parts, names)


def _counts(data: _DataSet) -> Counts:
    frames = data.records.keys() | data.label_set.refused
    states = Counter((data.label_state(image), data.file_state(image)) for image in frames)
    total: Counter[str] = Counter()
    for (label, file), number in states.items():
        total[label] += number
        total[file] += number
    return Counts(
        frames=len(frames),
        faulty=total["faulty"],
        clean=total["clean"],
        disputed=total["disputed"],
        refused=total["refused"],
        unlabelled=total["unlabelled"],
        readable=total["readable"],
        unreadable=total["unreadable"],
        missing=total["missing"],
        usable=states["faulty", "readable"] + states["clean", "readable"],
    )


# What is there -----------------------------------------------------------------------------------


def _labels_and_files(data: _DataSet, label_errors: Sequence[LabelError]) -> _Told:
    """Frames that are lost, and those of which nothing or not enough is known."""
    refused = data.label_set.refused
    if label_errors or refused:
        broken = max(len(label_errors), len(refused))
        yield finding(
            Code.BROKEN_LABEL,
            f"{_many(broken, 'label is', 'labels are')} broken, on {_frames(len(refused))}",
            (Evidence((), str(error)) for error in label_errors),
            {"labels": len(label_errors), "frames": len(refused)},
            images=refused,
        )
    missing = [i for i in data.labels if data.file_state(i) == "missing"]
    if missing:
        all_missing = len(missing) == len(data.labels)
        yield finding(
            Code.MISSING_IMAGE,
            f"None of the {len(missing):,} labelled images is here, only labels were checked"
            if all_missing
            else f"{len(missing):,} of {_frames(len(data.labels))} with labels"
            f" {_has(len(missing))} no image",
            (),
            {"missing": len(missing), "labelled": len(data.labels)},
            images=missing,
            # Whoever gives labels alone knows.
            severity=Severity.WARNING if all_missing else None,
        )
    unreadable = [r for i, r in data.records.items() if data.file_state(i) == "unreadable"]
    if unreadable:
        unreadable.sort(key=lambda r: (str(r.reason), r.image))
        reasons = Counter(str(r.reason) for r in unreadable)
        told = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
        yield finding(
            Code.UNREADABLE_IMAGE,
            f"{_many(len(unreadable), 'image', 'images')} cannot be decoded with certainty"
            f" ({told})",
            (Evidence((r.image,), f"{r.reason}: {r.detail}") for r in unreadable),
            {"unreadable": len(unreadable), "by_reason": dict(reasons)},
        )
    for code, said, images in (
        (
            Code.UNLABELLED,
            "no label",
            [i for i in data.records if data.label_state(i) == "unlabelled"],
        ),
        (
            Code.DISPUTED,
            "a disputed label",
            [i for i in data.labels if data.label_state(i) == "disputed"],
        ),
        (
            Code.TYPE_WITHOUT_MASK,
            "a type whose place nobody marked",
            [i for i, labels in data.labels.items() if labels.types_without_mask],
        ),
    ):
        if images:
            yield finding(
                code,
                f"{_frames(len(images))} {_has(len(images))} {said}",
                (Evidence((image,), data.types_of(image)) for image in images),
                {"frames": len(images)},
            )


def _appearance(data: _DataSet) -> _Told:
    """Sizes, colour, blank frames."""
    readable = [r for r in data.records.values() if r.size_wh is not None]
    sizes = Counter(r.size_wh for r in readable if r.size_wh is not None)
    if len(sizes) > 1:
        (usual, most), *_ = sizes.most_common()
        others = [r for r in readable if r.size_wh != usual]
        outliers = most >= 0.9 * len(readable)
        yield finding(
            Code.OTHER_SIZE,
            f"{len(others):,} of {_frames(len(readable))} {_is(len(others))} not"
            f" {_size(usual)} like the other {most:,}"
            if outliers
            else f"{_frames(len(readable))} come in {len(sizes):,} sizes, {most:,} of them in"
            f" {_size(usual)}",
            (Evidence((r.image,), _size(r.size_wh)) for r in others if r.size_wh),
            {"frames_by_size": {_size(size): n for size, n in sizes.most_common()}},
            severity=None if outliers else Severity.NOTE,
        )
    odd, kind, rest = [r for r in readable if r.coloured], "coloured", "grey"
    if odd and len(odd) < len(readable):
        figures = {"coloured": len(odd), "readable": len(readable)}
        if 2 * len(odd) > len(readable):
            odd, kind, rest = [r for r in readable if not r.coloured], rest, kind
        yield finding(
            Code.COLOUR_MIXED,
            f"{len(odd):,} of {_frames(len(readable))} {_is(len(odd))} {kind} among {rest} ones",
            (Evidence((r.image,), kind) for r in odd),
            figures,
        )
    blank = [r for r in readable if r.contrast is not None and r.contrast < BLANK_CONTRAST]
    if blank:
        yield finding(
            Code.BLANK,
            f"{_frames(len(blank))} {_is(len(blank))} practically one flat grey (contrast below"
            f" {BLANK_CONTRAST:g} grey levels)",
            (
                Evidence((r.image,), f"contrast {r.contrast:.1f}, mean grey {r.brightness:.0f}")
                for r in blank
            ),
            {"frames": len(blank), "limit": BLANK_CONTRAST},
        )


# Copies ------------------------------------------------------------------------------------------


def _copies(data: _DataSet) -> _Told:
    """Duplicates, and those whose labels contradict each other."""
    exact = [p for p in data.duplicates.pairs if p.likeness is not Likeness.NEAR]
    near = [p for p in data.duplicates.pairs if p.likeness is Likeness.NEAR]
    if exact:
        families = _families(exact)
        frames = sum(map(len, families))
        yield finding(
            Code.EXACT_COPIES,
            f"{_frames(frames)} in {_many(len(families), 'family', 'families')} have the same"
            f" pixels{_turned_share(exact)}, {frames - len(families):,} more than there are"
            " pictures",
            map(_pair_evidence, exact),
            {
                "frames": frames,
                "families": len(families),
                "superfluous": frames - len(families),
                "largest_family": max(map(len, families)),
                "same_file": sum(p.likeness is Likeness.SAME_FILE for p in exact),
                "turned": sum(p.turn is not Turn.NONE for p in exact),
            },
        )
    if near:
        frames = len({image for pair in near for image in (pair.a, pair.b)})
        yield finding(
            Code.NEAR_COPIES,
            f"{_frames(frames)} are nearly equal to another frame{_turned_share(near)}",
            map(_pair_evidence, sorted(near, key=lambda p: p.similarity)),
            {
                "frames": frames,
                "pairs": len(near),
                "turned": sum(p.turn is not Turn.NONE for p in near),
                "least_similarity": round(min(p.similarity for p in near), 4),
            },
        )


def _conflicts(data: _DataSet) -> _Told:
    found: dict[Code, list[Evidence]] = defaultdict(list)
    for pair in data.duplicates.pairs:
        a, b = data.labels.get(pair.a), data.labels.get(pair.b)
        if a is None or b is None or a.disputed or b.disputed:
            continue
        if a.clean != b.clean or set(a.class_ids) != set(b.class_ids):
            code = Code.OTHER_TYPES if a.clean == b.clean else Code.CLEAN_AND_FAULTY
            text = f"{data.types_of(pair.a)} | {data.types_of(pair.b)}"
            found[code].append(Evidence((pair.a, pair.b), text, None, pair.turn))
            continue
        iou, class_id = _least_iou(data, pair, a, b)
        if iou < CONFLICT_IOU:
            text = f"{data.title(class_id)}: IoU {iou:.2f}"
            case = Evidence((pair.a, pair.b), text, None, pair.turn, {"iou": round(iou, 4)})
            found[Code.OTHER_MASKS].append(case)
    for code, said in (
        (Code.CLEAN_AND_FAULTY, "one labelled clean and one faulty"),
        (Code.OTHER_TYPES, "different types"),
    ):
        if cases := found[code]:
            told = f"{_many(len(cases), 'pair', 'pairs')} of copies with {said}"
            yield finding(code, told, cases, {"pairs": len(cases)})
    if cases := found[Code.OTHER_MASKS]:
        cases.sort(key=lambda case: case.figures["iou"])
        least = cases[0].figures["iou"]
        yield finding(
            Code.OTHER_MASKS,
            f"{_many(len(cases), 'pair', 'pairs')} of copies with masks of the same type"
            f" that overlap badly (IoU below {CONFLICT_IOU:g}, the worst {least:.2f})",
            cases,
            {"pairs": len(cases), "limit_iou": CONFLICT_IOU, "least_iou": least},
        )


def _least_iou(
    data: _DataSet, pair: DuplicatePair, a: FrameLabels, b: FrameLabels
) -> tuple[float, str]:
    """Of the types that both have masks of, and which; 1 where nothing can be compared."""
    least = (1.0, "")
    size_a, size_b = data.mask_size(pair.a), data.mask_size(pair.b)
    if size_a is None or size_b is None:
        return least
    for class_id in a.rle_by_class.keys() & b.rle_by_class.keys():
        try:
            mask_a = turned(decode_rle(a.rle_by_class[class_id], size_a), pair.turn)
            mask_b = decode_rle(b.rle_by_class[class_id], size_b)
        except LabelError:
            continue  # the mask runs past its image: a finding of its own
        # Equal pixels lie exactly upon each other; otherwise the shift is only roughly known,
        # and a thin scratch must not look like a conflict for it.
        slack_px = SHIFT_SLACK_PX if pair.likeness is Likeness.NEAR else 0
        iou = best_iou(mask_a, mask_b, pair.shift_xy, slack_px, enough=CONFLICT_IOU)
        least = min(least, (iou, class_id))
    return least


def _leaks(data: _DataSet) -> _Told:
    """Copies across the parts of the split, and types that a part lacks."""
    parts = sorted(set(data.parts.values()), key=_rank)
    if len(parts) < 2:
        yield (
            "Leaks between training and test: no split is known. Name the parts in the folders"
            " (train, val, test) or give the file of the split."
        )
        return
    if not any(r.size_wh for r in data.records.values()):
        yield ("Leaks between the parts: there is no image to compare.")
    neighbours = _neighbours(data.duplicates.pairs)
    for number, part in enumerate(parts[1:], 1):
        earlier = frozenset(parts[:number])
        inside = [image for image, of in data.parts.items() if of == part]
        cases = [
            case
            for image in inside
            if image in neighbours and (case := _leak(image, earlier, data.parts, neighbours))
        ]
        if not cases:
            continue
        turns = sum(case.turn is not Turn.NONE for case in cases)
        copied = Counter(data.parts[case.images[0]] for case in cases)
        sources = listed([_part_words(p) for p in parts if p in copied])
        yield finding(
            Code.LEAK,
            f"{len(cases):,} of {_frames(len(inside))} in {_part_words(part)}"
            f" ({_percent(len(cases) / len(inside))}) are copies of frames in {sources}"
            + (f", {_of_them(turns, len(cases))} flipped or rotated" if turns else ""),
            cases,
            {
                "part": part,
                "way": f"from {sources} into {_part_words(part)}",
                "copies": len(cases),
                "frames": len(inside),
                "share": round(len(cases) / len(inside), 4),
                "flipped_or_rotated": turns,
                "copies_of": {p: copied[p] for p in parts if p in copied},
            },
            images=(case.images[1] for case in cases),
        )
    yield from _missing_types(data, parts)


def _leak(
    image: str,
    earlier: frozenset[str],
    parts: Mapping[str, str],
    neighbours: Mapping[str, Sequence["_Neighbour"]],
) -> Evidence | None:
    """The nearest frame of the family that lies in an earlier part, and how it was turned."""
    queue = deque([(image, Turn.NONE)])
    seen = {image}
    while queue:
        here, turn = queue.popleft()
        if parts.get(here) in earlier:
            text = f"{_part_words(parts[here])} | {_part_words(parts[image])}"
            return Evidence((here, image), text, None, _inverse(turn))
        for other, then in neighbours[here]:
            if other not in seen:
                seen.add(other)
                queue.append((other, _composed(turn, then)))
    return None


def _missing_types(data: _DataSet, parts: Sequence[str]) -> _Told:
    frames: dict[str, Counter[str]] = {part: Counter() for part in parts}
    for image, part in data.parts.items():
        labels = data.labels.get(image)
        if labels is not None and not labels.disputed:
            frames[part].update(labels.class_ids)
    present = [c for c in data.label_set.class_ids if any(c in of for of in frames.values())]
    # A part without any type, such as unlabelled test frames, lacks them all on purpose.
    lacking = [(p, c) for p in parts if frames[p] for c in present if c not in frames[p]]
    if lacking:
        said = [f"{data.title(c)} in {_part_words(p)}" for p, c in lacking]
        rest = f" and {len(said) - 6:,} more" if len(said) > 6 else ""
        yield finding(
            Code.TYPE_MISSING_IN_PART,
            f"Not on a single frame: {', '.join(said[:6])}{rest}",
            (Evidence((), text) for text in said),
            {"frames_by_part_and_type": {p: dict(of) for p, of in frames.items()}},
        )


# Masks and pixels --------------------------------------------------------------------------------


def _masks_and_pixels(data: _DataSet, speck_px: int, progress: Progress | None) -> _Told:
    """Every mask against its image, and clean frames against one another."""
    wanted = [
        data.records[image]
        for image, labels in data.labels.items()
        if labels.rle_by_class or labels.clean
    ]
    facts: list[FrameFacts] = []
    for found in in_order(lambda r: measure_frame(r, speck_px, data.policy), wanted, None):
        facts.append(found)
        if progress:
            progress(len(facts), len(wanted))
    yield from _misfits(facts)
    yield from _odd_masks(data, facts)
    yield from _odd_regions(data, facts, speck_px)
    yield from _striking(facts)


def _misfits(facts: Sequence[FrameFacts]) -> _Told:
    if unsized := sum(f.unsized for f in facts):
        yield (f"Masks of {_frames(unsized)}: neither an image nor the labels tell a usable size.")
    if changed := sum(f.changed for f in facts):
        yield (f"Pixels of {_frames(changed)}: the file changed while it was checked.")
    of_size = [Evidence((f.image,), f.other_size) for f in facts if f.other_size]
    if of_size:
        swapped = sum(case.text.endswith("swapped") for case in of_size)
        yield finding(
            Code.MASK_OF_OTHER_SIZE,
            f"The masks of {_frames(len(of_size))} were drawn in another size than the image"
            " has" + (f", {swapped:,} with width and height swapped" if swapped else ""),
            of_size,
            {"frames": len(of_size), "swapped": swapped},
        )
    outside = [Evidence((f.image,), f.outside) for f in facts if f.outside]
    if outside:
        yield finding(
            Code.MASK_OUTSIDE,
            f"Masks of {_frames(len(outside))} run past the end of the image",
            outside,
            {"frames": len(outside)},
        )


def _odd_masks(data: _DataSet, facts: Sequence[FrameFacts]) -> _Told:
    whole = sorted(((share, f.image, c) for f in facts for c, share in f.whole_frame), reverse=True)
    if whole:
        yield finding(
            Code.WHOLE_FRAME_MASK,
            f"{_many(len(whole), 'mask covers', 'masks cover')} more than"
            f" {_percent(WHOLE_FRAME_SHARE)} of the frame",
            (
                _case(image, f"{data.title(c)} covers {_percent(share)}", share=round(share, 4))
                for share, image, c in whole
            ),
            {"masks": len(whole), "limit": WHOLE_FRAME_SHARE},
        )
    overlapping = [f for f in facts if f.overlap_px]

    def pairs_text(pairs: Iterable[tuple[str, str]]) -> str:
        said = [f"{data.title(a)} and {data.title(b)}" for a, b in pairs]
        rest = f" and {len(said) - 6:,} more pairs" if len(said) > 6 else ""
        return ", ".join(said[:6]) + rest

    if overlapping:
        overlapping.sort(key=lambda f: -f.overlap_px)
        by_types = Counter(pair for f in overlapping for pair in f.overlapping_types)
        overlap_px = sum(f.overlap_px for f in overlapping)
        share = overlap_px / sum(f.labelled_px for f in facts)
        yield finding(
            Code.OVERLAPPING_TYPES,
            f"On {_frames(len(overlapping))}, {overlap_px:,} pixels ({_percent(share)} of all"
            " labelled ones) carry more than one type",
            (
                _case(
                    f.image,
                    f"{f.overlap_px:,} px are {pairs_text(f.overlapping_types)}",
                    f.overlap_bbox,
                    pixels=f.overlap_px,
                )
                for f in overlapping
            ),
            {
                "frames": len(overlapping),
                "pixels": overlap_px,
                "share": share,
                "frames_by_types": {" + ".join(p): n for p, n in by_types.most_common()},
            },
        )


def _odd_regions(data: _DataSet, facts: Sequence[FrameFacts], speck_px: int) -> _Told:
    drawn = sum(f.regions for f in facts)
    compared = sum(f.compared for f in facts)
    # What is listed first: the smallest specks, the largest others, the faintest faint ones.
    specks = [(f.image, region) for f in facts for region in f.specks]
    on_margin = [(f.image, region) for f in facts for region in f.on_margin]
    faint = [(f.image, region) for f in facts for region in f.faint]
    boxes = [(f.image, region) for f in facts for region in f.boxes]
    for code, found, total, said in (
        (Code.SPECKS, specks, drawn, f"smaller than {speck_px} pixels"),
        (Code.MASK_ON_MARGIN, on_margin, drawn, "in the darkness beside the strip"),
        (Code.FAINT_MASKS, faint, compared, "as bright and as textured as the steel around"),
        (Code.BOX_MASKS, boxes, drawn, "exactly rectangular"),
    ):
        if not found:
            continue
        found.sort(key=lambda item: (item[1].rank, item[0]))
        frames = len({image for image, _ in found})
        yield finding(
            code,
            f"{len(found):,} of {_many(total, 'region', 'regions')}"
            f" ({_percent(len(found) / total)}), on {_frames(frames)}, {_is(len(found))}"
            f" {said}",
            (
                _case(
                    image,
                    f"{data.title(r.class_id)}, {r.area_px:,} px at x {r.bbox_xywh[0]},"
                    f" y {r.bbox_xywh[1]}{r.text}",
                    r.bbox_xywh,
                    area_px=r.area_px,
                )
                for image, r in found
            ),
            {"regions": len(found), "of": total, "share": len(found) / total, "frames": frames},
        )


def _striking(facts: Sequence[FrameFacts]) -> _Told:
    shadows = [(f.image, *f.shadow) for f in facts if f.shadow is not None]
    if len(shadows) < MIN_CLEAN:
        if shadows:
            yield (
                f"Clean frames against one another: {_frames(len(shadows))} of the"
                f" {MIN_CLEAN} that it takes."
            )
        return
    depths = np.array([depth for _, depth, _ in shadows])
    median = float(np.median(depths))
    spread = 1.4826 * float(np.median(np.abs(depths - median)))
    if spread == 0:
        return
    found = sorted(
        ((depth - median) / spread, image, box)
        for image, depth, box in shadows
        if depth > median + STRIKING_SCORE * spread
    )[::-1]
    if found:
        yield finding(
            Code.STRIKING_CLEAN,
            f"{len(found):,} of {_frames(len(shadows))} labelled clean {_has(len(found))} a far"
            f" darker spot than clean frames usually have (robust z-score above"
            f" {STRIKING_SCORE:g})",
            (
                _case(
                    image,
                    f"robust z-score {score:.1f}",
                    box,
                    score=round(score, 2),
                )
                for score, image, box in found
            ),
            {"frames": len(found), "clean": len(shadows), "limit": STRIKING_SCORE},
        )


# With a model ------------------------------------------------------------------------------------


def _model_suspects(data: _DataSet, predictions: Mapping[str, float] | None) -> _Told:
    """Labels that a model confidently contradicts."""
    if predictions is None:
        yield (
            "Labels against a model: no results were given. Inspect the frames with a model"
            " that did not learn from them, and give its results.jsonl."
        )
        return
    by_image = match_images(predictions, data.records)
    known = [i for i in by_image if data.label_state(i) in ("faulty", "clean")]
    faulty = np.array([data.label_state(i) == "faulty" for i in known], np.bool_)
    p = np.array([by_image[i] for i in known], np.float64)
    if not len(known) or faulty.all() or not faulty.any():
        yield ("Labels against a model: it takes results on faulty and on clean frames.")
        return
    suspects = confident_suspects(faulty, p)
    for label, code, said, other, side in (
        (False, Code.LIKELY_FAULTY, "clean", "faulty", "more"),
        (True, Code.LIKELY_CLEAN, "faulty", "clean", "less"),
    ):
        chosen = np.flatnonzero(suspects & (faulty == label))
        if not len(chosen):
            continue
        ranked = chosen[np.argsort(p[chosen] if label else -p[chosen], kind="stable")].tolist()
        limit = float(p[~faulty if label else faulty].mean())
        count = int((faulty == label).sum())
        yield finding(
            code,
            f"{len(chosen):,} of {_frames(count)} labelled {said}"
            f" {'looks' if len(chosen) == 1 else 'look'} as {other} to the model as frames"
            f" labelled {other} do on average (faulty probability {limit:.2g} or {side})",
            (
                _case(
                    known[i],
                    f"labelled {said}, faulty probability {p[i]:.3f}",
                    faulty_probability=float(p[i]),
                )
                for i in ranked
            ),
            {"frames": len(chosen), "labelled": count, "limit": round(limit, 4)},
        )


# Turns and families ------------------------------------------------------------------------------

_PATTERN = np.arange(6).reshape(2, 3)  # looks different under each of the eight turns


@cache
def _composed(first: Turn, then: Turn) -> Turn:
    """The one turn that does both."""
    both = turned(turned(_PATTERN, first), then)
    return next(t for t in Turn if np.array_equal(turned(_PATTERN, t), both))


@cache
def _inverse(turn: Turn) -> Turn:
    return next(t for t in Turn if _composed(turn, t) is Turn.NONE)


_Neighbour = tuple[str, Turn]
"""A copy of a frame, and the turn that leads to it."""


def _neighbours(pairs: Iterable[DuplicatePair]) -> dict[str, list[_Neighbour]]:
    found: dict[str, list[_Neighbour]] = defaultdict(list)
    for pair in pairs:
        found[pair.a].append((pair.b, pair.turn))
        found[pair.b].append((pair.a, _inverse(pair.turn)))
    return dict(found)


def _families(pairs: Sequence[DuplicatePair]) -> list[set[str]]:
    neighbours = _neighbours(pairs)
    families: list[set[str]] = []
    seen: set[str] = set()
    for start in neighbours:
        if start in seen:
            continue
        family, queue = {start}, [start]
        while queue:
            for other, _ in neighbours[queue.pop()]:
                if other not in family:
                    family.add(other)
                    queue.append(other)
        seen |= family
        families.append(family)
    return families


def _pair_evidence(pair: DuplicatePair) -> Evidence:
    text = {
        Likeness.SAME_FILE: "the same file",
        Likeness.SAME_PIXELS: "the same pixels",
        Likeness.NEAR: f"similarity {pair.similarity:.3f}",
    }[pair.likeness]
    if pair.shift_xy != (0, 0):
        text += f", shifted by {pair.shift_xy[0]}, {pair.shift_xy[1]} px"
    figures = {"similarity": round(pair.similarity, 4)}
    return Evidence((pair.a, pair.b), text, None, pair.turn, figures)


def _case(image: str, text: str, bbox_xywh: Box | None = None, **figures: float) -> Evidence:
    return Evidence((image,), text, bbox_xywh, None, figures)


# Words -------------------------------------------------------------------------------------------

_PART_WORDS = {"train": "training", "val": "validation", "test": "test"}


def _size(size_wh: tuple[int, int]) -> str:
    return f"{size_wh[0]} x {size_wh[1]}"


def _part_words(part: str) -> str:
    return _PART_WORDS.get(part, f"part {shown(part)}")


def _rank(part: str) -> tuple[int, str]:
    """Training first: what it shares with a later part, the later part has copied."""
    return (list(_PART_WORDS).index(part) if part in _PART_WORDS else len(_PART_WORDS), part)


def _many(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _frames(number: int) -> str:
    return _many(number, "frame", "frames")


def _of_them(number: int, total: int) -> str:
    return "all of them" if number == total else f"{number:,} of them"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _has(number: int) -> str:
    return "has" if number == 1 else "have"


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def _turned_share(pairs: Sequence[DuplicatePair]) -> str:
    turns = sum(p.turn is not Turn.NONE for p in pairs)
    if not turns:
        return ""
    return " under a flip or rotation" if turns == len(pairs) else ", some flipped or rotated"
