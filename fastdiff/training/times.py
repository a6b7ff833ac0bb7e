"""Which noise levels a batch is trained at: a quantile function, from a share in (0, 1) to a level.

{"name": "discrete"}                                 the training indices, or 1000 points of a path
{"name": "uniform"}                                  any time, evenly (Kingma et al. 2021, arXiv:2107.00630)
{"name": "log_normal", "mean": -1.2, "std": 1.2}     log(sigma / alpha) is normal (EDM, arXiv:2206.00364, table 1)
{"name": "logit_normal", "mean": 0.0, "std": 1.0}    logit(t / T) is normal (SD3, arXiv:2403.03206, equation 19)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any

from fastdiff.choices import unknown
from fastdiff.continuous import CosinePath, LinearBetas
from fastdiff.levels import DiscreteTime, Level, LinearPath, Process
from fastdiff.schedules import Schedule

POINTS = 1000
EDGE = 1e-6
"""Shares are kept this far from 0 and 1, where a level would be clean or infinitely noisy."""

LARGEST = 50.0
"""Of a mean and a deviation: e to the power of what they give is a float."""

Quantile = Callable[[float], Level]


def training_levels(schedule: Schedule) -> list[Level]:
    """The discrete levels: the training indices, or POINTS times evenly up to T."""
    process = schedule.process
    if isinstance(process, DiscreteTime):
        return [process.level(t) for t in range(len(process))]
    last = _last_time(process, "discrete")
    return [process.level(last * (i + 1) / POINTS) for i in range(POINTS)]


def quantile(schedule: Schedule, options: Mapping[str, Any]) -> Quantile | None:
    """The quantile function of continuous times; None for discrete ones. ValueError for options that do not fit."""
    name = options.get("name")
    if name not in NAMES:
        raise unknown("times", name, NAMES)
    rest = {key: value for key, value in options.items() if key != "name"}
    unknown_keys = sorted(set(rest) - set(NAMES[name]))
    if unknown_keys:
        raise ValueError(
            f"times {name} has no option {', '.join(unknown_keys)}: it takes {list(NAMES[name])}"
        )
    normal = {**NAMES[name], **rest}
    for key, value in normal.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not -LARGEST <= value <= LARGEST or (key == "std" and value <= 0):
            raise ValueError(
                f"times {key} must be a finite number up to {LARGEST:g}, std above 0, got {value!r}"
            )
    if name == "discrete":
        return None
    if name == "log_normal":
        return _log_normal(schedule.process, **normal)
    return _at_share(schedule.process, name, normal)


def _log_normal(process: Process, *, mean: float, std: float) -> Quantile:
    spread = NormalDist(mean, std)
    low, high = 0.0, math.inf
    if isinstance(process, DiscreteTime):  # beyond its ends there are no times
        low, high = process.level(0).ratio, process.level(len(process) - 1).ratio
    return lambda share: process.at(min(max(math.exp(spread.inv_cdf(_inside(share))), low), high))


def _at_share(process: Process, name: str, normal: Mapping[str, float]) -> Quantile:
    last = _last_time(process, name)
    if name == "uniform":
        return lambda share: process.level(last * _inside(share))
    spread = NormalDist(normal["mean"], normal["std"])

    def level(share: float) -> Level:
        return process.level(last * _inside(1.0 / (1.0 + math.exp(-spread.inv_cdf(_inside(share))))))

    return level


def _inside(share: float) -> float:
    return min(max(share, EDGE), 1.0 - EDGE)


def _last_time(process: Process, name: str) -> float:
    if isinstance(process, DiscreteTime):
        return len(process) - 1.0
    if isinstance(process, (LinearPath, CosinePath, LinearBetas)):
        return process.T
    raise ValueError(f'a schedule of sigmas has no {name} times: use {{"name": "log_normal"}}')


NAMES: dict[str, dict[str, float]] = {
    "discrete": {},
    "uniform": {},
    "log_normal": {"mean": -1.2, "std": 1.2},
    "logit_normal": {"mean": 0.0, "std": 1.0},
}
