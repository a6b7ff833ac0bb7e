"""Options that several commands share: how to sample, and with which model."""

from __future__ import annotations

import argparse
from typing import Any


def add_sampling(parser: argparse.ArgumentParser, *, steps: int = 20, sampler: str = "dpmpp_2m") -> None:
    """Add the group "how": what `settings_of` reads, and --model and --device. steps, sampler: defaults to mention."""
    how = parser.add_argument_group("how").add_argument
    how("--seed", type=int, metavar="N", help="picture i is made from seed N + i alone (default 0)")
    how("--steps", type=int, metavar="N", help=f"sampling steps (default {steps})")
    how(
        "--sampler",
        metavar="NAME[:key=value,...]",
        help=f"such as dpmpp_2m or ddim:eta=0.5 (default {sampler})",
    )
    how("--spacing", metavar="NAME", help="how the steps lie on the schedule, such as trailing or karras")
    how(
        "--guidance",
        type=float,
        metavar="X",
        help="how strongly to follow the label or prompt; 1 is not at all (default: the model's usual, 2 if bundled)",
    )
    how("--model", metavar="FILE", help="a checkpoint made by fastdiff train (default: the bundled one)")
    how(
        "--batch", type=int, metavar="N", help="pictures made at once, which bounds memory (default: by size)"
    )
    how("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one)")


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `fastdiff.apps.settings.Settings` that were given."""
    from fastdiff.cli.spec import parse_sampler

    names = ("seed", "steps", "spacing", "guidance", "batch")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.sampler is not None:
        given["sampler"], given["options"] = parse_sampler(args.sampler)
    return given
