"""Counter-based noise: Philox against published answers, the distribution, and the same bits everywhere."""

from __future__ import annotations

import math

import pytest
import torch

import fastdiff
from conftest import instruction_sets, threads
from fastdiff import backend, counter, native, ops, schedules
from fastdiff.noise import CounterNoise

SEEDS = torch.tensor([0, 1, 2**63 - 1, 0x123456789ABCDEF])
needs_cpp = pytest.mark.skipif(bool(native.problem("cpu")), reason="the C++ kernels are not built")


@pytest.mark.parametrize(
    ("words", "key", "expected"),  # kat_vectors of Random123, philox4x32 with 10 rounds
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(words, key, expected):
    block, seed = (torch.tensor([_signed(low | high << 32)]) for low, high in (words[:2], key))
    assert [int(w) for w in counter.philox(block, words[2] | words[3] << 32, seed)] == list(expected)


def _signed(word):
    return word - 2**64 if word >= 2**63 else word


def test_values_are_standard_normal_and_independent():
    size = 40_000
    draws = torch.stack([counter.normal(torch.tensor([5, 6]), size, stream) for stream in (0, 1)]).flatten(
        0, 1
    )
    draws = draws.double()
    assert draws.mean(1).abs().max() < 5 / math.sqrt(size)
    assert (draws.var(1) - 1).abs().max() < 5 * math.sqrt(2 / size)
    assert ((draws**4).mean(1) - 3).abs().max() < 5 * math.sqrt(96 / size)
    correlation = draws @ draws.T / size - torch.eye(4, dtype=torch.float64)
    assert correlation.fill_diagonal_(0).abs().max() < 5 / math.sqrt(size)
    for lag in (1, 2, 3, 4):  # within and across the four values of a block
        assert (draws[:, lag:] * draws[:, :-lag]).mean(1).abs().max() < 5 / math.sqrt(size)


def test_the_distribution_function():
    draws = counter.normal(torch.tensor([11]), 50_000)[0].double().sort().values
    exact = 0.5 * (1 + torch.erf(draws / math.sqrt(2)))
    seen = torch.arange(1, len(draws) + 1, dtype=torch.float64) / len(draws)
    assert (exact - seen).abs().max() < 1.95 / math.sqrt(len(draws))  # Kolmogorov-Smirnov at 0.1 %


def test_the_transform_is_close_to_the_exact_one():
    words = torch.arange(0, 2**32, 2**32 // 20_011)
    turns = words.flip(0)
    u = ((words >> 8) + 1).double() * 2.0**-24
    radius, angle = (-2 * u.log()).sqrt(), ((turns >> 8).double() * 2.0**-24 - 0.125) * 2 * math.pi
    for actual, exact in zip(counter.box_muller(words, turns), (angle.cos(), angle.sin()), strict=True):
        torch.testing.assert_close(actual.double(), radius * exact, rtol=0, atol=1e-6)


@needs_cpp
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("size", [1, 3, 4, 17, 63, 64, 65, 1000, 1024, 5003])
def test_every_instruction_set_gives_the_specified_bits(isa, size):
    try:
        native.set_isa(isa)
        for stream in (0, 1, 2**40 + 3):
            drawn = ops.randn((len(SEEDS), size), seeds=SEEDS, stream=stream)
            assert torch.equal(drawn, counter.normal(SEEDS, size, stream)), (isa, stream)
    finally:
        native.set_isa("")


@needs_cpp
def test_the_number_of_threads_does_not_matter():
    shape = (3, 20_001)
    expected = counter.normal(SEEDS[:3], shape[1])
    for count in (1, 2, 3, 5):
        with threads(count):
            assert torch.equal(ops.randn(shape, seeds=SEEDS[:3]), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["auto", "reference"])
def test_an_image_depends_on_its_own_seed_alone(name, dtype):
    with backend.use(name):
        whole = ops.randn((4, 3, 5, 7), seeds=SEEDS, stream=2, dtype=dtype)
        assert (whole.dtype, whole.is_contiguous()) == (dtype, True)
        for i, seed in enumerate(SEEDS.tolist()):
            alone = ops.randn((1, 3, 5, 7), seeds=[seed], stream=2)
            assert torch.equal(whole[i], alone[0].to(dtype))
    assert torch.equal(whole.flatten(1), counter.normal(SEEDS, 105, 2).to(dtype))


def test_an_image_may_be_larger_or_smaller():
    large = ops.randn((1, 10_000), seeds=[7])
    assert torch.equal(ops.randn((1, 129), seeds=[7]), large[:, :129])


def test_a_source_gives_streams_by_row():
    source, x = CounterNoise([3, 9]), torch.empty(2, 4, 8, 8)
    seeds = source.seeds_on(torch.device("cpu"))
    assert seeds.tolist() == [3, 9] and seeds is source.seeds_on(torch.device("cpu"))
    for stream, drawn in [(0, source.start(x)), (1, source.step(x, None, 0)), (6, source.step(x, None, 5))]:
        assert torch.equal(drawn.flatten(1), counter.normal(seeds, 256, stream))
    assert source.path(2).seeds == [3, 9]
    with pytest.raises(ValueError, match="2 seeds for 3 images"):
        source.start(torch.empty(3, 4))


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "dpmpp_sde"])
def test_a_sampled_image_depends_on_its_own_seed_alone(sampler):
    def sample(*seeds):
        return fastdiff.sample(
            lambda x, t: 0.3 * x, (len(seeds), 3, 4, 4), schedule=schedules.karras(0.03, 14.6), sampler=sampler,
            steps=5, noise=CounterNoise(seeds),
        )  # fmt: skip

    together = sample(3, 2**62)
    assert together.isfinite().all()
    assert torch.equal(together, torch.cat([sample(3), sample(2**62)]))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing_to_draw(shape):
    assert ops.randn(shape, seeds=range(shape[0])).shape == shape


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"seeds": [1]}, ValueError, r"seeds has shape \(1,\)"),
        ({"seeds": [1, -2]}, ValueError, "a seed must be an integer"),
        ({"seeds": [1, 2.0]}, ValueError, "a seed must be an integer"),
        ({"seeds": [1, 2**63]}, ValueError, "a seed must be an integer"),
        ({"seeds": 5}, TypeError, "one integer for each image"),
        ({"seeds": torch.tensor([1.0, 2.0])}, TypeError, "seeds is float32"),
        ({"seeds": [1, 2], "stream": -1}, ValueError, "stream must be"),
        ({"seeds": [1, 2], "generator": torch.Generator()}, ValueError, "not both"),
        ({"seeds": [1, 2], "dtype": torch.int64}, TypeError, "dtype is"),
    ],
)
def test_errors(options, error, words):
    with pytest.raises(error, match=words):
        ops.randn((2, 3), **options)
