"""What commands that change a picture share: the options of their output, and running a job and telling of it."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from fastdiff.apps.work import Job


def add_output(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the group "output"."""
    out = parser.add_argument_group("output").add_argument
    out("--out", default=default, metavar="PATH", help=f"FILE.png, or a folder (default {default})")
    out("--json", action="store_true", help="print timing and the names of the files as JSON")
    out("--quiet", action="store_true", help="no progress bar, no summary")
    out("--overwrite", action="store_true", help="replace existing files")


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options among these that were given."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def prompt_of(args: argparse.Namespace) -> str | None:
    """--label or --prompt: two names for one thing."""
    if args.label is not None and args.prompt is not None:
        raise ValueError("give --label or --prompt, not both")
    prompt: str | None = args.prompt if args.label is None else args.label
    return prompt


def run_job(args: argparse.Namespace, job: Job, started: float, what: str) -> int:
    """Check the output, sample, write, and say what was done, beginning with `what`."""
    from fastdiff.apps.looks import Averaged
    from fastdiff.cli.output import Output

    target = Path(args.out)
    if isinstance(job, Averaged) and target.suffix.lower() != ".png" and not target.suffix:
        target = target / f"{Path(args.picture).stem}.png"  # one picture comes of all its looks
    output = Output(target, job, overwrite=args.overwrite)
    with tqdm(total=job.total_calls, desc="sampling", unit="call", disable=args.quiet or None) as bar:
        made = job.run(progress=bar.update)
    files = output.write(made)
    seconds = {**made.seconds, "total": time.perf_counter() - started}
    if args.json:
        data = {
            "files": [str(path) for path in files],
            "model_calls": made.model_calls,
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            "recipe": made.recipe,
        }
        print(json.dumps(data, indent=2))
    elif not args.quiet:
        height, width = made.images.shape[2:]
        print(
            f"{what}, {width}x{height}: {made.model_calls} model call{'s'[: made.model_calls != 1]}, "
            f"{seconds['total']:.1f} s in all\nwrote {', '.join(map(str, files))}"
        )
    return 0
