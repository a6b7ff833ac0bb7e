"""solver_step under autograd, opcheck, torch.compile, export and vmap."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from fastdiff import backend, ops
from solver_step_cases import FULL, INDEX, arguments, inpainting, make_table, seeds, vectors


def leaves(positional, keywords, dtype):
    tensors = [*positional, keywords["uncond"], keywords["anchor"], *keywords["history"], keywords["noise"]]
    return [t.to(dtype).detach().requires_grad_() for t in tensors]


def as_function(table, **options):
    def step(x, output, uncond, anchor, h1, h2, h3, noise, bound=None, gain=None):
        more = {
            "uncond": uncond,
            "anchor": anchor,
            "history": (h1, h2, h3),
            "noise": noise,
            "bound": bound,
            "gain": gain,
        }
        return tuple(ops.solver_step(x, output, table, INDEX, **more, **options))

    return step


@pytest.mark.parametrize("bounded", [False, True])
def test_gradients(bounded, generator):
    table = make_table(**FULL)
    inputs = leaves(*arguments((2, 3, 4), generator), torch.float64)
    if bounded:
        inputs += [(torch.rand(2, generator=generator).double() + 0.5).requires_grad_() for _ in "bg"]
    function = as_function(table, doubled=True)
    with backend.use("reference"):
        torch.autograd.gradcheck(function, inputs)
        cotangents = [torch.randn(t.shape, dtype=t.dtype, generator=generator) for t in function(*inputs)]
        expected = torch.autograd.grad(function(*inputs), inputs, cotangents)
    singles = [t.detach().float().requires_grad_() for t in inputs]
    actual = torch.autograd.grad(function(*singles), singles, [c.float() for c in cotangents])
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e.float(), rtol=1e-4, atol=1e-5)


def test_gradients_where_known_takes_its_place_and_of_both_branches_in_one(generator):
    (x, output), k = arguments((2, 3, 4), generator)
    blend = inpainting((2, 3, 4), generator)
    mask = blend["mask"]
    table = make_table(**FULL | {"b": 0.0, "c1": 0.0, "c2": 0.0, "c3": 0.0})

    def step(x, both, noise, known, known_noise):
        where = mask.to(x.dtype)
        return tuple(
            ops.solver_step(
                x, both, table, INDEX, noise=noise, mask=where, known=known, known_noise=known_noise
            )
        )

    tensors = [x, torch.cat([output, k["uncond"]]), k["noise"], blend["known"], blend["known_noise"]]
    inputs = [t.double().requires_grad_() for t in tensors]
    torch.autograd.gradcheck(step, inputs)
    singles = [t.requires_grad_() for t in tensors]
    expected = torch.autograd.grad(step(*inputs)[0].square().sum(), inputs)
    actual = torch.autograd.grad(step(*singles)[0].square().sum(), singles)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e.float(), rtol=1e-4, atol=1e-5)


def test_what_has_no_weight_need_not_be_finite():
    x, data = torch.randn(2, 4).requires_grad_(), torch.randn(2, 4)
    nothing = torch.full((2, 4), torch.nan).requires_grad_()
    changes = {"lo": -9.0, "hi": 9.0, "w": 1.0, "c0": 0.5}
    unread = make_table(p=2.0, q=1.0, g=0.0, **changes)
    (grad,) = torch.autograd.grad(ops.solver_step(x, nothing, unread, INDEX).x.sum(), x)
    assert torch.equal(grad, torch.full((2, 4), 2.0))
    alone = make_table(p=0.0, q=1.0, g=0.0, g_uncond=1.0, **changes)
    other = data.clone().requires_grad_()
    step = ops.solver_step(x, nothing, alone, INDEX, uncond=other)
    grads = torch.autograd.grad(step.x.sum(), (nothing, other))
    assert torch.equal(grads[0], torch.zeros(2, 4)) and torch.equal(grads[1], torch.full((2, 4), 0.5))


def test_a_mask_has_no_gradient(generator):
    (x, output), _ = arguments((2, 3), generator)
    mask = torch.ones(2, 3, requires_grad=True)
    for function in (ops.solver_step, ops.solver_step_):
        with pytest.raises(ValueError, match=r"pass mask.detach\(\)"):
            function(x, output, make_table(), INDEX, mask=mask)


@pytest.mark.parametrize("overload", ["default", "triton"])
def test_opcheck(overload, generator):
    (x, output), k = arguments((2, 3, 5), generator)
    op = getattr(torch.ops.fastdiff.solver_step, overload)
    per_sample = vectors(2, generator).values()
    blend = (*inpainting((2, 3, 5), generator).values(), None)
    tensors = (k["uncond"], k["anchor"], *k["history"], k["noise"], *per_sample, *blend)
    table = make_table(**FULL)
    grads = (x.requires_grad_(), output.requires_grad_())
    torch.library.opcheck(op, (*grads, table, INDEX, *tensors, torch.float32, True))
    both = (x.detach(), torch.cat([output, k["uncond"]]).detach())
    drawn = (None, k["anchor"], *k["history"], None, *per_sample, None, None, None, seeds(2))
    torch.library.opcheck(op, (*both, table, INDEX, *drawn, torch.bfloat16, False))
    torch.library.opcheck(
        op, (x.detach(), None, make_table(call=0.0), INDEX, *[None] * 12, torch.bfloat16, False)
    )
    inplace = getattr(torch.ops.fastdiff.solver_step_, overload)
    ring, buffer = torch.zeros(2, 2, 3, 5), torch.zeros(4, 3, 5)
    for source in (None, x.detach()):
        more = (k["uncond"], k["anchor"], ring, k["noise"].half(), *per_sample, *blend, source, buffer)
        torch.library.opcheck(inplace, (x.detach().clone(), output.detach(), table, INDEX, *more))


def test_compile_export_and_vmap(generator):
    positional, keywords = arguments((2, 3, 5), generator)
    table = make_table(**FULL)
    function = as_function(table)
    inputs = leaves(positional, keywords, torch.float32)
    expected = function(*inputs)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs)
    assert torch.equal(compiled[0], expected[0])
    assert torch.autograd.grad(compiled[0].sum(), inputs[0])[0].isfinite().all()

    class Step(torch.nn.Module):
        def forward(self, x, output, table, index):
            return tuple(ops.solver_step(x, output, table, index, doubled=True))

    simple = make_table(p=1.0, q=-0.5, w=1.0, c0=0.5)
    exported = torch.export.export(Step(), (*positional, simple, INDEX)).module()
    wanted = Step()(*positional, simple, INDEX)
    assert all(torch.equal(a, w) for a, w in zip(exported(*positional, simple, INDEX), wanted, strict=True))
    stacked = [torch.stack([t, t.flip(0)]) for t in positional]
    batched = torch.vmap(lambda x, o: ops.solver_step(x, o, simple, INDEX).x)(*stacked)
    torch.testing.assert_close(batched[0], wanted[0])


def test_a_compiled_loop_counts_its_own_steps(generator):
    """One graph for every row: the state goes from tensor to tensor, the row's number is a tensor the graph raises."""
    steps, shape = 50, (2, 4, 6, 5)
    rows = [FULL | {"a": 0.01 * i, "n": 0.0, "slot": float(i), "accept": float(i % 2)} for i in range(steps)]
    table = torch.cat([make_table(**row)[:1] for row in rows])
    outputs = torch.randn(steps, 2, *shape, generator=generator).half()
    start, anchor, *ring = (torch.randn(shape, generator=generator) for _ in range(5))

    def step(x, source, output, uncond, anchor, history, shown, index):
        ops.solver_step_(
            x, output, table, index, uncond=uncond, anchor=anchor, history=history, source=source, input=shown
        )
        index += 1

    def run(step):
        state, other, index = start.clone(), torch.full_like(start, torch.nan), torch.tensor(0)
        buffers = (anchor.clone(), torch.stack(ring), torch.zeros(4, *shape[1:]).half())
        for output, uncond in outputs:
            step(other, state, output, uncond, *buffers, index)
            state, other = other, state
        return state, *buffers, index

    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    found, expected = run(torch.compile(step, fullgraph=True, backend=counter)), run(step)
    assert counter.frame_count == 1 and found[-1] == steps
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
