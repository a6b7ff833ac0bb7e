"""Sampling with CounterNoise: drawn inside the step, and the same as if it were given to it."""

from __future__ import annotations

import pytest
import torch

import fastdiff
from fastdiff import CounterNoise, Inpaint, backend, schedules

KARRAS = schedules.karras(0.1, 10.0)
SEEDS = [7, 2**40 + 3, 0]
SHAPE = (3, 2, 9, 7)


class Given:
    """The same noise as a source the executor knows nothing of."""

    def __init__(self, seeds):
        self.source = CounterNoise(seeds)

    def start(self, x):
        return self.source.start(x)

    def step(self, x, span, row):
        return self.source.step(x, span, row)


def model(x, t):
    return x / (1 + t.reshape(-1, 1, 1, 1) ** 2)


def run(noise, shape=SHAPE, **changes):
    options = {"schedule": KARRAS, "steps": 5, "prediction": "sample", "sampler": "euler_ancestral"} | changes
    return fastdiff.sample(options.pop("model", model), shape, noise=noise, **options)


STOCHASTIC = [
    "ddpm",
    "euler_ancestral",
    "dpm_2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "lcm",
    "edm",
    "restart",
    "sa_solver",
    "tcd",
]


@pytest.mark.parametrize("sampler", [*STOCHASTIC])
@pytest.mark.parametrize("name", ["reference", "auto"])
def test_drawn_in_the_step_as_if_given(sampler, name):
    with backend.use(name):
        drawn, given = run(CounterNoise(SEEDS), sampler=sampler), run(Given(SEEDS), sampler=sampler)
        assert torch.equal(drawn, given)
        assert torch.equal(drawn, run(CounterNoise(SEEDS), sampler=sampler))
        assert not torch.equal(drawn, run(CounterNoise([1, 2, 3]), sampler=sampler))


def test_an_image_depends_on_its_own_seed_alone():
    together = run(CounterNoise(SEEDS))
    alone = run(CounterNoise(SEEDS[1:2]), (1, *SHAPE[1:]))
    assert torch.equal(together[1:2], alone)


def test_other_layouts_see_the_same_noise():
    turned = run(CounterNoise(SEEDS), model=lambda x, t: model(x, t).to(memory_format=torch.channels_last))
    torch.testing.assert_close(turned, run(CounterNoise(SEEDS)))


def test_gradients_flow_around_it():
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    plain = run(CounterNoise(SEEDS), x)
    x.requires_grad_()
    recorded = run(CounterNoise(SEEDS), x, differentiable=True)
    torch.testing.assert_close(recorded, plain)
    assert torch.autograd.grad(recorded.sum(), x)[0].abs().min() > 0


@pytest.mark.parametrize("sampler", ["dpmpp_sde", "dpm_adaptive"])
def test_where_rows_share_noise_it_becomes_a_path(sampler):
    options = {"eta": 1.0} if sampler == "dpm_adaptive" else {}
    result = run(CounterNoise(SEEDS), sampler=sampler, options=options)
    assert result.isfinite().all()
    assert torch.equal(result, run(CounterNoise(SEEDS), sampler=sampler, options=options))


def test_with_a_mask():
    image, mask = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)), torch.ones(SHAPE[2:])
    mask[3:] = 0
    result = run(CounterNoise(SEEDS), inpaint=Inpaint(image, mask))
    assert torch.equal(result, run(Given(SEEDS), inpaint=Inpaint(image, mask)))
    assert torch.equal(result[:, :, 3:], image[:, :, 3:])


def test_one_seed_for_each_image():
    with pytest.raises(ValueError, match="seeds"):
        run(CounterNoise(SEEDS[:2]))
    start = torch.randn(SHAPE)
    with pytest.raises(ValueError, match="seeds"):
        run(CounterNoise(SEEDS[:2]), start)
