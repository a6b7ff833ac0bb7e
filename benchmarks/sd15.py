"""Stable Diffusion 1.5's UNet and VAE decoder at full size with random weights, before and after accelerate.

    python benchmarks/sd15.py [--only unet vae] [--dtypes float32 bfloat16] [--modes eager compiled] [--latents 64]
        [--runs 7] [--out FILE.json]

The UNet takes (2, 4, latents, latents), one image with guidance, and 77 tokens; the VAE decodes one image's latents.
All take turns in one process, on the same weights, and only after the outputs were found alike: in float32 within 2e-5
of the largest value (two orders of summation), in bfloat16 within what its rounding makes of so many layers.
Compiled models are both compiled by torch.compile. Each case is in the file at once and the others stay in it, so the
table can be measured in parts; benchmarks/accelerate_table.py makes the documentation's table of it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from fastdiff.patching import accelerate
from results import RESULTS, update
from timing import Case, Result, Timed, difference, draw, interleaved

ALLOWED = {torch.float32: 2e-5, torch.bfloat16: 5e-2}
LAYOUTS = ("keep", "channels_last")
MODES = ("eager", "compiled")


def unet(dtype: torch.dtype, side: int) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """The UNet and a call of it."""
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(cross_attention_dim=768, sample_size=64).to(dtype).eval()
    x, words = draw((2, 4, side, side), dtype), draw((2, 77, 768), dtype, seed=1)
    time = torch.tensor(500)
    return model, lambda called: called(x, time, words, return_dict=False)[0]


def vae(dtype: torch.dtype, side: int) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """The VAE's decoder and a call of it."""
    torch.manual_seed(0)
    whole = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
    )
    z = draw((1, 4, side, side), dtype)
    return whole.decoder.to(dtype).eval(), lambda called: called(z)


MODELS = {"unet": unet, "vae": vae}


def twin(model: nn.Module) -> nn.Module:
    """A copy that shares its weights."""
    return copy.deepcopy(model, {id(weight): weight for weight in (*model.parameters(), *model.buffers())})


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Every model in every dtype, eager and compiled."""
    for name in options.only:
        for dtype in (getattr(torch, each) for each in options.dtypes):
            for mode in options.modes:
                torch._dynamo.reset()
                yield case(name, dtype, mode, options)


def case(name: str, dtype: torch.dtype, mode: str, options: argparse.Namespace) -> Case:
    """The plain model and the accelerated one, both compiled or neither."""
    plain, call = MODELS[name](dtype, options.latents)
    models: dict[str, Any] = {"diffusers": plain, "accelerated": accelerate(twin(plain))}
    if "channels_last" in options.layouts:
        models["accelerated, channels-last"] = accelerate(copy.deepcopy(plain), memory_format="channels_last")
    expected = call(plain)
    if mode == "compiled":
        models = {key: torch.compile(model) for key, model in models.items()}
    error = max(difference(call(model), expected) for key, model in models.items() if key != "diffusers")
    functions = {key: Timed(lambda model=model: call(model)) for key, model in models.items()}
    title = (
        f"{name}, {str(dtype).removeprefix('torch.')}, {mode}, latents {options.latents}x{options.latents}"
    )
    return Case(title, functions, "accelerated", error, ALLOWED[dtype])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument(
        "--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"]
    )
    parser.add_argument(
        "--latents", type=int, default=64, help="the side of the latents; images have eight times it"
    )
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=["keep"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--runs", type=int, default=7, help="how often each is timed, at least")
    parser.add_argument("--out", type=Path, default=RESULTS / "sd15.json")
    options = parser.parse_args()
    for each in cases(options):
        spreads = interleaved(each.functions, seconds=0, least=options.runs)
        result = Result(each.name, each.error, spreads, each.ours)
        print("\n".join(result.lines()), flush=True)
        update([result], options.out, {})


if __name__ == "__main__":
    main()
