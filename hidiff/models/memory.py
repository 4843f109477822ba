"""How much memory restoring needs, how much there is, and what follows from that."""

from __future__ import annotations

import dataclasses
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from hidiff.archs.latent_encoder import LatentEncoder
from hidiff.archs.restormer import block_dtype
from hidiff.archs.strips import Strips
from hidiff.archs.transformer import Transformer
from hidiff.utils.errors import UserError
from hidiff.utils.memory import release_freed_memory

LOG = logging.getLogger("hidiff")

StripRows = int | Literal["auto", "whole"]
"""Rows of a strip, or the whole image at once. 'auto' takes strips on CPUs, where they are faster,
and on GPUs for images that do not fit at once."""

DEVICE_SHARE = 0.8
"""Of a GPU's free memory, what an estimate may fill."""

NOTABLE = 4_000_000
"""Pixels from which on the estimate is written to the log."""

CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory",
        *("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ),
)
"""Of the cgroups of version 2 and 1: the folder, files with a container's limit and what it uses,
and the line of `memory.stat` with what of that is a cache of files, which the system gives back."""


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still allocate on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        found.append(int(available.split()[1]) * 1024)
    for folder, limit, used, cache in CGROUPS:
        with suppress(OSError, ValueError):  # 'max' is no limit
            found.append(int(Path(folder, limit).read_text()) - int(Path(folder, used).read_text()))
            lines = Path(folder, "memory.stat").read_text().splitlines()
            found[-1] += sum(int(n) for key, n in map(str.split, lines) if key == cache)
    return min(found)


def restoring_bytes(
    network: Transformer,
    encoder: LatentEncoder | None,
    images: torch.Size,
    dtypes: tuple[torch.dtype, torch.dtype],
    strips: Strips | None,
    device: torch.device,
) -> int:
    """An estimate of what restoring needs at its peak, without the weights.

    In strips, for C = dim and a pixel: 2·C features of full resolution, C/2, C/4 and C/8 of the
    coarser levels, the image and the result; and a few blocks, of which the allocator keeps some
    when they are no longer used. All at once: GDFN of the last level with its 2·C features in four
    places and its h hidden channels in seven (six or eight, as the convolution copies its input or
    not), and the skips. The latent encoder computes at a quarter of the resolution, before the
    Transformer.

    Args:
        network, encoder: the Transformer, and what computes the prior from images, if anything.
        images: shape (B, 3, H, W).
        dtypes: of the images, and of the Transformer's feature maps.
        strips: how feature maps are cut; None for all at once.
        device: where it is computed.
    """
    batch, _, height, width = images
    pixels, dim = height * width, network.patch_embed.proj.out_channels
    image_bytes, feature_bytes = (dtype.itemsize for dtype in dtypes)
    hidden = int(2 * dim * network.ffn_expansion_factor)
    if strips is None:
        features = batch * pixels * (10.75 * dim + 7 * hidden) * feature_bytes
    else:
        block_bytes = block_dtype(dtypes[1], device).itemsize
        columns = strips.columns(width, 2 * hidden * block_bytes) + 2
        blocks = 8 * (strips.rows + 3) * columns * 2 * hidden * block_bytes
        resampled = 5 * (strips.rows + 2) * width * 2 * dim * block_bytes
        features = pixels * 2.875 * dim * feature_bytes + blocks + resampled
    encoding = 0.0
    if encoder is not None:
        convolutions = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
        widest = max(layer.out_channels for layer in convolutions)
        encoding = batch * pixels / 16 * (16 * encoder.in_chans + 3 * widest) * image_bytes
    # As given, padded and restored.
    return int(3 * 3 * batch * pixels * image_bytes + max(features, encoding))


def plan(
    network: Transformer,
    encoder: LatentEncoder | None,
    images: Tensor,
    wanted: StripRows,
    *,
    only_strips: bool = False,
) -> Strips | None:
    """How to restore images with the memory that is free now; None for all at once.

    What is large is written to the log with its estimate.

    Args:
        network, encoder: see `restoring_bytes`.
        images: (B, 3, H, W).
        wanted: what the user asks for.
        only_strips: what is asked for is computed in strips only.

    Raises:
        UserError: it does not fit into the memory.
    """
    device, free = images.device, free_memory(images.device)
    dtype = network.feature_dtype or images.dtype

    def needed(strips: Strips | None, features: torch.dtype = dtype) -> int:
        dtypes = (images.dtype, features)
        return restoring_bytes(network, encoder, images.shape, dtypes, strips, device)

    cut = Strips()
    if device.type != "cpu":
        fitting = (Strips(rows, None) for rows in (256, 128, 64, 32, 16))
        fits = (strips for strips in fitting if needed(strips) <= DEVICE_SHARE * free)
        cut = next(fits, Strips(8, None))
    fits_whole = device.type != "cpu" and needed(None) <= DEVICE_SHARE * free
    strips: Strips | None = (
        dataclasses.replace(cut, rows=wanted) if isinstance(wanted, int) else cut
    )
    if not only_strips and (wanted == "whole" or (wanted == "auto" and fits_whole)):
        strips = None

    size = f"{images.shape[3]}×{images.shape[2]} pixels"
    way = "all at once" if strips is None else f"in strips of {strips.rows} rows"
    if needed(strips) > free and device.type == "cpu":
        # Only now, because what is given back has to be asked for again.
        release_freed_memory()
        free = free_memory(device)
    if needed(strips) > free:
        outs = ["a machine with more memory, or tiles (val.local.mode: tile; --local tile)"]
        if device.type != "cpu":
            outs.append("the CPU (--device cpu; of test.py: --force_yml num_gpu=0)")
        if needed(cut, torch.bfloat16) < needed(cut, dtype) and (
            (smaller := needed(cut, torch.bfloat16)) <= free
        ):
            outs.insert(0, f"precision bf16, which needs {_gib(smaller)}")
        if strips != cut and (smaller := needed(cut)) <= free:
            outs.insert(0, f"val.strip_rows: auto, which needs {_gib(smaller)}")
        raise UserError(
            f"{size} need about {_gib(needed(strips))} of memory {way}, and {_gib(free)} are free; "
            f"use {', or '.join(outs)}"
        )
    if images.shape[2] * images.shape[3] >= NOTABLE:
        LOG.info(
            "%s: restored %s, needs about %s (%s all at once); %s are free",
            *(size, way, _gib(needed(strips)), _gib(needed(None)), _gib(free)),
        )
    return strips


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
