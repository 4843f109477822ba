"""Protocol 'matlab': SSIM as MATLAB's `ssim` gives it for an RGB array, here without MATLAB."""

from __future__ import annotations

import cv2
import numpy as np

from hidiff.metrics.basicsr import SIGMA, WINDOW, check_pair

_RADIUS = WINDOW // 2
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

# The arithmetic runs over strips of this many rows: few enough that a strip's arrays stay in the
# processor's cache, enough that the rows filtered twice (2 · _RADIUS per strip) cost little.
_STRIP_ROWS = 64


def _channel_mix(window: np.ndarray) -> np.ndarray:
    """The window's effect along the channel axis, as a matrix. (3, 3)

    With replicated edges every tap outside the three channels reads the first or the last one.
    """
    mix = np.zeros((3, 3))
    for channel in range(3):
        taps = np.clip(np.arange(channel - _RADIUS, channel + _RADIUS + 1), 0, 2)
        np.add.at(mix[channel], taps, window)
    return mix


# The normalised Gaussian window of one axis. (11,)
_WINDOW_1D = np.exp(-(np.arange(-_RADIUS, _RADIUS + 1) ** 2) / (2 * SIGMA**2))
_WINDOW_1D /= _WINDOW_1D.sum()
_CHANNEL_MIX = _channel_mix(_WINDOW_1D)


def ssim_volume(restored: np.ndarray, target: np.ndarray) -> float:
    """SSIM of two RGB images taken as volumes of height × width × channel.

    MATLAB's `ssim` reads an (H, W, 3) array as a volume: 11×11×11 Gaussian window of sigma 1.5,
    edges replicated in all three axes, mean over every voxel, K = 0.01 and 0.03, L = 255. These
    are the SSIM values of the GoPro and HIDE columns of Table 2; they come out higher than
    per-channel ones (about 0.03 on GoPro).

    Args:
        restored, target: uint8 RGB (H, W, 3).

    Returns:
        Mean SSIM, at most 1.

    Raises:
        UserError: the images are not uint8 RGB of one size.
    """
    check_pair(restored, target)
    height = restored.shape[0]
    total = 0.0
    for top in range(0, height, _STRIP_ROWS):
        bottom = min(top + _STRIP_ROWS, height)
        first, last = max(top - _RADIUS, 0), min(bottom + _RADIUS, height)
        inner = slice(top - first, bottom - first)
        total += _ssim_sum(restored[first:last], target[first:last], inner)
    return total / restored.size


def _ssim_sum(restored: np.ndarray, target: np.ndarray, inner: slice) -> float:
    """Sum of the SSIM map over the rows `inner` of a strip that holds their neighbours too."""
    # float64: in float32 E[x²] − E[x]² loses the digits that flat regions are judged by.
    x, y = restored.astype(np.float64), target.astype(np.float64)
    mean_x, mean_y, mean_xy = _smooth(x, inner), _smooth(y, inner), _smooth(x * y, inner)
    # SSIM needs the two variances only as their sum: one filter instead of two.
    mean_squares = _smooth(x * x + y * y, inner)
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    similarity = (2 * product + _C1) * (2 * (mean_xy - product) + _C2)
    similarity /= (squares + _C1) * (mean_squares - squares + _C2)
    return float(similarity.sum())


def _smooth(volume: np.ndarray, inner: slice) -> np.ndarray:
    """The rows `inner` of a float64 (rows, W, 3) strip under the Gaussian of all three axes."""
    smooth = cv2.sepFilter2D(
        volume, cv2.CV_64F, _WINDOW_1D, _WINDOW_1D, borderType=cv2.BORDER_REPLICATE
    )
    return cv2.transform(smooth[inner], _CHANNEL_MIX)
