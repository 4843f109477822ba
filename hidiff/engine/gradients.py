"""Forward and backward of a training step: the batches of its slots, cut into micro-batches."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from hidiff.data import BatchPlan
from hidiff.data.transfer import DeviceBatches
from hidiff.engine.micro_batch import MicroBatches
from hidiff.models import DeblurModel
from hidiff.utils.distributed import Processes, no_sync
from hidiff.utils.errors import is_out_of_memory
from hidiff.utils.random import rng

LOG = logging.getLogger("hidiff")


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

    def accumulate(self, step: int, source: DeviceBatches) -> tuple[dict[str, Tensor], list[str]]:
        """Forward and backward of the step's batches; their mean losses and images.

        Where memory runs out they are done again with half as many images at once.

        Args:
            step: 1-based.
            source: of the batches.
        """
        phase = self.plan.phase_index(step)
        batches: list[dict[str, Any]] = []
        while True:
            try:
                return self._backward(step, phase, batches, source)
            except Exception as error:
                # Others would wait for the gradients of this process.
                alone = self.processes.world_size == 1 and self.micro_batches.cuts
                if not (alone and is_out_of_memory(error) and self.micro_batches.halve(phase)):
                    raise
            # Here nothing holds the graph of the failed step any more.
            self.model.zero_grad(set_to_none=True)
            if self.processes.device.type == "cuda":
                torch.cuda.empty_cache()
            LOG.warning(
                "step %d: the memory is used up; it is done again, from now on in phase %d with "
                "%d images at once",
                *(step, phase + 1, self.micro_batches.size(phase)),
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

    def _generator(self, step: int, own_slot: int) -> torch.Generator:
        """Random numbers that follow from seed, step and slot, so that resuming repeats them."""
        slot = own_slot * self.processes.world_size + self.processes.rank
        draws = rng(self.seed, "model", step, slot)
        return torch.Generator().manual_seed(int(draws.integers(2**63)))
