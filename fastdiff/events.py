"""What a callback and the progress bar see of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

import torch
from torch import Tensor
from tqdm import tqdm

from fastdiff import reference
from fastdiff.errors import FastdiffError
from fastdiff.levels import Level
from fastdiff.plan import Row


class Cancelled(FastdiffError):
    """A callback cancelled the run. `denoised`: the model's last estimate of the clean image, [B, ...]."""

    def __init__(self, denoised: Tensor) -> None:
        super().__init__("sampling was cancelled by its callback")
        self.denoised = denoised


@dataclass(frozen=True)
class Outputs:
    """One row's model outputs and how they are read: the row's weights by column, and the step's bound and gain."""

    x: Tensor
    cond: Tensor
    uncond: Tensor | None
    weights: dict[str, float]
    gain: Tensor | None = None
    version: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", _version(self.x))

    def check(self) -> None:
        """RuntimeError once the step has overwritten x."""
        if _version(self.x) != self.version:
            raise RuntimeError(
                "an Event can be read only inside the callback: copy event.x or event.denoised there"
            )

    def denoised(self, bound: Tensor | None = None) -> Tensor:
        """p*x + q*F, clamped as the step will clamp it: [B, ...]."""
        w = self.weights
        guided = reference.guide(self.cond, self.uncond, self.gain, w, self.x)
        raw = reference.weighted_sum([(w["p"], self.x), (w["q"], guided)], self.x)
        return reference.clamp(raw, w["lo"], w["hi"], bound)


@dataclass(frozen=True)
class Event:
    """One model call, seen after the call and before the step that uses it; to be read inside the callback.

    call: the number of this call, from 0; calls: how many there will be, None if not known beforehand.
    row: the row about to be applied.
    """

    call: int
    calls: int | None
    row: Row
    _outputs: Outputs
    _bound: Tensor | None

    @property
    def level(self) -> Level:
        """The noise level of x."""
        return self.row.level

    @property
    def x(self) -> Tensor:
        """The noisy image, a copy: [B, ...]."""
        self._outputs.check()
        return self._outputs.x.detach().clone()

    @property
    def denoised(self) -> Tensor:
        """The model's estimate of the clean image, guided and clamped as the step will use it: [B, ...]."""
        self._outputs.check()
        with torch.no_grad():
            return self._outputs.denoised(self._bound)

    def cancel(self) -> None:
        """Ends the run here: `sample` raises Cancelled, which carries the denoised image."""
        raise Cancelled(self.denoised)


def _version(x: Tensor) -> int:
    """How often x was written to; tensors of inference mode do not count."""
    return 0 if x.is_inference() else x._version


Callback = Callable[[Event], object]


class Watcher:
    """Counts model calls, moves the bar, tells the callback."""

    def __init__(self, callback: Callback | None, *, progress: bool, calls: int | None, name: str) -> None:
        self.callback = callback
        self.calls = calls
        self.called = 0
        self.bar = tqdm(total=calls, unit="call", desc=name) if progress else None

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    def count(self) -> None:
        """One more model call."""
        self.called += 1
        if self.bar is not None:
            self.bar.update()

    def see(self, row: Row, outputs: Outputs, bound: Tensor | None) -> None:
        """One more model call, shown to the callback."""
        event = Event(self.called, self.calls, row, outputs, bound)
        self.count()
        if self.callback is not None:
            self.callback(event)
