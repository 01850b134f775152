"""Stable Diffusion with reserved capacity (Section 4.3, Table 3): W = W^f + B^g A^g + B^e A^e.

The pre-trained W^f stay frozen; a general adapter (theta^g) and an expert adapter of smaller rank (theta^e) are trained
together, by the objectives and the allocation loss of the pixel models, in latent space. Chapter 14 derives it.
The adapters are peft's, so diffusers loads, scales and merges them with its own calls. The commands of `python -m
callkit` are here too: `python -m callkit.lora train | evaluate | sample`, and `export`.
"""

import hashlib
import re
import warnings
from collections.abc import Container, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

try:
    import transformers  # noqa: F401  (the pipeline's text encoder)
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
except ImportError as error:
    raise ImportError("Stable Diffusion needs diffusers, peft and transformers: pip install 'callkit[lora]'") from error

from callkit import checkpoints, data, distributed, files, records, sampling, training
from callkit.allocation import AllocationLoss
from callkit.diffusion import NoiseSchedule
from callkit.lora_config import DATASETS, METHODS, MODEL, PROFILES, TuneConfig, make_config
from callkit.objectives import Batch

GENERAL, EXPERT = "general", "expert"  # the adapters' names
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]  # of the U-Net's self- and cross-attention
RUNS = Path("runs", "stable-diffusion")


