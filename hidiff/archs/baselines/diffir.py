"""DiffIR: Restormer guided by one vector, which a diffusion model makes (Xia et al., ICCV 2023).

HI-Diff comes from it. Here one prior (B, 256) modulates every attention and every feed-forward
network, where HI-Diff's levels attend to prior tokens of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidiff.archs.baselines.layers import conv3x3
from hidiff.archs.denoiser import SimpleDenoiser
from hidiff.archs.image_network import ImageNetwork
from hidiff.archs.restormer import Conv2d, TransformerBlock
from hidiff.archs.ushape import UShape
from hidiff.diffusion import DiffusionTables, beta_schedule
from hidiff.diffusion.latent_ddpm import noised
from hidiff.registry import ARCHS
from hidiff.utils.errors import UserError, require_positive


class ModulatedBlock(TransformerBlock):
    """A block whose branches take norm(x) · s + b, with s and b from the prior (B, prior_dim)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_expansion_factor: float,
        *,
        bias: bool,
        layer_norm_type: str,
        prior_dim: int,
    ) -> None:
        super().__init__(
            dim, num_heads, ffn_expansion_factor, bias=bias, layer_norm_type=layer_norm_type
        )
        for branch in (self.attn, self.ffn):
            branch.kernel = nn.Sequential(nn.Linear(prior_dim, 2 * dim, bias=False))

    def forward(self, x: Tensor, prior: Tensor) -> Tensor:  # type: ignore[override]  # never None
        """(B, dim, H, W), prior (B, prior_dim) → (B, dim, H, W)."""
        of_attn, of_ffn = cast(nn.Module, self.attn.kernel), cast(nn.Module, self.ffn.kernel)
        x = x + self.attn(self.norm1(x, *of_attn(prior).chunk(2, dim=1)))
        return x + self.ffn(self.norm2(x, *of_ffn(prior).chunk(2, dim=1)))


class Level(nn.Sequential):
    """Blocks one after the other, all with the same prior."""

    def forward(self, x: Tensor, prior: Tensor) -> Tensor:  # type: ignore[override]  # two inputs
        for block in self:
            x = block(x, prior)
        return x


class GuidedRestormer(UShape[Level]):
    """Restormer with a modulated block everywhere; the arguments are those of `DiffIRS1`."""

    def __init__(
        self,
        *,
        inp_channels: int,
        out_channels: int,
        dim: int,
        num_blocks: Sequence[int],
        num_refinement_blocks: int,
        heads: Sequence[int],
        ffn_expansion_factor: float,
        bias: bool,
        LayerNorm_type: str,
        n_feats: int,
    ) -> None:
        super().__init__()
        if (inp_channels, out_channels) != (3, 3):
            raise UserError(
                f"inp_channels {inp_channels} and out_channels {out_channels} must be 3: the "
                "encoder takes RGB images too"
            )

        def level(index: int, channels: int, blocks: int) -> Level:
            options: dict[str, Any] = {
                "bias": bias,
                "layer_norm_type": LayerNorm_type,
                "prior_dim": 4 * n_feats,
            }
            arguments = (channels, heads[index], ffn_expansion_factor)
            return Level(*(ModulatedBlock(*arguments, **options) for _ in range(blocks)))

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
        self.output = Conv2d(2 * dim, out_channels, kernel_size=3, padding=1, bias=bias)

    def forward(self, image: Tensor, prior: Tensor) -> Tensor:
        """Image (B, 3, H, W), prior (B, prior_dim) → (B, 3, H, W)."""
        embedded = self.patch_embed(image.contiguous(memory_format=torch.channels_last))
        return self.output(self.features(embedded, prior, prior, prior)) + image


def leaky_relu() -> nn.Module:
    return nn.LeakyReLU(0.1)


