"""A sheet of what editing makes of photographs: image to image, a hole painted anew, more around a picture.

    python benchmarks/edits.py [--model run/model.safetensors] [--out docs/images/edit.png]

The cup and the cat are photographs that the bundled model was trained on: this shows the commands, not how the model
fares with pictures that it does not know (benchmarks/restoration.py does).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from fastdiff import images
from fastdiff.apps.edit import edit
from fastdiff.apps.inpaint import extended, inpaint
from fastdiff.apps.source import Source, source_of
from results import ROOT

ZOOM = 2


def photograph(name: str, box: tuple[int, int, int, int], side: int) -> Tensor:
    """A square crop (left, top, right, bottom) of a photograph in scikit-image, scaled: [3, side, side]."""
    crop = Image.fromarray(getattr(data, name)()).crop(box)
    return images.to_tensor(np.asarray(crop.resize((side, side), Image.Resampling.LANCZOS)))


def cells(source: Source) -> dict[str, Tensor]:
    """Captions and pictures, [3, 96, 96]."""
    cup, cat = photograph("coffee", (150, 0, 550, 400), 96), photograph("chelsea", (120, 0, 400, 280), 96)
    hole = torch.zeros(96, 96)
    hole[36:66, 36:66] = 1
    around, new = extended(photograph("chelsea", (120, 0, 400, 280), 64), 16, 16, 16, 16)
    made = {"a hole": torch.where(hole > 0, -1.0, cup)}
    made["coffee"] = inpaint(cup, hole, "coffee", model=source).images[0]
    made["coffee, resampled"] = inpaint(cup, hole, "coffee", resample=3, model=source).images[0]
    made["any, resampled"] = inpaint(cup, hole, method="sample", resample=3, model=source).images[0]
    made["restored"] = inpaint(cup, hole, method="restore", model=source).images[0]
    made["more cat"] = inpaint(around, new, "cat", resample=2, model=source).images[0]
    made["a cat"] = cat
    for strength in (0.2, 0.4, 0.6, 0.8, 1.0):
        made[f"coffee {strength}"] = edit(cat, "coffee", strength=strength, model=source).images[0]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a checkpoint (default: the bundled one)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "edit.png")
    args = parser.parse_args()
    made = cells(source_of(args.model))
    pictures = images.enlarged(images.to_pictures(torch.stack([*made.values()])), ZOOM)
    images.write_png(args.out, images.grid(pictures, columns=6, captions=[*made]), overwrite=True)


if __name__ == "__main__":
    main()
