"""sample(graph=True): the same bits as the eager loop, whatever the sampler, noise, guidance, dtype and layout."""

from __future__ import annotations

import functools

import pytest
import torch

from fastdiff import BrownianNoise, CounterNoise, DynamicThreshold, Inpaint, samplers, schedules
from graph_cases import SHAPE, check, guided, run

COUNTERS = functools.partial(CounterNoise, [7, 8])


@pytest.mark.parametrize("sampler", sorted(samplers.SAMPLERS))
def test_every_sampler(place, sampler):
    net, x = place.net(), place.randn()
    for steps in (4, 9, 30):
        check(net, x, sampler=sampler, steps=steps, seed=[1, 2])
        check(net, x, sampler=sampler, steps=steps, noise=COUNTERS)
    # noise given, noise drawn in the step; each once more where few steps add none, or many rows need a longer table
    assert place.records[0] <= (4 if sampler in ("edm", "restart") else 2)
    check(net, x, sampler=sampler, steps=1, seed=[1, 2])


def test_twenty_schedules_through_one_capture(place):
    net, x = place.net(), place.randn()
    for i in range(20):
        schedule = schedules.karras(0.02 + 0.01 * i, 5.0 + i) if i % 2 else schedules.scaled_linear_betas()
        check(net, x, schedule=schedule, steps=3 + i, sampler="euler", clip=3.0 - 0.1 * i)
    assert place.records == [1]
    check(net, x, steps=70, sampler="euler")
    assert place.records == [2]  # a longer table


SOURCES = {
    "one seed": {"seed": 3},
    "a seed each": {"seed": [3, 4]},
    "a generator": {"generator": functools.partial(torch.Generator().manual_seed, 9)},
    "counters": {"noise": COUNTERS},
    "a path": {"noise": functools.partial(BrownianNoise, [3, 4])},
}


@pytest.mark.parametrize("name", SOURCES)
def test_noise_goes_on_from_row_to_row_and_run_to_run(place, name):
    net, x = place.net(), place.randn()
    first = check(net, x, sampler="euler_ancestral", **SOURCES[name])
    assert torch.equal(first, check(net, x, sampler="euler_ancestral", **SOURCES[name]))
    check(net, SHAPE, device=place.device, sampler="dpmpp_sde", **SOURCES[name])
    assert place.records[0] <= 2


@pytest.mark.parametrize("where", ["the CPU", "the images' device"])
def test_a_generator_is_left_as_after_an_eager_run(place, where):
    if where != "the CPU" and place.device.type == "cpu":
        pytest.skip("the images are on the CPU")
    net, x, states = place.net(), place.randn(), []
    for graph in (False, True, True):
        generator = torch.Generator("cpu" if where == "the CPU" else place.device).manual_seed(4)
        made = [run(net, x, sampler="euler_ancestral", generator=generator, graph=graph) for _ in range(2)]
        states.append((generator.get_state(), *made))
        assert not torch.equal(*made)
    for state in states[1:]:
        assert all(torch.equal(a, b) for a, b in zip(states[0], state))


def test_torchs_own_generator_is_left_as_after_an_eager_run(place):
    x, results = place.randn(), []
    for graph in (False, True):
        net = place.net()
        torch.manual_seed(1)
        made = run(net, x, sampler="euler_ancestral", graph=graph)
        results.append((made, torch.randn(3, device=place.device)))
    assert all(torch.equal(a, b) for a, b in zip(*results))


GUIDED = {
    "doubled": {"scale": 3.0},
    "two calls": {"scale": 3.0, "doubled": False},
    "interval": {"scale": 3.0, "interval": (0.5, 4.0)},
    "interval, two calls": {"scale": 3.0, "interval": (0.5, 4.0), "doubled": False},
    "rescale": {"scale": 3.0, "rescale": 0.7},
    "off": {"scale": 1.0},
}


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_guidance(place, name, sampler):
    net, x, guidance = place.net(), place.randn(), guided(place, **GUIDED[name])
    for shift in (1.0, 0.0):
        for threshold in (None, DynamicThreshold(0.9)):
            check(
                net, x, sampler=sampler, guidance=guidance, conditioning={"shift": place.tensor(shift, shift)},
                threshold=threshold, steps=7,
            )  # fmt: skip
    assert place.records[0] <= 4


def test_one_capture_for_every_scale(place):
    net, x = place.net(), place.randn()
    for scale in (1.5, 2.0, 7.5):
        check(net, x, guidance=guided(place, scale), conditioning={"shift": place.tensor(1.0, 1.0)})
    assert place.records == [1]


def test_inpainting(place):
    net, x = place.net(), place.randn()
    for seed in range(2):
        image = place.randn(1, *SHAPE[1:], seed=seed)
        mask = (image[:, :1] > 0).float()
        check(net, x, inpaint=Inpaint(image, mask), seed=seed)
        check(net, image.expand(SHAPE), inpaint=Inpaint(image, mask), seed=seed, strength=0.5)
    assert place.records[0] <= 2


def test_layouts_and_batches(place):
    net, x = place.net().to(memory_format=torch.channels_last), place.randn()
    for _ in range(2):
        check(net, x, sampler="euler_ancestral", seed=1)
        check(net, x.to(memory_format=torch.channels_last), noise=COUNTERS, sampler="dpmpp_2m_sde")
        check(net, x[:1], sampler="dpmpp_3m_sde", seed=[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(place, dtype):
    net, x = place.net().to(dtype), place.randn()
    check(net, x, dtype=dtype)
    check(net, x.to(dtype))
    shift = {"conditioning": {"shift": place.tensor(1.0, 1.0)}}
    check(net, x, dtype=dtype, guidance=guided(place, 3.0, rescale=0.7), **shift)
    made = check(net, (2, 8, 4, 4), device=place.device, dtype=dtype, seed=2)
    assert made.dtype == dtype


def test_conditioning_of_every_form(place):
    net, x = place.net(), place.randn()
    for i in range(3):
        extra = {"by": 2, "plus": [place.tensor(i)]}
        check(net, x, conditioning={"shift": place.tensor(i, i), "extra": extra})
    assert place.records == [1]
    check(net, x, conditioning={"extra": {"by": 3, "plus": (place.tensor(1.0),)}})
    assert place.records == [2]


def test_inference_mode(place):
    net, x = place.net(), place.randn()
    expected = run(net, x)
    for inference in (True, False, True):
        with torch.inference_mode(inference):
            for options in ({}, {"callback": lambda e: e.denoised}):
                assert torch.equal(run(net, x, graph=True, **options), expected)
    with torch.no_grad():
        assert torch.equal(run(net, x, graph=True), expected)
