"""A training run in memory. `Trainer.advance` is one step; fastdiff.training.run is the loop around it.

What a run is made of can be replaced: the examples (any `Examples` in place of a folder), the network (`build`; only
parameters that require a gradient are trained, averaged and kept in the state, so that a frozen network with small
trained parts will do), and what is drawn to be looked at (`sheet`). A subclass may override `write_model`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff import cold
from fastdiff.models import checkpoint
from fastdiff.models.checkpoint import TrainedUNet
from fastdiff.models.config import UNetConfig
from fastdiff.models.layers import layout
from fastdiff.training.config import TrainConfig
from fastdiff.training.data import Batches, Examples, load_folder
from fastdiff.training.gradient import Accumulator
from fastdiff.training.objective import make_objective
from fastdiff.training.precision import DTYPES, LossScale
from fastdiff.training.processes import Processes
from fastdiff.training.progress import Diverged, Progress
from fastdiff.training.sequences import sequences_of
from fastdiff.training.sheet import write_sheet
from fastdiff.training.start import transfer
from fastdiff.training.state import About, Average, load_state, save_state, trained
from fastdiff.training.vectors import Encoder

STATE, MODEL = "state.safetensors", "model.safetensors"
COLOURED = 2048
"""Examples whose mean colours are looked at, where a network needs to know them."""

Build = Callable[[TrainConfig, tuple[str, ...]], TrainedUNet]
Sheet = Callable[[Path, TrainedUNet], object]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, constant, then half a cosine down to zero over the last `cooldown` steps."""
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    into = step - (config.steps - config.cooldown)
    fall = 0.5 * (1 + math.cos(math.pi * into / config.cooldown)) if config.cooldown and into > 0 else 1.0
    return config.lr * rise * fall


