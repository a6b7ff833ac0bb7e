"""fastdiff.kdiffusion does what k-diffusion does: the same signatures, calls, noise and, to rounding, numbers."""

from __future__ import annotations

import inspect
import pickle
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fastdiff import kdiffusion
from kdiffusion_cases import ALONG_SIGMAS, ANCESTRAL, BETWEEN, BROWNIAN, CHURNED, Case, Draws, distance
from kdiffusion_cases import seeded as seeded
from test_parity_kdiffusion import k as k

TOLERANCE = 1e-5
pytestmark = pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # of torchsde, on rounding


class Rounded(Draws):
    """The noise of a low precision, in double."""

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return super().__call__(sigma, sigma_next).double()


SAMPLERS = (*ALONG_SIGMAS, *BETWEEN)


def same_calls(ours: dict[str, list], theirs: dict[str, list]) -> None:
    """The model, the noise sampler and the callback heard the same, to the bit where no image enters."""
    assert len(ours["sigmas"]) == len(theirs["sigmas"])
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours["sigmas"], theirs["sigmas"]))
    assert len(ours["asked"]) == len(theirs["asked"])
    assert all(torch.equal(a, b) for p, q in zip(ours["asked"], theirs["asked"]) for a, b in zip(p, q))
    assert torch.equal(ours["random"], theirs["random"])
    assert [told["i"] for told in ours["told"]] == [told["i"] for told in theirs["told"]]
    for told, expected in zip(ours["told"], theirs["told"]):
        assert told.keys() == expected.keys()
        for key in ("sigma", "sigma_hat"):
            assert torch.equal(told[key], expected[key]) and told[key].dim() == 0
        for key in ("x", "denoised"):
            assert told[key].dtype == expected[key].dtype
            assert distance(told[key], expected[key]) < TOLERANCE


def test_every_sampler_is_there_with_its_signature(k: ModuleType) -> None:
    names = [name for name in dir(k) if name.startswith("sample_")]
    assert sorted(f"sample_{name}" for name in SAMPLERS) == names
    for name in [*names, "get_sigmas_karras", "get_sigmas_exponential", "get_sigmas_polyexponential", "get_sigmas_vp",
                 "append_zero", "to_d", "get_ancestral_step", "default_noise_sampler"]:  # fmt: skip
        ours, theirs = inspect.signature(getattr(kdiffusion, name)), inspect.signature(getattr(k, name))
        assert list(ours.parameters) == list(theirs.parameters)
        for parameter in theirs.parameters:
            assert ours.parameters[parameter].default == theirs.parameters[parameter].default
            assert ours.parameters[parameter].kind == theirs.parameters[parameter].kind


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_has_its_name_and_says_what_it_is(name: str) -> None:
    function = getattr(kdiffusion, f"sample_{name}")
    assert function.__name__ == function.__qualname__ == f"sample_{name}"
    assert inspect.getdoc(function)
    assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ALONG_SIGMAS)
def test_same_numbers_and_calls(k: ModuleType, name: str, seed: int) -> None:
    case = Case(name, seed, steps=[1, 2, 3, 50][seed] if seed < 4 else None)
    if case.steps == 1 and name in ("dpmpp_2m_sde", "dpmpp_3m_sde"):
        case.sigmas = torch.tensor([case.high, case.low])  # for a single step to zero theirs raises
    ours, our_calls = case.run(kdiffusion)
    theirs, their_calls = case.run(k)
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    if name == "lms":  # unstable on some grids: both are then that far from float64
        exact = case.run(k, x=case.x.double(), sigmas=case.sigmas.double())[0]
        assert distance(ours, theirs) < TOLERANCE + 2 * distance(theirs, exact)
        return
    assert distance(ours, theirs) < TOLERANCE
    same_calls(our_calls, their_calls)


