"""Stand-ins for tensors, as FakeTensorMode makes them, are not remembered: what follows computes with real ones."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import fastdiff
from fastdiff import Guidance, backend, ops, schedules
from fastdiff.noise import CounterNoise
from fastdiff.ops.stepper import row_numbers
from solver_step_cases import make_table

KARRAS = schedules.karras(0.1, 10.0)


def model(x, t, shift=None):
    return x / (1 + t.reshape(-1, 1)) + (0 if shift is None else shift)


def run(x, steps, **changes):
    options = {"sampler": "euler_ancestral", "prediction": "sample", "schedule": KARRAS} | changes
    return fastdiff.sample(model, x, steps=steps, **options)


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_a_run_on_fake_tensors_leaves_nothing_behind(name):
    source, x = CounterNoise([3, 4]), torch.ones(2, 33)
    with backend.use(name):
        with FakeTensorMode() as mode:
            try:
                made = run(mode.from_tensor(x), 11, noise=source)
                assert isinstance(made, FakeTensor) and made.shape == x.shape
            except Exception as error:  # the reference reads its weights, which a fake table does not have
                assert name == "reference", error
        result = run(x, 11, noise=source)
        afresh = run(x, 11, noise=CounterNoise([3, 4]))
    assert type(result) is torch.Tensor and torch.equal(result, afresh)


def test_what_is_remembered_is_real():
    with FakeTensorMode():
        assert isinstance(row_numbers(77, torch.device("cpu"))[3], FakeTensor)
        with pytest.raises(Exception, match=r"(?i)fake"):
            ops.add_noise(torch.ones(2, 3).as_subclass(torch.Tensor), REAL, 0.123, 0.987)
    assert type(row_numbers(77, torch.device("cpu"))[3]) is torch.Tensor
    noisy = ops.add_noise(REAL, REAL, 0.123, 0.987)
    assert type(noisy) is torch.Tensor and torch.allclose(noisy, REAL * 1.11)
    torch.func.functionalize(lambda x: x + row_numbers(78, x.device)[0])(REAL)
    assert row_numbers(78, torch.device("cpu"))[5].item() == 5


def test_numbers_for_kernels_are_real():
    with FakeTensorMode() as mode:
        ops.add_noise(mode.from_tensor(REAL), mode.from_tensor(REAL), 0.321, 0.789)
    assert torch.allclose(ops.add_noise(REAL, REAL, 0.321, 0.789), REAL * 1.11)


def test_steps_and_guidance():
    x = torch.ones(2, 33)
    guidance = Guidance(2.0, {"shift": torch.zeros(1)}, doubled=False)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        step = ops.stepper(mode.from_tensor(x), make_table())
        step(0, mode.from_tensor(x))
        run(mode.from_tensor(x), 13, seed=1, guidance=guidance, conditioning={"shift": torch.ones(1)})
    run(x, 13, seed=1, guidance=guidance, conditioning={"shift": torch.ones(1)})


REAL = torch.ones(2, 3)
