"""What callers, models, callbacks and threads may do to fastdiff.kdiffusion, and what it does not do to them."""

from __future__ import annotations

import gc
import threading
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff import backend, kdiffusion
from kdiffusion_cases import ALONG_SIGMAS, BETWEEN, CHURNED, Case, Denoiser, distance
from kdiffusion_cases import seeded as seeded
from test_parity_kdiffusion import k as k

TOLERANCE = 1e-5
SAMPLERS = (*ALONG_SIGMAS, *BETWEEN)
pytestmark = pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # of torchsde, on rounding


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_callers_x_is_never_written(name: str) -> None:
    case = Case(name, 1, steps=6)
    before = case.x.clone()
    result, _ = case.run(kdiffusion)
    assert torch.equal(case.x, before) and result.data_ptr() != case.x.data_ptr()
    assert torch.equal(case.run(kdiffusion)[0], result)  # nor is anything else kept


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_a_callback_keeps_stays_as_it_was(name: str) -> None:
    case, kept, copies = Case(name, 2, steps=6), list[Tensor](), list[Tensor]()

    def callback(told: dict[str, Any]) -> None:
        for key in ("x", "denoised", "sigma", "sigma_hat"):
            kept.append(told[key])
            copies.append(told[key].clone())

    case.run(kdiffusion, callback=callback)
    assert len(kept) >= 4 and all(torch.equal(a, b) for a, b in zip(kept, copies))


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m", "dpmpp_2s_ancestral", "dpmpp_2m_sde"])
def test_a_callback_may_write_to_x(k: ModuleType, name: str) -> None:
    """As those do that put the known part of an image back."""
    case = Case(name, 3, steps=8)

    def callback(told: dict[str, Any]) -> None:
        told["x"][:, 0] = 0.1 * told["i"]

    assert distance(case.run(kdiffusion, callback=callback)[0], case.run(k, callback=callback)[0]) < TOLERANCE


def test_a_callback_may_write_to_x_in_inference_mode_and_low_precision() -> None:
    case = Case("dpmpp_2m", 3, steps=8)

    def callback(told: dict[str, Any]) -> None:
        told["x"].zero_()

    with torch.inference_mode():
        inferred = case.run(kdiffusion, callback=callback)[0].clone()
    assert torch.equal(inferred, case.run(kdiffusion, callback=callback)[0])
    assert not torch.equal(inferred, case.run(kdiffusion)[0])
    half = case.run(kdiffusion, callback=callback, x=case.x.half())[0]
    assert half.dtype == torch.float16 and distance(half, inferred) < 0.05


def test_models_may_write_to_the_sigma_they_are_given() -> None:
    inner = Denoiser(4, (3, 5))

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        answer = inner(x, sigma)
        sigma.zero_()
        return answer

    x, sigmas = torch.randn(3, 5) * 10, kdiffusion.get_sigmas_karras(5, 0.1, 10.0)
    first = kdiffusion.sample_dpmpp_2m(model, x, sigmas, disable=True)
    assert torch.equal(first, kdiffusion.sample_dpmpp_2m(inner, x, sigmas, disable=True))


@pytest.mark.parametrize("name", ALONG_SIGMAS)
def test_a_model_that_returns_its_input(k: ModuleType, name: str) -> None:
    case = Case(name, 5, steps=6)
    for answer in (lambda x, sigma: x, lambda x, sigma: x.view(x.shape), lambda x, sigma: x[:1].expand_as(x)):
        case.model = answer
        made = []
        for module in (kdiffusion, k):
            case.model.sigmas = []
            made.append(case.run(module))
        assert distance(made[0][0], made[1][0]) < TOLERANCE
        for told, expected in zip(made[0][1]["told"], made[1][1]["told"]):
            assert distance(told["denoised"], expected["denoised"]) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_model_may_keep_what_it_is_given(name: str, dtype: torch.dtype) -> None:
    """As caches do that compare a step's input with the one before."""
    case, inner = Case(name, 5, steps=6), Case(name, 5, steps=6).model
    case.options |= {"s_churn": 0.0} if name in CHURNED else {}
    kept, copies = list[Tensor](), list[Tensor]()

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        kept.extend([x, x[:, 1:]])  # itself, and a part of it
        copies.extend([x.clone(), x[:, 1:].clone()])
        return inner(x, sigma)

    plain = case.run(kdiffusion, x=case.x.to(dtype))[0]
    model.sigmas = []  # type: ignore[attr-defined]
    case.model = model  # type: ignore[assignment]
    assert torch.equal(case.run(kdiffusion, x=case.x.to(dtype))[0], plain)
    assert kept and all(torch.equal(a, b) for a, b in zip(kept, copies))


def test_memory_is_reused_where_nobody_keeps_it() -> None:
    places = list[int]()

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        places.append(x.data_ptr())
        return x * 0.5

    x, sigmas = torch.randn(2, 4, 8, 8), kdiffusion.get_sigmas_karras(8, 0.1, 9.0)
    kdiffusion.sample_dpmpp_2m(model, x, sigmas, disable=True)
    with torch.inference_mode():
        kdiffusion.sample_dpmpp_2m(model, x, sigmas, disable=True, callback=lambda told: None)
    assert len(set(places[:8])) == 1 and len(set(places[8:])) == 1


def test_extra_arguments_may_change_between_calls(k: ModuleType) -> None:
    made = []
    for module in (kdiffusion, k):
        case, given = Case("heun", 14, steps=5), {"scale": 0.4}

        def callback(told: dict[str, Any], given: dict[str, float] = given) -> None:
            given["scale"] = 0.1 * told["i"]

        made.append(case.run(module, extra_args=given, callback=callback)[0])
    assert distance(*made) < TOLERANCE


