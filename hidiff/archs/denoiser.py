"""Denoising networks ε_θ(z_t, c, t) of the latent diffusion model (paper Sec. 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hidiff.archs.mixer import Mixer
from hidiff.registry import ARCHS
from hidiff.utils.errors import UserError, require_positive


@ARCHS.register("denoising")
class Denoiser(nn.Module):
    """The GoPro model's denoiser: mixes tokens and channels.

    Args:
        in_channel: C', channels of z_t and of the condition.
        out_channel: channels of the prediction, equal to C' in a diffusion model. Released
            behaviour: the defaults do not fit each other; the option files give both.
        inner_channel: width of the mixer blocks.
        block_num: layers counted with the first and the last; block_num − 2 are mixers.
        layerscale_value: initial value of the learned time scale.
        group: N = group² tokens.
        patch_expansion, channel_expansion: see `Mixer`.
    """

    def __init__(
        self,
        *,
        in_channel: int = 6,
        out_channel: int = 3,
        inner_channel: int = 32,
        block_num: int = 3,
        layerscale_value: float = 1e-3,
        group: int = 4,
        patch_expansion: float = 0.5,
        channel_expansion: float = 4.0,
    ) -> None:
        super().__init__()
        if block_num < 2:
            raise UserError(f"block_num {block_num} counts the first and last layer: at least 2")
        require_positive(
            in_channel=in_channel,
            out_channel=out_channel,
            inner_channel=inner_channel,
            group=group,
        )
        self.prior_dim = in_channel
        self.out_channel = out_channel
        self.group = group
        self.time_mlp = nn.Parameter(torch.full((1,), layerscale_value))
        self.first_layer = nn.Sequential(
            nn.Linear(3 * in_channel, inner_channel), nn.LeakyReLU(0.2)
        )
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    Mixer(inner_channel, group * group, patch_expansion, channel_expansion),
                    nn.GELU(),
                )
                for _ in range(block_num - 2)
            )
        )
        self.final_layer = nn.Sequential(nn.Linear(inner_channel, out_channel), nn.GELU())

    def forward(self, x: Tensor, c: Tensor, time: Tensor | float) -> Tensor:
        """Predict the noise in z_t.

        Args:
            x: z_t (B, N, C').
            c: condition (B, N, C').
            time: t + 1, in 1 … T; a number or a tensor that broadcasts to x.

        Returns:
            (B, N, C').
        """
        t = (time * self.time_mlp).expand_as(x)
        return self.final_layer(self.blocks(self.first_layer(torch.cat([x, t, c], dim=-1))))


class _LinearLReLU(nn.Module):
    """Linear and LeakyReLU 0.1. Released behaviour: despite its name `resmlp` adds no residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.resmlp = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.resmlp(x)


@ARCHS.register("simple_denoise")
class SimpleDenoiser(nn.Module):
    """The RealBlur models' denoiser: an MLP on each token by itself; it predicts z_0.

    Args:
        n_feats: E; a token has C' = 4E channels.
        n_denoise_res: hidden layers.
        timesteps: scale of the time input t / (10 · timesteps). Released behaviour: left at 5
            whatever T is.
    """

    def __init__(self, *, n_feats: int = 64, n_denoise_res: int = 5, timesteps: int = 5) -> None:
        super().__init__()
        require_positive(n_feats=n_feats, timesteps=timesteps)
        require_positive(0, n_denoise_res=n_denoise_res)
        width = 4 * n_feats
        self.prior_dim = self.out_channel = width
        self.group = None  # Each token by itself, so any number of them.
        self.max_period = 10.0 * timesteps
        self.resmlp = nn.Sequential(
            nn.Linear(2 * width + 1, width),
            nn.LeakyReLU(0.1),
            *(_LinearLReLU(width) for _ in range(n_denoise_res)),
        )

    def forward(self, x: Tensor, c: Tensor, time: Tensor | float) -> Tensor:
        """Predict z_0.

        Args:
            x: z_t (B, N, C').
            c: condition (B, N, C').
            time: t, in 0 … T − 1; a number or a tensor that broadcasts to (B, N, 1).

        Returns:
            (B, N, C').
        """
        scaled = time / self.max_period
        # A number is filled in on the device; a tensor made from it would have to be copied there.
        t = scaled.to(x) if isinstance(scaled, Tensor) else x.new_full((), scaled)
        t = t.expand(*x.shape[:-1], 1)
        return self.resmlp(torch.cat([c, t, x], dim=-1))
