"""β schedules of the latent diffusion model, in float64.

The two released models use two code bases' conventions: what one calls "linear" is linear in β,
what the other calls so is linear in √β (`apply_ldm`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hidiff.utils.errors import UserError, suggestion

COSINE_OFFSET = 8e-3
MAX_BETA = 0.999


def _warmup(start: float, end: float, timesteps: int, fraction: float) -> np.ndarray:
    betas = np.full(timesteps, end)
    warm = int(timesteps * fraction)
    betas[:warm] = np.linspace(start, end, warm)
    return betas


def _linear(start: float, end: float, timesteps: int) -> np.ndarray:
    return np.linspace(start, end, timesteps)


def _quadratic(start: float, end: float, timesteps: int) -> np.ndarray:
    return np.linspace(start**0.5, end**0.5, timesteps) ** 2


def _cosine(start: float, end: float, timesteps: int) -> np.ndarray:
    """Nichol & Dhariwal 2021, Eq. 17; start and end play no part."""
    t = np.arange(timesteps + 1) / timesteps + COSINE_OFFSET
    alphas_cumprod = np.cos(t / (1 + COSINE_OFFSET) * np.pi / 2) ** 2
    return np.clip(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0, MAX_BETA)


SCHEDULES: dict[bool, dict[str, Callable[[float, float, int], np.ndarray]]] = {
    False: {
        "linear": _linear,
        "quad": _quadratic,
        "warmup10": lambda start, end, timesteps: _warmup(start, end, timesteps, 0.1),
        "warmup50": lambda start, end, timesteps: _warmup(start, end, timesteps, 0.5),
        "const": lambda start, end, timesteps: np.full(timesteps, end),
        "jsd": lambda start, end, timesteps: 1.0 / np.linspace(timesteps, 1, timesteps),
        "cosine": _cosine,
    },
    True: {
        "linear": _quadratic,
        "cosine": _cosine,
        "sqrt_linear": _linear,
        "sqrt": lambda start, end, timesteps: np.linspace(start, end, timesteps) ** 0.5,
    },
}
"""The schedules by `apply_ldm` and name; each takes (linear_start, linear_end, timesteps)."""


def beta_schedule(
    name: str, timesteps: int, linear_start: float, linear_end: float, *, apply_ldm: bool
) -> np.ndarray:
    """β_0 … β_{T−1} as float64 (T,).

    Raises:
        UserError: the schedule is unknown, leaves (0, 1], or reaches 1 in the form that predicts
            the noise, which divides by √ᾱ_T then (only 'jsd', see `LatentDDPM`, may).
    """
    known = SCHEDULES[apply_ldm]
    if name not in known:
        raise UserError(
            f"diffusion_schedule.schedule: there is no schedule '{name}' with apply_ldm: "
            f"{str(apply_ldm).lower()}{suggestion(name, known)}"
        )
    if timesteps < 1:
        raise UserError(f"diffusion_schedule.timesteps: {timesteps} is less than one step")
    betas = known[name](linear_start, linear_end, timesteps)
    if not (np.all(betas > 0) and np.all(betas <= 1)):
        raise UserError(
            f"diffusion_schedule: '{name}' from {linear_start} to {linear_end} gives β outside "
            f"(0, 1]: {betas.min():g} … {betas.max():g}; check linear_start and linear_end"
        )
    if not apply_ldm and name != "jsd" and betas.max() == 1:
        raise UserError(
            f"diffusion_schedule.linear_end: '{name}' reaches β = 1, where nothing of z_0 is left "
            "to predict the noise from; end below 1, at 0.99 as the release does"
        )
    return betas
