"""Forward and backward of a training step: its batches, cut into micro-batches that fit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hidiff.data import BatchPlan
from hidiff.data.transfer import DeviceBatches
from hidiff.models import DeblurModel
from hidiff.options import MicroBatch, TrainOptions
from hidiff.utils.distributed import Processes, no_sync
from hidiff.utils.errors import UserError, is_out_of_memory
from hidiff.utils.random import rng

LOG = logging.getLogger("hidiff")


class MicroBatches:
    """How many images are computed at once in each phase (`train.micro_batch`).

    A sample's crop, noise and loss do not depend on the others of its batch, so the sum of the
    micro-batches' gradients is that of the batch, to rounding.

    Args:
        wanted: `train.micro_batch`.
        plan: the phases.

    Attributes:
        halved: images at once by 0-based phase, where memory has run out; a resumed run keeps to
            it.

    Raises:
        UserError: more images than any phase has.
    """

    def __init__(self, wanted: MicroBatch, plan: BatchPlan) -> None:
        self.wanted, self.plan = wanted, plan
        self.halved: dict[int, int] = {}
        largest = max(phase.batch_size for phase in plan.phases)
        if isinstance(wanted, int) and wanted > largest:
            raise UserError(
                f"train.micro_batch: {wanted} is more than the {largest} images of the largest "
                "batch; choose a smaller number, or leave it out"
            )

    @property
    def enabled(self) -> bool:
        """Whether a batch may be cut."""
        return self.wanted is not None

    def size(self, phase: int) -> int:
        """Images at once in a 0-based phase."""
        whole = self.plan.phases[phase].batch_size
        if self.wanted == "auto":
            return self.halved.get(phase, whole)
        return min(self.wanted or whole, whole)

    def parts(self, phase: int) -> Iterator[slice]:
        """The phase's batch cut into parts of `size` images, the last one of what is left."""
        whole, size = self.plan.phases[phase].batch_size, self.size(phase)
        for start in range(0, whole, size):
            yield slice(start, min(start + size, whole))

    def halve(self, phase: int) -> bool:
        """Take half as many images from now on; False where that is not wanted or possible."""
        size = self.size(phase)
        if self.wanted != "auto" or size == 1:
            return False
        self.halved[phase] = (size + 1) // 2
        return True

    def state_dict(self) -> dict[int, int]:
        """What a resumed run keeps to."""
        return dict(self.halved)

    def load_state_dict(self, state: dict[int, int]) -> None:
        """Take over what `state_dict` returned."""
        self.halved = dict(state)


