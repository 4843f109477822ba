"""The deblurring Transformer of HI-Diff: a Restormer guided by the prior (paper Sec. 3.1)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hidiff.archs.image_network import ImageNetwork
from hidiff.archs.restormer import (
    Conv2d,
    LayerNorm,
    TransformerBlock,
    at_least_float32,
)
from hidiff.archs.shapes import Shapes, expansion, square_side
from hidiff.archs.ushape import UShape
from hidiff.registry import ARCHS
from hidiff.utils.errors import UserError, require_positive

Guidance = Literal["multi_scale", "single_scale", "none"]

FEATURE_FORMAT = torch.channels_last
"""Memory format that the feature maps start in, and keep."""


class HIM(nn.Module):
    """Hierarchical integration module: cross-attention from pixels to prior tokens (Eq. 1).

    Released behaviour: logits are divided by the square root of the head's width, dim / heads,
    where Eq. 1 writes the full width.

    Args:
        dim: channels of the feature map, a multiple of `num_heads`.
        num_heads: number of heads.
        prior_dim: C' of the prior tokens.
        bias: whether `q` and `kv` have a bias (`proj` always has one).
        layer_norm_type: see `LayerNorm`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        prior_dim: int,
        *,
        bias: bool = False,
        layer_norm_type: str = "WithBias",
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = LayerNorm(dim, layer_norm_type)
        self.norm2 = LayerNorm(prior_dim, layer_norm_type)
        self.q = nn.Linear(dim, dim, bias=bias)
        self.kv = nn.Linear(prior_dim, 2 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim, bias=True)

    def forward(self, x: Tensor, prior: Tensor) -> Tensor:
        """x (B, dim, H, W), prior (B, n, C') → (B, dim, H, W).

        q kᵀ = norm1(x) · (Wqᵀ kᵀ) and (attention · v) Wprojᵀ = attention · (v Wprojᵀ): with at most
        16 tokens both products in brackets are far smaller than a projection of all pixels.
        """
        tokens = x.flatten(2).transpose(1, 2)  # (B, H·W, dim)
        heads = self.num_heads
        k, v = rearrange(self.kv(self.norm2(prior)), "b n (s h c) -> s b h n c", s=2, h=heads)
        k = k / math.sqrt(k.shape[-1])
        to_logits = torch.einsum("hci,bhnc->bihn", self.q.weight.unflatten(0, (heads, -1)), k)
        from_tokens = torch.einsum("ohc,bhnc->bhno", self.proj.weight.unflatten(1, (heads, -1)), v)
        logits = at_least_float32(self.norm1(tokens)) @ to_logits.flatten(2)  # (B, H·W, heads·n)
        if self.q.bias is not None:
            logits = (
                logits
                + torch.einsum("hc,bhnc->bhn", self.q.bias.unflatten(0, (heads, -1)), k).flatten(1)[
                    :, None
                ]
            )
        attention = logits.unflatten(2, (heads, -1)).softmax(dim=-1).flatten(2)
        out = torch.baddbmm(self.proj.bias, attention, from_tokens.flatten(1, 2))
        return x + out.to(x.dtype).transpose(1, 2).unflatten(2, x.shape[-2:])


class BasicLayer(nn.Module):
    """One level of the U-shape: HIM, then Restormer blocks.

    Args:
        dim, num_heads, ffn_expansion_factor, bias, layer_norm_type: see `TransformerBlock`.
        num_blocks: number of blocks.
        prior_dim: C' of the prior; None for a level that no prior guides.
        group: side of the level's token grid. Above 1 the level begins with HIM over group²
            tokens; at 1 the single token modulates every block instead.
    """

    him: HIM | None

    def __init__(
        self,
        dim: int,
        num_blocks: int,
        num_heads: int,
        ffn_expansion_factor: float,
        *,
        bias: bool,
        layer_norm_type: str,
        prior_dim: int | None,
        group: int,
    ) -> None:
        super().__init__()
        if prior_dim is not None and group > 1:
            self.him = HIM(dim, num_heads, prior_dim, bias=bias, layer_norm_type=layer_norm_type)
        else:
            self.him = None
        blocks = nn.ModuleList(
            TransformerBlock(
                dim,
                num_heads,
                ffn_expansion_factor,
                bias=bias,
                layer_norm_type=layer_norm_type,
                prior_dim=prior_dim if group == 1 else None,
            )
            for _ in range(num_blocks)
        )
        self.blocks = cast(Sequence[TransformerBlock], blocks)
        self.recompute = False

    def forward(self, x: Tensor, prior: Tensor | None = None) -> Tensor:
        """x (B, dim, H, W); prior (B, group², C'), (B, C') when group is 1, or None."""
        if prior is not None and self.him is not None:
            x, prior = self.him(x, prior), None
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                # Nothing random is in a block, so no generator's state needs to be kept.
                x = checkpoint(block, x, prior, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, prior)
        return x


