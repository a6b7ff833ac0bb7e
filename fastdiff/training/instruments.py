"""Four synthetic instruments, short notes of which make a data set: bell, flute, pluck, reed.

Each is a function of (length in samples, rate, pitch in Hz, a generator) -> float64 [length], peak about 0.9.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastdiff.sounds import as_wav

Wave = npt.NDArray[Any]
Instrument = Callable[[int, int, float, np.random.Generator], Wave]

LOWEST, SEMITONES = 220.0, 12
"""Notes are drawn from the semitones of the octave above the A below middle C."""

PARTIALS = (1.0, 2.0, 2.4, 3.0, 4.2, 5.43)
"""Of a bell, to its strike note: hum left out, a minor third among them (Fletcher and Rossing 1998, chapter 21)."""


def bell(length: int, rate: int, pitch: float, rng: np.random.Generator) -> Wave:
    """Inharmonic partials; the higher, the sooner they die away."""
    t = np.arange(length) / rate
    wave = np.zeros(length)
    for ratio in PARTIALS:
        if ratio * pitch < 0.45 * rate:
            decay = rng.uniform(4, 7) * ratio
            wave += (
                ratio**-0.7 * np.exp(-decay * t) * np.sin(2 * np.pi * ratio * pitch * t + rng.uniform(0, 0.3))
            )
    return _finished(wave, rate, attack=0.002)


def flute(length: int, rate: int, pitch: float, rng: np.random.Generator) -> Wave:
    """Almost a sine, with vibrato and breath."""
    t = np.arange(length) / rate
    bend = rng.uniform(0.002, 0.006) * np.sin(2 * np.pi * rng.uniform(4.5, 6) * t + rng.uniform(0, 6.28))
    phase = 2 * np.pi * pitch * np.cumsum(1 + bend) / rate
    wave = np.sin(phase) + 0.25 * np.sin(2 * phase) + 0.06 * np.sin(3 * phase)
    breath = np.convolve(rng.standard_normal(length), np.ones(4) / 4, mode="same")
    return _finished(
        wave + rng.uniform(0.02, 0.06) * breath, rate, attack=rng.uniform(0.05, 0.09), release=0.08
    )


def pluck(length: int, rate: int, pitch: float, rng: np.random.Generator) -> Wave:
    """A plucked string: harmonics without those that rest where it is plucked; the higher, the sooner they die away."""
    t = np.arange(length) / rate
    wave = np.zeros(length)
    place = rng.uniform(0.15, 0.35)  # where the string is plucked
    for n in range(1, int(0.45 * rate / pitch) + 1):
        strength = np.sin(np.pi * n * place) / n**1.2
        decay = 2.5 + 0.9 * n
        wave += strength * np.exp(-decay * t) * np.sin(2 * np.pi * n * pitch * t + rng.uniform(0, 0.2))
    return _finished(wave, rate, attack=0.001)


def reed(length: int, rate: int, pitch: float, rng: np.random.Generator) -> Wave:
    """A steady tone of odd harmonics, as of a closed pipe."""
    phase = 2 * np.pi * pitch * np.arange(length) / rate
    dull = rng.uniform(0.8, 1.1)
    wave = sum(np.sin(n * phase) / n**dull for n in range(1, int(0.45 * rate / pitch) + 1, 2))
    return _finished(np.asarray(wave), rate, attack=rng.uniform(0.015, 0.03), release=0.05)


INSTRUMENTS: dict[str, Instrument] = {"bell": bell, "flute": flute, "pluck": pluck, "reed": reed}


def note(name: str, *, length: int, rate: int, rng: np.random.Generator) -> tuple[Wave, float]:
    """(a note of an instrument at a random pitch and loudness, that pitch in Hz)."""
    pitch = LOWEST * 2 ** (rng.integers(0, SEMITONES + 1) / 12)
    return INSTRUMENTS[name](length, rate, pitch, rng) * rng.uniform(0.7, 1.0), pitch


def write_notes(
    out: Path, *, count: int, length: int = 4096, rate: int = 8000, seed: int = 0,
    on_class: Callable[[], object] = lambda: None,
) -> None:  # fmt: skip
    """Write OUT/INSTRUMENT/*.wav, `count` notes each; on_class is called after each instrument.

    FileExistsError if `out` is there already.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists: choose a new folder, or delete it first")
    for index, name in enumerate(INSTRUMENTS):
        (out / name).mkdir(parents=True)
        rng = np.random.default_rng([seed, index])
        for i in range(count):
            wave, _ = note(name, length=length, rate=rate, rng=rng)
            data = as_wav(torch.from_numpy(wave).float()[None], rate=rate)
            (out / name / f"{i:05d}.wav").write_bytes(data)
        on_class()


def _finished(wave: Wave, rate: int, *, attack: float, release: float = 0.02) -> Wave:
    """Faded in and out, in seconds, and scaled to a peak of 0.9."""
    length = len(wave)
    rise = np.clip(np.arange(length) / max(1.0, attack * rate), 0, 1)
    fall = np.clip(np.arange(length, 0, -1) / max(1.0, release * rate), 0, 1)
    shaped = wave * rise * fall
    return shaped * (0.9 / max(float(np.abs(shaped).max()), 1e-9))
