"""The samplers of fastdiff.kdiffusion against k-diffusion's own: what a run costs beside its model calls.

python benchmarks/kdiffusion.py [--shape 2 4 64 64] [--steps 20] [--repeats 60]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tqdm
from torch import Tensor

from fastdiff import kdiffusion as ours

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from test_parity_kdiffusion import load_sampling

theirs: Any = load_sampling()

SAMPLERS = ("euler", "heun", "dpm_2", "lms", "euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde",
            "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde")  # fmt: skip


def fastest_fifth(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The 20th percentile of each call's time in milliseconds, the calls taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: sorted(times)[len(times) // 5] for name, times in taken.items()}


def measure(name: str, x: Tensor, steps: int, repeats: int) -> dict[str, float]:
    """Milliseconds of a run: theirs, ours, and both with a callback. The model returns a constant."""
    sigmas, denoised = theirs.get_sigmas_karras(steps, 0.03, 14.6), torch.randn_like(x)
    # a Brownian tree would take longer than all else, on both sides
    noise = {"noise_sampler": lambda a, b: denoised} if "sde" in name else {}

    def run(module: Any, callback: Callable[[Any], None] | None) -> Callable[[], Any]:
        sampler = getattr(module, f"sample_{name}")
        return lambda: sampler(lambda x, s: denoised, x, sigmas, disable=True, callback=callback, **noise)

    calls = {"theirs": run(theirs, None), "ours": run(ours, None)}
    watched = {
        f"{who} watched": run(module, lambda told: None)
        for who, module in (("theirs", theirs), ("ours", ours))
    }
    return fastest_fifth(calls | watched, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs="+", default=[2, 4, 64, 64])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tqdm.tqdm.monitor_interval = 0  # k-diffusion's bars start a thread, which is not fastdiff's cost
    x = torch.randn(options.shape) * 14.6
    print("| sampler | k-diffusion ms | fastdiff ms | ratio | with a callback |\n|---|---:|---:|---:|---:|")
    for name in SAMPLERS:
        t = measure(name, x, options.steps, options.repeats)
        plain, watched = t["theirs"] / t["ours"], t["theirs watched"] / t["ours watched"]
        print(f"| {name} | {t['theirs']:.2f} | {t['ours']:.2f} | {plain:.1f} | {watched:.1f} |")


if __name__ == "__main__":
    main()
