"""How well restyling does: is it of the label, is it still the photograph? Three methods, one dial, photographs unseen.

    python benchmarks/restyle.py --data data

Photographs of scikit-image that no training picture was cut from are restyled at several strengths. Reported, means
over photographs and labels, for each method and strength:

    label       share of 64x64 windows that a CNN of real training pictures (benchmarks/evaluate.py) takes for the label
    light       correlation of luma, averaged over blocks of 8 pixels, with the photograph's
    outlines    correlation of the strength of luma's edges, averaged over blocks of 4 pixels, with the photograph's

"sdedit" is the plain baseline: a method is worth its cost where it keeps more of the photograph at as many right
labels.
The round trip picture -> noise -> picture of inversion is measured beside it: root mean square and largest error, in
units of [-1, 1] (a step of an 8-bit picture is 0.0078).
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluate import judge, train_classifier
from fastdiff.apps.inversion import descent, inversion, ladder
from fastdiff.apps.restyle import METHODS, restyle, scaled
from fastdiff.apps.source import Source, source_of
from fastdiff.images import to_tensor
from fastdiff.sampling import sample
from fastdiff.training.data import Batches, load_folder
from results import RESULTS, ROOT, environment, write_json

PHOTOGRAPHS = ("astronaut", "camera", "rocket")
LABELS = ("brick", "mondrian", "stained_glass", "tissue")
STRENGTHS = (0.3, 0.5, 0.7, 0.9)
WINDOW = 64
LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


def photograph(name: str, size: int) -> Tensor:
    """A photograph of scikit-image, its middle square: float32 [3, size, size] in [-1, 1]."""
    import numpy as np
    from skimage import data

    found = getattr(data, name)()
    found = np.repeat(found[..., None], 3, axis=2) if found.ndim == 2 else found[..., :3]
    side = min(found.shape[:2])
    top, left = (found.shape[0] - side) // 2, (found.shape[1] - side) // 2
    return scaled(to_tensor(np.ascontiguousarray(found[top : top + side, left : left + side])), size)


def windows(picture: Tensor) -> Tensor:
    """[3, S, S] -> [N, 3, 64, 64]: the windows in the corners and the middle."""
    last = picture.shape[-1] - WINDOW
    places = sorted({*itertools.product((0, last), repeat=2), (last // 2, last // 2)})
    return torch.stack([picture[:, i : i + WINDOW, j : j + WINDOW] for i, j in places])


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of all values; 0 where one is constant."""
    a, b = (v.double().flatten() - v.double().mean() for v in (a, b))
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm else 0.0


def light(picture: Tensor) -> Tensor:
    """Luma over blocks of 8 pixels."""
    return F.avg_pool2d((picture * LUMA).sum(0)[None, None], 8)


def outlines(picture: Tensor) -> Tensor:
    """How strong luma's edges are, over blocks of 4 pixels."""
    luma = (picture * LUMA).sum(0)[None, None]
    sobel = torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]])
    kernels = torch.stack([sobel, sobel.T])[:, None]
    edges = F.conv2d(F.pad(luma, (1, 1, 1, 1), mode="replicate"), kernels).norm(dim=1, keepdim=True)
    return F.avg_pool2d(edges, 4)


def restyled(source: Source, classifier: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each method and strength."""
    lines = []
    originals = {name: photograph(name, args.size) for name in args.photographs}
    for method, strength in itertools.product(METHODS, args.strengths):
        label, shade, edges, calls, began = [], [], [], [], time.perf_counter()
        for name, style in itertools.product(args.photographs, args.labels):
            made = restyle(
                originals[name], style, method=method, strength=strength, model=source, steps=args.steps,
                guidance=args.guidance,
            )  # fmt: skip
            picture = made.images[0]
            _, predicted = judge(classifier, windows(picture))
            label.append((predicted == source.labels.index(style)).float().mean().item())
            shade.append(correlation(light(picture), light(originals[name])))
            edges.append(correlation(outlines(picture), outlines(originals[name])))
            calls.append(made.model_calls)
        means = {"label": label, "light": shade, "outlines": edges}
        line = {"method": method, "strength": strength, "model_calls": max(calls)}
        line |= {key: round(sum(values) / len(values), 4) for key, values in means.items()}
        lines.append(line | {"seconds_each": round((time.perf_counter() - began) / len(label), 2)})
        print(line, flush=True)
    return lines


def round_trips(source: Source, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Errors of picture -> noise -> picture, by the corrections of each step, under the null class."""
    pictures = torch.stack([photograph(name, WINDOW) for name in args.photographs])
    conditioning = source.conditioning([None] * len(pictures))
    levels = ladder(source.schedule, args.inversion_steps)
    down = descent(levels, prediction=source.prediction)
    lines = []
    for turns in args.turns:
        up = inversion(levels, prediction=source.prediction, turns=turns)
        noise = sample(source, pictures, sampler=up, conditioning=conditioning)
        error = sample(source, noise, sampler=down, conditioning=conditioning) - pictures
        line = {
            "turns": turns, "calls_up": up.calls, "rms": float(f"{error.square().mean().sqrt():.2e}"),
            "largest": float(f"{error.abs().max():.2e}"), "noise_deviation": round(float(noise.std()), 3),
        }  # fmt: skip
        lines.append(line)
        print(line, flush=True)
    return lines


def draw(lines: list[dict[str, Any]], file: Path) -> None:
    """Right labels against outlines kept, a curve for each method, a point for each strength."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for panel, measure in zip(panels, ("outlines", "light")):
        for method, colour in zip(METHODS, ("#1f77b4", "#c8452f", "#8a8a8a")):
            points = [line for line in lines if line["method"] == method]
            x, y = ([point[key] for point in points] for key in (measure, "label"))
            panel.plot(x, y, "o-", color=colour, label=method, markersize=4)
            for point, i, j in zip(points, x, y):
                panel.annotate(
                    f"{point['strength']:g}", (i, j), (3, 3), textcoords="offset points", fontsize=7
                )
        panel.set_xlabel(f"{measure} kept (correlation)")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("windows of the right label")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of `fastdiff train --make-data`")
    parser.add_argument("--model", type=Path, help="checkpoint (default: the bundled one)")
    parser.add_argument("--photographs", nargs="+", default=PHOTOGRAPHS)
    parser.add_argument("--labels", nargs="+", default=LABELS)
    parser.add_argument("--strengths", nargs="+", type=float, default=STRENGTHS)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--turns", nargs="+", type=int, default=(0, 1, 3, 8))
    parser.add_argument("--inversion-steps", type=int, default=20)
    parser.add_argument("--classifier-steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS / "restyle.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "restyle-kept.png")
    args = parser.parse_args()
    source = source_of(args.model)
    folder = load_folder(args.data / "train", size=round(WINDOW * 1.125)).labelled()
    if folder.labels != source.labels:
        raise SystemExit(f"the data's classes {folder.labels} are not the model's {source.labels}")
    batches = Batches(folder, batch=64, crop=WINDOW, flip=True, seed=0)
    classifier = train_classifier(batches, len(folder.labels), steps=args.classifier_steps, seed=0)
    content = {
        **environment(), **source.identity(), "photographs": list(args.photographs), "labels": list(args.labels),
        "classifier": {"pictures": len(folder), "steps": args.classifier_steps},
        "size": args.size, "steps": args.steps, "guidance": args.guidance,
        "round_trip": round_trips(source, args),
    }  # fmt: skip
    content["results"] = restyled(source, classifier, args)
    write_json(content, args.out)
    draw(content["results"], args.plot)


if __name__ == "__main__":
    main()
