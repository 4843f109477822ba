"""The custom operators: eager implementations, gradients, and which implementation runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from hidiff.kernels.choosing import Chooser, agree, cuda_milliseconds
from hidiff.utils.errors import UserError

try:
    from hidiff.kernels import triton_kernels
except ImportError:  # Triton comes with PyTorch for NVIDIA GPUs on Linux only
    triton_kernels = None  # type: ignore[assignment]  # a module otherwise

Mode = Literal["eager", "triton", "auto"]
"""'eager': PyTorch's own operators. 'triton': the kernels, wherever they can run. 'auto': the
faster of the two."""

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

_chooser = Chooser(cuda_milliseconds)


def _run(name: str, mode: str, x: Tensor, tensors: Sequence[Tensor | None]) -> Any:
    """Call the eager or the Triton implementation.

    Args:
        name: a key of `EAGER`, and the kernel's name in `triton_kernels`.
        mode: see `Mode`.
        x: the operator's input; its device, dtype and size decide.
        tensors: the implementation's arguments, `x` among them.
    """
    with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
        eager = partial(EAGER[name], *tensors)
        if x.dtype not in KERNEL_DTYPES or x.numel() == 0 or not (x.is_cuda or _interpreted()):
            return eager()
        if triton_kernels is None:
            if mode == "auto":
                return eager()
            raise UserError(
                "the kernels are set to 'triton', which is not installed: pip install triton, or "
                "set them to 'auto' or 'eager'"
            )
        fused = partial(getattr(triton_kernels, name), *tensors)
        if mode == "triton":
            return fused()
        # Sizes within a factor of two share a choice; in a folder of images of many sizes every
        # one would be timed otherwise.
        pixels = (x.numel() // x.shape[1]).bit_length()
        key = (name, x.device, x.dtype, x.shape[1], pixels)
        implementations = {"eager": eager, "triton": fused}
        return _chooser.run(key, implementations, agree=agree, may_time=_may_time(x))


def _may_time(x: Tensor) -> bool:
    """Not while a CUDA graph is recorded."""
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _interpreted() -> bool:
    return triton_kernels is not None and triton_kernels.INTERPRETED


# Eager


def _conv_eager(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    return F.conv2d(x, weight, bias, padding=1, groups=x.shape[1])


def _conv_eager_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    channels = x.shape[1]
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        grad, x, weight.to(x.dtype), [channels], [1, 1], [1, 1], [1, 1], False, [0, 0], channels,
        [True, True, bias is not None],
    )  # fmt: skip
    return dx, dweight, dx.new_empty(0) if bias is None else dbias


def gelu_gate(halves: Tensor, dim: int = 1) -> Tensor:
    """GELU of the first half along an axis times the second half (Restormer, Eq. 2)."""
    gate, value = halves.chunk(2, dim=dim)
    # GELU of what is contiguous takes a fraction of the time, copying included.
    layout = torch.channels_last if dim == 1 else torch.contiguous_format
    return F.gelu(gate.contiguous(memory_format=layout)) * value


def _gated_eager(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return gelu_gate(_conv_eager(x, weight, bias))


def _gated_eager_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    gate, value = _conv_eager(x, weight, bias).chunk(2, dim=1)
    dgate = torch.ops.aten.gelu_backward(grad * value, gate)
    dvalue = grad * F.gelu(gate)
    return _conv_eager_backward(torch.cat([dgate, dvalue], dim=1), x, weight, bias)


EAGER: dict[str, Callable[..., Any]] = {
    "conv": _conv_eager,
    "conv_backward": _conv_eager_backward,
    "gated": _gated_eager,
    "gated_backward": _gated_eager_backward,
}


# Operators


def _channels_last(x: Tensor) -> Tensor:
    """x (B, C, H, W) with exactly the strides of a new channels-last tensor."""
    _, channels, height, width = x.shape
    if x.stride() == (height * width * channels, 1, width * channels, channels):
        return x
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


def _regular(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors in the memory layouts that the kernels read."""
    return _channels_last(x), weight.contiguous(), None if bias is None else bias.contiguous()


