"""The CPU ops against what they replace, as ratios taken in one run; every figure stands beside a correctness check.

    python benchmarks/cpu.py [--only step loop norm noise] [--seconds 4] [--compile] [--out benchmarks/results/cpu.json]

step: solver_step_ against diffusers' DPMSolverMultistepScheduler.step(), for one step of 20 (order 2, data prediction).
loop: the same for the whole of fastdiff.sample() outside the model, which returns a tensor made before; against
    diffusers' steps alone, and against its set_timesteps() and steps, which do what sample() does.
norm: group_norm_silu against F.silu(F.group_norm(x)) and, with --compile, Inductor's version of it.
noise: add_noise against a copy that moves as many bytes.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

import fastdiff
from fastdiff import native, ops
from fastdiff.levels import DiscreteTime, clean
from fastdiff.plan import Plan
from fastdiff.samplers import SAMPLERS
from timing import RESULTS, Result, Timed, interleaved, save

STEPS = 20
LATENTS, IMAGES = (2, 4, 64, 64), (4, 3, 512, 512)
UNET = [(2, 320, 64, 64), (2, 640, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16), (2, 1280, 8, 8)]


class TheirLoop:
    """diffusers' scheduler walking its steps on an output that is always the same."""

    def __init__(self, x: Tensor, output: Tensor, steps: int = STEPS) -> None:
        self.x, self.output, self.steps = x, output, steps
        self.scheduler = DPMSolverMultistepScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", lower_order_final=True
        )
        self.prepare()

    def prepare(self) -> None:
        """step() keeps counters, which set_timesteps resets."""
        self.scheduler.set_timesteps(self.steps)

    @torch.no_grad()
    def run(self) -> Tensor:
        x = self.x
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.output, t, x, return_dict=False)[0]
        return x

    def whole(self) -> Tensor:
        """What a pipeline does for each picture."""
        self.prepare()
        return self.run()

    def plan(self) -> Plan:
        """The same steps as rows."""
        process = DiscreteTime(self.scheduler.alphas_cumprod.numpy())
        levels = [process.at(s) if s else clean(process) for s in self.scheduler.sigmas.tolist()]
        return Plan.build(SAMPLERS["dpmpp_2m"], levels)


class OurSteps:
    """The same steps by solver_step_ alone."""

    def __init__(self, plan: Plan, x: Tensor, output: Tensor) -> None:
        self.start, self.output = x, output
        self.table, self.rows = torch.tensor(plan.table), torch.arange(len(plan.table)).unbind(0)
        self.x, self.history = x.clone(), torch.zeros(plan.slots, *x.shape)

    def prepare(self) -> None:
        self.x.copy_(self.start)

    @torch.no_grad()
    def run(self) -> Tensor:
        for row in self.rows:
            ops.solver_step_(self.x, self.output, self.table, row, history=self.history)
        return self.x


def differ(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def checked(
    name: str, error: float, allowed: float, functions: dict[str, Timed], ours: str, seconds: float
) -> Result:
    """Times the functions, but only if the results they gave agree."""
    if not error <= allowed:
        raise SystemExit(f"{name}: results differ by {error:.2e}, more than {allowed:.0e}: nothing was timed")
    return Result(name, error, interleaved(functions, seconds=seconds), ours)


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def step_results(seconds: float) -> Iterator[Result]:
    for shape in (LATENTS, IMAGES):
        x, output = draw(shape), draw(shape) * 0.5
        theirs = TheirLoop(x, output)
        ours = OurSteps(theirs.plan(), x, output)
        error = differ(ours.run(), theirs.run())
        functions = {
            "solver_step_": Timed(ours.run, ours.prepare, STEPS),
            "diffusers step()": Timed(theirs.run, theirs.prepare, STEPS),
        }
        yield checked(f"one step {shape}", error, 1e-4, functions, "solver_step_", seconds)


def loop_results(seconds: float) -> Iterator[Result]:
    for shape, steps in itertools.product((LATENTS, IMAGES), (STEPS, 50)):
        x, output = draw(shape), draw(shape) * 0.5
        theirs = TheirLoop(x, output, steps)
        plan = theirs.plan()

        def ours(x: Tensor = x, output: Tensor = output, plan: Plan = plan) -> Tensor:
            return fastdiff.sample(lambda x_in, t: output, x, sampler=plan)

        error = differ(ours(), theirs.run())
        functions = {
            "fastdiff.sample": Timed(ours, units=steps),
            "diffusers step()": Timed(theirs.run, theirs.prepare, steps),
            "set_timesteps(), step()": Timed(theirs.whole, units=steps),
        }
        title = f"the loop of {steps}, one step {shape}"
        yield checked(title, error, 1e-4, functions, "fastdiff.sample", seconds)


def eager_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, groups, weight, bias))


