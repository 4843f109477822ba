"""Loading training batches in worker processes."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from hidiff.data.image import to_float
from hidiff.data.sampler import CropRequest, PhaseBatchSampler
from hidiff.errors import UserError

SUBSTITUTES = 5
"""Pairs tried in place of one that cannot be used, before giving up."""


class _Reporting(Dataset):
    """Adds `notices` to items and hands errors on as items.

    An exception raised in a worker would arrive with a traceback and without its type.
    """

    def __init__(self, dataset: Dataset, skip_bad: bool) -> None:
        self.dataset = dataset
        self.substitutes = SUBSTITUTES if skip_bad else 0

    def __getitem__(self, request: CropRequest) -> Any:
        notices: list[str] = []
        while True:
            try:
                return {**self.dataset[request], "notices": notices}
            except UserError as error:
                if len(notices) >= self.substitutes:
                    return error
                notices.append(f"{error} (another image is used, train.on_bad_image: skip)")
                index = (request.index + 1) % len(self.dataset)
                request = dataclasses.replace(request, index=index)


def _collate(items: list[Any]) -> Any:
    errors = [item for item in items if isinstance(item, UserError)]
    if errors:
        return errors[0]
    return {
        **{side: _stack([item[side] for item in items]) for side in ("lq", "gt")},
        **{key: [item[key] for item in items] for key in ("symmetry", "name")},
        "notices": [notice for item in items for notice in item["notices"]],
    }


def _stack(patches: list[Tensor]) -> Tensor:
    """A batch of patches; of float32 where images of 8 bits and of 16 bits meet."""
    if len({patch.dtype for patch in patches}) > 1:
        patches = [
            torch.from_numpy(to_float(patch.numpy())) if patch.dtype == torch.uint8 else patch
            for patch in patches
        ]
    # Within a loader process this stacks into memory that the trainer's process shares.
    return default_collate(patches)


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Schedulers signal the whole process group; a worker that died would take the run along."""
    del worker
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def training_batches(
    dataset: Dataset,
    sampler: PhaseBatchSampler,
    *,
    num_workers: int,
    pin_memory: bool = False,
    skip_bad: bool = False,
) -> Iterator[dict[str, Any]]:
    """The sampler's batches in order.

    A batch is a dict for `hidiff.data.transfer.to_device`: `lq`, `gt`, (B, h, w, 3) uint8, or
    float32 in [0, 1] where an image has 16 bits; `symmetry` and `name`, lists; and `notices`, a
    list of texts about images that others stand in for.

    Args:
        dataset: items as `PairedImageIRDataset` gives for a `CropRequest`.
        sampler: which crops make each batch.
        num_workers: loader processes; 0 loads in this process.
        pin_memory: for copies to a GPU that do not block.
        skip_bad: take the next pair where one cannot be used, and say so.

    Raises:
        UserError: an image cannot be used (with `skip_bad`: several in a row); the message names
            it. Or a loader process was ended from outside.
    """
    loader = DataLoader(
        _Reporting(dataset, skip_bad),
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_trainer,
    )
    try:
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    except RuntimeError as error:
        # Torch's words when a worker is killed, by the kernel for want of memory for example.
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a loader process died ({error}); if memory ran out, lower num_worker_per_gpu. "
            "Resume with --auto_resume"
        ) from None
