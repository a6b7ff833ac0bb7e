"""The CUDA kernels of dynamic_bound and rescale_gain on the CPU: one block a sample and several, values kept and read
again, NaN, and every order of threads. The emulated GPU has 4 multiprocessors."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor

import emulated
import emulated_run
from conftest import HALF_AND_SINGLE, assert_accurate
from fastdiff import reference
from solver_step_cases import INDEX, make_table

pytestmark = pytest.mark.usefixtures("poisoned")

SHAPES = [
    (2, 3, 5, 7),
    (1, 1),
    (3, 2),
    (4, 1024),
    (1, 16_384),
    (5, 16_401),
    (2, 17_000),
    (1, 40_004),
    (2, 40_001),
]
"""One block that keeps its values; one that cannot, as the batch is large; several, that keep them and that cannot."""


@emulated_run.is_the_run
def test_emulated() -> None:
    assert emulated_run.outcomes(__file__).keys() == {"passed"}


@pytest.fixture(scope="module")
def library() -> Any:
    emulated_run.load()
    return torch.ops.fastdiff


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    x, output, uncond = (torch.randn(shape, generator=generator) for _ in range(3))
    return x, output.to(dtype), uncond.to(dtype)


@emulated_run.needs_the_run
@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.995, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_device_exact_order_statistics(shape: tuple[int, ...], quantile: float, library: Any) -> None:
    """Of |4*x|, which has no rounding: the two values around the place themselves."""
    x, output, _ = draw(shape)
    x = x + 0.3
    if shape[0] > 1:
        x[1] = x[1, ..., :1]  # many equal values
    bound = library.dynamic_bound.default(
        x, output, make_table(p=4.0), INDEX, None, None, quantile, torch.inf
    )
    expected = reference.dynamic_bound(
        x.double(), output.double(), make_table(p=4.0), INDEX, None, None, quantile, torch.inf
    )
    torch.testing.assert_close(bound.double(), expected, rtol=1e-7, atol=0)


@emulated_run.needs_the_run
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (3, 4, 8, 8), (2, 17_000)], ids=str)
def test_device_bound_of_the_guided_prediction(
    shape: tuple[int, ...], dtype: torch.dtype, library: Any
) -> None:
    x, output, uncond = draw(shape, dtype)
    gain, table = torch.rand(shape[0]) + 0.5, make_table(p=1.7, q=-0.8, g=3.5, g_uncond=-2.5)
    for other, both in ((uncond, output), (None, torch.cat([output, uncond]))):
        for most in (2.5, torch.inf):
            arguments = (table, INDEX, other, gain, 0.9, most)
            bound = library.dynamic_bound.default(x, both, *arguments)
            wide = (table, INDEX, None if other is None else other.double(), gain.double(), 0.9, most)
            exact = reference.dynamic_bound(x.double(), both.double(), *wide)
            assert_accurate(bound, exact, reference.dynamic_bound(x, both, *arguments))


@emulated_run.needs_the_run
@pytest.mark.parametrize("shape", [(3, 100), (2, 20_000)], ids=str)
def test_device_specials_stay_in_their_sample(shape: tuple[int, ...], library: Any) -> None:
    x, output, _ = draw(shape)
    x[0, 7], x[1, 3] = torch.nan, -torch.inf
    bound = library.dynamic_bound.default(x, output, make_table(p=1.0), INDEX, None, None, 0.5, 9.0)
    assert bound[0].isnan() and bound[1:].isfinite().all()
    most = library.dynamic_bound.default(x, output, make_table(p=1.0), INDEX, None, None, 1.0, torch.inf)
    assert most[0].isnan() and most[1] == torch.inf
    for table, row in ((make_table(p=1.0, q=1.0, g_uncond=1.0), 1), (make_table(p=1.0), 3)):
        absent = library.dynamic_bound.default(
            x, output, table, torch.tensor(row), None, None, 0.5, torch.inf
        )
        assert absent.isnan().all()
    empty = torch.empty(2, 0)
    assert library.dynamic_bound.default(
        empty, empty, make_table(), INDEX, None, None, 0.5, 2.0
    ).tolist() == [1, 1]


@emulated_run.needs_the_run
@pytest.mark.parametrize("most", [0, 1], ids=["no_such_launch", "too_large"])
def test_device_bound_where_blocks_cannot_wait_for_each_other(most: int, library: Any) -> None:
    """As on a GPU that others share: one block a sample does it, with the same bits."""
    x, output, _ = draw((2, 17_001))
    arguments = (x, output, make_table(p=1.7, q=-0.8), INDEX, None, None, 0.9, torch.inf)
    expected = library.dynamic_bound.default(*arguments)
    emulated_cooperative = ctypes.CDLL(str(emulated_run.LIBRARY)).emulated_cooperative
    emulated_cooperative(ctypes.c_int64(most))
    try:
        assert torch.equal(library.dynamic_bound.default(*arguments), expected)
    finally:
        emulated_cooperative(ctypes.c_int64(2**62))


@emulated_run.needs_the_run
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 17_001)], ids=str)
def test_device_gain_of_no_term_is_not_used(shape: tuple[int, ...], library: Any) -> None:
    """NaN and infinity times a weight of 0 would be NaN; a weight that is not 0 has them."""
    x, output, uncond = draw(shape)
    gain = torch.tensor([torch.nan, torch.inf])
    alone = library.dynamic_bound.default(x, output, make_table(p=2.0), INDEX, None, gain, 0.5, torch.inf)
    assert torch.equal(
        alone, reference.dynamic_bound(x, output, make_table(p=2.0), INDEX, None, gain, 0.5, torch.inf)
    )
    for table in (make_table(q=1.0, g=0.0, g_uncond=2.0), make_table(q=1.0, g=2.0)):
        guided = library.dynamic_bound.default(x, output, table, INDEX, uncond, gain, 0.5, torch.inf)
        assert guided[0].isnan() and guided[1] == torch.inf


@emulated_run.needs_the_run
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1), (3, 4, 8, 8), (2, 70_000), (1, 65_541)], ids=str)
def test_device_rescale(shape: tuple[int, ...], dtype: torch.dtype, library: Any) -> None:
    """Far from zero too, where squares would have lost everything."""
    _, output, uncond = draw(shape, dtype)
    table = make_table(g=7.5, g_uncond=-6.5)
    for mean in (0.0, 30.0):
        pair = [(t.float() + mean).to(dtype) for t in (output, uncond)]
        for both in ((*pair,), (torch.cat(pair), None)):
            gain = library.rescale_gain.default(*both, table, INDEX, 0.7)
            wide = [None if t is None else t.double() for t in both]
            exact = reference.rescale_gain(*wide, table, INDEX, 0.7)
            assert gain.dtype == torch.float32
            assert_accurate(gain, exact, reference.rescale_gain(*both, table, INDEX, 0.7).float())


@emulated_run.needs_the_run
def test_device_rescale_of_what_does_not_vary(library: Any) -> None:
    output, uncond = torch.randn(3, 1001), torch.randn(3, 1001)
    output[0] = uncond[0] = 0.1  # no deviation
    output[1, 5] = torch.nan
    gain = library.rescale_gain.default(output, uncond, make_table(g=2.0, g_uncond=-1.0), INDEX, 0.7)
    assert gain[:2].tolist() == [1, 1] and gain[2] != 1
    assert library.rescale_gain.default(output, uncond, make_table(), torch.tensor(9), 0.7).isnan().all()
    assert library.rescale_gain.default(torch.empty(4, 0), None, make_table(), INDEX, 0.7).tolist() == [1, 1]


@emulated_run.needs_the_run
@pytest.mark.parametrize("which", [1, 7])
def test_device_any_order_of_threads(which: int, library: Any) -> None:
    """A race would show as another result."""
    x, output, uncond = draw((2, 17_001))
    table = make_table(p=1.7, q=-0.8, w=1.0, g=3.5, g_uncond=-2.5)
    bound_arguments = (x, output, table, INDEX, uncond, None, 0.9, torch.inf)
    gain_arguments = (output[:, :2000], uncond[:, :2000], table, INDEX, 0.7)
    gain_arguments = tuple(t.contiguous() if isinstance(t, Tensor) else t for t in gain_arguments)
    bound = library.dynamic_bound.default(*bound_arguments)
    gain = library.rescale_gain.default(*gain_arguments)
    with emulated.order(ctypes.CDLL(str(emulated_run.LIBRARY)), which):
        assert torch.equal(library.dynamic_bound.default(*bound_arguments), bound)
        assert torch.equal(library.rescale_gain.default(*gain_arguments), gain)


@emulated_run.needs_the_run
def test_device_refusals(library: Any) -> None:
    x, table = torch.ones(2, 8), make_table()
    with pytest.raises(RuntimeError, match="fastdiff: output must have x's shape"):
        library.dynamic_bound.default(x, torch.ones(3, 8), table, INDEX, None, None, 0.5, 2.0)
    with pytest.raises(RuntimeError, match="fastdiff: table"):
        library.dynamic_bound.default(x, x, table.float(), INDEX, None, None, 0.5, 2.0)
    with pytest.raises(RuntimeError, match="fastdiff: output must be dense"):
        library.rescale_gain.default(torch.ones(3, 8), None, table, INDEX, 0.5)
    with pytest.raises(RuntimeError, match="fastdiff: output and uncond"):
        library.rescale_gain.default(x, torch.ones(3, 8), table, INDEX, 0.5)
