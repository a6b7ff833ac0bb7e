"""Our schedulers in loops as people write them: callbacks, interruptions, second runs, threads, odd timesteps."""

from __future__ import annotations

import dataclasses
import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from diffusers_cases import NAMES, Case, default, draw, ours, theirs  # noqa: E402
from diffusers_loops import advance, build, generators, loop, network, start  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
every = pytest.mark.parametrize("name", NAMES)


def assert_near(got: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert torch.isfinite(a).all()
        assert (a.double() - b.double()).abs().max() <= tolerance * b.double().abs().max().clamp(min=1e-3)


def both(
    case: Case, hook: Callable[[int, Tensor], Tensor] | None = None, dtype: torch.dtype = torch.float32
) -> list[Any]:
    """(ours, theirs): the loops of a case."""
    return [
        loop(build(cls, case), case, dtype, generator=generators(case), hook=hook)
        for cls in (ours(case.scheduler), theirs(case.scheduler))
    ]


def replaced(i: int, x: Tensor) -> Tensor:
    return x * 0.9 + 0.01 if i % 2 else x


def written(i: int, x: Tensor) -> Tensor:
    return x.mul_(0.9).add_(0.01) if i % 2 else x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("hook", [replaced, written])
@every
def test_callbacks_change_the_latents(
    name: str, hook: Callable[[int, Tensor], Tensor], dtype: torch.dtype
) -> None:
    got, expected = both(default(name, 6), hook, dtype)
    assert_near(got, expected, 1e-5 if dtype == torch.float32 else 0.02)


@every
def test_results_stay_as_they_were_returned(name: str) -> None:
    case, kept, copies = default(name, 6), [], []

    def keep(_: int, x: Tensor) -> Tensor:
        kept.append(x)
        copies.append(x.clone())
        return x

    loop(build(ours(name), case), case, generator=generators(case), hook=keep)
    assert all(map(torch.equal, kept, copies))
    assert len({x.data_ptr() for x in kept}) == len(kept)


@pytest.mark.parametrize("announced", [False, True])
@every
def test_starts_part_way(name: str, announced: bool) -> None:
    case = default(name, 9, begin=3, announced=announced)
    try:
        expected = loop(build(theirs(name), case), case, generator=generators(case))
    except (NotImplementedError, TypeError, ValueError, RuntimeError, IndexError) as refusal:
        pytest.skip(f"diffusers: {refusal}")
    assert_near(loop(build(ours(name), case), case, generator=generators(case)), expected)


@every
def test_set_timesteps_again(name: str) -> None:
    case, scheduler = default(name, 6), build(ours(name), default(name, 9))
    loop(scheduler, default(name, 9), generator=generators(case))
    scheduler.set_timesteps(**case.timesteps)
    if hasattr(scheduler, "set_sigmas"):
        scheduler.set_sigmas(6)
    assert_near(loop(scheduler, case, generator=generators(case)), both(case)[1])


@every
def test_another_batch_size_afterwards(name: str) -> None:
    scheduler = build(ours(name), default(name))
    for batch in (2, 3, 1):
        case = default(name)
        case = default(name, shape=(batch, *case.shape[1:]))
        scheduler.set_timesteps(**case.timesteps)
        if hasattr(scheduler, "set_sigmas"):
            scheduler.set_sigmas(10)
        assert_near(loop(scheduler, case, generator=generators(case)), both(case)[1])


def cut(cls: type, case: Case) -> list[Tensor]:
    """A loop over timesteps of which the first four were cut off by hand, as some pipelines do for img2img."""
    scheduler = build(cls, case)
    scheduler.timesteps = scheduler.timesteps[4:]
    if case.announced:
        scheduler.set_begin_index(4)
    return loop(scheduler, case, generator=generators(case))


@pytest.mark.parametrize("announced", [False, True])
@every
def test_timesteps_cut_by_hand(name: str, announced: bool) -> None:
    """set_begin_index says at which level diffusers' loop begins, and not how much of the timesteps is left."""
    if announced and not hasattr(theirs(name), "set_begin_index"):
        pytest.skip("its steps are found by their timesteps")
    case = default(name, 10, announced=announced)
    try:
        expected = cut(theirs(name), case)
    except (AssertionError, IndexError, ValueError) as refusal:
        pytest.skip(f"diffusers: {refusal!r}")
    if not all(bool(torch.isfinite(value).all()) for value in expected):
        pytest.skip("diffusers' own divides by zero: its order falls at the wrong step")
    assert_near(cut(ours(name), case), expected)


class Interrupted(Exception):
    pass


@every
def test_a_new_run_after_an_interrupted_one(name: str) -> None:
    case = default(name, 6)

    def interrupt(i: int, x: Tensor) -> Tensor:
        if i == 1:
            raise Interrupted
        return x

    scheduler = build(ours(name), case)
    with pytest.raises(Interrupted):
        loop(scheduler, case, generator=generators(case), hook=interrupt)
    scheduler.set_timesteps(**case.timesteps)
    if hasattr(scheduler, "set_sigmas"):
        scheduler.set_sigmas(6)
    assert_near(loop(scheduler, case, generator=generators(case)), both(case)[1])


@every
def test_a_second_loop_without_set_timesteps(name: str) -> None:
    """diffusers: an IndexError in most classes, stale history in some. Ours: right, or a sentence."""
    case = default(name, 6)
    scheduler, expected = build(ours(name), case), both(case)[1]
    loop(scheduler, case, generator=generators(case))
    try:
        again = loop(scheduler, case, generator=generators(case))
    except (RuntimeError, ValueError, AssertionError) as refusal:
        assert "set_timesteps" in str(refusal) or scheduler.fallback is not None
    else:
        assert_near(again, expected)


@pytest.mark.parametrize("steps", [0, -1, 30])
@every
def test_numbers_of_steps_that_make_no_sense(name: str, steps: int) -> None:
    """Refused with a ValueError, or, where diffusers has an answer to more steps than training steps, that answer."""
    case = default(name, steps)
    if "num_train_timesteps" in inspect.signature(theirs(name)).parameters:
        case = dataclasses.replace(case, config={**case.config, "num_train_timesteps": 20})
    try:
        scheduler = build(ours(name), case)
    except ValueError:
        return
    assert steps > 0
    assert len(scheduler.timesteps) >= 1
    assert_near(*(loop(s, case, generator=generators(case)) for s in (scheduler, build(theirs(name), case))))


SHARED = {
    "DDIMScheduler": {}, "DDPMScheduler": {}, "EulerDiscreteScheduler": {}, "EulerAncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {}, "UniPCMultistepScheduler": {}, "HeunDiscreteScheduler": {},
    "FlowMatchEulerDiscreteScheduler": {}, "LCMScheduler": {}, "PNDMScheduler": {"skip_prk_steps": True},
}  # fmt: skip


@pytest.mark.parametrize("threads", [2, 8])
@pytest.mark.parametrize("name", SHARED)
def test_threads_share_a_scheduler(name: str, threads: int) -> None:
    scheduler, wrong = ours(name)(**SHARED[name]), []

    def loop_of(s: Any, steps: int) -> Tensor:
        s.set_timesteps(steps)
        g, x = torch.Generator().manual_seed(steps), torch.linspace(-1, 1, 24).reshape(1, 2, 3, 4)
        more = {"generator": g} if "generator" in inspect.signature(s.step).parameters else {}
        for t in s.timesteps:
            seen = s.scale_model_input(x, t) if hasattr(s, "scale_model_input") else x
            x = s.step((seen * 0.3).sin(), t, x, return_dict=False, **more)[0]
        return x

    expected = {n: loop_of(theirs(name)(**SHARED[name]), n) for n in range(2, 2 + threads)}

    def work(steps: int) -> None:
        try:
            for _ in range(100):
                assert_near([loop_of(scheduler, steps)], [expected[steps]])
        except Exception as failure:
            wrong.append(f"{steps} steps: {failure!r}")

    workers = [threading.Thread(target=work, args=(steps,)) for steps in expected]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong, wrong


STATELESS = (
    "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler", "CogVideoXDDIMScheduler", "DDPMScheduler",
    "DDPMParallelScheduler", "UnCLIPScheduler",
)  # fmt: skip


@pytest.mark.parametrize("name", STATELESS)
def test_timesteps_out_of_order(name: str) -> None:
    plain, mine = (build(cls, default(name)) for cls in (theirs(name), ours(name)))
    x, output = torch.randn(2, 1, 4, 4, 4)
    for t in (plain.timesteps[7], plain.timesteps[2], plain.timesteps[2], 555, 3, 0):
        results = []
        try:
            for s in (plain, mine):
                torch.manual_seed(0)
                results.append(list(s.step(output, t, x, return_dict=False)))
        except IndexError:
            assert not results and name.startswith("DDPM")  # diffusers' own knows its schedule only
            continue
        assert_near(*results)


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "clone": lambda t: t.clone(),
    "number": lambda t: t.item(),
    "int": lambda t: int(t),
    "double": lambda t: t.double(),
    "one element": lambda t: t.reshape(1),
}


