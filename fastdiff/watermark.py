"""An invisible mark of 64 bits in a picture: 40 that name a recipe, 24 that check them. It outlives a JPEG re-save.

Quantisation index modulation with dither, on projections of mid frequencies (Chen and Wornell, IEEE Trans. Inf. Theory
47(4), 2001: dither modulation and its spread-transform form). The luma of each 8x8 block is projected on four fixed
patterns, each a signed sum of five DCT frequencies. Each projection is moved to the nearest point of a lattice of width
`step`, shifted by half a step where the slot's bit is 1. The 256 slots of 8x8 blocks repeat every 64 pixels: 140 carry
the bits in a convolutional code of rate 1/2 (constraint length 7, generators 171 and 133 octal), read by the Viterbi
algorithm with soft values; 116 are known in advance and say where the mark lies, so that it is found in a crop.

It is a label, not a lock: patterns are public, and whoever wants to remove it can. It does not outlive resizing.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bits = npt.NDArray[np.int64]
Picture = npt.NDArray[np.uint8]

BLOCK, TILE, PATTERNS = 8, 8, 4
SIDE = BLOCK * TILE
"""Pixels after which the mark repeats, and the least side of a picture that can carry one."""
PAYLOAD, CHECK = 40, 24
DATA = PAYLOAD + CHECK
MEMORY, GENERATORS = 6, (0o171, 0o133)
CODED = 2 * (DATA + MEMORY)
SLOTS = TILE * TILE * PATTERNS
STEPS = ((512, 24.0), (0, 28.0))
"""(least side, step): where a picture repeats the mark often, a fainter one is enough."""
LUMA = np.array([0.299, 0.587, 0.114])
ROUNDS = 5
CANDIDATES = 8
LIKELY, CERTAIN = 4.0, 6.5
"""Standard deviations of the known slots' agreement, among chance alone: where it pays to read, and where there is a
mark whether it can be read or not (below 1e-6 over all places of a picture)."""


@dataclass(frozen=True)
class Found:
    """A mark. payload: 40 bits, None if the mark is there but cannot be read. offset: (x, y) of its tile, in pixels.

    agreement: of the known slots, 1 at best, about 0 where there is no mark.
    """

    payload: int | None
    agreement: float
    offset: tuple[int, int]


def embed(picture: Picture, payload: int) -> Picture:
    """uint8 [H, W, 3] with the mark. Raises ValueError for a payload beyond 40 bits or a picture too small."""
    if not 0 <= payload < 1 << PAYLOAD:
        raise ValueError(f"a watermark's payload must be an integer from 0 to 2^{PAYLOAD} - 1, got {payload}")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"a watermark needs uint8 [H, W, 3], got {picture.dtype} {list(picture.shape)}")
    check_size(picture.shape[1], picture.shape[0])
    step = _step_for(picture)
    slots = _slot_bits(payload) * (step / 2) + _layout().dither * step
    rows, columns = picture.shape[0] // BLOCK, picture.shape[1] // BLOCK
    target = np.tile(slots, (-(-rows // TILE), -(-columns // TILE), 1))[:rows, :columns]
    pixels = picture.astype(np.float64)
    marked = picture
    for _ in range(
        ROUNDS
    ):  # clipping at black and white takes part of a change away: what is left is made up for
        there = _projections(marked @ LUMA)
        change = np.round((there - target) / step) * step + target - there
        pixels[: rows * BLOCK, : columns * BLOCK] += _spread(change)[:, :, None]
        pixels = pixels.clip(-8, 263)
        marked = pixels.round().clip(0, 255).astype(np.uint8)
    return marked


def detect(picture: Picture, *, search: bool = True) -> Found | None:
    """The mark in uint8 [H, W, 3], or None. search: look at every place, as in a crop, and not only where it is put."""
    if min(picture.shape[:2]) < SIDE:
        return None
    luma = picture @ LUMA
    best: Found | None = None
    for shifts in ((0,), range(BLOCK)) if search else ((0,),):
        for _, step in STEPS:
            found = _read(luma, step, shifts)
            if found is not None and found.payload is not None:
                return found
            best = found if best is None else best
    return best


def check_size(width: int, height: int) -> None:
    """ValueError for a picture too small to carry a mark."""
    if min(width, height) < SIDE:
        raise ValueError(
            f"a picture of {width}x{height} is too small for a watermark: {SIDE}x{SIDE} is the least; leave it out"
        )


def payload_of(recipe: Mapping[str, Any]) -> int:
    """The 40 bits that stand for a recipe: the first of SHA-256 over its JSON."""
    text = json.dumps(recipe, sort_keys=True, allow_nan=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[: PAYLOAD // 8], "big")


def wanted(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe says that its picture carries a mark."""
    arguments = recipe.get("arguments")
    return isinstance(arguments, Mapping) and arguments.get("watermark") is True


