"""The data sets of a training, and the batches of its steps."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hidiff.data import (
    BatchPlan,
    PhaseBatchSampler,
    build_dataset,
    build_training_set,
    training_batches,
)
from hidiff.data.transfer import DeviceBatches
from hidiff.data.warnings import pair_warnings, shared_pairs
from hidiff.options import DatasetOptions, Options
from hidiff.utils.distributed import Processes


class TrainingData:
    """What a run trains on, and what it is validated on.

    Args:
        options: the option file.
        plan: its phases.
        processes: this process and the others, which must see the same pairs.
        dry: leave no cache of decoded images behind.

    Attributes:
        training: the training set.
        validation: the validation sets by name.
        notices: what is strange about them.

    Raises:
        UserError: a data set cannot be used, or the processes see different ones.
    """

    def __init__(
        self, options: Options, plan: BatchPlan, processes: Processes, *, dry: bool
    ) -> None:
        self.options, self.plan, self.processes = options, plan, processes
        prepared = _uncached if dry else lambda section: section
        self.training = build_training_set(prepared(options.for_training()[1]))
        self.validation = {
            section.name: build_dataset(prepared(section))
            for key, section in options.datasets.items()
            if key.startswith("val")
        }
        self.notices: list[str] = []
        for name, dataset in (("training set", self.training), *self.validation.items()):
            processes.require_same(f"images ({name})", dataset.fingerprint())
            self.notices += [*dataset.notices, *pair_warnings(dataset.pairs, name)]
        validated = {name: dataset.pairs for name, dataset in self.validation.items()}
        self.notices += shared_pairs(self.training.pairs, validated)

    def batches(
        self, first_step: int, dtype: torch.dtype, while_waiting: Callable[[], None]
    ) -> DeviceBatches:
        """The batches of the steps from this one on.

        Args:
            first_step: 1-based.
            dtype: of the pictures on the device.
            while_waiting: called now and then while a batch is waited for; what it raises ends the
                wait.
        """
        train, section = self.options.for_training()
        device = self.processes.device
        assert section.gt_size is not None  # the phases have asked for it
        sampler = PhaseBatchSampler(
            size=len(self.training),
            shares=self.training.shares,
            plan=self.plan,
            rank=self.processes.rank,
            seed=self.options.manual_seed,
            crop_size=section.gt_size,
            total_iter=train.total_iter,
            first_step=first_step,
            enlarge_ratio=section.dataset_enlarge_ratio,
        )
        batches = training_batches(
            self.training,
            sampler,
            num_workers=section.num_worker_per_gpu,
            pin_memory=device.type == "cuda" and section.pin_memory is not False,
            prefetch=section.num_prefetch_queue,
            skip_bad=train.on_bad_image == "skip",
            timeout=section.timeout,
            while_waiting=while_waiting,
        )
        return DeviceBatches(batches, device, dtype)


def _uncached(section: DatasetOptions) -> DatasetOptions:
    """The section without its caches of decoded images."""
    source = {key: value for key, value in section.source.items() if key != "cache"}
    mixture = tuple(_uncached(part) for part in section.mixture)
    return section.model_copy(update={"source": source, "mixture": mixture})
