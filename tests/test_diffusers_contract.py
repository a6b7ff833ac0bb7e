"""What a user expects of a drop-in scheduler's interface: classes, signatures, configurations, files, copies."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import multiprocessing
import pickle
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

import torch  # noqa: E402

from diffusers_cases import NAMES, default, draw, ours, theirs  # noqa: E402
from diffusers_loops import advance, build, generators, loop, network, start  # noqa: E402
from fastdiff.diffusers import CLASSES  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
every = pytest.mark.parametrize("name", NAMES)

KARRAS = [
    cls.name
    for cls in diffusers.schedulers.KarrasDiffusionSchedulers
    if cls.name in NAMES and "beta_start" in inspect.signature(theirs(cls.name)).parameters
]
"""Schedulers whose configurations pipelines swap for each other."""


@every
def test_a_subclass_with_the_same_signatures(name: str) -> None:
    plain, mine = theirs(name), ours(name)
    assert issubclass(mine, plain) and mine is not plain and mine.__name__ == name
    assert inspect.signature(mine.__init__) == inspect.signature(plain.__init__)
    for member, function in inspect.getmembers(plain, inspect.isfunction):
        if not member.startswith("_"):
            assert inspect.signature(getattr(mine, member)) == inspect.signature(function), member
    assert getattr(mine, "order", None) == getattr(plain, "order", None)


@every
def test_members_after_set_timesteps(name: str) -> None:
    case = default(name, 7)
    plain, mine = build(theirs(name), case), build(ours(name), case)
    for member in ("timesteps", "sigmas"):
        if hasattr(plain, member):
            assert torch.equal(
                torch.as_tensor(getattr(mine, member)), torch.as_tensor(getattr(plain, member))
            )
    for member in ("init_noise_sigma", "order", "num_inference_steps", "step_index", "begin_index"):
        if hasattr(plain, member):
            assert getattr(mine, member) == getattr(plain, member), member
    # diffusers has no length where the configuration has no number
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        length = len(plain)
        assert len(mine) == length
    if hasattr(plain, "scale_model_input"):
        x = torch.randn(case.shape)
        scaled = [s.scale_model_input(x, s.timesteps[2]) for s in (plain, mine)]
        torch.testing.assert_close(*scaled, rtol=1e-6, atol=0)


@every
def test_configurations_survive_swaps(name: str) -> None:
    for seed in range(4):
        first = theirs(name)(**draw(name, seed).config)
        there = ours(name).from_config(first.config)
        back = theirs(name).from_config(there.config)
        assert type(there) is ours(name) and type(back) is theirs(name)
        assert dict(there.config) == dict(first.config) == dict(back.config)


@pytest.mark.parametrize("name", KARRAS)
def test_configurations_of_compatible_classes(name: str) -> None:
    mine = ours(name)
    few = {"num_train_timesteps": 100}
    for other in (
        "DDIMScheduler",
        "EulerDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
    ):
        config = theirs(other)(beta_start=0.001, prediction_type="v_prediction", **few).config
        plain, converted = theirs(name).from_config(config), mine.from_config(config)
        assert dict(converted.config) == dict(plain.config)
        assert dict(theirs(other).from_config(converted.config).config) == dict(config)
    assert {c.__name__ for c in mine(**few).compatibles} == {
        c.__name__ for c in theirs(name)(**few).compatibles
    }


def first_output(cls: type, case: Any, return_dict: bool) -> Any:
    """What the first step of a case returns."""
    scheduler = build(cls, case)
    x, timesteps = start(scheduler, case, torch.float32)
    found, step = [], scheduler.step

    def kept(*args: Any, **more: Any) -> Any:
        found.append(step(*args, **{**more, "return_dict": return_dict}))
        return (x,) * 3

    with patch.object(scheduler, "step", kept):
        advance(scheduler, case, network(case), x, timesteps, 0, [x], generators(case))
    return found[0]


@every
def test_outputs(name: str) -> None:
    if not hasattr(theirs(name), "step"):
        pytest.skip("has no step")
    case = default(name, 4)
    plain, mine = (first_output(cls, case, False) for cls in (theirs(name), ours(name)))
    assert isinstance(mine, tuple) and [type(v) for v in mine] == [type(v) for v in plain]
    plain, mine = (first_output(cls, case, True) for cls in (theirs(name), ours(name)))
    assert isinstance(mine, type(plain))
    if not isinstance(plain, tuple):
        assert list(mine.keys()) == list(plain.keys())


@every
def test_noising_is_the_same(name: str) -> None:
    case = default(name)
    plain, mine = build(theirs(name), case), build(ours(name), case)
    for dtype in (torch.float32, torch.float16):
        x, noise = torch.randn(3, 2, 4, 4).to(dtype), torch.randn(3, 2, 4, 4).to(dtype)
        t = plain.timesteps[torch.tensor([1, 4, 2]) % len(plain.timesteps)]
        for member, arguments in (
            ("add_noise", (x, noise, t)),
            ("scale_noise", (x, t, noise)),
            ("get_velocity", (x, noise, t)),
        ):
            try:
                expected = getattr(plain, member)(*arguments)
            except (AttributeError, NotImplementedError, TypeError, RuntimeError, IndexError):
                continue
            torch.testing.assert_close(getattr(mine, member)(*arguments), expected)


def load_without_fastdiff(folder: Path, names: list[str]) -> None:
    """In a process of its own: what was saved loads though fastdiff cannot be imported."""
    for module in [name for name in sys.modules if name.split(".")[0] == "fastdiff"] + ["fastdiff"]:
        sys.modules[module] = None  # type: ignore[assignment]
    for name in names:
        assert type(theirs(name).from_pretrained(folder / name)) is theirs(name)
    pipe = diffusers.DDPMPipeline.from_pretrained(folder / "pipeline")
    assert type(pipe.scheduler) is diffusers.DDPMScheduler, type(pipe.scheduler)


def tiny_pipeline(scheduler: Any) -> Any:
    """An unconditional pipeline of a few thousand weights."""
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(4, 8),
        norm_num_groups=2, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    return diffusers.DDPMPipeline(unet, scheduler)


def test_files_load_where_fastdiff_is_not_installed(tmp_path: Path) -> None:
    classes = pytest.importorskip("fastdiff.diffusers").CLASSES
    for name, cls in classes.items():
        theirs_at, ours_at = tmp_path / "plain" / name, tmp_path / name
        theirs(name)(**default(name).config).save_pretrained(theirs_at)
        scheduler = cls(**default(name).config)
        scheduler.save_pretrained(ours_at)
        saved = [json.loads((at / "scheduler_config.json").read_text()) for at in (theirs_at, ours_at)]
        assert saved[0] == saved[1] and saved[1]["_class_name"] == name
        assert type(cls.from_pretrained(ours_at)) is cls
    pipe = tiny_pipeline(ours("DDPMScheduler")())
    pipe.save_pretrained(tmp_path / "pipeline")
    assert json.loads((tmp_path / "pipeline" / "model_index.json").read_text())["scheduler"] == [
        "diffusers",
        "DDPMScheduler",
    ]
    # Forked, since importing diffusers takes longer than the rest.
    child = multiprocessing.get_context("fork").Process(
        target=load_without_fastdiff, args=(tmp_path, list(classes))
    )
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_a_pipeline_runs_and_reloads() -> None:
    plain = tiny_pipeline(theirs("DDPMScheduler")())
    mine = copy.deepcopy(plain)
    mine.scheduler = ours("DDPMScheduler").from_config(plain.scheduler.config)
    images = []
    for pipe in (plain, mine):
        pipe.set_progress_bar_config(disable=True)
        g = torch.Generator().manual_seed(3)
        images.append(torch.as_tensor(pipe(num_inference_steps=6, generator=g, output_type="np").images))
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-5)


def _copied(scheduler: Any, how: str) -> Any:
    return copy.deepcopy(scheduler) if how == "deepcopy" else pickle.loads(pickle.dumps(scheduler))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@every
def test_a_copy_goes_on_from_where_it_was_made(name: str, how: str) -> None:
    case = default(name, 6, generators="one")
    for cls in (theirs(name), ours(name)):
        original = build(cls, case)
        x, timesteps = start(original, case, torch.float32)
        model, last, generator = network(case), [x], generators(case)
        for i in range(min(3, len(timesteps))):
            last = advance(original, case, model, last[0], timesteps, i, last, generator)
        try:
            duplicate = _copied(original, how)
            ends = []
            for scheduler in (original, duplicate):
                state, again = generator.get_state(), last
                for i in range(min(3, len(timesteps)), len(timesteps)):
                    again = advance(scheduler, case, model, again[0], timesteps, i, again, generator)
                generator.set_state(state)
                ends.append(again[0])
        except Exception:
            if cls is theirs(name):
                pytest.skip("diffusers' own cannot be copied: a Brownian tree")
            raise
        assert type(duplicate) is cls
        largest = ends[0].abs().max().item()
        torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-6 * largest)


def test_convert_and_revert() -> None:
    package = pytest.importorskip("fastdiff.diffusers")
    for name in package.CLASSES:
        plain = build(theirs(name), default(name))
        mine = package.convert(plain)
        assert type(mine) is ours(name) and dict(mine.config) == dict(plain.config)
        back = package.revert(mine)
        assert type(back) is theirs(name) and dict(back.config) == dict(plain.config)
        assert torch.equal(torch.as_tensor(back.timesteps), torch.as_tensor(plain.timesteps))
    text = str(package.coverage())
    assert all(name in text for name in package.CLASSES)


@every
def test_what_falls_back_says_why(name: str) -> None:
    scheduler = build(ours(name), default(name))
    assert scheduler.fallback is None or len(scheduler.fallback) > 10
    loop(scheduler, default(name), generator=generators(default(name)))


@pytest.mark.parametrize("name", [n for n, cls in CLASSES.items() if cls.refuses_integers])
@pytest.mark.parametrize("timestep", [0, torch.tensor(1)], ids=["int", "tensor"])
def test_an_index_is_no_timestep(name: str, timestep: Any) -> None:
    for cls in (ours(name), theirs(name)):
        scheduler = build(cls, default(name, 3))
        if scheduler.timesteps.is_floating_point():
            with pytest.raises(ValueError, match="integer"):
                scheduler.step(torch.ones(1, 3, 4, 4), timestep, torch.ones(1, 3, 4, 4))
