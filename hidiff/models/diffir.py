"""DiffIR's two stages, HI-Diff's ancestor: one vector is the prior (Xia et al., ICCV 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hidiff.archs import DiffIRS1, DiffIRS2
from hidiff.archs.baselines.diffir import PriorEncoder
from hidiff.models.base import DeblurModel, Transform
from hidiff.models.stage1 import Stage1
from hidiff.registry import MODELS
from hidiff.utils.errors import UserError


@MODELS.register("DiffIR_S1")
class DiffIRStage1(DeblurModel):
    """The prior comes from the blurry and the sharp image; `net_g` holds its encoder."""

    trains = (DiffIRS1,)

    def __init__(
        self, *, net_g: nn.Module, l_pix: nn.Module | None, l_percep: nn.Module | None = None
    ) -> None:
        losses = {"l_pix": l_pix, "l_percep": l_percep}
        super().__init__({"net_g": net_g}, losses, restores_from_gt=True)

    forward = Stage1.forward

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
                "stage 1 of DiffIR restores with the sharp image at hand only; to restore blurry "
                "photographs, train stage 2 and test with model_type DiffIR_S2"
            )
        return self.net_g(lq, gt)[0]


@MODELS.register("DiffIR_S2")
class DiffIRStage2(DeblurModel):
    """The diffusion model learns stage 1's prior, together with the network that takes it.

    The loss is that of the restored image plus `l_pix_diff` between stage 1's prior and that of the
    chain's last step. Released behaviour that is left out: 100 000 steps at first in which only the
    diffusion model is trained.
    """

    trains = (DiffIRS2,)

    def __init__(
        self,
        *,
        net_g: nn.Module,
        l_pix: nn.Module | None,
        l_pix_diff: nn.Module | None,
        l_percep: nn.Module | None = None,
        net_le: nn.Module | None = None,
    ) -> None:
        super().__init__(
            {"net_g": net_g, "net_le": net_le},
            {"l_pix": l_pix, "l_pix_diff": l_pix_diff, "l_percep": l_percep},
            frozen=("net_le",),
            from_stage1={"net_g": "net_g.G", "net_le": "net_g.E"},
        )
        if net_le is not None and not isinstance(net_le, PriorEncoder):
            raise UserError("network_le.type: stage 2 of DiffIR needs DiffIREncoder, stage 1's own")
        if net_le is not None and net_le.prior_dim != net_g.prior_dim:
            raise UserError(
                f"network_le.n_feats: its prior has {net_le.prior_dim} numbers and network_g's has "
                f"{net_g.prior_dim}, 4 · n_feats; make them equal"
            )

    def forward(
        self,
        lq: Tensor,
        gt: Tensor,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """See `DeblurModel.forward`; the losses are `l_pix` and, unless left out, `l_pix_diff`.

        Args:
            noise: (B, prior_dim) standard normal; drawn where it is None.
        """
        if noise is None:
            return self(lq, gt, **self.draw(len(lq), generator))
        if "net_le" not in self.networks():
            raise UserError("network_le: stage 2 needs this section to train (its target prior)")
        with torch.no_grad():
            target = self.net_le(lq, gt)
        restored, priors = self.net_g.from_prior(lq, target, noise=noise.to(target))
        losses = self.image_losses(restored, gt)
        if "l_pix_diff" in self.losses:
            losses["l_pix_diff"] = self.losses["l_pix_diff"](priors[-1], target)
        return losses

    def draw(self, count: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """See `DeblurModel.draw`."""
        return {"noise": self.draw_noise(count, generator)}

    def draw_noise(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal (count, prior_dim), on the CPU."""
        return torch.randn(count, self.net_g.prior_dim, generator=generator)

    def predict(
        self,
        lq: Tensor,
        gt: Tensor | None,
        noise: Tensor | None = None,
        step_noise: Tensor | None = None,
        transform: Transform | None = None,
    ) -> Tensor:
        """(B, 3, H, W) and noise (B, prior_dim) → (B, 3, H, W)."""
        assert noise is not None, "DiffIR's chain starts from noise"
        return self.net_g(lq, noise=noise.to(lq))[0]
