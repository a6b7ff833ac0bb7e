"""Symbols: tensors that stand for "so much of x, so much of the model's output, so much of the noise".

A scheduler's step is linear in the sample, the model outputs and the noise. Called on a symbol, a float64 tensor of
coefficients [1, M], it leaves its own weights in the result: no formula is written a second time. What is not linear is
either a clamp of the denoised image, which becomes a symbol of its own, or refused with NotLinear.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.diffusers.learned import Deviation

Vector = NDArray[np.float64]
KINDS = ("x", "output", "denoised", "given", "noise", "noise_2")
"""The symbols of one step: the sample, the model's output, what a clamp made of it, another image passed to step()
(which may be noise of the caller's), and draws."""
NOISES = (KINDS.index("noise"), KINDS.index("noise_2"))


class NotLinear(Exception):
    """The step does something to an image that weights cannot express; the message says what."""


@dataclass(frozen=True)
class Clamp:
    """denoised = clamp(argument, lo, hi); dynamic: the bounds are found per image, by dynamic thresholding."""

    argument: Vector
    lo: float = -np.inf
    hi: float = np.inf
    dynamic: bool = False


@dataclass
class Step:
    """What one step of a scheduler did to its symbols.

    outputs: the step's results in order, the next sample first; draws: the dtype of each draw, None for the dtype of
    the images; spans: the arguments of a noise sampler's calls instead; deviation: of the noise at each pixel, where
    the model predicts it; channels: how many of the output's are used, where the step takes a part of them.
    """

    outputs: tuple[Vector, ...] = ()
    draws: list[torch.dtype | None] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)
    clamp: Clamp | None = None
    deviation: Deviation | None = None
    channels: int | None = None


class Recording:
    """The symbols of a run of `steps` steps, and what the step now running does with them."""

    def __init__(self, steps: int) -> None:
        self.size = steps * len(KINDS)
        self.number = 0
        self.step = Step()

    def place(self, kind: str, number: int | None = None) -> int:
        """Where a symbol's coefficient stands."""
        return (self.number if number is None else number) * len(KINDS) + KINDS.index(kind)

    def symbol(self, kind: str) -> Symbol:
        """The symbol of that kind of the step now running."""
        values = np.zeros((1, self.size))
        values[0, self.place(kind)] = 1.0
        return torch.from_numpy(values).as_subclass(Symbol)

    def wide(self) -> Symbol:
        """The symbol of an output with as many channels again, in which the model predicts a variance."""
        both = np.zeros((1, 2 * self.size))
        both[0, self.place("output")] = 1.0
        return torch.from_numpy(both).as_subclass(Symbol)

    def drawn(self, dtype: torch.dtype | None) -> Symbol:
        """The symbol of a draw."""
        if len(self.step.draws) == len(NOISES):
            raise NotLinear("more than two draws of noise in one step")
        self.step.draws.append(None if dtype == torch.float64 else dtype)
        return self.symbol(KINDS[NOISES[len(self.step.draws) - 1]])

    def clamped(self, argument: Tensor, lo: float, hi: float, *, dynamic: bool = False) -> Symbol:
        """The symbol of the clamped image."""
        if self.step.clamp is not None:
            raise NotLinear("more than one clamp in one step")
        self.step.clamp = Clamp(coefficients(argument), lo, hi, dynamic)
        return self.symbol("denoised")

    def deviating(self, noise: Symbol, function: Callable[[Tensor], Tensor]) -> Symbol:
        """The symbol of noise times a function of the predicted variance."""
        deviation = Deviation.of(function)
        if deviation is None or self.step.deviation is not None:
            raise NotLinear(
                "noise of a deviation that is no exponential and no power of what the model predicted"
            )
        self.step.deviation = deviation
        return noise


_active = threading.local()


@contextmanager
def recording(steps: int) -> Iterator[Recording]:
    """Symbols for a run."""
    _active.recording = Recording(steps)
    try:
        yield _active.recording
    finally:
        del _active.recording


def coefficients(symbol: Tensor, part: slice = slice(None)) -> Vector:
    """A symbol's coefficients, or part of them: float64 [M]."""
    values: Vector = symbol.as_subclass(Tensor).numpy().reshape(-1)[part].copy()
    return values


def drawing_symbols(base: type) -> type:
    """A scheduler class whose draws are symbols: its own functions, but for the randn_tensor that they find.

    A mode that intercepts torch.randn would slow down every scalar's arithmetic too.
    """
    return _rebound(
        base,
        tuple(
            (name, function)
            for kind in reversed(base.__mro__)
            for name, function in vars(kind).items()
            if isinstance(function, FunctionType) and "randn_tensor" in function.__globals__
        ),
    )


@functools.lru_cache(maxsize=128)
def _rebound(base: type, functions: Sequence[tuple[str, FunctionType]]) -> type:
    body = {name: _drawing_symbols(function) for name, function in functions}
    return type(base.__name__, (base,), {**body, "__module__": base.__module__})


