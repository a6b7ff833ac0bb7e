"""Personalisation: a checkpoint learns one more label from 5 to 20 pictures of one's own, in minutes on a CPU.

adapter = personalise(Path("my_pictures"), "my_cat", Path("my_cat.safetensors"))

The checkpoint is frozen; low-rank factors beside each of its weights (fastdiff.models.lora) and the new label's
embedding are trained. Prior preservation (DreamBooth, Ruiz et al. 2022, arXiv:2208.12242, section 3.3): part of each
batch are pictures that the checkpoint itself made of its own labels, so that it does not forget them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastdiff.files import check_writable
from fastdiff.models.checkpoint import TrainedUNet, fingerprint
from fastdiff.models.lora import LAYERS, Adapter, adapted, check_label, save_adapter
from fastdiff.training.config import TrainConfig
from fastdiff.training.data import SUFFIXES, read_square
from fastdiff.training.progress import Progress
from fastdiff.training.run import train
from fastdiff.training.sheet import sample_labels, write_sheet
from fastdiff.training.start import settings_of
from fastdiff.training.trainer import Trainer

STEPS = 200
MOST_PICTURES = 1000
PRIOR_SHARE = 0.25
"""Of a batch, where the checkpoint's own pictures are used."""


class Joined(nn.Module):
    """A frozen weight -> weight + scale * B A. Only factors `down` (A) and `up` (B) are trained; at first B is 0."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Parameter(torch.randn(rank, weight[0].numel()) / weight[0].numel() ** 0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        """weight: [out, ...]; returns the like."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.scale * (self.up @ self.down).view(weight.shape)


class NewRow(nn.Module):
    """A frozen embedding table -> the same with its last row but one, that of the new label, trained."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.row = nn.Parameter(table[-2].clone())

    def forward(self, table: Tensor) -> Tensor:
        """table: [classes + 1, D]; returns the like."""
        return torch.cat([table[:-2], self.row[None], table[-1:]])


def joined(base: TrainedUNet, label: str, *, rank: int, scale: float = 1.0, seed: int = 0) -> TrainedUNet:
    """A network that begins as `base` with one more label, of which only an adapter is trainable."""
    empty = Adapter(fingerprint(base.state_dict()), label, base.label.weight[-1].detach(), {}, scale, {})
    model = adapted(base, empty)
    layers = [module for module in model.modules() if isinstance(module, LAYERS)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers:
            parametrize.register_parametrization(layer, "weight", Joined(layer.weight, rank, scale))
    parametrize.register_parametrization(model.label, "weight", NewRow(model.label.weight))
    return model.train()


@dataclass(frozen=True, eq=False)
class OwnPictures:
    """The `Examples` of a personalisation.

    own: uint8 [N, 3, S, S], of which random crops and mirrors are drawn; prior: float32 [M, 3, crop, crop] in -1..1,
    made by the checkpoint of its labels prior_labels: int64 [M]; M may be 0.
    """

    own: Tensor
    prior: Tensor
    prior_labels: Tensor
    labels: tuple[str, ...]
    crop: int
    flip: bool
    seed: int

    def __len__(self) -> int:
        return len(self.own)

    def draw(self, step: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See `fastdiff.training.data.Examples`."""
        rng = np.random.default_rng([self.seed, step, 2])
        others = round(count * PRIOR_SHARE) if len(self.prior) else 0
        x = [self._cropped(int(i), rng) for i in rng.integers(0, len(self.own), count - others)]
        rows = torch.from_numpy(rng.integers(0, max(1, len(self.prior)), others))
        label = torch.full((count - others,), len(self.labels) - 1)
        return torch.cat([torch.stack(x), self.prior[rows]]), {
            "label": torch.cat([label, self.prior_labels[rows]])
        }

    def _cropped(self, row: int, rng: np.random.Generator) -> Tensor:
        top, left = rng.integers(0, self.own.shape[-1] - self.crop + 1, 2)
        picture = self.own[row, :, top : top + self.crop, left : left + self.crop]
        picture = picture.flip(-1) if self.flip and rng.random() < 0.5 else picture
        return picture.float().div(127.5).sub(1.0)


class LoraTrainer(Trainer):
    """A Trainer that writes an adapter to `file`."""

    def __init__(
        self, config: TrainConfig, data: OwnPictures, *, base: TrainedUNet, file: Path, **more: Any
    ) -> None:
        options = config.model["lora"]
        self.base, self.file = base, file
        self.known = fingerprint(base.state_dict())
        build = partial(_built, base, rank=options["rank"])
        super().__init__(config, data, **{**more, "build": build, "sheet": _sheet})

    def adapter(self) -> Adapter:
        """What was learned so far, averaged."""
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        for name in self.average.values:
            layer, joint, which = name.partition(".parametrizations.weight.0.")
            if joint and which == "down":
                up = self.average.values[layer + joint + "up"]
                factors[f"{layer}.weight"] = (self.average.values[name].cpu(), up.cpu())
        note = {
            "steps": self.step, "images": self.step * self.pictures, "seconds": round(self.seconds),
            "pictures": len(self.examples), "config": self.config.as_dict(), "torch": str(torch.__version__),
        }  # fmt: skip
        row = self.average.values["label.parametrizations.weight.0.row"].cpu()
        return Adapter(self.known, self.examples.labels[-1], row, factors, 1.0, note)

    def averaged(self) -> TrainedUNet:
        """The checkpoint with the adapter joined."""
        return adapted(self.base, self.adapter())

    def write_model(self, path: Path) -> None:
        """Write the adapter."""
        save_adapter(self.file, self.adapter(), overwrite=True)


