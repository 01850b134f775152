"""Data sets by name, and their long-tailed versions.

The whole set lives in memory as uint8: decoding happens once, conversion to floats per batch on the device.
Chapter 01 derives the exponential rule; Section 5.1 of the paper defines the splits.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Labelled images: `images` uint8 (N, C, H, W) in 0..255, `labels` int64 (N,), one name per class."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self):
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be uint8 (N, C, H, W), got {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.shape != (len(self.images),) or self.labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be int64 ({len(self.images)},), got {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.num_classes:
            raise ValueError(
                f"labels must lie in 0..{self.num_classes - 1}, got {int(self.labels.min())}..{int(self.labels.max())}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def counts(self) -> np.ndarray:
        """Images per class, int64 (num_classes,)."""
        return np.bincount(self.labels.numpy(), minlength=self.num_classes)

    def subset(self, index) -> "ImageSet":
        index = torch.as_tensor(index)
        return ImageSet(self.images[index], self.labels[index], self.class_names)


@dataclass(frozen=True)
class LongTailed:
    """A balanced set and the long-tailed part of it that is trained on.

    `full` is the balanced set; `train` the images kept, `unseen` the images left out.
    """

    full: ImageSet
    train: ImageSet
    unseen: ImageSet


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 [-1, 1]."""
    return images.float().div_(127.5).sub_(1.0)


def to_uint8(x: Tensor) -> Tensor:
    """float [-1, 1] to uint8 0..255, rounded; values outside are clipped."""
    return x.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def long_tailed_counts(n_max: int, num_classes: int, imbalance_ratio: float) -> np.ndarray:
    """N_c = int(n_max * IR^(-c / (C-1))): the exponential profile of Cao et al. (2019), Section 5.1.

    Returns int64 (num_classes,), largest class first. ValueError if IR < 1 or a class would be empty.
    """
    if not imbalance_ratio >= 1:
        raise ValueError(f"imbalance_ratio must be at least 1 (balanced), got {imbalance_ratio}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    # The same floating-point expression as the published subsets: truncation makes the form matter.
    counts = np.array([int(n_max * (1 / imbalance_ratio) ** (c / (num_classes - 1))) for c in range(num_classes)])
    if counts[-1] < 1:
        raise ValueError(
            f"imbalance_ratio {imbalance_ratio:g} leaves the smallest class empty: "
            f"the largest has {n_max} images, so it can be at most {n_max}"
        )
    return counts


def long_tailed_indices(labels: Tensor, counts: np.ndarray) -> np.ndarray:
    """Indices of the kept images, class by class, identical to the field's published subsets.

    NumPy's legacy generator, seed 0, once; each class's indices shuffled in place, the first N_c kept.
    The subset is part of the data set's definition, so it does not depend on a run's seed.
    """
    rng, labels, kept = np.random.RandomState(0), labels.numpy(), []
    for c, n in enumerate(counts):
        index = np.flatnonzero(labels == c)
        rng.shuffle(index)
        kept.append(index[:n])
    return np.concatenate(kept)


def splits(counts) -> dict[str, list[int]]:
    """Many / Medium / Few: thirds of the classes by size, the remainder to Few (Section 5.1).

    10 classes: 0-2, 3-5, 6-9; 100 classes: 0-32, 33-65, 66-99. At least 3 classes.
    """
    order = np.argsort(-np.asarray(counts), kind="stable").tolist()
    third = len(order) // 3
    if third < 1:
        raise ValueError(f"splits need at least 3 classes, got {len(order)}")
    return {"many": order[:third], "medium": order[third : 2 * third], "few": order[2 * third :]}


def _digits(root: Path) -> ImageSet:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[:, None]  # (1797, 1, 8, 8), 17 grey levels
    return ImageSet(
        torch.from_numpy(images),
        torch.from_numpy(data.target).long(),
        tuple(str(d) for d in range(10)),
    )


def _cifar(name: str, root: Path) -> ImageSet:
    from torchvision import datasets

    data = getattr(datasets, name)(root, train=True, download=True)
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(data.targets), tuple(data.classes))


DATASETS = {
    "digits": _digits,
    "cifar10": lambda root: _cifar("CIFAR10", root),
    "cifar100": lambda root: _cifar("CIFAR100", root),
}


def load(dataset: str, root: str | Path = "data") -> ImageSet:
    """The balanced training set of that name; downloaded to `root` if it does not come with a package."""
    if dataset not in DATASETS:
        raise ValueError(f"unknown dataset {dataset!r}; known: {', '.join(DATASETS)}")
    return DATASETS[dataset](Path(root))


def load_long_tailed(dataset: str, imbalance_ratio: float, root: str | Path = "data") -> LongTailed:
    """`dataset` made long-tailed: N_max is the size of its smallest class, so every class can fill its share."""
    full = load(dataset, root)
    counts = long_tailed_counts(int(full.counts.min()), full.num_classes, imbalance_ratio)
    kept = long_tailed_indices(full.labels, counts)
    left = np.setdiff1d(np.arange(len(full)), kept)
    return LongTailed(full, full.subset(kept), full.subset(left))
