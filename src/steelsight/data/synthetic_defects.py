"""The four defect types: outlines as people draw them, and what is painted inside them.

A painter receives the outline and answers with a factor and an addition for the light of the steel
inside; ``paint`` fades both to nothing at the outline, so no pixel outside ever changes. How the
types look was learned by eye from the 100 real frames that have masks:

1. pits: small dark gouges with a glint at one end; where the outline is long, a chain of beads.
2. hairlines: thin dark lines along the rolling direction, always close to the strip edge.
3. scratches: single lines, bundles of torn streaks, crushed shiny spots, slanting scuffs.
4. peeling: large rough flakes with a shadow on one side, a bright lip on the other, and cracks.

Legend: h, w rows and columns of the window around one outline; fields are float32 (h, w).
"""

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from steelsight.data.synthetic_surface import Field, noise_field, smooth, step

Mask = npt.NDArray[np.bool_]
SLENDER = 4.0
"""Outlines at least this many times higher than wide are tilted quadrilaterals."""
FADE_PX = 3.0
"""Over this distance from the outline a defect grows from nothing to full strength."""
CUT = 0.35
"""Where the frame's border cuts an outline of half-height 1."""


def draw_outline(
    rng: np.random.Generator,
    class_id: int,
    area_px: float,
    aspect: float,
    fill: float,
    limit_hw: tuple[int, int],
    cut: int = 0,
) -> Mask:
    """An outline (h, w) in its tightest box.

    Args:
        rng: stream of this frame's defects.
        class_id: 1 to 4; flakes are more ragged than the others.
        area_px: area, met within a few per cent where the limits leave room.
        aspect: height / width of the box.
        fill: area / box area.
        limit_hw: largest height and width; where one is too small the other grows instead.
        cut: -1 or 1: the frame's border cuts the upper or lower end off, straight.
    """
    limit_h, limit_w = limit_hw
    box = area_px / fill
    h = min(math.sqrt(box * aspect), limit_h)
    w = min(box / h, limit_w)
    h = min(box / w, limit_h)
    corners = _quadrilateral(rng, fill) if h > SLENDER * w else _ragged(rng, class_id, fill)
    corners[:, 1] = np.clip(corners[:, 1], -CUT if cut < 0 else -np.inf, CUT if cut > 0 else np.inf)
    corners = (corners - corners.min(axis=0)) / np.ptp(corners, axis=0)
    x, y = corners.T
    own_fill = 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))
    grow = math.sqrt(fill / max(own_fill, 0.15))  # keeps the area
    size = max(round(min(h * grow, limit_h)), 4), max(round(min(w * grow, limit_w)), 4)
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [np.rint(corners * (size[1] - 1, size[0] - 1)).astype(np.int32)], 1)
    return mask.astype(bool)


def _quadrilateral(rng: np.random.Generator, fill: float) -> npt.NDArray[np.float64]:
    """Corners (4, 2) of a slender, slightly tilted quadrilateral, x and y within -1..1."""
    lean = min(max(1 - fill, 0.0), 0.6) * rng.choice((-1, 1))
    left, right = -1 + abs(lean), 1 - abs(lean)
    ends = rng.uniform(0.94, 1, 4)
    return np.array(
        [
            (left - lean, -ends[0]),
            (right - lean, -ends[1]),
            (right + lean, ends[2]),
            (left + lean, ends[3]),
        ]
    )


def _ragged(rng: np.random.Generator, class_id: int, fill: float) -> npt.NDArray[np.float64]:
    """Corners (n, 2) of a coarse polygon: a super-ellipse, dented; x and y about -1..1."""
    few, many, dent = {1: (5, 9, 0.05), 2: (5, 7, 0.03), 3: (7, 12, 0.07), 4: (16, 28, 0.2)}[
        class_id
    ]
    n = int(rng.integers(few, many))
    angle = (np.arange(n) + rng.uniform(-0.3, 0.3, n) + rng.random()) * 2 * math.pi / n
    power = float(np.interp(fill, [0.5, 0.785, 0.93, 0.98], [1.6, 2.0, 4.0, 8.0]))
    dent += 0.3 * max(0.75 - fill, 0)  # what fills little of its box is ragged, not a spindle
    x, y = np.cos(angle), np.sin(angle)
    radius = (np.abs(x) ** power + np.abs(y) ** power) ** (-1 / power)
    for order in (2, 3, 4, 6):
        swing = dent * rng.standard_normal() * 2 / order
        radius *= np.clip(1 + swing * np.cos(order * angle + rng.uniform(0, 6.3)), 0.6, 1.5)
    radius *= 1 + 0.05 * rng.standard_normal(n)
    return np.stack([x * radius, y * radius], axis=1)


