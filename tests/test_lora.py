"""Stable Diffusion's adapters against peft and diffusers, on a tiny random pipeline."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft.tuners.lora import LoraLayer
from PIL import Image
from torch import nn

from callkit import checkpoints, evaluation, lora, lora_config, records, tiny_sd, training
from callkit.config import make_config

RANKS = dict(image_size=16, general_rank=6, expert_rank=2)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A folder with a pipeline and 12 + 6 + 3 pictures of three styles."""
    folder = tmp_path_factory.mktemp("studio")
    tiny_sd.pipeline().save_pretrained(folder / "tiny")
    rng = np.random.default_rng(0)
    for c, (style, n) in enumerate((("flat", 12), ("old_masters", 6), ("striped", 3))):
        (folder / "art" / style).mkdir(parents=True)
        for i in range(n):
            pixels = np.clip(rng.normal(50 + 70 * c, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "art" / style / f"{i}.png")
    return folder


def settings(studio, method="call", **overrides):
    words = (f"imagefolder:{studio / 'art'}", None, method, "smoke")
    return lora.make_config(*words, **RANKS | {"model": str(studio / "tiny")} | overrides)


def run(studio, folder, method="call", minutes=None, **overrides):
    tune = settings(studio, method, **overrides)
    return list(lora.train(tune, folder, minutes=minutes, data_root=studio / "data"))


@pytest.fixture(scope="module")
def trained(studio, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    run(studio, folder, lr=3e-2)
    return folder / checkpoints.CHECKPOINT


@pytest.fixture
def model(studio):
    """With adapters that are not zero, in eval mode."""
    _, model = lora.build(settings(studio), ["flat", "old_masters", "striped"])
    torch.manual_seed(3)
    for p in lora.adapter_parameters(model).values():
        p.data.normal_(0, 0.2)
    return model.eval()


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return torch.randn(4, 4, 8, 8), torch.tensor([0, 10, 500, 999]), torch.tensor([0, 1, 2, 3])


@torch.no_grad()
def both(model, inputs):
    return model.forward_both(*inputs)


def test_matrices_are_multiplied_in_tf32_from_python_too(studio, matmul):
    matmul.allow_tf32 = False
    lora.build(settings(studio), ["flat"])
    assert matmul.allow_tf32


# Adapters


@pytest.mark.parametrize("where", lora_config.WHERE)
def test_each_chosen_weight_has_two_adapters_of_their_ranks(studio, where):
    unet = tiny_sd.pipeline().unet
    kinds = nn.Linear | nn.Conv2d
    every = {name for name, m in unet.named_modules() if isinstance(m, kinds)}
    attention = {name for name in every if ".attn1." in name or ".attn2." in name}
    lora.add_adapters(unet, settings(studio, where=where))
    layers = {name: m for name, m in unet.named_modules() if isinstance(m, LoraLayer)}
    assert layers.keys() == (attention if where == "attention" else every) and len(attention) == 32
    for m in layers.values():
        assert m.r == {"general": 6, "expert": 2} and m.scaling == {"general": 1.0, "expert": 1.0}
        assert m.lora_A["general"].weight.shape[0] == 6 and m.lora_B["expert"].weight.shape[1] == 2
        assert not m.lora_B["general"].weight.any() and not m.lora_B["expert"].weight.any()


def test_merged_equals_both_adapters_active_and_the_sum_of_equation_3(model, inputs):
    eps, general = both(model, inputs)
    assert (eps - general).abs().max() > 0.01
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    layer = model.unet.get_submodule(name)
    parts = [layer.lora_B[a].weight @ layer.lora_A[a].weight for a in ("general", "expert")]
    expected = layer.base_layer.weight + parts[0] + parts[1]
    lora._merge(model.unet, "theta", lora.make_config(method="call"))
    assert not any(isinstance(m, LoraLayer) for m in model.unet.modules())
    torch.testing.assert_close(model.unet.get_submodule(name).weight, expected)
    torch.testing.assert_close(model(*inputs), eps, rtol=0, atol=1e-4)


def test_theta_g_is_the_pipeline_with_the_general_adapter_only(model, inputs):
    _, general = both(model, inputs)
    model.unet.set_adapters(["general"])
    torch.testing.assert_close(model(*inputs), general, rtol=0, atol=1e-5)
    model.unet.delete_adapters("expert")
    torch.testing.assert_close(model(*inputs), general, rtol=0, atol=1e-5)
    lora._merge(model.unet, "theta_g", lora.make_config(method="call"))
    torch.testing.assert_close(model(*inputs), general, rtol=0, atol=1e-4)


def test_the_dial_is_linear_in_the_weights(model, inputs):
    """Half the expert is the expert with half its B."""
    eps, _ = both(model, inputs)
    with lora.expert_scale(model, 0.5), torch.no_grad():
        half = model(*inputs)
    torch.testing.assert_close(both(model, inputs)[0], eps, rtol=0, atol=0)
    for name, p in lora.adapter_parameters(model).items():
        if "lora_B.expert" in name:
            p.data /= 2
    torch.testing.assert_close(half, both(model, inputs)[0], rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError), lora.expert_scale(model, 0.0):
        raise RuntimeError
    torch.testing.assert_close(half, both(model, inputs)[0], rtol=0, atol=1e-5)


def test_both_passes_see_the_same_dropout_masks(studio, inputs):
    _, model = lora.build(settings(studio, dropout=0.5), ["flat", "old_masters", "striped"])
    for name, p in lora.adapter_parameters(model).items():
        if "general" in name:
            p.data.normal_(0, 0.2)
    eps, general = both(model.train(), inputs)  # the expert's B is zero
    assert torch.equal(eps, general)
    assert not torch.allclose(both(model, inputs)[0], eps, atol=1e-3), "there is dropout"


def test_only_adapters_have_gradients(model, inputs):
    eps, general = model.train().forward_both(*inputs)
    (eps.pow(2).mean() + (eps - general).pow(2).mean()).backward()
    adapters = set(lora.adapter_parameters(model))
    for name, p in model.unet.named_parameters():
        assert (p.grad is not None and p.grad.abs().max() > 0) == (name in adapters), name
    assert all(p.grad is None for p in model.vae.parameters())


def test_activations_computed_again_give_the_same_gradients(model, inputs):
    """Within rounding: the parts sum in another order."""

    def gradients():
        model.zero_grad()
        eps, general = model.forward_both(*inputs)
        (eps.pow(2).mean() + (eps - general).pow(2).mean()).backward()
        return {name: p.grad for name, p in lora.adapter_parameters(model).items()}

    whole = gradients()
    model.at_once = 3
    parts = gradients()
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-3, atol=1e-5, msg=name)


def test_activations_are_computed_again_at_the_scale_and_with_the_masks_of_the_first_time(studio, inputs):
    _, model = lora.build(settings(studio, dropout=0.5, at_once=2), ["flat", "old_masters", "striped"])
    parameters = lora.adapter_parameters(model.train())
    for name, p in parameters.items():
        if "expert" not in name or "lora_A" in name:
            p.data.normal_(0, 0.2)
    eps, general = model.forward_both(*inputs)
    assert torch.equal(eps, general) and not torch.equal(model(*inputs), eps)
    # With equal masks, the gradient of the difference is the expert's alone.
    (eps - general).sum().backward()
    for name, p in parameters.items():
        if "general" in name:
            torch.testing.assert_close(p.grad, torch.zeros_like(p), rtol=0, atol=1e-4, msg=name)
    assert max(p.grad.abs().max() for name, p in parameters.items() if "lora_B.expert" in name) > 0.1


# Classes, latents, noise


def test_a_class_is_its_prompt_and_null_the_empty_one(studio, model, inputs):
    pipe = StableDiffusionPipeline.from_pretrained(studio / "tiny")
    expected, empty = pipe.encode_prompt("a old masters painting", "cpu", 1, True)
    assert torch.equal(model.prompts[1], expected[0]) and torch.equal(model.prompts[3], empty[0])
    assert model.num_classes == 3
    with torch.no_grad():
        one = model.unet(inputs[0][1:2], 10, encoder_hidden_states=expected).sample
        torch.testing.assert_close(model(*inputs)[1:2], one, rtol=1e-4, atol=1e-5)


def test_the_schedule_is_the_pipelines(model):
    expected = tiny_sd.pipeline().scheduler.alphas_cumprod
    torch.testing.assert_close(model.schedule.alpha_bar.float(), expected, rtol=1e-4, atol=1e-6)


def test_latents_are_the_autoencoders_and_made_once(model, tmp_path, monkeypatch):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8)
    found = lora.cached_latents(model, images, tmp_path)
    posterior = model.vae.encode(images[17:] / 127.5 - 1).latent_dist
    scaling = model.vae.config.scaling_factor
    torch.testing.assert_close(found[17:, :4], scaling * posterior.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[17:, 4:], scaling * posterior.std, rtol=1e-4, atol=1e-4)
    decoded = model.vae.decode(posterior.mean).sample
    assert (model.decode(found[17:, :4]) / 127.5 - 1 - decoded.clamp(-1, 1)).abs().max() < 0.01
    monkeypatch.setattr(model, "encode", lambda *a, **k: pytest.fail("encoded twice"))
    assert torch.equal(lora.cached_latents(model, images, tmp_path), found)
    monkeypatch.setattr(model, "encode", lambda *a, **k: torch.zeros(1))
    assert not torch.equal(lora.cached_latents(model, 255 - images, tmp_path), found), "other images, other latents"


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_samples_equal_the_merged_pipelines(studio, trained, tmp_path, guidance):
    """Ours against diffusers' own loop with the pipeline that `export` writes."""
    lora.export(trained, tmp_path)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "merged")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=True, steps_offset=0)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    prompts = ["a flat painting", "a striped painting"]
    expected = pipe(prompts, num_inference_steps=5, guidance_scale=guidance, latents=noise, output_type="np").images
    model, _ = lora.load_model(trained)
    (ours,) = model.sample_batches(torch.tensor([0, 2]), 16, 5, 5, guidance)
    assert expected.std() > 0.05
    assert (ours.permute(0, 2, 3, 1) / 255 - torch.from_numpy(expected)).abs().max() < 0.01


