"""Losses with which the networks were published that HI-Diff is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidiff.losses.pixel import L1Loss, Reduction, WeightedLoss
from hidiff.registry import LOSSES

BINOMIAL = (0.05, 0.25, 0.4, 0.25, 0.05)
"""Of the Gaussian pyramid (Burt and Adelson, 1983)."""


def blurred(image: Tensor) -> Tensor:
    """(B, C, H, W) filtered with the outer product of `BINOMIAL`, edges replicated."""
    channels = image.shape[1]
    row = image.new_tensor(BINOMIAL)
    kernel = torch.outer(row, row).expand(channels, 1, -1, -1)
    return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), kernel, groups=channels)


@LOSSES.register()
class EdgeLoss(WeightedLoss):
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
        super().__init__(loss_weight, reduction)
        self.eps = eps

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        difference = pred - target  # of the edges too, as all of this is linear
        coarse = torch.zeros_like(difference)
        coarse[..., ::2, ::2] = 4 * blurred(difference)[..., ::2, ::2]
        return torch.sqrt((difference - blurred(coarse)) ** 2 + self.eps)


@LOSSES.register()
class FrequencyLoss(nn.Module):
    """L1 between the unnormalised Fourier transforms of two images (MIMO-UNet, Eq. 5).

    Real and imaginary parts are values of their own in the mean.

    Args:
        loss_weight: factor on the loss.
        reduction: mean or sum over images, channels, frequencies and the two parts.
    """

    def __init__(self, *, loss_weight: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.l1 = L1Loss(loss_weight=loss_weight, reduction=reduction)
        self.reduction = reduction

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """(B, C, H, W) twice → weighted scalar."""
        spectra = (torch.view_as_real(torch.fft.fft2(x)) for x in (pred, target))
        return self.l1(*spectra)


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
