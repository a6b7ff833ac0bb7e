"""fastdiff.sample on states and model outputs of any shape and layout in memory."""

from __future__ import annotations

import pytest
import torch

import fastdiff
from fastdiff import schedules

KARRAS = schedules.karras(0.03, 14.6)


def test_channels_last_comes_back_channels_last():
    x = torch.randn(2, 3, 8, 6).to(memory_format=torch.channels_last)
    options = {"schedule": KARRAS, "steps": 6, "sampler": "lms", "prediction": "sample"}
    result = fastdiff.sample(lambda x, t: x / 3, x, **options)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result, fastdiff.sample(lambda x, t: x / 3, x.contiguous(), **options))


LAYOUTS = {
    "transposed": lambda: torch.randn(3, 2, 5, 6).transpose(0, 1),
    "audio": lambda: torch.randn(2, 9, 4).transpose(1, 2),
    "video": lambda: torch.randn(2, 3, 4, 5, 6).permute(0, 2, 1, 3, 4),
    "expanded": lambda: torch.randn(1, 3, 4, 4).expand(2, 3, 4, 4),
    "sliced": lambda: torch.randn(4, 3, 4, 8)[::2, :, :, 1::2],
    "one image": lambda: torch.randn(3, 3, 4, 4).transpose(0, 1)[:1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_layout_of_the_state_and_the_model(layout, dtype):
    x = LAYOUTS[layout]() * 10
    guidance = fastdiff.Guidance(2.0, {"shift": torch.zeros(len(x))})
    options = {"schedule": KARRAS, "sampler": "lms", "steps": 5, "prediction": "sample", "dtype": dtype}

    def model(x, t, shift=None):
        y = x / (1 + t.view(-1, *(1,) * (x.dim() - 1)).to(x.dtype))
        return y if shift is None else y + shift.view(-1, *(1,) * (x.dim() - 1)).to(x.dtype)

    def turned(x, t, **shift):
        return model(x, t, **shift).transpose(1, -1).contiguous().transpose(1, -1)

    conditioned = {"conditioning": {"shift": torch.ones(len(x))}, "guidance": guidance}
    for extra in ({}, conditioned):
        expected = fastdiff.sample(model, x.contiguous(), **options, **extra)
        for call in (model, turned):
            torch.testing.assert_close(
                fastdiff.sample(call, x, **options, **extra), expected, rtol=1e-5, atol=1e-5
            )


def test_an_empty_batch_and_a_single_number():
    for shape in [(0, 3, 4), (1,)]:
        x = fastdiff.sample(lambda x, t: x / 2, shape, schedule=KARRAS, steps=4, prediction="sample", seed=0)
        assert x.shape == shape
