"""The token/channel mixer that the latent encoders and the `denoising` network share."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hidiff.archs.shapes import Shapes, expansion, square_side
from hidiff.utils.errors import UserError


class Mixer(nn.Module):
    """MLP-Mixer layer: a residual MLP over tokens, then one over channels.

    Args:
        width: channels of a token.
        tokens: number of tokens.
        patch_expansion: hidden width of the token MLP, relative to `tokens`.
        channel_expansion: hidden width of the channel MLP, relative to `width`.

    Raises:
        UserError: an expansion leaves no hidden channel.
    """

    def __init__(
        self, width: int, tokens: int, patch_expansion: float, channel_expansion: float
    ) -> None:
        super().__init__()
        token_hidden, channel_hidden = int(tokens * patch_expansion), int(width * channel_expansion)
        for option, hidden, value in (
            ("patch_expansion", token_hidden, patch_expansion),
            ("channel_expansion", channel_hidden, channel_expansion),
        ):
            if hidden < 1:
                raise UserError(f"{option} {value} leaves no hidden channel; 0.5 and 4 are usual")
        self.patch_mixer = nn.Sequential(
            nn.Linear(tokens, token_hidden), nn.GELU(), nn.Linear(token_hidden, tokens)
        )
        self.channel_mixer = nn.Sequential(
            nn.Linear(width, channel_hidden), nn.GELU(), nn.Linear(channel_hidden, width)
        )
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    @staticmethod
    def infer_options(shapes: Shapes, place: str, channel_expansion: float) -> dict[str, Any]:
        """`group` and the two expansions of the mixer of that name.

        Args:
            shapes: of the weights of the network that it is in.
            place: the mixer's name there.
            channel_expansion: the usual one.
        """
        token_hidden, tokens = shapes.matrix(f"{place}.patch_mixer.0.weight")
        channel_hidden, width = shapes.matrix(f"{place}.channel_mixer.0.weight")
        return {
            "group": square_side(tokens),
            "patch_expansion": expansion([(tokens, token_hidden)], 0.5),
            "channel_expansion": expansion([(width, channel_hidden)], channel_expansion),
        }

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, width) → (B, tokens, width)."""
        x = x + self.patch_mixer(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mixer(self.norm2(x))
