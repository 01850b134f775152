"""Base losses L_base behind one signature: objective(model, batch, schedule, generator, both) -> ObjectiveOutput.

`both` asks for theta^g's prediction too, which the allocation loss compares with theta's.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from callkit.diffusion import NoiseSchedule


class Batch(NamedTuple):
    """x0 float32 (B, C, H, W) in [-1, 1]; y int64 (B,) true classes; condition int64 (B,) y, or Null where dropped."""

    x0: Tensor
    y: Tensor
    condition: Tensor


class ObjectiveOutput(NamedTuple):
    loss: Tensor  # (B,) base loss of theta
    eps: Tensor  # (B, C, H, W) theta's prediction
    eps_general: Tensor | None  # theta^g's, if asked for


def ddpm(
    model: nn.Module, batch: Batch, schedule: NoiseSchedule, generator: torch.Generator, both: bool = False
) -> ObjectiveOutput:
    """Noise prediction with w_t = 1, Eq. (2): mean over pixels of (eps_theta(x_t, t, y) - eps)^2."""
    t = torch.randint(schedule.timesteps, batch.y.shape, generator=generator, device=batch.y.device)
    eps = torch.randn(batch.x0.shape, generator=generator, device=batch.x0.device)
    x_t = schedule.q_sample(batch.x0, t, eps)
    if both:
        prediction, general = model.forward_both(x_t, t, batch.condition)
    else:
        prediction, general = model(x_t, t, batch.condition), None
    return ObjectiveOutput((prediction - eps).pow(2).flatten(1).mean(1), prediction, general)


OBJECTIVES = {"ddpm": ddpm}
