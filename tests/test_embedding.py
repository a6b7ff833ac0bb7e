"""fastdiff inside other programs: processes, memory, compiled models, torch's global settings."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import subprocess
import sys

import pytest
import torch

import fastdiff
from fastdiff import ops, schedules

KARRAS = schedules.karras(0.1, 10.0)


def half(x, t):
    return x / 2


def picture(shape=(2, 3, 96, 96), **changes):
    options = {
        "schedule": KARRAS,
        "steps": 4,
        "prediction": "sample",
        "seed": 0,
        "sampler": "dpmpp_2m_sde",
    } | changes
    return fastdiff.sample(half, shape, **options)


def in_child(answers):
    torch.set_num_threads(
        1
    )  # as data loader workers do; OpenMP's threads do not survive a fork, torch's own ops neither
    answers.put(
        (float(picture().double().sum()), float(ops.group_norm_silu(torch.ones(2, 8, 4, 4), 4).sum()))
    )


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_processes_can_sample_after_use(method):
    expected = float(picture().double().sum())
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    child = context.Process(target=in_child, args=(answers,))
    child.start()
    got, constant = answers.get(timeout=120)
    child.join(30)
    assert child.exitcode == 0
    assert got == pytest.approx(expected, rel=1e-6)
    assert constant == 0.0


def test_ten_thousand_steps_do_not_grow_the_memory():
    picture(shape=(1, 8), steps=1000)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(10):
        picture(shape=(1, 8), steps=1000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024  # kilobytes


def test_importing_does_no_work():
    """Not even torch is loaded; and the names, once asked for, load no native code and leave the random state alone."""
    code = (
        "import sys, threading, fastdiff; assert 'torch' not in sys.modules; "
        "import torch; state = torch.get_rng_state(); "
        "[getattr(fastdiff, name) for name in fastdiff.__all__]; "
        "assert threading.active_count() == 1 and torch.equal(state, torch.get_rng_state()); "
        "assert not any('libfastdiff' in line for line in open('/proc/self/maps'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_env_answers_where_torch_is_broken(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch_cpu.so: undefined symbol')")
    paths = {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "fastdiff", "env"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | paths)
    assert done.returncode == 0 and "undefined symbol" in done.stdout and "fastdiff" in done.stdout


def test_names_that_do_not_exist_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        _ = fastdiff.smaple


def test_torch_settings_of_the_caller_are_respected():
    expected = picture()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(picture(), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        assert torch.equal(picture(), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(picture(), expected)
    threads = torch.get_num_threads()
    picture(shape=(4, 3, 256, 256))
    assert torch.get_num_threads() == threads


def test_a_compiled_model_is_compiled_once():
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = torch.compile(lambda x, t: torch.tanh(x) / (1 + t[:, None]), backend=backend, fullgraph=True)
    options = {"schedule": KARRAS, "steps": 20, "prediction": "sample", "seed": 0}
    x = fastdiff.sample(model, (2, 16), **options)
    expected = fastdiff.sample(lambda x, t: torch.tanh(x) / (1 + t[:, None]), (2, 16), **options)
    torch.testing.assert_close(x, expected)
    assert len(graphs) == 1


def test_an_interrupt_leaves_everything_usable():
    calls = []

    def interrupted(x, t):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return x / 2

    with pytest.raises(KeyboardInterrupt):
        fastdiff.sample(interrupted, (2, 8), schedule=KARRAS, steps=6, prediction="sample", seed=0)
    assert picture().isfinite().all()


def test_a_changed_batch_size_starts_afresh():
    """No state of one run reaches the next, whatever its shape."""
    alone = picture(shape=(1, 4), sampler="unipc")
    picture(shape=(5, 4), sampler="unipc")
    assert torch.equal(picture(shape=(1, 4), sampler="unipc"), alone)
