"""The Transformer alone, without a prior: Baseline of Table 1 and Restormer of Table 4."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from hidiff.models.base import DeblurModel
from hidiff.registry import MODELS


@MODELS.register("Restormer")
class Restormer(DeblurModel):
    """restored = Transformer(lq), trained with L1 in a single stage (paper Sec. 4.2)."""

    sections: ClassVar = {"net_g": "network_g"}
    guided: ClassVar = False

    def forward(self, lq: Tensor, gt: Tensor, *, noise: Tensor | None = None) -> dict[str, Tensor]:
        """See `DeblurModel.forward`; there is no diffusion, so `noise` plays no part."""
        return self.image_losses(self.net_g(lq), gt)

    def predict(
        self,
        lq: Tensor,
        gt: Tensor | None,
        noise: Tensor | None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(B, 3, H, W) → (B, 3, H, W)."""
        return self.net_g(lq)
