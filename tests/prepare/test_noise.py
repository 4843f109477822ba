"""The estimate of a photograph's noise, on noise that is known."""

import numpy as np
import pytest
from small_data import picture

from hidiff.prepare.noise import noise_level


@pytest.mark.parametrize("sigma", [0.0, 4.0, 10.0])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_the_noise_is_measured_and_edges_are_not(sigma, depth):
    image = 60 + 0.5 * picture(1, 160, 200).astype(float)
    image[:, 90:] += 40
    image += np.random.default_rng(0).normal(0, sigma, image.shape[:2])[..., None]
    scale = np.iinfo(depth).max / 255
    level = noise_level(np.rint(np.clip(image, 0, 255) * scale).astype(depth))
    # The flattest tenth of the blocks has a little less noise than the others.
    assert level == pytest.approx(0.9 * sigma, rel=0.15, abs=0.8)


def test_nothing_is_known_of_white_and_of_tiny_pictures():
    assert noise_level(np.full((64, 64, 3), 255, np.uint8)) == 0
    assert noise_level(np.zeros((8, 64, 3), np.uint8)) == 0
