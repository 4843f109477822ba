"""The deblurring Transformer of HI-Diff: a Restormer guided by the prior (paper Sec. 3.1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Len
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from hidiff.archs.image_network import ImageNetwork
from hidiff.archs.levels import HIM as HIM
from hidiff.archs.levels import BasicLayer
from hidiff.archs.restormer import Conv2d, Downsample, PatchEmbed, TransformerBlock, Upsample
from hidiff.archs.shapes import Shapes, expansion, square_side
from hidiff.registry import ARCHS
from hidiff.utils.errors import UserError

Guidance = Literal["multi_scale", "single_scale", "vector", "none"]
TITLES: dict[Guidance, str] = {
    "multi_scale": "HI-Diff",
    "single_scale": "HI-Diff with a prior of one scale",
    "vector": "DiffIR",
    "none": "Restormer",
}
"""What people call the network with each kind of guidance."""

NormType = Literal["WithBias", "BiasFree"]

Priors = tuple[Tensor | None, Tensor | None, Tensor | None]
"""What guides level 1, levels 2 and 3, and the latent level 4."""

FEATURE_FORMAT = torch.channels_last
"""Memory format that the feature maps start in, and keep."""


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


class Steps:
    """The steps of the U-shape on whole feature maps; `hidiff.archs.strips` has its own way."""

    def level(self, layer: BasicLayer, x: Tensor, prior: Tensor | None) -> Tensor:
        """One level, (B, C, H, W) → the same shape."""
        return layer(x, prior)

    def down(self, layer: Downsample, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, 2C, H/2, W/2)."""
        return layer(x)

    def up(self, layer: Upsample, x: Tensor, skip: Tensor, reduce: Conv2d | None) -> Tensor:
        """x (B, 2C, H/2, W/2) upsampled beside the skip (B, C, H, W), reduced to C channels."""
        x = torch.cat([layer(x), skip], dim=1)
        return x if reduce is None else reduce(x)


