"""Guided: classifier-free guidance noted down instead of computed, for a step that combines in its own kernel.

A pipeline computes `u + scale*(c - u)` between the model and the scheduler: three passes over images that the fused
step reads anyway. Where a loop's steps can take it (`expect`), a model's output is handed on as a Guided, whose halves,
differences, sums and multiples are noted down; the step reads off the two branches and their weights. To everybody else
a Guided is the tensor that PyTorch would have computed, in the same bits, from the first look at its values on.
"""

from __future__ import annotations

import copy
import functools
import operator
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fastdiff.noted import Kind, Parts, Source, exposes, half, kind_of, value_of
from fastdiff.noted import Weights as Weights

LEAST = {"cpu": 1 << 18, "cuda": 1 << 18}
"""Elements of a model's output from which noting down takes less time than computing."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16)

Terms = tuple[tuple[Tensor, float], ...]

_here = threading.local()
_wrapper: Any = Tensor._make_wrapper_subclass


class Guided(Tensor):
    """A model's output, or what guidance makes of one or two, not computed before somebody looks at it.

    RuntimeError if a model's output was overwritten, through a view that its model kept, before what is noted down of
    it was looked at.
    """

    _terms: Terms
    """(image, weight): the tensors this is a sum of."""
    _how: Any
    """How PyTorch would have computed it: (function, operands...), or for a model's output itself that tensor; None
    where nothing more is noted down."""
    _sources: tuple[Source, ...]
    _made: Tensor | None
    _kind: Kind

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Whatever is not noted down: computed, with the tensors that PyTorch would have."""
        if exposes(func):
            _each((args, kwargs or {}), _expose)
        made = func(*_each(args, _made), **_each(kwargs or {}, _made))
        if torch.Tag.inplace_view in getattr(func, "tags", ()):
            with torch._C._DisableTorchDispatch():  # so that this changes its own shape as well
                func(*args, **(kwargs or {}))
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """For torch.compile, which computes with what is in it."""
        return ["made"], None

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, Tensor], meta: None, size: Any, stride: Any) -> Guided:
        made = inner["made"]
        return _new(kind_of(made, made.dtype), ((made, 1.0),), None, (), made)

    @property
    def made(self) -> Tensor:
        """The tensor that PyTorch would have computed."""
        if self._made is None:
            if not _fresh(self):
                raise RuntimeError(
                    "a model's output was overwritten before what guidance makes of it was read: read it earlier, or "
                    "accelerate with guidance=False"
                )
            expect(False)  # somebody looks at what this loop's guidance makes: noting it down gains nothing
            with unset_fake_temporarily(), torch.inference_mode(False), torch.no_grad():
                self._made = value_of(self._how)
            self._how = None
        return self._made

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
        """Parts along `dim`."""
        if chunks == 2 and _open(self) and 0 <= dim < len(self._kind.size) and self._kind.size[dim] % 2 == 0:
            return _halves(self, dim)
        return super().chunk(chunks, dim)

    def split(self, split_size: Any, dim: int = 0) -> tuple[Tensor, ...]:
        """Parts of this size along `dim`."""
        if type(split_size) is int and split_size > 0 and _open(self):
            if 0 <= dim < len(self._kind.size) and 2 * split_size == self._kind.size[dim]:
                return _halves(self, dim)
        return super().split(split_size, dim)

    def float(self, *args: Any, **kwargs: Any) -> Tensor:
        """In float32."""
        if args or kwargs or self.dtype == torch.float32 or not _open(self):
            return super().float(*args, **kwargs)
        kind = self._kind._replace(dtype=torch.float32)
        return _noted(kind, self._terms, (Tensor.float, self._how), self._sources)

    def __sub__(self, other: Any) -> Tensor:
        noted = _added(operator.sub, self, other, -1.0)
        return super().__sub__(other) if noted is None else noted

    def __add__(self, other: Any) -> Tensor:
        noted = _added(operator.add, self, other, 1.0)
        return super().__add__(other) if noted is None else noted

    def __mul__(self, other: Any) -> Tensor:
        noted = _scaled(operator.mul, self, other)
        return super().__mul__(other) if noted is None else noted

    def __rmul__(self, other: Any) -> Tensor:
        noted = _scaled(operator.mul, self, other)
        return super().__rmul__(other) if noted is None else noted

    def __neg__(self) -> Tensor:
        noted = _scaled(operator.mul, self, -1.0)
        return super().__neg__() if noted is None else noted

    @property
    def data(self) -> Tensor:
        """The same memory, of which nothing is recorded."""
        return _expose(self).made.data

    @data.setter
    def data(self, value: Tensor) -> None:
        if value.shape != self.shape or value.stride() != self.stride() or value.dtype != self.dtype:
            raise RuntimeError("a model's output may only get data like its own: clone() it first")
        _expose(self).made.data = made_of(value)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(self.made)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        memo[id(self)] = copied = copy.deepcopy(self.made, memo)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.made.__reduce_ex__(protocol)


def _through(name: str) -> Any:
    """A method that looks at the memory: that of the tensor made."""

    @functools.wraps(getattr(Tensor, name))
    def method(self: Guided, *args: Any, **kwargs: Any) -> Any:
        _expose(self)
        return getattr(self.made, name)(*args, **kwargs)

    return method


for _name in (
    "__array__", "__dlpack__", "__dlpack_device__", "_typed_storage", "apply_", "data_ptr", "is_shared", "map_",
    "numpy", "share_memory_", "storage", "storage_offset", "tolist",
):  # fmt: skip
    setattr(Guided, _name, _through(_name))


