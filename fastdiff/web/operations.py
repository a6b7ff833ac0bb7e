"""What an operation of the page is, and the fields that several have in common."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fastdiff import adaptive
from fastdiff.apps.source import Source
from fastdiff.apps.work import Job
from fastdiff.cli.spec import parse_sampler
from fastdiff.samplers import SAMPLERS
from fastdiff.spacings import RATIOS, TIMESTEPS
from fastdiff.web.fields import Field, read_all

MAX_SIDE = 1024  # of a picture that the page asks for
MAX_SEED = 2**53 - 1  # the largest whole number that JavaScript holds exactly


@dataclass(frozen=True)
class Inputs:
    """What an operation starts from: float32 [3, H, W] in [-1, 1], and a mask [1, H, W] that is 1 where to repaint."""

    picture: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class Prepared:
    """Checked work, and what its results are to be compared with: [3, H, W], None for nothing.

    values: of all fields, as they were read.
    """

    job: Job
    before: Tensor | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


Prepare = Callable[[Callable[..., Any], Source, dict[str, Any], Inputs], Prepared]


@dataclass(frozen=True)
class Operation:
    """One tab of the page.

    app: the module in fastdiff.apps. fields: the form, for a source. prepare: (the application's prepare, source,
    values, inputs) -> Job. picture, mask: whether it starts from them. verb: what its button says.
    commands: the recipes it can restore.
    """

    name: str
    title: str
    verb: str
    about: str
    app: str
    fields: Callable[[Source], tuple[Field, ...]]
    prepare: Prepare
    picture: bool = False
    mask: bool = False

    @property
    def offered(self) -> bool:
        """Whether its application is there."""
        return importlib.util.find_spec(f"fastdiff.apps.{self.app}") is not None

    def job(self, source: Source, given: object, inputs: Inputs, *, most: int) -> Prepared:
        """Checked work of at most `most` pixels. Raises ValueError, TypeError or OSError in one line for any other."""
        values = read_all(self.fields(source), given)
        if self.picture and inputs.picture is None:
            raise ValueError(f"{self.name} starts from a picture: open one first")
        if self.mask and inputs.mask is None:
            raise ValueError(f"{self.name} needs a mask: paint over what is to be made anew")
        if pixels(values, inputs) > most:
            raise ValueError(
                f"that is {pixels(values, inputs) / 1e6:.1f} million pixels in all, more than the {most / 1e6:.1f} "
                "million that one job may make: ask for fewer or smaller pictures"
            )
        module = importlib.import_module(f"fastdiff.apps.{self.app}")
        return replace(self.prepare(module.prepare, source, sampling_of(values), inputs), values=values)

    def describe(self, source: Source) -> dict[str, Any]:
        """JSON data, for the page."""
        return {
            "name": self.name, "title": self.title, "verb": self.verb, "about": self.about, "picture": self.picture,
            "mask": self.mask, "fields": [entry.describe() for entry in self.fields(source)],
        }  # fmt: skip


def pixels(values: Mapping[str, Any], inputs: Inputs) -> int:
    """How many pixels a job makes."""
    if inputs.picture is not None:
        height, width = inputs.picture.shape[-2:]
        height += values.get("top", 0) + values.get("bottom", 0)
        width += values.get("left", 0) + values.get("right", 0)
        each = height * width * (values.get("factor") or 1) ** 2
    else:
        each = values["width"] * values["height"]
    several = values.get("prompts")
    return int(each * values.get("count", 1) * (len(several) if isinstance(several, list) else 1))


def sampling_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an application: fields left empty are left to it, and a sampler's options are read."""
    arguments = {name: value for name, value in values.items() if value is not None}
    options = arguments.pop("options", None)
    if options and "sampler" not in arguments:
        raise ValueError("options belong to a sampler: choose one")
    if options:
        arguments["sampler"], arguments["options"] = parse_sampler(f"{arguments['sampler']}:{options}")
    return arguments


def sampling(
    source: Source, *, steps: int | None = 20, sampler: str | None = "dpmpp_2m", count: int = 16
) -> tuple[Field, ...]:
    """The fields of every operation that samples.

    steps, sampler: what the page begins with; None: left to the application. count: how many pictures may be
    asked for, 0: always one.
    """
    fields = [
        Field("count", "How many", "integer", 1, 1, count, few=True, half=True),
        Field("steps", "Steps", "integer", steps, 1, 250, hint="More steps are slower and often finer."),
        Field("guidance", "Guidance", "number", None, 0, 30, 0.1, empty=f"{source.guidance:g}",
              hint="How strongly to follow the prompt; 1 is not at all."),
        Field("sampler", "Sampler", "choice", sampler, choices=(*sorted(SAMPLERS), adaptive.NAME)),
        Field("options", "Sampler options", "text", hint="Such as eta=0.5, with commas between several."),
        Field("spacing", "Spacing of the steps", "choice", None, choices=(*TIMESTEPS, *RATIOS)),
    ]  # fmt: skip
    fields.append(replace(prompt(source, name="negative", label="Away from"), few=False, empty="nothing"))
    seed = Field("seed", "Seed", "integer", 0, 0, MAX_SEED, hint="The same seed makes the same picture.")
    return (*(fields if count else fields[1:]), seed)


def prompts(source: Source) -> Field:
    """What to make pictures of: some of the labels, or a text."""
    if not source.labels:
        return Field("prompts", "Prompt", "text", few=True)
    return Field("prompts", "What to make", "choices", [source.labels[0]], choices=source.labels, few=True)


def prompt(source: Source, *, name: str = "prompt", label: str = "Towards") -> Field:
    """One label, or none, which is what the page begins with; or a text."""
    if not source.labels:
        return Field(name, label, "text", few=True)
    return Field(name, label, "choice", None, choices=source.labels, few=True, empty="anything")
