"""Stripformer: attention within and between rows and columns (Tsai et al., ECCV 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import PositiveInt
from torch import Tensor, nn

from hidiff.archs.baselines.layers import conv3x3, upsampling4x4
from hidiff.archs.image_network import ImageNetwork
from hidiff.archs.shapes import Shapes
from hidiff.registry import ARCHS
from hidiff.utils.errors import UserError

LEAKY_SLOPE = 0.2


def activation() -> nn.Module:
    return nn.LeakyReLU(LEAKY_SLOPE)


def within_rows(x: Tensor, projection: nn.Linear, heads: int) -> Tensor:
    """Attention between the pixels of each row.

    Args:
        x: (B, C, H, W).
        projection: C → 3C, to q, k and v.
        heads: a divisor of C.

    Returns:
        (B, C, H, W).
    """
    q, k, v = rearrange(
        projection(x.permute(0, 2, 3, 1)), "b h w (s n c) -> s (b h) n w c", s=3, n=heads
    )
    out = F.scaled_dot_product_attention(q, k, v)  # (B·H, heads, W, C/heads)
    return rearrange(out, "(b h) n w c -> b (n c) h w", h=x.shape[2])


def between_rows(x: Tensor, projection: nn.Conv2d, heads: int) -> Tensor:
    """Attention between the rows, each one token of C·W numbers; arguments as of `within_rows`.

    The logits are divided by the square root of a head's numbers in a token, C/heads · W, so by
    more for a wider image.
    """
    q, k, v = rearrange(projection(x), "b (s n c) h w -> s b n h (c w)", s=3, n=heads)
    out = F.scaled_dot_product_attention(q, k, v)  # (B, heads, H, C/heads · W)
    return rearrange(out, "b n h (c w) -> b (n c) h w", w=x.shape[3])


class PositionEncoding(nn.Module):
    """x + depthwise convolution of x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.PEG = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.PEG(x)


