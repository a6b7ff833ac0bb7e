"""The end-to-end tables of a GPU visit: whole models and whole loops, which the kernels are only a part of.

    python benchmarks/gpu_models.py --out FILE.json [--limit 120] [--device cuda] [--tiny]

blocks: stacks of residual blocks with random weights at the sizes of a UNet and of an image decoder (convolutions and
    norms, no attention), with nn.GroupNorm and SiLU, the same compiled, and with GroupNormSiLU in their place.
loop: what fastdiff.sample does outside the model, for each step, against diffusers' schedulers where that is installed.
graphs: a denoiser of residual blocks sampled by 20 steps, with and without whole-loop graphs.
counts: kernels launched and host synchronisations in a step of fastdiff.sample.
"""

from __future__ import annotations

import importlib.util
import itertools
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdiff
from fastdiff import schedules
from fastdiff.nn import GroupNormSiLU
from fastdiff.noise import CounterNoise
from gpu_table import Table, parser
from shapes import IMAGES, LATENTS, XL_LATENTS, Shape
from timing import Case, Timed, difference, draw


class Block(nn.Module):
    """norm, SiLU, convolution, add the embedding, norm, SiLU, convolution, plus the input."""

    def __init__(self, channels: int, fused: bool) -> None:
        super().__init__()
        norm = GroupNormSiLU if fused else nn.GroupNorm
        self.norm1, self.norm2 = norm(32, channels), norm(32, channels)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.fused = fused

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: [B, channels, H, W]; emb: [B, channels]."""
        if self.fused:
            h = self.conv1(self.norm1(x))
            return x + self.conv2(self.norm2(h, add=emb))
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h + emb[:, :, None, None])))


class Stack(nn.Module):
    """Blocks of one width."""

    def __init__(self, channels: int, count: int, *, fused: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(channels, fused) for _ in range(count))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, emb)
        return x


def stack_case(shape: Shape, dtype: torch.dtype, device: str, *, compiled: bool) -> Case:
    """Three blocks: ours against eager and compiled, channels-last, with one set of weights."""
    plain, fused = (Stack(shape[1], 3, fused=f).to(device, dtype) for f in (False, True))
    fused.load_state_dict(plain.state_dict())
    x = draw(shape, dtype, device).to(memory_format=torch.channels_last)
    emb = draw(shape[:2], dtype, device, seed=1)
    for model in (plain, fused):
        model.to(memory_format=torch.channels_last)
    exact = Stack(shape[1], 3, fused=False).to(device, torch.float64)
    exact.load_state_dict({key: value.double() for key, value in plain.state_dict().items()})
    functions = {"fused norms": Timed(lambda: fused(x, emb)), "eager": Timed(lambda: plain(x, emb))}
    if compiled:
        inductor = torch.compile(plain, dynamic=False)
        functions["torch.compile"] = Timed(lambda: inductor(x, emb))
    error = difference(fused(x, emb), exact(x.double(), emb.double()))
    return Case(
        f"3 residual blocks {shape} {dtype}".replace("torch.", ""), functions, "fused norms", error, 0.05
    )


def loop_case(shape: Shape, sampler: str, device: str) -> Case:
    """A sampler's steps around a model that costs nothing."""
    x, output = draw(shape, device=device), draw(shape, device=device, seed=1) * 0.5
    schedule, steps = schedules.scaled_linear_betas(), 20
    noise = CounterNoise(range(len(x)))  # drawn in the step; a seed would be drawn on the CPU and copied

    def ours() -> Tensor:
        return fastdiff.sample(
            lambda x_in, t: output, x, schedule=schedule, sampler=sampler, steps=steps, noise=noise
        )

    return Case(
        f"loop {sampler} {shape}", {"fastdiff.sample": Timed(ours, units=steps)}, "fastdiff.sample", 0.0, 0.0
    )


def counts(table: Table, shape: Shape, sampler: str) -> None:
    """Kernels and synchronisations of one run of 20 steps, as the profiler and the sync check of torch see them."""
    case = loop_case(shape, sampler, table.device)
    run = case.functions["fastdiff.sample"].run
    run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    on_device = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    launches = sum("memcpy" not in e.name.lower() for e in on_device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
        synchronises = "none"
    except RuntimeError as error:
        synchronises = str(error)[:200]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    table.notes[case.name] = {"device activities in 20 steps": launches, "synchronisations": synchronises}


class Denoiser(nn.Module):
    """A stack of blocks between two convolutions, which takes its time: many launches, as a UNet has."""

    def __init__(self, channels: int, width: int, count: int) -> None:
        super().__init__()
        self.head, self.tail = (
            nn.Conv2d(channels, width, 3, padding=1),
            nn.Conv2d(width, channels, 3, padding=1),
        )
        self.stack = Stack(width, count, fused=True)
        self.embed = nn.Linear(1, width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: [B, channels, H, W]; t: [B]."""
        emb = self.embed((t / 1000).to(x.dtype)[:, None])
        return self.tail(self.stack(self.head(x), emb))


def graph_case(shape: Shape, count: int, device: str, dtype: torch.dtype) -> Case:
    """fastdiff.sample with graphs (on a GPU) against without, a step."""
    model = Denoiser(shape[1], 64, count).to(device, dtype).eval()
    x, noise = draw(shape, device=device), CounterNoise(range(shape[0]))
    schedule, steps = schedules.scaled_linear_betas(), 20

    def run(graph: bool) -> Tensor:
        return fastdiff.sample(
            model, x, schedule=schedule, sampler="euler_ancestral", steps=steps, noise=noise, dtype=dtype,
            graph="auto" if graph else False,
        )  # fmt: skip

    functions = {
        "graph": Timed(partial(run, True), units=steps),
        "eager": Timed(partial(run, False), units=steps),
    }
    return Case(f"graphs {count} blocks {shape}", functions, "graph", difference(run(True), run(False)), 0.02)


STACKS: tuple[Shape, ...] = ((2, 320, 64, 64), (2, 640, 128, 128), (1, 512, 256, 256), (1, 256, 512, 512))


@torch.inference_mode()
def main() -> None:
    options = parser(__doc__, 120.0).parse_args()
    table = Table(options.out, options.limit, options.device)
    sizes: tuple[Shape, ...] = (LATENTS,) if options.tiny else (LATENTS, XL_LATENTS, IMAGES)
    for shape, sampler in itertools.product(sizes, ("dpmpp_2m", "euler_ancestral", "unipc")):
        table.add(f"loop {sampler} {shape}", partial(loop_case, shape, sampler, options.device), "launched")
        if options.device == "cuda":
            table.guarded(f"counts {sampler} {shape}", partial(counts, table, shape, sampler))
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    for shape, count in ((LATENTS, 2),) if options.tiny else ((LATENTS, 2), (LATENTS, 20), (XL_LATENTS, 20)):
        make_loop = partial(graph_case, shape, count, options.device, dtype)
        table.add(f"graphs {count} blocks {shape}", make_loop, "launched")
    if importlib.util.find_spec("diffusers"):
        import loops

        for shape in sizes:
            table.add(f"diffusers {shape}", partial(loops.loop_case, shape, 20, options.device), "launched")
    for shape in ((1, 32, 8, 8),) if options.tiny else STACKS:
        make = partial(stack_case, shape, torch.bfloat16, options.device, compiled=not options.tiny)
        table.add(f"blocks {shape}", make, "launched")
    table.save()


if __name__ == "__main__":
    main()
