"""The deterministic samplers converge to the exact solution of the ODE at the order theory gives them."""

from __future__ import annotations

import pytest

from convergence_cases import CASES, Case, measure
from oracles import processes


@pytest.mark.parametrize("process", processes())
@pytest.mark.parametrize(
    "case", CASES, ids=[f"{case.name}-{case.grid.__qualname__.split('.')[0]}" for case in CASES]
)
def test_measured_order_is_the_theoretical_one(case: Case, process: str) -> None:
    path = processes()[process]
    measured = measure(case, path)
    assert measured.order == pytest.approx(case.order_on(path), abs=0.2), measured
