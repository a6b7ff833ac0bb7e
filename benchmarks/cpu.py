"""The CPU ops against what they replace, as ratios taken in one run; every figure stands beside a correctness check.

    python benchmarks/cpu.py [--only GROUP ...] [--seconds 4] [--compile] [--out FILE.json]

step: a prepared step, which is what fastdiff.sample takes, and the op solver_step_, against diffusers'
    DPMSolverMultistepScheduler.step(), for one step of 20 (order 2, data prediction).
loop: the same for the whole of fastdiff.sample() outside the model, which returns a tensor made before; against
    diffusers' steps alone, and against its set_timesteps() and steps, which do what sample() does.
guided: a guided row, dynamic thresholding's quantile and guidance rescale's factor against the same in PyTorch.
norm, backward: group_norm_silu and its gradients against F.silu(F.group_norm(x)), with --compile against Inductor's
    version of it too.
noise: add_noise, the noise given, against a copy that moves as many bytes.
draw: q_sample, the noise drawn inside, against torch.randn and the same sum.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from cases import Image, Norm, add_noise_case, backward_case, eager_norm, norm_case, q_sample_case
from fastdiff import native
from results import RESULTS, save
from shapes import IMAGES, LATENTS, SD15
from solver_cases import bound_case, gain_case, row_case
from timing import Case, timed

DTYPES = (torch.float32, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last")


def images(shapes: tuple[tuple[int, ...], ...] = SD15) -> Iterator[Image]:
    """Every shape in each dtype and layout."""
    for dtype, shape, layout in itertools.product(DTYPES, shapes, LAYOUTS):
        yield Image(shape, dtype, layout)


def cases(compiled: bool) -> dict[str, Callable[[], Iterator[Case]]]:
    """group -> its cases, made one after another as they are timed."""
    from loops import loop_case, step_case

    peers: dict[str, Norm] = {"eager": eager_norm}
    if compiled:
        torch._dynamo.config.recompile_limit = 256
        peers["torch.compile"] = torch.compile(eager_norm, dynamic=False)
    sizes = (LATENTS, IMAGES)
    return {
        "step": lambda: (step_case(shape) for shape in sizes),
        "loop": lambda: (loop_case(shape, steps) for shape in sizes for steps in (20, 50)),
        "norm": lambda: (norm_case(image, peers) for image in images()),
        "backward": lambda: (backward_case(image, peers) for image in images()),
        "guided": lambda: (
            make(Image(shape)) for make in (row_case, bound_case, gain_case) for shape in sizes
        ),
        "noise": lambda: (add_noise_case(Image(shape)) for shape in sizes),
        "draw": lambda: (q_sample_case(Image(shape, dtype)) for dtype in DTYPES for shape in sizes),
    }


GROUPS = ("step", "loop", "guided", "norm", "backward", "noise", "draw")
SHARE = {"norm": 0.25, "backward": 0.25}
"""There are many of these: each gets this part of --seconds."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each comparison")
    parser.add_argument(
        "--compile", action="store_true", help="compare with torch.compile too (slow to start)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu.json")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    options = parse()
    groups = cases(options.compile)
    print(f"{'microseconds':<30}{'p20':>10}{'p50':>10}{'p80':>10}    times as long as ours")
    results = []
    for name in options.only:
        for case in groups[name]():
            results.append(timed(case, seconds=options.seconds * SHARE.get(name, 1.0)))
            print("\n".join(results[-1].lines()), flush=True)
            save(results, options.out, {"isa": native.isa()})


if __name__ == "__main__":
    main()
