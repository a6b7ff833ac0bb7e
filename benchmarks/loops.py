"""The solver step and the whole loop, against diffusers' DPM++ 2M."""

from __future__ import annotations

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

import fastdiff
from fastdiff import ops
from fastdiff.levels import DiscreteTime, clean
from fastdiff.plan import Plan
from fastdiff.samplers import SAMPLERS
from shapes import Shape
from timing import Case, Timed, difference, draw

STEPS = 20


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
        self.scheduler.set_timesteps(self.steps, device=self.x.device)

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
    """The same steps in place, by the op or by a prepared step."""

    def __init__(self, plan: Plan, x: Tensor, output: Tensor) -> None:
        self.start, self.output = x, output
        self.table = torch.tensor(plan.table).to(x.device)
        self.rows = torch.arange(len(plan.table), device=x.device).unbind(0)
        self.x, self.history = x.clone(), torch.zeros(plan.slots, *x.shape, device=x.device)
        self.step = ops.stepper(self.x, self.table, history=self.history)

    def prepare(self) -> None:
        self.x.copy_(self.start)

    @torch.no_grad()
    def by_op(self) -> Tensor:
        for row in self.rows:
            ops.solver_step_(self.x, self.output, self.table, row, history=self.history)
        return self.x

    @torch.no_grad()
    def prepared(self) -> Tensor:
        for row in range(len(self.rows)):
            self.step(row, self.output)
        return self.x


def step_case(shape: Shape, device: str = "cpu") -> Case:
    """A step against diffusers' step(), each as often as there are steps."""
    x, output = draw(shape, device=device), draw(shape, device=device, seed=1) * 0.5
    theirs = TheirLoop(x, output)
    ours, exact = OurSteps(theirs.plan(), x, output), theirs.run()
    error = difference(ours.by_op(), exact)
    ours.prepare()
    error = max(error, difference(ours.prepared(), exact))
    functions = {
        "stepper": Timed(ours.prepared, ours.prepare, STEPS),
        "solver_step_": Timed(ours.by_op, ours.prepare, STEPS),
        "diffusers step()": Timed(theirs.run, theirs.prepare, STEPS),
    }
    # second order: x and the history are read and written, the output is read
    return Case(f"step {shape}", functions, "stepper", error, 1e-4, 5 * x.nbytes)


def loop_case(shape: Shape, steps: int, device: str = "cpu") -> Case:
    """All that fastdiff.sample does outside the model, which returns a tensor made before."""
    x, output = draw(shape, device=device), draw(shape, device=device, seed=1) * 0.5
    theirs = TheirLoop(x, output, steps)
    plan = theirs.plan()

    def ours() -> Tensor:
        return fastdiff.sample(lambda x_in, t: output, x, sampler=plan)

    functions = {
        "fastdiff.sample": Timed(ours, units=steps),
        "diffusers step()": Timed(theirs.run, theirs.prepare, steps),
        "set_timesteps(), step()": Timed(theirs.whole, units=steps),
    }
    error = difference(ours(), theirs.run())
    return Case(f"loop of {steps} {shape}", functions, "fastdiff.sample", error, 1e-4)
