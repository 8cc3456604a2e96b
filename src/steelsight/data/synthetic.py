"""Draws frames of steel strip with known truth, for the demo, the tests and the benchmarks.

One frame is drawn in the order in which its light travels: texture -> light -> edge -> defects ->
sensor (``synthetic_surface`` has the first three, ``synthetic_defects`` the fourth). Frequencies,
sizes, shapes and places of the defects follow statistics of the real Severstal labels
(``synthetic_statistics.json``, written by ``benchmarks/learn_synthetic_statistics.py``).

What *exact truth* means: first an outline is drawn as a person would draw it, a coarse polygon;
then the defect is painted inside, fading to nothing at the outline. Every pixel outside the masks
equals the pixel of the same frame without defects (``with_defects=False``), noise included.

Every random number comes from a stream keyed by seed, purpose and frame index: frame 12 is the same
whether or not frames 0 to 11 were drawn. The bytes repeat on one machine with one set of library
versions; another processor may round a pixel differently.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg

from steelsight import __version__
from steelsight.data.formats.severstal import CsvForm, write_csv
from steelsight.data.labels import FrameLabels
from steelsight.data.synthetic_defects import Mask, draw_outline, paint
from steelsight.data.synthetic_surface import (
    Coil,
    Field,
    Lane,
    band_profile,
    draw_coil_numbers,
    edge,
    glints,
    light,
    stains,
    strip_limits,
    texture,
)
from steelsight.errors import InputError
from steelsight.masks import encode_rle

CLASS_IDS = ("1", "2", "3", "4")
JPEG_QUALITY = 90
"""As the real frames were compressed."""
SMALLEST_WH, LARGEST_WH = (128, 64), (16_384, 16_384)
BLACK_LEVEL = 3
"""Grey level that the camera writes without light."""
LIKENESS = 0.7
"""Share of the defects of one type and frame that look alike."""
WIDEST_DARK = 0.6
"""Frames with less steel than this leaves occur in the real data, but show little."""


class _Stream(IntEnum):
    """What a random stream is for: each purpose has its own, so none disturbs another."""

    COIL = 0
    LANE = 1
    PLAN = 2
    BANDS = 3
    SURFACE = 4
    DEFECTS = 5
    SENSOR = 6


@dataclass(frozen=True, slots=True)
class CoilConfig:
    """What to draw; refused with ``InputError`` where impossible."""

    frames: int = 60
    """How many frames the coil has."""
    seed: int = 0
    """Same seed, same coil."""
    faulty_share: float = 0.25
    """Chance of a frame to be faulty. The Kaggle training set holds 0.53, real lines far less."""
    size_wh: tuple[int, int] = (1600, 256)
    """Width and height of a frame in pixels. Defects keep their size in pixels."""
    class_weights: tuple[float, float, float, float] = (0.126, 0.035, 0.726, 0.113)
    """Relative frequency of types 1 to 4; the default is that of the 7,095 real masks."""
    edge_share: float = 0.30
    """Share of frames that show a strip edge (real clean frames: 0.30). Frames with type 2 always
    show one, since these lines lie along it, unless this is 0."""

    def __post_init__(self) -> None:
        def refuse(expected: str, received: object, advice: str) -> None:
            raise InputError(f"expected {expected}, received {received!r}; {advice}")

        if not 1 <= self.frames <= 999_999:
            refuse("frames between 1 and 999999", self.frames, "set another number of frames")
        if self.seed < 0:
            refuse("a seed of 0 or more", self.seed, "drop the sign")
        for name in ("faulty_share", "edge_share"):
            if not 0 <= getattr(self, name) <= 1:  # also refuses NaN
                refuse(f"{name} between 0 and 1", getattr(self, name), "write 25 % as 0.25")
        size, low, high = (np.array(v) for v in (self.size_wh, SMALLEST_WH, LARGEST_WH))
        if size.shape != low.shape or (size < low).any() or (size > high).any():
            limits = "x".join(map(str, SMALLEST_WH)), "x".join(map(str, LARGEST_WH))
            refuse(
                f"size_wh (width, height) from {limits[0]} to {limits[1]}",
                self.size_wh,
                "real frames are (1600, 256)",
            )
        weights = self.class_weights
        if len(weights) != len(CLASS_IDS) or not all(0 <= w < math.inf for w in weights):
            refuse("four class_weights of 0 or more", weights, "give one per type 1 to 4")
        if sum(weights) == 0:
            refuse("a class weight above 0", weights, "set faulty_share=0 to draw clean frames")


@dataclass(frozen=True, slots=True)
class SyntheticFrame:
    """One frame and its truth."""

    name: str
    """File name, ``synthetic-000012.jpg`` for frame 12."""
    grey_hw: npt.NDArray[np.uint8]
    masks_chw: npt.NDArray[np.bool_]
    """Truth of types 1 to 4."""

    @property
    def class_ids(self) -> tuple[str, ...]:
        """The types on the frame, as in labels; empty for a clean frame."""
        masks = zip(CLASS_IDS, self.masks_chw, strict=True)
        return tuple(k for k, mask_hw in masks if mask_hw.any())


def draw_coil(config: CoilConfig) -> Iterator[SyntheticFrame]:
    """All frames of the coil in order."""
    return (draw_frame(config, index) for index in range(config.frames))


def draw_frame(config: CoilConfig, index: int, *, with_defects: bool = True) -> SyntheticFrame:
    """Frame ``index`` (0-based) of the coil.

    Args:
        config: the coil.
        index: which frame.
        with_defects: ``False`` draws its clean twin: the same steel, light and noise, no defect.

    Raises:
        InputError: the coil has no such frame.
    """
    if not 0 <= index < config.frames:
        raise InputError(
            f"expected a frame index from 0 to {config.frames - 1}, received {index}; "
            "raise frames in the configuration"
        )
    width, height = config.size_wh
    coil = _coil(config.seed, width)
    types, lane = _plan(config, index)
    limits = strip_limits(coil, lane, height, width, index)
    steel = _clean_steel(config, index, coil, lane, limits)
    masks = np.zeros((len(CLASS_IDS), height, width), bool)
    if with_defects and types:
        steel, masks = _add_defects(config, index, steel, types, lane, limits)
    grey = _sensor(_stream(config.seed, _Stream.SENSOR, index), steel)
    return SyntheticFrame(f"synthetic-{index:06d}.jpg", grey, masks)


def _stream(seed: int, purpose: _Stream, *key: int) -> np.random.Generator:
    sequence = np.random.SeedSequence(seed, spawn_key=(purpose, *key))
    return np.random.Generator(np.random.PCG64(sequence))


@cache
def _statistics() -> dict[str, Any]:
    text = resources.files("steelsight.data").joinpath("synthetic_statistics.json").read_text()
    statistics: dict[str, Any] = json.loads(text)
    return statistics


def _at_quantile(quantiles: list[float], u: float) -> float:
    """The value at probability ``u`` of a distribution stored as evenly spaced quantiles."""
    return float(np.interp(u, np.linspace(0, 1, len(quantiles)), quantiles))


def _probability(z: float) -> float:
    """Standard normal distribution function."""
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def _coil(seed: int, width: int) -> Coil:
    rng = _stream(seed, _Stream.COIL)
    grey = _at_quantile(_statistics()["clean_surface"]["mean_grey"], rng.uniform(0.1, 0.95))
    left, right = (
        min(_at_quantile(_statistics()["dark_fraction"], u), WIDEST_DARK) for u in rng.random(2)
    )
    return draw_coil_numbers(rng, grey, (left, right), width)


def _plan(config: CoilConfig, index: int) -> tuple[list[int], Lane]:
    """The types on a frame (1 to 4; empty: clean) and where its strip ends."""
    rng = _stream(config.seed, _Stream.PLAN, index)
    types: list[int] = []
    if rng.random() < config.faulty_share:
        weights = np.array(config.class_weights) / sum(config.class_weights)
        types = [int(rng.choice(4, p=weights)) + 1]
        partner = _partner_chances(types[0]) * (weights > 0) / 2  # either may have come first
        if rng.random() < partner.sum():
            types.append(int(rng.choice(4, p=partner / partner.sum())) + 1)
    sides = _statistics()["edge_sides"]
    here = sides["2" if 2 in types else str(types[0]) if types else "clean"]
    seen = config.edge_share * (1 - here["none"]) / (1 - sides["clean"]["none"])
    if 2 in types and config.edge_share > 0:
        seen = 1.0
    if rng.random() >= seen:
        return types, "none"
    left = here["left"] / (here["left"] + here["right"])
    return types, "left" if rng.random() < left else "right"


def _partner_chances(first: int) -> npt.NDArray[np.float64]:
    """Chance of each type to be on a frame that holds ``first``."""
    together = np.zeros(4)
    total = 0
    for names, count in _statistics()["type_sets"].items():
        present = [int(k) for k in names.split()]
        if first in present:
            total += count
            together[[k - 1 for k in present if k != first]] += count
    return together / total


def _clean_steel(config: CoilConfig, index: int, coil: Coil, lane: Lane, limits: Field) -> Field:
    """Light that reaches the camera from clean steel, in grey levels: texture, light, edge."""
    width, height = config.size_wh
    seed, side, shape = config.seed, ("none", "left", "right").index(lane), (height, width)
    knots = (
        _stream(seed, _Stream.LANE, side, 1),
        _stream(seed, _Stream.BANDS, side, index),
        _stream(seed, _Stream.BANDS, side, index + 1),
    )
    rng = _stream(seed, _Stream.SURFACE, index)
    steel = texture(rng, coil, band_profile(knots, shape)) * stains(rng, coil, shape)
    steel += glints(rng, coil, lane, limits, width)
    steel *= light(_stream(seed, _Stream.LANE, side, 0), coil, shape, index)
    return steel * edge(rng, coil, lane, limits, width) * np.float32(coil.grey)


def _sensor(rng: np.random.Generator, light_hw: Field) -> npt.NDArray[np.uint8]:
    """Grey levels as the camera writes them: black level, read-out and shot noise, rounding."""
    signal = rng.standard_normal(light_hw.shape, dtype=np.float32)
    signal *= np.sqrt(0.3 + 0.015 * light_hw)
    signal += light_hw
    signal += BLACK_LEVEL
    return np.rint(np.clip(signal, 0, 255, out=signal)).astype(np.uint8)


def _add_defects(
    config: CoilConfig, index: int, steel: Field, types: list[int], lane: Lane, limits: Field
) -> tuple[Field, npt.NDArray[np.bool_]]:
    """The steel with defects of the given types, and their masks (4, h, w)."""
    rng = _stream(config.seed, _Stream.DEFECTS, index)
    steel = steel.copy()
    masks = np.zeros((len(CLASS_IDS), *steel.shape), bool)
    strip = _strip_columns(lane, limits, steel.shape[1])
    for class_id in types:
        mood = rng.random()
        drawn = _outlines(rng, class_id, (steel.shape[0], strip[1] - strip[0]))
        for x, y, outline in _places(rng, class_id, drawn, lane, strip, masks):
            own = mood if rng.random() < LIKENESS else rng.random()
            _put(rng, class_id, steel, masks[class_id - 1], (x, y), outline, own)
    return steel, masks


def _strip_columns(lane: Lane, limits: Field, width: int) -> tuple[int, int]:
    """First and one-past-last column that shows steel in every row, without the dull border."""
    border = 5
    if lane == "left":
        return min(math.ceil(float(limits.max())) + border, width - 32), width
    if lane == "right":
        return 0, max(math.floor(float(limits.min())) - border, 32)
    return 0, width


def _outlines(
    rng: np.random.Generator, class_id: int, room_hw: tuple[int, int]
) -> list[tuple[int, Mask]]:
    """First row and outline of all defects of one type on one frame, largest first.

    Number and total area are drawn together (a Gaussian copula with their real correlation); the
    area is shared out unevenly, and the shapes resemble each other as those of real frames do.
    """
    known = _statistics()["types"][str(class_id)]
    z_count, z_area = _correlated(rng, known["count_area_correlation"])
    count = 1 + int(np.searchsorted(np.cumsum(known["components"])[:-1], _probability(z_count)))
    room_px = 0.6 * room_hw[0] * room_hw[1]
    total_px = min(_at_quantile(known["area_px"], _probability(z_area)), room_px)
    shares = np.sort(np.exp(known["log_share_std"] * rng.standard_normal(count)))[::-1]
    likeness = known["frame_shape_correlation"]
    z_frame = rng.standard_normal()
    outlines = []
    for area_px in total_px * shares / shares.sum():
        z = math.sqrt(likeness) * z_frame + math.sqrt(1 - likeness) * rng.standard_normal()
        aspect = _aspect(known["shape_by_area"], float(area_px), _probability(z))
        fill = _at_quantile(known["fill"], rng.uniform(0.05, 0.95))
        slack = _at_quantile(known["slack_y"], rng.random())
        cut = -1 if slack <= 0.005 else 1 if slack >= 0.995 else 0
        outline = draw_outline(rng, class_id, float(area_px), aspect, fill, room_hw, cut)
        outlines.append((round(slack * (room_hw[0] - outline.shape[0])), outline))
    return outlines


def _correlated(rng: np.random.Generator, correlation: float) -> tuple[float, float]:
    """Two standard normal numbers."""
    a, b = rng.standard_normal(2)
    return float(a), float(correlation * a + math.sqrt(1 - correlation**2) * b)


def _aspect(shapes: list[dict[str, Any]], area_px: float, u: float) -> float:
    """Height / width of a defect of the given area; infinite where it spans the frame."""
    shape = next((s for s in shapes if area_px <= s["area_up_to_px"]), shapes[-1])
    free = 1 - shape["full_height"]
    return _at_quantile(shape["aspect"], u / free) if u < free else math.inf


def _places(
    rng: np.random.Generator,
    class_id: int,
    outlines: list[tuple[int, Mask]],
    lane: Lane,
    strip: tuple[int, int],
    taken_chw: npt.NDArray[np.bool_],
) -> Iterator[tuple[int, int, Mask]]:
    """Left, top and outline for each; of some tries the one that overlaps least is taken."""
    known = _statistics()["types"][str(class_id)]
    width = taken_chw.shape[2]
    low, high = strip
    centre = low + _at_quantile(known["centre_x"], rng.random()) * (high - low)
    spread = _at_quantile(known["spread_x"], rng.random()) * width
    if class_id == 2:  # hairlines lie along an edge, be it just outside the frame
        from_edge = _at_quantile(_statistics()["line_to_edge_px"], rng.random())
        at_left = lane == "left" or (lane == "none" and rng.random() < 0.5)
        centre = low + from_edge if at_left else high - from_edge
    for y, outline in outlines:
        h, w = outline.shape
        tries = []
        for _ in range(6):
            x = round(centre + spread * rng.standard_normal() - w / 2)
            x = min(max(x, low), high - w)
            taken = taken_chw[:, max(y - 3, 0) : y + h + 3, max(x - 3, 0) : x + w + 3]
            tries.append((int(np.count_nonzero(taken)), x))
            if tries[-1][0] == 0:
                break
        yield min(tries)[1], y, outline


def _put(
    rng: np.random.Generator,
    class_id: int,
    steel: Field,
    mask: npt.NDArray[np.bool_],
    corner_xy: tuple[int, int],
    outline: Mask,
    mood: float,
) -> None:
    """Paints one defect into ``steel`` and adds its outline to ``mask``, both in place."""
    (x, y), (h, w), margin = corner_xy, outline.shape, 2
    top, left = max(y - margin, 0), max(x - margin, 0)
    window = np.s_[top : y + h + margin, left : x + w + margin]
    here = np.zeros(steel[window].shape, bool)
    here[y - top : y - top + h, x - left : x - left + w] = outline
    steel[window] = paint(rng, class_id, steel[window], here, mood)
    mask[window] |= here


def write_severstal(
    config: CoilConfig,
    folder: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Writes the coil in the form of the Kaggle set and returns the folder.

    ``images/*.jpg`` (grey stored as RGB, quality 90, as the real ones), ``train.csv`` (one row per
    frame and type, only faulty frames), ``images.csv`` (every frame: faulty or clean) and
    ``SYNTHETIC.txt``, which says that nothing here was photographed and how to draw it again.

    Args:
        config: the coil.
        folder: new or empty.
        overwrite: write into a folder that holds files already; files of the same name are lost.
        progress: called after each frame with the number written so far.

    Raises:
        InputError: ``folder`` is a file, or holds files and ``overwrite`` is not set.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"expected a folder, received the file {folder}; name another place")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"expected a new or empty folder, received {folder} with files in it; name another one"
        )
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    # First: whoever finds a drawing that was stopped must know what it is.
    (folder / "SYNTHETIC.txt").write_text(_note(config), encoding="utf-8")
    labels: list[FrameLabels] = []
    stated = [("ImageId", "status", "classes")]
    for done, frame in enumerate(draw_coil(config), start=1):
        (images / frame.name).write_bytes(encode_jpeg(frame.grey_hw))
        rles = {k: encode_rle(frame.masks_chw[CLASS_IDS.index(k)]) for k in frame.class_ids}
        if rles:
            labels.append(FrameLabels(frame.name, rles))
        stated.append((frame.name, "faulty" if rles else "clean", " ".join(rles)))
        if progress:
            progress(done)
    write_csv(folder / "train.csv", labels, form=CsvForm.ROWS, class_ids=CLASS_IDS)
    with (folder / "images.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(stated)
    return folder


def encode_jpeg(grey_hw: npt.NDArray[np.uint8]) -> bytes:
    """JPEG as the real frames are: grey stored as RGB, 4:2:0, quality 90."""
    rgb = np.repeat(grey_hw[:, :, None], 3, axis=2)
    data: bytes = simplejpeg.encode_jpeg(rgb, JPEG_QUALITY, "RGB", "420")
    return data


def _note(config: CoilConfig) -> str:
    return (
        "These frames are drawn by steelsight, not photographed. The masks are exact.\n"
        "They serve demonstrations and tests; accuracy on them says nothing about real steel.\n"
        f"Drawn by steelsight {__version__} from this configuration (JSON):\n"
        f"{json.dumps(asdict(config))}\n"
    )
