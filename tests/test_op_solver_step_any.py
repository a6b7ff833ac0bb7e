"""solver_step against float64 on rows drawn at random: any weights 0, any dtypes, options, clamps, shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import instruction_sets
from fastdiff import backend, native, ops, reference
from solver_step_cases import INDEX, Case, cases, check

LEVELS = instruction_sets()
PLACES = [("reference", "", 100), *(("cpp", isa, 800 if isa == LEVELS[-1] else 200) for isa in LEVELS)]


@pytest.mark.parametrize(("name", "isa", "count"), PLACES)
def test_any_row(name, isa, count):
    @settings(max_examples=count, deadline=None, derandomize=True)
    @given(case=cases())
    def holds(case):
        check(case)

    with backend.use(name):
        native.set_isa(isa) if isa else None
        try:
            holds()
        finally:
            native.set_isa("") if isa else None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    case=cases(), slots=st.integers(1, 4), slot=st.integers(0, 9), accept=st.booleans(), apart=st.booleans()
)
def test_any_row_in_place(case, slots, slot, accept, apart):
    """The same bits as the row as new tensors, in buffers of any ring."""
    case.table[:, reference.COLUMNS.index("slot")] = slot
    case.table[:, reference.COLUMNS.index("accept")] = float(accept)
    ring = torch.randn(slots, *case.x.shape)
    past = [ring[(slot - j) % slots].clone() for j in (1, 2, 3)]
    keywords = case.keywords | {"history": past}
    step = Case(case.x, case.output, case.table, keywords)()
    dtype, doubled = (keywords.pop(name) for name in ("input_dtype", "doubled"))
    x, anchor = case.x.clone(), keywords["anchor"].clone()
    input = torch.zeros(len(x) * (1 + doubled), *x.shape[1:], dtype=dtype)
    keywords |= {"anchor": anchor, "history": ring, "input": input}
    if apart:
        keywords["source"], x = x, torch.full_like(x, torch.nan)
    ops.solver_step_(x, case.output, case.table, INDEX, **keywords)
    assert torch.equal(x, step.x) and torch.equal(input, step.input)
    assert not apart or torch.equal(keywords["source"], case.x)
    assert torch.equal(anchor, step.x if accept else case.keywords["anchor"])
    row = dict(zip(reference.COLUMNS, case.table[1].tolist(), strict=True))
    assert not row["call"] or torch.equal(ring[slot % slots], step.value)
