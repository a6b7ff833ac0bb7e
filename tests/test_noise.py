"""Noise sources: the bits of torch, independence of the batch, and the Brownian path."""

from __future__ import annotations

import math
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import schedules
from fastdiff.levels import Level
from fastdiff.noise import BrownianNoise, GeneratorNoise, SeededNoise

LEVELS = schedules.karras(0.03, 14.6).levels(10)


def width(a: Level, b: Level) -> float:
    return abs(a.sigma / (a.alpha + a.sigma) - b.sigma / (b.alpha + b.sigma))


def test_a_generator_gives_the_bits_of_randn():
    source = GeneratorNoise(torch.Generator().manual_seed(9))
    expected = torch.Generator().manual_seed(9)
    x = torch.empty(2, 3, 8, 8)
    assert torch.equal(source.start(x), torch.randn(x.shape, generator=expected))
    assert torch.equal(source.step(x, (LEVELS[0], LEVELS[1]), 0), torch.randn(x.shape, generator=expected))


def test_without_a_generator_the_global_one_is_used():
    torch.manual_seed(21)
    noise = GeneratorNoise().start(torch.empty(5))
    torch.manual_seed(21)
    assert torch.equal(noise, torch.randn(5))


def test_seeds_are_one_generator_each():
    noise = SeededNoise([3, 4]).start(torch.empty(2, 6))
    for row, seed in zip(noise, (3, 4)):
        assert torch.equal(row, torch.randn(6, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("seeds", [[1.5], [True], [-1], [2**63], ["1"]])
@pytest.mark.parametrize("source", [SeededNoise, BrownianNoise])
def test_bad_seeds_are_refused(source, seeds):
    with pytest.raises(ValueError, match="seed must be an integer"):
        source(seeds)


@pytest.mark.parametrize("source", [SeededNoise([1, 2]), BrownianNoise([1, 2])])
def test_a_wrong_number_of_seeds_is_refused(source):
    with pytest.raises(ValueError, match="2 seeds for 3 images"):
        source.start(torch.empty(3, 4))


def test_brownian_increments_are_standard_and_independent():
    source, x = BrownianNoise([5]), torch.empty(1, 60_000)
    increments = torch.stack([source.step(x, pair, 0)[0] for pair in pairwise(LEVELS)]).double()
    correlation = increments @ increments.T / x.shape[1]
    # Five standard errors of a correlation of 60,000 pairs.
    assert (correlation - torch.eye(10, dtype=torch.float64)).abs().max() < 5 * math.sqrt(2 / 60_000)
    assert increments.mean(1).abs().max() < 5 / math.sqrt(60_000)


def test_brownian_increments_add_up():
    source, x = BrownianNoise([5, 6]), torch.empty(2, 500)
    whole = source.step(x, (LEVELS[0], LEVELS[6]), 0) * math.sqrt(width(LEVELS[0], LEVELS[6]))
    parts = sum(source.step(x, (a, b), 0) * math.sqrt(width(a, b)) for a, b in pairwise(LEVELS[:7]))
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-6)


def test_the_brownian_path_depends_on_nothing_but_its_seed():
    x, pair = torch.empty(1, 100), (LEVELS[3], LEVELS[4])
    alone = BrownianNoise([8]).step(x, pair, 0)
    busy = BrownianNoise([7, 8])
    for a, b in zip(LEVELS, LEVELS[2:]):
        busy.step(torch.empty(2, 100), (a, b), 0)
    assert torch.equal(busy.step(torch.empty(2, 100), pair, 0)[1:], alone)
    assert torch.equal(
        busy.step(torch.empty(2, 40), pair, 0)[1, :40],
        BrownianNoise([8]).step(torch.empty(1, 40), pair, 0)[0],
    )


def test_brownian_noise_serves_flow_from_pure_noise():
    levels = schedules.flow().levels(8)
    source = BrownianNoise([1])
    noise = torch.stack([source.step(torch.empty(1, 20_000), pair, 0) for pair in pairwise(levels)])
    assert noise.isfinite().all()
    assert noise.std() == pytest.approx(1.0, abs=0.02)


def test_brownian_steps_finer_than_the_tree_are_refused():
    process = schedules.karras().process
    with pytest.raises(ValueError, match="greater depth"):
        BrownianNoise([1], depth=8).step(torch.empty(1, 2), (process.level(1.0001), process.level(1.0)), 0)
    with pytest.raises(ValueError, match="depth must be"):
        BrownianNoise([1], depth=0)


def test_noise_put_back_is_fresh_in_every_row():
    """Churn and restart go up the path: increments taken there would come again on the way down."""
    source, x = BrownianNoise([5]), torch.empty(1, 20_000)
    rising = [source.step(x, (LEVELS[4], LEVELS[3]), row)[0] for row in range(3)]
    falling = source.step(x, (LEVELS[3], LEVELS[4]), 3)[0]
    correlation = torch.corrcoef(torch.stack([*rising, falling]))
    assert (correlation - torch.eye(4)).abs().max() < 0.04


@pytest.mark.parametrize(
    ("sampler", "steps", "options"),
    [
        ("edm", 60, {"s_noise": 1.0}),
        ("restart", 60, {"repeats": 6}),
        ("dpm_adaptive", 20, {"eta": 1.0, "rtol": 0.005, "atol": 0.001}),
        ("dpmpp_sde", 40, {}),
        ("euler_ancestral", 200, {}),
    ],
)
def test_the_brownian_path_keeps_the_distribution(sampler, steps, options):
    """Gaussian data of deviation 0.5 comes out with it, as with independent noise."""

    def model(x, t):
        return x * 0.25 / (0.25 + t[:, None] ** 2)

    schedule = schedules.karras(0.02, 20.0)
    x = 20.0 * torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    arguments = {
        "schedule": schedule,
        "sampler": sampler,
        "steps": steps,
        "options": options,
        "prediction": "sample",
    }
    image = fastdiff.sample(model, x, noise=BrownianNoise([3]), **arguments)
    assert image.std() == pytest.approx(0.5, abs=0.03)


def test_threads_may_share_a_path():
    source, x, results = BrownianNoise([1]), torch.empty(1, 64), {}
    expected = [BrownianNoise([1]).step(x, pair, 0) for pair in pairwise(LEVELS)]

    def work(n):
        results[n] = [source.step(x, pair, 0) for _ in range(5) for pair in pairwise(LEVELS)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for n in range(6) for a, b in zip(results[n], expected * 5))


def test_integers_of_any_kind_are_seeds():
    expected = SeededNoise([3, 4]).start(torch.empty(2, 5))
    for seeds in (np.array([3, 4]), torch.tensor([3, 4]), (np.int64(3), np.int32(4))):
        assert torch.equal(SeededNoise(seeds).start(torch.empty(2, 5)), expected)


@pytest.mark.parametrize(
    "seeds", [{"seed": 5}, {"seed": [5]}, {"generator": torch.Generator().manual_seed(5)}, {}]
)
def test_stages_and_their_steps_share_a_path_without_being_asked(seeds):
    """dpmpp_sde draws noise for a stage inside a step; independent draws would narrow the images (0.459 here)."""

    def model(x, t):
        return x * 0.25 / (0.25 + t[:, None] ** 2)

    torch.manual_seed(2)
    x = 14.6 * torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))
    options = {
        "schedule": schedules.karras(0.03, 14.6),
        "sampler": "dpmpp_sde",
        "steps": 50,
        "prediction": "sample",
    }
    assert fastdiff.sample(model, x, **options, **seeds).std() == pytest.approx(0.5, abs=0.015)
