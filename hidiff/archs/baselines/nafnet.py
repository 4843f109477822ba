"""NAFNet, a U-shape without nonlinear activations (Chen et al., ECCV 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from hidiff.archs.baselines.layers import conv3x3
from hidiff.archs.image_network import ImageNetwork
from hidiff.archs.restormer import at_least_float32
from hidiff.archs.shapes import Shapes
from hidiff.registry import ARCHS
from hidiff.utils.errors import UserError


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of a feature map (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def gate(x: Tensor) -> Tensor:
    """SimpleGate: the first half of the channels times the second, (B, 2C, H, W) → (B, C, H, W)."""
    first, second = x.chunk(2, dim=1)
    return first * second


class NAFBlock(nn.Module):
    """Depthwise convolution with channel attention, then a feed-forward part; both gated.

    (B, channels, H, W) → the same shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.conv1 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        # Simplified channel attention.
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.conv4 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv5 = nn.Conv2d(channels, channels, 1)
        self.norm1 = ChannelNorm(channels)
        self.norm2 = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        gated = gate(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.beta * self.conv3(gated * self.sca(gated))
        return x + self.gamma * self.conv5(gate(self.conv4(self.norm2(x))))


@ARCHS.register()
class NAFNet(ImageNetwork):
    """NAFNet. It pads images of any size with zeros, right and below, and crops its output.

    Args:
        img_channel: channels of the image.
        width: channels of the first level; level i has width · 2^i.
        middle_blk_num: blocks at the lowest resolution.
        enc_blk_nums: blocks of each level of the encoder, highest resolution first.
        dec_blk_nums: blocks of each level of the decoder, lowest resolution first; as many levels.
    """

    def __init__(
        self,
        *,
        img_channel: PositiveInt = 3,
        width: PositiveInt = 32,
        middle_blk_num: NonNegativeInt = 1,
        enc_blk_nums: Sequence[NonNegativeInt] = (1, 1, 1, 28),
        dec_blk_nums: Sequence[NonNegativeInt] = (1, 1, 1, 1),
    ) -> None:
        super().__init__()
        self.title = f"NAFNet, width {width}"
        self.in_channels = img_channel
        if len(enc_blk_nums) != len(dec_blk_nums):
            raise UserError(
                f"dec_blk_nums has {len(dec_blk_nums)} levels and enc_blk_nums "
                f"{len(enc_blk_nums)}; give both as many"
            )

        def level(blocks: int, channels: int) -> nn.Sequential:
            return nn.Sequential(*(NAFBlock(channels) for _ in range(blocks)))

        widths = [width << i for i in range(len(enc_blk_nums) + 1)]
        self.intro = conv3x3(img_channel, width)
        self.ending = conv3x3(width, img_channel)
        self.encoders = nn.ModuleList(map(level, enc_blk_nums, widths))
        self.decoders = nn.ModuleList(map(level, dec_blk_nums, widths[-2::-1]))
        self.middle_blks = level(middle_blk_num, widths[-1])
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, 2 * c, 1, bias=False), nn.PixelShuffle(2))
            for c in widths[:0:-1]
        )
        self.downs = nn.ModuleList(nn.Conv2d(c, 2 * c, 2, stride=2) for c in widths[:-1])

    @staticmethod
    def infer_options(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `ImageNetwork.infer_options`."""
        shapes = Shapes(state_dict)
        width, channels = shapes.matrix("intro.weight")

        def blocks(part: str) -> list[int]:
            levels = range(shapes.count(r"downs\.(\d+)\."))
            return [shapes.count(rf"{part}\.{level}\.(\d+)\.") for level in levels]

        return {
            "img_channel": channels,
            "width": width,
            "middle_blk_num": shapes.count(r"middle_blks\.(\d+)\."),
            "enc_blk_nums": blocks("encoders"),
            "dec_blk_nums": blocks("decoders"),
        }

    def outputs(self, image: Tensor) -> tuple[Tensor]:
        """The restored image, of the size of the image."""
        height, width = image.shape[-2:]
        multiple = 2 ** len(self.encoders)
        image = F.pad(image, (0, -width % multiple, 0, -height % multiple))
        x = self.intro(image)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            skips.append(encoder(x))
            x = down(skips[-1])
        x = self.middle_blks(x)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(up(x) + skips.pop())
        return ((self.ending(x) + image)[..., :height, :width],)


class LocalMean(nn.Module):
    """The mean of a window around each pixel; near an edge, of the outermost window that fits.

    (B, C, H, W) → (B, C, H, W), with a size of 1 along axes that the window covers.

    Args:
        window: its height and width, in pixels of the feature map.
    """

    def __init__(self, window: tuple[int, int]) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        return self._mean(self._mean(x, -2, self.window[0]), -1, self.window[1])

    @staticmethod
    def _mean(x: Tensor, axis: int, window: int) -> Tensor:
        """The mean along one axis, from cumulative sums: as fast for large windows."""
        size = x.shape[axis]
        if window >= size:
            return x.mean(axis, keepdim=True)
        sums = at_least_float32(x).cumsum(axis)
        sums = torch.cat([torch.zeros_like(sums.narrow(axis, 0, 1)), sums], dim=axis)
        starts = torch.arange(size, device=x.device) - (window - 1) // 2
        starts = starts.clamp(0, size - window)
        total = sums.index_select(axis, starts + window) - sums.index_select(axis, starts)
        return (total / window).to(x.dtype)


@ARCHS.register()
class NAFNetLocal(NAFNet):
    """NAFNet whose channel attention sees windows of 1.5 times the training crop, not the image.

    The test-time local converter (Chu et al., ECCV 2022), with which NAFNet's scores are published.
    It has NAFNet's weights, and computes the same for images no larger than the windows.

    Args:
        img_channel, width, middle_blk_num, enc_blk_nums, dec_blk_nums: see `NAFNet`.
        train_size: of the training's batch as published, [images, channels, height, width]; only
            height and width are used.
    """

    def __init__(
        self,
        *,
        img_channel: PositiveInt = 3,
        width: PositiveInt = 32,
        middle_blk_num: NonNegativeInt = 1,
        enc_blk_nums: Sequence[NonNegativeInt] = (1, 1, 1, 28),
        dec_blk_nums: Sequence[NonNegativeInt] = (1, 1, 1, 1),
        train_size: tuple[int, int, int, int] = (1, 3, 256, 256),
    ) -> None:
        super().__init__(
            img_channel=img_channel,
            width=width,
            middle_blk_num=middle_blk_num,
            enc_blk_nums=enc_blk_nums,
            dec_blk_nums=dec_blk_nums,
        )
        deepest = 2 ** len(enc_blk_nums)
        if min(train_size[2:]) < deepest:
            raise UserError(
                f"train_size {list(train_size)}: height and width must be at least {deepest}"
            )
        levels = [*self.encoders, self.middle_blks]
        for depth, blocks in [*enumerate(levels), *enumerate(reversed(self.decoders))]:
            for block in blocks:
                block.sca[0] = LocalMean(
                    (int(1.5 * train_size[2]) >> depth, int(1.5 * train_size[3]) >> depth)
                )
