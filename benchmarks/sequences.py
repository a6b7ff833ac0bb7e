"""Sounds and clips, measured: do the models of docs/audio-video.md make what their labels say?

    python benchmarks/sequences.py sounds --model instruments/model.safetensors
    python benchmarks/sequences.py clips --model moving/model.safetensors

Sounds: a logistic regression on band energies over time, fitted to one set of synthetic notes, names others and the
generated ones; pitch is the best of the autocorrelation. Clips: the shift between neighbouring frames is the peak of
their circular cross-correlation. Both are measured on real examples that no training has seen as well. A picture of
what was made goes to docs/images.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastdiff import models
from fastdiff.apps.timed import generate
from fastdiff.clips import strip
from fastdiff.images import grid, to_pictures, write_png
from fastdiff.sounds import spectrograms
from fastdiff.training.instruments import INSTRUMENTS, LOWEST, note
from fastdiff.training.moving import MOTIONS, clip

ROOT = Path(__file__).resolve().parents[1]
Array = np.ndarray[Any, Any]


def bands(sounds: Array) -> Array:
    """[N, L] -> [N, 96], log energies of 24 bands in four quarters of the time, loudness taken out."""
    spectra = np.abs(np.fft.rfft(sounds.reshape(len(sounds), 4, -1) * np.hanning(sounds.shape[1] // 4)))
    edges = np.linspace(0, spectra.shape[2], 25).astype(int)
    energy = np.stack([(spectra[..., a:b] ** 2).sum(-1) for a, b in pairwise(edges)], axis=-1)
    shares = energy / energy.sum((1, 2), keepdims=True)
    return np.asarray(10 * np.log10(shares + 1e-5)).reshape(len(sounds), -1)


def pitches(sounds: Array, rate: int) -> tuple[Array, Array]:
    """(pitch in Hz, height of the autocorrelation's peak, 1 for a periodic sound) of each of [N, L]."""
    spectra = np.fft.rfft(sounds, n=2 * sounds.shape[1])
    correlation = np.fft.irfft(np.abs(spectra) ** 2)[:, : sounds.shape[1]]
    correlation /= correlation[:, :1]
    low, high = int(rate / (2.1 * LOWEST)), int(rate / (0.95 * LOWEST)) + 1
    best = low + correlation[:, low:high].argmax(1)
    rows = np.arange(len(sounds))
    before, at, after = (correlation[rows, best + i] for i in (-1, 0, 1))
    shift = (
        0.5 * (before - after) / np.minimum(before - 2 * at + after, -1e-9)
    )  # of the parabola through three points
    return rate / (best + np.clip(shift, -0.5, 0.5)), at


def about_sounds(sounds: Array, names: list[str], known: Any, rate: int) -> dict[str, Any]:
    """What is told of [N, L] sounds."""
    said = known.predict(bands(sounds))
    pitch, height = pitches(sounds, rate)
    steps = 12 * np.log2(pitch / LOWEST)
    tonal = {
        name: {
            "named right": round(float(np.mean(said[np.array(names) == name] == name)), 2),
            "autocorrelation": round(float(np.median(height[np.array(names) == name])), 2),
        }
        for name in sorted(set(names))
    }
    return {
        "named right": round(float(np.mean(said == names)), 3),
        "cents from a semitone, median": round(float(np.median(np.abs(steps - steps.round())) * 100), 1),
        "classes": tonal,
    }


def sounds(net: models.TrainedUNet, count: int, steps: int) -> tuple[dict[str, Any], Array]:
    """(results, a sheet: real notes above generated ones)."""
    length, rate = net.config.image_size, net.config.rate

    def notes(each: int, seed: int) -> tuple[Array, list[str]]:
        rng = np.random.default_rng(seed)
        pairs = [
            (note(name, length=length, rate=rate, rng=rng)[0], name)
            for name in INSTRUMENTS
            for _ in range(each)
        ]
        return np.stack([wave for wave, _ in pairs]), [name for _, name in pairs]

    known = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(
        bands((real := notes(80, 101))[0]), real[1]
    )
    held, held_names = notes(40, 102)
    made = generate("all", model=net, count=count, steps=steps, seed=0)
    waves = made.images[:, 0].double().numpy()
    results = {
        "real": about_sounds(held, held_names, known, rate),
        "generated": about_sounds(waves, [str(name) for name in made.prompts], known, rate),
    }
    shown = [torch.from_numpy(held[i * 40 : i * 40 + 2]).float()[:, None] for i in range(len(INSTRUMENTS))]
    shown += [made.images[i * count : i * count + 2] for i in range(len(INSTRUMENTS))]
    captions = [name for name in INSTRUMENTS for _ in range(2)] + [
        f"{n}, made" for n in INSTRUMENTS for _ in range(2)
    ]
    return results, grid(to_pictures(spectrograms(torch.cat(shown))), columns=8, captions=captions)


def shifts(clips: Array) -> Array:
    """[N, 3, D, H, W] -> [N, D - 1, 2], (down, right) pixels between neighbouring frames, on a torus."""
    grey = clips.mean(1) - clips.mean((1, 3, 4))[:, :, None, None]
    spectra = np.fft.fft2(grey)
    surface = np.fft.ifft2(spectra[:, 1:] * spectra[:, :-1].conj()).real
    height, width = surface.shape[-2:]
    down, right = np.divmod(surface.reshape(*surface.shape[:2], -1).argmax(-1), width)
    return np.stack(
        [(down + height // 2) % height - height // 2, (right + width // 2) % width - width // 2], axis=-1
    )


def about_clips(clips: Array, names: list[str]) -> dict[str, Any]:
    """What is told of clips: whether each step goes the way of the label, and how even the steps of a clip are."""
    moved = shifts(clips).astype(float)
    ways = np.array([MOTIONS[name] for name in names], dtype=float)
    along = (moved * ways[:, None]).sum(-1)
    across = np.abs(moved - along[..., None] * ways[:, None]).sum(-1)
    return {
        "steps the right way": round(float(np.mean((along > 0) & (across <= 1))), 3),
        "clips wholly right": round(float(np.mean(((along > 0) & (across <= 1)).all(1))), 3),
        "pixels a step, mean": round(float(along.mean()), 2),
        "deviation within a clip, pixels": round(float(along.std(1).mean()), 2),
    }


def clips(net: models.TrainedUNet, count: int, steps: int) -> tuple[dict[str, Any], Array]:
    """(results, a sheet of generated clips, a row each)."""
    frames, side = net.config.frames, net.config.image_size
    rng = np.random.default_rng(102)
    names = [name for name in MOTIONS for _ in range(40)]
    real = np.stack([clip(name, frames=frames, side=side, rng=rng) for name in names]).transpose(
        0, 4, 1, 2, 3
    )
    made = generate("all", model=net, count=count, steps=steps, seed=0)
    results = {
        "real": about_clips(real, names),
        "generated": about_clips(made.images.double().numpy(), [str(name) for name in made.prompts]),
    }
    shown = torch.cat([made.images[i * count : i * count + 2] for i in range(len(MOTIONS))])
    return results, grid(to_pictures(strip(shown)), columns=frames, gap=2)


def main() -> None:
    """Measure one kind and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("sounds", "clips"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--count", type=int, default=16, help="generated of each class")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs" / "images")
    args = parser.parse_args()
    net = models.load(args.model)
    results, sheet = (sounds if args.kind == "sounds" else clips)(net, args.count, args.steps)
    training = {name: net.training_note.get(name) for name in ("steps", "images", "seconds", "torch")}
    results |= {"training": training, "steps": args.steps, "each": args.count}
    (args.out / f"{args.kind}.json").write_text(json.dumps(results, indent=2) + "\n")
    write_png(args.pictures / f"{args.kind}.png", sheet, overwrite=True)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
