"""k-diffusion's noise samplers, with its noise: functions of (sigma, sigma_next) that give N(0, 1) like x."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff import ops

NoiseSampler = Callable[[Any, Any], Tensor]


def default_noise_sampler(x: Tensor) -> NoiseSampler:
    """Fresh noise at every call, whatever the sigmas: torch.randn_like(x)."""
    return lambda sigma, sigma_next: randn_like(x, x.dtype)


def randn_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """torch.randn_like(x, dtype=dtype), to the bit."""
    if x.is_contiguous():
        return ops.randn(x.shape, dtype=dtype, device=x.device)
    return torch.randn_like(x, dtype=dtype)


class BatchedBrownianTree:
    """torchsde's Brownian tree, or one for each image.

    x: [B, ...]; t0, t1: the ends of the path; seed: an integer, one for each image, or None to draw one from torch's
    global generator. Further arguments are torchsde.BrownianTree's.
    """

    def __init__(
        self, x: Tensor, t0: Any, t1: Any, seed: int | Sequence[int] | None = None, **kwargs: Any
    ) -> None:
        low, high, self.sign = self.sort(t0, t1)
        start = kwargs.get("w0", torch.zeros_like(x))
        if seed is None:
            seed = int(torch.randint(0, 2**63 - 1, []).item())
        try:
            count = len(seed)  # type: ignore[arg-type]
        except TypeError:
            self.batched, seeds = False, [seed]
        else:
            if count != x.shape[0]:
                raise ValueError(
                    f"{count} seeds for {x.shape[0]} images: give one for each, or a single integer"
                )
            self.batched, seeds, start = True, list(seed), start[0]  # type: ignore[arg-type]
        self.trees = [_tree()(low, start, high, entropy=s, **kwargs) for s in seeds]

    @staticmethod
    def sort(a: Any, b: Any) -> tuple[Any, Any, int]:
        """(smaller, larger, 1 if they came in this order, else -1)."""
        return (a, b, 1) if a < b else (b, a, -1)

    def __call__(self, t0: Any, t1: Any) -> Tensor:
        """The path's increment from t0 to t1, like x."""
        low, high, sign = self.sort(t0, t1)
        grown = torch.stack([tree(low, high) for tree in self.trees]) * (self.sign * sign)
        return grown if self.batched else grown[0]


class BrownianTreeNoiseSampler:
    """Noise from one Brownian path, so that it belongs to the sigmas and not to the number of steps.

    x: [B, ...]; sigma_min, sigma_max: the ends of the path; seed: as in BatchedBrownianTree; transform: from sigma to
    the path's time. ImportError without torchsde.
    """

    def __init__(
        self,
        x: Tensor,
        sigma_min: Any,
        sigma_max: Any,
        seed: int | Sequence[int] | None = None,
        transform: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        self.transform = transform
        low, high = (self.transform(torch.as_tensor(sigma)) for sigma in (sigma_min, sigma_max))
        self.tree = BatchedBrownianTree(x, low, high, seed)

    def __call__(self, sigma: Any, sigma_next: Any) -> Tensor:
        t0, t1 = (self.transform(torch.as_tensor(value)) for value in (sigma, sigma_next))
        return self.tree(t0, t1) / (t1 - t0).abs().sqrt()


def _tree() -> Callable[..., Any]:
    try:
        from torchsde import BrownianTree  # type: ignore[import-untyped]  # whose bits the noise has
    except ImportError as error:
        raise ImportError(
            "this sampler's noise is a path of torchsde's Brownian tree: pip install fastdiff[kdiffusion], or pass "
            "noise_sampler"
        ) from error
    return BrownianTree
