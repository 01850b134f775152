"""What happens inside a network trained with CALL: where its two predictions differ, and what the difference holds.

`model` is always the U-Net with its decomposition, as `checkpoints.load_model(path, "reserved")` gives it.
"""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from callkit import data, metrics, sampling
from callkit.allocation import class_weights
from callkit.capacity import LowRank, expert_scale, expert_weights
from callkit.diffusion import NoiseSchedule, noised
from callkit.objectives import mse
from callkit.unet import Attention


def signed_mass(counts, consistency: float = 1.0, diversity: float = 1.0) -> np.ndarray:
    """How much of an average training image's coefficient of D is each class's, (C,).

    N_c / N (consistency omega_Con - diversity omega_Div), near D = 0. Its positive entries pull the two predictions
    together and its negative ones push them apart.
    """
    con, div = class_weights(counts)
    share = np.asarray(counts) / np.sum(counts)
    return share * (consistency * con - diversity * div).double().numpy()


@torch.no_grad()
def branch_distance(
    model: nn.Module, images: data.ImageSet, schedule: NoiseSchedule, timesteps: list[int]
) -> np.ndarray:
    """D of Eq. (4) by class and timestep, (C, len(timesteps)); every image meets the same noise at all of them."""
    model.eval()
    x0, y = data.to_float(images.images), images.labels
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    columns = []
    for t in timesteps:
        parts = noised(model, schedule, x0, torch.full_like(y, t), y, eps)
        distance = torch.cat([mse(*model.forward_both(x_t, t, of)).cpu() for x_t, t, of, _ in parts])
        columns.append([distance[y == c].mean().item() for c in range(images.num_classes)])
    return np.array(columns).T


def scores(model: nn.Module, real: data.LongTailed, per_class: int = 100) -> dict:
    """Sample a balanced set, the same noise for every model, and measure: `metrics.evaluate`'s scores by split."""
    labels = sampling.balanced_labels(model.num_classes, per_class)
    images = sampling.sample(model, NoiseSchedule(), labels, real.full.images.shape[-1])
    return metrics.evaluate(images, labels, real)["metrics"]


class DialPoint(NamedTuple):
    """One setting of the dial."""

    scale: float
    scores: dict


def dial(model: nn.Module, real: data.LongTailed, scales: list[float], per_class: int = 100) -> Iterator[DialPoint]:
    """`scores` with W^g + scale * BA for each scale: 0 is theta^g, 1 is theta."""
    for scale in scales:
        with expert_scale(model, scale):
            yield DialPoint(scale, scores(model, real, per_class))


def _singular_values(expert: LowRank) -> Tensor:
    """Of BA, largest first, as many as its rank."""
    return torch.linalg.svdvals(expert.B @ expert.A)[: expert.B.shape[1]]


@torch.no_grad()
def attention_sizes(model: nn.Module) -> dict[str, dict[str, float]]:
    """By attention block of a merged or plain network's up path: "q" and "k", the largest singular values of the
    matrices that make queries and keys, and "q bias" and "k bias", the norms of their biases. The last is a canary: its
    gradient is zero, and what moves it is rounding (Chapter 16)."""
    found = {}
    for name, block in model.up.named_modules(prefix="up"):
        if isinstance(block, Attention):
            parts = {"q": block.q, "k": block.k}
            found[name] = {n: torch.linalg.svdvals(m.weight.flatten(1))[0].item() for n, m in parts.items()}
            found[name] |= {f"{n} bias": m.bias.norm().item() for n, m in parts.items()}
    return found


class Spectrum(NamedTuple):
    """Singular values of one decomposed matrix, largest first."""

    expert: np.ndarray  # of BA, as many as its rank
    general: np.ndarray  # of W^g


@torch.no_grad()
def spectra(model: nn.Module) -> dict[str, Spectrum]:
    """By name of the decomposed layer."""
    found = {}
    for name, expert in expert_weights(model).items():
        general = model.get_submodule(name).parametrizations.weight.original.flatten(1)
        found[name] = Spectrum(_singular_values(expert).cpu().numpy(), torch.linalg.svdvals(general).cpu().numpy())
    return found


