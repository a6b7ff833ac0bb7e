"""fastdiff generate: pictures from the bundled model, or from a checkpoint of one's own."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from fastdiff.cli.jobs import add_ways, job_of
from fastdiff.cli.options import add_sampling, model_of, settings_of, timed_model

if TYPE_CHECKING:
    from fastdiff.apps.source import Source
    from fastdiff.apps.work import Made

DEFAULT_COUNT = 16  # pictures in all, if --count is not given and the model knows labels
MOST_LABELS = 64  # of which pictures are made unasked


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command `generate`."""
    parser = subparsers.add_parser(
        "generate",
        help="make pictures of one or more classes",
        description="Make pictures with the bundled model. Each PNG carries the recipe that makes it again (--recipe).",
    )
    what = parser.add_argument_group("what").add_argument
    what("--label", metavar="NAME,...", help="classes, with commas, or all (default all)")
    what(
        "--prompt",
        metavar="TEXT",
        action="append",
        help="what to show, for models that take text; may be repeated",
    )
    what(
        "--size",
        metavar="N|WxH",
        help="pixels, one number or width x height (default: as the model was trained)",
    )
    what(
        "--count",
        type=int,
        metavar="N",
        help=f"pictures of each class (default: about {DEFAULT_COUNT} in all)",
    )
    what("--tile", action="store_true", default=None, help="pictures that repeat seamlessly")
    what("--recipe", metavar="FILE.png", help="take what is not given here from a picture made before")
    again = parser.add_argument_group("the same picture again").add_argument
    again("--like", metavar="FILE.png", help="make exactly this picture again, whatever command made it")
    again("--image", metavar="FILE", help="the picture that it was made from, if it was made from one")
    again("--mask", metavar="FILE", help="the mask, if it was inpainted by one")
    again("--extend", metavar="L,T,R,B", help="how the picture was made larger, if it was inpainted so")
    add_ways(parser)
    add_sampling(parser)
    out = parser.add_argument_group("output").add_argument
    out(
        "--out",
        default="out",
        metavar="PATH",
        help="FILE.png for one sheet, or a folder for single files (default out)",
    )
    out("--show-steps", action="store_true", help="also write a film strip of how pictures came about")
    out("--zoom", type=int, default=1, metavar="N", help="enlarge the pictures of a sheet (default 1)")
    out("--no-captions", action="store_true", help="a sheet of several classes without their names")
    out("--json", action="store_true", help="print timing and the names of the files as JSON")
    out("--quiet", action="store_true", help="no progress bar, no summary")
    out("--overwrite", action="store_true", help="replace existing files")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check everything, then sample, then write."""
    started = time.perf_counter()
    if args.like is not None:
        from fastdiff.cli import like

        return like.run(args)
    if (args.image, args.mask, args.extend) != (None, None, None):
        raise ValueError(
            "--image, --mask and --extend belong with --like; to change a picture: fastdiff edit or inpaint"
        )
    from fastdiff.apps.compare import Comparison
    from fastdiff.cli.output import Output

    timed = timed_model(args)
    if timed is not None:
        if args.watermark:
            raise ValueError("sounds and clips carry no watermark: leave --watermark out")
        from fastdiff.cli import recordings

        return recordings.run(args, timed, given(args, recordings.parse_sides))
    job = job_of(args, arguments(args))
    if args.show_steps and isinstance(job, Comparison):
        raise ValueError("--show-steps shows the steps of one sampler: leave it out with --compare")
    loading = time.perf_counter() - started
    output = Output(
        Path(args.out),
        job,
        strip=args.show_steps,
        captions=not args.no_captions,
        zoom=args.zoom,
        overwrite=args.overwrite,
    )
    # disable=None: no bar where stderr is no terminal
    with tqdm(total=job.total_calls, desc="sampling", unit="call", disable=args.quiet or None) as bar:
        if isinstance(job, Comparison):
            result = job.run(progress=bar.update)
        else:
            result = job.run(progress=bar.update, trajectory=args.show_steps)
    files = output.write(result)
    seconds = {**result.seconds, "loading": loading, "total": time.perf_counter() - started}
    if args.json:
        print(json.dumps(as_data(result, seconds, files), indent=2))
    elif not args.quiet:
        print(summary(result, seconds, files))
    return 0


def arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `fastdiff.apps.generate.prepare`: those given, else the recipe's, else none (its defaults)."""
    from fastdiff.apps.source import source_of

    source = source_of(model_of(args), device=args.device)
    merged = {
        **(from_recipe(args.recipe, source, own=args.model is not None) if args.recipe else {}),
        **given(args),
    }
    merged.setdefault("prompts", ["all"])
    if merged["prompts"] == ["all"] and len(source.labels) > MOST_LABELS:
        raise ValueError(f"the model knows {len(source.labels)} labels: name some with --label")
    if "count" not in merged and not source.labels:
        merged["count"] = 1
    if "count" not in merged:
        classes = len(source.labels) if merged["prompts"] == ["all"] else len(merged["prompts"])
        merged["count"] = -(-DEFAULT_COUNT // max(classes, 1))
    return {**merged, "model": source}


def given(args: argparse.Namespace, size: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """The arguments of `prepare` that the command line holds, but for the model. size: reads --size."""
    found = settings_of(args)
    found |= {name: getattr(args, name) for name in ("count", "tile") if getattr(args, name) is not None}
    if args.size is not None:
        found["size"] = (size or parse_size)(args.size)
    if args.prompt is not None:
        if args.label is not None:
            raise ValueError("give --label or --prompt, not both")
        found["prompts"] = args.prompt
    if args.label is not None:
        found["prompts"] = [name.strip() for name in args.label.split(",") if name.strip()]
    return found


def parse_size(text: str) -> tuple[int, int]:
    """128 or 256x128 as (width, height)."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--size must be a number or WIDTHxHEIGHT, such as 128 or 256x128, got {text!r}")
    return int(parts[0]), int(parts[-1])


def from_recipe(path: str, source: Source, *, own: bool) -> dict[str, Any]:
    """The arguments in a picture's recipe. Raises ValueError if another model made it, unless that was `own` choice."""
    from fastdiff.apps.generate import ARGUMENTS
    from fastdiff.images import read_recipe

    recipe = read_recipe(path)
    made_with, found = recipe.get("checkpoint"), recipe.get("arguments")
    if isinstance(found, dict) and "labels" in found:  # as versions before 0.2 wrote them
        found = {"prompts": found["labels"], **{name: found[name] for name in found if name != "labels"}}
    if (
        recipe.get("command", "generate") != "generate"
        or not isinstance(found, dict)
        or not set(found) <= ARGUMENTS
    ):
        raise ValueError(f"{path}: its recipe is not one that this version of fastdiff knows")
    if made_with != source.identity()["checkpoint"] and not own:
        raise ValueError(f"{path}: made with another checkpoint ({made_with}); name it with --model FILE")
    return found


def as_data(result: Made, seconds: dict[str, float], files: list[Path]) -> dict[str, Any]:
    """What --json prints."""
    count = len(result.prompts)
    return {
        "files": [str(path) for path in files],
        "images": count,
        "model_calls_per_image": result.model_calls,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "seconds_per_image": round(seconds["sampling"] / count, 4),
        "recipe": result.recipe,
    }


def summary(result: Made, seconds: dict[str, float], files: list[Path]) -> str:
    """Two lines for a person."""
    count, (height, width) = len(result.prompts), result.images.shape[-2:]
    kinds = sorted({str(prompt) for prompt in result.prompts})
    about = kinds[0] if len(kinds) == 1 else f"{len(kinds)} classes"
    how = result.recipe["arguments"]
    sampler = f"{how['sampler']}, {how['steps']} steps" if "sampler" in how else "samplers compared"
    names = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    return (
        f"{count} picture{'s'[: count > 1]} of {about}, {width}x{height}, {sampler} "
        f"({result.model_calls} model calls): sampling {seconds['sampling']:.1f} s, "
        f"{seconds['sampling'] / count:.2f} s each; {seconds['total']:.1f} s in all\nwrote {names}"
    )
