"""Restoring one image: the one way, for validation, tests, photographs and programs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from hidiff.archs.windows import Windows
from hidiff.data.transforms import SYMMETRIES, symmetry, undo_symmetry
from hidiff.models import DeblurModel
from hidiff.models.precision import precision as computing_in
from hidiff.models.stage2 import DiffusionModel
from hidiff.options import LocalOptions, Precision
from hidiff.utils.errors import UserError, memory_errors
from hidiff.utils.memory import keep_freed_memory

DEFAULT_SEED = 0
"""Seed of the noise wherever an image is restored, so that a model has one score everywhere."""

TILES_AT_ONCE = {"cuda": 8}
"""Tiles in a batch by kind of device, elsewhere 1: only GPUs gain by more."""

Progress = Callable[[float], None]
"""Told how much is done, from 0 to 1."""


def image_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator that depends on the seed and the image's name alone.

    So the output for an image does not depend on the images before it.
    """
    # A file's name need not be UTF-8; Python holds the other bytes as surrogates.
    digest = hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def to_image(tensor: Tensor, dtype: type[np.unsignedinteger] = np.uint8) -> np.ndarray:
    """(1, C, H, W) or (C, H, W) float in [0, 1] → (H, W, C) uint8 or uint16, rounded half to even.

    What lies outside is clipped. Computed on the tensor's device, so that fewer bytes leave it.
    """
    highest = np.iinfo(dtype).max
    pixels = tensor.detach().reshape(tensor.shape[-3:]).permute(1, 2, 0).float()
    pixels = pixels.clamp(0, 1).mul(highest).round()
    # PyTorch hardly calculates with uint16.
    pixels = pixels.to(torch.uint8 if highest == 255 else torch.int32)
    return pixels.contiguous().cpu().numpy().astype(dtype, copy=False)