@torch.no_grad()
def random_expert(model: nn.Module) -> nn.Module:
    """The control: a copy whose every BA has random directions and its own singular values.

    If theta^g plus *any* matrix of that size and spectrum did as well as theta, the expert would hold nothing. It may
    change the prediction far less than the expert does: `branch_distance` says so, and `expert_scale` makes it larger.
    """
    generator = torch.Generator().manual_seed(0)
    control = copy.deepcopy(model)
    for expert in expert_weights(control).values():
        left, _ = torch.linalg.qr(torch.randn(expert.B.shape, generator=generator).to(expert.B.device))
        right, _ = torch.linalg.qr(torch.randn(expert.A.T.shape, generator=generator).to(expert.A.device))
        expert.B.copy_(left * _singular_values(expert))
        expert.A.copy_(right.T)
    return control


@torch.no_grad()
def truncated_expert(model: nn.Module, rank: int | None = None, only: str = "") -> nn.Module:
    """A copy whose every BA keeps its `rank` largest singular values (None: all), and is zero in a layer whose name
    does not end in `only`."""
    cut = copy.deepcopy(model)
    for name, expert in expert_weights(cut).items():
        u, s, vt = torch.linalg.svd(expert.B @ expert.A, full_matrices=False)
        kept = 0 if not name.endswith(only) else min(len(s) if rank is None else rank, expert.B.shape[1])
        expert.B.zero_()
        expert.B[:, :kept] = u[:, :kept] * s[:kept]
        expert.A[:kept] = vt[:kept]
    return cut


class Offset(NamedTuple):
    """How far one number per class explains the difference eps_theta - eps_theta^g, (C,) each."""

    mean: Tensor  # the number: the difference's mean over pixels, images, timesteps and noise
    share: Tensor  # mean^2 / D, from 0 (no part of the distance) to 1 (all of it)


@torch.no_grad()
def offset(model: nn.Module, images: data.ImageSet, schedule: NoiseSchedule, draws: int = 20) -> Offset:
    """Averages over `draws` pairs (t, eps) of each image, t uniform."""
    model.eval()
    generator = torch.Generator().manual_seed(0)
    x0, y = data.to_float(images.images), images.labels
    total, distance = torch.zeros(2, images.num_classes)
    for _ in range(draws):
        t = torch.randint(schedule.timesteps, y.shape, generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        for x_t, at, of, _ in noised(model, schedule, x0, t, y, noise):
            eps, general = model.forward_both(x_t, at, of)
            total.index_add_(0, of.cpu(), (eps - general).flatten(1).mean(1).cpu())
            distance.index_add_(0, of.cpu(), mse(eps, general).cpu())
    n = draws * torch.from_numpy(images.counts)
    mean = total / n
    return Offset(mean, mean.square() / (distance / n).clamp(min=torch.finfo(torch.float32).tiny))


class WithOffset(nn.Module):
    """theta^g whose prediction for class c has mean[c] added everywhere: the smallest repair there could be."""

    def __init__(self, general: nn.Module, mean: Tensor):
        super().__init__()
        self.general, self.num_classes, self.in_channels = general, general.num_classes, general.in_channels
        mean = torch.cat([mean, mean.new_zeros(1)])  # Null: nothing
        self.register_buffer("mean", mean.to(next(general.parameters()).device))

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.general(x_t, t, y) + self.mean[y][:, None, None, None]


@torch.no_grad()
def hidden_features(model: nn.Module, images: data.ImageSet, schedule: NoiseSchedule, t: int) -> Tensor:
    """What enters the last convolution, averaged over pixels, (N, channels), for noised images and *no* class."""
    model.eval()
    x0 = data.to_float(images.images)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    null, t = torch.full_like(images.labels, model.num_classes), torch.full_like(images.labels, t)
    found: list[Tensor] = []
    hook = model.tail[-1].register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].mean((2, 3)).cpu()))
    try:
        for x_t, at, y, _ in noised(model, schedule, x0, t, null, eps):
            model(x_t, at, y)
    finally:
        hook.remove()
    return torch.cat(found)


def minority_probe(features: Tensor, labels: Tensor, minorities: list[int]) -> float:
    """How well a linear classifier tells the classes `minorities` from the rest: area under its ROC curve.

    features (N, D), labels (N,). Logistic regression on standardised features, five-fold cross-validation;
    0.5 is chance, 1 is perfect.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    target = torch.isin(labels, torch.tensor(minorities)).numpy()
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    score = cross_val_predict(probe, features.numpy(), target, cv=folds, method="decision_function")
    return float(roc_auc_score(target, score))
