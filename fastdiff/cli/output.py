"""Where generated pictures go: one sheet or single files, and a film strip, checked before the work starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fastdiff.apps.compare import Comparison
from fastdiff.apps.work import Job, Made
from fastdiff.cli.layout import Layout, layout_of
from fastdiff.files import check_writable
from fastdiff.images import Picture, enlarged, film_strip, grid, to_pictures, write_png

STRIP_ROWS, STRIP_COLUMNS = 4, 12


@dataclass(frozen=True)
class Output:
    """The files a job will write. Raises OSError or ValueError, before any work, if one of them could not be.

    target: a .png for one sheet (or one picture), anything else is a folder for single files.
    strip: also NAME-steps.png. captions: name the classes on a sheet of several. zoom: enlarge the pictures of a sheet.
    """

    target: Path
    job: Job | Comparison
    strip: bool = False
    captions: bool = True
    zoom: int = 1
    overwrite: bool = False
    layout: Layout = field(init=False)
    files: tuple[Path, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.zoom <= 8:
            raise ValueError(f"--zoom must be from 1 to 8, got {self.zoom}")
        if self.zoom != 1 and self.single_files:
            raise ValueError(f"--zoom enlarges the pictures of a sheet: name a .png file, not {self.target}")
        if self.target.suffix and self.target.suffix.lower() != ".png" and not self.target.is_dir():
            raise ValueError(
                f"--out {self.target}: pictures are written as PNG; name a .png file or a folder"
            )
        object.__setattr__(self, "layout", layout_of(self.job))
        object.__setattr__(self, "files", self._names())
        for path in (*self.files, *self._strip_names()):
            check_writable(path, overwrite=self.overwrite)

    @property
    def single_files(self) -> bool:
        """Whether each picture gets a file of its own in the folder `target`."""
        return self.target.suffix.lower() != ".png"

    def write(self, result: Made) -> list[Path]:
        """Write everything and return the files written."""
        pictures = to_pictures(result.images)
        if self.single_files:
            for i, path in enumerate(self.files):
                write_png(path, pictures[i], recipe=result.recipe_of(i), overwrite=self.overwrite)
        elif len(pictures) == 1:
            write_png(self.target, pictures[0], recipe=result.recipe, overwrite=self.overwrite)
        else:
            recipe = result.recipe | {"sheet": {"zoom": self.zoom, "captions": self.captions}}
            write_png(self.target, self._sheet(result), recipe=recipe, overwrite=self.overwrite)
        if result.trajectory is not None:
            for path in self._strip_names():
                recipe = result.recipe | {"sheet": {"steps": True}}
                write_png(path, _strip(result), recipe=recipe, overwrite=self.overwrite)
        return [*self.files, *self._strip_names()]

    def _names(self) -> tuple[Path, ...]:
        if not self.single_files:
            return (self.target,)
        return tuple(self.target / f"{name}.png" for name in self.layout.names)

    def _strip_names(self) -> tuple[Path, ...]:
        if not self.strip:
            return ()
        return (
            self.target / "steps.png"
            if self.single_files
            else self.target.with_stem(f"{self.target.stem}-steps"),
        )

    def _sheet(self, result: Made) -> Picture:
        return grid(
            enlarged(to_pictures(result.images), self.zoom),
            columns=self.layout.columns,
            gap=max(4, self.zoom * self.layout.size[0] // 24),
            captions=self.layout.captions if self.captions else None,
        )


def _strip(result: Made) -> Picture:
    """Up to STRIP_ROWS pictures at up to STRIP_COLUMNS of their steps, evenly chosen, the first and last among them."""
    assert result.trajectory is not None
    steps, count = result.trajectory.shape[:2]
    columns, rows = _evenly(steps, STRIP_COLUMNS), _evenly(count, STRIP_ROWS)
    return film_strip(result.trajectory[columns][:, rows], captions=[str(step) for step in columns])


def _evenly(length: int, most: int) -> list[int]:
    kept = min(length, most)
    return sorted({round(i * (length - 1) / max(kept - 1, 1)) for i in range(kept)})
