"""torch.export of every op with a batch of any size: the exported program against the op called eagerly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff import ops
from solver_step_cases import FULL, INDEX, make_table

TABLE = make_table(**FULL)
SIMPLE = make_table(q=0.5, w=1.0, c0=0.5, g=3.0, g_uncond=-2.0, n=0.3)
SEEDS = torch.arange(7)


def in_place(
    x: Tensor, other: Tensor, uncond: Tensor, noise: Tensor, ring: Tensor, seeds: Tensor
) -> tuple[Tensor, ...]:
    """From a source into a fresh state, with every buffer."""
    after, anchor, history = torch.empty_like(x), x.clone(), ring.clone()
    shown = x.new_empty((2 * x.shape[0], *x.shape[1:]), dtype=torch.float16)
    ops.solver_step_(
        after, other, TABLE, INDEX, uncond=uncond, anchor=anchor, history=history, noise=noise, source=x, input=shown
    )  # fmt: skip
    return after, anchor, history, shown


def norm(x: Tensor, *_: Tensor) -> Tensor:
    return ops.group_norm_silu(x, 2, torch.full((4,), 1.5), torch.ones(4))


CALLS: dict[str, Callable[..., Any]] = {
    "group_norm_silu": norm,
    "add_group_norm_silu": lambda x, other, *_: ops.add_group_norm_silu(x, other, 2),
    "add_noise": lambda x, other, *_: ops.add_noise(x, other, 0.8, 0.6),
    "add_noise, a level a sample": lambda x, other, *_: ops.add_noise(x, other, x[:, 0, 0, 0], x[:, 0, 0, 1]),
    "q_sample": lambda x, other, *_: ops.q_sample(x, 0.8, 0.6, noise=other, velocity=True),
    "q_sample of seeds": lambda x, *rest: ops.q_sample(x, 0.8, 0.6, seeds=rest[-1]),
    "randn": lambda x, *rest: ops.randn(x.shape, seeds=rest[-1]),
    "solver_step": lambda x, other, uncond, noise, ring, _: ops.solver_step(
        x, other, TABLE, INDEX, uncond=uncond, anchor=x, history=list(ring), noise=noise, doubled=True,
        input_dtype=torch.bfloat16,
    ),
    "solver_step of seeds": lambda x, other, uncond, *rest: ops.solver_step(
        x, torch.cat([other, uncond]), SIMPLE, INDEX, seeds=rest[-1]
    ),
    "solver_step_": in_place,
    "dynamic_bound": lambda x, other, uncond, *_: ops.dynamic_bound(x, other, TABLE, INDEX, uncond=uncond),
    "rescale_gain": lambda x, other, uncond, *_: ops.rescale_gain(other, uncond, TABLE, INDEX, rescale=0.7),
}  # fmt: skip


class Module(torch.nn.Module):
    """What torch.export takes: x, other, uncond, noise: [B, 4, 6, 5]; ring: [3, B, 4, 6, 5]; seeds: [B]."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(
        self, x: Tensor, other: Tensor, uncond: Tensor, noise: Tensor, ring: Tensor, seeds: Tensor
    ) -> Any:
        made = self.call(x, other, uncond, noise, ring, seeds)
        return tuple(made) if isinstance(made, tuple) else made


def inputs(batch: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)
    images = [torch.randn(batch, 4, 6, 5, generator=generator) for _ in range(4)]
    return (*images, torch.randn(3, batch, 4, 6, 5, generator=generator), SEEDS[:batch])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_any_batch(name: str, strict: bool) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    dynamic = [{0: batch}] * 4 + [{1: batch}, {0: batch}]
    module = Module(CALLS[name])
    exported = torch.export.export(module, inputs(3), dynamic_shapes=tuple(dynamic), strict=strict).module()
    for size in (3, 1, 7):
        given = inputs(size)
        found, expected = exported(*given), module(*given)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, check_stride=True)