def load_pipeline(model: str) -> StableDiffusionPipeline:
    """The pre-trained pipeline without its safety checker, float32, on the CPU.

    OSError that says what to do if it is neither a folder nor to be had, or a folder that cannot be read; ValueError
    unless it predicts noise, and what else diffusers says.
    """
    try:
        pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, requires_safety_checker=False)
    except (OSError, ValueError) as error:
        if Path(model).is_dir():
            raise OSError(f"the folder {model} cannot be read as a Stable Diffusion pipeline: {error}") from error
        if not (name := re.fullmatch(r"(?:[\w.-]+/)?([\w-][\w.-]*)", model)):
            raise OSError(
                f"there is no folder {model}, and that is no name on the Hugging Face hub either, as {MODEL} is one"
            ) from error
        if isinstance(error, ValueError):  # it was found
            raise
        raise OSError(
            f"there is no Stable Diffusion pipeline {model!r} here, and it could not be downloaded. On a machine with "
            f"a network run `hf download {model} --local-dir {name[1]}`, copy the folder, and give its path as "
            f"`model`. The reason: {str(error).splitlines()[0]}"
        ) from error
    if pipe.scheduler.config.prediction_type != "epsilon":
        raise ValueError(f"model {model!r} predicts {pipe.scheduler.config.prediction_type}; only epsilon is supported")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def add_adapters(unet: UNet2DConditionModel, tune: TuneConfig) -> None:
    """Freeze `unet` and add the adapters: B = 0, A from the global generator, scale 1 (alpha = rank)."""
    unet.requires_grad_(False)
    every = [name for name, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    targets = ATTENTION if tune.where == "attention" else every
    ranks = {GENERAL: tune.general_rank} | ({EXPERT: tune.expert_rank} if tune.call else {})
    for name, r in ranks.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two adapters are what we want
            unet.add_adapter(LoraConfig(r=r, lora_alpha=r, lora_dropout=tune.dropout, target_modules=targets), name)
    unet.set_adapters(list(ranks))


class StableDiffusion(nn.Module):
    """Stable Diffusion's eps_theta for classes: the contract of `unet.UNet`, on latents.

    Class c is the prompt number c, and Null the empty prompt; their embeddings are computed here, once. x_t is
    (B, 4, h, w), a `factor`-th of the image in height and width.
    """

    clip_x0 = False  # latents have no range to clip to

    def __init__(self, pipe: StableDiffusionPipeline, prompts: list[str], at_once: int = 64):
        super().__init__()
        self.at_once = at_once
        self.scale: float | None = 1.0 if EXPERT in getattr(pipe.unet, "peft_config", {}) else None  # of the expert
        self.unet, self.vae = pipe.unet, pipe.vae.requires_grad_(False)
        self.num_classes, self.in_channels = len(prompts), pipe.unet.config.in_channels
        self.factor, self.scaling = pipe.vae_scale_factor, pipe.vae.config.scaling_factor
        self.schedule = NoiseSchedule(betas=pipe.scheduler.betas)  # not DDPM's: linear in sqrt(beta)
        with torch.no_grad():
            embeddings, _ = pipe.encode_prompt([*prompts, ""], pipe.text_encoder.device, 1, False)
        self.register_buffer("prompts", embeddings, persistent=False)  # (C + 1, tokens, width)

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """More than `at_once` samples in parts; for the backward pass, each part's activations are computed again."""
        parts = [*zip(*(a.split(self.at_once) for a in (x_t, t, self.prompts[y])), strict=True)]
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.cat([self._eps(*part) for part in parts])
        return torch.cat([checkpoint(self._eps, *part, self.scale, use_reentrant=False) for part in parts])

    def _eps(self, x_t: Tensor, t: Tensor, text: Tensor, scale: float | None = None) -> Tensor:
        if scale is None:
            return self.unet(x_t, t, encoder_hidden_states=text).sample
        with expert_scale(self, scale):  # when it is computed again, the scale may be another by then
            return self._eps(x_t, t, text)

    def forward_both(self, x_t: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(eps of theta, eps of theta^g) in two passes: adapters sit in the encoder too, so nothing is shared.

        Both see the same dropout masks: an expert at scale 0 draws its masks as one at scale 1 does.
        """
        with torch.random.fork_rng([x_t.device] if x_t.is_cuda else []):
            eps = self(x_t, t, y)
        with expert_scale(self, 0.0):
            return eps, self(x_t, t, y)

    @torch.no_grad()
    def encode(self, images: Tensor, batch_size: int = 16, progress: bool = False) -> Tensor:
        """uint8 (N, 3, H, W) to mean and standard deviation of their latents, (N, 8, h, w), on the CPU."""
        found = []
        for part in tqdm(images.split(batch_size), desc="latents, once", disable=not progress):
            posterior = self.vae.encode(data.to_float(part.to(self.prompts.device))).latent_dist
            found.append((self.scaling * torch.cat([posterior.mean, posterior.std], 1)).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def decode(self, latents: Tensor, batch_size: int = 16) -> Tensor:
        """Latents (N, 4, h, w) to uint8 (N, 3, H, W) on the CPU."""
        parts = latents.split(batch_size)
        return torch.cat([data.to_uint8(self.vae.decode(x / self.scaling).sample).cpu() for x in parts])

    def sample_batches(
        self,
        y: Tensor,
        image_size: int,
        seed: int = 0,
        steps: int = 50,
        guidance_scale: float = 1.0,
        batch_size: int | None = None,
        wanted: Container[int] | None = None,
    ) -> Iterator[Tensor]:
        """`sampling.sample_batches` for images of that size, through latents."""
        size, batch_size = image_size // self.factor, batch_size or sampling.batch_size_for(image_size)
        how = (seed, steps, guidance_scale, batch_size, wanted, self.clip_x0, self.decode)
        return sampling.sample_batches(self, self.schedule, y, size, *how)


@contextmanager
def expert_scale(model: StableDiffusion, scale: float) -> Iterator[None]:
    """Within the block W^f + B^g A^g + scale * B^e A^e: 1 is theta, 0 is theta^g, between is the dial."""
    before = model.scale

    def turn(to: float) -> None:
        if model.scale != to:  # peft goes through all layers, which takes long for a step that does it often
            model.scale = to
            model.unet.set_adapters([GENERAL, EXPERT], [1.0, to])

    turn(scale)
    try:
        yield
    finally:
        turn(before)


def build(tune: TuneConfig, class_names: list[str]) -> tuple[StableDiffusionPipeline, StableDiffusion]:
    """The pre-trained pipeline with fresh adapters, and its model of these classes; the two share their weights.

    From here on a GPU multiplies matrices in TF32, as it convolves by default: most of the work is in matrices.
    """
    torch.backends.cuda.matmul.allow_tf32 = True
    pipe = load_pipeline(tune.model)
    base = weights_hash(pipe.unet)
    with torch.random.fork_rng([]):
        torch.manual_seed(training.step_seed(tune.seed, 1))
        add_adapters(pipe.unet, tune)
    prompts = [tune.prompt.replace("{class}", name.replace("_", " ")) for name in class_names]
    model = StableDiffusion(pipe, prompts, tune.at_once)
    model.base_sha256 = base
    return pipe, model


def weights_hash(network: nn.Module) -> str:
    """sha256 of a network's weights, in hexadecimal."""
    found = hashlib.sha256()
    for p in network.state_dict().values():
        found.update(p.cpu().numpy().tobytes())
    return found.hexdigest()


def _check_base(model: StableDiffusion, about: dict, path: str | Path) -> None:
    """ValueError unless the adapters of the checkpoint at `path` were trained on the model's frozen weights. Older
    checkpoints do not say on which."""
    then = about.get("base_sha256", model.base_sha256)
    if then != model.base_sha256:
        raise ValueError(
            f"{path} was trained on other weights of {about['config']['model']} than are loaded now: sha256 of its "
            f"U-Net {then[:8]} then, {model.base_sha256[:8]} now; restore that version of it"
        )


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Everything that is trained, by name in the U-Net."""
    unet = getattr(model, "unet", model)
    return {name: p for name, p in unet.named_parameters() if "lora_" in name}


def _load(path: str | Path) -> tuple[StableDiffusionPipeline, StableDiffusion, TuneConfig]:
    """As `build`, with a checkpoint's EMA adapters."""
    tensors, about = checkpoints.load_checkpoint(path)
    if "class_names" not in about:
        raise ValueError(f"{path} is of a pixel model: use python -m callkit")
    tune = TuneConfig.from_dict(about["config"])
    pipe, model = build(tune, about["class_names"])
    _check_base(model, about, path)
    checkpoints.load_ema(adapter_parameters(model), tensors, path)
    return pipe, model.eval(), tune


def _merge(unet: UNet2DConditionModel, weights: str, tune: TuneConfig) -> None:
    """Replace W^f by W^f + B^g A^g, plus B^e A^e for theta; no adapter is left."""
    unet.fuse_lora(adapter_names=[GENERAL, EXPERT] if weights == "theta" and tune.call else [GENERAL])
    unet.unload_lora()


def load_model(path: str | Path, weights: str = "theta", device: str = "cpu") -> tuple[StableDiffusion, TuneConfig]:
    """A model in eval mode from a checkpoint's EMA adapters, and the run's config.

    weights  "theta" merges the adapters in; "theta_g" the general one; "reserved" merges none, for `expert_scale`.

    Errors are those of `checkpoints.load_model` and `load_pipeline`; ValueError too where the U-Net is not the one that
    the adapters were trained on.
    """
    checkpoints.check_weights(path, weights)
    _, model, tune = _load(path)
    if weights != "reserved":
        _merge(model.unet, weights, tune)
    return model.requires_grad_(False).to(device), tune


def export(path: str | Path, folder: str | Path) -> None:
    """What others need of a checkpoint, in `folder`, for diffusers' own calls (Chapter 14 shows them):

    general.safetensors and, with CALL, expert.safetensors, in peft's format; merged/, a pipeline with all merged in.
    """
    folder = Path(folder)
    files.check_writable(folder)
    pipe, model, tune = _load(path)
    for name in (GENERAL, EXPERT)[: 1 + tune.call]:
        # The weights alone: scale 1 and no dropout are what diffusers takes them to have.
        layers = get_peft_model_state_dict(pipe.unet, adapter_name=name)
        pipe.save_lora_weights(folder, layers, weight_name=f"{name}.safetensors")
    _merge(model.unet, "theta", tune)
    pipe.save_pretrained(folder / "merged")


def cached_latents(model: StableDiffusion, images: Tensor, cache: Path) -> Tensor:
    """`model.encode`, kept in a file of `cache` whose name holds the images' and the encoder's hashes."""

    def make(path: Path) -> None:
        checkpoints.save_checkpoint(path, {"latents": model.encode(images, progress=len(images) >= 1000)}, {})

    path = cache / f"latents-{weights_hash(model.vae)[:8]}-{data.fingerprint(images)}.safetensors"
    return checkpoints.load_checkpoint(files.made_once(path, make))[0]["latents"]


def train(
    tune: TuneConfig,
    run: str | Path | None = None,
    device: str = "cpu",
    minutes: float | None = None,
    data_root: str | Path = "data",
    compile: bool = False,
    wait: bool = False,
) -> Iterator[checkpoints.StepRecord]:
    """Minimise Eq. (6) over the adapters. Arguments, files, resuming and errors are those of `training.train`.

    ValueError under torchrun, one process only, and where the U-Net's weights are not those with which the run began.
    """
    if distributed.world_size() > 1:
        raise ValueError(f"Stable Diffusion trains in one process, got {distributed.world_size()}")
    run, device = Path(run) if run is not None else records.run_folder(tune, RUNS), distributed.checked_device(device)
    prepare = partial(_pieces, tune, run, device, Path(data_root), compile)
    yield from training.carry_out(tune, run, device, minutes, prepare, wait)


def _pieces(tune: TuneConfig, run: Path, device: torch.device, data_root: Path, compile: bool) -> training.Pieces:
    train_set = data.load_for(tune, data_root).train
    model = build(tune, train_set.class_names)[1].to(device).train()
    if found := checkpoints.load_newest(run, tensors=False):
        _check_base(model, found[-1], found[0])
    smallest = model.factor * 2 ** (len(model.unet.config.block_out_channels) - 1)
    if tune.image_size % smallest:
        raise ValueError(f"image_size must be a multiple of {smallest} for this model, got {tune.image_size}")
    latents = cached_latents(model, train_set.images, data_root / data.CACHE).to(device)
    labels, labels_there = train_set.labels, train_set.labels.to(device)
    frequency = train_set.frequency.to(device)
    weights = torch.full((tune.batch_size,), 1 / tune.batch_size, device=device)

    def draw(step: int, generator: torch.Generator) -> tuple[Batch, Tensor]:
        index = training.step_index(tune, labels, step)
        there = index.to(device, non_blocking=True)
        mean, std = latents[there].chunk(2, dim=1)
        x0 = mean + std * torch.randn(mean.shape, generator=generator, device=device)
        y = labels_there[there]
        dropped = torch.rand(y.shape, generator=generator, device=device) < tune.label_drop
        return Batch(x0, y, y.masked_fill(dropped, model.num_classes), frequency), weights

    if compile:
        model.unet.compile()
    parameters = adapter_parameters(model)
    return training.Pieces(
        network=model,
        parameters=parameters,
        optimiser=torch.optim.AdamW(parameters.values(), lr=tune.lr, weight_decay=tune.weight_decay),
        draw=draw,
        allocation=AllocationLoss(train_set.counts, tune.lam, tune.consistency, tune.diversity, tune.bound).to(device),
        schedule=model.schedule.to(device),
        counts=train_set.counts,
        about={
            "class_names": list(train_set.class_names),
            "image_size": tune.image_size,
            "base_sha256": model.base_sha256,
        },
        compiled=compile,
    )


def main(argv: list[str] | None = None) -> None:
    from callkit import __main__ as cli

    def add_export(commands) -> None:
        p = commands.add_parser("export", help="write the adapters and the merged pipeline, for diffusers")
        p.add_argument("run", type=Path, help="run folder, or a checkpoint file")
        p.add_argument("folder", type=Path)
        p.set_defaults(command=lambda a: export(cli.checkpoint_of(a.run), a.folder))

    def add_train(commands) -> None:
        p = cli.add_train(commands, DATASETS, METHODS, PROFILES, 100, RUNS, "the U-Net")
        p.set_defaults(dataset="artbench10", method="oc-call", profile="gpu")
        p.set_defaults(make_config=make_config, go=train)

    def add_evaluate(commands) -> None:
        cli.add_evaluate(commands).set_defaults(load_model=load_model, kind=TuneConfig)

    def add_sample(commands) -> None:
        cli.add_sample(commands).set_defaults(load_model=load_model)

    cli.main(argv, "python -m callkit.lora", __doc__, (add_train, add_evaluate, add_sample, add_export))


if __name__ == "__main__":
    main()
