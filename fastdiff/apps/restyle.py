"""Style transfer: a photograph of any size, made again as if it were of another label or prompt.

made = restyle(photograph, "stained_glass", strength=0.6)

Three ways, one dial. `strength` says how far towards noise the photograph goes before it comes back under the label:
at 0 it is the photograph, at 1 the label does as it likes.

- "sdedit" adds noise and samples from there (arXiv:2108.01073): quick, and forgets what the noise hides.
- "inversion" finds the noise that the model itself would make the photograph from (fastdiff.apps.inversion) and samples
  from that: outlines stay at strengths at which they would drown in random noise.
- "structure" goes by random noise too, further than "sdedit", but keeps the light and shade of the photograph, its low
  frequencies, in every estimate of the picture (ILVR, arXiv:2108.02938), less so as the strength grows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.apps.inversion import descent, inversion, ladder, level_at
from fastdiff.apps.picture import Frame, checked, many, scale_for
from fastdiff.apps.settings import MAX_COUNT, MAX_SIDE, Settings, check_integer, check_number
from fastdiff.apps.source import Source, source_of
from fastdiff.apps.steering import Steered
from fastdiff.apps.work import Cancel, Job, Made, Preview, Progress, Watch, Work, digest
from fastdiff.choices import unknown
from fastdiff.levels import Level
from fastdiff.plan import Plan
from fastdiff.samplers import resolve as planner_of
from fastdiff.sampling import sample

METHODS = ("structure", "inversion", "sdedit")
COLOURS = ("label", "photo")
TURNS = 3
COARSE = 4
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def restyle(
    picture: Tensor,
    prompt: str,
    *,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    preview: Preview | None = None,
    **arguments: Any,
) -> Made:
    """Make the picture again; the arguments are those of `prepare`, which checks them before any work is done."""
    return prepare(picture, prompt, **arguments).run(progress=progress, cancel=cancel, preview=preview)


def prepare(
    picture: Tensor,
    prompt: str | None,
    *,
    strength: float = 0.6,
    method: str = "structure",
    of: str | None = None,
    colours: str = "label",
    turns: int = TURNS,
    coarse: int = COARSE,
    size: int | None = None,
    count: int = 1,
    model: object = None,
    device: str | None = None,
    **settings: Any,
) -> Job:
    """A checked piece of work, ready to run.

    picture: float [3, H, W] in [-1, 1], of any size. prompt: what it is to become, a label of the model or text; None
    for what the model makes of anything.
    strength: 0 (the photograph) to 1 (the label freely). method: "structure", "inversion" or "sdedit".
    of: what the photograph shows, for inversion, if the model knows it. turns: corrections of each inversion step, 0
    for DDIM inversion. coarse: side in pixels of the details whose light and shade "structure" keeps.
    colours: "label", or "photo" to keep those of the photograph (only light and shade are restyled, as in
    arXiv:1606.05897). size: a picture whose shorter side is longer is scaled down to it first, since textures have the
    size that the model was trained on. count: pictures, each from a seed of its own. model, device, settings: as for
    `fastdiff.apps.generate.prepare`; the sampler of inversion is ddim unless another is given.

    Raises ValueError or TypeError in one line for anything that could not work.
    """
    started = time.perf_counter()
    source = source_of(model, device=device)
    given = checked(picture)
    check_number("strength", strength, 0.0, 1.0)
    check_integer("count", count, 1, MAX_COUNT)
    check_integer("turns", turns, 0, 100)
    check_integer("coarse", coarse, 2, 1024)
    for name, value, known in (("method", method, METHODS), ("colours", colours, COLOURS)):
        if value not in known:
            raise unknown(name, value, known)
    source.check([prompt, of])
    inverted = method == "inversion"
    if of is not None and not inverted:
        raise ValueError(
            f"only inversion asks what the photograph is of: leave `of` out, or use it instead of {method}"
        )
    how = Settings(**{"sampler": "ddim" if inverted else "dpmpp_2m", **settings})
    photograph = given if size is None else scaled(given, size)
    frame = Frame.of(photograph, source)
    task = _Task(
        source,
        frame.pad(photograph),
        prompt,
        float(strength),
        how,
        of=of,
        turns=turns,
        coarse=coarse,
        count=count,
    )
    arguments = {
        "prompt": prompt, "strength": float(strength), "method": method, "of": of, "colours": colours,
        "turns": turns, "coarse": coarse, "size": size, "count": count,
        **how.as_dict(source, task.size, written=(frame.width, frame.height)),
    }  # fmt: skip
    return Job(
        WAYS[method](task),
        "restyle",
        arguments,
        inputs={"picture": digest(given)},
        finish=partial(_finished, photograph, frame, colours == "photo"),
        loading=time.perf_counter() - started,
    )


def scaled(picture: Tensor, size: int) -> Tensor:
    """[3, H, W] scaled down so that its shorter side is `size` at most."""
    check_integer("size", size, 1, MAX_SIDE)
    height, width = picture.shape[1:]
    if min(height, width) <= size:
        return picture
    sides = [max(1, round(side * size / min(height, width))) for side in (height, width)]
    return F.interpolate(picture[None], sides, mode="bicubic", antialias=True)[0].clamp(-1, 1)


@dataclass(frozen=True)
class _Task:
    """What is asked for, checked: the photograph, fitted to the model, and how it is to be made again."""

    source: Source
    picture: Tensor
    prompt: str | None
    strength: float
    how: Settings
    of: str | None
    turns: int
    coarse: int
    count: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.picture.shape[2], self.picture.shape[1]

    def x(self) -> Tensor:
        """The photograph as the model sees pictures: [1, ...]."""
        with torch.no_grad():
            return self.source.encode(self.picture[None])

    def plan(self, strength: float) -> Plan:
        """The plan of the settings from `strength` of the noise down to the clean level."""
        source, how = self.source, self.how
        whole = how.plan(source, self.size)
        if not isinstance(whole, Plan):
            raise ValueError(
                f"{how.sampler} chooses its steps as it goes, so it cannot begin part-way: use another"
            )
        if strength == 1.0:
            return whole
        top = level_at(source.schedule_at(*self.size), strength)
        kept = tuple(level for level in whole.levels if level.ratio < top.ratio * (1 - 1e-9))
        if len(kept) < 1 or not top.sigma:
            return replace(whole, rows=(), levels=whole.levels[-1:])
        return Plan.build(
            planner_of(how.sampler, dict(how.options)),
            (top, *kept),
            prediction=source.prediction,
            clip=source.clip,
        )

    def work(self, plan: Plan, **more: Any) -> dict[str, Any]:
        """The arguments of Work."""
        source, how = self.source, self.how
        return {
            "source": source, "plan": plan, "prompts": (self.prompt,) * self.count, "size": self.size,
            "seeds": how.seeds(self.count), "scale": scale_for(how, source, (self.prompt,)),
            "batch": how.batch_of(source, self.size), "negative": how.negative, **more,
        }  # fmt: skip

    def noised(self, images: slice) -> dict[str, Any]:
        """Start from the photograph with noise on it."""
        return {"x": self.x().repeat(many(images, self.count), 1, 1, 1), "strength": 1.0}


def _sdedit(task: _Task) -> Work:
    return Work(**task.work(task.plan(task.strength), extra=task.noised))


def _structure(task: _Task) -> Work:
    """The further towards noise, the looser the hold on the photograph's light and shade."""
    if not task.source.exact:
        raise ValueError(
            "structure is kept in pixels, and this model works on latents: use inversion or sdedit"
        )
    plan = task.plan(task.strength**0.5)
    hold = 1.0 - task.strength**4
    if not plan.rows or not hold:
        return Work(**task.work(plan, extra=task.noised))
    light = light_and_shade(task.x(), task.coarse)

    def correct(denoised: Tensor, x: Tensor, level: Level) -> Tensor:
        return denoised + hold * (light - light_and_shade(denoised, task.coarse))

    return Work(**task.work(plan, extra=task.noised, model=Steered(task.source, plan, correct)))