def paint(rng: np.random.Generator, class_id: int, window: Field, mask: Mask, mood: float) -> Field:
    """The light of the steel in one window, with a defect inside the outline.

    Args:
        rng: stream of this frame's defects.
        class_id: 1 to 4.
        window: light of the clean steel, grey levels.
        mask: the outline, same shape, with a margin on every side that is not the frame's border:
            a scratch that leaves the frame does not fade there.
        mood: 0..1, which of the type's looks is painted; defects of one frame mostly share it.
    """
    inside = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    inside = np.minimum(inside, max(mask.shape) / 2).astype(np.float32)  # no outline at all: far
    factor, glow = _PAINTERS[class_id](rng, inside, mood)
    weight = np.clip((inside - 1) / FADE_PX, 0, 1)
    level = float(np.median(window[mask]))
    painted = window * (1 + weight * (factor - 1)) + weight * glow * level
    return np.asarray(np.where(mask, np.maximum(painted, 0), window), np.float32)


Painted = tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.floating[Any]]]
"""A factor for the light (1 = unchanged), and light added, in units of the steel around."""


def _middle(inside: Field) -> Field:
    """Centre column of the outline per row (h,), in pixels."""
    weight = np.maximum(inside, 0) ** 2 + 1e-6
    x = np.arange(inside.shape[1], dtype=np.float32)
    return np.asarray((weight * x).sum(axis=1) / weight.sum(axis=1), np.float32)


def _along(rng: np.random.Generator, length: int, cell_px: float) -> Field:
    """Smooth noise along the rows (length,)."""
    return noise_field(rng, (length, 2), (cell_px, 2))[:, 0]


def _line(
    rng: np.random.Generator, inside: Field, offset_px: float, sigma_px: float, wander_px: float
) -> Field:
    """0..1: a line along the rolling direction, wandering, swelling and fading as it goes."""
    h, w = inside.shape
    centre = _middle(inside) + offset_px + wander_px * _along(rng, h, max(h / 3, 8))
    sigma = sigma_px * np.exp(0.2 * _along(rng, h, 25))
    x = np.arange(w, dtype=np.float32)[None, :]
    strength = np.clip(0.85 + 0.25 * _along(rng, h, 30), 0.2, 1.2)
    return np.asarray(
        strength[:, None] * np.exp(-(((x - centre[:, None]) / sigma[:, None]) ** 2) / 2), np.float32
    )


def _heart(inside: Field, share: float) -> Field:
    """1 in the middle of the outline, falling to 0 over ``share`` of the way to its border."""
    return np.asarray(np.clip(inside / max(share * float(inside.max()), 1), 0, 1), np.float32)


def _pits(rng: np.random.Generator, inside: Field, mood: float) -> Painted:
    h, w = inside.shape
    if h > 2.5 * w and h > 90:
        return _bead_chain(rng, inside)
    if w > 46 or mood < 0.1:
        return _scab(rng, inside)
    return _gouge(rng, inside)


