"""What every metric asks of the two images it compares."""

from __future__ import annotations

from typing import Any

import numpy as np

from hidiff.utils.errors import UserError

WINDOW = 11
"""Side of the Gaussian window of every SSIM here, in pixels."""

SIGMA = 1.5
"""Standard deviation of that window, in pixels."""


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
    shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", None)
    if shape is None or dtype is None:
        return f"a {type(image).__name__}"
    return f"{dtype} {tuple(shape)}"
