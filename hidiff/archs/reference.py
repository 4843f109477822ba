"""The networks as the papers write them, step by step: a place to start reading.

The modules of `hidiff.archs` compute the same formulas in a faster order. These functions are what
the tests compare them with, what benchmarks take as the baseline, and what multiply-accumulates are
counted from. Each takes a module for its parameters, and computes what its `forward` computes;
`reference_formulas()` makes the modules use them.

The symbols are the papers': X a feature map (B, C, H, W), z a prior (B, N, C').
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hidiff.archs import restormer, transformer


def layer_norm(norm: restormer.LayerNorm, x: Tensor) -> Tensor:
    """Layer normalisation over the last axis, (…, C) → (…, C); BiasFree keeps the mean."""
    variance = x.var(-1, keepdim=True, unbiased=False)
    if norm.body.bias is None:
        return x / torch.sqrt(variance + restormer.LAYER_NORM_EPS) * norm.body.weight
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + restormer.LAYER_NORM_EPS) * norm.body.weight + (
        norm.body.bias
    )


def modulated_norm(
    norm: restormer.LayerNorm2d, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """Layer norm over the channels of X, then the coarsest prior's modulation, as in DiffIR.

    norm(X) · Linear₁(z₃) + Linear₂(z₃); scale and shift (B, C) are the two linear layers' results.
    """
    x = from_tokens(layer_norm(norm, to_tokens(x)), x.shape)
    if scale is None or shift is None:
        return x
    return x * scale[:, :, None, None] + shift[:, :, None, None]


def mdta(layer: restormer.Attention, x: Tensor) -> Tensor:
    """Multi-head attention between channels (Restormer, Eq. 1).

    X̂ = W_p · Attention(Q, K, V), with Attention = softmax(K·Q / α) · V over channels; Q, K and V
    are 1×1 then 3×3 depthwise convolutions of X, and Q and K have rows of length 1.
    """
    q, k, v = (
        t.flatten(2).unflatten(1, (layer.num_heads, -1))  # (B, heads, c, H·W)
        for t in layer.qkv_dwconv(layer.qkv(x)).chunk(3, dim=1)
    )
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    attention = (q @ k.transpose(-2, -1) * layer.temperature).softmax(dim=-1)  # (B, heads, c, c)
    return layer.project_out((attention @ v).reshape_as(x))


def gdfn(layer: restormer.FeedForward, x: Tensor) -> Tensor:
    """The gated feed-forward network (Restormer, Eq. 2): W_p (GELU(W_d¹ X) ⊙ W_d² X)."""
    gate, value = layer.dwconv(layer.project_in(x)).chunk(2, dim=1)
    return layer.project_out(F.gelu(gate) * value)


def him(layer: transformer.HIM, x: Tensor, z: Tensor) -> Tensor:
    """Hierarchical integration: cross-attention from pixels to prior tokens (HI-Diff, Eq. 1).

    Q = W_q X, K = W_k z, V = W_v z; X + W_o · softmax(Q Kᵀ / √d) · V.
    """
    tokens = to_tokens(x)  # (B, H·W, C)
    q = layer.q(layer_norm(layer.norm1, tokens))
    k, v = layer.kv(layer_norm(layer.norm2, z)).chunk(2, dim=-1)
    q, k, v = (t.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    attention = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    integrated = (attention @ v).transpose(1, 2).flatten(2)
    return from_tokens(tokens + layer.proj(integrated), x.shape)


def resample(layer: restormer.Downsample | restormer.Upsample, x: Tensor) -> Tensor:
    """A 3×3 convolution, then pixel unshuffle (down) or pixel shuffle (up)."""
    return layer.body(x)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, H·W, C)."""
    return x.flatten(2).transpose(1, 2)


def from_tokens(tokens: Tensor, shape: torch.Size) -> Tensor:
    """(B, H·W, C) → (B, C, H, W) of that shape."""
    return tokens.transpose(1, 2).reshape(shape)


FORWARD: tuple[tuple[Any, str, Any], ...] = (
    (restormer.LayerNorm, "forward", layer_norm),
    (restormer.LayerNorm2d, "forward", modulated_norm),
    (restormer.Attention, "forward", mdta),
    (restormer.DepthwiseConv2d, "forward", restormer.Conv2d.forward),
    (restormer.FeedForward, "forward", gdfn),
    (restormer.Downsample, "forward", resample),
    (restormer.Upsample, "forward", resample),
    (transformer.HIM, "forward", him),
    # The papers' code keeps features in PyTorch's default layout.
    (transformer, "FEATURE_FORMAT", torch.contiguous_format),
)
"""What `reference_formulas` replaces: owner, attribute, reference."""


@contextmanager
def reference_formulas() -> Iterator[None]:
    """Every network of this process computes by the functions above while this is entered."""
    fast = [getattr(owner, name) for owner, name, _ in FORWARD]
    try:
        for owner, name, reference in FORWARD:
            setattr(owner, name, reference)
        yield
    finally:
        for (owner, name, _), function in zip(FORWARD, fast, strict=True):
            setattr(owner, name, function)