@ARCHS.register("Transformer")
class Transformer(ImageNetwork):
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
            tokens at every level. 'vector' (DiffIR): one token, which modulates every block,
            whatever `group` says. 'none' (Baseline of Table 1, Restormer of Table 4): the network
            has no parameters for a prior and takes none.
    """

    pad_multiple = (8, 8)  # The image is halved three times.

    def __init__(
        self,
        *,
        inp_channels: PositiveInt = 3,
        out_channels: PositiveInt = 3,
        dim: PositiveInt = 48,
        num_blocks: Annotated[Sequence[NonNegativeInt], Len(4, 4)] = (4, 6, 6, 8),
        num_refinement_blocks: NonNegativeInt = 4,
        heads: Annotated[Sequence[PositiveInt], Len(4, 4)] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        LayerNorm_type: NormType = "WithBias",
        dual_pixel_task: bool = False,
        embed_dim: PositiveInt = 48,
        group: PositiveInt = 4,
        guidance: Guidance = "multi_scale",
    ) -> None:
        super().__init__()
        _check_widths(dim, heads, ffn_expansion_factor)
        if group < 4 and guidance in ("multi_scale", "single_scale"):
            raise UserError(f"group {group} must be at least 4: levels 2 and 3 halve it")
        if not dual_pixel_task and inp_channels != out_channels:
            raise UserError(
                f"out_channels {out_channels} must equal inp_channels {inp_channels}: the input "
                "image is added to the output (without dual_pixel_task)"
            )
        self.title = f"{TITLES[guidance]}, width {dim}"
        self.in_channels = inp_channels
        self.ffn_expansion_factor = ffn_expansion_factor
        self.group = 1 if guidance == "vector" else group
        self.prior_dim = prior_dim = 4 * embed_dim
        self.dual_pixel_task = dual_pixel_task
        self.guidance = guidance
        self.feature_dtype: torch.dtype | None = None

        if guidance == "multi_scale":
            tokens = group * group
            self.down_1 = _prior_downsample(tokens, tokens // 4, prior_dim)
            self.down_2 = _prior_downsample(tokens // 4, 1, prior_dim)
        grids = {
            "multi_scale": (group, group // 2, group // 2, 1),
            "single_scale": (group, group, group, group),
        }.get(guidance, (1, 1, 1, 1))

        def level(index: int, channels: int, blocks: int) -> BasicLayer:
            by_tokens = guidance != "none" and grids[index] > 1
            modulated = guidance != "none" and grids[index] == 1
            norm: dict[str, Any] = {"bias": bias, "layer_norm_type": LayerNorm_type}
            him = HIM(channels, heads[index], prior_dim, **norm) if by_tokens else None
            return BasicLayer(
                him,
                (
                    TransformerBlock(
                        channels,
                        heads[index],
                        ffn_expansion_factor,
                        **norm,
                        prior_dim=prior_dim if modulated else None,
                        prior_bias=guidance != "vector",
                    )
                    for _ in range(blocks)
                ),
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
        elif modulations := shapes.ending("attn.ln1.weight"):
            prior = shapes.matrix(modulations[0])[1]
            options["guidance"], options["embed_dim"] = "vector", prior // 4
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
        dtype = self.feature_dtype or inp_img.dtype
        embedded = self.patch_embed(inp_img.contiguous(memory_format=FEATURE_FORMAT)).to(dtype)
        x = self.u_shape(embedded, self.level_priors(prior), Steps())  # (B, 2·dim, H, W)
        if self.dual_pixel_task:
            return self.output((x + self.skip_conv(embedded)).to(inp_img.dtype))
        return self.output(x.to(inp_img.dtype)) + inp_img

    def level_priors(self, prior: Tensor | None) -> Priors:
        """The priors of the levels (Fig. 1(c)), from z (B, N, C') or None."""
        assert prior is None or self.guidance != "none", "this network takes no prior"
        if prior is None or self.guidance == "single_scale":
            return prior, prior, prior
        if self.guidance == "vector":
            vector = prior.flatten(1)  # (B, C')
            return vector, vector, vector
        z2 = self.down_1(prior)  # (B, N/4, C')
        return prior, z2, self.down_2(z2).flatten(1)  # the last (B, C')

    def u_shape(self, x: Tensor, priors: Priors, steps: Steps) -> Tensor:
        """From the patch embedding (B, dim, H, W) to what the last convolution takes.

        Args:
            x: see above; H and W are multiples of 8.
            priors: see `level_priors`.
            steps: how each step is computed.

        Returns:
            (B, 2·dim, H, W).
        """
        z1, z2, z3 = priors
        level1 = steps.level(self.encoder_level1, x, z1)
        level2 = steps.level(self.encoder_level2, steps.down(self.down1_2, level1), z2)
        level3 = steps.level(self.encoder_level3, steps.down(self.down2_3, level2), z2)
        x = steps.level(self.latent, steps.down(self.down3_4, level3), z3)

        # What is not needed any more is given up at once.
        x = steps.up(self.up4_3, x, level3, self.reduce_chan_level3)
        del level3
        x = steps.level(self.decoder_level3, x, z2)
        x = steps.up(self.up3_2, x, level2, self.reduce_chan_level2)
        del level2
        x = steps.level(self.decoder_level2, x, z2)
        x = steps.up(self.up2_1, x, level1, None)
        del level1
        x = steps.level(self.decoder_level1, x, z1)
        return steps.level(self.refinement, x, z1)


def _check_widths(dim: int, heads: Sequence[int], ffn_expansion_factor: float) -> None:
    """Refuse widths that the U-shape cannot be built from, in the option file's words."""
    if dim % 2:
        raise UserError(f"dim {dim} must be even: the first downsampling halves it")
    for index, head in enumerate(heads):
        if (channels := dim * 2**index) % head:
            raise UserError(
                f"heads[{index}] = {head} does not divide the {channels} channels of level "
                f"{index + 1} (dim {dim})"
            )
    if int(dim * ffn_expansion_factor) < 1:
        raise UserError(
            f"ffn_expansion_factor {ffn_expansion_factor} leaves no hidden channel: "
            f"int({dim} · {ffn_expansion_factor}) must be at least 1"
        )
