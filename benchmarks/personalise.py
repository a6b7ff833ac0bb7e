"""Personalisation, measured: eight crops of a photograph that no training has seen, and what an adapter makes of them.

    python benchmarks/personalise.py      trains (minutes), samples, measures; writes the results and a picture

Crops for training and crops held out are drawn from scikit-image's astronaut at other places and scales; they overlap,
as several photographs of one subject do. The distance of a picture to the held-out crops is that to the nearest of
them, in colour (an 8x8 thumbnail) and in shape (histograms of oriented gradients), each scaled to unit length.
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
from fastdiff.models.lora import Adapter, adapted, load_adapter
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


def descriptors(pictures: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """uint8 [N, 64, 64, 3] -> name -> [N, D], of unit length on average."""
    shape = np.stack([hog(picture, 8, (8, 8), (2, 2), channel_axis=-1) for picture in pictures])
    small = [
        np.asarray(Image.fromarray(picture).resize((8, 8), Image.Resampling.BOX)) for picture in pictures
    ]
    colour = np.stack(small).reshape(len(pictures), -1) / 255.0
    parts = {"colour": colour, "shape": shape}
    return {name: part / np.sqrt((part**2).sum(1).mean()) for name, part in parts.items()}


def nearest(made: np.ndarray[Any, Any], known: np.ndarray[Any, Any]) -> dict[str, float]:
    """Name of a descriptor -> the mean over `made` of the distance to the nearest of `known`."""
    told = {}
    for name, both in descriptors(np.concatenate([made, known])).items():
        a, b = both[: len(made)], both[len(made) :]
        told[name] = round(float(np.linalg.norm(a[:, None] - b[None], axis=2).min(1).mean()), 3)
    return told


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
    parser.add_argument("--measure", action="store_true", help="only measure the adapter in --work")
    args = parser.parse_args()
    base = models.load()
    file = args.work / f"{LABEL}.safetensors"
    if args.measure:
        adapter, seconds = load_adapter(file), json.loads(args.out.read_text())["seconds"]
    else:
        adapter, seconds = trained(args, base, file)
    tuned = adapted(base, adapter)
    results, sheet = measured(base, tuned)
    results = {
        "command": "python benchmarks/personalise.py",
        "steps": args.steps, "rank": args.rank, "lr": args.lr, "prior": args.prior, "pictures": TRAIN,
        "seconds": seconds, "adapter_bytes": file.stat().st_size, "base": adapter.base, **results,
        "torch": str(torch.__version__),
    }  # fmt: skip
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    write_png(args.picture, sheet, overwrite=True)
    print(json.dumps(results, indent=2))


def trained(
    args: argparse.Namespace, base: models.TrainedUNet, file: Path
) -> tuple[Adapter, dict[str, float]]:
    """(the adapter, seconds that it took)."""
    own = crops(TRAIN, 1, 160)
    (args.work / "pictures").mkdir(parents=True)
    for i, crop in enumerate(own):
        Image.fromarray(crop).save(args.work / "pictures" / f"{i}.png")
    began, spent = time.perf_counter(), time.process_time()
    adapter = personalise(
        args.work / "pictures", LABEL, file, base=base, steps=args.steps,
        rank=args.rank, lr=args.lr, prior=args.prior,
        on_step=lambda p: p.step % 20 or print(f"{p.step:4d} {p.loss:.4f} {p.seconds:.0f} s", flush=True),
    )  # fmt: skip
    wall, processor = time.perf_counter() - began, time.process_time() - spent
    return adapter, {"wall": round(wall, 1), "processor": round(processor, 1)}


def measured(
    base: models.TrainedUNet, tuned: models.TrainedUNet
) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """(distances, a sheet: training crops, the base without a label, two rows with the adapter)."""
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
        "distance_to_held_out": {name: nearest(p, held_out) for name, p in made.items()},
        "distance_to_training": {name: nearest(p, training) for name, p in made.items()},
        "change_of_other_labels": round((before - after).square().mean().sqrt().item(), 3),
    }
    rows = [
        training,
        made["without: no label"][:8],
        made["with the adapter"][:8],
        made["with the adapter"][8:16],
    ]
    return results, grid(np.concatenate(rows), columns=8, gap=4)


if __name__ == "__main__":
    main()
