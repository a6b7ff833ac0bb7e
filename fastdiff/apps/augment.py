"""More pictures like one's own, for training classifiers: SDEdit of each by a little, towards its own label.

augmentation = Augmentation(strength=(0.2, 0.6))
picture = augmentation(picture, "cat")                               # as a transform
data = Augmented(dataset, augmentation, copies=4, labels=names)      # as a Dataset, also with DataLoader workers

Each picture is noised part of the way and made anew from there (arXiv:2108.01073), as Trabucco et al. 2023
(arXiv:2302.07944) do with Stable Diffusion. What comes out depends on the picture, its prompt and its seed alone.
Folders are augmented by fastdiff.apps.augment_folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastdiff.apps.picture import Frame, checked, scale_for
from fastdiff.apps.settings import MAX_COUNT, Settings, check_integer, check_number
from fastdiff.apps.source import Source, source_of
from fastdiff.events import Callback
from fastdiff.guidance import Guidance
from fastdiff.noise import MAX_SEED
from fastdiff.plan import Plan
from fastdiff.sampling import sample
from fastdiff.uniform_noise import UniformNoise

TOWARDS = ("own", "nothing")


@dataclass(frozen=True)
class Augmentation:
    """Makes other pictures of pictures; also a transform, picture -> picture.

    strength: one number or (low, high), from which each picture's own is drawn evenly: 0 gives the picture back, 1 a
    new one. It is rounded to whole steps. towards: "own", the picture's label where the model knows it; "nothing", the
    null class for all. model, device: as for `fastdiff.apps.generate.prepare`; loaded when first needed, so that
    DataLoader workers load their own. steps, sampler, options, guidance, batch: of
    `fastdiff.apps.settings.Settings`; unguided by default, which is truer to the picture and twice as fast.

    Raises ValueError or TypeError for what could not work.
    """

    _: KW_ONLY
    strength: float | tuple[float, float] = (0.2, 0.6)
    towards: str = "own"
    model: object = None
    device: str | None = None
    steps: int = 20
    sampler: str = "dpmpp_2m"
    options: dict[str, Any] = field(default_factory=dict)
    guidance: float = 1.0
    batch: int | None = None

    def __post_init__(self) -> None:
        low, high = self.range
        for value in (low, high):
            check_number("strength", value, 0.0, 1.0)
        if low > high:
            raise ValueError(f"the strength's range must rise, got {low:g} to {high:g}")
        if self.towards not in TOWARDS:
            raise ValueError(f"towards must be one of {', '.join(TOWARDS)}, got {self.towards!r}")
        if self.model is None or isinstance(self.model, (str, os.PathLike)):
            return
        source_of(self.model, device=self.device)

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest strength."""
        given = self.strength
        low, high = given if isinstance(given, (tuple, list)) else (given, given)
        return low, high

    @property
    def source(self) -> Source:
        """The model, loaded when it is first asked for."""
        found = self.__dict__.get("_source")
        if found is None:
            found = source_of(self.model, device=self.device)
            object.__setattr__(self, "_source", found)
        source: Source = found
        return source

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_source"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def settings(self) -> Settings:
        """How it samples."""
        return Settings(
            steps=self.steps, sampler=self.sampler, options=self.options, guidance=self.guidance,
            batch=self.batch,
        )  # fmt: skip

    def plan(self, size: tuple[int, int]) -> Plan:
        """The whole plan for pictures of that size, of which each takes its part."""
        plan = self.settings.plan(self.source, size)
        if not isinstance(plan, Plan):
            raise ValueError(f"{self.sampler} chooses its steps as it goes: use another sampler to augment")
        return plan

    def steps_of(self, seed: int) -> int:
        """How many of the steps the picture with this seed takes; its strength is that over `steps`."""
        low, high = self.range
        drawn = np.random.default_rng([seed & MAX_SEED, 1]).uniform(low, high)
        return max(round(drawn * self.steps), 1 if drawn > 0 else 0)

    def prompt_of(self, label: str | None) -> str | None:
        """What the picture of a label is made towards, None where the model does not know the label."""
        source = self.source
        if label is None or self.towards == "nothing":
            return None
        if source.labels:
            return label if label in source.labels else None
        return label.replace("_", " ") if source.takes_text else None

    def __call__(self, picture: Tensor, label: str | None = None, *, seed: int | None = None) -> Tensor:
        """Another picture like this one: float32 [3, H, W] in [-1, 1], as the given one must be.

        seed: what to make; drawn from torch's global generator if None (which DataLoader seeds for each worker).
        """
        if seed is None:
            seed = int(torch.randint(MAX_SEED, ()).item())
        return self.many(checked(picture)[None], [label], [seed], steps=self.steps_of(seed))[0]

    def many(
        self,
        pictures: Tensor,
        labels: Sequence[str | None],
        seeds: Sequence[int],
        *,
        steps: int,
        callback: Callback | None = None,
    ) -> Tensor:
        """[B, 3, H, W], all taking `steps` of the steps, made at once -> as many pictures."""
        source, frame = self.source, Frame.of(pictures, self.source)
        plan = self.plan(frame.size).start_at(steps / self.steps)
        prompts = tuple(self.prompt_of(label) for label in labels)
        scale = scale_for(self.settings, source, prompts)
        guidance = None
        if scale != 1.0:
            guidance = Guidance(scale, source.conditioning([None] * len(prompts)))
        with torch.no_grad():
            x = source.encode(frame.pad(pictures))
        noise: dict[str, Any] = {"seed": list(seeds)}
        if getattr(source, "noise", "gaussian") == "uniform":  # a model trained on it
            noise = {"noise": UniformNoise(seeds)}
        x = sample(
            source, x, sampler=plan, strength=1.0, conditioning=source.conditioning(prompts), guidance=guidance,
            callback=callback, **noise,
        )  # fmt: skip
        return frame.crop(source.decode(x))


