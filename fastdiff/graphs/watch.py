"""What a captured graph does not see change: everything about a model but the values in its tensors.

A graph repeats the kernels of one run on the memory of one run. New values in a weight it sees; a weight that was
replaced or moved, an adapter put on, a scale set, a processor exchanged, it does not. `Watch` remembers all of these
and says whether any is other than before, at a cost far below a step's: as long as nothing was assigned, every value is
the very same object, which is quick to see. Only where one is not, the two states are compared by value.
"""

from __future__ import annotations

import functools
import operator
import types
import weakref
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_globals
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fastdiff.graphs.inputs import PLAIN, exactly

MOST = 200_000
"""Values to look at before a model counts as too much to watch."""

DEPTH = 4
"""How far objects that are not modules are followed from one that is."""

OPAQUE = (type, types.ModuleType, types.BuiltinFunctionType, torch.Generator, weakref.ref)
COMPILED = "it is compiled, which has graphs of its own (torch.compile with mode='reduce-overhead')"
GRAPH_SAFE = "graph_safe"
"""An attribute that says of a function put in place of a module's forward that a graph may hold what it launches; of a
hook, that it launches nothing."""

OWN = "_fastdiff_loops"
"""The attribute where a model's captured loops are kept, which is no part of what it computes."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_UNREAD = frozenset(
    name for name in vars(nn.Module()) if "hooks" in name or name == "_non_persistent_buffers_set"
) | {OWN}
_CHANGEABLE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made by a class statement
_shape, _dtype = operator.attrgetter("shape"), operator.attrgetter("dtype")


class Watch:
    """Watches a model: an nn.Module, or a function and the modules and values that it reads.

    skip: objects that are not looked at. Holds no reference to the model itself, so that it can be forgotten."""

    def __init__(self, model: object, *, skip: tuple[object, ...] = ()) -> None:
        self.model = weakref.ref(model)
        self.skip = skip
        self.state = _State(model, skip)

    def changed(self) -> bool:
        """Whether anything is other than when this was last asked, or at first."""
        model = self.model()
        if type(model) is self.state.kind and self.state.same():
            return False
        before, self.state = self.state, _State(model, self.skip)
        return (before.signature, before.refusal) != (self.state.signature, self.state.refusal)

    def refusal(self, device: torch.device) -> str | None:
        """Why the model cannot be captured on this device, or None."""
        if module_globals._global_forward_hooks or module_globals._global_forward_pre_hooks:
            return "a hook runs at every module's call (torch.nn.modules.module.register_module_forward_hook)"
        if self.state.refusal:
            return self.state.refusal
        elsewhere = self.state.devices - {device}
        if elsewhere:
            return f"a tensor of the model is on {elsewhere.pop()}, the images on {device}"
        return None


class _State:
    """The model at one time: all values that were found, as objects, and a signature of what they are."""

    def __init__(self, model: object, skip: tuple[object, ...]) -> None:
        self.kind = type(model)
        self.refusal: str | None = None
        self.tensors: list[Tensor] = []
        self.signature: list[object] = []
        self.modules: list[nn.Module] = []
        self.dicts: list[dict[Any, Any]] = []
        self.named: list[dict[Any, Any]] = []  # those of them whose keys may change and their values not
        self.lists: list[list[Any] | set[Any]] = []
        self.cells: list[types.CellType] = []
        self.globals: list[tuple[dict[str, Any], str]] = []
        self.scopes: dict[
            type, types.MappingProxyType[str, Any]
        ] = {}  # of the classes, whose methods may change
        self.hooks: list[dict[Any, Any]] = []
        self._seen: dict[int, int] = {id(item): -1 for item in (*skip, model)}
        self._kept: list[object] = []  # so that no other object takes the number of one that was seen
        self._enter(model, 0)
        self.values = list(self._values())
        self.modules = [module for module in self.modules if module is not model]  # which is not held
        self.hooked = any(self.hooks)
        self.classes = list(map(type, self.modules))
        self.geometry = self._geometry()
        self.devices = {t.device for t in self.tensors if t.dim() or not t.is_cpu}

    def same(self) -> bool:
        """Whether every value is the same object in the same place."""
        if any(self.hooks) != self.hooked:
            return False
        known, now = self.values, list(self._values())
        return (
            len(now) == len(known)
            and all(map(operator.is_, now, known))
            and list(map(type, self.modules)) == self.classes
            and self._geometry() == self.geometry
        )

    def _geometry(self) -> tuple[list[Any], ...]:
        """Where the tensors lie and how: memory may be used again in another layout or dtype."""
        asked = Tensor.data_ptr, _shape, Tensor.stride, _dtype
        return tuple(list(map(ask, self.tensors)) for ask in asked)

    def _values(self) -> Iterator[Any]:
        return chain(
            chain.from_iterable(self.named),
            chain.from_iterable(map(dict.values, self.dicts)),
            chain.from_iterable(self.lists),
            (_content(cell) for cell in self.cells),
            (scope.get(name) for scope, name in self.globals),
            chain.from_iterable([scope.values() for scope in self.scopes.values()]),
        )

    def _refuse(self, why: str) -> None:
        self.refusal = self.refusal or why

    def _see(self, value: object, depth: int) -> None:
        """One value: what it is goes into the signature, and what it holds is seen too."""
        if isinstance(value, PLAIN):
            self.signature += (type(value), exactly(value))
        elif isinstance(value, Tensor):
            self._see_tensor(value)
        elif id(value) in self._seen:
            self.signature.append(self._seen[id(value)])
        elif isinstance(value, OPAQUE) or depth > DEPTH:
            self._remember(value)
            self.signature.append(id(value))
        else:
            self._remember(value)
            self._enter(value, depth)

    def _remember(self, value: object) -> None:
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        if len(self._seen) > MOST:
            self._refuse("it holds too many objects to see all that may change")

    def _see_tensor(self, tensor: Tensor) -> None:
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
            self._refuse(f"it holds a {type(tensor).__name__}, a tensor with ways of its own")
            self.signature.append(id(tensor))
            self._kept.append(tensor)
            return
        self.tensors.append(tensor)
        self.signature += (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)

    def _enter(self, value: Any, depth: int) -> None:
        if self.refusal and len(self._seen) > MOST:
            return
        self.signature.append(type(value))
        if type(value) not in self.scopes:
            self._enter_class(type(value))
        if isinstance(value, nn.Module):
            self._enter_module(value)
        elif isinstance(value, types.FunctionType):
            self._enter_function(value, depth)
        elif isinstance(value, types.MethodType):
            self._see(value.__self__, depth)
            self._see(value.__func__, depth)
        elif isinstance(value, functools.partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                self._see(part, depth + 1)
        elif isinstance(value, dict):
            self._enter_dict(value, depth)
        elif isinstance(value, (list, set)):
            self.lists.append(value)
            self._see_all(value, depth)
        elif isinstance(value, (tuple, frozenset)):
            self._see_all(value, depth)
        if not isinstance(value, (nn.Module, types.FunctionType)) and isinstance(
            getattr(value, "__dict__", None), dict
        ):
            self._enter_dict(vars(value), depth)

    def _see_all(self, values: Any, depth: int) -> None:
        self.signature.append(len(values))
        for value in values:
            self._see(value, depth + 1)

    def _enter_dict(self, values: dict[Any, Any], depth: int) -> None:
        self.dicts.append(values)
        self.named.append(values)
        self.signature.append(len(values) - (OWN in values))
        for key, value in values.items():
            if key is not OWN:
                self.signature.append(key)
                self._see(value, depth + 1)

    def _enter_class(self, kind: type) -> None:
        """What a class and those above it define: methods, by identity, and plain values."""
        for each in kind.__mro__:
            if each not in self.scopes and each.__flags__ & _CHANGEABLE:
                scope = self.scopes[each] = each.__dict__
                for name, value in scope.items():
                    self.signature += (name, exactly(value) if isinstance(value, PLAIN) else id(value))
                    self._kept.append(value)

    def _enter_module(self, module: nn.Module) -> None:
        """A module's attributes, parameters, buffers and modules."""
        held = vars(module)
        self._check(module, held)
        self.modules.append(module)
        self.dicts.append(held)
        self.hooks += [held[name] for name in _HOOKS if not held[name] or _needs_python(held[name])]
        for name, value in held.items():
            if name not in _UNREAD:
                self.signature.append(name)
                self._see(value, 0)

    def _check(self, module: nn.Module, held: dict[str, Any]) -> None:
        """What is done with a module that Python must be there for."""
        name = type(module).__name__
        forward = held.get("forward")
        if any(_needs_python(held[hooks]) for hooks in _HOOKS):
            self._refuse(f"{name} has hooks that run at each call")
        if held.get("_compiled_call_impl") is not None or name == "OptimizedModule":
            self._refuse(COMPILED)
        if isinstance(module, torch.jit.ScriptModule):
            self._refuse(f"{name} is scripted: its parts cannot be seen to change")
        if forward is not None and id(forward) not in self._seen and not getattr(forward, GRAPH_SAFE, False):
            self._refuse(f"{name} has had its forward replaced, as offloading and caches do")
        if module.training and (
            (isinstance(module, _DropoutNd) and module.p) or isinstance(module, _BatchNorm)
        ):
            self._refuse(f"{name} is in training mode: call eval()")

    def _enter_function(self, function: types.FunctionType, depth: int) -> None:
        """What a function reads: its closure, its defaults, and the modules, tensors, values and functions among the
        global names in its code."""
        if hasattr(function, "_torchdynamo_orig_callable"):
            self._refuse(COMPILED)
        self.signature.append(id(function.__code__))
        self._kept.append(function.__code__)
        for cell in function.__closure__ or ():
            self.cells.append(cell)
            self._see(_content(cell), depth)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._see(default, depth + 1)
        for name in sorted(_names(function.__code__)):
            value = function.__globals__.get(name)
            if isinstance(value, (nn.Module, Tensor, *PLAIN, list, dict, functools.partial)) or (
                isinstance(value, types.FunctionType) and depth < 2
            ):
                self.globals.append((function.__globals__, name))
                self._see(value, depth + 1)


def _needs_python(hooks: dict[int, Any]) -> bool:
    return any(not getattr(hook, GRAPH_SAFE, False) for hook in hooks.values())


def _names(code: types.CodeType) -> set[str]:
    """The global names (and attributes) that a function's code mentions, and functions within it."""
    inner = (_names(item) for item in code.co_consts if isinstance(item, types.CodeType))
    return set(code.co_names).union(*inner)


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # empty: the name has no value yet
        return None
