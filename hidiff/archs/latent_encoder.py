"""Latent encoders LE and LE_DM: from images to prior tokens (paper Sec. 3.1, Fig. 1(b))."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from hidiff.archs.mixer import Mixer
from hidiff.archs.shapes import Shapes
from hidiff.registry import ARCHS
from hidiff.utils.errors import UserError


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3×3 convolution that keeps H and W."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)


def leaky_relu() -> nn.Module:
    return nn.LeakyReLU(0.1)


class ResidualBlock(nn.Sequential):
    """x + conv(activation(conv(x))), (B, width, H, W) → the same shape."""

    def __init__(self, width: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__(conv3x3(width, width), activation(), conv3x3(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class LatentEncoder(nn.Module):
    """What the encoders share; they differ in activation and in what follows the blocks.

    Args:
        in_chans: channels of the images together: 6 for LE, which sees sharp and blurry image; 3
            for LE_DM, which sees the blurry one.
        embed_dim: E; a token has C' = 4E channels.
        block_num: residual blocks.
        stage: 1 for LE, 2 for LE_DM.
        group: N = group² tokens.
        patch_expansion, channel_expansion: see `Mixer`.
    """

    activation: Callable[[], nn.Module]

    def __init__(
        self,
        *,
        in_chans: PositiveInt = 6,
        embed_dim: PositiveInt = 64,
        block_num: NonNegativeInt = 4,
        stage: Literal[1, 2] = 1,
        group: PositiveInt = 4,
        patch_expansion: float = 0.5,
        channel_expansion: float = 4.0,
    ) -> None:
        super().__init__()
        if stage == 1 and in_chans % 2:
            raise UserError(
                f"in_chans {in_chans} does not fit stage 1, where LE sees two images: 6 for RGB"
            )
        self.in_chans = in_chans
        self.group = group
        self.prior_dim = 4 * embed_dim
        activation = type(self).activation
        self.conv1 = nn.Sequential(conv3x3(16 * in_chans, embed_dim), activation())
        self.blocks = nn.Sequential(
            *(ResidualBlock(embed_dim, activation) for _ in range(block_num))
        )
        self.conv2, width = self.after_blocks(embed_dim)
        self.mlp = self.mixing(width, patch_expansion, channel_expansion)
        self.end = nn.Sequential(nn.Linear(width, self.prior_dim), activation())

    @staticmethod
    def after_blocks(embed_dim: int) -> tuple[nn.Module, int]:
        """The layers between the residual blocks and the pooling, and their output channels."""
        raise AssertionError("an encoder defines `after_blocks`")

    def mixing(self, width: int, patch_expansion: float, channel_expansion: float) -> nn.Module:
        """The layer between the tokens (B, N, width) and their last one, of the same shape."""
        return Mixer(width, self.group**2, patch_expansion, channel_expansion)

    def forward(self, inp_img: Tensor, gt: Tensor | None = None) -> Tensor:
        """Encode.

        Args:
            inp_img: (B, 3, H, W) blurry RGB in [0, 1], H and W multiples of 4.
            gt: (B, 3, H, W) sharp image, for LE only.

        Returns:
            (B, N, C') prior tokens, row by row of the group × group grid.
        """
        x = inp_img if gt is None else torch.cat([gt, inp_img], dim=1)
        assert x.shape[1] == self.in_chans, f"{x.shape[1]} input channels, not {self.in_chans}"
        x = self.conv1(F.pixel_unshuffle(x, 4))  # (B, E, H/4, W/4)
        x = self.conv2(self.blocks(x))  # (B, E or 4E, H/4, W/4)
        x = F.adaptive_avg_pool2d(x, self.group)
        tokens = rearrange(x, "b c y x -> b (y x) c")  # (B, N, E or 4E)
        return self.end(self.mlp(tokens))  # (B, N, C')


def infer_encoder(shapes: Shapes, last: str) -> dict[str, Any]:
    """The options that every encoder's weights show.

    Args:
        shapes: of the weights.
        last: name of the last convolution, by which the kinds are told apart.

    Raises:
        ValueError: these are not weights of that kind.
    """
    embed_dim, unshuffled = shapes.matrix("conv1.0.weight")
    if len(shapes[last]) != 4 or unshuffled % 16:
        raise ValueError(f"{last} or conv1.0.weight is no convolution of a latent encoder")
    in_chans = unshuffled // 16
    return {
        "in_chans": in_chans,
        # A grey or RGB image has 1 or 3 channels, and two of them have an even number.
        "stage": 1 if in_chans % 2 == 0 else 2,
        "embed_dim": embed_dim,
        "block_num": shapes.count(r"blocks\.(\d+)\."),
    }


@ARCHS.register("latent_encoder_gelu")
class LatentEncoderGELU(LatentEncoder):
    """The GoPro model's encoder: GELU, one convolution after the blocks, widened at the end.

    The arguments are those of `LatentEncoder`.
    """

    activation = nn.GELU

    @staticmethod
    def after_blocks(embed_dim: int) -> tuple[nn.Module, int]:
        """(B, E, H/4, W/4) → the same shape."""
        return conv3x3(embed_dim, embed_dim), embed_dim

    @staticmethod
    def infer_options(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `ImageNetwork.infer_options`."""
        shapes = Shapes(state_dict)
        return infer_encoder(shapes, "conv2.weight") | Mixer.infer_options(shapes, "mlp", 4.0)


@ARCHS.register("latent_encoder_lrelu")
class LatentEncoderLReLU(LatentEncoder):
    """The RealBlur models' encoder: LeakyReLU, three convolutions that widen before pooling.

    The arguments are those of `LatentEncoder`.
    """

    activation = staticmethod(leaky_relu)

    @staticmethod
    def after_blocks(embed_dim: int) -> tuple[nn.Module, int]:
        """(B, E, H/4, W/4) → (B, 4E, H/4, W/4)."""
        widths = (embed_dim, 2 * embed_dim, 2 * embed_dim, 4 * embed_dim)
        layers: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            layers += [conv3x3(narrow, wide), leaky_relu()]
        return nn.Sequential(*layers), widths[-1]

    @staticmethod
    def infer_options(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `ImageNetwork.infer_options`."""
        shapes = Shapes(state_dict)
        return infer_encoder(shapes, "conv2.4.weight") | Mixer.infer_options(shapes, "mlp", 4.0)
