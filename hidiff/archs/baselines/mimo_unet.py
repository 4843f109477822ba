"""MIMO-UNet+: one U-shape with three scales of input and output (Cho et al., ICCV 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge
from pydantic import NonNegativeInt
from torch import Tensor, nn

from hidiff.archs.baselines.layers import conv3x3, upsampling4x4
from hidiff.archs.image_network import ImageNetwork
from hidiff.archs.shapes import Shapes
from hidiff.registry import ARCHS

DROPPED = 0.1
"""Share of the skip connections' channels that training drops."""


def halved(x: Tensor) -> Tensor:
    """Nearest neighbours at half the resolution: (B, C, H, W) → (B, C, H/2, W/2)."""
    return x[..., ::2, ::2]


def enlarged(x: Tensor, factor: int) -> Tensor:
    """Nearest neighbours at a multiple of the resolution."""
    return F.interpolate(x, scale_factor=factor, mode="nearest")


class ConvUnit(nn.Module):
    """A convolution, then ReLU where wanted; in `main` as published."""

    def __init__(self, convolution: nn.Module, *, relu: bool = True) -> None:
        super().__init__()
        self.main = nn.Sequential(convolution, *([nn.ReLU()] if relu else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


class ResidualUnit(nn.Module):
    """x + conv(ReLU(conv(x))), (B, channels, H, W) → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            ConvUnit(conv3x3(channels, channels)),
            ConvUnit(conv3x3(channels, channels), relu=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


class ResidualLevel(nn.Module):
    """Residual units in a row, in `layers` as published."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(ResidualUnit(channels) for _ in range(units)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ShallowFeatures(nn.Module):
    """SCM, shallow convolutional module: (B, 3, H, W) → (B, channels, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            ConvUnit(conv3x3(3, channels // 4)),
            ConvUnit(nn.Conv2d(channels // 4, channels // 2, 1)),
            ConvUnit(conv3x3(channels // 2, channels // 2)),
            ConvUnit(nn.Conv2d(channels // 2, channels - 3, 1)),
        )
        self.conv = ConvUnit(nn.Conv2d(channels, channels, 1), relu=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(torch.cat([image, self.main(image)], dim=1))


class FeatureAttention(nn.Module):
    """FAM, feature attention module: a smaller input's features weight those from above."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.merge = ConvUnit(conv3x3(channels, channels), relu=False)

    def forward(self, x: Tensor, shallow: Tensor) -> Tensor:
        """Both (B, channels, H, W)."""
        return x + self.merge(x * shallow)


class FeatureFusion(nn.Module):
    """AFF, asymmetric feature fusion: all three scales to one."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            ConvUnit(nn.Conv2d(in_channels, out_channels, 1)),
            ConvUnit(conv3x3(out_channels, out_channels), relu=False),
        )

    def forward(self, *scales: Tensor) -> Tensor:
        """Maps of one height and width, `in_channels` together → (B, out_channels, H, W)."""
        return self.conv(torch.cat(scales, dim=1))


@ARCHS.register()
class MIMOUNetPlus(ImageNetwork):
    """MIMO-UNet+. Outputs are the restored image at ¼, ½ and full size.

    Args:
        num_res: residual units of each level of encoder and decoder.
        width: channels at full resolution, at least 2; 32 as published.
    """

    pad_multiple = (4, 4)
    final_output = 2

    def __init__(self, *, num_res: NonNegativeInt = 20, width: Annotated[int, Ge(2)] = 32) -> None:
        super().__init__()
        names = {8: "MIMO-UNet", 20: "MIMO-UNet+"}
        self.title = names.get(num_res, f"MIMO-UNet, {num_res} residual units a level")
        self.width = width
        w1, w2, w4 = width, 2 * width, 4 * width
        # The attributes' names are the published ones.
        self.Encoder = nn.ModuleList(ResidualLevel(w, num_res) for w in (w1, w2, w4))
        self.feat_extract = nn.ModuleList(
            [
                ConvUnit(conv3x3(3, w1)),
                ConvUnit(conv3x3(w1, w2, stride=2)),
                ConvUnit(conv3x3(w2, w4, stride=2)),
                ConvUnit(upsampling4x4(w4, w2)),
                ConvUnit(upsampling4x4(w2, w1)),
                ConvUnit(conv3x3(w1, 3), relu=False),
            ]
        )
        self.Decoder = nn.ModuleList(ResidualLevel(w, num_res) for w in (w4, w2, w1))
        self.Convs = nn.ModuleList(ConvUnit(nn.Conv2d(2 * w, w, 1)) for w in (w2, w1))
        self.ConvsOut = nn.ModuleList(ConvUnit(conv3x3(w, 3), relu=False) for w in (w4, w2))
        self.AFFs = nn.ModuleList(FeatureFusion(w1 + w2 + w4, w) for w in (w1, w2))
        self.FAM1 = FeatureAttention(w4)
        self.SCM1 = ShallowFeatures(w4)
        self.FAM2 = FeatureAttention(w2)
        self.SCM2 = ShallowFeatures(w2)

    @staticmethod
    def infer_options(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `ImageNetwork.infer_options`; MIMO-UNet is the same network with `num_res` 8."""
        shapes = Shapes(state_dict)
        return {
            "num_res": shapes.count(r"Encoder\.0\.layers\.(\d+)\."),
            "width": shapes["feat_extract.0.main.0.weight"][0],
        }

    def draw(self, count: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The channels of the two skip connections that training keeps, (count, 3·width)."""
        return {"kept": torch.rand(count, 3 * self.width, generator=generator) >= DROPPED}

    def outputs(
        self, image: Tensor, *, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The restored image at ¼, ½ and full size; for `kept` see `draw`, None keeps all."""
        image2 = halved(image)  # (B, 3, H/2, W/2)
        image4 = halved(image2)  # (B, 3, H/4, W/4)
        e1 = self.Encoder[0](self.feat_extract[0](image))  # (B, width, H, W)
        e2 = self.Encoder[1](self.FAM2(self.feat_extract[1](e1), self.SCM2(image2)))
        e3 = self.Encoder[2](self.FAM1(self.feat_extract[2](e2), self.SCM1(image4)))
        skip2 = self.AFFs[1](halved(e1), e2, enlarged(e3, 2))
        skip1 = self.AFFs[0](e1, enlarged(e2, 2), enlarged(e3, 4))
        if kept is not None:  # Dropout2d
            kept2, kept1 = kept[..., None, None].split([skip2.shape[1], skip1.shape[1]], dim=1)
            skip2, skip1 = skip2 * kept2 / (1 - DROPPED), skip1 * kept1 / (1 - DROPPED)

        x = self.Decoder[0](e3)  # (B, 4·width, H/4, W/4)
        quarter = self.ConvsOut[0](x) + image4
        x = self.Convs[0](torch.cat([self.feat_extract[3](x), skip2], dim=1))
        x = self.Decoder[1](x)  # (B, 2·width, H/2, W/2)
        half = self.ConvsOut[1](x) + image2
        x = self.Convs[1](torch.cat([self.feat_extract[4](x), skip1], dim=1))
        x = self.Decoder[2](x)  # (B, width, H, W)
        return quarter, half, self.feat_extract[5](x) + image