class FeedForward(nn.Module):
    """(…, channels) → (…, channels), through four times as many."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class StripBlock(nn.Module):
    """A Transformer block in which half of the channels attend by rows and half by columns.

    A subclass writes `attended`.

    Args:
        channels: of the feature map; half of them are a multiple of `heads`.
        heads: of each of the two attentions.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(channels)
        self.conv_input = nn.Conv2d(channels, channels, 1)
        self.fuse_out = nn.Conv2d(channels, channels, 1)
        self.ffn_norm = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels)
        self.PEG = PositionEncoding(channels)

    def attended(self, horizontal: Tensor, vertical: Tensor) -> tuple[Tensor, Tensor]:
        """Attention by rows and by columns, both (B, channels/2, H, W) → the same shapes."""
        raise AssertionError("a block defines `attended`")

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → (B, channels, H, W)."""
        normed = self.attention_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        halves = self.conv_input(normed).chunk(2, dim=1)
        x = x + self.fuse_out(torch.cat(self.attended(*halves), dim=1))
        pixels = x.permute(0, 2, 3, 1)  # (B, H, W, channels)
        x = x + self.ffn(self.ffn_norm(pixels)).permute(0, 3, 1, 2)
        return self.PEG(x)


class IntraStripBlock(StripBlock):
    """Attention within each row and each column."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, heads)
        self.qkv_local_h = nn.Linear(channels // 2, 3 * (channels // 2))
        self.qkv_local_v = nn.Linear(channels // 2, 3 * (channels // 2))

    def attended(self, horizontal: Tensor, vertical: Tensor) -> tuple[Tensor, Tensor]:
        return (
            within_rows(horizontal, self.qkv_local_h, self.heads),
            within_rows(vertical.mT, self.qkv_local_v, self.heads).mT,
        )


class InterStripBlock(StripBlock):
    """Attention between the rows and between the columns."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, heads)
        self.conv_h = nn.Conv2d(channels // 2, 3 * (channels // 2), 1)
        self.conv_v = nn.Conv2d(channels // 2, 3 * (channels // 2), 1)

    def attended(self, horizontal: Tensor, vertical: Tensor) -> tuple[Tensor, Tensor]:
        return (
            between_rows(horizontal, self.conv_h, self.heads),
            between_rows(vertical.mT, self.conv_v, self.heads).mT,
        )


def strip_blocks(number: int, channels: int, heads: int) -> list[StripBlock]:
    """Blocks of both kinds in turn, beginning with attention within strips."""
    kinds = (IntraStripBlock, InterStripBlock)
    return [kinds[i % 2](channels, heads) for i in range(number)]


def two_convolutions(channels: int) -> nn.Sequential:
    """Two 3×3 convolutions with an activation between them."""
    return nn.Sequential(conv3x3(channels, channels), activation(), conv3x3(channels, channels))


def activated_sum(x: Tensor, change: Tensor) -> Tensor:
    """Both added, then the activation."""
    return F.leaky_relu(x + change, LEAKY_SLOPE)


class Encoder(nn.Module):
    """Image (B, 3, H, W) → (B, 5·width, H/4, W/4), (B, width, H, W) and (B, 2·width, H/2, W/2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.en_layer1_1 = nn.Sequential(conv3x3(3, width), activation())
        self.en_layer1_2 = two_convolutions(width)
        self.en_layer1_3 = two_convolutions(width)
        self.en_layer1_4 = two_convolutions(width)
        self.en_layer2_1 = nn.Sequential(conv3x3(width, 2 * width, stride=2), activation())
        self.en_layer2_2 = two_convolutions(2 * width)
        self.en_layer2_3 = two_convolutions(2 * width)
        self.en_layer2_4 = two_convolutions(2 * width)
        self.en_layer3_1 = nn.Sequential(conv3x3(2 * width, 5 * width, stride=2), activation())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.en_layer1_1(image)
        for layers in (self.en_layer1_2, self.en_layer1_3, self.en_layer1_4):
            x = activated_sum(x, layers(x))
        skip1 = x
        x = self.en_layer2_1(x)
        for layers in (self.en_layer2_2, self.en_layer2_3, self.en_layer2_4):
            x = activated_sum(x, layers(x))
        return self.en_layer3_1(x), skip1, x


class Decoder(nn.Module):
    """What `Encoder` returns, the first after the blocks → (B, 3, H, W), to add to the image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 3 * width
        self.de_layer3_1 = nn.Sequential(upsampling4x4(5 * width, wide), activation())
        self.de_layer2_2 = nn.Sequential(nn.Conv2d(wide + 2 * width, wide, 1), activation())
        self.blocks = [f"de_block_{i}" for i in range(1, 7)]
        for name, block in zip(self.blocks, strip_blocks(6, wide, heads=3), strict=True):
            self.add_module(name, block)
        self.de_layer2_1 = nn.Sequential(upsampling4x4(wide, width), activation())
        self.de_layer1_3 = nn.Sequential(
            nn.Conv2d(2 * width, width, 1), activation(), conv3x3(width, width)
        )
        self.de_layer1_2 = two_convolutions(width)
        self.de_layer1_1 = nn.Sequential(conv3x3(width, 3), activation())

    def forward(self, x: Tensor, skip1: Tensor, skip2: Tensor) -> Tensor:
        x = self.de_layer3_1(x)
        x = self.de_layer2_2(torch.cat([x, skip2], dim=1))
        for name in self.blocks:
            x = getattr(self, name)(x)
        x = self.de_layer2_1(x)
        x = activated_sum(x, self.de_layer1_3(torch.cat([x, skip1], dim=1)))
        x = activated_sum(x, self.de_layer1_2(x))
        # Published: the change of the image goes through the activation too.
        return self.de_layer1_1(x)


@ARCHS.register()
class Stripformer(ImageNetwork):
    """Stripformer, which works on image − 0.5.

    Args:
        width: channels at full resolution, a multiple of 2; 64 as published. A head has width / 2.
    """

    pad_multiple = (4, 4)
    shift = 0.5

    def __init__(self, *, width: PositiveInt = 64) -> None:
        super().__init__()
        if width % 2:
            raise UserError(f"width {width} must be a multiple of 2: rows and columns halve it")
        self.title = f"Stripformer, width {width}"
        self.encoder = Encoder(width)
        self.blocks = [f"Trans_block_{i}" for i in range(1, 13)]
        for name, block in zip(self.blocks, strip_blocks(12, 5 * width, heads=5), strict=True):
            self.add_module(name, block)
        self.decoder = Decoder(width)

    @staticmethod
    def infer_options(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `ImageNetwork.infer_options`."""
        return {"width": Shapes(state_dict)["encoder.en_layer1_1.0.weight"][0]}

    def outputs(self, image: Tensor) -> tuple[Tensor]:
        """The restored image, of the size of the image."""
        x, skip1, skip2 = self.encoder(image)
        for name in self.blocks:
            x = getattr(self, name)(x)
        return (self.decoder(x, skip1, skip2) + image,)
