"""The schedulers of diffusers that fastdiff's samplers are compared with, and the closed loops of both.

diffusers computes its tables, and part of step(), in float32: its modules are given a torch and a numpy whose float32
is float64, so that rounding does not hide differences. Levels are built from each scheduler's own timesteps and sigmas,
so that what is compared is the sampler. Schedulers that keep x / alpha are compared with samplers on x itself.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff.levels import DiscreteTime, Level, LinearPath, VarianceExploding, clean
from fastdiff.plan import Plan
from fastdiff.samplers import SAMPLERS
from oracles import RandomDenoiser, execute, output_of
from widened import BETAS, in_float64

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

PREDICTIONS = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v", "flow_prediction": "flow"}
DDPM_KINDS = ("epsilon", "sample", "v_prediction")
TOLERANCE = 1e-9
LOOSE = 1e-6  # where diffusers subtracts nearly equal numbers: DEIS's antiderivatives, sigma_down of the ancestral DPM2

Levels = list[Level]


def at_timesteps(scheduler: Any) -> Levels:
    """DDIM's kind: levels at the training indices of `timesteps`, then the scheduler's final alpha."""
    process = DiscreteTime(scheduler.alphas_cumprod.numpy())
    times = list(dict.fromkeys(scheduler.timesteps.tolist()))
    return [*(process.level(t) for t in times), clean(process)]


def down_to_first(scheduler: Any) -> Levels:
    """... ending at the first training index, as TCD does."""
    levels = at_timesteps(scheduler)
    assert levels[0].process is not None
    return [*levels[:-1], levels[0].process.level(0)]


def preserving_sigmas(scheduler: Any) -> Levels:
    """The multistep kind: `sigmas` are sigma / alpha on a variance-preserving process."""
    process = DiscreteTime(scheduler.alphas_cumprod.numpy())
    return [process.at(s) if s else clean(process) for s in dict.fromkeys(scheduler.sigmas.tolist())]


def repeated_sigmas(scheduler: Any) -> Levels:
    """The same, where a scheduler lists a level once for each of its model calls."""
    process = DiscreteTime(scheduler.alphas_cumprod.numpy())
    return [process.at(s) if s else clean(process) for s in dict.fromkeys(scheduler.sigmas.tolist())]


def edm_sigmas(scheduler: Any) -> Levels:
    """EDM's kind: x = x0 + sigma * eps, called by sigma."""
    process = VarianceExploding()
    return [process.level(s) if s else clean(process) for s in scheduler.sigmas.tolist()]


def flow_sigmas(scheduler: Any) -> Levels:
    """sigmas on the linear path, where the model's time is 1000 sigma."""
    process = LinearPath(T=1000.0)
    return [
        process.level(1000.0 * s) if s else clean(process) for s in dict.fromkeys(scheduler.sigmas.tolist())
    ]


@dataclass(frozen=True)
class Case:
    """A scheduler class with a configuration, and the sampler with the options that should equal it.

    step: keyword arguments of step(). steps: what may be drawn as the number of steps.
    """

    scheduler: str
    sampler: str
    levels: Callable[[Any], Levels] = preserving_sigmas
    config: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    step: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[int] = tuple(range(1, 51))
    tolerance: float = TOLERANCE
    with_signal: bool = False  # only on betas that keep alpha above fastdiff.samplers._moves.NO_SIGNAL
    spaced: bool = True  # may take sigma spacings
    predictions: Sequence[str] = DDPM_KINDS
    prediction: str | None = None  # ours, where their name for it is another

    @property
    def name(self) -> str:
        parts = [
            f"{k}={v}" for k, v in {**self.config, **self.options, **self.step}.items() if not callable(v)
        ]
        return "-".join([self.scheduler.removesuffix("Scheduler"), self.sampler, *parts])


