"""Capacity reservation, Eq. (3): W = W^g + BA on chosen weights of any module.

`reserve` adds the low-rank expert before training, `expert_scale` turns it down or off, `merge` folds it in.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

WHERE: dict[str, Callable[[str, nn.Module], bool]] = {
    # the 27 convolutions of the authors' later release
    "up-conv3x3": lambda name, m: name.startswith("up.") and isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3),
    # every matrix of the up path: also shortcuts, attention and the embedding's projections
    "up": lambda name, m: name.startswith("up.") and isinstance(m, nn.Conv2d | nn.Linear),
    # of these the projections of the time-and-class embedding alone, and all but them
    "up-emb": lambda name, m: name.startswith("up.") and name.endswith(".emb"),
    "up-no-emb": lambda name, m: WHERE["up"](name, m) and not WHERE["up-emb"](name, m),
    # "up" and the output convolution
    "up-tail": lambda name, m: name.startswith(("up.", "tail.")) and isinstance(m, nn.Conv2d | nn.Linear),
    # every matrix but the class embedding
    "all": lambda name, m: isinstance(m, nn.Conv2d | nn.Linear),
}


# What is fine as a rank, and how to say it. An integer may be meant as a number of dimensions.
RANK: tuple[Callable, str] = (
    lambda rank: isinstance(rank, float) and 0 < rank <= 1,
    "in (0, 1], a share of min(d, k) such as 0.1, or 1.0 for full rank",
)


class LowRank(nn.Module):
    """W -> W + scale * BA. A convolution's weight is the matrix of shape (out, in * kh * kw)."""

    def __init__(self, weight: Tensor, rank: float):
        super().__init__()
        d, k = weight.shape[0], weight[0].numel()
        r = max(1, int(rank * min(d, k)))
        self.B = nn.Parameter(weight.new_zeros(d, r))  # zero: theta starts equal to theta^g
        self.A = nn.Parameter(weight.new_empty(r, k).uniform_(-1, 1) / math.sqrt(k))
        self.scale = 1.0

    @property
    def size(self) -> int:
        """Number of parameters of A and B."""
        return self.A.numel() + self.B.numel()

    def forward(self, weight: Tensor) -> Tensor:
        if self.scale == 0:
            return weight
        with torch.autocast(weight.device.type, enabled=False):  # weights are float32 before they are rounded
            product = self.B @ self.A
        return torch.add(weight, product.view_as(weight), alpha=self.scale)


def expert_weights(module: nn.Module) -> dict[str, LowRank]:
    """Name of each decomposed weight -> its low-rank expert."""
    inside = "parametrizations.weight.0"
    return {name.removesuffix(inside).rstrip("."): m for name, m in module.named_modules() if isinstance(m, LowRank)}


def reserve(module: nn.Module, rank: float = 0.1, where: str | Callable[[str, nn.Module], bool] = "up") -> nn.Module:
    """Decompose the chosen weights in place, Eq. (3), and return `module`.

    rank   share of min(d, k) given to the expert, in (0, 1], and no integer; the paper's is 1/10. At least rank 1.
    where  a name from `WHERE`, or a function (name, module) -> bool for modules other than our U-Net.

    ValueError if the rank is out of range, the name unknown, nothing matches, a match has no weight or a parametrized
    one, or the module was decomposed before.
    """
    fine, allowed = RANK
    if not fine(rank):
        raise ValueError(f"rank must be {allowed}, got {rank}")
    if isinstance(where, str):
        if where not in WHERE:
            raise ValueError(f"unknown where {where!r}; known: {', '.join(WHERE)}, or a function")
        where = WHERE[where]
    if expert_weights(module):
        raise ValueError("this module has reserved capacity already")
    chosen = {name: m for name, m in module.named_modules() if where(name, m)}
    if not chosen:
        raise ValueError("`where` matches no module")
    for name, m in chosen.items():
        if parametrize.is_parametrized(m) or not isinstance(getattr(m, "weight", None), Tensor):
            raise ValueError(
                f"`where` matches {name or 'the whole module'}, which has no weight of its own to decompose"
            )
    for m in chosen.values():
        # unsafe: skips a trial run of the parametrization, which is shape-preserving by construction
        parametrize.register_parametrization(m, "weight", LowRank(m.weight.detach(), rank), unsafe=True)
    return module


@contextmanager
def expert_scale(module: nn.Module, scale: float) -> Iterator[None]:
    """Within the block the module computes with W^g + scale * BA: 1 is theta, 0 is theta^g, between is the dial."""
    experts = expert_weights(module).values()
    before = [e.scale for e in experts]
    for e in experts:
        e.scale = scale
    try:
        yield
    finally:
        for e, s in zip(experts, before, strict=True):
            e.scale = s


def merge(module: nn.Module, scale: float = 1.0) -> nn.Module:
    """A plain copy with W = W^g + scale * BA stored: no parametrization, no extra cost (Section 4.2, Inference)."""
    merged = copy.deepcopy(module)
    with torch.no_grad(), expert_scale(merged, scale):
        for name in expert_weights(merged):
            m = merged.get_submodule(name)
            weight = m.weight.clone()
            # Not parametrize.remove_parametrizations: it strips the class, which a copy shares with its original.
            m.__class__ = parametrize.type_before_parametrizations(m)
            del m.parametrizations
            m.weight = nn.Parameter(weight)
    return merged
