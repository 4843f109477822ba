"""Optimisers, learning rates as pure functions of the step, gradient clipping, weight average."""

from __future__ import annotations

import bisect
import inspect
import itertools
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hidiff.registry import OPTIMIZERS, SCHEDULERS
from hidiff.utils.errors import UserError

LRSchedule = Callable[[int], float]
"""The learning rate of a step, 1-based. It is the release's: its scheduler's after step − 1."""

GRAD_CLIP_NORM = 0.01
"""Limit of the global L2 norm with `train.use_grad_clip` (release)."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "Adam": {"betas": (0.9, 0.99), "fused": True},
    "AdamW": {"fused": True},
    "SGD": {"fused": True},
}
"""Where they are not torch's: BasicSR's betas, and one kernel for all parameters."""

_NUMBERS = {
    float | Tensor: float,
    tuple[float | Tensor, float | Tensor]: tuple[float, float],
}
"""An option file holds no tensors."""


def _register_optimizer(name: str, optimizer: type[torch.optim.Optimizer]) -> None:
    """Make one of torch's optimisers a `type` of `train.optim_total`, with torch's options."""

    def build(**options: Any) -> torch.optim.Optimizer:
        return optimizer(**options)

    # Torch's own learning rate is right for nobody, so it is required.
    defaults = {"lr": inspect.Parameter.empty, **DEFAULTS.get(name, {})}
    signature = inspect.signature(optimizer)
    build.__signature__ = signature.replace(  # type: ignore[attr-defined]  # `inspect` reads it
        parameters=[
            parameter.replace(
                default=defaults.get(key, parameter.default), kind=inspect.Parameter.KEYWORD_ONLY
            )
            for key, parameter in signature.parameters.items()
        ]
    )
    hints = typing.get_type_hints(optimizer.__init__)
    build.__annotations__ = {key: _NUMBERS.get(hint, hint) for key, hint in hints.items()}
    OPTIMIZERS.register(name)(build)


for _name, _optimizer in vars(torch.optim).items():
    # LBFGS evaluates the loss several times a step, SparseAdam takes sparse gradients only.
    if _name not in ("Optimizer", "LBFGS", "SparseAdam") and inspect.isclass(_optimizer):
        assert issubclass(_optimizer, torch.optim.Optimizer)
        _register_optimizer(_name, _optimizer)


def build_optimizer(section: Mapping[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of `train.optim_total` over all parameters that are trained.

    Raises:
        UserError: the section is wrong.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        optimizer = OPTIMIZERS.build(section, "train.optim_total", params=trained)
    except UserError:
        raise
    except (ValueError, TypeError, IndexError) as error:
        # torch checks the ranges: "Invalid learning rate: -1.0".
        raise UserError(f"train.optim_total: {error}") from None
    if optimizer.defaults["lr"] == 0:
        raise UserError("train.optim_total.lr: 0 trains nothing; 3.0e-4 and 1.0e-3 are usual")
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(model: nn.Module, max_norm: float | None) -> Tensor:
    """Clip the global L2 norm over all trained parameters together, None only measures it.

    Returns:
        The norm before clipping, a scalar tensor.
    """
    gradients = [p for p in model.parameters() if p.grad is not None]
    return nn.utils.clip_grad_norm_(gradients, float("inf") if max_norm is None else max_norm)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average ← decay · average + (1 − decay) · weights, in place.

    torch's `AveragedModel` begins with the weights after the first step, this with those before.
    """
    for ours, theirs in zip(average.parameters(), model.parameters(), strict=True):
        ours.lerp_(theirs, 1.0 - decay)


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


def learning_rate(options: Mapping[str, Any]) -> LRSchedule:
    """The learning rate of every step of a training; see `build_lr_schedule`.

    Args:
        options: all sections of the option file.
    """
    train = options["train"]
    return build_lr_schedule(
        train["scheduler"],
        base_lr=train["optim_total"]["lr"],
        total_iter=train["total_iter"],
        warmup_iter=train["warmup_iter"],
    )


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