def closed_loop(
    case: Case,
    config: Mapping[str, Any],
    steps: int,
    rng: np.random.Generator,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """(ours, theirs) after a whole loop from the same start, with the same noise at the same model call."""
    cls = getattr(diffusers, case.scheduler)
    module = importlib.import_module(cls.__module__)
    with ExitStack() as patches:
        if dtype == torch.float64:
            patches.enter_context(in_float64(cls))
        scheduler = cls(**config)
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(
                0
            )  # without it, repeated timesteps make several classes start at the second
        levels = case.levels(scheduler)
        prediction = case.prediction or PREDICTIONS[config["prediction_type"]]
        plan = Plan.build(SAMPLERS[case.sampler], levels, prediction=prediction, options=case.options)
        model = output_of(RandomDenoiser(rng, 5), prediction)
        calls = [row.level for row in plan.rows if row.call]
        calls += [levels[-1]] * (
            len(scheduler.timesteps) - len(calls)
        )  # where the last level is repeated: no-ops
        assert len(calls) == len(scheduler.timesteps)
        x = torch.tensor(rng.normal(size=(3, 5)), dtype=dtype) * math.hypot(levels[0].alpha, levels[0].sigma)
        noise = [torch.tensor(rng.normal(size=x.shape), dtype=dtype) for _ in calls]
        exploding = case.levels is repeated_sigmas  # their x is x / alpha
        theirs = x / levels[0].alpha if exploding else x
        for t, level, drawn in zip(scheduler.timesteps, calls, noise):
            if hasattr(module, "randn_tensor"):
                patches.enter_context(
                    patch.object(module, "randn_tensor", lambda *_, drawn=drawn, **__: drawn)
                )
            seen = theirs * level.alpha if exploding else theirs
            output = model(plan.prediction.scale(level) * seen, level)
            theirs = scheduler.step(output, t, theirs, return_dict=False, **case.step)[0]
    ours = execute(plan, model, x, lambda i, row: noise[sum(r.call for r in plan.rows[:i])])
    return ours, theirs


def drawn_configuration(case: Case, seed: int) -> tuple[dict[str, Any], int, np.random.Generator]:
    """A random configuration of the scheduler, the number of steps, and the generator for the rest."""
    rng = np.random.default_rng(seed)
    choice = BETAS[:2] if case.with_signal else BETAS
    betas, prediction = choice[rng.integers(len(choice))], str(rng.choice(case.predictions))
    config = {**betas, "prediction_type": prediction, **case.config}
    known = inspect.signature(getattr(diffusers, case.scheduler)).parameters
    if case.spaced and "use_karras_sigmas" in known:
        config |= SIGMA_SPACINGS[rng.integers(len(SIGMA_SPACINGS))]
    config = {key: value for key, value in config.items() if key in known}
    return config, int(rng.choice(case.steps)), rng


EVEN = tuple(n for n in range(1, 51) if 1000 % n == 0)
SIGMA_SPACINGS = (
    {},
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
)
DPM = "DPMSolverMultistepScheduler"
# diffusers lowers the order of the last steps only below 15 steps; these samplers only for the step to zero.
LONG = tuple(range(15, 51))
EPSILON = ("epsilon",)
HEUN = {"solver_type": "heun"}
NO_SAMPLE = ("epsilon", "v_prediction")
FEW = (1, 2, 3, 4, 8)
LEADING = {"timestep_spacing": "leading"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
TAUS = {0.0: lambda t: 0.0, 0.6: lambda t: 0.6, 1.0: lambda t: 1.0}

# Where a schedule begins with almost no signal (cosine betas: sigma / alpha = 20,000), samplers that use that ratio
# begin with a first-order step, which the schedulers do not: they are compared on the other betas.
CASES = (
    *(
        Case("DDIMScheduler", "ddim", at_timesteps, {"clip_sample": False}, {"eta": e}, {"eta": e}, EVEN)
        for e in (0.0, 0.6, 1.0)
    ),
    *(
        # With eta = 1 diffusers takes the root of -1e-17 at times, which is NaN.
        Case("DDIMScheduler", "ddim", at_timesteps, {**ZERO_SNR, "clip_sample": False}, {"eta": e}, {"eta": e}, EVEN,
             predictions=("sample", "v_prediction"))
        for e in (0.0, 0.9)
    ),
    *(
        Case("DDPMScheduler", "ddpm", at_timesteps, {"clip_sample": False, "variance_type": f"fixed_{v}", **LEADING},
             {"variance": v}, steps=EVEN)
        for v in ("small", "large")
    ),
    Case("PNDMScheduler", "plms", at_timesteps, {"skip_prk_steps": True, "set_alpha_to_one": True, **LEADING},
         steps=EVEN[1:], predictions=EPSILON, with_signal=True),
    *(
        Case("DEISMultistepScheduler", "deis", config={"solver_order": k}, options={"order": k}, steps=LONG,
             tolerance=LOOSE, with_signal=True)
        for k in (1, 2, 3)
    ),
    *(
        Case(DPM, "dpmpp_2m_sde", config={"algorithm_type": kind, "solver_type": s},
             options={"eta": eta, "solver_type": s}, steps=LONG)
        for s in ("midpoint", "heun") for kind, eta in (("dpmsolver++", 0.0), ("sde-dpmsolver++", 1.0))
    ),
    Case(DPM, "dpmpp_2m", config={"algorithm_type": "dpmsolver++"}, steps=LONG),
    Case(DPM, "dpmpp_3m_sde", config={"solver_order": 3, "solver_type": "heun"}, options={"eta": 0.0}, steps=LONG),
    Case(DPM, "ddim", config={"solver_order": 1}),
    *(
        Case("DPMSolverSinglestepScheduler", "dpmpp_singlestep", options={"order": k},
             config={"solver_order": k, "final_sigmas_type": "zero"})
        for k in (1, 2, 3)
    ),
    *(
        # With bh1 and a last step to zero diffusers' UniPC gives NaN, see below; here both end at the first index.
        Case("UniPCMultistepScheduler", "unipc", options={"order": k, "solver_type": b},
             config={"solver_order": k, "solver_type": b, "final_sigmas_type": "zero" if b == "bh2" else "sigma_min"},
             spaced=b == "bh2")
        for k in (1, 2, 3) for b in ("bh1", "bh2")
    ),
    *(
        # With sigma spacings diffusers' SA-Solver repeats the last level.
        Case("SASolverScheduler", "sa_solver", config={"predictor_order": p, "corrector_order": c, "tau_func": TAUS[t]},
             options={"predictor_order": p, "corrector_order": c, "tau": t}, spaced=False)
        for p, c in ((1, 1), (2, 2), (3, 3), (3, 4)) for t in TAUS
    ),
    Case("EulerDiscreteScheduler", "euler", repeated_sigmas),
    Case("EulerAncestralDiscreteScheduler", "euler_ancestral", repeated_sigmas, predictions=NO_SAMPLE, spaced=False),
    Case("HeunDiscreteScheduler", "heun", repeated_sigmas, with_signal=True),
    Case("KDPM2DiscreteScheduler", "dpm_2", repeated_sigmas, with_signal=True, predictions=NO_SAMPLE),
    Case("KDPM2AncestralDiscreteScheduler", "dpm_2_ancestral", repeated_sigmas, predictions=NO_SAMPLE, tolerance=LOOSE,
         with_signal=True),
    Case("LMSDiscreteScheduler", "lms", repeated_sigmas, with_signal=True),
    Case("LCMScheduler", "lcm", at_timesteps, {}, {"timestep_scaling": 10.0}, steps=FEW, spaced=False, tolerance=LOOSE),
    *(
        Case("TCDScheduler", "tcd", down_to_first, {}, {"eta": e}, {"eta": e}, FEW, spaced=False)
        for e in (0.0, 0.3, 1.0)
    ),
    *(
        Case("FlowMatchEulerDiscreteScheduler", name, flow_sigmas, {"shift": shift}, prediction="flow", spaced=False)
        for name in ("euler", "ddim") for shift in (1.0, 3.0)
    ),
    *(
        Case(name, sampler, flow_sigmas, {"use_flow_sigmas": True, "flow_shift": 0.7, **config}, options, steps=LONG,
             spaced=False, predictions=("flow_prediction",))
        for name, sampler, config, options in (
            (DPM, "dpmpp_2m", {}, {}),
            (DPM, "dpmpp_2m_sde", {"algorithm_type": "sde-dpmsolver++"}, {}),
            ("UniPCMultistepScheduler", "unipc", {"solver_order": 3}, {"order": 3}),
            ("DEISMultistepScheduler", "deis", {}, {"order": 2}),
        )
    ),
    *(
        Case("EDMEulerScheduler", name, edm_sigmas, {"sigma_schedule": kind}, prediction="edm", predictions=EPSILON)
        for name, kind in (("euler", "karras"), ("ddim", "exponential"))
    ),
    *(
        Case("EDMDPMSolverMultistepScheduler", "dpmpp_2m_sde", edm_sigmas, {"algorithm_type": kind, **HEUN},
             {"eta": eta, **HEUN}, prediction="edm", predictions=EPSILON, steps=LONG)
        for kind, eta in (("dpmsolver++", 0.0), ("sde-dpmsolver++", 1.0))
    ),
)  # fmt: skip
