"""The training loop: `train(config, data, out)` writes state, model, log and sample sheets into `out`."""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from fastdiff.errors import FastdiffError
from fastdiff.files import check_folder
from fastdiff.models import checkpoint
from fastdiff.models.checkpoint import TrainedUNet, make_schedule
from fastdiff.models.config import UNetConfig
from fastdiff.training.config import TrainConfig
from fastdiff.training.data import Batches, load_folder
from fastdiff.training.gradient import Accumulator
from fastdiff.training.objective import Objective
from fastdiff.training.sheet import write_sheet
from fastdiff.training.state import Average, load_state, save_state

log = logging.getLogger(__name__)

STATE, MODEL, LOG = "state.safetensors", "model.safetensors", "log.csv"
FIELDS = ("step", "images", "loss", "grad_norm", "lr", "seconds")


class Diverged(FastdiffError):
    """The loss or its gradient is no longer finite."""


@dataclass(frozen=True)
class Progress:
    """What the last step did: `step` of `steps` taken, loss, gradient norm, learning rate, seconds so far."""

    step: int
    steps: int
    loss: float
    grad_norm: float
    lr: float
    seconds: float


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, constant, then half a cosine down to zero over the last `cooldown` steps."""
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    into = step - (config.steps - config.cooldown)
    fall = 0.5 * (1 + math.cos(math.pi * into / config.cooldown)) if config.cooldown and into > 0 else 1.0
    return config.lr * rise * fall


class Trainer:
    """A run in memory: model, average, optimizer and the number of steps taken."""

    def __init__(self, config: TrainConfig, data: Path, *, device: str = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        schedule = make_schedule(config.schedule)
        self.objective = Objective.make(
            schedule, prediction=config.prediction, gamma=config.min_snr_gamma, offset=config.snr_offset
        )
        folder = load_folder(data, size=round(config.image_size * config.margin))
        self.batches = Batches(
            folder,
            batch=config.batch,
            crop=config.image_size,
            flip=config.flip,
            seed=config.seed,
            weights=config.class_weights,
        )
        self.model = _model(config, folder.labels)
        _place(self.model, self.device)
        self.average = Average(self.model, config.ema)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.lr,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=True,
        )
        workers = torch.get_num_threads() if self.device.type == "cpu" else 1
        self.gradient = Accumulator(self.model, self._loss, micro=config.micro, workers=workers)
        self.step, self.seconds = 0, 0.0

    def advance(self) -> Progress:
        """Take one optimizer step. Diverged, with the model untouched, if loss or gradient is not finite."""
        began = time.perf_counter()
        loss = self.gradient(*self._draw())
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        seen = Progress(
            self.step + 1,
            self.config.steps,
            loss,
            norm.item(),
            learning_rate(self.config, self.step),
            0.0,
        )
        if not (math.isfinite(seen.loss) and math.isfinite(seen.grad_norm)):
            raise Diverged(f"step {self.step}: loss {seen.loss}, gradient norm {seen.grad_norm}: lower lr")
        for group in self.optimizer.param_groups:
            group["lr"] = seen.lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.model, self.step)
        self.step += 1
        self.seconds += time.perf_counter() - began
        return Progress(seen.step, seen.steps, seen.loss, seen.grad_norm, seen.lr, self.seconds)

    def _draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(clean images, noise, levels, labels) of this step, a function of seed and step alone."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        x0, label = self.batches(self.step)
        rows = self.objective.draw(len(x0), generator)
        eps = torch.randn(x0.shape, generator=generator)
        dropped = torch.rand(len(x0), generator=generator) < self.config.label_dropout
        x0, eps = (v.to(self.device, memory_format=torch.channels_last) for v in (x0, eps))
        return x0, eps, rows, label.masked_fill(dropped, self.model.config.num_classes)

    def _loss(self, x0: Tensor, eps: Tensor, rows: Tensor, label: Tensor) -> Tensor:
        x, target = self.objective.noised(x0, eps, rows)
        low = self.config.precision == "bfloat16"
        # No cache of cast weights: each is used once a pass, and threads must not share its graph.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low, cache_enabled=False):
            output = self.model(x, self.objective.time[rows].to(self.device), label=label.to(self.device))
        return self.objective.loss(output, target, rows)

    def averaged(self) -> TrainedUNet:
        """A copy of the model with the averaged weights, and a note of how it came about."""
        config = self.config
        model = _model(config, self.model.labels, {
            "steps": self.step, "images": self.step * config.batch, "seconds": round(self.seconds),
            "config": config.as_dict(), "torch": str(torch.__version__), "pictures": len(self.batches.folder),
        })  # fmt: skip
        model.load_state_dict(self.average.values)
        _place(model, self.device)
        return model.eval().requires_grad_(False)

    def save(self, out: Path) -> None:
        """Write the training state and the averaged model into a folder."""
        save_state(
            out / STATE, model=self.model, average=self.average, optimizer=self.optimizer, step=self.step,
            config=self.config, labels=self.model.labels, seconds=self.seconds,
        )  # fmt: skip
        checkpoint.save(out / MODEL, self.averaged(), overwrite=True)

    def begin_with(self, file: Path) -> None:
        """Take the weights of a checkpoint of the same network and labels. ValueError if it has others."""
        found = checkpoint.load(file)
        if found.config != self.model.config or found.labels != self.model.labels:
            raise ValueError(
                f"{file} is another network or knows other classes: it has {found.config} and "
                f"{', '.join(found.labels)}; train from scratch, or with its configuration and class folders"
            )
        self.model.load_state_dict(found.state_dict())
        self.average = Average(self.model, self.config.ema)

    def restore(self, out: Path) -> None:
        """Go back to the training state saved in a folder."""
        self.step, self.seconds = load_state(
            out / STATE, model=self.model, average=self.average, optimizer=self.optimizer,
            config=self.config, labels=self.model.labels,
        )  # fmt: skip


def train(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    init: Path | None = None,
    device: str = "cpu",
    on_step: Callable[[Progress], object] | None = None,
) -> Trainer:
    """Train to `config.steps` steps; save every so often, at the end and when interrupted.

    data: a folder of class folders. out: gets state.safetensors, model.safetensors (averaged weights, float16), log.csv
    and samples_*.png. resume: go on with the run in `out`, bit for bit as if it had not stopped. init: a checkpoint
    whose weights a new run begins with.
    """
    state = out / STATE
    if state.exists() and not resume:
        raise FileExistsError(
            f"{state} exists: pass --resume to go on with that run, or choose another folder"
        )
    if resume and not state.exists():
        raise FileNotFoundError(f"{state} does not exist: nothing to resume, start without --resume")
    check_folder(out)
    trainer = Trainer(config, data, device=device)
    if resume:
        trainer.restore(out)
    elif init is not None:
        trainer.begin_with(init)
    out.mkdir(parents=True, exist_ok=True)
    with _open_log(out / LOG, trainer.step) as file, _deferred_interrupt() as interrupted:
        _loop(trainer, out, file, on_step or (lambda progress: None), interrupted)
    return trainer


def _loop(
    trainer: Trainer,
    out: Path,
    file: TextIO,
    on_step: Callable[[Progress], object],
    interrupted: threading.Event,
) -> None:
    config, writer = trainer.config, csv.writer(file)
    while trainer.step < config.steps:
        p = trainer.advance()
        images = p.step * config.batch
        writer.writerow(
            (p.step, images, f"{p.loss:.6f}", f"{p.grad_norm:.4f}", f"{p.lr:.3e}", f"{p.seconds:.1f}")
        )
        on_step(p)
        last = p.step == config.steps
        if p.step % config.save_every == 0 or last or interrupted.is_set():
            file.flush()
            trainer.save(out)
        if interrupted.is_set():
            raise KeyboardInterrupt
        if p.step % config.sheet_every == 0 or last:
            write_sheet(out / f"samples_{p.step:06d}.png", trainer.averaged())


def _place(model: torch.nn.Module, device: torch.device) -> None:
    """Move to the device, channels last: the layout that convolutions are fastest in."""
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _model(config: TrainConfig, labels: tuple[str, ...], note: dict[str, Any] | None = None) -> TrainedUNet:
    """A model at its first weights, which depend on config.seed; the caller's random state is left alone."""
    fixed = {"num_classes": len(labels), "image_size": config.image_size}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return TrainedUNet(
            UNetConfig.from_dict({**config.model, **fixed}),
            labels=labels,
            prediction=config.prediction,
            schedule_options=config.schedule,
            training=note,
        )


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that it is acted on between steps; a second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread receives signals
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)
        log.warning("interrupted: saving after this step; interrupt again to stop at once")

    signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _open_log(path: Path, step: int) -> Iterator[TextIO]:
    """The CSV log, cut back to the steps that the state knows of."""
    rows = path.read_text(encoding="utf-8").splitlines()[1 : step + 1] if path.exists() else []
    path.write_text("\n".join([",".join(FIELDS), *rows]) + "\n", encoding="utf-8")
    with path.open("a", encoding="utf-8", newline="") as file:
        yield file
