"""solver_step: one row of a plan in one kernel, its weights and its number read from device memory.

A term of weight 0 is not read: its load is masked by the weight, so that all loads are under way at once, which a
branch for each would not allow. What a row reads and writes where is in fastdiff/ops/solver_step.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels import counter, row
from fastdiff.kernels.launch import Launcher

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
BLOCK = 1024
SMALL_BLOCK = 512  # gives an image of few elements twice the programs
SMALL = 2**17


@triton.jit
def row_output(row_ptr, x, output_ptr, uncond_ptr, gain_ptr, sample, start, ahead, inside):
    """F, 0 where the row weighs it neither in its data nor in x_next."""
    w = row.weight(row_ptr, row.W)
    wanted = ((w != 0) & (row.weight(row_ptr, row.Q) != 0)) | (row.weight(row_ptr, row.F) != 0)
    wanted = wanted & (row.weight(row_ptr, row.CALL) != 0)
    return row.guided(row_ptr, wanted, x, output_ptr, uncond_ptr, gain_ptr, sample, start, ahead, inside)


@triton.jit
def row_value(row_ptr, x, guided, bound_ptr, sample):
    """u*x + w*clamp(p*x + q*F), 0 for a row without a model output."""
    call = row.weight(row_ptr, row.CALL)
    w = row.weight(row_ptr, row.W) * call
    u = row.weight(row_ptr, row.U) * call
    data = row.predicted(row_ptr, w, x, guided)
    if bound_ptr is not None:
        hi = row.of_sample(bound_ptr, sample, w != 0)
        lo = -hi
        w = tl.where(w != 0, tl.div_rn(w, hi), 0.0)
    else:
        lo = row.weight(row_ptr, row.LO)
        hi = row.weight(row_ptr, row.HI)
    data = tl.where(data < lo, lo, data)  # unlike maximum, keeps NaN
    data = tl.where(data > hi, hi, data)
    return row.add_known(row.add_known(tl.zeros_like(x), u, x), w, data)


@triton.jit
def row_noise(seeds_ptr, sample, n, stream, first, BLOCK: tl.constexpr):
    """A sample's counter-based noise, 0 where it has no weight."""
    noise = tl.zeros([BLOCK], tl.float32)
    if n != 0:
        noise = counter.normal(tl.load(seeds_ptr + sample), stream, first, BLOCK)
    return noise


