"""The diffusion model on prior tokens: noising and the reverse chain (paper Sec. 3.2).

z is (B, N, C'). Time steps are t = 0 … T−1 here; the paper counts from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from hidiff.diffusion.schedule import MAX_BETA, beta_schedule
from hidiff.registry import DIFFUSIONS

DenoiseFn = Callable[[Tensor, Tensor, "Tensor | float"], Tensor]


class DiffusionTables(nn.Module):
    """The coefficients that follow from a β schedule, each of shape (T,).

    Made in float64 and kept as float32 buffers, which are no part of the state dict.

    Args:
        betas: β_0 … β_{T−1}, float64.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor

    def __init__(self, betas: np.ndarray) -> None:
        super().__init__()
        alphas = 1.0 - betas
        alphas_cumprod = np.cumprod(alphas)
        previous = np.append(1.0, alphas_cumprod[:-1])
        # The form that predicts z_0 may have β = 1, and does not use the two reciprocals.
        with np.errstate(divide="ignore"):
            tables = {
                "betas": betas,
                "alphas_cumprod": alphas_cumprod,
                "sqrt_alphas_cumprod": np.sqrt(alphas_cumprod),
                "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - alphas_cumprod),
                "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / alphas_cumprod),
                "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / alphas_cumprod - 1.0),
                "posterior_mean_coef1": betas * np.sqrt(previous) / (1.0 - alphas_cumprod),
                "posterior_mean_coef2": (1.0 - previous) * np.sqrt(alphas) / (1.0 - alphas_cumprod),
            }
        for name, values in tables.items():
            self.register_buffer(
                name, torch.from_numpy(values.astype(np.float32)), persistent=False
            )

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.betas)


