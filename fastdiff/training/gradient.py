"""Loss and gradient of a batch, worked off in micro-batches by threads that each run single-threaded kernels.

Micro-batches are added in a fixed order, so the gradient does not depend on the number of threads; and a core that
other programs keep busy slows down its own share only, not, as a barrier in every convolution would, all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

Loss = Callable[..., Tensor]


class Accumulator:
    """Calls loss(*part) on parts of a batch and sums values and gradients.

    loss: a mean over its samples. micro: samples in a part. workers: threads; 1 computes in the caller's thread.
    """

    def __init__(self, model: nn.Module, loss: Loss, *, micro: int, workers: int) -> None:
        self.loss, self.micro = loss, micro
        self.parameters = list(model.parameters())
        self.pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))

    def __call__(self, *batch: Tensor) -> float:
        """Set `.grad` of every parameter to the gradient of the mean loss over the batch; return that loss.

        batch: tensors with the same first dimension, which are cut into parts together.
        """
        count = len(batch[0])
        parts = list(zip(*(tensor.split(self.micro) for tensor in batch)))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            results = [*self.pool.map(self._part, parts, [len(part[0]) / count for part in parts])]
        finally:
            torch.set_num_threads(threads)
        total, gradients = results[0]
        for value, more in results[1:]:
            total += value
            torch._foreach_add_(gradients, more)
        for parameter, gradient in zip(self.parameters, gradients):
            parameter.grad = gradient
        return total

    def _part(self, part: Sequence[Tensor], share: float) -> tuple[float, list[Tensor]]:
        loss = self.loss(*part) * share
        return loss.item(), list(torch.autograd.grad(loss, self.parameters))
