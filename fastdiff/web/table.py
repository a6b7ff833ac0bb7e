"""What the page can do, as a table: for each operation its form, what it starts from, and the application it calls."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastdiff.apps.source import Source
from fastdiff.web.fields import Field
from fastdiff.web.operations import MAX_SIDE, Inputs, Operation, Prepared, prompt, prompts, sampling


def generate_fields(source: Source) -> tuple[Field, ...]:
    """The form of `generate`."""
    (width, height), step = source.size, source.multiple
    return (
        prompts(source),
        Field("width", "Width", "integer", width, step, MAX_SIDE, step, few=True, half=True),
        Field("height", "Height", "integer", height, step, MAX_SIDE, step, few=True, half=True),
        Field("tile", "Seamless tile", "flag", False, hint="The picture repeats without a seam."),
        *sampling(source),
    )


def generate(prepare: Callable[..., Any], source: Source, values: dict[str, Any], inputs: Inputs) -> Prepared:
    """`fastdiff.apps.generate`."""
    size = (values.pop("width"), values.pop("height"))
    asked = values.pop("prompts", None)
    if asked is None:
        raise ValueError("prompts is empty: say what to make")
    names = [asked] if isinstance(asked, str) else asked
    return Prepared(prepare(names, size=size, model=source, **values))


def edit_fields(source: Source) -> tuple[Field, ...]:
    """The form of `edit`."""
    return (
        prompt(source),
        strength("How much changes: 0 is the picture itself, 1 a new one."),
        *sampling(source),
    )


def denoise_fields(source: Source) -> tuple[Field, ...]:
    """The form of `denoise`."""
    own = (
        Field("noise", "Noise", "number", None, 0, 255, 0.5, few=True,
              hint="Its standard deviation, of 0 to 255.", empty="estimated"),
        Field("average", "Looks", "integer", 1, 1, 16, few=True,
              hint="More looks at the picture, averaged, clean better; each costs as much as the first."),
    )  # fmt: skip
    shared = sampling(source, steps=1, sampler=None, count=0)
    return (*own, *(field for field in shared if field.name in ("steps", "sampler", "options", "seed")))


def outpaint_fields(source: Source) -> tuple[Field, ...]:
    """The form of `outpaint`."""
    sides = [
        Field(side, side.capitalize(), "integer", 32, 0, 512, source.multiple, few=True, half=True)
        for side in ("left", "top", "right", "bottom")
    ]
    return (*sides, *filling(source))


def upscale_fields(source: Source) -> tuple[Field, ...]:
    """The form of `upscale`."""
    return (
        Field("factor", "Times as large", "integer", 2, 2, 16, few=True),
        Field("method", "Method", "choice", "restore", choices=("restore", "sample"), few=True,
              hint="restore stays closest to the truth, sample makes up detail."),
        prompt(source, label="What it shows"),
        Field("noise", "Noise in the picture", "number", 0, 0, 255, 0.5, half=True,
              hint="Its standard deviation, of 0 to 255."),
        Field("doubt", "Doubt", "number", 12, 0, 255, 0.5, half=True,
              hint="Of restore: by how much a smooth enlargement may be off."),
        *sampling(source, steps=None, sampler=None, count=0),
    )  # fmt: skip


def restyle_fields(source: Source) -> tuple[Field, ...]:
    """The form of `restyle`."""
    methods = ("structure", "inversion", "sdedit")
    return (
        replace(prompt(source, label="In the style of"), default=next(iter(source.labels), None)),
        strength("How far it goes: 0 is the picture itself.", 0.6),
        Field("method", "Method", "choice", methods[0], choices=methods, few=True,
              hint="structure keeps light and shade, inversion outlines, sdedit only rough colours."),
        Field("colours", "Colours", "choice", "label", choices=("label", "photo"),
              hint="photo keeps those of the picture: only light and shade are restyled."),
        replace(prompt(source, name="of", label="What the picture shows"), few=False,
                hint="If the model knows it; only for inversion.", empty="something else"),
        Field("coarse", "Coarseness", "integer", 8, 2, 256,
              hint="Side in pixels of the smallest light and shade that structure keeps."),
        *sampling(source, sampler=None),
    )  # fmt: skip


def strength(hint: str, default: float = 0.5) -> Field:
    """How far from the picture."""
    return Field("strength", "Strength", "number", default, 0, 1, 0.05, hint=hint, few=True, slider=True)


def filling(source: Source) -> tuple[Field, ...]:
    """How new parts are made, and how they join what is kept."""
    return (
        prompt(source),
        Field("method", "Method", "choice", None, choices=("sample", "restore"),
              hint="restore mends scratches and small holes, sample makes up what could be there."),
        Field("feather", "Soft edge", "integer", 0, 0, 64, hint="Pixels over which old and new blend.", half=True),
        Field("resample", "Rounds", "integer", 1, 1, 20, hint="More fit the new part in better.", half=True),
        Field("average", "Looks", "integer", 1, 1, 16, hint="Of restore: more clean better, each as slow."),
        *sampling(source, steps=None, sampler=None),
    )  # fmt: skip


def towards(prepare: Callable[..., Any], source: Source, values: dict[str, Any], inputs: Inputs) -> Prepared:
    """An application that takes a picture and a prompt, which may be None."""
    return Prepared(prepare(inputs.picture, values.pop("prompt", None), model=source, **values))


def from_picture(
    prepare: Callable[..., Any], source: Source, values: dict[str, Any], inputs: Inputs
) -> Prepared:
    """An application that takes a picture."""
    return Prepared(prepare(inputs.picture, model=source, **values))


def inpaint(prepare: Callable[..., Any], source: Source, values: dict[str, Any], inputs: Inputs) -> Prepared:
    """`fastdiff.apps.inpaint`."""
    return Prepared(prepare(inputs.picture, inputs.mask, model=source, **values))


def outpaint(prepare: Callable[..., Any], source: Source, values: dict[str, Any], inputs: Inputs) -> Prepared:
    """`fastdiff.apps.inpaint`, of a picture that was made larger."""
    sides = [values.pop(side) for side in ("left", "top", "right", "bottom")]
    extended = importlib.import_module("fastdiff.apps.inpaint").extended
    picture, mask = extended(inputs.picture, *sides)
    return Prepared(prepare(picture, mask, model=source, **values), before=picture)


OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation("generate", "Generate", "Generate", "New pictures from noise.", "generate",
                  generate_fields, generate),
        Operation("edit", "Edit", "Edit", "A picture of yours, towards something else.", "edit", edit_fields,
                  towards, picture=True),
        Operation("inpaint", "Inpaint", "Inpaint", "Paint over what is to be made anew.", "inpaint", filling,
                  inpaint, picture=True, mask=True),
        Operation("outpaint", "Extend", "Extend", "More around a picture.", "inpaint", outpaint_fields, outpaint,
                  picture=True),
        Operation("restyle", "Restyle", "Restyle", "A photograph in another style, its structure kept.", "restyle",
                  restyle_fields, towards, picture=True),
        Operation("denoise", "Denoise", "Denoise", "A noisy photograph made clean.", "denoise", denoise_fields,
                  from_picture, picture=True),
        Operation("upscale", "Upscale", "Upscale", "A picture made larger, with detail that fits it.", "upscale",
                  upscale_fields, towards, picture=True),
    )
}  # fmt: skip


def offered() -> list[Operation]:
    """The operations whose applications are installed, in the order of the page."""
    return [operation for operation in OPERATIONS.values() if operation.offered]
