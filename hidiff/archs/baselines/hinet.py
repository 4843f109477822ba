"""HINet: two U-shapes with half instance normalisation (Chen et al., CVPR Workshops 2021)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge
from pydantic import PositiveInt
from torch import Tensor, nn

from hidiff.archs.baselines.layers import SupervisedAttention, conv3x3
from hidiff.archs.image_network import ImageNetwork
from hidiff.archs.shapes import Shapes
from hidiff.registry import ARCHS
from hidiff.utils.errors import UserError


class ConvBlock(nn.Module):
    """Two 3×3 convolutions beside a 1×1 one: (B, in_channels, H, W) → (B, out_channels, H, W).

    Args:
        in_channels, out_channels: of the feature maps.
        slope: of the LeakyReLUs.
        norm: half instance normalisation: the first half of the channels is normalised.
        fused: in the second stage, features of the first are added.
        down: whether the block also has `downsample`, which halves its output's height and width.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        slope: float,
        *,
        norm: bool = False,
        fused: bool = False,
        down: bool = False,
    ) -> None:
        super().__init__()
        self.slope = slope
        self.identity = nn.Conv2d(in_channels, out_channels, 1)
        self.conv_1 = conv3x3(in_channels, out_channels)
        self.conv_2 = conv3x3(out_channels, out_channels)
        # Cross-stage feature fusion, for the encoder's and the decoder's features.
        self.csff_enc = conv3x3(out_channels, out_channels) if fused else None
        self.csff_dec = conv3x3(out_channels, out_channels) if fused else None
        self.norm = nn.InstanceNorm2d(out_channels // 2, affine=True) if norm else None
        self.downsample = (
            nn.Conv2d(out_channels, out_channels, 4, stride=2, padding=1, bias=False)
            if down
            else None
        )

    def forward(self, x: Tensor, fused: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x (B, in_channels, H, W); fused, the first stage's encoder and decoder features of the
        level, (B, out_channels, H, W) each.
        """
        y = self.conv_1(x)
        if self.norm is not None:
            first, second = y.chunk(2, dim=1)
            y = torch.cat([self.norm(first), second], dim=1)
        y = F.leaky_relu(self.conv_2(F.leaky_relu(y, self.slope)), self.slope)
        y = y + self.identity(x)
        if fused is not None:
            assert self.csff_enc is not None and self.csff_dec is not None
            y = y + self.csff_enc(fused[0]) + self.csff_dec(fused[1])
        return y


class UpBlock(nn.Module):
    """Twice the resolution, joined with the skip connection."""

    def __init__(self, in_channels: int, out_channels: int, slope: float) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.conv_block = ConvBlock(2 * out_channels, out_channels, slope)

    def forward(self, x: Tensor, bridge: Tensor) -> Tensor:
        """x (B, in_channels, H/2, W/2), bridge (B, out_channels, H, W) → as the bridge."""
        return self.conv_block(torch.cat([self.up(x), bridge], dim=1))


@ARCHS.register()
class HINet(ImageNetwork):
    """HINet. Outputs are the restored images of stage 1 and stage 2.

    Args:
        in_chn: channels of the image.
        wf: channels of the first level; level i has wf · 2^i. Even where level 0 is normalised.
        depth: levels of each U-shape.
        relu_slope: of the LeakyReLUs, for negative values.
        hin_position_left, hin_position_right: first and last level of the encoders, counted from
            0, with half instance normalisation. As published 3 and 4; 0 and 4 are the authors'
            defaults.
    """

    final_output = 1
    crop = 256

    def __init__(
        self,
        *,
        in_chn: PositiveInt = 3,
        wf: PositiveInt = 64,
        depth: Annotated[int, Ge(2)] = 5,
        relu_slope: float = 0.2,
        hin_position_left: int = 0,
        hin_position_right: int = 4,
    ) -> None:
        super().__init__()
        if wf % 2 and hin_position_left <= 0 <= hin_position_right:
            raise UserError(f"wf {wf} must be a multiple of 2: half the channels are normalised")
        self.title = f"HINet, width {wf}"
        self.in_channels = in_chn
        multiple = 2 ** (depth - 1)
        self.pad_multiple = (multiple, multiple)
        if hin_position_left <= depth - 1 <= hin_position_right:
            # The lowest level is normalised, for which one pixel is too few.
            self.min_size = 2 * multiple
        widths = [wf << level for level in range(depth)]

        def u_shape(fused: bool) -> tuple[nn.ModuleList, nn.Conv2d, nn.ModuleList, nn.ModuleList]:
            down_path = nn.ModuleList(
                ConvBlock(
                    width_above,
                    width,
                    relu_slope,
                    norm=hin_position_left <= level <= hin_position_right,
                    fused=fused and level < depth - 1,
                    down=level < depth - 1,
                )
                for level, (width_above, width) in enumerate(itertools.pairwise([wf, *widths]))
            )
            up_path = nn.ModuleList(
                UpBlock(2 * width, width, relu_slope) for width in widths[-2::-1]
            )
            skip_conv = nn.ModuleList(conv3x3(width, width) for width in widths[-2::-1])
            return down_path, conv3x3(in_chn, wf), up_path, skip_conv

        self.down_path_1, self.conv_01, self.up_path_1, self.skip_conv_1 = u_shape(fused=False)
        self.down_path_2, self.conv_02, self.up_path_2, self.skip_conv_2 = u_shape(fused=True)
        self.sam12 = SupervisedAttention(wf, in_chn, kernel_size=3, bias=True)
        self.cat12 = nn.Conv2d(2 * wf, wf, 1)
        self.last = conv3x3(wf, in_chn)

    @staticmethod
    def infer_options(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `ImageNetwork.infer_options`; no shape shows `relu_slope`."""
        shapes = Shapes(state_dict)
        width, channels = shapes.matrix("conv_01.weight")
        depth = shapes.count(r"down_path_1\.(\d+)\.")
        normed = [i for i in range(depth) if f"down_path_1.{i}.norm.weight" in shapes]
        return {
            "in_chn": channels,
            "wf": width,
            "depth": depth,
            "hin_position_left": min(normed, default=depth),
            "hin_position_right": max(normed, default=depth),
        }

    def outputs(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The restored images of both stages, of the size of the image."""
        encoded, decoded = self.stage1(image)
        weighted, restored = self.sam12(decoded[0], image)
        x = self.cat12(torch.cat([self.conv_02(image), weighted], dim=1))
        encoded = _encode(self.down_path_2, x, zip(encoded[:-1], decoded, strict=True))
        decoded = _decode(self.up_path_2, self.skip_conv_2, encoded)
        return restored, self.last(decoded[0]) + image

    def stage1(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What the first U-shape encodes and decodes of an image, see `_encode` and `_decode`."""
        encoded = _encode(self.down_path_1, self.conv_01(image))
        return encoded, _decode(self.up_path_1, self.skip_conv_1, encoded)


def _encode(
    down_path: nn.ModuleList, x: Tensor, fused: Iterable[tuple[Tensor, Tensor]] = ()
) -> list[Tensor]:
    """Features by level, (B, wf·2^level, H/2^level, W/2^level), of x (B, wf, H, W).

    `fused` are the first stage's encoder and decoder features by level, for all levels but the
    last.
    """
    levels = []
    for block, pair in itertools.zip_longest(down_path, fused):
        levels.append(block(x, pair))
        if isinstance(block.downsample, nn.Conv2d):
            x = block.downsample(levels[-1])
    return levels


def _decode(
    up_path: nn.ModuleList, skip_conv: nn.ModuleList, encoded: list[Tensor]
) -> list[Tensor]:
    """Features by level, of the same shapes as the encoder's, without its lowest level."""
    levels: list[Tensor] = []
    x = encoded[-1]
    for up, skip, bridge in zip(up_path, skip_conv, encoded[-2::-1], strict=True):
        x = up(x, skip(bridge))
        levels.insert(0, x)
    return levels
