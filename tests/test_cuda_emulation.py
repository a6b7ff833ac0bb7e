"""The emulation the CUDA kernels are tested with: barriers, shuffles and the grid's barrier work, and faults show."""

from __future__ import annotations

import ctypes

import pytest
import torch

import emulated

BLOCK, BLOCKS = 96, 5


@pytest.fixture(scope="module")
def loaded() -> ctypes.CDLL:
    return ctypes.CDLL(str(emulated.kernels()))


@pytest.fixture(params=[0, 1, 7])
def order(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_block_and_grid_sums(loaded: ctypes.CDLL, order: int) -> None:
    values, totals, grand = torch.arange(BLOCK * BLOCKS).float(), torch.zeros(BLOCKS), torch.zeros(1)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (values, totals, grand)]
    with emulated.order(loaded, order):
        assert loaded.self_test_sum_of_block(*pointers[:2], ctypes.c_int64(BLOCKS)) == 0
        assert torch.equal(totals, values.view(BLOCKS, BLOCK).sum(1))
        totals.zero_()
        assert loaded.self_test_sum_of_grid(*pointers, ctypes.c_int64(BLOCKS)) == 0
    assert grand.item() == values.sum().item()


def test_a_race_shows_as_a_change_with_the_order(loaded: ctypes.CDLL) -> None:
    winners, last = set(), torch.zeros(1, dtype=torch.int32)
    for which in (0, 1, 3, 4):
        with emulated.order(loaded, which):
            assert loaded.self_test_race(ctypes.c_void_p(last.data_ptr())) == 0
        winners.add(int(last))
    assert {0, BLOCK - 1} <= winners


def test_faults_are_errors(loaded: ctypes.CDLL) -> None:
    """As cudaErrorLaunchTimeout and cudaErrorIllegalAddress; the next launch works."""
    assert loaded.self_test_wait_for_ever() == 702
    assert loaded.self_test_beyond_shared() == 700
    test_block_and_grid_sums(loaded, 0)
