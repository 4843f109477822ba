"""The networks as the papers write them, step by step: the reference of the fast formulations.

`plain()` swaps the forward functions of hidiff.archs for these while it is entered.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from hidiff.archs import restormer, transformer

EPS = 1e-5


def _layer_norm(norm: restormer.LayerNorm, x: Tensor) -> Tensor:
    variance = x.var(-1, keepdim=True, unbiased=False)
    if norm.body.bias is None:
        return x / torch.sqrt(variance + EPS) * norm.body.weight
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + EPS) * norm.body.weight + norm.body.bias


def _layer_norm_2d(norm, x, scale=None, shift=None):
    batch, channels, height, width = x.shape
    tokens = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    x = _layer_norm(norm, tokens).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    x = x.contiguous()
    return x if scale is None else x * scale[:, :, None, None] + shift[:, :, None, None]


def _attention(layer: restormer.Attention, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    q, k, v = (
        t.reshape(batch, layer.num_heads, -1, height * width)
        for t in layer.qkv_dwconv(layer.qkv(x)).chunk(3, dim=1)
    )
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    attention = ((q @ k.transpose(-2, -1)) * layer.temperature).softmax(dim=-1)
    return layer.project_out((attention @ v).reshape(batch, channels, height, width))


def _him(layer: transformer.HIM, x: Tensor, prior: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    tokens = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    q = layer.q(_layer_norm(layer.norm1, tokens))
    k, v = layer.kv(_layer_norm(layer.norm2, prior)).chunk(2, dim=-1)
    q, k, v = (t.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    attention = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    out = (attention @ v).transpose(1, 2).flatten(2)
    tokens = tokens + layer.proj(out)
    return tokens.reshape(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()


def _gated(layer: restormer.DepthwiseConv2d, x: Tensor) -> Tensor:
    gate, value = layer(x).chunk(2, dim=1)
    return F.gelu(gate) * value


def _sample(layer, x: Tensor) -> Tensor:
    return layer.body(x)


@contextmanager
def plain() -> Iterator[None]:
    """Compute everything the plain way, in the memory layout that the input has."""
    with (
        mock.patch.object(restormer.LayerNorm, "forward", _layer_norm),
        mock.patch.object(restormer.LayerNorm2d, "forward", _layer_norm_2d),
        mock.patch.object(restormer.Attention, "forward", _attention),
        mock.patch.object(restormer.DepthwiseConv2d, "forward", restormer.Conv2d.forward),
        mock.patch.object(restormer.DepthwiseConv2d, "gated", _gated),
        mock.patch.object(restormer.Downsample, "forward", _sample),
        mock.patch.object(restormer.Upsample, "forward", _sample),
        mock.patch.object(transformer.HIM, "forward", _him),
        mock.patch.object(transformer, "FEATURE_FORMAT", torch.contiguous_format),
    ):
        yield
