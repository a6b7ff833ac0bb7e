"""Procedurally drawn design patterns: each is a function of (size, rng) giving a uint8 picture [size, size, 3].

Everything is drawn at `SUPERSAMPLE` times the size and averaged down, which is what antialiases it. A pattern draws
all of its choices (palette, scale, offset) from `rng`, so a seed names a picture.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Picture = NDArray[np.uint8]
Rng = np.random.Generator

SUPERSAMPLE = 3

TRUCHET = (
    ("#f4ead5", "#1d3557", "#e76f51"),
    ("#fdf0d5", "#780000", "#003049"),
    ("#e9f5db", "#31572c", "#90a955"),
    ("#fff1e6", "#5e548e", "#e5989b"),
    ("#0b132b", "#5bc0be", "#f4d35e"),
)
GLASS = (
    ("#d62828", "#f77f00", "#fcbf49", "#003049", "#4895ef", "#2a9d8f"),
    ("#7209b7", "#4361ee", "#4cc9f0", "#f72585", "#b5179e", "#ffd166"),
    ("#2d6a4f", "#74c69d", "#d8f3dc", "#ffb703", "#219ebc", "#8ecae6"),
)
MONDRIAN = ("#d01c1f", "#f2c500", "#1f4fa3")
WOOD = (
    ("#8a5a36", "#a06b42", "#b67f52", "#c89364", "#74482a"),
    ("#6f6259", "#84776c", "#9b8e82", "#b3a698", "#5d5149"),
    ("#b08a5b", "#c49c6c", "#d3ae80", "#e0bf95", "#9c774a"),
)
WAVES = (
    ("#f7f3e9", "#1d4e89"),
    ("#f8f4ec", "#0f7173"),
    ("#fbeee6", "#b23a48"),
    ("#f3efe0", "#2f3e6e"),
)
TERRAZZO = (
    ("#f3efe8", "#c8553d", "#588b8b", "#f28f3b", "#2d3047", "#a8a29a"),
    ("#efe9e4", "#7d8597", "#d4a373", "#33415c", "#bc8a5f", "#b7b7a4"),
    ("#f4f1ee", "#e5989b", "#6d6875", "#84a98c", "#ffcdb2", "#52796f"),
)


def _rgb(color: str) -> NDArray[np.float64]:
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float64)


def _grid(size: int, rng: Rng) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Supersampled pixel centres (y, x) in picture pixels, shifted by a random offset."""
    axis = (np.arange(size * SUPERSAMPLE) + 0.5) / SUPERSAMPLE
    oy, ox = rng.uniform(0, 1000, 2)
    y, x = np.meshgrid(axis + oy, axis + ox, indexing="ij")
    return y, x


def _shrink(image: NDArray[np.float64]) -> Picture:
    n = image.shape[0] // SUPERSAMPLE
    mean = image.reshape(n, SUPERSAMPLE, n, SUPERSAMPLE, 3).mean(axis=(1, 3))
    return np.clip(np.rint(mean), 0, 255).astype(np.uint8)


def truchet(size: int, rng: Rng) -> Picture:
    """Quarter-circle tiles turned at random: ribbons that wander and close."""
    y, x = _grid(size, rng)
    cell = rng.uniform(13, 22)
    row, col = np.floor(y / cell).astype(int), np.floor(x / cell).astype(int)
    v, u = y / cell - row, x / cell - col
    turned = rng.random((row.max() - row.min() + 1, col.max() - col.min() + 1)) < 0.5
    u = np.where(turned[row - row.min(), col - col.min()], 1 - u, u)
    distance = np.minimum(np.abs(np.hypot(u, v) - 0.5), np.abs(np.hypot(1 - u, 1 - v) - 0.5))
    ground, ribbon, core = (_rgb(c) for c in TRUCHET[rng.integers(len(TRUCHET))])
    image = np.where((distance < 0.19)[..., None], ribbon, ground)
    image = np.where((distance < 0.07)[..., None], core, image)
    return _shrink(image)


def stained_glass(size: int, rng: Rng) -> Picture:
    """Voronoi panes between dark lead lines, each pane a little brighter towards its middle."""
    y, x = _grid(size, rng)
    cell = rng.uniform(13, 20)
    rows = np.arange(np.floor(y.min() / cell) - 1, np.floor(y.max() / cell) + 2)
    cols = np.arange(np.floor(x.min() / cell) - 1, np.floor(x.max() / cell) + 2)
    sites = np.stack(np.meshgrid(rows, cols, indexing="ij"), -1).reshape(-1, 2)
    sites = (sites + rng.uniform(0.1, 0.9, sites.shape)) * cell
    d = np.hypot(y[..., None] - sites[:, 0], x[..., None] - sites[:, 1])
    order = np.argpartition(d, 1, axis=-1)[..., :2]
    near, next_ = np.moveaxis(np.take_along_axis(d, order, -1), -1, 0)
    palette = np.stack([_rgb(c) for c in GLASS[rng.integers(len(GLASS))]])
    panes = palette[rng.integers(len(palette), size=len(sites))] * rng.uniform(0.85, 1.1, (len(sites), 1))
    glow = 1.12 - 0.35 * np.clip(near / cell, 0, 1)
    image = panes[order[..., 0]] * glow[..., None]
    return _shrink(np.where((next_ - near < 2.4)[..., None], _rgb("#17141a"), np.clip(image, 0, 255)))


