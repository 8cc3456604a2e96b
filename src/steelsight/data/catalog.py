"""Every frame of a data set as it is on disk: decoded strictly, hashed, measured, with its labels.

``scan`` reads each image once; audit, exploration and splits work on the catalog.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from steelsight.data.labels import FrameLabels, LabelSet
from steelsight.defects import Reason


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """One frame.

    Attributes:
        image: its name in the data set.
        path: the file; ``None`` where labels name an image that is not there.
        labels: what is known about it; ``None`` for an unlabelled or refused frame.
        sha256: of the file's bytes; ``None`` if it could not be read.
        pixels_sha256: of height, width and the decoded grey pixels; ``None`` if not decodable.
        size_wh: width and height in pixels as decoded; ``None`` if not decodable.
        brightness: mean grey level, 0..255.
        contrast: standard deviation of the grey levels.
        dark_share: share of the pixels darker than 16: the area beside the strip, mostly.
        coloured: whether the pixels are not grey.
        reason, detail: why the image cannot be used, as ``inspect`` would say it.
        notes: what was done to the pixels on the way in.
    """

    image: str
    path: Path | None
    labels: FrameLabels | None
    sha256: str | None = None
    pixels_sha256: str | None = None
    size_wh: tuple[int, int] | None = None
    brightness: float | None = None
    contrast: float | None = None
    dark_share: float | None = None
    coloured: bool = False
    reason: Reason | None = None
    detail: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Catalog:
    """A scanned data set.

    Attributes:
        label_set: the labels it was scanned with.
        records: all frames by name, sorted: images on disk and labelled ones that are missing.
        thumbnails: float32, one row per record, for finding near-duplicates; zeros where a frame
            is not decodable.
    """

    label_set: LabelSet
    records: tuple[FrameRecord, ...]
    thumbnails: npt.NDArray[np.float32]
