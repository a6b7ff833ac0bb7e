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
    how("--lora", metavar="FILE", help="join this adapter, made by fastdiff train --lora, to the model")
    how("--lora-strength", type=float, metavar="X", help="how far the adapter goes (default 1)")
    how("--negative", metavar="TEXT", help="what to go away from: a prompt, or a label")
    how(
        "--model",
        metavar="PATH",
        help="a checkpoint made by fastdiff train, or the folder of a diffusers pipeline (default: the bundled model)",
    )
    how(
        "--batch", type=int, metavar="N", help="pictures made at once, which bounds memory (default: by size)"
    )
    how(
        "--watermark",
        action="store_true",
        default=None,
        help="hide a digest of the recipe in the pixels; fastdiff inspect reads it, from a JPEG copy too",
    )
    how("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one)")


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `fastdiff.apps.settings.Settings` that were given."""
    from fastdiff.cli.spec import parse_sampler

    names = ("seed", "steps", "spacing", "guidance", "batch", "negative", "watermark")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.sampler is not None:
        given["sampler"], given["options"] = parse_sampler(args.sampler)
    return given


def model_of(args: argparse.Namespace) -> Any:
    """What --model, --lora and --lora-strength name: None, a path, or a checkpoint with an adapter joined to it."""
    if args.lora is None:
        if args.lora_strength is not None:
            raise ValueError("--lora-strength belongs with --lora FILE")
        return args.model
    from fastdiff import models
    from fastdiff.apps.source import pick_device
    from fastdiff.models.lora import adapted, load_adapter

    adapter = load_adapter(args.lora)
    base = models.load(args.model, device=pick_device(args.device))
    return adapted(base, adapter, strength=1.0 if args.lora_strength is None else args.lora_strength)


def timed_model(args: argparse.Namespace) -> Any:
    """The checkpoint that --model names if it makes sounds or clips, else None."""
    if args.model is None or not args.model.endswith(".safetensors"):
        return None
    from fastdiff import models
    from fastdiff.apps.source import pick_device

    if models.checkpoint.config_of(args.model).dims == 2:
        return None
    if args.lora is not None:
        raise ValueError("--lora is for models of pictures: this one makes sounds or clips")
    return models.load(args.model, device=pick_device(args.device))
