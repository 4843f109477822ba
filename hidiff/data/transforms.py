"""Paired crops and the symmetries of the square, on numpy images (H, W, C)."""

from __future__ import annotations

import numpy as np

SYMMETRIES = 8


def symmetry(image: np.ndarray, index: int) -> np.ndarray:
    """One of the 8 symmetries of the square: quarter turns `index // 2`, then a flip if odd.

    Works on (H, W, …) arrays; quarter turns swap the sides of non-square ones.
    """
    turned = np.rot90(image, k=index // 2)
    return turned[::-1] if index % 2 else turned


def undo_symmetry(image: np.ndarray, index: int) -> np.ndarray:
    """The inverse of `symmetry` with the same index."""
    flipped = image[::-1] if index % 2 else image
    return np.rot90(flipped, k=-(index // 2))


def draw_offset(length: int, crop_size: int, patch_size: int, rng: np.random.Generator) -> int:
    """Offset of a patch along one axis: that of a crop in the image plus that in the crop.

    Released behaviour: a crop of the largest patch size is cut first and the phase's patch from
    it, so small patches come from the image's middle more often than a single draw would give.
    """
    offset = rng.integers(length - crop_size + 1)
    return int(offset + rng.integers(crop_size - patch_size + 1))
