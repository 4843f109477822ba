"""Losses. Importing this package registers them in `hidiff.registry.LOSSES`."""

from hidiff.losses.perceptual import PerceptualLoss
from hidiff.losses.pixel import CharbonnierLoss, L1Loss, MSELoss, charbonnier_loss

__all__ = ["CharbonnierLoss", "L1Loss", "MSELoss", "PerceptualLoss", "charbonnier_loss"]