class Stop(Exception):
    pass


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_callback_that_raises(name: str) -> None:
    case = Case(name, 15, steps=5)
    whole = case.run(kdiffusion)[0]

    def callback(told: dict[str, Any]) -> None:
        raise Stop

    with pytest.raises(Stop):
        case.run(kdiffusion, callback=callback)
    assert torch.equal(case.run(kdiffusion)[0], whole)


@pytest.mark.parametrize("name", ALONG_SIGMAS)
def test_gradients_through_the_whole_loop(k: ModuleType, name: str) -> None:
    """k-diffusion's samplers run without gradients, and so do ours; __wrapped__ is the function that has them."""
    case = Case(name, 16, steps=5)
    case.options |= {"s_churn": 0.0} if name in CHURNED else {}
    x = case.x.clone().requires_grad_()
    assert not case.run(kdiffusion, x=x)[0].requires_grad
    grads = []
    for module in (kdiffusion, k):
        wrapped = ModuleType(module.__name__)
        setattr(wrapped, f"sample_{name}", getattr(module, f"sample_{name}").__wrapped__)
        result = case.run(wrapped, x=x)[0]
        grads.append(torch.autograd.grad(result.square().mean(), x)[0])
    assert distance(*grads) < 2e-5


def test_models_that_need_gradients_inside(k: ModuleType) -> None:
    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            denoised = x / (1 + sigma.reshape(-1, 1) ** 2)
            return denoised + torch.autograd.grad(denoised.sin().sum(), x)[0]  # still attached to its graph

    x, sigmas = torch.randn(3, 5) * 10, kdiffusion.get_sigmas_karras(7, 0.1, 10.0)
    for name in ("heun", "dpmpp_2m", "lms"):
        ours, theirs = (
            getattr(m, f"sample_{name}")(guided, x, sigmas, disable=True) for m in (kdiffusion, k)
        )
        assert distance(ours, theirs) < TOLERANCE and not ours.requires_grad


def test_runs_in_inference_mode_leave_nothing_behind() -> None:
    case = Case("dpmpp_2m", 17, steps=11)
    with torch.inference_mode():
        inferred = case.run(kdiffusion)[0].clone()
    x = case.x.clone().requires_grad_()
    result = kdiffusion.sample_dpmpp_2m.__wrapped__(case.model, x, case.sigmas, disable=True)
    result.sum().backward()
    assert torch.equal(result.detach(), inferred) or distance(result.detach(), inferred) < 1e-6


def test_threads_share_everything() -> None:
    cases = [Case(name, 18, steps=9) for name in ("dpmpp_2m", "lms", "heun", "dpmpp_2s_ancestral")]
    for case in cases:
        case.options |= {"s_churn": 0.0} if case.name == "heun" else {}
        case.options |= {"eta": 0.0} if "eta" in case.options else {}
    right = [case.run(kdiffusion)[0] for case in cases]
    wrong: list[str] = []

    def work() -> None:
        for _ in range(20):
            for case, expected in zip(cases, right):
                sampler = getattr(kdiffusion, f"sample_{case.name}")
                model = Denoiser(18, tuple(case.x.shape))
                made = sampler(model, case.x, case.sigmas, disable=True, **case.options)
                if not torch.equal(made, expected):
                    wrong.append(case.name)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Counted(TorchDispatchMode):
    """Counts what reads a tensor to the host."""

    reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*ALONG_SIGMAS, "dpm_fast"])
def test_the_loop_reads_nothing_to_the_host(name: str) -> None:
    if backend.select("solver_step", "cpu", torch.float32) == "reference":
        pytest.skip("the reference reads its row")
    case = Case(name, 19, steps=30)
    x = case.x
    case.model = lambda x, sigma: x / (1 + sigma[0] ** 2)
    case.model.sigmas = []
    case.run(kdiffusion)  # the script is made
    with Counted() as counted:
        case.run(kdiffusion, noise_sampler=lambda a, b: x) if "eta" in case.options else case.run(kdiffusion)
    assert counted.reads == 0


@pytest.mark.parametrize("name", ALONG_SIGMAS)
def test_sigmas_are_read_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, reads, tolist = Case(name, 20, steps=7), list[int](), Tensor.tolist
    case.run(kdiffusion)

    def counted(tensor: Tensor) -> Any:
        reads.append(tensor.data_ptr())
        return tolist(tensor)

    monkeypatch.setattr(Tensor, "tolist", counted)
    case.run(kdiffusion)
    assert reads.count(case.sigmas.data_ptr()) == 1


def test_scripts_are_made_once() -> None:
    from fastdiff.kdiffusion.script import script_of

    sigmas = kdiffusion.get_sigmas_karras(13, 0.03, 12.0)
    assert script_of("heun", sigmas, OPTIONS) is script_of("heun", sigmas.clone(), dict(OPTIONS))
    assert script_of("heun", sigmas, OPTIONS) is not script_of("heun", sigmas * 2, OPTIONS)
    assert script_of("heun", sigmas, OPTIONS) is not script_of("heun", sigmas.double(), OPTIONS)


OPTIONS = {"churn": 0.0, "s_min": 0.0, "s_max": 80.0, "s_noise": 1.0}


def test_memory_does_not_grow() -> None:
    case = Case("dpmpp_2m", 20, steps=3)
    for i in range(150):
        case.sigmas = kdiffusion.get_sigmas_karras(3, 0.03 + i * 1e-4, 12.0)
        case.run(kdiffusion)
    gc.collect()
    before = len(gc.get_objects())
    for i in range(150):
        case.sigmas = kdiffusion.get_sigmas_karras(3, 0.06 + i * 1e-4, 12.0)
        case.run(kdiffusion)
    gc.collect()
    assert len(gc.get_objects()) - before < 500
