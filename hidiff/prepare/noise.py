"""How noisy a photograph is, estimated from itself."""

from __future__ import annotations

import cv2
import numpy as np

BLOCK = 16
"""Side in pixels of the squares that are looked at one by one."""

FLAT = 0.1
"""The part of them, those that vary least, which are taken for flat."""

NOISY = 6.0
"""A photograph of this noise level, in 8-bit values, is not what a network should learn to make."""

_SECOND_DIFFERENCES = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


def noise_level(image: np.ndarray) -> float:
    """The standard deviation of the noise of the brightness, in 8-bit values.

    Immerkær's filter ("Fast Noise Variance Estimation", CVIU 1996) sees no edges that are straight.
    It is applied where the picture varies least and is neither black nor white, so that texture
    counts only if it is everywhere: grass from edge to edge is as irregular as noise.

    Args:
        image: (H, W, 3) RGB uint8 or uint16; of less than `BLOCK` pixels a side nothing is known.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if image.dtype == np.uint16:
        grey = (grey / 257).astype(np.float32)
    rows, columns = (side // BLOCK for side in grey.shape)
    if not rows or not columns:
        return 0.0
    differences = np.abs(cv2.filter2D(grey, cv2.CV_32F, _SECOND_DIFFERENCES))
    variation, brightness = (
        cv2.resize(
            values[: rows * BLOCK, : columns * BLOCK],
            (columns, rows),
            interpolation=cv2.INTER_AREA,
        )
        for values in (differences, grey)
    )
    known = variation[(brightness > 10) & (brightness < 245)]
    if not known.size:
        return 0.0
    # A Gaussian of deviation 1 is √(2/π) on average without its sign; the filter's norm is 6.
    return float(np.quantile(known, FLAT) * np.sqrt(np.pi / 2) / 6)
