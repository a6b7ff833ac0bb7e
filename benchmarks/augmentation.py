"""What augmentation does to a small classifier of handwritten digits that has few of them to learn from.

    python benchmarks/augmentation.py [--each 2 5 10 20] [--seeds 3]

scikit-learn's digits (8x8, enlarged to 16x16) are split once into 1000 held-out ones and a pool. For each seed, N
digits a class are drawn from the pool: those are all that the classifier and, in "diffusion", the diffusion model see.

    none        the digits as they are
    standard    shifted by up to a pixel of the original each way, and noise
    diffusion   beside each digit, COPIES of it by SDEdit towards its own label, from a diffusion model that
                `fastdiff.training.train` made of the same digits
    both        diffusion, then standard
    pool        as both, but the diffusion model also saw the rest of the pool, without labels

Each arm trains the same CNN for the same number of steps. Reported: accuracy on the held-out digits, mean and standard
deviation over the seeds, whatever it is. docs/augment.md has the table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff import models
from fastdiff.apps.augment import Augmentation, seed_of
from fastdiff.images import to_pictures, write_png
from fastdiff.training import TrainConfig, train
from fastdiff.training.data import UNLABELLED_FOLDER
from results import RESULTS, environment, write_json

SIZE, CLASSES, HELD_OUT = 16, 10, 1000
ARMS = ("none", "standard", "diffusion", "both", "pool")
STRENGTH, COPIES, STEPS = (0.3, 0.7), 8, 10
MODEL = {"channels": [16, 32], "blocks": [1, 1], "embed_dim": 32, "time_dim": 32, "groups": 4, "patch": 2}


def digits() -> tuple[Tensor, Tensor]:
    """(float32 [1797, 3, SIZE, SIZE] in [-1, 1], int64 [1797])."""
    from sklearn.datasets import load_digits

    found = load_digits()
    small = torch.from_numpy(found.images).float()[:, None] / 8 - 1
    large = F.interpolate(small, (SIZE, SIZE), mode="bilinear", align_corners=False).clamp(-1, 1)
    return large.repeat(1, 3, 1, 1), torch.from_numpy(found.target).long()


def few(kind: Tensor, pool: Tensor, each: int, seed: int) -> Tensor:
    """Rows of `each` digits a class from the pool."""
    order = pool[torch.from_numpy(np.random.default_rng([seed, 7]).permutation(len(pool)))]
    return torch.cat([order[kind[order] == i][:each] for i in range(CLASSES)])


def diffusion_model(x: Tensor, kind: Tensor, rest: Tensor, *, steps: int, seed: int) -> models.TrainedUNet:
    """A model of the digits x with labels and, without, of the rest."""
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "data"
        names = [f"{i}" for i in kind.tolist()] + [UNLABELLED_FOLDER] * len(rest)
        for i, (name, picture) in enumerate(zip(names, to_pictures(torch.cat([x, rest])))):
            write_png(data / name / f"{i:04d}.png", picture)
        config = TrainConfig(
            steps=steps, batch=32, micro=16, image_size=SIZE, margin=1.0, flip=False, lr=2e-3, warmup=50,
            cooldown=steps // 2, ema=0.99, snr_offset=1.0, precision="float32", seed=seed, save_every=steps,
            sheet_every=steps, model=MODEL,
        )  # fmt: skip
        train(config, data, Path(place) / "run")
        return models.load(Path(place) / "run" / "model.safetensors")


def augmented(net: models.TrainedUNet, x: Tensor, kind: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """COPIES others of each digit."""
    augmentation = Augmentation(model=net, strength=STRENGTH, steps=STEPS)
    rows = torch.arange(len(x)).repeat(COPIES)
    seeds = [seed_of(seed, i) for i in range(len(rows))]
    taken = torch.tensor([augmentation.steps_of(value) for value in seeds])
    made = torch.empty(len(rows), *x.shape[1:])
    for steps in taken.unique().tolist():
        for part in (taken == steps).nonzero()[:, 0].split(256):
            labels = [str(int(kind[row])) for row in rows[part]]
            made[part] = augmentation.many(
                x[rows[part]], labels, [seeds[i] for i in part.tolist()], steps=steps
            )
    return made, kind[rows]


def standard(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture shifted by up to 2 of its 16 pixels, and noise."""
    padded = F.pad(x, (2, 2, 2, 2), value=-1.0)
    places = torch.randint(0, 5, (len(x), 2), generator=generator).tolist()
    moved = torch.stack([p[:, i : i + SIZE, j : j + SIZE] for p, (i, j) in zip(padded, places)])
    return moved + 0.1 * torch.randn(x.shape, generator=generator)


