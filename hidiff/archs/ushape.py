"""Restormer's U-shape: four levels down and up again, whatever the levels are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from hidiff.archs.restormer import Conv2d, Downsample, PatchEmbed, Upsample
from hidiff.utils.errors import UserError, require_positive

LevelT = TypeVar("LevelT", bound=nn.Module)

MakeLevel = Callable[[int, int, int], LevelT]
"""From a level's index 0 … 3, its channels and its blocks to a module that is called with features
(B, channels, H, W) and the level's prior."""


class UShape(nn.Module, Generic[LevelT]):
    """The parts that every network of this shape has, under Restormer's parameter names.

    A subclass calls `build` in its constructor, and `features` in `forward`.
    """

    def build(
        self,
        level: MakeLevel[LevelT],
        *,
        inp_channels: int,
        dim: int,
        num_blocks: Sequence[int],
        num_refinement_blocks: int,
        heads: Sequence[int],
        ffn_expansion_factor: float,
        bias: bool,
        layer_norm_type: str,
    ) -> None:
        """Make the parts; the arguments but `level` are the networks' options of these names.

        Raises:
            UserError: it cannot be built from them.
        """
        _check_widths(
            dim, num_blocks, num_refinement_blocks, heads, ffn_expansion_factor, layer_norm_type
        )
        self.patch_embed = PatchEmbed(inp_channels, dim)
        self.encoder_level1 = level(0, dim, num_blocks[0])
        self.down1_2 = Downsample(dim)
        self.encoder_level2 = level(1, 2 * dim, num_blocks[1])
        self.down2_3 = Downsample(2 * dim)
        self.encoder_level3 = level(2, 4 * dim, num_blocks[2])
        self.down3_4 = Downsample(4 * dim)
        self.latent = level(3, 8 * dim, num_blocks[3])

        self.up4_3 = Upsample(8 * dim)
        self.reduce_chan_level3 = Conv2d(8 * dim, 4 * dim, kernel_size=1, bias=bias)
        self.decoder_level3 = level(2, 4 * dim, num_blocks[2])
        self.up3_2 = Upsample(4 * dim)
        self.reduce_chan_level2 = Conv2d(4 * dim, 2 * dim, kernel_size=1, bias=bias)
        self.decoder_level2 = level(1, 2 * dim, num_blocks[1])
        self.up2_1 = Upsample(2 * dim)
        self.decoder_level1 = level(0, 2 * dim, num_blocks[0])
        self.refinement = level(0, 2 * dim, num_refinement_blocks)

    def features(
        self, embedded: Tensor, z1: Tensor | None, z2: Tensor | None, z3: Tensor | None
    ) -> Tensor:
        """From the patch embedding to what the last convolution takes.

        Args:
            embedded: (B, dim, H, W), H and W multiples of 8.
            z1, z2, z3: priors of level 1, of levels 2 and 3, and of the latent level.

        Returns:
            (B, 2·dim, H, W).
        """
        level1 = self.encoder_level1(embedded, z1)
        level2 = self.encoder_level2(self.down1_2(level1), z2)
        level3 = self.encoder_level3(self.down2_3(level2), z2)
        x = self.latent(self.down3_4(level3), z3)

        x = self.reduce_chan_level3(torch.cat([self.up4_3(x), level3], dim=1))
        x = self.decoder_level3(x, z2)
        x = self.reduce_chan_level2(torch.cat([self.up3_2(x), level2], dim=1))
        x = self.decoder_level2(x, z2)
        x = torch.cat([self.up2_1(x), level1], dim=1)
        x = self.decoder_level1(x, z1)
        return self.refinement(x, z1)


def _check_widths(
    dim: int,
    num_blocks: Sequence[int],
    num_refinement_blocks: int,
    heads: Sequence[int],
    ffn_expansion_factor: float,
    layer_norm_type: str,
) -> None:
    """Refuse what the U-shape cannot be built from, in the option file's words."""
    if len(num_blocks) != 4 or len(heads) != 4:
        raise UserError(
            f"num_blocks and heads need four entries, one a level; got {list(num_blocks)} and "
            f"{list(heads)}"
        )
    if layer_norm_type not in ("WithBias", "BiasFree"):
        raise UserError(f"LayerNorm_type '{layer_norm_type}': use 'WithBias' or 'BiasFree'")
    require_positive(dim=dim, **{f"heads[{i}]": head for i, head in enumerate(heads)})
    require_positive(
        0,
        num_refinement_blocks=num_refinement_blocks,
        **{f"num_blocks[{i}]": blocks for i, blocks in enumerate(num_blocks)},
    )
    if dim % 2:
        raise UserError(f"dim {dim} must be even: the first downsampling halves it")
    for index, head in enumerate(heads):
        channels = dim * 2**index
        if channels % head:
            raise UserError(
                f"heads[{index}] = {head} does not divide the {channels} channels of level "
                f"{index + 1} (dim {dim})"
            )
    if int(dim * ffn_expansion_factor) < 1:
        raise UserError(
            f"ffn_expansion_factor {ffn_expansion_factor} leaves no hidden channel: "
            f"int({dim} · {ffn_expansion_factor}) must be at least 1"
        )