class Sized(Protocol):
    """A map-style dataset of pairs (picture, class)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class Augmented(Dataset[tuple[Tensor, Any]]):
    """The pictures of a dataset and, after them, `copies` augmented ones of each.

    dataset: gives (picture float [3, H, W] in [-1, 1], class) for an index. labels: the names of the classes, by which
    the model may know them; without them, pictures are made towards nothing. seed: item i is the same whenever and in
    whatever worker it is asked for. fresh: give None to an augmented item's seed instead, so that each epoch differs.
    originals: whether the dataset's own pictures come first.
    Pictures are made one at a time: to use them for many epochs, keep them, or augment a folder once.
    """

    def __init__(
        self,
        dataset: Sized,
        augmentation: Callable[..., Tensor],
        *,
        copies: int = 1,
        labels: Sequence[str] | None = None,
        seed: int = 0,
        fresh: bool = False,
        originals: bool = True,
    ) -> None:
        check_integer("copies", copies, 1, MAX_COUNT)
        check_integer("seed", seed, 0, MAX_SEED)
        self.dataset, self.augmentation, self.copies = dataset, augmentation, copies
        self.labels = None if labels is None else tuple(labels)
        self.seed, self.fresh, self.originals = seed, fresh, originals

    def __len__(self) -> int:
        return len(self.dataset) * (self.copies + self.originals)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """(picture, class). IndexError beyond the end."""
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        turn, item = divmod(index, len(self.dataset))
        picture, kind = self.dataset[item]
        if self.originals and not turn:
            return picture, kind
        seed = None if self.fresh else seed_of(self.seed, index)
        label = None if self.labels is None else self.labels[int(kind)]
        return self.augmentation(picture, label, seed=seed), kind


def seed_of(*parts: int) -> int:
    """One seed from several numbers, unlike its neighbours': 0 .. MAX_SEED - 1."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0]) % MAX_SEED
