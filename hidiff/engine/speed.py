"""How fast a training is, and how long it still takes."""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from hidiff.cost.roofline import training_step
from hidiff.cost.timing import matmul_rate
from hidiff.data import BatchPlan
from hidiff.errors import UserError

WARM_UP = 2
"""Steps of a phase that do not count: in them libraries choose kernels and ask for memory."""

PATCH = 64
"""Side of the patch whose work is counted, in pixels."""


@dataclass
class _Mean:
    """The mean of what was added, of the first values only as long as there are no others."""

    skipped: int = 0
    total: float = 0.0
    count: int = 0
    seen: int = field(default=0, init=False)

    def add(self, value: float) -> None:
        if self.seen <= self.skipped:
            self.total, self.count = 0.0, 0
        self.seen += 1
        self.total += value
        self.count += 1

    @property
    def value(self) -> float:
        return self.total / max(self.count, 1)


class Speed:
    """Measures the steps of a training, and estimates those to come.

    A phase that has run is taken at its measured speed. The others are taken at that of the phase
    that ran last, in proportion to the pixels of their batches.

    Args:
        plan: the phases.
        total_iter: steps of the training.
        clock: seconds.
    """

    def __init__(
        self,
        plan: BatchPlan,
        total_iter: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.plan, self.total_iter = plan, total_iter
        self._clock = clock
        self._pixels = [
            plan.accumulation * phase.batch_size * phase.patch_size**2 for phase in plan.phases
        ]
        self._phases = [_Mean(skipped=WARM_UP) for _ in plan.phases]
        self._between = _Mean()
        self._phase = 0
        self._ended: float | None = None
        self._steps: list[tuple[float, float]] = []

    @contextmanager
    def step(self, step: int, waited: Callable[[], float]) -> Iterator[None]:
        """Measure the body as the 1-based step; what lies between steps counts apart.

        Args:
            waited: tells the seconds that were waited for data until now.
        """
        started, waited_before = self._clock(), waited()
        if self._ended is not None:
            self._between.add(started - self._ended)
        yield
        self._ended = self._clock()
        seconds = self._ended - started
        self._phase = self.plan.phase_index(step)
        self._phases[self._phase].add(seconds)
        self._steps.append((seconds, waited() - waited_before))

    def seconds(self, phase: int) -> float:
        """Of a step of the 0-based phase, measured or estimated."""
        if self._phases[phase].count:
            return self._phases[phase].value
        return self._phases[self._phase].value * self._pixels[phase] / self._pixels[self._phase]

    def seconds_left(self, step: int) -> float:
        """After the step, to the end of the training; validations and checkpoints as until now."""
        left, done = 0.0, 0
        for phase, part in enumerate(self.plan.phases):
            last = phase == len(self.plan.phases) - 1
            end = self.total_iter if last else min(done + part.iters, self.total_iter)
            left += max(end - max(done, step), 0) * self.seconds(phase)
            done = end
        return left + (self.total_iter - step) * self._between.value

    def since_last(self) -> dict[str, float]:
        """Figures of the steps since the last call.

        `steps_per_second`; `pixels_per_second` of this process, those of the current phase in all
        steps; and `waiting`, the share of the time that was waited for data.
        """
        seconds, waited = (sum(values) for values in zip(*self._steps, strict=True))
        rate, self._steps = len(self._steps) / seconds, []
        return {
            "steps_per_second": rate,
            "pixels_per_second": rate * self._pixels[self._phase],
            "waiting": waited / seconds,
        }


@functools.lru_cache
def matmul_seconds_a_pixel(networks: str, device: torch.device, dtype: torch.dtype) -> float | None:
    """Seconds that large matrix products take for the multiply-accumulates of a trained pixel.

    Args:
        networks: the sections of the model as JSON.
        device, dtype: of the products.

    Returns:
        None where the Transformer is not trained, so that hardly any work is left.
    """
    sections = json.loads(networks)
    try:
        macs = training_step(sections, 1, PATCH).macs / PATCH**2
    except UserError:
        return None
    return 2 * macs / matmul_rate(device, dtype, repeats=2)


def duration(seconds: float) -> str:
    """'3 d 4 h', '2 h 5 min', '3 min 20 s' or '8 s'."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    whole = round(seconds)
    for (name, size), (smaller, part) in itertools.pairwise(units):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part} {smaller}"
    return f"{whole} s"
