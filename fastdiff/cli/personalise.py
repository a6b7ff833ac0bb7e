"""fastdiff train --lora: teach a checkpoint one more label from a few pictures of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tqdm import tqdm

NOT_FOR_THESE = ("data", "config", "tensorboard")
"""Options of fastdiff train that adapters have no use for."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the group of options."""
    lora = parser.add_argument_group("personalisation (docs/personalise.md)").add_argument
    lora(
        "--lora", type=Path, metavar="DIR",
        help="train an adapter on the 5 to 20 pictures in DIR; --out is its FILE.safetensors, --init the base",
    )  # fmt: skip
    lora("--label", metavar="NAME", help="the label that the pictures get")
    lora("--rank", type=int, metavar="N", help="of the adapter's factors (default 8)")
    lora(
        "--prior", type=int, metavar="N", help="the base's own pictures to rehearse, 0 for none (default 16)"
    )


def run(args: argparse.Namespace, init: Path | None) -> int:
    """Train an adapter. init: the base, None for the bundled model."""
    for name in NOT_FOR_THESE:
        if getattr(args, name):
            raise ValueError(f"--{name} does not go with --lora: see fastdiff train --help")
    if args.processes > 1:
        raise ValueError("--lora trains in one process: leave out --processes")
    if args.label is None or args.out is None:
        raise ValueError("--lora DIR needs --label NAME and --out FILE.safetensors")
    from fastdiff import models
    from fastdiff.training import Progress
    from fastdiff.training.lora import STEPS, personalise

    names = ("steps", "batch", "seed", "rank", "prior")
    given: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    with tqdm(
        total=given.get("steps", STEPS), desc="adapter", unit="step", disable=args.quiet or None
    ) as bar:

        def show(p: Progress) -> None:
            bar.set_postfix_str(f"loss {p.loss:.4f}", refresh=False)
            bar.update(p.step - bar.n)

        adapter = personalise(
            args.lora, args.label, args.out, base=models.load(init, device=args.device), resume=args.resume,
            device=args.device, on_step=show, **given,
        )  # fmt: skip
    size = args.out.stat().st_size / 1e6
    print(
        f"{adapter.label}: {adapter.training['pictures']} pictures, {adapter.training['steps']} steps, "
        f"{adapter.training['seconds']} s; {args.out}, {size:.2f} MB\n"
        f"try: fastdiff generate --lora {args.out} --label {adapter.label} --out {adapter.label}.png"
    )
    return 0