def personalise(
    pictures: Path,
    label: str,
    file: Path,
    *,
    base: TrainedUNet,
    steps: int = STEPS,
    batch: int = 8,
    rank: int = 8,
    lr: float = 2e-3,
    prior: int = 16,
    margin: float = 1.25,
    flip: bool = True,
    seed: int = 0,
    precision: str = "bfloat16",
    resume: bool = False,
    device: str = "cpu",
    on_step: Callable[[Progress], object] | None = None,
) -> Adapter:
    """Teach `base` the label from the pictures of a folder, and write the adapter to `file`, a .safetensors file.

    prior: pictures that the base makes of its own labels first, against forgetting; 0 for none. margin: how much larger
    than the crops drawn from it a picture is held. State, log and sample sheets go to the folder named as `file` is but
    for its suffix; resume: go on with the run there, bit for bit as if it had not stopped.
    Raises ValueError or OSError, in one line, before any work, for what could not work.
    """
    check_label(label)
    _check(base, label, file, rank=rank, prior=prior, resume=resume)
    options = {"base": fingerprint(base.state_dict()), "rank": rank, "prior": prior}
    config = settings_of(
        base, steps=steps, batch=batch, micro=max(1, batch // 2), lr=lr, warmup=min(20, steps), cooldown=steps // 2,
        weight_decay=0.0, ema=0.98, label_dropout=0.0, snr_offset=1.0, margin=margin, flip=flip, seed=seed,
        precision=precision, save_every=50, sheet_every=100,
    )  # fmt: skip
    config = TrainConfig(**{**config.as_dict(), "model": {"lora": options}})
    own = read_pictures(pictures, round(base.config.image_size * margin))
    made, made_labels = own_samples(base, prior, seed=seed, device=device)
    examples = OwnPictures(own, made, made_labels, (*base.labels, label), base.config.image_size, flip, seed)
    maker = partial(LoraTrainer, base=base, file=file)
    run = train(
        config, examples, file.with_suffix(""), resume=resume, device=device, trainer=maker, on_step=on_step
    )
    assert isinstance(run, LoraTrainer)
    return run.adapter()


def read_pictures(folder: Path, size: int) -> Tensor:
    """uint8 [N, 3, size, size]: the centre squares of a folder's pictures. ValueError or OSError in one line."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder: give one that holds 5 to 20 pictures")
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    if not 1 <= len(files) <= MOST_PICTURES:
        raise ValueError(f"{folder} holds {len(files)} pictures ({' '.join(sorted(SUFFIXES))}): give 5 to 20")
    return torch.stack([read_square(file, size) for file in files])


def own_samples(base: TrainedUNet, count: int, *, seed: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """(pictures float32 [count, 3, S, S], labels int64 [count]) that a checkpoint makes of its labels in turn."""
    size = base.config.image_size
    label = torch.arange(count) % base.config.num_classes
    if not count:
        return torch.empty(0, base.config.image_channels, size, size), label
    parts = [
        sample_labels(base, part.to(base.label.weight.device), seed=seed + 1000 * i, steps=12)
        for i, part in enumerate(label.split(8))
    ]
    return torch.cat(parts).cpu(), label


def _check(base: TrainedUNet, label: str, file: Path, *, rank: int, prior: int, resume: bool) -> None:
    if base.config.dims != 2 or base.config.image_channels != 3 or base.corruption or base.config.context_dim:
        raise ValueError(
            "adapters are trained for models that make coloured pictures by label, from noise: this is another"
        )
    if label in base.labels:
        raise ValueError(f"the model has a label {label!r} already: choose another name")
    if file.suffix != ".safetensors":
        raise ValueError(f"--out {file}: an adapter is a .safetensors file")
    for name, value, low, high in (("rank", rank, 1, 256), ("prior", prior, 0, 4096)):
        if not low <= value <= high:
            raise ValueError(f"{name} must be from {low} to {high}, got {value}")
    if file.exists() and not resume:
        raise FileExistsError(f"{file} exists: pass --resume to go on with its run, or choose another name")
    check_writable(file, overwrite=True)


def _built(base: TrainedUNet, config: TrainConfig, labels: tuple[str, ...], *, rank: int) -> TrainedUNet:
    return joined(base, labels[-1], rank=rank, seed=config.seed)


def _sheet(path: Path, model: TrainedUNet) -> None:
    """Eight samples of the new label."""
    write_sheet(path, model, each=4, conditioning={"label": torch.full((8,), model.config.num_classes - 1)})
