"""Training batches on their way to the device: bytes are copied, pixels are made there.

A loader process cuts patches and nothing else. Turning, flipping and the conversion to floating
point happen on the device, so that a quarter of the bytes crosses to it and no core waits for them.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hidiff.data.transforms import symmetry


def to_device(
    batch: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The pictures of a training batch, ready for the model.

    Args:
        batch: `lq` and `gt`, (B, s, s, 3) uint8 or float32 in [0, 1], and `symmetry`, B numbers;
            see `training_batches`. Copies do not block where the memory is pinned.
        device: where to.
        dtype: floating point type of the result; the pixels are rounded to float32 first.

    Returns:
        (lq, gt), each (B, 3, s, s) in [0, 1], in channels-last memory.
    """

    def pixels(patches: Tensor) -> Tensor:
        patches = patches.to(device, non_blocking=True)
        # Two small operations a patch; no indices are sent to the device.
        pairs = zip(patches, batch["symmetry"], strict=True)
        patches = torch.stack([symmetry(patch, index, dims=(0, 1)) for patch, index in pairs])
        patches = patches.permute(0, 3, 1, 2)
        if patches.dtype == torch.uint8:
            # Divided by a number or by a tensor of the CPU, CUDA multiplies by the reciprocal,
            # which is another value in the last bit than the division of `to_float`.
            patches = patches.to(torch.float32).div_(torch.full((), 255.0, device=device))
        return patches.to(dtype)

    return pixels(batch["lq"]), pixels(batch["gt"])


class DeviceBatches(Iterator[dict[str, Any]]):
    """Training batches with their pictures on the device, one of them ahead of its use.

    Args:
        batches: see `training_batches`.
        device, dtype: see `to_device`.
    """

    def __init__(
        self, batches: Generator[Mapping[str, Any]], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.waited = 0.0
        """Seconds that the device had nothing to do and a batch was not there."""
        self._batches = batches
        self._device = device
        self._dtype = dtype
        self._ahead: dict[str, Any] | Exception | None = None
        self._loaded: Mapping[str, Any] | None = None

    def prefetch(self) -> None:
        """Have the next batch brought to the device while that still computes.

        What goes wrong is raised when the batch is asked for. Where memory ran out while a batch
        was copied, the next call copies the same one.
        """
        if self._ahead is not None:
            return
        try:
            if self._loaded is None:
                started = time.perf_counter()
                self._loaded = next(self._batches)
                # A GPU that still computes has not waited.
                if self._device.type != "cuda" or torch.cuda.current_stream(self._device).query():
                    self.waited += time.perf_counter() - started
            lq, gt = to_device(self._loaded, self._device, self._dtype)
            self._ahead = {**self._loaded, "lq": lq, "gt": gt}
            self._loaded = None
        except Exception as error:
            self._ahead = error

    def __next__(self) -> dict[str, Any]:
        """The next batch: `lq` and `gt` as of `to_device`, `name` and `notices`.

        Raises:
            UserError: an image cannot be used, see `training_batches`.
        """
        self.prefetch()
        batch, self._ahead = self._ahead, None
        if isinstance(batch, Exception):
            raise batch
        assert batch is not None
        return batch

    def close(self) -> None:
        """End the loader processes."""
        self._batches.close()
