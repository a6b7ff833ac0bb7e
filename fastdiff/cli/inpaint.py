"""fastdiff inpaint: a part of a picture repainted or mended, or more around it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.cli.options import add_sampling, model_of, settings_of
from fastdiff.cli.running import add_output, given, prompt_of, run_job

if TYPE_CHECKING:
    from torch import Tensor

OWN = ("method", "feather", "resample", "jump", "doubt", "average", "count")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command `inpaint`."""
    parser = subparsers.add_parser(
        "inpaint",
        help="repaint or mend what a mask marks, or add more around a picture",
        description="Repaint or mend what a mask marks, at any size; what is kept is kept exactly.",
    )
    parser.add_argument("picture", metavar="PICTURE", help="PNG, JPEG, WebP or BMP")
    what = parser.add_argument_group("what").add_argument
    what(
        "--mask",
        metavar="MASK",
        help="a picture of the same size: white where to repaint, black where to keep",
    )
    what("--extend", metavar="L,T,R,B", help="more around it: pixels left, top, right, bottom")
    what("--label", metavar="NAME", help="the class of what is painted (default: none)")
    what("--prompt", metavar="TEXT", help="the same, for models that take text")
    what(
        "--method",
        metavar="NAME",
        help="sample: something new; restore: mend (default: restore for small holes and no label)",
    )
    what(
        "--feather",
        type=int,
        metavar="N",
        help="pixels around the mask in which old and new blend (default 0)",
    )
    what(
        "--resample",
        type=int,
        metavar="N",
        help="walk each stretch of steps N times, for harmony (default 1)",
    )
    what("--jump", type=int, metavar="N", help="steps of such a stretch (default 5)")
    what(
        "--doubt",
        type=float,
        metavar="SIGMA",
        help="how far a smooth filling may be off (restore; default 20)",
    )
    what("--average", type=int, metavar="N", help="looks that are averaged, 1 to 16 (restore; default 1)")
    what("--count", type=int, metavar="N", help="pictures, each from a seed of its own (default 1)")
    add_sampling(parser, sampler="ddim:eta=1, or dpmpp_2m to restore")
    add_output(parser, "inpainted.png")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check everything, then sample, then write."""
    started = time.perf_counter()
    from fastdiff.apps.inpaint import prepare

    picture, mask = read(args)
    job = prepare(
        picture, mask, prompt_of(args), model=model_of(args), device=args.device, **given(args, *OWN),
        **settings_of(args),
    )  # fmt: skip
    return run_job(args, job, started, f"{Path(args.picture).name} inpainted ({job.arguments['method']})")


def read(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """The picture, larger if asked for, and the mask of what is to be painted."""
    from fastdiff.apps.inpaint import extended
    from fastdiff.images import read_image

    if (args.mask is None) == (args.extend is None):
        raise ValueError(
            "say what to paint: --mask MASK.png, or --extend L,T,R,B for more around the picture"
        )
    picture = read_image(args.picture)
    if args.extend is not None:
        return extended(picture, *_sides(args.extend))
    # over black, so that what a mask leaves transparent is kept
    return picture, (read_image(args.mask, background=(0, 0, 0)).mean(dim=0, keepdim=True) + 1).div(2).clamp(
        0, 1
    )


def _sides(text: str) -> list[int]:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(
            f"--extend takes four numbers of pixels, left, top, right and bottom, such as 0,0,64,0, got {text!r}"
        )
    return [int(part) for part in parts]
