"""torch.compile where nothing of fastdiff has run before: no choice of a backend may be made while tracing."""

from __future__ import annotations

import os
import subprocess
import sys

FIRST = """
import torch
from fastdiff import ops

x, seeds, index = torch.randn(2, 4, 8, 8), torch.tensor([3, 4]), torch.tensor(1)
table = torch.full((3, ops.WIDTH), 0.5, dtype=torch.float64)

def in_place(x):
    after, history = x.clone(), torch.zeros(2, *x.shape)
    anchor, shown = x + 1, torch.zeros_like(x)
    ops.solver_step_(after, x, table, index, uncond=-x, anchor=anchor, history=history, noise=x, input=shown)
    return after, anchor, history, shown

calls = {
    "add_noise": lambda x: ops.add_noise(x, x, 0.1, 0.5),
    "group_norm_silu": lambda x: ops.group_norm_silu(x, 2),
    "add_group_norm_silu": lambda x: ops.add_group_norm_silu(x, x, 2),
    "q_sample": lambda x: ops.q_sample(x, 0.1, 0.5, seeds=seeds, velocity=True),
    "q_sample of noise": lambda x: ops.q_sample(x, 0.1, 0.5, noise=x)[:2],
    "randn": lambda x: x + ops.randn(x.shape, seeds=seeds),
    "dynamic_bound": lambda x: ops.dynamic_bound(x, x, table, index, uncond=x + 1),
    "rescale_gain": lambda x: ops.rescale_gain(x, x + 1, table, index, rescale=0.7),
    "solver_step": lambda x: ops.solver_step(x, x, table, index, uncond=-x, anchor=x, history=[x, x, x], noise=x),
    "solver_step_": in_place,
}
compiled = {}
for name, call in calls.items():
    for grad in (False, True):
        if grad and name in ("solver_step_", "dynamic_bound"):
            continue  # one records nothing, the gradient of the other reads its row on the host
        torch.compiler.reset()
        given = x.clone().requires_grad_(grad)
        compiled[name, grad] = torch.compile(call, fullgraph=True, backend="aot_eager")(given)

def broken(x):
    y = ops.group_norm_silu(x, 2)
    torch._dynamo.graph_break()
    return y + ops.add_noise(x, x, 0.1, 0.5)

calls["broken"] = broken
torch.compiler.reset()
compiled["broken", False] = torch.compile(broken, backend="aot_eager")(x)
for (name, grad), made in compiled.items():
    told = lambda text: f"{name}, gradient {grad}: {text}"
    torch.testing.assert_close(made, calls[name](x), check_stride=True, msg=told)
    again = torch.compile(calls[name], backend="aot_eager")(x)  # now that the eager call has chosen
    torch.testing.assert_close(again, made)
"""


def test_every_op_compiles_as_the_first_of_its_process():
    done = subprocess.run(
        [sys.executable, "-c", FIRST], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
