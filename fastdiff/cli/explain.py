"""fastdiff env --explain: which backend each op would use for tensors of given shapes, and why."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

LAYOUTS = ("contiguous", "channels_last", "strided")
DTYPES = ("float32", "bfloat16", "float16", "float64")
STATE = ("solver_step", "dynamic_bound")
"""Ops on the state, which stays float32 whatever the model's dtype."""
NORMS = ("group_norm_silu", "group_norm_silu_backward")
DRAWS = ("q_sample", "randn_like")


VARIANTS = {
    1: "variant A: a block a group, x read once",
    2: "variant B: the tensor on the chip, x read once",
    3: "variant C: two readings, the second from the L2 cache",
    4: "variant D: two launches",
}
"""What fastdiff_group_norm_variant of the CUDA library answers (docs/cuda.md)."""


@dataclass(frozen=True)
class Given:
    """The tensors that are asked about."""

    shape: tuple[int, ...]
    dtype: Any
    layout: str
    device: str
    groups: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds --explain and what it looks at."""
    parser.add_argument(
        "--explain",
        nargs="+",
        metavar="SHAPE",
        help="say which backend each op would use for tensors of these shapes, such as 2x320x64x64, and why",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="with --explain (default float32)")
    parser.add_argument("--layout", choices=LAYOUTS, default="contiguous", help="with --explain")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="with --explain (default: the GPU if torch sees one)"
    )
    parser.add_argument(
        "--groups", type=int, default=32, help="with --explain: groups of the norms (default 32)"
    )


def report(args: argparse.Namespace) -> dict[str, Any]:
    """shape -> op -> the backend and the reasons. Raises ValueError for what is no shape."""
    import torch

    from fastdiff import backend

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {}
    for text in args.explain:
        shape = parse(text)
        title = f"{text} {args.dtype} {args.layout} on {device}"
        found[title] = {
            op: line(op, shape, args.dtype, args.layout, device, args.groups) for op in backend.KERNELS
        }
    return found


def parse(text: str) -> tuple[int, ...]:
    """2x320x64x64 -> (2, 320, 64, 64)."""
    sizes = text.lower().split("x")
    if not all(size.isdecimal() for size in sizes) or len(sizes) > 8:
        raise ValueError(f"{text!r} is no shape: write it as 2x320x64x64")
    return tuple(map(int, sizes))


def line(op: str, shape: tuple[int, ...], dtype: str, layout: str, device: str, groups: int) -> str:
    """What would run, and the reasons, in one line."""
    import torch

    from fastdiff import backend
    from fastdiff.errors import BackendError

    problem = unfit(op, shape, groups)
    if problem:
        return f"refused: {problem}"
    seen = torch.float64 if dtype == "float64" else torch.float32 if op in STATE else getattr(torch, dtype)
    try:
        reasons = [backend.explain(op, device, seen)]
    except BackendError as error:
        return f"refused: {error}"
    name = reasons[0].split(":")[0]
    if name != "reference":
        reasons += how(op, shape, layout)
    if name != "reference" and 0 not in shape:
        reasons += inside(op, name, Given(shape, seen, layout, device, groups))
    return "; ".join(reasons)


def unfit(op: str, shape: tuple[int, ...], groups: int) -> str | None:
    """Why the op does not take such a tensor at all."""
    if op in NORMS and len(shape) < 2:
        return "x must be [B, C, ...]"
    if op in NORMS and (groups < 1 or shape[1] % groups):
        return f"{shape[1]} channels do not divide into {groups} groups (--groups)"
    return None


def how(op: str, shape: tuple[int, ...], layout: str) -> list[str]:
    """What the door does to the tensors before the kernel sees them."""
    if math.prod(shape) == 0:
        return ["no elements: nothing to do"]
    if layout == "strided":
        return ["copied to a dense layout first"]
    if layout == "channels_last" and op in DRAWS:
        return ["drawn in contiguous order, as torch.randn does, then laid out"]
    return []


def inside(op: str, name: str, given: Given) -> list[str]:
    """What the backend itself chooses for such tensors."""
    from fastdiff import native
    from fastdiff.ops import _drawing

    found = [f"instruction set {native.isa()}"] if name == "cpp" else []
    if op in NORMS and name in ("cuda", "triton"):
        found.append(norm_variant(op, name, given))
    if op in DRAWS:
        import torch

        reason = _drawing.distrust(name, torch.device(given.device), given.dtype)
        found += [f"from a generator torch.randn draws, since {reason}"] if reason else []
    return found


def norm_variant(op: str, name: str, given: Given) -> str:
    """Which of its ways a norm's kernel takes, at 16-byte boundaries."""
    batch, channels, pixels = *given.shape[:2], math.prod(given.shape[2:])
    last, backward = given.layout == "channels_last", op.endswith("backward")
    if name == "triton":
        from fastdiff.kernels.group_norm_silu_plan import plan

        whole = plan(batch, channels, pixels, given.groups, last, given.dtype.itemsize, backward).whole
        return "a program a group, x read once" if whole else "streamed in waves, x read twice"
    import ctypes

    from fastdiff import native

    ask = ctypes.CDLL(str(native.library("cuda"))).fastdiff_group_norm_variant
    ask.argtypes = [ctypes.c_int, *[ctypes.c_int64] * 4, ctypes.c_bool, ctypes.c_int, ctypes.c_bool]
    element = {"float32": 0, "float16": 1, "bfloat16": 2}[str(given.dtype).removeprefix("torch.")]
    return VARIANTS[ask(0, batch, channels, given.groups, pixels, last, element, backward)]