def expect(wanted: bool) -> None:
    """Whether the steps of this thread's loop can combine what guidance notes down."""
    _here.expected = wanted


def handed(output: Any) -> Any:
    """A model's output to hand on: a Guided where a step expects one and noting down pays, else as it is."""
    if not getattr(_here, "expected", False) or type(output) is not Tensor or output.dtype not in FLOATS:
        return output
    least = LEAST.get(output.device.type)
    if least is None or output.numel() < least or output.requires_grad or output.is_inference():
        return output
    if torch._C._are_functorch_transforms_active():
        return output
    kind = kind_of(output, output.dtype)
    return _new(kind, ((output, 1.0),), output, (Source(output),), output)


def parts(output: Tensor) -> Parts:
    """What a step reads of a model output: one image, or two with their weights."""
    if type(output) is not Guided:
        return Parts(output, None, None)
    terms = output._terms
    if output._made is not None or not _fresh(output) or not all(weight for _, weight in terms):
        return Parts(output.made, None, None)
    if len(terms) == 1:
        return Parts(terms[0][0], None, (terms[0][1], 0.0))
    (image, weight), (uncond, other) = terms
    halves = output._sources[0].halves
    if halves and image is halves[0] and uncond is halves[1]:
        return Parts(output._sources[0].image, None, (weight, other))
    if halves and image is halves[1] and uncond is halves[0]:
        return Parts(output._sources[0].image, None, (other, weight))
    return Parts(image, uncond, (weight, other))


def made_of(value: Any) -> Any:
    """The tensor that PyTorch would have computed; any other value as it is."""
    return value.made if type(value) is Guided else value


def _new(
    kind: Kind, terms: Terms, how: Any, sources: tuple[Source, ...], made: Tensor | None = None
) -> Guided:
    size, strides, dtype, device, _ = kind
    new: Guided = _wrapper(Guided, size, strides=strides, dtype=dtype, device=device)
    new._kind, new._terms, new._how, new._sources, new._made = kind, terms, how, sources, made
    return new


def _noted(kind: Kind, terms: Terms, how: Any, sources: tuple[Source, ...]) -> Guided:
    """Something computed later."""
    new = _new(kind, terms, how, sources)
    for source in sources:
        source.waiting.append(weakref.ref(new))
    return new


def _added(function: Any, one: Guided, other: Any, sign: float) -> Guided | None:
    """one + sign*other, noted down; None where that cannot be."""
    if type(other) is not Guided or not _open(one):
        return None
    if other._how is None or (other._sources is not one._sources and not _open(other)):
        return None
    kind = one._kind
    if not kind.dense or (kind is not other._kind and kind != other._kind):
        return None
    terms = {id(image): (image, weight) for image, weight in one._terms}
    for image, weight in other._terms:
        known = terms.get(id(image))
        terms[id(image)] = (image, sign * weight if known is None else known[1] + sign * weight)
    if len(terms) > 2:
        return None
    sources = one._sources
    if sources != other._sources:
        sources += tuple(source for source in other._sources if source not in sources)
    return _noted(kind, tuple(terms.values()), (function, one._how, other._how), sources)


def _scaled(function: Any, one: Guided, number: Any) -> Guided | None:
    """one*number, noted down; None where that cannot be."""
    if type(number) not in (int, float) or not _open(one) or not one._kind.dense:
        return None
    terms = tuple([(image, weight * number) for image, weight in one._terms])
    return _noted(one._kind, terms, (function, one._how, number), one._sources)


def _halves(whole: Guided, dim: int) -> tuple[Tensor, ...]:
    if whole._made is not None:
        source = whole._sources[0]
        entire = not dim and whole._made is source.image
        views = source.halves if entire and source.halves else whole._made.chunk(2, dim)
        if entire:
            source.halves = views
        kind = kind_of(views[0], whole.dtype)
        return tuple([_new(kind, ((view, 1.0),), view, whole._sources, view) for view in views])
    weights = [weight for _, weight in whole._terms]
    pairs = list(zip(*(image.chunk(2, dim) for image, _ in whole._terms)))
    kind = kind_of(pairs[0][0], whole.dtype)
    return tuple(
        _noted(kind, tuple(zip(images, weights)), (half, whole._how, dim, place), whole._sources)
        for place, images in enumerate(pairs)
    )


def _fresh(one: Guided) -> bool:
    """Whether the outputs that it is made of are as the model gave them."""
    for source in one._sources:  # noqa: SIM110 - all() takes twice as long
        if source.image._version != source.version:
            return False
    return True


def _open(one: Guided) -> bool:
    """Whether more may be noted down of it."""
    if torch.compiler.is_compiling() or one._how is None or (torch.is_grad_enabled() and one.requires_grad):
        return False
    for source in one._sources:  # noqa: SIM110
        if source.exposed or source.image._version != source.version:
            return False
    return True


def _expose(one: Guided) -> Guided:
    if one._made is not None and one._how is not None:
        for source in one._sources:
            source.expose()
    return one


def _made(one: Guided) -> Tensor:
    return one.made


def _each(value: Any, change: Any) -> Any:
    """A structure of arguments with each Guided changed."""
    if type(value) is Guided:
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_each(item, change) for item in value)
    return {key: _each(item, change) for key, item in value.items()} if isinstance(value, dict) else value
