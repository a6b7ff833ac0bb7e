"""Guidance combined in the step against PyTorch's combine and the same fused step, interleaved.

OMP_NUM_THREADS=1 python benchmarks/guidance.py
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import diffusers
import torch

from fastdiff import lazy_guidance
from fastdiff.diffusers import CLASSES

SHAPES = (
    (1, 4, 64, 64),
    (2, 4, 64, 64),
    (1, 4, 128, 128),
    (2, 4, 128, 128),
    (1, 16, 128, 128),
    (1, 16, 21, 60, 104),
)
KINDS = ("EulerDiscrete", "DPMSolverMultistep", "DDIM", "EulerAncestralDiscrete", "FlowMatchEulerDiscrete")
STEPS, SCALE = 20, 7.5


def loop(scheduler: Any, shape: tuple[int, ...], noted: bool) -> list[float]:
    """Seconds from each model output to the next sample."""
    scheduler.set_timesteps(STEPS)
    x, taken = torch.randn(shape), []
    for at in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, at)
        output = torch.randn(2 * shape[0], *shape[1:])
        lazy_guidance.expect(noted)
        begin = time.perf_counter()
        uncond, cond = lazy_guidance.handed(output).chunk(2)
        guided = uncond + SCALE * (cond - uncond)
        x = scheduler.step(guided, at, x, return_dict=False)[0]
        taken.append(time.perf_counter() - begin)
        assert (type(guided) is lazy_guidance.Guided) == noted
    return taken


def p20(seconds: list[float]) -> float:
    """In microseconds."""
    return sorted(seconds)[len(seconds) // 5] * 1e6


def main() -> None:
    """Prints a line for each shape and scheduler."""
    warnings.simplefilter("ignore")
    diffusers.logging.set_verbosity_error()
    lazy_guidance.LEAST["cpu"] = 1
    torch.set_grad_enabled(False)
    for shape in SHAPES:
        for kind in KINDS:
            scheduler = CLASSES[f"{kind}Scheduler"]()
            apart: list[float] = []
            joined: list[float] = []
            for _ in range(2 if len(shape) > 4 else 30):
                apart += loop(scheduler, shape, False)
                joined += loop(scheduler, shape, True)
            before, after = p20(apart), p20(joined)
            print(
                f"{shape!s:<22} {kind:<24} {before:8.1f} us {after:8.1f} us {before / after:5.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
