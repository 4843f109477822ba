"""The Triton kernels' values, computed by Triton's interpreter on the CPU.

It must be on before Triton is imported anywhere, so test_kernels.py runs this file in a process
of its own, with TRITON_INTERPRET=1.
"""

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from hidiff import kernels
from hidiff.kernels import operators, triton_kernels
from hidiff.kernels.choosing import Chooser

FUNCTIONS = {
    "plain": kernels.depthwise_conv3x3,
    "gated": kernels.gated_depthwise_conv3x3,
}
BF16_ULP = 2**-7
"""Largest relative distance of neighbouring bfloat16. The interpreter cuts digits off, a GPU rounds
to the nearest; this is the most that either changes a value."""
FLOAT32 = 1e-5

# Ragged: several tiles in every direction, none of them full; one row; two channels.
TILES, ROW, THIN = (1, 26, 5, 37), (1, 254, 1, 5), (1, 2, 17, 3)


def reference(gated, x, weight, bias, grad):
    """In float64: the result, gradients, and for each a bound per unit of relative error in the
    gradient with respect to the convolution's result."""
    x, weight, bias = (
        None if t is None else t.double().requires_grad_() for t in (x, weight, bias)
    )
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


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("dtype", "shape", "bias", "tall"),
    [
        (torch.float32, TILES, True, False),
        (torch.float32, THIN, True, True),
        (torch.bfloat16, (2, 26, 3, 18), False, False),
        (torch.bfloat16, ROW, True, False),
    ],
    ids=str,
)
def test_result_and_gradients(name, dtype, shape, bias, tall, monkeypatch):
    if tall:
        monkeypatch.setattr(triton_kernels, "ENOUGH_PROGRAMS", 0)
    gated = name == "gated"
    x = torch.randn(shape).to(dtype, memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(shape[1], 1, 3, 3, requires_grad=True)  # float32 also for bfloat16 data
    bias = torch.randn(shape[1], requires_grad=True) if bias else None
    inputs = [t for t in (x, weight, bias) if t is not None]

    out = FUNCTIONS[name](x, weight, bias, mode="triton")
    grad = torch.randn(out.shape).to(dtype, memory_format=torch.channels_last)
    gradients = torch.autograd.grad(out, inputs, grad)
    expected, expected_gradients, sizes = reference(gated, x, weight, bias, grad)

    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert [g.dtype for g in gradients] == [t.dtype for t in inputs]
    ulp = BF16_ULP if dtype == torch.bfloat16 else 0
    bounds = [FLOAT32 * expected.abs().max() + ulp * expected.abs()]
    for ours, theirs, size in zip(gradients, expected_gradients, sizes, strict=True):
        bound = FLOAT32 * theirs.abs().max() + (ulp * size if gated else 0)  # what lies between
        bounds.append(bound + (ulp * theirs.abs() if ours.dtype == dtype else 0))  # the result
    pairs = zip((out, *gradients), (expected, *expected_gradients), bounds, strict=True)
    for ours, theirs, bound in pairs:
        assert ours.shape == theirs.shape
        assert bool(((ours.double() - theirs).abs() <= bound).all())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_repeatable_and_independent_of_layout(name):
    x, weight, bias = torch.randn(1, 4, 3, 2), torch.randn(4, 1, 3, 3), torch.randn(4)
    grads = []
    for layout in (torch.channels_last, torch.channels_last, torch.contiguous_format):
        inputs = [t.detach().requires_grad_() for t in (x.contiguous(memory_format=layout),
                                                        weight, bias)]  # fmt: skip
        out = FUNCTIONS[name](*inputs, mode="triton")
        grads.append(torch.autograd.grad(out.square().sum(), inputs))
    for first, second, third in zip(*grads, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


def test_half_precision_weights_and_their_gradients():
    x = torch.randn(1, 4, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    weight, bias = torch.randn(4, 1, 3, 3).bfloat16(), torch.randn(4).bfloat16()
    inputs = [x, weight.requires_grad_(), bias.requires_grad_()]
    out = kernels.depthwise_conv3x3(*inputs, mode="triton")
    expected, expected_gradients, _ = reference(False, *inputs, torch.ones_like(out))
    gradients = torch.autograd.grad(out.sum(), inputs)
    for ours, theirs in zip((out, *gradients), (expected, *expected_gradients), strict=True):
        assert ours.dtype == torch.bfloat16
        bound = BF16_ULP * theirs.abs() + FLOAT32 * theirs.abs().max()
        assert bool(((ours.double() - theirs).abs() <= bound).all())


@pytest.mark.parametrize("faster", ["eager", "triton"])
def test_auto_uses_the_faster_one(faster, monkeypatch):
    timed = []

    def timer(way):
        implementation = "triton" if way.func.__module__.endswith("triton_kernels") else "eager"
        timed.append(implementation)
        return 1.0 if implementation == faster else 2.0

    monkeypatch.setattr(operators, "_chooser", Chooser(timer))
    x, weight = torch.randn(1, 2, 3, 5, requires_grad=True), torch.randn(2, 1, 3, 3)
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
