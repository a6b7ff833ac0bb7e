"""The loop: `train(config, data, out)` writes state, model, log and sample sheets into `out`."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastdiff.files import check_folder
from fastdiff.training.config import TrainConfig
from fastdiff.training.data import Examples
from fastdiff.training.logs import Logs
from fastdiff.training.processes import join
from fastdiff.training.progress import Progress
from fastdiff.training.trainer import MODEL, STATE, Build, Sheet, Trainer
from fastdiff.training.vectors import Encoder

log = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    data: Path | Examples,
    out: Path,
    *,
    resume: bool = False,
    init: Path | None = None,
    device: str = "cpu",
    tensorboard: bool = False,
    encoder: Encoder | None = None,
    build: Build | None = None,
    sheet: Sheet | None = None,
    trainer: Callable[..., Trainer] = Trainer,
    on_step: Callable[[Progress], object] | None = None,
) -> Trainer:
    """Train to `config.steps` steps; save every so often, at the end and when interrupted.

    data: a folder of class folders, or any Examples. out: gets state.safetensors, model.safetensors (averaged weights,
    float16), log.csv, samples_*.png and, with `tensorboard`, a folder of that name. resume: go on with the run in
    `out`, bit for bit as if it had not stopped. init: a checkpoint whose weights a new run begins with. encoder: makes
    vectors of captions (fastdiff.training.vectors). build, sheet: as for Trainer. Under a launcher of several processes
    all of them call this; one writes, and their devices are the launcher's choice.
    """
    state = out / STATE
    if state.exists() and not resume:
        raise FileExistsError(
            f"{state} exists: pass --resume to go on with that run, or choose another folder"
        )
    if resume and not state.exists():
        raise FileNotFoundError(f"{state} does not exist: nothing to resume, start without --resume")
    if not resume and (out / MODEL).exists():
        raise FileExistsError(f"{out / MODEL} exists: move it away first, or choose another folder")
    check_folder(out)
    processes = join(device)
    try:
        run = trainer(config, data, processes=processes, encoder=encoder, build=build, sheet=sheet)
        if resume:
            run.restore(out)
        elif init is not None:
            run.begin_with(init)
        if not processes.writes:
            _loop(run, out, None, on_step)
            return run
        out.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        with Logs(out, run.step, tensorboard=tensorboard) as logs:
            _loop(run, out, logs, on_step)
        return run
    finally:
        processes.leave()


def _loop(
    trainer: Trainer, out: Path, logs: Logs | None, on_step: Callable[[Progress], object] | None
) -> None:
    """logs: None in processes that do not write."""
    config = trainer.config
    with _deferred_interrupt() as interrupted:
        while trainer.step < config.steps:
            p = trainer.advance()
            if logs is not None:
                logs.step(p)
            if on_step is not None:
                on_step(p)
            stop, last = trainer.processes.any(interrupted.is_set()), p.step == config.steps
            if logs is not None and (stop or last or p.step % config.save_every == 0):
                logs.flush()
                trainer.save(out)
            if stop:
                raise KeyboardInterrupt
            if logs is not None and (last or p.step % config.sheet_every == 0):
                path = out / f"samples_{p.step:06d}.png"
                trainer.sheet(path, trainer.averaged())
                logs.sheet(path, p.step)


def _sweep(out: Path) -> None:
    """Remove what a killed run had half written."""
    for name in (STATE, MODEL, "samples_*.png"):
        for left in out.glob(f".{name}.*.tmp"):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C, or a request to end (SIGTERM), sets the event, so that it is acted on between steps; a second Ctrl-C
    interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread receives signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        log.warning("interrupted: saving after this step; interrupt again to stop at once")

    for number in before:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
