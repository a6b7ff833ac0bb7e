"""q_sample and randn in PyTorch: gradients, opcheck, torch.compile, vmap and forward mode."""

from __future__ import annotations

import pytest
import torch

from conftest import HALF_AND_SINGLE
from fastdiff import backend, ops
from q_sample_cases import composition, images, spread


@pytest.mark.parametrize("options", [{}, {"velocity": True}, {"velocity": True, "seeds": [1, 2, 3]}])
@pytest.mark.parametrize("name", ["reference", "auto"])
def test_gradients(name, options, generator):
    dtype = torch.float64 if name == "reference" else torch.float32
    x0, noise = (t.requires_grad_() for t in images((3, 4, 5), dtype, generator))
    alpha, sigma = (torch.rand(3, dtype=dtype, generator=generator).requires_grad_() for _ in "ab")
    drawn = "seeds" in options
    inputs = [x0, alpha, sigma] + ([] if drawn else [noise])
    weights = images((3, 4, 5), dtype, generator)

    def total(x0, alpha, sigma, noise=None):
        made = ops.q_sample(x0, alpha, sigma, noise=noise, **options)
        assert made.noise is noise or not made.noise.requires_grad
        return sum((w * t).sum() for w, t in zip(weights, (made.x, made.velocity)) if t is not None)

    with backend.use(name):
        if dtype == torch.float64:
            torch.autograd.gradcheck(total, inputs)
            torch.autograd.gradgradcheck(total, inputs)
        actual = torch.autograd.grad(total(*inputs), inputs)
        used = ops.q_sample(x0, alpha, sigma, **options).noise.detach() if drawn else noise
    both = composition(x0, used, alpha, sigma)
    wanted = sum((w * t).sum() for w, t in zip(weights, both[: 1 + ("velocity" in options)]))
    torch.testing.assert_close(actual, torch.autograd.grad(wanted, inputs))


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
def test_gradients_of_half_precision(dtype, generator):
    x0, noise = (t.requires_grad_() for t in images((3, 40), dtype, generator))
    level = torch.full((3,), 0.5, requires_grad=True)
    made = ops.q_sample(x0, level, 0.25, noise=noise, velocity=True)
    gx, gn, gl = torch.autograd.grad((made.x + made.velocity).float().sum(), [x0, noise, level])
    assert (gx.dtype, gn.dtype, gl.dtype) == (dtype, dtype, torch.float32)
    torch.testing.assert_close(gx.float(), torch.full((3, 40), 0.25))
    torch.testing.assert_close(gn.float(), torch.full((3, 40), 0.75))
    torch.testing.assert_close(gl, (x0.detach().float() + noise.detach().float()).sum(1))


@pytest.mark.parametrize("overload", ["default", "triton"])
def test_opcheck(overload, generator):
    x0, noise = images((2, 3, 4), torch.float32, generator)
    op = getattr(torch.ops.fastdiff.q_sample, overload)
    state, seeds = torch.Generator().get_state(), torch.tensor([1, 2])
    levels = torch.rand(2), torch.rand(1).requires_grad_()
    drawings = [(noise, None, None), (None, state, None), (None, None, seeds)]
    if overload == "triton" and "triton" in backend.KERNELS["q_sample"]:
        drawings = drawings[:1]  # its states are those of CUDA generators
    for given_noise, s, k in drawings:
        torch.library.opcheck(op, (x0.requires_grad_(), given_noise, *levels, s, k, 3, s is None))
    draw = getattr(torch.ops.fastdiff.randn_like, overload)
    for _, s, k in drawings[1:]:
        torch.library.opcheck(draw, (x0.detach(), s, k, 3))


def test_compile(generator):
    x0, noise = images((2, 3, 2000), torch.float32, generator)
    alpha, sigma = torch.rand(2, 2, generator=generator)
    for options in ({"noise": noise}, {"seeds": torch.tensor([4, 5])}, {}):
        compiled = torch.compile(ops.q_sample, fullgraph=True, backend="aot_eager")
        torch.manual_seed(4)
        expected = ops.q_sample(x0, alpha, sigma, velocity=True, **options)
        torch.manual_seed(4)
        actual = compiled(x0, alpha, sigma, velocity=True, **options)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e)


def test_vmap_and_forward_mode(generator):
    x0, noise = images((2, 3, 8), torch.float32, generator)
    alpha, sigma = torch.rand(2, 2, generator=generator)

    def target(x0, noise):
        return ops.q_sample(x0, alpha, sigma, noise=noise, velocity=True).velocity

    stack = torch.stack([x0, noise])
    batched = torch.vmap(target)(stack, stack.flip(0))
    torch.testing.assert_close(batched[0], target(x0, noise))
    _, tangent = torch.func.jvp(target, (x0, noise), (noise, x0))
    torch.testing.assert_close(tangent, target(noise, x0))
    _, tangent = torch.func.jvp(lambda x: ops.add_noise(x, noise, alpha, sigma), (x0,), (noise,))
    torch.testing.assert_close(tangent, spread(alpha, x0) * noise)
