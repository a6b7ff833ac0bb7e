"""fastdiff.sample: the loop, starting points, dtypes, seeds, reuse and misuse."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch

import fastdiff
from fastdiff import schedules
from fastdiff.plan import Plan
from fastdiff.samplers import SAMPLERS
from oracles import execute, mixture_2d, output_of

MIXTURE = mixture_2d()
KARRAS = schedules.karras(0.03, 14.6)
BETAS = schedules.scaled_linear_betas()
FLOW = schedules.flow(shift=3.0)
CASES = {"sample": KARRAS, "edm": schedules.edm(0.01, 40.0), "epsilon": BETAS, "v": BETAS, "flow": FLOW}


def model_of(schedule, prediction):
    """A perfect model of the mixture, called as users call one: model(x_in, t)."""
    output = output_of(MIXTURE.denoise, prediction)

    def model(x, t):
        if prediction == "edm":  # called by log(sigma) / 4
            levels = [schedule.process.level(float(torch.exp(4 * t[0].double())))]
        else:
            levels = [schedule.process.level(float(t[0]))]
        return output(x.double(), levels[0]).to(x.dtype)

    return model


def start_of(schedule, count=16, steps=20, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    level = schedule.levels(steps)[0]
    noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return (level.alpha * MIXTURE.draw(count, generator) + level.sigma * noise).to(dtype)


class Recorded:
    """A noise source that remembers, so that the oracle can be given the same noise."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(3)
        self.drawn = []

    def start(self, x):
        return torch.randn(x.shape, generator=self.generator)

    def step(self, x, span, row):
        self.drawn.append(torch.randn(x.shape, generator=self.generator))
        return self.drawn[-1]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", CASES)
