"""What every launcher needs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_HERE = nullcontext()


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes tensor's GPU the current one, which is where Triton launches; costs nothing if it already is."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(tensor.device)
