"""The loop of every fixed-step sampler: k-diffusion's calls to model, noise sampler and callback, one row a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from fastdiff.kdiffusion.noise import NoiseSampler, randn_like
from fastdiff.kdiffusion.script import Script
from fastdiff.kdiffusion.state import State, state_of

Denoiser = Callable[..., Tensor]
Callback = Callable[[dict[str, Any]], Any]
Extra = Mapping[str, Any] | None


class Bar(tqdm):
    """A progress bar without tqdm's thread: where there is only one, ops.randn draws from torch's global generator."""

    monitor_interval = 0


@dataclass(frozen=True)
class Run:
    """What a sampler was called with. model(x, sigma, **extra_args) -> denoised; x: [B, ...]; sigma: [B], x's dtype.

    about(i, sigma): what a callback hears of step i and the sigma of its first call, beside x, i and denoised.
    by_call: the progress bar counts model calls, not steps. idle_draws: samplers with churn draw noise at every step,
    as k-diffusion's do, and not only where it is added.
    """

    model: Denoiser
    x: Tensor
    about: Callable[[int, Tensor], dict[str, Any]]
    extra_args: Extra = None
    callback: Callback | None = None
    disable: bool | None = None
    noise_sampler: NoiseSampler | None = None
    by_call: bool = False
    idle_draws: bool = True
    given: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        # not a copy: a callback may change it between calls
        object.__setattr__(self, "given", {} if self.extra_args is None else self.extra_args)

    def along(self, script: Script) -> Tensor:
        """From x along the script: a new tensor, of the dtype that k-diffusion's would have."""
        state = state_of(script.plan, self.x)
        # Copies, since what a model, a callback or a noise sampler is given it may write to.
        called = script.called.clone()
        sigmas = () if self.callback is None else called.unbind(0)
        spans = [pair.unbind(0) for pair in script.spans.clone().unbind(0)]
        times = per_image(called, self.x)
        total = len(times) if self.by_call else len(script.steps)
        with Bar(total=total, disable=self.disable) as bar:
            for i, step in enumerate(script.steps):
                told = self.callback is None
                draws = script.churns and (self.idle_draws or step[0].call is None)
                put_back = randn_like(self.x, state.dtype) if draws else None
                for row, call, draw, slope in step:
                    if call is None:
                        state.take(row, None, put_back)
                        continue
                    denoised = self.denoised(state, times[call])
                    if not told:
                        self._tell(i, state, denoised, sigmas[call])
                        told = True
                    noise = None if draw is None else self.noise_sampler(*spans[draw])  # type: ignore[misc]
                    state.settle(denoised, called.dtype if slope else None)
                    state.take(row, denoised, noise)
                    if self.by_call:
                        bar.update()
                if not self.by_call:
                    bar.update()
        return state.result()

    def denoised(self, state: State, sigma: Tensor) -> Tensor:
        """The model's answer, checked."""
        output = self.model(state.lend(), sigma, **self.given)
        if not isinstance(output, Tensor):
            raise TypeError(f"the model returned {type(output).__name__}, not a tensor: wrap it")
        if output.shape != self.x.shape:
            raise ValueError(
                f"the model returned shape {list(output.shape)} for an input of {list(self.x.shape)}"
            )
        state.reclaim()
        return output

    def _tell(self, i: int, state: State, denoised: Tensor, sigma: Tensor) -> None:
        """Calls the callback; where it writes to the x it is given, the run goes on from what it wrote."""
        assert self.callback is not None
        x = state.lend()
        before = version(x)
        self.callback({"x": x, "i": i, **self.about(i, sigma), "denoised": denoised})
        changed = version(x) != before
        del x
        state.reclaim()
        if changed:
            state.written()


def per_image(sigmas: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Each of sigmas: [N] for each image, as the model takes it: N of [B] in x's dtype and on its device."""
    placed = sigmas.to(device=x.device, dtype=x.dtype)
    return placed.unsqueeze(1).expand(-1, x.shape[0]).contiguous().unbind(0)


def version(x: Tensor) -> int:
    """How often x was written to; not known of a tensor of inference mode."""
    return 0 if x.is_inference() else x._version
