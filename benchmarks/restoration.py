"""Restoring photographs that the model never saw, measured against plain methods: PSNR and SSIM.

    python benchmarks/restoration.py [--model run/model.safetensors] [--images docs/images] [--docs docs/edit.md]

The pictures are 128x128 crops, at their own scale, of scikit-image's astronaut, camera (grey) and rocket, of which no
pixel was trained on. Denoising: white noise, saved to 8 bits as a camera would; every method is told the noise.
Inpainting: PSNR over the missing pixels alone, SSIM of the whole. Super-resolution: from the mean over squares of
pixels. Each plain method that has a strength is given the best of several for each picture, which nobody could choose
without the original; fastdiff has its defaults throughout. Writes benchmarks/results/restoration.json.
Needs scikit-image and PyWavelets; OpenCV (opencv-python-headless) is measured where it is installed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage import data, filters, restoration
from skimage.metrics import structural_similarity

from fastdiff import images
from fastdiff.apps.denoise import denoise
from fastdiff.apps.inpaint import inpaint
from fastdiff.apps.source import Source, source_of
from fastdiff.apps.upscale import upscale
from results import RESULTS, environment, write_json

Array = NDArray[np.float64]
CROPS = {"astronaut": (60, 160), "camera": (90, 180), "rocket": (180, 260)}  # top, left
SIDE = 128
NOISES = (10, 25, 50)
FACTORS = (2, 4)
TASKS = ("denoising", "inpainting", "super-resolution")


def photographs() -> dict[str, Array]:
    """Crops [H, W, 3] in 0..1; camera has three equal channels."""
    found = {}
    for name, (top, left) in CROPS.items():
        whole = getattr(data, name)()
        crop = whole[top : top + SIDE, left : left + SIDE] / 255.0
        found[name] = crop if crop.ndim == 3 else np.repeat(crop[..., None], 3, axis=2)
    return found


def holes(seed: int = 1) -> dict[str, NDArray[np.bool_]]:
    """Masks [H, W], True where a pixel is missing."""
    rng = np.random.default_rng(seed)

    def drawn(paint: Callable[[ImageDraw.ImageDraw], None]) -> NDArray[np.bool_]:
        sheet = Image.new("L", (SIDE, SIDE))
        paint(ImageDraw.Draw(sheet))
        return np.asarray(sheet) > 127

    def scratches(draw: ImageDraw.ImageDraw) -> None:
        for _ in range(12):
            draw.line([*map(int, rng.integers(0, SIDE, 4))], fill=255, width=int(rng.integers(1, 4)))

    def text(draw: ImageDraw.ImageDraw) -> None:
        for line in range(5):
            draw.text((3, 4 + 25 * line), "fastdiff sampling", fill=255, font=ImageFont.load_default(14))

    def blocks(draw: ImageDraw.ImageDraw) -> None:
        for _ in range(6):
            x, y = map(int, rng.integers(8, SIDE - 24, 2))
            draw.rectangle((x, y, x + 15, y + 15), fill=255)

    return {
        "random 50 %": rng.random((SIDE, SIDE)) < 0.5,
        "random 80 %": rng.random((SIDE, SIDE)) < 0.8,
        "scratches": drawn(scratches),
        "text": drawn(text),
        "blocks": drawn(blocks),
    }


def psnr(made: Array, truth: Array, where: NDArray[np.bool_] | None = None) -> float:
    """Over all pixels, or those where `where` is True."""
    squares = np.square(made - truth)
    return float(-10 * np.log10((squares if where is None else squares[where]).mean()))


def scores(made: Array, truth: Array, where: NDArray[np.bool_] | None = None) -> dict[str, float]:
    """PSNR and SSIM of a picture rounded to 8 bits."""
    made = np.round(made.clip(0, 1) * 255) / 255
    ssim = structural_similarity(made, truth, channel_axis=-1, data_range=1.0)
    return {"psnr": round(psnr(made, truth, where), 2), "ssim": round(float(ssim), 4)}


def best(candidates: Iterable[Array], truth: Array) -> Array:
    """The one of highest PSNR."""
    return max(candidates, key=lambda made: psnr(made, truth))


def to_model(picture: Array) -> torch.Tensor:
    """[H, W, 3] in 0..1 -> [3, H, W] in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).float() * 2 - 1


def from_model(made: torch.Tensor) -> Array:
    """[1, 3, H, W] in -1..1 -> [H, W, 3] in 0..1."""
    return (made[0].permute(1, 2, 0).double().numpy() + 1) / 2


Table = dict[str, Array]


