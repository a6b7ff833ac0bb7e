"""Judge a trained model on held-out data: class accuracy of its images, and their Frechet distance to real ones.

    python benchmarks/evaluate.py --data data [--model run/model.safetensors] [--steps 20] [--sampler dpmpp_2m]

A small CNN, which never sees a generated image, is trained on DATA/train. Reported are its accuracy on DATA/test, its
accuracy on images generated for known labels, and, in its penultimate features, the Frechet distance (Heusel et al.
2017) of generated images to the held-out ones. Beside it stand the distances that say what is small: one half of the
held-out images against the other half, and training crops against held-out ones, which is what a perfect generator of
the training distribution would get.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff import models
from fastdiff.training.data import Batches, load_folder
from fastdiff.training.sheet import sample_labels

ROOT = Path(__file__).resolve().parents[1]
FEATURES = 48


class Classifier(nn.Module):
    """Four strided convolutions, global average pooling, FEATURES features, one linear layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 96)
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(8, b), nn.SiLU())
                for a, b in itertools.pairwise(widths)
            )
        )
        self.features_of = nn.Linear(widths[-1], FEATURES)
        self.head = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        """x: [B, 3, 64, 64] in -1..1 -> float32 [B, FEATURES]."""
        return self.features_of(self.body(x).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.features(x)))


def train_classifier(batches: Batches, classes: int, *, steps: int, seed: int) -> Classifier:
    """A classifier of the training crops, with a little colour and noise augmentation."""
    torch.manual_seed(seed)
    model = Classifier(classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        x, label = batches(step)
        gain = 1 + 0.2 * (torch.rand(len(x), 1, 1, 1, generator=generator) - 0.5)
        x = x * gain + 0.03 * torch.randn(x.shape, generator=generator)
        F.cross_entropy(model(x), label, label_smoothing=0.05).backward()
        optimizer.step()
        optimizer.zero_grad()
        plan.step()
    return model.eval().requires_grad_(False)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) of two sets of features [N, FEATURES]."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The eigenvalues of A B are real and not negative, and the trace of its root is the sum of their roots.
    root = np.sqrt(np.maximum(np.linalg.eigvals(cov_a @ cov_b).real, 0)).sum()
    return round(float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b) - 2 * root), 4)


@torch.no_grad()
def judge(model: Classifier, x: Tensor) -> tuple[np.ndarray, Tensor]:
    """(features, predicted classes) of images [N, 3, 64, 64]."""
    features = torch.cat([model.features(part) for part in x.split(256)])
    return features.numpy(), model.head(F.silu(features)).argmax(1)


def accuracy(predicted: Tensor, label: Tensor, labels: tuple[str, ...]) -> dict[str, float]:
    """Share of right answers for each class, and their mean."""
    each = {name: (predicted[label == i] == i).float().mean().item() for i, name in enumerate(labels)}
    return {
        name: round(value, 4) for name, value in {"mean": float(np.mean([*each.values()])), **each}.items()
    }


def centre(pictures: Tensor, size: int) -> Tensor:
    """uint8 [N, 3, S, S] -> float32 [N, 3, size, size] in -1..1, the centre."""
    margin = (pictures.shape[-1] - size) // 2
    return pictures[..., margin : margin + size, margin : margin + size].float() / 127.5 - 1


def balanced(classes: Tensor, each: int, skip: int = 0) -> Tensor:
    """Rows of `each` pictures of every class, after the first `skip`."""
    return torch.cat([(classes == i).nonzero()[skip : skip + each, 0] for i in range(int(classes.max()) + 1)])


def evaluate(args: argparse.Namespace) -> dict:
    """Everything that is reported, as plain data."""
    model = models.load(args.model)
    size = model.config.image_size
    train, test = (
        load_folder(args.data / split, size=round(size * 1.125)).labelled() for split in ("train", "test")
    )
    if train.labels != model.labels or test.labels != model.labels:
        raise SystemExit(f"the data's classes {train.labels} are not the model's {model.labels}")
    began = time.perf_counter()
    batches = Batches(train, batch=64, crop=size, flip=True, seed=args.seed)
    judge_model = train_classifier(batches, len(train.labels), steps=args.classifier_steps, seed=args.seed)
    real_features, real_predicted = judge(judge_model, centre(test.pictures, size))
    each = min(args.each, int(test.classes.bincount().min()) // 2)
    label = torch.arange(len(model.labels)).repeat_interleave(each)
    trained = time.perf_counter()
    generated = torch.cat(
        [
            sample_labels(
                model, part, seed=args.seed + i, steps=args.steps, scale=args.guidance, sampler=args.sampler
            )
            for i, part in enumerate(label.split(64))
        ]
    )
    sampled = time.perf_counter()
    features, predicted = judge(judge_model, generated)
    first, second = balanced(test.classes, each), balanced(test.classes, each, skip=each)
    seen, _ = judge(judge_model, centre(train.pictures[balanced(train.classes, each)], size))
    return {
        "settings": {
            "sampler": args.sampler,
            "steps": args.steps,
            "guidance": args.guidance,
            "seed": args.seed,
        },
        "model": {k: v for k, v in model.training_note.items() if k in ("steps", "images", "seconds")},
        "images": {"held_out": len(test), "generated": len(label), "each_side_of_a_distance": len(first)},
        "accuracy_held_out": accuracy(real_predicted, test.classes, model.labels),
        "accuracy_generated": accuracy(predicted, label, model.labels),
        "frechet": {
            "generated_to_held_out": frechet(features, real_features[first]),
            "generated_to_training": frechet(features, seen),
            "training_to_held_out": frechet(seen, real_features[first]),
            "held_out_half_to_half": frechet(real_features[first], real_features[second]),
        },
        "seconds": {"classifier": round(trained - began), "sampling": round(sampled - trained)},
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "torch": str(torch.__version__),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder that `fastdiff train --make-data` wrote"
    )
    parser.add_argument("--model", type=Path, help="checkpoint (default: the bundled one)")
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--each", type=int, default=48, help="images a class on each side of a distance")
    parser.add_argument("--classifier-steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "evaluate.json")
    args = parser.parse_args()
    result = evaluate(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
