"""Protocol 'basicsr': the PSNR and SSIM of validation during training and of `test.py`."""

from __future__ import annotations

import math

import cv2
import numpy as np

from hidiff.metrics.pair import WINDOW, check_pair, gaussian_ssim
from hidiff.registry import METRICS
from hidiff.utils.errors import UserError

# ITU-R BT.601 luma of RGB in [0, 1], on the studio range 16 to 235.
_LUMA_WEIGHTS = np.array([65.481, 128.553, 24.966])
_LUMA_OFFSET = 16.0


@METRICS.register()
def calculate_psnr(
    restored: np.ndarray,
    target: np.ndarray,
    *,
    crop_border: int = 0,
    test_y_channel: bool = False,
) -> float:
    """Peak signal-to-noise ratio over all pixels and channels.

    Args:
        restored, target: uint8 RGB (H, W, 3).
        crop_border: pixels left out at each of the four sides.
        test_y_channel: compare the BT.601 studio-range luma (not rounded) instead of RGB.

    Returns:
        dB with peak 255; infinite for identical images.

    Raises:
        UserError: the images are not uint8 RGB of one size, or the border leaves nothing of them.
    """
    restored, target = _crop(restored, target, crop_border, smallest_side=1)
    if test_y_channel:
        mse = float(np.mean((_luma(restored) - _luma(target)) ** 2))
    else:
        mse = cv2.norm(restored, target, cv2.NORM_L2SQR) / restored.size
    return 10.0 * math.log10(255.0**2 / mse) if mse > 0 else math.inf


@METRICS.register()
def calculate_ssim(
    restored: np.ndarray,
    target: np.ndarray,
    *,
    crop_border: int = 0,
    test_y_channel: bool = False,
) -> float:
    """Structural similarity per channel, averaged (Wang et al., 2004).

    11×11 Gaussian window of sigma 1.5 inside the image only, population covariance, K = 0.01 and
    0.03, L = 255.

    Args:
        restored, target: uint8 RGB (H, W, 3).
        crop_border: pixels left out at each of the four sides.
        test_y_channel: compare the BT.601 studio-range luma (not rounded) instead of RGB.

    Returns:
        Mean SSIM, at most 1.

    Raises:
        UserError: the images are not uint8 RGB of one size, or fewer than 11 pixels are left
            between the borders.
    """
    restored, target = _crop(restored, target, crop_border, smallest_side=WINDOW)
    if test_y_channel:
        restored, target = _luma(restored), _luma(target)
    return gaussian_ssim(restored, target, data_range=255)[0]


def _crop(
    restored: np.ndarray, target: np.ndarray, border: int, *, smallest_side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Check the pair and take `border` pixels off each side."""
    if border < 0:
        raise UserError(f"crop_border: {border} pixels cannot be cropped; give 0 or more")
    check_pair(restored, target, smallest_side=smallest_side + 2 * border)
    height, width = restored.shape[:2]
    window = slice(border, height - border), slice(border, width - border)
    return restored[window], target[window]


def _luma(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB to (H, W) float64 luma in 16 to 235.

    Released behaviour: pixels and luma pass through float32 in [0, 1], which shows in the seventh
    decimal of a PSNR.
    """
    pixels = image.astype(np.float32) / np.float32(255)
    luma = ((pixels @ _LUMA_WEIGHTS + _LUMA_OFFSET) / 255.0).astype(np.float32)
    return (luma * np.float32(255)).astype(np.float64)
