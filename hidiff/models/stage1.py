"""Stage 1: the Transformer with a latent encoder that sees the ground truth (paper Sec. 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hidiff.models.base import DeblurModel, Transform
from hidiff.registry import MODELS
from hidiff.utils.errors import UserError


@MODELS.register("HI_Diff_S1")
class Stage1(DeblurModel):
    """z = LE(lq, gt), restored = Transformer(lq, z); both are trained with L1 (Eq. 2)."""

    def __init__(
        self,
        *,
        net_g: nn.Module,
        net_le: nn.Module,
        l_pix: nn.Module | None,
        l_percep: nn.Module | None = None,
    ) -> None:
        networks = {"net_g": net_g, "net_le": net_le}
        losses = {"l_pix": l_pix, "l_percep": l_percep}
        super().__init__(networks, losses, guided=True, restores_from_gt=True)
        self.check_encoder("net_le", channels=6)

    def forward(
        self, lq: Tensor, gt: Tensor, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """See `DeblurModel.forward`; nothing is drawn."""
        return self.image_losses(self.predict(lq, gt), gt)

    def predict(
        self,
        lq: Tensor,
        gt: Tensor | None,
        noise: Tensor | None = None,
        step_noise: Tensor | None = None,
        transform: Transform | None = None,
    ) -> Tensor:
        """(B, 3, H, W) twice → (B, 3, H, W).

        Raises:
            UserError: the sharp image is absent.
        """
        if gt is None:
            raise UserError(
                "stage 1 restores with the sharp image at hand only (its latent encoder reads "
                "it); to restore blurry photographs, train stage 2 and test with model_type "
                "HI_Diff_S2"
            )
        return (transform or self.net_g)(lq, self.net_le(lq, gt))
