"""A training set from what people said about inspected frames.

The last standing verdict of each person counts. Frames on which people contradict each other, or
of which nobody can tell where the defects are, are left out and listed: they would teach mistakes.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from steelsight.agreement import Judged
from steelsight.data.formats import severstal
from steelsight.data.labels import (
    FrameLabels,
    LabelClass,
    LabelSet,
    Placement,
    make_folders,
    write_file,
)
from steelsight.data.tables import csv_safe, write_table
from steelsight.defects import Verdict
from steelsight.errors import InputError, escaped
from steelsight.exports import StoredResults
from steelsight.masks import union_rle
from steelsight.store.queries import Complete, ReviewRow

LEFT_OUT, README = "left_out.csv", "README.txt"
DISPUTED = "disputed: people contradict each other"
UNDECIDED = "nobody could tell"
NO_REGION = "NG, but no region is marked"
NOT_DECODED = "it could not be decoded"
NOT_KEPT = "the frame was not kept"
_SUFFIXES = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A frame that people judged, whatever model it was shown with.

    Attributes:
        sha256: of its encoded bytes.
        said: the last standing review of each person, in the order in which they were given.
        inspections: that they were shown with, by id.
    """

    sha256: str
    said: tuple[ReviewRow, ...]
    inspections: dict[int, Complete]

    @property
    def whole(self) -> Complete:
        """The inspection that the last review is of."""
        return self.inspections[self.said[-1].inspection]


@dataclass(frozen=True, slots=True)
class Corrected:
    """What was written.

    Attributes:
        clean: frames that people call OK.
        faulty: frames with regions.
        left_out: why others were left out, with counts.
    """

    clean: int
    faulty: int
    left_out: dict[str, int]


def reviewed_frames(store: StoredResults) -> list[Reviewed]:
    """All frames with a standing review.

    Raises:
        StoreError: the store cannot be read.
    """
    last: dict[str, dict[str, ReviewRow]] = {}
    known: dict[int, Complete] = {}
    for review in list(store.reviews()):
        whole = known.get(review.inspection)
        if whole is None:
            whole = known[review.inspection] = store.inspection(review.inspection)
        sha256 = whole.inspection.sha256
        if sha256 is None:  # it was never read: there is nothing to learn from
            continue
        said = last.setdefault(sha256, {})
        said.pop(review.who, None)  # the order of the last ones
        said[review.who] = review
    return [
        Reviewed(
            sha256,
            tuple(said.values()),
            {review.inspection: known[review.inspection] for review in said.values()},
        )
        for sha256, said in last.items()
    ]


def judgements(frames: Iterable[Reviewed]) -> list[Judged]:
    """The same as agreement is counted from."""
    return [
        Judged(
            frame.sha256,
            review.who,
            review.verdict,
            review.machine,
            review.labels,
            frame.whole.inspection.size_wh,
        )
        for frame in frames
        for review in frame.said
    ]


def labels_of(frame: Reviewed) -> tuple[dict[str, str], str]:
    """Masks by type as people see them, and why the frame teaches nothing (``""`` if it does)."""
    told = [review for review in frame.said if review.verdict is not Verdict.UNKNOWN]
    if not told:
        return {}, UNDECIDED
    if len({review.verdict for review in told}) > 1:
        return {}, DISPUTED
    if frame.whole.inspection.size_wh is None:
        return {}, NOT_DECODED
    if told[0].verdict is Verdict.OK:
        return {}, ""
    drawn = [review.labels for review in told if review.labels is not None]
    if drawn:
        found = dict(drawn[-1])
    else:  # those that the last of them was shown were agreed to
        regions: dict[str, list[str]] = {}
        for defect in frame.inspections[told[-1].inspection].inspection.defects:
            regions.setdefault(defect.class_id, []).append(defect.rle)
        found = {class_id: union_rle(rles) for class_id, rles in regions.items()}
    return found, "" if found else NO_REGION


def write_corrected(
    store: StoredResults,
    folder: Path,
    kept_at: Callable[[str | None], Path | None],
    placement: Placement = Placement.COPY,
) -> Corrected:
    """Writes the frames and what people say about them as a folder that ``train`` reads.

    ``train.csv`` has the masks, ``images.csv`` says of every frame whether it is clean or faulty,
    ``left_out.csv`` names the others.

    Args:
        store: with the reviews.
        folder: a new one.
        kept_at: the file of a frame by its origin in the store; ``None`` if it is not there.
        placement: of the images.

    Raises:
        InputError: nobody has reviewed a frame that can be used, or the folder cannot be written.
    """
    frames: dict[str, FrameLabels] = {}
    paths: dict[str, Path] = {}
    left_out: list[tuple[str, str, str]] = []
    for frame in reviewed_frames(store):
        whole = frame.whole
        masks, reason = labels_of(frame)
        path = kept_at(whole.origin)
        if path is None or reason:
            image = csv_safe(escaped(whole.inspection.image))
            left_out.append((str(whole.id), image, reason or NOT_KEPT))
            continue
        # Names of senders may be anything; the content's hash is the same every time.
        name = f"{frame.sha256[:16]}{_suffix(path)}"
        size_wh = whole.inspection.size_wh
        frames[name] = FrameLabels(name, masks, size_wh, attributes=_attributes(frame))
        paths[name] = path
    if not frames:
        reasons = Counter(reason for *_, reason in left_out)
        told = "; ".join(f"{n} of them: {reason}" for reason, n in sorted(reasons.items()))
        raise InputError(
            f"expected frames that people judged OK, or NG with regions, got {len(left_out)} that "
            f"cannot be used ({told or 'nobody has reviewed anything'}); review some"
        )
    classes = tuple(LabelClass(c, name) for c, name in store.class_names().items())
    make_folders([folder])
    severstal.write(LabelSet("reviews", store.path, classes, frames, paths), folder, placement)
    write_table(folder / LEFT_OUT, [("inspection", "image", "reason"), *left_out])
    clean = sum(labels.clean for labels in frames.values())
    reasons = Counter(reason for *_, reason in left_out)
    done = Corrected(clean, len(frames) - clean, dict(reasons.most_common()))
    write_file(folder / README, _readme(done).encode())
    return done


def _suffix(path: Path) -> str:
    """By the content: a sender's name may have another one, or none."""
    with path.open("rb") as file:
        begin = file.read(12)
    if begin.startswith(b"RIFF") and begin.endswith(b"WEBP"):
        return ".webp"
    return next((suffix for magic, suffix in _SUFFIXES if begin.startswith(magic)), path.suffix)


def _attributes(frame: Reviewed) -> dict[str, str]:
    whole = frame.whole
    coil = whole.sightings[0].coil if whole.sightings else None
    given = {
        "inspection": str(whole.id),
        "coil": escaped(coil or ""),
        "reviewers": str(len(frame.said)),
    }
    return {key: value for key, value in given.items() if value}


def _readme(done: Corrected) -> str:
    left_out = "".join(f"  {reason}: {n}\n" for reason, n in done.left_out.items()) or "  none\n"
    return (
        "Frames that people reviewed, as a training set (Kaggle form).\n\n"
        f"clean: {done.clean}\nfaulty: {done.faulty}\nleft out ({LEFT_OUT}):\n{left_out}\n"
        "They are those that the service kept: NG, UNKNOWN and few OK ones, no sample of what the\n"
        "line makes. Measure a model on other frames.\n\n"
        "steelsight data check . --out check/\n"
        "steelsight train labels/ --further . --out run/   beside labels that you have\n"
        "steelsight train . --out run/                     alone, if every type is among them\n"
    )
