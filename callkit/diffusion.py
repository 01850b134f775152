"""The forward process: how much noise at each timestep, and conversions between noise and image (Section 3.2).

Derived in notebooks/03_unet_and_ddim.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

DDPM_BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)  # linear variances (Ho et al., 2020)


class NoiseSchedule:
    """Variances beta_1..beta_T of the noise, `betas` (T,), of DDPM by default; timesteps are 0..T-1.

    `alpha_bar` (T,) is kept in float64 and rounded to float32 only where it meets an image.
    """

    def __init__(self, betas: Tensor = DDPM_BETAS):
        self.betas = betas.double()
        self.timesteps = len(self.betas)
        self.alpha_bar = torch.cumprod(1 - self.betas, dim=0)

    def to(self, device) -> "NoiseSchedule":
        """A copy there; this one stays where it is."""
        moved = copy.copy(self)
        moved.betas, moved.alpha_bar = self.betas.to(device), self.alpha_bar.to(device)
        return moved

    def signal_and_noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), float32 (B, 1, 1, 1)."""
        alpha_bar = self.alpha_bar[t][:, None, None, None]
        return alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0) for given noise: sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.

        Images and noise, here and below, (B, C, H, W); t (B,).
        """
        signal, noise = self.signal_and_noise(t)
        return signal * x0 + noise * eps

    def eps_to_x0(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The image that `eps` implies."""
        signal, noise = self.signal_and_noise(t)
        return (x_t - noise * eps) / signal

    def x0_to_eps(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """The noise that `x0` implies."""
        signal, noise = self.signal_and_noise(t)
        return (x_t - signal * x0) / noise


def noised(
    model: nn.Module, schedule: NoiseSchedule, x0: Tensor, t: Tensor, y: Tensor, eps: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(x_t, t, y, eps) for `model`, 500 samples at a time and where its weights are; all four are given on the CPU."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    schedule = schedule.to(device)
    for part in zip(*(a.split(500) for a in (x0, t, y, eps)), strict=True):
        x0, t, y, eps = (a.to(device) for a in part)
        yield schedule.q_sample(x0, t, eps), t, y, eps