def _define(operator: str, implementation: str, halves: int) -> Callable[..., Tensor]:
    """Register a custom operator and its gradient.

    Args:
        operator: its name in torch.ops.hidiff.
        implementation: its name in `EAGER` and `triton_kernels`.
        halves: how many times more channels the input has than the output.
    """

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, mode: str) -> Tensor:
        tensors = _regular(x, weight, bias)
        return _channels_last(_run(implementation, mode, tensors[0], tensors))

    def forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, mode: str) -> Tensor:
        batch, channels, height, width = x.shape
        shape = (batch, channels // halves, height, width)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

    def backward(
        grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, mode: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = _regular(x, weight, bias)
        tensors = (_channels_last(grad), *inputs)
        dx, dweight, dbias = _run(f"{implementation}_backward", mode, inputs[0], tensors)
        dweight = dweight.to(weight.dtype).contiguous()
        dbias = dbias.to(weight.dtype if bias is None else bias.dtype, copy=True)
        return _channels_last(dx), dweight, dbias

    def backward_fake(
        grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, mode: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        dbias = weight.new_empty(0) if bias is None else bias.new_empty(bias.shape)
        return dx, weight.new_empty(weight.shape), dbias

    def operations(
        x_shape: Sequence[int], *others: Any, out_shape: Sequence[int], **unused: Any
    ) -> int:
        return 2 * 9 * math.prod(x_shape)  # as a convolution's are counted

    arguments = "Tensor x, Tensor weight, Tensor? bias, str mode"
    forward_op = torch.library.custom_op(
        f"hidiff::{operator}", forward, mutates_args=(), schema=f"({arguments}) -> Tensor"
    )
    forward_op.register_fake(forward_fake)
    backward_op = torch.library.custom_op(
        f"hidiff::{operator}_backward",
        backward,
        mutates_args=(),
        schema=f"(Tensor grad, {arguments}) -> (Tensor, Tensor, Tensor)",
    )
    backward_op.register_fake(backward_fake)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.mode = inputs
        ctx.save_for_backward(*tensors)

    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        dx, dweight, dbias = backward_op(grad, x, weight, bias, ctx.mode)
        return dx, dweight, None if bias is None else dbias, None

    forward_op.register_autograd(gradients, setup_context=save)
    register_flop_formula(getattr(torch.ops.hidiff, operator))(operations)
    return forward_op


depthwise = _define("depthwise_conv3x3", "conv", 1)
gated_depthwise = _define("gated_depthwise_conv3x3", "gated", 2)


def _gram_wide(q: Tensor, k: Tensor) -> Tensor:
    return q.float() @ k.float().transpose(1, 2)


def _gram_narrow(q: Tensor, k: Tensor) -> Tensor:
    return torch.ops.aten.bmm.dtype(q, k.transpose(1, 2), torch.float32)  # CUDA only


@torch.library.custom_op("hidiff::gram", mutates_args=())
def gram(q: Tensor, k: Tensor, mode: str) -> Tensor:
    with torch.cuda.device_of(q), torch.autocast(q.device.type, enabled=False):
        if mode == "eager" or not q.is_cuda:
            return _gram_wide(q, k)
        if mode == "triton":
            return _gram_narrow(q, k)
        implementations = {
            "eager": partial(_gram_wide, q, k),
            "tensor cores": partial(_gram_narrow, q, k),
        }
        key = ("gram", q.device, q.shape[:2], q.shape[2].bit_length())
        return _chooser.run(key, implementations, agree=agree, may_time=_may_time(q))


@gram.register_fake
def _(q: Tensor, k: Tensor, mode: str) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[1], k.shape[1], dtype=torch.float32)


def _save_gram(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _gram_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    q, k = ctx.saved_tensors
    grad = grad.to(q.dtype)
    return grad @ k, grad.transpose(1, 2) @ q, None


gram.register_autograd(_gram_gradients, setup_context=_save_gram)


@register_flop_formula(torch.ops.hidiff.gram)
def _gram_operations(
    q_shape: Sequence[int], k_shape: Sequence[int], *others: Any, **unused: Any
) -> int:
    return 2 * math.prod(q_shape) * k_shape[1]