# Training


def test_a_batch_has_latents_from_their_posterior_and_some_prompts_dropped(studio, monkeypatch):
    def cached(model, images, cache):
        return torch.cat([torch.full((len(images), 4, 8, 8), v) for v in (3.0, 2.0)], 1)  # mean, standard deviation

    monkeypatch.setattr(lora, "cached_latents", cached)
    tune = settings(studio, batch_size=500, label_drop=0.25, resample=1.0, lr=0.02, weight_decay=0.5, lam=0.3)
    pieces = lora._pieces(tune, studio / "run", torch.device("cpu"), studio / "data", False)
    batch, weights = pieces.draw(0, torch.Generator().manual_seed(0))
    assert scipy.stats.kstest(((batch.x0 - 3) / 2).flatten()[::7].numpy(), "norm").pvalue > 1e-3
    assert (batch.condition == 3).float().mean().item() == pytest.approx(0.25, abs=0.07)
    assert scipy.stats.chisquare(batch.y.bincount().numpy()).pvalue > 1e-3, "balanced"
    assert weights.sum().item() == pytest.approx(1)
    assert pieces.allocation.lam == 0.3
    assert [pieces.optimiser.defaults[k] for k in ("lr", "weight_decay")] == [0.02, 0.5]


@pytest.mark.parametrize("method", ["ddpm", "cbdm", "oc", "call", "cbdm-call", "oc-call"])
def test_every_base_trains_with_and_without_call(studio, tmp_path, method):
    before = tiny_sd.pipeline().unet.state_dict()
    (record,) = run(studio, tmp_path, method, steps=2, batch_size=8)
    tensors, about = checkpoints.load_checkpoint(tmp_path / checkpoints.CHECKPOINT)
    names = {name.split(".")[-2] for name in tensors if name.startswith("model.")}
    with_call = method.endswith("call")
    assert names == ({"general", "expert"} if with_call else {"general"})
    assert 0 < record.base_loss < 10 and (record.allocation_loss != 0) == with_call
    assert all(tensors[name].any() for name in tensors if name.startswith("model.") and "lora_B" in name)
    assert about["class_names"] == ["flat", "old_masters", "striped"] and about["counts"] == [12, 6, 3]
    _, model, _ = lora._load(tmp_path / checkpoints.CHECKPOINT)
    after = {k.replace(".base_layer", ""): v for k, v in model.unet.state_dict().items() if "lora_" not in k}
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)


