"""Inpainting: what is kept to the last bit, holes of every kind, both methods, resampling as rows, outpainting."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.restoration import inpaint_biharmonic

from fastdiff.apps.filling import depth, filled
from fastdiff.apps.inpaint import extended, inpaint, prepare
from fastdiff.apps.masks import feathered
from fastdiff.apps.resampling import resampled
from fastdiff.apps.settings import Settings
from pictures import latent, smooth, source

PICTURE = smooth()
HOLE = torch.zeros(30, 22)
HOLE[5:9, 4:12] = 1
HOLE[20:, 18:] = 1


@pytest.mark.parametrize("method", ["sample", "restore"])
@pytest.mark.parametrize("make", [source, latent])
def test_what_is_kept_is_kept_to_the_last_bit(method, make):
    made = inpaint(PICTURE, HOLE, method=method, steps=3, model=make())
    assert made.images.shape == (1, *PICTURE.shape)
    assert torch.equal(made.images[0][:, HOLE == 0], PICTURE[:, HOLE == 0])
    assert not torch.equal(made.images[0][:, HOLE == 1], PICTURE[:, HOLE == 1])


@pytest.mark.parametrize("method", ["sample", "restore"])
def test_what_lies_under_the_mask_does_not_matter(method):
    other = torch.where(HOLE > 0, -PICTURE, PICTURE)
    one, two = (inpaint(p, HOLE, method=method, steps=2, model=source()).images for p in (PICTURE, other))
    assert torch.equal(one, two)


def test_the_method_fits_what_is_asked():
    def chosen(mask, prompt=None, **changes):
        return prepare(PICTURE, mask, prompt, model=source(), **changes).arguments["method"]

    deep = torch.ones(30, 22)
    deep[:, 0] = 0
    assert chosen(HOLE) == "restore"
    assert {chosen(deep), chosen(HOLE, "cat"), chosen(HOLE, count=2), chosen(HOLE, resample=2)} == {"sample"}


def test_a_mask_of_ones_makes_a_new_picture():
    made = inpaint(PICTURE, torch.ones(1, 30, 22), "cat", steps=2, count=2, model=source())
    assert made.images.shape == (2, *PICTURE.shape)
    assert not torch.allclose(made.images[0], made.images[1], atol=1e-2)
    with pytest.raises(ValueError, match="nothing of the picture is kept"):
        prepare(PICTURE, torch.ones(30, 22), method="restore", model=source())


def test_soft_edges_lie_outside_what_is_marked():
    weight = feathered(HOLE[None], 3)
    assert torch.equal(weight[0][HOLE == 1], torch.ones(int(HOLE.sum())))
    assert weight[0, 4, 6] == 0.75 and weight[0, 2, 6] == 0.25 and weight[0, 1, 6] == 0
    made = inpaint(PICTURE, HOLE, "cat", feather=3, steps=2, model=source()).images[0]
    assert torch.equal(made[:, weight[0] == 0], PICTURE[:, weight[0] == 0])


def test_partial_masks_are_weighted_means():
    half = inpaint(PICTURE, 0.5 * HOLE, method="sample", steps=2, model=source()).images[0]
    full = inpaint(PICTURE, HOLE, method="sample", steps=2, model=source()).images[0]
    assert torch.allclose(half, (full + PICTURE) / 2, atol=1e-5)


@pytest.mark.parametrize("rounds, jump", [(2, 2), (3, 4), (2, 100)])
@pytest.mark.parametrize("sampler, options", [("ddim", {"eta": 1.0}), ("dpmpp_2m", {}), ("heun", {})])
def test_resampling_is_rows(sampler, options, rounds, jump):
    plan = Settings(steps=6, sampler=sampler, options=options).plan(source())
    again = resampled(plan, rounds=rounds, jump=jump)
    up = [row for row in again.rows if not row.call]
    assert len(up) == (rounds - 1) * -(-6 // jump)
    assert all(row.to.ratio > row.level.ratio for row in up)
    for row in up:  # the variance of what is known stays that of its level
        assert np.isclose((row.x * row.level.sigma) ** 2 + row.noise**2, row.to.sigma**2)
        assert np.isclose(row.x * row.level.alpha, row.to.alpha)
    assert all(a.to == b.level for a, b in itertools.pairwise(again.rows))
    assert rounds - 1 <= again.calls / plan.calls <= rounds + 0.5  # a stretch may end with a simpler step


def test_resampling_runs_keeps_and_repeats():
    job = prepare(PICTURE, HOLE, "cat", resample=3, jump=2, steps=4, count=2, model=source())
    assert job.total_calls == 12
    made = job.run()
    assert all(torch.equal(one[:, HOLE == 0], PICTURE[:, HOLE == 0]) for one in made.images)
    again = inpaint(PICTURE, HOLE, model=source(), **made.recipe["arguments"])
    assert torch.equal(again.images, made.images)
    assert set(made.recipe["inputs"]) == {"picture", "mask"}


def test_samplers_that_cannot_begin_anew_say_so():
    with pytest.raises(ValueError, match="take another sampler"):
        prepare(PICTURE, HOLE, "cat", resample=2, sampler="dpm_adaptive", model=source())
    with pytest.raises(ValueError, match="cannot be walked twice"):
        prepare(PICTURE, HOLE, "cat", resample=2, sampler="dpmpp_sde", model=source())


def test_a_filling_is_the_surface_of_least_bending():
    made = filled(PICTURE, HOLE[None])
    damaged = torch.where(HOLE > 0, 0.0, PICTURE).permute(1, 2, 0).double().numpy()
    theirs = inpaint_biharmonic(damaged, HOLE.numpy() > 0, channel_axis=-1)
    inner = HOLE.clone()
    inner[20:, 18:] = 0  # at the rim of the picture the two continue differently
    assert np.abs(made.permute(1, 2, 0).numpy() - theirs)[inner.numpy() > 0].max() < 0.02
    assert torch.equal(made[:, HOLE == 0], PICTURE[:, HOLE == 0])
    assert not filled(PICTURE, torch.ones(1, 30, 22)).any()


def test_a_filling_stays_within_what_is_known_and_finite_for_one_known_pixel():
    lone = torch.ones(1, 30, 22)
    lone[0, 3, 7] = 0
    made = filled(PICTURE, lone)
    assert torch.allclose(made, PICTURE[:, 3, 7, None, None].expand_as(made), atol=1e-6)


def test_the_depth_of_holes():
    assert depth(torch.zeros(1, 9, 9)) == 0
    assert depth(HOLE[None]) == 4 and depth(torch.ones(1, 9, 9), most=20) == 20


def test_several_looks_mend_too():
    made = inpaint(PICTURE, HOLE, average=5, steps=2, batch=2, model=source())
    assert made.images.shape == (1, *PICTURE.shape)
    assert torch.equal(made.images[0][:, HOLE == 0], PICTURE[:, HOLE == 0])


def test_outpainting_keeps_the_picture_where_it_is_put():
    canvas, mask = extended(PICTURE, 3, 5, 7, 11)
    assert canvas.shape == (3, 46, 32) and mask.sum() == 46 * 32 - 30 * 22
    made = inpaint(canvas, mask, "cat", steps=2, model=source()).images[0]
    assert torch.equal(made[:, 5:35, 3:25], PICTURE)
    for sides in ((0, 0, 0, 0), (-1, 0, 0, 0), (4096, 0, 0, 0)):
        with pytest.raises(ValueError):
            extended(PICTURE, *sides)


@pytest.mark.parametrize(
    "mask, changes, message",
    [
        (torch.zeros(30, 22), {}, "mask is empty"),
        (torch.ones(22, 30), {}, "30x22 and the picture 22x30"),
        (torch.ones(3, 30, 22), {}, r"\[H, W\] or \[1, H, W\]"),
        (2 * HOLE, {}, "between 0, keep, and 1, repaint"),
        (torch.full((30, 22), torch.nan), {}, "between 0"),
        (HOLE, {"method": "magic"}, "magic"),
        (HOLE, {"feather": -1}, "feather"),
        (HOLE, {"resample": 0}, "resample"),
        (HOLE, {"method": "restore", "count": 2}, "neither count"),
        (HOLE, {"method": "sample", "average": 2}, "average belongs"),
        (HOLE, {"doubt": 300}, "doubt"),
        (HOLE, {"prompt": "dog"}, "dog"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(mask, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        prepare(PICTURE, mask, model=source(), **changes)
    assert "\n" not in str(caught.value)


def test_other_kinds_of_masks():
    assert prepare(PICTURE, HOLE > 0, model=source()).total_calls == 4
    with pytest.raises(TypeError, match="pass a tensor"):
        prepare(PICTURE, HOLE.numpy(), model=source())


def test_pipelines_of_latents_inpaint_at_any_size(monkeypatch):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
    pipelines = importlib.import_module("worded_pipelines")
    made = inpaint(
        PICTURE, HOLE, "a cat", resample=2, jump=1, steps=2, count=2, model=pipelines.stable_diffusion()
    )
    assert made.images.shape == (2, *PICTURE.shape)
    assert all(torch.equal(one[:, HOLE == 0], PICTURE[:, HOLE == 0]) for one in made.images)