class _Transpose(nn.Module):
    """(B, n, c) → (B, c, n)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def _prior_downsample(tokens_in: int, tokens_out: int, prior_dim: int) -> nn.Sequential:
    """Fewer prior tokens: a Linear over tokens, then one over channels (Fig. 1(c))."""
    return nn.Sequential(
        _Transpose(),
        nn.Linear(tokens_in, tokens_out),
        _Transpose(),
        nn.Linear(prior_dim, prior_dim),
    )


@ARCHS.register("Transformer")
class Transformer(UShape[BasicLayer], ImageNetwork):
    """Prior-guided Restormer (weights file `net_g`).

    With `prior` None it computes plain Restormer: HIM and the modulation are skipped.

    The attribute `feature_dtype` may be set to torch.bfloat16: the feature maps between patch
    embedding and last convolution then have it, while parameters, prior and output stay float32.
    None is the image's dtype.

    Args:
        inp_channels: channels of the input image.
        out_channels: channels of the output image; equal to `inp_channels` unless
            `dual_pixel_task`.
        dim: C, channels of the first level; level l has C·2^(l−1).
        num_blocks: blocks of the four levels; a decoder level has as many as its encoder level.
        num_refinement_blocks: blocks of the refinement stage at full resolution.
        heads: attention heads of the four levels.
        ffn_expansion_factor: see `FeedForward`.
        bias: whether convolutions and HIM's projections have a bias; the patch embedding and the
            changes of resolution never do.
        LayerNorm_type: 'WithBias' or 'BiasFree'.
        dual_pixel_task: for dual-pixel defocus images (Restormer): a 1×1 skip convolution of the
            patch embedding in place of the image residual.
        embed_dim: E; the prior has C' = 4E channels.
        group: the prior has N = group² tokens, at least 4² (N // 4 of them at levels 2 and 3).
        guidance: how the prior reaches the levels. 'multi_scale' (HI-Diff): fewer tokens at
            coarser levels (Fig. 1(c)). 'single_scale' (Single-Guide of Table 1): HIM with all
            tokens at every level. 'none' (Baseline of Table 1, Restormer of Table 4): the network
            has no parameters for a prior and takes none.
    """

    pad_multiple = (8, 8)  # The image is halved three times.

    def __init__(
        self,
        *,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        LayerNorm_type: str = "WithBias",
        dual_pixel_task: bool = False,
        embed_dim: int = 48,
        group: int = 4,
        guidance: Guidance = "multi_scale",
    ) -> None:
        super().__init__()
        if group < 4:
            raise UserError(f"group {group} must be at least 4: levels 2 and 3 halve it")
        require_positive(
            inp_channels=inp_channels,
            out_channels=out_channels,
            embed_dim=embed_dim,
        )
        if not dual_pixel_task and inp_channels != out_channels:
            raise UserError(
                f"out_channels {out_channels} must equal inp_channels {inp_channels}: the input "
                "image is added to the output (without dual_pixel_task)"
            )
        prior_dim = 4 * embed_dim
        self.title = f"Transformer, width {dim}, guidance {guidance}"
        self.in_channels = inp_channels
        self.ffn_expansion_factor = ffn_expansion_factor
        self.group = group
        self.prior_dim = prior_dim
        self.dual_pixel_task = dual_pixel_task
        self.guidance = guidance
        self.feature_dtype: torch.dtype | None = None

        if guidance == "multi_scale":
            tokens = group * group
            self.down_1 = _prior_downsample(tokens, tokens // 4, prior_dim)
            self.down_2 = _prior_downsample(tokens // 4, 1, prior_dim)

        grids = (group,) * 4 if guidance == "single_scale" else (group, group // 2, group // 2, 1)

        def level(index: int, channels: int, blocks: int) -> BasicLayer:
            return BasicLayer(
                channels,
                blocks,
                heads[index],
                ffn_expansion_factor,
                bias=bias,
                layer_norm_type=LayerNorm_type,
                prior_dim=None if guidance == "none" else prior_dim,
                group=grids[index],
            )

        self.build(
            level,
            inp_channels=inp_channels,
            dim=dim,
            num_blocks=num_blocks,
            num_refinement_blocks=num_refinement_blocks,
            heads=heads,
            ffn_expansion_factor=ffn_expansion_factor,
            bias=bias,
            layer_norm_type=LayerNorm_type,
        )
        if dual_pixel_task:
            self.skip_conv = Conv2d(dim, 2 * dim, kernel_size=1, bias=bias)
        self.output = Conv2d(2 * dim, out_channels, kernel_size=3, padding=1, bias=bias)

    @staticmethod
    def infer_options(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `ImageNetwork.infer_options`; with 'single_scale' no shape shows `group`.

        Levels without blocks get the usual number of heads.
        """
        shapes = Shapes(state_dict)
        dim, channels = shapes.matrix("patch_embed.proj.weight")
        levels = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
        heads = [1, 2, 4, 8]
        for index, level in [(0, "refinement"), *enumerate(levels)]:
            temperature = f"{level}.blocks.0.attn.temperature"
            if temperature in shapes:
                heads[index] = shapes[temperature][0]
        hidden = [shapes.matrix(name) for name in shapes.ending("ffn.project_out.weight")]
        options = {
            "inp_channels": channels,
            "out_channels": shapes["output.weight"][0],
            "dim": dim,
            "num_blocks": [shapes.count(rf"{level}\.blocks\.(\d+)\.") for level in levels],
            "num_refinement_blocks": shapes.count(r"refinement\.blocks\.(\d+)\."),
            "heads": heads,
            "ffn_expansion_factor": expansion(hidden, 2.66),
            "bias": "output.bias" in shapes,
            "dual_pixel_task": "skip_conv.weight" in shapes,
            "guidance": "none",
        }
        if shapes.ending("norm1.body.weight") and not shapes.ending("norm1.body.bias"):
            options["LayerNorm_type"] = "BiasFree"
        if "down_1.1.weight" in shapes:
            prior, tokens = shapes["down_1.3.weight"][0], shapes.matrix("down_1.1.weight")[1]
            options["guidance"] = "multi_scale"
            options["embed_dim"], options["group"] = prior // 4, square_side(tokens)
        elif "encoder_level1.him.kv.weight" in shapes:
            prior = shapes.matrix("encoder_level1.him.kv.weight")[1]
            options["guidance"], options["embed_dim"] = "single_scale", prior // 4
        return options

    def recompute_levels(self, levels: Collection[int]) -> None:
        """Keep no activations of these levels' blocks; the backward pass computes them again.

        Args:
            levels: of 1 … 4; a level is its encoder and decoder, and level 1 the refinement too.
        """
        for level, parts in enumerate(self.levels(), start=1):
            for part in parts:
                part.recompute = level in levels

    def levels(self) -> tuple[tuple[BasicLayer, ...], ...]:
        """The parts of the four levels, from full to an eighth of the resolution."""
        return (
            (self.encoder_level1, self.decoder_level1, self.refinement),
            (self.encoder_level2, self.decoder_level2),
            (self.encoder_level3, self.decoder_level3),
            (self.latent,),
        )

    def outputs(self, image: Tensor) -> tuple[Tensor]:
        """The restored image, without a prior."""
        return (self(image),)

    def forward(  # type: ignore[override]  # with a prior, and one image
        self, inp_img: Tensor, prior: Tensor | None = None
    ) -> Tensor:
        """Restore.

        Args:
            inp_img: (B, 3, H, W) RGB in [0, 1], H and W multiples of 8.
            prior: (B, N, C') or None; None with `guidance` 'none'.

        Returns:
            (B, 3, H, W), about [0, 1], not clamped.
        """
        assert prior is None or self.guidance != "none", "this network takes no prior"
        z1 = z2 = z3 = prior  # (B, N, C')
        if prior is not None and self.guidance == "multi_scale":
            z2 = self.down_1(z1)  # (B, N/4, C')
            z3 = self.down_2(z2).flatten(1)  # (B, C')

        dtype = self.feature_dtype or inp_img.dtype
        embedded = self.patch_embed(inp_img.contiguous(memory_format=FEATURE_FORMAT)).to(dtype)
        x = self.features(embedded, z1, z2, z3)
        if self.dual_pixel_task:
            return self.output((x + self.skip_conv(embedded)).to(inp_img.dtype))
        return self.output(x.to(inp_img.dtype)) + inp_img
