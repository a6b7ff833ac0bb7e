"""fastdiff augment: a folder of class folders in, an augmented one out."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastdiff.cli.options import add_sampling, model_of, settings_of


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command `augment`."""
    parser = subparsers.add_parser(
        "augment",
        help="more pictures like those of a data set",
        description="Write variations of every picture of IN/CLASS/ into OUT/CLASS/, with a manifest of how each was "
        "made. Started again, it goes on where it was stopped.",
    )
    what = parser.add_argument_group("what").add_argument
    what("folder", metavar="IN", help="a folder that holds a folder of pictures for each class")
    what("--out", required=True, metavar="OUT", help="a new folder, or one that the same command began")
    what("--count", type=int, metavar="N", help="variations of each picture (default 1)")
    what(
        "--strength",
        metavar="LOW..HIGH",
        help="how far from the picture, 0 to 1; each variation draws its own (default 0.2..0.6)",
    )
    what(
        "--towards",
        metavar="WHAT",
        help="own: the class's label, where the model knows it; nothing: no label (default own)",
    )
    what("--size", type=int, metavar="N", help="scale pictures down first, to this shorter side")
    what("--originals", action="store_true", default=None, help="copy the pictures themselves too")
    add_sampling(parser)
    out = parser.add_argument_group("output").add_argument
    out("--json", action="store_true", help="print timing and the number of pictures as JSON")
    out("--quiet", action="store_true", help="no progress bar, no summary")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check everything, then make what is not there yet."""
    started = time.perf_counter()
    from fastdiff.apps.augment_folder import prepare

    names = ("count", "towards", "size", "originals")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.strength is not None:
        given["strength"] = parse_range(args.strength)
    how = settings_of(args)
    for name in ("spacing", "negative", "watermark"):
        if name in how:
            raise ValueError(f"augment does not take --{name}: leave it out")
    job = prepare(Path(args.folder), Path(args.out), model=model_of(args), device=args.device, **given, **how)
    with tqdm(total=job.total_calls, desc="augmenting", unit="picture", disable=args.quiet or None) as bar:
        files = job.run(progress=bar.update)
    total = time.perf_counter() - started
    classes = len({item.label for item in job.items})
    if args.json:
        print(
            json.dumps(
                {"pictures": len(files), "classes": classes, "out": args.out, "seconds": round(total, 3)}
            )
        )
    elif not args.quiet:
        print(f"{len(files)} pictures of {classes} class{'es' * (classes > 1)} in {args.out}, {total:.1f} s")
    return 0


def parse_range(text: str) -> tuple[float, float]:
    """0.2..0.6, or one number for both ends."""
    parts = text.split("..")
    try:
        low, high = float(parts[0]), float(parts[-1])
    except ValueError:
        parts = []
    if len(parts) not in (1, 2):
        raise ValueError(f"--strength is a number or a range such as 0.2..0.6, got {text!r}")
    return low, high
