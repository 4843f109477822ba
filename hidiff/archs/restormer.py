"""Restormer's building blocks (Zamir et al., CVPR 2022), with HI-Diff's modulation by the prior.

Feature maps are (B, C, H, W), channels last in memory, where the layer norms, 1×1 convolutions and
matrix products need no copies. Parameter names are those of the released checkpoints.

Every module computes in the dtype of its feature map, whatever the dtype of its parameters. With
bfloat16 features, what would lose too much stays float32: statistics of the norms, Gram matrices,
norms of q and k, softmax, and everything that is computed from the prior.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidiff.kernels import (
    Mode,
    depthwise_conv3x3,
    gated_depthwise_conv3x3,
    gelu_gate,
    gram_matrix,
)

LAYER_NORM_EPS = 1e-5
NORMALIZE_EPS = 1e-12

ALIGNED = 16
"""Channels of a vector register: GDFN's hidden width is filled up with zeros to a multiple when it
is computed, because its 127, 255 or 510 channels take longer than 128, 256 or 512."""


def at_least_float32(x: Tensor) -> Tensor:
    """bfloat16 → float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def block_dtype(features: torch.dtype, device: torch.device) -> torch.dtype:
    """What blocks are computed in: bfloat16 where the device has instructions for it."""
    native = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return features if native else torch.promote_types(features, torch.float32)


def as_dtype(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A bias in another dtype; None stays None."""
    return None if tensor is None else tensor.to(dtype)


def fill_halves(halves: Tensor, missing: int) -> Tensor:
    """`missing` rows of zeros after each half of the first axis: (2h, …) → (2h + 2·missing, …)."""
    if missing == 0:
        return halves
    pairs = halves.unflatten(0, (2, -1))
    return torch.cat([pairs, pairs.new_zeros(2, missing, *pairs.shape[2:])], dim=1).flatten(0, 1)


class Conv2d(nn.Conv2d):
    """A convolution in the dtype of its input; its parameters keep theirs."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H', W')."""
        return self._conv_forward(x, self.weight.to(x.dtype), as_dtype(self.bias, x.dtype))


class DepthwiseConv2d(Conv2d):
    """A 3×3 convolution of each channel by itself; on GPUs with `hidiff.kernels`."""

    kernels: Mode = "auto"

    def __init__(self, channels: int, *, bias: bool) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1, groups=channels, bias=bias)

    def fused(self, x: Tensor) -> bool:
        """Whether `hidiff.kernels` computes what depends on x."""
        return x.is_cuda and self.kernels != "eager"

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → (B, channels, H, W)."""
        if self.fused(x):
            return depthwise_conv3x3(x, self.weight, self.bias, mode=self.kernels)
        return super().forward(x)

    def gated(self, x: Tensor, missing: int = 0) -> Tensor:
        """GELU of the result's first half times its second: (B, 2h, H, W) → (B, h, H, W).

        Args:
            x: see above; with `missing` channels of zeros after those of each half.
            missing: see above.
        """
        weight = fill_halves(self.weight, missing)
        bias = None if self.bias is None else fill_halves(self.bias, missing)
        if self.fused(x):
            return gated_depthwise_conv3x3(x, weight, bias, mode=self.kernels)
        bias = as_dtype(bias, x.dtype)
        return gelu_gate(F.conv2d(x, weight.to(x.dtype), bias, padding=1, groups=len(weight)))


class _ChannelNormBody(nn.Module):
    """Holds the affine parameters, so that they are called `norm.body.weight` and `.bias`."""

    def __init__(self, dim: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, in Restormer's two forms.

    Args:
        dim: number of channels.
        layer_norm_type: 'WithBias' is the usual layer norm; 'BiasFree' has no bias and divides by
            the standard deviation without subtracting the mean.
    """

    def __init__(self, dim: int, layer_norm_type: str = "WithBias") -> None:
        super().__init__()
        assert layer_norm_type in ("WithBias", "BiasFree"), layer_norm_type
        self.body = _ChannelNormBody(dim, bias=layer_norm_type == "WithBias")

    def normalize(self, x: Tensor) -> Tensor:
        """Without the affine map, (…, dim) → (…, dim)."""
        if self.body.bias is not None:
            return F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)
        # F.layer_norm computes its statistics in float32 by itself.
        variance = at_least_float32(x).var(dim=-1, keepdim=True, unbiased=False)
        return x * torch.rsqrt(variance + LAYER_NORM_EPS).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(…, dim) → (…, dim)."""
        weight = self.body.weight.to(x.dtype)
        if self.body.bias is not None:
            bias = self.body.bias.to(x.dtype)
            return F.layer_norm(x, x.shape[-1:], weight, bias, LAYER_NORM_EPS)
        return self.normalize(x) * weight


class LayerNorm2d(LayerNorm):
    """`LayerNorm` over the channels of a feature map, with an optional affine map after it."""

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """norm(x), or norm(x) · scale + shift.

        Args:
            x: (B, dim, H, W).
            scale, shift: (B, dim); both or none.
        """
        x = x.permute(0, 2, 3, 1)
        if scale is None or shift is None:
            return super().forward(x).permute(0, 3, 1, 2)
        # One affine map in place of two: (x̂·w + b)·scale + shift = x̂·(w·scale) + (b·scale + shift).
        weight = self.body.weight * scale  # (B, dim)
        bias = shift if self.body.bias is None else torch.addcmul(shift, self.body.bias, scale)
        out = torch.addcmul(bias[:, None, None], self.normalize(x), weight[:, None, None])
        return out.to(x.dtype).permute(0, 3, 1, 2)


class PriorModulation(nn.Module):
    """Base of the branches whose input the coarsest prior modulates: x · ln1(z3) + ln2(z3).

    Args:
        dim: channels of the branch.
        prior_dim: C' of the prior z3 (B, C'), or None for a branch without modulation.
        prior_bias: whether ln1 and ln2 have a bias.
    """

    def __init__(self, dim: int, prior_dim: int | None, prior_bias: bool) -> None:
        super().__init__()
        if prior_dim is not None:
            self.ln1 = nn.Linear(prior_dim, dim, bias=prior_bias)
            self.ln2 = nn.Linear(prior_dim, dim, bias=prior_bias)

    def affine(self, prior: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Scale and shift (B, dim) of the branch's input; None without a prior."""
        return (None, None) if prior is None else (self.ln1(prior), self.ln2(prior))


