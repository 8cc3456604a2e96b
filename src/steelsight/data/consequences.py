"""What the figures of a data set mean for training and for tests, in plain sentences.

Each sentence (:class:`steelsight.data.summary.Consequence`) has a code that does not change and the
numbers it was made from.
"""

import math
from collections.abc import Iterator, Sequence

from steelsight.data.audit_masks import SPECK_PX
from steelsight.data.summary import (
    EDGE_PX,
    SHRINK_FACTORS,
    THIN_PX,
    Consequence,
    Summary,
    Topic,
    TypeSummary,
)
from steelsight.errors import first_names

CONFIDENCE = 0.95
TEST_SHARE = 0.2
"""The share of frames that a test is usually given."""
WANTED_RATE = 0.02
"""A missed-defect rate worth showing; the sentences say how many frames it takes."""

_TITLES = 10
"""Types that a sentence names."""


def consequences(summary: Summary) -> Iterator[Consequence]:
    """What follows from the figures, in the order of the page."""
    if not summary.counts.frames:
        return
    yield from _to_mend(summary)
    yield from _to_prove(summary)
    yield from _to_score(summary)
    yield from _to_cope(summary)


def frames_in_test(frames: int) -> int:
    """How many of them a test on ``TEST_SHARE`` gets."""
    return math.floor(TEST_SHARE * frames)


def smallest_provable_rate(frames: int, confidence: float = CONFIDENCE) -> float:
    """The smallest miss rate that a test can show: the bound when none of its frames is missed.

    The one-sided limit of Clopper and Pearson (1934), which for no miss is ``1 - (1 - c)**(1/n)``;
    1 for a test without frames.
    """
    return 1 - (1 - confidence) ** (1 / frames) if frames else 1.0


