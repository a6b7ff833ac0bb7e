"""fastdiff.kdiffusion at the edges: odd inputs, as k-diffusion takes them or refused with the reason."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff import kdiffusion
from kdiffusion_cases import ALONG_SIGMAS, ANCESTRAL, BETWEEN, BROWNIAN, CHURNED, Case, Denoiser, distance
from kdiffusion_cases import seeded as seeded
from test_parity_kdiffusion import k as k

TOLERANCE = 1e-5
SAMPLERS = (*ALONG_SIGMAS, *BETWEEN)
pytestmark = pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # of torchsde, on rounding


@pytest.mark.parametrize("name", SAMPLERS)
def test_layouts(k: ModuleType, name: str) -> None:
    case = Case(name, 6, steps=7)
    shape, case.model = (2, 3, 4, 4), Denoiser(6, (2, 3, 4, 4))
    plain = torch.randn(shape) * 14
    layouts = {
        "channels last": plain.to(memory_format=torch.channels_last),
        "transposed": plain.transpose(2, 3).contiguous().transpose(2, 3),
        "sliced": torch.cat([plain, plain], dim=3)[..., :4],
        "expanded": plain[:, :1].expand(shape),
        "strided channels last": torch.cat([plain, plain], dim=1).to(memory_format=torch.channels_last)[
            :, :3
        ],
    }
    own = {"noise_sampler": None} if name in (*ANCESTRAL, "dpm_fast") else {}
    for layout, x in layouts.items():
        ours, theirs = case.run(kdiffusion, x=x, **own), case.run(k, x=x, **own)
        assert distance(ours[0], theirs[0]) < (1e-4 if name == "dpm_adaptive" else TOLERANCE), layout
        assert torch.equal(ours[1]["random"], theirs[1]["random"]), layout


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_empty_batch(k: ModuleType, name: str) -> None:
    if name == "dpm_adaptive":
        return  # whose error is then a mean of nothing
    case = Case(name, 7, steps=4)
    x = torch.empty(0, *case.x.shape[1:])
    assert case.run(kdiffusion, x=x)[0].shape == case.run(k, x=x)[0].shape == x.shape


@pytest.mark.parametrize("name", ALONG_SIGMAS)
def test_no_steps(name: str) -> None:
    case = Case(name, 8)
    for sigmas in (torch.tensor([3.0]), torch.tensor([0.0]), torch.empty(0)):
        case.sigmas = sigmas
        result, calls = case.run(kdiffusion)
        assert result is case.x and not calls["told"]


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_a_single_step_to_zero_is_the_denoised_image(name: str) -> None:
    """k-diffusion raises UnboundLocalError."""
    case = Case(name, 9)
    case.sigmas = torch.tensor([5.0, 0.0])
    assert torch.equal(case.run(kdiffusion)[0], case.model(case.x, torch.full((len(case.x),), 5.0)))


@pytest.mark.parametrize("name", ALONG_SIGMAS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_sigmas_of_another_dtype(k: ModuleType, name: str, dtype: torch.dtype) -> None:
    case = Case(name, 10, steps=6)
    case.sigmas = torch.tensor([14.0, 9.0, 5.0, 3.0, 1.0, 0.0]).to(dtype)
    ours, calls = case.run(kdiffusion)
    theirs, expected = case.run(k)
    assert ours.dtype == theirs.dtype
    # in float16 k-diffusion rounds its weights too
    assert distance(ours, theirs) < (0.03 if dtype == torch.float16 else TOLERANCE)
    assert [s.dtype for s in calls["sigmas"]] == [s.dtype for s in expected["sigmas"]]
    assert all(torch.equal(a, b) for a, b in zip(calls["sigmas"], expected["sigmas"]))


RISING = torch.tensor([0.5, 1.0, 2.0, 7.0])


@pytest.mark.parametrize("name", ALONG_SIGMAS)
def test_rising_sigmas(k: ModuleType, name: str) -> None:
    """From an image to its noise: without fresh noise everywhere, with it as k-diffusion's ancestral samplers do."""
    case = Case(name, 11)
    case.sigmas = RISING
    for eta in (0.0, 1.0) if "eta" in case.options else (None,):
        options = {} if eta is None else {"eta": eta}
        if eta and name in BROWNIAN:
            with pytest.raises(ValueError, match="sigmas rise"):
                case.run(kdiffusion, **options)
            continue
        assert distance(case.run(kdiffusion, **options)[0], case.run(k, **options)[0]) < TOLERANCE
    case.sigmas = torch.tensor([5.0, 2.0, 6.0, 1.0, 0.0])
    if name in ANCESTRAL:
        assert distance(case.run(kdiffusion)[0], case.run(k)[0]) < TOLERANCE