def test_the_frozen_weights_do_not_change_during_training(studio, tmp_path, monkeypatch):
    models = []
    build = lora.build
    monkeypatch.setattr(lora, "build", lambda *a: models.append(build(*a)[1]) or (None, models[-1]))
    run(studio, tmp_path, steps=2, lr=0.1)
    (model,) = models
    before = tiny_sd.pipeline()
    frozen = [(p, q) for p, q in zip(model.vae.parameters(), before.vae.parameters(), strict=True)]
    own = {k.replace(".base_layer", ""): p for k, p in model.unet.named_parameters() if "lora_" not in k}
    frozen += [(own[k], q) for k, q in before.unet.named_parameters()]
    for p, q in frozen:
        assert torch.equal(p, q) and p.grad is None and not p.requires_grad


def test_a_resumed_run_equals_an_uninterrupted_one(studio, tmp_path):
    whole = run(studio, tmp_path / "whole", "oc-call")
    parts = run(studio, tmp_path / "parts", "oc-call", minutes=0)
    assert checkpoints.steps_done(tmp_path / "parts") == 1
    parts += run(studio, tmp_path / "parts", "oc-call")
    one, two = (checkpoints.load_checkpoint(tmp_path / p / checkpoints.CHECKPOINT)[0] for p in ("whole", "parts"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    words = [(r.step, r.base_loss, r.allocation_loss, r.grad_norm) for r in whole]
    assert words == [(r.step, r.base_loss, r.allocation_loss, r.grad_norm) for r in parts]
    assert run(studio, tmp_path / "parts", "oc-call") == []
    with pytest.raises(ValueError, match=r"belongs to a run with other settings \(lam: 1.0 there, 0.5 now"):
        run(studio, tmp_path / "parts", "oc-call", lam=0.5)


def test_methods_with_one_seed_see_the_same_images_and_noise(studio, tmp_path):
    """Before the first update the adapters add nothing, so the first base losses are equal."""
    first = [run(studio, tmp_path / m, m, steps=1, log_every=1)[0].base_loss for m in ("ddpm", "call")]
    assert first[0] == first[1]


def test_a_run_that_explodes_stops_and_leaves_a_record(studio, tmp_path):
    with pytest.raises(checkpoints.TrainingError, match="beyond ±10; stopped"):
        run(studio, tmp_path, steps=50, lr=1e3)
    record = records.read_record(evaluation.record_divergence(tmp_path, kind=lora.TuneConfig))
    assert record["diverged"]["step"] <= 6 and record["diverged"]["term"] in ("base loss", "allocation loss")
    assert record["config"]["expert_rank"] == 2


# Files


FRESH = """
import sys, torch
from diffusers import StableDiffusionPipeline
tiny, folder, merged = sys.argv[1:]
x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 700])
out = {}
def eps(name, pipe):
    h, _ = pipe.encode_prompt(["a flat painting", "a striped painting"], "cpu", 1, False)
    with torch.no_grad():
        out[name] = pipe.unet(x, t, encoder_hidden_states=h).sample
pipe = StableDiffusionPipeline.from_pretrained(tiny)
pipe.load_lora_weights(folder, weight_name="general.safetensors", adapter_name="general")
eps("theta_g", pipe)
pipe.load_lora_weights(folder, weight_name="expert.safetensors", adapter_name="expert")
pipe.set_adapters(["general", "expert"])
eps("theta", pipe)
pipe.set_adapters(["general", "expert"], [1.0, 0.3])
eps("dial", pipe)
pipe.set_adapters(["general", "expert"])
pipe.fuse_lora(adapter_names=["general", "expert"])
pipe.unload_lora_weights()
eps("fused", pipe)
eps("merged", StableDiffusionPipeline.from_pretrained(merged))
assert "callkit" not in sys.modules
torch.save(out, folder + "/out.pt")
"""


def test_what_is_exported_loads_in_a_fresh_process_with_diffusers_alone(studio, trained, tmp_path):
    lora.export(trained, tmp_path)
    arguments = [str(studio / "tiny"), str(tmp_path), str(tmp_path / "merged")]
    subprocess.run([sys.executable, "-c", FRESH, *arguments], check=True, cwd=tmp_path)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    model, _ = lora.load_model(trained, "reserved")
    inputs = (x, torch.tensor([10, 700]), torch.tensor([0, 2]))
    eps, general = both(model, inputs)
    with lora.expert_scale(model, 0.3), torch.no_grad():
        dial = model(*inputs)
    assert min((eps - general).abs().max(), (eps - dial).abs().max()) > 1e-3
    expected = {"theta": eps, "theta_g": general, "dial": dial, "fused": eps, "merged": eps}
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-4, msg=name)


@torch.no_grad()
def test_load_model_merges_what_it_is_asked_for(trained, inputs):
    eps, general = both(lora.load_model(trained, "reserved")[0], inputs)
    for weights, expected in (("theta", eps), ("theta_g", general)):
        model, tune = lora.load_model(trained, weights)
        assert not lora.adapter_parameters(model) and tune.expert_rank == 2
        torch.testing.assert_close(model(*inputs), expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="unknown weights 'ema'; known: theta, theta_g, reserved"):
        lora.load_model(trained, "ema")


def test_train_sample_evaluate_export_from_a_terminal(studio, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    overrides = [f"{k}={v}" for k, v in RANKS.items()] + [
        f"model={studio / 'tiny'}",
        "prompt=a picture in {class} style",
    ]
    data = ["--dataset", f"imagefolder:{studio / 'art'}", "--imbalance-ratio", "natural"]
    lora.main(["train", *data, "--method", "oc-call", "--profile", "smoke", "--device", "cpu", "--set", *overrides])
    (folder,) = tmp_path.glob("runs/stable-diffusion/imagefolder-art-irnatural/oc-call-smoke/seed0-model=tiny-*")
    lora.main(["sample", str(folder), "--per-class", "2", "--device", "cpu"])
    assert Image.open("samples.png").size == (2 * 17 + 1, 3 * 17 + 1)
    lora.main(["evaluate", str(folder), "--device", "cpu", "--guidance-scale", "2"])
    written = [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]
    assert [r["run"]["weights"] for r in written] == ["theta", "theta_g"]
    for r in written:
        assert r["run"]["overrides"].keys() == {"model", "prompt", *RANKS}
        assert r["sampling"]["clip_x0"] is False and r["evaluation"]["generated_images"] == 99
        assert r["metrics"]["few"]["fid"] > 0 and r["run"]["class_counts"] == [12, 6, 3]
        assert {"diffusers", "peft"} <= r["training"]["provenance"]["libraries"].keys()
    assert "| oc-call, model=" in capsys.readouterr().out
    lora.main(["export", str(folder), "out"])
    assert {p.name for p in Path("out").iterdir()} == {"general.safetensors", "expert.safetensors", "merged"}


def test_help_names_the_folder_that_a_run_goes_to(capsys):
    with pytest.raises(SystemExit):
        lora.main(["train", "--help"])
    said = "".join(capsys.readouterr().out.split())
    assert "default:runs/stable-diffusion/<dataset>-ir<IR>/" in said and "torch.compiletheU-Net" in said


# Settings and errors


def test_the_papers_runs():
    tune = lora.make_config("artbench10", 100, "oc-call", "paper")
    assert (tune.steps, lora.make_config("artbench10", 50, "oc-call", "paper").steps) == (19_385, 21_869)
    assert (tune.model, tune.prompt) == ("lambdalabs/miniSD-diffusers", "a {class} painting")
    assert (tune.general_rank, tune.expert_rank, tune.image_size, tune.batch_size) == (128, 8, 256, 64)
    assert (tune.lr, tune.weight_decay, tune.dropout, tune.base) == (3e-4, 1e-6, 0.1, "oc")
    assert tune.overrides() == {}
    rows = [r for r in records.paper_table(3) if r["method"] == tune.method and r["imbalance_ratio"] == 100]
    assert len(rows) == 4 and all(r["overrides"] == tune.overrides() for r in rows)


def test_on_other_data_the_model_is_always_named():
    tune = lora.make_config("celeba-hq", 100, "call", "gpu")
    assert tune.overrides() == {"model": lora_config.MODEL}
    assert lora.make_config(**tune.words(), **tune.overrides()) == tune
    assert lora.TuneConfig.from_dict(json.loads(json.dumps(tune.to_dict()))) == tune


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"expert_rank": 128}, "expert_rank must be at least 1 and below general_rank, got 128"),
        ({"general_rank": 1.5}, "general_rank must be an integer, got 1.5"),
        ({"where": "up"}, "where must be one of attention, all, got up"),
        ({"prompt": "a painting"}, r"prompt must be a text with \{class\} in it"),
        ({"channels": 8}, "unknown setting 'channels'"),
        ({"method": "oc", "lam": 2.0}, "lam has no effect without CALL, which method oc does not have"),
        ({"method": "ddpm", "allocation": "released"}, "allocation has no effect without CALL, which method ddpm"),
        ({"method": "ada"}, "unknown method 'ada'"),
        ({"dataset": "imagefolder"}, "unknown dataset 'imagefolder'; known: .*, imagefolder:PATH"),
        ({"held_out": 0.1}, "held_out is for a data set's own counts .*; at 100 the images left out are held out al"),
        ({"image_size": 2}, "image_size of artbench10 can be 4 to 1024; got 2"),
        ({"dataset": "digits"}, "unknown dataset 'digits'; known: artbench10, celeba-hq, imagefolder"),
    ],
)
def test_settings_are_checked(overrides, message):
    with pytest.raises(ValueError, match=message):
        lora.make_config(**overrides)


