"""The Transformer on images of any size: one feature map in memory, everything else in strips.

Each step needs a pixel's neighbours of one row and column at most, but for MDTA's Gram matrices and
norms, which are sums over all pixels. So a feature map is changed in place, strip by strip, and the
result is that of the whole image but for rounding:

- MDTA takes two passes: one adds up q kᵀ and the squares of q and k, then the softmax over channels
  and the output projection become one C×C matrix, and the second computes v and what is added.
- GDFN takes one pass. Both keep the last two rows of a depthwise convolution's input for the next
  strip, so nothing is computed twice.
- HIM works on pixels alone; the changes of resolution read one row above and below.

A strip is cut into blocks of columns that stay in the processor's cache between two operators,
which is faster than the whole image at once. Blocks are float32 where the processor has no
arithmetic for the features' bfloat16. In memory are the two maps of full resolution (the skip and
what is upsampled, side by side as the decoder reads them), the coarser skips, and one block.

Nothing here has weights of its own, and nothing has a gradient. (B, C, H, W) are restored image by
image; a feature map is (H, W, C) here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hidiff.archs.restormer import (
    ALIGNED,
    Attention,
    Conv2d,
    DepthwiseConv2d,
    Downsample,
    FeedForward,
    LayerNorm2d,
    Upsample,
    as_dtype,
    at_least_float32,
    block_dtype,
    fill_halves,
)
from hidiff.archs.transformer import BasicLayer, Steps, Transformer
from hidiff.archs.windows import Windows
from hidiff.kernels import gelu_gate

Area = tuple[tuple[slice, slice], Tensor]
"""Rows and columns of a feature map, and the weights (h, w) of its pixels."""

Progress = Callable[[float], None]
"""Told how much is done, in [0, 1], never less than before."""


@dataclass(frozen=True)
class Strips:
    """How feature maps are cut.

    Args:
        rows: of a strip.
        block_bytes: of the convolution's input that a strip's block may take; blocks are as many
            columns wide. None leaves strips whole.
    """

    rows: int = 32
    block_bytes: int | None = 8 * 2**20

    def columns(self, width: int, pixel_bytes: int) -> int:
        """The width of a block in pixels."""
        if self.block_bytes is None:
            return width
        return min(width, max(ALIGNED, self.block_bytes // ((self.rows + 2) * pixel_bytes)))


@torch.no_grad()
def restore_in_strips(
    network: Transformer,
    inp_img: Tensor,
    prior: Tensor | None = None,
    strips: Strips = Strips(),
    progress: Progress | None = None,
    local: Windows | None = None,
) -> Tensor:
    """What `network(inp_img, prior)` computes; see there for the arguments.

    Args:
        network: its `feature_dtype` is that of the feature maps in memory.
        strips: how they are cut.
        progress: called after each strip.
        local: MDTA's statistics are those of such windows in place of the whole image, as the
            patches of the training had them (after "test-time local converter", Chu et al., ECCV
            2022). Each window has an attention of its own, and what they make of v is blended.
    """
    assert prior is None or network.guidance != "none", "this network takes no prior"
    run = _Run(network, strips, progress, local, images=len(inp_img))
    priors = [None] * len(inp_img) if prior is None else prior.split(1)
    return torch.stack([run.restore(*pair) for pair in zip(inp_img, priors, strict=True)])


@dataclass
class _Run(Steps):
    """One call of `restore_in_strips`, for which `done` of the work is done."""

    network: Transformer
    strips: Strips
    progress: Progress | None
    local: Windows | None
    images: int
    done: float = 0.0

    def restore(self, image: Tensor, prior: Tensor | None) -> Tensor:
        """(3, H, W), (1, N, C') → (3, H, W)."""
        net = self.network
        self.height, width = image.shape[1:]
        pixels = image.permute(1, 2, 0)
        dtype = net.feature_dtype or image.dtype
        self.dtype = block_dtype(dtype, image.device)
        self.work = _work(net, self.height * width) * self.images
        dim = net.patch_embed.proj.out_channels
        # Of the decoder's 2·dim channels at full resolution the second half is the encoder's map.
        self.features = features = image.new_empty(self.height, width, 2 * dim, dtype=dtype)
        for rows, embedded in self._embed(pixels):
            features[rows, :, dim:] = embedded
        net.u_shape(features[..., dim:], net.level_priors(prior), self)

        if net.dual_pixel_task:
            for rows, embedded in self._embed(pixels):
                features[rows] += _pixelwise(net.skip_conv, embedded.to(self.dtype))
        del self.features
        restored = torch.empty_like(image, memory_format=torch.contiguous_format)
        for rows in self._strips(self.height):
            restored[:, rows] = _conv3x3(net.output, features, rows, image.dtype).permute(2, 0, 1)
        return restored if net.dual_pixel_task else restored.add_(image)

    def _strips(self, height: int, multiple: int = 1) -> list[slice]:
        rows = self.strips.rows + -self.strips.rows % multiple
        return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]

    def _advance(self, work: float) -> None:
        self.done += work
        if self.progress is not None:
            self.progress(min(self.done / self.work, 1.0))

    def _embed(self, pixels: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The patch embedding, strip by strip: rows and their features (rows, W, dim)."""
        for rows in self._strips(len(pixels)):
            yield rows, _conv3x3(self.network.patch_embed.proj, pixels, rows, pixels.dtype)

    def down(self, layer: Downsample, x: Tensor) -> Tensor:
        """(H, W, C) → (H/2, W/2, 2C)."""
        conv = cast(Conv2d, layer.body[0])
        height, width, _ = x.shape
        small = x.new_empty(height // 2, width // 2, 4 * conv.out_channels)
        for rows in self._strips(height, 2):
            out = _conv3x3(conv, x, rows, self.dtype).unflatten(1, (-1, 2)).unflatten(0, (-1, 2))
            part = out.permute(0, 2, 4, 1, 3)  # (rows/2, W/2, C/2, 2, 2), as in PixelUnshuffle
            small[rows.start // 2 : rows.stop // 2] = part.flatten(2)
        return small

    def up(self, layer: Upsample, x: Tensor, skip: Tensor, reduce: Conv2d | None) -> Tensor:
        """x (H/2, W/2, 2C) upsampled beside the skip (H, W, C), reduced to C channels in its place.

        Without `reduce`, at full resolution, both already have a place side by side.
        """
        target = self.features[..., : skip.shape[-1]] if reduce is None else skip
        conv = cast(Conv2d, layer.body[0])
        # Channels in the order row, column, channel, so that PixelShuffle moves whole pixels.
        weight = conv.weight.unflatten(0, (-1, 2, 2)).permute(1, 2, 0, 3, 4, 5).flatten(0, 2)
        for rows in self._strips(len(x)):
            out = _conv3x3(conv, x, rows, self.dtype, weight).unflatten(2, (2, 2, -1))
            out = out.permute(0, 2, 1, 3, 4).flatten(0, 1).flatten(1, 2)  # (rows, W, C)
            place = target[2 * rows.start : 2 * rows.stop]
            if reduce is not None:
                out = _pixelwise(reduce, torch.cat([out, place.to(out.dtype)], dim=-1))
            place.copy_(out)
        return self.features if reduce is None else skip

    def level(self, layer: BasicLayer, x: Tensor, prior: Tensor | None) -> Tensor:
        """`BasicLayer.forward`, in place."""
        if prior is not None and layer.him is not None:
            for rows in self._strips(len(x)):
                strip = x[rows].to(self.dtype)[None].permute(0, 3, 1, 2)
                x[rows] = layer.him(strip, prior)[0].permute(1, 2, 0)
            prior = None
        for block in layer.blocks:
            self._attention(block.attn, block.norm1, x, prior)
            self._feed_forward(block.ffn, block.norm2, x, prior)
        return x

    def _attention(
        self, attn: Attention, norm: LayerNorm2d, x: Tensor, prior: Tensor | None
    ) -> None:
        """x + attn(norm(x)), in place."""
        dim, heads = x.shape[-1], attn.num_heads
        affine = attn.affine(prior)
        areas = self._areas(x)
        gram = x.new_zeros(len(areas), heads, dim // heads, dim // heads, dtype=torch.float64)
        squares = x.new_zeros(len(areas), 2 * dim, dtype=torch.float64)
        queries_and_keys, values = slice(0, 2 * dim), slice(2 * dim, 3 * dim)

        widened = _Widened(attn.qkv, attn.qkv_dwconv, self.dtype, lambda t: t[queries_and_keys])
        for window, *place in self._windows(x, norm, affine, widened):
            block = widened.convolve(window)
            for area, part, _ in _inside(areas, place):
                qk = at_least_float32(block[part].flatten(0, 1))  # (pixels, 2·dim)
                q, k = (t.unflatten(1, (heads, -1)).transpose(0, 1) for t in qk.chunk(2, dim=1))
                gram[area] += q.transpose(1, 2) @ k
                squares[area] += qk.square().sum(dim=0)
        dtype = at_least_float32(x.new_empty(0)).dtype
        q_norms, k_norms = squares.sqrt().to(dtype).unflatten(1, (2, heads, -1)).unbind(dim=1)
        matrices = attn.folded(attn.softmax(gram.to(dtype), q_norms, k_norms)).to(self.dtype)
        matrices = matrices.transpose(1, 2).contiguous()

        widened = _Widened(attn.qkv, attn.qkv_dwconv, self.dtype, lambda t: t[values])
        bias = as_dtype(attn.project_out.bias, self.dtype)
        for window, *place in self._windows(x, norm, affine, widened, changed=True):
            v = widened.convolve(window)
            if self.local is None:
                out = _multiplied(v, matrices[0], bias)
            else:
                out = torch.zeros_like(v)
                for area, part, weight in _inside(areas, place):
                    local = _multiplied(v[part], matrices[area], bias)
                    out[part] += local * weight[..., None].to(v)
            x[tuple(place)] += out

    def _areas(self, x: Tensor) -> list[Area]:
        """The parts of x with a Gram matrix each: all of it, or the windows of `local`."""
        height, width, _ = x.shape
        if self.local is not None:
            return self.local.over(height, width, scale=self.height // height)
        return [((slice(0, height), slice(0, width)), x.new_ones(()).expand(height, width))]

    def _feed_forward(
        self, ffn: FeedForward, norm: LayerNorm2d, x: Tensor, prior: Tensor | None
    ) -> None:
        """x + ffn(norm(x)), in place."""
        missing = -ffn.project_out.in_channels % ALIGNED
        filled = partial(fill_halves, missing=missing)
        widened = _Widened(ffn.project_in, ffn.dwconv, self.dtype, filled)
        matrix = F.pad(ffn.project_out.weight.flatten(1), (0, missing)).to(self.dtype)
        matrix = matrix.t().contiguous()
        bias = as_dtype(ffn.project_out.bias, self.dtype)
        affine = ffn.affine(prior)
        for window, *place in self._windows(x, norm, affine, widened, changed=True):
            gated = gelu_gate(widened.convolve(window), dim=-1)
            x[tuple(place)] += _multiplied(gated, matrix, bias)

    def _windows(
        self,
        x: Tensor,
        norm: LayerNorm2d,
        affine: tuple[Tensor | None, Tensor | None],
        widened: _Widened,
        *,
        changed: bool = False,
    ) -> Iterator[tuple[Tensor, slice, slice]]:
        """What a depthwise convolution reads of normalised and widened pixels, block by block.

        Args:
            x: (H, W, C).
            norm, affine: the layer norm and what it takes beside the pixels.
            widened: the 1×1 convolution after it.
            changed: the block's pixels of x are changed before the next one is asked for.

        Yields:
            Window (1, channels, rows + 2, columns + 2), zero around the image; and the rows and
            columns of x that it is the neighbourhood of.
        """
        height, width, dim = x.shape
        channels = len(widened.weight)
        columns = self.strips.columns(width, channels * self.dtype.itemsize)
        before = after = None
        for left in range(0, width, columns):
            right = min(left + columns, width)
            # The next block's neighbours, before they are changed.
            before, after = after, x[:, right - 1].clone() if changed else None
            first, last = max(left - 1, 0), min(right + 1, width)
            span = right - left + 2
            most = min(self.strips.rows, height)
            pixels = x.new_zeros(most, span, dim, dtype=self.dtype)
            # Two rows of the strip before, this strip, and a row of zeros below the image.
            buffer = x.new_empty(most + 3, span, channels, dtype=self.dtype)
            buffer[0] = 0
            filled = 1
            for top in range(0, height, self.strips.rows):
                bottom = min(top + self.strips.rows, height)
                strip, out = pixels[: bottom - top], buffer[filled : filled + bottom - top]
                strip[:, first - left + 1 : last - left + 1] = x[top:bottom, first:last]
                if before is not None:
                    strip[:, 0] = before[top:bottom]
                normed = norm(strip[None].permute(0, 3, 1, 2), *affine).permute(0, 2, 3, 1)
                widened.multiply(normed.reshape(-1, dim), out.view(-1, channels))
                if left == 0:
                    out[:, 0] = 0
                if right == width:
                    out[:, -1] = 0
                filled += bottom - top
                if bottom == height:
                    buffer[filled] = 0
                    filled += 1
                if filled > 2:
                    stop = bottom - (bottom < height)
                    rows = slice(stop - (filled - 2), stop)
                    yield buffer[None, :filled].permute(0, 3, 1, 2), rows, slice(left, right)
                buffer[0] = buffer[filled - 2]
                buffer[1] = buffer[filled - 1]
                filled = 2
                self._advance(dim**2 * (bottom - top) * (right - left))


class _Widened:
    """A 1×1 convolution to more channels and the 3×3 convolution of each of them after it."""

    def __init__(
        self,
        pointwise: Conv2d,
        depthwise: DepthwiseConv2d,
        dtype: torch.dtype,
        choose: Callable[[Tensor], Tensor],
    ) -> None:
        """`choose` selects or fills up the output channels, the first axis."""
        self.weight = choose(pointwise.weight.flatten(1)).to(dtype)  # (out, in)
        self.taps = choose(depthwise.weight).to(dtype)  # (out, 1, 3, 3)
        biases = (None if b is None else choose(b) for b in (pointwise.bias, depthwise.bias))
        self.bias, self.taps_bias = (as_dtype(chosen, dtype) for chosen in biases)

    def multiply(self, pixels: Tensor, out: Tensor) -> None:
        """The first: (n, in) → `out` (n, out)."""
        if self.bias is None:
            torch.mm(pixels, self.weight.t(), out=out)
        else:
            torch.addmm(self.bias, pixels, self.weight.t(), out=out)

    def convolve(self, window: Tensor) -> Tensor:
        """The second, of a window with its border: (1, out, H + 2, W + 2) → (H, W, out)."""
        out = F.conv2d(window, self.taps, self.taps_bias, groups=len(self.taps))
        return out[0].permute(1, 2, 0)


def _inside(
    areas: list[Area], block: Sequence[slice]
) -> Iterator[tuple[int, tuple[slice, ...], Tensor]]:
    """What areas share with a block: their index, their part of the block, its pixels' weights."""
    for index, (place, weights) in enumerate(areas):
        shared = [
            slice(max(a.start, b.start), min(a.stop, b.stop))
            for a, b in zip(place, block, strict=True)
        ]
        if all(axis.start < axis.stop for axis in shared):
            yield index, _relative(shared, block), weights[_relative(shared, place)]


def _relative(part: Sequence[slice], whole: Sequence[slice]) -> tuple[slice, ...]:
    """Where a part of the feature map lies in a larger part of it."""
    return tuple(
        slice(a.start - b.start, a.stop - b.start) for a, b in zip(part, whole, strict=True)
    )


def _multiplied(pixels: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """(h, w, in) · (in, out) + bias; faster than `F.linear`, whose matrix is (out, in)."""
    flat = pixels.reshape(-1, len(matrix))
    out = flat @ matrix if bias is None else torch.addmm(bias, flat, matrix)
    return out.unflatten(0, pixels.shape[:2])


def _conv3x3(
    conv: Conv2d, x: Tensor, rows: slice, dtype: torch.dtype, weight: Tensor | None = None
) -> Tensor:
    """Rows of a 3×3 convolution of x (H, W, C), computed in `dtype`: (rows, W, out).

    Args:
        weight: in place of the module's.
    """
    first, last = max(rows.start - 1, 0), min(rows.stop + 1, len(x))
    strip = x[first:last].to(dtype)
    strip = F.pad(strip, (0, 0, 0, 0, first - rows.start + 1, rows.stop + 1 - last))
    weight = conv.weight if weight is None else weight
    strip = strip[None].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    out = F.conv2d(strip, weight.to(dtype), as_dtype(conv.bias, dtype), padding=(0, 1))
    return out[0].permute(1, 2, 0)


def _pixelwise(conv: Conv2d, x: Tensor) -> Tensor:
    """A 1×1 convolution of x (…, in): (…, out)."""
    return F.linear(x, conv.weight.flatten(1).to(x.dtype), as_dtype(conv.bias, x.dtype))


def _work(network: Transformer, pixels: int) -> float:
    """What an image costs, in the unit of `_advance`: three sweeps a block, by C² and pixels."""
    return sum(
        3 * block.attn.project_out.out_channels**2 * pixels / 4**level
        for level, parts in enumerate(network.levels())
        for part in parts
        for block in part.blocks
    )
