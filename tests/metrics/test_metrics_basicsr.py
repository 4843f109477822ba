"""PSNR and SSIM of the 'basicsr' protocol against golden values and plain definitions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from hidiff.metrics import calculate_psnr, calculate_ssim
from hidiff.registry import METRICS
from hidiff.utils.errors import UserError

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
VALUES = json.loads((GOLDEN / "metrics.json").read_text())


def golden_pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(GOLDEN / "metric_pairs.npz") as pairs:
        return pairs[f"{name}/restored"], pairs[f"{name}/gt"]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def ssim_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Mean SSIM of one channel (H, W): every window written out, none beyond the image."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            a, b = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            cov = (window * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + c1)
                * (2 * cov + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )
    return float(np.mean(values))


@pytest.mark.parametrize("name", VALUES)
def test_golden(name: str) -> None:
    restored, target = golden_pair(name)
    expected = VALUES[name]
    assert calculate_psnr(restored, target) == pytest.approx(expected["psnr_rgb"], abs=1e-9)
    assert calculate_psnr(restored, target, test_y_channel=True) == pytest.approx(
        expected["psnr_y"], abs=1e-9
    )
    assert calculate_ssim(restored, target) == pytest.approx(
        expected["ssim_2d_per_channel"], abs=1e-6
    )
    assert calculate_ssim(restored, target, test_y_channel=True) == pytest.approx(
        expected["ssim_y"], abs=1e-6
    )


def test_psnr_by_hand() -> None:
    target = np.full((4, 5, 3), 100, np.uint8)
    restored = target.copy()
    restored[..., 1] += 6  # mean squared error 36 / 3 = 12
    assert calculate_psnr(restored, target) == pytest.approx(10 * math.log10(255**2 / 12))
    # A difference that wraps around in uint8: |0 - 255|² everywhere, hence 0 dB.
    black, white = np.zeros((4, 5, 3), np.uint8), np.full((4, 5, 3), 255, np.uint8)
    assert calculate_psnr(black, white) == pytest.approx(0.0, abs=1e-12)


def test_luma_psnr_by_hand() -> None:
    # Black has luma 16, white 235: a difference of 219.
    black, white = np.zeros((4, 5, 3), np.uint8), np.full((4, 5, 3), 255, np.uint8)
    expected = 20 * math.log10(255 / 219)
    assert calculate_psnr(black, white, test_y_channel=True) == pytest.approx(expected, abs=1e-6)
    # The channels are RGB: pure red is 65.481 above black, pure blue 24.966.
    for channel, weight in ((0, 65.481), (1, 128.553), (2, 24.966)):
        colour = black.copy()
        colour[..., channel] = 255
        expected = 20 * math.log10(255 / weight)
        assert calculate_psnr(colour, black, test_y_channel=True) == pytest.approx(
            expected, abs=1e-5
        )


def test_identical_images() -> None:
    image = noise(16, 17, 3)
    assert calculate_psnr(image, image.copy()) == math.inf
    assert calculate_psnr(image, image.copy(), test_y_channel=True) == math.inf
    assert calculate_ssim(image, image.copy()) == pytest.approx(1.0, abs=1e-12)


def test_ssim_matches_the_definition() -> None:
    target = noise(15, 18, 3)
    restored = np.clip(target // 2 + noise(15, 18, 3, seed=1) // 3, 0, 255).astype(np.uint8)
    expected = np.mean([ssim_by_definition(restored[..., c], target[..., c]) for c in range(3)])
    assert calculate_ssim(restored, target) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("metric", [calculate_psnr, calculate_ssim])
@pytest.mark.parametrize("luma", [False, True])
def test_crop_border_ignores_the_border(metric, luma: bool) -> None:
    target, restored = noise(21, 24, 3), noise(21, 24, 3, seed=1)
    inner = slice(4, -4)
    expected = metric(restored[inner, inner], target[inner, inner], test_y_channel=luma)
    assert metric(restored, target, crop_border=4, test_y_channel=luma) == expected
    assert metric(restored, target, test_y_channel=luma) != expected


@pytest.mark.parametrize("metric", [calculate_psnr, calculate_ssim])
@pytest.mark.parametrize(
    ("restored", "target", "names"),
    [
        (noise(16, 16, 3), noise(16, 17, 3), ["(16, 16, 3)", "(16, 17, 3)"]),
        (noise(16, 16, 3).astype(np.float32), noise(16, 16, 3), ["float32", "uint8"]),
        (noise(16, 16, 4), noise(16, 16, 4), ["(16, 16, 4)"]),
        (noise(16, 16), noise(16, 16), ["(16, 16)"]),
        (noise(0, 16, 3), noise(0, 16, 3), ["(0, 16, 3)"]),
        ([[1, 2]], noise(16, 16, 3), ["a list", "(16, 16, 3)"]),
    ],
)
def test_pairs_that_cannot_be_compared(metric, restored, target, names: list[str]) -> None:
    with pytest.raises(UserError) as error:
        metric(restored, target)
    for name in names:
        assert name in str(error.value)


def test_too_little_is_left() -> None:
    image = noise(20, 30, 3)
    with pytest.raises(UserError, match="at least 11×11"):
        calculate_ssim(image[:10], image[:10])
    with pytest.raises(UserError, match="at least 21×21"):
        calculate_ssim(image, image, crop_border=5)
    with pytest.raises(UserError, match=r"\(20, 30, 3\)"):
        calculate_psnr(image, image, crop_border=10)
    with pytest.raises(UserError, match="crop_border"):
        calculate_psnr(image, image, crop_border=-1)


def test_registered_under_the_released_names() -> None:
    section = {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}
    metric, options = METRICS.check(section, "val.metrics.psnr", supplied=("restored", "target"))
    assert metric is calculate_psnr
    assert options == {"crop_border": 2, "test_y_channel": True}
    assert METRICS.get("calculate_ssim", "val.metrics.ssim") is calculate_ssim
    with pytest.raises(UserError, match="crop_border"):
        METRICS.check(
            {"type": "calculate_ssim", "crop_boarder": 2}, "m", supplied=("restored", "target")
        )
