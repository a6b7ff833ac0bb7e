"""A picture's recipe turned back into work: the same command, arguments, micro-batch and inputs.

again = remake(read_recipe("one.png"))
made = again.job.run()
made.images[again.index]     # bit for bit the same on the same device, with the same threads and versions
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff.apps.picture import checked
from fastdiff.apps.source import Source, source_of
from fastdiff.apps.work import circumstances, digest

COMMANDS = ("generate", "interpolate", "compare", "edit", "denoise", "inpaint", "upscale", "restyle")
"""Commands whose recipes are arguments of `prepare` in the application of that name."""
COMPARED = ("fastdiff", "checkpoint", "scheduler", "torch", "device", "backend")


@dataclass(frozen=True)
class Again:
    """Work that makes a recipe's picture again.

    job: of that application. index: the picture among those it makes, None for all of them. threads: how many torch
    used. differences: one line each, why the last bits may differ.
    """

    job: Any
    index: int | None
    threads: int
    differences: tuple[str, ...]


def arguments_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in a recipe; those of versions before 0.2 had labels for prompts. ValueError if it has none."""
    found = recipe.get("arguments")
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise ValueError("the recipe holds no arguments: it is not one that this version of fastdiff knows")
    renamed = {"prompts" if name == "labels" else name: value for name, value in found.items()}
    return renamed


def command_of(recipe: Mapping[str, Any]) -> str:
    """Which command made the picture. ValueError for one that is not known."""
    command = recipe.get("command", "generate")
    if command not in COMMANDS:
        raise ValueError(
            f"the picture was made by {command!r}: run that command again with what fastdiff inspect shows of it"
        )
    return str(command)


def remake(
    recipe: Mapping[str, Any],
    *,
    inputs: Mapping[str, Tensor] | None = None,
    model: object = None,
    device: str | None = None,
) -> Again:
    """The work of a recipe, checked.

    inputs: the pictures it began from, by name, such as picture: float32 [3, H, W]; they must be the very same ones.
    model, device: as for `fastdiff.apps.generate.prepare`; another model than the recipe's must be given on purpose.
    Raises ValueError, TypeError or OSError in one line for a recipe that cannot be repeated.
    """
    command, arguments = command_of(recipe), arguments_of(recipe)
    wanted = recipe.get("inputs") or {}
    if not isinstance(wanted, Mapping):
        raise ValueError("the recipe does not say what the picture was made from")
    _check_inputs(command, wanted, inputs or {})
    source = source_of(model, device=device)
    made_with = recipe.get("checkpoint")
    if model is None and made_with != source.identity()["checkpoint"]:
        raise ValueError(
            f"the picture was made with another checkpoint ({made_with}): name it with --model (model=)"
        )
    index = _narrow(recipe, arguments)
    prepare = getattr(importlib.import_module(f"fastdiff.apps.{command}"), "prepare")  # noqa: B009
    extra = sorted(set(arguments) - _taken(prepare))
    if extra:
        raise ValueError(
            f"this version's {command} takes no {', '.join(extra)}: the recipe is of another version"
        )
    job = prepare(**(inputs or {}), **arguments, model=source)
    threads = recipe.get("threads")
    return Again(
        job,
        index,
        threads if isinstance(threads, int) and 1 <= threads <= 1024 else torch.get_num_threads(),
        differences(recipe, source),
    )


def differences(recipe: Mapping[str, Any], source: Source) -> tuple[str, ...]:
    """What differs between a recipe's circumstances and these: "torch is 2.13.0, the picture was made with 2.12.1"."""
    now = circumstances(source)
    return tuple(
        f"{name} is {now.get(name)}, the picture was made with {recipe[name]}"
        for name in COMPARED
        if name in recipe and recipe[name] != now.get(name)
    )


def _narrow(recipe: Mapping[str, Any], arguments: dict[str, Any]) -> int | None:
    """Make `arguments` those of the picture's micro-batch; the picture's place among what they make."""
    if isinstance(recipe.get("sheet"), Mapping) or recipe.get("command") == "compare":
        return None
    frame = recipe.get("frame")
    if frame is not None:
        frames = arguments.get("frames")
        if not isinstance(frame, int) or not isinstance(frames, int) or not 0 <= frame < frames:
            raise ValueError("the recipe does not say which of the frames this is")
        return frame
    together = recipe.get("together")
    if not isinstance(together, Mapping):
        return 0 if arguments.get("count", 1) == 1 and len(arguments.get("prompts", "1")) == 1 else None
    if "prompts" in arguments:
        arguments |= {"prompts": together.get("prompts"), "count": 1, "seed": together.get("seed")}
    else:
        arguments |= {"count": together.get("count"), "seed": together.get("seed")}
    index, count = together.get("index"), together.get("count")
    if not isinstance(index, int) or not isinstance(count, int) or not 0 <= index < count:
        raise ValueError("the recipe does not say which of the pictures made together this is")
    return index


def _check_inputs(command: str, wanted: Mapping[str, Any], given: Mapping[str, Tensor]) -> None:
    missing = sorted(set(wanted) - set(given))
    if missing:
        raise ValueError(
            f"the picture was made by fastdiff {command} from other pictures: give the same "
            f"{_listed(missing)} as then ({', '.join(f'{name} {wanted[name]}' for name in missing)})"
        )
    for name in given:
        if name not in wanted:
            raise ValueError(f"the picture was not made from a {name}: leave it out")
        found = digest(_as_worked_on(name, given[name]))
        if found != wanted[name]:
            raise ValueError(
                f"this is not the {name} that it was made from: its digest is {found}, "
                f"the recipe says {wanted[name]}"
            )


def _as_worked_on(name: str, given: Tensor) -> Tensor:
    """As the applications take it: a mask with its channel, a grey picture with three."""
    if name != "mask":
        return checked(given)
    return given.float()[None] if given.ndim == 2 else given.float()


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)


def _taken(prepare: Any) -> set[str]:
    """The names that a `prepare` takes, those of Settings and of generate that it passes on included."""
    from fastdiff.apps import generate

    parameters = inspect.signature(prepare).parameters
    names = set(parameters) - {"model", "device", "settings"}
    return names | (
        set(generate.ARGUMENTS) if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else set()
    )
