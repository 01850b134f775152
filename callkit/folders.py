"""Folders of images as one uint8 tensor: decoded once, then kept as a memory-mapped file.

A data set of 256 x 256 images does not fit into memory, and decoding it takes longer than an epoch. The cached file
costs neither: the operating system reads the parts that are used.
"""

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm.auto import tqdm

from callkit.files import made_once

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def listing(folder: Path) -> str:
    """The first names in a folder, for an error message."""
    if not folder.is_dir():
        return "no such folder"
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) + more) if names else "nothing"


def class_folders(root: Path) -> dict[str, list[Path]]:
    """Class name -> its images' paths, both sorted; a class is a folder in `root`. What is hidden is skipped.

    FileNotFoundError if `root` is no folder, ValueError if it has no class folder or one without images. A warning
    names a folder in which other files lie: they may be images of a kind that Pillow alone cannot read, such as HEIC.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(folders) < 2:
        raise ValueError(f"{root} must hold one folder of images per class, at least two; found {listing(root)}")
    classes = {}
    for folder in folders:
        found = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
        classes[folder.name] = [p for p in found if p.suffix.lower() in SUFFIXES]
        if not classes[folder.name]:
            raise ValueError(
                f"{folder} has no images ({', '.join(sorted(SUFFIXES))}); found {listing(folder)}. "
                "Every class needs one, or remove the folder"
            )
        if others := [p.name for p in found if p.suffix.lower() not in SUFFIXES]:
            warnings.warn(
                f"{folder}: {len(others)} of {len(found)} files are left out, {others[0]} for one; "
                f"images end in {', '.join(sorted(SUFFIXES))}",
                stacklevel=2,
            )
    return classes


def decode(path: Path, size: int) -> np.ndarray:
    """One image as uint8 (3, size, size), whatever its format.

    Turned upright (EXIF), set on white where transparent, grey made RGB, 16 bits made 8, the middle square resized
    (bicubic, with anti-aliasing). ValueError naming the file if it cannot be read, or has pixels of no known range.
    """
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
            if image.mode == "I" and image.format != "PNG":  # older Pillows give a PNG of 16 bits this mode, too
                raise ValueError("its pixels are integers of no known range; save it with 8 or 16 bits")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # Pillow would clip them
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    return np.asarray(square).transpose(2, 0, 1)


def load_files(paths: list[Path], size: int, cache: Path) -> Tensor:
    """Images uint8 (N, 3, size, size), memory-mapped from a file in the folder `cache`.

    The file's name holds a hash of the paths, sizes and times of change of all images, and of `size`: changed images
    are decoded again. Nothing that is written to the tensor reaches the file.
    """
    state = [(str(p.resolve()), (s := p.stat()).st_size, s.st_mtime_ns) for p in paths]
    key = hashlib.sha256(repr((size, state)).encode()).hexdigest()[:16]

    def make(path: Path) -> None:
        array = np.lib.format.open_memmap(path, "w+", np.uint8, (len(paths), 3, size, size))
        if hasattr(os, "posix_fallocate"):  # a disk that is too small should say so now, not kill the process later
            size_of_all = path.stat().st_size
            try:
                with path.open("r+b") as f:
                    os.posix_fallocate(f.fileno(), 0, size_of_all)
            except OSError as error:
                raise OSError(f"cannot write {size_of_all / 1e6:.0f} MB to {cache}: {error.strerror}") from error
        for i, p in enumerate(tqdm(paths, desc="decoding, once", unit="img", disable=len(paths) < 1000)):
            array[i] = decode(p, size)
        array.flush()

    return torch.from_numpy(np.load(made_once(cache / f"images-{size}-{key}.npy", make), mmap_mode="c"))
