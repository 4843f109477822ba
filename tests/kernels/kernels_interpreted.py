"""The Triton kernels' values, computed by Triton's interpreter on the CPU.

It must be on before Triton is imported anywhere, so test_kernels.py runs this file in a process
of its own, with TRITON_INTERPRET=1.
"""

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from hidiff import kernels
from hidiff.kernels import operators, triton_kernels
from hidiff.kernels.choosing import Chooser

BF16_ULP = 2**-7
"""Largest relative distance of neighbouring bfloat16; Triton's interpreter cuts digits off."""

FLOAT32 = 1e-5
"""Of the largest value, what float32 sums may be wrong by."""


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """The interpreter's time goes by steps, whatever their size, and into patching Triton."""
    monkeypatch.setattr(triton_kernels, "FEWEST_ROWS", 2)
    call = InterpretedFunction.__call__

    def call_without_patching_again(function, *arguments, **named):
        if function.fn.__module__ != triton_kernels.__name__:
            return call(function, *arguments, **named)
        return function.rewrite()(*arguments, **named)

    monkeypatch.setattr(InterpretedFunction, "__call__", call_without_patching_again)


def in_float64(gated, x, weight, bias, grad):
    """The result, the gradients, and for each of these a bound per unit of relative error in the
    gradient with respect to the convolution's result.
    """
    x, weight, bias = (t if t is None else t.detach().double() for t in (x, weight, bias))
    inputs = [t.requires_grad_() for t in (x, weight, bias) if t is not None]
    out = convolved = F.conv2d(x, weight, bias, padding=1, groups=x.shape[1])
    if gated:
        gate, value = convolved.chunk(2, dim=1)
        out = F.gelu(gate) * value
    convolved_grad, *gradients = torch.autograd.grad(out, [convolved, *inputs], grad.double())
    absolute = F.conv2d(x.abs(), weight.abs(), bias, padding=1, groups=x.shape[1])
    sizes = torch.autograd.grad(absolute, inputs, convolved_grad.abs())
    return out.detach(), gradients, [size.abs() for size in sizes]


# Several tiles across and down, none of them full; or several images and blocks of channels, one
# row. Both have one size for each function, whose tiles differ. Weights are float32 or of the
# data's type.
@pytest.mark.parametrize(
    ("gated", "dtype", "shape", "weights", "biased"),
    [
        (False, torch.float32, (1, 26, 3, 33), torch.float32, True),
        (True, torch.float32, (1, 26, 3, 17), torch.float32, True),
        (False, torch.bfloat16, (2, 34, 1, 3), torch.float32, False),
        (True, torch.bfloat16, (2, 68, 1, 3), torch.float32, False),
        (False, torch.bfloat16, (1, 4, 2, 3), torch.bfloat16, True),
    ],
)
def test_result_and_gradients(gated, dtype, shape, weights, biased):
    function = kernels.gated_depthwise_conv3x3 if gated else kernels.depthwise_conv3x3
    layout = torch.contiguous_format if dtype == torch.float32 else torch.channels_last
    x = torch.randn(shape).to(dtype, memory_format=layout)
    weight = torch.randn(shape[1], 1, 3, 3).to(weights)
    bias = torch.randn(shape[1]).to(weights) if biased else None
    inputs = [t.requires_grad_() for t in (x, weight, bias) if t is not None]
    out = function(x, weight, bias, mode="triton")
    assert out.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn(out.shape).to(dtype, memory_format=torch.channels_last)
    gradients = torch.autograd.grad(out, inputs, grad)
    expected, expected_gradients, sizes = in_float64(gated, x, weight, bias, grad)

    ulp = BF16_ULP if dtype == torch.bfloat16 else 0
    bounds = [FLOAT32 * expected.abs().max() + ulp * expected.abs()]
    for ours, theirs, size in zip(gradients, expected_gradients, sizes, strict=True):
        bound = FLOAT32 * theirs.abs().max() + (ulp * size if gated else 0)
        bounds.append(bound + (ulp * theirs.abs() if ours.dtype == dtype else 0))
    found, wanted = (out, *gradients), (expected, *expected_gradients)
    for ours, theirs, bound, source in zip(found, wanted, bounds, (x, *inputs), strict=True):
        assert ours.dtype == source.dtype
        assert bool(((ours.double() - theirs).abs() <= bound).all())


@pytest.mark.parametrize("faster", ["eager", "triton"])
def test_auto_uses_the_faster_one(faster, monkeypatch):
    timed = []

    def timer(way):
        implementation = "triton" if way.func.__module__.endswith("triton_kernels") else "eager"
        timed.append(implementation)
        return 1.0 if implementation == faster else 2.0

    monkeypatch.setattr(operators, "_chooser", Chooser(timer))
    x, weight = torch.randn(1, 2, 2, 5, requires_grad=True), torch.randn(2, 1, 3, 3)
    with torch.no_grad():
        out = kernels.depthwise_conv3x3(x, weight, mode="auto")
        kernels.depthwise_conv3x3(x[:, :, :, 1:], weight, mode="auto")  # nearly the same size
    assert timed == ["eager", "triton"]
    by_kernel = kernels.depthwise_conv3x3(x, weight, mode="triton")
    assert torch.equal(out, by_kernel) == (faster == "triton")
    kernels.depthwise_conv3x3(x, weight, mode="auto").sum().backward()
    assert timed == ["eager", "triton"] * 2
    assert set(operators._chooser.chosen.values()) == {faster}
    assert [key[0] for key in operators._chooser.chosen] == ["conv", "conv_backward"]


@triton.jit
def _address(pointer, out, image, y, height, width, CHANNELS: tl.constexpr):
    row = triton_kernels._row(pointer, image, y, height, width, CHANNELS)
    tl.store(out, row.to(tl.int64) - pointer.to(tl.int64))


def test_addresses_beyond_the_range_of_32_bits():
    out = torch.zeros(1, dtype=torch.int64)
    _address[(1,)](torch.zeros(1, dtype=torch.bfloat16), out, 1, 719, 720, 1280, CHANNELS=2042)
    assert int(out) == 2 * 1439 * 1280 * 2042 > 2**31
