"""accelerate and restore: over the components of a pipeline, and of the pipelines in it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers import SchedulerMixin
from torch import nn

from fastdiff.choices import unknown
from fastdiff.diffusers import convert, revert
from fastdiff.patching import fusing, graphing, layout
from fastdiff.patching import guidance as outputs
from fastdiff.patching.report import ModelReport, Report, SchedulerReport

Pipe = TypeVar("Pipe")

UNPREPARED = "as far as can be said before set_timesteps has had what its pipeline gives it"


def accelerate(
    pipe: Pipe,
    *,
    schedulers: bool = True,
    norms: bool = True,
    guidance: bool = True,
    memory_format: str = "auto",
    graph: bool = False,
) -> Pipe:
    """Makes a diffusers pipeline, or one model of it, faster in place, with the same pictures; returns it.

    schedulers: each scheduler becomes fastdiff.diffusers' of the same class, in the same state.
    norms: GroupNorms of UNets and VAEs, with the activation and the time embedding around them, run in one kernel.
    guidance: the branches of a denoiser are combined in the fused step, where latents are large (docs/accelerate.md).
    memory_format: "channels_last" for 2-D convolutions, "keep", or "auto": channels-last in half precision on CUDA.
    graph: on a GPU, the denoisers' calls are replayed from CUDA graphs, one for each shape, where that can be
        (docs/graphs.md); `pipe.unet.forward.report` counts them.

    `pipe.report` then says what was done and what was left alone. A second call does what is still to do. restore(pipe)
    undoes it. Raises TypeError for what is neither a pipeline nor a model, ValueError for an unknown memory_format.
    """
    if memory_format not in layout.CHOICES:
        raise unknown("memory_format", memory_format, layout.CHOICES)
    owners = _owners(pipe)
    if schedulers:
        _exchange(owners, convert)
    fused = any(revert(scheduler) is not scheduler for _, _, scheduler in _parts(owners, SchedulerMixin))
    for name, model in _models(pipe, owners):
        if norms:
            fusing.fuse(model)
        if guidance and fused and name.rpartition(".")[2] in outputs.DENOISERS:
            outputs.arrange(model)
        layout.arrange(model, memory_format)
        if graph and name.rpartition(".")[2] in graphing.DENOISERS:
            graphing.graph(model)
    pipe.report = _report(pipe, owners)  # type: ignore[attr-defined]
    return pipe


def restore(pipe: Pipe) -> Pipe:
    """Undoes accelerate, in place: the same classes, outputs, strides and scheduler settings as without it."""
    owners = _owners(pipe)
    _exchange(owners, revert)
    for _, model in _models(pipe, owners):
        fusing.unfuse(model)
        outputs.put_back(model)
        layout.put_back(model)
        graphing.ungraph(model)
    if hasattr(pipe, "report"):
        del pipe.report
    return pipe


def _owners(pipe: Any) -> list[Any]:
    """The pipeline and the pipelines that are its attributes, however deep; none for a bare model."""
    if isinstance(pipe, nn.Module):
        return []
    if not isinstance(pipe, ConfigMixin) or isinstance(pipe, SchedulerMixin):
        hint = (
            ": for one scheduler call fastdiff.diffusers.convert" if isinstance(pipe, SchedulerMixin) else ""
        )
        raise TypeError(f"got a {type(pipe).__name__}: pass a diffusers pipeline or a model{hint}")
    found = [pipe]
    for owner in found:  # grows while it is walked
        for value in vars(owner).values():
            inner = isinstance(value, ConfigMixin) and not isinstance(value, (SchedulerMixin, nn.Module))
            if inner and not any(value is each for each in found):
                found.append(value)
    return found


def _parts(owners: list[Any], kind: type) -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, component) for each component of this kind."""
    for owner in owners:
        yield from (
            (owner, name, value) for name, value in list(vars(owner).items()) if isinstance(value, kind)
        )


def _exchange(owners: list[Any], change: Any) -> None:
    """Puts change(scheduler) in the place of each scheduler: one object for one that several pipelines share."""
    made: dict[int, Any] = {}
    for owner, name, scheduler in list(_parts(owners, SchedulerMixin)):
        new = made.setdefault(id(scheduler), change(scheduler))
        if new is not scheduler:
            setattr(owner, name, new)


def _models(pipe: Any, owners: list[Any]) -> list[tuple[str, nn.Module]]:
    """(name, model) for each model once; several may have the same name, in different pipelines."""
    if isinstance(pipe, nn.Module):
        return [("model", pipe)]
    found: dict[int, tuple[str, nn.Module]] = {}
    for owner, name, model in _parts(owners, nn.Module):
        found.setdefault(id(model), (_path(owners, owner, name), model))
    return list(found.values())


def _path(owners: list[Any], owner: Any, name: str) -> str:
    """A component's name after those of the pipelines that it is in, but for the first."""
    place = next(i for i, each in enumerate(owners) if each is owner)
    for outer in owners[:place]:
        for attribute, value in vars(outer).items():
            if value is owner:
                return _path(owners, outer, f"{attribute}.{name}")
    return name


def _report(pipe: Any, owners: list[Any]) -> Report:
    schedulers: dict[int, SchedulerReport] = {}
    for owner, name, scheduler in _parts(owners, SchedulerMixin):
        if id(scheduler) not in schedulers:
            path = _path(owners, owner, name)
            schedulers[id(scheduler)] = SchedulerReport(path, type(scheduler).__name__, _fallback(scheduler))
    models = [
        ModelReport(
            name,
            type(getattr(model, "_orig_mod", model)).__name__,
            fusing.fused(model),
            fusing.left_alone(model),
            "channels_last" if layout.is_arranged(model) else "kept",
            graphing.is_graphed(model),
            outputs.is_arranged(model),
        )
        for name, model in _models(pipe, owners)
    ]
    return Report(tuple(schedulers.values()), tuple(models))


def _fallback(scheduler: Any) -> str | None:
    """None, or why this scheduler runs diffusers' own step."""
    if revert(scheduler) is scheduler:
        return "it has no fused class" if convert(scheduler) is scheduler else "not asked to exchange it"
    probe = copy.deepcopy(scheduler)
    prepared = _prepare(probe)
    reason: str | None = probe.fallback
    return reason if prepared else reason or UNPREPARED


def _prepare(scheduler: Any) -> bool:
    """A fresh loop, so that there is a plan to ask about; dynamic shifting wants its mu. Whether that was possible."""
    for options in ({}, {"mu": 1.0}):
        try:
            scheduler.set_timesteps(4, **options)
        except Exception:  # of whatever kind: a scheduler may need what only its pipeline knows
            continue
        return True
    return False
