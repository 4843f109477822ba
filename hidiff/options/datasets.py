"""The sections of `datasets`: what the loader needs, and the phases of progressive training."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from hidiff.options.fields import FREE, FileName, Section, option
from hidiff.registry import StrictModel, option_error

SOURCE_RESUME_SAFE = re.compile(r"dataroot_\w+|io_backend.*|meta_info_file|cache|filename_tmpl")
"""Options of a data set's class that say where the images lie; that they are the same images is the
user's word."""


@dataclass(frozen=True)
class Phase:
    """One phase of progressive training.

    `patch_size` is in pixels, `batch_size` per process, `iters` the phase's length in steps.
    """

    patch_size: int
    batch_size: int
    iters: int


class DatasetOptions(StrictModel):
    """A `datasets.*` section: what the loader needs; all else goes to the class that `type` names.

    A mixture has sections of its own within `datasets.train`, each with `type`; they are the
    `mixture` here, and `source` is empty.
    """

    name: FileName = option("What results of this data set are called.", resume_safe=True)
    source: Section = option("What the data set's class is built from.", {})
    where: str = option("Its YAML path.", "", **FREE)
    weight: NonNegativeFloat = option("Share of a mixture's samples, in proportion.", 1.0)
    mixture: tuple[DatasetOptions, ...] = option("The sets that are mixed.", ())
    num_worker_per_gpu: NonNegativeInt = option(
        "Loader processes of each training process.", 4, **FREE
    )
    timeout: PositiveFloat = option("Seconds that a training waits for a batch.", 600.0, **FREE)
    num_prefetch_queue: PositiveInt = option(
        "Batches that each loader process keeps ready.", 2, **FREE
    )
    pin_memory: bool | None = option(
        "Copy to a GPU without waiting; unset: where there is one.", None, **FREE
    )
    batch_size_per_gpu: PositiveInt | None = option("Samples a step and process.", None)
    dataset_enlarge_ratio: PositiveInt = option("Passes that count as one epoch.", 1)
    mini_batch_sizes: tuple[PositiveInt, ...] | None = option("Batch size of each phase.", None)
    iters: tuple[PositiveInt, ...] | None = option("Steps of each phase.", None)
    gt_size: PositiveInt | None = option("Side of the crops, in pixels.", None)
    gt_sizes: tuple[PositiveInt, ...] | None = option("Side of each phase's patches.", None)

    @property
    def label(self) -> str:
        """Its place in the option file, with its name where it has one of its own."""
        default = self.where.rpartition(".")[2]
        return self.where if self.name == default else f"{self.where} ({self.name})"

    def phases(self, total_iter: int) -> tuple[Phase, ...]:
        """The phases of progressive training up to `total_iter`; one when the file lists none.

        As in the release the last phase goes on to the end of the training, and what `iters`
        names beyond it is cut off.

        Raises:
            OptionError: the lists do not fit each other, `gt_size` or `batch_size_per_gpu`.
        """
        if self.gt_size is None or self.batch_size_per_gpu is None:
            raise option_error(self.where, "training needs gt_size and batch_size_per_gpu")
        sizes, batches, iters = self.gt_sizes, self.mini_batch_sizes, self.iters
        if sizes is None and batches is None and iters is None:
            return (Phase(self.gt_size, self.batch_size_per_gpu, total_iter),)
        if sizes is None or batches is None or iters is None:
            lists = {"gt_sizes": sizes, "iters": iters, "mini_batch_sizes": batches}
            absent = ", ".join(key for key, values in lists.items() if values is None)
            raise option_error(self.where, f"progressive training also needs {absent}")
        if not len(sizes) == len(batches) == len(iters):
            raise option_error(
                self.where,
                "one entry a phase in each list, but they have mini_batch_sizes "
                f"{len(batches)}, iters {len(iters)}, gt_sizes {len(sizes)}",
            )
        if max(sizes) > self.gt_size:
            raise option_error(
                f"{self.where}.gt_size",
                f"{self.gt_size} is less than the largest of gt_sizes, {max(sizes)}: patches are "
                "cut from crops of that size",
            )
        if max(batches) > self.batch_size_per_gpu:
            raise option_error(
                f"{self.where}.mini_batch_sizes",
                f"{max(batches)} exceeds batch_size_per_gpu {self.batch_size_per_gpu}",
            )
        starts = [0, *itertools.accumulate(iters[:-1])]
        reached = [index for index, start in enumerate(starts) if start < total_iter]
        ends = [*(starts[index] for index in reached[1:]), total_iter]
        return tuple(
            Phase(sizes[index], batches[index], end - starts[index])
            for index, end in zip(reached, ends, strict=True)
        )

    def phase_notices(self, total_iter: int) -> list[str]:
        """What becomes of `iters` that do not add up to `total_iter`."""
        named = sum(self.iters or [total_iter])
        if named == total_iter:
            return []
        phases = self.phases(total_iter)
        all_reached = len(phases) == len(self.iters or phases)
        cut = "" if all_reached else ", and those after it are never reached"
        return [
            f"{self.where}.iters: they add up to {named} steps and train.total_iter is "
            f"{total_iter}, so phase {len(phases)} has {phases[-1].iters} steps{cut}"
        ]
