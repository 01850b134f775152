"""Samplers: from noise to images, class by class. Derived in notebooks/03_unet_and_ddim.

Guidance convention: eps = eps(Null) + guidance_scale * (eps(y) - eps(Null)), so 1 is none.
CBDM, OC and the authors' later release write the same as (1 + w) with w = guidance_scale - 1.
"""

import math
from collections.abc import Callable, Container, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from callkit.data import to_uint8
from callkit.diffusion import NoiseSchedule


class SamplerStep(NamedTuple):
    """One step's result: at timestep t the network implied x0; x is the state after the step."""

    t: int
    x: Tensor  # (B, C, H, W)
    x0: Tensor  # (B, C, H, W)


def ddim_timesteps(timesteps: int, steps: int) -> list[int]:
    """Evenly spaced, last one 0: 980, 960, ..., 0 for 50 steps of T = 1000. ValueError for fewer than 1 or more than T
    steps.

    Where steps divides T these are diffusers' "leading" ones. Elsewhere those begin too late, at t = 500 for 501 steps,
    where an image is not yet all noise.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"steps must be in 1..{timesteps}, got {steps}")
    return [i * timesteps // steps for i in reversed(range(steps))]


def check_guidance_scale(scale: float) -> None:
    """ValueError unless it is finite."""
    if not math.isfinite(scale):
        raise ValueError(f"guidance_scale must be a number, got {scale}")


def guided_eps(model: nn.Module, x: Tensor, t: Tensor, y: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans, 2021), both predictions in one forward; x and the result (B, C, H, W), t
    and y (B,)."""
    if guidance_scale == 1:
        return model(x, t, y)
    null = torch.full_like(y, model.num_classes)
    eps_null, eps = model(x.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([null, y])).chunk(2)
    return eps_null + guidance_scale * (eps - eps_null)


@torch.no_grad()
def ddim(
    model: nn.Module,
    schedule: NoiseSchedule,
    x: Tensor,
    y: Tensor,
    steps: int = 50,
    guidance_scale: float = 1.0,
    clip_x0: bool = True,
) -> Iterator[SamplerStep]:
    """Deterministic DDIM (Song et al., 2021a; eta = 0), one SamplerStep per network evaluation.

    x (B, C, H, W) standard normal noise; y (B,) classes. The grid is `ddim_timesteps`, and the last step
    goes to alpha_bar = 1. `clip_x0` clips the implied image to [-1, 1] *before* the step and recomputes the
    noise from it, so that clipping acts. The model should be in eval mode; `sample` sees to that. ValueError for steps
    as in `ddim_timesteps`.
    """
    grid = ddim_timesteps(schedule.timesteps, steps)
    for t, t_next in zip(grid, [*grid[1:], None], strict=True):
        t_batch = torch.full_like(y, t)
        eps = guided_eps(model, x, t_batch, y, guidance_scale)
        x0 = schedule.eps_to_x0(x, t_batch, eps)
        if clip_x0:
            x0 = x0.clamp(-1, 1)
            eps = schedule.x0_to_eps(x, t_batch, x0)
        x = x0 if t_next is None else schedule.q_sample(x0, torch.full_like(y, t_next), eps)
        yield SamplerStep(t, x, x0)


@torch.no_grad()
def ddpm(
    model: nn.Module,
    schedule: NoiseSchedule,
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    variance: str = "large",
    guidance_scale: float = 1.0,
    clip_x0: bool = True,
) -> Iterator[SamplerStep]:
    """Ancestral sampling over all T steps, Algorithm 1 of the paper (Ho et al., 2020), one SamplerStep each.

    variance  sigma_t^2: "large" is beta_t, "small" the posterior's beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t).
    The mean is formed from the implied image *after* clipping, so that clipping acts. Other arguments as in `ddim`.
    ValueError for another variance.
    """
    if variance not in ("large", "small"):
        raise ValueError(f"unknown variance {variance!r}; known: large, small")
    alpha_bar, betas = schedule.alpha_bar.tolist(), schedule.betas.tolist()
    for t in reversed(range(schedule.timesteps)):
        t_batch = torch.full_like(y, t)
        x0 = schedule.eps_to_x0(x, t_batch, guided_eps(model, x, t_batch, y, guidance_scale))
        if clip_x0:
            x0 = x0.clamp(-1, 1)
        before, beta = alpha_bar[t - 1] if t > 0 else 1.0, betas[t]
        share = beta / (1 - alpha_bar[t])
        x = before**0.5 * share * x0 + (1 - beta) ** 0.5 * (1 - before) / (1 - alpha_bar[t]) * x
        if t > 0:
            sigma = (beta if variance == "large" else share * (1 - before)) ** 0.5
            x = x + sigma * torch.randn(x.shape, generator=generator, device=x.device)
        yield SamplerStep(t, x, x0)