def _gouge(rng: np.random.Generator, inside: Field) -> Painted:
    """A dark hollow drawn out along the rolling, with a torn shining tip."""
    h, w = shape = inside.shape
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    radius_y, radius_x = h * rng.uniform(0.16, 0.3), max(w * rng.uniform(0.08, 0.17), 1.6)
    centre_x = w * rng.uniform(0.42, 0.58) + 0.8 * _along(rng, h, 9)[:, None]
    v = (y - h * rng.uniform(0.46, 0.56)) / radius_y * rng.choice((1, 1, -1))
    u = (x - centre_x) / radius_x
    distance = np.hypot(u * np.clip(1 + 0.45 * v, 0.6, 2.5), v)
    distance += 0.22 * noise_field(rng, shape, (5, 4))
    hollow = smooth(step(-distance, -0.9, 0.7), 0.7, 0.9)
    trail = np.exp(-(u**2)) * step(v, 0.8, 0.8) * rng.uniform(0, 0.3)
    factor = 1 - hollow * rng.uniform(0.4, 0.75) - trail
    tip_u, tip_v = u * rng.uniform(0.8, 1.3), (v + 0.95) * radius_y / rng.uniform(1.2, 3.2)
    tip = np.exp(-(tip_u**2) - tip_v**2)
    lip = np.exp(-((distance - 1) ** 2) * 14) * np.maximum(noise_field(rng, shape, (4, 4)), 0)
    glow = tip * (1 + 0.5 * noise_field(rng, shape, (3, 3))) * rng.uniform(1.0, 3.5)
    return factor, np.maximum(glow, 0) + rng.uniform(0, 0.5) * lip


def _scab(rng: np.random.Generator, inside: Field) -> Painted:
    """A rough spot: a little dull, its relief lit from above."""
    h, w = shape = inside.shape
    spot = step(inside + 1.6 * noise_field(rng, shape, (8, 6)), 0.3 * float(inside.max()) + 1, 2.5)
    coarse = noise_field(rng, shape, (max(h / 5, 9), max(w / 4, 7)))
    relief = (
        3 * smooth(spot, 1.5, 1.5) + (2.2 * coarse + 0.5 * noise_field(rng, shape, (6, 5))) * spot
    )
    shading = np.tanh(0.55 * np.gradient(relief, axis=0))
    factor = 1 - rng.uniform(0.1, 0.4) * spot + 0.8 * shading
    return factor, np.maximum(shading - 0.2, 0) * rng.uniform(0.8, 2.5)


def _bead_chain(rng: np.random.Generator, inside: Field) -> Painted:
    """Beads of dents and glints on a faint dark line."""
    h, w = shape = inside.shape
    line = _line(rng, inside, 0, max(w * 0.09, 1.5), 0.8)
    where = np.clip(_along(rng, h, 4) + 0.5 * _along(rng, h, 30), 0, 2)[:, None]
    beads = where * _line(rng, inside, 0, 1.5, 1.2)
    dents = smooth(np.roll(beads, 3, axis=0), 1.2, 1.2)
    grit = 1 + 0.5 * noise_field(rng, shape, (2.5, 2.5))
    factor = 1 - rng.uniform(0.12, 0.35) * line - 0.5 * np.minimum(dents, 1)
    return factor, rng.uniform(0.5, 1.1) * beads * grit


def _hairlines(rng: np.random.Generator, inside: Field, mood: float) -> Painted:
    h, w = inside.shape
    if mood < 0.05:  # now and then it shines in dashes instead
        dashes = np.clip(1.3 * _along(rng, h, 9) + 0.3, 0, 1.5)[:, None]
        return np.ones((h, w), np.float32), 1.2 * dashes * _line(rng, inside, 0, 1.3, 0.8)
    factor = 1 - rng.uniform(0.5, 0.75) * _line(rng, inside, 0, rng.uniform(0.9, 1.5), w * 0.03)
    if rng.random() < 0.4:  # a second, fainter one beside it
        offset = rng.choice((-1, 1)) * rng.uniform(3, max(w * 0.22, 4))
        factor *= 1 - rng.uniform(0.15, 0.45) * _line(rng, inside, offset, 1.0, w * 0.04)
    haze = _line(rng, inside, 0, max(w * 0.15, 2.5), 1)
    return factor * (1 - 0.12 * haze), np.zeros((h, w), np.float32)


def _scratches(rng: np.random.Generator, inside: Field, mood: float) -> Painted:
    h, w = inside.shape
    looks: tuple[tuple[float, Callable[[np.random.Generator, Field], Painted]], ...]
    if h > SLENDER * w:
        looks = ((0.75, _score_lines), (1.0, _crackle))
    elif h > 130:
        looks = ((0.3, _score_lines), (0.7, _torn_streaks), (1.0, _crackle))
    elif w > 1.6 * h:
        looks = ((0.5, _scuffs), (1.0, _crushed))
    else:
        looks = ((0.15, _torn_streaks), (1.0, _crushed))
    return next(look for share, look in looks if mood < share)(rng, inside)


