"""fastdiff edit: a picture changed towards a label, denoised, or made larger."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.cli.options import add_sampling, model_of, settings_of
from fastdiff.cli.running import add_output, given, prompt_of, run_job

if TYPE_CHECKING:
    from torch import Tensor

    from fastdiff.apps.work import Job

ESTIMATED = "estimated"
# options that belong to one way of editing, by its name on the command line
OWN = {
    "": ("strength", "count"),
    "--denoise": ("average",),
    "--upscale": ("method", "noise", "doubt"),
}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command `edit`."""
    parser = subparsers.add_parser(
        "edit",
        help="change a picture by strength, denoise it, or make it larger",
        description="Change a picture of any size towards a label or prompt; or denoise it; or make it larger.",
    )
    parser.add_argument("picture", metavar="PICTURE", help="PNG, JPEG, WebP or BMP")
    towards = parser.add_argument_group("image to image").add_argument
    towards("--label", metavar="NAME", help="the class it goes towards (default: none)")
    towards("--prompt", metavar="TEXT", help="the same, for models that take text")
    towards("--strength", type=float, metavar="X", help="from 0, the picture, to 1, a new one (default 0.5)")
    towards("--count", type=int, metavar="N", help="pictures, each from a seed of its own (default 1)")
    clean = parser.add_argument_group("denoising").add_argument
    clean(
        "--denoise",
        nargs="?",
        const=ESTIMATED,
        metavar="SIGMA",
        help="remove noise of this standard deviation, of 0 to 255; estimated if left out. --steps is 1 unless given",
    )
    clean(
        "--average", type=int, metavar="N", help="looks at the picture that are averaged, 1 to 16 (default 1)"
    )
    larger = parser.add_argument_group("super-resolution").add_argument
    larger("--upscale", type=int, metavar="N", help="how many times as wide and high")
    larger("--method", metavar="NAME", help="restore: least error; sample: new detail (default restore)")
    larger("--noise", type=float, metavar="SIGMA", help="noise of the picture, of 0 to 255 (default 0)")
    larger(
        "--doubt", type=float, metavar="SIGMA", help="how far the smooth enlargement may be off (default 12)"
    )
    add_sampling(parser, steps=20)
    add_output(parser, "edited.png")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check everything, then sample, then write."""
    started = time.perf_counter()
    from fastdiff.images import read_image

    way = _way(args)
    job = _job(args, way, read_image(args.picture))
    about = {"": "changed", "--denoise": "denoised", "--upscale": "made larger"}[way]
    if way == "--denoise":
        about += f" (noise {job.arguments['noise']:g})"
    return run_job(args, job, started, f"{Path(args.picture).name} {about}")


def _way(args: argparse.Namespace) -> str:
    """Which way of editing is asked for. ValueError for options that belong to another."""
    if args.denoise is not None and args.upscale is not None:
        raise ValueError(
            "give --denoise or --upscale, not both: denoise first, then enlarge what was written"
        )
    way = "--denoise" if args.denoise is not None else "--upscale" if args.upscale is not None else ""
    for other, names in OWN.items():
        for name in names:
            if other != way and getattr(args, name) is not None:
                raise ValueError(
                    f"--{name} belongs with {other}" if other else f"--{name} does not go with {way}"
                )
    if way == "--denoise" and prompt_of(args) is not None:
        raise ValueError("--denoise takes no label or prompt")
    if way == "--denoise" and (args.guidance, args.negative) != (None, None):
        raise ValueError("--denoise goes towards nothing: leave --guidance and --negative out")
    return way


def _job(args: argparse.Namespace, way: str, picture: Tensor) -> Job:
    from fastdiff.apps import denoise, edit, upscale

    how = {"model": model_of(args), "device": args.device, **given(args, *OWN[way]), **settings_of(args)}
    if way == "--denoise":
        return denoise.prepare(picture, noise=_sigma(args.denoise), **how)
    if way == "--upscale":
        return upscale.prepare(picture, prompt_of(args), factor=args.upscale, **how)
    return edit.prepare(picture, prompt_of(args), **how)


def _sigma(text: str) -> float | None:
    if text == ESTIMATED:
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--denoise takes a standard deviation, such as 25, got {text!r}") from None
