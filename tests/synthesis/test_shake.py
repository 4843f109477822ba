"""The simulated camera shake, measured on dots and stripes."""

import numpy as np
import pytest

from hidiff.synthesis.motion import smooth_path
from hidiff.synthesis.shake import add_sensor_noise, camera_path, expose, shake
from hidiff.synthesis.tone import linear_to_srgb, srgb_to_linear

SEEDS = range(5)


def random_image(height: int = 40, width: int = 52) -> np.ndarray:
    return np.random.default_rng(9).integers(0, 256, (height, width, 3), dtype=np.uint8)


def path_of(seed: int, size=(161, 161), translation=7.0, rotation=1.0, zoom=0.01) -> np.ndarray:
    return camera_path(
        np.random.default_rng(seed),
        size,
        frames=33,
        translation=translation,
        rotation=rotation,
        zoom=zoom,
    )


def dots(positions: list[tuple[int, int]], size: int = 161) -> np.ndarray:
    """Linear-light image, black but for a bright soft dot at every (x, y)."""
    y, x = np.mgrid[:size, :size]
    image = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / 4.5) for px, py in positions)
    return np.repeat(image[..., None], 3, axis=2).astype(np.float32)


def centre_and_spread(image: np.ndarray, position: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Centre of gravity (x, y) and variance in px² of the light within 18 px of a position."""
    x0, y0 = position[0] - 18, position[1] - 18
    light = image[y0 : y0 + 37, x0 : x0 + 37, 0].astype(np.float64)
    y, x = np.mgrid[y0 : y0 + 37, x0 : x0 + 37]
    centre = np.array([(light * x).sum(), (light * y).sum()]) / light.sum()
    return centre, (light * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2)).sum() / light.sum()


GRID = [(x, y) for x in (24, 80, 136) for y in (24, 80, 136)]


def test_srgb_curve_has_the_standards_values():
    encoded = np.array([0.0, 0.04045, 0.5, 1.0])
    linear = np.array([0.0, 0.0031308, 0.21404114, 1.0])
    np.testing.assert_allclose(srgb_to_linear(encoded), linear, atol=1e-7)
    np.testing.assert_allclose(linear_to_srgb(linear), encoded, atol=1e-6)
    np.testing.assert_allclose(linear_to_srgb(np.array([-0.1, 1.2])), [0.0, 1.0], atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_path_is_centred_smooth_and_of_extent_one(seed):
    path = smooth_path(np.random.default_rng(seed), 65, 2)
    np.testing.assert_allclose(path.mean(axis=0), 0, atol=1e-12)
    distances = np.sqrt(((path[:, None] - path[None]) ** 2).sum(-1))
    assert distances.max() == pytest.approx(1.0)
    speed, acceleration = np.diff(path, axis=0), np.diff(path, n=2, axis=0)
    # In a random walk the steps are independent and this ratio is above 1.
    assert np.abs(acceleration).max() < 0.25 * np.abs(speed).max()


def test_one_frame_stays_at_the_origin():
    np.testing.assert_array_equal(smooth_path(np.random.default_rng(0), 1, 2), [[0, 0]])
    path = camera_path(
        np.random.default_rng(0), (20, 30), frames=1, translation=9.0, rotation=5.0, zoom=0.1
    )
    np.testing.assert_allclose(path, [[[1, 0, 0], [0, 1, 0]]], atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_point_is_displaced_on_average(seed):
    path = path_of(seed, rotation=8.0, zoom=0.1)
    for point in [(0, 0, 1), (160, 0, 1), (31, 77, 1), (160, 160, 1)]:
        seen = path @ np.array(point, float)
        np.testing.assert_allclose(seen.mean(axis=0), point[:2], atol=1e-9)
        assert np.ptp(seen, axis=0).max() > 1


def test_extents_have_the_documented_units():
    seen = path_of(1, translation=7.0, rotation=0, zoom=0) @ np.array([40.0, 90.0, 1.0])
    assert np.linalg.norm(seen[:, None] - seen[None], axis=-1).max() == pytest.approx(7.0)

    turned = path_of(1, translation=0, rotation=2.0, zoom=0)
    degrees = np.rad2deg(np.arctan2(turned[:, 1, 0], turned[:, 0, 0]))
    assert np.ptp(degrees) == pytest.approx(2.0, rel=1e-3)

    zoomed = path_of(1, translation=0, rotation=0, zoom=0.05)
    assert np.ptp(zoomed[:, 0, 0]) == pytest.approx(0.05)
    assert np.abs(zoomed[:, 0, 1]).max() == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_dots_keep_their_place_and_their_light(seed):
    sharp = dots(GRID)
    blurry = expose(sharp, path_of(seed))
    assert blurry.sum() == pytest.approx(sharp.sum(), rel=2e-3)
    for position in GRID:
        centre, _ = centre_and_spread(blurry, position)
        np.testing.assert_allclose(centre, position, atol=0.1)


def test_blur_varies_over_the_image_when_the_camera_turns():
    sharp = dots(GRID)
    before = centre_and_spread(sharp, GRID[0])[1]

    def added_spread(**extents: float) -> np.ndarray:
        blurry = expose(sharp, path_of(3, **extents))
        return np.array([centre_and_spread(blurry, position)[1] - before for position in GRID])

    shifted = added_spread(translation=7.0, rotation=0, zoom=0)
    assert shifted.min() > 2
    assert shifted.max() / shifted.min() < 1.05
    turned = added_spread(translation=7.0, rotation=3.0, zoom=0)
    assert turned.max() / turned.min() > 1.5


def test_light_is_averaged_before_the_gamma_curve():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    rng = np.random.default_rng(2)
    blurry, _ = shake(stripes, rng=rng, strength=2.0, rotation=0, zoom=0)
    # Half the light is 0.5, which sRGB encodes as 188; the mean of the pixel values is 127.5.
    assert blurry.mean() == pytest.approx(188, abs=2)


def test_noise_has_the_stated_variance():
    rng = np.random.default_rng(0)
    flat = np.full((200, 200), 0.25)
    noise = add_sensor_noise(flat, rng, full_well=1000.0, read_noise=10.0) - flat
    # 250 electrons of shot variance and 100 of read variance, in units of the full well.
    assert noise.std() == pytest.approx(np.sqrt(350) / 1000, rel=0.02)
    assert abs(noise.mean()) < 5e-4


def test_shake_depends_on_nothing_but_the_generator():
    image = random_image()
    before = image.copy()
    blurry, sharp = shake(image, rng=np.random.default_rng(4))
    assert (blurry.dtype, blurry.shape) == (np.uint8, image.shape)
    np.testing.assert_array_equal(sharp, before)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(blurry, shake(image, rng=np.random.default_rng(4))[0])
    assert (blurry != shake(image, rng=np.random.default_rng(5))[0]).mean() > 0.5


def test_zero_strength_leaves_only_noise():
    image = random_image()
    error = shake(image, rng=np.random.default_rng(0), strength=0.0)[0] - image.astype(float)
    assert abs(error.mean()) < 0.1
    assert 0 < error.std() < 2
    linear = srgb_to_linear(image / 255.0).astype(np.float32)
    still = path_of(0, image.shape[:2], translation=0, rotation=0, zoom=0)
    np.testing.assert_allclose(expose(linear, still), linear, atol=1e-6)
