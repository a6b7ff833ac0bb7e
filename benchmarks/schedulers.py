"""step() of fastdiff.diffusers' schedulers against diffusers' own, as a pipeline calls it: microseconds a step.

    python benchmarks/schedulers.py [--only CLASS ...] [--shapes 2,4,64,64 ...] [--seconds 1] [--out FILE.json]

Each runs whole loops of 20 steps over stored model outputs with return_dict=False, the two in turn; set_timesteps is
not timed. Nothing is timed before both gave the same picture from generators of the same seed. Betas, clipping and
the like are Stable Diffusion's where a class has them, else the class's own defaults.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

import fastdiff.diffusers
from fastdiff import native
from results import RESULTS, save
from shapes import Shape
from timing import Case, Result, Timed, difference, draw, timed

SHAPES: tuple[Shape, ...] = ((2, 4, 64, 64), (1, 16, 128, 128), (1, 3, 512, 512))
DTYPES = (torch.float32, torch.bfloat16)
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 1e-1}
"""How far the pictures may be apart after the loop; diffusers rounds a bfloat16 sample at every step, we once."""
STEPS = 20
STORED = 4
"""Model outputs that take turns: more would be colder in the caches than what a model has just written."""

USUAL = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
"""Stable Diffusion's choices."""


@dataclass(frozen=True)
class Setting:
    """A class, its options beyond the usual, and how its set_timesteps is called."""

    name: str
    label: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    timesteps: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name.removesuffix("Scheduler") + (f" {self.label}" if self.label else "")

    def make(self, module: Any) -> Any:
        kind = getattr(module, self.name)
        known = inspect.signature(kind.__init__).parameters
        return kind(**{**{k: v for k, v in USUAL.items() if k in known}, **self.options})


PARTICULAR: Mapping[str, Mapping[str, Any]] = {
    "DPMSolverSDEScheduler": {"options": {"noise_sampler_seed": 0}},
    "HeliosScheduler": {
        "options": {
            "stages": 1,
            "stage_range": [0, 1],
            "prediction_type": "flow_prediction",
            "thresholding": False,
        }
    },
    "HeliosDMDScheduler": {
        "options": {"stages": 1, "stage_range": [0, 1], "prediction_type": "flow_prediction"}
    },
    "RePaintScheduler": {"timesteps": {"jump_length": STEPS, "jump_n_sample": 1}},
    "SCMScheduler": {"timesteps": {"intermediate_timesteps": None}},
    "UnCLIPScheduler": {"options": {"beta_schedule": "squaredcos_cap_v2"}},
}
VARIANTS = (
    Setting("DDIMScheduler", "clipped", {"clip_sample": True}),
    Setting("DPMSolverMultistepScheduler", "SDE", {"algorithm_type": "sde-dpmsolver++"}),
    Setting("DPMSolverMultistepScheduler", "Karras", {"use_karras_sigmas": True}),
)
LEFT_OUT = ("PiflowScheduler", "HeliosDMDScheduler")
"""Whose step() takes what only their own models give."""


def settings() -> Iterator[Setting]:
    """Every class once, and variants of some."""
    for name in fastdiff.diffusers.CLASSES:
        if name not in LEFT_OUT:
            yield Setting(name, **PARTICULAR.get(name, {}))
            yield from (variant for variant in VARIANTS if variant.name == name)


class Loop:
    """One scheduler walking its steps over outputs that are always the same."""

    def __init__(self, scheduler: Any, setting: Setting, shape: Shape, dtype: torch.dtype) -> None:
        self.scheduler, self.setting = scheduler, setting
        self.outputs = [draw(shape, dtype, seed=1 + i) * 0.5 for i in range(STORED)]
        self.generator = torch.Generator()
        self.prepare()
        self.start = (draw(shape) * float(getattr(scheduler, "init_noise_sigma", 1.0))).to(dtype)
        self.options: dict[str, Any] = {"return_dict": False}
        if "generator" in inspect.signature(scheduler.step).parameters:
            self.options["generator"] = self.generator

    def prepare(self) -> None:
        """step() keeps counters, which set_timesteps resets."""
        self.scheduler.set_timesteps(STEPS, **self.setting.timesteps)
        self.times = list(self.scheduler.timesteps)

    @torch.no_grad()
    def run(self) -> Tensor:
        x, step, options = self.start, self.scheduler.step, self.options
        outputs = itertools.cycle(self.outputs)
        for t in self.times:
            x = step(next(outputs), t, x, **options)[0]
        return x

    def picture(self) -> Tensor:
        """The result from a fixed seed."""
        self.generator.manual_seed(0)
        self.prepare()
        return self.run()