@pytest.mark.filterwarnings("ignore:divide by zero")  # k-diffusion's
@pytest.mark.parametrize("name", ALONG_SIGMAS)
def test_repeated_sigmas_are_right_or_refused(k: ModuleType, name: str) -> None:
    """Where k-diffusion gives numbers, the same; where it gives NaN, a number or an error that says why."""
    for sigmas in (
        [9.0, 4.0, 4.0, 1.0, 0.0],
        [9.0, 9.0, 4.0, 1.0],
        [9.0, 4.0, 1.0, 1.0, 0.0],
        [9.0, 4.0, 1.0, 1.0],
    ):
        case = Case(name, 12)
        case.sigmas = torch.tensor(sigmas)
        theirs = case.run(k)[0]
        try:
            ours = case.run(kdiffusion)[0]
        except ValueError as error:
            assert "two are equal" in str(error) and not torch.isfinite(theirs).all()
            continue
        assert torch.isfinite(ours).all()
        if torch.isfinite(theirs).all():
            assert distance(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("name", ALONG_SIGMAS)
def test_models_of_another_dtype(k: ModuleType, name: str) -> None:
    case = Case(name, 13, steps=8)
    case.options |= {"s_churn": 0.0} if name in CHURNED else {}
    for dtype, tolerance in ((torch.bfloat16, 0.03), (torch.float16, 0.005), (torch.float64, TOLERANCE)):
        case.model.dtype = dtype
        ours, theirs = case.run(kdiffusion)[0], case.run(k)[0]
        assert distance(ours, theirs) < tolerance
        assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # a model that computes in float32 whatever it is given: x becomes float32 after the first step
    case.model.dtype = torch.float32
    ours, calls = case.run(kdiffusion, x=case.x.half())
    theirs, expected = case.run(k, x=case.x.half())
    assert ours.dtype == theirs.dtype and distance(ours, theirs) < 0.01
    assert [told["x"].dtype for told in calls["told"]] == [told["x"].dtype for told in expected["told"]]


def test_extra_arguments(k: ModuleType) -> None:
    case = Case("heun", 14, steps=5)
    given = {"scale": 0.4}
    ours = case.run(kdiffusion, extra_args=given)[0]
    assert distance(ours, case.run(k, extra_args=given)[0]) < TOLERANCE
    assert given == {"scale": 0.4} and not torch.equal(ours, case.run(kdiffusion, extra_args=None)[0])


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": torch.ones(2, 3, dtype=torch.int64)}, TypeError, "x is torch.int64"),
    ({"x": torch.tensor(1.0)}, ValueError, "x has no dimensions"),
    ({"sigmas": [3.0, 1.0, 0.0]}, TypeError, "sigmas is a list"),
    ({"sigmas": torch.ones(3, 2)}, ValueError, "one-dimensional"),
    ({"sigmas": torch.tensor([3.0, 0.0, 1.0])}, ValueError, "sigma 1 is 0.0"),
    ({"sigmas": torch.tensor([3.0, 0.0, 0.0])}, ValueError, "sigma 1 is 0.0"),
    ({"sigmas": torch.tensor([3.0, torch.nan])}, ValueError, "sigma 1 is nan"),
    ({"sigmas": torch.tensor([torch.inf, 1.0])}, ValueError, "sigma 0 is inf"),
    ({"sigmas": torch.tensor([3.0, -1.0])}, ValueError, "sigma 1 is -1.0"),
    ({"eta": -0.5}, ValueError, "eta must be"),
    ({"model": lambda x, sigma: (x,)}, TypeError, "the model returned tuple"),
    ({"model": lambda x, sigma: x[:, :1]}, ValueError, "the model returned shape"),
]


@pytest.mark.parametrize("change, error, message", REFUSED)
def test_what_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {
        "model": lambda x, sigma: x,
        "x": torch.ones(2, 3),
        "sigmas": torch.tensor([3.0, 1.0, 0.0]),
        **change,
    }
    with pytest.raises(error, match=message):
        kdiffusion.sample_euler_ancestral(given.pop("model"), **given, disable=True)


def test_options_that_are_refused() -> None:
    x, sigmas = torch.ones(2, 3), torch.tensor([3.0, 1.0, 0.0])

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return x

    for name, options, message in [
        ("lms", {"order": 5}, "order must be"),
        ("euler", {"s_churn": -1.0}, "s_churn must be"),
        ("dpmpp_2m_sde", {"solver_type": "euler", "noise_sampler": lambda a, b: x}, "midpoint"),
        ("dpmpp_sde", {"r": 1.5, "noise_sampler": lambda a, b: x}, "between 0 and 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            getattr(kdiffusion, f"sample_{name}")(model, x, sigmas, disable=True, **options)
    with pytest.raises(ValueError, match="above 0"):
        kdiffusion.sample_dpm_fast(model, x, 0.0, 3.0, 5)
    with pytest.raises(ValueError, match="n must be"):
        kdiffusion.sample_dpm_fast(model, x, 0.1, 3.0, 0)
    with pytest.raises(ValueError, match="reverse"):
        kdiffusion.sample_dpm_adaptive(model, x, 3.0, 0.1, eta=1.0)
    with pytest.raises(AttributeError, match="torchdiffeq"):
        kdiffusion.log_likelihood  # noqa: B018


@pytest.mark.parametrize("name", BETWEEN)
def test_from_an_image_to_its_noise(k: ModuleType, name: str) -> None:
    case = Case(name, 21, steps=7)
    case.low, case.high = 6.0, 0.5
    assert distance(case.run(kdiffusion, eta=0.0)[0], case.run(k, eta=0.0)[0]) < TOLERANCE


def test_the_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    case = Case("heun", 22, steps=6)
    case.run(kdiffusion)
    assert capsys.readouterr().err == ""
    case.run(kdiffusion, disable=False)
    assert "5/5" in capsys.readouterr().err or "6/6" in capsys.readouterr().err


def test_it_needs_no_k_diffusion() -> None:
    import subprocess

    code = (
        "import sys; sys.modules['k_diffusion'] = sys.modules['torchsde'] = None\n"
        "import torch; from fastdiff import kdiffusion as K\n"
        "K.sample_heun(lambda x, s: x, torch.ones(1, 2), K.get_sigmas_karras(3, 0.1, 9.0), disable=True)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
