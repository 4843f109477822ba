"""What the lens does before the exposure: defocus."""

from __future__ import annotations

import cv2
import numpy as np

SUBPIXELS = 8
"""Points a pixel, along each axis, that the edge of the disc is measured by."""


def disc(radius: float) -> np.ndarray:
    """The image of a point out of focus: (2r + 1, 2r + 1) float32, r rounded up; its sum is 1.

    Args:
        radius: of the disc in pixels, above 0. Each pixel is weighted by the part of it that the
            disc covers.
    """
    reach = int(np.ceil(radius))
    fine = (np.arange((2 * reach + 1) * SUBPIXELS) + 0.5) / SUBPIXELS - reach - 0.5
    covered = (fine[:, None] ** 2 + fine**2 <= radius**2).astype(np.float32)
    side = 2 * reach + 1
    kernel = covered.reshape(side, SUBPIXELS, side, SUBPIXELS).sum(axis=(1, 3))
    return kernel / kernel.sum()


def defocus(linear: np.ndarray, radius: float) -> np.ndarray:
    """Linear light (H, W, 3) float32 as a lens out of focus shows it; mirrored beyond the border.

    Args:
        radius: see `disc`; below half a pixel nothing changes.
    """
    if radius <= 0.5:
        return linear
    return cv2.filter2D(linear, -1, disc(radius), borderType=cv2.BORDER_REFLECT_101)