def restore_image(
    model: DeblurModel,
    image: Tensor,
    *,
    name: str,
    gt: Tensor | None = None,
    seed: int = DEFAULT_SEED,
    self_ensemble: bool = False,
    seeds: int = 1,
    local: LocalOptions | None = None,
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> Tensor:
    """Restore one image of any size on the model's device.

    `DeblurModel.restore` pads it, and decides whether it is computed whole or in strips.

    Args:
        model: in evaluation mode.
        image: (3, H, W) RGB in [0, 1].
        name: of the image; its noise depends on it and `seed`.
        gt: (3, H, W), the sharp image; used where the model restores with it (stage 1).
        seed: see `name`.
        self_ensemble: average the restorations of the 8 symmetries of the image.
        seeds: average as many restorations from different noise; the seeds count up from `seed`.
        local: whether in tiles or with statistics of windows; None for neither.
        precision: see `hidiff.models.precision`.
        progress: told how much is done.

    Returns:
        (3, H, W) float32 on the model's device, about [0, 1], not clamped.

    Raises:
        UserError: the image is too small, or too large for the memory; what the network makes of
            it is not finite.
    """
    device = next(model.parameters()).device
    count = SYMMETRIES if self_ensemble else 1
    total = torch.zeros(())
    with _in_memory(image, name, device), computing_in(model, precision):
        given = [image, gt] if model.restores_from_gt and gt is not None else [image]
        images = [side.to(device)[None] for side in given]
        for run in range(count * seeds):
            index = run % count
            restored = _restore(
                model,
                [symmetry(side, index).contiguous() for side in images],
                local,
                image_generator(seed + run // count, name),
                _part_of(progress, run, count * seeds),
            )
            restored = undo_symmetry(restored[0].float(), index)
            total = restored if run == 0 else total + restored
        _check_finite(total, name)
        return total if count * seeds == 1 else total / (count * seeds)


def restore_steps(
    model: DeblurModel,
    image: Tensor,
    *,
    name: str,
    seed: int = DEFAULT_SEED,
    precision: Precision = "fp32",
) -> Tensor:
    """Restore one image with the prior after each step of the reverse chain.

    Args:
        model, image, name, seed, precision: see `restore_image`.

    Returns:
        (T + 1, 3, H, W) float32: with z_T, which is pure noise, … and z_0, as `restore_image` does.

    Raises:
        UserError: see `restore_image`; the model has no reverse chain of its own.
    """
    if not isinstance(model, DiffusionModel):
        raise UserError(
            "--trajectory: only HI-Diff's second stage has a reverse process whose steps can be "
            "shown; name such a model with -m, or leave it out"
        )
    device = next(model.parameters()).device
    with _in_memory(image, name, device), computing_in(model, precision):
        generator = image_generator(seed, name)
        steps = model.restore_trajectory(image.to(device)[None], generator=generator)
        _check_finite(steps, name)
        return steps[:, 0].float()


@contextmanager
def _in_memory(image: Tensor, name: str, device: torch.device) -> Iterator[None]:
    """Say what to do where an image does not fit into the memory."""
    size = f"{image.shape[-1]}×{image.shape[-2]}"
    if device.type == "cuda":
        place = "GPU's"
        hint = "use precision bf16, tiles, a larger GPU or the CPU (--device cpu; num_gpu: 0)"
    else:
        keep_freed_memory()
        place = "computer's"
        hint = "use precision bf16, tiles (--local tile), or a computer with more memory"
    with memory_errors(f"{name}: {size} pixels do not fit into the {place} memory", hint):
        yield


def _check_finite(restored: Tensor, name: str) -> None:
    if not torch.isfinite(restored).all():
        raise UserError(
            f"{name}: the restored image has values that are not finite (NaN or infinity); are the "
            "weights whole and trained? With precision bf16 try fp32"
        )


def _part_of(progress: Progress | None, run: int, runs: int) -> Progress | None:
    """The progress of one run of several."""
    if progress is None:
        return None
    return lambda done: progress((run + done) / runs)


def _restore(
    model: DeblurModel,
    images: list[Tensor],
    local: LocalOptions | None,
    generator: torch.Generator,
    progress: Progress | None,
) -> Tensor:
    """Restore (1, 3, H, W), whole, with local statistics or in tiles."""
    if local is None or local.mode == "none":
        return model.restore(*images, generator=generator, progress=progress)
    windows = Windows(local.size, local.overlap)
    if local.mode == "tlc":
        return model.restore(*images, generator=generator, progress=progress, local=windows)
    return restore_in_tiles(model, windows, *images, generator=generator, progress=progress)


@torch.no_grad()
def restore_in_tiles(
    model: DeblurModel,
    windows: Windows,
    lq: Tensor,
    gt: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Restore overlapping tiles and blend them.

    So every tile has statistics and a prior of its own, as a patch of the training had; pixels of
    the rest of the image have no influence. All priors start from the same noise, that of the whole
    image, and go through the same noise of Eq. 6, however many tiles are computed at once.

    Args:
        model: see `DeblurModel.restore`, also for the other arguments.
        windows: the tiles; an image that is no larger than one is restored whole.
        lq, gt: (1, 3, H, W).

    Returns:
        (1, 3, H, W), about [0, 1], not clamped.
    """
    tiles = windows.over(*lq.shape[-2:])
    noise = model.draw_noise(1, generator)
    step_noise = model.draw_step_noise(1, generator)
    size = TILES_AT_ONCE.get(lq.device.type, 1)
    restored = torch.zeros_like(lq)
    for first in range(0, len(tiles), size):
        batch = tiles[first : first + size]
        images = [
            torch.cat([image[..., *place] for place, _ in batch])
            for image in (lq, gt)
            if image is not None
        ]
        out = model.restore(
            *images,
            noise=_repeated(noise, len(batch)),
            step_noise=_repeated(step_noise, len(batch)),
            generator=generator,
        )
        for tile, (place, weight) in zip(out, batch, strict=True):
            restored[0][..., *place] += tile * weight.to(tile)
        if progress is not None:
            progress((first + len(batch)) / len(tiles))
    return restored


def _repeated(noise: Tensor | None, count: int) -> Tensor | None:
    return None if noise is None else noise.expand(count, *noise.shape[1:])
