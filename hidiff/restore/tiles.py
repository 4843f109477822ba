"""Restoring an image tile by tile, each with a prior of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hidiff.archs.windows import Windows
from hidiff.models import DeblurModel

TILES_AT_ONCE = {"cuda": 8}
"""Tiles in a batch by kind of device, elsewhere 1: only GPUs gain by more."""


@torch.no_grad()
def restore_in_tiles(
    model: DeblurModel,
    windows: Windows,
    lq: Tensor,
    gt: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Restore overlapping tiles and blend them.

    So every tile has statistics and a prior of its own, as a patch of the training had; pixels of
    the rest of the image have no influence. All priors start from the same noise, that of the whole
    image.

    Args:
        model: see `DeblurModel.restore`, also for the other arguments.
        windows: the tiles; an image that is no larger than one is restored whole.
        lq, gt: (1, 3, H, W).

    Returns:
        (1, 3, H, W), about [0, 1], not clamped.
    """
    _, _, height, width = lq.shape
    tiles = windows.over(height, width)
    noise = model.draw_noise(1, generator)
    size = TILES_AT_ONCE.get(lq.device.type, 1)
    restored = torch.zeros_like(lq)
    for first in range(0, len(tiles), size):
        batch = tiles[first : first + size]
        images = [
            torch.cat([image[..., *place] for place, _ in batch])
            for image in (lq, gt)
            if image is not None
        ]
        out = model.restore(
            *images,
            noise=None if noise is None else noise.expand(len(batch), *noise.shape[1:]),
            generator=generator,
        )
        for tile, (place, weight) in zip(out, batch, strict=True):
            restored[0][..., *place] += tile * weight.to(tile)
        if progress is not None:
            progress((first + len(batch)) / len(tiles))
    return restored
