"""Learning rates as pure functions of the step.

Step i (1-based) uses the scheduler's state after i − 1 steps, as the release does.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hidiff.errors import UserError
from hidiff.registry import Registry

SCHEDULERS = Registry("learning rate schedule")

LRSchedule = Callable[[int], float]


@SCHEDULERS.register("CosineAnnealingRestartCyclicLR")
def cosine_restart_cyclic(
    *,
    base_lr: float,
    total_iter: int,
    periods: Sequence[int],
    restart_weights: Sequence[float] = (1,),
    eta_mins: Sequence[float] = (0,),
) -> LRSchedule:
    """Cosine cycles, each with its own length, weight and final value (Restormer).

    Raises:
        UserError: the lists' lengths differ, or the periods end before the training does.
    """
    where = "train.scheduler"
    if not len(periods) == len(restart_weights) == len(eta_mins):
        raise UserError(
            f"{where}: periods, restart_weights and eta_mins need one entry per cycle; they have "
            f"{len(periods)}, {len(restart_weights)} and {len(eta_mins)}"
        )
    if not periods or min(periods) < 1:
        raise UserError(f"{where}.periods: {list(periods)}; every cycle needs at least one step")
    ends = list(itertools.accumulate(periods))
    if ends[-1] < total_iter - 1:
        raise UserError(
            f"{where}.periods: they cover {ends[-1]} steps and train.total_iter is {total_iter}; "
            "lengthen the last period"
        )

    def lr(step: int) -> float:
        done = step - 1
        cycle = bisect.bisect_left(ends, done)
        start = ends[cycle - 1] if cycle else 0
        amplitude = restart_weights[cycle] * 0.5 * (base_lr - eta_mins[cycle])
        phase = math.pi * ((done - start) / periods[cycle])
        return eta_mins[cycle] + amplitude * (1 + math.cos(phase))

    return lr


@SCHEDULERS.register("CosineAnnealingRestartLR")
def cosine_restart(
    *,
    base_lr: float,
    total_iter: int,
    periods: Sequence[int],
    restart_weights: Sequence[float] = (1,),
    eta_min: float = 0.0,
) -> LRSchedule:
    """Cosine cycles that all end at `eta_min` (BasicSR); see `cosine_restart_cyclic`."""
    return cosine_restart_cyclic(
        base_lr=base_lr,
        total_iter=total_iter,
        periods=periods,
        restart_weights=restart_weights,
        eta_mins=[eta_min] * len(periods),
    )


@SCHEDULERS.register("CosineAnnealingLR")
def cosine_annealing(*, base_lr: float, total_iter: int, eta_min: float = 0.0) -> LRSchedule:
    """One cosine from the base learning rate to `eta_min` over the training.

    The paper's text names it, with 1e-6 at the end: `eta_min: 1e-6`.
    """
    return cosine_restart_cyclic(
        base_lr=base_lr,
        total_iter=total_iter,
        periods=[total_iter],
        eta_mins=[eta_min],
    )


@SCHEDULERS.register("MultiStepRestartLR")
@SCHEDULERS.register("MultiStepLR")
def multi_step(
    *,
    base_lr: float,
    total_iter: int,
    milestones: Sequence[int],
    gamma: float = 0.1,
    restarts: Sequence[int] = (0,),
    restart_weights: Sequence[float] = (1,),
) -> LRSchedule:
    """`gamma` times smaller after each milestone; milestones and restarts are steps done (BasicSR).

    At a restart the rate becomes the base rate times the restart's weight.

    Raises:
        UserError: a milestone lies beyond the training, or restarts and weights differ in number.
    """
    if milestones and max(milestones) >= total_iter:
        raise UserError(
            f"train.scheduler.milestones: {max(milestones)} is never reached in {total_iter} steps"
        )
    if len(restarts) != len(restart_weights):
        raise UserError(
            f"train.scheduler.restart_weights: {len(restart_weights)} weights for {len(restarts)} "
            "restarts; give one for each"
        )
    weights = dict(zip(restarts, restart_weights, strict=True))

    def lr(step: int) -> float:
        done = step - 1
        restart = max((r for r in weights if r <= done), default=-1)
        passed = sum(restart < milestone <= done for milestone in milestones)
        return base_lr * weights.get(restart, 1) * gamma**passed

    return lr


def build_lr_schedule(
    section: Mapping[str, Any], *, base_lr: float, total_iter: int, warmup_iter: int = -1
) -> LRSchedule:
    """The learning rate of every step.

    Args:
        section: `train.scheduler`.
        base_lr: the optimiser's learning rate.
        total_iter: steps of the whole training.
        warmup_iter: steps over which the rate rises linearly from 0; none when not positive.

    Raises:
        UserError: the section is wrong.
    """
    schedule = SCHEDULERS.build(section, "train.scheduler", base_lr=base_lr, total_iter=total_iter)
    if warmup_iter <= 0:
        return schedule
    return lambda step: base_lr * step / warmup_iter if step < warmup_iter else schedule(step)
