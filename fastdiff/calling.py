"""How the executor calls a model: times, conditioning, and the two branches of classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.guidance import Guidance
from fastdiff.ops._remembered import remembered
from fastdiff.plan import Plan

Model = Callable[..., Tensor]
PLAIN = (str, int, float, bool, type(None))


class Caller:
    """One run's calls of model(x_in, t, **conditioning), row by row; t: float32 [batch], x_in: [batch, ...].

    With guidance in a doubled batch, x_in and t hold the conditional images first, then the unconditional ones.
    """

    def __init__(
        self, model: Model, plan: Plan, x: Tensor, conditioning: Mapping[str, Any], guidance: Guidance | None
    ) -> None:
        self.model = model
        self.images = len(x)
        self.conditioning = dict(conditioning)
        self.guided = (
            [False] * len(plan.rows) if guidance is None else [w[1] != 0.0 for w in guidance.weights(plan)]
        )
        self.doubled = guidance is not None and guidance.doubled and any(self.guided)
        self.unconditional = self.conditioning | dict(guidance.unconditional if guidance else {})
        if guidance is not None and any(self.guided) and not guidance.unconditional:
            raise ValueError(
                "guidance needs its unconditional branch: Guidance(scale, unconditional={name: value})"
            )
        if self.doubled:
            self.both = {
                name: self._joined(name, self.conditioning.get(name), uncond)
                for name, uncond in self.unconditional.items()
            }
        self.times = _times(plan, self.images, x.device)
        self.doubled_times = _times(plan, 2 * self.images, x.device) if self.doubled else ()

    def __call__(self, i: int, x_in: Tensor) -> tuple[Tensor, Tensor | None]:
        """The model's outputs for row i: (conditional or only, unconditional), each [B, ...]; or (both, None), with
        both [2B, ...], conditional first."""
        time = self.times[i]
        if self.doubled and self.guided[i]:
            return self._call(x_in, self.doubled_times[i], self.both), None
        if not self.guided[i]:
            return self._call(x_in[: self.images] if self.doubled else x_in, time, self.conditioning), None
        return self._call(x_in, time, self.conditioning), self._call(x_in, time, self.unconditional)

    def _call(self, x_in: Tensor, time: Tensor, conditioning: Mapping[str, Any]) -> Tensor:
        output = self.model(x_in, time, **conditioning)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the model returned {type(output).__name__}, not a tensor: wrap it, as in "
                "lambda x, t, **kw: unet(x, t, **kw).sample"
            )
        if output.shape != x_in.shape:
            raise ValueError(
                f"the model returned shape {list(output.shape)} for an input of {list(x_in.shape)}"
            )
        return output

    def _joined(self, name: str, cond: Any, uncond: Any) -> Any:
        """The conditioning of both branches as one batch, conditional first; dicts, lists and tuples are entered."""
        batched = [isinstance(c, Tensor) and c.dim() > 0 and len(c) == self.images for c in (cond, uncond)]
        if all(batched):
            return torch.cat([cond, uncond])
        if isinstance(cond, Mapping) and isinstance(uncond, Mapping) and cond.keys() == uncond.keys():
            pairs = {key: self._joined(f"{name}[{key!r}]", cond[key], uncond[key]) for key in cond}
            return cond if all(pairs[key] is cond[key] for key in cond) else pairs
        if isinstance(cond, (list, tuple)) and type(cond) is type(uncond) and len(cond) == len(uncond):
            items = [self._joined(f"{name}[{i}]", *pair) for i, pair in enumerate(zip(cond, uncond))]
            return cond if all(a is b for a, b in zip(items, cond)) else type(cond)(items)
        if cond is uncond or (isinstance(cond, PLAIN) and isinstance(uncond, PLAIN) and cond == uncond):
            return cond
        raise ValueError(
            f"conditioning {name} cannot be joined for a doubled batch: give tensors of length {self.images} in both "
            "branches, or use Guidance(..., doubled=False)"
        )


def _times(plan: Plan, images: int, device: torch.device) -> tuple[Tensor, ...]:
    """The model's time of each row for each image: float32 [images]."""
    times, rows = _remembered_times(plan, images, device)
    if times._version:  # a model wrote to its t
        _remembered_times.cache_clear()
        times, rows = _remembered_times(plan, images, device)
    return rows


@remembered(32)
def _remembered_times(plan: Plan, images: int, device: torch.device) -> tuple[Tensor, tuple[Tensor, ...]]:
    # By numpy: torch.Tensor.repeat wakes torch's threads, which costs more than all else before the first call.
    times = np.repeat(np.array(plan.times, dtype=np.float32)[:, None], images, axis=1)
    with torch.inference_mode(False):  # outside it, for runs that are not in it
        table = torch.from_numpy(times).to(device)
        return table, table.unbind(0)
