"""Guided tensors over time: outputs written to or freed meanwhile, other threads, which outputs are noted."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff import lazy_guidance
from fastdiff.lazy_guidance import Guided, expect, handed, parts
from guidance_noted import both, guided, image, noting  # noqa: F401


@pytest.mark.parametrize("write", [lambda t: t.zero_(), lambda t: t[0].fill_(3.0), lambda t: t.add_(t)])
def test_an_output_written_to_afterwards_changes_nothing(write: Callable[[Tensor], Any]) -> None:
    out = image()
    expected = guided(*out.chunk(2)).clone()
    handed_on = handed(out)
    u, c = handed_on.chunk(2)
    noted = guided(u, c)
    write(c)
    assert torch.equal(noted, expected)
    assert torch.equal(guided(u, c), guided(*out.chunk(2)))  # of the new values, computed


def test_a_difference_written_to_afterwards_changes_nothing() -> None:
    out = image()
    u, c = handed(out).chunk(2)
    difference = c - u
    noted = u + 2.0 * difference
    difference.zero_()
    assert torch.equal(noted, u.made + 2.0 * (c.made - u.made)) and not difference.any()
    assert torch.equal(u + difference, out[:2])


def test_a_view_that_somebody_holds_ends_the_noting() -> None:
    out = handed(image())
    u, c = out.chunk(2)
    held = out[0]
    assert type(c - u) is Tensor
    held.zero_()
    assert not out[0].any()


def test_an_output_overwritten_behind_its_back_is_an_error() -> None:
    out = image()
    noted = guided(*handed(out).chunk(2))
    out.zero_()  # a buffer of the model's, say
    with pytest.raises(RuntimeError, match="overwritten"):
        noted.sum()
    with pytest.raises(RuntimeError, match="overwritten"):
        parts(noted)


def test_only_outputs_that_a_step_expects_are_noted_down(monkeypatch: pytest.MonkeyPatch) -> None:
    out = image()
    expect(False)
    assert handed(out) is out
    with ThreadPoolExecutor(1) as pool:
        pool.submit(expect, True).result()
    assert handed(out) is out  # another thread's loop
    expect(True)
    assert type(handed(out)) is Guided
    assert handed(out.double()).dtype == torch.float64 and type(handed(out.double())) is Tensor
    assert type(handed(out.long())) is Tensor and handed(None) is None
    with torch.enable_grad():
        assert type(handed(image().requires_grad_() * 1)) is Tensor
    with torch.inference_mode():
        assert type(handed(image())) is Tensor
    monkeypatch.setattr(lazy_guidance, "LEAST", {"cpu": out.numel() + 1})
    assert handed(out) is out


def test_once_somebody_looked_the_loop_computes() -> None:
    noted, _ = both()
    noted.sum()
    assert type(handed(image())) is Tensor


def test_memory_goes_with_it() -> None:
    out = image()
    held = weakref.ref(out)
    noted = guided(*handed(out).chunk(2))
    gc.disable()
    try:
        del out
        assert held() is not None
        del noted
        assert held() is None  # without the garbage collector: no cycle
    finally:
        gc.enable()


def test_threads_may_look_at_once() -> None:
    noted, expected = both()
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(each, expected) for each in pool.map(lambda _: noted.clone(), range(16)))
