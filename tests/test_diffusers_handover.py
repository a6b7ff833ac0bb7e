"""A loop that began fused and goes on in diffusers' own step: reverted, not fusable part-way, read from."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
import warnings
from typing import Any

import pytest

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import fastdiff.diffusers as fused  # noqa: E402
from fastdiff.diffusers.history import lost  # noqa: E402

STEPS = 8
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverSinglestepScheduler", {}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
    ("DPMSolverSDEScheduler", {"noise_sampler_seed": 3}),
    ("UniPCMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "prediction_type": "v_prediction"}),
    ("UniPCMultistepScheduler", {"disable_corrector": [2, 3]}),
    ("DEISMultistepScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("IPNDMScheduler", {}),
    ("PNDMScheduler", {}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("SASolverScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
    ("CosineDPMSolverMultistepScheduler", {}),
    ("FlowMatchHeunDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {}),
    ("DDIMScheduler", {}),
)
ids = [name + "".join(f"-{key}" for key in config) for name, config in CASES]


def made(module: Any, name: str, config: dict[str, Any], steps: int = STEPS) -> Any:
    scheduler = getattr(module, name)(**config)
    scheduler.set_timesteps(steps)
    return scheduler


def start(scheduler: Any, batch: int = 2) -> Tensor:
    noise = torch.randn(batch, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    return noise * float(getattr(scheduler, "init_noise_sigma", 1.0))


def advanced(scheduler: Any, x: Tensor, i: int, rows: int | None = None) -> Tensor:
    """One step. rows: of the model's output that are passed on, of which the others are copies."""
    t = scheduler.timesteps[i]
    scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
    output = (scaled * 1.3 + 0.1).sin() * 0.9
    torch.manual_seed(i)  # by whose hand a step is taken, its noise is the same
    return scheduler.step(output[:rows], t, x, return_dict=False)[0]


def assert_near(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("before", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("name, config", CASES, ids=ids)
def test_reverted_in_the_middle_of_a_loop(name: str, config: dict[str, Any], before: int) -> None:
    scheduler, theirs = made(fused, name, config), made(diffusers, name, config)
    x, expected = start(theirs), start(theirs)
    for i in range(len(theirs.timesteps)):
        if i == before:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                scheduler = fused.revert(scheduler)
            assert type(scheduler) is type(theirs)
        x, expected = advanced(scheduler, x, i), advanced(theirs, expected, i)
        assert_near(x, expected)


@pytest.mark.parametrize("name, config", CASES, ids=ids)
def test_an_unfused_step_in_between(name: str, config: dict[str, Any]) -> None:
    scheduler, theirs = made(fused, name, config), made(diffusers, name, config)
    for _ in range(2):
        x, expected = start(theirs), start(theirs)
        for i in range(len(theirs.timesteps)):
            if i == 4:  # more rows than the sample: diffusers' result grows
                x, expected = x[:1].clone(), expected[:1].clone()
                t = theirs.timesteps[i]
                output = torch.linspace(-1, 1, 128).reshape(2, 4, 4, 4)
                try:
                    torch.manual_seed(0)
                    after = theirs.step(output, t, expected, return_dict=False)[0]
                except (RuntimeError, ValueError):
                    pytest.skip("diffusers cannot either")
                torch.manual_seed(0)
                x, expected = scheduler.step(output, t, x, return_dict=False)[0], after
            else:
                x, expected = advanced(scheduler, x, i), advanced(theirs, expected, i)
            assert_near(x, expected)
        scheduler.set_timesteps(STEPS)
        theirs.set_timesteps(STEPS)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "PNDMScheduler"])
def test_an_output_that_broadcasts_stays_fused(name: str) -> None:
    config = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    scheduler, theirs = made(fused, name, config), made(diffusers, name, config)
    x, expected = start(theirs), start(theirs)
    for i in range(len(theirs.timesteps)):
        rows = 1 if i in (3, 4) else None
        x, expected = advanced(scheduler, x, i, rows), advanced(theirs, expected, i, rows)
        assert_near(x, expected)
    assert scheduler._plain is None


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_pipeline_cuts_the_history_itself(name: str) -> None:
    """ChronoEdit drops frames of the latents and of what the scheduler remembers."""

    def cut(scheduler: Any, x: Tensor) -> Tensor:
        for j, image in enumerate(scheduler.model_outputs):
            if image is not None and image.shape[1] != 2:
                scheduler.model_outputs[j] = image[:, [0, -1]]
        if getattr(scheduler, "last_sample", None) is not None:
            scheduler.last_sample = scheduler.last_sample[:, [0, -1]]
        return x[:, [0, -1]]

    scheduler, theirs = made(fused, name, {}), made(diffusers, name, {})
    for _ in range(2):
        x, expected = start(theirs), start(theirs)
        for i in range(len(theirs.timesteps)):
            if i == 4:
                x, expected = cut(scheduler, x), cut(theirs, expected)
            x, expected = advanced(scheduler, x, i), advanced(theirs, expected, i)
            assert_near(x, expected)
        scheduler.set_timesteps(STEPS)
        theirs.set_timesteps(STEPS)


