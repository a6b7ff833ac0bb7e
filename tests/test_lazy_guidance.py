"""Guided tensors: guidance noted down, and the tensor PyTorch would have computed to everybody who looks."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff.lazy_guidance import Guided, handed, parts
from guidance_noted import SCALE, both, guided, image, noting  # noqa: F401

WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "u + s*(c - u)": lambda out: out.chunk(2)[0] + SCALE * (out.chunk(2)[1] - out.chunk(2)[0]),
    "(c - u)*s": lambda out: out.chunk(2)[0] + (out.chunk(2)[1] - out.chunk(2)[0]) * SCALE,
    "c + (s - 1)*(c - u)": lambda out: guided_from_conditional(*out.chunk(2)),
    "(s + 1)*c - s*u": lambda out: (SCALE + 1) * out.chunk(2)[1] - SCALE * out.chunk(2)[0],
    "split": lambda out: guided(*out.split(len(out) // 2)),
    "an integer": lambda out: guided(*out.chunk(2), 3),
    "conditional first": lambda out: guided(*reversed(out.chunk(2))),
    "negative": lambda out: -guided(*out.chunk(2)),
    "in float32": lambda out: guided(*out.float().chunk(2)),
    "channels of it": lambda out: guided(*out.chunk(2)).chunk(2, dim=1)[0],
}


def guided_from_conditional(u: Tensor, c: Tensor) -> Tensor:
    return c + (SCALE - 1) * (c - u)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_ways_of_guidance_are_noted_down_and_made_in_the_same_bits(way: str, dtype: torch.dtype) -> None:
    out = image(dtype=dtype)
    noted, expected = WAYS[way](handed(out)), WAYS[way](out)
    assert type(noted) is Guided and noted._made is None
    assert (noted.shape, noted.dtype, noted.device) == (expected.shape, expected.dtype, expected.device)
    assert noted.stride() == expected.stride() and isinstance(noted, Tensor)
    assert noted._made is None  # asking what it is like makes nothing
    read = parts(noted)
    branches = (read.output.chunk(2) if read.uncond is None else (read.output, read.uncond))[:2]
    assert read.weights is not None
    exact = sum(weight * branch.double() for weight, branch in zip(read.weights, branches))
    precision = 8 if dtype is torch.bfloat16 else 11 if dtype is torch.float16 else 24
    torch.testing.assert_close(
        exact, expected.double(), rtol=0, atol=2.0 ** (8 - precision), check_stride=False
    )
    assert torch.equal(noted, expected)
    assert type(noted * 1) is Tensor


def test_outputs_of_two_calls() -> None:
    u, c = image(2, 3), image(2, 4)[:, :3].contiguous()
    noted = guided(handed(u), handed(c))
    read = parts(noted)
    assert read.output is u and read.uncond is c and read.weights == (1 - SCALE, SCALE)
    assert torch.equal(noted, guided(u, c))


def test_the_halves_of_one_output_are_read_from_it() -> None:
    out = image()
    read = parts(guided(*handed(out).chunk(2)))
    assert read.output is out and read.uncond is None and read.weights == (1 - SCALE, SCALE)
    read = parts(guided(*reversed(handed(out).chunk(2))))
    assert read.output is out and read.weights == (SCALE, 1 - SCALE)


def test_without_guidance_the_output_is_handed_over_as_it_is() -> None:
    out = image()
    read = parts(handed(out))
    assert read.output is out and read.uncond is None and read.weights is None
    assert parts(out).output is out


@pytest.mark.parametrize(
    "way",
    [
        lambda out: guided(*out.chunk(2), torch.tensor(SCALE)),
        lambda out: guided(*out.chunk(2), torch.full((2, 1, 1, 1), SCALE)),
        lambda out: guided(*out.chunk(2), np.float32(SCALE)),
        lambda out: guided(*torch.chunk(out, 2)),
        lambda out: guided(*out[:2]),
        lambda out: guided(*out.unbind(0)[:2]),
        lambda out: torch.lerp(*out.chunk(2), SCALE),
        lambda out: out.chunk(2)[0].add(out.chunk(2)[1], alpha=2),
        lambda out: guided(out[:2], out[2:]),
        lambda out: guided(*out.chunk(2, -2)),
        lambda out: sum(out.chunk(4)),
        lambda out: guided(*out.chunk(2)) + guided(*out.chunk(2)).roll(1),
        lambda out: guided(*out.chunk(2)) + 1,
        lambda out: 1 - guided(*out.chunk(2)),
        lambda out: guided(*out.chunk(2)) / 3,
        lambda out: guided(*out.chunk(2)) ** 2,
        lambda out: rescaled(*out.chunk(2)),
        lambda out: torch.cat([guided(*out.chunk(2)), out]),
    ],
)  # fmt: skip
def test_other_ways_are_computed_at_once(way: Callable[[Tensor], Tensor]) -> None:
    out = image()
    assert torch.equal(way(handed(out)), way(out))


def rescaled(u: Tensor, c: Tensor) -> Tensor:
    """diffusers' rescale_noise_cfg (arXiv:2305.08891)."""
    noise = guided(u, c)
    axes = list(range(1, noise.ndim))
    return 0.7 * (noise * (c.std(axes, keepdim=True) / noise.std(axes, keepdim=True))) + 0.3 * noise


