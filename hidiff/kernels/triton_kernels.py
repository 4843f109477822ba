"""Depthwise 3×3 convolution, plain and gated, as Triton kernels; see `hidiff.kernels`.

All are limited by memory traffic. A program owns a tile of ROWS × COLUMNS pixels and BLOCK
channels and walks down it: an image row is loaded once, at its three horizontal shifts, and added
to the three output rows that it touches; the next row is loaded meanwhile. Sums are float32.

Pointers are to channels-last data. A row's pointer may lie outside the image, where nothing is
loaded or stored. `height` and `width` are not specialised: one compilation serves all image sizes.
CHANNELS is a constant, so that the compiler knows how the rows are aligned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import JITFunction, jit


@jit
def _place(height, width, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    """This program's tile: number, image, first row, columns and channels."""
    blocks: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    strips = tl.cdiv(width, COLUMNS)
    bands = tl.cdiv(height, ROWS)
    tile = tl.program_id(0) // blocks
    channels = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    columns = tile % strips * COLUMNS + tl.arange(0, COLUMNS)
    return tile, tile // (strips * bands), tile // strips % bands * ROWS, columns, channels


@jit
def _row(pointer, image, y, height, width, CHANNELS: tl.constexpr):
    """Pointer to the first pixel of row y. Tensors may have more than 2³¹ elements."""
    return pointer + (image * height + y).to(tl.int64) * width * CHANNELS


@jit
def _load(row, inside, columns, channels, valid, width, CHANNELS: tl.constexpr):
    """(COLUMNS, BLOCK) values of a row; zero outside the image and where `valid` is not."""
    offsets = columns[:, None] * CHANNELS + channels[None, :]
    limit = tl.where(inside, width, 0)
    mask = ((columns >= 0) & (columns < limit))[:, None] & valid[None, :]
    return tl.load(row + offsets, mask=mask, other=0.0)


@jit
def _load_three(data, image, y, inside, columns, channels, valid, height, width,
                CHANNELS: tl.constexpr):  # fmt: skip
    """Row y's pixels to the left of `columns`, at them and to the right."""
    row = _row(data, image, y, height, width, CHANNELS)
    left = _load(row, inside, columns - 1, channels, valid, width, CHANNELS)
    centre = _load(row, inside, columns, channels, valid, width, CHANNELS)
    right = _load(row, inside, columns + 1, channels, valid, width, CHANNELS)
    return left, centre, right


@jit
def _store(row, values, inside, columns, channels, valid, width, CHANNELS: tl.constexpr):
    offsets = columns[:, None] * CHANNELS + channels[None, :]
    limit = tl.where(inside, width, 0)
    mask = (columns < limit)[:, None] & valid[None, :]
    tl.store(row + offsets, values.to(row.dtype.element_ty), mask=mask)


@jit
def _three_taps(weights, channels, valid, FIRST: tl.constexpr, STEP: tl.constexpr,
                CHANNELS: tl.constexpr):  # fmt: skip
    pointers = weights + channels
    a = tl.load(pointers + FIRST * CHANNELS, mask=valid, other=0.0)
    b = tl.load(pointers + (FIRST + STEP) * CHANNELS, mask=valid, other=0.0)
    c = tl.load(pointers + (FIRST + 2 * STEP) * CHANNELS, mask=valid, other=0.0)
    return a.to(tl.float32)[None, :], b.to(tl.float32)[None, :], c.to(tl.float32)[None, :]


@jit
def _taps(weights, channels, valid, FIRST: tl.constexpr, STEP: tl.constexpr,
          CHANNELS: tl.constexpr):  # fmt: skip
    """From weights (9, CHANNELS) nine (1, BLOCK) float32, row by row; backwards with STEP −1."""
    a0, a1, a2 = _three_taps(weights, channels, valid, FIRST, STEP, CHANNELS)
    b0, b1, b2 = _three_taps(weights, channels, valid, FIRST + 3 * STEP, STEP, CHANNELS)
    c0, c1, c2 = _three_taps(weights, channels, valid, FIRST + 6 * STEP, STEP, CHANNELS)
    return a0, a1, a2, b0, b1, b2, c0, c1, c2


