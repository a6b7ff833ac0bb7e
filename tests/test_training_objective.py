"""What a network learns: targets and weights against the papers' formulas, the noise levels it meets, and the noise."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import continuous, models
from fastdiff.apps.generate import generate
from fastdiff.levels import Level
from fastdiff.models import CheckpointError, TrainedUNet
from fastdiff.models.checkpoint import make_schedule
from fastdiff.predictions import PREDICTIONS
from fastdiff.training import TrainConfig, Trainer
from fastdiff.training.objective import Denoising, make_objective
from fastdiff.training.sheet import sample_labels
from fastdiff.training.times import quantile, training_levels
from fastdiff.uniform_noise import UniformNoise
from tiny_model import tiny_model
from training_cases import TINY, change, paint_classes

TIME, ALPHA, SIGMA, ON_X0, ON_EPS, WEIGHT, SCALE = range(7)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_classes(tmp_path_factory.mktemp("data"))


def objective(**fields: object) -> Denoising:
    made = make_objective(change(**fields))
    assert isinstance(made, Denoising)
    return made


def table(**fields: object) -> torch.Tensor:
    made = objective(**fields).table
    assert made is not None
    return made


CHOICES: dict[str, dict[str, object]] = {
    "epsilon": {"prediction": "epsilon"},
    "sample": {"prediction": "sample"},
    "v": {"prediction": "v"},
    "flow": {
        "prediction": "flow",
        "schedule": {"name": "flow", "T": 1000},
        "times": {"name": "logit_normal"},
    },
    "edm": {
        "prediction": "edm",
        "schedule": {"name": "edm"},
        "times": {"name": "log_normal"},
        "weighting": "plain",
    },
    "edm on a cosine": {"prediction": "edm"},
    "cosine, any time": {"schedule": {"name": "cosine"}, "times": {"name": "uniform"}},
    "vp, any time": {"prediction": "epsilon", "schedule": {"name": "linear"}, "times": {"name": "uniform"}},
    "betas, any time": {"times": {"name": "uniform"}},
    "uniform noise": {"noise": "uniform"},
}


@pytest.mark.parametrize("name", CHOICES)
def test_it_learns_and_samples(data: Path, name: str) -> None:
    config = change(**CHOICES[name], steps=24, lr=2e-2, cooldown=0, batch=12, micro=12)
    trainer = Trainer(config, data)
    losses = [trainer.advance().loss for _ in range(config.steps)]
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:4])
    model = trainer.averaged()
    assert model.prediction == config.prediction and model.noise == config.noise
    made = sample_labels(model, torch.tensor([0, 1]), seed=0, steps=4)
    assert made.shape == (2, 3, 8, 8) and made.isfinite().all()


def test_targets_and_weights_are_the_papers() -> None:
    process = make_schedule({"name": "cosine_betas"}).process
    alpha, sigma = torch.tensor(process.alphas), torch.tensor(process.sigmas)
    snr = (alpha / sigma) ** 2
    expected = {
        "epsilon": (0 * alpha, 0 * alpha + 1, snr.clamp(max=5) / snr),
        "sample": (0 * alpha + 1, 0 * alpha, snr.clamp(max=5)),
        "v": (-sigma, alpha, snr.clamp(max=5) / (snr + 1)),
    }
    for prediction, columns in expected.items():
        made = table(prediction=prediction).T
        for got, want in zip(made[[ON_X0, ON_EPS, WEIGHT]], columns):
            torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-7)
        assert torch.equal(made[TIME], torch.arange(1000.0)) and (made[SCALE] == 1).all()
    even = table(snr_offset=1.0)[:, WEIGHT]
    assert (even[snr < 5] - 1).abs().max() < 1e-6 and even[0] < 1e-2
    assert (table(weighting="plain")[:, WEIGHT] == 1).all()
    flow = table(prediction="flow", schedule={"name": "flow", "T": 1000}).T
    assert flow[ON_X0].eq(-1).all() and flow[ON_EPS].sub(1).abs().max() < 1e-6
    assert flow[TIME, -1] == 1000 and flow[ALPHA, -1] == 0 and flow[WEIGHT, -1] == 0


def test_edm_is_the_papers() -> None:
    """Target (x0 - c_skip x) / c_out, input c_in x, time log(sigma) / 4, weight lambda c_out^2 = 1 (table 1)."""
    made = objective(**CHOICES["edm"])
    marks = made.draw(64, torch.Generator().manual_seed(0))
    x0, eps = torch.randn(64, 2, 4, 4), torch.randn(64, 2, 4, 4)
    x_in, time, target = made.corrupted(x0, eps, marks)
    sigma = marks[:, SIGMA].view(-1, 1, 1, 1)
    x, total = x0 + sigma * eps, sigma**2 + 0.25
    torch.testing.assert_close(x_in, x / total.sqrt(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        target, (x0 - 0.25 / total * x) / (0.5 * sigma / total.sqrt()), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(time, marks[:, SIGMA].log() / 4)
    assert (marks[:, WEIGHT] == 1).all() and (marks[:, ALPHA] == 1).all()


def test_corrupted_is_the_forward_process() -> None:
    made = objective()
    x0, eps = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    assert made.table is not None
    marks = made.table[[0, 500, 999]]
    x, time, v = made.corrupted(x0, eps, marks)
    a, s = (marks[:, i].view(-1, 1, 1, 1) for i in (ALPHA, SIGMA))
    assert time.tolist() == [0, 500, 999]
    torch.testing.assert_close(x, a * x0 + s * eps)
    torch.testing.assert_close(a * x - s * v, x0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(s * x + a * v, eps, atol=1e-5, rtol=1e-5)


def test_levels_are_drawn_evenly() -> None:
    times = objective().draw(50, torch.Generator().manual_seed(3))[:, TIME].long()
    assert sorted((times // 20).tolist()) == list(range(50)) and times.tolist() != sorted(times.tolist())


def test_continuous_times_have_their_distributions() -> None:
    count, generator = 4000, torch.Generator().manual_seed(0)
    edm = objective(**CHOICES["edm"]).draw(count, generator)[:, SIGMA].log()
    assert edm.mean().item() == pytest.approx(-1.2, abs=0.01) and edm.std().item() == pytest.approx(
        1.2, abs=0.02
    )
    share = objective(**CHOICES["flow"]).draw(count, generator)[:, TIME] / 1000
    assert share.logit().mean().abs() < 0.01 and share.logit().std().item() == pytest.approx(1, abs=0.02)
    even = objective(**CHOICES["cosine, any time"]).draw(count, generator)[:, TIME] / 1000
    assert even.mean().item() == pytest.approx(0.5, abs=0.001) and len(even.unique()) == count
    assert 0 < even.min() < 0.001 and 0.999 < even.max() < 1


def test_levels_of_a_schedule() -> None:
    assert [level.t for level in training_levels(make_schedule({"name": "linear_betas", "T": 10}))] == list(
        range(10)
    )
    assert training_levels(make_schedule({"name": "cosine"}))[-1].alpha == 0
    with pytest.raises(ValueError, match="T must be"):
        make_schedule({"name": "linear_betas", "T": float("inf")})
    with pytest.raises(ValueError, match="at most 1400"):
        make_schedule({"name": "linear", "beta_max": 2000.0})
    with pytest.raises(ValueError, match="does not take these options"):
        make_schedule({"name": "linear", "beta_max": 10**400})
    assert make_schedule({"name": "linear", "beta_max": 1399.0}).process.level(1000.0).sigma == 1


@pytest.mark.parametrize(
    "times, said",
    [
        ({"name": "normal"}, "unknown times 'normal'"),
        ({}, "unknown times None"),
        ({"name": "uniform", "mean": 0}, "has no option mean"),
        ({"name": "log_normal", "std": 0}, "std must be a finite number"),
        ({"name": "log_normal", "mean": "x"}, "mean must be a finite number"),
        ({"name": "log_normal", "mean": 1000}, "mean must be a finite number up to 50"),
        ({"name": "logit_normal", "mean": -1000.0}, "mean must be a finite number up to 50"),
        ({"name": "log_normal", "std": float("nan")}, "std must be a finite number"),
    ],
)
def test_bad_times_are_refused(times: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        objective(times=times)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["discrete", "uniform", "logit_normal"])
def test_sigmas_have_log_normal_times_only(name: str) -> None:
    with pytest.raises(ValueError, match=f"sigmas has no {name} times"):
        objective(prediction="edm", schedule={"name": "edm"}, times={"name": name})


def test_log_normal_times_stay_on_a_table() -> None:
    at = quantile(make_schedule({"name": "cosine_betas"}), {"name": "log_normal", "mean": 0.0, "std": 20.0})
    assert at is not None
    assert at(1e-9).t == 0 and at(1 - 1e-9).t == 999 and math.isfinite(at(0.5).ratio)


@pytest.mark.parametrize(
    "make", [continuous.cosine, continuous.linear, lambda: continuous.cosine(T=1.0, shift=4.0)]
)
def test_continuous_processes_agree_with_themselves(make: object) -> None:
    schedule = make()  # type: ignore[operator]
    process = schedule.process
    for share in (0.01, 0.3, 0.7, 0.99):
        level = process.level(share * process.T)
        back = process.at(level.ratio)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1) and back.t == pytest.approx(level.t)
        assert isinstance(back, Level) and back.alpha == pytest.approx(level.alpha)
    assert process.at(math.inf).alpha == 0 and process.at(0.0).t == 0
    levels = schedule.levels(5)
    assert levels[0].t == process.T and levels[-1].sigma == 0
    with pytest.raises(ValueError, match="lies outside"):
        process.level(2 * process.T)


def test_continuous_processes_are_the_papers() -> None:
    cosine = continuous.cosine().process.level(400.0)
    assert cosine.alpha == pytest.approx(math.cos(0.2 * math.pi))
    linear = continuous.linear().process.level(400.0)  # Song et al. 2021, equation 33
    assert linear.alpha == pytest.approx(math.exp(-0.25 * 0.4**2 * 19.9 - 0.5 * 0.4 * 0.1))
    for wrong in ({"T": 0}, {"shift": -1}, {"spacing": "odd"}):
        with pytest.raises(ValueError):
            continuous.cosine(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="beta_max"):
        continuous.linear(beta_min=3, beta_max=2)
    assert len(continuous.linear(spacing="karras").levels(7)) == 8


def test_uniform_noise_has_unit_variance_and_a_seed_for_each() -> None:
    noise = UniformNoise([3, 4]).start(torch.empty(2, 3, 40, 40))
    assert noise.var().item() == pytest.approx(1, abs=0.03) and noise.abs().max() <= math.sqrt(3)
    assert torch.equal(UniformNoise([4]).start(torch.empty(1, 3, 40, 40))[0], noise[1])
    drawn = objective(noise="uniform").noise(torch.Size((8, 3, 8, 8)), torch.Generator().manual_seed(0))
    assert drawn.abs().max() <= math.sqrt(3) and drawn.std().item() == pytest.approx(1, abs=0.05)
    with pytest.raises(ValueError, match="seeds"):
        UniformNoise([1]).start(torch.empty(2, 3))


def test_the_flow_of_uniform_noise_leads_to_the_data() -> None:
    """One pixel, data at -1 and 1: the exact denoiser of uniform noise, and where the sampler ends."""

    def exact(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        u = t[:, None] / 1000
        inside = [((x - (1 - u) * data).abs() <= u * math.sqrt(3) + 1e-6).float() for data in (-1.0, 1.0)]
        total = inside[0] + inside[1]
        return torch.where(total > 0, (inside[1] - inside[0]) / total.clamp(min=1), x.sign())

    made = fastdiff.sample(
        exact, (2000, 1), schedule=fastdiff.schedules.flow(T=1000), sampler="euler", steps=200,
        prediction="sample", noise=UniformNoise(range(2000)),
    )  # fmt: skip
    assert (made.abs() - 1).abs().max() < 0.02 and made.mean().abs() < 0.1


def test_samplers_that_add_noise_refuse_uniform_noise() -> None:
    model = tiny_model()
    for sampler in ("euler_ancestral", "dpmpp_2m_sde"):
        with pytest.raises(ValueError, match="use a deterministic one"):
            fastdiff.sample(
                model, (1, 3, 8, 8), schedule=model.schedule, sampler=sampler, steps=3,
                prediction="v", noise=UniformNoise([0]),
            )  # fmt: skip


def test_uniform_noise_is_kept_in_the_checkpoint(tmp_path: Path) -> None:
    tiny = tiny_model()
    for noise in ("gaussian", "uniform"):
        net = TrainedUNet(
            tiny.config,
            labels=tiny.labels,
            prediction="v",
            schedule_options=tiny.schedule_options,
            noise=noise,
        )
        models.save(tmp_path / f"{noise}.safetensors", net)
        assert models.load(tmp_path / f"{noise}.safetensors").noise == noise
    assert b'"noise"' not in (tmp_path / "gaussian.safetensors").read_bytes()  # older versions read it
    with pytest.raises(ValueError, match="noise must be one of"):
        TrainedUNet(
            tiny.config,
            labels=tiny.labels,
            prediction="v",
            schedule_options=tiny.schedule_options,
            noise="pink",
        )


def test_a_sigma_checkpoint_needs_preconditioning(tmp_path: Path) -> None:
    tiny = tiny_model()
    net = TrainedUNet(tiny.config, labels=tiny.labels, prediction="edm", schedule_options={"name": "edm"})
    models.save(tmp_path / "m.safetensors", net)
    assert models.load(tmp_path / "m.safetensors").prediction == "edm" and "edm" in PREDICTIONS
    data = (
        (tmp_path / "m.safetensors")
        .read_bytes()
        .replace(rb"\"prediction\": \"edm\"", rb"\"prediction\": \"eps\"")
    )
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="prediction must be one of"):
        models.load(tmp_path / "x.safetensors")


def test_defaults_are_what_they_were(data: Path) -> None:
    """A configuration of an older version means the same run: the draws of its first step have not changed."""
    plain, spelled = Trainer(TINY, data), Trainer(change(times={"name": "discrete"}, accumulate=1), data)
    assert plain.advance().loss == spelled.advance().loss
    assert isinstance(TrainConfig().as_dict()["times"], dict)


def test_applications_begin_with_the_noise_of_the_model() -> None:
    tiny = tiny_model()
    net = TrainedUNet(
        tiny.config,
        labels=tiny.labels,
        prediction="v",
        schedule_options={**tiny.schedule_options, "zero_snr": True},
        noise="uniform",
    )
    net.load_state_dict(tiny.state_dict())
    made = generate("cat", model=net.eval(), steps=2, seed=7, guidance=1.0, sampler="ddim").images
    by_hand = fastdiff.sample(
        net, (1, 3, 16, 16), schedule=net.schedule, steps=2, sampler="ddim", prediction="v",
        noise=UniformNoise([7]), conditioning={"label": torch.tensor([1])},
    )  # fmt: skip
    torch.testing.assert_close(made, by_hand.clamp(-1, 1))
    with pytest.raises(ValueError, match="use a deterministic one"):
        generate("cat", model=net, steps=2, sampler="euler_ancestral")


@pytest.mark.parametrize(
    "prediction, schedule",
    [("edm", "edm"), ("edm", "cosine_betas"), ("v", "cosine"), ("epsilon", "linear"), ("flow", "flow")],
)
def test_applications_take_every_kind_of_model(prediction: str, schedule: str) -> None:
    tiny = tiny_model()
    net = TrainedUNet(
        tiny.config, labels=tiny.labels, prediction=prediction, schedule_options={"name": schedule}
    )
    net.load_state_dict(tiny.state_dict())
    for sampler in ("dpmpp_2m", "unipc", "euler_ancestral"):
        made = generate("cat", model=net.eval(), steps=4, sampler=sampler).images
        assert made.shape == (1, 3, 16, 16) and made.isfinite().all()