def _drawing_symbols(function: FunctionType) -> FunctionType:
    known = {**function.__globals__, "randn_tensor": _randn_tensor}
    made = FunctionType(
        function.__code__, known, function.__name__, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _randn_tensor(
    shape: Sequence[int], generator: Any = None, device: Any = None, dtype: Any = None, layout: Any = None
) -> Symbol:
    made: Recording = _active.recording
    if tuple(shape) != (1, made.size):
        raise NotLinear(f"noise of another shape, {tuple(shape)}")
    return made.drawn(dtype or torch.get_default_dtype())


class Symbol(Tensor):
    """Coefficients that go through a step's arithmetic: [1, M], or stacked along a dimension before the last."""

    device = torch.device("cpu")
    dtype = torch.float64

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = _rule(func)(args, kwargs)
        if result is not None:
            return result
        with torch._C.DisableTorchFunctionSubclass():
            made = func(*args, **kwargs)
        return made.as_subclass(Symbol) if type(made) is Tensor else made


@functools.cache
def _rule(func: Any) -> Rule:
    """What is asked of the arguments of func before it is called on a symbol."""
    name = func.__name__.strip("_")
    return _linear if name == "get" or name in QUERIES else RULES.get(name, functools.partial(_refused, name))


def _refused(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    raise NotLinear(f"{name}() of an image")


class Predicted(Symbol):
    """The channels in which a model predicts the variance of each pixel. What a step does to them is kept, to be done
    to numbers; in the end it multiplies noise."""

    made: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, made: Callable[[Tensor], Tensor]) -> Predicted:
        predicted = torch.zeros(1, 0, dtype=torch.float64, device="cpu").as_subclass(cls)
        predicted.made = made
        return predicted

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        images = [value for value in args if _is(value) and not isinstance(value, Predicted)]
        if images:
            predicted = next(value for value in args if isinstance(value, Predicted))
            if RULES.get(func.__name__.strip("_")) is not _product:
                raise NotLinear("what the model predicted is added to an image")
            recording: Recording = _active.recording
            return recording.deviating(images[0], predicted.made)

        def made(numbers: Tensor) -> Tensor:
            given = [value.made(numbers) if isinstance(value, Predicted) else value for value in args]
            result: Tensor = func(*given, **(kwargs or {}))
            return result

        return Predicted.of(made)


def _is(value: object) -> bool:
    return isinstance(value, Symbol)


def _sum(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    for term in args[:2]:
        if not _is(term) and bool(torch.as_tensor(term).any()):
            raise NotLinear("a constant added to an image")


def _weight(value: Any) -> None:
    if _is(value):
        raise NotLinear("a product or quotient of images")
    if isinstance(value, Tensor) and value.numel() != 1:
        raise NotLinear("weights that differ within the batch")


def _product(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    _weight(args[1] if _is(args[0]) else args[0])


def _quotient(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    _weight(args[1])


def _linear(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    return None


def _einsum(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if sum(map(_is, args)) != 1:
        raise NotLinear("a product or quotient of images")


def _split(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Symbol, Symbol]:
    recording: Recording = _active.recording
    if tuple(args[0].shape) != (1, 2 * recording.size):
        raise NotLinear("a part of an image")
    return recording.symbol("output"), Predicted.of(lambda numbers: numbers)


def _item(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    match args[1]:
        case (slice(start=None, stop=None), slice(start=None, stop=int() as channels, step=None)):
            recording: Recording = _active.recording
            recording.step.channels = channels
            first: Tensor = args[0]
            return first
    return None


def _cast(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    # Coefficients stay float64 on the CPU: casts are the kernel's business. `noise.to(x)` names no symbol.
    first: Tensor = args[0]
    return first


def _clamp(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Symbol:
    bounds = [*args[1:], None, None]
    lo, hi = kwargs.get("min", bounds[0]), kwargs.get("max", bounds[1])
    lo, hi = -np.inf if lo is None else float(lo), np.inf if hi is None else float(hi)
    recording: Recording = _active.recording
    return recording.clamped(args[0], lo, hi)


def _drawn_like(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Symbol:
    recording: Recording = _active.recording
    return recording.drawn(kwargs.get("dtype", torch.float64))


Rule = Callable[[Sequence[Any], Mapping[str, Any]], Any]
RULES: dict[str, Rule] = {
    **dict.fromkeys(["add", "radd", "iadd", "sub", "rsub", "isub", "subtract"], _sum),
    **dict.fromkeys(["mul", "rmul", "imul", "multiply"], _product),
    **dict.fromkeys(["div", "truediv", "itruediv", "true_divide", "divide"], _quotient),
    **dict.fromkeys(["einsum", "matmul", "tensordot"], _einsum),
    **dict.fromkeys(["to", "type", "float", "double", "half", "type_as", "contiguous"], _cast),
    **dict.fromkeys(["clamp", "clip"], _clamp),
    **dict.fromkeys(["neg", "clone", "detach", "stack", "unsqueeze", "zeros_like"], _linear),
    **dict.fromkeys(["split", "chunk"], _split),
    "getitem": _item,
    "randn_like": _drawn_like,
}
QUERIES = {"size", "dim", "numel", "stride", "is_floating_point", "element_size", "repr", "format", "len"}
