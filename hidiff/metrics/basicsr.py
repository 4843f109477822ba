"""Protocol 'basicsr': the PSNR and SSIM of validation during training and of `test.py`.

Also what the other protocols share with it: the check of the two images, and the SSIM map.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

from hidiff.registry import METRICS
from hidiff.utils.errors import UserError

WINDOW = 11
"""Side of the Gaussian window of every SSIM here, in pixels."""

SIGMA = 1.5
"""Standard deviation of that window, in pixels."""

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


def check_pair(restored: np.ndarray, target: np.ndarray, *, smallest_side: int = 1) -> None:
    """Make sure that two images can be compared: uint8 RGB arrays (H, W, 3) of one size.

    Args:
        smallest_side: the least height and width that the metric can work with, in pixels.

    Raises:
        UserError: they cannot; the message names the type and shape of both.
    """
    found = f"got restored {_describe(restored)} and target {_describe(target)}"
    if not (_is_image(restored) and _is_image(target)):
        raise UserError(
            f"metrics compare uint8 RGB images of shape (H, W, 3); {found}; "
            "hidiff.data.image reads files so and converts float pixels with to_uint8"
        )
    if restored.shape != target.shape:
        raise UserError(
            f"metrics compare images of one size; {found}; check that the two belong together "
            "and that padding or cropping was undone"
        )
    if min(restored.shape[:2]) < smallest_side:
        raise UserError(
            f"this metric needs images of at least {smallest_side}×{smallest_side} pixels; {found}"
        )


def gaussian_ssim(
    restored: np.ndarray, target: np.ndarray, *, data_range: float
) -> tuple[float, np.ndarray]:
    """Structural similarity (Wang et al., 2004) per channel: its mean, and the map of all pixels.

    11×11 Gaussian window of sigma 1.5, population covariance, K = 0.01 and 0.03. The mean leaves
    out the 5 pixels at each side whose window reaches beyond the image.

    Args:
        restored, target: (H, W, 3) or (H, W).
        data_range: the largest value less the smallest one.
    """
    # Imported late: it takes most of a second, and training may never need it.
    from skimage.metrics import structural_similarity

    # With Gaussian weights scikit-image sizes the window by `sigma`: 11 taps for 1.5.
    mean, similarity = structural_similarity(
        target,
        restored,
        data_range=data_range,
        channel_axis=2 if target.ndim == 3 else None,
        gaussian_weights=True,
        sigma=SIGMA,
        use_sample_covariance=False,
        full=True,
    )
    return float(mean), similarity


def _is_image(image: Any) -> bool:
    return (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
    )


def _describe(image: Any) -> str:
    if not isinstance(image, np.ndarray):
        return f"a {type(image).__name__}"
    return f"{image.dtype} {image.shape}"
