"""Sounds on disk: float tensors to WAV and back, safe reading, recipes in the file, spectrograms to look at.

A sound is a tensor [C, L] in [-1, 1]; a file holds 16-bit PCM at `rate` samples a second.
"""

from __future__ import annotations

import io
import json
import os
import struct
import wave
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.files import write_atomic

MAX_BYTES = 2**28
MAX_CHANNELS, MAX_RATE = 64, 384_000
RECIPE_CHUNK = b"ICMT"  # the comment in RIFF's INFO list


def write_wav(
    path: str | os.PathLike[str],
    sound: Tensor,
    *,
    rate: int,
    recipe: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write float [C, L] in [-1, 1] as 16-bit PCM that appears whole or not at all; see `as_wav`."""
    data = as_wav(sound, rate=rate, recipe=recipe)
    write_atomic(path, lambda file: file.write(data), overwrite=overwrite)


def as_wav(sound: Tensor, *, rate: int, recipe: dict[str, Any] | None = None) -> bytes:
    """The bytes of a WAV file of float [C, L] in [-1, 1]; `recipe` goes into a comment.

    Raises ValueError for another shape and for NaN or infinity. Values outside the range are clipped.
    """
    if sound.ndim != 2 or not 1 <= sound.shape[0] <= MAX_CHANNELS or not sound.shape[1]:
        raise ValueError(f"got a sound of shape {list(sound.shape)}; [channels, samples] is needed")
    values = sound.detach().to("cpu", torch.float32)
    if not bool(values.isfinite().all()):
        raise ValueError(
            "the sound holds NaN or infinity: try more steps, a lower guidance or another sampler"
        )
    pcm = (values.clamp(-1, 1) * 32767).round().to(torch.int16)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(pcm.shape[0])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.T.contiguous().numpy().astype("<i2").tobytes())
    return buffer.getvalue() if recipe is None else _with_recipe(buffer.getvalue(), recipe)


def read_wav(path: str | os.PathLike[str]) -> tuple[Tensor, int]:
    """A WAV file of 8-, 16-, 24- or 32-bit integer PCM -> (float32 [C, L] in [-1, 1], samples a second).

    Raises OSError if the file cannot be opened and ValueError, in one line, if it is not such a file.
    """
    with open(path, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        if size > MAX_BYTES:
            raise ValueError(
                f"{path}: {size / 2**20:.0f} MiB is more than the {MAX_BYTES // 2**20} that are read"
            )
        try:
            with wave.open(opened, "rb") as file:
                channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
                frames = file.readframes(min(file.getnframes(), size))
        except (wave.Error, EOFError, struct.error, ValueError) as error:
            raise ValueError(
                f"{path}: no readable WAV file of integer PCM ({error or 'it ends early'})"
            ) from None
    if not 1 <= channels <= MAX_CHANNELS or not 1 <= rate <= MAX_RATE or width not in (1, 2, 3, 4):
        raise ValueError(f"{path}: {channels} channels of {8 * width} bits at {rate} Hz cannot be read")
    whole = len(frames) // (channels * width) * channels * width
    if not whole:
        raise ValueError(f"{path}: holds no sound, or is cut short")
    return torch.from_numpy(_decoded(frames[:whole], width).reshape(-1, channels).T.copy()), rate


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The recipe that `write_wav` stored. Raises ValueError if the file carries none."""
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES)
    at = data.rfind(b"INFO" + RECIPE_CHUNK)
    try:
        (size,) = struct.unpack_from("<I", data, at + 8) if at >= 0 else (0,)
        recipe = json.loads(data[at + 12 : at + 12 + size].rstrip(b"\0").decode())
    except (ValueError, RecursionError, struct.error):
        recipe = None
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: carries no fastdiff recipe; sounds written by `fastdiff generate` do")
    return recipe


def resampled(sound: Tensor, before: int, after: int) -> Tensor:
    """float [C, L] at `before` samples a second -> the same sound at `after`, by cutting or padding its spectrum."""
    length = sound.shape[1]
    wanted = max(1, round(length * after / before))
    if wanted > MAX_BYTES:
        raise ValueError(
            f"{length} samples at {before} Hz are {wanted} at {after} Hz: too many, shorten the sound"
        )
    if wanted == length:
        return sound
    spectrum = torch.fft.rfft(sound)
    kept = min(length, wanted) // 2 + 1
    padded = spectrum.new_zeros(sound.shape[0], wanted // 2 + 1)
    padded[:, :kept] = spectrum[:, :kept]
    if min(length, wanted) % 2 == 0:  # the bin at half the lower rate stands for both signs of its frequency
        padded[:, kept - 1] *= 0.5 if wanted > length else 2.0
    return torch.fft.irfft(padded, n=wanted) * (wanted / length)


def spectrograms(sounds: Tensor, *, height: int = 64, width: int = 96) -> Tensor:
    """float [B, C, L] -> float32 pictures [B, 3, height, width] in [-1, 1]: time to the right, pitch upwards, loudness
    over 60 dB as brightness, frequencies linear from 0 to half the sampling rate."""
    mono = sounds.detach().to("cpu", torch.float32).mean(1)
    points = 2 * height
    hop = max(1, mono.shape[1] // width)
    spectra = torch.stft(
        mono,
        points,
        hop,
        window=torch.hann_window(points),
        center=True,
        pad_mode="constant",
        return_complex=True,
    ).abs()
    decibels = 20 * torch.log10(spectra[:, 1:].flip(1) / (points / 4) + 1e-8)
    bright = (decibels.clamp(-60, 0) / 60 + 1) * 2 - 1
    pictures = torch.nn.functional.interpolate(bright[:, None], (height, width), mode="nearest")
    return pictures.expand(-1, 3, -1, -1)


def _decoded(frames: bytes, width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Little-endian integers of `width` bytes -> values in [-1, 1]; those of a single byte are unsigned."""
    if width == 1:
        return (np.frombuffer(frames, np.uint8).astype(np.float32) - 128) / np.float32(128)
    if width == 3:
        raw = np.frombuffer(frames, np.uint8).reshape(-1, 3)
        frames, width = np.concatenate([np.zeros((len(raw), 1), np.uint8), raw], axis=1).tobytes(), 4
    whole = np.frombuffer(frames, {2: "<i2", 4: "<i4"}[width])
    return whole.astype(np.float32) / np.float32(2.0 ** (8 * width - 1))


def _with_recipe(riff: bytes, recipe: dict[str, Any]) -> bytes:
    """A RIFF file with a LIST chunk of the kind INFO behind its data."""
    text = json.dumps(recipe, sort_keys=True, allow_nan=False).encode() + b"\0"
    padded = text + b"\0" * (len(text) % 2)
    info = b"INFO" + RECIPE_CHUNK + struct.pack("<I", len(text)) + padded
    data = riff + b"\0" * (len(riff) % 2) + b"LIST" + struct.pack("<I", len(info)) + info
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
