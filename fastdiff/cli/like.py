"""fastdiff generate --like FILE.png: a picture made again from its own recipe, and compared with the original."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from torch import Tensor

    from fastdiff.apps.remake import Again
    from fastdiff.images import Picture

KEPT = {
    "like", "image", "mask", "extend", "model", "lora", "lora_strength", "device", "out", "json", "quiet", "overwrite",
    "run", "command", "version",
}  # fmt: skip
"""Options that go with --like; all others are the recipe's to say."""


def run(args: argparse.Namespace) -> int:
    """Check, make the picture, write it, compare it."""
    import torch

    from fastdiff.apps.remake import remake
    from fastdiff.cli.options import model_of
    from fastdiff.images import kind_of, read_recipe

    _check_options(args)
    kind = kind_of(args.like)[0]
    if kind != "PNG":
        raise ValueError(
            f"{args.like}: a {kind} carries no recipe; fastdiff inspect {args.like} --in FOLDER finds the PNG it was "
            "made from, if it has a watermark"
        )
    recipe = read_recipe(args.like)
    found = recipe.get("sheet")
    sheet: dict[str, Any] = found if isinstance(found, dict) else {}
    if sheet.get("steps"):
        raise ValueError(f"{args.like} is a film strip: make it again with --recipe {args.like} --show-steps")
    target = _target(args)
    original = _pixels(args.like)  # before it may be replaced
    again = remake(recipe, inputs=_inputs(args), model=model_of(args), device=_device(args, recipe))
    for line in again.differences:
        print(f"fastdiff: {line}: the last bits may differ", file=sys.stderr)
    threads = torch.get_num_threads()
    torch.set_num_threads(again.threads)
    try:
        _write(args, again, sheet, target)
    finally:
        torch.set_num_threads(threads)
    differing, most = compared(original, _pixels(target))
    if args.json:
        data = {"files": [str(target)], "same": not differing, "pixels_differing": differing, "most": most}
        print(json.dumps(data, indent=2))
    elif not args.quiet:
        print(f"wrote {target}\n" + verdict(differing, most))
    return 0


def verdict(differing: int, most: int) -> str:
    """One line for a person."""
    if not differing:
        return "bit for bit the same picture"
    if most < 0:
        return "not the same size: the recipe does not say all that made this picture"
    return f"{differing} pixels differ, by {most} of 255 at most"


def compared(first: Picture, second: Picture) -> tuple[int, int]:
    """How many pixels differ, and the largest difference of 255; (1, -1) for pictures of other sizes."""
    import numpy as np

    if first.shape != second.shape:
        return 1, -1
    gap = np.abs(first.astype(np.int16) - second).max(axis=2)
    return int((gap > 0).sum()), int(gap.max())


def _pixels(path: str | Path) -> Picture:
    from fastdiff.images import read_image, to_pictures

    picture: Picture = to_pictures(read_image(path)[None])[0]
    return picture


def _write(args: argparse.Namespace, again: Again, sheet: dict[str, Any], target: Path) -> None:
    from fastdiff.cli.output import Output
    from fastdiff.files import check_writable
    from fastdiff.images import to_pictures, write_png

    check_writable(target, overwrite=args.overwrite)
    output = None
    if again.index is None:
        zoom, captions = sheet.get("zoom", 1), bool(sheet.get("captions", True))
        output = Output(target, again.job, zoom=zoom, captions=captions, overwrite=args.overwrite)
    with tqdm(total=again.job.total_calls, desc="sampling", unit="call", disable=args.quiet or None) as bar:
        made = again.job.run(progress=bar.update)
    if output is not None:
        output.write(made)
        return
    picture = to_pictures(made.images[again.index][None])[0]
    write_png(target, picture, recipe=made.recipe_of(again.index), overwrite=args.overwrite)


def _check_options(args: argparse.Namespace) -> None:
    given = [
        name
        for name, value in vars(args).items()
        if name not in KEPT and value is not None and value is not False
    ]
    given = [name for name in given if not (name == "zoom" and args.zoom == 1)]
    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(
            f"--like makes the same picture again: leave out {options}, or use --recipe {args.like}"
        )


def _inputs(args: argparse.Namespace) -> dict[str, Tensor]:
    """The pictures that it was made from, read as the commands read them."""
    from fastdiff.cli import inpaint
    from fastdiff.images import read_image

    if args.image is None:
        if args.mask is not None or args.extend is not None:
            raise ValueError("--mask and --extend belong with --image")
        return {}
    if args.mask is None and args.extend is None:
        return {"picture": read_image(args.image)}
    asked = argparse.Namespace(picture=args.image, mask=args.mask, extend=args.extend)
    return dict(zip(("picture", "mask"), inpaint.read(asked)))


def _target(args: argparse.Namespace) -> Path:
    out = Path(args.out)
    return out if out.suffix.lower() == ".png" else out / Path(args.like).name


def _device(args: argparse.Namespace, recipe: dict[str, Any]) -> str | None:
    """The device asked for, else the recipe's where it is there."""
    import torch

    kind = str(recipe.get("device", "")).split(":")[0]
    there = kind == "cpu" or (kind == "cuda" and torch.cuda.is_available())
    return args.device or (kind if there else None)
