"""Moving objects: random shapes with a soft edge."""

from __future__ import annotations

import cv2
import numpy as np

from hidiff.synthesis.exposure import MovingObject, enclosing

HARMONICS = 5
"""Cosines in the radius of a shape."""

_FRACTION_BITS = 4


def random_shape(
    rng: np.random.Generator, centre: tuple[float, float], radius: float, edge: float
) -> MovingObject:
    """A smooth closed shape: its radius over the angle is a few random cosines.

    Args:
        centre: (x, y) in the picture, pixels.
        radius: mean radius in pixels.
        edge: standard deviation of the Gaussian that softens the edge, in pixels.
    """
    angles = np.linspace(0, 2 * np.pi, 128, endpoint=False)
    k = np.arange(1, HARMONICS + 1)[:, None]
    phases = rng.uniform(0, 2 * np.pi, (HARMONICS, 1))
    sizes = rng.uniform(0, 0.5, (HARMONICS, 1)) / k
    # Longer than wide or the reverse, as people and cars are.
    stretch = np.exp(rng.uniform(-0.5, 0.5))
    radii = radius * np.maximum(1 + (sizes * np.cos(k * angles + phases)).sum(axis=0), 0.2)
    outline = np.stack([stretch * np.cos(angles), np.sin(angles) / stretch], axis=1)
    outline = outline * radii[:, None] + centre

    box = enclosing(outline, int(np.ceil(3 * edge)) + 2)
    mask = np.zeros(box.size, np.uint8)
    points = np.rint((outline - (box.left, box.top)) * 2**_FRACTION_BITS).astype(np.int32)
    cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, _FRACTION_BITS)
    soft = mask.astype(np.float32) / 255
    return MovingObject(cv2.GaussianBlur(soft, (0, 0), edge) if edge > 0 else soft, box)
