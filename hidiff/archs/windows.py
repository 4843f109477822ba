"""Overlapping windows along an axis, and the weights that blend what is computed in them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Windows of one size that cover an axis.

    Args:
        size: of a window, in pixels of the image.
        overlap: the least that neighbours share, in pixels; less than `size`.
    """

    size: int
    overlap: int

    def along(self, length: int, scale: int = 1) -> list[tuple[slice, Tensor]]:
        """The windows of an axis and the weight of each of their pixels, float32.

        An axis that is no longer than a window has one, with weights of 1. Otherwise the windows
        lie at even distances. In what two of them share, the weights are a raised cosine; at every
        pixel they sum to 1.

        Args:
            length: of the axis, in pixels of the image over `scale`.
            scale: how many of the image's pixels one of the axis stands for.
        """
        size, overlap = self.size // scale, self.overlap // scale
        if length <= size:
            return [(slice(0, length), torch.ones(length))]
        count = math.ceil((length - overlap) / (size - overlap))
        starts = [round(index * (length - size) / (count - 1)) for index in range(count)]
        pixels = torch.arange(size, dtype=torch.float64) + 0.5
        weights = torch.zeros(count, length, dtype=torch.float64)
        for index, start in enumerate(starts):
            rise = starts[index - 1] + size - start if index else 0
            fall = start + size - starts[index + 1] if index + 1 < count else 0
            weight = torch.ones(size, dtype=torch.float64)
            for shared, distance in ((rise, pixels), (fall, size - pixels)):
                if shared:
                    weight *= (math.pi / 2 * (distance / shared).clamp(max=1)).sin().square()
            weights[index, start : start + size] = weight
        weights /= weights.sum(dim=0)  # for overlaps of more than half, which three windows share
        return [
            (slice(start, start + size), weights[index, start : start + size].float())
            for index, start in enumerate(starts)
        ]

    def over(
        self, height: int, width: int, scale: int = 1
    ) -> list[tuple[tuple[slice, slice], Tensor]]:
        """The windows of an image, row by row: rows and columns, and the weights (h, w)."""
        return [
            ((rows, columns), down[:, None] * right)
            for rows, down in self.along(height, scale)
            for columns, right in self.along(width, scale)
        ]
