"""What step() returns: diffusers' own classes and tuples, their further images computed when somebody looks."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from fastdiff.diffusers.solving import Extra, Line

Given = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""The images of a step: runs.Images."""


class LazyTuple(tuple[Any, ...]):
    """step()'s tuple: the sample, and further images that are computed when somebody reads them.

    RuntimeError if what they are computed from was overwritten in between.
    """

    _made: tuple[Any, ...] | None = None
    _source: tuple[Line, Given, Tensor | None, torch.dtype]
    _versions: tuple[int, ...]

    def _whole(self) -> tuple[Any, ...]:
        if self._made is None:
            line, images, bound, dtype = self._source
            if _versions(images) != self._versions:
                raise RuntimeError(
                    "the step's sample or model output was overwritten before its further results were read: "
                    "read them first, or pass return_dict=True"
                )
            self._made = (tuple.__getitem__(self, 0), *_extras(line, images, bound, dtype))
        return self._made

    def __getitem__(self, key: Any) -> Any:
        return tuple.__getitem__(self, 0) if key == 0 else self._whole()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._whole())

    def __reduce__(self) -> Any:
        return tuple, (self._whole(),)

    def __repr__(self) -> str:
        return repr(self._whole())

    def __add__(self, other: Any) -> Any:
        return self._whole() + tuple(other)

    def __radd__(self, other: Any) -> Any:
        return tuple(other) + self._whole()

    def __contains__(self, item: object) -> bool:
        return item in self._whole()

    def __eq__(self, other: object) -> bool:
        return self._whole() == (tuple(other) if isinstance(other, tuple) else other)

    def __hash__(self) -> int:
        return hash(self._whole())


def _versions(images: Given) -> tuple[int, ...]:
    """-1 for an inference tensor: nobody can tell whether it was overwritten."""
    output, sample, noise, given = images
    try:
        newest = output._version, sample._version
    except RuntimeError:
        return (-1,)
    if noise is None and given is None:
        return newest
    return *newest, *(
        -1 if image is None or image.is_inference() else image._version for image in (noise, given)
    )


def result(
    scheduler: Any,
    line: Line,
    prev_sample: Tensor,
    images: Given,
    bound: Tensor | None,
    dtype: torch.dtype,
    return_dict: bool,
) -> Any:
    """step()'s result. bound: of the step's clamp; dtype: of the images after the sample."""
    if return_dict:
        kind, names = output_class(scheduler)
        return kind(**dict(zip(names, (prev_sample, *_extras(line, images, bound, dtype)))))
    if not line.extras:
        return (prev_sample,)
    made = LazyTuple((prev_sample, *line.extras))
    made._source, made._versions = (line, images, bound, dtype), _versions(images)
    if made._versions == (-1,):
        made._whole()
    return made


def _extras(line: Line, images: Given, bound: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    return tuple(_extra(extra, line, images, bound, dtype) for extra in line.extras)


def _extra(
    extra: Extra | None, line: Line, images: Given, bound: Tensor | None, dtype: torch.dtype
) -> Tensor | None:
    """One further image, at full precision, then rounded."""
    if extra is None:
        return None
    output, sample, noise, _ = images
    wide = torch.float64 if sample.dtype == torch.float64 else torch.float32
    output, sample = output.to(wide), sample.to(wide)
    made = torch.zeros_like(sample)
    if extra.x:
        made = made + extra.x * sample
    if extra.output:
        made = made + extra.output * output
    if extra.denoised:
        made = made + extra.denoised * _denoised(line, sample, output, bound)
    if extra.noise and noise is not None:
        made = made + extra.noise * noise.to(wide)
    return made.to(dtype)


def _denoised(line: Line, sample: Tensor, output: Tensor, bound: Tensor | None) -> Tensor:
    p, q, lo, hi = line.denoised
    image = q * output if not p else p * sample + q * output
    if bound is None:
        return image.clamp(lo, hi)
    most = bound.reshape(-1, *(1,) * (image.dim() - 1)).to(image.dtype)
    return image.clamp(-most, most) / most


def output_class(scheduler: Any) -> tuple[type, list[str]]:
    """The class of step()'s result and its fields: what diffusers annotates its step with."""
    memory = scheduler._memory()
    if memory.output_class is None:
        module = inspect.getmodule(scheduler.base)
        names = re.findall(r"\w+Output\b", scheduler.annotation)
        kind = next((getattr(module, name) for name in names if hasattr(module, name)), SchedulerOutput)
        memory.output_class = kind, [field.name for field in dataclasses.fields(kind)]
    found: tuple[type, list[str]] = memory.output_class
    return found
