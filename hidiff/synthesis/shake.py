"""Simple camera shake: a blurry 8-bit photograph from a sharp one, as the quickstart's data has it.

While the shutter is open the camera drifts and trembles: it shifts, turns a little about some point
of the picture and moves slightly back or forth. The photograph is warped along that path, the
frames are averaged in linear light, which is what a sensor does, and noise, the sRGB curve and
rounding to 8 bits follow. Turning and zooming move some parts of the picture further than others,
so the blur differs from place to place. The path is centred: every point's mean displacement is
zero, so that blurry and sharp image lie on top of each other.

All randomness comes in as a `numpy.random.Generator`; the same generator state gives the same
pixels.
"""

from __future__ import annotations

import cv2
import numpy as np

from hidiff.synthesis.motion import smooth_path
from hidiff.synthesis.tone import linear_to_srgb, srgb_to_linear


def camera_path(
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    frames: int,
    translation: float,
    rotation: float,
    zoom: float,
) -> np.ndarray:
    """The camera's random motion during one exposure, as one affine map per frame.

    Args:
        size: (height, width) of the image in pixels. The point about which the camera turns and
            zooms is drawn from the middle half of the image in both directions.
        frames: how many moments of the exposure, 1 or more.
        translation: distance between the two furthest positions of the shift, in pixels.
        rotation: difference between the largest and the smallest angle, in degrees.
        zoom: difference between the largest and the smallest magnification; 0.01 is one per cent.

    Returns:
        (frames, 2, 3) float64. `path[t] @ (x, y, 1)` is the point of the sharp image that pixel
        (x, y) sees at moment t. The mean over the frames is the identity, so no point is displaced
        on average.
    """
    height, width = size
    shift = translation * smooth_path(rng, frames, 2)
    angle = np.deg2rad(rotation) * smooth_path(rng, frames, 1)[:, 0]
    scale = 1.0 + zoom * smooth_path(rng, frames, 1)[:, 0]
    pivot = np.array([width - 1, height - 1]) * rng.uniform(0.25, 0.75, 2)

    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.stack([cosine, -sine, sine, cosine], axis=-1).reshape(frames, 2, 2)
    path = np.concatenate([linear, (pivot - linear @ pivot + shift)[..., None]], axis=-1)
    # The mean of cos(angle) is a little below 1: without this the blurry image would be magnified.
    return path - path.mean(axis=0) + np.eye(2, 3)


def expose(linear: np.ndarray, path: np.ndarray) -> np.ndarray:
    """What a sensor collects while the camera moves: the mean of the image warped along the path.

    Args:
        linear: (H, W, 3) float32, linear light in [0, 1]; mirrored beyond its border.
        path: (frames, 2, 3) from `camera_path`.

    Returns:
        (H, W, 3) float32. Cubic interpolation may leave [0, 1] slightly at hard edges.
    """
    height, width = linear.shape[:2]
    total = np.zeros(linear.shape, np.float64)
    for matrix in path:
        total += cv2.warpAffine(
            linear,
            matrix,
            (width, height),
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
    return (total / len(path)).astype(np.float32)


def add_sensor_noise(
    linear: np.ndarray,
    rng: np.random.Generator,
    *,
    full_well: float = 10_000.0,
    read_noise: float = 4.0,
) -> np.ndarray:
    """Add shot noise (variance equal to the collected charge) and read noise, both as Gaussians.

    Args:
        linear: linear light, any shape; 1.0 fills a pixel.
        full_well: charge of a full pixel, in electrons; fewer make the image noisier.
        read_noise: standard deviation in electrons.
    """
    variance = np.maximum(linear, 0.0) / full_well + (read_noise / full_well) ** 2
    return linear + np.sqrt(variance) * rng.standard_normal(linear.shape)


def shake(
    image: np.ndarray,
    *,
    rng: np.random.Generator,
    strength: float = 1.0,
    frames: int = 33,
    translation: float = 7.0,
    rotation: float = 1.0,
    zoom: float = 0.01,
) -> tuple[np.ndarray, np.ndarray]:
    """A blurry and noisy version of a sharp photograph, and the sharp one itself.

    Args:
        image: (H, W, 3) uint8, sRGB.
        strength: multiplies the three extents below; 0 leaves only noise.
        frames: moments averaged; 33 leave no visible steps up to an extent of about 30 pixels.
        translation: extent of the shift in pixels.
        rotation: extent of the turning in degrees.
        zoom: extent of the magnification; 0.01 is one per cent.

    Returns:
        (blurry, sharp), both (H, W, 3) uint8, sRGB, aligned with each other.
    """
    path = camera_path(
        rng,
        image.shape[:2],
        frames=frames,
        translation=strength * translation,
        rotation=strength * rotation,
        zoom=strength * zoom,
    )
    linear = srgb_to_linear(image / 255.0).astype(np.float32)
    noisy = add_sensor_noise(expose(linear, path), rng)
    return np.rint(linear_to_srgb(noisy) * 255.0).astype(np.uint8), image.copy()
