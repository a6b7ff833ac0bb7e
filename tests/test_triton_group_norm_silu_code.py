"""The Triton kernels of group_norm_silu and its gradient: their plans, and their code for GPUs nobody needs."""

from __future__ import annotations

import re

import pytest
import torch

import group_norm_cases as cases
import sass

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
from fastdiff.kernels import group_norm_silu, group_norm_silu_backward
from fastdiff.kernels import group_norm_silu_plan as plan
from triton_code import compiled, launches, needs_compiler

UNET = [(320, 64), (640, 64), (960, 64), (640, 32), (1280, 32), (1920, 32), (1280, 16), (2560, 16), (1280, 8)]
"""(channels, height) at 512 by 512 pixels; all in 32 groups."""


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_plans_cover_every_element(last: bool, backward: bool) -> None:
    shapes = [(c, h * h, 32) for c, h in [*UNET, (128, 1024), (512, 128), (2560, 32)]]
    shapes += [(c, p, g) for c in (7, 60, 96) for p in (1, 35, 4097) for g in (1, c)]
    for channels, pixels, groups in shapes:
        for itemsize in (2, 4):
            made = plan.plan(2, channels, pixels, groups, last and pixels > 1, itemsize, backward)
            cg, shared, bg, bc = made.shape
            units, wave, waves, _, tiles, across = made.schedule
            assert shared <= bg < 2 * shared and units == 2 * -(-groups // shared) and wave * waves >= units
            width = cg * shared
            if made.whole:
                assert bc + made.tail >= width and made.bp >= pixels
                assert (bc + made.tail) * made.bp <= plan.WHOLE[backward, itemsize]
            else:
                assert bc * made.bp == plan.TILE[backward]
                assert across * made.bp >= pixels and tiles // across * bc >= width


def test_a_large_unit_is_finished_before_the_next_is_collected() -> None:
    """16x180x320 pixels of 16 channels, 29.5 MB: two would not stay in L2. Nor would one with its gradient."""
    for backward, pixels, ahead in (
        (False, 16 * 180 * 320, 0),
        (True, 16 * 180 * 320, 1),
        (False, 512**2, 1),
        (False, 1536**2, 1),
    ):
        made = plan.plan(1, 512, pixels, 32, False, 2, backward)
        assert not made.whole and made.schedule[3] == ahead, (backward, pixels)


@needs_compiler
@pytest.mark.parametrize("channels, height", [(320, 64), (1280, 32)])
def test_a_group_of_the_unet_stays_in_registers(channels: int, height: int) -> None:
    """With every option, at 1024 threads: 128 bits an access, read once, no spills."""
    given = draw_on_cpu((1, channels, height, height), 32, torch.bfloat16, "all")
    (launch,) = launches(pytest.MonkeyPatch(), group_norm_silu.launch, *given.arguments())
    code = compiled(launch, 90).kernel
    sass.assert_no_spills(code, registers=64)
    vectors = channels // 32 * height**2 // (8 * 1024)
    assert code.count("LDG.E.128") == 2 * vectors  # x and residual
    assert code.count("STG.E.128") == 2 * vectors  # summed and y


def draw_on_cpu(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, options: str, layout: str = "contiguous"
) -> cases.Inputs:
    return cases.inputs(
        shape, groups, dtype, torch.Generator(), options=options, layout=layout, vectors=torch.float32
    )


STREAMED = {
    "planar": ((1, 640, 64, 64), torch.bfloat16, "affine", "contiguous", 80, 64),
    "channels_last": ((1, 640, 64, 64), torch.bfloat16, "affine", "channels_last", 90, 128),
    "vae": ((1, 512, 128, 128), torch.float32, "all-gelu", "contiguous", 90, 128),
}


@needs_compiler
@pytest.mark.parametrize("name", STREAMED)
def test_streams_what_does_not_fit(name: str) -> None:
    """Registers for two to four programs of 256 threads on a multiprocessor; what is collected stays in the cache."""
    shape, dtype, options, layout, arch, registers = STREAMED[name]
    given = draw_on_cpu(shape, 32, dtype, options, layout)
    (launch,) = launches(pytest.MonkeyPatch(), group_norm_silu.launch, *given.arguments())
    code, asm = compiled(launch, arch)
    sass.assert_no_spills(code, registers=registers)
    vectors = plan.TILE[False] * dtype.itemsize // 16 // 256
    assert wide(code, "LDG") >= 2 * vectors and wide(code, "STG") >= vectors
    assert_synchronised(asm["ptx"])
    assert re.search(r"ld\.global\S*evict_last", asm["ptx"])


def wide(code: sass.Kernel, kind: str) -> int:
    """128-bit accesses, whatever they say of caches."""
    return sum(n for name, n in code.instructions.items() if name.startswith(kind) and "128" in name)


def assert_synchronised(ptx: str) -> None:
    """How programs hand over what they stored: acquired and released at the scope of the GPU; no atomics on floats."""
    found = re.findall(r"(atom|red|ld)\.global\.gpu\.(relaxed|acquire|release|acq_rel)(\S*)", ptx)
    assert {order for _, order, _ in found} >= {"relaxed", "acquire", "release", "acq_rel"}, found
    assert not re.search(r"(atom|red)\.\S*f(16|32|64)", ptx)


@needs_compiler
@pytest.mark.parametrize(
    "shape, dtype, layout, registers",
    [
        ((1, 1280, 16, 16), torch.bfloat16, "contiguous", 128),  # whole
        ((1, 320, 64, 64), torch.float32, "channels_last", 128),  # streamed
    ],
    ids=str,
)
def test_backward_code(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, registers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = draw_on_cpu(shape, 32, dtype, "all-gelu", layout)._replace(residual=None)
    mean = torch.zeros(1, 32)
    arguments = given.backward_arguments(torch.empty_like(given.x), mean, mean)
    (launch,) = launches(monkeypatch, group_norm_silu_backward.launch, *arguments)
    code, asm = compiled(launch, 90)
    sass.assert_no_spills(code, registers=registers)
    assert wide(code, "LDG") >= 4 and wide(code, "STG") >= 2
    if launch.launcher is group_norm_silu_backward.STREAMED:
        assert_synchronised(asm["ptx"])


@needs_compiler
def test_addresses_are_64_bit() -> None:
    """Where a sample or a tile starts; offsets within a tile have 32 bits unless they need more."""
    made = plan.plan(1, 4, 2**31 + 7, 1, False, 2, False)
    assert made.wide and not plan.plan(2, 128, 2**20, 32, True, 2, False).wide
    given = draw_on_cpu((1, 640, 64, 64), 32, torch.bfloat16, "affine")
    (launch,) = launches(pytest.MonkeyPatch(), group_norm_silu.launch, *given.arguments())
    ttir = compiled(launch, 80).asm["ttir"]
    bases = re.findall(r"tt\.addptr %[xy]_ptr\S*, %\S+ : !tt\.ptr<bf16>, (i\d+)", ttir)
    assert bases and set(bases) == {"i64"}, ttir
