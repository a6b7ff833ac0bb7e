"""Configurations of diffusers' schedulers: the one table behind the test_diffusers_* files.

draw(name, seed) gives a random configuration of a scheduler class; seed 0 is its default one.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import diffusers
import diffusers.schedulers
import numpy as np
import pytest
import torch

Options = Mapping[str, Sequence[Any]]
SKIP = object()
"""In a table of options: the option is left out."""

SPACINGS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
)
"""Of these at most one may be chosen."""

EPSILON_SAMPLE_V = ("epsilon", "sample", "v_prediction")

SHARED: Options = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "beta_start": (0.0001, 0.00085),
    "beta_end": (0.02, 0.012),
    "trained_betas": (None, None, np.linspace(1e-4, 0.015, 1000).tolist()),
    "prediction_type": EPSILON_SAMPLE_V,
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "steps_offset": (0, 1),
    "set_alpha_to_one": (True, False),
    "rescale_betas_zero_snr": (False, False, True),
    "clip_sample": (True, False),
    "clip_sample_range": (1.0, 2.5),
    "clip_denoised": (True, False),
    "thresholding": (False, False, True),
    "dynamic_thresholding_ratio": (0.995, 0.8),
    "sample_max_value": (1.0, 3.0),
    "final_sigmas_type": ("zero", "sigma_min"),
    "solver_order": (1, 2, 3),
    "lower_order_final": (True, False),
    "euler_at_final": (False, True),
    "flow_shift": (1.0, 3.0),
    "shift": (1.0, 3.0),
    "use_dynamic_shifting": (False, False, True),
    "time_shift_type": ("exponential", "linear"),
    "shift_terminal": (None, 0.1),
    "invert_sigmas": (False, False, True),
    "stochastic_sampling": (False, True),
    "original_inference_steps": (50, 100),
    "timestep_scaling": (10.0, 3.0),
    "snr_shift_scale": (3.0, 1.0),
    "sigma_schedule": ("karras", "exponential"),
    "rho": (7.0, 5.0),
    "lambda_min_clipped": (-float("inf"), -5.1),
    "noise_sampler_seed": (None, 3),
    "interpolation_type": ("linear", "log_linear"),
    "skip_prk_steps": (True, False),
    "predict_x0": (True, False),
    "disable_corrector": ([], [0], [0, 1, 2]),
    "snr": (0.15,),
}
"""Choices for options of __init__, by name, wherever a class has them."""

FLOW = (*EPSILON_SAMPLE_V, "flow_prediction")
DPM_OPTIONS: Options = {
    "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"),
    "solver_type": ("midpoint", "heun"),
    "prediction_type": FLOW,
    "variance_type": (None, None, "learned_range"),
}

PARTICULAR: Mapping[str, Options] = {
    "DDPMScheduler": {"variance_type": (
        "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")},
    "DPMSolverMultistepScheduler": DPM_OPTIONS,
    "DPMSolverMultistepInverseScheduler": DPM_OPTIONS,
    "DPMSolverSinglestepScheduler": {
        **DPM_OPTIONS, "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++")},
    "EDMDPMSolverMultistepScheduler": {
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"), "solver_type": ("midpoint", "heun"),
        "prediction_type": ("epsilon", "v_prediction")},
    "CosineDPMSolverMultistepScheduler": {"solver_type": ("midpoint", "heun"), "solver_order": (1, 2),
                                          "prediction_type": ("epsilon", "v_prediction")},
    "DEISMultistepScheduler": {"prediction_type": FLOW},
    "UniPCMultistepScheduler": {"prediction_type": FLOW, "solver_type": ("bh1", "bh2")},
    "HeliosScheduler": {
        "thresholding": (False,), "stages": (1,), "stage_range": ([0, 1],), "prediction_type": ("flow_prediction",),
        "solver_type": ("bh1", "bh2"), "scheduler_type": ("unipc", "euler")},
    "HeliosDMDScheduler": {"stages": (1,), "stage_range": ([0, 1],), "prediction_type": ("flow_prediction",)},
    "SASolverScheduler": {
        "algorithm_type": ("data_prediction", "noise_prediction"), "predictor_order": (1, 2, 3, 4),
        "corrector_order": (1, 2, 3, 4), "prediction_type": FLOW,
        "tau_func": (None, lambda t: 0.0, lambda t: 1.0 if 200 <= t <= 800 else 0.0, lambda t: 0.6)},
    "PNDMScheduler": {"prediction_type": ("epsilon", "v_prediction")},
    "EDMEulerScheduler": {"prediction_type": ("epsilon", "v_prediction")},
    "UnCLIPScheduler": {"beta_schedule": ("squaredcos_cap_v2",), "prediction_type": ("epsilon", "sample"),
                        "variance_type": ("fixed_small_log", "learned_range")},
    "EulerDiscreteScheduler": {"timestep_type": ("discrete", "continuous"), "sigma_min": (None, 0.05),
                               "sigma_max": (None, 12.0)},
    **{name: {"prediction_type": ("epsilon", "v_prediction")} for name in (
        "DPMSolverSDEScheduler", "EulerAncestralDiscreteScheduler")},
    # fewer training steps: their construction takes 0.4 ms for each
    **{name: {"prediction_type": ("epsilon", "v_prediction"), "trained_betas": (None,), "num_train_timesteps": (100,)}
       for name in ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")},
    "IPNDMScheduler": {"trained_betas": (None,)},  # whose number would be the number of steps
    "LTXEulerAncestralRFScheduler": {"eta": (1.0, 0.5, 0.0), "s_noise": (1.0, 0.8)},
    "RePaintScheduler": {"eta": (0.0, 1.0)},
    "SCMScheduler": {"prediction_type": ("trigflow",), "sigma_data": (0.5, 1.0)},
    "MiniMaxH3Scheduler": {"shift": (12.0, 3.0)},
}  # fmt: skip
"""Choices of one class, over those of SHARED."""
PARTICULAR = {**PARTICULAR, "DDPMParallelScheduler": PARTICULAR["DDPMScheduler"]}

CHURN: Options = {"s_churn": (0.0, 5.0), "s_noise": (1.0, 1.01), "s_tmin": (0.0, 0.5)}
DDIM_STEP: Options = {"eta": (0.0, 0.3, 1.0), "use_clipped_model_output": (False, True)}
STEP: Mapping[str, Options] = {
    "DDIMScheduler": DDIM_STEP,
    "DDIMParallelScheduler": DDIM_STEP,
    "CogVideoXDDIMScheduler": {"eta": (0.0, 1.0)},
    "TCDScheduler": {"eta": (0.3, 0.0, 1.0)},
    "EulerDiscreteScheduler": CHURN,
    "EDMEulerScheduler": CHURN,
    "FlowMatchHeunDiscreteScheduler": CHURN,
    "LMSDiscreteScheduler": {"order": (4, 3, 2, 1)},
    "DPMSolverSDEScheduler": {"s_noise": (1.0, 0.9)},
    "FlowMatchEulerDiscreteScheduler": {"per_token": (False, False, True)},
}
"""Choices for the arguments of step()."""

NO_IMG2IMG = ("RePaintScheduler", "HeliosDMDScheduler", "SCMScheduler", "ScoreSdeVeScheduler")
NO_CUSTOM = ("HeliosScheduler", "HeliosDMDScheduler")

OUT_OF_SCOPE = (
    "ConsistencyDecoderScheduler", "AmusedScheduler", "VQDiffusionScheduler", "BlockRefinementScheduler",
    "DiscreteDDIMScheduler", "EntropyBoundScheduler", "RFD4ProteinaScheduler", "PiflowScheduler",
    "KarrasVeScheduler", "ScoreSdeVpScheduler",
)  # fmt: skip
"""A decoder's two steps, token and protein schedulers, a rolled-out policy, and two whose interfaces are their own."""

