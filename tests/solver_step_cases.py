"""Rows and tensors for the tests of solver_step, shared by the backends' test files, and the comparison they make."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from conftest import HALF_AND_SINGLE, assert_accurate
from fastdiff import ops, reference
from fastdiff.reference import COLUMNS

INDEX = torch.tensor(1)
FULL = {
    "p": 1.3, "q": -0.7, "lo": -1.1, "hi": 1.2, "u": 0.2, "w": 0.9, "a": 0.5, "b": 0.3, "c0": 0.6, "c1": -0.4,
    "c2": 0.25, "c3": -0.1, "n": 0.35, "k": 0.8, "g": 3.5, "g_uncond": -2.5, "slot": 3.0, "accept": 1.0,
    "alpha": 0.85, "sigma": 0.4, "f": 0.55,
}  # fmt: skip
"""A row in which no weight is 0."""

PLAIN = {"lo": -torch.inf, "hi": torch.inf, "a": 1.0, "k": 1.0, "g": 1.0, "call": 1.0}
"""Identity on x, no clamp, one call: what a row is unless said otherwise."""

DOUBLED_OUTPUT, GIVEN_SEEDS = "both branches in one output", "seeds"


def make_table(**weights: float) -> Tensor:
    """Three rows of the same weights."""
    row = dict.fromkeys(COLUMNS, 0.0) | PLAIN | weights
    return torch.tensor([list(row.values())] * 3, dtype=torch.float64)


@dataclass
class Case:
    """One step's arguments. images: anchor, h1 to h3, noise, mask, known, known_noise, all [B, ...] float32 but the
    noise, which may be of half precision."""

    x: Tensor
    output: Tensor | None
    table: Tensor
    keywords: dict[str, Any]

    def __call__(self, function: Any = ops.solver_step) -> Any:
        return function(self.x, self.output, self.table, INDEX, **self.keywords)

    def widened(self) -> Case:
        """The same in float64, with the same noise."""
        keywords = {name: widened(value) for name, value in self.keywords.items()}
        return Case(
            widened(self.x), widened(self.output), self.table, keywords | {"input_dtype": torch.float64}
        )


def widened(value: Any) -> Any:
    """value with every float tensor in it in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return [widened(v) for v in value] if isinstance(value, list) else value


def arguments(
    shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
    """(x, output) and every other image that a row can read, in float32 (the model's in dtype)."""
    x, output, uncond, anchor, h1, h2, h3, noise = (torch.randn(shape, generator=generator) for _ in range(8))
    keywords = {"uncond": uncond.to(dtype), "anchor": anchor, "history": [h1, h2, h3], "noise": noise}
    return (x, output.to(dtype)), keywords


def inpainting(shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    """A mask with zeros, ones and values between, and what it keeps."""
    mask, known, known_noise = (torch.randn(shape, generator=generator) for _ in range(3))
    return {"mask": (mask + 0.5).clamp(0, 1), "known": known, "known_noise": known_noise}


def vectors(images: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A bound and a gain for each image."""
    return {name: torch.rand(images, generator=generator) + 0.5 for name in ("bound", "gain")}


def seeds(images: int) -> Tensor:
    """Seeds of all sizes."""
    return torch.arange(images) * 0x3_1234_5678_9ABC + 7


def doubled_output(case: Case) -> Case:
    """The case with both branches in one output."""
    keywords = dict(case.keywords)
    both = torch.cat([case.output, keywords.pop("uncond")])
    return Case(case.x, both, case.table, keywords)


def check(case: Case) -> Any:
    """Compares one step with float64 and with the same formula in its own precision, and returns it."""
    step, exact, composed = case(), case.widened()(reference.solver_step), case(reference.solver_step)
    for actual, *others in zip(step, exact, composed, strict=True):
        assert_accurate(actual, *others)
    assert step.input.dtype == (case.keywords.get("input_dtype") or torch.float32)
    return step


WEIGHTS = st.fixed_dictionaries(
    {name: st.sampled_from([0.0, 1.0, -0.75, 2.5]) for name in FULL if name not in ("lo", "hi", "slot")}
)
BOUNDS = st.sampled_from([(-torch.inf, torch.inf), (-1.0, 1.0), (0.0, torch.inf)])
OPTIONS = st.sets(st.sampled_from(["bound", "gain", "mask", "doubled", DOUBLED_OUTPUT, GIVEN_SEEDS]))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any row over small tensors: any weights 0, any dtypes, options and clamps. Few values would make the largest
    error of the plain composition a matter of luck."""
    shape = (
        *draw(st.lists(st.integers(1, 3), max_size=3)),
        draw(st.integers(32, 70) | st.integers(200, 300)),
    )
    lo, hi = draw(BOUNDS)
    options, model = draw(OPTIONS), draw(st.sampled_from(HALF_AND_SINGLE))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    (x, output), keywords = arguments(shape, generator, model)
    table = make_table(**draw(WEIGHTS) | {"lo": lo, "hi": hi})
    keywords |= {name: v for name, v in vectors(shape[0], generator).items() if name in options}
    keywords |= inpainting(shape, generator) if "mask" in options else {}
    if GIVEN_SEEDS in options:
        keywords |= {"noise": None, "seeds": seeds(shape[0])}
    else:
        keywords["noise"] = keywords["noise"].to(draw(st.sampled_from(HALF_AND_SINGLE)))
    keywords |= {"input_dtype": draw(st.sampled_from(HALF_AND_SINGLE)), "doubled": "doubled" in options}
    case = Case(x, output, table, keywords)
    return doubled_output(case) if DOUBLED_OUTPUT in options else case


def every_option(
    shape: tuple[int, ...], generator: torch.Generator, model: torch.dtype = torch.float32
) -> Iterator[Case]:
    """The full row with every option alone and with all of them."""
    for options in ((), ("bound",), ("gain",), ("mask",), ("seeds",), ("bound", "gain", "mask", "seeds")):
        positional, keywords = arguments(shape, generator, model)
        more = vectors(shape[0], generator) | {"seeds": seeds(shape[0])}
        keywords |= {name: value for name, value in more.items() if name in options}
        keywords |= inpainting(shape, generator) if "mask" in options else {}
        keywords |= {"noise": None} if "seeds" in options else {}
        case = Case(*positional, make_table(**FULL), keywords)
        yield case
        yield doubled_output(case)
