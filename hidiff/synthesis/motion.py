"""Random motion during one exposure: smooth paths, and the camera's path as homographies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TREMOR_HARMONICS = 4
"""Cosines in the speed of a path; the fastest turns back this many times during the exposure."""

INSTANTS = 129
"""Evenly spaced times at which a motion is calculated; `exposure_samples` joins neighbours."""


def smooth_path(
    rng: np.random.Generator, frames: int, dimensions: int, tremor: float = 1.0
) -> np.ndarray:
    """A random smooth path around the origin, of extent 1.

    Its velocity is a random constant (the drift) plus a few cosines whose amplitude falls as 1/k
    (the tremor). The path is that velocity integrated in closed form.

    Args:
        tremor: factor on the tremor; 0 leaves a straight path of constant speed.

    Returns:
        (frames, dimensions) float64 positions at evenly spaced times. Their mean is zero, and the
        two furthest apart are at distance 1. One frame alone stays at the origin.
    """
    time = (np.arange(frames)[:, None] + 0.5) / frames
    k = np.arange(1, TREMOR_HARMONICS + 1)
    drift = rng.standard_normal(dimensions)
    cosines = tremor * rng.standard_normal((TREMOR_HARMONICS, dimensions)) / k[:, None]
    # The integral of cos(πkt) is sin(πkt)/(πk).
    path = time * drift + np.sin(np.pi * k * time) / (np.pi * k) @ cosines
    path -= path.mean(axis=0)
    if dimensions == 1:
        extent = np.ptp(path)
    else:
        extent = np.linalg.norm(path[:, None] - path[None], axis=-1).max()
    return path / extent if extent > 0 else path


def centred(path: np.ndarray) -> np.ndarray:
    """Where pixels look while points move along a path: (T, 3, 3), the inverse of each homography.

    The path is first shifted so that its mean is the identity: the middle of the exposure is the
    centroid of the light that a point leaves, and there the target shows it. The position at half
    the time would be an alternative, but nothing in a blurry picture tells where on its streak a
    point was at that time.
    """
    return np.linalg.inv(path - path.mean(axis=0) + np.eye(3))


def camera_homographies(
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    focal: float,
    extent: float,
    roll: float,
    zoom: float,
    tremor: float,
) -> np.ndarray:
    """The random motion of a hand-held camera during one exposure.

    The camera turns about its three axes, shifts and moves back or forth. Turning up and sideways
    moves the corners of the picture further than its middle, by an amount that depends on the focal
    length; rolling and moving forth leave the middle where it is.

    Args:
        size: (height, width) of the whole picture in pixels; its middle is on the optical axis.
        focal: focal length in units of the picture's longer side; 28 mm on 35 mm film is 0.78.
        extent: distance in pixels between the two furthest positions of the middle; a random part
            of it comes from turning, the rest from shifting.
        roll: difference between the largest and the smallest angle about the axis, in degrees.
        zoom: difference between the largest and the smallest magnification; 0.01 is one per cent.
        tremor: see `smooth_path`.

    Returns:
        (INSTANTS, 3, 3) float64, `centred`: from pixels to the points of the sharp picture that
        they see at each time, in homogeneous coordinates.
    """
    height, width = size
    length = focal * max(size)
    # Turning and shifting follow one path, so that their extents add up.
    shift = extent * smooth_path(rng, INSTANTS, 2, tremor)
    angle = np.deg2rad(roll) * smooth_path(rng, INSTANTS, 1, tremor)[:, 0]
    scale = 1.0 + zoom * smooth_path(rng, INSTANTS, 1, tremor)[:, 0]
    turning = rng.uniform()

    yaw, pitch = (turning * shift / length).T
    matrices = _rotation(0, 1, angle) @ _rotation(0, 2, yaw) @ _rotation(1, 2, pitch)
    matrices[:, :2] *= scale[:, None, None]
    matrices[:, :2, 2] += (1 - turning) * shift / length
    # From pixels to rays of the camera at rest, to those of the moved one, and back.
    to_pixels = np.array([[length, 0, (width - 1) / 2], [0, length, (height - 1) / 2], [0, 0, 1]])
    path = to_pixels @ matrices @ np.linalg.inv(to_pixels)
    return centred(path / path[:, 2:, 2:])


def _rotation(first: int, second: int, angles: np.ndarray) -> np.ndarray:
    """(T, 3, 3) rotations in the plane of two axes."""
    matrices = np.tile(np.eye(3), (len(angles), 1, 1))
    matrices[:, first, first] = matrices[:, second, second] = np.cos(angles)
    matrices[:, first, second] = np.sin(angles)
    matrices[:, second, first] = -np.sin(angles)
    return matrices


def object_homographies(
    rng: np.random.Generator,
    centre: tuple[float, float],
    *,
    extent: float,
    turn: float,
    tremor: float,
) -> np.ndarray:
    """The motion of an object of its own: a shift and a turn about its centre.

    Args:
        centre: (x, y) of the object in the picture, pixels.
        extent: distance in pixels between the two furthest positions.
        turn: difference between the largest and the smallest angle, in degrees.
        tremor: see `smooth_path`.

    Returns:
        (INSTANTS, 3, 3), `centred`, as of `camera_homographies`.
    """
    path = _rotation(0, 1, np.deg2rad(turn) * smooth_path(rng, INSTANTS, 1, tremor)[:, 0])
    path[:, :2, 2] = centre - path[:, :2, :2] @ centre
    path[:, :2, 2] += extent * smooth_path(rng, INSTANTS, 2, tremor)
    return centred(path)


def source_points(path: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Where the points (P, 2) of a moving picture come from: (T, P, 2) in the sharp one."""
    rays = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ path.swapaxes(-1, -2)
    return rays[..., :2] / rays[..., 2:]


@dataclass(frozen=True)
class ExposureSamples:
    """The moments of an exposure whose weighted mean is the blurry picture.

    Attributes:
        weights: (N,) parts of the exposure time, 1 in all.
        paths: the homographies (N, 3, 3) of the camera and, where one moves, of the object.
    """

    weights: np.ndarray
    paths: tuple[np.ndarray, ...]


def exposure_samples(
    paths: tuple[np.ndarray, ...], points: tuple[np.ndarray, ...], step: float
) -> ExposureSamples:
    """As few samples as leave no visible steps: nothing moves much further than `step` in between.

    Where the motion is slow, one sample stands for a longer time.

    Args:
        paths: of the camera and the object, (INSTANTS, 3, 3) each.
        points: for each path the points (P, 2) whose motion counts, such as the corners.
        step: pixels.

    Returns:
        Samples whose weighted mean is exactly that of the paths.
    """
    moved = [
        np.linalg.norm(np.diff(source_points(path, corners), axis=0), axis=-1).max(axis=1)
        for path, corners in zip(paths, points, strict=True)
    ]
    way = np.concatenate([[0.0], np.cumsum(np.max(moved, axis=0))])
    count = max(int(np.ceil(way[-1] / step)), 1)
    bins = np.minimum((way / max(way[-1], 1e-9) * count).astype(int), count - 1)
    _, starts, lengths = np.unique(bins, return_index=True, return_counts=True)
    joined = (np.add.reduceat(path, starts) / lengths[:, None, None] for path in paths)
    return ExposureSamples(lengths / len(bins), tuple(joined))
