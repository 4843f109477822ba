"""Split-Training of Table 1: stage 2 trains the diffusion model alone (paper Sec. 3.2, Eq. 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hidiff.errors import UserError
from hidiff.models.stage2 import Stage2
from hidiff.registry import MODELS


@MODELS.register("HI_Diff_S2_Split")
class SplitStage2(Stage2):
    """The denoiser learns one random step of the chain; the Transformer stays stage 1's.

    Restoring is that of `Stage2`. The form that predicts noise has the loss of Eq. 7, the mean
    squared error between noise and prediction. The form that predicts z itself (`apply_ldm`) has
    the mean squared error between z and prediction in its place, at the same random steps.
    """

    loss_sections: ClassVar = {}
    frozen: ClassVar = ("net_g", "net_le")

    @classmethod
    def _other_arguments(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        for key in ("pixel_opt", "pixel_diff_opt", "perceptual_opt"):
            if (options.get("train") or {}).get(key):
                raise UserError(
                    f"train.{key}: model_type {options['model_type']} has one loss, the mean "
                    "squared error of Eq. 7; remove this section"
                )
        return super()._other_arguments(options)

    def forward(
        self, lq: Tensor, gt: Tensor, *, noise: Tensor | None = None, t: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See `DeblurModel.forward`; the loss is `l_diff`.

        Args:
            t: (B,) time steps in 0 … T−1; drawn uniformly from torch's generator by default.
        """
        z = self.target_prior(lq, gt)
        if noise is None:
            noise = torch.randn(z.shape)
        if t is None:
            t = torch.randint(self.diffusion.timesteps, z.shape[:1])
        noise, t = noise.to(z), t.to(z.device)
        z_t = self.diffusion.q_sample(z, noise, t)  # (B, N, C')
        c = self.net_le_dm(lq)
        if self.diffusion.predicts_x0:
            target, prediction = z, self.net_d(z_t, c, t[:, None, None])
        else:
            target, prediction = noise, self.net_d(z_t, c, t[:, None, None] + 1)
        return {"l_diff": F.mse_loss(prediction, target)}
