"""The camera: highlights, noise over intensity, colours, mosaic and JPEG."""

import numpy as np
import pytest

from hidiff.synthesis.camera import (
    Camera,
    Noise,
    camera_matrix,
    jpeg,
    reconstruct_highlights,
)
from hidiff.synthesis.tone import contrast, decoding_table, encode, linear_to_srgb

EVERY_VALUE = np.arange(256, dtype=np.uint8).reshape(16, 16)


def smooth_picture(height: int = 48, width: int = 64) -> np.ndarray:
    """Linear light of muted colours without fine detail."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + k) + np.cos(y / 7 + 2 * k) for k in range(3)]
    return (0.35 + 0.08 * np.stack(waves, axis=2)).astype(np.float32)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_8_bit_values_come_back_from_linear_light(strength):
    linear = decoding_table(strength)[EVERY_VALUE]
    np.testing.assert_array_equal(encode(linear, strength), EVERY_VALUE)


def test_encoding_is_the_srgb_curve_and_full_contrast_is_brooks():
    linear = np.linspace(0, 1, 1001, dtype=np.float32)
    encoded = linear_to_srgb(linear)
    assert np.abs(encode(linear, 0.0) - 255 * encoded).max() < 0.55
    np.testing.assert_allclose(contrast(encoded, 1.0), 3 * encoded**2 - 2 * encoded**3, atol=1e-6)


def test_highlights_alone_become_brighter_than_white():
    linear = np.random.default_rng(0).random((40, 40, 3), np.float32)
    linear[:4] = 1.0
    boosted = reconstruct_highlights(linear, 2.0)
    np.testing.assert_allclose(boosted[:4], 3.0)
    dark = linear.max(axis=2) <= 0.9
    assert 100 < dark.sum() < 1500
    np.testing.assert_array_equal(boosted[dark], linear[dark])
    assert (boosted >= linear).all()
    # The order of brightness stays, and with it every edge.
    ramp = np.linspace(0, 1, 200, dtype=np.float32)[:, None, None].repeat(3, 2)
    assert (np.diff(reconstruct_highlights(ramp, 2.0)[:, 0, 0]) > 0).all()


def test_a_bright_light_leaves_a_streak_that_clipping_alone_would_not():
    line = np.full((1, 31, 3), 0.05, np.float32)
    line[:, 15] = 1.0
    kernel = np.ones(9) / 9
    streaks = [
        Camera().develop(np.apply_along_axis(np.convolve, 1, lights, kernel, "same"))[0, 15, 0]
        for lights in (line, reconstruct_highlights(line, 3.0))
    ]
    assert streaks[1] > 1.5 * streaks[0]


@pytest.mark.parametrize(("shot", "read"), [(1e-3, 1e-6), (1e-2, 1e-4), (1e-5, 1e-9)])
def test_noise_variance_rises_with_intensity(shot, read):
    rng = np.random.default_rng(5)
    # From a few electrons, where the distribution is Poisson's, to a full pixel.
    for value in (0.0, 0.5 * shot, 5 * shot, 0.1, 0.4, 0.9):
        raw = np.full((200, 200), value, np.float32)
        noise = Noise(shot, read).add(raw, rng).astype(np.float64) - value
        variance = shot * value + read
        assert noise.var() == pytest.approx(variance, rel=0.04)
        assert abs(noise.mean()) < 4 * np.sqrt(variance / raw.size)


def test_camera_colours_keep_white_and_come_back():
    for weights in (*np.eye(4), np.full(4, 0.25)):
        matrix = camera_matrix(weights)
        np.testing.assert_allclose(matrix @ np.ones(3), 1)
        camera = Camera(matrix=matrix, gains=(2.2, 1.0, 1.7))
        linear = smooth_picture()
        difference = camera.develop(linear).astype(int) - Camera().develop(linear)
        assert np.abs(difference).max() <= 1


def test_what_is_full_stays_white_whatever_the_gains():
    camera = Camera(matrix=camera_matrix(np.eye(4)[1]), gains=(2.4, 1.0, 1.9), mosaic=True)
    assert (camera.develop(np.full((12, 12, 3), 3.0, np.float32)) == 255).all()


def test_noise_of_the_raw_values_grows_with_the_white_balance():
    noise, grey = Noise(1e-3, 1e-6), np.full((128, 128, 3), 0.2, np.float32)

    def deviations(gains: tuple[float, float, float]) -> np.ndarray:
        rng = np.random.default_rng(2)
        return Camera(gains=gains).develop(grey, noise, rng).std(axis=(0, 1))

    red, green, blue = deviations((2.25, 1.0, 1.0)) / deviations((1.0, 1.0, 1.0))
    # A gain g takes 1/g of the electrons: the deviation relative to the signal is √g times.
    assert red == pytest.approx(1.5, rel=0.05)
    assert (green, blue) == pytest.approx((1, 1), rel=0.05)


def test_a_mosaic_loses_nothing_of_smooth_colours():
    linear = smooth_picture()
    plain = Camera(gains=(2.0, 1.0, 1.6)).develop(linear).astype(int)
    mosaic = Camera(gains=(2.0, 1.0, 1.6), mosaic=True).develop(linear)
    assert np.abs(mosaic - plain)[3:-3, 3:-3].max() <= 1


def test_a_mosaic_spreads_noise_over_neighbours():
    grey, noise = np.full((128, 128, 3), 0.2, np.float32), Noise(1e-3, 1e-6)

    def correlation(mosaic: bool) -> float:
        picture = Camera(mosaic=mosaic).develop(grey, noise, np.random.default_rng(3))[..., 0]
        return np.corrcoef(picture[:, :-1].ravel(), picture[:, 1:].ravel())[0, 1]

    assert abs(correlation(False)) < 0.03
    assert correlation(True) > 0.2


def test_jpeg_loses_more_at_low_quality():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    errors = [np.abs(jpeg(picture, quality).astype(int) - picture).mean() for quality in (30, 95)]
    assert errors[0] > errors[1] > 0
    flat = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    assert np.abs(jpeg(flat, 95).astype(int) - flat).max() <= 3  # the channels keep their order
