"""ADA, the augmentation baseline of CBDM: random warps, told to the network by nine numbers.

Despite the name nothing adapts: each warp has a fixed probability (the pipeline that Karras et al., 2022, use for
diffusion). The network learns which change is which, and sampling asks for none: all nine numbers zero.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PROBABILITY = 0.12  # of each warp but the mirror, which has 1/2
SCALE = 2**0.2  # one standard deviation of size, and of stretching
TRANSLATION = 1 / 8  # one standard deviation, in image sizes
CONDITION_SIZE = 9


class Warp(NamedTuple):
    """What happens to each image, (B,) each; all zero is nothing."""

    mirror: Tensor  # 0 or 1: left and right
    flip: Tensor  # 0 or 1: top and bottom
    scale: Tensor  # enlarged SCALE**scale times
    rotation: Tensor  # radians
    stretch_axis: Tensor  # radians: the axis along which
    stretch: Tensor  # it is enlarged SCALE**stretch times, and shrunk as much across
    shift_x: Tensor  # in units of TRANSLATION times the width
    shift_y: Tensor

    def condition(self) -> Tensor:
        """The nine numbers that the network is told, float32 (B, 9)."""
        return torch.stack(
            [
                self.mirror,
                self.flip,
                self.scale,
                self.rotation.cos() - 1,
                self.rotation.sin(),
                self.stretch * self.stretch_axis.cos(),
                self.stretch * self.stretch_axis.sin(),
                self.shift_x,
                self.shift_y,
            ],
            dim=1,
        )

    def matrix(self) -> Tensor:
        """Where each point goes, in coordinates with the image in [-1, 1]^2: float32 (B, 3, 3), homogeneous."""
        one, zero = torch.ones_like(self.scale), torch.zeros_like(self.scale)

        def stack(*rows: tuple[Tensor, ...]) -> Tensor:
            return torch.stack([torch.stack(row, 1) for row in rows], 1)

        def scaling(x: Tensor, y: Tensor) -> Tensor:
            return stack((x, zero, zero), (zero, y, zero), (zero, zero, one))

        def rotation(angle: Tensor) -> Tensor:
            c, s = angle.cos(), angle.sin()
            return stack((c, -s, zero), (s, c, zero), (zero, zero, one))

        size, stretched = SCALE**self.scale, SCALE**self.stretch
        shift = 2 * TRANSLATION  # the image is 2 wide
        return (
            stack((one, zero, shift * self.shift_x), (zero, one, shift * self.shift_y), (zero, zero, one))
            @ rotation(self.stretch_axis)
            @ scaling(stretched, 1 / stretched)
            @ rotation(-self.stretch_axis)
            @ rotation(self.rotation)
            @ scaling(size * (1 - 2 * self.mirror), size * (1 - 2 * self.flip))
        )


def draw(n: int, generator: torch.Generator) -> Warp:
    """A random warp for each of n images, on the generator's device."""
    device = generator.device

    def uniform() -> Tensor:
        return torch.rand(n, generator=generator, device=device)

    def sometimes() -> Tensor:
        return (uniform() < PROBABILITY).float()

    def normal() -> Tensor:
        return torch.randn(n, generator=generator, device=device)

    def angle() -> Tensor:
        return math.pi * (2 * uniform() - 1)

    stretched, shifted = sometimes(), sometimes()
    return Warp(
        mirror=(uniform() < 0.5).float(),
        flip=(uniform() < 0.5).float() * sometimes(),
        scale=normal() * sometimes(),
        rotation=angle() * sometimes(),
        stretch_axis=angle() * stretched,
        stretch=normal() * stretched,
        shift_x=normal() * shifted,
        shift_y=normal() * shifted,
    )


def apply(images: Tensor, matrix: Tensor) -> Tensor:
    """Move the contents of images (B, C, S, S) by matrices (B, 3, 3): one bicubic warp, mirrored beyond the edges.

    ValueError for images that are not square. A matrix without an inverse, which no `Warp` has, is not noticed.
    """
    if images.shape[-1] != images.shape[-2]:
        raise ValueError(f"images must be square, got {tuple(images.shape[-2:])}")
    source = torch.linalg.inv_ex(matrix).inverse[:, :2]  # where each output pixel comes from; `inv` waits for the GPU
    grid = F.affine_grid(source, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(-1, 1)
