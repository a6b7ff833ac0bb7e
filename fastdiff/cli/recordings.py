"""fastdiff generate, for checkpoints of sounds and clips: WAV, GIF and MP4 files."""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastdiff.apps.timed import Timed, prepare
from fastdiff.apps.work import Job, Made
from fastdiff.clips import ffmpeg, write_gif, write_mp4
from fastdiff.files import check_writable
from fastdiff.models.checkpoint import TrainedUNet
from fastdiff.sounds import write_wav

ENDINGS = {1: (".wav",), 3: (".gif", ".mp4")}
KINDS = {1: "sound", 3: "clip"}
NOT_FOR_THESE = (
    "show_steps", "recipe", "window", "overlap", "to_label", "to_seed", "frames", "compare", "compare_steps", "like",
    "watermark",
)  # fmt: skip
"""Options of fastdiff generate that belong to pictures."""


@dataclass(frozen=True)
class Recordings:
    """The files a job will write: one, or a folder of single files. Raises before any work if one could not be."""

    target: Path
    job: Job
    zoom: int = 1
    overwrite: bool = False
    files: tuple[Path, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.zoom <= 8:
            raise ValueError(f"--zoom must be from 1 to 8, got {self.zoom}")
        object.__setattr__(self, "files", self._names())
        if any(file.suffix.lower() == ".mp4" for file in self.files):
            ffmpeg()
        for file in self.files:
            check_writable(file, overwrite=self.overwrite)

    @property
    def source(self) -> Timed:
        """The model."""
        assert isinstance(self.job.work.source, Timed)
        return self.job.work.source

    def write(self, made: Made) -> list[Path]:
        """Write everything and return the files written."""
        rate = self.source.rate
        for i, file in enumerate(self.files):
            recipe = made.recipe_of(i)
            if file.suffix.lower() == ".wav":
                write_wav(file, made.images[i], rate=rate, recipe=recipe, overwrite=self.overwrite)
            elif file.suffix.lower() == ".gif":
                write_gif(
                    file, made.images[i], rate=rate, zoom=self.zoom, recipe=recipe, overwrite=self.overwrite
                )
            else:
                write_mp4(file, made.images[i], rate=rate, zoom=self.zoom, overwrite=self.overwrite)
        return list(self.files)

    def _names(self) -> tuple[Path, ...]:
        dims = self.source.net.config.dims
        kind, endings, count = KINDS[dims], ENDINGS[dims], len(self.job.work.prompts)
        if not self.target.suffix or self.target.is_dir():
            pairs = zip(self.job.work.prompts, self.job.work.seeds)
            return tuple(self.target / f"{_plain(prompt)}-seed{seed}{endings[0]}" for prompt, seed in pairs)
        if self.target.suffix.lower() not in endings:
            sheets = "; there are no sheets of them" if self.target.suffix.lower() == ".png" else ""
            raise ValueError(
                f"--out {self.target}: this model makes {kind}s, written as {' or '.join(endings)}{sheets}: "
                "name such a file, or a folder"
            )
        if count > 1:
            raise ValueError(
                f"--out {self.target}: one file takes one {kind}, not {count}: name a folder, or one --label"
            )
        return (self.target,)


def run(args: argparse.Namespace, net: TrainedUNet, arguments: dict[str, Any]) -> int:
    """What `fastdiff generate` does for such a checkpoint. arguments: those of `prepare` that were given."""
    started = time.perf_counter()
    for name in NOT_FOR_THESE:
        if getattr(args, name, None):
            raise ValueError(
                f"--{name.replace('_', '-')} is for pictures: this model makes {KINDS[net.config.dims]}s"
            )
    single = Path(args.out).suffix != "" and not Path(args.out).is_dir()
    prompts = arguments.get("prompts", ["all"])
    arguments.setdefault("count", 1 if single or prompts == ["all"] else -(-4 // max(1, len(prompts))))
    job = prepare(**{**arguments, "model": net})
    output = Recordings(Path(args.out), job, zoom=args.zoom, overwrite=args.overwrite)
    with tqdm(total=job.total_calls, desc="sampling", unit="call", disable=args.quiet or None) as bar:
        made = job.run(progress=bar.update)
    files = output.write(made)
    if args.json:
        print(json.dumps(_as_data(made, files), indent=2))
    elif not args.quiet:
        print(_summary(net, made, files, time.perf_counter() - started))
    return 0


def parse_sides(text: str) -> tuple[int, ...]:
    """8192, 32x32 or 32x32x8 as numbers."""
    parts = text.lower().split("x")
    if len(parts) > 3 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(
            f"--size must be SAMPLES of a sound, WIDTHxHEIGHT or WIDTHxHEIGHTxFRAMES of a clip, got {text!r}"
        )
    return tuple(int(part) for part in parts)


def _as_data(made: Made, files: list[Path]) -> dict[str, Any]:
    return {
        "files": [str(path) for path in files],
        "count": len(files),
        "model_calls_each": made.model_calls,
        "seconds": {name: round(value, 4) for name, value in made.seconds.items()},
        "recipe": made.recipe,
    }


def _summary(net: TrainedUNet, made: Made, files: list[Path], seconds: float) -> str:
    count, how = len(files), made.recipe["arguments"]
    kinds = sorted({str(prompt) for prompt in made.prompts})
    length = made.images.shape[2] / net.config.rate
    names = str(files[0]) if count == 1 else f"{files[0]} and {count - 1} more"
    return (
        f"{count} {KINDS[net.config.dims]}{'s'[: count > 1]} of {', '.join(kinds)}, {length:.2f} s, {how['sampler']}, "
        f"{how['steps']} steps: sampling {made.seconds['sampling']:.1f} s; {seconds:.1f} s in all\nwrote {names}"
    )


def _plain(prompt: str | None) -> str:
    return re.sub(r"[^\w-]+", "_", prompt or "any")[:60]
