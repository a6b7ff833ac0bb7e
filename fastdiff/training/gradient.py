"""Loss and gradient of a batch, worked off in micro-batches by threads that each run single-threaded kernels.

Micro-batches are added in a fixed order, so the gradient does not depend on the number of threads; and a core that
other programs keep busy slows down its own share only, not, as a barrier in every convolution would, all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import torch
from torch import Tensor

Loss = Callable[..., Tensor]


class Accumulator:
    """Calls loss(*part) on parts of a batch and sums values and gradients.

    loss: a mean over its samples. micro: samples in a part. workers: threads; 1 computes in the caller's thread.
    """

    def __init__(self, parameters: Iterable[Tensor], loss: Loss, *, micro: int, workers: int) -> None:
        self.loss, self.micro, self.workers = loss, micro, workers
        self.parameters = list(parameters)
        self.pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))

    def __call__(self, *batch: Tensor, share: float = 1.0, names: tuple[str, ...] = ()) -> float:
        """Add to `.grad` of every parameter `share` times the gradient of the mean loss over the batch; return `share`
        times that loss.

        batch: tensors with the same first dimension, which are cut into parts together. names: passed to loss.
        """
        count = len(batch[0])
        parts = list(zip(*(tensor.split(self.micro) for tensor in batch)))
        shares = [share * (len(part[0]) / count) for part in parts]
        if self.workers == 1:
            return self._added(map(self._part, parts, shares, repeat(names)))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._added(self.pool.map(self._part, parts, shares, repeat(names)))
        finally:
            torch.set_num_threads(threads)

    def _added(self, results: Iterable[tuple[float, list[Tensor]]]) -> float:
        """Gradients are added as they come, in the order of the parts, so that few are held at a time."""
        total = 0.0
        for value, gradients in results:
            total += value
            so_far = [p.grad for p in self.parameters if p.grad is not None]
            if so_far:
                torch._foreach_add_(so_far, gradients)
                continue
            for parameter, gradient in zip(self.parameters, gradients):
                parameter.grad = gradient
        return total

    def _part(
        self, part: Sequence[Tensor], share: float, names: tuple[str, ...]
    ) -> tuple[float, list[Tensor]]:
        loss = self.loss(*part, names=names) * share
        return loss.item(), list(torch.autograd.grad(loss, self.parameters))