NAMES = tuple(
    name
    for name in dir(diffusers.schedulers)
    if name.endswith("Scheduler")
    and name not in OUT_OF_SCOPE
    and name != "KarrasDiffusionSchedulers"
    and hasattr(getattr(diffusers.schedulers, name), "set_timesteps")
    and not name.startswith("Flax")
)
"""The continuous schedulers this diffusers has."""


@dataclass(frozen=True)
class Case:
    """A configuration and how it is run.

    config: of __init__. timesteps: of set_timesteps. step: of step. begin: where in the timesteps the loop starts;
    announced: whether set_begin_index says so. generators: "one", "list" (one per image) or "global".
    """

    scheduler: str
    config: Mapping[str, Any] = field(default_factory=dict)
    timesteps: Mapping[str, Any] = field(default_factory=lambda: {"num_inference_steps": 10})
    step: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = (2, 4, 6, 6)
    begin: int = 0
    announced: bool = False
    generators: str = "one"
    seed: int = 0

    def __str__(self) -> str:
        odd = {
            "shape": self.shape,
            "begin": self.begin,
            "announced": self.announced,
            "generators": self.generators,
        }
        shown = {**self.config, **{f"step.{k}": v for k, v in self.step.items()}, **self.timesteps, **odd}
        return f"{self.scheduler}[{self.seed}] " + ", ".join(f"{k}={_short(v)}" for k, v in shown.items())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:50] + "..."


