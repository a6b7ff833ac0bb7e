"""How fast each deterministic sampler converges to the exact solution of the probability-flow ODE.

Prints, for each sampler, the error at a number of model calls and the order measured there beside the theoretical one
(docs/samplers.md says on which grids and why), and draws error over model calls. The data is a Gaussian mixture in the
plane, whose denoiser has a closed form; everything is float64.

    python benchmarks/convergence.py [--process exploding|preserving|flow] [--out docs/images/convergence.png]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the cases and the oracles are the tests' own

from convergence_cases import CASES, GENTLE, Case, measure  # noqa: E402
from fastdiff import spacings  # noqa: E402
from fastdiff.levels import Level, Process  # noqa: E402
from oracles import processes  # noqa: E402

# What is drawn: the name shown, and the sampler with its order. One colour an order.
DRAWN = (
    ("ddim = euler", Case("ddim", 1)),
    ("heun", Case("heun", 2)),
    ("dpm_2", Case("dpm_2", 2)),
    ("dpmpp_2m", Case("dpmpp_2m", 2)),
    ("dpmpp_3m_sde, eta 0", Case("dpmpp_3m_sde", 2, {"eta": 0.0})),
    ("dpmpp_singlestep 3", Case("dpmpp_singlestep", 3, {"order": 3})),
    ("deis 3", Case("deis", 3, {"order": 3})),
    ("unipc 2", Case("unipc", 3, {"order": 2})),
    ("unipc 3", Case("unipc", 4, {"order": 3})),
    ("lms 4", Case("lms", 4, {"order": 4})),
)
COLOURS = {1: "#8a8a8a", 2: "#1f77b4", 3: "#2a9d4a", 4: "#c8452f"}
MARKERS = "osD^vPX<>*"


def karras(process: Process, steps: int) -> list[Level]:
    """The grid most people use, without its last jump to zero: Karras from 20 to 0.02."""
    return [process.at(ratio) for ratio in spacings.karras(steps + 1, 0.02, 20.0)]


def table(process: Process) -> str:
    """One line a case: calls, error, measured and theoretical order."""
    lines = [f"{'sampler':<56} {'grid':<6} {'calls':>6} {'error':>9} {'order':>6} {'theory':>7}"]
    for case in CASES:
        measured = measure(case, process)
        grid = "gentle" if case.grid is GENTLE else "even"
        lines.append(
            f"{case.name:<56} {grid:<6} {measured.calls[-1]:>6} {measured.errors[-1]:>9.1e} "
            f"{measured.order:>6.2f} {case.order_on(process):>7}"
        )
    return "\n".join(lines)


def draw(process: Process, name: str, out: Path) -> None:
    """Two panels: the grid the orders are measured on, and Karras sigmas at the numbers of calls people use."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = (
        ("Many calls: the slopes are the orders", GENTLE, (20, 40, 80, 160, 320)),
        ("Few calls, on Karras sigmas", karras, (5, 7, 10, 14, 20, 28, 40, 56)),
    )
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 5.2), layout="constrained")
    for axis, (title, grid, steps) in zip(axes, panels):
        for (shown, case), marker in zip(DRAWN, MARKERS):
            measured = measure(replace(case, grid=grid), process, steps)
            axis.loglog(
                measured.calls, measured.errors, color=COLOURS[case.order], marker=marker, markersize=5, linewidth=1.3,
                label=f"{shown} ({case.order})",
            )  # fmt: skip
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("model calls")
        axis.grid(True, which="major", color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("error, relative")
    for axis, ticks in zip(axes, ((20, 40, 80, 160, 320, 640), (5, 10, 20, 50, 100))):
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
    axes[1].legend(
        fontsize=9,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        title="sampler (order)",
        title_fontsize=9,
    )
    figure.suptitle(f"Distance from the exact solution, Gaussian mixture, {name} process", fontsize=12)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--process", choices=list(processes()), default="exploding")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "convergence.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    process = processes()[options.process]
    print(table(process))
    draw(process, options.process, options.out)
    print(f"drawn: {options.out}")


if __name__ == "__main__":
    main()
