"""Optimisers and gradient clipping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hidiff.errors import UserError
from hidiff.registry import Registry

OPTIMIZERS = Registry("optimiser")

GRAD_CLIP_NORM = 0.01
"""Limit of the global L2 norm with `train.use_grad_clip` (release)."""


@OPTIMIZERS.register("AdamW")
def adamw(
    *,
    params: Iterable[nn.Parameter],
    lr: float,
    weight_decay: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    amsgrad: bool = False,
) -> torch.optim.Optimizer:
    """AdamW, what the released options use; the decay acts on every parameter."""
    return torch.optim.AdamW(
        list(params),
        lr=lr,
        weight_decay=weight_decay,
        betas=betas,
        eps=eps,
        amsgrad=amsgrad,
        fused=True,
    )


@OPTIMIZERS.register("Adam")
def adam(
    *,
    params: Iterable[nn.Parameter],
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-8,
    amsgrad: bool = False,
) -> torch.optim.Optimizer:
    """Adam, what the paper's text names."""
    return torch.optim.Adam(
        list(params),
        lr=lr,
        weight_decay=weight_decay,
        betas=betas,
        eps=eps,
        amsgrad=amsgrad,
        fused=True,
    )


def build_optimizer(section: Mapping[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of `train.optim_total` over all parameters that are trained.

    Raises:
        UserError: the section is wrong.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        return OPTIMIZERS.build(section, "train.optim_total", params=trained)
    except UserError:
        raise
    except (ValueError, TypeError, IndexError) as error:
        # torch checks the ranges: "Invalid learning rate: -1.0".
        raise UserError(f"train.optim_total: {error}") from None


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take over a state, but not how its steps were computed.

    Raises:
        ValueError, KeyError: it is the state of another optimiser or of other parameters.
    """
    groups = [{**group, "fused": True} for group in state["param_groups"]]
    optimizer.load_state_dict({**state, "param_groups": groups})


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
