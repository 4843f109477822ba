"""The Triton kernels' values, computed by Triton's interpreter on the CPU.

It must be on before Triton is imported anywhere, so test_kernels.py runs this file in a process
of its own, with TRITON_INTERPRET=1.
"""

import pytest
import torch
import triton
import triton.language as tl
from kernel_errors import BF16_ULP, FLOAT32, reference, share_of_bound
from triton.runtime.interpreter import InterpretedFunction

from hidiff import kernels
from hidiff.kernels import operators, triton_kernels
from hidiff.kernels.choosing import Chooser


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


# Several tiles across and down, none of them full; or several images and blocks of channels, one
# row. Both have one size for each function, whose tiles differ.
@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("plain", torch.float32, (1, 26, 3, 33)),
        ("gated", torch.float32, (1, 26, 3, 17)),
        ("plain", torch.bfloat16, (2, 34, 1, 3)),
        ("gated", torch.bfloat16, (2, 68, 1, 3)),
    ],
)
def test_result_and_gradients(name, dtype, shape):
    single = dtype == torch.float32
    layout = torch.contiguous_format if single else torch.channels_last
    x = torch.randn(shape).to(dtype, memory_format=layout)
    weight = torch.randn(shape[1], 1, 3, 3)  # float32 also for bfloat16 data
    bias = torch.randn(shape[1]) if single else None
    assert share_of_bound(name, x, weight, bias, "triton") <= 1


def test_half_precision_weights_and_their_gradients():
    x = torch.randn(1, 4, 2, 3, dtype=torch.bfloat16, requires_grad=True)
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