LOOKS: dict[str, Callable[[Any], Any]] = {
    "repr": repr,
    "format": lambda t: f"{t.sum():.3f}",
    "numpy": lambda t: t.numpy(),
    "asarray": np.asarray,
    "numpy's function": lambda t: np.add(t.numpy(), 1),
    "tolist": lambda t: t.tolist(),
    "item": lambda t: t.mean().item(),
    "bool": lambda t: bool((t == t).all()),
    "iteration": lambda t: sum(list(t)),
    "index": lambda t: t[0, 1:],
    "view": lambda t: t.view(-1),
    "detach": lambda t: t.detach(),
    "data": lambda t: t.data,
    "clone": lambda t: t.clone(),
    "half": lambda t: t.half(),
    "double": lambda t: t.to(torch.float64),
    "cpu": lambda t: t.cpu(),
    "contiguous": lambda t: t.contiguous(),
    "cat": lambda t: torch.cat([t, t]),
    "stack": lambda t: torch.stack([t, t]),
    "where": lambda t: torch.where(t > 0, t, 0.0),
    "plain first": lambda t: torch.ones(t.shape) * t,
    "in place": lambda t: t.mul_(2),
    "augmented": lambda t: t.__iadd__(1),
    "set an item": lambda t: (t.__setitem__(0, 0.0), t)[1],
    "through a view": lambda t: (t[0].zero_(), t)[1],
    "out": lambda t: torch.add(torch.ones(t.shape), 1, out=t),
    "another's copy_": lambda t: torch.zeros(t.shape).copy_(t),
    "deepcopy": copy.deepcopy,
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
    "save": lambda t: saved(t),
    "dlpack": torch.from_dlpack,
    "shared": lambda t: t.share_memory_(),
    "storage": lambda t: list(t.storage())[:5],
    "vmap": lambda t: torch.vmap(lambda row: row * 2)(t),
    "jvp": lambda t: torch.func.jvp(lambda v: v * v, (t,), (torch.ones(t.shape),))[1],
    "layer": lambda t: torch.nn.functional.conv2d(t, torch.ones(2, 4, 1, 1)),
    "squeezed in place": lambda t: t.unsqueeze_(0),
    "transposed in place": lambda t: t.transpose_(0, 1),
    "apply_": lambda t: t.apply_(lambda value: value + 1),
    "data given": lambda t: (setattr(t, "data", torch.ones(t.shape)), t * 1)[1],
    "gradient": lambda t: gradient(t),
    "compiled": lambda t: torch.compile(lambda v: v * 2 + v.chunk(2)[0], backend="eager", fullgraph=True)(t),
}  # fmt: skip


def saved(tensor: Tensor) -> Tensor:
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    buffer.seek(0)
    loaded: Tensor = torch.load(buffer)
    return loaded


def gradient(tensor: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = tensor.requires_grad_()
        (leaf * leaf).sum().backward()
        assert leaf.grad is not None
        return leaf.grad


@pytest.mark.parametrize("look", LOOKS)
def test_it_is_that_tensor_to_whoever_looks(look: str) -> None:
    noted, expected = both()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TypedStorage, and of subclasses in compiled graphs
        ours, theirs = LOOKS[look](noted), LOOKS[look](expected)
    if isinstance(theirs, Tensor):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype and ours.stride() == theirs.stride()
        assert torch.equal(ours, theirs)
    else:
        assert np.array_equal(ours, theirs) if isinstance(theirs, np.ndarray) else ours == theirs
    if look not in ("squeezed in place", "transposed in place"):
        assert torch.equal(noted, expected)


def test_what_is_asked_without_looking() -> None:
    noted, expected = both()
    for name in (
        "shape",
        "dtype",
        "device",
        "ndim",
        "layout",
        "is_leaf",
        "itemsize",
        "nbytes",
        "requires_grad",
    ):
        assert getattr(noted, name) == getattr(expected, name), name
    for method in ("size", "stride", "dim", "numel", "is_contiguous", "is_floating_point", "element_size"):
        assert getattr(noted, method)() == getattr(expected, method)(), method
    assert len(noted) == len(expected) and noted in {noted: 1}
    assert noted._made is None


def test_channels_last_stays() -> None:
    out = image().to(memory_format=torch.channels_last)
    noted, expected = guided(*handed(out).chunk(2)), guided(*out.chunk(2))
    assert noted.stride() == expected.stride() and (noted * 1).stride() == expected.stride()
    assert torch.equal(noted, expected)


def test_three_branches_are_computed() -> None:
    outs = [image(2, 4) + i for i in range(3)]
    u, v, w = (handed(out) for out in outs)
    made = u + 7.5 * (w - v) + 1.5 * (v - u)
    assert torch.equal(made, outs[0] + 7.5 * (outs[2] - outs[1]) + 1.5 * (outs[1] - outs[0]))
