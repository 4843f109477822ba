"""Losses. Importing this package registers them in `hidiff.registry.LOSSES`."""

from hidiff.losses.perceptual import PerceptualLoss
from hidiff.losses.pixel import CharbonnierLoss, L1Loss, MSELoss, charbonnier_loss
from hidiff.losses.published import EdgeLoss, FrequencyLoss, PSNRLoss

__all__ = [
    "CharbonnierLoss",
    "EdgeLoss",
    "FrequencyLoss",
    "L1Loss",
    "MSELoss",
    "PSNRLoss",
    "PerceptualLoss",
    "charbonnier_loss",
]
