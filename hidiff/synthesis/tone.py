"""Between the values of a picture file and linear light: the sRGB curve and a camera's contrast."""

from __future__ import annotations

import functools

import numpy as np

STEPS = 65535
"""Linear light is looked up in so many steps; the darkest are a twentieth of an 8-bit value."""


def srgb_to_linear(values: np.ndarray) -> np.ndarray:
    """sRGB-encoded values in [0, 1] to linear light in [0, 1] (IEC 61966-2-1), any shape."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(values: np.ndarray) -> np.ndarray:
    """Linear light, clipped to [0, 1], to sRGB-encoded values in [0, 1]; see `srgb_to_linear`."""
    values = np.clip(values, 0.0, 1.0)
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


def contrast(encoded: np.ndarray, strength: float) -> np.ndarray:
    """The S-curve by which cameras raise the contrast, of sRGB-encoded values in [0, 1].

    Args:
        strength: 0 leaves the values; 1 is 3x² − 2x³, the curve of "Unprocessing Images for Learned
            Raw Denoising" (Brooks et al., CVPR 2019).
    """
    return encoded + strength * encoded * (encoded * (3 - 2 * encoded) - 1)


def decoding_table(strength: float) -> np.ndarray:
    """(256,) float32: the linear light that `encode` shows as each 8-bit value."""
    grid = np.linspace(0.0, 1.0, 4097)
    encoded = np.interp(np.arange(256) / 255, contrast(grid, strength), grid)
    return srgb_to_linear(encoded).astype(np.float32)


@functools.cache
def _srgb_table() -> np.ndarray:
    return linear_to_srgb(np.arange(STEPS + 1) / STEPS).astype(np.float32)


def encode(linear: np.ndarray, strength: float) -> np.ndarray:
    """Linear light, clipped to [0, 1], as 8-bit values; any shape, float32 to uint8.

    Args:
        strength: of the `contrast`; 0 is the plain sRGB curve.
    """
    steps = (np.clip(linear, 0.0, 1.0) * STEPS + 0.5).astype(np.uint16)
    encoded = np.take(_srgb_table(), steps)
    if strength:
        encoded = contrast(encoded, strength)
    return (encoded * 255 + 0.5).astype(np.uint8)
