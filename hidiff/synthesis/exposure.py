"""What a sensor collects during an exposure: the mean of the moving picture in linear light."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from hidiff.synthesis.motion import ExposureSamples, source_points


@dataclass(frozen=True)
class Box:
    """A rectangle of a picture, in whole pixels; it may reach beyond the picture."""

    left: int
    top: int
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def corners(self) -> np.ndarray:
        """(4, 2) positions (x, y) of the four corner pixels."""
        x = (self.left, self.left + self.width - 1)
        y = (self.top, self.top + self.height - 1)
        return np.array([(x[i], y[j]) for i in (0, 1) for j in (0, 1)], float)

    def grown(self, margin: int) -> Box:
        """The box with a margin around it."""
        sides = self.width + 2 * margin, self.height + 2 * margin
        return Box(self.left - margin, self.top - margin, *sides)

    def within(self, other: Box) -> Box:
        """The common part of two boxes; width or height is below 1 where there is none."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        right = min(self.left + self.width, other.left + other.width)
        bottom = min(self.top + self.height, other.top + other.height)
        return Box(left, top, right - left, bottom - top)


def enclosing(points: np.ndarray, margin: int = 0) -> Box:
    """The smallest box that has the points (P, 2) and a margin within it."""
    left, top = np.floor(points.min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(points.max(axis=0)).astype(int).tolist()
    return Box(left, top, right - left + 1, bottom - top + 1).grown(margin)


def warp(
    image: np.ndarray,
    matrix: np.ndarray,
    source: Box,
    target: Box,
    border: int = cv2.BORDER_REFLECT_101,
) -> np.ndarray:
    """A box of the picture as it is seen through a homography.

    Interpolation is linear: unlike cubic it never leaves the range of the values, which bright
    lights would make dark rings with, and it keeps their sum.

    Args:
        image: (H, W, C) float32, the pixels of `source`.
        matrix: (3, 3), from points of `target` to points of the picture.
        source, target: boxes of the picture.
        border: what lies outside `source`; mirrored by default.

    Returns:
        The pixels of `target`.
    """
    shifted = _shift(-source.left, -source.top) @ matrix @ _shift(target.left, target.top)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(
        image, shifted, (target.width, target.height), flags=flags, borderMode=border
    )


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class MovingObject:
    """A part of the picture that moves on its own over the rest of it.

    Attributes:
        mask: (h, w) float32 in [0, 1], how much of each pixel belongs to it, 0 at the border.
        box: where the mask lies in the picture.
    """

    mask: np.ndarray
    box: Box


def expose(
    image: np.ndarray,
    samples: ExposureSamples,
    source: Box,
    target: Box,
    moving_object: MovingObject | None = None,
) -> np.ndarray:
    """The mean of the picture over the samples of an exposure, in linear light.

    A moving object hides what it passes over. What it uncovers is filled with its own pixels at
    rest, as one picture shows nothing else there.

    Args:
        image: (H, W, 3) float32, linear light of `source`.
        samples: with the camera's path, and that of the object as the camera sees it.
        source, target: boxes of the picture.
        moving_object: the object, if there is one.

    Returns:
        The pixels of `target`, float32.
    """
    total = np.zeros((*target.size, 3), np.float32)
    for number, weight in enumerate(samples.weights):
        frame = warp(image, samples.paths[0][number], source, target)
        if moving_object is not None:
            _cover(frame, image, samples.paths[1][number], source, target, moving_object)
        cv2.scaleAdd(frame, float(weight), total, total)
    return total


def _cover(
    frame: np.ndarray,
    image: np.ndarray,
    matrix: np.ndarray,
    source: Box,
    target: Box,
    moving_object: MovingObject,
) -> None:
    """Put an object over a frame of `target`, in place."""
    # Where its corners are seen; the matrix goes the other way.
    corners = source_points(np.linalg.inv(matrix)[None], moving_object.box.corners)[0]
    place = enclosing(corners, 1).within(target)
    if place.width <= 0 or place.height <= 0:
        return
    mask = warp(moving_object.mask, matrix, moving_object.box, place, cv2.BORDER_CONSTANT)
    rows = slice(place.top - target.top, place.top - target.top + place.height)
    columns = slice(place.left - target.left, place.left - target.left + place.width)
    layer, below = warp(image, matrix, source, place), frame[rows, columns]
    frame[rows, columns] = cv2.blendLinear(layer, below, mask, 1 - mask)
