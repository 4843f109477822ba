"""Exposure, defocus and moving objects, measured on points and flat areas."""

import cv2
import numpy as np
import pytest

from hidiff.synthesis.exposure import Box, MovingObject, expose
from hidiff.synthesis.motion import (
    INSTANTS,
    ExposureSamples,
    camera_homographies,
    exposure_samples,
    object_homographies,
    source_points,
)
from hidiff.synthesis.optics import defocus, disc
from hidiff.synthesis.scene import random_shape

SIDE = 161
WHOLE = Box(0, 0, SIDE, SIDE)
CORNER = Box(1000, 60, SIDE, SIDE)
"""A part of a picture of 1280×720 pixels, far from its middle."""

GRID = [(x, y) for x in (30, 80, 130) for y in (30, 80, 130)]


def dots() -> np.ndarray:
    """Linear-light image, black but for a soft dot at every (x, y) of the grid."""
    y, x = np.mgrid[:SIDE, :SIDE]
    image = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / 4.5) for px, py in GRID)
    return np.repeat(image[..., None], 3, axis=2).astype(np.float32)


def centroid(image: np.ndarray, position: tuple[int, int], reach: int = 22) -> np.ndarray:
    """(x, y) of the centre of the light around a position."""
    x, y = position
    light = image[y - reach : y + reach + 1, x - reach : x + reach + 1, 0].astype(np.float64)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum() + position


def shaken(seed: int) -> ExposureSamples:
    path = camera_homographies(
        np.random.default_rng(seed),
        (720, 1280),
        focal=0.8,
        extent=14.0,
        roll=2.0,
        zoom=0.02,
        tremor=1.0,
    )
    return exposure_samples((path,), (CORNER.corners,), 1.0)


def still() -> np.ndarray:
    return np.eye(3)[None].repeat(INSTANTS, 0)


@pytest.mark.parametrize("seed", range(4))
def test_shake_keeps_the_light_and_its_centre(seed):
    sharp = dots()
    blurry = expose(sharp, shaken(seed), CORNER, CORNER)
    assert blurry.max() < 0.8 * sharp.max()
    for position in GRID:
        np.testing.assert_allclose(centroid(blurry, position), position, atol=0.1)
        box = (
            slice(position[1] - 22, position[1] + 23),
            slice(position[0] - 22, position[0] + 23),
        )
        assert blurry[box].sum() == pytest.approx(sharp[box].sum(), rel=5e-3)


def test_samples_join_without_a_trace():
    y, x = np.mgrid[:SIDE, :SIDE]
    picture = 0.5 + 0.25 * np.sin(x / 5) + 0.25 * np.cos(y / 7)
    picture = np.repeat(picture[..., None], 3, axis=2).astype(np.float32)
    path = camera_homographies(
        np.random.default_rng(8), (SIDE, SIDE),
        focal=1.0, extent=12.0, roll=1.0, zoom=0.0, tremor=1.0,
    )  # fmt: skip
    every = ExposureSamples(np.full(INSTANTS, 1 / INSTANTS), (path,))
    few = exposure_samples((path,), (WHOLE.corners,), 1.0)
    assert len(few.weights) < INSTANTS / 3
    error = expose(picture, few, WHOLE, WHOLE) - expose(picture, every, WHOLE, WHOLE)
    assert np.abs(error).max() < 5e-3


def test_a_box_is_the_same_part_of_the_whole():
    picture = np.random.default_rng(0).random((SIDE, SIDE, 3), np.float32)
    whole = expose(picture, shaken(1), CORNER, CORNER)
    source, target = Box(1030, 80, 100, 110), Box(1060, 110, 40, 48)
    part = expose(picture[20:130, 30:130], shaken(1), source, target)
    np.testing.assert_allclose(part, whole[50:98, 60:100], atol=2e-3)


def moving(seed: int, extent: float) -> tuple[ExposureSamples, MovingObject]:
    rng = np.random.default_rng(seed)
    shape = random_shape(rng, (80.0, 80.0), 30.0, 1.0)
    own = object_homographies(rng, (80.0, 80.0), extent=extent, turn=0.0, tremor=0.0)
    return exposure_samples((still(), own), (WHOLE.corners, shape.box.corners), 1.0), shape


def test_only_the_object_moves():
    picture = np.random.default_rng(1).random((SIDE, SIDE, 3), np.float32)
    exposure, shape = moving(3, 10.0)
    blurry = expose(picture, exposure, WHOLE, WHOLE, shape)
    mask = np.zeros((SIDE, SIDE), np.float32)
    box = shape.box
    rows = slice(box.top, box.top + box.height)
    columns = slice(box.left, box.left + box.width)
    mask[rows, columns] = shape.mask
    inside = cv2.erode(mask, np.ones((13, 13))) == 1
    outside = cv2.dilate(mask, np.ones((15, 15))) == 0
    assert min(inside.sum(), outside.sum()) > 500
    np.testing.assert_allclose(blurry[outside], picture[outside], atol=2e-5)
    # Where the object covers all the time, it is the picture moved along the object's path.
    alone = expose(picture, ExposureSamples(exposure.weights, exposure.paths[1:]), WHOLE, WHOLE)
    np.testing.assert_allclose(blurry[inside], alone[inside], atol=1e-4)
    assert np.abs(blurry[inside] - picture[inside]).mean() > 0.1


def test_an_object_changes_no_flat_area_and_centres_its_points():
    flat = np.full((SIDE, SIDE, 3), 0.7, np.float32)
    exposure, shape = moving(4, 16.0)
    np.testing.assert_allclose(expose(flat, exposure, WHOLE, WHOLE, shape), flat, rtol=1e-4)
    point = np.array([[80.0, 80.0]])
    path = exposure.weights[:, None] * source_points(exposure.paths[1], point)[:, 0]
    np.testing.assert_allclose(path.sum(axis=0), point[0], atol=1e-6)


@pytest.mark.parametrize("radius", [0.7, 1.5, 3.2])
def test_defocus_is_a_disc_that_keeps_light_and_place(radius):
    kernel = disc(radius)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    # How much of each pixel the disc covers, by many points.
    reach = len(kernel) // 2
    fine = np.linspace(-reach - 0.5, reach + 0.5, 101 * len(kernel) + 1)[:-1] + 0.5 / 101
    covered = np.hypot(fine[:, None], fine) <= radius
    shares = covered.reshape(len(kernel), 101, len(kernel), 101).mean(axis=(1, 3))
    np.testing.assert_allclose(kernel, shares / (np.pi * radius**2), atol=0.02)
    sharp = dots()
    blurry = defocus(sharp, radius)
    assert blurry.sum() == pytest.approx(sharp.sum(), rel=1e-4)
    for position in GRID:
        np.testing.assert_allclose(centroid(blurry, position), position, atol=0.01)


def test_a_small_defocus_is_none():
    picture = dots()
    assert defocus(picture, 0.5) is picture
