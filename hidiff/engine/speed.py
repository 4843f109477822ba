"""How fast a training is, and how long it still takes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from hidiff.data import BatchPlan

WARM_UP = 2
"""Steps of a phase that do not count: in them libraries choose kernels and ask for memory."""


class Speed:
    """Measures the steps of a training, and estimates those to come.

    A phase that has run is taken at its measured speed. The others are taken at that of the phase
    that ran last, in proportion to the pixels of their batches. Validations and checkpoints count
    as part of the steps after them.

    Args:
        plan: the phases.
        total_iter: steps of the training.
        clock: seconds.
    """

    def __init__(
        self, plan: BatchPlan, total_iter: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.plan, self.total_iter, self._clock = plan, total_iter, clock
        self._pixels = [phase.batch_size * phase.patch_size**2 for phase in plan.phases]
        self._durations: list[list[float]] = [[] for _ in plan.phases]
        self._phase = 0
        self._last = clock()
        self._since: tuple[float, float, int] = (self._last, 0.0, 0)

    def step(self, step: int) -> None:
        """Count a step that has ended."""
        now = self._clock()
        self._phase = self.plan.phase_index(step)
        self._durations[self._phase].append(now - self._last)
        self._last = now
        started, waited, count = self._since
        self._since = (started, waited, count + 1)

    def seconds(self, phase: int) -> float:
        """Of a step of the 0-based phase, measured or estimated."""
        durations = self._durations[phase]
        if durations:
            counted = durations[WARM_UP:] or durations
            return sum(counted) / len(counted)
        if not self._durations[self._phase]:
            return 0.0
        return self.seconds(self._phase) * self._pixels[phase] / self._pixels[self._phase]

    def seconds_left(self, step: int) -> float:
        """After the step, to the end of the training."""
        left, done = 0.0, 0
        for phase, part in enumerate(self.plan.phases):
            is_last = phase == len(self.plan.phases) - 1
            end = self.total_iter if is_last else min(done + part.iters, self.total_iter)
            left += max(end - max(done, step), 0) * self.seconds(phase)
            done = end
        return left

    def since_last(self, waited: float) -> dict[str, float]:
        """Figures of the steps since the last call.

        Args:
            waited: seconds that were spent waiting for data until now.

        Returns:
            `steps_per_second`, and `waiting`, the share of the time spent waiting for data.
        """
        started, waited_before, count = self._since
        seconds = max(self._last - started, 1e-9)
        self._since = (self._last, waited, 0)
        return {"steps_per_second": count / seconds, "waiting": (waited - waited_before) / seconds}


def duration(seconds: float) -> str:
    """'3 d 4 h', '2 h 5 min', '3 min 20 s' or '8 s'."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    whole = round(seconds)
    for (name, size), (smaller, part) in itertools.pairwise(units):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part} {smaller}"
    return f"{whole} s"
