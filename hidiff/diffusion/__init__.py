"""Latent diffusion: β schedules, noising and the reverse chain."""

from hidiff.diffusion.latent_ddpm import DiffusionTables, LatentDDPM
from hidiff.diffusion.schedule import beta_schedule

__all__ = ["DiffusionTables", "LatentDDPM", "beta_schedule"]
