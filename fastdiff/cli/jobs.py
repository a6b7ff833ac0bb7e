"""What `fastdiff generate` was asked for, as a job: pictures, pictures in between, or a comparison of samplers."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdiff.apps.compare import Comparison
    from fastdiff.apps.work import Job

ALL_SAMPLERS = "ddim,euler_ancestral,heun,dpmpp_2m,dpmpp_2m_sde,unipc"
COMPARED_STEPS = "4,8,16,32"


def add_ways(parser: argparse.ArgumentParser) -> None:
    """Add the groups of options for large canvases, interpolation and comparison."""
    large = parser.add_argument_group("large pictures").add_argument
    large(
        "--window",
        type=int,
        metavar="N",
        help="let the model see overlapping windows of N pixels, blended in each step",
    )
    large("--overlap", type=float, metavar="X", help="of windows, as a share of their side (default 0.5)")
    between = parser.add_argument_group("in between").add_argument
    between("--to-label", metavar="NAME,...", help="go on to these classes, as a row of frames")
    between("--to-seed", metavar="N,...", help="go on to these seeds")
    between("--frames", type=int, metavar="N", help="how many pictures on the way (default 16)")
    compare = parser.add_argument_group("comparison").add_argument
    compare(
        "--compare",
        nargs="?",
        const=ALL_SAMPLERS,
        metavar="NAME,...",
        help=f"a contact sheet of samplers x steps (default {ALL_SAMPLERS})",
    )
    compare("--compare-steps", metavar="N,...", help=f"its numbers of steps (default {COMPARED_STEPS})")


def job_of(args: argparse.Namespace, arguments: dict[str, Any]) -> Job | Comparison:
    """The job, checked. arguments: those of `fastdiff.apps.generate.prepare`. Raises ValueError for a mixture."""
    from fastdiff.apps import generate

    in_between = args.to_label is not None or args.to_seed is not None
    if in_between and args.compare is not None:
        raise ValueError("give --compare or --to-label and --to-seed, not both")
    for name, needs, given in (
        ("--compare-steps", "--compare", args.compare is not None or args.compare_steps is None),
        ("--frames", "--to-label or --to-seed", in_between or args.frames is None),
        ("--overlap", "--window", args.window is not None or args.overlap is None),
    ):
        if not given:
            raise ValueError(f"{name} belongs with {needs}")
    windows = {name: getattr(args, name) for name in ("window", "overlap") if getattr(args, name) is not None}
    if in_between:
        return _in_between(args, {**arguments, **windows})
    if args.compare is not None:
        return _compared(args, {**arguments, **windows})
    return generate.prepare(**arguments, **windows)


def _compared(args: argparse.Namespace, arguments: dict[str, Any]) -> Comparison:
    from fastdiff.apps import compare

    if args.sampler is not None or args.steps is not None:
        raise ValueError("--compare takes the place of --sampler, and --compare-steps that of --steps")
    for name in ("sampler", "steps", "options"):
        arguments.pop(name, None)
    samplers = [name.strip() for name in args.compare.split(",") if name.strip()]
    steps = _numbers("--compare-steps", args.compare_steps or COMPARED_STEPS)
    if args.count is None:
        arguments["count"] = 1
    return compare.prepare(samplers=samplers, steps=steps, **arguments)


def _in_between(args: argparse.Namespace, arguments: dict[str, Any]) -> Job:
    from fastdiff.apps import interpolate

    if args.count is not None or args.window is not None:
        raise ValueError("frames in between take neither --count nor --window: give --frames")
    if arguments.pop("window", None) is not None:  # the recipe's
        raise ValueError("frames in between take no --window, and the recipe's picture was made with one")
    for name in ("count", "overlap"):
        arguments.pop(name, None)
    prompts = list(arguments.pop("prompts"))
    if args.to_label is not None:
        prompts += [name.strip() for name in args.to_label.split(",") if name.strip()]
    seeds = [arguments.pop("seed", 0)]
    if args.to_seed is not None:
        seeds += _numbers("--to-seed", args.to_seed)
    return interpolate.prepare(prompts, seeds=seeds, frames=args.frames or 16, **arguments)


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} takes whole numbers with commas, such as 4,8,16, got {text!r}") from None