@DIFFUSIONS.register()
class LatentDDPM(nn.Module):
    """One of the two released diffusion forms, chosen by `apply_ldm`.

    False (GoPro): the denoiser predicts the noise, and z_0 is clamped to [−1, 1].
    True (RealBlur): the denoiser predicts z_0 itself, and nothing is clamped.

    Args:
        apply_ldm: see above.
        schedule: name of the β schedule, see `hidiff.diffusion.schedule.SCHEDULES`.
        timesteps: T.
        linear_start, linear_end: β of the first and the last step.
        noising: how training noises z to z_T. 'textbook' is Eq. 4. Released behaviour (GoPro
            only): 'released' uses ᾱ_T where √ᾱ_T belongs. None means the released one of the
            form.
        reverse_noise: add Eq. 6's last term between reverse steps. Released behaviour: False, the
            chain is deterministic given its start.
    """

    def __init__(
        self,
        *,
        apply_ldm: bool = False,
        schedule: str = "linear",
        timesteps: int = 8,
        linear_start: float = 0.1,
        linear_end: float = 0.99,
        noising: Literal["released", "textbook"] | None = None,
        reverse_noise: bool = False,
    ) -> None:
        super().__init__()
        self.predicts_x0 = apply_ldm
        self.noising = noising or "released"
        self.reverse_noise = reverse_noise
        self.notices: tuple[str, ...] = ()
        """What differs from the release, to be told to the user."""
        betas = beta_schedule(schedule, timesteps, linear_start, linear_end, apply_ldm=apply_ldm)
        if schedule == "jsd":
            # At β = 1, z_T holds nothing of z_0 and 1/√ᾱ_T is infinite.
            betas = np.minimum(betas, MAX_BETA)
            self.notices = (
                "diffusion_schedule.schedule: 'jsd' ends at β = 1, where the release computes NaN; "
                f"it is clipped at {MAX_BETA} here",
            )
        elif apply_ldm and schedule != "linear":
            self.notices = (
                f"diffusion_schedule.schedule: '{schedule}' is used; with apply_ldm: true the "
                "release ignores this option and always takes 'linear'",
            )
        self.tables = DiffusionTables(betas)

    @property
    def timesteps(self) -> int:
        """T."""
        return self.tables.timesteps

    def training_start(self, z: Tensor, noise: Tensor) -> Tensor:
        """z_T, from which the reverse chain starts in training (Eq. 4 at t = T).

        Args:
            z: target prior (B, N, C').
            noise: standard normal (B, N, C').
        """
        if self.noising == "textbook" or self.predicts_x0:
            return self.q_sample(z, noise, self.timesteps - 1)
        # Released behaviour: ᾱ_T stands where √ᾱ_T is meant. Both are almost pure noise.
        mean_scale = self.tables.alphas_cumprod[-1].to(z.dtype)
        return mean_scale * z + torch.sqrt(1.0 - mean_scale**2) * noise

    # (Eq. 4)
    def q_sample(self, z: Tensor, noise: Tensor, t: Tensor | int) -> Tensor:
        """z_t = √ᾱ_t z + √(1 − ᾱ_t) ε, (B, N, C'); t a number or (B,)."""
        mean_scale = self.tables.sqrt_alphas_cumprod[t].to(z.dtype)
        std = self.tables.sqrt_one_minus_alphas_cumprod[t].to(z.dtype)
        if mean_scale.ndim:
            mean_scale, std = mean_scale[:, None, None], std[:, None, None]
        return mean_scale * z + std * noise  # (B, N, C')

    def predict_x0(self, denoiser: DenoiseFn, z_t: Tensor, c: Tensor, t: int) -> Tensor:
        """The estimate of z_0 at step t, through ε for the form that predicts noise."""
        if self.predicts_x0:
            return denoiser(z_t, c, t)
        epsilon = denoiser(z_t, c, t + 1)
        scale = self.tables.sqrt_recip_alphas_cumprod[t].to(z_t.dtype)
        noise_scale = self.tables.sqrt_recipm1_alphas_cumprod[t].to(z_t.dtype)
        return (scale * z_t - noise_scale * epsilon).clamp(-1.0, 1.0)

    # (Eq. 5), and (Eq. 6) with its noise
    def posterior_step(
        self, x0: Tensor, z_t: Tensor, t: int, epsilon: Tensor | None = None
    ) -> Tensor:
        """z_{t−1} from the estimate of z_0 and z_t, all (B, N, C'): the posterior mean + √β_t ε."""
        coef1 = self.tables.posterior_mean_coef1[t].to(z_t.dtype)
        coef2 = self.tables.posterior_mean_coef2[t].to(z_t.dtype)
        mean = coef1 * x0 + coef2 * z_t
        if epsilon is None:
            return mean
        return mean + self.tables.betas[t].to(z_t.dtype).sqrt() * epsilon.to(z_t)

    def reverse(
        self, denoiser: DenoiseFn, z_T: Tensor, c: Tensor, step_noise: Tensor | None = None
    ) -> Tensor:
        """Run the chain from z_T to ẑ.

        Args:
            denoiser: network called as denoiser(z_t, c, time).
            z_T: start (B, N, C').
            c: condition latent (B, N, C').
            step_noise: Eq. 6's noise (B, T − 1, N, C') in the order of the steps, see
                `draw_step_noise`; only with `reverse_noise`.

        Returns:
            ẑ (B, N, C'); the gradient flows through all T steps.
        """
        return self.trajectory(denoiser, z_T, c, step_noise)[-1]

    def trajectory(
        self, denoiser: DenoiseFn, z_T: Tensor, c: Tensor, step_noise: Tensor | None = None
    ) -> list[Tensor]:
        """All priors of the chain, z_T, z_{T−1}, … z_0, each (B, N, C'); see `reverse`."""
        priors = [z_T]
        for step, t in enumerate(reversed(range(self.timesteps))):
            epsilon = None
            if self.reverse_noise and t > 0:
                assert step_noise is not None, "reverse_noise needs step_noise"
                epsilon = step_noise[:, step]
            x0 = self.predict_x0(denoiser, priors[-1], c, t)  # (B, N, C')
            priors.append(self.posterior_step(x0, priors[-1], t, epsilon))
        return priors

    def draw_step_noise(
        self, shape: Sequence[int], generator: torch.Generator | None
    ) -> Tensor | None:
        """Eq. 6's noise for priors of a shape (B, N, C'): (B, T − 1, N, C'), on the CPU.

        None where the chain is deterministic.
        """
        if not self.reverse_noise or self.timesteps == 1:
            return None
        steps = [torch.randn(shape, generator=generator) for _ in range(self.timesteps - 1)]
        return torch.stack(steps, dim=1)
