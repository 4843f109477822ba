"""Which crops each step of the training reads.

The order is a pure function of the seed and the step: nothing has to be stored to resume, and the
number of loader workers plays no part. A step's global batch is cut into slots of the phase's batch
size; process r of W fills slot m·W + r with its m-th micro-batch. So W processes that accumulate k
micro-batches read what k·W processes read at once.

Of a mixture every position of the order belongs to one set, in a fixed pattern that keeps the
shares exact from the first sample on, and each set goes through shuffled epochs of its own.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from torch.utils.data import Sampler

from hidiff.options import Phase
from hidiff.utils.errors import UserError
from hidiff.utils.random import StreamKey, rng


@dataclass(frozen=True)
class CropRequest:
    """One training sample to be read.

    Args:
        index: of the pair in the data set.
        patch_size: pixels of a side.
        crop_size: side of the crop that the patch is drawn from (see `draw_offset`).
        seed: seeds the draws of offset and symmetry.
    """

    index: int
    patch_size: int
    crop_size: int
    seed: StreamKey


class BatchPlan:
    """The phases of the training and the global batch of each.

    Args:
        phases: see `hidiff.options.Phase`; the last one goes on after its end.
        world_size: number of processes.
        reference_world_size: number of processes whose global batch is to be kept by accumulating
            gradients; None keeps the batch per process instead.

    Raises:
        UserError: the reference cannot be kept with this number of processes.
    """

    def __init__(
        self, phases: Sequence[Phase], world_size: int, reference_world_size: int | None = None
    ) -> None:
        reference = reference_world_size or world_size
        if reference % world_size:
            batches = ", ".join(str(phase.batch_size * reference) for phase in phases)
            raise UserError(
                f"train.reference_world_size: {reference} processes × the batch sizes give global "
                f"batches of {batches}, which {world_size} processes cannot make with equal "
                f"micro-batches; use a number of processes that divides {reference}, or set "
                "train.reference_world_size: ~ to accept another global batch"
            )
        self.phases = tuple(phases)
        self.world_size = world_size
        self.accumulation = reference // world_size
        self._ends = list(itertools.accumulate(phase.iters for phase in phases))

    @property
    def slots(self) -> int:
        """Micro-batches of a global batch."""
        return self.world_size * self.accumulation

    def phase_index(self, step: int) -> int:
        """0-based phase of the 1-based step: the first whose end is not before it."""
        return min(bisect.bisect_left(self._ends, step), len(self.phases) - 1)

    def phase(self, step: int) -> Phase:
        """The phase of the 1-based step."""
        return self.phases[self.phase_index(step)]

    def samples_before(self, step: int) -> int:
        """Samples that all processes together have read before the 1-based step."""
        samples, start = 0, 0
        last = len(self.phases) - 1
        for index, (phase, end) in enumerate(zip(self.phases, self._ends, strict=True)):
            stop = step - 1 if index == last else min(step - 1, end)
            samples += max(stop - start, 0) * phase.batch_size * self.slots
            start = end
        return samples

    def describe(self) -> list[str]:
        """One line a phase: the arithmetic of its global batch."""
        return [
            f"phase {i}: {phase.iters} steps, patch {phase.patch_size}², global batch "
            f"{phase.batch_size * self.slots} = {self.world_size} processes × {phase.batch_size} "
            f"× {self.accumulation} accumulated, {phase.iters * phase.batch_size * self.slots} "
            "samples"
            for i, phase in enumerate(self.phases, start=1)
        ]


class Shares:
    """How the samples of a training are dealt out to the sets of a mixture.

    Of the first n samples the first set has its share of n, rounded; the second its share of what
    is left, rounded; and so on. These counts never fall and never jump, so sample n + 1 belongs to
    the one set whose count rises. No history is needed.

    Args:
        weights: of the sets, above 0; only their ratios count.
        sizes: pairs in each set.
    """

    def __init__(self, weights: Sequence[float], sizes: Sequence[int]) -> None:
        # As written: 0.1 is a tenth. Floating point could not keep the counts' promise.
        exact = [Fraction(str(weight)) for weight in weights]
        self._of_the_rest = [share / sum(exact[i:]) for i, share in enumerate(exact)]
        self.sizes = tuple(sizes)
        self.starts = [0, *itertools.accumulate(self.sizes)]

    def counts(self, samples: int) -> list[int]:
        """How many of the first `samples` are of each set."""
        counts = []
        for share in self._of_the_rest:
            numerator, denominator = share.as_integer_ratio()
            counts.append((2 * samples * numerator + denominator) // (2 * denominator))
            samples -= counts[-1]
        return counts

    def locate(self, position: int) -> tuple[int, int]:
        """The set that the 0-based sample belongs to, and how many of the set come before it."""
        before, after = self.counts(position), self.counts(position + 1)
        index = next(i for i, count in enumerate(before) if after[i] > count)
        return index, before[index]

    def set_of(self, pair: int) -> int:
        """The set that a pair, by its number among all, belongs to."""
        return bisect.bisect_right(self.starts, pair) - 1

    def neighbour(self, pair: int) -> int:
        """The next pair of the same set; after the last the first."""
        index = self.set_of(pair)
        return self.starts[index] + (pair + 1 - self.starts[index]) % self.sizes[index]


class PhaseBatchSampler(Sampler[list[CropRequest]]):
    """Yields the micro-batches of one process, `plan.accumulation` for each step.

    Args:
        size: pairs in the data set.
        shares: of the sets that follow one another in it; None where it is one set.
        plan: phases and processes.
        rank: of this process.
        seed: of the order, the crops and the symmetries.
        crop_size: see `CropRequest`.
        total_iter: the last step.
        first_step: the first step, above 1 when resuming.
        enlarge_ratio: an epoch of a set shows each of its pairs this many times.
    """

    def __init__(
        self,
        *,
        size: int,
        shares: Shares | None = None,
        plan: BatchPlan,
        rank: int,
        seed: int,
        crop_size: int,
        total_iter: int,
        first_step: int = 1,
        enlarge_ratio: int = 1,
    ) -> None:
        self.shares = shares or Shares([1], [size])
        self.enlarge_ratio = enlarge_ratio
        self.plan = plan
        self.rank = rank
        self.seed = seed
        self.crop_size = crop_size
        self.steps = range(first_step, total_iter + 1)
        self._permutations: dict[int, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.steps) * self.plan.accumulation

    def __iter__(self) -> Iterator[list[CropRequest]]:
        for step in self.steps:
            phase = self.plan.phase(step)
            first = self.plan.samples_before(step)
            for micro in range(self.plan.accumulation):
                slot = micro * self.plan.world_size + self.rank
                start = first + slot * phase.batch_size
                yield [
                    CropRequest(
                        self._index(position),
                        phase.patch_size,
                        self.crop_size,
                        (self.seed, "patch", position),
                    )
                    for position in range(start, start + phase.batch_size)
                ]

    def _index(self, position: int) -> int:
        """The pair at a place of the endless order; for each set that is shuffled epochs."""
        part, number = self.shares.locate(position)
        size = self.shares.sizes[part]
        epoch, offset = divmod(number, size * self.enlarge_ratio)
        if part not in self._permutations or self._permutations[part][0] != epoch:
            # The first set has the order that it has alone.
            order = rng(self.seed, "order", part, epoch)
            self._permutations[part] = (epoch, order.permutation(size * self.enlarge_ratio))
        return self.shares.starts[part] + int(self._permutations[part][1][offset]) % size
