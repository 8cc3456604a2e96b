"""Pixel figures from counts of pixels by mask logit.

Thresholds are the 49 of ``MASK_LOGIT_EDGES`` and both ends, where all or no pixels are marked.
Pixels of one bin stand and fall together, so every figure is exact for logits rounded down to
their edge.
"""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

PRO_UP_TO = 0.3
"""Share of false positive pixels up to which region overlap is integrated, as in MVTec AD."""


def pixel_average_precision(inside_b: Ints, outside_b: Ints) -> float | None:
    """Average precision of pixels, as :func:`steelsight.evaluation.metrics.average_precision`.

    Args:
        inside_b: pixels by mask logit inside of labelled masks, over all frames, ``(B,)``.
        outside_b: outside of them, clean frames included.

    Returns:
        0..1; ``None`` without a labelled pixel.
    """
    total = int(inside_b.sum())
    if not total:
        return None
    true_b = inside_b[::-1].cumsum()
    marked_b = true_b + outside_b[::-1].cumsum()
    precision_b = np.divide(true_b, marked_b, out=np.zeros(len(marked_b)), where=marked_b > 0)
    return float((inside_b[::-1] * precision_b).sum() / total)


def per_region_overlap(
    region_counts_rb: Ints, outside_b: Ints, up_to: float = PRO_UP_TO
) -> float | None:
    """Area under the per-region overlap curve (PRO; Bergmann et al., MVTec AD, IJCV 2021).

    The overlap of a region is the share of its pixels that are marked; every region counts alike,
    however small. Its mean is integrated over the share of unlabelled pixels that are marked, from
    0 to ``up_to``, linearly between thresholds, and divided by ``up_to``.

    Args:
        region_counts_rb: pixels of each labelled region by mask logit, ``(R, B)``.
        outside_b: pixels outside of labelled masks, over all frames, ``(B,)``.
        up_to: above 0, at most 1.

    Returns:
        0..1; ``None`` without a region or an unlabelled pixel.
    """
    if not len(region_counts_rb) or not outside_b.any():
        return None
    covered_rb = region_counts_rb[:, ::-1].cumsum(axis=1)
    overlap_b = np.append(0.0, (covered_rb / covered_rb[:, -1:]).mean(axis=0))
    alarms_b = np.append(0, outside_b[::-1].cumsum()) / outside_b.sum()
    # Where several thresholds share a rate, the curve is a vertical step: its end counts.
    inside = alarms_b < up_to
    x: Floats = np.append(alarms_b[inside], up_to)
    y: Floats = np.append(overlap_b[inside], np.interp(up_to, alarms_b, overlap_b))
    if (alarms_b == up_to).any():
        y[-1] = overlap_b[alarms_b == up_to].max()
    return float(min(np.trapezoid(y, x) / up_to, 1.0))


def overlap(true_px: Ints, marked_px: Ints, labelled_px: Ints) -> tuple[Floats, Floats]:
    """Dice and IoU of masks from their numbers of pixels; 1 where both are empty.

    Args:
        true_px: marked and labelled.
        marked_px: marked.
        labelled_px: labelled; all three of the same shape.
    """
    both = marked_px + labelled_px
    dice: Floats = np.divide(2 * true_px, both, out=np.ones(both.shape), where=both > 0)
    union = both - true_px
    iou: Floats = np.divide(true_px, union, out=np.ones(union.shape), where=union > 0)
    return dice, iou