def mondrian(size: int, rng: Rng) -> Picture:
    """Recursive rectangles in white, red, yellow and blue behind thick black bars."""
    n = size * SUPERSAMPLE
    image = Image.new("RGB", (n, n), "#f4f1e8")
    draw = ImageDraw.Draw(image)
    bar = int(rng.uniform(2.0, 3.6) * SUPERSAMPLE)
    # The panel is larger than the picture, so that crops do not all begin with a frame.
    pending = [
        (-n * rng.uniform(0, 0.5), -n * rng.uniform(0, 0.5), n * rng.uniform(1, 1.5), n * rng.uniform(1, 1.5))
    ]
    while pending:
        x0, y0, x1, y1 = pending.pop()
        w, h = x1 - x0, y1 - y0
        if max(w, h) > 0.28 * n and (max(w, h) > 0.55 * n or rng.random() < 0.75):
            at = rng.uniform(0.3, 0.7)
            if w > h:
                pending += [(x0, y0, x0 + at * w, y1), (x0 + at * w, y0, x1, y1)]
            else:
                pending += [(x0, y0, x1, y0 + at * h), (x0, y0 + at * h, x1, y1)]
            continue
        color = MONDRIAN[rng.integers(3)] if rng.random() < 0.42 else "#f4f1e8"
        draw.rectangle((x0, y0, x1, y1), fill=color, outline="#141414", width=bar // 2 + 1)
    return _shrink(np.asarray(image, dtype=np.float64))


def herringbone(size: int, rng: Rng) -> Picture:
    """Wooden planks, three times as long as wide, laid in a 45 degree zigzag."""
    y, x = _grid(size, rng)
    y, x = (y + x) / np.sqrt(2), (y - x) / np.sqrt(2)
    width, ratio = rng.uniform(6.5, 10.5), 3
    v, u = y / width, x / width
    row, col = np.floor(v).astype(int), np.floor(u).astype(int)
    # Along a diagonal, `ratio` cells belong to a lying plank and `ratio` to a standing one.
    phase = (col - row) % (2 * ratio)
    lying = phase < ratio
    start_col = np.where(lying, col - phase, col)
    start_row = np.where(lying, row, row - (2 * ratio - 1 - phase))
    along = np.where(lying, u - start_col, v - start_row)
    across = np.where(lying, v - row, u - col)
    gap = np.minimum(np.minimum(along, ratio - along), np.minimum(across, 1 - across)) * width
    palette = np.stack([_rgb(c) for c in WOOD[rng.integers(len(WOOD))]])
    key = (start_col * 7919 + start_row * 104729 + lying * 31 + int(rng.integers(1 << 16))) % 7919
    planks = palette[rng.integers(len(palette), size=7919)]
    grain = 1 + 0.06 * np.sin(across * 17 + key) * np.cos(along * 1.3 + key)
    return _shrink(
        np.clip(np.where((gap < 0.7)[..., None], _rgb("#2b2019"), planks[key] * grain[..., None]), 0, 255)
    )


def waves(size: int, rng: Rng) -> Picture:
    """Seigaiha: rows of overlapping discs of concentric rings, as on Japanese cloth."""
    n = size * SUPERSAMPLE
    light, dark = WAVES[rng.integers(len(WAVES))]
    image = Image.new("RGB", (n, n), light)
    draw = ImageDraw.Draw(image)
    radius = rng.uniform(11, 18) * SUPERSAMPLE
    ox, oy = rng.uniform(0, 2 * radius, 2)
    rings = (
        (1.0, dark),
        (0.9, light),
        (0.74, dark),
        (0.62, light),
        (0.46, dark),
        (0.32, light),
        (0.18, dark),
    )
    for row in range(-4, int(2 * n / radius) + 6):
        cy = row * radius / 2 + oy - 2 * radius
        shift = radius * (row % 2)
        for col in range(-2, int(n / (2 * radius)) + 3):
            cx = col * 2 * radius + shift + ox - radius
            for fraction, color in rings:
                r = fraction * radius
                draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=color)
    return _shrink(np.asarray(image, dtype=np.float64))


def terrazzo(size: int, rng: Rng) -> Picture:
    """Angular chips of coloured stone scattered on a pale floor."""
    n = size * SUPERSAMPLE
    ground, *chips = TERRAZZO[rng.integers(len(TERRAZZO))]
    image = Image.new("RGB", (n, n), ground)
    draw = ImageDraw.Draw(image)
    cell = rng.uniform(9, 14) * SUPERSAMPLE
    for cy in np.arange(-cell, n + cell, cell):
        for cx in np.arange(-cell, n + cell, cell):
            centre = np.array([cx, cy]) + rng.uniform(0, cell, 2)
            corners = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(4, 7)))
            reach = rng.uniform(0.3, 0.8) * cell * rng.uniform(0.7, 1.0, len(corners))
            points = centre + reach[:, None] * np.stack([np.cos(corners), np.sin(corners)], 1)
            draw.polygon([tuple(p) for p in points], fill=chips[rng.integers(len(chips))])
    return _shrink(np.asarray(image, dtype=np.float64))


PATTERNS: dict[str, Callable[[int, Rng], Picture]] = {
    "herringbone": herringbone,
    "mondrian": mondrian,
    "stained_glass": stained_glass,
    "terrazzo": terrazzo,
    "truchet": truchet,
    "waves": waves,
}
