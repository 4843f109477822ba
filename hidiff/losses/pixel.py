"""Pixel losses. Predictions and targets are tensors of one shape."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidiff.registry import LOSSES

Reduction = Literal["mean", "sum"]


def charbonnier_loss(pred: Tensor, target: Tensor, *, eps: float = 1e-12) -> Tensor:
    """√((pred − target)² + eps), elementwise."""
    return torch.sqrt((pred - target) ** 2 + eps)


class WeightedLoss(nn.Module):
    """loss_weight times the mean or sum of an elementwise loss."""

    def __init__(self, loss_weight: float, reduction: Reduction) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.reduction = reduction

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss of each element; subclasses define it."""
        raise AssertionError("a loss defines `elementwise`")

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Two tensors of one shape → weighted scalar."""
        loss = self.elementwise(pred, target)
        return self.loss_weight * (loss.mean() if self.reduction == "mean" else loss.sum())


@LOSSES.register()
class L1Loss(WeightedLoss):
    """|pred − target| (Eq. 2 of the paper, and the diffusion loss)."""

    def __init__(self, *, loss_weight: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__(loss_weight, reduction)

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(pred, target, reduction="none")


@LOSSES.register()
class MSELoss(WeightedLoss):
    """(pred − target)²."""

    def __init__(self, *, loss_weight: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__(loss_weight, reduction)

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(pred, target, reduction="none")


@LOSSES.register()
class CharbonnierLoss(WeightedLoss):
    """√((pred − target)² + eps), a smooth L1."""

    def __init__(
        self, *, loss_weight: float = 1.0, reduction: Reduction = "mean", eps: float = 1e-12
    ) -> None:
        super().__init__(loss_weight, reduction)
        self.eps = eps

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return charbonnier_loss(pred, target, eps=self.eps)