@pytest.mark.parametrize("form", FORMS)
@every
def test_forms_of_a_timestep(name: str, form: str) -> None:
    if form == "one element" and name.startswith("CogVideoX"):
        pytest.skip("diffusers' own goes on in float64 then")
    case, results = default(name, 5), []
    for cls in (theirs(name), ours(name)):
        scheduler = build(cls, case)
        x, timesteps = start(scheduler, case, torch.float32)
        model, last, generator = network(case), [x], generators(case)
        shaped = [FORMS[form](t) for t in timesteps]
        try:
            for i in range(len(shaped)):
                last = advance(scheduler, case, model, last[0], shaped, i, last, generator)
        except Exception as failure:
            results.append(failure)
        else:
            results.append([v for v in last if isinstance(v, Tensor)])
    expected, got = results
    if isinstance(expected, Exception) and (isinstance(got, Exception) or form == "int"):
        return  # ours complains too, or takes the integer for the timestep it was cut from
    expected = both(case)[1] if isinstance(expected, Exception) else expected
    assert isinstance(got, list), got
    assert_near(got, expected)


@every
def test_step_index_advances_as_in_diffusers(name: str) -> None:
    case, seen = default(name, 5), []
    for cls in (theirs(name), ours(name)):
        scheduler, indices = build(cls, case), []

        def note(_: int, x: Tensor, scheduler: Any = scheduler, indices: list[Any] = indices) -> Tensor:
            indices.append(getattr(scheduler, "step_index", None))
            return x

        loop(scheduler, case, generator=generators(case), hook=note)
        seen.append([*indices, getattr(scheduler, "step_index", None)])
    assert seen[0] == seen[1]


def test_the_global_generator_and_lists_of_generators() -> None:
    for name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverSDEScheduler"):
        for seed, kind in enumerate(("global", "list")):
            case = default(name, 5, generators=kind, seed=seed)
            assert_near(*both(case))
    assert draw("DDPMScheduler", 0) == default("DDPMScheduler")
