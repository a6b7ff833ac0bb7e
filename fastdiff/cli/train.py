"""fastdiff train: train a class-conditional model on folders of pictures, one folder a class."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from fastdiff.cli import personalise
from fastdiff.cli.personalise import add_options

if TYPE_CHECKING:
    from fastdiff.training import TrainConfig

EXAMPLE = """\
examples:
  fastdiff train --make-data data                                write the bundled model's data set
  fastdiff train --config configs/bundled.json --data data/train --out run
  fastdiff train --config configs/bundled.json --data data/train --out run --resume
  fastdiff train --init bundled --data my_pictures --out mine --steps 500
  fastdiff train --config configs/examples/flow.json --data data/train --out run --processes 2
  fastdiff generate --model run/model.safetensors --label brick --out brick.png
  fastdiff train --lora my_pictures --label my_cat --out my_cat.safetensors
  fastdiff train --make-data notes --of sounds                   or clips: see docs/audio-video.md
docs/training.md tells of every setting.
"""
NOTES, CLIPS = 300, 300
"""Of each class, in the data sets of sounds and clips."""
FINE_TUNING = {"lr": 1e-4, "warmup": 50}
"""What differs from a run's defaults where it goes on with a network and no --config is given."""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command `train`."""
    parser = subparsers.add_parser(
        "train",
        help="train a model on folders of pictures",
        description="Train a small class-conditional UNet on a folder of class folders with pictures.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of class folders with pictures")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for state, model, log and sample sheets"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings as JSON (default: those of TrainConfig, or of --init)",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument(
        "--init", metavar="FILE", help="begin with the weights of this checkpoint, or of 'bundled'"
    )
    parser.add_argument("--steps", type=int, help="optimizer steps, in place of the config's")
    parser.add_argument("--batch", type=int, help="pictures at once, in place of the config's")
    parser.add_argument("--seed", type=int, help="seed, in place of the config's")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N",
        help="processes on this machine that share each step (with accelerate; default 1)",
    )  # fmt: skip
    parser.add_argument(
        "--tensorboard", action="store_true", help="write logs and sheets for TensorBoard too"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "--make-data", type=Path, metavar="DIR", help="only write a data set, the bundled model's"
    )
    parser.add_argument(
        "--of", choices=("pictures", "sounds", "clips"), default="pictures",
        help="which data set: the bundled model's pictures, notes of instruments, or moving shapes",
    )  # fmt: skip
    add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, or write the data set."""
    if args.make_data is not None:
        return make_data(args.make_data, of=args.of, quiet=args.quiet)
    if args.threads is not None:
        set_threads(args.threads)
    if args.lora is not None:
        return personalise.run(args, checkpoint_of(args.init))
    if args.data is None or args.out is None:
        raise ValueError("train needs --data DIR and --out DIR (or --make-data DIR)")
    if args.processes < 1:
        raise ValueError(f"--processes must be at least 1, got {args.processes}")
    from fastdiff.training import Progress, train
    from fastdiff.training.processes import launch

    init = checkpoint_of(args.init)
    config = settings(args, init)
    if args.processes > 1 and "WORLD_SIZE" not in os.environ:
        return launch(args.processes, command_line(args))
    first = os.environ.get("RANK", "0") == "0"
    # disable=None: no bar where stderr is no terminal
    with tqdm(total=config.steps, desc="train", unit="step", disable=args.quiet or not first or None) as bar:

        def show(p: Progress) -> None:
            bar.set_postfix_str(f"loss {p.loss:.4f}", refresh=False)
            bar.update(p.step - bar.n)

        trainer = train(
            config, args.data, args.out, resume=args.resume, init=init, device=args.device,
            tensorboard=args.tensorboard, on_step=show,
        )  # fmt: skip
    if first:
        seen = trainer.step * trainer.pictures
        print(f"{trainer.step} steps, {seen} pictures seen: {args.out / 'model.safetensors'}")
    return 0


def set_threads(count: int) -> None:
    """Set the number of torch's CPU threads. ValueError for less than 1."""
    import torch

    if count < 1:
        raise ValueError(f"--threads must be at least 1, got {count}")
    torch.set_num_threads(count)


def checkpoint_of(name: str | None) -> Path | None:
    """The file that --init names."""
    from fastdiff.models.checkpoint import BUNDLED

    return None if name is None else BUNDLED if name == "bundled" else Path(name)


def settings(args: argparse.Namespace, init: Path | None) -> TrainConfig:
    """The configuration that the arguments ask for. Raises ValueError or OSError for a bad one."""
    from fastdiff import models
    from fastdiff.training import TrainConfig, read_config, settings_of

    changes = {
        name: getattr(args, name) for name in ("steps", "batch", "seed") if getattr(args, name) is not None
    }
    if args.config is not None:
        config = read_config(args.config)
    elif init is not None:
        config = settings_of(models.load(init), **FINE_TUNING)
    else:
        config = TrainConfig()
    if args.config is None and "steps" in changes:
        changes["cooldown"] = max(0, changes["steps"] - config.warmup)
    return dataclasses.replace(config, **changes)


def command_line(args: argparse.Namespace) -> list[str]:
    """The arguments with which each of several processes is started."""
    given = [("--data", args.data), ("--out", args.out), ("--config", args.config), ("--init", args.init),
             ("--steps", args.steps), ("--batch", args.batch), ("--seed", args.seed), ("--threads", args.threads),
             ("--device", args.device)]  # fmt: skip
    flags = [("--resume", args.resume), ("--tensorboard", args.tensorboard), ("--quiet", args.quiet)]
    values = [part for name, value in given if value is not None for part in (name, str(value))]
    return ["train", *values, *(name for name, on in flags if on)]


def make_data(out: Path, *, of: str, quiet: bool) -> int:
    """Write a data set: the bundled model's pictures, or one of sounds or clips."""
    from fastdiff.training.instruments import INSTRUMENTS, write_notes
    from fastdiff.training.make_dataset import CLASSES, SPLITS, make_dataset
    from fastdiff.training.moving import MOTIONS, write_clips

    total = {"pictures": len(CLASSES) * len(SPLITS), "sounds": len(INSTRUMENTS), "clips": len(MOTIONS)}[of]
    with tqdm(total=total, desc="data", unit="class", disable=quiet or None) as bar:
        if of == "sounds":
            write_notes(out, count=NOTES, on_class=bar.update)
        elif of == "clips":
            write_clips(out, count=CLIPS, on_class=bar.update)
        else:
            make_dataset(out, on_class=bar.update)
    held = f"{out}: train on {out / 'train'}, {out / 'test'} is held out"
    print(held if of == "pictures" else f"{out}: train on it with a configuration of configs/examples")
    return 0
