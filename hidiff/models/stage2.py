"""Stage 2: the diffusion model and the Transformer, trained jointly (paper Sec. 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hidiff.diffusion import LatentDDPM
from hidiff.models.base import DeblurModel, Transform
from hidiff.registry import MODELS
from hidiff.utils.errors import UserError


class DiffusionModel(DeblurModel):
    """The networks of stage 2, and restoring with them: the reverse chain from noise, given lq.

    LE comes from stage 1, stays frozen and is needed for training only.
    """

    def __init__(
        self,
        *,
        net_g: nn.Module,
        net_le_dm: nn.Module,
        net_d: nn.Module,
        net_le: nn.Module | None,
        diffusion: LatentDDPM,
        losses: dict[str, nn.Module | None],
        frozen: tuple[str, ...],
    ) -> None:
        super().__init__(
            {"net_g": net_g, "net_le_dm": net_le_dm, "net_d": net_d, "net_le": net_le},
            losses,
            frozen=frozen,
            guided=True,
            from_stage1=("net_g", "net_le"),
        )
        self.diffusion = diffusion
        self.notices = diffusion.notices
        self.check_encoder("net_le_dm", channels=3)
        if net_le is not None:
            self.check_encoder("net_le", channels=6)
        if net_d.out_channel != net_d.prior_dim:
            raise UserError(
                f"network_d.out_channel: {net_d.out_channel} must equal in_channel "
                f"{net_d.prior_dim}: what is predicted has the prior's width"
            )
        self.check_prior("net_d", "in_channel (or n_feats)")

    def target_prior(self, lq: Tensor, gt: Tensor) -> Tensor:
        """z = LE(lq, gt), what the diffusion model learns to generate: (B, N, C'), no gradient.

        Raises:
            UserError: the model was built without LE, for restoring only.
        """
        if "net_le" not in self.networks():
            raise UserError("network_le: stage 2 needs this section to train (its target prior)")
        with torch.no_grad():
            return self.net_le(lq, gt)

    def predict(
        self,
        lq: Tensor,
        gt: Tensor | None,
        noise: Tensor | None = None,
        step_noise: Tensor | None = None,
        transform: Transform | None = None,
    ) -> Tensor:
        """(B, 3, H, W) and noise (B, N, C') → (B, 3, H, W)."""
        assert noise is not None, "the reverse chain starts from noise"
        c = self.net_le_dm(lq)
        prior = self.diffusion.reverse(self.net_d, noise.to(c), c, step_noise)
        return (transform or self.net_g)(lq, prior)

    @torch.no_grad()
    def restore_trajectory(self, lq: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Restore with the prior after each step of the reverse chain: z_T, z_{T−1}, … z_0.

        The first prior is pure noise, the last one is that of `restore` with the same generator.

        Args:
            lq, generator: see `restore`.

        Returns:
            (T + 1, B, 3, H, W) RGB, about [0, 1], not clamped.

        Raises:
            UserError: see `restore`.
        """
        height, width = lq.shape[-2:]
        padded = self.padded(lq)
        noise = self.draw_noise(len(lq), generator)
        step_noise = self.draw_step_noise(len(lq), generator)
        c = self.net_le_dm(padded)  # (B, N, C')
        priors = self.diffusion.trajectory(self.net_d, noise.to(c), c, step_noise)
        transform = self._transform(padded, None, None) or self.net_g
        return torch.stack([transform(padded, z)[..., :height, :width] for z in priors])

    def draw_noise(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal (count, N, C'), on the CPU."""
        shape = (count, self.net_g.group**2, self.net_g.prior_dim)
        return torch.randn(shape, generator=generator)

    def draw_step_noise(
        self, count: int, generator: torch.Generator | None = None
    ) -> Tensor | None:
        """See `LatentDDPM.draw_step_noise`: (count, T − 1, N, C')."""
        shape = (count, self.net_g.group**2, self.net_g.prior_dim)
        return self.diffusion.draw_step_noise(shape, generator)


@MODELS.register("HI_Diff_S2")
class Stage2(DiffusionModel):
    """ẑ = reverse chain from the noised z = LE(lq, gt), given c = LE_DM(lq).

    The loss is L1 of the restored image plus L1 between z and ẑ; the chain is part of the graph.
    """

    def __init__(
        self,
        *,
        net_g: nn.Module,
        net_le_dm: nn.Module,
        net_d: nn.Module,
        diffusion: LatentDDPM,
        l_pix: nn.Module | None,
        l_pix_diff: nn.Module | None,
        l_percep: nn.Module | None = None,
        net_le: nn.Module | None = None,
    ) -> None:
        super().__init__(
            net_g=net_g,
            net_le_dm=net_le_dm,
            net_d=net_d,
            net_le=net_le,
            diffusion=diffusion,
            losses={"l_pix": l_pix, "l_pix_diff": l_pix_diff, "l_percep": l_percep},
            frozen=("net_le",),
        )

    def forward(
        self,
        lq: Tensor,
        gt: Tensor,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        step_noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """See `DeblurModel.forward`; the losses are `l_pix` and, unless left out, `l_pix_diff`.

        Args:
            noise: (B, N, C') standard normal; drawn where it is None, as is step_noise then.
            step_noise: see `LatentDDPM.reverse`.
        """
        if noise is None:
            return self(lq, gt, **self.draw(len(lq), generator))
        z = self.target_prior(lq, gt)  # (B, N, C'), from the frozen LE
        z_T = self.diffusion.training_start(z, noise.to(z))  # (Eq. 4 at t = T)
        c = self.net_le_dm(lq)  # (B, N, C')
        z_hat = self.diffusion.reverse(self.net_d, z_T, c, step_noise)  # (Eq. 5; Eq. 6 with noise)
        losses = self.image_losses(self.net_g(lq, z_hat), gt)
        if "l_pix_diff" in self.losses:
            losses["l_pix_diff"] = self.losses["l_pix_diff"](z_hat, z)
        return losses

    def draw(self, count: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """See `DeblurModel.draw`."""
        noise = self.draw_noise(count, generator)
        step_noise = self.draw_step_noise(count, generator)
        return {"noise": noise} | ({} if step_noise is None else {"step_noise": step_noise})
