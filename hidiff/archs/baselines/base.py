"""What every network from image to images says about itself; see `hidiff.archs.baselines`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hidiff.utils.errors import UserError


class ImageNetwork(nn.Module):
    """A network from an image to one or several images, with the rules of its use.

    A subclass writes `outputs`. The attributes are those of a network as published; where options
    change them, its constructor sets them.

    Attributes:
        side_multiple: H and W must be multiples of it.
        least_side: pixels that the longer of H and W must have.
        final_output: index of the restored image among the outputs.
        shift: what is subtracted from the image before, and added to the outputs after.
        crop: side of the crops that the published test restores; None for whole images.
    """

    side_multiple: int = 1
    least_side: int = 1
    final_output: int = 0
    shift: float = 0.0
    crop: int | None = None

    def forward(self, image: Tensor, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Image (B, 3, H, W) → images (B, 3, h, w), in the network's own order.

        Args:
            image: see above.
            inputs: what the network's `outputs` takes besides; for none is it needed.

        Raises:
            UserError: the network cannot take this size.
        """
        self.check_size(*image.shape[-2:])
        return self.outputs(image, **inputs)

    def check_size(self, height: int, width: int) -> None:
        """Refuse a size that the network cannot take.

        Raises:
            UserError: see above; it says which sizes the network takes.
        """
        name, size = type(self).__name__, f"{height}×{width}"
        if height % self.side_multiple or width % self.side_multiple:
            raise UserError(
                f"{name} takes images with sides that are multiples of {self.side_multiple}, "
                f"not {size}"
            )
        if max(height, width) < self.least_side:
            raise UserError(
                f"{name} takes images with a side of at least {self.least_side} pixels, not {size}"
            )

    def draw(self, count: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """All that a training step on `count` images draws, by the names of `outputs`' arguments.

        Every tensor has a row for each image, and is on the CPU.
        """
        return {}

    def outputs(self, image: Tensor) -> tuple[Tensor, ...]:
        """What `forward` returns, for an image of a fitting size."""
        raise AssertionError("a baseline defines `outputs`")
