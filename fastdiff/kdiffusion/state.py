"""What a run has between model calls: in buffers that every step reuses, or as new tensors that gradients flow through.

Arithmetic is float32 (float64 for float64); the model sees the dtype that x would have in k-diffusion, where a model's
output or the sigmas may raise it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.ops._remembered import remembered
from fastdiff.ops.stepper import row_numbers
from fastdiff.plan import Plan
from fastdiff.reference import compute_dtype


def state_of(plan: Plan, x: Tensor) -> State:
    """Of a run that starts at x: [B, ...], any float dtype and layout, which is not written to."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x is {kind}: pass a tensor of floats")
    if x.ndim < 1:
        raise ValueError("x has no dimensions: it must be [B, ...]")
    return (Recorded if torch.is_grad_enabled() else InPlace)(plan, x)


class State(ABC):
    """x: the state, float32 or float64; dtype: the one that k-diffusion's x would have."""

    def __init__(self, plan: Plan, x: Tensor) -> None:
        self.plan = plan
        self.dtype = x.dtype
        self.table = _table(plan, x.device)

    @property
    @abstractmethod
    def input(self) -> Tensor:
        """x in `dtype`, as the model sees it."""

    @abstractmethod
    def lend(self) -> Tensor:
        """The input, for one call of the model or of a callback; reclaim follows when that is over."""

    @abstractmethod
    def reclaim(self) -> None:
        """Leaves what was lent to whoever has kept it, the model's own output included."""

    @abstractmethod
    def take(self, row: int, output: Tensor | None, noise: Tensor | float | None) -> None:
        """Row number `row`. output, noise: like x, of any float dtype."""

    @abstractmethod
    def convert(self, dtype: torch.dtype) -> None:
        """Goes on in another dtype."""

    @abstractmethod
    def written(self) -> None:
        """Goes on from what was written to the input, at the beginning of a step."""

    def result(self) -> Tensor:
        """Where the run has arrived."""
        return self.input

    def settle(self, output: Tensor, sigmas: torch.dtype | None) -> None:
        """Takes the dtype that this output gives x, and the sigmas' if they are divided by."""
        dtype = self.dtype
        if output.dtype is not dtype:
            dtype = torch.promote_types(dtype, output.dtype)
        if sigmas is not None and sigmas is not dtype:
            dtype = torch.promote_types(dtype, sigmas)
        if dtype is not self.dtype:
            self.convert(dtype)
            self.dtype = dtype


class InPlace(State):
    """Nothing is allocated from step to step, unless a model keeps what it was called with."""

    def __init__(self, plan: Plan, x: Tensor) -> None:
        super().__init__(plan, x)
        computed = compute_dtype(x.dtype)
        self.x = _dense_like(x, computed).copy_(x)
        self.anchor = self.x.clone() if self.plan.needs_anchor else None
        self.ring = _ring(self.x, self.plan.slots) if self.plan.slots else None
        self.buffer = None if computed is x.dtype else _dense_like(self.x, x.dtype).copy_(x)
        self.step: ops.Stepper | None = None
        self.storage = self.input.untyped_storage()
        self.holders = 0

    @property
    def input(self) -> Tensor:
        return self.x if self.buffer is None else self.buffer

    def lend(self) -> Tensor:
        # Another tensor on the same memory, so that whoever keeps it is one more holder of that.
        self.holders = holders(self.storage)
        return self.input.detach()

    def reclaim(self) -> None:
        if 0 < holders(self.storage) <= self.holders:
            return
        if self.buffer is None:
            self.x = _dense_like(self.x, self.x.dtype).copy_(self.x)
        else:
            self.buffer = _dense_like(self.buffer, self.buffer.dtype).copy_(self.buffer)
        self._moved()

    def _moved(self) -> None:
        self.storage, self.step = self.input.untyped_storage(), None

    def take(self, row: int, output: Tensor | None, noise: Tensor | float | None) -> None:
        if self.step is None:
            self.step = ops.stepper(
                self.x, self.table, anchor=self.anchor, history=self.ring, input=self.buffer
            )
        self.step(row, output, None, None if noise is None else fitted(noise, self.x))

    def convert(self, dtype: torch.dtype) -> None:
        computed, before = compute_dtype(dtype), self.input
        if computed is not self.x.dtype:
            self.x = self.x.to(computed)
            self.anchor = None if self.anchor is None else self.anchor.to(computed)
            self.ring = None if self.ring is None else self.ring.to(computed)
        self.buffer = None if computed is dtype else _dense_like(self.x, dtype).copy_(before)
        self._moved()

    def written(self) -> None:
        if self.buffer is not None:
            self.x.copy_(self.buffer)
        if self.anchor is not None:
            self.anchor.copy_(self.x)


class Recorded(State):
    """Every step makes new tensors."""

    def __init__(self, plan: Plan, x: Tensor) -> None:
        super().__init__(plan, x)
        self.x = self.anchor = x.to(compute_dtype(x.dtype))
        self.history: list[Tensor] = []
        self.current = x

    @property
    def input(self) -> Tensor:
        return self.current

    def lend(self) -> Tensor:
        return self.current

    def reclaim(self) -> None:
        pass

    def take(self, row: int, output: Tensor | None, noise: Tensor | float | None) -> None:
        weights = self.plan.rows[row]
        self.history = self.history[weights.forget :]
        step = ops.solver_step(
            self.x, output, self.table, row_numbers(len(self.table), self.x.device)[row], anchor=self.anchor,
            history=self.history[:3], noise=None if noise is None else fitted(noise, self.x), input_dtype=self.dtype,
        )  # fmt: skip
        self.x, self.current = step.x, step.x if self.dtype is step.x.dtype else step.input
        if weights.call:
            self.history = [step.value, *self.history[:2]]
        if weights.accept:
            self.anchor = self.x

    def convert(self, dtype: torch.dtype) -> None:
        computed = compute_dtype(dtype)
        self.x, self.anchor = self.x.to(computed), self.anchor.to(computed)
        self.history = [value.to(computed) for value in self.history]

    def written(self) -> None:
        self.x = self.anchor = self.current.to(self.x.dtype)


def holders(storage: torch.UntypedStorage) -> int:
    """How many hold this memory; 0 where torch does not tell."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return 0 if count is None else int(count(storage._cdata))


def fitted(noise: Tensor | float, x: Tensor) -> Tensor:
    """A noise sampler's noise, which may be a number, in x's shape and dtype."""
    if not isinstance(noise, Tensor):
        noise = torch.as_tensor(noise)
    if noise.dtype is not x.dtype or noise.device != x.device:
        noise = noise.to(x.device, x.dtype)
    return noise if noise.shape == x.shape else noise.expand(x.shape)


@remembered(64)
def _table(plan: Plan, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # remembered beyond this run, as a tensor of inference mode must not be
        return torch.tensor(plan.table, device="cpu").to(device)


def _dense_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[*x.shape], laid out like x if that is dense, with the batch outermost."""
    dense = x if ops.is_dense(x) else x.new_empty(x.shape)
    strides = (x[:1].numel(), *dense.stride()[1:])  # one image's own stride may be anything
    with torch.inference_mode(False):  # a tensor of inference mode does not tell whether it was written to
        return torch.empty_strided(x.shape, strides, dtype=dtype, device=x.device)


def _ring(x: Tensor, slots: int) -> Tensor:
    return torch.empty_strided((slots, *x.shape), (x.numel(), *x.stride()), dtype=x.dtype, device=x.device)