class Attention(PriorModulation):
    """MDTA: multi-head attention between channels (Restormer, Sec. 3.1).

    Computed from the Gram matrix q kᵀ, which is divided by the norms of q's and k's rows instead of
    normalising q and k over all pixels; the result is the same.

    Args:
        dim: channels, a multiple of `num_heads`.
        num_heads: number of heads.
        bias: whether the convolutions have a bias.
        prior_dim, prior_bias: see `PriorModulation`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        bias: bool = False,
        prior_dim: int | None = None,
        prior_bias: bool = True,
    ) -> None:
        super().__init__(dim, prior_dim, prior_bias)
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = Conv2d(dim, dim * 3, kernel_size=1, bias=bias)
        self.qkv_dwconv = DepthwiseConv2d(dim * 3, bias=bias)
        self.project_out = Conv2d(dim, dim, kernel_size=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) → (B, dim, H, W)."""
        qkv = self.qkv_dwconv(self.qkv(x)).flatten(2)  # (B, 3·dim, H·W)
        q, k, v = qkv.chunk(3, dim=1)
        attention = self._attention(*(t.unflatten(1, (self.num_heads, -1)) for t in (q, k)))
        if torch.is_grad_enabled():
            heads = attention.to(v.dtype) @ v.unflatten(1, (self.num_heads, -1))
            return self.project_out(heads.reshape_as(x))
        out = v.mT @ self.folded(attention).to(v.dtype).mT  # (B, H·W, dim)
        if self.project_out.bias is not None:
            out = out + self.project_out.bias.to(v.dtype)
        return out.transpose(1, 2).unflatten(2, x.shape[-2:])

    def _attention(self, q: Tensor, k: Tensor) -> Tensor:
        """Softmax over channels; q, k (B, heads, c, H·W) → (B, heads, c, c), float32 or more."""
        dtype = torch.promote_types(q.dtype, torch.float32)
        # PyTorch 2.8 gets the shape of a norm over one pixel wrong, unless the dimension stays.
        norms = [
            torch.linalg.vector_norm(t, dim=-1, keepdim=True, dtype=dtype).squeeze(-1)
            for t in (q, k)
        ]
        if q.dtype == torch.bfloat16 and self.qkv_dwconv.fused(q):
            gram = gram_matrix(q, k, mode=self.qkv_dwconv.kernels)
        else:
            gram = at_least_float32(q) @ at_least_float32(k).transpose(-2, -1)
        return self.softmax(gram, *norms)

    def softmax(self, gram: Tensor, q_norms: Tensor, k_norms: Tensor) -> Tensor:
        """From q kᵀ (B, heads, c, c) and the lengths of q's and k's rows (B, heads, c)."""
        q_norms, k_norms = (norms.clamp_min(NORMALIZE_EPS) for norms in (q_norms, k_norms))
        cosines = gram / (q_norms[..., :, None] * k_norms[..., None, :])
        return (cosines * self.temperature).softmax(dim=-1)

    def folded(self, attention: Tensor) -> Tensor:
        """`project_out` after the attention (B, heads, c, c), without bias: (B, dim, dim).

        With both matrices multiplied first, project_out(attention · v) is one pass over the pixels.
        """
        weight = self.project_out.weight.flatten(1).unflatten(1, (self.num_heads, -1))
        return torch.einsum("ohc,bhcd->bohd", weight, attention).flatten(2)