def _score_lines(rng: np.random.Generator, inside: Field) -> Painted:
    """Straight lines along the rolling direction, dark grooves or bright scores."""
    h, w = shape = inside.shape
    bright = rng.random() < 0.35
    factor, glow = np.ones(shape, np.float32), np.zeros(shape, np.float32)
    x = np.arange(w, dtype=np.float32)[None, :]
    sparks = np.maximum(noise_field(rng, shape, (4, 2)), 0)
    rows = np.arange(h)
    axis = np.polyval(np.polyfit(rows, _middle(inside), 1), rows)
    count = 1 + rng.poisson(min(w / 18, 7))
    for offset in rng.uniform(-0.36, 0.36, count) * w * (count > 1):
        centre = axis + offset + 0.4 * _along(rng, h, 60)
        half_px = rng.uniform(1, min(max(0.09 * w, 1.8), 6))
        line = step(half_px - np.abs(x - centre[:, None]), 0, 1.6)
        line *= np.clip(0.95 + 0.2 * _along(rng, h, 50), 0.4, 1.1)[:, None]
        if bright:
            glow += line * rng.uniform(0.3, 0.7) * (1 + sparks)
        else:
            factor *= 1 - rng.uniform(0.3, 0.65) * line
    taper = _heart(inside, min(8 / float(inside.max()), 0.6))  # ends softly, also where narrow
    return 1 + (factor - 1) * taper, glow * taper


def _torn_streaks(rng: np.random.Generator, inside: Field) -> Painted:
    """Ragged dark streaks along the rolling, crossed by ripples, with a little shine."""
    shape = inside.shape
    heart = _heart(inside, rng.uniform(0.5, 0.9))
    streaks = noise_field(rng, shape, (60, 4.5)) + 0.9 * noise_field(rng, shape, (150, 16))
    streaks += rng.uniform(0.3, 1.0) * noise_field(rng, shape, (2.4, 20))  # ripples
    streaks += 0.35 * noise_field(rng, shape, (6, 2.5))
    torn = step(streaks + 1.2 * heart, rng.uniform(1.2, 1.8), 1.0) * step(heart, 0.15, 0.3)
    sparks = smooth(np.maximum(noise_field(rng, shape, (5, 3)) - 0.3, 0), 0.8, 0.7)
    rare = step(noise_field(rng, shape, (30, 20)), 0.9, 0.5)
    depth = rng.uniform(0.45, 0.75) * (1 + 0.15 * noise_field(rng, shape, (12, 3)))
    return 1 - torn * depth, 1.6 * torn * sparks * rare


def _crackle(rng: np.random.Generator, inside: Field) -> Painted:
    """A band of flat shining flecks along the rolling, where the skin burst open."""
    h, w = shape = inside.shape
    centre = _middle(inside) + 0.08 * w * _along(rng, h, max(h / 3, 10))
    x = np.arange(w, dtype=np.float32)[None, :]
    width = w * rng.uniform(0.12, 0.2) * np.exp(0.3 * _along(rng, h, 40))[:, None]
    band = np.exp(-(((x - centre[:, None]) / width) ** 2))
    flecks = noise_field(rng, shape, (2.2, 4)) + 0.6 * noise_field(rng, shape, (18, 10))
    flecks += 0.6 * noise_field(rng, shape, (1.5, 1.8))
    lit = smooth(np.clip(flecks + 1.8 * band - 1.9, 0, 1.6), 0.6, 0.5)
    shade = np.roll(lit, 2, axis=0) * np.maximum(1 - lit, 0)
    factor = 1 - 0.5 * np.minimum(shade, 1)
    return factor, lit * band * rng.uniform(0.8, 1.8)


