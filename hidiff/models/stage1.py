"""Stage 1: the Transformer with a latent encoder that sees the ground truth (paper Sec. 3.1)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from hidiff.models.base import DeblurModel
from hidiff.registry import MODELS


@MODELS.register("HI_Diff_S1")
class Stage1(DeblurModel):
    """z = LE(lq, gt), restored = Transformer(lq, z); both are trained with L1 (Eq. 2)."""

    sections: ClassVar = {"net_g": "network_g", "net_le": "network_le"}
    restores_from_gt: ClassVar = True

    def forward(self, lq: Tensor, gt: Tensor, *, noise: Tensor | None = None) -> dict[str, Tensor]:
        """See `DeblurModel.forward`; there is no diffusion, so `noise` plays no part."""
        restored = self.predict(lq, gt, noise)
        return self.image_losses(restored, gt)

    def predict(
        self,
        lq: Tensor,
        gt: Tensor | None,
        noise: Tensor | None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(B, 3, H, W) twice → (B, 3, H, W)."""
        return self.net_g(lq, self.net_le(lq, gt))
