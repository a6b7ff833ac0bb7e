"""A run: what is kept between the steps of one loop, and the one fused kernel that takes a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, is_inference_mode_enabled
from torch._C import _are_functorch_transforms_active, _len_torch_dispatch_stack

from fastdiff import backend, ops
from fastdiff.diffusers.plans import TracedPlan
from fastdiff.lazy_guidance import Weights, expect, parts
from fastdiff.ops import _checks
from fastdiff.ops.stepper import MovingStepper, moving_stepper
from fastdiff.plan import COLUMN

HALVES = (torch.float16, torch.bfloat16)
KEPT = 64
_direct: WeakKeyDictionary[TracedPlan, dict[Any, MovingStepper | None]] = WeakKeyDictionary()


def usual() -> bool:
    """Whether the C++ kernel may be called at once, and a tensor made now is one whose changes are counted."""
    return (
        backend.is_direct("solver_step")
        and not (
            _len_torch_dispatch_stack() or _are_functorch_transforms_active()
        )  # ops._remembered.ordinary
        and not is_inference_mode_enabled()
        and not _checks.forwards()
    )


class Images(NamedTuple):
    """What a step works on; given: another image that the caller passed to it."""

    output: Tensor
    sample: Tensor
    noise: Tensor | None
    given: Tensor | None


@dataclass(eq=False, slots=True)
class Run:
    """One loop over the steps of a plan.

    next: the step expected; place: where in scheduler.timesteps it is expected; options, memory: what the plan was
    found with; samples: those given, newest first; returned: the sample last returned, and its version; state: what
    that is a copy of, in float32 for a sample of lower precision; noise: last drawn, and in which row,
    where a corrector will want it; way: the short one, None before it was looked for, False where there is none; ways:
    those of guided steps; first, stride: addresses of the timesteps; fresh: the loop has not begun.
    """

    plan: TracedPlan
    next: int
    place: int | None = None
    options: dict[str, Any] | None = None
    memory: Any = None
    tables: dict[Any, tuple[Tensor, tuple[Tensor, ...]]] = field(default_factory=dict)
    ring: Tensor | None = None
    values: list[Tensor] = field(default_factory=list)
    samples: list[Tensor] = field(default_factory=list)
    state: Tensor | None = None
    returned: Tensor | None = None
    version: int = -1
    way: Any = None
    ways: dict[Weights, Any] = field(default_factory=dict)
    first: int = 0
    stride: int = 0
    fresh: bool = False
    noise: tuple[int, Tensor] | None = None

    @property
    def row(self) -> int:
        """The plan's row of the step expected."""
        return self.next - self.plan.begin

    def take(
        self, images: Images, bound_of: Any, dtype: torch.dtype, **blend: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The next sample, in `dtype`, from images.sample, which is not written to; and the bounds of its clamp.

        bound_of: (x, output, table, row, uncond) -> the bounds of dynamic thresholding, where the plan has it. blend:
        solver_step_'s mask, known and known_noise.
        """
        (output, uncond, weights), (_, sample, noise, given) = parts(images.output), images
        self.way = None if self.fresh else self.way  # the loop does not begin as the last one did
        row = self.row
        line = self.plan.lines[row]
        same = sample is self.returned and sample._version == self.version
        x = self._state(sample, same)
        folded = line.linked and same
        table, numbers = self.table(x.device, folded, weights)
        anchor = self._anchor(line.anchor, line.linked, x, given) if line.weight and not folded else None
        bound = bound_of(x, output, table, numbers[row], uncond) if line.dynamic else None
        if torch.is_grad_enabled() and (output.requires_grad or x.requires_grad or self._recorded()):
            blend["uncond"] = uncond
            following = self._functional(row, x, output, table, numbers[row], anchor, noise, bound, blend)
        else:
            following, rounded, ring = self._made(x, dtype)
            direct = (
                None if blend or (line.linked and not same) or not usual() else self.direct(x, dtype, weights)
            )
            made = (x, following, rounded, ring, anchor)
            if direct is None or direct(row, output, uncond, noise, bound, None, *made) is False:
                ops.solver_step_(
                    following, output, table, numbers[row], uncond=uncond, anchor=anchor, history=ring, noise=noise,
                    bound=bound, source=x, input=rounded, **blend,
                )  # fmt: skip
            return self.moved(x, following, rounded, noise), bound
        rounded = None if dtype == x.dtype else following.to(dtype)
        return self.moved(x, following, rounded, noise), bound

    def moved(self, x: Tensor, following: Tensor, rounded: Tensor | None, noise: Tensor | None) -> Tensor:
        """Notes that a step led from x to `following`, returned as it is or `rounded`."""
        returned = following if rounded is None else rounded
        if self.plan.reach:
            self.samples = [x, *self.samples[: self.plan.reach - 1]]
        self.state = None if following is returned else following
        self.noise = (self.row, noise) if self.plan.linked and noise is not None else None
        self.returned, self.version = returned, returned._version
        self.next += 1
        self.fresh = False
        self.place = None if self.place is None else self.place + 1
        if self.row == len(self.plan.lines):  # the loop is over: its images are the caller's alone
            self.ring = self.state = self.returned = self.noise = None
            self.values, self.samples = [], []
            expect(False)
        return returned

    def direct(self, x: Tensor, dtype: torch.dtype, weights: Weights = None) -> MovingStepper | None:
        """The kernel past PyTorch's dispatcher, for states like x and results of `dtype`, on the folded table; found
        once for a plan."""
        known = _direct.setdefault(self.plan, {})
        key = (x.shape, x.stride(), x.dtype, x.device, dtype, weights)
        if key not in known:
            if len(known) >= KEPT:
                known.clear()
            table, _ = self.table(x.device, True, weights)
            rounded = None if dtype == x.dtype and not self.plan.linked else torch.empty_like(x, dtype=dtype)
            ring = self.make_ring(x) if self.plan.ring else None
            known[key] = moving_stepper(x, table, history=ring, input=rounded)
        return known[key]

    def _made(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What a step writes: the next state, the same to return if that is another tensor, the history."""
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):  # else nobody could tell whether they were written to since
                return self._made(x, dtype)
        # A corrector needs its last result as it was, even where the caller writes into what was returned.
        apart = dtype != x.dtype or self.plan.linked
        rounded = torch.empty_like(x, dtype=dtype) if apart else None
        return torch.empty_like(x), rounded, self.make_ring(x) if self.plan.ring else None

    def table(
        self, device: torch.device, folded: bool, weights: Weights = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The plan on this device; weights: of the branches of guidance."""
        key = (self.plan, device, folded, weights)
        if key not in self.tables:
            if len(self.tables) >= KEPT:
                self.tables.clear()
            self.tables[key] = self.plan.on(device, folded=folded, weights=weights)
        return self.tables[key]

    def _state(self, sample: Tensor, same: bool) -> Tensor:
        """The sample at full precision: the state it was rounded from, if it is still what was returned, and the row
        is not one for the sample as the model saw it."""
        sample = sample if sample.is_contiguous() or ops.is_dense(sample) else sample.contiguous()
        if sample.dtype not in HALVES:
            return sample
        if same and self.state is not None and not self.plan.seen[self.row]:
            return self.state
        return sample.float()

    def _anchor(self, back: int, linked: bool, x: Tensor, given: Tensor | None) -> Tensor:
        if linked:
            anchor = self.state if self.state is not None else self.returned
        elif back < 0:
            anchor = given
        else:
            anchor = self.samples[back - 1]
        assert anchor is not None
        return anchor.to(x.dtype)

    def _recorded(self) -> bool:
        return any(tensor.requires_grad for tensor in (*self.values, *self.samples))

    def make_ring(self, x: Tensor) -> Tensor:
        """The ring of values, for states like x."""
        if self.ring is None:
            strides = (x.numel(), *x.stride())
            self.ring = torch.empty_strided(
                (self.plan.ring, *x.shape), strides, dtype=x.dtype, device=x.device
            )
            for slot, value in enumerate(self.values[: self.plan.ring]):
                self.ring[slot % self.plan.ring].copy_(value)
        return self.ring

    def _functional(
        self, number: int, x: Tensor, output: Tensor, table: Tensor, row: Tensor, anchor: Tensor | None,
        noise: Tensor | None, bound: Tensor | None, blend: dict[str, Any],
    ) -> Tensor:  # fmt: skip
        """The same with gradients: the values as a list, one for each slot."""
        slot = int(self.plan.table[number, COLUMN["slot"]])
        if self.ring is not None:
            self.values = [self.ring[i % self.plan.ring].clone() for i in range(slot)]
            self.ring = None
        self.values = self.values[:slot]
        step = ops.solver_step(
            x, output, table, row, anchor=anchor, history=self.values[::-1][:3], noise=noise, bound=bound,
            **blend,
        )  # fmt: skip
        self.values.append(step.value)
        return step.x
