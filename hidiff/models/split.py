"""Split-Training of Table 1: stage 2 trains the diffusion model alone (paper Sec. 3.2, Eq. 7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidiff.diffusion import LatentDDPM
from hidiff.models.stage2 import DiffusionModel
from hidiff.registry import MODELS


@MODELS.register("HI_Diff_S2_Split")
class SplitStage2(DiffusionModel):
    """The denoiser learns one random step of the chain; the Transformer stays stage 1's.

    The form that predicts noise has the loss of Eq. 7, the mean squared error between noise and
    prediction. The form that predicts z itself (`apply_ldm`) has the mean squared error between z
    and prediction in its place, at the same random steps.
    """

    def __init__(
        self,
        *,
        net_g: nn.Module,
        net_le_dm: nn.Module,
        net_d: nn.Module,
        diffusion: LatentDDPM,
        net_le: nn.Module | None = None,
    ) -> None:
        super().__init__(
            net_g=net_g,
            net_le_dm=net_le_dm,
            net_d=net_d,
            net_le=net_le,
            diffusion=diffusion,
            losses={},
            frozen=("net_g", "net_le"),
        )

    def forward(
        self,
        lq: Tensor,
        gt: Tensor,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        t: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """See `DeblurModel.forward`; the loss is `l_diff`.

        Args:
            noise: (B, N, C') standard normal; drawn where it is None, as is t then.
            t: (B,) time steps in 0 … T−1, uniform.
        """
        if noise is None or t is None:
            return self(lq, gt, **self.draw(len(lq), generator))
        z = self.target_prior(lq, gt)
        noise, t = noise.to(z), t.to(z.device)
        z_t = self.diffusion.q_sample(z, noise, t)  # (B, N, C')
        c = self.net_le_dm(lq)
        if self.diffusion.predicts_x0:
            target, prediction = z, self.net_d(z_t, c, t[:, None, None])
        else:
            target, prediction = noise, self.net_d(z_t, c, t[:, None, None] + 1)
        return {"l_diff": F.mse_loss(prediction, target)}

    def draw(self, count: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """See `DeblurModel.draw`."""
        noise = self.draw_noise(count, generator)
        t = torch.randint(self.diffusion.timesteps, (count,), generator=generator)
        return {"noise": noise, "t": t}
