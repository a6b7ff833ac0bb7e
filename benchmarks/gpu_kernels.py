"""The kernel tables of a GPU visit: each op on each of our backends against its peers, beside the copy bandwidth.

    python benchmarks/gpu_kernels.py --out FILE.json [--limit 130] [--device cuda] [--tiny]

Every case is guarded: one that fails is noted, and the others go on. Results are on the disk after each case; what the
limit cuts off is said.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from cases import (
    Image,
    Norm,
    add_noise_case,
    backward_case,
    eager_norm,
    gradient_case,
    norm_case,
    q_sample_case,
)
from fastdiff import backend
from gpu_table import Table, parser
from gpu_timing import measured
from shapes import IMAGES, SD15, SDXL, VAE, VIDEO, XL_LATENTS, Shape
from solver_cases import bound_case, gain_case, row_case
from timing import Case, Timed

BACKENDS = ("cuda", "triton")
LAYOUTS = ("contiguous", "channels_last")
TINY: tuple[Shape, ...] = ((2, 64, 8, 8),)


def copy_bandwidth(table: Table, elements: int) -> None:
    """What a large copy moves in a second, read and written: the roof of everything below."""
    source = torch.zeros(elements, device=table.device)
    target = torch.empty_like(source)
    case = Case("copy", {"copy": Timed(lambda: target.copy_(source))}, "copy", 0.0, 0.0, 2 * source.nbytes)
    for way in ("hot", "cold"):
        table.copy[way] = measured(case, way, seconds=0.3, notes={}).rates()["copy"]


def peers() -> dict[str, Norm]:
    """Eager PyTorch, and what else is installed."""
    found: dict[str, Norm] = {"eager": eager_norm}
    try:
        apex = importlib.import_module("apex.contrib.group_norm")
        found["apex"] = lambda x, groups, weight, bias: apex.group_norm_nhwc(
            x, groups, weight, bias, 1e-5, "silu"
        )
    except (ImportError, AttributeError):
        pass
    try:
        liger = importlib.import_module("liger_kernel.ops.group_norm").LigerGroupNormFunction

        def liger_norm(x: Any, groups: int, weight: Any, bias: Any) -> Any:
            y = liger.apply(x.flatten(2), weight, bias, x.shape[1], groups, 1e-5)
            return torch.nn.functional.silu(y.view_as(x))

        found["liger, silu"] = liger_norm
    except (ImportError, AttributeError):
        pass
    return found


def only(found: dict[str, Norm], image: Image) -> dict[str, Norm]:
    """The peers that take this layout: apex's kernel is for channels-last tensors, Liger's for the other."""
    other = "liger, silu" if image.layout == "channels_last" else "apex"
    return {name: peer for name, peer in found.items() if name != other}


def usable(device: str) -> list[str]:
    """Our backends that can run here."""
    names = BACKENDS if device == "cuda" else ("cpp", "reference")
    return [name for name in names if backend.unavailable(name) is None]


def images(shapes: tuple[Shape, ...], device: str, dtype: torch.dtype = torch.bfloat16) -> Iterator[Image]:
    for shape, layout in itertools.product(shapes, LAYOUTS):
        yield Image(shape, dtype, layout, device)


def norms(table: Table, shapes: tuple[Shape, ...]) -> None:
    """Forward, hot and cold."""
    found = peers()
    for image, name in itertools.product(images(shapes, table.device), usable(table.device)):
        with backend.use(name):
            make = partial(norm_case, image, only(found, image))
            for way in ("hot", "cold"):
                table.add(f"norm {image}", make, way, {"backend": name})


def gradients(table: Table, shapes: tuple[Shape, ...]) -> None:
    """Backward: the kernels alone in a graph, and whole passes as launched."""
    for image, name in itertools.product(images(shapes, table.device), usable(table.device)):
        with backend.use(name):
            notes = {"backend": name}
            table.add(f"gradient {image}", partial(gradient_case, image, name), "hot", notes)
            whole = partial(backward_case, image, {"eager": eager_norm})
            table.add(f"backward {image}", whole, "launched", notes)


def others(table: Table, shapes: tuple[Shape, ...]) -> None:
    """The other ops, in the dtypes of training and of sampling."""
    makers: dict[str, tuple[Callable[[Image], Case], str]] = {
        "noise": (add_noise_case, "hot"),
        "draw": (q_sample_case, "launched"),  # a generator's offset would stand still in a graph
        "row": (row_case, "hot"),
        "bound": (bound_case, "hot"),
        "gain": (gain_case, "hot"),
    }
    both = (torch.float32, torch.bfloat16)
    for shape, dtype, name in itertools.product(shapes, both, usable(table.device)):
        image = Image(shape, dtype, "contiguous", table.device)
        with backend.use(name):
            for title, (make, way) in makers.items():
                table.add(f"{title} {image}", partial(make, image), way, {"backend": name})


def compiled(table: Table, shapes: tuple[Shape, ...]) -> None:
    """Inductor with max-autotune, on the shapes that matter most."""
    torch._dynamo.config.recompile_limit = 256
    inductor = torch.compile(eager_norm, dynamic=False, mode="max-autotune-no-cudagraphs")
    for image in images(shapes, table.device):
        make = partial(norm_case, image, {"torch.compile": inductor})
        table.add(f"norm {image}", make, "hot", {"backend": "auto"})


@torch.inference_mode()
def main() -> None:
    options = parser(__doc__, 130.0).parse_args()
    table = Table(options.out, options.limit, options.device)
    copy_bandwidth(table, 2**16 if options.tiny else 2**28)
    if options.tiny:
        for part in (others, norms, gradients):
            part(table, TINY)
    else:  # what matters most first: the limit may cut off the rest
        others(table, (XL_LATENTS, IMAGES))
        norms(table, (*SD15, *SDXL))
        gradients(table, (SD15[0], SD15[3], SDXL[1]))
        compiled(table, (SD15[0], SDXL[0], VAE[1]))
        norms(table, (*VAE, *VIDEO))
        others(table, ((16, 3, 1024, 1024),))
    table.save()


if __name__ == "__main__":
    main()
