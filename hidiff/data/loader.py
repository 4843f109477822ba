"""Loading training batches in worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, default_collate

from hidiff.data.sampler import PhaseBatchSampler
from hidiff.errors import UserError


class _Reporting(Dataset):
    """Hands a `UserError` on as an item: raised in a worker it would arrive as a traceback."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.dataset[item]
        except UserError as error:
            return error


def _collate(items: list[Any]) -> Any:
    errors = [item for item in items if isinstance(item, UserError)]
    return errors[0] if errors else default_collate(items)


def training_batches(
    dataset: Dataset, sampler: PhaseBatchSampler, *, num_workers: int, pin_memory: bool
) -> Iterator[dict[str, Any]]:
    """The sampler's batches in order: `lq`, `gt` (B, 3, h, w) float32 and `name`, a list.

    Args:
        dataset: items as of `PairedImageIRDataset`.
        sampler: which crops make each batch.
        num_workers: loader processes; 0 loads in this process.
        pin_memory: for copies to a GPU that do not block.

    Raises:
        UserError: an image cannot be used; the message names it.
    """
    loader = DataLoader(
        _Reporting(dataset),
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch
