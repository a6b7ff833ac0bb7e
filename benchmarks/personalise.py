"""Personalisation, measured: eight crops of a photograph that no training has seen, and what an adapter makes of them.

    python benchmarks/personalise.py      trains (minutes), samples, measures; writes the results and a picture

Crops for training and crops held out are drawn from scikit-image's astronaut at other places and scales; they overlap,
as several photographs of one subject do. The distance of a picture to the held-out crops is that to the nearest of
them, in a descriptor of shape and colour: histograms of oriented gradients beside the 8x8 thumbnail.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage import data
from skimage.feature import hog

from fastdiff import models
from fastdiff.images import grid, to_pictures, write_png
from fastdiff.models.lora import adapted
from fastdiff.training.lora import personalise
from fastdiff.training.sheet import sample_labels

ROOT = Path(__file__).resolve().parents[1]
LABEL = "astronaut"
TRAIN, HELD_OUT, MADE, STEPS = 8, 48, 16, 16
SIDES = (230, 330)
"""Pixels of a crop, before it is scaled down."""


def crops(count: int, seed: int, size: int) -> np.ndarray[Any, Any]:
    """uint8 [count, size, size, 3], squares around the astronaut's head and shoulders."""
    photo = Image.fromarray(data.astronaut())
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        side = int(rng.integers(*SIDES))
        left = int(rng.integers(max(0, 225 - side + 90), min(512 - side, 225 - 90)))
        top = int(rng.integers(0, min(512 - side, 60)))
        box = (left, top, left + side, top + side)
        made.append(np.asarray(photo.crop(box).resize((size, size), Image.Resampling.LANCZOS)))
    return np.stack(made)


def descriptor(pictures: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """uint8 [N, 64, 64, 3] -> [N, D]: gradients and colours, each part of unit size on average."""
    shape = [hog(picture, 8, (8, 8), (2, 2), channel_axis=-1) for picture in pictures]
    small = [
        np.asarray(Image.fromarray(picture).resize((8, 8), Image.Resampling.BOX)) for picture in pictures
    ]
    colour = np.stack(small).reshape(len(pictures), -1) / 255.0
    parts = (np.stack(shape), colour)
    return np.concatenate([part / np.sqrt((part**2).sum(1).mean()) for part in parts], axis=1)


def nearest(made: np.ndarray[Any, Any], known: np.ndarray[Any, Any]) -> float:
    """The mean over `made` of the distance to the nearest of `known`."""
    both = descriptor(np.concatenate([made, known]))
    a, b = both[: len(made)], both[len(made) :]
    return float(np.linalg.norm(a[:, None] - b[None], axis=2).min(1).mean())


def main() -> None:
    """Train, sample, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--prior", type=int, default=8)
    parser.add_argument(
        "--work", type=Path, default=Path("personalise"), help="folder for crops and adapter (new)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "personalise.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "personalise.png")
    args = parser.parse_args()
    base = models.load()
    own = crops(TRAIN, 1, 160)
    (args.work / "pictures").mkdir(parents=True)
    for i, crop in enumerate(own):
        Image.fromarray(crop).save(args.work / "pictures" / f"{i}.png")
    began, spent = time.perf_counter(), time.process_time()
    adapter = personalise(
        args.work / "pictures", LABEL, args.work / f"{LABEL}.safetensors", base=base, steps=args.steps,
        rank=args.rank, lr=args.lr, prior=args.prior,
        on_step=lambda p: p.step % 20 or print(f"{p.step:4d} {p.loss:.4f} {p.seconds:.0f} s", flush=True),
    )  # fmt: skip
    wall, cpu = time.perf_counter() - began, time.process_time() - spent
    tuned = adapted(base, adapter)
    size = base.config.image_size
    training, held_out = crops(TRAIN, 1, size), crops(HELD_OUT, 2, size)
    label = torch.full((MADE,), tuned.config.num_classes - 1)
    made = {
        "with the adapter": to_pictures(sample_labels(tuned, label, seed=5, steps=STEPS)),
        "without: no label": to_pictures(
            sample_labels(base, torch.full((MADE,), base.config.num_classes), seed=5, steps=STEPS)
        ),
        "without: its own labels": to_pictures(
            sample_labels(base, torch.arange(MADE) % base.config.num_classes, seed=5, steps=STEPS)
        ),
        "training crops themselves": training,
    }
    kept = torch.arange(base.config.num_classes)
    before, after = (sample_labels(net, kept, seed=9, steps=STEPS) for net in (base, tuned))
    results = {
        "command": "python benchmarks/personalise.py",
        "steps": args.steps, "rank": args.rank, "lr": args.lr, "prior": args.prior, "pictures": TRAIN,
        "seconds": {"wall": round(wall, 1), "processor": round(cpu, 1)},
        "adapter_bytes": (args.work / f"{LABEL}.safetensors").stat().st_size,
        "base": adapter.base,
        "distance_to_held_out": {name: round(nearest(p, held_out), 3) for name, p in made.items()},
        "distance_to_training": {name: round(nearest(p, training), 3) for name, p in made.items()},
        "change_of_other_labels": round((before - after).square().mean().sqrt().item(), 3),
        "torch": str(torch.__version__),
    }  # fmt: skip
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    rows = [
        training,
        made["without: no label"][:8],
        made["with the adapter"][:8],
        made["with the adapter"][8:16],
    ]
    write_png(args.picture, grid(np.concatenate(rows), columns=8, gap=4), overwrite=True)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
