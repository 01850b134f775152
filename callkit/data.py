"""Data sets by name, and their long-tailed versions.

Images are uint8 in memory, or in a memory-mapped file: decoding happens once, conversion to floats per batch on the
device. Chapter 02 derives the exponential rule; Section 5.1 of the paper defines the splits.
"""

import gzip
import hashlib
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from callkit import files, folders
from callkit.config import Settings


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

    @property
    def frequency(self) -> Tensor:
        """Share of the images that each class has, float32 (num_classes,)."""
        return torch.tensor(self.counts / len(self), dtype=torch.float32)

    def subset(self, index) -> "ImageSet":
        """A copy of the images at these positions, in their order."""
        index = torch.as_tensor(index)
        return ImageSet(self.images[index], self.labels[index], self.class_names)


@dataclass(frozen=True)
class LongTailed:
    """A whole set, and the positions in it that are trained on.

    `train` are the images kept, `unseen` those left out; each is copied when first asked for, unless it is all. `test`
    is a set apart, of which nothing is ever trained on; `reference` is what generated images are compared with: that,
    or the whole set.
    """

    full: ImageSet
    kept: np.ndarray
    test: ImageSet | None = None

    @property
    def reference(self) -> ImageSet:
        return self.full if self.test is None else self.test

    @cached_property
    def train(self) -> ImageSet:
        everything = np.array_equal(self.kept, np.arange(len(self.full)))  # then a file need not be read into memory
        return self.full if everything else self.full.subset(self.kept)

    @cached_property
    def left_out(self) -> np.ndarray:
        return np.setdiff1d(np.arange(len(self.full)), self.kept)

    @cached_property
    def unseen(self) -> ImageSet:
        return self.full.subset(self.left_out)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 [-1, 1]."""
    return images.float().div_(127.5).sub_(1.0)


def to_uint8(x: Tensor) -> Tensor:
    """float [-1, 1] to uint8 0..255, rounded; values outside are clipped."""
    return x.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def fingerprint(images: Tensor) -> str:
    """16 hexadecimal digits that tell one uint8 tensor (N, C, H, W) from another."""
    pixels = hashlib.sha256(repr(tuple(images.shape)).encode())
    for part in images.split(1000):
        pixels.update(part.numpy().tobytes())
    return pixels.hexdigest()[:16]


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
            f"the largest may keep {n_max} images, as many as there are of every class, so it can be at most {n_max}; "
            "None, on the command line natural, keeps all images"
        )
    return counts


def long_tailed_indices(labels: Tensor, counts: np.ndarray, draw: int = 0) -> np.ndarray:
    """Indices of the kept images, class by class; those of draw 0 are identical to the field's published subsets.

    NumPy's legacy generator, seeded with `draw`, once; each class's indices shuffled in place, the first N_c kept.
    ValueError if a class has fewer images than it is to keep.
    """
    rng, labels, kept = np.random.RandomState(draw), labels.numpy(), []
    for c, n in enumerate(counts):
        index = np.flatnonzero(labels == c)
        if n > len(index):
            raise ValueError(f"class {c} has {len(index)} images, fewer than the {n} to keep")
        rng.shuffle(index)
        kept.append(index[:n])
    return np.concatenate(kept)


def splits(counts) -> dict[str, list[int]]:
    """Many / Medium / Few: thirds of the classes by size, the remainder to Few (Section 5.1).

    10 classes: 0-2, 3-5, 6-9; 100 classes: 0-32, 33-65, 66-99. Two classes are Many and Few. ValueError for one
    class alone.
    """
    order = np.argsort(-np.asarray(counts), kind="stable").tolist()
    if len(order) < 2:
        raise ValueError(f"splits need at least 2 classes, got {len(order)}")
    if len(order) == 2:
        return {"many": order[:1], "few": order[1:]}
    third = len(order) // 3
    return {"many": order[:third], "medium": order[third : 2 * third], "few": order[2 * third :]}


def _digits(root: Path, size: int) -> ImageSet:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[:, None]  # (1797, 1, 8, 8), 17 grey levels
    return ImageSet(
        torch.from_numpy(images),
        torch.from_numpy(data.target).long(),
        tuple(str(d) for d in range(10)),
    )


def _torchvision(name: str, root: Path, train: bool = True):
    from torchvision import datasets

    root.mkdir(parents=True, exist_ok=True)
    # one process downloads, the others wait; where nothing can be written there is nothing to wait for
    alone = files.alone(root / f".{name}.lock") if os.access(root, os.W_OK) else nullcontext()
    try:
        with alone:
            return getattr(datasets, name)(root, train=train, download=True)
    except (URLError, RuntimeError, ConnectionError) as error:
        raise OSError(f"{name} is not in {root}, and could not be downloaded: {error}") from error


def _cifar(name: str, root: Path, size: int) -> ImageSet:
    data = _torchvision(name, root)
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(data.targets), tuple(data.classes))


DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def _fashion(root: Path, size: int, train: bool = True) -> ImageSet:
    """28 x 28, padded with black to 32, and averaged over squares of pixels for smaller sizes."""
    if DEBIAN_FASHION.is_dir():
        part = "train" if train else "t10k"
        with gzip.open(DEBIAN_FASHION / f"{part}-images-idx3-ubyte.gz") as f:
            images = torch.frombuffer(bytearray(f.read()[16:]), dtype=torch.uint8).view(-1, 28, 28)
        with gzip.open(DEBIAN_FASHION / f"{part}-labels-idx1-ubyte.gz") as f:
            labels = torch.frombuffer(bytearray(f.read()[8:]), dtype=torch.uint8).long()
    else:
        data = _torchvision("FashionMNIST", root, train)
        images, labels = data.data, data.targets.long()
    images = F.pad(images[:, None], (2, 2, 2, 2))
    if size < 32:
        images = F.avg_pool2d(images.float(), 32 // size).round().to(torch.uint8)
    return ImageSet(images, labels, FASHION)


CACHE = "callkit-cache"  # in the data root: decoded images


def _celeba_hq(root: Path, size: int) -> ImageSet:
    """Female is class 0, the majority once made long-tailed; Male is class 1."""
    folder = root / "CelebAMask-HQ"
    pictures, attributes = folder / "CelebA-HQ-img", folder / "CelebAMask-HQ-attribute-anno.txt"
    if not pictures.is_dir() or not attributes.is_file():
        raise FileNotFoundError(
            f"celeba-hq has to be fetched by hand: get CelebAMask-HQ.zip from "
            f"https://github.com/switchablenorms/CelebAMask-HQ and unpack it in {root}, so that {pictures}/ holds "
            f"0.jpg to 29999.jpg and {attributes} the attributes. Found there: {folders.listing(folder)}"
        )
    _, names, *lines = attributes.read_text().splitlines()
    male = 1 + names.split().index("Male")
    rows = [line.split() for line in lines if line.strip()]
    paths = [pictures / row[0] for row in rows]
    if missing := [p for p in paths if not p.exists()]:
        raise FileNotFoundError(f"{attributes} lists {missing[0].name}, which is not in {pictures}")
    labels = torch.tensor([int(row[male] == "1") for row in rows])
    return ImageSet(folders.load_files(paths, size, root / CACHE), labels, ("Female", "Male"))


def _imagefolder(folder: Path, root: Path, size: int) -> ImageSet:
    classes = folders.class_folders(folder)
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(p) for p in classes.values()]))
    paths = [p for of_class in classes.values() for p in of_class]
    return ImageSet(folders.load_files(paths, size, root / CACHE), labels, tuple(classes))


def _artbench10(root: Path, size: int) -> ImageSet:
    """Classes in alphabetical order. The paper's order is not stated, and is another: it counts "realism" among Few."""
    folder = root / "artbench-10-imagefolder-split" / "train"
    if not folder.is_dir():
        raise FileNotFoundError(
            "artbench10 has to be fetched by hand: get artbench-10-imagefolder-split.tar from "
            f"https://github.com/liaopeiyuan/artbench and unpack it in {root}, so that {folder}/ holds one folder "
            f"per style. Found in {root}: {folders.listing(root)}"
        )
    return _imagefolder(folder, root, size)


