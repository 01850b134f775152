"""Shared by the tests: one thread (the tensors are tiny, and two cores may be busy), no downloads, a small network."""

import os

import pytest
import torch

from callkit.capacity import expert_weights, reserve
from callkit.unet import UNet

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # and in what the tests start
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports diffusers: no test downloads a model


def make_unet(seed: int = 0, dropout: float = 0.0, **options) -> UNet:
    """A small U-Net with random weights everywhere, so that no branch is silent."""
    torch.manual_seed(seed)
    sizes = dict(channels=8, channel_mult=(1, 2), attention_levels=(1,), num_res_blocks=1)
    model = UNet(in_channels=1, num_classes=4, dropout=dropout, **(sizes | options))
    for p in model.parameters():
        p.data.normal_(0, 0.2)
    return model


@pytest.fixture
def unet() -> UNet:
    return make_unet().eval()


@pytest.fixture
def reserved() -> UNet:
    """With an expert that is not zero."""
    model = reserve(make_unet(), rank=0.5)
    for e in expert_weights(model).values():
        e.B.data.normal_(0, 0.2)
    return model.eval()


@pytest.fixture
def matmul():
    """PyTorch's settings of matrix products on a GPU, put back after the test (monkeypatch cannot)."""
    settings = torch.backends.cuda.matmul
    name = "fp32_precision" if hasattr(settings, "fp32_precision") else "allow_tf32"  # PyTorch before 2.9
    before = getattr(settings, name)
    yield settings
    setattr(settings, name, before)


@pytest.fixture
def inputs():
    """(x_t, t, y) of four samples, the last with the Null condition."""
    torch.manual_seed(1)
    return torch.randn(4, 1, 8, 8), torch.tensor([0, 10, 500, 999]), torch.tensor([0, 1, 3, 4])