def light_and_shade(pictures: Tensor, coarse: int) -> Tensor:
    """[B, 3, H, W] -> [B, 1, H, W]: luma without details smaller than about `coarse` pixels. Linear."""
    height, width = pictures.shape[2:]
    weights = torch.tensor(LUMA, device=pictures.device, dtype=pictures.dtype)
    luma = (pictures * weights[:, None, None]).sum(1, keepdim=True)
    small = F.interpolate(luma, (-(-height // coarse), -(-width // coarse)), mode="area")
    return F.interpolate(small, (height, width), mode="bicubic", align_corners=False)


def _inversion(task: _Task) -> Work:
    source, how = task.source, task.how
    if how.spacing is not None:
        raise ValueError("inversion lays its own steps: leave the spacing out")
    check_integer("steps", how.steps, 1, 1000)
    levels = ladder(source.schedule_at(*task.size), how.steps, task.strength)
    if len(levels) == 1:
        return Work(**task.work(task.plan(0.0), extra=task.noised))
    down = descent(levels, prediction=source.prediction, planner=planner_of(how.sampler, dict(how.options)))
    up = inversion(levels, prediction=source.prediction, turns=task.turns)
    return Inverted(**task.work(down), picture=task.x(), up=up, of=task.of)


@dataclass(frozen=True)
class Inverted(Work):
    """Work that starts from the noise of one clean picture x: [1, ...], which is first inverted by the plan `up`, under
    the prompt `of`, unguided."""

    picture: Tensor | None = None
    up: Plan | None = None
    of: str | None = None

    @property
    def total_calls(self) -> int | None:
        down = super().total_calls
        batches = -(-len(self.prompts) // self.batch)
        return down if self.up is None or down is None else down + self.up.calls * batches

    def _sampled(self, images: slice, watch: Watch) -> Tensor:
        if self.up is None:
            return super()._sampled(images, watch)
        assert self.picture is not None
        source = self.source
        noise = sample(
            source, self.picture, sampler=self.up, conditioning=source.conditioning([self.of]), callback=watch
        )
        x = noise.repeat(len(self.prompts[images]), *[1] * (noise.dim() - 1))
        return replace(self, up=None, extra=lambda part: {"x": x})._sampled(images, watch)


WAYS: dict[str, Callable[[_Task], Work]] = {
    "structure": _structure,
    "inversion": _inversion,
    "sdedit": _sdedit,
}


def _finished(photograph: Tensor, frame: Frame, keep_colours: bool, images: Tensor) -> Tensor:
    """Cropped to the photograph's size and, if asked for, with its colours."""
    images = frame.crop(images)
    if not keep_colours:
        return images
    luma = torch.tensor(LUMA)[:, None, None]
    return (photograph + ((images - photograph) * luma).sum(1, keepdim=True)).clamp(-1, 1)