BATCH = 500  # images of up to 64 x 64, the paper's largest, that are sampled at a time


def batch_size_for(image_size: int) -> int:
    """How many images of that size are sampled at a time: of large ones fewer."""
    return min(BATCH, max(16, BATCH * 64**2 // image_size**2))


def balanced_labels(num_classes: int, per_class: int) -> Tensor:
    """int64 (num_classes * per_class,): exactly `per_class` of each class, sorted."""
    return torch.arange(num_classes).repeat_interleave(per_class)


def sample_batches(
    model: nn.Module,
    schedule: NoiseSchedule,
    y: Tensor,
    image_size: int,
    seed: int = 0,
    steps: int = 50,
    guidance_scale: float = 1.0,
    batch_size: int | None = None,
    wanted: Container[int] | None = None,
    clip_x0: bool = True,
    to_images: Callable[[Tensor], Tensor] = to_uint8,
) -> Iterator[Tensor]:
    """Images uint8 (<= batch_size, C, image_size, image_size) for the labels y (N,), by DDIM, on the model's device.

    batch_size is `batch_size_for` images of that size by default. For a model of latents, image_size is theirs, nothing
    is to be clipped, and `to_images` decodes them.
    Noise is drawn on the CPU, one generator for all batches in order: the device does not change which image comes
    from which noise, nor does making the `wanted` batches alone (those that an interrupted evaluation has not yet, or
    one process's share), nor any batch size whose batches have a multiple of 16 numbers. ValueError for labels outside
    0..num_classes (Null included).
    """
    if len(y) == 0 or not 0 <= int(y.min()) <= int(y.max()) <= model.num_classes:
        raise ValueError(f"labels must lie in 0..{model.num_classes} ({model.num_classes} is Null), got {y}")
    device = next(model.parameters()).device
    schedule = schedule.to(device)
    generator = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    try:
        for i, labels in enumerate(y.split(batch_size or batch_size_for(image_size))):
            x = torch.randn(len(labels), model.in_channels, image_size, image_size, generator=generator)
            if wanted is not None and i not in wanted:
                continue
            for step in ddim(model, schedule, x.to(device), labels.to(device), steps, guidance_scale, clip_x0):
                x = step.x
            yield to_images(x).cpu()
    finally:
        model.train(was_training)


def sampler(model: nn.Module, schedule: NoiseSchedule) -> Callable[..., Iterator[Tensor]]:
    """`sample_batches` from its argument y on: the model's own, if it has a method of that name (`lora`: its images are
    decoded, and its schedule is its own), or the function."""
    return getattr(model, "sample_batches", partial(sample_batches, model, schedule))


def sample(
    model: nn.Module,
    schedule: NoiseSchedule,
    y: Tensor,
    image_size: int,
    seed: int = 0,
    steps: int = 50,
    guidance_scale: float = 1.0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """All images of `sampler`'s batches, uint8 (N, C, image_size, image_size). Errors are those of `sample_batches`."""
    images, batches = [], sampler(model, schedule)
    with tqdm(total=len(y), desc="sampling", unit="img", disable=not progress) as bar:
        for batch in batches(y, image_size, seed, steps, guidance_scale, batch_size):
            images.append(batch)
            bar.update(len(batch))
    return torch.cat(images)
