"""How the executor calls a model: times, conditioning, and the two branches of classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.guidance import Guidance
from fastdiff.ops._remembered import remembered
from fastdiff.plan import Plan

Model = Callable[..., Tensor]
PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Branches:
    """What a model is called with beside x_in and t: without guidance and for the conditional branch `cond`, for the
    unconditional one `uncond`; or, where one call takes both (doubled), `both`, conditional first."""

    images: int
    cond: Mapping[str, Any]
    uncond: Mapping[str, Any] | None = None
    both: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls, conditioning: Mapping[str, Any], guidance: Guidance | None, images: int, *, guided: bool
    ) -> Branches:
        """For a run that is guided in some row, or in none. Raises ValueError where the branches do not fit."""
        cond = dict(conditioning)
        if guidance is None or not guided:
            return cls(images, cond)
        if not guidance.unconditional:
            raise ValueError(
                "guidance needs its unconditional branch: Guidance(scale, unconditional={name: value})"
            )
        uncond = cond | dict(guidance.unconditional)
        if not guidance.doubled:
            return cls(images, cond, uncond)
        both = {name: _joined(name, cond.get(name), value, images) for name, value in uncond.items()}
        return cls(images, cond, both=both)

    @property
    def doubled(self) -> bool:
        """Whether guided rows take one call with both branches."""
        return self.both is not None

    def call(self, model: Model, x_in: Tensor, time: Tensor, guided: bool) -> tuple[Tensor, Tensor | None]:
        """The model's outputs: (conditional or only, unconditional), each [B, ...]; or (both, None), with both
        [2B, ...], conditional first. x_in, time: [B, ...] and [B], or twice that where doubled."""
        if guided and self.both is not None:
            return _called(model, x_in, time, self.both), None
        if not guided or self.uncond is None:
            if self.doubled:
                x_in, time = x_in[: self.images], time[: self.images]
            return _called(model, x_in, time, self.cond), None
        return _called(model, x_in, time, self.cond), _called(model, x_in, time, self.uncond)


class Caller:
    """One run's calls of model(x_in, t, **conditioning), row by row; t: float32 [batch], x_in: [batch, ...].

    With guidance in a doubled batch, x_in and t hold the conditional images first, then the unconditional ones.
    """

    def __init__(
        self, model: Model, plan: Plan, x: Tensor, conditioning: Mapping[str, Any], guidance: Guidance | None
    ) -> None:
        self.model = model
        self.guided = (
            [False] * len(plan.rows) if guidance is None else [w[1] != 0.0 for w in guidance.weights(plan)]
        )
        self.branches = Branches.of(conditioning, guidance, len(x), guided=any(self.guided))
        self.doubled = self.branches.doubled
        self.time_table, self.times = _times(plan, len(x) * (2 if self.doubled else 1), x.device)

    def __call__(self, i: int, x_in: Tensor) -> tuple[Tensor, Tensor | None]:
        """The model's outputs for row i, as Branches.call gives them."""
        return self.branches.call(self.model, x_in, self.times[i], self.guided[i])


def _called(model: Model, x_in: Tensor, time: Tensor, conditioning: Mapping[str, Any]) -> Tensor:
    output = model(x_in, time, **conditioning)
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the model returned {type(output).__name__}, not a tensor: wrap it, as in "
            "lambda x, t, **kw: unet(x, t, **kw).sample"
        )
    if output.shape != x_in.shape:
        raise ValueError(f"the model returned shape {list(output.shape)} for an input of {list(x_in.shape)}")
    return output


def _joined(name: str, cond: Any, uncond: Any, images: int) -> Any:
    """The conditioning of both branches as one batch, conditional first; dicts, lists and tuples are entered."""
    batched = [isinstance(c, Tensor) and c.dim() > 0 and len(c) == images for c in (cond, uncond)]
    if all(batched):
        return torch.cat([cond, uncond])
    if isinstance(cond, Mapping) and isinstance(uncond, Mapping) and cond.keys() == uncond.keys():
        pairs = {key: _joined(f"{name}[{key!r}]", cond[key], uncond[key], images) for key in cond}
        return cond if all(pairs[key] is cond[key] for key in cond) else pairs
    if isinstance(cond, (list, tuple)) and type(cond) is type(uncond) and len(cond) == len(uncond):
        items = [_joined(f"{name}[{i}]", *pair, images) for i, pair in enumerate(zip(cond, uncond))]
        return cond if all(a is b for a, b in zip(items, cond)) else type(cond)(items)
    if cond is uncond or (isinstance(cond, PLAIN) and isinstance(uncond, PLAIN) and cond == uncond):
        return cond
    raise ValueError(
        f"conditioning {name} cannot be joined for a doubled batch: give tensors of length {images} in both "
        "branches, or use Guidance(..., doubled=False)"
    )


def _times(plan: Plan, images: int, device: torch.device) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The model's time of each row for each image: float32 [rows, images], and its rows."""
    times, rows = _remembered_times(plan, images, device)
    if times._version:  # a model wrote to its t
        _remembered_times.cache_clear()
        times, rows = _remembered_times(plan, images, device)
    return times, rows


@remembered(32)
def _remembered_times(plan: Plan, images: int, device: torch.device) -> tuple[Tensor, tuple[Tensor, ...]]:
    # By numpy: torch.Tensor.repeat wakes torch's threads, which costs more than all else before the first call.
    times = np.repeat(np.array(plan.times, dtype=np.float32)[:, None], images, axis=1)
    with torch.inference_mode(False):  # outside it, for runs that are not in it
        table = torch.from_numpy(times).to(device)
        return table, table.unbind(0)
