"""Capacity allocation, Eq. (4)-(6): keep theta^g like theta on majorities, push them apart on minorities."""

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


BOUND_FORMS = ("exponential", "cap", "relative")  # of phi; Chapter 05 compares them


class AllocationOutput(NamedTuple):
    loss: Tensor  # (B,) lambda (L_Con + L_Div)
    distance: Tensor  # (B,) D


class AllocationLoss:
    """lambda L_CALL of Eq. (4)-(6), per sample:

        D = mean over pixels of (eps_theta - eps_theta^g)^2
        lambda (consistency omega_Con D - diversity omega_Div phi(D))

    With phi(D) = D, the printed loss, any class with omega_Con < omega_Div gains without limit by pushing
    D up, and training diverges (Chapter 05). A bounded phi has the same gradient near D = 0 and a floor:

    bound_form     "exponential" is `saturate`; "cap" is min(D, b); "relative" is `saturate` with b times the
                   sample's base loss in place of b
    stop_gradient  compare theta^g with a constant theta, so that the loss moves theta^g alone
    centred        D of the difference *without its mean over pixels*, per channel: adding a constant to all pixels,
                   the cheapest way to differ, then gains nothing (Chapter 06)
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
        self.lam, self.consistency, self.diversity = lam, consistency, diversity
        self.bound, self.bound_form = bound, bound_form
        self.stop_gradient, self.centred = stop_gradient, centred

    def to(self, device) -> "AllocationLoss":
        self.omega_con, self.omega_div = self.omega_con.to(device), self.omega_div.to(device)
        return self

    def phi(self, distance: Tensor, base_loss: Tensor | None = None) -> Tensor:
        """What the diversity term gains from each distance, (B,); `base_loss` (B,) is for the relative bound."""
        if self.bound is None:
            return distance
        if self.bound_form == "cap":
            return distance.clamp(max=self.bound)
        if self.bound_form == "relative":
            return saturate(distance, self.bound * base_loss.detach())
        return saturate(distance, self.bound)

    def __call__(
        self, eps: Tensor, eps_general: Tensor, y: Tensor, base_loss: Tensor | None = None
    ) -> AllocationOutput:
        """eps, eps_general (B, C, H, W) of theta and theta^g; y (B,) the true classes; base_loss (B,) theta's."""
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
    "released": dict(consistency=1.0, diversity=0.2, bound=None),  # the authors' later code: allocates nothing
    "bounded": dict(consistency=1.0, diversity=1.0, bound=0.1),  # ours, and the default
}