def theirs(name: str) -> type:
    """diffusers' own class of a name."""
    return getattr(diffusers.schedulers, name)


def ours(name: str) -> type:
    """fastdiff's class of a name; skips the test where there is none."""
    classes = pytest.importorskip("fastdiff.diffusers").CLASSES
    if name not in classes:
        pytest.skip(f"fastdiff.diffusers has no {name}")
    return classes[name]


def default(name: str, steps: int = 10, **more: Any) -> Case:
    """A class at its default configuration."""
    timesteps: dict[str, Any] = {"num_inference_steps": steps}
    if name == "SCMScheduler" and steps != 2:
        timesteps["intermediate_timesteps"] = None
    if name == "RePaintScheduler":
        timesteps |= {"jump_length": 3, "jump_n_sample": 2}
    config = {k: c[0] for k, c in PARTICULAR.get(name, {}).items() if k.startswith("stage")}
    if name == "HeliosDMDScheduler":
        more = {"shape": (2, 3, 2, 4, 4), **more}
    if name.startswith("KDPM2"):
        config["num_train_timesteps"] = 100
    return Case(name, config, timesteps, **more)


def draw(name: str, seed: int) -> Case:
    """A random case of a class; seed 0 is the default configuration with 10 steps."""
    if seed == 0:
        return default(name)
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    base = default(name, round(50 ** rng.random()))
    known = inspect.signature(theirs(name).__init__).parameters
    table = {**SHARED, **PARTICULAR.get(name, {})}
    config = dict(base.config)
    for option, choices in table.items():
        if option in known and option not in config and rng.random() < 0.7:
            config[option] = _choice(rng, choices)
    spacings = [SKIP, SKIP, *(s for s in SPACINGS if s in known)]
    if (spacing := _choice(rng, spacings)) is not SKIP:
        config[spacing] = True
    if config.get("use_dynamic_shifting") and "use_flow_sigmas" in known:
        config = {k: v for k, v in config.items() if k not in SPACINGS} | {"use_flow_sigmas": True}
    _sensible(config, known)
    step = {k: _choice(rng, v) for k, v in STEP.get(name, {}).items() if rng.random() < 0.6}
    shape = _choice(rng, [(2, 3, 16), (2, 4, 6, 6), (1, 4, 6, 6), (2, 3, 2, 4, 4)])
    if str(config.get("variance_type")).startswith("learned") and name.startswith("DPM"):
        shape = (2, 3, 6, 6)  # these take the first three channels of six, whatever the sample has
    if name == "HeliosDMDScheduler":
        shape = (2, 3, 2, 4, 4)
    if step.pop("per_token", False):
        step, shape = {"per_token": True}, (2, 16, 3)
    timesteps = _drawn_timesteps(name, config, base, rng)
    begin = 0 if rng.random() < 0.75 or name in NO_IMG2IMG else int(rng.integers(1, 10))
    generators = _choice(rng, ["one", "one", "list", "global"])
    return Case(name, config, timesteps, step, shape, begin, bool(rng.random() < 0.5), generators, seed)