def test_a_model_that_is_not_there(studio, tmp_path):
    said = r"no Stable Diffusion pipeline 'no/such'.*`hf download no/such --local-dir such`.*The reason: "
    with pytest.raises(OSError, match=said):
        run(studio, tmp_path, model="no/such")
    with pytest.raises(OSError, match=r"there is no folder .*/no/such, and that is no name on the Hugging Face hub"):
        run(studio, tmp_path, model=str(tmp_path / "no/such"))


def test_a_folder_that_cannot_be_read_is_not_taken_for_a_missing_model(tmp_path):
    tiny_sd.pipeline().save_pretrained(tmp_path)
    weights = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(
        OSError, match=r"the folder .* cannot be read as a Stable Diffusion pipeline: .*/unet/diffusion"
    ):
        lora.load_pipeline(str(tmp_path))


def test_what_else_diffusers_says_of_a_model_is_passed_on(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("upgrade torch")

    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", refuse)
    with pytest.raises(ValueError, match=r"^upgrade torch$"):
        lora.load_pipeline("there/is-one")


def test_a_model_that_predicts_velocity(tmp_path):
    pipe = tiny_sd.pipeline()
    pipe.register_modules(scheduler=DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction"))
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="predicts v_prediction; only epsilon is supported"):
        lora.load_pipeline(str(tmp_path))


def test_an_image_size_that_does_not_fit(studio, tmp_path):
    with pytest.raises(ValueError, match="image_size must be a multiple of 4 for this model, got 18"):
        run(studio, tmp_path, image_size=18)


def test_a_checkpoint_of_the_other_kind(trained):
    released = next(records.results_folder().glob("*.safetensors"))
    with pytest.raises(ValueError, match="is of a pixel model: use python -m callkit"):
        lora.load_model(released)
    with pytest.raises(ValueError, match=r"is of Stable Diffusion: use python -m callkit\.lora"):
        checkpoints.load_model(trained)
    with pytest.raises(ValueError, match=r"belongs to another kind of run .*; use another run folder"):
        next(training.train(make_config(profile="smoke"), trained.parent))


def test_without_call_there_is_only_theta(studio, tmp_path):
    run(studio, tmp_path, "ddpm", steps=1)
    for weights in ("theta_g", "reserved"):
        with pytest.raises(ValueError, match=f"was trained without CALL: it has no '{weights}'"):
            lora.load_model(tmp_path / checkpoints.CHECKPOINT, weights)


WITHOUT = """
import importlib, pkgutil, sys
for name in ("diffusers", "peft", "transformers", "accelerate"):
    sys.modules[name] = None
import callkit
for module in pkgutil.iter_modules(callkit.__path__):
    if module.name not in ("lora", "tiny_sd"):
        importlib.import_module(f"callkit.{module.name}")
from callkit import config, training
assert len(list(training.train(config.make_config(profile="smoke", steps=5), sys.argv[1]))) == 1
for name in ("lora", "tiny_sd"):
    try:
        importlib.import_module(f"callkit.{name}")
    except ImportError as error:
        print(error)
"""


def test_without_the_extra_everything_else_works(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path)], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pip install 'callkit[lora]'") == 2