@triton.jit(do_not_specialize=["tiles"])
def step_kernel(
    x_next_ptr,
    x_ptr,  # may be x_next_ptr
    output_ptr,
    uncond_ptr,
    table_ptr,
    index_ptr,
    anchor_ptr,
    h1_ptr,  # of a ring: its first slot, as are h2_ptr and h3_ptr
    h2_ptr,
    h3_ptr,
    noise_ptr,
    bound_ptr,
    gain_ptr,
    mask_ptr,
    known_ptr,
    known_noise_ptr,
    seeds_ptr,
    value_ptr,
    input_ptr,
    total,  # elements of x
    inner,  # elements of one sample, total where samples do not differ
    tiles,  # programs a sample takes
    slots,  # of the ring
    RING: tl.constexpr,
    HALVES: tl.constexpr,  # output holds uncond after itself
    IN_PLACE: tl.constexpr,
    TWICE: tl.constexpr,  # the input is written twice
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    first = (program % tiles).to(tl.int64) * BLOCK
    ahead = tl.arange(0, BLOCK)
    inside = first + ahead < inner
    start = sample * inner + first

    index = tl.load(index_ptr)
    row_ptr = table_ptr + index * row.COLUMN_COUNT
    x = tl.load(x_ptr + start + ahead, mask=inside, other=0.0)

    if HALVES:
        uncond_ptr = output_ptr + total
    if RING:
        slot = row.weight(row_ptr, row.SLOT).to(tl.int64) + 3 * slots
        value_ptr += slot % slots * total
        h3_ptr += (slot - 3) % slots * total
        h2_ptr += (slot - 2) % slots * total
        h1_ptr += (slot - 1) % slots * total

    next = row.add_known(tl.zeros_like(x), row.weight(row_ptr, row.A), x)
    next = row.add(next, row.weight(row_ptr, row.B), anchor_ptr, start, ahead, inside)
    output = row_output(row_ptr, x, output_ptr, uncond_ptr, gain_ptr, sample, start, ahead, inside)
    next = row.add_known(next, row.weight(row_ptr, row.F) * row.weight(row_ptr, row.CALL), output)
    value = row_value(row_ptr, x, output, bound_ptr, sample)
    next = row.add_known(next, row.weight(row_ptr, row.C0), value)
    next = row.add(next, row.weight(row_ptr, row.C1), h1_ptr, start, ahead, inside)
    next = row.add(next, row.weight(row_ptr, row.C2), h2_ptr, start, ahead, inside)
    next = row.add(next, row.weight(row_ptr, row.C3), h3_ptr, start, ahead, inside)
    n = row.weight(row_ptr, row.N)
    if seeds_ptr is not None:
        next = tl.fma(row_noise(seeds_ptr, sample, n, index + 1, first, BLOCK), n, next)
    else:
        next = row.add(next, n, noise_ptr, start, ahead, inside)
    if mask_ptr is not None:
        mask = tl.load(mask_ptr + start + ahead, mask=inside, other=1.0)
        kept = row.add(tl.zeros_like(x), row.weight(row_ptr, row.ALPHA), known_ptr, start, ahead, inside)
        kept = row.add(kept, row.weight(row_ptr, row.SIGMA), known_noise_ptr, start, ahead, inside)
        # What the mask leaves out need not be finite.
        other = tl.where(mask != 1.0, (1.0 - mask) * kept, 0.0)
        next = tl.where(mask != 0.0, tl.fma(mask, next, other), other)

    if IN_PLACE:
        tl.debug_barrier()  # another thread may write the slot of the ring, or the anchor, that this one has read
        tl.store(x_next_ptr + start + ahead, next, mask=inside)
        if anchor_ptr is not None:
            accepted = row.where_weighed(row.weight(row_ptr, row.ACCEPT), ahead, inside)
            tl.store(anchor_ptr + start + ahead, next, mask=accepted)
    else:
        tl.store(x_next_ptr + start + ahead, next, mask=inside)
    if value_ptr is not None:
        written = row.where_weighed(row.weight(row_ptr, row.CALL), ahead, inside) if IN_PLACE else inside
        tl.store(value_ptr + start + ahead, value, mask=written)
    if input_ptr is not None:
        scaled = (next * row.weight(row_ptr, row.K)).to(input_ptr.dtype.element_ty)
        tl.store(input_ptr + start + ahead, scaled, mask=inside)
        if TWICE:
            tl.store(input_ptr + total + start + ahead, scaled, mask=inside)


STEP = Launcher(step_kernel, **OPTIONS)


def launch(
    x: Tensor,
    output: Tensor | None,
    table: Tensor,
    index: Tensor,
    uncond: Tensor | None,
    anchor: Tensor | None,
    h1: Tensor | None,
    h2: Tensor | None,
    h3: Tensor | None,
    noise: Tensor | None,
    bound: Tensor | None,
    gain: Tensor | None,
    mask: Tensor | None,
    known: Tensor | None,
    known_noise: Tensor | None,
    seeds: Tensor | None,
    input_dtype: torch.dtype,
    doubled: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """x and every image: [B, ...] dense, laid out like x with the batch outermost, float32 (noise, output, [B,
    ...] or [2B, ...], and uncond: any of the three float dtypes); table: [N, 22] float64; index: [] int64; bound, gain:
    [B] float32; seeds: [B] int64, for a contiguous x. All on one GPU. Returns x_next, value (empty [0] without output)
    and the next input (twice the batch if doubled), on the caller's current stream."""
    x_next = torch.empty_like(x)
    value = x.new_empty(0) if output is None else torch.empty_like(x)
    samples = x.shape[0] * (2 if doubled else 1)
    x_in = torch.empty_strided((samples, *x.shape[1:]), x.stride(), dtype=input_dtype, device=x.device)
    step(
        (x_next, x, output, uncond, table, index, anchor, h1, h2, h3, noise, bound, gain, mask, known, known_noise,
         seeds, None if output is None else value, x_in),
        slots=0,
        in_place=False,
    )  # fmt: skip
    return x_next, value, x_in


def launch_(
    x: Tensor,
    output: Tensor | None,
    table: Tensor,
    index: Tensor,
    uncond: Tensor | None,
    anchor: Tensor | None,
    history: Tensor | None,
    noise: Tensor | None,
    bound: Tensor | None,
    gain: Tensor | None,
    mask: Tensor | None,
    known: Tensor | None,
    known_noise: Tensor | None,
    seeds: Tensor | None,
    source: Tensor | None,
    input: Tensor | None,
) -> None:
    """The same in place: x becomes x_next (that of source, if given), so does anchor if the row is accepted,
    history ([S, *x.shape], each slot laid out like x) takes value at slot % S, and input ([B, ...] or [2B, ...]) the
    next model input."""
    if source is not None and overlap(source, x):
        raise RuntimeError("fastdiff: source: it must not overlap x")
    step(
        (x, x if source is None else source, output, uncond, table, index, anchor, history, history, history, noise,
         bound, gain, mask, known, known_noise, seeds, history, input),
        slots=0 if history is None else history.shape[0],
        in_place=True,
    )  # fmt: skip


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two dense tensors of one kind share memory."""
    return abs(a.data_ptr() - b.data_ptr()) < a.numel() * a.itemsize


def step(tensors: tuple[Tensor | None, ...], *, slots: int, in_place: bool) -> None:
    """Launches the kernel on its tensors, in its order; slots: of the ring, 0 for none."""
    _, x, output, uncond, *_, bound, gain, _, _, _, seeds, _, x_in = tensors
    total = x.numel()
    if total == 0:
        return
    per_sample = not (bound is None and gain is None and seeds is None)
    inner = total // x.shape[0] if per_sample else total
    block = SMALL_BLOCK if total < SMALL else BLOCK
    tiles = triton.cdiv(inner, block)
    halves = output is not None and uncond is None and output.shape[0] != x.shape[0]
    twice = x_in is not None and x_in.shape[0] != x.shape[0]
    constants = (slots > 0, halves, in_place, twice, block)
    STEP(total // inner * tiles, tensors, (total, inner, tiles, max(slots, 1)), constants)
