"""The speed of the ops from one commit to the next, on one machine (pytest-benchmark; `make speed`).

The first run keeps its times under .benchmarks/; later ones compare and fail where the fastest round got 25 % slower.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from cases import Image, add_noise_case, backward_case, norm_case, q_sample_case
from loops import step_case
from shapes import IMAGES, LATENTS, SD15
from timing import Case

LAYOUTS = ("contiguous", "channels_last")
DTYPES = (torch.float32, torch.bfloat16)


def ours(benchmark: BenchmarkFixture, case: Case) -> None:
    """Times our function of a case, which was found right when it was made."""
    timed = case.functions[case.ours]
    benchmark.extra_info["error"] = case.error
    with torch.inference_mode():
        benchmark.pedantic(timed.run, setup=timed.prepare, rounds=30, warmup_rounds=3)


@pytest.mark.parametrize("shape", [LATENTS, IMAGES], ids=str)
def test_step(benchmark: BenchmarkFixture, shape: tuple[int, ...]) -> None:
    ours(benchmark, step_case(shape))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [SD15[0], SD15[3], SD15[7]], ids=str)
def test_norm(benchmark: BenchmarkFixture, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    ours(benchmark, norm_case(Image(shape, dtype, layout), {}))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_backward(benchmark: BenchmarkFixture, layout: str) -> None:
    ours(benchmark, backward_case(Image(SD15[3], torch.float32, layout), {}))


@pytest.mark.parametrize("shape", [LATENTS, IMAGES], ids=str)
def test_noise_given(benchmark: BenchmarkFixture, shape: tuple[int, ...]) -> None:
    ours(benchmark, add_noise_case(Image(shape)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_noise_drawn(benchmark: BenchmarkFixture, dtype: torch.dtype) -> None:
    ours(benchmark, q_sample_case(Image(IMAGES, dtype)))