def test_what_a_scheduler_remembers_can_be_read() -> None:
    scheduler, theirs = (made(m, "DPMSolverMultistepScheduler", {}) for m in (fused, diffusers))
    assert scheduler.model_outputs == [None, None]
    x = expected = start(theirs)
    for i in range(3):
        x, expected = advanced(scheduler, x, i), advanced(theirs, expected, i)
    assert scheduler.lower_order_nums == theirs.lower_order_nums
    assert len(scheduler.model_outputs) == 2
    assert_near(scheduler.model_outputs[-1], theirs.model_outputs[-1])  # the other one no step reads again


def test_a_new_loop_after_an_interrupted_one_is_fused_again() -> None:
    scheduler, theirs = (made(m, "UniPCMultistepScheduler", {}) for m in (fused, diffusers))
    x = start(theirs)
    for i in range(4):
        x = advanced(scheduler, x, i)
    assert scheduler.last_sample is not None
    x = expected = start(theirs)
    for i in range(STEPS):
        x, expected = advanced(scheduler, x, i), advanced(theirs, expected, i)
    assert_near(x, expected)
    assert scheduler._plain is None


@pytest.mark.parametrize("when", [0, 3])
def test_copies_of_a_loop_handed_over_go_on_apart(when: int) -> None:
    scheduler, theirs = (made(m, "UniPCMultistepScheduler", {}) for m in (fused, diffusers))
    x = expected = start(theirs)
    for i in range(5):
        if i == when:
            scheduler.last_sample  # noqa: B018
        x, expected = advanced(scheduler, x, i), advanced(theirs, expected, i)
    other, y = copy.deepcopy(scheduler), x
    for i in range(5, STEPS):
        x, y, expected = advanced(scheduler, x, i), advanced(other, y, i), advanced(theirs, expected, i)
    assert_near(x, expected)
    assert_near(y, expected)


def test_threads_share_a_scheduler_that_is_never_fused() -> None:
    config = {"solver_order": 5}  # it remembers more than the kernel reads
    scheduler = made(fused, "UniPCMultistepScheduler", config)
    assert scheduler.fallback is not None
    barrier, results = threading.Barrier(2), {}

    def run(mine: Any, number: int, wait: Any) -> Tensor:
        mine.set_timesteps(STEPS + number)
        x = start(mine) + number
        for i in range(STEPS + number):
            wait()
            t = mine.timesteps[i]
            x = mine.step((x * 1.3).sin(), t, x, return_dict=False)[0]
            if i == STEPS - 1:
                barrier.abort()
        return x

    def waiting() -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(5)

    def work(number: int) -> None:
        results[number] = run(scheduler, number, waiting)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for number in range(2):
        theirs = made(diffusers, "UniPCMultistepScheduler", config)
        assert_near(results[number], run(theirs, number, lambda: None))


@pytest.mark.parametrize("how", ["copied", "converted", "never set"])
def test_a_copy_compiles(how: str) -> None:
    name = "DDPMScheduler" if how == "never set" else "DPMSolverMultistepScheduler"
    theirs = getattr(diffusers, name)()
    if how != "never set":
        theirs.set_timesteps(STEPS)
    scheduler = fused.convert(theirs) if how == "converted" else getattr(fused, name)()
    if how == "copied":
        scheduler.set_timesteps(STEPS)
        scheduler = copy.deepcopy(scheduler)
    torch._dynamo.reset()
    compiled = torch.compile(scheduler.step, fullgraph=True, backend="eager")
    x = expected = start(theirs)
    for t in theirs.timesteps[:3]:
        output = (x * 1.3).sin()
        torch.manual_seed(0)
        x = compiled(output, t, x, return_dict=False)[0]
        torch.manual_seed(0)
        expected = theirs.step(output, t, expected, return_dict=False)[0]
        assert_near(x, expected)


def test_an_image_not_kept_is_refused_when_read() -> None:
    image = lost((2, 3), torch.float32, torch.device("cpu"))
    assert image.shape == (2, 3)
    for other in (copy.deepcopy([image])[0], pickle.loads(pickle.dumps(image))):
        assert other[:, :1].shape == (2, 1)
    with pytest.raises(RuntimeError, match="set_timesteps"):
        image * 2.0
