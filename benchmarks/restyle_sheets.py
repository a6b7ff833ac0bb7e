"""The pictures of docs/restyle.md: photographs of scikit-image in several styles, and the dial of each method.

python benchmarks/restyle_sheets.py [--model FILE] [--out docs/images]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fastdiff.apps.restyle import METHODS, restyle
from fastdiff.apps.source import Source, source_of
from fastdiff.images import grid, to_pictures, write_png
from restyle import photograph
from results import ROOT

STYLES = (
    ("stained_glass", "inversion", 0.75),
    ("mondrian", "inversion", 0.7),
    ("grass", "structure", 0.5),
    ("brick", "structure", 0.7),
    ("tissue", "sdedit", 0.6),
)
DIAL = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def styles(source: Source, names: list[str], size: int, steps: int) -> tuple[torch.Tensor, list[str]]:
    """A row for each photograph: itself and every style."""
    pictures, captions = [], []
    for name in names:
        original = photograph(name, size)
        pictures.append(original)
        captions.append(name)
        for label, method, strength in STYLES:
            made = restyle(
                original, label, method=method, strength=strength, model=source, steps=steps, guidance=3.0
            )
            pictures.append(made.images[0])
            captions.append(f"{label.replace('_', ' ')}, {method} {strength:g}")
    return torch.stack(pictures), captions


def dials(source: Source, name: str, label: str, size: int, steps: int) -> tuple[torch.Tensor, list[str]]:
    """A row for each method: strengths from 0 to 1."""
    original = photograph(name, size)
    pictures, captions = [], []
    for method in METHODS:
        for strength in DIAL:
            made = restyle(
                original, label, method=method, strength=strength, model=source, steps=steps, guidance=3.0
            )
            pictures.append(made.images[0])
            captions.append(f"{method} {strength:g}")
    return torch.stack(pictures), captions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="checkpoint (default: the bundled one)")
    parser.add_argument("--photographs", nargs="+", default=["astronaut", "camera", "rocket"])
    parser.add_argument("--only", nargs="+", choices=("dial", "styles"), default=("dial", "styles"))
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    args = parser.parse_args()
    source = source_of(args.model)
    if "dial" in args.only:
        write(args.out / "restyle-dial.png", *dials(source, "astronaut", "stained_glass", 128, args.steps))
    if "styles" in args.only:
        write(args.out / "restyle.png", *styles(source, args.photographs, args.size, args.steps))


def write(file: Path, pictures: torch.Tensor, captions: list[str]) -> None:
    """A sheet of rows of six."""
    write_png(file, grid(to_pictures(pictures), columns=6, captions=captions), overwrite=True)
    print(file, flush=True)


if __name__ == "__main__":
    main()
