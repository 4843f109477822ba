"""Exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

from hidiff.models import DeblurModel


class WeightAverage:
    """Keeps average ← decay · average + (1 − decay) · weights of the networks that are trained.

    Args:
        model: the model that is trained.
        decay: in (0, 1), for example 0.999.
    """

    def __init__(self, model: DeblurModel, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        """A model with the averaged weights, to validate with."""

    @torch.no_grad()
    def update(self, model: DeblurModel) -> None:
        """Take the weights after a step into the average."""
        for name, network in model.trained_networks().items():
            average = self.networks()[name]
            pairs = zip(average.parameters(), network.parameters(), strict=True)
            for ours, theirs in pairs:
                ours.lerp_(theirs, 1.0 - self.decay)

    def networks(self) -> dict[str, nn.Module]:
        """The averaged networks by official name."""
        return self.model.trained_networks()
