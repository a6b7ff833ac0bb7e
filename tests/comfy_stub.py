"""A stand-in for the parts of ComfyUI that comfyui/ uses: the same names, arguments and calls, in as few lines."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]


class EPS:
    """Models that see x0 + sigma noise."""

    def noise_scaling(
        self, sigma: Tensor, noise: Tensor, latent: Tensor, max_denoise: bool = False
    ) -> Tensor:
        return noise * (torch.sqrt(1.0 + sigma**2) if max_denoise else sigma) + latent

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent


class CONST:
    """Flow models, that see (1 - sigma) x0 + sigma noise."""

    def noise_scaling(
        self, sigma: Tensor, noise: Tensor, latent: Tensor, max_denoise: bool = False
    ) -> Tensor:
        return sigma * noise + (1.0 - sigma) * latent

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent / (1.0 - sigma)


class Levels:
    """What ComfyUI's ModelSampling classes have in common. sigmas: [T], rising."""

    def __init__(self, sigmas: Tensor) -> None:
        self.sigmas = sigmas
        self.sigma_min, self.sigma_max = sigmas[0], sigmas[-1]

    def percent_to_sigma(self, percent: float) -> float:
        return float(self.sigmas[round((1.0 - percent) * (len(self.sigmas) - 1))]) if percent else 1.0


class Discrete(Levels, EPS):
    """Stable Diffusion's levels."""

    def __init__(self) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        kept = torch.cumprod(1 - betas, dim=0)
        super().__init__(((1 - kept) / kept).sqrt().float())


class Flow(Levels, CONST):
    def __init__(self, shift: float = 3.0) -> None:
        t = torch.arange(1, 1001) / 1000
        super().__init__(shift * t / (1 + (shift - 1) * t))

    def percent_to_sigma(self, percent: float) -> float:
        t = 1.0 - percent
        return 3.0 * t / (1 + 2.0 * t)


class Sampler:
    def max_denoise(self, model_wrap: Any, sigmas: Tensor) -> bool:
        most, first = float(model_wrap.inner_model.model_sampling.sigma_max), float(sigmas[0])
        return math.isclose(most, first, rel_tol=1e-05) or first > most


class KSamplerX0Inpaint:
    """Puts the known part back before and after the model."""

    def __init__(self, model: Any, sigmas: Tensor) -> None:
        self.inner_model, self.sigmas = model, sigmas

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        denoise_mask: Tensor | None,
        model_options: Any = None,
        seed: int | None = None,
    ) -> Tensor:
        if denoise_mask is not None:
            path = self.inner_model.inner_model.model_sampling
            noisy = path.noise_scaling(sigma.reshape(-1, 1, 1, 1), self.noise, self.latent_image)
            x = x * denoise_mask + noisy * (1.0 - denoise_mask)
        out = self.inner_model(x, sigma, model_options=model_options, seed=seed)
        return out if denoise_mask is None else out * denoise_mask + self.latent_image * (1.0 - denoise_mask)


class KSAMPLER(Sampler):
    def __init__(
        self, sampler_function: Callable[..., Tensor], extra_options: Any, inpaint_options: Any = None
    ):
        self.sampler_function = sampler_function
        self.extra_options = extra_options
        self.inpaint_options = inpaint_options

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Callable[..., Any] | None,
        noise: Tensor, latent_image: Tensor, denoise_mask: Tensor | None = None, disable_pbar: bool = False,
    ) -> Tensor:  # fmt: skip
        extra_args["denoise_mask"] = denoise_mask
        model_k = KSamplerX0Inpaint(model_wrap, sigmas)
        model_k.latent_image, model_k.noise = latent_image, noise
        path = model_wrap.inner_model.model_sampling
        x = path.noise_scaling(sigmas[0], noise, latent_image, self.max_denoise(model_wrap, sigmas))
        told, steps = None, len(sigmas) - 1
        if callback is not None:

            def told(d: dict[str, Any]) -> Any:
                return callback(d["i"], d["denoised"], d["x"], steps)

        samples = self.sampler_function(
            model_k,
            x,
            sigmas,
            extra_args=extra_args,
            callback=told,
            disable=disable_pbar,
            **self.extra_options,
        )
        return path.inverse_noise_scaling(sigmas[-1], samples)


def default_noise_sampler(x: Tensor, seed: int | None = None) -> Callable[..., Tensor]:
    generator = None if seed is None else torch.Generator(x.device).manual_seed(seed + 1)
    return lambda sigma, sigma_next: torch.randn(
        x.size(), dtype=x.dtype, device=x.device, generator=generator
    )


class Guider:
    """The model as samplers get it: inner_model is the network with its model_sampling, model_patcher its patches."""

    def __init__(self, path: Levels, denoise: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.inner_model = SimpleNamespace(model_sampling=path)
        self.model_patcher = SimpleNamespace(get_model_object=lambda name: {"model_sampling": path}[name])
        self.denoise = denoise

    def __call__(
        self, x: Tensor, sigma: Tensor, model_options: Any = None, seed: int | None = None
    ) -> Tensor:
        return self.denoise(x, sigma)


def modules(brownian: Any) -> dict[str, ModuleType]:
    """The packages to put in sys.modules. brownian: a BrownianTreeNoiseSampler(x, low, high, seed=)."""
    names = (
        "comfy",
        "comfy.samplers",
        "comfy.model_sampling",
        "comfy.k_diffusion",
        "comfy.k_diffusion.sampling",
    )
    made = {name: ModuleType(name) for name in names}
    for name in names[1:]:
        parent, _, child = name.rpartition(".")
        setattr(made[parent], child, made[name])
    made["comfy.samplers"].KSAMPLER = KSAMPLER  # type: ignore[attr-defined]
    made["comfy.model_sampling"].CONST = CONST  # type: ignore[attr-defined]
    sampling: Any = made["comfy.k_diffusion.sampling"]
    sampling.default_noise_sampler = default_noise_sampler
    sampling.BrownianTreeNoiseSampler = lambda x, low, high, seed=None, cpu=False: brownian(
        x, low, high, seed=seed
    )
    return made


@contextmanager
def loaded(brownian: Any) -> Iterator[ModuleType]:
    """comfyui/ as ComfyUI loads a folder of custom_nodes: from its path, under a name that is no package of its own."""
    stubs, name = modules(brownian), "custom_nodes_fastdiff"
    kept = {key: sys.modules.get(key) for key in stubs}
    sys.modules.update(stubs)
    try:
        folder = ROOT / "comfyui"
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        for key, value in kept.items():
            sys.modules.pop(key) if value is None else sys.modules.__setitem__(key, value)
        for key in [key for key in sys.modules if key.startswith(name)]:
            del sys.modules[key]
