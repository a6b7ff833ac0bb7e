"""The CUDA kernel's own source, compiled as plain C++ and run one thread at a time: its values without a GPU.

What this cannot see is the GPU: speed, races, streams. test_gpu.py has those, for a machine with one.
"""

from __future__ import annotations

import ctypes
from itertools import product
from typing import Any

import pytest
import torch

import emulated
import emulated_run
from add_noise_cases import CASES, DTYPES, assert_close, check_repeatable, check_specials, check_values


@pytest.fixture(scope="module")
def launch() -> ctypes._CFuncPtr:
    function = ctypes.CDLL(str(emulated.kernels())).emulated_add_noise
    pointers, sizes, flags = [ctypes.c_void_p] * 5, [ctypes.c_int64] * 2, [ctypes.c_bool] * 2
    function.argtypes = [*pointers, *sizes, *flags, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    return function


GUARD = 64  # elements before and after the output that must stay as they were


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inner", [1, 2, 7, 1023, 1024, 1025, 1031, 4096, 4099, 8192 + 3])
def test_every_alignment(launch: ctypes._CFuncPtr, inner: int, dtype: torch.dtype) -> None:
    """Head, vectors and tail cover each element once, wherever the arrays start, and nothing beside them."""
    batch = 3
    weights = torch.rand(2, batch, dtype=torch.float64) + 0.1
    alpha, sigma = weights
    for starts in [(0, 0, 0), (1, 1, 1), (3, 3, 3), (0, 1, 2), (2, 2, 1), (7, 7, 7), (8, 0, 4)]:
        x0, noise, out = (
            torch.randn(GUARD + batch * inner + GUARD + 16).to(dtype)[start:] for start in starts
        )
        x0, noise = (t[GUARD:][: batch * inner] for t in (x0, noise))
        out.fill_(float("nan"))
        body = out[GUARD:][: batch * inner]
        pointers = [t.data_ptr() for t in (body, x0, noise, alpha, sigma)]
        assert launch(*pointers, 1, 1, True, True, batch, inner, DTYPES.index(dtype)) == 0
        assert_close(*(t.view(batch, inner) for t in (body, x0, noise)), alpha, sigma)
        assert out[:GUARD].isnan().all() and out[GUARD + batch * inner :].isnan().all()


@pytest.mark.parametrize(("alpha_each", "sigma_each"), list(product([False, True], repeat=2)))
@pytest.mark.parametrize("double", [False, True])
def test_weights(launch: ctypes._CFuncPtr, alpha_each: bool, sigma_each: bool, double: bool) -> None:
    """One weight or one per sample, in float32 or float64, each on its own."""
    x0, noise = torch.randn(2, 4, 1030)
    alpha, sigma = (torch.rand(4 if each else 1) + 0.1 for each in (alpha_each, sigma_each))
    alpha = alpha.double() if double else alpha
    out = torch.full_like(x0, float("nan"))
    pointers = [t.data_ptr() for t in (out, x0, noise, alpha, sigma)]
    assert launch(*pointers, int(alpha_each), int(sigma_each), double, False, 4, 1030, 0) == 0
    assert_close(out, x0, noise, alpha, sigma)


def test_in_place(launch: ctypes._CFuncPtr) -> None:
    x0, noise = torch.randn(2, 2, 3001)
    weights = torch.ones(1)
    expected = x0 + noise
    pointers = [t.data_ptr() for t in (x0, x0, noise, weights, weights)]
    assert launch(*pointers, 0, 0, False, False, 1, x0.numel(), 0) == 0
    torch.testing.assert_close(x0, expected)


@emulated_run.is_the_run
def test_emulated() -> None:
    """The registration matches the op's schema and unpacks its tensors: called through torch."""
    assert emulated_run.outcomes(__file__).keys() == {"passed"}


@pytest.fixture(scope="module")
def op() -> Any:
    emulated_run.load()
    assert torch._C._dispatch_has_kernel_for_dispatch_key("fastdiff::add_noise", "CPU")
    return torch.ops.fastdiff.add_noise.default


@emulated_run.needs_the_run
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_device_cases(op: Any, dtype: torch.dtype) -> None:
    for case in CASES.values():
        check_values(op, case, dtype, "cpu")
    check_values(op, CASES["rows_off_the_vectors"], dtype, "cpu", mean=1000.0)
    check_specials(op, dtype, "cpu")
    check_repeatable(op, dtype, "cpu")


IMAGE, WEIGHTS = torch.ones(2, 3, 4), torch.ones(2)
REFUSED = {
    "float32, float16 and bfloat16": (IMAGE.double(), IMAGE.double(), WEIGHTS, WEIGHTS),
    "laid out alike": (IMAGE, torch.ones(2, 4, 3).mT, WEIGHTS, WEIGHTS),
    "must be dense": (torch.ones(2, 3, 8)[..., ::2], torch.ones(2, 3, 8)[..., ::2], WEIGHTS, WEIGHTS),
    "one dtype": (IMAGE, IMAGE.half(), WEIGHTS, WEIGHTS),
    "one value or one a sample": (IMAGE, IMAGE, torch.ones(3), WEIGHTS),
    "alpha and sigma must be float32": (IMAGE, IMAGE, WEIGHTS, WEIGHTS.half()),
}


@emulated_run.needs_the_run
@pytest.mark.parametrize("words", REFUSED)
def test_device_refusals(op: Any, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        op(*REFUSED[words])
