"""accelerate(pipe, graph=True): denoisers replayed within pipelines, by a stand-in for CUDA graphs, and never stale."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from diffusers.models.attention_processor import AttnProcessor

from fastdiff.patching import accelerate, restore
from tiny_parts import TEXT, text, unet
from tiny_pipelines import families, stable_diffusion

pytestmark = [pytest.mark.usefixtures("stand_in")]
FAMILIES = families()
CALL = FAMILIES["SD 1.5"].call


def reports(pipe: Any) -> list[Any]:
    models = (model for model in vars(pipe).values() if isinstance(model, torch.nn.Module))
    return [model.forward.report for model in models if "forward" in vars(model)]


@pytest.mark.parametrize(
    "name", ["SD 1.5", "SDXL", "ControlNet", "IP-Adapter", "DDPM", "SD 3", "Flux", "Wan", "AnimateDiff"]
)
def test_the_same_pictures_by_replays(name: str) -> None:
    family = FAMILIES[name]
    pipe = accelerate(family.build())
    expected = family.call(pipe, 4)
    assert accelerate(pipe, graph=True) is pipe and "graphs" in str(pipe.report)
    for _ in range(2):
        assert torch.equal(family.call(pipe, 4), expected)
    seen = reports(pipe)
    assert seen and all((r.eager, r.captured) == (1, 1) and r.replayed >= 7 for r in seen), seen
    restore(pipe)
    assert not reports(pipe)


def run(pipe: Any, steps: int = 4, **options: Any) -> Tensor:
    return pipe(
        prompt_embeds=text(1, 7, TEXT), negative_prompt_embeds=text(1, 7, TEXT, seed=2), num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0), output_type="latent", **options,
    ).images  # fmt: skip


@pytest.fixture
def both() -> tuple[Any, Any]:
    """Two accelerated pipelines, the second one's UNet replayed."""
    plain, ours = accelerate(stable_diffusion()), accelerate(stable_diffusion(), graph=True)
    assert torch.equal(run(ours), run(plain))
    assert reports(ours)[0].captured == 1
    return plain, ours


def unguided(pipe: Any, step: int, time: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turns guidance off half-way: the batch is half as long from there on."""
    if step == 1:
        pipe._guidance_scale = 0.0
        return {"prompt_embeds": given["prompt_embeds"][-1:], "latents": given["latents"] * 0.5}
    return {}


def interrupt(pipe: Any, step: int, time: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    pipe._interrupt = step == 2
    return {}


@pytest.mark.parametrize("callback", [unguided, interrupt])
def test_callbacks(both: tuple[Any, Any], callback: Any) -> None:
    options = {
        "callback_on_step_end": callback,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    for steps in (6, 8):
        expected, result = (run(pipe, steps, **options) for pipe in both)
        assert torch.equal(result, expected)
    assert torch.equal(run(both[1]), run(both[0]))


def test_adapters_come_change_and_go(both: tuple[Any, Any]) -> None:
    peft = pytest.importorskip("peft")
    names = ["to_q", "to_v"]
    pictures = [run(both[1], 2)]

    def alike(change: Any) -> None:
        for pipe in both:
            torch.manual_seed(7)
            change(pipe)
        results = [run(pipe, 2) for pipe in both]
        assert torch.equal(*results)
        pictures.append(results[0])

    for name, rank in (("one", 2), ("two", 3)):
        config = peft.LoraConfig(r=rank, target_modules=names, init_lora_weights=False)
        alike(lambda pipe, config=config, name=name: pipe.unet.add_adapter(config, name))
    alike(lambda pipe: pipe.unet.set_adapters(["one", "two"], [0.5, 2.0]))
    alike(lambda pipe: pipe.unet.set_adapters(["one"], [0.5]))
    alike(lambda pipe: pipe.unet.fuse_lora(0.7))
    alike(lambda pipe: pipe.unet.unfuse_lora())
    alike(lambda pipe: pipe.unet.disable_adapters())
    torch.testing.assert_close(pictures[-1], pictures[0])
    alike(lambda pipe: pipe.unet.delete_adapters(["one", "two"]))
    different = {tuple(picture.flatten()[:8].tolist()) for picture in pictures}
    assert len(different) >= 6
    assert reports(both[1])[0].captured >= 7


def test_processors_freeu_and_layers_in_other_dtypes(both: tuple[Any, Any]) -> None:
    for change in (
        lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()),
        lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
        lambda pipe: pipe.disable_freeu(),
        lambda pipe: pipe.unet.bfloat16().float(),
        lambda pipe: pipe.unet.set_default_attn_processor(),
    ):
        for pipe in both:
            change(pipe)
        assert torch.equal(run(both[1], 2), run(both[0], 2))
        assert reports(both[1])[0].reason is None


def test_layerwise_casting_steps_aside(both: tuple[Any, Any]) -> None:
    graphed = both[1].unet.forward
    for pipe in both:
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert torch.equal(run(both[1]), run(both[0]))
    assert "forward replaced" in graphed.report.reason


def outputs(model: Any) -> list[Tensor]:
    with torch.no_grad():
        return [model(text(2, 4, 16, 16), torch.tensor(3), text(2, 7, TEXT)).sample for _ in range(4)]


def test_offloading_steps_aside_and_restore_reaches_under_its_hooks() -> None:
    hooks = pytest.importorskip("accelerate")
    model = accelerate(unet().eval(), norms=False, graph=True)
    expected, graphed = outputs(model), model.forward
    assert all(torch.equal(output, expected[0]) for output in expected) and graphed.report.replayed == 3
    hooks.cpu_offload(model, torch.device("cpu"), offload_buffers=True)
    assert torch.equal(outputs(model)[-1], expected[0]) and graphed.report.reason is not None
    calls = graphed.report.eager
    restore(model)
    assert torch.equal(outputs(model)[-1], expected[0]) and graphed.report.eager == calls


def test_copies_pickles_and_files(both: tuple[Any, Any], tmp_path: Path) -> None:
    plain, ours = both
    expected = run(plain)
    for pipe in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert pipe.unet.forward.module is pipe.unet
        pipe.unet.conv_in.weight.data.mul_(2)
        for _ in range(2):
            assert not torch.equal(run(pipe), expected)
        assert reports(pipe)[0].captured == 1
    ours.unet.save_pretrained(tmp_path)
    assert not any("forward" in key for key in ours.unet.state_dict())
    assert "forward" not in vars(type(ours.unet).from_pretrained(tmp_path))
