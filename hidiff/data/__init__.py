"""Data sets, crops and their order. Importing this package registers the data sets."""

from __future__ import annotations

from hidiff.data.dataset import PairedImageIRDataset, PairSet
from hidiff.data.loader import training_batches
from hidiff.data.mixture import Mixture
from hidiff.data.pairs import Pair, Pairs, find_pairs
from hidiff.data.sampler import BatchPlan, CropRequest, PhaseBatchSampler
from hidiff.data.synthetic_dataset import SyntheticBlurDataset
from hidiff.options import DatasetOptions
from hidiff.registry import DATASETS
from hidiff.utils.errors import UserError

__all__ = [
    "BatchPlan",
    "CropRequest",
    "Mixture",
    "Pair",
    "PairSet",
    "PairedImageIRDataset",
    "Pairs",
    "PhaseBatchSampler",
    "SyntheticBlurDataset",
    "build_dataset",
    "build_training_set",
    "find_pairs",
    "training_batches",
]


def build_dataset(options: DatasetOptions) -> PairSet:
    """The data set of a `datasets.*` section.

    Raises:
        UserError: an unknown option, or data that is missing or unpaired.
    """
    return DATASETS.build(options.source, options.where, where=options.where)


def build_training_set(options: DatasetOptions) -> Mixture:
    """The data sets of `datasets.train` whose weight is not 0.

    Raises:
        UserError: an unknown option, or data that is missing, unpaired or without sharp images.
    """
    sections = [section for section in options.mixture if section.weight] or [options]
    sets = []
    for section in sections:
        sets.append(build_dataset(section))
        if not sets[-1].has_gt:
            raise UserError(f"{section.where}.dataroot_gt: training needs the sharp images")
    return Mixture(sections, sets)