@dataclass(frozen=True)
class _Layout:
    """patterns: float [4, 64], orthonormal, over the pixels of a block. dither: float [8, 8, 4], shares of a step.

    coded: the slots of the coded bits, in order; known: the other slots, and their bits.
    """

    patterns: Floats
    dither: Floats
    coded: Bits
    known: Bits
    known_bits: Bits


@functools.cache
def _layout() -> _Layout:
    random = np.random.Generator(np.random.PCG64(0xFA57D1FF))
    k, n = np.arange(BLOCK)[:, None], np.arange(BLOCK)[None, :]
    cosines = np.cos(math.pi * (2 * n + 1) * k / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    frequencies = sorted(
        ((u, v) for u in range(BLOCK) for v in range(BLOCK)),
        key=lambda uv: (uv[0] + uv[1], uv[0] if (uv[0] + uv[1]) % 2 else uv[1]),
    )[3:23]  # JPEG's zigzag, without the lowest, which are seen, and the highest, which are lost
    waves = np.stack([np.outer(cosines[u], cosines[v]).ravel() for u, v in frequencies])
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    signs = random.integers(0, 2, len(waves)) * 2 - 1
    groups = [signs[i::PATTERNS] @ waves[i::PATTERNS] for i in range(PATTERNS)]
    order = random.permutation(SLOTS)
    return _Layout(
        patterns=np.stack([group / np.linalg.norm(group) for group in groups]),
        dither=random.random((TILE, TILE, PATTERNS)),
        coded=order[:CODED],
        known=order[CODED:],
        known_bits=random.integers(0, 2, SLOTS - CODED),
    )


def _step_for(picture: Picture) -> float:
    return next(step for side, step in STEPS if min(picture.shape[:2]) >= side)


def _projections(luma: Floats) -> Floats:
    """[H, W] -> [rows, columns, 4]: every whole block on every pattern."""
    rows, columns = luma.shape[0] // BLOCK, luma.shape[1] // BLOCK
    whole = luma[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    return whole.transpose(0, 2, 1, 3).reshape(rows, columns, -1) @ _layout().patterns.T


def _spread(change: Floats) -> Floats:
    """[rows, columns, 4] -> [8 rows, 8 columns]: the pixels of a change of projections."""
    rows, columns, _ = change.shape
    blocks = (change @ _layout().patterns).reshape(rows, columns, BLOCK, BLOCK)
    return blocks.transpose(0, 2, 1, 3).reshape(rows * BLOCK, columns * BLOCK)


def _slot_bits(payload: int) -> Floats:
    """[8, 8, 4]: the bit of every slot."""
    layout = _layout()
    bits = np.zeros(SLOTS)
    bits[layout.coded] = _encode(_framed(payload))
    bits[layout.known] = layout.known_bits
    return bits.reshape(TILE, TILE, PATTERNS)


def _read(luma: Floats, step: float, shifts: Iterable[int]) -> Found | None:
    """The mark of this step, its blocks beginning at any of these rows and columns of pixels."""
    shifts = tuple(shifts)
    places = [(y, x) for y in shifts for x in shifts]
    soft = np.concatenate([_soft(luma[y:, x:], step, every=len(shifts) > 1) for y, x in places])
    blocks = (luma.shape[0] // BLOCK) * (luma.shape[1] // BLOCK)
    layout = _layout()
    agreement = (soft[:, layout.known] * (1 - 2 * layout.known_bits)).mean(axis=1)
    best = np.argsort(-agreement)[:CANDIDATES]
    # cosines of uniform phases have variance 1/2; a slot is a mean over the tiles
    deviation = math.sqrt(0.5 / len(layout.known) / max(1.0, blocks / TILE**2))
    each = len(soft) // len(places)
    for index in best:
        y, x = places[index // each]
        row, column = divmod(index % each, TILE)
        offset = (int(x + column * BLOCK) % SIDE, int(y + row * BLOCK) % SIDE)
        if agreement[index] < LIKELY * deviation:
            break
        payload = _unframed(_decode(soft[index][layout.coded]))
        if payload is not None or agreement[index] > CERTAIN * deviation:
            return Found(payload, float(agreement[index]), offset)
    return None


def _soft(luma: Floats, step: float, *, every: bool) -> Floats:
    """[1 or 64, 256]: for each slot, 1 for a sure 0, -1 for a sure 1; for every place of the tile, or the first."""
    turned = np.exp(2j * math.pi / step * _projections(luma))
    rows, columns, _ = turned.shape
    sums = np.zeros((TILE, TILE, PATTERNS), dtype=np.complex128)
    count = np.zeros((TILE, TILE, 1))
    for row in range(min(TILE, rows)):
        for column in range(min(TILE, columns)):
            part = turned[row::TILE, column::TILE]
            sums[row, column] = part.sum(axis=(0, 1))
            count[row, column] = part.shape[0] * part.shape[1]
    mean = (sums / np.maximum(count, 1)).ravel()
    moved = mean[_places()] if every else mean[None]
    return np.asarray((moved * np.exp(-2j * math.pi * _layout().dither).ravel()).real)


@functools.cache
def _places() -> Bits:
    """[64, 256]: for each block where the tile may begin, the slots in its order."""
    slots = np.arange(SLOTS).reshape(TILE, TILE, PATTERNS)
    return np.stack([np.roll(slots, (-r, -c), axis=(0, 1)).ravel() for r in range(TILE) for c in range(TILE)])


# The bits: payload and check, then a convolutional code.


def _framed(payload: int) -> Bits:
    value = payload << CHECK | _crc(payload)
    return np.array([value >> i & 1 for i in reversed(range(DATA))], dtype=np.int64)


def _unframed(bits: Bits) -> int | None:
    value = int("".join(map(str, bits.tolist())), 2)
    payload, check = value >> CHECK, value & (1 << CHECK) - 1
    return payload if check == _crc(payload) else None


def _crc(payload: int) -> int:
    """CRC-24 of OpenPGP (RFC 4880, section 6.1) over the payload's five bytes."""
    crc = 0xB704CE
    for byte in payload.to_bytes(PAYLOAD // 8, "big"):
        crc ^= byte << 16
        for _ in range(8):
            crc = crc << 1 ^ (0x1864CFB if crc & 0x800000 else 0)
    return crc & 0xFFFFFF


def _outputs(window: Bits) -> Bits:
    """int [..., 7 bits as a number] -> [..., 2]: what the encoder sends for its last seven bits."""
    masked = np.stack([window & generator for generator in GENERATORS], axis=-1)
    return sum((masked >> i & 1) for i in range(MEMORY + 1)) % 2  # type: ignore[return-value]


def _encode(bits: Bits) -> Bits:
    window, sent = 0, []
    for bit in (*bits.tolist(), *[0] * MEMORY):
        window = (window >> 1) | bit << MEMORY
        sent.append(_outputs(np.array(window)))
    return np.concatenate(sent)


def _decode(soft: Floats) -> Bits:
    """The most likely bits for soft values [140] (1 for a sure 0, -1 for a sure 1): Viterbi's algorithm."""
    states = 1 << MEMORY
    before = np.arange(states)  # the last six bits, the newest highest
    window = before[:, None] | np.arange(2)[None, :] << MEMORY  # [state before, new bit]
    after = window >> 1
    gain = 1 - 2 * _outputs(window)
    score = np.full(states, -np.inf)
    score[0] = 0.0
    came: list[npt.NDArray[np.int64]] = []
    # every state after is reached from two before, which differ in the bit that falls out
    sources = np.array([np.flatnonzero((after == state).any(axis=1)) for state in range(states)])
    entered = np.arange(states) >> (MEMORY - 1)
    for pair in soft.reshape(-1, 2):
        moves = score[sources] + (gain[sources, entered[:, None]] @ pair)
        chosen = moves.argmax(axis=1)
        came.append(sources[np.arange(states), chosen])
        score = moves.max(axis=1)
    state, bits = 0, []
    for previous in reversed(came):
        bits.append(entered[state])
        state = int(previous[state])
    return np.array(bits[::-1][:DATA], dtype=np.int64)
