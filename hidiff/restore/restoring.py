"""Restoring one image: its noise, its symmetries, and the pixels of the result."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hidiff.archs.windows import Windows
from hidiff.data.image import to_float
from hidiff.data.transforms import SYMMETRIES, Normalization, symmetry, undo_symmetry
from hidiff.models import DeblurModel
from hidiff.options import LocalOptions
from hidiff.restore.tiles import restore_in_tiles
from hidiff.utils.errors import UserError, memory_errors


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
    # Torch hardly calculates with uint16.
    pixels = pixels.to(torch.uint8 if highest == 255 else torch.int32)
    return pixels.contiguous().cpu().numpy().astype(dtype, copy=False)


def photo_item(pixels: np.ndarray, name: str) -> dict[str, Any]:
    """(H, W, 3) uint8 or uint16 → an item as of a data set without sharp images."""
    image = np.ascontiguousarray(to_float(pixels).transpose(2, 0, 1))
    return {"lq": torch.from_numpy(image), "name": name}


def restore_item(
    model: DeblurModel,
    item: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device,
    self_ensemble: bool = False,
    seeds: int = 1,
    normalization: Normalization | None = None,
    local: LocalOptions | None = None,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Restore one item of a data set.

    Args:
        model: in evaluation mode, on `device`.
        item: `lq` (3, H, W), `name`, and `gt` where there is one.
        seed: the experiment's; the noise depends on it and the name.
        self_ensemble: average the restorations of the 8 symmetries of the image.
        seeds: average as many restorations from different noise; the seeds count up from `seed`.
        normalization: what the model was trained with; it is undone in the result.
        local: whether in tiles or with statistics of windows; None for neither.
        progress: called with the part that is done, 0 to 1.

    Returns:
        (3, H, W) float32 on `device`.

    Raises:
        UserError: the image is too small, or too large for the memory; what the network makes of
            it is not finite.
    """
    sides = ("lq", "gt") if model.restores_from_gt and "gt" in item else ("lq",)
    size = "×".join(str(side) for side in item["lq"].shape[:0:-1])
    kind = "GPU" if device.type == "cuda" else "computer"
    hint = (
        "use precision bf16, tiles, a larger GPU or the CPU (--device cpu; of test.py: num_gpu: 0)"
    )
    if kind != "GPU":
        hint = "use precision bf16, tiles (--local tile), or one with more memory"
    total: Tensor | None = None
    count = SYMMETRIES if self_ensemble else 1
    restore = model.restore
    if local is not None and local.mode != "none":
        windows = Windows(local.size, local.overlap)
        tiles = functools.partial(restore_in_tiles, model, windows)
        restore = tiles if local.mode == "tile" else functools.partial(restore, local=windows)
    with memory_errors(f"{item['name']}: {size} pixels do not fit into the {kind}'s memory", hint):
        images = [item[side].to(device)[None] for side in sides]
        if normalization is not None:
            images = [normalization.apply(image) for image in images]
        for run in range(count * seeds):
            index = run % count
            options: dict[str, Any] = {}
            if progress is not None:
                options["progress"] = lambda done, run=run: progress((run + done) / count / seeds)
            restored = restore(
                *(symmetry(image, index).contiguous() for image in images),
                generator=image_generator(seed + run // count, item["name"]),
                **options,
            )
            restored = undo_symmetry(restored[0].float(), index)
            if normalization is not None:
                restored = normalization.undo(restored)
            total = restored if total is None else total + restored
        assert total is not None
        if not torch.isfinite(total).all():
            raise UserError(
                f"{item['name']}: the restored image has values that are not finite (NaN or "
                "infinity); are the weights whole and trained? With precision bf16 try fp32"
            )
        return total if count * seeds == 1 else total / (count * seeds)
