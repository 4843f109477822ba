"""MPRNet: three stages that restore quarters, halves and the whole image (Zamir et al., CVPR 2021).

Attributes that look odd carry the published parameter names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from hidiff.archs.baselines.layers import COLUMNS, ROWS, SupervisedAttention, join, split
from hidiff.archs.image_network import ImageNetwork
from hidiff.archs.shapes import Shapes
from hidiff.registry import ARCHS
from hidiff.utils.errors import UserError

Levels = Sequence[Tensor]
"""Feature maps from full to a quarter of the resolution: (B, n_feat + level · s, H/2^l, W/2^l)."""


class _Conv(nn.Conv2d):
    """A convolution that keeps the size."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, bias: bool):
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias
        )


class _ChannelAttention(nn.Module):
    """x · sigmoid(convolutions of x's global mean)."""

    def __init__(self, channels: int, reduction: int, *, bias: bool) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            _Conv(channels, channels // reduction, 1, bias=bias),
            nn.ReLU(),
            _Conv(channels // reduction, channels, 1, bias=bias),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv_du(x.mean(dim=(2, 3), keepdim=True))


class _CAB(nn.Module):
    """Channel attention block: x + attention(conv(act(conv(x))))."""

    def __init__(
        self, channels: int, kernel_size: int, reduction: int, *, bias: bool, act: nn.Module
    ) -> None:
        super().__init__()
        self.CA = _ChannelAttention(channels, reduction, bias=bias)
        self.body = nn.Sequential(
            _Conv(channels, channels, kernel_size, bias=bias),
            act,
            _Conv(channels, channels, kernel_size, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.CA(self.body(x))


MakeCAB = Callable[[int], _CAB]
"""From a number of channels to a block with the network's other options."""


class _ORB(nn.Module):
    """Original-resolution block: x + conv(blocks(x)); its convolution never has a bias."""

    def __init__(self, channels: int, kernel_size: int, num_cab: int, cab: MakeCAB) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(cab(channels) for _ in range(num_cab)),
            _Conv(channels, channels, kernel_size, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _resize(scale: float) -> nn.Module:
    return nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False)


class _Down(nn.Module):
    """(B, C, H, W) → (B, C + growth, H/2, W/2)."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.down = nn.Sequential(_resize(0.5), _Conv(channels, channels + growth, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(x)


class _Up(nn.Module):
    """(B, C + growth, H, W) → (B, C, 2H, 2W)."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.up = nn.Sequential(_resize(2), _Conv(channels + growth, channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x)


class _Encoder(nn.Module):
    """Three levels; with `fused` each takes in what an earlier stage computed at that level."""

    def __init__(self, width: int, growth: int, cab: MakeCAB, *, bias: bool, fused: bool) -> None:
        super().__init__()
        widths = [width + level * growth for level in range(3)]
        self.encoder_level1, self.encoder_level2, self.encoder_level3 = (
            nn.Sequential(cab(channels), cab(channels)) for channels in widths
        )
        self.down12 = _Down(widths[0], growth)
        self.down23 = _Down(widths[1], growth)
        self.fused = fused
        if fused:
            for name in ("csff_enc", "csff_dec"):
                for level, channels in enumerate(widths, start=1):
                    self.add_module(f"{name}{level}", _Conv(channels, channels, 1, bias=bias))

    def forward(self, x: Tensor, encoded: Levels = (), decoded: Levels = ()) -> list[Tensor]:
        """x (B, n_feat, H, W); the levels of the earlier stage, for a fused encoder."""
        levels = []
        for level in (1, 2, 3):
            x = self.get_submodule(f"encoder_level{level}")(x)
            if self.fused:
                from_encoder = self.get_submodule(f"csff_enc{level}")(encoded[level - 1])
                x = x + from_encoder + self.get_submodule(f"csff_dec{level}")(decoded[level - 1])
            levels.append(x)
            if level < 3:
                x = self.get_submodule(f"down{level}{level + 1}")(x)
        return levels


class _Decoder(nn.Module):
    """From the encoder's levels to as many decoded ones."""

    def __init__(self, width: int, growth: int, cab: MakeCAB) -> None:
        super().__init__()
        widths = [width + level * growth for level in range(3)]
        self.decoder_level1, self.decoder_level2, self.decoder_level3 = (
            nn.Sequential(cab(channels), cab(channels)) for channels in widths
        )
        self.skip_attn1 = cab(widths[0])
        self.skip_attn2 = cab(widths[1])
        self.up21 = _Up(widths[0], growth)
        self.up32 = _Up(widths[1], growth)

    def forward(self, encoded: Levels) -> list[Tensor]:
        level3 = self.decoder_level3(encoded[2])
        level2 = self.decoder_level2(self.up32(level3) + self.skip_attn2(encoded[1]))
        level1 = self.decoder_level1(self.up21(level2) + self.skip_attn1(encoded[0]))
        return [level1, level2, level3]


class _ORSNet(nn.Module):
    """Original-resolution subnetwork: blocks at full resolution that take in stage 2's levels."""

    def __init__(
        self,
        width: int,
        growth: int,
        orsnet_growth: int,
        num_cab: int,
        kernel_size: int,
        cab: MakeCAB,
        *,
        bias: bool,
    ) -> None:
        super().__init__()
        wide = width + orsnet_growth
        self.orb1, self.orb2, self.orb3 = (_ORB(wide, kernel_size, num_cab, cab) for _ in range(3))
        self.up_enc1 = _Up(width, growth)
        self.up_dec1 = _Up(width, growth)
        # Two steps up for the third level.
        self.up_enc2 = nn.Sequential(_Up(width + growth, growth), _Up(width, growth))
        self.up_dec2 = nn.Sequential(_Up(width + growth, growth), _Up(width, growth))
        for name in ("conv_enc", "conv_dec"):
            for level in (1, 2, 3):
                self.add_module(f"{name}{level}", _Conv(width, wide, 1, bias=bias))

    def forward(self, x: Tensor, encoded: Levels, decoded: Levels) -> Tensor:
        """x (B, n_feat + scale_orsnetfeats, H, W) and stage 2's levels → the like of x."""
        same = nn.Identity()
        ups = ((same, same), (self.up_enc1, self.up_dec1), (self.up_enc2, self.up_dec2))
        for level, (up_enc, up_dec) in enumerate(ups, start=1):
            from_encoder = self.get_submodule(f"conv_enc{level}")(up_enc(encoded[level - 1]))
            from_decoder = self.get_submodule(f"conv_dec{level}")(up_dec(decoded[level - 1]))
            x = self.get_submodule(f"orb{level}")(x) + from_encoder + from_decoder
        return x


@ARCHS.register()
class MPRNet(ImageNetwork):
    """Multi-stage progressive restoration.

    All its channel attention blocks share one PReLU, a single parameter that the published files
    repeat under each block's name.

    Args:
        in_c, out_c: channels of the images; equal, as every stage adds the blurry image.
        n_feat: channels of the first level.
        scale_unetfeats: channels that each further level of encoders and decoders adds.
        scale_orsnetfeats: channels that stage 3 adds to `n_feat`.
        num_cab: blocks in each of stage 3's three groups.
        kernel_size: of the convolutions that are not 1×1; odd.
        reduction: channel attention narrows to 1/reduction of the channels.
        bias: whether convolutions have a bias; those that change the resolution and the last of
            each of stage 3's groups never do.
    """

    pad_multiple = (8, 8)

    def __init__(
        self,
        *,
        in_c: PositiveInt = 3,
        out_c: PositiveInt = 3,
        n_feat: PositiveInt = 96,
        scale_unetfeats: NonNegativeInt = 48,
        scale_orsnetfeats: NonNegativeInt = 32,
        num_cab: NonNegativeInt = 8,
        kernel_size: PositiveInt = 3,
        reduction: PositiveInt = 4,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if n_feat < reduction:
            raise UserError(f"n_feat {n_feat} must be at least reduction {reduction}")
        if in_c != out_c:
            raise UserError(f"out_c {out_c} must equal in_c {in_c}: the blurry image is added")
        if kernel_size % 2 == 0:
            raise UserError(f"kernel_size {kernel_size} must be odd")
        self.title = f"MPRNet, {n_feat} channels"
        self.in_channels = in_c
        act = nn.PReLU()

        def cab(channels: int) -> _CAB:
            return _CAB(channels, kernel_size, reduction, bias=bias, act=act)

        def shallow() -> nn.Sequential:
            return nn.Sequential(_Conv(in_c, n_feat, kernel_size, bias=bias), cab(n_feat))

        wide = n_feat + scale_orsnetfeats
        self.shallow_feat1 = shallow()
        self.shallow_feat2 = shallow()
        self.shallow_feat3 = shallow()
        self.stage1_encoder = _Encoder(n_feat, scale_unetfeats, cab, bias=bias, fused=False)
        self.stage1_decoder = _Decoder(n_feat, scale_unetfeats, cab)
        self.stage2_encoder = _Encoder(n_feat, scale_unetfeats, cab, bias=bias, fused=True)
        self.stage2_decoder = _Decoder(n_feat, scale_unetfeats, cab)
        self.stage3_orsnet = _ORSNet(
            n_feat, scale_unetfeats, scale_orsnetfeats, num_cab, kernel_size, cab, bias=bias
        )
        self.sam12 = SupervisedAttention(n_feat, in_c, kernel_size=1, bias=bias)
        self.sam23 = SupervisedAttention(n_feat, in_c, kernel_size=1, bias=bias)
        self.concat12 = _Conv(2 * n_feat, n_feat, kernel_size, bias=bias)
        self.concat23 = _Conv(2 * n_feat, wide, kernel_size, bias=bias)
        self.tail = _Conv(wide, out_c, kernel_size, bias=bias)

    @staticmethod
    def infer_options(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `ImageNetwork.infer_options`."""
        shapes = Shapes(state_dict)
        n_feat, channels = shapes.matrix("shallow_feat1.0.weight")
        wide = shapes["concat23.weight"][0]
        growth = shapes["stage1_encoder.down12.down.1.weight"][0] - n_feat
        narrow = [shapes.matrix(name) for name in shapes.ending("CA.conv_du.0.weight")]
        fitting = (r for r in (4, *range(1, n_feat + 1)) if all(w // r == n for n, w in narrow))
        return {
            "in_c": channels,
            "out_c": shapes["tail.weight"][0],
            "n_feat": n_feat,
            "scale_unetfeats": growth,
            "scale_orsnetfeats": wide - n_feat,
            # Each group ends with a convolution, whose name counts on.
            "num_cab": shapes.count(r"stage3_orsnet\.orb1\.body\.(\d+)\.") - 1,
            "kernel_size": shapes["tail.weight"][-1],
            "reduction": next(fitting, 0),
            "bias": "tail.bias" in shapes,
        }

    def outputs(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The images of stages 3 (the result), 2 and 1, each of the size of the image."""
        halves = split(image, ROWS)
        # Stage 1 encodes quadrants and decodes halves.
        encoded = self.stage1_encoder(self.shallow_feat1(split(halves, COLUMNS)))
        encoded = [join(level, COLUMNS) for level in encoded]
        decoded = self.stage1_decoder(encoded)
        attended, image1 = self.sam12(decoded[0], halves)

        # Stage 2 encodes halves and decodes the whole image.
        x = self.concat12(torch.cat([self.shallow_feat2(halves), attended], dim=1))
        encoded = [join(level, ROWS) for level in self.stage2_encoder(x, encoded, decoded)]
        decoded = self.stage2_decoder(encoded)
        attended, image2 = self.sam23(decoded[0], image)

        x = self.concat23(torch.cat([self.shallow_feat3(image), attended], dim=1))
        x = self.stage3_orsnet(x, encoded, decoded)
        return self.tail(x) + image, image2, join(image1, ROWS)