def denoised(noisy: Array, truth: Array, noise: float, source: Source) -> Table:
    """Every method on one noisy picture; grey ones are grey for the plain methods too."""
    grey = bool((noisy == noisy[..., :1]).all())
    seen, aim = (noisy[..., 0], truth[..., 0]) if grey else (noisy, truth)
    axis = None if grey else -1
    sigma = noise / 255

    def coloured(made: Array) -> Array:
        return np.repeat(made[..., None], 3, axis=2) if grey else made

    def wavelets() -> Iterable[Array]:
        for method in ("BayesShrink", "VisuShrink"):
            for part in (0.5, 1.0):
                strength = None if method == "BayesShrink" else part * sigma
                yield restoration.denoise_wavelet(
                    seen, sigma=strength, method=method, convert2ycbcr=not grey, channel_axis=axis,
                    rescale_sigma=True,
                )  # fmt: skip

    blurs = (filters.gaussian(seen, s, channel_axis=axis) for s in (0.5, 0.7, 0.9, 1.2, 1.6, 2.2))
    flats = (
        restoration.denoise_tv_chambolle(seen, w * sigma, channel_axis=axis)
        for w in (0.4, 0.7, 1.0, 1.4, 2.0)
    )
    means = (
        restoration.denoise_nl_means(
            seen, patch_size=5, patch_distance=6, h=h * sigma, sigma=sigma, fast_mode=True, channel_axis=axis
        )
        for h in (0.5, 0.7, 0.9, 1.1)
    )
    picture = to_model(noisy)
    return {
        "noisy": noisy,
        "Gaussian filter": coloured(best(blurs, aim)),
        "total variation": coloured(best(flats, aim)),
        "wavelets": coloured(best(wavelets(), aim)),
        "non-local means": coloured(best(means, aim)),
        "fastdiff": from_model(denoise(picture, noise=noise, model=source).images),
        "fastdiff, 8 looks": from_model(denoise(picture, noise=noise, average=8, model=source).images),
        "fastdiff, noise estimated": from_model(denoise(picture, model=source).images),
    }


def mended(truth: Array, missing: NDArray[np.bool_], source: Source) -> Table:
    """Every method on one picture with holes."""
    damaged = truth.copy()
    damaged[missing] = 0.0
    table = {"biharmonic": restoration.inpaint_biharmonic(damaged, missing, channel_axis=-1)}
    try:
        cv2 = importlib.import_module("cv2")
    except ModuleNotFoundError:
        pass
    else:
        eight = np.round(damaged * 255).astype(np.uint8)
        for name, flag in (("Telea", cv2.INPAINT_TELEA), ("Navier-Stokes", cv2.INPAINT_NS)):
            table[f"OpenCV {name}"] = cv2.inpaint(eight, missing.astype(np.uint8), 3, flag) / 255.0
    picture, mask = to_model(damaged), torch.from_numpy(missing).float()
    for name, how in {
        "fastdiff, restore": {"method": "restore"},
        "fastdiff, restore, 4 looks": {"method": "restore", "average": 4},
        "fastdiff, sample": {"method": "sample"},
    }.items():
        table[name] = from_model(inpaint(picture, mask, model=source, **how).images)
    return {"damaged": damaged, **table}


