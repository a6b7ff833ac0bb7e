"""The ops under torch.func and forward-mode differentiation, which give what PyTorch's own operations give."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward

from fastdiff import ops, reference
from solver_step_cases import FULL, INDEX, make_table

TABLE = make_table(**FULL | {"call": 1.0})
SHAPE = (2, 4, 3, 5)
NOTHING = torch.empty(SHAPE)
SEEDS = torch.tensor([3, 4])


def in_place(x, output):
    after, history, shown = x.clone(), torch.zeros(2, *x.shape) + x, 0 * x
    step = {"uncond": output + 1, "anchor": x * 1, "history": history, "noise": x, "input": shown}
    ops.solver_step_(after, output, TABLE, INDEX, **step)
    return torch.stack([after, step["anchor"], history[1], shown])


def stepped(x, output):
    others = {"uncond": output + 1, "anchor": x, "history": [x, output, x], "noise": x}
    return torch.stack(ops.solver_step(x, output, TABLE, INDEX, **others))


def reference_steps(x, output):
    others = {"uncond": output + 1, "anchor": x, "history": [x, output, x], "noise": x}
    return torch.stack(reference.solver_step(x, output, TABLE, INDEX, **others))


def reference_in_place(x, output):
    others = {"uncond": output + 1, "anchor": x, "history": [x, x, x], "noise": x}
    step = reference.solver_step(x, output, TABLE, INDEX, **others)
    return torch.stack([step.x, step.x, step.value, step.input])


def mixed(x, noise, alpha=0.3, sigma=0.9, velocity=False):
    levels = torch.tensor([alpha]), torch.tensor([sigma])
    x, _, target, _ = reference.q_sample(x, noise, *levels, None, None, 0, velocity)
    return torch.stack([x, target]) if velocity else x


def counted(x):
    return ops.randn(x.shape, seeds=SEEDS)


CALLS = {
    "add_noise": (lambda x, n: ops.add_noise(x, n, 0.3, 0.9), mixed),
    "q_sample": (lambda x, n: ops.q_sample(x, 0.3, 0.9, noise=n).x, mixed),
    "velocity": (
        lambda x, n: torch.stack(ops.q_sample(x, 0.3, 0.9, noise=n, velocity=True)[::2]),
        lambda x, n: mixed(x, n, velocity=True),
    ),
    "seeds": (
        lambda x, n: ops.q_sample(x, 0.3, 0.9, seeds=SEEDS).x * n,
        lambda x, n: mixed(x, counted(NOTHING)) * n,
    ),
    "seeds, velocity": (
        lambda x, n: torch.stack(ops.q_sample(x, 0.3, 0.9, seeds=SEEDS, velocity=True)[::2]) * n,
        lambda x, n: mixed(x, counted(NOTHING), velocity=True) * n,
    ),
    "group_norm_silu": (
        lambda x, n: ops.group_norm_silu(x, 2, scale=n[:, :, 0, 0]),
        lambda x, n: reference.group_norm_silu(x, 2, None, None, 1e-5, scale=n[:, :, 0, 0]),
    ),
    "solver_step": (stepped, reference_steps),
    "solver_step_": (in_place, reference_in_place),
    "dynamic_bound": (
        lambda x, o: ops.dynamic_bound(x, o, TABLE, INDEX, uncond=x + 1, quantile=0.8),
        lambda x, o: reference.dynamic_bound(x, o, TABLE, INDEX, x + 1, None, 0.8, float("inf")),
    ),
    "rescale_gain": (
        lambda x, o: ops.rescale_gain(o, x, TABLE, INDEX, rescale=0.7),
        lambda x, o: reference.rescale_gain(o, x, TABLE, INDEX, 0.7),
    ),
}


@pytest.fixture(params=CALLS)
def call(request):
    """An op and its formula; the op called before, so that its shortest way is open."""
    function, formula = CALLS[request.param]
    with torch.no_grad():
        function(torch.randn(SHAPE), torch.randn(SHAPE))
    return request.param, function, formula


def draw(generator, *shape):
    return [torch.randn(*shape, *SHAPE, generator=generator) for _ in range(4)]


def test_jvp(call, generator):
    _, function, formula = call
    x, other, *tangents = draw(generator)
    actual = torch.func.jvp(function, (x, other), tuple(tangents))
    torch.testing.assert_close(actual, torch.func.jvp(formula, (x, other), tuple(tangents)))
    assert actual[1].abs().max() > 0


@pytest.mark.parametrize("recording", [True, False])
def test_dual_tensors(call, recording, generator):
    _, function, formula = call
    x, other, *tangents = draw(generator)
    with forward.dual_level(), torch.set_grad_enabled(recording):
        duals = [forward.make_dual(*pair) for pair in zip((x, other), tangents, strict=True)]
        actual, expected = (forward.unpack_dual(f(*duals)) for f in (function, formula))
        torch.testing.assert_close(tuple(actual), tuple(expected))


def test_grad_and_vjp(call, generator):
    name, function, formula = call
    x, other, *_ = draw(generator)
    if name == "solver_step_":
        with pytest.raises(ValueError, match="requires grad: use solver_step"):
            torch.func.grad(lambda x: function(x, other).square().sum())(x)
        return
    actual, expected = (
        torch.func.grad(lambda *both, f=f: f(*both).square().sum(), argnums=(0, 1))(x, other)
        for f in (function, formula)
    )
    torch.testing.assert_close(actual, expected)


def test_vmap(call, generator):
    _, function, _ = call
    stacks = draw(generator, 3)[:2]
    expected = torch.stack([function(*pair) for pair in zip(*stacks, strict=True)])
    torch.testing.assert_close(torch.vmap(function)(*stacks), expected)


def test_a_tangent_the_step_overwrites(generator):
    """In place, x takes the tangent of x_next: none if nothing that the step reads has one."""
    x, output, *tangents = draw(generator)
    table = make_table(a=0.0, p=0.0, q=1.0, w=1.0, c0=1.0)
    with forward.dual_level():
        x = forward.make_dual(x.clone(), tangents[0])
        ops.solver_step_(x, output, table, INDEX)
        primal, tangent = forward.unpack_dual(x)
        torch.testing.assert_close(primal, output)
        assert tangent is None or not tangent.any()


def test_vmap_over_rows(generator):
    x, output, *_ = draw(generator)
    table = torch.cat([make_table(p=0.3, q=0.5, w=1.0, c0=0.5), make_table(p=0.1, q=0.7, w=1.0, c0=0.5)])
    rows = torch.tensor([1, 4])
    for one in (
        lambda row: ops.solver_step(x, output, table, row).x,
        lambda row: ops.dynamic_bound(x, output, table, row, uncond=x),
        lambda row: ops.rescale_gain(output, x, table, row, rescale=0.7),
    ):
        torch.testing.assert_close(torch.vmap(one)(rows), torch.stack([one(row) for row in rows]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_batched_gradients(layout, generator):
    """Jacobians by autograd.grad(is_grads_batched=True), whose gradients may be expanded or laid out anyhow."""
    x, other, *_ = draw(generator)
    x = x.contiguous(memory_format=layout).requires_grad_()
    y = ops.group_norm_silu(x, 2)
    for grads in (torch.ones(()).expand(3, *SHAPE), torch.stack([other, -other, 2 * other])):
        (actual,) = torch.autograd.grad(y, x, grads, is_grads_batched=True, retain_graph=True)
        for got, grad in zip(actual, grads, strict=True):
            torch.testing.assert_close(got, torch.autograd.grad(y, x, grad, retain_graph=True)[0])
