"""Losses of pixels: HI-Diff's, and those that the networks it is compared with were published with.

Predictions and targets are tensors of one shape. A loss is registered by its class name; its
arguments are what an option file's section may say.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidiff.registry import LOSSES

Reduction = Literal["mean", "sum"]


class WeightedLoss(nn.Module):
    """loss_weight times the mean or sum of an elementwise loss, which a subclass writes."""

    def __init__(self, *, loss_weight: float = 1.0, reduction: Reduction = "mean") -> None:
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

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(pred, target, reduction="none")


@LOSSES.register()
class MSELoss(WeightedLoss):
    """(pred − target)²."""

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(pred, target, reduction="none")


@LOSSES.register()
class CharbonnierLoss(WeightedLoss):
    """√((pred − target)² + eps), a smooth L1."""

    def __init__(
        self, *, loss_weight: float = 1.0, reduction: Reduction = "mean", eps: float = 1e-12
    ) -> None:
        super().__init__(loss_weight=loss_weight, reduction=reduction)
        self.eps = eps

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return torch.sqrt((pred - target) ** 2 + self.eps)


BINOMIAL = (0.05, 0.25, 0.4, 0.25, 0.05)
"""Of the Gaussian pyramid (Burt and Adelson, 1983)."""


def blurred(image: Tensor) -> Tensor:
    """(B, C, H, W) filtered with the outer product of `BINOMIAL`, edges replicated."""
    channels = image.shape[1]
    row = torch.tensor(BINOMIAL, dtype=image.dtype).to(image.device)
    kernel = torch.outer(row, row).expand(channels, 1, -1, -1)
    return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), kernel, groups=channels)


@LOSSES.register()
class EdgeLoss(CharbonnierLoss):
    """Charbonnier loss between the images' highest frequencies (MPRNet, Eq. 2).

    From an image what is left of it at half the resolution is subtracted: G(4 · v) of v = G(image)
    at even pixels and 0 elsewhere, G a 5×5 filter with replicated edges.

    Args:
        loss_weight: factor on the loss.
        reduction: mean or sum over images, channels and pixels.
        eps: of the Charbonnier loss.
    """

    def __init__(
        self, *, loss_weight: float = 1.0, reduction: Reduction = "mean", eps: float = 1e-6
    ) -> None:
        super().__init__(loss_weight=loss_weight, reduction=reduction, eps=eps)

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        difference = pred - target  # of the edges too, as all of this is linear
        coarse = torch.zeros_like(difference)
        coarse[..., ::2, ::2] = 4 * blurred(difference)[..., ::2, ::2]
        return super().elementwise(difference, blurred(coarse))


@LOSSES.register()
class FrequencyLoss(WeightedLoss):
    """L1 between the unnormalised Fourier transforms of two images (MIMO-UNet, Eq. 5).

    Real and imaginary parts are values of their own in the mean.
    """

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        spectrum = torch.view_as_real(torch.fft.fft2(pred))
        return F.l1_loss(spectrum, torch.view_as_real(torch.fft.fft2(target)), reduction="none")


@LOSSES.register()
class PSNRLoss(nn.Module):
    """The negative PSNR of images in [0, 1], in dB, averaged over the images (HINet, Sec. 3.3).

    Args:
        loss_weight: factor on the loss.
    """

    def __init__(self, *, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """(B, C, H, W) twice → weighted scalar."""
        error = (pred - target).square().mean(dim=(1, 2, 3))
        return self.loss_weight * (10 * torch.log10(error + 1e-8)).mean()
