"""Arguments of the wrong kind, at every door: what was given and what to pass, in one line."""

from __future__ import annotations

import pytest
import torch

from fastdiff import ops
from solver_step_cases import INDEX, make_table

X, TABLE = torch.zeros(2, 4, 3), make_table()


def step_(x=X, output=X, table=TABLE, index=INDEX, **options):
    ops.solver_step_(x.clone() if isinstance(x, torch.Tensor) else x, output, table, index, **options)


CASES = [
    (lambda: ops.q_sample(X, 0.5, 0.5, generator=3), "generator is 3: pass a torch.Generator, or integers as seeds"),
    (lambda: ops.group_norm_silu(X, 2.0), "num_groups is 2.0: pass an int"),
    (lambda: ops.group_norm_silu(X, None), "num_groups is None: pass an int"),
    (lambda: ops.add_noise(X[0, 0, 0], X[0, 0, 0], torch.ones(3), 0.5), r"alpha has shape \(3,\): x0 has no batch"),
    (lambda: step_(x=None), "x is a NoneType: pass a torch.Tensor"),
    (lambda: step_(output=3.0), "output is a float: pass a torch.Tensor"),
    (lambda: step_(table=None), r"table is a NoneType: pass a float64 tensor \[N, 22\]"),
    (lambda: step_(index=0), "index is 0: pass an int64 scalar tensor"),
    (lambda: step_(history=[X]), "history is a list: pass a torch.Tensor"),
    (lambda: step_(input=1), "input is a int: pass a torch.Tensor"),
    (lambda: step_(mask=1.0), "mask is a float: pass a torch.Tensor"),
    (lambda: step_(seeds=[1, 2]), "seeds is a list: pass an int64 tensor, one seed for each image"),
    (lambda: step_(table=make_table(n=0.5), seeds=torch.tensor([1])), r"must be int64 \[2\], one seed for each image"),
    (lambda: ops.solver_step(X, X, TABLE, 0), "index is 0: pass an int64 scalar tensor"),
    (lambda: ops.dynamic_bound(X, X, None, INDEX), "table is a NoneType"),
    (lambda: ops.rescale_gain(X, X, TABLE, 0, rescale=0.5), "index is 0"),
]  # fmt: skip


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(("call", "words"), CASES)
def test_wrong_kinds(call, words, gradients):
    step_()  # so that the shortest way is open
    with torch.set_grad_enabled(gradients), pytest.raises((TypeError, ValueError), match=words):
        call()
