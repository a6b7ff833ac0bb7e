"""The gradient of solver_step: linear in everything, but for the clamp.

Weights stay tensors on the device, so a compiled backward needs no host synchronisation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.reference import COLUMNS, branches, per_sample

Gradients = tuple[Tensor | None, ...]
NAMES = (
    "x", "output", "table", "index", "uncond", "anchor", "h1", "h2", "h3", "noise", "bound", "gain",
    "mask", "known", "known_noise", "seeds",
)  # fmt: skip
KEPT = ("x", "output", "uncond", "bound", "gain", "mask", "table", "index")
UNUSED = (None, None)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keeps what the clamp and the gradients of bound and gain need. The table is data, not a parameter."""
    *tensors, _, ctx.doubled = inputs
    given = dict(zip(NAMES, tensors, strict=True))
    ctx.dtypes = {name: t.dtype for name, t in given.items() if t is not None}
    ctx.save_for_backward(*(given[name] for name in KEPT))


def backward(
    ctx: Any, grad_x: Tensor | None, grad_value: Tensor | None, grad_input: Tensor | None
) -> Gradients:
    """Gradients of the inputs, in the order of the schema."""
    x, output, uncond, bound, gain, mask, table, index = ctx.saved_tensors
    w = dict(zip(COLUMNS, table.index_select(0, index.reshape(1))[0].to(x.dtype).unbind(), strict=True))
    needs = dict(zip(NAMES, ctx.needs_input_grad, strict=False))
    total = grad_next(grad_x, grad_input, x, w["k"], ctx.doubled)
    found: dict[str, Tensor] = {}
    if mask is not None:
        kept = (1 - mask) * total
        found |= {"known": w["alpha"] * kept, "known_noise": w["sigma"] * kept}
        total = mask * total
    found |= {"x": w["a"] * total, "anchor": w["b"] * total, "noise": w["n"] * total}
    found |= {f"h{j}": w[f"c{j}"] * total for j in (1, 2, 3)}
    if output is not None:
        value = w["c0"] * total if grad_value is None else grad_value + w["c0"] * total
        found["x"] = found["x"] + w["u"] * value
        cond, other = branches(output, uncond, len(x))
        add_model_terms(found, w["w"] * value, w["f"] * total, w, x, cond, other, bound, gain)
        if cond is not output:
            found["output"] = torch.cat([found["output"], found["uncond"]])
    return (
        *(found[n].to(ctx.dtypes[n]) if needs[n] and n in found and n in ctx.dtypes else None for n in NAMES),
        *UNUSED,
    )


def grad_next(
    grad_x: Tensor | None, grad_input: Tensor | None, x: Tensor, k: Tensor, doubled: bool
) -> Tensor:
    """The gradient of x_next, from x_next itself and from the model's next input."""
    total = torch.zeros_like(x) if grad_x is None else grad_x
    if grad_input is None:
        return total
    wide = grad_input.to(x.dtype)
    if doubled:
        wide = wide[: len(x)] + wide[len(x) :]
    return total + k * wide


def weighed(weight: Tensor, term: Tensor) -> Tensor:
    """weight*term, 0 where the weight is: there the step did not read the term, which need not be finite."""
    return torch.where(weight != 0, weight * term, 0.0)


def add_model_terms(
    found: dict[str, Tensor],
    grad: Tensor,
    grad_guided: Tensor,
    w: dict[str, Tensor],
    x: Tensor,
    output: Tensor | None,
    uncond: Tensor | None,
    bound: Tensor | None,
    gain: Tensor | None,
) -> None:
    """Adds to `found` what flows through denoised, whose gradient is `grad`, and through F beside it."""
    assert output is not None
    mixed = weighed(w["g"], output.to(x.dtype))
    if uncond is not None:
        mixed = mixed + weighed(w["g_uncond"], uncond.to(x.dtype))
    guided = mixed if gain is None else per_sample(gain.to(x.dtype), x) * mixed
    data = weighed(w["p"], x) + weighed(w["q"], guided)
    if bound is None:
        grad = grad * ((data >= w["lo"]) & (data <= w["hi"]))
    else:
        limit = per_sample(bound.to(x.dtype), x)
        grad = grad * (data.abs() <= limit) / limit
        found["bound"] = -(grad * data / limit).flatten(1).sum(1)
    found["x"] = found["x"] + w["p"] * grad
    through = w["q"] * grad + grad_guided
    if gain is not None:
        found["gain"] = (through * mixed).flatten(1).sum(1)
        through = through * per_sample(gain.to(x.dtype), x)
    found["output"] = w["g"] * through
    found["uncond"] = w["g_uncond"] * through
