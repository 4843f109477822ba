"""Layers that several baseline networks have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv3x3(
    in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = True
) -> nn.Conv2d:
    """A 3×3 convolution that keeps H and W, or divides them by `stride`."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=bias)


def upsampling4x4(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    """A 4×4 transposed convolution that doubles H and W."""
    return nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)


ROWS, COLUMNS = -2, -1
"""The axes of (B, C, H, W) along which images are split."""


def split(x: Tensor, axis: int) -> Tensor:
    """Each image's first and second half along an axis: (B, C, H, W) → (2B, C, …)."""
    return torch.cat(x.chunk(2, dim=axis))


def join(x: Tensor, axis: int) -> Tensor:
    """Undoes `split`."""
    return torch.cat(x.chunk(2), dim=axis)


class SupervisedAttention(nn.Module):
    """SAM (MPRNet, Sec. 3.3): restores an image, which then weights the features.

    Args:
        channels: of the features.
        image_channels: of the image.
        kernel_size: of the three convolutions.
        bias: whether they have one.
    """

    def __init__(
        self, channels: int, image_channels: int = 3, *, kernel_size: int, bias: bool
    ) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=bias)

        self.conv1 = conv(channels, channels)
        self.conv2 = conv(channels, image_channels)
        self.conv3 = conv(image_channels, channels)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W), image (B, 3, H, W) → weighted features, restored image."""
        restored = self.conv2(x) + image
        return x + self.conv1(x) * torch.sigmoid(self.conv3(restored)), restored