def test_fifty_steps_agree_with_the_float64_oracle(sampler, prediction):
    """The float32 loop, kernel and all, ends within 1e-5 of the same rows walked in float64."""
    schedule, steps = CASES[prediction], 50
    x = start_of(schedule, steps=steps)
    noise = Recorded()
    plan = Plan.build(SAMPLERS[sampler], schedule.levels(steps), prediction=prediction)
    output = output_of(MIXTURE.denoise, prediction)

    # The oracle's model rounds as the tested one does not: both are given the same analytic float64 function.
    calls = iter([row.level for row in plan.rows if row.call])

    def model(x_in, t):
        return output(x_in.double(), next(calls)).float()

    got = fastdiff.sample(model, x, sampler=plan, noise=noise)
    drawn = iter(noise.drawn)
    exact = execute(plan, output, x.double(), lambda i, row: next(drawn).double())
    assert (got.double() - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize(
    "sampler", ["euler", "heun", "pndm", "dpmpp_2m", "unipc", "edm", "restart", "dpm_adaptive"]
)
def test_the_differentiable_loop_gives_the_same_bits(sampler):
    x = start_of(KARRAS)
    arguments = {"schedule": KARRAS, "sampler": sampler, "steps": 12, "prediction": "sample", "seed": 5}
    plain = fastdiff.sample(model_of(KARRAS, "sample"), x, **arguments)
    recorded = fastdiff.sample(model_of(KARRAS, "sample"), x, differentiable=True, **arguments)
    assert torch.equal(plain, recorded)


def test_gradients_flow_through_every_step():
    x = start_of(KARRAS, count=4, dtype=torch.float64).requires_grad_()
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    schedule = schedules.karras(0.1, 5.0)

    def run(x, weight):
        def model(x_in, t):
            return torch.tanh(weight * x_in)

        return fastdiff.sample(
            model, x, schedule=schedule, sampler="dpmpp_2m", steps=4, prediction="sample", differentiable=True
        )

    assert torch.autograd.gradcheck(run, (x, weight))


def test_a_run_in_inference_mode_does_not_spoil_the_next():
    schedule = schedules.karras(0.1, 7.0)  # one of its own: nothing of it is remembered yet
    options = {"schedule": schedule, "steps": 5, "prediction": "sample"}
    weight = torch.tensor(0.5, requires_grad=True)
    with torch.inference_mode():
        fastdiff.sample(lambda x, t: x / 2, torch.ones(2, 3), **options)
    image = fastdiff.sample(lambda x, t: weight * x, torch.ones(2, 3), differentiable=True, **options)
    assert torch.autograd.grad(image.sum(), weight)[0].isfinite()


def test_no_gradients_are_recorded_otherwise():
    weight = torch.ones((), requires_grad=True)
    x = fastdiff.sample(
        lambda x, t: weight * x / 2, (2, 3), schedule=KARRAS, steps=3, prediction="sample", seed=0
    )
    assert not x.requires_grad


def test_the_starting_point_is_not_written_to():
    x = start_of(KARRAS)
    before = x.clone()
    fastdiff.sample(model_of(KARRAS, "sample"), x, schedule=KARRAS, steps=5, prediction="sample")
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_model_sees_its_dtype_and_the_state_stays_float32(dtype):
    seen = set()

    def model(x, t):
        seen.add((x.dtype, t.dtype))
        return x / 2

    x = torch.randn(2, 3, 8, 8) * 14
    half = fastdiff.sample(model, x.to(dtype), schedule=KARRAS, steps=30, prediction="sample")
    exact = fastdiff.sample(
        lambda x, t: x / 2, x.to(dtype).double(), schedule=KARRAS, steps=30, prediction="sample"
    )
    assert seen == {(dtype, torch.float32)}
    assert half.dtype == dtype
    # Rounding of one output, not of thirty states.
    assert (half.double() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()


def test_a_shape_is_drawn_at_the_first_level():
    x = fastdiff.sample(
        lambda x, t: torch.zeros_like(x), (2000, 4), schedule=KARRAS, steps=1, prediction="sample", seed=1
    )
    assert torch.equal(x, torch.zeros(2000, 4))
    seen = []

    def model(x, t):
        seen.append(x.clone())
        return torch.zeros_like(x)

    fastdiff.sample(
        model,
        (2000, 4),
        schedule=KARRAS,
        steps=2,
        prediction="sample",
        generator=torch.Generator().manual_seed(4),
    )
    expected = 14.6 * torch.randn(2000, 4, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(seen[0], expected)


def test_per_image_seeds_do_not_depend_on_the_neighbours():
    model = model_of(KARRAS, "sample")
    options = {"schedule": KARRAS, "sampler": "dpmpp_2m_sde", "steps": 10, "prediction": "sample"}
    together = fastdiff.sample(model, (3, 2), seed=[11, 12, 13], **options)
    alone = fastdiff.sample(model, (1, 2), seed=[12], **options)
    assert torch.equal(together[1:2], alone)
    swapped = fastdiff.sample(model, (3, 2), seed=[13, 12, 11], **options)
    assert torch.equal(together.flip(0), swapped)


def test_a_plan_can_be_walked_again_and_shared_by_threads():
    plan = Plan.build(SAMPLERS["dpmpp_2m_sde"], KARRAS.levels(12), prediction="sample")
    expected = [fastdiff.sample(lambda x, t: x / 2, (n + 1, 5), sampler=plan, seed=n) for n in range(8)]
    results: dict[int, torch.Tensor] = {}

    def work(n):
        for _ in range(5):
            results[n] = fastdiff.sample(lambda x, t: x / 2, (n + 1, 5), sampler=plan, seed=n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[n], expected[n]) for n in range(8))


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    fastdiff.sample(
        lambda x, t: x / 2, (2, 2), schedule=KARRAS, sampler="euler_ancestral", prediction="sample", seed=1
    )
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("prediction", ["sample", "v", "flow"])
def test_part_way_starts_from_the_noised_image(strength, prediction):
    schedule = CASES[prediction]
    image = MIXTURE.draw(16, torch.Generator().manual_seed(0)).float()
    calls = []

    def model(x, t):
        calls.append((x.clone(), float(t[0])))
        return model_of(schedule, prediction)(x, t)

    result = fastdiff.sample(
        model, image, schedule=schedule, strength=strength, steps=20, prediction=prediction, seed=2
    )
    assert len(calls) == int(20 * strength)
    if strength == 0.0:
        assert torch.equal(result, image)
        return
    level = schedule.levels(20)[20 - len(calls)]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(calls[0][0], level.alpha * image + level.sigma * noise, rtol=1e-6, atol=1e-6)
    assert calls[0][1] == pytest.approx(level.t)


@pytest.mark.parametrize("schedule", [schedules.cosine_betas(), schedules.scaled_linear_betas(zero_snr=True)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_schedules_that_end_in_pure_noise_are_sampled_well(sampler, schedule):
    """Next to pure noise neither the image nor the rounding blows up: true deviation 0.5, float32 as float64."""

    def model(x, t):
        level = schedule.process.level(float(t[0]))
        denoised = level.alpha * 0.25 / (level.alpha**2 * 0.25 + level.sigma**2) * x
        return (level.alpha * x - denoised) / level.sigma  # v

    x = torch.randn(1, 2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"schedule": schedule, "sampler": sampler, "steps": 30, "prediction": "v", "seed": 9}
    exact, single = (fastdiff.sample(model, start, **options) for start in (x, x.float()))
    assert 0.25 < exact.std() < 0.6  # lcm and tcd, made for other models, lose some
    assert (single - exact).abs().max() < 1e-5 * exact.abs().max()


def test_plans_and_schedules_survive_pickle_and_copies():
    for schedule in (KARRAS, BETAS, FLOW, schedules.vp(), schedules.from_sigmas([5.0, 1.0, 0.0])):
        plan = Plan.build(SAMPLERS["heun"], schedule.levels(5), prediction="v")
        for copied in (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)):
            assert (copied.table == plan.table).all() and not copied.table.flags.writeable
            assert copied.start_at(0.5).calls == plan.start_at(0.5).calls
        again = pickle.loads(pickle.dumps(schedule)).levels(5)
        assert [(a.t, a.alpha, a.sigma) for a in again] == [
            (a.t, a.alpha, a.sigma) for a in schedule.levels(5)
        ]


def test_planners_that_change_are_planned_afresh():
    class Planner:
        eta = 0.0

        def __call__(self, levels):
            return SAMPLERS["ddim"](levels, eta=self.eta)

    planner, options = Planner(), {"schedule": KARRAS, "prediction": "sample", "seed": 0}
    before = fastdiff.sample(lambda x, t: x / 2, (1, 8), sampler=planner, **options)
    planner.eta = 1.0
    assert not torch.equal(before, fastdiff.sample(lambda x, t: x / 2, (1, 8), sampler=planner, **options))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_model_may_write_to_its_time(mode):
    schedule = schedules.karras(0.2, 9.0)
    seen = []

    def model(x, t):
        seen.append(t.tolist())
        t.zero_()
        return x / 2

    with mode():
        for _ in range(3):
            fastdiff.sample(model, (2, 3), schedule=schedule, steps=4, prediction="sample", seed=0)
    assert seen[:4] == seen[4:8] == seen[8:] and seen[0] == pytest.approx([9.0, 9.0])


def test_models_may_return_their_input():
    x = fastdiff.sample(lambda x, t: x, torch.ones(2, 3), schedule=KARRAS, steps=6, prediction="sample")
    assert torch.allclose(x, torch.ones(2, 3))