def _sensible(config: dict[str, Any], known: Mapping[str, Any]) -> None:
    """What diffusers refuses, or answers with NaN, made rarer."""
    prediction = config.get("prediction_type", getattr(known.get("prediction_type"), "default", None))
    if config.get("use_flow_sigmas") or (prediction == "flow_prediction" and "use_flow_sigmas" in known):
        config |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        for spacing in SPACINGS[:-1]:
            config.pop(spacing, None)
    elif config.get("rescale_betas_zero_snr") and prediction == "epsilon":
        config["prediction_type"] = "v_prediction"
    if config.get("shift_terminal") and "use_flow_sigmas" in known and not config.get("use_flow_sigmas"):
        del config["shift_terminal"]
    noise_steps = config.get("algorithm_type") in ("dpmsolver", "sde-dpmsolver") or not config.get(
        "predict_x0", True
    )
    if "final_sigmas_type" in known and (noise_steps or config.get("solver_type") == "bh1"):
        config["final_sigmas_type"] = "sigma_min"
    if config.get("prediction_type") == "flow_prediction" and "use_flow_sigmas" in known:
        data = {"predict_x0": True, "algorithm_type": "data_prediction", "time_shift_type": "exponential"}
        if "solver_order" in known and config.get("algorithm_type") not in (None, "deis"):
            data["algorithm_type"] = config["algorithm_type"].removesuffix("++") + "++"
        config |= {k: v for k, v in data.items() if k in config}
    if "sde" in str(config.get("algorithm_type")) and config.get("solver_order") == 3:
        config["solver_order"] = 2
    if config.get("prediction_type") != "epsilon" and str(config.get("variance_type")).startswith("learned"):
        if "algorithm_type" in known:
            del config["variance_type"]


def _choice(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _drawn_timesteps(
    name: str, config: dict[str, Any], base: Case, rng: np.random.Generator
) -> dict[str, Any]:
    """Arguments of set_timesteps: a number of steps, or at times custom timesteps or sigmas."""
    known = inspect.signature(theirs(name).set_timesteps).parameters
    found = dict(base.timesteps)
    steps = found["num_inference_steps"]
    if config.get("use_dynamic_shifting"):
        found["mu"] = float(rng.uniform(0.5, 1.15))
    if name == "PNDMScheduler" and not config.get("skip_prk_steps"):
        found["num_inference_steps"] = max(4, steps)
    custom = [key for key in ("timesteps", "sigmas") if key in known and name not in NO_CUSTOM]
    if bool(config.get("use_flow_sigmas")) != (name == "UniPCMultistepScheduler"):
        custom = [
            key for key in custom if "use_flow_sigmas" not in inspect.signature(theirs(name)).parameters
        ]
    if name.startswith("LTX"):
        custom = ["sigmas"]
    if custom and rng.random() < 0.25:
        for spacing in SPACINGS[:-1]:
            config.pop(spacing, None)
        key = _choice(rng, custom)
        values = _custom(name, key, steps, rng)
        if values is not None:
            found = {k: v for k, v in found.items() if k == "mu"} | values
    return found


def _custom(name: str, key: str, steps: int, rng: np.random.Generator) -> dict[str, Any] | None:
    """Custom timesteps or sigmas as the class takes them; None where it takes none."""
    falling = np.sort(rng.uniform(0.02, 1.0, steps))[::-1]
    if name == "SCMScheduler":
        points = [*(1.57 * falling).tolist(), 0.0]
        return {"num_inference_steps": steps, "timesteps": points, "max_timesteps": None,
                "intermediate_timesteps": None}  # fmt: skip
    if name == "DDPMWuerstchenScheduler":
        return {"timesteps": [*falling.tolist(), 0.0]}
    if key == "sigmas" and name.startswith("EDM"):
        return {"sigmas": torch.linspace(0, 1, steps + 1) ** 1.5}
    if key == "sigmas" and name == "EulerDiscreteScheduler":
        return {"sigmas": [*(14.0 * falling**3).tolist(), 0.0]}
    if key == "sigmas" and name == "MiniMaxH3Scheduler":
        return {"sigmas": [*falling.tolist(), 0.0]}
    if key == "sigmas" and name == "UniPCMultistepScheduler":
        return {"sigmas": falling.copy()}
    if key == "sigmas":
        return {"sigmas": falling.tolist()}
    if "Flow" in name or name.startswith("LTX"):
        return {"timesteps": (1000 * falling).tolist()}
    top = 40 if name == "CMStochasticIterativeScheduler" else 1000
    chosen = np.sort(rng.choice(top, min(steps, top), replace=False))[::-1]
    return {"timesteps": chosen.tolist()}