def test_a_checkpoint_that_does_not_fit_is_refused(trained, tmp_path):
    tensors, about = checkpoints.load_checkpoint(trained)
    name = next(k for k in tensors if k.startswith("ema."))
    damaged = {
        "one less": {k: v for k, v in tensors.items() if k != name},
        "cut": tensors | {name: tensors[name][:1, :1]},
    }
    for kind, those in damaged.items():
        checkpoints.save_checkpoint(tmp_path / kind, those, about)
        with pytest.raises(ValueError, match="does not fit the network that its config describes"):
            lora.load_model(tmp_path / kind)


def test_adapters_of_other_weights_are_refused(studio, tmp_path):
    shutil.copytree(studio / "tiny", tmp_path / "base")
    words, folder = dict(model=str(tmp_path / "base"), steps=4), tmp_path / "run"
    run(studio, folder, minutes=0, **words)
    path = folder / checkpoints.CHECKPOINT
    tensors, about = checkpoints.load_checkpoint(path)
    assert lora.load_model(path)[0].base_sha256 == about["base_sha256"] and about["step"] < 4

    other = tiny_sd.pipeline()
    other.unet.conv_out.bias.data += 1e-6
    other.save_pretrained(tmp_path / "base")
    refused = pytest.raises(ValueError, match=rf"other weights of .*/base than .* {about['base_sha256'][:8]} then")
    for use in (lora.load_model, lambda path: lora.export(path, tmp_path), lambda path: run(studio, folder, **words)):
        with refused:
            use(path)
    checkpoints.save_checkpoint(path, tensors, {k: v for k, v in about.items() if k != "base_sha256"})
    lora.load_model(path)  # of before there was a hash


def test_settings_are_checked_before_steps_are_counted():
    for size in (0, "x"):
        with pytest.raises(ValueError, match="batch_size must be"):
            lora.make_config(profile="paper", batch_size=size)


def test_a_scale_that_does_not_change_costs_nothing(model, inputs, monkeypatch):
    calls = []
    monkeypatch.setattr(model.unet, "set_adapters", lambda *a: calls.append(a))
    with lora.expert_scale(model, 1.0):
        pass
    assert not calls
    with lora.expert_scale(model, 0.5), lora.expert_scale(model, 0.5):
        assert model.scale == 0.5
    assert [weights for _, weights in calls] == [[1.0, 0.5], [1.0, 1.0]]
