"""Random motion: units, centring, and the samples that stand for it."""

import numpy as np
import pytest

from hidiff.synthesis.exposure import Box
from hidiff.synthesis.motion import (
    INSTANTS,
    camera_homographies,
    exposure_samples,
    object_homographies,
    smooth_path,
    source_points,
)

SIZE = (720, 1280)
MIDDLE = np.array([[639.5, 359.5]])
CORNERS = Box(0, 0, 1280, 720).corners


def camera(seed: int, **changes: float) -> np.ndarray:
    strengths = {"focal": 1.0, "extent": 20.0, "roll": 0.0, "zoom": 0.0, "tremor": 1.0} | changes
    return camera_homographies(np.random.default_rng(seed), SIZE, **strengths)


def extent(path: np.ndarray, point: np.ndarray) -> float:
    """Distance between the two furthest positions of a point (1, 2)."""
    where = moved(path, point)[:, 0]
    return np.linalg.norm(where[:, None] - where[None], axis=-1).max()


def moved(path: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Where points (P, 2) of the sharp picture are at each time, (T, P, 2)."""
    return source_points(np.linalg.inv(path), points)


def test_a_path_without_tremor_is_straight_and_of_constant_speed():
    steps = np.diff(smooth_path(np.random.default_rng(1), 20, 2, tremor=0.0), axis=0)
    np.testing.assert_allclose(steps, steps[:1].repeat(19, 0), atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_extent_is_that_of_the_middle_in_pixels(seed):
    assert extent(camera(seed), MIDDLE) == pytest.approx(20, rel=0.01)


def test_roll_and_zoom_leave_the_middle_and_move_the_corners():
    rolled = camera(0, extent=1e-9, roll=2.0)
    assert extent(rolled, MIDDLE) < 1e-6
    radius = np.linalg.norm(CORNERS[:1] - MIDDLE)
    assert extent(rolled, CORNERS[:1]) == pytest.approx(np.deg2rad(2.0) * radius, rel=1e-3)
    zoomed = camera(0, extent=1e-9, zoom=0.02)
    assert extent(zoomed, MIDDLE) < 1e-6
    assert extent(zoomed, CORNERS[:1]) == pytest.approx(0.02 * radius, rel=1e-3)


def test_turning_moves_the_border_further_the_shorter_the_focal_length():
    # At a distance x from the axis, a turn moves by 1 + (x / focal)² times that of the middle.
    side = np.array([[1279.0, 359.5]])
    ratios = {
        focal: max(
            extent(path, side) / extent(path, MIDDLE)
            for path in (camera(seed, focal=focal, tremor=0.0) for seed in range(12))
        )
        for focal in (0.7, 4.0)
    }
    assert 1.2 < ratios[0.7] < 1 + (0.5 / 0.7) ** 2 + 0.01
    assert ratios[4.0] < 1.02


@pytest.mark.parametrize("seed", range(4))
def test_no_point_is_displaced_on_average(seed):
    path = camera(seed, roll=1.0, zoom=0.01, extent=28.0, focal=0.7)
    np.testing.assert_allclose(moved(path, CORNERS).mean(axis=0), CORNERS, atol=0.1)
    centre = (300.0, 200.0)
    own = object_homographies(np.random.default_rng(seed), centre, extent=9.0, turn=5.0, tremor=0.5)
    np.testing.assert_allclose(moved(own, CORNERS).mean(axis=0), CORNERS, atol=1e-9)
    assert extent(own, np.array([centre])) == pytest.approx(9.0, rel=0.01)


@pytest.mark.parametrize("step", [0.5, 1.0, 2.0])
def test_samples_are_few_close_and_keep_the_mean(step):
    path = camera(3, roll=1.0)
    chosen = exposure_samples((path,), (CORNERS,), step)
    assert chosen.weights.sum() == pytest.approx(1)
    mean = (chosen.weights[:, None, None] * chosen.paths[0]).sum(axis=0)
    np.testing.assert_allclose(mean, path.mean(axis=0), atol=1e-12)
    steps = np.linalg.norm(np.diff(source_points(chosen.paths[0], CORNERS), axis=0), axis=-1).max(
        axis=1
    )
    fine = np.linalg.norm(np.diff(source_points(path, CORNERS), axis=0), axis=-1).max(axis=1)
    # A bin is a step long and ends at an instant.
    assert steps.max() < step + fine.max()
    assert len(steps) <= fine.sum() / step


def test_no_motion_is_one_moment():
    still = np.eye(3)[None].repeat(INSTANTS, 0)
    chosen = exposure_samples((still,), (CORNERS,), 1.0)
    np.testing.assert_array_equal(chosen.weights, [1.0])
    np.testing.assert_allclose(chosen.paths[0], np.eye(3)[None])
