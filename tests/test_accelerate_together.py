"""accelerate beside what users do to pipelines: adapters, processors, compilation, offloading, training, saving."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import diffusers
from diffusers.models.attention_processor import AttnProcessor

from accelerated import difference, small_ones_too  # noqa: F401 - a fixture
from fastdiff.patching import accelerate, blocks, fusing, restore
from tiny_parts import TEXT, text, unet
from tiny_pipelines import families, quiet, stable_diffusion

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
CALL = families()["SD 1.5"].call
ALIKE = 1e-5


def both() -> tuple[Any, Any]:
    """Two equal pipelines, the second one accelerated."""
    return stable_diffusion(), accelerate(stable_diffusion())


def lora(model: nn.Module) -> dict[str, Tensor]:
    """Random adapters of rank 2 for a convolution, a time embedding and an attention projection of each kind."""
    generator = torch.Generator().manual_seed(9)
    state: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if name.endswith(("conv1", "time_emb_proj", "conv_shortcut", "attn1.to_q")):
            rest = module.weight.shape[2:]
            shapes = {
                "A": (2, module.weight.shape[1], *rest),
                "B": (module.weight.shape[0], 2, *(1 for _ in rest)),
            }
            for part, shape in shapes.items():
                state[f"unet.{name}.lora_{part}.weight"] = torch.randn(shape, generator=generator) * 0.2
    return state


@pytest.mark.parametrize("before", [True, False], ids=["loaded before", "loaded after"])
def test_lora_is_loaded_used_fused_and_unloaded(before: bool) -> None:
    pytest.importorskip("peft")
    plain, ours = stable_diffusion(), stable_diffusion()
    without, adapter = CALL(plain, 2), lora(plain.unet)
    if not before:
        accelerate(ours)
    for pipe in (plain, ours):
        pipe.load_lora_weights(dict(adapter), adapter_name="one")
    if before:
        accelerate(ours)
    changed = CALL(plain, 2)
    assert difference(changed, without) > 1e-3
    assert difference(CALL(ours, 2), changed) <= ALIKE
    for pipe in (plain, ours):
        pipe.fuse_lora()
    assert difference(CALL(ours, 2), CALL(plain, 2)) <= ALIKE
    ours.unfuse_lora()
    ours.unload_lora_weights()
    assert difference(CALL(ours, 2), without) <= ALIKE
    restore(ours)
    assert not any(type(m).__module__.startswith("fastdiff") for m in ours.unet.modules())


def test_attention_processors() -> None:
    plain, ours = both()
    for pipe in (plain, ours):
        pipe.unet.set_attn_processor(AttnProcessor())
        pipe.vae.set_attn_processor(AttnProcessor())
    assert difference(CALL(ours, 2), CALL(plain, 2)) <= ALIKE


@pytest.mark.parametrize("way", ["enable_slicing", "enable_tiling"])
def test_slicing_and_tiling(way: str) -> None:
    plain, ours = both()
    for pipe in (plain, ours):
        pipe.enable_attention_slicing()
        getattr(pipe.vae, way)()
    assert difference(CALL(ours, 2), CALL(plain, 2)) <= ALIKE


def test_freeu() -> None:
    plain, ours = both()
    for pipe in (plain, ours):
        pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert difference(CALL(ours, 2), CALL(plain, 2)) <= ALIKE


def test_callbacks_may_change_the_latents() -> None:
    def halve(pipe: Any, step: int, time: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": given["latents"] * (0.5 if step == 1 else 1)}

    results = [
        pipe(
            prompt_embeds=text(1, 7, TEXT),
            negative_prompt_embeds=text(1, 7, TEXT, seed=2),
            num_inference_steps=4,
            generator=torch.Generator().manual_seed(0),
            callback_on_step_end=halve,
            output_type="latent",
        ).images
        for pipe in both()
    ]
    assert difference(results[1], results[0]) <= ALIKE


def denoised(model: Any) -> Tensor:
    """A model's output."""
    with torch.no_grad():
        output: Tensor = model(text(2, 4, 16, 16), 3, text(2, 7, TEXT)).sample
    return output


@pytest.mark.parametrize("before", [True, False], ids=["hooks before", "hooks after"])
def test_sequential_offloading(before: bool) -> None:
    """What enable_sequential_cpu_offload does, with the CPU as the device that computes."""
    hooks = pytest.importorskip("accelerate")
    expected, model = denoised(unet().eval()), unet().eval()
    if not before:
        accelerate(model)
    hooks.cpu_offload(model, torch.device("cpu"), offload_buffers=True)
    if before:
        accelerate(model, memory_format="channels_last")
        assert "hooks" in str(model.report)
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert norms and all(norm.weight.is_meta for norm in norms)
    assert difference(denoised(model), expected) <= ALIKE


def test_group_offloading() -> None:
    expected, model = denoised(unet().eval()), accelerate(unet().eval())
    try:
        model.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    except AttributeError:
        pytest.skip("this diffusers offloads groups only where there is an accelerator")
    assert difference(denoised(model), expected) <= ALIKE


