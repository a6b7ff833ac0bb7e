"""What the tests that need an NVIDIA GPU share: that they skip without one, and each backend in its turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastdiff import backend

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: torch sees none")
GPU_ONLY = [pytest.mark.gpu, needs_gpu]
"""For pytestmark."""

BACKENDS = ("triton", "cuda")


def each_backend(*ops: str) -> Any:
    """A fixture that runs each test of a module on each backend, which has these ops. One that cannot run on a machine
    with a GPU is a failure, not a skip."""

    @pytest.fixture(params=BACKENDS, autouse=True, name="gpu_backend")
    def chosen(request: pytest.FixtureRequest) -> Iterator[str]:
        with backend.use(request.param):
            for op in ops:
                assert backend.select(op, "cuda", torch.float32) == request.param
            yield request.param

    return chosen
