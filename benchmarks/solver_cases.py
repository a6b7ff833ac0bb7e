"""The solver step's cases for any device: a guided row in place, and what is computed before it."""

from __future__ import annotations

import torch
from torch import Tensor

from cases import Image
from fastdiff import ops, reference
from timing import Case, Timed, difference, draw

WEIGHTS = {"p": 1.1, "q": -0.4, "lo": -torch.inf, "hi": torch.inf, "w": 1.0, "a": 0.8, "c0": 0.3, "c1": -0.1}
WEIGHTS |= {"k": 0.9, "g": 7.5, "g_uncond": -6.5, "call": 1.0, "accept": 1.0, "alpha": 1.0}


class Row:
    """One row of a second-order guided step and the tensors it works on; the model's dtype is the image's."""

    def __init__(self, image: Image) -> None:
        device = image.device
        values = [[WEIGHTS.get(name, 0.0) for name in ops.COLUMNS]]
        self.table = torch.tensor(values, dtype=torch.float64, device=device)
        self.index = torch.tensor(0, device=device)
        self.start = draw(image.shape, device=device)
        self.output = torch.cat([draw(image.shape, image.dtype, device, seed=s) for s in (1, 2)])
        self.history = draw(image.shape, device=device, seed=3)[None]
        self.x, self.ring = self.start.clone(), self.history.clone()
        self.input = torch.empty_like(self.output)

    def ours(self) -> Tensor:
        ops.solver_step_(self.x, self.output, self.table, self.index, history=self.ring, input=self.input)
        return self.x

    def composed(self, x: Tensor, history: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same in PyTorch, its weights numbers of the host."""
        w = WEIGHTS
        cond, uncond = self.output.to(x.dtype).chunk(2)
        denoised = w["p"] * x + w["q"] * (w["g"] * cond + w["g_uncond"] * uncond)
        x_next = w["a"] * x + w["c0"] * denoised + w["c1"] * history
        x_in = (w["k"] * x_next).to(self.output.dtype)
        return x_next, denoised, torch.cat([x_in, x_in])


def row_case(image: Image) -> Case:
    """A guided second-order step: both branches of the output, one value of history, the next input twice."""
    row = Row(image)
    error = difference(row.ours(), row.composed(row.start.double(), row.history[0].double())[0])
    functions = {
        "solver_step_": Timed(row.ours),
        "eager": Timed(lambda: row.composed(row.start, row.history[0])),
    }
    wide, narrow = row.start.nbytes, row.output.nbytes
    return Case(f"row {image}", functions, "solver_step_", error, 1e-5, 4 * wide + 2 * narrow)


def bound_case(image: Image) -> Case:
    """Dynamic thresholding's quantile, against torch.quantile of what the formula gives."""
    row = Row(image)

    def ours() -> Tensor:
        return ops.dynamic_bound(row.start, row.output, row.table, row.index, quantile=0.995)

    def theirs() -> Tensor:
        denoised = row.composed(row.start, row.history[0])[1]
        return torch.quantile(denoised.flatten(1).abs(), 0.995, dim=1).clamp(min=1.0)

    exact = reference.dynamic_bound(
        row.start.double(), row.output, row.table, row.index, None, None, 0.995, torch.inf
    )
    functions = {"dynamic_bound": Timed(ours), "torch.quantile": Timed(theirs)}
    moved = row.start.nbytes + row.output.nbytes
    return Case(f"bound {image}", functions, "dynamic_bound", difference(ours(), exact), 1e-5, moved)


def gain_case(image: Image) -> Case:
    """Guidance rescale's factor, against the two deviations by torch.std."""
    row = Row(image)

    def ours() -> Tensor:
        return ops.rescale_gain(row.output, None, row.table, row.index, rescale=0.7)

    def theirs() -> Tensor:
        cond, uncond = row.output.float().chunk(2)
        guided = WEIGHTS["g"] * cond + WEIGHTS["g_uncond"] * uncond
        return 0.7 * cond.flatten(1).std(1) / guided.flatten(1).std(1) + 0.3

    exact = reference.rescale_gain(row.output.double(), None, row.table, row.index, 0.7)
    functions = {"rescale_gain": Timed(ours), "torch.std": Timed(theirs)}
    return Case(
        f"gain {image}", functions, "rescale_gain", difference(ours(), exact), 1e-5, row.output.nbytes
    )
