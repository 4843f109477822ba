"""Latent encoders LE and LE_DM: from images to prior tokens (paper Sec. 3.1, Fig. 1(b))."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hidiff.archs.mixer import Mixer
from hidiff.registry import ARCHS
from hidiff.utils.errors import UserError, require_positive


class _ResidualBlock(nn.Sequential):
    """x + conv(activation(conv(x)))."""

    def __init__(self, width: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__(
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            activation(),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class LatentEncoder(nn.Module):
    """What both released encoders share; they differ in activation and in where they widen.

    Args:
        in_chans: 6 for LE, which sees ground truth and blurry image; 3 for LE_DM.
        embed_dim: E; a token has C' = 4E channels.
        block_num: residual blocks.
        stage: 1 for LE, 2 for LE_DM; in_chans must be 6 // stage.
        group: N = group² tokens.
        patch_expansion, channel_expansion: see `Mixer`.
        activation: makes the activation layer.
        conv2: the layers after the residual blocks.
        mixer_width: channels after `conv2`.
    """

    def __init__(
        self,
        *,
        in_chans: int,
        embed_dim: int,
        block_num: int,
        stage: int,
        group: int,
        patch_expansion: float,
        channel_expansion: float,
        activation: Callable[[], nn.Module],
        conv2: nn.Module,
        mixer_width: int,
    ) -> None:
        super().__init__()
        if stage not in (1, 2) or in_chans != 6 // stage:
            raise UserError(
                f"in_chans {in_chans} does not fit stage {stage}: LE (stage 1) has 6, LE_DM "
                "(stage 2) has 3"
            )
        require_positive(embed_dim=embed_dim, group=group)
        require_positive(0, block_num=block_num)
        self.in_chans = in_chans
        self.group = group
        self.prior_dim = 4 * embed_dim
        self.conv1 = nn.Sequential(
            nn.Conv2d(16 * in_chans, embed_dim, kernel_size=3, padding=1), activation()
        )
        self.blocks = nn.Sequential(
            *(_ResidualBlock(embed_dim, activation) for _ in range(block_num))
        )
        self.conv2 = conv2
        self.mlp = Mixer(mixer_width, group * group, patch_expansion, channel_expansion)
        self.end = nn.Sequential(nn.Linear(mixer_width, self.prior_dim), activation())

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
        x = self.conv2(self.blocks(x))
        x = F.adaptive_avg_pool2d(x, self.group)
        return self.end(self.mlp(rearrange(x, "b c y x -> b (y x) c")))


@ARCHS.register("latent_encoder_gelu")
class LatentEncoderGELU(LatentEncoder):
    """The GoPro model's encoder: GELU, one convolution after the blocks, widened at the end.

    The arguments are those of `LatentEncoder`.
    """

    def __init__(
        self,
        *,
        in_chans: int = 6,
        embed_dim: int = 64,
        block_num: int = 4,
        stage: int = 1,
        group: int = 4,
        patch_expansion: float = 0.5,
        channel_expansion: float = 4.0,
    ) -> None:
        super().__init__(
            in_chans=in_chans,
            embed_dim=embed_dim,
            block_num=block_num,
            stage=stage,
            group=group,
            patch_expansion=patch_expansion,
            channel_expansion=channel_expansion,
            activation=nn.GELU,
            conv2=nn.Conv2d(embed_dim, embed_dim, kernel_size=3, padding=1),
            mixer_width=embed_dim,
        )


def _leaky_relu() -> nn.Module:
    return nn.LeakyReLU(0.1)


@ARCHS.register("latent_encoder_lrelu")
class LatentEncoderLReLU(LatentEncoder):
    """The RealBlur models' encoder: LeakyReLU, three convolutions that widen before pooling.

    The arguments are those of `LatentEncoder`.
    """

    def __init__(
        self,
        *,
        in_chans: int = 6,
        embed_dim: int = 64,
        block_num: int = 4,
        stage: int = 1,
        group: int = 4,
        patch_expansion: float = 0.5,
        channel_expansion: float = 4.0,
    ) -> None:
        widths = (embed_dim, 2 * embed_dim, 2 * embed_dim, 4 * embed_dim)
        widening = []
        for narrow, wide in itertools.pairwise(widths):
            widening += [nn.Conv2d(narrow, wide, kernel_size=3, padding=1), _leaky_relu()]
        super().__init__(
            in_chans=in_chans,
            embed_dim=embed_dim,
            block_num=block_num,
            stage=stage,
            group=group,
            patch_expansion=patch_expansion,
            channel_expansion=channel_expansion,
            activation=_leaky_relu,
            conv2=nn.Sequential(*widening),
            mixer_width=4 * embed_dim,
        )
