"""The executor: walks a plan. Call the model, apply one row with one fused kernel, repeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff import ops, reference
from fastdiff.calling import Caller, Model
from fastdiff.events import Outputs, Watcher
from fastdiff.guidance import Guidance
from fastdiff.inpainting import Inpaint
from fastdiff.noise import CounterNoise, NoiseSource
from fastdiff.ops._remembered import remembered
from fastdiff.ops.stepper import row_numbers
from fastdiff.plan import Plan
from fastdiff.reference import COLUMNS
from fastdiff.thresholding import DynamicThreshold


@dataclass(frozen=True)
class Setting:
    """What stays the same over a run: the model, what it is called with, and how its outputs are used.

    inpaint: with its noise, in the state's shape and dtype (Inpaint.like)."""

    model: Model
    source: NoiseSource
    watcher: Watcher
    conditioning: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    guidance: Guidance | None = None
    threshold: DynamicThreshold | None = None
    inpaint: Inpaint | None = None


class Run:
    """One walk along a plan from x: [B, ...], float32 (or float64), which is not written to."""

    def __init__(self, plan: Plan, x: Tensor, setting: Setting) -> None:
        self.plan = plan
        self.x = x
        self.setting = setting
        self.call = Caller(setting.model, plan, x, setting.conditioning, setting.guidance)
        guidance = setting.guidance
        branches = None if guidance is None else (guidance.scale, guidance.interval)
        self.table = _table(plan, branches, x.device)
        # Python numbers of the rows, for what is computed outside the kernel: never read back from the device.
        self.watched = setting.watcher.callback is not None
        self.weights = (
            [dict(zip(COLUMNS, row)) for row in _rows(plan, branches).tolist()] if self.watched else []
        )
        self.index = row_numbers(len(self.table), x.device)
        self.seeds = _row_seeds(setting.source, x) if plan.stochastic else None

    def in_place(self) -> Tensor:
        """The loop for sampling: state, history and model input are buffers that every step reuses."""
        x = self.x.clone()
        x_in = self.first_input(x) if self.needs_input() else None
        step: ops.Stepper | None = None
        for i, row in enumerate(self.plan.rows):
            output, uncond = self.call(i, x if x_in is None else x_in) if row.call else (None, None)
            if step is None:
                if output is not None and output.stride() != x.stride() and ops.is_dense(output):
                    # The model works in another layout: take it, so that no step must convert.
                    x = empty_like(output, len(x), x.dtype).copy_(x)
                    x_in = None if x_in is None else self.first_input(x)
                step = self._stepper(x, x_in)
            gain, bound = self._before_step(i, x, output, uncond)
            step(i, output, uncond, self.noise(i, x), bound, gain)
        return x.detach() if x.stride() == self.x.stride() else empty_like(self.x, len(x)).copy_(x)

    def recorded(self) -> list[Tensor]:
        """The loop that keeps x after each row, the starting point first; gradients flow through it."""
        states, anchor, history = [self.x], self.x, list[Tensor]()
        x_in = (self.plan.input_scale * self.x).to(self.setting.dtype)
        x_in = torch.cat([x_in, x_in]) if self.call.doubled else x_in
        for i, row in enumerate(self.plan.rows):
            x, history = states[-1], history[row.forget :]
            output, uncond = self.call(i, x_in) if row.call else (None, None)
            gain, bound = self._before_step(i, x, output, uncond)
            step = ops.solver_step(
                x, output, self.table, self.index[i], uncond=uncond, anchor=anchor, history=history[:3],
                noise=self.noise(i, x), bound=bound, gain=gain, **self.known(),
                seeds=self.seeds if row.noise and x.is_contiguous() else None,
                input_dtype=self.setting.dtype, doubled=self.call.doubled,
            )  # fmt: skip
            states.append(step.x)
            x_in = step.input
            history = [step.value, *history] if row.call else history
            anchor = step.x if row.accept else anchor
        return states

    def needs_input(self) -> bool:
        """Whether the model's input differs from the state."""
        return self.plan.scales_input or self.call.doubled or self.setting.dtype != self.x.dtype

    def first_input(self, x: Tensor) -> Tensor:
        """A buffer for the model's input laid out like x, twice the batch if doubled, holding the first one."""
        x_in = empty_like(x, len(x) * (2 if self.call.doubled else 1), self.setting.dtype)
        self.fill_input(x_in, x)
        return x_in

    def fill_input(self, x_in: Tensor, x: Tensor) -> None:
        """The model's first input, in a buffer for it."""
        x_in.unflatten(0, (-1, len(x)))[:] = self.plan.input_scale * x

    def _stepper(self, x: Tensor, x_in: Tensor | None) -> ops.Stepper:
        """What takes the steps on x, with the anchor and the history that the plan needs."""
        anchor = x.clone() if self.plan.needs_anchor else None
        history = ring(x, self.plan.slots) if self.plan.slots else None
        # A kernel draws in contiguous order; for another layout the source draws, and the step is given the noise.
        seeds = self.seeds if x.is_contiguous() else None
        return ops.stepper(
            x, self.table, anchor=anchor, history=history, **self.known(), seeds=seeds, input=x_in
        )

    def known(self) -> dict[str, Tensor | None]:
        """What inpainting puts back, by the names of the step's arguments."""
        inpaint = self.setting.inpaint
        if inpaint is None:
            return {}
        return {"mask": inpaint.mask, "known": inpaint.image, "known_noise": inpaint.noise}

    def noise(self, i: int, x: Tensor) -> Tensor | None:
        row = self.plan.rows[i]
        if not row.noise or (self.seeds is not None and x.is_contiguous()):
            return None  # nothing to add, or the step draws it
        return self.setting.source.step(x, row.span or (row.level, row.to), i).to(x.dtype)

    def _before_step(
        self, i: int, x: Tensor, output: Tensor | None, uncond: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gain and bound of row i, where there are any; the watcher hears of the model call."""
        if output is None:
            return None, None
        gain, bound = self.factors(x, output, uncond, self.table, self.index[i], guided=self.call.guided[i])
        self.tell(i, x, output, uncond, gain, bound)
        return gain, bound

    def factors(
        self, x: Tensor, output: Tensor, uncond: Tensor | None, table: Tensor, index: Tensor, *, guided: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """What guidance rescale and dynamic thresholding make of a model's outputs: the step's gain and bound."""
        guidance, threshold = self.setting.guidance, self.setting.threshold
        gain = bound = None
        if guidance is not None and guidance.rescale and guided:
            gain = ops.rescale_gain(output, uncond, table, index, rescale=guidance.rescale).to(x.dtype)
        if threshold is not None:
            bound = ops.dynamic_bound(
                x, output, table, index, uncond=uncond, gain=gain, quantile=threshold.quantile,
                most=threshold.most,
            )  # fmt: skip
        return gain, bound

    def tell(
        self,
        i: int,
        x: Tensor,
        output: Tensor,
        uncond: Tensor | None,
        gain: Tensor | None,
        bound: Tensor | None,
    ) -> None:
        """The watcher hears of row i's model call."""
        watcher = self.setting.watcher
        if not self.watched:
            watcher.count()
            return
        cond, other = reference.branches(output, uncond, len(x))
        assert cond is not None
        watcher.see(self.plan.rows[i], Outputs(x, cond, other, self.weights[i], gain), bound)


def _row_seeds(source: NoiseSource, x: Tensor) -> Tensor | None:
    """Seeds from which the step draws its own noise: int64 [B] on x's device. None if the source draws it."""
    return source.seeds_on(x.device) if isinstance(source, CounterNoise) else None


def _rows(plan: Plan, branches: tuple[float, tuple[float, float]] | None) -> NDArray[np.float64]:
    """The plan's table, with the branches of a guidance of this scale and interval weighted."""
    return plan.table if branches is None else Guidance(branches[0], interval=branches[1]).table(plan)


@remembered(32)
def _table(plan: Plan, branches: tuple[float, tuple[float, float]] | None, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # remembered beyond this run, which a tensor of that mode must not be
        return torch.tensor(_rows(plan, branches), device="cpu").to(device)


def empty_like(like: Tensor, images: int, dtype: torch.dtype | None = None) -> Tensor:
    """[images, *like.shape[1:]], dense, laid out like `like` if that is."""
    dense = like if ops.is_dense(like) else like.contiguous()
    strides = (
        like[:1].numel(),
        *dense.stride()[1:],
    )  # the batch outermost: its own stride is anything for one image
    return torch.empty_strided(
        (images, *like.shape[1:]), strides, dtype=dtype or like.dtype, device=like.device
    )


def ring(x: Tensor, slots: int) -> Tensor:
    """A history of `slots` values laid out like x: [slots, *x.shape]."""
    return torch.empty_strided((slots, *x.shape), (x.numel(), *x.stride()), dtype=x.dtype, device=x.device)
