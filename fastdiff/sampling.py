"""`sample`: from a model, a starting point and a schedule to pictures."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fastdiff import adaptive, ops
from fastdiff.adaptive import AdaptivePlan, Options
from fastdiff.calling import Model
from fastdiff.events import Callback, Watcher
from fastdiff.executor import Run, Setting
from fastdiff.graphs.recorder import CannotCapture
from fastdiff.graphs.run import walked
from fastdiff.guidance import Guidance
from fastdiff.inpainting import Inpaint
from fastdiff.levels import Level
from fastdiff.noise import CounterNoise, GeneratorNoise, NoiseSource, PathNoise, SeededNoise, generator_of
from fastdiff.plan import Plan, Planner, clip_bounds
from fastdiff.predictions import Prediction
from fastdiff.predictions import resolve as resolve_prediction
from fastdiff.samplers import resolve
from fastdiff.schedules import Schedule
from fastdiff.thresholding import DynamicThreshold


def sample(
    model: Model,
    x: Tensor | Sequence[int],
    *,
    schedule: Schedule | None = None,
    sampler: str | Planner | Plan | AdaptivePlan = "dpmpp_2m",
    steps: int = 20,
    prediction: str | Prediction = "epsilon",
    conditioning: Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
    strength: float | None = None,
    clip: float | tuple[float, float] | None = None,
    threshold: DynamicThreshold | None = None,
    inpaint: Inpaint | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int | Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    noise: NoiseSource | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    differentiable: bool = False,
    graph: bool | Literal["auto"] = False,
) -> Tensor:
    """Samples a diffusion model.

    model: called as model(x_in, t, **conditioning) with x_in [B, ...] in `dtype` and t float32 [B], the schedule's own
        time (training index, sigma or flow time); returns a tensor like x_in. It must not write to x_in or t, and must
        copy x_in to keep it: the next step may reuse its memory. With Guidance(doubled=False), which calls it twice, it
        must not return both outputs in one buffer.
    x: the starting point at the schedule's first level, [B, ...]; or a shape, drawn from the noise source; or, with
        `strength`, a clean image, which is first noised.
    schedule: from fastdiff.schedules; not needed if `sampler` is a Plan.
    sampler: a name in fastdiff.samplers.SAMPLERS, "dpm_adaptive", a planner, or a finished Plan.
    steps: how many. dpm_adaptive takes of the schedule's steps only the first and the last level, between which it
        chooses for itself. options: the sampler's own, by name.
    prediction: "epsilon", "sample", "v", "flow", "edm", or a Prediction.
    conditioning: passed to the model by name; with guidance, tensors have length B.
    strength: 0 to 1, start part-way from the clean image x, with the last `strength` of the steps (image to image).
    clip: bounds of the denoised image, a number or (lo, hi). threshold: dynamic bounds, instead.
    inpaint: an image, and a mask that is 1 where it is repainted; elsewhere the result is that image.
    seed: a number, or one for each image (an image then does not depend on its neighbours). generator: a
        torch.Generator, instead. noise: any NoiseSource, instead. torch's global generator if none is given. A sampler
        that draws noise inside a step (dpmpp_sde) takes it from a Brownian path made from these.
    dtype: of the model's input, x's own by default. The state is float32 whatever it is (float64 if x is).
    device: where a shape is drawn; the generator's or the CPU by default.
    callback: called with an Event at each model call; event.cancel() ends the run. progress: show a bar.
    differentiable: record gradients through every step.
    graph: on a GPU, capture the model's call and the step as one CUDA graph and replay it for every row, in this run
        and in later ones like it (docs/graphs.md says what the model must be for that). "auto": where that can be;
        True: an error, CannotCapture, where it cannot.

    Returns the image at the last level, [B, ...], with x's dtype (`dtype` or float32 if x was a shape).
    Raises ValueError or TypeError for arguments that do not fit, Cancelled if a callback asked for it.
    """
    _check_types(schedule, guidance, threshold, inpaint, noise, options, conditioning, dtype, generator)
    if threshold is not None and clip is not None:
        raise ValueError("give clip or threshold, not both")
    if graph not in (True, False, "auto"):
        raise ValueError(f"graph is {graph!r}: pass True, False or 'auto'")
    source = noise_source(seed=seed, generator=generator, noise=noise)
    model_dtype = dtype or (x.dtype if isinstance(x, Tensor) else torch.float32)
    plan = planned(sampler, schedule, steps=steps, prediction=prediction, clip=clip, options=options)
    plan = plan if strength is None else plan.start_at(strength)
    if graph is True and (differentiable or isinstance(plan, AdaptivePlan)):
        why = "record gradients" if differentiable else "choose its steps as it goes"
        raise CannotCapture(f"a graph cannot {why}: leave graph=False, or pass 'auto'")
    # An adaptive run numbers the rows of each attempt from 0: they do not tell CounterNoise what was drawn before.
    by_row = isinstance(plan, AdaptivePlan) and isinstance(source, CounterNoise)
    if (plan.needs_path or by_row) and isinstance(source, (GeneratorNoise, SeededNoise, CounterNoise)):
        source = PathNoise(source)
    with (
        torch.set_grad_enabled(differentiable and torch.is_grad_enabled()),
        Watcher(callback, progress=progress, calls=plan.calls, name=plan.name) as watcher,
    ):
        start, drawn = starting_point(
            x, plan.levels[0], source, strength=strength, device=device, generator=generator
        )
        if inpaint is not None:
            inpaint = inpaint.like(start, lambda: source.start(start) if drawn is None else drawn)
        setting = Setting(
            model, source, watcher, conditioning or {}, model_dtype, guidance, threshold, inpaint
        )
        if isinstance(plan, AdaptivePlan):
            result = plan.walk(start, setting)
        else:
            run = Run(plan, start, setting)
            if differentiable:
                result = run.recorded()[-1]
            else:
                result = walked(run, must=graph is True) if graph else run.in_place()
    return result.to(model_dtype if not isinstance(x, Tensor) else x.dtype)


def planned(
    sampler: str | Planner | Plan | AdaptivePlan,
    schedule: Schedule | None,
    *,
    steps: int = 20,
    prediction: str | Prediction = "epsilon",
    clip: float | tuple[float, float] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Plan | AdaptivePlan:
    """The plan that `sample` walks for these arguments. Raises ValueError for any that do not fit."""
    if isinstance(sampler, (Plan, AdaptivePlan)):
        if (
            clip is not None
            or options
            or prediction not in ("epsilon", sampler.prediction, sampler.prediction.name)
        ):
            raise ValueError(
                "a finished plan has its prediction, clip and options: leave them out, or plan afresh"
            )
        return sampler
    if not (isinstance(sampler, str) or callable(sampler)):
        raise TypeError(f"sampler is {type(sampler).__name__}: pass a name, a planner or a Plan")
    if schedule is None:
        raise ValueError(
            "sample needs a schedule: pass one made by fastdiff.schedules, for example karras(0.03, 14.6)"
        )
    given = tuple((options or {}).items())
    # A planner of one's own may change, and True is not 1: remember only what a name and plain numbers decide.
    plain = isinstance(sampler, str) and all(
        type(value) in (int, float, str, type(None)) for _, value in given
    )
    return (_remembered if plain else _planned)(sampler, schedule, steps, prediction, clip, given)


def _planned(
    sampler: str | Planner,
    schedule: Schedule,
    steps: int,
    prediction: str | Prediction,
    clip: float | tuple[float, float] | None,
    options: tuple[tuple[str, Any], ...],
) -> Plan | AdaptivePlan:
    levels = schedule.levels(steps)
    if sampler == adaptive.NAME:
        return AdaptivePlan(
            levels, resolve_prediction(prediction), clip_bounds(clip), Options.of(dict(options))
        )
    return Plan.build(resolve(sampler, dict(options)), levels, prediction=prediction, clip=clip)


# Plans never change, so that one run's can serve the next.
_remembered = functools.lru_cache(maxsize=32, typed=True)(_planned)


def noise_source(
    *,
    seed: int | Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    noise: NoiseSource | None = None,
) -> NoiseSource:
    """The one that is given; torch's global generator if none is."""
    if sum(given is not None for given in (seed, generator, noise)) > 1:
        raise ValueError("give one of seed, generator and noise")
    if noise is not None:
        return noise
    if seed is None:
        return GeneratorNoise(generator)
    if isinstance(seed, int) or np.ndim(seed) == 0:
        return GeneratorNoise(generator_of(seed))  # type: ignore[arg-type]
    return SeededNoise(seed)


