"""Capacity allocation, Eq. (4)-(6): keep theta^g like theta on majorities, push them apart on minorities."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor


def class_weights(counts) -> tuple[Tensor, Tensor]:
    """(omega_Con, omega_Div) of Eq. (5), float32 (C,) each, from the training images per class.

    omega_Con is proportional to N_c, omega_Div to 1 / N_c. Weighted by the frequencies N_c / N,
    omega_Div averages to the ratio of the harmonic to the arithmetic mean of the counts; unweighted over
    classes, both average to 1. All ones for a balanced set. ValueError if a class is empty.
    """
    n = torch.as_tensor(counts, dtype=torch.float64)
    if n.ndim != 1 or not (n > 0).all():
        raise ValueError(f"counts must be one positive number a class, got {n.tolist()}")
    return (n / n.mean()).float(), (1 / n / (1 / n).mean()).float()


def saturate(distance: Tensor, bound: float | Tensor | None) -> Tensor:
    """phi(D) = b (1 - exp(-D / b)): slope 1 at zero, never above b. The identity, as printed, for b = None."""
    return distance if bound is None else -bound * torch.expm1(-distance / bound)


BOUND_FORMS = ("exponential", "cap", "relative")  # of phi; Chapter 07 compares them


class AllocationOutput(NamedTuple):
    """By sample, of Eq. (4) to (6)."""

    loss: Tensor  # (B,) lambda (L_Con + L_Div)
    distance: Tensor  # (B,) D


class AllocationLoss:
    """lambda L_CALL of Eq. (4)-(6), per sample:

        D = mean over pixels of (eps_theta - eps_theta^g)^2
        lambda (consistency omega_Con D - diversity omega_Div phi(D))

    With phi(D) = D, the printed loss, any class with omega_Con < omega_Div gains without limit by pushing
    D up, and training diverges (Chapter 07). A phi bounded by a constant has the same gradient near D = 0 and a floor:

    bound_form     "exponential" is `saturate`; "cap" is min(D, b); "relative" is `saturate` with b times the
                   sample's base loss in place of b, a bound that grows with that loss: for large b there is no floor
    stop_gradient  compare theta^g with a constant theta, so that the loss moves theta^g alone
    centred        D of the difference *without its mean over pixels*, per channel: adding a constant to all pixels,
                   the cheapest way to differ, then gains nothing (Chapter 08)

    ValueError for counts as in `class_weights`, a bound that is not positive, or an unknown bound_form.
    """

    def __init__(
        self,
        counts,
        lam: float = 1.0,
        consistency: float = 1.0,
        diversity: float = 1.0,
        bound: float | None = 0.1,
        bound_form: str = "exponential",
        stop_gradient: bool = False,
        centred: bool = False,
    ):
        if bound is not None and not bound > 0:
            raise ValueError(f"bound must be positive, or None for the printed loss; got {bound}")
        if bound_form not in BOUND_FORMS:
            raise ValueError(f"unknown bound_form {bound_form!r}; known: {', '.join(BOUND_FORMS)}")
        self.omega_con, self.omega_div = class_weights(counts)
        self.priority = self.omega_div.double().sqrt()  # by class, of `subset`; on the CPU
        self.lam, self.consistency, self.diversity = lam, consistency, diversity
        self.bound, self.bound_form = bound, bound_form
        self.stop_gradient, self.centred = stop_gradient, centred

    def to(self, device) -> "AllocationLoss":
        """A copy there; this one stays where it is."""
        moved = copy.copy(self)
        moved.omega_con, moved.omega_div = self.omega_con.to(device), self.omega_div.to(device)
        return moved

    def phi(self, distance: Tensor, base_loss: Tensor | None = None) -> Tensor:
        """What the diversity term gains from each distance, (B,); `base_loss` (B,) is for the relative bound, which
        without it is a ValueError."""
        if self.bound is None:
            return distance
        if self.bound_form == "cap":
            return distance.clamp(max=self.bound)
        if self.bound_form == "relative":
            if base_loss is None:
                raise ValueError("the relative bound needs base_loss")
            return saturate(distance, self.bound * base_loss.detach())
        return saturate(distance, self.bound)

    def rest_points(self) -> Tensor:
        """D* of each class, (C,): where the loss has its minimum in D, as if nothing else acted on it.

        b ln(diversity omega_Div / (consistency omega_Con)), or 0 where that is negative (Chapter 11). ValueError unless
        the bound is exponential: the printed loss has no minimum.
        """
        if self.bound is None or self.bound_form != "exponential":
            raise ValueError(f"rest points need an exponential bound; bound={self.bound}, {self.bound_form}")
        push, pull = self.diversity * self.omega_div, self.consistency * self.omega_con
        return (self.bound * (push / pull).log()).clamp(min=0)

    def subset(self, y: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Which samples to predict twice when all would cost too much: rows, int64 (size,), and their weights, (size,).

        sum(weights * loss[rows]) has the expectation loss.mean() over the whole batch, whatever a row's chance to be
        drawn is. Ours is proportional to sqrt(omega_Div) of its class: once the predictions have parted they differ on
        minorities alone, and hardly any noise is added; chances by |omega_Con - omega_Div| add more than uniform ones
        (benchmarks/variance.py). The draw is systematic: no row twice, the most certain ones always. All on the CPU:
        y (B,) true classes, weights float32. ValueError for a size outside 1..B.
        """
        if not 1 <= size <= len(y):
            raise ValueError(f"size must lie in 1..{len(y)}, the batch, got {size}")
        priority = self.priority[y]
        certain = torch.zeros_like(y, dtype=torch.bool)
        while True:
            chance = priority * (size - certain.sum()) / priority[~certain].sum()
            if not (more := (chance > 1) & ~certain).any():
                break
            certain |= more
        chance[certain] = 1.0
        ticks = torch.arange(size) + torch.rand((), dtype=torch.float64, generator=generator)
        rows = torch.searchsorted(chance.cumsum(0), ticks, right=True).clamp(max=len(y) - 1)
        return rows, (1 / (len(y) * chance[rows])).float()

    def __call__(
        self, eps: Tensor, eps_general: Tensor, y: Tensor, base_loss: Tensor | None = None
    ) -> AllocationOutput:
        """eps, eps_general (B, C, H, W) of theta and theta^g; y (B,) the true classes; base_loss (B,) theta's, for the
        relative bound."""
        if self.stop_gradient:
            eps = eps.detach()
        difference = eps - eps_general
        if self.centred:
            difference = difference - difference.mean((2, 3), keepdim=True)
        distance = difference.pow(2).flatten(1).mean(1)
        con = self.consistency * self.omega_con[y] * distance
        div = self.diversity * self.omega_div[y] * self.phi(distance, base_loss)
        return AllocationOutput(self.lam * (con - div), distance)


PRESETS: dict[str, dict] = {
    "paper": dict(consistency=1.0, diversity=1.0, bound=None),  # as printed: no floor, diverges
    # the authors' later code: allocated nothing in our small runs (Chapter 07)
    "released": dict(consistency=1.0, diversity=0.2, bound=None),
    "bounded": dict(consistency=1.0, diversity=1.0, bound=0.1),  # ours, and the default
}
