"""How far the depthwise convolutions of `hidiff.kernels` are from exact ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hidiff import kernels

BF16_ULP = 2**-7
"""Largest relative distance of neighbouring bfloat16. Triton's interpreter cuts digits off, a GPU
rounds to the nearest; this is the most that either changes a value."""

FLOAT32 = 1e-5
"""Of the largest value, what float32 sums may be wrong by."""


def function(name: str) -> Callable[..., Tensor]:
    """The convolution 'plain' or 'gated'."""
    return {
        "plain": kernels.depthwise_conv3x3,
        "gated": kernels.gated_depthwise_conv3x3,
    }[name]


def reference(
    gated: bool, x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """In float64: the result, the gradients, and for each of these a bound per unit of relative
    error in the gradient with respect to the convolution's result.

    Args:
        gated: whether GDFN's gate follows.
        x, weight, bias: see `hidiff.kernels`.
        grad: of the result.
    """

    def exact(t: Tensor) -> Tensor:
        return t.detach().double().requires_grad_()

    x, weight, bias = exact(x), exact(weight), None if bias is None else exact(bias)
    inputs = [t for t in (x, weight, bias) if t is not None]
    convolved = F.conv2d(x, weight, bias, padding=1, groups=x.shape[1])
    out = convolved
    if gated:
        gate, value = convolved.chunk(2, dim=1)
        out = F.gelu(gate) * value
    convolved_grad, *gradients = torch.autograd.grad(out, [convolved, *inputs], grad.double())
    absolute = F.conv2d(x.abs(), weight.abs(), bias, padding=1, groups=x.shape[1])
    sizes = torch.autograd.grad(absolute, inputs, convolved_grad.abs())
    return out.detach(), gradients, [size.abs() for size in sizes]


def share_of_bound(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, mode: str) -> float:
    """The largest error of the result and of the gradients, as a share of what rounding explains.

    Above 1 the implementation is wrong. Types and the memory layout are checked too.

    Args:
        name: see `function`.
        x, weight, bias: see `hidiff.kernels`.
        mode: see `hidiff.kernels.Mode`.
    """
    dtype = x.dtype
    inputs = [t.detach().requires_grad_() for t in (x, weight, bias) if t is not None]
    out = function(name)(*inputs, *[None] * (3 - len(inputs)), mode=mode)
    grad = torch.randn(out.shape, device=x.device).to(dtype, memory_format=torch.channels_last)
    gradients = torch.autograd.grad(out, inputs, grad)
    expected, expected_gradients, sizes = reference(name == "gated", x, weight, bias, grad)

    types = [
        out.dtype == dtype,
        *(g.dtype == t.dtype for g, t in zip(gradients, inputs, strict=True)),
    ]
    if not all(types) or not out.is_contiguous(memory_format=torch.channels_last):
        return float("inf")
    ulp = BF16_ULP if dtype == torch.bfloat16 else 0
    bounds = [FLOAT32 * expected.abs().max() + ulp * expected.abs()]
    for ours, theirs, size in zip(gradients, expected_gradients, sizes, strict=True):
        bound = FLOAT32 * theirs.abs().max() + (ulp * size if name == "gated" else 0)
        bounds.append(bound + (ulp * theirs.abs() if ours.dtype == dtype else 0))
    shares = [
        # Not a maximum, which may drop what is not a number.
        torch.nan_to_num((ours.detach().double() - theirs).abs() / bound, nan=torch.inf).max()
        for ours, theirs, bound in zip(
            (out, *gradients), (expected, *expected_gradients), bounds, strict=True
        )
    ]
    return torch.stack(shares).max().item()