@pytest.mark.parametrize("seed", range(12))
def test_dpm_fast(k: ModuleType, seed: int) -> None:
    case = Case("dpm_fast", seed, steps=seed + 1 if seed < 7 else None)
    ours, our_calls = case.run(kdiffusion)
    theirs, their_calls = case.run(k)
    assert distance(ours, theirs) < TOLERANCE
    same_calls(our_calls, their_calls)
    for told, expected in zip(our_calls["told"], their_calls["told"]):
        assert torch.equal(told["t"], expected["t"]) and torch.equal(told["t_up"], expected["t_up"])


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_dpm_adaptive(k: ModuleType, seed: int, order: int) -> None:
    """In float64: its steps come from small differences of large numbers, which in float32 neither side has right."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        case = Case("dpm_adaptive", seed)
        options = {"x": case.x.double(), "order": order, "return_info": True}
        if seed % 2:
            options |= {"rtol": 0.02, "pcoeff": 0.2, "icoeff": 0.6, "dcoeff": 0.1, "accept_safety": 0.7}
        (ours, info), our_calls = case.run(kdiffusion, **options)
        (theirs, their_info), their_calls = case.run(k, **options)
    finally:
        torch.set_default_dtype(before)
    assert info == their_info
    assert distance(ours, theirs) < 1e-9
    assert len(our_calls["told"]) == len(their_calls["told"])
    for told, expected in zip(our_calls["told"], their_calls["told"]):
        assert told.keys() == expected.keys()
        for key in told:
            assert torch.allclose(
                torch.as_tensor(told[key]), torch.as_tensor(expected[key]), rtol=1e-6, atol=1e-6
            )


def test_dpm_adaptive_in_single_precision(k: ModuleType) -> None:
    case = Case("dpm_adaptive", 1)
    assert distance(case.run(kdiffusion, eta=0.0)[0], case.run(k, eta=0.0)[0]) < TOLERANCE


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_samplers_own_noise(k: ModuleType, name: str) -> None:
    if name in BROWNIAN:
        pytest.importorskip("torchsde")
    case = Case(name, 3, steps=9)
    case.options |= {"eta": 1.0} if "eta" in case.options else {}
    own = {} if name in (*CHURNED, "lms", "dpmpp_2m") else {"noise_sampler": None}
    ours, our_calls = case.run(kdiffusion, **own)
    theirs, their_calls = case.run(k, **own)
    assert distance(ours, theirs) < (1e-4 if name == "dpm_adaptive" else TOLERANCE)
    assert torch.equal(our_calls["random"], their_calls["random"])


@pytest.mark.parametrize("name", ALONG_SIGMAS)
def test_double_precision(k: ModuleType, name: str) -> None:
    case = Case(name, 5, steps=20)
    ours, calls = case.run(kdiffusion, x=case.x.double(), sigmas=case.sigmas.double())
    theirs, expected = case.run(k, x=case.x.double(), sigmas=case.sigmas.double())
    assert ours.dtype == torch.float64
    # of what k-diffusion integrates numerically it asks 4 digits, and on cubics gets more
    assert distance(ours, theirs) < (1e-9 if name == "lms" else 1e-11)
    same_calls(calls, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", (*ALONG_SIGMAS, "dpm_fast"))
def test_low_precision_is_no_further_from_the_truth(k: ModuleType, name: str, dtype: torch.dtype) -> None:
    errors = []
    for seed in range(6):
        case = Case(name, seed, steps=12)
        case.options |= (
            {"s_churn": 0.0} if name in CHURNED else {}
        )  # whose noise cannot be given in another dtype
        x = case.x.to(dtype)
        ours, calls = case.run(kdiffusion, x=x)
        theirs, expected = case.run(k, x=x)
        assert ours.dtype == theirs.dtype
        assert [s.dtype for s in calls["sigmas"]] == [s.dtype for s in expected["sigmas"]]
        noise = {"noise_sampler": Rounded(x)} if "s_noise" in case.options and name not in CHURNED else {}
        exact = case.run(k, x=x.double(), **noise)[0]
        errors.append((distance(ours, exact), distance(theirs, exact)))
    assert sum(ours for ours, _ in errors) <= 1.1 * sum(theirs for _, theirs in errors) + 1e-6


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_schedules_have_the_same_bits(k: ModuleType, steps: int) -> None:
    for name, arguments in {
        "karras": (0.0312, 14.61, 5.0), "exponential": (0.0312, 14.61), "polyexponential": (0.0312, 14.61, 0.7),
        "vp": (),
    }.items():  # fmt: skip
        ours, theirs = (
            getattr(module, f"get_sigmas_{name}")(steps, *arguments) for module in (kdiffusion, k)
        )
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype


def test_helpers_have_the_same_bits(k: ModuleType) -> None:
    x, denoised, sigmas = torch.randn(3, 2, 4), torch.randn(3, 2, 4), k.get_sigmas_karras(9, 0.03, 80.0)
    for sigma in (sigmas[2], sigmas[:3]):
        assert torch.equal(kdiffusion.to_d(x, sigma, denoised), k.to_d(x, sigma, denoised))
    for eta in (0.0, 0.3, 1.0, 1.7):
        for start, end in [(0, 1), (3, 7), (7, 9), (0, 8), (5, 2), (4, 4)]:
            for a, b in ((sigmas[start], sigmas[end]), (float(sigmas[start]), float(sigmas[end]))):
                if isinstance(a, float) and start > end:
                    continue  # the root of a negative number is complex there
                ours, theirs = kdiffusion.get_ancestral_step(a, b, eta), k.get_ancestral_step(a, b, eta)
                assert [float(value) for value in ours] == [float(value) for value in theirs]


@pytest.mark.parametrize("seed", [None, 3, [1, 2, 3]])
def test_brownian_noise_has_the_same_bits(k: ModuleType, seed: int | list[int] | None) -> None:
    pytest.importorskip("torchsde")
    x, sigmas, made = torch.randn(3, 2, 4), k.get_sigmas_karras(9, 0.03, 14.0), list[Tensor]()
    for module in (kdiffusion, k):
        torch.manual_seed(4)
        noise = module.BrownianTreeNoiseSampler(x, sigmas[-2], sigmas[0], seed, transform=lambda s: s.log())
        made.append(torch.stack([noise(sigmas[i], sigmas[i + 1]) for i in (0, 3, 1)]))
    assert torch.equal(*made)
    with pytest.raises(ValueError, match="2 seeds for 3 images"):
        kdiffusion.BrownianTreeNoiseSampler(x, sigmas[-2], sigmas[0], [1, 2])


def test_without_torchsde_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchsde", None)
    case = Case("dpmpp_2m_sde", 0)
    with pytest.raises(ImportError, match=r"pip install fastdiff\[kdiffusion\]"):
        case.run(kdiffusion, noise_sampler=None)
    case.run(kdiffusion)  # with a noise sampler of one's own it is not needed


@pytest.mark.parametrize("name", ANCESTRAL)
@pytest.mark.parametrize("eta", [1.0, 1.5, 3.0])
def test_steps_so_large_that_nothing_is_carried_over(k: ModuleType, name: str, eta: float) -> None:
    """k-diffusion then takes another branch, as its dtype sees it: fewer calls, and dpm_2_ancestral adds no noise."""
    case = Case(name, 0)
    case.sigmas = torch.tensor([80.0, 0.002, 0.0])
    ours, calls = case.run(kdiffusion, eta=eta)
    theirs, expected = case.run(k, eta=eta)
    assert distance(ours, theirs) < TOLERANCE
    same_calls(calls, expected)
