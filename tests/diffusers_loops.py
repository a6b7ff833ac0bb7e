"""The loops that run a case of diffusers_cases: a small smooth random network, each scheduler's way of being called,
and the same loop in exact arithmetic."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from diffusers_cases import Case, theirs
from widened import Widened


class TinyNetwork:
    """A smooth random function of (x, t) with fixed weights, computed in float64: the output is rounded to x's dtype.

    x: [B, C, ...]; the output has `out` channels. For noise predictors it tends to x where t is large, as a trained
    model's does, so that trajectories stay bounded.
    """

    def __init__(self, channels: int, out: int, *, skip: float, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.first = torch.randn(6, channels, 3, dtype=torch.float64, generator=g) / math.sqrt(3 * channels)
        self.phase = torch.randn(6, dtype=torch.float64, generator=g)
        self.last = torch.randn(out, 6, 3, dtype=torch.float64, generator=g) * 0.12
        self.out, self.skip = out, skip

    def __call__(self, x: Tensor, t: float) -> Tensor:
        time = math.tanh(abs(t) / 600.0) if abs(t) > 2 else abs(t) / 2
        flat = x.double().flatten(2)
        hidden = torch.nn.functional.conv1d(
            flat * 0.7, self.first, (self.phase * (1 + 3 * time)), padding=1
        ).sin()
        result = torch.nn.functional.conv1d(hidden, self.last, padding=1)
        if self.skip:
            result[:, : flat.shape[1]] += self.skip * time * flat[:, : self.out]
        return result.reshape(x.shape[0], self.out, *x.shape[2:]).to(x.dtype)


def network(case: Case) -> TinyNetwork:
    """The network of a case: twice the channels where the variance is learned."""
    channels = case.shape[1]
    if case.scheduler == "ScoreSdeVeScheduler":
        return TinyNetwork(channels, channels, skip=0.0)
    prediction = case.config.get("prediction_type") or _default_prediction(case.scheduler)
    learned = str(case.config.get("variance_type")).startswith("learned")
    return TinyNetwork(
        channels, channels * (2 if learned else 1), skip=1.0 if prediction == "epsilon" else 0.0
    )


def _default_prediction(name: str) -> str:
    parameter = inspect.signature(theirs(name).__init__).parameters.get("prediction_type")
    return "flow" if parameter is None and "Flow" in name else getattr(parameter, "default", "epsilon")


def generators(case: Case) -> Any:
    """The generators of a case, seeded; the global one is seeded always."""
    torch.manual_seed(case.seed + 11)
    if case.generators == "global":
        return None
    if case.generators == "list":
        return [torch.Generator().manual_seed(case.seed + i) for i in range(case.shape[0])]
    return torch.Generator().manual_seed(case.seed + 7)


def states(generator: Any) -> list[Tensor]:
    """What the generators have come to, the global one included."""
    some = [] if generator is None else generator if isinstance(generator, list) else [generator]
    return [torch.get_rng_state(), *(g.get_state() for g in some)]


def build(cls: type, case: Case) -> Any:
    """The scheduler of a case with its timesteps set."""
    scheduler = cls(**case.config)
    scheduler.set_timesteps(**case.timesteps)
    if hasattr(scheduler, "set_sigmas"):
        scheduler.set_sigmas(case.timesteps["num_inference_steps"])
    return scheduler


def start(scheduler: Any, case: Case, dtype: torch.dtype) -> tuple[Tensor, list[Any]]:
    """The first sample, rounded to dtype, and the timesteps to go."""
    g = torch.Generator().manual_seed(case.seed + 1)
    noise = torch.randn(case.shape, generator=g).to(dtype)
    timesteps, order = list(scheduler.timesteps), getattr(scheduler, "order", 1)
    if case.scheduler in ("SCMScheduler", "DDPMWuerstchenScheduler"):
        timesteps = timesteps[:-1]
    if case.begin == 0 or case.begin * order >= len(timesteps):
        begin = 0
        x = noise * torch.as_tensor(float(getattr(scheduler, "init_noise_sigma", 1.0))).to(dtype)
    else:
        begin = case.begin * order
        image = torch.randn(case.shape, generator=g).clamp(-1, 1).to(dtype)
        mix = getattr(scheduler, "add_noise", None) or getattr(scheduler, "scale_noise", None)
        x = noise if mix is None else _noised(mix, image, noise, timesteps[begin], case.shape[0])
    if case.announced and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return x.to(dtype), timesteps[begin:]


def _noised(mix: Callable[..., Tensor], image: Tensor, noise: Tensor, t: Any, batch: int) -> Tensor:
    t = torch.as_tensor(t).reshape(1).repeat(batch)
    if mix.__name__ == "scale_noise":
        return mix(image, t, noise)
    return mix(image, noise, t)


def loop(
    scheduler: Any,
    case: Case,
    dtype: torch.dtype = torch.float32,
    *,
    generator: Any = None,
    x: Tensor | None = None,
    hook: Callable[[int, Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """What the last step returned, the final sample first. x: another start than the case's own. hook(i, x): what
    becomes of the sample before step i."""
    first, timesteps = start(scheduler, case, dtype)
    x = first if x is None else x
    model, last = network(case), [x]
    for i in range(len(timesteps)):
        if hook is not None:
            x = hook(i, x)
        last = advance(scheduler, case, model, x, timesteps, i, last, generator)
        x = last[0]
    return [value for value in last if isinstance(value, Tensor)]


def advance(
    scheduler: Any,
    case: Case,
    model: TinyNetwork,
    x: Tensor,
    timesteps: list[Any],
    i: int,
    last: list[Any],
    generator: Any,
) -> list[Any]:
    """One model call and step: the tuple that step() returns."""
    t = timesteps[i]
    scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
    output = model(scaled.to(x.dtype), float(t))
    if case.scheduler == "ScoreSdeVeScheduler":
        variance = 1 + (0.01 * 134800.0 ** float(t)) ** 2
        output = ((0.5 * output - x) / variance).to(x.dtype)
        x = scheduler.step_correct(output, x, generator=generator, return_dict=False)[0]
        return list(scheduler.step_pred(output, t, x, generator=generator, return_dict=False))
    arguments = {k: v for k, v in case.step.items() if k != "per_token"}
    if "generator" in inspect.signature(type(scheduler).step).parameters:
        arguments["generator"] = generator
    t, more = _particular(scheduler, case, x, timesteps, i, last)
    result = list(scheduler.step(output, timestep=t, sample=x, return_dict=False, **arguments, **more))
    following = timesteps[i + 1] if i + 1 < len(timesteps) else None
    if case.scheduler == "RePaintScheduler" and following is not None and following > t:
        result[0] = scheduler.undo_step(result[0], t, generator)
    return result


def _particular(
    scheduler: Any, case: Case, x: Tensor, timesteps: list[Any], i: int, last: list[Any]
) -> tuple[Any, dict[str, Any]]:
    """The timestep and further arguments of step() as the classes with an interface of their own take them."""
    t, more = timesteps[i], {}
    if case.scheduler == "CogVideoXDPMScheduler":
        more["old_pred_original_sample"] = last[1] if len(last) > 1 else None
        more["timestep_back"] = timesteps[i - 1] if i else None
    elif case.scheduler == "RePaintScheduler":
        more["original_image"] = torch.linspace(-1, 1, x.numel()).reshape(x.shape).to(x.dtype)
        more["mask"] = (torch.arange(x.numel()).reshape(x.shape) % 3 == 0).to(x.dtype)
    elif case.scheduler == "UnCLIPScheduler":
        more["prev_timestep"] = timesteps[i + 1] if i + 1 < len(timesteps) else None
    elif case.scheduler == "DDPMWuerstchenScheduler":
        t = t.expand(x.shape[0])
    elif case.scheduler == "HeliosDMDScheduler":
        more["cur_sampling_step"], more["dmd_noisy_tensor"] = (
            i,
            torch.linspace(-1, 1, x.numel()).reshape(x.shape).to(x),
        )
        more["dmd_sigmas"], more["dmd_timesteps"] = scheduler.sigmas, scheduler.timesteps
        more["all_timesteps"] = scheduler.timesteps
    if case.step.get("per_token"):
        held = torch.arange(x.shape[1]) % 4 == 0
        more["per_token_timesteps"] = torch.where(held, 0.0, float(t)).expand(x.shape[0], -1)
    return t, more


# --- Exact arithmetic ---


@contextmanager
def recording(cls: type, drawn: list[Tensor]) -> Iterator[None]:
    """What the modules of a scheduler class draw is appended to `drawn`."""
    with ExitStack() as patches:
        for owner, attribute in _sources(cls):
            draw = getattr(owner, attribute)

            def recorded(*args: Any, draw: Callable[..., Tensor] = draw, **more: Any) -> Tensor:
                drawn.append(draw(*args, **more))
                return drawn[-1]

            patches.enter_context(patch.object(owner, attribute, recorded))
        yield


@contextmanager
def exactly(cls: type, drawn: list[Tensor]) -> Iterator[None]:
    """The modules of a scheduler class compute in float64 and draw what was recorded."""
    replay = iter(drawn)
    before = torch.get_default_dtype()
    with ExitStack() as patches:
        for owner, attribute in _sources(cls):
            patches.enter_context(patch.object(owner, attribute, lambda *_, **__: next(replay).double()))
        for module in _modules(cls):
            patches.enter_context(patch.object(module, "torch", Widened(torch)))
            patches.enter_context(patch.object(module, "np", Widened(np), create=True))
        try:
            torch.set_default_dtype(torch.float64)
            yield
        finally:
            torch.set_default_dtype(before)


def _modules(cls: type) -> list[Any]:
    own = (c.__module__ for c in cls.__mro__ if c.__module__.startswith("diffusers.schedulers.scheduling_"))
    return [importlib.import_module(name) for name in own if not name.endswith("scheduling_utils")]


def _sources(cls: type) -> list[tuple[Any, str]]:
    """Where a scheduler class draws noise from."""
    modules = _modules(cls)
    found: list[tuple[Any, str]] = [(m, "randn_tensor") for m in modules if hasattr(m, "randn_tensor")]
    trees = {m.BrownianTreeNoiseSampler for m in modules if hasattr(m, "BrownianTreeNoiseSampler")}
    return found + [(tree, "__call__") for tree in trees]


def exact_scheduler(case: Case) -> Any:
    """diffusers' own scheduler of a case, its (float32) tables in float64."""
    scheduler = build(theirs(case.scheduler), case)
    for name, value in vars(scheduler).items():
        if isinstance(value, Tensor) and value.dtype == torch.float32 and name != "timesteps":
            setattr(scheduler, name, value.double())
    return scheduler


def truth(case: Case, dtype: torch.dtype, drawn: list[Tensor]) -> list[Tensor]:
    """The loop in float64 on the scheduler's own (float32) tables, with the start and the noise of a run in dtype."""
    cls, scheduler = theirs(case.scheduler), exact_scheduler(case)
    x, _ = start(build(cls, case), case, dtype)
    with exactly(cls, drawn):
        return loop(scheduler, case, torch.float64, generator=generators(case), x=x.double())
