"""Train each example configuration of pictures briefly, and show what its model makes.

    python benchmarks/objectives.py [--steps 400] [--only blur,edm] [--write]

Each file of configs/examples is cut down to 16x16 pictures of two classes (brick, mondrian) and a network of 151
thousand weights; all see the same pictures. Written with --write: docs/images/objectives.png, four samples a class, a
row a configuration; benchmarks/results/objectives.json, the losses and, for cold diffusion, the PSNR of held-out
pictures before and after they are restored from a quarter of the severities.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import tempfile
from pathlib import Path

import numpy as np
import torch

from fastdiff import cold
from fastdiff.images import enlarged, grid, to_pictures, write_png
from fastdiff.models import TrainedUNet
from fastdiff.training import TrainConfig, Trainer, read_config
from fastdiff.training.data import Batches, load_folder
from fastdiff.training.make_dataset import make_class
from fastdiff.training.sheet import sample_labels

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("epsilon", "sample", "v", "flow", "edm", "continuous", "uniform_noise", "blur", "pixelate")
CLASSES = ("brick", "mondrian")
EACH = 4


def reduced(name: str, steps: int) -> TrainConfig:
    """An example at a size that a CPU trains in a minute."""
    network = {"channels": [24, 48], "blocks": [1, 2], "embed_dim": 64, "groups": 8, "patch": 1}
    return dataclasses.replace(
        read_config(ROOT / "configs" / "examples" / f"{name}.json"), steps=steps, cooldown=steps // 3, warmup=30,
        batch=16, micro=16, image_size=16, lr=2e-3, ema=0.97, precision="float32", model=network,
    )  # fmt: skip


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of pictures in [-1, 1], in dB."""
    return float(10 * torch.log10(4 / (a - b).square().mean()))


def restored(net: TrainedUNet, data: Path, count: int = 64) -> dict[str, float]:
    """PSNR of held-out pictures, corrupted a quarter of the way and restored by algorithm 2."""
    assert net.corruption is not None
    folder = load_folder(data, size=18)
    x0, label = Batches(folder, batch=count, crop=16, flip=False, seed=0)(0)
    start = net.corruption.T // 4
    x = net.corruption(x0, torch.full((count,), float(start)))
    made = cold.restore(net, x, corruption=net.corruption, start=start, conditioning={"label": label})
    return {"severity": start, "corrupted_dB": round(psnr(x, x0), 2), "restored_dB": round(psnr(made, x0), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", help="names of examples, separated by commas")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = tuple(args.only.split(",")) if args.only else NAMES
    label = torch.arange(len(CLASSES)).repeat_interleave(EACH)
    rows, results = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "test"):
            for name in CLASSES:
                make_class(Path(folder) / split / name, name, split=split, count=200, size=36, seed=0)
        for name in names:
            trainer = Trainer(reduced(name, args.steps), Path(folder) / "train")
            losses = [trainer.advance().loss for _ in range(args.steps)]
            net = trainer.averaged()
            rows.append(sample_labels(net, label, seed=1, steps=20))
            weights = sum(p.numel() for p in net.parameters())
            results[name] = {
                "first_20": round(float(np.mean(losses[:20])), 4),
                "last_50": round(float(np.mean(losses[-50:])), 4),
                "weights": weights,
            }
            if net.corruption is not None:
                results[name] |= restored(net, Path(folder) / "test")
            print(name, results[name], flush=True)
    if args.write:
        about = {"torch": str(torch.__version__), "machine": platform.machine(), "steps": args.steps}
        path = ROOT / "benchmarks" / "results" / "objectives.json"
        path.write_text(json.dumps({**about, "results": results}, indent=2) + "\n", encoding="utf-8")
        captions = [f"{name}, {CLASSES[i]}" for name in names for i in label.tolist()]
        pictures = enlarged(to_pictures(torch.cat(rows)), 5)
        sheet = grid(pictures, columns=len(label), captions=captions)
        write_png(ROOT / "docs" / "images" / "objectives.png", sheet, overwrite=True)


if __name__ == "__main__":
    main()
