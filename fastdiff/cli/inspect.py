"""fastdiff inspect: what a picture says of how it was made: its recipe, its watermark."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

ABOUT = (
    "command",
    "checkpoint",
    "pipeline",
    "scheduler",
    "fastdiff",
    "torch",
    "device",
    "threads",
    "backend",
)


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command `inspect`."""
    parser = subparsers.add_parser(
        "inspect",
        help="how a picture was made: its recipe, its watermark",
        description="Show the recipe that a PNG carries and the invisible watermark of any picture, a JPEG copy too.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="PNG, JPEG, WebP or BMP")
    parser.add_argument(
        "--in", dest="folder", metavar="FOLDER", help="look there for the PNG whose recipe a watermark names"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look at every file; a file that cannot be read ends it."""
    known = recipes_in(Path(args.folder)) if args.folder is not None else {}
    found = [inspect(path, known) for path in args.files]
    if args.json:
        print(json.dumps(found if len(found) > 1 else found[0], indent=2))
    else:
        print("\n\n".join(readable(one) for one in found))
    return 0


def inspect(path: str, known: dict[int, str] | None = None) -> dict[str, Any]:
    """JSON data. known: files by the payload of their recipes. OSError, ValueError if it is no readable picture."""
    from fastdiff import watermark
    from fastdiff.images import kind_of, read_image, to_pictures

    kind, width, height = kind_of(path)
    recipe, note = _recipe(path) if kind == "PNG" else (None, None)
    mark = watermark.detect(to_pictures(read_image(path)[None])[0])
    data: dict[str, Any] = {"file": path, "format": kind, "width": width, "height": height, "recipe": recipe}
    if note:
        data["note"] = note
    data["watermark"] = None
    if mark is not None:
        data["watermark"] = {
            "names": None if mark.payload is None else f"{mark.payload:010x}",
            "agreement": round(mark.agreement, 3),
            "offset": list(mark.offset),
        }
        if mark.payload is not None and recipe is not None:
            data["watermark"]["of_this_recipe"] = mark.payload == watermark.payload_of(recipe)
        if mark.payload is not None and mark.payload in (known or {}):
            data["watermark"]["recipe_in"] = (known or {})[mark.payload]
    return data


def recipes_in(folder: Path) -> dict[int, str]:
    """The PNGs of a folder (not below it) that carry recipes, by the payload that stands for each recipe."""
    from fastdiff import watermark

    if not folder.is_dir():
        raise ValueError(f"--in {folder}: no such folder")
    found = {}
    for path in sorted(folder.glob("*.png")):
        recipe, _ = _recipe(str(path))
        if recipe is not None:
            with contextlib.suppress(ValueError):  # infinity and the like, which no recipe of ours holds
                found[watermark.payload_of(recipe)] = str(path)
    return found


def readable(data: dict[str, Any]) -> str:
    """For a person."""
    recipe, mark = data["recipe"], data["watermark"]
    lines = [f"{data['file']}: {data['format']}, {data['width']}x{data['height']}"]
    if recipe is not None:
        lines += _about(recipe)
    elif "note" in data:
        lines.append(f"  {data['note']}")
    if mark is not None:
        lines.append("  watermark: " + _mark(mark))
    if recipe is None and mark is None:
        lines.append("  no recipe and no watermark: nothing says how it was made")
    elif mark is None:
        lines.append("  no watermark")
    elif recipe is None:
        lines.append("  no recipe: it stays behind when a picture is saved by another program")
    if recipe is not None:
        lines.append(_how(data["file"], recipe))
    return "\n".join(lines)


def _about(recipe: dict[str, Any]) -> list[str]:
    circumstances = [f"  {name}: {_plain(recipe[name])}" for name in ABOUT if name in recipe]
    arguments, inputs = (
        sorted(part.items()) if isinstance(part, dict) else []  # a recipe is whatever a file says
        for part in (recipe.get("arguments"), recipe.get("inputs"))
    )
    rows = [f"    {name}: {json.dumps(value)}" for name, value in arguments]
    origins = [f"  made from {name}: {_plain(value)}" for name, value in inputs]
    return [*circumstances, *(["  arguments:", *rows] if rows else []), *origins]


def _plain(value: object) -> str:
    """On a line of its own, without what would steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


def _mark(mark: dict[str, Any]) -> str:
    if mark["names"] is None:
        return "there is one, too damaged to read"
    said = f"names recipe {mark['names']}"
    if "of_this_recipe" in mark:
        said += (
            ", this one"
            if mark["of_this_recipe"]
            else ", not this one: the picture or the recipe was exchanged"
        )
    return said + (f", found in {mark['recipe_in']}" if "recipe_in" in mark else "")


def _how(path: str, recipe: dict[str, Any]) -> str:
    from fastdiff.apps.remake import COMMANDS

    command, sheet, inputs = recipe.get("command", "generate"), recipe.get("sheet"), recipe.get("inputs")
    if command not in COMMANDS:
        return f"  made by fastdiff {_plain(command)}: to make it again, run that with these arguments"
    if isinstance(sheet, dict) and sheet.get("steps"):
        return f"  a film strip: fastdiff generate --recipe {path} --show-steps makes it again"
    how = f"  to make it again: fastdiff generate --like {path}"
    if not inputs:
        return how
    mask = " --mask MASK, or --extend, as then" if isinstance(inputs, dict) and "mask" in inputs else ""
    return f"{how} --image PICTURE{mask} (what it was made from)"


def _recipe(path: str) -> tuple[dict[str, Any] | None, str | None]:
    """The recipe in a PNG, or None and, if something is there that cannot be read, why."""
    from fastdiff.images import read_recipe

    try:
        return read_recipe(path), None
    except ValueError as error:
        return None, None if "carries no" in str(error) else str(error).removeprefix(f"{path}: ")
