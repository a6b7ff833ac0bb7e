"""fastdiff train: train a class-conditional model on folders of pictures, one folder a class."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from tqdm import tqdm

EXAMPLE = """\
examples:
  fastdiff train --make-data data                                write the bundled model's data set
  fastdiff train --config configs/bundled.json --data data/train --out run
  fastdiff train --config configs/bundled.json --data data/train --out run --resume
  fastdiff generate --model run/model.safetensors --label brick --out brick.png
"""


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
        "--config", type=Path, metavar="FILE", help="settings as JSON (default: those of TrainConfig)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--init", type=Path, metavar="FILE", help="begin with the weights of this checkpoint")
    parser.add_argument("--steps", type=int, help="optimizer steps, in place of the config's")
    parser.add_argument("--seed", type=int, help="seed, in place of the config's")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "--make-data", type=Path, metavar="DIR", help="only write the bundled model's data set"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, or write the data set."""
    if args.make_data is not None:
        return make_data(args.make_data, quiet=args.quiet)
    if args.data is None or args.out is None:
        raise ValueError("train needs --data DIR and --out DIR (or --make-data DIR)")
    import torch

    from fastdiff.training import Progress, TrainConfig, read_config, train

    config = TrainConfig() if args.config is None else read_config(args.config)
    changes = {name: getattr(args, name) for name in ("steps", "seed") if getattr(args, name) is not None}
    config = dataclasses.replace(config, **changes)
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    # disable=None: no bar where stderr is no terminal
    with tqdm(total=config.steps, desc="train", unit="step", disable=args.quiet or None) as bar:

        def show(p: Progress) -> None:
            bar.set_postfix_str(f"loss {p.loss:.4f}", refresh=False)
            bar.update(p.step - bar.n)

        trainer = train(
            config, args.data, args.out, resume=args.resume, init=args.init, device=args.device, on_step=show
        )
    print(
        f"{trainer.step} steps, {trainer.step * config.batch} pictures seen: {args.out / 'model.safetensors'}"
    )
    return 0


def make_data(out: Path, *, quiet: bool) -> int:
    """Write the bundled model's data set."""
    from fastdiff.training.make_dataset import CLASSES, SPLITS, make_dataset

    with tqdm(total=len(CLASSES) * len(SPLITS), desc="data", unit="class", disable=quiet or None) as bar:
        make_dataset(out, on_class=bar.update)
    print(f"{out}: train on {out / 'train'}, {out / 'test'} is held out")
    return 0
