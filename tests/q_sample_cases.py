"""What the tests of q_sample and randn share: inputs, the plain composition, and generators that draw alike."""

from __future__ import annotations

import pytest
import torch

from fastdiff import native

needs_cpp = pytest.mark.skipif(bool(native.problem("cpu")), reason="the C++ kernels are not built")


def images(shape, dtype, generator, count=2):
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


def spread(level, x):
    return level.view(-1, *(1,) * (x.dim() - 1))


def composition(x0, noise, alpha, sigma):
    alpha, sigma = (spread(level.to(x0.dtype), x0) for level in (alpha, sigma))
    return alpha * x0 + sigma * noise, alpha * noise - sigma * x0


def twins(seed=0):
    return torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