def enlarged(truth: Array, factor: int, source: Source) -> Table:
    """Every method on one picture that was made smaller."""
    small = truth.reshape(SIDE // factor, factor, SIDE // factor, factor, 3).mean(axis=(1, 3))

    def resized(kind: Image.Resampling) -> Array:
        channels = [Image.fromarray(small[..., i].astype(np.float32)) for i in range(3)]
        return np.stack([np.asarray(c.resize((SIDE, SIDE), kind)) for c in channels], axis=2).astype(float)

    picture = to_model(small)
    return {
        "repeated pixels": resized(Image.Resampling.NEAREST),
        "bicubic": resized(Image.Resampling.BICUBIC),
        "Lanczos": resized(Image.Resampling.LANCZOS),
        "fastdiff, restore": from_model(upscale(picture, factor=factor, model=source).images),
        "fastdiff, sample": from_model(upscale(picture, factor=factor, method="sample", model=source).images),
    }


def measured(source: Source) -> tuple[dict[str, Any], dict[str, tuple[Array, Table]]]:
    """Scores by task, case and method, each photograph's and their mean; and pictures of one case of each task."""
    photos, missing, rng = photographs(), holes(), np.random.default_rng(0)
    found: dict[str, Any] = {}
    shown: dict[str, tuple[Array, Table]] = {}

    def note(task: str, case: str, name: str, table: Table, where: NDArray[np.bool_] | None = None) -> None:
        for method, made in table.items():
            entry = found.setdefault(task, {}).setdefault(case, {}).setdefault(method, {})
            entry[name] = scores(made, photos[name], where)

    for name, photo in photos.items():
        for noise in NOISES:
            drawn = rng.normal(size=photo.shape) * noise / 255
            grey = bool((photo == photo[..., :1]).all())
            noisy = np.round((photo + (drawn[..., :1] if grey else drawn)).clip(0, 1) * 255) / 255
            table = denoised(noisy, photo, noise, source)
            note("denoising", f"noise {noise}", name, table)
            if noise == 25:
                shown[f"denoising-{name}"] = (photo, table)
        for case, mask in missing.items():
            table = mended(photo, mask, source)
            note("inpainting", case, name, table, mask)
            if case == "scratches":
                shown[f"inpainting-{name}"] = (photo, table)
        for factor in FACTORS:
            table = enlarged(photo, factor, source)
            note("super-resolution", f"x{factor}", name, table)
            if factor == 4:
                shown[f"super-resolution-{name}"] = (photo, table)
    for cases in found.values():
        for methods in cases.values():
            for entry in methods.values():
                entry["mean"] = {
                    what: round(float(np.mean([entry[name][what] for name in photos])), digits)
                    for what, digits in (("psnr", 2), ("ssim", 4))
                }
    return found, shown


def draw(shown: dict[str, tuple[Array, Table]], folder: Path) -> None:
    """One sheet a task: a row a photograph, a column a method."""
    for task in TASKS:
        rows = [entry for key, entry in shown.items() if key.rsplit("-", 1)[0] == task]
        names = [*rows[0][1], "original"]
        cells = [picture for truth, table in rows for picture in (*table.values(), truth)]
        eight = np.stack([np.round(cell.clip(0, 1) * 255).astype(np.uint8) for cell in cells])
        sheet = images.grid(eight, columns=len(names), captions=names * len(rows))
        images.write_png(folder / f"restore-{task}.png", sheet, overwrite=True)


MARKS = ("<!-- measured by benchmarks/restoration.py -->", "<!-- end -->")


def tables(found: dict[str, Any]) -> str:
    """Markdown: a table a task, a row a method, mean PSNR / SSIM over the photographs, the best PSNR in bold."""
    lines: list[str] = []
    for task, cases in found.items():
        lines += ["", f"| {task} | {' | '.join(cases)} |", "|---" * (len(cases) + 1) + "|"]
        methods = list(dict.fromkeys(method for entry in cases.values() for method in entry))
        top = {
            case: max(entry["mean"]["psnr"] for entry in methods.values()) for case, methods in cases.items()
        }
        for method in methods:
            cells = []
            for case, entry in cases.items():
                mean = entry[method]["mean"]
                cell = f"{mean['psnr']:.2f}"
                cells.append(f"{f'**{cell}**' if mean['psnr'] == top[case] else cell} / {mean['ssim']:.3f}")
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines).strip()


def document(path: Path, found: dict[str, Any]) -> None:
    """Puts the tables between the marks in a page."""
    before, rest = path.read_text().split(MARKS[0])
    after = rest.split(MARKS[1], 1)[1]
    path.write_text(f"{before}{MARKS[0]}\n\n{tables(found)}\n\n{MARKS[1]}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a checkpoint (default: the bundled one)")
    parser.add_argument("--out", type=Path, default=RESULTS / "restoration.json")
    parser.add_argument("--images", type=Path, help="also write sheets of pictures to this folder")
    parser.add_argument("--docs", type=Path, help="also put the tables in this page, between its marks")
    parser.add_argument(
        "--again", action="store_true", help="measure nothing: write the tables of --out to --docs"
    )
    args = parser.parse_args()
    if args.again:
        known = json.loads(args.out.read_text())
        document(args.docs, {task: known[task] for task in TASKS})
        return
    began = time.perf_counter()
    source = source_of(args.model)
    found, shown = measured(source)
    write_json(
        {**environment(), **source.identity(), "seconds": round(time.perf_counter() - began), **found},
        args.out,
    )
    if args.images:
        draw(shown, args.images)
    if args.docs:
        document(args.docs, found)
    for task, cases in found.items():
        for case, methods in cases.items():
            means = ", ".join(f"{name} {entry['mean']['psnr']:.2f}" for name, entry in methods.items())
            print(f"{task}, {case}: {means}")


if __name__ == "__main__":
    main()
