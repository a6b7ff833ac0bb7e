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
from fastdiff.patching.report import ModelReport, Report, SchedulerReport

Pipe = TypeVar("Pipe")


def accelerate(
    pipe: Pipe,
    *,
    schedulers: bool = True,
    norms: bool = True,
    memory_format: str = "auto",
    graph: bool = False,
) -> Pipe:
    """Makes a diffusers pipeline, or one model of it, faster in place, with the same pictures; returns it.

    schedulers: each scheduler becomes fastdiff.diffusers' of the same class, in the same state.
    norms: GroupNorms of UNets and VAEs, with the activation and the time embedding around them, run in one kernel.
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
    for name, model in _models(pipe, owners).items():
        if norms:
            fusing.fuse(model)
        layout.arrange(model, memory_format)
        if graph and name in graphing.DENOISERS:
            graphing.graph(model)
    pipe.report = _report(pipe, owners)  # type: ignore[attr-defined]
    return pipe


def restore(pipe: Pipe) -> Pipe:
    """Undoes accelerate, in place: the same classes, outputs, strides and scheduler settings as without it."""
    owners = _owners(pipe)
    _exchange(owners, revert)
    for model in _models(pipe, owners).values():
        fusing.unfuse(model)
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


def _models(pipe: Any, owners: list[Any]) -> dict[str, nn.Module]:
    """name -> each model once."""
    if isinstance(pipe, nn.Module):
        return {"model": pipe}
    found: dict[str, nn.Module] = {}
    for _, name, model in _parts(owners, nn.Module):
        if not any(model is each for each in found.values()):
            found[name] = model
    return found


def _report(pipe: Any, owners: list[Any]) -> Report:
    schedulers: dict[int, SchedulerReport] = {}
    for _, name, scheduler in _parts(owners, SchedulerMixin):
        schedulers.setdefault(
            id(scheduler), SchedulerReport(name, type(scheduler).__name__, _fallback(scheduler))
        )
    models = [
        ModelReport(
            name,
            type(getattr(model, "_orig_mod", model)).__name__,
            fusing.fused(model),
            fusing.left_alone(model),
            "channels_last" if layout.is_arranged(model) else "kept",
            graphing.is_graphed(model),
        )
        for name, model in _models(pipe, owners).items()
    ]
    return Report(tuple(schedulers.values()), tuple(models))


def _fallback(scheduler: Any) -> str | None:
    """None, or why this scheduler runs diffusers' own step."""
    if revert(scheduler) is scheduler:
        return "it has no fused class" if convert(scheduler) is scheduler else "not asked to exchange it"
    probe = copy.deepcopy(scheduler)
    _prepare(probe)
    reason: str | None = probe.fallback
    return reason


def _prepare(scheduler: Any) -> None:
    """A fresh loop, so that there is a plan to ask about; dynamic shifting wants its mu."""
    for options in ({}, {"mu": 1.0}):
        try:
            scheduler.set_timesteps(4, **options)
        except (TypeError, ValueError):
            continue
        return
