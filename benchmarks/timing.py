"""How the benchmarks time: the compared functions take turns, so that noise falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Timed:
    """run is timed, after prepare, which is not; one run does `units` of the work that is reported."""

    run: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None
    units: int = 1


@dataclass(frozen=True)
class Spread:
    """Microseconds for one unit of work: a fifth of the runs took less than p20, half less than p50."""

    p20: float
    p50: float
    p80: float


@dataclass(frozen=True)
class Case:
    """What is compared with what, on inputs for which ours was found right before anything is timed.

    error: how far our result is from the truth, relative to its largest value; allowed: how far it may be.
    moved: the fewest bytes that can do the work, read and written (0: not a matter of bytes).
    """

    name: str
    functions: Mapping[str, Timed]
    ours: str
    error: float
    allowed: float
    moved: int = 0

    def __post_init__(self) -> None:
        if not self.error <= self.allowed:
            raise ValueError(
                f"{self.name}: off by {self.error:.2e}, more than {self.allowed:.0e}: nothing was timed"
            )


@dataclass(frozen=True)
class Result:
    """The times of one case. ratios: how many times longer each other function took than `ours`, at p50 and at p20."""

    name: str
    error: float
    spreads: Mapping[str, Spread]
    ours: str
    moved: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)

    def ratios(self, quantile: str = "p50") -> dict[str, float]:
        own = getattr(self.spreads[self.ours], quantile)
        return {n: getattr(s, quantile) / own for n, s in self.spreads.items() if n != self.ours}

    def rates(self) -> dict[str, float]:
        """GB/s of each function at p50, counting the bytes that the work must move."""
        return {n: self.moved / s.p50 / 1e3 for n, s in self.spreads.items()} if self.moved else {}

    def lines(self) -> list[str]:
        """The comparison as text, one function a line."""
        head = f"{self.name}   (largest difference {self.error:.1e})"
        head += "".join(f"   {key} {value}" for key, value in self.notes.items())
        rows, rates = [], self.rates()
        for name, s in self.spreads.items():
            rate = f"{rates[name]:8.1f} GB/s" if rates else ""
            ratio = "" if name == self.ours else self._ratio(name)
            rows.append(f"    {name:<26}{s.p20:10.1f}{s.p50:10.1f}{s.p80:10.1f} us {rate} {ratio}")
        return [head, *rows]

    def _ratio(self, name: str) -> str:
        return f"{self.ratios()[name]:7.2f}x  (p20 {self.ratios('p20')[name]:.2f}x)"

    def as_data(self) -> dict[str, Any]:
        """For JSON: everything, with the ratios worked out."""
        worked_out = {"ratios_p50": self.ratios(), "ratios_p20": self.ratios("p20"), "gb_per_s": self.rates()}
        return asdict(self) | worked_out


def timed(case: Case, *, seconds: float) -> Result:
    """The times of a case on the CPU."""
    spreads = interleaved(case.functions, seconds=seconds)
    return Result(case.name, case.error, spreads, case.ours, case.moved)


def interleaved(functions: Mapping[str, Timed], *, seconds: float, least: int = 15) -> dict[str, Spread]:
    """Runs the functions in turn for about `seconds`, at least `least` times each, and returns their spreads."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for each in functions.values():  # warm up
        each.prepare()
        each.run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, each in functions.items():
            each.prepare()
            start = time.perf_counter()
            each.run()
            times[name].append((time.perf_counter() - start) / each.units * 1e6)
    return {name: spread(values) for name, values in times.items()}


def spread(values: list[float]) -> Spread:
    p20, _, _, p80 = statistics.quantiles(values, n=5)
    return Spread(p20, statistics.median(values), p80)


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value of b; NaN for what is not finite."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def draw(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu", *, seed: int = 0
) -> Tensor:
    """Normal values, the same at each call on one kind of device."""
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device).to(dtype)