def _crushed(rng: np.random.Generator, inside: Field) -> Painted:
    """Crushed spots: shining strokes across the rolling beside dark holes, in a few clumps."""
    h, w = shape = inside.shape
    stretch = 3.0 if w > 1.6 * h else 1.0
    heart = _heart(inside, 0.6)
    clumps = noise_field(rng, shape, (16, 14 * stretch)) + 1.2 * heart
    rough = noise_field(rng, shape, (5, 4.5 * stretch)) + 0.9 * noise_field(rng, shape, (2.5, 3.5))
    strokes = rough + 0.9 * clumps
    above = strokes - max(1.6, float(np.quantile(strokes, 0.82)))
    lit = smooth(np.clip(1.1 * above, 0, 1.5), 0.8, 0.6)
    holes = np.roll(step(strokes, 1.7, 0.8), 4, axis=0) * np.maximum(1 - lit, 0)
    shine = rng.uniform(1.0, 2.5) * (1 + 0.4 * noise_field(rng, shape, (5, 5)))
    factor = 1 - rng.uniform(0.3, 0.65) * smooth(holes, 0.8, 0.8)
    return factor, lit * np.maximum(shine, 0)


def _scuffs(rng: np.random.Generator, inside: Field) -> Painted:
    """A bundle of slanting bright scratches."""
    h, w = shape = inside.shape
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    slant = rng.uniform(-0.35, 0.35) * (x - w / 2)
    room = 2 * math.ceil(0.175 * w) + 2
    strands = cv2.remap(
        noise_field(rng, (h + room, w), (2.5, 45)), x, y + room // 2 + slant, cv2.INTER_LINEAR
    )
    patches = 1.1 * noise_field(rng, shape, (25, 60)) + 0.8 * _heart(inside, 0.6)
    rough = 0.4 * noise_field(rng, shape, (3, 8))
    lit = step(strands + patches + rough, rng.uniform(1.8, 2.3), 1.8)
    shade = np.roll(lit, 3, axis=0) * (1 - lit)
    return 1 - 0.5 * shade, lit * rng.uniform(0.5, 1.6)


def _peeling(rng: np.random.Generator, inside: Field, mood: float) -> Painted:
    """A flake: its own tone and relief, a shadow on one side, a bright lip on the other, cracks."""
    shape = inside.shape
    margin = min(5.5, 0.35 * float(inside.max()))
    ragged = 2.2 * noise_field(rng, shape, (24, 24)) + 1.2 * noise_field(rng, shape, (7, 7))
    flake = step(inside + ragged * (margin / 5.5), margin, 2.0)
    relief = noise_field(rng, shape, (45, 60)) * 5 + noise_field(rng, shape, (18, 24)) * 2.2
    relief += noise_field(rng, shape, (7, 9)) * rng.uniform(0.3, 1.2)
    lift = rng.uniform(3, 8) * (1 if mood < 0.5 else -1)  # stands above the steel, or below it
    height = lift * smooth(flake, 1.4, 1.4) + relief * flake
    slope = -np.gradient(height, axis=0) + rng.uniform(-0.5, 0.5) * np.gradient(height, axis=1)
    shading = np.tanh(rng.uniform(0.2, 0.4) * slope)
    fibres = noise_field(rng, shape, (45, 4)) + 0.7 * noise_field(rng, shape, (5, 4))
    ridge = np.abs(noise_field(rng, shape, (30, 110)) + 0.12 * noise_field(rng, shape, (6, 8)))
    broken = step(noise_field(rng, shape, (50, 90)), 0.5, 0.4)
    cracks = (1 - step(ridge, 0.045, 0.06)) * broken
    tone = rng.uniform(-0.38, -0.05) + 0.08 * fibres + 0.1 * noise_field(rng, shape, (40, 50))
    factor = 1 + flake * (tone - 0.5 * cracks) + 0.75 * shading
    bare = step(noise_field(rng, shape, (50, 30)) + 0.35 * fibres, 1.3, 0.5) * flake
    bare = smooth(bare, 0.8, 0.8)
    shine = float(rng.choice((0, 0, 0.3, 1.0)))  # where the skin came off, now and then
    glow = np.maximum(shading - 0.5, 0) * rng.uniform(0.5, 2.0) + bare * shine
    return np.clip(factor, 0.12, 2.5), glow


_PAINTERS = {1: _pits, 2: _hairlines, 3: _scratches, 4: _peeling}