class Trainer:
    """A run: model, average, optimizer and the number of steps taken.

    data: a folder of class folders, or `Examples`. processes: those that share the work; alone on `device` if None.
    encoder: makes vectors of captions. build: makes the network, on the CPU, from the configuration and the labels.
    sheet: called with a path and the averaged model, to draw samples.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Path | Examples,
        *,
        device: str = "cpu",
        processes: Processes | None = None,
        encoder: Encoder | None = None,
        build: Build | None = None,
        sheet: Sheet | None = None,
    ) -> None:
        self.config = config
        self.processes = processes or Processes(torch.device(device))
        self.device = self.processes.device
        self.objective = make_objective(config)
        self.examples = examples_of(config, data, encoder)
        self.model = (build or network)(config, self.examples.labels)
        if self.model.corruption is not None:
            self._find_colours()
        self.model.to(self.device, **layout(self.model.config.dims))
        self.parameters = trained(self.model)
        self.average = Average(self.parameters, config.ema)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay,
            fused=True,
        )  # fmt: skip
        workers = torch.get_num_threads() if self.device.type == "cpu" else 1
        self.gradient = Accumulator(self.parameters.values(), self._loss, micro=config.micro, workers=workers)
        self.scale = LossScale.of(config.precision)
        self.sheet = sheet or self._sheet
        self.step, self.seconds = 0, 0.0

    @property
    def pictures(self) -> int:
        """What an optimizer step sees, in all processes together."""
        return self.config.pictures_a_step * self.processes.count

    def advance(self) -> Progress:
        """Take one optimizer step. Diverged, with the model untouched, if loss or gradient is not finite.

        In float16 a step whose gradient overflowed is skipped, and the loss scaled less from then on.
        """
        began = time.perf_counter()
        loss, norm = self._backward()
        finite = math.isfinite(loss) and math.isfinite(norm)
        if not finite and (not self.scale.active or self.scale.exhausted):
            raise self._diverged(loss, norm)
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if finite:
            self.optimizer.step()
            self.average.update(self.parameters, self.step)
        self.optimizer.zero_grad()
        self.scale.update(finite)
        self.step += 1
        self.seconds += time.perf_counter() - began
        return Progress(
            self.step, self.config.steps, self.step * self.pictures, loss, norm, rate, self.seconds
        )

    def _diverged(self, loss: float, norm: float) -> Diverged:
        """What went wrong in this step."""
        x0, given = self.examples.draw(self.step, self.pictures)
        torn = [name for name, value in {"examples": x0, **given}.items() if not value.isfinite().all()]
        if torn:
            return Diverged(
                f"step {self.step}: the {' and '.join(torn)} hold NaN or infinity: check the data"
            )
        return Diverged(f"step {self.step}: loss {loss}, gradient norm {norm}: lower lr")

    def _backward(self) -> tuple[float, float]:
        """The loss and the norm of the gradient, which is set, averaged over the processes and clipped."""
        self.optimizer.zero_grad()  # of a step that was broken off
        x0, noise, marks, given = self._draw()
        names, values = tuple(given), tuple(given.values())
        loss = 0.0
        for first in range(0, len(x0), self.config.batch):
            rows = slice(first, first + self.config.batch)
            placed = (self._placed(v[rows]) for v in (x0, noise))
            batch = [*placed, marks[rows], *(value[rows].to(self.device) for value in values)]
            share = len(batch[0]) / len(x0)
            loss += self.gradient(*batch, share=share * self.scale.scale, names=names)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        told = torch.tensor([loss], device=self.device)
        self.processes.mean_([*gradients, told])
        if self.scale.scale != 1.0:
            torch._foreach_div_(gradients, self.scale.scale)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip)
        loss = loss if self.processes.count == 1 else told.item()
        return loss / self.scale.scale, norm.item()

    def _draw(self) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """(clean examples, noise, marks, conditioning) of this process's part of the step.

        A function of seed and step alone; all processes draw the same and take their parts of it.
        """
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        x0, given = self.examples.draw(self.step, self.pictures)
        if len(x0) != self.pictures or any(len(value) != self.pictures for value in given.values()):
            raise ValueError(f"the examples drew {len(x0)} where {self.pictures} were asked for")
        marks = self.objective.draw(len(x0), generator)
        noise = self.objective.noise(x0.shape, generator)
        dropped = torch.rand(len(x0), generator=generator) < self.config.label_dropout
        mine = self.processes.part(len(x0))
        kept = {name: self._dropped(name, value, dropped)[mine] for name, value in given.items()}
        return x0[mine], noise[mine], marks[mine], kept

    def _dropped(self, name: str, value: Tensor, dropped: Tensor) -> Tensor:
        """Conditioning with some of it left out: the null class, or zeros."""
        nothing = self.model.config.num_classes if name == "label" else 0
        return value.masked_fill(dropped.view(-1, *[1] * (value.ndim - 1)), nothing)

    def _placed(self, x: Tensor) -> Tensor:
        return x.to(self.device, **layout(x.ndim - 2))

    def _loss(
        self, x0: Tensor, noise: Tensor, marks: Tensor, *given: Tensor, names: tuple[str, ...]
    ) -> Tensor:
        x, time, target = self.objective.corrupted(x0, noise, marks)
        dtype = DTYPES[self.config.precision]
        # No cache of cast weights: each is used once a pass, and threads must not share its graph.
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None, cache_enabled=False):
            output = self.model(x, time, **dict(zip(names, given)))
        return self.objective.loss(output, target, marks)

    def averaged(self) -> TrainedUNet:
        """A copy of the model with the averaged weights, and a note of how it came about."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.average.values, strict=False)
        model.training_note = {
            "steps": self.step, "images": self.step * self.pictures, "seconds": round(self.seconds),
            "config": self.config.as_dict(), "torch": str(torch.__version__), "pictures": len(self.examples),
        }  # fmt: skip
        return model.eval().requires_grad_(False)

    def write_model(self, path: Path) -> None:
        """Write the averaged model as a checkpoint."""
        checkpoint.save(path, self.averaged(), overwrite=True)

    def save(self, out: Path) -> None:
        """Write the averaged model and the training state into a folder."""
        # The state last: it says how far the run has come, and a run killed in between makes the model anew.
        self.write_model(out / MODEL)
        save_state(out / STATE, self._about(), **self._kept())

    def restore(self, out: Path) -> None:
        """Go back to the training state saved in a folder."""
        about = load_state(out / STATE, self._about(), **self._kept())
        self.step, self.seconds, self.scale = about.step, about.seconds, about.scale

    def begin_with(self, file: Path | None) -> None:
        """Take the weights of a checkpoint (None: the bundled one) of the same network. ValueError for another one.

        Classes of the same names keep their embeddings; new ones begin as the null class.
        """
        transfer(checkpoint.load(file), self.model)
        self.average = Average(self.parameters, self.config.ema)

    def _about(self) -> About:
        return About(self.step, self.pictures, self.seconds, self.config, self.examples.labels, self.scale)

    def _kept(self) -> dict[str, Any]:
        return {"parameters": self.parameters, "average": self.average, "optimizer": self.optimizer}

    def _find_colours(self) -> None:
        """Tell a network of cold diffusion the colours that its pictures begin with."""
        each = min(COLOURED, max(len(self.examples), 1))
        x0, given = self.examples.draw(0, each)
        means = x0.flatten(2).mean(2)
        self.model.colours.copy_(cold.fit_colours(means, given["label"], self.model.config.num_classes))

    def _sheet(self, path: Path, model: TrainedUNet) -> None:
        """Two samples of every class; or, where there are vectors, samples for those of the first examples."""
        given = None
        if model.config.context_dim:
            count = 2 * model.config.num_classes
            given = self.examples.draw(0, max(count, 4))[1]
        write_sheet(path, model, conditioning=given)


def examples_of(config: TrainConfig, data: Path | Examples, encoder: Encoder | None = None) -> Examples:
    """The examples of a folder of class folders, of pictures, sounds or clips; others as they are."""
    if not isinstance(data, Path):
        return data
    if config.model.get("dims", 2) != 2:
        return sequences_of(config, data)
    width = config.model.get("context_dim", 0)
    folder = load_folder(
        data, size=round(config.image_size * config.margin), context_dim=width, encoder=encoder
    )
    return Batches(
        folder, batch=config.batch, crop=config.image_size, flip=config.flip, seed=config.seed,
        weights=config.class_weights,
    )  # fmt: skip


def network(config: TrainConfig, labels: tuple[str, ...]) -> TrainedUNet:
    """A model at its first weights, which depend on config.seed; the caller's random state is left alone."""
    fixed = {"num_classes": len(labels), "image_size": config.image_size}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return TrainedUNet(
            UNetConfig.from_dict({**config.model, **fixed}),
            labels=labels,
            prediction=config.prediction,
            schedule_options=config.schedule,
            noise=config.noise,
        )
