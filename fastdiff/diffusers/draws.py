"""Noise as diffusers would draw it: the same draws in the same order, of the same shape and dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastdiff import ops
from fastdiff.diffusers.learned import WIDE
from fastdiff.diffusers.plans import TracedPlan
from fastdiff.diffusers.solving import Line
from fastdiff.diffusers.tracing import IMAGE


@dataclass(frozen=True)
class Dtypes:
    """result: of the sample that step() returns; extra: of its further images; draw: of a draw that is not float32 by
    decree."""

    result: torch.dtype
    extra: torch.dtype
    draw: torch.dtype


_known: WeakKeyDictionary[TracedPlan, dict[tuple[torch.dtype, torch.dtype], Dtypes]] = WeakKeyDictionary()


def dtypes(scheduler: Any, plan: TracedPlan, sample: torch.dtype, output: torch.dtype) -> Dtypes:
    """What diffusers makes of these two dtypes: found by its own step, unless both are float32."""
    if sample == output == torch.float32:
        return Dtypes(sample, sample, sample)
    known = _known.setdefault(plan, {})
    if (sample, output) not in known:
        known[sample, output] = _observed(scheduler, plan, sample, output)
    return known[sample, output]


class _Watch(TorchFunctionMode):
    """Notes the dtype of each draw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.randn:
            self.seen.append(made.dtype)
        return made


def _observed(scheduler: Any, plan: TracedPlan, sample: torch.dtype, output: torch.dtype) -> Dtypes:
    """diffusers' own step on two numbers, until one has drawn noise."""
    plain = scheduler._memory().copy(plan.begin)
    image = torch.zeros(
        1, 2, 1, 1, dtype=sample, device="cpu"
    )  # dynamic thresholding asks for more than two dims
    given = {name: image if value is IMAGE else value for name, value in scheduler.usual.items()}
    if "generator" in scheduler.parameters:
        given["generator"] = torch.Generator().manual_seed(0)  # no draw of the caller's is spent
    if hasattr(plain, "noise_sampler"):
        plain.noise_sampler = lambda *span: torch.zeros_like(image)
    given |= {"model_output": image.to(output).repeat(1, 2 if WIDE in given.values() else 1, 1, 1)}
    made: tuple[Any, ...] = ()
    with _Watch() as watch:
        for time in scheduler._arguments(plain.timesteps)[plan.first :]:
            step = plain.step(sample=image, timestep=time, **given, return_dict=False)
            made = made or step
            if watch.seen or not plan.stochastic:
                break
    result = made[0].dtype
    extra = made[1].dtype if len(made) > 1 and isinstance(made[1], Tensor) else result
    usual = torch.float32
    if hasattr(plain, "noise_sampler"):  # like the sample in one class, like the denoised image in another
        usual = sample if hasattr(plain, "noise_sampler_seed") else result
    return Dtypes(result, extra, next((d for d in watch.seen if d != torch.float32), usual))


def noise(scheduler: Any, line: Line, sample: Tensor, generator: Any, draw: torch.dtype) -> Tensor | None:
    """The noise of one step; draws that the step does not use are made all the same."""
    if "noise_sampler" in vars(scheduler):
        # Begun at the first step, noise or no: that may draw its seed.
        path = _path(scheduler, sample, generator, draw)
    if line.span is not None:
        made: Tensor = path(*map(torch.tensor, line.span))
        return made.to(sample.device)
    drawn = [_randn(sample, generator, dtype or draw) for dtype in line.draws]
    return drawn[line.drawn] if line.drawn >= 0 else None


def _randn(sample: Tensor, generator: Any, dtype: torch.dtype) -> Tensor:
    if isinstance(generator, list) and len(generator) == 1:
        generator = generator[0]
    on_cpu = sample.is_cpu and isinstance(generator, torch.Generator | None)
    if on_cpu and dtype != torch.float64:
        return ops.randn(sample.shape, generator=generator, dtype=dtype, device="cpu")
    return randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=dtype)


def _path(scheduler: Any, sample: Tensor, generator: Any, dtype: torch.dtype) -> Any:
    """The Brownian path of this loop, begun as diffusers begins it."""
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    if scheduler.noise_sampler is not None:
        return scheduler.noise_sampler
    memory = scheduler._memory()
    if memory.path is None:
        if hasattr(scheduler, "noise_sampler_seed"):
            levels, seed = scheduler.sigmas[scheduler.sigmas > 0], scheduler.noise_sampler_seed
            low, high = levels.min().item(), levels.max().item()
        else:
            low, high = scheduler.config.sigma_min, scheduler.config.sigma_max
            listed = [g.initial_seed() for g in generator] if isinstance(generator, list) else generator
            seed = listed.initial_seed() if isinstance(listed, torch.Generator) else listed
        memory.path = BrownianTreeNoiseSampler(sample.to(dtype), low, high, seed)
    return memory.path