def norm_result(
    x: Tensor, title: str, seconds: float, baselines: Mapping[str, Callable[..., Tensor]]
) -> Result:
    arguments = (x, 32, draw(x.shape[1:2], x.dtype), draw(x.shape[1:2], x.dtype))
    exact = eager_norm(*(a.double() if isinstance(a, Tensor) else a for a in arguments))
    error = differ(ops.group_norm_silu(*arguments), exact)
    target = torch.empty_like(x)
    functions = {"group_norm_silu": Timed(lambda: ops.group_norm_silu(*arguments))}
    functions |= {name: Timed(partial(function, *arguments)) for name, function in baselines.items()}
    functions["copy"] = Timed(lambda: target.copy_(x))
    allowed = 1e-5 if x.dtype == torch.float32 else 1e-2
    return checked(title, error, allowed, functions, "group_norm_silu", seconds)


def norm_results(seconds: float, baselines: Mapping[str, Callable[..., Tensor]]) -> Iterator[Result]:
    layouts = ("contiguous_format", "channels_last")
    for dtype, shape, layout in itertools.product((torch.float32, torch.bfloat16), UNET, layouts):
        x = draw(shape, dtype).to(memory_format=getattr(torch, layout))
        title = f"norm {shape} {str(dtype).removeprefix('torch.')} {layout.removesuffix('_format')}"
        yield norm_result(x, title, seconds / 4, baselines)


def noise_result(shape: tuple[int, ...], seconds: float) -> Result:
    x0, noise, level = draw(shape), draw(shape) + 1.0, torch.rand(shape[0])
    target = torch.empty(x0.numel() * 3 // 2)
    source = torch.cat([x0.flatten(), noise.flatten()])[: target.numel()]

    def eager() -> Tensor:
        return level.view(-1, 1, 1, 1) * x0 + 0.5 * noise

    functions = {
        "add_noise": Timed(lambda: ops.add_noise(x0, noise, level, 0.5)),
        "eager": Timed(eager),
        # reads and writes 1.5 times x0: as many bytes as add_noise moves, into memory that is there already
        "copy, same bytes": Timed(lambda: target.copy_(source)),
    }
    error = differ(ops.add_noise(x0, noise, level, 0.5), eager())
    return checked(f"add_noise {shape}", error, 1e-6, functions, "add_noise", seconds)


def noise_results(seconds: float) -> Iterator[Result]:
    for shape in (LATENTS, IMAGES):
        yield noise_result(shape, seconds)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=["step", "loop", "norm", "noise"])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each comparison")
    parser.add_argument(
        "--compile", action="store_true", help="compare with torch.compile too (slow to start)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu.json")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    options = parse()
    baselines: dict[str, Callable[..., Any]] = {"eager": eager_norm}
    if options.compile:
        torch._dynamo.config.recompile_limit = 64
        baselines["torch.compile"] = torch.compile(eager_norm, dynamic=False)
    groups: dict[str, Callable[[], Iterator[Result]]] = {
        "step": lambda: step_results(options.seconds),
        "loop": lambda: loop_results(options.seconds),
        "norm": lambda: norm_results(options.seconds, baselines),
        "noise": lambda: noise_results(options.seconds),
    }
    print(f"{'microseconds':<26}{'p20':>10}{'p50':>10}{'p80':>10}    times as long as ours")
    results = []
    for name in options.only or groups:
        for result in groups[name]():
            print("\n".join(result.lines()), flush=True)
            results.append(result)
    save(results, options.out, {"diffusers": diffusers.__version__, "isa": native.isa()})


if __name__ == "__main__":
    main()