def test_layerwise_casting() -> None:
    plain, ours = both()
    for pipe in (plain, ours):
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert difference(CALL(ours, 2), CALL(plain, 2)) <= ALIKE


def test_to_another_dtype_and_back() -> None:
    pipe = accelerate(stable_diffusion())
    before = CALL(pipe, 2)
    assert CALL(pipe.to(torch.bfloat16).to(torch.float32), 2).isfinite().all()
    assert before.shape == CALL(pipe, 2).shape


def test_training_takes_the_same_step() -> None:
    models = [unet().train(), accelerate(unet()).train()]
    x, words = text(2, 4, 16, 16), text(2, 7, TEXT)
    for model in models:
        model(x, 3, words).sample.pow(2).mean().backward()
    gradients = [dict(model.named_parameters()) for model in models]
    for name, parameter in gradients[0].items():
        largest = parameter.grad.abs().max().clamp(min=1e-4)
        off = (gradients[1][name].grad - parameter.grad).abs().max() / largest
        assert off <= 2e-4, (name, off)


def test_gradient_checkpointing() -> None:
    model = accelerate(unet()).train()
    x, words = text(1, 4, 16, 16), text(1, 7, TEXT)
    model(x, 3, words).sample.sum().backward()
    first = model.conv_in.weight.grad.clone()
    model.zero_grad()
    model.enable_gradient_checkpointing()
    model(x, 3, words).sample.sum().backward()
    assert difference(model.conv_in.weight.grad, first) <= 1e-4


def test_dropout_is_where_it_was() -> None:
    block = diffusers.models.resnet.ResnetBlock2D(in_channels=16, groups=4, temb_channels=None, dropout=0.5)
    x = text(1, 16, 8, 8)
    results = []
    for model in (block.train(), accelerate(copy.deepcopy(block))):
        torch.manual_seed(3)
        results.append(model(x, None))
    assert difference(results[1], results[0]) <= ALIKE


def test_compiled_models() -> None:
    """One graph; accelerating a model that is compiled already recompiles it; restore finds the way back."""
    torch._dynamo.reset()
    model = diffusers.models.resnet.ResnetBlock2D(in_channels=16, groups=4, temb_channels=12).eval()
    x, temb = text(1, 16, 8, 8), text(1, 12)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        before = compiled(x, temb)
        accelerate(compiled)
        assert type(model) is blocks.ResnetBlock2D
        assert difference(compiled(x, temb), before) <= ALIKE
        restore(compiled)
        assert torch.equal(compiled(x, temb), before)


def test_a_pipeline_with_a_compiled_unet() -> None:
    torch._dynamo.reset()
    plain, ours = both()
    ours.unet = torch.compile(ours.unet, backend="aot_eager", fullgraph=True)
    assert difference(CALL(ours, 2), CALL(plain, 2)) <= ALIKE


LOAD = """
import sys
sys.path.insert(0, {benchmarks!r})
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "fastdiff":
            raise ImportError("fastdiff is not installed here")
sys.meta_path.insert(0, Refuse())
import diffusers, torch
torch.set_num_threads(1)
from tiny_pipelines import families, quiet
absent = dict.fromkeys(["text_encoder", "tokenizer", "safety_checker", "feature_extractor"])
pipe = quiet(diffusers.DiffusionPipeline.from_pretrained({folder!r}, **absent))
assert type(pipe.scheduler) is diffusers.PNDMScheduler
torch.save(families()["SD 1.5"].call(pipe, 2), {result!r})
"""


def test_what_is_saved_loads_where_fastdiff_is_not_installed(tmp_path: Path) -> None:
    plain, ours = both()
    for pipe in (plain, ours):
        pipe.save_pretrained(tmp_path / ("ours" if pipe is ours else "plain"))
    for file in (tmp_path / "plain").rglob("*.json"):
        theirs, mine = (json.loads((tmp_path / name / file.relative_to(tmp_path / "plain")).read_text())
                        for name in ("plain", "ours"))  # fmt: skip
        assert mine == theirs, file.name
    result = tmp_path / "image.pt"
    script = LOAD.format(benchmarks=str(BENCHMARKS), folder=str(tmp_path / "ours"), result=str(result))
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=300)
    expected = CALL(plain, 2)
    assert torch.equal(torch.load(result, weights_only=True), expected)
    absent = dict.fromkeys(["text_encoder", "tokenizer", "safety_checker", "feature_extractor"])
    again = accelerate(quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours", **absent)))
    assert fusing.fused(again.unet)
    assert difference(CALL(again, 2), expected) <= ALIKE


def test_components_go_into_another_pipeline() -> None:
    plain, ours = both()
    other = diffusers.StableDiffusionImg2ImgPipeline(**ours.components, requires_safety_checker=False)
    assert other.scheduler is ours.scheduler
    assert list(other.config["scheduler"]) == ["diffusers", "PNDMScheduler"]
    assert plain.config["scheduler"] == ours.config["scheduler"]
