"""Super-resolution: a larger picture that shrinks to the given one, with the detail a model expects.

made = upscale(read_image("small.png"), factor=4)          # float32 [1, 3, 4H, 4W]

Shrinking is A, the mean over squares of `factor` pixels; A^+ repeats pixels. In each model call the estimate x0 of the
clean image is corrected to x0 + A^+ (y - A x0): what lies in the range of A^+ is the given picture's, y, and the rest,
the detail, the model's (DDNM, arXiv:2212.00490, section 3.2). Of a noisy y less is taken over the nearer the level is
to clean, as in DDNM+ (section 3.3).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fastdiff.apps.denoise import MAX_NOISE, descent
from fastdiff.apps.picture import Frame, check_sides, checked, scale_for
from fastdiff.apps.settings import Settings, check_integer, check_number
from fastdiff.apps.source import source_of
from fastdiff.apps.steering import Correct, Steered
from fastdiff.apps.work import Cancel, Job, Made, Preview, Progress, Work, digest
from fastdiff.choices import unknown
from fastdiff.levels import Level

METHODS = ("restore", "sample")
STEPS = {"sample": 20, "restore": 4}
# Fresh noise in each step lets the detail fit what is given; see fastdiff.apps.inpaint.
USUAL: dict[str, dict[str, Any]] = {"sample": {"sampler": "ddim", "options": {"eta": 1.0}}, "restore": {}}
MAX_FACTOR = 16
PROJECTIONS = 20


def upscale(
    picture: Tensor,
    prompt: str | None = None,
    *,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    preview: Preview | None = None,
    trajectory: bool = False,
    **arguments: Any,
) -> Made:
    """Make a picture larger; the arguments are those of `prepare`, which checks them before any work is done.

    progress, cancel, preview, trajectory: as for `fastdiff.apps.work.Job.run`.
    """
    job = prepare(picture, prompt, **arguments)
    return job.run(progress=progress, cancel=cancel, preview=preview, trajectory=trajectory)


def prepare(
    picture: Tensor,
    prompt: str | None = None,
    *,
    factor: int = 2,
    method: str = "restore",
    doubt: float = 12.0,
    noise: float = 0.0,
    steps: int | None = None,
    model: object = None,
    device: str | None = None,
    **settings: Any,
) -> Job:
    """A checked piece of work, ready to run.

    picture: float [3, H, W] in [-1, 1], any size. prompt: a label or text of what it shows, or None.
    factor: how many times as wide and high, 2 to 16.
    method: "restore" begins with a smooth enlargement that shrinks to the picture and improves it in a few
    deterministic steps, for the least error; "sample" draws all detail anew from noise. doubt: by how much the smooth
    enlargement may be off, a standard deviation of 0..255, of "restore".
    noise: of the picture, a standard deviation of 0..255; without noise the result shrinks to the picture exactly, but
    for values that would leave [-1, 1].
    steps: None for 4, or 20 of "sample". sampler: ddim with eta 1 for "sample", if none is given. model, device,
    settings: as for `fastdiff.apps.generate.prepare`.

    Raises ValueError, TypeError or OSError in one line for anything that could not work, such as a model of latents.
    """
    started = time.perf_counter()
    given = checked(picture)
    check_integer("factor", factor, 2, MAX_FACTOR)
    check_sides(given.shape[-1] * factor, given.shape[-2] * factor)
    check_number("doubt", doubt, 0, MAX_NOISE)
    check_number("noise", noise, 0, MAX_NOISE)
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    source = source_of(model, device=device)
    source.check([prompt])
    usual = USUAL[method] if "sampler" not in settings else {}
    how = Settings(steps=STEPS[method] if steps is None else steps, **{**usual, **settings})
    # padded before it is enlarged, so that the squares of `factor` pixels stay whole
    frame = Frame(given.shape[-1], given.shape[-2], source.multiple // math.gcd(source.multiple, factor))
    size = (frame.size[0] * factor, frame.size[1] * factor)
    small = frame.pad(given)[None]
    if method == "restore" and how.spacing is not None:
        raise ValueError("method 'restore' spaces its steps itself: leave spacing out, or use 'sample'")
    plan = descent(source, how, doubt) if method == "restore" else how.plan(source, size)
    steered = Steered(source, plan, consistent(small.to(source.device), factor, noise))

    def extra(images: slice) -> Mapping[str, Any]:
        if method == "sample":
            return {}
        return {"x": plan.levels[0].alpha * source.encode(enlarged(small, factor))}

    def finish(images: Tensor) -> Tensor:
        return images[..., : given.shape[-2] * factor, : given.shape[-1] * factor]

    work = Work(
        source=source,
        plan=plan,
        prompts=(prompt,),
        seeds=how.seeds(1),
        size=size,
        scale=scale_for(how, source, (prompt,)),
        batch=how.batch_of(source, size),
        negative=how.negative,
        extra=extra,
        model=steered,
    )
    own = {"doubt": doubt} if method == "restore" else {}
    written = (given.shape[-1] * factor, given.shape[-2] * factor)
    settled = how.as_dict(source, size, written=written)
    kept = {name: value for name, value in settled.items() if name != "spacing" or not own}
    arguments = {"prompt": prompt, "factor": factor, "method": method, "noise": noise, **own, **kept}
    return Job(
        work, "upscale", arguments, inputs={"picture": digest(given)}, finish=finish,
        loading=time.perf_counter() - started,
    )  # fmt: skip


def shrunk(pictures: Tensor, factor: int) -> Tensor:
    """A: the mean over squares of factor x factor pixels, [B, C, factor * H, factor * W] -> [B, C, H, W]."""
    return F.avg_pool2d(pictures, factor)


def consistent(small: Tensor, factor: int, noise: float = 0.0) -> Correct:
    """The correction that makes an estimate shrink to `small`, [1, C, H, W], which has noise of that deviation."""
    doubtful = noise / 127.5

    def correct(denoised: Tensor, x: Tensor, level: Level) -> Tensor:
        weight = min(1.0, level.ratio / doubtful) if doubtful else 1.0
        missing = weight * (small - shrunk(denoised, factor))
        return denoised + F.interpolate(missing, scale_factor=factor, mode="nearest")

    return correct


def enlarged(small: Tensor, factor: int, *, projections: int = PROJECTIONS) -> Tensor:
    """A smooth picture that shrinks to `small` nearly: bicubic, then what is missing added, bicubic again, repeatedly.

    Iterative back-projection (Irani and Peleg 1991). [B, C, H, W] -> [B, C, factor * H, factor * W] in [-1, 1].
    """

    def bicubic(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=factor, mode="bicubic", align_corners=False)

    large = bicubic(small)
    for _ in range(projections):
        large = large + bicubic(small - shrunk(large, factor))
    return large.clamp(-1, 1)


__all__ = ["enlarged", "prepare", "shrunk", "upscale"]
