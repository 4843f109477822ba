"""How fast a training is, and how long it still takes."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hidiff.benchmark.timing import matmul_rate
from hidiff.data import BatchPlan
from hidiff.models import DeblurModel

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

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The body, between two steps, is done once: it tells nothing about the time to come."""
        started = self._clock()
        yield
        if self._ended is not None:
            self._ended += self._clock() - started

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


def training_macs(model: DeblurModel, lq: Tensor, gt: Tensor) -> int:
    """Multiply-accumulates of a training step's convolutions and linear layers.

    A layer's backward pass is two products of the forward pass's size, for input and weights.
    Products that are no layer's (attention's, HIM's) are left out; `hidiff.report.macs` counts
    all, by a part of torch that takes seconds to import.

    Args:
        lq, gt: the step's images, see `DeblurModel.forward`.
    """
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight = layer.get_parameter("weight")
        # Each output of a convolution takes one filter, each of a linear layer one row.
        total += (3 if weight.requires_grad else 1) * output.numel() * weight[0].numel()

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        # Compiled blocks would be compiled again, with the hooks in them.
        with torch.compiler.set_stance("force_eager"):
            model(lq, gt, **model.draw(len(lq), torch.Generator().manual_seed(0)))
    finally:
        for hook in hooks:
            hook.remove()
    return total


_matmul_rate = functools.lru_cache(functools.partial(matmul_rate, repeats=2))


def matmul_seconds_a_pixel(model: DeblurModel, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds that large matrix products take for the multiply-accumulates of a trained pixel.

    Args:
        model: in training mode.
        device, dtype: of the products.
    """
    images = torch.zeros(2, 1, 3, PATCH, PATCH, device=device)
    macs = training_macs(model, *images.to(next(model.parameters()).dtype))
    return 2 * macs / PATCH**2 / _matmul_rate(device, "bf16" if dtype == torch.bfloat16 else "fp32")


def duration(seconds: float) -> str:
    """'3 d 4 h', '2 h 5 min', '3 min 20 s' or '8 s'."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    whole = round(seconds)
    for (name, size), (smaller, part) in itertools.pairwise(units):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part} {smaller}"
    return f"{whole} s"
