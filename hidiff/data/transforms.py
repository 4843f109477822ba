"""Offsets of crops and the symmetries of the square."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SYMMETRIES = 8


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
