"""A folder of class folders in, an augmented one out: labels kept, a seed and a strength for each picture, a manifest.

job = prepare(Path("pets"), Path("pets-augmented"), count=4, strength=(0.2, 0.6))
job.run()

OUT/CLASS/NAME-augK.png is copy K of IN/CLASS/NAME.*; OUT/manifest.json holds the settings and a line for each picture,
OUT/manifest.csv the lines. What a picture becomes depends on the settings, on its own name and pixels, and on K: the
same seed gives the same folder, and a run that was stopped goes on where it was when it is started again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.apps.augment import Augmentation
from fastdiff.apps.restyle import scaled
from fastdiff.apps.settings import MAX_COUNT, MAX_SIDE, check_integer
from fastdiff.apps.work import Cancel, Progress, circumstances, digest
from fastdiff.events import Cancelled, Event
from fastdiff.files import check_folder, write_atomic
from fastdiff.images import read_image, to_pictures, write_png
from fastdiff.noise import MAX_SEED
from fastdiff.training.data import SUFFIXES

MANIFEST, TABLE = "manifest.json", "manifest.csv"
COLUMNS = ("file", "label", "source", "source_digest", "copy", "seed", "strength", "prompt", "checkpoint")


@dataclass(frozen=True)
class Item:
    """One picture to write. copy: 1, 2, ... of its source, 0 for the original itself."""

    source: Path
    file: Path
    label: str
    copy: int
    seed: int
    steps: int


@dataclass(frozen=True)
class FolderJob:
    """A checked piece of work: folder, out, augmentation, the pictures to write, the settings of the manifest.

    size: pictures whose shorter side is longer are scaled down to it first.
    """

    folder: Path
    out: Path
    augmentation: Augmentation
    items: tuple[Item, ...]
    settings: dict[str, Any]
    size: int | None = None

    @property
    def total_calls(self) -> int:
        """How often progress will count: once a picture."""
        return len(self.items)

    def run(self, *, progress: Progress | None = None, cancel: Cancel | None = None) -> list[Path]:
        """Make what is not there yet and return all files of the manifest.

        progress: called with the number of pictures done since the last time, those found done included.
        cancel: asked at each model call; when it says True, `Cancelled` is raised, and what is done stays.
        """

        def watch(event: Event) -> None:
            if cancel is not None and cancel():
                event.cancel()

        begin = {"settings": self.settings, "complete": False, "pictures": []}
        if not (self.out / MANIFEST).exists():
            _write_text(self.out / MANIFEST, json.dumps(begin, indent=1))
        for batch in self._batches():
            # Whole batches, so that a stopped run and a whole one make the same bits.
            if not all((self.out / item.file).exists() for item in batch):
                self._make(batch, watch)
            if progress is not None:
                progress(len(batch))
        lines = [self._line(item) for item in self.items]
        done = {"settings": self.settings, "complete": True, "pictures": lines}
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        _write_text(self.out / TABLE, table.getvalue())
        _write_text(self.out / MANIFEST, json.dumps(done, indent=1))
        return [self.out / item.file for item in self.items]

    def _batches(self) -> Iterator[list[Item]]:
        """Pictures of one size and number of steps, as many as are made at once."""
        groups: dict[tuple[int, ...], list[Item]] = {}
        for item in self.items:
            if not item.copy:
                yield [item]
                continue
            key = (item.steps, *self._read(item).shape)
            groups.setdefault(key, []).append(item)
        for (_, _, height, width), items in sorted(groups.items()):
            at_once = self.augmentation.settings.batch_of(self.augmentation.source, (width, height))
            yield from (items[i : i + at_once] for i in range(0, len(items), at_once))

    def _read(self, item: Item) -> Tensor:
        picture = read_image(self.folder / item.source)
        return picture if self.size is None else scaled(picture, self.size)

    def _make(self, batch: list[Item], watch: Any) -> None:
        pictures = torch.stack([self._read(item) for item in batch])
        made = pictures
        if batch[0].copy:
            labels, seeds = [item.label for item in batch], [item.seed for item in batch]
            made = self.augmentation.many(pictures, labels, seeds, steps=batch[0].steps, callback=watch)
        for item, picture, given in zip(batch, to_pictures(made), pictures):
            recipe = {
                "command": "augment", "arguments": {**self.settings, **self._arguments(item)},
                "inputs": {"picture": digest(given)}, **circumstances(self.augmentation.source),
            }  # fmt: skip
            if not (self.out / item.file).exists():
                write_png(self.out / item.file, picture, recipe=recipe)

    def _arguments(self, item: Item) -> dict[str, Any]:
        return {
            "source": item.source.as_posix(), "label": item.label, "copy": item.copy, "seed": item.seed,
            "strength": item.steps / self.augmentation.steps,
            "prompt": self.augmentation.prompt_of(item.label) if item.copy else None,
        }  # fmt: skip

    def _line(self, item: Item) -> dict[str, Any]:
        about = self._arguments(item) | {
            "file": item.file.as_posix(),
            "source_digest": file_digest(self.folder / item.source),
            "checkpoint": self.settings["checkpoint"] if item.copy else None,
        }
        return {name: about[name] for name in COLUMNS}


def prepare(
    folder: Path,
    out: Path,
    *,
    count: int = 1,
    originals: bool = False,
    size: int | None = None,
    seed: int = 0,
    **augmentation: Any,
) -> FolderJob:
    """A checked piece of work, ready to run.

    folder: IN/CLASS/*.png (jpg, webp, bmp). out: a new or empty folder, or one that the same settings began. count:
    copies of each picture. originals: copy the pictures themselves too, as PNG. size: scale pictures down first, to
    this shorter side. augmentation: the arguments of `fastdiff.apps.augment.Augmentation`.

    Raises ValueError, TypeError or OSError in one line for anything that could not work.
    """
    check_integer("count", count, 1, MAX_COUNT)
    check_integer("seed", seed, 0, MAX_SEED)
    if size is not None:
        check_integer("size", size, 1, MAX_SIDE)
    files = class_files(folder)
    if out.resolve() == folder.resolve() or folder.resolve() in out.resolve().parents:
        raise ValueError(f"{out} lies in {folder}: write the augmented pictures beside it, not into it")
    how = Augmentation(**augmentation)
    how.plan(how.source.size)  # refuses what cannot be walked
    items = []
    for label, file in files:
        first = 0 if originals else 1
        for copy in range(first, count + 1):
            name = file.with_name(f"{file.stem}-aug{copy}.png") if copy else file.with_suffix(".png")
            drawn = _seed(seed, file, copy)
            items.append(Item(file, name, label, copy, drawn, how.steps_of(drawn) if copy else 0))
    _check_names(items)
    settings = {
        "seed": seed, "count": count, "originals": originals, "size": size, "range": list(how.range),
        "towards": how.towards, "steps": how.steps, "sampler": how.sampler, "options": dict(how.options),
        "guidance": how.guidance, **how.source.identity(),
        "files": hashlib.sha256("\n".join(str(file) for _, file in files).encode()).hexdigest()[:16],
    }  # fmt: skip
    _check_out(out, settings)
    return FolderJob(folder, out, how, tuple(items), settings, size)


def class_files(folder: Path) -> list[tuple[str, Path]]:
    """(label, path within the folder) of every picture, in order. Raises ValueError or OSError where there are none."""
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{folder} is not a folder: give one that holds a folder of pictures for each class"
        )
    found = [
        (place.name, file.relative_to(folder))
        for place in sorted(folder.iterdir())
        if place.is_dir() and not place.name.startswith(".")
        for file in sorted(place.iterdir())
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    ]
    if not found:
        raise ValueError(
            f"{folder} holds no class folders with pictures: put those of each class into {folder}/CLASS/"
        )
    return found


def file_digest(path: Path) -> str:
    """The first 16 hexadecimal digits of SHA-256 over a file."""
    with path.open("rb") as file:
        return hashlib.sha256(file.read()).hexdigest()[:16]


def _seed(seed: int, file: Path, copy: int) -> int:
    """A picture's own seed, by its name, so that it stays when others are added."""
    found = hashlib.sha256(f"{seed}/{file.as_posix()}/{copy}".encode()).digest()
    return int.from_bytes(found[:8], "little") % MAX_SEED


def _check_names(items: list[Item]) -> None:
    seen: dict[Path, Path] = {}
    for item in items:
        if item.file in seen:
            raise ValueError(
                f"{seen[item.file]} and {item.source} would both become {item.file}: rename one of them"
            )
        seen[item.file] = item.source


def _check_out(out: Path, settings: dict[str, Any]) -> None:
    """Raise OSError or ValueError unless `out` is new, empty, or was begun with the same settings."""
    check_folder(out)
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / MANIFEST).is_file():
        raise FileExistsError(f"{out} holds other files: choose a new folder")
    try:
        begun = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{out / MANIFEST} is damaged: choose a new folder") from None
    if begun != settings:
        differ = sorted(name for name in {*begun, *settings} if begun.get(name) != settings.get(name))
        raise ValueError(f"{out} was made with another {', '.join(differ)}: choose a new folder")


def _write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()), overwrite=True)


__all__ = ["Cancelled", "FolderJob", "prepare"]
