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