class DataSet(NamedTuple):
    """How a data set comes by name."""

    load: Callable[[Path, int], ImageSet]
    sizes: tuple[int, ...]  # image sizes that it may have, the default first; decoded pictures may have any
    load_test: Callable[[Path, int], ImageSet] | None = None  # a balanced test set, for those whose reference it is


PICTURE_SIZES = (64, *range(4, 1025))
DATASETS = {
    "digits": DataSet(_digits, (8,)),
    "fashion-mnist": DataSet(_fashion, (32, 16, 8), partial(_fashion, train=False)),
    "cifar10": DataSet(partial(_cifar, "CIFAR10"), (32,)),
    "cifar100": DataSet(partial(_cifar, "CIFAR100"), (32,)),
    "celeba-hq": DataSet(_celeba_hq, PICTURE_SIZES),
    "artbench10": DataSet(_artbench10, (256, *PICTURE_SIZES)),
}
IMAGEFOLDER = "imagefolder:"  # and a path: any folder of one folder of images per class


def find(dataset: str) -> DataSet:
    """The data set of that name. ValueError for an unknown one."""
    if path := dataset.removeprefix(IMAGEFOLDER) if dataset.startswith(IMAGEFOLDER) else "":
        return DataSet(partial(_imagefolder, Path(path).expanduser()), PICTURE_SIZES)
    if dataset not in DATASETS:
        raise ValueError(f"unknown dataset {dataset!r}; known: {', '.join(DATASETS)}, {IMAGEFOLDER}PATH")
    return DATASETS[dataset]


