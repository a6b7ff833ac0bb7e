"""solver_step's options on every backend: the output past the clamp, guidance, noise, a source, a mask, seeds."""

from __future__ import annotations

import pytest
import torch

from conftest import HALF_AND_SINGLE
from fastdiff import counter, ops
from solver_step_cases import FULL, INDEX, Case, arguments, check, inpainting, make_table, seeds


def test_the_output_counts_past_the_clamp(everywhere, generator):
    """DDIM with clipping: the noise direction is that of the unclipped output."""
    (x, output), k = arguments((2, 3, 40), generator)
    gain = torch.tensor([0.5, 2.0])
    table = make_table(p=1.0, q=-0.5, lo=-0.1, hi=0.1, w=1.0, a=0.0, c0=0.8, f=0.6, g=3.0, g_uncond=-2.0)
    step = ops.solver_step(x, output, table, INDEX, uncond=k["uncond"], gain=gain)
    guided = gain.view(2, 1, 1) * (3.0 * output - 2.0 * k["uncond"])
    torch.testing.assert_close(step.x, 0.8 * (x - 0.5 * guided).clamp(-0.1, 0.1) + 0.6 * guided)
    lost = torch.full_like(x, torch.nan)
    only = make_table(a=0.0, f=2.0, q=0.5)
    for state in (x, lost):  # nothing but the output is read
        assert torch.equal(ops.solver_step(state, output, only, INDEX).x, 2.0 * output)
    idle = make_table(f=2.0, call=0.0)
    assert torch.equal(ops.solver_step(x, lost, idle, INDEX).x, x)


@pytest.mark.parametrize("bounded", [False, True])
def test_branches_that_cancel_keep_the_accuracy_of_their_sum(everywhere, bounded, generator):
    """Guidance sums a model's outputs in half precision, whose products float32 holds: only the sum may be rounded."""
    (x, output), _ = arguments((2, 8192), generator, torch.bfloat16)
    uncond = (output.float() + 0.01 * torch.randn(output.shape, generator=generator)).bfloat16()
    more = {"bound": torch.tensor([0.01, 0.02])} if bounded else {}
    row = {
        "p": 0.0,
        "q": -1.3,
        "g": 7.5,
        "g_uncond": -7.5,
        "w": 1.0,
        "c0": 1.0,
        "a": 0.0,
        "lo": -0.01,
        "hi": 0.01,
    }
    gain = torch.tensor([0.7, 1.1])
    check(Case(x, output, make_table(**row), more | {"uncond": uncond, "gain": gain}))


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
def test_noise_in_the_models_dtype(everywhere, dtype, generator):
    for shape in ((2, 4, 9, 7), (3, 5), (2, 4, 16, 16)):
        positional, keywords = arguments(shape, generator)
        noise, table = keywords["noise"].to(dtype), make_table(**FULL)
        expected = ops.solver_step(*positional, table, INDEX, **keywords | {"noise": noise.float()})
        step = ops.solver_step(*positional, table, INDEX, **keywords | {"noise": noise})
        assert all(torch.equal(a, e) for a, e in zip(step, expected, strict=True))


def test_the_source_is_read_and_x_written(everywhere, generator):
    positional, k = arguments((2, 4, 6, 5), generator, torch.bfloat16)
    source, output = positional
    more = {"uncond": k["uncond"], "noise": k["noise"].half(), "input": torch.zeros(4, 4, 6, 5).half()}
    ring = torch.stack(k["history"])
    for table in (make_table(**FULL), make_table(**FULL | {"a": 0.0, "p": 0.0, "u": 0.0})):
        expected, anchor, history = source.clone(), k["anchor"].clone(), ring.clone()
        ops.solver_step_(expected, output, table, INDEX, anchor=anchor, history=history, **more)
        wanted = more["input"].clone()
        x, kept = torch.full_like(source, torch.nan), source.clone()
        ops.solver_step_(
            x, output, table, INDEX, anchor=k["anchor"].clone(), history=ring.clone(), source=source, **more
        )
        assert torch.equal(x, expected) and torch.equal(more["input"], wanted)
        assert torch.equal(source, kept)
    lost = torch.full_like(source, torch.nan)
    ops.solver_step_(x, output, make_table(a=0.0, q=1.0, w=1.0, c0=1.0), INDEX, source=lost)
    assert torch.equal(x, output.float())
    last = {"memory_format": torch.channels_last}  # another layout is copied
    ops.solver_step_(x, output, make_table(a=2.0), INDEX, source=source.to(**last))
    assert torch.equal(x, 2 * source)


def test_the_mask_says_what_stands(everywhere, generator):
    (x, output), k = arguments((2, 3, 6, 5), generator)
    blend = inpainting((2, 3, 6, 5), generator)
    last = make_table(**FULL | {"alpha": 1.0, "sigma": 0.0})
    plain = ops.solver_step(x, output, last, INDEX, **k)
    ones, none = torch.ones(1), torch.zeros(6, 1)  # they broadcast
    known = blend["known"][:1]
    assert torch.equal(ops.solver_step(x, output, last, INDEX, **k, mask=ones, known=known).x, plain.x)
    step = ops.solver_step(x, output, last, INDEX, **k, mask=none, known=known, doubled=True)
    assert torch.equal(step.x, known.expand(x.shape)) and torch.equal(step.value, plain.value)
    assert torch.equal(step.input, torch.cat([step.x * torch.tensor(0.8)] * 2))
    state, anchor = x.clone(), k["anchor"].clone()
    more = {"uncond": k["uncond"], "noise": k["noise"], "history": torch.stack(k["history"])}
    ops.solver_step_(state, output, last, INDEX, anchor=anchor, **more, mask=none, known=known)
    assert torch.equal(state, step.x) and torch.equal(anchor, step.x)
    half = ops.solver_step(
        x, output, make_table(**FULL), INDEX, **k, **blend | {"mask": blend["mask"][:, :, :1]}
    )
    expected = 0.85 * blend["known"] + 0.4 * blend["known_noise"]
    mask = blend["mask"][:, :, :1]
    torch.testing.assert_close(half.x, mask * plain.x + (1 - mask) * expected)


def test_seeds_draw_the_specified_noise(everywhere, generator):
    for shape in ((3, 2, 37, 41), (2, 5), (1, 1)):
        (x, output), k = arguments(shape, generator)
        given, images = k | {"noise": None}, shape[0]
        for row in (0, 1, 2):
            noise = counter.normal(seeds(images), x[0].numel(), row + 1).reshape(shape)
            options = given | {"seeds": seeds(images)}
            drawn = ops.solver_step(x, output, make_table(**FULL), torch.tensor(row), **options)
            expected = ops.solver_step(
                x, output, make_table(**FULL), torch.tensor(row), **given | {"noise": noise}
            )
            assert all(torch.equal(a, e) for a, e in zip(drawn, expected, strict=True))
    x, output = torch.randn(2, 4, 6, 5), torch.randn(2, 4, 6, 5)
    table, last = make_table(n=1.0), {"memory_format": torch.channels_last}
    straight = ops.solver_step(x, output, table, INDEX, seeds=seeds(2)).x
    turned = ops.solver_step(x.to(**last), output, table, INDEX, seeds=seeds(2)).x
    assert torch.equal(straight, turned)
    state = x.to(**last)
    ops.solver_step_(state, output, table, INDEX, seeds=seeds(2))
    assert torch.equal(straight, state)
    alone = ops.solver_step(x[1:], output[1:], table, INDEX, seeds=seeds(2)[1:]).x
    assert torch.equal(alone, straight[1:])
