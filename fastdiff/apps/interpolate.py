"""Pictures on the way from one to another: between seeds, between prompts, or both.

Starting noise is interpolated on the sphere (Shoemake 1985), which keeps its norm, as a sampler expects; conditioning
is interpolated linearly. All frames take the noise of stochastic steps from the first seed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastdiff.apps.settings import MAX_COUNT, Settings, check_integer, size_of
from fastdiff.apps.source import Source, prompts_of, source_of
from fastdiff.apps.work import Job, Made, Work
from fastdiff.noise import MAX_SEED, SeededNoise
from fastdiff.uniform_noise import UniformNoise


def prepare(
    prompts: str | Sequence[str],
    *,
    seeds: Sequence[int],
    frames: int = 16,
    size: int | Sequence[int] | None = None,
    tile: bool = False,
    model: object = None,
    device: str | None = None,
    **settings: Any,
) -> Job:
    """A job of `frames` pictures that pass through the given prompts and seeds, evenly in between.

    prompts, seeds: two or more stations, or one that stays the same; where both have several, as many of each.
    The rest as for `fastdiff.apps.generate.prepare`. Raises ValueError, TypeError or OSError in one line.
    """
    started = time.perf_counter()
    source = source_of(model, device=device)
    names = prompts_of(prompts, source)
    stations = _stations(names, seeds)
    check_integer("frames", frames, 2, MAX_COUNT)
    how = Settings(**settings, seed=seeds[0])
    width_height = size_of(size, source)
    plan = how.plan(source, width_height)
    source = source.tiled() if tile else source
    places = [i * (stations - 1) / (frames - 1) for i in range(frames)]
    uniform = getattr(source, "noise", "gaussian") == "uniform"  # a model trained on it
    noise = (UniformNoise if uniform else SeededNoise)(seeds).start(
        torch.empty(source.shape(len(seeds), *width_height))
    )

    def extra(images: slice) -> Mapping[str, Any]:
        x = torch.stack([between(noise, place) for place in places[images]])
        nothing = [how.negative] * len(x)
        return {
            "x": (x * plan.levels[0].sigma).to(source.device),
            "conditioning": _conditioning(source, names, places[images]),
            "unconditional": source.mixed(nothing, nothing, [0.0] * len(x)),
        }

    work = Work(
        source=source, plan=plan, prompts=tuple(_at(names, place)[0] for place in places),
        seeds=(seeds[0],) * frames, size=width_height, scale=how.scale(source),
        batch=how.batch_of(source, width_height), negative=how.negative, extra=extra,
    )  # fmt: skip
    arguments = {
        "prompts": list(names), "seeds": list(seeds), "frames": frames, "size": list(width_height), "tile": tile,
        **how.as_dict(source, width_height),
    }  # fmt: skip
    del arguments["seed"]
    loading = time.perf_counter() - started
    return Frames(work, "interpolate", arguments, loading=loading)


class Frames(Job):
    """A job whose pictures are frames: alone, each is told by its number."""

    def run(self, **watched: Any) -> Made:
        """See `fastdiff.apps.work.Job.run`."""
        made = super().run(**watched)
        return replace(made, alone=tuple({"frame": i} for i in range(len(made.prompts))))


def between(stations: Tensor, place: float) -> Tensor:
    """The point at `place` on the way through the stations [K, ...], 0 to K - 1, along great circles."""
    first = min(int(place), len(stations) - 1)
    share = place - first
    if not share or len(stations) == 1:
        return stations[first]
    a, b = stations[first], stations[first + 1]
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if angle < 1e-3:  # the same noise twice
        return torch.lerp(a, b, share)
    return (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)


def _conditioning(source: Source, names: Sequence[str | None], places: Sequence[float]) -> dict[str, Any]:
    ways = [_at(names, place) for place in places]
    return source.mixed([a for a, _, _ in ways], [b for _, b, _ in ways], [share for _, _, share in ways])


def _at(names: Sequence[str | None], place: float) -> tuple[str | None, str | None, float]:
    """The prompts before and after a place, and how far it lies between them."""
    first = min(int(place), len(names) - 1)
    second = min(first + 1, len(names) - 1)
    return names[first], names[second], place - first if second > first else 0.0


def _stations(names: Sequence[str | None], seeds: Sequence[int]) -> int:
    for seed in seeds:
        check_integer("seed", seed, 0, MAX_SEED)
    lengths = {len(names), len(seeds)} - {1}
    if len(lengths) != 1 or not len(seeds):
        raise ValueError(
            f"got {len(names)} prompts and {len(seeds)} seeds to go between: give two or more of one and one of the "
            "other, or as many of both"
        )
    return lengths.pop()