def classifier(x: Tensor, kind: Tensor, *, shift: bool, steps: int, seed: int) -> nn.Module:
    """A CNN trained on these pictures; with `shift`, by standard augmentation of each batch."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2),
        nn.Conv2d(24, 48, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(48 * 16, CLASSES),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (64,), generator=generator)
        batch = standard(x[rows], generator) if shift else x[rows]
        F.cross_entropy(net(batch[:, :1]), kind[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        plan.step()
    return net.eval()


def run(each: int, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Accuracy of every arm with `each` digits a class."""
    x, kind = digits()
    order = torch.from_numpy(np.random.default_rng(12345).permutation(len(x)))
    test, pool = order[:HELD_OUT], order[HELD_OUT:]
    rows = few(kind, pool, each, seed)
    rest = pool[~torch.isin(pool, rows)]
    own = (x[rows], kind[rows])
    sets = {"none": (own, False), "standard": (own, True)}
    for arms, unlabelled, steps in (
        (("diffusion", "both"), rest[:0], args.steps),
        (("pool",), rest, 3 * args.steps // 2),
    ):
        if not set(arms) & set(args.arms):
            continue
        net = diffusion_model(*own, x[unlabelled], steps=steps, seed=seed)
        more = augmented(net, *own, seed)
        # The digits themselves count as much as all their copies.
        known = tuple(torch.cat([a.repeat(COPIES, *[1] * (a.ndim - 1)), b]) for a, b in zip(own, more))
        sets |= {arm: (known, arm != "diffusion") for arm in arms}
    found = {}
    for arm in args.arms:
        (pictures, kinds), shift = sets[arm]
        net = classifier(pictures, kinds, shift=shift, steps=args.classifier_steps, seed=seed)
        with torch.no_grad():
            found[arm] = (net(x[test, :1]).argmax(1) == kind[test]).float().mean().item()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--each", type=int, nargs="+", default=[2, 5, 10, 20], help="digits a class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--steps", type=int, default=400, help="training steps of a diffusion model")
    parser.add_argument("--classifier-steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS / "augmentation.json")
    args = parser.parse_args()
    began, rows = time.perf_counter(), []
    for each in args.each:
        runs = [run(each, seed, args) for seed in range(args.seeds)]
        arms = {arm: [round(found[arm], 4) for found in runs] for arm in args.arms}
        summary = {
            arm: {
                "mean": round(statistics.mean(v), 4),
                "sd": round(statistics.stdev(v), 4) if len(v) > 1 else 0.0,
            }
            for arm, v in arms.items()
        }
        rows.append({"each": each, "accuracy": summary, "runs": arms})
        print(each, *(f"{arm} {s['mean']:.3f} ± {s['sd']:.3f}" for arm, s in summary.items()), flush=True)
        content = {
            **environment(), "held_out": HELD_OUT, "seeds": args.seeds, "strength": STRENGTH, "copies": COPIES,
            "sampling_steps": STEPS, "diffusion_steps": args.steps, "classifier_steps": args.classifier_steps,
            "seconds": round(time.perf_counter() - began), "results": rows,
        }  # fmt: skip
        write_json(content, args.out)


if __name__ == "__main__":
    main()
