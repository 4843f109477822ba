"""What is faster on GPUs than PyTorch's own operators, and equal but for rounding.

The depthwise 3×3 convolution, plain and gated by GELU (GDFN), has fused kernels in Triton; the Gram
matrix of bfloat16 data is computed on tensor cores.

Sums are float32, also for bfloat16 data. The backward pass of the gated form needs nothing but the
input and computes the convolution again. The kernels' results and gradients are bit for bit the
same in every run.

All are custom operators, which torch.compile keeps as single calls, with a second implementation
in PyTorch's own. What the kernels do not serve, as float64 and the CPU, always gets that one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from hidiff.errors import UserError

try:
    from hidiff.archs import triton_kernels
except ImportError:  # Triton comes with PyTorch for NVIDIA GPUs on Linux only
    triton_kernels = None

Mode = Literal["eager", "triton", "auto"]
"""'eager': PyTorch's own operators. 'triton': the kernels, wherever they can run. 'auto': the
faster of the two."""

T = TypeVar("T")

ROUNDING = 0.02
"""Relative difference between implementations that is still taken for rounding: bfloat16 rounds to
0.004, and a wrong or missing pixel row, tap or channel makes more."""

SUM_ROUNDING = 0.1
"""The same for the gradients of weight and bias, sums over all pixels that may cancel."""

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


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
    return _depthwise(x, weight, bias, mode)


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
        gate, value = depthwise_conv3x3(x, weight, bias, mode=mode).chunk(2, dim=1)
        return F.gelu(gate) * value
    assert mode in ("triton", "auto"), mode
    assert weight.shape == (x.shape[1], 1, 3, 3), (weight.shape, x.shape)
    return _gated_depthwise(x, weight, bias, mode)


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
    return _gram(q.flatten(0, 1), k.flatten(0, 1), mode).unflatten(0, q.shape[:2])


# Which implementation


class Chooser:
    """Runs the faster of several ways to compute a thing; times them once for each key.

    A way that fails while it is timed loses: too little memory, a system that cannot compile the
    kernels, or a result that is not that of the first way.

    Args:
        timer: the time that a way takes, in any unit.
    """

    def __init__(self, timer: Callable[[Callable[[], object]], float]) -> None:
        self._timer = timer
        self.chosen: dict[Hashable, str] = {}

    def run(
        self,
        key: Hashable,
        ways: Mapping[str, Callable[[], T]],
        *,
        agree: Callable[[T, T], bool] = lambda reference, result: True,
        may_time: bool = True,
    ) -> T:
        """The result of the fastest way; of the first where none is known and none can be timed.

        Args:
            key: what the choice holds for.
            ways: by name; the first is the reference.
            agree: from the reference's result and another way's, whether they differ by rounding
                only.
            may_time: False where timing would do harm.
        """
        reference = next(iter(ways.values()))
        if key not in self.chosen:
            if not may_time:
                return reference()
            (first, _), *others = ways.items()
            times = {first: self._time(first, reference, None)}
            # Where the reference fails there is nothing to compare with.
            works = math.isfinite(times[first])
            for name, way in others:
                times[name] = self._time(name, way, partial(agree, reference()) if works else None)
            fastest = min(times, key=times.__getitem__)
            if math.isinf(times[fastest]):
                return reference()
            self.chosen[key] = fastest
        return ways[self.chosen[key]]()

    def _time(
        self, name: str, way: Callable[[], T], agree: Callable[[T], bool] | None
    ) -> float:
        try:
            if agree is not None and not agree(way()):
                raise ArithmeticError("its result is another")
            return self._timer(way)
        except Exception as error:
            warnings.warn(f"kernels: the {name} way failed and is not used: {error}", stacklevel=2)
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()  # for the others
            return math.inf


def cuda_milliseconds(way: Callable[[], object], *, calls: int = 5, repeats: int = 3) -> float:
    """Time of one call on the current stream, the best of `repeats` means over `calls`."""
    way()  # compiles
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            way()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return min(times)


_chooser = Chooser(cuda_milliseconds)


def _run(name: str, mode: str, tensors: Sequence[Tensor | None]) -> Any:
    """One of the two implementations of `name`; of its tensors the last but two is x."""
    x = tensors[-3]
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
        ways = {"eager": eager, "triton": fused}
        return _chooser.run(key, ways, agree=_agree, may_time=_may_time(x))


def _may_time(x: Tensor) -> bool:
    """Not while a CUDA graph is recorded."""
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _agree(reference: Any, result: Any) -> bool:
    """Whether two implementations differ by rounding only, TF32's and bfloat16's included."""
    if isinstance(reference, Tensor):
        result, reference = (result,), (reference,)
    limits = (ROUNDING, *[SUM_ROUNDING] * 2)
    for ours, theirs, limit in zip(result, reference, limits, strict=False):
        # `>` and not `<=`: where the reference is not finite there is nothing to compare.
        if (ours.float() - theirs.float()).norm() > limit * theirs.float().norm():
            return False
    return True


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


def _gated_eager(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    gate, value = _conv_eager(x, weight, bias).chunk(2, dim=1)
    return F.gelu(gate) * value


def _gated_eager_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    gate, value = _conv_eager(x, weight, bias).chunk(2, dim=1)
    dgate = torch.ops.aten.gelu_backward(grad * value, gate)
    dvalue = grad * F.gelu(gate)
    return _conv_eager_backward(torch.cat([dgate, dvalue], dim=1), x, weight, bias)


EAGER = {
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
        return _channels_last(_run(implementation, mode, _regular(x, weight, bias)))

    def forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, mode: str) -> Tensor:
        batch, channels, height, width = x.shape
        shape = (batch, channels // halves, height, width)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

    def backward(
        grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, mode: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        tensors = (_channels_last(grad), *_regular(x, weight, bias))
        dx, dweight, dbias = _run(f"{implementation}_backward", mode, tensors)
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
    define = partial(torch.library.custom_op, mutates_args=())
    forward_op = define(f"hidiff::{operator}", forward, schema=f"({arguments}) -> Tensor")
    forward_op.register_fake(forward_fake)
    backward_op = define(
        f"hidiff::{operator}_backward",
        backward,
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


_depthwise = _define("depthwise_conv3x3", "conv", 1)
_gated_depthwise = _define("gated_depthwise_conv3x3", "gated", 2)


def _gram_wide(q: Tensor, k: Tensor) -> Tensor:
    return q.float() @ k.float().transpose(1, 2)


def _gram_narrow(q: Tensor, k: Tensor) -> Tensor:
    return torch.ops.aten.bmm.dtype(q, k.transpose(1, 2), torch.float32)  # CUDA only


@torch.library.custom_op("hidiff::gram", mutates_args=())
def _gram(q: Tensor, k: Tensor, mode: str) -> Tensor:
    with torch.cuda.device_of(q), torch.autocast(q.device.type, enabled=False):
        if mode == "eager" or not q.is_cuda:
            return _gram_wide(q, k)
        if mode == "triton":
            return _gram_narrow(q, k)
        ways = {"eager": partial(_gram_wide, q, k), "tensor cores": partial(_gram_narrow, q, k)}
        key = ("gram", q.device, q.shape[:2], q.shape[2].bit_length())
        return _chooser.run(key, ways, agree=_agree, may_time=_may_time(q))


@_gram.register_fake
def _(q: Tensor, k: Tensor, mode: str) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[1], k.shape[1], dtype=torch.float32)


def _save_gram(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _gram_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    q, k = ctx.saved_tensors
    grad = grad.to(q.dtype)
    return grad @ k, grad.transpose(1, 2) @ q, None


_gram.register_autograd(_gram_gradients, setup_context=_save_gram)


@register_flop_formula(torch.ops.hidiff.gram)
def _gram_operations(
    q_shape: Sequence[int], k_shape: Sequence[int], *others: Any, **unused: Any
) -> int:
    return 2 * math.prod(q_shape) * k_shape[1]
