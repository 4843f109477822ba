"""Data sets, crops and their order. Importing this package registers the data sets."""

from __future__ import annotations

from torch.utils.data import Dataset

from hidiff.data.loader import training_batches
from hidiff.data.paired_dataset import PairedImageIRDataset
from hidiff.data.sampler import BatchPlan, CropRequest, PhaseBatchSampler
from hidiff.data.transforms import Normalization
from hidiff.options import DatasetOptions
from hidiff.registry import DATASETS

__all__ = [
    "BatchPlan",
    "CropRequest",
    "Normalization",
    "PairedImageIRDataset",
    "PhaseBatchSampler",
    "build_dataset",
    "normalization_of",
    "training_batches",
]


def build_dataset(options: DatasetOptions) -> Dataset:
    """The data set of a `datasets.*` section.

    Its attribute `normalization` is None unless the section has `mean` or `std`.

    Raises:
        UserError: an unknown option, or data that is missing or unpaired.
    """
    dataset = DATASETS.build(options.source, options.where, where=options.where)
    dataset.normalization = normalization_of(options)
    return dataset


def normalization_of(options: DatasetOptions) -> Normalization | None:
    """That of a `datasets.*` section; None unless it has `mean` or `std`."""
    given = {key: getattr(options, key) for key in ("mean", "std")}
    given = {key: value for key, value in given.items() if value is not None}
    return Normalization(**given) if given else None
