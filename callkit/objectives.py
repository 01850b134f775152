"""Base losses L_base behind one signature: objective(model, batch, schedule, generator, both) -> ObjectiveOutput.

`both` asks for theta^g's prediction too, which the allocation loss compares with theta's. Options of one loss are
keyword arguments of its function, `base_options` in a config.
"""

import inspect
from typing import NamedTuple

import torch
from torch import Tensor, nn

from callkit.diffusion import NoiseSchedule


class Batch(NamedTuple):
    """What a step trains on."""

    x0: Tensor  # float32 (B, C, H, W) in [-1, 1]
    y: Tensor  # int64 (B,) true classes
    condition: Tensor  # int64 (B,) y, or Null where dropped
    frequency: Tensor  # float32 (num_classes,) share of each class in the training set
    augmentation: Tensor | None = None  # float32 (B, 9) with ADA
    rows: Tensor | None = None  # int64 (m,) samples whose second prediction is wanted; None: all

    def told(self, condition: Tensor) -> tuple[Tensor, ...]:
        """What the network hears besides x_t and t; a network without ADA takes the condition alone."""
        return (condition,) if self.augmentation is None else (condition, self.augmentation)


class ObjectiveOutput(NamedTuple):
    """What a base loss returns."""

    loss: Tensor  # (B,) base loss of theta
    eps: Tensor  # (B, C, H, W) theta's prediction
    eps_general: Tensor | None  # theta^g's of the batch's `rows`, if asked for


class Noised(NamedTuple):
    """The draws of a step, and the noised images that they make."""

    t: Tensor  # (B,)
    eps: Tensor  # (B, C, H, W)
    x_t: Tensor  # (B, C, H, W)


def add_noise(batch: Batch, schedule: NoiseSchedule, generator: torch.Generator) -> Noised:
    """t uniform over 0..T-1, eps standard normal, and x_t: the draws that all base losses share."""
    t = torch.randint(schedule.timesteps, batch.y.shape, generator=generator, device=batch.y.device)
    eps = torch.randn(batch.x0.shape, generator=generator, device=batch.x0.device)
    return Noised(t, eps, schedule.q_sample(batch.x0, t, eps))


def predict(model: nn.Module, noised: Noised, batch: Batch, both: bool) -> tuple[Tensor, Tensor | None]:
    """(eps of theta, eps of theta^g or None)."""
    inputs = (noised.x_t, noised.t, *batch.told(batch.condition))
    some = {} if batch.rows is None else {"rows": batch.rows}
    return model.forward_both(*inputs, **some) if both else (model(*inputs), None)


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference per sample, (B,)."""
    return (a - b).pow(2).flatten(1).mean(1)


def ddpm(
    model: nn.Module, batch: Batch, schedule: NoiseSchedule, generator: torch.Generator, both: bool = False
) -> ObjectiveOutput:
    """Noise prediction with w_t = 1, Eq. (2): mean over pixels of (eps_theta(x_t, t, y) - eps)^2."""
    noised = add_noise(batch, schedule, generator)
    eps, general = predict(model, noised, batch, both)
    return ObjectiveOutput(mse(eps, noised.eps), eps, general)


def focal(
    model: nn.Module,
    batch: Batch,
    schedule: NoiseSchedule,
    generator: torch.Generator,
    both: bool = False,
    gamma: float = 1.0,
) -> ObjectiveOutput:
    """DDPM's loss with hard samples weighted up, after Lin et al. (2017).

    The paper gives no formula for a regression loss; ours weights sample i by l_i^gamma / mean_j l_j^gamma, constant
    in the gradient. The weights average to 1, so the learning rate keeps its meaning.
    """
    out = ddpm(model, batch, schedule, generator, both)
    weight = out.loss.detach().pow(gamma)
    return out._replace(loss=out.loss * weight / weight.mean())


CBDM_PRIORS = ("train", "uniform")


def cbdm(
    model: nn.Module,
    batch: Batch,
    schedule: NoiseSchedule,
    generator: torch.Generator,
    both: bool = False,
    tau: float = 1.0,
    gamma: float = 0.25,
    prior: str = "train",
) -> ObjectiveOutput:
    """Class-Balancing Diffusion Models (Qin et al., 2023): predictions for y and a random class y' at one x_t agree.

    loss = |h - eps|^2 + tau (t / T) (|h - sg(h')|^2 + gamma |sg(h) - h'|^2), means over pixels, with h' the
    prediction for y' and sg the stop-gradient. tau is that of the published code, 1000 times the CBDM paper's.
    prior: y' from the training frequencies ("train", their default) or "uniform". Where the condition was dropped
    there is no class to balance, and no extra term. ValueError for another prior.
    """
    if prior not in CBDM_PRIORS:
        raise ValueError(f"unknown prior {prior!r}; known: {', '.join(CBDM_PRIORS)}")
    noised = add_noise(batch, schedule, generator)
    weights = batch.frequency if prior == "train" else torch.ones_like(batch.frequency)
    other = torch.multinomial(weights, len(batch.y), replacement=True, generator=generator)
    eps, general = predict(model, noised, batch, both)
    eps_other = model(noised.x_t, noised.t, *batch.told(other))
    strength = tau * noised.t / schedule.timesteps * (batch.condition == batch.y)
    regulariser = mse(eps, eps_other.detach()) + gamma * mse(eps.detach(), eps_other)
    return ObjectiveOutput(mse(eps, noised.eps) + strength * regulariser, eps, general)


def _one_of_each_row(p: Tensor, generator: torch.Generator) -> Tensor:
    """A column drawn from each row of the probabilities p (B, K), int64 (B,): as torch.multinomial draws one, but for
    its checks, which wait for the GPU."""
    return (p / torch.empty_like(p).exponential_(generator=generator)).argmax(1)


OC_MODES = ("t2h", "h2t", "full")


@torch.no_grad()
def transferred_index(
    batch: Batch, noised: Noised, schedule: NoiseSchedule, generator: torch.Generator, mode: str = "t2h"
) -> Tensor:
    """For each sample i the index z_i of the batch image that its target denoises towards, (B,) int64.

    z_i is drawn from the posterior over the batch's images given x_t,i: softmax_j of
    -|x_t,i / sqrt(alpha_bar) - x_0,j|^2 / (2 sigma_i^2), sigma^2 = 1 / alpha_bar - 1. It is accepted from tail to head
    ("t2h": its class is at least as frequent), head to tail ("h2t") or always ("full"); else z_i = i. ValueError for
    another mode.
    """
    if mode not in OC_MODES:
        raise ValueError(f"unknown mode {mode!r}; known: {', '.join(OC_MODES)}")
    alpha_bar = schedule.alpha_bar[noised.t][:, None]  # float64: at small t the logits are of order 1e7
    clean = batch.x0.flatten(1).double()
    noisy = noised.x_t.flatten(1).double() / alpha_bar.sqrt()
    # |noisy_i|^2 is the same for all j and drops out of the softmax
    logits = (noisy @ clean.T - clean.pow(2).sum(1) / 2) / (1 / alpha_bar - 1)
    z = _one_of_each_row(logits.softmax(1), generator)
    p, p_z = batch.frequency[batch.y], batch.frequency[batch.y[z]]
    accepted = {"t2h": p_z >= p, "h2t": p_z <= p, "full": torch.ones_like(p, dtype=torch.bool)}[mode]
    return torch.where(accepted, z, torch.arange(len(z), device=z.device))


def oc(
    model: nn.Module,
    batch: Batch,
    schedule: NoiseSchedule,
    generator: torch.Generator,
    both: bool = False,
    mode: str = "t2h",
) -> ObjectiveOutput:
    """Oriented Calibration (Zhang et al., 2024): at large noise, denoise towards another image of the batch.

    The target is the noise that would have led from x_0,z to x_t, eps + (x_0 - x_0,z) / sigma_t; x_t, t and the
    condition stay those of the sample. The batch is the reference set, so its size is a hyper-parameter. ValueError for
    a mode that `transferred_index` does not know.
    """
    noised = add_noise(batch, schedule, generator)
    z = transferred_index(batch, noised, schedule, generator, mode)
    signal, noise = schedule.signal_and_noise(noised.t)
    target = noised.eps + (batch.x0 - batch.x0[z]) * signal / noise
    eps, general = predict(model, noised, batch, both)
    return ObjectiveOutput(mse(eps, target), eps, general)


OBJECTIVES = {"ddpm": ddpm, "focal": focal, "cbdm": cbdm, "oc": oc}


def option_names(base: str) -> list[str]:
    """What `base_options` may hold for this base loss."""
    _model, _batch, _schedule, _generator, _both, *own = inspect.signature(OBJECTIVES[base]).parameters
    return own