def _check_types(
    schedule: object, guidance: object, threshold: object, inpaint: object, noise: object, options: object,
    conditioning: object, dtype: object, generator: object,
) -> None:  # fmt: skip
    """TypeError, with what to pass, for an argument of another kind than `sample` takes."""
    expected = (
        (
            "schedule",
            schedule,
            Schedule,
            "one made by fastdiff.schedules (of levels or sigmas: from_levels, from_sigmas)",
        ),
        ("guidance", guidance, Guidance, "fastdiff.Guidance(scale, unconditional={...})"),
        ("threshold", threshold, DynamicThreshold, "fastdiff.DynamicThreshold(quantile)"),
        ("inpaint", inpaint, Inpaint, "fastdiff.Inpaint(image, mask)"),
        ("options", options, Mapping, "a dict of the sampler's options"),
        ("conditioning", conditioning, Mapping, "a dict of the model's keyword arguments"),
        ("dtype", dtype, torch.dtype, "a torch.dtype, such as torch.float16"),
        ("generator", generator, torch.Generator, "a torch.Generator"),
    )
    for name, value, kind, remedy in expected:
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} is {type(value).__name__}: pass {remedy}")
    if noise is not None and not (hasattr(noise, "start") and hasattr(noise, "step")):
        raise TypeError(
            f"noise is {type(noise).__name__}: pass a NoiseSource, such as fastdiff.BrownianNoise(seeds)"
        )


def starting_point(
    x: Tensor | Sequence[int],
    level: Level,
    source: NoiseSource,
    *,
    strength: float | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The state a run starts from, [B, ...] float32 or float64, and the noise that was drawn for it, if any was."""
    if not isinstance(x, Tensor):
        if strength is not None:
            raise ValueError("strength starts from a clean image: pass it as x")
        shape = tuple(x) if isinstance(x, Sequence) else ()
        if not shape or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(
                f"x must be a float tensor [B, ...] or a shape, a tuple with at least the batch, got {x!r:.80}"
            )
        where = device or (generator.device if generator is not None else "cpu")
        drawn = source.start(torch.empty(shape, device=where))
        return drawn * level.sigma, drawn
    if not x.is_floating_point() or not x.dim():
        raise TypeError(
            f"x is {str(x.dtype).removeprefix('torch.')} {list(x.shape)}: pass a float tensor [B, ...]"
        )
    state = x.to(device=device or x.device, dtype=torch.promote_types(x.dtype, torch.float32))
    state = state if ops.is_dense(state) else state.contiguous()
    if strength is None:
        return state, None
    if not level.sigma:
        return state.clone(), None
    drawn = source.start(state).to(state.dtype)
    return ops.add_noise(state, drawn, level.alpha, level.sigma), drawn
