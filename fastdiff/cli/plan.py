"""fastdiff plan: the rows a sampler turns a schedule into, and a drawing of the noise levels."""

from __future__ import annotations

import argparse
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdiff.plan import Plan


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command `plan`."""
    parser = subparsers.add_parser(
        "plan",
        help="print the table of rows of a sampler, draw its noise levels",
        description="Print the rows of weights a sampler makes of a schedule: all that happens between model calls.",
    )
    parser.add_argument(
        "--sampler",
        default="dpmpp_2m",
        metavar="NAME[:key=value,...]",
        help="such as dpmpp_2m, ddim:eta=0.5 or unipc:order=3 (default dpmpp_2m)",
    )
    parser.add_argument("--steps", type=int, default=20, help="number of steps (default 20)")
    parser.add_argument(
        "--schedule",
        default="cosine_betas",
        metavar="NAME[:key=value,...]",
        help="such as scaled_linear_betas:spacing=karras, karras:sigma_min=0.03,sigma_max=15 or flow:shift=3 "
        "(default cosine_betas)",
    )
    parser.add_argument(
        "--prediction",
        help="epsilon, sample, v, flow or edm (default flow for the schedule flow, else epsilon)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the levels and the table as one JSON object"
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the noise levels (needs matplotlib)")
    parser.add_argument("--overwrite", action="store_true", help="let --plot replace an existing file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan and, with --plot, draw it."""
    from fastdiff.files import check_writable

    if args.plot:
        check_writable(args.plot, overwrite=args.overwrite)
    plan = build(args)
    if args.plot:
        draw(plan, Path(args.plot), overwrite=args.overwrite)
    print(json.dumps(as_data(plan)) if args.json else plan)
    return 0


def build(args: argparse.Namespace) -> Plan:
    """The plan that the arguments name."""
    from fastdiff.choices import unknown
    from fastdiff.cli.spec import parse_sampler, parse_schedule
    from fastdiff.levels import LinearPath
    from fastdiff.plan import Plan
    from fastdiff.predictions import PREDICTIONS
    from fastdiff.sampling import planned

    sampler, options = parse_sampler(args.sampler)
    schedule = parse_schedule(args.schedule)
    prediction = args.prediction or ("flow" if isinstance(schedule.process, LinearPath) else "epsilon")
    if prediction not in PREDICTIONS:
        raise unknown("prediction", prediction, PREDICTIONS)
    plan = planned(sampler, schedule, steps=args.steps, prediction=prediction, options=options)
    if not isinstance(plan, Plan):
        raise ValueError(f"{sampler} chooses its steps as it goes, so that there is no table of it to print")
    return plan


def as_data(plan: Plan) -> dict[str, Any]:
    """The plan as JSON data; what JSON has no number for (no bound, no model time) is null."""
    from fastdiff.reference import COLUMNS

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "sampler": plan.name,
        "steps": len(plan.levels) - 1,
        "model_calls": plan.calls,
        "stochastic": plan.stochastic,
        "prediction": plan.prediction.name,
        "levels": [{"t": level.t, "alpha": level.alpha, "sigma": level.sigma} for level in plan.levels],
        "times": [number(time) for time in plan.times],
        "columns": list(COLUMNS),
        "rows": [[number(weight) for weight in row] for row in plan.table.tolist()],
    }


def draw(plan: Plan, path: Path, *, overwrite: bool) -> None:
    """Draw sigma / alpha and the weights of signal and noise over the model calls. Raises if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--plot needs matplotlib: pip install matplotlib") from None
    from fastdiff.files import write_atomic

    called = [row.level for row in plan.rows if row.call]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    ratios = [level.ratio if math.isfinite(level.ratio) else math.nan for level in called]
    left.semilogy(range(1, len(called) + 1), ratios, "o-", markersize=3, color="#3b6ea5")
    left.set(
        xlabel="model call",
        ylabel="noise / signal (sigma / alpha)",
        title=f"{plan.name}, {plan.calls} model calls",
    )
    ends = range(len(plan.levels))
    right.plot(
        ends,
        [level.alpha for level in plan.levels],
        "o-",
        markersize=3,
        label="alpha (signal)",
        color="#5a9367",
    )
    right.plot(
        ends,
        [level.sigma for level in plan.levels],
        "o-",
        markersize=3,
        label="sigma (noise)",
        color="#c8553d",
    )
    right.set(xlabel="step", title="levels")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomic(path, lambda file: file.write(buffer.getbuffer()), overwrite=overwrite)