def frames_to_prove(rate: float, confidence: float = CONFIDENCE) -> int:
    """How many frames, none of them missed, show a rate below ``rate``: 149 for 2 % at 95 %."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-rate))


def share_text(share: float) -> str:
    """A share 0..1 as per cent: 72.6 %, 5.9 %, 0.31 %; only all is 100 %, only nothing is 0 %."""
    percent = 100 * share
    if 0 < percent < 0.01:
        return "under 0.01 %"
    if percent < 1:
        return f"{percent:.2g} %"
    if share >= 1:
        return f"{percent:.0f} %"
    return "over 99.9 %" if percent >= 99.95 else f"{percent:.1f} %"


def _to_mend(summary: Summary) -> Iterator[Consequence]:
    counts, copies = summary.counts, summary.duplicates
    # number, code, title, one, many, what is wrong; those that do not occur are left out
    table: list[tuple[int | None, str, str, str, str, str]] = [
        (counts.unreadable, "unreadable-images", "Images that cannot be read", "image", "images",
         "cannot be read with certainty: nothing can be learned from them, and a tool that decodes"
         " them anyway trains on damage."),
        (counts.missing, "missing-images", "Labels without an image",
         "labelled frame has", "labelled frames have",
         "no image here: the labels are counted, but nothing can be trained or tested on them."),
        (counts.refused, "refused-labels", "Broken labels", "frame has", "frames have",
         "a broken label and count neither as faulty nor as clean: correct the labels and read them"
         " again."),
        (summary.misfit_masks, "misfit-masks", "Masks that do not fit", "mask does", "masks do",
         "not fit the size of the frame: the labels belong to other images, or to another size."
         " Left out of every figure on areas and places."),
        (summary.unmeasured_masks, "unmeasured-masks", "Masks on frames of unknown size",
         "mask belongs to a frame", "masks belong to frames",
         "whose size neither labels nor images tell, so area and place are not known: give the"
         " images, or the size."),
        (copies.across_splits if copies else 0, "split-leak", "The given split leaks",
         "family of copies lies", "families of copies lie",
         "in more than one part of the split that comes with the data: a score on its test part is"
         " partly remembered, not earned."),
        (copies.copies if copies else 0, "duplicates", "Copies",
         "frame is a copy of another", "frames are copies of others",
         "(the same steel, also flipped or turned): a random split leaks, with the same steel in"
         " training and test. Keep every family on one side."),
        (copies.different_types if copies else 0, "conflicting-copies",
         "Copies labelled differently", "family of copies carries", "families of copies carry",
         "different types on the same steel: at least one label is wrong, and no model can satisfy"
         " both."),
        (counts.disputed, "disputed-frames", "Disputed frames", "frame is", "frames are",
         "disputed and left out of every figure here: train and test without them, or settle"
         " them."),
        (counts.unlabelled, "unlabelled-frames", "Images without a label", "image is", "images are",
         "mentioned by no label. Nothing is known about them; they do not count as clean."),
        (counts.without_mask + counts.partly_masked, "types-without-mask", "Types without a mask",
         "faulty frame has", "faulty frames have",
         "types whose place nobody marked: good for training and testing a classifier, not for"
         f" outlines. Areas and places are over {summary.masks:,} of"
         f" {_count(summary.pairs, 'pair', 'pairs')} of frame and type."),
    ]  # fmt: skip
    for number, code, title, one, many, wrong in table:
        if number:
            sentence = f"{_count(number, one, many)} {wrong}"
            yield Consequence(code, Topic.MEND, title, sentence, {"number": number})
    unused = [t for t in summary.types if not t.frames]
    if unused:
        yield Consequence(
            "unused-types", Topic.MEND, "Types without a frame",
            f"No frame holds {_titles(unused)}, although the labels declare"
            f" {'it' if len(unused) == 1 else 'them'}: nothing can be learned or tested there.",
            {"types": [t.id for t in unused]},
        )  # fmt: skip


def _to_prove(summary: Summary) -> Iterator[Consequence]:
    counts = summary.counts
    needed = frames_to_prove(WANTED_RATE)
    used = sorted((t for t in summary.types if t.frames), key=lambda t: t.frames)
    if used:
        rarest = used[0]
        tested = frames_in_test(rarest.frames)
        bound = smallest_provable_rate(tested)
        short = [t for t in summary.types if t.frames and frames_in_test(t.frames) < needed]
        told = (
            f"no test on {100 * TEST_SHARE:g} % of them ({tested:,}) can show a missed-defect rate"
            f" below {share_text(bound)} with {100 * CONFIDENCE:g} % confidence."
            if tested
            else f"a test on {100 * TEST_SHARE:g} % of them has not one."
        )
        yield Consequence(
            "type-test-limit", Topic.PROVE, "Missed defects",
            f"{_upper(rarest.title)} has {_count(rarest.frames, 'frame', 'frames')}: {told} Showing"
            f" {100 * WANTED_RATE:g} % takes {needed} test frames of a type without a single"
            f" miss; {_titles(short) if short else 'no type'}"
            f" {'falls' if len(short) < 2 else 'fall'} short of that.",
            {
                "confidence": CONFIDENCE,
                "test_share": TEST_SHARE,
                "wanted_rate": WANTED_RATE,
                "frames_needed": needed,
                "types": [
                    {
                        "id": t.id,
                        "frames": t.frames,
                        "test_frames": frames_in_test(t.frames),
                        "smallest_rate": smallest_provable_rate(frames_in_test(t.frames)),
                    }
                    for t in summary.types
                ],
            },
        )  # fmt: skip
    if not counts.clean:
        yield Consequence(
            "no-clean-frames", Topic.PROVE, "False alarms",
            "No clean frame is known: false alarms cannot be measured, and a detector trained here"
            " has never been shown good steel.",
            {"clean": 0},
        )  # fmt: skip
    else:
        tested = frames_in_test(counts.clean)
        bound = smallest_provable_rate(tested)
        yield Consequence(
            "false-alarm-limit", Topic.PROVE, "False alarms",
            f"{_count(counts.clean, 'frame is', 'frames are')} known to be clean: a test on"
            f" {100 * TEST_SHARE:g} % of them ({tested:,}) can show a false-alarm rate below"
            f" {share_text(bound)} at best, with {100 * CONFIDENCE:g} % confidence."
            if tested
            else f"{_count(counts.clean, 'frame is', 'frames are')} known to be clean: too few to"
            " measure false alarms.",
            {"clean": counts.clean, "test_frames": tested, "smallest_rate": bound},
        )  # fmt: skip
    if summary.light is not None:
        series = summary.light.brightness
        correlation = series.neighbour_correlation
        # Three standard errors of a correlation of independent frames.
        if correlation is not None and correlation > 3 / math.sqrt(summary.light.frames):
            yield Consequence(
                "ordered-names", Topic.PROVE, "Neighbours are alike",
                "In the order of the names, neighbouring frames are alike in brightness (rank"
                f" correlation {correlation:.2f}): the names follow time, place or type. Frames"
                " side by side are not independent, so split by coil or in blocks, not at random.",
                {"rank_correlation": correlation, "frames": summary.light.frames},
            )  # fmt: skip


def _to_score(summary: Summary) -> Iterator[Consequence]:
    counts = summary.counts
    if summary.predict_nothing_score is not None:
        score = summary.predict_nothing_score
        yield Consequence(
            "predict-nothing", Topic.SCORE, "Doing nothing scores",
            f"Predicting nothing scores {score:.3f} Kaggle Dice here: of {counts.known:,} frames x"
            f" {_count(len(summary.types), 'type', 'types')}, only {summary.pairs:,} hold a defect,"
            " and empty on both sides counts as 1. Compare Dice where a type is present.",
            {"score": score, "frames": counts.known, "types": len(summary.types),
             "pairs": summary.pairs},
        )  # fmt: skip
    if summary.defect_share is not None and 0 < summary.defect_share < 1:
        yield Consequence(
            "pixel-accuracy", Topic.SCORE, "Pixel accuracy says nothing",
            f"{_upper(share_text(summary.defect_share))} of all pixels are defective"
            f"{' (estimated from the masks there are)' if summary.masks < summary.pairs else ''}:"
            f" an empty answer is right on {share_text(1 - summary.defect_share)} of them.",
            {"defect_share": summary.defect_share, "estimated": summary.masks < summary.pairs},
        )  # fmt: skip
    used = [t for t in summary.types if t.frames]
    largest = max(used, key=lambda t: t.frames, default=None)
    least = min(used, key=lambda t: t.frames, default=None)
    if largest and least and largest.frames > 1.5 * least.frames:
        yield Consequence(
            "majority-type", Topic.SCORE, "One type outweighs the others",
            f"{_upper(largest.title)} is {share_text(largest.share)} of all"
            f" {'masks' if summary.masks else 'labels'}, {largest.frames / least.frames:.1f} times"
            f" as frequent as {least.title}: a mean over all of them follows"
            f" {largest.title}. Report every type by itself.",
            {"type": largest.id, "share": largest.share, "least_type": least.id,
             "ratio": largest.frames / least.frames},
        )  # fmt: skip
    if counts.clean and counts.faulty:
        share = counts.faulty / counts.known
        yield Consequence(
            "faulty-share", Topic.SCORE, "Not the share of the line",
            f"{share_text(share)} of the known frames are faulty. Where a line makes fewer faults,"
            " the same detector is right less often when it says NG: precision measured here does"
            " not carry over.",
            {"faulty_share": share},
        )  # fmt: skip


def _to_cope(summary: Summary) -> Iterator[Consequence]:
    several = sum(n for number, n in summary.types_per_frame.items() if number > 1)
    if several:
        yield Consequence(
            "several-types", Topic.COPE, "Several types on one frame",
            f"{_count(several, 'frame holds', 'frames hold')} more than one type"
            f" ({share_text(several / summary.counts.faulty)} of the faulty ones): one label per"
            " frame is not enough, and a split has to balance the types together.",
            {"frames": several, "share_of_faulty": several / summary.counts.faulty},
        )  # fmt: skip
    measured = [t for t in summary.types if t.masks]
    if not measured:
        return
    narrow = {
        str(f): sum(t.narrow_share[str(f)] * t.regions for t in measured) / summary.regions
        for f in SHRINK_FACTORS
    }
    worst = max(measured, key=lambda t: t.narrow_share["4"])
    yield Consequence(
        "shrinking", Topic.COPE, "What shrinking loses",
        f"At half size {share_text(narrow['2'])} of the {summary.regions:,} regions are narrower"
        f" than {THIN_PX} px, at a quarter {share_text(narrow['4'])}, at an eighth"
        f" {share_text(narrow['8'])}"
        + (
            f"; {worst.title} suffers most ({share_text(worst.narrow_share['4'])} at a quarter)."
            if len(measured) > 1 and worst.narrow_share["4"] > 0
            else "."
        )
        + " A network that works at that size can miss them.",
        {"thin_px": THIN_PX, "narrow_share": narrow,
         "types": {t.id: dict(t.narrow_share) for t in measured}},
    )  # fmt: skip
    low, high = summary.mask_area_px.quantiles["p5"], summary.mask_area_px.quantiles["p95"]
    yield Consequence(
        "size-range", Topic.COPE, "From small to large",
        f"The middle 90 % of the masks reach from {low:,.0f} to {high:,.0f} px, a factor of"
        f" {high / low:,.0f}. Dice on the small ones swings with single pixels at their border.",
        {"p5_px": low, "p95_px": high},
    )  # fmt: skip
    specks = sum(t.specks for t in measured)
    if specks:
        yield Consequence(
            "specks", Topic.COPE, "Specks",
            f"{_count(specks, 'region has', 'regions have')} fewer than {SPECK_PX} px"
            f" ({share_text(specks / summary.regions)} of all): slips of the pen, or defects that"
            " matter? Decide with a minimum area, and use it in training, test and production.",
            {"regions": specks, "share": specks / summary.regions, "speck_area_px": SPECK_PX},
        )  # fmt: skip
    yield from _at_the_edge(measured)
    if summary.size_count > 1:
        (width, height), frames = summary.sizes[0]
        yield Consequence(
            "several-sizes", Topic.COPE, "Several frame sizes",
            f"Frames come in {summary.size_count:,} sizes; {frames:,} are {width} x {height} px."
            " Batches need cropping, padding or one size at a time; scaling would change what a"
            " defect looks like.",
            {"sizes": summary.size_count},
        )  # fmt: skip


def _at_the_edge(measured: Sequence[TypeSummary]) -> Iterator[Consequence]:
    """How many masks the border cuts off, and the type that keeps closest to it."""
    masks, touching = sum(t.masks for t in measured), sum(t.touching_edge for t in measured)
    near, band, closest = max(
        ((t.near_edge_share or 0, t.edge_band_share or 1, t) for t in measured),
        key=lambda item: item[0] / item[1],
    )
    if not touching and near < band:
        return
    cut_off = (
        f"{_count(touching, 'mask touches', 'masks touch')} the border of the frame"
        f" ({share_text(touching / masks)}): such a defect goes on outside, measured lengths are"
        " too short. "
    )
    yield Consequence(
        "edge", Topic.COPE, "At the edge of the frame",
        f"{cut_off if touching else ''}{share_text(near)} of {closest.title} lies within"
        f" {EDGE_PX} px of the border, where {share_text(band)} of the pixels are; padding and"
        " tiling must not spoil it.",
        {"touching": touching, "touching_share": touching / masks, "edge_px": EDGE_PX,
         "types": {t.id: {"near_edge_share": t.near_edge_share,
                          "edge_band_share": t.edge_band_share} for t in measured}},
    )  # fmt: skip


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _titles(types: Sequence[TypeSummary]) -> str:
    """``Types 2, 4 and 5``."""
    names = [t.title.removeprefix("type ") for t in types]
    if len(names) == 1:
        return f"type {names[0]}"
    if len(names) > _TITLES:
        return f"types {first_names(names, _TITLES)}"
    return f"types {', '.join(names[:-1])} and {names[-1]}"
