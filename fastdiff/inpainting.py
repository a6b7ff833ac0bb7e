"""Inpainting by a mask: after every step, what is known takes its place again, noised to the step's level.

This is what diffusers' inpainting pipelines do with models that were not trained for it (as in RePaint,
arXiv:2201.09865, without its resampling).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Inpaint:
    """Repaints `image` where `mask` is 1 and keeps it where it is 0; between, a weighted mean.

    image: the clean image (or latents), [B, ...] or [1, ...], on the scale of x. mask: broadcasts to it, values 0 to 1,
    any dtype. noise: what the image is noised with, standard normal; by default the starting point's own noise where
    `sample` draws that, else drawn once from the noise source.
    """

    image: Tensor
    mask: Tensor
    noise: Tensor | None = None

    def __post_init__(self) -> None:
        for name, tensor in {"image": self.image, "mask": self.mask, "noise": self.noise}.items():
            if not (isinstance(tensor, Tensor) or (tensor is None and name == "noise")):
                raise TypeError(f"{name} of Inpaint is {type(tensor).__name__}: pass a torch.Tensor")
        if not self.image.is_floating_point():
            raise TypeError(
                f"the image to inpaint is {str(self.image.dtype).removeprefix('torch.')}: pass floats on the scale of x"
            )

    def like(self, x: Tensor, draw: Callable[[], Tensor]) -> Inpaint:
        """All three in x's shape, dtype and device; draw() makes the noise if none was given. Raises ValueError."""
        noise = draw() if self.noise is None else self.noise
        given = {"image": self.image, "mask": self.mask, "noise": noise}
        return Inpaint(**{name: _spread(name, tensor, x) for name, tensor in given.items()})


def _spread(name: str, tensor: Tensor, x: Tensor) -> Tensor:
    try:
        return tensor.to(device=x.device, dtype=x.dtype).expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"the {name} to inpaint has shape {list(tensor.shape)}, which does not broadcast to x's {list(x.shape)}"
        ) from None