class ResidualUnit(nn.Module):
    """x + conv(activation(conv(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv3x3(channels, channels), leaky_relu(), conv3x3(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@ARCHS.register("DiffIREncoder")
class PriorEncoder(nn.Module):
    """From images to the prior.

    Args:
        in_channels: of the images together.
        n_encoder_res: number of residual units.
        n_feats: width of the first convolutions; the prior has four times as many numbers.
    """

    def __init__(self, *, in_channels: int = 6, n_encoder_res: int = 5, n_feats: int = 64) -> None:
        super().__init__()
        require_positive(in_channels=in_channels, n_feats=n_feats)
        require_positive(0, n_encoder_res=n_encoder_res)
        self.prior_dim = prior_dim = 4 * n_feats
        widths = (n_feats, 2 * n_feats, 2 * n_feats, prior_dim)
        widening: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            widening += [conv3x3(narrow, wide), leaky_relu()]
        self.E = nn.Sequential(
            conv3x3(16 * in_channels, n_feats),
            leaky_relu(),
            *(ResidualUnit(n_feats) for _ in range(n_encoder_res)),
            *widening,
        )
        self.mlp = nn.Sequential(
            nn.Linear(prior_dim, prior_dim),
            leaky_relu(),
            nn.Linear(prior_dim, prior_dim),
            leaky_relu(),
        )

    def forward(self, *images: Tensor) -> Tensor:
        """(B, 3, H, W) each, the blurry first, H and W multiples of 4 → (B, prior_dim)."""
        x = F.pixel_unshuffle(torch.cat(images, dim=1), 4)
        return self.mlp(self.E(x).mean(dim=(2, 3)))


class Diffusion(DiffusionTables):
    """The diffusion model on the prior: its denoiser predicts z_0, and its chain adds no noise.

    Published files hold its tables, and repeat here the weights of the two networks.

    Args:
        model: the denoiser.
        condition: the encoder of the blurry image.
        betas: β_0 … β_{T−1}, float64.
    """

    def __init__(self, model: SimpleDenoiser, condition: PriorEncoder, betas: np.ndarray) -> None:
        super().__init__(betas)
        alphas_cumprod = np.cumprod(1.0 - betas)
        previous = np.append(1.0, alphas_cumprod[:-1])
        variance = betas * (1.0 - previous) / (1.0 - alphas_cumprod)
        unused = {
            "alphas_cumprod_prev": previous,
            "log_one_minus_alphas_cumprod": np.log(1.0 - alphas_cumprod),
            "posterior_variance": variance,
            "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        }
        tables = {name: torch.from_numpy(values).float() for name, values in unused.items()}
        for name, table in {**dict(self.named_buffers()), **tables}.items():
            self.register_buffer(name, table)  # now part of the state dict
        self.model = model
        self.condition = condition

    def noised_to_end(self, prior: Tensor, noise: Tensor) -> Tensor:
        """The prior at step T − 1; all (B, prior_dim)."""
        scale = self.sqrt_alphas_cumprod[-1].to(prior)
        return noised(prior, noise, scale, self.sqrt_one_minus_alphas_cumprod[-1].to(prior))

    def reverse(self, z: Tensor, c: Tensor) -> list[Tensor]:
        """The priors after each step of the chain from z, given the condition c.

        All are (B, prior_dim).
        """
        priors = []
        for t in reversed(range(self.timesteps)):
            coef1, coef2 = self.posterior_mean_coef1[t].to(z), self.posterior_mean_coef2[t].to(z)
            z = coef1 * self.model(z, c, t) + coef2 * z
            priors.append(z)
        return priors


@ARCHS.register()
class DiffIRS1(nn.Module):
    """DiffIR's first stage: the prior comes from the blurry and the sharp image.

    Args:
        n_encoder_res, n_feats: see `PriorEncoder`; with the published 64 the prior is (B, 256).
        inp_channels, out_channels: of the images, both 3.
        dim, num_blocks, num_refinement_blocks, heads, ffn_expansion_factor, bias, LayerNorm_type:
            see `hidiff.archs.Transformer`.
    """

    pad_multiple = (8, 8)

    def __init__(
        self,
        *,
        n_encoder_res: int = 5,
        n_feats: int = 64,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (3, 5, 6, 6),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2,
        bias: bool = False,
        LayerNorm_type: str = "WithBias",
    ) -> None:
        super().__init__()
        self.title = f"DiffIR, stage 1, width {dim}"
        self.G = GuidedRestormer(
            inp_channels=inp_channels,
            out_channels=out_channels,
            dim=dim,
            num_blocks=num_blocks,
            num_refinement_blocks=num_refinement_blocks,
            heads=heads,
            ffn_expansion_factor=ffn_expansion_factor,
            bias=bias,
            LayerNorm_type=LayerNorm_type,
            n_feats=n_feats,
        )
        self.E = PriorEncoder(in_channels=6, n_encoder_res=n_encoder_res, n_feats=n_feats)

    def forward(self, image: Tensor, gt: Tensor) -> tuple[Tensor, Tensor]:
        """Restore with what the sharp image says.

        Args:
            image, gt: blurry and sharp image (B, 3, H, W), RGB in [0, 1], sides multiples of 8.

        Returns:
            The restored image (B, 3, H, W), not clamped, and the prior (B, prior_dim).
        """
        prior = self.E(image, gt)
        return self.G(image, prior), prior


@ARCHS.register()
class DiffIRS2(ImageNetwork):
    """DiffIR's second stage: the diffusion model makes the prior, given the blurry image.

    Args:
        n_encoder_res, n_feats, inp_channels, out_channels, dim, num_blocks,
        num_refinement_blocks, heads, ffn_expansion_factor, bias, LayerNorm_type: see `DiffIRS1`.
        n_denoise_res: hidden layers of the denoiser.
        linear_start, linear_end: β of the first and the last step; √β grows evenly between them.
        timesteps: T.
    """

    pad_multiple = (8, 8)

    def __init__(
        self,
        *,
        n_encoder_res: int = 5,
        n_feats: int = 64,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (3, 5, 6, 6),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2,
        bias: bool = False,
        LayerNorm_type: str = "WithBias",
        n_denoise_res: int = 1,
        linear_start: float = 0.1,
        linear_end: float = 0.99,
        timesteps: int = 4,
    ) -> None:
        super().__init__()
        self.title = f"DiffIR, stage 2, width {dim}"
        self.prior_dim = 4 * n_feats
        require_positive(timesteps=timesteps)
        for name, beta in (("linear_start", linear_start), ("linear_end", linear_end)):
            if not 0 < beta < 1:
                raise UserError(f"{name} {beta} must be between 0 and 1")
        self.G = GuidedRestormer(
            inp_channels=inp_channels,
            out_channels=out_channels,
            dim=dim,
            num_blocks=num_blocks,
            num_refinement_blocks=num_refinement_blocks,
            heads=heads,
            ffn_expansion_factor=ffn_expansion_factor,
            bias=bias,
            LayerNorm_type=LayerNorm_type,
            n_feats=n_feats,
        )
        self.condition = PriorEncoder(in_channels=3, n_encoder_res=n_encoder_res, n_feats=n_feats)
        self.denoise = SimpleDenoiser(
            n_feats=n_feats, n_denoise_res=n_denoise_res, timesteps=timesteps
        )
        betas = beta_schedule("linear", timesteps, linear_start, linear_end, apply_ldm=True)
        self.diffusion = Diffusion(self.denoise, self.condition, betas)

    def priors(self, image: Tensor, z: Tensor) -> list[Tensor]:
        """The priors after each step of the chain that starts from z; all (B, prior_dim)."""
        return self.diffusion.reverse(z, self.condition(image))

    def outputs(self, image: Tensor, *, noise: Tensor | None = None) -> tuple[Tensor]:
        """The restored image; the chain starts from `noise` (B, prior_dim), by default drawn."""
        if noise is None:
            noise = torch.randn(len(image), self.prior_dim, dtype=image.dtype, device=image.device)
        return (self.G(image, self.priors(image, noise)[-1]),)

    def from_prior(
        self, image: Tensor, prior: Tensor, *, noise: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The pass of training: estimate stage 1's prior from what noise leaves of it, and restore.

        Args:
            image: (B, 3, H, W), as for `forward`.
            prior: of stage 1 (B, prior_dim).
            noise: standard normal (B, prior_dim).

        Returns:
            The restored image, and the priors after each step, the last of which it is made with.
        """
        priors = self.priors(image, self.diffusion.noised_to_end(prior, noise))
        return self.G(image, priors[-1]), priors
