"""The Transformer alone, without a prior: Baseline of Table 1 and Restormer of Table 4."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hidiff.models.base import DeblurModel, Transform
from hidiff.registry import MODELS


@MODELS.register("Restormer")
class Restormer(DeblurModel):
    """restored = Transformer(lq), trained with L1 in a single stage (paper Sec. 4.2)."""

    def __init__(
        self, *, net_g: nn.Module, l_pix: nn.Module | None, l_percep: nn.Module | None = None
    ) -> None:
        super().__init__({"net_g": net_g}, {"l_pix": l_pix, "l_percep": l_percep}, guided=False)

    def forward(
        self, lq: Tensor, gt: Tensor, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """See `DeblurModel.forward`; nothing is drawn."""
        return self.image_losses(self.net_g(lq), gt)

    def predict(
        self,
        lq: Tensor,
        gt: Tensor | None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        transform: Transform | None = None,
    ) -> Tensor:
        """(B, 3, H, W) → (B, 3, H, W)."""
        return (transform or self.net_g)(lq, None)
