"""What every network from image to image says about itself, so that nobody needs to ask its class.

Whoever restores an image with one of them pads it to multiples of `pad_multiple`, subtracts
`shift`, calls `outputs`, adds `shift`, takes `outputs[final_output]` and crops it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hidiff.utils.errors import UserError


class ImageNetwork(nn.Module):
    """A network from an image to one or several images, with the rules of its use.

    The attributes are those of a network as published; where options change them, the constructor
    sets them. A subclass writes `outputs` and `infer_options`.

    Attributes:
        title: a name for people, such as "NAFNet, width 32".
        in_channels: channels of the image.
        pad_multiple: H must be a multiple of the first and W of the second.
        min_size: pixels that the longer of H and W must have.
        final_output: index of the restored image among the outputs.
        shift: the network works on image − shift; its caller subtracts it, and adds it to what
            comes out.
        crop: side of the crops by which the published test restores an image (the fewest evenly
            spaced ones that cover it, overlaps averaged); None where it restores whole images.
    """

    title: str
    in_channels: int = 3
    pad_multiple: tuple[int, int] = (1, 1)
    min_size: int = 1
    final_output: int = 0
    shift: float = 0.0
    crop: int | None = None

    @staticmethod
    def infer_options(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """The constructor's options, from the names and shapes of the network's weights.

        Options that no shape shows are left out.

        Raises:
            ValueError: these are not weights of this network.
        """
        raise AssertionError("a network defines `infer_options`")

    def outputs(self, image: Tensor) -> tuple[Tensor, ...]:
        """Image (B, C, H, W) → images (B, C, h, w), not clamped, in the network's own order.

        A smaller output is the restored image at a smaller scale: its size says which. A network
        that draws in training has keyword arguments for what `draw` returns, with defaults.

        Args:
            image: RGB in [0, 1], less `shift`, of a size that `check_size` allows.
        """
        raise AssertionError("a network defines `outputs`")

    def forward(self, image: Tensor, **drawn: Tensor) -> tuple[Tensor, ...]:
        """As `outputs`, but refuses sizes that the network cannot take.

        Raises:
            UserError: see above.
        """
        self.check_size(*image.shape[-2:])
        return self.outputs(image, **drawn)

    def check_size(self, height: int, width: int) -> None:
        """Refuse a size that the network cannot take.

        Raises:
            UserError: see above; it says which sizes the network takes.
        """
        name, size = type(self).__name__, f"{height}×{width}"
        rows, columns = self.pad_multiple
        if height % rows or width % columns:
            multiples = f"{rows}" if rows == columns else f"{rows} (height) and {columns} (width)"
            raise UserError(
                f"{name} takes images with sides that are multiples of {multiples}, not {size}"
            )
        if max(height, width) < self.min_size:
            raise UserError(
                f"{name} takes images with a side of at least {self.min_size} pixels, not {size}"
            )

    def draw(self, count: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """All that a training step on `count` images draws, by the names of `outputs`' arguments.

        Every tensor has a row for each image, and is on the CPU.
        """
        return {}
