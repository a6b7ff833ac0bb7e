"""What accelerate did, as data and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulerReport:
    """name: of the component; kind: diffusers' class; fallback: None, or why its steps are not fused."""

    name: str
    kind: str
    fallback: str | None

    def lines(self) -> list[str]:
        """As text."""
        return ["fused step" if self.fallback is None else f"diffusers' own step: {self.fallback}"]


@dataclass(frozen=True)
class ModelReport:
    """fused: what -> how many; left: why -> how many norms or blocks stay as they are; memory_format: "channels_last"
    if accelerate arranged that, else "kept". graphed: whether its calls are replayed from graphs where that can be.
    guided: whether the fused step combines its branches where latents are large."""

    name: str
    kind: str
    fused: Mapping[str, int]
    left: Mapping[str, int]
    memory_format: str
    graphed: bool = False
    guided: bool = False

    def lines(self) -> list[str]:
        """As text."""
        parts = [f"{count} {what}" for what, count in self.fused.items()] or ["nothing to fuse"]
        parts += [self.memory_format] if self.memory_format != "kept" else []
        parts += ["graphs"] if self.graphed else []
        parts += ["guidance of large latents in the step"] if self.guided else []
        left = [f"left alone: {count} x {why}" for why, count in self.left.items()]
        return [", ".join(parts), *left]


@dataclass(frozen=True)
class Report:
    """One entry for each scheduler and each model of a pipeline; str() is a table."""

    schedulers: tuple[SchedulerReport, ...]
    models: tuple[ModelReport, ...]

    def __str__(self) -> str:
        rows: list[SchedulerReport | ModelReport] = [*self.schedulers, *self.models]
        names, kinds = (max((len(getattr(row, key)) for row in rows), default=0) for key in ("name", "kind"))
        lines = []
        for row in rows:
            first, *rest = row.lines()
            lines.append(f"{row.name:<{names}}  {row.kind:<{kinds}}  {first}")
            lines += [f"{'':<{names + kinds + 4}}{line}" for line in rest]
        return "\n".join(lines)
