"""Denoising networks ε_θ(z_t, c, t) of the latent diffusion model (paper Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from hidiff.archs.mixer import Mixer
from hidiff.archs.shapes import Shapes
from hidiff.registry import ARCHS


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
        in_channel: PositiveInt = 6,
        out_channel: PositiveInt = 3,
        inner_channel: PositiveInt = 32,
        block_num: Annotated[int, Ge(2)] = 3,
        layerscale_value: float = 1e-3,
        group: PositiveInt = 4,
        patch_expansion: float = 0.5,
        channel_expansion: float = 4.0,
    ) -> None:
        super().__init__()
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

    @staticmethod
    def infer_options(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `ImageNetwork.infer_options`; without mixers no shape shows `group`."""
        shapes = Shapes(state_dict)
        shapes["time_mlp"]
        inner, inputs = shapes.matrix("first_layer.0.weight")
        mixers = shapes.count(r"blocks\.(\d+)\.")
        options: dict[str, Any] = {
            "in_channel": inputs // 3,
            "out_channel": shapes["final_layer.0.weight"][0],
            "inner_channel": inner,
            "block_num": mixers + 2,
        }
        return options | (Mixer.infer_options(shapes, "blocks.0.0", 2.0) if mixers else {})

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

    def __init__(
        self,
        *,
        n_feats: PositiveInt = 64,
        n_denoise_res: NonNegativeInt = 5,
        timesteps: PositiveInt = 5,
    ) -> None:
        super().__init__()
        width = 4 * n_feats
        self.prior_dim = self.out_channel = width
        self.group = None  # Each token by itself, so any number of them.
        self.max_period = 10.0 * timesteps
        self.resmlp = nn.Sequential(
            nn.Linear(2 * width + 1, width),
            nn.LeakyReLU(0.1),
            *(_LinearLReLU(width) for _ in range(n_denoise_res)),
        )

    @staticmethod
    def infer_options(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `ImageNetwork.infer_options`; no shape shows `timesteps`."""
        shapes = Shapes(state_dict)
        return {
            "n_feats": shapes["resmlp.0.weight"][0] // 4,
            "n_denoise_res": shapes.count(r"resmlp\.(\d+)\.resmlp\."),
        }

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
