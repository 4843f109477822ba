"""Offsets of crops, the symmetries of the square, and what a network sees of pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SYMMETRIES = 8


@dataclass(frozen=True)
class Normalization:
    """(pixels − mean) / std of each channel, what a network sees in place of [0, 1] (BasicSR).

    Args:
        mean, std: of red, green and blue.
    """

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def apply(self, images: Tensor) -> Tensor:
        """[0, 1] → what the network sees; (…, 3, H, W)."""
        mean, std = (images.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (images - mean) / std

    def undo(self, images: Tensor) -> Tensor:
        """What the network gives → about [0, 1]; (…, 3, H, W)."""
        mean, std = (images.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return images * std + mean


def symmetry(image: Tensor, index: int, dims: tuple[int, int] = (-2, -1)) -> Tensor:
    """One of the 8 symmetries of the square: quarter turns `index // 2`, then a flip if odd.

    Args:
        image: on any device; quarter turns swap the sides of one that is not square.
        index: 0 … 7.
        dims: where height and width are.
    """
    turned = torch.rot90(image, index // 2, dims)
    return turned.flip(dims[0]) if index % 2 else turned


def undo_symmetry(image: Tensor, index: int, dims: tuple[int, int] = (-2, -1)) -> Tensor:
    """The inverse of `symmetry` with the same index."""
    flipped = image.flip(dims[0]) if index % 2 else image
    return torch.rot90(flipped, -(index // 2), dims)


def draw_offset(length: int, crop_size: int, patch_size: int, rng: np.random.Generator) -> int:
    """Offset of a patch along one axis: that of a crop in the image plus that in the crop.

    Released behaviour: a crop of the largest patch size is cut first and the phase's patch from
    it, so small patches come from the image's middle more often than a single draw would give.
    """
    offset = rng.integers(length - crop_size + 1)
    return int(offset + rng.integers(crop_size - patch_size + 1))
