"""Choosing between implementations of one operator by measuring them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

ROUNDING = 0.02
"""Relative difference between implementations that still counts as rounding: bfloat16 rounds to
0.004; a wrong or missing pixel row, tap or channel makes more."""

SUM_ROUNDING = 0.1
"""The same for the gradients of weight and bias, sums over all pixels that may cancel."""


class Chooser:
    """Runs the fastest of several implementations, which it times once for each key.

    An implementation that fails while it is timed loses: too little memory, a system that cannot
    compile the kernels, or a result other than the first implementation's.

    Args:
        timer: the time that an implementation takes, in any unit.
    """

    def __init__(self, timer: Callable[[Callable[[], object]], float]) -> None:
        self._timer = timer
        self.chosen: dict[Hashable, str] = {}

    def run(
        self,
        key: Hashable,
        implementations: Mapping[str, Callable[[], T]],
        *,
        agree: Callable[[T, T], bool] = lambda reference, result: True,
        may_time: bool = True,
    ) -> T:
        """The result of the fastest implementation; of the first where none can be timed yet.

        Args:
            key: what the choice holds for.
            implementations: by name; the first is the reference.
            agree: whether two results, the reference's first, differ by rounding only.
            may_time: False where timing would do harm.
        """
        reference = next(iter(implementations.values()))
        if key not in self.chosen:
            if not may_time:
                return reference()
            (first, _), *others = implementations.items()
            times = {first: self._time(first, reference, None)}
            # Where the reference fails there is nothing to compare with.
            works = math.isfinite(times[first])
            for name, implementation in others:
                times[name] = self._time(
                    name, implementation, partial(agree, reference()) if works else None
                )
            fastest = min(times, key=times.__getitem__)
            if math.isinf(times[fastest]):
                return reference()
            self.chosen[key] = fastest
        return implementations[self.chosen[key]]()

    def _time(
        self, name: str, implementation: Callable[[], T], agree: Callable[[T], bool] | None
    ) -> float:
        try:
            if agree is not None and not agree(implementation()):
                raise ArithmeticError("its result is another")
            return self._timer(implementation)
        except Exception as error:
            warnings.warn(
                f"kernels: the {name} implementation failed and is not used: {error}", stacklevel=2
            )
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()  # for the others
            return math.inf


def cuda_milliseconds(work: Callable[[], object], *, calls: int = 5, repeats: int = 3) -> float:
    """Time of one call on the current stream, the best of `repeats` means over `calls`."""
    work()  # compiles
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return min(times)


def agree(reference: Any, result: Any) -> bool:
    """Whether two implementations differ by rounding only, TF32's and bfloat16's included.

    Where the reference is not finite there is nothing to compare; where only the result is not,
    it is another.
    """
    if isinstance(reference, Tensor):
        result, reference = (result,), (reference,)
    limits = (ROUNDING, *[SUM_ROUNDING] * 2)
    for ours, theirs, limit in zip(result, reference, limits, strict=False):
        size, error = theirs.float().norm(), (ours.float() - theirs.float()).norm()
        # NaN is not within a limit.
        if torch.isfinite(size) and not error <= limit * size:
            return False
    return True
