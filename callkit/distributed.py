"""Several processes, one a GPU, under torchrun: every number stays that of one process, up to rounding.

But for `branch_share` below 1: which samples are compared is then drawn for each process's share.

Each process draws the *whole* batch, with the same generators, and sends its own share of it through the network. It
receives the others' predictions, so base losses that look at the whole batch (OC, focal) need to know nothing of this.
Gradients are then summed over the processes.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from callkit.unet import take


def checked_device(name: str) -> torch.device:
    """The device of that name. ValueError unless it is cpu, cuda or cuda:N, and here."""
    if not (found := re.fullmatch(r"cpu|cuda(:(\d+))?", name)):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name}")
    if name != "cpu" and int(found[2] or 0) >= (here := torch.cuda.device_count()):
        raise ValueError(f"there is no device {name}: PyTorch finds {here} CUDA devices here")
    return torch.device(name)


@contextmanager
def started(device: str) -> Iterator[str]:
    """Within the block the processes that torchrun started know each other; yields this process's device.

    Without torchrun it does nothing. ValueError for one GPU by its number, which would be that of all processes, and
    for more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if device.startswith("cuda:"):
        raise ValueError(f"device must be cuda under torchrun, which gives each process its own GPU; got {device}")
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(checked_device(device))
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=1))  # the first process measures while the others wait
    yield device
    # Not after an exception: the others may wait for a sum that this process will not join, until torchrun ends them.
    dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are, 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    """Return when all processes have come here."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1))  # on the CPU: a barrier that needs no GPU


def any_process(flag: bool) -> bool:
    """Whether the flag is up in any process."""
    if world_size() == 1:
        return flag
    flags = torch.tensor([float(flag)])
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up every gradient over the processes, in one message."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def _gather(own: Tensor) -> Tensor:
    """All processes' tensors in the order of their ranks; gradients flow to one's own part alone."""
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own.detach().contiguous())
    parts[rank()] = own
    return torch.cat(parts)


class Sharded(nn.Module):
    """A U-Net that takes the whole batch, computes this process's share, and returns the whole prediction.

    The batch, and `rows` where given, must divide by the number of processes; the i-th part of `rows` must point into
    the i-th part of the batch.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def _share(self, *inputs: Tensor) -> tuple[slice, list[Tensor], list[Tensor | None]]:
        masks = self.model.dropout_masks(inputs[0])  # of the whole batch, as one process would draw them
        size = len(inputs[0]) // world_size()
        own = slice(rank() * size, (rank() + 1) * size)
        return own, [v[own] for v in inputs], [take(m, own) for m in masks]

    def forward(self, *inputs: Tensor) -> Tensor:
        _, own, masks = self._share(*inputs)
        return _gather(self.model(*own, masks=masks))

    def forward_both(self, *inputs: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        where, own, masks = self._share(*inputs)
        if rows is not None:
            rows = rows.chunk(world_size())[rank()] - where.start
        eps, general = self.model.forward_both(*own, rows=rows, masks=masks)
        return _gather(eps), _gather(general)
