"""fastdiff restyle: a photograph of one's own, made again as if it were of another label."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastdiff.cli.options import add_sampling, model_of, settings_of


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command `restyle`."""
    parser = subparsers.add_parser(
        "restyle",
        help="a photograph in the style of a label",
        description="Make a photograph of any size again in the style of a label or prompt.",
    )
    what = parser.add_argument_group("what").add_argument
    what("picture", metavar="PHOTO", help="PNG, JPEG, WebP or BMP")
    what(
        "--to",
        "--label",
        "--prompt",
        required=True,
        metavar="NAME",
        help="what it becomes: a label of the model, or a prompt; three names for one option",
    )
    what(
        "--strength",
        type=float,
        metavar="X",
        help="from 0, the photograph, to 1, the label as it likes (default 0.6)",
    )
    what(
        "--method",
        metavar="NAME",
        help="structure: keep light and shade; inversion: keep outlines; sdedit: plain noise (default structure)",
    )
    what("--of", metavar="NAME", help="what the photograph shows, if the model knows it (inversion)")
    what("--colours", metavar="WHOSE", help="label, or photo to keep the photograph's (default label)")
    what(
        "--coarse",
        type=int,
        metavar="N",
        help="side in pixels of the details that structure keeps (default 4)",
    )
    what("--turns", type=int, metavar="N", help="corrections of each step of inversion (default 3)")
    what("--size", type=int, metavar="N", help="scale the photograph down first, to this shorter side")
    what("--count", type=int, metavar="N", help="pictures, each from a seed of its own (default 1)")
    add_sampling(parser, sampler="dpmpp_2m, or ddim for inversion")
    out = parser.add_argument_group("output").add_argument
    out("--out", default="restyled.png", metavar="PATH", help="FILE.png, or a folder (default restyled.png)")
    out("--json", action="store_true", help="print timing and the names of the files as JSON")
    out("--quiet", action="store_true", help="no progress bar, no summary")
    out("--overwrite", action="store_true", help="replace existing files")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check everything, then sample, then write."""
    started = time.perf_counter()
    from fastdiff.apps.restyle import prepare
    from fastdiff.cli.output import Output
    from fastdiff.images import read_image

    names = ("strength", "method", "of", "colours", "coarse", "turns", "size", "count")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    picture = read_image(args.picture)
    job = prepare(picture, args.to, model=model_of(args), device=args.device, **given, **settings_of(args))
    output = Output(Path(args.out), job, overwrite=args.overwrite)
    with tqdm(total=job.total_calls, desc="sampling", unit="call", disable=args.quiet or None) as bar:
        made = job.run(progress=bar.update)
    files = output.write(made)
    total = time.perf_counter() - started
    if args.json:
        data = {
            "files": [str(path) for path in files],
            "model_calls": made.model_calls,
            "seconds": {
                **{name: round(value, 4) for name, value in made.seconds.items()},
                "total": round(total, 4),
            },
            "recipe": made.recipe,
        }
        print(json.dumps(data, indent=2))
    elif not args.quiet:
        height, width = made.images.shape[2:]
        about = job.arguments
        print(
            f"{Path(args.picture).name} as {args.to}, {width}x{height}, {about['method']} at strength "
            f"{about['strength']:g}: {made.model_calls} model calls, {total:.1f} s in all\n"
            f"wrote {', '.join(map(str, files))}"
        )
    return 0
