"""Stage 2: the diffusion model and the Transformer, trained jointly (paper Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hidiff.diffusion import LatentDDPM
from hidiff.errors import UserError
from hidiff.models.base import DeblurModel
from hidiff.registry import MODELS
from hidiff.typecheck import check_call


@MODELS.register("HI_Diff_S2")
class Stage2(DeblurModel):
    """ẑ = reverse chain from the noised z = LE(lq, gt), given c = LE_DM(lq).

    The loss is L1 of the restored image plus L1 between z and ẑ; the chain is part of the graph.
    LE comes from stage 1 and stays frozen. Restoring starts the chain from noise and needs no LE.
    """

    sections: ClassVar = {"net_g": "network_g", "net_le_dm": "network_le_dm", "net_d": "network_d"}
    training_sections: ClassVar = {"net_le": "network_le"}
    loss_sections: ClassVar = {"l_pix": "pixel_opt", "l_pix_diff": "pixel_diff_opt"}
    frozen: ClassVar = ("net_le",)
    from_stage1: ClassVar = ("net_g", "net_le")

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        losses: Mapping[str, nn.Module],
        diffusion: LatentDDPM,
    ) -> None:
        super().__init__(networks, losses)
        self.diffusion = diffusion

    @classmethod
    def _other_arguments(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        if options.get("diffusion_schedule") is None:
            raise UserError(
                f"diffusion_schedule: model_type {options['model_type']} needs this section"
            )
        arguments = check_call(
            LatentDDPM, options["diffusion_schedule"], "diffusion_schedule", label="the schedule"
        )
        return {**super()._other_arguments(options), "diffusion": LatentDDPM(**arguments)}

    @property
    def notices(self) -> tuple[str, ...]:
        """Those of the diffusion."""
        return self.diffusion.notices

    def noise_shape(self, batch_size: int) -> tuple[int, ...]:
        """(B, N, C')."""
        return (batch_size, self.net_g.group**2, self.net_g.prior_dim)

    def target_prior(self, lq: Tensor, gt: Tensor) -> Tensor:
        """z = LE(lq, gt), what the diffusion model learns to generate: (B, N, C'), no gradient.

        Raises:
            UserError: the model was built without LE, for restoring only.
        """
        if "net_le" not in self.networks():
            raise UserError("network_le: stage 2 needs this section to train (its target prior)")
        with torch.no_grad():
            return self.net_le(lq, gt)

    def forward(self, lq: Tensor, gt: Tensor, *, noise: Tensor | None = None) -> dict[str, Tensor]:
        """See `DeblurModel.forward`; the losses are `l_pix` and, unless left out, `l_pix_diff`."""
        z = self.target_prior(lq, gt)
        if noise is None:
            noise = torch.randn(z.shape)
        z_T = self.diffusion.training_start(z, noise.to(z))
        z_hat = self.diffusion.reverse(self.net_d, z_T, self.net_le_dm(lq))
        restored = self.net_g(lq, z_hat)
        losses = self.image_losses(restored, gt)
        if "l_pix_diff" in self.losses:
            losses["l_pix_diff"] = self.losses["l_pix_diff"](z_hat, z)
        return losses

    def predict(
        self,
        lq: Tensor,
        gt: Tensor | None,
        noise: Tensor | None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(B, 3, H, W) and noise (B, N, C') → (B, 3, H, W)."""
        z_hat = self.diffusion.reverse(self.net_d, noise, self.net_le_dm(lq), generator=generator)
        return self.net_g(lq, z_hat)
