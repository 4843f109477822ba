"""GPU kernels behind three functions; equal to PyTorch's own operators but for rounding.

The depthwise 3×3 convolution, plain and gated by GELU (GDFN), has fused Triton kernels; the Gram
matrix of bfloat16 data is computed on tensor cores. Nothing outside this package knows of Triton.

Sums are float32, also for bfloat16 data. The backward pass of the gated convolution needs only its
input and computes the convolution again. The kernels' results and gradients are bit for bit the
same in every run.

All three are custom operators, which torch.compile keeps as single calls. Each has an eager
implementation too, which serves float64 data and the CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hidiff.kernels.operators import Mode, depthwise, gated_depthwise, gelu_gate, gram

__all__ = [
    "Mode",
    "depthwise_conv3x3",
    "gated_depthwise_conv3x3",
    "gelu_gate",
    "gram_matrix",
]


def depthwise_conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, mode: Mode = "auto"
) -> Tensor:
    """3×3 convolution of every channel by itself, zero padding 1.

    Args:
        x: (B, C, H, W); copied if it is not channels last.
        weight: (C, 1, 3, 3), any floating type: float32 weights serve bfloat16 data as they are.
        bias: (C,) or None.
        mode: see `Mode`. 'auto' times both at the first use of about this size; as timings vary,
            so may the choice and with it the last bits of the result. 'eager' follows autocast,
            the others compute in the type of `x`.

    Returns:
        (B, C, H, W) of the type of `x`, channels last except in mode 'eager'.

    Raises:
        UserError: mode is 'triton' for data on the GPU, and Triton is not installed.
    """
    assert mode in ("eager", "triton", "auto"), mode
    assert weight.shape == (x.shape[1], 1, 3, 3), (weight.shape, x.shape)
    if mode == "eager":
        return F.conv2d(x, weight, bias, padding=1, groups=weight.shape[0])
    return depthwise(x, weight, bias, mode)


def gated_depthwise_conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, mode: Mode = "auto"
) -> Tensor:
    """GDFN's gate: gelu(first half of y's channels) · second half, y = depthwise_conv3x3(x).

    GELU is the exact one, by the error function (Hendrycks and Gimpel, 2016).

    Args:
        x: (B, 2h, H, W).
        weight: (2h, 1, 3, 3).
        bias: (2h,) or None.
        mode: as in `depthwise_conv3x3`.

    Returns:
        (B, h, H, W), otherwise as in `depthwise_conv3x3`.

    Raises:
        UserError: as in `depthwise_conv3x3`.
    """
    assert x.shape[1] % 2 == 0, x.shape
    if mode == "eager":
        return gelu_gate(depthwise_conv3x3(x, weight, bias, mode=mode))
    assert mode in ("triton", "auto"), mode
    assert weight.shape == (x.shape[1], 1, 3, 3), (weight.shape, x.shape)
    return gated_depthwise(x, weight, bias, mode)


def gram_matrix(q: Tensor, k: Tensor, *, mode: Mode = "auto") -> Tensor:
    """q kᵀ of bfloat16 data in float32, on tensor cores where the GPU can.

    A product of two bfloat16 numbers is exact in float32, so that only the order of the sums
    differs from that of float32 matrices. The gradients are products of bfloat16 matrices.

    Args:
        q, k: (B, heads, c, N) bfloat16.
        mode: see `Mode`; 'eager' multiplies float32 copies, 'triton' stands for the tensor cores.

    Returns:
        (B, heads, c, c) float32.
    """
    assert q.dtype == k.dtype == torch.bfloat16, (q.dtype, k.dtype)
    return gram(q.flatten(0, 1), k.flatten(0, 1), mode).unflatten(0, q.shape[:2])