class FeedForward(PriorModulation):
    """GDFN: gated feed-forward network with a depthwise convolution (Restormer, Sec. 3.2).

    Args:
        dim: channels.
        ffn_expansion_factor: hidden channels are int(dim · factor).
        bias: whether the convolutions have a bias.
        prior_dim, prior_bias: see `PriorModulation`.
    """

    def __init__(
        self,
        dim: int,
        ffn_expansion_factor: float,
        *,
        bias: bool = False,
        prior_dim: int | None = None,
        prior_bias: bool = True,
    ) -> None:
        super().__init__(dim, prior_dim, prior_bias)
        hidden = int(dim * ffn_expansion_factor)
        self.project_in = Conv2d(dim, hidden * 2, kernel_size=1, bias=bias)
        self.dwconv = DepthwiseConv2d(hidden * 2, bias=bias)
        self.project_out = Conv2d(hidden, dim, kernel_size=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) → (B, dim, H, W)."""
        widen, narrow = self.project_in, self.project_out
        missing = -narrow.in_channels % ALIGNED
        bias = None if widen.bias is None else fill_halves(widen.bias, missing).to(x.dtype)
        hidden = F.conv2d(x, fill_halves(widen.weight, missing).to(x.dtype), bias)
        gated = self.dwconv.gated(hidden, missing)  # GELU(0) · 0 = 0
        weight = F.pad(narrow.weight, (0, 0, 0, 0, 0, missing)).to(x.dtype)
        return F.conv2d(gated, weight, as_dtype(narrow.bias, x.dtype))


class TransformerBlock(nn.Module):
    """x + attn(norm1(x)), then x + ffn(norm2(x)); the arguments are those of its parts."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_expansion_factor: float,
        *,
        bias: bool = False,
        layer_norm_type: str = "WithBias",
        prior_dim: int | None = None,
        prior_bias: bool = True,
    ) -> None:
        super().__init__()
        prior: dict[str, Any] = {"prior_dim": prior_dim, "prior_bias": prior_bias}
        self.norm1 = LayerNorm2d(dim, layer_norm_type)
        self.attn = Attention(dim, num_heads, bias=bias, **prior)
        self.norm2 = LayerNorm2d(dim, layer_norm_type)
        self.ffn = FeedForward(dim, ffn_expansion_factor, bias=bias, **prior)

    def forward(self, x: Tensor, prior: Tensor | None = None) -> Tensor:
        """(B, dim, H, W), optional prior (B, C') → (B, dim, H, W)."""
        x = x + self.attn(self.norm1(x, *self.attn.affine(prior)))
        return x + self.ffn(self.norm2(x, *self.ffn.affine(prior)))


class PatchEmbed(nn.Module):
    """3×3 convolution from image to features; it never has a bias, as in Restormer."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = Conv2d(in_channels, dim, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, dim, H, W)."""
        return self.proj(x)


class Downsample(nn.Module):
    """Half the resolution, twice the channels: (B, C, H, W) → (B, 2C, H/2, W/2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Conv2d(dim, dim // 2, kernel_size=3, padding=1, bias=False), nn.PixelUnshuffle(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).contiguous(memory_format=torch.channels_last)


class Upsample(nn.Module):
    """Twice the resolution, half the channels: (B, C, H, W) → (B, C/2, 2H, 2W)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Conv2d(dim, dim * 2, kernel_size=3, padding=1, bias=False), nn.PixelShuffle(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).contiguous(memory_format=torch.channels_last)
