"""Between pictures and what a pipeline's denoiser sees: latents of an autoencoder, or the pixels themselves."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOOK = 16
"""Latents a side of the picture from which the cheap view of latents is learned."""


class Codec(Protocol):
    """channels: of x. factor: pixels a latent, along each side."""

    channels: int
    factor: int

    def encode(self, pictures: Tensor) -> Tensor: ...

    def decode(self, x: Tensor) -> Tensor: ...

    def glimpse(self, x: Tensor) -> Tensor: ...

    def tiled(self) -> Codec: ...


class Pixels:
    """x is the picture: three channels, or one for grey pictures."""

    factor = 1

    def __init__(self, channels: int) -> None:
        if channels not in (1, 3):
            raise ValueError(
                f"its model denoises {channels} channels, and pictures have 3 (or 1, if grey): use its own call"
            )
        self.channels = channels

    def encode(self, pictures: Tensor) -> Tensor:
        return pictures if self.channels == 3 else pictures.mean(dim=1, keepdim=True)

    def decode(self, x: Tensor) -> Tensor:
        return x.expand(-1, 3, -1, -1)

    def glimpse(self, x: Tensor) -> Tensor:
        return self.decode(x)

    def tiled(self) -> Pixels:
        return self


class Autoencoder:
    """x = (latent mean of the picture - shift) * scale, as diffusers' pipelines scale latents."""

    def __init__(self, vae: Any, *, factor: int | None = None) -> None:
        config = vae.config
        if vae.dtype == torch.float16 and config.get("force_upcast"):
            vae = copy.deepcopy(vae).float()  # its activations do not fit float16
        self.vae = vae
        self.channels: int = config.latent_channels
        self.factor = factor or 2 ** (len(config.block_out_channels) - 1)
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        shift = mean if mean is not None else [config.get("shift_factor") or 0.0]
        scale = torch.tensor(deviation if deviation is not None else [1.0]) / (
            config.get("scaling_factor") or 1.0
        )
        self.shift, self.scale = (value.reshape(1, -1, 1, 1) for value in (torch.tensor(shift), 1.0 / scale))
        self._map: Tensor | None = None

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """float32 [B, 3, H, W] -> float32 [B, channels, H / factor, W / factor], the mean of its distribution."""
        encoded = self.vae.encode(pictures.to(self.vae.dtype))
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        latents = latents.float()
        return (latents - self.shift.to(latents)) * self.scale.to(latents)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """The pictures of latents, unclamped."""
        latents = x / self.scale.to(x) + self.shift.to(x)
        pictures: Tensor = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        return pictures.float()

    def glimpse(self, x: Tensor) -> Tensor:
        """Pictures as large as the latents: the colours that fit them best, linearly."""
        if self._map is None:
            self._map = self._learned(x.device)
        seen = x.to("cpu", torch.float32)
        return torch.einsum("bchw,cd->bdhw", seen, self._map[:-1]) + self._map[-1].reshape(1, 3, 1, 1)

    def tiled(self) -> Autoencoder:
        twin = copy.copy(self)
        twin.vae = wrapping(self.vae)
        return twin

    def _learned(self, device: torch.device) -> Tensor:
        """[channels + 1, 3]: latents and 1 to colours, by least squares over one picture of soft random colours."""
        colours = torch.rand(1, 3, LOOK // 2, LOOK // 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
        picture = F.interpolate(colours, size=LOOK * self.factor, mode="bilinear")
        latents = self.encode(picture.to(device)).cpu().double()
        columns = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1).flatten(2)[0].T
        wanted = F.avg_pool2d(picture, self.factor).double().flatten(2)[0].T
        return torch.linalg.lstsq(columns, wanted, rcond=1e-6, driver="gelsd").solution.float()


def wrapping(net: nn.Module) -> Any:
    """A copy on the same weights whose padded convolutions take the opposite edge.

    A copy rather than a switch, so that those who share a model do not change each other's padding.
    """
    shared = {id(value): value for value in (*net.parameters(), *net.buffers())}
    twin = copy.deepcopy(net, shared)
    for module in twin.modules():
        if isinstance(module, nn.Conv2d) and any(module.padding):
            module.padding_mode = "circular"
    return twin
