"""What the tests of `graphed` share: a module with arguments and results like a denoiser's, its call by graphs and the
plain one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.graphs import graphed


@dataclass
class Output(OrderedDict):
    """As diffusers' and transformers' outputs: a mapping with fields."""

    sample: Tensor

    def __post_init__(self) -> None:
        self["sample"] = self.sample


class Net(nn.Module):
    """Takes what a denoiser takes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.scale = 0.5
        self.calls = [0]

    def forward(self, sample, timestep, states=None, added=None, extra=(), return_dict=True):
        """A denoiser."""
        t = torch.as_tensor(timestep, dtype=torch.float32)
        h = self.conv(sample) * self.scale * torch.sin(t).reshape(-1, 1, 1, 1)
        if states is not None:
            h = h + states.mean(1).reshape(-1, 1, 1, 1)
        if added is not None:
            h = h + added["shift"] * added["factor"]
        for more in extra:
            h = h + more
        return Output(h) if return_dict else (h,)


def made(kind: type[Net] = Net, *, most: int = 4, also: Callable[[], Hashable] | None = None) -> Net:
    net = kind().eval()
    net.forward = graphed(net, most=most, also=also)
    return net


def plain(net: Net, *args: Any, **kwargs: Any) -> Any:
    return net.forward.forward(*args, **kwargs)


def given(size: int = 4, seed: int = 0, batch: int = 2) -> tuple[Tensor, Tensor]:
    """An image and its times."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, size, size, generator=g), torch.rand(batch, generator=g)


def check(net: Net, *args: Any, **kwargs: Any) -> Any:
    """The call's result is the plain one, bit for bit."""
    out, expected = net(*args, **kwargs), plain(net, *args, **kwargs)
    assert type(out) is type(expected)
    ours, theirs = (o[0] if isinstance(o, tuple) else o.sample for o in (out, expected))
    assert torch.equal(ours, theirs)
    return out
