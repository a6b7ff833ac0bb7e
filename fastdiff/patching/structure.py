"""What the source of a forward says: whether it is one that we know, and which activation only ever follows a norm.

Read once for each class. A class whose source cannot be read, or reads otherwise, is left alone.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

from torch import nn

KNOWN: dict[str, frozenset[str]] = {
    "ResnetBlock2D": frozenset({"b13de64bc9ba9d4b", "748b9bff3f5ec48e"}),  # 0.36, 0.37 to 0.42
    "TemporalResnetBlock": frozenset({"e5b5bcfdafbabbef"}),
}
"""Class -> fingerprints of its forward in diffusers 0.36 to 0.42, which our subclass was compared with."""


@cache
def is_known(kind: Any) -> bool:
    """Whether this class's forward is one for which our subclass computes the same."""
    return fingerprint(kind) in KNOWN.get(kind.__name__, ())


def fingerprint(kind: type[nn.Module]) -> str:
    """A hash of the body of forward, comment lines and white space aside; "" where there is no source."""
    source = _source(kind.forward)
    function = _parsed(source)
    if function is None:
        return ""
    lines = source.splitlines()[function.body[0].lineno - 1 :]
    text = "".join(line for line in lines if not line.lstrip().startswith("#"))
    return hashlib.sha256("".join(text.split()).encode()).hexdigest()[:16]


@cache
def pairs(kind: Any) -> dict[str, tuple[str, ...]]:
    """Activation -> norms, names of children: forward calls the activation only on what it has just got from one of the
    norms, calls these norms nowhere else, and no other method calls any of them."""
    function = _parsed(_source(kind.forward))
    if function is None:
        return {}
    following, uses = list(_following(function)), _uses(function)
    found: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys(activation for _, activation in following):
        norms = Counter(norm for norm, activation in following if activation == name)
        alone = uses[name] == _activations(function, name) and all(uses[n] == norms[n] for n in norms)
        if alone and not _called_elsewhere(kind, {name, *norms}):
            found[name] = tuple(norms)
    return found


def _source(function: object) -> str:
    """The source of a function under its decorators, or ""."""
    try:
        return textwrap.dedent(inspect.getsource(inspect.unwrap(function)))  # type: ignore[arg-type]
    except (OSError, TypeError):
        return ""


def _parsed(source: str) -> ast.FunctionDef | None:
    try:
        statement = ast.parse(source).body[0]
    except (SyntaxError, IndexError):
        return None
    return statement if isinstance(statement, ast.FunctionDef) else None


def _own_call(statement: ast.stmt) -> tuple[str, str] | None:
    """(v, name) of a statement v = self.name(v, ...)."""
    match statement:
        case ast.Assign(
            targets=[ast.Name(id=target)],
            value=ast.Call(
                func=ast.Attribute(value=ast.Name(id="self"), attr=name), args=[ast.Name(id=first), *_]
            ),
        ) if target == first:
            return target, name
    return None


def _endings(statement: ast.stmt) -> list[tuple[str, str] | None]:
    """The _own_call of each way through a statement."""
    if isinstance(statement, ast.If):
        bodies = (statement.body, statement.orelse)
        return [ending for body in bodies for ending in (_endings(body[-1]) if body else [None])]
    return [_own_call(statement)]


def _blocks(function: ast.FunctionDef) -> Iterator[list[ast.stmt]]:
    """Every list of statements that run one after the other."""
    for node in ast.walk(function):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                yield block


def _steps(function: ast.FunctionDef) -> Iterator[tuple[str, list[str]]]:
    """(activation, norms) of each v = self.activation(v) before which every way ends in v = self.norm(v)."""
    for block in _blocks(function):
        for before, after in pairwise(block):
            call, endings = _own_call(after), _endings(before)
            norms = [ending[1] for ending in endings if ending and call and ending[0] == call[0]]
            if call and len(norms) == len(endings):
                yield call[1], norms


def _following(function: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    """(norm, activation) wherever v = self.norm(v) is the last that happens before v = self.activation(v)."""
    for activation, norms in _steps(function):
        yield from ((norm, activation) for norm in norms)


def _activations(function: ast.FunctionDef, name: str) -> int:
    """How often self.name is called right after a norm."""
    return sum(activation == name for activation, _ in _steps(function))


def _uses(function: ast.FunctionDef) -> Counter[str]:
    """How often each attribute of self is read, other than to ask whether it is there."""
    asked = {
        id(node) for test in ast.walk(function) if isinstance(test, ast.If) for node in ast.walk(test.test)
    }
    return Counter(
        node.attr
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
        if id(node) not in asked
    )


def _called_elsewhere(kind: type[nn.Module], names: set[str]) -> bool:
    """Whether a method other than forward calls one of these children."""
    for each in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        for attribute, method in vars(each).items():
            code = getattr(inspect.unwrap(method) if callable(method) else None, "__code__", None)
            if attribute == "forward" or code is None or not names & set(code.co_names):
                continue
            tree = _parsed(_source(method))
            if tree is None or any(_calls(node, names) for node in ast.walk(tree)):
                return True
    return False


def _calls(node: ast.AST, names: set[str]) -> bool:
    """Whether this is a call self.name(...)."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)):
            return name in names
    return False