def chosen_size(dataset: str, image_size: int | None) -> int:
    """That image size, or for None the data set's own. ValueError for one that it cannot have, and an unknown name."""
    sizes = find(dataset).sizes
    size = image_size or sizes[0]
    if size not in sizes:
        allowed = "4 to 1024" if set(PICTURE_SIZES) <= set(sizes) else ", ".join(map(str, sizes))
        raise ValueError(f"image_size of {dataset} can be {allowed}; got {size}")
    return size


def check_held_out(held_out: float, imbalance_ratio: float | None) -> None:
    """ValueError for images held out of a data set that is made long-tailed."""
    if held_out and imbalance_ratio is not None:
        raise ValueError(
            f"held_out is for a data set's own counts (imbalance_ratio None, or natural); "
            f"at {imbalance_ratio:g} the images left out are held out already"
        )


def load(dataset: str, root: str | Path = "data", image_size: int | None = None) -> ImageSet:
    """The whole training set of that name, at its own image size or the one asked for.

    "imagefolder:PATH" is any folder that holds one folder of images per class. Others are downloaded to `root` if
    they do not come with a package, or must be put there: FileNotFoundError says what and where, OSError that a
    download failed. ValueError for an unknown name, an image size that the set cannot have, fewer than two classes in a
    folder or a file in it that cannot be read as an image.
    """
    return find(dataset).load(Path(root), chosen_size(dataset, image_size))


def load_long_tailed(
    dataset: str,
    imbalance_ratio: float | None,
    root: str | Path = "data",
    image_size: int | None = None,
    held_out: float = 0.0,
    draw: int = 0,
) -> LongTailed:
    """`dataset` made long-tailed, in the order of its classes; with imbalance_ratio=None its counts stay as they are.

    N_max is the size of the smallest class, so that every class can fill its share; for celeba-hq, whose majority is
    to be the larger class, it is N / C, as in the field's code. `held_out`, for imbalance_ratio=None alone, is the
    share of each class that is not trained on, rounded to whole images; ValueError if it leaves a class empty. Which
    images are kept is a function of `draw` alone. A test set comes along for those of DATASETS that have one.
    """
    check_held_out(held_out, imbalance_ratio)
    full, load_test = load(dataset, root, image_size), find(dataset).load_test
    test = load_test(Path(root), full.images.shape[-1]) if load_test else None
    if imbalance_ratio is None:
        counts = full.counts - np.rint(held_out * full.counts).astype(int)
        if counts.min() < 1:
            name = full.class_names[counts.argmin()]
            raise ValueError(f"held_out {held_out:g} leaves no training image of class {name}")
        kept = long_tailed_indices(full.labels, counts, draw) if held_out else np.arange(len(full))
        return LongTailed(full, kept, test)
    n_max = len(full) // full.num_classes if dataset == "celeba-hq" else int(full.counts.min())
    counts = long_tailed_counts(n_max, full.num_classes, imbalance_ratio)
    return LongTailed(full, long_tailed_indices(full.labels, counts, draw), test)


def load_for(run: Settings, root: str | Path = "data") -> LongTailed:
    """The data of a run. The subset is part of the data set's definition, draw 0 whatever the run's seed; with
    `run.redraw` it is draw 1 + seed."""
    draw = 1 + run.seed if run.redraw else 0
    return load_long_tailed(run.dataset, run.imbalance_ratio, root, run.image_size, run.held_out, draw)