class Remembering(Loop):
    """CogVideoXDPM: the caller hands back the last denoised image and timestep."""

    @torch.no_grad()
    def run(self) -> Tensor:
        x, old, back = self.start, None, None
        for output, t in zip(itertools.cycle(self.outputs), self.times):
            x, old = self.scheduler.step(output, old, t, back, x, **self.options)
            back = t
        return x


class ButLast(Loop):
    """SCM: the last timestep ends the loop."""

    def prepare(self) -> None:
        super().prepare()
        self.times = self.times[:-1]


class PerImage(ButLast):
    """DDPMWuerstchen: a timestep for each image, the last of which ends the loop."""

    def prepare(self) -> None:
        super().prepare()
        self.times = [t.reshape(1) for t in self.times]


class Repainting(Loop):
    """RePaint: an image and a mask beside the output."""

    def __init__(self, scheduler: Any, setting: Setting, shape: Shape, dtype: torch.dtype) -> None:
        super().__init__(scheduler, setting, shape, dtype)
        self.options |= {"original_image": draw(shape, dtype, seed=9), "mask": (draw(shape) > 0).to(dtype)}


LOOPS: Mapping[str, type[Loop]] = {
    "CogVideoXDPMScheduler": Remembering,
    "DDPMWuerstchenScheduler": PerImage,
    "RePaintScheduler": Repainting,
    "SCMScheduler": ButLast,
}


def case(setting: Setting, shape: Shape, dtype: torch.dtype) -> Case:
    """Ours and theirs, once they agree."""
    make = partial(LOOPS.get(setting.name, Loop), setting=setting, shape=shape, dtype=dtype)
    ours, theirs = (make(setting.make(module)) for module in (fastdiff.diffusers, diffusers))
    error = difference(ours.picture(), theirs.picture())
    functions = {
        label: Timed(loop.run, loop.prepare, len(loop.times))
        for label, loop in (("fastdiff", ours), ("diffusers", theirs))
    }
    name = f"{setting} {shape} {str(dtype).removeprefix('torch.')}"
    name += f" (diffusers' own step: {ours.scheduler.fallback})" if ours.scheduler.fallback else ""
    return Case(name, functions, "fastdiff", error, ALLOWED[dtype])


def line(result: Result) -> str:
    ours, theirs = (result.spreads[name].p20 for name in ("fastdiff", "diffusers"))
    return f"{result.name:<62}{theirs:10.1f}{ours:10.1f}{theirs / ours:8.1f}x   {result.error:.0e}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="CLASS", help="all by default")
    parser.add_argument("--shapes", nargs="+", type=_shape, default=SHAPES, metavar="B,C,H,W")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each comparison")
    parser.add_argument("--out", type=Path, default=RESULTS / "schedulers.json")
    return parser.parse_args()


def _shape(text: str) -> Shape:
    return tuple(int(size) for size in text.split(","))


def main() -> None:
    options = parse()
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    # As after a model's run: until something large was freed, glibc gives freed memory back to the system each time.
    torch.zeros(7 << 20)
    print(f"{'microseconds a step at p20':<62}{'diffusers':>10}{'fastdiff':>10}{'ratio':>9}   apart")
    results: list[Result] = []
    for shape, dtype, setting in itertools.product(options.shapes, DTYPES, settings()):
        if options.only and setting.name not in options.only:
            continue
        try:
            results.append(timed(case(setting, shape, dtype), seconds=options.seconds))
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            print(f"{setting} {shape} {dtype}: not timed: {error}", flush=True)
            continue
        print(line(results[-1]), flush=True)
        save(results, options.out, {"isa": native.isa()})


if __name__ == "__main__":
    main()
