"""The deterministic samplers converge to the exact solution of the ODE at the order theory gives them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from convergence_cases import CASES, Case, measure
from oracles import processes


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sixteen points: waking a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("process", processes())
@pytest.mark.parametrize(
    "case", CASES, ids=[f"{case.name}-{case.grid.__qualname__.split('.')[0]}" for case in CASES]
)
def test_measured_order_is_the_theoretical_one(case: Case, process: str) -> None:
    path = processes()[process]
    measured = measure(case, path)
    assert measured.order == pytest.approx(case.order_on(path), abs=0.2), measured
