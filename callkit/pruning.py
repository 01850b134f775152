"""Fig. 1a: prune a trained network and see which classes it hurts.

The answer depends on what is pruned (single weights or whole filters), on which images it is measured and on whether
the change is read as a difference or a ratio. So each is a choice here, and a figure says which it made.
"""

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from callkit import data
from callkit.capacity import expert_weights
from callkit.diffusion import NoiseSchedule, noised
from callkit.objectives import mse
from callkit.statistics import mean_interval

HOW = ("global", "layer", "filter")


def prunable(module: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """The layers whose weights may be pruned: every convolution and linear map; no norm, bias or class embedding."""
    return [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@torch.no_grad()
def prune(module: nn.Module, rate: float = 0.1, how: str = "global") -> nn.Module:
    """A copy of `module` with the share `rate` of its weights set to zero.

    "global"  the weights of smallest magnitude in the whole network (Han et al., 2015)
    "layer"   those of smallest magnitude in each layer
    "filter"  in each layer whole output filters, with their bias if any, of smallest L1 norm (Li et al., 2017)

    ValueError if the rate is outside [0, 1), `how` unknown, or the module has an expert that is not merged.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), got {rate}")
    if how not in HOW:
        raise ValueError(f"unknown how {how!r}; known: {', '.join(HOW)}")
    if expert_weights(module):
        raise ValueError("merge the expert before pruning")
    pruned = copy.deepcopy(module)
    layers = prunable(pruned)
    if how == "global":
        n = int(rate * sum(m.weight.numel() for m in layers))
        torch_prune.global_unstructured([(m, "weight") for m in layers], torch_prune.L1Unstructured, amount=n)
    for m in layers:
        if how == "layer":
            torch_prune.l1_unstructured(m, "weight", int(rate * m.weight.numel()))
        elif how == "filter":
            torch_prune.ln_structured(m, "weight", int(rate * len(m.weight)), n=1, dim=0)
            if m.bias is not None:
                m.bias.mul_(m.weight_mask.flatten(1)[:, 0])
        torch_prune.remove(m, "weight")
    return pruned


@torch.no_grad()
def losses(model: nn.Module, images: data.ImageSet, schedule: NoiseSchedule, draws: int = 16, seed: int = 0) -> Tensor:
    """Noise-prediction loss of each image, (N,) on the CPU, averaged over `draws` pairs (t, eps).

    The timesteps are spread evenly: draw k falls into the k-th of `draws` equal parts of 0..T-1. All models see the
    same pairs for a seed (common random numbers), so that their difference is the models' alone.
    """
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    x0, total = data.to_float(images.images), torch.zeros(len(images))
    for k in range(draws):
        part = (k + torch.rand(len(images), generator=generator)) / draws
        t = (part * schedule.timesteps).long().clamp(max=schedule.timesteps - 1)
        eps = torch.randn(x0.shape, generator=generator)
        parts = noised(model, schedule, x0, t, images.labels, eps)
        total += torch.cat([mse(model(x_t, t, y), eps).cpu() for x_t, t, y, eps in parts])
    return total / draws


class Sensitivity(NamedTuple):
    """By class, (C,) each; the half-widths are 95 % confidence intervals over images."""

    before: np.ndarray  # loss of the whole network
    change: np.ndarray  # loss of the pruned network minus `before`
    change_ci: np.ndarray
    relative: np.ndarray  # change / before
    relative_ci: np.ndarray


def sensitivity(before: Tensor, after: Tensor, labels: Tensor, num_classes: int) -> Sensitivity:
    """Compare per-image losses of a network and its pruned copy, class by class.

    The interval of the change is Student's, of the paired differences; that of the ratio takes `before` as known. NaN
    half-widths for a class with one image.
    """
    rows = []
    for c in range(num_classes):
        b, d = before[labels == c].double(), (after - before)[labels == c].double()
        change, _, high = mean_interval(d.tolist())
        rows.append([b.mean(), change, high - change, change / b.mean(), (high - change) / b.mean()])
    return Sensitivity(*np.array(rows, dtype=float).T)
