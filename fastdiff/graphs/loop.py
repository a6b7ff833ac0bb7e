"""The whole loop as graphs: the model's call and the fused step captured as one, replayed for each row of any plan.

What differs between rows and between plans lies in device memory: the table of weights, the times, the number of the
row, which the graph itself counts up, and the noise. So one capture serves every schedule and number of steps that
share what Python decided while it was captured: shapes, dtypes, how many stored values, which kind of noise.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.calling import Branches
from fastdiff.executor import Run, empty_like, ring
from fastdiff.graphs.cache import Cache
from fastdiff.graphs.inputs import Buffers, described, fill, like
from fastdiff.graphs.recorder import Replay, record, settings
from fastdiff.reference import WIDTH

ROWS = 64
"""Rows that the smallest table holds; a longer plan takes one of twice, four times... as many."""

Evaluated = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


class Loop:
    """Buffers at fixed addresses for one kind of run, and the graphs that work on them."""

    def __init__(self, run: Run, layout: Tensor) -> None:
        """layout: a tensor like run.x, laid out as the model's output is."""
        self.used = False
        self.replays: dict[tuple[bool, bool], tuple[Replay, Any]] = {}
        plan, images, branches = run.plan, len(run.x), run.call.branches
        with torch.inference_mode(False), torch.no_grad():  # kept for later runs, in that mode or not
            self.x = empty_like(layout, images, run.x.dtype)
            x = self.x
            self.input = None
            if run.needs_input():
                self.input = empty_like(x, images * (2 if run.call.doubled else 1), run.setting.dtype)
            self.anchor = torch.zeros_like(x) if plan.needs_anchor else None
            self.history = ring(x, plan.slots) if plan.slots else None
            # A kernel draws in contiguous order; for another layout the source draws, and the step is given the noise.
            draws = run.seeds is not None and x.is_contiguous()
            self.seeds = torch.zeros_like(run.seeds) if draws and run.seeds is not None else None
            self.noise = torch.zeros_like(x) if plan.stochastic and not draws else None
            self.known = {name: like(x) for name, given in run.known().items() if given is not None}
            self.table = torch.zeros(_capacity(run), WIDTH, dtype=torch.float64, device=x.device)
            self.times = torch.zeros(len(self.table), run.call.time_table.shape[1], device=x.device)
            self.time = torch.zeros_like(self.times[:1])
            self.index = torch.zeros((), dtype=torch.int64, device=x.device)
            self.conditioning = Buffers((branches.cond, branches.uncond, branches.both), x.device)
        self.branches = Branches(images, *self.conditioning.tree)

    @torch.no_grad()
    def load(self, run: Run) -> None:
        """Makes the buffers those of a run at its start."""
        rows = len(run.table)
        given = [run.x, run.table, run.call.time_table]
        kept = [self.x, self.table[:rows], self.times[:rows]]
        known = run.known()
        for name, buffer in self.known.items():
            tensor = known[name]
            assert tensor is not None
            given.append(tensor)
            kept.append(buffer)
        if self.seeds is not None and run.seeds is not None:
            given.append(run.seeds)
            kept.append(self.seeds)
        fill(kept, given)
        leaves: list[Tensor] = []
        described(_conditioning(run), leaves)
        self.conditioning.load(leaves)
        if self.anchor is not None:
            self.anchor.copy_(self.x)
        if self.input is not None:
            run.fill_input(self.input, self.x)
        self.index.zero_()

    def capture(self, run: Run, kind: tuple[bool, bool], cache: Cache[Loop]) -> None:
        """Captures what `replays` needs for a kind of row: (guided, only the model's call)."""
        guided, alone = kind
        self.load(run)

        def whole() -> None:
            self.advance(*self.evaluate(run, guided))

        def call() -> Evaluated:
            return self.evaluate(run, guided)

        self.replays[kind] = record(cache.recorder, cache.device, call if alone else whole)

    def walk(self, run: Run, cache: Cache[Loop]) -> Tensor:
        """The run on these buffers: one replay a row. Where a callback looks between the model and the step, the graph
        holds the model only; once a callback has changed the model, its calls are eager. Returns a new tensor."""
        self.load(run)
        stale = False
        for i, row in enumerate(run.plan.rows):
            guided = run.call.guided[i]
            if row.noise and self.noise is not None:
                self.noise.copy_(run.setting.source.step(self.x, row.span or (row.level, row.to), i))
            if not row.call:
                self.advance()
            elif not run.watched:
                replay, _ = self.replays[guided, False]
                replay()
                run.setting.watcher.count()
            else:
                outputs = self.evaluate(run, guided) if stale else self._replayed(guided)
                run.tell(i, self.x, *outputs)
                self.advance(*outputs)
                stale = cache.drop_stale() or stale
        return empty_like(run.x, len(run.x)).copy_(self.x)

    def evaluate(self, run: Run, guided: bool) -> Evaluated:
        """The model's call for the row that index numbers: output, uncond, gain, bound."""
        torch.index_select(self.times, 0, self.index.reshape(1), out=self.time)
        x_in = self.x if self.input is None else self.input
        output, uncond = self.branches.call(run.call.model, x_in, self.time[0], guided)
        gain, bound = run.factors(self.x, output, uncond, self.table, self.index, guided=guided)
        return output, uncond, gain, bound

    def advance(
        self,
        output: Tensor | None = None,
        uncond: Tensor | None = None,
        gain: Tensor | None = None,
        bound: Tensor | None = None,
    ) -> None:
        """The fused step of the row that index numbers, which then numbers the next."""
        ops.solver_step_(
            self.x, output, self.table, self.index, uncond=uncond, anchor=self.anchor, history=self.history,
            noise=self.noise, bound=bound, gain=gain, seeds=self.seeds, input=self.input, **self.known,
        )  # fmt: skip
        self.index.add_(1)

    def _replayed(self, guided: bool) -> Evaluated:
        replay, outputs = self.replays[guided, True]
        replay()
        evaluated: Evaluated = outputs
        return evaluated


def kinds(run: Run) -> set[tuple[bool, bool]]:
    """The kinds of row that a run replays."""
    return {(run.call.guided[i], run.watched) for i, row in enumerate(run.plan.rows) if row.call}


def key_of(run: Run) -> Hashable:
    """What two runs must have in common to share a Loop. Raises Unknown for conditioning that a graph cannot follow."""
    x, plan, setting = run.x, run.plan, run.setting
    rescale = None if setting.guidance is None else setting.guidance.rescale
    return (
        x.shape, x.stride(), x.dtype, setting.dtype, _capacity(run), plan.slots, plan.needs_anchor, run.needs_input(),
        plan.stochastic, run.seeds is not None, rescale, setting.threshold, tuple(run.known()),
        described(_conditioning(run), []), settings(x.device.type),
    )  # fmt: skip


def _conditioning(run: Run) -> tuple[Any, ...]:
    branches = run.call.branches
    return branches.cond, branches.uncond, branches.both


def _capacity(run: Run) -> int:
    return max(ROWS, 1 << (len(run.table) - 1).bit_length())