class Gradients:
    """Adds up the gradients of a step.

    Args:
        model: what is trained.
        wrapped: the model, or the data-parallel wrapper around it.
        plan: how many batches a step has in this process.
        micro_batches: how many images of a batch are computed at once.
        processes: this process and the others.
        seed: of what the model draws.
    """

    def __init__(
        self,
        model: DeblurModel,
        wrapped: nn.Module,
        plan: BatchPlan,
        micro_batches: MicroBatches,
        processes: Processes,
        seed: int,
    ) -> None:
        self.model, self.wrapped, self.plan = model, wrapped, plan
        self.micro_batches, self.processes, self.seed = micro_batches, processes, seed
        self._tried: set[int] = set()

    def accumulate(self, step: int, source: DeviceBatches) -> tuple[dict[str, Tensor], list[str]]:
        """Forward and backward of the step's batches.

        Where memory runs out and `train.micro_batch` is auto, they are done again with half as many
        images at once.

        Args:
            step: 1-based.
            source: of the batches.

        Returns:
            This process's mean losses (scalars on the device) and the names of its images.
        """
        phase = self.plan.phase_index(step)
        if self.processes.world_size > 1 and self.micro_batches.wanted == "auto":
            self._fit_together(phase)
        batches: list[dict[str, Any]] = []
        while True:
            try:
                return self._backward(step, phase, batches, source)
            except Exception as error:
                # Others would wait for the gradients of this process.
                alone = self.processes.world_size == 1
                if not (alone and is_out_of_memory(error) and self.micro_batches.halve(phase)):
                    raise
            # Here nothing holds the graph of the failed step any more.
            self._clear()
            LOG.warning(
                "step %d: the memory is used up; the step is done again, from now on with %d "
                "images at once in phase %d",
                *(step, self.micro_batches.size(phase), phase + 1),
            )

    def _backward(
        self, step: int, phase: int, batches: list[dict[str, Any]], source: DeviceBatches
    ) -> tuple[dict[str, Tensor], list[str]]:
        """See `accumulate`; batches that are not yet in the list are read, and put there."""
        total: dict[str, Tensor] = {}
        for slot in range(self.plan.accumulation):
            if slot == len(batches):
                batches.append(next(source))
                for notice in batches[slot]["notices"]:
                    LOG.warning("step %d: %s", step, notice)
            lq, gt = batches[slot]["lq"], batches[slot]["gt"]
            draws = self.model.draw(len(lq), self._generator(step, slot))
            for part in self.micro_batches.parts(phase):
                last = slot == self.plan.accumulation - 1 and part.stop == len(lq)
                with no_sync(self.wrapped, skip=not last):
                    own = {name: values[part] for name, values in draws.items()}
                    losses = self.wrapped(lq[part], gt[part], **own)
                    share = len(lq[part]) / len(lq)
                    for name in losses:
                        losses[name] = losses[name] * (1 if self.model.is_sum(name) else share)
                    (sum(losses.values()) / self.plan.accumulation).backward()
                for name, loss in losses.items():
                    mean = loss.detach() / self.plan.accumulation
                    total[name] = total[name] + mean if name in total else mean
            source.prefetch()
        return total, [name for batch in batches for name in batch["name"]]

    def _fit_together(self, phase: int) -> None:
        """Find a number of images that fits on every process, once for each phase.

        In a real step a process that fails would leave the others waiting for its gradients, so
        random images are tried, without any exchange of gradients.
        """
        if phase in self._tried:
            return
        self._tried.add(phase)
        while True:
            fits = self._fits(phase)
            self._clear()
            if not self.processes.any(not fits):
                return
            if not self.micro_batches.halve(phase):
                raise UserError(
                    f"not even one patch of {self.plan.phases[phase].patch_size}² fits into the "
                    "memory of every process; set train.activation_checkpointing: [1, 2, 3, 4], or "
                    "lower datasets.train.gt_sizes"
                )
            LOG.warning(
                "phase %d: the memory of a process is used up; %d images at once are taken",
                *(phase + 1, self.micro_batches.size(phase)),
            )

    def _fits(self, phase: int) -> bool:
        size, count = self.plan.phases[phase].patch_size, self.micro_batches.size(phase)
        dtype = next(self.model.parameters()).dtype
        try:
            lq, gt = torch.rand(2, count, 3, size, size, dtype=dtype, device=self.processes.device)
            draws = self.model.draw(count, torch.Generator().manual_seed(0))
            sum(self.model(lq, gt, **draws).values()).backward()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _clear(self) -> None:
        self.model.zero_grad(set_to_none=True)
        if self.processes.device.type == "cuda":
            torch.cuda.empty_cache()

    def _generator(self, step: int, own_slot: int) -> torch.Generator:
        """Random numbers that follow from seed, step and slot, so that resuming repeats them."""
        slot = own_slot * self.processes.world_size + self.processes.rank
        draws = rng(self.seed, "model", step, slot)
        return torch.Generator().manual_seed(int(draws.integers(2**63)))


def memory_advice(
    options: TrainOptions, plan: BatchPlan, micro_batches: MicroBatches, step: int
) -> tuple[str, str]:
    """What was computed when memory ran out in a step, and what needs less and is not set yet."""
    index = plan.phase_index(step)
    ways = ["lower datasets.train.gt_sizes"]
    if len(options.activation_checkpointing) < 4:
        ways.insert(0, "set train.activation_checkpointing: [1, 2, 3, 4]")
    if options.micro_batch is None:
        ways.insert(0, "set train.micro_batch: auto")
    elif options.micro_batch not in (1, "auto"):
        ways.insert(0, "set train.micro_batch: 1")
    what = (
        f"the memory is used up in phase {index + 1}, after step {step - 1}, by "
        f"{micro_batches.size(index)} patches of {plan.phases[index].patch_size}² at once"
    )
    return what, ", or ".join(ways)
