"""Answers on labelled frames, of a bundle or of another tool, as :class:`Predictions`.

Masks of another tool may carry scores. Then the score of a type is that of its best mask, that of
the frame the best of all, and a pixel's probability the best of the masks that cover it: any
threshold on scores is a threshold on pixels.

A frame that the other tool does not mention has no answer. It is not clean: that would turn what a
tool never looked at into good steel. Only where the caller knows that the tool looked at all of
them (COCO results list what was found and nothing else) do they count as answered without a mask.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelsight.data.frames import FramePixels, LabelledFrame, types_image
from steelsight.data.labels import shown
from steelsight.data.threads import frame_by_frame, in_order
from steelsight.decisions import Decision
from steelsight.defects import Reason
from steelsight.engine.cascade import Inspector
from steelsight.errors import DecodeError, InputError, first_names
from steelsight.evaluation.predictions import Answer, Collector, Predictions, logit
from steelsight.evaluation.tool_files import ToolAnswer, ToolFile, read_tool
from steelsight.imaging import read_file
from steelsight.masks import decode_columns, merge_rles, union_rle

NOT_MENTIONED = "not-in-predictions"
"""Reason of an unanswered frame: the file of the other tool does not mention it."""

Progress = Callable[[int, int], None]
Numbers = Mapping[str, int]
_NOTHING: Mapping[str, Any] = MappingProxyType({})


# Of a bundle -------------------------------------------------------------------------------------


def predict_bundle(
    inspector: Inspector,
    frames: Sequence[LabelledFrame],
    *,
    groups: Numbers = _NOTHING,
    folds: Numbers = _NOTHING,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
    about: Mapping[str, Any] = _NOTHING,
) -> Predictions | None:
    """What a bundle says about frames, every one of them segmented.

    Args:
        inspector: the loaded bundle.
        frames: what to ask about; frames that turn out to be damaged or unusable, and those on
            which the engine fails, are ``unanswered`` with the reason of their UNKNOWN verdict.
        groups: number of a frame's group by its image; others stand alone.
        folds: by image, noted beside the frame; 0 for others.
        progress: called with the number done and the number of all.
        stop: asked after each frame.
        about: kept with the predictions.

    Returns:
        The predictions, in the order of the frames; ``None`` if stopped.

    Raises:
        InputError: a frame holds a type that the bundle does not know, or changed since the scan.
    """
    collector = Collector([c.id for c in inspector.bundle.classes])
    _check_types(frames, collector.class_ids)
    with frame_by_frame():
        taken_in = inspector.take_in_ahead((frame.path, frame.image) for frame in frames)
        for done, (frame, taken) in enumerate(zip(frames, taken_in, strict=True), 1):
            if taken.frame is None:
                refusal = taken.refusal
                collector.add_unanswered(frame, refusal.reason if refusal else Reason.DECODE_FAILED)
            else:
                found = _look(inspector, taken.frame.grey_hw)
                if isinstance(found, Reason):
                    collector.add_unanswered(frame, found)
                else:
                    pixels = _pixels(frame, taken.frame.grey_hw, collector.class_ids)
                    image = frame.image
                    collector.add(
                        frame, pixels, found, fold=folds.get(image, 0), group=groups.get(image)
                    )
            if progress:
                progress(done, len(frames))
            if stop() and done < len(frames):
                return None
    return collector.predictions(about=about)


def _look(inspector: Inspector, grey_hw: NDArray[np.uint8]) -> Answer | Reason:
    """As :meth:`Inspector.judge` would fail, so that no frame is lost and none ends the run."""
    try:
        seen = inspector.look(grey_hw)
    except Exception:  # also out of memory, or a bundle that contradicts itself
        return Reason.ENGINE_FAILED
    masks_khw = seen.probabilities_chw
    if masks_khw is None:
        return Reason.ENGINE_FAILED
    first_logit = None
    if inspector.bundle.first_look_path is not None:
        # A frame that it may not look at, because of its size, is one that it does not settle.
        first = seen.first_look
        first_logit = float(logit(np.array(1.0 if first is None else first.faulty_probability)))
    # NaN of the first look counts only where a decision asks it.
    evidence = (seen.faulty_probability, *seen.head_probabilities, masks_khw.sum())
    if not np.isfinite(evidence).all():
        return Reason.NOT_FINITE
    faulty_logit = float(logit(np.array(seen.faulty_probability)))
    heads_k = seen.head_probabilities.astype(np.float32)
    return Answer(faulty_logit, heads_k, masks_khw, first_logit)


def _pixels(
    frame: LabelledFrame, grey_hw: NDArray[np.uint8], class_ids: Sequence[str]
) -> FramePixels:
    if grey_hw.shape[::-1] != frame.size_wh:
        raise InputError(
            f"{frame.path}: expected {frame.size_wh[0]} x {frame.size_wh[1]} pixels, got"
            f" {grey_hw.shape[1]} x {grey_hw.shape[0]}; the file has changed since the scan,"
            " restore it or start again"
        )
    return FramePixels(grey_hw, types_image(frame, class_ids))


def _check_types(frames: Iterable[LabelledFrame], class_ids: Sequence[str]) -> None:
    for frame in frames:
        strange = sorted(set(frame.class_ids) - set(class_ids))
        if strange:
            raise InputError(
                f"image {shown(frame.image)}: expected types out of {first_names(class_ids)}, got"
                f" {first_names(strange)}; rename the types of the labels (--classes) or give the"
                " bundle that knows them"
            )


def masks_of(inspector: Inspector, frames: Iterable[LabelledFrame]) -> dict[str, dict[str, str]]:
    """The masks that a bundle delivers, as the cascade gives them; for a few chosen frames.

    Returns:
        Kaggle RLE by image and type; an empty mapping for a frame that is OK or UNKNOWN.
    """
    delivered = {}
    for frame in frames:
        rles: dict[str, list[str]] = {}
        for defect in inspector.inspect(frame.path, frame.image).defects:
            rles.setdefault(defect.class_id, []).append(defect.rle)
        delivered[frame.image] = {class_id: merge_rles(of) for class_id, of in rles.items()}
    return delivered


# Of another tool ----------------------------------------------------------------------------------


def predict_tool(
    tool: ToolFile,
    frames: Sequence[LabelledFrame],
    *,
    groups: Numbers = _NOTHING,
    folds: Numbers = _NOTHING,
    progress: Progress | None = None,
    threads: int | None = None,
    about: Mapping[str, Any] = _NOTHING,
) -> Predictions:
    """What another tool says about frames.

    Arguments are those of :func:`predict_bundle`; ``threads`` decode and draw, all cores by
    default. A frame is ``unanswered`` if the file does not mention it, if the tool says so itself,
    or if its image cannot be read.

    Raises:
        LabelError: a mask does not fit its frame.
        InputError: an image changed since the scan, or holds a type that is not known.
    """
    collector = Collector(tool.class_ids)
    _check_types(frames, tool.class_ids)
    scores: list[NDArray[np.float32]] = []
    compared = in_order(partial(_compared, tool), frames, threads)
    for done, (frame, found) in enumerate(zip(frames, compared, strict=True), 1):
        if isinstance(found, str):
            collector.add_unanswered(frame, found)
        else:
            image, (pixels, answer) = frame.image, found
            scores.append(answer.head_probabilities_k)
            collector.add(frame, pixels, answer, fold=folds.get(image, 0), group=groups.get(image))
        if progress:
            progress(done, len(frames))
    predictions = collector.predictions(scored=tool.scored, graded=tool.graded, about=about)
    # The tool's score is the type's score: two heads and a peak that all say the same.
    peaks_nk = np.array(scores, np.float32).reshape(predictions.peaks_nk.shape)
    return replace(predictions, peaks_nk=peaks_nk)


def _compared(tool: ToolFile, frame: LabelledFrame) -> tuple[FramePixels, Answer] | str:
    """One frame's pixels and the tool's answer; else why there is none."""
    said = tool.by_image.get(frame.image)
    if said is None:
        return NOT_MENTIONED
    if said.unknown is not None:
        return said.unknown
    try:
        grey_hw = read_file(frame.path).grey_hw
    except DecodeError as error:
        return error.reason
    pixels = _pixels(frame, grey_hw, tool.class_ids)
    masks_khw = np.zeros((len(tool.class_ids), *grey_hw.shape), np.float32)
    for mask in sorted(said.masks, key=lambda mask: mask.score):  # the best one lies on top
        where = f"{tool.kind}, image {shown(frame.image)}, type {mask.class_id}"
        left, covered_hw = decode_columns(mask.rle, frame.size_wh, where=where)
        plane_hw = masks_khw[tool.class_ids.index(mask.class_id)]
        plane_hw[:, left : left + covered_hw.shape[1]][covered_hw] = mask.score
    faulty, scores_k = said.scores(tool.class_ids)
    return pixels, Answer(float(logit(np.array(faulty))), scores_k, masks_khw)


def masks_of_tool(
    tool: ToolFile, frames: Iterable[LabelledFrame], decision: Decision
) -> dict[str, dict[str, str]]:
    """The tool's masks that the decision's pixel thresholds keep, as :func:`masks_of`."""
    delivered = {}
    for frame in frames:
        rles: dict[str, list[str]] = {}
        for mask in tool.by_image.get(frame.image, ToolAnswer()).masks:
            if mask.score >= decision.types[mask.class_id].pixel_from:
                rles.setdefault(mask.class_id, []).append(mask.rle)
        delivered[frame.image] = {class_id: union_rle(of) for class_id, of in rles.items()}
    return delivered


def read_foreign(
    path: Path,
    frames: Sequence[LabelledFrame],
    class_ids: Sequence[str],
    *,
    coco_ids: Path | None = None,
    unmentioned_is_none: bool = False,
    groups: Numbers = _NOTHING,
    progress: Progress | None = None,
    about: Mapping[str, Any] = _NOTHING,
) -> Predictions:
    """What a file of another tool says about frames; see ``read_tool`` and ``predict_tool``."""
    tool = read_tool(
        path, frames, class_ids, coco_ids=coco_ids, unmentioned_is_none=unmentioned_is_none
    )
    return predict_tool(tool, frames, groups=groups, progress=progress, about=about)


def read_kept(
    path: Path,
    frames: Sequence[LabelledFrame],
    *,
    groups: Numbers = _NOTHING,
    about: Mapping[str, Any] = _NOTHING,
) -> Predictions:
    """Those of a ``predictions.npz`` that are about these frames.

    Such a file lists all frames that were asked about; others of the data set are no matter of it.

    Args:
        path: what :meth:`Predictions.save` wrote.
        frames: of the data set.
        groups: as for :func:`predict_bundle`; those of the file where nothing is told.
        about: put over what the file says of its origin.

    Raises:
        InputError: see :meth:`Predictions.load`; it is about none of the frames; or their labels
            have changed.
    """
    kept = Predictions.load(path)
    by_image = {frame.image: frame for frame in frames}
    chosen = np.array([image in by_image for image in kept.images], np.bool_)
    if not chosen.any():
        raise InputError(
            f"{path} is about frames such as {shown(next(iter(kept.images), ''))}, expected frames"
            f" of this data set such as {shown(next(iter(by_image), ''))}; give its data set"
        )
    taken = kept.take(chosen)
    for n, image in enumerate(taken.images):
        types = {c for c, on in zip(kept.class_ids, taken.present_nk[n], strict=True) if on}
        if types != set(by_image[image].class_ids):
            raise InputError(
                f"{path}: image {shown(image)}: expected the types"
                f" {first_names(sorted(by_image[image].class_ids)) or 'none'} as it is labelled"
                f" now, got {first_names(sorted(types)) or 'none'}; predict again"
            )
    first = max(groups.values(), default=-1) + 1
    numbers = [groups.get(image, first + n) for n, image in enumerate(taken.images)]
    return replace(
        taken,
        unanswered=tuple(frame for frame in kept.unanswered if frame.image in by_image),
        groups=np.array(numbers, np.int64) if groups else taken.groups,
        about={**kept.about, **about},
    )


def delivered_decision(class_ids: Sequence[str]) -> Decision:
    """Takes the masks of another tool as they are: a mask is a mask, and a frame with one is NG.

    Where masks have scores, those from 0.5 on count.
    """
    rule = {"label_from": 0.5, "pixel_from": 0.5, "min_area_px": 0}
    return Decision(
        version=1,
        name="as delivered",
        rule="a frame is NG where there is a mask; where masks have scores, from 0.5 on",
        chosen_on="not told",
        gate={"clear_below": 1e-30, "ng_from": 0.5},  # type: ignore[arg-type]
        input={"min_contrast": 0.0},  # type: ignore[arg-type]
        types=dict.fromkeys(class_ids, rule),  # type: ignore[arg-type]
    )


def applied_decision(decision: Decision) -> Decision:
    """The decision for scores that it has changed already, as those in result lines.

    Temperature, soft gate and first look are part of the scores there and may not work twice.
    """
    gate = decision.gate.model_copy(update={"temperature": 1.0, "soft": False})
    return decision.model_copy(update={"gate": gate, "first_look": None})
