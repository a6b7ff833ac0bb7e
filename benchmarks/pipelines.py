"""Small pipelines of many families, accelerated and as they were: the same result, the ratio of times, what was fused.

    python benchmarks/pipelines.py [--only NAME ...] [--steps 6] [--seconds 5] [--out FILE.json]

The models have random weights and are small, so that the scheduler and the calls around it weigh more than they would
in a full-size pipeline: benchmarks/sd15.py has the full sizes. Each is timed only after its result was found the same,
and is in the file at once; with --only the others stay in it. benchmarks/accelerate_table.py makes the documentation's
table of it. All of them take about six minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from pathlib import Path
from typing import Any

from fastdiff.patching import accelerate
from results import RESULTS, update
from timing import Case, Result, Timed, difference, timed
from tiny_pipelines import Family, families

ALLOWED = 1e-5


def measured(name: str, family: Family, *, steps: int, seconds: float) -> Result:
    """The pipeline as it was and accelerated, in turns."""
    plain, ours = family.build(), accelerate(family.build())
    expected = family.call(plain, steps)
    error = difference(family.call(ours, steps), expected)
    functions = {
        "diffusers": Timed(lambda: family.call(plain, steps)),
        "accelerated": Timed(lambda: family.call(ours, steps)),
    }
    result = timed(Case(name, functions, "accelerated", error, ALLOWED), seconds=seconds)
    return dataclasses.replace(result, notes={"fused": summary(ours), "report": str(ours.report)})


def summary(pipe: Any) -> str:
    """The report in one line."""
    steps = [f"{s.kind.removesuffix('Scheduler')}: {s.lines()[0]}" for s in pipe.report.schedulers]
    norms = [
        f"{m.name}: {', '.join(f'{n} {k}' for k, n in m.fused.items())}"
        for m in pipe.report.models
        if m.fused
    ]
    return "; ".join(steps + norms)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(families()))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "pipelines.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        f"{'family':<24}{'largest difference':>20}{'diffusers ms':>14}{'ours ms':>10}{'ratio p20':>11}  fused"
    )
    for name, family in families().items():
        if options.only and name not in options.only:
            continue
        result = measured(name, family, steps=options.steps, seconds=options.seconds)
        theirs, ours = (result.spreads[key].p20 / 1e3 for key in ("diffusers", "accelerated"))
        figures = f"{result.error:>20.1e}{theirs:>14.1f}{ours:>10.1f}{theirs / ours:>10.2f}x"
        print(f"{name:<24}{figures}  {result.notes['fused']}", flush=True)
        update([result], options.out, {"steps": options.steps})


if __name__ == "__main__":
    main()
