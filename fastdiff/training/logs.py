"""What a run writes down as it goes: log.csv, and, if asked for, the same for TensorBoard with the sample sheets."""

from __future__ import annotations

import csv
from pathlib import Path
from types import TracebackType
from typing import Any

from fastdiff.training.progress import Progress

LOG, BOARD = "log.csv", "tensorboard"
FIELDS = ("step", "images", "loss", "grad_norm", "lr", "seconds")


class Logs:
    """The logs of a run in the folder `out`, cut back to the `step` that its state knows of."""

    def __init__(self, out: Path, step: int, *, tensorboard: bool = False) -> None:
        self._board = board(out / BOARD, step) if tensorboard else None
        path = out / LOG
        rows = path.read_text(encoding="utf-8").splitlines()[1 : step + 1] if path.exists() else []
        path.write_text("\n".join([",".join(FIELDS), *rows]) + "\n", encoding="utf-8")
        self._file = path.open("a", encoding="utf-8", newline="", buffering=1)  # to be followed as it grows
        self._rows = csv.writer(self._file)

    def step(self, p: Progress) -> None:
        """Note one step."""
        self._rows.writerow(
            (p.step, p.images, f"{p.loss:.6f}", f"{p.grad_norm:.4f}", f"{p.lr:.3e}", f"{p.seconds:.1f}")
        )
        if self._board is not None:
            for name in ("loss", "grad_norm", "lr"):
                self._board.add_scalar(name, getattr(p, name), p.step)

    def sheet(self, path: Path, step: int) -> None:
        """Show a sample sheet, a PNG, on the board."""
        if self._board is not None and path.suffix == ".png":
            from fastdiff.images import read_image

            self._board.add_image("samples", (read_image(path) + 1) / 2, step)

    def flush(self) -> None:
        """Everything noted so far is on disk: before the state is saved, which counts on it."""
        self._file.flush()
        if self._board is not None:
            self._board.flush()

    def __enter__(self) -> Logs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def board(folder: Path, step: int) -> Any:
    """A TensorBoard writer that hides what a run noted after `step`. ModuleNotFoundError without tensorboard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "TensorBoard logs need tensorboard: pip install 'fastdiff[train]'"
        ) from None
    return SummaryWriter(str(folder), purge_step=step + 1)
