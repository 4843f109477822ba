"""A phase's batch cut into micro-batches that fit into the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from hidiff.benchmark.timing import measure_with_memory
from hidiff.data import BatchPlan
from hidiff.models import DeblurModel
from hidiff.models.memory import free_memory
from hidiff.options import MicroBatch, Phase
from hidiff.utils.distributed import Processes
from hidiff.utils.errors import UserError, is_out_of_memory

SHARE = 0.85
"""Of the memory that is free, what micro-batches are chosen for; allocators leave gaps."""

OPTIMIZER_COPIES = 2
"""Tensors of a parameter's size that Adam keeps from its first step on."""


class MicroBatches:
    """How many images are computed at once in each phase (`train.micro_batch`).

    A sample's crop, noise and loss do not depend on the others of its batch, so the sum of the
    micro-batches' gradients is that of the batch, to rounding.

    Args:
        wanted: `train.micro_batch`.
        plan: the phases.
        chosen: what was chosen before by 0-based phase, which a resumed run keeps to; what is
            chosen here is added to it.

    Raises:
        UserError: more images than any phase has.
    """

    def __init__(self, wanted: MicroBatch, plan: BatchPlan, chosen: dict[int, int]) -> None:
        self.wanted, self.plan, self.chosen = wanted, plan, chosen
        largest = max(phase.batch_size for phase in plan.phases)
        if isinstance(wanted, int) and wanted > largest:
            raise UserError(
                f"train.micro_batch: {wanted} is more than the {largest} images of the largest "
                "batch (datasets.train.batch_size_per_gpu, mini_batch_sizes); lower it, use auto, "
                "or leave it out to compute batches as a whole"
            )

    @property
    def cuts(self) -> bool:
        """Whether any batch may be cut."""
        return self.wanted is not None

    def size(self, phase: int) -> int | None:
        """Images at once in the 0-based phase; None where it is still to be measured."""
        whole = self.plan.phases[phase].batch_size
        if self.wanted is None:
            return whole
        if self.wanted == "auto":
            return self.chosen.get(phase)
        return min(self.wanted, whole, self.chosen.get(phase, whole))

    def parts(self, phase: int) -> Iterator[slice]:
        """The phase's batch cut into parts of `size` images, the last one of what is left."""
        whole, size = self.plan.phases[phase].batch_size, self.size(phase)
        assert size is not None, "measure first"
        for start in range(0, whole, size):
            yield slice(start, min(start + size, whole))

    def measure(self, phase: int, model: DeblurModel, processes: Processes) -> str:
        """Choose the largest size that fits for a phase; what is said about it.

        All processes take the smallest that one of them finds.
        """
        part = self.plan.phases[phase]
        found = processes.gather(largest_that_fits(model, part, processes))
        self.chosen[phase] = min(found)
        return (
            f"train.micro_batch: auto takes {self.chosen[phase]} of the {part.batch_size} images "
            f"of {part.patch_size}² at once in phase {phase + 1}"
        )

    def halve(self, phase: int) -> bool:
        """Take half as many images from now on; False where there is only one."""
        if (size := self.size(phase)) is None or size == 1:
            return False
        self.chosen[phase] = (size + 1) // 2
        return True


def training_step(
    model: DeblurModel, count: int, patch_size: int, device: torch.device
) -> Callable[[], None]:
    """Forward and backward of random pixels, which leaves no gradient; nothing is learned.

    Args:
        model: in training mode, on the device.
        count: images.
        patch_size: of their sides.
    """
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(0)
    lq, gt = torch.rand(2, count, 3, patch_size, patch_size, generator=generator).to(device, dtype)
    draws = model.draw(count, generator)

    def step() -> None:
        try:
            sum(model(lq, gt, **draws).values()).backward()
        finally:
            model.zero_grad(set_to_none=True)

    return step


def _parameter_bytes(model: nn.Module) -> int:
    return sum(p.nbytes for p in model.parameters() if p.requires_grad)


def largest_that_fits(model: DeblurModel, phase: Phase, processes: Processes) -> int:
    """Measured with one and two images, and on GPUs tried with what follows from that.

    Raises:
        RuntimeError: (torch's, out of memory) not even one image fits.
    """
    device, size = processes.device, phase.patch_size
    step = training_step(model, 1, size, device)
    step()  # libraries ask for memory of their own when they are first used
    _, one = measure_with_memory(step, device)
    if one is None or phase.batch_size == 1:
        return phase.batch_size
    free = SHARE * free_memory(device) - OPTIMIZER_COPIES * _parameter_bytes(model)
    if processes.world_size > 1:
        free -= _parameter_bytes(model)  # the buckets in which gradients are exchanged
    if free < 2 * one:
        return 1
    _, two = measure_with_memory(training_step(model, 2, size, device), device)
    assert two is not None  # as `one` is not
    each = max(two - one, 1)
    # Beside what each image needs there are the gradients, once.
    count = max(1, min(phase.batch_size, int((free - (one - each)) / each)))
    while device.type == "cuda" and count > 1 and not _fits(model, count, size, device):
        count //= 2
    return count


def _fits(model: DeblurModel, count: int, patch_size: int, device: torch.device) -> bool:
    try:
        training_step(model, count, patch_size, device)()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        torch.cuda.empty_cache()
    return True
