"""One level of the Transformer: hierarchical integration of the prior, then Restormer's blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hidiff.archs.restormer import LayerNorm, TransformerBlock, at_least_float32


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
        him: where several tokens guide the level. Where a single one does, it modulates every
            block instead.
        blocks: see above.
    """

    def __init__(self, him: HIM | None, blocks: Iterable[TransformerBlock]) -> None:
        super().__init__()
        self.him = him
        self.blocks = cast(Sequence[TransformerBlock], nn.ModuleList(blocks))
        self.recompute = False

    def forward(self, x: Tensor, prior: Tensor | None = None) -> Tensor:
        """x (B, dim, H, W); prior (B, n, C') for HIM, (B, C') without it, or None."""
        if prior is not None and self.him is not None:
            x, prior = self.him(x, prior), None
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                # Nothing random is in a block, so no generator's state needs to be kept.
                x = checkpoint(block, x, prior, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, prior)
        return x