@jit
def _offset(bias, channels, valid, HAS_BIAS: tl.constexpr, COLUMNS: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    """What a sum starts from, (COLUMNS, BLOCK): the bias or zero."""
    start = tl.zeros((COLUMNS, BLOCK), tl.float32)
    if HAS_BIAS:
        start += tl.load(bias + channels, mask=valid, other=0.0).to(tl.float32)[None, :]
    return start


@jit
def _dot(start, left, centre, right, a, b, c):
    return start + left.to(tl.float32) * a + centre.to(tl.float32) * b + right.to(tl.float32) * c


@jit
def _gelu(x):
    """GELU and the normal distribution's cumulative function, of which it is x times."""
    cumulative = 0.5 + 0.5 * tl.math.erf(x * 0.7071067811865476)
    return x * cumulative, cumulative


@jit(do_not_specialize=["height", "width"])
def _conv_kernel(x, weights, bias, out, height, width, CHANNELS: tl.constexpr,
                 HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                 BLOCK: tl.constexpr):  # fmt: skip
    """out = convolution of x."""
    _, image, top, columns, channels = _place(height, width, CHANNELS, ROWS, COLUMNS, BLOCK)
    valid = channels < CHANNELS
    a0, a1, a2, b0, b1, b2, c0, c1, c2 = _taps(weights, channels, valid, 0, 1, CHANNELS)
    start = _offset(bias, channels, valid, HAS_BIAS, COLUMNS, BLOCK)
    previous, current = start, start  # sums of output rows y − 1 and y
    west, here, east = _load_three(
        x, image, top - 1, top > 0, columns, channels, valid, height, width, CHANNELS
    )
    for step in range(ROWS + 2):
        y = top - 1 + step
        # The next row is on its way while this one is worked on.
        inside = (y + 1 < height) & (step <= ROWS)
        next_west, next_here, next_east = _load_three(
            x, image, y + 1, inside, columns, channels, valid, height, width, CHANNELS
        )
        done = _dot(previous, west, here, east, c0, c1, c2)
        row = _row(out, image, y - 1, height, width, CHANNELS)
        inside = (step >= 2) & (y <= height)
        _store(row, done, inside, columns, channels, valid, width, CHANNELS)
        previous = _dot(current, west, here, east, b0, b1, b2)
        current = _dot(start, west, here, east, a0, a1, a2)
        west, here, east = next_west, next_here, next_east


@jit(do_not_specialize=["height", "width"])
def _gated_kernel(x, weights, bias, grad, out, height, width, HALF: tl.constexpr,
                  HAS_BIAS: tl.constexpr, BACKWARD: tl.constexpr, ROWS: tl.constexpr,
                  COLUMNS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """out = gelu(gate) · value; in the backward pass the gradients of gate and value."""
    _, image, top, columns, channels = _place(height, width, HALF, ROWS, COLUMNS, BLOCK)
    valid = channels < HALF
    a0, a1, a2, b0, b1, b2, c0, c1, c2 = _taps(weights, channels, valid, 0, 1, 2 * HALF)
    start = _offset(bias, channels, valid, HAS_BIAS, COLUMNS, BLOCK)
    d0, d1, d2, e0, e1, e2, f0, f1, f2 = _taps(weights + HALF, channels, valid, 0, 1, 2 * HALF)
    start_v = _offset(bias + HALF, channels, valid, HAS_BIAS, COLUMNS, BLOCK)
    previous, current, previous_v, current_v = start, start, start_v, start_v
    west, here, east = _load_three(
        x, image, top - 1, top > 0, columns, channels, valid, height, width, 2 * HALF
    )
    west_v, here_v, east_v = _load_three(
        x + HALF, image, top - 1, top > 0, columns, channels, valid, height, width, 2 * HALF
    )
    for step in range(ROWS + 2):
        y = top - 1 + step
        inside = (y + 1 < height) & (step <= ROWS)
        next_west, next_here, next_east = _load_three(
            x, image, y + 1, inside, columns, channels, valid, height, width, 2 * HALF
        )
        next_west_v, next_here_v, next_east_v = _load_three(
            x + HALF, image, y + 1, inside, columns, channels, valid, height, width, 2 * HALF
        )
        gate = _dot(previous, west, here, east, c0, c1, c2)
        value = _dot(previous_v, west_v, here_v, east_v, f0, f1, f2)
        gelu, cumulative = _gelu(gate)
        inside = (step >= 2) & (y <= height)
        if BACKWARD:
            row = _row(grad, image, y - 1, height, width, HALF)
            g = _load(row, inside, columns, channels, valid, width, HALF).to(tl.float32)
            density = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
            row = _row(out, image, y - 1, height, width, 2 * HALF)
            gate_grad = g * value * (cumulative + gate * density)
            _store(row, gate_grad, inside, columns, channels, valid, width, 2 * HALF)
            _store(row + HALF, g * gelu, inside, columns, channels, valid, width, 2 * HALF)
        else:
            row = _row(out, image, y - 1, height, width, HALF)
            _store(row, gelu * value, inside, columns, channels, valid, width, HALF)
        previous = _dot(current, west, here, east, b0, b1, b2)
        current = _dot(start, west, here, east, a0, a1, a2)
        previous_v = _dot(current_v, west_v, here_v, east_v, e0, e1, e2)
        current_v = _dot(start_v, west_v, here_v, east_v, d0, d1, d2)
        west, here, east = next_west, next_here, next_east
        west_v, here_v, east_v = next_west_v, next_here_v, next_east_v


@jit
def _store_sum(partial, number, values, tile, channels, valid, CHANNELS: tl.constexpr):
    row = partial + (tile.to(tl.int64) * 10 + number) * CHANNELS
    tl.store(row + channels, tl.sum(values, axis=0), mask=valid)


@jit(do_not_specialize=["height", "width"])
def _conv_backward_kernel(grad, x, weights, dx, partial, height, width, CHANNELS: tl.constexpr,
                          ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                          BLOCK: tl.constexpr):  # fmt: skip
    """dx, the convolution of grad with the weights turned round; and sums over this tile's
    pixels of x, `partial` (tiles, 10, CHANNELS): nine for the weights' gradient, one for the
    bias's.
    """
    tile, image, top, columns, channels = _place(height, width, CHANNELS, ROWS, COLUMNS, BLOCK)
    valid = channels < CHANNELS
    a0, a1, a2, b0, b1, b2, c0, c1, c2 = _taps(weights, channels, valid, 8, -1, CHANNELS)
    zero = tl.zeros((COLUMNS, BLOCK), tl.float32)
    previous, current = zero, zero  # sums of rows y − 1 and y of dx
    s0, s1, s2, s3, s4, s5, s6, s7, s8, sum_bias = (
        zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    )  # fmt: skip
    west, here, east = _load_three(
        grad, image, top - 1, top > 0, columns, channels, valid, height, width, CHANNELS
    )
    # Rows y − 1, y, y + 1 of x; those of other tiles count as zero.
    row = _row(x, image, top, height, width, CHANNELS)
    below = _load(row, top < height, columns, channels, valid, width, CHANNELS).to(tl.float32)
    above, level = zero, zero
    for step in range(ROWS + 2):
        y = top - 1 + step
        inside = (y + 1 < height) & (step <= ROWS)
        next_west, next_here, next_east = _load_three(
            grad, image, y + 1, inside, columns, channels, valid, height, width, CHANNELS
        )
        row = _row(x, image, y + 2, height, width, CHANNELS)
        inside = (y + 2 < height) & (step + 1 < ROWS)
        next_below = _load(row, inside, columns, channels, valid, width, CHANNELS)

        done = _dot(previous, west, here, east, c0, c1, c2)
        row = _row(dx, image, y - 1, height, width, CHANNELS)
        inside = (step >= 2) & (y <= height)
        _store(row, done, inside, columns, channels, valid, width, CHANNELS)
        previous = _dot(current, west, here, east, b0, b1, b2)
        current = _dot(zero, west, here, east, a0, a1, a2)

        gl, gm, gr = west.to(tl.float32), here.to(tl.float32), east.to(tl.float32)
        s0 += above * gr
        s1 += above * gm
        s2 += above * gl
        s3 += level * gr
        s4 += level * gm
        s5 += level * gl
        s6 += below * gr
        s7 += below * gm
        s8 += below * gl
        own = tl.where((step >= 1) & (step <= ROWS), width, 0)
        sum_bias += tl.where((columns < own)[:, None], gm, 0.0)
        above, level, below = level, below, next_below.to(tl.float32)
        west, here, east = next_west, next_here, next_east
    _store_sum(partial, 0, s0, tile, channels, valid, CHANNELS)
    _store_sum(partial, 1, s1, tile, channels, valid, CHANNELS)
    _store_sum(partial, 2, s2, tile, channels, valid, CHANNELS)
    _store_sum(partial, 3, s3, tile, channels, valid, CHANNELS)
    _store_sum(partial, 4, s4, tile, channels, valid, CHANNELS)
    _store_sum(partial, 5, s5, tile, channels, valid, CHANNELS)
    _store_sum(partial, 6, s6, tile, channels, valid, CHANNELS)
    _store_sum(partial, 7, s7, tile, channels, valid, CHANNELS)
    _store_sum(partial, 8, s8, tile, channels, valid, CHANNELS)
    _store_sum(partial, 9, sum_bias, tile, channels, valid, CHANNELS)


INTERPRETED = not isinstance(_conv_kernel, JITFunction)
"""Whether Triton runs the kernels on the CPU (TRITON_INTERPRET=1), slowly, for tests."""


ENOUGH_PROGRAMS = 1024
"""Below this number of programs the tiles are made shorter, to occupy the GPU."""

FEWEST_ROWS = 4
"""Of the shorter tiles."""


@dataclass(frozen=True)
class _Tiling:
    """How the pixels and channels of a tensor are shared out among programs."""

    rows: int
    columns: int
    block: int
    tiles: int
    programs: int
    warps: int


def _tiling(x: Tensor, channels: int, *, rows: int, warps: int) -> _Tiling:
    """Tiles of up to `rows` rows of x (B, C, H, W), and blocks of `channels` channels."""
    batch, _, height, width = x.shape
    # 64 bfloat16 are a cache line. Half of that where whole ones would leave many lanes idle.
    block = 64 if -channels % 64 <= channels // 8 else 32
    # Each of a warp's 32 lanes has four values of every sum in its registers.
    columns = 4 * 32 * warps // block
    across = batch * triton.cdiv(width, columns)
    blocks = triton.cdiv(channels, block)
    if across * triton.cdiv(height, rows) * blocks < ENOUGH_PROGRAMS:
        rows = FEWEST_ROWS
    tiles = across * triton.cdiv(height, rows)
    return _Tiling(rows, columns, block, tiles, tiles * blocks, warps)


def _launch(
    kernel: JITFunction,
    x: Tensor,
    tensors: Sequence[Tensor | None],
    tiling: _Tiling,
    constants: Mapping[str, int],
) -> None:
    """Run a kernel over the pixels of x. In place of a tensor that is None, which no kernel
    reads, it gets a pointer to x.
    """
    kernel[(tiling.programs,)](
        *(x if tensor is None else tensor for tensor in tensors),
        *x.shape[2:],
        **constants,
        ROWS=tiling.rows,
        COLUMNS=tiling.columns,
        BLOCK=tiling.block,
        num_warps=tiling.warps,
        enable_fp_fusion=True,  # multiply-adds, whatever the release's default
    )


def _by_tap(weight: Tensor) -> Tensor:
    """(C, 1, 3, 3) → (9, C): threads load neighbouring channels together."""
    return weight.flatten(1).t().contiguous()


def conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (B, C, H, W) channels last, weight (C, 1, 3, 3) and bias (C,) contiguous → as x."""
    out = torch.empty_like(x)
    constants = {"CHANNELS": x.shape[1], "HAS_BIAS": bias is not None}
    tiling = _tiling(x, x.shape[1], rows=16, warps=8)
    _launch(_conv_kernel, x, (x, _by_tap(weight), bias, out), tiling, constants)
    return out


def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `conv`'s arguments; those of weight and bias float32, and of no bias empty."""
    channels = x.shape[1]
    dx = torch.empty_like(x)
    tiling = _tiling(x, channels, rows=32, warps=8)
    partial = x.new_empty(tiling.tiles, 10, channels, dtype=torch.float32)
    tensors = (grad, x, _by_tap(weight), dx, partial)
    _launch(_conv_backward_kernel, x, tensors, tiling, {"CHANNELS": channels})
    sums = partial.sum(dim=0)
    dweight = sums[:9].t().reshape(weight.shape)
    return dx, dweight, sums.new_empty(0) if bias is None else sums[9]


def gated(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (B, 2h, H, W) → (B, h, H, W), otherwise as `conv`."""
    batch, channels, height, width = x.shape
    out = x.new_empty(batch, height, width, channels // 2).permute(0, 3, 1, 2)
    _launch_gated(x, weight, bias, None, out)
    return out


def gated_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `conv_backward`, for `gated`."""
    convolved_grad = torch.empty_like(x)
    _launch_gated(x, weight, bias, grad, convolved_grad)
    return conv_backward(convolved_grad, x, weight, bias)


def _launch_gated(
    x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor | None, out: Tensor
) -> None:
    half = x.shape[1] // 2
    constants = {"HALF": half, "HAS_BIAS": bias is not None, "BACKWARD": grad is not None}
    tiling = _tiling(x, half, rows=16, warps=4)
    _launch(_gated_kernel, x, (x, _by_tap(weight), bias, grad, out), tiling, constants)
