"""From the recipe in a PNG back to the form that made it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from fastdiff.apps.settings import Settings
from fastdiff.apps.source import Source
from fastdiff.web.fields import short
from fastdiff.web.operations import Operation
from fastdiff.web.table import OPERATIONS


def restored(recipe: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """{"operation", "fields", "notes"}: JSON data for the page. Every value is checked as if it had been typed.

    notes: in one line each, what could not be taken over, such as another checkpoint. Raises ValueError for a recipe
    that belongs to no operation of the page.
    """
    arguments = recipe.get("arguments")
    operation = _operation(recipe.get("command", "generate"), arguments)
    if operation is None or not operation.offered or not isinstance(arguments, Mapping):
        raise ValueError(f"its recipe is of {short(recipe.get('command'))}, which this page does not offer")
    given = _as_form(arguments)
    fields, notes = {}, []
    for field in operation.fields(source):
        if field.name not in given:
            continue
        value = given[field.name]
        if field.kind == "text" and isinstance(value, list) and len(value) == 1:
            value = value[0]  # a model of texts: one prompt
        try:
            fields[field.name] = field.read(value)
        except ValueError as error:
            notes.append(str(error))
    notes += _beyond(operation, given, source)
    made_with = recipe.get("checkpoint")
    if made_with != source.identity().get("checkpoint"):
        notes.append(f"made with another checkpoint ({short(made_with)}): the picture will be another one")
    return {
        "operation": operation.name, "fields": fields, "notes": notes, "inputs": _inputs(recipe.get("inputs")),
    }  # fmt: skip


def _operation(command: object, arguments: object) -> Operation | None:
    """The operation whose recipes have this command."""
    return OPERATIONS.get(command) if isinstance(command, str) else None


def _beyond(operation: Operation, given: Mapping[str, Any], source: Source) -> list[str]:
    """A note of each argument that the form has no field for, where it is not as the application has it anyway."""
    module = importlib.import_module(f"fastdiff.apps.{operation.app}")
    parameters = inspect.signature(module.prepare).parameters.values()
    usual = {p.name: p.default for p in parameters} | {
        f.name: f.default for f in dataclasses.fields(Settings)
    }
    usual["guidance"] = source.guidance
    known = {field.name for field in operation.fields(source)}
    return [
        f"{name} was {short(value)}, which this page has no field for"
        for name, value in given.items()
        if name in usual and name not in (*known, "batch", "prompts") and value != usual[name]
    ]


def _as_form(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's arguments under the names of the form's fields."""
    given = dict(arguments)
    if "labels" in given:  # as versions before 0.2 wrote them
        given.setdefault("prompts", given.pop("labels"))
    size = given.pop("size", None)
    if isinstance(size, list) and len(size) == 2:
        given["width"], given["height"] = size
    options = given.get("options")
    if isinstance(options, Mapping):
        given["options"] = ",".join(f"{name}={value}" for name, value in options.items())
    several = given.get("prompts")
    if isinstance(several, list) and len(several) == 1:
        given.setdefault("prompt", several[0])
    return given


def _inputs(inputs: object) -> dict[str, str]:
    """The digests of the pictures it started from."""
    if not isinstance(inputs, Mapping):
        return {}
    named = [(name[:40], digest[:64]) for name, digest in inputs.items() if isinstance(digest, str)]
    # a lone surrogate is no text: it cannot be written anywhere
    return {name: digest for name, digest in named[:4] if (name + digest).isprintable()}
