"""The clean strip: rolled texture, oxide stains, light and strip edge, as one coil shows them.

A coil is a list of numbers drawn once (``Coil``); a frame is a window on it. Bands and edge go on
from one frame of a lane to the next, fine texture is drawn anew. A lane is one of the cameras
across the strip: it sees the left edge, the right edge, or only steel.

Legend: h, w rows and columns; fields are float32 (h, w), 1.0 = the average steel.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]
Lane = Literal["left", "none", "right"]
"""On which side of the frame the strip ends."""
CUBIC_LOSS = 0.88
"""Cubic enlargement along one axis lowers the deviation of white noise to about this."""


def noise_field(
    rng: np.random.Generator, shape_hw: tuple[int, int], cell_hw: tuple[float, float]
) -> Field:
    """Smooth Gaussian noise of mean 0, deviation about 1, correlated over ``cell_hw`` pixels.

    Drawn on a coarse lattice and enlarged, so that wide cells cost little.
    """
    (h, w), (cell_h, cell_w) = shape_hw, cell_hw
    rows, columns = max(2, round(h / cell_h) + 1), max(2, round(w / cell_w) + 1)
    lattice = rng.standard_normal((rows, columns), dtype=np.float32)
    lattice /= max(float(lattice.std()), 0.3) * CUBIC_LOSS ** ((cell_h > 1) + (cell_w > 1))
    if min(cell_hw) < 12:
        return np.asarray(cv2.resize(lattice, (w, h), interpolation=cv2.INTER_CUBIC), np.float32)
    quarter = max(w // 4, columns), max(h // 4, rows)  # wide cells lose nothing by it
    coarse = cv2.resize(lattice, quarter, interpolation=cv2.INTER_CUBIC)
    return np.asarray(cv2.resize(coarse, (w, h), interpolation=cv2.INTER_LINEAR), np.float32)


def step(field: npt.NDArray[np.floating[Any]], threshold: float, softness: float) -> Field:
    """0 where ``field`` lies below ``threshold``, 1 above, a ramp ``softness`` wide between."""
    ramp = (field - np.float32(threshold)) * np.float32(1 / softness) + np.float32(0.5)
    return np.asarray(np.clip(ramp, 0, 1, out=ramp), np.float32)


def smooth(field: npt.NDArray[np.floating[Any]], sigma_x: float, sigma_y: float) -> Field:
    """Gaussian blur with its own width per axis, in pixels."""
    blurred = cv2.GaussianBlur(field, (0, 0), sigma_x, sigmaY=sigma_y)
    return np.asarray(blurred, np.float32)


@dataclass(frozen=True, slots=True)
class Coil:
    """What stays the same, or drifts slowly, along one coil."""

    grey: float
    """Mean grey level of the lit steel."""
    drift: tuple[float, float]
    """Phases (radians) of the slow changes of brightness and edge."""
    slope: float
    """Brightness change from the first to the last row, relative."""
    bands: float
    """Relative depth of the bands along the rolling direction."""
    streaks: float
    """Relative depth of the fine streaks along the rolling direction."""
    grain: float
    """Relative depth of the surface roughness."""
    grain_px: float
    """Correlation of the roughness, in pixels."""
    chatter: float
    """Relative depth of the fine ripples across the rolling direction; 0 = none."""
    tide: float
    """Relative depth of wide marks with a sharp rim, as drying water leaves them; 0 = none."""
    stain: float
    """Brightness of oxide stains relative to bare steel, minus 1; 0 = none."""
    stain_cover: float
    """Share of the steel that stains cover where they are dense."""
    glints: float
    """Glints per 1,000 pixels."""
    edge_glints: float
    """More of them per 1,000 pixels along the strip edge."""
    dark_px: tuple[int, int]
    """Columns without steel in the left and in the right lane."""
    rim_px: float
    """Width of the dull band along the strip edge."""
    rim_shine: float
    """Extra brightness just inside the dull band."""
    tilt_px: float
    """How far the edge wanders from the first to the last row."""


def draw_coil_numbers(
    rng: np.random.Generator, grey: float, dark_fractions: tuple[float, float], width: int
) -> Coil:
    """One coil: mostly plain, now and then stained, rippled or full of glints."""
    stained, rippled, sparkling, marked = (bool(rng.random() < p) for p in (0.55, 0.35, 0.4, 0.4))
    left, right = (round(fraction * width) for fraction in dark_fractions)
    return Coil(
        grey=grey,
        drift=(rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)),
        slope=rng.normal(0.12, 0.22),
        bands=rng.uniform(0.03, 0.10),
        streaks=rng.uniform(0.004, 0.02),
        grain=rng.uniform(0.045, 0.11),
        grain_px=rng.uniform(0.5, 0.8),
        chatter=rng.uniform(0.02, 0.05) * rippled,
        tide=float(rng.choice((-1, 1))) * rng.uniform(0.05, 0.13) * marked,
        stain=(rng.uniform(-0.32, -0.14) if rng.random() < 0.7 else rng.uniform(0.14, 0.3))
        * stained,
        stain_cover=rng.uniform(0.1, 0.45),
        glints=rng.uniform(0.1, 0.3) + rng.uniform(0.5, 4.0) * sparkling,
        edge_glints=float(rng.choice((1.0, 8.0, 20.0))),
        dark_px=(left, right),
        rim_px=rng.uniform(6, 26),
        rim_shine=rng.uniform(0, 0.35),
        tilt_px=rng.normal(0, 3) if rng.random() < 0.8 else rng.normal(0, 14),
    )


def band_profile(
    knots: tuple[np.random.Generator, np.random.Generator, np.random.Generator],
    shape_hw: tuple[int, int],
) -> Field:
    """Bands along the rolling direction, going on from frame to frame.

    Args:
        knots: streams of the lane itself, of this frame's first row and of the next frame's.
        shape_hw: rows and columns.
    """
    w = shape_hw[1]

    def profile(rng: np.random.Generator) -> Field:
        weights = ((2, 0.2), (9, 0.35), (40, 0.5), (160, 0.5))
        soft = sum(k * noise_field(rng, (2, w), (2, px))[:1] for px, k in weights)
        stepped = np.tanh(9 * noise_field(rng, (2, w), (2, 130))[:1])  # where two rolls met
        return np.asarray(soft + 0.45 * stepped, np.float32)

    lane, here, after = (profile(rng) for rng in knots)
    t = np.linspace(0, 1, shape_hw[0], dtype=np.float32)[:, None]
    return np.asarray(0.85 * lane + 0.5 * ((1 - t) * here + t * after), np.float32)


def texture(rng: np.random.Generator, coil: Coil, bands: Field) -> Field:
    """Bands, streaks, mottle, roughness and ripples of bare steel."""
    shape = bands.shape
    columns = noise_field(rng, (2, shape[1]), (2, 70))[:1]
    streaks = noise_field(rng, shape, (20, 1)) + noise_field(rng, shape, (70, 3))
    mottle = noise_field(rng, shape, (45, 25)) + 0.9 * noise_field(rng, shape, (10, 6))
    rough = smooth(rng.standard_normal(shape, dtype=np.float32), coil.grain_px, coil.grain_px * 1.1)
    rough *= coil.grain / float(rough.std()) * np.exp(0.25 * columns)
    relative = rough + np.float32(coil.bands) * bands
    relative += streaks * (coil.streaks * np.exp(0.7 * columns))
    relative += np.float32(0.02) * mottle
    if coil.chatter:
        relative += ripples(rng, coil, mottle)
    if coil.tide:
        tide = noise_field(rng, shape, (260, 420)) + 0.05 * noise_field(rng, shape, (25, 25))
        relative += np.float32(coil.tide) * step(tide, 0.4, 0.05 + 0.4 * rng.random())
    return np.exp(relative, out=relative)  # never below zero; roughness is skewed to the bright


def ripples(rng: np.random.Generator, coil: Coil, mottle: Field) -> Field:
    """Fine wavy lines across the rolling direction, in patches: chatter of the rolls."""
    shape = mottle.shape
    phase = 1.3 * noise_field(rng, shape, (14, 60)) + 6 * noise_field(rng, shape, (120, 500))
    phase += np.arange(shape[0], dtype=np.float32)[:, None] * np.float32(2 * np.pi / 5.5)
    patchy = step(noise_field(rng, shape, (90, 160)), 0.1, 1.6) * (1 + mottle)
    return np.asarray(np.sin(phase, out=phase) * patchy * np.float32(coil.chatter), np.float32)


def stains(rng: np.random.Generator, coil: Coil, shape_hw: tuple[int, int]) -> Field:
    """Brightness factor of two-tone oxide stains: ragged islands drawn out along the rolling."""
    if not coil.stain:
        return np.ones(shape_hw, np.float32)
    islands = noise_field(rng, shape_hw, (38, 5)) + 1.1 * noise_field(rng, shape_hw, (120, 22))
    islands += 0.35 * noise_field(rng, shape_hw, (5, 1.6))
    dense = 1.6 * noise_field(rng, (2, shape_hw[1]), (2, 90))[:1]
    cover = 2.9 - 2.6 * coil.stain_cover
    return np.asarray(1 + coil.stain * step(islands + dense, cover, 0.35), np.float32)


def glints(rng: np.random.Generator, coil: Coil, lane: Lane, limits: Field, width: int) -> Field:
    """Light added by tiny facets: flat sparks, crowded in some columns and towards the edge."""
    h = len(limits)
    per_column = np.exp(1.2 * noise_field(rng, (2, width), (2, 60))[0]) * coil.glints
    if lane != "none":
        from_edge = np.abs(np.arange(width) - limits.mean())
        per_column += coil.edge_glints * np.exp(-(((from_edge - 80) / 45) ** 2))
    total = np.cumsum(per_column)
    count = rng.poisson(total[-1] * h / 1000)
    x = np.minimum(np.searchsorted(total, rng.random(count) * total[-1]), width - 1)
    sparks = np.zeros((h, width), np.float32)
    sparks[rng.integers(0, h, count), x] = rng.exponential(2.0, count)
    return smooth(sparks, 1.3, 0.65)


def light(rng: np.random.Generator, coil: Coil, shape_hw: tuple[int, int], at: float) -> Field:
    """Illumination: falls off to the sides, changes down the frame, breathes along the coil.

    Args:
        rng: stream of the lane, so that its lamp looks the same in every frame.
        coil: the coil.
        shape_hw: rows and columns.
        at: position along the coil in frames.
    """
    x = np.linspace(-1, 1, shape_hw[1], dtype=np.float32)[None, :]
    y = np.linspace(-0.5, 0.5, shape_hw[0], dtype=np.float32)[:, None]
    lean, centre, fall = rng.normal(0, 0.12), rng.normal(0, 0.25), rng.uniform(0.1, 0.45)
    across = 1 + lean * x - fall * (x - centre) ** 2
    breath = 1 + 0.06 * math.sin(at / 7 + coil.drift[0]) + 0.03 * math.sin(at / 1.7 + coil.drift[1])
    hot = np.exp(coil.slope * y * (2 + np.cos(2.5 * (x - centre))) / 1.5)
    return np.asarray(np.maximum(across, 0.15) * breath * hot, np.float32)


def strip_limits(coil: Coil, lane: Lane, height: int, width: int, at: float) -> Field:
    """Column where the steel ends, per row (h,); the frame's border for lane ``none``."""
    if lane == "none":
        return np.full(height, width, np.float32)
    s = at + np.linspace(0, 1, height, dtype=np.float32)
    wander = 9 * np.sin(s / 5 + coil.drift[1]) + coil.tilt_px * np.sin(s * 1.6 + coil.drift[0])
    dark = np.maximum(coil.dark_px[0 if lane == "left" else 1] + wander, 2)
    return np.asarray(dark if lane == "left" else width - dark, np.float32)


def edge(rng: np.random.Generator, coil: Coil, lane: Lane, limits: Field, width: int) -> Field:
    """Brightness factor of the strip edge: nothing beyond, soft border, dull and shiny band."""
    if lane == "none":
        return np.ones((len(limits), width), np.float32)
    x = np.arange(width, dtype=np.float32)[None, :]
    inside = x - limits[:, None] if lane == "left" else limits[:, None] - x
    inside += 0.5 * noise_field(rng, (len(limits), 2), (20, 2))[:, :1]
    px = np.arange(-8, width + 8, dtype=np.float32)
    border = 1 / (1 + np.exp(-px / 1.4))
    dull = 1 - 0.55 / (1 + np.exp(np.minimum((px - coil.rim_px) / 2, 50)))
    shine = 1 + coil.rim_shine * np.exp(-(((px - coil.rim_px - 28) / 22) ** 2))
    profile = (border * dull * shine).astype(np.float32)
    return np.asarray(np.interp(inside, px, profile, left=0.0), np.float32)
